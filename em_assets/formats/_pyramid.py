"""Where the levels of a pyramid lie in space: axes, scales and translations as published, and what they mean.

Filled from OME-NGFF by `_ome_multiscales.py` and from N5 attributes by `n5.py`. Units end here: nanometres, (z, y, x).

A translation places the centre of a level's first voxel (OME-NGFF, COSEM) or its corner (others), and many pyramids
state none at all. Which of these holds shows in how the translations grow from level to level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

from em_assets.errors import Malformed, Unsupported
from em_assets.formats._stored_array import short
from em_assets.formats._units import nanometres_in
from em_assets.volume import VoxelSize

Convention = Literal["centre", "corner", "scale-only"]
"""What a translation places: a voxel's centre, its corner, or nothing (all levels then share one corner, at 0)."""
Floats = tuple[float, ...]
AXES = "tczyx"
SPACE = "zyx"
NOISE = 1e-3
"""Of a voxel: a translation that differs by less does not differ."""
ROUNDED = 1e-5
"""Of a quotient of scales: published ones carry noise (11.840000000000002) or were written with a few digits."""
MAX_NUMBER = 1e100


@dataclass(frozen=True, slots=True)
class PyramidLevel:
    """One level as its publisher describes it; one number per axis of the array, in the publisher's units."""

    path: str
    scale: Floats | None
    translation: Floats | None


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The levels of one volume, finest first."""

    axes: str
    """One letter of `tczyx` per axis of the array; "" where the publisher does not say."""
    units: tuple[str | None, ...]
    """Of each axis."""
    levels: tuple[PyramidLevel, ...]
    convention: Convention
    where: str
    """The document that says so, for messages."""

    def with_axes(self, axes: str) -> Pyramid:
        """The same for arrays whose axes are known otherwise."""
        return self if self.axes else replace(self, axes=axes, units=(None,) * len(axes))

    def number_of(self, dataset: str) -> int | None:
        """The level with this path or, if none has it, this number."""
        paths = [level.path for level in self.levels]
        if dataset in paths:
            return paths.index(dataset)
        is_number = dataset.isascii() and dataset.isdecimal() and len(dataset) <= 2 and int(dataset) < len(paths)
        return int(dataset) if is_number else None

    def scale_nm(self, level: PyramidLevel) -> VoxelSize | None:
        """(z, y, x), None unless size and unit of all three are stated."""
        return self._nanometres(level.scale)

    def translation_nm(self, level: PyramidLevel) -> VoxelSize | None:
        """(z, y, x) as published; what it places says `convention`."""
        return self._nanometres(level.translation)

    def corner_nm(self, level: PyramidLevel) -> VoxelSize:
        """(z, y, x) of the first voxel's outer corner; 0 where nothing places it."""
        scale, translation = self.scale_nm(level), self.translation_nm(level)
        if self.convention == "scale-only" or scale is None:
            return 0.0, 0.0, 0.0
        z, y, x = translation or (0.0, 0.0, 0.0)
        if self.convention == "corner":
            return z, y, x
        return z - scale[0] / 2, y - scale[1] / 2, x - scale[2] / 2

    def _nanometres(self, values: Floats | None) -> VoxelSize | None:
        found: list[float] = []
        for axis in SPACE:
            at = self.axes.find(axis)
            factor = nanometres_in(self.units[at] or "") if at >= 0 and values is not None else None
            if factor is None or values is None:
                return None
            found.append(float(Fraction(repr(values[at])) * factor))
        z, y, x = found
        return z, y, x


def axis_letters(names: Sequence[str], where: str) -> str:
    """One letter of `tczyx` per axis. Raises Malformed for names given twice, Unsupported for others."""
    known = {"time": "t", "channel": "c"}
    letters = [known.get(name.lower(), name.lower()) for name in names]
    if len(set(letters)) < len(letters):
        raise Malformed(f"{where} is {short(list(names))}, where a name is given twice.")
    for name, letter in zip(names, letters, strict=True):
        if letter not in tuple(AXES):
            raise Unsupported(f"{where} has the axis {short(name)}; accepted are {', '.join(AXES)}.")
    if "x" not in letters:
        raise Unsupported(f"{where} is {short(list(names))}, which has no x axis, so it is no image.")
    return "".join(letters)


def usual_axes(count: int) -> str:
    """Of an array whose axes nobody names: those of an image, x fastest."""
    return AXES[-count:]


def convention_of(axes: str, levels: Sequence[PyramidLevel]) -> Convention:
    """What the translations place, by how they grow from the first level to the others.

    Means of whole blocks shift a level's first centre by half the difference of the voxel sizes; a corner stays.
    Where there is only one level, a translation means what OME-NGFF defines it to: the centre.
    """
    first = levels[0]
    at = [number for number, axis in enumerate(axes) if axis in SPACE]
    placed = [level for level in levels if level.translation is not None and any(level.translation[a] for a in at)]
    if not placed or first.scale is None:
        return "scale-only"
    if len(levels) == 1:
        return "centre"
    zeros = (0.0,) * len(axes)
    start = first.translation or zeros
    for level in levels[1:]:
        for a in at:
            moved = (level.translation or zeros)[a] - start[a]
            if abs(moved) > NOISE * first.scale[a]:
                return "centre"
    return "corner"


def require_consistent(pyramid: Pyramid, shapes: Sequence[tuple[int, ...] | None]) -> None:
    """Raises Malformed naming the level whose shape does not follow from its scale and the first level's shape.

    Rounding down and up are both in use, some writers lose a last voxel, and factors differ from level to level: one
    voxel more or less than the exact quotient is sound. Levels that are absent are None.
    """
    first, base = pyramid.levels[0], shapes[0]
    for number, (level, shape) in enumerate(zip(pyramid.levels, shapes, strict=True)):
        if shape is None:
            continue
        where = f"{pyramid.where}: level {number} ({level.path})"
        if len(shape) != len(pyramid.axes):
            raise Malformed(
                f"{where} has {len(shape)} axes, expected {len(pyramid.axes)} ({', '.join(pyramid.axes)}); report it "
                "to the publisher."
            )
        for a, axis in enumerate(pyramid.axes):
            if base is None:
                continue
            scales = (first.scale[a], level.scale[a]) if first.scale and level.scale else None
            least, most = _expected(axis, base[a], scales)
            if not least <= shape[a] <= most:
                expected = f"{least}" if least == most else f"{least} to {most}"
                raise Malformed(
                    f"{where} has {shape[a]} voxels along {axis}, expected {expected} by its scale and the {base[a]} "
                    "of level 0; report it to the publisher."
                )


def _expected(axis: str, base: int, scales: tuple[float, float] | None) -> tuple[int, int]:
    """The least and most voxels of a level along an axis, by the first level's voxels and both scales."""
    if axis not in SPACE:
        return base, base
    if scales is None:
        return 1, base
    exact = base * scales[0] / scales[1]
    slack = 1 + ROUNDED * exact
    return max(1, math.ceil(exact - slack)), max(1, math.floor(exact + slack))


def numbers(value: Any, count: int, where: str) -> Floats:
    """A list of so many finite numbers. Raises Malformed."""
    sound = isinstance(value, list) and all(type(n) in (int, float) and abs(n) < MAX_NUMBER for n in value)
    if not sound or len(value) != count:
        raise Malformed(f"{where} is {short(value)}, expected {count} finite numbers.")
    return tuple(float(n) for n in value)


def positive(values: Floats, axes: str, where: str) -> Floats:
    """Raises Malformed if a voxel has no size along an axis of space."""
    for axis, value in zip(axes, values, strict=True):
        if axis in SPACE and value < 1 / MAX_NUMBER:
            raise Malformed(f"{where} is {list(values)}, expected positive sizes, but that along {axis} is {value:g}.")
    return values
