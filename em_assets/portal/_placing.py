"""How files of the portal's tree come to lie under their names: whole, or not at all.

Here they are written beside and renamed. On S3 an object appears whole by itself; of a group, whose objects appear one
by one, the last document makes it one.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from em_assets.errors import EmAssetsError, Unavailable
from em_assets.records import StoredObject
from em_assets.settings import read_settings
from em_assets.store import PARTIAL_SUFFIX, Data, Store, partial_path, process_is_alive

LAST_DOCUMENTS = (".zattrs", "zarr.json")
"""Each makes a group of OME-Zarr one, in its version."""


class Group:
    """The files of a group that is being written: on S3 at their keys, here in a folder beside, renamed at the end."""

    def __init__(self, store: Store, key: str, folder: str) -> None:
        self.store, self.key, self.folder = store, key, folder
        self.written: list[StoredObject] = []

    @classmethod
    @contextlib.contextmanager
    def beginning(cls, store: Store, key: str) -> Iterator[Group]:
        """What is not finished when the block ends is removed; of S3, where it has no last document, it may stay."""
        target = store.local_path(key)
        if target is None:
            with _telling_what_is_gone(store, key):
                for last in LAST_DOCUMENTS:
                    store.delete(f"{key}/{last}")  # first: half a group must not be readable
                store.delete_all(key)
                yield cls(store, key, key)
            return
        _remove_abandoned(target)
        beside = partial_path(target)
        try:
            yield cls(store, key, str(PurePosixPath(key).with_name(beside.name)))
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def write(self, path: str, data: Data) -> None:
        self.store.write(f"{self.folder}/{path}", data)
        self.written.append(StoredObject(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))

    def finish(self, path: str, data: Data) -> None:
        """Writes the document that makes it a group, and puts it in place."""
        self.store.write(f"{self.folder}/{path}", data)
        beside, target = self.store.local_path(self.folder), self.store.local_path(self.key)
        if beside is not None and target is not None and beside != target:
            _put_folder(beside, target)


@contextlib.contextmanager
def _telling_what_is_gone(store: Store, key: str) -> Iterator[None]:
    """S3 cannot rename, so a group that is replaced goes before the new one is whole: whoever loses it is told."""
    was_there = any(store.size_bytes(f"{key}/{last}") is not None for last in LAST_DOCUMENTS)
    try:
        yield
    except EmAssetsError as error:
        if was_there:
            gone = (
                f"The volume that lay at {store.uri(key)} before is gone, as S3 replaces object by object: run again."
            )
            error.args = (f"{error} {gone}",)
        raise


def _put_folder(folder: Path, target: Path) -> None:
    """Renames it. A folder takes no other's place, so what was there is moved away first, and then removed."""
    while True:
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():
                raise
        else:
            return
        old = partial_path(target)
        with contextlib.suppress(FileNotFoundError):  # another run may have moved it just now
            target.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(target: Path) -> None:
    """What killed writers left beside it: files and folders."""
    for found in target.parent.glob(f"{glob.escape(target.name)}.*{PARTIAL_SUFFIX}"):
        pid = found.name.removesuffix(PARTIAL_SUFFIX).split(".")[-2]
        if pid.isdecimal() and not process_is_alive(int(pid)):
            if found.is_dir():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_files(store: Store, key: str, folder: Path | None) -> Iterator[Callable[[], Path]]:
    """Names for files, beside the final one or in a folder of this machine; what is left of them goes with the block.

    Also what killed runs have left there.
    """
    place = store.local_path(key)
    if folder is not None or place is None:
        place = (folder or read_settings().cache_folder() / "portal") / PurePosixPath(key).name
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(place)
    names: list[Path] = []

    def new_file() -> Path:
        names.append(partial_path(place))
        return names[-1]

    try:
        yield new_file
    finally:
        for name in names:
            name.unlink(missing_ok=True)


def put_file(store: Store, key: str, file: Path) -> None:
    target = store.local_path(key)
    if target is not None and target.parent == file.parent:
        os.replace(file, target)
    else:
        store.write_file(key, file)


@contextlib.contextmanager
def explained(store: Store, key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{store.uri(key)} could not be written ({error.strerror or error}): free space on the disk or correct the "
            "folder's permissions and run again; what was finished is kept."
        ) from error
