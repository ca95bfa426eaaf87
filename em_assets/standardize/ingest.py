"""The joining function of both Dagster assets: regions of a `VolumeReader` into shards of the stored volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic

from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Mismatch
from em_assets.formats.reader import RegionVoxels, VolumeReader
from em_assets.records import DatasetFolder, PartitionRecord, partition_index, partition_key
from em_assets.standardize.region import write_region
from em_assets.volume import Box, Zyx, add, ceil_divide, subtract


def fetch_regions(
    folder: DatasetFolder,
    spec: DatasetSpec,
    reader: VolumeReader,
    crop_box: Box,
    keys: Sequence[str],
    *,
    on_bytes: Callable[[int], None] | None = None,
    on_region: Callable[[PartitionRecord], None] | None = None,
) -> tuple[list[PartitionRecord], dict[str, Exception]]:
    """Reads the regions of these partitions and stores each; (records, errors by key), which together are all keys.

    `crop_box` is the stored volume's place in the publisher's voxels. With `missing: error` in the spec, a region that
    the publisher does not have whole is an error of that region. One that fails does not stop the others; only a
    publisher that cannot be reached at all does (Unavailable). `on_bytes` may be called from any thread.
    """
    corner = subtract((0, 0, 0), crop_box.start)

    def index_of(box: Box) -> Zyx:
        return ceil_divide(box.shifted(corner).start, spec.output.shard)  # exact: regions are whole shards

    def store(region: RegionVoxels) -> PartitionRecord:
        missing = [box.shifted(corner) for box in region.missing]
        if missing and spec.missing == "error":
            raise Mismatch(
                f"{region.source_url} has no data in {len(missing)} chunks of {region.box}, first {region.missing[0]}, "
                "in the publisher's voxels; move the crop, or set `missing: record` in the spec to keep a record of it."
            )
        return write_region(
            folder,
            spec,
            index_of(region.box),
            region.voxels,
            missing=missing,
            samples=[replace(sample, position=add(sample.position, corner)) for sample in region.samples],
            source_url=region.source_url,
            source_box=region.box,
            received_bytes=region.received_bytes,
            started=monotonic(),
        )

    boxes = [spec.shard_box(partition_index(key)).shifted(crop_box.start) for key in keys]
    records, errors = [], {}
    for outcome in reader.map_regions(boxes, store, on_bytes=on_bytes):
        if outcome.value is not None:
            records.append(outcome.value)
            if on_region is not None:
                on_region(outcome.value)
        elif outcome.error is not None:
            errors[partition_key(index_of(outcome.box))] = outcome.error
    return sorted(records, key=lambda record: record.key), errors
