"""What benchmarks share: contests of whole commands, contests of clients that stay, and what is said of the machine.

Of whole commands each run is a fresh child process (`measure.py`) in interleaved rounds; its result is judged
afterwards, outside of the time. Clients that stay have a volume open and are asked for the same random blocks in turn
(`blocks.py`, `blocks_remote.py`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from measure import TICKS_PER_SECOND, CommandFailed, Usage, _busy_ticks, _own_ticks, run_measured
from server import Nginx, Traffic

from em_assets.standardize.shard import ShardFormat, encode_shard

Triple = tuple[int, int, int]

LOADED_ABOVE = 0.10
"""A time is marked when others used more than this share of the machine in the run of its median."""
PRODUCT = "em_assets"
CHUNK, SHARD, BLOCK, BATCH = 64, 256, 128, 32
"""Edges in voxels of the volume whose blocks are read and of those blocks, and how many are read together."""


@dataclass(frozen=True)
class Run:
    """One client, once."""

    usage: Usage
    traffic: Traffic | None
    verdict: str
    """`right`, with a measure of how right where there is one; or what is WRONG."""


@dataclass
class Row:
    """One client in one case: its runs, or why there are none."""

    client: str
    runs: list[Run] = field(default_factory=list)
    failure: str | None = None

    @property
    def wall_seconds(self) -> float:
        return statistics.median(run.usage.wall_seconds for run in self.runs)

    @property
    def peak_anonymous_bytes(self) -> float:
        return statistics.median(run.usage.peak_anonymous_bytes for run in self.runs)

    @property
    def median(self) -> Run:
        """The run of the median time (the slower of the middle two)."""
        return sorted(self.runs, key=lambda run: run.usage.wall_seconds)[len(self.runs) // 2]

    @property
    def is_right(self) -> bool:
        return self.failure is None and all(run.verdict.startswith("right") for run in self.runs)


@dataclass(frozen=True)
class Contest:
    """One case: the same job for all clients."""

    title: str
    commands: Mapping[str, Sequence[str]]
    """The command of each client; all write to `out`."""
    out: Path
    judge: Callable[[str, Usage], str]
    """(client, usage) -> verdict."""
    server: Nginx | None = None

    def run(self, rounds: int, repeats: int) -> list[Row]:
        rows = {client: Row(client) for client in self.commands}
        for number in range(rounds):
            for client, row in rows.items():
                if row.failure is not None:
                    continue
                try:
                    run = self._undisturbed(client, repeats)
                except CommandFailed as error:
                    say(str(error))
                    row.failure, row.runs = str(error).strip().splitlines()[-1], []
                    continue
                row.runs.append(run)
                say(
                    f"{self.title}, round {number + 1}, {client}: {run.usage.wall_seconds:.2f} s, "
                    f"{run.usage.peak_anonymous_bytes / 1e6:.0f} MB, others {run.usage.foreign_load:.0%}, {run.verdict}"
                )
        return list(rows.values())

    def warm_up(self) -> None:
        """Every client once, so that its bytecode is compiled and in the page cache, as after any first run."""
        for client in self.commands:
            try:
                self._once(client)
            except CommandFailed as error:
                say(str(error))  # it will fail, and be reported, in its first round
        shutil.rmtree(self.out, ignore_errors=True)

    def _undisturbed(self, client: str, repeats: int) -> Run:
        """A run with the machine to itself, or after so many repetitions the least disturbed one."""
        runs = [self._once(client)]
        while len(runs) <= repeats and runs[-1].usage.foreign_load > LOADED_ABOVE:
            runs.append(self._once(client))
        wrong = [run for run in runs if not run.verdict.startswith("right")]  # never repeated away
        return wrong[0] if wrong else min(runs, key=lambda run: run.usage.foreign_load)

    def _once(self, client: str) -> Run:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        os.sync()  # nobody pays for what another left to be written
        seen = self.server.log_size() if self.server is not None else 0
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPYCACHEPREFIX": str(self.out.parent / "bytecode"), "AWS_EC2_METADATA_DISABLED": "true"}
        own_pids = [self.server.pid] if self.server is not None else []
        usage = run_measured(list(self.commands[client]), environment=environment, own_pids=own_pids)
        traffic = self.server.traffic_since(seen) if self.server is not None else None
        return Run(usage, traffic, self.judge(client, usage))


def table(rows: Sequence[Row], moved_bytes: int, absent: Mapping[str, str], base: str = PRODUCT) -> Iterator[str]:
    """Markdown. `speed` is the base's time over the client's; of what is absent the reason is given."""
    found = next((row for row in rows if row.client == base and row.runs), None)
    yield (
        f"| client | wall s (min - max) | MB/s | speed, x {base} | cpu s | peak anonymous MB | peak resident MB "
        "| requests | result |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        if row.failure is not None:
            yield f"| {row.client} | failed: {row.failure} |" + " |" * 7
        else:
            yield f"| {' | '.join(_cells(row, moved_bytes, found))} |"
    for client, reason in absent.items():
        yield f"| {client} | absent: {reason} |" + " |" * 7


def _cells(row: Row, moved_bytes: int, base: Row | None) -> Iterator[str]:
    walls, median = [run.usage.wall_seconds for run in row.runs], row.median
    foreign = median.usage.foreign_load
    busy = f", others {foreign:.0%}" if foreign > LOADED_ABOVE else ""
    yield row.client
    yield f"{row.wall_seconds:.2f} ({min(walls):.2f} - {max(walls):.2f}){busy}"
    yield f"{moved_bytes / row.wall_seconds / 1e6:.0f}"
    yield "-" if base is None else f"{base.wall_seconds / row.wall_seconds:.2f}"
    yield f"{statistics.median(run.usage.cpu_seconds for run in row.runs):.2f}"
    yield f"{row.peak_anonymous_bytes / 1e6:.0f}"
    yield f"{statistics.median(run.usage.peak_resident_bytes for run in row.runs) / 1e6:.0f}"
    yield "-" if median.traffic is None else f"{median.traffic.requests}"
    yield next((run.verdict for run in row.runs if not run.verdict.startswith("right")), median.verdict)


def against(rows: Sequence[Row], peers: Sequence[str], target: float, what: str) -> str:
    """A line of the table of targets: the product's speed over that of the fastest of the peers that ran."""
    own = next((row for row in rows if row.client == PRODUCT and row.runs), None)
    ran = [row for row in rows if row.client in peers and row.runs]
    if own is None or not ran:
        return f"| {what} | >= {target:g} | not measured |"
    best = min(ran, key=lambda row: row.wall_seconds)
    ratio = best.wall_seconds / own.wall_seconds
    return f"| {what} | >= {target:g} | {yes(ratio >= target)}: {ratio:.2f}x ({best.client}) |"


def targets(lines: Sequence[str]) -> list[str]:
    return ["### Against the targets", "", "| target | speed, x peer | reached |", "|---|---|---|", *lines, ""]


# Clients that stay


class ClientFailed(Exception):
    """A client ended, or never began, or gave other voxels: why, in a few words."""


@dataclass(frozen=True)
class Turn:
    """What a client did when it was asked for some blocks."""

    replies: list[dict[str, Any]]
    """To each call: `seconds`, `cpu_seconds`, `digest` (sha256 of the blocks' voxels)."""
    foreign_ticks: float
    """That other processes used meanwhile."""
    all_ticks: float
    """Of all cores."""


@dataclass
class Standing:
    """How a client that stays is doing."""

    client: str
    foreign_ticks: float = 0.0
    all_ticks: float = 0.0
    verdict: str = "right"

    @property
    def foreign_load(self) -> float:
        return max(0.0, self.foreign_ticks) / self.all_ticks if self.all_ticks else 0.0

    def fail(self, error: ClientFailed) -> None:
        self.verdict = str(error)
        say(f"{self.client}: {error}")


class Contestant:
    """A client's process, which reads a line of JSON and answers with one."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.pid = self._process.pid

    def read(self, starts: Sequence[Triple], edge: int = BLOCK) -> dict[str, Any]:
        """Its reply to one call. Raises ClientFailed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"starts": starts, "edge": edge}) + "\n")
            self._process.stdin.flush()
            return dict(json.loads(self._process.stdout.readline()))
        except (OSError, ValueError):
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines() or ["nothing"]
            raise ClientFailed(f"failed: {said[-1]}") from None

    def turn(self, orders: Sequence[Sequence[Triple]], voxels: np.ndarray, servers: Sequence[int] = ()) -> Turn:
        """Asks for blocks, in one call after another, and compares them, outside of the time.

        `servers` are processes that belong to the measurement. Raises ClientFailed.
        """
        pids = [*servers, self.pid]
        own, busy, began = _own_ticks(pids), _busy_ticks(), time.monotonic()
        replies = [self.read(starts) for starts in orders]
        foreign = (_busy_ticks() - busy) - (_own_ticks(pids) - own)
        spent = (time.monotonic() - began) * TICKS_PER_SECOND * (os.cpu_count() or 1)
        for starts, reply in zip(orders, replies, strict=True):
            if reply["digest"] != _digest(voxels, starts):
                raise ClientFailed(f"WRONG voxels at {starts[0]}")
        return Turn(replies, foreign, spent)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def _digest(voxels: np.ndarray, starts: Sequence[Triple]) -> str:
    digest = hashlib.sha256()
    for start in starts:
        block = voxels[tuple(slice(a, a + BLOCK) for a in start)]
        digest.update(memoryview(np.ascontiguousarray(block)).cast("B"))
    return digest.hexdigest()


def orders(dice: random.Random, edge: int, singles: int) -> Iterator[tuple[str, list[list[Triple]]]]:
    """(kind, what to read in each of its calls) of a round: the same for every client."""
    most = edge - BLOCK

    def place(step: int) -> Triple:
        z, y, x = (dice.randrange(0, most // step + 1) * step for _ in range(3))
        return z, y, x

    yield "aligned", [[place(CHUNK)] for _ in range(singles)]
    yield "unaligned", [[place(1)] for _ in range(singles)]
    yield "batch", [[place(1) for _ in range(BATCH)]]


def shard_corners(edge: int) -> list[Triple]:
    """Who reads there has looked into every shard, so that its index is known to whoever keeps it."""
    return [(z, y, x) for z, y, x in itertools.product(range(0, edge, SHARD), repeat=3)]


def create_volume(folder: Path, edge: int, *, chunk: int, shard: int | None, is_compressed: bool) -> Any:
    """The array of an OME-Zarr 0.5 of one level of uint8, without voxels. Unsharded, a chunk is a file."""
    import zarr

    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [8.0, 8.0, 8.0]}]}]
    group = zarr.create_group(str(folder), zarr_format=3, overwrite=True)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": "blocks", "axes": axes, "datasets": datasets}]}
    return group.create_array(
        "0",
        shape=(edge,) * 3,
        dtype="uint8",
        chunks=(chunk,) * 3,
        shards=None if shard is None else (shard,) * 3,
        compressors=zarr.codecs.ZstdCodec(level=1, checksum=False) if is_compressed else None,
        fill_value=0,
        dimension_names=list("zyx"),
    )


def write_shard(folder: Path, corner: Triple, voxels: np.ndarray, form: ShardFormat) -> bytes:
    """Writes the shard of a volume (all of its voxels) at a corner, in the product's bytes: chunks lie in C order."""
    file = folder.joinpath("0", "c", *(str(a // SHARD) for a in corner))
    file.parent.mkdir(parents=True, exist_ok=True)
    data = bytes(encode_shard(np.ascontiguousarray(voxels[tuple(slice(a, a + SHARD) for a in corner)]), form))
    file.write_bytes(data)
    return data


# What is said


def read_once(folder: Path) -> None:
    """Every file below, so that all lie in the page cache: whoever is asked first would wait for the disk."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb", buffering=0) as opened:
                while opened.read(2**20):
                    pass


def yes(reached: bool) -> str:
    return "yes" if reached else "no"


def machine(packages: Sequence[str], rounds: int) -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.machine()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({cpu}), {memory_gib:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}; {versions}. {rounds} interleaved rounds, medians. Load average when it "
        f"began: {load}. A time is marked where other processes used more than {LOADED_ABOVE:.0%} of the machine."
    )


def program(name: str) -> str | None:
    """Where a program is: beside this Python, or on the PATH."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
