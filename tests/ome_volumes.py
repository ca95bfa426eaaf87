"""Small OME-Zarr volumes as other people write them: with zarr-python, of any chunking, with chunks left out."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import zarr

from em_assets.volume import Box, Zyx, multiply


def write_ome_zarr(
    folder: Path,
    levels: Sequence[np.ndarray],
    *,
    chunk: Zyx,
    shard: Zyx | None = None,
    voxel_size_nm: tuple[float, float, float] = (8.0, 8.0, 8.0),
    corner_nm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    convention: str = "centre",
    absent: Collection[Zyx] = (),
    zarr_format: int = 3,
    kind: str = "mean",
    compressed: bool = True,
) -> Path:
    """Level k has voxels 2^k times as large. `absent`: chunks of level 0 that are never written.

    `convention` says what translations place: `centre`, `corner`, or none are written (`scale-only`).
    """
    datasets = []
    for number, voxels in enumerate(levels):
        array = zarr.create_array(
            str(folder / str(number)),
            shape=voxels.shape,
            chunks=chunk,
            shards=shard,
            dtype=voxels.dtype,
            zarr_format=zarr_format,
            compressors="auto" if compressed else None,
            chunk_key_encoding={"name": "default" if zarr_format == 3 else "v2", "separator": "/"},
            config={"write_empty_chunks": True},
        )
        if number or not absent:
            array[...] = voxels
        else:
            write_chunks(array, voxels, shard or chunk, chunk, absent)
        scale = [size * 2**number for size in voxel_size_nm]
        half = 0.0 if convention == "corner" else 0.5
        entry = [{"type": "scale", "scale": scale}]
        if convention != "scale-only":
            entry.append(
                {"type": "translation", "translation": [c + s * half for c, s in zip(corner_nm, scale, strict=True)]}
            )
        datasets.append({"path": str(number), "coordinateTransformations": entry})
    image = {
        "name": folder.name,
        "type": kind,
        "axes": [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"],
        "datasets": datasets,
    }
    if zarr_format == 3:
        ome = {"ome": {"version": "0.5", "multiscales": [image]}}
        document = {"zarr_format": 3, "node_type": "group", "attributes": ome}
        (folder / "zarr.json").write_text(json.dumps(document))
    else:
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps({"multiscales": [image | {"version": "0.4"}]}))
    return folder


def write_chunks(array, voxels: np.ndarray, written: Zyx, chunk: Zyx, absent: Collection[Zyx]) -> None:
    """All but the absent chunks. zarr-python leaves out a chunk of a shard only if it is empty, so these are."""
    from zarr.core.config import config

    kept = voxels.copy()
    whole = Box.from_shape(voxels.shape)
    for cell in absent:
        part = Box.from_shape(chunk, at=multiply(cell, chunk)).intersection(whole)
        kept[part.slices] = 0
    with config.set({"array.write_empty_chunks": False}):
        lazy = zarr.open_array(array.store, path=array.path, mode="r+")
        lazy = lazy.with_config({"write_empty_chunks": False})
        lazy[...] = kept


def halved(voxels: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 x 2 voxels, of those that are there at odd ends."""
    for axis in range(3):
        odd = voxels.shape[axis] % 2
        if odd:
            voxels = np.concatenate([voxels, np.take(voxels, [-1], axis)], axis)
        even = [slice(None)] * 3
        even[axis] = slice(0, None, 2)
        uneven = [slice(None)] * 3
        uneven[axis] = slice(1, None, 2)
        voxels = (voxels[tuple(even)].astype(np.float64) + voxels[tuple(uneven)]) / 2
    return voxels
