"""A volume of half-precision numbers as single precision, which holds every one of them exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.datasets.fields import WIDENED
from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, Scalar, VolumeReader
from em_assets.volume import Box

T = TypeVar("T")


def widened(reader: VolumeReader, dtype: str) -> VolumeReader:
    """A view of the reader in `dtype`, if that is what its own type is stored as; else the reader as it is."""
    return WidenedReader(reader) if WIDENED.get(reader.info.dtype) == dtype else reader


class WidenedReader:
    """A `VolumeReader` of the same numbers in a wider type."""

    def __init__(self, reader: VolumeReader) -> None:
        self._reader = reader
        self.info = replace(reader.info, dtype=WIDENED[reader.info.dtype])
        self._dtype = np.dtype(self.info.dtype)

    def read(self, box: Box | None = None) -> NDArray[Any]:
        return self._reader.read(box).astype(self._dtype)

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """As the file says them."""
        return self._reader.tags()

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        """In bytes of the file."""
        return self._reader.plan(boxes)

    def map_regions(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[RegionOutcome[T]]:
        def wide(region: RegionVoxels) -> T:
            return work(replace(region, voxels=region.voxels.astype(self._dtype)))

        return self._reader.map_regions(boxes, wide, on_bytes=on_bytes)
