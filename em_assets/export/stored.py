"""What an export reads: a stored volume as its own documents and records describe it, and its voxels.

Every shard is compared with its recorded sha256 before a voxel of it is used, so that what is exported is what was
stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Mismatch
from em_assets.records import DatasetFolder, DatasetRecord, partition_key
from em_assets.standardize.complete import Described, Level, complete_record, recorded_shard
from em_assets.standardize.ome import PYRAMID, level_factors
from em_assets.standardize.presence import Presence
from em_assets.standardize.shard import ShardReader
from em_assets.standardize.stored import shard_path
from em_assets.volume import Box, VoxelSize, Zyx, multiply, subtract, zyx

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """A box of one level, and where it lies."""

    level: int
    box: Box
    """In voxels of the level."""
    voxel_size_nm: VoxelSize
    translation_nm: VoxelSize
    """Centre of the box's first voxel in the publisher's frame."""

    @property
    def shape(self) -> Zyx:
        return self.box.shape


class StoredVolume:
    """One volume of a complete dataset. Safe to read from many threads."""

    def __init__(self, folder: DatasetFolder, record: DatasetRecord, described: Described) -> None:
        self.folder, self.record, self.multiscale = folder, record, described.multiscale
        self.form = described.levels[0].form
        self._levels = [_whole(level) for level in described.levels]
        self._records = {(one.level, one.key): one for one in folder.partition_records()}
        shapes = [level.shape for level in self._levels]
        missing = [box for (level, _), one in self._records.items() if level == 0 for box in one.missing]
        is_labels = self.multiscale.get("type") == PYRAMID["labels"]["type"]
        self._presence = Presence(shapes, level_factors(shapes), missing, "labels" if is_labels else "image")

    @classmethod
    def read(cls, folder: DatasetFolder) -> StoredVolume:
        """Raises Unavailable if the dataset is not complete or has no such volume, Malformed if it is damaged."""
        record = complete_record(folder, "exported", instead="use them, or ")
        return cls(folder, record, Described.read(folder))

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.form.stored_dtype

    def every_level(self) -> list[Part]:
        """The finest first."""
        return list(self._levels)

    def part(self, level: int, box: str | None) -> Part:
        """A level, or a box of it (`parse_box`). Raises Mismatch if it is not there."""
        if not 0 <= level < len(self._levels):
            raise Mismatch(f"{self.folder.title} has the levels 0 to {len(self._levels) - 1}, not {level}; correct it.")
        whole = self._levels[level]
        if box is None:
            return whole
        cut = parse_box(box, whole.shape)
        z, y, x = (t + a * s for t, a, s in zip(whole.translation_nm, cut.start, whole.voxel_size_nm, strict=True))
        return Part(level, cut, whole.voxel_size_nm, (z, y, x))

    def read_into(self, voxels: NDArray[Any], level: int, box: Box) -> int:
        """Fills an array of zeros with the box's voxels; returns how many of them the publisher does not have."""
        for index in box.cells(self.form.shard):
            shard = self._shard(level, index)
            if shard is not None:
                self._copy(shard, index, voxels, box)
        return self._missing_voxels(level, box)

    def _shard(self, level: int, index: Zyx) -> ShardReader | None:
        """Decodes from memory, which holds the very bytes that were compared. None: the publisher has nothing of it."""
        data = recorded_shard(self.folder, level, index, self._records.get((level, partition_key(index))))
        if data is None:
            return None
        return ShardReader.of_bytes(data, self.form, self.folder.uri(shard_path(self.folder, level, index)))

    def _copy(self, shard: ShardReader, index: Zyx, voxels: NDArray[Any], box: Box) -> None:
        corner = multiply(index, self.form.shard)
        inside = Box.from_shape(self.form.shard, at=corner).intersection(box)
        assert inside is not None
        for at in inside.shifted(subtract((0, 0, 0), corner)).cells(self.form.chunk):
            chunk = shard.chunk(at)
            place = Box.from_shape(self.form.chunk, at=multiply(at, self.form.chunk)).shifted(corner)
            part = place.intersection(box)
            if chunk is not None and part is not None:
                from_chunk = part.shifted(subtract((0, 0, 0), place.start))
                voxels[part.shifted(subtract((0, 0, 0), box.start)).slices] = chunk[from_chunk.slices]

    def _missing_voxels(self, level: int, box: Box) -> int:
        if not self._presence.touches(level, box):
            return 0
        # chunk by chunk: a mask takes eight bytes for each voxel
        masks = (self._presence.mask(level, part) for part in cells_of(box, self.form.chunk))
        return sum(mask.size - int(np.count_nonzero(mask)) for mask in masks if mask is not None)


def parse_box(text: str, shape: Zyx) -> Box:
    """`z0:z1,y0:y1,x0:x1` as a box of a level of this shape. Raises Mismatch if it is not one."""
    found = re.fullmatch(r"\s*(\d*):(\d*)\s*,\s*(\d*):(\d*)\s*,\s*(\d*):(\d*)\s*", text, re.ASCII)
    if found is None:
        raise Mismatch(f"the box is {text!r}, expected z0:z1,y0:y1,x0:x1 in voxels, such as 0:64,100:200,:")
    start = zyx([int(value or 0) for value in found.groups()[0::2]])
    stop = zyx([int(value) if value else n for value, n in zip(found.groups()[1::2], shape, strict=True)])
    if any(not a < b <= n for a, b, n in zip(start, stop, shape, strict=True)):
        raise Mismatch(f"the box {text} is empty or leaves the level, which has {shape} voxels (z, y, x); correct it.")
    return Box(start, stop)


def cells_of(box: Box, cell: Zyx) -> list[Box]:
    """The box's parts on a grid anchored at 0, z slowest."""
    parts = (Box.from_shape(cell, at=multiply(at, cell)).intersection(box) for at in box.cells(cell))
    return [part for part in parts if part is not None]


class Progress(Protocol):
    """What is used of `progress.Reporter`."""

    def start(self, total_bytes: int | None, total_items: int, what: str) -> None: ...
    def advance(self, bytes: int = 0, items: int = 0) -> None: ...  # noqa: A002  # as it is called there


class Work:
    """An export's pieces, done by a few threads."""

    def __init__(self, volume: StoredVolume, parts: list[Part], workers: int, progress: Progress | None) -> None:
        self.volume, self.parts = volume, parts
        self.missing_voxels = 0
        """Of the first part, once it is written."""
        self._workers, self._progress = workers, progress

    def start(self, pieces: int) -> None:
        if self._progress is not None:
            voxels = sum(part.box.voxels for part in self.parts)
            self._progress.start(voxels * self.volume.dtype.itemsize, pieces, self.volume.folder.title)

    def read_into(self, voxels: NDArray[Any], level: int, box: Box) -> int:
        """`StoredVolume.read_into`, one piece more."""
        missing = self.volume.read_into(voxels, level, box)
        if self._progress is not None:
            self._progress.advance(bytes=voxels.nbytes, items=1)
        return missing

    def each(self, do: Callable[[Box], T], boxes: Iterable[Box]) -> Iterator[T]:
        """The outcomes in order. The first error ends it: what has not begun by then is not done."""
        with ThreadPoolExecutor(self._workers) as pool:
            futures = [pool.submit(do, box) for box in boxes]
            try:
                for future in futures:
                    yield future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _whole(level: Level) -> Part:
    return Part(level.number, Box.from_shape(level.shape), level.voxel_size_nm, level.translation_nm)
