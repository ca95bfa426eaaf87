"""A stored dataset as the portal's tree: what lies where, what it says, that others read it, that it is whole."""

import functools
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import zarr

from conftest import ROOT
from em_assets import cli
from em_assets.assets import Platform, build_dataset_assets
from em_assets.errors import Mismatch, Unavailable
from em_assets.neuroglancer import neuroglancer_url
from em_assets.pipeline import describe_dataset
from em_assets.portal import _levels, _output, layout, tree
from em_assets.portal.known import ABOUT_THEIR_TREE, DATASET, INSTEAD, TOMOGRAM, WITHOUT_A_WORD, Known
from em_assets.portal.states import source_urls, with_base
from em_assets.portal.tree import LARGEST_NUMBER, default_number, export_tree
from em_assets.records import DatasetFolder, VolumeSummary
from em_assets.resources.storage import Storage
from em_assets.store import Store, open_store
from em_assets.volume import Box
from portal_sample import ServedPortal, write_once
from small import quick_settings, write_spec
from test_export import SIZE_NM, store_dataset, store_volume, voxels_of
from test_viewer import CHROMIUM, FLAGS, picture_of
from test_viewer import served as viewer_of

NAME = "em"
NUMBER = default_number(NAME)
SHAPE = (50, 37, 61)
NUC = "nuc"
TRAINING = "training"
GAP = Box((0, 32, 32), (50, 37, 61))
SPACING = f"{SIZE_NM[1] * 10:.3f}"
BASE = f"{NUMBER}/{NAME}/Reconstructions/VoxelSpacing{SPACING}"
OTHER = f"{NUMBER}/{NAME}.{TRAINING}/Reconstructions/VoxelSpacing{SPACING}"
KEYS = {
    f"depositions_metadata/{NUMBER}/deposition_metadata.json",
    *(f"depositions_metadata/{NUMBER}/Images/{which}.png" for which in ("snapshot", "thumbnail")),
    f"{NUMBER}/dataset_metadata.json",
    *(f"{NUMBER}/Images/{which}.png" for which in ("snapshot", "thumbnail")),
    f"{NUMBER}/{NAME}/run_metadata.json",
    f"{BASE}/Annotations/100/nuc-1.0.json",
    f"{BASE}/Annotations/100/nuc-1.0_segmentationmask.mrc",
    f"{BASE}/Annotations/100/nuc-1.0_segmentationmask.zarr",
    f"{NUMBER}/{NAME}.{TRAINING}/run_metadata.json",
    *(
        f"{base}/{end}"
        for base, run in ((BASE, NAME), (OTHER, f"{NAME}.{TRAINING}"))
        for end in (
            f"Tomograms/100/{run}.mrc",
            f"Tomograms/100/{run}.zarr",
            "Tomograms/100/tomogram_metadata.json",
            "NeuroglancerPrecompute/100-neuroglancer_config.json",
            *(f"Images/100/key-photo-{which}.png" for which in ("original", "expanded", "snapshot", "thumbnail")),
        )
    ),
}
"""Of every file, and of every OME-Zarr group as a whole."""


def store_three(root: Path | str, *, seed: int = 3) -> DatasetFolder:
    """An image that lacks a part, labels of it, and another image."""
    folder = store_dataset(root, voxels_of("int16", SHAPE, seed), name=NAME, gap=GAP)
    labels = np.zeros(SHAPE, np.uint32)
    labels[10:20, 5:30, 7:50] = 70_000
    store_volume(folder.further(NUC), labels, content="labels")
    store_volume(folder.further(TRAINING), voxels_of("float32", (9, 11, 13)))
    summaries = {
        NUC: VolumeSummary(content="labels", shape=SHAPE, dtype="uint32", voxel_size_nm=SIZE_NM),
        TRAINING: VolumeSummary(content="image", shape=(9, 11, 13), dtype="float32", voxel_size_nm=SIZE_NM),
    }
    folder.write_record(folder.read_record().model_copy(update={"volumes": summaries}))
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def documents(folder: Path) -> dict[str, dict]:
    """Every metadata JSON, by key; what lies in a group is none."""
    keys = (file.relative_to(folder).as_posix() for file in folder.rglob("*.json"))
    return {key: json.loads((folder / key).read_bytes()) for key in keys if ".zarr/" not in key}


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """The portal's have 64 MB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_levels, "CHUNK", (64, 64, 64))
        patch.setattr(_levels, "INNER_CHUNK", (32, 32, 32))
        yield


class Exported:
    """The dataset in a tree, written once; nothing changes it."""

    def __init__(self, folder: Path) -> None:
        self.dataset = store_three(folder / "data")
        self.root = folder / "bucket" / "tree"
        self.done = export_tree(self.dataset, open_store(str(self.root)))
        self.documents = documents(self.root)

    def copy(self, folder: Path) -> Store:
        shutil.copytree(self.root, folder)
        return open_store(str(folder))

    def document(self, name: str) -> dict:
        [found] = [content for key, content in self.documents.items() if re.fullmatch(name, key)]
        return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return Exported(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Another dataset, of one small volume."""
    return store_dataset(tmp_path_factory.mktemp("tiny"), voxels_of("uint8", (5, 6, 7)), name="tiny")


def test_everything_lies_where_the_portals_code_puts_it(exported):
    """Those files and groups and no others; none for what the dataset does not have."""
    found = {re.sub(r"\.zarr/.*", ".zarr", key) for key in files_below(exported.root)}
    assert found == KEYS == set(exported.done.keys)
    assert exported.done.size_bytes == sum(map(len, files_below(exported.root).values()))
    assert not any(part in key for key in found for part in ("Alignments", "TiltSeries", "Frames", "Gains", "claim"))


MODELS = {
    "dataset_metadata.json": "DatasetMetadata",
    "deposition_metadata.json": "DepositionMetadata",
    "run_metadata.json": "RunMetadata",
    "tomogram_metadata.json": "TomogramMetadata",
    "nuc-1.0.json": "AnnotationMetadata",
}


def require_valid(payloads: Path, model: str, content: dict) -> None:
    """By the portal's own schema. Its runs' files have two keys that it does not know."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((payloads / "cryoet/schema/metadata_files.schema.json").read_text())
    if model == "RunMetadata":
        content = {key: value for key, value in content.items() if key not in ("deposition_id", "last_updated_at")}
    jsonschema.Draft201909Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{model}"}).validate(content)


def test_all_json_is_valid(exported, payloads):
    """Against the portal's own schema of metadata files; four spaces, and the two keys that every file has."""
    states = [key for key in exported.documents if key.endswith("neuroglancer_config.json")]
    assert len(states) == 2
    for key, content in exported.documents.items():
        text = (exported.root / key).read_text()
        assert text == json.dumps(content, indent=4, ensure_ascii=False) + "\n"
        assert content["deposition_id"] == NUMBER
        assert content["last_updated_at"] == int(exported.dataset.read_record().timestamp.timestamp())
        if key not in states:
            require_valid(payloads, MODELS[key.rpartition("/")[2]], content)


def test_what_json_names_is_there(exported):
    """Every key in any document is a file or group of the tree."""

    def paths(content):
        values = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
        yield from (value for value in values if isinstance(value, str) and value.count("/") > 1 and " " not in value)
        for value in values:
            yield from paths(value)

    named = {path for key, content in exported.documents.items() for path in paths(content) if "://" not in path}
    assert len(named) == 16
    assert named <= KEYS


def test_the_tomogram_is_described_as_it_is(exported):
    """Size and levels in voxels, the spacing of y as the portal's code takes it, the voxels' three sizes in a note."""
    tomogram = exported.document(f"{BASE}/Tomograms/100/tomogram_metadata.json")
    assert tomogram["size"] == {"x": 61, "y": 37, "z": 50}
    levels = [[level[axis] for axis in "zyx"] for level in tomogram["scales"]]
    assert levels == [[50, 37, 61], [25, 19, 31], [13, 10, 16]]
    assert tomogram["voxel_spacing"] == pytest.approx(SIZE_NM[1] * 10)
    assert any("500 x 79.9825 x 85 angstrom (z, y, x)" in note for note in exported.done.notes)


def test_labels_do_not_wrap(exported):
    """70000 is 70000 in OME-Zarr; in MRC, which has no such integers, as a float."""
    import mrcfile
    import zarr

    annotation = exported.document(f"{BASE}/Annotations/100/nuc-1.0.json")
    files = {one["format"]: one["path"] for one in annotation["files"]}
    group = zarr.open_group(exported.root / files["zarr"], mode="r")
    assert [np.unique(group[level]).tolist() for level in "012"] == [[0, 70_000]] * 3
    with mrcfile.open(exported.root / files["mrc"]) as mrc:
        assert np.unique(mrc.data).tolist() == [0, 70_000]


def test_others_read_the_volumes(exported):
    """ome-zarr-models accepts the groups as OME-NGFF 0.4, mrcfile the MRCs; both have the stored voxels."""
    import mrcfile
    import zarr
    from ome_zarr_models.v04 import Image

    expected = voxels_of("int16", SHAPE)
    expected[GAP.slices] = 0
    group = zarr.open_group(exported.root / f"{BASE}/Tomograms/100/{NAME}.zarr", mode="r")
    assert len(Image.from_zarr(group).attributes.multiscales[0].datasets) == 3
    assert (group["0"][:] == expected).all()
    file = exported.root / f"{BASE}/Tomograms/100/{NAME}.mrc"
    assert mrcfile.validate(file, print_file=sys.stderr)
    with mrcfile.open(file) as mrc:
        assert (mrc.data == expected).all()
        assert tuple(mrc.voxel_size.tolist()) == pytest.approx([10 * size for size in reversed(SIZE_NM)])


def test_missing_voxels_are_told(exported):
    """They are 0 in every format, so the export says how many there are; the picture hatches them."""
    from PIL import Image

    assert exported.done.missing_voxels == GAP.voxels
    picture = np.asarray(Image.open(exported.root / f"{BASE}/Images/100/key-photo-original.png"))
    assert picture.ndim == 3


def test_it_is_written_the_same_again(exported, tmp_path):
    """Equal volumes make equal trees, byte for byte, wherever they are written and with however many workers."""
    done = export_tree(exported.dataset, open_store(str(tmp_path)), workers=3)
    assert files_below(tmp_path) == files_below(exported.root)
    assert done.sha256 == exported.done.sha256


def test_a_second_export_writes_nothing(exported):
    """What is there as it would be written is left alone: no file is even touched."""
    before = {file: file.stat().st_mtime_ns for file in exported.root.rglob("*")}
    again = export_tree(exported.dataset, open_store(str(exported.root)))
    assert (exported.done.new, again.new) == (len(KEYS), 0)
    assert {file: file.stat().st_mtime_ns for file in exported.root.rglob("*")} == before
    assert (again.keys, again.notes, again.unknown) == (
        exported.done.keys,
        exported.done.notes,
        exported.done.unknown,
    )


def test_a_file_of_the_same_size_is_not_taken_for_the_same(exported, tmp_path):
    """A damaged JSON or picture is written again, where the portal skips by size."""
    store, whole = exported.copy(tmp_path / "tree"), files_below(exported.root)
    for key in (f"{NUMBER}/dataset_metadata.json", f"{BASE}/Images/100/key-photo-snapshot.png"):
        (tmp_path / "tree" / key).write_bytes(whole[key][:-1] + b"\0")
    assert export_tree(exported.dataset, store).new == 2
    assert files_below(tmp_path / "tree") == whole


def test_missing_voxels_darken_no_level(tmp_path):
    """A constant image that lacks a part is constant on every level where anything is real, also beside the gap."""
    gap = Box((0, 31, 33), (50, 37, 61))
    folder = store_dataset(tmp_path / "data", np.full(SHAPE, 100, np.int16), name=NAME, gap=gap)
    export_tree(folder, open_store(str(tmp_path / "tree")))
    group = zarr.open_group(str(tmp_path / f"tree/{BASE}/Tomograms/100/{NAME}.zarr"), mode="r")
    assert [set(np.unique(group[str(level)])) for level in range(3)] == [{0, 100}] * 3
    assert (group["1"][:, 15, 16:] == 100).all() and (group["1"][:, 16:, 17:] == 0).all()


def test_a_flipped_byte_is_found_by_verify(exported, tmp_path):
    """A byte of a chunk that changed in place: written anew, and nothing else."""
    store, chunk = exported.copy(tmp_path / "tree"), f"{BASE}/Tomograms/100/{NAME}.zarr/1/0/0/0"
    data = bytearray(store.read(chunk))
    data[-1] ^= 1
    store.write(chunk, bytes(data))
    done = export_tree(exported.dataset, store, verify=True)
    assert done.new == 2  # the group and its MRC are one volume
    assert files_below(tmp_path / "tree") == files_below(exported.root)


def test_what_an_earlier_export_left_is_named(exported, tmp_path):
    """It stays, and each file and group of it is said; an export that left nothing says nothing of the kind."""
    store = exported.copy(tmp_path / "tree")
    store.write(f"{BASE}/Annotations/107/gone-1.0_segmentationmask.zarr/.zattrs", b"{}")
    store.write(f"{BASE}/Annotations/107/gone-1.0_segmentationmask.zarr/0/0/0/0", b"1")
    store.write(f"{NUMBER}/{NAME}.gone/run_metadata.json", b"{}")
    [note] = set(export_tree(exported.dataset, store).notes) - set(exported.done.notes)
    assert note.startswith("2 files and groups in the dataset's folder are not of this export: ")
    left = {f"{BASE}/Annotations/107/gone-1.0_segmentationmask.zarr", f"{NUMBER}/{NAME}.gone/run_metadata.json"}
    assert set(note.partition("export: ")[2].partition(";")[0].split(", ")) == left


def test_a_base_address_changes_the_states_alone(exported, tmp_path):
    """Nothing else knows where the tree is served."""
    store = exported.copy(tmp_path / "tree")
    done = export_tree(exported.dataset, store, base_url="https://example.org/tree/")
    other = {key for key, data in files_below(tmp_path / "tree").items() if data != (exported.root / key).read_bytes()}
    assert other == {f"{base}/NeuroglancerPrecompute/100-neuroglancer_config.json" for base in (BASE, OTHER)}
    assert done.new == 2
    state = json.loads((tmp_path / f"tree/{BASE}/NeuroglancerPrecompute/100-neuroglancer_config.json").read_bytes())
    assert next(source_urls(state)) == f"https://example.org/tree/{BASE}/Tomograms/100/{NAME}.zarr"


def test_ome_ngff_0_5_by_option(tiny, tmp_path):
    """Zarr v3 groups in place of the others, back and forth."""
    import zarr
    from ome_zarr_models.v05 import Image

    store = open_store(str(tmp_path))
    export_tree(tiny, store)
    before = files_below(tmp_path)
    export_tree(tiny, store, ngff="0.5")
    [group] = tmp_path.glob("*/tiny/Reconstructions/*/Tomograms/100/tiny.zarr")
    Image.from_zarr(zarr.open_group(group, mode="r"))
    export_tree(tiny, store)
    assert files_below(tmp_path) == before


# Numbers


@pytest.mark.parametrize("name", ["em", "hemibrain_crop", "x" * 60])
def test_default_numbers_are_stable_and_fit(name):
    """Above the portal's own, within GraphQL's Int, and the name's for ever."""
    assert 1_000_000 < default_number(name) < 2**31
    assert default_number("hemibrain_crop") == 2137740680


def test_numbers_are_as_given(tiny, tmp_path):
    """Folders and every document have them."""
    done = export_tree(tiny, open_store(str(tmp_path)), dataset_id=7, deposition_id=8)
    assert (done.dataset_id, done.deposition_id) == (7, 8)
    assert {key.partition("/")[0] for key in done.keys} == {"7", "depositions_metadata"}
    assert {content["deposition_id"] for content in documents(tmp_path).values()} == {8}
    assert documents(tmp_path)["7/dataset_metadata.json"]["dataset_identifier"] == 7


@pytest.mark.parametrize("number", [0, -1, LARGEST_NUMBER + 1])
def test_a_number_that_cannot_be_is_refused(exported, tmp_path, number):
    """Before anything is written, with the option to correct."""
    with pytest.raises(Mismatch, match=f"--dataset-id is {number}, expected a number from 1 to 2147483647"):
        export_tree(exported.dataset, open_store(str(tmp_path / "tree")), dataset_id=number)
    assert not (tmp_path / "tree").exists()


def test_another_datasets_number_is_refused(exported, tiny, tmp_path):
    """Its dataset's JSON would be lost."""
    store = open_store(str(tmp_path / "tree"))
    export_tree(tiny, store, dataset_id=7)
    before = files_below(tmp_path / "tree")
    with pytest.raises(Mismatch, match=r"7/dataset_metadata.json is another dataset's: it has no run em; give another"):
        export_tree(exported.dataset, store, dataset_id=7)
    assert files_below(tmp_path / "tree") == before


def test_a_deposition_of_others_stays_theirs(tiny, tmp_path):
    """It is left as it was described, and that is told."""
    key = layout.deposition_metadata(8)
    (tmp_path / key).parent.mkdir(parents=True)
    (tmp_path / key).write_text('{"deposition_title": "Theirs", "deposition_id": 8}')
    done = export_tree(tiny, open_store(str(tmp_path)), deposition_id=8)
    assert "Theirs" in (tmp_path / key).read_text()
    assert any("Deposition 8 was there already, 'Theirs'" in note for note in done.notes)


# What is said


def test_nothing_is_invented(exported):
    """What nobody stated is the schema's own word for that, or the one that claims least; each is listed."""
    tomogram = exported.document(f"{BASE}/Tomograms/100/tomogram_metadata.json")
    dataset, annotation = exported.document(r".*dataset_metadata\.json"), exported.document(r".*/nuc-1\.0\.json")
    written = {"dataset_metadata.json": dataset, TOMOGRAM: tomogram, "annotation": annotation}
    listed = {key.partition(" of ")[0]: word for key, word in exported.done.unknown.items()}
    for file, values in INSTEAD.items():
        for key, instead in values.items():
            assert written[file][key] == instead
            assert ("no word for unknown" in listed[key]) == (key in WITHOUT_A_WORD)
    assert dataset["authors"] == [{"name": "not_reported"}] and listed["authors"] == "not_reported"
    assert annotation["annotation_object"] == {"id": "GO:0005575", "name": NUC}
    assert {"deposition_date", "release_date", "last_modified_date"} <= set(listed)
    assert "organism" not in dataset and "microscope" not in json.dumps(exported.documents)


def test_licence_and_citation_go_with_the_data(exported):
    """The schema has no keys for them, and nobody may use the data without."""
    dataset, record = exported.document(r".*dataset_metadata\.json"), exported.dataset.read_record()
    assert dataset["other_setup"].startswith(f"licence: {record.license}; cite: {record.citation}; ")
    assert dataset["cross_references"] == {"publications": "doi:10.5072/x", "related_database_links": record.page_url}


def test_what_was_stated_is_said(exported, payloads):
    """Authors, organism, dates and entries go where the portal has them."""
    said = {
        "authors": "Jane Smith; John Doe",
        "organism": "Mus musculus",
        "organism_taxid": "NCBITaxon:10090",
        "modality": "SBF-SEM",
        "deposited_on": "2023-11-01",
        "released_on": "2024-01-15",
        "updated_on": "2024-02-01",
        "preparation": "osmium",
    }
    record = exported.dataset.read_record().model_copy(update={"source_id": "EMPIAR-11759"})
    known = Known(record, said, {})
    dataset = known.dataset() | {"dataset_identifier": 7, "key_photos": {}, "deposition_id": 7, "last_updated_at": 0}
    require_valid(payloads, "DatasetMetadata", dataset)
    assert dataset["authors"] == [{"name": "Jane Smith"}, {"name": "John Doe"}]
    assert dataset["organism"] == {"name": "Mus musculus", "taxonomy_id": 10090}
    assert dataset["assay"] == {"name": "SBF-SEM"}
    assert list(dataset["dates"].values()) == ["2023-11-01", "2024-01-15", "2024-02-01"]
    assert dataset["cross_references"]["related_database_entries"] == "EMPIAR-11759"
    assert set(known.unknown) == {f"{key} of dataset" for key in ("sample_type", "disease", "development_stage")}


def test_the_portals_own_words_are_kept(exported, payloads):
    """Of a tomogram that came from the portal; not its paths and sizes, nor what breaks its schema, which is told."""
    theirs = json.loads((payloads / "cryoet/metadata/tomogram_metadata.json").read_text())
    known = Known(exported.dataset.read_record(), {}, {TOMOGRAM: theirs})
    values = known.tomogram()
    kept = theirs.keys() - ABOUT_THEIR_TREE - {"align_softwares"}
    assert {key: values[key] for key in kept} == {key: theirs[key] for key in kept}
    assert values.keys() - kept == {"cross_references"}
    assert known.left_out == {TOMOGRAM: ["align_softwares"]}
    assert known.unknown == {}
    theirs = json.loads((payloads / "cryoet/metadata/dataset_metadata.json").read_text())
    setup = Known(exported.dataset.read_record(), {}, {DATASET: theirs}).dataset()["other_setup"]
    assert setup.startswith("Other Setup; licence: CC-BY-4.0; ")


# What a tomogram of the portal brings along


@pytest.fixture
def of_the_portal(tmp_path, payloads):
    """A dataset that keeps what a tomogram of the portal comes with: (its folder, the kept files by name)."""
    folder = store_dataset(tmp_path / "data", voxels_of("uint8", (5, 6, 7)), name=NAME)
    source = payloads / "cryoet/source/10001_input"
    files = {
        "a.mdoc": source / "metadata/mdocs_modified/foo-TS_run1.mdoc",
        "a.rawtlt": source / "metadata/TS_run1.rawtlt",
        "a.xf": source / "alignments/TS_run1.xf",
        "a.tlt": source / "alignments/TS_run1.tlt",
        "tiltseries_metadata.json": payloads / "cryoet/metadata/tiltseries_metadata.json",
    }
    for name, file in files.items():
        folder.write(f"documents/{name}", file.read_bytes())
    return folder, {name: file.read_bytes() for name, file in files.items()}


def test_side_files_have_their_folders(of_the_portal, tmp_path, payloads):
    """Kept documents of a tilt series and its alignment lie where the portal has them, with JSON that names them."""
    folder, files = of_the_portal
    corrected = files["tiltseries_metadata.json"].replace(b"K2 Summit", b"K2 SUMMIT")
    folder.write("documents/tiltseries_metadata.json", corrected)
    done = export_tree(folder, open_store(str(tmp_path / "tree")))
    run = f"{NUMBER}/{NAME}"
    kept = {"Frames/em.mdoc": "a.mdoc", "TiltSeries/100/em.rawtlt": "a.rawtlt"}
    kept |= {f"Alignments/100/em.{ending}": f"a.{ending}" for ending in ("xf", "tlt")}
    for key, name in kept.items():
        assert (tmp_path / "tree" / run / key).read_bytes() == files[name]
    found = documents(tmp_path / "tree")
    series, alignment = found[f"{run}/TiltSeries/100/tiltseries_metadata.json"], found[f"{run}/{ALIGNMENT}"]
    require_valid(payloads, "TiltSeriesMetadata", series)
    require_valid(payloads, "AlignmentMetadata", alignment)
    assert series["raw_tlt_path"] == f"{run}/TiltSeries/100/em.rawtlt"
    assert series["acceleration_voltage"] == 300000 and "mrc_file" not in series
    assert alignment["format"] == "IMOD"
    assert alignment["tiltseries_path"] == f"{run}/TiltSeries/100/tiltseries_metadata.json"
    assert set(alignment["files"]) == {f"{run}/Alignments/100/em.{ending}" for ending in ("xf", "tlt")}
    tomogram = found[f"{BASE}/Tomograms/100/tomogram_metadata.json"]
    assert tomogram["alignment_metadata_path"] == f"{run}/{ALIGNMENT}"
    assert not any(".claim.json" in key for key in found)
    assert done.new == len(done.keys)


ALIGNMENT = "Alignments/100/alignment_metadata.json"


def test_a_tilt_series_that_is_not_described_has_no_folder(of_the_portal, tmp_path):
    """Where the portal's own file lacks what its schema requires (a camera that it knows), and that is told."""
    done = export_tree(of_the_portal[0], open_store(str(tmp_path / "tree")))
    assert not any("TiltSeries" in key for key in done.keys)
    assert "em: Its angles have no place, because nobody describes the tilt series." in done.notes
    [left_out] = [note for note in done.notes if "tiltseries_metadata.json" in note]
    assert left_out.startswith("camera, related_empiar_entry of the portal's own")


def test_points_are_counted_in_voxels_of_the_tomogram(tmp_path):
    """Tables become ndjson: location i is the middle of voxel i; points outside are left out, and told."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = store_dataset(tmp_path / "data", voxels_of("uint8", (5, 6, 7)), name=NAME)
    corner = tree.StoredImage(folder).corner_nm
    kinds = {"point": (1, 2, 3), "orientedPoint": (4, 5, 6), "instancePoint": (0, 0, 0.25), "outside": (9, 2, 3)}
    columns = {
        f"{axis}_nm": [corner[number] + (place[number] + 0.5) * SIZE_NM[number] for place in kinds.values()]
        for number, axis in enumerate("zyx")
    }
    columns["kind"] = ["point", "orientedPoint", "instancePoint", "point"]
    columns["instance_id"] = [None, None, 8, None]
    columns["rotation"] = [None, [0.0, 1, 2, 3, 4, 5, 6, 7, 8], None, None]
    (tmp_path / "data" / NAME / "points").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "data" / NAME / "points/ribosome.parquet")

    done = export_tree(folder, open_store(str(tmp_path / "tree")))
    annotation = documents(tmp_path / "tree")[f"{BASE}/Annotations/100/ribosome-1.0.json"]
    assert annotation["object_count"] == 3
    lines = {
        one["shape"]: [json.loads(line) for line in (tmp_path / "tree" / one["path"]).read_text().splitlines()]
        for one in annotation["files"]
    }
    assert lines == {
        "Point": [{"type": "point", "location": {"x": 3.0, "y": 2.0, "z": 1.0}}],
        "OrientedPoint": [
            {
                "type": "orientedPoint",
                "location": {"x": 6.0, "y": 5.0, "z": 4.0},
                "xyz_rotation_matrix": [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
            }
        ],
        "InstanceSegmentation": [
            {"type": "instancePoint", "location": {"x": 0.25, "y": 0.0, "z": 0.0}, "instance_id": 8}
        ],
    }
    assert "ribosome: 1 points lie outside of the volume, and were left out." in done.notes


@pytest.mark.slow
def test_a_tomogram_of_the_portal_goes_back(tmp_path, tmp_path_factory, payloads):
    """Read from the sample's portal with all that comes with it and exported, it has the folders that it came from."""
    written = write_once(tmp_path_factory.getbasetemp())
    with ServedPortal(written, tmp_path) as served:
        spec = served.spec()
        served.materialize(spec)
        store = open_store(served.settings.root)
        describe_dataset(spec, served.settings, store, fetch=True)
        done = export_tree(DatasetFolder(store, spec.name), open_store(str(tmp_path / "tree")), spec=spec)
    kinds = {key.split("/")[2] for key in done.keys if f"/{spec.name}/" in key}
    assert {"Frames", "TiltSeries", "Alignments", "Reconstructions"} <= kinds
    for key, content in documents(tmp_path / "tree").items():
        if not key.endswith("neuroglancer_config.json"):
            is_annotation = "/Annotations/" in key
            stem = key.rpartition("/")[2]
            model = "AnnotationMetadata" if is_annotation else FURTHER_MODELS.get(stem) or MODELS[stem]
            require_valid(payloads, model, content | ({"files": []} if is_annotation else {}))
    assert all(key.endswith(" of annotation") for key in done.unknown), "the portal's own files say all else"


FURTHER_MODELS = {"tiltseries_metadata.json": "TiltSeriesMetadata", "alignment_metadata.json": "AlignmentMetadata"}


# Whole or not at all


def test_another_volume_takes_its_place_and_number(exported, tmp_path, monkeypatch):
    """While it is written no JSON calls it whole; if that fails, the next export goes on under the same number."""
    store, place = exported.copy(tmp_path / "tree"), tmp_path / "tree" / BASE / "Tomograms"
    changed = store_three(tmp_path / "data", seed=4)

    def failing(*_, **__):
        assert not (place / "100/tomogram_metadata.json").exists()
        raise Unavailable("the disk is full")

    with monkeypatch.context() as patch:
        whole = _output.write_volume
        patch.setattr(
            _output,
            "write_volume",
            lambda reader, *a, **k: (failing if reader.info.dtype == "int16" else whole)(reader, *a, **k),
        )
        with pytest.raises(Unavailable):
            export_tree(changed, store)
    export_tree(changed, store)
    assert [one.name for one in place.iterdir()] == ["100"]
    export_tree(changed, open_store(str(tmp_path / "fresh")))
    assert files_below(tmp_path / "tree") == files_below(tmp_path / "fresh")


KILLED = """
import os, sys
from em_assets.portal import _levels, _placing
_levels.CHUNK = (64, 64, 64)
from em_assets.portal.tree import export_tree
from em_assets.records import DatasetFolder
from em_assets.store import open_store
data, root, run = sys.argv[1:]
whole = _placing.Group.write
def dying(group, path, chunk):
    if run in group.key and path.startswith("1/"):
        os.kill(os.getpid(), 9)
    return whole(group, path, chunk)
_placing.Group.write = dying
export_tree(DatasetFolder(open_store(data), "em"), open_store(root))
"""


def test_after_a_kill_it_is_made_whole(exported, tmp_path):
    """Killed within the second run's volume: what has its JSON is whole, the rest is hidden; the next run ends it."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, exported.dataset.store.root, str(tmp_path), f"{NAME}.{TRAINING}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    left = documents(tmp_path)
    assert f"{NUMBER}/{NAME}/run_metadata.json" in left and f"{NUMBER}/dataset_metadata.json" not in left
    for key in left:
        assert key.endswith(".claim.json") or (tmp_path / key).read_bytes() == (exported.root / key).read_bytes()
    assert not (tmp_path / f"{OTHER}/Tomograms/100/{NAME}.{TRAINING}.zarr").exists()
    export_tree(exported.dataset, open_store(str(tmp_path)))
    assert files_below(tmp_path) == files_below(exported.root)


def test_on_s3_it_is_the_same(exported, moto_s3, tmp_path, monkeypatch):
    """The same objects in a bucket, and nothing written the second time."""
    monkeypatch.setenv("EM_ASSETS_CACHE", str(tmp_path))
    store = open_store(f"{moto_s3}/tree")
    export_tree(exported.dataset, store)
    assert {path: store.read(path) for path, _ in store.list("")} == files_below(exported.root)
    assert export_tree(exported.dataset, store).new == 0


def test_what_is_not_complete_is_not_exported(tiny, tmp_path):
    """With the way to finish it."""
    folder = DatasetFolder(open_store(str(tmp_path / "data")), "half")
    record = tiny.read_record().model_copy(update={"name": "half"})
    folder.write_record(record.with_status("error", "a check is red"))
    with pytest.raises(Unavailable, match="half is error, and only a complete dataset is exported"):
        export_tree(folder, open_store(str(tmp_path / "tree")))


# Read by others


@pytest.fixture(scope="module")
def served(exported):
    """The address of the tree on a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("Access-Control-Allow-Origin", "*")
            super().end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=exported.root)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_address_of_a_state_answers(exported, served):
    """The groups that the states show are where the tree is served."""
    for key, content in exported.documents.items():
        if key.endswith("neuroglancer_config.json"):
            urls = list(source_urls(with_base(content, served)))
            assert len(urls) == (2 if BASE in key else 1)
            for url in urls:
                for name in (".zattrs", ".zgroup", "0/.zarray", "2/.zarray", "2/0/0/0"):
                    assert urllib.request.urlopen(f"{url}/{name}", timeout=10).status == 200


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian package chromium)")
def test_the_browser_shows_the_state(exported, served):
    """Neuroglancer opens it: the tomogram begins at 0 and ends at its shape, the labels lie where they are in it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    state = with_base(exported.document(f"{BASE}/NeuroglancerPrecompute/.*"), served)
    with viewer_of(exported.dataset) as port, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--ignore-gpu-blocklist"])
        page = browser.new_page(viewport={"width": 1100, "height": 1100})
        page.goto(neuroglancer_url(f"http://127.0.0.1:{port}/v/{NAME}/", state))
        page.wait_for_function("window.viewer && viewer.isReady()", timeout=60_000)
        space = page.evaluate(
            "(({names, scales, bounds}) => ({names, scales: [...scales], lower: [...bounds.lowerBounds],"
            " upper: [...bounds.upperBounds]}))(viewer.coordinateSpace.value)"
        )
        boxes = [panel.bounding_box() for panel in page.query_selector_all(".neuroglancer-rendered-data-panel")]
        pixels = picture_of(page, "RGB")
        browser.close()
    assert (space["names"], space["lower"], space["upper"]) == (["x", "y", "z"], [0, 0, 0], list(SHAPE[::-1]))
    assert space["scales"] == pytest.approx([size * 1e-9 for size in reversed(SIZE_NM)])
    # of the plane in the middle, z = 25, labels are neither; the panel at the right has z to the left and y down
    yz = max(boxes, key=lambda box: (round(box["y"] / 100), box["x"]))
    per_pixel = state["crossSectionScale"] * min(SIZE_NM)
    middle = [yz["y"] + yz["height"] / 2, yz["x"] + yz["width"] / 2]

    def is_coloured(z: float, y: float) -> bool:
        down, left = (
            (at - n / 2) * size / per_pixel for at, n, size in zip((y, z), (37, 50), SIZE_NM[1::-1], strict=True)
        )
        row, column = round(middle[0] + down), round(middle[1] - left)
        return bool(np.ptp(pixels[row - 1 : row + 2, column - 1 : column + 2], axis=2).max() > 40)

    for z, y, inside in [(15, 17, True), (10.5, 17, True), (19.5, 17, True), (9, 17, False), (21, 17, False)]:
        assert is_coloured(z, y) == inside


def test_the_official_client_reads_it(exported, tmp_path, monkeypatch):
    """The portal's own client, by the sample's GraphQL and bucket: all is found, and it downloads what was written."""
    portal = pytest.importorskip("cryoet_data_portal", reason="the portal's client is an extra for tests")
    from em_assets.sample.server import OriginServer

    origin = tmp_path / "origin"
    shutil.copytree(exported.root, origin / "our-bucket")
    (origin / "our-bucket/.bucket").touch()
    (tmp_path / "got").mkdir()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with OriginServer(origin) as server:
        monkeypatch.setenv("BOTO_ENDPOINT_URL", server.url)
        client = portal.Client(f"{server.url}/graphql")
        dataset = portal.Dataset.get_by_id(client, NUMBER)
        assert dataset.title == exported.dataset.read_record().title
        [tomogram] = portal.Tomogram.find(client, [portal.Tomogram.run.name == NAME])
        assert (tomogram.size_x, tomogram.size_y, tomogram.size_z) == SHAPE[::-1]
        assert tomogram.reconstruction_method == "Unknown"
        [annotation] = portal.Annotation.find(client, [portal.Annotation.run.name == NAME])
        assert annotation.object_name == NUC
        [shape] = annotation.annotation_shapes
        assert {file.format for file in shape.annotation_files} == {"mrc", "zarr"}
        tomogram.download_mrcfile(str(tmp_path / "got"))
        tomogram.download_omezarr(str(tmp_path / "got"))
        annotation.download(str(tmp_path / "got"), format="zarr")
    tomograms, got = exported.root / f"{BASE}/Tomograms/100", files_below(tmp_path / "got")
    mask = next(exported.root.glob(f"{BASE}/Annotations/*/*.zarr"))
    wanted = {f"{NAME}.mrc": (tomograms / f"{NAME}.mrc").read_bytes()}
    for group in (tomograms / f"{NAME}.zarr", mask):
        wanted |= {f"{group.name}/{key}": data for key, data in files_below(group).items()}
    assert {key: data for key, data in got.items() if not key.endswith(".json")} == wanted


# From outside


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, exported):
    """Runs `em-assets export` in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EM_ASSETS_ROOT", exported.dataset.store.root)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["em-assets", "export", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return command


def test_the_command(run, tmp_path, exported):
    """Writes the tree, and says what it is, what was not known and what to be careful about."""
    code, out, _ = run(NAME, "--format", "cryoet-portal", "--to", "tree")
    assert code == 0
    assert files_below(tmp_path / "tree") == files_below(exported.root)
    first, *lines = out.splitlines()
    assert first.startswith(f"{tmp_path}/tree/{NUMBER} is written: {len(KEYS)} files and groups, ")
    assert f"dataset {NUMBER}, deposition {NUMBER}, runs {NAME}, {NAME}.{TRAINING}" in first
    assert f"  missing  {GAP.voxels} voxels that the publisher does not have are 0" in lines
    assert "  unknown  reconstruction_method of tomogram is Unknown" in lines
    assert any(line.startswith("  careful  ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param([NAME, "--format", "cryoet-portal"], "needs --to", id="no place"),
        pytest.param([NAME, "--format", "cryoet-portal", "--to", "t", "--level", "1"], "has no --level", id="level"),
        pytest.param([NAME, "--format", "npy", "--base-url", "http://h"], "has no --base-url", id="base"),
        pytest.param([NAME, "--format", "npy", "--verify"], "has no --verify", id="verify"),
        pytest.param([NAME, NAME, "--format", "npy"], "give one NAME", id="two volumes in one file"),
        pytest.param(
            [f"{NAME}/{NUC}", "--format", "cryoet-portal", "--to", "t"], "whole datasets; give em", id="a part"
        ),
        pytest.param([NAME, "x", "--format", "cryoet-portal", "--to", "t", "--dataset-id", "1"], "one NAME", id="id"),
    ],
)
def test_options_that_make_no_sense_are_refused(run, tmp_path, arguments, says):
    """A wrong command line, exit code 2, and nothing is written."""
    code, _, err = run(*arguments)
    assert code == 2 and says in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


def test_the_asset(exported, tmp_path):
    """On demand, downstream of the dataset, in the store's own `portal/`; its metadata say where and show a picture."""
    spec = write_spec(tmp_path / "specs", "http://127.0.0.1:1", name=NAME)
    settings = quick_settings(tmp_path / "data")
    folder = store_dataset(settings.root, voxels_of("uint8", (5, 6, 7)), name=NAME)
    assets, _ = build_dataset_assets(spec, Platform(settings, {NAME: spec}))
    [portal] = [asset for asset in assets if asset.key == dg.AssetKey(f"{NAME}_portal")]
    [one] = portal.specs
    assert [dep.asset_key for dep in one.deps] == [dg.AssetKey(NAME)]
    assert one.automation_condition is None
    resources = {"storage": Storage(root=settings.root)}
    first, second = (dg.materialize([portal], resources=resources, raise_on_error=True) for _ in range(2))
    facts, again = (result.asset_materializations_for_node(f"{NAME}_portal")[0].metadata for result in (first, second))
    assert (Path(settings.root) / "portal" / str(NUMBER) / "dataset_metadata.json").is_file()
    assert facts["dagster/uri"].value == str(Path(settings.root) / "portal" / str(NUMBER))
    assert "data:image/png;base64," in facts["picture"].value
    assert (facts["written"].value, again["written"].value) == (facts["files_and_groups"].value, 0)
    assert any("reconstruction_method" in key for key in facts["not stated by anybody"].value)
    assert (
        export_tree(folder, open_store(str(tmp_path / "tree")), spec=spec).sha256
        == dict(first.asset_materializations_for_node(f"{NAME}_portal")[0].tags)["dagster/data_version"]
    )


DOCUMENT = ROOT / "CRYOET_PORTAL.md"


def test_every_line_of_the_table_names_a_test_that_exists():
    """What the documentation promises is tested, and by what is said."""
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) >= 12
    for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", "\n".join(rows)):
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {name}"
    assert all(re.search(r"`test_\w+\.py::test_\w+`", row) for row in rows)
