"""Voxels that lie in a file as they are: one uncompressed array in C order, at a known byte.

On a local file a read touches only the pages it needs; on a remote one it asks for the rows it needs, near ones
together.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from em_assets.fetch.ranges import plan_requests
from em_assets.formats._boxes import native
from em_assets.formats._bytes import ByteSource, read_pieces, require_inside
from em_assets.formats.reader import ReadPlan
from em_assets.volume import Box, Zyx

STRUCT_LETTERS = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"} | {
    "f2": "e",
    "f4": "f",
    "f8": "d",
}


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
            request.size_bytes
            for box in boxes
            for channel in channels
            for request in plan_requests(list(self._runs(box, channel)))
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

    def _runs(self, box: Box, channel: int) -> Iterator[tuple[int, int]]:
        """The bytes of every row of the box, (start, stop); of every plane where rows are whole."""
        z_stride, y_stride, x_stride = (self.dtype.itemsize * n for n in (math.prod(self.shape[1:]), self.shape[2], 1))
        z, y, x = box.slices
        first = self.start + channel * self._channel_bytes + y.start * y_stride + x.start * x_stride
        whole_rows = box.shape[2] == self.shape[2]
        rows = 1 if whole_rows else box.shape[1]
        length = (box.shape[1] if whole_rows else 1) * box.shape[2] * x_stride
        for plane in range(z.start, z.stop):
            for row in range(rows):
                at = first + plane * z_stride + row * y_stride
                yield at, at + length

    def _fetch(self, box: Box, channel: int) -> NDArray[Any]:
        runs = list(self._runs(box, channel))
        voxels = np.empty((len(runs), box.voxels // len(runs)), self.dtype)
        for row, run in zip(voxels, read_pieces(self.source, runs, self.connections), strict=True):
            row[:] = np.frombuffer(run, self.dtype)
        return voxels.reshape(box.shape)
