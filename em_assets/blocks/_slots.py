"""Tensors from a DataLoader's worker to its parent through shared memory that is used again and again.

torch shares each batch in fresh memory, of which the system clears every page: measured on a virtual machine, 64 MB
take 90 ms of a core in fresh pages and 11 ms in pages that were used before; reading and decoding them takes 140 ms. So
a worker keeps its memory in slots. A slot's first byte tells whether the parent still uses it: it is set when the
tensor is sent, and cleared in the parent when the last tensor on it is gone. A worker takes a free slot or makes one:
there are as many as are in use at once. Where there are no anonymous files (only Linux has them), torch's way is taken.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from em_assets.blocks._memory import LARGE_BYTES
from em_assets.blocks._samples import as_tensor, is_one_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADER_BYTES = 64
"""Before a slot's voxels; keeps them aligned."""
SENT, REACHED = 0, 1
"""Bytes of the header: the parent uses the slot; the parent can open its file by itself."""
SMALLEST_BYTES = LARGE_BYTES
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

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # when the process ends, `os` may be gone
        close(self.file)

    @property
    def is_free(self) -> bool:
        """Neither the parent has a tensor on it, nor this process."""
        return self.memory[SENT] == 0 and (self._array is None or self._array() is None)

    def array(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Uninitialized. The slot is not free while it, or a view of it, is in use."""
        array = _array_in(self.memory, shape, dtype)
        self._array = weakref.ref(array)
        return array

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether `array` is what `self.array` gave, and not only a part of it."""
        return self._array is not None and self._array() is array

    def handle(self) -> _Handle:
        """By which the parent maps it: handing over a file takes a connection, which costs a millisecond of both."""
        place = f"/proc/{os.getpid()}/fd/{self.file}"
        return _Handle(place, os.fstat(self.file).st_ino, None if self.memory[REACHED] else DupFd(self.file))


class _Handle(NamedTuple):
    place: str
    inode: int
    """Of the file that was meant: the number may be another's meanwhile."""
    file: Any
    """`DupFd`, as long as it is not known that the place can be opened."""

    def map(self) -> mmap.mmap:
        """In the parent. Raises OSError if the worker has ended."""
        if self.file is None:
            descriptor = os.open(self.place, os.O_RDWR)
            if not self._is_meant(descriptor):
                os.close(descriptor)
                raise OSError(errno.ESTALE, "a DataLoader's worker ended before its batch was used", self.place)
        else:
            descriptor = self.file.detach()
        try:
            memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        if self.file is not None:
            memory[REACHED] = self._can_be_opened()
        return memory

    def _can_be_opened(self) -> bool:
        try:
            descriptor = os.open(self.place, os.O_RDWR)
        except OSError:  # a system without such places, or that allows nobody to look there
            return False
        try:
            return self._is_meant(descriptor)
        finally:
            os.close(descriptor)

    def _is_meant(self, descriptor: int) -> bool:
        return os.fstat(descriptor).st_ino == self.inode


class Slots:
    """Those of this process."""

    def __init__(self) -> None:
        self._slots: list[Slot] = []
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """`np.empty`, in a slot: what is read into it can be sent as it is."""
        with self._lock:
            return self._free(math.prod(shape) * dtype.itemsize).array(shape, dtype)

    def tensor(self, array: NDArray[Any]) -> Any:
        """The array as a tensor that is sent in shared memory, or, where it is one value everywhere, as that."""
        is_small = array.nbytes < SMALLEST_BYTES
        if is_small or is_one_value(array):
            tensor = as_tensor(array)
            return tensor if is_small else tensor.as_subclass(_sendable_type())
        slot = self._of(array)
        if slot is None:
            copy = self.empty(array.shape, array.dtype)
            np.copyto(copy, array)
            slot, array = self._of(copy), copy
        sendable = as_tensor(array).as_subclass(_sendable_type())
        sendable.slot = slot
        return sendable

    def _of(self, array: NDArray[Any]) -> Slot | None:
        with self._lock:
            return next((slot for slot in self._slots if slot.holds(array)), None)

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
    if not any(plain.stride()) and plain.numel() and not plain.requires_grad:
        return _filled, (tuple(plain.shape), plain.flatten()[0].numpy())
    if slot is None or slot.memory[SENT] or not _is_all_of(plain, slot):
        return import_module("torch.multiprocessing.reductions").reduce_tensor(plain)
    slot.memory[SENT] = 1
    return _received, (slot.handle(), tuple(plain.shape), plain.numpy().dtype.str)


def _is_all_of(plain: Any, slot: Slot) -> bool:
    begin = np.frombuffer(slot.memory, np.uint8, 1, HEADER_BYTES).ctypes.data
    return bool(plain.is_contiguous() and plain.data_ptr() == begin)


def _received(handle: _Handle, shape: tuple[int, ...], dtype: str) -> Any:
    """The tensor, in the parent. Its slot is free again when no tensor is left that shares its memory."""
    import torch

    memory = handle.map()
    array = _array_in(memory, shape, np.dtype(dtype))
    weakref.finalize(array, _give_back, memory, os.getpid()).atexit = False
    return torch.from_numpy(array)


def _filled(shape: tuple[int, ...], value: NDArray[Any]) -> Any:
    """A tensor of one value, which takes the memory of one."""
    import torch

    return torch.from_numpy(value).expand(shape)


def _give_back(memory: mmap.mmap, process: int) -> None:
    if os.getpid() == process:  # in a fork, the parent's tensors are still in use
        memory[SENT] = 0


def _array_in(memory: mmap.mmap, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    # Not over another array: views would refer to that one, and the end of this one would not be theirs.
    array: NDArray[Any] = np.ndarray(shape, dtype, memory, HEADER_BYTES)
    return array
