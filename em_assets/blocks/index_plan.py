"""What an index of blocks is made from (`IndexInfo`): the options, the grid, the split and what describes a block.

The grid has whole blocks of one shape (at most the volume's), one every `stride` voxels from 0 on. Where the last one
would leave the volume it is moved back inside: every voxel is in a block, and those blocks, whose start is no multiple
of the stride, share voxels with their neighbours. `index_rows.py` goes through it, `index.py` keeps the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from em_assets.blocks.features import LENGTH, METHOD, Features, ValueRange, dtype_range, feature_vector
from em_assets.blocks.geometry import Grid, nm3
from em_assets.blocks.split import MARGIN, Split, draw_split
from em_assets.errors import Mismatch, Unsupported
from em_assets.records import DatasetRecord
from em_assets.volume import Box, Zyx, multiply, zyx

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from em_assets.blocks.volume import Volume

BLOCK: Zyx = (128, 128, 128)
INDEX_METHOD = 2
"""Raise it when the same voxels give other rows, `features.METHOD` apart: every index is then made again."""
READ_BYTES = 32 * 2**20
"""Voxels of blocks that are read together. Twice that is in memory, since the next are read meanwhile."""


class IndexOptions(TypedDict, total=False):
    """What may be asked for."""

    block: int | Zyx
    """The blocks' shape, clipped to the level's; 128 along each axis unless told."""
    stride: int | Zyx | None
    """Voxels from one block to the next, at most the block's shape, which it is unless told."""
    level: int
    margin: int
    """Blocks of different splits are at least so many voxels apart (default: `split.MARGIN`)."""
    seed: int
    """Of the split."""
    features: Features | None
    """In place of the feature vector of images. It is called from several threads, with voxels, which of them are real
    (None: all), voxel size and value range, and always gives the same number of finite values."""
    features_method: str | None
    """Names it (default: its module and name); is to change whenever it gives other values."""


@dataclass(frozen=True)
class IndexInfo:
    """What an index was made from."""

    sha256: str | None
    """The dataset's (`DatasetRecord.sha256`); None of a volume that is in no store."""
    coverage_sha256: str | None
    method: int
    shape: Zyx
    """Of the level."""
    level: int
    block: Zyx
    stride: Zyx
    margin: int
    seed: int
    value_range: ValueRange | None
    """Darkest and brightest value that entropy and features refer to; None: each block's own (floats), or labels."""
    license: str | None
    publisher: str | None
    features_method: str | None
    """None of labels, which have no features."""
    features_length: int | None
    grid: Grid
    """The level in space."""
    split_grid: Grid
    """What the split is drawn on: level 0 of the dataset's main volume."""
    split_block: Zyx
    split_stride: Zyx

    def digest(self) -> str:
        """Two indexes with one digest have the same rows."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def axes(self) -> tuple[tuple[int, ...], ...]:
        """The starts of the grid's blocks along z, y and x."""
        return grid_axes(self.shape, self.block, self.stride)

    def split(self, name: str) -> Split:
        """The split of the volume `name`, for any box of its level: that of the whole dataset."""
        dataset, axes = name.partition("/")[0], grid_axes(self.split_grid.shape, self.split_block, self.split_stride)
        drawn = draw_split(dataset, axes, self.split_block, seed=self.seed, margin=self.margin)
        return drawn.on(self.split_grid, self.grid)

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> IndexInfo:
        """Of what `dataclasses.asdict` makes of one, by way of JSON. Raises KeyError, TypeError or ValueError."""
        fields = {field.name: stated[field.name] for field in dataclasses.fields(cls)}
        triples = {name: zyx(fields[name]) for name in ("shape", "block", "stride", "split_block", "split_stride")}
        grids = {name: _stated_grid(fields[name]) for name in ("grid", "split_grid")}
        span = fields["value_range"]
        return cls(**fields | triples | grids | {"value_range": None if span is None else (span[0], span[1])})


def grid_axes(shape: Zyx, block: Zyx, stride: Zyx) -> tuple[tuple[int, ...], ...]:
    """The starts of a grid's blocks along z, y and x: every `stride` voxels, the last one moved back inside."""
    axes = []
    for n, length, step in zip(shape, block, stride, strict=True):
        last = n - length
        axes.append((*range(0, last, step), last))
    return tuple(axes)


# The plan


@dataclass(frozen=True)
class Plan:
    volume: Volume
    info: IndexInfo
    features: Features | None
    """None of labels."""

    def of_dataset(self, sha256: str | None, coverage: str | None, license_: str, publisher: str) -> Plan:
        info = dataclasses.replace(
            self.info, sha256=sha256, coverage_sha256=coverage, license=license_, publisher=publisher
        )
        return dataclasses.replace(self, info=info)

    def layers(self) -> Iterator[Iterator[list[Zyx]]]:
        """The grid's indices in bricks that are read together, and these in layers, whole along y and x.

        A layer is to be gone through before the next; nothing is listed before it is needed.
        """
        counts = zyx([len(starts) for starts in self.info.axes])
        brick, whole = self._brick(counts), Box.from_shape(counts)
        for _, layer in itertools.groupby(whole.cells(brick), key=lambda cell: cell[0]):
            parts = (Box.from_shape(brick, multiply(cell, brick)).intersection(whole) for cell in layer)
            yield (list(part.cells((1, 1, 1))) for part in parts if part is not None)

    def _brick(self, counts: Zyx) -> Zyx:
        """Blocks that are read together: neighbours, doubled along x, y and z in turn."""
        block_bytes = math.prod(self.info.block) * self.volume.dtype.itemsize
        brick, at_most = [1, 1, 1], max(1, READ_BYTES // block_bytes)
        is_growing = True
        while is_growing:
            is_growing = False
            for axis in (2, 1, 0):
                if brick[axis] < counts[axis] and math.prod(brick) * 2 <= at_most:
                    brick[axis] *= 2
                    is_growing = True
        return zyx(brick)


def main_grid(record: DatasetRecord) -> Grid | None:
    """Level 0 of the dataset's main volume, None if the record does not say."""
    if record.volume_shape is None or record.voxel_size_nm is None:
        return None
    whole = Grid(record.volume_shape, record.voxel_size_nm, record.corner_nm or (0.0, 0.0, 0.0))
    origin = (0, 0, 0) if record.source_box is None else record.source_box.start
    return dataclasses.replace(whole, corner_nm=whole.place_nm(origin))


def _stated_grid(stated: dict[str, Any]) -> Grid:
    return Grid(zyx(stated["shape"]), nm3(stated["voxel_size_nm"]), nm3(stated["corner_nm"]))


def plan_index(volume: Volume, options: IndexOptions, main: Grid | None = None) -> Plan:
    """`main`: level 0 of another volume, by which the dataset is split.

    Raises Mismatch if the options do not fit each other or the volume.
    """
    level, margin, features = options.get("level", 0), options.get("margin", MARGIN), options.get("features")
    if not 0 <= level < len(volume.levels):
        raise Mismatch(f"{volume.name} has the levels 0 to {len(volume.levels) - 1}, not {level}; choose one of them.")
    if margin < 0:
        raise Mismatch(f"{volume.name}: the margin is {margin} voxels, expected 0 or more.")
    shape = volume.levels[level].grid.shape
    block, stride = _block_and_stride(volume, shape, options)
    split_grid = main or volume.levels[0].grid
    split_block, split_stride = _clipped(volume, split_grid.shape, options)
    chosen = None if volume.content == "labels" else features or feature_vector
    info = IndexInfo(
        sha256=None,
        coverage_sha256=None,
        method=INDEX_METHOD,
        shape=shape,
        level=level,
        block=block,
        stride=stride,
        margin=margin,
        seed=options.get("seed", 0),
        value_range=None if chosen is None else _value_range(volume),
        license=None,
        publisher=None,
        features_method=None if chosen is None else options.get("features_method") or _method(chosen),
        features_length=None if chosen is None else _length(chosen, volume, level, block),
        grid=volume.levels[level].grid,
        split_grid=split_grid,
        split_block=split_block,
        split_stride=split_stride,
    )
    return Plan(volume, info, chosen)


def _block_and_stride(volume: Volume, shape: Zyx, options: IndexOptions) -> tuple[Zyx, Zyx]:
    block, step = _clipped(volume, shape, options)
    # a longer step than a block that was clipped leaves nothing out: there is one block along that axis
    if any(s > b and b < n for s, b, n in zip(step, block, shape, strict=True)):
        raise Mismatch(
            f"{volume.name}: a stride of {step} would leave out voxels between blocks of {block} (z, y, x); make it "
            "at most the block's shape."
        )
    return block, step


def _clipped(volume: Volume, shape: Zyx, options: IndexOptions) -> tuple[Zyx, Zyx]:
    """Block, at most of this shape, and stride as they are asked for."""
    wanted = _three(volume, "block", options.get("block", BLOCK))
    block = zyx([min(length, n) for length, n in zip(wanted, shape, strict=True)])
    stride = options.get("stride")
    return block, block if stride is None else _three(volume, "stride", stride)


def _three(volume: Volume, what: str, value: int | Sequence[int]) -> Zyx:
    triple = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(triple) != 3 or any(n < 1 for n in triple):
        raise Mismatch(f"{volume.name}: the {what} is {value}, expected three whole numbers (z, y, x) of at least 1.")
    return zyx(triple)


def _value_range(volume: Volume) -> ValueRange | None:
    """All values of 8 bit; of wider voxels those that nearly all of the volume's have, where that is known."""
    if volume.dtype.itemsize > 1:
        try:
            percentiles = volume.statistics().distribution.percentiles
        except Unsupported:
            percentiles = {}
        if {"0.1", "99.9"} <= set(percentiles):
            return percentiles["0.1"], percentiles["99.9"]
    return dtype_range(volume.dtype)


def _method(features: Features) -> str:
    if features is feature_vector:
        return METHOD
    name = getattr(features, "__qualname__", type(features).__qualname__)
    if "<" in name:
        raise Mismatch(f"the features are computed by {name}, which is no name to tell them by; give features_method.")
    return f"{getattr(features, '__module__', type(features).__module__)}.{name}"


def _length(features: Features, volume: Volume, level: int, block: Zyx) -> int:
    """How many numbers the features are, from a block that is as dark on one side as it is bright on the other."""
    if features is feature_vector:
        return LENGTH
    ramp = np.broadcast_to(np.linspace(0, 1, block[2]) * 100, block).astype(volume.dtype)
    return len(checked_features(features(ramp, None, volume.levels[level].grid.voxel_size_nm, (0.0, 100.0)), None))


def checked_features(vector: Any, length: int | None) -> NDArray[np.float32]:
    found = np.asarray(vector, np.float32)
    if found.ndim != 1 or not found.size or length not in (None, found.size) or not np.isfinite(found).all():
        raise Mismatch(
            f"the features of a block have the shape {found.shape} and {int(np.isfinite(found).sum())} finite values, "
            f"expected {length or 'one row of'} finite values; correct the function that computes them."
        )
    return found
