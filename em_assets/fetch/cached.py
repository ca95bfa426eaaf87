"""What was read of publishers' objects is kept on disk: `CachedClient` asks another client only for what is not there.

A whole object is one entry (`_entries.py`); of an object that is read by ranges, so is each part that came. Which parts
a reader asks for together depends on what else it reads (`ranges.py`), so a range is put together from whatever lies in
it, and only the rest is asked for: the same voxels cost nothing the second time, others what is new in them.

Parts belong to the version of an object that its ETag names (without one, its date and size; without either nothing is
kept), and are never put together with those of another. How long what is kept is believed says each constant below.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.fetch._entries import TOUCH_SECONDS, Entries, Entry
from em_assets.fetch.client import Client
from em_assets.fetch.hosts import SLOT_POLL_SECONDS, Interrupt
from em_assets.fetch.http import HttpClient
from em_assets.fetch.ranges import plan_requests
from em_assets.fetch.replies import NotThere, OnBytes, Reply, opaque_tag, safe_url
from em_assets.settings import Settings

DOCUMENTS = frozenset({"info", ".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json", "attributes.json"})
"""What such an object says decides how all others are read."""
DOCUMENT_SECONDS = 600.0
"""So long a document is believed; then it is asked for again, whole: it is small."""
DATA_SECONDS = 7 * 86400.0
"""So long an object with voxels is taken for unchanged: published volumes are written once. Ranges of a version that
the caller names do not age."""
ABSENT_SECONDS = 600.0
"""So long a 404 is believed: a sparse volume is read again without asking for each of its empty chunks, but what a
server lacks may be a fault, or on its way there. A 403 is not kept: it may mean that we ask too much."""
PART_BYTES = 256 * 2**10
"""Of the largest part: checking one takes 0.2 ms, however little of it is wanted. Divides GROUP_BYTES."""

log = logging.getLogger(__name__)


def cached_client(settings: Settings, client: Client | None = None) -> Client:
    """A client (default: over HTTP) whose replies are kept in the user's cache, if the settings give that any bytes."""
    client = client or HttpClient(settings)
    if not settings.cache_bytes:
        return client
    return CachedClient(client, settings.cache_folder() / "objects", settings.cache_bytes)


class CachedClient:
    """A `Client`. Safe for use by several threads, and by several processes with one folder (a client each)."""

    def __init__(self, client: Client, folder: Path, max_bytes: int) -> None:
        self._client = client
        self._entries = Entries(folder, max_bytes)
        self._refused_at = 0.0
        """When a 403 last came. Whether it means that an object is absent, a reader decides by a document that can
        still be read: one that was kept before proves nothing."""
        self._changed_at = 0.0
        """When an object was last found to be another than the one that was kept. What belongs to it, in other objects,
        may be another as well: nothing that was confirmed before is believed any more."""
        self.changes = 0
        """How often that was so."""
        self._underway: dict[str, list[tuple[int, int]]] = {}
        """The ranges of each object that threads are at."""
        self._one_ended = threading.Condition()

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        accept_gzip: bool = False,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        """As the other client's. Without a request, if it is kept and still believed.

        Where the server cannot be had, what is kept is given however old it is, and a warning logged; but nothing from
        before an object was found to be another: of a volume, old and new parts would be mixed.
        """
        key = _key(url)
        self._require_not_absent(key)
        kept = self._entries.read(f"{key}.whole", of=key)
        if kept is not None and len(kept.body) > max_bytes:
            kept = None
        if kept is not None and self._is_believed(url, kept):
            return _reply(url, kept, bytes(kept.body))
        try:
            reply = self._client.get(
                url, max_bytes=max_bytes, accept_gzip=accept_gzip, on_bytes=on_bytes, interrupt=interrupt
            )
        except NotThere as refusal:
            self._note_refusal(key, refusal)
            raise
        except Unavailable as error:
            if kept is None or kept.confirmed_at <= max(self._refused_at, self._changed_at):
                raise
            log.warning("%s What was kept of %s is used.", error, safe_url(url))
            return _reply(url, kept, bytes(kept.body))
        if kept is not None and bytes(kept.body) != reply.body:
            self._note_change()
        self._entries.write(f"{key}.whole", {"of": key, **_said(reply)}, reply.body)
        return reply

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
        """As the other client's. Only what is not kept of the range is asked for, and `on_bytes` hears of that.

        If the server has another version than the one that is kept, that is forgotten. A caller who expects it gets
        Mismatch, and the new one by asking without an expectation; others get the new one at once.
        """
        ask = partial(self._ask, url, on_bytes=on_bytes, interrupt=interrupt)
        with self._turn(_key(url), start, stop, interrupt or Interrupt()):
            return self._range(url, start, stop, expect_etag, ask)

    @contextmanager
    def _turn(self, key: str, start: int, stop: int, interrupt: Interrupt) -> Iterator[None]:
        """Within, no other thread is at any byte of this range: what one brings the next finds kept."""
        with self._one_ended:
            while any(a < stop and start < b for a, b in self._underway.get(key, ())):
                self._one_ended.wait(SLOT_POLL_SECONDS)
                interrupt.check()
            self._underway.setdefault(key, []).append((start, stop))
        try:
            yield
        finally:
            with self._one_ended:
                self._underway[key].remove((start, stop))
                if not self._underway[key]:
                    del self._underway[key]
                self._one_ended.notify_all()

    def _range(self, url: str, start: int, stop: int, expect_etag: str | None, ask: _Ask) -> Reply:
        key = _key(url)
        self._require_not_absent(key)
        kept = self._entries.read(f"{key}.version", of=key)
        if kept is not None and (self._is_current(kept) if expect_etag is None else _is_of(kept, expect_etag)):
            try:
                return _reply(url, kept, self._put_together(key, kept, start, stop, ask))
            except NotThere:
                raise
            except (Malformed, Mismatch):  # Malformed: it has become shorter
                self._entries.remove(f"{key}.version")
                self._note_change()
                if expect_etag is not None:
                    raise
                kept = None
        return self._asked_anew(url, start, stop, expect_etag, ask, kept=kept)

    def _asked_anew(
        self, url: str, start: int, stop: int, expect_etag: str | None, ask: _Ask, *, kept: Entry | None
    ) -> Reply:
        """All of the range from the server. `kept` is of another version than is expected, or not believed any more."""
        key = _key(url)
        try:
            reply = ask(start, stop, expect_etag)
        except NotThere:
            raise
        except (Malformed, Mismatch):
            if expect_etag is not None:  # what was kept of that version, another process has forgotten already
                self._note_change()
            raise
        except Unavailable as error:
            if kept is None or expect_etag is not None or kept.confirmed_at <= self._changed_at:
                raise
            log.warning("%s What was kept of %s is used.", error, safe_url(url))
            return _reply(url, kept, self._put_together(key, kept, start, stop, ask))
        if (version := version_of(reply)) is not None:
            if kept is not None and kept.head["version"] != version:
                self._note_change()
            self._note_version(key, version, reply)
            self._keep(key, version, start, reply.body)
        return reply

    def _put_together(self, key: str, kept: Entry, start: int, stop: int, ask: _Ask) -> bytearray:
        """A range of the version that is kept. Raises Mismatch if that is not the server's any more."""
        body, version = bytearray(stop - start), kept.head["version"]
        filled: list[tuple[int, int]] = []
        for first, part in self._entries.parts(key, version, start, stop):
            a, b = max(first, start), min(first + len(part), stop)
            body[a - start : b - start] = part[a - first : b - first]
            filled.append((a, b))
        holes = _holes(start, stop, filled)
        for request in plan_requests(holes):
            reply = ask(request.start, request.stop, kept.head["etag"])
            if version_of(reply) != version:
                raise Mismatch(f"{reply.url} is not what was kept of it; look at what its publisher replaced.")
            body[request.start - start : request.stop - start] = reply.body
            self._note_version(key, version, reply)
            for a, b in (holes[piece] for piece in request.pieces):
                self._keep(key, version, a, memoryview(reply.body)[a - request.start : b - request.start])
        return body

    def _ask(
        self,
        url: str,
        start: int,
        stop: int,
        expect_etag: str | None,
        *,
        on_bytes: OnBytes | None,
        interrupt: Interrupt | None,
    ) -> Reply:
        try:
            return self._client.get_range(
                url, start, stop, expect_etag=expect_etag, on_bytes=on_bytes, interrupt=interrupt
            )
        except NotThere as refusal:
            self._note_refusal(_key(url), refusal)
            raise

    def _keep(self, key: str, version: str, start: int, body: bytes | bytearray | memoryview) -> None:
        """Cut at the same places of the object, whatever was asked for."""
        view, stop = memoryview(body), start + len(body)
        cuts = [start, *range((start // PART_BYTES + 1) * PART_BYTES, stop, PART_BYTES), stop]
        for a, b in itertools.pairwise(cuts):
            self._entries.write_part(key, version, a, view[a - start : b - start])

    def _note_version(self, key: str, version: str, reply: Reply) -> None:
        """What the server has now."""
        kept = self._entries.read(f"{key}.version", of=key, version=version)
        if kept is None or kept.age_seconds > TOUCH_SECONDS or kept.confirmed_at <= self._changed_at:
            self._entries.write(f"{key}.version", {"of": key, "version": version, **_said(reply)})

    def _is_believed(self, url: str, kept: Entry) -> bool:
        if urlsplit(url).path.rpartition("/")[2] not in DOCUMENTS:
            return self._is_current(kept)
        return kept.age_seconds < DOCUMENT_SECONDS and kept.confirmed_at > max(self._refused_at, self._changed_at)

    def _is_current(self, kept: Entry) -> bool:
        """Of what holds voxels."""
        return kept.age_seconds < DATA_SECONDS and kept.confirmed_at > self._changed_at

    def _note_change(self) -> None:
        self._changed_at = time.time()
        self.changes += 1

    def _require_not_absent(self, key: str) -> None:
        kept = self._entries.read(f"{key}.absent", of=key)
        if kept is not None and kept.age_seconds < ABSENT_SECONDS:
            raise NotThere(kept.head["message"], kept.head["status"])

    def _note_refusal(self, key: str, refusal: NotThere) -> None:
        if refusal.status == 403:
            self._refused_at = time.time()
        else:
            self._entries.write(f"{key}.absent", {"of": key, "status": refusal.status, "message": str(refusal)})


class _Ask(Protocol):
    def __call__(self, start: int, stop: int, expect_etag: str | None) -> Reply: ...


def _key(url: str) -> str:
    """By which the entries of an object are found. An address may hold a password, so it stands nowhere."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return f"{digest[:2]}/{digest}"


def _said(reply: Reply) -> dict[str, Any]:
    """What the server said of an object."""
    return {
        "etag": reply.etag,
        "modified": reply.last_modified,
        "encoding": reply.content_encoding,
        "object_bytes": reply.object_bytes,
    }


def _reply(url: str, kept: Entry, body: bytes | bytearray) -> Reply:
    """As it came when it was kept."""
    head = kept.head
    return Reply(safe_url(url), body, head["etag"], head["modified"], head["encoding"], head["object_bytes"])


def _is_of(kept: Entry, etag: str) -> bool:
    known = kept.head["etag"]
    return known is not None and opaque_tag(known) == opaque_tag(etag)


def version_of(reply: Reply) -> str | None:
    """A name for the object's state; None where nothing is said by which two could be told apart.

    Beside an ETag a date does not count: servers behind one address may each have their own.
    """
    if reply.etag is not None:
        said = opaque_tag(reply.etag)
    elif reply.last_modified is not None and reply.object_bytes is not None:
        said = f"{reply.last_modified} {reply.object_bytes}"
    else:
        return None
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _holes(start: int, stop: int, filled: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of a range."""
    holes = []
    for first, last in sorted(filled):
        if first > start:
            holes.append((start, first))
        start = max(start, last)
    return [*holes, (start, stop)] if start < stop else holes
