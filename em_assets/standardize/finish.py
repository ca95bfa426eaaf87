"""What is written beside a finished volume: the manifest (every object) and the coverage (every real voxel).

`manifest.parquet`, one row per object of the volume, in path order:

    path         relative to the dataset's folder
    level, key   the level and the shard's key, or null and the file's partition key; key is null for a `zarr.json`,
                 both for the group's
    size_bytes, sha256
    source_url   where the voxels came from; null above level 0 and for a `zarr.json`
    written_at   UTC
    tool         the versions that wrote it; null for a `zarr.json`

`coverage.parquet`, one row per inner chunk of level 0, in z, y, x order, so that one row answers for its voxels:

    key                      the shard's partition key
    z0, y0, x0, z1, y1, x1   the chunk's box, half open, in voxels of the stored volume
    voxels, present_voxels   how many it has, and how many of them the publisher has
    present_fraction         their ratio
    missing                  the exact boxes within the chunk that the publisher does not have, as structs of
                             z0 ... x1 likewise; they do not overlap; empty where all is real
    filled                   likewise those that the publisher does not have and that count as real all the same, as
                             its format's fill value, because the spec says `missing: fill`

A voxel is real if and only if no box of its chunk's `missing` holds it. The file's schema metadata has the same for
the whole (`em_assets`: JSON with identity, shape, chunk, voxels, present_voxels, filled_voxels).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from em_assets.datasets.spec import Layout
from em_assets.records import DatasetFolder, PartitionRecord, StoredObject, manifest_digest, now
from em_assets.volume import Box

if TYPE_CHECKING:
    import pyarrow as pa

CORNERS = ("z0", "y0", "x0", "z1", "y1", "x1")


@dataclass(frozen=True, slots=True)
class Manifest:
    """All objects of a volume, and what they are together."""

    objects: tuple[StoredObject, ...]
    """In path order."""
    sha256: str
    """The dataset's: `records.manifest_digest`."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Original:
    """Something that is kept as it was received."""

    stored: StoredObject
    key: str
    """Of its partition."""
    url: str
    received_at: datetime


def write_manifest(
    folder: DatasetFolder,
    records: Sequence[PartitionRecord],
    metadata: Sequence[StoredObject],
    originals: Sequence[Original] = (),
) -> Manifest:
    """Writes `manifest.parquet` from the records of all levels, the `zarr.json` objects, and what was
    received and is kept.
    """
    import pyarrow as pa

    rows = [_shard_row(record, stored) for record in records for stored in record.objects]
    rows += [_document_row(stored, now()) for stored in metadata]
    rows += [_original_row(original) for original in originals]
    rows.sort(key=lambda row: row["path"])
    columns: list[tuple[str, pa.DataType]] = [
        ("path", pa.string()),
        ("level", pa.int32()),
        ("key", pa.string()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("source_url", pa.string()),
        ("written_at", pa.timestamp("us", tz="UTC")),
        ("tool", pa.string()),
    ]
    folder.write("manifest.parquet", _parquet(pa.Table.from_pylist(rows, schema=pa.schema(columns))))
    objects = tuple(StoredObject(path=row["path"], size_bytes=row["size_bytes"], sha256=row["sha256"]) for row in rows)
    return Manifest(objects, manifest_digest(objects), sum(stored.size_bytes for stored in objects))


def _shard_row(record: PartitionRecord, stored: StoredObject) -> dict[str, Any]:
    return {
        **stored.model_dump(),
        "level": record.level,
        "key": record.key,
        "source_url": record.source_url,
        "written_at": record.written_at,
        "tool": record.tool,
    }


def _original_row(original: Original) -> dict[str, Any]:
    return {
        **original.stored.model_dump(),
        "level": None,
        "key": original.key,
        "source_url": original.url,
        "written_at": original.received_at,
        "tool": None,
    }


def _document_row(stored: StoredObject, written_at: datetime) -> dict[str, Any]:
    folder, _, name = stored.path.rpartition("/")
    level = folder.rpartition("/")[2] if name == "zarr.json" else ""
    return {
        **stored.model_dump(),
        "level": int(level) if level.isdecimal() else None,
        "key": None,
        "source_url": None,
        "written_at": written_at,
        "tool": None,
    }


def write_coverage(folder: DatasetFolder, spec: Layout, level0: Iterable[PartitionRecord]) -> StoredObject:
    """Writes the volume's `coverage.parquet` from the records of level 0. Equal records give equal bytes."""
    import pyarrow as pa

    coordinate = pa.int64()
    boxes = pa.list_(pa.struct([(corner, coordinate) for corner in CORNERS]))
    columns: list[tuple[str, pa.DataType]] = [
        ("key", pa.string()),
        *((corner, coordinate) for corner in CORNERS),
        ("voxels", coordinate),
        ("present_voxels", coordinate),
        ("present_fraction", pa.float64()),
        ("missing", boxes),
        ("filled", boxes),
    ]
    schema = pa.schema(columns)
    records = list(level0)
    tables = [_coverage_of(record, spec, schema) for record in records]
    filled = sum(box.voxels for record in records for box in record.filled)
    table = pa.concat_tables([schema.empty_table(), *tables])
    table = table.sort_by([(corner, "ascending") for corner in CORNERS[:3]])
    voxels, present = (int(table[name].to_numpy().sum()) for name in ("voxels", "present_voxels"))
    summary = {
        "identity": spec.identity(),
        "shape": list(spec.shape),
        "chunk": list(spec.output.chunk),
        "voxels": voxels,
        "present_voxels": present,
        "filled_voxels": filled,
    }
    table = table.replace_schema_metadata({"em_assets": json.dumps(summary)})
    return folder.write(folder.coverage, _parquet(table))


def _coverage_of(record: PartitionRecord, spec: Layout, schema: pa.Schema) -> pa.Table:
    """The rows of one shard's inner chunks."""
    import pyarrow as pa

    corners = _chunk_corners(record.box, spec)
    voxels = np.prod(corners[:, 3:] - corners[:, :3], axis=1)
    missing, filled = _within(record.missing, corners), _within(record.filled, corners)
    absent = np.array([int(np.prod(part[:, 3:] - part[:, :3], axis=1).sum()) for part in missing], np.int64)
    columns = [
        pa.array([record.key] * len(corners)),
        *(pa.array(column) for column in corners.T),
        pa.array(voxels),
        pa.array(voxels - absent),
        pa.array((voxels - absent) / voxels),
        _box_lists(missing),
        _box_lists(filled),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _within(boxes: Sequence[Box], corners: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The parts of the boxes within each chunk."""
    rows = np.array([[*box.start, *box.stop] for box in boxes], np.int64).reshape(-1, 6)
    return [_inside(chunk, rows) for chunk in corners]


def _box_lists(parts: Sequence[NDArray[np.int64]]) -> pa.ListArray:
    import pyarrow as pa

    flat = np.concatenate(parts)
    structs = pa.StructArray.from_arrays([pa.array(column) for column in flat.T], names=list(CORNERS))
    return pa.ListArray.from_arrays(np.cumsum([0, *(len(part) for part in parts)]).tolist(), structs)


def _chunk_corners(box: Box, spec: Layout) -> NDArray[np.int64]:
    """(chunks, 6): z0, y0, x0, z1, y1, x1 of each inner chunk of a shard; chunks lie on one grid over the volume."""
    starts = [
        np.arange(a, b, c, dtype=np.int64) for a, b, c in zip(box.start, box.stop, spec.output.chunk, strict=True)
    ]
    corner = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.concatenate([corner, np.minimum(corner + spec.output.chunk, box.stop)], axis=1)


def _inside(chunk: NDArray[np.int64], boxes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The parts of the boxes within one chunk; all as rows of z0, y0, x0, z1, y1, x1."""
    starts, stops = np.maximum(boxes[:, :3], chunk[:3]), np.minimum(boxes[:, 3:], chunk[3:])
    return np.concatenate([starts, stops], axis=1)[(starts < stops).all(axis=1)]


def _parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
