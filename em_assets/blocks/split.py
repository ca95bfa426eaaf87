"""Which blocks train, which validate, which test: regions of a volume that keep a margin from each other.

The rule. Boxes of the volume are set apart, some for `val`, some for `test`. A block is

    val     if it lies inside boxes set apart for val (in one of them), and no box for test is nearer than the margin
    test    likewise
    train   if no box that is set apart is nearer than the margin
    None    otherwise: it lies in a margin, and nothing is trained or judged by it

so blocks of different splits are at least `margin` voxels apart along some axis, whatever grid they are of, also where
blocks overlap. The rule asks for nothing but a block's box (`Split.of`): the boxes that one grid chose serve any other.

Where the boxes lie follows from the dataset's name, the seed and one grid alone: that of the blocks of its main
volume's finest level. Its other levels and volumes have the same boxes, in nanometres (`Split.on`), so that a place is
of one split in all of them (of indexes with the same `block`, `stride`, `margin` and `seed`); a coarse one may have no
block that is small enough for them. Two datasets know nothing of each other, also where they are parts of one volume.

A volume of up to 24 blocks along each axis has one box for val in one of its corners (drawn from name and seed) and one
for test in the opposite corner; larger ones are cut into tiles of that size, each with its own, so that no split is of
one place only. Of all sizes that fit, the one is taken whose shares come nearest to the wanted ones, losing few blocks
to margins. A volume of only a few blocks cannot give any away: then `test` is empty, or both are and all its blocks
train (up to 4 in a row, or 2 along each axis). In a thin volume the boxes go through its whole thickness.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from em_assets.blocks.asking import SAME_SIZE
from em_assets.blocks.geometry import BoxNm, Grid
from em_assets.volume import Box, Zyx, zyx

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
SHARES = (0.8, 0.1, 0.1)
MARGIN = 32
"""Voxels: about what a small 3D U-Net sees beyond its block. In a grid of touching blocks every margin up to a block
costs the same layer of blocks."""
TILE_BLOCKS = 24
"""Blocks along a tile's axis: of 24³ blocks, margins cost about a seventh."""
_LOST_WEIGHT = 0.1
"""How much a share of blocks lost to margins weighs against shares that are not as wanted."""
_EMPTY_WEIGHT = 3.0
"""How much an empty split counts against what it lacks: rather a larger validation set than wanted than none."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Boxes that are set apart, in voxels of one level."""

    val: tuple[Box, ...]
    test: tuple[Box, ...]
    margin: Zyx
    """Voxels along each axis; two blocks are apart if they are so along one of them."""
    _edges: dict[str, tuple[Ints, Ints]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        edges = {name: _edges_of(boxes) for name, boxes in (("val", self.val), ("test", self.test))}
        object.__setattr__(self, "_edges", edges)

    def on(self, own: Grid, other: Grid) -> Split:
        """The same places in voxels of another grid; this one is of `own`.

        A box shrinks to whole voxels, by less than one, and the margin is wider by one where it did: blocks of any two
        grids keep the margin (in nanometres) from each other. It is never fewer voxels than here.
        """
        if own == other:
            return self
        boxes = [[_shrunk(own.box_nm(box), other) for box in boxes] for boxes in (self.val, self.test)]
        is_off = any(off for _, off in itertools.chain(*boxes))
        sizes = zip(self.margin, own.voxel_size_nm, other.voxel_size_nm, strict=True)
        margin = [max(n, math.ceil(n * size / wanted - SAME_SIZE)) + is_off for n, size, wanted in sizes]
        val, test = (tuple(box for box, _ in found) for found in boxes)
        return Split(val, test, zyx(margin))

    def of(self, box: Box) -> SplitName | None:
        """The split of a block, None in a margin."""
        return self.of_all([box.start], box.shape)[0]

    def of_all(self, starts: Sequence[Zyx], shape: Zyx) -> list[SplitName | None]:
        """The splits of blocks of one shape."""
        first = np.array(starts, np.int64).reshape(-1, 3)
        last = first + np.array(shape)
        near = {name: self._near(name, first, last) for name in ("val", "test")}
        is_val = self._inside("val", first, last) & ~near["test"]
        is_test = self._inside("test", first, last) & ~near["val"]
        is_train = ~near["val"] & ~near["test"]
        which = np.select([is_train, is_val, is_test], [0, 1, 2], 3)
        names: tuple[SplitName | None, ...] = (*SPLITS, None)
        return [names[number] for number in which.tolist()]

    def _inside(self, name: str, first: Ints, last: Ints) -> NDArray[np.bool_]:
        """Whether one of the boxes contains the block."""
        starts, stops = self._edges[name]
        return _any_box(starts <= first[:, None], stops >= last[:, None])

    def _near(self, name: str, first: Ints, last: Ints) -> NDArray[np.bool_]:
        """Whether one of the boxes is nearer than the margin (or touches the block, or overlaps it)."""
        starts, stops = self._edges[name]
        return _any_box(starts - self.margin < last[:, None], stops + self.margin > first[:, None])


def _shrunk(place: BoxNm, grid: Grid) -> tuple[Box, bool]:
    """The whole voxels within a place (perhaps none, in the middle of it), and whether they are not all of it."""
    starts, stops = grid.voxels_at(place.start), grid.voxels_at(place.stop)
    first = [math.ceil(start - SAME_SIZE) for start in starts]
    after = [max(a, math.floor(stop + SAME_SIZE)) for a, stop in zip(first, stops, strict=True)]
    edges = zip((*first, *after), (*starts, *stops), strict=True)
    return Box(zyx(first), zyx(after)), any(abs(whole - edge) > SAME_SIZE for whole, edge in edges)


def _edges_of(boxes: Sequence[Box]) -> tuple[Ints, Ints]:
    starts = np.array([box.start for box in boxes], np.int64).reshape(-1, 3)
    stops = np.array([box.stop for box in boxes], np.int64).reshape(-1, 3)
    return starts, stops


def _any_box(begins: NDArray[np.bool_], ends: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """From (blocks, boxes, axes): which blocks have a box that fulfils both along all axes."""
    fulfilled: NDArray[np.bool_] = np.any(np.all(begins & ends, axis=2), axis=1)
    return fulfilled


def draw_split(
    name: str,
    axes: Sequence[Sequence[int]],
    block: Zyx,
    *,
    seed: int = 0,
    margin: int = MARGIN,
    shares: tuple[float, float, float] = SHARES,
) -> Split:
    """The split of a dataset by a grid of blocks: `axes` are the starts of these along z, y, x, ascending.

    Equal arguments give equal splits, on every machine. Raises ValueError if the margin is negative or the shares are
    not three positive ones that make up 1 (val and test may be 0).
    """
    if margin < 0:
        raise ValueError(f"the margin is {margin} voxels; expected 0 or more")
    if min(shares) < 0 or shares[0] == 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"the shares of train, val and test are {shares}; expected positive ones whose sum is 1")
    val: list[Box] = []
    test: list[Box] = []
    for number, tile in enumerate(_tiles(axes, block)):
        drawn = hashlib.sha256(f"{name}\n{seed}\n{number}".encode()).digest()
        corner = (bool(drawn[0] & 1), bool(drawn[0] & 2), bool(drawn[0] & 4))
        chosen = _Tile(tile, axes, block, margin).choose(corner, shares[1:])
        for boxes, box in zip((val, test), chosen, strict=True):
            if box is not None:
                boxes.append(box)
    return Split(tuple(val), tuple(test), (margin, margin, margin))


def _tiles(axes: Sequence[Sequence[int]], block: Zyx) -> Iterator[tuple[tuple[int, ...], ...]]:
    """The grid in parts of nearly equal size: each the starts of its blocks along z, y, x."""
    parts = []
    for starts, length in zip(axes, block, strict=True):
        blocks = -(-(starts[-1] + length - starts[0]) // length)
        count = -(-blocks // TILE_BLOCKS)
        cuts = [round(number * len(starts) / count) for number in range(count + 1)]
        parts.append([tuple(starts[a:b]) for a, b in itertools.pairwise(cuts)])
    yield from itertools.product(*parts)


@dataclass(frozen=True)
class _Tile:
    """A part of the grid, and what a box in one of its corners would take from the grid."""

    starts: tuple[tuple[int, ...], ...]
    grid: Sequence[Sequence[int]]
    block: Zyx
    margin: int

    def choose(self, corner: tuple[bool, bool, bool], shares: Sequence[float]) -> tuple[Box | None, Box | None]:
        """The boxes for val (in this corner; True: the far end) and test (in the opposite one); None: better none."""
        opposite = (not corner[0], not corner[1], not corner[2])
        val = self._best(_Corner.of(self, corner), None, (shares[0],))
        if val is None and shares[0] > 0:
            return None, None  # what is too small to validate is too small to test
        test = self._best(_Corner.of(self, opposite), val, tuple(shares))
        return (None if val is None else val.box), (None if test is None else test.box)

    @cached_property
    def blocks(self) -> int:
        z, y, x = (len(starts) for starts in self.starts)
        return z * y * x

    def _best(self, corner: _Corner, val: _Choice | None, shares: tuple[float, ...]) -> _Choice | None:
        """The box whose shares and losses together cost least; None if no box costs less than none."""
        inside, near = _product(corner.inside), _product(corner.near)
        if val is None:
            train, sets = self.blocks - near, [inside]
        else:
            both = _product([corner.near_both(axis, val.near[axis]) for axis in range(3)])
            train = self.blocks - near - val.near_blocks + both
            sets = [np.full_like(inside, val.inside_blocks), inside]
        cost = self._cost(train, sets, shares)
        cost[train <= 0] = np.inf
        if val is not None:
            cost[corner.touches(val.box, self.margin)] = np.inf
        best = np.unravel_index(int(np.argmin(cost)), cost.shape)
        if cost[best] >= self._cost_without(val, shares):
            return None
        return corner.choice(zyx([int(n) for n in best]))

    def _cost(self, train: Ints, sets: list[Ints], shares: tuple[float, ...]) -> NDArray[np.float64]:
        used = np.maximum(train, 0) + sum(sets)
        away = np.abs(np.maximum(train, 0) / used - (1 - sum(shares)))
        for blocks, share in zip(sets, shares, strict=True):
            away = away + np.abs(blocks / used - share)
        cost: NDArray[np.float64] = away / 2 + _LOST_WEIGHT * (self.blocks - used) / self.blocks
        return cost

    def _cost_without(self, val: _Choice | None, shares: tuple[float, ...]) -> float:
        empty = shares[-1] * (_EMPTY_WEIGHT - 1) / 2
        if val is None:
            return empty + shares[-1]
        train, inside = np.array([self.blocks - val.near_blocks]), np.array([val.inside_blocks])
        return empty + float(self._cost(train, [inside, np.zeros_like(inside)], shares)[0])


@dataclass(frozen=True)
class _Choice:
    box: Box
    near: tuple[NDArray[np.bool_], ...]
    """Along each axis, which of the tile's blocks are nearer than the margin."""
    inside_blocks: int
    near_blocks: int


@dataclass(frozen=True)
class _Corner:
    """All boxes that begin in one corner of a tile and hold 1, 2, ... of its blocks along each axis."""

    tile: _Tile
    edges: tuple[tuple[Ints, Ints], ...]
    """Along each axis: where the boxes begin and end."""
    inside: tuple[Ints, ...]
    """Along each axis: how many of the grid's blocks are in each box."""
    near_masks: tuple[NDArray[np.bool_], ...]
    """(boxes, blocks) along each axis: which of the grid's blocks are nearer than the margin."""

    @classmethod
    def of(cls, tile: _Tile, corner: tuple[bool, bool, bool]) -> _Corner:
        edges, inside, near = [], [], []
        for starts, every, length, is_far in zip(tile.starts, tile.grid, tile.block, corner, strict=True):
            own, grid = np.array(starts, np.int64), np.array(every, np.int64)
            ends = own + length
            low = own[::-1] if is_far else np.full(len(own), own[0])
            high = np.full(len(own), ends[-1]) if is_far else ends
            edges.append((low, high))
            inside.append(((grid >= low[:, None]) & (grid + length <= high[:, None])).sum(axis=1))
            near.append((grid + length > low[:, None] - tile.margin) & (grid < high[:, None] + tile.margin))
        return cls(tile, tuple(edges), tuple(inside), tuple(near))

    @property
    def near(self) -> list[Ints]:
        return [mask.sum(axis=1) for mask in self.near_masks]

    def near_both(self, axis: int, other: NDArray[np.bool_]) -> Ints:
        """Along an axis: how many blocks are near each box and near another one."""
        both: Ints = (self.near_masks[axis] & other).sum(axis=1)
        return both

    def touches(self, box: Box, margin: int) -> NDArray[np.bool_]:
        """Which boxes are nearer than the margin to another one."""
        z, y, x = (
            (low - margin < stop) & (high + margin > start)
            for (low, high), start, stop in zip(self.edges, box.start, box.stop, strict=True)
        )
        touching: NDArray[np.bool_] = z[:, None, None] & y[None, :, None] & x[None, None, :]
        return touching

    def choice(self, number: Zyx) -> _Choice:
        start = zyx([int(low[n]) for n, (low, _) in zip(number, self.edges, strict=True)])
        stop = zyx([int(high[n]) for n, (_, high) in zip(number, self.edges, strict=True)])
        near = tuple(mask[n] for n, mask in zip(number, self.near_masks, strict=True))
        inside = [int(counts[n]) for n, counts in zip(number, self.inside, strict=True)]
        near_blocks = [int(mask.sum()) for mask in near]
        return _Choice(
            Box(start, stop), near, inside[0] * inside[1] * inside[2], near_blocks[0] * near_blocks[1] * near_blocks[2]
        )


def _product(axes: Sequence[Ints]) -> Ints:
    z, y, x = (np.asarray(axis, np.int64) for axis in axes)
    product: Ints = z[:, None, None] * y[None, :, None] * x[None, None, :]
    return product
