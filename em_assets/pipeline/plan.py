"""What materializing a dataset would take, before anything moves, and whether there is room for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from em_assets.datasets.fields import ITEM_BYTES
from em_assets.datasets.source import FilesSource
from em_assets.datasets.spec import DatasetSpec, Layout
from em_assets.originals import file_paths
from em_assets.pipeline.state import DatasetState
from em_assets.progress import human_bytes
from em_assets.records import partition_index
from em_assets.settings import Settings
from em_assets.store import Store
from em_assets.volume import Box, ceil_divide


@dataclass(frozen=True)
class Transfer:
    """What will be asked of the publisher."""

    objects: int
    """Files, chunks or shards' parts that are read."""
    requests: int
    received_bytes: int | None
    """None where nobody says."""
    is_upper_bound: bool
    """The publisher may have less (absent chunks), or compress better."""


def add_transfers(a: Transfer, b: Transfer) -> Transfer:
    """Both; bytes are unknown if those of one are."""
    known = None if a.received_bytes is None or b.received_bytes is None else a.received_bytes + b.received_bytes
    return Transfer(a.objects + b.objects, a.requests + b.requests, known, a.is_upper_bound or b.is_upper_bound)


@dataclass(frozen=True)
class DatasetPlan:
    """What materializing a dataset would take."""

    name: str
    partitions_total: int
    partitions_missing: int
    stored_bytes: int
    """Upper bound of what the whole dataset takes in the store: nothing compresses."""
    needed_bytes: int
    """The part of it that is still missing."""
    free_bytes: int | None
    already_bytes: int
    """What is stored now."""
    is_complete: bool = False
    """Whether nothing is to be done at all."""
    objects: int | None = None
    """None where nothing has to be fetched."""
    requests: int | None = None
    received_bytes: int | None = None
    """None where neither spec nor publisher says."""
    is_upper_bound: bool = False
    """Whether objects, requests and received_bytes are the most it can be."""
    refusals: tuple[str, ...] = ()
    """Why it will not be started, as sentences."""

    def line(self) -> str:
        """The plan as one line for a person."""
        if self.is_complete:
            return f"{self.name}: all {self.partitions_total} partitions are here, nothing to fetch"
        if not self.partitions_missing:
            return f"{self.name}: all {self.partitions_total} partitions are here, the rest is still to be made"
        free = f"{human_bytes(self.free_bytes)} free" if self.free_bytes is not None else "free space unknown"
        here = self.partitions_total - self.partitions_missing
        return (
            f"{self.name}: {self.partitions_missing} of {self.partitions_total} partitions to fetch "
            f"({self._transfer()}); needs at most {human_bytes(self.needed_bytes)} of disk, {free}; {here} already here"
        )

    def _transfer(self) -> str:
        if self.received_bytes is None or self.requests is None:
            return "size unknown"
        most = "at most " if self.is_upper_bound else ""
        return f"{most}{human_bytes(self.received_bytes)}, {self.objects} objects, {self.requests} requests"


def make_plan(state: DatasetState, settings: Settings, transfer: Transfer | None = None) -> DatasetPlan:
    """The plan; `transfer` is what is known of the requests, by default what the spec alone gives."""
    spec, store = state.spec, state.folder.store
    transfer = transfer or transfer_from_spec(state)
    stored, needed = _disk(state)
    free = store.free_bytes()
    return DatasetPlan(
        name=spec.name,
        partitions_total=len(state.keys),
        partitions_missing=len(state.missing),
        stored_bytes=stored,
        needed_bytes=needed,
        free_bytes=free,
        already_bytes=state.stored_bytes,
        is_complete=state.is_complete(),
        objects=transfer.objects if state.missing else None,
        requests=transfer.requests if state.missing else None,
        received_bytes=transfer.received_bytes if state.missing else None,
        is_upper_bound=transfer.is_upper_bound,
        refusals=tuple(_refusals(spec, settings, store, stored=stored, needed=needed, free=free)),
    )


def transfer_from_spec(state: DatasetState) -> Transfer:
    """What the spec alone says of the transfer: exact where every size is pinned, else the most it can be."""
    spec = state.spec
    if isinstance(spec.source, FilesSource):
        files = [spec.source.by_path()[file_paths(spec)[key]] for key in state.missing]
        sizes = [_largest_file_bytes(spec, path) for path in (file_paths(spec)[key] for key in state.missing)]
        total = sum(size for size in sizes if size is not None) if None not in sizes else None
        asked = sum(file.size_bytes is None for file in files)  # the size first
        requests = asked + sum(max(1, math.ceil((size or 1) / spec.source.range_bytes)) for size in sizes)
        return Transfer(len(files), requests, total, is_upper_bound=asked > 0)
    if spec.keeps_original and spec.expected.objects is not None and len(state.missing) == len(state.keys):
        size_bytes = None if spec.volumes else spec.expected.object_bytes  # nobody has counted further groups
        return Transfer(spec.expected.objects, spec.expected.objects, size_bytes, is_upper_bound=False)
    # an unaligned box touches one chunk more along each axis
    chunk, extra = spec.expected.chunk or spec.output.chunk, 0 if spec.crop is None or spec.crop.snaps else 1
    boxes = [spec.shard_box(partition_index(key)).shape for key in state.missing]
    chunks = sum(math.prod(n + extra for n in ceil_divide(shape, chunk)) for shape in boxes)
    return Transfer(chunks, chunks, chunks * math.prod(chunk) * ITEM_BYTES[spec.dtype], is_upper_bound=True)


def _largest_file_bytes(spec: DatasetSpec, path: str) -> int | None:
    """A file's pinned size, else what a volume of its shape takes uncompressed with room for headers, else None."""
    assert isinstance(spec.source, FilesSource)
    size = spec.source.by_path()[path].size_bytes
    if size is not None:
        return size
    for volume in spec.volumes.values():
        if volume.source is not None and volume.source.paths() == [path]:
            return math.prod(volume.shape) * ITEM_BYTES[volume.dtype] + 65536 * volume.shape[0]
    return None


def _disk(state: DatasetState) -> tuple[int, int]:
    """(what everything takes in the store if nothing compresses, what of it is still to come)."""
    spec, stored, needed = state.spec, 0, 0
    for volume in state.volumes.values():
        level0, coarser = largest_bytes(volume.layout)
        missing = sum(volume.layout.shard_box(partition_index(key)).voxels for key in volume.missing)
        stored += level0 + coarser
        if missing:
            needed += math.ceil(level0 * missing / Box.from_shape(volume.layout.shape).voxels) + coarser
    if spec.keeps_original and not spec.is_by_file:
        size = spec.expected.object_bytes or math.ceil(math.prod(spec.shape) * ITEM_BYTES[spec.dtype] * 8 / 7)
        stored += size
        needed += size if state.missing else 0
    for key, path in file_paths(spec).items():
        size = _largest_file_bytes(spec, path) or 0
        stored += size
        needed += size if key in state.missing else 0
    return stored, needed


def largest_bytes(layout: Layout) -> tuple[int, int]:
    """What level 0 and the coarser levels take if nothing compresses: whole inner chunks, as they are stored."""
    from em_assets.standardize.ome import level_shapes

    chunk = Box.from_shape(layout.output.chunk).voxels * ITEM_BYTES[layout.dtype]
    levels = [
        Box.from_shape(ceil_divide(shape, layout.output.chunk)).voxels * chunk for shape in level_shapes(layout.shape)
    ]
    return levels[0], sum(levels[1:])


def _refusals(
    spec: DatasetSpec, settings: Settings, store: Store, *, stored: int, needed: int, free: int | None
) -> list[str]:
    refusals = []
    if needed and stored > settings.max_bytes:
        refusals.append(
            f"{spec.name} would store up to {human_bytes(stored)}; EM_ASSETS_MAX_BYTES allows "
            f"{human_bytes(settings.max_bytes)}: raise it, or make the crop smaller."
        )
    if free is not None and needed > free:
        refusals.append(
            f"{spec.name} needs up to {human_bytes(needed)} at {store.root}, where {human_bytes(free)} are free; "
            "free some, or set EM_ASSETS_ROOT to a larger disk."
        )
    return refusals
