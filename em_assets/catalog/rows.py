"""From specs and the store's own records to the catalogue's rows. Reads, never writes.

What one dataset's records say badly is that dataset's row (`error`, with the reason); it never keeps the others
from being catalogued. Only a store that does not answer at all raises.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from em_assets.catalog.schema import DATASETS, TABLES, arrow_table
from em_assets.catalog.volume_levels import stored_levels
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed, Unavailable
from em_assets.records import VOLUME, DatasetFolder, DatasetRecord, PartitionRecord, Status, is_intact, partition_key
from em_assets.store import Store
from em_assets.volume import Box

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

STRICT_JSON: TypeAdapter[Any] = TypeAdapter(Any, config=ConfigDict(ser_json_inf_nan="null"))
MANIFEST = "manifest.parquet"
S3_READERS = 16
"""Small objects read at once: each costs a round trip."""


@dataclass
class Rows:
    """What goes into the catalogue."""

    datasets: list[Row]
    """The table `datasets`; the keys are its columns, one that is left out is NULL."""
    tables: dict[str, list[pa.Table]]
    """Every table's rows, in pieces."""


@dataclass
class _Findings:
    """What was found of one dataset, before it is turned into rows."""

    name: str
    spec: DatasetSpec | None
    record: DatasetRecord | None
    stored_differs: bool
    """The store holds another volume than the spec now describes."""
    partitions: dict[str, PartitionRecord]
    """Level-0 records whose objects are there, by key."""
    damage: list[str]
    """What could not be read, as sentences."""
    files: list[Row]
    levels: list[Row]

    @property
    def described(self) -> DatasetSpec | None:
        """The spec, if it is what the store holds or the store holds nothing."""
        return None if self.stored_differs else self.spec


def collect_rows(specs: Mapping[str, DatasetSpec], store: Store) -> Rows:
    """A row for every spec and for every dataset in the store whose spec is gone; their files, chunks, levels."""
    rows = Rows(datasets=[], tables={table.name: [] for table in TABLES})
    folders = set(_folders(store))
    for name in sorted({*specs, *folders}):
        if name not in specs and store.size_bytes(f"{name}/metadata.json") is None:
            continue  # somebody else's folder
        found = _examine(name, specs.get(name), store, anything_stored=name in folders)
        dataset, tables = _rows_of_one(found, store)
        rows.datasets.append(dataset)
        for table, lines in tables.items():
            rows.tables[table].append(lines)
    return rows


def _rows_of_one(found: _Findings, store: Store) -> tuple[Row, dict[str, pa.Table]]:
    """Its row of `datasets`, and its rows of every table. What does not fit the tables makes it an error, too."""
    try:
        chunks = _chunk_rows(found)
        dataset = _dataset_row(found, chunks)
        rows = {"datasets": [dataset], "files": found.files, "chunks": chunks, "levels": found.levels}
        return dataset, {table.name: arrow_table(table, rows[table.name]) for table in TABLES}
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        dataset = {
            **(_spec_columns(found.spec) if found.spec is not None else {}),
            "name": found.name,
            "status": "error",
            "status_reason": (
                f"the records in {store.uri(found.name)} hold values that no volume has "
                f"({str(error).splitlines()[0]}); remove them with `em-assets rm {found.name}` and run again."
            ),
        }
        return dataset, {"datasets": arrow_table(DATASETS, [dataset])}


def _folders(store: Store) -> Iterator[str]:
    """The names of the folders at the store's root that a dataset can have."""
    some_file = store.local_path("metadata.json")
    if some_file is None:
        names: Iterable[str] = {path.split("/")[0] for path, _ in store.list("") if "/" in path}
    else:
        names = _local_folders(some_file.parent)
    return (name for name in names if name.isprintable() and not name.startswith("."))


def _local_folders(root: Path) -> list[str]:
    try:
        return [entry.name for entry in root.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return []


def _examine(name: str, spec: DatasetSpec | None, store: Store, *, anything_stored: bool) -> _Findings:
    folder = DatasetFolder(store, name)
    found = _Findings(name, spec, None, stored_differs=False, partitions={}, damage=[], files=[], levels=[])
    if anything_stored:
        try:
            _examine_store(found, folder)
        except Unavailable as problem:
            if not _is_local(store):
                raise
            found.damage.append(str(problem))  # a folder's permissions, say: no reason to lose the others
    if not found.levels:
        found.levels = _expected_levels(found)
    return found


def _examine_store(found: _Findings, folder: DatasetFolder) -> None:
    with _noting(found.damage):
        found.record = _read_record(folder)
    record = found.record
    sizes = folder.stored_sizes()
    records = _read_partition_records(folder, found.damage)
    identity = record.identity if record else found.spec.identity() if found.spec else None
    found.stored_differs = found.spec is not None and record is not None and record.identity != found.spec.identity()
    # Two crops of one name never mix, and a shard that is gone is as good as not downloaded: the next run makes it.
    records = [r for r in records if r.identity == identity and is_intact(r, sizes)]
    found.partitions = {r.key: r for r in records if r.level == 0}
    found.files = [_object_row(found.name, r, i) for r in records for i in range(len(r.objects))]
    complete = record is not None and record.status == "complete"
    if complete:
        with _noting(found.damage):
            found.files = _manifest_rows(folder)
    if complete or (record is not None and f"{VOLUME}/zarr.json" in sizes):
        with _noting(found.damage):
            found.levels = stored_levels(folder, sizes)


@contextlib.contextmanager
def _noting(damage: list[str]) -> Iterator[None]:
    try:
        yield
    except Malformed as problem:
        damage.append(str(problem))


def _read_record(folder: DatasetFolder) -> DatasetRecord | None:
    """Raises Malformed if there is one that is not this dataset's."""
    record = folder.read_record()
    if record is not None and record.name != folder.name:
        raise Malformed(
            f"{folder.uri('metadata.json')} is the record of {record.name}, not of {folder.name}; "
            "a folder was renamed or copied: give it its own name back or remove it."
        )
    return record


def _read_partition_records(folder: DatasetFolder, damage: list[str]) -> list[PartitionRecord]:
    store = folder.store
    paths = sorted(path for path, _ in store.list(folder.path("records")) if path.endswith(".json"))
    records = []
    for record in _map(lambda path: _read_partition_record(store, path), paths, local=_is_local(store)):
        if isinstance(record, PartitionRecord):
            records.append(record)
        elif record is not None:
            damage.append(record)
    return records


def _read_partition_record(store: Store, path: str) -> PartitionRecord | str | None:
    """The record, a sentence that says what is wrong with it, or None if it has just been removed."""
    try:
        return PartitionRecord.model_validate_json(store.read(path))
    except FileNotFoundError:
        return None
    except ValidationError:
        return f"{store.uri(path)} is not a record of a chunk; materialize the dataset again, which makes it anew."


def _map(function: Any, paths: list[str], *, local: bool) -> Iterable[Any]:
    if local:  # threads cost more than they bring for files
        return map(function, paths)
    with ThreadPoolExecutor(S3_READERS) as pool:
        return list(pool.map(function, paths))


def _is_local(store: Store) -> bool:
    return store.local_path("metadata.json") is not None


def _manifest_rows(folder: DatasetFolder) -> list[Row]:
    """The manifest's lines. Raises Malformed if there is none or it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    where, remedy = folder.uri(MANIFEST), f"`em-assets verify {folder.name}` compares what is stored."
    wanted = ["path", "level", "key", "size_bytes", "sha256", "source_url", "written_at"]
    try:
        raw = folder.read(MANIFEST)
        table = pq.read_table(pa.BufferReader(raw), columns=wanted)
        times = table["written_at"].cast(pa.timestamp("us", "UTC"))
        table = table.select(wanted[:-1]).rename_columns(["path", "level", "partition_key", *wanted[3:-1]])
        lines = table.append_column("written_at", times).to_pylist()
    except FileNotFoundError:
        raise Malformed(f"{where} is gone; {remedy}") from None
    except (pa.ArrowException, KeyError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise Malformed(f"{where} is not a manifest ({reason}); {remedy}") from None
    return [{"name": folder.name, **line} for line in lines]


def _object_row(name: str, record: PartitionRecord, index: int) -> Row:
    stored = record.objects[index]
    return {
        "name": name,
        "path": stored.path,
        "level": record.level,
        "partition_key": record.key,
        "size_bytes": stored.size_bytes,
        "sha256": stored.sha256,
        "source_url": record.source_url,
        "written_at": record.written_at,
    }


def _expected_levels(found: _Findings) -> list[Row]:
    """Level 0 as described, of a volume that is not finished; none where nothing describes it."""
    spec, record = found.described, found.record
    shape = spec.shape if spec else record.volume_shape if record else None
    size = spec.expected.voxel_size_nm if spec else record.voxel_size_nm if record else None
    if shape is None:
        return []
    stored = [r.objects for r in found.partitions.values() if r.objects]
    row = {
        "name": found.name,
        "level": 0,
        **_zyx("shape_{}", shape),
        **_zyx("voxel_size_{}_nm", size),
        "shards": len(stored),
        "size_bytes": sum(o.size_bytes for objects in stored for o in objects),
    }
    if spec is not None:
        output = spec.output
        codec = "none" if output.codec == "none" else f"{output.codec} {output.codec_level}"
        row |= {"shard": output.shard, "chunk": output.chunk, "codec": codec}
    return [row]


def _chunk_rows(found: _Findings) -> list[Row]:
    """One row per partition of the spec; where the store holds something else, one per partition it holds."""
    if found.described is None:
        return [_chunk_row(found.name, record.key, record.box, record) for record in found.partitions.values()]
    spec = found.described
    keyed = ((partition_key(index), spec.shard_box(index)) for index in spec.shard_indices())
    return [_chunk_row(found.name, key, box, found.partitions.get(key)) for key, box in keyed]


def _chunk_row(name: str, key: str, box: Box, record: PartitionRecord | None) -> Row:
    row: Row = {"name": name, "partition_key": key, **_zyx("{}0", box.start), **_zyx("{}1", box.stop)}
    if record is None:
        return row | {"status": "not downloaded"}
    row |= {
        "status": "present" if record.objects else "absent",
        "size_bytes": sum(stored.size_bytes for stored in record.objects),
        "missing_fraction": _missing_voxels(record) / box.voxels,
        "received_bytes": record.received_bytes,
        "seconds": record.seconds,
        "written_at": record.written_at,
        **_box("source_box_{}", record.source_box),
    }
    if record.statistics is not None:
        row |= record.statistics.model_dump(exclude={"voxels"})
    if record.comparison is not None:
        row |= record.comparison.model_dump(exclude={"compared_at"})
    return row


def _missing_voxels(record: PartitionRecord) -> int:
    if not record.objects:
        return int(record.box.voxels)
    return sum(box.voxels for box in record.missing)


def _dataset_row(found: _Findings, chunks: list[Row]) -> Row:
    row = _spec_columns(found.spec) if found.spec is not None else {}
    if found.record is not None:
        row |= _record_columns(found.record, row)
    status, reason = _status(found)
    shape, size = row.get("volume_shape"), row.get("voxel_size_nm")
    sizes = [line["size_bytes"] for line in found.files]
    stored_bytes = found.record.file_size_bytes if found.record else None
    return row | {
        "name": found.name,
        "status": status,
        "status_reason": reason,
        **_zyx("shape_{}", shape),
        **_zyx("voxel_size_{}_nm", size),
        "max_voxel_size_nm": max(size) if size else None,
        "uncompressed_size_bytes": _uncompressed_size_bytes(shape, row.get("dtype")),
        "file_size_bytes": stored_bytes if stored_bytes is not None or not sizes else sum(sizes),
        "missing_fraction": _missing_fraction(found, chunks),
    }


def _spec_columns(spec: DatasetSpec) -> Row:
    """What the spec states: all there is of a listed dataset."""
    shapes = spec.expected.source_shape
    same = ("name", "title", "description", "source_id", "page_url", "license", "citation", "doi")
    known = ("modality", "organism", "sample", "instrument")
    return {
        **{key: getattr(spec, key) for key in (*same, *known)},
        "source": spec.publisher,
        "download_url": spec.source.url,
        "volume_shape": spec.shape,
        "voxel_size_nm": spec.expected.voxel_size_nm,
        "dtype": spec.expected.dtype,
        "axes": "zyx",
        "identity": spec.identity(),
        "source_shape": shapes[0] if len(shapes) == 1 else None,
    }


def _record_columns(record: DatasetRecord, from_spec: Row) -> Row:
    """What the record states goes before the spec; what it leaves open stays as the spec has it."""
    same = (
        *("title", "description", "source", "source_id", "license", "citation", "doi", "page_url", "download_url"),
        *("volume_shape", "voxel_size_nm", "dtype", "axes", "sha256", "identity", "source_shape", "timestamp"),
    )
    more = record.additional_metadata
    known = {key: more[key] for key in ("modality", "organism", "sample", "instrument") if _is_text(more.get(key))}
    stated = {key: value for key in same if (value := getattr(record, key)) is not None}
    return {
        **known,
        **{key: value for key, value in from_spec.items() if value is not None},
        **stated,
        **_box("source_box_{}", record.source_box),
        "local_paths": _json(record.local_paths),
        "additional_metadata": _json(more),
    }


def _status(found: _Findings) -> tuple[Status, str | None]:
    record, damage = found.record, _damage_sentence(found.damage)
    if record is None:
        return ("error", damage) if damage else ("listed", None)
    if damage and record.status == "complete":
        return "error", damage
    status, reason = record.visible_status, record.status_reason
    if status == "interrupted" and record.status == "saving-data":
        reason = f"the process that was saving it has ended; materialize {found.name} again to finish it"
    if found.stored_differs and reason is None:
        reason = (
            f"the spec now describes another volume ({found.spec.identity() if found.spec else ''}) than is stored "
            f"({record.identity}); keep the old spec, or remove the stored one with `em-assets rm {found.name}`"
        )
    return status, reason or damage


def _damage_sentence(damage: list[str]) -> str | None:
    if not damage:
        return None
    return damage[0] if len(damage) == 1 else f"{damage[0]} ({len(damage) - 1} more such files)"


def _missing_fraction(found: _Findings, chunks: list[Row]) -> float | None:
    """None while a chunk was not looked at yet."""
    if not chunks or any(chunk["status"] == "not downloaded" for chunk in chunks):
        return None
    records = found.partitions.values()
    missing, voxels = sum(map(_missing_voxels, records)), sum(int(record.box.voxels) for record in records)
    return missing / voxels


def _uncompressed_size_bytes(shape: tuple[int, int, int] | None, dtype: str | None) -> int | None:
    bits = re.search(r"\d+$", dtype or "")
    return math.prod(shape) * int(bits.group()) // 8 if shape and bits else None


def _zyx(name: str, values: tuple[Any, Any, Any] | None) -> Row:
    return {name.format(axis): value for axis, value in zip("zyx", values or (None, None, None), strict=True)}


def _box(name: str, box: Box | None) -> Row:
    if box is None:
        return {}
    return {name.format("start"): box.start, name.format("stop"): box.stop}


def _json(value: Any) -> str:
    """Strict JSON: what JSON cannot say as a number is null."""
    return STRICT_JSON.dump_json(value).decode()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
