"""Tensors from a DataLoader's worker to its parent through shared memory that is used again and again.

torch shares each batch in fresh memory, of which the system clears every page: measured on a virtual machine, 64 MB
take 90 ms of a core in fresh pages and 11 ms in pages that were used before; reading and decoding them takes 140 ms. So
a worker keeps its memory in slots, and reads into them what it will send. A slot's first byte tells whether the parent
still uses it: it is set when the tensor is sent, and cleared in the parent when the last tensor on it is gone. A worker
takes a free slot or makes one: there are as many as are in use at once. Tensors that are not a slot's array, and all of
it, are sent in torch's way; all are where there are no anonymous files (only Linux has them).
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import resource
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from em_assets.blocks._memory import LARGE_BYTES
from em_assets.blocks._samples import as_tensor
from em_assets.errors import Unavailable

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


_slots_by_address: weakref.WeakValueDictionary[int, Slot] = weakref.WeakValueDictionary()
"""Where their arrays begin in this process."""


class Slot:
    """Memory of this worker, for one array at a time."""

    def __init__(self, size_bytes: int) -> None:
        """Raises Unavailable if this process may open no more files."""
        try:
            self.file = os.memfd_create("em_assets-batch")
            os.ftruncate(self.file, HEADER_BYTES + size_bytes)
            self.memory = mmap.mmap(self.file, HEADER_BYTES + size_bytes)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            raise Unavailable(
                f"a DataLoader's worker has no memory for the next batch, because each that is in use takes two of "
                f"the {limit} files that a process may have open; keep copies (`batch['data'].clone()`), or allow more "
                "with `ulimit -n`."
            ) from None
        self.size_bytes, self.process = size_bytes, os.getpid()
        _slots_by_address[_array_in(self.memory, (0,), np.dtype(np.uint8)).ctypes.data] = self
        self._array: weakref.ref[NDArray[Any]] | None = None

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # when the process ends, `os` may be gone
        if hasattr(self, "file"):
            close(self.file)

    @property
    def is_free(self) -> bool:
        """Neither the parent has a tensor on it, nor this process."""
        return self.memory[SENT] == 0 and self.lent is None

    def array(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Uninitialized. The slot is not free while it, or a view of it, is in use."""
        array = _array_in(self.memory, shape, dtype)
        self._array = weakref.ref(array)
        return array

    @property
    def lent(self) -> NDArray[Any] | None:
        """What `array` gave last, if it is still in use."""
        return None if self._array is None else self._array()

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether `array` is what `self.array` gave, and not only a part of it."""
        return self.lent is array

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
        """The array as a tensor that is sent in shared memory."""
        _send_by_slots()
        if array.nbytes >= SMALLEST_BYTES and not self._is_in_one(array):
            copy = self.empty(array.shape, array.dtype)
            np.copyto(copy, array)
            array = copy
        return as_tensor(array)

    def _is_in_one(self, array: NDArray[Any]) -> bool:
        with self._lock:
            return any(slot.holds(array) for slot in self._slots)

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
def _send_by_slots() -> None:
    """From now on tensors that are what a slot of this process holds are sent as that, all others in torch's way."""
    import torch

    # loaded first, because it registers its own way
    in_torchs_way = import_module("torch.multiprocessing.reductions").reduce_tensor

    def reduced(tensor: Any) -> Any:
        slot = None if tensor.requires_grad or tensor.is_cuda else _slot_at(tensor)
        if slot is None:
            return in_torchs_way(tensor)
        message = _received, (slot.handle(), tuple(tensor.shape), tensor.numpy().dtype.str)
        slot.memory[SENT] = 1
        return message

    ForkingPickler.register(torch.Tensor, reduced)


def _slot_at(tensor: Any) -> Slot | None:
    """The slot whose array the tensor is, all of it, unless it was sent before."""
    import torch

    is_plain = tensor.layout == torch.strided and tensor.is_contiguous()
    slot = _slots_by_address.get(tensor.data_ptr()) if is_plain else None
    if slot is None or slot.process != os.getpid() or slot.memory[SENT]:
        return None
    array = slot.lent
    is_same = array is not None and str(tensor.dtype).removeprefix("torch.") == array.dtype.name
    return slot if is_same and array is not None and tensor.nbytes == array.nbytes else None


def _received(handle: _Handle, shape: tuple[int, ...], dtype: str) -> Any:
    """The tensor, in the parent. Its slot is free again when no tensor is left that shares its memory."""
    import torch

    memory = handle.map()
    array = _array_in(memory, shape, np.dtype(dtype))
    weakref.finalize(array, _give_back, memory, os.getpid()).atexit = False
    return torch.from_numpy(array)


def _give_back(memory: mmap.mmap, process: int) -> None:
    if os.getpid() == process:  # in a fork, the parent's tensors are still in use
        memory[SENT] = 0


def _array_in(memory: mmap.mmap, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    # Not over another array: views would refer to that one, and the end of this one would not be theirs.
    array: NDArray[Any] = np.ndarray(shape, dtype, memory, HEADER_BYTES)
    return array
