"""Reading specs from YAML: `load_spec`, `load_specs`, and the JSON Schema for editors.

Unknown keys are errors, and every message names the file, the line and the key.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from em_assets.datasets.fields import NAME_PATTERN, AtKey
from em_assets.datasets.spec import ASSET_SUFFIXES, DatasetSpec
from em_assets.errors import Malformed

MAX_SPEC_BYTES = 256 * 1024
MAX_NESTING = 20
STRING_TAG = "tag:yaml.org,2002:str"
PATTERNS_IN_WORDS = {
    NAME_PATTERN: "use lower-case letters, digits and _, a letter first, at most 63",
    r"^10\.\d{4,9}/\S+$": "a DOI looks like 10.7554/eLife.57443, without https://doi.org/",
    r"^[0-9a-f]{64}$": "a sha256 has 64 hexadecimal digits, in lower case",
    r"^(team:\S+|\S+@\S+)$": "an owner is team:name or an e-mail address",
}


def load_specs(folders: Iterable[Path]) -> dict[str, DatasetSpec]:
    """Every spec of the folders (`*.yaml`, not below), by name. Raises Malformed for the first that is wrong."""
    specs, wrong = load_sound_specs(folders)
    for error in wrong.values():
        raise error
    return specs


def load_sound_specs(folders: Iterable[Path]) -> tuple[dict[str, DatasetSpec], dict[str, Malformed]]:
    """Every spec of the folders by name, and what is wrong with the others, by the name of the file without `.yaml`.

    A name given twice is an error naming both files: which one is meant cannot be known.
    """
    specs: dict[str, DatasetSpec] = {}
    wrong: dict[str, Malformed] = {}
    files: dict[str, Path] = {}
    for file in _spec_files(folders):
        try:
            spec = load_spec(file)
        except Malformed as error:
            wrong.setdefault(file.stem, error)
            continue
        if spec.name in specs:
            raise Malformed(f"dataset {spec.name} is given by both {files[spec.name]} and {file}; remove one.")
        specs[spec.name], files[spec.name] = spec, file
    for name in specs:
        for other in (name + suffix for suffix in ASSET_SUFFIXES):
            if other in specs:
                raise Malformed(
                    f"{files[other]} names a dataset like an asset of {files[name]}; rename one of the two."
                )
    return specs, wrong


def load_spec(file: Path) -> DatasetSpec:
    """One spec. Raises Malformed naming file, line and key."""
    node = _compose(file, _read_text(file))
    try:
        spec = DatasetSpec.model_validate(_construct(file, node))
    except ValidationError as error:
        raise Malformed(_explain(file, node, error)) from None
    if spec.name != file.stem:
        line = _line(node, ("name",))
        raise Malformed(f"{file}, line {line}: name is {spec.name}, but the file is {file.name}; make them agree.")
    return spec


def json_schema() -> str:
    """The model as JSON Schema, for editors (`# yaml-language-server: $schema=...`)."""
    schema = DatasetSpec.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def _spec_files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in {folder.resolve(): folder for folder in folders}.values():
        # what begins with a dot is an editor's lock or a shadow file of macOS; `ingest/registered.py` reads the others
        files = (file for file in sorted(folder.glob("*.yaml")) if not file.name.startswith("."))
        yield from (file for file in files if not file.name.endswith(".ingest.yaml"))


def _read_text(file: Path) -> str:
    """The file's text, with or without a byte order mark; never more than a spec may have."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise Malformed(f"{file} cannot be read ({error.strerror or error}); correct it or move it away.") from None
    if len(raw) > MAX_SPEC_BYTES:
        raise Malformed(f"{file} has more than {MAX_SPEC_BYTES} bytes, which no dataset spec needs.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Malformed(f"{file}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save it as UTF-8.") from None


def _compose(file: Path, text: str) -> yaml.MappingNode:
    """The YAML's node tree (it knows the lines), without aliases, deep nesting, odd or duplicate keys."""
    try:
        _check_events(file, text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(file, error) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Malformed(f"{file}, line {line}: holds the control character U+{error.character:04X}.") from None
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "plain text" if node else "nothing"
        line = 1 if node is None else node.start_mark.line + 1
        raise Malformed(f"{file}, line {line}: expected `key: value` lines such as `name: ...`, found {found}.")
    _check_keys(file, node)
    return node


def _not_yaml(file: Path, error: yaml.MarkedYAMLError) -> Malformed:
    mark = error.problem_mark or error.context_mark
    line = f", line {mark.line + 1}" if mark else ""
    return Malformed(f"{file}{line}: not YAML that a spec may use ({error.problem}).")


def _check_events(file: Path, text: str) -> None:
    """Refuses what is dangerous to build a tree of; the events before it cost no memory and no stack."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{file}, line {event.start_mark.line + 1}" if event.start_mark else str(file)
        if isinstance(event, yaml.AliasEvent):
            raise Malformed(f"{where}: YAML aliases are not accepted in a spec.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_NESTING:
            raise Malformed(f"{where}: nested more than {MAX_NESTING} deep.")


def _check_keys(file: Path, node: yaml.Node) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(file, item)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            where = f"{file}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode) or key.tag != STRING_TAG:
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise Malformed(f"{where}: key {shown} is not text to YAML; quote it if it is meant.")
            if key.value in seen:
                raise Malformed(f"{where}: key {key.value} is given twice.")
            seen.add(key.value)
            _check_keys(file, value)


def _construct(file: Path, node: yaml.Node) -> Any:
    """The values of a checked tree. A scalar that only looks like a date or a number is named with its line."""
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        return {key.value: _construct(file, value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_construct(file, item) for item in node.value]
    try:
        return yaml.constructor.SafeConstructor().construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(file, error) from None
    except (ValueError, OverflowError) as error:
        line = node.start_mark.line + 1
        shown = _short(node.value)
        raise Malformed(
            f"{file}, line {line}: {shown} is no value to YAML ({error}); quote it if it is text."
        ) from None


def _explain(file: Path, node: yaml.Node, error: ValidationError) -> str:
    """The most telling problem as one sentence: a misspelt key before the key that is missing because of it, and what
    is wrong with an item before the list that is too short without it.
    """
    rank = {"extra_forbidden": 0, "missing": 2, "too_short": 3}
    first = min(error.errors(), key=lambda e: (rank.get(e["type"], 1), _line(node, _location(e))))
    location = _location(first)
    key = ".".join(str(part) for part in location) or "the spec"
    where = f"{file}, line {_line(node, location)}"
    if first["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(str(location[-1]).lower(), _known_keys(first["loc"][:-1]), n=1, cutoff=0.0)
        return f"{where}: unknown key {key}; did you mean {nearest[0]}?"
    if first["type"] == "union_tag_invalid":
        context = first["ctx"]
        return f"{where}: {key} is {context['tag']!r}: accepted are {context['expected_tags']}."
    if first["type"] in ("missing", "union_tag_not_found"):
        return f"{where}: {key} is required and not given."
    scalar = _find(node, location)
    if first["type"] == "string_type" and isinstance(scalar, yaml.ScalarNode):
        return f"{where}: {_explain_not_text(key, scalar, first['input'])}"
    if first["type"] == "value_error":  # ours, which may begin with a name
        message = first["msg"].removeprefix("Value error, ")
    else:
        message = first["msg"][:1].lower() + first["msg"][1:]
        message = PATTERNS_IN_WORDS.get(first.get("ctx", {}).get("pattern", ""), message)
    value = "" if isinstance(first["input"], dict) else f" is {_short(first['input'])}"
    return f"{where}: {key}{value}: {message}."


def _explain_not_text(key: str, scalar: yaml.ScalarNode, value: Any) -> str:
    if value is None:
        return f"{key} is empty; give a text."
    kind = {bool: "a truth value", int: "a number", float: "a number"}.get(type(value), "a date")
    read_as = "" if str(value) == scalar.value else f", {value}"
    return f'{key} is {scalar.value}, which YAML reads as {kind}{read_as}; quote it: "{scalar.value}".'


def _location(problem: Any) -> tuple[Any, ...]:
    """Where a problem that pydantic reports lies in the file: without the `kind` that it puts after `source`."""
    cause = problem.get("ctx", {}).get("error")
    loc = tuple(part for part in problem["loc"] if part != "[key]")
    inside = (*loc[:1], *loc[2:]) if loc[:1] == ("source",) else loc
    if problem["type"].startswith("union_tag"):
        inside = (*inside, "kind")
    below = cause.key.split(".") if isinstance(cause, AtKey) else []
    return (*inside, *(int(part) if part.isdecimal() else part for part in below))


def _short(value: Any) -> str:
    text = re.sub(r"//[^/@\s]*@", "//...@", repr(value))  # no password from an address is ever printed
    return text if len(text) <= 80 else text[:77] + "..."


def _line(node: yaml.Node, location: tuple[Any, ...]) -> int:
    """The line of the deepest part of `location` that the file has."""
    line = node.start_mark.line + 1
    for length in range(1, len(location) + 1):
        found = _find(node, location[:length])
        if found is None:
            break
        # a value may begin on a later line than its key, and the key is what is named
        parent = _find(node, location[: length - 1])
        keys = [k for k, v in parent.value if v is found] if isinstance(parent, yaml.MappingNode) else []
        line = (keys[0] if keys else found).start_mark.line + 1
    return int(line)


def _find(node: yaml.Node | None, location: tuple[Any, ...]) -> yaml.Node | None:
    """The node at `location`, None if the file has none."""
    for part in location:
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            return None
    return node


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys of the model at a problem's place, as pydantic gives it: with the `kind` after `source`."""
    models: list[type[BaseModel]] = [DatasetSpec]
    for part in location:
        if isinstance(part, int) or not models:
            continue
        if len(models) > 1:  # the kind: which of several models it is
            models = [model for model in models if part in get_args(model.model_fields["kind"].annotation)]
        elif part in models[0].model_fields:
            models = _models_in(models[0].model_fields[part].annotation)
    return sorted({name for model in models or [DatasetSpec] for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every model that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
