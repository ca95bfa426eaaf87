"""A shard above level 0: what it is made from, what its voxels are, and its storing.

Two have the voxels under it: `pyramid.py`, which reads them from the store, and `ascent.py`, while they are in memory.
Both come here with them, so that equal shards below give equal bytes and equal records above.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.datasets.spec import Content, Layout
from em_assets.records import DatasetFolder, PartitionRecord, now, partition_key
from em_assets.standardize.mean import every_second, mean_2x2x2
from em_assets.standardize.ome import level_factors, level_shapes
from em_assets.standardize.presence import Presence
from em_assets.standardize.region import absent_chunks, tool
from em_assets.standardize.shard import ShardFormat
from em_assets.standardize.stored import write_shard
from em_assets.volume import Box, Zyx, add, ceil_divide, multiply, zyx

ABSENT_INPUT = "-"
_MISSING_INPUT = "missing:"
"""Begins one more input, where voxels under the shard are missing: which ones are also decides its voxels."""


@dataclass(frozen=True)
class ShardAbove:
    """One shard above level 0 and what it is made from."""

    level: int
    index: Zyx
    box: Box
    children: tuple[PartitionRecord, ...]
    """The shards under it, in z, y, x order."""
    identity: str

    @property
    def key(self) -> str:
        return partition_key(self.index)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What decides its voxels: the shards under it, and which voxels of level 0 under it are missing."""
        shards = [child.objects[0].sha256 if child.objects else ABSENT_INPUT for child in self.children]
        missing = [_missing_input(child) for child in self.children]
        if not any(missing):
            return tuple(shards)
        digest = hashlib.sha256("\n".join(missing).encode()).hexdigest()
        return (*shards, _MISSING_INPUT + digest)

    def is_done(self, record: PartitionRecord | None) -> bool:
        return record is not None and (record.identity, record.box, record.inputs) == (
            self.identity,
            self.box,
            self.inputs,
        )


@dataclass(frozen=True)
class Levels:
    """What every shard of a volume's levels shares."""

    folder: DatasetFolder
    form: ShardFormat
    identity: str
    shapes: list[Zyx]
    factors: list[Zyx]
    content: Content

    @classmethod
    def of(cls, folder: DatasetFolder, spec: Layout) -> Levels:
        shapes = level_shapes(spec.shape)
        return cls(folder, ShardFormat.of(spec), spec.identity(), shapes, level_factors(shapes), spec.content)

    def indices(self, level: int) -> Iterator[Zyx]:
        return Box.from_shape(self.shapes[level]).cells(self.form.shard)

    def box(self, level: int, index: Zyx) -> Box:
        """The voxels of a shard, in its level's, clipped to the level."""
        box = Box.from_shape(self.form.shard, at=multiply(index, self.form.shard))
        inside = box.intersection(Box.from_shape(self.shapes[level]))
        assert inside is not None
        return inside

    def under(self, level: int, index: Zyx) -> list[Zyx]:
        """Indices of the up to eight shards below that a shard is made from, in z, y, x order."""
        grid = ceil_divide(self.shapes[level - 1], self.form.shard)
        eight = (add(multiply(index, (2, 2, 2)), zyx(step)) for step in itertools.product((0, 1), repeat=3))
        return [child for child in eight if all(i < n for i, n in zip(child, grid, strict=True))]

    def shard(self, level: int, index: Zyx, below: dict[str, PartitionRecord]) -> ShardAbove:
        """`below` has the records of at least the shards under it, by key."""
        children = tuple(below[partition_key(child)] for child in self.under(level, index))
        return ShardAbove(level, index, self.box(level, index), children, self.identity)

    def presence(self, missing: Iterable[Box]) -> Presence:
        """`missing` are the boxes of level 0 that the publisher does not have, at least those under what is asked."""
        return Presence(self.shapes, self.factors, missing, self.content)

    def coarse(self, level: int, box: Box, fine: NDArray[Any], presence: Presence) -> NDArray[Any]:
        """The voxels of the next level, at `halved(box)`, from those of a box of `level` that begins at even indices.

        Means of the real ones; of labels, voxel `2i`.
        """
        if self.content == "labels":
            return every_second(fine)
        return mean_2x2x2(np.asarray(fine, self.form.stored_dtype), presence.mask(level, box))

    def store(
        self,
        shard: ShardAbove,
        voxels: NDArray[Any],
        presence: Presence,
        *,
        started: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> PartitionRecord:
        """Stores and records a shard; `started` is the `time.monotonic()` from which its record's `seconds` count.

        `meanwhile` is called while the disk or the server takes it.
        """
        absent = absent_chunks(self.form, presence, shard.level, shard.box)
        objects = write_shard(
            self.folder, self.form, shard.level, shard.index, voxels=voxels, absent=absent, meanwhile=meanwhile
        )
        record = PartitionRecord(
            key=shard.key,
            level=shard.level,
            box=shard.box,
            objects=objects,
            identity=self.identity,
            inputs=shard.inputs,
            written_at=now(),
            tool=tool(),
            seconds=round(monotonic() - started, 3),
        )
        self.folder.write_partition_record(record)
        return record


def halved(box: Box) -> Box:
    """The voxels of the next level that are made from a box which begins at even indices."""
    return Box(zyx([at // 2 for at in box.start]), ceil_divide(box.stop, (2, 2, 2)))


def _missing_input(record: PartitionRecord) -> str:
    """A digest of the missing voxels under a shard; empty if there are none."""
    if record.level > 0:
        last = record.inputs[-1]
        return last if last.startswith(_MISSING_INPUT) else ""
    if not record.missing:
        return ""
    return hashlib.sha256("\n".join(map(str, record.missing)).encode()).hexdigest()
