"""Unpacking gzip that somebody else made: exactly once, to a bounded size, with nothing left over."""

from __future__ import annotations

import zlib

GZIP_MAGIC = b"\x1f\x8b\x08"


class BadGzipError(ValueError):
    """Not one whole gzip member of at most the allowed size; the message says why, without the place."""


def gunzip(data: bytes | bytearray | memoryview, *, max_bytes: int) -> bytes:
    """The one gzip member in `data`, whole. Raises BadGzipError; never makes more than `max_bytes` + 1 bytes."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise BadGzipError(f"it is not gzip ({error})") from None
    if len(plain) > max_bytes:
        raise BadGzipError(f"it unpacks to more than {max_bytes} bytes")
    if not unpacker.eof:
        raise BadGzipError(f"it ends in the middle of its gzip stream, after {len(plain)} unpacked bytes")
    if unpacker.unused_data:
        raise BadGzipError(f"{len(unpacker.unused_data)} bytes follow its gzip stream")
    return plain
