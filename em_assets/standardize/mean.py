"""What one voxel of a coarser level is: the mean of the real voxels among the 2x2x2 under it; of labels, the first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def mean_2x2x2(voxels: NDArray[Any], present: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """Each 2x2x2 block's mean, dtype kept; blocks start at the array's corner, odd ends average what is there.

    Integers are averaged in integers and rounded half to even, so the result is the exact mean's nearest integer for
    every dtype; floats are averaged in float64. With `present`, voxels that are False are left out, and a block
    without any gives 0.
    """
    voxels = _to_even(voxels)
    if present is None:
        return _mean_of_eight(voxels)
    return _mean_of_present(voxels, _to_even(present))


def every_second(labels: NDArray[Any]) -> NDArray[Any]:
    """Voxel `2i` along each axis: a label is never made up between two others."""
    return labels[::2, ::2, ::2]


def _to_even(array: NDArray[Any]) -> NDArray[Any]:
    """Repeats the last plane of odd axes: every voxel of those blocks then counts twice, and no mean changes."""
    odd = [(0, n % 2) for n in array.shape]
    return np.pad(array, odd, mode="edge") if any(after for _, after in odd) else array


def _mean_of_eight(voxels: NDArray[Any]) -> NDArray[Any]:
    if voxels.dtype.kind == "f":
        mean: NDArray[Any] = (_sum_of_eight(voxels, np.dtype(np.float64)) / 8).astype(voxels.dtype)
        return mean
    if voxels.dtype.itemsize == 8:  # no wider integer: split each value into eighths and remainder
        eighths, rest = _sum_of_eight(voxels >> 3, voxels.dtype), _sum_of_eight(voxels & 7, voxels.dtype)
        eighths += _eighth_half_even(rest, eighths + (rest >> 3))
        return eighths
    total = _sum_of_eight(voxels, _wider(voxels.dtype))
    return _eighth_half_even(total, total >> 3).astype(voxels.dtype)


def _eighth_half_even(total: NDArray[Any], quotient: NDArray[Any]) -> NDArray[Any]:
    """An eighth of the total, rounded; a half goes to where the mean, whose whole part is `quotient`, becomes even.

    With total = 8q + r: r + 3 stays below 8 for r <= 4, and the odd q adds the one that carries r = 4 over.
    """
    odd: NDArray[Any] = quotient & 1
    odd += 3
    odd += total
    odd >>= 3
    return odd


def _mean_of_present(voxels: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[Any]:
    kept = np.where(present, voxels, np.zeros((), voxels.dtype))
    count = np.maximum(_sum_of_eight(present.astype(np.uint8), np.dtype(np.uint8)), 1)
    if voxels.dtype.kind == "f":
        mean: NDArray[Any] = (_sum_of_eight(kept, np.dtype(np.float64)) / count).astype(voxels.dtype)
        return mean
    wide = np.dtype(np.uint64 if voxels.dtype.kind == "u" else np.int64)
    divisor = count.astype(wide)
    # value = divisor * whole + rest for each voxel apart, so that not even eight of 2**64 - 1 overflow
    each = divisor.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    whole, rest = np.divmod(kept.astype(wide), each)
    mean = _sum_of_eight(whole, wide)
    carried, rest = np.divmod(_sum_of_eight(rest, wide), divisor)
    mean += carried
    mean += (2 * rest > divisor) | ((2 * rest == divisor) & (mean & 1 == 1))
    rounded: NDArray[Any] = mean.astype(voxels.dtype)
    return rounded


def _sum_of_eight(voxels: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The sum of each 2x2x2 block. z first: whole planes are added and widened at the speed of memory."""
    planes = voxels[0::2].astype(dtype)
    planes += voxels[1::2]
    rows = planes[:, 0::2] + planes[:, 1::2]
    total: NDArray[Any] = rows[:, :, 0::2] + rows[:, :, 1::2]
    return total


def _wider(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"{dtype.kind}{dtype.itemsize * 2}")
