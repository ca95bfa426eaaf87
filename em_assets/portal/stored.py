"""A volume of a complete dataset, as what the portal's tree is written from: a reader for each of its levels.

Every shard is compared with its recorded sha256 before a voxel of it is used (`export/stored.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.export.stored import StoredVolume
from em_assets.formats._boxes import checked_box, map_boxes
from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, Scalar
from em_assets.records import DatasetFolder, manifest_digest
from em_assets.standardize.ome import PYRAMID, level_factors
from em_assets.standardize.presence import Presence, merge_boxes
from em_assets.volume import Box, VolumeInfo, VoxelSize

T = TypeVar("T")


class StoredImage:
    """One volume, image or labels."""

    def __init__(self, folder: DatasetFolder, workers: int = 1) -> None:
        """Raises as `StoredVolume.read`."""
        self.folder = folder
        self.volume = StoredVolume.read(folder)
        is_labels = self.volume.multiscale.get("type") == PYRAMID["labels"]["type"]
        self.content: Literal["image", "labels"] = "labels" if is_labels else "image"
        parts = self.volume.every_level()
        self.voxel_size_nm = parts[0].voxel_size_nm
        z, y, x = (t - size / 2 for t, size in zip(parts[0].translation_nm, self.voxel_size_nm, strict=True))
        self.corner_nm: VoxelSize = (z, y, x)
        """(z, y, x) of the corner of its voxel 0 in the publisher's frame."""
        records = [one for one in folder.partition_records() if one.level == 0]
        self.missing = [box for one in records for box in one.missing]
        """Of level 0: what the publisher does not have. It is 0 wherever it is read."""
        self.sha256 = _digest(manifest_digest(stored for one in records for stored in one.objects), self.missing)
        """Of level 0, by its shards and what is missing: equal ones hold equal voxels on every level."""
        shapes = [part.shape for part in parts]
        self._presence = Presence(shapes, level_factors(shapes), self.missing, self.content)
        self.levels = [StoredLevel(self, level, workers) for level in range(len(parts))]
        """The finest first."""

    def present(self, level: int, box: Box) -> NDArray[np.bool_] | None:
        """True where the publisher has the voxel; None where it has all."""
        return self._presence.mask(level, box)


def _digest(of_shards: str, missing: Sequence[Box]) -> str:
    """Whatever the boxes are that the missing voxels are recorded in, as far as they can be joined."""
    if not missing:
        return of_shards
    boxes = sorted((box.start, box.stop) for box in merge_boxes(missing))
    return hashlib.sha256(f"{of_shards} without {boxes}".encode()).hexdigest()


class StoredLevel:
    """A `VolumeReader` of one level. Safe to read from many threads."""

    def __init__(self, image: StoredImage, level: int, workers: int) -> None:
        part = image.volume.every_level()[level]
        self._image, self._level, self._workers = image, level, workers
        self.info = VolumeInfo(part.shape, image.volume.dtype.name, part.voxel_size_nm, image.volume.form.shard)

    def read(self, box: Box | None = None) -> NDArray[Any]:
        wanted = checked_box(self.info, box, self._image.folder.title)
        voxels = np.zeros(wanted.shape, self._image.volume.dtype)
        self._image.volume.read_into(voxels, self._level, wanted)
        return voxels

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """None: what the publisher's files say is among the dataset's claims."""
        return iter(())

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        shards = sum(1 for box in boxes for _ in box.cells(self.info.chunk))
        return ReadPlan(requests=shards, received_bytes=None, chunks=shards, missing_chunks=None)

    def map_regions(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[RegionOutcome[T]]:
        """Level 0 says what is missing; in coarser ones `StoredImage.present` does."""
        folder = self._image.folder
        return map_boxes(
            boxes,
            self.read,
            work,
            sample=None,
            source_url=folder.uri(folder.volume),
            workers=self._workers,
            on_bytes=on_bytes,
            missing=self._missing if self._level == 0 else None,
        )

    def _missing(self, box: Box) -> tuple[Box, ...]:
        parts = (missing.intersection(box) for missing in self._image.missing)
        return tuple(part for part in parts if part is not None)
