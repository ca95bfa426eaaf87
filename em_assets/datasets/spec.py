"""`DatasetSpec`: everything a person states about one dataset, and reading it from YAML.

A spec says who publishes the dataset, where it lies, what is expected of it and how it is stored. Everything
else (assets, partitions, checks, catalogue row) follows from it. Unknown keys are errors, and every message
names the file, the line and the key.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import keyword
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from em_assets.errors import Malformed
from em_assets.volume import Box, Zyx, ceil_divide, multiply

MAX_SPEC_BYTES = 256 * 1024
MAX_NESTING = 20
MAX_PARTITIONS = 1000
"""Each is a row in the event log and a cell in the UI, and one record and one object in the store."""
MAX_SHARD_BYTES = 2 * 2**30
"""A shard is built in memory, once per worker."""
MAX_CHUNK_BYTES = 64 * 2**20
"""A chunk is the least that a reader of one voxel decodes."""
MAX_NM = 1e12
"""A kilometre. More is a slip, and arithmetic on it would lose the nanometres."""
NAME_PATTERN = r"^[a-z][a-z0-9_]{0,62}$"
RESERVED_NAMES = frozenset(keyword.kwlist) | {
    "metadata_catalog",  # our own asset
    # Dagster refuses these (and Python's keywords) as the name of an asset.
    *("arg_dict", "bool", "conf", "config", "context", "dict", "float", "input", "input_arg_dict"),
    *("int", "meta", "output", "output_arg_dict", "str", "type"),
}
ASSET_SUFFIXES = ("_chunks", "_files", "_metadata")
"""Assets that a dataset has beside the one of its own name."""
ITEM_BYTES = {"uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "int8": 1, "int16": 2, "int32": 4, "float32": 4}
STRING_TAG = "tag:yaml.org,2002:str"
PATTERNS_IN_WORDS = {
    NAME_PATTERN: "use lower-case letters, digits and _, a letter first, at most 63",
    r"^10\.\d{4,9}/\S+$": "a DOI looks like 10.7554/eLife.57443, without https://doi.org/",
    r"^[0-9a-f]{64}$": "a sha256 has 64 hexadecimal digits, in lower case",
    r"^(team:\S+|\S+@\S+)$": "an owner is team:name or an e-mail address",
}


class _AtKey(ValueError):
    """What is wrong with the value of one key, found by a check that sees several."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def _three(fits: Callable[[Any], bool], expected: str) -> BeforeValidator:
    """Judges a triple as a whole: a person sees what the three mean, not which of them has which type."""

    def check(value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) == 3 and all(fits(item) for item in value):
            return value
        raise ValueError(f"expected {expected}")

    return BeforeValidator(check)


def _is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most  # a bool is an int, but not a count


def _is_number(value: Any, above: float) -> bool:
    return type(value) in (int, float) and above < value <= MAX_NM


def _web_address(value: str) -> str:
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"not a web address ({error})") from None
    if not host:
        raise ValueError("not a web address: it names no host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a spec is published: it must not hold a user or a password")
    return value


VoxelIndex = Annotated[int, Field(ge=-(2**40), le=2**40, strict=True)]
PositiveInt = Annotated[int, Field(gt=0, le=2**31, strict=True)]
Nanometres = Annotated[float, Field(gt=0, le=MAX_NM)]
Coordinate = Annotated[float, Field(gt=-MAX_NM, le=MAX_NM)]
Shape = Annotated[
    tuple[PositiveInt, PositiveInt, PositiveInt],
    _three(lambda v: _is_whole(v, 1, 2**31), "three positive whole numbers of voxels, (z, y, x)"),
]
VoxelSizeNm = Annotated[
    tuple[Nanometres, Nanometres, Nanometres],
    _three(lambda v: _is_number(v, 0), "three positive numbers in nanometres, (z, y, x), such as [8.0, 8.0, 8.0]"),
]
VoxelOrigin = Annotated[
    tuple[VoxelIndex, VoxelIndex, VoxelIndex],
    _three(lambda v: _is_whole(v, -(2**40), 2**40), "three whole numbers of voxels, (z, y, x)"),
]
OriginNm = Annotated[
    tuple[Coordinate, Coordinate, Coordinate],
    _three(lambda v: _is_number(v, -MAX_NM), "three numbers in nanometres, (z, y, x)"),
]
Fraction = Annotated[float, Field(gt=0, le=1, strict=True)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


class PrecomputedSource(_Model):
    """A Neuroglancer precomputed image, read over HTTP(S)."""

    kind: Literal["precomputed"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$"), AfterValidator(_web_address)]
    """The folder that holds `info`, e.g. https://storage.googleapis.com/bucket/path."""
    level: Annotated[int, Field(ge=0, lt=64, strict=True)] = 0
    """Which of the publisher's scales is level 0 of the stored volume."""


class Redraw(_Model):
    """Draw again (the next origin of the same seed) while the crop would be mostly empty."""

    level: Annotated[int, Field(ge=0, lt=64, strict=True)]
    """The publisher's scale on which emptiness is judged: a coarse one, so that it costs little."""
    min_filled_fraction: Fraction = 0.5
    """Share of non-zero voxels below which a crop counts as mostly empty."""
    max_draws: Annotated[int, Field(gt=0, le=1000, strict=True)] = 50
    """After so many without a filled one the run stops and says how filled the best was."""


class Crop(_Model):
    """A box of the publisher's volume. Exactly one of `seed`, `origin` and `origin_nm` says where it starts."""

    shape: Shape
    """(z, y, x) in voxels."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] | None = None
    """Draws the origin: random, but the same wherever and whenever it is drawn."""
    origin: VoxelOrigin | None = None
    """(z, y, x), in the publisher's voxels."""
    origin_nm: OriginNm | None = None
    """(z, y, x), in nanometres from the corner of the publisher's voxel 0; floored to a voxel."""
    snap: Annotated[bool, Field(strict=True)] = True
    """Move the origin down to the publisher's chunk grid, so that no chunk is decoded for two partitions."""
    redraw: Redraw | None = None
    """Draw again while the crop would be mostly empty; absent, the first draw is taken."""

    @model_validator(mode="after")
    def _one_origin(self) -> Crop:
        given = [name for name in ("seed", "origin", "origin_nm") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of seed, origin, origin_nm (found: {', '.join(given) or 'none'})")
        if self.redraw is not None and self.seed is None:
            raise _AtKey("redraw", "it needs seed, because a given origin is never moved")
        return self


class Expected(_Model):
    """What the publisher stated when the spec was written; another answer stops the run."""

    source_shape: Annotated[tuple[Shape, ...], Field(min_length=1, max_length=20)]
    """(z, y, x) of the publisher's whole volume at the chosen level. Several where reports differ: any is accepted,
    and the record keeps the one that was met."""
    dtype: Literal["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float32"]
    """Of one voxel; it is kept as it is."""
    voxel_size_nm: VoxelSizeNm
    """(z, y, x) of one voxel at the chosen level, in nanometres."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The stored dataset's digest, once it is known and meant to stay."""
    file_size_bytes: Annotated[int, Field(gt=0, strict=True)] | None = None
    """The stored dataset's size, likewise."""

    @field_validator("source_shape", mode="before", json_schema_input_type=Shape | tuple[Shape, ...])
    @classmethod
    def _one_shape_or_several(cls, value: Any) -> Any:
        several = isinstance(value, list | tuple) and value and all(isinstance(item, list | tuple) for item in value)
        return value if several else [value]


class Output(_Model):
    """How the standardized OME-Zarr volume is written."""

    shard: Shape = (256, 256, 256)
    """(z, y, x) voxels in one object; also the region of one partition."""
    chunk: Shape = (64, 64, 64)
    """(z, y, x) voxels compressed together inside a shard."""
    codec: Literal["zstd", "none"] = "zstd"
    """How chunks are compressed, always without loss."""
    codec_level: Annotated[int, Field(ge=1, le=22, strict=True)] = 1
    """zstd's: higher is smaller and slower to write."""

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> Output:
        if any(s % c for s, c in zip(self.shard, self.chunk, strict=True)):
            raise _AtKey("shard", f"{list(self.shard)} is not a multiple of the chunk, {list(self.chunk)}")
        if any(s % 2 for s in self.shard):
            raise _AtKey("shard", f"{list(self.shard)} must be even, so that pyramids halve it")
        return self


class DatasetSpec(_Model):
    """One dataset: who publishes it, where, what is expected, how it is stored, how it is cited."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """The asset's name, the folder's name, the catalogue's key; also the file's name without `.yaml`."""
    title: Text
    """One line, for tables."""
    description: Text
    """What was imaged, what this volume is of it, and what a user should know."""
    publisher: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Short name of who publishes it: `hemibrain`, `empiar` ... the catalogue's `source`."""
    source_id: Text
    """The publisher's own identifier of it."""
    page_url: Annotated[str, Field(pattern=r"^https?://\S+$"), AfterValidator(_web_address)]
    """The publisher's own page about it."""
    license: Text
    """SPDX identifier where there is one."""
    citation: Text
    """What somebody who uses the data should cite."""
    doi: Annotated[str, Field(pattern=r"^10\.\d{4,9}/\S+$")]
    """Of the citation or of the data, bare: 10.7554/eLife.57443."""
    modality: Text | None = None
    """How it was imaged: FIB-SEM, ssTEM, cryo-ET ..."""
    organism: Text | None = None
    """Scientific name."""
    sample: Text | None = None
    """Which part of the organism, or which cell line."""
    instrument: Text | None = None
    """Microscope and maker."""
    notes: dict[str, Text] = {}
    """How sure the facts above are, key by key."""
    owners: tuple[Annotated[str, Field(pattern=r"^(team:\S+|\S+@\S+)$")], ...] = ("team:em_assets",)
    """Who looks after it, as Dagster shows it: team:name or an e-mail address."""

    source: PrecomputedSource
    """Where the publisher serves it, and in which form."""
    crop: Crop
    """Which part of the publisher's volume is stored."""
    expected: Expected
    """What the publisher stated when the spec was written."""
    output: Output = Output()
    """How the stored volume is cut into objects."""
    missing: Literal["record", "error"] = "record"
    """What to do where the publisher has no chunk: keep a record of it, or fail the partition."""

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, value: str) -> str:
        if value in RESERVED_NAMES:
            raise ValueError("this word is reserved; choose another name")
        return value

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DatasetSpec:
        smallest = [min(axis) for axis in zip(*self.expected.source_shape, strict=True)]
        if any(c > s for c, s in zip(self.crop.shape, smallest, strict=True)):
            raise _AtKey(
                "crop.shape",
                f"{list(self.crop.shape)} is larger than the publisher's volume, {smallest} (z, y, x); make it smaller",
            )
        self._check_bytes("output.shard", self.output.shard, MAX_SHARD_BYTES)
        self._check_bytes("output.chunk", self.output.chunk, MAX_CHUNK_BYTES)
        partitions = math.prod(self.shard_grid())
        if partitions > MAX_PARTITIONS:
            raise _AtKey(
                "output.shard",
                f"{list(self.output.shard)} cuts {list(self.shape)} voxels into {partitions} partitions, "
                f"more than {MAX_PARTITIONS}; make the shard larger",
            )
        return self

    def _check_bytes(self, key: str, shape: Zyx, limit: int) -> None:
        size = math.prod(shape) * ITEM_BYTES[self.expected.dtype]
        if size > limit:
            text = (
                f"{list(shape)} voxels of {self.expected.dtype} have {size} bytes, more than {limit}; make it smaller"
            )
            raise _AtKey(key, text)

    @property
    def shape(self) -> Zyx:
        """(z, y, x) of level 0 of the stored volume."""
        return self.crop.shape

    def identity(self) -> str:
        """Digest of everything that decides the bytes: two specs with one identity make one volume.

        The host and port of the source are left out (a mirror serves the same bytes), and so is everything that
        only describes.
        """
        source = self.source.model_dump()
        source["url"] = urlsplit(self.source.url).path.rstrip("/")
        decides = {
            "source": source,
            "crop": self.crop.model_dump(),
            "dtype": self.expected.dtype,
            "voxel_size_nm": self.expected.voxel_size_nm,
            "output": self.output.model_dump(),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    def shard_grid(self) -> Zyx:
        """How many shards level 0 has along z, y, x."""
        return ceil_divide(self.shape, self.output.shard)

    def shard_indices(self) -> Iterator[Zyx]:
        return Box.from_shape(self.shape).cells(self.output.shard)

    def shard_box(self, index: Zyx) -> Box:
        """The part of level 0 that a shard holds, clipped to the volume."""
        whole = Box.from_shape(self.shape)
        box = Box.from_shape(self.output.shard, at=multiply(index, self.output.shard)).intersection(whole)
        if box is None:
            raise ValueError(f"shard {index} is outside the volume of shape {self.shape}")
        return box


def load_specs(folders: Iterable[Path]) -> dict[str, DatasetSpec]:
    """Every spec of the folders (`*.yaml`, not below), by name. A name given twice is an error naming both files."""
    specs: dict[str, DatasetSpec] = {}
    files: dict[str, Path] = {}
    for folder in {folder.resolve(): folder for folder in folders}.values():
        for file in sorted(folder.glob("*.yaml")):
            if file.name.startswith("."):  # editors' locks and the shadow files of macOS
                continue
            spec = load_spec(file)
            if spec.name in specs:
                raise Malformed(f"dataset {spec.name} is given by both {files[spec.name]} and {file}; remove one.")
            specs[spec.name], files[spec.name] = spec, file
    for name in specs:
        for other in (name + suffix for suffix in ASSET_SUFFIXES):
            if other in specs:
                raise Malformed(
                    f"{files[other]} names a dataset like an asset of {files[name]}; rename one of the two."
                )
    return specs


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
    """The most telling problem as one sentence: a misspelt key before the key that is missing because of it."""
    rank = {"extra_forbidden": 0, "missing": 2}
    first = min(error.errors(), key=lambda e: (rank.get(e["type"], 1), _line(node, _location(e))))
    location = _location(first)
    key = ".".join(str(part) for part in location) or "the spec"
    where = f"{file}, line {_line(node, location)}"
    if first["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(str(location[-1]).lower(), _known_keys(location[:-1]), n=1, cutoff=0.0)
        return f"{where}: unknown key {key}; did you mean {nearest[0]}?"
    if first["type"] == "missing":
        return f"{where}: {key} is required and not given."
    scalar = _find(node, location)
    if first["type"] == "string_type" and isinstance(scalar, yaml.ScalarNode):
        return f"{where}: {_explain_not_text(key, scalar, first['input'])}"
    message = re.sub(r"^Value error, ", "", first["msg"])
    message = PATTERNS_IN_WORDS.get(first.get("ctx", {}).get("pattern", ""), message[:1].lower() + message[1:])
    value = "" if isinstance(first["input"], dict) else f" is {_short(first['input'])}"
    return f"{where}: {key}{value}: {message}."


def _explain_not_text(key: str, scalar: yaml.ScalarNode, value: Any) -> str:
    if value is None:
        return f"{key} is empty; give a text."
    kind = {bool: "a truth value", int: "a number", float: "a number"}.get(type(value), "a date")
    read_as = "" if str(value) == scalar.value else f", {value}"
    return f'{key} is {scalar.value}, which YAML reads as {kind}{read_as}; quote it: "{scalar.value}".'


def _location(problem: Any) -> tuple[Any, ...]:
    """Where a problem that pydantic reports lies in the file."""
    cause = problem.get("ctx", {}).get("error")
    return (*problem["loc"], *(cause.key.split(".") if isinstance(cause, _AtKey) else ()))


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
    model: Any = DatasetSpec
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
        args = [arg for arg in getattr(model, "__args__", ()) if isinstance(arg, type) and issubclass(arg, BaseModel)]
        model = args[0] if args else model
    return list(getattr(model, "model_fields", DatasetSpec.model_fields))
