"""IMOD's binary models: the points of their contours, and slicer angles that were saved with them.

Version 1.2 (https://bio3d.colorado.edu/imod/doc/binspec.html): big-endian chunks of a name, a length and so many bytes;
only OBJT and CONT, whose lengths are part of them, have none. Coordinates are as stored: "x and y from 0 at the corner
of the first pixel, z from -0.5", which the MINX chunk, how an image was last loaded, does not change here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from em_assets.errors import Malformed

MAGIC = b"IMODV1.2"
HEADER_BYTES, OBJECT_BYTES, CONTOUR_BYTES, ANGLES_BYTES = 232, 176, 16, 28
MESH_BYTES = 16
MAX_CHUNKS = 5_000_000

Xyz = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ModelPoint:
    xyz: Xyz
    object_number: int
    """From 0, in the order of the file; -1 of a saved slice."""
    angles_xyz: Xyz | None = None
    """Of a saved slice, in degrees."""


def model_points(raw: bytes, where: str) -> Iterator[ModelPoint]:
    """The points of all contours of all objects, in the file's order, then the centres of saved slices with angles.

    Raises Malformed: no model, cut, or a chunk that is longer than what is left of the file.
    """
    if raw[:4] != MAGIC[:4]:
        raise Malformed(f"{where} begins {raw[:8]!r}, expected {MAGIC!r}; it is no binary IMOD model: get it again.")
    if raw[:8] != MAGIC:
        raise Malformed(f"{where} is of version {raw[4:8]!r}, expected b'V1.2'; save it by a newer IMOD.")
    saved: list[ModelPoint] = []
    objects = chunks = 0
    at = len(MAGIC) + HEADER_BYTES
    while (name := raw[at : at + 4]) != b"IEOF":
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise Malformed(f"{where} has more than {MAX_CHUNKS} chunks, which no model needs.")
        _require(raw, at, 8, "a chunk's name and length", where)
        at += 4
        if name == b"OBJT":
            _require(raw, at, OBJECT_BYTES, "an OBJT", where)
            objects, at = objects + 1, at + OBJECT_BYTES
        elif name == b"CONT":
            _require(raw, at, CONTOUR_BYTES, "a CONT", where)
            (count,) = struct.unpack_from(">i", raw, at)
            at += CONTOUR_BYTES
            _require(raw, at, 12 * count, f"a CONT of {count} points", where)
            for number in range(count):
                yield ModelPoint(struct.unpack_from(">3f", raw, at + 12 * number), objects - 1)
            at += 12 * count
        elif name == b"MESH":
            _require(raw, at, MESH_BYTES, "a MESH", where)
            vertices, indices = struct.unpack_from(">2i", raw, at)
            size = 12 * vertices + 4 * indices if min(vertices, indices) >= 0 else -1
            _require(raw, at + MESH_BYTES, size, f"a MESH of {vertices} vertices and {indices} indices", where)
            at += MESH_BYTES + size
        else:
            (size,) = struct.unpack_from(">i", raw, at)
            at += 4
            _require(raw, at, size, f"a chunk {name!r} of {size} bytes", where)
            if name == b"SLAN" and size >= ANGLES_BYTES:
                x, y, z, *centre = struct.unpack_from(">6f", raw, at + 4)
                saved.append(ModelPoint((centre[0], centre[1], centre[2]), -1, (x, y, z)))
            at += size
    yield from saved


def _require(raw: bytes, at: int, size: int, what: str, where: str) -> None:
    if size < 0 or at + size > len(raw):
        raise Malformed(
            f"{where}, byte {at}: {what} does not fit into the file's {len(raw)} bytes; it was cut or is damaged: get "
            "it again."
        )
