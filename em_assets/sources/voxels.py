"""Whole volumes gone through in parts, so that any size needs little memory: comparing two, hashing one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Mismatch, Unsupported
from em_assets.formats._bytes import ByteSource
from em_assets.formats.opening import open_file
from em_assets.formats.reader import VolumeReader
from em_assets.settings import Settings
from em_assets.volume import Box, VolumeInfo, Zyx, add, multiply, zyx

PART_BYTES = 32 * 2**20
"""Of one volume that are held at once."""


class Comparison(NamedTuple):
    """What became of comparing two volumes voxel by voxel."""

    compared_voxels: int
    different_voxels: int
    first_difference: Zyx | None
    """(z, y, x) from the volumes' first voxel; the first in C order, z slowest."""


def compare_same_volume(reader: VolumeReader, other: VolumeReader, *, part_bytes: int = PART_BYTES) -> Comparison:
    """Compares every voxel, part by part. NaN is equal to NaN.

    Raises Mismatch if shape or dtype differ, and what the readers raise for a part that cannot be read.
    """
    ours, theirs = reader.info, other.info
    if (ours.shape, ours.dtype, ours.channels) != (theirs.shape, theirs.dtype, theirs.channels):
        raise Mismatch(
            f"two files that should hold the same voxels have {ours.shape} {ours.dtype} and {theirs.shape} "
            f"{theirs.dtype} (z, y, x); correct same_volume and its axes in the spec, or ask the publisher."
        )
    whole = Box.from_shape(ours.shape)
    cell = _cell(ours, (ours.chunk, theirs.chunk), part_bytes)
    different, first = 0, None
    for index in whole.cells(cell):
        part = Box.from_shape(cell, at=multiply(index, cell)).intersection(whole)
        assert part is not None
        differs = _differs(reader.read(part.shifted(ours.origin)), other.read(part.shifted(theirs.origin)))
        count = int(np.count_nonzero(differs))
        if count:
            place = np.unravel_index(int(np.argmax(differs.any(axis=0) if differs.ndim == 4 else differs)), part.shape)
            at = add(part.start, zyx([int(n) for n in place]))
            different, first = different + count, at if first is None else min(first, at)
    return Comparison(whole.voxels * (ours.channels or 1), different, first)


def pixels_sha256(source: ByteSource, settings: Settings, *, part_bytes: int = PART_BYTES) -> str:
    """sha256 of the decoded voxels of one file: (z, y, x) in the file's own order of axes, C order, little endian.

    Raises Unsupported for several channels, and what its format raises.
    """
    reader = open_file(source, None, settings)
    if reader.info.channels not in (None, 1):
        raise Unsupported(f"{source.name} has {reader.info.channels} channels; a checksum of voxels is known for one.")
    digest = hashlib.sha256()
    for box in _in_c_order(reader.info, part_bytes):
        voxels = reader.read(box)
        digest.update(np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def _differs(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    differs: NDArray[np.bool_] = a != b
    if a.dtype.kind == "f":
        differs &= ~(np.isnan(a) & np.isnan(b))
    return differs


def _in_c_order(info: VolumeInfo, part_bytes: int) -> Iterator[Box]:
    """Boxes whose voxels, one after the other, are the volume in C order: slabs, or strips of a plane."""
    depth, height, width = info.shape
    row_bytes = width * np.dtype(info.dtype).itemsize
    rows = min(height, max(1, part_bytes // row_bytes))
    planes = max(1, part_bytes // (row_bytes * height))
    for z in range(0, depth, planes):
        for y in range(0, height, rows):
            stop = (min(z + planes, depth), min(y + rows, height), width)
            yield Box((z, y, 0), stop).shifted(info.origin)


def _cell(info: VolumeInfo, chunks: Sequence[Zyx], part_bytes: int) -> Zyx:
    """How large the parts are: halved where it makes the two files decode least of their chunks again."""
    item_bytes = np.dtype(info.dtype).itemsize * (info.channels or 1)
    cell = info.shape
    while math.prod(cell) * item_bytes > part_bytes and max(cell) > 1:
        halves = [_halved(cell, axis, chunks) for axis in range(3) if cell[axis] > 1]
        cell = min(halves, key=lambda half: sum(_decoded_times(info.shape, half, chunk) for chunk in chunks))
    return cell


def _halved(cell: Zyx, axis: int, chunks: Sequence[Zyx]) -> Zyx:
    """With one axis about half as long: a multiple of the chunks' sides there, if that is still shorter."""
    length = half = -(-cell[axis] // 2)
    for side in (max(chunk[axis] for chunk in chunks), math.lcm(*(chunk[axis] for chunk in chunks))):
        rounded = -(-half // side) * side
        length = rounded if rounded < cell[axis] else length
    return zyx([length if number == axis else n for number, n in enumerate(cell)])


def _decoded_times(shape: Zyx, cell: Zyx, chunk: Zyx) -> float:
    """How often a chunk is decoded on average if the volume is read cell by cell."""
    times = 1.0
    for length, step, side in zip(shape, cell, chunk, strict=True):
        touched = sum(-(-min(at + step, length) // side) - at // side for at in range(0, length, step))
        times *= touched / -(-length // side)
    return times
