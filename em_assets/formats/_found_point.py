"""A point as a file has it, before `points.py` puts axes and units in order."""

from __future__ import annotations

from dataclasses import dataclass

from em_assets.formats._rotations import Rotation

Xyz = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class FoundPoint:
    """In the file's own axes and units."""

    place: Xyz
    """In what the file calls x, y, z."""
    line: int
    """From 1; of files without lines, which point it is."""
    rotation: Rotation | None = None
    instance_id: int | None = None


def plus(place: Xyz, shift: Xyz, sign: float = 1.0) -> Xyz:
    return place[0] + sign * shift[0], place[1] + sign * shift[1], place[2] + sign * shift[2]
