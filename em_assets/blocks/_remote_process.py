"""What the remote volumes of one process share: threads, connections, indices of shards, chunks that were decoded."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.blocks._plain_http import Connections
from em_assets.fetch.streams import Version
from em_assets.formats._recent import Recent
from em_assets.formats._zarr_shards import ShardTable

CONNECTIONS = 64
"""Requests at once: object stores take many. `Settings.connections_per_host` holds where it is set."""
INDEX_BYTES = 64 * 2**20
"""Of indices that are kept: 4 million chunks, 8 TB of voxels in chunks of 128^3."""
ROOM_BYTES = 2**20
"""What a request asks for at most, unless a chunk is larger."""
BESIDES_BYTES = 1200
"""What a chunk that is kept takes besides its voxels: its address, its version and the objects that hold them. Many
publishers have chunks of less."""
JUDGED_AFTER = 1000
"""Chunks, whether it is of use to keep them."""
USEFUL_SHARE = 1 / 12
"""Of them must have been there: less than the eighth that is kept at least, so that this can be reached again."""


@dataclass(slots=True, eq=False)
class _Seen:
    table: ShardTable
    seen_at: float
    """On the monotonic clock."""


class IndexCache:
    """Indices of shards by address, at most so many bytes: those used last. Safe for use by several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._held: Recent[str, _Seen] = Recent(max_bytes)
        self._lock = threading.Lock()
        self._being_read: dict[str, threading.Lock] = {}

    def get(self, url: str) -> ShardTable | None:
        seen = self._held.get(url)
        return None if seen is None else seen.table

    def age_seconds(self, table: ShardTable) -> float:
        """Since its shard was last seen to be the one that it is of; infinite if it is not here any more."""
        seen = self._held.get(table.url)
        return math.inf if seen is None or seen.table is not table else time.monotonic() - seen.seen_at

    def confirm(self, table: ShardTable) -> None:
        """Its shard was seen again."""
        seen = self._held.get(table.url)
        if seen is not None and seen.table is table:
            seen.seen_at = time.monotonic()

    def put(self, table: ShardTable) -> None:
        self._held.put(table.url, _Seen(table, time.monotonic()), table.entries.nbytes)

    def drop(self, table: ShardTable) -> None:
        """Unless it was replaced already."""
        seen = self._held.get(table.url)
        if seen is not None and seen.table is table:
            self._held.drop(table.url, seen)

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


ChunkPlace = tuple[str, int, int, str]
"""Address of an object; which of its bytes, (0, 0) being all of them; and how they become voxels: another channel, or
another description of the array, makes others of the same bytes."""


@dataclass(slots=True, eq=False)
class KeptChunk:
    version: Version
    """Of the object that it was decoded from."""
    voxels: NDArray[Any]
    seen_at: float
    """When the object was last seen to be of this version, on the monotonic clock."""


class KeptChunks:
    """Decoded chunks by where they came from, at most so many bytes: those used last. Safe for several threads.

    To keep one costs a tenth of fetching and decoding it (memory that is in no processor's cache), so where hardly any
    is asked for again only each eighth is kept: that shows when it changes.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: Recent[ChunkPlace, KeptChunk] = Recent(max_bytes)
        self._is_useful = True
        self._turns = itertools.count()
        self._asked = self._found = 0  # since it was last judged; roughly, because several threads count

    def get(self, place: ChunkPlace) -> KeptChunk | None:
        found = self._held.get(place)
        self._asked += 1
        self._found += found is not None
        return found

    @property
    def wants_next(self) -> bool:
        """Whether the next chunk is worth keeping."""
        if self._asked >= JUDGED_AFTER and self._held.is_full:
            self._is_useful = self._found >= USEFUL_SHARE * self._asked
            self._asked = self._found = 0
        return self._is_useful or next(self._turns) % 8 == 0

    def put(self, place: ChunkPlace, version: Version, seen_at: float, voxels: NDArray[Any]) -> None:
        """`voxels` must not change any more. Without a tag or a time it could not be told whether they are outdated."""
        size = voxels.nbytes + BESIDES_BYTES
        if (version.etag or version.last_modified) and size <= self._max_bytes:
            self._held.put(place, KeptChunk(version, voxels, seen_at), size)


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
        self._kept: dict[int, KeptChunks] = {}

    def kept(self, max_bytes: int) -> KeptChunks:
        """Shared by all volumes whose settings allow so many bytes."""
        found = self._kept.get(max_bytes)
        return self._kept.setdefault(max_bytes, KeptChunks(max_bytes)) if found is None else found


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
