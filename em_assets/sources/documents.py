"""A publisher's replies and pages about a dataset: asked for, looked at (`document_kinds.py`), and kept as received.

A document that cannot be had never stops a download: the sentence why is kept in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from em_assets.datasets.source import Document
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError, Malformed, Mismatch
from em_assets.fetch.http import HttpClient, NotThere
from em_assets.sources.claims import document_path
from em_assets.sources.document_kinds import require_document
from em_assets.sources.mrc_header import fetch_mrc_header

MAX_DOCUMENT_BYTES = 16 * 2**20
MAX_POINTS_BYTES = 512 * 2**20
"""A line of an oriented point has about 300 bytes."""
ABSENT_STATUSES = (404, 410)
"""No session makes these documents appear."""
COOKIE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,200})=([!-+\--:<-\[\]-~]{0,4096})")
"""Name and value at the beginning of a Set-Cookie header (RFC 6265, 4.1.1)."""


def fetch_documents(
    spec: DatasetSpec, client: HttpClient, wanted: Sequence[Document] | None = None
) -> tuple[dict[str, bytes], dict[str, str]]:
    """The documents (None: all of the spec) as received, by path below the dataset's folder; and why others are not.

    Each reason is one sentence. A client with little patience (`retry_seconds`) keeps a server that is down from
    holding up a download.
    """
    documents: dict[str, bytes] = {}
    reasons: dict[str, str] = {}
    session = _Session(client)
    for document in spec.all_documents if wanted is None else wanted:
        path = document_path(document.path)
        try:
            raw = session.fetch(document)
            if document.kind == "points":
                from em_assets.sources.points import require_points

                require_points(spec, path, raw, document.url)
            documents[path] = raw
        except EmAssetsError as error:
            reasons[path] = str(error)
    return documents, reasons


class _Session:
    """Cookies that publishers hand out, each sent back to its own server only."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._cookies: dict[str, dict[str, str]] = {}
        """By server, scheme and port included."""
        self._begun: set[tuple[str, ...]] = set()

    def fetch(self, document: Document) -> bytes:
        """The document, believed. Where it is refused at first, it is asked for again after `document.first`."""
        try:
            return self._ask(document)
        except (Malformed, Mismatch) as refusal:  # a login page, 401, 403
            hopeless = isinstance(refusal, NotThere) and refusal.status in ABSENT_STATUSES
            if hopeless or not document.first or document.first in self._begun:
                raise
        self._begin(document.first)
        return self._ask(document)

    def _begin(self, addresses: tuple[str, ...]) -> None:
        self._begun.add(addresses)
        for url in addresses:
            reply = self._client.get(
                url, max_bytes=MAX_DOCUMENT_BYTES, accept_gzip=True, accept_page=True, headers=self._headers(url)
            )
            self._cookies.setdefault(_server(url), {}).update(_cookies(reply.cookies))

    def _ask(self, document: Document) -> bytes:
        if document.kind == "mrc_header":
            raw = fetch_mrc_header(self._client, document.url)
        else:
            reply = self._client.get(
                document.url,
                max_bytes=MAX_POINTS_BYTES if document.kind == "points" else MAX_DOCUMENT_BYTES,
                accept_gzip=True,
                accept_page=document.kind == "html",
                headers=self._headers(document.url),
            )
            raw = bytes(reply.body)
        require_document(document, raw)
        return raw

    def _headers(self, url: str) -> dict[str, str]:
        cookies = self._cookies.get(_server(url))
        return {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())} if cookies else {}


def _server(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _cookies(headers: Iterable[str]) -> dict[str, str]:
    """Name and value of each; one that is not of the form a server may send is left out."""
    found = (COOKIE.match(header.strip()) for header in headers)
    return {match[1]: match[2] for match in found if match is not None}
