"""The whole job without Dagster: from a publisher's server to a checked volume, and everything that can go wrong."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_assets import pipeline
from em_assets.checks.volume import BLOCKING, checks_of
from em_assets.datasets.spec import Crop
from em_assets.errors import Mismatch, Unavailable
from em_assets.progress import open_reporter
from em_assets.records import VOLUME, DatasetFolder, now, partition_key
from em_assets.store import LocalStore, open_store
from faulty import Fault, FaultyServer
from small import CROP_SHAPE, SOURCE_SHAPE, data_requests, materialize, publish, quick_settings, write_spec

SHARD = f"{VOLUME}/0/c/1/0/2"


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return folder, publish(folder)


@pytest.fixture
def origin(published):
    with FaultyServer(published[0]) as server:
        yield server


@pytest.fixture
def place(tmp_path, origin):
    """(spec, settings, the dataset's folder)."""
    spec = write_spec(tmp_path / "specs", origin.url)
    settings = quick_settings(tmp_path / "store")
    return spec, settings, DatasetFolder(open_store(settings.root), spec.name)


def published_voxels(published, box):
    """What an independent reader reads from the published files."""
    import tensorstore as ts

    from small import PATH

    volume = ts.open(
        {"driver": "neuroglancer_precomputed", "kvstore": f"file://{published[0] / PATH}/", "scale_index": 0}
    ).result()
    z, y, x = (slice(a, b) for a, b in zip(box.start, box.stop, strict=True))
    return np.asarray(volume[x, y, z, 0].read().result()).transpose(2, 1, 0)


def test_the_stored_volume_is_the_published_one(place, published):
    """Every voxel of level 0, read by tensorstore from both sides, is equal; and the record says so."""
    import tensorstore as ts

    spec, settings, folder = place
    record, result = materialize(spec, settings)
    stored = ts.open({"driver": "zarr3", "kvstore": f"file://{folder.uri(VOLUME)}/0/"}).result().read().result()
    assert stored.shape == CROP_SHAPE
    assert np.array_equal(stored, published_voxels(published, record.source_box))
    assert (record.status, record.volume_shape, record.source_shape) == ("complete", CROP_SHAPE, SOURCE_SHAPE)
    assert len(result.fetched) == 27
    assert record.additional_metadata["publisher"]["data_encoding"] == ["raw"]
    assert record.additional_metadata["publisher"]["info_content_encoding"] == "gzip"
    assert record.file_size_bytes == sum(folder.stored_sizes().values())


def test_a_second_run_asks_nobody(place, origin):
    """A complete dataset is left alone: no request, no byte written."""
    spec, settings, folder = place
    first, _ = materialize(spec, settings)
    before = origin.requests
    files = {path: path.stat().st_mtime_ns for path in Path(folder.uri(VOLUME)).rglob("*") if path.is_file()}
    second, result = materialize(spec, settings)
    assert origin.requests == before
    assert result.fetched == [] and len(result.kept) == 27
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert second.sha256 == first.sha256


def test_new_words_in_the_spec_reach_the_record(place, tmp_path, origin):
    """A corrected licence does not make another volume: the next run writes it down, and fetches nothing."""
    spec, settings, folder = place
    first, _ = materialize(spec, settings)
    corrected = write_spec(tmp_path / "specs", origin.url, license="CC0-1.0")
    second, result = materialize(corrected, settings)
    assert result.fetched == []
    assert folder.read_record() == second
    assert (second.license, second.status, second.sha256) == ("CC0-1.0", "complete", first.sha256)


def test_a_deleted_shard_comes_back_alone(place):
    """Only the missing shard is fetched, and the volume is the same as before."""
    spec, settings, folder = place
    first, _ = materialize(spec, settings)
    folder.store.delete(folder.path(SHARD))
    second, result = materialize(spec, settings)
    assert [record.key for record in result.fetched] == ["z001_y000_x002"]
    assert second.sha256 == first.sha256


def test_a_flipped_byte_is_found_and_only_its_shard_is_fetched(place):
    """Same size, same time, one bit wrong: the checksum check is red, and the next run heals just that shard."""
    spec, settings, folder = place
    first, _ = materialize(spec, settings)
    file = Path(folder.uri(SHARD))
    times = file.stat()
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    _, untouched = materialize(spec, settings)
    assert untouched.fetched == []

    outcomes, record = pipeline.recheck_dataset(spec, folder.store, BLOCKING, print)
    assert "checksums" in [outcome.name for outcome in outcomes if not outcome.passed]
    assert record.status == "error" and SHARD in record.status_reason
    healed, result = materialize(spec, settings)
    assert [r.key for r in result.fetched] == ["z001_y000_x002"]
    assert (healed.status, healed.sha256) == ("complete", first.sha256)


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    ("path", "damage"),
    [
        (SHARD, lambda data: bytes(len(data))),
        (SHARD, flip),
        (SHARD, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        (f"{VOLUME}/1/c/0/0/1", lambda data: bytes(len(data))),
        (f"{VOLUME}/zarr.json", lambda data: data.replace(b"nanometer", b"picometer")),
        (f"{VOLUME}/1/zarr.json", lambda data: data.replace(b'"fill_value": 0', b'"fill_value": 9')),
        ("manifest.parquet", lambda data: b"x" * len(data)),
        ("coverage.parquet", lambda data: b""),
    ],
    ids=["zeros", "first byte", "last byte", "coarser level", "group", "array", "manifest", "coverage"],
)
def test_whatever_is_damaged_is_found_and_healed(place, path, damage):
    """Any object of a complete dataset: red checks, then `complete` again with the same digest in one run."""
    spec, settings, folder = place
    first, _ = materialize(spec, settings)
    file = Path(folder.uri(path))
    file.write_bytes(damage(file.read_bytes()))
    outcomes, record = pipeline.recheck_dataset(spec, folder.store, BLOCKING, print)
    assert len(outcomes) == len([name for name in checks_of(spec) if name in BLOCKING])
    assert record.status == "error"
    healed, result = materialize(spec, settings)
    assert (healed.status, healed.sha256, healed.coverage_sha256) == ("complete", first.sha256, first.coverage_sha256)
    assert len(result.fetched) == (1 if path == SHARD else 0)
    outcomes, record = pipeline.recheck_dataset(spec, folder.store, BLOCKING, print)
    assert all(outcome.passed for outcome in outcomes)


def test_a_lost_record_is_made_again_from_what_is_stored(place, origin):
    """metadata.json gone: the shards' own records say where they were cut; no voxel is fetched again."""
    spec, settings, folder = place
    first, _ = materialize(spec, settings)
    folder.store.delete(folder.path("metadata.json"))
    before = data_requests(origin)
    again, result = materialize(spec, settings)
    assert (again.status, again.sha256, again.source_box) == ("complete", first.sha256, first.source_box)
    assert (result.fetched, data_requests(origin)) == ([], before)


def test_a_refusal_leaves_the_name_free(place, tmp_path, origin):
    """What was refused before the first byte may be described anew: nothing is stored that could be lost."""
    spec, settings, _ = place
    with pytest.raises(Mismatch, match="EM_ASSETS_MAX_BYTES"):
        materialize(spec, settings.model_copy(update={"max_bytes": 1_000_000}))
    smaller = write_spec(tmp_path / "specs", origin.url, crop={"shape": [40, 40, 40], "seed": 3})
    record, _ = materialize(smaller, settings)
    assert record.volume_shape == (40, 40, 40)


def test_checks_of_another_spec_do_not_touch_the_record(place, tmp_path, origin):
    """Executing checks with another seed is refused; the good volume stays `complete`."""
    spec, settings, folder = place
    materialize(spec, settings)
    other = write_spec(tmp_path / "specs", origin.url, crop={"seed": 9})
    with pytest.raises(Mismatch, match="em-assets rm small"):
        pipeline.recheck_dataset(other, folder.store, BLOCKING, print)
    assert folder.read_record().status == "complete"


@given(st.integers(0, 10**7), st.sampled_from([2.96, 0.8, 3.3, 8.0, 7.998250424861908, 4.56]))
def test_a_corner_given_in_nanometres_is_that_voxel(n, size):
    """origin_nm = n * voxel size is voxel n, whatever the rounding of the product."""
    crop = Crop(shape=(1, 1, 1), origin_nm=(n * size, 0.0, 0.0))
    assert crop.given_origin((size, size, size)) == (n, 0, 0)


def test_two_writers_without_a_lock_still_make_one_result(place, tmp_path):
    """Where locks do nothing (S3, some network file systems) the heartbeat keeps the second one away."""
    import contextlib
    import threading

    spec, settings, _ = place
    alone, _ = materialize(spec, settings)
    ends: list[str] = []

    def run():
        record, _ = materialize(spec, quick_settings(tmp_path / "unlocked"))
        ends.append(record.sha256)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.job, "dataset_lock", lambda *arguments: contextlib.nullcontext())
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ends == [alone.sha256, alone.sha256]
    record = DatasetFolder(open_store(str(tmp_path / "unlocked")), "small").read_record()
    assert (record.status, record.sha256) == ("complete", alone.sha256)


def test_a_flipped_byte_in_the_pyramid_is_remade_without_the_network(place, origin):
    """What can be computed from what is here is not fetched again."""
    spec, settings, folder = place
    first, _ = materialize(spec, settings)
    file = Path(folder.uri(f"{VOLUME}/1/c/0/0/0"))
    data = bytearray(file.read_bytes())
    data[500] ^= 1
    file.write_bytes(data)
    pipeline.recheck_dataset(spec, folder.store, BLOCKING, print)
    before = origin.requests
    healed, result = materialize(spec, settings)
    assert (healed.sha256, result.fetched, origin.requests) == (first.sha256, [], before)


def test_partial_failure_keeps_the_good_partitions(place, origin):
    """A region that cannot be read is named; the others are stored, and the next run fetches it alone."""
    spec, settings, folder = place
    origin.fail = lambda path, range_header, count: (
        Fault(status=500) if "0003.shard" in path or path.endswith("3.shard") else None
    )
    with pytest.raises(pipeline.PartitionsFailed) as failure:
        materialize(spec, settings)
    result = failure.value.result
    assert result.failures and result.fetched
    assert len(result.failures) + len(result.fetched) == 27
    assert min(result.failures) in str(failure.value)
    record = folder.read_record()
    assert record.status == "error" and "could not be fetched" in record.status_reason
    origin.fail = lambda path, range_header, count: None
    healed, again = materialize(spec, settings)
    assert {r.key for r in again.fetched} == set(result.failures)
    assert healed.status == "complete"


def test_an_unreachable_publisher_is_one_sentence(tmp_path):
    """Nobody listens: Unavailable within the time-out, the record says why, nothing is stored."""
    spec = write_spec(tmp_path / "specs", "http://127.0.0.1:9")
    settings = quick_settings(tmp_path / "store")
    started = time.monotonic()
    with pytest.raises(Unavailable) as failure:
        materialize(spec, settings)
    assert time.monotonic() - started < 10
    assert "127.0.0.1:9" in str(failure.value) and "\n" not in str(failure.value)
    record = DatasetFolder(open_store(settings.root), spec.name).read_record()
    assert (record.status, record.status_reason) == ("error", str(failure.value))


@pytest.mark.parametrize(
    "changes",
    [{"crop": {"seed": 9}}, {"crop": {"shape": [128, 128, 128]}}, {"source": {"level": 1}}],
    ids=["seed", "box", "level"],
)
def test_another_volume_under_the_same_name_is_refused(place, tmp_path, origin, changes):
    """Another seed, box or level is refused in a sentence that names both and the way out; then it starts anew."""
    spec, settings, folder = place
    first, _ = materialize(spec, settings)
    other = write_spec(tmp_path / "specs", origin.url, **changes)
    with pytest.raises(Mismatch, match=f"{spec.identity()}.*{other.identity()}.*em-assets rm small"):
        materialize(other, settings)
    assert folder.read_record() == first
    if "source" in changes:
        return
    folder.store.delete_all("small")
    second, _ = materialize(other, settings)
    assert second.status == "complete" and second.sha256 != first.sha256
    assert {r.identity for r in folder.partition_records()} == {other.identity()}


def test_the_origin_depends_on_the_seed_alone_and_is_on_the_chunk_grid(tmp_path, origin):
    """Two stores draw the same place; different seeds draw different ones; it lies on the publisher's chunk grid."""
    boxes = []
    for number, seed in enumerate([3, 3, 8, 9, 10]):
        spec = write_spec(tmp_path / str(number), origin.url, crop={"shape": [33, 34, 35], "seed": seed})
        record, _ = materialize(spec, quick_settings(tmp_path / f"store{number}"))
        boxes.append(record.source_box)
    assert boxes[0] == boxes[1]
    assert len(set(boxes)) > 1
    assert all(value % 32 == 0 for box in boxes for value in box.start)


@pytest.mark.parametrize(
    ("crop", "start"),
    [
        ({"origin": [10, 20, 30], "snap": False}, (10, 20, 30)),
        ({"origin": [40, 20, 70], "snap": True}, (32, 0, 64)),
        ({"origin_nm": [80.0, 160.0, 247.9], "snap": False}, (10, 20, 30)),
    ],
    ids=["voxels", "snapped", "nanometres"],
)
def test_a_given_origin_is_kept(tmp_path, origin, published, crop, start):
    """Voxel and physical coordinates say where the crop starts; voxels come from exactly there."""
    import zarr

    spec = write_spec(tmp_path / "specs", origin.url, crop={"shape": [50, 60, 70], "seed": None, **crop})
    record, _ = materialize(spec, quick_settings(tmp_path / "store"))
    assert record.source_box.start == start
    stored = zarr.open_array(f"{record.local_paths['volume']}/0", mode="r")[:]
    assert np.array_equal(stored, published_voxels(published, record.source_box))


def test_a_mostly_empty_draw_is_drawn_again(tmp_path):
    """The redraw looks at a coarse scale, takes the next draw of the same seed, and keeps all of them on record."""
    from small import voxels

    volume = voxels((150, 170, 600))
    volume[:, :, :450] = 0
    publish(tmp_path / "published", volume)
    redraw = {"level": 2, "min_filled_fraction": 0.9}
    with FaultyServer(tmp_path / "published") as server:
        spec = write_spec(
            tmp_path / "specs",
            server.url,
            crop={"shape": [64, 64, 64], "seed": 1, "redraw": redraw},
            expected={"source_shape": [150, 170, 600]},
        )
        record, _ = materialize(spec, quick_settings(tmp_path / "store"))
    draws = record.additional_metadata["crop"]["draws"]
    assert record.source_box.start[2] >= 440
    assert len(draws) > 1 and all(draw["filled_fraction"] < 0.9 for draw in draws[:-1])
    assert draws[-1]["origin"] == list(record.source_box.start)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expected": {"source_shape": [151, 170, 190]}}, "shape"),
        ({"expected": {"dtype": "uint16"}}, "dtype"),
        ({"expected": {"voxel_size_nm": [8.0, 8.0, 9.0]}}, "voxel size"),
    ],
    ids=["shape", "dtype", "voxel size"],
)
def test_a_publisher_that_says_otherwise_stops_the_run(tmp_path, origin, changes, words):
    """A changed publication is a Mismatch that names both values; no voxel is fetched."""
    spec = write_spec(tmp_path / "specs", origin.url, **changes)
    with pytest.raises(Mismatch, match=words):
        materialize(spec, quick_settings(tmp_path / "store"))
    assert data_requests(origin) == 0


@pytest.mark.parametrize(
    ("expected", "check"),
    [
        ({"source_shape": [151, 170, 190]}, "shape"),
        ({"sha256": "0" * 64}, "checksums"),
        ({"file_size_bytes": 1}, "checksums"),
    ],
    ids=["shape", "checksum", "size"],
)
def test_a_changed_expectation_turns_a_blocking_check_red(place, tmp_path, origin, expected, check):
    """One digit of what is expected changed after the fact: the check fails and the record becomes `error`."""
    spec, settings, folder = place
    materialize(spec, settings)
    changed = write_spec(tmp_path / "specs", origin.url, expected=expected)
    outcomes, record = pipeline.recheck_dataset(changed, folder.store, BLOCKING, print)
    assert [outcome.name for outcome in outcomes if not outcome.passed] == [check]
    assert record.status == "error"
    assert json.loads(folder.read(f"checks/{check}.json"))["passed"] is False


def test_a_foreign_folder_is_refused(place):
    """Objects that are not ours under the dataset's name stop the run, and stay as they are."""
    spec, settings, folder = place
    folder.write(f"{VOLUME}/0/c/0/0/0", b"somebody's data")
    with pytest.raises(Mismatch, match="em-assets rm small"):
        materialize(spec, settings)
    assert folder.read(f"{VOLUME}/0/c/0/0/0") == b"somebody's data"


def test_too_large_a_dataset_is_refused_with_its_plan(place, origin):
    """EM_ASSETS_MAX_BYTES stops it before anybody is asked."""
    spec, settings, _ = place
    with pytest.raises(Mismatch, match="EM_ASSETS_MAX_BYTES"):
        materialize(spec, settings.model_copy(update={"max_bytes": 1_000_000}))
    assert origin.requests == 0


def test_a_full_disk_is_refused_before_anything_is_fetched(place, origin, monkeypatch):
    """The needed and the free bytes are in the sentence."""
    spec, settings, _ = place
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: 1000)
    with pytest.raises(Mismatch, match=r"1\.0 kB"):
        materialize(spec, settings)
    assert data_requests(origin) == 0


def test_missing_chunks_are_recorded_not_black(tmp_path):
    """Chunks the publisher does not have are on record, absent in the store, and in no mean."""
    import pyarrow.parquet as pq

    from small import voxels

    volume = voxels()
    volume[32:64, 0:32, 0:64] = 0  # the writer leaves empty chunks out, as the real service does
    publish(tmp_path / "published", volume, encoding="raw")
    with FaultyServer(tmp_path / "published") as server:
        spec = write_spec(tmp_path / "specs", server.url, crop={"seed": None, "origin": [0, 0, 0]})
        record, _ = materialize(spec, quick_settings(tmp_path / "store"))
        strict = write_spec(
            tmp_path / "strict", server.url, name="strict", missing="error", crop={"seed": None, "origin": [0, 0, 0]}
        )
        with pytest.raises(pipeline.PartitionsFailed, match="z000_y000_x000"):
            materialize(strict, quick_settings(tmp_path / "store"))
    folder = DatasetFolder(open_store(str(tmp_path / "store")), "small")
    missing = [box for r in folder.partition_records() if r.level == 0 for box in r.missing]
    assert sum(box.voxels for box in missing) == 32 * 32 * 64
    assert record.status == "complete"
    assert pq.read_table(Path(record.local_paths["coverage"])).num_rows > 0
    import zarr

    coarse = zarr.open_array(f"{record.local_paths['volume']}/1", mode="r")[:]
    assert coarse[:16, :16, :32].min() > 0  # beside the hole: not darkened by it
    assert (coarse[16:32, :16, :32] == 0).all()


def test_a_publisher_that_has_nothing_of_the_volume_is_an_error(place, origin):
    """Everything but `info` answers 404: not a complete black volume, and the next run asks again."""
    spec, settings, folder = place
    origin.fail = lambda path, range_header, count: None if path.endswith("/info") else Fault(status=404)
    with pytest.raises(Mismatch, match="has none of the chunks"):
        materialize(spec, settings)
    assert folder.read_record().status == "error"
    origin.fail = lambda path, range_header, count: None
    assert materialize(spec, settings)[0].status == "complete"


CHILD = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from small import materialize, quick_settings
from em_assets.datasets.loading import load_spec
materialize(load_spec(Path({spec!r})), quick_settings({root!r}, unreachable_seconds=5.0))
"""


def child(spec_file: Path, root: Path) -> subprocess.Popen:
    here = Path(__file__).parent
    code = CHILD.format(path=[str(here), str(here.parent)], spec=str(spec_file), root=str(root))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize("moments", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_next_run_finishes(place, tmp_path, origin, moments):
    """SIGKILL at random moments: the result is byte for byte that of an undisturbed run, without leftovers."""
    spec, settings, _ = place
    undisturbed, _ = materialize(spec, settings)
    root = tmp_path / "killed"
    # as slow as a network, so that the kills fall into the work and not into the start of Python
    origin.fail = lambda path, range_header, count: Fault(stall_seconds=0.02, stall_after=-1)
    started = time.monotonic()
    process = child(tmp_path / "specs" / "small.yaml", tmp_path / "whole")
    assert process.wait() == 0, process.stderr.read().decode()
    process.stderr.close()
    whole = time.monotonic() - started
    generator = random.Random(7)
    killed = 0
    for _ in range(moments):
        process = child(tmp_path / "specs" / "small.yaml", root)
        try:
            process.wait(timeout=generator.uniform(0.2, 1.0) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stderr.close()
        record = DatasetFolder(open_store(str(root)), "small").read_record()
        if record is not None and record.visible_status != "complete":
            assert record.visible_status == "interrupted"
        if generator.random() < 0.5:  # start over now and then, so that early moments are hit too
            LocalStore(root).delete_all("small")
    assert killed >= moments // 2
    origin.fail = lambda path, range_header, count: None
    record, _ = materialize(spec, quick_settings(root))
    assert (record.status, record.sha256) == ("complete", undisturbed.sha256)
    assert not list(root.rglob("*.em-partial"))


@pytest.mark.parametrize("times", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_two_processes_at_once_make_one_result(place, tmp_path, times):
    """Two processes, several times: both succeed each time, and the bytes are those of one run."""
    spec, settings, _ = place
    alone, _ = materialize(spec, settings)
    for number in range(times):
        root = tmp_path / f"shared{number}"
        processes = [child(tmp_path / "specs" / "small.yaml", root) for _ in range(2)]
        for process in processes:
            assert process.wait(timeout=120) == 0, process.stderr.read().decode()
            process.stderr.close()
        record = DatasetFolder(open_store(str(root)), "small").read_record()
        assert (record.status, record.sha256) == ("complete", alone.sha256)


HALF = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from small import quick_settings
from em_assets import pipeline
from em_assets.datasets.loading import load_spec
from em_assets.progress import open_reporter
from em_assets.records import partition_key
from em_assets.store import open_store
spec, settings = load_spec(Path({spec!r})), quick_settings({root!r}, unreachable_seconds=5.0)
keys = [partition_key(index) for index in spec.shard_indices()][{start}::2]
pipeline.fetch_dataset_partitions(
    spec, settings, open_store(settings.root), keys, reporter=open_reporter(print, label="half", show="off"), log=print
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["local", "s3"])
def test_two_processes_write_neighbouring_regions(place, tmp_path, request, where):
    """Every other region by one run, the rest by another, at once, on disk and on S3: no region is lost."""
    spec, settings, _ = place
    alone, _ = materialize(spec, settings)
    root = str(tmp_path / "both") if where == "local" else request.getfixturevalue("moto_s3")
    here = Path(__file__).parent
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                HALF.format(
                    path=[str(here), str(here.parent)], spec=str(tmp_path / "specs/small.yaml"), root=root, start=start
                ),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for start in (0, 1)
    ]
    for process in processes:
        assert process.wait(timeout=120) == 0, process.stderr.read().decode()
        process.stderr.close()
    record, result = materialize(spec, settings.model_copy(update={"root": root}))
    assert (result.fetched, record.sha256) == ([], alone.sha256)


def test_neighbouring_regions_need_no_lock(place, tmp_path):
    """Regions are whole shards: writers side by side, with nothing between them, never touch one object."""
    import contextlib
    import threading

    spec, settings, _ = place
    alone, _ = materialize(spec, settings)
    store = LocalStore(tmp_path / "neighbours")
    keys = [partition_key(index) for index in spec.shard_indices()]
    errors: list[Exception] = []

    def run(mine):
        reporter = open_reporter(lambda line: None, label="x")
        try:
            pipeline.fetch_dataset_partitions(spec, settings, store, mine, reporter=reporter, log=lambda line: None)
        except Exception as error:  # noqa: BLE001  # a thread's error must reach the test
            errors.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.job, "dataset_lock", lambda *arguments: contextlib.nullcontext())
        patch.setattr(pipeline.job, "wait_for_writer", lambda *arguments: None)
        patch.setattr(pipeline.job.Job, "_require_claim", lambda self: None)
        threads = [threading.Thread(target=run, args=(keys[start::2],)) for start in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    record, result = materialize(spec, settings.model_copy(update={"root": store.root}), store)
    assert (result.fetched, record.sha256) == ([], alone.sha256)


def test_local_and_s3_stores_get_the_same_bytes(tmp_path, origin, moto_s3):
    """The digest of the manifest does not depend on where the volume lies."""
    spec = write_spec(tmp_path / "specs", origin.url, output={"shard": [128, 128, 128]})  # eight shards say as much
    settings = quick_settings(tmp_path / "store")
    local, _ = materialize(spec, settings)
    remote, _ = materialize(spec, settings.model_copy(update={"root": moto_s3}))
    assert (remote.status, remote.sha256, remote.file_size_bytes) == ("complete", local.sha256, local.file_size_bytes)
    again, result = materialize(spec, settings.model_copy(update={"root": moto_s3}))
    assert (again.sha256, result.fetched) == (local.sha256, [])


def test_a_second_dataset_is_a_yaml_only(tmp_path, realdata):
    """A raw, unsharded volume with a voxel offset and other voxel sizes, written by tensorstore from real FIB-SEM."""
    import tensorstore as ts
    import zarr

    folder = realdata / "precomputed" / "gen_ts_fib25_raw"
    with FaultyServer(folder) as server:
        spec = write_spec(
            tmp_path / "specs",
            server.url,
            name="fib25",
            source={"url": server.url},
            crop={"shape": [40, 180, 250], "seed": 1},
            expected={"source_shape": [40, 180, 250], "voxel_size_nm": [10.0, 10.0, 10.0]},
        )
        record, _ = materialize(spec, quick_settings(tmp_path / "store"))
    assert record.source_box.start == (2600, 200, 100)
    stored = zarr.open_array(f"{record.local_paths['volume']}/0", mode="r")[:]
    source = ts.open({"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}/"}).result()
    assert np.array_equal(stored, np.asarray(source[..., 0].read().result()).transpose(2, 1, 0))
    group = json.loads(Path(record.local_paths["volume"], "zarr.json").read_text())
    transforms = group["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert transforms[1]["translation"] == [26005.0, 2005.0, 1005.0]


def test_digests_in_the_records_are_those_of_the_files(place):
    """An independent walk over the store agrees with the records and the manifest."""
    import pyarrow.parquet as pq

    spec, settings, folder = place
    record, _ = materialize(spec, settings)
    manifest = {row["path"]: row for row in pq.read_table(Path(record.local_paths["manifest"])).to_pylist()}
    files = {path: (folder.store.local_path(folder.path(path))).read_bytes() for path in folder.stored_sizes()}
    assert set(manifest) == set(files)
    for path, data in files.items():
        assert manifest[path]["sha256"] == hashlib.sha256(data).hexdigest()
        assert manifest[path]["size_bytes"] == len(data)
    assert record.timestamp <= now()


def test_the_whole_job_on_real_fib_sem_voxels(tmp_path, realdata):
    """The sample origin cut from a real FIB-SEM stack: stored is the tissue, but for JPEG."""
    import zarr
    from PIL import Image

    from em_assets.datasets.loading import load_spec
    from em_assets.sample import origin as sample

    slices = realdata / "fibsem" / "fib_medulla_training_sample2" / "grayscale_maps"
    if not slices.is_dir():
        pytest.skip(f"no FIB-SEM slices at {slices}")
    sample.up(tmp_path / "sample", volume=slices)
    try:
        spec = load_spec(tmp_path / "sample" / "datasets" / "hemibrain_crop.yaml")
        assert spec.title.startswith("SAMPLE")
        record, _ = materialize(spec, quick_settings(tmp_path / "store"))
    finally:
        sample.down(tmp_path / "sample")
    stored = zarr.open_array(f"{record.local_paths['volume']}/0", mode="r")[:]
    stack = np.stack([np.asarray(Image.open(file)) for file in sorted(slices.glob("*.png"))])
    tissue = stack[record.source_box.slices]
    assert stored.shape == tissue.shape
    difference = np.abs(stored.astype(int) - tissue.astype(int))
    assert difference.mean() < 4
    assert np.corrcoef(stored.ravel(), tissue.ravel())[0, 1] > 0.97
