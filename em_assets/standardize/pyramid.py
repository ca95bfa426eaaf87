"""The levels above level 0, each from the one below, shard by shard, and their repair.

A shard is made again only if what it was averaged from has changed, or if it is not there as recorded: its record
holds the sha256 of each shard under it. So a repaired shard of level 0 costs its ancestors, not the pyramid.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.datasets.spec import Content, Layout
from em_assets.errors import Malformed, Mismatch
from em_assets.records import DatasetFolder, PartitionRecord, is_intact, now, partition_key
from em_assets.standardize.mean import every_second, mean_2x2x2
from em_assets.standardize.ome import level_factors, level_shapes, remove_group_metadata
from em_assets.standardize.presence import Presence
from em_assets.standardize.region import absent_chunks, tool
from em_assets.standardize.shard import ShardFormat, ShardReader, decode_shard
from em_assets.standardize.stored import write_shard
from em_assets.volume import Box, Zyx, add, multiply, zyx

ABSENT_INPUT = "-"
_MISSING_INPUT = "missing:"
"""Begins one more input, where voxels under the shard are missing: which ones are also decides its voxels."""


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
    build = _Build.of(folder, spec, records)
    below, made, hidden = level0, list[PartitionRecord](), False
    for level in range(1, len(build.shapes)):
        tasks = [build.task(level, index, below) for index in build.indices(level)]
        stale = [task for task in tasks if not task.is_done(known.get((level, task.key)))]
        if stale and not hidden:
            remove_group_metadata(folder)
            hidden = True
        fresh = {}
        with ThreadPoolExecutor(workers) as pool:
            for record in pool.map(build.compute, stale):
                fresh[record.key] = record
                if on_shard is not None:
                    on_shard(record)
        below = {task.key: fresh.get(task.key) or known[level, task.key] for task in tasks}
        made.extend(below.values())
    _remove_strangers(folder, build, [*records, *made], existing, sizes)
    return made


@dataclass(frozen=True)
class _Task:
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
class _Build:
    """What every shard of the pyramid shares."""

    folder: DatasetFolder
    form: ShardFormat
    identity: str
    shapes: list[Zyx]
    presence: Presence
    content: Content

    @classmethod
    def of(cls, folder: DatasetFolder, spec: Layout, level0: Iterable[PartitionRecord]) -> _Build:
        shapes = level_shapes(spec.shape)
        missing = [box for record in level0 for box in record.missing]
        presence = Presence(shapes, level_factors(shapes), missing, spec.content)
        return cls(folder, ShardFormat.of(spec), spec.identity(), shapes, presence, spec.content)

    def indices(self, level: int) -> Iterator[Zyx]:
        return Box.from_shape(self.shapes[level]).cells(self.form.shard)

    def box(self, level: int, index: Zyx) -> Box:
        box = Box.from_shape(self.form.shard, at=multiply(index, self.form.shard))
        inside = box.intersection(Box.from_shape(self.shapes[level]))
        assert inside is not None
        return inside

    def task(self, level: int, index: Zyx, below: dict[str, PartitionRecord]) -> _Task:
        under = (add(multiply(index, (2, 2, 2)), zyx(step)) for step in itertools.product((0, 1), repeat=3))
        children = tuple(below[key] for key in map(partition_key, under) if key in below)
        return _Task(level, index, self.box(level, index), children, self.identity)

    def compute(self, task: _Task) -> PartitionRecord:
        """Averages (labels: picks), stores and records one shard."""
        started = monotonic()
        voxels = np.zeros(task.box.shape, self.form.stored_dtype)
        for child in task.children:
            if child.objects:
                self._average_into(voxels, task, child)
        absent = absent_chunks(self.form, self.presence, task.level, task.box)
        record = PartitionRecord(
            key=task.key,
            level=task.level,
            box=task.box,
            objects=write_shard(self.folder, self.form, task.level, task.index, voxels=voxels, absent=absent),
            identity=self.identity,
            inputs=task.inputs,
            written_at=now(),
            tool=tool(),
            seconds=round(monotonic() - started, 3),
        )
        self.folder.write_partition_record(record)
        return record

    def _average_into(self, voxels: NDArray[Any], task: _Task, child: PartitionRecord) -> None:
        """Adds the means of one shard below to the voxels above it."""
        for box, fine in self._blocks(child):
            present = self.presence.mask(child.level, box)
            if fine is None:
                if present is None or present.any():
                    raise self._disowned(child, f"it has no chunk at {box}")
                continue
            coarse = every_second(fine) if self.content == "labels" else mean_2x2x2(fine, present)
            z, y, x = (start // 2 - corner for start, corner in zip(box.start, task.box.start, strict=True))
            voxels[z : z + coarse.shape[0], y : y + coarse.shape[1], x : x + coarse.shape[2]] = coarse

    def _blocks(self, child: PartitionRecord) -> Iterator[tuple[Box, NDArray[Any] | None]]:
        """The shard's voxels in blocks that begin at even indices: chunk by chunk while it is in the cache."""
        data = self._read(child)
        name = self.folder.uri(child.objects[0].path)
        if any(n % 2 for n in self.form.chunk):
            yield child.box, decode_shard(data, self.form, child.box.shape, name)
            return
        for box, chunk in ShardReader.of_bytes(data, self.form, name).chunks(child.box.shape):
            yield box.shifted(child.box.start), chunk

    def _read(self, child: PartitionRecord) -> bytes:
        """The stored shard. Its every byte is compared: a damaged one must not be averaged into whole ones."""
        stored = child.objects[0]
        try:
            data = self.folder.read(stored.path)
        except FileNotFoundError:
            raise self._disowned(child, "it is gone") from None
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise self._disowned(child, "its sha256 is not the recorded one")
        return data

    def _disowned(self, child: PartitionRecord, why: str) -> Malformed:
        self.folder.delete_partition_record(child.level, child.key)
        return Malformed(
            f"{self.folder.uri(child.objects[0].path)} is not the shard that was written ({why}): its record is "
            "removed, run again and just this shard is made anew."
        )


def _missing_input(record: PartitionRecord) -> str:
    """A digest of the missing voxels under a shard; empty if there are none."""
    if record.level > 0:
        last = record.inputs[-1]
        return last if last.startswith(_MISSING_INPUT) else ""
    if not record.missing:
        return ""
    return hashlib.sha256("\n".join(map(str, record.missing)).encode()).hexdigest()


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
    build: _Build,
    belonging: Sequence[PartitionRecord],
    existing: Sequence[PartitionRecord],
    sizes: dict[str, int],
) -> None:
    """Removes objects and records that no shard of the volume explains: of an older shape, or a half-done change."""
    volume = folder.volume
    metadata = {f"{volume}/zarr.json", *(f"{volume}/{level}/zarr.json" for level in range(len(build.shapes)))}
    ours = {stored.path for record in belonging for stored in record.objects} | metadata
    for path in sorted(set(sizes) - ours):
        folder.store.delete(folder.path(path))
    keys = {(record.level, record.key) for record in belonging}
    for record in existing:
        if (record.level, record.key) not in keys:
            folder.delete_partition_record(record.level, record.key)
