"""What one source of a config finds for one parent: the six finders, and the globs of an annotation's shapes.

    source_glob         one glob over the raw files; `match_regex` anywhere in the whole path, the name by `name_regex`
    source_multi_glob   several; every file once
    destination_glob    as source_glob over what the destination has: such entities are referred to, not made again
    destination_filter  by the values in the destination's metadata JSON, likewise
    literal             names as the config has them
    tomogram_header     voxel spacings from the headers of MRC files

A whole path is the bucket's or folder's name, the source prefix and the path, as on S3, wherever the files lie. Two
files of one name are a problem here, where the portal's code takes the last; a file that `name_regex` does not fit,
too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from em_assets.errors import EmAssetsError, Malformed
from em_assets.formats._mrc_header import HEADER_BYTES, read_header, spacings_angstrom
from em_assets.ingest.config import Source
from em_assets.ingest.filters import bounded, matches
from em_assets.ingest.listing import Listing, literal_folder
from em_assets.ingest.schema import (
    DestinationFilter,
    DestinationGlob,
    KeyPhotoLiteral,
    Shape,
    SourceGlob,
    SourceMultiGlob,
    StandardLiteral,
    TomogramHeader,
    VoxelSpacingLiteral,
)
from em_assets.ingest.templates import Template, TemplateError, expand_typed, parse

GROUPED = ("frame", "alignment")
"""Kinds of which all that a source finds is one entity."""
METADATA_FILE = "metadata.json"
MAX_METADATA_BYTES = 64 * 2**20
SPACING_TOLERANCE = 0.001
"""Ångström: what a voxel spacing's folder can tell."""
ANY = re.compile(".*", re.DOTALL)
WHOLE_NAME = re.compile("(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Places:
    """Where finders look."""

    source: Listing
    destination: Listing | None
    root_name: str
    """Of the bucket or folder: what whole paths begin with."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One entity that was found."""

    name: str
    paths: tuple[str, ...] = ()
    """Relative to the listing they were found in."""
    is_new: bool = True
    number: str | None = None
    """Its id, where the destination has it already."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """From its header or its JSON."""


@dataclass(frozen=True, slots=True)
class Globbed:
    """What one glob of a source matched."""

    text: str
    expanded: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trouble:
    """A problem, but for its line."""

    key: str
    """Below the source: `source_glob.name_regex`."""
    text: str
    is_error: bool = True


@dataclass
class Search:
    """What a source has found for one parent."""

    source: Source
    variables: Mapping[str, str]
    places: Places
    hits: list[Hit] = field(default_factory=list)
    globs: list[Globbed] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)

    def trouble(self, key: str, text: str, *, is_error: bool = True) -> None:
        self.troubles.append(Trouble(f"{self.source.finder_name}.{key}", text, is_error))

    def is_excluded(self, name: str) -> bool:
        return any(matches(regex, name) for regex in self.source.exclude)


def find(source: Source, variables: Mapping[str, str], places: Places) -> Search:
    """Raises Unavailable where a store cannot be listed. All else that goes wrong is in `troubles`."""
    search = Search(source, variables, places)
    try:
        _find(search)
    except Malformed as error:  # a name that is too long for regular expressions
        search.trouble("", str(error))
    if source.kind in GROUPED:
        search.hits = _grouped(search)
    elif source.kind == "voxel_spacing":
        search.hits = list(_as_spacings(search))
    return search


def _find(search: Search) -> None:
    match search.source.finder:
        case SourceGlob() as finder:
            _find_glob(search, finder, search.places.source)
        case DestinationGlob() as finder:
            _find_destination(search, finder)
        case SourceMultiGlob() as finder:
            _find_globs(search, "list_globs", finder.list_globs)
        case Shape() as shape:
            _find_shape(search, shape)
        case DestinationFilter() as finder:
            _find_filtered(search, finder)
        case TomogramHeader() as finder:
            _find_spacings(search, finder)
        case VoxelSpacingLiteral() | StandardLiteral() | KeyPhotoLiteral():
            _find_literal(search)


def texts(source: Source) -> Iterator[tuple[str, str]]:
    """The globs of a source: (key below the finder, text)."""
    finder = source.finder
    if isinstance(finder, SourceMultiGlob):
        yield from ((f"list_globs[{index}]", text) for index, text in enumerate(finder.list_globs))
    elif isinstance(finder, Shape):
        if finder.glob_string is not None:
            yield "glob_string", finder.glob_string
        yield from ((f"glob_strings[{index}]", text) for index, text in enumerate(finder.glob_strings or ()))
    elif isinstance(finder, SourceGlob | DestinationGlob | TomogramHeader):
        yield "list_glob", finder.list_glob


# Globs


def _find_glob(search: Search, finder: SourceGlob | DestinationGlob, listing: Listing) -> None:
    paths = _glob(search, "list_glob", finder.list_glob, listing, re.compile(finder.match_regex or ".*"))
    _take_named(search, "list_glob", paths, re.compile(finder.name_regex or "(.*)"))
    search.hits = [replace(hit, is_new=listing is search.places.source) for hit in search.hits]


def _find_shape(search: Search, shape: Shape) -> None:
    if shape.glob_string is not None:
        paths = _glob(search, "glob_string", shape.glob_string, search.places.source, ANY)
        _take_named(search, "glob_string", paths, WHOLE_NAME)
    else:
        _find_globs(search, "glob_strings", shape.glob_strings or [])


def _take_named(search: Search, key: str, paths: list[str], name_regex: re.Pattern[str]) -> None:
    """What the last glob matched, by name."""
    named: dict[str, str] = {}
    for path in paths:
        base = path.rpartition("/")[2]
        name = _name(base, name_regex)
        if not name:
            search.trouble(
                "name_regex", f"found {path}, expected {name_regex.pattern!r} to give it a name; correct it."
            )
        elif search.is_excluded(name):
            continue
        elif name in named:
            search.trouble(
                key, f"found {name} twice, as {named[name]} and {path}, expected a name for each; {TELL_APART}"
            )
        else:
            named[name] = path
    search.hits += [Hit(name, (path,)) for name, path in named.items()]


TELL_APART = "narrow the glob or widen name_regex."


def _find_globs(search: Search, key: str, globs: list[str]) -> None:
    """Every path once, whichever globs match it; two of one name would become one file of the portal's tree."""
    named: dict[str, str] = {}
    for index, text in enumerate(globs):
        for path in _glob(search, f"{key}[{index}]", text, search.places.source, ANY):
            name = path.rpartition("/")[2]
            if search.is_excluded(_whole_path(search, path)):
                continue
            if named.setdefault(name, path) != path:
                found = f"found {name} twice, as {named[name]} and {path}"
                search.trouble(f"{key}[{index}]", f"{found}, expected a name for each; narrow the glob.")
    search.hits += [Hit(name, (path,)) for name, path in named.items()]


def _glob(search: Search, key: str, text: str, listing: Listing, match_regex: re.Pattern[str]) -> list[str]:
    """Paths that a glob and the regular expression match. Adds to `globs`, whatever comes of it."""
    try:
        expanded = _expanded(parse(text), search.variables)
        is_source = listing is search.places.source
        # templates of the source are listed once for all runs, and what the destination has of each run by itself
        scope = literal_folder(text.partition("{")[0]) if is_source else literal_folder(expanded)
        paths = [
            path for path in listing.glob(expanded, scope) if match_regex.search(bounded(_whole_path(search, path)))
        ]
    except (TemplateError, Malformed) as error:
        search.trouble(key, str(error))
        expanded, paths = "", []
    search.globs.append(Globbed(text, expanded, tuple(paths)))
    return paths


def _expanded(template: Template, variables: Mapping[str, str]) -> str:
    expanded = template.expand_glob(variables)
    if ".." in expanded.split("/"):
        raise TemplateError(f"found {expanded!r}, expected a glob that stays in its folder; correct the run map.")
    return expanded


def _whole_path(search: Search, path: str) -> str:
    places = search.places
    return "/".join(part for part in (places.root_name, places.source.prefix, path) if part)


def _name(base: str, name_regex: re.Pattern[str]) -> str | None:
    found = name_regex.match(bounded(base))
    return found[1] if found else None


# What the destination has


def _destination(search: Search) -> Listing | None:
    if search.places.destination is None:
        search.trouble("", "looks in the destination, and none is given; give one by --to.")
    return search.places.destination


def _find_destination(search: Search, finder: DestinationGlob) -> None:
    listing = _destination(search)
    if listing is None:
        search.globs.append(Globbed(finder.list_glob, "", ()))
        return
    _find_glob(search, finder, listing)
    search.hits = [_recorded(search, hit, listing) for hit in search.hits]


def _find_filtered(search: Search, finder: DestinationFilter) -> None:
    listing = _destination(search)
    if listing is None:
        return
    folder = "{run_output_path}/TiltSeries" if search.source.kind == "tiltseries" else SPACING_TOMOGRAMS
    pattern = f"{parse(folder).expand_glob(search.variables)}/*/*{METADATA_FILE}"
    for path in listing.glob(pattern, literal_folder(pattern)):
        hit = _recorded(search, Hit(path.split("/")[-2], (path,), is_new=False), listing)
        fits = all(_value_fits(hit.metadata, one.key, one.value) for one in finder.filters)
        if fits and not search.is_excluded(hit.name):
            search.hits.append(hit)


SPACING_TOMOGRAMS = "{voxel_spacing_output_path}/Tomograms"


def _recorded(search: Search, hit: Hit, listing: Listing) -> Hit:
    """With what its path and its JSON say of it."""
    [path] = hit.paths
    numbers = [part for part in path.split("/")[1:] if part.isdecimal()]
    metadata = _read_json(search, listing, path) if path.endswith(METADATA_FILE) else {}
    return Hit(hit.name, hit.paths, is_new=False, number=numbers[-1] if numbers else None, metadata=metadata)


def _read_json(search: Search, listing: Listing, path: str) -> Mapping[str, Any]:
    try:
        if (listing.size_bytes(path) or 0) > MAX_METADATA_BYTES:
            raise Malformed(f"it has more than {MAX_METADATA_BYTES} bytes")
        value = json.loads(listing.store.read(listing.path(path)))
    except (EmAssetsError, FileNotFoundError, ValueError, RecursionError) as error:
        search.trouble("", f"found {path}, which cannot be read ({error}); ingest its entity again.")
        return {}
    return value if isinstance(value, dict) else {}


def _value_fits(metadata: Any, key: list[str], expected: Any) -> bool:
    """As the portal's code has it: on the way down a list stands for each of its items, and absence fits nothing."""
    value = metadata
    for part in key:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list):
            value = [item.get(part) for item in value if isinstance(item, Mapping)]
        else:
            return False
        if not value:
            break
    return expected in value if isinstance(value, list) else bool(value == expected)


# Names and headers


def _find_literal(search: Search) -> None:
    finder = search.source.finder
    if isinstance(finder, KeyPhotoLiteral):
        pictures = finder.value.model_dump(exclude_unset=True)
        given = [Hit(name, (address,) if address else ()) for name, address in pictures.items()]
    elif isinstance(finder, StandardLiteral | VoxelSpacingLiteral):
        given = [Hit(name) for name in _literal_names(search, finder)]
    else:
        given = []
    search.hits += [hit for hit in given if not search.is_excluded(hit.name)]


def _literal_names(search: Search, finder: StandardLiteral | VoxelSpacingLiteral) -> Iterator[str]:
    is_spacing = isinstance(finder, VoxelSpacingLiteral)
    for index, value in enumerate(finder.value):
        try:
            yield str(expand_typed(value, search.variables)) if is_spacing and isinstance(value, str) else str(value)
        except TemplateError as error:
            search.trouble(f"value[{index}]", str(error))


def _find_spacings(search: Search, finder: TomogramHeader) -> None:
    listing = search.places.source
    for path in _glob(search, "list_glob", finder.list_glob, listing, re.compile(finder.match_regex or ".*")):
        try:
            size_bytes = listing.size_bytes(path)
            if size_bytes is None:
                raise Malformed(f"{path} is a folder, expected an MRC file; give the voxel spacing by `literal`")
            raw = listing.store.read_range(listing.path(path), 0, HEADER_BYTES)
            z, y, x = spacings_angstrom(read_header(raw, path, size_bytes).values)
        except (EmAssetsError, FileNotFoundError) as error:
            search.trouble("list_glob", str(error))
            continue
        if y is None:
            search.trouble("list_glob", f"found {path}, whose header states no voxel size; give it by `literal`.")
            continue
        if any(axis is None or abs(axis - y) > SPACING_TOLERANCE for axis in (z, x)):
            shown = ", ".join("nothing" if axis is None else f"{float(axis):g}" for axis in (z, y, x))
            text = f"found {path} with {shown} angstrom (z, y, x); its folder is named by y, as the portal does."
            search.trouble("list_glob", text, is_error=False)
        name = f"{float(y):.3f}"
        # several tomograms of a run have one voxel spacing: that is no name given twice
        if not search.is_excluded(name) and name not in [hit.name for hit in search.hits]:
            search.hits.append(Hit(name, metadata={"voxel_spacing": float(y)}))


def _as_spacings(search: Search) -> Iterator[Hit]:
    """A voxel spacing's name is its number with three decimals, however it was found."""
    for hit in search.hits:
        try:
            spacing = float(hit.name)
        except ValueError:
            spacing = 0.0
        if not 0 < spacing < float("inf"):
            search.trouble("", f"found {hit.name!r}, expected a voxel spacing in angstrom; correct it.")
            continue
        yield Hit(f"{spacing:.3f}", hit.paths, hit.is_new, hit.number, {"voxel_spacing": spacing, **hit.metadata})


def _grouped(search: Search) -> list[Hit]:
    """All files as one entity, with the run's name; names without files (`default`) stay."""
    hits = search.hits
    paths = tuple(path for hit in hits for path in hit.paths)
    if not paths:
        return hits[:1]
    if not hits[0].is_new and len(hits) > 1:
        search.trouble("", f"found {' and '.join(paths)}, expected one {search.source.kind} to refer to; narrow it.")
        return []
    return [replace(hits[0], name=search.variables["run_name"], paths=paths)]
