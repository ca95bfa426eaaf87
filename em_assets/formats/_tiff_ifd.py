"""The skeleton of a TIFF file: its header and the chain of its IFDs (image file directories) with their entries.

TIFF 6.0, section 2, and BigTIFF. Every count, offset and size is checked against the file before it is used; what an
entry means is `_tiff_pages.py`, how it is shown `_tiff_tags.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed
from em_assets.formats._bytes import ByteSource
from em_assets.formats._tiff_remote import WalkBytes
from em_assets.formats._tiff_tags import TYPE_BYTES, tag_name

MAX_IFDS = 2**16
"""The largest published stacks have about 50,000 slices."""
MAX_ENTRIES = 4096
MAX_TEXT_BYTES = 16 * 2**20
INTEGER_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}


@dataclass(frozen=True)
class Form:
    """What the header says: byte order, and how wide counts and offsets are."""

    order: str
    """`<` or `>`."""
    is_big: bool
    first_at: int
    """Where the first IFD lies."""

    @cached_property
    def entry(self) -> struct.Struct:
        return struct.Struct(self.order + ("HHQ8s" if self.is_big else "HHI4s"))

    @cached_property
    def entry_count(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.is_big else "H"))

    @cached_property
    def offset(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.is_big else "I"))


class Entry(NamedTuple):
    tag: int
    kind: int
    """TIFF's number of the values' type, one of TYPE_BYTES."""
    length: int
    """How many values."""
    at: int
    """Where in the file the values lie; within the file."""
    size_bytes: int
    field: bytes
    """The values themselves where they fit, else where they lie, as it stands in the file."""


@dataclass(frozen=True, slots=True)
class Ifd:
    """One image file directory: a page, or something smaller beside it."""

    source: ByteSource
    form: Form
    number: int
    """In the chain, from 0."""
    at: int
    entries: dict[int, Entry]

    @property
    def where(self) -> str:
        return f"{self.source.name}, page {self.number}"

    def raw(self, tag: int) -> bytes | memoryview:
        entry = self.entries[tag]
        if entry.size_bytes <= len(entry.field):
            return entry.field[: entry.size_bytes]
        return self.source.read(entry.at, entry.size_bytes)

    def integers(self, tag: int) -> NDArray[np.int64] | None:
        """The values of a tag, None without it. Raises Malformed if they are none or no whole numbers below 2^63."""
        entry = self.entries.get(tag)
        if entry is None:
            return None
        self._require_whole_numbers(entry)
        values = np.frombuffer(self.raw(tag), self.form.order + INTEGER_TYPES[entry.kind]).astype(np.int64)
        if entry.kind in (16, 18) and values.min() < 0:
            raise Malformed(f"{self.where}: {tag_name(tag)} holds a number of 2^63 or more; it is damaged.")
        return values

    def integer(self, tag: int, default: int | None = None) -> int:
        """The single value of a tag. Raises Malformed without one, unless there is a default, or with several."""
        entry = self.entries.get(tag)
        if entry is None:
            if default is None:
                raise Malformed(f"{self.where} has no {tag_name(tag)}, which every image needs; it is damaged.")
            return default
        self._require_whole_numbers(entry)
        if entry.length > 1:
            raise Malformed(f"{self.where}: {tag_name(tag)} has {entry.length} values, expected one; it is damaged.")
        return int.from_bytes(self.raw(tag), "little" if self.form.order == "<" else "big")

    def _require_whole_numbers(self, entry: Entry) -> None:
        if entry.kind not in INTEGER_TYPES or not entry.length:
            raise Malformed(
                f"{self.where}: {tag_name(entry.tag)} has {entry.length} values of type {entry.kind}, expected whole "
                "numbers; it is damaged: get it again."
            )

    def text(self, tag: int) -> str:
        """Of a text tag, "" without it. Raises Malformed above 16 MiB."""
        entry = self.entries.get(tag)
        if entry is None:
            return ""
        if entry.size_bytes > MAX_TEXT_BYTES:
            raise Malformed(
                f"{self.where}: {tag_name(tag)} has {entry.size_bytes} bytes, expected at most {MAX_TEXT_BYTES}."
            )
        return decoded(self.raw(tag))

    def rational(self, tag: int) -> tuple[int, int] | None:
        """(numerator, denominator), None without it or where it is of another type."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind != 5 or entry.length != 1:
            return None
        top, bottom = struct.unpack(self.form.order + "II", self.raw(tag))
        return top, bottom


class IfdChain:
    """Walks the IFDs, strictly: the chain must end, stay within the file and never come back."""

    def __init__(self, source: ByteSource, form: Form) -> None:
        self._source = source
        self._form = form
        self.expected: str | None = None
        """Who says how many pages there must be, in words; for the error."""

    def __iter__(self) -> Iterator[Ifd]:
        at, seen, taken = self._form.first_at, dict[int, int](), 0
        while at:
            if at in seen:
                raise self._broken(len(seen), f"it leads from page {len(seen) - 1} back to page {seen[at]}")
            if len(seen) >= MAX_IFDS:
                raise self._broken(len(seen), f"it goes on after {MAX_IFDS} pages, the most that are read")
            ifd, following = self.read(at, len(seen))
            seen[at] = ifd.number
            taken += len(ifd.entries) * self._form.entry.size
            if taken > self._source.size_bytes:  # honest directories do not overlap
                raise self._broken(len(seen), "its pages' directories overlap")
            yield ifd
            at = following

    def read(self, at: int, number: int) -> tuple[Ifd, int]:
        """The IFD at a place, and where the next one lies, 0 after the last."""
        source, form = self._source, self._form
        if isinstance(source, WalkBytes):
            source.begin(at)
        body_at = at + form.entry_count.size
        if at < 8 or body_at > source.size_bytes:
            raise self._broken(number, f"page {number} lies at byte {at}, outside the file")
        (count,) = form.entry_count.unpack(source.read(at, form.entry_count.size))
        end = body_at + count * form.entry.size
        if not 0 < count <= MAX_ENTRIES or end + form.offset.size > source.size_bytes:
            raise self._broken(number, f"page {number} at byte {at} has {count} tags, which cannot be")
        body = source.read(body_at, end - body_at + form.offset.size)
        ifd = Ifd(source, form, number, at, self._entries(body[: end - body_at], body_at, number))
        (following,) = form.offset.unpack(body[end - body_at :])
        return ifd, following

    def _entries(self, body: bytes | memoryview, body_at: int, number: int) -> dict[int, Entry]:
        entries: dict[int, Entry] = {}
        entry, offset = self._form.entry, self._form.offset
        size_of_file, where = self._source.size_bytes, f"{self._source.name}, page {number}"
        for place, (tag, kind, count, value) in enumerate(entry.iter_unpack(body)):
            if kind not in TYPE_BYTES:
                raise Malformed(
                    f"{where}: tag {tag_name(tag)} has the unknown type {kind}; it is damaged: get it again."
                )
            size = count * TYPE_BYTES[kind]
            at = body_at + (place + 1) * entry.size - offset.size if size <= offset.size else offset.unpack(value)[0]
            if at + size > size_of_file:
                raise Malformed(
                    f"{where}: tag {tag_name(tag)} claims {count} values, {size} bytes at offset {at}, but the file "
                    f"has {size_of_file} bytes; it was cut or is damaged: get it again."
                )
            if tag in entries:
                raise Malformed(f"{where}: tag {tag_name(tag)} is there twice; it is damaged.")
            entries[tag] = Entry(tag, kind, count, at, size, value)
        return entries

    def _broken(self, found: int, what: str) -> Malformed:
        expected = f", expected {self.expected}" if self.expected else ""
        return Malformed(
            f"{self._source.name}: its page structure is broken: {what} ({found} pages found{expected}; the file has "
            f"{self._source.size_bytes} bytes); get it again."
        )


def read_header(source: ByteSource) -> Form:
    """Raises Malformed if this is no TIFF, saying what it looks like."""
    from em_assets.formats.opening import looks_like

    head = bytes(source.read(0, min(64, source.size_bytes)))
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        raise Malformed(f"{source.name} is not a TIFF: it is {looks_like(head, source.size_bytes)}; get it again.")
    (version,) = struct.unpack_from(order + "H", head, 2)
    if version == 42:
        return Form(order, is_big=False, first_at=struct.unpack_from(order + "I", head, 4)[0])
    if version == 43 and len(head) >= 16 and struct.unpack_from(order + "HH", head, 4) == (8, 0):
        return Form(order, is_big=True, first_at=struct.unpack_from(order + "Q", head, 8)[0])
    raise Malformed(
        f"{source.name} is not a TIFF: its header is {head[:8].hex(' ')}, which is neither version 42 nor BigTIFF with "
        "8-byte offsets; get it again."
    )


def decoded(raw: bytes | memoryview) -> str:
    """Text of a tag: UTF-8, or Latin-1, as the older writers meant it; up to the first NUL."""
    body = bytes(raw).partition(b"\0")[0]
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("latin-1")
