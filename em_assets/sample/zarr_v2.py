"""Writes Zarr v2 multiscale groups as OpenOrganelle publishes them, with plain struct and zstd: no array library.

Independent of `formats/zarr.py`; zarr-python and tensorstore read it back in the tests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from em_assets.volume import Box, Zyx, multiply

Voxels = npt.NDArray[Any]
Triple = tuple[float, float, float]

CHUNK: Zyx = (64, 64, 64)


@dataclass(frozen=True, slots=True)
class Level:
    """One array of a pyramid, with the numbers that stand in the group's attributes."""

    voxels: Voxels
    scale_nm: Triple
    translation_nm: Triple


def halved(voxels: Voxels, *, labels: bool = False) -> Voxels:
    """A level with sides rounded down, the last odd slice left out: 2x means, or of labels every second voxel."""
    z, y, x = (size // 2 * 2 for size in voxels.shape)
    even = voxels[:z, :y, :x]
    if labels:
        return even[::2, ::2, ::2]
    total = np.zeros((z // 2, y // 2, x // 2), np.int64)
    for corner in np.ndindex(2, 2, 2):
        total += even[tuple(slice(start, None, 2) for start in corner)]
    return (total >> 3).astype(voxels.dtype)


def write_multiscale(folder: Path, levels: Sequence[Level], *, zstd_level: int) -> None:
    """Arrays `s0`, `s1` ... and the group's `.zattrs`; no `.zmetadata`. Every chunk is written, also one of zeros."""
    for number, level in enumerate(levels):
        _write_array(folder / f"s{number}", level.voxels, zstd_level)
    write_group(folder)
    _write_json(folder / ".zattrs", {"multiscales": [_multiscale(levels)]})


def write_group(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / ".zgroup", {"zarr_format": 2})


def _write_array(folder: Path, voxels: Voxels, zstd_level: int) -> None:
    """Chunks at the edge are whole, filled up with zeros."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=zstd_level)
    z, y, x = voxels.shape
    whole = Box.from_shape((z, y, x))
    for index in whole.cells(CHUNK):
        box = Box.from_shape(CHUNK, at=multiply(index, CHUNK)).intersection(whole)
        assert box is not None
        chunk = np.zeros(CHUNK, voxels.dtype)
        chunk[Box.from_shape(box.shape).slices] = voxels[box.slices]
        file = folder.joinpath(*(str(i) for i in index))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(compressor.compress(chunk.tobytes()))
    metadata = {
        "chunks": list(CHUNK),
        "compressor": {"id": "zstd", "level": zstd_level},
        "dimension_separator": "/",
        "dtype": voxels.dtype.str,
        "fill_value": 0,
        "filters": None,
        "order": "C",
        "shape": [z, y, x],
        "zarr_format": 2,
    }
    _write_json(folder / ".zarray", metadata)


def _multiscale(levels: Sequence[Level]) -> dict[str, Any]:
    """As in the real file: a scale of 1 for the group, `metadata` and `type` null, an empty name."""
    return {
        "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
        "coordinateTransformations": [{"scale": [1.0, 1.0, 1.0], "type": "scale"}],
        "datasets": [
            {
                "coordinateTransformations": [
                    {"scale": list(level.scale_nm), "type": "scale"},
                    {"translation": list(level.translation_nm), "type": "translation"},
                ],
                "path": f"s{number}",
            }
            for number, level in enumerate(levels)
        ],
        "metadata": None,
        "name": "",
        "type": None,
        "version": "0.4",
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=4))
