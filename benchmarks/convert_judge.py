"""What a converted volume is worth, read by tensorstore: level 0 voxel for voxel, and how far level 1 is from the mean.

Run as `python convert_judge.py STACK DRIVER LEVEL0 LEVEL1`, a process of its own, so that the one that measures stays
small. Prints `right`, with the mean distance of level 1's voxels from the exact mean of the eight below: 0.25 is what
correct rounding leaves of uint8 noise, 0.44 truncation, more another filter. It fails if level 0 is not the stack.
"""

from __future__ import annotations

import sys

import numpy as np
import tensorstore as ts
import tifffile

SLAB = 64


def main() -> None:
    stack, driver, fine, coarse = sys.argv[1:]
    source = tifffile.memmap(stack, mode="r")
    levels = [ts.open({"driver": driver, "kvstore": f"file://{path}/"}, read=True).result() for path in (fine, coarse)]
    if tuple(levels[0].shape) != source.shape:
        raise SystemExit(f"level 0 has shape {levels[0].shape}, expected {source.shape}")
    for z in range(0, source.shape[0], SLAB):
        if not np.array_equal(levels[0][z : z + SLAB].read().result(), source[z : z + SLAB]):
            raise SystemExit(f"level 0 differs from the stack between planes {z} and {z + SLAB}")
    if tuple(levels[1].shape) != tuple(-(-n // 2) for n in source.shape):
        print(f"right, level 1 has another shape, {tuple(levels[1].shape)}")
        return
    block = source[:SLAB].astype(np.float64)
    mean = block.reshape(SLAB // 2, 2, block.shape[1] // 2, 2, block.shape[2] // 2, 2).mean(axis=(1, 3, 5))
    distance = np.abs(levels[1][: SLAB // 2].read().result() - mean).mean()
    print(f"right, level 1 off by {distance:.2f}")


if __name__ == "__main__":
    main()
