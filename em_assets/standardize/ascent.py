"""Shards of the levels above, made while the voxels under them are in memory, so that nothing is read back for them.

Nobody relies on it: what is not made here, `pyramid.build_pyramid` makes from the store, to the same bytes. So a run
that ends too early, shards under one parent that come from two runs, or too little memory cost time, never voxels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.records import PartitionRecord
from em_assets.standardize.above import Levels, halved
from em_assets.standardize.ome import remove_group_metadata
from em_assets.volume import Box, Zyx, subtract, zyx

OPEN_BYTES = 128 * 2**20
"""Voxels of shards that wait for more of what is under them. In the order of `by_family` one or two for each level."""
_BLOCK_BYTES = 2**18
"""Voxels that are averaged at once: planes as long as they are, so that rows are read whole, and in the cache."""

Place = tuple[int, Zyx]
"""(level, index) of a shard."""


@dataclass
class _Open:
    """A shard that waits for more of those under it."""

    voxels: NDArray[Any]
    children: dict[str, PartitionRecord] = field(default_factory=dict)
    missing: list[Box] = field(default_factory=list)
    """Of level 0, under it."""


class Ascent:
    """Takes shards of level 0 in any order, from any thread, and stores what is above them as it becomes whole.

    A shard is made if all that is under it was announced, came, and fitted into memory.
    """

    def __init__(self, levels: Levels, indices: Iterable[Zyx]) -> None:
        """`indices` are those of the shards of level 0 that will come."""
        self._levels = levels
        self._awaited = _whole_families(levels, indices)
        self._open: dict[Place, _Open] = {}
        self._open_bytes = 0
        self._hidden = False
        self._lock = threading.Lock()

    def take(self, box: Box, index: Zyx, voxels: NDArray[Any], missing: Sequence[Box]) -> None:
        """The voxels of a shard of level 0 and its `missing` boxes; they are not kept, only their means."""
        self._coarsen(0, box, index, voxels, missing)

    def arrived(self, record: PartitionRecord, index: Zyx) -> None:
        """A shard whose voxels were taken is stored and recorded. Stores what is whole with it."""
        self._count(record, index, record.missing)

    def give_up(self, index: Zyx) -> None:
        """This shard of level 0 does not come: nothing above it can be whole."""
        with self._lock:
            self._drop((1, _above(index)))

    def _count(self, record: PartitionRecord, index: Zyx, missing: Sequence[Box]) -> None:
        place = (record.level + 1, _above(index))
        with self._lock:
            shard = self._open.get(place)
            if shard is None:
                return
            shard.children[record.key] = record
            shard.missing.extend(missing)
            is_whole = len(shard.children) == len(self._levels.under(*place))
        if is_whole:
            self._store(place, shard)

    def _opened(self, place: Place) -> _Open | None:
        """The shard to add to; None if it is not made here."""
        with self._lock:
            if place not in self._awaited:
                return None
            if place not in self._open:
                box, dtype = self._levels.box(*place), self._levels.form.stored_dtype
                if self._open and self._open_bytes + box.voxels * dtype.itemsize > OPEN_BYTES:
                    self._drop(place)
                    return None
                self._open[place] = _Open(np.zeros(box.shape, dtype))
                self._open_bytes += self._open[place].voxels.nbytes
            return self._open[place]

    def _coarsen(self, level: int, box: Box, index: Zyx, voxels: NDArray[Any], missing: Sequence[Box]) -> None:
        place = (level + 1, _above(index))
        shard = self._opened(place)
        if shard is None:
            return
        presence = self._levels.presence(missing)
        corner = subtract((0, 0, 0), self._levels.box(*place).start)
        planes = max(2, _BLOCK_BYTES // (voxels[0].nbytes or 1) // 2 * 2)
        z, y, x = box.start
        for first in range(0, len(voxels), planes):
            block = voxels[first : first + planes]
            part = Box.from_shape(zyx(block.shape), at=(z + first, y, x))
            shard.voxels[halved(part).shifted(corner).slices] = self._levels.coarse(level, part, block, presence)

    def _store(self, place: Place, shard: _Open) -> None:
        started = monotonic()
        with self._lock:
            if not self._hidden:
                remove_group_metadata(self._levels.folder)
            self._hidden = True
        try:
            above = self._levels.shard(*place, shard.children)
            record = self._levels.store(
                above,
                shard.voxels,
                self._levels.presence(shard.missing),
                started=started,
                meanwhile=lambda: self._coarsen(above.level, above.box, above.index, shard.voxels, shard.missing),
            )
            self._count(record, above.index, shard.missing)
        finally:
            with self._lock:
                self._close(place)

    def _drop(self, place: Place) -> None:
        """Makes neither this shard nor any above it."""
        level, index = place
        while (level, index) in self._awaited:
            self._awaited.discard((level, index))
            self._close((level, index))
            level, index = level + 1, _above(index)

    def _close(self, place: Place) -> None:
        shard = self._open.pop(place, None)
        self._open_bytes -= 0 if shard is None else shard.voxels.nbytes


def by_family(indices: Iterable[Zyx]) -> list[Zyx]:
    """In an order in which the eight under one shard follow one another, at every level: along the Morton curve."""

    def rank(index: Zyx) -> int:
        return sum(
            (i >> bit & 1) << (3 * bit + 2 - axis) for axis, i in enumerate(index) for bit in range(i.bit_length())
        )

    return sorted(indices, key=rank)


def _whole_families(levels: Levels, indices: Iterable[Zyx]) -> set[Place]:
    """The shards above of which everything below, down to level 0, is among these."""
    whole: set[Place] = set()
    below = set(indices)
    for level in range(1, len(levels.shapes)):
        below = {index for index in map(_above, below) if below.issuperset(levels.under(level, index))}
        whole |= {(level, index) for index in below}
    return whole


def _above(index: Zyx) -> Zyx:
    z, y, x = index
    return z // 2, y // 2, x // 2
