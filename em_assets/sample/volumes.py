"""Reads a volume of the user's own to publish instead of the drawn one: TIFF, a folder of PNGs, .npy, Zarr.

Only what is needed for that: one 3D uint8 image, of which the middle is cut. The product's readers are in `formats/`.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from em_assets.errors import EmAssetsError, Malformed, Unsupported
from em_assets.volume import Box, Zyx

Voxels = npt.NDArray[np.uint8]

SMALLEST_EDGE = 16
MAX_TIFF_BYTES = 2 << 30
"""A TIFF is decoded whole before it is cut."""
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")
UNREADABLE = (OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, struct.error, zlib.error)
"""What numpy, tifffile, Pillow and zarr raise for a file that is broken."""
ACCEPTED = "a TIFF, a folder of PNG slices, a .npy file or a Zarr folder"


def read_volume(path: Path, at_most: Zyx) -> Voxels:
    """The volume, (z, y, x), or the middle of it where an axis is longer than `at_most`.

    Raises Malformed (not there, not readable) or Unsupported (not 3D, not uint8, too small).
    """
    read = _reader(path)
    try:
        return read(path, at_most)
    except EmAssetsError:
        raise
    except UNREADABLE as error:
        raise Malformed(f"{path} cannot be read ({error}); give {ACCEPTED} that other programs open.") from error


def fingerprint(path: Path) -> str:
    """Changes when a file of the volume does; from names, sizes and times, so that it is cheap.

    Raises as `read_volume` does for what is not there or of no known kind.
    """
    _reader(path)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((str(path.resolve()), stats)).encode()).hexdigest()


def _reader(path: Path) -> Callable[[Path, Zyx], Voxels]:
    if not path.exists():
        raise Malformed(f"{path} does not exist; give {ACCEPTED}.")
    if path.is_dir():
        if any((path / name).is_file() for name in ZARR_FILES):
            return _read_zarr
        if any(path.glob("*.png")):
            return _read_png_stack
    elif path.suffix.lower() in {".tif", ".tiff"}:
        return _read_tiff
    elif path.suffix.lower() == ".npy":
        return _read_npy
    raise Unsupported(f"{path} is of no kind that is read here; give {ACCEPTED}.")


def _read_npy(path: Path, at_most: Zyx) -> Voxels:
    return _cut(path, np.load(path, mmap_mode="r", allow_pickle=False), at_most)


def _read_tiff(path: Path, at_most: Zyx) -> Voxels:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        if series.nbytes > MAX_TIFF_BYTES:
            raise Unsupported(f"{path} decodes to {series.nbytes} bytes; cut it to at most {MAX_TIFF_BYTES} first.")
        return _cut(path, series.asarray(), at_most)


def _read_zarr(path: Path, at_most: Zyx) -> Voxels:
    import zarr

    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Group):
        attributes = dict(node.attrs)
        ome: Any = attributes.get("ome", attributes)
        if "multiscales" not in ome:
            raise Unsupported(f"{path} is a Zarr group without multiscales; name one of its arrays.")
        node = node[ome["multiscales"][0]["datasets"][0]["path"]]
    return _cut(path, node, at_most)


def _read_png_stack(path: Path, at_most: Zyx) -> Voxels:
    """Slices in the order of the numbers in their names."""
    from PIL import Image

    files = sorted(path.glob("*.png"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.stem)])
    with Image.open(files[0]) as first:
        width, height = first.size
    box = _middle((len(files), height, width), at_most)
    slices = []
    for file in files[box.start[0] : box.stop[0]]:
        with Image.open(file) as image:
            if image.mode != "L" or image.size != (width, height):
                raise Unsupported(
                    f"{file} is {image.size[0]} x {image.size[1]} of mode {image.mode}; every slice must be "
                    f"{width} x {height} of mode L (8-bit grey)."
                )
            slices.append(np.asarray(image)[box.slices[1:]])
    return _cut(path, np.stack(slices), at_most)


def _cut(path: Path, array: Any, at_most: Zyx) -> Voxels:
    """The middle of anything that has shape, dtype and slicing. Leading axes of length 1 are dropped."""
    leading = max(len(array.shape) - len(at_most), 0)
    shape = tuple(int(size) for size in array.shape)
    if len(shape) < len(at_most) or set(shape[:leading]) - {1}:
        raise Unsupported(f"{path} has shape {shape}; one (z, y, x) volume is needed.")
    if np.dtype(array.dtype) != np.uint8:
        raise Unsupported(f"{path} holds {np.dtype(array.dtype).name}; the sample is uint8: convert it first.")
    z, y, x = shape[leading:]
    if min(z, y, x) < SMALLEST_EDGE:
        raise Unsupported(f"{path} is {z} x {y} x {x} (z, y, x); at least {SMALLEST_EDGE} voxels are needed each way.")
    return np.ascontiguousarray(array[(0,) * leading + _middle((z, y, x), at_most).slices])


def _middle(shape: Zyx, at_most: Zyx) -> Box:
    z, y, x = (min(size, limit) for size, limit in zip(shape, at_most, strict=True))
    start = ((shape[0] - z) // 2, (shape[1] - y) // 2, (shape[2] - x) // 2)
    return Box.from_shape((z, y, x), at=start)
