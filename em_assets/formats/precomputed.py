"""Neuroglancer precomputed volumes over HTTP(S): the `info` document, and boxes of voxels.

Specification: github.com/google/neuroglancer, src/datasource/precomputed/volume.rst. The files' x, y, z order ends
here. What `info` says is read by `_precomputed_info.py`; where chunks lie in shards by `_sharded.py`; what their bytes
mean is `_chunk_codec.py`, how boxes are put together `_precomputed_regions.py`, and who does what when `_engine.py`.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch.client import Client
from em_assets.fetch.http import NotThere, Reply, safe_url
from em_assets.fetch.ranges import plan_requests
from em_assets.formats._boxes import checked_box, require_plannable
from em_assets.formats._chunk_codec import DTYPES, ENCODINGS, ChunkCodec, Encoding
from em_assets.formats._engine import Jobs, run_regions
from em_assets.formats._json import json_leaves
from em_assets.formats._precomputed_info import MAX_INFO_BYTES, MAX_SCALES, PrecomputedInfo, Scale, parse_info
from em_assets.formats._precomputed_regions import ChunkRequest, Layout, RegionRun
from em_assets.formats._sharded import MISSING, UNREADABLE, ChunkPlaces, ShardIndex, morton_ids
from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, Scalar
from em_assets.settings import Settings
from em_assets.volume import Box, VolumeInfo, Zyx, ceil_divide, multiply, subtract, zyx

__all__ = ["PrecomputedReader", "Scale", "open_precomputed"]

T = TypeVar("T")


def open_precomputed(url: str, level: int | str, client: Client, settings: Settings) -> PrecomputedReader:
    """The level, by its number or key, of the volume whose `info` lies below `url`.

    Raises NotThere, Malformed (naming the field), Unsupported (naming what is accepted), Mismatch if there is no such
    level, Unavailable.
    """
    base = url.rstrip("/")
    reply = client.get(f"{base}/info", max_bytes=MAX_INFO_BYTES, accept_gzip=True)
    info = parse_info(bytes(reply.body), reply.url)
    number = _number_of(info, level, reply.url) if isinstance(level, str) else level
    return PrecomputedReader(_Volume(base, client, settings, reply, info), number)


@dataclass
class _Access:
    """When `info` was last found readable."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    confirmed_at: float = -math.inf


@dataclass(frozen=True)
class _Volume:
    """What the levels of one volume share."""

    url: str
    client: Client
    settings: Settings
    info_reply: Reply
    info: PrecomputedInfo

    access: _Access = field(default_factory=_Access)

    def accept_absence(self, refusal: NotThere) -> None:
        """Lets a 404 pass, and a 403 if `info` is still given after it. Raises Unavailable if that is refused, too.

        Buckets that hide what is absent answer 403; so does a server that has had enough of us, and then nothing must
        be taken for missing.
        """
        if refusal.status != 403:
            return
        refused_at = time.monotonic()
        with self.access.lock:
            if self.access.confirmed_at > refused_at:  # asked by another thread while this one waited
                return
            asked_at = time.monotonic()
            try:
                self.client.get(f"{self.url}/info", max_bytes=MAX_INFO_BYTES, accept_gzip=True)
            except NotThere:
                raise Unavailable(
                    f"{refusal} It is not taken for missing, because {self.info_reply.url}, which was readable, is "
                    "refused now, too; try again later."
                ) from None
            self.access.confirmed_at = asked_at


class PrecomputedReader:
    """One level of a precomputed volume: a `VolumeReader`. Safe for use by several threads."""

    def __init__(self, volume: _Volume, level: int) -> None:
        self._volume = volume
        self.client = volume.client
        self.level = level
        scale = self.scale = _level(volume, level)
        dtype = volume.info.dtype
        self.codec = ChunkCodec(_encoding(volume, level), dtype, scale.chunk, scale.block)
        self.url = f"{volume.url}/{quote(scale.key)}"
        """The folder of this level's chunks or shards."""
        self.info = VolumeInfo(scale.shape, dtype, scale.voxel_size_nm, scale.chunk, scale.voxel_offset)
        self.data_encoding_met: set[str] = set()
        """Of the chunks read so far: "raw" and "gzip", whatever `info` promises."""
        self._grid = ceil_divide(scale.shape, scale.chunk)
        self._index: ShardIndex | None = None
        if scale.sharding is not None:
            threads = volume.settings.connections_per_host
            self._index = ShardIndex(
                self.client, self.url, scale.sharding, threads, self.accept_absence, chunks=math.prod(self._grid)
            )
        self._last_layout: tuple[tuple[Box, ...], Layout] | None = None

    @property
    def scales(self) -> tuple[Scale, ...]:
        """All levels that `info` lists, finest first as it lists them."""
        return self._volume.info.scales

    @property
    def info_document(self) -> bytes:
        """`info` as it was received, its Content-Encoding undone."""
        return bytes(self._volume.info_reply.body)

    @property
    def info_reply(self) -> Reply:
        """How `info` was received: ETag, date, Content-Encoding."""
        return self._volume.info_reply

    def accept_absence(self, refusal: NotThere) -> None:
        """Raises Unavailable if a 403 cannot mean that an object is absent."""
        self._volume.accept_absence(refusal)

    def at_level(self, level: int) -> PrecomputedReader:
        """Another level of the same volume; nothing is fetched."""
        return PrecomputedReader(self._volume, level)

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """The voxels of a box, of the whole level without one; 0 where the publisher has none."""
        wanted = checked_box(self.info, box, safe_url(self.url))
        (outcome,) = self.map_regions([wanted], lambda region: region.voxels)
        if outcome.error is not None:
            raise outcome.error
        assert outcome.value is not None
        return outcome.value

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """Every scalar of `info`, by JSON pointer."""
        return json_leaves(json.loads(self.info_document))

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        """What `map_regions` would fetch for these boxes; reads shard indices, no voxels.

        Requests and bytes are those for voxels; bytes between chunks that are read over are counted. Chunks whose
        index cannot be read count as neither missing nor received: their boxes will fail. Raises HostUnreachable.
        """
        layout = self._layout(boxes)
        if self._index is None:
            return ReadPlan(len(layout.requests), None, len(layout.cells), None)
        missing = int(np.count_nonzero(layout.places.object_of == MISSING))
        return ReadPlan(
            len(layout.requests), sum(r.stop - r.start for r in layout.requests), len(layout.cells), missing
        )

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
        `missing`. Raises HostUnreachable before the first voxel; later it is every remaining box's error.
        """
        layout = self._layout(boxes)
        for region in layout.unreadable:
            yield RegionOutcome(layout.boxes[region], None, layout.error_of(region))
        run = RegionRun(self, layout, work, on_bytes)
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

    def _layout(self, boxes: Sequence[Box]) -> Layout:
        """The plan; that of the last boxes is kept, because who asks for a plan usually goes on to read."""
        key = tuple(boxes)
        known = self._last_layout
        if known is not None and known[0] == key:
            return known[1]
        name = safe_url(self.url)
        for box in boxes:
            checked_box(self.info, box, name)
        require_plannable(self.info, boxes, name)
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
        starts = [subtract(box.start, self.info.origin) for box in boxes]
        corners = np.array(
            [[s // c for s, c in zip(start, self.info.chunk, strict=True)] for start in starts], np.int64
        )
        ranks = morton_ids(corners.reshape(-1, 3), self._grid)
        order = [int(r) for r in np.argsort(ranks, kind="stable") if int(r) not in unreadable]
        needed = np.zeros(len(cells), bool)
        for region in order:
            needed[rows_of[region]] = True
        return Layout(boxes, cells, rows_of, places, unreadable, order, self._requests(cells, places, needed))

    def _chunk_numbers(self, box: Box) -> NDArray[np.int64]:
        """The chunks a box touches, as numbers in the grid, z slowest."""
        local = box.shifted(subtract((0, 0, 0), self.info.origin))
        axes = [
            np.arange(a // c, -(-b // c), dtype=np.int64)
            for a, b, c in zip(local.start, local.stop, self.info.chunk, strict=True)
        ]
        _, grid_y, grid_x = self._grid
        z, y, x = np.ix_(*axes)
        return ((z * grid_y + y) * grid_x + x).ravel()

    def _places(self, cells: NDArray[np.int64]) -> ChunkPlaces:
        """Where the chunks lie; unsharded, each is an object of its own and nothing is known of it yet."""
        rows = len(cells)
        if self._index is None:
            return ChunkPlaces(np.arange(rows), np.zeros(rows, np.int64), np.zeros(rows, np.int64), (), {})
        places = self._index.locate(morton_ids(cells, self._grid))
        for row in np.flatnonzero(places.stop - places.start > self.codec.max_bytes):
            size = int(places.stop[row] - places.start[row])
            places.errors[int(row)] = Malformed(
                f"{self.where(zyx(cells[row]))} has {size} bytes by its shard's index, expected at most "
                f"{self.codec.max_bytes}; report it to the publisher."
            )
            places.object_of[row] = UNREADABLE
        return places

    def _requests(self, cells: NDArray[np.int64], places: ChunkPlaces, needed: NDArray[np.bool_]) -> list[ChunkRequest]:
        if self._index is None:
            guess = math.prod(self.info.chunk) * np.dtype(self.info.dtype).itemsize
            return [
                ChunkRequest(f"{self.url}/{_chunk_name(self.chunk_box(zyx(cells[row])))}", None, 0, guess, (int(row),))
                for row in np.flatnonzero(needed)
            ]
        requests = []
        for number, stored in enumerate(places.objects):
            rows = np.flatnonzero(needed & (places.object_of == number))
            pieces = list(zip(places.start[rows].tolist(), places.stop[rows].tolist(), strict=True))
            requests += [
                ChunkRequest(stored.url, stored.etag, r.start, r.stop, tuple(int(rows[piece]) for piece in r.pieces))
                for r in plan_requests(pieces)
            ]
        return requests

    def chunk_box(self, cell: Zyx) -> Box:
        """The voxels of a chunk, in the publisher's voxels; clipped at the volume's end."""
        box = Box.from_shape(self.info.chunk, at=multiply(cell, self.info.chunk))
        clipped = box.intersection(Box.from_shape(self.info.shape))
        assert clipped is not None
        return clipped.shifted(self.info.origin)

    def where(self, cell: Zyx) -> str:
        """A chunk's name in a message."""
        return f"chunk {_chunk_name(self.chunk_box(cell))} (x, y, z) of {safe_url(self.url)}"


def _number_of(info: PrecomputedInfo, level: str, url: str) -> int:
    """The level with this key or, if none has it, this number."""
    keys = [scale.key for scale in info.scales]
    if level in keys:
        return keys.index(level)
    if level.isascii() and level.isdecimal() and len(level) <= len(str(MAX_SCALES)):
        return int(level)
    raise Mismatch(
        f"{url} has no level {level[:80]!r}; its levels are {', '.join(keys[:20])}, or 0 to {len(keys) - 1}."
    )


def _level(volume: _Volume, level: int) -> Scale:
    scales = volume.info.scales
    if not 0 <= level < len(scales):
        raise Mismatch(f"{safe_url(volume.url)} has {len(scales)} levels, 0 to {len(scales) - 1}, but not {level}.")
    return scales[level]


def _encoding(volume: _Volume, level: int) -> Encoding:
    """How the level's chunks are encoded. Raises Unsupported, Malformed if its voxels cannot be so encoded."""
    encoding, dtype = volume.info.scales[level].encoding, volume.info.dtype
    where = f"{safe_url(volume.url)}/info: scales/{level}/encoding is {encoding!r}"
    if encoding not in ENCODINGS:
        raise Unsupported(f"{where}; accepted are {', '.join(ENCODINGS)}.")
    accepted = DTYPES.get(encoding)
    if accepted is not None and dtype not in accepted:
        raise Malformed(f"{where}, but data_type is {dtype}; such chunks hold {' or '.join(accepted)}.")
    return encoding  # type: ignore[return-value]  # one of ENCODINGS


def _chunk_name(box: Box) -> str:
    """An unsharded chunk's file: `x0-x1_y0-y1_z0-z1`, the voxel offset included."""
    return "_".join(f"{a}-{b}" for a, b in zip(box.start[::-1], box.stop[::-1], strict=True))
