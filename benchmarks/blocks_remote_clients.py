"""The contestants of `blocks_remote.py`. Each opens one volume on a server and then reads the blocks that it is told.

Run as `python blocks_remote_clients.py NAME ADDRESS FOLDER`, a process that stays: a line of JSON on its input asks for
blocks, a line on its output says how long they took and what was in them. The address is the volume's over HTTP; for
clients of S3 the same path is bucket and key at the same server. FOLDER is the volume on this machine.
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
from urllib.parse import urlsplit

import numpy as np

Triple = tuple[int, int, int]
Read = Callable[[Sequence[Triple], int], Sequence[np.ndarray]]
"""(starts, edge) -> blocks. Several starts are one batch."""
CONCURRENCY = 64
"""Requests at once for zarr-python: the best that was found for it."""
BATCH_THREADS = 8
"""zarr-python reads blocks of a batch side by side: the best that was found for it."""
INDEX_POOL_BYTES = 4_000_000
CHUNK_POOL_BYTES = 256_000_000


def em_assets(url: str, folder: Path) -> Read:
    """`read` and `read_many`, default settings."""
    from em_assets.blocks import open as open_volume

    return _em_assets(open_volume(url))


def em_assets_local(url: str, folder: Path) -> Read:
    """The same from the files: what decoding alone takes."""
    from em_assets.blocks import open as open_volume

    return _em_assets(open_volume(folder))


def tensorstore(url: str, folder: Path) -> Read:
    """A cache pool that holds a batch's chunks, futures issued together in one `ts.Batch`."""
    return _tensorstore(url, CHUNK_POOL_BYTES)


def tensorstore_index_pool(url: str, folder: Path) -> Read:
    """The same with a pool for indices only."""
    return _tensorstore(url, INDEX_POOL_BYTES)


def zarr_s3fs(url: str, folder: Path) -> Read:
    from zarr.storage import FsspecStore

    server, path = _bucket(url)
    options = {"anon": True, "client_kwargs": {"endpoint_url": server}, "asynchronous": True}
    return _zarr(FsspecStore.from_url(f"s3://{path}/0", storage_options=options, read_only=True))


def zarr_obstore(url: str, folder: Path) -> Read:
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    server, path = _bucket(url)
    bucket, _, prefix = path.partition("/")
    options = {"allow_http": True}
    store = S3Store(
        bucket,
        prefix=f"{prefix}/0",
        config={"endpoint": server, "skip_signature": True, "region": "us-east-1"},
        client_options=options,
    )
    return _zarr(ObjectStore(store, read_only=True))


def _em_assets(volume: Any) -> Read:
    def read(starts: Sequence[Triple], edge: int) -> Sequence[np.ndarray]:
        if len(starts) == 1:
            return [volume.read(starts[0], shape=edge).data]
        (batch,) = volume.read_many(starts, shape=edge, batch_size=len(starts))
        return list(batch.data)

    return read


def _tensorstore(url: str, pool_bytes: int) -> Read:
    import tensorstore as ts

    context = ts.Context({"cache_pool": {"total_bytes_limit": pool_bytes}})
    array = ts.open(
        {"driver": "zarr3", "kvstore": f"{url}/0/", "recheck_cached_data": "open"}, context=context, read=True
    ).result()

    def read(starts: Sequence[Triple], edge: int) -> Sequence[np.ndarray]:
        with ts.Batch() as batch:
            futures = [array[_slices(start, edge)].read(batch=batch) for start in starts]
        return [future.result() for future in futures]

    return read


def _zarr(store: Any) -> Read:
    import zarr

    zarr.config.set({"async.concurrency": CONCURRENCY})
    array = zarr.open_array(store, mode="r")
    pool = ThreadPoolExecutor(BATCH_THREADS)

    def read(starts: Sequence[Triple], edge: int) -> Sequence[np.ndarray]:
        if len(starts) == 1:
            return [array[_slices(starts[0], edge)]]
        return list(pool.map(lambda start: array[_slices(start, edge)], starts))

    return read


def _slices(start: Triple, edge: int) -> tuple[slice, ...]:
    return tuple(slice(a, a + edge) for a in start)


def _bucket(url: str) -> tuple[str, str]:
    """(server, bucket and key)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")


CLIENTS: dict[str, Callable[[str, Path], Read]] = {
    "em_assets": em_assets,
    "em_assets, local files": em_assets_local,
    "tensorstore": tensorstore,
    "tensorstore, index pool": tensorstore_index_pool,
    "zarr + s3fs": zarr_s3fs,
    "zarr + obstore": zarr_obstore,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads blocks with one client; see blocks_remote.py.")
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    read = CLIENTS[arguments.client](arguments.url, arguments.folder)
    for line in sys.stdin:
        order = json.loads(line)
        begun, cpu_begun = time.perf_counter(), time.process_time()
        blocks = read([tuple(start) for start in order["starts"]], order["edge"])
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
        digest = hashlib.sha256()
        for block in blocks:
            digest.update(memoryview(np.ascontiguousarray(block)).cast("B"))
        reply = {"seconds": seconds, "cpu_seconds": cpu_seconds, "digest": digest.hexdigest()}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
