"""`em-assets stage`: a copy of a stored volume that is read faster: uncompressed, so that readers map it into memory.

Geometry, levels and absent chunks are those of the volume; only the codec and the chunks inside a shard are others. By
default a chunk is as much of its shard as makes sense, up to 256 voxels along an axis: a block of 128^3 then lies in
few pieces with long rows. An unaligned one took 0.57 ms from a 1024^3 volume of uint8 in chunks of 256^3, 0.67 ms in
512^3, 0.71 ms in 128^3 and 0.91 ms in 64^3 (median, mapped, warm; 0.73 ms from an array in RAM). Readers that do not
map files read whole chunks, so for them smaller ones are better: tensorstore took 10 ms for chunks of 256^3 and 2.1 ms
for 64^3 (512^3 volume, busy machine). Shards keep their index whatever their chunks: so absence stays absence, and a
volume's end is not filled up to a whole shard.

The copy lies beside the volume, in `staged/`, or wherever it is asked for. It arrives under a temporary name, shard by
shard: each is compared with its record when it is read, read back when it is written, and noted in a journal, so that a
later call goes on where one was stopped. It gets its name when it is whole, and says then which volume it is a copy of.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.progress import Reporter, human_bytes
from em_assets.records import (
    DatasetFolder,
    DatasetRecord,
    PartitionRecord,
    StoredObject,
    manifest_digest,
    partition_key,
)
from em_assets.standardize.shard import ShardFormat, ShardReader, decode_shard, encode_shard
from em_assets.standardize.stored import shard_path
from em_assets.store import DOWNLOAD_SUFFIX, PARTIAL_SUFFIX, LocalStore
from em_assets.volume import Box, Zyx, ceil_divide, zyx

Codec = Literal["none", "zstd"]
STAGED = "staged"
"""The folder of a dataset's staged copies."""
ATTRIBUTE, DIGEST = "em_assets", "copy_sha256"
"""Of the copy's group: what it is a copy of, and in that its own digest."""
JOURNAL, ARRIVING = "journal.jsonl", "volume.ome.zarr"
"""In the folder of an unfinished copy: what is done, and the copy itself."""
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
class Staged:
    """A finished copy."""

    path: Path
    levels: int
    size_bytes: int
    stored_bytes: int
    """Of the volume it is a copy of."""
    sha256: str
    """`records.manifest_digest` over its files but the group's own document, which holds it."""
    chunk: Zyx
    """Of level 0."""
    kept: int
    """Shards that an earlier call had already copied."""
    was_there: bool
    """It was whole before, and nothing was done."""
    coverage: Path | None
    """Says which voxels are real, beside a copy that is not in the store."""


def staged_path(folder: DatasetFolder) -> Path | None:
    """Where the copy of a volume lies by default, whether it is there or not; None where the store is no folder."""
    return folder.store.local_path(folder.path(f"{STAGED}/{folder.volume}"))


def staged_volume(folder: DatasetFolder, record: DatasetRecord | None = None) -> Path | None:
    """The copy to read instead of the volume: whole, and of what is stored now. None if there is none.

    `record` saves reading the dataset's own. Two small documents are read, no shard: whoever changes the copy's files
    by hand is not found out.
    """
    path = staged_path(folder)
    record = record or folder.read_record()
    if path is None or record is None or record.visible_status != "complete":
        return None
    return path if _says_it_is_of(path, record) is not None else None


def is_staged_copy(path: Path) -> bool:
    """Whether a folder is a whole copy made here, of whatever state: its files are replaced, never changed in place."""
    return _says_of_itself(path) is not None


def stage_volume(
    folder: DatasetFolder,
    request: Request | None = None,
    *,
    to: Path | None = None,
    workers: int = 1,
    reporter: Reporter | None = None,
) -> Staged:
    """Copies a complete dataset's volume to `to`, by default to `staged_path`; returns at once if it is there.

    A copy that is there of an earlier state, or made another way, is replaced when the new one is whole; what is no
    copy is not touched. Memory: about four decoded shards for each worker. What is finished when it is stopped is kept
    for the next call.

    Raises Unavailable if the dataset is not complete, another process makes the same copy, or there is no room;
    Malformed if a stored shard is not what was written; Mismatch if the dataset changes meanwhile, the chunk does not
    fit, the copy would be what is stored, or something else is at its place; Unsupported where there is no place.
    """
    request = request or Request()
    source = _Source.read(folder)
    target = to or staged_path(folder)
    if target is None:
        raise Unsupported(
            f"{folder.title} lies at {folder.uri(folder.volume)}, and a copy is to be mapped into memory: say with "
            "--to in which folder of this machine it should be."
        )
    plan = _Plan.of(source, request)
    found = _found(target, source, plan)
    if found is not None:
        return found
    with _explained(target):
        _require_place(target)
        with _alone(target) as unfinished:
            found = _found(target, source, plan)
            if found is not None:  # made just now by another process, which has let go of it
                shutil.rmtree(unfinished)
                return found
            return _Copy(plan, target, unfinished).make(workers, reporter)


# What is copied


@dataclass(frozen=True)
class _Level:
    """One level of the stored volume."""

    number: int
    shape: Zyx
    form: ShardFormat
    document: dict[str, Any]
    """Its `zarr.json`."""
    records: dict[str, PartitionRecord]

    def shards(self) -> Iterator[tuple[Zyx, PartitionRecord]]:
        """(index, record) of those that have an object."""
        for index in Box.from_shape(self.shape).cells(self.form.shard):
            record = self.records[partition_key(index)]
            if record.objects:
                yield index, record


@dataclass(frozen=True)
class _Source:
    """A volume of a complete dataset, as its own documents and records describe it."""

    folder: DatasetFolder
    record: DatasetRecord
    group: dict[str, Any]
    levels: tuple[_Level, ...]

    @classmethod
    def read(cls, folder: DatasetFolder) -> _Source:
        record = _require_complete(folder)
        records: dict[int, dict[str, PartitionRecord]] = {}
        for one in folder.partition_records():
            records.setdefault(one.level, {})[one.key] = one
        where = f"{folder.volume}/zarr.json"
        try:
            group = json.loads(folder.read(where))
            levels = []
            for number, _ in enumerate(group["attributes"]["ome"]["multiscales"][0]["datasets"]):
                where = f"{folder.volume}/{number}/zarr.json"
                levels.append(_level(number, json.loads(folder.read(where)), records.get(number, {})))
        except FileNotFoundError:
            raise _damaged(folder, where, "it is gone") from None
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _damaged(folder, where, f"{type(error).__name__}: {error}") from None
        for level in levels:
            _require_records(folder, level)
        return cls(folder, record, group, tuple(levels))

    @property
    def stored_bytes(self) -> int:
        return sum(record.objects[0].size_bytes for level in self.levels for _, record in level.shards())

    def shard(self, level: _Level, index: Zyx) -> bytes:
        """A stored shard, every byte of it compared with its record."""
        path, expected = shard_path(self.folder, level.number, index), level.records[partition_key(index)].objects[0]
        try:
            data = self.folder.read(path)
        except FileNotFoundError:
            raise _damaged(self.folder, path, "it is gone") from None
        if hashlib.sha256(data).hexdigest() != expected.sha256:
            raise _damaged(self.folder, path, "its sha256 is not the recorded one")
        return data

    def require_unchanged(self) -> None:
        """Raises Mismatch if the dataset is no longer what it was when this was read."""
        record = self.folder.read_record()
        if record is None or (record.visible_status, record.sha256) != ("complete", self.record.sha256):
            raise Mismatch(
                f"{self.folder.name} was changed or removed while it was copied, so the copy is not used; run again "
                "when it is complete."
            )


def _require_complete(folder: DatasetFolder) -> DatasetRecord:
    record = folder.read_record()
    status = "listed (nothing of it is stored)" if record is None else record.visible_status
    if record is None or status != "complete":
        raise Unavailable(
            f"{folder.name} is {status}, and only a complete dataset is copied; finish it with "
            f"`em-assets get {folder.name}`."
        )
    if "volume" not in record.local_paths:
        raise Unavailable(
            f"{folder.name} keeps the publisher's files only, in {folder.uri('original')}; set `keep: both` in its "
            f"spec and run `em-assets get {folder.name}`."
        )
    return record


def _level(number: int, document: dict[str, Any], records: dict[str, PartitionRecord]) -> _Level:
    sharding = document["codecs"][0]["configuration"]
    is_compressed = any(codec["name"] == "zstd" for codec in sharding["codecs"])
    form = ShardFormat(
        shard=zyx(document["chunk_grid"]["configuration"]["chunk_shape"]),
        chunk=zyx(sharding["chunk_shape"]),
        dtype=document["data_type"],
        codec="zstd" if is_compressed else "none",
    )
    return _Level(number, zyx(document["shape"]), form, document, records)


def _require_records(folder: DatasetFolder, level: _Level) -> None:
    for index in Box.from_shape(level.shape).cells(level.form.shard):
        if partition_key(index) not in level.records:
            raise _damaged(folder, shard_path(folder, level.number, index), "it has no record")


def _damaged(folder: DatasetFolder, path: str, why: str) -> Malformed:
    return Malformed(
        f"{folder.uri(path)} is not what was written ({why}); repair it with `em-assets verify {folder.name} --repair`."
    )


# How it is copied


@dataclass(frozen=True)
class _Plan:
    """A volume, and the format that each level of its copy has."""

    source: _Source
    request: Request
    forms: tuple[ShardFormat, ...]

    @classmethod
    def of(cls, source: _Source, request: Request) -> _Plan:
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

    def is_as_stored(self, level: _Level) -> bool:
        return self.forms[level.number] == level.form

    def bytes_at_most(self) -> int:
        """What the copy needs: exactly so if it is uncompressed and no shard lacks chunks."""
        return sum(
            record.objects[0].size_bytes if self.is_as_stored(level) else self._shard_bytes(level, record)
            for level in self.source.levels
            for _, record in level.shards()
        )

    def _shard_bytes(self, level: _Level, record: PartitionRecord) -> int:
        form = self.forms[level.number]
        chunks = Box.from_shape(ceil_divide(record.box.shape, form.chunk)).voxels
        return chunks * form.chunk_bytes + form.index_bytes

    def documents(self) -> Iterator[tuple[str, bytes]]:
        """(path in the copy, bytes) of each level's `zarr.json`."""
        for level, form in zip(self.source.levels, self.forms, strict=True):
            document = level.document if self.is_as_stored(level) else _with_form(level.document, form)
            yield f"{level.number}/zarr.json", _json(document)

    def group_document(self, sha256: str) -> bytes:
        attributes = {**self.source.group["attributes"], ATTRIBUTE: {**self.note, DIGEST: sha256}}
        return _json({**self.source.group, "attributes": attributes})


def _form(folder: DatasetFolder, level: _Level, request: Request) -> ShardFormat:
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


# Copying


class _Copy:
    """A copy on its way, in a folder of its own with a journal: a line for each shard, written after it.

    The journal's first line is what the copy will say of itself; of another one nothing is kept.
    """

    def __init__(self, plan: _Plan, target: Path, unfinished: Path) -> None:
        self._plan, self._target, self._unfinished = plan, target, unfinished
        self._arriving = unfinished / ARRIVING
        self._store = LocalStore(self._arriving)
        self._writing = threading.Lock()
        self._done: dict[str, StoredObject] = {}
        """By path within the copy."""

    def make(self, workers: int, reporter: Reporter | None) -> Staged:
        self._resume()
        kept = len(self._done)
        shards = ((level, index, record) for level in self._plan.source.levels for index, record in level.shards())
        todo = [shard for shard in shards if _place(*shard[:2]) not in self._done]
        self._require_room()
        voxel_bytes = self._plan.forms[0].stored_dtype.itemsize
        if reporter is not None:
            decoded = sum(record.box.voxels for _, _, record in todo) * voxel_bytes
            reporter.start(decoded, len(todo), self._plan.source.folder.title)
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._copy_shard, level, index, record) for level, index, record in todo]
            try:
                for future, (_, _, record) in zip(futures, todo, strict=True):
                    future.result()
                    if reporter is not None:
                        reporter.advance(bytes=record.box.voxels * voxel_bytes, items=1)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return self._finish(kept)

    def _resume(self) -> None:
        """Takes from the journal what is still there in its size; begins anew if it is of another copy."""
        head, *lines = _json_lines(self._unfinished / JOURNAL) or [None]
        if head != self._plan.note["staged"]:
            shutil.rmtree(self._arriving, ignore_errors=True)
            lines = []
        self._store.remove_partials("")
        for noted in map(StoredObject.model_validate, lines):
            if self._store.size_bytes(noted.path) == noted.size_bytes:
                self._done[noted.path] = noted
        # written anew: its last line may have been cut, and another would be joined to it
        journal = [self._plan.note["staged"], *(noted.model_dump() for noted in self._done.values())]
        LocalStore(self._unfinished).write(JOURNAL, b"".join(map(_line, journal)))

    def _require_room(self) -> None:
        needed = self._plan.bytes_at_most() - sum(copied.size_bytes for copied in self._done.values())
        free = shutil.disk_usage(self._unfinished).free
        if needed > free:
            raise Unavailable(
                f"{self._target} needs up to {human_bytes(needed)} more, where {human_bytes(free)} are free; free "
                "some, or choose another folder with --to."
            )

    def _copy_shard(self, level: _Level, index: Zyx, record: PartitionRecord) -> None:
        """Copies one shard, reads it back and compares every voxel, then notes it."""
        data: bytes | bytearray = self._plan.source.shard(level, index)
        path, voxels = _place(level, index), None
        if not self._plan.is_as_stored(level):
            voxels, here = self._decoded(level, index, record, data)
            form = self._plan.forms[level.number]
            data = encode_shard(voxels, form, _absent_chunks(form, record.box.shape, here))
        copied = StoredObject(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        self._store.write(path, data)
        del data
        self._require_equal(level, copied, voxels)
        self._note(copied.model_dump())
        self._done[path] = copied

    def _decoded(
        self, level: _Level, index: Zyx, record: PartitionRecord, data: bytes | bytearray
    ) -> tuple[NDArray[Any], list[Box]]:
        """The voxels of a stored shard, and the boxes of those that it has."""
        folder = self._plan.source.folder
        name = folder.uri(shard_path(folder, level.number, index))
        voxels, here = np.zeros(record.box.shape, level.form.stored_dtype), []
        for box, chunk in ShardReader.of_bytes(data, level.form, name).chunks(record.box.shape):
            if chunk is not None:
                voxels[box.slices] = chunk
                here.append(box)
        return voxels, here

    def _require_equal(self, level: _Level, copied: StoredObject, voxels: NDArray[Any] | None) -> None:
        written = self._store.read(copied.path)
        is_equal = hashlib.sha256(written).hexdigest() == copied.sha256
        name = str(self._arriving / copied.path)
        if is_equal and voxels is not None:
            back = decode_shard(written, self._plan.forms[level.number], zyx(list(voxels.shape)), name)
            is_equal = np.array_equal(back.view(np.uint8), voxels.view(np.uint8))  # as bytes: NaN equals NaN
        if not is_equal:
            self._store.delete(copied.path)
            raise Malformed(
                f"{name} does not read back as it was written; check the disk, then run again: what is finished is "
                "kept."
            )

    def _note(self, line: Mapping[str, Any]) -> None:
        with self._writing, (self._unfinished / JOURNAL).open("ab") as journal:
            journal.write(_line(line))
            journal.flush()
            os.fsync(journal.fileno())

    def _finish(self, kept: int) -> Staged:
        """Writes the documents, the group's last, and gives the copy its name."""
        for path, document in self._plan.documents():
            self._store.write(path, document)
            digest = hashlib.sha256(document).hexdigest()
            self._done[path] = StoredObject(path=path, size_bytes=len(document), sha256=digest)
        sha256 = manifest_digest(self._done.values())
        self._store.write("zarr.json", self._plan.group_document(sha256))
        self._plan.source.require_unchanged()
        _carry_coverage_over(self._plan.source.folder, self._target)
        _put_in_place(self._arriving, self._target)
        shutil.rmtree(self._unfinished)
        return _staged(self._plan, self._target, sha256, kept=kept, was_there=False)


def _carry_coverage_over(folder: DatasetFolder, target: Path) -> None:
    """A copy outside the store, too, is accompanied by what says which of its voxels are real."""
    path = coverage_beside(folder, target)
    if path is not None:
        LocalStore(path.parent).write(path.name, folder.read(folder.coverage))


def coverage_beside(folder: DatasetFolder, target: Path) -> Path | None:
    """`hemibrain_crop.coverage.parquet` of `hemibrain_crop.ome.zarr`; None in the store, which has it already."""
    if target == staged_path(folder):
        return None
    return coverage_of_copy(target)


def coverage_of_copy(target: Path) -> Path:
    """Where the coverage of a copy outside the store lies."""
    return target.with_name(f"{target.name.removesuffix('.zarr').removesuffix('.ome')}.coverage.parquet")


def _place(level: _Level, index: Zyx) -> str:
    z, y, x = index
    return f"{level.number}/c/{z}/{y}/{x}"


def _absent_chunks(form: ShardFormat, shape: Zyx, here: list[Box]) -> set[Zyx]:
    """The chunks of a shard that nothing of what is stored reaches into."""
    starts = np.array([part.start for part in here]).reshape(-1, 3)
    stops = np.array([part.stop for part in here]).reshape(-1, 3)
    absent: set[Zyx] = set()
    for at in Box.from_shape(shape).cells(form.chunk):
        box = form.chunk_box(at, shape)
        assert box is not None
        if not ((starts < box.stop) & (stops > box.start)).all(axis=1).any():
            absent.add(at)
    return absent


# The place of the copy


def _found(target: Path, source: _Source, plan: _Plan) -> Staged | None:
    """The copy, if it is there as it would be made."""
    note = _says_it_is_of(target, source.record)
    if note is None or note["staged"] != plan.note["staged"]:
        return None
    return _staged(plan, target, str(note[DIGEST]), kept=0, was_there=True)


def _staged(plan: _Plan, target: Path, sha256: str, *, kept: int, was_there: bool) -> Staged:
    return Staged(
        path=target,
        levels=len(plan.forms),
        size_bytes=sum(size for _, size in LocalStore(target).list("")),
        stored_bytes=plan.source.stored_bytes,
        sha256=sha256,
        chunk=plan.forms[0].chunk,
        kept=kept,
        was_there=was_there,
        coverage=coverage_beside(plan.source.folder, target),
    )


def _says_it_is_of(path: Path, record: DatasetRecord) -> dict[str, Any] | None:
    """What a whole copy of this very dataset says of itself; None if there is no such one."""
    note = _says_of_itself(path)
    return (
        note if note is not None and record.sha256 is not None and note["staged"]["sha256"] == record.sha256 else None
    )


def _says_of_itself(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads((path / "zarr.json").read_bytes())["attributes"][ATTRIBUTE]
        return note if note["staged"]["sha256"] and note[DIGEST] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, cut, or somebody else's: then it is no copy


def _require_place(target: Path) -> None:
    """Nothing is replaced, and nothing cleared away, but what was made here."""
    unfinished = _unfinished(target)
    if os.path.lexists(target) and _says_of_itself(target) is None:
        raise Mismatch(
            f"{target} is there already and is no staged copy; remove it, or choose another folder with --to."
        )
    if unfinished.is_dir() and any(unfinished.iterdir()) and not (unfinished / JOURNAL).is_file():
        raise Mismatch(f"{unfinished} is there already and is no staged copy; remove it, or choose another with --to.")


def _unfinished(target: Path) -> Path:
    return target.with_name(target.name + DOWNLOAD_SUFFIX)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[Path]:
    """The folder of the unfinished copy, made if it is not there; nobody else has it meanwhile.

    The folder itself is locked: the system frees it whatever happens, and nothing is left of the lock.
    """
    unfinished = _unfinished(target)
    unfinished.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(unfinished, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _is_locked(descriptor, unfinished):
            raise Unavailable(f"{target} is being made by another process; wait for its end, or stop it.")
        yield unfinished
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int, folder: Path) -> bool:
    """Takes the lock; False if another process has it, or had it and has removed the folder meanwhile."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _put_in_place(arriving: Path, target: Path) -> None:
    """Renames. A folder cannot be renamed over another one, so an old copy is moved out of the way first."""
    old = target.with_name(f"{target.name}.old{PARTIAL_SUFFIX}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    arriving.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{target} could not be written ({error.strerror or error}): free space or correct the folder's "
            "permissions and run again; what is finished is kept."
        ) from error


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _json_lines(file: Path) -> list[Any]:
    """What a journal says; its last line may have been cut by whatever ended its writer."""
    if not file.is_file():
        return []
    *lines, _ = file.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]
