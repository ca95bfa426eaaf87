"""The variables that templates may name: of an entity, of what it belongs to, and of its run's row in the run map.

`{X_name}`, `{X_path}`, `{X_id}`, `{int_X_name}` and `{X_output_path}` for every kind X above, `{output_path}`, and each
column. `{X_path}` is relative to the source prefix, so that it can stand in a glob; ids are known of depositions and
datasets, and of what the destination has. What has no value for a run is that run's problem; a name that can have none
for any is one of the config (`unknown_names`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from em_assets.errors import Malformed
from em_assets.ingest.config import TEMPLATED, IngestConfig, Source, strings
from em_assets.ingest.finders import Hit, texts
from em_assets.ingest.run_map import RunMaps
from em_assets.ingest.schema import Shape, VoxelSpacingLiteral
from em_assets.ingest.templates import TemplateError, parse, shown_names
from em_assets.ingest.yaml_lines import Problem, shown_key
from em_assets.portal.layout import RunPlace

ANCESTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "deposition": (),
        "deposition_keyphoto": ("deposition",),
        "dataset": ("deposition",),
        "dataset_keyphoto": ("deposition", "dataset"),
        "run": ("deposition", "dataset"),
        **dict.fromkeys(
            ("gain", "collection_metadata", "frame", "tiltseries", "alignment", "identified_object", "voxel_spacing"),
            ("deposition", "dataset", "run"),
        ),
        **dict.fromkeys(("ctf", "rawtilt"), ("deposition", "dataset", "run", "tiltseries")),
        **dict.fromkeys(("annotation", "tomogram"), ("deposition", "dataset", "run", "voxel_spacing")),
        "key_image": ("deposition", "dataset", "run", "voxel_spacing", "tomogram"),
    }
)
"""What an entity of each kind belongs to, outermost first: the portal's tree."""
TEMPLATED_OPTIONS = ("filter_value", "mesh_source_path")


def names_of(kind: str) -> tuple[str, ...]:
    """What an entity of this kind may add."""
    return (f"{kind}_name", f"{kind}_path", f"{kind}_id", f"int_{kind}_name", f"{kind}_output_path")


def entity_variables(kind: str, hit: Hit, above: Mapping[str, str], row: Mapping[str, str]) -> dict[str, str]:
    """All that holds for what belongs to it. `row` is a run's, of the run map. Raises Malformed for a bad name."""
    own = dict(row)
    own[f"{kind}_name"] = hit.name
    if hit.name.isdecimal():
        own[f"int_{kind}_name"] = str(int(hit.name))
    if len(hit.paths) == 1:
        own[f"{kind}_path"] = hit.paths[0]
    if hit.number is not None:
        own[f"{kind}_id"] = hit.number
    elif kind in ("deposition", "dataset"):
        own[f"{kind}_id"] = hit.name
    variables = {**own, **above, **{name: own[name] for name in own.keys() & set(names_of(kind))}}
    output_path = _output_path(kind, hit, variables)
    return variables if output_path is None else {**variables, f"{kind}_output_path": output_path}


def _output_path(kind: str, hit: Hit, variables: Mapping[str, str]) -> str | None:
    """Where the portal's tree has it; None where that is not known before it is made."""
    if kind in ("deposition", "dataset"):
        if not hit.name.isdecimal():
            raise Malformed(f"found the {kind} {hit.name!r}, expected the portal's number for it; correct it.")
        return f"depositions_metadata/{hit.name}" if kind == "deposition" else hit.name
    if kind == "run":
        return _run_place(variables).folder
    if kind == "voxel_spacing":
        return _run_place(variables).spacing(float(hit.name)).folder
    if hit.number is None or kind not in ("tiltseries", "tomogram"):
        return None
    return _numbered_folder(kind, int(hit.number), variables)


def _numbered_folder(kind: str, number: int, variables: Mapping[str, str]) -> str:
    place = _run_place(variables)
    if kind == "tiltseries":
        return f"{place.all_tilt_series}/{number}"
    return place.spacing(float(variables["voxel_spacing_name"])).tomogram(number).folder


def _run_place(variables: Mapping[str, str]) -> RunPlace:
    return RunPlace(int(variables["dataset_name"]), variables["run_name"])


def expanded_options(source: Source, variables: Mapping[str, str]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """A shape's options with the values of their templates, and what is wrong: (key below the source, text)."""
    if not isinstance(source.finder, Shape):
        return {}, []
    options = source.finder.model_dump(exclude_none=True, exclude={"glob_string", "glob_strings"})
    wrong: list[tuple[str, str]] = []
    for key in TEMPLATED_OPTIONS:
        if key in options:
            try:
                options[key] = parse(options[key]).expand(variables)
            except TemplateError as error:
                wrong.append((f"{source.finder_name}.{key}", str(error)))
    return options, wrong


def unknown_names(config: IngestConfig, maps: RunMaps) -> Iterator[Problem]:
    """Templates with a variable that no run will have, each with its key and line."""
    for kind, blocks in config.blocks.items():
        above = {"output_path", *maps.columns, *(name for parent in ANCESTORS[kind] for name in names_of(parent))}
        own = {*above, *names_of(kind)}
        for block in blocks:
            for source in block.sources:
                yield from _unknown(config, maps, above, _sought(source))
                yield from _unknown(config, maps, own, _option_texts(source))
            if kind in TEMPLATED:
                of_metadata = (
                    (f"{block.key}.metadata.{shown_key(key)}", text) for key, text in strings(block.metadata)
                )
                yield from _unknown(config, maps, own, of_metadata)


def _unknown(
    config: IngestConfig, maps: RunMaps, known: Iterable[str], found: Iterable[tuple[str, str]]
) -> Iterator[Problem]:
    for key, text in found:
        unknown = sorted(parse(text).names.difference(known))
        if unknown:
            shown = " and ".join(f"{{{name}}}" for name in unknown)
            tables = " or ".join(maps.files) or "a run_data_map_file"
            expected = f"expected a column of {tables}, or one of {shown_names(frozenset(known))}"
            yield config.problem(key, f"found {shown}, {expected}; add the column or correct the name.")


def _sought(source: Source) -> Iterator[tuple[str, str]]:
    """(key, text) of what is looked for."""
    for key, text in texts(source):
        yield f"{source.key}.{source.finder_name}.{key}", text
    if isinstance(source.finder, VoxelSpacingLiteral):
        for index, value in enumerate(source.finder.value):
            if isinstance(value, str):
                yield f"{source.key}.literal.value[{index}]", value


def _option_texts(source: Source) -> Iterator[tuple[str, str]]:
    for key in TEMPLATED_OPTIONS:
        text = getattr(source.finder, key, None)
        if isinstance(text, str):
            yield f"{source.key}.{source.finder_name}.{key}", text
