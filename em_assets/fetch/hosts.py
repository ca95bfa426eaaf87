"""Politeness and patience per host: requests at once, pauses it asked for, and when it counts as unreachable."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from em_assets.errors import Unavailable
from em_assets.settings import Settings

SLOT_POLL_SECONDS = 0.1
"""How often a request that waits for its turn looks whether it is still wanted."""
MORE_AFTER_SECONDS = 60.0
"""A host that turned requests away is tried with one more at once after so long without a refusal."""
SHORTEST_TIMEOUT_SECONDS = 1.0
"""What the last attempt gets, however little of the time is left."""

log = logging.getLogger(__name__)


class HostUnreachable(Unavailable):
    """A host sent nothing for as long as it is waited for: every request to it fails with this, without a new try."""


class Interrupted(Exception):  # not an EmAssetsError: whoever interrupted knows, nobody else sees it
    """The request was ended by `Interrupt.set`."""


class Interrupt:
    """Ends requests from another thread: their waits return at once and their open replies are cut."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._cuts: set[Callable[[], None]] = set()

    def set(self) -> None:
        self._event.set()
        with self._lock:
            cuts = list(self._cuts)
        for cut in cuts:
            try:
                cut()
            except (OSError, ValueError, RuntimeError) as error:  # the reply has just ended by itself
                log.debug("a reply could not be cut: %s", error)

    def check(self) -> None:
        if self._event.is_set():
            raise Interrupted

    def wait(self, seconds: float) -> None:
        """Sleeps. Raises Interrupted as soon as it is set."""
        if self._event.wait(max(0.0, seconds)):
            raise Interrupted

    @contextmanager
    def cutting(self, cut: Callable[[], None]) -> Iterator[None]:
        """Within, `set` also calls `cut`."""
        with self._lock:
            self._cuts.add(cut)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._cuts.discard(cut)


class Host:
    """One scheme, name and port, as all threads of one client see it."""

    def __init__(self, address: str, settings: Settings) -> None:
        self.address = address
        """`https://name:port`."""
        self._settings = settings
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._most = self._allowed = settings.connections_per_host
        self._allowed_since = monotonic()
        self._busy = 0
        self._serving = 0
        self._answered_ever = False
        self._silent_since: float | None = None
        self._paused_until = 0.0
        self._verdict: str | None = None

    def limit(self, connections: int) -> None:
        """So many requests at once from now on, in place of `Settings.connections_per_host`."""
        with self._lock:
            self._most = self._allowed = max(1, connections)
            self._freed.notify_all()

    @contextmanager
    def turn(self, interrupt: Interrupt) -> Iterator[float]:
        """Waits for a free connection and for the end of a pause; gives the seconds that the first of these took.

        Raises HostUnreachable once that is the verdict.
        """
        begun = monotonic()
        while not self._entered():
            interrupt.check()
            self.require_hope()
        waited_seconds = monotonic() - begun
        try:
            while (pause := self._paused_until - monotonic()) > 0:
                interrupt.wait(pause)
            self.require_hope()
            with self._lock:
                if self._silent_since is None and not self._answered_ever:
                    self._silent_since = monotonic()
            yield waited_seconds
        finally:
            with self._lock:
                self._busy -= 1
                self._freed.notify()

    def _entered(self) -> bool:
        """Whether a connection became free within `SLOT_POLL_SECONDS`; it is taken then."""
        with self._lock:
            if self._allowed < self._most and monotonic() - self._allowed_since > MORE_AFTER_SECONDS:
                self._allowed, self._allowed_since = self._allowed + 1, monotonic()
            if self._busy >= self._allowed:
                self._freed.wait(SLOT_POLL_SECONDS)
            if self._busy >= self._allowed:
                return False
            self._busy += 1
            return True

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Within, the body of a good reply is coming."""
        with self._lock:
            self._serving += 1
        try:
            yield
        finally:
            with self._lock:
                self._serving -= 1

    def refused(self) -> None:
        """It turned a request away (429, 503). While it serves others, that means: too many at once."""
        with self._lock:
            if not self._serving:
                return
            fewer = max(1, self._serving, min(self._allowed, self._busy) - 1)
            if fewer < self._allowed:
                log.info("%s turns requests away: at most %d at once from now on", self.address, fewer)
                self._allowed, self._allowed_since = fewer, monotonic()

    def require_hope(self) -> None:
        """Raises HostUnreachable if the host was given up."""
        if self._verdict is not None:
            raise HostUnreachable(self._verdict)

    def answered(self) -> None:
        """A reply began, whatever it says."""
        with self._lock:
            self._answered_ever, self._silent_since = True, None

    def stayed_silent(self, reason: str) -> None:
        """An attempt ended before a reply began. Raises HostUnreachable if that has gone on for too long."""
        with self._lock:
            now = monotonic()
            self._silent_since = now if self._silent_since is None else self._silent_since
            if self._verdict is None and now - self._silent_since >= self._patience_seconds:
                self._verdict = self._unreachable(reason)
                log.info("%s", self._verdict)
        self.require_hope()

    def seconds_left(self) -> float:
        """Until the host counts as unreachable if it goes on sending nothing."""
        with self._lock:
            silent = 0.0 if self._silent_since is None else monotonic() - self._silent_since
            return max(0.0, self._patience_seconds - silent)

    def timeouts(self) -> tuple[float, float]:
        """(connect, read) seconds of the next attempt: never far beyond the moment when the host is given up."""
        settings = self._settings
        left = max(self.seconds_left(), SHORTEST_TIMEOUT_SECONDS)
        if self._answered_ever:
            return min(settings.connect_seconds, left), settings.read_seconds
        return min(settings.connect_seconds, left), min(settings.read_seconds, left)

    def pause(self, seconds: float, reason: str) -> None:
        """Nobody asks this host for anything until so many seconds from now."""
        with self._lock:
            self._paused_until = max(self._paused_until, monotonic() + seconds)
        log.warning("%s %s and asked to wait: nothing is requested from it for %.1f s", self.address, reason, seconds)

    @property
    def _patience_seconds(self) -> float:
        return self._settings.retry_seconds if self._answered_ever else self._settings.unreachable_seconds

    def _unreachable(self, reason: str) -> str:
        name = self.address.split("://", 1)[1].rsplit(":", 1)[0].strip("[]")
        advice = "check the network, or run the offline sample (make quickstart)"
        if is_private(name):
            advice = "start its server (the sample's: em-assets sample up)"
        since = "has stopped answering" if self._answered_ever else "cannot be reached"
        return f"{self.address} {since}: {reason}, tried for {self._patience_seconds:g} s; {advice}."


def is_private(name: str) -> bool:
    """Whether a host name or address leads to this machine or a private network. An unknown name does not."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
    except (OSError, UnicodeError):
        return False
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    return any(not (getattr(address, "ipv4_mapped", None) or address).is_global for address in addresses)
