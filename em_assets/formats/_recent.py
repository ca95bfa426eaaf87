"""What was used last, up to so many bytes: of anything, and of what the reader of a file decodes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key; when they are too many bytes, those go that were not used for longest. For several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._held: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.is_full = False
        """Something has had to go."""

    def get(self, key: K) -> V | None:
        with self._lock:
            found = self._held.get(key)
            if found is None:
                return None
            self._held.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        """Instead of what was there. A value larger than all that may be held is not kept."""
        with self._lock:
            self._remove(key)
            self._held[key] = value, size_bytes
            self._held_bytes += size_bytes
            while self._held_bytes > self._max_bytes:
                self.is_full = True
                self._remove(next(iter(self._held)))

    def drop(self, key: K, value: V) -> None:
        """Unless another one is there by now."""
        with self._lock:
            found = self._held.get(key)
            if found is not None and found[0] is value:
                self._remove(key)

    def __contains__(self, key: K) -> bool:
        return key in self._held

    def _remove(self, key: K) -> None:
        removed = self._held.pop(key, None)
        if removed is not None:
            self._held_bytes -= removed[1]


ChunkOfFile = tuple[int, int]
"""Page and number, or 0 and number."""


class DecodedChunks:
    """Those of one file decoded last, so that boxes side by side decode each about once. For several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._kept: Recent[ChunkOfFile, NDArray[Any]] = Recent(max_bytes)
        self._under_way: dict[ChunkOfFile, Future[NDArray[Any]]] = {}

    def has(self, key: ChunkOfFile) -> bool:
        with self._lock:
            return key in self._kept or key in self._under_way

    def get(self, key: ChunkOfFile, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """What is kept under the key; else made, by one thread while others wait for it."""
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                return kept
            future = self._under_way.get(key)
            is_mine = future is None
            if future is None:
                future = self._under_way[key] = Future()
        if is_mine:
            self._make(key, make, future)
        return future.result()

    def _make(self, key: ChunkOfFile, make: Callable[[], NDArray[Any]], future: Future[NDArray[Any]]) -> None:
        try:
            chunk = make()
        except BaseException as error:  # noqa: BLE001  # goes to every thread that waits, this one included
            with self._lock:
                del self._under_way[key]
            future.set_exception(error)
            return
        with self._lock:
            del self._under_way[key]
            self._kept.put(key, chunk, chunk.nbytes)
        future.set_result(chunk)
