"""One array of chunks, as its own metadata describe it, and the limits it must keep before any chunk is fetched.

Made by `_zarr_metadata.py` and `n5.py`; read by `_chunked.py`. Shapes and places are in the array's own axis order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from em_assets.errors import Malformed, Unsupported
from em_assets.formats._chunk_codecs import Codec, Index
from em_assets.formats._zarr_shards import Sharding

MAX_AXES = 5
MAX_VOXELS = 2**53
"""9 petavoxels: no volume has more, and products below it are exact in any arithmetic."""
MAX_CHUNK_BYTES = 256 * 2**20
"""Of one decoded chunk: what one thread may have to hold."""


@dataclass(frozen=True)
class StoredArray:
    shape: Index
    chunk: Index
    """What is decoded at once: within a shard, the chunks it consists of."""
    dtype: str
    """numpy name without byte order, of what is decoded: of bool it is uint8."""
    fill_value: int | float
    """Of voxels whose chunk is absent."""
    codec: Codec
    name_of: Callable[[Index], str]
    """Name, within the array, of the object at a place in the grid of objects (chunks, or shards)."""
    sharding: Sharding | None = None
    axes: tuple[str, ...] | None = None
    """Their names, where the array itself states them."""
    attributes: dict[str, Any] = field(default_factory=dict)
    is_bool: bool = False
    """Its uint8 are truth values."""

    def from_cell(self, axis: int, cell: int) -> Self:
        """The same array whose chunks along an axis are counted from this one: what lies there is at 0."""
        if not cell:
            return self
        per_object = 1 if self.sharding is None else self.sharding.chunks[axis]
        first, within = divmod(cell, per_object)

        def name_of(place: Index) -> str:
            return self.name_of((*place[:axis], place[axis] + first, *place[axis + 1 :]))

        if self.sharding is None:
            return replace(self, name_of=name_of)
        entries = within * math.prod(self.sharding.chunks[axis + 1 :])
        return replace(self, name_of=name_of, sharding=replace(self.sharding, first_entry=entries))


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole_numbers(value: object, least: int, where: str) -> Index:
    """A list of whole numbers of at least `least`. Raises Malformed."""
    if not isinstance(value, list) or not all(type(n) is int and n >= least for n in value):
        raise Malformed(f"{where} is {short(value)}, expected a list of whole numbers of at least {least}.")
    return tuple(value)


def require_shapes(shape: Index, chunk: Index, where: str) -> None:
    """Raises Malformed or Unsupported if an array of this shape and chunk shape is not one that can be read."""
    if not 1 <= len(shape) <= MAX_AXES:
        raise Unsupported(f"{where}: the array has {len(shape)} axes; accepted are 1 to {MAX_AXES}.")
    if len(chunk) != len(shape):
        raise Malformed(f"{where}: the array has {len(shape)} axes, its chunks have {len(chunk)}.")
    if 0 in shape:
        raise Unsupported(f"{where}: the array has the shape {shape}, so it holds no voxel.")
    if math.prod(shape) > MAX_VOXELS:
        raise Unsupported(f"{where}: the shape {shape} has more than {MAX_VOXELS} voxels, the most that is read.")


def require_chunk_bytes(chunk: Index, dtype: str, where: str) -> None:
    """Raises Unsupported for a chunk that is too large to hold."""
    size = math.prod(chunk) * np.dtype(dtype).itemsize
    if size > MAX_CHUNK_BYTES:
        raise Unsupported(
            f"{where}: a chunk of {chunk} voxels of {dtype} has {size} bytes; accepted are {MAX_CHUNK_BYTES}."
        )
