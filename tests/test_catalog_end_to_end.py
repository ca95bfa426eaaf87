"""The catalogue of five sample publishers, from their servers to the exports: what people ask of it, and when.

Three datasets are complete, one failed because its publisher serves another file than the spec pins, one is only
described. What the answers should be is worked out from the specs, the served documents and the stored files.
"""

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import dagster as dg
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
import zarr

from conftest import ROOT
from em_assets import pipeline
from em_assets.catalog.build import CATALOG, build_catalog
from em_assets.catalog.exporting import EXPORTS, export_catalog
from em_assets.catalog.query import query
from em_assets.catalog.schema import DERIVED, TABLES
from em_assets.catalog.values import allows_commercial_use
from em_assets.datasets.loading import load_spec
from em_assets.definitions import build_defs
from em_assets.pipeline import PartitionsFailed
from em_assets.records import DatasetFolder
from em_assets.sample import hemibrain
from em_assets.sample.origin import PUBLISHERS, Request
from em_assets.store import open_store
from faulty import Fault
from published import EMPIAR, EPFL, IDR, JRC, Publishers, Written
from small import quick_settings, voxels
from test_catalog_build import build, make_spec, record_of

HEMIBRAIN = hemibrain.DATASET
COMPLETE, FAILED, DESCRIBED = (EMPIAR, IDR, JRC), EPFL, HEMIBRAIN
EVERY = sorted([*COMPLETE, FAILED, DESCRIBED])
MODULES = {name: PUBLISHERS[name] for name in EVERY}
WRONG = "0" * 32
"""The md5 that the failed dataset's spec pins."""


class AllWritten(Written):
    """What five publishers serve; the hemibrain is a small volume of ours, of which no licence is known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "origin"
        self.folder.mkdir()
        volume = folder / "volume.npy"
        np.save(volume, voxels((96, 104, 112)))
        self.facts = {
            name: module.write(self.folder, Request(seed=1, volume=volume if name == HEMIBRAIN else None))
            for name, module in MODULES.items()
        }

    def documents(self, addresses):
        return {name: module.spec(self.facts[name], addresses) for name, module in MODULES.items()}


class Catalogued:
    """A store, the specs that it is of, and its catalogue."""

    def __init__(self, specs_folder: Path, root: Path) -> None:
        self.settings = quick_settings(root, datasets=str(specs_folder))
        self.root, self.store = root, open_store(str(root))
        self.specs = {file.stem: load_spec(file) for file in sorted(specs_folder.glob("*.yaml"))}
        self.documents = {name: yaml.safe_load((specs_folder / f"{name}.yaml").read_text()) for name in self.specs}

    def build(self, specs=None):
        return build_catalog(self.specs if specs is None else specs, self.store, self.settings)

    def ask(self, sql: str) -> list[tuple]:
        return query(self.root / CATALOG, sql).rows

    def export(self) -> list[str]:
        return [file.path for name in EXPORTS for file in export_catalog(name, self.store, self.settings)]

    def everything(self) -> dict[str, list[str]]:
        """All rows of all tables and views."""
        names = [relation.name for relation in TABLES] + [made.name for made, _ in DERIVED]
        with duckdb.connect(self.root / CATALOG, read_only=True) as database:
            return {name: sorted(map(repr, database.execute(f"from {name}").fetchall())) for name in names}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return AllWritten(tmp_path_factory.mktemp("all"))


@pytest.fixture(scope="module")
def sample(written, tmp_path_factory):
    """Everything in its state, catalogued and exported; then the publishers go down."""
    folder = tmp_path_factory.mktemp("sample")
    with Publishers(written, folder) as publishers:
        for name in COMPLETE:
            publishers.materialize(name)
        publishers.pin(FAILED, "volumedata.tif", checksum=f"md5:{WRONG}")
        with pytest.raises(PartitionsFailed):
            publishers.materialize(FAILED)
        sample = Catalogued(publishers.specs_folder, Path(publishers.settings.root))
        for spec in sample.specs.values():
            described = pipeline.describe_dataset(spec, sample.settings, sample.store, fetch=True)
            assert described.missing == {}
    sample.build()
    sample.exported = sample.export()
    return sample


@pytest.fixture
def publishers(written, tmp_path):
    """Servers and specs of a test's own."""
    with Publishers(written, tmp_path) as publishers:
        yield publishers


# The questions that the README answers


def questions() -> dict[str, str]:
    """SQL by the sentence that asks for it."""
    text = (ROOT / "README.md").read_text().split("## Ask the catalogue\n")[1].split("\n## ")[0]
    found = re.findall(r"([^\n]+\?)\n\n```sql\n(.*?)```", text, re.DOTALL)
    assert len(found) == text.count("```sql")
    return dict(found)


def served_entry(sample) -> dict:
    """What EMPIAR's API says, as it was received."""
    return json.loads((sample.root / EMPIAR / "documents/entry.json").read_text())["EMPIAR-11759"]


def expected_voxels(sample) -> list[tuple]:
    """Of complete datasets what zarr-python opens, of the others what their specs ask for; the finest first."""
    rows = []
    for name, document in sample.documents.items():
        size = tuple(map(float, document["expected"]["voxel_size_nm"]))
        shape, dtype = document.get("crop", document["expected"]).get("shape"), document["expected"]["dtype"]
        if name in COMPLETE:
            array = zarr.open_group(sample.root / name / "volume.ome.zarr", mode="r")["0"]
            shape, dtype = array.shape, str(array.dtype)
        rows.append((name, tuple(shape or document["expected"]["source_shape"]), size, dtype))
    return sorted(rows, key=lambda row: max(row[2]))


DOUBLE_SCALE = rb"Scale%{4}\x00{3}\x01\x00{3}\x07(.{8})\x15\x00\x05Units%"
"""A DM3's only scale that is a 64 bit float: the distance of the slices."""


def expected_origin(sample) -> list[tuple]:
    """The first slice's header, read as bytes; the thickness it has noted; the spec."""
    slices = sample.specs[EMPIAR].source.volume.paths()
    raw = (sample.root / EMPIAR / "original" / slices[0]).read_bytes()
    assert [struct.unpack("<d", found) for found in re.findall(DOUBLE_SCALE, raw, re.DOTALL)] == [(50.0,)]
    first = f"original/{slices[0]}"
    tags = "/ImageList/1/ImageTags"
    header, noted = f"{tags}/Meta Data/Dimension info/2/Scale", f"{tags}/SBFSEM/Record/Slice thickness"
    return [
        ("50", "nm", "file header", "50.0 nm", first, header, True),
        ("50", "nm", "file metadata", "50.0 nm", first, noted, False),
        ("50", "nm", "spec", "50.0", "spec.json", "/expected/voxel_size_nm/0", False),
    ]


def expected_conflicts(sample) -> list[tuple]:
    """EMPIAR's entry says other widths than its files have, and rounds their pixels."""
    (images,) = served_entry(sample)["imagesets"]
    _, height, width = zarr.open_group(sample.root / EMPIAR / "volume.ome.zarr", mode="r")["0"].shape
    size = sample.documents[EMPIAR]["expected"]["voxel_size_nm"][2]
    pairs = {
        "source_size_x": (str(width), images["image_width"]),
        "source_size_y": (str(height), images["image_height"]),
        "voxel_size_x_nm": (repr(size), f"{images['pixel_width'] / 10:g}"),  # angstrom
        "voxel_size_y_nm": (repr(size), f"{images['pixel_height'] / 10:g}"),
    }
    told = "file header goes before publisher API"
    return [
        (EMPIAR, field, ours, "file header", theirs, "publisher API", ours, told)
        for field, (ours, theirs) in pairs.items()
    ]


def expected_states(sample) -> set[tuple]:
    """Counted in the folders."""
    states = set()
    for name, spec in sample.specs.items():
        original = sample.root / name / "original"
        if spec.is_by_file:
            wanted = list(spec.source.by_path())
            here = [path for path in wanted if (original / path).is_file()]
        else:
            wanted = list(spec.shard_indices())
            here = [file for file in (sample.root / name / "volume.ome.zarr/0/c").rglob("*") if file.is_file()]
        what = "complete" if name in COMPLETE else "error" if name == FAILED else "listed"
        absent = 0.0 if name in COMPLETE else None
        states.add((name, what, len(here), len(wanted), "file" if spec.is_by_file else "chunk", absent))
    return states


def check_states(sample, rows):
    assert {row[:2] + row[3:] for row in rows} == expected_states(sample)
    reasons = {row[0]: row[2] for row in rows}
    reason = reasons.pop(FAILED)
    assert "volumedata.tif" in reason and WRONG in reason
    assert reason == DatasetFolder(sample.store, FAILED).read_record().status_reason
    assert set(reasons.values()) == {None}


OF_EVERY_SPEC = {"citation", "description", "doi", "dtype", "license", "source_id", "title"}
OF_ONE_PUBLISHER = {
    "deposited_on": (EMPIAR, "deposition_date"),
    "updated_on": (EMPIAR, "update_date"),
    "dataset_size_bytes": (EMPIAR, "dataset_size"),
    "image_count": (EMPIAR, "num_images_or_tilt_series"),
    "organism": (IDR, "Organism"),
    "cell_line": (IDR, "Cell Line"),
}
"""Field: which dataset's documents alone have it, and under what word."""
OF_A_DM3 = {"accelerating_voltage_v", "dwell_time_s", "instrument", "magnification", "working_distance_mm"}
"""No other of the five formats tells about the microscope."""


def check_presence(sample, rows):
    """What every spec must have is shared; what one publisher's documents alone name is that one's."""
    shared = {row[0] for row in rows if row[2] == len(EVERY)}
    assert all(row[3] == ", ".join(EVERY) for row in rows if row[0] in shared)
    sizes = {f"{what}_{axis}{unit}" for axis in "zyx" for what, unit in (("source_size", ""), ("voxel_size", "_nm"))}
    assert shared == OF_EVERY_SPEC | sizes | {"file_format"}
    unique = {row[0]: row[3] for row in rows if row[2] == 1}
    for field, (name, word) in OF_ONE_PUBLISHER.items():
        assert {other for other in EVERY if word in published_text(sample, other)} == {name}
        assert unique.pop(field) == name
    assert {field: unique.pop(field) for field in OF_A_DM3} == dict.fromkeys(OF_A_DM3, EMPIAR)
    assert unique == {"publisher_name": IDR}
    order = [(-row[2], row[0]) for row in rows]
    assert order == sorted(order)


def published_text(sample, name: str) -> str:
    """All that a publisher's documents say, receipts apart."""
    files = (sample.root / name / "documents").iterdir()
    return "\n".join(file.read_text() for file in files if not file.name.endswith(".receipt.json"))


def check_licences(sample, rows):
    """CC0 is given to everybody; whose licence nobody knows is left out, and what is coarser is, too."""
    fine = {name: max(doc["expected"]["voxel_size_nm"]) for name, doc in sample.documents.items()}
    allowed = {name for name, document in sample.documents.items() if document["license"] == "CC0-1.0"}
    assert set(EVERY) - allowed == {HEMIBRAIN}
    assert sorted(rows) == [(name, fine[name], "CC0-1.0") for name in EVERY if fine[name] < 10 and name in allowed]


def equal_to(expected):
    def check(sample, rows):
        assert rows == expected(sample)

    return check


ANSWERS = {
    "What resolution and pixel type does every dataset have?": equal_to(expected_voxels),
    "Which metadata do they share, and which is unique to one?": check_presence,
    "Where did this value come from?": equal_to(expected_origin),
    "Where do the publisher and the file disagree, which was taken, and why?": equal_to(expected_conflicts),
    "What is complete, what failed, what is missing?": check_states,
    "Which datasets under 10 nm may I use commercially?": check_licences,
}


def test_every_question_of_the_readme_has_an_answer():
    """None is added there without one here."""
    assert questions().keys() == ANSWERS.keys()


@pytest.mark.parametrize("question", ANSWERS)
def test_the_readmes_questions_are_answered(sample, question):
    """As they stand there, of the sample's catalogue: what specs, documents and files say."""
    ANSWERS[question](sample, sample.ask(questions()[question]))


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("CC0-1.0", True),
        ("CC-BY-4.0", True),
        ("CC-BY-3.0", True),
        ("CC-BY-SA-4.0", True),
        ("ODC-By-1.0", True),
        ("Apache-2.0", True),
        ("BSD-3-Clause", True),
        ("CC-BY-NC-4.0", False),
        ("CC-BY-NC-SA-4.0", False),
        ("CC-BY-NC-ND-4.0", False),
        ("PolyForm-Noncommercial-1.0.0", False),
        ("CC-BY-ND-4.0", None),
        ("CC-BY", None),
        ("free for research and education", None),
        ("that of volume.npy, unknown here", None),
        ("", None),
        (None, None),
    ],
)
def test_commercial_use_is_never_guessed(licence, allowed):
    """Known to be allowed, known not to be, or unknown: a licence that nobody has looked up is no permission."""
    assert allows_commercial_use(licence) is allowed


# Readers and builders


READER = """
import pathlib, sys
import duckdb
ask = '''select (select count(*) from datasets), (select count(distinct name) from claims),
    (select count(distinct name) from statements where chosen), (select count(distinct name) from chunks),
    (select max(datasets) from field_presence), (select max(datasets) from key_presence)'''
seen, asked = set(), 0
print("ready", flush=True)
while not pathlib.Path(sys.argv[2]).exists():
    with duckdb.connect(sys.argv[1], read_only=True) as database:
        seen.add(database.execute(ask).fetchone())
    asked += 1
print(asked, sorted(seen))
"""


@pytest.mark.slow
def test_a_reader_that_asks_all_the_time_sees_whole_catalogues(tmp_path):
    """Another process opens it again and again through ten rebuilds: no error, and each answer is of one state."""
    build(tmp_path / "store", make_spec("d0"))
    command = [sys.executable, "-c", READER, str(tmp_path / "store" / CATALOG), str(tmp_path / "stop")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "ready\n"
        for number in range(2, 12):
            build(tmp_path / "store", *(make_spec(f"d{n}") for n in range(number)))
        (tmp_path / "stop").touch()
        told, problem = reader.communicate(timeout=60)
    assert (reader.returncode, problem) == (0, "")
    asked, _, seen = told.partition(" ")
    counts = {tuple(state) for state in json.loads(seen.translate(str.maketrans("()", "[]")))}
    assert int(asked) > 10 and len(counts) > 1
    assert counts <= {(number,) * 6 for number in range(1, 12)}


BUILDER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from em_assets.catalog import build as build_module
from test_catalog_build import build
if sys.argv[3] == "slow":
    write = build_module._write_database

    def write_when_told(*arguments):
        print("read", flush=True)
        input()
        write(*arguments)

    build_module._write_database = write_when_told
else:
    print("begins", flush=True)
build(Path(sys.argv[2]))
"""


def start_builder(root: Path, how: str) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILDER, str(ROOT / "tests"), str(root), how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_of_two_builders_the_newer_state_stays(tmp_path):
    """The first has read the store and is slow to write; the second, that knows more, is not overwritten by it."""
    folder, spec = DatasetFolder(open_store(str(tmp_path)), "crop"), make_spec()
    changes = {"status": "error", "status_reason": "none"}
    folder.write_record(record_of(spec, folder, title="older", **changes))
    with start_builder(tmp_path, "slow") as slow:
        assert slow.stdout.readline() == "read\n"
        folder.write_record(record_of(spec, folder, title="newer", **changes))
        with start_builder(tmp_path, "quick") as quick:
            assert quick.stdout.readline() == "begins\n"
            with contextlib.suppress(subprocess.TimeoutExpired):  # it waits for the other one
                quick.wait(1.5)
            slow.communicate("\n", timeout=60)
            quick.communicate(timeout=60)
    assert (slow.returncode, quick.returncode) == (0, 0)
    assert query(tmp_path / CATALOG, "select title from datasets").rows == [("newer",)]


# While it is saved, and when it fails


def test_a_dataset_has_its_row_and_claims_at_every_moment(publishers):
    """Described: its conflicts are there. While it is saved: a stub and they. After it failed: the reason and they."""
    slices = publishers.spec(EMPIAR).source.volume.paths()
    publishers.pin(EMPIAR, slices[-1], checksum=f"md5:{WRONG}")
    catalogued = Catalogued(publishers.specs_folder, Path(publishers.settings.root))
    spec = catalogued.specs[EMPIAR]
    pipeline.describe_dataset(spec, catalogued.settings, catalogued.store, fetch=True)

    def now() -> tuple:
        catalogued.build()
        row = f"select status, status_reason, partitions_stored, conflicts from datasets where name = '{EMPIAR}'"
        [(status, reason, stored, conflicts)] = catalogued.ask(row)
        fields = catalogued.ask(f"select distinct field from conflicts where name = '{EMPIAR}'")
        claims = catalogued.ask(f"select count(*) from claims where name = '{EMPIAR}'")[0][0]
        assert conflicts >= len(fields) and {("source_size_x",), ("voxel_size_x_nm",)} <= set(fields) and claims > 100
        return status, reason, stored

    during = []

    def look(path, range_header, count):
        if path.endswith(slices[8]) and not during:
            during.append(now())

    assert now() == ("listed", None, 0)
    publishers.http.fail = look
    with pytest.raises(PartitionsFailed) as failure:
        publishers.materialize(EMPIAR)
    [(status, reason, stored)] = during
    assert (status, reason) == ("saving-data", None) and 0 <= stored < len(slices)
    status, reason, stored = now()
    assert (status, reason, stored) == ("error", str(failure.value), len(slices))  # all but one, and the project
    assert slices[-1] in reason and WRONG in reason


# Nothing but the store


def test_a_deleted_catalogue_comes_back_from_the_store(sample):
    """With nobody to ask: every row of every table and view is as it was."""
    before = sample.everything()
    # no index of blocks was made here, and no dataset with points is
    assert {name for name, rows in before.items() if not rows} == {"blocks", "points"}
    (sample.root / CATALOG).unlink()
    sample.build()
    assert sample.everything() == before


def test_without_specs_all_that_was_stated_is_still_known(sample, tmp_path):
    """The folder of specs is empty: what was read with them is there, word for word, also of the one not downloaded."""
    shutil.copytree(sample.root, tmp_path / "store")
    alone = Catalogued(tmp_path / "no specs", tmp_path / "store")
    alone.build()
    told = "select name, status, title, license, voxel_size_nm, dtype, doi, conflicts from datasets order by name"
    assert alone.ask(told) == sample.ask(told)
    before, after = sample.everything(), alone.everything()
    for table in ("claims", "statements", "documents", "checks", "runs", "key_presence", "conflicts", "field_presence"):
        assert after[table] == before[table], table


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "spec.json").write_text("{}"), "spec.json is not a spec"),
        (lambda folder: folder.rename(folder.with_name("copy")), "is the spec of hemibrain_crop, not of copy"),
    ],
    ids=["damaged", "renamed"],
)
def test_a_kept_spec_that_is_not_its_own_is_said(sample, tmp_path, damage, words):
    """Of a dataset that was only described nothing else is there: its row says what to do."""
    shutil.copytree(sample.root / DESCRIBED, tmp_path / "store" / DESCRIBED)
    damage(tmp_path / "store" / DESCRIBED)
    alone = Catalogued(tmp_path / "no specs", tmp_path / "store")
    alone.build()
    [(status, reason)] = alone.ask("select status, status_reason from datasets")
    assert status == "listed" and words in reason


# What leaves


ADDRESS = re.compile(r"[\w.+-]+(?:@| ?\[at\] ?)[\w-]+\.\w+")
WINDOWS_PATH = re.compile(r"[A-Za-z]:\\+[A-Za-z]")


def text_of(file: Path) -> str:
    """All values, also of a table that is compressed."""
    if file.suffix == ".parquet":
        return repr(pq.read_table(file).to_pylist()) + repr(pq.read_schema(file).metadata)
    return file.read_text()


def test_exports_name_nobody_and_no_folder(sample):
    """Documents and headers have addresses and a computer's paths, and so have the claims; exports have none."""
    claims = [value for (value,) in sample.ask("select value_text from claims")]
    assert any("sample@example.org" in value for value in claims if value)
    assert any(ADDRESS.search(value) and "[at]" in value for value in claims if value)
    assert any(WINDOWS_PATH.search(value) for value in claims if value)
    assert any(str(sample.root) in paths for (paths,) in sample.ask("select local_paths from datasets") if paths)
    kinds = {Path(path).suffix for path in sample.exported}
    crates = {f"{name}/ro-crate-metadata.json" for name in COMPLETE}
    assert kinds == {".csv", ".json", ".parquet", ".md"} and crates < set(sample.exported)
    for path in [*sample.exported, "README.md"]:
        text = text_of(sample.root / path)
        assert text, path
        assert not ADDRESS.findall(text), path
        assert not WINDOWS_PATH.findall(text), path
        assert str(sample.root.parents[1]) not in text, path


# What changes


def test_an_edited_voxel_size_is_a_conflict_until_it_is_put_back(sample, publishers, tmp_path):
    """EMPIAR's entry says 96 angstrom instead of 80: both values and the choice are listed, and then no more."""
    shutil.copytree(sample.root / EMPIAR, Path(publishers.settings.root) / EMPIAR)
    catalogued = Catalogued(publishers.specs_folder, Path(publishers.settings.root))

    def conflicts() -> set[tuple]:
        spec = catalogued.specs[EMPIAR]
        described = pipeline.describe_dataset(spec, catalogued.settings, catalogued.store, fetch=True, refresh=True)
        assert described.missing == {}
        catalogued.build()
        wanted = "select field, value_a, authority_a, value_b, authority_b, key_b, chosen, reason from conflicts"
        return set(catalogued.ask(f"{wanted} where name = '{EMPIAR}'"))

    before = conflicts()
    entry = {"EMPIAR-11759": served_entry(sample)}
    assert entry["EMPIAR-11759"]["imagesets"][0]["pixel_width"] == 80.0
    entry["EMPIAR-11759"]["imagesets"][0]["pixel_width"] = 96.0
    body = json.dumps(entry).encode()
    publishers.fail("/api/entry/", Fault(status=200, headers={"Content-Type": "application/json"}, body=body))
    key, told = "/EMPIAR-11759/imagesets/0/pixel_width", "file header goes before publisher API"
    size = repr(sample.documents[EMPIAR]["expected"]["voxel_size_nm"][2])
    new = ("voxel_size_x_nm", size, "file header", "9.6", "publisher API", key, size, told)
    found = conflicts()
    assert new in found and new not in before
    assert {row[0] for row in found - before} == {"voxel_size_x_nm"}
    publishers.heal()
    assert conflicts() == before


@pytest.mark.slow
def test_the_catalogue_follows_one_dataset_and_the_exports_follow_it(sample, publishers):
    """In `dagster dev`, four of five absent: each tick asks for what comes next, and never for the others."""
    shutil.copytree(sample.root / IDR, Path(publishers.settings.root) / IDR)
    defs = build_defs(settings=publishers.settings)
    instance = dg.DagsterInstance.ephemeral(tempdir=str(Path(publishers.settings.root).parent))
    exports, cursor = set(EXPORTS), None

    def run(*names: str) -> None:
        job = defs.resolve_implicit_global_asset_job_def()
        assert job.execute_in_process(asset_selection=[dg.AssetKey(name) for name in names], instance=instance).success

    def tick() -> set[str]:
        nonlocal cursor
        evaluated = dg.evaluate_automation_conditions(defs=defs, instance=instance, cursor=cursor)
        cursor = evaluated.cursor
        keys = {result.key for result in evaluated.results if isinstance(result.key, dg.AssetKey)}
        return {key.to_user_string() for key in keys if evaluated.get_num_requested(key)}

    assert tick() == set()
    requests = publishers.requests
    run(IDR)  # which leaves a catalogue with its row
    assert tick() == {f"{IDR}_metadata", f"{IDR}_blocks", "metadata_catalog"} | exports
    run(f"{IDR}_metadata", f"{IDR}_blocks", "metadata_catalog", *sorted(exports))
    assert tick() == set()
    # the catalogue of the first one's step does not have the claims of the second
    run(IDR, f"{IDR}_metadata", f"{IDR}_blocks")
    assert tick() == {"metadata_catalog"} | exports
    run("metadata_catalog", *sorted(exports))
    assert tick() == set()
    assert publishers.requests == requests
    rows = query(Path(publishers.settings.root) / CATALOG, "select name, status from datasets order by name").rows
    assert rows == [(name, "complete" if name == IDR else "listed") for name in EVERY]
