"""Voxels of another size, out of those of a level: images by linear interpolation, labels by the nearest voxel.

Both read the value at the middle of each wanted voxel. Along each axis the middles are counted in voxels of the level;
one that lies outside has no value. In float64, axis after axis (z, y, x), so that equal requests give equal bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from em_assets.blocks.geometry import Grid, Nm3
from em_assets.volume import Box, VoxelSize, Zyx, zyx

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOISE = 1e-6
"""Of a voxel: places that differ by less do not differ."""


@dataclass(frozen=True)
class Sampling:
    """Where a block's voxels lie in a level's."""

    at: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
    """Along each axis, the middles in voxels from the level's corner: 0.5 is the middle of its first."""

    @classmethod
    def of(cls, grid: Grid, start_nm: Nm3, voxel_size_nm: VoxelSize, shape: Zyx) -> Sampling:
        """Of a block of this shape and voxel size whose corner lies at `start_nm`, in a level's grid."""
        z, y, x = (
            (a - corner + (np.arange(n, dtype=np.float64) + 0.5) * size) / own
            for a, corner, n, size, own in zip(
                start_nm, grid.corner_nm, shape, voxel_size_nm, grid.voxel_size_nm, strict=True
            )
        )
        return cls((z, y, x))

    def inside(self, shape: Zyx) -> tuple[NDArray[np.bool_], ...]:
        """Along each axis, which middles lie in a level of this shape."""
        return tuple((at >= -NOISE) & (at <= n + NOISE) for at, n in zip(self.at, shape, strict=True))

    def reached(self, shape: Zyx) -> NDArray[np.bool_]:
        """(z, y, x), True where the middle lies in a level of this shape."""
        z, y, x = self.inside(shape)
        return z[:, None, None] & y[:, None] & x

    def box(self, shape: Zyx, *, is_nearest: bool) -> Box | None:
        """The voxels of a level of this shape that are needed; None where all middles lie outside."""
        starts, stops = [], []
        for at, inside, n in zip(self.at, self.inside(shape), shape, strict=True):
            if not inside.any():
                return None
            reach = 0.0 if is_nearest else 0.5
            starts.append(min(max(math.floor(float(at[inside][0]) - reach + NOISE), 0), n - 1))
            stops.append(min(max(math.floor(float(at[inside][-1]) + reach - NOISE), 0), n - 1) + 1)
        return Box(zyx(starts), zyx(stops))

    def nearest(self, voxels: NDArray[Any], box: Box) -> NDArray[Any]:
        """The voxel of `box` that holds each middle; for middles outside of it the nearest one."""
        places = [
            np.clip(np.floor(at + NOISE).astype(np.int64) - a, 0, b - a - 1)
            for at, a, b in zip(self.at, box.start, box.stop, strict=True)
        ]
        return np.ascontiguousarray(voxels[np.ix_(*places)])

    def linear(self, voxels: NDArray[Any], box: Box) -> NDArray[np.float64]:
        """Between the middles of neighbours; beyond the outermost middles theirs."""
        values = voxels.astype(np.float64)
        for axis, (low, weight) in enumerate(self._weights(box)):
            shape = [1, 1, 1]
            shape[axis] = -1
            share = weight.reshape(shape)
            high = np.minimum(low + 1, values.shape[axis] - 1)
            lower, upper = np.take(values, low, axis), np.take(values, high, axis)
            with np.errstate(invalid="ignore"):  # nothing times a NaN or infinity is not nothing
                values = np.where(share > 0, lower * (1 - share) + upper * share, lower)
        return values

    def all_of(self, valid: NDArray[np.bool_], box: Box) -> NDArray[np.bool_]:
        """Whether every voxel that `linear` gives some weight is real."""
        for axis, (low, weight) in enumerate(self._weights(box)):
            shape = [1, 1, 1]
            shape[axis] = -1
            share = weight.reshape(shape)
            high = np.minimum(low + 1, valid.shape[axis] - 1)
            valid = (np.take(valid, low, axis) | (share >= 1)) & (np.take(valid, high, axis) | (share <= 0))
        return valid

    def _weights(self, box: Box) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Along each axis, the lower neighbour of each middle within the box, and the share of the upper one."""
        found = []
        for at, a, b in zip(self.at, box.start, box.stop, strict=True):
            place = np.clip(at - 0.5 - a, 0.0, b - a - 1)
            whole = np.rint(place)
            place = np.where(np.abs(place - whole) < NOISE, whole, place)
            low = np.floor(place).astype(np.int64)
            found.append((low, place - low))
        return found


def rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """As the level's own type: integers to the nearest, halves to even."""
    return np.rint(values).astype(dtype) if dtype.kind in "iu" else values.astype(dtype)
