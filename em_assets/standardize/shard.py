"""The bytes of one Zarr v3 shard (`sharding_indexed`, index at the end): encoding, and reading it by parts.

No files here: the store's side of it is `stored.py`. Equal voxels give equal bytes: chunks lie in C order, nothing
depends on time, threads or platform (another version of the zstd library may compress to other, equally right bytes).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import google_crc32c
import numpy as np
import zstandard
from numpy.typing import NDArray

from em_assets.datasets.spec import Layout
from em_assets.errors import Malformed
from em_assets.formats._rows import copy_rows
from em_assets.volume import Box, Zyx, ceil_divide, multiply

Read = Callable[[int, int], "bytes | memoryview"]
"""(start, length) to bytes, fewer at the end of the object."""

_ABSENT = 2**64 - 1
"""Offset and length of a chunk that is not there (Zarr v3 sharding codec, "Binary shard format")."""
_CRC_BYTES = 4
_per_thread = threading.local()


@dataclass(frozen=True, slots=True)
class ShardFormat:
    """How voxels become the bytes of a shard; one for all levels of a volume."""

    shard: Zyx
    chunk: Zyx
    dtype: str
    codec: Literal["zstd", "none"] = "zstd"
    codec_level: int = 1

    @classmethod
    def of(cls, spec: Layout) -> ShardFormat:
        output = spec.output
        return cls(output.shard, output.chunk, spec.dtype, output.codec, output.codec_level)

    @property
    def grid(self) -> Zyx:
        """Chunks along z, y, x of a shard."""
        return ceil_divide(self.shard, self.chunk)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def chunk_bytes(self) -> int:
        """Of one decoded chunk."""
        return Box.from_shape(self.chunk).voxels * self.stored_dtype.itemsize

    @property
    def index_bytes(self) -> int:
        """Of the index at the end of a shard, its checksum included."""
        return 16 * Box.from_shape(self.grid).voxels + _CRC_BYTES

    def chunk_box(self, at: Zyx, shape: Zyx) -> Box | None:
        """The part of a shard's box of this shape that a chunk holds, None if it lies outside."""
        return Box.from_shape(self.chunk, at=multiply(at, self.chunk)).intersection(Box.from_shape(shape))


def encode_shard(voxels: NDArray[Any], form: ShardFormat, absent: Collection[Zyx] = ()) -> bytearray:
    """The shard that holds these voxels, which start at its corner and are at most as large as it.

    Chunks wholly beyond the voxels and those in `absent` get no bytes; a chunk that lies partly beyond is filled up
    with 0. A chunk of zeros that is not in `absent` is written: absence is not black.
    """
    if any(n > s for n, s in zip(voxels.shape, form.shard, strict=True)):
        raise ValueError(f"voxels of shape {voxels.shape} do not fit into a shard of {form.shard}")
    compress = _compressor(form)
    index = np.full((*form.grid, 2), _ABSENT, "<u8")
    chunk = np.zeros(form.chunk, form.stored_dtype)
    encoded = bytearray()
    whole = Box.from_shape((voxels.shape[0], voxels.shape[1], voxels.shape[2]))
    for at in whole.cells(form.chunk):
        if at in absent:
            continue
        part = voxels[Box.from_shape(form.chunk, at=multiply(at, form.chunk)).slices]
        if part.shape != form.chunk:
            chunk[...] = 0
        copy_rows(chunk[tuple(slice(n) for n in part.shape)], part)
        data = compress(chunk.data.cast("B"))
        index[at] = len(encoded), len(data)
        encoded += data
    table = index.tobytes()
    encoded += table
    encoded += struct.pack("<I", google_crc32c.value(table))
    return encoded


class ShardReader:
    """One encoded shard. Reads its index at once and of the chunks no more than is asked for.

    Raises Malformed naming the shard where its bytes break the format. A changed byte within a chunk need not break
    it: that is what the sha256 of the record is for.
    """

    def __init__(self, form: ShardFormat, size_bytes: int, read: Read, name: str) -> None:
        self.form, self.name, self._read = form, name, read
        self._index = self._read_index(size_bytes)

    @classmethod
    def of_bytes(cls, data: bytes | bytearray, form: ShardFormat, name: str) -> ShardReader:
        view = memoryview(data)
        return cls(form, len(data), lambda start, length: view[start : start + length], name)

    def chunk(self, at: Zyx) -> NDArray[Any] | None:
        """The decoded chunk, read-only and of the full chunk shape; None if the shard has no such chunk."""
        offset, length = (int(value) for value in self._index[at])
        if offset == _ABSENT:
            return None
        data = self._read(offset, length)
        if len(data) != length:
            raise self._malformed(f"chunk {at} ends after {len(data)} of {length} bytes")
        if self.form.codec == "zstd":
            data = self._decompress(at, data)
        if len(data) != self.form.chunk_bytes:
            raise self._malformed(f"chunk {at} holds {len(data)} bytes, expected {self.form.chunk_bytes}")
        return np.frombuffer(data, self.form.stored_dtype).reshape(self.form.chunk)

    def chunks(self, shape: Zyx) -> Iterator[tuple[Box, NDArray[Any] | None]]:
        """(box within the shard, voxels or None if absent) of each chunk of a shard whose voxels have this shape."""
        for at in Box.from_shape(shape).cells(self.form.chunk):
            box = self.form.chunk_box(at, shape)
            assert box is not None
            chunk = self.chunk(at)
            yield box, None if chunk is None else chunk[tuple(slice(n) for n in box.shape)]

    def _read_index(self, size_bytes: int) -> NDArray[np.uint64]:
        end = size_bytes - self.form.index_bytes
        if end < 0:
            raise self._malformed(f"it has {size_bytes} bytes, its index alone has {self.form.index_bytes}")
        raw = bytes(self._read(end, self.form.index_bytes))
        table, crc = raw[:-_CRC_BYTES], raw[-_CRC_BYTES:]
        if len(raw) != self.form.index_bytes or struct.pack("<I", google_crc32c.value(table)) != crc:
            raise self._malformed("the checksum of its index is wrong")
        index = np.frombuffer(table, "<u8").reshape(*self.form.grid, 2)
        offset, length = index[..., 0], index[..., 1]
        absent = (offset == _ABSENT) & (length == _ABSENT)
        # in this order: unsigned numbers must not wrap
        inside = (length <= end) & (offset <= end - np.minimum(length, np.uint64(end)))
        if not (absent | inside).all():
            at = tuple(int(i) for i in np.argwhere(~(absent | inside))[0])
            raise self._malformed(f"chunk {at} lies outside its {end} bytes of data")
        return index

    def _decompress(self, at: Zyx, data: bytes | memoryview) -> bytes:
        try:
            stated = zstandard.get_frame_parameters(data).content_size
            if stated != self.form.chunk_bytes:  # before anything is allocated for it
                raise self._malformed(f"chunk {at} states {stated} bytes, expected {self.form.chunk_bytes}")
            return _decompressor().decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise self._malformed(f"chunk {at} does not decompress ({error})") from None

    def _malformed(self, what: str) -> Malformed:
        return Malformed(f"{self.name} is not the shard that was written ({what}); materialize the dataset again.")


def decode_shard(data: bytes | bytearray, form: ShardFormat, shape: Zyx, name: str) -> NDArray[Any]:
    """All voxels of a shard whose voxels have this shape (smaller than the shard at the volume's end); 0 where absent.

    Raises Malformed as `ShardReader`.
    """
    voxels = np.zeros(shape, form.stored_dtype)
    for box, chunk in ShardReader.of_bytes(data, form, name).chunks(shape):
        if chunk is not None:
            voxels[box.slices] = chunk
    return voxels


def _compressor(form: ShardFormat) -> Callable[[memoryview], bytes | memoryview]:
    """This thread's compressor: setting one up costs more than a small chunk, and it must not be shared."""
    if form.codec == "none":
        return lambda data: data
    found: dict[int, zstandard.ZstdCompressor] = _per_thread.__dict__.setdefault("compressors", {})
    if form.codec_level not in found:
        found[form.codec_level] = zstandard.ZstdCompressor(level=form.codec_level, write_checksum=False)
    return found[form.codec_level].compress


def _decompressor() -> zstandard.ZstdDecompressor:
    found = _per_thread.__dict__.setdefault("decompressor", None) or zstandard.ZstdDecompressor()
    _per_thread.decompressor = found
    return found
