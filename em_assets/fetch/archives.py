"""Unpacking zip and tar files from outside: everything, below one folder, or nothing.

A member that must not be is refused by its name. An archive without its end record is a download that was cut: servers
that pack as they send give no length to tell it by.
"""

from __future__ import annotations

import gzip
import itertools
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch.listings import PathClaims, safe_relative_path
from em_assets.store import partial_path

BLOCK_BYTES = 2**20
MAX_MEMBERS = 100_000
DIRECTORY_BYTES_PER_MEMBER = 1024
"""46 and a name. More than that on the average is no list of files."""
TAR_BYTES_PER_MEMBER = 4096
"""Headers and padding."""

_ZIP_ENTRY = b"PK\x01\x02"
_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_ZIP64_LOCATOR_BYTES = 20
_ZIP_LOCAL_HEADER_BYTES = 30
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError, NotImplementedError)
"""What the libraries raise on damaged archives; their own words say which."""


def unpack_zip(path: Path, folder: Path, *, max_bytes: int, max_members: int = MAX_MEMBERS) -> list[str]:
    """Unpacks into `folder`, which must not exist, and gives the files' paths in it. Empty folders are left out.

    `folder` appears when everything is in it and checked. `max_bytes` bounds the files together. Raises Malformed,
    Unsupported, Mismatch, and Unavailable if the folder cannot be written.
    """
    with path.open("rb") as file:
        _require_zip_directory(file, path, max_members)
        with _damage_explained(path):
            archive = zipfile.ZipFile(file)
        with archive, _appearing(folder) as partial:
            files = _zip_files(archive, path, max_bytes)
            for member, name in files:
                with _damage_explained(path, member.filename):
                    opened = archive.open(member)
                with opened:
                    _write(opened, member.file_size, partial / name, path, member.filename)
        return [name for _, name in files]


def unpack_tar(path: Path, folder: Path, *, max_bytes: int, max_members: int = MAX_MEMBERS) -> list[str]:
    """Unpacks a tar or tar.gz file, as `unpack_zip` does. Of owners and modes nothing is kept."""
    names: list[str] = []
    claims = PathClaims()
    with path.open("rb") as raw, _appearing(folder) as partial:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        plain = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if packed else raw
        guarded = _Guarded(plain, max_bytes + max_members * TAR_BYTES_PER_MEMBER + BLOCK_BYTES)
        left = max_bytes
        for count, (archive, member) in enumerate(_tar_members(guarded, path), 1):
            _require_count(count, max_members, path)
            name = _tar_name(member, path, claims)
            if name is None:
                continue
            left -= member.size
            if left < 0:
                raise _too_large(path, max_bytes)
            with _damage_explained(path, member.name):
                opened = archive.extractfile(member)
            assert opened is not None
            _write(opened, member.size, partial / name, path, member.name)
            names.append(name)
        _require_tar_end(guarded, path)
    return names


def _require_zip_directory(file: IO[bytes], path: Path, max_members: int) -> None:
    """Bounds the members before zipfile makes an object of each. Raises Malformed, also without an end record."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _ZIP_END.size - 0xFFFF))
    tail = file.read()
    at = len(tail) - _ZIP_END.size  # as zipfile looks for it: without a comment, else the last signature
    if at < 0 or not tail[at:].startswith(b"PK\x05\x06") or tail[-2:] != b"\0\0":
        at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _ZIP_END.size:
        file.seek(0)
        if file.read(2) == b"PK":
            raise Malformed(f"{path}: the archive is incomplete (no end record after {size} bytes); get it again.")
        raise Malformed(f"{path} is not a zip file; check what was downloaded.")
    directory_bytes = _ZIP_END.unpack_from(tail, at)[5]
    end = size - len(tail) + at
    at64 = at - _ZIP64_LOCATOR_BYTES - _ZIP64_END.size
    if at64 >= 0 and tail[at64:].startswith(b"PK\x06\x06"):
        directory_bytes = max(directory_bytes, _ZIP64_END.unpack_from(tail, at64)[8])
        end -= _ZIP64_LOCATOR_BYTES + _ZIP64_END.size
    if directory_bytes > min(end, max_members * DIRECTORY_BYTES_PER_MEMBER + BLOCK_BYTES):
        raise Malformed(f"{path}: the list of its members has {directory_bytes} bytes, which cannot be; not unpacked.")
    file.seek(end - directory_bytes)
    _require_count(file.read(directory_bytes).count(_ZIP_ENTRY), max_members, path)


def _zip_files(archive: zipfile.ZipFile, path: Path, max_bytes: int) -> list[tuple[zipfile.ZipInfo, str]]:
    """The files and their paths below the folder. Raises for a member that must not be."""
    claims = PathClaims()
    files = []
    for member in archive.infolist():
        _require_plain_zip_member(member, path)
        with _named(path):
            if member.is_dir():
                safe_relative_path(member.orig_filename.rstrip("/"))
            else:
                files.append((member, claims.claim(member.orig_filename)))
    if sum(member.file_size for member, _ in files) > max_bytes:
        raise _too_large(path, max_bytes)
    ordered = sorted(archive.infolist(), key=lambda member: member.header_offset)
    for first, second in itertools.pairwise(ordered):
        if first.header_offset + _ZIP_LOCAL_HEADER_BYTES + first.compress_size > second.header_offset:
            raise Malformed(
                f"{path}: the members {first.filename[:200]!r} and {second.filename[:200]!r} overlap, as in archives "
                "made to fill disks; not unpacked."
            )
    return files


def _require_plain_zip_member(member: zipfile.ZipInfo, path: Path) -> None:
    shown = f"{path}: the member {member.filename[:200]!r}"
    if member.flag_bits & 1:
        raise Unsupported(f"{shown} is encrypted; only public data can be read.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Unsupported(f"{shown} is compressed by method {member.compress_type}; stored and deflated are read.")
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Malformed(f"{shown} is a link, a device or the like; only files and folders are unpacked.")


class _Guarded:
    """A file that tarfile may read from, but neither without end nor much at once: it believes sizes in headers."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file = file
        self._left = max_bytes
        self.last = b""
        """What was read last."""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= BLOCK_BYTES:
            raise tarfile.ReadError(f"a header says that it has {size} bytes")
        self.last = self._file.read(size)
        self._left -= len(self.last)
        if self._left < 0:
            raise tarfile.ReadError("it has more bytes than its members")
        return self.last

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


def _tar_members(guarded: _Guarded, path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with _damage_explained(path):
        archive = tarfile.TarFile(fileobj=cast("IO[bytes]", guarded), mode="r", encoding="utf-8")
    while True:
        with _damage_explained(path):
            member = archive.next()
        if member is None:
            return
        yield archive, member


def _tar_name(member: tarfile.TarInfo, path: Path, claims: PathClaims) -> str | None:
    """The file's path below the folder, None for a folder. Raises for a member that must not be."""
    shown = f"{path}: the member {member.name[:200]!r}"
    if not (member.isreg() or member.isdir()):
        raise Malformed(f"{shown} is a link, a device or the like; only files and folders are unpacked.")
    if member.issparse():
        raise Unsupported(f"{shown} is a sparse file, which is not read; ask for a plain archive.")
    name = member.name.removeprefix("./")  # tar writes this where it packs the folder it stands in
    with _named(path):
        if not member.isdir():
            return claims.claim(name)
        if name not in (".", ""):
            safe_relative_path(name)
    return None


def _require_tar_end(guarded: _Guarded, path: Path) -> None:
    """Without this, tarfile ends in silence where a header is damaged or the file just stops."""
    if guarded.last != bytes(512):
        raise Malformed(f"{path}: the archive is incomplete or damaged (no end record); get it again.")
    with _damage_explained(path):
        while guarded.read(BLOCK_BYTES):  # gzip's own checksum follows
            pass


def _write(source: IO[bytes], size_bytes: int, target: Path, path: Path, name: str) -> None:
    """One member. Raises Malformed if it has not the size its header says, or is damaged."""
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("xb")
    left = size_bytes
    with file:
        while True:
            with _damage_explained(path, name):
                block = source.read(min(BLOCK_BYTES, left + 1))
            if not block:
                break
            left -= len(block)
            if left < 0:
                break
            with _writing(target):
                file.write(block)
        with _writing(target):
            file.flush()
    if left:
        raise Malformed(f"{path}: the member {name[:200]!r} has not the {size_bytes} bytes it says; get it again.")


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder that gets its name when the block ends well, and is removed otherwise."""
    if folder.exists():
        raise Mismatch(f"{folder} exists already; remove it to unpack again.")
    partial = partial_path(folder)
    try:
        with _writing(folder):
            partial.mkdir(parents=True)
        yield partial
        with _writing(folder):
            os.sync()  # all files at once
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{target} could not be written ({error.strerror or error}): free space or correct the folder's "
            "permissions and run again."
        ) from error


@contextmanager
def _damage_explained(path: Path, name: str | None = None) -> Iterator[None]:
    member = "" if name is None else f" at the member {name[:200]!r}"
    try:
        yield
    except _DAMAGE as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise Malformed(f"{path} is damaged or cut{member} ({said}); get it again.") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Says in which archive a refused name is."""
    try:
        yield
    except Malformed as error:
        raise Malformed(f"{path}: {error}") from None


def _require_count(count: int, max_members: int, path: Path) -> None:
    if count > max_members:
        raise Malformed(f"{path} has more than {max_members} members, the most that is unpacked.")


def _too_large(path: Path, max_bytes: int) -> Malformed:
    return Malformed(f"{path} unpacks to more than {max_bytes} bytes, the most that was expected; not unpacked.")
