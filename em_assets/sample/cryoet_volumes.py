"""Writes volumes as the CryoET Data Portal publishes them: OME-Zarr 0.4 of three levels, and MRC beside it.

What the portal's writer does is done here too: sides are rounded up and the voxels beyond them count as zeros, there is
no translation, chunks of zeros are not written. Independent of `formats/` and `portal/`: plain struct, and numcodecs
for Blosc; the tests read everything back with other people's libraries.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from em_assets.volume import Box, Zyx, multiply

Voxels = npt.NDArray[Any]
Content = Literal["image", "mask", "tilt_series"]

LEVELS = 3
MRC_MODES = {"int8": 0, "int16": 1, "float32": 2, "float16": 12}
MRC_HEADER_BYTES = 1024
MRC_LABEL = b"SAMPLE: drawn by em_assets, not measured"


def pyramid(voxels: Voxels, content: Content) -> list[Voxels]:
    """The volume and its coarser levels, sides rounded up.

    Means, to which the voxels beyond an odd side add zeros; a mask has 1 where any voxel has; the sections of a tilt
    series stay apart.
    """
    levels = [voxels]
    while len(levels) < LEVELS:
        levels.append(_halved(levels[-1], content))
    return levels


def _halved(voxels: Voxels, content: Content) -> Voxels:
    block = (1, 2, 2) if content == "tilt_series" else (2, 2, 2)
    even = np.pad(voxels, [(0, -size % step) for size, step in zip(voxels.shape, block, strict=True)])
    corners = [
        even[tuple(slice(start, None, step) for start, step in zip(corner, block, strict=True))]
        for corner in np.ndindex(block)
    ]
    if content == "mask":
        mask: Voxels = np.maximum.reduce(corners)
        return mask
    total: Voxels = np.zeros(corners[0].shape, np.float32)
    for corner in corners:  # one after the other: the order of a sum decides its last bit
        total += corner
    total /= np.float32(len(corners))
    return total


def write_ome_zarr(
    folder: Path, voxels: Voxels, *, voxel_size_angstrom: float, content: Content, chunk: Zyx
) -> list[Zyx]:
    """Returns the shapes of the levels."""
    levels = pyramid(voxels, content)
    for number, level in enumerate(levels):
        _write_array(folder / str(number), level, chunk)
    _write_json(folder / ".zgroup", {"zarr_format": 2})
    _write_json(folder / ".zattrs", {"multiscales": [_multiscale(voxel_size_angstrom, content)]})
    return [_zyx(level) for level in levels]


def _multiscale(voxel_size_angstrom: float, content: Content) -> dict[str, Any]:
    """As in the real files: a name that is a slash, empty metadata, multiples of a size rounded to three decimals."""
    along_z = 1 if content == "tilt_series" else 2
    finest = round(voxel_size_angstrom, 3)
    scales = [[round(finest * step**number, 3) for step in (along_z, 2, 2)] for number in range(LEVELS)]
    return {
        "axes": [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"],
        "datasets": [
            {"coordinateTransformations": [{"scale": scale, "type": "scale"}], "path": str(number)}
            for number, scale in enumerate(scales)
        ],
        "metadata": {},
        "name": "/",
        "version": "0.4",
    }


def _write_array(folder: Path, voxels: Voxels, chunk_shape: Zyx) -> None:
    """Chunks at the edge are whole, filled up with zeros; one of zeros alone is not written."""
    from numcodecs import Blosc  # type: ignore[import-untyped]  # published without types

    codec = Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE)
    whole = Box.from_shape(_zyx(voxels))
    for index in whole.cells(chunk_shape):
        box = Box.from_shape(chunk_shape, at=multiply(index, chunk_shape)).intersection(whole)
        assert box is not None
        chunk = np.zeros(chunk_shape, voxels.dtype)
        chunk[Box.from_shape(box.shape).slices] = voxels[box.slices]
        if chunk.any():
            file = folder.joinpath(*(str(i) for i in index))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(codec.encode(chunk))
    metadata = {
        "chunks": list(chunk_shape),
        "compressor": codec.get_config(),
        "dimension_separator": "/",
        "dtype": voxels.dtype.str,
        "fill_value": 0.0 if voxels.dtype.kind == "f" else 0,
        "filters": None,
        "order": "C",
        "shape": list(voxels.shape),
        "zarr_format": 2,
    }
    _write_json(folder / ".zarray", metadata)


def write_mrc(file: Path, voxels: Voxels, *, voxel_size_angstrom: float, content: Content = "image") -> None:
    """MRC2014, little-endian, without an extended header; the sections of a tilt series are a stack of images."""
    file.parent.mkdir(parents=True, exist_ok=True)
    little = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)
    file.write_bytes(_mrc_header(voxels, voxel_size_angstrom, is_stack=content == "tilt_series") + little.tobytes())


def _mrc_header(voxels: Voxels, voxel_size_angstrom: float, *, is_stack: bool) -> bytes:
    """https://www.ccpem.ac.uk/mrc_format/mrc2014.php, word by word."""
    nz, ny, nx = voxels.shape
    mz = 1 if is_stack else nz
    exact = voxels.astype(np.float64)
    mean, deviation = float(exact.mean()), float(exact.std())
    header = struct.pack("<3i i 3i 3i", nx, ny, nz, MRC_MODES[voxels.dtype.name], 0, 0, 0, nx, ny, mz)
    header += struct.pack("<6f 3i", *(n * voxel_size_angstrom for n in (nx, ny, mz)), 90, 90, 90, 1, 2, 3)
    header += struct.pack("<3f i i", float(exact.min()), float(exact.max()), mean, 0 if is_stack else 1, 0)
    header += bytes(8) + bytes(4) + struct.pack("<i", 20140) + bytes(84)  # extra1, no exttyp, nversion, extra2
    header += struct.pack("<3f", 0, 0, 0) + b"MAP " + bytes((0x44, 0x44, 0, 0)) + struct.pack("<f i", deviation, 1)
    return (header + MRC_LABEL.ljust(80)).ljust(MRC_HEADER_BYTES, b"\0")


def write_png(file: Path, grey: npt.NDArray[np.uint8]) -> None:
    """One picture of 8-bit grey."""
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(file, format="PNG")


def _zyx(voxels: Voxels) -> Zyx:
    z, y, x = voxels.shape
    return z, y, x


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=4, sort_keys=True))
