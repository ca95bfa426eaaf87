"""The product against tensorstore and cloud-volume: a crop of one sharded JPEG precomputed volume into local Zarr v3.

    python benchmarks/precomputed_crop.py --quick
    python benchmarks/precomputed_crop.py --out table.md

Every client runs as a whole command in a fresh child process (`clients.py`), in interleaved rounds, against one nginx
(`server.py`); what it wrote is compared with the published voxels each time. README.md says how to read the table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clients import BASELINE, CLIENTS, SYNCS, Triple
from measure import CommandFailed, Usage, run_measured
from server import CannotServe, Nginx, Traffic
from volume import CHUNK, jpeg_ratio, published_volume

HERE = Path(__file__).parent
QUICK = {"size": 512, "crop": 400, "rounds": 2}
LOADED_ABOVE = 0.10
"""A row is marked when others used more than this share of the machine in the run of its median."""
PACKAGES = ("em_assets", "numpy", "imagecodecs", "zstandard", "urllib3", "tensorstore", "cloud-volume", "zarr")


@dataclass(frozen=True)
class Case:
    """One table: where the crop lies and how long the server waits."""

    origin: str
    start: Triple
    stop: Triple
    latency_ms: float
    digest: str
    """sha256 of the published voxels in the box."""

    @property
    def shape(self) -> Triple:
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def title(self) -> str:
        shape = " x ".join(map(str, self.shape))
        latency = f"+{self.latency_ms:g} ms" if self.latency_ms else "loopback"
        return f"{shape} at {self.start} (z, y, x; {self.origin}), {latency}"


@dataclass(frozen=True)
class Run:
    """One client, once."""

    usage: Usage
    traffic: Traffic
    stored_bytes: int
    is_right: bool


@dataclass(frozen=True)
class Row:
    """One client in one case: its runs, or why there are none."""

    client: str
    runs: list[Run]
    failure: str | None = None

    @property
    def is_right(self) -> bool:
        return self.failure is None and all(run.is_right for run in self.runs)

    @property
    def median(self) -> Run:
        """The run of the median time (the slower of the middle two)."""
        return sorted(self.runs, key=lambda run: run.usage.wall_seconds)[len(self.runs) // 2]

    @property
    def wall_seconds(self) -> float:
        return statistics.median(run.usage.wall_seconds for run in self.runs)

    @property
    def requests(self) -> float:
        return statistics.median(run.traffic.requests for run in self.runs)

    @property
    def peak_anonymous_bytes(self) -> float:
        return statistics.median(run.usage.peak_anonymous_bytes for run in self.runs)


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that client and server end too
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    # a folder of its own, so that two runs may share --work
    with tempfile.TemporaryDirectory(prefix="em_assets_benchmark_", dir=arguments.work) as scratch:
        try:
            report, all_right = _measure(arguments, Path(scratch))
        except (CannotServe, CommandFailed) as error:
            print(error, file=sys.stderr)
            return 1
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(report + "\n")
    return 0 if all_right else 1


def _measure(arguments: argparse.Namespace, scratch: Path) -> tuple[str, bool]:
    """The report, and whether every client gave the published voxels in every run."""
    _say("making the published volume, and reading the voxels that every result is compared with")
    published = published_volume(arguments.work or scratch, arguments.size, arguments.voxels)
    boxes = {origin: _box(arguments.size, arguments.crop, origin) for origin in arguments.origin}
    digests = {origin: _digest("neuroglancer_precomputed", published, *box) for origin, box in boxes.items()}
    report, all_right = [_machine(arguments, jpeg_ratio(published, arguments.size))], True
    with Nginx(published, scratch / "nginx", sorted({*arguments.latency})) as server:
        _warm_up(arguments, server, scratch)
        for origin, latency_ms in itertools.product(boxes, arguments.latency):
            case = Case(origin, *boxes[origin], latency_ms, digests[origin])
            rows = _run_case(case, arguments, server, scratch)
            report += [f"### {case.title()}", "", *_table(rows), ""]
            all_right &= all(row.is_right for row in rows)
    report.append(_synced(arguments.clients))
    return "\n".join(report), all_right


def _run_case(case: Case, arguments: argparse.Namespace, server: Nginx, scratch: Path) -> list[Row]:
    rows = {client: Row(client, []) for client in arguments.clients}
    for number in range(arguments.rounds):
        for client in arguments.clients:
            if rows[client].failure is not None:
                continue
            try:
                run = _run_undisturbed(client, case, server, scratch, arguments.repeats)
            except CommandFailed as error:
                _say(str(error))
                rows[client] = Row(client, [], failure=str(error).strip().splitlines()[-1])
                continue
            rows[client].runs.append(run)
            _say(
                f"{case.title()}, round {number + 1}, {client}: {run.usage.wall_seconds:.2f} s, "
                f"{run.traffic.requests} requests, {run.usage.peak_anonymous_bytes / 1e6:.0f} MB, "
                f"others {run.usage.foreign_load:.0%}{'' if run.is_right else ', WRONG'}"
            )
    return list(rows.values())


def _warm_up(arguments: argparse.Namespace, server: Nginx, scratch: Path) -> None:
    """Every client copies one chunk, so that its bytecode is compiled and in the page cache, as after any first run.

    The published volume was just read whole, so it is in the page cache too.
    """
    for client in arguments.clients:
        try:
            _run_command(client, server.url(arguments.latency[0]), ((0, 0, 0), (CHUNK,) * 3), scratch, server)
        except CommandFailed as error:
            _say(str(error))  # it will fail, and be reported, in its first round


def _run_command(client: str, url: str, box: tuple[Triple, Triple], scratch: Path, server: Nginx) -> Usage:
    out = scratch / "result"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # nobody pays for what another left to be written
    corners = [",".join(map(str, corner)) for corner in box]
    command = [sys.executable, str(HERE / "clients.py"), client, url, str(out), *corners]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(scratch / "bytecode")
    return run_measured(command, environment=environment, own_pids=[server.pid])


def _run_undisturbed(client: str, case: Case, server: Nginx, scratch: Path, repeats: int) -> Run:
    """A run with the machine to itself, or after so many repetitions the least disturbed one."""
    runs = [_run_client(client, case, server, scratch)]
    while len(runs) <= repeats and runs[-1].usage.foreign_load > LOADED_ABOVE:
        runs.append(_run_client(client, case, server, scratch))
    wrong = [run for run in runs if not run.is_right]  # never repeated away
    return wrong[0] if wrong else min(runs, key=lambda run: run.usage.foreign_load)


def _run_client(client: str, case: Case, server: Nginx, scratch: Path) -> Run:
    """Once; what it wrote is read back, then removed."""
    log_size = server.log_size()
    usage = _run_command(client, server.url(case.latency_ms), (case.start, case.stop), scratch, server)
    traffic = server.traffic_since(log_size)
    stored = Path(usage.output.splitlines()[-1])
    is_right = _is_right(stored, case)
    stored_bytes = sum(file.stat().st_size for file in stored.rglob("*") if file.is_file())
    return Run(usage, traffic, stored_bytes, is_right)


def _digest(driver: str, folder: Path, start: Triple, stop: Triple) -> str:
    """Raises CommandFailed if the box cannot be read."""
    corners = [",".join(map(str, corner)) for corner in (start, stop)]
    command = [sys.executable, str(HERE / "digest.py"), driver, str(folder.resolve()), *corners]
    reply = subprocess.run(command, capture_output=True, text=True, check=False)
    if reply.returncode != 0:
        raise CommandFailed(f"{folder} cannot be read: {reply.stderr[-1000:]}")
    return reply.stdout.strip()


def _is_right(stored: Path, case: Case) -> bool:
    try:
        return _digest("zarr3", stored, (0, 0, 0), case.shape) == case.digest
    except CommandFailed as error:
        _say(str(error))
        return False


def _box(size: int, crop: int, origin: str) -> tuple[Triple, Triple]:
    """The crop: on the chunk grid, or off it along every axis, by another distance each."""
    room = size - crop
    if origin == "aligned":
        first = min(CHUNK, room // CHUNK * CHUNK)
        start = (first, first, first)
    else:
        start = (room // 2 - 1, room // 2 - 9, room // 2 - 25)
    if min(start) < 0 or (origin == "unaligned" and any(a % CHUNK == 0 for a in start)):
        raise SystemExit(f"a crop of {crop} out of {size} leaves no room for an {origin} origin; give another --crop.")
    return start, (start[0] + crop, start[1] + crop, start[2] + crop)


def _table(rows: list[Row]) -> Iterator[str]:
    base = next((row for row in rows if row.client == BASELINE and row.runs), None)
    yield (
        "| client | wall s (min - max) | speed, x tensorstore | cpu s | requests | x tensorstore | MB received "
        "| peak anonymous MB | x tensorstore | peak resident MB | MB stored | result |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield _failed_line(row) if row.failure is not None else _line(row, base)


def _failed_line(row: Row) -> str:
    return f"| {row.client} | failed: {row.failure} |" + " |" * 10


def _line(row: Row, base: Row | None) -> str:
    walls = [run.usage.wall_seconds for run in row.runs]
    median = row.median
    result = "right" if row.is_right else "WRONG"
    busy = median.usage.foreign_load
    cells = [
        row.client,
        f"{row.wall_seconds:.2f} ({min(walls):.2f} - {max(walls):.2f}){f', others {busy:.0%}' * (busy > LOADED_ABOVE)}",
        _ratio(base and base.wall_seconds / row.wall_seconds),
        f"{statistics.median(run.usage.cpu_seconds for run in row.runs):.2f}",
        f"{row.requests:.0f}",
        _ratio(base and row.requests / base.requests, digits=3),
        f"{statistics.median(run.traffic.body_bytes for run in row.runs) / 1e6:.0f}",
        f"{row.peak_anonymous_bytes / 1e6:.0f}",
        _ratio(base and row.peak_anonymous_bytes / base.peak_anonymous_bytes),
        f"{statistics.median(run.usage.peak_resident_bytes for run in row.runs) / 1e6:.0f}",
        f"{median.stored_bytes / 1e6:.0f}",
        result,
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _machine(arguments: argparse.Namespace, ratio: float) -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.machine()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({cpu}), {memory_gib:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}; {versions}.\n"
        f"Source: {arguments.size}^3 uint8, {'given' if arguments.voxels else 'drawn'}, JPEG q85 ({ratio:.1f}x), "
        f"64^3 chunks in one shard, nginx on the same cores; {arguments.rounds} "
        f"interleaved rounds, medians. Load average when it began: {load}. A time is marked where other processes used "
        f"more than {LOADED_ABOVE:.0%} of the machine in its run.\n"
    )


def _synced(clients: list[str]) -> str:
    lines = [f"- {client}: {SYNCS[client]}" for client in clients]
    return "\n".join(["Are the voxels on the disk when the command ends?", "", *lines])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="edge of the published volume in voxels (%(default)s)")
    parser.add_argument("--crop", type=int, default=900, help="edge of the crop in voxels (%(default)s)")
    parser.add_argument("--origin", nargs="+", choices=("unaligned", "aligned"), default=["unaligned", "aligned"])
    parser.add_argument("--latency", nargs="+", type=float, default=[0, 20], metavar="MS", help="before each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=0, help="of a run that other processes disturbed (%(default)s)")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument(
        "--work", type=Path, help="keeps the published volume for the next run (default: a temp folder)"
    )
    parser.add_argument("--voxels", type=Path, help="publish these instead of drawn ones: TIFF, PNG folder, .npy, Zarr")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--quick", action="store_true", help="400^3 out of 512^3, 2 rounds, unless given")
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
