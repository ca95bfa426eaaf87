"""A dataset that is not downloaded reads as it will when it is: voxels, missing parts, place. Each byte comes once."""

import multiprocessing
import pickle
import random

import numpy as np
import pytest

import em_assets.blocks as em
from em_assets.blocks._publisher import published_volume
from em_assets.errors import Mismatch, Unavailable
from em_assets.records import DatasetFolder
from em_assets.store import open_store
from em_assets.volume import Box
from faulty import FaultyServer
from published import EMPIAR, EPFL, IDR, JRC, ODD, Publishers, write_once
from small import CROP_SHAPE, SOURCE_SHAPE, data_requests, materialize, publish, quick_settings, voxels, write_spec
from test_sparse_zarr import WRITERS, some_cells, spec_of, write_v2


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
    ],
)
def test_other_publishers_read_as_they_will_be_stored(publishers, tmp_path, name, sub):
    """The main volume and further ones, of containers and of TIFF files that are read in parts."""
    settings = publishers.settings.model_copy(update={"cache": tmp_path / "cache"})
    volume = published_volume(publishers.spec(name), sub, settings)
    publishers.finished(name)
    require_equal(volume, em.open(name if sub is None else f"{name}/{sub}", settings=settings))


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


def test_another_volume_at_the_address_is_refused(tmp_path, server):
    """As when it is downloaded: the sentence names both shapes."""
    spec = write_spec(tmp_path / "specs", server.url, expected={"source_shape": [151, 170, 190]})
    with pytest.raises(Mismatch, match=r"shape is \(150, 170, 190\), the spec expects \(151, 170, 190\)"):
        published_volume(spec, None, settings_of(tmp_path))


# -- what cannot be read so


def test_a_series_of_files_must_be_downloaded(publishers, tmp_path):
    """One sentence with the command, before anything is asked for."""
    spec = publishers.spec(EMPIAR)
    with pytest.raises(Unavailable, match=f"published as 16 files.*`em-assets get {EMPIAR}`"):
        published_volume(spec, None, settings_of(tmp_path))
    assert publishers.requests == 0


def test_one_file_of_another_format_must_be_downloaded(publishers, tmp_path):
    """What it is shows in its first bytes, not in its name."""
    spec = publishers.spec(IDR)
    path = spec.source.volume.paths()[0]
    head = b"\0\0\0\3" + bytes(1020)
    copy = tmp_path / "site" / "changed"
    copy.mkdir(parents=True)
    (copy / path).write_bytes(head)
    with FaultyServer(tmp_path / "site") as other:
        source = spec.source.model_copy(update={"url": f"{other.url}/changed"})
        changed = spec.model_copy(update={"source": source})
        with pytest.raises(Unavailable, match=f"published as a file of format dm.*`em-assets get {IDR}`"):
            published_volume(changed, None, settings_of(tmp_path))


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
