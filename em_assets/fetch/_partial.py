"""A file that is not yet whole: who writes it, which bytes of it are here, and how it becomes the file.

It lies beside its target as a folder with `data` and `journal.json`: `NAME.em-part` when nobody works on it,
`NAME.OWNER.em-part` while somebody does. Taking one over is a rename of the folder, which only one of several
processes succeeds in. So no two ever write to the same data, whether or not the file system's locks work (on Lustre,
GPFS and some NFS they do nothing, silently).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from em_assets.errors import Unavailable
from em_assets.fetch.receipts import Receipt, write_receipt
from em_assets.fetch.streams import Version
from em_assets.store import DOWNLOAD_SUFFIX, process_is_alive, process_start

BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""An owner on another machine that has not touched its folder for so long is dead. (On this one that can be seen.)"""
LOCK_TRIES = 50
LOCK_POLL_SECONDS = 0.02
MAX_JOURNAL_BYTES = 4 * 2**20

_OWNER = r"([0-9a-f]{8})-([0-9]{1,10})-([0-9]{1,20})-[0-9a-f]{8}"


class DiskTrouble(Unavailable):
    """This machine's disk, not the other side: another address would not help."""


class Journal(BaseModel):
    """Which bytes are here, and of what. Written after they have reached the disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    """The address without user, password and query."""
    etag: str | None
    last_modified: str | None
    size_bytes: int = Field(ge=0)
    done: tuple[tuple[int, int], ...]
    """(start, stop) of what is here, in order."""

    @property
    def version(self) -> Version:
        return Version(self.etag, self.last_modified, self.size_bytes)

    def fits(self, data_bytes: int) -> bool:
        edges = [edge for part in self.done for edge in part]
        return edges == sorted(edges) and (not edges or 0 <= edges[0] <= edges[-1] <= min(self.size_bytes, data_bytes))


@dataclass(frozen=True)
class _Owner:
    """Whoever works on a partial, as its folder's name says it."""

    place: str
    pid: int
    start: int

    def is_dead(self) -> bool | None:
        """None if that cannot be seen from here."""
        if self.place != _place():
            return None
        return not process_is_alive(self.pid) or self.start != (process_start(self.pid) or 0)


class Partial:
    """One unfinished file that this process works on; `claim` gives it. Safe to use from many threads.

    What goes wrong with the disk is DiskTrouble.
    """

    def __init__(self, target: Path, folder: Path) -> None:
        self.target, self.folder = target, folder
        self._done = threading.Event()
        with _explained(target, "written"):
            self._fd = os.open(folder / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        threading.Thread(target=self._beat, name="em_assets-partial", daemon=True).start()

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # taken over: what comes next will say so
                os.utime(self.folder)

    def journal(self) -> Journal | None:
        """What an earlier run left; None if nothing can be relied on."""
        try:
            with (self.folder / "journal.json").open("rb") as file:
                journal = Journal.model_validate_json(file.read(MAX_JOURNAL_BYTES))
        except (OSError, ValidationError):
            return None
        return journal if journal.fits(os.fstat(self._fd).st_size) else None

    def save(self, journal: Journal) -> None:
        """Remembers what is here; first the bytes reach the disk, so that a power cut cannot make this a lie."""
        with _explained(self.target, "written"):
            os.fdatasync(self._fd)
            written = self.folder / "journal.json.new"
            written.write_bytes(journal.model_dump_json().encode())
            os.replace(written, self.folder / "journal.json")

    def reset(self) -> None:
        """Forgets everything."""
        with _explained(self.target, "written"):
            (self.folder / "journal.json").unlink(missing_ok=True)
            os.ftruncate(self._fd, 0)

    def reserve(self, size_bytes: int) -> None:
        """Makes the file so large. Raises DiskTrouble if there is no space for what is still to come.

        The file is sparse: to allocate it in advance would write it twice where the file system cannot (NFS).
        """
        with _explained(self.target, "written"):
            needed = size_bytes - os.fstat(self._fd).st_blocks * 512
            free = shutil.disk_usage(self.folder).free
            if needed > free:
                raise DiskTrouble(
                    f"{self.target} needs {needed} more bytes, but only {free} are free on its disk; free space and "
                    "run again."
                )
            os.ftruncate(self._fd, size_bytes)

    def write(self, offset: int, data: memoryview) -> None:
        with _explained(self.target, "written"):
            while data:
                written = os.pwrite(self._fd, data, offset)
                data, offset = data[written:], offset + written

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """How many bytes it gave; fewer than asked for only at the end."""
        with _explained(self.target, "read"):
            return os.preadv(self._fd, [buffer], offset)

    def settle(self, size_bytes: int) -> int:
        """Everything is here and is on the disk now; the modification time, in nanoseconds, that it keeps."""
        with _explained(self.target, "written"):
            os.ftruncate(self._fd, size_bytes)
            os.fsync(self._fd)
            return os.fstat(self._fd).st_mtime_ns

    def commit(self, receipt: Receipt) -> None:
        """The partial becomes the file, its receipt beside it; what dead processes left is removed.

        The receipt comes first: until the file follows, it does not fit what is there, and that is found out.
        """
        with _explained(self.target, "put in place"):
            write_receipt(self.folder, self.target, receipt)
            os.replace(self.folder / "data", self.target)
            _sync_folder(self.target.parent)
        for folder, owner in _partials(self.target):
            mine = _new_name(self.target)
            if _is_free(folder, owner) and _taken(folder, mine):
                shutil.rmtree(mine, ignore_errors=True)

    def discard(self) -> None:
        """Removes what is left of it."""
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Leaves it to whoever goes on, if there is something to go on with."""
        if not (self.folder / "journal.json").exists():
            self.discard()
            return
        self._close()
        try:
            self.folder.rename(self.target.with_name(self.target.name + DOWNLOAD_SUFFIX))
        except OSError:  # there is another one already, or this one was taken over
            shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        self._done.set()
        os.close(self._fd)


def claim(target: Path) -> Partial | None:
    """The unfinished file of a target, with what an earlier run left in it; None while another process works on it."""
    mine = _new_name(target)
    with _explained(target, "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _choosing(target.parent):
            found = list(_partials(target))
            if any(_is_at_work(folder, owner) for folder, owner in found):
                return None
            if not any(_taken(folder, mine) for folder, owner in found if _is_free(folder, owner)):
                mine.mkdir()
    return Partial(target, mine)


def _new_name(target: Path) -> Path:
    """Says who owns it, as `_partials` reads it."""
    pid = os.getpid()
    owner = f"{_place()}-{pid}-{process_start(pid) or 0}-{secrets.token_hex(4)}"
    return target.with_name(f"{target.name}.{owner}{DOWNLOAD_SUFFIX}")


def _taken(folder: Path, mine: Path) -> bool:
    """Whether the folder is ours now; of several who try, one succeeds."""
    try:
        os.utime(folder)  # before the rename: it must never look abandoned under the new name
        folder.rename(mine)
    except OSError:  # another was faster, or it belongs to another user
        return False
    return True


def _partials(target: Path) -> list[tuple[Path, _Owner | None]]:
    """(folder, who works on it or None) of the target's partials, those with the most data first."""
    named = re.compile(rf"{re.escape(target.name)}(?:\.{_OWNER})?{re.escape(DOWNLOAD_SUFFIX)}")
    partials = []
    for name in os.listdir(target.parent):  # noqa: PTH208  # names
        if (found := named.fullmatch(name)) is not None:
            owner = _Owner(found[1], int(found[2]), int(found[3])) if found[1] else None
            partials.append((target.with_name(name), owner))
    return sorted(partials, key=lambda partial: _stored_bytes(partial[0]), reverse=True)


def _stored_bytes(folder: Path) -> int:
    try:
        return (folder / "data").stat().st_blocks
    except OSError:
        return 0


def _is_at_work(folder: Path, owner: _Owner | None) -> bool:
    return owner is not None and not owner.is_dead() and _is_fresh(folder)


def _is_free(folder: Path, owner: _Owner | None) -> bool:
    if owner is None:
        return True
    dead = owner.is_dead()
    return not _is_fresh(folder) if dead is None else dead


def _is_fresh(folder: Path) -> bool:
    try:
        return abs(time.time() - folder.stat().st_mtime) < SILENT_SECONDS
    except FileNotFoundError:
        return False


@functools.cache
def _place() -> str:
    """Where process numbers mean the same: this boot of this machine, this container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


@contextlib.contextmanager
def _choosing(folder: Path) -> Iterator[None]:
    """One process after the other, where locks work; where they do not, two may each begin a partial of their own."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_POLL_SECONDS)
            except OSError:
                break
            else:
                break
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(target: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskTrouble(
            f"{target} could not be {what} ({error.strerror or error}): free space or correct the folder's "
            "permissions and run again; what was received is kept."
        ) from error
