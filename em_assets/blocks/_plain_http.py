"""HTTP/1.1 as far as a well-behaved server needs it: many small ranges over kept connections, at little cost.

Here only the plain reply to what was asked counts. Everything else (a redirect, a refusal, a range that was not heeded,
a body that breaks off) is `NotPlain`: the caller asks `fetch.http.HttpClient` instead, which knows what to do about it,
and after a reply that says more than "not there" its host is asked in that patient way for a minute.

Why not a client that exists: 144 ranges of 580 kB from loopback, by 64 threads, take 67 ms of CPU time here, which
decoding needs, 75 with obstore, 94 with http.client and 205 with `HttpClient`. And obstore, once it was used, hangs in
every child that the process forks, which is how PyTorch starts its workers on Linux.
"""

from __future__ import annotations

import contextlib
import functools
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from em_assets.fetch.http import NotThere, safe_url
from em_assets.fetch.streams import Version
from em_assets.settings import Settings

PATIENT_SECONDS = 60.0
"""How long a host is left to `HttpClient` after a reply that needs judgement: 503, a redirect, a range not heeded."""
IDLE_SECONDS = 20.0
"""Connections that were idle for longer are not used again: the server, or a router on the way, may have forgotten."""
HEAD_BYTES = 2048
"""Asked for at first: more than most heads have, and little of the body, which need not be copied then."""
MAX_HEAD_BYTES = 32 * 2**10
DRAIN_BYTES = 64 * 2**10
"""Bodies of "not there" up to this size are read, so that the connection can be used again."""
ONCE = (b"content-length", b"content-range", b"content-encoding", b"transfer-encoding", b"etag")
"""Headers that contradict themselves if they come twice."""
NOT_THERE = (403, 404, 410)
ETAG = re.compile(r'(W/)?"[!#-~]*"')


class NotPlain(Exception):
    """The reply is not simply what was asked for, or none came; the message says why."""


@dataclass(frozen=True, slots=True)
class _Address:
    secure: bool
    name: str
    port: int
    target: str
    """Path and query, as they are sent."""
    host: str
    """As the Host header has it."""


class Connections:
    """Kept connections of one process to any number of hosts. Safe for use by several threads, not across a fork."""

    def __init__(self) -> None:
        self._idle: dict[tuple[bool, str, int], list[_Connection]] = {}
        self._patient_until: dict[tuple[bool, str, int], float] = {}
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None

    def ask(self, url: str, byte_range: str | None, settings: Settings, known_etag: str | None = None) -> Answer:
        """A reply whose body is still to come: 206 to a range (`0-9`, `-10`), 200 without one.

        Or 304 without a body if the object still has the ETag that is known of it. Raises NotThere for 403, 404 and
        410, NotPlain for all else.
        """
        address = _address(url)
        key = address.secure, address.name, address.port
        if time.monotonic() < self._patient_until.get(key, 0.0):
            raise NotPlain("its server gave other replies than plain ones")
        wanted = "" if byte_range is None else f"Range: bytes={byte_range}\r\n"
        is_known = known_etag is not None and ETAG.fullmatch(known_etag) is not None
        if is_known:
            wanted += f"If-None-Match: {known_etag}\r\n"
        request = (
            f"GET {address.target} HTTP/1.1\r\nHost: {address.host}\r\nUser-Agent: em_assets\r\n"
            f"Accept: */*\r\nAccept-Encoding: identity\r\n{wanted}\r\n"
        ).encode("ascii")
        answer = self._sent(address, request, settings)
        try:
            self._judge(answer, key, url, (200 if byte_range is None else 206, 304 if is_known else None))
        except BaseException:
            answer.close()
            raise
        return answer

    def close(self) -> None:
        """Closes what is idle."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    def _sent(self, address: _Address, request: bytes, settings: Settings) -> Answer:
        idle = self._idle.setdefault((address.secure, address.name, address.port), [])
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                connection = self._connected(address, settings)
                is_new = True
            else:
                is_new = False
                if time.monotonic() - connection.idle_since > IDLE_SECONDS or connection.has_more:
                    connection.close()
                    continue
            try:
                return connection.ask(request, idle, settings)
            except BaseException as error:
                connection.close()
                # a kept connection may have been closed by the server meanwhile: that says nothing
                if is_new or not isinstance(error, NotPlain):
                    raise

    def _connected(self, address: _Address, settings: Settings) -> _Connection:
        try:
            plain = socket.create_connection((address.name, address.port), settings.connect_seconds)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not address.secure:
                _limit_waiting(plain, settings.read_seconds)
                return _Connection(plain)
            plain.settimeout(settings.read_seconds)
            try:
                return _Connection(self._context().wrap_socket(plain, server_hostname=address.name))
            except BaseException:
                plain.close()
                raise
        except (OSError, ValueError) as error:  # ValueError: a name that no host can have
            raise NotPlain(f"no connection came about ({error})") from None

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context()
                self._tls.set_alpn_protocols(["http/1.1"])
            return self._tls

    def _judge(self, answer: Answer, key: tuple[bool, str, int], url: str, wanted: tuple[int | None, ...]) -> None:
        if answer.status in NOT_THERE:
            answer.drain()
            what = "does not exist or is not public" if answer.status == 403 else "does not exist"
            raise NotThere(f"{safe_url(url)} {what} ({answer.status}); check the address.", answer.status)
        is_encoded = answer.says("content-encoding") not in (None, "identity")
        if answer.status not in wanted or answer.length is None or is_encoded:
            self._patient_until[key] = time.monotonic() + PATIENT_SECONDS
            raise NotPlain(f"answered {answer.status}, or in a form that was not asked for")


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    headers: dict[bytes, bytes]
    """By lower-case name."""
    keeps: bool
    """Whether the connection may be used again."""


class Answer:
    """A reply after its head. Close it, or leave its `with` block: a connection whose body was read is kept."""

    def __init__(
        self, connection: _Connection, idle: list[_Connection], settings: Settings, head: _Head, first: memoryview
    ) -> None:
        """`first` is what has come of the body."""
        self.status = head.status
        self._head = head
        self._connection: _Connection | None = connection
        self._idle, self._settings = idle, settings
        self._first = first
        self._begun = time.monotonic()
        self.received = 0
        """Bytes of the body that were taken."""
        stated = head.headers.get(b"content-length", b"")
        is_stated = re.fullmatch(rb"\d{1,19}", stated) and b"transfer-encoding" not in head.headers
        self.length = int(stated) if is_stated else None
        """Of the body; None where it must be found out by reading."""
        if head.status == 304:  # what it states is what a 200 would have
            self.length = 0

    def says(self, name: str) -> str | None:
        """A header, None where it is empty or not there."""
        return self._head.headers.get(name.encode(), b"").decode("latin-1") or None

    def version(self, object_bytes: int | None) -> Version:
        return Version(self.says("etag"), self.says("last-modified"), object_bytes)

    def object_bytes(self) -> int:
        """Of the object that the body is a range of. Raises NotPlain where that is not said."""
        return self._place()[2]

    def require(self, start: int, stop: int) -> None:
        """Raises NotPlain if the body is not exactly these bytes of the object."""
        if self._place()[:2] != (start, stop) or self.length != stop - start:
            raise NotPlain(f"its Content-Range is {self.says('content-range')!r}, its length {self.length}")

    def _place(self) -> tuple[int, int, int]:
        """(start, stop, size of the object)."""
        found = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", self.says("content-range") or "", re.ASCII)
        if found is None:
            raise NotPlain(f"its Content-Range is {self.says('content-range')!r}")
        return int(found[1]), int(found[2]) + 1, int(found[3])

    def fill(self, room: memoryview) -> None:
        """Puts the next bytes of the body there. Raises NotPlain if no more come, or too slowly."""
        if self._first:
            count = min(len(room), len(self._first))
            room[:count] = self._first[:count]
            self._first = self._first[count:]
            room = room[count:]
            self.received += count
        while room:
            assert self._connection is not None
            count = self._connection.receive(room, is_all_wanted=True)
            self.received += count
            room = room[count:]
            seconds = time.monotonic() - self._begun
            if seconds > self._settings.read_seconds and self.received < self._settings.min_bytes_per_second * seconds:
                raise NotPlain(f"only {self.received} bytes came in {seconds:.0f} s")

    def read(self, room_for: Callable[[int], memoryview] | None = None) -> memoryview:
        """The whole body, in the room that `room_for` so many bytes gives."""
        assert self.length is not None
        body = memoryview(bytearray(self.length)) if room_for is None else room_for(self.length)
        self.fill(body)
        return body

    def drain(self) -> None:
        """Reads the rest of a small body; nothing is lost if it does not come: the connection is closed."""
        if self.length is not None and self.length <= DRAIN_BYTES:
            with contextlib.suppress(NotPlain):
                self.read()
        self.close()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._head.keeps and self.received == self.length and not self._first:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Connection:
    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._all_flag = 0 if isinstance(opened, ssl.SSLSocket) else socket.MSG_WAITALL
        self.idle_since = 0.0

    def ask(self, request: bytes, idle: list[_Connection], settings: Settings) -> Answer:
        """Raises NotPlain if no proper head comes."""
        try:
            self._socket.sendall(request)
        except OSError as error:
            raise NotPlain(f"the connection broke off ({error})") from None
        room, filled, begun = bytearray(MAX_HEAD_BYTES), 0, time.monotonic()
        view = memoryview(room)
        while (end := room.find(b"\r\n\r\n", 0, filled)) < 0:
            if filled == len(room):
                raise NotPlain(f"its headers have more than {MAX_HEAD_BYTES} bytes")
            if filled and time.monotonic() - begun > settings.read_seconds:
                raise NotPlain(f"its headers did not come within {settings.read_seconds:g} s")
            filled += self.receive(view[filled : filled + HEAD_BYTES])
        return Answer(self, idle, settings, _parsed(bytes(view[:end])), view[end + 4 : filled])

    @property
    def has_more(self) -> bool:
        """While it is idle: the server closed it, or sent more than it had announced, which belongs to no request."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        return bool(waiting.poll(0))

    def receive(self, room: memoryview, *, is_all_wanted: bool = False) -> int:
        """How many bytes came: at least 1. If all are wanted, the system waits for them, not the interpreter."""
        try:
            count = self._socket.recv_into(room, 0, self._all_flag if is_all_wanted else 0)
        except OSError as error:  # a time-out too
            raise NotPlain(f"the connection broke off ({error})") from None
        if not count:
            raise NotPlain("the connection was closed")
        return count

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


def _parsed(head: bytes) -> _Head:
    first, *lines = head.split(b"\r\n")
    found = re.match(rb"HTTP/1\.([01]) (\d{3})(?: |$)", first)
    if found is None:
        raise NotPlain(f"it began with {first[:40]!r}")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or (name in ONCE and name in headers):
            raise NotPlain(f"it has the header line {line[:80]!r}")
        headers[name] = value.strip()
    keeps = found[1] == b"1" and b"close" not in headers.get(b"connection", b"").lower()
    return _Head(int(found[2]), headers, keeps)


def _limit_waiting(plain: socket.socket, seconds: float) -> None:
    """Like `settimeout`, but kept by the system: Python asks each time whether bytes came, and cannot wait for all."""
    plain.settimeout(None)
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))  # struct timeval
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


@functools.lru_cache(maxsize=4096)
def _address(url: str) -> _Address:
    """Raises NotPlain for what only `HttpClient` can judge: proxies, logins, addresses that are none."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
    except ValueError:
        raise NotPlain("it is no address") from None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    is_plain = parts.scheme in ("http", "https") and name and parts.username is None
    is_ascii = re.fullmatch(r"[!-~]+", parts.netloc + target)  # a host's other letters are encoded by `HttpClient`
    if not is_plain or not is_ascii or _has_proxy(parts.scheme, name):
        raise NotPlain("it is not asked for directly")
    secure = parts.scheme == "https"
    return _Address(secure, name, port or (443 if secure else 80), target, parts.netloc)


@functools.lru_cache(maxsize=64)
def _has_proxy(scheme: str, name: str) -> bool:
    from urllib.request import getproxies, proxy_bypass

    return scheme in getproxies() and not proxy_bypass(name)
