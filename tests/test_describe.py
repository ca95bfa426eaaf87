"""Describing a dataset with and without its voxels: documents and receipts, claims and origins, what cannot be had."""

import contextlib
import hashlib
import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from em_assets import pipeline
from em_assets.catalog.claims import CLAIMS, read_claims
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed, Mismatch
from em_assets.pipeline.locking import dataset_lock
from em_assets.progress import open_reporter
from em_assets.records import DatasetFolder, DocumentReceipt
from em_assets.store import open_store
from faulty import Fault, FaultyServer
from published import EMPIAR, EPFL, IDR, JRC, MODULES, Publishers, write_once
from small import materialize, publish, quick_settings, write_spec

EVERY = list(MODULES)


@pytest.fixture
def publishers(tmp_path_factory, tmp_path):
    with Publishers(write_once(tmp_path_factory.getbasetemp()), tmp_path) as publishers:
        yield publishers


@pytest.fixture
def hemibrain(tmp_path):
    """(server, spec, settings, folder) of a crop of a precomputed volume."""
    publish(tmp_path / "served")
    with FaultyServer(tmp_path / "served") as server:
        spec, settings = write_spec(tmp_path / "specs", server.url), quick_settings(tmp_path / "store")
        yield server, spec, settings, DatasetFolder(open_store(settings.root), spec.name)


def describe(publishers, name, **options):
    options.setdefault("fetch", True)
    store = open_store(publishers.settings.root)
    spec = publishers.spec(name)
    return pipeline.describe_dataset(spec, publishers.settings, store, log=publishers.lines.append, **options)


def claimed(folder):
    """Values by (document, key)."""
    table = read_claims(folder, ("document", "key", "value_text"))
    return {(row["document"], row["key"]): row["value_text"] for row in table.to_pylist()}


def stored(folder):
    """Every object of the dataset, by path below its folder."""
    prefix = folder.path("")
    return {path.removeprefix(prefix): folder.store.read(path) for path, _ in folder.store.list(folder.name)}


# Without pixels


@pytest.mark.parametrize("name", EVERY)
def test_a_dataset_that_is_not_downloaded_is_described(publishers, name):
    """Documents with receipts, the spec and claims are there; no file, no chunk, no record: it stays listed."""
    described = describe(publishers, name)
    folder = publishers.folder(name)
    spec = publishers.spec(name)
    assert described.missing == {} and described.claims == read_claims(folder).num_rows > 0
    assert described.keys.passed, described.keys.message
    assert set(described.received) == set(folder.documents())
    assert {f"documents/{item.path}" for item in spec.documents} <= set(folder.documents())
    own = {"spec.json", CLAIMS, "checks/metadata_keys.json"}
    receipts = {f"{path}.receipt.json" for path in folder.documents()}
    assert set(stored(folder)) == own | set(folder.documents()) | receipts
    assert folder.read_record() is None
    documents = {row["document"] for row in read_claims(folder).to_pylist()}
    assert documents == {*folder.documents(), "spec.json"}


@pytest.mark.parametrize("name", EVERY)
def test_no_voxel_is_asked_for(publishers, name):
    """Only documents and metadata: small requests, none of a file of the dataset or a chunk."""
    describe(publishers, name)
    asked = [path for _, path, _ in publishers.http.log]
    assert asked
    assert not [path for path in asked if path.endswith((".dm3", ".tif", ".gz")) or path.rpartition("/")[2].isdecimal()]


def test_every_volume_of_a_container_is_described(publishers):
    """The images' metadata and those of the labels, which are another group."""
    describe(publishers, JRC)
    paths = publishers.folder(JRC).documents()
    for begin in ("documents/recon-2__em__fibsem-int16__", "documents/recon-2__labels__"):
        assert [path for path in paths if path.startswith(begin) and path.endswith(".zattrs")]
        assert [path for path in paths if path.startswith(begin) and path.endswith("s0__.zarray")]


def test_a_precomputed_volume_is_described(hemibrain):
    """One request, for its info."""
    server, spec, settings, folder = hemibrain
    described = pipeline.describe_dataset(spec, settings, folder.store, fetch=True)
    assert "documents/info.json" in described.received
    assert claimed(folder)["documents/info.json", "/scales/0/size/0"] == "190"
    assert [path.rpartition("/")[2] for _, path, _ in server.log if "/jpeg" in path] == ["info"]
    assert folder.read_record() is None


def test_a_second_run_asks_nobody(publishers):
    """What is here is not fetched again; the claims are the same, byte for byte."""
    describe(publishers, IDR)
    describe(publishers, JRC)
    before, requests = {name: stored(publishers.folder(name)) for name in (IDR, JRC)}, publishers.requests
    for name in (IDR, JRC):
        again = describe(publishers, name)
        assert (again.received, again.missing) == ((), {})
        now = stored(publishers.folder(name))
        assert {path for path in now if now[path] != before[name].get(path)} <= {"checks/metadata_keys.json"}
    assert publishers.requests == requests


def test_without_fetch_nobody_is_asked(publishers):
    """What the spec says is described; documents that were never had are not missed."""
    described = describe(publishers, IDR, fetch=False)
    assert (publishers.requests, described.received, described.missing) == (0, (), {})
    assert set(stored(publishers.folder(IDR))) == {"spec.json", CLAIMS, "checks/metadata_keys.json"}
    assert claimed(publishers.folder(IDR))["spec.json", "/source_id"] == publishers.spec(IDR).source_id


def test_the_spec_is_kept_beside_its_dataset(publishers):
    """Whoever has the store alone has the spec, too."""
    for name in EVERY:
        describe(publishers, name, fetch=False)
        assert DatasetSpec.model_validate_json(publishers.folder(name).read("spec.json")) == publishers.spec(name)


# Receipts and origins


def test_a_document_has_a_receipt(publishers):
    """What it is, where it is from, query and all, and when it came; its claims repeat that."""
    began = datetime.now(UTC).replace(microsecond=0)
    describe(publishers, IDR)
    folder = publishers.folder(IDR)
    (document,) = (item for item in publishers.spec(IDR).documents if item.kind == "idr_annotations")
    path = f"documents/{document.path}"
    receipt, raw = folder.read_document_receipt(path), folder.read(path)
    assert receipt is not None and "?" in receipt.url
    assert (receipt.path, receipt.url, receipt.size_bytes) == (path, document.url, len(raw))
    assert receipt.sha256 == hashlib.sha256(raw).hexdigest()
    assert began <= receipt.retrieved_at <= datetime.now(UTC)
    rows = [row for row in read_claims(folder).to_pylist() if row["document"] == path]
    when = receipt.retrieved_at.astimezone(UTC).replace(tzinfo=None)
    assert {(r["document_sha256"], r["source_url"], r["retrieved_at"]) for r in rows} == {
        (receipt.sha256, document.url, when)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [JRC, "hemibrain"])
def test_metadata_of_a_downloaded_container_have_receipts(publishers, hemibrain, name):
    """Not only those that are described, but those that a download keeps on its way."""
    if name == JRC:
        folder = publishers.folder(JRC)
        publishers.finished(JRC)
    else:
        _, spec, settings, folder = hemibrain
        materialize(spec, settings)
    metadata = [path for path in folder.documents() if path.endswith((".zarray", ".zattrs", "info.json"))]
    assert metadata
    for path in metadata:
        receipt = folder.read_document_receipt(path)
        assert receipt is not None and receipt.sha256 == hashlib.sha256(folder.read(path)).hexdigest()
        assert receipt.url.startswith(("http://", "s3://"))


@pytest.mark.parametrize("receipt", [None, b"", b"{}", "another's"], ids=["none", "empty", "no receipt", "another's"])
def test_a_document_of_an_older_store_is_described(publishers, receipt):
    """Its sha256 is computed, when it came is not known; it is not fetched again."""
    describe(publishers, EMPIAR)
    folder = publishers.folder(EMPIAR)
    path = "documents/entry.json"
    beside = f"{path}.receipt.json"
    if receipt == "another's":
        found = folder.read_document_receipt(path).model_copy(update={"sha256": "0" * 64})
        receipt = found.model_dump_json().encode()
    folder.store.delete(folder.path(beside)) if receipt is None else folder.write(beside, receipt)
    requests = publishers.requests
    describe(publishers, EMPIAR)
    assert publishers.requests == requests
    rows = [row for row in read_claims(folder).to_pylist() if row["document"] == path]
    digest = hashlib.sha256(folder.read(path)).hexdigest()
    (item,) = (item for item in publishers.spec(EMPIAR).documents if item.path == "entry.json")
    assert {(r["document_sha256"], r["retrieved_at"], r["source_url"]) for r in rows} == {(digest, None, item.url)}


def test_files_that_are_here_are_described_each(publishers):
    """Every slice is a document with all its tags, its sha256 and where it came from; the attachment is none."""
    publishers.finished(EMPIAR)
    assert describe(publishers, EMPIAR, fetch=False).keys.details["missing_expected"] == []
    rows = read_claims(publishers.folder(EMPIAR)).to_pylist()
    of_file = {}
    for row in rows:
        if row["extractor"] == "dm":
            of_file.setdefault(row["document"], []).append(row)
    paths = publishers.spec(EMPIAR).source.volume.paths()
    assert list(of_file) == [f"original/{path}" for path in paths]
    keys = [{row["key"] for row in some} for some in of_file.values()]
    assert len(keys[0]) > 20 and all(some == keys[0] for some in keys)
    for path, some in of_file.items():
        digest = hashlib.sha256(publishers.folder(EMPIAR).read(path)).hexdigest()
        assert {row["document_sha256"] for row in some} == {digest}
        assert all(row["retrieved_at"] is not None and path.rpartition("/")[2] in row["source_url"] for row in some)


def test_half_a_download_is_described_as_far_as_it_goes(publishers):
    """The files that came are described; the others are no error."""
    spec, store = publishers.spec(EMPIAR), publishers.folder(EMPIAR).store
    keys = [path.replace("/", "__") for path in spec.source.volume.paths()[2:4]]
    reporter = open_reporter(publishers.lines.append, label=EMPIAR)
    log = publishers.lines.append
    pipeline.fetch_dataset_partitions(spec, publishers.settings, store, keys, reporter=reporter, log=log)
    describe(publishers, EMPIAR, fetch=False)
    documents = {document for document, _ in claimed(publishers.folder(EMPIAR)) if document.startswith("original/")}
    assert documents == {f"original/{key}" for key in keys}
    assert publishers.folder(EMPIAR).read_record().status == "interrupted"


# What cannot be had


def test_what_cannot_be_had_is_said_and_stops_nothing(publishers):
    """The others come; the next run asks for just that one."""
    publishers.fail("annotations", Fault(status=404))
    described = describe(publishers, IDR)
    assert list(described.missing) == ["documents/map_annotations.json"]
    assert "404" in described.missing["documents/map_annotations.json"]
    assert any("map_annotations.json is left out" in line for line in publishers.lines)
    assert "documents/imgData.json" in described.received
    publishers.heal()
    assert describe(publishers, IDR).received == ("documents/map_annotations.json",)


def test_a_container_that_is_gone_is_said_and_stops_nothing(publishers):
    """What the spec states is described; each volume's metadata are missed."""
    publishers.fail(r"fibsem-int16|labels", Fault(status=404))
    described = describe(publishers, JRC)
    assert sorted(described.missing) == [
        "documents/recon-2__em__fibsem-int16",
        "documents/recon-2__labels__inference__segmentations__nuc",
    ]
    assert described.claims > 0 and not publishers.folder(JRC).documents()


def test_one_volume_of_a_container_that_is_gone_is_said(publishers):
    """The images are described without the labels; these come when they are there again, and nothing else."""
    publishers.fail("/labels/", Fault(status=404))
    assert list(describe(publishers, JRC).missing) == ["documents/recon-2__labels__inference__segmentations__nuc"]
    assert "documents/recon-2__em__fibsem-int16__.zattrs" in publishers.folder(JRC).documents()
    publishers.heal()
    described = describe(publishers, JRC)
    assert described.missing == {}
    assert [path for path in described.received if "labels" in path]


def test_publishers_that_are_down_cost_seconds(publishers):
    """A fresh clone without a network has a catalogue of its specs all the same."""
    publishers.down()
    for name in EVERY:
        described = describe(publishers, name)
        assert described.received == () and described.claims > 0
        assert len(described.missing) == len(publishers.spec(name).documents) + 2 * (name == JRC)
        assert all("\n" not in reason for reason in described.missing.values())


# Fetching anew


def answer(publishers, part, body):
    """From now on the server answers requests for paths with this part so."""
    kind = "application/json" if body.startswith(b"{") else "text/html"
    publishers.fail(part, Fault(status=200, headers={"Content-Type": kind}, body=body))


def test_refreshing_replaces_what_came_whole(publishers):
    """New words, a new receipt, new claims."""
    describe(publishers, EMPIAR)
    folder = publishers.folder(EMPIAR)
    path = "documents/entry.json"
    old = folder.read_document_receipt(path)
    folder.write(f"{path}.receipt.json", aged(old))
    entry = json.loads(folder.read(path))
    entry["EMPIAR-11759"]["title"] = "Another title"
    answer(publishers, "/api/entry/", json.dumps(entry).encode())
    described = describe(publishers, EMPIAR, refresh=True)
    assert set(described.received) == {"documents/entry.json", "documents/entry.xml"} and described.missing == {}
    assert claimed(folder)[path, "/EMPIAR-11759/title"] == "Another title"
    new = folder.read_document_receipt(path)
    assert new.sha256 != old.sha256 and new.retrieved_at >= old.retrieved_at


def aged(receipt: DocumentReceipt) -> bytes:
    changed = receipt.model_copy(update={"retrieved_at": receipt.retrieved_at - timedelta(days=30)})
    return changed.model_dump_json().encode()


@pytest.mark.parametrize(
    ("part", "body", "words"),
    [
        ("/api/entry/", b'{"EMPIAR-1": {"imagesets": [{}]}}', "EMPIAR-11759 was asked for"),
        ("/api/entry/", b"<html>Please log in</html>", "web page where data was expected"),
        ("/api/entry/", b"{", "not JSON"),
    ],
    ids=["another's", "login page", "cut"],
)
def test_refreshing_keeps_what_it_cannot_better(publishers, part, body, words):
    """The old document, its receipt and its claims stay, and the reason is said."""
    describe(publishers, EMPIAR)
    folder = publishers.folder(EMPIAR)
    kept = {path: raw for path, raw in stored(folder).items() if path.startswith("documents/entry.json")}
    claims = claimed(folder)
    answer(publishers, part, body)
    described = describe(publishers, EMPIAR, refresh=True)
    assert list(described.missing) == ["documents/entry.json"] and described.received == ("documents/entry.xml",)
    reason = described.missing["documents/entry.json"]
    assert words in reason and reason.endswith("What is here of it stays.")
    assert {path: raw for path, raw in stored(folder).items() if path in kept} == kept
    assert claimed(folder) == claims


def test_refreshing_a_container_that_is_gone_keeps_its_metadata(publishers):
    describe(publishers, JRC)
    folder = publishers.folder(JRC)
    before = stored(folder)
    publishers.fail(r"fibsem-int16|labels", Fault(status=404))
    described = describe(publishers, JRC, refresh=True)
    assert len(described.missing) == 2
    assert all(reason.endswith("What is here of it stays.") for reason in described.missing.values())
    assert {path: raw for path, raw in stored(folder).items() if path in folder.documents()} == {
        path: raw for path, raw in before.items() if path in folder.documents()
    }


def test_a_key_that_vanished_is_warned_of(publishers):
    """The publisher's next reply lacks a key and has another's type changed: a check says so, and blocks nothing."""
    assert describe(publishers, EMPIAR).keys.passed
    folder = publishers.folder(EMPIAR)
    entry = json.loads(folder.read("documents/entry.json"))
    image_set = entry["EMPIAR-11759"]["imagesets"][0]
    del image_set["voxel_type"]
    image_set["pixel_width"] = "80"
    answer(publishers, "/api/entry/", json.dumps(entry).encode())
    described = describe(publishers, EMPIAR, refresh=True)
    kept = json.loads(folder.read("checks/metadata_keys.json"))
    assert not described.keys.passed and not kept["passed"] and not kept["blocking"]
    key = "empiar_entry: /*/imagesets/*/voxel_type"
    assert kept["details"]["vanished"] == [key] and key in kept["details"]["missing_expected"]
    assert kept["details"]["changed_type"] == ["empiar_entry: /*/imagesets/*/pixel_width (was number, is text)"]
    assert kept["details"]["appeared"] == []
    assert any("have vanished (empiar_entry" in line for line in publishers.lines)


# Damage, and others at work


@pytest.mark.parametrize("raw", [b"", b"PAR1 and nothing more"], ids=["empty", "cut"])
def test_damaged_claims_are_made_anew(publishers, raw):
    """They are made from what is stored: nothing is lost, and the run says what it met."""
    describe(publishers, IDR)
    folder = publishers.folder(IDR)
    good = claimed(folder)
    folder.write(CLAIMS, raw)
    describe(publishers, IDR, fetch=False)
    assert claimed(folder) == good
    assert any("is not a table of claims" in line for line in publishers.lines)


def test_a_damaged_document_is_named(publishers):
    """It is the only copy of what was received: nothing is thrown away, and the claims stay as they were."""
    describe(publishers, EMPIAR)
    folder = publishers.folder(EMPIAR)
    before = folder.read(CLAIMS)
    folder.write("documents/entry.json", b"{")
    with pytest.raises(Malformed, match=r"^empiar_11759/documents/entry.json.*remove it and materialize again"):
        describe(publishers, EMPIAR)
    assert folder.read(CLAIMS) == before


def test_what_is_another_specs_is_refused(publishers):
    """The claims of one volume are never written beside the voxels of another."""
    publishers.finished(EPFL)
    expected = {"voxel_size_nm": [6.0, 6.0, 6.0]}
    publishers.spec(EPFL, expected=expected)
    with pytest.raises(Mismatch, match="with identity"):
        describe(publishers, EPFL, fetch=False)


def test_a_writer_is_not_waited_for(publishers):
    """A download holds its lock for hours: a description takes a moment all the same."""
    store = open_store(publishers.settings.root)
    with dataset_lock(store, IDR, print):
        assert describe(publishers, IDR).claims > 0


def test_two_that_describe_take_turns(publishers):
    """The second waits for the first, and both leave whole claims."""
    store = open_store(publishers.settings.root)
    ended = threading.Event()

    def second():
        describe(publishers, IDR)
        ended.set()

    thread = threading.Thread(target=second)
    with dataset_lock(store, f"{IDR}.metadata", print):
        thread.start()
        assert not ended.wait(0.5)
    thread.join(60)
    assert ended.is_set() and claimed(publishers.folder(IDR))
    assert any("waiting for it to end" in line for line in publishers.lines)


def test_describing_while_a_download_runs_harms_neither(publishers):
    """Again and again, from the first byte to the last: the dataset is complete, its claims and receipts are whole."""
    stop, failures = threading.Event(), []

    def again_and_again():
        while not stop.is_set():
            try:
                describe(publishers, IDR, refresh=True)
            except BaseException as error:  # noqa: BLE001  # whatever it is, the test names it
                failures.append(error)

    thread = threading.Thread(target=again_and_again)
    thread.start()
    with contextlib.ExitStack() as stack:
        stack.callback(thread.join)
        stack.callback(stop.set)
        record, _ = publishers.materialize(IDR)
    assert failures == [] and record.status == "complete"
    assert publishers.red(IDR) == {}
    folder = publishers.folder(IDR)
    for path in folder.documents():
        assert folder.read_document_receipt(path).sha256 == hashlib.sha256(folder.read(path)).hexdigest()
    describe(publishers, IDR, fetch=False)
    assert {key for _, key in claimed(folder)} >= {"/0/ImageWidth", "/pages", "/title"}


def test_receipts_are_no_documents(publishers):
    """Whoever lists documents sees what publishers said, and nothing of ours."""
    describe(publishers, IDR)
    folder = publishers.folder(IDR)
    assert len(folder.documents()) == len(publishers.spec(IDR).documents)
    on_disk = list(Path(folder.uri("documents")).iterdir())
    assert len(on_disk) == 2 * len(folder.documents())
