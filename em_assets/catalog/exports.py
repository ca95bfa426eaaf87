"""The catalogue as files for other programs: CSV, JSON, Parquet, DataFrames, and dated accounts of what was there.

What leaves here names no e-mail address and no path of this machine: `public` answers are cleaned, `summary.py`,
`crate.py` and `cite.py` use them too. A file whose content stays the same is not written again.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_assets.catalog.query import Table, frame, query
from em_assets.catalog.record_schema import record_schema
from em_assets.catalog.render import render
from em_assets.catalog.schema import DATASETS, DERIVED, TABLES, arrow_table
from em_assets.sources import personal
from em_assets.store import Store

if TYPE_CHECKING:
    import pandas as pd

FOLDERS = "home|Users|root|tmp|var|private|mnt|media|srv|opt|scratch|groups|nrs|work|Volumes"
LOCAL_PATH = re.compile(
    r"file:/\S+"
    r"|(?<![A-Za-z])[A-Za-z]:[\\/](?!/)[^\s\"'<>|]+"  # C:\Users, not http://
    r"|(?<!\\)\\\\[\w.-]+\\[^\s\"'<>|]+"
    rf"|(?<![\w./:~-])(?:~|/(?:{FOLDERS}))/[^\s\"'<>|]+"
)
ABSOLUTE_PATH = re.compile(r"(?<![\w./:~-])/[\w.-]+/[^\s\"'<>|,;)]+")
"""Publishers write such paths too, of their own servers: only in our own sentences they must be this machine's."""
NO_PATH, NO_ADDRESS, LEFT_OUT = "(local path left out)", "(e-mail address left out)", "(left out)"
OUR_OWN = frozenset({"status_reason"})
CATALOGS = "catalogs"
STEM = f"{CATALOGS}/metadata_catalog_"
STAMP = "%Y%m%dT%H%M%S.%fZ"
KEPT = 50
"""Dated catalogues that stay."""
TIME = "generated_at"


@dataclass(frozen=True, slots=True)
class Export:
    """A file that was made of the catalogue."""

    path: str
    """Below the store's root."""
    changed: bool
    """Whether it is another than before; if not, it was left as it was."""


def write_exports(database: Path, store: Store, *, now: datetime | None = None) -> list[Export]:
    """Writes metadata.csv, .json, .parquet, their JSON Schema, and a dated catalogue if something is new.

    Raises Unavailable if the database or the store cannot be used; each file is the old or the new one, never a part.
    """
    table = public_datasets(database, store)
    return [
        write_if_changed(store, "metadata.csv", render(table, format="csv").encode()),
        write_if_changed(store, "metadata.json", render(table, format="json").encode()),
        write_if_changed(store, "metadata.parquet", _parquet(table)),
        write_if_changed(store, "metadata.schema.json", as_json(record_schema())),
        _write_dated(_account(database, table), store, now or datetime.now(UTC)),
    ]


def frames(database: Path) -> dict[str, pd.DataFrame]:
    """Every table and view of the catalogue as a pandas DataFrame, by name; nothing is left out of them."""
    names = [*(table.name for table in TABLES), *(relation.name for relation, _ in DERIVED)]
    return {name: frame(database, f"from {name}") for name in names}


def write_if_changed(store: Store, path: str, data: bytes) -> Export:
    """Puts a file in place unless it is there with this content."""
    with contextlib.suppress(FileNotFoundError):
        if store.read(path) == data:
            return Export(path, changed=False)
    store.write(path, data)
    return Export(path, changed=True)


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n"


# What may leave.


def public_rows(database: Path, sql: str, store: Store | None = None) -> list[dict[str, Any]]:
    """An answer without e-mail addresses and local paths: a dict for each row, JSON parsed, times in UTC."""
    return as_rows(_cleaned(query(database, sql), store))


def as_rows(table: Table) -> list[dict[str, Any]]:
    """A dict for each row, JSON parsed."""
    return [
        {
            column: json.loads(value) if kind == "JSON" and value is not None else value
            for column, kind, value in zip(table.columns, table.types, row, strict=True)
        }
        for row in table.rows
    ]


def public_datasets(database: Path, store: Store | None = None) -> Table:
    """The table `datasets` in the order of names: without values whose claim is personal, with paths from the root."""
    found = query(database, "from datasets order by name")
    personal = set(
        query(database, "select name, field from statements where chosen and personal and volume is null").rows
    )
    rows = []
    for values in found.rows:
        row = dict(zip(found.columns, values, strict=True))
        row |= {column: None for name, column in personal if name == row["name"] and column in row}
        if row["local_paths"] is not None:
            row["local_paths"] = json.dumps(_relative(json.loads(row["local_paths"]), row["name"], store))
        rows.append(tuple(row.values()))
    return _cleaned(Table(found.columns, found.types, rows), store)


def _relative(paths: Mapping[str, str], name: str, store: Store | None) -> dict[str, str]:
    """Below the store's root, also where the store was moved since; what lies elsewhere is left out."""
    root = store.uri("").rstrip("/") + "/" if store is not None else None
    relative = {}
    for what, path in paths.items():
        _, found, below = path.rpartition(f"/{name}/")
        if root is not None and path.startswith(root):
            relative[what] = path.removeprefix(root)
        elif found:
            relative[what] = f"{name}/{below}"
    return relative


def _cleaned(table: Table, store: Store | None) -> Table:
    root = _root_pattern(store)
    rows = [
        tuple(
            _clean_json(value, root) if kind == "JSON" else _clean(value, root, ours=column in OUR_OWN)
            for column, kind, value in zip(table.columns, table.types, row, strict=True)
        )
        for row in table.rows
    ]
    return Table(table.columns, table.types, rows)


def _clean_json(value: str | None, root: re.Pattern[str] | None) -> str | None:
    return None if value is None else json.dumps(_clean(json.loads(value), root), ensure_ascii=False)


def _clean(value: Any, root: re.Pattern[str] | None, *, ours: bool = False) -> Any:
    if isinstance(value, str):
        return without_personal(value, root, ours=ours)
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC)  # the tables' times are in UTC, without saying so
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {without_personal(key, root): _clean(item, root) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, root) for item in value]
    return value


def without_personal(text: str, root: re.Pattern[str] | None = None, *, ours: bool = False) -> str:
    """The text with paths below the store's root made relative, other local paths and e-mail addresses left out."""
    if root is not None:
        text = root.sub("", text)
    text = LOCAL_PATH.sub(NO_PATH, text)
    if ours:
        text = ABSOLUTE_PATH.sub(NO_PATH, text)
    for pattern in (personal.ADDRESS, personal.WRITTEN_OUT):
        text = pattern.sub(NO_ADDRESS, text)
    marks = personal.marks("", text) or ""
    return LEFT_OUT if personal.EMAIL in marks or personal.LOCAL_PATH in marks else text


def _root_pattern(store: Store | None) -> re.Pattern[str] | None:
    root = store.uri("").rstrip("/") if store is not None else ""
    return re.compile(rf"(?<![\w./:-]){re.escape(root)}(?:/|(?![\w.-]))") if root else None


# The files.


def _parquet(table: Table) -> bytes:
    """Columns with their comments; nested values as in the database."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = arrow_table(DATASETS, [dict(zip(table.columns, row, strict=True)) for row in table.rows])
    fields = [
        pa.field(
            column.name,
            pa.timestamp("us", tz="UTC") if column.type == "TIMESTAMP" else lines.schema.field(column.name).type,
            metadata={"comment": column.comment},
        )
        for column in DATASETS.columns
    ]
    buffer = io.BytesIO()
    pq.write_table(lines.cast(pa.schema(fields)), buffer, compression="zstd")
    return buffer.getvalue()


def _account(database: Path, datasets: Table) -> dict[str, Any]:
    """How many datasets are in which state, and which keys each publisher's documents have."""
    rows = [dict(zip(datasets.columns, row, strict=True)) for row in datasets.rows]
    told = ("name", "source", "status", "status_reason", "partitions", "partitions_stored", "file_size_bytes")
    statuses = [row["status"] for row in rows]
    fields = public_rows(database, "select field, datasets, share from field_presence order by field")
    return {
        "datasets": len(rows),
        "status": {status: statuses.count(status) for status in sorted(set(statuses))},
        "records": [{key: row[key] for key in (*told, "sha256", "conflicts")} for row in rows],
        "fields": {row["field"]: {"datasets": row["datasets"], "share": row["share"]} for row in fields},
        "sources": _keys_by_source(public_rows(database, "from key_presence order by source, extractor, key")),
    }


def _keys_by_source(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Publisher, then kind of document: how many there are, and the share of them that has each key."""
    sources: dict[str, Any] = {}
    for row in rows:
        kinds = sources.setdefault(row["source"] or "", {})
        kind = kinds.setdefault(row["extractor"] or "", {"documents": 0, "keys": {}})
        kind["documents"] = max(kind["documents"], row["documents"] or 0)
        kind["keys"][row["key"]] = row["share"]
    return sources


def _write_dated(account: dict[str, Any], store: Store, now: datetime) -> Export:
    """A new one only if it says something new. What is older than the newest `KEPT` is removed."""
    names = sorted(path for path, _ in store.list(CATALOGS) if path.startswith(STEM) and path.endswith(".json"))
    if names and _without_time(store.read(names[-1])) == json.loads(as_json(account)):
        return Export(names[-1], changed=False)
    path = f"{STEM}{now.astimezone(UTC).strftime(STAMP)}.json"
    store.write(path, as_json({TIME: now.astimezone(UTC).isoformat(), **account}))
    for old in sorted({*names, path})[:-KEPT]:
        store.delete(old)
    return Export(path, changed=True)


def _without_time(raw: bytes) -> Any:
    """What a dated catalogue says; None if it is damaged."""
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    return {key: value for key, value in found.items() if key != TIME} if isinstance(found, dict) else None
