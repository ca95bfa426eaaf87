"""What an ingestion would do: every entity that a config finds, in the portal's tree, and what each glob matched.

Listings, run maps and the headers and JSON that finders ask for are read; nothing is written. What is wrong with one
run is that run's, and the others are planned. `run.py` carries a plan out; `table.py` shows it to a person.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from em_assets.errors import Malformed, Unavailable
from em_assets.ingest.config import TEMPLATED, IngestConfig, Source, metadata_problems, strings
from em_assets.ingest.filters import Filters, bounded
from em_assets.ingest.finders import GROUPED, Hit, Places, find, texts
from em_assets.ingest.listing import Listing
from em_assets.ingest.run_map import RunMaps, read_run_maps
from em_assets.ingest.schema import (
    KeyPhotoLiteral,
    Shape,
    StandardLiteral,
    VoxelSpacingLiteral,
)
from em_assets.ingest.templates import TemplateError, expand_typed
from em_assets.ingest.variables import entity_variables, expanded_options, unknown_names
from em_assets.ingest.yaml_lines import Key, Problem, shown_key
from em_assets.store import Store

SHOWN_EXAMPLES = 3
UNIQUE = ("deposition", "dataset", "run", "voxel_spacing")
"""Kinds of which a parent has one of each name, whatever source finds it."""


@dataclass(frozen=True)
class Found:
    """One entity."""

    kind: str
    name: str
    paths: tuple[str, ...]
    """Keys of the source's store, of the destination's if it is not `is_new`; of a key photo an address. A Zarr is the
    folder. Several for frames and alignments; none for what is only a name."""
    metadata: dict[str, Any]
    """Of its block, templates with their values; of what is not `is_new`, what the destination's JSON says."""
    variables: dict[str, str]
    """For the templates of what belongs to it: its own, its ancestors' and its run's columns."""
    line: int
    """Of its source; 0 for what no line asks for and the portal makes all the same."""
    is_new: bool
    """Whether it is to be made; otherwise the destination has it, and others refer to it."""
    key: str = ""
    """Of its source: `annotations[3].sources[0]`."""
    block: str = ""
    """`annotations[3]`: what two sources of one block find are files of one annotation."""
    parents: dict[str, str] = field(default_factory=dict)
    """The names of what it belongs to, by kind."""
    number: int | None = None
    """The portal's id, where the destination has given it one."""
    shape: str | None = None
    """Of an annotation: `Point`, `SemanticSegmentationMask` ..."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of a shape, as given: `file_format`, `columns`, `mask_label` ..., templates with their values."""


@dataclass(frozen=True)
class RunPlan:
    """A run, and everything in it."""

    run: Found
    entities: tuple[Found, ...]
    """In the order of the portal's tree: what belongs to another comes after it."""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class GlobReport:
    """What one glob of the config did, over all that it was tried for."""

    key: str
    line: int
    kind: str
    finder: str
    text: str
    """As written."""
    example: str
    """With the variables of the first it was tried for."""
    is_glob: bool
    """Otherwise names, or a filter."""
    matched: tuple[str, ...]
    """Runs (of what is above runs, datasets or depositions) for which it found something."""
    unmatched: tuple[str, ...]
    files: int
    """How many different ones; of names, how many entities."""
    examples: tuple[str, ...]


@dataclass(frozen=True)
class IngestPlan:
    """Everything that an ingestion of a config would make."""

    config: IngestConfig
    depositions: tuple[Found, ...]
    datasets: tuple[Found, ...]
    runs: tuple[RunPlan, ...]
    globs: tuple[GlobReport, ...]
    key_photos: tuple[Found, ...] = ()
    """Of depositions and datasets. One without paths is made of the first tomogram, if it is a dataset's."""
    problems: tuple[Problem, ...] = ()
    """Of the whole; those of a run are with it."""
    is_filtered: bool = False
    """Whether entities that the config finds were left out."""

    @property
    def every_problem(self) -> tuple[Problem, ...]:
        return (*self.problems, *(problem for run in self.runs for problem in run.problems))

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.every_problem if problem.is_error)


def make_plan(config: IngestConfig, source: Store, destination: Store | None, filters: Filters) -> IngestPlan:
    """`destination` is where the portal's tree is or will be; None if there is none yet.

    What is wrong is in `problems`. Raises Unavailable if a store cannot be listed at all.
    """
    folder = source.local_path("")
    if folder is not None and not folder.is_dir():
        raise Unavailable(
            f"{folder} is no folder, expected what the source_prefix of {config.file} lies in; correct it."
        )
    maps = read_run_maps(config, source)
    planner = _Planner(config, source, destination, filters, maps)
    return planner.plan() if not maps.problems else IngestPlan(config, (), (), (), (), (), maps.problems)


@dataclass
class _Tally:
    """A `GlobReport` in the making."""

    key: str
    line: int
    source: Source
    text: str
    is_glob: bool
    example: str = ""
    tried: dict[str, bool] = field(default_factory=dict)
    files: dict[str, None] = field(default_factory=dict)

    def add(self, owner: str, expanded: str, files: tuple[str, ...]) -> None:
        self.example = self.example or expanded
        self.tried[owner] = self.tried.get(owner, False) or bool(files)
        self.files.update(dict.fromkeys(files))

    def report(self) -> GlobReport:
        return GlobReport(
            self.key,
            self.line,
            self.source.kind,
            self.source.finder_name,
            self.text,
            self.example,
            self.is_glob,
            tuple(owner for owner, is_matched in self.tried.items() if is_matched),
            tuple(owner for owner, is_matched in self.tried.items() if not is_matched),
            len(self.files),
            tuple(self.files)[:SHOWN_EXAMPLES],
        )


class _Planner:
    def __init__(
        self, config: IngestConfig, source: Store, destination: Store | None, filters: Filters, maps: RunMaps
    ) -> None:
        self.config, self.filters, self.maps = config, filters, maps
        self.places = Places(
            Listing(source, config.source_prefix),
            None if destination is None else Listing(destination, ""),
            source.root.rstrip("/").removeprefix("s3://") if source.root.startswith("s3://") else _folder_name(source),
        )
        self.problems: list[Problem] = [*config.problems, *unknown_names(config, maps)]
        self.unusable = {_block_of(problem.key) for problem in self.problems if problem.is_error}
        self.let_pass = {problem.key for problem in config.problems}
        self.tallies: dict[str, list[_Tally]] = {
            source.key: list(self._tallies(source))
            for blocks in config.blocks.values()
            for b in blocks
            for source in b.sources
        }

    def plan(self) -> IngestPlan:
        photos: list[Found] = []
        datasets: list[Found] = []
        runs: list[RunPlan] = []
        depositions = self._find("deposition", {}, self.problems)
        for deposition in depositions:
            above = {"deposition": deposition}
            photos += self._find("deposition_keyphoto", above, self.problems)
            for dataset in self._find("dataset", above, self.problems):
                datasets.append(dataset)
                inside = {**above, "dataset": dataset}
                photos += self._find("dataset_keyphoto", inside, self.problems)
                runs += [self._plan_run(run, inside) for run in self._find("run", inside, self.problems)]
        reports = tuple(tally.report() for tallies in self.tallies.values() for tally in tallies)
        self.problems += self._unmatched(reports)
        return IngestPlan(
            self.config,
            tuple(depositions),
            tuple(datasets),
            tuple(runs),
            tuple(sorted(reports, key=lambda report: report.line)),
            tuple(photos),
            tuple(self.problems),
            not self.filters.is_empty,
        )

    def _plan_run(self, run: Found, above: Mapping[str, Found]) -> RunPlan:
        problems: list[Problem] = []
        return RunPlan(run, tuple(self._entities({**above, "run": run}, problems)), tuple(problems))

    def _entities(self, above: Mapping[str, Found], problems: list[Problem]) -> Iterator[Found]:
        for kind in ("gain", "collection_metadata", "frame"):
            yield from self._find(kind, above, problems)
        for tilt_series in self._find("tiltseries", above, problems):
            yield tilt_series
            for kind in ("ctf", "rawtilt"):
                yield from self._find(kind, {**above, "tiltseries": tilt_series}, problems)
        for kind in ("alignment", "identified_object"):
            yield from self._find(kind, above, problems)
        for spacing in self._find("voxel_spacing", above, problems):
            yield spacing
            at_spacing = {**above, "voxel_spacing": spacing}
            yield from self._find("annotation", at_spacing, problems)
            for tomogram in self._find("tomogram", at_spacing, problems):
                yield tomogram
                yield from self._find("key_image", {**at_spacing, "tomogram": tomogram}, problems)

    # One kind, for one parent

    def _find(self, kind: str, above: Mapping[str, Found], problems: list[Problem]) -> list[Found]:
        found: list[Found] = []
        for block in self.config.blocks[kind]:
            for source in block.sources:
                if _applies(source, above) and block.key not in self.unusable:
                    found += self._search(source, block.metadata, above, problems)
        return self._unique(kind, found, problems) if kind in UNIQUE else found

    def _search(
        self, source: Source, metadata: Mapping[str, Any], above: Mapping[str, Found], problems: list[Problem]
    ) -> Iterator[Found]:
        variables = _variables(above)
        search = find(source, variables, self.places)
        owner = next((above[kind].name for kind in ("run", "dataset", "deposition") if kind in above), "")
        tallies = self.tallies[source.key]
        if search.globs:
            for tally, globbed in zip(tallies, search.globs, strict=True):
                tally.add(owner, globbed.expanded, globbed.paths)
        else:
            for tally in tallies:
                tally.add(owner, tally.text, tuple(hit.name for hit in search.hits))
        problems += [self._problem(source, one.key, one.text, above, is_error=one.is_error) for one in search.troubles]
        for hit in search.hits:
            # before its name is looked at: what cannot be made may be left out
            if self._is_wanted(source, hit, problems):
                one = self._found(source, hit, metadata, above, problems)
                if one is not None:
                    yield one

    def _problem(
        self, source: Source, key: str, text: str, above: Mapping[str, Found], *, is_error: bool = True
    ) -> Problem:
        run = above["run"].name if "run" in above else None
        if run is not None:
            text = f"run {run}: {text}"
            if is_error and "has no value here" in text and run not in self.maps.variables and self.maps.files:
                text += f" The run has no row in {' or '.join(self.maps.files)}."
        where = key if key.startswith(source.block) else f"{source.key}.{key}".rstrip(".")
        return self.config.problem(where, text, is_error=is_error)

    def _found(
        self,
        source: Source,
        hit: Hit,
        metadata: Mapping[str, Any],
        above: Mapping[str, Found],
        problems: list[Problem],
    ) -> Found | None:
        """None if it cannot be made, which the problems say."""
        listing = self.places.source if hit.is_new else self.places.destination
        is_address = isinstance(source.finder, KeyPhotoLiteral)
        paths = hit.paths if is_address or listing is None else tuple(listing.path(path) for path in hit.paths)
        row = self.maps.of(hit.name) if source.kind == "run" else {}
        try:
            variables = entity_variables(source.kind, hit, _variables(above), row)
        except Malformed as error:
            problems.append(self._problem(source, "", str(error), above))
            return None
        expanded, wrong = self._metadata(source, hit, metadata, variables)
        options, wrong_options = expanded_options(source, variables)
        troubles = [*wrong, *wrong_options]
        problems += [self._problem(source, key, text, above) for key, text in troubles]
        return (
            None
            if troubles
            else Found(
                kind=source.kind,
                name=hit.name,
                paths=paths,
                metadata=expanded,
                variables=variables,
                line=source.line,
                is_new=hit.is_new,
                key=source.key,
                block=source.block,
                parents={kind: parent.name for kind, parent in above.items()},
                number=None if hit.number is None else int(hit.number),
                shape=source.finder_name if isinstance(source.finder, Shape) else None,
                options=options,
            )
        )

    def _metadata(
        self, source: Source, hit: Hit, metadata: Mapping[str, Any], variables: Mapping[str, str]
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """What the entity's metadata becomes, and what is wrong with it: (key, text)."""
        if not hit.is_new or source.kind == "voxel_spacing":
            return dict(hit.metadata), []
        expanded = copy.deepcopy(dict(metadata))
        if source.kind not in TEMPLATED:
            return expanded, []
        wrong: list[tuple[Key, str]] = []
        changed: set[Key] = set()
        for key, text in list(strings(expanded)):
            try:
                value = expand_typed(text, variables)
            except TemplateError as error:
                wrong.append((key, str(error)))
                continue
            if value != text:
                changed.add(key)
                _put(expanded, key, value)
        if not wrong:
            wrong = [one for one in metadata_problems(source.kind, expanded) if one[0] in changed]
        named = [(f"{source.block}.metadata.{shown_key(key)}", text) for key, text in wrong]
        return expanded, [one for one in named if one[0] not in self.let_pass]

    def _is_wanted(self, source: Source, hit: Hit, problems: list[Problem]) -> bool:
        is_group = source.kind in GROUPED and hit.paths
        names = [path.rpartition("/")[2] for path in hit.paths] if is_group else [hit.name]
        try:
            return self.filters.allow(source.kind, names)
        except Malformed as error:
            problems.append(self.config.problem(source.key, str(error)))
            return False

    def _unique(self, kind: str, found: list[Found], problems: list[Problem]) -> list[Found]:
        """One of each name. What is to be made is not also there; two that are to be made are a problem."""
        by_name: dict[str, Found] = {}
        for one in found:
            other = by_name.get(one.name)
            if other is None or (one.is_new and not other.is_new):
                by_name[one.name] = one
            elif one.is_new:
                here, there = (", ".join(each.paths) or each.key for each in (one, other))
                text = f"found the {kind} {one.name} twice, as {there} (line {other.line}) and {here}; remove one."
                problems.append(self.config.problem(one.key, text))
        return list(by_name.values())

    # The config against the tables, and what globs matched nothing

    def _tallies(self, source: Source) -> Iterator[_Tally]:
        globs = list(texts(source))
        for key, text in globs:
            where = f"{source.key}.{source.finder_name}.{key}"
            yield _Tally(where, self.config.line(where) if source.line else 0, source, text, is_glob=True)
        if not globs:
            yield _Tally(source.key, source.line, source, _names_text(source), is_glob=False)

    def _unmatched(self, reports: tuple[GlobReport, ...]) -> Iterator[Problem]:
        """With filters, what a glob finds for others is not known: then it is said, and no error. Nor is it one for the
        portal's code, which a partial config is read as.
        """
        is_error = self.filters.is_empty and not self.config.is_partial
        for report in reports:
            if not report.is_glob or report.matched or _block_of(report.key) in self.unusable:
                continue
            where = f"{len(report.unmatched)} tried ({', '.join(report.unmatched[:SHOWN_EXAMPLES])})"
            tried = f"for none of {where}, such as {report.example!r}" if report.unmatched else "as nothing was tried"
            text = f"{report.text!r} matches nothing, {tried}; correct it, or remove it."
            yield self.config.problem(report.key, text, is_error=is_error)


def _block_of(key: str) -> str:
    """`tomograms[0]`, of a key in it."""
    return key[: key.find("]") + 1]


def _folder_name(source: Store) -> str:
    folder = source.local_path("")
    return folder.name if folder is not None else source.root


def _applies(source: Source, above: Mapping[str, Found]) -> bool:
    """The parent filters, as the portal's code has them: anywhere in the parent's name."""
    for kind, parent in above.items():
        name = bounded(parent.name)
        if any(regex.search(name) for regex in source.exclude_parents.get(kind, ())):
            return False
        including = source.include_parents.get(kind)
        if including and not any(regex.search(name) for regex in including):
            return False
    return True


def _variables(above: Mapping[str, Found]) -> dict[str, str]:
    """For what belongs to these, outermost first."""
    deepest = list(above.values())[-1:]
    return {"output_path": "", **(deepest[0].variables if deepest else {})}


def _names_text(source: Source) -> str:
    """What a source without globs looks for, for a person."""
    finder = source.finder
    if isinstance(finder, StandardLiteral | VoxelSpacingLiteral):
        return ", ".join(map(str, finder.value))
    if isinstance(finder, KeyPhotoLiteral):
        return ", ".join(finder.value.model_dump(exclude_unset=True))
    return " and ".join(f"{'.'.join(one.key)} = {one.value!r}" for one in getattr(finder, "filters", ()))


def _put(values: Any, key: Key, value: Any) -> None:
    for part in key[:-1]:
        values = values[part]
    values[key[-1]] = value
