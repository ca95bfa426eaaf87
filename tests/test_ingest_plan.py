"""What a config's sources find: templates, globs, run maps, finders, filters; and the plan that comes of it."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from em_assets.cli import app
from em_assets.errors import Malformed
from em_assets.ingest.config import load_config
from em_assets.ingest.filters import Filters, read_filters
from em_assets.ingest.listing import Listing, literal_folder
from em_assets.ingest.plan import Found, IngestPlan, make_plan
from em_assets.ingest.table import plan_lines
from em_assets.ingest.templates import TemplateError, escape, expand_typed, parse
from em_assets.store import LocalStore, open_store

DATES = dict.fromkeys(("deposition_date", "last_modified_date", "release_date"), "2024-04-09")
TOMOGRAM = {
    "voxel_spacing": 13.48,
    "reconstruction_method": "WBP",
    "reconstruction_software": "IMOD",
    "processing": "raw",
    "fiducial_alignment_status": "NON_FIDUCIAL",
    "is_visualization_default": True,
    "tomogram_version": 1,
    "offset": {"x": 0, "y": 0, "z": 0},
    "authors": [{"name": "A"}],
    "dates": DATES,
}
ANNOTATION = {
    "annotation_ingest_id": "ribosome-1",
    "annotation_object": {"id": "GO:0022626", "name": "ribosome"},
    "annotation_method": "by {hand}",
    "method_type": "manual",
    "authors": [{"name": "A"}],
    "dates": DATES,
}
FILES = {
    **{f"raw/tomograms/TS_{n}.rec": b"" for n in (1, 2, 3)},
    **{f"raw/frames/TS_{run}_{n}.tif": b"" for run in (1, 2) for n in (1, 2, 3)},
    **{f"raw/align/TS_{n}.{ending}": b"" for n in (1, 2) for ending in ("xf", "tlt")},
    "raw/labels/TS_1.zarr/.zattrs": b"{}",
    "raw/labels/TS_1.zarr/0/0/0": b"x",
    "raw/gain.dm4": b"",
}


class Case:
    """A folder of raw files, a destination, and configs over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source, self.destination = folder / "bucket", folder / "portal"
        self.file = folder / "config.yaml"
        self.put(**FILES)

    def put(self, **files: bytes | str) -> None:
        for path, data in files.items():
            file = self.source / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data if isinstance(data, bytes) else data.encode())

    def write(self, **kinds: Any) -> Path:
        """A config with the sources given for each kind; a literal for those that are required."""
        standardization = {"deposition_id": 10301, "source_prefix": "raw", **kinds.pop("standardization", {})}
        values: dict[str, Any] = {"version": "1.3.0", "standardization_config": standardization}
        required = {
            "depositions": [{"literal": {"value": [10301]}}],
            "datasets": [{"literal": {"value": ["10001"]}}],
            "runs": [glob("tomograms/TS_*.rec", name_regex=r"(.*)\.rec")],
            "voxel_spacings": [{"literal": {"value": [13.48]}}],
        }
        for key, sources in (required | kinds).items():
            metadata = {"tomograms": TOMOGRAM, "annotations": ANNOTATION}.get(key)
            blocks = sources if isinstance(sources[0], dict) and "sources" in sources[0] else [{"sources": sources}]
            values[key] = [{**({"metadata": metadata} if metadata else {}), **block} for block in blocks]
        self.file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return self.file

    def plan(self, *arguments: str, partial: bool = False, **kinds: Any) -> IngestPlan:
        config = load_config(self.write(**kinds), partial=partial)
        return make_plan(config, LocalStore(self.source), LocalStore(self.destination), read_filters(arguments))


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def glob(text: str, **more: Any) -> dict[str, Any]:
    return {"source_glob": {"list_glob": text, **more}}


def entities(plan: IngestPlan, kind: str) -> list[Found]:
    return [found for run in plan.runs for found in run.entities if found.kind == kind]


def names(plan: IngestPlan, kind: str) -> list[str]:
    return [found.name for found in entities(plan, kind)]


def errors(plan: IngestPlan) -> list[str]:
    return [str(problem).removeprefix(f"{plan.config.file}:") for problem in plan.errors]


# Templates

variable_names = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)


@given(parts=st.lists(st.tuples(st.booleans(), variable_names, st.text(max_size=6)), max_size=6))
def test_a_template_expands_to_what_it_was_made_of(parts):
    """Escaped text stands for itself and a name for its value, in any mixture; nothing else changes."""
    text = "".join(f"{{{name}}}" if is_name else escape(value) for is_name, name, value in parts)
    variables = {name: f"<{name}>" for _, name, _ in parts}
    expected = "".join(variables[name] if is_name else value for is_name, name, value in parts)
    assert parse(text).expand(variables) == expected
    assert parse(text).names == {name for is_name, name, _ in parts if is_name}


@pytest.mark.parametrize(
    "text",
    ["{", "}", "{}", "{a.b}", "{a[0]}", "{a!r}", "{a:>99999999}", "{a b}", "{{a}", "{a}}", "{0.__class__}"],
)
def test_a_template_reaches_nothing_but_variables(text):
    """What `str.format` would follow or pad is refused."""
    with pytest.raises(TemplateError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("float {a}", 1.5),
        ("float{a}", 1.5),
        ("int {b}", 7),
        ("float {b}.{b}", 7.7),
        ("floating {a}", "floating 1.5"),
        ("float 5", "float 5"),
        ("int {{b}}", "int {b}"),
        ("a {b}", "a 7"),
    ],
)
def test_typed_prefixes(text, expected):
    """`float {column}` and `int {column}` are numbers; text that only begins so is text."""
    value = expand_typed(text, {"a": " 1.5 ", "b": "7"} if isinstance(expected, float) else {"a": "1.5", "b": "7"})
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("cell", ["", "x", "nan", "inf", "1e999"])
def test_a_typed_column_that_holds_no_number_is_a_problem(case, cell):
    """It is the run's, with the line of the metadata; the other run is planned."""
    case.put(**{"raw/runs.csv": f"run_name,spacing\nTS_1,{cell}\nTS_2,13.48\nTS_3,13.48\n"})
    tomogram = {
        "metadata": TOMOGRAM | {"voxel_spacing": "float {spacing}"},
        "sources": [glob("tomograms/{run_name}.rec")],
    }
    plan = case.plan(tomograms=[tomogram], standardization={"run_data_map_file": "runs.csv"})
    assert [bool(run.problems) for run in plan.runs] == [True, False, False]
    assert "tomograms[0].metadata.voxel_spacing: run TS_1: 'float {spacing}' found" in errors(plan)[0]
    assert [found.metadata["voxel_spacing"] for found in entities(plan, "tomogram")] == [13.48, 13.48]


# Listings and globs

paths = st.lists(st.from_regex(r"[ab.]{1,3}(/[ab.]{1,3}){0,2}", fullmatch=True), max_size=12)
patterns = st.lists(
    st.sampled_from(["a", "b", "ab", "*", "a*", "*b", "?", "[ab]", "[!a]*", "**", "[*]"]), min_size=1, max_size=3
)


def naive(everything: set[str], pattern: str) -> list[str]:
    """One regular expression over every path: what the walk of a listing must agree with."""
    translated = ""
    parts = pattern.split("/")
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        if part == "**":
            translated += r"[^/]+(?:/[^/]+)*" if is_last else r"(?:[^/]+/)*"
            continue
        for token in re.findall(r"\[[^]]*\]|.", part):
            wild = {"*": "[^/]*", "?": "[^/]"}.get(token)
            translated += wild or (token.replace("[!", "[^/") if len(token) > 1 else re.escape(token))
        translated += "" if is_last else "/"
    return sorted(path for path in everything if re.fullmatch(translated, path))


@settings(deadline=None)
@given(files=paths, parts=patterns)
def test_a_glob_matches_what_a_regular_expression_over_all_paths_matches(files, parts):
    """Files and folders, each once, in order."""
    files = [f for f in files if not {".", ".."} & set(f.split("/"))]
    files = [f for f in files if not any(other.startswith(f"{f}/") for other in files)]
    everything = {"/".join(f.split("/")[:n]) for f in files for n in range(1, f.count("/") + 2)}
    pattern = "/".join(parts)
    listing = Listing(Memory(files), "")
    assert listing.glob(pattern, literal_folder(pattern)) == naive(everything, pattern)


class Memory:
    """As much of a store as a listing asks for."""

    def __init__(self, files: list[str]) -> None:
        self.files = sorted(set(files))
        self.listed: list[str] = []

    def list(self, prefix: str):
        self.listed.append(prefix)
        yield from ((path, 1) for path in self.files if not prefix or path.startswith(f"{prefix}/"))


def test_a_prefix_is_listed_once():
    """However many globs ask for it, and for what lies in it."""
    memory = Memory(["raw/a/b/c", "raw/a/d", "raw/e"])
    listing = Listing(memory, "raw")
    assert [listing.glob(text, "a") for text in ("a/*", "a/b/c", "a/x")] == [["a/b", "a/d"], ["a/b/c"], []]
    assert listing.glob("a/b/*", "a/b") == ["a/b/c"]
    assert memory.listed == ["raw/a"]


def test_a_glob_of_many_stars_ends():
    """Nothing is tried again behind a star that has matched."""
    assert Listing(Memory(["a" * 250]), "").glob("*a" * 60 + "b") == []


def test_the_source_is_listed_once_for_all_runs(case, monkeypatch):
    """The portal's code lists for every entity of every run."""
    listed: list[str] = []
    walk = LocalStore.list
    monkeypatch.setattr(LocalStore, "list", lambda self, prefix: (listed.append(prefix), walk(self, prefix))[1])
    case.plan(frames=[glob("frames/{run_name}_*.tif")], tomograms=[glob("tomograms/{run_name}.rec")])
    assert sorted(listed) == ["raw/frames", "raw/tomograms"]


# Finders


def test_source_glob(case):
    """`match_regex` anywhere in the whole path, the name by `name_regex` from its beginning, files and folders."""
    source = glob(
        "*/TS_*", match_regex=r"^bucket/raw/(tomograms|labels)/TS_[12]", name_regex=r"(TS_\d)\.zarr|(?:TS_\d).*()"
    )
    plan = case.plan(
        runs=[{**glob("tomograms/*.rec", match_regex="_[12]", name_regex="(.*).rec"), "exclude": ["TS_2"]}]
    )
    assert [run.run.name for run in plan.runs] == ["TS_1"]
    assert plan.runs[0].run.paths == ("raw/tomograms/TS_1.rec",)
    masks = {"SegmentationMask": {"file_format": "zarr", "glob_string": "labels/{run_name}.zarr"}}
    plan = case.plan(annotations=[masks], key_images=[source])
    assert [found.paths for found in entities(plan, "annotation")] == [("raw/labels/TS_1.zarr",)]
    assert entities(plan, "annotation")[0].shape == "SegmentationMask"
    assert entities(plan, "annotation")[0].options == {"file_format": "zarr"}


def test_source_multi_glob_is_the_union(case):
    """Each file once; frames and alignments are one entity, others one each."""
    plan = case.plan(
        alignments=[{"source_multi_glob": {"list_globs": ["align/{run_name}.*", "align/{run_name}.xf"]}}],
        frames=[{**glob("frames/{run_name}_*.tif"), "exclude": [".*_3.tif"]}],
        rawtilts=[{"source_multi_glob": {"list_globs": ["align/{run_name}.tlt"]}}],
        tiltseries=[glob("tomograms/{run_name}.rec")],
    )
    assert [(found.name, found.paths) for found in entities(plan, "alignment")][:1] == [
        ("TS_1", ("raw/align/TS_1.tlt", "raw/align/TS_1.xf"))
    ]
    assert [len(found.paths) for found in entities(plan, "frame")] == [2, 2]
    assert names(plan, "rawtilt") == ["TS_1.tlt", "TS_2.tlt"]


def test_the_order_is_the_portals_tree(case):
    """What belongs to another comes after it."""
    plan = case.plan(
        gains=[glob("gain.dm4")],
        collection_metadata=[glob("align/{run_name}.xf")],
        frames=[glob("frames/{run_name}_*")],
        tiltseries=[glob("align/{run_name}.xf")],
        ctfs=[glob("align/{run_name}.tlt")],
        rawtilts=[glob("align/{run_name}.tlt")],
        alignments=[glob("align/{run_name}.*")],
        identified_objects=[glob("gain.dm4")],
        annotations=[{"Point": {"file_format": "csv", "glob_string": "align/{run_name}.xf"}}],
        tomograms=[glob("tomograms/{run_name}.rec")],
    )
    assert not errors(plan)
    assert [found.kind for found in plan.runs[0].entities] == [
        *("gain", "collection_metadata", "frame", "tiltseries", "ctf", "rawtilt", "alignment", "identified_object"),
        *("voxel_spacing", "annotation", "tomogram", *(["key_image"] * 4)),
    ]
    tomogram = entities(plan, "tomogram")[0]
    assert tomogram.parents == {"deposition": "10301", "dataset": "10001", "run": "TS_1", "voxel_spacing": "13.480"}
    assert [photo.name for photo in plan.key_photos] == ["snapshot", "thumbnail"]


def test_metadata_is_the_entitys_own(case):
    """Braces of an annotation's method are text; what one run's plan holds is no other's."""
    points = {"Point": {"file_format": "csv", "glob_string": "align/{run_name}.xf", "filter_value": "{run_name}"}}
    plan = case.plan(annotations=[points])
    first, second = entities(plan, "annotation")
    assert first.metadata["annotation_method"] == "by {hand}" and first.options["filter_value"] == "TS_1"
    assert first.metadata is not second.metadata and first.metadata["dates"] is not second.metadata["dates"]


def test_a_tomograms_text_is_a_template(case):
    """So a brace by itself is an error of the config, with its line."""
    block = {"metadata": TOMOGRAM | {"authors": [{"name": "A {brace"}]}, "sources": [glob("tomograms/{run_name}.rec")]}
    with pytest.raises(Malformed, match=r"tomograms\[0\].metadata.authors\[0\].name: found a single { in 'A {brace'"):
        case.plan(tomograms=[block])


def test_literals_and_parent_filters(case):
    """Names as given; a filter is searched anywhere in the parent's name."""
    plan = case.plan(
        voxel_spacings=[
            {"literal": {"value": [13.48]}, "parent_filters": {"include": {"run": ["_[12]$"]}}},
            {"literal": {"value": [5]}, "parent_filters": {"exclude": {"run": ["_[12]$"], "dataset": ["^9"]}}},
        ]
    )
    assert names(plan, "voxel_spacing") == ["13.480", "13.480", "5.000"]
    assert [found.metadata for found in entities(plan, "voxel_spacing")][-1] == {"voxel_spacing": 5.0}


def test_tomogram_header(case):
    """The spacing of each tomogram's header, once; one that differs by axis is named by y and noted."""
    mrcfile = pytest.importorskip("mrcfile")
    import numpy as np

    for run, voxel_size in {"TS_1": (13.48,) * 3, "TS_2": (4, 4, 12)}.items():
        with mrcfile.new(
            case.source / f"raw/tomograms/{run}.rec", np.zeros((2, 3, 4), np.float32), overwrite=True
        ) as file:
            file.voxel_size = voxel_size
    shutil.copy(case.source / "raw/tomograms/TS_1.rec", case.source / "raw/tomograms/TS_1b.rec")
    plan = case.plan(
        runs=[glob("tomograms/TS_?.rec", name_regex="(.*).rec")],
        voxel_spacings=[{"tomogram_header": {"list_glob": "tomograms/{run_name}*.rec"}}],
    )
    assert names(plan, "voxel_spacing") == ["13.480", "4.000"]
    assert entities(plan, "voxel_spacing")[0].metadata["voxel_spacing"] == pytest.approx(13.48, abs=1e-6)
    assert "12, 4, 4 angstrom (z, y, x)" in plan.runs[1].problems[0].text and not plan.runs[1].problems[0].is_error
    assert "TS_3.rec ends at byte 0" in plan.runs[2].problems[0].text and plan.runs[2].problems[0].is_error


def test_destination_glob_refers_to_what_is_there(case):
    """It is not new, its number and its JSON are known, and templates may name both."""
    folder = case.destination / "10001/TS_1/Reconstructions/VoxelSpacing13.480/Tomograms/107"
    folder.mkdir(parents=True)
    (folder / "tomogram_metadata.json").write_text(json.dumps({"processing": "raw", "authors": [{"name": "B"}]}))
    spacing = {"list_glob": "{run_output_path}/Reconstructions/VoxelSpacing*", "name_regex": "VoxelSpacing(.*)"}
    tomogram = {"list_glob": "{voxel_spacing_output_path}/Tomograms/*/*metadata.json", "name_regex": "(.*)"}
    plan = case.plan(
        voxel_spacings=[{"destination_glob": spacing}],
        tomograms=[{"destination_glob": tomogram}],
        key_images=[glob("tomograms/{run_name}.rec")],
        annotations=[{"Point": {"file_format": "csv", "glob_string": "align/{run_name}.xf"}}],
    )
    assert names(plan, "voxel_spacing") == ["13.480"] and not entities(plan, "voxel_spacing")[0].is_new
    [found] = entities(plan, "tomogram")
    assert (found.is_new, found.number, found.metadata["processing"]) == (False, 107, "raw")
    assert found.variables["tomogram_id"] == "107" and found.variables["tomogram_output_path"].endswith("Tomograms/107")
    assert names(plan, "annotation") == ["TS_1.xf"]


def test_one_alignment_is_referred_to(case):
    """Several of them would have to be told apart, which is said; the portal's code stops there."""
    for number in (100, 101):
        folder = case.destination / f"10001/TS_1/Alignments/{number}"
        folder.mkdir(parents=True)
        (folder / "alignment_metadata.json").write_text('{"format": "IMOD"}')
    several = {"destination_glob": {"list_glob": "{run_output_path}/Alignments/*"}}
    one = {"destination_glob": {"list_glob": "{run_output_path}/Alignments/101/alignment_metadata.json"}}
    plan = case.plan(alignments=[one])
    assert [(found.number, found.metadata) for found in entities(plan, "alignment")] == [(101, {"format": "IMOD"})]
    plan = case.plan(alignments=[several])
    expected = "found 10001/TS_1/Alignments/100 and 10001/TS_1/Alignments/101, expected one alignment to refer to"
    assert not entities(plan, "alignment") and expected in errors(plan)[0]


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        (["processing"], "raw", True),
        (["processing"], "denoised", False),
        (["authors", "name"], "B", True),
        (["authors", "name"], "C", False),
        (["offset", "x"], 0, True),
        (["absent", "x"], "raw", False),
        (["processing", "x"], "raw", False),
    ],
)
def test_destination_filter(case, key, value, fits):
    """By values in the metadata JSON; on the way down a list stands for its items."""
    folder = case.destination / "10001/TS_1/TiltSeries/100"
    folder.mkdir(parents=True)
    metadata = {"processing": "raw", "authors": [{"name": "A"}, {"name": "B"}], "offset": {"x": 0}}
    (folder / "tiltseries_metadata.json").write_text(json.dumps(metadata))
    plan = case.plan(tiltseries=[{"destination_filter": {"filters": [{"key": key, "value": value}]}}])
    assert [found.number for found in entities(plan, "tiltseries")] == ([100] if fits else [])


def test_a_spacing_that_is_there_already_is_no_second_one(case):
    """So that a config which also refers to what is there can be run twice."""
    (case.destination / "10001/TS_1/Reconstructions/VoxelSpacing13.480").mkdir(parents=True)
    (case.destination / "10001/TS_1/Reconstructions/VoxelSpacing13.480/x").touch()
    spacing = {"list_glob": "{run_output_path}/Reconstructions/*", "name_regex": "VoxelSpacing(.*)"}
    plan = case.plan(voxel_spacings=[{"destination_glob": spacing}, {"literal": {"value": [13.48]}}])
    assert [found.is_new for found in entities(plan, "voxel_spacing")] == [True] * 3 and not errors(plan)


# What is wrong


def test_two_files_of_one_name(case):
    """Both are named, with the line; the portal's code takes the last."""
    case.put(**{"raw/old/TS_1.rec": b""})
    plan = case.plan(runs=[glob("*/TS_*.rec", name_regex=r"(.*)\.rec")])
    assert errors(plan) == [
        (
            "18: runs[0].sources[0].source_glob.list_glob: found TS_1 twice, as old/TS_1.rec and tomograms/TS_1.rec, "
            "expected a name for each; narrow the glob or widen name_regex."
        )
    ]
    assert len(plan.runs) == 3


def test_two_sources_of_one_run(case):
    """A run is found once, whichever source finds it."""
    plan = case.plan(runs=[glob("tomograms/TS_1.rec", name_regex="(TS_.)"), glob("align/TS_1.xf", name_regex="(TS_.)")])
    assert "found the run TS_1 twice, as raw/tomograms/TS_1.rec (line 17) and raw/align/TS_1.xf" in errors(plan)[0]


def test_a_file_that_has_no_name(case):
    """Where `name_regex` does not fit, the file and the expression are named."""
    plan = case.plan(tiltseries=[glob("align/{run_name}.xf", name_regex=r"(.*)\.st")])
    assert len(plan.runs) == 3 and len(entities(plan, "tiltseries")) == 0
    assert (
        "source_glob.name_regex: run TS_1: found align/TS_1.xf, expected '(.*)\\\\.st' to give it a name"
        in errors(plan)[0]
    )


def test_a_glob_that_matches_for_no_run_is_an_error(case):
    """With what it was tried as; a glob that matches for some runs is reported."""
    plan = case.plan(frames=[glob("frames/{run_name}_*.tif")], gains=[glob("gains/{run_name}.dm4")])
    assert errors(plan) == [
        (
            "32: gains[0].sources[0].source_glob.list_glob: 'gains/{run_name}.dm4' matches nothing, for none of 3 "
            "tried "
            "(TS_1, "
            "TS_2, TS_3), such as 'gains/TS_1.dm4'; correct it, or remove it."
        )
    ]
    report = next(one for one in plan.globs if one.kind == "frame")
    assert (report.matched, report.unmatched, report.files, len(report.examples)) == (("TS_1", "TS_2"), ("TS_3",), 6, 3)
    softened = case.plan("--filter-run-name", "TS_3", frames=[glob("frames/{run_name}_*.tif")])
    assert not errors(softened) and "frames/{run_name}_*.tif" in softened.problems[0].text


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"gains": [glob("{column}.dm4")]}, "gains[0].sources[0].source_glob.list_glob: found {column}"),
        ({"gains": [glob("{tomogram_name}.dm4")]}, "gains[0].sources[0].source_glob.list_glob: found {tomogram_name}"),
        ({"runs": [glob("{run_name}.dm4")]}, "runs[0].sources[0].source_glob.list_glob: found {run_name}"),
        (
            {"voxel_spacings": [{"literal": {"value": ["float {spacing}"]}}]},
            "voxel_spacings[0].sources[0].literal.value[0]: found {spacing}",
        ),
        (
            {"identified_objects": [{"metadata": {"filter_value": "{who}"}, "sources": [glob("gain.dm4")]}]},
            "identified_objects[0].metadata.filter_value: found {who}",
        ),
        (
            {"annotations": [{"Point": {"file_format": "csv", "glob_string": "gain.dm4", "filter_value": "{who}"}}]},
            "annotations[0].sources[0].Point.filter_value: found {who}",
        ),
    ],
    ids=["column", "not-above", "itself", "literal", "metadata", "option"],
)
def test_a_variable_that_no_run_has(case, kinds, expected):
    """Is one error of the config, with line and key, not one for each run."""
    found = errors(case.plan(**kinds))
    assert len(found) == 1 and expected in found[0] and "expected a column of a run_data_map_file" in found[0]


def test_a_run_without_a_row_is_that_runs_problem(case):
    """The others are planned."""
    case.put(**{"raw/runs.tsv": "run_name\tlabel\nTS_1\tgain\n"})
    plan = case.plan(gains=[glob("{label}.dm4")], standardization={"run_data_map_file": "runs.tsv"})
    assert [len(run.problems) for run in plan.runs] == [0, 1, 1]
    assert "run TS_2: {label} has no value here" in str(plan.runs[1].problems[0])
    assert "The run has no row in runs.tsv." in str(plan.runs[1].problems[0])
    assert [len(run.entities) for run in plan.runs] == [3, 2, 2]


def test_variables_are_meant_as_they_are(case):
    """A run's name with wildcards matches that file alone; a column cannot lead out of the source."""
    case.put(
        **{
            "raw/odd/a[1]*.rec": b"",
            "raw/odd/a1x.rec": b"",
            "secret": b"",
            "raw/runs.csv": "run_name,up\na[1]*,../secret\n",
        }
    )
    plan = case.plan(
        runs=[glob("odd/a[[]*.rec", name_regex=r"(.*)\.rec")],
        rawtilts=[glob("{up}")],
        gains=[glob("{up}")],
        tomograms=[glob("odd/{run_name}.rec")],
        standardization={"run_data_map_file": "runs.csv"},
    )
    assert [found.paths for found in entities(plan, "tomogram")] == [("raw/odd/a[1]*.rec",)]
    assert names(plan, "gain") == [] and "found '../secret', expected a glob that stays" in errors(plan)[-1]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("a,b\n1,2\n", "runs.csv:1: run_name: found the columns a, b, expected run_name among them"),
        ("run_name,b\nx,1\n\nx,2\n", "runs.csv:4: run_name: found the run x here and on line 2, expected it once"),
        ("run_name,b\nx,1,2\ny\n", "runs.csv:2: run_name: found 3 cells, expected 2: run_name, b"),
        ("run_name,b c,d,d\n", "runs.csv:1: run_name: found the column 'b c', expected names of letters"),
        ('run_name,b\n"x,1\n', "is no table"),
        (b"run_name\n\xff\n", "runs.csv is not UTF-8"),
        (None, "runs.csv is not there, expected the table of the runs"),
        ("", "runs.csv:1: run_name: found the columns none, expected run_name"),
    ],
    ids=["no-run-name", "run-twice", "ragged", "column-names", "quotes", "bytes", "absent", "empty"],
)
def test_a_run_map_that_is_wrong(case, table, expected):
    """Is an error with file and line, and nothing is planned with it."""
    if table is not None:
        case.put(**{"raw/runs.csv": table})
    plan = case.plan(standardization={"run_data_map_file": "runs.csv"})
    assert expected in "\n".join(map(str, plan.errors)) and not plan.runs


def test_older_run_maps(case):
    """Two columns without a header, each by its own name."""
    case.put(**{"raw/tomo.csv": "TS_1,gain\n", "raw/runs.csv": "\ufeffrun_name,x\r\nTS_1,y\r\n"})
    files = {"run_to_tomo_map_csv": "tomo.csv", "run_data_map_file": "runs.csv"}
    plan = case.plan(gains=[glob("{mapped_tomo_name}.dm4")], standardization=files)
    assert names(plan, "gain") == ["gain.dm4"] and plan.runs[0].run.variables["x"] == "y"


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"datasets": [{"literal": {"value": ["mine"]}}]}, "found the dataset 'mine', expected the portal's number"),
        ({"runs": [{"literal": {"value": ["a/b"]}}]}, "the name of a run is 'a/b', expected one name"),
        ({"runs": [{"literal": {"value": [".."]}}]}, "the name of a run is '..', expected one name"),
        ({"voxel_spacings": [glob("gain.dm4")]}, "found 'gain.dm4', expected a voxel spacing in angstrom"),
        ({"gains": [{"destination_glob": {"list_glob": "../x"}}]}, "expected a glob that does not leave its folder"),
    ],
    ids=["dataset", "slash", "dots", "spacing", "leaves"],
)
def test_names_that_cannot_be(case, kinds, expected):
    """Each becomes a folder of the portal's tree."""
    try:
        found = "\n".join(errors(case.plan(**kinds)))
    except Malformed as error:
        found = str(error)
    assert expected in found


def test_metadata_is_checked_once_templates_have_their_values(case):
    """A column may hold what the schema refuses."""
    case.put(**{"raw/runs.csv": "run_name,method\nTS_1,WBP\nTS_2,magic\nTS_3,SIRT\n"})
    block = {
        "metadata": TOMOGRAM | {"reconstruction_method": "{method}"},
        "sources": [glob("tomograms/{run_name}.rec")],
    }
    plan = case.plan(tomograms=[block], standardization={"run_data_map_file": "runs.csv"})
    assert [found.metadata["reconstruction_method"] for found in entities(plan, "tomogram")] == ["WBP", "SIRT"]
    assert "run TS_2: found 'magic', expected one of SART, Fourier Space" in errors(plan)[0]


# Filters


def test_filters(case):
    """At the beginning of a name, of every type; what belongs to what is left out is left out."""
    kinds = {"frames": [glob("frames/{run_name}_*.tif")], "tomograms": [glob("tomograms/{run_name}.rec")]}
    plan = case.plan("--filter-run-name=TS_[12]", "--exclude-run-name", "TS_2", **kinds)
    assert [run.run.name for run in plan.runs] == ["TS_1"]
    plan = case.plan(
        "--filter-run-name", "TS_1", "--filter-run-name", "TS_3", "--exclude-frame-name", "TS_1_2", **kinds
    )
    assert [run.run.name for run in plan.runs] == ["TS_1", "TS_3"] and names(plan, "frame") == []
    assert names(case.plan("--filter-voxel-spacing-name", "9", **kinds), "tomogram") == []


def test_what_cannot_be_made_can_be_left_out(case):
    """A run whose name cannot be a folder is no error where a filter leaves it out."""
    runs = [{"literal": {"value": ["..", "TS_1"]}}]
    assert errors(case.plan(runs=runs))
    plan = case.plan("--exclude-run-name", r"\.\.$", runs=runs)
    assert not errors(plan) and [run.run.name for run in plan.runs] == ["TS_1"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--filter-rum-name", "x"], "did you mean --filter-run-name?"),
        (["--filter-run-name"], "is given without a regular expression"),
        (["--filter-run-name", "("], "is no regular expression"),
        (["x"], "there is no option x"),
    ],
)
def test_filters_that_are_none(arguments, expected):
    """The nearest is named."""
    with pytest.raises(Malformed, match=re.escape(expected)):
        read_filters(arguments)


def test_what_regular_expressions_see_is_bounded():
    """A name longer than any key of S3 is not tried at all."""
    with pytest.raises(Malformed, match="has 5000 characters, expected at most 2048"):
        read_filters(["--filter-run-name", "(a+)+$"]).allow("run", ["a" * 5000])


# The whole


MODULES = (
    "config",
    "schema",
    "metadata",
    "fields",
    "yaml_lines",
    "templates",
    "run_map",
    "listing",
    "finders",
    "filters",
)
MODULES += ("variables", "plan", "table")


def test_nothing_is_global():
    """No module that reads and plans keeps anything that can change from one config to the next."""
    for name in MODULES:
        module = importlib.import_module(f"em_assets.ingest.{name}")
        kept = {key for key, value in vars(module).items() if isinstance(value, dict | list | set) and key[:2] != "__"}
        assert not kept, name


@pytest.mark.parametrize("root", ["folder", "s3"])
def test_a_real_config_is_planned_over_its_files(payloads, tmp_path, root, request):
    """The portal's dataset1 with the files of its own tests, locally and on S3: what its importers would take."""
    cryoet = payloads / "cryoet"
    where = str(tmp_path / "bucket") if root == "folder" else request.getfixturevalue("moto_s3")
    source = open_store(where)
    for file in sorted((cryoet / "source/10001_input").rglob("*")):
        if file.is_file():
            source.write(f"input_bucket/{file.relative_to(cryoet / 'source')}", file.read_bytes())
    config = load_config(cryoet / "test_configs/dataset1.yaml", partial=True)
    plan = make_plan(config, source, None, Filters())
    assert not plan.errors and [run.run.name for run in plan.runs] == ["TS_run1", "TS_run2"]
    found = [
        (one.kind, one.name, len(one.paths)) for run in plan.runs for one in run.entities if one.kind != "key_image"
    ]
    assert found == [
        ("gain", "CountRef_TS_run1.gain", 1),
        ("collection_metadata", "foo-TS_run1.mdoc", 1),
        ("frame", "TS_run1", 5),
        ("tiltseries", "TS_run1", 1),
        ("ctf", "TS_run1_ctffind4.txt", 1),
        ("rawtilt", "TS_run1.rawtlt", 1),
        ("alignment", "TS_run1", 3),
        ("identified_object", "identified_objects.csv", 1),
        ("voxel_spacing", "13.480", 0),
        ("tomogram", "TS_run1.rec", 1),
        ("gain", "CountRef_TS_run2.dm4", 1),
        ("identified_object", "identified_objects.csv", 1),
        ("voxel_spacing", "13.480", 0),
        ("tomogram", "TS_run2.rec", 1),
    ]
    assert [photo.paths[0] for photo in plan.key_photos if photo.name == "snapshot"] == [
        "http://nginx:80/input_bucket/snapshot.gif"
    ] * 2


def test_a_spacing_from_the_run_map(payloads, tmp_path):
    """The portal's own config: `float {run_voxel_spacing}`, and a tomogram whose spacing stays text with `partial`."""
    shutil.copytree(payloads / "cryoet/source/20002", tmp_path / "input_bucket/20002")
    file = payloads / "cryoet/test_configs/voxel_spacing/tomo_run_data_map.yaml"
    plan = make_plan(load_config(file, partial=True), LocalStore(tmp_path), None, Filters())
    assert names(plan, "voxel_spacing") == ["4.568"] and not plan.errors
    assert any("'metadata/{run_name}.st' matches nothing" in problem.text for problem in plan.problems)
    assert entities(plan, "tomogram")[0].metadata["voxel_spacing"] == "4.5678"


def test_the_table_says_what_each_glob_matched(case):
    """Line, key, glob before and after templating, runs, files, the first of them, and runs without."""
    plan = case.plan(frames=[glob("frames/{run_name}_*.tif")])
    lines = list(plan_lines(plan, str(case.source)))
    row = next(index for index, line in enumerate(lines) if "frames[0].sources[0].source_glob.list_glob" in line)
    assert lines[row].split() == [
        "28",
        "frames[0].sources[0].source_glob.list_glob",
        "frames/{run_name}_*.tif",
        "2/3",
        "6",
    ]
    assert [line.strip() for line in lines[row + 1 : row + 4]] == [
        "= frames/TS_1_*.tif",
        "> frames/TS_1_1.tif",
        "> frames/TS_1_2.tif",
    ]
    assert "line 28, frames[0].sources[0].source_glob.list_glob: nothing for 1 run: TS_3" in lines


def test_the_command_plans_and_writes_nothing(case):
    """Exit code 0 for a sound plan, 1 with errors, 2 for an option that is none."""
    runner = CliRunner()
    before = sorted(case.folder.rglob("*"))
    arguments = ["--from", str(case.source), "--to", str(case.destination), "--dry-run"]
    sound = runner.invoke(app, ["ingest", "--filter-run-name", "TS_1", str(case.write()), *arguments])
    assert sound.exit_code == 0 and "1 run," in sound.stdout
    as_json = json.loads(runner.invoke(app, ["ingest", str(case.file), *arguments, "--json"]).stdout)
    assert [run["run"]["name"] for run in as_json["runs"]] == ["TS_1", "TS_2", "TS_3"]
    assert runner.invoke(app, ["ingest", str(case.file), *arguments, "--filter-x-name", "y"]).exit_code == 2
    nowhere = ["--from", str(case.folder / "absent"), "--dry-run"]
    assert "is no folder, expected what the source_prefix" in str(
        runner.invoke(app, ["ingest", str(case.file), *nowhere]).exception
    )
    wrong = runner.invoke(app, ["ingest", str(case.write(gains=[glob("none")])), *arguments])
    assert wrong.exit_code == 1 and "error: " in wrong.stdout
    assert sorted(case.folder.rglob("*")) == sorted([*before, case.file])
