"""What makes a reply count: status, range, length, encoding, ETag and speed are checked here, body by body.

`http.py` sends the requests; what is wrong here and may pass (Passing) is tried again by `attempts.py`.
"""

from __future__ import annotations

import email.utils
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from urllib3 import exceptions as broken
from urllib3.response import BaseHTTPResponse

from em_assets.errors import Malformed, Mismatch
from em_assets.fetch.attempts import Passing
from em_assets.fetch.compression import BadGzipError, gunzip
from em_assets.fetch.hosts import Interrupt
from em_assets.settings import Settings

PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
MAX_RETRY_AFTER_SECONDS = 600.0
BLOCK_BYTES = 256 * 2**10
WHOLE_INSTEAD_OF_RANGE_BYTES = 16 * 2**20
"""A server without ranges is put up with for objects of at most this size."""
DRAIN_BYTES = 64 * 2**10
"""Bodies of errors up to this size are read, so that the connection can be used again."""
OnBytes = Callable[[int], None]


class NotThere(Mismatch):
    """The server answered that it does not give this object: 404, 410, or 403 (what S3 says of absent objects)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Reply:
    """A verified body and what its headers say."""

    url: str
    """As it may be shown: without user, password and query."""
    body: bytes | bytearray
    etag: str | None
    last_modified: str | None
    content_encoding: str | None
    """As it was sent; `body` is decoded."""
    object_bytes: int | None
    """Size of the whole object, as far as the server says."""
    cookies: tuple[str, ...] = ()
    """Every Set-Cookie header."""


class Incoming:
    """A reply whose body is still to come."""

    def __init__(
        self, response: BaseHTTPResponse, url: str, settings: Settings, on_bytes: OnBytes | None, interrupt: Interrupt
    ) -> None:
        self.response = response
        self.url = url
        self.status = response.status
        self._settings = settings
        self._on_bytes = on_bytes
        self._interrupt = interrupt

    def header(self, name: str) -> str | None:
        value = self.response.headers.get(name)
        return value.strip() if value else None

    @property
    def encoding(self) -> str | None:
        encoding = (self.header("Content-Encoding") or "").lower()
        return None if encoding in ("", "identity") else encoding

    @property
    def length(self) -> int | None:
        """Content-Length; http.client frames the body by it."""
        text = self.header("Content-Length")
        if text is None or self.is_chunked:
            return None
        if not (text.isascii() and text.isdigit()):
            raise Passing(f"its Content-Length is {text[:40]!r}")
        return int(text)

    @property
    def is_chunked(self) -> bool:
        return "chunked" in (self.header("Transfer-Encoding") or "").lower()

    def blocks(self) -> Iterator[bytes]:
        """The body as it comes. Raises Passing if it breaks off, stalls or trickles."""
        window_start, window_bytes = time.monotonic(), 0
        while True:
            try:
                block = self.response.read1(BLOCK_BYTES)
            except (broken.HTTPError, OSError) as error:
                raise Passing(explained(error)) from None
            if not block:
                return
            self._interrupt.check()
            if self._on_bytes is not None:
                self._on_bytes(len(block))
            yield block
            window_bytes += len(block)
            elapsed = time.monotonic() - window_start
            if elapsed >= self._settings.read_seconds:
                if window_bytes < self._settings.min_bytes_per_second * elapsed:
                    raise Passing(f"only {window_bytes} bytes came in {elapsed:.0f} s")
                window_start, window_bytes = time.monotonic(), 0

    def require_no_page(self) -> None:
        """Raises Malformed where a web page stands in for data."""
        kind = (self.header("Content-Type") or "").lower()
        if kind.startswith(("text/html", "application/xhtml")):
            first = next(self.blocks(), b"")
            raise _page(self.url, first)

    def require_not_encoded(self, why: str) -> None:
        """Raises Mismatch where a Content-Encoding stands between the object's bytes and what is sent."""
        if self.encoding is not None:
            raise Mismatch(
                f"{self.url} was sent with Content-Encoding {self.encoding} though {why}; ranges of an encoded body "
                "are not ranges of the object, so it cannot be read."
            )


class Receiver(Protocol):
    received: int

    def headers(self) -> dict[str, str]: ...
    def take(self, incoming: Incoming) -> None: ...


class WholeReceiver:
    """Receives an object from beginning to end; a broken one from the beginning again."""

    def __init__(
        self,
        url: str,
        max_bytes: int,
        *,
        accept_gzip: bool,
        accept_page: bool,
        headers: Mapping[str, str],
    ) -> None:
        self.url = url
        self.received = 0
        self._max_bytes = max_bytes
        self._accept_gzip = accept_gzip
        self._accept_page = accept_page
        self._headers = headers
        self._reply: Reply | None = None

    def reply(self) -> Reply:
        assert self._reply is not None
        return self._reply

    def headers(self) -> dict[str, str]:
        return {**self._headers, "Accept-Encoding": "gzip" if self._accept_gzip else "identity"}

    def take(self, incoming: Incoming) -> None:
        if not self._accept_page:
            incoming.require_no_page()
        if incoming.status != 200:
            raise Mismatch(f"{self.url} answered {incoming.status} to a plain request; check the address.")
        if incoming.encoding not in (None, "gzip", "x-gzip"):
            raise Mismatch(f"{self.url} was sent with Content-Encoding {incoming.encoding}, which was not asked for.")
        length = incoming.length
        if length is None and not incoming.is_chunked:
            raise Mismatch(
                f"{self.url} was sent without a length, so that a cut reply would look whole; ask its publisher for a "
                "server that sends Content-Length."
            )
        body = self._read(incoming, length)
        if not self._accept_page and body[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise _page(self.url, bytes(body[:80]))
        size = None if incoming.encoding else len(body)
        self._reply = Reply(
            self.url,
            self._decoded(body, incoming.encoding),
            incoming.header("ETag"),
            incoming.header("Last-Modified"),
            incoming.encoding,
            size,
            tuple(incoming.response.headers.getlist("Set-Cookie")),
        )

    def _read(self, incoming: Incoming, length: int | None) -> bytearray:
        if length is not None and length > self._max_bytes:
            raise Malformed(f"{self.url} has {length} bytes, expected at most {self._max_bytes}.")
        body = bytearray()
        for block in incoming.blocks():
            body += block
            if len(body) > self._max_bytes:
                raise Malformed(f"{self.url} has more than {self._max_bytes} bytes, the most that was expected.")
        if length is not None and len(body) != length:
            raise Passing(f"the connection ended after {len(body)} of {length} bytes")
        return body

    def _decoded(self, body: bytearray, encoding: str | None) -> bytes | bytearray:
        if encoding is None:
            return body
        try:
            return gunzip(body, max_bytes=self._max_bytes)
        except BadGzipError as error:
            raise Malformed(f"{self.url} is said to be gzip-encoded, but {error}.") from None


class RangeReceiver:
    """Receives a range; what has arrived stays, and only the rest is asked for again."""

    def __init__(self, url: str, start: int, stop: int, expect_etag: str | None) -> None:
        if not 0 <= start < stop:
            raise ValueError(f"not a range: {start}-{stop}")
        self.url, self.start, self.stop = url, start, stop
        self.received = 0
        self._body = bytearray(stop - start)
        self._etag = expect_etag
        self._object_bytes: int | None = None
        self._last_modified: str | None = None

    def reply(self) -> Reply:
        return Reply(self.url, self._body, self._etag, self._last_modified, None, self._object_bytes)

    def headers(self) -> dict[str, str]:
        return {"Range": f"bytes={self.start + self.received}-{self.stop - 1}", "Accept-Encoding": "identity"}

    def take(self, incoming: Incoming) -> None:
        if incoming.status == 416:
            raise self._too_short((incoming.header("Content-Range") or "").rpartition("/")[2])
        incoming.require_no_page()
        incoming.require_not_encoded("a byte range was asked for")
        self._require_same(incoming)
        begins_at, object_bytes = self._placed(incoming)
        if object_bytes is not None and object_bytes < self.stop:
            raise self._too_short(str(object_bytes))
        if None not in (object_bytes, self._object_bytes) and object_bytes != self._object_bytes:
            raise self._changed("size", str(self._object_bytes), str(object_bytes))
        self._object_bytes = object_bytes or self._object_bytes
        self._last_modified = incoming.header("Last-Modified")
        self._fill(incoming, begins_at)

    def _placed(self, incoming: Incoming) -> tuple[int, int | None]:
        """(where in the object the body begins, the object's size); checked against what was asked for."""
        wanted, length = self.start + self.received, incoming.length
        if incoming.status == 200:
            if length is None or length > WHOLE_INSTEAD_OF_RANGE_BYTES:
                raise Mismatch(
                    f"{self.url} was sent whole ({length if length is not None else 'unknown'} bytes) though bytes "
                    f"{wanted}-{self.stop - 1} were asked for; its server must support byte ranges."
                )
            return 0, length
        found = content_range(incoming)
        if found is not None and found.start == wanted:
            if found.stop == self.stop and length in (None, found.stop - wanted):
                return wanted, found.object_bytes
            if found.object_bytes is not None and found.stop == found.object_bytes < self.stop:
                raise self._too_short(str(found.object_bytes))
        raise wrong_range(incoming, wanted, self.stop)

    def _fill(self, incoming: Incoming, position: int) -> None:
        """Takes over the bytes from `start + received` on; `position` is where in the object the next block begins."""
        size, view = self.stop - self.start, memoryview(self._body)
        blocks = incoming.blocks()
        for block in blocks:
            fresh = memoryview(block)[max(0, self.start + self.received - position) :]
            position += len(block)
            taken = min(len(fresh), size - self.received)
            view[self.received : self.received + taken] = fresh[:taken]
            self.received += taken
            if self.received == size:
                if incoming.status == 206 and (taken < len(fresh) or (incoming.length is None and any_left(blocks))):
                    raise self._too_much()
                return
        raise Passing(f"the connection ended after {self.received} of {size} bytes")

    def _too_much(self) -> Passing:
        self.received = 0
        return faulty(f"{self.url} sent more than the bytes {self.start}-{self.stop - 1} that were asked for")

    def _require_same(self, incoming: Incoming) -> None:
        etag = incoming.header("ETag")
        if etag is not None and self._etag is not None and opaque_tag(etag) != opaque_tag(self._etag):
            raise self._changed("ETag", self._etag, etag)
        self._etag = etag or self._etag

    def _changed(self, what: str, before: str, now: str) -> Mismatch:
        return Mismatch(
            f"{self.url} changed while it was read: its {what} was {before}, now it is {now}; look at what its "
            "publisher replaced before reading on."
        )

    def _too_short(self, size: str) -> Malformed:
        has = f"has {size} bytes" if size.isdigit() else "is shorter"
        return Malformed(f"{self.url} {has}, but bytes {self.start}-{self.stop - 1} of it are referred to.")


@dataclass(frozen=True, slots=True)
class ContentRange:
    start: int
    stop: int
    """Exclusive."""
    object_bytes: int | None


def content_range(incoming: Incoming) -> ContentRange | None:
    """What a 206 says it brings, None if it does not say so in the one form there is (RFC 9110, 14.4)."""
    text = incoming.header("Content-Range") or ""
    found = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", text, re.ASCII)
    if found is None:
        return None
    return ContentRange(int(found[1]), int(found[2]) + 1, None if found[3] == "*" else int(found[3]))


def wrong_range(incoming: Incoming, start: int, stop: int | None) -> Passing:
    asked = f"{start}-{'' if stop is None else stop - 1}"
    said = incoming.header("Content-Range")
    return faulty(
        f"bytes {asked} of {incoming.url} were asked for, but the reply says {said!r} with {incoming.length} bytes"
    )


def faulty(sentence: str) -> Passing:
    """One machine of many may be wrong once; if it stays so, this is the error."""
    return Passing(sentence, odd=Mismatch(f"{sentence}; its server or a cache on the way is faulty, try again later."))


def safe_url(url: str) -> str:
    """The address as it may be shown and stored: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]


def require_success(incoming: Incoming) -> None:
    """Raises what the status means, unless a body is coming that may be what was asked for."""
    status, url = incoming.status, incoming.url
    if status in (200, 206, 416):
        return
    said = f"{status} {incoming.response.reason or ''}".strip() + _own_words(incoming.response)
    if status in PASSING_STATUSES:
        wait = _retry_after_seconds(incoming.header("Retry-After")) if status in (429, 503) else None
        raise Passing(f"answered {said}", retry_after=wait)
    if status in (404, 410):
        raise NotThere(f"{url} does not exist ({said}); check the address.", status)
    if status == 403:
        raise NotThere(f"{url} does not exist or is not public ({said}); check the address.", status)
    if status == 401:
        raise Mismatch(f"{url} asks for a login ({said}); only public data can be read: check the address.")
    raise Mismatch(f"{url} answered {said}; check the address.")


def _own_words(response: BaseHTTPResponse) -> str:
    """What an interface that answers in JSON says of its error (`{"message": ...}`), to be put behind the status."""
    if not (response.headers.get("Content-Type") or "").lower().startswith("application/json"):
        drain(response)
        return ""
    try:
        body = response.read(DRAIN_BYTES)
    except (broken.HTTPError, OSError):  # the status says enough
        return ""
    found = re.search(rb'"message"\s*:\s*"((?:[^"\\]|\\.){1,200})', body)
    return "" if found is None else f", {' '.join(found[1].decode('utf-8', 'replace').split())!r}"


def any_left(blocks: Iterator[bytes]) -> bool:
    """Whether more follows when everything asked for is here; a connection that breaks off now does no harm."""
    try:
        return bool(next(blocks, b""))
    except Passing:
        return False


def drain(response: BaseHTTPResponse) -> None:
    """Reads the rest of a small body, so that the connection can be used again."""
    try:
        if int(response.headers.get("Content-Length", DRAIN_BYTES + 1)) <= DRAIN_BYTES:
            response.drain_conn()
    except (ValueError, broken.HTTPError, OSError):  # nothing is lost: the connection is closed instead
        response.close()


def _page(url: str, first: bytes) -> Malformed:
    quoted = " ".join(first[:80].decode("utf-8", "replace").split())
    return Malformed(f"{url} answered with a web page where data was expected ({quoted!r}); check the address.")


def _retry_after_seconds(value: str | None) -> float | None:
    """Seconds a Retry-After header asks for (RFC 9110, 10.2.3), at most ten minutes; None if it is not understood."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value[:12]), MAX_RETRY_AFTER_SECONDS)
    try:
        until = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, until - time.time()), MAX_RETRY_AFTER_SECONDS)


def opaque_tag(etag: str) -> str:
    """A weak tag compares as the strong one: caches weaken tags of bodies they pass on unchanged."""
    return etag.removeprefix("W/")


_CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (ssl.SSLCertVerificationError, "its certificate is not trusted"),
    (socket.gaierror, "its name is not known (DNS)"),
    (ConnectionRefusedError, "the connection was refused"),
    (broken.ConnectTimeoutError, "no connection came about in time"),
    (broken.ReadTimeoutError, "it sent nothing for too long"),
    (TimeoutError, "it sent nothing for too long"),
    (broken.ProxyError, "the proxy did not connect"),
    (EOFError, "the connection was closed"),
)
"""The first that fits: what stands for others comes behind them."""


def explained(error: Exception) -> str:
    """The cause in words that name no address: urllib3's own messages hold the whole URL."""
    causes = list(_causes(error))
    for kind, words in _CAUSES:
        if any(isinstance(cause, kind) for cause in causes):
            return words
    said = next((c.strerror for c in causes if isinstance(c, OSError) and c.strerror), type(error).__name__)
    return f"the connection broke off ({said})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those it stands for."""
    seen: set[int] = set()
    todo: list[BaseException] = [error]
    while todo:
        this = todo.pop(0)
        if id(this) in seen:
            continue
        seen.add(id(this))
        yield this
        todo += [e for e in (this.__cause__, this.__context__, *this.args) if isinstance(e, BaseException)]
