"""Tomograms of the CryoET Data Portal as datasets: found by its API, read in either form, with what is gone named."""

import json
import struct

import numpy as np
import pytest

from em_assets import blocks as em
from em_assets import cli
from em_assets.adding.cryoet import Choice, draft_cryoet, portal_client, wanted_runs
from em_assets.blocks.coverage import read_missing
from em_assets.catalog.build import build_catalog
from em_assets.datasets.loading import load_spec
from em_assets.datasets.spec import DatasetSpec
from em_assets.doctor.live import ask_publishers
from em_assets.errors import Malformed, Mismatch
from em_assets.pipeline import describe_dataset, plan_dataset
from em_assets.settings import PACKAGED_DATASETS
from em_assets.sources.claims import claims_of
from em_assets.sources.cryoet import REPLIES, current_spec
from em_assets.store import open_store
from em_assets.volume import Box
from faulty import Fault
from portal_sample import NAME, RUN, SPACING, TOMOGRAM, ServedPortal, write_once
from published import stored_level

VESICLE = f"{SPACING}/Annotations/120/"


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    return write_once(tmp_path_factory.getbasetemp())


@pytest.fixture
def portal(written, tmp_path):
    with ServedPortal(written, tmp_path) as served:
        yield served


@pytest.fixture(scope="module")
def complete(written, tmp_path_factory):
    """(served, spec, record) of the dataset, whole; nobody changes it."""
    with ServedPortal(written, tmp_path_factory.mktemp("complete")) as served:
        spec = served.spec()
        record, _ = served.materialize(spec)
        yield served, spec, record


def published(served, key, level=2):
    """A level of a published OME-Zarr, read by zarr-python, which takes what is not there for the fill value."""
    import zarr

    return np.asarray(zarr.open_array(str(served.tree / key / str(level)), mode="r"))


# The dataset


def test_the_packaged_spec_is_the_level_of_25_percent():
    """What is pinned is what independent users of the bucket saw; chunks that are not there are the fill value."""
    spec = load_spec(PACKAGED_DATASETS / f"{NAME}.yaml")
    assert (spec.shape, spec.dtype, spec.voxel_size_nm) == ((250, 232, 240), "float32", (5.392,) * 3)
    assert (spec.source.level, spec.missing_policy, spec.license) == (2, "fill", "CC0-1.0")
    assert {document.kind for document in spec.documents} >= {"mrc_header", "mdoc", "tilt_angles", "xf"}


def test_the_zarr_form_arrives_with_its_masks(complete):
    """The stored voxels are those that zarr-python reads, of the tomogram and of each mask; all checks are green."""
    served, spec, record = complete
    folder = served.folder(spec)
    assert (record.status, record.status_reason, sorted(record.volumes)) == ("complete", None, ["cytoplasm", "vesicle"])
    np.testing.assert_array_equal(stored_level(folder), published(served, f"{TOMOGRAM}/TS_026.zarr"))
    for number, name in ((117, "cytoplasm"), (120, "vesicle")):
        mask = published(served, f"{SPACING}/Annotations/{number}/{name}-1.0_segmentationmask.zarr")
        np.testing.assert_array_equal(stored_level(folder, sub=name), mask)
    assert served.red(spec) == []
    assert record.additional_metadata["publisher"]["address"] == "the API's"


def test_a_chunk_that_is_not_there_is_filled_and_recorded(complete):
    """It counts as real, as the portal means it; coverage and record say where and how much of that there is."""
    import pyarrow.parquet as pq

    served, spec, record = complete
    folder = served.folder(spec)
    rows = pq.read_table(folder.uri(folder.coverage)).to_pylist()
    filled = [tuple(part.values()) for row in rows for part in row["filled"]]
    assert filled and all(row["missing"] == [] and row["present_fraction"] == 1 for row in rows)
    voxels = stored_level(folder)
    for z0, y0, x0, z1, y1, x1 in filled:
        assert not voxels[z0:z1, y0:y1, x0:x1].any()
    noted = record.additional_metadata["filled"]["volume"]
    assert noted["voxels"] == sum(Box(part[:3], part[3:]).voxels for part in filled)
    assert (noted["source_chunks"], noted["fraction"]) == (1, round(noted["voxels"] / voxels.size, 6))
    assert read_missing(folder) == ()


def test_the_other_forms_header_makes_conflicts(complete):
    """The MRC file has whole numbers and half the slices: both stand beside the Zarr's own, which are taken."""
    import duckdb

    served, spec, _ = complete
    store = open_store(served.settings.root)
    described = describe_dataset(spec, served.settings, store, fetch=True)
    assert described.missing == {}
    build_catalog({spec.name: spec}, store, served.settings)
    with duckdb.connect(f"{served.settings.root}/metadata.duckdb", read_only=True) as database:
        rows = database.sql("select field, value_a, value_b, document_b, chosen from conflicts").fetchall()
        sizes = database.sql(
            "select value, stated from statements where field = 'voxel_size_z_nm' and document like '%.header'"
        ).fetchall()
        kinds = database.sql("select distinct extractor from claims").fetchall()
    header = "documents/TS_026.mrc.header"
    assert rows == [
        ("dtype", "float32", "int16", header, "float32"),
        ("source_size_z", "25", "13", header, "25"),
    ]
    assert len(sizes) == 1 and float(sizes[0][0]) == pytest.approx(5.3923184)
    assert {kind for (kind,) in kinds} >= {"cryoet_api", "cryoet_metadata", "mdoc", "tilt_angles", "xf", "points"}


def test_what_is_complete_asks_for_nothing(complete):
    """Neither the API nor the bucket hears of a second run."""
    served, spec, _ = complete
    before = served.http.requests
    record, result = served.materialize(spec)
    assert (record.status, result.changed, served.http.requests) == ("complete", False, before)


def test_blocks_are_read_before_anything_is_downloaded(portal):
    """From where the API has it, masks too, with the voxels that the stored volume would have."""
    spec = portal.spec()
    volume = em.open(spec.name, settings=portal.settings)
    block = volume.read((3, 2, 1), shape=(20, 18, 17))
    np.testing.assert_array_equal(block.data, published(portal, f"{TOMOGRAM}/TS_026.zarr")[3:23, 2:20, 1:18])
    assert volume.box_nm.start == (0, 0, 0)
    assert any(path.endswith("/graphql") for _, path, _ in portal.http.log)


# Its address


def test_a_tomogram_is_found_where_the_portal_has_it_now(portal):
    """Keys changed: the same dataset, its documents under the names that the spec gives, receipts with the truth."""
    spec = portal.spec()
    portal.move(TOMOGRAM, f"{SPACING}/Tomograms/107")
    portal.move(VESICLE.rstrip("/"), f"{SPACING}/elsewhere/Annotations/120")
    current = current_spec(spec, portal.settings)
    assert current.spec.identity() == spec.identity()
    assert current.spec.source.group == f"{portal.prefix}/{SPACING}/Tomograms/107/TS_026.zarr"
    moved = next(item for item in current.spec.documents if item.path == "tomogram_metadata.json")
    assert "/Tomograms/107/" in moved.url
    record, _ = portal.materialize(spec)
    assert (record.status, portal.red(spec)) == ("complete", [])
    folder = portal.folder(spec)
    kept = [path for path in folder.documents() if path.endswith("TS_026.zarr__2__.zarray")]
    assert len(kept) == 1 and "Tomograms__100" in kept[0]
    assert "/Tomograms/107/" in folder.read_document_receipt(kept[0]).url


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(status=500), id="it fails"),
        pytest.param(Fault(status=200, body=b'{"data": null, "errors": [{"message": "boom"}]}'), id="errors with 200"),
        pytest.param(Fault(status=200, body=b"<html>maintenance</html>"), id="a web page"),
        pytest.param(Fault(status=404), id="gone"),
    ],
)
def test_without_an_answer_the_specs_own_address_serves(portal, fault):
    """That it was so, and why, is on record."""
    spec = portal.spec()
    portal.fail("/graphql", fault)
    current = current_spec(spec, portal.settings.model_copy(update={"retry_seconds": 0.2}))
    assert current.spec == spec
    assert current.met["address"].startswith("the spec's; the API did not answer: ")
    assert list(current.unanswered) == [REPLIES] and current.documents == {}


def test_b32_the_tomogram_arrives_though_the_api_answers_with_errors(portal):
    """A reply of status 200 with `errors` stops nothing; the record and the missing documents quote it."""
    spec = portal.spec()
    portal.fail("/graphql", Fault(status=200, body=b'{"data": {"items": []}, "errors": [{"message": "boom"}]}'))
    record, _ = portal.materialize(spec)
    assert record.status == "complete"
    assert "boom" in record.additional_metadata["publisher"]["address"]
    assert "boom" in record.additional_metadata["documents_missing"][REPLIES]


def test_several_tomograms_that_fit_are_named(portal):
    """One is never picked for the person; a choice in the spec decides, and is another dataset."""
    portal.replace(
        f"{SPACING}/Tomograms/101/tomogram_metadata.json",
        (portal.tree / TOMOGRAM / "tomogram_metadata.json").read_bytes(),
    )
    portal.edit(f"{SPACING}/Tomograms/101/tomogram_metadata.json", processing="denoised")
    document = portal.document()
    one = portal.spec(document)
    assert current_spec(one, portal.settings).met["address"] == "the API's"
    del document["source"]["portal"]["processing"]
    both = portal.spec(document)
    with pytest.raises(Mismatch, match=r"2 tomograms fit .*raw, WBP.*denoised, WBP.*source\.portal"):
        current_spec(both, portal.settings)
    assert one.identity() != both.identity()
    document["source"]["portal"]["run"] = "TS_404"
    with pytest.raises(Mismatch, match="has no tomogram of dataset 10000, run TS_404"):
        current_spec(portal.spec(document), portal.settings)


def test_the_doctor_says_where_it_lies_now(portal):
    """A key that changed is a line of the report, and everything is asked for where it is."""
    spec = portal.spec()
    portal.move(TOMOGRAM, f"{SPACING}/Tomograms/107")
    report = ask_publishers([spec], portal.settings, lambda line: None)
    lines = {line.question: line for line in report.sections[0].lines}
    assert lines["address of 10000/TS_026"].verdict == "known"
    assert "/Tomograms/107/" in lines["address of 10000/TS_026"].found
    assert [line for line in lines.values() if line.verdict in ("FAIL", "warn")] == []


# Identity


SPEC = (PACKAGED_DATASETS / f"{NAME}.yaml").read_text()
SAME = {
    "the key": ("group: 10000/TS_026/Reconstructions/VoxelSpacing13.480/Tom", "group: 20000/x/Tom"),
    "the bucket": ("url: s3://cryoet-data-portal-public", "url: s3://another-bucket"),
    "the API": ("https://graphql.cryoetdataportal.czscience.com/graphql", "https://example.org/graphql"),
}
OTHER = {
    "the run": ("run: TS_026", "run: TS_027"),
    "the dataset": ("dataset: 10000", "dataset: 10001"),
    "the processing": ("processing: raw", "processing: denoised"),
    "the level": ("  level: 2\n  portal", "  level: 1\n  portal"),
}


def read(tmp_path, text) -> DatasetSpec:
    (tmp_path / f"{NAME}.yaml").write_text(text)
    return load_spec(tmp_path / f"{NAME}.yaml")


@pytest.mark.parametrize(
    ("change", "is_same"),
    [pytest.param(c, same, id=n) for table, same in ((SAME, True), (OTHER, False)) for n, c in table.items()],
)
def test_what_is_chosen_decides_the_identity_and_not_where_it_lies(tmp_path, change, is_same):
    """The portal may move a tomogram; another choice is another volume."""
    before, after = change
    assert before in SPEC
    one, other = read(tmp_path, SPEC), read(tmp_path, SPEC.replace(before, after))
    assert (one.identity() == other.identity()) is is_same


def test_a_mask_is_known_by_its_annotation(tmp_path):
    """Another key of the same annotation is the same mask; another annotation is another one."""
    moved = read(tmp_path, SPEC.replace("Annotations/117/cytoplasm", "Annotations/99/cytoplasm"))
    other = read(tmp_path, SPEC.replace("annotation: 117", "annotation: 118"))
    one = read(tmp_path, SPEC)
    identities = [spec.layouts()["cytoplasm"].identity() for spec in (one, moved, other)]
    assert identities[0] == identities[1] != identities[2]


REFUSED = {
    "no portal": ("  portal:\n    api", "  notaportal:\n    api", "notaportal"),
    "a run with a slash": ("run: TS_026", "run: TS/026", "no / in it"),
    "an unknown processing": ("processing: raw", "processing: rare", "processing"),
}


@pytest.mark.parametrize(("before", "after", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_portal_is_refused(tmp_path, before, after, message):
    with pytest.raises(Malformed, match=message):
        read(tmp_path, SPEC.replace(before, after))


# What is gone


@pytest.mark.parametrize("form", ["zarr", "mrc"])
def test_a_mask_that_is_gone_does_not_stop_the_tomogram(portal, form):
    """Its key is in the metadata and not in the bucket: it is named, all else is whole; it comes when it is there."""
    spec = portal.added(form, "*")
    portal.fail(f"{VESICLE}.*segmentationmask")
    record, _ = portal.materialize(spec)
    assert (record.status, list(record.volumes), portal.red(spec)) == ("complete", ["cytoplasm"], [])
    why = record.additional_metadata["volumes_missing"]["vesicle"]
    assert record.status_reason == f"complete without vesicle: {why}" and "/Annotations/120/" in why
    sha256 = record.sha256
    again, result = portal.materialize(spec)
    assert (again.sha256, result.changed, again.status_reason) == (sha256, False, record.status_reason)
    assert plan_dataset(spec, portal.settings, open_store(portal.settings.root)).is_complete
    portal.heal()
    whole, _ = portal.materialize(spec)
    assert (whole.status, whole.status_reason, sorted(whole.volumes)) == ("complete", None, ["cytoplasm", "vesicle"])
    assert "volumes_missing" not in whole.additional_metadata and portal.red(spec) == []


def test_a_tomogram_that_is_gone_is_an_error(portal):
    """Without it there is no dataset."""
    spec = portal.spec()
    portal.fail(f"{TOMOGRAM}/TS_026.zarr")
    with pytest.raises(Mismatch, match=r"Tomograms/100/TS_026\.zarr"):
        portal.materialize(spec)
    assert portal.folder(spec).read_record().status == "error"


# The MRC form


def test_the_mrc_form_is_the_files_own(portal):
    """Shape, dtype and voxel size are its header's; what the OME-Zarr says otherwise are conflicts."""
    import duckdb
    import mrcfile

    spec = portal.added("mrc")
    assert (spec.shape, spec.dtype) == ((50, 92, 96), "int16")
    assert spec.voxel_size_nm == pytest.approx((1.3480796,) * 3)
    record, _ = portal.materialize(spec)
    assert record.status == "complete" and portal.red(spec) == []
    with mrcfile.open(portal.tree / TOMOGRAM / "TS_026.mrc") as file:
        np.testing.assert_array_equal(stored_level(portal.folder(spec)), file.data)
    store = open_store(portal.settings.root)
    describe_dataset(spec, portal.settings, store, fetch=True)
    build_catalog({spec.name: spec}, store, portal.settings)
    with duckdb.connect(f"{portal.settings.root}/metadata.duckdb", read_only=True) as database:
        rows = database.sql("select field, chosen, value_b from conflicts order by all").fetchall()
    assert ("dtype", "int16", "float32") in rows and ("source_size_z", "50", "100") in rows


def test_an_mrc_file_is_found_where_it_lies_now(portal):
    """Its partition and its place in the store keep their names."""
    spec = portal.added("mrc")
    portal.move(TOMOGRAM, f"{SPACING}/Tomograms/107")
    record, result = portal.materialize(spec)
    assert (record.status, [item.key for item in result.fetched]) == ("complete", ["TS_026.mrc"])
    assert "/Tomograms/107/" in result.fetched[0].details["url"]


@pytest.mark.parametrize(
    ("angstrom", "used_nm", "said"),
    [
        pytest.param(0.0, 1.348, "as the publisher's API states it", id="zero"),
        pytest.param(float("nan"), 1.348, "as the publisher's API states it", id="not a number"),
        pytest.param(1.0, 1.348, "the file's header says 0.1 x 0.1 x 0.1 nm, which is not taken", id="unlike"),
        pytest.param(13.480796, 1.3480796, "as the file's header has it", id="nearly the same"),
    ],
)
def test_b18_a_voxel_size_is_reconciled_with_the_portals(portal, angstrom, used_nm, said):
    """Where the header says nothing or what cannot be, the portal's is used; both values stay on record."""
    file = portal.tree / TOMOGRAM / "TS_026.mrc"
    raw = bytearray(file.read_bytes())
    sides = struct.unpack_from("<3i", raw, 28)
    struct.pack_into("<3f", raw, 40, *(angstrom * side for side in sides))
    portal.replace(f"{TOMOGRAM}/TS_026.mrc", bytes(raw))
    spec = portal.added("mrc")
    assert spec.voxel_size_nm == pytest.approx((used_nm,) * 3, rel=1e-9)
    assert said in spec.notes["expected.voxel_size_nm"]
    if said.endswith("not taken"):
        assert spec.expected.published_voxel_size_nm == (0.1,) * 3
        assert [claim.key for claim in spec.claims] == ["voxel_size_nm"]


def test_the_header_of_a_remote_mrc_file_is_a_kilobyte(portal):
    """1024 bytes and the size that the server states become claims; nothing else of the file is asked for."""
    spec = portal.spec()
    describe_dataset(spec, portal.settings, open_store(portal.settings.root), fetch=True)
    asked = [wanted for _, path, wanted in portal.http.log if path.endswith("TS_026.mrc")]
    assert asked == ["bytes=0-1023"]
    raw = portal.folder(spec).read("documents/TS_026.mrc.header")
    claims = {claim.key: claim.value for claim in claims_of("documents/x", "mrc_header", raw, "https://x")}
    assert claims["/size_bytes"] == (portal.tree / TOMOGRAM / "TS_026.mrc").stat().st_size
    assert (claims["/nx"], claims["/ny"], claims["/nz"], claims["/mode"]) == (96, 92, 50, 1)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(lambda raw: raw[:1000], id="cut"),
        pytest.param(lambda raw: raw[:1024], id="no size"),
        pytest.param(lambda raw: raw[:1024] + b"bytes 0-1023/2000\n", id="another size"),
        pytest.param(lambda raw: b"\0" * 1024 + raw[1024:], id="no MRC file"),
    ],
)
def test_a_header_that_is_none_is_refused(written, raw):
    """What is not the beginning of an MRC file of that size states nothing."""
    folder, facts = written
    file = folder / facts["bucket"] / facts["prefix"] / TOMOGRAM / "TS_026.mrc"
    with file.open("rb") as stream:
        whole = stream.read(1024) + f"bytes 0-1023/{file.stat().st_size}\n".encode()
    assert claims_of("x", "mrc_header", whole, "https://x")
    with pytest.raises(Malformed, match="x"):
        claims_of("x", "mrc_header", raw(whole), "https://x")


# `em-assets add cryoet`


def run_cli(monkeypatch, capsys, *words):
    """(exit code, stdout, stderr) of a command line."""
    monkeypatch.setattr("sys.argv", ["em-assets", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0, *capsys.readouterr()


def test_every_run_has_a_spec_of_its_own_and_a_failure_is_named(portal, monkeypatch, capsys):
    """`--runs` writes one each; the run that cannot be read is in the last line, the other's file is there."""
    monkeypatch.setenv("EM_ASSETS_DATASETS", str(portal.specs_folder))
    portal.fail("TS_027/.*zarr")
    words = ["add", "cryoet", "10000", "--runs", "TS_*", "--api", portal.api, "--server", portal.http.url]
    code, out, err = run_cli(monkeypatch, capsys, *words)
    assert code != 0 and "1 of 2 specs were not written (10000/TS_027)" in err
    assert "failed 10000/TS_027: " in out
    assert [file.name for file in portal.specs_folder.glob("*.yaml")] == ["cryoet_10000_ts_026.yaml"]
    spec = load_spec(portal.specs_folder / "cryoet_10000_ts_026.yaml")
    assert spec.portal.choice() == {
        "dataset": 10000,
        "run": "TS_026",
        "voxel_spacing_angstrom": 13.48,
        "processing": "raw",
    }
    assert current_spec(spec, portal.settings).spec == spec


def test_annotations_are_chosen_by_the_names_of_their_objects(portal):
    """A mask has the shape of its own header, points the voxels of the tomogram at full size."""
    spec = portal.added("zarr", "ribosome*")
    assert (list(spec.volumes), list(spec.points)) == ([], ["cytosolic_ribosome"])
    assert spec.points["cytosolic_ribosome"].voxel_size_nm == (1.348,) * 3
    assert spec.points["cytosolic_ribosome"].annotation == 100
    assert "annotation_100.json" in {document.path for document in spec.documents}
    with pytest.raises(Mismatch, match=r"no annotation of TS_026 fits 'actin'; it has .*vesicle"):
        portal.added("zarr", "actin")


WRONG_WISHES = {
    "a dataset alone": ("10000", None, "choose its runs with --runs 'TS_\\*', or give one; it has TS_026, TS_027"),
    "no such run": ("10000", "XX*", "no run fits; it has TS_026, TS_027"),
    "both": ("10000/TS_026", "TS_*", "give one of them"),
    "neither": ("TS_026", None, "looks like 10000/TS_026"),
}


@pytest.mark.parametrize(("target", "pattern", "message"), WRONG_WISHES.values(), ids=WRONG_WISHES)
def test_a_target_that_names_no_run_shows_what_there_is(portal, target, pattern, message):
    with pytest.raises(Mismatch, match=message):
        wanted_runs(portal_client(portal.api, portal.settings), target, pattern)


def test_add_asks_for_a_choice_where_several_tomograms_are(portal):
    """By what differs; the selection that is written tells the chosen one from the others."""
    key = f"{SPACING}/Tomograms/101/tomogram_metadata.json"
    portal.replace(key, (portal.tree / TOMOGRAM / "tomogram_metadata.json").read_bytes())
    portal.edit(key, reconstruction_method="SIRT")
    client = portal_client(portal.api, portal.settings)
    with pytest.raises(Mismatch, match=r"2 tomograms fit; choose one .*WBP.*SIRT"):
        draft_cryoet(10000, "TS_026", Choice("mrc", 0), client, portal.settings)
    ids = {one.reconstruction_method: one.id for one in client.tomograms(10000, "TS_026")}
    draft = draft_cryoet(10000, "TS_026", Choice("mrc", 0, tomogram=ids["WBP"]), client, portal.settings)
    assert draft.document["source"]["portal"]["reconstruction_method"] == "WBP"
    assert "tomogram" not in draft.document["source"]["portal"]


def test_a_whole_run_is_a_spec_for_each_of_its_tomograms(portal, monkeypatch, capsys):
    """With --every; each selection tells its tomogram from the other."""
    monkeypatch.setenv("EM_ASSETS_DATASETS", str(portal.specs_folder))
    key = f"{SPACING}/Tomograms/101/tomogram_metadata.json"
    portal.replace(key, (portal.tree / TOMOGRAM / "tomogram_metadata.json").read_bytes())
    portal.edit(key, reconstruction_method="SIRT")
    words = ["add", "cryoet", "10000/TS_026", "--every", "--form", "mrc", "--api", portal.api]
    code, _, err = run_cli(monkeypatch, capsys, *words, "--server", portal.http.url)
    assert code == 0, err
    tomograms = portal_client(portal.api, portal.settings).tomograms(10000, "TS_026")
    specs = [load_spec(portal.specs_folder / f"cryoet_10000_ts_026_{one.id}.yaml") for one in tomograms]
    assert [spec.portal.reconstruction_method for spec in specs] == [one.reconstruction_method for one in tomograms]
    assert len({spec.identity() for spec in specs}) == 2


def test_what_the_api_answered_is_kept(complete):
    """As it was received, one JSON list; every value of it is a claim."""
    served, spec, _ = complete
    raw = served.folder(spec).read(REPLIES)
    replies = json.loads(raw)
    assert replies[0]["data"]["items"][0]["run"]["name"] == RUN.partition("/")[2]
    claims = {claim.key: claim for claim in claims_of(REPLIES, "cryoet_api", raw, served.api)}
    spacing = claims["/0/data/items/0/voxelSpacing"]
    assert (spacing.value, spacing.unit) == (13.48, "angstrom")


def test_objects_are_kept_byte_for_byte_with_the_volume(portal):
    """`keep: both`: the published objects of tomogram and masks as they are, and the volume made of them."""
    spec = portal.spec(portal.document() | {"keep": "both"})
    record, _ = portal.materialize(spec)
    assert (record.status, portal.red(spec)) == ("complete", [])
    key = f"{TOMOGRAM}/TS_026.zarr/2/.zarray"
    assert portal.file(spec, f"original/{portal.prefix}/{key}").read_bytes() == (portal.tree / key).read_bytes()
    np.testing.assert_array_equal(stored_level(portal.folder(spec)), published(portal, f"{TOMOGRAM}/TS_026.zarr"))
