"""An ingestion carried out: the portal's own test configs over its own test files, and what goes wrong on the way.

The configs are those of the portal's tests. They leave out what the portal's code does not look at and its schema asks
for; `complete` adds that, and says where a value is one that the schema refuses.
"""

from __future__ import annotations

import copy
import json
import shutil
import struct
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from PIL import Image

from em_assets.errors import Malformed, Mismatch
from em_assets.formats.opening import open_volume
from em_assets.ingest.acquisition import _pixel_size
from em_assets.ingest.config import load_config
from em_assets.ingest.copying import copy as copy_file
from em_assets.ingest.filters import read_filters
from em_assets.ingest.ledger import FOLDER
from em_assets.ingest.plan import make_plan
from em_assets.ingest.report import IngestReport
from em_assets.ingest.run import ingest
from em_assets.ingest.tilt_series import alignment_values
from em_assets.ingest.volumes_of import CHUNK_VOXELS, Mask, Resampled, read_pieces, voxel_size_of
from em_assets.ingest.yaml_lines import Problems
from em_assets.store import LocalStore, Store, open_store
from em_assets.volume import Box, VolumeInfo
from faulty import FaultyServer
from small import quick_settings

DATES = {"deposition_date": "2023-04-01", "last_modified_date": "2023-06-01", "release_date": "2023-06-01"}
RUN1 = "10001/TS_run1"
TOMOGRAMS = "Reconstructions/VoxelSpacing13.480/Tomograms/100"
Values = dict[str, Any]


class Case:
    """A bucket of raw files, a config over it, and the tree that comes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bucket, self.tree = folder / "bucket", folder / "tree"
        self.source: Store = LocalStore(self.bucket)
        self.destination: Store = LocalStore(self.tree)
        self.settings = quick_settings(folder / "store", cache=folder / "cache")
        self.config: Values = {}

    def ingest(self, *filters: str, runs: list[str] | None = None, **changes: Any) -> IngestReport:
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(self.config), encoding="utf-8")
        plan = make_plan(load_config(file), self.source, self.destination, read_filters(filters))
        return ingest(plan, self.source, self.destination, runs=runs, settings=self.settings, **changes)

    def json(self, key: str) -> Values:
        return json.loads((self.tree / key).read_text())

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file below the destination: (mtime, inode)."""
        found = (file for file in self.tree.rglob("*") if file.is_file())
        return {str(file.relative_to(self.tree)): (file.stat().st_mtime_ns, file.stat().st_ino) for file in found}


@pytest.fixture(scope="module")
def raw(payloads) -> Path:
    folder: Path = payloads / "cryoet/source"
    if not folder.is_dir():
        pytest.skip(f"no raw files of the CryoET portal's tests at {folder}")
    return folder


@pytest.fixture(scope="module")
def test_configs(payloads) -> Path:
    folder: Path = payloads / "cryoet/test_configs"
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Iterator[str]:
    """A server with the two pictures that the config names."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("snapshot", "thumbnail"):
        Image.new("L", (4, 3), 128).save(folder / f"{name}.gif")
    (folder / "page.gif").write_bytes(b"<html>log in</html>")
    with FaultyServer(folder) as server:
        yield server.url


def complete(config: Values, photos: str) -> Values:
    """The portal's dataset1.yaml or dataset2.yaml, as its schema wants it."""
    config = copy.deepcopy(config)
    config["version"] = "1.3.0"
    del config["annotations"]  # of an older schema, over particle lists that are not among the files
    [dataset], [deposition] = config["datasets"], config["depositions"]
    dataset["metadata"] |= {
        "assay": {"id": "EFO:0002909", "name": "microscopy assay"},
        "development_stage": {"id": "unknown", "name": "unknown"},
        "disease": {"id": "PATO:0000461", "name": "normal"},
        "cell_component": {"id": "GO:0005886", "name": "plasma membrane"},  # null in both
        "cell_strain": {"id": "CVCL_88888", "name": "Strain 1"},  # an address in dataset2
    }
    dataset["metadata"].setdefault("cell_type", {})["name"] = "cell"
    deposition["metadata"]["deposition_types"] = ["dataset", "annotation"]
    config["alignments"][0]["metadata"]["x_rotation_offset"] = -2  # -2.3, where the schema wants a whole number
    config["tomograms"][0]["metadata"] |= {"dates": DATES, "voxel_spacing": 13.48, "is_visualization_default": True}
    config.setdefault("frames", [{}])[0]["metadata"] = {"dose_rate": 1.881, "is_gain_corrected": True}
    for kind in ("dataset_keyphotos", "deposition_keyphotos"):
        value = {which: f"{photos}/{which}.gif" for which in ("snapshot", "thumbnail")}
        config[kind] = [{"sources": [{"literal": {"value": value}}]}]
    return config


def real_case(folder: Path, raw: Path, config: Values) -> Case:
    case = Case(folder)
    shutil.copytree(raw, case.bucket / "input_bucket")
    for place in [case.bucket, *case.bucket.rglob("*")]:
        place.chmod(0o755 if place.is_dir() else 0o644)
    case.config = config
    return case


def load_yaml(file: Path) -> Values:
    config: Values = yaml.safe_load(file.read_text())
    return config


@pytest.fixture(scope="module")
def dataset1(tmp_path_factory, raw, test_configs, photos) -> tuple[Case, IngestReport]:
    """The portal's dataset1.yaml, carried out once."""
    config = complete(load_yaml(test_configs / "dataset1.yaml"), photos)
    case = real_case(tmp_path_factory.mktemp("dataset1"), raw, config)
    return case, case.ingest()


# The portal's own configs and files


def test_the_portals_own_config_ingests_completely(dataset1):
    """Both runs of dataset1.yaml are whole, and what was odd about the files is said."""
    case, report = dataset1
    assert report.is_complete and report.exit_code == 0, list(report.lines())
    assert [run.run for run in report.runs] == ["TS_run1", "TS_run2"]
    assert {entity.status for run in report.runs for entity in run.entities} == {"made", "absent"}
    [odd] = [one for one in report.runs[1].entities if one.kind == "gain"]
    assert odd.keys == ("10001/TS_run2/Gains/CountRef_TS_run2.dm4",) and "copied as it is" in odd.notes[0]
    [header] = [note for note in report.runs[0].notes if note.startswith("tiltseries")]
    assert "5.678 x 5.678 A (y, x), the config 3.3702 A" in header
    assert (case.tree / "10001/dataset_metadata.json").is_file()


def test_the_tree_is_the_portals(dataset1):
    """Every file has the name and place that the portal's code gives it."""
    case, _ = dataset1
    keys = {key for key in case.files() if not key.startswith(FOLDER.split("/")[0]) and ".zarr/" not in key}
    photo = "Reconstructions/VoxelSpacing13.480/Images/100/key-photo"
    assert keys == {
        *(f"depositions_metadata/10301/{name}" for name in ("deposition_metadata.json", "Images/snapshot.gif")),
        "depositions_metadata/10301/Images/thumbnail.gif",
        *(f"10001/{name}" for name in ("dataset_metadata.json", "Images/snapshot.gif", "Images/thumbnail.gif")),
        *(f"{RUN1}/Frames/TS_run1_{number}.tiff" for number in range(1, 6)),
        *(f"{RUN1}/Frames/{name}" for name in ("TS_run1.mdoc", "frames_metadata.json")),
        f"{RUN1}/Gains/CountRef_TS_run1.gain",
        *(f"{RUN1}/TiltSeries/100/TS_run1.{ending}" for ending in ("mrc", "rawtlt")),
        *(f"{RUN1}/TiltSeries/100/{name}" for name in ("TS_run1_CTFFIND_ctf.txt", "tiltseries_metadata.json")),
        *(f"{RUN1}/Alignments/100/TS_run1.{ending}" for ending in ("xf", "tlt", "xtilt")),
        f"{RUN1}/Alignments/100/alignment_metadata.json",
        f"{RUN1}/IdentifiedObjects/identified_objects.json",
        f"{RUN1}/IdentifiedObjects/identified_objects_metadata.json",
        "10001/TS_run2/Gains/CountRef_TS_run2.dm4",
        *(
            f"10001/{run}/{name}"
            for run in ("TS_run1", "TS_run2")
            for name in (
                "run_metadata.json",
                f"{TOMOGRAMS}/{run}.mrc",
                f"{TOMOGRAMS}/tomogram_metadata.json",
                "Reconstructions/VoxelSpacing13.480/NeuroglancerPrecompute/100-neuroglancer_config.json",
                *(f"{photo}-{which}.png" for which in ("original", "snapshot", "thumbnail", "expanded")),
            )
        ),
    }


RECORDED: list[tuple[str, str, dict[str, str]]] = [
    ("dataset_metadata.json", "10001/dataset_metadata.json", {"/last_updated_at": "the recorded one is older"}),
    (
        "deposition_metadata.json",
        "depositions_metadata/10301/deposition_metadata.json",
        {"/last_updated_at": "the recorded one is older", "/cross_references": "the config has them"},
    ),
    ("run_metadata.json", f"{RUN1}/run_metadata.json", {}),
    (
        "tiltseries_metadata.json",
        f"{RUN1}/TiltSeries/100/tiltseries_metadata.json",
        {"/raw_tlt_path": "the recorded one is older", "/ctf_path": "the recorded one is older"},
    ),
    (
        "alignment_metadata.json",
        f"{RUN1}/Alignments/100/alignment_metadata.json",
        {
            "/per_section_alignment_parameters/in_plane_rotation": "2 x 2 as the portal's code writes it by now",
            "/per_section_alignment_parameters/tilt_angle": "null there: without a .tlt",
            "/tilt_path": "null there: without a .tlt",
            "/tiltx_path": "null there: without an .xtilt",
        },
    ),
    (
        "frames_metadata.json",
        f"{RUN1}/Frames/frames_metadata.json",
        {
            "/dose_rate": "the config's metadata are written, the recorded one is older",
            "/is_gain_corrected": "the config's metadata are written, the recorded one is older",
            "/deposition_id": "the recorded one is older",
            "/last_updated_at": "the recorded one is older",
        },
    ),
    (
        "tomogram_metadata.json",
        f"{RUN1}/{TOMOGRAMS}/tomogram_metadata.json",
        {
            "/align_softwares": "not in the schema any more",
            "/processing_software": "the config does not say it",
        },
    ),
]


@pytest.mark.parametrize(("recorded", "ours", "differences"), RECORDED, ids=[row[0] for row in RECORDED])
def test_metadata_have_the_recorded_structure(dataset1, payloads, recorded, ours, differences):
    """Names of keys and types of values are those of the portal's own files, but for differences with a reason."""
    case, _ = dataset1
    theirs = structure(json.loads((payloads / "cryoet/metadata" / recorded).read_text()))
    made = structure(case.json(ours))
    different = {path for path in theirs.keys() | made.keys() if theirs.get(path) != made.get(path)}
    different = {path for path in different if not path.startswith(PERSONAL)}
    explained = {path for path in different if any(f"{path}/".startswith(f"{known}/") for known in differences)}
    assert different == explained, {path: (theirs.get(path), made.get(path)) for path in different - explained}
    assert all(any(f"{path}/".startswith(f"{known}/") for path in different) for known in differences), "stale reason"


PERSONAL = ("/authors", "/funding", "/cross_references/dataset_citations", "/microscope", "/other_setup", "/tissue")
PERSONAL += ("/cell_type", "/cell_strain/id", "/organism", "/binning_from_frames", "/aligned_tiltseries_binning")
"""What a depositor states or leaves out."""


def structure(value: Any, path: str = "") -> dict[str, str]:
    """The type of everything inside, by place; items of a list share one. Numbers are one type."""
    if isinstance(value, dict):
        return {place: kind for key, item in value.items() for place, kind in structure(item, f"{path}/{key}").items()}
    if isinstance(value, list):
        inner: dict[str, str] = {}
        for item in value:
            found = structure(item, f"{path}/[]" if isinstance(item, list) else path)
            inner |= {place: kind for place, kind in found.items() if kind != "NoneType" or place not in inner}
        return {**inner, path: "list"}
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {path: "number" if is_number else type(value).__name__}


ENTITIES = {
    "dataset_metadata.json": "DatasetMetadata",
    "deposition_metadata.json": "DepositionMetadata",
    "frames_metadata.json": "FramesMetadata",
    "tiltseries_metadata.json": "TiltSeriesMetadata",
    "alignment_metadata.json": "AlignmentMetadata",
    "tomogram_metadata.json": "TomogramMetadata",
}
NOT_IN_SCHEMA = {"run_metadata.json": "RunMetadata"}
"""The portal's code adds who deposited it and when to every file; the schema forgot the run's."""


def schema_errors(payloads: Path, tree: Path) -> list[str]:
    schema = json.loads((payloads / "cryoet/schema/metadata_files.schema.json").read_text())
    found = []
    for file in tree.rglob("*.json"):
        model = ENTITIES.get(file.name) or NOT_IN_SCHEMA.get(file.name)
        if "/Annotations/" in str(file) and not file.name.startswith(".") and "caption" not in file.name:
            model = "AnnotationMetadata"
        if model is None or FOLDER in str(file):
            continue
        document = json.loads(file.read_text())
        if file.name in NOT_IN_SCHEMA:
            document = {key: document[key] for key in document.keys() - {"deposition_id", "last_updated_at"}}
        validator = jsonschema.Draft201909Validator(schema | {"$ref": f"#/$defs/{model}"})
        errors = validator.iter_errors(document)
        found += [f"{file.relative_to(tree)}: {error.json_path}: {error.message}" for error in errors]
    return found


def test_all_metadata_are_valid(dataset1, payloads):
    """Every JSON of the tree follows the portal's schema of metadata files."""
    case, _ = dataset1
    assert schema_errors(payloads, case.tree) == []


def test_values_come_from_the_files(dataset1):
    """Doses, sections, alignment and objects are what the raw files say."""
    case, _ = dataset1
    frames = case.json(f"{RUN1}/Frames/frames_metadata.json")["frames"]
    assert [frame["acquisition_order"] for frame in frames] == [0, 1, 2, 3, 4]
    assert [round(frame["exposure_dose"], 4) for frame in frames[:2]] == [1.881, 2.972]
    assert frames[2]["accumulated_dose"] == pytest.approx(1.881 * 2.58)
    assert frames[0]["path"] == f"{RUN1}/Frames/TS_run1_1.tiff"
    series = case.json(f"{RUN1}/TiltSeries/100/tiltseries_metadata.json")
    assert (series["frames_count"], series["pixel_spacing"], series["size"]) == (5, 3.3702, {"z": 4, "y": 10, "x": 20})
    first, *_, last = series["per_section_parameter"]
    assert (first["frame_acquisition_order"], first["raw_angle"], first["major_defocus"]) == (3, -4.38, 72249.28)
    assert (last["frame_acquisition_order"], last["z_index"], last["major_defocus"]) == (1, 3, None)
    alignment = case.json(f"{RUN1}/Alignments/100/alignment_metadata.json")
    assert alignment["volume_dimension"] == {"x": 80.88, "y": 107.84, "z": 134.8}
    assert alignment["tiltseries_path"] == f"{RUN1}/TiltSeries/100/tiltseries_metadata.json"
    section = alignment["per_section_alignment_parameters"][0]
    assert section["in_plane_rotation"] == [[0.029, -1.0], [1.0, 0.029]]
    assert (section["tilt_angle"], section["volume_x_rotation"]) == (-5.0, 0.23)
    assert (section["x_offset"], section["y_offset"]) == pytest.approx((23.95253, -56.17124), abs=1e-4)
    objects = case.json(f"{RUN1}/IdentifiedObjects/identified_objects.json")
    assert [row["object_id"] for row in objects] == ["GO:0005739", "GO:0005794", "GO:0005783"]
    assert "run_name" not in objects[0]


PIXELS = {
    "as the config": (3.3702, 3.3702, 3.3702, (3.3702, 3.3702), 0),
    "no config": (None, 3.3702, 3.3702, (3.3702, 3.3702), 0),
    "not square": (None, 3.0, 4.0, (3.0, 4.0), 1),
    "not square, the config has y": (3.0, 3.0, 4.0, (3.0, 4.0), 1),
    "another config": (5.0, 3.0, 4.0, (5.0, 5.0), 1),
}


@pytest.mark.parametrize(("given", "y", "x", "pixels", "said"), PIXELS.values(), ids=PIXELS)
def test_pixels_of_a_tilt_series_keep_both_sizes(given, y, x, pixels, said):
    """Where y is the config's, or nobody else says; where the config contradicts the header it is written, and said."""
    reader = types.SimpleNamespace(pixel_size_nm=(y / 10, x / 10))
    found, notes = _pixel_size(reader, given, "TS_run1.st")
    assert (found, len(notes)) == (pytest.approx(pixels), said)


def test_imod_and_aretomo_say_the_same(raw):
    """The two alignments of one series in the portal's files agree, whichever program's file is read."""
    folder = raw / "10001_input/alignments"
    imod = alignment_values("IMOD", {name: (folder / name).read_bytes() for name in ("TS_run1.xf", "TS_run1.tlt")})
    aretomo = alignment_values("ARETOMO3", {"TS_run1.aln": (folder / "TS_run1.aln").read_bytes()})
    for one, other in zip(imod, aretomo, strict=True):
        assert (one["z_index"], one["tilt_angle"]) == (other["z_index"], other["tilt_angle"])
        assert np.allclose(one["in_plane_rotation"], other["in_plane_rotation"], atol=1e-3)
        assert (one["x_offset"], one["y_offset"]) == pytest.approx((other["x_offset"], other["y_offset"]), abs=0.01)


def test_voxels_are_the_sources(dataset1, raw):
    """OME-Zarr and MRC of a tomogram hold the source's voxels, in its dtype, with the config's spacing."""
    case, _ = dataset1
    source = open_volume(raw / "10001_input/tomograms/TS_run1.rec")
    for name in ("TS_run1.zarr", "TS_run1.mrc"):
        made = open_volume(case.tree / RUN1 / TOMOGRAMS / name)
        assert made.info.dtype == source.info.dtype
        assert np.array_equal(made.read(), source.read())
        assert made.info.voxel_size_nm == pytest.approx((1.348,) * 3)


def test_bytes_are_copied(dataset1, raw):
    """Movies, notes, angles, CTF and alignment files are the source's bytes."""
    case, _ = dataset1
    pairs = {
        "VPP/frames/TS_run1_5.tiff": "Frames/TS_run1_5.tiff",
        "metadata/mdocs_modified/foo-TS_run1.mdoc": "Frames/TS_run1.mdoc",
        "metadata/TS_run1.rawtlt": "TiltSeries/100/TS_run1.rawtlt",
        "metadata/TS_run1_ctffind4.txt": "TiltSeries/100/TS_run1_CTFFIND_ctf.txt",
        "alignments/TS_run1.xf": "Alignments/100/TS_run1.xf",
    }
    for theirs, ours in pairs.items():
        assert (case.tree / RUN1 / ours).read_bytes() == (raw / "10001_input" / theirs).read_bytes()


def test_dataset2_ingests_with_aretomo(tmp_path, raw, test_configs, photos, payloads):
    """The portal's dataset2.yaml, whose alignment is AreTomo's, is whole and valid."""
    case = real_case(tmp_path, raw, complete(load_yaml(test_configs / "dataset2.yaml"), photos))
    case.config["frames"][0]["sources"] = [{"source_multi_glob": {"list_globs": ["VPP/frames/{run_name}_*.tiff"]}}]
    report = case.ingest("--filter-run-name", "TS_run1")
    assert report.is_complete, list(report.lines())
    alignment = case.json(f"{RUN1}/Alignments/100/alignment_metadata.json")
    assert alignment["alignment_path"] == f"{RUN1}/Alignments/100/TS_run1.aln"
    assert alignment["per_section_alignment_parameters"][1]["x_offset"] == 57.299
    assert schema_errors(payloads, case.tree) == []


def completed_part(config: Values, whole: Values) -> Values:
    """One of the portal's smaller test configs: what it lacks is dataset1's, and what matches no file is left out."""
    config = copy.deepcopy(config) | {"version": "1.3.0"}
    config["standardization_config"].setdefault("deposition_id", 10301)
    left_out = {"annotations", *(kind for kind in ("gains", "rawtilts") if "list_glob'" in str(config.get(kind)))}
    if config["standardization_config"]["source_prefix"].endswith("20002"):
        left_out.add("tiltseries")  # 20002 has none
    config = {kind: blocks for kind, blocks in config.items() if kind not in left_out}
    for kind in ("tomograms", "tiltseries", "alignments", "frames"):
        for block in config.get(kind, ()):
            block["metadata"] = completed_metadata(block.get("metadata", {}), whole[kind][0]["metadata"])
    for block in (*config["datasets"], *config["depositions"]):
        block.pop("metadata", None)
    config.setdefault("voxel_spacings", [{"sources": [{"literal": {"value": [13.48]}}]}])
    for source in (source for block in config["voxel_spacings"] for source in block["sources"]):
        if "require" in source.get("parent_filters", {}):  # the schema's word is include
            source["parent_filters"]["include"] = source["parent_filters"].pop("require")
    return config


def completed_metadata(given: Values, known: Values) -> Values:
    values = known | {key: value for key, value in given.items() if value is not None and key in known}
    if values.get("voxel_spacing") == "{run_voxel_spacing}":  # the schema wants it typed
        values["voxel_spacing"] = "float {run_voxel_spacing}"
    if "x_rotation_offset" in values:
        values["x_rotation_offset"] = -2  # -2.3
    return values


PARTS = {
    "voxel_spacing/mrc_header": "20002/run1/Reconstructions/VoxelSpacing14.080/Tomograms/100/run1.mrc",
    "voxel_spacing/overrides_by_run": "20002/run1/Reconstructions/VoxelSpacing5.679/Tomograms/100/run1.mrc",
    "voxel_spacing/tomo_metadata": "20002/run1/Reconstructions/VoxelSpacing1.123/Tomograms/100/run1.mrc",
    "voxel_spacing/tomo_run_data_map": "20002/run1/Reconstructions/VoxelSpacing4.568/Tomograms/100/run1.mrc",
    "alignments/alignment1": "10001/TS_run1/Reconstructions/VoxelSpacing4.123/Tomograms/100/TS_run1.mrc",
    "alignments/alignment2": "10001/TS_run2/run_metadata.json",
    "alignments/alignment3": "10001/TS_run1/Alignments/100/TS_run1.xf",
    "alignments/alignment4": "10001/TS_run1/Alignments/100/alignment_metadata.json",
    "tiltseries/test1": "10001/TS_run1/TiltSeries/100/tiltseries_metadata.json",
    "tiltseries/close_tilt_angles_mdoc_rawtlt": "10001/TS_run1/TiltSeries/100/TS_run1.rawtlt",
    "frames/default": "10001/TS_run1/Frames/frames_metadata.json",
}


@pytest.mark.parametrize("name", PARTS)
def test_the_portals_smaller_configs_ingest(name, dataset1, tmp_path, payloads):
    """Each part that the portal tests by itself is whole and valid."""
    config = load_yaml(payloads / f"cryoet/test_configs/{name}.yaml")
    case = real_case(tmp_path, payloads / "cryoet/source", completed_part(config, dataset1[0].config))
    report = case.ingest()
    assert report.is_complete, list(report.lines())
    assert (case.tree / PARTS[name]).is_file(), sorted(case.files())
    assert schema_errors(payloads, case.tree) == []


# Again, and after what went wrong


@pytest.fixture
def again(dataset1, tmp_path) -> Case:
    """What dataset1 came to, as a copy that a test may spoil. Times are kept."""
    case, _ = dataset1
    ours = Case(tmp_path)
    shutil.copytree(case.bucket, ours.bucket)
    shutil.copytree(case.tree, ours.tree)
    ours.config = copy.deepcopy(case.config)
    return ours


def test_a_second_run_writes_nothing(dataset1):
    """What is whole is found to be whole: no file is touched."""
    case, _ = dataset1
    before = case.files()
    report = case.ingest()
    assert report.is_complete
    assert {entity.status for run in report.runs for entity in run.entities} == {"kept", "absent"}
    assert case.files() == before


def test_moved_files_are_known_by_their_bytes(again):
    """Sources whose times changed and whose bytes did not are hashed, and nothing of the tree is made again."""
    before = again.files()
    assert all(not run.is_new for run in again.ingest().runs)
    after = again.files()
    changed = {key for key in before if before[key] != after[key]}
    assert {key.split("/")[0] for key in changed} <= {FOLDER.split("/")[0]} and before.keys() == after.keys()


@pytest.mark.parametrize(
    ("spoil", "made"),
    [
        (f"{RUN1}/TiltSeries/100/TS_run1.mrc", "tiltseries"),
        (f"{RUN1}/{TOMOGRAMS}/TS_run1.zarr/1/.zarray", "tomogram"),
        (f"{RUN1}/{TOMOGRAMS}/tomogram_metadata.json", "tomogram"),
        (f"{RUN1}/Frames/TS_run1_5.tiff", "frame"),
        (f"{RUN1}/Frames/TS_run1.mdoc", "collection_metadata"),
    ],
    ids=["mrc", "zarr", "json", "movie", "notes"],
)
def test_what_is_gone_is_made_again(again, spoil, made):
    """A file of the tree that is missing is made again as it was, under its number, and nothing else is."""
    lost = (again.tree / spoil).read_bytes()
    (again.tree / spoil).unlink()
    report = again.ingest("--filter-run-name", "TS_run1")
    assert [one.kind for run in report.runs for one in run.entities if one.status == "made"] == [made]
    if not spoil.endswith("_metadata.json"):
        assert (again.tree / spoil).read_bytes() == lost
    assert {folder.name for folder in (again.tree / RUN1 / "TiltSeries").iterdir()} == {"100"}


def test_a_changed_source_is_made_again(again):
    """Other bytes under the same name, and as many, are noticed; what refers to the file is made again, too."""
    angles = again.bucket / "input_bucket/10001_input/metadata/TS_run1.rawtlt"
    angles.write_text(angles.read_text().replace("-4.38", "-4.37"))
    report = again.ingest("--filter-run-name", "TS_run1")
    assert [one.kind for run in report.runs for one in run.entities if one.status == "made"] == [
        "rawtilt",
        "tiltseries",
    ]
    assert (again.tree / RUN1 / "TiltSeries/100/TS_run1.rawtlt").read_text().startswith("-4.37")


def test_a_flipped_byte_is_found_by_verify(again):
    """Of a volume and of a copy, though every size is right; what was damaged is made as it was, and nothing else."""
    before = {key: (again.tree / key).read_bytes() for key in again.files() if key.startswith(f"{RUN1}/")}
    damaged = [
        f"{RUN1}/{TOMOGRAMS}/TS_run1.zarr/1/0/0/0",
        f"{RUN1}/Frames/TS_run1.mdoc",
        f"{RUN1}/TiltSeries/100/TS_run1.mrc",
    ]
    for key in damaged:
        data = bytearray(before[key])
        data[len(data) // 2] ^= 1
        (again.tree / key).write_bytes(bytes(data))
    report = again.ingest(verify=True)
    made = [one.kind for run in report.runs for one in run.entities if one.status == "made"]
    assert sorted(made) == ["collection_metadata", "tiltseries", "tomogram"]
    assert all((again.tree / key).read_bytes() == before[key] for key in damaged)


def test_what_the_config_finds_no_more_is_named(again):
    """An entity, and a run, of an earlier config stay and are said with their files; with filters nothing is."""
    del again.config["gains"]
    (again.bucket / "input_bucket/10001_input/tomograms/TS_run2.rec").unlink()
    filtered = again.ingest("--filter-run-name", "TS_run1")
    assert not [one for run in filtered.runs for one in run.entities if one.status == "left"]
    report = again.ingest()
    assert report.is_complete
    [gain] = [one for run in report.runs for one in run.entities if one.status == "left"]
    assert gain.kind == "gain" and gain.keys == (f"{RUN1}/Gains/CountRef_TS_run1.gain",)
    assert "Remove it if nobody wants it" in gain.notes[0] and gain.keys[0] in gain.notes[0]
    [left] = [one for one in report.above if one.status == "left"]
    assert (left.kind, left.name, left.keys) == ("run", "TS_run2", ("10001/TS_run2",))
    assert (again.tree / "10001/TS_run2/run_metadata.json").is_file() and (again.tree / gain.keys[0]).is_file()


def test_no_record_names_a_folder_of_this_machine(dataset1):
    """The tree and the records beside it may be published: neither says where source, cache or config lie."""
    case, _ = dataset1
    for file in case.tree.rglob("*.json"):
        assert str(case.folder) not in file.read_text()


def test_a_source_that_goes_while_it_is_read_fails_its_entity(again, monkeypatch):
    """A file that is listed and then gone is that entity's failure, by name; the rest is made."""
    shutil.rmtree(again.tree)
    read = LocalStore.read

    def vanishing(store: LocalStore, path: str) -> bytes:
        if path.endswith("TS_run1.xf"):
            raise FileNotFoundError(2, "No such file or directory", f"{store.root}/{path}")
        return read(store, path)

    monkeypatch.setattr(LocalStore, "read", vanishing)
    report = again.ingest("--filter-run-name", "TS_run1", runs=["TS_run1"])
    first = report.failed[0]
    assert first.kind == "alignment" and "TS_run1.xf could not be read or written" in str(first.error)
    assert (again.tree / RUN1 / "TiltSeries/100/tiltseries_metadata.json").is_file()


def test_a_failing_run_leaves_the_others(again):
    """Angles that fit no note fail one tilt series, named with both files; the other run is made."""
    shutil.rmtree(again.tree)
    folder = again.bucket / "input_bucket/10001_input/metadata"
    shutil.copy(folder / "invalid_TS_run1.rawtlt", folder / "TS_run1.rawtlt")
    report = again.ingest()
    assert report.exit_code == 1
    [failed] = report.failed
    assert (failed.kind, failed.line) == ("tiltseries", again_line(again, "tiltseries"))
    assert "TS_run1.rawtlt" in str(failed.error) and "foo-TS_run1.mdoc" in str(failed.error)
    assert [run.is_complete for run in report.runs] == [False, True]
    assert not (again.tree / RUN1 / "run_metadata.json").exists()
    assert not (again.tree / RUN1 / "TiltSeries/100/tiltseries_metadata.json").exists()
    assert (again.tree / RUN1 / TOMOGRAMS / "tomogram_metadata.json").exists()
    assert (again.tree / "10001/TS_run2/run_metadata.json").exists()
    *_, last = report.lines()
    assert last.startswith("1 of 2 runs are whole")


def again_line(case: Case, kind: str) -> int:
    """The line of the only source of a kind."""
    lines = (case.folder / "config.yaml").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{kind}:"))
    sources = next(number for number, line in enumerate(lines[start:], start) if line.strip() == "sources:")
    return sources + 2


def test_a_run_that_fails_later_is_no_longer_whole(again):
    """A source that breaks after its run was whole takes the run's JSON away, and the entity's."""
    (again.bucket / "input_bucket/10001_input/tomograms/TS_run2.rec").write_bytes(b"cut")
    report = again.ingest()
    assert [one.kind for one in report.failed] == ["tomogram"]
    assert not (again.tree / "10001/TS_run2/run_metadata.json").exists()
    assert not (again.tree / "10001/TS_run2" / TOMOGRAMS / "tomogram_metadata.json").exists()
    assert (again.tree / RUN1 / "run_metadata.json").exists()


def test_what_a_filter_leaves_out_is_still_referred_to(again):
    """Without the alignment in the plan the tomogram is the same as before, under the same number."""
    report = again.ingest("--exclude-alignment-name", ".*", "--exclude-tiltseries-name", ".*")
    assert report.is_complete
    assert not any(one.kind == "tomogram" and one.status == "made" for run in report.runs for one in run.entities)


def test_what_refers_to_a_failed_alignment_waits(again):
    """A tomogram is not made under a reference to nothing; with the alignment corrected it is made, as number 100."""
    shutil.rmtree(again.tree)
    xf = again.bucket / "input_bucket/10001_input/alignments/TS_run1.xf"
    right = xf.read_text()
    xf.write_text("1 2 3\n")
    report = again.ingest("--filter-run-name", "TS_run1")
    assert {(one.kind, "waits for" in str(one.error)) for one in report.failed} == {
        ("alignment", False),
        ("tomogram", True),
    }
    xf.write_text(right)
    assert again.ingest("--filter-run-name", "TS_run1").is_complete
    assert (again.tree / RUN1 / TOMOGRAMS / "tomogram_metadata.json").is_file()
    assert not list(again.tree.rglob(".claim.json"))


class Killed(BaseException):
    """A SIGKILL, as far as one process can play it: nothing after it runs but `finally`."""


@pytest.mark.parametrize("after", [1, 6, 10])
def test_a_killed_ingestion_goes_on(again, after, monkeypatch):
    """Whichever entity's JSON was to be written when the process died, the next run makes what is missing, once."""
    shutil.rmtree(again.tree)
    written = 0
    write = LocalStore.write

    def dying(store: LocalStore, path: str, data: bytes) -> None:
        nonlocal written
        written += path.startswith(FOLDER) or path.endswith("_metadata.json")
        if written == after:
            raise Killed
        write(store, path, data)

    monkeypatch.setattr(LocalStore, "write", dying)
    with pytest.raises(Killed):
        again.ingest("--filter-run-name", "TS_run1", runs=["TS_run1"])
    monkeypatch.setattr(LocalStore, "write", write)
    finished = {key: stamp for key, stamp in again.files().items() if key.startswith(FOLDER)}
    assert again.ingest("--filter-run-name", "TS_run1", runs=["TS_run1"]).is_complete
    now = again.files()
    assert sum(now[key] != stamp for key, stamp in finished.items()) <= 1
    assert not list(again.tree.rglob(".claim.json"))
    assert {folder.name for folder in (again.tree / RUN1 / "TiltSeries").iterdir()} == {"100"}


def test_runs_alone_leave_what_is_above(again):
    """Of some runs only these are made: datasets and depositions wait for all of them."""
    shutil.rmtree(again.tree)
    report = again.ingest(runs=["TS_run2"])
    assert [run.run for run in report.runs] == ["TS_run2"] and report.above == ()
    assert not (again.tree / "10001/dataset_metadata.json").exists()
    with pytest.raises(Malformed, match="no run TS_run9; the config finds TS_run1, TS_run2"):
        again.ingest(runs=["TS_run9"])


def test_a_plan_with_errors_is_not_carried_out(again):
    """A glob that matches nothing anywhere stops before anything is written, naming file, line and key."""
    shutil.rmtree(again.tree)
    again.config["gains"][0]["sources"] = [{"source_glob": {"list_glob": "VPP/{run_name}.nothing"}}]
    with pytest.raises(Problems, match=r"config.yaml:\d+: gains\[0\].*matches nothing"):
        again.ingest()
    assert not again.tree.exists()


def test_a_web_page_is_no_key_photo(again, photos):
    """A dataset whose picture is a login page has no JSON, and the picture is named; its runs are untouched."""
    again.config["dataset_keyphotos"][0]["sources"][0]["literal"]["value"]["snapshot"] = f"{photos}/page.gif"
    report = again.ingest()
    [failed] = report.failed
    assert (failed.kind, failed.name) == ("dataset_keyphoto", "snapshot")
    assert all(run.is_complete for run in report.runs)


def test_without_key_photos_the_first_tomograms_are_taken(again):
    """A config that names no pictures gives the dataset those of its first tomogram."""
    shutil.rmtree(again.tree)
    del again.config["dataset_keyphotos"]
    again.ingest("--filter-run-name", "TS_run2")
    key = again.json("10001/dataset_metadata.json")["key_photos"]["thumbnail"]
    own = "10001/TS_run2/Reconstructions/VoxelSpacing13.480/Images/100/key-photo-thumbnail.png"
    assert key == "10001/Images/thumbnail.png"
    assert (again.tree / key).read_bytes() == (again.tree / own).read_bytes()


# Annotations


AUTHORS = [{"name": "Author 1", "primary_author_status": True}]


def annotation(number: int, name: str, *sources: Values) -> Values:
    return {
        "metadata": {
            "annotation_ingest_id": f"{name}-{number}",
            "annotation_object": {"id": "GO:0022626", "name": name},
            "annotation_method": "by hand",
            "method_type": "manual",
            "version": 1.0,
            "authors": AUTHORS,
            "dates": DATES,
        },
        "sources": list(sources),
    }


def shape(name: str, file: str, form: str, /, **options: Any) -> Values:
    return {name: {"file_format": form, "glob_string": f"annotations/{file}", **options}}


@pytest.fixture
def annotated(tmp_path, raw, test_configs) -> Case:
    """The portal's 20002, with its config completed; `annotations` are the test's."""
    folder = tmp_path / "20002"
    folder.mkdir()
    config = load_yaml(test_configs / "annotations/anno_config.yaml")
    case = real_case(folder, raw, {})
    for file in (test_configs / "annotations").iterdir():
        if file.suffix != ".yaml":
            target = case.bucket / "input_bucket/20002/annotations" / file.name
            target.write_bytes(file.read_bytes())
    tomogram = config["tomograms"][0]
    tomogram["metadata"] |= {"dates": DATES, "is_visualization_default": True}
    config["runs"][0]["sources"][0]["source_glob"]["name_regex"] = r"(.*)\.rec"
    case.config = {
        "version": "1.3.0",
        "standardization_config": config["standardization_config"],
        "depositions": [{"sources": [{"literal": {"value": ["20302"]}}]}],
        "datasets": [{"sources": [{"literal": {"value": ["20002"]}}]}],
        **{kind: config[kind] for kind in ("runs", "voxel_spacings", "tomograms")},
    }
    return case


PLACE = "20002/run1/Reconstructions/VoxelSpacing1.123/Annotations/100"
POINTS = {
    "xyz": ("csv", {"columns": "xyz"}, "points.csv", [1.0, 2.0, 3.0]),
    "zyx": ("csv", {"columns": "zyx"}, "points.csv", [3.0, 2.0, 1.0]),
    "tabs": ("csv", {"delimiter": "\t"}, "points_tab_delim.csv", [1.0, 2.0, 3.0]),
    "pipes": ("csv_with_header", {"delimiter": "|"}, "points_with_header_pipe_delim.csv", [1.0, 2.0, 3.0]),
    "binned": ("csv", {"binning": 2}, "points.csv", [0.5, 1.0, 1.5]),
}


@pytest.mark.parametrize(("form", "options", "file", "first"), POINTS.values(), ids=POINTS)
def test_points_become_ndjson(annotated, form, options, file, first):
    """A table of points is the portal's ndjson, an object a line, with as many objects as it has points."""
    annotated.config["annotations"] = [annotation(1, "ribosome", shape("Point", file, form, **options))]
    report = annotated.ingest()
    assert report.is_complete, list(report.lines())
    lines = (annotated.tree / PLACE / "ribosome-1.0_point.ndjson").read_text().splitlines()
    assert json.loads(lines[0]) == {"type": "point", "location": dict(zip("xyz", first, strict=True))}
    metadata = annotated.json(f"{PLACE}/ribosome-1.0.json")
    assert metadata["object_count"] == len(lines) == 3
    assert metadata["files"] == [
        {
            "format": "ndjson",
            "path": f"{PLACE}/ribosome-1.0_point.ndjson",
            "shape": "Point",
            "is_visualization_default": False,
        }
    ]


def test_every_shape_of_the_portals_files_ingests(annotated, payloads):
    """Oriented points, instances, masks, a mesh and captions of one run lie beside each other, valid by the schema."""
    star = {"binning": 1, "filter_value": "grid_1_lamella1_pos1"}
    annotated.config["annotations"] = [
        annotation(1, "relion", shape("OrientedPoint", "tomoman_relion_star.star", "tomoman_relion_star", **star)),
        annotation(2, "stopgap", shape("OrientedPoint", "stopgap_star.star", "stopgap_star", filter_value="2")),
        annotation(
            3, "model", shape("Point", "points.mod", "mod"), shape("OrientedPoint", "oriented_points.mod", "mod")
        ),
        annotation(4, "copick", shape("OrientedPoint", "copick.json", "copick", binning=10)),
        annotation(5, "copick", shape("InstanceSegmentation", "copick_instance.json", "copick", binning=10)),
        annotation(6, "tardis", shape("InstanceSegmentation", "tardis.csv", "tardis", binning=1.123)),
        annotation(7, "semantic", shape("SemanticSegmentationMask", "semantic_mask.mrc", "mrc", mask_label=1)),
        annotation(8, "instances", shape("InstanceSegmentationMask", "segmask.mrc", "mrc", rescale=True)),
        annotation(9, "probable", shape("SemanticSegmentationMask", "small_probability_map.mrc", "mrc", threshold=0.5)),
        annotation(10, "mesh", shape("TriangularMesh", "triangular_mesh.glb", "glb")),
        annotation(11, "said", shape("GlobalCaption", "global_caption.json", "saber")),
        annotation(
            12,
            "said",
            shape("AnnotationCaption", "annotation_caption.json", "saber", companion_shape="InstanceSegmentationMask"),
        ),
    ]
    report = annotated.ingest()
    assert report.is_complete, list(report.lines())
    folder = annotated.tree / PLACE.removesuffix("/100")
    made = {
        "/".join(file.relative_to(folder).parts[:2])
        for file in folder.rglob("*")
        if len(file.relative_to(folder).parts) > 1
    }
    suffixes = sorted(name.partition("-1.0")[2] for name in made if "_" in name)
    assert suffixes == sorted(
        ["_orientedpoint.ndjson"] * 4
        + ["_point.ndjson", *["_instancesegmentation.ndjson"] * 2]
        + ["_segmentationmask.mrc", "_segmentationmask.zarr"] * 2
        + ["_instancesegmentationmask.mrc", "_instancesegmentationmask.zarr"]
        + ["_triangularmesh.glb", "_globalcaption.json", "_instancesegmentationmask_caption.json"]
    )
    counts = {
        document["annotation_ingest_id"]: document["object_count"]
        for file in folder.rglob("*-1.0.json")
        if (document := json.loads(file.read_text()))
    }
    assert counts["relion-1"] == 2 and counts["tardis-6"] == 3 and counts["model-3"] >= 1
    # the schema has no word for results that the portal's code writes
    unknown = ("'InstanceSegmentationMask'", "'TriangularMesh'", "'ndjson'", "'glb'", "'saber'")
    errors = [error for error in schema_errors(payloads, annotated.tree) if not any(word in error for word in unknown)]
    assert errors == []


def test_several_shapes_are_one_annotation(annotated):
    """The sources of one block share a number, a metadata file and its list of files; the state shows the mask."""
    annotated.config["annotations"] = [
        annotation(
            1,
            "ribosome",
            shape("Point", "points.csv", "csv"),
            shape("SemanticSegmentationMask", "semantic_mask.mrc", "mrc", is_visualization_default=True),
        )
    ]
    annotated.ingest()
    metadata = annotated.json(f"{PLACE}/ribosome-1.0.json")
    assert [file["format"] for file in metadata["files"]] == ["ndjson", "zarr", "mrc"]
    spacing = PLACE.removesuffix("/Annotations/100")
    state = annotated.json(f"{spacing}/NeuroglancerPrecompute/100-neuroglancer_config.json")
    assert [layer["source"]["url"].removeprefix("zarr://") for layer in state["layers"]] == [
        f"{spacing}/Tomograms/100/run1.zarr",
        f"{PLACE}/ribosome-1.0_segmentationmask.zarr",
    ]
    del annotated.config["annotations"][0]["sources"][1]
    annotated.config["annotations"][0]["metadata"]["annotation_object"]["name"] = "Other thing"
    annotated.ingest()
    left = {file.name for file in (annotated.tree / PLACE).iterdir()}
    assert left == {"other_thing-1.0.json", "other_thing-1.0_point.ndjson"}


REFUSED = {
    "obj": (shape("TriangularMesh", "triangular_mesh.obj", "obj"), "meshes of format obj are not converted"),
    "scaled": (shape("TriangularMesh", "triangular_mesh.glb", "glb", scale_factor=2), "scale_factor is 2"),
    "hff": (shape("TriangularMeshGroup", "triangular_mesh.hff", "hff", name="m"), "meshes of format hff"),
    "no glb": (shape("TriangularMesh", "triangular_mesh.obj", "glb"), "is no GLB"),
    "two": (shape("Point", "points*.csv", "csv"), "expected one file for this run"),
    "no mask": (shape("SemanticSegmentationMask", "points.csv", "mrc"), "not of a known format"),
    "both": (
        shape("SemanticSegmentationMask", "semantic_mask.mrc", "mrc", mask_label=2, threshold=0.5),
        "one of the two",
    ),
    "companion": (shape("AnnotationCaption", "annotation_caption.json", "saber"), "companion_shape is None"),
}


@pytest.mark.parametrize(("source", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_shape_that_cannot_be_made_is_named(annotated, source, reason):
    """One entity fails with file and reason; the tomogram beside it is made."""
    annotated.config["annotations"] = [annotation(1, "thing", source)]
    report = annotated.ingest()
    [failed] = report.failed
    assert failed.kind == "annotation" and reason in str(failed.error), failed
    assert any(one.kind == "tomogram" and one.status == "made" for one in report.runs[0].entities)
    assert not list((annotated.tree / PLACE).glob("*-1.0.json"))


def test_a_label_that_does_not_occur_is_said(annotated):
    """A mask without the wanted label gives no annotation, which is no failure, and the note names file and label."""
    source = shape("SemanticSegmentationMask", "semantic_mask.mrc", "mrc", mask_label=99)
    annotated.config["annotations"] = [annotation(1, "thing", source)]
    report = annotated.ingest()
    assert report.is_complete
    [absent] = [one for one in report.runs[0].entities if one.kind == "annotation"]
    assert absent.status == "absent" and "semantic_mask.mrc has no label 99" in absent.notes[0]


def test_points_outside_the_tomogram_are_said(annotated):
    """Points beyond the voxels of the tomogram are kept as they are, and counted in a note."""
    annotated.config["annotations"] = [annotation(1, "thing", shape("Point", "points.csv", "csv", binning=0.1))]
    [note] = [note for note in annotated.ingest().runs[0].notes if "outside" in note]
    assert "lie outside the tomogram's" in note and "line 1" in note


# Voxels


class Held:
    """A volume in memory."""

    def __init__(self, voxels: np.ndarray, voxel_size_nm: tuple[float, float, float] | None = (1.0, 1.0, 1.0)) -> None:
        self.voxels = voxels
        self.info = VolumeInfo(voxels.shape, voxels.dtype.name, voxel_size_nm, (1, *voxels.shape[1:]))

    def read(self, box: Box | None = None) -> np.ndarray:
        return self.voxels if box is None else self.voxels[box.slices]

    def tags(self) -> Iterator[tuple[str, Any]]:
        return iter(())


SIZES = {
    "same": ((1.348,) * 3, 13.48, (1.348,) * 3, ""),
    "float32": ((1.3480000495910645,) * 3, 13.48, (1.348,) * 3, ""),
    "unstated": (None, 13.48, (1.348,) * 3, "does not say"),
    "another": ((0.1,) * 3, 13.48, (1.348,) * 3, "the config 13.48 A; the config's is written"),
    "close": ((1.3480796,) * 3, 13.48, (1.348,) * 3, "13.480796"),
    "no cubes": ((1.2, 0.4, 0.4), 4.0, (1.2, 0.4, 0.4), "the header's are written"),
    "no cubes, another": ((1.2, 0.4, 0.4), 13.48, (1.348,) * 3, "the config's is written"),
}


@pytest.mark.parametrize(("header", "config", "written", "said"), SIZES.values(), ids=SIZES)
def test_header_and_config_are_both_said(header, config, written, said):
    """The config's spacing is written unless the header knows more of it, and whatever differs is said."""
    size, notes = voxel_size_of(VolumeInfo((1, 1, 1), "uint8", header, (1, 1, 1)), config, "a.mrc")
    assert size == pytest.approx(written, rel=1e-12)
    assert (said in " ".join(notes)) if said else notes == ()


def test_spacing_from_the_header(annotated):
    """With tomogram_header the folder has y's spacing with three decimals, the files the header's own three sizes."""
    file = annotated.bucket / "input_bucket/20002/tomograms/run1.rec"
    raw = bytearray(file.read_bytes())
    nx, ny, nz = struct.unpack("<3i", raw[:12])
    raw[28:52] = struct.pack("<3i3f", nx, ny, nz, 4.12345 * nx, 4.12345 * ny, 12.5 * nz)
    file.write_bytes(raw)
    annotated.config["voxel_spacings"] = [{"sources": [{"tomogram_header": {"list_glob": "tomograms/{run_name}.rec"}}]}]
    report = annotated.ingest()
    folder = "20002/run1/Reconstructions/VoxelSpacing4.123/Tomograms/100"
    assert report.is_complete, list(report.lines())
    made = open_volume(annotated.tree / folder / "run1.mrc").info.voxel_size_nm
    assert made == pytest.approx((1.25, 0.412345, 0.412345), rel=1e-6)
    assert annotated.json(f"{folder}/tomogram_metadata.json")["voxel_spacing"] == pytest.approx(4.12345, rel=1e-6)
    assert any("its folder and JSON have y's alone" in note for note in report.runs[0].notes)


def test_a_default_alignment_is_the_portals(annotated, payloads):
    """Where the config has no alignment the portal's stands for it: identity, undefined, without a format."""
    annotated.ingest()
    alignment = annotated.json("20002/run1/Alignments/100/alignment_metadata.json")
    assert (alignment["method_type"], alignment["files"]) == ("undefined", [])
    assert "format" not in alignment
    assert schema_errors(payloads, annotated.tree) == []
    tomogram = "20002/run1/Reconstructions/VoxelSpacing1.123/Tomograms/100/tomogram_metadata.json"
    assert annotated.json(tomogram)["alignment_metadata_path"] == "20002/run1/Alignments/100/alignment_metadata.json"


def test_masks_neither_grow_nor_shrink():
    """A mask on another grid covers the same part of the volume, within half a voxel; its middle stays."""
    ball = ((np.indices((24, 30, 36)) - np.array([12, 15, 18]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 64
    mask = Mask(Held(ball.astype(np.float32)))
    for shape_zyx in ((12, 15, 18), (48, 60, 72), (24, 20, 50)):
        other = Resampled(mask, shape_zyx, "mean", threshold=0.5).read()
        assert other.mean() == pytest.approx(ball.mean(), rel=0.15)
        middle = (np.argwhere(other).mean(0) + 0.5) / shape_zyx
        assert np.allclose(middle, (np.argwhere(ball).mean(0) + 0.5) / ball.shape, atol=0.005)


@pytest.mark.parametrize("chunk", [(1, 5000, 5000), (256, 256, 256), (3, 5000, 1), None], ids=str)
def test_pieces_tile_and_are_small(chunk):
    """Whatever the chunks are: every voxel in one piece, and none much larger than what is read at a time."""
    box = Box((1, 2, 3), (81, 5002, 5003))
    pieces = list(read_pieces(box, chunk))
    assert sum(piece.voxels for piece in pieces) == box.voxels and all(box.contains(piece) for piece in pieces)
    assert len({piece.start for piece in pieces}) == len(pieces)
    assert max(piece.voxels for piece in pieces) <= CHUNK_VOXELS


def test_resampling_reads_any_box_alike():
    """A box of a volume on another grid is that part of the whole, whatever pieces it is read in."""
    voxels = np.random.default_rng(0).integers(0, 2**40, (7, 11, 5)).astype(np.int64)
    for how in ("nearest", "mean"):
        other = Resampled(Held(voxels), (10, 4, 9), how)
        whole, box = other.read(), Box((2, 1, 3), (9, 3, 8))
        assert np.array_equal(other.read(box), whole[box.slices])
    nearest = Resampled(Held(voxels), (14, 22, 10), "nearest").read()
    assert np.array_equal(nearest, voxels.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    mean = Resampled(Held(np.full((3, 5, 4), 7.0)), (2, 8, 3), "mean").read()
    assert np.allclose(mean, 7.0, rtol=1e-14)


# Elsewhere


@pytest.mark.slow
def test_from_a_bucket_into_a_bucket(dataset1, moto_s3, tmp_path):
    """On S3 the same tree comes of the same files, and a second run writes nothing."""
    local, _ = dataset1
    case = Case(tmp_path)
    case.source, case.destination = open_store(f"{moto_s3}/raw"), open_store(f"{moto_s3}/tree")
    for path, _ in local.source.list(""):
        case.source.write(path, local.source.read(path))
    case.config = {kind: blocks for kind, blocks in local.config.items() if "keyphoto" not in kind}
    report = case.ingest("--filter-run-name", "TS_run1")
    assert report.is_complete, list(report.lines())
    for key, _ in case.destination.list(RUN1):
        if not key.endswith(("metadata.json", "config.json")):  # which say when they were written
            assert case.destination.read(key) == local.destination.read(key), key
    before = {key: case.destination.version(key) for key, _ in case.destination.list("")}
    assert not any(run.is_new for run in case.ingest("--filter-run-name", "TS_run1").runs)
    assert {key: case.destination.version(key) for key, _ in case.destination.list("")} == before
    assert not list((tmp_path / "cache/ingest").iterdir())


# Copies


def test_a_copy_that_is_not_what_was_read_is_refused(tmp_path, monkeypatch):
    """A disk that changes a byte is noticed before the copy has its name."""
    source, destination = LocalStore(tmp_path / "a"), LocalStore(tmp_path / "b")
    source.write("movie.tif", b"x" * 1000)
    from em_assets.ingest import copying

    monkeypatch.setattr(copying, "_digest_of", lambda file: "0" * 64)
    with pytest.raises(Mismatch, match="the disk or the transfer is damaged"):
        copy_file(source, "movie.tif", destination, "Frames/movie.tif", quick_settings(tmp_path))
    assert list((tmp_path / "b").rglob("*.tif")) == []


def test_a_gain_is_converted(annotated, realdata):
    """A DM4 gain reference becomes an MRC with its voxels."""
    source = realdata / "dm/nion_ref_F_1_2.dm4"
    shutil.copy(source, annotated.bucket / "input_bucket/20002/gain.dm4")
    annotated.config["gains"] = [{"sources": [{"source_glob": {"list_glob": "gain.dm4"}}]}]
    report = annotated.ingest()
    [gain] = [one for one in report.runs[0].entities if one.kind == "gain"]
    assert gain.keys == ("20002/run1/Gains/gain.mrc",), gain
    assert np.array_equal(open_volume(annotated.tree / gain.keys[0]).read(), open_volume(source).read())
