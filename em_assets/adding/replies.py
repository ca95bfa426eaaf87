"""A publisher's documents about a dataset, asked for, checked and parsed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_assets.datasets.source import Document
from em_assets.errors import Unavailable
from em_assets.fetch.http import HttpClient
from em_assets.formats._json import parse_json
from em_assets.sources.claims import document_path
from em_assets.sources.documents import fetch_documents


def ask(documents: Sequence[Document], client: HttpClient) -> tuple[dict[str, Any], list[str]]:
    """(the replies by name, why others are not there). Raises Unavailable without the first, which is the main one."""
    raw, reasons = fetch_documents(None, client, documents)  # type: ignore[arg-type]  # the spec only names documents
    main = document_path(documents[0].path)
    if main in reasons:
        raise Unavailable(reasons[main])
    replies = {
        document.path: parse_json(raw[document_path(document.path)], document.url)
        for document in documents
        if document_path(document.path) in raw
    }
    return replies, list(reasons.values())


def as_spec(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """For the spec, so that what was asked now is asked again when the dataset is fetched."""
    return [document.model_dump(exclude_defaults=True, mode="json") for document in documents]
