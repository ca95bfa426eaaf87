"""Lengths as files state them, in nanometres."""

from __future__ import annotations

import math
from fractions import Fraction

NANOMETRES = {
    "pm": Fraction(1, 1000),
    "picometer": Fraction(1, 1000),
    "picometre": Fraction(1, 1000),
    "Å": Fraction(1, 10),  # U+00C5, and the angstrom sign U+212B below
    "\u212b": Fraction(1, 10),
    "A": Fraction(1, 10),
    "angstrom": Fraction(1, 10),
    "nm": Fraction(1),
    "nanometer": Fraction(1),
    "nanometre": Fraction(1),
    "µm": Fraction(1000),  # U+00B5, and U+03BC below
    "\u03bcm": Fraction(1000),
    "um": Fraction(1000),
    "micron": Fraction(1000),
    "micrometer": Fraction(1000),
    "micrometre": Fraction(1000),
    "mm": Fraction(10**6),
    "millimeter": Fraction(10**6),
    "millimetre": Fraction(10**6),
    "cm": Fraction(10**7),
    "centimeter": Fraction(10**7),
    "centimetre": Fraction(10**7),
    "m": Fraction(10**9),
    "meter": Fraction(10**9),
    "metre": Fraction(10**9),
}


MIN_NM, MAX_NM = Fraction(1, 10**6), Fraction(10**12)
"""What a voxel can measure: anything else is a slip or damage."""


def nanometres_in(unit: str) -> Fraction | None:
    """None if the unit is none of length that is known. Words are known in any case and in the plural."""
    return NANOMETRES.get(unit) or (NANOMETRES.get(unit.lower().removesuffix("s")) if len(unit) > 3 else None)


def to_nanometres(value: float | Fraction, unit: str) -> float | None:
    """The length, rounded once; None if the unit is none of length that is known, or the value no size of a voxel."""
    factor = nanometres_in(unit)
    if factor is None or not (isinstance(value, int | Fraction) or math.isfinite(value)):
        return None
    length = Fraction(value) * factor
    return float(length) if MIN_NM <= length <= MAX_NM else None
