"""Many small public objects, byte for byte into the store, many at once.

obstore moves the bytes: its Rust client was measured to serve threads faster than any other for Python, and than s5cmd
without latency. What may go wrong with one object is that object's error; the checks and patience are ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unsupported
from em_assets.fetch.attempts import Passing, persist
from em_assets.fetch.hosts import Host, HostUnreachable, Interrupt
from em_assets.fetch.http import host_address
from em_assets.fetch.listings import PathClaims
from em_assets.fetch.replies import PASSING_STATUSES, NotThere, OnBytes
from em_assets.fetch.s3 import Bucket, ListedObject, parse_bucket
from em_assets.settings import Settings
from em_assets.store import Store, replacing

if TYPE_CHECKING:
    from obstore import Bytes
    from obstore.store import S3Config, S3Store

CONNECTIONS = 64
"""Requests at once. S3 takes many; fewer leave a link with 20 ms of latency half empty."""
REQUEST_AT_MOST = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class CopiedObject:
    """In place, whole, and of the size (and md5, where the ETag is one) that was listed."""

    key: str
    path: str
    """In the store."""
    size_bytes: int
    sha256: str
    etag: str | None


@dataclass(frozen=True, slots=True)
class FailedObject:
    """Not in place. The others go on."""

    key: str
    error: EmAssetsError


def copy_objects(
    source: str,
    objects: Iterable[ListedObject],
    store: Store,
    folder: str,
    *,
    settings: Settings,
    endpoint: str | None = None,
    connections: int = CONNECTIONS,
    on_bytes: OnBytes | None = None,
    interrupt: Interrupt | None = None,
) -> Iterator[CopiedObject | FailedObject]:
    """Copies objects of `s3://bucket/prefix` to what follows the prefix in their keys, below `folder` of the store.

    Results come in the order in which they end. Each object appears whole or not at all; on a local disk all of them
    outlive a power cut only once the iterator has ended, so that records of them are to be written then. `objects` is
    read as needed, from other threads: a listing may be given as it comes. At most `Settings.memory_bytes` are held.

    Raises HostUnreachable if the source does not answer at all, Unavailable if the store cannot be written, and what
    `objects` raises; what is in place stays there.
    """
    bucket = parse_bucket(source, endpoint=endpoint)
    stop = Interrupt()
    copier = _Copier(
        bucket, store, folder, settings=settings, connections=connections, on_bytes=on_bytes, interrupt=stop
    )
    todo = _Todo(objects)
    ended: SimpleQueue[CopiedObject | FailedObject | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            while (item := todo.next()) is not None:
                ended.put(copier.copy(item))
        except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
            ended.put(error)
        ended.put(None)

    with (interrupt or Interrupt()).cutting(stop.set):
        for _ in range(connections):
            threading.Thread(target=work, name="em_assets-copy", daemon=True).start()
        try:
            working = connections
            while working:
                result = ended.get()
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    working -= 1
                else:
                    yield result
            copier.flush()
        finally:
            stop.set()
            todo.close()


class _Todo:
    """One iterator for all threads. Without it, two of them in one generator at once are an error."""

    def __init__(self, objects: Iterable[ListedObject]) -> None:
        self._objects = iter(objects)
        self._lock = threading.Lock()
        self._closed = False

    def next(self) -> ListedObject | None:
        with self._lock:
            if self._closed:
                return None
            try:
                return next(self._objects, None)
            except BaseException:
                self._closed = True
                raise

    def close(self) -> None:
        self._closed = True


class _Memory:
    """Bytes that may be held at once."""

    def __init__(self, size_bytes: int) -> None:
        self._free = size_bytes
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self, size_bytes: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size_bytes)
            self._free -= size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._free += size_bytes
                self._changed.notify_all()


class _Copier:
    """Copies one object after the other, in any number of threads."""

    def __init__(
        self,
        bucket: Bucket,
        store: Store,
        folder: str,
        *,
        settings: Settings,
        connections: int,
        on_bytes: OnBytes | None,
        interrupt: Interrupt,
    ) -> None:
        self._bucket = bucket
        self._store = store
        self._folder = folder
        self._settings = settings
        self._on_bytes = on_bytes
        self._interrupt = interrupt
        self._host = Host(host_address(bucket.url), settings)
        self._host.limit(connections)
        self._remote = _anonymous(bucket, settings)
        self._memory = _Memory(settings.memory_bytes)
        self._claims = PathClaims()
        self._claiming = threading.Lock()
        self._unsynced = False

    def copy(self, listed: ListedObject) -> CopiedObject | FailedObject:
        """Raises what concerns every object: HostUnreachable, Interrupted, a store that cannot be written."""
        shown = f"{self._bucket.scheme}://{self._bucket.name}/{listed.key}"
        try:
            path = self._path(listed, shown)
        except EmAssetsError as error:
            return FailedObject(listed.key, error)
        with self._memory.held(listed.size_bytes):
            try:
                data = persist(
                    lambda: self._received(listed, shown),
                    host=self._host,
                    shown=shown,
                    settings=self._settings,
                    interrupt=self._interrupt,
                )
            except HostUnreachable:
                raise
            except EmAssetsError as error:
                return FailedObject(listed.key, error)
            self._write(path, data)
            return CopiedObject(listed.key, path, len(data), hashlib.sha256(data).hexdigest(), listed.etag)

    def flush(self) -> None:
        """Brings to the disk what was written: once for all, as each object by itself takes twice the time."""
        if self._unsynced:
            os.sync()

    def _path(self, listed: ListedObject, shown: str) -> str:
        if not listed.key.startswith(self._bucket.key):
            raise Malformed(f"the key {listed.key[:300]!r} does not lie below {self._bucket}; list that prefix again.")
        with self._claiming:
            path = self._claims.claim(listed.key.removeprefix(self._bucket.key))
        if listed.size_bytes > self._settings.memory_bytes:
            raise Unsupported(
                f"{shown} has {listed.size_bytes} bytes, more than the {self._settings.memory_bytes} held at once "
                "(EM_ASSETS_MEMORY_BYTES); get it as a file of its own."
            )
        return f"{self._folder}/{path}" if self._folder else path

    def _received(self, listed: ListedObject, shown: str) -> Bytes:
        import obstore

        self._interrupt.check()
        with self._explained(shown):
            reply = obstore.get(self._remote, listed.key)
            self._host.answered()
            etag = (reply.meta["e_tag"] or "").removeprefix("W/").strip('"')
            self._require_same(listed, shown, reply.meta["size"], etag)
            with self._host.serving():
                data = reply.bytes()
        if self._on_bytes is not None:
            self._on_bytes(len(data))
        if len(data) != listed.size_bytes:
            raise Passing(f"the connection ended after {len(data)} of {listed.size_bytes} bytes")
        if listed.etag and re.fullmatch("[0-9a-f]{32}", listed.etag) and hashlib.md5(data).hexdigest() != listed.etag:
            sentence = f"{shown} does not have the md5 {listed.etag} that its bucket lists"
            raise Passing("its md5 is wrong", odd=Malformed(f"{sentence}; ask its publisher, or try again later."))
        return data

    def _require_same(self, listed: ListedObject, shown: str, size_bytes: int, etag: str) -> None:
        if size_bytes != listed.size_bytes or (listed.etag and etag and etag != listed.etag):
            raise Mismatch(
                f"{shown} changed since it was listed: it had {listed.size_bytes} bytes and the ETag {listed.etag}, "
                f"now {size_bytes} and {etag or None}; list it again."
            )

    @contextlib.contextmanager
    def _explained(self, shown: str) -> Iterator[None]:
        """Turns what obstore raises into what it means for the object."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except FileNotFoundError:
            self._host.answered()
            raise NotThere(f"{shown} was listed but is not there (404); list it again, or leave it out.", 404) from None
        except (PermissionDeniedError, UnauthenticatedError):
            self._host.answered()
            raise NotThere(f"{shown} was listed but is not public (403); leave it out.", 403) from None
        except BaseError as error:
            raise self._meaning(str(error).partition("\n")[0], shown) from None
        except ValueError:
            raise Unsupported(f"{shown!r} has a key that no plain GET can name; leave it out.") from None

    def _meaning(self, said: str, shown: str) -> Exception:
        status = re.search(r"status code: (([0-9]{3})[^:]*)", said)
        if "error sending request" in said:
            reason = "the connection did not come about, or broke off before a reply"
            self._host.stayed_silent(reason)
            return Passing(reason, silent=True)
        self._host.answered()
        if status is None:
            if "redirect" in said:
                return Mismatch(
                    f"{shown} lies in another region; give that as the endpoint in the dataset's spec "
                    "(https://s3.REGION.amazonaws.com)."
                )
            if "Content-Length" in said:
                odd = Mismatch(f"{shown} was sent without a length, so that a cut reply would look whole.")
                return Passing("it was sent without a length", odd=odd)
            return Passing("the connection broke off")
        if int(status[2]) in PASSING_STATUSES:
            self._host.refused()
            return Passing(f"answered {status[1]}")
        return Mismatch(f"{shown} answered {status[1]}; check the address.")

    def _write(self, path: str, data: Bytes) -> None:
        local = self._store.local_path(path)
        if local is None:
            self._store.write(path, memoryview(data))
            return
        self._unsynced = True
        with replacing(local) as partial:
            partial.write_bytes(data)


def _anonymous(bucket: Bucket, settings: Settings) -> S3Store:
    """The client. It reads every AWS variable, so what could sign or alter a request is said here."""
    from obstore.store import S3Store

    is_host = not urlsplit(bucket.url).path
    config = {
        "endpoint": bucket.url if is_host else bucket.url.removesuffix(f"/{bucket.name}"),
        "virtual_hosted_style_request": is_host,
        "skip_signature": True,
        "region": "us-east-1",  # unsigned requests do not say it, but obstore would look for one
        "request_payer": False,
        "s3_express": False,
        "server_side_encryption": "AES256",  # concerns writing; keeps a key of one's own out of the requests
    }
    return S3Store(
        bucket.name,
        config=cast("S3Config", config),
        client_options={
            "allow_http": bucket.url.startswith("http:"),
            "connect_timeout": timedelta(seconds=settings.connect_seconds),
            "read_timeout": timedelta(seconds=settings.read_seconds),
            "timeout": REQUEST_AT_MOST,
        },
        retry_config={"max_retries": 0},  # `persist` tries again
    )
