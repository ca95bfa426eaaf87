"""A CryoET Data Portal that changes under a dataset, or says of one thing what cannot be: the rest goes on."""

import json
import shutil

import numpy as np
import pytest

from em_assets.adding.commands import _each_its_own_file, _write_each
from em_assets.adding.cryoet import Choice, draft_cryoet, portal_client, wanted_runs
from em_assets.catalog.build import build_catalog
from em_assets.datasets.portal import PortalTomogram
from em_assets.doctor.live import ask_publishers
from em_assets.errors import Mismatch
from em_assets.pipeline import describe_dataset, fetch_dataset_partitions
from em_assets.progress import open_reporter
from em_assets.sources.claims import claims_of
from em_assets.sources.cryoet import REPLIES, first_replies, joined_replies, moved
from em_assets.store import open_store
from portal_sample import RUN, SPACING, TOMOGRAM, ServedPortal, write_once
from published import stored_level

ELSEWHERE = f"{SPACING}/Tomograms/107"
RIBOSOME = f"{SPACING}/Annotations/100/cytosolic_ribosome-1.0"
SIDE_FILES = {
    "frames.mdoc": "mdoc",
    "alignment.xf": "xf",
    "alignment.tlt": "tilt_angles",
    "tiltseries.rawtlt": "tilt_angles",
}


@pytest.fixture
def portal(tmp_path_factory, tmp_path):
    with ServedPortal(write_once(tmp_path_factory.getbasetemp()), tmp_path) as served:
        yield served


def second_tomogram(portal):
    """One that fits the same choice."""
    metadata = (portal.tree / TOMOGRAM / "tomogram_metadata.json").read_bytes()
    portal.replace(f"{SPACING}/Tomograms/101/tomogram_metadata.json", metadata)


def fetch_some(portal, spec, count=1):
    """As a run that is killed leaves it."""
    keys = ["z000_y000_x000", "z000_y000_x001"][:count]
    reporter = open_reporter(portal.lines.append, label=spec.name)
    store = open_store(portal.settings.root)
    return fetch_dataset_partitions(spec, portal.settings, store, keys, reporter=reporter, log=portal.lines.append)


# It changes


def test_a_complete_dataset_stays_complete_when_a_second_tomogram_fits(portal):
    """What it lacks of documents is noted; only fetching voxels asks for a choice."""
    spec = portal.spec()
    portal.fail("/graphql")
    first, _ = portal.materialize(spec)
    portal.heal()
    second_tomogram(portal)
    again, result = portal.materialize(spec)
    assert (again.status, again.sha256, result.changed) == ("complete", first.sha256, False)
    assert "2 tomograms fit" in again.additional_metadata["documents_missing"][REPLIES]
    described = describe_dataset(spec, portal.settings, open_store(portal.settings.root), fetch=True, refresh=True)
    assert "2 tomograms fit" in described.missing[REPLIES]


def test_what_was_begun_elsewhere_goes_on_where_it_lies_now(portal):
    """A key that changed after the first partition: the volume is that of one that was never interrupted."""
    spec = portal.spec()
    fetch_some(portal, spec)
    portal.move(TOMOGRAM, ELSEWHERE)
    record, result = portal.materialize(spec)
    assert (record.status, len(result.kept), portal.red(spec)) == ("complete", 1, [])
    import zarr

    whole = np.asarray(zarr.open_array(str(portal.tree / ELSEWHERE / "TS_026.zarr/2"), mode="r"))
    np.testing.assert_array_equal(stored_level(portal.folder(spec)), whole)


def test_voxels_of_two_tomograms_are_not_mixed(portal):
    """What fits the choice now has other voxels than what is stored: the run stops, and says what to do."""
    spec = portal.spec()
    fetch_some(portal, spec)
    portal.move(TOMOGRAM, ELSEWHERE)
    chunks = portal.tree / ELSEWHERE / "TS_026.zarr/2/0/0"
    portal.replace(f"{ELSEWHERE}/TS_026.zarr/2/0/0/0", (chunks / "1").read_bytes())
    with pytest.raises(Mismatch, match=rf"another tomogram fits source\.portal now.*em-assets rm {spec.name}"):
        portal.materialize(spec)


def test_objects_of_two_places_are_not_taken_for_one_copy(portal):
    """What the second place lacks would read as the fill value."""
    spec = portal.spec(portal.document() | {"keep": "both"})
    fetch_some(portal, spec)
    portal.move(TOMOGRAM, ELSEWHERE)
    with pytest.raises(Mismatch, match=rf"two places make no copy; .*em-assets rm {spec.name}"):
        portal.materialize(spec)


@pytest.mark.slow  # two whole runs
def test_objects_that_are_kept_are_read_where_they_were_kept(portal):
    """Tomogram and masks move apart after all objects are here: the volume is made of them, nothing is fetched."""
    spec = portal.spec(portal.document() | {"keep": "both"})
    record, _ = portal.materialize(spec)
    portal.move(f"{SPACING}/Annotations/120", f"{SPACING}/elsewhere/Annotations/120")
    (portal.file(spec, "volumes/vesicle.ome.zarr/0/c/0/0/0")).unlink()
    again, result = portal.materialize(spec)
    assert (again.status, again.sha256, result.fetched) == ("complete", record.sha256, [])


@pytest.mark.parametrize(
    ("was", "now"),
    [
        pytest.param("a b/T/100/v.zarr", "a b/T/107/v.zarr", id="keys"),
        pytest.param("https://h/a%20b/T/100/v.mrc", "https://h/a%20b/T/107/v.mrc", id="web addresses"),
    ],
)
def test_a_document_beside_a_tomogram_moves_with_it(was, now):
    """Also where the name of its folder is written otherwise in a web address."""
    url = "https://h/x/a%20b/T/100/tomogram_metadata.json"
    assert moved(url, was, now) == url.replace("/100/", "/107/")
    assert moved("https://h/elsewhere.json", was, now) == "https://h/elsewhere.json"


# It says what cannot be


def test_add_goes_on_without_a_tilt_series_that_cannot_be_believed(portal):
    """The tomogram's spec is there; which part is not is said."""
    portal.edit(f"{RUN}/TiltSeries/100/tiltseries_metadata.json", total_flux=None)
    client = portal_client(portal.api, portal.settings)
    choice = Choice(endpoint=portal.http.url)
    draft = draft_cryoet(10000, "TS_026", choice, client, portal.settings)
    assert any(line.startswith("tilt series left out: ") and "totalFlux" in line for line in draft.found)
    assert {document["path"] for document in draft.document["documents"]} >= {"alignment.xf", "frames.mdoc"}


def test_a_run_that_cannot_be_believed_does_not_stop_the_others(portal):
    """It is named among those that failed."""
    portal.replace("10000/TS_0\\8/run_metadata.json", json.dumps({"run_name": "TS_0\\8"}).encode())
    refused = []
    client = portal_client(portal.api, portal.settings, refused.append)
    assert wanted_runs(client, "10000", "TS_*") == [(10000, "TS_026"), (10000, "TS_027")]
    assert len(refused) == 1 and "backslash" in str(refused[0])
    with pytest.raises(Mismatch, match=r"1 of 2 specs were not written \(a run\), the others were; first: .*backslash"):
        _write_each({"10000/TS_026": lambda: None}, lambda draft: None, {"a run": refused[0]})


def test_runs_of_similar_names_do_not_replace_each_other(portal, monkeypatch, tmp_path):
    """`--force` is about files of before: of TS-026 and TS_026 there are two specs after one command, and the next."""
    monkeypatch.setenv("EM_ASSETS_DATASETS", str(tmp_path / "out"))
    client, choice = portal_client(portal.api, portal.settings), Choice(endpoint=portal.http.url)
    draft = draft_cryoet(10000, "TS_026", choice, client, portal.settings)
    for _ in range(2):
        write = _each_its_own_file(None, tmp_path / "out", force=True)
        write(draft)
    write(draft)
    assert sorted(file.stem for file in (tmp_path / "out").iterdir()) == [
        "cryoet_10000_ts_026",
        "cryoet_10000_ts_026_2",
    ]


def test_every_shape_of_one_annotation_has_a_name_of_its_own(portal):
    """Three of one object are three sets of points."""
    files = []
    for shape in ("Point", "OrientedPoint", "InstanceSegmentation"):
        key = f"{RIBOSOME}_{shape.lower()}.ndjson"
        portal.replace(key, (portal.tree / f"{RIBOSOME}_point.ndjson").read_bytes())
        files.append({"format": "ndjson", "path": key, "shape": shape, "is_visualization_default": True})
    portal.edit(f"{RIBOSOME}.json", files=files)
    spec = portal.added("zarr", "ribosome")
    assert list(spec.points) == ["cytosolic_ribosome", "cytosolic_ribosome_100", "cytosolic_ribosome_100_2"]
    assert len({points.url for points in spec.points.values()}) == 3


def test_the_count_of_another_persons_annotation_is_no_conflict(portal):
    """Two annotated the same object; what the portal says of one is not held against the other's points."""
    import duckdb

    other = f"{SPACING}/Annotations/104"
    metadata = json.loads((portal.tree / f"{RIBOSOME}.json").read_text())
    file = metadata["files"][0] | {"path": f"{other}/cytosolic_ribosome-2.0_point.ndjson"}
    portal.replace(file["path"], (portal.tree / f"{RIBOSOME}_point.ndjson").read_bytes())
    metadata |= {"files": [file], "object_count": 9999, "annotation_ingest_id": "another"}
    portal.replace(f"{other}/cytosolic_ribosome-2.0.json", json.dumps(metadata).encode())
    document = portal.document()
    assert "annotation" not in document["points"]["cytosolic_ribosome"]
    store = open_store(portal.settings.root)
    for spec in (portal.added("zarr", "ribosome"), portal.spec(document)):
        describe_dataset(spec, portal.settings, store, fetch=True)
        build_catalog({spec.name: spec}, store, portal.settings)
        with duckdb.connect(f"{portal.settings.root}/metadata.duckdb", read_only=True) as database:
            rows = database.sql("select volume, value_b from conflicts where field = 'object_count'").fetchall()
        assert "points/cytosolic_ribosome" not in {volume for volume, _ in rows}


def test_more_replies_than_are_one_document_are_not_kept(monkeypatch):
    """Else what was kept could not be read again, and nothing of the dataset be described."""
    replies = [b'{"data": 1}', b'{"data": 2}', b'{"data": 3}']
    assert first_replies(replies) == replies
    monkeypatch.setattr("em_assets.sources.cryoet.MAX_JSON_BYTES", 40)
    kept = first_replies(replies)
    assert kept == replies[:2] and len(joined_replies(kept)) <= 40


def test_an_id_beyond_what_the_portal_has_is_refused():
    """Not asked for, and then taken for an API that does not answer."""
    fine = {"api": "https://example.org/graphql", "dataset": 1, "run": "a"}
    assert PortalTomogram.model_validate(fine | {"tomogram": 2**31 - 1}).tomogram == 2**31 - 1
    with pytest.raises(ValueError, match="less than 2147483648"):
        PortalTomogram.model_validate(fine | {"tomogram": 2**31})


# What is kept beside it


def test_files_of_the_tilt_series_are_kept_with_what_they_say(portal):
    """Angles, alignment and the microscope's notes, from addresses of the API and of the alignment's own metadata."""
    spec = portal.added("zarr")
    kinds = {document.path: document.kind for document in spec.documents}
    assert {path: kinds.get(path) for path in SIDE_FILES} == SIDE_FILES
    described = describe_dataset(spec, portal.settings, open_store(portal.settings.root), fetch=True)
    assert described.missing == {}


def test_a_table_of_a_ctf_program_is_read_in_the_format_that_its_kind_names():
    raw = b"# CTFFind\n1.000000 10000.0 9000.0 45.0 0.0 0.1 5.0\n"
    claims = {claim.key: claim.value for claim in claims_of("documents/ctf.txt", "ctf_ctffind", raw, "https://x")}
    assert claims and all(key.startswith("/section/0/") for key in claims)


# The MRC form


def test_masks_of_another_size_than_the_mrc_file_are_said_to_be(portal):
    """The file has half the slices: nobody states which, so the spec says that it is not known."""
    spec = portal.added("mrc", "*")
    assert "100 x 92 x 96 voxels, the tomogram's own file has 50 x 92 x 96" in spec.notes["volumes.vesicle.shape"]
    assert "nobody states where one lies in the other" in spec.notes["points.location"]
    assert "volumes.vesicle.shape" not in portal.added("zarr", "*").notes


def test_a_file_of_halves_does_not_contradict_its_spec(portal):
    """It is stored as float32: that is its type here, and what the file has is said beside it."""
    import duckdb

    spec, store = portal.added("mrc", run="TS_027"), open_store(portal.settings.root)
    portal.materialize(spec)
    describe_dataset(spec, portal.settings, store, fetch=False)
    build_catalog({spec.name: spec}, store, portal.settings)
    with duckdb.connect(f"{portal.settings.root}/metadata.duckdb", read_only=True) as database:
        assert "dtype" not in {field for (field,) in database.sql("select field from conflicts").fetchall()}
        rows = database.sql("select value, stated from statements where field = 'dtype' and document like 'original/%'")
        assert rows.fetchall() == [("float32", "MODE 12")]


def test_the_doctor_finds_halves_and_a_wrong_voxel_size_as_the_spec_expects_them(portal):
    """A file of half floats is stored as float32; a header that is known to be wrong is no failure."""
    import struct

    key = "10000/TS_027/Reconstructions/VoxelSpacing13.480/Tomograms/100/TS_027.mrc"
    raw = bytearray((portal.tree / key).read_bytes())
    struct.pack_into("<3f", raw, 40, *map(float, struct.unpack_from("<3i", raw, 28)))
    portal.replace(key, bytes(raw))
    spec = portal.added("mrc", run="TS_027")
    assert (spec.dtype, spec.expected.published_voxel_size_nm) == ("float32", (0.1,) * 3)
    report = ask_publishers([spec], portal.settings, lambda line: None)
    assert [line for line in report.sections[0].lines if line.verdict == "FAIL"] == []


def test_a_dataset_without_a_mask_that_is_gone_is_described(portal):
    """All that there is; nothing of the mask, whose file is not there."""
    spec = portal.added("mrc", "vesicle")
    portal.own_tree()
    shutil.rmtree(portal.tree / SPACING / "Annotations/120")
    record, _ = portal.materialize(spec)
    assert record.status == "complete" and "vesicle" in record.status_reason
    described = describe_dataset(spec, portal.settings, open_store(portal.settings.root), fetch=True)
    assert list(described.missing) == ["documents/annotation_120.json"]
