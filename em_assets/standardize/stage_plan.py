"""What a staged copy is to be (`stage.py`): the volume that it is made from, and the format of each of its levels.

Geometry, levels and absent chunks are those of the volume; only the codec and the chunks inside a shard are others. By
default a chunk is as much of its shard as makes sense, up to 256 voxels along an axis: a block of 128^3 then lies in
few pieces with long rows. An unaligned one took 0.57 ms from a 1024^3 volume of uint8 in chunks of 256^3, 0.67 ms in
512^3, 0.71 ms in 128^3 and 0.91 ms in 64^3 (median, mapped, warm; 0.73 ms from an array in RAM). Readers that do not
map files read whole chunks, so for them smaller ones are better: tensorstore took 10 ms for chunks of 256^3 and 2.1 ms
for 64^3 (512^3 volume, busy machine). Shards keep their index whatever their chunks: so absence stays absence, and a
volume's end is not filled up to a whole shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from em_assets.errors import Mismatch
from em_assets.records import DatasetFolder, DatasetRecord, PartitionRecord, partition_key
from em_assets.standardize.complete import Described, Level, complete_record, damaged_shard, recorded_shard
from em_assets.standardize.shard import ShardFormat
from em_assets.volume import Box, Zyx, ceil_divide, zyx

Codec = Literal["none", "zstd"]
ATTRIBUTE, DIGEST = "em_assets", "copy_sha256"
"""Of the copy's group: what it is a copy of, and in that its own digest."""
LONGEST_CHUNK = 256
SHORTEST_CHUNK = 32
PADDING_AT_MOST = 0.05
"""Share of an axis by which the chunks of an uncompressed copy may reach beyond its end, if smaller ones would not."""
ZSTD_CHUNK = 32
"""Of a compressed copy: of small chunks less is decoded for a block that lies across them."""
ZSTD_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Request:
    """How a copy is to be made. Shards stay as large as they are."""

    codec: Codec = "none"
    chunk: Zyx | None = None
    """Of every level, inside its shards; None: chosen for each level's shape."""
    only_level_0: bool = False
    """Levels above are then copied as they are stored."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A stored shard of the volume."""

    level: Level
    index: Zyx
    record: PartitionRecord

    @property
    def stored_bytes(self) -> int:
        return self.record.objects[0].size_bytes

    @property
    def shape(self) -> Zyx:
        """Of its voxels: less than the format's at the volume's end."""
        box: Box = self.record.box
        return box.shape

    @property
    def place(self) -> str:
        """Within a volume, the stored one and its copy."""
        z, y, x = self.index
        return f"{self.level.number}/c/{z}/{y}/{x}"


@dataclass(frozen=True)
class Source:
    """A volume of a complete dataset."""

    folder: DatasetFolder
    record: DatasetRecord
    group: dict[str, Any]
    """The group's `zarr.json`."""
    levels: tuple[Level, ...]
    records: dict[tuple[int, str], PartitionRecord]
    """By level and partition key: of every shard there is one."""

    @classmethod
    def read(cls, folder: DatasetFolder) -> Source:
        """Raises Unavailable if the dataset is not complete, Malformed if a document or record is damaged."""
        record = complete_record(folder, "copied")
        records = {(one.level, one.key): one for one in folder.partition_records()}
        described = Described.read(folder)
        for level in described.levels:
            for index in Box.from_shape(level.shape).cells(level.form.shard):
                if (level.number, partition_key(index)) not in records:
                    raise damaged_shard(folder, level.number, index, "it has no record")
        return cls(folder, record, described.group, described.levels, records)

    @property
    def stored_bytes(self) -> int:
        return sum(shard.stored_bytes for shard in self.shards())

    def shards(self) -> Iterator[Shard]:
        """Those that have an object."""
        for level in self.levels:
            for index in Box.from_shape(level.shape).cells(level.form.shard):
                record = self.records[level.number, partition_key(index)]
                if record.objects:
                    yield Shard(level, index, record)

    def bytes_of(self, shard: Shard) -> bytes:
        """A stored shard, every byte of it compared with its record."""
        data = recorded_shard(self.folder, shard.level.number, shard.index, shard.record)
        assert data is not None  # it has an object
        return data

    def require_unchanged(self) -> None:
        """Raises Mismatch if the dataset is no longer what it was when this was read."""
        record = self.folder.read_record()
        if record is None or (record.visible_status, record.sha256) != ("complete", self.record.sha256):
            raise Mismatch(
                f"{self.folder.name} was changed or removed while it was copied, so the copy is not used; run again "
                "when it is complete."
            )


@dataclass(frozen=True)
class Plan:
    """A volume, and the format that each level of its copy has."""

    source: Source
    request: Request
    forms: tuple[ShardFormat, ...]

    @classmethod
    def of(cls, source: Source, request: Request) -> Plan:
        """Raises Mismatch where the chunk does not divide a shard, or nothing would be otherwise than it is stored."""
        plan = cls(source, request, tuple(_form(source.folder, level, request) for level in source.levels))
        if all(map(plan.is_as_stored, source.levels)):
            raise Mismatch(
                f"{source.folder.title} is stored just so (codec {request.codec}, chunks of {plan.forms[0].chunk}); "
                "there is nothing to gain by a copy."
            )
        return plan

    @property
    def note(self) -> dict[str, Any]:
        """What the copy says of itself, but its digest. `staged` decides its bytes."""
        return {
            "staged": {
                "name": self.source.folder.title,
                "sha256": self.source.record.sha256,
                "codec": self.request.codec,
                "chunks": [list(form.chunk) for form in self.forms],
            },
            "license": self.source.record.license,
            "citation": self.source.record.citation,
            "doi": self.source.record.doi,
        }

    def is_as_stored(self, level: Level) -> bool:
        return self.forms[level.number] == level.form

    def bytes_at_most(self) -> int:
        """What the copy needs: exactly so if it is uncompressed and no shard lacks chunks."""
        return sum(
            shard.stored_bytes if self.is_as_stored(shard.level) else self._shard_bytes(shard)
            for shard in self.source.shards()
        )

    def _shard_bytes(self, shard: Shard) -> int:
        form = self.forms[shard.level.number]
        chunks = Box.from_shape(ceil_divide(shard.shape, form.chunk)).voxels
        return chunks * form.chunk_bytes + form.index_bytes

    def documents(self) -> Iterator[tuple[str, bytes]]:
        """(path in the copy, bytes) of each level's `zarr.json`."""
        for level, form in zip(self.source.levels, self.forms, strict=True):
            document = level.document if self.is_as_stored(level) else _with_form(level.document, form)
            yield f"{level.number}/zarr.json", _json(document)

    def group_document(self, sha256: str) -> bytes:
        attributes = {**self.source.group["attributes"], ATTRIBUTE: {**self.note, DIGEST: sha256}}
        return _json({**self.source.group, "attributes": attributes})


def _form(folder: DatasetFolder, level: Level, request: Request) -> ShardFormat:
    if request.only_level_0 and level.number > 0:
        return level.form
    stored = level.form
    chunk = request.chunk or (
        _long_chunk(level.shape, stored.shard) if request.codec == "none" else _small_chunk(stored.shard)
    )
    chunk = zyx([min(c, s) for c, s in zip(chunk, stored.shard, strict=True)])
    if any(s % c for s, c in zip(stored.shard, chunk, strict=True)):
        raise Mismatch(
            f"the chunk {chunk} does not divide the shards of {folder.title}, which are {stored.shard} voxels "
            "(z, y, x); give another --chunk, or none to have one chosen."
        )
    return replace(stored, chunk=chunk, codec=request.codec, codec_level=ZSTD_LEVEL)


def _long_chunk(shape: Zyx, shard: Zyx) -> Zyx:
    """The longest part of a shard along each axis of which little lies beyond the volume's end."""
    return zyx([_long_edge(n, edge) for n, edge in zip(shape, shard, strict=True)])


def _long_edge(n: int, edge: int) -> int:
    parts = [part for part in _parts(edge) if part <= LONGEST_CHUNK]
    sensible = [part for part in parts if part >= SHORTEST_CHUNK] or parts[-1:]
    padding = {part: -(-n // part) * part - n for part in sensible}
    bearable = [part for part in sensible if padding[part] <= PADDING_AT_MOST * n]
    return max(bearable) if bearable else min(sensible, key=lambda part: (padding[part], -part))


def _parts(edge: int) -> list[int]:
    """The lengths that an edge is a multiple of, the shortest first."""
    return [part for part in range(1, edge + 1) if edge % part == 0]


def _small_chunk(shard: Zyx) -> Zyx:
    """Of about 32 voxels along each axis, as the shard can be cut."""
    return zyx([min(_parts(edge), key=lambda part: abs(part - ZSTD_CHUNK)) for edge in shard])


def _with_form(document: dict[str, Any], form: ShardFormat) -> dict[str, Any]:
    """A level's document with other chunks and another codec inside its shards."""
    [sharding] = document["codecs"]
    endian = [codec for codec in sharding["configuration"]["codecs"] if codec["name"] == "bytes"]
    zstd = {"name": "zstd", "configuration": {"level": form.codec_level, "checksum": False}}
    inside = {
        **sharding["configuration"],
        "chunk_shape": list(form.chunk),
        "codecs": [*endian, *([zstd] if form.codec == "zstd" else [])],
    }
    return {**document, "codecs": [{**sharding, "configuration": inside}]}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
