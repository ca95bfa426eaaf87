"""A store's folder as a web server shows it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from em_assets.errors import Unsupported

if TYPE_CHECKING:
    from em_assets.fetch.http import HttpClient
    from em_assets.store import Data

DOCUMENT_AT_MOST_BYTES = 2**30


class WebStore:
    """The folder of a store as a web server shows it: a `Store` of which single objects are read, and nothing else."""

    def __init__(self, root: str, client: HttpClient) -> None:
        self.root, self._client = root.rstrip("/"), client

    def read(self, path: str) -> bytes:
        """A refusal (403) is absence, as of buckets that nobody may list, and so is a web page in its place."""
        from em_assets.fetch.http import NotThere

        try:
            reply = self._client.get(
                self.uri(path), max_bytes=DOCUMENT_AT_MOST_BYTES, accept_gzip=True, accept_page=True
            )
        except NotThere:
            raise FileNotFoundError(errno.ENOENT, "No such object", self.uri(path)) from None
        if reply.body[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise FileNotFoundError(errno.ENOENT, "A web page", self.uri(path))
        return bytes(reply.body)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        return self.read(path)[start : start + length]

    def size_bytes(self, path: str) -> int | None:
        try:
            return len(self.read(path))
        except FileNotFoundError:
            return None

    def uri(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def local_path(self, path: str) -> Path | None:
        return None

    def free_bytes(self) -> int | None:
        return None

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        raise Unsupported(f"{self.uri(prefix)} is on a web server, which does not say what it has; ask for a name.")

    def write(self, path: str, data: Data) -> NoReturn:
        self._refuse(path)

    def write_file(self, path: str, file: Path) -> NoReturn:
        self._refuse(path)

    def delete(self, path: str) -> NoReturn:
        self._refuse(path)

    def delete_all(self, prefix: str) -> NoReturn:
        self._refuse(prefix)

    def remove_partials(self, prefix: str) -> NoReturn:
        self._refuse(prefix)

    def _refuse(self, path: str) -> NoReturn:
        raise Unsupported(f"{self.uri(path)} is on a web server, where it is only read; change it in its store.")
