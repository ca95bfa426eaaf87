"""sha256 of the voxels of a box, read by tensorstore from local files: what decides whether a result is right.

Run as `python digest.py DRIVER FOLDER ZYX_START ZYX_STOP`, a process of its own, so that the one that measures stays
small. Fails if a Zarr array is not exactly as large as the box.
"""

from __future__ import annotations

import hashlib
import sys

import tensorstore as ts
from clients import triple

SLAB = 64
"""Slices read at once: the digest does not depend on it, memory does."""


def main() -> None:
    driver, folder, start, stop = sys.argv[1], sys.argv[2], triple(sys.argv[3]), triple(sys.argv[4])
    kvstore = {"driver": "file", "path": f"{folder}/"}
    array = ts.open({"driver": driver, "kvstore": kvstore}, read=True).result()
    if driver == "neuroglancer_precomputed":
        array = array[..., 0].T
    elif array.shape != stop:
        raise SystemExit(f"{folder} has shape {array.shape}, expected {stop}")
    digest = hashlib.sha256()
    for z in range(start[0], stop[0], SLAB):
        box = (slice(z, min(z + SLAB, stop[0])), slice(start[1], stop[1]), slice(start[2], stop[2]))
        digest.update(memoryview(array[box].read(order="C").result()).cast("B"))
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
