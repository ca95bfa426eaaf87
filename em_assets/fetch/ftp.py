"""FTP: the second way to a publisher's files, where HTTPS fails. Anonymous, passive, binary.

The standard library's ftplib is underneath: it frames commands and replies on plain blocking sockets, which suit
threads and need no dependency. What it leaves open is here: a transfer is whole when SIZE says so, not when the server
closes; a broken one goes on where it was (REST); the addresses that servers give for data are not believed; replies and
listings have limits (`ftp_connection.py`, `ftp_listing.py`). How long and how often is tried, and how many at once, is
as for HTTP (`attempts.py`, `hosts.py`).
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from em_assets.errors import Malformed, Mismatch
from em_assets.fetch.attempts import Passing, persist
from em_assets.fetch.ftp_connection import (
    ENDING_SECONDS,
    Control,
    NoResume,
    Place,
    Target,
    ftp_errors,
    parse_target,
    plain,
)
from em_assets.fetch.ftp_listing import FtpEntry, list_folder
from em_assets.fetch.hosts import Host, Interrupt
from em_assets.fetch.replies import OnBytes
from em_assets.settings import Settings

__all__ = ["FtpClient", "FtpEntry", "NoResume"]

R = TypeVar("R")
Sink = Callable[[memoryview], None]

BLOCK_BYTES = 256 * 2**10


class FtpClient:
    """Anonymous FTP for many threads. Only a new client tries a host again that was given up."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places: dict[str, Place] = {}
        self._lock = threading.Lock()

    def size_bytes(self, url: str, *, interrupt: Interrupt | None = None) -> int:
        """The file's size. Raises NotThere (also for a folder), Mismatch, Unavailable."""
        target = parse_target(url)
        return self._persist(target, lambda control: control.size_bytes(target), interrupt or Interrupt())

    def list(self, url: str, *, interrupt: Interrupt | None = None) -> list[FtpEntry]:
        """What lies in the folder, by name. Raises NotThere, Malformed, Mismatch, Unavailable."""
        target = parse_target(url)
        asked = interrupt or Interrupt()
        return self._persist(target, lambda control: list_folder(control, target, asked), asked)

    def read(
        self,
        url: str,
        start: int,
        sink: Sink,
        *,
        stop: int | None = None,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> None:
        """Gives bytes `start` to `stop` (exclusive; None: the end) to `sink`, in order, each once.

        After a break it goes on behind what `sink` took. Raises NotThere, Malformed if the file is shorter, NoResume if
        the server cannot begin within it, Mismatch if it changes or is not sent as asked for, Unavailable; and whatever
        `sink` raises.
        """
        if start < 0 or (stop is not None and stop < start):
            raise ValueError(f"not a range: {start}-{stop}")
        asked = interrupt or Interrupt()
        transfer = _Transfer(
            parse_target(url),
            start=start,
            stop=stop,
            sink=sink,
            on_bytes=on_bytes,
            settings=self._settings,
            interrupt=asked,
        )
        self._persist(transfer.target, transfer.attempt, asked, lambda: transfer.position - start)

    def close(self) -> None:
        """Closes the connections that nobody uses now."""
        with self._lock:
            places = list(self._places.values())
        for place in places:
            place.close_idle()

    def _persist(
        self,
        target: Target,
        attempt: Callable[[Control], R],
        interrupt: Interrupt,
        received: Callable[[], int] = lambda: 0,
    ) -> R:
        """Attempts over connections to the target's host until one succeeds, or there is no hope."""
        place = self._place(target)

        def connected() -> R:
            with place.connected(interrupt) as control:
                return attempt(control)

        return persist(
            connected,
            host=place.host,
            shown=target.shown,
            settings=self._settings,
            interrupt=interrupt,
            received=received,
        )

    def _place(self, target: Target) -> Place:
        name = f"[{target.name}]" if ":" in target.name else target.name
        address = f"ftp://{name}:{target.port}"
        with self._lock:
            if address not in self._places:
                self._places[address] = Place(target.name, target.port, Host(address, self._settings))
            return self._places[address]


class _Transfer:
    """One file, or a range of it, on its way into a sink; what the sink took is never asked for again."""

    def __init__(
        self,
        target: Target,
        *,
        start: int,
        stop: int | None,
        sink: Sink,
        on_bytes: OnBytes | None,
        settings: Settings,
        interrupt: Interrupt,
    ) -> None:
        self.target = target
        self.position = start
        self._stop = stop
        self._sink = sink
        self._on_bytes = on_bytes
        self._settings = settings
        self._interrupt = interrupt
        self._version: tuple[int, str | None] | None = None

    def attempt(self, control: Control) -> None:
        size = self._require_same(control)
        stop = size if self._stop is None else self._stop
        if max(self.position, stop) > size:
            raise Malformed(
                f"{self.target.shown} has {size} bytes, but bytes {self.position}-{stop} of it are referred to."
            )
        if self.position == stop:
            return
        try:
            with ftp_errors(self.target.shown):
                data = control.begin(f"RETR {self.target.path}", self.position)
        except NoResume as error:
            raise self._no_resume(error) from None
        with control.place.host.serving():
            self._take(data, stop, size)
        if self.position == stop < size:
            control.is_spent = True  # the rest is on its way
            return
        self._judge(control.ending(), stop)

    def _require_same(self, control: Control) -> int:
        version = (control.size_bytes(self.target), control.modified(self.target))
        if self._version is None:
            self._version = version
        if version != self._version:
            before, now = (f"{size} bytes, changed {when}" for size, when in (self._version, version))
            raise Mismatch(
                f"{self.target.shown} changed while it was read: it was of {before}, now it is of {now}; look at what "
                "its publisher replaced before reading on."
            )
        return version[0]

    def _take(self, data: socket.socket, stop: int, size: int) -> None:
        """Gives what comes to the sink, up to `stop` or the end of the connection."""
        view = memoryview(bytearray(BLOCK_BYTES))
        window_bytes, window_seconds = 0, 0.0
        while self.position < stop:
            begun = time.monotonic()
            with ftp_errors(self.target.shown):
                count = data.recv_into(view)
            window_seconds += time.monotonic() - begun  # a slow sink is not the server's fault
            window_bytes += count
            self._interrupt.check()
            if not count:
                return
            if self.position + count > size:
                raise self._too_much(size)
            block = view[: min(count, stop - self.position)]
            self._sink(block)
            self.position += len(block)
            if self._on_bytes is not None:
                self._on_bytes(len(block))
            if window_seconds >= self._settings.read_seconds:
                if window_bytes < self._settings.min_bytes_per_second * window_seconds:
                    raise Passing(f"only {window_bytes} bytes came in {window_seconds:.0f} s")
                window_bytes, window_seconds = 0, 0.0
        if stop == size and _any_left(data, min(ENDING_SECONDS, self._settings.read_seconds)):
            raise self._too_much(size)

    def _judge(self, said: str | None, stop: int) -> None:
        """Raises Passing if bytes are missing. If none is, whatever the server said or did not say changes nothing."""
        if self.position == stop:
            return
        if said is not None and said.startswith("2"):
            sentence = f"{self.target.shown} has {stop} bytes, but its server sends {self.position} and says it is done"
            raise Passing("ended early", odd=Malformed(f"{sentence}; ask its publisher, or try again later."))
        answer = f" ({plain(said)})" if said else ""
        raise Passing(f"the connection ended after {self.position} of {stop} bytes{answer}")

    def _too_much(self, size: int) -> Mismatch:
        return Mismatch(
            f"{self.target.shown} sent more than its {size} bytes; it grows, or its server is faulty: try again later."
        )

    def _no_resume(self, error: NoResume) -> NoResume:
        return NoResume(
            f"{self.target.shown} cannot be read from byte {self.position} on: its server does not resume ({error}); "
            "read it again from the beginning."
        )


def _any_left(data: socket.socket, seconds: float) -> bool:
    """Whether more follows when everything is here. A connection that breaks or never ends now does no harm."""
    try:
        data.settimeout(seconds)
        return bool(data.recv(1))
    except OSError:
        return False
