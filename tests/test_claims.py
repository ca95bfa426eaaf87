"""Claims as a table, and what is said of each: its unit, the pattern of its key, whether it is about a person."""

import io
import json
import os
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from em_assets.catalog.claims import (
    CLAIMS,
    CLAIMS_AT_ONCE,
    COLUMNS,
    Origin,
    claims_table,
    extractor_version,
    key_pattern,
    read_claims,
    write_claims,
)
from em_assets.datasets.source import Document
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed
from em_assets.records import DatasetFolder
from em_assets.settings import PACKAGED_DATASETS
from em_assets.sources.claims import (
    CONTAINER_EXTRACTORS,
    EXTRACTORS,
    claims_of,
    claims_of_spec,
    claims_of_tags,
    natural_order,
    spec_document,
    unit_of,
)
from em_assets.sources.personal import marks
from em_assets.store import LocalStore
from em_assets.volume import Claim

SPECS = sorted(PACKAGED_DATASETS.rglob("*.yaml"))


@pytest.fixture(scope="session")
def payloads():
    """The folder of publishers' real replies, beside the real files, or a skip."""
    folder = Path(os.environ.get("EM_ASSETS_REALDATA") or Path(__file__).parents[2] / "shared/realdata") / "../payloads"
    if not folder.is_dir():
        pytest.skip(f"no publishers' replies at {folder.resolve()}")
    return folder.resolve()


@pytest.fixture
def folder(tmp_path):
    return DatasetFolder(LocalStore(tmp_path), "dataset")


def packaged(file):
    return DatasetSpec.model_validate(yaml.safe_load(file.read_text()))


def dm_tags(payloads, number):
    """The tags of a real slice, with paths as our reader gives them."""
    dump = json.loads((payloads / f"empiar/dm3_full_tags_slice_{number}.json").read_text())["full_original_tags"]
    return [("/" + path.removeprefix("root.").replace(".", "/"), value) for path, value in dump.items()]


# -- units


@pytest.mark.parametrize(
    ("extractor", "key", "unit"),
    [
        ("dm", "/ImageList/1/ImageTags/Session Info/WD (mm)", "mm"),
        ("dm", "/ImageList/1/ImageTags/Microscope Info/Cs(mm)", "mm"),
        ("dm", "/ImageList/1/ImageTags/Microscope Info/SEM Chamber Pressure (Torr)", "Torr"),
        ("dm", "/ImageList/1/ImageTags/Session Info/xPos (µm)", "µm"),
        ("dm", "/ImageList/1/ImageTags/Session Info/xPos (\u03bcm)", "µm"),
        ("dm", "/ImageList/1/ImageTags/SBFSEM/Navigation/Stage X backlash correction (um)", "µm"),
        ("dm", "/ImageList/1/ImageTags/DataBar/Acquisition Time (OS)", None),
        ("dm", "/ImageList/1/ImageData/Calibrations/Dimension/0/Units", None),
        ("json", "/Acquisition details/Final_voxel_size_(nm)", "nm"),
        ("json", "/FIB-SEM parameters/Bias_(Volts)", "V"),
        ("json", "/FIB-SEM parameters/Imaging_duration_(days)_", "days"),
        ("json", "/sizes (nm)/0", "nm"),
        ("empiar_entry", "/EMPIAR-11759/imagesets/0/pixel_width", "angstrom"),
        ("empiar_entry", "/EMPIAR-11759/imagesets/0/image_width", None),
        ("empiar_xml", "/entry/imageSet[2]/dimensions/pixelHeight", "angstrom"),
        ("json", "/EMPIAR-11759/imagesets/0/pixel_width", None),
        ("idr_image", "/pixel_size/z", "µm"),
        ("idr_image", "/size/z", None),
        ("precomputed", "/scales/3/resolution/0", "nm"),
        ("precomputed", "/scales/3/size/0", None),
        ("spec", "/expected/voxel_size_nm/2", "nm"),
        ("spec", "/overrides/beam_current_a/value", "A"),
        ("spec", "/overrides/beam_current_a/reason", None),
        ("spec", "/notes/expected.voxel_size_nm", None),
        ("spec", "/sample", None),
        ("zarr", "/shape/0", None),
        ("text", "/0", None),
    ],
)
def test_a_key_says_its_unit(extractor, key, unit):
    """In brackets, by the publisher's documentation, or as our own names do; otherwise none is invented."""
    assert unit_of(extractor, key) == unit


def test_every_bracket_of_a_real_header_is_a_unit_or_known_to_be_none(payloads):
    """Of all keys of two real slices with something in brackets, only the clock's `(OS)` has no unit."""
    keys = {key for number in ("0000", "0015") for key, _ in dm_tags(payloads, number) if key.endswith(")")}
    assert len(keys) > 10
    assert {key.rpartition("/")[2] for key in keys if unit_of("dm", key) is None} == {"Acquisition Time (OS)"}


def test_a_stated_value_has_the_unit_of_its_key():
    """A claim in the spec about `current_na` is in nA, whatever its place in the list."""
    spec = packaged(PACKAGED_DATASETS / "idr_9846137.yaml")
    stated = [{"key": "current_na", "value": 0.22}, {"key": "organism", "value": "x"}]
    spec = DatasetSpec.model_validate({**spec.model_dump(), "claims": stated})
    units = {claim.key: claim.unit for claim in claims_of_spec(spec)}
    assert units["/claims/0/value"] == "nA"
    assert units["/claims/0/key"] is None and units["/claims/1/value"] is None


# -- marks

MARKED = {
    "address": ("x", "Send to someone.else+em@mail.example.org, please", "e-mail address"),
    "address in brackets": ("x", "<a@b.ch>", "e-mail address"),
    "address in a link": ("x", "mailto:name@example.org?subject=x", "e-mail address"),
    "address with a letter of its language": ("x", "müller@exämple.de", "e-mail address"),
    "full-width sign": ("x", "name\uff20example.org", "e-mail address"),
    "written [at]": ("/entry/mail", "someone [at] example.org", "e-mail address"),
    "written (at) dot": ("x", "some.one (at) mpi-cbg (dot) de", "e-mail address"),
    "written at dot": ("x", "write to someone at example dot org", "e-mail address"),
    "at, where the key says so": ("/principal_investigator/email", "someone at example.org", "e-mail address"),
    "key": ("/users/a@b.org/name", 1, "e-mail address"),
    "attribute": ("/entry/@accessionCode", "EMPIAR-11759", None),
    "hdf5 attribute": ("/volumes/raw@resolution", "x", None),
    "removed address": ("/email", "[removed]", None),
    "prose with at": ("x", "imaged at 1.9 kV at example.org", None),
    "scale at": ("x", "(at 5 nm) dot", None),
    "version": ("x", "numpy@1.26.4", None),
    "handle": ("x", "@janelia", None),
    "number": ("x", 8.5, None),
    "nothing": ("x", None, None),
    "Windows": ("x", r"C:\Users\Michaela\F57\F57-8\test1\F57-8_test1", "local path"),
    "Windows in JSON": ("x", '{"path": "D:\\\\data\\\\x"}', "local path"),
    "Windows with slashes": ("x", "D:/data/2018/x.dm3", "local path"),
    "server": ("x", r"saved to \\nas-01\group\x.tif", "local path"),
    "relative to a user": ("x", r"\Users\me\x.tif", "local path"),
    "home": ("x", "file list: /home/someone/x.tif", "local path"),
    "Mac": ("x", "/Users/someone/x.tif", "local path"),
    "file address": ("x", "file:///data/x", "local path"),
    "web address": ("x", "https://example.org/home/x/Users/y", None),
    "bucket": ("x", "s3://bucket/home/x", None),
    "publisher's path": ("x", "/data/raw/x.tif", None),
    "IDR's path": ("x", "/uod/idr/filesets/idr0086/x.tif", None),
    "HDF5 path": ("/volumes/raw@path", "/volumes/labels/x", None),
    "pointer": ("/home/x", "1", None),
    "ratio": ("x", "x:y/z", None),
    "date": ("x", "11/06/2018 22:27:16", None),
    "replacement": ("x", "5 \ufffdm", "odd bytes"),
    "half a surrogate": ("x", "a\\ud800b", "odd bytes"),
    "C1": ("x", "5 \x93quoted\x94", "odd bytes"),
    "NUL": ("x", "a\0b", "odd bytes"),
    "characters of a DM file": ("x", "7 x char at byte 1234", "odd bytes"),
    "odd key": ("/a\ufffd", "x", "odd bytes"),
    "lines and tabs": ("x", "a\tb\r\nc", None),
    "line separator": ("x", "pixel size : \u2028", None),
    "micro sign": ("x", "µm \u03bcm", None),
    "all": ("x", "a@b.org \ufffd C:\\Users\\a", "e-mail address, local path, odd bytes"),
}


@pytest.mark.parametrize(("key", "value", "mark"), MARKED.values(), ids=MARKED)
def test_what_is_about_a_person_is_marked(key, value, mark):
    """So that exports leave it out; and what was damaged on the way to text."""
    assert marks(key, value) == mark


def test_the_marks_of_a_real_header(payloads):
    """Two real slices: the operator's folder and the placeholder of the alert's address, and nothing else."""
    for number in ("0000", "0015"):
        tags = dm_tags(payloads, number)
        found = {key.rpartition("/ImageTags/")[2]: mark for key, value in tags if (mark := marks(key, value))}
        assert found == {
            "SBFSEM/E-mail Alert/Send to": "e-mail address",
            "SBFSEM/Record/Base file name": "local path",
        }


def test_marking_is_quick_whatever_the_value():
    """The longest values that a claim can have, made to be slow for patterns: milliseconds each."""
    worst = ["a" * 10_000, "a." * 5_000, "a@" * 5_000, "a at " * 2_000, "[at]" * 2_500, "\\" * 10_000, "/home" * 2_000]
    worst += ["a" * 60 + "@" + "b." * 4_900, "x at " + "y." * 4_900, " " * 10_000, "a [" + " " * 9_900, "C:" * 5_000]
    began = time.perf_counter()
    for value in worst:
        marks("/e-mail", value)
    assert time.perf_counter() - began < 1.0


# -- patterns


@pytest.mark.parametrize(
    ("extractor", "key", "pattern"),
    [
        ("empiar_entry", "/EMPIAR-11759/imagesets/0/image_width", "/*/imagesets/*/image_width"),
        ("dm", "/ImageList/1/ImageData/Dimensions/0", "/ImageList/*/ImageData/Dimensions/*"),
        (
            "dm",
            "/ImageList/1/ImageTags/Meta Data/Data Order Swapped",
            "/ImageList/*/ImageTags/Meta Data/Data Order Swapped",
        ),
        ("tiff", "/0/ImageWidth", "/*/ImageWidth"),
        ("tiff", "/1064/PageNumber/0", "/*/PageNumber/*"),
        ("tiff", "/0/700", "/*/700"),
        ("tiff", "/pages", "/pages"),
        ("zarr", "/multiscales/0/datasets/11/path", "/multiscales/*/datasets/*/path"),
        ("empiar_xml", "/entry/author[2]/name", "/entry/author/name"),
        ("table", "/rows/17/Image Name", "/rows/*/Image Name"),
        ("table", "/rows/17/Comment [Size][2]", "/rows/*/Comment [Size]"),
        ("idr_study", "/experiment/4/Protocol Name/2", "/experiment/*/Protocol Name/*"),
        ("json", "/s0/2d/v1.0", "/s0/2d/v1.0"),
        ("json", "/S-BIAD634/title", "/*/title"),
        ("json", "", ""),
    ],
)
def test_keys_of_one_kind_have_one_pattern(extractor, key, pattern):
    """Places in lists and accession numbers are `*`; a TIFF's tag without a name keeps its number."""
    assert key_pattern(extractor, key) == pattern


@pytest.mark.parametrize(
    ("unsorted", "in_order"),
    [
        (["s_10.tif", "s_9.tif", "s_1.tif"], ["s_1.tif", "s_9.tif", "s_10.tif"]),
        (["spec.json", "original/1", "documents/z", "1"], ["1", "documents/z", "original/1", "spec.json"]),
        (["a2", "a02b", "a"], ["a", "a2", "a02b"]),
    ],
    ids=["numbers", "folders", "leading zero"],
)
def test_documents_are_in_the_order_that_people_count_in(unsorted, in_order):
    assert sorted(unsorted, key=natural_order) == in_order


def test_every_kind_of_document_is_a_known_extractor():
    """What a spec can name, containers' documents and the formats of files: each has a version."""
    kinds = set(Document.model_fields["kind"].annotation.__args__)
    others = {"spec", "dm", "tiff", "hdf5", "mrc", "cryoet_api"}
    assert {*kinds, *CONTAINER_EXTRACTORS.values(), *others} == set(EXTRACTORS)
    assert all(extractor_version(name).endswith("+1") for name in EXTRACTORS)


# -- the spec


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.stem)
def test_a_spec_is_read_back_from_the_store(file):
    """What is kept of it is the same spec, and decides the same bytes; it does not change from run to run."""
    spec = packaged(file)
    kept = DatasetSpec.model_validate_json(spec_document(spec))
    assert kept == spec and kept.identity() == spec.identity()
    assert spec_document(kept) == spec_document(spec)


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.stem)
def test_every_leaf_of_a_spec_is_a_claim_but_its_files(file):
    """By JSON pointer in what is kept of it."""
    spec = packaged(file)
    document = json.loads(spec_document(spec))
    claims = list(claims_of_spec(spec))
    assert not [claim.key for claim in claims if claim.key.startswith("/source/files")]
    for claim in claims:
        value = document
        for part in claim.key.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            value = value[int(name)] if isinstance(value, list) else value[name]
        assert value == claim.value
    said = {claim.key for claim in claims}
    assert {"/title", "/license", "/source/url", "/expected/voxel_size_nm/0"} <= said
    assert {f"/claims/{n}/by" for n in range(len(spec.claims))} <= said


# -- the table

MIXED = [
    *claims_of(
        "documents/entry.json", "json", b'{"n": 8, "f": 2.5, "t": "8", "yes": true, "no": false, "x": null}', "u"
    ),
    *claims_of_tags([("/0/ImageWidth", 17)], "original/a.tif", "https://host/a.tif", "tiff"),
]
NOON = datetime(2026, 11, 21, 13, 0, tzinfo=timezone(timedelta(hours=1)))


def test_a_claim_is_a_row(folder):
    """Numbers as numbers and as text, text as text only; truth values in small letters; nothing is nothing."""
    write_claims(folder, MIXED, {"original/a.tif": Origin("ab" * 32, "ftp://mirror/a.tif", NOON)})
    table = read_claims(folder)
    assert tuple(table.column_names) == COLUMNS
    rows = table.to_pylist()
    assert [(row["key"], row["value_text"], row["value_number"]) for row in rows] == [
        ("/n", "8", 8.0),
        ("/f", "2.5", 2.5),
        ("/t", "8", None),
        ("/yes", "true", None),
        ("/no", "false", None),
        ("/x", None, None),
        ("/0/ImageWidth", "17", 17.0),
    ]
    first, last = rows[0], rows[-1]
    assert {row["name"] for row in rows} == {"dataset"}
    assert (first["source_url"], first["retrieved_at"], first["document_sha256"]) == ("u", None, None)
    assert (last["document"], last["extractor"], last["key_pattern"]) == ("original/a.tif", "tiff", "/*/ImageWidth")
    assert (last["source_url"], last["document_sha256"]) == ("ftp://mirror/a.tif", "ab" * 32)
    assert last["retrieved_at"] == datetime(2026, 11, 21, 12, 0)  # noqa: DTZ001  # UTC, as the catalogue has it


def test_times_in_the_file_say_that_they_are_utc(folder):
    """Programs that read it elsewhere are not left to guess."""
    write_claims(folder, MIXED, {"original/a.tif": Origin("ab" * 32, None, NOON)})
    table = pq.read_table(io.BytesIO(folder.read(CLAIMS)))
    assert table.schema.field("retrieved_at").type == pa.timestamp("us", tz="UTC")
    assert table["retrieved_at"].to_pylist()[-1] == datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def test_what_is_written_is_what_the_table_has(folder):
    """Many more claims than are held at once, read back in their order; marks and units with them."""
    number = 2 * CLAIMS_AT_ONCE + 7
    claims = [Claim(f"/WD (mm)/{n}", "a@b.org" if n % 2 else n, "d", "u", "json", "mm") for n in range(number)]
    write_claims(folder, iter(claims))
    read = read_claims(folder)
    assert read.num_rows == number
    assert read.equals(claims_table("dataset", claims, {}))
    assert read["mark"].to_pylist()[:2] == [None, "e-mail address"] and set(read["unit"].to_pylist()) == {"mm"}


def test_a_hundred_thousand_claims_take_seconds(folder):
    """Written and read; a real header's keys and values over and over."""
    claims = [
        Claim(f"/ImageList/1/ImageTags/Tag {n % 400}", f"value {n}", f"d{n // 400}", "u", "dm") for n in range(10**5)
    ]
    began = time.perf_counter()
    write_claims(folder, claims)
    assert read_claims(folder).num_rows == 10**5
    assert time.perf_counter() - began < 10


def test_no_claims_are_an_empty_table(folder):
    write_claims(folder, [])
    assert read_claims(folder).num_rows == 0
    assert claims_table("x", [], {}).schema == read_claims(folder).schema


def test_some_columns_can_be_read_alone(folder):
    write_claims(folder, MIXED)
    assert read_claims(folder, ("key", "retrieved_at")).column_names == ["key", "retrieved_at"]


def test_claims_of_an_earlier_version_are_none(folder):
    """They are made again from what is stored, so nothing has to understand them."""
    assert read_claims(folder) is None
    buffer = io.BytesIO()
    pq.write_table(pa.table({"name": ["x"], "key": ["k"], "value_text": ["v"]}), buffer)
    folder.write(CLAIMS, buffer.getvalue())
    assert read_claims(folder) is None


@pytest.mark.parametrize(
    "damage", [lambda raw: b"", lambda raw: raw[:-9], lambda raw: b"x" * len(raw)], ids=["empty", "cut", "other"]
)
def test_damaged_claims_are_named(folder, damage):
    write_claims(folder, MIXED)
    folder.write(CLAIMS, damage(folder.read(CLAIMS)))
    with pytest.raises(Malformed, match=r"claims.parquet is not a table of claims .*describe the dataset again"):
        read_claims(folder)
