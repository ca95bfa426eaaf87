"""The records of a store: what is written is read, what is damaged is named, and who is believed to be writing."""

import json
import math
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from em_assets.errors import Malformed
from em_assets.records import (
    HEARTBEAT_STALE_AFTER,
    Comparison,
    DatasetFolder,
    DatasetRecord,
    Heartbeat,
    PartitionRecord,
    StoredObject,
    VoxelStatistics,
    is_intact,
    manifest_digest,
    now,
    partition_key,
)
from em_assets.store import LocalStore
from em_assets.volume import Box, add

ELSEWHERE = f"not-{socket.gethostname()}"
whole = st.integers(-(2**40), 2**40)
triples = st.tuples(whole, whole, whole)
sizes = st.integers(0, 2**50)
times = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7)), timezone(timedelta(hours=5.5))]))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
floats = st.floats(allow_nan=True, allow_infinity=True)
boxes = st.builds(lambda start, shape: Box(start, add(start, shape)), triples, st.tuples(*[st.integers(0, 2**20)] * 3))
objects = st.builds(
    StoredObject, path=texts, size_bytes=sizes, sha256=st.text("0123456789abcdef", min_size=64, max_size=64)
)
statistics = st.builds(
    VoxelStatistics,
    voxels=sizes,
    minimum=floats,
    maximum=floats,
    mean=floats,
    standard_deviation=floats,
    zero_fraction=floats,
    saturated_fraction=floats,
)
partition_records = st.builds(
    PartitionRecord,
    key=st.tuples(*[st.integers(0, 2000)] * 3).map(partition_key),
    level=st.integers(0, 9),
    box=boxes,
    objects=st.lists(objects, max_size=2).map(tuple),
    identity=texts,
    missing=st.lists(boxes, max_size=3).map(tuple),
    inputs=st.lists(texts, max_size=3).map(tuple),
    source_url=st.none() | texts,
    source_box=st.none() | boxes,
    received_bytes=sizes,
    seconds=st.floats(0, 1e9),
    written_at=times,
    tool=texts,
    comparison=st.none() | st.builds(Comparison, compared_voxels=sizes, different_voxels=sizes, compared_at=times),
    statistics=st.none() | statistics,
)


def dataset_record(**changes) -> DatasetRecord:
    values = {
        "name": "small",
        "source": "drawer",
        "source_id": "vol/1",
        "title": "Small",
        "description": "Drawn für Tests \u00b5m",
        "volume_shape": (1, 2, 3),
        "voxel_size_nm": (8.0, 7.998250424861908, 2.96),
        "dtype": "uint8",
        "license": "CC0-1.0",
        "citation": "Nobody.",
        "doi": "10.1234/x",
        "page_url": "https://example.org",
        "download_url": "https://example.org/x",
        "local_paths": {"volume": "/x/volume.ome.zarr"},
        "status": "complete",
        "timestamp": now(),
        "identity": "0" * 16,
    }
    return DatasetRecord(**(values | changes))


def partition_record(**changes) -> PartitionRecord:
    values = {
        "key": "z000_y000_x000",
        "level": 0,
        "box": Box((0, 0, 0), (4, 5, 6)),
        "objects": (StoredObject(path="volume.ome.zarr/0/c/0/0/0", size_bytes=3, sha256="a" * 64),),
        "identity": "0" * 16,
        "written_at": now(),
        "tool": "em_assets 0.1.0",
    }
    return PartitionRecord(**(values | changes))


@pytest.fixture
def folder(tmp_path):
    return DatasetFolder(LocalStore(tmp_path), "small")


def same(a, b):
    """Equality in which NaN is NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


@settings(max_examples=80, deadline=None)
@given(partition_records)
def test_a_partition_record_comes_back(record):
    """To JSON and back is the same record: boxes, times in any zone, NaN and infinity included."""
    text = record.model_dump_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert same(PartitionRecord.model_validate_json(text).model_dump(), record.model_dump())


def test_records_come_back_from_the_store(folder):
    """What is written is read, each level in its own place."""
    fine = [partition_record(key=partition_key((0, 0, n))) for n in (1, 0)]
    coarse = partition_record(level=1, inputs=("a" * 64, "-"))
    for record in (*fine, coarse):
        folder.write_partition_record(record)
    assert set(folder.partition_records()) == {*fine, coarse}
    assert (folder.store.local_path("small") / folder.record_path(1, coarse.key)).is_file()
    folder.delete_partition_record(1, coarse.key)
    folder.delete_partition_record(1, coarse.key)
    assert set(folder.partition_records()) == set(fine)


def test_a_dataset_record_comes_back(folder):
    """The record with everything in it, and the one with nothing that may be unknown."""
    assert folder.read_record() is None
    rich = dataset_record(
        source_box=Box((-3, 0, 1), (4, 5, 6)),
        source_shape=(41394, 39725, 34427),
        heartbeat=Heartbeat.now(),
        status="saving-data",
        additional_metadata={"draws": [{"origin": [1, 2, 3], "filled_fraction": 0.25}], "none": None},
    )
    poor = dataset_record(volume_shape=None, voxel_size_nm=None, dtype=None, status="listed")
    for record in (rich, poor):
        folder.write_record(record)
        assert folder.read_record() == record


def test_a_box_is_plain_lists_in_json():
    """Other programs read a box as `[[z, y, x], [z, y, x]]`."""
    assert json.loads(partition_record().model_dump_json())["box"] == [[0, 0, 0], [4, 5, 6]]


@pytest.mark.parametrize(
    "box",
    [
        None,
        5,
        "box",
        [],
        [[0, 0, 0]],
        [[0, 0, 0], [1, 1]],
        [[0, 0, 0], [1, 1, 1.5]],
        [[0, 0, 0], [1, 1, "1"]],
        [[1, 1, 1], [0, 0, 0]],
        [[0, 0, 0], [1, 1, 1], [2, 2, 2]],
        {"start": [0, 0, 0]},
        [0, 0],
    ],
)
def test_a_damaged_box_is_refused(box):
    """Nothing but three whole numbers twice becomes a box; nothing is rounded."""
    document = json.loads(partition_record().model_dump_json()) | {"box": box}
    with pytest.raises(ValidationError):
        PartitionRecord.model_validate_json(json.dumps(document))


GOOD = dataset_record().model_dump_json()
DAMAGE = {
    "empty": b"",
    "zeros": b"\0" * 500,
    "cut": GOOD[: len(GOOD) // 2].encode(),
    "not UTF-8": GOOD.encode().replace("für".encode(), b"f\xfcr"),
    "HTML": b"<html><body>502</body></html>",
    "a list": b"[]",
    "null": b"null",
    "brackets": b"[" * 100_000,
    "another document": partition_record().model_dump_json().encode(),
    "unknown key": GOOD.replace('"name"', '"colour":"red","name"', 1).encode(),
    "missing key": GOOD.replace('"identity"', '"identitx"', 1).encode(),
    "unknown status": GOOD.replace('"complete"', '"finished"', 1).encode(),
    "time without zone": json.dumps(json.loads(GOOD) | {"timestamp": "2026-01-01T00:00:00"}).encode(),
    "heartbeat of nobody": json.dumps(
        json.loads(GOOD) | {"heartbeat": {"host": "h", "pid": -1, "at": "2026-01-01T00:00:00Z"}}
    ).encode(),
    "shape of two": json.dumps(json.loads(GOOD) | {"volume_shape": [1, 2]}).encode(),
}


@pytest.mark.parametrize("raw", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_is_named(folder, raw):
    """A metadata.json that is none is Malformed in one sentence: which file, what is wrong, what to do."""
    folder.store.write("small/metadata.json", raw)
    with pytest.raises(Malformed) as caught:
        folder.read_record()
    message = str(caught.value)
    assert message.startswith(f"{folder.uri('metadata.json')} is not a DatasetRecord (")
    assert message.endswith("remove it and run again.")
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("raw", [*DAMAGE.values(), GOOD.encode()], ids=[*DAMAGE, "a dataset's record"])
def test_a_damaged_partition_record_counts_as_absent(folder, raw):
    """Its shard is made again; the others are kept."""
    if raw == DAMAGE["another document"]:
        raw = raw.replace(b'"key"', b'"kex"')
    folder.write_partition_record(partition_record(key="z000_y000_x001"))
    folder.store.write("small/records/z000_y000_x000.json", raw)
    folder.store.write("small/records/README.txt", b"not a record")
    assert [record.key for record in folder.partition_records()] == ["z000_y000_x001"]


@pytest.mark.parametrize("cut", range(0, len(GOOD), 37))
def test_a_record_cut_anywhere_is_damaged(folder, cut):
    """No part of a record passes as a record."""
    folder.store.write("small/metadata.json", GOOD[:cut].encode())
    with pytest.raises(Malformed):
        folder.read_record()


# Who is writing.


def ended_pid():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.parametrize(
    ("host", "pid", "age", "visible"),
    [
        ("here", "own", timedelta(0), "saving-data"),
        ("here", "own", timedelta(days=3), "saving-data"),
        ("here", "ended", timedelta(0), "interrupted"),
        ("here", "ended", -timedelta(days=9999), "interrupted"),
        ("here", 2**70, timedelta(0), "interrupted"),
        ("elsewhere", 1, timedelta(0), "saving-data"),
        ("elsewhere", 1, HEARTBEAT_STALE_AFTER * 0.5, "saving-data"),
        ("elsewhere", 1, HEARTBEAT_STALE_AFTER * 2, "interrupted"),
        ("elsewhere", 1, -timedelta(hours=14), "saving-data"),
        ("elsewhere", 1, -timedelta(days=9999), "interrupted"),
    ],
    ids=[
        "alive",
        "alive and silent",
        "dead",
        "dead in the future",
        "impossible",
        "fresh elsewhere",
        "quiet elsewhere",
        "silent elsewhere",
        "another zone's clock",
        "broken clock",
    ],
)
def test_a_reader_sees_whether_the_writer_lives(host, pid, age, visible):
    """On this machine the process decides, elsewhere its last sign; one far in the future proves nothing (F36)."""
    heartbeat = Heartbeat(
        host=socket.gethostname() if host == "here" else ELSEWHERE,
        pid={"own": os.getpid(), "ended": ended_pid()}.get(pid, pid),
        at=datetime.now(UTC) - age,
    )
    record = dataset_record(status="saving-data", heartbeat=heartbeat)
    assert record.visible_status == visible
    assert DatasetRecord.model_validate_json(record.model_dump_json()).visible_status == visible


def test_saving_without_a_sign_of_life_is_interrupted():
    """A record that says `saving-data` and not by whom is believed to be nobody's."""
    assert dataset_record(status="saving-data").visible_status == "interrupted"


@pytest.mark.parametrize("status", ["listed", "interrupted", "complete", "error"])
def test_a_finished_record_says_what_it_says(status):
    """A dead writer matters only while data is being saved; an old or a future time changes nothing."""
    heartbeat = Heartbeat(host=ELSEWHERE, pid=1, at=datetime(1970, 1, 1, tzinfo=UTC))
    for year in (1970, 2999):
        record = dataset_record(status=status, heartbeat=heartbeat, timestamp=datetime(year, 1, 1, tzinfo=UTC))
        assert record.visible_status == status


def test_a_status_stamps_the_time_and_the_writer():
    """Only a record of data being saved names its writer; a reason stays until the next status."""
    record = dataset_record(status="listed", timestamp=datetime(1970, 1, 1, tzinfo=UTC))
    saving = record.with_status("saving-data")
    assert saving.heartbeat.pid == os.getpid()
    assert now() - saving.timestamp < timedelta(seconds=5)
    failed = saving.with_status("error", "no answer")
    assert (failed.heartbeat, failed.status_reason) == (None, "no answer")
    assert failed.with_status("complete", file_size_bytes=7).status_reason is None
    assert record.status == "listed"


@pytest.mark.parametrize("changes", [{"file_size": 7}, {"volume_shape": (1, 2)}, {"source_box": "everywhere"}])
def test_a_status_takes_only_what_a_record_holds(changes):
    """A misspelt field or a wrong value is an error here, not a record that nobody can read."""
    with pytest.raises(ValidationError):
        dataset_record().with_status("complete", **changes)


# What is stored.


@pytest.mark.parametrize(
    "data",
    [b"", b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(np.arange(6, dtype="<u2"))],
    ids=["empty", "bytes", "bytearray", "view", "view of uint16"],
)
def test_what_is_written_is_described(folder, data):
    """Size and digest are those of the file, in bytes, whatever the buffer counted in."""
    stored = folder.write("volume.ome.zarr/0/c/0/0/0", data)
    raw = folder.read(stored.path)
    assert raw == bytes(data)
    assert stored.size_bytes == len(raw)
    assert stored == StoredObject(path=stored.path, size_bytes=len(raw), sha256=stored.sha256)
    assert folder.stored_sizes() == {stored.path: len(raw)}


@pytest.mark.parametrize(
    ("found", "intact"), [({"a": 3}, True), ({"a": 3, "b": 9}, True), ({"a": 2}, False), ({"b": 3}, False), ({}, False)]
)
def test_intact_is_there_in_its_size(found, intact):
    """An object that is absent or of another size is to be made again."""
    record = partition_record(objects=(StoredObject(path="a", size_bytes=3, sha256="0" * 64),))
    assert is_intact(record, found) is intact


def test_a_partition_without_objects_is_intact():
    """Where the publisher has nothing, nothing can be lost."""
    assert is_intact(partition_record(objects=()), {})


@settings(deadline=None)
@given(st.lists(objects, unique_by=lambda o: o.path, min_size=1, max_size=8), st.randoms())
def test_the_digest_is_of_the_content(stored, random):
    """The order does not matter; any other path, size or sha256 gives another digest."""
    digest = manifest_digest(stored)
    shuffled = stored.copy()
    random.shuffle(shuffled)
    assert manifest_digest(shuffled) == digest
    first, *rest = stored
    for other in (
        first.model_copy(update={"size_bytes": first.size_bytes + 1}),
        first.model_copy(update={"sha256": "0" * 63 + ("1" if first.sha256[-1] != "1" else "2")}),
        first.model_copy(update={"path": first.path + "x"}),
    ):
        assert manifest_digest([other, *rest]) != digest
    assert manifest_digest(rest) != digest


def test_the_digest_is_the_same_next_year():
    """The digest is published: it must not change with the code."""
    stored = StoredObject(path="volume.ome.zarr/zarr.json", size_bytes=3, sha256="a" * 64)
    assert manifest_digest([stored]) == "443fa7979a178dcf65469587a14341016a8a09bd71f1bbc11f8b93ca5441a8ac"


def test_times_are_of_one_zone():
    """Every stamp is UTC, to the second."""
    assert now().tzinfo == UTC
    assert now().microsecond == 0
