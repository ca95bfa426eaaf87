"""128^3 blocks of a volume on this machine: em_assets against tensorstore, zarr-python, dask, h5py and others.

    python benchmarks/blocks.py --quick --peers ../peers/bin/python                       # 256^3, a few minutes
    python benchmarks/blocks.py --large --work ../benchmark --peers ../peers/bin/python --dataloader --out blocks.md

Every client is a process that stays (`blocks_clients.py`), with one volume open. All are asked for the same random
blocks in turn: some aligned to chunks of 64^3, some not, and batches of 32; other ones in each round. What a client
gives is compared by its hash. `memcpy`, out of an array in RAM, is the floor. README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import contest
import numpy as np
from blocks_clients import CLIENTS, LAYOUTS, NEEDS, NONE, STAGED, ZSTD
from contest import (
    BATCH,
    BLOCK,
    CHUNK,
    LOADED_ABOVE,
    PRODUCT,
    SHARD,
    ClientFailed,
    Contestant,
    Standing,
    Triple,
    create_volume,
    machine,
    read_once,
    say,
    shard_corners,
    write_shard,
    yes,
)
from volume import LARGEST_DRAWN_EDGE, _mirrored

from em_assets.sample.texture import draw
from em_assets.sample.volumes import fingerprint, read_volume
from em_assets.standardize.shard import ShardFormat

HERE = Path(__file__).parent
APART = 3 * CHUNK
"""Unaligned blocks whose starts are a multiple of this apart have no chunk in common."""
KINDS = ("aligned", "unaligned", "batch", "batch apart")
MEMCPY, TENSORSTORE, ZARR = "memcpy", "tensorstore", "zarr-python"
PACKAGES = ("em_assets", "numpy", "zstandard", "tensorstore", "zarr", "h5py")
QUICK = {"edge": 256, "rounds": 2, "singles": 8}
LARGE_EDGE = 1024
LOADER_WORKERS, LOADER_BATCHES, LOADER_SKIPPED = 2, 24, 6
"""The first batches of a DataLoader were read ahead while its workers began, so they are left out."""


@dataclass
class Row(Standing):
    """One client with one layout."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    """Of each call, by kind."""
    cpu_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    """Of all calls."""


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the clients end too
    with tempfile.TemporaryDirectory(prefix="em_assets_benchmark_") as scratch:
        report, all_right = _measure(arguments, arguments.work or Path(scratch))
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(report + "\n")
    return 0 if all_right else 1


def _measure(arguments: argparse.Namespace, root: Path) -> tuple[str, bool]:
    say("preparing the volume")
    folder = _volume(root, arguments.edge, arguments.voxels)
    pythons, absent = _pythons(arguments)
    origin = "drawn" if arguments.voxels is None else "given"
    lines = [machine(PACKAGES, arguments.rounds), f"{arguments.edge}^3 uint8, {origin}; chunks and shards in RAM."]
    reached, all_right = [], True
    for layout in arguments.layouts:
        read_once(folder / layout)
        rows = _contest(folder, layout, pythons, arguments)
        title = f"{layout} ({LAYOUTS[layout]}^3 chunks, {_share(folder / layout, arguments.edge):.2f} of the voxels)"
        lines += ["", f"### {title}", "", *_table(rows, absent)]
        reached += [f"| {layout}: {text}" for text in _targets(layout, rows)]
        all_right = all_right and not any(row.verdict.startswith("WRONG") for row in rows)
        all_right = all_right and all(row.verdict == "right" for row in rows if row.client.startswith(PRODUCT))
    if arguments.dataloader:
        reached += [_dataloader(folder / layout, arguments) for layout in arguments.layouts if layout != NONE]
    lines += ["", "### Against the targets", "", "| target | wanted | reached |", "|---|---|---|", *reached, ""]
    return "\n".join(lines), all_right


# One layout


def _contest(folder: Path, layout: str, pythons: dict[str, str], arguments: argparse.Namespace) -> list[Row]:
    rows = {name: Row(name) for name in pythons}
    voxels = np.load(folder / "voxels.npy", mmap_mode="r")
    script = str(HERE / "blocks_clients.py")
    contestants = [Contestant(name, [python, script, name, str(folder), layout]) for name, python in pythons.items()]
    dice = random.Random(arguments.seed)
    try:
        for contestant in contestants:  # it opens, and looks into every shard, before it is measured
            _turn(contestant, rows[contestant.name], None, [shard_corners(arguments.edge)], voxels)
        for number in range(arguments.rounds):
            for kind, orders in _orders(dice, arguments):
                dice.shuffle(contestants)
                for contestant in contestants:
                    row = rows[contestant.name]
                    for _ in range(arguments.repeats + 1):
                        if row.verdict != "right" or _turn(contestant, row, kind, orders, voxels) <= LOADED_ABOVE:
                            break
            say(f"{layout}, round {number + 1} of {arguments.rounds}")
    finally:
        for contestant in contestants:
            contestant.end()
    return list(rows.values())


def _orders(dice: random.Random, arguments: argparse.Namespace) -> Iterator[tuple[str, list[list[Triple]]]]:
    """Those of every contest, and a batch whose blocks have no chunk in common where the volume is large enough."""
    yield from contest.orders(dice, arguments.edge, arguments.singles)
    corners = list(itertools.product(range(0, arguments.edge - BLOCK - CHUNK + 1, APART), repeat=3))
    if len(corners) >= BATCH:
        yield "batch apart", [[_within(dice, corner) for corner in dice.sample(corners, BATCH)]]


def _within(dice: random.Random, corner: Sequence[int]) -> Triple:
    """An unaligned start whose block stays within `APART` of the corner."""
    z, y, x = (a + dice.randrange(1, CHUNK) for a in corner)
    return z, y, x


def _turn(
    contestant: Contestant, row: Row, kind: str | None, orders: Sequence[Sequence[Triple]], voxels: np.ndarray
) -> float:
    """One client reads; gives the share of the machine that others used. Without a kind nothing is noted."""
    try:
        turn = contestant.turn(orders, voxels)
    except ClientFailed as error:
        row.fail(error)
        return 0.0
    if kind is not None:
        row.seconds[kind] += [reply["seconds"] for reply in turn.replies]
        row.cpu_seconds[kind] += sum(reply["cpu_seconds"] for reply in turn.replies)
        row.foreign_ticks += turn.foreign_ticks
        row.all_ticks += turn.all_ticks
    return turn.foreign_ticks / turn.all_ticks


# Tables


def _table(rows: Sequence[Row], absent: dict[str, str]) -> Iterator[str]:
    yield (
        "| client | aligned p50 ms (p99) | unaligned p50 ms (p99) | unaligned, x memcpy | batch of 32, blocks/s (best) "
        "| chunks apart, blocks/s (best) | CPU ms / block: unaligned, batch | others | result |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    floor = next((_p50(row, "unaligned") for row in rows if row.client == MEMCPY and row.seconds["unaligned"]), None)
    for row in rows:
        if not row.seconds["batch"]:
            yield f"| {row.client} |" + " |" * 7 + f" {row.verdict} |"
            continue
        load = f"{row.foreign_load:.0%}" if row.foreign_load > LOADED_ABOVE else "-"
        times = "-" if floor is None else f"{_p50(row, 'unaligned') / floor:.1f}"
        cpu = f"{_cpu_ms(row, 'unaligned'):.1f}, {_cpu_ms(row, 'batch'):.1f}"
        yield (
            f"| {row.client} | {_single(row, 'aligned')} | {_single(row, 'unaligned')} | {times} "
            f"| {_batch(row, 'batch')} | {_batch(row, 'batch apart')} | {cpu} | {load} | {row.verdict} |"
        )
    for client, reason in absent.items():
        yield f"| {client} | absent: {reason} |" + " |" * 7


def _single(row: Row, kind: str) -> str:
    ordered = sorted(row.seconds[kind])
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"{_p50(row, kind) * 1e3:.2f} ({p99 * 1e3:.2f})"


def _batch(row: Row, kind: str) -> str:
    if not row.seconds[kind]:
        return "-"
    return f"{BATCH / _p50(row, kind):.0f} ({BATCH / min(row.seconds[kind]):.0f})"


def _p50(row: Row, kind: str) -> float:
    return statistics.median(row.seconds[kind])


def _cpu_ms(row: Row, kind: str) -> float:
    blocks = len(row.seconds[kind]) * (BATCH if kind.startswith("batch") else 1)
    return row.cpu_seconds[kind] / blocks * 1e3


def _targets(layout: str, rows: Sequence[Row]) -> Iterator[str]:
    ran = {row.client: row for row in rows if row.seconds["batch"]}
    own = ran.get(PRODUCT)
    if own is None:
        return
    if layout == ZSTD:
        yield from _faster(ran, TENSORSTORE, "unaligned", 1.0)
        yield from _faster(ran, ZARR, "unaligned", 3.0)
        for kind in ("batch", "batch apart"):
            yield from _faster(ran, TENSORSTORE, kind, 1.2)
        return
    yield from _faster(ran, TENSORSTORE, "unaligned", 2.0)
    if MEMCPY in ran:
        ratio = _p50(own, "unaligned") / _p50(ran[MEMCPY], "unaligned")
        yield f"one unaligned block, time over memcpy's | <= 1.5 | {yes(ratio <= 1.5)}: {ratio:.2f} |"


def _faster(ran: dict[str, Row], peer: str, kind: str, wanted: float) -> Iterator[str]:
    """The product's speed over the peer's, where both were measured."""
    if peer in ran and ran[peer].seconds[kind] and ran[PRODUCT].seconds[kind]:
        ratio = _p50(ran[peer], kind) / _p50(ran[PRODUCT], kind)
        yield f"{kind}, speed over {peer}'s | >= {wanted:g} | {yes(ratio >= wanted)}: {ratio:.2f} |"


# PyTorch


def _dataloader(place: Path, arguments: argparse.Namespace) -> str:
    """A line of the table of targets: blocks/s of a DataLoader over those of `read_many`, of random blocks."""
    what = f"{place.name}: DataLoader, {LOADER_WORKERS} workers, blocks/s over read_many's | >= 0.9"
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return f"| {what} | not measured: torch is not installed |"
    from em_assets.blocks import BlockDataset, BlockStream
    from em_assets.blocks import open as open_volume

    volume, plain, loaded = open_volume(place), [], []
    batches = LOADER_SKIPPED + LOADER_BATCHES
    for number in range(arguments.rounds):
        dataset = BlockDataset([(volume, 1.0)], shape=BLOCK, seed=number, length=batches * arguments.loader_batch)
        stream = BlockStream(dataset, batch_size=arguments.loader_batch)
        starts = _random_starts(random.Random(number), arguments.edge, batches * arguments.loader_batch)
        for found, source in (
            (plain, volume.read_many(starts, shape=BLOCK, batch_size=arguments.loader_batch)),
            (loaded, DataLoader(stream, batch_size=None, num_workers=LOADER_WORKERS)),
        ):
            found.append(_blocks_per_second(iter(source), arguments.loader_batch))
        say(f"{place.name}: DataLoader, round {number + 1}: {loaded[-1]:.0f} blocks/s, read_many {plain[-1]:.0f}")
    ratio = statistics.median(loaded) / statistics.median(plain)
    rates = f"{statistics.median(loaded):.0f} of {statistics.median(plain):.0f} blocks/s"
    return f"| {what} | {yes(ratio >= 0.9)}: {ratio:.2f} ({rates}, batches of {arguments.loader_batch}) |"


def _random_starts(dice: random.Random, edge: int, count: int) -> list[Triple]:
    most = edge - BLOCK
    return [(dice.randint(0, most), dice.randint(0, most), dice.randint(0, most)) for _ in range(count)]


def _blocks_per_second(batches: Iterator[Any], batch: int) -> float:
    """Of all batches but those that were read ahead before the clock began; the last ones are its equal."""
    for _ in range(LOADER_SKIPPED):
        next(batches)
    begun = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * batch / (time.perf_counter() - begun)


# The volume


def _volume(root: Path, edge: int, given: Path | None) -> Path:
    """The folder with `voxels.npy` and an OME-Zarr for each layout; made if this work folder has none."""
    parameters = {"edge": edge, "voxels": "drawn" if given is None else f"given {fingerprint(given)}"}
    folder = root / f"blocks_{edge}_{'drawn' if given is None else 'given'}"
    marker = folder / "complete.json"
    if marker.is_file() and json.loads(marker.read_text()) == parameters:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    first = (min(edge, LARGEST_DRAWN_EDGE),) * 3
    voxels = _mirrored(draw(first, seed=1) if given is None else read_volume(given, first), edge)
    np.save(folder / "voxels.npy", voxels)
    for layout in LAYOUTS:
        _write(folder / layout, voxels, layout)
    marker.write_text(json.dumps(parameters))
    return folder


def _write(folder: Path, voxels: np.ndarray, layout: str) -> None:
    """One level of OME-Zarr 0.5, in the bytes that the product writes."""
    chunk, edge = LAYOUTS[layout], voxels.shape[0]
    create_volume(folder, edge, chunk=chunk, shard=SHARD, is_compressed=layout == ZSTD)
    form = ShardFormat((SHARD,) * 3, (chunk,) * 3, "uint8", "zstd" if layout == ZSTD else "none")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda corner: write_shard(folder, corner, voxels, form), shard_corners(edge)))


def _share(folder: Path, edge: int) -> float:
    """Bytes on disk over those of the voxels."""
    return sum(file.stat().st_size for file in (folder / "0" / "c").rglob("*") if file.is_file()) / edge**3


# What is asked


def _pythons(arguments: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """(the Python of each client: this one if it has what the client needs; why the others are not there)."""
    pythons, absent = {}, {}
    for client in arguments.clients:
        found = [python for python in (sys.executable, arguments.peers) if python and _has(python, NEEDS[client])]
        if found:
            pythons[client] = found[0]
        else:
            absent[client] = f"{NEEDS[client][0]} is not installed; --peers names a Python that has it"
    return pythons, absent


def _has(python: str, modules: tuple[str, ...]) -> bool:
    code = f"import importlib.util as u; raise SystemExit(not all(u.find_spec(name) for name in {modules!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=512, help=f"of the volume, a multiple of {SHARD} (%(default)s)")
    parser.add_argument("--large", action="store_true", help=f"{LARGE_EDGE}^3: batches without common chunks, too")
    parser.add_argument("--voxels", type=Path, help="a TIFF, folder of PNGs, .npy or Zarr to mirror (default: drawn)")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=[ZSTD, NONE, STAGED])
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--peers", help="the Python of an environment with zarrs, dask, h5py and hdf5plugin")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--singles", type=int, default=24, help="single blocks of each kind in a round (%(default)s)")
    parser.add_argument("--repeats", type=int, default=0, help="of a turn that other processes disturbed (%(default)s)")
    parser.add_argument("--dataloader", action="store_true", help="also a DataLoader with two workers (needs torch)")
    parser.add_argument("--loader-batch", type=int, default=8, help="blocks in its batches (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides which blocks are read")
    parser.add_argument("--work", type=Path, help="keeps the volume for the next run (default: a temp folder)")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--quick", action="store_true", help="256^3, two rounds of 8 blocks, unless given")
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    if parser.parse_args().large:
        parser.set_defaults(edge=LARGE_EDGE)
    arguments = parser.parse_args()
    if arguments.edge % SHARD:
        parser.error(f"--edge is {arguments.edge}, expected a multiple of {SHARD}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
