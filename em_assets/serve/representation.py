"""What HTTP (RFC 9110) says about one reply: its coding, its tag, and which part of it is asked for. No I/O.

Used for blocks (`block.py`) and for the objects of a volume (`pictures.py`).
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Coding = Literal["zstd", "gzip", "identity"]
CODINGS: tuple[Coding, ...] = ("zstd", "gzip", "identity")
"""In the order they are preferred where a client likes them equally."""
QUALITY = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)
ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
UNNAMED_IDENTITY = 0.0001
"""Identity is acceptable unless it is refused, but anything that is asked for by name comes first."""


def chosen_coding(accept_encoding: str | None) -> Coding | None:
    """The best of our codings that a client takes (12.5.3); None if it refuses them all, identity too.

    What `*` stands for is sent as it is: whoever names no coding may not know ours.
    """
    if accept_encoding is None:
        return "identity"
    named = _qualities(accept_encoding)
    others = named.get("*")

    def rank(coding: Coding) -> tuple[float, bool, int]:
        if coding in named:
            return named[coding], True, -CODINGS.index(coding)
        quality = others if others is not None else UNNAMED_IDENTITY if coding == "identity" else 0.0
        return quality, False, CODINGS.index(coding)

    best = max(CODINGS, key=rank)
    return best if rank(best)[0] > 0 else None


def _qualities(accept_encoding: str) -> dict[str, float]:
    """How much each named coding is liked, 0 to 1. What breaks the grammar is left out."""
    found = {}
    for item in accept_encoding.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        qualities = [QUALITY.fullmatch(parameter) for parameter in parameters]
        if name and len(parameters) <= 1 and all(qualities):
            found[name.removeprefix("x-")] = float(qualities[0][1]) if qualities and qualities[0] else 1.0
    return found


def encode(data: bytes, coding: Coding) -> bytes:
    """The same bytes for the same data, always: parts of them can be asked for later."""
    if coding == "gzip":
        return gzip.compress(data, compresslevel=1, mtime=0)
    if coding == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=1).compress(data)
    return data


def entity_tag(digest: str, coding: Coding) -> str:
    """A strong tag: another one for each coding of the same data (8.8.3.3)."""
    return f'"{digest}"' if coding == "identity" else f'"{digest}-{coding}"'


def has_tag(header: str | None, tag: str) -> bool:
    """Whether an If-None-Match names the tag (13.1.2: `W/` makes no difference)."""
    return header is not None and (header.strip() == "*" or tag in ENTITY_TAG.findall(header))


@dataclass(frozen=True, slots=True)
class Framing:
    """How a representation is answered with."""

    status: Literal[200, 206, 304, 416]
    part: range
    """Its bytes that are sent. Empty for 304 and 416."""
    headers: dict[str, str]


def framing(method: str, asked: Mapping[str, str], size_bytes: int, tag: str) -> Framing:
    """The reply to a conditional or partial request for what has this size and tag. Ranges are for GET alone (14.2)."""
    headers = {"accept-ranges": "bytes", "etag": tag, "cache-control": "no-cache"}
    if has_tag(asked.get("if-none-match"), tag):
        return Framing(304, range(0), headers)
    wanted = asked.get("range") if method == "GET" and asked.get("if-range", tag) == tag else None
    part = requested_range(wanted, size_bytes)
    if part is not None and not part:
        return Framing(416, range(0), headers | {"content-range": f"bytes */{size_bytes}"})
    if part is None:
        return Framing(200, range(size_bytes), headers | {"content-length": str(size_bytes)})
    headers |= {"content-range": f"bytes {part.start}-{part.stop - 1}/{size_bytes}", "content-length": str(len(part))}
    return Framing(206, part, headers)


def requested_range(header: str | None, size_bytes: int) -> range | None:
    """The bytes that a `Range` header asks for (14.1.2), None for the whole object.

    Empty if it cannot be satisfied. Several ranges, other units and nonsense are ignored, as the RFC allows.
    """
    unit, _, spec = (header or "").replace(" ", "").partition("=")
    first, dash, last = spec.partition("-")
    if unit.lower() != "bytes" or not dash or not (first + last).isdecimal() or not (first + last).isascii():
        return None
    if len(first) > 18 or len(last) > 18:  # no object is as large; and Python refuses to read very long numbers
        return None
    if not first:
        return range(max(0, size_bytes - int(last)), size_bytes)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size_bytes) if last else size_bytes)
