"""Walking the directories of a TIFF that lies on a server, in few and small requests."""

from __future__ import annotations

import threading

from em_assets.formats._bytes import ByteSource, read_pieces, require_inside

FIRST_BYTES = 16 * 2**10
MOST_BYTES = 256 * 2**10
"""Directories that lie one after the other are read in steps that double up to this."""
AHEAD = 64
"""So many directories are asked for at once where they seem to lie at equal distances."""
AHEAD_BYTES = 64 * 2**10
"""Of each of them, at most."""
KEPT_PIECES = AHEAD + 2


class WalkBytes:
    """A `ByteSource` for the walk. What it expects decides only what is fetched early, never what is read."""

    def __init__(self, source: ByteSource, connections: int) -> None:
        self.name, self.size_bytes = source.name, source.size_bytes
        self._source = source
        self._connections = connections
        self._lock = threading.Lock()
        self._pieces: list[tuple[int, bytes | memoryview]] = []
        """(where it begins, bytes), the latest last."""
        self._step = FIRST_BYTES
        self._places: list[int] = []
        """Where the last three directories began."""
        self._near = (0, 0)
        """What was read around the last of them."""

    def mapped(self) -> None:
        return None

    def begin(self, at: int) -> None:
        """The walk goes on with the directory at `at`. At equal distances three times, the next ones are guessed."""
        with self._lock:
            self._places = [*self._places[-2:], at]
            stride = at - self._places[-2] if len(self._places) > 1 else 0
            is_regular = len(self._places) == 3 and self._places[1] - self._places[0] == stride
            if is_regular and abs(stride) > FIRST_BYTES and self._find(at, 2) is None:
                first, last = (place + stride for place in self._near)
                guesses = [(first + stride * k, last + stride * k) for k in range(AHEAD)]
                self._fetch([(a, min(b, a + AHEAD_BYTES)) for a, b in guesses if a >= 0 and b <= self.size_bytes])
            self._near = (at, at + 2)

    def read(self, start: int, length: int) -> bytes | memoryview:
        require_inside(self, start, length)
        with self._lock:
            if self._places and abs(start - self._places[-1]) + length < MOST_BYTES:
                self._near = (min(self._near[0], start), max(self._near[1], start + length))
            found = self._find(start, length)
            if found is None:
                follows = any(at <= start <= at + len(piece) for at, piece in self._pieces)
                self._step = min(2 * self._step, MOST_BYTES) if follows else FIRST_BYTES
                self._fetch([(start, min(start + max(length, self._step), self.size_bytes))])
                found = self._find(start, length)
                assert found is not None
            return found

    def _fetch(self, pieces: list[tuple[int, int]]) -> None:
        bodies = read_pieces(self._source, pieces, self._connections, gap_bytes=FIRST_BYTES)
        self._pieces += [(start, body) for (start, _), body in zip(pieces, bodies, strict=True)]
        while len(self._pieces) > KEPT_PIECES:
            del self._pieces[0]

    def _find(self, start: int, length: int) -> bytes | memoryview | None:
        for at, body in reversed(self._pieces):
            if at <= start and start + length <= at + len(body):
                return body[start - at : start - at + length]
        return None


def for_walking(source: ByteSource, connections: int) -> ByteSource:
    """The source itself, unless it is somewhere else."""
    return WalkBytes(source, connections) if source.mapped() is None else source
