"""Contact sheets: the middle z plane of each of many blocks, in one picture.

All blocks of a volume are shown with one scale of grey, so that a dark block looks dark. Labels have a colour each, 0
is clear. Missing voxels are hatched in colour, never black. The line above a block gives its number and its split, and
how much of it is real if that is not all.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from em_assets.errors import Mismatch
from em_assets.volume import Zyx, zyx

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from em_assets.blocks.volume import Volume

Row = Mapping[str, Any]
"""Of the table `blocks`: `name`, `id`, `level`, where it starts, its shape, `split` and `coverage`."""

TILE_PIXELS = 128
"""The longer side of a block's plane."""
SHOWN_VALUES = (0.5, 99.5)
"""Percentiles of what is shown that become black and white."""
_GAP, _LINE, _BAR = 6, 13, 3
"""Pixels between blocks, of a line of text, and of the bar in a split's colour."""
_NARROWEST = 300
"""So that the title of a single block has room, too."""
_PAPER, _INK, _LIGHT, _DARK = (255, 255, 255), (40, 40, 40), (255, 176, 64), (214, 96, 16)
SPLIT_COLOURS = {"train": (70, 130, 180), "val": (230, 159, 0), "test": (0, 158, 115)}
MARGIN, MARGIN_COLOUR = "margin", (190, 190, 190)
"""Of blocks between the splits."""
_GOLDEN = 0x9E3779B97F4A7C15
"""Labels that follow each other get colours far apart (2^64 divided by the golden ratio)."""


@dataclass(frozen=True)
class Plane:
    """The middle z plane of a block, as it is stored."""

    row: Row
    values: NDArray[Any]
    valid: NDArray[np.bool_]
    size_nm: tuple[float, float]
    """(rows, columns) as a whole."""


def contact_sheet(volume: Volume, rows: Sequence[Row], columns: int = 8, *, pixels: int = TILE_PIXELS) -> bytes:
    """A PNG of these blocks of one volume, in their order. Equal blocks give equal bytes.

    Of each block one plane is read. Raises Mismatch if there are none, and as reading does.
    """
    return sheet_of([(volume, row) for row in rows], columns, pixels=pixels)


def sheet_of(blocks: Sequence[tuple[Volume, Row]], columns: int = 8, *, pixels: int = TILE_PIXELS) -> bytes:
    """The same of blocks of several volumes, each volume with its own scale of grey."""
    if not blocks:
        raise Mismatch("there is no block to show; choose others.")
    planes = [read_plane(volume, row) for volume, row in blocks]
    windows = _windows(blocks, planes)
    nm_per_pixel = max(max(plane.size_nm) for plane in planes) / pixels
    pictures = [
        _picture(plane, windows.get(volume.name), nm_per_pixel)
        for (volume, _), plane in zip(blocks, planes, strict=True)
    ]
    several = len({volume.name for volume, _ in blocks}) > 1
    return _png(_arranged(planes, pictures, columns, _title(blocks, planes), several=several))


def read_plane(volume: Volume, row: Row) -> Plane:
    """The block's middle plane; of two, the further one."""
    start, shape = _triple(row, "start"), _triple(row, "shape")
    level = int(row["level"])
    middle = (start[0] + shape[0] // 2, *start[1:])
    block = volume.read(middle, shape=(1, *shape[1:]), level=level, missing="mask")
    _, size_y, size_x = volume.levels[level].grid.voxel_size_nm
    values = block.data[0]
    valid = np.ones(values.shape, np.bool_) if block.valid is None else block.valid[0]
    return Plane(row, values, valid, (shape[1] * size_y, shape[2] * size_x))


def _triple(row: Row, what: str) -> Zyx:
    return zyx([int(row[f"{what}_{axis}"]) for axis in "zyx"])


def _windows(blocks: Sequence[tuple[Volume, Row]], planes: Sequence[Plane]) -> dict[str, tuple[float, float]]:
    """What is black and what is white of each volume that has grey values."""
    shown: dict[str, list[NDArray[Any]]] = {}
    for (volume, _), plane in zip(blocks, planes, strict=True):
        if volume.content != "labels":
            real = plane.values[plane.valid].astype(np.float64)
            shown.setdefault(volume.name, []).append(real[np.isfinite(real)])
    return {name: _window(np.concatenate(values)) for name, values in shown.items()}


def _window(values: NDArray[np.float64]) -> tuple[float, float]:
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, SHOWN_VALUES))
    return (low, high) if high > low else (low - 1, low + 1)


def _picture(plane: Plane, window: tuple[float, float] | None, nm_per_pixel: float) -> Image:
    """The plane at the sheet's scale."""
    from PIL import Image

    rows, columns = (max(1, round(length / nm_per_pixel)) for length in plane.size_nm)
    if window is None:
        colours = Image.fromarray(_coloured(plane.values)).resize((columns, rows), Image.Resampling.NEAREST)
    else:
        grey = Image.fromarray(_grey(plane, window)).resize((columns, rows), Image.Resampling.BOX)
        colours = grey.convert("RGB")
    valid = Image.fromarray(plane.valid.astype(np.uint8)).resize((columns, rows), Image.Resampling.NEAREST)
    row, column = np.indices((rows, columns))
    hatch = np.where(((row + column) % 8 < 4)[..., None], _LIGHT, _DARK).astype(np.uint8)
    shown = np.where((np.asarray(valid) > 0)[..., None], np.asarray(colours), hatch)
    return Image.fromarray(shown)


def _grey(plane: Plane, window: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = window
    is_shown = plane.valid & np.isfinite(plane.values)
    values = np.where(is_shown, plane.values, (low + high) / 2).astype(np.float64)
    return (np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _coloured(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Each label in a colour of its own, the same in every picture; 0 is paper."""
    ids, places = np.unique(labels, return_inverse=True)
    hashed = ids.astype(np.int64).view(np.uint64) * np.uint64(_GOLDEN)  # wraps, as it is meant to
    hue = (hashed >> np.uint64(40)).astype(np.float64) / 2**24
    third = np.array([0.0, 1 / 3, 2 / 3])
    colours = (155 + 75 * np.cos(2 * math.pi * (hue[:, None] - third))).astype(np.uint8)
    colours[ids == 0] = _PAPER
    shown: NDArray[np.uint8] = colours[places.reshape(labels.shape)]
    return shown


def _title(blocks: Sequence[tuple[Volume, Row]], planes: Sequence[Plane]) -> str:
    names = sorted({volume.name for volume, _ in blocks})
    levels = sorted({int(row["level"]) for _, row in blocks})
    sizes = {f"{plane.size_nm[0]:.6g} x {plane.size_nm[1]:.6g} nm (y, x)" for plane in planes}
    level = f"level {levels[0]}" if len(levels) == 1 else "several levels"
    size = sizes.pop() if len(sizes) == 1 else "one scale"
    count = f"{len(blocks)} block{'s' if len(blocks) > 1 else ''}"
    return f"{', '.join(names)}: {count}, {level}, middle z planes, {size}"


def _arranged(planes: Sequence[Plane], pictures: Sequence[Image], columns: int, title: str, *, several: bool) -> Image:
    """Tiles of one size in rows, below the title."""
    from PIL import Image, ImageDraw

    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    columns = max(1, min(columns, len(pictures)))
    step_x, step_y = width + _GAP, height + _LINE + _BAR + _GAP
    across = max(columns * step_x + _GAP, _NARROWEST)
    down = math.ceil(len(pictures) / columns) * step_y + _LINE + _GAP
    lines = _folded(title, across - 2 * _GAP)
    top = _LINE * (len(lines) - 1)
    canvas = Image.new("RGB", (across, down + top), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((_GAP, _GAP // 2 + number * _LINE), line, fill=_INK)
    for number, (plane, picture) in enumerate(zip(planes, pictures, strict=True)):
        row, column = divmod(number, columns)
        left, upper = _GAP + column * step_x, top + _LINE + _GAP + row * step_y
        split = plane.row.get("split") or MARGIN
        draw.text((left, upper - 1), _caption(plane.row, split, several=several, width=width), fill=_INK)
        colour = SPLIT_COLOURS.get(split, MARGIN_COLOUR)
        draw.rectangle((left, upper + _LINE, left + picture.width - 1, upper + _LINE + _BAR - 1), fill=colour)
        canvas.paste(picture, (left, upper + _LINE + _BAR))
    return canvas


def _caption(row: Row, split: str, *, several: bool, width: int) -> str:
    """As much of it as there is room for."""
    coverage = row.get("coverage")
    parts = [f"{row['id']} {split}", *([f"{coverage:.0%}"] if coverage is not None and coverage < 1 else [])]
    words = " ".join([*([str(row["name"])] if several else []), *parts])
    return _folded(words, width)[0] if _length(words) > width else words


def _folded(text: str, width: int) -> list[str]:
    """The words in lines of at most so many pixels; a longer word stays whole."""
    lines: list[str] = []
    for word in text.split():
        if lines and _length(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _length(text: str) -> float:
    from PIL import ImageFont

    return ImageFont.load_default().getlength(text)


def _png(canvas: Image) -> bytes:
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
