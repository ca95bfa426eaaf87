"""One writer at a time for a dataset: a file lock on this machine, the record's heartbeat everywhere.

On S3 the record is replaced by conditional writes (`Hold`), so that a dataset is one run's or another's, never both's.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import ParamSpec, TypeVar

from pydantic import ValidationError

from em_assets.errors import Unavailable
from em_assets.records import DatasetFolder, DatasetRecord
from em_assets.store import Data, ObjectStore, Store

HEARTBEAT_SECONDS = 30.0
WAIT_SECONDS = 1.0
"""Between two looks at another writer's heartbeat."""
CLAIM_SETTLES_SECONDS = 0.05
"""How long after a claim another one, made before it was visible, may still arrive."""
REMOTE_CLAIM_SETTLES_SECONDS = 1.0
"""The same on S3, where the server does not heed conditions."""
CONDITIONAL_WRITES = 5
"""So often the record is written anew after a reply was lost, or while the server could not decide (409)."""

Log = Callable[[str], None]
P = ParamSpec("P")
T = TypeVar("T")


class ClaimLost(Unavailable):
    """Another run writes the dataset: its record is not ours to change."""


def again_if_claim_was_lost(work: Callable[P, T]) -> Callable[P, T]:
    """The one of two runs that lost the race for a dataset begins anew: it then waits for the other."""

    @functools.wraps(work)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                return work(*args, **kwargs)
            except ClaimLost:
                sleep(WAIT_SECONDS)

    return repeated


@contextlib.contextmanager
def dataset_lock(store: Store, name: str, log: Log) -> Iterator[None]:
    """One writer at a time for a dataset on this machine; a dead one holds nothing. A second one waits.

    On S3, and where the file system ignores locks, the record's heartbeat says that somebody writes
    (`wait_for_writer`).
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


class Overtaken(BaseException):
    """Ends every thread of a run that has lost its hold.

    Not an Exception: nobody on the way out may take it for the failure of one partition and go on with the next.
    """


class Hold:
    """One run's hold on a dataset: all that it writes of the dataset's record goes through here.

    On S3 a write replaces the record that this run has seen last, or nothing. So exactly one of several succeeds that
    begin at one moment or take over from the same dead writer, and a run that was silent for so long that it passed
    for dead learns of its successor when it next writes. In a folder the file lock comes first; there, and where
    the server does not heed conditions, all write, and after a while the one that wrote last goes on (`settle`).
    """

    def __init__(self, folder: DatasetFolder, run: str, log: Log) -> None:
        """To be made before anything else is read: what is decided then holds for this version, or the claim fails."""
        self._folder, self._run, self._log = folder, run, log
        self._path = folder.path("metadata.json")
        self._store = folder.store if isinstance(folder.store, ObjectStore) else None
        self._version: str | None = None
        self._lost: ClaimLost | None = None
        if self._store is not None:
            self._begin(self._store)

    def _begin(self, store: ObjectStore) -> None:
        try:
            raw, self._version = store.read_version(self._path)
        except FileNotFoundError:
            return
        record = _parsed(raw)
        if record is not None and record.visible_status == "saving-data":
            self._lost = ClaimLost(f"{self._folder.name}: {_writer(record)} took hold of it just before; run again.")

    @property
    def lost(self) -> ClaimLost | None:
        """Why this run may not write any more."""
        return self._lost

    def write(self, record: DatasetRecord) -> None:
        """Raises ClaimLost if the dataset is another run's: nothing is written then."""
        store = self._store
        if store is None:
            self._folder.write_record(record)
            return
        if self._lost is not None:
            raise self._lost
        if store.heeds_conditions(self._folder.path(".condition")):
            self._replace(store, record)
            return
        self._log(f"{self._folder.name}: {store.root} has no conditional writes; the run that claims it last goes on")
        self._store = None
        self._folder.write_record(record)

    def settle(self) -> None:
        """After the first write. Raises ClaimLost if another run wrote after it; nothing to wait for where none can."""
        if self._store is not None:
            return
        is_remote = self._folder.store.local_path(".locks") is None
        sleep(REMOTE_CLAIM_SETTLES_SECONDS if is_remote else CLAIM_SETTLES_SECONDS)
        found = self._folder.read_record()
        if found is not None and found.heartbeat is not None and found.heartbeat.run != self._run:
            raise ClaimLost(f"{self._folder.name}: another run took hold of it at the same moment; run again.")

    def stop_if_lost(self) -> None:
        """Raises Overtaken."""
        if self._lost is not None:
            raise Overtaken

    def _replace(self, store: ObjectStore, record: DatasetRecord) -> None:
        data = record.model_dump_json(indent=1).encode() + b"\n"
        for _ in range(CONDITIONAL_WRITES):
            version = store.write_if_unchanged(self._path, data, self._version)
            if version is not None:
                self._version = version
                return
            self._version = self._own_version(store, data)
        raise Unavailable(
            f"{store.uri(self._path)} could not be written: {CONDITIONAL_WRITES} times its server said that it had "
            "changed, which it had not; run again, or ask who runs the server."
        )

    def _own_version(self, store: ObjectStore, data: bytes) -> str | None:
        """The record's, if nobody else has written it. Raises ClaimLost otherwise."""
        try:
            raw, version = store.read_version(self._path)
        except FileNotFoundError:
            if self._version is None:
                return None
            self._lost = ClaimLost(f"{self._folder.name} was removed while this run wrote it; run again.")
            raise self._lost from None
        record = _parsed(raw)
        is_ours = record is not None and record.heartbeat is not None and record.heartbeat.run == self._run
        if not is_ours and raw != data and version != self._version:
            self._lost = ClaimLost(f"{self._folder.name}: {_writer(record)} took it over from this run; run again.")
            raise self._lost
        return version


class HeldStore(ObjectStore):
    """The store for whoever has the hold: nothing is written or deleted any more once that is lost."""

    def __init__(self, store: ObjectStore, hold: Hold) -> None:
        super().__init__(store.root, store.access)
        self._hold = hold

    def write(self, path: str, data: Data) -> None:
        self._hold.stop_if_lost()
        super().write(path, data)

    def write_file(self, path: str, file: Path) -> None:
        self._hold.stop_if_lost()
        super().write_file(path, file)

    def delete(self, path: str) -> None:
        self._hold.stop_if_lost()
        super().delete(path)

    def delete_all(self, prefix: str) -> None:
        self._hold.stop_if_lost()
        super().delete_all(prefix)


def held_store(store: Store, hold: Hold) -> Store:
    """In a folder the lock holds to the end."""
    return HeldStore(store, hold) if isinstance(store, ObjectStore) else store


def _parsed(raw: bytes) -> DatasetRecord | None:
    """None where it is no record: `DatasetFolder.read_record` says so to whoever relies on it."""
    try:
        return DatasetRecord.model_validate_json(raw)
    except ValidationError:
        return None


def _writer(record: DatasetRecord | None) -> str:
    if record is None or record.heartbeat is None:
        return "another run"
    return f"another run ({record.heartbeat.host}, process {record.heartbeat.pid})"


def wait_for_writer(folder: DatasetFolder, log: Log) -> None:
    """Returns when no living writer's heartbeat is on the record."""
    told = False
    while (record := folder.read_record()) is not None and record.visible_status == "saving-data":
        if not told and record.heartbeat is not None:
            log(f"{folder.name}: {record.heartbeat.host} (process {record.heartbeat.pid}) is writing it; waiting")
            told = True
        sleep(WAIT_SECONDS)
