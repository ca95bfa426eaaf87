"""The portal's ingestion config as typed values: `load_config`. Everything that is wrong with a file is said at once.

A config that breaks the schema is refused. With `partial`, one that lacks what the schema wants is taken as the
portal's own code would take it, which looks at no more than it needs: keys that are unknown are left out, metadata
stays as it is written, a source without a finder that works is left out, and each is a note in
`IngestConfig.problems`; nor is a glob that matches nothing then an error of its plan. What is needed all the same is
`standardization_config.source_prefix`, keys that are given once, and lists where they belong. The portal's code reads
neither `version` nor, while it looks for files, `deposition_id`; it walks down from `depositions`, and what is not
given below is not there.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from em_assets.ingest.fields import Keys
from em_assets.ingest.schema import CONFIG, KINDS, SOURCES, Finder, Kind, Shape
from em_assets.ingest.templates import TemplateError, parse
from em_assets.ingest.yaml_lines import Key, Lined, Problem, Problems, read_lined, shown_key

TEMPLATED = ("tomogram", "tiltseries", "frame", "alignment", "identified_object")
"""Kinds whose metadata may name variables. Elsewhere a brace is a brace."""
DEFAULT_LINE = 0
"""Of what no line of the file asks for: the portal makes it of every run, dataset or tomogram."""
MAX_SHOWN = 80

Parents = Mapping[str, tuple[re.Pattern[str], ...]]
"""Regular expressions for the names of what a source's entities belong to, by kind."""


@dataclass(frozen=True)
class Source:
    """One way in which a block's entities are found."""

    kind: str
    key: str
    """`runs[0].sources[0]`."""
    block: str
    """`runs[0]`: the sources of one block share its metadata."""
    line: int
    finder: Finder | Shape
    exclude: tuple[re.Pattern[str], ...] = ()
    include_parents: Parents = field(default_factory=lambda: MappingProxyType({}))
    exclude_parents: Parents = field(default_factory=lambda: MappingProxyType({}))

    @property
    def finder_name(self) -> str:
        """As the file has it: `source_glob`, `Point`."""
        return next(name for name, model in KINDS[self.kind].finders if type(self.finder) is model)


@dataclass(frozen=True)
class Block:
    """One item of a kind's list."""

    kind: str
    key: str
    line: int
    metadata: Mapping[str, Any]
    """As written, templates included."""
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class MapFiles:
    """The tables of runs, relative to the source prefix."""

    run_data: str | None = None
    tomo: str | None = None
    frame: str | None = None
    ts: str | None = None


@dataclass(frozen=True)
class IngestConfig:
    """A config that can be planned."""

    file: str
    version: str | None
    deposition_id: int | None
    source_prefix: str
    """Without slashes at its ends; "" is all of `--from`."""
    maps: MapFiles
    blocks: Mapping[str, tuple[Block, ...]]
    """By kind; kinds of which the file says nothing have the portal's default, or none."""
    is_partial: bool
    """Taken as the portal's own code takes a config: see above."""
    problems: tuple[Problem, ...]
    """What `partial` let pass."""
    lined: Lined

    def line(self, key: str) -> int:
        """Of `tomograms[0].metadata.voxel_spacing`, or of what it is part of."""
        return self.lined.line(read_key(key))

    def problem(self, key: str, text: str, *, is_error: bool = True) -> Problem:
        return Problem(self.file, self.line(key), key, text, is_error=is_error)


def load_config(file: Path, *, partial: bool = False) -> IngestConfig:
    """Raises Problems with all that is wrong; with `partial`, only with what leaves nothing to plan with."""
    lined = read_lined(file)
    found = sorted(
        {*lined.problems, *_schema_problems(lined), *_template_problems(lined)},
        key=lambda one: (one.line, one.key, one.text),
    )
    hindering = found if not partial else [*lined.problems, *_structure_problems(lined)]
    if hindering:
        raise Problems(tuple(hindering))
    values = _without_unknown(lined)
    config = values["standardization_config"]
    return IngestConfig(
        file=lined.file,
        version=values.get("version"),
        deposition_id=config.get("deposition_id"),
        source_prefix="/".join(part for part in config["source_prefix"].split("/") if part not in ("", ".")),
        maps=MapFiles(
            config.get("run_data_map_file"),
            config.get("run_to_tomo_map_csv"),
            config.get("run_to_frame_map_csv"),
            config.get("run_to_ts_map_csv"),
        ),
        blocks=MappingProxyType({name: tuple(_blocks(kind, values, lined)) for name, kind in KINDS.items()}),
        is_partial=partial,
        problems=tuple(replace(one, is_error=False) for one in found),
        lined=lined,
    )


def read_key(text: str) -> Key:
    """The inverse of `shown_key`."""
    return tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", text))


def metadata_problems(kind: str, metadata: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """What is wrong with metadata, for example after its templates have their values."""
    model = KINDS[kind].metadata
    if model is None:
        return
    try:
        model.model_validate(dict(metadata))
    except ValidationError as error:
        yield from _explained(error, model)


def strings(value: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Every text inside, with its place."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from strings(item, (*key, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from strings(item, (*key, index))


# What is wrong


def _schema_problems(lined: Lined) -> Iterator[Problem]:
    try:
        CONFIG.model_validate(lined.values)
    except ValidationError as error:
        for key, text in _explained(error, CONFIG):
            yield lined.problem(key, text)


def _template_problems(lined: Lined) -> Iterator[Problem]:
    """Metadata that names variables, and does so badly."""
    for name in TEMPLATED:
        for key, block in _items(lined.values, KINDS[name]):
            for place, text in strings(block.get("metadata")):
                try:
                    parse(text)
                except TemplateError as error:
                    yield lined.problem((*key, "metadata", *place), str(error))


def _structure_problems(lined: Lined) -> Iterator[Problem]:
    """What leaves nothing to plan with."""
    standardization = lined.values.get("standardization_config")
    if not isinstance(standardization, dict) or not isinstance(standardization.get("source_prefix"), str):
        key = ("standardization_config", "source_prefix")
        yield lined.problem(key, "not given, expected the folder of the raw files below --from; add it.")
    elif ".." in standardization["source_prefix"].split("/"):
        key = ("standardization_config", "source_prefix")
        yield lined.problem(
            key, f"found {standardization['source_prefix']!r}, expected a folder without `..`; name it."
        )
    for kind in KINDS.values():
        blocks = lined.values.get(kind.key)
        if blocks is not None and not isinstance(blocks, list):
            yield lined.problem((kind.key,), f"found {_kind_of(blocks)}, expected a list; correct it.")


def _explained(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Key, str]]:
    for one in error.errors():
        yield tuple(one["loc"]), _text(one, tuple(one["loc"]), model)


IN_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "missing": "not given, but required; add it.",
        "too_short": "found an empty list, expected at least one; add it.",
        "model_type": "found {found}, expected a mapping of keys; correct it.",
        "list_type": "found {found}, expected a list; correct it.",
    }
)
"""Pydantic's types of errors. What else there is comes from our own checks."""


def _text(error: Any, key: Key, model: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        return _unknown(key, model)
    if error["type"] in IN_WORDS:
        return IN_WORDS[error["type"]].format(found=_kind_of(error["input"]))
    cause, value = error["ctx"]["error"], error["input"]
    message = str(cause)
    if message.startswith("found"):
        return message if message.endswith(".") else f"{message}; correct it."
    if isinstance(value, dict):
        value = sorted(name for name, item in value.items() if item is not None)
    return f"found {_short(value)}, {message}; correct it."


def _unknown(key: Key, model: type[BaseModel]) -> str:
    known = _known_keys(key[:-1], model)
    near = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.6)
    if near:
        return f"found an unknown key, expected a known one; did you mean {near[0]}?"
    return f"found an unknown key, expected one of {', '.join(known)}; remove it."


def _known_keys(key: Key, model: type[BaseModel]) -> list[str]:
    for part in key:
        if isinstance(part, str):
            model = next(_models_in(model.model_fields[part].annotation))
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _kind_of(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", type(None): "nothing"}
    return names.get(type(value), _short(value))


def _short(value: Any) -> str:
    """As YAML's readers see it, not longer than a line. What it holds of a terminal's commands is shown, not done."""
    text = "nothing" if value is None else repr(value)
    if not isinstance(value, str | int | float | list | dict | type(None)):
        text = f"{value} (to YAML {type(value).__name__}; quote it if it is text)"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


# What is right


def _without_unknown(lined: Lined) -> Any:
    """A copy of the values without the keys that no model knows."""
    values = copy.deepcopy(lined.values)
    try:
        CONFIG.model_validate(values)
    except ValidationError as error:
        for one in error.errors():
            if one["type"] == "extra_forbidden":
                *parents, last = one["loc"]
                place = values
                for part in parents:
                    place = place[part]
                del place[last]
    return values


def _items(values: Any, kind: Kind) -> Iterator[tuple[Key, dict[str, Any]]]:
    blocks = values.get(kind.key)
    for index, block in enumerate(blocks if isinstance(blocks, list) else []):
        if isinstance(block, dict):
            yield (kind.key, index), block


def _blocks(kind: Kind, values: Any, lined: Lined) -> Iterator[Block]:
    if values.get(kind.key) is None and kind.name in DEFAULTS:
        yield DEFAULTS[kind.name]
        return
    model = SOURCES[kind.name]
    for key, block in _items(values, kind):
        metadata, sources = block.get("metadata"), block.get("sources")
        sources = sources if isinstance(sources, list) else []
        places = [(*key, "sources", index) for index in range(len(sources))]
        made = (_source(kind, model, place, value, lined) for place, value in zip(places, sources, strict=True))
        yield Block(
            kind.name,
            shown_key(key),
            lined.line(key),
            MappingProxyType(metadata if isinstance(metadata, dict) else {}),
            tuple(one for one in made if one is not None),
        )


def _source(kind: Kind, model: type[Keys], key: Key, value: Any, lined: Lined) -> Source | None:
    """None where it has no finder that works, which the problems say."""
    try:
        checked = model.model_validate(value)
    except ValidationError:
        return None
    given = {name: getattr(checked, name) for name, _ in kind.finders}
    filters = getattr(checked, "parent_filters", None)
    return Source(
        kind.name,
        shown_key(key),
        shown_key(key[:2]),
        lined.line(key),
        next(finder for finder in given.values() if finder is not None),
        tuple(map(re.compile, getattr(checked, "exclude", None) or ())),
        _patterns(filters and filters.include),
        _patterns(filters and filters.exclude),
    )


def _patterns(parents: Any) -> Mapping[str, tuple[re.Pattern[str], ...]]:
    given = {} if parents is None else dict(parents)
    return MappingProxyType({name: tuple(map(re.compile, regexes)) for name, regexes in given.items() if regexes})


def _default(kind: str, names: tuple[str, ...], metadata: dict[str, Any] | None = None) -> Block:
    key = KINDS[kind].key
    finder: Any = dict(KINDS[kind].finders)["literal"]
    value: Any = dict.fromkeys(names) if kind.endswith("keyphoto") else list(names)
    source = Source(kind, key, key, DEFAULT_LINE, finder.model_validate({"value": value}))
    return Block(kind, key, DEFAULT_LINE, MappingProxyType(metadata or {}), (source,))


DEFAULTS: Mapping[str, Block] = MappingProxyType(
    {
        "alignment": _default(
            "alignment",
            ("default",),
            {
                "affine_transformation_matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
                "alignment_type": "GLOBAL",
                "is_portal_standard": False,
                "method_type": "undefined",
                "tilt_offset": 0,
                "volume_offset": {"x": 0, "y": 0, "z": 0},
                "x_rotation_offset": 0,
            },
        ),
        "dataset_keyphoto": _default("dataset_keyphoto", ("snapshot", "thumbnail")),
        "key_image": _default("key_image", ("original", "snapshot", "thumbnail", "expanded")),
    }
)
"""What the portal makes where the file says nothing: its code has these for the same three kinds."""
