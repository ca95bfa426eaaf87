"""128^3 blocks of an OME-Zarr over HTTP and S3: em_assets against tensorstore and zarr-python.

    apt-get install nginx libnginx-mod-http-lua      # the Lua module waits; without it give --latency 0
    pip install -e '.[dev]'
    python benchmarks/blocks_remote.py --quick                                      # two rounds, a few minutes
    python benchmarks/blocks_remote.py --work ../benchmark --out blocks_remote.md

Every client is a process that stays, with one volume open and all indices of shards known ("first" is the block before
that, opening not included). All are asked for the same random blocks in turn: eight aligned to chunks, eight not, and a
batch of 32 in each round. The volume is 1024^3 voxels; em_assets and tensorstore keep a quarter of it in memory. CPU is
the client's own, which others on the machine disturb least; requests and bytes are counted in nginx's log. zarr-python
reads S3 from the same nginx. What "em_assets, local files" takes is decoding alone: it is subtracted where round trips
are counted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from blocks_remote_clients import CLIENTS
from bucket import Bucket
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
    orders,
    read_once,
    say,
    shard_corners,
    write_shard,
    yes,
)
from server import Nginx
from volume import LARGEST_DRAWN_EDGE, _mirrored

from em_assets.sample.texture import draw
from em_assets.standardize.shard import ShardFormat

HERE = Path(__file__).parent
BUCKET = "em-data"
LAYOUTS = ("sharded", "unsharded")
LOCAL = "em_assets, local files"
TENSORSTORES = ("tensorstore", "tensorstore, index pool")
PACKAGES = ("em_assets", "numpy", "zarr", "tensorstore", "s3fs", "obstore")
QUICK = {"rounds": 2, "blocks": 6}


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
class Row(Standing):
    """One client with one layout and latency."""

    kinds: dict[str, Kind] = field(default_factory=lambda: {name: Kind() for name in ("aligned", "unaligned", "batch")})
    first_seconds: float = 0.0


@dataclass(frozen=True)
class Published:
    """The volume as it is served, and what is known of it."""

    folder: Path
    voxels: np.ndarray
    sizes: dict[Triple, int]
    """Stored bytes of each chunk."""

    def needed_bytes(self, starts: Sequence[Triple]) -> int:
        touched = {
            cell
            for start in starts
            for cell in itertools.product(*(range(a // CHUNK, -(-(a + BLOCK) // CHUNK)) for a in start))
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
    command = [sys.executable, str(HERE / "blocks_remote_clients.py")]
    contestants = [Contestant(name, [*command, name, url, str(published.folder)]) for name in arguments.clients]
    read_once(published.folder)
    try:
        for contestant in contestants:
            _warm_up(contestant, rows[contestant.name], published)
        dice = random.Random(arguments.seed)
        for number in range(arguments.rounds):
            for kind, wanted in orders(dice, arguments.edge, arguments.blocks):
                for contestant in contestants:
                    row = rows[contestant.name]
                    if row.verdict == "right":
                        _turn(contestant, row, row.kinds[kind], wanted, (published, nginx))
            say(f"{title}, round {number + 1} of {arguments.rounds}")
    finally:
        for contestant in contestants:
            contestant.end()
    return list(rows.values())


def _warm_up(contestant: Contestant, row: Row, published: Published) -> None:
    """Opens the volume and looks into every shard."""
    starts = shard_corners(published.voxels.shape[0])
    try:
        row.first_seconds = contestant.read(starts[:1])["seconds"]
        contestant.read(starts, 8)
    except ClientFailed as error:
        row.fail(error)


def _turn(
    contestant: Contestant, row: Row, found: Kind, wanted: list[list[Triple]], served: tuple[Published, Nginx]
) -> None:
    published, nginx = served
    seen = nginx.log_size()
    try:
        turn = contestant.turn(wanted, published.voxels, servers=[nginx.pid])
    except ClientFailed as error:
        row.fail(error)
        return
    traffic = nginx.traffic_since(seen)
    found.seconds += [reply["seconds"] for reply in turn.replies]
    found.cpu_seconds += sum(reply["cpu_seconds"] for reply in turn.replies)
    found.blocks += sum(map(len, wanted))
    found.requests += traffic.requests
    found.received_bytes += traffic.body_bytes
    found.needed_bytes += sum(map(published.needed_bytes, wanted))
    row.foreign_ticks += turn.foreign_ticks
    row.all_ticks += turn.all_ticks


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
        yield f"one unaligned block less decoding, in round trips | <= 1.2 | {yes(trips <= 1.2)}: {trips:.2f} |"
    most = max(k.received_bytes / k.needed_bytes for k in own.kinds.values())
    yield f"bytes, x those of the chunks touched | <= 1.1 | {yes(most <= 1.1)}: {most:.3f} |"


def _reached(what: str, wanted: float, found: float) -> str:
    return f"{what} | >= {wanted:g} | {yes(found >= wanted)}: {found:.2f} |"


def _p50(kind: Kind) -> float:
    return statistics.median(kind.seconds)


def _voxels(root: Path, edge: int) -> np.ndarray:
    """Drawn, mirrored to size, and kept beside what is served."""
    file = root / "voxels.npy"
    if not file.is_file():
        root.mkdir(parents=True, exist_ok=True)
        volume = _mirrored(draw((min(edge, LARGEST_DRAWN_EDGE),) * 3, seed=1), edge)
        partial = file.with_name("partial.npy")
        np.save(partial, volume)
        partial.rename(file)
    return np.load(file, mmap_mode="r")


def _published(root: Path, layout: str, voxels: np.ndarray) -> Published:
    """An OME-Zarr 0.5 of one level, as the product writes it; unsharded, the same chunks each in a file."""
    folder = root / BUCKET / layout
    marker = root / f"{layout}.json"
    if not marker.is_file():
        is_sharded, edge = layout == "sharded", voxels.shape[0]
        array = create_volume(folder, edge, chunk=CHUNK, shard=SHARD if is_sharded else None, is_compressed=True)
        sizes: dict[str, int] = {}
        for corner in shard_corners(edge):
            if is_sharded:
                sizes |= _write_shard(folder, corner, voxels)
            else:
                box = tuple(slice(a, a + SHARD) for a in corner)
                array[box] = voxels[box]
        if not is_sharded:
            files = [file for file in (folder / "0" / "c").rglob("*") if file.is_file()]
            sizes = {"/".join(file.parts[-3:]): file.stat().st_size for file in files}
        marker.write_text(json.dumps(sizes))
    known = json.loads(marker.read_text())
    return Published(folder, voxels, {_triple(name.split("/")): size for name, size in known.items()})


def _write_shard(folder: Path, corner: Triple, voxels: np.ndarray) -> dict[str, int]:
    """The stored bytes of each of its chunks."""
    form = ShardFormat((SHARD,) * 3, (CHUNK,) * 3, "uint8")
    data = write_shard(folder, corner, voxels, form)
    per_shard = SHARD // CHUNK
    index = np.frombuffer(data[-form.index_bytes : -4], "<u8").reshape((per_shard,) * 3 + (2,))
    first = [a // CHUNK for a in corner]
    return {
        "/".join(str(a + b) for a, b in zip(first, cell, strict=True)): int(index[cell][1])
        for cell in np.ndindex(index.shape[:3])
    }


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
