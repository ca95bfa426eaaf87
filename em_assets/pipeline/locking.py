"""One writer at a time for a dataset: a file lock on this machine, the record's heartbeat everywhere."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from time import sleep
from typing import ParamSpec, TypeVar

from em_assets.errors import Unavailable
from em_assets.records import DatasetFolder
from em_assets.store import Store

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


def wait_for_writer(folder: DatasetFolder, log: Log) -> None:
    """Returns when no living writer's heartbeat is on the record."""
    told = False
    while (record := folder.read_record()) is not None and record.visible_status == "saving-data":
        if not told and record.heartbeat is not None:
            log(f"{folder.name}: {record.heartbeat.host} (process {record.heartbeat.pid}) is writing it; waiting")
            told = True
        sleep(WAIT_SECONDS)
