"""Encoded chunks out of files of this machine: shards whose indices are kept, or a file for each chunk.

A file is looked at (`stat`) each time and read anew if another one took its name. Files of our own store are mapped
into memory: they are replaced, never changed. Others are read with `pread`, because a mapped file that somebody cuts
ends the process (SIGBUS). Open files belong to the process: it may have so many, however many volumes it reads.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.fetch.streams import Version
from em_assets.formats._zarr_shards import ABSENT, Sharding, ShardTable
from em_assets.volume import Zyx

if TYPE_CHECKING:
    from em_assets.blocks.engine import Encoded
    from em_assets.formats._chunked import ChunkedReader
    from em_assets.formats._stored_array import StoredArray

OPEN_FILES = 512
"""Kept open by a process, whatever it may have: 8 GB of mapped shards, and 36 MB of their indices."""
CZYX = "czyx"
Signature = tuple[int, int, int]
"""Inode, size and time of change of a file."""


class _File(Protocol):
    signature: Signature

    def piece(self, start: int, stop: int) -> memoryview | bytes: ...


_Index = list[tuple[int, int]]
"""(start, stop) of each chunk of a shard; (-1, -1): it was never written."""
_Kind = tuple[bool, Sharding | None, int]
"""How a file is read: mapped, its sharding, and the most bytes of a chunk."""


class _Opened(NamedTuple):
    kind: _Kind
    file: _File
    places: _Index | None
    """None: the file is one chunk."""


class _OpenFiles:
    """Those that were used last, by path. Safe for use by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, _Opened] = OrderedDict()

    @property
    def most(self) -> int:
        """A quarter of what the process may have: the others are for whoever else is in it."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return OPEN_FILES if limit == resource.RLIM_INFINITY else min(OPEN_FILES, limit // 4)

    def get(self, path: str, kind: _Kind, signature: Signature) -> _Opened | None:
        with self._lock:
            known = self._opened.get(path)
            if known is None or known.file.signature != signature or known.kind != kind:
                return None
            self._opened.move_to_end(path)
            return known

    def put(self, path: str, opened: _Opened) -> None:
        most = self.most
        with self._lock:
            self._opened[path] = opened
            self._opened.move_to_end(path)
            while len(self._opened) > most:  # who still reads one of them holds it
                self._opened.popitem(last=False)


_files = _OpenFiles()


def _forget_files() -> None:
    """In a forked child: the lock may be held by a thread that does not exist there."""
    global _files  # noqa: PLW0603  # a held lock of another process cannot be released, only replaced
    _files = _OpenFiles()


os.register_at_fork(after_in_child=_forget_files)


class LocalChunks:
    """The chunks of a level that lie in a folder. Safe for use by several threads."""

    is_immediate = True

    def __init__(self, reader: ChunkedReader, folder: Path, *, mapped: bool) -> None:
        """`folder` is the level's; `mapped` if its files are replaced whole and never changed in place."""
        self._array, self._own_order = reader.array, reader.own_order
        self._folder = folder
        self._mapped = mapped
        axes, sharding = reader.axes, reader.array.sharding
        counts = (1,) * len(axes) if sharding is None else sharding.chunks
        self._per_file = tuple(counts[axes.index(axis)] if axis in axes else 1 for axis in CZYX)
        """Chunks of a file along (c, z, y, x)."""
        self._steps = tuple(math.prod(counts[axes.index(axis) + 1 :]) if axis in axes else 0 for axis in CZYX)
        """How many entries of a shard's index lie between neighbours along (c, z, y, x)."""
        self._channel = reader.channels.start // reader.chunk[0]
        self._kind = mapped, sharding, reader.array.codec.max_bytes

    def fetch(self, cells: Sequence[Zyx]) -> Iterator[tuple[int, Encoded | None]]:
        """Nothing is decoded before all are found, so what is done for each cell is little."""
        found: dict[Zyx, tuple[Callable[[int, int], Encoded], int, _Index | None] | None] = {}
        (per_c, per_z, per_y, per_x), (step_c, step_z, step_y, step_x) = self._per_file, self._steps
        sharding = self._array.sharding
        first = self._channel % per_c * step_c + (0 if sharding is None else sharding.first_entry)
        held = _files.most // 4  # of these files the pieces keep them open until they are decoded
        for number, (z, y, x) in enumerate(cells):
            place = z // per_z, y // per_y, x // per_x
            if place not in found:
                name = self._array.name_of(self._own_order((self._channel // per_c, *place)))
                found[place] = self._pieces(f"{self._folder}/{name}", is_held=len(found) < held)
            shard = found[place]
            if shard is None:
                yield number, None
                continue
            piece, size, index = shard
            if index is None:
                start, stop = 0, size
            else:
                start, stop = index[first + z % per_z * step_z + y % per_y * step_y + x % per_x * step_x]
            yield number, None if start < 0 else piece(start, stop)

    def _pieces(self, path: str, *, is_held: bool) -> tuple[Callable[[int, int], Encoded], int, _Index | None] | None:
        """(what gives a piece of the file, its size, its index); None if there is no such file."""
        opened = self._opened(path)
        if opened is None:
            return None
        file = opened.file
        if not is_held:
            piece: Callable[[int, int], Encoded] = partial(partial, self._read_later, path, file.signature)
        else:
            piece = file.piece if self._mapped else partial(partial, file.piece)  # in memory, or a function that reads
        return piece, file.signature[1], opened.places

    def _read_later(self, path: str, signature: Signature, start: int, stop: int) -> memoryview | bytes:
        opened = self._opened(path)
        if opened is None or opened.file.signature != signature:
            raise Mismatch(f"{path} was replaced or removed while it was read; read it again.")
        return opened.file.piece(start, stop)

    def _opened(self, path: str) -> _Opened | None:
        """None if there is no such file."""
        try:
            found = os.stat(path)  # noqa: PTH116  # less than half the time of a Path, for every shard of every block
            known = _files.get(path, self._kind, (found.st_ino, found.st_size, found.st_mtime_ns))
            if known is not None:
                return known
            file = _Mapped(Path(path)) if self._mapped else _Read(Path(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _not_opened(path, error) from error
        opened = _Opened(self._kind, file, _index_of(file, self._array, path))
        _files.put(path, opened)
        return opened


def _not_opened(path: str, error: OSError) -> Unavailable:
    if error.errno not in (errno.EMFILE, errno.ENFILE):
        return Unavailable(f"{path} could not be read ({error.strerror}); correct its permissions.")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Unavailable(
        f"{path} could not be opened, because too many files are open already (this process may have {limit}); allow "
        "more with `ulimit -n`, or close some."
    )


def _index_of(file: _File, array: StoredArray, path: str) -> _Index | None:
    """Raises Malformed if the file cannot be sound."""
    sharding, size, most = array.sharding, file.signature[1], array.codec.max_bytes
    if sharding is None:
        if size > most:
            raise Malformed(f"{path} has {size} bytes, more than any sound chunk; get it again.")
        return None
    length = sharding.index_bytes
    if size < length:
        raise Malformed(f"{path} has {size} bytes, its index alone has {length}; materialize it again.")
    start = size - length if sharding.at_end else 0
    table = ShardTable.parse(sharding, file.piece(start, start + length), path, Version(size_bytes=size))
    offsets, sizes = table.entries[:, 0], table.entries[:, 1]
    absent = (offsets == ABSENT) & (sizes == ABSENT)
    sound = absent | ((sizes > 0) & (sizes <= min(size, most)) & (offsets <= size - np.minimum(sizes, np.uint64(size))))
    for entry in np.flatnonzero(~sound).tolist():
        table.place(entry, most)  # raises what is wrong with it; all at once are checked faster
    starts = np.where(absent, -1, offsets.astype(np.int64))
    stops = np.where(absent, -1, (offsets + sizes).astype(np.int64))
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


class _Mapped:
    """A file in memory, as far as the page cache has it."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            self.signature = found.st_ino, found.st_size, found.st_mtime_ns
            self._view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if found.st_size else b"")

    def piece(self, start: int, stop: int) -> memoryview:
        return self._view[start:stop]


class _Read:
    """A file that is read piece by piece."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        found = os.fstat(self._file.fileno())
        self.signature = found.st_ino, found.st_size, found.st_mtime_ns

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # it could be opened
            self._file.close()

    def piece(self, start: int, stop: int) -> bytes:
        data = os.pread(self._file.fileno(), stop - start, start)
        if len(data) != stop - start:
            raise Malformed(f"{self._path} ends after {start + len(data)} of {stop} bytes; it was cut, get it again.")
        return data
