"""`em-assets stage`: a copy of a stored volume that is read faster: uncompressed, so that readers map it into memory.

The copy lies beside the volume, in `staged/`, or wherever it is asked for. It arrives under a temporary name, shard by
shard: each is compared with its record when it is read, read back when it is written, and noted in a journal, so that a
later call goes on where one was stopped. It gets its name when it is whole, and says then which volume it is a copy of.

Here is where a copy lies, whether one is there, and how it comes to its place; `stage_plan.py` says what it is to be,
`stage_copy.py` makes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_assets.errors import Mismatch, Unavailable, Unsupported
from em_assets.progress import Reporter
from em_assets.records import DatasetFolder, DatasetRecord
from em_assets.standardize.stage_copy import JOURNAL, Copy
from em_assets.standardize.stage_plan import ATTRIBUTE, DIGEST, Plan, Request, Source
from em_assets.store import DOWNLOAD_SUFFIX, PARTIAL_SUFFIX, LocalStore
from em_assets.volume import Zyx

STAGED = "staged"
"""The folder of a dataset's staged copies."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A finished copy."""

    path: Path
    levels: int
    size_bytes: int
    stored_bytes: int
    """Of the volume it is a copy of."""
    sha256: str
    """`records.manifest_digest` over its files but the group's own document, which holds it."""
    chunk: Zyx
    """Of level 0."""
    kept: int
    """Shards that an earlier call had already copied."""
    was_there: bool
    """It was whole before, and nothing was done."""
    coverage: Path | None
    """Says which voxels are real, beside a copy that is not in the store."""


def staged_path(folder: DatasetFolder) -> Path | None:
    """Where the copy of a volume lies by default, whether it is there or not; None where the store is no folder."""
    return folder.store.local_path(folder.path(f"{STAGED}/{folder.volume}"))


def staged_volume(folder: DatasetFolder, record: DatasetRecord | None = None) -> Path | None:
    """The copy to read instead of the volume: whole, and of what is stored now. None if there is none.

    `record` saves reading the dataset's own. Two small documents are read, no shard: whoever changes the copy's files
    by hand is not found out.
    """
    path = staged_path(folder)
    record = record or folder.read_record()
    if path is None or record is None or record.visible_status != "complete":
        return None
    return path if _says_it_is_of(path, record) is not None else None


def is_staged_copy(path: Path) -> bool:
    """Whether a folder is a whole copy made here, of whatever state: its files are replaced, never changed in place."""
    return _says_of_itself(path) is not None


def stage_volume(
    folder: DatasetFolder,
    request: Request | None = None,
    *,
    to: Path | None = None,
    workers: int = 1,
    reporter: Reporter | None = None,
) -> Staged:
    """Copies a complete dataset's volume to `to`, by default to `staged_path`; returns at once if it is there.

    A copy that is there of an earlier state, or made another way, is replaced when the new one is whole; what is no
    copy is not touched. Memory: about four decoded shards for each worker. What is finished when it is stopped is kept
    for the next call.

    Raises Unavailable if the dataset is not complete, another process makes the same copy, or there is no room;
    Malformed if a stored shard is not what was written; Mismatch if the dataset changes meanwhile, the chunk does not
    fit, the copy would be what is stored, or something else is at its place; Unsupported where there is no place.
    """
    request = request or Request()
    source = Source.read(folder)
    target = to or staged_path(folder)
    if target is None:
        raise Unsupported(
            f"{folder.title} lies at {folder.uri(folder.volume)}, and a copy is to be mapped into memory: say with "
            "--to in which folder of this machine it should be."
        )
    plan = Plan.of(source, request)
    found = _found(target, source, plan)
    if found is not None:
        return found
    with _explained(target):
        _require_place(target)
        with _alone(target) as unfinished:
            found = _found(target, source, plan)
            if found is not None:  # made just now by another process, which has let go of it
                shutil.rmtree(unfinished)
                return found
            copy = Copy(plan, target, unfinished)
            sha256 = copy.make(workers, reporter)
            source.require_unchanged()
            _carry_coverage_over(folder, target)
            _put_in_place(copy.path, target)
            shutil.rmtree(unfinished)
            return _staged(plan, target, sha256, kept=copy.kept, was_there=False)


def coverage_beside(folder: DatasetFolder, target: Path) -> Path | None:
    """`hemibrain_crop.coverage.parquet` of `hemibrain_crop.ome.zarr`; None in the store, which has it already."""
    if target == staged_path(folder):
        return None
    return coverage_of_copy(target)


def coverage_of_copy(target: Path) -> Path:
    """Where the coverage of a copy outside the store lies."""
    return target.with_name(f"{target.name.removesuffix('.zarr').removesuffix('.ome')}.coverage.parquet")


# The place of the copy


def _carry_coverage_over(folder: DatasetFolder, target: Path) -> None:
    """A copy outside the store, too, is accompanied by what says which of its voxels are real."""
    path = coverage_beside(folder, target)
    if path is not None:
        LocalStore(path.parent).write(path.name, folder.read(folder.coverage))


def _found(target: Path, source: Source, plan: Plan) -> Staged | None:
    """The copy, if it is there as it would be made."""
    note = _says_it_is_of(target, source.record)
    if note is None or note["staged"] != plan.note["staged"]:
        return None
    return _staged(plan, target, str(note[DIGEST]), kept=0, was_there=True)


def _staged(plan: Plan, target: Path, sha256: str, *, kept: int, was_there: bool) -> Staged:
    return Staged(
        path=target,
        levels=len(plan.forms),
        size_bytes=sum(size for _, size in LocalStore(target).list("")),
        stored_bytes=plan.source.stored_bytes,
        sha256=sha256,
        chunk=plan.forms[0].chunk,
        kept=kept,
        was_there=was_there,
        coverage=coverage_beside(plan.source.folder, target),
    )


def _says_it_is_of(path: Path, record: DatasetRecord) -> dict[str, Any] | None:
    """What a whole copy of this very dataset says of itself; None if there is no such one."""
    note = _says_of_itself(path)
    return (
        note if note is not None and record.sha256 is not None and note["staged"]["sha256"] == record.sha256 else None
    )


def _says_of_itself(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads((path / "zarr.json").read_bytes())["attributes"][ATTRIBUTE]
        return note if note["staged"]["sha256"] and note[DIGEST] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, cut, or somebody else's: then it is no copy


def _require_place(target: Path) -> None:
    """Nothing is replaced, and nothing cleared away, but what was made here."""
    unfinished = _unfinished(target)
    if os.path.lexists(target) and _says_of_itself(target) is None:
        raise Mismatch(
            f"{target} is there already and is no staged copy; remove it, or choose another folder with --to."
        )
    if unfinished.is_dir() and any(unfinished.iterdir()) and not (unfinished / JOURNAL).is_file():
        raise Mismatch(f"{unfinished} is there already and is no staged copy; remove it, or choose another with --to.")


def _unfinished(target: Path) -> Path:
    return target.with_name(target.name + DOWNLOAD_SUFFIX)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[Path]:
    """The folder of the unfinished copy, made if it is not there; nobody else has it meanwhile.

    The folder itself is locked: the system frees it whatever happens, and nothing is left of the lock.
    """
    unfinished = _unfinished(target)
    unfinished.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(unfinished, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _is_locked(descriptor, unfinished):
            raise Unavailable(f"{target} is being made by another process; wait for its end, or stop it.")
        yield unfinished
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int, folder: Path) -> bool:
    """Takes the lock; False if another process has it, or had it and has removed the folder meanwhile."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _put_in_place(arriving: Path, target: Path) -> None:
    """Renames. A folder cannot be renamed over another one, so an old copy is moved out of the way first."""
    old = target.with_name(f"{target.name}.old{PARTIAL_SUFFIX}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    arriving.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{target} could not be written ({error.strerror or error}): free space or correct the folder's "
            "permissions and run again; what is finished is kept."
        ) from error
