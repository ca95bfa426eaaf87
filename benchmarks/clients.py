"""The contestants. Each copies a box of a precomputed volume into a local Zarr v3 array: shards of 256^3, chunks of
64^3, zstd level 1, level 0 only.

Run as `python clients.py NAME URL OUT ZYX_START ZYX_STOP`, a fresh process per run, so that each pays for its own start
and its own imports (which is why they stand inside the functions). Prints the array's folder.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Triple = tuple[int, int, int]
Client = Callable[[str, Path, Triple, Triple], Path]

SHARD_EDGE = 256
CHUNK_EDGE = 64
CACHE_POOL_BYTES = 200_000_000
VOXEL_SIZE_NM = (8.0, 8.0, 8.0)
BYTES_CODEC = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD_CODEC = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}


def em_assets(url: str, out: Path, start: Triple, stop: Triple) -> Path:
    """The product's plain functions, default settings: with sha256, statistics, read-back comparison and a record of
    every shard."""
    from em_assets.fetch.http import HttpClient
    from em_assets.formats.precomputed import open_precomputed
    from em_assets.records import VOLUME, DatasetFolder, partition_key
    from em_assets.settings import Settings
    from em_assets.standardize.ingest import fetch_regions
    from em_assets.store import open_store
    from em_assets.volume import Box

    settings = Settings(root=str(out))
    reader = open_precomputed(url, 0, HttpClient(settings), settings)
    spec = _spec(url, start, stop, reader.info.shape)
    store = open_store(settings.root)
    keys = [partition_key(index) for index in spec.shard_indices()]
    _, failures = fetch_regions(
        DatasetFolder(store, spec.name), spec, reader, Box(start, stop), keys, with_levels_above=False
    )
    if failures:
        raise next(iter(failures.values()))
    return out / spec.name / VOLUME / "0"


def tensorstore_default(url: str, out: Path, start: Triple, stop: Triple) -> Path:
    """What its documentation leads to: one write of one store into another, everything left at its default."""
    return _tensorstore_whole(url, out, start, stop, cache_pool_bytes=0)


def tensorstore_cache(url: str, out: Path, start: Triple, stop: Triple) -> Path:
    """The same with a cache pool, which keeps shard indices and decoded chunks."""
    return _tensorstore_whole(url, out, start, stop, cache_pool_bytes=CACHE_POOL_BYTES)


def tensorstore_by_shard(url: str, out: Path, start: Triple, stop: Triple) -> Path:
    """The best that was found for it: shard by shard through memory, the next read while the last is written."""
    source, target = _tensorstores(url, out, start, stop, CACHE_POOL_BYTES)
    written = None
    for box in _shard_boxes(target.shape):
        voxels = source[box].read().result()
        if written is not None:
            written.result()
        written = target[box].write(voxels)
    if written is not None:
        written.result()
    return out


def cloud_volume(url: str, out: Path, start: Triple, stop: Triple) -> Path:
    """Slab by slab of a shard's height into zarr-python, reads rounded out to the publisher's chunks (they cost it
    many times more otherwise)."""
    import zarr
    from cloudvolume import CloudVolume
    from zarr.codecs import ZstdCodec

    volume = CloudVolume(f"precomputed://{url}", mip=0, parallel=1, progress=False)
    size = [int(n) for n in reversed(volume.volume_size)]
    target = zarr.create_array(
        store=out,
        shape=[b - a for a, b in zip(start, stop, strict=True)],
        shards=(SHARD_EDGE,) * 3,
        chunks=(CHUNK_EDGE,) * 3,
        dtype="uint8",
        compressors=ZstdCodec(level=1, checksum=False),
        fill_value=0,
    )
    for z in range(start[0], stop[0], SHARD_EDGE):
        slab_start, slab_stop = (z, *start[1:]), (min(z + SHARD_EDGE, stop[0]), *stop[1:])
        low = [a // CHUNK_EDGE * CHUNK_EDGE for a in slab_start]
        high = [min(-(-b // CHUNK_EDGE) * CHUNK_EDGE, n) for b, n in zip(slab_stop, size, strict=True)]
        hull = volume[low[2] : high[2], low[1] : high[1], low[0] : high[0]]
        inner = tuple(slice(a - o, b - o) for a, b, o in zip(slab_start, slab_stop, low, strict=True))
        target[z - start[0] : slab_stop[0] - start[0]] = hull[..., 0].T[inner]
    return out


CLIENTS: dict[str, Client] = {
    "em_assets": em_assets,
    "tensorstore": tensorstore_default,
    "tensorstore-cache": tensorstore_cache,
    "tensorstore-by-shard": tensorstore_by_shard,
    "cloud-volume": cloud_volume,
}
BASELINE = "tensorstore"
SYNCS = {
    "em_assets": "yes: every shard and record is fsynced, then renamed",
    "tensorstore": "yes (its default, `file_io_sync`)",
    "tensorstore-cache": "yes (its default)",
    "tensorstore-by-shard": "yes (its default)",
    "cloud-volume": "no: zarr-python leaves it to the system",
}
"""Whether the result would survive a power cut at the moment the command ends."""


def _spec(url: str, start: Triple, stop: Triple, source_shape: Triple) -> Any:
    from em_assets.datasets.spec import DatasetSpec

    crop = {"shape": [b - a for a, b in zip(start, stop, strict=True)], "origin": list(start), "snap": False}
    expected = {"source_shape": list(source_shape), "dtype": "uint8", "voxel_size_nm": list(VOXEL_SIZE_NM)}
    words = ("title", "description", "source_id", "license", "citation")
    document = dict.fromkeys(words, "benchmark") | {
        "name": "benchmark",
        "publisher": "benchmark",
        "page_url": url,
        "doi": "10.5072/benchmark",
        "source": {"kind": "precomputed", "url": url, "level": 0},
        "crop": crop,
        "expected": expected,
        "output": {"shard": [SHARD_EDGE] * 3, "chunk": [CHUNK_EDGE] * 3, "codec": "zstd", "codec_level": 1},
    }
    return DatasetSpec.model_validate(document)


def _tensorstore_whole(url: str, out: Path, start: Triple, stop: Triple, cache_pool_bytes: int) -> Path:
    source, target = _tensorstores(url, out, start, stop, cache_pool_bytes)
    target.write(source).result()
    return out


def _tensorstores(url: str, out: Path, start: Triple, stop: Triple, cache_pool_bytes: int) -> tuple[Any, Any]:
    """The crop, (z, y, x) from 0, and the array that it goes to."""
    import tensorstore as ts

    pool = {"cache_pool": {"total_bytes_limit": cache_pool_bytes}} if cache_pool_bytes else {}
    context = ts.Context(pool)
    precomputed = {"driver": "neuroglancer_precomputed", "kvstore": f"{url}/"}
    source = ts.open(precomputed, context=context, read=True).result()[..., 0].T
    sharding = {
        "chunk_shape": [CHUNK_EDGE] * 3,
        "codecs": [BYTES_CODEC, ZSTD_CODEC],
        "index_codecs": [BYTES_CODEC, {"name": "crc32c"}],
    }
    metadata = {
        "shape": [b - a for a, b in zip(start, stop, strict=True)],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD_EDGE] * 3}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "fill_value": 0,
    }
    zarr3 = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{out}/"}, "metadata": metadata}
    target = ts.open(zarr3, context=context, create=True).result()
    return source[_slices(start, stop)].translate_to[0], target


def _shard_boxes(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    for corner in itertools.product(*(range(0, n, SHARD_EDGE) for n in shape)):
        yield tuple(slice(a, min(a + SHARD_EDGE, n)) for a, n in zip(corner, shape, strict=True))


def _slices(start: Triple, stop: Triple) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True))


def triple(text: str) -> Triple:
    z, y, x = (int(part) for part in text.split(","))
    return z, y, x


def main() -> None:
    parser = argparse.ArgumentParser(description="Copies one box with one client; see precomputed_crop.py.")
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("start", type=triple)
    parser.add_argument("stop", type=triple)
    arguments = parser.parse_args()
    print(CLIENTS[arguments.client](arguments.url, arguments.out, arguments.start, arguments.stop))


if __name__ == "__main__":
    main()
