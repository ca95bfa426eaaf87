"""What became of an ingestion: of each entity, each run, and all of it, for people and for exit codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["made", "kept", "absent", "left", "failed"]
"""`kept`: it was whole already. `absent`: the source has nothing of it for this run, which is said and no error.
`left`: an earlier config of the deposition made it, and this one finds it no more; it stays."""


@dataclass(frozen=True, slots=True)
class EntityOutcome:
    """What became of one entity of a run, or of a dataset or deposition itself."""

    kind: str
    name: str
    status: Status
    line: int
    """Of the config; 0 where nothing in it asks for this entity."""
    keys: tuple[str, ...] = ()
    """What lies in the destination."""
    size_bytes: int = 0
    notes: tuple[str, ...] = ()
    """What whoever uses it has to know, in sentences: disagreements, what was left out."""
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.status}{'' if self.error is None else f': {self.error}'}"


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What became of one run."""

    dataset: str
    run: str
    entities: tuple[EntityOutcome, ...]

    @property
    def failed(self) -> tuple[EntityOutcome, ...]:
        return tuple(entity for entity in self.entities if entity.status == "failed")

    @property
    def is_complete(self) -> bool:
        return not self.failed

    @property
    def is_new(self) -> bool:
        """Whether anything was written."""
        return any(entity.status == "made" for entity in self.entities)

    @property
    def size_bytes(self) -> int:
        return sum(entity.size_bytes for entity in self.entities)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"{one.kind} {one.name}: {note}" for one in self.entities for note in one.notes)


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of everything that was asked for."""

    destination: str
    runs: tuple[RunOutcome, ...]
    above: tuple[EntityOutcome, ...]
    """Datasets and depositions, and their pictures; none where only some runs were asked for."""

    @property
    def failed(self) -> tuple[EntityOutcome, ...]:
        return (*(entity for run in self.runs for entity in run.failed), *self._failed_above)

    @property
    def _failed_above(self) -> tuple[EntityOutcome, ...]:
        return tuple(entity for entity in self.above if entity.status == "failed")

    @property
    def is_complete(self) -> bool:
        return not self.failed

    @property
    def exit_code(self) -> int:
        """0 if every entity is whole, else 1."""
        return 0 if self.is_complete else 1

    def lines(self) -> Iterator[str]:
        """For a person; the last one says how it ended."""
        for run in self.runs:
            state = "complete" if run.is_complete else "incomplete"
            yield f"{run.dataset}/{run.run}: {state}, {_counted(run.entities)}"
            yield from (f"  {entity}" for entity in run.failed)
            yield from (f"  {note}" for note in run.notes)
        for entity in self.above:
            if entity.status == "failed":
                yield f"{entity}"
            yield from (f"  {entity.kind} {entity.name}: {note}" for note in entity.notes)
        whole = sum(run.is_complete for run in self.runs)
        end = f"{whole} of {len(self.runs)} runs are whole in {self.destination}"
        failed = len(self.failed)
        what = "entity" if failed == 1 else "entities"
        yield f"{end}." if not failed else f"{end}; {failed} {what} failed, see above."


def _counted(entities: tuple[EntityOutcome, ...]) -> str:
    counts = Counter(entity.status for entity in entities)
    return ", ".join(
        f"{counts[status]} {status}" for status in ("made", "kept", "absent", "left", "failed") if counts[status]
    )
