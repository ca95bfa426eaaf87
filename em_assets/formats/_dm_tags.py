"""The container of Gatan DM3 and DM4 files: a tree of tags, read strictly and within limits.

Which image a file is about and what its tags mean is in `dm.py`. Layout: a header (version, size, byte order of the
data), the root group, eight zero bytes. Structure is big endian always, data as the header says. DM4 has 8-byte
numbers where DM3 has 4-byte ones, and says of every entry how long it is. Arrays are never copied: a place is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from em_assets.errors import Malformed
from em_assets.formats._bytes import ByteSource
from em_assets.formats.opening import looks_like
from em_assets.formats.reader import Scalar

MAX_DEPTH = 64
"""Real files have 12."""
MAX_TAGS = 500_000
MAX_NUMBERS_OF_A_TYPE = 1024
"""Of a struct with 500 fields; real ones have 4."""
MAX_TEXT_BYTES = 2**20
MAX_SHOWN_VALUES = 64
"""A longer array is described by its place."""
MISSING_BYTES_ACCEPTED = 4
"""Genuine files' headers count 4 bytes too few (DigitalMicrograph), third parties' 4 too many; both are whole."""
MAX_SHOWN_CHARACTERS = 200
END_MARK = bytes(8)
WINDOW_BYTES = 64 * 2**10

GROUP, DATA = 20, 21
STRUCT, STRING, ARRAY = 15, 18, 20
CHARACTER = "c"
SIMPLE = {2: "h", 3: "i", 4: "H", 5: "I", 6: "f", 7: "d", 8: "?", 9: "b", 10: "B", 11: "q", 12: "Q"}
"""Type codes as `struct` writes them."""
NAMES = {
    "h": "int16",
    "i": "int32",
    "H": "uint16",
    "I": "uint32",
    "f": "float32",
    "d": "float64",
    "?": "bool",
    "b": "int8",
    "B": "uint8",
    "q": "int64",
    "Q": "uint64",
    CHARACTER: "char",
}

Number = int | float | bool


@dataclass(frozen=True, slots=True)
class Kind:
    """The type of a value: one simple type, or a struct of several."""

    fields: str
    """As `struct` writes them, without byte order."""
    is_struct: bool

    @property
    def size_bytes(self) -> int:
        return struct.calcsize("=" + self.fields)

    def __str__(self) -> str:
        names = ", ".join(NAMES[f] for f in self.fields)
        return f"({names})" if self.is_struct else names


@dataclass(frozen=True, slots=True)
class Array:
    """Where an array or a string lies."""

    kind: Kind
    count: int
    start: int
    """In the file."""

    @property
    def size_bytes(self) -> int:
        return self.count * self.kind.size_bytes


@dataclass(slots=True)
class Group:
    """Entries in file order. One without a name has its index for a name."""

    entries: list[tuple[str, Node]] = field(default_factory=list)

    def get(self, *names: str) -> Node | None:
        """What lies at this path below the group; the first where a name is given twice."""
        node: Node | None = self
        for name in names:
            if not isinstance(node, Group):
                return None
            node = next((child for key, child in node.entries if key == name), None)
        return node


Node = Group | Array | Number | tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class DmTags:
    """The tag tree of one file."""

    source: ByteSource
    version: int
    order: Literal["<", ">"]
    """Of the data, as numpy and `struct` write it: `<` or `>`."""
    root: Group

    def number(self, group: Group, *names: str) -> Number | None:
        """A simple value; None where there is none."""
        node = group.get(*names)
        return node if isinstance(node, int | float) else None

    def text(self, group: Group, *names: str) -> str | None:
        """A text; None where there is none."""
        node = group.get(*names)
        return self._text(node) if isinstance(node, Array) else None

    def leaves(self) -> Iterator[tuple[str, Scalar]]:
        """Every value with its path, in file order. Structs, numeric arrays and odd text are described in words."""
        yield from self._leaves(self.root, "", pixels_follow=False)

    def _leaves(self, group: Group, path: str, *, pixels_follow: bool) -> Iterator[tuple[str, Scalar]]:
        for name, node in group.entries:
            here = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
            if isinstance(node, Group):
                yield from self._leaves(node, here, pixels_follow=name == "ImageData")
            elif isinstance(node, Array):
                yield here, _place(node) if pixels_follow and name == "Data" else self._shown(node)
            elif isinstance(node, tuple):
                yield here, _listed(node)
            else:
                yield here, node

    def _shown(self, array: Array) -> str:
        text = self._text(array)
        if text is not None:
            return text
        if array.count > MAX_SHOWN_VALUES or array.kind.fields == CHARACTER:
            return _place(array)
        items = struct.iter_unpack(self.order + array.kind.fields, self.source.read(array.start, array.size_bytes))
        shown = ", ".join(_listed(item) if array.kind.is_struct else str(item[0]) for item in items)
        return f"{array.count} x {array.kind}: {shown}"

    def _text(self, array: Array) -> str | None:
        """DigitalMicrograph stores text as uint16 arrays. None for numbers: lone surrogates, control characters."""
        if array.kind.is_struct or array.kind.fields not in ("H", CHARACTER) or array.size_bytes > MAX_TEXT_BYTES:
            return None
        raw = bytes(self.source.read(array.start, array.size_bytes))
        codec = "utf-8" if array.kind.fields == CHARACTER else {"<": "utf-16-le", ">": "utf-16-be"}[self.order]
        try:
            text = raw.decode(codec)
        except UnicodeDecodeError:
            return None
        return None if any(c < " " and c not in "\t\n\r" for c in text) else text


def read_tags(source: ByteSource) -> DmTags:
    """The tag tree. Raises Malformed if the file is no DM3 or DM4, is cut, or breaks its own structure or a limit."""
    head = bytes(source.read(0, min(64, source.size_bytes)))
    version = int.from_bytes(head[:4], "big") if len(head) >= 4 else 0
    if version not in (3, 4):
        raise Malformed(
            f"{source.name} is {looks_like(head, source.size_bytes)}, expected a DM3 or DM4 file; get it again."
        )
    parser = _Parser(source, version)
    order = parser.header()
    return DmTags(source, version, order, parser.root(order))


def shown(text: str) -> str:
    """A text from a file, as a message may show it."""
    printable = "".join(c if c.isprintable() else "?" for c in text[:MAX_SHOWN_CHARACTERS])
    return printable + ("..." if len(text) > MAX_SHOWN_CHARACTERS else "")


def _listed(values: tuple[Number, ...]) -> str:
    return "(" + ", ".join(map(str, values)) + ")"


def _place(array: Array) -> str:
    return f"{array.count} x {array.kind} at byte {array.start}"


class _Parser:
    """Walks the file once. `word` is what counts and lengths are: 4 bytes in DM3, 8 in DM4."""

    def __init__(self, source: ByteSource, version: int) -> None:
        self.source = source
        self.version = version
        self.at = 0
        self.tags = 0
        self.names: list[str] = []
        """Of the groups and the entry that is being read."""
        self.order: Literal["<", ">"] = "<"
        self._word_bytes = 4 if version == 3 else 8
        # A group entry without a name or children: its type, name length, (length,) flags, count.
        self._smallest_entry_bytes = 9 if version == 3 else 21
        view = source.mapped()
        self._window: bytes | memoryview = b"" if view is None else view
        self._window_start = 0

    def header(self) -> Literal["<", ">"]:
        """The byte order of the data. Raises Malformed if the file is shorter than the header says."""
        self.at = 4
        size_bytes = self.word()
        order = self.unsigned(4)
        whole = size_bytes + (16 if self.version == 3 else 24)
        if whole > self.source.size_bytes + MISSING_BYTES_ACCEPTED:
            raise Malformed(
                f"{self.source.name} ends at byte {self.source.size_bytes}, but its header says that it has {whole}; "
                "it was cut or is damaged: get it again."
            )
        if order not in (0, 1):
            raise self.broken(f"the byte order is {order}, expected 0 (big endian) or 1 (little endian)")
        return "<" if order else ">"

    def root(self, order: Literal["<", ">"]) -> Group:
        self.order = order
        root = self.group()
        if self.take(len(END_MARK)) != END_MARK:
            raise self.broken("the tags do not end with eight zero bytes")
        return root

    def group(self) -> Group:
        if len(self.names) > MAX_DEPTH:
            raise self.broken(f"groups are nested more than {MAX_DEPTH} deep, which exceeds the limit")
        self.take(2)  # sorted, open: how DigitalMicrograph shows the group
        count = self.word()
        room = (self.source.size_bytes - self.at) // self._smallest_entry_bytes
        if count > room:
            raise self.broken(f"a group claims {count} entries, but the rest of the file has room for {room}")
        group = Group()
        for index in range(count):
            group.entries.append(self.entry(index))
        return group

    def entry(self, index: int) -> tuple[str, Node]:
        self.tags += 1
        if self.tags > MAX_TAGS:
            raise self.broken(f"there are more than {MAX_TAGS} tags, which exceeds the limit")
        kind = self.unsigned(1)
        if kind not in (GROUP, DATA):
            raise self.broken(f"an entry's type is {kind}, expected {GROUP} (group) or {DATA} (value)")
        raw = bytes(self.take(self.unsigned(2)))
        name = _name(raw) if raw else str(index)
        self.names.append(name)
        stop = self.at + 8 + self.word() if self.version == 4 else None
        node = self.group() if kind == GROUP else self.value()
        if stop is not None and self.at != stop:
            raise self.broken(f"the tag ends at byte {self.at}, but its own length says {stop}")
        self.names.pop()
        return name, node

    def value(self) -> Node:
        if self.take(4) != b"%%%%":
            raise self.broken("a value does not begin with %%%%")
        length = self.word()
        if not 1 <= length <= MAX_NUMBERS_OF_A_TYPE:
            raise self.broken(f"a type of {length} numbers exceeds the limit of {MAX_NUMBERS_OF_A_TYPE}")
        letter = "I" if self.version == 3 else "Q"
        numbers = struct.unpack(f">{length}{letter}", self.take(length * self._word_bytes))
        kind, count = self.kind_and_count(numbers)
        if count is not None:
            array = Array(kind, count, self.at)
            self.skip(array.size_bytes)
            return array
        values = struct.unpack(self.order + kind.fields, self.take(kind.size_bytes))
        return tuple(values) if kind.is_struct else values[0]

    def kind_and_count(self, numbers: tuple[int, ...]) -> tuple[Kind, int | None]:
        """What a value's type numbers say; the count is None unless it is an array or a string."""
        if numbers[0] == STRING and len(numbers) == 2:
            return Kind(CHARACTER, is_struct=False), numbers[1]
        if numbers[0] == ARRAY and len(numbers) > 2:
            return self.kind(numbers[1:-1]), numbers[-1]
        return self.kind(numbers), None

    def kind(self, numbers: tuple[int, ...]) -> Kind:
        if len(numbers) == 1 and numbers[0] in SIMPLE:
            return Kind(SIMPLE[numbers[0]], is_struct=False)
        # A struct: the length of its name, the number of fields, then of each the length of its name and its type.
        # Names are never stored, so their lengths are 0.
        if numbers[0] == STRUCT and len(numbers) > 3 and len(numbers) == 3 + 2 * numbers[2] and not numbers[1]:
            lengths, codes = numbers[3::2], numbers[4::2]
            if not any(lengths) and all(code in SIMPLE for code in codes):
                return Kind("".join(SIMPLE[code] for code in codes), is_struct=True)
        raise self.broken(f"a value has the unknown type {' '.join(map(str, numbers[:8]))}")

    def word(self) -> int:
        return self.unsigned(self._word_bytes)

    def unsigned(self, size_bytes: int) -> int:
        return int.from_bytes(self.take(size_bytes), "big")

    def take(self, length: int) -> bytes | memoryview:
        start = self.at
        self.skip(length)
        offset = start - self._window_start
        if offset < 0 or offset + length > len(self._window):
            self._window_start, offset = start, 0
            self._window = self.source.read(start, min(max(length, WINDOW_BYTES), self.source.size_bytes - start))
        return self._window[offset : offset + length]

    def skip(self, length: int) -> None:
        if self.at + length > self.source.size_bytes:
            raise Malformed(
                f"{self.source.name} ends at byte {self.source.size_bytes}, but {self.place()} needs {length} bytes at "
                f"{self.at}; it was cut or is damaged: get it again."
            )
        self.at += length

    def place(self) -> str:
        if not self.names:
            return "its structure"
        return "its tag " + shown("/" + "/".join(self.names))

    def broken(self, what: str) -> Malformed:
        return Malformed(
            f"{self.source.name}, byte {self.at}: in {self.place()} {what}; the file is damaged: get it again."
        )


def _name(raw: bytes) -> str:
    """DigitalMicrograph 2 writes names in Latin-1, 3 in UTF-8; the one that is not UTF-8 is the other."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
