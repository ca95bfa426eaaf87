"""What was made of which files: a small record of each entity beside the portal's tree, by which it is known again.

The portal's metadata JSON has no place for it. An entity is whole if its record is there, it was made by the same rules
of the same config and the same bytes, its files have the sizes that were recorded, and its metadata JSON, which is
written last of all, is the one that was recorded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationError

from em_assets.ingest.copying import SourceFile, Sources, stored_digest
from em_assets.portal.volumes import group_digest
from em_assets.store import Store

FOLDER = "_em_assets/ingestion"
"""In the destination. Nothing of the portal is called so."""
RULES = 1
"""Raised by one whenever the same source would be made into something else: everything is then made anew."""


LONGEST_NAME = 120


class Output(BaseModel):
    """A file of the tree, or a Zarr group as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    size_bytes: int
    sha256: str
    """Of a group as `records.manifest_digest`."""
    files: int | None = None
    """How many files a group has; None: it is a file."""


class EntityRecord(BaseModel):
    """One entity, as it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    name: str
    deposition_id: int | None = None
    """Whose config made it; None in records of old."""
    decides: str
    """sha256 of everything that decides what is made, but the source files' bytes."""
    sources: tuple[SourceFile, ...]
    outputs: tuple[Output, ...]
    metadata: Output | None
    """Its JSON; None of what has none."""
    details: dict[str, Any]
    """What other entities need to know of it."""
    notes: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(output.key for output in (*self.outputs, *([self.metadata] if self.metadata else [])))

    @property
    def size_bytes(self) -> int:
        return sum(output.size_bytes for output in self.outputs) + (self.metadata.size_bytes if self.metadata else 0)

    @property
    def digest(self) -> str:
        """Of what was made; changes with the content."""
        return hashlib.sha256(
            json.dumps([[output.key, output.sha256] for output in self.outputs] + [self.details]).encode()
        ).hexdigest()


def digest_of(values: Any) -> str:
    """sha256 of anything JSON can say, the rules included."""
    return hashlib.sha256(json.dumps([RULES, values], sort_keys=True, default=str).encode()).hexdigest()


class Ledger:
    """The records of one run, or of a dataset, and what lies in the destination below it."""

    def __init__(self, store: Store, place: str) -> None:
        """`place` is the folder of the tree that the entities lie in: `10001/TS_1`."""
        self._store = store
        self._folder = f"{FOLDER}/{place}"
        self.sizes: dict[str, int] = dict(store.list(place))
        """Of every file of the tree below it, when the ledger was opened."""

    def read(self, kind: str, name: str) -> EntityRecord | None:
        """None if there is none, or one that cannot be read: the entity is made again."""
        try:
            return EntityRecord.model_validate_json(self._store.read(self._path(kind, name)))
        except (FileNotFoundError, ValidationError):
            return None

    def records(self) -> Iterator[EntityRecord]:
        """All that can be read."""
        for path, _ in self._store.list(self._folder):
            with contextlib.suppress(FileNotFoundError, ValidationError):
                yield EntityRecord.model_validate_json(self._store.read(path))

    def write(self, record: EntityRecord) -> None:
        self._store.write(self._path(record.kind, record.name), record.model_dump_json(indent=1).encode() + b"\n")

    def is_whole(
        self, record: EntityRecord, decides: str, paths: Sequence[str], sources: Sources, *, verify: bool = False
    ) -> bool:
        """Whether it is there as it would be made now of the files at `paths`; to `verify` that, all of it is read."""
        if record.decides != decides or not all(self._is_there(output) for output in record.outputs):
            return False
        if record.metadata is not None and not self._has_metadata(record.metadata):
            return False
        if verify and not all(self._is_same(output) for output in record.outputs):
            return False
        current = {file.path: file.sha256 for path in paths for file in sources.files(path)}
        return current == {file.path: file.sha256 for file in record.sources}

    def _is_there(self, output: Output) -> bool:
        if output.files is None:
            return self.sizes.get(output.key) == output.size_bytes
        below = [size for key, size in self.sizes.items() if key.startswith(f"{output.key}/")]
        return (len(below), sum(below)) == (output.files, output.size_bytes)

    def _is_same(self, output: Output) -> bool:
        """Whether its bytes are those that were recorded; its size is."""
        if output.files is not None:
            return group_digest(self._store, output.key) == output.sha256
        return stored_digest(self._store, output.key, output.size_bytes) == output.sha256

    def _has_metadata(self, output: Output) -> bool:
        """Compared by content: whoever edits it wants it written again."""
        if self.sizes.get(output.key) != output.size_bytes:
            return False
        return hashlib.sha256(self._store.read(output.key)).hexdigest() == output.sha256

    def _path(self, kind: str, name: str) -> str:
        """A name that is too long for a file system is cut, and told from others by its digest."""
        word = quote(name, safe="") or "_"
        if len(word) > LONGEST_NAME:
            word = f"{word[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return f"{self._folder}/{kind}/{word}.json"


def file_output(key: str, data: bytes) -> Output:
    return Output(key=key, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def known_sources(record: EntityRecord | None) -> Mapping[str, SourceFile]:
    return {} if record is None else {file.path: file for file in record.sources}
