"""Points of annotations as tables: `points/<name>.parquet`, made of the files that are kept below `documents/`.

A file that cannot be had, or does not list points, stops nothing: what is wrong is said in its place.
"""

from __future__ import annotations

import hashlib
from typing import Any

from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError
from em_assets.pipeline.locking import Log
from em_assets.records import DatasetFolder
from em_assets.sources.points import encode_points, is_made_of, points_path, raw_points_path

POINTS_NOTE = "points"
"""Key of the record's additional metadata."""


def write_points(spec: DatasetSpec, folder: DatasetFolder, log: Log) -> dict[str, dict[str, Any]]:
    """Makes the tables that are not there or made of another file. Returns what there is of each of the spec's points.

    `points` is their number, `path` where the table lies; or `problem` says why there is none.
    """
    return {name: _write(spec, folder, name, log) for name in spec.points}


def _write(spec: DatasetSpec, folder: DatasetFolder, name: str, log: Log) -> dict[str, Any]:
    points, path = spec.points[name], points_path(name)
    raw_path = raw_points_path(name, points)
    try:
        raw = folder.read(raw_path)
    except FileNotFoundError:
        folder.store.delete(folder.path(path))
        return {"problem": f"{raw_path} is not here", "url": points.url}
    sha256 = hashlib.sha256(raw).hexdigest()
    encoded = _read(folder, path)
    if encoded is None or not is_made_of(encoded, name, points, sha256):
        try:
            receipt = folder.read_document_receipt(raw_path)
            url = points.url if receipt is None else receipt.url
            encoded = encode_points(name, points, raw, folder.uri(raw_path), url, sha256=sha256)
        except EmAssetsError as error:
            log(f"{spec.name}: points {name} are left out: {error}")
            folder.store.delete(folder.path(path))
            return {"problem": str(error), "url": points.url}
        folder.write(path, encoded)
    return {"points": _rows(encoded), "path": path, "url": points.url}


def _read(folder: DatasetFolder, path: str) -> bytes | None:
    try:
        return folder.read(path)
    except FileNotFoundError:
        return None


def _rows(encoded: bytes) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return int(pq.read_metadata(pa.BufferReader(encoded)).num_rows)
