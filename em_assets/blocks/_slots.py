"""Tensors from a DataLoader's worker to its parent through shared memory that is used again and again.

torch shares each batch in fresh memory, of which the system clears every page: measured on a virtual machine, 64 MB
take 90 ms of a core in fresh pages and 11 ms in pages that were used before; reading and decoding them takes 140 ms. So
a worker keeps its memory in slots. A slot's first byte tells whether the parent still uses it: it is set when the
tensor is sent, and cleared in the parent when the last tensor on it is gone. A worker takes a free slot or makes one:
there are as many as are in use at once. Where there are no anonymous files (only Linux has them), torch's way is taken.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from functools import cache
from importlib import import_module
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADER_BYTES = 64
"""Before a slot's voxels; keeps them aligned."""
SMALLEST_BYTES = 2**20
"""Smaller arrays are sent in torch's way: a slot would not pay."""
SPARE_SLOTS = 4
"""So many free ones are kept; more were in use only while somebody collected batches."""


class Slot:
    """Memory of this worker, for one array at a time."""

    def __init__(self, size_bytes: int) -> None:
        self.file = os.memfd_create("em_assets-batch")
        os.ftruncate(self.file, HEADER_BYTES + size_bytes)
        self.memory = mmap.mmap(self.file, HEADER_BYTES + size_bytes)
        self.size_bytes = size_bytes
        self._array: weakref.ref[NDArray[Any]] | None = None

    def __del__(self) -> None:
        os.close(self.file)

    @property
    def is_free(self) -> bool:
        """Neither the parent has a tensor on it, nor this process."""
        return self.memory[0] == 0 and (self._array is None or self._array() is None)

    def filled(self, array: NDArray[Any]) -> NDArray[Any]:
        """A copy of the array, in the slot."""
        copy = _array_in(self.memory, array.shape, array.dtype)
        np.copyto(copy, array)
        self._array = weakref.ref(copy)
        return copy

    def mark_sent(self) -> None:
        self.memory[0] = 1


class Slots:
    """Those of this process."""

    def __init__(self) -> None:
        self._slots: list[Slot] = []

    def tensor(self, array: NDArray[Any]) -> Any:
        """The array as a tensor, in shared memory."""
        import torch

        slot = self._free(array.nbytes)
        sendable = torch.from_numpy(slot.filled(array)).as_subclass(_sendable_type())
        sendable.slot = slot
        return sendable

    def _free(self, size_bytes: int) -> Slot:
        free = [slot for slot in self._slots if slot.is_free]
        fitting = [slot for slot in free if slot.size_bytes >= size_bytes]
        chosen = min(fitting, key=lambda slot: slot.size_bytes) if fitting else Slot(size_bytes)
        spare = [slot for slot in free if slot is not chosen]
        dropped = spare[: max(0, len(spare) - SPARE_SLOTS)]
        self._slots = [slot for slot in self._slots if slot not in dropped]
        if not fitting:
            self._slots.append(chosen)
        return chosen


def are_possible() -> bool:
    return hasattr(os, "memfd_create")


def slots_of_this_process() -> Slots:
    return _slots_of(os.getpid())


@cache
def _slots_of(_process: int) -> Slots:
    return Slots()


def is_worth_a_slot(array: NDArray[Any]) -> bool:
    return array.nbytes >= SMALLEST_BYTES and all(array.strides)


@cache
def _sendable_type() -> Any:
    """A tensor that is sent by its `slot`. What is computed from one has none, and is sent in torch's way."""
    import torch

    sendable = type("Sendable", (torch.Tensor,), {})
    ForkingPickler.register(sendable, _reduced)
    return sendable


def _reduced(tensor: Any) -> Any:
    """How a tensor is sent: its slot, if it still is what the slot holds."""
    import torch

    slot: Slot | None = getattr(tensor, "slot", None)
    plain = tensor.as_subclass(torch.Tensor)
    if slot is None or slot.memory[0] or not _is_all_of(plain, slot):
        return import_module("torch.multiprocessing.reductions").reduce_tensor(plain)
    slot.mark_sent()
    return _received, (DupFd(slot.file), tuple(plain.shape), plain.numpy().dtype.str)


def _is_all_of(plain: Any, slot: Slot) -> bool:
    begin = np.frombuffer(slot.memory, np.uint8, 1, HEADER_BYTES).ctypes.data
    return bool(plain.is_contiguous() and plain.data_ptr() == begin)


def _received(file: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """The tensor, in the parent. Its slot is free again when no tensor is left that shares its memory."""
    import torch

    descriptor = file.detach()
    try:
        memory = mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)
    array = _array_in(memory, shape, np.dtype(dtype))
    weakref.finalize(array, _give_back, memory, os.getpid()).atexit = False
    return torch.from_numpy(array)


def _give_back(memory: mmap.mmap, process: int) -> None:
    if os.getpid() == process:  # in a fork, the parent's tensors are still in use
        memory[0] = 0


def _array_in(memory: mmap.mmap, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(memory, dtype, math.prod(shape), HEADER_BYTES).reshape(shape)
