"""A volume of chunks, one object each or many in a shard, read box by box: what Zarr and N5 have in common.

`zarr.py` and `n5.py` find the metadata; here they become a `VolumeReader`. How boxes are put together is
`_chunked_regions.py`, who does what when `_engine.py`, where chunks lie in shards `_zarr_shards.py`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch.client import Client
from em_assets.fetch.ranges import plan_requests
from em_assets.fetch.replies import NotThere, safe_url
from em_assets.formats._boxes import checked_box, require_plannable
from em_assets.formats._chunk_codecs import Index
from em_assets.formats._chunked_regions import RegionRun
from em_assets.formats._engine import Jobs, run_regions
from em_assets.formats._json import MAX_JSON_BYTES, json_leaves, parse_json
from em_assets.formats._ome_multiscales import channel_labels
from em_assets.formats._precomputed_regions import ChunkRequest, Layout
from em_assets.formats._pyramid import Convention, Pyramid
from em_assets.formats._sharded import MISSING, UNREADABLE, ChunkPlaces, Integers, morton_ids
from em_assets.formats._stored_array import StoredArray
from em_assets.formats._zarr_shards import ShardIndices, grouped
from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, Scalar
from em_assets.settings import Settings
from em_assets.volume import Box, VolumeInfo, VoxelSize, Zyx, ceil_divide, zyx

T = TypeVar("T")
Czyx = tuple[int, int, int, int]
CZYX = "czyx"


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a pyramid as it is published; (z, y, x)."""

    path: str
    """Below the pyramid's group; "" for an array that is no pyramid's."""
    shape: Zyx | None
    """None for one that is listed but not there."""
    scale_nm: VoxelSize | None
    translation_nm: VoxelSize | None
    """As stated; what it places says the reader's `convention`."""


class Absence:
    """Whether a refused object is absent. Buckets that hide what is absent answer 403; so does a server that has had
    enough of us, and then nothing must be taken for missing: a document that was readable is asked for again.
    """

    def __init__(self, client: Client, document_url: str) -> None:
        self._client = client
        self._document_url = document_url
        self._lock = threading.Lock()
        self._confirmed_at = -math.inf

    def accept(self, refusal: NotThere) -> None:
        """Lets a 404 pass, and a 403 if the document is still given after it. Raises Unavailable otherwise."""
        if refusal.status != 403:
            return
        refused_at = time.monotonic()
        with self._lock:
            if self._confirmed_at > refused_at:  # asked by another thread while this one waited
                return
            asked_at = time.monotonic()
            try:
                self._client.get(self._document_url, max_bytes=MAX_JSON_BYTES, accept_gzip=True)
            except NotThere:
                raise Unavailable(
                    f"{refusal} It is not taken for missing, because {safe_url(self._document_url)}, which was "
                    "readable, is refused now, too; try again later."
                ) from None
            self._confirmed_at = asked_at


@dataclass(frozen=True)
class ChunkedVolume:
    """A pyramid of arrays, or one array, with all that was read to know it."""

    url: str
    client: Client
    settings: Settings
    documents: Mapping[str, bytes]
    """The metadata as received, by path below `url`."""
    group: str
    """Path of the pyramid's group below `url`."""
    pyramid: Pyramid
    arrays: tuple[StoredArray | None, ...]
    """Of each level; None for one that is listed but not there."""
    proofs: tuple[str, ...]
    """Of each level, the document that shows whether its folder can be read."""

    def level_of(self, dataset: str) -> int:
        """The level with this path or number. Raises Mismatch."""
        number = self.pyramid.number_of(dataset)
        if number is None:
            paths = ", ".join(level.path for level in self.pyramid.levels)
            raise Mismatch(f"{safe_url(join(self.url, self.group))} has no level {dataset!r}; its levels are {paths}.")
        return number


class ChunkedReader:
    """One level of a volume of chunks: a `VolumeReader`. Safe for use by several threads."""

    def __init__(self, volume: ChunkedVolume, level: int, channel: int | None = None, time: int | None = None) -> None:
        """With a channel, the others are neither fetched nor seen; of several points in time one must be chosen before
        anything is read. Raises Mismatch if there is no such channel or point.
        """
        self._volume = volume
        self._channel = channel
        self._time = time
        self.time = time or 0
        """The point that is read."""
        self.client = volume.client
        self.level = level
        described = volume.pyramid.levels[level]
        self.path = "/".join(part for part in (volume.group, described.path) if part)
        """Of the array, below the address that was opened."""
        self.url = join(volume.url, self.path)
        """The folder of this level's chunks or shards."""
        array = volume.arrays[level]
        if array is None:
            raise Mismatch(
                f"level {described.path} is listed in {volume.pyramid.where}, but {safe_url(self.url)} is no array; "
                "choose another level."
            )
        self.axes = volume.pyramid.axes
        self.shape, self.chunk = self._czyx(array.shape), self._czyx(array.chunk)
        """(c, z, y, x); 1 for axes that the array does not have."""
        at = self.axes.find("t")
        self.times, per_chunk = (array.shape[at], array.chunk[at]) if at >= 0 else (1, 1)
        """Points in time that are published."""
        self._require_one_of("channel", "channels", channel, self.shape[0])
        self._require_one_of("point in time", "points in time", time, self.times)
        self._time_cell, self._time_within = divmod(self.time, per_chunk)
        """Which chunk along t is read, and which of its places."""
        self.array = array.from_cell(at, self._time_cell) if at >= 0 else array
        """Its chunks along t are counted from the one that is read."""
        self.channels = range(self.shape[0]) if channel is None else range(channel, channel + 1)
        """Those that are read."""
        self._grid = tuple(-(-a // b) for a, b in zip(self.shape, self.chunk, strict=True))
        self._absence = Absence(volume.client, join(volume.url, volume.proofs[level]))
        self._last_layout: tuple[tuple[Box, ...], Layout] | None = None

    @cached_property
    def info(self) -> VolumeInfo:
        """Raises Unsupported if there are several points in time and none was chosen."""
        if self._time is None and self.times > 1:
            raise Unsupported(f"{safe_url(self.url)} has {self.times} points in time (axis t); accepted is 1.")
        pyramid = self._volume.pyramid
        described = pyramid.levels[self.level]
        return VolumeInfo(
            zyx(self.shape[1:]),
            self.array.dtype,
            pyramid.scale_nm(described),
            zyx(self.chunk[1:]),
            corner_nm=pyramid.corner_nm(described),
            channels=len(self.channels) if len(self.channels) > 1 else None,
        )

    @property
    def stated_dtype(self) -> str:
        """`info.dtype`, or `bool` where its uint8 are truth values."""
        return "bool" if self.array.is_bool else self.array.dtype

    @property
    def pyramid(self) -> Pyramid:
        """All levels as they are published, in the order and the units of the array's axes."""
        return self._volume.pyramid

    @cached_property
    def channel_labels(self) -> tuple[str, ...]:
        """Of each channel that is published, what OME's `omero` calls it; "" without a name."""
        group, documents = self._volume.group, self._volume.documents
        for name in ("zarr.json", ".zattrs"):
            path = f"{group}/{name}".lstrip("/")
            if path in documents:
                document = parse_json(documents[path], path)
                return channel_labels(document, self.shape[0])
        return ("",) * self.shape[0]

    @property
    def convention(self) -> Convention:
        """What the levels' translations place: `info.corner_nm` is worked out from it."""
        return self._volume.pyramid.convention

    @property
    def levels(self) -> tuple[Level, ...]:
        """All levels, finest first as they are listed."""
        pyramid = self._volume.pyramid
        return tuple(
            Level(
                level.path,
                None if array is None else zyx(self._czyx(array.shape)[1:]),
                pyramid.scale_nm(level),
                pyramid.translation_nm(level),
            )
            for level, array in zip(pyramid.levels, self._volume.arrays, strict=True)
        )

    def at_level(self, dataset: str) -> Self:
        """Another level of the same volume, by path or number; nothing is fetched. Raises Mismatch if there is none."""
        return type(self)(self._volume, self._volume.level_of(dataset), self._channel, self._time)

    def select_channel(self, channel: int) -> Self:
        """One channel of the same level as a volume; nothing is fetched. Raises Mismatch if there is none."""
        return type(self)(self._volume, self.level, channel, self._time)

    def select_time(self, time: int) -> Self:
        """One point in time of the same level; nothing is fetched. Raises Mismatch if there is none."""
        return type(self)(self._volume, self.level, self._channel, time)

    def documents(self) -> dict[str, bytes]:
        """The metadata documents as received, by path below the address that was opened."""
        return dict(self._volume.documents)

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """Every scalar of the metadata documents: path of the document, then JSON pointer."""
        for path, document in self._volume.documents.items():
            for pointer, value in json_leaves(parse_json(document, path)):
                yield f"{path}{pointer}", value

    def object_path(self, cell: Zyx, channel: int | None = None) -> str:
        """Where the chunk at a (z, y, x) place in the grid of `info.chunk` is stored, below the address opened.

        `channel` counts all that are published; without it, it is the first that is read.
        """
        channel = self.channels.start if channel is None else channel
        name = self._object_name((channel // self.chunk[0], *cell))
        return "/".join(part for part in (self.path, name) if part)

    def accept_absence(self, refusal: NotThere) -> None:
        """Raises Unavailable if a 403 cannot mean that an object is absent."""
        self._absence.accept(refusal)

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """The voxels of a box, of the whole level without one; the array's fill value where it has no chunk.

        (z, y, x), or (c, z, y, x) where `info.channels` is not None.
        """
        wanted = checked_box(self.info, box, safe_url(self.url))
        (outcome,) = self._map([wanted], lambda region: region.voxels, None, self.array.fill_value)
        if outcome.error is not None:
            raise outcome.error
        assert outcome.value is not None
        return outcome.value

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        """What `map_regions` would fetch for these boxes; reads shard indices, no voxels.

        Requests and bytes are those for voxels; bytes between chunks that are read over are counted. Chunks whose
        index cannot be read count as neither missing nor received: their boxes will fail. Raises HostUnreachable.
        """
        layout = self._layout(boxes)
        if self.array.sharding is None:
            return ReadPlan(len(layout.requests), None, len(layout.cells), None)
        missing = int(np.count_nonzero(layout.places.object_of == MISSING))
        size = sum(request.size_bytes for request in layout.requests)
        return ReadPlan(len(layout.requests), size, len(layout.cells), missing)

    def map_regions(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[RegionOutcome[T]]:
        """Reads every box and calls `work` with it on a worker thread; yields as they end, in any order.

        Boxes may overlap and need not be aligned. Memory: one region per worker, `settings.memory_bytes` of received
        bodies, and 96 MiB of decoded chunks that neighbours share. A chunk that cannot be read fails the boxes it
        lies in; one the publisher does not have (404, or the 403 of a bucket that hides what is absent) is in their
        `missing` and 0; the array's fill value goes with it. Volumes with channels have no samples.
        """
        return self._map(boxes, work, on_bytes, 0)

    def _map(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        on_bytes: Callable[[int], None] | None,
        fill_value: float,
    ) -> Iterator[RegionOutcome[T]]:
        layout = self._layout(boxes)
        for region in layout.unreadable:
            yield RegionOutcome(layout.boxes[region], None, layout.error_of(region))
        run = RegionRun(self, layout, work, on_bytes, fill_value)
        settings = self._volume.settings
        outcomes = run_regions(
            Jobs(
                [sorted(parts) for parts in layout.parts],
                [request.size_bytes for request in layout.requests],
                run.fetch,
                lambda body: 0 if body is None else len(body),
                run.open_region,
                run.use,
                run.finish,
            ),
            workers=settings.workers,
            connections=settings.connections_per_host,
            memory_bytes=settings.memory_bytes,
        )
        for outcome in outcomes:
            yield RegionOutcome(layout.boxes[layout.order[outcome.region]], outcome.value, outcome.error)

    def chunk_box(self, cell: Zyx) -> Box:
        """The voxels of a chunk, clipped at the volume's end."""
        z, y, x = (a * b for a, b in zip(cell, self.info.chunk, strict=True))
        clipped = Box.from_shape(self.info.chunk, at=(z, y, x)).intersection(Box.from_shape(self.info.shape))
        assert clipped is not None
        return clipped

    def where(self, cell: Czyx) -> str:
        """A chunk's name in a message."""
        name = self._object_name(cell)
        if self.array.sharding is None:
            return f"chunk {name} of {safe_url(self.url)}"
        return f"chunk {self.own_order(cell, self._time_cell)} in shard {name} of {safe_url(self.url)}"

    def own_order(self, cell: Czyx, time: int = 0) -> Index:
        """A (c, z, y, x) place in the array's own axis order; chunks of `array` along t are counted from the one that
        is read.
        """
        return tuple(time if axis == "t" else cell[CZYX.index(axis)] for axis in self.axes)

    def within_chunk(self, position: Czyx) -> Index:
        """A (c, z, y, x) position in a chunk, in the array's own axis order, at the point in time that is read."""
        return self.own_order(position, self._time_within)

    def turned(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """A chunk's voxels in the array's own axis order as (c, z, y, x); no copy.

        Raises Malformed if it is smaller than it must be and has no voxel of what is read.
        """
        self._require_held(voxels)
        there = self.axes.replace("t", "")
        one_time = voxels[tuple(self._time_within if axis == "t" else slice(None) for axis in self.axes)]
        ordered = one_time.transpose([there.index(axis) for axis in CZYX if axis in there])
        return ordered[tuple(slice(None) if axis in there else None for axis in CZYX)]

    def _require_held(self, voxels: NDArray[Any]) -> None:
        """A block of N5 states its own shape."""
        for axis, place in (("t", self._time_within), ("c", self.channels.start % self.chunk[0])):
            if axis in self.axes and voxels.shape[self.axes.index(axis)] <= place:
                raise Malformed(
                    f"a chunk of {safe_url(self.url)} has {voxels.shape} voxels ({', '.join(self.axes)}), too few for "
                    f"its place {place} along {axis}; report it to the publisher."
                )

    def _require_one_of(self, one: str, several: str, number: int | None, count: int) -> None:
        if number is not None and not 0 <= number < count:
            raise Mismatch(
                f"{safe_url(self.url)} has {count} {one if count == 1 else several}, so there is no {one} {number}; "
                f"choose one of 0 to {count - 1}."
            )

    def _czyx(self, values: Index) -> Czyx:
        c, z, y, x = (values[self.axes.index(axis)] if axis in self.axes else 1 for axis in CZYX)
        return c, z, y, x

    def _object_name(self, cell: Czyx) -> str:
        place = self.own_order(cell)
        if self.array.sharding is not None:
            place = tuple(a // b for a, b in zip(place, self.array.sharding.chunks, strict=True))
        return self.array.name_of(place)

    def _layout(self, boxes: Sequence[Box]) -> Layout:
        """The plan; that of the last boxes is kept, because who asks for a plan usually goes on to read."""
        key = tuple(boxes)
        known = self._last_layout
        if known is not None and known[0] == key:
            return known[1]
        name = safe_url(self.url)
        for box in boxes:
            checked_box(self.info, box, name)
        require_plannable(self.info, boxes, name, len(self._channel_cells()))
        layout = self._make_layout(key)
        self._last_layout = None if layout.places.errors else (key, layout)
        return layout

    def _make_layout(self, boxes: tuple[Box, ...]) -> Layout:
        numbers_of = [self._chunk_numbers(box) for box in boxes]
        numbers, inverse = np.unique(np.concatenate(numbers_of or [np.zeros(0, np.int64)]), return_inverse=True)
        rows_of = np.split(inverse, np.cumsum([len(n) for n in numbers_of])[:-1]) if boxes else []
        cells = np.stack(np.unravel_index(numbers, self._grid), axis=1).astype(np.int64)
        places = self._places(cells)
        unreadable = [r for r, rows in enumerate(rows_of) if (places.object_of[rows] == UNREADABLE).any()]
        corners = np.array([box.start for box in boxes], np.int64).reshape(-1, 3) // self.info.chunk
        ranks = morton_ids(corners, ceil_divide(self.info.shape, self.info.chunk))
        order = [int(r) for r in np.argsort(ranks, kind="stable") if int(r) not in unreadable]
        needed = np.zeros(len(cells), bool)
        for region in order:
            needed[rows_of[region]] = True
        return Layout(boxes, cells, rows_of, places, unreadable, order, self._requests(cells, places, needed))

    def _chunk_numbers(self, box: Box) -> Integers:
        """The chunks a box touches, of the channels that are read, as numbers in the (c, z, y, x) grid."""
        axes = [np.array(self._channel_cells()), *(np.arange(a, b) for a, b in _cells(box, self.info.chunk))]
        return np.ravel_multi_index(np.ix_(*axes), self._grid).ravel().astype(np.int64)

    def _channel_cells(self) -> range:
        """Places along c of the chunks that hold the channels that are read."""
        return range(self.channels.start // self.chunk[0], -(-self.channels.stop // self.chunk[0]))

    def _places(self, cells: Integers) -> ChunkPlaces:
        """Where the chunks lie; unsharded, each is an object of its own and nothing is known of it yet."""
        rows = len(cells)
        if self.array.sharding is None:
            return ChunkPlaces(np.arange(rows), np.zeros(rows, np.int64), np.zeros(rows, np.int64), (), {})
        nothing = np.zeros(rows, np.int64)  # along t, which has one place
        own = np.stack([nothing if axis == "t" else cells[:, CZYX.index(axis)] for axis in self.axes], axis=1)
        return ShardIndices(
            self.client,
            self.array.sharding,
            lambda shard: f"{self.url}/{quote(self.array.name_of(shard))}",
            self.array.codec.max_bytes,
            threads=self._volume.settings.connections_per_host,
            accept_absence=self.accept_absence,
        ).locate(own)

    def _requests(self, cells: Integers, places: ChunkPlaces, needed: NDArray[np.bool_]) -> list[ChunkRequest]:
        if self.array.sharding is None:
            guess = self.array.codec.room_bytes
            return [
                ChunkRequest(
                    f"{self.url}/{quote(self._object_name(tuple(cells[row].tolist())))}", None, 0, guess, (row,)
                )
                for row in np.flatnonzero(needed).tolist()
            ]
        requests = []
        wanted = np.flatnonzero(needed & (places.object_of >= 0))
        for rows in grouped(wanted, places.object_of[wanted]):
            stored = places.objects[int(places.object_of[rows[0]])]
            pieces = list(zip(places.start[rows].tolist(), places.stop[rows].tolist(), strict=True))
            requests += [
                ChunkRequest(stored.url, stored.etag, r.start, r.stop, tuple(int(rows[piece]) for piece in r.pieces))
                for r in plan_requests(pieces)
            ]
        return requests


def join(url: str, path: str) -> str:
    """The address of what lies at `path` below `url`."""
    return f"{url}/{quote(path)}" if path else url


def _cells(box: Box, chunk: Zyx) -> list[tuple[int, int]]:
    """Along each axis, the first chunk that a box touches and the one after its last."""
    return [(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, chunk, strict=True)]
