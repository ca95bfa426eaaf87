"""Making a dataset's stored volumes whole: level 0 where it is not there yet, pyramid, metadata, coverage, preview."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from em_assets.datasets.source import ChunkedSource, FilesSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unavailable, Unsupported
from em_assets.pipeline.absent import leave_out, may_be_absent
from em_assets.pipeline.job import one_line
from em_assets.pipeline.state import VolumeState
from em_assets.records import PartitionRecord, StoredObject, VolumeSummary, partition_key
from em_assets.standardize.ome import remove_group_metadata
from em_assets.volume import Box

if TYPE_CHECKING:
    from em_assets.formats.reader import VolumeReader
    from em_assets.pipeline.job import Job

OpenReader = Callable[[str | None], tuple["VolumeReader", Box]]
"""The voxels of one of the dataset's volumes, and where it lies in them."""


def finish_volumes(job: Job, open_reader: OpenReader) -> tuple[list[PartitionRecord], list[StoredObject]]:
    """Makes every volume of the dataset whole. Returns the records of all shards, and all `zarr.json` objects.

    A portal's annotation that cannot be had is left out from here on (`absent.py`).
    """
    records: list[PartitionRecord] = []
    documents: list[StoredObject] = []
    absent: dict[str, str] = {}
    for sub, state in job.state.volumes.items():
        try:
            if state.missing or _place(job, sub) is None:
                _make_level0(job, sub, state, open_reader)
        except EmAssetsError as error:
            if sub is None or not may_be_absent(job.spec, sub, error):
                raise
            absent[sub] = one_line(error)
            continue
        shards, metadata = _finish(job, sub)
        records += shards
        documents += metadata
    leave_out(job, absent)
    _note_filled(job)
    return records, documents


def _make_level0(job: Job, sub: str | None, state: VolumeState, open_reader: OpenReader) -> None:
    reader, place = open_reader(sub)
    _note_place(job, sub, reader, place)
    _remove_misplaced(state)
    _ingest(job, state, reader, place, _kept_from(job.current.spec, sub))


def _note_filled(job: Job) -> None:
    """Says in the record how much of each volume counts only because the spec has the fill value put there."""
    filled: dict[str, dict[str, int | float]] = {}
    for sub, layout in job.spec.layouts().items():
        folder = job.folder.further(sub)
        level0 = [record for record in folder.partition_records() if record.level == 0]
        chunks = sum(record.filled_source_chunks for record in level0)
        voxels = sum(box.voxels for record in level0 for box in record.filled)
        if chunks:
            share = voxels / Box.from_shape(layout.shape).voxels
            filled[sub or "volume"] = {"source_chunks": chunks, "voxels": voxels, "fraction": round(share, 6)}
    if filled or "filled" in job.record.additional_metadata:
        job.note(filled=filled)


def remove_dropped_volumes(job: Job) -> None:
    """Removes what was made for an earlier spec and is no volume of this one; received files stay."""
    ours = {job.folder.further(sub).volume for sub in job.spec.layouts()}
    dropped: list[str | None] = [sub for sub in job.record.volumes if job.folder.further(sub).volume not in ours]
    if not job.spec.makes_standard and job.record.coverage_sha256 is not None:
        dropped.append(None)
    for sub in dropped:
        folder = job.folder.further(sub)
        job.log(f"{folder.title}: the spec makes it no more; it is removed")
        remove_group_metadata(folder)
        job.store.delete_all(folder.path(folder.volume))
        for path in (folder.coverage, folder.preview):
            job.store.delete(folder.path(path))
        for record in list(folder.partition_records()):
            folder.delete_partition_record(record.level, record.key)
    kept = {sub: summary for sub, summary in job.record.volumes.items() if sub not in dropped}
    changes = {"coverage_sha256": None} if None in dropped else {}
    if dropped:
        job.set_status("saving-data", volumes=kept, **changes)


def _remove_misplaced(state: VolumeState) -> None:
    """Level-0 shards of another grid: an earlier spec cut the volume otherwise."""
    ours = set(map(partition_key, state.layout.shard_indices()))
    for record in state.records:
        if record.level == 0 and record.key not in ours:
            state.folder.delete_partition_record(record.level, record.key)
            for stored in record.objects:
                state.folder.store.delete(state.folder.path(stored.path))


def _place(job: Job, sub: str | None) -> Box | None:
    """Where a volume lies in the publisher's, if the record says so."""
    if sub is None:
        return job.record.source_box
    return job.record.volumes[sub].source_box if sub in job.record.volumes else None


def _kept_from(spec: DatasetSpec, sub: str | None) -> str | None:
    """Where that was published what a volume is made from here: a file, a folder, a group. None: it is read there."""
    source, further = spec.source, None if sub is None else spec.volumes[sub]
    if isinstance(source, FilesSource):
        files = source.volume if further is None else further.source
        paths = files.paths() if files is not None else []
        return source.file_url(paths[0]) if len(paths) == 1 else source.url
    if isinstance(source, ChunkedSource) and spec.keeps_original:
        return source.volume_url if further is None else f"{source.url.rstrip('/')}/{further.group}"
    return None


def _ingest(job: Job, state: VolumeState, reader: VolumeReader, place: Box, source_url: str | None) -> None:
    """Level 0 of a volume from what is kept here, which was published at `source_url`, or from the publisher."""
    from em_assets.standardize.ingest import fetch_regions

    if not state.missing:
        return
    remove_group_metadata(state.folder)
    job.log(f"{state.layout.name}: writing {len(state.missing)} of {len(state.missing) + len(state.intact)} shards")
    _, failures = fetch_regions(
        state.folder,
        state.layout,
        reader,
        place,
        state.missing,
        inputs=state.inputs,
        source_url=source_url,
        on_bytes=None if source_url is not None else job.count_bytes,
    )
    if failures:
        key = min(failures)
        first = failures[key]
        kind = next((kind for kind in (Unavailable, Malformed, Unsupported) if isinstance(first, kind)), Mismatch)
        raise kind(
            f"{state.layout.name}: {len(failures)} of {len(state.missing)} shards could not be written, the others are "
            f"kept; first: {key}: {one_line(first)}"
        )


def _note_place(job: Job, sub: str | None, reader: VolumeReader, place: Box) -> None:
    info = reader.info
    if sub is None:
        job.set_status("saving-data", source_box=place, source_shape=info.shape, corner_nm=info.corner_nm)
        return
    volume = job.spec.volumes[sub]
    summary = VolumeSummary(
        title=volume.title,
        content=volume.content,
        labels_of=volume.labels_of,
        shape=volume.shape,
        dtype=volume.dtype,
        voxel_size_nm=volume.voxel_size_nm,
        source_box=place,
        source_shape=info.shape,
        corner_nm=info.corner_nm,
        doi=volume.doi,
    )
    job.set_status("saving-data", volumes={**job.record.volumes, sub: summary})


def _finish(job: Job, sub: str | None) -> tuple[list[PartitionRecord], list[StoredObject]]:
    from em_assets.standardize.finish import write_coverage
    from em_assets.standardize.ome import write_metadata
    from em_assets.standardize.preview import preview_png
    from em_assets.standardize.pyramid import build_pyramid

    state = job.state.volumes[sub]
    layout, folder = state.layout, state.folder
    described, place = job.record if sub is None else job.record.volumes[sub], _place(job, sub)
    assert place is not None
    level0 = [record for record in folder.partition_records() if record.level == 0]
    levels = build_pyramid(folder, layout, level0, workers=job.settings.workers)
    corner = described.corner_nm or (0.0, 0.0, 0.0)
    metadata = write_metadata(folder, layout, place.start, corner)
    coverage = write_coverage(folder, layout, level0)
    folder.write(folder.preview, preview_png(folder, layout, [*level0, *levels]))
    if sub is None:
        job.set_status("saving-data", coverage_sha256=coverage.sha256)
    else:
        summary = job.record.volumes[sub].model_copy(update={"coverage_sha256": coverage.sha256})
        job.set_status("saving-data", volumes={**job.record.volumes, sub: summary})
    return [*level0, *levels], metadata
