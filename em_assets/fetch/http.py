"""HTTP(S): whole small objects, verified byte ranges, streams of large ones, answers to queries; from many threads.

A reply counts only if it is what was asked for (`replies.py`): servers and caches get each part of it wrong. What may
pass is tried again, the rest of a broken range only (`attempts.py`), in turns that are gated per host (`hosts.py`).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3 import exceptions as broken
from urllib3.response import BaseHTTPResponse

from em_assets.errors import Mismatch
from em_assets.fetch.attempts import Passing, persist
from em_assets.fetch.hosts import Host, HostUnreachable, Interrupt, is_private
from em_assets.fetch.replies import (
    Incoming,
    NotThere,
    OnBytes,
    RangeReceiver,
    Receiver,
    Reply,
    WholeReceiver,
    drain,
    explained,
    require_success,
    safe_url,
)
from em_assets.fetch.streams import OnBegin, Sink, StreamReceiver, Version
from em_assets.settings import Settings

__all__ = [
    "HostUnreachable",
    "HttpClient",
    "Interrupt",
    "NotThere",
    "OnBytes",
    "Reply",
    "safe_url",
]

REFUSALS = frozenset({429, 503})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
KEEPING_REDIRECTS = frozenset({307, 308})
"""After which a POST is sent again as it was (RFC 9110, 15.4.8 and 15.4.9)."""
MAX_REDIRECTS = 5
JSON = "application/json"
KEPT_CONNECTIONS = 128
"""Idle ones per host; how many are used at once is the host's gate to say."""


class HttpClient:
    """Connections for many threads to any number of hosts. Only a new client tries a host again that was given up."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._hosts: dict[str, Host] = {}
        self._managers: dict[str | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        accept_gzip: bool = False,
        accept_page: bool = False,
        headers: Mapping[str, str] | None = None,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        """The whole object, its Content-Encoding undone. `headers` are sent besides; cookies to this host only.

        Raises NotThere, Malformed if it is larger than `max_bytes` or, unless `accept_page`, a web page, Mismatch,
        Unavailable.
        """
        whole = WholeReceiver(
            safe_url(url), max_bytes, accept_gzip=accept_gzip, accept_page=accept_page, headers=headers or {}
        )
        self._persist(url, whole, on_bytes, interrupt or Interrupt())
        return whole.reply()

    def post_query(
        self,
        url: str,
        query: bytes,
        *,
        max_bytes: int,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        """What a POST of the JSON document `query` brings. Like a GET it is repeated: it must change nothing there.

        Only redirects that keep the document (307, 308) and the host are followed. A document of status 400 is an
        answer, too: a GraphQL server may say so what is wrong with a query.

        Raises NotThere, Malformed if the answer is larger than `max_bytes` or a web page, Mismatch, Unavailable.
        """
        whole = WholeReceiver(
            safe_url(url),
            max_bytes,
            accept_gzip=True,
            accept_page=False,
            headers={"Content-Type": JSON, "Accept": JSON},
        )
        self._persist(url, whole, on_bytes, interrupt or Interrupt(), query)
        return whole.reply()

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
        """Exactly bytes `start` to `stop` (exclusive) of an object, as stored.

        Raises NotThere, Malformed if the object is shorter, Mismatch if it is not the one that had `expect_etag`, or
        the server does not send what is asked for, Unavailable if it does not send it in time. `on_bytes` hears of
        every byte received.
        """
        part = RangeReceiver(safe_url(url), start, stop, expect_etag)
        self._persist(url, part, on_bytes, interrupt or Interrupt())
        return part.reply()

    def stream(
        self,
        url: str,
        sink: Sink,
        *,
        start: int = 0,
        stop: int | None = None,
        expect: Version | None = None,
        size_bytes: int | None = None,
        on_begin: OnBegin | None = None,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Version:
        """Bytes `start` to `stop` (exclusive, None: the end) of an object as stored, given to `sink` as they come.

        `sink(offset, block)` is called in order; a broken reply is resumed at the byte that was reached. A server
        without ranges sends the whole object, which is taken if `start` is 0, also beyond `stop`; after a break it
        begins anew: then `sink` hears of offset 0 again. `size_bytes` is what the object must have, for servers that
        do not say. `on_begin(version, whole)` is called before the first byte; what it or `sink` raises ends it all.

        Raises NotThere, Malformed if the reply is a web page, Changed if the object is not of the version `expect` or
        does not stay the same, NoRanges if its server has none and they are needed, Mismatch, Unavailable.
        """
        receiver = StreamReceiver(
            safe_url(url), sink, start=start, stop=stop, expect=expect, size_bytes=size_bytes, on_begin=on_begin
        )
        self._persist(url, receiver, on_bytes, interrupt or Interrupt())
        return receiver.version

    def limit(self, url: str, connections: int) -> None:
        """So many requests at once to this address' host, in place of `Settings.connections_per_host`."""
        self._host(url).limit(connections)

    def _persist(
        self,
        url: str,
        receiver: Receiver,
        on_bytes: OnBytes | None,
        interrupt: Interrupt,
        query: bytes | None = None,
    ) -> None:
        """Attempts until `receiver` has its body, or there is no hope."""
        host = self._host(url)
        persist(
            lambda: self._attempt(host, url, receiver, on_bytes, interrupt, query=query),
            host=host,
            shown=safe_url(url),
            settings=self._settings,
            interrupt=interrupt,
            received=lambda: receiver.received,
        )

    def _attempt(
        self,
        host: Host,
        url: str,
        receiver: Receiver,
        on_bytes: OnBytes | None,
        interrupt: Interrupt,
        *,
        query: bytes | None,
    ) -> None:
        interrupt.check()
        headers = receiver.headers()
        response = self._send(host, url, headers) if query is None else self._exchange(host, url, headers, query)
        try:
            with interrupt.cutting(response.shutdown):
                incoming = Incoming(response, safe_url(url), self._settings, on_bytes, interrupt)
                if incoming.status in REFUSALS:
                    host.refused()
                if query is not None and _explains_itself(incoming):
                    incoming.status = 200
                require_success(incoming)
                with host.serving():
                    receiver.take(incoming)
        finally:
            response.close()

    def _send(self, host: Host, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """The beginning of the reply to a GET, after redirects."""
        return self._exchange(host, url, headers, None)

    def _exchange(self, host: Host, url: str, headers: dict[str, str], query: bytes | None) -> BaseHTTPResponse:
        """The reply's beginning, after redirects. `query` is what is posted; None: it is a GET."""
        target = url
        for _ in range(MAX_REDIRECTS + 1):
            connect, read = host.timeouts()
            try:
                response = self._manager(target).urlopen(
                    "GET" if query is None else "POST",
                    target,
                    body=query,
                    headers={"User-Agent": "em_assets", **headers},
                    timeout=urllib3.Timeout(connect=connect, read=read),
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                )
            except (broken.HTTPError, OSError) as error:
                reason = explained(error)
                host.stayed_silent(reason)
                raise Passing(reason, silent=True) from None
            host.answered()
            if response.status not in REDIRECTS:
                return response
            drain(response)
            before, target = target, _followed(url, target, response.headers.get("Location", ""))
            if query is not None:
                _require_same_question(url, before, target, response.status)
            if urlsplit(before).hostname != urlsplit(target).hostname:
                headers = {name: value for name, value in headers.items() if name != "Cookie"}
        raise Mismatch(f"{safe_url(url)} redirects more than {MAX_REDIRECTS} times; correct the address.")

    def _host(self, url: str) -> Host:
        address = host_address(url)
        with self._lock:
            return self._hosts.setdefault(address, Host(address, self._settings))

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy = _proxy_for(url)
        with self._lock:
            if proxy not in self._managers:
                options = {"num_pools": 32, "maxsize": KEPT_CONNECTIONS}
                self._managers[proxy] = (
                    urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)  # type: ignore[arg-type]
                )
            return self._managers[proxy]


def host_address(url: str) -> str:
    """`https://name:port` of an address. Raises Mismatch if it is none of HTTP."""
    try:
        parts = urlsplit(url)
        scheme, name = parts.scheme, parts.hostname
        port = parts.port or {"http": 80, "https": 443}[scheme]
    except (ValueError, KeyError):
        scheme, name, port = "", None, 0
    if not name:
        raise Mismatch(f"{safe_url(url)} is not an address of the form https://host/path; correct it.")
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}"


def _followed(url: str, target: str, location: str) -> str:
    """Where a redirect leads. Raises Mismatch if a public server must not lead there."""
    refused = f"{safe_url(url)} redirects to {safe_url(location) or 'nowhere'}"
    try:
        new = urljoin(target, location)
        parts = urlsplit(new)
        name, old = parts.hostname, urlsplit(target)
    except ValueError:
        raise Mismatch(f"{refused}, which is not an address; correct the address.") from None
    if not location or parts.scheme not in ("http", "https") or not name:
        raise Mismatch(f"{refused}, but only http and https addresses are followed; correct the address.")
    if old.scheme == "https" and parts.scheme == "http":
        raise Mismatch(f"{refused}, which is not encrypted any more; correct the address.")
    if name != old.hostname and is_private(name) and not is_private(old.hostname or ""):
        raise Mismatch(f"{refused}, which lies in a private network; correct the address.")
    return new


def _require_same_question(url: str, before: str, target: str, status: int) -> None:
    """Raises Mismatch for redirects that would turn a posted document into a GET or give it to another server."""
    if status not in KEEPING_REDIRECTS:
        raise Mismatch(
            f"{safe_url(url)} redirects a posted query with {status} to {safe_url(target)}, which would drop the query "
            "(only 307 and 308 keep it); correct the address."
        )
    if urlsplit(before).hostname != urlsplit(target).hostname:
        raise Mismatch(
            f"{safe_url(url)} redirects a posted query to another server, {safe_url(target)}; correct the address if "
            "that is the right one."
        )


def _explains_itself(incoming: Incoming) -> bool:
    """Whether a refused query came back with a document that says why."""
    return incoming.status == 400 and "json" in (incoming.header("Content-Type") or "").lower()


@functools.lru_cache(maxsize=64)
def _proxy_of(scheme: str, name: str) -> str | None:
    from urllib.request import getproxies, proxy_bypass

    if proxy_bypass(name):
        return None
    proxy = getproxies().get(scheme)
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment (http_proxy, https_proxy, no_proxy) names for an address."""
    parts = urlsplit(url)
    return _proxy_of(parts.scheme, parts.hostname or "")
