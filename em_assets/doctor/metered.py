"""An HTTP client that counts what it receives, stops at a budget, and remembers what servers said in headers."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from urllib3.response import BaseHTTPResponse

from em_assets.doctor.report import BudgetSpent
from em_assets.errors import Malformed
from em_assets.fetch.hosts import Host
from em_assets.fetch.http import HttpClient, Interrupt, OnBytes, Reply, safe_url
from em_assets.fetch.replies import DRAIN_BYTES
from em_assets.progress import human_bytes
from em_assets.settings import Settings

TOLD_HEADERS = ("ETag", "Last-Modified", "Content-Type", "Content-Encoding", "Accept-Ranges", "Server", "Date")


class MeteredClient(HttpClient):
    """Every reply through it counts. Raises BudgetSpent for what would exceed the budget."""

    def __init__(self, settings: Settings, budget_bytes: int) -> None:
        super().__init__(settings)
        self.budget_bytes = budget_bytes
        self.received_bytes = 0
        """Of bodies, as they came over the network; those of refusals as far as they are read."""
        self.requests = 0
        self.spent: set[str] = set()
        """Every sentence that said that the budget is used up, for those to whom others repeat it."""
        self._counting = threading.Lock()
        self._headers: dict[str, dict[str, str]] = {}

    def headers_of(self, url: str) -> dict[str, str]:
        """What the last reply from this address said; empty if none came."""
        return self._headers.get(safe_url(url), {})

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
        left = self._require_left(url, 1)
        try:
            return super().get(
                url,
                max_bytes=min(max_bytes, left),
                accept_gzip=accept_gzip,
                accept_page=accept_page,
                headers=headers,
                on_bytes=self._counter(url, on_bytes),
                interrupt=interrupt,
            )
        except Malformed:
            if left < max_bytes and self._left() <= 0:
                raise self._spent(url) from None
            raise

    def post_query(
        self,
        url: str,
        query: bytes,
        *,
        max_bytes: int,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        left = self._require_left(url, 1)
        counter = self._counter(url, on_bytes)
        return super().post_query(url, query, max_bytes=min(max_bytes, left), on_bytes=counter, interrupt=interrupt)

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
        self._require_left(url, stop - start)
        return super().get_range(
            url, start, stop, expect_etag=expect_etag, on_bytes=self._counter(url, on_bytes), interrupt=interrupt
        )

    def _exchange(self, host: Host, url: str, headers: dict[str, str], query: bytes | None) -> BaseHTTPResponse:
        response = super()._exchange(host, url, headers, query)
        told = {name: value for name in TOLD_HEADERS if (value := response.headers.get(name))}
        refusal = (
            response.headers.get("Content-Length", "") if response.status >= 400 and response.status != 416 else ""
        )
        with self._counting:
            self.requests += 1
            self._headers[safe_url(url)] = told
            self.received_bytes += min(int(refusal), DRAIN_BYTES) if refusal.isdecimal() else 0
        return response

    def _counter(self, url: str, on_bytes: OnBytes | None) -> OnBytes:
        def count(size: int) -> None:
            with self._counting:
                self.received_bytes += size
            if on_bytes is not None:
                on_bytes(size)
            if self._left() < 0:
                raise self._spent(url)

        return count

    def _left(self) -> int:
        with self._counting:
            return self.budget_bytes - self.received_bytes

    def _require_left(self, url: str, wanted: int) -> int:
        left = self._left()
        if left < wanted:
            raise self._spent(url)
        return left

    def _spent(self, url: str) -> BudgetSpent:
        error = BudgetSpent(
            f"{safe_url(url)} was not read: the {human_bytes(self.budget_bytes)} that the doctor may receive are used "
            "up; name fewer datasets."
        )
        with self._counting:
            self.spent.add(str(error))
        return error
