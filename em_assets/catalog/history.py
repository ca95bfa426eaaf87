"""What happened to one dataset, as the store keeps it: results of checks, runs, documents. Reads, never writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from em_assets.catalog.found import Row, read_each
from em_assets.fetch.receipts import RECEIPT_SUFFIX
from em_assets.records import DOCUMENTS_MISSING, DatasetFolder, DatasetRecord

if TYPE_CHECKING:
    import pyarrow as pa

MAX_TEXT_BYTES = 2**20
"""Larger documents lie in the store; the catalogue says where."""


def check_rows(folder: DatasetFolder, paths: Iterable[str], damage: list[str]) -> list[Row]:
    """Of the table `checks`; what is no result of a check is noted as damage."""
    return list(_of_json(folder, paths, "checks/", _check, damage))


def run_rows(folder: DatasetFolder, paths: Iterable[str], damage: list[str]) -> list[Row]:
    """Of the table `runs`, likewise."""
    return list(_of_json(folder, paths, "runs/", _run, damage))


def _of_json(
    folder: DatasetFolder,
    paths: Iterable[str],
    prefix: str,
    row: Callable[[dict[str, Any]], Row],
    damage: list[str],
) -> Iterator[Row]:
    wanted = sorted(path for path in paths if path.startswith(prefix) and path.endswith(".json"))
    for path, raw in zip(wanted, read_each(folder, wanted), strict=True):
        if raw is None:  # removed since it was listed
            continue
        try:
            yield {"name": folder.name, **row(json.loads(raw))}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            damage.append(f"{folder.uri(path)} cannot be read ({error}); remove it and check the dataset again.")


def _check(kept: dict[str, Any]) -> Row:
    return {
        "check_name": kept["check"],
        "passed": kept["passed"],
        "blocking": kept["blocking"],
        "message": kept["message"],
        "expected": json.dumps(kept["expected"]),
        "found": json.dumps(kept["found"]),
        "checked_at": _utc(kept["checked_at"]),
    }


def _run(kept: dict[str, Any]) -> Row:
    return {
        "run_id": kept["id"],
        "started_at": _utc(kept["started"]),
        "ended_at": _utc(kept["ended"]),
        "outcome": kept["outcome"],
        "reason": kept["reason"],
        "received_bytes": kept["received_bytes"],
        "seconds": kept["seconds"],
        "failed_partitions": json.dumps(kept["failed_partitions"]),
    }


def _utc(text: str) -> datetime:
    """As the tables have times: UTC, without saying so."""
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)


def document_rows(
    folder: DatasetFolder, sizes: Mapping[str, int], claims: pa.Table, missing: Mapping[str, str]
) -> list[Row]:
    """Of the table `documents`; `missing` are those that could not be had, with the reason."""
    kinds = dict(zip(claims["document"].to_pylist(), claims["extractor"].to_pylist(), strict=True))
    paths = [path for path in sorted(sizes) if path.startswith("documents/") and not path.endswith(RECEIPT_SUFFIX)]
    rows = [
        {"name": folder.name, "path": path, "kind": kinds.get(path), **_content(raw), **_origin(folder, path)}
        for path, raw in zip(paths, read_each(folder, paths), strict=True)
        if raw is not None
    ]
    absent = [
        {"name": folder.name, "path": path, "problem": reason}
        for path, reason in sorted(missing.items())
        if path not in sizes
    ]
    return rows + absent


def _content(raw: bytes) -> Row:
    text = None
    if len(raw) <= MAX_TEXT_BYTES:
        with contextlib.suppress(UnicodeDecodeError):
            text = raw.decode()
    return {"size_bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "text": text}


def _origin(folder: DatasetFolder, path: str) -> Row:
    receipt = folder.read_document_receipt(path)
    if receipt is None:  # kept by an earlier version
        return {}
    return {"source_url": receipt.url, "retrieved_at": receipt.retrieved_at.astimezone(UTC).replace(tzinfo=None)}


def missing_documents(folder: DatasetFolder, record: DatasetRecord | None, sizes: Mapping[str, int]) -> dict[str, str]:
    """Documents that could not be had, with the reason: when they were last asked for, or when the volume was made."""
    noted = record.additional_metadata.get("documents_missing") if record is not None else None
    missing: Any = noted if isinstance(noted, dict) else {}
    if DOCUMENTS_MISSING in sizes:
        with contextlib.suppress(FileNotFoundError, ValueError):
            missing = json.loads(folder.read(DOCUMENTS_MISSING))
    if not isinstance(missing, dict):
        return {}
    return {str(path): str(reason) for path, reason in missing.items()}
