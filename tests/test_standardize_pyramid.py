"""The standardized volume as others read it, and the repair of what is above a changed shard."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_assets.errors import Malformed, Mismatch
from em_assets.records import DatasetFolder, partition_key
from em_assets.standardize.ingest import fetch_regions
from em_assets.standardize.ome import level_shapes, write_metadata
from em_assets.standardize.pyramid import build_pyramid
from em_assets.standardize.region import write_region
from em_assets.store import LocalStore, open_store
from em_assets.volume import Box
from memory_reader import ORIGIN, MemoryReader, all_keys, make_spec, noise, reference_levels, standardize

CASES = [
    pytest.param((200, 131, 150), "uint8", {}, id="uint8 odd"),
    pytest.param((129, 1, 300), "int16", {}, id="int16 flat"),
    pytest.param((70, 140, 257), "uint16", {"shard": (32, 64, 96)}, id="uint16 anisotropic shard"),
    pytest.param((130, 70, 140), "uint64", {}, id="uint64"),
    pytest.param((130, 129, 128), "float32", {"chunk": 16}, id="float32"),
    pytest.param((130, 131, 70), "int8", {"codec": "none"}, id="int8 uncompressed"),
    pytest.param((140, 131, 70), "uint32", {"shard": 66, "chunk": 33, "codec_level": 3}, id="uint32 odd chunks"),
    pytest.param((5, 6, 7), "int32", {}, id="int32 one level"),
    pytest.param((128, 128, 128), "uint8", {"shard": 192, "chunk": 64}, id="shard larger than volume"),
]


@pytest.mark.parametrize(("shape", "dtype", "output"), CASES)
def test_others_read_what_plain_numpy_computes(tmp_path, shape, dtype, output):
    """zarr-python and tensorstore read every voxel of every level as an independent reference has it."""
    import tensorstore

    array = noise(shape, dtype)
    volume = standardize(make_spec(shape, dtype, **output), array, tmp_path)
    shapes = level_shapes(shape)
    for level, expected in enumerate(reference_levels(array, shapes)):
        store = {"driver": "zarr3", "kvstore": f"file://{volume.path}/{level}"}
        by_tensorstore = tensorstore.open(store, open=True).result()
        np.testing.assert_array_equal(volume.read(level), expected)
        np.testing.assert_array_equal(by_tensorstore.read().result(), expected)
        assert by_tensorstore.domain.labels == ("z", "y", "x")
    assert not (volume.path / str(len(shapes))).exists()


def test_the_metadata_is_valid_ome_zarr_and_in_nanometres(tmp_path):
    """ome-zarr-models accepts the group; scale and translation follow the half-voxel contract on each axis."""
    import zarr
    from ome_zarr_models.v05.image import Image

    spec = make_spec((300, 4, 130), voxel_size_nm=[30.0, 7.998250424861908, 4.0])
    volume = standardize(spec, noise(spec.shape), tmp_path)
    image = Image.from_zarr(zarr.open_group(str(volume.path), mode="r")).ome_attributes.multiscales[0]
    assert [(axis.name, axis.type, axis.unit) for axis in image.axes] == [(a, "space", "nanometer") for a in "zyx"]
    assert image.type == "mean"
    scales = [dataset.coordinateTransformations[0].scale for dataset in image.datasets]
    translations = [dataset.coordinateTransformations[1].translation for dataset in image.datasets]
    y = 7.998250424861908
    assert scales == [[30.0, y, 4.0], [60.0, 2 * y, 8.0], [120.0, 4 * y, 16.0]]
    corner = [o * s for o, s in zip(ORIGIN, scales[0], strict=True)]
    for scale, translation in zip(scales, translations, strict=True):
        assert [t - s / 2 for t, s in zip(translation, scale, strict=True)] == pytest.approx(corner, abs=1e-9)
    assert [len(dataset.path) for dataset in image.datasets] == [1, 1, 1]


def test_an_axis_of_one_keeps_its_voxel_size(tmp_path):
    """What cannot halve does not grow either: a single plane stays as thick as it is."""
    spec = make_spec((1, 300, 3))
    volume = standardize(spec, noise(spec.shape), tmp_path)
    group = json.loads((volume.path / "zarr.json").read_bytes())
    datasets = group["attributes"]["ome"]["multiscales"][0]["datasets"]
    assert [d["coordinateTransformations"][0]["scale"] for d in datasets] == [[8, 8, 8], [8, 16, 16], [8, 32, 32]]


@pytest.mark.slow
def test_a_blob_stays_where_it_is_at_every_level(tmp_path):
    """The centroid of a smooth blob, in nanometres by each level's own transformation, is one point."""
    shape, size = (260, 300, 280), (30.0, 8.0, 4.0)
    spec = make_spec(shape, "float32", voxel_size_nm=list(size))
    centre = (131.3, 140.7, 150.2)
    axes = [np.exp(-(((np.arange(n) + 0.5 - c) / 18) ** 2)) for n, c in zip(shape, centre, strict=True)]
    blob = (axes[0][:, None, None] * axes[1][None, :, None] * axes[2]).astype(np.float32)
    volume = standardize(spec, blob, tmp_path)
    group = json.loads((volume.path / "zarr.json").read_bytes())
    expected = [(o + c) * s for o, c, s in zip(ORIGIN, centre, size, strict=True)]
    for dataset in group["attributes"]["ome"]["multiscales"][0]["datasets"]:
        scale, shift = (list(t.values())[1] for t in dataset["coordinateTransformations"])
        weights = volume.read(int(dataset["path"])).astype(np.float64)
        found = [
            (weights.sum(axis=tuple({0, 1, 2} - {axis})) @ np.arange(weights.shape[axis])) / weights.sum()
            for axis in range(3)
        ]
        in_nm = [i * s + t for i, s, t in zip(found, scale, shift, strict=True)]
        assert in_nm == pytest.approx(expected, abs=1e-2)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 140), st.integers(128, 300)),
    value=st.integers(-128, 127),
)
def test_a_constant_volume_is_constant_at_every_level(tmp_path_factory, shape, value):
    """Edges included: nothing beyond the volume is ever averaged in."""
    spec = make_spec(shape, "int8")
    volume = standardize(spec, np.full(shape, value, np.int8), tmp_path_factory.mktemp("constant"))
    for level in range(len(level_shapes(shape))):
        assert (volume.read(level) == value).all()


def holes_in(shape):
    """Source chunks of 16^3: a whole shard, a whole inner chunk, and single ones beside each other and at an edge."""
    whole_shard = [
        Box.from_shape((16, 16, 16), at=(z, y, 64 + x))
        for z, y, x in np.ndindex(64, 64, 64)
        if not (z % 16 or y % 16 or x % 16)
    ]
    inner = [Box.from_shape((16, 16, 16), at=(z, 64 + y, x)) for z in (0, 16) for y in (0, 16) for x in (0, 16)]
    odd = [Box((80, 3, 5), (96, 20, 21)), Box((80, 3, 21), (96, 20, 30)), Box((128, 128, 130), shape)]
    return whole_shard + inner + odd


def test_missing_voxels_are_in_no_mean_and_have_no_bytes(tmp_path):
    """Against the reference with a mask; chunks missing whole are absent, a shard missing whole has no object."""
    shape = (131, 140, 150)
    spec = make_spec(shape)
    array, holes = noise(shape), holes_in(shape)
    volume = standardize(spec, array, tmp_path, holes)
    present = np.ones(shape, bool)
    for hole in holes:
        present[hole.slices] = False
    for level, expected in enumerate(reference_levels(array, level_shapes(shape), present)):
        np.testing.assert_array_equal(volume.read(level), expected)
    assert not (volume.path / "0/c/0/0/1").exists()
    index = np.frombuffer((volume.path / "1/c/0/0/0").read_bytes()[-(8 * 16 + 4) : -4], "<u8").reshape(2, 2, 2, 2)
    absent = [tuple(map(int, at)) for at in np.argwhere(index[..., 0] == 2**64 - 1)]
    assert absent == [(0, 0, 1)]
    assert [r.key for r in volume.level0 if not r.objects] == ["z000_y000_x001"]


def test_a_volume_that_is_missing_whole_is_complete_without_an_object(tmp_path):
    """All levels have records, none has bytes, and every voxel reads as the fill value."""
    spec = make_spec((130, 60, 60))
    volume = standardize(spec, noise(spec.shape), tmp_path, [Box.from_shape(spec.shape)])
    assert volume.shards() == {}
    assert len(volume.levels) == 2
    assert not volume.read(0).any()
    assert not volume.read(1).any()


class Watching(LocalStore):
    """A store that notes what was written and deleted, in order."""

    def __init__(self, root):
        super().__init__(root)
        self.log = []

    def write(self, path, data):
        super().write(path, data)
        self.log.append(("write", path.partition("/")[2]))

    def delete(self, path):
        super().delete(path)
        self.log.append(("delete", path.partition("/")[2]))


LARGE = (256, 250, 256)
"""64 shards of 64^3, 8 above them, 1 on top."""


@pytest.fixture
def built(tmp_path):
    spec = make_spec(LARGE)
    array = noise(LARGE)
    return standardize(spec, array, Watching(tmp_path)), array


def rebuild(volume):
    """Builds again from the records in the store; the computed shards."""
    computed = []
    level0 = [record for record in volume.folder.partition_records() if record.level == 0]
    records = build_pyramid(volume.folder, volume.spec, level0, workers=2, on_shard=computed.append)
    assert [r.model_dump_json() for r in records] == [
        r.model_dump_json() for level in (1, 2) for r in volume.folder.partition_records() if r.level == level
    ]
    return [(record.level, record.key) for record in computed]


def change(volume, array, index):
    """Stores other voxels in one shard of level 0."""
    box = volume.spec.shard_box(index)
    array[box.slices] = np.maximum(array[box.slices] // 2, 1)
    write_region(volume.folder, volume.spec, index, array[box.slices])


def test_the_group_metadata_comes_last_and_goes_first(built):
    """A reader that sees the group's document has every shard; a repair hides the volume before its first write."""
    volume, array = built
    log = volume.folder.store.log
    group = "volume.ome.zarr/zarr.json"
    assert log[-1] == ("write", group)
    assert log.count(("write", group)) == 1
    change(volume, array, (0, 0, 0))
    log.clear()
    rebuild(volume)
    assert log[0] == ("delete", group)
    assert ("write", group) not in log


def test_nothing_is_computed_when_nothing_changed(built):
    """A second build reads no shard and leaves the volume visible."""
    volume, _ = built
    volume.folder.store.log.clear()
    assert rebuild(volume) == []
    assert volume.folder.store.log == []


@pytest.mark.slow
@pytest.mark.parametrize("index", [(0, 0, 0), (3, 1, 2)])
def test_a_changed_shard_costs_its_ancestors(built, index):
    """One shard per level above it, and the result is that of a fresh build."""
    volume, array = built
    change(volume, array, index)
    parent = tuple(i // 2 for i in index)
    assert rebuild(volume) == [(1, partition_key(parent)), (2, "z000_y000_x000")]
    for level, expected in enumerate(reference_levels(array, level_shapes(LARGE))):
        np.testing.assert_array_equal(volume.read(level), expected)


def test_a_shard_that_comes_back_equal_costs_nothing(built):
    """Fetched again with the same bytes: no ancestor is touched."""
    volume, array = built
    write_region(volume.folder, volume.spec, (1, 2, 3), array[volume.spec.shard_box((1, 2, 3)).slices])
    assert rebuild(volume) == []


@pytest.mark.parametrize("damage", ["gone", "cut", "no record", "unreadable record"])
def test_a_damaged_shard_above_is_made_again_alone(built, damage):
    """Equal bytes come back, so what is above it stays."""
    volume, _ = built
    path = volume.path / "1/c/1/0/1"
    record = volume.path.parent / "records/level_1/z001_y000_x001.json"
    before = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(before[:-1])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_bytes(b"{")
    assert rebuild(volume) == [(1, "z001_y000_x001")]
    assert path.read_bytes() == before


def test_voxels_that_turn_out_missing_change_the_means_above(built):
    """Black voxels that become missing leave the shard's bytes as they are, and still change the level above."""
    volume, array = built
    hole = Box((0, 0, 0), (5, 5, 5))
    array[hole.slices] = 0
    box = volume.spec.shard_box((0, 0, 0))
    black = write_region(volume.folder, volume.spec, (0, 0, 0), array[box.slices])
    assert rebuild(volume)
    missing = write_region(volume.folder, volume.spec, (0, 0, 0), array[box.slices], missing=[hole])
    assert missing.objects == black.objects
    assert rebuild(volume) == [(1, "z000_y000_x000"), (2, "z000_y000_x000")]
    present = np.ones(LARGE, bool)
    present[hole.slices] = False
    expected = reference_levels(array, level_shapes(LARGE), present)
    np.testing.assert_array_equal(volume.read(1), expected[1])
    np.testing.assert_array_equal(volume.read(2), expected[2])
    write_region(volume.folder, volume.spec, (0, 0, 0), array[box.slices])
    assert rebuild(volume) == [(1, "z000_y000_x000"), (2, "z000_y000_x000")]


@pytest.mark.parametrize("at", [100, -2000, -1], ids=["payload", "later payload", "index"])
def test_a_flipped_byte_is_never_averaged(built, at):
    """The shard is named, its record goes (so that the next run makes just it again), nothing above it is written."""
    volume, array = built
    change(volume, array, (0, 0, 1))
    path = volume.path / "0/c/0/0/0"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    before = (volume.path / "1/c/0/0/0").read_bytes()
    with pytest.raises(Malformed, match="0/c/0/0/0 is not the shard that was written"):
        rebuild(volume)
    assert (volume.path / "1/c/0/0/0").read_bytes() == before
    left = {record.key for record in volume.folder.partition_records() if record.level == 0}
    assert set(all_keys(volume.spec)) - left == {"z000_y000_x000"}
    write_region(volume.folder, volume.spec, (0, 0, 0), array[volume.spec.shard_box((0, 0, 0)).slices])
    assert rebuild(volume) == [(1, "z000_y000_x000"), (2, "z000_y000_x000")]


def test_half_a_level_0_makes_no_pyramid(built):
    """A missing record or one of another dataset is a Mismatch that counts; nothing is hidden or written."""
    volume, _ = built
    volume.folder.store.log.clear()
    with pytest.raises(Mismatch, match="63 of its 64 shards and 0 others"):
        build_pyramid(volume.folder, volume.spec, volume.level0[1:], workers=1)
    foreign = [volume.level0[0].model_copy(update={"identity": "another"}), *volume.level0[1:]]
    with pytest.raises(Mismatch, match="63 of its 64 shards and 1 others"):
        build_pyramid(volume.folder, volume.spec, foreign, workers=1)
    assert volume.folder.store.log == []


def test_what_does_not_belong_is_removed(built):
    """Shards outside the grid, levels too many and their records go; everything else stays."""
    volume, _ = built
    before = volume.folder.stored_sizes()
    stranger = volume.levels[-1].model_copy(update={"level": 3})
    volume.folder.write_partition_record(stranger)
    for path in ("3/c/0/0/0", "3/zarr.json", "0/c/9/0/0", "1/c/0/0/7"):
        volume.folder.write(f"volume.ome.zarr/{path}", b"old")
    assert rebuild(volume) == []
    assert volume.folder.stored_sizes() == before
    assert {record.level for record in volume.folder.partition_records()} == {0, 1, 2}


def test_any_number_of_workers_makes_the_same_volume(tmp_path):
    """1 or 4 threads, twice: the same sha256 of every object."""
    spec = make_spec((200, 131, 150))
    array = noise(spec.shape)
    digests = [standardize(spec, array, tmp_path / str(n), workers=n).shards() for n in (1, 4)]
    assert digests[0] == digests[1]


def test_s3_and_a_folder_hold_the_same_volume(tmp_path, moto_s3):
    """Every shard and every document has the same sha256 in both."""
    spec = make_spec((131, 70, 150))
    array = noise(spec.shape)
    holes = [Box((0, 0, 0), (64, 64, 64))]
    volumes = [standardize(spec, array, store, holes) for store in (LocalStore(tmp_path), open_store(moto_s3))]
    local, remote = ({path: volume.folder.read(path) for path in volume.folder.stored_sizes()} for volume in volumes)
    assert local == remote
    assert volumes[0].shards() == volumes[1].shards()


def test_documents_are_deterministic(built):
    """Written again, they are the same bytes: the dataset's digest does not change."""
    volume, _ = built
    again = [write_metadata(volume.folder, volume.spec, ORIGIN) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0][-1].path == "volume.ome.zarr/zarr.json"
    moved = write_metadata(volume.folder, volume.spec, (0, 0, 0))
    assert [a == b for a, b in zip(again[0], moved, strict=True)] == [True, True, True, False]


MEMORY_SCRIPT = """
    import sys, threading, time
    import numpy as np
    from memory_reader import ORIGIN, MemoryReader, all_keys, make_spec
    from em_assets.records import DatasetFolder
    from em_assets.standardize.ingest import fetch_regions
    from em_assets.standardize.pyramid import build_pyramid
    from em_assets.store import LocalStore
    from em_assets.volume import Box

    class Endless:
        "An array of any shape that exists only where it is read."
        def __init__(self, shape):
            self.shape, self.dtype = shape, np.dtype("uint8")
        def __getitem__(self, slices):
            region = np.full([s.stop - s.start for s in slices], slices[0].start % 200 + 1, np.uint8)
            region[::7, ::5, ::3] += 9
            return region

    def anonymous_kb():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    shape = tuple(map(int, sys.argv[2:5]))
    peak, done = [0], threading.Event()
    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous_kb())
    threading.Thread(target=watch, daemon=True).start()
    spec = make_spec(shape, shard=128, chunk=64)
    folder = DatasetFolder(LocalStore(sys.argv[1]), spec.name)
    records, errors = fetch_regions(
        folder, spec, MemoryReader(Endless(shape)), Box.from_shape(shape, at=ORIGIN), all_keys(spec))
    assert not errors
    build_pyramid(folder, spec, records, workers=2)
    done.set()
    print(peak[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is read from Linux's /proc")
def test_memory_does_not_grow_with_the_volume(tmp_path):
    """16 times the voxels take the same anonymous memory, within a few shards."""
    peaks = []
    for shape in ((256, 256, 256), (512, 512, 1024)):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(MEMORY_SCRIPT), str(tmp_path / str(shape[2])), *map(str, shape)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)]),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 24_000, f"kB of anonymous memory: {peaks}"


def test_an_interrupted_fetch_and_a_fresh_one_make_the_same_volume(tmp_path):
    """Regions fetched in two runs, in another order: the same shards at every level."""
    spec = make_spec((131, 70, 150))
    array = noise(spec.shape)
    whole = standardize(spec, array, tmp_path / "whole")
    folder = DatasetFolder(LocalStore(tmp_path / "parts"), spec.name)
    crop = Box.from_shape(spec.shape, at=ORIGIN)
    keys = all_keys(spec)
    for some in (keys[3:], keys[:3]):
        fetch_regions(folder, spec, MemoryReader(array), crop, some)
    level0 = list(folder.partition_records())
    parts = replace(whole, folder=folder, level0=level0, levels=build_pyramid(folder, spec, level0, workers=1))
    assert parts.shards() == whole.shards()
