"""Unpacking one chunk that somebody else packed: to exactly the bytes it must have, and never more.

Each compression is undone in two ways that share no code, the second for the sampled voxels that are compared with
what is stored. What a packed chunk says of its own size is read and checked before a library sees it.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Compression = Literal["zstd", "gzip", "zlib", "blosc", "lz4", "bz2", "xz"]
Bytes = bytes | bytearray | memoryview
Room = NDArray[np.uint8]

BLOSC_HEADER_BYTES = 16
BLOSC_CODECS = ("blosclz", "lz4", "lz4hc", "zlib", "zstd")
XZ_MEMORY_BYTES = 256 * 2**20
"""What an xz stream may ask for to be unpacked; its strongest preset asks for 65 MiB."""


class BadChunkError(ValueError):
    """Not one whole packed chunk of the right size; the message says why, without the place."""


def decompress(kind: Compression | None, data: Bytes, room: Room) -> Bytes | Room:
    """The `len(room)` bytes that `data` holds, in `room` or not. Raises BadChunkError if it holds less or more."""
    if kind is None:
        if len(data) != len(room):
            raise BadChunkError(f"it has {len(data)} bytes, expected {len(room)}")
        return data
    if not len(data):
        raise BadChunkError(f"it is empty, expected {len(room)} bytes packed by {kind}")
    if kind in ("gzip", "zlib", "bz2", "xz"):
        return _streamed(kind, data, len(room))
    _require_size(kind, data, len(room))
    imagecodecs = _imagecodecs()
    decoders: dict[str, Callable[[], Any]] = {
        "zstd": lambda: imagecodecs.zstd_decode(data, out=room),
        "blosc": lambda: imagecodecs.blosc_decode(data, numthreads=1, out=room),
        "lz4": lambda: imagecodecs.lz4_decode(data, header=True, out=room),
    }
    try:
        size = len(decoders[kind]())
    except (RuntimeError, ValueError) as error:  # every imagecodecs error is a RuntimeError
        raise BadChunkError(f"it cannot be unpacked by {kind} to {len(room)} bytes ({error})") from None
    if size != len(room):
        raise BadChunkError(f"it unpacks to {size} bytes, expected {len(room)}")
    return room


def decompress_again(kind: Compression | None, data: Bytes, size: int) -> bytes:
    """The same bytes by other libraries, for a chunk that `decompress` took. Raises BadChunkError if they differ."""
    if kind is None:
        return bytes(data)
    if kind in ("gzip", "zlib"):  # some writers call one by the other's name
        kind = "gzip" if bytes(data[:2]) == b"\x1f\x8b" else "zlib"
    try:
        plain = _AGAIN[kind](bytes(data), size)
    except (RuntimeError, ValueError) as error:
        raise BadChunkError(f"one of two {kind} libraries cannot unpack it ({error})") from None
    if len(plain) != size:
        raise BadChunkError(f"one of two {kind} libraries unpacks it to {len(plain)} bytes, the other to {size}")
    return plain


def _imagecodecs() -> Any:
    """Its stubs know neither views nor arrays, which it takes."""
    import imagecodecs

    return imagecodecs


def _again_by_zstandard(data: bytes, size: int) -> bytes:
    import zstandard

    try:
        return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read(size)
    except zstandard.ZstdError as error:  # not a RuntimeError
        raise BadChunkError(str(error)) from None


def _again_by_numcodecs(data: bytes, size: int) -> bytes:
    from numcodecs.lz4 import decompress as decompress_lz4  # type: ignore[import-untyped]  # published without

    return bytes(decompress_lz4(data, bytearray(size)))


def _again_by_imagecodecs(name: str) -> Callable[[bytes, int], bytes]:
    def unpack(data: bytes, size: int) -> bytes:
        return bytes(getattr(_imagecodecs(), f"{name}_decode")(data, out=np.empty(size, np.uint8)))

    return unpack


_AGAIN: dict[Compression, Callable[[bytes, int], bytes]] = {
    "zstd": _again_by_zstandard,
    "lz4": _again_by_numcodecs,
    "blosc": _again_by_imagecodecs("blosc2"),
    "gzip": _again_by_imagecodecs("gzip"),
    "zlib": _again_by_imagecodecs("zlib"),
    "bz2": _again_by_imagecodecs("bz2"),
    "xz": _again_by_imagecodecs("lzma"),
}


def _require_size(kind: Compression, data: Bytes, size: int) -> None:
    """Compares the size that a packed chunk states of itself: libraries write, or read on, before they find out."""
    if kind == "zstd":
        return  # is unpacked into a room that it cannot leave, whatever it states
    if kind == "lz4":
        if len(data) < 4 or (stated := struct.unpack_from("<i", data)[0]) != size:
            raise BadChunkError(f"it states {stated if len(data) >= 4 else 'no'} bytes, expected {size}")
        return
    if len(data) < BLOSC_HEADER_BYTES:
        raise BadChunkError(f"it has {len(data)} bytes, which is less than a blosc header")
    unpacked, block, packed = struct.unpack_from("<III", data, 4)
    if packed != len(data):
        raise BadChunkError(f"it has {len(data)} bytes, but its blosc header states {packed}")
    if unpacked != size:
        raise BadChunkError(f"its blosc header states {unpacked} unpacked bytes, expected {size}")
    if size and not 0 < block <= size:
        raise BadChunkError(f"its blosc header states blocks of {block} bytes in {size}")


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Any, max_length: int, /) -> bytes: ...


def _streamed(kind: Compression, data: Bytes, size: int) -> bytes:
    """One whole gzip, zlib, bzip2 or xz stream with nothing after it."""
    unpackers: dict[str, Callable[[], _Unpacker]] = {
        "bz2": bz2.BZ2Decompressor,
        "xz": lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES),
    }
    unpacker = unpackers.get(kind, lambda: zlib.decompressobj(wbits=47))()  # 47: gzip or zlib, by its header
    try:
        plain = unpacker.decompress(data, size + 1)
        if len(plain) == size and not unpacker.eof:  # bz2 and xz may stop short of their end
            plain += unpacker.decompress(b"", 1)
    except (zlib.error, OSError, EOFError, lzma.LZMAError) as error:
        raise BadChunkError(f"it cannot be unpacked by {kind} ({error})") from None
    if len(plain) > size:
        raise BadChunkError(f"it unpacks to more than the expected {size} bytes")
    if not unpacker.eof:
        raise BadChunkError(f"it ends in the middle of its {kind} stream, after {len(plain)} of {size} unpacked bytes")
    if len(plain) != size:
        raise BadChunkError(f"it unpacks to {len(plain)} bytes, expected {size}")
    if unpacker.unused_data:
        raise BadChunkError(f"{len(unpacker.unused_data)} bytes follow its {kind} stream")
    return plain
