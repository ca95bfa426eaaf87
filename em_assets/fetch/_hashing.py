"""Digests of a file that is still arriving."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from em_assets.fetch._partial import Partial
from em_assets.fetch._pieces import Pieces
from em_assets.fetch.hosts import Interrupt

CRC32C = "crc32c"
DIGEST_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128, CRC32C: 8}
"""The checksums of publishers that can be compared, and how many hexadecimal digits they have."""
STEP_BYTES = 2**20
WAIT_SECONDS = 0.1
"""How often whoever waits for the end looks whether it is still wanted."""


class Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class Hasher:
    """Reads what has arrived, in order, close behind the front: from memory, while others wait for the network."""

    def __init__(self, partial: Partial, pieces: Pieces, algorithms: Sequence[str]) -> None:
        self._partial, self._pieces, self._algorithms = partial, pieces, algorithms
        self._hashes = self._new_hashes()
        self._hashed_bytes = 0
        self._rewinds = 0
        """Those of the pieces that the hashes know of."""
        self._step_bytes = STEP_BYTES
        self._error: BaseException | None = None
        self._is_stopped = False
        self._thread = threading.Thread(target=self._follow, name="em_assets-hash", daemon=True)
        self._thread.start()

    def finish(self, size_bytes: int, interrupt: Interrupt) -> dict[str, str]:
        """The digests of the whole file, which is here."""
        with self._pieces.changed:
            self._step_bytes = 1
            self._pieces.changed.notify_all()
            while self._error is None and (self._hashed_bytes < size_bytes or self._rewinds != self._pieces.rewinds):
                self._pieces.changed.wait(WAIT_SECONDS)
                interrupt.check()
            if self._error is not None:
                raise self._error
            return {name: found.hexdigest() for name, found in zip(self._algorithms, self._hashes, strict=True)}

    def stop(self) -> None:
        with self._pieces.changed:
            self._is_stopped = True
            self._pieces.changed.notify_all()
        self._thread.join()

    def _follow(self) -> None:
        buffer = memoryview(bytearray(STEP_BYTES))
        try:
            while (size_bytes := self._next_bytes()) > 0:
                block = buffer[: self._partial.read_into(buffer[:size_bytes], self._hashed_bytes)]
                for found in self._hashes:
                    found.update(block)
                with self._pieces.changed:
                    self._hashed_bytes += len(block)
                    self._pieces.changed.notify_all()
        except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
            self._error = error

    def _next_bytes(self) -> int:
        """How many can be hashed next; 0 when nobody wants to know any more."""
        with self._pieces.changed:
            while not self._is_stopped:
                if self._rewinds != self._pieces.rewinds:
                    self._hashes, self._hashed_bytes = self._new_hashes(), 0
                    self._rewinds = self._pieces.rewinds
                if (ready := self._pieces.front - self._hashed_bytes) >= self._step_bytes:
                    return min(ready, STEP_BYTES)
                self._pieces.changed.wait()
            return 0

    def _new_hashes(self) -> list[Hash]:
        return [_new_hash(name) for name in self._algorithms]


def checksum_of(file: Path, algorithm: str) -> str:
    """`algorithm:hex` of a file that is here."""
    digest = _new_hash(algorithm)
    with file.open("rb") as stream:
        while block := stream.read(STEP_BYTES):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"


def _new_hash(algorithm: str) -> Hash:
    return _Crc32c() if algorithm == CRC32C else hashlib.new(algorithm)


class _Crc32c:
    def __init__(self) -> None:
        self._crc = 0

    def update(self, data: bytes | memoryview, /) -> None:
        import google_crc32c

        self._crc = google_crc32c.extend(self._crc, bytes(data))

    def hexdigest(self) -> str:
        return f"{self._crc:08x}"
