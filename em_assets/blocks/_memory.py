"""Memory of large arrays, used again when nobody holds them any more.

The system clears each page of a fresh array when it is first touched, and takes all back when it is freed: malloc keeps
nothing of 32 MB and more. For a batch of 64 MB that costs as much as copying its voxels, on virtual machines several
times as much (`benchmarks/blocks.py`).
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGE_BYTES = 1_000_000
"""Smaller arrays are left to malloc, which keeps them; those of a block of 2 MB it gave back each time, and getting new
pages took a sixth of the time of reading it."""
KEPT_BYTES = 256_000_000
"""At most, of memory that nobody uses."""

_kept: dict[int, deque[mmap.mmap]] = {}
"""By size. Taken and given back in single steps of the interpreter, because an array may be collected at any moment,
also within `empty` of the same thread: a lock could wait for itself."""
_others: dict[int, Callable[[Sequence[int], np.dtype[Any]], NDArray[Any]]] = {}
"""By process: who gives it memory instead."""


def empty(shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`np.empty`. When the array and all its views are gone, its memory serves the next of the same size."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_BYTES:
        return np.empty(shape, dtype)
    if _others and (other := _others.get(os.getpid())) is not None:
        return other(shape, dtype)
    memory = _taken(size) or _fresh(size)
    # Not over another array: views would refer to that one, and the end of this one would not be theirs.
    array: NDArray[Any] = np.ndarray(shape, dtype, buffer=memory)
    weakref.finalize(array, _give_back, memory, os.getpid()).atexit = False
    return array


def take_from(other: Callable[[Sequence[int], np.dtype[Any]], NDArray[Any]]) -> None:
    """From now on large arrays of this process are made by `other`."""
    _others[os.getpid()] = other


def _fresh(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared with no child process
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _taken(size: int) -> mmap.mmap | None:
    try:
        return _kept[size].pop()
    except (KeyError, IndexError):
        return None


def _give_back(memory: mmap.mmap, process: int) -> None:
    if process != os.getpid():  # inherited by a fork, where writing into it would copy it page by page
        return
    size = len(memory)
    if sum(one * len(kept) for one, kept in list(_kept.items())) + size > KEPT_BYTES:
        _kept.clear()
    if size <= KEPT_BYTES:
        _kept.setdefault(size, deque()).append(memory)
