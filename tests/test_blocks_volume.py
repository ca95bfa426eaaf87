"""Reading blocks: exactly the right voxels, which of them are real, and the same ones again."""

import itertools
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import em_assets.blocks as em
from em_assets.blocks.making import NORMALIZED_AT_ONCE, _normalized
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.volume import Box, multiply
from ome_volumes import halved, write_ome_zarr

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "uint64", "float64"]


def voxels_of(shape, dtype="uint8", seed=0) -> np.ndarray:
    """Nowhere 0, so that an absent chunk is never mistaken for a present one."""
    drawn = np.random.default_rng(seed).integers(1, 120, shape)
    return drawn.astype(dtype)


@pytest.fixture(scope="module")
def ramp(tmp_path_factory) -> em.Volume:
    """(40, 50, 60) voxels of (8, 4, 4) nm in three levels, corner at (100, 200, 300) nm."""
    levels = [voxels_of((40, 50, 60), "uint16")]
    for _ in range(2):
        levels.append(np.rint(halved(levels[-1])).astype("uint16"))
    folder = tmp_path_factory.mktemp("volumes") / "ramp.zarr"
    write_ome_zarr(
        folder,
        levels,
        chunk=(16, 16, 16),
        shard=(32, 32, 32),
        voxel_size_nm=(8.0, 4.0, 4.0),
        corner_nm=(100.0, 200.0, 300.0),
    )
    return em.open(folder)


@st.composite
def stored(draw):
    """A volume's voxels and how they are stored, with some chunks absent."""
    shape = draw(st.tuples(*[st.integers(1, 30)] * 3))
    chunk = draw(st.tuples(*[st.integers(1, 12)] * 3))
    per_shard = draw(st.none() | st.tuples(*[st.integers(1, 3)] * 3))
    grid = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
    cells = list(itertools.product(*map(range, grid)))
    absent = draw(st.sets(st.sampled_from(cells), max_size=min(4, len(cells))))
    return {
        "shape": shape,
        "chunk": chunk,
        "shard": None if per_shard is None else multiply(chunk, per_shard),
        "dtype": draw(st.sampled_from(DTYPES)),
        "absent": absent,
        "zarr_format": 3 if per_shard is not None else draw(st.sampled_from([2, 3])),
        "compressed": draw(st.booleans()),
    }


@given(given_=stored(), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_box_agrees_with_numpy(tmp_path_factory, given_, data):
    """Any box, also beyond the ends, of any chunking, shard, dtype and set of absent chunks: voxels and mask."""
    voxels = voxels_of(given_["shape"], given_["dtype"])
    folder = tmp_path_factory.mktemp("any") / "v.zarr"
    write_ome_zarr(
        folder,
        [voxels],
        chunk=given_["chunk"],
        shard=given_["shard"],
        absent=given_["absent"],
        zarr_format=given_["zarr_format"],
        compressed=given_["compressed"],
    )
    real = np.ones(voxels.shape, bool)
    for cell in given_["absent"]:
        part = Box.from_shape(given_["chunk"], at=multiply(cell, given_["chunk"]))
        real[part.slices] = False
    voxels[~real] = 0
    volume = em.open(folder)
    start = data.draw(st.tuples(*[st.integers(-6, n + 5) for n in voxels.shape]))
    shape = data.draw(st.tuples(*[st.integers(1, 20)] * 3))
    widths = [(max(0, -a), max(0, a + n - size)) for a, n, size in zip(start, shape, voxels.shape, strict=True)]
    moved = [a + w for a, (w, _) in zip(start, widths, strict=True)]
    cut = tuple(slice(a, a + n) for a, n in zip(moved, shape, strict=True))
    block = volume.read(start, shape=shape, pad="constant", fill=7, missing="mask")
    assert (block.data == np.pad(voxels, widths, constant_values=7)[cut]).all()
    expected = np.pad(real, widths)[cut]
    assert (block.valid is None and expected.all()) or (block.valid == expected).all()
    assert block.data.dtype == np.dtype(given_["dtype"]).newbyteorder("<")
    inside = all(w == (0, 0) for w in widths)
    if inside and expected.all():
        assert (volume.read(start, shape=shape).data == voxels[cut]).all()
    elif inside:
        with pytest.raises(Mismatch, match="no chunk is stored for"):
            volume.read(start, shape=shape)
    else:
        with pytest.raises(Mismatch, match="leaves level 0"):
            volume.read(start, shape=shape, missing="mask")


@pytest.mark.parametrize(("pad", "mode"), [("edge", "edge"), ("reflect", "reflect")])
def test_padding_is_numpys(ramp, pad, mode):
    """`edge` and `reflect` as numpy defines them, on all sides."""
    whole = ramp.read((0, 0, 0), shape=ramp.shape).data
    block = ramp.read((-5, 40, -3), shape=(50, 20, 70), pad=pad)
    wanted = np.pad(whole[:, 40:, :], [(5, 5), (0, 10), (3, 7)], mode=mode)
    if pad == "edge":
        assert (block.data == wanted).all()
    assert (block.data[5:45, :10, 3:63] == whole[:, 40:, :]).all()
    assert block.valid.sum() == 40 * 10 * 60


def test_leaving_names_what_to_do(ramp):
    """Too large a block: the shape that fits is named; too far a start: another start."""
    with pytest.raises(Mismatch, match=r"shape=\(40, 50, 60\).*pad='constant'"):
        ramp.read((0, 0, 0))
    with pytest.raises(Mismatch, match=r"30:46, 0:16, 0:16 \(z, y, x\) leaves level 0.*another start"):
        ramp.read((30, 0, 0), shape=16)


def test_wholly_outside(ramp):
    """Only `constant` can say what lies there."""
    block = ramp.read((1000, 0, 0), shape=4, pad="constant", fill=3)
    assert (block.data == 3).all()
    assert block.valid_fraction == 0
    with pytest.raises(Mismatch, match="wholly outside"):
        ramp.read((1000, 0, 0), shape=4, pad="edge")


def test_a_place_is_the_same_at_every_level(ramp):
    """By nanometres the nearest level is chosen, and the box holds the place."""
    center = ramp.box_nm.center
    for size, level in ((4.0, 0), (8.0, 1), (11.0, 1), (30.0, 2)):
        block = ramp.read(center_nm=center, shape=(4, 6, 8), voxel_size_nm=size)
        grid = ramp.levels[level].grid
        assert (block.level, block.voxel_size_nm) == (level, grid.voxel_size_nm)
        start, stop = np.array(block.box_nm.start), np.array(block.box_nm.stop)
        assert (np.abs((start + stop) / 2 - center) <= np.array(grid.voxel_size_nm) / 2 + 1e-9).all()
        assert block.box_nm == grid.box_nm(block.box)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "either start"),
        ({"start": (0, 0, 0), "center_nm": (0, 0, 0)}, "either start"),
        ({"start": (0, 0)}, "three whole numbers"),
        ({"start": (0.5, 0, 0)}, "three whole numbers"),
        ({"start": (0, 0, 0), "shape": 0}, "the shape is 0"),
        ({"start": (0, 0, 0), "shape": (4, 4)}, "the shape is"),
        ({"start": (0, 0, 0), "shape": 4, "level": 3}, "levels 0 to 2"),
        ({"start": (0, 0, 0), "shape": 4, "level": -1}, "levels 0 to 2"),
        ({"start": (0, 0, 0), "shape": 4, "voxel_size_nm": 8}, "goes with center_nm"),
        ({"center_nm": (200, 250, 350), "shape": 4, "level": 0, "voxel_size_nm": 8}, "give one of them"),
        ({"center_nm": (200, 250, 350), "shape": 4, "voxel_size_nm": 0}, "positive numbers"),
        ({"center_nm": (200, 250, float("nan")), "shape": 4}, "finite"),
        ({"start": (0, 0, 0), "shape": 4, "pad": "wrap"}, "pad is 'wrap'"),
        ({"start": (0, 0, 0), "shape": 4, "missing": "zero"}, "missing is 'zero'"),
        ({"start": (0, 0, 0), "shape": 4, "resample": True}, "takes voxel_size_nm"),
        ({"start": (0, 0, 0), "shape": 4, "dtype": "int8", "normalize": (0, 1)}, "does not hold"),
        ({"start": (0, 0, 0), "shape": 4, "normalize": (5, 5)}, "cannot become 0 and 1"),
        ({"start": (0, 0, 0), "shape": 4, "level": 1.0}, "expected a whole number"),
        ({"start": (0, 0, 0), "shape": 4, "fill": "a"}, "expected a number"),
        ({"start": (-1, 0, 0), "shape": 4, "pad": "constant", "fill": 1e300, "dtype": "float32"}, "does not hold"),
        ({"start": (0, 0, 0), "shape": 4, "normalize": "max"}, "normalize is 'max'"),
        ({"start": (0, 0, 0), "shape": 4, "normalize": (1,)}, "normalize is"),
        ({"start": (0, 0, 0), "shape": 4, "dtype": "uint8"}, "does not hold"),
        ({"start": (0, 0, 0), "shape": 4, "dtype": "int16"}, "does not hold"),
        ({"start": (0, 0, 0), "shape": 4, "dtype": "complex64"}, "does not hold"),
        ({"start": (0, 0, 0), "shape": 4, "dtype": "grey"}, "expected one such as"),
        ({"center_nm": (1, 2), "shape": 4}, "finite"),
        ({"center_nm": (200, 250, 350), "shape": 4, "voxel_size_nm": 1e308}, "positive numbers"),
        ({"center_nm": (200, 250, 350), "shape": 4, "voxel_size_nm": "8"}, "positive numbers"),
        ({"center_nm": (1, 2, 3), "shape": 4, "resample": True, "voxel_size_nm": 5, "level": 1}, "nothing beside"),
        ({"start": (0, 0, 0), "shape": True}, "the shape is"),
        ({"start": (0, 0, 0), "shape": "4"}, "the shape is"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read(ramp, asked, message):
    """A request that makes no sense is refused in a sentence."""
    with pytest.raises(Mismatch, match=message):
        ramp.read(**asked)


def test_many_are_the_same_as_one_by_one(ramp):
    """In order, in batches of the asked size, the last one smaller; overlapping boxes included."""
    starts = [(z, y, x) for z in (0, 3, 20) for y in (0, 17) for x in (1, 2, 40)]
    batches = list(ramp.read_many(starts, shape=(16, 16, 16), batch_size=5))
    assert [len(batch) for batch in batches] == [5, 5, 5, 3]
    for start, block in zip(starts, itertools.chain(*batches), strict=True):
        alone = ramp.read(start, shape=16)
        assert block.digest == alone.digest
        assert block.box_nm == alone.box_nm
    for batch in batches:
        assert (batch.data == np.stack([block.data for block in batch])).all()


def test_a_digest_tells_blocks_apart(ramp):
    """Equal requests have equal digests; one other voxel, dtype, shape or mask another."""
    block = ramp.read((1, 2, 3), shape=(4, 8, 8))
    assert block.digest == ramp.read((1, 2, 3), shape=(4, 8, 8)).digest
    others = [
        ramp.read((1, 2, 4), shape=(4, 8, 8)),
        ramp.read((1, 2, 3), shape=(4, 8, 8), dtype="uint32"),
        ramp.read((1, 2, 3), shape=(8, 4, 8)),
        em.Block(block.data, np.ones(block.data.shape, bool), block.box, block.box_nm, 0, block.voxel_size_nm, "x"),
    ]
    assert len({block.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize("made", [tuple, list, np.array, "tensor"], ids=["tuple", "list", "array", "tensor"])
def test_places_in_any_sequence(ramp, made):
    """As they come out of a data frame, a query or a network: the same blocks."""
    if made == "tensor":
        made = pytest.importorskip("torch", reason="torch is not installed (the extra `ml`)").tensor
    starts = [(1, 2, 3), (4, 5, 6)]
    expected = [ramp.read(start, shape=4) for start in starts]
    (batch,) = ramp.read_many(made(starts), shape=4)
    assert [block.digest for block in batch] == [block.digest for block in expected]
    assert ramp.read(made(starts[1]), shape=4).digest == expected[1].digest
    centers = [tuple(np.add(block.box_nm.start, block.box_nm.stop) / 2) for block in expected]
    (batch,) = ramp.read_many(centers_nm=made(centers), shape=4)
    assert [block.digest for block in batch] == [block.digest for block in expected]
    assert ramp.read(center_nm=made(centers[0]), shape=made((4, 4, 4))).digest == expected[0].digest


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "float32"])
def test_large_blocks_are_normalized_like_small_ones(dtype):
    """By parts, of which the last is not whole; each value as double precision, rounded once, gives it."""
    voxels = np.random.default_rng(1).integers(0, 120, (3, 59, 61, 63)).astype(dtype)
    assert voxels.size > 2 * NORMALIZED_AT_ONCE
    expected = ((voxels.astype("f8") - 3.3) / (99.9 - 3.3)).astype("f4")
    assert (_normalized(voxels, 3.3, 99.9) == expected).all()


def test_dtype_and_grey_values(ramp):
    """dtype is kept unless asked; two grey values become 0 and 1, exactly, and nothing is clipped."""
    plain = ramp.read((0, 0, 0), shape=8)
    assert plain.data.dtype == np.uint16
    mapped = ramp.read((0, 0, 0), shape=8, normalize=(10, 20))
    assert mapped.data.dtype == np.float32
    assert (mapped.data == ((plain.data.astype("f8") - 10) / 10).astype("f4")).all()
    assert (ramp.read((0, 0, 0), shape=8, normalize="range").data == (plain.data / 65535).astype("f4")).all()
    with pytest.raises(Unsupported, match=r"normalize=\(low, high\)"):
        ramp.read((0, 0, 0), shape=8, normalize="standard")


def test_types_that_hold_the_voxels(ramp):
    """Wider integers and floats, little endian whatever was asked for, so that digests are equal."""
    plain = ramp.read((0, 0, 0), shape=np.int64(8))
    for asked in ("uint32", "int64", "float32", "float16"):
        assert (ramp.read((0, 0, 0), shape=8, dtype=asked).data == plain.data).all()
    big, little = (ramp.read((0, 0, 0), shape=8, dtype=order + "u4") for order in "><")
    assert big.digest == little.digest


@pytest.mark.parametrize("pad", [None, "constant", "edge", "reflect"])
def test_what_is_missing_is_0_in_whatever_grey_values(tmp_path: Path, pad):
    """Missing voxels of a box within the volume are 0, so that equal requests have equal digests; padding is mapped."""
    voxels = voxels_of((16, 16, 16))
    volume = em.open(write_ome_zarr(tmp_path / "v.zarr", [voxels], chunk=(8, 8, 8), absent=[(0, 0, 0)]))
    block = volume.read((0, 0, 0), shape=16, missing="mask", normalize=(10, 20), pad=pad)
    assert (block.data[~block.valid] == 0).all()
    assert (block.data[block.valid] == ((voxels[block.valid] - 10.0) / 10).astype("f4")).all()
    if pad in ("edge", "constant"):
        beyond = volume.read((8, 8, 12), shape=8, normalize=(10, 20), pad=pad, fill=-3.5).data[0, 0, 4:]
        assert (beyond == np.float32((voxels[8, 8, 15] - 10.0) / 10 if pad == "edge" else -3.5)).all()


def test_a_nan_stays_where_it_is(tmp_path: Path):
    """Resampling onto the level's own voxels, shifted by whole ones along one axis, touches no neighbour."""
    voxels = np.full((4, 4, 4), 5, "f4")
    voxels[2, 2, 2] = np.nan
    volume = em.open(write_ome_zarr(tmp_path / "v.zarr", [voxels], chunk=(4, 4, 4), voxel_size_nm=(8.0, 8.0, 8.0)))
    block = volume.read(center_nm=(16.0, 16.0, 16.0), shape=(4, 4, 8), voxel_size_nm=(8.0, 8.0, 4.0), resample=True)
    assert np.isnan(block.data).sum() == 4  # the voxels along x whose middles lie between it and a neighbour
    assert not np.isnan(block.data[:2]).any()
    assert not np.isnan(block.data[3]).any()


def test_resampled_its_middle_is_exact(ramp):
    """Also where a level has the size that is asked for: voxels are taken from it only if they lie there."""
    size = ramp.levels[0].grid.voxel_size_nm
    center = (203.0, 251.5, 350.25)
    block = ramp.read(center_nm=center, shape=6, voxel_size_nm=size, resample=True)
    assert block.box_nm.center == pytest.approx(center, abs=1e-9)


@pytest.mark.parametrize(
    ("place", "kind", "content"),
    [
        ("labels/em.zarr", "mean", "image"),
        ("v.zarr/labels/nuc", "mean", "labels"),
        ("v.zarr", "nearest", "labels"),
        ("v.zarr", "mean", "image"),
    ],
)
def test_what_holds_labels(tmp_path: Path, place, kind, content):
    """A folder that somebody called `labels` makes no labels of images; a group of this name within an image does."""
    folder = tmp_path / place
    assert em.open(write_ome_zarr(folder, [voxels_of((8, 8, 8))], chunk=(8, 8, 8), kind=kind)).content == content


def test_resampled_to_an_own_level_is_that_level(ramp):
    """Where a level has exactly the size that is asked for, its voxels are given."""
    center = ramp.levels[1].grid.center_nm((7, 8, 9))
    size = ramp.levels[1].grid.voxel_size_nm
    exact = ramp.read(center_nm=center, shape=(3, 5, 5), voxel_size_nm=size, resample=True)
    assert exact.digest == ramp.read((6, 6, 7), shape=(3, 5, 5), level=1).digest


def test_linear_values_stay_linear(tmp_path: Path):
    """A ramp in space is the same ramp at any voxel size, to the last digits; its block lies where it was asked for."""
    z, y, x = np.meshgrid(*[np.arange(30) + 0.5] * 3, indexing="ij")
    size, corner = (8.0, 4.0, 2.96), (50.0, 0.0, -13.0)
    places = [c + s * a for c, s, a in zip(corner, size, (z, y, x), strict=True)]
    volume = em.open(
        write_ome_zarr(
            tmp_path / "ramp.zarr",
            [places[0] + 2 * places[1] - places[2]],
            chunk=(16, 16, 16),
            voxel_size_nm=size,
            corner_nm=corner,
        )
    )
    center = volume.box_nm.center
    block = volume.read(center_nm=center, shape=(9, 10, 11), voxel_size_nm=(8.5, 4.7, 3.24), resample=True)
    assert block.box_nm.center == pytest.approx(center)
    assert block.voxel_size_nm == (8.5, 4.7, 3.24)
    at = [
        a + s * (np.arange(n) + 0.5)
        for a, s, n in zip(block.box_nm.start, block.voxel_size_nm, (9, 10, 11), strict=True)
    ]
    wanted = at[0][:, None, None] + 2 * at[1][:, None] - at[2]
    assert np.abs(block.data - wanted).max() < 1e-9


def test_labels_are_never_mixed(tmp_path: Path):
    """Resampled labels are labels that are there, those at the middle of each voxel."""
    labels = (np.arange(8**3).reshape(8, 8, 8) * 1000).astype("uint32")
    volume = em.open(write_ome_zarr(tmp_path / "labels.zarr", [labels], chunk=(4, 4, 4), kind="nearest"))
    assert volume.content == "labels"
    block = volume.read(center_nm=volume.box_nm.center, shape=10, voxel_size_nm=3.0, resample=True)
    first = 32 - 15 + 1.5
    at = np.floor((first + 3.0 * np.arange(10)) / 8.0).astype(int)
    assert (block.data == labels[np.ix_(at, at, at)]).all()
    with pytest.raises(Mismatch, match="holds labels"):
        volume.read((0, 0, 0), shape=4, normalize=(0, 1))


def test_labels_of_another_resolution(ramp, tmp_path: Path):
    """Each voxel gets the label at its middle, by nanometres; where the labels end, 0 and not valid."""
    cells = np.arange(1, 1 + 5 * 4 * 3).reshape(5, 4, 3).astype("uint16")
    labels = em.open(
        write_ome_zarr(
            tmp_path / "labels.zarr",
            [cells],
            chunk=(4, 4, 4),
            voxel_size_nm=(32.0, 24.0, 40.0),
            corner_nm=(132.0, 212.0, 300.0),
            kind="nearest",
        )
    )
    block = ramp.read((2, 1, 5), shape=(30, 40, 50), labels=labels)
    grid = ramp.levels[0].grid
    for voxel in [(0, 0, 0), (2, 2, 0), (5, 10, 20), (21, 25, 24), (22, 3, 3), (29, 39, 49)]:
        place = grid.center_nm((2 + voxel[0], 1 + voxel[1], 5 + voxel[2]))
        index = labels.levels[0].grid.voxel_at(place)
        inside = all(0 <= i < n for i, n in zip(index, cells.shape, strict=True))
        assert block.labels_valid[voxel] == inside
        assert block.labels[voxel] == (cells[index] if inside else 0)


def test_a_lost_piece_is_never_black(tmp_path: Path):
    """A chunk that is absent: an error that names its box, a mask that is exact, or the fill value on request."""
    voxels = voxels_of((24, 24, 24))
    volume = em.open(
        write_ome_zarr(tmp_path / "v.zarr", [voxels], chunk=(8, 8, 8), shard=(24, 24, 24), absent=[(1, 0, 2)])
    )
    with pytest.raises(Mismatch, match=r"512 voxels of the box .* in 8:16, 0:8, 16:24 .*missing='mask'"):
        volume.read((0, 0, 0), shape=24)
    masked = volume.read((0, 0, 0), shape=24, missing="mask")
    assert masked.valid.sum() == 24**3 - 512
    assert not masked.valid[8:16, 0:8, 16:24].any()
    filled = volume.read((0, 0, 0), shape=24, missing="fill")
    assert filled.valid is None
    assert (filled.data[8:16, 0:8, 16:24] == 0).all()


def test_a_damaged_chunk_is_an_error(tmp_path: Path):
    """Of compressed chunks: bytes that do not unpack, an index whose checksum is wrong, a file that was cut."""
    folder = write_ome_zarr(tmp_path / "v.zarr", [voxels_of((16, 16, 16))], chunk=(8, 8, 8), shard=(16, 16, 16))
    shard = folder / "0/c/0/0/0"
    sound = shard.read_bytes()
    for damaged in (
        b"\0" * 200 + sound[200:],
        sound[:-1] + bytes([sound[-1] ^ 1]),
        sound[:40],
        sound[:-200],
        b"",
    ):
        shard.write_bytes(damaged)
        with pytest.raises(Malformed):
            em.open(folder).read((0, 0, 0), shape=16)
    shard.write_bytes(sound)
    em.open(folder).read((0, 0, 0), shape=16)


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path):
    """The same `Volume` gives what is there now, also while the index was kept."""
    folder = write_ome_zarr(tmp_path / "v.zarr", [voxels_of((8, 8, 8))], chunk=(4, 4, 4), shard=(8, 8, 8))
    volume = em.open(folder)
    before = volume.read((0, 0, 0), shape=8)
    other = write_ome_zarr(tmp_path / "w.zarr", [voxels_of((8, 8, 8), seed=1)], chunk=(4, 4, 4), shard=(8, 8, 8))
    (other / "0/c/0/0/0").replace(folder / "0/c/0/0/0")
    after = volume.read((0, 0, 0), shape=8)
    assert before.digest != after.digest
    assert (after.data == voxels_of((8, 8, 8), seed=1)).all()


def digest_of(volume: em.Volume) -> str:
    return volume.read((3, 3, 3), shape=20).digest


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_other_processes_read_the_same(ramp, method):
    """After the parent has read, a child of any kind that gets the volume reads the same."""
    here = digest_of(ramp)
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as children:
        assert list(children.map(digest_of, [ramp] * 3, timeout=120)) == [here] * 3


def test_threads_read_at_once(ramp):
    """One volume, sixteen threads, two hundred blocks."""
    here = digest_of(ramp)
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: digest_of(ramp), range(200))) == {here}


def test_a_volume_is_small_when_it_travels(ramp):
    """What a worker is sent is where the volume lies, not what is open."""
    ramp.read((0, 0, 0), shape=8)
    assert len(pickle.dumps(ramp)) < 4000


def test_what_is_not_there(tmp_path: Path):
    """A name nobody knows, one that no file can have, a path without anything, an address of another kind."""
    for name in ("no_such_dataset", "a" * 5000, "a" * 5000 + "#channel=1"):
        with pytest.raises(Unavailable, match="neither a dataset nor a folder"):
            em.open(name)
    with pytest.raises(Unavailable, match="neither a dataset nor a folder"):
        em.open(tmp_path / "nothing")
    with pytest.raises(Unsupported, match="ftp://"):
        em.open("ftp://example.org/v.zarr")


@pytest.mark.parametrize("fill", [-1, 70000, 0.5, float("nan")])
def test_a_fill_that_the_type_does_not_hold(ramp, fill):
    """It is not wrapped around."""
    with pytest.raises(Mismatch, match="does not hold fill"):
        ramp.read((-1, 0, 0), shape=4, pad="constant", fill=fill)


def test_a_folder_has_no_link(ramp):
    """No browser reads it: the sentence says what to do."""
    with pytest.raises(Unsupported, match="serve it"):
        ramp.read((0, 0, 0), shape=4).neuroglancer_url()
