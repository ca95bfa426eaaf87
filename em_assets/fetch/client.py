"""What readers ask for bytes: `Client`. Over HTTP it is `http.HttpClient`; here are those for folders and stores."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.fetch.compression import BadGzipError, gunzip
from em_assets.fetch.hosts import Interrupt
from em_assets.fetch.replies import NotThere, OnBytes, Reply, safe_url
from em_assets.store import Store


class Client(Protocol):
    """Whole small objects and exact byte ranges by URL, from many threads at once."""

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        accept_gzip: bool = False,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        """The whole object, its Content-Encoding undone.

        Raises NotThere, Malformed if it is larger than `max_bytes`, Mismatch, Unavailable.
        """

    def get_range(
        self,
        url: str,
        start: int,
        stop: int,
        *,
        expect_etag: str | None = None,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        """Exactly bytes `start` to `stop` (exclusive). Raises NotThere, Malformed if it is shorter, Unavailable."""


class FolderClient:
    """`file://` addresses. An absent `name` is `name.gz`, unpacked, where that exists: how some tools keep chunks."""

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        accept_gzip: bool = False,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        file = _file(url)
        packed = Path(f"{file}.gz")
        is_packed = not _is_file(file) and _is_file(packed)
        body, size, etag = _read(packed if is_packed else file, 0, None, max_bytes)
        if is_packed:
            try:
                body = gunzip(body, max_bytes=max_bytes)
            except BadGzipError as error:
                raise Malformed(f"{packed} is not what was expected: {error}; get it again.") from None
        if on_bytes is not None:
            on_bytes(len(body))
        return Reply(safe_url(url), body, etag, None, "gzip" if is_packed else None, size)

    def get_range(
        self,
        url: str,
        start: int,
        stop: int,
        *,
        expect_etag: str | None = None,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        body, size, etag = _read(_file(url), start, stop - start, stop - start)
        if len(body) != stop - start:
            raise Malformed(f"{_file(url)} has {size} bytes, expected at least {stop}; it was cut, get it again.")
        if expect_etag is not None and etag != expect_etag:
            raise Mismatch(f"{_file(url)} changed while it was read; run again.")
        if on_bytes is not None:
            on_bytes(len(body))
        return Reply(safe_url(url), body, etag, None, None, size)


class StoreClient:
    """`store:///path` addresses: objects of a store, wherever it lies."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        accept_gzip: bool = False,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        path = _stored_path(url)
        size = self._store.size_bytes(path)
        if size is None:
            raise NotThere(f"{self._store.uri(path)} is not there; materialize the dataset again.", 404)
        if size > max_bytes:
            raise Malformed(f"{self._store.uri(path)} has {size} bytes, expected at most {max_bytes}.")
        body = self._store.read(path)
        if on_bytes is not None:
            on_bytes(len(body))
        return Reply(self._store.uri(path), body, None, None, None, size)

    def get_range(
        self,
        url: str,
        start: int,
        stop: int,
        *,
        expect_etag: str | None = None,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        path = _stored_path(url)
        try:
            body = self._store.read_range(path, start, stop - start)
        except FileNotFoundError:
            raise NotThere(f"{self._store.uri(path)} is not there; materialize the dataset again.", 404) from None
        if len(body) != stop - start:
            raise Malformed(f"{self._store.uri(path)} ends before byte {stop}; it was cut, materialize it again.")
        if on_bytes is not None:
            on_bytes(len(body))
        return Reply(self._store.uri(path), body, None, None, None, self._store.size_bytes(path))


def _stored_path(url: str) -> str:
    return unquote(urlsplit(url).path).strip("/")


def folder_url(path: str | Path) -> str:
    """The `file://` address of a folder or file, without a slash at its end."""
    return Path(path).absolute().as_uri().rstrip("/")


def _file(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _is_file(file: Path) -> bool:
    """Not, where that cannot be known: opening it says why."""
    try:
        return file.is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def _read(file: Path, start: int, length: int | None, max_bytes: int) -> tuple[bytes, int, str]:
    """(bytes, the file's size, a name of its present content)."""
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe may wait for ever; a folder fails
            raise Unavailable(f"{file} is a pipe, socket or device, which is not read; put a file there.")
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            if (status.st_size if length is None else length) > max_bytes:
                raise Malformed(f"{file} has {status.st_size} bytes, expected at most {max_bytes}.")
            opened.seek(start)
            body = opened.read(status.st_size if length is None else length)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise NotThere(f"{file} is not there; correct the path.", 404) from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        shown = str(file).replace("\0", r"\0")
        reason = getattr(error, "strerror", None) or error
        raise Unavailable(f"{shown} could not be read ({reason}); correct its name or permissions.") from error
    return body, status.st_size, f"{status.st_size:x}-{status.st_mtime_ns:x}"
