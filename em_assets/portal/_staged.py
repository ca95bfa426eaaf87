"""Level 0 of a volume in one plain file of this machine, filled from a reader box by box and measured on the way.

The file is what the MRC becomes and what the pyramid is made from: every voxel of the source is read once, in boxes
that suit the source, whatever the chunks of the result are. What it takes of memory is pages of the file, not of the
process. Zeros take no room on a disk that has sparse files.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Mismatch, Unsupported
from em_assets.formats._boxes import map_boxes
from em_assets.formats.reader import RegionVoxels, VolumeReader
from em_assets.records import VoxelStatistics
from em_assets.standardize.voxel_statistics import voxel_statistics
from em_assets.volume import Box, VolumeInfo, Zyx, subtract, zyx

READ_BYTES = 32 * 2**20
"""Of one box, about: a reader may hold it two or three times while it decodes."""
MOST_WORKERS = 8
"""All of them together hold a quarter of a gigabyte, or up to three."""
_SLAB_BYTES = 2**20
"""Statistics go over the voxels in slabs that stay in the cache."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of level 0, without what is not a finite number."""

    minimum: float
    maximum: float
    mean: float
    rms: float
    """Root of the mean squared deviation from the mean, as MRC has it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of all voxels together. Joined in the order of their boxes, so that it is the same every time."""

    count: int = 0
    """Finite voxels."""
    mean: float = 0.0
    squares: float = 0.0
    """Summed squared deviation from the mean."""
    smallest: float = math.inf
    """Of integers exact, as an int of any size; likewise `largest`."""
    largest: float = -math.inf
    is_whole: bool = True
    """Every voxel is a whole number."""
    is_single: bool = True
    """Every voxel is one that single precision holds."""

    @property
    def statistics(self) -> Statistics | None:
        """None where no voxel is a finite number."""
        if not self.count:
            return None
        rms = math.sqrt(self.squares / self.count)
        return Statistics(float(self.smallest), float(self.largest), self.mean, rms)

    def joined(self, other: Measured) -> Measured:
        """Of both, without loss (Chan et al. 1979)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        share = other.count / count if count else 0.0
        return Measured(
            count,
            self.mean + shift * share,
            self.squares + other.squares + shift**2 * self.count * share,
            min(self.smallest, other.smallest),
            max(self.largest, other.largest),
            self.is_whole and other.is_whole,
            self.is_single and other.is_single,
        )


@dataclass(frozen=True)
class StagedVolume:
    """Voxels in C order from byte `offset` of a file, little endian."""

    file: Path
    offset: int
    shape: Zyx
    dtype: np.dtype[Any]
    measured: Measured

    @cached_property
    def _voxels(self) -> NDArray[Any]:
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)

    def read(self, box: Box) -> NDArray[Any]:
        """A copy."""
        return np.array(self._voxels[box.slices])

    def pieces(self, voxels: int) -> Iterator[NDArray[Any]]:
        """All voxels in their order, flat, so many at a time."""
        flat = self._voxels.reshape(-1)
        for at in range(0, flat.size, voxels):
            yield np.array(flat[at : at + voxels])


def stage(
    reader: VolumeReader, file: Path, offset: int, *, workers: int, on_voxels: Callable[[int], None] | None = None
) -> StagedVolume:
    """Copies the reader's voxels into a new file, from byte `offset` on; before it are zeros.

    `on_voxels` is told, from one thread, how many more were copied. Raises what the reader raises, Unsupported for
    voxels that are no real numbers, Mismatch where a box is not what `info` says, OSError if the disk is full.
    """
    info = reader.info
    dtype = stored_dtype(info)
    measured = Measured()
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.ftruncate(descriptor, offset + math.prod(info.shape) * dtype.itemsize)

        def copy(region: RegionVoxels) -> Measured:
            voxels = _checked(region, info, dtype)
            local = region.box.shifted(subtract((0, 0, 0), info.origin))
            _write_box(descriptor, offset, info.shape, local, voxels)
            return measure(voxels)

        boxes, workers = read_boxes(info), min(workers, MOST_WORKERS)
        found = map_boxes(boxes, reader.read, copy, sample=None, source_url="", workers=workers)
        # before the file is closed no thread may still be writing
        with contextlib.closing(found):  # type: ignore[type-var]  # it is a generator
            for outcome in found:
                if outcome.error is not None:
                    raise outcome.error
                assert outcome.value is not None
                measured = measured.joined(outcome.value)
                if on_voxels is not None:
                    on_voxels(outcome.box.voxels)
    finally:
        os.close(descriptor)
    return StagedVolume(file, offset, info.shape, dtype, measured)


def stored_dtype(info: VolumeInfo) -> np.dtype[Any]:
    """The voxels' own, little endian; truth values are bytes. Raises Unsupported for channels and complex numbers."""
    dtype = np.dtype(info.dtype)
    if info.channels is not None:
        raise Unsupported(
            f"the volume has {info.channels} channels, and the portal's volumes have none; write one of them at a time."
        )
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise Unsupported(f"the voxels are {info.dtype}, and the portal's volumes hold real numbers of up to 64 bits.")
    if min(info.shape) < 1:
        raise Mismatch(f"the volume has {info.shape} voxels (z, y, x), so there is nothing to write.")
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("<")


def read_boxes(info: VolumeInfo) -> list[Box]:
    """The volume in the source's own voxels, cut along its chunks: none is decoded twice, unless it is a giant."""
    whole = Box.from_shape(info.shape, at=info.origin)
    z_edges, y_edges, x_edges = (
        [*range(start, stop, step), stop]
        for start, stop, step in zip(whole.start, whole.stop, _box_shape(info), strict=True)
    )
    return [
        Box((z, y, x), (z_end, y_end, x_end))
        for z, z_end in pairwise(z_edges)
        for y, y_end in pairwise(y_edges)
        for x, x_end in pairwise(x_edges)
    ]


def _box_shape(info: VolumeInfo) -> Zyx:
    """Whole chunks, as many as READ_BYTES hold: along x first, as they lie in the file. Of a giant, a part."""
    most = READ_BYTES // np.dtype(info.dtype).itemsize
    box = [min(chunk, n) for chunk, n in zip(info.chunk, info.shape, strict=True)]
    for axis in (2, 1, 0):
        fitting = most // math.prod(box)
        if fitting > 1:
            box[axis] = min(box[axis] * fitting, info.shape[axis])
    while math.prod(box) > most:
        longest = next(axis for axis in (0, 1, 2) if box[axis] > 1)
        box[longest] = -(-box[longest] // 2)
    return zyx(box)


def _checked(region: RegionVoxels, info: VolumeInfo, dtype: np.dtype[Any]) -> NDArray[Any]:
    voxels = region.voxels
    if voxels.shape != region.box.shape or voxels.dtype.newbyteorder("=") != np.dtype(info.dtype):
        raise Mismatch(
            f"reading {region.box} gave {voxels.dtype} of shape {voxels.shape}, but the volume is said to be "
            f"{info.dtype}, and the box has {region.box.shape}; look at the source."
        )
    return np.ascontiguousarray(voxels, dtype)


def _write_box(descriptor: int, offset: int, shape: Zyx, box: Box, voxels: NDArray[Any]) -> None:
    """Writes in as few pieces as lie together in the file; nothing where all are zeros, which the file is already."""
    if not bits(voxels).any():
        return
    is_row_whole = voxels.shape[2] == shape[2]
    is_plane_whole = is_row_whole and voxels.shape[1] == shape[1]
    along = 0 if is_plane_whole else 1 if is_row_whole else 2
    for at in np.ndindex(voxels.shape[:along]):
        corner = (*(a + b for a, b in zip(box.start, at, strict=False)), *box.start[along:])
        place = int(np.ravel_multi_index(corner, shape))
        _write_all(descriptor, voxels[at].reshape(-1).view(np.uint8).data, offset + place * voxels.itemsize)


def _write_all(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


def bits(voxels: NDArray[Any]) -> NDArray[Any]:
    """The same memory as unsigned integers: -0.0 is not all zeros."""
    return voxels.view(f"u{voxels.dtype.itemsize}")


def measure(voxels: NDArray[Any]) -> Measured:
    dtype, flat = voxels.dtype, voxels.reshape(-1)
    step = _SLAB_BYTES // dtype.itemsize
    slabs = [flat[at : at + step] for at in range(0, flat.size, step)]
    found = voxel_statistics(slabs, dtype)
    is_whole = dtype.kind in "iu" or all(_is_whole(slab) for slab in slabs)
    is_single = dtype.itemsize < 8 or dtype.kind in "iu" or all(_is_single(slab) for slab in slabs)
    if found is None:
        return Measured(is_whole=is_whole, is_single=is_single)
    smallest, largest = _extremes(voxels, found)
    squares = found.standard_deviation**2 * found.voxels
    return Measured(found.voxels, found.mean, squares, smallest, largest, is_whole, is_single)


def _extremes(voxels: NDArray[Any], found: VoxelStatistics) -> tuple[float, float]:
    """Exact ones: the statistics are floats, which 64-bit labels do not fit into."""
    if voxels.dtype.kind in "iu":
        return int(voxels.min()), int(voxels.max())
    return found.minimum, found.maximum


def _is_whole(values: NDArray[Any]) -> bool:
    return bool((np.isfinite(values) & (np.trunc(values) == values)).all())


def _is_single(values: NDArray[Any]) -> bool:
    with np.errstate(over="ignore"):
        same = values.astype(np.float32).astype(np.float64) == values
    return bool((same | np.isnan(values)).all())
