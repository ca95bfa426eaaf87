"""Making a staged copy (`stage.py`), in a folder of its own until it is whole.

Shard by shard: each is compared with its record when it is read, read back when it is written, and noted in a journal,
so that a later call goes on where one was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed, Unavailable
from em_assets.progress import Reporter, human_bytes
from em_assets.records import StoredObject, manifest_digest
from em_assets.standardize.complete import Level
from em_assets.standardize.shard import ShardFormat, ShardReader, decode_shard, encode_shard
from em_assets.standardize.stage_plan import Plan, Shard
from em_assets.store import LocalStore
from em_assets.volume import Box, Zyx, zyx

JOURNAL, ARRIVING = "journal.jsonl", "volume.ome.zarr"
"""In the folder of an unfinished copy: what is done, and the copy itself."""


class Copy:
    """A copy on its way, in a folder of its own with a journal: a line for each shard, written after it.

    The journal's first line is what the copy will say of itself; of another one nothing is kept.
    """

    def __init__(self, plan: Plan, target: Path, unfinished: Path) -> None:
        self._plan, self._target, self._unfinished = plan, target, unfinished
        self.path = unfinished / ARRIVING
        self.kept = 0
        """Shards that an earlier call had already copied, once it is made."""
        self._store = LocalStore(self.path)
        self._writing = threading.Lock()
        self._done: dict[str, StoredObject] = {}
        """By path within the copy."""

    def make(self, workers: int, reporter: Reporter | None) -> str:
        """Makes it whole, at `path`; its digest. Raises as `stage.stage_volume`: what is finished by then is kept."""
        self._resume()
        self.kept = len(self._done)
        todo = [shard for shard in self._plan.source.shards() if shard.place not in self._done]
        self._require_room()
        voxel_bytes = self._plan.forms[0].stored_dtype.itemsize
        if reporter is not None:
            decoded = sum(shard.record.box.voxels for shard in todo) * voxel_bytes
            reporter.start(decoded, len(todo), self._plan.source.folder.title)
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._copy_shard, shard) for shard in todo]
            try:
                for future, shard in zip(futures, todo, strict=True):
                    future.result()
                    if reporter is not None:
                        reporter.advance(bytes=shard.record.box.voxels * voxel_bytes, items=1)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return self._finish()

    def _resume(self) -> None:
        """Takes from the journal what is still there in its size; begins anew if it is of another copy."""
        head, *lines = _json_lines(self._unfinished / JOURNAL) or [None]
        if head != self._plan.note["staged"]:
            shutil.rmtree(self.path, ignore_errors=True)
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

    def _copy_shard(self, shard: Shard) -> None:
        """Copies one shard, reads it back and compares every voxel, then notes it."""
        data: bytes | bytearray = self._plan.source.bytes_of(shard)
        voxels = None
        if not self._plan.is_as_stored(shard.level):
            voxels, here = self._decoded(shard, data)
            form = self._plan.forms[shard.level.number]
            data = encode_shard(voxels, form, _absent_chunks(form, shard.shape, here))
        copied = StoredObject(path=shard.place, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        self._store.write(copied.path, data)
        del data
        self._require_equal(shard.level, copied, voxels)
        self._note(copied.model_dump())
        self._done[copied.path] = copied

    def _decoded(self, shard: Shard, data: bytes | bytearray) -> tuple[NDArray[Any], list[Box]]:
        """The voxels of a stored shard, and the boxes of those that it has."""
        folder, form = self._plan.source.folder, shard.level.form
        name = folder.uri(f"{folder.volume}/{shard.place}")
        voxels, here = np.zeros(shard.shape, form.stored_dtype), []
        for box, chunk in ShardReader.of_bytes(data, form, name).chunks(shard.shape):
            if chunk is not None:
                voxels[box.slices] = chunk
                here.append(box)
        return voxels, here

    def _require_equal(self, level: Level, copied: StoredObject, voxels: NDArray[Any] | None) -> None:
        written = self._store.read(copied.path)
        is_equal = hashlib.sha256(written).hexdigest() == copied.sha256
        name = str(self.path / copied.path)
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

    def _finish(self) -> str:
        """Writes the documents, the group's last; the digest that this states."""
        for path, document in self._plan.documents():
            self._store.write(path, document)
            digest = hashlib.sha256(document).hexdigest()
            self._done[path] = StoredObject(path=path, size_bytes=len(document), sha256=digest)
        sha256 = manifest_digest(self._done.values())
        self._store.write("zarr.json", self._plan.group_document(sha256))
        return sha256


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


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _json_lines(file: Path) -> list[Any]:
    """What a journal says; its last line may have been cut by whatever ended its writer."""
    if not file.is_file():
        return []
    *lines, _ = file.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]
