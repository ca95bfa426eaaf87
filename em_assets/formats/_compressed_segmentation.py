"""Neuroglancer's compressed_segmentation: the labels of one chunk, packed block by block.

Specification: github.com/google/neuroglancer, src/sliceview/compressed_segmentation/README.md. A chunk is cut into
blocks, x fastest. Each has a header of two words: where its table of labels begins and the bits of a number into that
table, then where the numbers begin. A word has 32 bits, little endian; places count words from the first header, which
one word stands before: the start of the only channel.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed
from em_assets.volume import Zyx, ceil_divide, multiply

ONE_CHANNEL = b"\1\0\0\0"
"""What every chunk of one channel begins with."""
MAX_BLOCK_VOXELS = 2**18
"""64^3: 8^3 is usual. Also how many voxels are unpacked at once, so that what lies between stays small."""
BITS = (0, 1, 2, 4, 8, 16, 32)


def padded_shape(shape: Zyx, block: Zyx) -> Zyx:
    """(z, y, x) of the whole blocks that a chunk of this shape takes."""
    return multiply(ceil_divide(shape, block), block)


def max_packed_bytes(shape: Zyx, block: Zyx, item_bytes: int) -> int:
    """No sound chunk is larger: every number in a word of its own, every voxel with an entry in a table."""
    return 4 + 8 * math.prod(ceil_divide(shape, block)) + (4 + item_bytes) * math.prod(padded_shape(shape, block))


def decode_labels(
    data: memoryview, shape: Zyx, block: Zyx, scratch: NDArray[Any], where: Callable[[], str]
) -> NDArray[Any]:
    """The labels of a chunk, (z, y, x), of the type of `scratch`, in which they lie. Raises Malformed.

    `scratch` has room for the padded shape.
    """
    chunk = _open_chunk(data, ceil_divide(shape, block), where)
    entry_words = scratch.dtype.itemsize // 4
    entries = chunk.words if entry_words == 1 else _pairs(data, chunk.words)
    whole = scratch[: math.prod(padded_shape(shape, block))].reshape(padded_shape(shape, block))
    z, y, x = block
    grid_z, grid_y, grid_x = chunk.grid
    blocks = whole.reshape(grid_z, z, grid_y, y, grid_x, x).transpose(0, 2, 4, 1, 3, 5)
    batch = max(1, MAX_BLOCK_VOXELS // math.prod(block))
    for bits in np.unique(chunk.bits).tolist():
        rows = np.flatnonzero(chunk.bits == bits)
        for some in (rows[start : start + batch] for start in range(0, len(rows), batch)):
            at = chunk.tables[some, None] + entry_words * _numbers(chunk, some, bits, math.prod(block))
            chunk.require(some, at.max(axis=1) + entry_words, "its table of labels")
            labels = entries[at].reshape(-1, *(block if bits else (1, 1, 1)))
            blocks[np.unravel_index(some, chunk.grid)] = labels
    return whole[: shape[0], : shape[1], : shape[2]]


def sample_labels(data: memoryview, shape: Zyx, block: Zyx, item_bytes: int, positions: Sequence[Zyx]) -> list[int]:
    """The labels at these (z, y, x) positions of a chunk that `decode_labels` accepted, one by one in whole numbers.

    Shares nothing with it, so that a fault there does not hide itself.
    """
    blocks_y, blocks_x = -(-shape[1] // block[1]), -(-shape[2] // block[2])
    values = []
    for z, y, x in positions:
        place = x // block[2] + blocks_x * (y // block[1] + blocks_y * (z // block[0]))
        first, start = struct.unpack_from("<II", data, 4 + 8 * place)
        table, bits = first % 2**24, first // 2**24
        number = 0
        if bits:
            inside = bits * (x % block[2] + block[2] * (y % block[1] + block[1] * (z % block[0])))
            (word,) = struct.unpack_from("<I", data, 4 + 4 * (start + inside // 32))
            number = word // 2 ** (inside % 32) % 2**bits
        at = 4 + 4 * table + item_bytes * number
        values.append(int.from_bytes(data[at : at + item_bytes], "little"))
    return values


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk whose headers were read."""

    where: Callable[[], str]
    grid: Zyx
    """How many blocks."""
    words: NDArray[np.uint32]
    """From the first header on, which all places count from."""
    tables: NDArray[np.int64]
    """Where each block's table of labels begins."""
    bits: NDArray[np.int64]
    """Of each block's numbers into it."""
    starts: NDArray[np.int64]
    """Where these begin."""

    def name(self, row: int) -> str:
        """A block's, in a message."""
        z, y, x = np.unravel_index(row, self.grid)
        return f"{self.where()}: compressed_segmentation block {x}, {y}, {z} (x, y, z)"

    def require(self, rows: NDArray[np.int64], stops: NDArray[np.int64], what: str) -> None:
        """Raises Malformed if something of these blocks does not stop inside the chunk."""
        beyond = np.flatnonzero(stops > len(self.words))
        if len(beyond):
            raise Malformed(
                f"{self.name(rows[beyond[0]])}: {what} would need {stops[beyond[0]]} words, but there are "
                f"{len(self.words)}; report it to the publisher."
            )


def _open_chunk(data: memoryview, grid: Zyx, where: Callable[[], str]) -> _Chunk:
    """Raises Malformed if the headers are cut or cannot be."""
    count = math.prod(grid)
    if len(data) % 4 or len(data) < 4 + 8 * count:
        raise Malformed(
            f"{where()}: compressed_segmentation of {len(data)} bytes, expected a multiple of 4 and at least "
            f"{4 + 8 * count} for the headers of {count} blocks; report it to the publisher."
        )
    words = np.frombuffer(data, "<u4")[1:]
    first, starts = words[: 2 * count].astype(np.int64).reshape(count, 2).T
    chunk = _Chunk(where, grid, words, first & 0xFFFFFF, first >> 24, starts)
    for row in np.flatnonzero(~np.isin(chunk.bits, BITS))[:1]:
        raise Malformed(
            f"{chunk.name(row)} has numbers of {chunk.bits[row]} bits, expected {', '.join(map(str, BITS[:-1]))} or "
            f"{BITS[-1]}; report it to the publisher."
        )
    lowest = np.where(chunk.bits == 0, chunk.tables, np.minimum(chunk.tables, starts))
    for row in np.flatnonzero(lowest < 2 * count)[:1]:
        raise Malformed(
            f"{chunk.name(row)} begins at word {lowest[row]}, inside the {2 * count} words of headers; report it to "
            "the publisher."
        )
    return chunk


def _pairs(data: memoryview, words: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """The 64-bit label that begins at each word: tables of them begin anywhere. A copy, as taking from it is faster."""
    return np.ascontiguousarray(np.ndarray((len(words) - 1,), "<u8", data, offset=4, strides=(4,)))


def _numbers(chunk: _Chunk, rows: NDArray[np.int64], bits: int, voxels: int) -> NDArray[np.int64]:
    """These blocks' numbers into their tables, (blocks, voxels); of 0 bits one for all voxels. Raises Malformed."""
    if not bits:
        return np.zeros((len(rows), 1), np.int64)
    length = -(-bits * voxels // 32)
    chunk.require(rows, chunk.starts[rows] + length, "its numbers")
    packed = chunk.words[chunk.starts[rows, None] + np.arange(length)]
    numbers: NDArray[np.unsignedinteger[Any]]
    if bits == 1:
        numbers = np.unpackbits(packed.view(np.uint8), axis=1, count=voxels, bitorder="little")
    elif bits < 8:
        numbers = np.repeat(packed.view(np.uint8), 8 // bits, axis=1)
        for part in range(8 // bits):
            numbers[:, part :: 8 // bits] = (numbers[:, part :: 8 // bits] >> part * bits) & (2**bits - 1)
        numbers = numbers[:, :voxels]
    else:
        numbers = packed.view(f"<u{bits // 8}")[:, :voxels]
    return numbers.astype(np.int64)
