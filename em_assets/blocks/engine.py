"""From boxes to voxels: which chunks they need, each decoded once, on all cores.

An `Engine` reads boxes of one level. `ChunkEngine` does it for arrays of chunks, whose encoded bytes `Chunks` gives:
`_local.py` from files, `_remote.py` over the network. What the bytes of a chunk mean is known in `formats/`.

Measured on two cores with real FIB-SEM voxels (`benchmarks/blocks.py`): threads that decode into a buffer of their own
and copy rows from there are as fast as the best compiled reader, because all three (zstd, copying, hashing) let go of
the interpreter.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from em_assets.errors import Malformed
from em_assets.formats._chunk_codecs import ZarrCodec
from em_assets.formats._rows import copy_rows
from em_assets.volume import Box, Zyx

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from em_assets.formats._chunked import ChunkedReader

Missing = tuple[Box, ...]
_Job = tuple[Zyx, list[int]]
"""A chunk, and which boxes it is for."""
FEW_CHUNKS = 2
"""So many are decoded faster here than a thread takes to wake up."""
LONG_COPY_BYTES = 1_000_000
"""Chunks of so many bytes, of several boxes, are copied faster by all threads: smaller ones end before one wakes up."""


class Engine(Protocol):
    """Boxes of one level, in its own voxels. Safe for use by several threads."""

    def read(self, boxes: Sequence[Box], outs: Sequence[NDArray[Any]]) -> list[Missing]:
        """Fills each of `outs` (of its box's shape, any strides) and gives the parts of each box that are not stored.

        Those are set to the array's fill value. Boxes lie within the level. What several boxes need is fetched and
        decoded once. Raises Unavailable, Malformed and Mismatch naming the chunk; `outs` are then undefined.
        """


class Chunks(Protocol):
    """Where the encoded chunks of a level come from."""

    is_immediate: bool
    """Nothing is waited for: bytes are in memory, or in the page cache."""

    def fetch(self, cells: Sequence[Zyx]) -> Iterator[tuple[int, Fetched | None]]:
        """(place in `cells`, the chunk, None where nothing is stored) of each, as they come."""


class ToKeep(NamedTuple):
    """Encoded bytes of a chunk whose voxels are wanted back."""

    data: memoryview | bytes
    keep: Callable[[NDArray[Any]], None]
    """Is given the voxels (z, y, x), which nobody changes any more."""


Encoded = memoryview | bytes | Callable[[], "memoryview | bytes"]
"""A function reads them: it is called by the thread that decodes."""
Fetched: TypeAlias = "Encoded | ToKeep | NDArray[Any]"
"""An array: the voxels (z, y, x), which were kept."""


class ChunkEngine:
    """One level of a Zarr or N5 volume with one channel."""

    def __init__(self, reader: ChunkedReader, chunks: Chunks, workers: int) -> None:
        """`chunks` gives those that `reader` describes."""
        self._reader = reader
        self._chunks = chunks
        self._workers = workers
        self._decode = _Decoder(reader)
        self._is_copied = reader.array.codec.compression is None and chunks.is_immediate
        """Chunks are only copied."""
        self._is_long = math.prod(reader.info.chunk) * np.dtype(reader.info.dtype).itemsize >= LONG_COPY_BYTES

    def read(self, boxes: Sequence[Box], outs: Sequence[NDArray[Any]]) -> list[Missing]:
        jobs = self._jobs(boxes)
        missing: list[list[Box]] = [[] for _ in boxes]
        take = _taker(self._chunks.fetch([cell for cell, _ in jobs]), is_immediate=self._chunks.is_immediate)
        stopped = False

        def work() -> None:
            nonlocal stopped
            try:
                while not stopped:
                    item = take()
                    if item is None:
                        return
                    number, data = item
                    if data is None:
                        self._leave_out(jobs[number], boxes, outs, missing)
                    else:
                        self._place(jobs[number], self._voxels(jobs[number][0], data), boxes, outs)
            except BaseException:  # the others need not go on
                stopped = True
                raise

        held = [work]
        pool = _pool(self._workers, waits=not self._chunks.is_immediate)
        helpers = [pool.submit(_help, held) for _ in range(self._helpers(len(jobs), len(boxes)))]
        try:
            work()
        finally:
            begun = [helper for helper in helpers if not helper.cancel()]  # others' reads may keep the pool busy
            errors = [error for helper in begun if (error := helper.exception()) is not None]
            held.clear()
        if errors:
            raise errors[0]
        return [tuple(sorted(parts)) for parts in missing]

    def _helpers(self, jobs: int, boxes: int) -> int:
        """How many threads help this one."""
        if jobs <= FEW_CHUNKS or (self._is_copied and not (self._is_long and boxes > 1)):
            return 0
        return min(self._workers, jobs) - 1

    def _jobs(self, boxes: Sequence[Box]) -> list[_Job]:
        """A job for each chunk that a box touches, in the order of the first box that does."""
        found: dict[Zyx, list[int]] = {}
        cz, cy, cx = self._reader.info.chunk
        for number, box in enumerate(boxes):
            (z, y, x), (to_z, to_y, to_x) = box.start, box.stop
            if to_z <= z or to_y <= y or to_x <= x:
                continue
            for cell in itertools.product(
                range(z // cz, -(-to_z // cz)), range(y // cy, -(-to_y // cy)), range(x // cx, -(-to_x // cx))
            ):
                found.setdefault(cell, []).append(number)
        return list(found.items())

    def _voxels(self, cell: Zyx, data: Fetched) -> NDArray[Any]:
        """They last until this thread decodes the next."""
        if isinstance(data, ToKeep):
            voxels = self._decode(cell, data.data)
            data.keep(self._decode.lasting(voxels))
            return voxels
        if isinstance(data, np.ndarray):
            return data
        return self._decode(cell, data() if callable(data) else data)

    def _place(self, job: _Job, chunk: NDArray[Any], boxes: Sequence[Box], outs: Sequence[NDArray[Any]]) -> None:
        """Plain integers, not boxes: this runs for every chunk, and what is Python here runs one thread at a time."""
        cell, numbers = job
        cz, cy, cx = self._reader.info.chunk
        low_z, low_y, low_x = cell[0] * cz, cell[1] * cy, cell[2] * cx
        for number in numbers:
            (z, y, x), (to_z, to_y, to_x) = boxes[number].start, boxes[number].stop
            a_z, b_z = max(low_z, z), min(low_z + cz, to_z)
            a_y, b_y = max(low_y, y), min(low_y + cy, to_y)
            a_x, b_x = max(low_x, x), min(low_x + cx, to_x)
            part = chunk[a_z - low_z : b_z - low_z, a_y - low_y : b_y - low_y, a_x - low_x : b_x - low_x]
            target = outs[number][a_z - z : b_z - z, a_y - y : b_y - y, a_x - x : b_x - x]
            if part.shape != target.shape:  # an N5 block that is smaller than it must be
                raise Malformed(
                    f"{self._decode.where(cell)} has {chunk.shape} voxels (z, y, x), too few for it; report it to "
                    "the publisher."
                )
            copy_rows(target, part)

    def _leave_out(
        self, job: _Job, boxes: Sequence[Box], outs: Sequence[NDArray[Any]], missing: list[list[Box]]
    ) -> None:
        cell, numbers = job
        place = self._reader.chunk_box(cell)
        for number in numbers:
            common = place.intersection(boxes[number])
            assert common is not None
            start = boxes[number].start
            local = common.shifted((-start[0], -start[1], -start[2]))
            outs[number][local.slices] = self._reader.array.fill_value
            missing[number].append(common)


class _Decoder:
    """From the bytes of a chunk to its voxels (z, y, x), which last until this thread decodes the next."""

    def __init__(self, reader: ChunkedReader) -> None:
        self._reader = reader
        self._local = threading.local()
        self._channel = reader.channels.start
        codec = reader.array.codec
        self._is_usual = (
            isinstance(codec, ZarrCodec)
            and codec.compression in ("zstd", None)
            and codec.order == (0, 1, 2)
            and reader.axes == "zyx"
            and codec.dtype.byteorder in "=|<"
            and not codec.checksums_around
            and not codec.checksums_within
        )
        """As we write it: then the way is short, because it is Python and runs one thread at a time."""
        self._shape, self._dtype = codec.chunk, np.dtype(reader.info.dtype)
        self._size = math.prod(codec.chunk) * self._dtype.itemsize
        self._is_zstd = codec.compression == "zstd"

    def __call__(self, cell: Zyx, data: memoryview | bytes) -> NDArray[Any]:
        """Raises Malformed and Unsupported naming the chunk."""
        voxels: NDArray[Any]
        if self._is_usual:
            plain = self._unpacked(data) if self._is_zstd else data
            if plain is not None and len(plain) == self._size:
                voxels = np.frombuffer(plain, self._dtype).reshape(self._shape)
                return voxels
        reader = self._reader
        decoded = reader.array.codec.decode(memoryview(data), partial(self.where, cell), self._room())
        voxels = reader.turned(decoded)[self._channel % reader.chunk[0]]
        return voxels

    def lasting(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """What was decoded, or a copy if its memory is used again."""
        return voxels if self._is_usual and self._is_zstd and not voxels.flags.writeable else voxels.copy()

    def where(self, cell: Zyx) -> str:
        """The chunk's name in a message."""
        return self._reader.where((self._channel // self._reader.chunk[0], *cell))

    def _unpacked(self, data: memoryview | bytes) -> bytes | None:
        """None where it is not one frame that states the right size: the codec says what is wrong with it."""
        import zstandard

        try:
            if zstandard.frame_content_size(data) != self._size:  # before anything is allocated for it
                return None
            if not hasattr(self._local, "zstd"):
                self._local.zstd = zstandard.ZstdDecompressor()
            return self._local.zstd.decompress(data, allow_extra_data=False)  # type: ignore[no-any-return]
        except zstandard.ZstdError:
            return None

    def _room(self) -> NDArray[np.uint8]:
        """Where this thread unpacks a chunk. With a new array per chunk a third of the time goes into fresh pages."""
        if not hasattr(self._local, "room"):
            self._local.room = np.empty(self._reader.array.codec.room_bytes, np.uint8)
        return self._local.room  # type: ignore[no-any-return]


def _taker(
    source: Iterator[tuple[int, Fetched | None]], *, is_immediate: bool
) -> Callable[[], tuple[int, Fetched | None] | None]:
    """Gives the next one to whichever thread asks, None when there are no more."""
    if is_immediate:
        items = iter(list(source))
        return lambda: next(items, None)  # one step of the interpreter
    turn = threading.Lock()

    def take() -> tuple[int, Fetched | None] | None:
        with turn:
            return next(source, None)

    return take


def _help(held: list[Callable[[], None]]) -> None:
    """`held` is emptied after the read: a helper that never began waits in the pool, and must not keep the voxels."""
    held[0]()


_pools: dict[tuple[int, bool], ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _pool(workers: int, *, waits: bool) -> ThreadPoolExecutor:
    """This process's threads that decode, shared by all volumes; those that wait for a network keep no others busy."""
    with _pools_lock:
        if (workers, waits) not in _pools:
            _pools[workers, waits] = ThreadPoolExecutor(workers, thread_name_prefix="em_assets-decode")
        return _pools[workers, waits]


def _forget_pools() -> None:
    """In a forked child: the threads do not exist there, and the lock may be held by one of them."""
    global _pools_lock  # noqa: PLW0603  # a held lock of another process cannot be released, only replaced
    _pools_lock = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_forget_pools)
