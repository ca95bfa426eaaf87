"""The `transform` that COSEM (OpenOrganelle) puts on N5 and Zarr arrays: named axes, units, scale and translation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_assets.errors import Malformed
from em_assets.formats._pyramid import (
    Convention,
    Pyramid,
    PyramidLevel,
    axis_letters,
    convention_of,
    numbers,
    positive,
    usual_axes,
)
from em_assets.formats._stored_array import short


def cosem_transform(transform: Any, axes: int, where: str) -> Pyramid:
    """One array's. Raises Malformed or Unsupported naming the field."""
    return cosem_pyramid([("", transform)], usual_axes(axes), where)


def cosem_pyramid(transforms: Sequence[tuple[str, Any]], axes: str, where: str) -> Pyramid:
    """The levels (path, transform) of arrays whose axes are these letters.

    Values belong to the axes they are named with: `z, y, x` and `x, y, z` are both in use, also beside each other.
    """
    levels, units = [], set()
    for path, transform in transforms:
        here = f"{where}: the transform of {path}" if path else f"{where}: /transform"
        scale, translation, stated = _by_name(transform, axes, here)
        levels.append(PyramidLevel(path, scale, translation))
        units.add(stated)
    if len(units) > 1:
        raise Malformed(f"{where}: the levels' transforms have different units: {short(sorted(units, key=str))}.")
    # COSEM places centres; only a pyramid whose translations do not grow shows that its writer did not know that
    convention: Convention = "centre" if len(levels) == 1 else convention_of(axes, levels)
    return Pyramid(axes, units.pop(), tuple(levels), convention, where)


def _by_name(
    transform: Any, axes: str, where: str
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str | None, ...]]:
    """(scale, translation, units) in the order of `axes`."""
    if not isinstance(transform, dict) or not isinstance(names := transform.get("axes"), list):
        raise Malformed(f"{where} is {short(transform)}, expected axes, units, scale and translate.")
    letters = axis_letters([str(name) for name in names], f"{where}/axes")
    if sorted(letters) != sorted(axes):
        raise Malformed(f"{where}/axes is {short(names)}, but the array has the axes {', '.join(axes)}.")
    scale = positive(numbers(transform.get("scale"), len(letters), f"{where}/scale"), letters, f"{where}/scale")
    translation = numbers(transform.get("translate"), len(letters), f"{where}/translate")
    units = transform.get("units")
    if not isinstance(units, list) or len(units) != len(letters):
        units = [None] * len(letters)
    order = [letters.index(axis) for axis in axes]
    return (
        tuple(scale[a] for a in order),
        tuple(translation[a] for a in order),
        tuple(units[a] if isinstance(units[a], str) else None for a in order),
    )
