"""Shards of a volume in the store: their place, writing one whole, reading parts of one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.records import DatasetFolder, StoredObject
from em_assets.standardize.shard import ShardFormat, ShardReader, encode_shard
from em_assets.volume import Box, Zyx, multiply, subtract


def shard_path(folder: DatasetFolder, level: int, index: Zyx) -> str:
    """Relative to the dataset's folder: `volume.ome.zarr/0/c/1/0/2`."""
    z, y, x = index
    return f"{folder.volume}/{level}/c/{z}/{y}/{x}"


def write_shard(
    folder: DatasetFolder,
    form: ShardFormat,
    level: int,
    index: Zyx,
    *,
    voxels: NDArray[Any],
    absent: Collection[Zyx] = (),
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[StoredObject, ...]:
    """Encodes and stores one shard, atomically. Where every chunk is `absent`, removes the object and returns ().

    Calls `meanwhile`, which uses the time until the disk or the server has it.
    """
    path = shard_path(folder, level, index)
    whole = Box.from_shape((voxels.shape[0], voxels.shape[1], voxels.shape[2]))
    if all(at in absent for at in whole.cells(form.chunk)):
        folder.store.delete(folder.path(path))
        meanwhile()
        return ()
    data = encode_shard(voxels, form, absent)
    with ThreadPoolExecutor(1) as writer:
        written = writer.submit(folder.store.write, folder.path(path), data)
        digest = hashlib.sha256(data).hexdigest()
        meanwhile()
        written.result()
    return (StoredObject(path=path, size_bytes=len(data), sha256=digest),)


def open_shard(folder: DatasetFolder, form: ShardFormat, level: int, index: Zyx) -> ShardReader | None:
    """The stored shard, read by ranges; None if there is none. Raises Malformed if its index is damaged."""
    path = folder.path(shard_path(folder, level, index))
    size_bytes = folder.store.size_bytes(path)
    if size_bytes is None:
        return None
    return ShardReader(form, size_bytes, partial(folder.store.read_range, path), folder.store.uri(path))


def read_box(folder: DatasetFolder, form: ShardFormat, level: int, box: Box) -> NDArray[Any]:
    """The voxels of a box of one level, 0 where nothing is stored; reads the chunks that it touches, no more.

    Raises Malformed if one is damaged.
    """
    voxels = np.zeros(box.shape, form.stored_dtype)
    for index in box.cells(form.shard):
        shard = open_shard(folder, form, level, index)
        if shard is None:
            continue
        corner = multiply(index, form.shard)
        wanted = Box.from_shape(form.shard, at=corner).intersection(box)
        assert wanted is not None
        for at in wanted.shifted(subtract((0, 0, 0), corner)).cells(form.chunk):
            chunk = shard.chunk(at)
            place = Box.from_shape(form.chunk, at=multiply(at, form.chunk)).shifted(corner)
            part = place.intersection(box)
            if chunk is not None and part is not None:
                from_chunk = part.shifted(subtract((0, 0, 0), place.start))
                voxels[part.shifted(subtract((0, 0, 0), box.start)).slices] = chunk[from_chunk.slices]
    return voxels
