"""The portal's ingestion config: what loads, what is wrong with what does not, and where."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from em_assets.errors import Malformed
from em_assets.ingest.config import load_config, read_key
from em_assets.ingest.schema import CONFIG
from em_assets.ingest.yaml_lines import Problems, read_lined, shown_key

WHOLE = """\
version: 1.3.0
standardization_config:
  deposition_id: 10301
  source_prefix: raw/
depositions:
- sources:
  - literal: {value: [10301]}
datasets:
- sources:
  - literal: {value: ['10001']}
runs:
- sources:
  - source_glob: {list_glob: 'tomograms/TS_*.rec', name_regex: '(.*).rec'}
voxel_spacings:
- sources:
  - literal: {value: [13.48]}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        return file

    return write


@pytest.fixture(scope="module")
def cryoet(payloads):
    folder = payloads / "cryoet"
    if not folder.is_dir():
        pytest.skip(f"no configs of the portal at {folder}")
    return folder


def problems_of(file: Path, *, partial: bool = False) -> list[str]:
    """Without the name of the file."""
    with pytest.raises(Problems) as caught:
        load_config(file, partial=partial)
    return [str(problem).removeprefix(f"{file}:") for problem in caught.value.problems]


# The portal's own


@pytest.mark.parametrize("name", ["10000", "10001", "10004", "10301"])
def test_a_real_config_loads(cryoet, name):
    """The portal's own configs are taken as they are."""
    config = load_config(cryoet / f"configs/{name}.yaml")
    assert config.version == "1.3.0" and not config.problems
    assert all(source.line > 0 for kind in ("run", "tomogram") for b in config.blocks[kind] for source in b.sources)


def test_the_portals_annotated_template_is_no_config(cryoet):
    """It says OPTIONAL where a list would be, which is not even YAML."""
    assert problems_of(cryoet / "configs/template.yaml") == [
        "3: the file: not YAML (did not find expected key); correct it."
    ]


NO_VERSION = {"version"}
OLD_DATASET = {
    # written before these were required, and before cell_component could be left out
    *("datasets[0].metadata.assay", "datasets[0].metadata.development_stage", "datasets[0].metadata.disease"),
    "datasets[0].metadata.cell_component.name",
}
OLD_TOMOGRAM = {"tomograms[0].metadata.dates", "tomograms[0].metadata.is_visualization_default"}
TYPO_THAT_NOBODY_READS = {f"rawtilts[0].sources[0].source_multi_glob.{name}" for name in ("list_glob", "list_globs")}
A_LINK_FOR_AN_ID = {"datasets[0].metadata.cell_strain.id"}
OLD_20002 = NO_VERSION | OLD_DATASET | OLD_TOMOGRAM | TYPO_THAT_NOBODY_READS | A_LINK_FOR_AN_ID
NO_DATASET_AT_ALL = NO_VERSION | {"datasets", "runs", "voxel_spacings"}
FRACTION_OF_A_DEGREE = {"alignments[0].metadata.x_rotation_offset"}
BEFORE_SHAPES = {f"annotations[0].sources[0].{name}" for name in ("columns", "file_format", "glob_string", "shape")}
OLD_10001 = (
    NO_VERSION
    | OLD_DATASET
    | FRACTION_OF_A_DEGREE
    | BEFORE_SHAPES
    | {f"annotations[0].metadata.{name}" for name in ("annotation_ingest_id", "method_type", "annotation_object.id")}
    | {"depositions[0].metadata.deposition_types"}
    | {"tomograms[0].metadata.dates", "tomograms[0].metadata.voxel_spacing"}
)
OLD_ALIGNMENT = NO_VERSION | {"voxel_spacings", "alignments[0].metadata.is_canonical"} | FRACTION_OF_A_DEGREE
SPACING = {"tomograms[0].metadata.voxel_spacing"}

PARTIAL = {
    "dataset1": OLD_10001 | {"datasets[0].metadata.cell_type.name"},
    "dataset2": OLD_10001 | A_LINK_FOR_AN_ID,
    "alignments/alignment1": NO_VERSION,
    "alignments/alignment2": NO_VERSION | {"voxel_spacings"},
    "alignments/alignment3": OLD_ALIGNMENT,
    "alignments/alignment4": OLD_ALIGNMENT,
    "annotations/anno_config": OLD_20002 | {"depositions[0].metadata.deposition_types"},
    "depositions/deposition1": NO_DATASET_AT_ALL
    | {f"depositions[0].metadata.{name}" for name in ("deposition_types", "cross_references.dataset_publications")},
    "depositions/deposition2": NO_DATASET_AT_ALL,
    "frames/default": NO_VERSION
    | {"voxel_spacings", "frames[0].metadata.is_gain_corrected", "standardization_config.deposition_id"},
    "tiltseries/close_tilt_angles_mdoc_rawtlt": NO_VERSION | {"voxel_spacings"},
    "tiltseries/invalid_mdoc_rawtlt": NO_VERSION | {"voxel_spacings"},
    "tiltseries/test1": NO_VERSION | {"voxel_spacings", "tiltseries[0].metadata.pixel_spacing"},
    "voxel_spacing/mrc_header": OLD_20002 | SPACING,
    "voxel_spacing/overrides_by_run": OLD_20002 | SPACING | {"voxel_spacings[1].sources[0].parent_filters.require"},
    "voxel_spacing/tomo_metadata": OLD_20002,
    # the spacing is a column, which the schema wants to be read as a number: `float {run_voxel_spacing}`
    "voxel_spacing/tomo_run_data_map": OLD_20002 | SPACING,
}
"""Of the portal's test configs, what its own schema refuses. Its tests run each for one importer, which reads no more
than its own keys: it needs `source_prefix`, `depositions` to walk down from, and what the importer asks for.
"""


@pytest.mark.parametrize("name", PARTIAL)
def test_a_test_config_loads_with_the_parts_it_has(cryoet, name):
    """What the schema refuses in the portal's test configs is named, and with `partial` noted."""
    file = cryoet / f"test_configs/{name}.yaml"
    with pytest.raises(Problems) as caught:
        load_config(file)
    assert {problem.key for problem in caught.value.problems} == PARTIAL[name]
    config = load_config(file, partial=True)
    assert {problem.key for problem in config.problems} == PARTIAL[name]
    assert not any(problem.is_error for problem in config.problems)
    is_without = {"rawtilt": name.startswith(("voxel", "anno")), "annotation": name.startswith("dataset")}
    for kind, blocks in config.blocks.items():
        for block in blocks:
            assert bool(block.sources) is not is_without.get(kind, False), block.key


def test_every_test_config_is_in_the_table(cryoet):
    """None is left out."""
    folder = cryoet / "test_configs"
    assert {str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml")} == set(PARTIAL)


@pytest.mark.parametrize("name", [*PARTIAL, None])
def test_what_the_schema_refuses_is_refused_at_the_same_place(cryoet, name):
    """Every error of the portal's JSON schema lies at, above or below a problem of ours."""
    jsonschema = pytest.importorskip("jsonschema")
    file = cryoet / (f"test_configs/{name}.yaml" if name else "configs/10000.yaml")
    schema = json.loads((cryoet / "schema/ingestion_config_models.schema.json").read_text())
    schema["required"], schema["additionalProperties"] = schema["$defs"]["Container"]["required"], False
    errors = jsonschema.Draft201909Validator(schema).iter_errors(yaml.safe_load(file.read_text()))
    theirs = {shown_key(tuple(error.absolute_path)) for error in errors}
    ours = PARTIAL[name] if name else set()
    assert bool(theirs) == bool(ours)
    for place in theirs - {"the file"}:
        assert any(key.startswith(place) or place.startswith(key) for key in ours), place


# The models against the schema

SAMPLES: list[Any] = [
    *(None, True, False, 0, 1, 3, 5, 6, 2.5, 1.0, -1, -90, 400, 25000, 1e6, "", "text", "{col}", "float {col}"),
    *("int {col}", "float{col}", " {col} ", "{a}{b}", "float col", "doi:10.1101/2022.04.12.488077, 10.1/x"),
    *("10.1038/s41592-022-01746-2", "EMPIAR-10988", "EMPIAR-10988, EMD-14412", "EMD-1", "PDB-8b0x", "EMPIAR-123456"),
    *("GO:0022626", "GO:000000!", "UniProtKB:P12345", "UBERON:0002107", "CHEBI:15377", "CDPO:0000001", "CL:0000334"),
    *("WBStrain00050783", "NCBITaxon:284812", "CVCL_0030", "CC-3994", "WBbt:0007833", "ZFA:0000001", "BTO:0000001"),
    *("FBbt:00000001", "EFO:0002909", "unknown", "WBls:0000818", "HsapDv:0000001", "MmusDv:0000001", "ZFS:0000001"),
    *("FBdv:00000001", "MONDO:0000001", "PATO:0000461", "0000-0002-4691-9501", "0000-0002-4691-950X", "https://a/b"),
    *("s3://a/b", "ftp://a/b", "cryoetportal-rawdatasets-dev/x.png", [], ["text"], [1], [[1, 2]], {}, {"a": 1}),
    *("1.3.0", "1.0.0"),
]

STRICTER = {
    # a literal is a name, not a mapping or nothing; a filter's value is compared, not walked
    *("StandardLiteral.value", "DestinationMetadataFilterKeyPair.value"),
    # spacings below 0.001 are no spacings, which the schema says of a tomogram's only
    "VoxelSpacingLiteral.value",
    # the portal's code raises for any other
    "TomogramHeader.header_key",
    # the schema has them as lists of anything
    *("Tomogram.affine_transformation_matrix", "Alignment.affine_transformation_matrix"),
    # the schema's `format: date` is checked by no validator
    *("DateStamp.deposition_date", "DateStamp.last_modified_date", "DateStamp.release_date"),
    # only the version that these models are of
    "Container.version",
    # files have names
    *(f"StandardizationConfig.{name}" for name in ("run_data_map_file", "run_to_frame_map_csv")),
    *(f"StandardizationConfig.{name}" for name in ("run_to_tomo_map_csv", "run_to_ts_map_csv")),
}
"""Where ours refuses what the schema lets through. Templates and regular expressions are in SPELLED."""
SPELLED = ("list_glob", "list_globs", "glob_string", "glob_strings", "match_regex", "name_regex", "filter_value")
SPELLED += ("mesh_source_path", "exclude", "deposition", "dataset", "run", "voxel_spacing", "tomogram")
NEEDED_BY_ITS_CODE = {"file_format"}
"""The schema forgets that a shape cannot be read without it: its template and its code do not."""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def definition_of(schema: dict[str, Any], node: dict[str, Any]) -> str | None:
    """The name of the object that a property holds, or holds a list of."""
    for part in (node, node.get("items", {}), *node.get("anyOf", [])):
        name = part.get("$ref", "").rpartition("/")[2]
        if name and "properties" in schema["$defs"][name]:
            return name
    return None


def walk(schema: dict[str, Any], name: str, model: type[BaseModel]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(class.key, the key's schema, our type) of every leaf; on the way keys and required keys are compared."""
    definition = schema["$defs"][name]
    ours = {key for key, field in model.model_fields.items() if field.is_required()}
    assert set(model.model_fields) == set(definition["properties"]), name
    assert ours - NEEDED_BY_ITS_CODE == set(definition.get("required", [])) - NEEDED_BY_ITS_CODE, name
    assert definition["additionalProperties"] is False and model.model_config["extra"] == "forbid", name
    for key, node in definition["properties"].items():
        field = model.model_fields[key]
        below = definition_of(schema, node)
        inside = next(models_in(field.annotation), None)
        assert (below is None) == (inside is None) or key == "sources", f"{name}.{key}"
        if below is not None and inside is not None:
            if node.get("type") == "array" or "array" in node.get("type", ()):
                leaf = TypeAdapter(Annotated[(field.annotation, *field.metadata)]) if field.metadata else None
                assert ("minItems" in node) == (leaf is not None and not accepts(leaf, [])), f"{name}.{key}"
            yield from walk(schema, below, inside)
        else:
            yield (
                f"{name}.{key}",
                node,
                Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation,
            )


def accepts(leaf: TypeAdapter[Any], value: Any) -> bool:
    try:
        leaf.validate_python(value)
    except ValidationError:
        return False
    return True


def test_the_models_have_the_schemas_keys_and_accept_its_values(cryoet):
    """Every class, key, required key and enumeration of the schema; ours is stricter where the tables above say so."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((cryoet / "schema/ingestion_config_models.schema.json").read_text())
    seen, wrong = set(), []
    for place, node, annotation in walk(schema, "Container", CONFIG):
        if place in seen:
            continue
        seen.add(place)
        theirs = jsonschema.Draft201909Validator({"$defs": schema["$defs"], **node})
        enums = [value for one in schema["$defs"].values() for value in one.get("enum", [])]
        leaf = TypeAdapter(annotation)
        for value in [*SAMPLES, *enums, *([value] for value in enums)]:
            here, there = accepts(leaf, value), theirs.is_valid(value)
            if here == there or (value is None and here):  # null is a key left out
                continue
            key = place.rpartition(".")[2]
            if not there:
                wrong.append(f"{place} takes {value!r}, which the schema refuses")
            elif place not in STRICTER and key not in SPELLED:
                wrong.append(f"{place} refuses {value!r}")
    assert not wrong
    assert len(seen) > 150 and set(STRICTER) <= seen


# Problems


def changed(old: str, new: str) -> str:
    assert old in WHOLE
    return WHOLE.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            changed("runs:\n- sources", "runs:\n- name: x\n  sources"),
            ["12: runs[0].name: found an unknown key, expected one of sources; remove it."],
            id="unknown-key",
        ),
        pytest.param(
            changed("list_glob:", "list_globb:"),
            [
                "13: runs[0].sources[0].source_glob.list_glob: not given, but required; add it.",
                (
                    "13: runs[0].sources[0].source_glob.list_globb: found an unknown key, expected a known one; did "
                    "you mean "
                    "list_glob?"
                ),
            ],
            id="misspelt-key",
        ),
        pytest.param(
            changed("  source_prefix: raw/\n", ""),
            ["2: standardization_config.source_prefix: not given, but required; add it."],
            id="missing-key",
        ),
        pytest.param(
            changed("deposition_id: 10301", "deposition_id: '10301'"),
            ["3: standardization_config.deposition_id: found '10301', expected a whole number; correct it."],
            id="wrong-type",
        ),
        pytest.param(
            changed("runs:\n- sources:", "runs:\n  sources:"),
            ["11: runs: found a mapping, expected a list; correct it."],
            id="mapping-for-a-list",
        ),
        pytest.param(
            changed("- sources:\n  - source_glob", "- source_glob"),
            [
                "12: runs[0].source_glob: found an unknown key, expected a known one; did you mean sources?",
                "12: runs[0].sources: not given, but required; add it.",
            ],
            id="a-level-too-high",
        ),
        pytest.param(
            WHOLE + "ctfs:\n- metadata: {format: WARP}\n  sources:\n  - literal: {value: [x]}\n",
            ["18: ctfs[0].metadata.format: found 'WARP', expected one of CTFFIND, Gctf, IMOD; correct it."],
            id="enumeration",
        ),
        pytest.param(
            changed("version: 1.3.0", "version: 1.1.0"),
            ["1: version: found '1.1.0', expected one of 1.3.0; correct it."],
            id="older-version",
        ),
        pytest.param(
            changed("(.*).rec", "(.*.rec"),
            [
                (
                    "13: runs[0].sources[0].source_glob.name_regex: found '(.*.rec', expected a regular expression "
                    "(missing ), "
                    "unterminated subpattern at position 0); correct it."
                ),
            ],
            id="no-regular-expression",
        ),
        pytest.param(
            changed("(.*).rec", ".*"),
            [
                (
                    "13: runs[0].sources[0].source_glob.name_regex: found '.*', expected a regular expression with a "
                    "group in "
                    "parentheses, which becomes the name; correct it."
                ),
            ],
            id="a-name-without-a-group",
        ),
        pytest.param(
            changed("'tomograms/TS_*.rec'", "'../{run_name.__class__}'"),
            [
                (
                    "13: runs[0].sources[0].source_glob.list_glob: found {run_name.__class__} in "
                    "'../{run_name.__class__}', "
                    "expected a name of letters, digits, _ and - in the braces; correct it."
                ),
            ],
            id="a-template-that-reaches-further",
        ),
        pytest.param(
            changed("'tomograms/TS_*.rec'", "'../*.rec'"),
            [
                (
                    "13: runs[0].sources[0].source_glob.list_glob: found '../*.rec', expected a glob that does not "
                    "leave its "
                    "folder by `..`; correct it."
                ),
            ],
            id="a-glob-that-leaves",
        ),
        pytest.param(
            changed("literal: {value: [13.48]}", "literal: {value: [13.48]}\n    source_glob: {list_glob: x}"),
            [
                (
                    "16: voxel_spacings[0].sources[0]: found source_glob and literal, expected exactly one of "
                    "source_glob, "
                    "destination_glob, literal, tomogram_header; correct it."
                ),
            ],
            id="two-finders",
        ),
        pytest.param(
            changed("literal: {value: [13.48]}", "exclude: ['1']"),
            [
                (
                    "16: voxel_spacings[0].sources[0]: found no finder, expected exactly one of source_glob, "
                    "destination_glob, literal, tomogram_header; correct it."
                ),
            ],
            id="no-finder",
        ),
        pytest.param(
            changed("[13.48]", "['float {x}', 'int {x}', -1]"),
            [
                f"16: voxel_spacings[0].sources[0].literal.value[{index}]: found {found}, expected a number, at least "
                "0.001 or `float {column}`; correct it."
                for index, found in ((1, "'int {x}'"), (2, "-1"))
            ],
            id="spacings",
        ),
        pytest.param(
            WHOLE + "runs:\n- sources:\n  - literal: {value: [x]}\n",
            ["17: runs: given here and on line 11, expected once; remove one of the two."],
            id="a-key-twice",
        ),
        pytest.param(
            changed("source_prefix: raw/", "source_prefix: raw/../../x"),
            [
                (
                    "4: standardization_config.source_prefix: found 'raw/../../x', expected a folder without `..`; "
                    "correct it."
                )
            ],
            id="a-prefix-that-leaves",
        ),
        pytest.param(
            WHOLE + "frames:\n- metadata: {dose_rate: 'float {a b}', is_gain_corrected: 2020-01-01}\n",
            [
                (
                    "18: frames[0].metadata.dose_rate: found 'float {a b}', expected a number or `float {column}`; "
                    "correct it."
                ),
                (
                    "18: frames[0].metadata.dose_rate: found {a b} in 'float {a b}', expected a name of letters, "
                    "digits, _ and "
                    "- in the braces; correct it."
                ),
                (
                    "18: frames[0].metadata.is_gain_corrected: found 2020-01-01 (to YAML date; quote it if it is "
                    "text), "
                    "expected true or false; correct it."
                ),
            ],
            id="several-on-one-line",
        ),
    ],
)
def test_problems(write, text, expected):
    """Each is named with its line and key, what was found, what was expected and what to do; all at once."""
    assert problems_of(write(text)) == expected


def test_all_problems_are_said_at_once(write):
    """One look at the message is enough to correct the file."""
    text = WHOLE.replace("1.3.0", "9").replace("10301", "x").replace("list_glob", "listglob").replace("(.*).rec", "(")
    assert len(problems_of(write(text))) == 5


def test_a_shape_says_what_it_needs(write):
    """`file_format` of the shape's own, and one of the two kinds of globs."""
    shapes = (
        "Point: {file_format: mrc, glob_string: x}",
        "TriangularMesh: {file_format: obj}",
        "Point: {glob_string: x}",
    )
    metadata = {
        "annotation_ingest_id": "a",
        "annotation_object": {"id": "GO:0022626", "name": "ribosome"},
        "annotation_method": "by hand",
        "method_type": "manual",
        "authors": [{"name": "A"}],
        "dates": dict.fromkeys(("deposition_date", "last_modified_date", "release_date"), "2024-04-09"),
    }
    block = f"annotations:\n- metadata: {json.dumps(metadata)}\n  sources:\n" + "".join(
        f"  - {one}\n" for one in shapes
    )
    assert problems_of(write(WHOLE + block)) == [
        (
            "20: annotations[0].sources[0].Point.file_format: found 'mrc', expected one of csv, csv_with_header, "
            "tsv, mod, "
            "relion3_star, relion4_star, tomoman_relion_star, copick; correct it."
        ),
        (
            "21: annotations[0].sources[1].TriangularMesh: found ['file_format'], expected exactly one of "
            "glob_string and "
            "glob_strings; correct it."
        ),
        "22: annotations[0].sources[2].Point.file_format: not given, but required; add it.",
    ]


@pytest.mark.parametrize("text", ["runs: []\n", "standardization_config: {}\n", "depositions: {}\nruns: []\n"])
def test_partial_needs_what_planning_needs(write, text):
    """Without a source prefix there is nothing to plan with, whatever else is let pass."""
    assert any("standardization_config.source_prefix" in problem for problem in problems_of(write(text), partial=True))


def test_what_the_file_does_not_ask_for_has_the_portals_defaults(write):
    """Alignments, key images and a dataset's key photos are made where nothing is said of them; frames are not."""
    config = load_config(write(WHOLE))
    sources = {kind: block.sources[0] for kind, blocks in config.blocks.items() for block in blocks if not block.line}
    names = {kind: source.finder.value for kind, source in sources.items()}
    assert set(names) == {"alignment", "key_image", "dataset_keyphoto"}
    assert names["key_image"] == ["original", "snapshot", "thumbnail", "expanded"]


# The YAML itself


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("- a\n", "found a list"),
        ("", "found nothing"),
        ("a: [1\n", "not YAML"),
        ("a: &x [*x]\n", r"\*x stands inside &x"),
        ("a: " + "[" * 60 + "]" * 60 + "\n", "nested more than 40 deep"),
        ("1: x\n", "the key 1 is not text"),
        ("a: !!python/name:os.system x\n", "no value to YAML"),
        ("a: \x07\n", "control character|not YAML"),
        ("a0: &a0 [x,x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1},*a{n - 1}]\n" for n in range(1, 30)), "more than 200000"),
        ("b0: &b0 {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [*b{n - 1},*b{n - 1}]}}\n" for n in range(1, 30)), "200000"),
    ],
    ids=["list", "empty", "not-yaml", "recursive", "deep", "number-key", "python-tag", "control", "bomb", "merge-bomb"],
)
def test_yaml_that_is_refused(write, text, found):
    """What is no config, or is made to hurt whoever reads it."""
    with pytest.raises(Malformed, match=found):
        load_config(write(text))


def test_bytes_that_are_no_text(tmp_path):
    """Named by line."""
    file = tmp_path / "config.yaml"
    file.write_bytes(b"version: 1.3.0\nruns: \xff\n")
    assert problems_of(file) == ["2: the file: found the byte 0xff, expected UTF-8; save it as UTF-8."]


def test_merge_keys_are_followed_and_do_not_count_as_twice(write):
    """`<<: *dates` gives what is not given beside it."""
    lined = read_lined(write("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n"))
    assert lined.values["b"] == {"x": 1, "y": 3} and not lined.problems
    assert lined.line(("b", "x")) == 1 and lined.line(("b", "y")) == 4


plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text("ab:#{} '\"\n", max_size=9)
)
keys = st.from_regex(r"k[a-z]{1,3}", fullmatch=True)
trees = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(tree=st.dictionaries(keys, trees, min_size=1, max_size=4))
def test_a_file_is_read_as_safe_load_reads_it_and_every_key_is_on_its_line(tree, tmp_path_factory):
    """The values are PyYAML's own; the line of a mapping's entry is one on which its key stands."""
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    text = yaml.safe_dump(tree)
    file.write_text(text, encoding="utf-8")
    lined = read_lined(file)
    assert lined.values == yaml.safe_load(text) and not lined.problems
    lines = text.splitlines()
    for key, line in lined.lines.items():
        if key and isinstance(key[-1], str):
            assert f"{key[-1]}:" in lines[line - 1]
        assert read_key(shown_key(key)) == key or not key
