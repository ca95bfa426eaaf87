"""The contestants of `convert.py`. Each turns a TIFF stack into an OME-Zarr of three or more levels, chunks of 64^3,
zstd level 1 where it has a choice.

Run as `python convert_clients.py NAME STACK OUT`, a fresh process per run, so that each pays for its own start and its
own imports (which is why they stand inside the functions). Prints the driver of its arrays for tensorstore and the
folders of the first two levels, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LEVELS = 3
CHUNK_EDGE = 64
SHARD_EDGE = 256
VOXEL_SIZE_NM = (8.0, 8.0, 8.0)
SLAB = 256
"""Planes that tensorstore is given at once: with more it needs more memory, with fewer it encodes chunks twice."""
Levels = tuple[str, Path, Path]
"""(driver, level 0, level 1)."""


def em_assets(stack: Path, out: Path) -> Levels:
    """The product's plain functions with default settings: all levels down to 128 voxels, every shard hashed (sha256),
    counted and recorded, and the volume's documents."""
    from em_assets.datasets.spec import Output, VolumeLayout
    from em_assets.formats.opening import open_volume
    from em_assets.records import DatasetFolder, partition_key
    from em_assets.settings import Settings
    from em_assets.standardize.ingest import fetch_regions
    from em_assets.standardize.ome import write_metadata
    from em_assets.standardize.pyramid import build_pyramid
    from em_assets.store import open_store
    from em_assets.volume import Box

    settings = Settings(root=str(out))
    reader = open_volume(stack, settings=settings)
    info = reader.info
    layout = VolumeLayout(
        name="benchmark",
        shape=info.shape,
        dtype=info.dtype,
        voxel_size_nm=VOXEL_SIZE_NM,
        content="image",
        output=Output(shard=(SHARD_EDGE,) * 3, chunk=(CHUNK_EDGE,) * 3),
        missing_policy="error",
        digest="0" * 16,
    )
    folder = DatasetFolder(open_store(settings.root), layout.name)
    keys = [partition_key(index) for index in layout.shard_indices()]
    records, failures = fetch_regions(folder, layout, reader, Box.from_shape(info.shape), keys)
    if failures:
        raise next(iter(failures.values()))
    build_pyramid(folder, layout, records, workers=settings.workers)
    write_metadata(folder, layout, (0, 0, 0))
    volume = out / layout.name / folder.volume
    return "zarr3", volume / "0", volume / "1"


def tensorstore(stack: Path, out: Path) -> Levels:
    """Its downsample driver over unsharded chunks: the fastest way that was found for it."""
    return _tensorstore(stack, out, shard_edge=None)


def tensorstore_sharded(stack: Path, out: Path) -> Levels:
    """The same into shards of 256^3, which is what the product writes."""
    return _tensorstore(stack, out, shard_edge=SHARD_EDGE)


def dask(stack: Path, out: Path) -> Levels:
    """`coarsen` with the mean, one level after the other, into zarr-python."""
    import dask.array as da
    import numpy as np
    import zarr
    from zarr.codecs import ZstdCodec

    source: Any = da.from_array(_map(stack), chunks=(CHUNK_EDGE, 512, 512))
    for level in range(LEVELS):
        if level:
            below = da.from_zarr(str(out / str(level - 1))).rechunk((2 * CHUNK_EDGE, 512, 512))
            source = da.coarsen(np.mean, below, dict.fromkeys(range(3), 2), trim_excess=True).astype(below.dtype)
        target = zarr.create_array(
            out / str(level),
            shape=source.shape,
            chunks=(CHUNK_EDGE,) * 3,
            dtype=source.dtype,
            compressors=ZstdCodec(level=1),
        )
        da.store(source.rechunk((CHUNK_EDGE, 512, 512)), target, lock=False)
    return "zarr3", out / "0", out / "1"


def ome_zarr_py(stack: Path, out: Path) -> Levels:
    """`write_image` of a dask array."""
    import dask.array as da
    import zarr
    from ome_zarr.writer import write_image

    source = da.from_array(_map(stack), chunks=(CHUNK_EDGE, 512, 512))
    factors = [dict.fromkeys("zyx", 2**level) for level in range(1, LEVELS)]
    write_image(
        source,
        zarr.open_group(out, mode="w"),
        axes="zyx",
        scale_factors=factors,
        storage_options={"chunks": (CHUNK_EDGE,) * 3},
    )
    return _written_by_names(out)


def ngff_zarr(stack: Path, out: Path) -> Levels:
    """Its fastest method, `dask_bin_shrink`."""
    import dask.array as da
    import ngff_zarr as nz

    image = nz.to_ngff_image(da.from_array(_map(stack), chunks=(CHUNK_EDGE, 512, 512)), dims=["z", "y", "x"])
    multiscales = nz.to_multiscales(
        image,
        scale_factors=[2**level for level in range(1, LEVELS)],
        chunks=CHUNK_EDGE,
        method=nz.Methods.DASK_BIN_SHRINK,
    )
    nz.to_ngff_zarr(str(out), multiscales, version="0.5")
    return _written_by_names(out)


CLIENTS: dict[str, Callable[[Path, Path], Levels]] = {
    "em_assets": em_assets,
    "tensorstore": tensorstore,
    "tensorstore, sharded": tensorstore_sharded,
    "dask": dask,
    "ome-zarr-py": ome_zarr_py,
    "ngff-zarr": ngff_zarr,
}
NEEDS = {
    "em_assets": ("em_assets",),
    "tensorstore": ("tensorstore", "tifffile"),
    "tensorstore, sharded": ("tensorstore", "tifffile"),
    "dask": ("dask", "zarr", "tifffile"),
    "ome-zarr-py": ("ome_zarr", "dask", "tifffile"),
    "ngff-zarr": ("ngff_zarr", "dask", "tifffile"),
}


def _map(stack: Path) -> Any:
    """The stack's voxels, mapped: pages of the file, read as they are touched."""
    import tifffile

    return tifffile.memmap(stack, mode="r")


def _tensorstore(stack: Path, out: Path, shard_edge: int | None) -> Levels:
    import tensorstore as ts

    source = _map(stack)
    for level in range(LEVELS):
        if level:
            below = ts.open(_spec(out / str(level - 1))).result()
            source = ts.downsample(below, [2, 2, 2], "mean")
        shape = [int(n) for n in source.shape]
        target = ts.open(_spec(out / str(level), _metadata(shape, shard_edge)), create=True).result()
        for planes in _slabs(shape[0]):
            target[planes].write(source[planes]).result()
    return "zarr3", out / "0", out / "1"


def _spec(folder: Path, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    return spec if metadata is None else spec | {"metadata": metadata}


def _metadata(shape: list[int], shard_edge: int | None) -> dict[str, Any]:
    endian = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs: list[dict[str, Any]] = [endian, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}]
    if shard_edge is not None:
        sharding = {"chunk_shape": [CHUNK_EDGE] * 3, "codecs": codecs, "index_codecs": [endian, {"name": "crc32c"}]}
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    grid = {"name": "regular", "configuration": {"chunk_shape": [shard_edge or CHUNK_EDGE] * 3}}
    return {"shape": shape, "data_type": "uint8", "chunk_grid": grid, "codecs": codecs, "fill_value": 0}


def _slabs(planes: int) -> Iterator[slice]:
    yield from (slice(start, min(start + SLAB, planes)) for start in range(0, planes, SLAB))


def _written_by_names(out: Path) -> Levels:
    """Where the group's own metadata says that its first two levels are."""
    import zarr

    attributes = dict(zarr.open_group(out, mode="r").attrs)
    multiscale = (attributes.get("ome") or attributes)["multiscales"][0]
    fine, coarse = (out / dataset["path"] for dataset in multiscale["datasets"][:2])
    return ("zarr3" if (fine / "zarr.json").is_file() else "zarr"), fine, coarse


if __name__ == "__main__":
    name, stack, out = sys.argv[1:]
    driver, *folders = CLIENTS[name](Path(stack), Path(out))
    print(json.dumps({"driver": driver, "levels": [str(folder) for folder in folders]}))
