"""What the remote volumes of one process share: threads, connections, and the indices of shards."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from em_assets.blocks._plain_http import Connections
from em_assets.formats._zarr_shards import ShardTable

CONNECTIONS = 64
"""Requests at once: object stores take many. `Settings.connections_per_host` holds where it is set."""
INDEX_BYTES = 64 * 2**20
"""Of indices that are kept: 4 million chunks, 8 TB of voxels in chunks of 128^3."""
ROOM_BYTES = 2**20
"""What a request asks for at most, unless a chunk is larger."""


class IndexCache:
    """Indices of shards by address, at most so many bytes: those used last. Safe for use by several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._tables: OrderedDict[str, ShardTable] = OrderedDict()
        self._put_at: dict[str, float] = {}
        """On the monotonic clock."""
        self._lock = threading.Lock()
        self._being_read: dict[str, threading.Lock] = {}

    def get(self, url: str) -> ShardTable | None:
        with self._lock:
            table = self._tables.get(url)
            if table is not None:
                self._tables.move_to_end(url)
            return table

    def age_seconds(self, table: ShardTable) -> float:
        """Since it was put; infinite if it is not here any more."""
        with self._lock:
            if self._tables.get(table.url) is not table:
                return math.inf
            return time.monotonic() - self._put_at[table.url]

    def put(self, table: ShardTable) -> None:
        with self._lock:
            self._remove(table.url)
            self._tables[table.url] = table
            self._put_at[table.url] = time.monotonic()
            self._held_bytes += table.entries.nbytes
            while self._held_bytes > self._max_bytes:
                self._remove(next(iter(self._tables)))

    def drop(self, table: ShardTable) -> None:
        """Unless it was replaced already."""
        with self._lock:
            if self._tables.get(table.url) is table:
                self._remove(table.url)

    @contextlib.contextmanager
    def reading(self, url: str) -> Iterator[None]:
        """One at a time: who waited finds what the other has put."""
        with self._lock:
            turn = self._being_read.setdefault(url, threading.Lock())
        try:
            with turn:
                yield
        finally:
            with self._lock:
                self._being_read.pop(url, None)

    def _remove(self, url: str) -> None:
        table = self._tables.pop(url, None)
        self._put_at.pop(url, None)
        if table is not None:
            self._held_bytes -= table.entries.nbytes


class Threads:
    """For jobs that wait most of the time; started as they are needed. Daemons: Ctrl-C does not wait for them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = self._idle = 0

    def run(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._started < self._most:
                self._started += 1
                threading.Thread(target=self._work, name="em_assets-remote", daemon=True).start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            self._jobs.get()()
            with self._lock:
                self._idle += 1


class Rooms:
    """Memory for what is received, used again when nobody looks at it any more. Safe for use by several threads.

    Fresh pages cost more than the bytes: 600 kB took 0.25 ms of CPU time into a room used before, 0.75 into a new one.
    """

    def __init__(self, size_bytes: int, most: int) -> None:
        """At most so many rooms of this size are kept; what needs a larger one gets memory of its own."""
        self._size_bytes, self._most = size_bytes, most
        self._free: list[NDArray[np.uint8]] = []

    def take(self, size_bytes: int) -> memoryview:
        """Room for so many bytes. It is free again when this view, and every part and array made of it, is gone."""
        if size_bytes > self._size_bytes:
            return memoryview(bytearray(size_bytes))
        try:
            room = self._free.pop()  # the one used last: the most of it is in the processor's cache
        except IndexError:
            room = np.empty(self._size_bytes, np.uint8)
        lent = room[:size_bytes]
        weakref.finalize(lent, self._give_back, room).atexit = False
        return memoryview(lent)  # type: ignore[arg-type]  # an array is a buffer

    def _give_back(self, room: NDArray[np.uint8]) -> None:
        if len(self._free) < self._most:
            self._free.append(room)


class Process:
    """What the volumes of one process share."""

    def __init__(self) -> None:
        self.connections = Connections()
        self.threads = Threads(CONNECTIONS)
        self.indices = IndexCache(INDEX_BYTES)
        self.rooms = Rooms(ROOM_BYTES, CONNECTIONS)
        self.gates: dict[tuple[str, int], threading.BoundedSemaphore] = {}


_processes: dict[int, Process] = {}


def this_process() -> Process:
    """A forked child begins anew: its parent's threads do not exist there, and the sockets are the parent's."""
    pid = os.getpid()
    found = _processes.get(pid)
    if found is None:
        for other in [other for other in _processes if other != pid]:
            _processes.pop(other, None)
        found = _processes.setdefault(pid, Process())
    return found
