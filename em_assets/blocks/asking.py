"""What is asked of a volume: shapes, places and options, checked before anything is read.

Every request that makes no sense is refused here with a Mismatch of one sentence that names the volume.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from em_assets.blocks.geometry import Grid, Nm3, nm3
from em_assets.errors import Mismatch
from em_assets.volume import Box, VoxelSize, Zyx, zyx

if TYPE_CHECKING:
    from em_assets.blocks.volume import Level, Volume

Pad = Literal["constant", "edge", "reflect"]
MissingPolicy = Literal["raise", "mask", "fill"]
Normalize = Literal["range", "standard", "percentile"] | tuple[float, float]
Shape = int | Sequence[int]
NORMALIZES = (None, "range", "standard", "percentile")
PADS = (None, "constant", "edge", "reflect")
MISSING_POLICIES = ("raise", "mask", "fill")
MOST_NM = 1e15
"""A thousand kilometres: places and sizes beyond are mistakes, and would overflow."""
SAME_PLACE = 1e-6
"""Of a voxel: places that differ by less do not differ."""
SAME_SIZE = 1e-6
"""Voxel sizes that differ by less, relative, are the same."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `Volume.read` says of each."""

    pad: Pad | None = None
    fill: float = 0
    missing: MissingPolicy = "raise"
    dtype: np.dtype[Any] | None = None
    normalize: Normalize | None = None
    labels: Volume | None = None

    @classmethod
    def of(
        cls,
        volume: Volume,
        *,
        pad: Pad | None,
        fill: float,
        missing: MissingPolicy,
        dtype: Any,
        normalize: Normalize | None,
        labels: str | Volume | None,
    ) -> Self:
        for name, value, known in (("pad", pad, PADS), ("missing", missing, MISSING_POLICIES)):
            if value not in known:
                raise Mismatch(f"{volume.name}: {name} is {value!r}, expected one of {', '.join(map(repr, known))}.")
        if not (normalize in NORMALIZES if isinstance(normalize, str) or normalize is None else _is_pair(normalize)):
            raise Mismatch(
                f"{volume.name}: normalize is {normalize!r}, expected 'range', 'standard', 'percentile' or (low, high)."
            )
        if normalize is not None and volume.content == "labels":
            raise Mismatch(f"{volume.name} holds labels, which have no grey values to normalize; leave normalize out.")
        if isinstance(labels, str):
            from em_assets.blocks.opening import open as open_volume

            labels = open_volume(labels)
        if labels is not None and labels.dtype.kind not in "biu":
            raise Mismatch(f"{labels.name} is {labels.dtype}, so it holds no labels; name a volume that does.")
        made = np.dtype(np.float32) if normalize else volume.dtype
        wanted = None if dtype is None else _dtype(volume, dtype, made)
        _require_held(volume, wanted or made, fill)
        return cls(pad, fill, missing, wanted, normalize, labels)


def shape_of(volume: Volume, shape: Shape) -> Zyx:
    """One number stands for all three."""
    try:
        found = zyx(list(shape)) if isinstance(shape, Iterable) else (operator.index(shape),) * 3
    except (TypeError, ValueError):
        found = (0, 0, 0)
    if min(found) < 1 or isinstance(shape, bool):
        raise Mismatch(f"{volume.name}: the shape is {shape}, expected three whole numbers (z, y, x) of at least 1.")
    return found


def size_of(volume: Volume, value: float | Sequence[float] | None) -> VoxelSize | None:
    """A voxel size; one number stands for all three."""
    if value is None:
        return None
    try:
        size = nm3(tuple(value) if isinstance(value, Iterable) else float(value))
    except (TypeError, ValueError):
        size = (0.0, 0.0, 0.0)
    if not all(0 < nm <= MOST_NM for nm in size):
        raise Mismatch(
            f"{volume.name}: the voxel size is {value}, expected one or three positive numbers in nanometres (z, y, x)."
        )
    return size


def place_of(volume: Volume, value: Sequence[float]) -> Nm3:
    try:
        place = nm3(tuple(value))
    except (TypeError, ValueError):
        place = (math.nan,) * 3
    if not all(abs(nm) <= MOST_NM for nm in place):
        raise Mismatch(f"{volume.name}: center_nm is {value}, expected three finite numbers (z, y, x).")
    return place


def level_of(volume: Volume, number: int) -> Level:
    try:
        number = operator.index(number)
    except TypeError:
        raise Mismatch(f"{volume.name}: the level is {number!r}, expected a whole number.") from None
    if not 0 <= number < len(volume.levels):
        raise Mismatch(f"{volume.name} has the levels 0 to {len(volume.levels) - 1}, not {number}; choose one of them.")
    return volume.levels[number]


def choose_level(volume: Volume, level: int | None, size: VoxelSize | None, *, is_placed: bool) -> Level:
    """The level that is asked for, or that whose voxels are nearest in size: by the ratios' logarithms."""
    if size is None:
        return level_of(volume, level or 0)
    if level is not None:
        raise Mismatch(f"{volume.name}: level {level} and a voxel size are asked for; give one of them.")
    if not is_placed:
        raise Mismatch(
            f"{volume.name}: a start counts voxels of a level, so give level= with it; voxel_size_nm= goes with "
            "center_nm=."
        )
    return min(volume.levels, key=lambda one: _distance(one.grid.voxel_size_nm, size))


def coarsest_within(levels: Sequence[Level], size: VoxelSize) -> Level:
    """The coarsest level that is not coarser than `size` along any axis; the finest if all are."""
    found = [
        one
        for one in levels
        if all(a <= b * (1 + SAME_SIZE) for a, b in zip(one.grid.voxel_size_nm, size, strict=True))
    ]
    return found[-1] if found else levels[0]


def level_of_size(levels: Sequence[Level], size: VoxelSize) -> Level | None:
    """The level of exactly this voxel size."""
    return next(
        (
            one
            for one in levels
            if all(math.isclose(a, b, rel_tol=SAME_SIZE) for a, b in zip(one.grid.voxel_size_nm, size, strict=True))
        ),
        None,
    )


def is_on_grid(grid: Grid, center_nm: Nm3, shape: Zyx) -> bool:
    """Whether a box of this shape around a place has its corners at corners of voxels."""
    starts = [at - n / 2 for at, n in zip(grid.voxels_at(center_nm), shape, strict=True)]
    return all(abs(start - round(start)) < SAME_PLACE for start in starts)


def box_of(
    volume: Volume, start: Sequence[int] | None, center_nm: Sequence[float] | None, shape: Zyx, grid: Grid
) -> Box:
    if (start is None) == (center_nm is None):
        raise Mismatch(f"{volume.name}: give either start (voxels) or center_nm, not both or none.")
    if center_nm is not None:
        return Box.from_shape(shape, at=grid.start_around(place_of(volume, center_nm), shape))
    try:
        at = zyx(list(start))  # type: ignore[arg-type]  # one of them is given
    except (TypeError, ValueError):
        raise Mismatch(f"{volume.name}: the start is {start}, expected three whole numbers (z, y, x).") from None
    return Box.from_shape(shape, at=at)


def leaves(volume: Volume, box: Box, level: int) -> Mismatch:
    """The error for a box that is not within its level."""
    shape = volume.levels[level].grid.shape
    fitting = zyx([min(a, b) for a, b in zip(box.shape, shape, strict=True)])
    hint = f"shape={fitting}" if fitting != box.shape else "another start"
    return Mismatch(
        f"{volume.name}: the box {box} leaves level {level}, which has {shape} voxels (z, y, x); ask for {hint}, or "
        "say what lies outside: pad='constant', 'edge' or 'reflect'."
    )


def _is_pair(values: object) -> bool:
    return isinstance(values, tuple | list) and len(values) == 2 and all(isinstance(value, Real) for value in values)


def _require_held(volume: Volume, dtype: np.dtype[Any], fill: float) -> None:
    """Whether a block's type has this value: numpy would wrap it around, cut it, or make it infinite."""
    if not isinstance(fill, Real):
        raise Mismatch(f"{volume.name}: fill is {fill!r}, expected a number.")
    value = float(fill)
    if dtype.kind == "f":
        is_held = not math.isfinite(value) or abs(value) <= float(np.finfo(dtype).max)
    elif dtype.kind == "b":
        is_held = value in (0, 1)
    else:
        limits = np.iinfo(dtype)
        is_held = math.isfinite(value) and limits.min <= fill <= limits.max and value.is_integer()
    if not is_held:
        raise Mismatch(f"{volume.name}: {dtype} does not hold fill={value:g}; give a value it holds.")


def _dtype(volume: Volume, asked: Any, found: np.dtype[Any]) -> np.dtype[Any]:
    wanted: np.dtype[Any]
    try:
        wanted = np.dtype(asked)
    except TypeError:
        raise Mismatch(f"{volume.name}: the dtype is {asked!r}, expected one such as 'float32'.") from None
    if wanted.kind != "f" and not (wanted.kind in "biu" and np.can_cast(found, wanted, "safe")):
        raise Mismatch(f"{volume.name} is {found}, which {wanted} does not hold; ask for a type that does.")
    return wanted.newbyteorder("<")


def _distance(a: VoxelSize, b: VoxelSize) -> float:
    return sum(abs(math.log(p / q)) for p, q in zip(a, b, strict=True))
