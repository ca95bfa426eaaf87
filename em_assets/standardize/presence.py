"""Which voxels of a volume are real, at every level, from the boxes of level 0 that the publisher does not have.

A voxel of a coarser level is missing if and only if every level-0 voxel under it is; of labels, if the one is that it
was taken from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from em_assets.datasets.spec import Content
from em_assets.volume import Box, Zyx, zyx

Edges = tuple[NDArray[np.int64], NDArray[np.int64]]
_VALUES_AT_ONCE = 2**20
"""Bounds the memory that a mask takes beside itself: 8 MB."""


class Presence:
    """The missing boxes of a volume; they must not overlap."""

    def __init__(
        self, shapes: Sequence[Zyx], factors: Sequence[Zyx], missing: Iterable[Box], content: Content = "image"
    ) -> None:
        """`shapes` and `factors` of the levels as `ome.level_shapes` and `ome.level_factors` give them."""
        self._shape, self._factors, self._content = shapes[0], factors, content
        boxes = merge_boxes(missing)
        self._starts = np.array([box.start for box in boxes], np.int64).reshape(-1, 3)
        self._stops = np.array([box.stop for box in boxes], np.int64).reshape(-1, 3)

    def below(self, level: int, box: Box) -> Box:
        """The part of level 0 under a box of a level."""
        factor = self._factors[level]
        start = zyx([a * f for a, f in zip(box.start, factor, strict=True)])
        stop = zyx([min(b * f, n) for b, f, n in zip(box.stop, factor, self._shape, strict=True)])
        return Box(start, stop)

    def touches(self, level: int, box: Box) -> bool:
        """Whether any level-0 voxel under the box is missing."""
        below = self.below(level, box)
        return bool(((self._starts < below.stop) & (self._stops > below.start)).all(axis=1).any())

    def mask(self, level: int, box: Box) -> NDArray[np.bool_] | None:
        """True where the level's voxel is real; None if nothing under the box is missing, the usual case."""
        below = self.below(level, box)
        touching = ((self._starts < below.stop) & (self._stops > below.start)).all(axis=1)
        if not touching.any():
            return None
        starts, stops = self._starts[touching], self._stops[touching]
        edges = [self._edges(level, box, axis) for axis in range(3)]
        z, y, x = (stop - start for start, stop in edges)
        # counts in float64, where matrix products are fast: exact up to 2**53 voxels under one
        missing = np.zeros((len(z), len(y) * len(x)))
        boxes_at_once = max(1, _VALUES_AT_ONCE // missing.shape[1])
        for first in range(0, len(starts), boxes_at_once):
            some = slice(first, first + boxes_at_once)
            in_z, in_y, in_x = (_overlap(edges[axis], starts[some, axis], stops[some, axis]) for axis in range(3))
            missing += in_z.T @ (in_y[:, :, None] * in_x[:, None, :]).reshape(len(in_z), -1)
        under = (z[:, None, None] * y[None, :, None] * x[None, None, :]).astype(np.float64)
        present: NDArray[np.bool_] = missing.reshape(box.shape) < under
        return present

    def _edges(self, level: int, box: Box, axis: int) -> Edges:
        """Where the voxels of level 0 that make a voxel of this level begin and end along an axis."""
        ends = np.arange(box.start[axis], box.stop[axis] + 1, dtype=np.int64) * self._factors[level][axis]
        if self._content == "labels":
            return ends[:-1], ends[:-1] + 1
        ends = np.minimum(ends, self._shape[axis])
        return ends[:-1], ends[1:]


def merge_boxes(boxes: Iterable[Box]) -> list[Box]:
    """The same voxels in fewer boxes: neighbours that share a whole face are joined, along x, then y, then z."""
    merged = list(boxes)
    for axis in (2, 1, 0):
        merged = _join_along(axis, merged)
    return merged


def _join_along(axis: int, boxes: list[Box]) -> list[Box]:
    def across(box: Box) -> list[tuple[int, int]]:
        return [(box.start[other], box.stop[other]) for other in range(3) if other != axis]

    joined: list[Box] = []
    for box in sorted(boxes, key=lambda box: (across(box), box.start[axis])):
        last = joined[-1] if joined else None
        if last and last.stop[axis] == box.start[axis] and across(last) == across(box):
            joined[-1] = Box(last.start, box.stop)
        else:
            joined.append(box)
    return joined


def _overlap(edges: Edges, start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.float64]:
    """Common length of each box (rows) with each interval (columns), along one axis."""
    common = np.minimum(edges[1], stop[:, None]) - np.maximum(edges[0], start[:, None])
    length: NDArray[np.float64] = np.maximum(common, 0).astype(np.float64)
    return length
