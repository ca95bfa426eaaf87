"""What an export reads: a stored volume as its own documents and records describe it, and its voxels.

Every shard is compared with its recorded sha256 before a voxel of it is used, so that what is exported is what was
stored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.records import DatasetFolder, DatasetRecord, partition_key
from em_assets.standardize.ome import PYRAMID, level_factors
from em_assets.standardize.presence import Presence
from em_assets.standardize.shard import ShardFormat, ShardReader
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

    def __init__(
        self,
        folder: DatasetFolder,
        record: DatasetRecord,
        form: ShardFormat,
        levels: list[Part],
        multiscale: dict[str, Any],
    ) -> None:
        self.folder, self.record, self.form, self.multiscale = folder, record, form, multiscale
        self._levels = levels
        self._records = {(one.level, one.key): one for one in folder.partition_records()}
        shapes = [level.shape for level in levels]
        missing = [box for (level, _), one in self._records.items() if level == 0 for box in one.missing]
        is_labels = multiscale.get("type") == PYRAMID["labels"]["type"]
        self._presence = Presence(shapes, level_factors(shapes), missing, "labels" if is_labels else "image")

    @classmethod
    def read(cls, folder: DatasetFolder) -> StoredVolume:
        """Raises Unavailable if the dataset is not complete or has no such volume, Malformed if it is damaged."""
        record = _require_complete(folder)
        where = f"{folder.volume}/zarr.json"
        try:
            multiscale = json.loads(folder.read(where))["attributes"]["ome"]["multiscales"][0]
            levels, documents = [], []
            for number, entry in enumerate(multiscale["datasets"]):
                where = f"{folder.volume}/{number}/zarr.json"
                documents.append(json.loads(folder.read(where)))
                levels.append(_level(number, entry, documents[-1]))
            form = _shard_format(documents[0])
        except FileNotFoundError:
            raise Unavailable(
                f"{folder.uri(where)} is not there; see what is missing with `em-assets verify {folder.name}`."
            ) from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise Malformed(
                f"{folder.uri(where)} is not what was written ({type(error).__name__}: {error}); repair it with "
                f"`em-assets verify {folder.name} --repair`."
            ) from None
        return cls(folder, record, form, levels, multiscale)

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
        record = self._records.get((level, partition_key(index)))
        path = shard_path(self.folder, level, index)
        if record is None:
            raise self._damaged(path, "it has no record")
        if not record.objects:
            return None
        try:
            data = self.folder.read(path)
        except FileNotFoundError:
            raise self._damaged(path, "it is gone") from None
        if hashlib.sha256(data).hexdigest() != record.objects[0].sha256:
            raise self._damaged(path, "its sha256 is not the recorded one")
        return ShardReader.of_bytes(data, self.form, self.folder.uri(path))

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

    def _damaged(self, path: str, why: str) -> Malformed:
        return Malformed(
            f"{self.folder.uri(path)} is not the shard that was written ({why}); repair it with "
            f"`em-assets verify {self.folder.name} --repair`."
        )


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


def _require_complete(folder: DatasetFolder) -> DatasetRecord:
    record = folder.read_record()
    status = "listed (nothing of it is stored)" if record is None else record.visible_status
    if record is None or status != "complete":
        raise Unavailable(
            f"{folder.name} is {status}, and only a complete dataset is exported; finish it with "
            f"`em-assets get {folder.name}`."
        )
    if "volume" not in record.local_paths:
        raise Unavailable(
            f"{folder.name} keeps the publisher's files only, in {folder.uri('original')}; use them, or set "
            f"`keep: both` in its spec and run `em-assets get {folder.name}`."
        )
    return record


def _level(number: int, entry: dict[str, Any], document: dict[str, Any]) -> Part:
    """From the multiscale's entry and the array's own document, as `standardize.ome` writes them."""
    transformations = {one["type"]: one[one["type"]] for one in entry["coordinateTransformations"]}
    size, translation = (_three(transformations[name]) for name in ("scale", "translation"))
    return Part(number, Box.from_shape(zyx(document["shape"])), size, translation)


def _shard_format(document: dict[str, Any]) -> ShardFormat:
    sharding = document["codecs"][0]["configuration"]
    shard, chunk = zyx(document["chunk_grid"]["configuration"]["chunk_shape"]), zyx(sharding["chunk_shape"])
    is_compressed = any(codec["name"] == "zstd" for codec in sharding["codecs"])
    return ShardFormat(shard, chunk, document["data_type"], codec="zstd" if is_compressed else "none")


def _three(values: Any) -> VoxelSize:
    z, y, x = (float(value) for value in values)
    return z, y, x
