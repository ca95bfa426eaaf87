"""What the store has of one dataset: its record, every volume's partitions and levels, its files. Reads, never writes.

`rows.py` turns it into the catalogue's rows. What cannot be read is noted as damage, in sentences; only a store that
does not answer at all raises.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from em_assets.catalog.stated import Stated, stored_spec
from em_assets.catalog.volume_levels import stored_levels
from em_assets.datasets.fields import NAME_PATTERN
from em_assets.datasets.spec import DatasetSpec, Layout
from em_assets.errors import Malformed, Unavailable
from em_assets.originals import file_key, original_path, read_receipt, receipt_path
from em_assets.records import FURTHER_RECORDS, DatasetFolder, DatasetRecord, PartitionRecord, StoredObject, is_intact
from em_assets.store import Store
from em_assets.volume import VoxelSize, Zyx

R = TypeVar("R")
Row = dict[str, Any]
"""A row of one of the catalogue's tables: its keys are columns, one that is left out is NULL."""

MANIFEST = "manifest.parquet"
ORIGINAL = "original/"
FURTHER_VOLUME = re.compile(r"volumes/([^/]+)\.ome\.zarr/")
FURTHER_RECORD = re.compile(rf"{FURTHER_RECORDS}/([^/]+)/")
S3_READERS = 16
"""Small objects read at once: each costs a round trip."""


@dataclass
class FoundVolume:
    """One of the dataset's volumes, stored or only described."""

    name: str | None
    """None: the main one."""
    layout: Layout | None
    """As the spec describes it; None where it describes another one, or none."""
    shape: Zyx
    voxel_size_nm: VoxelSize | None
    records: list[PartitionRecord] = field(default_factory=list)
    """Of every level, those whose objects are there."""
    levels: list[Row] = field(default_factory=list)
    """Of what is stored; empty while it is not whole."""

    @property
    def partitions(self) -> dict[str, PartitionRecord]:
        """Records of level 0, by key."""
        return {record.key: record for record in self.records if record.level == 0}


@dataclass
class FoundDataset:
    """What was found of one dataset, before it is turned into rows."""

    name: str
    spec: DatasetSpec | None
    """As it is now; where that is gone and there is no record, the one that the dataset was described with."""
    record: DatasetRecord | None = None
    stored_differs: bool = False
    """The store holds another volume than the spec now describes."""
    volumes: list[FoundVolume] = field(default_factory=list)
    """The main one first, if there is or will be one."""
    files: list[Row] = field(default_factory=list)
    received: set[str] = field(default_factory=set)
    """Partition keys of the received files that are there."""
    stated: Stated | None = None
    """Claims and what was chosen among them; None where they cannot be read."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Of everything in its folder, by path below it."""
    damage: list[str] = field(default_factory=list)
    """What could not be read of the volumes' records and files, as sentences."""
    unread: list[str] = field(default_factory=list)
    """What could not be read of all else: the voxels are none the worse for it."""

    @property
    def described(self) -> DatasetSpec | None:
        """The spec, if it is what the store holds or the store holds nothing."""
        return None if self.stored_differs else self.spec

    @property
    def main(self) -> FoundVolume | None:
        return next((volume for volume in self.volumes if volume.name is None), None)


def examine(name: str, spec: DatasetSpec | None, store: Store, *, anything_stored: bool) -> FoundDataset:
    """All that spec and store say of one dataset. Raises Unavailable if an S3 store does not answer."""
    found = FoundDataset(name, spec)
    if not anything_stored:
        found.volumes = list(_volumes(found))
        return found
    try:
        _examine_store(found, DatasetFolder(store, name))
    except Unavailable as problem:
        if not _is_local(store):
            raise
        found.damage.append(str(problem))  # a folder's permissions, say: no reason to lose the others
        found.volumes = found.volumes or list(_volumes(found))
    return found


def _examine_store(found: FoundDataset, folder: DatasetFolder) -> None:
    with noting(found.damage):
        found.record = _read_record(folder)
    if found.spec is None and found.record is None:
        with contextlib.suppress(Malformed):  # whoever reads its claims says so
            found.spec = stored_spec(folder)
    record = found.record
    found.stored_differs = found.spec is not None and record is not None and record.identity != found.spec.identity()
    found.volumes = list(_volumes(found))
    # after the record, which is written last: what it tells of is in the listing
    prefix = folder.path("")
    sizes = {path.removeprefix(prefix): size for path, size in folder.store.list(folder.name)}
    found.sizes = sizes
    records = _read_partition_records(folder, sizes, found)
    for volume in found.volumes:
        _examine_volume(found, volume, folder.further(volume.name), records[volume.name], sizes)
    found.files = _file_rows(found, folder, sizes)
    found.received = {
        row["partition_key"]
        for row in found.files
        if row["path"].startswith(ORIGINAL) and sizes.get(row["path"]) == row["size_bytes"]
    }


def _examine_volume(
    found: FoundDataset,
    volume: FoundVolume,
    folder: DatasetFolder,
    records: list[PartitionRecord],
    sizes: dict[str, int],
) -> None:
    wanted = _identity(found, volume, records)
    # Two crops of one name never mix, and a shard that is gone is as good as not downloaded: the next run makes it.
    volume.records = [r for r in records if r.identity == wanted and is_intact(r, sizes)]
    if _is_to_be_read(found.record, folder, sizes):
        with noting(found.damage):
            volume.levels = stored_levels(folder, sizes)


def _volumes(found: FoundDataset) -> Iterator[FoundVolume]:
    """Every volume that the spec describes or the record tells of."""
    spec, record = found.described, found.record
    layouts = spec.layouts() if spec is not None else {}
    for name, layout in layouts.items():
        yield FoundVolume(name, layout, layout.shape, layout.voxel_size_nm)
    if record is None:
        return
    if spec is None and record.volume_shape is not None:
        yield FoundVolume(None, None, record.volume_shape, record.voxel_size_nm)
    for name, summary in record.volumes.items():
        if name not in layouts:
            yield FoundVolume(name, None, summary.shape, summary.voxel_size_nm)


def _identity(found: FoundDataset, volume: FoundVolume, records: list[PartitionRecord]) -> str | None:
    """Which of the volume's records count: those of the stored volume; of a further one, those the spec describes."""
    if volume.name is None and found.record is not None:
        return found.record.identity
    if volume.layout is not None:
        return volume.layout.identity()
    return max(records, key=lambda record: record.written_at).identity if records else None


def _is_to_be_read(record: DatasetRecord | None, folder: DatasetFolder, sizes: dict[str, int]) -> bool:
    """Whether the volume's own metadata is there, or a finished dataset's record says that it is."""
    if record is None:
        return False
    promised = "volume" in record.local_paths if folder.sub is None else folder.sub in record.volumes
    return f"{folder.volume}/zarr.json" in sizes or (record.status == "complete" and promised)


@contextlib.contextmanager
def noting(damage: list[str]) -> Iterator[None]:
    """What cannot be read becomes a sentence of `damage`."""
    try:
        yield
    except Malformed as problem:
        damage.append(str(problem))


def _read_record(folder: DatasetFolder) -> DatasetRecord | None:
    """Raises Malformed if there is one that is not this dataset's."""
    record = folder.read_record()
    if record is None:
        return None
    where = folder.uri("metadata.json")
    if record.name != folder.name:
        raise Malformed(
            f"{where} is the record of {record.name}, not of {folder.name}; "
            "a folder was renamed or copied: give it its own name back or remove it."
        )
    for name in record.volumes:
        if not re.fullmatch(NAME_PATTERN, name):  # it becomes part of paths
            raise Malformed(f"{where} names a volume {name!r}, which none can be called; remove it and run again.")
    return record


def _read_partition_records(
    folder: DatasetFolder, sizes: dict[str, int], found: FoundDataset
) -> dict[str | None, list[PartitionRecord]]:
    """Every volume's readable records, of any level and identity."""
    records: dict[str | None, list[PartitionRecord]] = {volume.name: [] for volume in found.volumes}
    volume_of = {
        path: _name_in(FURTHER_RECORD, path)
        for path in sorted(sizes)
        if path.startswith("records/") and path.endswith(".json")
    }
    paths = [path for path, volume in volume_of.items() if volume in records]
    for path, record in zip(paths, _map(lambda path: _read_partition_record(folder, path), paths, folder), strict=True):
        if isinstance(record, PartitionRecord):
            records[volume_of[path]].append(record)
        elif record is not None:
            found.damage.append(record)
    return records


def _read_partition_record(folder: DatasetFolder, path: str) -> PartitionRecord | str | None:
    """The record, a sentence that says what is wrong with it, or None if it has just been removed."""
    try:
        return PartitionRecord.model_validate_json(folder.read(path))
    except FileNotFoundError:
        return None
    except ValidationError:
        return f"{folder.uri(path)} is not a record of a chunk; materialize the dataset again, which makes it anew."


def read_each(folder: DatasetFolder, paths: Iterable[str]) -> list[bytes | None]:
    """The contents of small files below the dataset's folder; None for one that has just been removed."""

    def read(path: str) -> bytes | None:
        try:
            return folder.read(path)
        except FileNotFoundError:
            return None

    return _map(read, paths, folder)


def _map(function: Callable[[str], R], paths: Iterable[str], folder: DatasetFolder) -> list[R]:
    if _is_local(folder.store):  # threads cost more than they bring for files
        return [function(path) for path in paths]
    with ThreadPoolExecutor(S3_READERS) as pool:
        return list(pool.map(function, paths))


def _is_local(store: Store) -> bool:
    return store.local_path("metadata.json") is not None


def _file_rows(found: FoundDataset, folder: DatasetFolder, sizes: dict[str, int]) -> list[Row]:
    """A finished dataset's are its manifest's lines; before that, what records and receipts tell of."""
    if found.record is not None and found.record.status == "complete":
        with noting(found.damage):
            return _manifest_rows(folder)
    shards = [
        _object_row(folder.further(volume.name), record, stored)
        for volume in found.volumes
        for record in volume.records
        for stored in record.objects
    ]
    return [*shards, *_received_rows(folder, sizes)]


def _object_row(folder: DatasetFolder, record: PartitionRecord, stored: StoredObject) -> Row:
    return {
        "name": folder.name,
        "volume": folder.sub,
        "path": stored.path,
        "level": record.level,
        "partition_key": record.key,
        "size_bytes": stored.size_bytes,
        "sha256": stored.sha256,
        "source_url": record.source_url,
        "written_at": record.written_at,
    }


def _received_rows(folder: DatasetFolder, sizes: dict[str, int]) -> list[Row]:
    """The received files that are there whole; one without a readable receipt is as good as not received."""
    received = (path.removeprefix(ORIGINAL) for path in sizes if path.startswith(ORIGINAL))
    paths = sorted(path for path in received if receipt_path(path) in sizes)
    receipts = zip(paths, _map(lambda path: read_receipt(folder, path), paths, folder), strict=True)
    return [
        {
            "name": folder.name,
            "path": original_path(path),
            "partition_key": file_key(path),
            "size_bytes": receipt.size_bytes,
            "sha256": receipt.sha256,
            "source_url": receipt.url,
            "written_at": receipt.downloaded_at,
        }
        for path, receipt in receipts
        if receipt is not None and receipt.size_bytes == sizes[original_path(path)]
    ]


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
    if not all(isinstance(line["path"], str) for line in lines):
        raise Malformed(f"{where} is not a manifest (a line has no path); {remedy}")
    return [{"name": folder.name, "volume": _name_in(FURTHER_VOLUME, line["path"]), **line} for line in lines]


def _name_in(pattern: re.Pattern[str], path: str) -> str | None:
    """The further volume that a path names; None for the main one's, and for received files."""
    found = pattern.match(path)
    return found.group(1) if found is not None else None
