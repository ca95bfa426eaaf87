"""Counts of what a service does, as Prometheus reads them (text format 0.0.4), and the middleware that counts."""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
METHODS = ("GET", "HEAD", "OPTIONS")
ROUTE = "em_assets.route"
"""Key of the request's scope under which a route tells its name."""
UNKNOWN = "other"


class Metrics:
    """Belongs to one event loop: nothing is locked."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.voxels = 0
        """Of the blocks that were read, real or not."""
        self.refused = 0
        """Blocks that were asked for when too much was under way."""
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._bytes: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._slots: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS_SECONDS) + 1))

    def note(self, route: str, method: str, status: int, size_bytes: int, seconds: float) -> None:
        """One request that has been answered."""
        self._requests[route, method if method in METHODS else UNKNOWN, str(status)] += 1
        self._bytes[route] += size_bytes
        self._seconds[route] += seconds
        self._slots[route][bisect_left(BUCKETS_SECONDS, seconds)] += 1

    def text(self, gauges: dict[str, tuple[str, int]]) -> str:
        """All of it; `gauges` are further names, with what they mean and their value now."""
        name = "em_assets_http_requests_total"
        lines = [*_head(name, "counter", "Requests answered, by route, method and status.")]
        for (route, method, status), count in sorted(self._requests.items()):
            lines.append(f'{name}{{route="{route}",method="{method}",status="{status}"}} {count}')
        name = "em_assets_http_response_bytes_total"
        lines += [*_head(name, "counter", "Bytes of the bodies sent, as coded.")]
        lines += [f'{name}{{route="{route}"}} {count}' for route, count in sorted(self._bytes.items())]
        name = "em_assets_http_request_seconds"
        lines += [*_head(name, "histogram", "Seconds from a request to the last byte of its answer.")]
        for route, slots in sorted(self._slots.items()):
            labels = [*map(str, BUCKETS_SECONDS), "+Inf"]
            for label, count in zip(labels, itertools.accumulate(slots), strict=True):
                lines.append(f'{name}_bucket{{route="{route}",le="{label}"}} {count}')
            lines.append(f'{name}_sum{{route="{route}"}} {self._seconds[route]:.6f}')
            lines.append(f'{name}_count{{route="{route}"}} {sum(slots)}')
        name = "em_assets_block_voxels_total"
        lines += [*_head(name, "counter", "Voxels of the blocks read."), f"{name} {self.voxels}"]
        name = "em_assets_blocks_refused_total"
        lines += [*_head(name, "counter", "Blocks not read: too much was under way."), f"{name} {self.refused}"]
        shown = {"em_assets_http_requests_in_flight": ("Requests under way.", self.in_flight), **gauges}
        for name, (meaning, value) in shown.items():
            lines += [*_head(name, "gauge", meaning), f"{name} {value}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, meaning: str) -> Iterable[str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


class Counted:
    """Middleware that notes every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, size_bytes, started = 500, 0, time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status, size_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                size_bytes += len(message.get("body", b""))
            await send(message)

        self.metrics.in_flight += 1
        try:
            await self.app(scope, receive, noting)
        finally:
            self.metrics.in_flight -= 1
            seconds = time.monotonic() - started
            self.metrics.note(scope.get(ROUTE, UNKNOWN), scope["method"], status, size_bytes, seconds)
