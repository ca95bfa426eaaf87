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

from em_assets.errors import Malformed
from em_assets.store import Store, process_is_alive, process_start
from em_assets.volume import Box, Zyx, zyx

R = TypeVar("R", bound="_Record")
VOLUME = "volume.ome.zarr"
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
    inputs: tuple[str, ...] = ()
    """Level 1 and up: the sha256 of the shards it was averaged from, in order; `-` for an absent one. Where voxels
    below are missing, one more: `missing:` and a digest of which ones."""
    source_url: str | None = None
    source_box: BoxField | None = None
    """Level 0: the same box in the publisher's voxels."""
    received_bytes: int = 0
    seconds: float = 0.0
    written_at: AwareDatetime
    tool: str
    comparison: Comparison | None = None
    statistics: VoxelStatistics | None = None


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
    doi: str
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
    """One dataset's part of the store."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

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
        listed = sorted(path for path, _ in self.store.list(self.path("records")) if path.endswith(".json"))
        # one round trip each on S3, so several at once
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            records = pool.map(self._readable_record, (path.removeprefix(prefix) for path in listed))
            yield from (record for record in records if record is not None)

    def _readable_record(self, relative: str) -> PartitionRecord | None:
        try:
            return _read(self, relative, PartitionRecord)
        except Malformed:
            return None

    def write_partition_record(self, record: PartitionRecord) -> None:
        self.store.write(self.path(record_path(record.level, record.key)), _dump(record))

    def delete_partition_record(self, level: int, key: str) -> None:
        self.store.delete(self.path(record_path(level, key)))

    def stored_sizes(self) -> dict[str, int]:
        """Size of every object of the volume, by path relative to the dataset's folder: one listing."""
        prefix = f"{self.name}/"
        return {path.removeprefix(prefix): size for path, size in self.store.list(self.path(VOLUME))}


def record_path(level: int, key: str) -> str:
    return f"records/{key}.json" if level == 0 else f"records/level_{level}/{key}.json"


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
