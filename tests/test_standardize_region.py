"""`write_region`, the only writer of level 0, and `fetch_regions`, which feeds it."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.errors import Mismatch, Unavailable
from em_assets.formats.reader import SampledVoxel
from em_assets.records import DatasetFolder, PartitionRecord
from em_assets.standardize.ingest import fetch_regions
from em_assets.standardize.opening import open_level
from em_assets.standardize.region import write_region
from em_assets.standardize.shard import ShardFormat
from em_assets.standardize.stored import read_box
from em_assets.standardize.voxel_statistics import voxel_statistics
from em_assets.store import LocalStore
from em_assets.volume import Box
from memory_reader import ORIGIN, MemoryReader, all_keys, make_spec, noise

SHAPE = (100, 64, 70)
OBJECT = "volume.ome.zarr/0/c/1/0/1"


@pytest.fixture
def spec():
    return make_spec(SHAPE)


@pytest.fixture
def folder(tmp_path, spec):
    return DatasetFolder(LocalStore(tmp_path), spec.name)


def corner_region():
    """The voxels of shard (1, 0, 1), which the volume's end clips to (36, 64, 6)."""
    return noise((36, 64, 6))


def stored(folder):
    return {path.removeprefix(f"{folder.name}/") for path, _ in folder.store.list(folder.name)}


def test_a_region_is_stored_and_recorded(folder, spec):
    """The record says what the object is, where it came from and what its voxels are like; the voxels are there."""
    voxels = corner_region()
    samples = [SampledVoxel((64 + z, 5, 64 + x), float(voxels[z, 5, x])) for z in (0, 35) for x in (0, 5)]
    source = Box.from_shape(voxels.shape, at=(164, 40, 71))
    record = write_region(
        folder, spec, (1, 0, 1), voxels, samples=samples, source_url="https://x/y", source_box=source, received_bytes=9
    )
    assert record == next(folder.partition_records())
    data = folder.read(OBJECT)
    assert record.objects[0].model_dump() == {
        "path": OBJECT,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert (record.key, record.level, record.identity) == ("z001_y000_x001", 0, spec.identity())
    assert record.box == Box((64, 0, 64), (100, 64, 70))
    assert (record.source_url, record.source_box, record.received_bytes) == ("https://x/y", source, 9)
    assert (record.comparison.compared_voxels, record.comparison.different_voxels) == (4, 0)
    assert record.statistics.mean == pytest.approx(voxels.mean())
    assert record.statistics.standard_deviation == pytest.approx(voxels.std())
    np.testing.assert_array_equal(open_level(folder)[record.box.slices], voxels)


def test_without_samples_nothing_counts_as_compared(folder, spec):
    """Voxels from elsewhere than a reader have no comparison on record, rather than an empty one."""
    assert write_region(folder, spec, (1, 0, 1), corner_region()).comparison is None


@pytest.mark.parametrize(
    ("voxels", "said"),
    [
        pytest.param(np.ones((36, 64, 7), np.uint8), r"\(36, 64, 7\).*\(36, 64, 6\)", id="shape"),
        pytest.param(np.ones((64, 64, 64), np.uint8), r"\(64, 64, 64\).*\(36, 64, 6\)", id="not clipped"),
        pytest.param(np.ones((36, 64, 6), np.int8), "int8.*uint8", id="dtype"),
        pytest.param(np.ones((36, 64, 6), np.uint16), "uint16.*uint8", id="wider dtype"),
    ],
)
def test_voxels_that_do_not_fit_are_refused(folder, spec, voxels, said):
    """Another shape or dtype is a Mismatch that names both, and nothing is written."""
    with pytest.raises(Mismatch, match=said):
        write_region(folder, spec, (1, 0, 1), voxels)
    assert stored(folder) == set()


def test_an_altered_voxel_is_found(folder, spec):
    """One sample that is not what was stored: Mismatch, and neither the object nor a record stays."""
    voxels = corner_region()
    write_region(folder, spec, (1, 0, 1), voxels)  # an earlier, good one
    right = SampledVoxel((64, 0, 64), float(voxels[0, 0, 0]))
    wrong = SampledVoxel((99, 63, 69), float(voxels[35, 63, 5]) + 1)
    with pytest.raises(Mismatch, match="1 of 2 sampled voxels"):
        write_region(folder, spec, (1, 0, 1), voxels, samples=[right, wrong])
    assert not list(folder.partition_records())
    assert OBJECT not in stored(folder)


def test_a_store_that_keeps_other_bytes_is_found(tmp_path, spec):
    """Samples are compared with what the store gives back, not with what was handed to it."""

    class Forgetful(LocalStore):
        def write(self, path, data):
            super().write(path, blank if path.endswith("c/0/0/0") else data)

    good = DatasetFolder(LocalStore(tmp_path / "good"), spec.name)
    write_region(good, spec, (0, 0, 0), np.zeros((64, 64, 64), np.uint8))
    blank = good.read("volume.ome.zarr/0/c/0/0/0")
    folder = DatasetFolder(Forgetful(tmp_path / "bad"), spec.name)
    with pytest.raises(Mismatch, match="sampled voxels differ"):
        write_region(folder, spec, (0, 0, 0), noise((64, 64, 64)), samples=[SampledVoxel((1, 2, 3), 77.0)])


def test_a_wholly_missing_region_has_a_record_and_no_object(folder, spec):
    """Absence is recorded; an object from before goes away."""
    write_region(folder, spec, (1, 0, 1), corner_region())
    hole = spec.shard_box((1, 0, 1))
    record = write_region(folder, spec, (1, 0, 1), np.zeros(hole.shape, np.uint8), missing=[hole])
    assert record.objects == ()
    assert record.missing == (hole,)
    assert record.statistics is None
    assert record.comparison is None
    assert OBJECT not in stored(folder)
    assert list(folder.partition_records()) == [record]


def test_missing_chunks_are_absent_and_not_counted(folder, spec):
    """Chunks that are missing whole have no bytes, black ones have; statistics leave missing voxels out."""
    voxels = noise((64, 64, 64))
    voxels[:32, :32, 32:] = 0  # black, and real
    hole, part = Box((32, 0, 0), (64, 32, 32)), Box((0, 32, 0), (5, 64, 32))
    for missing in (hole, part):
        voxels[missing.slices] = 0
    record = write_region(folder, spec, (0, 0, 0), voxels, missing=[hole, part])
    index = np.frombuffer(folder.read(record.objects[0].path)[-(8 * 16 + 4) : -4], "<u8").reshape(2, 2, 2, 2)
    absent = {tuple(map(int, at)) for at in np.argwhere(index[..., 0] == 2**64 - 1)}
    assert absent == {(1, 0, 0)}
    assert record.statistics.voxels == 64**3 - hole.voxels - part.voxels
    assert record.statistics.zero_fraction == pytest.approx(32**3 / record.statistics.voxels)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        pytest.param({"missing": [Box((0, 0, 0), (64, 64, 65))]}, "not inside", id="missing outside"),
        pytest.param({"missing": [Box((0, 0, 0), (2, 2, 2))]}, "other than 0", id="missing but not 0"),
        pytest.param({"samples": [SampledVoxel((64, 0, 0), 1.0)]}, "not inside", id="sample outside"),
    ],
)
def test_a_reader_that_breaks_its_contract_is_found(folder, spec, extra, said):
    """What coverage and pyramid rest on is looked at before anything is written."""
    with pytest.raises(ValueError, match=said):
        write_region(folder, spec, (0, 0, 0), noise((64, 64, 64)), **extra)
    assert stored(folder) == set()


def test_overlapping_missing_boxes_are_refused(folder, spec):
    """They would be counted twice."""
    boxes = [Box((0, 0, 0), (4, 4, 4)), Box((3, 3, 3), (5, 5, 5))]
    with pytest.raises(ValueError, match="overlaps"):
        write_region(folder, spec, (0, 0, 0), np.zeros((64, 64, 64), np.uint8), missing=boxes)


def test_equal_regions_are_equal_objects(tmp_path, spec):
    """Another run, another byte order and another memory layout give the same sha256."""
    voxels = noise((64, 64, 64), "int16")
    spec = make_spec(SHAPE, "int16")
    variants = [voxels, voxels.astype(">i2"), np.asfortranarray(voxels)]
    digests = set()
    for number, variant in enumerate(variants):
        folder = DatasetFolder(LocalStore(tmp_path / str(number)), spec.name)
        record = write_region(folder, spec, (0, 0, 0), variant)
        digests.add(record.objects[0].sha256)
        assert record.statistics.minimum == voxels.min()
    assert len(digests) == 1


def test_a_box_is_read_across_shards_and_gaps(folder, spec):
    """Reading by chunk ranges agrees with the array; what is not stored is 0."""
    array = noise(SHAPE)
    for index in ((0, 0, 0), (0, 0, 1), (1, 0, 0)):
        write_region(folder, spec, index, array[spec.shard_box(index).slices])
    expected = array.copy()
    expected[64:, :, 64:] = 0
    box = Box((50, 3, 40), (90, 60, 70))
    np.testing.assert_array_equal(read_box(folder, ShardFormat.of(spec), 0, box), expected[box.slices])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(["uint8", "int8", "uint16", "int16", "uint32", "uint64", "float32"]))
def test_statistics_are_those_of_numpy(data, dtype):
    """However the voxels are cut into parts."""
    sizes = data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=4))
    parts = [noise((size,), dtype, seed) for seed, size in enumerate(sizes)]
    whole = np.concatenate(parts)
    found = voxel_statistics(parts, np.dtype(dtype))
    if not whole.size:
        assert found is None
        return
    largest = np.finfo(dtype).max if dtype == "float32" else np.iinfo(dtype).max
    wide = whole.astype(np.float64)
    assert (found.voxels, found.minimum, found.maximum) == (whole.size, float(whole.min()), float(whole.max()))
    assert found.mean == pytest.approx(wide.mean(), rel=1e-9)
    assert found.standard_deviation == pytest.approx(wide.std(), rel=1e-6, abs=1e-6 * abs(wide).max())
    assert found.zero_fraction == np.mean(whole == 0)
    assert found.saturated_fraction == np.mean(whole == largest)


def test_statistics_of_nan_are_of_the_finite_voxels(folder):
    """JSON has no NaN: the record of a float volume with some is readable."""
    spec = make_spec(SHAPE, "float32")
    voxels = noise((64, 64, 64), "float32")
    voxels[0, 0, :2] = np.nan, np.inf
    record = write_region(folder, spec, (0, 0, 0), voxels)
    assert record.statistics.voxels == voxels.size - 2
    assert PartitionRecord.model_validate_json(record.model_dump_json()) == record


def fetch(folder, spec, reader, **options):
    return fetch_regions(folder, spec, reader, Box.from_shape(spec.shape, at=ORIGIN), all_keys(spec), **options)


def test_regions_land_where_they_belong(folder, spec):
    """Every voxel, from the publisher's coordinates to the stored ones; bytes and regions are reported."""
    array = noise(SHAPE)
    seen, told = [], []
    records, errors = fetch(folder, spec, MemoryReader(array), on_bytes=seen.append, on_region=told.append)
    assert errors == {}
    assert [record.key for record in records] == all_keys(spec)
    assert sum(seen) == array.nbytes
    assert told == records
    assert all(record.comparison.different_voxels == 0 for record in records)
    assert records[-1].source_box == Box((164, 40, 71), (200, 104, 77))
    np.testing.assert_array_equal(open_level(folder)[:], array)


def test_one_region_that_fails_does_not_stop_the_others(folder, spec):
    """Its error is under its key; the rest is stored and recorded."""
    broken = spec.shard_box((0, 0, 1)).shifted(ORIGIN)
    reader = MemoryReader(noise(SHAPE), broken={broken: Unavailable("the server said 503")})
    records, errors = fetch(folder, spec, reader)
    assert list(errors) == ["z000_y000_x001"]
    assert "503" in str(errors["z000_y000_x001"])
    assert {record.key for record in records} == set(all_keys(spec)) - set(errors)
    assert list(folder.partition_records()) == records


def test_missing_chunks_are_an_error_where_the_spec_says_so(folder):
    """`missing: error`: the region fails with a Mismatch that says where and what to do, and is not stored."""
    spec = make_spec(SHAPE, missing="error")
    reader = MemoryReader(noise(SHAPE), holes=[Box((100, 40, 7), (110, 50, 17))])
    records, errors = fetch(folder, spec, reader)
    assert list(errors) == ["z000_y000_x000"]
    assert isinstance(errors["z000_y000_x000"], Mismatch)
    assert "100:110, 40:50, 7:17" in str(errors["z000_y000_x000"])
    assert len(records) == len(all_keys(spec)) - 1


def test_holes_are_recorded_in_stored_coordinates(folder, spec):
    """A hole across two regions is on both records, clipped, in voxels of the stored volume."""
    reader = MemoryReader(noise(SHAPE), holes=[Box((160, 40, 7), (170, 50, 17))])
    records, _ = fetch(folder, spec, reader)
    assert {r.key: r.missing for r in records if r.missing} == {
        "z000_y000_x000": (Box((60, 0, 0), (64, 10, 10)),),
        "z001_y000_x000": (Box((64, 0, 0), (70, 10, 10)),),
    }


def test_a_reader_with_false_samples_is_not_believed(folder, spec):
    """Every region whose samples differ fails; none is recorded."""
    records, errors = fetch(folder, spec, MemoryReader(noise(SHAPE) // 2, falsify=True))
    assert records == []
    assert set(errors) == set(all_keys(spec))
    assert all(isinstance(error, Mismatch) for error in errors.values())
    assert not list(folder.partition_records())


def test_level_0_opens_before_the_volume_is_whole(folder, spec):
    """One region is enough for the array to open; the group, which would promise a whole volume, is not there."""
    write_region(folder, spec, (0, 0, 0), noise((64, 64, 64)))
    assert open_level(folder).shape == SHAPE
    assert "volume.ome.zarr/zarr.json" not in stored(folder)
    assert json.loads(folder.read("volume.ome.zarr/0/zarr.json"))["shape"] == list(SHAPE)
