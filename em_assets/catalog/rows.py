"""From specs and the store's own records to the catalogue's rows: what `found.py` finds of each dataset, as columns.

What one dataset's records say badly is that dataset's row (`error`, with the reason); it never keeps the others
from being catalogued. Only a store that does not answer at all raises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter

from em_assets.catalog.block_indexes import BlockIndex, find_indexes, with_added
from em_assets.catalog.claims import CLAIMS
from em_assets.catalog.found import FoundDataset, FoundVolume, Row, examine, noting
from em_assets.catalog.history import check_rows, document_rows, missing_documents, run_rows
from em_assets.catalog.schema import CHOSEN, DATASETS, FILLED, VOCABULARY, arrow_table
from em_assets.catalog.stated import Stated, read_stated
from em_assets.catalog.values import allows_commercial_use
from em_assets.catalog.vocabulary import FIELDS
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed
from em_assets.originals import file_paths
from em_assets.records import DatasetFolder, DatasetRecord, PartitionRecord, Status, VolumeSummary, partition_key
from em_assets.store import Store
from em_assets.volume import Box

if TYPE_CHECKING:
    import pyarrow as pa

STRICT_JSON: TypeAdapter[Any] = TypeAdapter(Any, config=ConfigDict(ser_json_inf_nan="null"))
NOT_DOWNLOADED, NOT_MADE = "not downloaded", "not made"
"""A chunk that is not here: of a published volume, of one that is made from downloaded files."""
OF_CLAIMS = frozenset(
    {*CHOSEN, "title", "description", "license", "citation", "doi", "publication_doi", "authors", "publisher_name"}
)
"""Columns that hold what was chosen among claims."""


@dataclass
class Rows:
    """What goes into the catalogue."""

    datasets: list[Row]
    """The table `datasets`; the keys are its columns, one that is left out is NULL."""
    tables: dict[str, list[pa.Table]]
    """The rows of each table that is filled from here, in pieces."""
    indexes: list[BlockIndex] = field(default_factory=list)
    """Of the blocks of complete datasets: their rows are too many to be here."""


def collect_rows(specs: Mapping[str, DatasetSpec], store: Store) -> Rows:
    """A row for every spec and for every dataset in the store whose spec is gone; what is known of each."""
    rows = Rows(datasets=[], tables={table.name: [] for table in FILLED})
    rows.tables["vocabulary"].append(arrow_table(VOCABULARY, list(_vocabulary())))
    folders = set(_folders(store))
    for name in sorted({*specs, *folders}):
        if name not in specs and not _is_ours(name, store):
            continue
        found = examine(name, specs.get(name), store, anything_stored=name in folders)
        indexes = find_indexes(found, DatasetFolder(store, name))  # what is wrong with them the dataset's row tells
        dataset, tables = _rows_of_one(found, store)
        rows.datasets.append(dataset)
        if dataset["status"] == "complete":
            rows.indexes += with_added(indexes, dataset, found)
        for table, lines in tables.items():
            rows.tables[table].append(lines)
    return rows


def _rows_of_one(found: FoundDataset, store: Store) -> tuple[Row, dict[str, pa.Table]]:
    """Its row of `datasets`, and its rows of every table. What does not fit the tables makes it an error, too."""
    folder = DatasetFolder(store, found.name)
    try:
        found.stated = _read_stated(found, folder)
        chunks = [row for volume in found.volumes for row in _chunk_rows(found, volume)]
        levels = [row for volume in found.volumes for row in volume.levels or _expected_levels(found, volume)]
        rows = {
            "files": found.files,
            "chunks": chunks,
            "levels": levels,
            "statements": list(found.stated.rows(found.name)) if found.stated is not None else [],
            "checks": check_rows(folder, found.sizes, found.unread),
            "runs": run_rows(folder, found.sizes, found.unread),
            "documents": _document_rows(folder, found),
        }
        intensity = _intensity_columns(folder, found)
        dataset = _dataset_row(found, chunks) | intensity  # last: it tells of what the others could not read
        rows["datasets"] = [dataset]
        tables = {table.name: arrow_table(table, rows.get(table.name, [])) for table in FILLED}
        if found.stated is not None:
            tables["claims"] = found.stated.claims
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
    return dataset, tables


def _read_stated(found: FoundDataset, folder: DatasetFolder) -> Stated | None:
    try:
        return read_stated(folder, found.spec, anything_stored=bool(found.sizes))
    except Malformed as problem:
        found.unread.append(str(problem))
        return None


def _document_rows(folder: DatasetFolder, found: FoundDataset) -> list[Row]:
    if found.stated is None:
        return []
    missing = missing_documents(folder, found.record, found.sizes)
    return document_rows(folder, found.sizes, found.stated.claims, missing)


def _vocabulary() -> Iterator[Row]:
    for known in FIELDS.values():
        yield {
            "field": known.name,
            "precedence": " > ".join(known.precedence),
            **{key: getattr(known, key) for key in ("module", "kind", "unit", "comment", "ome", "empiar", "datacite")},
            "tolerance": known.tolerance if known.kind == "number" else None,
        }


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


def _is_ours(name: str, store: Store) -> bool:
    """Whether a folder is a dataset's, downloaded or only described, and not somebody else's."""
    return any(store.size_bytes(f"{name}/{file}") is not None for file in ("metadata.json", CLAIMS))


def _expected_levels(found: FoundDataset, volume: FoundVolume) -> list[Row]:
    """Level 0 as described, of a volume that is not finished; none where nothing describes it and nothing is here."""
    stored = [record.objects for record in volume.partitions.values() if record.objects]
    if volume.layout is None and not stored:
        return []
    row = {
        "name": found.name,
        "volume": volume.name,
        "level": 0,
        **_zyx("shape_{}", volume.shape),
        **_zyx("voxel_size_{}_nm", volume.voxel_size_nm),
        "shards": len(stored),
        "size_bytes": sum(o.size_bytes for objects in stored for o in objects),
    }
    if volume.layout is not None:
        output = volume.layout.output
        codec = "none" if output.codec == "none" else f"{output.codec} {output.codec_level}"
        row |= {"shard": output.shard, "chunk": output.chunk, "codec": codec}
    return [row]


def _chunk_rows(found: FoundDataset, volume: FoundVolume) -> Iterator[Row]:
    """One row per shard that the spec describes; where the store holds something else, one per shard it holds."""
    layout, partitions = volume.layout, volume.partitions
    if layout is None:
        places = ((record.key, record.box) for record in partitions.values())
    else:
        places = ((partition_key(index), layout.shard_box(index)) for index in layout.shard_indices())
    status = NOT_MADE if found.spec is not None and found.spec.is_by_file else NOT_DOWNLOADED
    for key, box in places:
        row = {"name": found.name, "volume": volume.name, "partition_key": key, "status": status}
        record = partitions.get(key)
        yield row | _zyx("{}0", box.start) | _zyx("{}1", box.stop) | (_stored_columns(record) if record else {})


def _stored_columns(record: PartitionRecord) -> Row:
    row: Row = {
        "status": "present" if record.objects else "absent",
        "size_bytes": sum(stored.size_bytes for stored in record.objects),
        "missing_fraction": _missing_voxels(record) / record.box.voxels,
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


def _dataset_row(found: FoundDataset, chunks: list[Row]) -> Row:
    row = _spec_columns(found.spec) if found.spec is not None else {}
    if found.record is not None:
        row |= _record_columns(found.record, row)
    if found.described is not None:
        row |= {"content": found.described.content, **_partition_columns(found, found.described)}
    row |= _chosen_columns(found, row)
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
        "volumes": _further_volumes(found),
        "levels": len(found.main.levels) or None if found.main is not None else None,
        "commercial_use": allows_commercial_use(row.get("license")),
    }


def _chosen_columns(found: FoundDataset, row: Row) -> Row:
    """What was chosen among the claims; what was measured or decides the bytes stays as record and spec have it."""
    if found.stated is None:
        return {}
    chosen = found.stated.chosen()
    columns: Row = {key: value for key, value in chosen.items() if key in OF_CLAIMS}
    sizes = [chosen.get(f"source_size_{axis}") for axis in "zyx"]
    if row.get("source_shape") is None and all(isinstance(size, float) for size in sizes):
        columns["source_shape"] = tuple(map(int, sizes))  # type: ignore[arg-type]  # floats, as was just seen
    return columns


def _intensity_columns(folder: DatasetFolder, found: FoundDataset) -> Row:
    """Of the main volume; nothing while it was not looked at, or another one was."""
    from em_assets.standardize.intensity import INTENSITY, read_intensities

    known = None
    if INTENSITY in found.sizes and found.main is not None:
        with noting(found.unread):
            known = read_intensities(folder).get("")
    if known is None or found.record is None or known.identity != found.record.identity:
        return {}
    columns: Row = {"intensity_level": known.distribution.level}
    if known.statistics is not None:
        kept = known.statistics
        columns |= {
            "intensity_minimum": kept.minimum,
            "intensity_maximum": kept.maximum,
            "intensity_mean": kept.mean,
            "intensity_standard_deviation": kept.standard_deviation,
        }
    if known.distribution.histogram is not None:
        columns["intensity_percentiles"] = _json(known.distribution.percentiles)
        columns["intensity_histogram"] = _json(known.distribution.histogram.model_dump())
    return columns


def _partition_columns(found: FoundDataset, spec: DatasetSpec) -> Row:
    """How far the download is."""
    if spec.is_by_file:
        keys = file_paths(spec).keys()
        return {"partitioned_by": "file", "partitions": len(keys), "partitions_stored": len(keys & found.received)}
    stored = len(found.main.partitions) if found.main is not None else None
    return {"partitioned_by": "chunk", "partitions": math.prod(spec.shard_grid()), "partitions_stored": stored}


def _further_volumes(found: FoundDataset) -> str | None:
    """JSON: what the record says of each, or the spec of one that is not stored yet."""
    stored = found.record.volumes if found.record is not None else {}
    described = found.described.volumes if found.described is not None else {}
    summaries = {}
    for name in (volume.name for volume in found.volumes):
        if name in stored:
            summaries[name] = stored[name]
        elif name is not None:
            summaries[name] = VolumeSummary(**described[name].model_dump(include=set(VolumeSummary.model_fields)))
    if not summaries:
        return None
    return _json({name: summary.model_dump(exclude_none=True) for name, summary in summaries.items()})


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
        "voxel_size_nm": spec.voxel_size_nm,
        "dtype": spec.dtype,
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


def _status(found: FoundDataset) -> tuple[Status, str | None]:
    record, damage, unread = found.record, _damage_sentence(found.damage), _damage_sentence(found.unread)
    if record is None:
        return ("error", damage) if damage else ("listed", unread)
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
    return status, reason or damage or unread


def _damage_sentence(damage: list[str]) -> str | None:
    if not damage:
        return None
    return damage[0] if len(damage) == 1 else f"{damage[0]} ({len(damage) - 1} more such files)"


def _missing_fraction(found: FoundDataset, chunks: list[Row]) -> float | None:
    """Of the main volume; None while a chunk of it was not looked at yet."""
    statuses = [row["status"] for row in chunks if row["volume"] is None]
    if found.main is None or not statuses or NOT_DOWNLOADED in statuses or NOT_MADE in statuses:
        return None
    records = found.main.partitions.values()
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
