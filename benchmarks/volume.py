"""The published volume that the benchmark reads: drawn or given, mirrored to size, written as sharded JPEG precomputed
and kept.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np

from em_assets.sample.precomputed import Sharding, write_precomputed
from em_assets.sample.texture import draw
from em_assets.sample.volumes import fingerprint, read_volume

CHUNK = 64
LARGEST_DRAWN_EDGE = 512
"""More is mirrored from it: drawing costs much, and a mirrored chunk is another JPEG of the same kind."""
JPEG_QUALITY = 85
SHARDING = Sharding(preshift_bits=9, minishard_bits=6, shard_bits=15, minishard_index_encoding="gzip")
"""As the hemibrain's finest scale: a shard is up to 2048^3 voxels, a minishard 512^3."""
MARKER = "complete.json"


def published_volume(work: Path, edge: int, voxels: Path | None) -> Path:
    """The folder that holds `info`, made if this work folder has none of this size and origin.

    `voxels` is anything that the sample origin takes (TIFF, folder of PNG slices, .npy, Zarr), else they are drawn.
    """
    origin = "drawn" if voxels is None else f"given {fingerprint(voxels)}"
    parameters = {"edge": edge, "voxels": origin, "quality": JPEG_QUALITY, "sharding": SHARDING.info()}
    folder = work / f"precomputed_{edge}_{'drawn' if voxels is None else 'given'}"
    marker = folder / MARKER
    if marker.is_file() and json.loads(marker.read_text()) == parameters:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    first = (min(edge, LARGEST_DRAWN_EDGE),) * 3
    volume = _mirrored(draw(first, seed=1) if voxels is None else read_volume(voxels, first), edge)
    write_precomputed(partial, volume, levels=1, chunk=CHUNK, jpeg_quality=JPEG_QUALITY, sharding=SHARDING)
    (partial / MARKER).write_text(json.dumps(parameters))
    partial.rename(folder)
    return folder


def jpeg_ratio(folder: Path, edge: int) -> float:
    """Bytes of the voxels over bytes of the published volume."""
    return edge**3 / sum(file.stat().st_size for file in folder.rglob("*.shard"))


def _mirrored(volume: np.ndarray, edge: int) -> np.ndarray:
    while min(volume.shape) < edge:
        volume = np.pad(volume, [(0, min(edge - size, size)) for size in volume.shape], mode="symmetric")
    return volume
