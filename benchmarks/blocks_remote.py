"""128^3 blocks of an OME-Zarr over HTTP and S3: em_assets against tensorstore and zarr-python.

    apt-get install nginx libnginx-mod-http-lua      # the Lua module waits; without it give --latency 0
    pip install -e '.[dev]'
    python benchmarks/blocks_remote.py --quick                                      # two rounds, a few minutes
    python benchmarks/blocks_remote.py --work ../benchmark --out blocks_remote.md

Every client is a process that stays, with one volume open and all indices of shards known ("first" is the block before
that, opening not included). All are asked for the same random blocks in turn: eight aligned to chunks, eight not, and a
batch of 32 in each round. The volume is 1024^3 voxels, so that hardly any chunk is read twice. CPU is the client's own,
which others on the machine disturb least; requests and bytes are counted in nginx's log. zarr-python reads S3 from the
same nginx. What "em_assets, local files" takes is decoding alone: it is subtracted where round trips are counted.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr
from blocks_remote_clients import CLIENTS, Triple
from bucket import Bucket
from contest import LOADED_ABOVE, machine, say
from measure import TICKS_PER_SECOND, _busy_ticks, _own_ticks
from server import Nginx
from volume import LARGEST_DRAWN_EDGE

from em_assets.sample.texture import draw
from em_assets.standardize.shard import ShardFormat, encode_shard

HERE = Path(__file__).parent
BUCKET = "em-data"
CHUNK, SHARD, BLOCK, BATCH = 64, 256, 128, 32
LAYOUTS = ("sharded", "unsharded")
ABSENT = 2**64 - 1
PRODUCT, LOCAL = "em_assets", "em_assets, local files"
TENSORSTORES = ("tensorstore", "tensorstore, index pool")
PACKAGES = ("em_assets", "numpy", "zarr", "tensorstore", "s3fs", "obstore")
QUICK = {"rounds": 2, "blocks": 6}


class ClientFailed(Exception):
    """A client ended, or never began."""


@dataclass
class Kind:
    """What one client was asked for in one way: `aligned`, `unaligned`, `batch`."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    blocks: int = 0
    requests: int = 0
    received_bytes: int = 0
    needed_bytes: int = 0
    """Of the chunks touched, each counted once in a batch."""


@dataclass
class Row:
    client: str
    kinds: dict[str, Kind] = field(default_factory=lambda: {name: Kind() for name in ("aligned", "unaligned", "batch")})
    first_seconds: float = 0.0
    foreign_ticks: float = 0.0
    all_ticks: float = 0.0
    verdict: str = "right"

    @property
    def foreign_load(self) -> float:
        return max(0.0, self.foreign_ticks) / self.all_ticks if self.all_ticks else 0.0


class Contestant:
    """A client's process."""

    def __init__(self, name: str, url: str, folder: Path) -> None:
        command = [sys.executable, str(HERE / "blocks_remote_clients.py"), name, url, str(folder)]
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.pid = self._process.pid

    def read(self, starts: Sequence[Triple], edge: int) -> dict[str, Any]:
        """`seconds`, `cpu_seconds`, `digest` (sha256 of the blocks' voxels)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"starts": starts, "edge": edge}) + "\n")
            self._process.stdin.flush()
            return dict(json.loads(self._process.stdout.readline()))
        except (OSError, ValueError):
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines() or ["nothing"]
            raise ClientFailed(f"{self.name} ended: {said[-1]}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


@dataclass(frozen=True)
class Published:
    """The volume as it is served, and what is known of it."""

    folder: Path
    voxels: np.ndarray
    sizes: dict[Triple, int]
    """Stored bytes of each chunk."""

    def digest(self, starts: Sequence[Triple], edge: int) -> str:
        digest = hashlib.sha256()
        for start in starts:
            box = tuple(slice(a, a + edge) for a in start)
            digest.update(memoryview(np.ascontiguousarray(self.voxels[box])).cast("B"))
        return digest.hexdigest()

    def needed_bytes(self, starts: Sequence[Triple], edge: int) -> int:
        touched = {
            cell
            for start in starts
            for cell in itertools.product(*(range(a // CHUNK, -(-(a + edge) // CHUNK)) for a in start))
        }
        return sum(self.sizes[cell] for cell in touched)


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that clients and server end too
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="em_assets_benchmark_", dir=arguments.work) as scratch:
        report, all_right = _measure(arguments, Path(scratch))
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(report + "\n")
    return 0 if all_right else 1


def _measure(arguments: argparse.Namespace, scratch: Path) -> tuple[str, bool]:
    say("drawing the volume")
    root = (arguments.work or scratch) / f"blocks_remote_{arguments.edge}"
    voxels = _voxels(root, arguments.edge)
    lines, reached, all_right = [machine(PACKAGES, arguments.rounds), ""], [], True
    with Bucket(root, BUCKET) as bucket:
        for layout in arguments.layouts:
            published = _published(root, layout, voxels)
            probe = f"{BUCKET}/{layout}/zarr.json"
            with Nginx(root, scratch / "nginx", arguments.latency, locations=bucket.locations, probe=probe) as nginx:
                for latency_ms in arguments.latency:
                    title = f"{layout}, {'loopback' if not latency_ms else f'+{latency_ms:g} ms'}"
                    rows = _contest(title, published, nginx, latency_ms, arguments)
                    lines += [f"### {title}", "", *_table(rows), ""]
                    reached += [f"| {title}: {text}" for text in _targets(rows, latency_ms)]
                    all_right = all_right and all(row.verdict == "right" for row in rows)
    lines += ["### Against the targets", "", "| target | wanted | reached |", "|---|---|---|", *reached, ""]
    return "\n".join(lines), all_right


def _contest(
    title: str, published: Published, nginx: Nginx, latency_ms: float, arguments: argparse.Namespace
) -> list[Row]:
    url = f"{nginx.url(latency_ms)}/{BUCKET}/{published.folder.name}"
    rows = {name: Row(name) for name in arguments.clients}
    contestants = [Contestant(name, url, published.folder) for name in arguments.clients]
    try:
        for contestant in contestants:
            _warm_up(contestant, rows[contestant.name], published)
        dice = random.Random(arguments.seed)
        for number in range(arguments.rounds):
            for kind, orders in _orders(dice, arguments):
                for contestant in contestants:
                    row = rows[contestant.name]
                    if row.verdict == "right":
                        _turn(contestant, row, row.kinds[kind], orders, (published, nginx))
            say(f"{title}, round {number + 1} of {arguments.rounds}")
    finally:
        for contestant in contestants:
            contestant.__exit__(None, None, None)
    return list(rows.values())


def _orders(dice: random.Random, arguments: argparse.Namespace) -> Iterator[tuple[str, list[list[Triple]]]]:
    """(kind, what to read in each of its calls): the same for every client."""
    most = arguments.edge - BLOCK

    def place(step: int) -> Triple:
        z, y, x = (dice.randrange(0, most // step + 1) * step for _ in range(3))
        return z, y, x

    yield "aligned", [[place(CHUNK)] for _ in range(arguments.blocks)]
    yield "unaligned", [[place(1)] for _ in range(arguments.blocks)]
    yield "batch", [[place(1) for _ in range(BATCH)]]


def _warm_up(contestant: Contestant, row: Row, published: Published) -> None:
    """Opens the volume and looks into every shard, so that its index is known to whoever keeps it."""
    corners = itertools.product(*(range(0, n, SHARD) for n in published.voxels.shape))
    starts = [(z, y, x) for z, y, x in corners]
    try:
        row.first_seconds = contestant.read(starts[:1], BLOCK)["seconds"]
        contestant.read(starts, 8)
    except ClientFailed as error:
        row.verdict = str(error)
        say(row.verdict)


def _turn(
    contestant: Contestant, row: Row, found: Kind, orders: list[list[Triple]], served: tuple[Published, Nginx]
) -> None:
    published, nginx = served
    seen, own_pids = nginx.log_size(), [nginx.pid, contestant.pid]
    own, busy = _own_ticks(own_pids), _busy_ticks()
    began = time.monotonic()
    for starts in orders:
        try:
            reply = contestant.read(starts, BLOCK)
        except ClientFailed as error:
            row.verdict = str(error)
            say(row.verdict)
            return
        found.seconds.append(reply["seconds"])
        found.cpu_seconds += reply["cpu_seconds"]
        found.blocks += len(starts)
        found.needed_bytes += published.needed_bytes(starts, BLOCK)
        if reply["digest"] != published.digest(starts, BLOCK):
            row.verdict = f"WRONG voxels at {starts[0]}"
            say(f"{contestant.name}: {row.verdict}")
            return
    row.foreign_ticks += (_busy_ticks() - busy) - (_own_ticks(own_pids) - own)
    row.all_ticks += (time.monotonic() - began) * TICKS_PER_SECOND * (os.cpu_count() or 1)
    traffic = nginx.traffic_since(seen)
    found.requests += traffic.requests
    found.received_bytes += traffic.body_bytes


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "| client | first ms | aligned p50 ms | unaligned p50 ms (min, p90) | batch of 32, blocks/s (best) "
        "| CPU ms / block: unaligned, batch | requests / unaligned block | bytes, x chunks touched | others | result |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        aligned, unaligned, batch = (row.kinds[name] for name in ("aligned", "unaligned", "batch"))
        if not batch.seconds:
            yield f"| {row.client} |" + " |" * 8 + f" {row.verdict} |"
            continue
        p90 = sorted(unaligned.seconds)[int(0.9 * (len(unaligned.seconds) - 1))]
        load = f"{row.foreign_load:.0%}" if row.foreign_load > LOADED_ABOVE else "-"
        yield (
            f"| {row.client} | {row.first_seconds * 1e3:.0f} | {_p50(aligned) * 1e3:.1f} "
            f"| {_p50(unaligned) * 1e3:.1f} ({min(unaligned.seconds) * 1e3:.1f}, {p90 * 1e3:.1f}) "
            f"| {BATCH / _p50(batch):.0f} ({BATCH / min(batch.seconds):.0f}) "
            f"| {unaligned.cpu_seconds / unaligned.blocks * 1e3:.1f}, {batch.cpu_seconds / batch.blocks * 1e3:.1f} "
            f"| {unaligned.requests / unaligned.blocks:.1f} "
            f"| {unaligned.received_bytes / unaligned.needed_bytes:.2f}, batch "
            f"{batch.received_bytes / batch.needed_bytes:.2f} | {load} | {row.verdict} |"
        )


def _targets(rows: Sequence[Row], latency_ms: float) -> Iterator[str]:
    ran = {row.client: row for row in rows if row.kinds["batch"].seconds}
    own = ran.get(PRODUCT)
    if own is None:
        return
    batch = own.kinds["batch"]
    peers = [ran[name] for name in TENSORSTORES if name in ran]
    if peers:
        best = min(_p50(row.kinds["batch"]) for row in peers)
        yield _reached("batch of 32, x the faster tensorstore", 1.2, best / _p50(batch))
    if "zarr + s3fs" in ran:
        yield _reached("batch of 32, x zarr + s3fs", 4.0, _p50(ran["zarr + s3fs"].kinds["batch"]) / _p50(batch))
    if latency_ms and LOCAL in ran:
        decode_ms = _p50(ran[LOCAL].kinds["unaligned"]) * 1e3
        trips = (_p50(own.kinds["unaligned"]) * 1e3 - decode_ms) / latency_ms
        yield f"one unaligned block less decoding, in round trips | <= 1.2 | {_yes(trips <= 1.2)}: {trips:.2f} |"
    most = max(k.received_bytes / k.needed_bytes for k in own.kinds.values())
    yield f"bytes, x those of the chunks touched | <= 1.1 | {_yes(most <= 1.1)}: {most:.3f} |"


def _reached(what: str, wanted: float, found: float) -> str:
    return f"{what} | >= {wanted:g} | {_yes(found >= wanted)}: {found:.2f} |"


def _yes(reached: bool) -> str:
    return "yes" if reached else "no"


def _p50(kind: Kind) -> float:
    return statistics.median(kind.seconds)


def _voxels(root: Path, edge: int) -> np.ndarray:
    """Drawn, mirrored to size, and kept beside what is served."""
    file = root / "voxels.npy"
    if not file.is_file():
        root.mkdir(parents=True, exist_ok=True)
        volume = draw((min(edge, LARGEST_DRAWN_EDGE),) * 3, seed=1)
        while min(volume.shape) < edge:
            volume = np.pad(volume, [(0, min(edge - n, n)) for n in volume.shape], mode="symmetric")
        partial = file.with_name("partial.npy")
        np.save(partial, volume)
        partial.rename(file)
    return np.load(file, mmap_mode="r")


def _published(root: Path, layout: str, voxels: np.ndarray) -> Published:
    """An OME-Zarr 0.5 of one level, as the product writes it; unsharded, the same chunks each in a file."""
    folder = root / BUCKET / layout
    marker = root / f"{layout}.json"
    if not marker.is_file():
        shards = (SHARD,) * 3 if layout == "sharded" else None
        array = _described(folder, voxels.shape, shards)
        sizes: dict[str, int] = {}
        for corner in itertools.product(*(range(0, n, SHARD) for n in voxels.shape)):
            box = tuple(slice(a, a + SHARD) for a in corner)
            if shards is None:
                array[box] = voxels[box]
            else:
                _write_shard(folder / "0", corner, np.ascontiguousarray(voxels[box]), sizes)
        if shards is None:
            files = [file for file in (folder / "0" / "c").rglob("*") if file.is_file()]
            sizes = {"/".join(file.parts[-3:]): file.stat().st_size for file in files}
        marker.write_text(json.dumps(sizes))
    known = json.loads(marker.read_text())
    return Published(folder, voxels, {_triple(name.split("/")): size for name, size in known.items()})


def _described(folder: Path, shape: Sequence[int], shards: Triple | None) -> Any:
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [8.0, 8.0, 8.0]}]}]
    multiscales = [{"name": "blocks", "axes": axes, "datasets": datasets}]
    group = zarr.create_group(str(folder), zarr_format=3, overwrite=True)
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    return group.create_array(
        "0",
        shape=tuple(shape),
        dtype="uint8",
        chunks=(CHUNK,) * 3,
        shards=shards,
        compressors=zarr.codecs.ZstdCodec(level=1, checksum=False),
        fill_value=0,
        dimension_names=list("zyx"),
    )


def _write_shard(array: Path, corner: Sequence[int], voxels: np.ndarray, sizes: dict[str, int]) -> None:
    """In the product's bytes, whose chunks lie in C order; notes the size of each chunk."""
    form = ShardFormat((SHARD,) * 3, (CHUNK,) * 3, "uint8")
    data = bytes(encode_shard(voxels, form))
    place = [a // SHARD for a in corner]
    file = array.joinpath("c", *map(str, place))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    per_shard = SHARD // CHUNK
    index = np.frombuffer(data[-form.index_bytes : -4], "<u8").reshape((per_shard,) * 3 + (2,))
    for cell in np.ndindex(index.shape[:3]):
        name = "/".join(str(a * per_shard + b) for a, b in zip(place, cell, strict=True))
        sizes[name] = int(index[cell][1])


def _triple(parts: Sequence[str]) -> Triple:
    z, y, x = map(int, parts)
    return z, y, x


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=1024, help=f"of the volume, a multiple of {SHARD} (%(default)s)")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--latency", nargs="+", type=float, default=[0.0, 20.0], metavar="MS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=8, help="single ones of each kind in a round (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides which blocks are read")
    parser.add_argument("--work", type=Path, help="keeps the volume for the next run (default: a temp folder)")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--quick", action="store_true", help="two rounds of 6 blocks, unless given")
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(**QUICK)
        arguments = parser.parse_args()
    return arguments


if __name__ == "__main__":
    sys.exit(main())
