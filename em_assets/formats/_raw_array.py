"""Voxels that lie in a file as they are: one uncompressed array in C order, at a known byte.

On a local file a read touches only the pages it needs; on a remote one it asks for the rows it needs, near ones
together, and holds a bounded part of them at a time.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from em_assets.fetch.ranges import GAP_BYTES, REQUEST_BYTES, RangeRequest, plan_requests
from em_assets.formats._boxes import native
from em_assets.formats._bytes import ByteSource, read_pieces, require_inside
from em_assets.formats.reader import ReadPlan
from em_assets.volume import Box, Zyx

STRUCT_LETTERS = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"} | {
    "f2": "e",
    "f4": "f",
    "f8": "d",
}
BATCH_BYTES = 32 * 2**20
"""Received from a server that a read holds at once beside its result: a narrow box takes whole rows with it."""
PIECE_COSTS_BYTES = 1024
"""A piece takes about so much memory beside its bytes, however small it is."""


class _Piece(NamedTuple):
    """Rows of a plane of a box, with what lies between them in the file."""

    start: int
    stop: int
    plane: int
    """Within the box, as `rows`."""
    rows: slice


@dataclass(frozen=True, slots=True)
class RawArray:
    """(c, z, y, x) or, without channels, (z, y, x). Raises Malformed if the file ends before it does."""

    source: ByteSource
    start: int
    """Byte of the first voxel."""
    shape: Zyx
    dtype: np.dtype[Any]
    """With its byte order."""
    channels: int | None = None
    connections: int = 1
    """To a server, at a time."""
    has_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_inside(self.source, self.start, (self.channels or 1) * self._channel_bytes)

    def read(self, box: Box) -> NDArray[Any]:
        """Exactly the box, of every channel; a view of the file where that is possible."""
        view = self.source.mapped()
        if view is None:
            voxels = np.stack([self._fetch(box, channel) for channel in range(self.channels or 1)])
        else:
            count = (self.channels or 1) * math.prod(self.shape)
            whole = np.frombuffer(view, self.dtype, count, self.start).reshape(-1, *self.shape)
            voxels = whole[(slice(None), *box.slices)]
        return np.require(native(voxels if self.channels else voxels[0]), requirements="A")

    def missing(self, box: Box) -> tuple[Box, ...]:
        """Nothing: the file holds every voxel."""
        return ()

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        """Requests are those to a server: a local file has none. Every plane counts as a chunk."""
        planes = len({z for box in boxes for z in range(box.start[0], box.stop[0])})
        channels = range(self.channels or 1)
        if self.source.mapped() is not None:
            size_bytes = len(channels) * self.dtype.itemsize * sum(box.voxels for box in boxes)
            return ReadPlan(0, size_bytes, planes, 0)
        sizes = [
            request.size_bytes for box in boxes for channel in channels for request in self._requests(box, channel)
        ]
        return ReadPlan(len(sizes), sum(sizes), planes, 0)

    def sample(self, position: Zyx) -> float:
        """One voxel, by arithmetic of its own; for comparison with `read`."""
        (z, y, x), (_, rows, columns) = position, self.shape
        size = self.dtype.itemsize
        at = self.start + size * x + size * columns * y + size * columns * rows * z
        order = ">" if self.dtype.str[0] == ">" else "<"
        return float(struct.unpack(order + STRUCT_LETTERS[self.dtype.str[1:]], self.source.read(at, size))[0])

    @property
    def _channel_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def _pieces(self, box: Box, channel: int) -> Iterator[_Piece]:
        """All rows of a plane at once, unless that is more than a request brings or what lies between them is much."""
        item, (_, y, x) = self.dtype.itemsize, box.slices
        plane_bytes, row_bytes = math.prod(self.shape[1:]) * item, self.shape[2] * item
        length = box.shape[2] * item
        together = (REQUEST_BYTES - length) // row_bytes + 1 if row_bytes - length <= GAP_BYTES else 1
        step = min(max(1, together), box.shape[1])
        first = self.start + channel * self._channel_bytes + y.start * row_bytes + x.start * item
        for plane in range(box.shape[0]):
            for row in range(0, box.shape[1], step):
                rows = slice(row, min(row + step, box.shape[1]))
                at = first + (box.start[0] + plane) * plane_bytes + row * row_bytes
                yield _Piece(at, at + (rows.stop - row - 1) * row_bytes + length, plane, rows)

    def _batches(self, box: Box, channel: int) -> Iterator[list[_Piece]]:
        """In order of bytes; each is held as a whole, with the gaps that are read over."""
        batch: list[_Piece] = []
        held = 0
        for piece in self._pieces(box, channel):
            gap = piece.start - batch[-1].stop if batch else 0
            more = piece.stop - piece.start + PIECE_COSTS_BYTES + (gap if gap <= GAP_BYTES else 0)
            if batch and held + more > BATCH_BYTES:
                yield batch
                batch, held = [], 0
            batch.append(piece)
            held += more
        yield batch

    def _requests(self, box: Box, channel: int) -> Iterator[RangeRequest]:
        for batch in self._batches(box, channel):
            yield from plan_requests([(piece.start, piece.stop) for piece in batch])

    def _fetch(self, box: Box, channel: int) -> NDArray[Any]:
        voxels = np.empty(box.shape, self.dtype)
        for batch in self._batches(box, channel):
            self._fill(voxels, batch)
        return voxels

    def _fill(self, voxels: NDArray[Any], batch: list[_Piece]) -> None:
        strides = (self.shape[2] * self.dtype.itemsize, self.dtype.itemsize)
        bodies = read_pieces(self.source, [(piece.start, piece.stop) for piece in batch], self.connections)
        for piece, body in zip(batch, bodies, strict=True):
            shape = (piece.rows.stop - piece.rows.start, voxels.shape[2])
            voxels[piece.plane, piece.rows] = np.ndarray(shape, self.dtype, body, strides=strides)
