"""What the store has of a dataset, in its own records' words: the one place that says what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from em_assets.datasets.source import FilesSource, PublishedFile
from em_assets.datasets.spec import DatasetSpec, Layout
from em_assets.errors import Mismatch
from em_assets.fetch.receipts import Receipt, verify
from em_assets.originals import file_key, file_paths, original_path, read_receipt
from em_assets.records import (
    READS_AT_ONCE,
    DatasetFolder,
    DatasetRecord,
    ObjectsRecord,
    PartitionRecord,
    StoredObject,
    is_intact,
    manifest_digest,
    partition_index,
    partition_key,
)
from em_assets.store import Store
from em_assets.volume import Box, subtract

if TYPE_CHECKING:
    from em_assets.standardize.finish import Original


@dataclass(frozen=True)
class VolumeState:
    """One volume: which shards of its level 0 are there."""

    layout: Layout
    folder: DatasetFolder
    records: tuple[PartitionRecord, ...]
    """Every readable one, of every level and any identity."""
    sizes: dict[str, int]
    """Of every object of the volume."""
    place: Box | None
    """Where the volume lies in the publisher's voxels, as far as anything stored says."""
    inputs: tuple[str, ...]
    """sha256 of the received files it is made from; empty where none are, or not all are known."""

    @classmethod
    def read(
        cls, layout: Layout, folder: DatasetFolder, place: Box | None, inputs: tuple[str, ...] = ()
    ) -> VolumeState:
        records, sizes = tuple(folder.partition_records()), folder.stored_sizes()
        if place is None:
            place = _place_of(layout, [r for r in records if r.level == 0 and r.identity == layout.identity()])
        return cls(layout, folder, records, sizes, place, inputs)

    @cached_property
    def intact(self) -> dict[str, PartitionRecord]:
        """Level-0 shards that are there and are this layout's, by key."""
        return {
            record.key: record
            for record in self.records
            if record.level == 0
            and record.identity == self.layout.identity()
            and is_intact(record, self.sizes)
            and self._is_of_this_place(record)
            and (not self.inputs or record.inputs == self.inputs)
        }

    @cached_property
    def missing(self) -> list[str]:
        return [key for key in map(partition_key, self.layout.shard_indices()) if key not in self.intact]

    def is_whole(self) -> bool:
        """Every shard of every level is there in its size, and the volume says that it can be read."""
        from em_assets.standardize.ome import level_shapes

        identity = self.layout.identity()
        have = {(r.level, r.key) for r in self.records if r.identity == identity and is_intact(r, self.sizes)}
        shapes = enumerate(level_shapes(self.layout.shape))
        shards = ((n, index) for n, shape in shapes for index in Box.from_shape(shape).cells(self.layout.output.shard))
        wanted = {(level, partition_key(index)) for level, index in shards}
        return not self.missing and have == wanted and f"{self.folder.volume}/zarr.json" in self.sizes

    def source_box(self, key: str, place: Box) -> Box:
        """A shard's box in the publisher's voxels."""
        return self.layout.shard_box(partition_index(key)).shifted(place.start)

    def _is_of_this_place(self, record: PartitionRecord) -> bool:
        return self.place is None or record.source_box in (None, self.source_box(record.key, self.place))


@dataclass(frozen=True)
class DatasetState:
    """All of a dataset."""

    spec: DatasetSpec
    folder: DatasetFolder
    record: DatasetRecord | None
    volumes: dict[str | None, VolumeState]
    """The main volume under None."""
    receipts: dict[str, Receipt]
    """Of the files that are there in their recorded size, by partition key."""
    objects: dict[str, ObjectsRecord]
    """Of the published objects that are kept and there in their recorded size, by partition key."""
    original_bytes: int

    @classmethod
    def read(cls, spec: DatasetSpec, store: Store) -> DatasetState:
        """Raises Mismatch if what lies under this name is not this dataset's."""
        folder = DatasetFolder(store, spec.name)
        record = folder.read_record()
        receipts, objects, original_bytes = _read_originals(spec, folder)
        main = VolumeState.read(spec, folder, _recorded_place(record, spec), _inputs_of(spec, None, receipts, objects))
        # files are what they are, whatever is made of them; a share of a container's objects is a spec's
        nothing = not (main.sizes or main.records or (original_bytes and not spec.is_by_file))
        if record is not None and record.identity != spec.identity() and nothing:
            record = None  # a refusal or a failure before the first byte: nothing is kept for another spec to lose
        _require_ours(spec, folder, record, main)
        volumes: dict[str | None, VolumeState] = {}
        for sub, layout in spec.layouts().items():
            place = record.volumes[sub].source_box if record is not None and sub in record.volumes else None
            volumes[sub] = (
                main
                if sub is None
                else VolumeState.read(layout, folder.further(sub), place, _inputs_of(spec, sub, receipts, objects))
            )
        return cls(spec, folder, record, volumes, receipts, objects, original_bytes)

    @cached_property
    def keys(self) -> list[str]:
        """Every partition."""
        return partition_keys(self.spec)

    @cached_property
    def missing(self) -> list[str]:
        """Partitions that are not there."""
        if self.spec.is_by_file:
            return [key for key in self.keys if key not in self.receipts]
        if self.spec.keeps_original:
            return [key for key in self.keys if key not in self.objects]
        return self.volumes[None].missing

    def needs_publisher(self) -> bool:
        """Whether anything that is missing has to come from the publisher."""
        further = (volume.missing for sub, volume in self.volumes.items() if sub is not None)
        return bool(self.missing) or (not self.spec.keeps_original and any(further))

    def is_complete(self) -> bool:
        """Complete by its own record, with everything that the manifest lists there in its size."""
        record = self.record
        if record is None or record.status != "complete" or self.missing or set(record.volumes) != set(self._further):
            return False
        if not all(volume.is_whole() for volume in self.volumes.values()):
            return False
        stored = sum(sum(volume.sizes.values()) for volume in self.volumes.values())
        stored += sum(original.stored.size_bytes for original in self.originals())
        beside = ["manifest.parquet", *(volume.folder.coverage for volume in self.volumes.values())]
        return stored == record.file_size_bytes and all(
            self.folder.store.size_bytes(self.folder.path(name)) is not None for name in beside
        )

    @property
    def _further(self) -> list[str]:
        return [sub for sub in self.volumes if sub is not None]

    def originals(self) -> Iterator[Original]:
        """Everything that is kept byte for byte."""
        from em_assets.standardize.finish import Original

        for key, receipt in self.receipts.items():
            path, size_bytes = original_path(receipt.path), receipt.size_bytes
            stored = StoredObject(path=path, size_bytes=size_bytes, sha256=receipt.sha256)
            yield Original(stored, key, receipt.url, receipt.downloaded_at)
        for key, record in self.objects.items():
            for stored in record.objects:
                yield Original(stored, key, record.source_url, record.written_at)

    @property
    def stored_bytes(self) -> int:
        return self.original_bytes + sum(sum(volume.sizes.values()) for volume in self.volumes.values())


def partition_keys(spec: DatasetSpec) -> list[str]:
    """Static, from the spec alone: a region of the volume each, or a file each."""
    if spec.is_by_file:
        return list(file_paths(spec))
    return [partition_key(index) for index in spec.shard_indices()]


def _read_originals(
    spec: DatasetSpec, folder: DatasetFolder
) -> tuple[dict[str, Receipt], dict[str, ObjectsRecord], int]:
    """(receipts of files that are there, records of objects that are there, bytes of all that is there)."""
    if not spec.keeps_original:
        return {}, {}, 0
    prefix = folder.path("original") + "/"
    sizes = {path.removeprefix(prefix): size for path, size in folder.store.list(folder.path("original"))}
    there = {key: path for key, path in file_paths(spec).items() if {path, f"{path}.receipt.json"} <= set(sizes)}
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        found = dict(zip(there, pool.map(partial(_good_receipt, spec, folder), there.values()), strict=True))
    receipts = {key: r for key, r in found.items() if r is not None and r.size_bytes == sizes[there[key]]}
    objects = (
        {}
        if spec.is_by_file
        else {
            record.key: record
            for record in folder.objects_records()
            if record.identity == spec.identity()
            and all(sizes.get(o.path.removeprefix("original/")) == o.size_bytes for o in record.objects)
        }
    )
    return receipts, objects, sum(sizes.values())


def _good_receipt(spec: DatasetSpec, folder: DatasetFolder, path: str) -> Receipt | None:
    """The receipt of a file, if that is still what was received, and what the spec now asks for.

    A file that was written to since is hashed; on S3, where nobody can write into an object, its size says enough.
    """
    assert isinstance(spec.source, FilesSource)
    receipt, pinned = read_receipt(folder, path), spec.source.by_path()[path]
    if receipt is None or not agrees(pinned, receipt):
        return None
    local = folder.store.local_path(folder.path(original_path(path)))
    return receipt if local is None or verify(local, receipt, full=False) is None else None


def agrees(pinned: PublishedFile, receipt: Receipt) -> bool:
    """Whether a received file is what the spec asks for."""
    return (
        pinned.size_bytes in (None, receipt.size_bytes)
        and pinned.checksum in (None, receipt.checksum)
        and pinned.pixels_sha256 in (None, receipt.pixels_sha256)
    )


def _inputs_of(
    spec: DatasetSpec, sub: str | None, receipts: Mapping[str, Receipt], objects: Mapping[str, ObjectsRecord]
) -> tuple[str, ...]:
    """sha256 of the files a volume is made from, or one digest of all objects; empty unless all are there."""
    if not isinstance(spec.source, FilesSource):
        is_kept = spec.keeps_original and len(objects) == len(partition_keys(spec))
        return (objects_digest(objects.values()),) if is_kept else ()
    files = spec.source.volume if sub is None else spec.volumes[sub].source
    assert files is not None
    found = [receipts.get(file_key(path)) for path in files.paths()]
    return tuple(receipt.sha256 for receipt in found if receipt is not None) if all(found) else ()


def objects_digest(records: Iterable[ObjectsRecord]) -> str:
    """What kept objects are together; shards that are made from them have it among their inputs."""
    return manifest_digest(stored for record in records for stored in record.objects)


def _recorded_place(record: DatasetRecord | None, spec: DatasetSpec) -> Box | None:
    if record is None or record.identity != spec.identity():
        return None
    box: Box | None = record.source_box
    return box


def _require_ours(spec: DatasetSpec, folder: DatasetFolder, record: DatasetRecord | None, main: VolumeState) -> None:
    where = folder.store.uri(spec.name)
    keep = " (--keep-original keeps the received files)" if spec.is_by_file else ""
    if record is not None and record.identity != spec.identity():
        raise Mismatch(
            f"{where} holds {spec.name} with identity {record.identity}, the spec now describes "
            f"{spec.identity()} (another source, crop, seed or encoding); keep the old spec, or remove what is "
            f"stored with `em-assets rm {spec.name}`{keep}."
        )
    if record is None and main.sizes and not any(r.identity == spec.identity() for r in main.records):
        raise Mismatch(
            f"{where} holds {len(main.sizes)} objects that are not the dataset {spec.name} of this spec; "
            f"set EM_ASSETS_ROOT to another place, or remove them with `em-assets rm {spec.name}`."
        )


def _place_of(layout: Layout, records: Sequence[PartitionRecord]) -> Box | None:
    """Where the volume lies if its shards were cut where their records say; None without any that says."""
    for record in records:
        if record.source_box is not None:
            return Box.from_shape(layout.shape, at=subtract(record.source_box.start, record.box.start))
    return None
