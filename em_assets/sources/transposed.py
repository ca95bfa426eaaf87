"""A volume whose file has its axes in another order, as (z, y, x): boxes go in turned around, voxels come out so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, SampledVoxel, Scalar, VolumeReader
from em_assets.volume import Box, VolumeInfo

T = TypeVar("T")
A = TypeVar("A")


def as_zyx(reader: VolumeReader, axes: str) -> VolumeReader:
    """The reader, if `axes` (what the file's first, second and third axis are) is `zyx`; else a view of it that is."""
    return reader if axes == "zyx" else TransposedReader(reader, axes)


class TransposedReader:
    """A `VolumeReader` of the same voxels as (z, y, x)."""

    def __init__(self, reader: VolumeReader, axes: str) -> None:
        self._reader = reader
        self._to_zyx = tuple(axes.index(name) for name in "zyx")
        """For each of z, y, x: which axis of the file it is."""
        self._to_file = tuple("zyx".index(name) for name in axes)
        """For each axis of the file: which of z, y, x it is."""
        info = reader.info
        size_nm = info.voxel_size_nm
        self.info: VolumeInfo = replace(
            info,
            shape=_turned(info.shape, self._to_zyx),
            voxel_size_nm=None if size_nm is None else _turned(size_nm, self._to_zyx),
            chunk=_turned(info.chunk, self._to_zyx),
            origin=_turned(info.origin, self._to_zyx),
            corner_nm=_turned(info.corner_nm, self._to_zyx),
        )

    def read(self, box: Box | None = None) -> NDArray[Any]:
        return self._voxels(self._reader.read(None if box is None else self._box_in_file(box)))

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """As the file says them, in its own order of axes."""
        return self._reader.tags()

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        return self._reader.plan([self._box_in_file(box) for box in boxes])

    def map_regions(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[RegionOutcome[T]]:
        def turned(region: RegionVoxels) -> T:
            return work(self._region(region))

        inside = [self._box_in_file(box) for box in boxes]
        for outcome in self._reader.map_regions(inside, turned, on_bytes=on_bytes):
            yield RegionOutcome(self._box(outcome.box), outcome.value, outcome.error)

    def _region(self, region: RegionVoxels) -> RegionVoxels:
        return replace(
            region,
            box=self._box(region.box),
            voxels=self._voxels(region.voxels),
            missing=tuple(self._box(box) for box in region.missing),
            samples=tuple(SampledVoxel(_turned(s.position, self._to_zyx), s.value) for s in region.samples),
        )

    def _voxels(self, array: NDArray[Any]) -> NDArray[Any]:
        """In C order. A leading axis of channels stays where it is."""
        leading = array.ndim - 3
        axes = (*range(leading), *(leading + axis for axis in self._to_zyx))
        return np.ascontiguousarray(array.transpose(axes))

    def _box(self, box: Box) -> Box:
        return Box(_turned(box.start, self._to_zyx), _turned(box.stop, self._to_zyx))

    def _box_in_file(self, box: Box) -> Box:
        return Box(_turned(box.start, self._to_file), _turned(box.stop, self._to_file))


def _turned(values: tuple[A, A, A], order: tuple[int, ...]) -> tuple[A, A, A]:
    a, b, c = (values[axis] for axis in order)
    return a, b, c
