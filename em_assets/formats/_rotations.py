"""Rotations of particles: Euler angles, in the conventions of those who write them, as 3 x 3 matrices.

Every matrix of this package turns a vector of the particle's reference, a column (x, y, z), into one of the tomogram;
rotations by a positive angle are anticlockwise, seen from the axis's tip. Its columns are where the reference's axes
come to lie.
"""

from __future__ import annotations

import math
from typing import Any

Rotation = tuple[float, float, float, float, float, float, float, float, float]
"""3 x 3, row by row, of (x, y, z) columns."""
IDENTITY: Rotation = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
ORTHONORMAL_WITHIN = 1e-3
"""Matrices in published files have as few as four digits."""


def about(axis: str, degrees: float) -> Rotation:
    """The rotation about `x`, `y` or `z`. Multiples of 90 degrees are exact."""
    cosine, sine = _cosine(degrees), _cosine(degrees - 90)
    if axis == "x":
        return (1.0, 0.0, 0.0, 0.0, cosine, -sine, 0.0, sine, cosine)
    if axis == "y":
        return (cosine, 0.0, sine, 0.0, 1.0, 0.0, -sine, 0.0, cosine)
    return (cosine, -sine, 0.0, sine, cosine, 0.0, 0.0, 0.0, 1.0)


def relion_rotation(rot: float, tilt: float, psi: float) -> Rotation:
    """Of RELION's angles in degrees, the inverse of Rz(rot) Ry(tilt) Rz(psi).

    The convention is ZYZ of the axes that turn along (Heymann et al. 2005, https://doi.org/10.1016/j.jsb.2005.06.001,
    which https://relion.readthedocs.io/en/latest/Reference/Conventions.html cites): rot, tilt and psi turn a particle
    into its reference, so what brings the reference into the tomogram is the inverse.
    """
    return inverse(product(about("z", rot), about("y", tilt), about("z", psi)))


def stopgap_rotation(phi: float, psi: float, the: float) -> Rotation:
    """Of STOPGAP's angles in degrees, Rz(psi) Rx(the) Rz(phi): phi about z first, then `the` about x, then psi about z.

    As the TOM and AV3 toolboxes have it, whose motive lists STOPGAP continues (https://github.com/wan-lab-vanderbilt/
    STOPGAP): ZXZ about axes that stay, of the reference, so nothing is to be inverted.
    """
    return product(about("z", psi), about("x", the), about("z", phi))


def slicer_rotation(x: float, y: float, z: float) -> Rotation:
    """Of IMOD's slicer angles in degrees, the inverse of Rx(x) Ry(y) Rz(z).

    "The Z, Y, and X rotation angles, which are applied in that order to rotate the volume before slicing"
    (https://bio3d.colorado.edu/imod/doc/3dmodHelp/slicer.html); where the slice's own axes lie in the volume is the
    inverse.
    """
    return inverse(product(about("x", x), about("y", y), about("z", z)))


def product(*factors: Rotation) -> Rotation:
    """From left to right: the last acts first."""
    result = factors[0]
    for factor in factors[1:]:
        cells = [sum(result[3 * i + k] * factor[3 * k + j] for k in range(3)) for i in range(3) for j in range(3)]
        result = rotation_of(cells)
    return result


def inverse(rotation: Rotation) -> Rotation:
    """The transpose."""
    return rotation_of([rotation[3 * j + i] for i in range(3) for j in range(3)])


def of_turned_axes(rotation: Rotation, axes: str) -> Rotation:
    """A rotation of vectors whose components are `axes` in that order (`zyx`), as one of (x, y, z)."""
    places = [axes.index(name) for name in "xyz"]
    return rotation_of([rotation[3 * i + j] for i in places for j in places])


def is_rotation(rotation: Rotation, within: float = ORTHONORMAL_WITHIN) -> bool:
    """Whether its rows are orthonormal and its determinant is 1, not -1, up to `within`."""
    a, b, c, d, e, f, g, h, i = rotation
    square = product(rotation, inverse(rotation))
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return all(abs(x - y) <= within for x, y in zip(square, IDENTITY, strict=True)) and abs(determinant - 1) <= within


def rotation_of(cells: list[Any]) -> Rotation:
    a, b, c, d, e, f, g, h, i = (float(cell) for cell in cells)
    return a, b, c, d, e, f, g, h, i


def _cosine(degrees: float) -> float:
    turned = math.remainder(degrees, 360.0)
    exact = {0.0: 1.0, 90.0: 0.0, -90.0: 0.0, 180.0: -1.0, -180.0: -1.0}
    return exact.get(turned, math.cos(math.radians(turned)))
