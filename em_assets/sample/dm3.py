"""Writes Gatan DM3 files: a tree of typed tags as DigitalMicrograph writes it. What the tags say is in `sbfsem.py`.

Independent of `formats/dm.py`. Layout as in genuine files: three big-endian numbers (version, size, byte order of the
values), the root group, eight zero bytes. Names, counts and types are big endian, values little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 3
LITTLE_ENDIAN = 1
SIZE_IS_SHORT_BY = 20
"""DigitalMicrograph 2 and 3 write the file's size less 20 (seen in genuine files); other programs write 16."""
GROUP, DATA = 20, 21
STRUCT, ARRAY = 15, 20
INT16, INT32, UINT16, UINT32, FLOAT32, FLOAT64, BOOL, OCTET = 2, 3, 4, 5, 6, 7, 8, 10
FORMATS = {INT16: "h", INT32: "i", UINT16: "H", UINT32: "I", FLOAT32: "f", FLOAT64: "d", BOOL: "?", OCTET: "B"}


@dataclass(frozen=True, slots=True)
class Number:
    """One value of a simple type."""

    code: int
    value: float


@dataclass(frozen=True, slots=True)
class Struct:
    """Some values of one simple type: a colour, a rectangle."""

    code: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Array:
    """Many values, or many structs of `fields` values, as they lie in memory."""

    code: int
    data: npt.NDArray[Any]
    fields: int = 0


Node = Number | Struct | Array | str | bool | Mapping[str, "Node"] | list["Node"]
"""A mapping is a group with names (sorted when written, as DigitalMicrograph does), a list one without."""


def int16(value: int) -> Number:
    return Number(INT16, value)


def int32(value: int) -> Number:
    return Number(INT32, value)


def uint16(value: int) -> Number:
    return Number(UINT16, value)


def uint32(value: int) -> Number:
    return Number(UINT32, value)


def float32(value: float) -> Number:
    return Number(FLOAT32, value)


def float64(value: float) -> Number:
    return Number(FLOAT64, value)


def dm3_bytes(root: Mapping[str, Node]) -> bytes:
    """The whole file."""
    body = b"".join([*_group(root), bytes(8)])
    header_bytes = 12
    return struct.pack(">3i", VERSION, header_bytes + len(body) - SIZE_IS_SHORT_BY, LITTLE_ENDIAN) + body


def _group(group: Mapping[str, Node] | list[Node]) -> Iterator[bytes]:
    entries = _entries(group)
    yield struct.pack(">BBi", isinstance(group, Mapping), 0, len(entries))
    for name, node in entries:
        is_group = isinstance(node, Mapping | list)
        yield struct.pack(">Bh", GROUP if is_group else DATA, len(name)) + name.encode("latin-1")
        yield from _group(node) if isinstance(node, Mapping | list) else _data(node)


def _entries(group: Mapping[str, Node] | list[Node]) -> list[tuple[str, Node]]:
    if isinstance(group, Mapping):
        return sorted(group.items(), key=lambda entry: entry[0].lower())
    return [("", node) for node in group]


def _data(node: Number | Struct | Array | str | bool) -> Iterator[bytes]:  # noqa: FBT001  # a tag may hold one
    if isinstance(node, bool):
        node = Number(BOOL, node)
    elif isinstance(node, str):
        node = Array(UINT16, np.frombuffer(node.encode("utf-16-le"), "<u2"))
    kind = _kind(node)
    yield b"%%%%" + struct.pack(f">i{len(kind)}i", len(kind), *kind)
    if isinstance(node, Number):
        yield struct.pack("<" + FORMATS[node.code], node.value)
    elif isinstance(node, Struct):
        yield struct.pack(f"<{len(node.values)}{FORMATS[node.code]}", *node.values)
    else:
        yield node.data.tobytes()


def _kind(node: Number | Struct | Array) -> list[int]:
    """The type as the file has it. A struct is the lengths of its name and of each field's (0), and the fields."""
    if isinstance(node, Number):
        return [node.code]
    if isinstance(node, Struct):
        return [STRUCT, 0, len(node.values), *[0, node.code] * len(node.values)]
    if node.fields:
        return [ARRAY, STRUCT, 0, node.fields, *[0, node.code] * node.fields, node.data.size // node.fields]
    return [ARRAY, node.code, node.data.size]
