"""Trying again: what may pass, how often and how long it is tried; one loop for every way to bytes.

What counts as a failed attempt is for HTTP (`replies.py`), FTP (`ftp.py`) and S3 (`s3_copy.py`) to say: they raise
Passing. What all requests to one host share is in `hosts.py`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from em_assets.errors import EmAssetsError, Unavailable
from em_assets.fetch.hosts import Host, Interrupt
from em_assets.settings import Settings

BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
ODD_REPLIES = 3
"""So many replies that contradict the request are taken for a passing fault of one machine behind the address."""

R = TypeVar("R")

log = logging.getLogger(__name__)


class Passing(Exception):
    """What may be gone at the next attempt."""

    def __init__(
        self, reason: str, *, silent: bool = False, retry_after: float | None = None, odd: EmAssetsError | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.silent = silent
        """No reply began."""
        self.retry_after = retry_after
        """Seconds that the server asked to wait."""
        self.odd = odd
        """Raised instead, if it happens again and again: the reply contradicted the request."""


def persist(
    attempt: Callable[[], R],
    *,
    host: Host,
    shown: str,
    settings: Settings,
    interrupt: Interrupt,
    received: Callable[[], int] = lambda: 0,
) -> R:
    """What `attempt` returns, tried again, in the host's turn, as long as it raises Passing and there is hope.

    `received` counts bytes that need not be asked for again: where they come, hope is renewed. `shown` names what is
    asked for. Raises what the attempt raises otherwise, HostUnreachable, and Unavailable when there is no more time.
    """
    patience = Patience(settings)
    attempts = fruitless = odd = 0
    while True:
        had = received()
        attempts += 1
        try:
            with host.turn(interrupt) as waited_seconds:
                patience.extend(waited_seconds)
                return attempt()
        except Passing as passing:
            interrupt.check()  # what was cut on purpose looks broken
            odd += passing.odd is not None
            if passing.odd is not None and odd >= ODD_REPLIES:
                raise passing.odd from None
            fruitless = 1 if received() > had else fruitless + 1
            # A silent host is given up for all its requests at once, whenever each of them began.
            left = host.seconds_left() if passing.silent else patience.seconds_left(received())
            if left <= 0 and not passing.silent:
                took = settings.retry_seconds
                raise Unavailable(
                    f"{shown}: {passing.reason} ({attempts} attempts in {took:g} s); try again later."
                ) from None
            if passing.retry_after is not None:
                host.pause(min(passing.retry_after, left), passing.reason)
            wait = min(jitter(fruitless), left)
            log.info("%s: %s; trying again in %.1f s", shown, passing.reason, wait)
            interrupt.wait(wait)


class Patience:
    """How long a request is still tried: `retry_seconds` from when it last kept the minimum speed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._since = time.monotonic()
        self._had_bytes = 0

    def extend(self, seconds: float) -> None:
        """Waiting for one's turn is not the server's fault."""
        self._since += seconds

    def seconds_left(self, received_bytes: int) -> float:
        now = time.monotonic()
        fresh = received_bytes - self._had_bytes
        if fresh > 0 and fresh >= self._settings.min_bytes_per_second * (now - self._since):
            self._since, self._had_bytes = now, received_bytes
        return self._settings.retry_seconds - (now - self._since)


def jitter(fruitless: int) -> float:
    """Seconds to wait after so many attempts without a byte.

    The jitter is full: clients that failed together do not come back together.
    """
    return random.uniform(0, min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2.0 ** min(fruitless, 10)))  # noqa: S311  # not a secret
