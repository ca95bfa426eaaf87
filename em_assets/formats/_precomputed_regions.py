"""Boxes of a precomputed volume while they are read: which chunks they need, and how these become voxels.

`precomputed.py` makes the layout, `_engine.py` calls the methods of `RegionRun` on its threads.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import EmAssetsError
from em_assets.fetch.http import Interrupt, NotThere, OnBytes, safe_url
from em_assets.formats._rows import copy_rows
from em_assets.formats._sharded import MISSING, ChunkPlaces
from em_assets.formats.reader import RegionVoxels, SampledVoxel
from em_assets.volume import Box, Zyx, subtract, zyx

if TYPE_CHECKING:
    from em_assets.formats.precomputed import PrecomputedReader

Cell = TypeVar("Cell", bound=tuple[int, ...])
"""A chunk's place in the grid."""
SAMPLED_CHUNKS = 2
SAMPLED_VOXELS = 64
"""In each of them."""
DECODED_BYTES = 96 * 2**20
"""Decoded chunks kept because a neighbouring region needs them, too."""


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """One request for voxels."""

    url: str
    etag: str | None
    start: int
    stop: int
    """Of an unsharded chunk a guess: it is asked for whole."""
    rows: tuple[int, ...]
    """The chunks within."""

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """Which chunks and requests some boxes need."""

    boxes: tuple[Box, ...]
    cells: NDArray[np.int64]
    """(z, y, x) in the chunk grid, row by row; a chunk has one row, whatever number of boxes it lies in."""
    rows_of: list[NDArray[np.int64]]
    """The chunks of each box."""
    places: ChunkPlaces
    unreadable: list[int]
    """Boxes that cannot be read, because an index is damaged."""
    order: list[int]
    """The other boxes along the Morton curve, the order of bytes in shards. Its places are the engine's regions."""
    requests: list[ChunkRequest]

    @cached_property
    def parts(self) -> list[dict[int, list[int]]]:
        """For each region, the chunks it takes from each request."""
        request_of = np.full(len(self.cells), -1, np.int64)
        for number, request in enumerate(self.requests):
            request_of[list(request.rows)] = number
        regions: list[dict[int, list[int]]] = []
        for box in self.order:
            parts: dict[int, list[int]] = {}
            rows = self.rows_of[box]
            for row, number in zip(rows.tolist(), request_of[rows].tolist(), strict=True):
                if number >= 0:
                    parts.setdefault(number, []).append(row)
            regions.append(parts)
        return regions

    def error_of(self, box: int) -> EmAssetsError:
        return next(self.places.errors[row] for row in self.rows_of[box].tolist() if row in self.places.errors)

    def uses(self) -> list[int]:
        """How many regions need each chunk."""
        counts = np.zeros(len(self.cells), np.int64)
        for box in self.order:
            counts[self.rows_of[box]] += 1
        return counts.tolist()


@dataclass
class Region:
    """A box on its way."""

    box: Box
    parts: dict[int, list[int]]
    voxels: NDArray[Any]
    """Undefined until every chunk was placed or noted as missing."""
    sampled: SampledChunks[Zyx]
    missing: list[Box] = field(default_factory=list)
    received_bytes: list[int] = field(default_factory=list)


class RegionRun:
    """One call of `map_regions`."""

    def __init__(
        self,
        reader: PrecomputedReader,
        layout: Layout,
        work: Callable[[RegionVoxels], Any],
        on_bytes: OnBytes | None,
    ) -> None:
        self._reader = reader
        self._layout = layout
        self._work = work
        self._on_bytes = on_bytes
        self._local = threading.local()
        self._shared = SharedChunks(layout.uses())

    def fetch(self, number: int, interrupt: Interrupt) -> bytes | bytearray | None:
        """The body; None if the publisher does not have it."""
        request = self._layout.requests[number]
        client = self._reader.client
        if self._reader.scale.sharding is not None:
            reply = client.get_range(
                request.url,
                request.start,
                request.stop,
                expect_etag=request.etag,
                on_bytes=self._on_bytes,
                interrupt=interrupt,
            )
            return reply.body
        limit = self._reader.codec.max_bytes
        try:
            return client.get(
                request.url, max_bytes=limit, accept_gzip=True, on_bytes=self._on_bytes, interrupt=interrupt
            ).body
        except NotThere as refusal:
            self._reader.accept_absence(refusal)
            return None

    def open_region(self, rank: int) -> Region:
        layout, number = self._layout, self._layout.order[rank]
        box = layout.boxes[number]
        rows = layout.rows_of[number]
        voxels = np.empty(box.shape, _little_endian(self._reader.info.dtype))
        region = Region(box, layout.parts[rank], voxels, SampledChunks(box))
        for row in rows[layout.places.object_of[rows] == MISSING].tolist():
            self._note_missing(region, row)
        return region

    def use(self, region: Region, number: int, body: bytes | bytearray | None) -> None:
        """Decodes the region's chunks of one request into it."""
        request, places = self._layout.requests[number], self._layout.places
        for row in region.parts[number]:
            if body is None:
                self._note_missing(region, row)
                continue
            data = memoryview(body)
            if self._reader.scale.sharding is not None:
                data = data[int(places.start[row]) - request.start : int(places.stop[row]) - request.start]
            region.received_bytes.append(len(data))
            self._place(region, row, data)

    def finish(self, region: Region) -> Any:
        samples = [sample for cell, data in region.sampled for sample in self._samples(region.box, cell, data)]
        return self._work(
            RegionVoxels(
                region.box,
                region.voxels,
                tuple(sorted(region.missing)),
                tuple(sorted(samples, key=lambda sample: sample.position)),
                safe_url(self._reader.url),
                sum(region.received_bytes),
            )
        )

    def _place(self, region: Region, row: int, data: memoryview) -> None:
        """Plain integers, not boxes: this runs for every chunk, and what is Python here runs one thread at a time."""
        reader, info = self._reader, self._reader.info
        cell = zyx(self._layout.cells[row].tolist())
        shape, source, target = [], [], []
        axes = (cell, info.chunk, info.shape, info.origin, region.box.start, region.box.stop)
        for index, edge, size, origin, start, stop in zip(*axes, strict=True):
            low, high = index * edge, min(index * edge + edge, size)
            first, last = max(low, start - origin), min(high, stop - origin)
            shape.append(high - low)
            source.append(slice(first - low, last - low))
            target.append(slice(first + origin - start, last + origin - start))
        chunk = self._shared.take(row)
        if chunk is None:
            where = partial(reader.where, cell)
            plain, met = reader.codec.unpacked(data, zyx(shape), where)
            reader.data_encoding_met.add(met)
            chunk = reader.codec.decode(plain, zyx(shape), where, self._scratch())
            self._shared.keep(row, chunk)
        copy_rows(region.voxels[tuple(target)], chunk[tuple(source)])
        region.sampled.offer(cell, data)

    def _scratch(self) -> NDArray[Any]:
        """This thread's room for one chunk."""
        if not hasattr(self._local, "scratch"):
            self._local.scratch = self._reader.codec.scratch()
        return self._local.scratch  # type: ignore[no-any-return]

    def _samples(self, box: Box, cell: Zyx, data: bytes) -> list[SampledVoxel]:
        """Voxels of a chunk by the second decoder. The arithmetic stands here once more on purpose."""
        info = self._reader.info
        low = [o + c * n for o, c, n in zip(info.origin, cell, info.chunk, strict=True)]
        high = [min(a + n, o + s) for a, n, o, s in zip(low, info.chunk, info.origin, info.shape, strict=True)]
        throws = dice(box, f"voxels {cell}")
        positions = [
            zyx(
                [
                    throws.randrange(max(a, c), min(b, d))
                    for a, b, c, d in zip(low, high, box.start, box.stop, strict=True)
                ]
            )
            for _ in range(SAMPLED_VOXELS)
        ]
        inside = [zyx([p - a for p, a in zip(position, low, strict=True)]) for position in positions]
        shape = zyx([b - a for a, b in zip(low, high, strict=True)])
        plain, _ = self._reader.codec.unpacked(memoryview(data), shape, partial(self._reader.where, cell))
        values = self._reader.codec.sample(plain, shape, inside, partial(self._reader.where, cell))
        return [SampledVoxel(position, value) for position, value in zip(positions, values, strict=True)]

    def _note_missing(self, region: Region, row: int) -> None:
        common = self._reader.chunk_box(zyx(self._layout.cells[row].tolist())).intersection(region.box)
        assert common is not None
        region.voxels[common.shifted(subtract((0, 0, 0), region.box.start)).slices] = 0
        region.missing.append(common)


class SampledChunks(Generic[Cell]):
    """The chunks of one region to sample: of those that arrive, the two with the lowest lots.

    Which chunks are absent shows only when they are asked for: were two drawn before, a sparse region could be left
    without any sample. A lot depends on box and chunk alone, so the choice is the same in whatever order they arrive.
    """

    def __init__(self, box: Box) -> None:
        self._box = f"{box}"
        self._kept: list[tuple[bytes, Cell, bytes]] = []
        """(lot, chunk, its data), the lowest lot first."""
        self._lock = threading.Lock()

    def offer(self, cell: Cell, data: memoryview) -> None:
        """A chunk as it arrived. Kept is a copy, because a body may hold many."""
        lot = hashlib.blake2b(f"{self._box} {cell}".encode(), digest_size=8).digest()
        with self._lock:
            if len(self._kept) < SAMPLED_CHUNKS or lot < self._kept[-1][0]:
                self._kept = sorted([*self._kept, (lot, cell, bytes(data))])[:SAMPLED_CHUNKS]

    def __iter__(self) -> Iterator[tuple[Cell, bytes]]:
        return ((cell, data) for _, cell, data in self._kept)


class SharedChunks:
    """Decoded chunks that more than one region needs: kept until the last took them, as far as they fit."""

    def __init__(self, uses: list[int]) -> None:
        self._uses = uses
        self._chunks: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def take(self, row: int) -> NDArray[Any] | None:
        """One region's use of a chunk; None if it has to be decoded."""
        with self._lock:
            self._uses[row] -= 1
            chunk = self._chunks.get(row)
            if chunk is not None and self._uses[row] <= 0:
                self._drop(row)
            return chunk

    def keep(self, row: int, chunk: NDArray[Any]) -> None:
        with self._lock:
            if self._uses[row] <= 0 or row in self._chunks:
                return
            self._chunks[row] = chunk.copy()
            self._bytes += chunk.nbytes
            while self._bytes > DECODED_BYTES:
                self._drop(next(iter(self._chunks)))

    def _drop(self, row: int) -> None:
        self._bytes -= self._chunks.pop(row).nbytes


def _little_endian(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


def dice(box: Box, what: str) -> random.Random:
    """The same throws for the same box."""
    return random.Random(f"{box} {what}")  # noqa: S311  # repeatable, not secret
