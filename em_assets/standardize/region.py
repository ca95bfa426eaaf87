"""`write_region`: the only writer of level-0 voxels, whoever fetched them."""

from __future__ import annotations

import importlib.metadata
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from time import monotonic
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from em_assets.datasets.spec import Layout
from em_assets.errors import Mismatch
from em_assets.formats.reader import SampledVoxel
from em_assets.records import Comparison, DatasetFolder, PartitionRecord, VoxelStatistics, now, partition_key
from em_assets.standardize.ome import level_factors, level_shapes, write_level_metadata
from em_assets.standardize.presence import Presence
from em_assets.standardize.shard import ShardFormat
from em_assets.standardize.stored import open_shard, shard_path, write_shard
from em_assets.standardize.voxel_statistics import voxel_statistics
from em_assets.volume import Box, Zyx, subtract

_SLAB_BYTES = 2**20
"""Statistics go over the voxels in slabs that stay in the cache."""


def write_region(
    folder: DatasetFolder,
    spec: Layout,
    index: Zyx,
    voxels: NDArray[Any],
    *,
    missing: Sequence[Box] = (),
    filled: Sequence[Box] = (),
    samples: Sequence[SampledVoxel] = (),
    source_url: str | None = None,
    source_box: Box | None = None,
    received_bytes: int = 0,
    inputs: tuple[str, ...] = (),
    started: float | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> PartitionRecord:
    """Stores the voxels of one shard of level 0 (`spec.shard_box(index)`), verifies and records them.

    `missing` (parts the publisher does not have, not overlapping, where `voxels` is 0) and `samples` (what the source
    says of some voxels, decoded another way) are in voxels of the stored volume; `source_box` is in the publisher's.
    `filled` are likewise parts that the publisher does not have: they count as real only because the spec fills them.
    `started` is the `time.monotonic()` from which the record's `seconds` count (default: now). `meanwhile` is called
    while the disk or the server takes the object.

    The record is written after the object. Nothing of the shard is left where the read-back object differs from a
    sample, and no record where anything fails; a region that is wholly missing has a record and no object. Raises
    Mismatch if shape or dtype are not the spec's, or a sample differs.
    """
    started = monotonic() if started is None else started
    box = spec.shard_box(index)
    _require_fit(folder, spec, box, voxels)
    _require_sound(box, voxels, missing, samples)
    form = ShardFormat.of(spec)
    shapes = level_shapes(spec.shape)
    presence = Presence(shapes, level_factors(shapes), missing, spec.content)
    key = partition_key(index)
    folder.delete_partition_record(0, key)  # of other bytes: it must never describe these
    write_level_metadata(folder, spec, 0)
    statistics: VoxelStatistics | None = None

    def count() -> None:
        nonlocal statistics
        statistics = _statistics(presence, box, voxels)
        meanwhile()

    absent = absent_chunks(form, presence, 0, box)
    objects = write_shard(folder, form, 0, index, voxels=voxels, absent=absent, meanwhile=count)
    comparison = _compare(folder, form, index, box, samples) if objects else None
    record = PartitionRecord(
        key=key,
        level=0,
        box=box,
        objects=objects,
        identity=spec.identity(),
        missing=tuple(sorted(missing)),
        filled_source_chunks=len(filled),
        filled=tuple(sorted(filled)),
        source_url=source_url,
        source_box=source_box,
        received_bytes=received_bytes,
        inputs=inputs,
        statistics=statistics,
        comparison=comparison,
        written_at=now(),
        tool=tool(),
        seconds=round(monotonic() - started, 3),
    )
    folder.write_partition_record(record)
    return record


def absent_chunks(form: ShardFormat, presence: Presence, level: int, box: Box) -> set[Zyx]:
    """The inner chunks of a level's shard, whose voxels are `box`, of which no voxel is real."""
    absent: set[Zyx] = set()
    if not presence.touches(level, box):
        return absent
    for at in Box.from_shape(box.shape).cells(form.chunk):
        inside = form.chunk_box(at, box.shape)
        assert inside is not None
        mask = presence.mask(level, inside.shifted(box.start))
        if mask is not None and not mask.any():
            absent.add(at)
    return absent


@cache
def tool() -> str:
    """What wrote an object: the versions that can decide its bytes."""
    try:
        version = importlib.metadata.version("em_assets")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    library = ".".join(str(part) for part in zstandard.ZSTD_VERSION)
    decoder = importlib.metadata.version("imagecodecs")
    return f"em_assets {version}, numpy {np.__version__}, imagecodecs {decoder}, zstd {library}"


def _require_fit(folder: DatasetFolder, spec: Layout, box: Box, voxels: NDArray[Any]) -> None:
    expected = np.dtype(spec.dtype)
    if voxels.shape != box.shape:
        raise Mismatch(
            f"{folder.title}: the voxels for {box} have shape {voxels.shape}, expected {box.shape} (z, y, x); "
            "correct what produced them."
        )
    if voxels.dtype.newbyteorder("=") != expected:
        raise Mismatch(
            f"{folder.title}: the voxels for {box} are {voxels.dtype}, the spec expects {expected}; "
            "correct the spec, or what produced them."
        )


def _require_sound(box: Box, voxels: NDArray[Any], missing: Sequence[Box], samples: Sequence[SampledVoxel]) -> None:
    """What the pyramid and the coverage rest on; a reader that breaks it is wrong."""
    for part in missing:
        if not box.contains(part):
            raise ValueError(f"missing part {part} is not inside the region {box}")
        if voxels[part.shifted(subtract((0, 0, 0), box.start)).slices].any():
            raise ValueError(f"the region {box} has voxels other than 0 in its missing part {part}")
    starts, stops = np.array([part.start for part in missing]), np.array([part.stop for part in missing])
    for part in missing:
        if np.count_nonzero(((starts < part.stop) & (stops > part.start)).all(axis=1)) > 1:
            raise ValueError(f"missing part {part} of the region {box} overlaps another one")
    for sample in samples:
        if not box.contains(Box.from_shape((1, 1, 1), at=sample.position)):
            raise ValueError(f"sampled voxel {sample.position} is not inside the region {box}")


def _compare(
    folder: DatasetFolder, form: ShardFormat, index: Zyx, box: Box, samples: Sequence[SampledVoxel]
) -> Comparison | None:
    """Reads the stored object back and compares. None without samples: then nothing was compared."""
    if not samples:
        return None
    by_chunk: dict[Zyx, list[tuple[Zyx, SampledVoxel]]] = defaultdict(list)
    for sample in samples:
        z, y, x = subtract(sample.position, box.start)
        dz, dy, dx = form.chunk
        by_chunk[z // dz, y // dy, x // dx].append(((z % dz, y % dy, x % dx), sample))
    shard = open_shard(folder, form, 0, index)
    different = 0
    for at, inside in by_chunk.items():
        chunk = shard.chunk(at) if shard is not None else None
        found = [0.0 if chunk is None else float(chunk[place]) for place, _ in inside]
        pairs = zip(found, (sample.value for _, sample in inside), strict=True)
        different += sum(a != b and not (math.isnan(a) and math.isnan(b)) for a, b in pairs)
    if different:
        folder.store.delete(folder.path(shard_path(folder, 0, index)))
        raise Mismatch(
            f"{folder.uri(shard_path(folder, 0, index))}: {different} of {len(samples)} sampled voxels differ from the "
            "source's after writing; the shard is not kept. Run again; if it stays so, two decoders disagree about "
            "this source."
        )
    return Comparison(compared_voxels=len(samples), different_voxels=0, compared_at=now())


def _statistics(presence: Presence, box: Box, voxels: NDArray[Any]) -> VoxelStatistics | None:
    return voxel_statistics(_real_voxels(presence, box, voxels), voxels.dtype.newbyteorder("="))


def _real_voxels(presence: Presence, box: Box, voxels: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The region's voxels without the missing ones, flat, a slab of planes at a time."""
    planes = max(1, _SLAB_BYTES // (voxels[0].nbytes or 1))
    z, y, x = box.start
    touched = presence.touches(0, box)
    for first in range(0, box.shape[0], planes):
        slab = np.ascontiguousarray(voxels[first : first + planes], voxels.dtype.newbyteorder("="))
        mask = presence.mask(0, Box.from_shape(slab.shape, at=(z + first, y, x))) if touched else None
        yield slab.reshape(-1) if mask is None else slab[mask]
