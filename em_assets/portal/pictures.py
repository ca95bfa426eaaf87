"""The portal's four pictures of a tomogram: `key-photo-{original,expanded,snapshot,thumbnail}.png`.

All show the mean of the 40 central z planes, x to the right and y down, pixels square whatever the voxels are.
`original` is the whole plane; the others are 1024, 512 and 134 pixels wide, turned by 90 degrees (counter-clockwise)
where the plane is higher than wide, and cut to 4:3 around the middle, which is what the portal's pages have room for.
Unlike the portal's, nothing is drawn over the voxels, and where the publisher has none it is hatched in colour.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from em_assets.formats.reader import VolumeReader
from em_assets.volume import Box, VolumeInfo, Zyx, multiply

if TYPE_CHECKING:
    from PIL.Image import Image

Which = Literal["original", "expanded", "snapshot", "thumbnail"]
WIDTHS: dict[Which, int | None] = {"original": None, "expanded": 1024, "snapshot": 512, "thumbnail": 134}
"""In pixels; the original has a pixel for each voxel of the level that is shown."""
ASPECT = 4 / 3
SLICES = 40
"""Of level 0; of a coarser level as many as are as thick."""
MOST_PIXELS = 2**23
"""Of the plane that is shown: it is summed in float64, 64 MB. A plane of 2896 voxels a side is shown as it is."""
TILE = 512
"""About the side of what is read at once, 40 planes deep: 42 MB of float32."""
PERCENTILES = (0.5, 99.5)
"""Of the mean's pixels, shown black and white: a few bright beads move neither, as they move mean and deviation."""
_HATCH_LIGHT, _HATCH_DARK = (255, 176, 64), (214, 96, 16)
"""As in `standardize.preview`."""
_HATCH_PIXELS = 8

Present = Callable[[int, Box], "NDArray[np.bool_] | None"]
"""Of a level and a box of it: True where the publisher has the voxel; None where it has all."""


@dataclass(frozen=True, slots=True)
class _Picture:
    grey: Image
    real: Image | None
    """255 where there are voxels, else 0; None: everywhere."""


def key_photos(levels: Sequence[VolumeReader], present: Present | None = None) -> dict[Which, bytes]:
    """The four PNGs of an image, of which the levels are given, the finest first. Equal volumes give equal bytes.

    One level is read, the finest whose planes have at most `MOST_PIXELS` pixels. If none is so small, the coarsest
    is averaged further while it is read: memory is bounded. Raises what the reader raises.
    """
    shapes = [reader.info.shape for reader in levels]
    level = _level_to_show(shapes)
    slab = central_slab(shapes[0], shapes[level])
    mean, real = _mean_plane(levels[level], level, slab, present)
    whole = _square(_grey(mean, real), real, levels[level].info)
    framed = _framed(whole)
    return {
        which: _png(whole if width is None else _resized(framed, width, max(1, round(width / ASPECT))))
        for which, width in WIDTHS.items()
    }


def central_slab(finest: Zyx, shown: Zyx) -> Box:
    """The central planes of a level that are as thick as `SLICES` of level 0; all of them, where there are fewer."""
    factor = max(1, round(finest[0] / shown[0]))
    depth = min(shown[0], max(1, round(SLICES / factor)))
    start = (shown[0] - depth) // 2
    return Box((start, 0, 0), (start + depth, shown[1], shown[2]))


def _level_to_show(shapes: Sequence[Zyx]) -> int:
    small = (level for level, (_, y, x) in enumerate(shapes) if y * x <= MOST_PIXELS)
    return next(small, len(shapes) - 1)


def _mean_plane(
    reader: VolumeReader, level: int, slab: Box, present: Present | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(mean along z, where there is one) of the voxels that are real and finite; of n by n of them in a large plane."""
    _, height, width = slab.shape
    n = math.ceil(math.sqrt(height * width / MOST_PIXELS))
    total = np.zeros((-(-height // n), -(-width // n)))
    count = np.zeros(total.shape, np.uint32)
    for box in _tiles(slab, reader.info.chunk, n):
        voxels = reader.read(box.shifted(reader.info.origin))
        real = None if present is None else present(level, box)
        if voxels.dtype.kind == "f":
            finite = np.isfinite(voxels)
            real = finite if real is None else finite & real
        if real is None:
            real = np.broadcast_to(np.True_, box.shape)
        rows, columns = (slice(box.start[axis] // n, -(-box.stop[axis] // n)) for axis in (1, 2))
        total[rows, columns] = _cells(voxels.sum(0, dtype=np.float64, where=real), n)
        count[rows, columns] = _cells(np.add.reduce(real, 0, dtype=np.uint32), n)
    return total / np.maximum(count, 1), count > 0


def _tiles(slab: Box, chunk: Zyx, n: int) -> Iterator[Box]:
    """Parts of the slab, as deep as it is: whole chunks of the reader where they are small, whole cells of n by n."""
    y, x = (TILE // n * n if n > 1 or edge > 2 * TILE else -(-TILE // edge) * edge for edge in chunk[1:])
    tile = (slab.stop[0], y, x)
    for at in slab.cells(tile):
        part = Box.from_shape(tile, at=multiply(at, tile)).intersection(slab)
        if part is not None:
            yield part


def _cells(plane: NDArray[Any], n: int) -> NDArray[Any]:
    """The sum of each n by n pixels; at the far edges, of those that are there."""
    if n == 1:
        return plane
    rows: NDArray[Any] = np.add.reduceat(plane, np.arange(0, plane.shape[0], n), axis=0)
    cells: NDArray[Any] = np.add.reduceat(rows, np.arange(0, plane.shape[1], n), axis=1)
    return cells


def _grey(mean: NDArray[np.float64], real: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Black to white between the percentiles; middle grey where there is nothing, so that its edge does not shine."""
    if not real.any():
        return np.full(mean.shape, 128, np.uint8)
    low, high = (float(value) for value in np.percentile(mean[real], PERCENTILES))
    if not high > low:
        low, high = low - 1, low + 1
    grey = np.where(real, mean, (low + high) / 2)
    grey -= low
    grey *= 255 / (high - low)
    return np.rint(np.clip(grey, 0, 255, out=grey)).astype(np.uint8)


def _square(grey: NDArray[np.uint8], real: NDArray[np.bool_], info: VolumeInfo) -> _Picture:
    """The picture with square pixels, as large as the smaller side of a voxel; no more than `MOST_PIXELS` of them."""
    from PIL import Image

    picture = _Picture(Image.fromarray(grey), None if real.all() else Image.fromarray(real.astype(np.uint8) * 255))
    _, size_y, size_x = info.voxel_size_nm or (1.0, 1.0, 1.0)
    height, width = grey.shape[0] * size_y, grey.shape[1] * size_x
    side = max(min(size_y, size_x), math.sqrt(height * width / MOST_PIXELS))
    return _resized(picture, max(1, round(width / side)), max(1, round(height / side)))


def _framed(picture: _Picture) -> _Picture:
    """Wider than high, and cut to 4:3 around the middle."""
    from PIL.Image import Transpose

    if picture.grey.height > picture.grey.width:
        picture = _each(picture, lambda image: image.transpose(Transpose.ROTATE_90))
    width = max(1, min(picture.grey.width, round(picture.grey.height * ASPECT)))
    height = max(1, min(picture.grey.height, round(picture.grey.width / ASPECT)))
    left, top = (picture.grey.width - width) // 2, (picture.grey.height - height) // 2
    return _each(picture, lambda image: image.crop((left, top, left + width, top + height)))


def _resized(picture: _Picture, width: int, height: int) -> _Picture:
    from PIL.Image import Resampling

    if picture.grey.size == (width, height):
        return picture
    grey = picture.grey.resize((width, height), Resampling.LANCZOS)
    real = None if picture.real is None else picture.real.resize((width, height), Resampling.NEAREST)
    return _Picture(grey, real)


def _each(picture: _Picture, change: Callable[[Image], Image]) -> _Picture:
    return _Picture(change(picture.grey), None if picture.real is None else change(picture.real))


def _png(picture: _Picture) -> bytes:
    """Grey; with colours where something is missing."""
    buffer = io.BytesIO()
    (picture.grey if picture.real is None else _hatched(picture.grey, picture.real)).save(buffer, "PNG")
    return buffer.getvalue()


def _hatched(grey: Image, real: Image) -> Image:
    from PIL import Image

    row, column = np.ogrid[: grey.height, : grey.width]
    is_light = (row + column) % _HATCH_PIXELS < _HATCH_PIXELS // 2
    hatch = np.where(is_light[..., None], np.array(_HATCH_LIGHT), np.array(_HATCH_DARK)).astype(np.uint8)
    return Image.composite(grey.convert("RGB"), Image.fromarray(hatch), real)
