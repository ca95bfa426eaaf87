"""From a checked request to blocks: reading what lies in the volume, padding, resampling, normalizing, labelling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from em_assets.blocks import _memory
from em_assets.blocks._resample import Sampling, rounded
from em_assets.blocks.asking import Normalize, Options, coarsest_within, leaves
from em_assets.blocks.block import Block
from em_assets.blocks.geometry import BoxNm, Nm3, nm3
from em_assets.errors import Mismatch, Unsupported
from em_assets.volume import Box, VoxelSize, Zyx, subtract, zyx

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from em_assets.blocks.volume import Volume

LOW, HIGH = "1", "99"
"""The percentiles that `normalize="percentile"` maps to 0 and 1."""
NORMALIZED_AT_ONCE = 2**17
"""Voxels: what they become before they are rounded stays in the processor's cache."""


def make_blocks(volume: Volume, boxes: Sequence[Box], shape: Zyx, level: int, options: Options) -> list[Block]:
    """Blocks of one shape, read together. Their voxels are parts of one array (n, z, y, x)."""
    grid = volume.levels[level].grid
    inside = [box.intersection(grid.box) for box in boxes]
    for box, part in zip(boxes, inside, strict=True):
        if options.pad is None and part != box:
            raise leaves(volume, box, level)
    data = _memory.empty((len(boxes), *shape), volume.dtype)
    rows = [row for row, part in enumerate(inside) if part is not None]
    parts = [part for part in inside if part is not None]
    places = [part.shifted(subtract((0, 0, 0), boxes[row].start)) for row, part in zip(rows, parts, strict=True)]
    for row, part in enumerate(inside):
        if part != boxes[row]:
            data[row] = 0  # memory that was used before may hold anything, also what cannot be normalized
    outs = [data[row][place.slices] for row, place in zip(rows, places, strict=True)]
    masks = volume.fill_boxes(parts, outs, level, options)
    data = _mapped(volume, data, options)
    valid: list[NDArray[np.bool_] | None] = [np.zeros(shape, np.bool_) if part is None else None for part in inside]
    for row, place, mask in zip(rows, places, masks, strict=True):
        valid[row] = _cleared(data[row], place, mask)
        if place.shape != shape:
            _pad(data[row], place, options)
    for row, part in enumerate(inside):
        if part is None:
            _pad_all(volume, data[row], options)
    made = [
        Block(data[row], valid[row], box, grid.box_nm(box), level, grid.voxel_size_nm, volume.name, source=volume)
        for row, box in enumerate(boxes)
    ]
    return [_with_labels(block, options) for block in made]


def make_resampled(volume: Volume, center_nm: Nm3, shape: Zyx, size: VoxelSize, options: Options) -> Block:
    """A block of voxels of `size` around an exact place, of the coarsest level that is not coarser along any axis."""
    level = coarsest_within(volume.levels, size)
    start = nm3([c - n * s / 2 for c, n, s in zip(center_nm, shape, size, strict=True)])
    box_nm = BoxNm(start, nm3([a + n * s for a, n, s in zip(start, shape, size, strict=True)]))
    sampling = Sampling.of(level.grid, start, size, shape)
    is_labels = volume.content == "labels"
    box = sampling.box(level.grid.shape, is_nearest=is_labels)
    inside = sampling.inside(level.grid.shape)
    is_whole = all(part.all() for part in inside)
    if not is_whole and options.pad is None:
        first, last = level.grid.voxel_at(box_nm.start), level.grid.voxel_at(box_nm.stop)
        raise leaves(volume, Box(first, zyx([b + 1 for b in last])), level.number)
    valid: NDArray[np.bool_] | None = np.zeros(shape, np.bool_)
    if box is None:
        data = _mapped(volume, np.zeros(shape, volume.dtype), options)
        _pad_all(volume, data, options)
    else:
        voxels = np.empty(box.shape, volume.dtype)
        (mask,) = volume.fill_boxes([box], [voxels], level.number, options)
        made = sampling.nearest(voxels, box) if is_labels else rounded(sampling.linear(voxels, box), volume.dtype)
        if mask is not None:
            mask = sampling.nearest(mask, box) if is_labels else sampling.all_of(mask, box)
        data, extent = _mapped(volume, made, options), _extent(inside)
        valid = _cleared(data, extent, None if mask is None else mask[extent.slices])
        if not is_whole:
            _pad(data, extent, options)
    made_of = box or Box((0, 0, 0), (0, 0, 0))
    return _with_labels(Block(data, valid, made_of, box_nm, level.number, size, volume.name, source=volume), options)


def _pad(out: NDArray[Any], inside: Box, options: Options) -> None:
    """Fills what lies outside of `inside`."""
    if options.pad == "constant":
        outside = np.ones(out.shape, np.bool_)
        outside[inside.slices] = False
        out[outside] = options.fill
        return
    widths = [(a, n - b) for a, b, n in zip(inside.start, inside.stop, out.shape, strict=True)]
    out[...] = np.pad(out[inside.slices], widths, mode="edge" if options.pad == "edge" else "reflect")


def _pad_all(volume: Volume, out: NDArray[Any], options: Options) -> None:
    if options.pad != "constant":
        raise Mismatch(
            f"{volume.name}: a block lies wholly outside the volume, so there is no voxel for pad={options.pad!r}; "
            "use pad='constant', or another place."
        )
    out[...] = options.fill


def _mapped(volume: Volume, data: NDArray[Any], options: Options) -> NDArray[Any]:
    """In the grey values and the type that are asked for."""
    if options.normalize is not None:
        data = _normalized(data, *_limits(volume, options.normalize))
    return data if options.dtype is None else data.astype(options.dtype, copy=False)


def _normalized(data: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """(data - low) / (high - low), rounded once. By parts: float64 of a whole batch would be eight times its bytes."""
    out = _memory.empty(data.shape, np.dtype(np.float32))
    voxels, results = data.reshape(-1), out.reshape(-1)
    exact = np.empty(min(NORMALIZED_AT_ONCE, len(voxels)))
    for start in range(0, len(voxels), NORMALIZED_AT_ONCE):
        part = voxels[start : start + NORMALIZED_AT_ONCE]
        room = exact[: len(part)]
        np.subtract(part, low, out=room, dtype=np.float64)
        room /= high - low
        results[start : start + len(part)] = room
    return out


def _cleared(out: NDArray[Any], inside: Box, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Which voxels of a block are real, given those of the part that lies in the volume; the missing ones become 0."""
    if mask is not None:
        out[inside.slices][~mask] = 0
    if inside.shape == out.shape:
        return mask
    valid = np.zeros(out.shape, np.bool_)
    valid[inside.slices] = True if mask is None else mask
    return valid


def _limits(volume: Volume, normalize: Normalize) -> tuple[float, float]:
    """The grey values that become 0 and 1."""
    if isinstance(normalize, tuple | list):
        low, high = (float(value) for value in normalize)
    elif normalize == "range":
        if volume.dtype.kind not in "iu":
            raise Unsupported(f"{volume.name} is {volume.dtype}, whose range is no scale; give normalize=(low, high).")
        low, high = float(np.iinfo(volume.dtype).min), float(np.iinfo(volume.dtype).max)
    elif normalize == "standard":
        statistics = volume.statistics().statistics
        assert statistics is not None
        low, high = statistics.mean, statistics.mean + statistics.standard_deviation
    else:
        percentiles = volume.statistics().distribution.percentiles
        low, high = percentiles[LOW], percentiles[HIGH]
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise Mismatch(f"{volume.name}: grey values {low:g} and {high:g} cannot become 0 and 1; give two that differ.")
    return low, high


def _with_labels(block: Block, options: Options) -> Block:
    """With the label at the middle of each of its voxels; where the other volume has none, 0 and not valid."""
    other = options.labels
    if other is None:
        return block
    level = coarsest_within(other.levels, block.voxel_size_nm)
    shape = zyx(list(block.data.shape))
    sampling = Sampling.of(level.grid, block.box_nm.start, block.voxel_size_nm, shape)
    box = sampling.box(level.grid.shape, is_nearest=True)
    if box is None:
        return replace(block, labels=np.zeros(shape, other.dtype), labels_valid=np.zeros(shape, np.bool_))
    voxels = np.empty(box.shape, other.dtype)
    (mask,) = other.fill_boxes([box], [voxels], level.number, replace(options, missing="mask"))
    labels = sampling.nearest(voxels, box)
    valid = None if mask is None else sampling.nearest(mask, box)
    if not all(part.all() for part in sampling.inside(level.grid.shape)):
        reached = sampling.reached(level.grid.shape)
        valid = reached if valid is None else valid & reached
        labels[~reached] = 0
    return replace(block, labels=labels, labels_valid=valid)


def _extent(inside: Sequence[NDArray[np.bool_]]) -> Box:
    """The part of a block whose middles lie in the volume."""
    places = [np.flatnonzero(part) for part in inside]
    return Box(zyx([int(at[0]) for at in places]), zyx([int(at[-1]) + 1 for at in places]))
