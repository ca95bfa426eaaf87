"""What a request may cost: voxels, memory, reads at once, requests under way, connections, seconds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


MADE_BYTES_PER_VOXEL = 64
"""1 GiB for 256^3 voxels: enough to interpolate as many out of as many, or an eighth of them out of all of these."""
CONNECTIONS_PER_REQUEST = 4
LEAST_CONNECTIONS = 64
SPARE_CONNECTIONS = 64
HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 2**10
"""A request's head that is longer before it is complete is refused with 431."""
PIPELINED_REQUESTS = 64
"""Sent before the first one is answered; whoever sends more is cut off. Browsers send none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one service. Its memory is at most about `requests` blocks, as they are sent, `reads` times `made_bytes`, as
    they are made, and a piece of 4 MiB for each of the `connections`.
    """

    voxels: int = 256**3
    """Of one block."""
    reads: int = field(default_factory=lambda: max(2, os.cpu_count() or 1))
    """Blocks that are read and packed at once; each read uses further threads to decode."""
    requests: int = 64
    """For blocks: being read, waiting for that, or being sent. One more is refused with 503."""
    seconds: float = 60.0
    """How long a request may wait and be read, and how long a client may take to accept a mebibyte."""
    head_seconds: float = HEAD_SECONDS
    """How long a client may take to send a request's head, from its first byte; for the first one, from connecting."""
    retry_seconds: int = 1
    """When a refused client should come again."""

    @property
    def made_bytes(self) -> int:
        """The memory, temporary arrays included, in which one block may be resampled or its labels be found."""
        return MADE_BYTES_PER_VOXEL * self.voxels

    @property
    def connections(self) -> int:
        """Open at once, whatever they are for: volumes, blocks, an open viewer. One more is refused with 503."""
        return max(LEAST_CONNECTIONS, CONNECTIONS_PER_REQUEST * self.requests)

    @property
    def spare_connections(self) -> int:
        """Beyond these, to be told so; whoever comes when they are taken as well is cut off at once."""
        return SPARE_CONNECTIONS


class Busy(Exception):
    """No more than so much at once; the text says what. Trying again will help."""


class Gate:
    """Lets as much through as the limits say. Belongs to one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.inside = 0
        """Requests under way."""
        self.reading = 0
        self._threads = ThreadPoolExecutor(limits.reads, thread_name_prefix="em_assets-serve")

    def enter(self) -> Callable[[], None]:
        """Takes a place for a request; what comes back gives it up again. Raises Busy if all places are taken."""
        if self.inside >= self.limits.requests:
            raise Busy(f"{self.limits.requests} blocks are under way already, as many as this service takes at once.")
        self.inside += 1
        return self._leave

    def _leave(self) -> None:
        self.inside -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, done in a thread. Raises Busy if it is not there in time.

        A thread cannot be stopped: work that took too long still counts as a read until it ends.
        """

        def counted() -> T:
            loop.call_soon_threadsafe(self._count, 1)
            try:
                return work()
            finally:
                loop.call_soon_threadsafe(self._count, -1)

        loop = asyncio.get_running_loop()
        future = self._threads.submit(counted)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.seconds)
        except TimeoutError:
            if not future.cancelled() and future.done():
                raise  # the work's own
            raise Busy(
                f"the block was not read within {self.limits.seconds:g} s, as long as this service tries."
            ) from None

    def _count(self, change: int) -> None:
        self.reading += change
