"""The contestants of `blocks.py`. Each opens one volume on this machine and then reads the blocks that it is told.

Run as `python blocks_clients.py NAME FOLDER LAYOUT`, a process that stays: a line of JSON on its input asks for blocks,
a line on its output says how long they took and what was in them. FOLDER holds `voxels.npy` and an OME-Zarr for each
layout. Who reads another format writes it there first, with the same chunks and codec, before anything is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Triple = tuple[int, int, int]
Read = Callable[[Sequence[Triple], int], Sequence[np.ndarray]]
"""(starts, edge) -> blocks. Several starts are one batch."""
ZSTD, NONE, STAGED = "zstd", "none", "staged"
"""64^3 chunks with zstd level 1, the same uncompressed, and 256^3 as `em-assets stage` writes; in shards of 256^3."""
LAYOUTS = {ZSTD: 64, NONE: 64, STAGED: 256}
"""The edge of a chunk."""
THREADS = 2
"""zarr-python and h5py read the blocks of a batch side by side: more threads were no faster on two cores."""
INDEX_POOL_BYTES = 1_000_000
"""Holds the indices of all shards and no more than a few decoded chunks."""
CHUNK_POOL_BYTES = 1_000_000_000


def em_assets(folder: Path, layout: str) -> Read:
    """`read` and `read_many` of a dataset in the store, whose files are mapped into memory. Default settings."""
    return _em_assets(_stored(folder / layout))


def em_assets_path(folder: Path, layout: str) -> Read:
    """`open(path)`: anybody's OME-Zarr, whose files are read piece by piece."""
    from em_assets.blocks import open as open_volume

    return _em_assets(open_volume(folder / layout))


def em_assets_engine(folder: Path, layout: str) -> Read:
    """What `Volume` is made of, without it."""
    from em_assets.volume import Box

    engine = _stored(folder / layout).engine(0)

    def read(starts: Sequence[Triple], edge: int) -> Sequence[np.ndarray]:
        out = np.empty((len(starts), edge, edge, edge), np.uint8)
        engine.read([Box.from_shape((edge,) * 3, at=start) for start in starts], list(out))
        return out

    return read


def tensorstore(folder: Path, layout: str) -> Read:
    """A pool for indices, so that no voxels are kept; futures issued together in one `ts.Batch`."""
    return _tensorstore(folder / layout / "0", INDEX_POOL_BYTES)


def tensorstore_no_pool(folder: Path, layout: str) -> Read:
    """The same without a pool: it reads the index of a shard each time."""
    return _tensorstore(folder / layout / "0", 0)


def tensorstore_chunk_pool(folder: Path, layout: str) -> Read:
    """The same with a pool for decoded chunks: what it holds is only copied."""
    return _tensorstore(folder / layout / "0", CHUNK_POOL_BYTES)


def zarr_python(folder: Path, layout: str) -> Read:
    """Default settings."""
    return _zarr(folder / layout / "0")


def zarr_zarrs(folder: Path, layout: str) -> Read:
    """zarr-python with the codec pipeline of zarrs."""
    import zarr
    import zarrs  # noqa: F401  # registers it

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    return _zarr(folder / layout / "0")


def dask(folder: Path, layout: str) -> Read:
    """`from_zarr` with the chunks of the array, threads."""
    import dask
    import dask.array

    array = dask.array.from_zarr(str(folder / layout / "0"))

    def read(starts: Sequence[Triple], edge: int) -> Sequence[np.ndarray]:
        return dask.compute(*(array[_slices(start, edge)] for start in starts), scheduler="threads")

    return read


def h5py(folder: Path, layout: str) -> Read:
    """The same chunks, with zstd level 1 or without, in HDF5; `staged` in one piece."""
    import h5py

    file = folder / f"{layout}.h5"
    if not file.is_file():
        _write_hdf5(file, folder / "voxels.npy", layout)
    if layout == ZSTD:
        import hdf5plugin  # noqa: F401  # registers the codec
    dataset = h5py.File(file, "r")["volume"]
    return _in_threads(lambda start, edge: dataset[_slices(start, edge)])


def cloud_volume(folder: Path, layout: str) -> Read:
    """Precomputed with the same chunks, each in a file."""
    from cloudvolume import CloudVolume

    place = f"file://{folder}/{layout}_precomputed"
    if not (folder / f"{layout}_precomputed").is_dir():
        _write_precomputed(place, folder / "voxels.npy", layout)
    volume = CloudVolume(place, progress=False, fill_missing=False, cache=False, lru_bytes=0, parallel=1)

    def read_one(start: Triple, edge: int) -> np.ndarray:
        found = np.asarray(volume[_slices(start[::-1], edge)])
        return found[..., 0].T

    return _one_by_one(read_one)


def memcpy(folder: Path, layout: str) -> Read:
    """The blocks copied out of an array in RAM, by one thread: nothing that copies can be much faster."""
    voxels = np.load(folder / "voxels.npy")

    def read(starts: Sequence[Triple], edge: int) -> Sequence[np.ndarray]:
        if len(starts) == 1:
            return [np.copy(voxels[_slices(starts[0], edge)])]
        out = np.empty((len(starts), edge, edge, edge), voxels.dtype)
        for block, start in zip(out, starts, strict=True):
            block[...] = voxels[_slices(start, edge)]
        return out

    return read


def _stored(place: Path) -> Any:
    """The volume as it is opened where it lies in the product's store: files are replaced there and never changed."""
    from dataclasses import dataclass

    from em_assets.blocks import open as open_volume
    from em_assets.blocks._backings import OpenedZarr, PlacedVolume
    from em_assets.blocks._readers import open_reader
    from em_assets.blocks.volume import Volume
    from em_assets.settings import read_settings

    @dataclass(frozen=True)
    class Ours(PlacedVolume):
        def open(self) -> OpenedZarr:
            return OpenedZarr(open_reader(self.location, self.settings), self.settings, None, is_ours=True)

    volume = open_volume(place)
    return Volume(volume._description, Ours(volume.location, read_settings()))  # only the files differ


def _em_assets(volume: Any) -> Read:
    def read(starts: Sequence[Triple], edge: int) -> Sequence[np.ndarray]:
        if len(starts) == 1:
            return [volume.read(starts[0], shape=edge).data]
        (batch,) = volume.read_many(starts, shape=edge, batch_size=len(starts))
        return list(batch.data)

    return read


def _tensorstore(array_folder: Path, pool_bytes: int) -> Read:
    import tensorstore as ts

    context = ts.Context({"cache_pool": {"total_bytes_limit": pool_bytes}})
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{array_folder}/"}, "recheck_cached_data": "open"}
    array = ts.open(spec, context=context, read=True).result()

    def read(starts: Sequence[Triple], edge: int) -> Sequence[np.ndarray]:
        with ts.Batch() as batch:
            futures = [array[_slices(start, edge)].read(batch=batch) for start in starts]
        return [future.result() for future in futures]

    return read


def _zarr(array_folder: Path) -> Read:
    import zarr

    array = zarr.open_array(str(array_folder), mode="r")
    return _in_threads(lambda start, edge: array[_slices(start, edge)])


def _in_threads(read_one: Callable[[Triple, int], np.ndarray]) -> Read:
    pool = ThreadPoolExecutor(THREADS)

    def read(starts: Sequence[Triple], edge: int) -> Sequence[np.ndarray]:
        if len(starts) == 1:
            return [read_one(starts[0], edge)]
        return list(pool.map(lambda start: read_one(start, edge), starts))

    return read


def _one_by_one(read_one: Callable[[Triple, int], np.ndarray]) -> Read:
    return lambda starts, edge: [read_one(start, edge) for start in starts]


def _write_hdf5(file: Path, voxels: Path, layout: str) -> None:
    import h5py

    options: dict[str, Any] = {} if layout == STAGED else {"chunks": (LAYOUTS[layout],) * 3}
    if layout == ZSTD:
        import hdf5plugin

        options |= dict(hdf5plugin.Zstd(clevel=1))
    partial = file.with_suffix(".partial")
    with h5py.File(partial, "w") as target:
        target.create_dataset("volume", data=np.load(voxels), **options)
    partial.rename(file)


def _write_precomputed(place: str, voxels: Path, layout: str) -> None:
    from cloudvolume import CloudVolume

    drawn, edge = np.load(voxels, mmap_mode="r"), LAYOUTS[layout]
    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="image",
        data_type="uint8",
        encoding="raw",
        resolution=(8, 8, 8),
        voxel_offset=(0, 0, 0),
        volume_size=drawn.shape[::-1],
        chunk_size=(edge,) * 3,
    )
    volume = CloudVolume(place, info=info, progress=False, compress="zstd" if layout == ZSTD else False)
    volume.commit_info()
    for z in range(0, drawn.shape[0], edge):
        volume[:, :, z : z + edge] = np.ascontiguousarray(drawn[z : z + edge]).T


def _slices(start: Triple, edge: int) -> tuple[slice, ...]:
    return tuple(slice(a, a + edge) for a in start)


CLIENTS: dict[str, Callable[[Path, str], Read]] = {
    "em_assets": em_assets,
    "em_assets, any path": em_assets_path,
    "em_assets, engine": em_assets_engine,
    "tensorstore": tensorstore,
    "tensorstore, no pool": tensorstore_no_pool,
    "tensorstore, chunk pool": tensorstore_chunk_pool,
    "zarr-python": zarr_python,
    "zarr + zarrs": zarr_zarrs,
    "dask": dask,
    "h5py": h5py,
    "cloud-volume": cloud_volume,
    "memcpy": memcpy,
}
NEEDS = {
    "em_assets": ("em_assets",),
    "em_assets, any path": ("em_assets",),
    "em_assets, engine": ("em_assets",),
    "tensorstore": ("tensorstore",),
    "tensorstore, no pool": ("tensorstore",),
    "tensorstore, chunk pool": ("tensorstore",),
    "zarr-python": ("zarr",),
    "zarr + zarrs": ("zarrs", "zarr"),
    "dask": ("dask", "zarr"),
    "h5py": ("h5py", "hdf5plugin"),
    "cloud-volume": ("cloudvolume",),
    "memcpy": ("numpy",),
}
"""The modules that a client's Python must have."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads blocks with one client; see blocks.py.")
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("layout", choices=LAYOUTS)
    arguments = parser.parse_args()
    read = CLIENTS[arguments.client](arguments.folder.absolute(), arguments.layout)
    for line in sys.stdin:
        order = json.loads(line)
        starts = [(z, y, x) for z, y, x in order["starts"]]
        begun, cpu_begun = time.perf_counter(), time.process_time()
        blocks = read(starts, order["edge"])
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
        digest = hashlib.sha256()
        for block in blocks:
            digest.update(memoryview(np.ascontiguousarray(block)).cast("B"))
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "digest": digest.hexdigest()}), flush=True)


if __name__ == "__main__":
    main()
