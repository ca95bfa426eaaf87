"""The joining function of both Dagster assets: regions of a `VolumeReader` into shards of the stored volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic

from em_assets.datasets.spec import Layout
from em_assets.errors import Mismatch
from em_assets.formats.reader import RegionVoxels, SampledVoxel, VolumeReader
from em_assets.records import DatasetFolder, PartitionRecord, partition_index, partition_key
from em_assets.standardize.above import Levels
from em_assets.standardize.ascent import Ascent, by_family
from em_assets.standardize.region import write_region
from em_assets.volume import Box, Zyx, add, ceil_divide, subtract

SAMPLED_FILLS = 8
"""Of the chunks that are filled in a region, so many have a voxel compared with what was stored."""


def fetch_regions(
    folder: DatasetFolder,
    spec: Layout,
    reader: VolumeReader,
    crop_box: Box,
    keys: Sequence[str],
    *,
    inputs: tuple[str, ...] = (),
    source_url: str | None = None,
    with_levels_above: bool = True,
    on_bytes: Callable[[int], None] | None = None,
    on_region: Callable[[PartitionRecord], None] | None = None,
) -> tuple[list[PartitionRecord], dict[str, Exception]]:
    """Reads the regions of these partitions and stores each; (records, errors by key), which together are all keys.

    `crop_box` is the stored volume's place in the publisher's voxels. With `missing: error` in the spec, a region that
    the publisher does not have whole is an error of that region; with `fill`, what it does not have is its fill value.
    One that fails does not stop the others; only a publisher that cannot be reached at all does (Unavailable).
    `inputs` are what the voxels are made from, where files were received; `source_url` is where those were published.
    `with_levels_above` also makes the shards above of which all that is under them is among these, while it is in
    memory; as far as that fits, and `build_pyramid` makes the others. `on_bytes` may be called from any thread.
    """
    corner = subtract((0, 0, 0), crop_box.start)
    indices = by_family(map(partition_index, keys))
    ascent = Ascent(Levels.of(folder, spec), indices if with_levels_above else ())

    def index_of(box: Box) -> Zyx:
        return ceil_divide(box.shifted(corner).start, spec.output.shard)  # exact: regions are whole shards

    def store(region: RegionVoxels) -> PartitionRecord:
        absent = region.missing
        if absent and spec.missing_policy == "error":
            raise Mismatch(
                f"{source_url or region.source_url} has no data in {len(absent)} chunks of {region.box}, first "
                f"{absent[0]}, in the publisher's voxels; move the crop, or set `missing: record` in the spec to keep "
                "a record of it, `missing: fill` to take the fill value."
            )
        samples, fills = region.samples, spec.missing_policy == "fill"
        if fills:
            samples += _filled(region)
        index = index_of(region.box)
        parts = [box.shifted(corner) for box in absent]
        missing = [] if fills else parts
        record = write_region(
            folder,
            spec,
            index,
            region.voxels,
            missing=missing,
            filled=parts if fills else (),
            samples=[replace(sample, position=add(sample.position, corner)) for sample in samples],
            source_url=source_url or region.source_url,
            source_box=region.box,
            received_bytes=0 if inputs else region.received_bytes,  # what is here came over no network
            inputs=inputs,
            started=monotonic(),
            meanwhile=lambda: ascent.take(spec.shard_box(index), index, region.voxels, missing),
        )
        if fills and not region.received_bytes:
            ascent.give_up(index)  # only filled: should the publisher have nothing at all, it is taken back
        else:
            ascent.arrived(record, index)
        return record

    boxes = [spec.shard_box(index).shifted(crop_box.start) for index in indices]
    records, errors = [], {}
    for outcome in reader.map_regions(boxes, store, on_bytes=on_bytes):
        if outcome.value is not None:
            records.append(outcome.value)
            if on_region is not None:
                on_region(outcome.value)
        elif outcome.error is not None:
            ascent.give_up(index_of(outcome.box))
            errors[partition_key(index_of(outcome.box))] = outcome.error
    return sorted(records, key=lambda record: record.key), errors


def _filled(region: RegionVoxels) -> tuple[SampledVoxel, ...]:
    """Fills what the publisher does not have; some of these voxels, to be compared with what will be stored.

    A region of which nothing else is there has no others.
    """
    for box in region.missing:
        region.voxels[box.shifted(subtract((0, 0, 0), region.box.start)).slices] = region.fill_value
    value = float(region.voxels.dtype.type(region.fill_value))
    return tuple(SampledVoxel(box.start, value) for box in region.missing[:SAMPLED_FILLS])
