"""Which byte ranges to ask for: few requests for many pieces of one object. Pure arithmetic, no I/O.

A request costs a round trip, a byte costs bandwidth: pieces that lie close together are asked for together, and the
bytes between them are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP_BYTES = 128 * 2**10
"""Read over gaps of at most this much: at 100 MB/s that costs a millisecond, a request costs ten or more."""
REQUEST_BYTES = 4 * 2**20
"""No request is larger, unless a single piece is: what a broken connection, or memory, has to pay for."""


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """One request and what it is for."""

    start: int
    stop: int
    """Exclusive."""
    pieces: tuple[int, ...]
    """Indices of the pieces that lie within, in order of their bytes."""

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


def plan_requests(
    pieces: Sequence[tuple[int, int]], *, gap_bytes: int = GAP_BYTES, max_bytes: int = REQUEST_BYTES
) -> list[RangeRequest]:
    """Requests that cover every (start, stop) piece, each piece whole in exactly one; disjoint, in order of bytes.

    A request is larger than `max_bytes` only where pieces that overlap cannot be parted. Empty pieces go along with
    their neighbours.
    """
    requests: list[RangeRequest] = []
    start = stop = 0
    members: list[int] = []
    for index in sorted(range(len(pieces)), key=pieces.__getitem__):
        first, last = pieces[index]
        overlaps = first < stop
        joins = first - stop <= gap_bytes and max(last, stop) - start <= max_bytes
        if members and not overlaps and not joins:
            requests.append(RangeRequest(start, stop, tuple(members)))
            members = []
        if not members:
            start, stop = first, last
        stop = max(stop, last)
        members.append(index)
    if members:
        requests.append(RangeRequest(start, stop, tuple(members)))
    return requests
