"""Bytes of one stored chunk of a Zarr array or one N5 block to voxels, in the array's own axis order.

What a codec is given comes from `_zarr_metadata.py` or `n5.py`, which refuse what is not read; packing is undone by
`_compression.py`. Each codec decodes whole chunks, and single voxels by a second way with its own arithmetic.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed, Unsupported
from em_assets.formats._compression import BadChunkError, Bytes, Compression, Room, decompress, decompress_again

Where = Callable[[], str]
"""Names the chunk in a message: called only if there is one."""
Index = tuple[int, ...]
"""A shape, or the place of a chunk or voxel, in an array's own axis order."""

STRUCT_FORMATS = {
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "uint64": "Q",
    "int64": "q",
    "float16": "e",
    "float32": "f",
    "float64": "d",
}
"""The voxel types that are read, by numpy name."""
CRC_BYTES = 4
SLACK_BYTES = 65536
"""What headers may add to a chunk that does not compress."""
N5_MODES = {1: "of varying length", 2: "of objects"}


class Codec(Protocol):
    @property
    def chunk(self) -> Index: ...

    @property
    def compression(self) -> Compression | None:
        """None: the bytes of a chunk are its voxels."""

    @property
    def max_bytes(self) -> int:
        """No sound chunk is larger as it is stored."""

    @property
    def room_bytes(self) -> int:
        """What `decode` may need to unpack a chunk in."""

    def decode(self, data: memoryview, where: Where, room: Room) -> NDArray[Any]:
        """The voxels, in `data`, `room` or not: whoever keeps them copies them. Raises Malformed, Unsupported."""

    def sample(self, data: memoryview, positions: Sequence[Index], where: Where) -> list[float]:
        """The voxels at these places within a chunk that `decode` took, by other libraries."""


@dataclass(frozen=True, slots=True)
class ZarrCodec:
    """Zarr v2 and v3: every chunk has the same shape, also where the array ends within it."""

    dtype: np.dtype[Any]
    """With the byte order as stored."""
    chunk: Index
    order: Index
    """The axes from the slowest to the fastest in the bytes of a chunk."""
    compression: Compression | None
    checksums_within: int = 0
    """CRC-32C appended before it was packed."""
    checksums_around: int = 0

    @property
    def plain_bytes(self) -> int:
        return math.prod(self.chunk) * self.dtype.itemsize

    @property
    def room_bytes(self) -> int:
        return self.plain_bytes + CRC_BYTES * self.checksums_within

    @property
    def max_bytes(self) -> int:
        return 2 * self.plain_bytes + SLACK_BYTES

    def decode(self, data: memoryview, where: Where, room: Room) -> NDArray[Any]:
        try:
            packed = _checked(data, self.checksums_around)
            plain = memoryview(decompress(self.compression, packed, room[: self.room_bytes]))  # type: ignore[arg-type]  # an array is a buffer
            plain = _checked(plain, self.checksums_within)
        except BadChunkError as error:
            raise bad_chunk(where, error) from None
        stored = np.frombuffer(plain, self.dtype).reshape([self.chunk[axis] for axis in self.order])
        return stored.transpose(np.argsort(self.order))

    def sample(self, data: memoryview, positions: Sequence[Index], where: Where) -> list[float]:
        packed = data[: len(data) - CRC_BYTES * self.checksums_around]
        try:
            plain = decompress_again(self.compression, packed, self.room_bytes)
        except BadChunkError as error:
            raise bad_chunk(where, error) from None
        byte_order = ">" if self.dtype.byteorder == ">" else "<"
        return _values(plain, byte_order, self.dtype.name, [self._offset(position) for position in positions])

    def _offset(self, position: Index) -> int:
        """How many voxels lie before this one."""
        offset = 0
        for axis in self.order:
            offset = offset * self.chunk[axis] + position[axis]
        return offset


@dataclass(frozen=True, slots=True)
class N5Codec:
    """N5 blocks: each states its own shape, which is smaller at the array's end; big endian, x fastest.

    Specification: github.com/saalfeldlab/n5. Its x, y, z order is turned around here: shapes are (z, y, x).
    """

    dtype: str
    chunk: Index
    compression: Compression | None

    @property
    def room_bytes(self) -> int:
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize

    @property
    def max_bytes(self) -> int:
        return 2 * self.room_bytes + SLACK_BYTES

    def decode(self, data: memoryview, where: Where, room: Room) -> NDArray[Any]:
        shape, start = self._header(data, where)
        dtype = np.dtype(self.dtype).newbyteorder(">")
        size = math.prod(shape) * dtype.itemsize
        try:
            plain = decompress(self.compression, data[start:], room[:size])
        except BadChunkError as error:
            raise bad_chunk(where, error) from None
        return np.frombuffer(plain, dtype).reshape(shape)

    def sample(self, data: memoryview, positions: Sequence[Index], where: Where) -> list[float]:
        (axes,) = struct.unpack_from(">H", data, 2)
        shape_xyz = struct.unpack_from(f">{axes}I", data, 4)
        strides = [math.prod(shape_xyz[:axis]) for axis in range(axes)][::-1]
        size = math.prod(shape_xyz) * struct.calcsize(STRUCT_FORMATS[self.dtype])
        try:
            plain = decompress_again(self.compression, data[4 + 4 * axes :], size)
        except BadChunkError as error:
            raise bad_chunk(where, error) from None
        offsets = [sum(p * s for p, s in zip(position, strides, strict=True)) for position in positions]
        return _values(plain, ">", self.dtype, offsets)

    def _header(self, data: memoryview, where: Where) -> tuple[Index, int]:
        """(shape, where the voxels begin)."""
        axes, size = len(self.chunk), 4 + 4 * len(self.chunk)
        if len(data) < size:
            raise bad_chunk(where, f"it has {len(data)} bytes, which is less than its header's {size}")
        mode, stated_axes = struct.unpack_from(">HH", data)
        if mode in N5_MODES:
            raise Unsupported(f"{where()}: a block {N5_MODES[mode]} (mode {mode}); accepted are plain blocks (mode 0).")
        if mode or stated_axes != axes:
            raise bad_chunk(where, f"its header states mode {mode} and {stated_axes} axes, expected 0 and {axes}")
        shape = struct.unpack_from(f">{axes}I", data, 4)[::-1]
        if any(not 0 < a <= b for a, b in zip(shape, self.chunk, strict=True)):
            raise bad_chunk(where, f"its header states {shape} voxels, expected at most {self.chunk}")
        return shape, size


def bad_chunk(where: Where, what: object) -> Malformed:
    return Malformed(f"{where()}: {what}; report it to the publisher.")


def crc32c(data: Bytes) -> int:
    import google_crc32c

    return int(google_crc32c.value(bytes(data)))


def _checked(data: Any, checksums: int) -> memoryview:
    """The bytes without their checksums, which are right."""
    view = memoryview(data).cast("B")
    for _ in range(checksums):
        if len(view) < CRC_BYTES:
            raise BadChunkError(f"it has {len(view)} bytes, which is less than its checksum")
        stated, found = int.from_bytes(view[-CRC_BYTES:], "little"), crc32c(view[:-CRC_BYTES])
        if stated != found:
            raise BadChunkError(f"its CRC-32C is {found:08x}, but {stated:08x} is stored with it")
        view = view[:-CRC_BYTES]
    return view


def _values(plain: bytes, byte_order: str, dtype: str, offsets: Sequence[int]) -> list[float]:
    form = struct.Struct(byte_order + STRUCT_FORMATS[dtype])
    return [float(form.unpack_from(plain, form.size * offset)[0]) for offset in offsets]
