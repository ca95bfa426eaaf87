"""MRC files that somebody packed whole, by gzip or bzip2 (`.mrc.gz`, `.map.bz2`): their bytes at random access.

Neither can be read in the middle, so the file is unpacked once, to a temporary file without a name in the cache folder
(EM_ASSETS_CACHE), which the system drops when the reader is done with it or its process ends, however it ends. The MRC
header is unpacked first: it says how many bytes the file has, and not one more is written. Packed files of other
formats do not say so at their beginning, and are not read.

A file of this machine is unpacked when it is opened, so that damage is found at once; one behind an address when its
first voxel is read, so that its header costs no more than its beginning.
"""

from __future__ import annotations

import bz2
import mmap
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterator
from typing import IO, Literal, Protocol

from em_assets.errors import Malformed, Unavailable
from em_assets.formats._bytes import ByteSource, require_inside
from em_assets.formats._mrc_header import HEADER_BYTES, looks_like_mrc, size_by_header
from em_assets.settings import Settings

Packing = Literal["gzip", "bzip2"]
MAGIC: dict[Packing, bytes] = {"gzip": b"\x1f\x8b\x08", "bzip2": b"BZh"}
"""As much of them as no MRC file begins with: two bytes could be its number of columns."""
FOLDER = "unpacked"
"""Below the cache folder."""
HEAD_BYTES = 256 * 2**10
"""Kept in memory: headers of a file that is not unpacked yet."""
PIECE_BYTES = 2**20
"""Read, and unpacked, at once."""
BOMB_RATIO = 1000
"""Real voxels do not shrink to a thousandth."""


def packing_of(head: bytes) -> Packing | None:
    """How a file that begins so is packed."""
    return next((name for name, magic in MAGIC.items() if head.startswith(magic)), None)


def unpacked_mrc(source: ByteSource, settings: Settings) -> PackedBytes | None:
    """The MRC file that is packed in this one; None if it is not packed, or something else is.

    Raises Malformed, naming what was met: a stream that is cut or damaged, too little or too much in it, bytes after
    it, a header that cannot be; Unavailable if there is no room for it.
    """
    packing = packing_of(bytes(source.read(0, min(4, source.size_bytes))))
    if packing is None:
        return None
    head = b"".join(_Stream(source, packing).pieces(HEAD_BYTES))
    return PackedBytes(source, packing, head, settings) if looks_like_mrc(head) else None


class PackedBytes:
    """A `ByteSource` of what is unpacked."""

    def __init__(self, source: ByteSource, packing: Packing, head: bytes, settings: Settings) -> None:
        self.name = source.name
        self.size_bytes = size_by_header(head[:HEADER_BYTES], source.name)
        if self.size_bytes > BOMB_RATIO * source.size_bytes and self.size_bytes > settings.max_bytes:
            raise Malformed(
                f"{self.name} claims to unpack to {self.size_bytes} bytes from {source.size_bytes}, more than "
                f"{BOMB_RATIO} times as much, which is beyond the limit; EM_ASSETS_MAX_BYTES is {settings.max_bytes}."
            )
        self._source, self._packing = source, packing
        self._head = head[: self.size_bytes]
        self._folder = settings.cache_folder() / FOLDER
        self._lock = threading.Lock()
        self._view: memoryview | None = None
        if source.mapped() is not None:
            self._unpacked()

    def read(self, start: int, length: int) -> bytes | memoryview:
        require_inside(self, start, length)
        view = self._view
        if view is None and start + length <= len(self._head):
            return self._head[start : start + length]
        return (view or self._unpacked())[start : start + length]

    def mapped(self) -> memoryview:
        return self._unpacked()

    def _unpacked(self) -> memoryview:
        with self._lock:
            if self._view is None:
                self._view = self._unpack()
            return self._view

    def _unpack(self) -> memoryview:
        """If it fails nothing is left on disk."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            free_bytes = shutil.disk_usage(self._folder).free
            if free_bytes < self.size_bytes:
                raise Unavailable(
                    f"{self.name} unpacks to {self.size_bytes} bytes, but {self._folder} has {free_bytes} left; set "
                    "EM_ASSETS_CACHE to a folder with more room."
                )
            with tempfile.TemporaryFile(dir=self._folder) as file:
                self._write(file)
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise Unavailable(
                f"{self.name} could not be unpacked to {self._folder} ({error.strerror or error}); set EM_ASSETS_CACHE "
                "to a folder that can be written."
            ) from error

    def _write(self, file: IO[bytes]) -> None:
        """Exactly as many bytes as the header describes. Raises Malformed if the stream has fewer or more."""
        stream = _Stream(self._source, self._packing, self.size_bytes)
        for piece in stream.pieces(self.size_bytes):
            file.write(piece)
        if stream.unpacked_bytes < self.size_bytes:
            raise Malformed(
                f"{self.name} unpacks to {stream.unpacked_bytes} bytes, but its MRC header describes "
                f"{self.size_bytes}; it was cut before it was packed: get it again."
            )
        if next(stream.pieces(1), b""):
            raise Malformed(
                f"{self.name} unpacks to more than the {self.size_bytes} bytes that its MRC header describes; it is "
                "damaged or made to fill the disk: get it again."
            )
        file.flush()


class _Member(Protocol):
    """One stream of several that may follow each other, as `gzip a b` and parallel packers write them."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _GzipMember:
    """zlib's decompressor with bz2's way of being asked."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._is_full = False

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes out of what was given: neither of bytes that wait nor of zlib's own memory."""
        return not self._member.unconsumed_tail and not self._is_full

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        piece = self._member.decompress(self._member.unconsumed_tail + data, max_length)
        self._is_full = len(piece) == max_length
        return piece


class _Stream:
    """Unpacks a file from its beginning, in pieces; all that is in it, whoever asks for how much."""

    def __init__(self, source: ByteSource, packing: Packing, expected_bytes: int | None = None) -> None:
        self._source, self._packing, self._expected_bytes = source, packing, expected_bytes
        self._at = 0
        self._member = self._next_member()
        self.unpacked_bytes = 0

    def pieces(self, size_bytes: int) -> Iterator[bytes]:
        """The next bytes, together at most so many; fewer where all has come.

        Raises Malformed where the file ends in the middle of a stream, is damaged, or has something after it.
        """
        while size_bytes > 0 and (piece := self._piece(min(size_bytes, PIECE_BYTES))):
            size_bytes -= len(piece)
            self.unpacked_bytes += len(piece)
            yield piece

    def _piece(self, most: int) -> bytes:
        """Empty only at the end."""
        data = b""
        while True:
            if self._member.eof:
                data = self._member.unused_data + self._more()
                if not data:
                    return b""
                self._require_member(data)
                self._member = self._next_member()
            elif self._member.needs_input:
                data = self._more()
                if not data:
                    raise self._cut()
            try:
                piece = self._member.decompress(data, most)
            except (zlib.error, OSError, EOFError, ValueError) as error:
                raise Malformed(
                    f"{self._source.name}: its {self._packing} stream is damaged after {self.unpacked_bytes} unpacked "
                    f"bytes ({error}); get it again."
                ) from None
            data = b""
            if piece:
                return piece

    def _more(self) -> bytes:
        length = min(PIECE_BYTES, self._source.size_bytes - self._at)
        self._at += length
        return bytes(self._source.read(self._at - length, length)) if length else b""

    def _next_member(self) -> _Member:
        return _GzipMember() if self._packing == "gzip" else bz2.BZ2Decompressor()

    def _require_member(self, data: bytes) -> None:
        if not data.startswith(MAGIC[self._packing]):
            trailing = len(data) + self._source.size_bytes - self._at
            raise Malformed(
                f"{self._source.name}: {trailing} bytes follow its {self._packing} stream (they begin "
                f"{data[:8].hex(' ')}), expected none; it is damaged or more than one file: get it again."
            )

    def _cut(self) -> Malformed:
        expected = (
            "" if self._expected_bytes is None else f" of the {self._expected_bytes} that its MRC header describes"
        )
        return Malformed(
            f"{self._source.name}: its {self._packing} stream ends in the middle, after {self.unpacked_bytes} unpacked "
            f"bytes{expected}; it was cut: get it again."
        )
