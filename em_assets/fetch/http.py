"""HTTP(S): whole small objects and verified byte ranges, from many threads at once.

A reply counts only if it is what was asked for (`replies.py`): servers and caches get each part of it wrong. What may
pass is tried again: the rest of a broken range only, with full jitter, honouring Retry-After, gated per host
(`hosts.py`).
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3 import exceptions as broken
from urllib3.response import BaseHTTPResponse

from em_assets.errors import Mismatch, Unavailable
from em_assets.fetch.hosts import Host, HostUnreachable, Interrupt, is_private
from em_assets.fetch.replies import (
    Incoming,
    NotThere,
    OnBytes,
    Passing,
    RangeReceiver,
    Receiver,
    Reply,
    WholeReceiver,
    drain,
    explained,
    require_success,
    safe_url,
)
from em_assets.settings import Settings

__all__ = ["HostUnreachable", "HttpClient", "Interrupt", "NotThere", "OnBytes", "Reply", "safe_url"]

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5
BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
ODD_REPLIES = 3
"""So many replies that contradict the request are taken for a passing fault of one machine behind the address."""


log = logging.getLogger(__name__)


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
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        """The whole object, its Content-Encoding undone.

        Raises NotThere, Malformed if it is larger than `max_bytes` or a web page, Mismatch, Unavailable.
        """
        whole = WholeReceiver(safe_url(url), max_bytes, accept_gzip=accept_gzip)
        self._persist(url, whole, on_bytes, interrupt or Interrupt())
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

    def _persist(self, url: str, receiver: Receiver, on_bytes: OnBytes | None, interrupt: Interrupt) -> None:
        """Attempts until `receiver` has its body, or there is no hope."""
        host = self._host(url)
        deadline = time.monotonic() + self._settings.retry_seconds
        attempts = fruitless = odd = 0
        while True:
            had = receiver.received
            attempts += 1
            try:
                with host.turn(interrupt):
                    self._attempt(host, url, receiver, on_bytes, interrupt)
            except Passing as passing:
                interrupt.check()  # a reply that was cut on purpose looks broken
                odd += passing.odd is not None
                if passing.odd is not None and odd >= ODD_REPLIES:
                    raise passing.odd from None
                fruitless = 1 if receiver.received > had else fruitless + 1
                # A silent host is given up for all its requests at once, whenever each of them began.
                left = host.seconds_left() if passing.silent else deadline - time.monotonic()
                if left <= 0 and not passing.silent:
                    took = self._settings.retry_seconds
                    raise Unavailable(
                        f"{safe_url(url)}: {passing.reason} ({attempts} attempts in {took:g} s); try again later."
                    ) from None
                if passing.retry_after is not None:
                    host.pause(min(passing.retry_after, left), passing.reason)
                wait = min(_jitter(fruitless), left)
                log.info("%s: %s; trying again in %.1f s", safe_url(url), passing.reason, wait)
                interrupt.wait(wait)
            else:
                return

    def _attempt(
        self, host: Host, url: str, receiver: Receiver, on_bytes: OnBytes | None, interrupt: Interrupt
    ) -> None:
        interrupt.check()
        response = self._send(host, url, receiver.headers())
        try:
            with interrupt.cutting(response.shutdown):
                incoming = Incoming(response, safe_url(url), self._settings.read_seconds, on_bytes, interrupt)
                require_success(incoming)
                receiver.take(incoming)
        finally:
            response.close()

    def _send(self, host: Host, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """The reply's beginning, after redirects."""
        target = url
        for _ in range(MAX_REDIRECTS + 1):
            connect, read = host.timeouts()
            try:
                response = self._manager(target).urlopen(
                    "GET",
                    target,
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
            target = _followed(url, target, response.headers.get("Location", ""))
        raise Mismatch(f"{safe_url(url)} redirects more than {MAX_REDIRECTS} times; correct the address.")

    def _host(self, url: str) -> Host:
        try:
            parts = urlsplit(url)
            scheme, name = parts.scheme, parts.hostname
            port = parts.port or {"http": 80, "https": 443}[scheme]
        except (ValueError, KeyError):
            scheme, name, port = "", None, 0
        if not name:
            raise Mismatch(f"{safe_url(url)} is not an address of the form https://host/path; correct it.")
        address = f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}"
        with self._lock:
            return self._hosts.setdefault(address, Host(address, self._settings))

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy = _proxy_for(url)
        with self._lock:
            if proxy not in self._managers:
                options = {"num_pools": 32, "maxsize": self._settings.connections_per_host}
                self._managers[proxy] = (
                    urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)  # type: ignore[arg-type]
                )
            return self._managers[proxy]


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


def _jitter(fruitless: int) -> float:
    """Full jitter: many clients that failed together do not come back together."""
    return random.uniform(0, min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2.0 ** min(fruitless, 10)))  # noqa: S311  # not a secret


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
