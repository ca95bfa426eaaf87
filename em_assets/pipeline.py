"""The whole job for one dataset, as plain functions: what is missing, fetch it, finish the volume, commit.

No Dagster here; `assets.py` calls these and reports. Everything is decided from the store's own records, never
from an event log. The order of writes is the safety: the record says `saving-data` before the first byte, each
shard's record follows its object, the volume's own metadata comes after every shard, `complete` comes last. A
process that is killed anywhere leaves a store from which the next run goes on.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from em_assets.checks.volume import BLOCKING, CheckOutcome, StoredVolume, run_checks
from em_assets.datasets.spec import ITEM_BYTES, DatasetSpec
from em_assets.errors import Mismatch, Unavailable
from em_assets.progress import Reporter, human_bytes
from em_assets.records import (
    VOLUME,
    DatasetFolder,
    DatasetRecord,
    PartitionRecord,
    Status,
    is_intact,
    now,
    partition_index,
    partition_key,
)
from em_assets.settings import Settings
from em_assets.sources import OpenSource, describe, open_source
from em_assets.store import Store
from em_assets.volume import Box, Claim, ceil_divide, subtract

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEARTBEAT_SECONDS = 30.0
WAIT_SECONDS = 1.0
"""Between two looks at another writer's heartbeat."""
CLAIM_SETTLES_SECONDS = 0.05
"""How long after a claim another one, made before it was visible, may still arrive."""
REMOTE_CLAIM_SETTLES_SECONDS = 1.0
"""The same on S3."""

Log = Callable[[str], None]
P = ParamSpec("P")
T = TypeVar("T")


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
    requests: int | None = None
    """None until the publisher was asked."""
    received_bytes: int | None = None
    """None until the publisher was asked, or where it does not say."""
    refusals: tuple[str, ...] = ()
    """Why it will not be started, as sentences."""

    def line(self) -> str:
        """The plan as one line for a person."""
        if not self.partitions_missing:
            return f"{self.name}: all {self.partitions_total} partitions are here, nothing to fetch"
        fetch = (
            f"{human_bytes(self.received_bytes)} in {self.requests} requests" if self.received_bytes else "size unknown"
        )
        free = f"{human_bytes(self.free_bytes)} free" if self.free_bytes is not None else "free space unknown"
        here = self.partitions_total - self.partitions_missing
        return (
            f"{self.name}: {self.partitions_missing} of {self.partitions_total} partitions to fetch ({fetch}); "
            f"needs at most {human_bytes(self.needed_bytes)} of disk, {free}; {here} already here"
        )


@dataclass
class FetchResult:
    """What a run did."""

    fetched: list[PartitionRecord] = field(default_factory=list)
    kept: list[PartitionRecord] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)
    received_bytes: int = 0
    seconds: float = 0.0
    changed: bool = False
    """Whether any stored byte of the volume was written."""


class PartitionsFailed(Unavailable):
    """Some partitions could not be fetched; the others are stored and recorded."""

    def __init__(self, message: str, result: FetchResult) -> None:
        super().__init__(message)
        self.result = result


class ChecksFailed(Mismatch):
    """A blocking check is red."""


class _ClaimLost(Unavailable):
    """Another run writes the dataset: its record is not ours to change."""


def plan_dataset(spec: DatasetSpec, settings: Settings, store: Store, *, ask_publisher: bool = False) -> DatasetPlan:
    """What materializing would take. With `ask_publisher` also the requests and bytes (a few small requests)."""
    state = _State.read(spec, store)
    requests = received = None
    if ask_publisher and state.missing:
        source = open_source(spec, settings)
        box = state.crop_box or source.crop_box()[0]
        read = source.reader.plan([_in_source(spec, box, key) for key in state.missing])
        requests, received = read.requests, read.received_bytes
    return _plan(spec, settings, store, state, requests=requests, received_bytes=received)


def _again_if_claim_was_lost(work: Callable[P, T]) -> Callable[P, T]:
    """The one of two runs that lost the race for a dataset begins anew: it then waits for the other."""

    @functools.wraps(work)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                return work(*args, **kwargs)
            except _ClaimLost:
                sleep(WAIT_SECONDS)

    return repeated


@_again_if_claim_was_lost
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
    with _writing(spec, settings, store, log) as job:
        wanted = list(keys) if keys is not None else job.all_keys
        result = job.fetch(wanted, reporter)
        job.require_no_failures(result)
        if result.changed:
            job.leave_unfinished()
        return result


@_again_if_claim_was_lost
def write_dataset_regions(
    spec: DatasetSpec, settings: Settings, store: Store, regions: Mapping[str, NDArray[Any]], *, log: Log
) -> list[PartitionRecord]:
    """Writes regions that were computed here, by partition key, and leaves the volume unfinished and hidden.

    Each is a (z, y, x) array of its shard's shape and the spec's dtype; raises Mismatch otherwise.
    """
    from em_assets.standardize.ome import remove_group_metadata
    from em_assets.standardize.region import write_region

    with _writing(spec, settings, store, log) as job:
        job.set_status("saving-data")
        remove_group_metadata(job.folder)
        records = [write_region(job.folder, spec, partition_index(key), voxels) for key, voxels in regions.items()]
        job.leave_unfinished()
        return records


@_again_if_claim_was_lost
def materialize_dataset(
    spec: DatasetSpec, settings: Settings, store: Store, *, reporter: Reporter, log: Log, may_fetch: bool = True
) -> tuple[DatasetRecord, FetchResult]:
    """Makes the dataset complete: fetches what is missing, builds what depends on it, checks, commits.

    A complete dataset is left as it is: nothing is read but its records. Raises as `fetch_dataset_partitions`,
    ChecksFailed, and Mismatch if anything is missing that it may not fetch.
    """
    with _writing(spec, settings, store, log) as job:
        if job.is_complete():
            reporter.plan(_plan(spec, settings, store, job.state).line())
            if job.record != job.state.record:  # the spec now describes the same bytes in other words
                job.folder.write_record(job.record)
            return job.record, FetchResult(kept=list(job.state.intact.values()))
        if job.state.missing and not may_fetch:
            raise Mismatch(
                f"{spec.name}: {len(job.state.missing)} of {len(job.all_keys)} partitions are not stored, and only a "
                f"person starts a download; materialize {spec.name} to fetch them."
            )
        result = job.fetch(job.all_keys, reporter)
        job.require_no_failures(result)
        return job.finish(result), result


@dataclass(frozen=True)
class _State:
    """What the store has of a dataset, in its own records' words."""

    record: DatasetRecord | None
    intact: dict[str, PartitionRecord]
    """Level-0 partitions whose objects are there, by key."""
    missing: list[str]
    stored_bytes: int
    crop_box: Box | None
    """In the publisher's voxels: as the dataset's record says, or, should that be lost, the shards' records."""

    @classmethod
    def read(cls, spec: DatasetSpec, store: Store) -> _State:
        """Raises Mismatch if what lies under this name is not this dataset's."""
        folder = DatasetFolder(store, spec.name)
        record = folder.read_record()
        sizes = folder.stored_sizes()
        records = list(folder.partition_records())
        if record is not None and record.identity != spec.identity() and not sizes and not records:
            record = None  # a refusal or a failure before the first byte: nothing is kept for another spec to lose
        if record is not None and record.identity != spec.identity():
            raise Mismatch(
                f"{store.uri(spec.name)} holds {spec.name} with identity {record.identity}, the spec now describes "
                f"{spec.identity()} (another source, crop, seed or encoding); keep the old spec, or remove what is "
                f"stored with `em-assets rm {spec.name}`."
            )
        if record is None and sizes and not any(r.identity == spec.identity() for r in records):
            raise Mismatch(
                f"{store.uri(spec.name)} holds {len(sizes)} objects that are not the dataset {spec.name} of this spec; "
                f"set EM_ASSETS_ROOT to another place, or remove them with `em-assets rm {spec.name}`."
            )
        ours = [r for r in records if r.level == 0 and r.identity == spec.identity() and is_intact(r, sizes)]
        crop = record.source_box if record is not None and record.source_box is not None else _crop_of(spec, ours)
        intact = {r.key: r for r in ours if crop is None or r.source_box in (None, _in_source(spec, crop, r.key))}
        missing = [key for key in map(partition_key, spec.shard_indices()) if key not in intact]
        return cls(record, intact, missing, sum(sizes.values()), crop)


class _Job:
    """One run's hold on a dataset, between the first write and the last."""

    def __init__(self, spec: DatasetSpec, settings: Settings, store: Store, log: Log) -> None:
        self.spec, self.settings, self.store, self.log = spec, settings, store, log
        self.folder = DatasetFolder(store, spec.name)
        self.state = _State.read(spec, store)
        self.record = described(self.state.record, spec)
        self.run = uuid.uuid4().hex[:12]
        self._lock = threading.Lock()
        self._claimed = False
        self._started, self._started_at = monotonic(), now()
        self.received_bytes = 0

    @cached_property
    def all_keys(self) -> list[str]:
        return [partition_key(index) for index in self.spec.shard_indices()]

    @cached_property
    def source(self) -> OpenSource:
        return open_source(self.spec, self.settings)

    def is_complete(self) -> bool:
        """Complete by its own record, with every object of the manifest there in its size."""
        sizes = self.folder.stored_sizes()
        return (
            self.record.status == "complete"
            and not self.state.missing
            and all(is_intact(record, sizes) for record in self.folder.partition_records())
            and f"{VOLUME}/zarr.json" in sizes
            and sum(sizes.values()) == self.record.file_size_bytes
            and all(
                self.store.size_bytes(self.folder.path(name)) is not None
                for name in ("manifest.parquet", "coverage.parquet")
            )
        )

    def set_status(self, status: Status, reason: str | None = None, **changes: Any) -> None:
        with self._lock:
            self.record = self.record.with_status(status, reason, run=self.run, **changes)
            self.folder.write_record(self.record)
        if status == "saving-data" and not self._claimed:
            self._require_claim()

    def leave_unfinished(self) -> None:
        here, all_keys = len(self.all_keys) - len(_State.read(self.spec, self.store).missing), len(self.all_keys)
        self.set_status(
            "interrupted", f"{here} of {all_keys} partitions are stored; materialize {self.spec.name} to finish"
        )

    def _require_claim(self) -> None:
        """Where no lock holds, two that begin at one moment both claim; the one that wrote last goes on."""
        is_remote = self.store.local_path(".locks") is None
        sleep(REMOTE_CLAIM_SETTLES_SECONDS if is_remote else CLAIM_SETTLES_SECONDS)
        found = self.folder.read_record()
        if found is not None and found.heartbeat is not None and found.heartbeat.run != self.run:
            raise _ClaimLost(f"{self.spec.name}: another run took hold of it at the same moment; run again.")
        self._claimed = True

    def beat(self) -> None:
        with self._lock:
            if self.record.status == "saving-data":
                self.record = self.record.with_status("saving-data", run=self.run, timestamp=self.record.timestamp)
                self.folder.write_record(self.record)

    def fetch(self, wanted: Sequence[str], reporter: Reporter) -> FetchResult:
        """Fetches those of `wanted` that are missing; failures are in the result, not raised."""
        from em_assets.standardize.ingest import fetch_regions
        from em_assets.standardize.ome import remove_group_metadata

        result = FetchResult(kept=[self.state.intact[key] for key in wanted if key in self.state.intact])
        missing = [key for key in wanted if key not in self.state.intact]
        plan = self._plan()
        if not missing:
            reporter.plan(plan.line())
            return result
        if plan.refusals:
            reporter.plan(plan.line())
            raise Mismatch(plan.refusals[0])
        box = self._crop_box()
        read = self.source.reader.plan([_in_source(self.spec, box, key) for key in missing])
        plan = self._plan(requests=read.requests, received_bytes=read.received_bytes)
        reporter.plan(plan.line())
        if self.record.status == "complete":
            self.log(f"{self.spec.name}: {len(missing)} partitions are gone or damaged and are made again")
        self.set_status("saving-data")
        remove_group_metadata(self.folder)
        reporter.start(read.received_bytes, len(missing), self.spec.name)

        def on_bytes(count: int) -> None:
            with self._lock:
                self.received_bytes += count
            reporter.advance(bytes=count)

        started = monotonic()
        records, failures = fetch_regions(
            self.folder,
            self.spec,
            self.source.reader,
            box,
            missing,
            on_bytes=on_bytes,
            on_region=lambda _: reporter.advance(items=1),
        )
        result.fetched, result.failures, result.changed = records, failures, True
        result.received_bytes, result.seconds = self.received_bytes, monotonic() - started
        self._require_something(records)
        known = {**self.record.additional_metadata, "publisher": self.source.met()}
        self.set_status("saving-data", additional_metadata=known)
        return result

    def _require_something(self, fetched: Sequence[PartitionRecord]) -> None:
        """A publisher that has nothing of a whole volume is more likely wrong, moved or closed than empty."""
        every = [*self.state.intact.values(), *fetched]
        if len(every) < len(self.all_keys) or any(record.objects for record in every):
            return
        for record in every:
            self.folder.delete_partition_record(record.level, record.key)
        raise Mismatch(
            f"{self.spec.name}: {self.spec.source.url} has none of the chunks of {self.record.source_box}, in its own "
            "voxels; look at the address in a viewer, choose another place for the crop, or try again later."
        )

    def require_no_failures(self, result: FetchResult) -> None:
        if not result.failures:
            return
        keys = sorted(result.failures)
        first = result.failures[keys[0]]
        total = len(keys) + len(result.fetched) + len(result.kept)
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        raise PartitionsFailed(
            f"{self.spec.name}: {len(keys)} of {total} partitions could not be fetched "
            f"({', '.join(keys[:5])}{more}), the others are kept; first: {_one_line(first)}",
            result,
        )

    def _plan(self, **asked: int | None) -> DatasetPlan:
        return _plan(self.spec, self.settings, self.store, self.state, **asked)

    def _crop_box(self) -> Box:
        """The crop's place: as it was stored, else found now and stored before the first voxel."""
        if self.record.source_box is not None:
            return self.record.source_box  # type: ignore[no-any-return]
        box, how = self.source.crop_box()
        if self.state.crop_box not in (None, box):
            raise Mismatch(
                f"{self.spec.name}: what is stored was cut at {self.state.crop_box}, the spec now gives {box}, in the "
                f"publisher's voxels; remove what is stored with `em-assets rm {self.spec.name}`."
            )
        for path, data in self.source.documents().items():
            self.folder.write(path, data)
        self.set_status(
            "saving-data",
            source_box=box,
            source_shape=self.source.reader.info.shape,
            additional_metadata={**self.record.additional_metadata, "crop": how},
        )
        return box

    def finish(self, result: FetchResult) -> DatasetRecord:
        """Pyramid, metadata, manifest, coverage, preview, checks, and the commit."""
        from em_assets.standardize.finish import write_coverage, write_manifest
        from em_assets.standardize.ome import write_metadata
        from em_assets.standardize.preview import preview_png
        from em_assets.standardize.pyramid import build_pyramid

        box = self._crop_box()
        self.set_status("saving-data")
        result.changed = True
        level0 = [record for record in self.folder.partition_records() if record.level == 0]
        levels = build_pyramid(self.folder, self.spec, level0, workers=self.settings.workers)
        metadata = write_metadata(self.folder, self.spec, box.start)
        manifest = write_manifest(self.folder, [*level0, *levels], metadata)
        coverage = write_coverage(self.folder, self.spec, level0)
        self.folder.write("preview.png", preview_png(self.folder, self.spec, [*level0, *levels]))
        self.set_status(
            "saving-data",
            sha256=manifest.sha256,
            coverage_sha256=coverage.sha256,
            file_size_bytes=manifest.size_bytes,
            volume_shape=self.spec.shape,
            dtype=self.spec.expected.dtype,
            voxel_size_nm=self.spec.expected.voxel_size_nm,
            local_paths=local_paths(self.folder),
        )
        require_checks(self.spec, self.folder, self.record)
        self.set_status("complete")
        return self.record

    def close(self, error: BaseException | None) -> None:
        """Leaves a status that says what happened, and a line in the dataset's history."""
        if isinstance(error, _ClaimLost):
            return
        if error is not None:
            reason = _one_line(error)
            self.set_status("error" if isinstance(error, Exception) else "interrupted", reason)
        result = error.result if isinstance(error, PartitionsFailed) else None
        run = {
            "id": self.run,
            "started": self._started_at.isoformat(),
            "ended": now().isoformat(),
            "outcome": "success" if error is None else "failure",
            "reason": None if error is None else _one_line(error),
            "failed_partitions": sorted(result.failures) if result else [],
            "received_bytes": self.received_bytes,
            "seconds": round(monotonic() - self._started, 3),
        }
        stamp = self._started_at.strftime("%Y%m%dT%H%M%SZ")
        self.folder.write(f"runs/{stamp}-{run['id']}.json", json.dumps(run, indent=1).encode() + b"\n")


@contextlib.contextmanager
def _writing(spec: DatasetSpec, settings: Settings, store: Store, log: Log) -> Iterator[_Job]:
    """Holds the dataset for one writer, beats while it works, and records how it ended."""
    with dataset_lock(store, spec.name, log):
        _wait_for_writer(DatasetFolder(store, spec.name), log)
        job = _Job(spec, settings, store, log)
        store.remove_partials(spec.name)
        stop = threading.Event()
        beating = threading.Thread(target=_beat_until, args=(job, stop), name="heartbeat", daemon=True)
        beating.start()
        error: BaseException | None = None
        try:
            yield job
        except BaseException as raised:
            error = raised
            raise
        finally:
            stop.set()
            beating.join()
            # the reason of the failure matters more than a store that cannot even take a note of it
            with contextlib.suppress(Unavailable) if error is not None else contextlib.nullcontext():
                job.close(error)


def _beat_until(job: _Job, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(Unavailable):
            job.beat()


@contextlib.contextmanager
def dataset_lock(store: Store, name: str, log: Log) -> Iterator[None]:
    """One writer at a time for a dataset on this machine; a dead one holds nothing. A second one waits.

    On S3, and where the file system ignores locks, the record's heartbeat says that somebody writes
    (`_wait_for_writer`).
    """
    folder = store.local_path(".locks")
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f"{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        log(f"{name}: another run is writing this dataset; waiting for it to end")
        lock.acquire()
    except NotImplementedError:
        log(f"{name}: this file system has no locks; the record's heartbeat alone keeps a second run away")
    except OSError as error:
        raise Unavailable(
            f"{folder} cannot be used ({error.strerror or error}): correct EM_ASSETS_ROOT or the folder's permissions."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _wait_for_writer(folder: DatasetFolder, log: Log) -> None:
    """Returns when no living writer's heartbeat is on the record."""
    told = False
    while (record := folder.read_record()) is not None and record.visible_status == "saving-data":
        if not told and record.heartbeat is not None:
            log(f"{folder.name}: {record.heartbeat.host} (process {record.heartbeat.pid}) is writing it; waiting")
            told = True
        sleep(WAIT_SECONDS)


def require_checks(spec: DatasetSpec, folder: DatasetFolder, record: DatasetRecord) -> list[CheckOutcome]:
    """Runs the blocking checks. Raises ChecksFailed with the first red one's sentence."""
    outcomes = run_checks(StoredVolume.read(spec, folder, record), BLOCKING)
    red = [outcome for outcome in outcomes if not outcome.passed]
    if red:
        raise ChecksFailed(f"{spec.name}: check {red[0].name} failed: {red[0].message}.")
    return outcomes


def recheck_dataset(
    spec: DatasetSpec, store: Store, names: Iterable[str], log: Log
) -> tuple[list[CheckOutcome], DatasetRecord | None]:
    """Runs checks on what is stored, whatever its status; a red blocking one turns the record to `error`.

    Returns the outcomes and the record as it is now; no outcomes and None if nothing is stored.
    """
    folder = DatasetFolder(store, spec.name)
    with dataset_lock(store, spec.name, log):
        record = _State.read(spec, store).record  # refuses what is another spec's
        if record is None or not folder.stored_sizes():
            return [], None
        outcomes = run_checks(StoredVolume.read(spec, folder, record), names)
        red = [outcome for outcome in outcomes if not outcome.passed and outcome.name in BLOCKING]
        if red and record.status == "complete":
            record = record.with_status("error", f"check {red[0].name} failed: {red[0].message}")
            folder.write_record(record)
        return outcomes, record


def describe_dataset(spec: DatasetSpec, store: Store) -> list[Claim]:
    """Writes `claims.parquet`: everything the stored documents state, each with where it came from. No network."""
    from em_assets.catalog.claims import write_claims

    folder = DatasetFolder(store, spec.name)
    prefix = f"{spec.name}/"
    paths = [path.removeprefix(prefix) for path, _ in store.list(folder.path("documents"))]
    claims = describe(spec, {path: folder.read(path) for path in paths})
    write_claims(folder, claims)
    return claims


def described(record: DatasetRecord | None, spec: DatasetSpec) -> DatasetRecord:
    """The record with the spec's present words about source, licence and citation; what was measured stays."""
    listed = listed_record(spec)
    if record is None:
        return listed
    words = ("source", "source_id", "title", "description", "license", "citation", "doi", "page_url", "download_url")
    return record.model_copy(update={word: getattr(listed, word) for word in words})


def listed_record(spec: DatasetSpec) -> DatasetRecord:
    """The record of a dataset of which nothing is stored yet: what its spec states."""
    return DatasetRecord(
        name=spec.name,
        source=spec.publisher,
        source_id=spec.source_id,
        title=spec.title,
        description=spec.description,
        volume_shape=spec.shape,
        voxel_size_nm=spec.expected.voxel_size_nm,
        dtype=spec.expected.dtype,
        license=spec.license,
        citation=spec.citation,
        doi=spec.doi,
        page_url=spec.page_url,
        download_url=spec.source.url,
        local_paths={},
        status="listed",
        timestamp=now(),
        identity=spec.identity(),
    )


def local_paths(folder: DatasetFolder) -> dict[str, str]:
    """What is where, for people and programs: absolute paths or s3:// addresses."""
    entries = {
        "volume": VOLUME,
        "manifest": "manifest.parquet",
        "coverage": "coverage.parquet",
        "preview": "preview.png",
        "records": "records",
        "documents": "documents",
        "checks": "checks",
    }
    return {name: folder.uri(relative) for name, relative in entries.items()}


def _plan(
    spec: DatasetSpec,
    settings: Settings,
    store: Store,
    state: _State,
    *,
    requests: int | None = None,
    received_bytes: int | None = None,
) -> DatasetPlan:
    level0, coarser = _largest_bytes(spec)
    stored = level0 + coarser
    missing = sum(spec.shard_box(partition_index(key)).voxels for key in state.missing)
    needed = math.ceil(level0 * missing / Box.from_shape(spec.shape).voxels) + coarser if missing else 0
    free = store.free_bytes()
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
    return DatasetPlan(
        name=spec.name,
        partitions_total=len(state.missing) + len(state.intact),
        partitions_missing=len(state.missing),
        stored_bytes=stored,
        needed_bytes=needed,
        free_bytes=free,
        already_bytes=state.stored_bytes,
        requests=requests,
        received_bytes=received_bytes,
        refusals=tuple(refusals),
    )


def _largest_bytes(spec: DatasetSpec) -> tuple[int, int]:
    """What level 0 and the coarser levels take if nothing compresses: whole inner chunks, as they are stored."""
    from em_assets.standardize.ome import level_shapes

    chunk = Box.from_shape(spec.output.chunk).voxels * ITEM_BYTES[spec.expected.dtype]
    levels = [
        Box.from_shape(ceil_divide(shape, spec.output.chunk)).voxels * chunk for shape in level_shapes(spec.shape)
    ]
    return levels[0], sum(levels[1:])


def _crop_of(spec: DatasetSpec, records: Sequence[PartitionRecord]) -> Box | None:
    """Where the crop lies if the shards were cut where their records say; None without any that says."""
    for record in records:
        if record.source_box is not None:
            return Box.from_shape(spec.shape, at=subtract(record.source_box.start, record.box.start))
    return None


def _in_source(spec: DatasetSpec, crop_box: Box, key: str) -> Box:
    return spec.shard_box(partition_index(key)).shifted(crop_box.start)


def _one_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split())
