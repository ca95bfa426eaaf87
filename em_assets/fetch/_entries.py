"""Files that hold received bytes for as long as there is room: what `cached.py` keeps, on disk.

An entry is one file: the sha256 of all that follows it, a line of JSON that says what it is, and the bytes. Its time of
change is when the server last confirmed it, its time of access when it was last used. Processes share the folder
without waiting for each other: files come into being whole, by a rename, and one that is damaged or gone is simply not
there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_assets.errors import Unavailable
from em_assets.store import PARTIAL_SUFFIX, replacing

GROUP_BYTES = 16 * 2**20
"""Of an object whose parts lie in one folder, which is listed for each range."""
ACCOUNT_BYTES = 16 * 2**20
"""What a process writes before it adds that to what all have written."""
LEFT_AFTER_SWEEP = 0.9
"""Of the bytes allowed."""
TOUCH_SECONDS = 60.0
"""What was used or confirmed less long ago counts as used or confirmed now."""
ABANDONED_SECONDS = 3600.0
"""What is still being written after so long was left behind by a process that died."""
DIGEST_BYTES = 32
BLOCK_BYTES = 4096
"""A file takes whole ones of the disk."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, verified."""

    head: Mapping[str, Any]
    body: memoryview
    confirmed_at: float
    """When the server last said so, in seconds since 1970."""

    @property
    def age_seconds(self) -> float:
        """Infinite for what a wrong clock dated later than now."""
        age = time.time() - self.confirmed_at
        return age if age > -TOUCH_SECONDS else math.inf


class Entries:
    """Entries by name, with `/` between folders. Those used longest ago are removed when there is no room.

    Safe for use by several threads. What cannot be written is not kept, and a warning says so once.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """`max_bytes` bounds all of them together, but for the little that a process has not accounted for yet."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._unaccounted_bytes = 0
        """Written by this process, and not in the file `size`."""
        self._step_bytes = 0
        """So many are written before they are accounted for; the first at once."""
        self._told: set[str] = set()

    def read(self, name: str, **expected: Any) -> Entry | None:
        """None if there is none whose head says this; one that is damaged is removed."""
        file = self._folder / name
        try:
            with file.open("rb") as opened:
                status = os.fstat(opened.fileno())
                data = opened.read()
            entry = _parsed(data, status.st_mtime)
            if entry is None:
                log.warning("%s was damaged and is removed; what it held is asked for again", file)
                file.unlink(missing_ok=True)
            elif time.time() - status.st_atime > TOUCH_SECONDS:
                os.utime(file, ns=(time.time_ns(), status.st_mtime_ns))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell("read", f"{file} could not be read ({error.strerror or error}); it is asked for again")
            return None
        return entry if entry is not None and expected.items() <= entry.head.items() else None

    def write(self, name: str, head: Mapping[str, Any], body: bytes | bytearray | memoryview = b"") -> None:
        """Puts an entry in place, confirmed now."""
        line = json.dumps(head).encode() + b"\n"
        size_bytes = _on_disk(DIGEST_BYTES + len(line) + len(body))
        if size_bytes > self._max_bytes:
            return
        digest = hashlib.sha256(line)
        digest.update(body)
        try:
            # not synced: what a power cut leaves of it is found to be damaged
            with replacing(self._folder / name) as partial, partial.open("wb") as opened:
                opened.writelines((digest.digest(), line, body))
            self._account(size_bytes)
        except (OSError, Unavailable) as error:
            self._tell("write", f"{error} What is read is not kept, and is asked for each time.")

    def remove(self, name: str) -> None:
        with contextlib.suppress(OSError):  # what is still there is judged when it is read
            (self._folder / name).unlink(missing_ok=True)

    def parts(self, key: str, version: str, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """(where it begins, bytes) of the parts of one version of an object that reach into a range."""
        for group in range(start // GROUP_BYTES, (stop - 1) // GROUP_BYTES + 1):
            folder = _parts_folder(key, version, group)
            try:
                names = os.listdir(self._folder / folder)  # noqa: PTH208  # there may be a thousand
            except OSError:  # there are none
                continue
            for name in names:
                first, _, last = name.partition("-")
                if first.isdecimal() and last.isdecimal() and int(first) < stop and int(last) > start:
                    entry = self.read(f"{folder}/{name}", of=key, version=version, start=int(first))
                    if entry is not None:
                        yield int(first), entry.body

    def write_part(self, key: str, version: str, start: int, body: memoryview) -> None:
        """A part does not reach from one group into the next."""
        name = f"{_parts_folder(key, version, start // GROUP_BYTES)}/{start}-{start + len(body)}"
        self.write(name, {"of": key, "version": version, "start": start}, body)

    def _tell(self, about: str, what: str) -> None:
        if about not in self._told:
            self._told.add(about)
            log.warning("%s", what)

    def _account(self, size_bytes: int) -> None:
        with self._lock:
            self._unaccounted_bytes += size_bytes
            if self._unaccounted_bytes < self._step_bytes:
                return
            self._step_bytes = min(ACCOUNT_BYTES, self._max_bytes // 64)
            with _locked(self._folder / "lock") as is_ours:
                if not is_ours:  # another process is at it; next time
                    return
                total_bytes = self._accounted() + self._unaccounted_bytes
                self._unaccounted_bytes = 0
                if total_bytes > self._max_bytes:
                    total_bytes = self._sweep()
                with replacing(self._folder / "size") as partial:
                    partial.write_text(f"{total_bytes}")

    def _accounted(self) -> int:
        """What all processes have written; counted anew where nobody knows."""
        try:
            return int((self._folder / "size").read_text())
        except (FileNotFoundError, ValueError):
            return sum(size_bytes for _, size_bytes, _ in self._every()) - self._unaccounted_bytes

    def _sweep(self) -> int:
        """Removes what was used longest ago. Returns the bytes of what is left."""
        every = sorted(self._every())
        left_bytes = sum(size_bytes for _, size_bytes, _ in every)
        for _, size_bytes, file in every:
            if left_bytes <= LEFT_AFTER_SWEEP * self._max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)  # noqa: PTH108  # there may be a million
            left_bytes -= size_bytes
        return left_bytes

    def _every(self) -> Iterator[tuple[float, int, str]]:
        """(when it was last used, bytes, file) of every entry; what is left of others is removed on the way."""
        for folder, _, names in os.walk(self._folder, topdown=False):
            if folder == str(self._folder):  # `lock` and `size`
                continue
            for name in names:
                file = f"{folder}/{name}"
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(file)  # noqa: PTH116  # there may be a million
                    if not name.endswith(PARTIAL_SUFFIX):
                        yield status.st_atime, _on_disk(status.st_size), file
                    elif time.time() - status.st_mtime > ABANDONED_SECONDS:
                        os.unlink(file)  # noqa: PTH108
            if not names:
                with contextlib.suppress(OSError):  # it is not empty: it has folders, or a file since
                    if time.time() - Path(folder).stat().st_mtime > ABANDONED_SECONDS:
                        Path(folder).rmdir()


def _parts_folder(key: str, version: str, group: int) -> str:
    return f"{key}.{version}.{group}"


def _parsed(data: bytes, confirmed_at: float) -> Entry | None:
    """None if it is not what was written."""
    if hashlib.sha256(memoryview(data)[DIGEST_BYTES:]).digest() != data[:DIGEST_BYTES]:
        return None
    end = data.index(b"\n", DIGEST_BYTES)
    return Entry(json.loads(data[DIGEST_BYTES:end]), memoryview(data)[end + 1 :], confirmed_at)


def _on_disk(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Whether no other process holds the lock, which is ours until the end of the block."""
    with file.open("ab") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
