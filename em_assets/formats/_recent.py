"""What was used last, up to so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

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
