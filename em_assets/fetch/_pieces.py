"""Which bytes of a file are here and which requests bring the rest. No I/O."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SMALLEST_RANGE_BYTES = 8 * 2**20
"""Unless a caller wants smaller ones: less is not worth a request."""
NOTIFY_BYTES = 2**20


@dataclass(slots=True)
class Piece:
    """A range that one worker fetches."""

    start: int
    stop: int | None
    """Exclusive; None: the end, wherever it is."""
    reached: int


class Pieces:
    """Which bytes are here, which are wanted. Safe to use from many threads."""

    def __init__(self, done: Sequence[tuple[int, int]]) -> None:
        self._all = [Piece(start, stop, stop) for start, stop in done]
        self._todo: deque[Piece] = deque()
        self.changed = threading.Condition()
        self.received_bytes = 0
        self.rewinds = 0
        """How often bytes that were here began to come again, so that what was read of them counts no more."""

    def add(self, ranges: Sequence[tuple[int, int | None]]) -> None:
        with self.changed:
            fresh = [Piece(start, stop, start) for start, stop in ranges]
            self._todo += fresh
            self._all = sorted([*self._all, *fresh], key=lambda piece: piece.start)

    def take(self) -> Piece | None:
        """The next piece to fetch."""
        with self.changed:
            return self._todo.popleft() if self._todo else None

    @property
    def waiting(self) -> int:
        return len(self._todo)

    def keep_only(self, piece: Piece) -> None:
        """This piece brings everything, up to the end."""
        with self.changed:
            self._todo.clear()
            self._all = [piece]
            piece.stop = None

    def rewind(self, piece: Piece, offset: int) -> None:
        """Before a byte is written again."""
        if offset < piece.reached:
            with self.changed:
                piece.reached = offset
                self.rewinds += 1

    def advance(self, piece: Piece, size_bytes: int) -> None:
        with self.changed:
            before, piece.reached = piece.reached, piece.reached + size_bytes
            self.received_bytes += size_bytes
            # not for every block: whoever waits would keep the others from working
            if piece.reached == piece.stop or piece.reached // NOTIFY_BYTES != before // NOTIFY_BYTES:
                self.changed.notify_all()

    def here(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of what is here, joined, in order."""
        with self.changed:
            return tuple(self._joined())

    @property
    def front(self) -> int:
        """Everything before this byte is here. The caller holds `changed`."""
        first = next(self._joined(), (0, 0))
        return first[1] if first[0] == 0 else 0

    def _joined(self) -> Iterator[tuple[int, int]]:
        start = stop = 0
        for piece in self._all:
            if piece.start > stop:
                if stop > start:
                    yield start, stop
                start = piece.start
            stop = piece.reached
            if piece.stop is None or stop < piece.stop:
                if stop > start:
                    yield start, stop
                start = stop = piece.stop or stop
        if stop > start:
            yield start, stop


def missing(done: Sequence[tuple[int, int]], size_bytes: int) -> list[tuple[int, int]]:
    """The (start, stop) ranges between those that are here."""
    stops, starts = [0, *(stop for _, stop in done)], [*(start for start, _ in done), size_bytes]
    return [(stop, start) for stop, start in zip(stops, starts, strict=True) if stop < start]


def split(
    gaps: Sequence[tuple[int, int]], size_bytes: int, connections: int, range_bytes: int
) -> list[tuple[int, int | None]]:
    """The requests for what is missing of a file. A whole file in one goes without a range.

    The ranges are alike, so that all connections end together, and at most `range_bytes` long.
    """
    step = size_bytes
    if connections > 1 and size_bytes > range_bytes:
        rounds = -(-size_bytes // (range_bytes * connections))
        smallest = min(SMALLEST_RANGE_BYTES, range_bytes)
        step = min(range_bytes, max(smallest, -(-size_bytes // (rounds * connections))))
    if not gaps or (list(gaps) == [(0, size_bytes)] and step >= size_bytes):
        return [(0, None)]
    return [(a, min(a + step, stop)) for start, stop in gaps for a in range(start, stop, step)]
