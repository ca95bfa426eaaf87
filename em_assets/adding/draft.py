"""A spec on its way to its file: what was found, and what a person must still fill in.

The file is whole and loads, or it is not there; what is there already is replaced on request only.
"""

from __future__ import annotations

import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from em_assets.datasets.fields import NAME_PATTERN
from em_assets.datasets.loading import load_spec
from em_assets.datasets.spec import ASSET_SUFFIXES, RESERVED_NAMES, DatasetSpec
from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unavailable
from em_assets.settings import Settings

UNKNOWN = "unknown"
MAX_TEXT_CHARACTERS = 4000
MAX_LINE_CHARACTERS = 200
NAME_CHARACTERS = 50
KEYS = (
    *("name", "title", "description", "publisher", "source_id", "page_url", "license", "citation", "doi"),
    *("modality", "organism", "sample", "instrument", "notes", "claims", "source", "documents"),
    *("crop", "expected", "content", "volumes", "points", "output"),
)
"""The order in the file."""


@dataclass
class Draft:
    """What is known so far of a dataset."""

    base_name: str
    """What its name is made from, where the person gives none."""
    document: dict[str, Any] = field(default_factory=dict)
    """The spec, without its name."""
    todo: dict[str, str] = field(default_factory=dict)
    """What a person must fill in, by the spec's key."""
    found: list[str] = field(default_factory=list)
    """What was found out, as lines for the person."""

    def know(self, key: str, value: Any, note: str | None = None) -> None:
        """A fact, and how sure it is. Texts come from outside, so they are cleaned."""
        self.document[key] = clean(value) if isinstance(value, str) else value
        if note is not None:
            self.note(key, note)

    def miss(self, key: str, what: str, value: Any = UNKNOWN) -> None:
        """A required fact that was not found: the spec says so, and a person is asked for it."""
        self.know(key, value, f"not known: {what}")
        self.todo[key] = what

    def take(self, key: str, value: Any, what: str) -> None:
        """A required text of the publisher's; asked for where it is not there."""
        if isinstance(value, str) and clean(value):
            self.know(key, value)
        else:
            self.miss(key, what)

    def take_doi(self, value: Any, what: str) -> None:
        """A DOI in any of its forms."""
        found = re.search(r"10\.\d{4,9}/[^\s?#]+", value) if isinstance(value, str) else None
        if found is not None:
            self.know("doi", found[0])
        else:
            self.miss("doi", what, None)

    def note(self, key: str, text: str) -> None:
        self.document.setdefault("notes", {})[key] = clean(text)

    def claim(self, key: str, value: object, url: str, note: str) -> None:
        """A statement that another one contradicts: both are kept."""
        claim = {"key": key, "value": value, "url": url, "note": clean(note)}
        self.document.setdefault("claims", []).append(claim)
        self.found.append(f"conflict: {key} is {value} by {url}, but {clean(note)}")


def clean(text: str, most: int = MAX_TEXT_CHARACTERS) -> str:
    """One line of what can be shown, of limited length."""
    shown = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text[: 4 * most])
    line = " ".join(shown.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def title(text: str) -> str:
    return clean(text, MAX_LINE_CHARACTERS)


def write_draft(draft: Draft, settings: Settings, *, name: str | None, output: Path | None, force: bool) -> Path:
    """Writes `<name>.yaml` into the folder (None: the last of EM_ASSETS_DATASETS, else ./datasets).

    Raises Mismatch if the name is taken (`force` replaces the file of that name in this very folder), Malformed if
    what was found makes no sound spec; then nothing is written.
    """
    folder = output or output_folder(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{_free_name(draft.base_name, name, folder, settings, force=force)}.yaml"
        with tempfile.TemporaryDirectory(prefix=".adding-", dir=folder) as aside:
            new = Path(aside) / file.name
            new.write_text(as_yaml(draft, file.stem), encoding="utf-8")
            _require_sound(new)
            if not force:
                _claim(file)
            os.replace(new, file)
    except OSError as error:
        raise Unavailable(f"{folder} cannot be written ({error.strerror or error}); give another --output.") from None
    return file


def _claim(file: Path) -> None:
    """Nobody else writes this name from here on."""
    try:
        file.open("x").close()
    except FileExistsError:
        raise Mismatch(f"{file} is there already; give another --name, or --force to replace it.") from None


def output_folder(settings: Settings) -> Path:
    return Path("datasets") if settings.datasets is None else settings.dataset_folders()[-1]


def as_yaml(draft: Draft, name: str) -> str:
    """The spec with a comment above every key that a person must look at."""
    document = {"name": name, **draft.document}
    lines = [
        "# Written by `em-assets add` from what the publisher stated. What nobody stated is marked TODO(person):",
        "# fill it in, remove the mark, and correct the note that says so.",
    ]
    for key in KEYS:
        if key not in document:
            continue
        if key in draft.todo:
            lines.append(f"# TODO(person): {clean(draft.todo[key])}")
        lines.append(_dumped({key: document[key]}))
    return "\n".join(lines) + "\n"


class _Dumper(yaml.SafeDumper):
    """Blocks, but lists of plain values on one line: `[64, 64, 64]`."""

    def plain_lists_in_flow(self, data: list[Any]) -> yaml.SequenceNode:
        is_plain = not any(isinstance(item, dict | list) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=is_plain)


_Dumper.add_representer(list, _Dumper.plain_lists_in_flow)


def _dumped(value: dict[str, Any]) -> str:
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=110, allow_unicode=True
    )
    return text.rstrip("\n")


def _require_sound(file: Path) -> DatasetSpec:
    """The spec that the file holds. Raises Malformed without the name of a file that will be gone."""
    try:
        return load_spec(file)
    except EmAssetsError as error:
        reason = str(error).replace(str(file), file.name)
        raise Malformed(f"what was found makes no sound spec: {reason}") from None


# Names


def slug(text: str) -> str:
    """A text as a dataset's name: lower-case letters, digits and single underscores, a letter first."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    word = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    if not word or not word[0].isalpha():
        word = f"dataset_{word}".rstrip("_")
    return word[:NAME_CHARACTERS].rstrip("_")


def _free_name(base: str, wanted: str | None, folder: Path, settings: Settings, *, force: bool) -> str:
    own = _names([folder])
    others = _names(place for place in settings.dataset_folders() if place.resolve() != folder.resolve())
    if wanted is not None:
        if not re.match(NAME_PATTERN, wanted):
            raise Mismatch(f"--name {wanted!r}: use lower-case letters, digits and _, a letter first, at most 63.")
        twin = _twin(wanted, others if force else {**others, **own})
        if twin is not None:
            how = "give another --name" + (", or --force to replace it" if wanted in own else "")
            raise Mismatch(f"the name {wanted} is taken by {twin}; {how}.")
        return wanted
    name, number = slug(base), 1
    while _twin(name, others if force else {**others, **own}) is not None:
        number += 1
        name = f"{slug(base)}_{number}"
    return name


def _names(folders: Iterable[Path]) -> dict[str, Path]:
    """The specs of folders, by name."""
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def _twin(name: str, taken: dict[str, Path]) -> str | None:
    """Who has this name, or an asset whose name this one or one of its assets would share."""
    if name in RESERVED_NAMES:
        return "em_assets itself"
    for other, file in taken.items():
        if other in (name, *(name + end for end in ASSET_SUFFIXES)) or name in [other + end for end in ASSET_SUFFIXES]:
            return str(file)
    return None
