"""Files of the source: what their bytes are, and byte copies of them that were compared with what was read.

A file whose stamp (size and times of change, or S3's ETag) is the one that was recorded with its sha256 is not read
again to know it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.settings import Settings
from em_assets.store import ObjectStore, Store, partial_path, replacing

PIECE_BYTES = 16 * 2**20
MAX_TEXT_BYTES = 256 * 2**20
"""Of a file that is held whole: angles, notes, tables of points."""


class SourceFile(BaseModel):
    """One file of the source, as it was when something was made of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """In the source."""
    size_bytes: int
    stamp: str
    sha256: str


class Sources:
    """The files that one entity is made from. Not for several threads."""

    def __init__(self, store: Store, known: Mapping[str, SourceFile]) -> None:
        self.store = store
        self._known = dict(known)
        """What is recorded, by path; found out files replace it."""

    def file(self, path: str) -> SourceFile:
        """Read once to know its sha256, unless nothing has changed since that was recorded. Raises as `stamp_of`."""
        size_bytes, stamp = stamp_of(self.store, path)
        known = self._known.get(path)
        if known is None or (known.size_bytes, known.stamp) != (size_bytes, stamp):
            digest, found = hashlib.sha256(), 0
            for piece in pieces(self.store, path, size_bytes):
                digest.update(piece)
                found += len(piece)
            known = SourceFile(path=path, size_bytes=found, stamp=stamp, sha256=digest.hexdigest())
            self._known[path] = known
        return known

    def files(self, path: str) -> list[SourceFile]:
        """A file, or all files of a folder (a Zarr group). Raises Unavailable if there is neither."""
        if self.store.size_bytes(path) is not None:
            return [self.file(path)]
        found = [self.file(below) for below, _ in self.store.list(path)]
        if not found:
            raise Unavailable(f"{self.store.uri(path)} is not there any more; plan the ingestion again.")
        return found

    def read(self, path: str) -> bytes:
        """A small file whole. Raises Malformed for one that is too large to be what it is taken for."""
        size_bytes, _ = stamp_of(self.store, path)
        if size_bytes > MAX_TEXT_BYTES:
            raise Malformed(
                f"{self.store.uri(path)} has {size_bytes} bytes, expected a table or notes of at most "
                f"{MAX_TEXT_BYTES}; look whether the config means this file."
            )
        return self.store.read(path)

    def note(self, file: SourceFile) -> None:
        """What was found out by copying it."""
        self._known[file.path] = file

    def fetch(self, path: str, file: Path) -> None:
        """Writes the file's bytes to one of this machine, and so comes to know its sha256."""
        size_bytes, stamp = stamp_of(self.store, path)
        digest = _write(self.store, path, size_bytes, file)
        self.note(SourceFile(path=path, size_bytes=size_bytes, stamp=stamp, sha256=digest))


def stamp_of(store: Store, path: str) -> tuple[int, str]:
    """(bytes, a name of the present content that changes with it). Raises Unavailable if the file is not there."""
    local = store.local_path(path)
    if local is not None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = local.stat()
            if stat.S_ISREG(found.st_mode):
                return found.st_size, f"{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"
    else:
        size_bytes = store.size_bytes(path)
        if size_bytes is not None:
            assert isinstance(store, ObjectStore)
            return size_bytes, store.version(path) or ""
    raise Unavailable(f"{store.uri(path)} is not there any more; plan the ingestion again.")


def pieces(store: Store, path: str, size_bytes: int) -> Iterator[bytes]:
    """The file's bytes in order. Raises Mismatch if it is shorter than it was."""
    for start in range(0, size_bytes, PIECE_BYTES):
        wanted = min(PIECE_BYTES, size_bytes - start)
        piece = store.read_range(path, start, wanted)
        if len(piece) != wanted:
            raise Mismatch(f"{store.uri(path)} became shorter while it was read; run again when nobody writes it.")
        yield piece


def copy(source: Store, path: str, destination: Store, key: str, settings: Settings) -> SourceFile:
    """Copies a file byte for byte; what lies there afterwards was read back and has the sha256 of what was read.

    Nothing appears under `key` before it is whole. Raises Unavailable, and Mismatch where the copy or the source
    changed meanwhile.
    """
    size_bytes, stamp = stamp_of(source, path)
    target = destination.local_path(key)
    with contextlib.ExitStack() as stack:
        if target is not None:
            partial = stack.enter_context(replacing(target))
        else:
            partial = stack.enter_context(scratch_file(settings, key))
        digest = _write(source, path, size_bytes, partial)
        if stamp_of(source, path) != (size_bytes, stamp):
            raise Mismatch(f"{source.uri(path)} changed while it was copied; run again when nobody writes it.")
        if target is None:
            destination.write_file(key, partial)
        copied = _digest_of(partial) if target is not None else stored_digest(destination, key, size_bytes)
        if copied != digest:
            raise Mismatch(
                f"{destination.uri(key)} is not what was read of {source.uri(path)} (sha256 {copied}, expected "
                f"{digest}); the disk or the transfer is damaged: run again."
            )
    return SourceFile(path=path, size_bytes=size_bytes, stamp=stamp, sha256=digest)


@contextlib.contextmanager
def scratch_file(settings: Settings, key: str) -> Iterator[Path]:
    """The name of a file in the cache that is gone when the block ends."""
    folder = settings.cache_folder() / "ingest"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"{folder} could not be made ({error.strerror or error}); set EM_ASSETS_CACHE to a folder with room."
        ) from error
    file = partial_path(folder / hashlib.sha256(key.encode()).hexdigest()[:16])
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _write(source: Store, path: str, size_bytes: int, file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("wb") as opened:
        for piece in pieces(source, path, size_bytes):
            digest.update(piece)
            opened.write(piece)
        opened.flush()
        os.fsync(opened.fileno())
    return digest.hexdigest()


def _digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def stored_digest(store: Store, key: str, size_bytes: int) -> str:
    """sha256 of what lies there. Raises Mismatch if it is shorter than it was."""
    digest = hashlib.sha256()
    for piece in pieces(store, key, size_bytes):
        digest.update(piece)
    return digest.hexdigest()
