"""A dataset that is not downloaded reads as it will when it is: voxels, missing parts, place. Each byte comes once."""

import gzip
import multiprocessing
import os
import pickle
import random
import threading
import time
import tracemalloc

import numpy as np
import pytest
import yaml

import em_assets.blocks as em
from em_assets.blocks._publisher import published_volume
from em_assets.datasets.loading import load_spec
from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.formats import _raw_array
from em_assets.records import DatasetFolder
from em_assets.sample.dm3 import dm3_bytes
from em_assets.sample.sbfsem import slice_tags
from em_assets.settings import PACKAGED_DATASETS
from em_assets.store import open_store
from em_assets.volume import Box
from faulty import Fault, FaultyServer
from published import EMPIAR, EPFL, IDR, JRC, ODD, Publishers, write_once
from small import CROP_SHAPE, SOURCE_SHAPE, data_requests, materialize, publish, quick_settings, voxels, write_spec
from test_dm import DmWriter, document, image, ramp
from test_mrc import IMOD, packed
from test_sparse_zarr import WRITERS, some_cells, spec_of, write_v2

SLICES = [f"slice_{number}.dm3" for number in range(4)]
SLICES_SHAPE = (4, 600, 3000)
SLICE_NM = (50.0, 7.998250424861908, 7.998250424861908)
HEADER_REQUESTS = 5
"""Of one DM3 file, at most: its size, and the blocks that hold tags before, between and after its two images."""


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks_published")
    publish(folder)
    return folder


@pytest.fixture
def server(published):
    with FaultyServer(published) as running:
        yield running


@pytest.fixture
def publishers(tmp_path, tmp_path_factory):
    with Publishers(write_once(tmp_path_factory.getbasetemp()), tmp_path) as running:
        yield running


def settings_of(tmp_path, **changes):
    """An empty store, and a cache that no other test has filled."""
    return quick_settings(tmp_path / "store", cache=tmp_path / "cache", **changes)


def boxes_of(shape, seed=1, count=6):
    """All of the volume, its first and last voxel, and boxes of any size and place."""
    dice = random.Random(seed)
    yield Box.from_shape(shape)
    yield Box.from_shape((1, 1, 1))
    yield Box.from_shape((1, 1, 1), at=tuple(n - 1 for n in shape))
    for _ in range(count):
        start = tuple(dice.randrange(n) for n in shape)
        yield Box(start, tuple(dice.randrange(a, n) + 1 for a, n in zip(start, shape, strict=True)))


def require_equal(volume, stored):
    """Everything that both say of themselves, and of any block."""
    assert (volume.name, volume.dtype, volume.content) == (stored.name, stored.dtype, stored.content)
    assert volume.levels[0].grid == stored.levels[0].grid  # to the last digit
    for box in boxes_of(stored.shape):
        ours, theirs = (one.read(box.start, shape=box.shape, missing="mask") for one in (volume, stored))
        np.testing.assert_array_equal(ours.data, theirs.data)
        assert (ours.valid is None) == (theirs.valid is None)
        if theirs.valid is not None:
            np.testing.assert_array_equal(ours.valid, theirs.valid)
        assert (ours.digest, ours.box_nm) == (theirs.digest, theirs.box_nm)


def site_of(tmp_path):
    (tmp_path / "site").mkdir()
    return FaultyServer(tmp_path / "site")


def files_spec(server, paths, shape, dtype, size_nm, *, axes="zyx", pinned=True, **source):
    """Of a dataset that is these files, by name."""
    document = yaml.safe_load((PACKAGED_DATASETS / f"{EMPIAR}.yaml").read_text())
    sizes = {path: {"size_bytes": (server.folder / path).stat().st_size} if pinned else {} for path in paths}
    document |= {
        "name": "series",
        "claims": [],
        "documents": [],
        "notes": {},
        "source": {
            "kind": "files",
            "url": server.url,
            "files": [{"path": path, **sizes[path]} for path in paths],
            "volume": {"files": list(paths), "axes": axes},
            **source,
        },
        "expected": {"source_shape": list(shape), "dtype": dtype, "voxel_size_nm": list(size_nm)},
        "output": {"shard": [64, 64, 64], "chunk": [32, 32, 32]},
    }
    folder = server.folder.parent / "specs"
    folder.mkdir(exist_ok=True)
    file = folder / "series.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return load_spec(file)


def write_files(folder, pattern, voxels):
    """One file, or three of equal parts along the first axis. Returns their names."""
    if pattern.endswith(".dm4"):
        tree = document(image(voxels, (np.float64(0.8),) * 3, ("nm",) * 3), sources=(0,), thumbnails=())
        (folder / pattern).write_bytes(DmWriter(version=4).file(tree))
        return [pattern]
    paths = [pattern.replace("{1..3}", str(n)) for n in (1, 2, 3)] if "{" in pattern else [pattern]
    unsigned = {"imod_flags": 0, **IMOD} if voxels.dtype == np.uint8 else {}
    for path, part in zip(paths, np.split(voxels, len(paths)), strict=True):
        (folder / path).write_bytes(packed(part, **unsigned))
    return paths


def slice_bytes(number, seed=1, thumbnail=100):
    """A DM3 file of one slice, and its voxels; the thumbnail before them decides where they begin."""
    drawn = np.random.default_rng((seed, number)).integers(0, 255, SLICES_SHAPE[1:]).astype(np.uint8)
    return dm3_bytes(slice_tags(number, drawn, np.zeros((thumbnail, thumbnail, 4), np.uint8))), drawn


@pytest.fixture(scope="module")
def slices():
    """Files by name that are larger than what is read for their headers, and the voxels."""
    bodies, voxels = zip(*map(slice_bytes, range(len(SLICES))), strict=True)
    return dict(zip(SLICES, bodies, strict=True)), np.stack(voxels)


@pytest.fixture
def series(tmp_path, slices):
    """A server of these files, which may change."""
    with site_of(tmp_path) as server:
        for name, body in slices[0].items():
            (server.folder / name).write_bytes(body)
        yield server


def series_spec(server, **changes):
    return files_spec(server, SLICES, SLICES_SHAPE, "uint8", SLICE_NM, **changes)


def series_volume(server, tmp_path, *, pinned=True, **changes):
    """The volume that these files are."""
    return published_volume(series_spec(server, pinned=pinned), None, settings_of(tmp_path, **changes))


def asked_since(server, before):
    """(file, bytes) of each request."""
    asked = ((path, header.removeprefix("bytes=").split("-")) for _, path, header in list(server.log)[before:])
    return [(path.strip("/"), int(last) - int(first) + 1) for path, (first, last) in asked]


# -- the law


@pytest.mark.parametrize(
    "crop",
    [
        pytest.param({"shape": list(CROP_SHAPE), "seed": 3}, id="drawn, on the chunk grid"),
        pytest.param({"shape": [70, 50, 60], "origin": [7, 33, 64]}, id="given, off the chunk grid"),
        pytest.param({"shape": [70, 50, 60], "origin_nm": [80.0, 90.5, 700.0], "snap": True}, id="in nanometres"),
    ],
)
def test_a_precomputed_volume_reads_as_it_will_be_stored(tmp_path, server, crop):
    """Wherever its crop lies: the place is the one that the download takes later."""
    spec = write_spec(tmp_path / "specs", server.url, crop={"seed": None, **crop})
    settings = settings_of(tmp_path, datasets=str(tmp_path / "specs"))
    volume = em.open(spec.name, settings=settings)
    assert not (tmp_path / "store").exists()
    materialize(spec, settings)
    require_equal(volume, em.open(spec.name, settings=settings))


def test_a_crop_that_is_drawn_again_is_drawn_alike(tmp_path):
    """By the same coarse level, so it lies where the download's will."""
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
        settings = settings_of(tmp_path)
        volume = published_volume(spec, None, settings)
        before = data_requests(server)
        published_volume(spec, None, settings)
        assert data_requests(server) == before  # what the draws were judged by was kept
        record, _ = materialize(spec, settings)
        assert record.source_box.start[2] >= 440
        require_equal(volume, em.open(spec.name, settings=settings))


@pytest.mark.parametrize(
    ("name", "sub"),
    [
        pytest.param(JRC, None, id="zarr"),
        pytest.param(JRC, "nuc", id="labels in zarr"),
        pytest.param(IDR, None, id="tiff"),
        pytest.param(EPFL, None, id="large tiff"),
        pytest.param(EPFL, "training", id="a further tiff"),
        pytest.param(ODD, None, id="odd tiff"),
        pytest.param(ODD, "labels", id="labels in a tiff"),
        pytest.param(EMPIAR, None, id="series of dm3"),
    ],
)
def test_other_publishers_read_as_they_will_be_stored(publishers, tmp_path, name, sub):
    """The main volume and further ones, of containers and of files that are read in parts."""
    settings = publishers.settings.model_copy(update={"cache": tmp_path / "cache"})
    volume = published_volume(publishers.spec(name), sub, settings)
    publishers.finished(name)
    require_equal(volume, em.open(name if sub is None else f"{name}/{sub}", settings=settings))


@pytest.mark.parametrize(
    ("files", "axes", "voxels"),
    [
        pytest.param("volume.mrc", "zyx", ramp(9, 40, 50, dtype="int16"), id="mrc"),
        pytest.param("volume.dm4", "zyx", ramp(9, 40, 50, dtype="uint16"), id="dm4"),
        pytest.param("slab_{1..3}.mrc", "yzx", ramp(6, 30, 40), id="series of mrc, planes of y"),
    ],
)
def test_files_of_other_formats_read_as_they_will_be_stored(tmp_path, files, axes, voxels):
    """One that has all voxels, or several that have two planes each, along whichever axis these follow one another."""
    with site_of(tmp_path) as server:
        paths = write_files(server.folder, files, voxels)
        shape = [voxels.shape[axes.index(axis)] for axis in "zyx"]
        spec = files_spec(server, paths, shape, str(voxels.dtype), [0.8] * 3, axes=axes)
        settings = settings_of(tmp_path)
        volume = published_volume(spec, None, settings)
        turned = voxels.transpose([axes.index(axis) for axis in "zyx"])
        for box in boxes_of(shape):
            np.testing.assert_array_equal(volume.read(box.start, shape=box.shape).data, turned[box.slices])
        materialize(spec, settings)
        require_equal(volume, em.open(spec.name, settings=settings))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["record", "fill"])
@pytest.mark.parametrize("form", WRITERS)
def test_what_is_missing_is_missing_alike(tmp_path, form, policy):
    """Voxel by voxel, in blocks that cut the publisher's chunks; or the fill value, where the spec takes that."""
    (tmp_path / "site").mkdir()
    with FaultyServer(tmp_path / "site") as server:
        WRITERS[form](server.folder / "em", some_cells(1))
        crop = {"shape": [20, 50, 40], "origin": [3, 5, 7], "snap": False}
        spec = spec_of(server.url, form, missing=policy, crop=crop)
        settings = settings_of(tmp_path)
        volume = published_volume(spec, None, settings)
        materialize(spec, settings)
        require_equal(volume, em.open(spec.name, settings=settings))
        whole = volume.read((0, 0, 0), shape=volume.shape, missing="mask")
        assert (whole.valid is None) == (policy == "fill")
        before = server.requests
        volume.read((0, 0, 0), shape=volume.shape, missing="mask")
        assert server.requests == before  # nor is the server asked again for what it does not have


def test_a_missing_chunk_is_an_error_unless_asked_for(tmp_path):
    """As for a stored volume: the sentence names the box. Where the spec allows none, it is an error always."""
    (tmp_path / "site").mkdir()
    with FaultyServer(tmp_path / "site") as server:
        write_v2(server.folder / "em", [(0, 0, 0), (0, 0, 1)])
        volume = published_volume(spec_of(server.url), None, settings_of(tmp_path))
        assert volume.read((0, 0, 0), shape=(8, 8, 16)).valid is None
        with pytest.raises(Mismatch, match="0:8, 0:8, 16:20"):
            volume.read((0, 0, 0), shape=(8, 8, 20))
        strict = published_volume(spec_of(server.url, missing="error"), None, settings_of(tmp_path))
        assert strict.read((0, 0, 0), shape=(8, 8, 16)).valid is None
        with pytest.raises(Mismatch, match=r"has no data in 1 chunks .*`missing: error`"):
            strict.read((0, 0, 0), shape=(8, 8, 20), missing="mask")


# -- what it costs


def test_the_second_read_asks_for_no_data(tmp_path, server):
    """Another process's volume of the same cache: not one request. A block beside it costs what is new in it."""
    spec, settings = write_spec(tmp_path / "specs", server.url), settings_of(tmp_path)
    first = published_volume(spec, None, settings).read((10, 20, 30), shape=64)
    before = server.requests
    second = published_volume(spec, None, settings).read((10, 20, 30), shape=64)
    assert (second.digest, server.requests) == (first.digest, before)
    sent = server.bytes_sent
    published_volume(spec, None, settings).read((10, 20, 40), shape=64)
    beside = server.bytes_sent - sent
    with FaultyServer(server.folder) as other:
        elsewhere = write_spec(tmp_path / "specs", other.url)
        published_volume(elsewhere, None, settings_of(tmp_path / "other")).read((10, 20, 40), shape=64)
        assert beside < 0.7 * other.bytes_sent


def test_blocks_of_a_batch_share_their_chunks(tmp_path, server):
    """They are planned together: as few requests as for the box around them, and each of them is right."""
    spec, settings = write_spec(tmp_path / "specs", server.url), settings_of(tmp_path)
    starts = [(z, y, x) for z in (0, 20) for y in (0, 20) for x in (0, 20)]
    volume = published_volume(spec, None, settings)
    (batch,) = volume.read_many(starts, shape=32, batch_size=8)
    sent = server.bytes_sent
    whole = volume.read((0, 0, 0), shape=52)
    assert server.bytes_sent == sent
    for (z, y, x), block in zip(starts, batch, strict=True):
        np.testing.assert_array_equal(block.data, whole.data[z : z + 32, y : y + 32, x : x + 32])


def test_of_a_series_only_the_rows_that_a_block_needs_are_asked_for(series, slices, tmp_path):
    """By one request to each file that it touches; the second read asks for nothing, one beside it for nearly that."""
    volume = series_volume(series, tmp_path)
    volume.read((0, 0, 0), shape=1)
    assert series.requests <= HEADER_REQUESTS * SLICES_SHAPE[0]
    before = series.requests
    box = Box((1, 300, 200), (3, 340, 300))
    block = volume.read(box.start, shape=box.shape)
    np.testing.assert_array_equal(block.data, slices[1][box.slices])
    rows_bytes = 39 * SLICES_SHAPE[2] + 100
    assert sorted(asked_since(series, before)) == [("slice_1.dm3", rows_bytes), ("slice_2.dm3", rows_bytes)]
    before = series.requests
    assert volume.read(box.start, shape=box.shape).digest == block.digest
    assert series_volume(series, tmp_path).read(box.start, shape=box.shape).digest == block.digest
    assert series.requests == before
    volume.read((1, 300, 260), shape=box.shape)
    assert sorted(asked_since(series, before)) == [("slice_1.dm3", 60), ("slice_2.dm3", 60)]


def test_blocks_of_a_batch_share_their_rows(series, slices, tmp_path):
    """Threads that read them at the same time wait for each other: no byte comes twice."""
    volume = series_volume(series, tmp_path, workers=8)
    volume.read((0, 0, 0), shape=1)
    series.fail = lambda path, range_header, count: time.sleep(0.02)
    before = series.requests
    starts = [(z, 300, x) for z in (0, 1) for x in range(0, 320, 20)]
    (batch,) = volume.read_many(starts, shape=(2, 40, 100), batch_size=len(starts))
    for (z, y, x), block in zip(starts, batch, strict=True):
        np.testing.assert_array_equal(block.data, slices[1][z : z + 2, y : y + 40, x : x + 100])
    received = dict.fromkeys(slices[0], 0)
    for name, size in asked_since(series, before):
        received[name] += size
    assert received == {f"slice_{n}.dm3": (39 * SLICES_SHAPE[2] + 400 if n < 3 else 0) for n in range(4)}


def test_no_more_requests_at_once_than_the_publisher_takes(series, tmp_path):
    """As many as the spec says, however many threads there are, for headers as for the voxels of several files."""
    lock, now, most = threading.Lock(), 0, 0

    def count(path, range_header, number):
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.01)
        with lock:
            now -= 1

    series.fail = count
    spec = series_spec(series, connections=2)
    volume = published_volume(spec, None, settings_of(tmp_path, workers=8))
    volume.read((0, 0, 0), shape=1)
    assert most == 2
    most = 0
    volume.read((0, 300, 0), shape=(4, 60, 3000))
    assert most == 2


def test_a_narrow_block_of_a_large_file_is_read_by_and_by(tmp_path, monkeypatch):
    """Its rows bring the whole file with them, which is never held: a batch of requests is, and twice while copied."""
    monkeypatch.setattr(_raw_array, "BATCH_BYTES", 2**20)
    monkeypatch.setattr(_raw_array, "REQUEST_BYTES", 2**18)
    voxels = np.random.default_rng(3).integers(-99, 99, (32, 512, 1024)).astype(np.int8)
    with site_of(tmp_path) as server:
        (server.folder / "volume.mrc").write_bytes(packed(voxels))
        spec = files_spec(server, ["volume.mrc"], voxels.shape, "int8", [0.8] * 3)
        volume = published_volume(spec, None, settings_of(tmp_path, cache_bytes=0))
        volume.read((0, 0, 0), shape=1)
        tracemalloc.start()
        block = volume.read((0, 0, 700), shape=(32, 512, 2))
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    np.testing.assert_array_equal(block.data, voxels[:, :, 700:702])
    assert server.bytes_sent > 0.9 * voxels.nbytes
    assert peak_bytes < 5 * 2**20 < voxels.nbytes / 3


def digest_of(pickled):
    """What another process reads."""
    return pickle.loads(pickled).read((3, 5, 7), shape=40).digest


def test_another_process_goes_on_with_the_same_volume(tmp_path, server):
    """A volume is sent to it with its place; it opens connections of its own, and needs none for what is kept."""
    spec, settings = write_spec(tmp_path / "specs", server.url), settings_of(tmp_path)
    volume = published_volume(spec, None, settings)
    digest = volume.read((3, 5, 7), shape=40).digest
    before = server.requests
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(digest_of, (pickle.dumps(volume),)) == digest
    assert server.requests == before


# -- what may have changed


def test_a_recorded_place_is_kept_to(tmp_path, server):
    """A download that was begun has stored where it cuts: blocks come from there."""
    spec, settings = write_spec(tmp_path / "specs", server.url), settings_of(tmp_path)
    record, _ = materialize(spec, settings)
    moved = Box.from_shape(CROP_SHAPE, at=(5, 6, 7))
    assert record.source_box != moved
    folder = DatasetFolder(open_store(settings.root), spec.name)
    folder.write_record(record.with_status("error", "a test", source_box=moved))
    block = published_volume(spec, None, settings).read((1, 2, 3), shape=20)
    whole = write_spec(tmp_path / "whole", server.url, name="whole", crop=None)
    np.testing.assert_array_equal(block.data, published_volume(whole, None, settings).read((6, 8, 10), shape=20).data)


@pytest.mark.parametrize(
    ("start", "edge"),
    [pytest.param((0, 0, 40), 20, id="index kept, chunk not"), pytest.param((0, 0, 0), 100, id="part of both kept")],
)
def test_a_replaced_shard_is_read_anew(tmp_path, start, edge):
    """What was kept of its index and chunks is of another version than it now is: a block is of one, the new."""
    publish(tmp_path / "site")
    with FaultyServer(tmp_path / "site") as server:
        spec = write_spec(tmp_path / "specs", server.url, name="whole", crop=None)
        volume = published_volume(spec, None, settings_of(tmp_path))
        old = volume.read((0, 0, 0), shape=30)
        publish(tmp_path / "site", voxels(SOURCE_SHAPE, seed=6))
        fresh = published_volume(spec, None, settings_of(tmp_path / "fresh"))
        assert volume.read(start, shape=edge).digest == fresh.read(start, shape=edge).digest
        assert volume.read((0, 0, 0), shape=30).digest == fresh.read((0, 0, 0), shape=30).digest != old.digest


def replaced(server, number, body):
    """Whole, as a publisher does it; within the same second, so that only the tag tells."""
    file = server.folder / f"slice_{number}.dm3"
    file.with_suffix(".new").write_bytes(body)
    os.replace(file.with_suffix(".new"), file)


@pytest.mark.parametrize("is_tagged", [True, False], ids=["by its tag", "by its date"])
def test_a_replaced_file_of_a_series_is_read_anew(series, tmp_path, is_tagged):
    """Its voxels begin elsewhere now, which its old header does not know; and the others are asked for again."""
    if not is_tagged:
        series.fail = lambda path, range_header, count: Fault(headers={"ETag": ""})
    volume = series_volume(series, tmp_path, pinned=False)
    old = volume.read((0, 100, 100), shape=(4, 30, 30))
    volume.read((0, 100, 100), shape=(1, 40, 40))  # all that is wanted of it below
    body, drawn = slice_bytes(2, seed=9, thumbnail=110)
    replaced(series, 2, body)
    os.utime(series.folder / "slice_2.dm3", (0, 0))
    other, others_drawn = slice_bytes(0, seed=9)
    replaced(series, 0, other)
    if not is_tagged:  # dates count seconds
        os.utime(series.folder / "slice_0.dm3", (0, 0))
    new = volume.read((0, 100, 100), shape=(4, 40, 40)).data
    np.testing.assert_array_equal(new[2], drawn[100:140, 100:140])
    np.testing.assert_array_equal(new[0], others_drawn[100:140, 100:140])
    np.testing.assert_array_equal(new[[1, 3], :30, :30], old.data[[1, 3]])


def test_without_a_cache_a_replaced_file_is_an_error(series, tmp_path):
    """Nothing was kept that could be forgotten: the sentence says what changed; opened again, it is read."""
    volume = series_volume(series, tmp_path, cache_bytes=0)
    volume.read((0, 100, 100), shape=(4, 30, 30))
    body, drawn = slice_bytes(2, seed=9)
    replaced(series, 2, body)
    with pytest.raises(Mismatch, match=r"slice_2\.dm3 changed while it was read"):
        volume.read((0, 100, 100), shape=(4, 30, 30))
    assert (volume.read((0, 100, 100), shape=(2, 30, 30)).data > 0).any()
    again = series_volume(series, tmp_path, cache_bytes=0)
    np.testing.assert_array_equal(again.read((2, 100, 100), shape=(1, 30, 30)).data[0], drawn[100:130, 100:130])


@pytest.mark.parametrize("kept", [1, 100], ids=["its header kept", "rows of it kept"])
def test_a_file_that_was_truncated_is_refused(series, slices, tmp_path, kept):
    """The sentence names the size that it has and the one that the spec expects, whatever its old header says."""
    spec = series_spec(series)
    volume = published_volume(spec, None, settings_of(tmp_path))
    volume.read((3, 0, 0), shape=(1, kept, 100))
    body = slices[0]["slice_3.dm3"]
    replaced(series, 3, body[:1_000_000])
    with pytest.raises(Mismatch, match=rf"slice_3\.dm3 has 1000000 bytes, the spec expects {len(body)}"):
        volume.read((3, 500, 1000), shape=(1, 100, 1000))
    with pytest.raises(Mismatch, match=rf"slice_3\.dm3 has 1000000 bytes, the spec expects {len(body)}"):
        published_volume(spec, None, settings_of(tmp_path / "other"))
    replaced(series, 3, body)
    block = volume.read((3, 500, 1000), shape=(1, 100, 1000))
    np.testing.assert_array_equal(block.data, slices[1][3:, 500:, 1000:2000])


def test_a_truncated_file_of_no_pinned_size_is_refused_by_its_header(series, slices, tmp_path):
    """Nobody else knows how large it should be."""
    replaced(series, 3, slices[0]["slice_3.dm3"][:1_000_000])
    with pytest.raises(Malformed, match=r"slice_3\.dm3 ends at byte 1000000, but its header says that it has"):
        series_volume(series, tmp_path, pinned=False)


def test_another_volume_at_the_address_is_refused(tmp_path, server):
    """As when it is downloaded: the sentence names both shapes."""
    spec = write_spec(tmp_path / "specs", server.url, expected={"source_shape": [151, 170, 190]})
    with pytest.raises(Mismatch, match=r"shape is \(150, 170, 190\), the spec expects \(151, 170, 190\)"):
        published_volume(spec, None, settings_of(tmp_path))


# -- what cannot be read so


PACKED = gzip.compress(packed(ramp(4, 5, 6)))


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        pytest.param([PACKED], "a file packed by gzip", id="packed mrc"),
        pytest.param([packed(ramp(1, 5, 6)), PACKED], "a file packed by gzip", id="one of a series"),
    ],
)
def test_what_is_read_whole_must_be_downloaded(tmp_path, contents, why):
    """What it is shows in its first bytes, not in its name; one sentence with the command, and no more is read."""
    with site_of(tmp_path) as server:
        paths = [f"slice_{number}.tif" for number in range(len(contents))]
        for path, body in zip(paths, contents, strict=True):
            (server.folder / path).write_bytes(body)
        spec = files_spec(server, paths, (4, 5, 6), "uint8", SLICE_NM)
        with pytest.raises(Unavailable, match=f"series is published as {why}.*`em-assets get series`"):
            published_volume(spec, None, settings_of(tmp_path))
        assert server.requests <= 2 * len(contents)


def test_files_over_ftp_must_be_downloaded(series, tmp_path):
    """FTP has no ranges: said before anything is asked for, even if it is one file of many."""
    files = [{"path": name} for name in SLICES]
    files[2]["url"] = "ftp://127.0.0.1:9/slice_2.dm3"
    spec = series_spec(series, files=files)
    with pytest.raises(Unavailable, match=r"series is published over FTP.*`em-assets get series`"):
        published_volume(spec, None, settings_of(tmp_path))
    assert series.requests == 0


def test_a_volume_that_the_spec_does_not_have(publishers, tmp_path):
    """Those that it has are named."""
    with pytest.raises(Mismatch, match=f"has no volume 'mito'; its further volumes: {JRC}/nuc"):
        published_volume(publishers.spec(JRC), "mito", settings_of(tmp_path))


def test_a_block_does_not_leave_the_crop(tmp_path, server):
    """The publisher has more there, but it is not of this volume."""
    volume = published_volume(write_spec(tmp_path / "specs", server.url), None, settings_of(tmp_path))
    with pytest.raises(Mismatch, match="leaves level 0"):
        volume.read((100, 0, 0), shape=64)
    with pytest.raises(ValueError, match="leaves the volume"):
        volume.engine().read([Box.from_shape((2, 2, 2), at=(129, 0, 0))], [np.empty((2, 2, 2), np.uint8)])
