"""How one entity is made, or found to be whole already; whatever it is.

What lies in the tree comes first, then the ledger's record, and the entity's metadata JSON, which says that it is
whole, last. A process that is killed between any two leaves entities that are whole and entities that are made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from em_assets.errors import EmAssetsError, Mismatch
from em_assets.ingest.copying import Sources, copy
from em_assets.ingest.ledger import EntityRecord, Ledger, Output, digest_of, file_output, known_sources
from em_assets.ingest.plan import Found
from em_assets.ingest.report import EntityOutcome
from em_assets.portal import ids
from em_assets.portal.entities import Entity, as_json, parse_entity
from em_assets.portal.ids import CLAIM
from em_assets.settings import Settings
from em_assets.store import Store

Progress = Callable[[EntityOutcome], None]
Values = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """What making an entity came to. Without outputs and metadata the source has nothing of it."""

    outputs: tuple[Output, ...] = ()
    metadata: Values | None = None
    """What its JSON says, but the deposition and the time."""
    details: Values = field(default_factory=dict)
    """What other entities need to know of it; as JSON has it."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One entity to make."""

    kind: str
    name: str
    """Tells it from others of its kind in the run, and is the same every time."""
    line: int
    paths: Sequence[str]
    """Everything of the source that it is made from: files, and Zarr groups as folders."""
    decides: Any
    """Everything else that decides what is made, as JSON has it."""
    build: Callable[[Sources], Made]
    entity: type[Entity] | None = None
    """The model of its JSON."""
    metadata_key: str | None = None
    stated: Values | None = None
    """What its JSON will say as far as it is known before: looked at first, because making may take an hour."""
    where: str = ""
    """Where that is stated, for whoever has to correct it."""
    shown_name: str = ""
    """For people; else `name`."""
    claim: tuple[str, int] | None = None
    """(folder, number) that `ids.claim_id` gave, and is released when the metadata JSON holds it."""


class Bench:
    """Where the entities of one run, or of one dataset or deposition, are made one after the other."""

    def __init__(
        self,
        source: Store,
        destination: Store,
        place: str,
        *,
        deposition_id: int,
        settings: Settings,
        progress: Progress | None,
        verify: bool = False,
    ) -> None:
        """`place` is the folder of the tree that they lie in; with `verify` what is there is read to know it whole."""
        self.source, self.destination, self.settings = source, destination, settings
        self.place = place
        self.deposition_id = deposition_id
        self.ledger = Ledger(destination, place)
        self.verify = verify
        self.outcomes: list[EntityOutcome] = []
        self._progress = progress
        self._lines: dict[tuple[str, str], int] = {}

    def make(self, job: Job) -> EntityRecord | None:
        """The record of what lies there now; None if it failed, which the outcome says."""
        try:
            self._require_once(job)
            return self._made_or_kept(job)
        except EmAssetsError as error:
            self.fail(job.kind, job.shown_name or job.name, job.line, str(error))
        except OSError as error:  # a source that goes while it is read, a cache without room
            where = error.filename or ", ".join(job.paths) or job.name
            reason = f"{where} could not be read or written ({error.strerror or error}); look at it and run again."
            self.fail(job.kind, job.shown_name or job.name, job.line, reason)
        return None

    def fail(self, kind: str, name: str, line: int, reason: str) -> None:
        self._tell(EntityOutcome(kind, name, "failed", line, error=" ".join(reason.split())))

    def leave(self, kind: str, name: str, line: int, note: str) -> None:
        """There is nothing to make of it, and that is no error."""
        self._tell(EntityOutcome(kind, name, "absent", line, notes=(note,) if note else ()))

    def tell_of_others(self) -> None:
        """What the deposition's earlier configs made here and this one does not find: it stays, and is named."""
        for record in self.ledger.records():
            if record.deposition_id == self.deposition_id and (record.kind, record.name) not in self._lines:
                keys = tuple(key for key in record.keys if self._is_there(key))
                if keys:
                    note = f"The config does not find it any more. Remove it if nobody wants it: {', '.join(keys)}."
                    shown = keys[0].removeprefix(f"{self.place}/")
                    self._tell(EntityOutcome(record.kind, shown, "left", 0, keys, record.size_bytes, (note,)))

    def _is_there(self, key: str) -> bool:
        sizes = self.ledger.sizes
        return key in sizes or any(one.startswith(f"{key}/") for one in sizes)

    def has_file(self, found: Found) -> bool:
        """Whether there is anything to make it of; otherwise it fails."""
        if not found.paths:
            self.fail(
                found.kind, found.name, found.line, f"{found.key} names no file to make it of; give it by a glob."
            )
        return bool(found.paths)

    def refer(self, kind: str, name: str, line: int, keys: Sequence[str]) -> None:
        """The destination has it, and the config only refers to it."""
        self._tell(EntityOutcome(kind, name, "kept", line, tuple(keys)))

    def copied(self, kind: str, path: str, key: str, line: int) -> EntityRecord | None:
        """A byte copy, which is an entity of its own."""

        def build(sources: Sources) -> Made:
            return Made((self.copy(sources, path, key),))

        name = key.removeprefix(f"{self.place}/")
        return self.make(Job(kind, name, line, [path], key, build, shown_name=path))

    def copy(self, sources: Sources, path: str, key: str) -> Output:
        """A byte copy as part of an entity."""
        found = copy(self.source, path, self.destination, key, self.settings)
        sources.note(found)
        return Output(key=key, size_bytes=found.size_bytes, sha256=found.sha256)

    def _require_once(self, job: Job) -> None:
        """Two entities of one name would overwrite each other."""
        line = self._lines.get((job.kind, job.name))
        if line is not None:
            raise Mismatch(
                f"{', '.join(job.paths) or job.name} would be written where the {job.kind} of line {line} is, as the "
                "portal tells the two apart by nothing; leave one out, or give them different metadata."
            )
        self._lines[job.kind, job.name] = job.line

    def _made_or_kept(self, job: Job) -> EntityRecord:
        before = self.ledger.read(job.kind, job.name)
        sources, decides = Sources(self.source, known_sources(before)), digest_of([job.decides, self.deposition_id])
        if before is not None and self.ledger.is_whole(before, decides, job.paths, sources, verify=self.verify):
            return self._kept(job, before, sources)
        if job.entity is not None and job.stated is not None:
            parse_entity(job.entity, self._signed(job.stated), job.where or job.name)
        if before is not None and before.metadata is not None:
            self.destination.delete(before.metadata.key)  # it says that what is there is whole
        if job.metadata_key is not None and job.metadata_key in self.ledger.sizes:
            self.destination.delete(job.metadata_key)
        made = job.build(sources)
        document = self._document(job, made)
        metadata = None if document is None or job.metadata_key is None else file_output(job.metadata_key, document)
        record = EntityRecord(
            kind=job.kind,
            name=job.name,
            deposition_id=self.deposition_id,
            decides=decides,
            sources=tuple(file for path in job.paths for file in sources.files(path)),
            outputs=made.outputs,
            metadata=metadata,
            details=made.details,
            notes=tuple(map(self._portable, made.notes)),
        )
        self._remove_left(before, record)
        self.ledger.write(record)
        if metadata is not None and document is not None:
            self.destination.write(metadata.key, document)
        self._release(job)
        self._tell(self._outcome(job, record, "made" if record.keys else "absent"))
        return record

    def _kept(self, job: Job, before: EntityRecord, sources: Sources) -> EntityRecord:
        current = tuple(file for path in job.paths for file in sources.files(path))
        if current != before.sources:  # other times of change, the same bytes: the next look is quick again
            before = before.model_copy(update={"sources": current})
            self.ledger.write(before)
        if job.claim is not None and f"{job.claim[0]}/{job.claim[1]}/{CLAIM}" in self.ledger.sizes:
            self._release(job)  # whoever made it was killed just before
        self._tell(self._outcome(job, before, "kept" if before.keys else "absent"))
        return before

    def _portable(self, note: str) -> str:
        """Without where source and cache lie on this machine: the record goes with the tree."""
        for folder in (self.source.uri(""), str(self.settings.cache_folder())):
            note = note.replace(f"{folder.rstrip('/')}/", "")
        return note

    def number(self, kind: str, name: str, folder: str, identity: Mapping[str, Any]) -> int:
        """The number of an entity in `folder`: the metadata's that are there, or the ledger's, or a new one."""
        found = ids.find_id(self.destination, folder, identity)
        if found is not None:
            return found
        before = self.ledger.read(kind, name)
        kept = before.details.get("number") if before is not None else None
        if kept is not None:
            return ids.reclaim_id(self.destination, folder, int(kept), identity)
        return ids.claim_id(self.destination, folder, identity)

    def _release(self, job: Job) -> None:
        if job.claim is not None:
            ids.release_id(self.destination, *job.claim)

    def _document(self, job: Job, made: Made) -> bytes | None:
        """Raises Malformed naming what the metadata lack."""
        if made.metadata is None or job.entity is None:
            return None
        return as_json(parse_entity(job.entity, self._signed(made.metadata), job.where or job.name))

    def _signed(self, values: Values) -> Values:
        return values | {"deposition_id": self.deposition_id, "last_updated_at": self.now()}

    @staticmethod
    def now() -> int:
        """POSIX time, as `last_updated_at` has it."""
        return int(time.time())

    def _remove_left(self, before: EntityRecord | None, now: EntityRecord) -> None:
        """What it had and has no longer: a shape that was taken out of the config."""
        for output in before.outputs if before is not None else ():
            if output.key not in now.keys:
                self.destination.delete(output.key) if output.files is None else self.destination.delete_all(output.key)

    def _outcome(self, job: Job, record: EntityRecord, status: Any) -> EntityOutcome:
        name = job.shown_name or job.name
        return EntityOutcome(job.kind, name, status, job.line, record.keys, record.size_bytes, record.notes)

    def _tell(self, outcome: EntityOutcome) -> None:
        self.outcomes.append(outcome)
        if self._progress is not None:
            self._progress(outcome)
