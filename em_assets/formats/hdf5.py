"""HDF5 files: one dataset as a volume. What the file says of it is read in `_hdf5_dataset.py`, its voxels here.

Of a file on a server only structure and the chunks that a box needs are asked for, near ones together. A chunk that is
packed is unpacked once for all boxes that want it about now.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed
from em_assets.fetch.ranges import GAP_BYTES, RangeRequest, plan_requests
from em_assets.formats._boxes import checked_box, map_boxes, native
from em_assets.formats._bytes import ByteSource, read_pieces, require_inside
from em_assets.formats._compression import BadChunkError, decompress, decompress_again
from em_assets.formats._hdf5_dataset import DEFLATE, FILTERS, LZF, SHUFFLE, Chunks, Hdf5Dataset, Index, read_dataset
from em_assets.formats._raw_array import BATCH_BYTES, PIECE_COSTS_BYTES, STRUCT_LETTERS, RawArray
from em_assets.formats._recent import DecodedChunks
from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, Scalar
from em_assets.settings import Settings
from em_assets.volume import Box, VolumeInfo, Zyx, zyx

T = TypeVar("T")
SLACK_BYTES = 65536
"""What packing may add to a chunk that does not shrink."""
SAMPLED_CHUNK_BYTES = 4 * 2**20
"""A larger chunk is not unpacked a second time for every voxel that is compared."""


def open_hdf5(source: ByteSource, settings: Settings, *, dataset: str | None = None) -> Hdf5Reader:
    """The dataset at that path, or the only three-dimensional one.

    Raises Malformed for a damaged file, Mismatch if there is nothing at `dataset`, Unsupported for what is no volume
    or is packed in a way that is not read; the datasets there are named. Reads structure, no voxels.
    """
    return Hdf5Reader(source, settings, dataset)


class Hdf5Reader:
    """A `VolumeReader` of one dataset, its axes taken for (z, y, x). Safe for use by several threads."""

    def __init__(self, source: ByteSource, settings: Settings, path: str | None) -> None:
        self._source = source
        self._settings = settings
        connections = settings.connections_per_host
        self._stored = stored = read_dataset(source, path, connections)
        self.dataset = stored.path
        """The one that was chosen."""
        axes = (1, 1, *stored.shape)
        shape = zyx(axes[-3:])
        channels = None if axes[-4] == 1 else axes[-4]
        dtype = stored.dtype.newbyteorder("=").name
        chunk = zyx((1, *stored.chunk)[-3:]) if stored.chunks else (1, *shape[1:])
        self.info = VolumeInfo(shape, dtype, stored.voxel_size_nm, chunk, channels=channels)
        self._array: RawArray | _ChunkedArray
        if stored.within is not None:
            self._array = RawArray(_Memory(source.name, stored.within), 0, shape, stored.dtype, channels)
        elif stored.start is not None:
            self._array = RawArray(source, stored.start, shape, stored.dtype, channels, connections)
        else:
            self._array = _ChunkedArray(source, stored, channels, settings)

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """The voxels of a box, of the whole volume without one; the dataset's fill value where no chunk is stored."""
        return self._array.read(checked_box(self.info, box, f"{self._source.name}: {self.dataset}"))

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """Every attribute of the dataset and of the groups it lies in: `/volumes/raw@resolution`."""
        return iter(self._stored.attributes)

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        return self._array.plan([checked_box(self.info, box, self._source.name) for box in boxes])

    def map_regions(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[RegionOutcome[T]]:
        # of a local file only: of a remote one each sample costs a request
        sampled = self._array.has_samples and self.info.channels is None and self._source.mapped() is not None
        return map_boxes(
            boxes,
            self.read,
            work,
            sample=self._array.sample if sampled else None,
            missing=self._array.missing,
            fill_value=self._stored.fill_value,
            source_url=self._source.name,
            workers=self._settings.workers,
            on_bytes=on_bytes,
        )


class _Memory:
    """A `ByteSource` of bytes that are held."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.size_bytes = len(data)
        self._view = memoryview(data)

    def read(self, start: int, length: int) -> memoryview:
        require_inside(self, start, length)
        return self._view[start : start + length]

    def mapped(self) -> memoryview:
        return self._view


class _Stored(NamedTuple):
    """A stored chunk."""

    start: int
    """Of its bytes in the file."""
    stop: int
    row: int
    """In the table of chunks."""
    cell: Index
    """Its place in the grid."""


class _ChunkedArray:
    """(c, z, y, x), c being 1 without channels. Also a dataset nothing of which was ever written: without chunks."""

    def __init__(self, source: ByteSource, stored: Hdf5Dataset, channels: int | None, settings: Settings) -> None:
        self._source = source
        self._connections = settings.connections_per_host
        self._decoded = DecodedChunks(settings.memory_bytes)
        self._stored = stored
        self._channels = channels
        self._shape: Index = (1, 1, *stored.shape)[-4:]
        self._chunk: Index = (1, 1, *stored.chunk)[-4:]
        nothing = np.zeros(0, np.int64)
        self._chunks = stored.chunks or Chunks(nothing, nothing, nothing, nothing)
        plain_orders = ((), (SHUFFLE,), (DEFLATE,), (SHUFFLE, DEFLATE))
        self.has_samples = stored.filters in plain_orders and stored.chunk_bytes <= SAMPLED_CHUNK_BYTES

    def read(self, box: Box) -> NDArray[Any]:
        dtype = self._stored.dtype
        voxels = np.full((self._shape[0], *box.shape), self._stored.fill_value, dtype.newbyteorder("="))
        for batch in self._stored_in(box):
            wanted = [stored for stored in batch if not self._decoded.has((0, stored.row))]
            bodies = read_pieces(self._source, [(stored.start, stored.stop) for stored in wanted], self._connections)
            received = {stored.row: body for stored, body in zip(wanted, bodies, strict=True)}
            for stored in batch:
                chunk = self._chunk_of(stored, received.get(stored.row))
                while chunk.ndim > 4:
                    chunk = chunk[0]  # of an axis of length 1
                self._paste(chunk.reshape((1, 1, *chunk.shape)[-4:]), stored.cell, voxels, box)
        return voxels if self._channels else native(voxels[0])

    def sample(self, position: Zyx) -> float:
        """One voxel by another library and its own arithmetic, of a chunk that `read` took."""
        chunk = self._chunk[1:]
        cell = (0, *(p // c for p, c in zip(position, chunk, strict=True)))
        row = self._row(cell)
        if row is None:
            return float(self._stored.fill_value)
        filters, skipped, size = self._stored.filters, int(self._chunks.skipped[row]), self._stored.dtype.itemsize
        undone = {code for number, code in enumerate(filters) if not skipped >> number & 1}
        start, stop = self._place(row)
        packed = self._source.read(start, stop - start)
        plain = decompress_again("zlib", packed, self._stored.chunk_bytes) if DEFLATE in undone else bytes(packed)
        (z, y, x), (_, rows, columns) = (p % c for p, c in zip(position, chunk, strict=True)), chunk
        at = x + columns * y + columns * rows * z
        raw = plain[at :: len(plain) // size][:size] if SHUFFLE in undone else plain[at * size :][:size]
        order = ">" if self._stored.dtype.str[0] == ">" else "<"
        return float(struct.unpack(order + STRUCT_LETTERS[self._stored.dtype.str[1:]], raw)[0])

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        """Requests are those to a server: a local file has none."""
        cells = {cell for box in boxes for cell in self._cells(box)}
        rows = [row for cell in cells if (row := self._row(cell)) is not None]
        if self._source.mapped() is None:
            requests = [request for box in boxes for batch in self._stored_in(box) for request in _requests(batch)]
            sizes = [request.size_bytes for request in requests]
        else:
            requests, sizes = [], [int(self._chunks.size_bytes[row]) for row in rows]
        return ReadPlan(len(requests), sum(sizes), len(cells), len(cells) - len(rows))

    def missing(self, box: Box) -> tuple[Box, ...]:
        """The parts of the box of which no channel was ever written."""
        stored = {cell[1:] for cell in self._cells(box) if self._row(cell) is not None}
        absent = dict.fromkeys(cell[1:] for cell in self._cells(box) if cell[1:] not in stored)
        parts = [self._box(zyx(cell)).intersection(box) for cell in absent]
        return tuple(part for part in parts if part is not None)

    def _cells(self, box: Box) -> Iterator[Index]:
        channels = range(-(-self._shape[0] // self._chunk[0]))
        return ((c, *cell) for c, cell in itertools.product(channels, box.cells(zyx(self._chunk[1:]))))

    def _row(self, cell: Index) -> int | None:
        """Of a chunk in the table of those that are stored."""
        number = 0
        for place, n, c in zip(cell, self._shape, self._chunk, strict=True):
            number = number * -(-n // c) + place
        row = int(np.searchsorted(self._chunks.number, number))
        return row if row < len(self._chunks.number) and self._chunks.number[row] == number else None

    def _place(self, row: int) -> tuple[int, int]:
        """The bytes of a chunk in the file: (start, stop). Raises Malformed if they are more than they can be."""
        start, size = int(self._chunks.start[row]), int(self._chunks.size_bytes[row])
        most = 2 * self._stored.chunk_bytes + SLACK_BYTES
        if size > most:
            raise Malformed(
                f"{self._source.name}: a chunk of {self._stored.path} has {size} bytes, expected at most {most}; "
                "the file is damaged: get it again."
            )
        return start, start + size

    def _chunk_of(self, stored: _Stored, body: bytes | memoryview | None) -> NDArray[Any]:
        """Unpacked. `body` is None of a chunk that was kept a moment ago."""

        def make() -> NDArray[Any]:
            packed = self._source.read(stored.start, stored.stop - stored.start) if body is None else body
            unpacked = self._unpacked(stored.cell, stored.row, packed)
            if self._stored.filters and unpacked is packed:  # none was applied; what is kept holds nothing else
                unpacked = bytes(packed)
            return np.frombuffer(unpacked, self._stored.dtype).reshape(self._stored.chunk)

        return self._decoded.get((0, stored.row), make) if self._stored.filters else make()

    def _stored_in(self, box: Box) -> Iterator[list[_Stored]]:
        """The chunks of a box, in order of bytes; of a remote file as much is held at a time as a batch has."""
        rows = ((self._row(cell), cell) for cell in self._cells(box))
        found = [_Stored(*self._place(row), row, cell) for row, cell in rows if row is not None]
        return _batches(sorted(found))

    def _unpacked(self, cell: Index, row: int, packed: Any) -> Any:
        size, skipped = self._stored.chunk_bytes, int(self._chunks.skipped[row])
        room = np.empty(size, np.uint8)
        try:
            for number, code in reversed(list(enumerate(self._stored.filters))):
                if not skipped >> number & 1:
                    packed = self._without_filter(code, packed, room)
            decompress(None, packed, room)  # compares the size
        except BadChunkError as error:
            start = [place * c for place, c in zip(cell, self._chunk, strict=True)][-3:]
            raise Malformed(
                f"{self._source.name}: {self._stored.path}, chunk at {', '.join(map(str, start))} (z, y, x): {error}; "
                "the file is damaged: get it again."
            ) from None
        return packed

    def _without_filter(self, code: int, packed: Any, room: NDArray[np.uint8]) -> Any:
        if code == DEFLATE:
            return decompress("zlib", packed, room)
        if code == LZF:
            return _without_lzf(packed, len(room))
        if len(packed) != len(room):
            raise BadChunkError(f"it has {len(packed)} bytes before {FILTERS[code]}, expected {len(room)}")
        by_byte = np.frombuffer(packed, np.uint8).reshape(self._stored.dtype.itemsize, -1)
        return np.ascontiguousarray(by_byte.T).reshape(-1)

    def _paste(self, chunk: NDArray[Any], cell: Index, voxels: NDArray[Any], box: Box) -> None:
        common = self._box(zyx(cell[1:])).intersection(box)
        assert common is not None
        start = zyx([c * n for c, n in zip(cell[1:], self._chunk[1:], strict=True)])
        first = cell[0] * self._chunk[0]
        channels = min(self._chunk[0], self._shape[0] - first)
        into = (slice(first, first + channels), *common.shifted(_minus(box.start)).slices)
        voxels[into] = chunk[(slice(0, channels), *common.shifted(_minus(start)).slices)]

    def _box(self, cell: Zyx) -> Box:
        """The voxels of a chunk, clipped at the volume's end."""
        start = zyx([place * c for place, c in zip(cell, self._chunk[1:], strict=True)])
        stop = zyx([min(a + c, n) for a, c, n in zip(start, self._chunk[1:], self._shape[1:], strict=True)])
        return Box(start, stop)


def _batches(chunks: Sequence[_Stored]) -> Iterator[list[_Stored]]:
    """In order of bytes, each of at most BATCH_BYTES or one chunk, with the gaps that are read over."""
    batch: list[_Stored] = []
    held = 0
    for chunk in chunks:
        gap = chunk.start - batch[-1].stop if batch else 0
        more = chunk.stop - chunk.start + PIECE_COSTS_BYTES + (gap if 0 < gap <= GAP_BYTES else 0)
        if batch and held + more > BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(chunk)
        held += more
    if batch:
        yield batch


def _requests(batch: Sequence[_Stored]) -> Sequence[RangeRequest]:
    return plan_requests([(stored.start, stored.stop) for stored in batch])


def _minus(position: Zyx) -> Zyx:
    return zyx([-p for p in position])


def _without_lzf(packed: Any, size: int) -> Any:
    import imagecodecs

    try:
        return imagecodecs.lzf_decode(packed, out=size)
    except (RuntimeError, ValueError) as error:  # every imagecodecs error is a RuntimeError
        raise BadChunkError(f"it cannot be unpacked by lzf to {size} bytes ({error})") from None
