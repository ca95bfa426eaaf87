"""What the commands of `em-assets` share: the environment they find, names that are unknown, options, printing.

The commands themselves are in `cli.py` and, those about the catalogue, in `cli_catalog.py`.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from em_assets.datasets.fields import NAME_PATTERN
from em_assets.datasets.loading import load_sound_specs
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed, Mismatch
from em_assets.records import DatasetFolder
from em_assets.settings import Settings, read_settings
from em_assets.store import Store, open_store

Format = Literal["table", "csv", "json"]

FormatOption = Annotated[Format, typer.Option("--format", help="table for a person, csv or json for a program")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]
JsonOption = Annotated[bool, typer.Option("--json", help="for a program")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="a dataset, as `em-assets list` names it")]


@dataclass(frozen=True)
class Platform:
    """The environment as a command finds it."""

    settings: Settings
    specs: dict[str, DatasetSpec]
    wrong: dict[str, Malformed]
    """What is wrong with the spec of a dataset, by its name."""
    store: Store

    @classmethod
    def read(cls, *asked: str) -> Platform:
        """A spec that is wrong is named, and stops nobody but those who ask for its dataset."""
        settings = read_settings()
        specs, wrong = load_sound_specs(settings.dataset_folders())
        for name, error in wrong.items():
            if name not in asked:
                warn(f"careful: {name} is left out: {error}")
        return cls(settings, specs, wrong, open_store(settings.root))

    def folder(self, name: str) -> DatasetFolder:
        return DatasetFolder(self.store, name)

    def names(self) -> list[str]:
        """Every dataset of the specs, and those of a local store whose spec is gone."""
        root = self.store.local_path("")
        stored = [file.parent.name for file in root.glob("*/metadata.json")] if root is not None else []
        return sorted({*self.specs, *(name for name in stored if re.match(NAME_PATTERN, name))})

    def require(self, name: str) -> None:
        """Refuses a name that neither the specs nor the store knows, and names the nearest."""
        known = name in self.specs or (
            re.match(NAME_PATTERN, name) is not None and next(iter(self.store.list(name)), None) is not None
        )
        if name in self.wrong and known:
            warn(f"careful: {self.wrong[name]}")
        elif name in self.wrong:
            raise self.wrong[name]
        elif not known:
            raise unknown_dataset(name, self.names())

    def spec(self, name: str) -> DatasetSpec:
        if name in self.wrong:
            raise self.wrong[name]
        if name not in self.specs:
            raise unknown_dataset(name, self.specs)
        return self.specs[name]

    def refuse_if_written(self, name: str) -> None:
        try:
            record = self.folder(name).read_record()
        except Malformed:
            return  # a damaged record is one more reason to remove it
        if record is not None and record.visible_status == "saving-data":
            who = f" (process {record.heartbeat.pid} on {record.heartbeat.host})" if record.heartbeat else ""
            raise Mismatch(f"{name} is being written{who}; stop that first, or wait for its end.")

    def read_run(self, path: str) -> dict[str, Any] | None:
        """One line of a dataset's history, None if it is not readable."""
        try:
            run = json.loads(self.store.read(path))
        except (ValueError, FileNotFoundError):
            return None
        return run if isinstance(run, dict) else None


def unknown_dataset(name: str, names: Iterable[str]) -> Exception:
    """What to raise about a dataset that there is not, with the nearest name."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    return typer.BadParameter(f"there is no dataset {name!r}; {hint}`em-assets list` shows all.")


# Printing


def say(text: str, *, end: str = "\n", at_once: bool = False) -> None:
    """What a command answers; `at_once` before the rest of it is known."""
    print(text, end=end, flush=at_once)  # noqa: T201


def warn(text: str) -> None:
    """What a person should know beside the answer."""
    print(text, file=sys.stderr)  # noqa: T201


def print_table(columns: Sequence[str], rows: Sequence[tuple[Any, ...]], form: Format) -> None:
    from em_assets.catalog.query import Table
    from em_assets.catalog.render import render

    types = tuple("VARCHAR" for _ in columns)
    say(render(Table(tuple(columns), types, list(rows)), format=form, width=terminal_width()), end="")


def terminal_width() -> int | None:
    """Columns of the terminal; None where nobody folds lines (a pipe, a file)."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def on_one_line(text: str) -> str:
    """Without line breaks and control characters: what a publisher wrote must not steer the terminal."""
    return " ".join("".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc").split())
