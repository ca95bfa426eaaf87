"""The levels above level 0, each from the one below as it is stored, shard by shard, and their repair.

What `ascent.py` made while level 0 was written is kept. A shard is made again only if what it was averaged from has
changed, or if it is not there as recorded: its record holds the sha256 of each shard under it. So a repaired shard of
level 0 costs its ancestors, not the pyramid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.datasets.spec import Layout
from em_assets.errors import Malformed, Mismatch
from em_assets.records import DatasetFolder, PartitionRecord, is_intact, partition_key
from em_assets.standardize.above import Levels, ShardAbove, halved
from em_assets.standardize.ome import remove_group_metadata
from em_assets.standardize.presence import Presence
from em_assets.standardize.shard import ShardReader, decode_shard
from em_assets.volume import Box, subtract


def build_pyramid(
    folder: DatasetFolder,
    spec: Layout,
    records: Sequence[PartitionRecord],
    *,
    workers: int,
    on_shard: Callable[[PartitionRecord], None] | None = None,
) -> list[PartitionRecord]:
    """Makes or repairs every level above 0 and returns the records of all their shards, kept and new ones.

    `records` are those of level 0, all of them. Before the first shard is written the volume's group metadata is
    removed; `ome.write_metadata` puts it back. `on_shard` is told of each shard that was computed. What does not
    belong to the volume (shards, levels and records of another shape) is removed.

    Memory is bounded by `workers`: about two shards for each. Raises Mismatch if level 0 is not whole, Malformed if a
    shard below is not what its record says; that one's record is then removed, so that the next run makes it again.
    """
    level0 = {record.key: record for record in records}
    _require_whole(folder, spec, level0)
    existing = [record for record in folder.partition_records() if record.level > 0]
    sizes = folder.stored_sizes()
    known = {(record.level, record.key): record for record in existing if is_intact(record, sizes)}
    levels = Levels.of(folder, spec)
    build = _FromStore(levels, levels.presence(box for record in records for box in record.missing))
    below, made, hidden = level0, list[PartitionRecord](), False
    for level in range(1, len(levels.shapes)):
        shards = [levels.shard(level, index, below) for index in levels.indices(level)]
        stale = [shard for shard in shards if not shard.is_done(known.get((level, shard.key)))]
        if stale and not hidden:
            remove_group_metadata(folder)
            hidden = True
        fresh = {}
        with ThreadPoolExecutor(workers) as pool:
            for record in pool.map(build.compute, stale):
                fresh[record.key] = record
                if on_shard is not None:
                    on_shard(record)
        below = {shard.key: fresh.get(shard.key) or known[level, shard.key] for shard in shards}
        made.extend(below.values())
    _remove_strangers(folder, levels, [*records, *made], existing, sizes)
    return made


@dataclass(frozen=True)
class _FromStore:
    """Shards above from the stored ones below."""

    levels: Levels
    presence: Presence

    def compute(self, shard: ShardAbove) -> PartitionRecord:
        """Averages (labels: picks), stores and records one shard."""
        started = monotonic()
        voxels = np.zeros(shard.box.shape, self.levels.form.stored_dtype)
        for child in shard.children:
            if child.objects:
                self._coarsen_into(voxels, shard, child)
        return self.levels.store(shard, voxels, self.presence, started=started)

    def _coarsen_into(self, voxels: NDArray[Any], shard: ShardAbove, child: PartitionRecord) -> None:
        corner = subtract((0, 0, 0), shard.box.start)
        for box, fine in self._blocks(child):
            if fine is not None:
                coarse = self.levels.coarse(child.level, box, fine, self.presence)
                voxels[halved(box).shifted(corner).slices] = coarse
                continue
            present = self.presence.mask(child.level, box)
            if present is None or present.any():
                raise self._disowned(child, f"it has no chunk at {box}")

    def _blocks(self, child: PartitionRecord) -> Iterator[tuple[Box, NDArray[Any] | None]]:
        """The shard's voxels in blocks that begin at even indices: chunk by chunk while it is in the cache."""
        data = self._read(child)
        name = self.levels.folder.uri(child.objects[0].path)
        if any(n % 2 for n in self.levels.form.chunk):
            yield child.box, decode_shard(data, self.levels.form, child.box.shape, name)
            return
        for box, chunk in ShardReader.of_bytes(data, self.levels.form, name).chunks(child.box.shape):
            yield box.shifted(child.box.start), chunk

    def _read(self, child: PartitionRecord) -> bytes:
        """The stored shard. Its every byte is compared: a damaged one must not be averaged into whole ones."""
        stored = child.objects[0]
        try:
            data = self.levels.folder.read(stored.path)
        except FileNotFoundError:
            raise self._disowned(child, "it is gone") from None
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise self._disowned(child, "its sha256 is not the recorded one")
        return data

    def _disowned(self, child: PartitionRecord, why: str) -> Malformed:
        self.levels.folder.delete_partition_record(child.level, child.key)
        return Malformed(
            f"{self.levels.folder.uri(child.objects[0].path)} is not the shard that was written ({why}): its record is "
            "removed, run again and just this shard is made anew."
        )


def _require_whole(folder: DatasetFolder, spec: Layout, level0: dict[str, PartitionRecord]) -> None:
    identity = spec.identity()
    wanted = {partition_key(index) for index in spec.shard_indices()}
    good = {key for key, record in level0.items() if record.level == 0 and record.identity == identity}
    if good != wanted or len(level0) != len(wanted):
        raise Mismatch(
            f"{folder.uri(folder.volume)}: level 0 has records of {len(good & wanted)} of its {len(wanted)} shards and "
            f"{len(level0) - len(good & wanted)} others; materialize {folder.name} again, or remove it with "
            f"`em-assets rm {folder.name}`."
        )


def _remove_strangers(
    folder: DatasetFolder,
    levels: Levels,
    belonging: Sequence[PartitionRecord],
    existing: Sequence[PartitionRecord],
    sizes: dict[str, int],
) -> None:
    """Removes objects and records that no shard of the volume explains: of an older shape, or a half-done change."""
    volume = folder.volume
    metadata = {f"{volume}/zarr.json", *(f"{volume}/{level}/zarr.json" for level in range(len(levels.shapes)))}
    ours = {stored.path for record in belonging for stored in record.objects} | metadata
    for path in sorted(set(sizes) - ours):
        folder.store.delete(folder.path(path))
    keys = {(record.level, record.key) for record in belonging}
    for record in existing:
        if (record.level, record.key) not in keys:
            folder.delete_partition_record(record.level, record.key)
