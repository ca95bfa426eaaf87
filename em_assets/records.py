"""What the store says of itself: where a dataset's objects lie, and the JSON records beside them.

The records are the truth that everything else is decided and rebuilt from: `PartitionRecord` is written after
its objects and says what they are; `DatasetRecord` is the dataset's `metadata.json`, whose `status` is the
commit that readers wait for.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from em_assets.datasets.fields import NAME_PATTERN
from em_assets.errors import Malformed
from em_assets.fetch.receipts import RECEIPT_SUFFIX
from em_assets.store import Store, process_is_alive, process_start
from em_assets.volume import Box, Zyx, zyx

R = TypeVar("R", bound="_Record")
VOLUME = "volume.ome.zarr"
FURTHER_RECORDS = "records/volumes"
"""Records of further volumes, a folder for each."""
DOCUMENTS = "documents"
"""Publishers' replies and pages, and the metadata of chunked volumes, a receipt beside each."""
OBJECTS_RECORDS = "original_records"
"""Records of published objects that are kept byte for byte below `original/`."""
DOCUMENTS_MISSING = "documents_missing.json"
"""Why publishers' documents could not be had, by path, when they were last asked for."""
Status = Literal["listed", "saving-data", "interrupted", "complete", "error"]
READS_AT_ONCE = 16
HEARTBEAT_STALE_AFTER = timedelta(minutes=2)
CLOCKS_DIFFER_AT_MOST = timedelta(days=1)
"""A stamp later than that was written by a broken clock and would look fresh for as long as it is ahead."""


def _as_box(value: Any) -> Any:
    if isinstance(value, Box):
        return value
    try:
        start, stop = value
        return Box(zyx(start), zyx(stop))
    except TypeError as error:
        raise ValueError(f"not a box [[z, y, x], [z, y, x]] of whole numbers: {error}") from None


BoxField = Annotated[Any, AfterValidator(_as_box), PlainSerializer(lambda box: [list(box.start), list(box.stop)])]
"""A Box, as `[[z, y, x], [z, y, x]]` in JSON."""


class _Record(BaseModel):
    # JSON has no NaN and no infinity: as strings they come back as what they were
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class StoredObject(_Record):
    """One object this package wrote."""

    path: str
    """Relative to the dataset's folder."""
    size_bytes: int
    sha256: str


class Comparison(_Record):
    """Voxels of the written object against the source's own, decoded a second way when they were fetched."""

    compared_voxels: int
    different_voxels: int
    compared_at: AwareDatetime


class VoxelStatistics(_Record):
    """Of the voxels the publisher has (missing ones are left out)."""

    voxels: int
    minimum: float
    maximum: float
    mean: float
    standard_deviation: float
    zero_fraction: float
    """Share of voxels that are exactly 0."""
    saturated_fraction: float
    """Share of voxels at the dtype's largest value."""


class PartitionRecord(_Record):
    """One shard of one level. Written after its object, replaced atomically; deciding what is missing reads these."""

    key: str
    """The partition key, `z000_y001_x002`: the shard's index."""
    level: int
    box: BoxField
    """In voxels of this level of the stored volume."""
    objects: tuple[StoredObject, ...]
    """One, or none where the publisher has nothing of it (absence is not black)."""
    identity: str
    """The dataset's `DatasetSpec.identity()`, so that shards of two crops never mix."""
    missing: tuple[BoxField, ...] = ()
    """Level 0: the parts the publisher does not have, in voxels of the stored volume."""
    filled_source_chunks: int = 0
    """Level 0, where the spec says `fill`: how many chunks the publisher does not have, which count as its fill value.
    Of one that reaches into several shards, each counts its part."""
    filled: tuple[BoxField, ...] = ()
    """Where these are, in voxels of the stored volume; empty in records of before that was kept."""
    inputs: tuple[str, ...] = ()
    """What it was made from. Level 0: the sha256 of the received files, where files were received. Level 1 and up: that
    of the shards below, in order; `-` for an absent one. Where voxels below are missing, one more: `missing:` and a
    digest of which ones."""
    source_url: str | None = None
    source_box: BoxField | None = None
    """Level 0: the same box in the publisher's voxels."""
    received_bytes: int = 0
    seconds: float = 0.0
    written_at: AwareDatetime
    tool: str
    comparison: Comparison | None = None
    statistics: VoxelStatistics | None = None


class ObjectsRecord(_Record):
    """Published objects kept byte for byte: one partition's share of them. Written after all of them are in place."""

    key: str
    """The partition key, that of a region: the level's chunks that begin in it. All else is the first region's."""
    identity: str
    objects: tuple[StoredObject, ...]
    source_url: str
    received_bytes: int
    seconds: float
    written_at: AwareDatetime


class DocumentReceipt(_Record):
    """One document, as it was received: a publisher's reply or page, or a metadata document of a chunked volume."""

    path: str
    """Relative to the dataset's folder."""
    url: str
    """As the spec has it: specs hold no user and no password."""
    size_bytes: int
    sha256: str
    retrieved_at: AwareDatetime


class Heartbeat(_Record):
    """Who is writing the dataset now."""

    host: str
    pid: Annotated[int, Field(gt=0)]
    process_start: int | None = None
    """`store.process_start`: another process of the same number is not taken for this one."""
    run: str = ""
    """The writer: two threads of one process are two."""
    at: AwareDatetime

    @classmethod
    def now(cls, run: str = "") -> Heartbeat:
        pid = os.getpid()
        return cls(host=socket.gethostname(), pid=pid, process_start=process_start(pid), run=run, at=now())

    def is_stale(self) -> bool:
        """True if the writer is certainly gone (same machine) or has been silent too long (another one)."""
        if self.host == socket.gethostname():
            same = self.process_start is None or self.process_start == process_start(self.pid)
            return not (same and process_is_alive(self.pid))
        silence = now() - self.at
        return silence > HEARTBEAT_STALE_AFTER or -silence > CLOCKS_DIFFER_AT_MOST


class VolumeSummary(_Record):
    """A further volume of a dataset, `volumes/<name>.ome.zarr`."""

    title: str | None = None
    content: Literal["image", "labels"]
    labels_of: str | None = None
    """The volume that labels belong to; None: the main one."""
    shape: tuple[int, int, int]
    dtype: str
    voxel_size_nm: tuple[float, float, float]
    corner_nm: tuple[float, float, float] | None = None
    source_box: BoxField | None = None
    source_shape: tuple[int, int, int] | None = None
    coverage_sha256: str | None = None
    doi: str | None = None


class DatasetRecord(_Record):
    """`metadata.json`: the common record of one dataset. Unknown values are None, never invented."""

    name: str
    source: str
    source_id: str
    title: str
    description: str
    volume_shape: tuple[int, int, int] | None
    """(z, y, x) of level 0 as stored."""
    voxel_size_nm: tuple[float, float, float] | None
    dtype: str | None
    axes: str = "zyx"
    license: str
    citation: str
    doi: str | None
    page_url: str
    download_url: str
    local_paths: dict[str, str]
    """What is where: `volume`, `manifest`, `coverage`, `preview` ... to absolute paths or `s3://` addresses."""
    status: Status
    status_reason: str | None = None
    timestamp: AwareDatetime
    """When this record was written."""
    identity: str
    """Digest of everything that decides the bytes (`DatasetSpec.identity()`)."""
    sha256: str | None = None
    """Digest of the sorted manifest: equal volumes have equal digests, wherever they are stored."""
    coverage_sha256: str | None = None
    """Of coverage.parquet."""
    file_size_bytes: int | None = None
    """Sum of what the manifest lists."""
    heartbeat: Heartbeat | None = None
    source_box: BoxField | None = None
    """What was cut out, in the publisher's voxels; drawn once, stored before the first byte, then reused."""
    source_shape: tuple[int, int, int] | None = None
    """(z, y, x) of the publisher's whole volume, as the publisher stated it when it was read."""
    corner_nm: tuple[float, float, float] | None = None
    """(z, y, x) place of the corner of the publisher's voxel (0, 0, 0) in its frame."""
    volumes: dict[Annotated[str, Field(pattern=NAME_PATTERN)], VolumeSummary] = {}
    """Further volumes, by name."""
    additional_metadata: dict[str, Any] = {}

    def with_status(self, status: Status, reason: str | None = None, *, run: str = "", **changes: Any) -> DatasetRecord:
        """A copy in another state, stamped now; a heartbeat (of the writer `run`) only while data is being saved."""
        heartbeat = Heartbeat.now(run) if status == "saving-data" else None
        update = {"status": status, "status_reason": reason, "timestamp": now(), "heartbeat": heartbeat, **changes}
        return DatasetRecord.model_validate(dict(self) | update)  # model_copy would take a misspelt field

    @property
    def visible_status(self) -> Status:
        """The status a reader should believe: a writer that died shows as `interrupted`."""
        dead = self.status == "saving-data" and (self.heartbeat is None or self.heartbeat.is_stale())
        return "interrupted" if dead else self.status


class DatasetFolder:
    """One dataset's part of the store, and in it one volume: the main one, or a further one (`further`)."""

    def __init__(self, store: Store, name: str, sub: str | None = None) -> None:
        self.store, self.name, self.sub = store, name, sub
        self.volume = VOLUME if sub is None else f"volumes/{sub}.ome.zarr"
        """Where the volume lies, relative to the dataset's folder; likewise all below."""
        self.coverage = "coverage.parquet" if sub is None else f"volumes/{sub}.coverage.parquet"
        self.preview = "preview.png" if sub is None else f"volumes/{sub}.preview.png"
        self._records = "records" if sub is None else f"{FURTHER_RECORDS}/{sub}"

    @property
    def title(self) -> str:
        """The volume's name: `dataset`, or `dataset/volume`."""
        return self.name if self.sub is None else f"{self.name}/{self.sub}"

    def further(self, sub: str | None) -> DatasetFolder:
        """The same dataset's folder with another of its volumes (None: the main one)."""
        return DatasetFolder(self.store, self.name, sub)

    def path(self, relative: str) -> str:
        return f"{self.name}/{relative}"

    def write(self, relative: str, data: bytes | bytearray | memoryview) -> StoredObject:
        self.store.write(self.path(relative), data)
        size_bytes = memoryview(data).nbytes  # len() of a view counts items
        return StoredObject(path=relative, size_bytes=size_bytes, sha256=hashlib.sha256(data).hexdigest())

    def read(self, relative: str) -> bytes:
        return self.store.read(self.path(relative))

    def uri(self, relative: str) -> str:
        return self.store.uri(self.path(relative))

    # Documents.

    def documents(self) -> list[str]:
        """Every document that is here, relative to the dataset's folder; their receipts are none."""
        prefix = self.path("")
        listed = (path.removeprefix(prefix) for path, _ in self.store.list(self.path(DOCUMENTS)))
        return [path for path in listed if not path.endswith(RECEIPT_SUFFIX)]

    def write_document(self, relative: str, data: bytes, url: str) -> None:
        """Puts a document in place that was received just now, then its receipt."""
        stored = self.write(relative, data)
        receipt = DocumentReceipt(url=url, retrieved_at=now(), **stored.model_dump())
        self.store.write(self.path(relative + RECEIPT_SUFFIX), _dump(receipt))

    def read_document_receipt(self, relative: str) -> DocumentReceipt | None:
        """None if there is none that can be read: the document was kept by an earlier version.

        It is the document's only if that has its sha256: one of them may have been replaced a moment ago.
        """
        try:
            return _read(self, relative + RECEIPT_SUFFIX, DocumentReceipt)
        except Malformed:
            return None

    # The dataset's own record.

    def read_record(self) -> DatasetRecord | None:
        """metadata.json, None if there is none. Raises Malformed if it is not one."""
        return _read(self, "metadata.json", DatasetRecord)

    def write_record(self, record: DatasetRecord) -> None:
        self.store.write(self.path("metadata.json"), _dump(record))

    # One record for each shard of each level.

    def partition_records(self) -> Iterator[PartitionRecord]:
        """Every readable record of every level. An unreadable one counts as absent: its shard is made again."""
        prefix = f"{self.name}/"
        others = self.path(FURTHER_RECORDS) + "/"
        listed = sorted(
            path
            for path, _ in self.store.list(self.path(self._records))
            if path.endswith(".json") and (self.sub is not None or not path.startswith(others))
        )
        # one round trip each on S3, so several at once
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            records = pool.map(self._readable_record, (path.removeprefix(prefix) for path in listed))
            yield from (record for record in records if record is not None)

    def _readable_record(self, relative: str) -> PartitionRecord | None:
        try:
            return _read(self, relative, PartitionRecord)
        except Malformed:
            return None

    def objects_records(self) -> Iterator[ObjectsRecord]:
        """Every readable record of objects that are kept byte for byte."""
        prefix = f"{self.name}/"
        listed = sorted(path.removeprefix(prefix) for path, _ in self.store.list(self.path(OBJECTS_RECORDS)))
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            yield from (record for record in pool.map(self._readable_objects, listed) if record is not None)

    def _readable_objects(self, relative: str) -> ObjectsRecord | None:
        try:
            return _read(self, relative, ObjectsRecord)
        except Malformed:
            return None

    def write_objects_record(self, record: ObjectsRecord) -> None:
        self.store.write(self.path(f"{OBJECTS_RECORDS}/{record.key}.json"), _dump(record))

    def delete_objects_record(self, key: str) -> None:
        self.store.delete(self.path(f"{OBJECTS_RECORDS}/{key}.json"))

    def write_partition_record(self, record: PartitionRecord) -> None:
        self.store.write(self.path(self.record_path(record.level, record.key)), _dump(record))

    def delete_partition_record(self, level: int, key: str) -> None:
        self.store.delete(self.path(self.record_path(level, key)))

    def record_path(self, level: int, key: str) -> str:
        return f"{self._records}/{key}.json" if level == 0 else f"{self._records}/level_{level}/{key}.json"

    def stored_sizes(self) -> dict[str, int]:
        """Size of every object of the volume, by path relative to the dataset's folder: one listing."""
        prefix = f"{self.name}/"
        return {path.removeprefix(prefix): size for path, size in self.store.list(self.path(self.volume))}


def partition_key(index: Zyx) -> str:
    """`z000_y001_x002` of a shard index."""
    return "z{:03d}_y{:03d}_x{:03d}".format(*index)


def partition_index(key: str) -> Zyx:
    """The shard index a partition key names. Raises ValueError on anything else."""
    parts = key.split("_")
    if [part[:1] for part in parts] != ["z", "y", "x"] or not all(part[1:].isdecimal() for part in parts):
        raise ValueError(f"{key!r} is not a partition key such as z000_y001_x002")
    index = zyx([int(part[1:]) for part in parts])
    if partition_key(index) != key:
        raise ValueError(f"{key!r} is not a partition key such as z000_y001_x002")
    return index


def is_intact(record: PartitionRecord, sizes: dict[str, int]) -> bool:
    """Whether the record's objects are there in their recorded size: cheap, no bytes are read."""
    return all(sizes.get(stored.path) == stored.size_bytes for stored in record.objects)


def manifest_digest(objects: Iterable[StoredObject]) -> str:
    """sha256 over path, size and sha256 of every object, whatever their order: the dataset's identity by content."""
    lines = sorted(f"{stored.path}\0{stored.size_bytes}\0{stored.sha256}\n" for stored in objects)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _dump(record: _Record) -> bytes:
    return record.model_dump_json(indent=1).encode() + b"\n"


def _read(folder: DatasetFolder, relative: str, kind: type[R]) -> R | None:
    try:
        raw = folder.read(relative)
    except FileNotFoundError:
        return None
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise Malformed(
            f"{folder.uri(relative)} is not a {kind.__name__} ({where}: {first['msg']}); "
            "it was damaged or written by another version: remove it and run again."
        ) from None
