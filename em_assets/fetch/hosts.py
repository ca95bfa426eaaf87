"""Politeness and patience per host: requests at once, pauses it asked for, and when it counts as unreachable.

Where a publisher takes only a few requests at once, the processes of this machine share its slots (`SharedSlots`).
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import logging
import os
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from em_assets.errors import Malformed, Unavailable
from em_assets.settings import Settings

SLOT_POLL_SECONDS = 0.1
"""How often a request that waits for its turn looks whether it is still wanted, and whether a slot is free."""
SHARED_AT_MOST = 16
"""A host that takes more requests than that at once need not be shared out: what a spec can state for its publisher."""
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


class SharedSlots:
    """The requests that one host takes at once, shared by all processes of this machine with the same cache folder.

    A slot is a file, held by whoever has locked it, so that a dead process holds none. They are numbered: who may send
    two requests at once takes numbers 0 and 1 only, whatever others may. Who finds no slot free stands in line, at the
    place for one process, which is a lock as well: only the first in line takes a slot. Without that, a process that
    has just given one back would have it again before any other looks.

    Not safe for several threads: `Host` calls it under its own lock.
    """

    def __init__(self, address: str, settings: Settings) -> None:
        self.count = 0
        """How many of the slots this process may use; 0: it shares nothing."""
        self._address, self._settings = address, settings
        self._held: dict[int, int] = {}
        """Number and descriptor of each slot that is ours."""
        self._first_in_line: int | None = None
        self._look_again_at = 0.0
        self._told = False

    def take(self) -> bool:
        """Whether there is a slot, which is then held until `give_back`.

        If not, the caller stands in line: it calls again, or `leave_line`. Where files cannot be locked, there always
        is one.
        """
        if not self.count:
            return True
        try:
            taken = self._take()
        except (OSError, Malformed) as error:  # Malformed: there is no cache folder
            self.leave_line()
            _tell_not_shared(str(error))
            self.count = 0
            return True
        if not taken and not self._told:
            log.info("%s: other requests from this machine use all that it takes at once; waiting", self._address)
            self._told = True
        return taken

    def give_back(self) -> None:
        if self._held:
            _unlock(self._held.popitem()[1])

    def leave_line(self) -> None:
        if self._first_in_line is not None:
            _unlock(self._first_in_line)
            self._first_in_line = None

    def _take(self) -> bool:
        folder = self._folder()
        if not self._is_first(folder):
            return False
        # from above: the lowest numbers are the only ones for those who may use the fewest
        for number in reversed(range(self.count)):
            if number not in self._held and (slot := _lock(folder / f"{number}.lock")) is not None:
                self._held[number] = slot
                self.leave_line()
                return True
        return False

    def _is_first(self, folder: Path) -> bool:
        """Looks at random times, and as often for many threads as for one: each process has the same chance."""
        if self._first_in_line is None and monotonic() >= self._look_again_at:
            self._first_in_line = _lock(folder / "line.lock")
            if self._first_in_line is None:
                self._look_again_at = monotonic() + slot_poll_seconds()
        return self._first_in_line is not None

    def _folder(self) -> Path:
        name = re.sub("[^A-Za-z0-9.-]+", "_", self._address.partition("://")[2])
        folder = self._settings.cache_folder() / "hosts" / name
        folder.mkdir(parents=True, exist_ok=True)  # each time: a cache may be cleared at any moment
        return folder


def slot_poll_seconds() -> float:
    return SLOT_POLL_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311  # not a secret


def _lock(file: Path) -> int | None:
    """Its descriptor, None while another holds it. Raises OSError where it cannot be locked."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _unlock(descriptor: int) -> None:
    # closing alone would not do: a process forked meanwhile still has the file open
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


_reasons_told: set[str] = set()


def _tell_not_shared(reason: str) -> None:
    """Once per process and reason, however many hosts and clients there are."""
    if reason not in _reasons_told:
        _reasons_told.add(reason)
        log.warning(
            "requests are counted in this process alone (%s): other processes of this machine may send a publisher as "
            "many again; set EM_ASSETS_CACHE to a folder that can be written and locked",
            reason,
        )


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
        self._waiting = 0
        self._slots = SharedSlots(address, settings)
        self._serving = 0
        self._answered_ever = False
        self._silent_since: float | None = None
        self._paused_until = 0.0
        self._verdict: str | None = None

    def limit(self, connections: int) -> None:
        """So many requests at once from now on, in place of `Settings.connections_per_host`.

        Few are few for all processes of this machine together (`SHARED_AT_MOST`).
        """
        with self._lock:
            self._most = self._allowed = max(1, connections)
            self._slots.count = self._most if self._most <= SHARED_AT_MOST else 0
            self._freed.notify_all()

    @contextmanager
    def turn(self, interrupt: Interrupt) -> Iterator[float]:
        """Waits for a free connection and for the end of a pause; gives the seconds that the first of these took.

        Raises HostUnreachable once that is the verdict.
        """
        begun = monotonic()
        self._enter(interrupt)
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
                self._slots.give_back()
                self._freed.notify()

    def _enter(self, interrupt: Interrupt) -> None:
        with self._lock:
            self._waiting += 1
        try:
            while not self._entered():
                interrupt.check()
                self.require_hope()
        finally:
            with self._lock:
                self._waiting -= 1
                if not self._waiting:
                    self._slots.leave_line()

    def _entered(self) -> bool:
        """Whether a connection became free within about `SLOT_POLL_SECONDS`; it is taken then."""
        with self._lock:
            if self._allowed < self._most and monotonic() - self._allowed_since > MORE_AFTER_SECONDS:
                self._allowed, self._allowed_since = self._allowed + 1, monotonic()
            if self._busy >= self._allowed:
                self._slots.leave_line()  # one that would be free now is of no use here
                self._freed.wait(SLOT_POLL_SECONDS)
            if self._busy >= self._allowed:
                return False
            if not self._slots.take():
                self._freed.wait(slot_poll_seconds())
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
