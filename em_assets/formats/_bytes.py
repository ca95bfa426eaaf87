"""The bytes of one file, wherever it lies: what the readers of file formats read from.

A local file is mapped, so a read costs no copy; a remote one is read by verified ranges, in blocks that are kept,
because headers are walked in small steps.
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from em_assets.errors import Malformed, Unavailable
from em_assets.fetch.client import Client
from em_assets.fetch.ranges import GAP_BYTES, plan_requests
from em_assets.fetch.replies import safe_url
from em_assets.store import Store

BLOCK_BYTES = 256 * 2**10
"""Of a remote file's headers, read at once."""
KEPT_BLOCKS = 64


class ByteSource(Protocol):
    """Random access to the bytes of one file. Safe for use by several threads."""

    name: str
    """As it may be shown: a path, or an address without user, password and query."""
    size_bytes: int

    def read(self, start: int, length: int) -> bytes | memoryview:
        """Exactly these bytes. Raises Malformed if the file ends before, Unavailable if they cannot be had."""

    def mapped(self) -> memoryview | None:
        """All bytes at once without reading them, None where that is not possible (a remote file)."""


class LocalBytes:
    """A file of this machine, mapped."""

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        try:
            mode = Path(path).stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe may wait for ever; a folder fails
                raise Unavailable(f"{path} is a pipe, socket or device, which is not read; name a file.")
            with Path(path).open("rb") as file:
                self.size_bytes = os.fstat(file.fileno()).st_size
                # an empty file cannot be mapped
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size_bytes else b""
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            shown = self.name.replace("\0", r"\0")
            reason = getattr(error, "strerror", None) or error
            raise Unavailable(f"{shown} could not be read ({reason}); correct the path.") from error
        self._view = memoryview(self._map)

    def read(self, start: int, length: int) -> memoryview:
        require_inside(self, start, length)
        return self._view[start : start + length]

    def mapped(self) -> memoryview:
        return self._view


class _RangedBytes:
    """A file that is read by ranges: small reads from blocks that are kept, large ones straight."""

    name: str
    size_bytes: int

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read(self, start: int, length: int) -> bytes:
        require_inside(self, start, length)
        if not length:
            return b""
        if length > BLOCK_BYTES:
            return self._get(start, start + length)
        first, last = start // BLOCK_BYTES, (start + length - 1) // BLOCK_BYTES
        joined = b"".join(self._block(number) for number in range(first, last + 1))
        return joined[start - first * BLOCK_BYTES :][:length]

    def mapped(self) -> None:
        return None

    def read_pieces(
        self, pieces: Sequence[tuple[int, int]], connections: int, gap_bytes: int = GAP_BYTES
    ) -> list[memoryview]:
        """Many (start, stop) pieces by few requests, at most `connections` at a time; nothing is kept."""
        for start, stop in pieces:
            require_inside(self, start, stop - start)
        requests = [request for request in plan_requests(pieces, gap_bytes=gap_bytes) if request.size_bytes]
        found = [memoryview(b"")] * len(pieces)
        with ThreadPoolExecutor(max(1, min(connections, len(requests)))) as pool:
            bodies = pool.map(lambda request: self._get(request.start, request.stop), requests)
            for request, body in zip(requests, bodies, strict=True):
                for number in request.pieces:
                    start, stop = pieces[number]
                    found[number] = memoryview(body)[start - request.start : stop - request.start]
        return found

    def _block(self, number: int) -> bytes:
        with self._lock:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return self._blocks[number]
        start = number * BLOCK_BYTES
        block = self._get(start, min(start + BLOCK_BYTES, self.size_bytes))
        with self._lock:
            self._blocks[number] = block
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return block

    def _get(self, start: int, stop: int) -> bytes:
        raise NotImplementedError


class RemoteBytes(_RangedBytes):
    """An object behind an address."""

    def __init__(self, url: str, client: Client, size_bytes: int | None = None) -> None:
        super().__init__()
        self.name = safe_url(url)
        self.url = url
        self._client = client
        self._etag: str | None = None
        if size_bytes is None:
            first = client.get_range(url, 0, 1)
            if first.object_bytes is None:
                raise Malformed(f"{self.name}: the server does not say how large it is; download it whole first.")
            size_bytes, self._etag = first.object_bytes, first.etag
        self.size_bytes = size_bytes

    @property
    def etag(self) -> str | None:
        """Of the version that all is read of, where the server names it."""
        return self._etag

    def _get(self, start: int, stop: int) -> bytes:
        reply = self._client.get_range(self.url, start, stop, expect_etag=self._etag)
        self._etag = self._etag or reply.etag
        return bytes(reply.body)


class StoredBytes(_RangedBytes):
    """An object of a store that is not on this machine."""

    def __init__(self, store: Store, path: str, size_bytes: int) -> None:
        super().__init__()
        self.name, self.size_bytes = store.uri(path), size_bytes
        self._store, self._path = store, path

    def _get(self, start: int, stop: int) -> bytes:
        return self._store.read_range(self._path, start, stop - start)


def read_pieces(
    source: ByteSource, pieces: Sequence[tuple[int, int]], connections: int, gap_bytes: int = GAP_BYTES
) -> list[bytes | memoryview]:
    """Many (start, stop) pieces of a file; what lies close together on a server is asked for together."""
    if isinstance(source, _RangedBytes):
        return list(source.read_pieces(pieces, connections, gap_bytes))
    return [source.read(start, stop - start) for start, stop in pieces]


def require_inside(source: ByteSource, start: int, length: int) -> None:
    """Raises Malformed if the file ends before."""
    if start < 0 or length < 0 or start + length > source.size_bytes:
        raise Malformed(
            f"{source.name} ends at byte {source.size_bytes}, but its own headers place {length} bytes at {start}; "
            "it was cut or is damaged: get it again."
        )
