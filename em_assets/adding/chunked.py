"""A plain address of a precomputed, Zarr or N5 volume: its metadata say what it is, not who made it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from em_assets.adding.draft import Draft, slug, title
from em_assets.adding.volume import LevelSize, Wishes, know_volume
from em_assets.datasets.source import ChunkedSource
from em_assets.errors import Malformed, Mismatch
from em_assets.fetch.http import HttpClient, safe_url
from em_assets.formats._chunked import ChunkedReader
from em_assets.settings import Settings
from em_assets.sources.chunked import container_url, joined, open_level

NEUROGLANCER_PREFIXES = ("precomputed://", "zarr://", "zarr2://", "zarr3://", "n5://")
ASK = {
    "title": "what this is, in one line",
    "description": "what was imaged, what this volume is of it, and what a user should know",
    "publisher": "a short name of who publishes it",
    "page_url": "the publisher's own page about it; this is where the data lies",
    "license": "the metadata state no licence; look at the publisher's page",
    "citation": "what somebody who uses the data should cite",
    "doi": "of the data or of the paper",
}


def draft_precomputed(url: str, level: int, wishes: Wishes, settings: Settings) -> Draft:
    """Of the volume whose `info` lies below `url` (https, http, gs, s3; `precomputed://` before it is let through)."""
    from em_assets.formats.precomputed import open_precomputed

    address = _https(_plain(url))
    reader = open_precomputed(address, level, HttpClient(settings), settings)
    sizes = [LevelSize(str(number), scale.shape) for number, scale in enumerate(reader.scales)]
    draft = _draft("precomputed", address, address)
    draft.know("source", {"kind": "precomputed", "url": address, "level": level})
    is_labels = dict(reader.tags()).get("/type") == "segmentation"
    wishes = replace(wishes, labels=wishes.labels or is_labels)
    know_volume(draft, f"{address} level {level}", reader.info, wishes, settings, levels=sizes)
    return draft


def draft_chunked(
    kind: Literal["zarr", "n5"],
    url: str,
    wishes: Wishes,
    settings: Settings,
    *,
    group: str = "",
    level: int | str = 0,
    endpoint: str | None = None,
) -> Draft:
    """Of the array or group of levels at `group` in the container (https, http, s3, gs)."""
    source = chunked_source(kind, _plain(url), group, level, endpoint)
    draft = _draft(kind, joined(source.url, source.group), container_url(source))
    know_chunked(draft, source, wishes, settings)
    return draft


def chunked_source(
    kind: Literal["zarr", "n5"], url: str, group: str, level: int | str, endpoint: str | None
) -> ChunkedSource:
    from pydantic import ValidationError

    try:
        return ChunkedSource(kind=kind, url=url, group=group.strip("/"), level=level, endpoint=endpoint)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise Malformed(f"{key} {safe_url(str(first['input']))[:200]!r}: {message}.") from None


def know_chunked(draft: Draft, source: ChunkedSource, wishes: Wishes, settings: Settings) -> ChunkedReader:
    """Fills in the source and all that follows from its metadata."""
    reader = open_level(source, source.group, source.level, HttpClient(settings), settings)
    values: dict[str, Any] = {"kind": source.kind, "url": source.url}
    values |= {"endpoint": source.endpoint} if source.endpoint is not None else {}
    values |= {"group": source.group} if source.group else {}
    draft.know("source", values | {"level": source.level})
    sizes = [LevelSize(str(n), one.shape) for n, one in enumerate(reader.levels) if one.shape is not None]
    where = f"{joined(source.url, source.group)} level {source.level}"
    know_volume(draft, where, reader.info, wishes, settings, levels=sizes)
    draft.found.append(f"levels: {', '.join(one.path or '(one array)' for one in reader.levels)}")
    return reader


def _draft(kind: str, shown: str, page_url: str) -> Draft:
    """All that an address says of who made what it leads to: nothing."""
    parts = urlsplit(shown)
    path = unquote(parts.path).strip("/")
    words = [word for word in path.split("/") if word]
    name = slug("_".join([word.rpartition(".")[0] or word for word in words][-2:]) or parts.netloc)
    draft = Draft(base_name=name)
    draft.miss("title", ASK["title"], title(f"{kind} volume {path or parts.netloc}"))
    draft.miss("description", ASK["description"], f"The {kind} volume at {shown}. What was imaged is not known yet.")
    draft.miss("publisher", ASK["publisher"], slug(parts.netloc))
    draft.know("source_id", path or parts.netloc)
    draft.miss("page_url", ASK["page_url"], page_url)
    draft.miss("license", ASK["license"])
    draft.miss("citation", ASK["citation"])
    draft.take_doi(None, ASK["doi"])
    return draft


def _plain(url: str) -> str:
    """Without what Neuroglancer writes before an address."""
    prefix = next((p for p in NEUROGLANCER_PREFIXES if url.startswith(p)), "")
    return url.removeprefix(prefix).rstrip("/")


def _https(url: str) -> str:
    from em_assets.fetch.s3 import https_url

    scheme = url.partition("://")[0]
    if scheme in ("s3", "gs"):
        return https_url(url)
    if scheme not in ("http", "https"):
        raise Mismatch(f"{url[:200]!r} is no address that can be read; accepted are https, http, gs and s3.")
    return url
