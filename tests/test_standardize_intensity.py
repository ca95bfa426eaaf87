"""Grey values of a stored volume: against plain numpy on the whole array, and what happens where it is not whole."""

import itertools
import math
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_assets.datasets.spec import VolumeLayout
from em_assets.errors import Malformed, Mismatch
from em_assets.records import DatasetFolder
from em_assets.standardize.ingest import fetch_regions
from em_assets.standardize.intensity import (
    INTENSITY,
    PERCENTILES_PER_MILLE,
    Intensity,
    _parts,
    intensity_of,
    joined,
    read_intensities,
    update_intensity,
    write_intensities,
)
from em_assets.standardize.ome import level_shapes, write_metadata
from em_assets.standardize.pyramid import build_pyramid
from em_assets.standardize.region import write_region
from em_assets.standardize.voxel_statistics import voxel_statistics
from em_assets.store import LocalStore, open_store
from em_assets.volume import Box, ceil_divide
from memory_reader import ORIGIN, MemoryReader, all_keys, make_spec, noise, reference_levels, standardize

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32")
in_memory = settings(max_examples=40, deadline=None)
stored = settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def by_numpy(values: np.ndarray) -> dict[str, float]:
    """Minimum to saturated share of all values, in one go and with sums that do not lose digits."""
    wide = [float(value) for value in values.ravel()]
    mean = math.fsum(wide) / len(wide)
    largest = np.finfo(values.dtype).max if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    return {
        "voxels": len(wide),
        "minimum": min(wide),
        "maximum": max(wide),
        "mean": mean,
        "standard_deviation": math.sqrt(math.fsum((value - mean) ** 2 for value in wide) / len(wide)),
        "zero_fraction": np.mean(values == 0),
        "saturated_fraction": np.mean(values == largest),
    }


def assert_statistics(found, values: np.ndarray) -> None:
    expected = by_numpy(values)
    scale = max(abs(expected["minimum"]), abs(expected["maximum"]))
    for name in ("voxels", "minimum", "maximum"):
        assert getattr(found, name) == expected[name]
    # a mean beside 0 of large values has no more digits than those
    assert found.mean == pytest.approx(expected["mean"], rel=1e-9, abs=1e-12 * scale)
    assert found.standard_deviation == pytest.approx(expected["standard_deviation"], rel=1e-9, abs=1e-12 * scale)
    for name in ("zero_fraction", "saturated_fraction"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-12)


def exact_percentiles(values: np.ndarray) -> dict[str, float]:
    """`inverted_cdf` without the rounding of a quotient: of n values in order, number ceil(p * n)."""
    ordered = np.sort(values.ravel())
    ranks = {f"{p / 10:g}": -(-p * len(ordered) // 1000) for p in PERCENTILES_PER_MILLE}
    return {name: float(ordered[rank - 1]) for name, rank in ranks.items()}


def coarser(present: np.ndarray) -> np.ndarray:
    """Real where any of the 2x2x2 below is."""
    grown = np.pad(present, [(0, n % 2) for n in present.shape])
    return grown.reshape(tuple(v for n in grown.shape for v in (n // 2, 2))).any(axis=(1, 3, 5))


def real_values(array: np.ndarray, holes: list[Box], level: int) -> np.ndarray:
    """The real voxels of a level, flat, computed on the whole array."""
    present = np.ones(array.shape, bool)
    for hole in holes:
        present[hole.slices] = False
    values = reference_levels(array, level_shapes(array.shape)[: level + 1], present)[level]
    for _ in range(level):
        present = coarser(present)
    return values[present]


@in_memory
@given(data=st.data())
def test_parts_join_to_the_statistics_of_the_whole(data):
    """For any split of any values, far from 0 or beside it; in every order of the parts the very same numbers."""
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size = data.draw(st.integers(1, 400))
    width = data.draw(st.sampled_from([0, 1, 3, 100, None]))
    if dtype.kind == "f":
        values = generator.normal(1e4, 1e4 if width is None else width, size).astype(dtype)
    else:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        values = generator.integers(low if width is None else high - width, high, size, dtype, endpoint=True)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=8)))
    pieces = [piece for piece in np.split(values, cuts) if piece.size]
    parts = [voxel_statistics([piece], dtype) for piece in pieces]
    whole = joined(parts)
    assert_statistics(whole, values)
    assert joined(random.Random(len(parts)).sample(parts, len(parts))) == whole
    assert joined(parts[::-1]) == whole


def test_a_small_deviation_far_from_zero_keeps_its_digits():
    """A difference of squares would have none left: 1e9 and a hundredth."""
    values = 1e9 + np.random.default_rng(3).normal(0, 1e-2, 6000)
    parts = [voxel_statistics([piece], values.dtype) for piece in np.split(values, 6)]
    assert joined(parts).standard_deviation == pytest.approx(float(np.std(values - 1e9)), rel=1e-8)


def test_nothing_joins_to_nothing():
    """No part, no statistics: never zeros."""
    assert joined([]) is None


@stored
@given(data=st.data())
def test_a_volume_has_what_numpy_says_of_its_real_voxels(tmp_path_factory, data):
    """Any dtype, holes, and either level: moments of level 0, percentiles and histogram of the level that is read."""
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(20, 70), st.integers(128, 150)))
    level = data.draw(st.sampled_from([0, 1]))
    cell = (16, 16, 32)
    cells = [
        Box(start, tuple(min(a + c, n) for a, c, n in zip(start, cell, shape, strict=True)))
        for start in itertools.product(*(range(0, n, c) for n, c in zip(shape, cell, strict=True)))
    ]
    holes = data.draw(st.lists(st.sampled_from(cells), unique=True, max_size=len(cells) - 1))
    array = noise(shape, str(dtype), seed=data.draw(st.integers(0, 99)))
    if data.draw(st.booleans(), label="narrow"):
        array = array // array.dtype.type(50) if dtype.kind == "f" else array >> (8 * dtype.itemsize - 4)
    place = tmp_path_factory.mktemp("intensity")
    volume = standardize(make_spec(shape, str(dtype)), array, place, holes)
    records = [*volume.level0, *volume.levels]
    most = math.prod(level_shapes(shape)[level])
    found = intensity_of(volume.folder, volume.spec, records, most_voxels=most)

    missing = sum(hole.voxels for hole in holes)
    assert (found.missing_voxels, found.not_finite_voxels) == (missing, 0)
    assert_statistics(found.statistics, real_values(array, holes, 0))
    values = real_values(array, holes, level)
    distribution = found.distribution
    assert distribution.level == level
    assert (distribution.voxels, distribution.missing_voxels) == (values.size, most - values.size)
    assert_distribution(distribution, values)


def assert_distribution(found, values: np.ndarray) -> None:
    exact = exact_percentiles(values)
    if values.dtype.itemsize <= 2:
        assert found.percentiles == exact
        assert found.percentiles_within == 0
    else:
        slack = 1e-9 * max(abs(found.histogram.start), abs(found.histogram.stop))
        assert found.percentiles == pytest.approx(exact, rel=0, abs=found.percentiles_within + slack)
        spread = float(values.max()) - float(values.min())
        assert found.percentiles_within == pytest.approx(spread / 2**16)
    edges = found.histogram.edges
    if values.dtype.itemsize == 1:
        assert edges == list(range(np.iinfo(values.dtype).min, np.iinfo(values.dtype).max + 2))
    else:
        bounds = float(values.min()), float(values.max())
        assert edges == pytest.approx(np.histogram_bin_edges([], 256, bounds).tolist(), rel=1e-12)
    assert list(found.histogram.counts) == np.histogram(values.astype(np.float64), edges)[0].tolist()


def test_percentiles_are_numpys_inverted_cdf(tmp_path):
    """Where a rank is not just between two voxels, which numpy's rounded quotient could take either way."""
    array = noise((37, 41, 43), "int16")
    volume = standardize(make_spec(array.shape, "int16"), array, tmp_path)
    found = intensity_of(volume.folder, volume.spec, volume.level0).distribution.percentiles
    assert array.size % 1000
    for name, value in found.items():
        assert value == np.percentile(array, float(name), method="inverted_cdf")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_volume_has_one_value(tmp_path, dtype):
    """Extremes, mean and every percentile are it, the deviation is exactly 0, one bin holds all."""
    array = np.full((30, 20, 70), 77, dtype)
    volume = standardize(make_spec(array.shape, dtype), array, tmp_path)
    found = intensity_of(volume.folder, volume.spec, volume.level0)
    assert {found.statistics.minimum, found.statistics.maximum, found.statistics.mean} == {77}
    assert found.statistics.standard_deviation == 0
    assert set(found.distribution.percentiles.values()) == {77}
    assert sorted(found.distribution.histogram.counts)[-2:] == [0, array.size]


def test_what_is_not_finite_is_counted_and_in_no_number(tmp_path):
    """NaN and both infinities, at level 0 and in the means above them; missing voxels are no NaN."""
    array = noise((30, 40, 130), "float32")
    array[3, 4, 5], array[8, 8, 60], array[9, 9, 70], array[20, 20, 100:104] = np.nan, np.inf, -np.inf, np.nan
    hole = Box((0, 0, 32), (16, 8, 64))
    volume = standardize(make_spec(array.shape, "float32"), array, tmp_path, [hole])
    fine = intensity_of(volume.folder, volume.spec, volume.level0)
    coarse = intensity_of(volume.folder, volume.spec, volume.level0, most_voxels=15 * 20 * 65)
    values = real_values(array, [hole], 0)
    assert (fine.not_finite_voxels, fine.missing_voxels) == (7, hole.voxels)
    assert fine.distribution.not_finite_voxels == 7
    assert_statistics(fine.statistics, values[np.isfinite(values)])
    assert_distribution(fine.distribution, values[np.isfinite(values)])
    assert coarse.statistics == fine.statistics
    assert (coarse.distribution.level, coarse.distribution.not_finite_voxels) == (1, 5)
    assert coarse.distribution.voxels + 5 + coarse.distribution.missing_voxels == 15 * 20 * 65


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_volume_of_nothing_has_no_numbers(tmp_path, dtype):
    """Missing whole: counted as that, with no mean, percentile or bin; absence is not black."""
    shape = (20, 20, 130)
    volume = standardize(make_spec(shape, dtype), noise(shape, dtype), tmp_path, [Box.from_shape(shape)])
    found = intensity_of(volume.folder, volume.spec, volume.level0)
    assert (found.missing_voxels, found.statistics) == (math.prod(shape), None)
    assert (found.distribution.voxels, found.distribution.missing_voxels) == (0, math.prod(shape))
    assert (found.distribution.percentiles, found.distribution.histogram) == ({}, None)


def test_black_is_not_missing(tmp_path):
    """Zeros that the publisher has are voxels like others."""
    array = np.zeros((20, 20, 70), np.uint8)
    volume = standardize(make_spec(array.shape), array, tmp_path)
    found = intensity_of(volume.folder, volume.spec, volume.level0)
    assert (found.missing_voxels, found.statistics.zero_fraction) == (0, 1)
    assert found.distribution.histogram.counts[0] == array.size


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """Eight shards with a hole, two levels; tests must not change it."""
    array = noise((90, 80, 130), "uint16")
    holes = [Box((0, 0, 0), (32, 32, 32)), Box((64, 64, 100), (90, 80, 130))]
    return standardize(make_spec(array.shape, "uint16"), array, tmp_path_factory.mktemp("volume"), holes)


@pytest.mark.parametrize("most", [2**26, 45 * 40 * 65], ids=["level 0", "level 1"])
def test_the_order_of_the_records_is_nothing(volume, most):
    """Shuffled, and with those of other levels among them: the same bytes."""
    records = [*volume.level0, *volume.levels]
    made = set()
    for seed in range(3):
        random.Random(seed).shuffle(records)
        made.add(intensity_of(volume.folder, volume.spec, records, most_voxels=most).model_dump_json())
    made.add(intensity_of(volume.folder, volume.spec, volume.level0, most_voxels=most).model_dump_json())
    assert len(made) == 1


LEVELS = [
    pytest.param((300, 128, 140), 2**26, 0, id="small enough"),
    pytest.param((300, 128, 140), 300 * 128 * 140, 0, id="just so many"),
    pytest.param((300, 128, 140), 300 * 128 * 140 - 1, 1, id="one too many"),
    pytest.param((300, 128, 140), 75 * 32 * 35, 2, id="two levels up"),
    pytest.param((300, 128, 140), 1, 2, id="the coarsest is too large too"),
]


@pytest.mark.parametrize(("shape", "most", "level"), LEVELS)
def test_the_finest_level_that_is_small_enough_is_read(tmp_path, shape, most, level):
    """And is named, with as many voxels as it has."""
    built = standardize(make_spec(shape, shard=128, chunk=64), np.full(shape, 9, np.uint8), tmp_path)
    found = intensity_of(built.folder, built.spec, built.level0, most_voxels=most).distribution
    assert (found.level, found.voxels) == (level, math.prod(level_shapes(shape)[level]))


def test_s3_and_a_folder_say_the_same(tmp_path, moto_s3, volume):
    """The same volume below an S3 root: the same `intensity.json`, byte for byte."""
    remote = DatasetFolder(open_store(moto_s3), volume.folder.name)
    for path, _ in volume.folder.store.list(volume.folder.name):
        remote.store.write(path, volume.folder.store.read(path))
    documents = []
    for folder in (volume.folder, remote):
        write_intensities(folder, {"": intensity_of(folder, volume.spec, folder.partition_records())})
        documents.append(folder.read(INTENSITY))
        folder.store.delete(folder.path(INTENSITY))
    assert documents[0] == documents[1]


@in_memory
@given(
    start=st.tuples(*[st.integers(0, 3)] * 3),
    shape=st.tuples(*[st.integers(1, 24)] * 3),
    cell=st.tuples(*[st.integers(1, 9)] * 3),
    most=st.integers(20, 8000),
)
def test_parts_tile_a_box_and_are_small(start, shape, cell, most):
    """Each voxel once, whole cells, in z, y, x order, and never more voxels than asked unless it is one cell."""
    box = Box.from_shape(shape, at=tuple(s * c for s, c in zip(start, cell, strict=True)))
    parts = list(_parts(box, cell, most))
    assert parts == sorted(parts)
    times = np.zeros(shape, np.uint8)
    for part in parts:
        assert part.voxels <= most or ceil_divide(part.shape, cell) == (1, 1, 1)
        assert all(a % c == 0 for a, c in zip(part.start, cell, strict=True))
        times[part.shifted(tuple(-a for a in box.start)).slices] += 1
    assert (times == 1).all()


@pytest.mark.slow
def test_memory_is_that_of_a_slab_not_of_the_volume(tmp_path):
    """64 MB of voxels in one shard, which alone would break the limit, with a hole: at most 48 MB at any moment."""
    shape = (128, 512, 512)
    spec = make_spec(shape, "uint16", shard=(128, 512, 512), chunk=64)
    array = noise(shape, "uint16")
    hole = Box((0, 0, 0), (100, 500, 500))
    built = standardize(spec, array, tmp_path, [hole])
    del array
    tracemalloc.start()
    found = intensity_of(built.folder, spec, built.level0)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.distribution.voxels == math.prod(shape) - hole.voxels
    assert peak_bytes < 48e6, f"{peak_bytes / 1e6:.0f} MB"


@pytest.fixture
def fresh(tmp_path):
    """A volume of two shards that a test may break."""
    array = noise((40, 40, 130), "uint8")
    return standardize(make_spec(array.shape, shard=(64, 64, 128)), array, tmp_path)


def test_a_shard_that_is_gone_is_not_black(fresh):
    """It would read as zeros: Malformed that names the shard."""
    fresh.folder.store.delete(fresh.folder.path("volume.ome.zarr/0/c/0/0/1"))
    with pytest.raises(Malformed, match="z000_y000_x001 is gone"):
        intensity_of(fresh.folder, fresh.spec, fresh.level0)


DAMAGES = [
    pytest.param(lambda data: data[:-1] + bytes([data[-1] ^ 1]), id="checksum of the index"),
    pytest.param(lambda data: bytes(40) + data[40:], id="chunk"),
    pytest.param(lambda data: data[:10], id="cut off"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_an_error(fresh, damage):
    """Its index, or a chunk that does not decompress: Malformed that names the level, not some other numbers."""
    path = fresh.folder.path("volume.ome.zarr/0/c/0/0/0")
    fresh.folder.store.write(path, damage(fresh.folder.store.read(path)))
    with pytest.raises(Malformed, match=r"volume\.ome\.zarr/0 cannot be read"):
        intensity_of(fresh.folder, fresh.spec, fresh.level0)


def test_a_level_without_its_document_is_an_error(fresh):
    """Malformed that says what to do, where zarr would speak of a node."""
    fresh.folder.store.delete(fresh.folder.path("volume.ome.zarr/0/zarr.json"))
    with pytest.raises(Malformed, match="materialize hemibrain_crop again"):
        intensity_of(fresh.folder, fresh.spec, fresh.level0)


BROKEN = [
    pytest.param(lambda records: records[1:], "records of 1 of its 2 shards and 0 others", id="one is missing"),
    pytest.param(lambda records: [*records, records[0]], "records of 2 of its 2 shards and 1 others", id="one twice"),
    pytest.param(
        lambda records: [records[0].model_copy(update={"identity": "0" * 64}), *records[1:]],
        "records of 1 of its 2 shards and 1 others",
        id="of another volume",
    ),
    pytest.param(
        lambda records: [records[0].model_copy(update={"statistics": None}), *records[1:]],
        "statistics of 3200 voxels, expected 208000",
        id="without statistics",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), BROKEN)
def test_records_that_are_not_whole_are_refused(fresh, change, sentence):
    """A mean of some of the shards would pass for the volume's."""
    with pytest.raises(Mismatch, match=sentence):
        intensity_of(fresh.folder, fresh.spec, change(fresh.level0))


def change_shard(built, value: int) -> None:
    """Other voxels in the first shard, and the pyramid repaired."""
    box = built.spec.shard_box((0, 0, 0))
    built.level0[0] = write_region(built.folder, built.spec, (0, 0, 0), np.full(box.shape, value, np.uint8))
    build_pyramid(built.folder, built.spec, built.level0, workers=2)


def test_it_is_computed_again_only_if_the_voxels_changed(fresh):
    """What is kept is returned without a look at the volume; another shard makes it anew."""
    first = update_intensity(fresh.folder, fresh.spec, fresh.level0)
    assert read_intensities(fresh.folder) == {"": first}
    document = fresh.folder.path("volume.ome.zarr/0/zarr.json")
    kept = fresh.folder.store.read(document)
    fresh.folder.store.delete(document)
    assert update_intensity(fresh.folder, fresh.spec, fresh.level0[::-1]) == first
    fresh.folder.store.write(document, kept)
    change_shard(fresh, 201)
    second = update_intensity(fresh.folder, fresh.spec, fresh.level0)
    assert second.voxels_sha256 != first.voxels_sha256
    assert second.distribution.percentiles["50"] == 201
    assert read_intensities(fresh.folder) == {"": second}


def test_other_missing_voxels_are_another_volume(tmp_path):
    """Equal bytes, but what was black is now known to be absent: not the same intensity."""
    array = noise((40, 40, 70))
    hole = Box((0, 0, 0), (8, 8, 8))
    array[hole.slices] = 0
    black, absent = (
        standardize(make_spec(array.shape), array, tmp_path / name, holes)
        for name, holes in (("black", []), ("absent", [hole]))
    )
    assert black.level0[0].objects == absent.level0[0].objects
    digests = {intensity_of(v.folder, v.spec, v.level0).voxels_sha256 for v in (black, absent)}
    assert len(digests) == 2


def further_layout(spec, content: str) -> VolumeLayout:
    return VolumeLayout(
        f"{spec.name}/{content}", spec.shape, spec.dtype, spec.voxel_size_nm, content, spec.output, "record", "f" * 64
    )


def store_further(built, layout: VolumeLayout, array: np.ndarray):
    """The array as a further volume of the dataset: its folder and its records of level 0."""
    folder = built.folder.further(layout.name.partition("/")[2])
    place = Box.from_shape(layout.shape, at=ORIGIN)
    records, errors = fetch_regions(folder, layout, MemoryReader(array), place, all_keys(layout))
    assert not errors
    build_pyramid(folder, layout, records, workers=2)
    write_metadata(folder, layout, ORIGIN)
    return folder, records


def test_each_volume_of_a_dataset_has_its_own(fresh):
    """In one document, the main one's name empty; one is added, the other stays. Labels have no grey values."""
    main = update_intensity(fresh.folder, fresh.spec, fresh.level0)
    layout = further_layout(fresh.spec, "image")
    folder, records = store_further(fresh, layout, np.full(fresh.spec.shape, 5, np.uint8))
    further = update_intensity(folder, layout, records)
    assert further.statistics.mean == 5
    labels = further_layout(fresh.spec, "labels")
    folder, records = store_further(fresh, labels, np.full(fresh.spec.shape, 3, np.uint8))
    assert update_intensity(folder, labels, records) is None
    assert intensity_of(folder, labels, records) is None
    assert read_intensities(fresh.folder) == {"": main, "image": further}


def test_what_is_written_is_read(volume, tmp_path):
    """The same values, floats to the last digit, and the same bytes from another order."""
    found = intensity_of(volume.folder, volume.spec, volume.level0)
    assert isinstance(found, Intensity)
    folder = DatasetFolder(LocalStore(tmp_path), "a")
    assert read_intensities(folder) == {}
    write_intensities(folder, {"b": found, "": found})
    assert read_intensities(folder) == {"": found, "b": found}
    first = folder.read(INTENSITY)
    write_intensities(folder, {"": found, "b": found})
    assert folder.read(INTENSITY) == first


@pytest.mark.parametrize("text", [b"", b"[]", b'{"": {"identity": "x"}}'], ids=["empty", "a list", "of something else"])
def test_a_document_that_is_none_is_refused_and_begun_anew(fresh, text):
    """A reader is told what to remove; the writer computes what can be computed."""
    fresh.folder.write(INTENSITY, text)
    with pytest.raises(Malformed, match=r"intensity\.json does not say the grey values"):
        read_intensities(fresh.folder)
    found = update_intensity(fresh.folder, fresh.spec, fresh.level0)
    assert read_intensities(fresh.folder) == {"": found}
