"""The picture of a volume: its three centre slices at one scale, small enough for an event log.

xy lies top left, zy to its right (same y), xz below it (same x). Missing voxels are hatched in colour, never black.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from em_assets.datasets.spec import Layout
from em_assets.records import DatasetFolder, PartitionRecord
from em_assets.standardize.ome import level_factors, level_shapes
from em_assets.standardize.presence import Presence
from em_assets.standardize.shard import ShardFormat
from em_assets.standardize.stored import read_box
from em_assets.volume import Box, VoxelSize, Zyx, zyx

if TYPE_CHECKING:
    from PIL.Image import Image

WANTED_BYTES = 30_000
LARGEST_BYTES = 50_000
_ATTEMPTS = ((256, 64), (224, 32), (192, 32), (192, 16), (160, 16), (128, 16), (96, 16), (64, 8))
"""(pixels of the longest side of a slice, grey values), the best first."""
_GAP = 4
_MARGIN = 13
"""Height of a slice's caption."""
_PAPER, _INK, _HATCH_LIGHT, _HATCH_DARK = range(4)
_COLOURS = ((255, 255, 255), (40, 40, 40), (255, 176, 64), (214, 96, 16))
"""The first entries of the palette; greys follow."""
_PLANES = (("xy", 0), ("zy", 2), ("xz", 1))
"""(caption, the axis the slice is perpendicular to): horizontal axis first."""


@dataclass(frozen=True)
class _Slice:
    """One centre slice, as shown: rows down, columns to the right."""

    caption: str
    values: NDArray[Any]
    present: NDArray[np.bool_]
    size_nm: tuple[float, float]
    """(rows, columns) as a whole."""


def preview_png(folder: DatasetFolder, spec: Layout, records: Iterable[PartitionRecord]) -> bytes:
    """A PNG under 50 KB (about 30). Equal volumes give equal bytes. Reads a few chunks of a coarse level.

    `records` are those of level 0, for what is missing; others are ignored. Raises Malformed if a shard is damaged.
    """
    slices = list(_centre_slices(folder, spec, records))
    png = b""
    for side, greys in _ATTEMPTS:
        png = _compose(slices, spec, side, greys)
        if len(png) <= WANTED_BYTES:
            break
    assert len(png) <= LARGEST_BYTES, "the last attempt has at most 3 * 64 * 64 half bytes"
    return png


def _centre_slices(folder: DatasetFolder, spec: Layout, records: Iterable[PartitionRecord]) -> Iterator[_Slice]:
    shapes = level_shapes(spec.shape)
    factors = level_factors(shapes)
    missing = [box for record in records if record.level == 0 for box in record.missing]
    presence = Presence(shapes, factors, missing, spec.content)
    level = _level_to_show(shapes)
    shape = shapes[level]
    form = ShardFormat.of(spec)
    size_nm = [n * f * s for n, f, s in zip(shape, factors[level], spec.voxel_size_nm, strict=True)]
    for caption, across in _PLANES:
        box = _centre_plane(shape, across)
        values = read_box(folder, form, level, box).squeeze(across)
        mask = presence.mask(level, box)
        present = np.ones(values.shape, np.bool_) if mask is None else mask.squeeze(across)
        rows, columns = (length for axis, length in enumerate(size_nm) if axis != across)
        if caption == "zy":  # y runs down beside xy's y
            yield _Slice(caption, values.T, present.T, (columns, rows))
        else:
            yield _Slice(caption, values, present, (rows, columns))


def _level_to_show(shapes: Sequence[Zyx]) -> int:
    """The coarsest level that still has as many voxels along its longest side as the best picture has pixels."""
    enough = [level for level, shape in enumerate(shapes) if max(shape) >= _ATTEMPTS[0][0]]
    return enough[-1] if enough else 0


def _centre_plane(shape: Zyx, across: int) -> Box:
    start = zyx([n // 2 if axis == across else 0 for axis, n in enumerate(shape)])
    stop = zyx([n // 2 + 1 if axis == across else n for axis, n in enumerate(shape)])
    return Box(start, stop)


def _compose(slices: Sequence[_Slice], spec: Layout, side: int, greys: int) -> bytes:
    """The picture with slices of at most `side` pixels and so many grey values."""
    from PIL import Image, ImageDraw

    nm_per_pixel = max(max(part.size_nm) for part in slices) / side
    window = _grey_window(slices)
    pictures = [_picture(part, window, nm_per_pixel, greys) for part in slices]
    xy, zy, xz = pictures
    left, top = max(xy.width, 2 * _MARGIN) + _GAP, xy.height + _MARGIN + _GAP
    canvas = Image.new("P", (left + max(zy.width, 2 * _MARGIN), top + _MARGIN + xz.height), _PAPER)
    canvas.putpalette(_palette(greys))
    draw = ImageDraw.Draw(canvas)
    draw.fontmode = "1"  # no half tones: they are not in the palette
    for part, picture, place in zip(slices, pictures, ((0, 0), (left, 0), (0, top)), strict=True):
        draw.text((place[0] + 1, place[1]), part.caption, fill=_INK)
        canvas.paste(picture, (place[0], place[1] + _MARGIN))
    _draw_legend(draw, spec, (left, top + _MARGIN), (canvas.width, canvas.height), nm_per_pixel)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _grey_window(slices: Sequence[_Slice]) -> tuple[float, float]:
    """The values shown as black and white: all but the darkest and brightest half percent of the real voxels."""
    real = np.concatenate([part.values[part.present].astype(np.float64) for part in slices])
    real = real[np.isfinite(real)]
    if real.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(real, (0.5, 99.5)))
    return (low, high) if high > low else (low - 1, low + 1)


def _picture(part: _Slice, window: tuple[float, float], nm_per_pixel: float, greys: int) -> Image:
    """The slice at the picture's scale, in the picture's palette."""
    from PIL import Image

    low, high = window
    filled = np.where(part.present & np.isfinite(part.values), part.values, (low + high) / 2).astype(np.float64)
    unit = np.clip((filled - low) / (high - low), 0, 1)
    rows, columns = (max(1, round(length / nm_per_pixel)) for length in part.size_nm)
    grey = Image.fromarray((unit * 255).astype(np.uint8)).resize((columns, rows), Image.Resampling.BOX)
    present = Image.fromarray(part.present.astype(np.uint8)).resize((columns, rows), Image.Resampling.NEAREST)
    indices = len(_COLOURS) + (np.asarray(grey).astype(np.uint16) * greys // 256).astype(np.uint8)
    row, column = np.indices((rows, columns))
    hatch = np.where((row + column) % 8 < 4, _HATCH_LIGHT, _HATCH_DARK).astype(np.uint8)
    return Image.frombytes("P", (columns, rows), np.where(np.asarray(present) > 0, indices, hatch).tobytes())


def _palette(greys: int) -> list[int]:
    levels = [round(255 * step / (greys - 1)) for step in range(greys)]
    return [*(channel for colour in _COLOURS for channel in colour), *(level for level in levels for _ in range(3))]


def _draw_legend(draw: Any, spec: Layout, start: tuple[int, int], stop: tuple[int, int], nm_per_pixel: float) -> None:
    """Shape, voxel size and a scale bar in the free corner, where there is room for them."""
    pixels, text = _scale_bar(spec.voxel_size_nm, spec.shape, nm_per_pixel)
    lines = [
        " x ".join(str(n) for n in spec.shape),
        "voxels (z, y, x)",
        " x ".join(f"{size:.4g}" for size in spec.voxel_size_nm) + " nm",
        "",
        text,
    ]
    width = max(pixels, *(draw.textlength(line) for line in lines)) + 2
    if start[0] + width > stop[0] or start[1] + 12 * len(lines) + 6 > stop[1]:
        return
    for row, line in enumerate(lines):
        draw.text((start[0] + 2, start[1] + 12 * row), line, fill=_INK)
    bottom = start[1] + 12 * len(lines) + 3
    draw.rectangle((start[0] + 2, bottom, start[0] + 1 + pixels, bottom + 2), fill=_INK)


def _scale_bar(voxel_size_nm: VoxelSize, shape: Zyx, nm_per_pixel: float) -> tuple[int, str]:
    """(length in pixels, caption) of a round length, at most half as long as the volume's x axis."""
    longest = voxel_size_nm[2] * shape[2] / 2
    decade = 10.0 ** np.floor(np.log10(longest))
    length = float(max(step * decade for step in (1, 2, 5) if step * decade <= longest))
    caption = f"{length / 1000:g} um" if length >= 1000 else f"{length:g} nm"
    return max(1, round(length / nm_per_pixel)), caption
