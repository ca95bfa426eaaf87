"""One run's hold on a dataset, between the first write and the last: its record, heartbeat, claim and outcome."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic
from typing import Any, Protocol

from em_assets.checks.volume import BLOCKING, CheckOutcome, StoredDataset, run_checks
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Mismatch, Unavailable
from em_assets.fetch.receipts import Receipt
from em_assets.pipeline.locking import (
    HEARTBEAT_SECONDS,
    ClaimLost,
    Hold,
    Log,
    Overtaken,
    dataset_lock,
    held_store,
    wait_for_writer,
)
from em_assets.pipeline.plan import Transfer, make_plan
from em_assets.pipeline.recorded import described
from em_assets.pipeline.state import DatasetState
from em_assets.progress import Reporter
from em_assets.records import DatasetFolder, ObjectsRecord, PartitionRecord, Status, manifest_digest, now
from em_assets.settings import Settings
from em_assets.sources.cryoet import CurrentSpec, current_spec
from em_assets.store import Store


@dataclass(frozen=True)
class Fetched:
    """One partition that is here, for reports: a region of the volume, or a file."""

    key: str
    size_bytes: int
    sha256: str | None
    """None where the publisher has nothing of it."""
    received_bytes: int
    seconds: float
    details: dict[str, Any]

    @classmethod
    def of_region(cls, record: PartitionRecord) -> Fetched:
        details: dict[str, Any] = {"missing_source_chunks": len(record.missing), "box (z, y, x)": str(record.box)}
        if record.filled_source_chunks:
            details["filled_source_chunks"] = record.filled_source_chunks
        if record.statistics is not None:
            details["mean"] = record.statistics.mean
        return cls(
            record.key,
            sum(stored.size_bytes for stored in record.objects),
            record.objects[0].sha256 if record.objects else None,
            record.received_bytes,
            record.seconds,
            details,
        )

    @classmethod
    def of_objects(cls, record: ObjectsRecord) -> Fetched:
        return cls(
            record.key,
            sum(stored.size_bytes for stored in record.objects),
            manifest_digest(record.objects),
            record.received_bytes,
            record.seconds,
            {"objects": len(record.objects), "url": record.source_url},
        )

    @classmethod
    def of_file(cls, key: str, receipt: Receipt) -> Fetched:
        details = {"url": receipt.url, "path": receipt.path, "checksum": receipt.checksum}
        return cls(
            key,
            receipt.size_bytes,
            receipt.sha256,
            receipt.received_bytes,
            receipt.seconds,
            {name: value for name, value in details.items() if value is not None},
        )


@dataclass
class FetchResult:
    """What a run did."""

    fetched: list[Fetched] = field(default_factory=list)
    kept: list[Fetched] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)
    received_bytes: int = 0
    seconds: float = 0.0
    changed: bool = False
    """Whether any stored byte was written."""


class PartitionsFailed(Unavailable):
    """Some partitions could not be fetched; the others are stored and recorded."""

    def __init__(self, message: str, result: FetchResult) -> None:
        super().__init__(message)
        self.result = result


class ChecksFailed(Mismatch):
    """A blocking check is red."""


class Partitions(Protocol):
    """One kind of partition: how what is missing of them is found out, planned and fetched."""

    def here(self, key: str) -> Fetched | None:
        """The partition if it is stored."""

    def ask(self, missing: Sequence[str]) -> Transfer:
        """What fetching these will take; nothing is written."""

    def prepare(self, missing: Sequence[str]) -> Transfer:
        """Asks the publisher, so that nothing is written for one that is gone or not what is expected."""

    def fetch(
        self, missing: Sequence[str], on_bytes: Callable[[int], None], on_item: Callable[[], None]
    ) -> tuple[list[Fetched], dict[str, Exception]]:
        """(what was stored, errors by key), which together are all of `missing`."""

    def met(self) -> dict[str, Any]:
        """What the publisher was found to do, for the record."""


class Job:
    """What the writer of a dataset holds."""

    def __init__(self, spec: DatasetSpec, settings: Settings, store: Store, log: Log) -> None:
        self.run = uuid.uuid4().hex[:12]
        self.hold = Hold(DatasetFolder(store, spec.name), self.run, log)
        self.spec, self.settings, self.store, self.log = spec, settings, held_store(store, self.hold), log
        self.folder = DatasetFolder(self.store, spec.name)
        self.state = DatasetState.read(spec, self.store)
        self.record = described(self.state.record, spec)
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._claimed = False
        self._started, self._started_at = monotonic(), now()
        self.received_bytes = 0
        self.absent: dict[str, str] = {}
        """Further volumes that are left out because they cannot be had: why (`absent.py`)."""

    @cached_property
    def current(self) -> CurrentSpec:
        """The spec with the addresses of now. Asks, where they are a portal's."""
        current = current_spec(self.spec, self.settings)
        for problem in current.unanswered.values():
            self.log(f"{self.spec.name}: the spec's own addresses are used: {problem}")
        return current

    @cached_property
    def partitions(self) -> Partitions:
        if self.spec.is_by_file:
            from em_assets.pipeline.files import FilePartitions

            return FilePartitions(self)
        if self.spec.keeps_original:
            from em_assets.pipeline.objects import ObjectPartitions

            return ObjectPartitions(self)
        from em_assets.pipeline.chunks import ChunkPartitions

        return ChunkPartitions(self)

    def set_status(self, status: Status, reason: str | None = None, **changes: Any) -> None:
        with self._lock:
            self.record = self.record.with_status(status, reason, run=self.run, **changes)
            self.hold.write(self.record)
        if status == "saving-data" and not self._claimed:
            self._require_claim()

    def note(self, **known: Any) -> None:
        """Adds to the record's additional metadata; written with the next status."""
        self.set_status("saving-data", additional_metadata={**self.record.additional_metadata, **known})

    def leave_unfinished(self) -> None:
        missing, every = len(DatasetState.read(self.spec, self.store).missing), len(self.state.keys)
        self.set_status(
            "interrupted", f"{every - missing} of {every} partitions are stored; materialize {self.spec.name} to finish"
        )

    def hide_volumes(self) -> None:
        """Takes the volumes from readers before anything of them is changed."""
        from em_assets.standardize.ome import remove_group_metadata

        for sub in self.spec.layouts():
            remove_group_metadata(self.folder.further(sub))

    def _require_claim(self) -> None:
        self.hold.settle()
        self._claimed = True

    def beat(self) -> None:
        """Says that the writer lives. Raises ClaimLost if another run has taken the dataset over, where that shows."""
        with self._lock:
            if self.record.status == "saving-data":
                self.record = self.record.with_status("saving-data", run=self.run, timestamp=self.record.timestamp)
                self.hold.write(self.record)

    def fetch(self, wanted: Sequence[str], reporter: Reporter) -> FetchResult:
        """Fetches those of `wanted` that are missing; failures are in the result, not raised."""
        if self.spec.is_by_file and self.state.missing:
            self._adopt_files()
        missing = [key for key in wanted if key in set(self.state.missing)]
        here = (self.partitions.here(key) for key in wanted if key not in set(missing))
        result = FetchResult(kept=[fetched for fetched in here if fetched is not None])
        plan = make_plan(self.state, self.settings)
        if plan.refusals:
            reporter.plan(plan.line())
            raise Mismatch(plan.refusals[0])
        if not missing:
            reporter.plan(plan.line())
            return result
        transfer = self.partitions.prepare(missing)
        reporter.plan(make_plan(self.state, self.settings, transfer).line())
        if self.record.status == "complete":
            self.log(f"{self.spec.name}: {len(missing)} partitions are gone or damaged and are made again")
        self.set_status("saving-data")
        self.hide_volumes()
        reporter.start(transfer.received_bytes, len(missing), self.spec.name)

        def on_bytes(count: int) -> None:
            self.count_bytes(count)
            reporter.advance(bytes=count)

        started = monotonic()
        result.fetched, result.failures = self.partitions.fetch(missing, on_bytes, lambda: reporter.advance(items=1))
        result.changed = True
        result.received_bytes, result.seconds = self.received_bytes, monotonic() - started
        self.state = DatasetState.read(self.spec, self.store)
        self.note(publisher={**self.partitions.met(), **self.current.met})
        return result

    def _adopt_files(self) -> None:
        from em_assets.pipeline.files import FilePartitions

        assert isinstance(self.partitions, FilePartitions)
        if self.partitions.adopt():
            self.state = DatasetState.read(self.spec, self.store)

    def count_bytes(self, count: int) -> None:
        self.hold.stop_if_lost()  # a download would otherwise go on for hours
        with self._counting:  # not the record's lock: a slow write of that must not hold up the network
            self.received_bytes += count

    def require_no_failures(self, result: FetchResult) -> None:
        if not result.failures:
            return
        keys = sorted(result.failures)
        first = result.failures[keys[0]]
        total = len(keys) + len(result.fetched) + len(result.kept)
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        raise PartitionsFailed(
            f"{self.spec.name}: {len(keys)} of {total} partitions could not be fetched "
            f"({', '.join(keys[:5])}{more}), the others are kept; first: {one_line(first)}",
            result,
        )

    def require_checks(self) -> list[CheckOutcome]:
        """Runs the blocking checks. Raises ChecksFailed with the first red one's sentence."""
        outcomes = run_checks(StoredDataset.read(self.spec, self.folder, self.record), BLOCKING)
        red = [outcome for outcome in outcomes if not outcome.passed]
        if red:
            raise ChecksFailed(f"{self.spec.name}: check {red[0].name} failed: {red[0].message}.")
        return outcomes

    def close(self, error: BaseException | None) -> None:
        """Leaves a status that says what happened, and a line in the dataset's history."""
        if isinstance(error, ClaimLost):
            return
        if error is not None:
            self.set_status("error" if isinstance(error, Exception) else "interrupted", one_line(error))
        result = error.result if isinstance(error, PartitionsFailed) else None
        run = {
            "id": self.run,
            "started": self._started_at.isoformat(),
            "ended": now().isoformat(),
            "outcome": "success" if error is None else "failure",
            "reason": None if error is None else one_line(error),
            "failed_partitions": sorted(result.failures) if result else [],
            "received_bytes": self.received_bytes,
            "seconds": round(monotonic() - self._started, 3),
        }
        stamp = self._started_at.strftime("%Y%m%dT%H%M%SZ")
        self.folder.write(f"runs/{stamp}-{run['id']}.json", json.dumps(run, indent=1).encode() + b"\n")


@contextlib.contextmanager
def writing(spec: DatasetSpec, settings: Settings, store: Store, log: Log) -> Iterator[Job]:
    """Holds the dataset for one writer, beats while it works, and records how it ended."""
    with dataset_lock(store, spec.name, log):
        wait_for_writer(DatasetFolder(store, spec.name), log)
        job = Job(spec, settings, store, log)
        if job.hold.lost is not None:
            raise job.hold.lost
        store.remove_partials(spec.name)
        stop = threading.Event()
        beating = threading.Thread(target=_beat_until, args=(job, stop), name="heartbeat", daemon=True)
        beating.start()
        error: BaseException | None = None
        try:
            yield job
        except BaseException as raised:
            error = raised
            if job.hold.lost is not None and isinstance(raised, Exception | Overtaken):
                error = job.hold.lost  # whatever went wrong since follows from it
                raise error from None
            raise
        finally:
            stop.set()
            beating.join()
            # the reason of the failure matters more than a store that cannot even take a note of it
            with contextlib.suppress(Unavailable) if error is not None else contextlib.nullcontext():
                job.close(error)


def _beat_until(job: Job, stop: threading.Event) -> None:
    while job.hold.lost is None and not stop.wait(HEARTBEAT_SECONDS):
        # a lost claim ends the writer's own threads, with all that they do next
        with contextlib.suppress(Unavailable):
            job.beat()


def one_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split())
