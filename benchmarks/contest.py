"""What benchmarks of whole commands share: interleaved rounds, medians, a table, and what is said of the machine.

Each run is a fresh child process (`measure.py`); its result is judged afterwards, outside of the time.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from measure import CommandFailed, Usage, run_measured
from server import Nginx, Traffic

LOADED_ABOVE = 0.10
"""A time is marked when others used more than this share of the machine in the run of its median."""
PRODUCT = "em_assets"


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
    reached = "yes" if ratio >= target else "no"
    return f"| {what} | >= {target:g} | {reached}: {ratio:.2f}x ({best.client}) |"


def targets(lines: Sequence[str]) -> list[str]:
    return ["### Against the targets", "", "| target | speed, x peer | reached |", "|---|---|---|", *lines, ""]


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
