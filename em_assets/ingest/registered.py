"""`<name>.ingest.yaml`, beside the specs of datasets: an ingestion that Dagster knows, and its runs as partitions.

Reading one is cheap: no listing is asked for and no config is read, so that the definitions stay light. `em-assets
ingest` writes it; runs that come later are partitions after it is written again.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from em_assets.datasets.fields import NAME_PATTERN
from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.ingest.yaml_lines import LOADER, check_events
from em_assets.store import replacing

if TYPE_CHECKING:
    from em_assets.ingest.making import Progress
    from em_assets.ingest.plan import IngestPlan
    from em_assets.ingest.report import IngestReport
    from em_assets.settings import Settings

SUFFIX = ".ingest.yaml"
MAX_FILE_BYTES = 16 * 2**20
MAX_RUNS = 25_000
"""Static partition keys beyond that make Dagster's pages slow."""
NAME_CHARACTERS = 50
NO_PARTITION_KEY = re.compile(r"[\x00-\x1f\x7f]|\.\.\.")
"""What Dagster does not take in a key."""


class Ingestion(BaseModel):
    """One config over one source into one tree."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Of the asset; the runs' is `<name>_runs`."""
    config: str
    """The portal's YAML, as an absolute path."""
    partial: bool = False
    """Whether a config that lacks what the schema wants is taken."""
    source: Annotated[str, Field(alias="from")]
    """Folder or s3:// prefix of the raw files."""
    destination: Annotated[str, Field(alias="to")]
    """Root of the portal's tree."""
    filters: tuple[str, ...] = ()
    """As on the command line: `--filter-run-name`, `TS_.*`."""
    runs: tuple[str, ...]
    """Those that the plan found: the partitions."""

    @field_validator("runs")
    @classmethod
    def _are_keys(cls, runs: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [run for run in runs if not run or NO_PARTITION_KEY.search(run)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} cannot be a partition of Dagster's; leave it out with --exclude-run-name")
        if len(set(runs)) != len(runs) or len(runs) > MAX_RUNS:
            raise ValueError(f"{len(runs)} runs, expected at most {MAX_RUNS} of different names; divide the config")
        return runs

    @property
    def runs_asset(self) -> str:
        return f"{self.name}_runs"

    def plan(self) -> IngestPlan:
        """What there is to make now. Raises Problems for a config that is wrong, Unavailable."""
        from em_assets.ingest.config import load_config
        from em_assets.ingest.filters import read_filters
        from em_assets.ingest.plan import make_plan
        from em_assets.store import open_store

        config = load_config(Path(self.config), partial=self.partial)
        return make_plan(config, open_store(self.source), open_store(self.destination), read_filters(self.filters))

    def carry_out(
        self, settings: Settings, runs: Sequence[str] | None, progress: Progress | None = None
    ) -> IngestReport:
        """Of all runs, then what is above them; of some runs, these alone. Raises as `plan` and `ingest`."""
        from em_assets.ingest.run import ingest
        from em_assets.store import open_store

        source, destination = open_store(self.source), open_store(self.destination)
        return ingest(self.plan(), source, destination, runs=runs, settings=settings, progress=progress)


def new_ingestion(
    name: str,
    plan: IngestPlan,
    *,
    source: str,
    destination: str,
    filters: Sequence[str] = (),
    partial: bool = False,
) -> Ingestion:
    """Of a plan, wherever the definitions will be loaded from. Raises Malformed for a name that cannot be.

    A run whose name Dagster does not take is no partition: it is made with the whole.
    """
    from em_assets.ingest.run import run_key

    try:
        return Ingestion(
            name=name,
            config=str(Path(plan.config.file).absolute()),
            partial=partial,
            source=_absolute(source),
            destination=_absolute(destination),
            filters=tuple(filters),
            runs=tuple(key for key in (run_key(run, plan) for run in plan.runs) if not NO_PARTITION_KEY.search(key)),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise Malformed(
            f"the ingestion {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}; correct it."
        ) from None


def _absolute(root: str) -> str:
    return root if root.startswith("s3://") else str(Path(root).absolute())


def register(ingestion: Ingestion, folder: Path) -> Path:
    """Writes the ingestion's file into `folder`; one of this name is replaced. Raises Mismatch, Unavailable."""
    taken = folder / f"{ingestion.name}.yaml"
    if taken.exists():
        raise Mismatch(f"{taken} is a dataset of this name; give the ingestion another one.")
    file = folder / f"{ingestion.name}{SUFFIX}"
    document = ingestion.model_dump(by_alias=True, mode="json")
    text = "# Written by `em-assets ingest`: run it again after runs were added. Its assets are in Dagster's UI.\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text(text + yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise Unavailable(f"{folder} cannot be written ({error.strerror or error}); correct its permissions.") from None
    return file


def default_name(config: Path) -> str:
    """Of the ingestion of a config: `ingest_10001` of `10001.yaml`."""
    plain = unicodedata.normalize("NFKD", config.stem).encode("ascii", "ignore").decode().lower()
    word = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    return f"ingest_{word}"[:NAME_CHARACTERS].rstrip("_")


def load_ingestions(folders: Iterable[Path]) -> tuple[dict[str, Ingestion], dict[str, Malformed]]:
    """Every ingestion of the folders by name, and what is wrong with the others, by the name of the file."""
    found: dict[str, Ingestion] = {}
    wrong: dict[str, Malformed] = {}
    for folder in {folder.resolve(): folder for folder in folders}.values():
        for file in sorted(folder.glob(f"*{SUFFIX}")):
            if file.name.startswith("."):
                continue
            try:
                ingestion = load_ingestion(file)
            except Malformed as error:
                wrong.setdefault(file.name, error)
                continue
            if ingestion.name in found:
                wrong[file.name] = Malformed(f"{file}: the ingestion {ingestion.name} is given twice; remove one.")
            else:
                found[ingestion.name] = ingestion
    return found, wrong


def load_ingestion(file: Path) -> Ingestion:
    """Raises Malformed naming file and key."""
    try:
        raw = file.read_bytes()
        if len(raw) > MAX_FILE_BYTES:
            raise Malformed(f"{file} has more than {MAX_FILE_BYTES} bytes, which no ingestion needs; remove it.")
        check_events(str(file), raw)  # libyaml ends the process where a document is nested too deeply
        document = yaml.load(raw, Loader=LOADER)  # noqa: S506  # a safe one
        ingestion = Ingestion.model_validate(document)
    except OSError as error:
        raise Malformed(f"{file} cannot be read ({error.strerror or error}); correct it or move it away.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the file"
            raise Malformed(f"{file}: {key}: {first['msg']}; run `em-assets ingest` again.") from None
        raise Malformed(f"{file} is no YAML that can be read; run `em-assets ingest` again.") from None
    if file.name != f"{ingestion.name}{SUFFIX}":
        raise Malformed(f"{file}: name is {ingestion.name}, but the file is {file.name}; make them agree.")
    return ingestion
