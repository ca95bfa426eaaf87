"""Large objects as they come: a receiver that hands bytes on, resumes where it was, and never mixes two versions.

What every reply must be is in `replies.py`, requests in `http.py`, retries in `attempts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from em_assets.errors import Mismatch
from em_assets.fetch.attempts import Passing
from em_assets.fetch.replies import Incoming, any_left, content_range, faulty, opaque_tag, wrong_range

Sink = Callable[[int, memoryview], None]
"""(offset in the object, bytes) -> None. The view is valid during the call."""


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one state of an object from another, as far as its server says."""

    etag: str | None = None
    last_modified: str | None = None
    size_bytes: int | None = None

    def difference(self, now: Version) -> str | None:
        """What both state and is not the same, in words; None if nothing is."""
        pairs = (
            ("ETag", self.etag and opaque_tag(self.etag), now.etag and opaque_tag(now.etag)),
            ("Last-Modified", self.last_modified, now.last_modified),
            ("size", self.size_bytes, now.size_bytes),
        )
        changed = ((what, a, b) for what, a, b in pairs if None not in (a, b) and a != b)
        return next((f"its {what} was {a}, now it is {b}" for what, a, b in changed), None)

    def completed(self, other: Version) -> Version:
        """With what `other` knows besides."""
        size = self.size_bytes if self.size_bytes is not None else other.size_bytes
        return Version(self.etag or other.etag, self.last_modified or other.last_modified, size)

    @property
    def condition(self) -> str | None:
        """For If-Range, which takes no weak tags (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


OnBegin = Callable[[Version, bool], None]
"""(what the server says of the object, whether it sends the whole of it whatever was asked for) -> None."""


class Changed(Mismatch):
    """The object is not the one it was: what was received of it before does not belong to what would come now."""


class NoRanges(Mismatch):
    """A part was asked for and the server sends only whole objects."""


class StreamReceiver:
    """Hands a large object's bytes on as they come; `HttpClient.stream` says what may happen."""

    def __init__(
        self,
        url: str,
        sink: Sink,
        *,
        start: int,
        stop: int | None,
        expect: Version | None,
        size_bytes: int | None,
        on_begin: OnBegin | None,
    ) -> None:
        if start < 0 or (stop is not None and stop <= start):
            raise ValueError(f"not a range: {start}-{stop}")
        self.url, self.start, self.stop = url, start, stop
        self.version = expect or Version()
        self.received = 0
        self._sink = sink
        self._size_bytes = size_bytes
        self._on_begin = on_begin
        self._begun = False
        self._is_conditional = True

    def headers(self) -> dict[str, str]:
        position = self.start + self.received
        headers = {"Accept-Encoding": "identity"}
        if position or self.stop is not None:
            headers["Range"] = f"bytes={position}-{'' if self.stop is None else self.stop - 1}"
            if self._is_conditional and self.version.condition is not None:
                headers["If-Range"] = self.version.condition
        return headers

    def take(self, incoming: Incoming) -> None:
        if incoming.status == 416:
            self._take_nothing(incoming)
            return
        incoming.require_no_page()
        incoming.require_not_encoded("it was asked for as it is stored")
        if incoming.status == 200:
            self._begin_whole(incoming)
        else:
            self._begin_range(incoming)
        self._pass_on(incoming)

    def _take_nothing(self, incoming: Incoming) -> None:
        """416 is how some servers send an empty object; otherwise it is shorter than it was."""
        size = (incoming.header("Content-Range") or "").rpartition("/")[2]
        if not size.isdigit() or int(size) > self.start + self.received:
            raise wrong_range(incoming, self.start + self.received, self.stop)
        self._begin(self._version_of(incoming, int(size)), whole=True)
        if self.start + self.received:
            raise Changed(
                f"{self.url} has {size} bytes, but bytes from {self.start + self.received} on were expected; look at "
                "what its publisher replaced."
            )

    def _begin_whole(self, incoming: Incoming) -> None:
        size = incoming.length
        version = self._version_of(incoming, size)
        self._require_same(version)
        if self.start:
            self._is_conditional = False  # it may be If-Range that its server does not understand
            sentence = f"{self.url} was sent whole though bytes from {self.start} on were asked for"
            raise Passing(sentence, odd=NoRanges(f"{sentence}; its server must support byte ranges."))
        self.received = 0
        if size is None and not incoming.is_chunked and self._size_bytes is None:
            raise Mismatch(
                f"{self.url} was sent without a length, so that a cut reply would look whole; state its size in the "
                "dataset's spec, or ask its publisher for a server that sends Content-Length."
            )
        if not self._begun:  # whatever was asked for: what comes is taken
            self.stop = size if incoming.is_chunked or size is not None else self._size_bytes
        self._begin(version, whole=True)

    def _begin_range(self, incoming: Incoming) -> None:
        wanted, found = self.start + self.received, content_range(incoming)
        if found is None or found.start != wanted or incoming.length not in (None, found.stop - wanted):
            raise wrong_range(incoming, wanted, self.stop)
        version = self._version_of(incoming, found.object_bytes)
        self._require_same(version)
        ends_there = found.stop == found.object_bytes and (self.stop is None or found.stop < self.stop)
        if found.stop != self.stop and not ends_there:
            raise wrong_range(incoming, wanted, self.stop)
        self.stop = found.stop
        self._begin(version, whole=False)

    def _version_of(self, incoming: Incoming, size_bytes: int | None) -> Version:
        return Version(incoming.header("ETag"), incoming.header("Last-Modified"), size_bytes)

    def _require_same(self, version: Version) -> None:
        difference = self.version.difference(version)
        if difference is not None:
            raise Changed(
                f"{self.url} changed while it was read: {difference}; look at what its publisher replaced, then run "
                "again."
            )

    def _begin(self, version: Version, *, whole: bool) -> None:
        self._require_same(version)
        self.version = self.version.completed(version)
        if not self._begun and self._on_begin is not None:
            self._on_begin(self.version, whole)
        self._begun = True

    def _pass_on(self, incoming: Incoming) -> None:
        """Gives the body to the sink. Raises Passing if it ends early."""
        blocks = incoming.blocks()
        position = self.start + self.received
        while position != self.stop:
            block = next(blocks, b"")
            if not block and self.stop is None:  # chunked: its last chunk has come
                self.stop = position
            elif not block:
                raise Passing(f"the connection ended at byte {position} of {self.stop}")
            else:
                fresh = memoryview(block) if self.stop is None else memoryview(block)[: self.stop - position]
                self._sink(position, fresh)
                position += len(fresh)
                self.received = position - self.start
                if len(fresh) < len(block) and incoming.status == 206:
                    raise self._too_much()
        unframed = incoming.length is None and incoming.status == 206
        if unframed and any_left(blocks):
            raise self._too_much()

    def _too_much(self) -> Passing:
        self.received = 0
        return faulty(f"{self.url} sent more than the bytes up to {self.stop} that were asked for")
