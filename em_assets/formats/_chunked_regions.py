"""Boxes of a chunked array while they are read: which chunks they need, and how these become voxels.

`_chunked.py` makes the layout, `_engine.py` calls the methods of `RegionRun` on its threads. Arrays and cells here have
four axes, (c, z, y, x), whatever the array's own are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed
from em_assets.fetch.hosts import Interrupt
from em_assets.fetch.replies import NotThere, OnBytes, safe_url
from em_assets.formats._precomputed_regions import SAMPLED_VOXELS, Layout, SampledChunks, SharedChunks, dice
from em_assets.formats._rows import copy_rows
from em_assets.formats._sharded import MISSING
from em_assets.formats.reader import RegionVoxels, SampledVoxel
from em_assets.volume import Box, Zyx, subtract, zyx

if TYPE_CHECKING:
    from em_assets.formats._chunked import ChunkedReader, Czyx


@dataclass
class Region:
    """A box on its way."""

    box: Box
    parts: dict[int, list[int]]
    voxels: NDArray[Any]
    """(c, z, y, x), c counted from the first channel that is read. Undefined until every chunk was placed or noted as
    missing."""
    sampled: SampledChunks[Czyx]
    missing: list[Box] = field(default_factory=list)
    received_bytes: list[int] = field(default_factory=list)


class RegionRun:
    """One call of `map_regions`, or of `read`, which puts the array's own fill value where chunks are missing."""

    def __init__(
        self,
        reader: ChunkedReader,
        layout: Layout,
        work: Callable[[RegionVoxels], Any],
        on_bytes: OnBytes | None,
        fill_value: float,
    ) -> None:
        self._reader = reader
        self._layout = layout
        self._work = work
        self._on_bytes = on_bytes
        self._fill_value = fill_value
        self._local = threading.local()
        self._shared = SharedChunks(layout.uses())

    def fetch(self, number: int, interrupt: Interrupt) -> bytes | bytearray | None:
        """The body; None if the publisher does not have it."""
        request = self._layout.requests[number]
        client, array = self._reader.client, self._reader.array
        if array.sharding is not None:
            return client.get_range(
                request.url,
                request.start,
                request.stop,
                expect_etag=request.etag,
                on_bytes=self._on_bytes,
                interrupt=interrupt,
            ).body
        try:
            return client.get(
                request.url, max_bytes=array.codec.max_bytes, on_bytes=self._on_bytes, interrupt=interrupt
            ).body
        except NotThere as refusal:
            self._reader.accept_absence(refusal)
            return None

    def open_region(self, rank: int) -> Region:
        layout, number = self._layout, self._layout.order[rank]
        box, rows, reader = layout.boxes[number], layout.rows_of[number], self._reader
        voxels = np.empty((len(reader.channels), *box.shape), np.dtype(reader.info.dtype).newbyteorder("<"))
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
            if self._reader.array.sharding is not None:
                data = data[int(places.start[row]) - request.start : int(places.stop[row]) - request.start]
            region.received_bytes.append(len(data))
            self._place(region, row, data)

    def finish(self, region: Region) -> Any:
        samples = [sample for cell, data in region.sampled for sample in self._samples(region.box, cell, data)]
        return self._work(
            RegionVoxels(
                region.box,
                region.voxels[0] if self._reader.info.channels is None else region.voxels,
                tuple(sorted(set(region.missing))),
                tuple(sorted(samples, key=lambda sample: sample.position)),
                safe_url(self._reader.url),
                sum(region.received_bytes),
                self._reader.array.fill_value,
            )
        )

    def _place(self, region: Region, row: int, data: memoryview) -> None:
        """Plain integers, not boxes: this runs for every chunk, and what is Python here runs one thread at a time."""
        reader, cell = self._reader, cast("Czyx", tuple(self._layout.cells[row].tolist()))
        channels = reader.channels
        starts, stops = (channels.start, *region.box.start), (channels.stop, *region.box.stop)
        extent, source, target = [], [], []
        for index, edge, size, start, stop in zip(cell, reader.chunk, reader.shape, starts, stops, strict=True):
            low, high = index * edge, min(index * edge + edge, size)
            first, last = max(low, start), min(high, stop)
            extent.append(high - low)
            source.append(slice(first - low, last - low))
            target.append(slice(first - start, last - start))
        where = partial(reader.where, cell)
        chunk = self._shared.take(row)
        if chunk is None:
            chunk = reader.turned(reader.array.codec.decode(data, where, self._room()))
            if any(has < needs for has, needs in zip(chunk.shape, extent, strict=True)):
                raise Malformed(
                    f"{where()} has {chunk.shape} voxels (c, z, y, x), expected {tuple(extent)}; report it to the "
                    "publisher."
                )
            self._shared.keep(row, chunk)
        copy_rows(region.voxels[tuple(target)], chunk[tuple(source)])
        if reader.info.channels is None:  # a sampled voxel has no channel
            region.sampled.offer(cell, data)

    def _room(self) -> NDArray[np.uint8]:
        """Where this thread unpacks a chunk. With a new array per chunk a third of the time goes into fresh pages."""
        if not hasattr(self._local, "room"):
            self._local.room = np.empty(self._reader.array.codec.room_bytes, np.uint8)
        return self._local.room  # type: ignore[no-any-return]

    def _samples(self, box: Box, cell: Czyx, data: bytes) -> list[SampledVoxel]:
        """Voxels of a chunk by the second decoder. The arithmetic stands here once more on purpose."""
        reader = self._reader
        low = [c * n for c, n in zip(cell[1:], reader.chunk[1:], strict=True)]
        high = [min(a + n, s) for a, n, s in zip(low, reader.chunk[1:], reader.shape[1:], strict=True)]
        throws = dice(box, f"voxels {cell}")
        positions: list[Zyx] = [
            zyx(
                [
                    throws.randrange(max(a, c), min(b, d))
                    for a, b, c, d in zip(low, high, box.start, box.stop, strict=True)
                ]
            )
            for _ in range(SAMPLED_VOXELS)
        ]
        channel = reader.channels.start - cell[0] * reader.chunk[0]
        inside = [reader.within_chunk((channel, *subtract(position, zyx(low)))) for position in positions]
        values = reader.array.codec.sample(memoryview(data), inside, partial(reader.where, cell))
        return [SampledVoxel(position, value) for position, value in zip(positions, values, strict=True)]

    def _note_missing(self, region: Region, row: int) -> None:
        channel_cell, *cell = self._layout.cells[row].tolist()
        reader, edge = self._reader, self._reader.chunk[0]
        common = reader.chunk_box(zyx(cell)).intersection(region.box)
        assert common is not None
        local = common.shifted(subtract((0, 0, 0), region.box.start))
        first = max(channel_cell * edge - reader.channels.start, 0)
        stop = (channel_cell + 1) * edge - reader.channels.start
        region.voxels[first:stop][:, *local.slices] = self._fill_value
        region.missing.append(common)
