"""What is done with a dataset, from outside: plan, fetch, materialize, check again, describe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from em_assets.catalog.claims import CLAIMS, decode_claims, encode_claims, read_claims
from em_assets.checks.metadata import COLUMNS as KEY_COLUMNS
from em_assets.checks.metadata import check_metadata_keys, read_last, write_outcome
from em_assets.checks.volume import BLOCKING, CheckOutcome, StoredDataset, run_checks
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed, Mismatch
from em_assets.pipeline.absent import leave_out, leave_out_failed_files, note_absent, recorded_absent, still_absent
from em_assets.pipeline.documents import (
    Received,
    Stated,
    complete_documents,
    keep_documents,
    receive_all,
    write_missing,
)
from em_assets.pipeline.job import FetchResult, Job, writing
from em_assets.pipeline.locking import Log, again_if_claim_was_lost, dataset_lock, wait_for_writer
from em_assets.pipeline.plan import DatasetPlan, make_plan
from em_assets.pipeline.points import POINTS_NOTE, write_points
from em_assets.pipeline.recorded import local_paths
from em_assets.pipeline.state import DatasetState
from em_assets.progress import Reporter
from em_assets.records import DatasetFolder, DatasetRecord, PartitionRecord, partition_index
from em_assets.settings import Settings
from em_assets.sources.claims import SPEC_DOCUMENT, spec_document
from em_assets.store import Store
from em_assets.volume import Claim

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from em_assets.formats.reader import VolumeReader
    from em_assets.volume import Box

SHOWN_CLAIMS = 50


def plan_dataset(spec: DatasetSpec, settings: Settings, store: Store, *, ask_publisher: bool = False) -> DatasetPlan:
    """What materializing would take, from the spec; with `ask_publisher` exactly (a few small requests)."""
    spec = spec.without(recorded_absent(DatasetFolder(store, spec.name).read_record(), spec))
    state = DatasetState.read(spec, store)
    if not ask_publisher or not state.missing:
        return make_plan(state, settings)
    return make_plan(state, settings, Job(spec, settings, store, _silent).partitions.ask(state.missing))


@again_if_claim_was_lost
def fetch_dataset_partitions(
    spec: DatasetSpec,
    settings: Settings,
    store: Store,
    keys: Sequence[str] | None,
    *,
    reporter: Reporter,
    log: Log,
) -> FetchResult:
    """Fetches what is missing of these partitions (None: of all) and leaves the volume unfinished.

    Raises PartitionsFailed if some could not be fetched (the others are kept), Mismatch if the store holds
    something else under this name, Unavailable if the publisher cannot be reached.
    """
    with writing(spec, settings, store, log) as job:
        result = job.fetch(list(keys) if keys is not None else job.state.keys, reporter)
        job.require_no_failures(result)
        if result.changed:
            job.leave_unfinished()
        return result


@again_if_claim_was_lost
def write_dataset_regions(
    spec: DatasetSpec, settings: Settings, store: Store, regions: Mapping[str, NDArray[Any]], *, log: Log
) -> list[PartitionRecord]:
    """Writes regions that were computed here, by partition key, and leaves the volume unfinished and hidden.

    Each is a (z, y, x) array of its shard's shape and the spec's dtype; raises Mismatch otherwise.
    """
    from em_assets.standardize.region import write_region

    with writing(spec, settings, store, log) as job:
        job.set_status("saving-data")
        job.hide_volumes()
        records = [write_region(job.folder, spec, partition_index(key), voxels) for key, voxels in regions.items()]
        job.leave_unfinished()
        return records


@again_if_claim_was_lost
def materialize_dataset(
    spec: DatasetSpec, settings: Settings, store: Store, *, reporter: Reporter, log: Log, may_fetch: bool = True
) -> tuple[DatasetRecord, FetchResult]:
    """Makes the dataset complete: fetches what is missing, builds what depends on it, checks, commits.

    A complete dataset is left as it is: nothing is read but its records. Raises as `fetch_dataset_partitions`,
    ChecksFailed, and Mismatch if anything is missing that it may not fetch.
    """
    with writing(spec, settings, store, log) as job:
        _leave_out_what_is_still_absent(job, may_fetch=may_fetch)
        if job.state.is_complete():
            reporter.plan(make_plan(job.state, settings).line())
            if may_fetch:
                complete_documents(job)
                complete_points(job)
            if job.record != job.state.record:  # the spec now describes the same bytes in other words
                job.hold.write(job.record)
            here = (job.partitions.here(key) for key in job.state.keys)
            return job.record, FetchResult(kept=[fetched for fetched in here if fetched is not None])
        if job.state.needs_publisher() and not may_fetch:
            raise Mismatch(
                f"{spec.name}: {len(job.state.missing)} of {len(job.state.keys)} partitions are not stored"
                f"{'' if job.state.missing else ', but further volumes of it are not'}, and only a person starts a "
                f"download; materialize {spec.name} to fetch what is missing."
            )
        result = job.fetch(job.state.keys, reporter)
        if spec.is_by_file:
            leave_out_failed_files(job, result)
        job.require_no_failures(result)
        return _finish(job, result), result


def _leave_out_what_is_still_absent(job: Job, *, may_fetch: bool) -> None:
    """A dataset that is whole but for annotations that could not be had is finished, unless they are there now."""
    noted = recorded_absent(job.record, job.spec)
    if not noted or not DatasetState.read(job.spec.without(noted), job.store).is_complete():
        return
    leave_out(job, still_absent(job, noted) if may_fetch else noted)


def _finish(job: Job, result: FetchResult) -> DatasetRecord:
    """Volumes, documents, manifest, checks, and the commit."""
    from em_assets.pipeline.volumes import finish_volumes, remove_dropped_volumes
    from em_assets.standardize.finish import write_manifest

    job.set_status("saving-data")
    result.changed = True
    keep_documents(job)
    keep_points(job)
    remove_dropped_volumes(job)
    records, documents = finish_volumes(job, lambda sub: _open_reader(job, sub))
    if job.spec.is_by_file:
        from em_assets.pipeline.same_volume import compare_cuts

        compare_cuts(job)
    manifest = write_manifest(job.folder, records, documents, list(job.state.originals()))
    spec = job.spec
    job.set_status(
        "saving-data",
        sha256=manifest.sha256,
        file_size_bytes=manifest.size_bytes,
        volume_shape=spec.shape,
        dtype=spec.dtype,
        voxel_size_nm=spec.voxel_size_nm,
        local_paths=local_paths(job.folder, spec),
    )
    job.require_checks()
    _update_intensities(job)
    job.set_status("complete", note_absent(job))
    return job.record


def keep_points(job: Job) -> None:
    """Makes the tables of points, and notes what there is of them."""
    noted = write_points(job.spec, job.folder, job.log)
    if noted or POINTS_NOTE in job.record.additional_metadata:
        job.note(points=noted)


def complete_points(job: Job) -> None:
    """The same for a dataset that is complete, and stays so."""
    noted = write_points(job.spec, job.folder, job.log)
    if noted != job.record.additional_metadata.get(POINTS_NOTE, {}):
        known = {**job.record.additional_metadata, POINTS_NOTE: noted}
        job.set_status("complete", job.record.status_reason, additional_metadata=known)


def _update_intensities(job: Job) -> None:
    """`intensity.json`, for every image volume; nothing is read for one whose voxels are those it was made of."""
    from em_assets.standardize.intensity import update_intensity

    for sub, layout in job.spec.layouts().items():
        folder = job.folder.further(sub)
        update_intensity(folder, layout, folder.partition_records())


def _open_reader(job: Job, sub: str | None) -> tuple[VolumeReader, Box]:
    from em_assets.volume import Box

    if job.spec.is_by_file:
        from em_assets.pipeline.files import open_received

        return open_received(job, sub)
    if job.spec.keeps_original:
        from em_assets.pipeline.objects import open_kept

        return open_kept(job, sub)
    from em_assets.pipeline.chunks import ChunkPartitions
    from em_assets.pipeline.moved import require_same_voxels

    partitions = job.partitions
    assert isinstance(partitions, ChunkPartitions)
    if sub is None:
        return partitions.source.reader, partitions.place()
    reader = partitions.source.volume_reader(sub)
    require_same_voxels(job.spec, job.state.volumes[sub], reader)
    return reader, Box.from_shape(job.spec.volumes[sub].shape, at=reader.info.origin)


def recheck_dataset(
    spec: DatasetSpec, store: Store, names: Iterable[str], log: Log
) -> tuple[list[CheckOutcome], DatasetRecord | None]:
    """Runs checks on what is stored, whatever its status; a red blocking one turns the record to `error`.

    Returns the outcomes and the record as it is now; no outcomes and None if nothing is stored.
    """
    folder = DatasetFolder(store, spec.name)
    with dataset_lock(store, spec.name, log):
        wait_for_writer(folder, log)
        spec = spec.without(recorded_absent(folder.read_record(), spec))
        state = DatasetState.read(spec, store)  # refuses what is another spec's
        record = state.record
        if record is None or not state.stored_bytes:
            return [], None
        outcomes = run_checks(StoredDataset.read(spec, folder, record), names)
        red = [outcome for outcome in outcomes if not outcome.passed and outcome.name in BLOCKING]
        if red and record.status == "complete":
            record = record.with_status("error", f"check {red[0].name} failed: {red[0].message}")
            folder.write_record(record)
        return outcomes, record


@dataclass(frozen=True)
class Described:
    """What describing a dataset came to."""

    claims: int
    """How many there are in `claims.parquet` now."""
    first_claims: tuple[Claim, ...]
    """At most 50 of them, to look at."""
    received: tuple[str, ...]
    """Documents that came now, by path below the dataset's folder."""
    missing: dict[str, str]
    """Why others could not be had, or not anew: a sentence each, by path."""
    keys: CheckOutcome
    """Whether the documents still have the keys that they had (`checks/metadata.py`)."""


def describe_dataset(
    spec: DatasetSpec, settings: Settings, store: Store, *, fetch: bool, refresh: bool = False, log: Log | None = None
) -> Described:
    """Writes `claims.parquet`: everything that documents, files' headers and the spec state, each with its origin.

    With `fetch`, documents that are not here yet are asked for first, also of a dataset that is not downloaded: it
    stays `listed`. With `refresh` those that are here are asked for again. What cannot be had stops nothing. Raises
    Malformed for a stored document or file that is damaged, Mismatch if another spec's dataset lies under this name.

    A writer of the dataset is neither waited for nor disturbed: its lock may be held for hours, and what is written
    here nobody else writes, but for documents; those are whole at any moment, and a receipt is believed only beside
    the document that it is of. Two that describe one dataset take turns.
    """
    log = log or _silent
    folder = DatasetFolder(store, spec.name)
    with dataset_lock(store, f"{spec.name}.metadata", log):
        received = receive_all(spec, settings, folder, log, refresh=refresh) if fetch else Received()
        if fetch:
            write_missing(folder, received.missing)
        write_points(spec, folder, log)
        stated = Stated.read(spec, settings, store)
        folder.write(SPEC_DOCUMENT, spec_document(spec))
        first: list[Claim] = []
        encoded = encode_claims(spec.name, _tee(stated.claims(), first), stated.origins())
        keys, claims = _check_keys(folder, encoded, log)
        folder.write(CLAIMS, encoded)
    return Described(claims, tuple(first), tuple(received.paths), received.missing, keys)


def _check_keys(folder: DatasetFolder, encoded: bytes, log: Log) -> tuple[CheckOutcome, int]:
    """Compares the claims that come with those that are here, keeps the result; and how many there are."""
    try:
        before = read_claims(folder, KEY_COLUMNS)
    except Malformed as problem:  # they are made anew now
        log(str(problem))
        before = None
    after = decode_claims(encoded, folder.uri(CLAIMS), KEY_COLUMNS)
    assert after is not None
    outcome = check_metadata_keys(before, after, read_last(folder))
    write_outcome(folder, outcome)
    if not outcome.passed:
        log(f"{folder.name}: {outcome.message}")
    return outcome, after.num_rows


def _tee(claims: Iterable[Claim], first: list[Claim]) -> Iterator[Claim]:
    """The claims, the first 50 of which are kept."""
    for claim in claims:
        if len(first) < SHOWN_CLAIMS:
            first.append(claim)
        yield claim


def _silent(line: str) -> None:
    """Nobody listens while a plan is made."""
