"""The sample's precomputed writer, read back by tensorstore and cloud-volume: two readers it shares no code with."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_assets.errors import Unsupported
from em_assets.sample.precomputed import Sharding, morton_id, write_precomputed
from em_assets.sample.texture import draw

ts = pytest.importorskip("tensorstore")

IDENTITY = Sharding(1, 2, 2)
SHARDINGS = [
    pytest.param(None, id="unsharded"),
    pytest.param(IDENTITY, id="identity"),
    pytest.param(Sharding(0, 0, 0), id="one-shard"),
    pytest.param(Sharding(0, 0, 5), id="two-digit-names"),
    pytest.param(Sharding(1, 1, 2, "murmurhash3_x86_128"), id="murmurhash"),
    pytest.param(Sharding(0, 2, 1, minishard_index_encoding="raw"), id="raw-index"),
    pytest.param(Sharding(1, 2, 2, data_encoding="gzip"), id="gzip-data"),
    pytest.param(Sharding(2, 1, 1, "murmurhash3_x86_128", "raw", "gzip"), id="murmurhash-raw-index-gzip-data"),
]
OFFSET = (-8, 6, 1000)


@pytest.fixture(scope="module")
def volume():
    """Odd sizes, more than one chunk of 16 on each axis, and an empty outside."""
    return draw((53, 41, 71), seed=7, fill=0.85)


def read_tensorstore(folder, level=0):
    """(z, y, x) voxels and offset of a scale."""
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "scale_index": level,
        "fill_missing_data_reads": True,
    }
    store = ts.open(spec, open=True, read=True).result()
    return store[..., 0].read().result().T, tuple(reversed(store.domain.inclusive_min[:3]))


def read_cloudvolume(folder, level=0):
    cloudvolume = pytest.importorskip("cloudvolume")
    opened = cloudvolume.CloudVolume(f"file://{folder}", mip=level, fill_missing=True, progress=False, cache=False)
    return np.asarray(opened[:])[..., 0].T


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("encoding", ["raw", "png", "jpeg"])
def test_both_readers_see_the_voxels_that_were_written(tmp_path, volume, encoding, sharding):
    """raw and png come back exactly; a jpeg is decoded alike by both and is close to what was written."""
    write_precomputed(tmp_path, volume, chunk=16, levels=2, encoding=encoding, voxel_offset=OFFSET, sharding=sharding)
    voxels, offset = read_tensorstore(tmp_path)
    assert offset == OFFSET
    if encoding != "png":  # cloud-volume reads png with an optional package only
        np.testing.assert_array_equal(read_cloudvolume(tmp_path), voxels)
        np.testing.assert_array_equal(read_cloudvolume(tmp_path, 1), read_tensorstore(tmp_path, 1)[0])
    if encoding == "jpeg":
        assert np.abs(voxels.astype(int) - volume).mean() < 6
    else:
        np.testing.assert_array_equal(voxels, volume)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"])
def test_raw_keeps_every_dtype(tmp_path, dtype):
    """Values of the whole range come back with their dtype."""
    words = np.random.default_rng(1).integers(0, 256, (9, 10, 11, 4), np.uint8)
    voxels = words.view(np.int32)[..., 0]
    voxels = voxels.astype(dtype) if dtype == "float32" else voxels.astype(dtype, casting="unsafe")
    write_precomputed(tmp_path, voxels, chunk=8, levels=1, encoding="raw", sharding=IDENTITY)
    found, _ = read_tensorstore(tmp_path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, voxels)


def test_png_keeps_sixteen_bits(tmp_path):
    """uint16 in png comes back exactly."""
    voxels = np.random.default_rng(2).integers(0, 65536, (9, 10, 11), np.uint16)
    write_precomputed(tmp_path, voxels, chunk=8, levels=1, encoding="png")
    np.testing.assert_array_equal(read_tensorstore(tmp_path)[0], voxels)


def test_empty_chunks_are_missing_from_the_shards(tmp_path, volume):
    """Left out, they read as zero; kept, the volume reads the same and is larger."""
    sizes = []
    for skip in (True, False):
        folder = tmp_path / str(skip)
        write_precomputed(folder, volume, chunk=16, levels=1, encoding="raw", sharding=IDENTITY, skip_empty_chunks=skip)
        np.testing.assert_array_equal(read_tensorstore(folder)[0], volume)
        sizes.append(sum(file.stat().st_size for file in folder.rglob("*.shard")))
    assert sizes[0] < sizes[1]


def test_an_empty_volume_has_no_shards(tmp_path):
    """Nothing but `info` and empty folders, and it reads as zeros."""
    write_precomputed(tmp_path, np.zeros((20, 20, 20), np.uint8), chunk=8, levels=2, sharding=IDENTITY)
    assert not list(tmp_path.rglob("*.shard"))
    assert not read_tensorstore(tmp_path)[0].any()


def test_levels_round_up_and_average_real_voxels(tmp_path):
    """269 halves to 135, a constant volume stays constant at odd edges, and each mean is exact."""
    shape = (3, 5, 269)
    write_precomputed(tmp_path / "flat", np.full(shape, 77, np.uint8), levels=9, encoding="raw")
    sizes = [scale["size"] for scale in json.loads((tmp_path / "flat" / "info").read_text())["scales"]]
    assert [size[0] for size in sizes] == [269, 135, 68, 34, 17, 9, 5, 3, 2]
    assert all((read_tensorstore(tmp_path / "flat", level)[0] == 77).all() for level in range(9))

    ramp = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    write_precomputed(tmp_path / "ramp", ramp, levels=2, encoding="raw")
    coarse, _ = read_tensorstore(tmp_path / "ramp", 1)
    assert coarse[0, 0, 0] == int(ramp[:2, :2, :2].mean() + 0.5)
    assert coarse[1, 2, 134] == ramp[2, 4, 268]


def test_levels_stay_aligned_at_an_odd_offset(tmp_path):
    """Coarse voxel j covers fine voxels 2j and 2j + 1 of the publisher's grid, whatever the offset."""
    voxels = np.arange(6, dtype=np.uint8).reshape(1, 1, 6) * 10
    write_precomputed(tmp_path, voxels, levels=2, encoding="raw", voxel_offset=(0, 0, 5))
    coarse, offset = read_tensorstore(tmp_path, 1)
    assert offset == (0, 0, 2)
    assert coarse.ravel().tolist() == [0, 15, 35, 50]


def test_info_is_like_the_hemibrains(tmp_path):
    """Key form, nine scales, sizes x first, and shard bits that shrink by three a level."""
    volume = draw((40, 50, 60))
    write_precomputed(tmp_path, volume, sharding=Sharding(3, 2, 4))
    info = json.loads((tmp_path / "info").read_text())
    scales = info["scales"]
    assert (info["@type"], info["type"], info["data_type"]) == ("neuroglancer_multiscale_volume", "image", "uint8")
    assert len(scales) == 9
    assert scales[0]["key"] == "8.0x8.0x8.0"
    assert scales[0]["size"] == [60, 50, 40]
    assert scales[8]["resolution"] == [2048.0] * 3
    bits = [[s["sharding"][b] for b in ("preshift_bits", "minishard_bits", "shard_bits")] for s in scales[:5]]
    assert bits == [[3, 2, 4], [3, 2, 1], [3, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_the_same_volume_gives_the_same_bytes(tmp_path, volume):
    """Every file of two runs is equal, gzip's time stamps included."""
    digests = []
    for run in ("a", "b"):
        write_precomputed(tmp_path / run, volume, chunk=16, levels=3, sharding=Sharding(1, 1, 2, data_encoding="gzip"))
        files = sorted(f for f in (tmp_path / run).rglob("*") if f.is_file())
        digests.append([(f.relative_to(tmp_path / run), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files])
    assert digests[0] == digests[1]
    assert len(digests[0]) > 5


@given(st.tuples(*[st.integers(1, 9)] * 3))
def test_chunk_ids_are_distinct_and_as_short_as_can_be(grid):
    """Compressed Morton codes of a grid never collide and need no bit more than its axes do."""
    ids = [morton_id((z, y, x), grid) for z in range(grid[0]) for y in range(grid[1]) for x in range(grid[2])]
    assert len(set(ids)) == len(ids)
    assert max(ids) < 1 << sum((n - 1).bit_length() for n in grid)


@pytest.mark.parametrize(
    ("dtype", "encoding", "chunk", "message"),
    [
        pytest.param("uint16", "jpeg", 64, "jpeg chunks cannot hold uint16; convert it to one of uint8", id="dtype"),
        pytest.param("float64", "raw", 64, "raw chunks cannot hold float64", id="float64"),
        pytest.param("uint8", "jpeg", 256, "a JPEG is at most 65535 high, a chunk of 256 needs 65536", id="chunk"),
    ],
)
def test_what_cannot_be_written_is_refused_first(tmp_path, dtype, encoding, chunk, message):
    """A typed error names what was given and what is accepted, and nothing is left on disk."""
    with pytest.raises(Unsupported, match=message):
        write_precomputed(tmp_path / "v", np.ones((4, 4, 4), dtype), encoding=encoding, chunk=chunk)
    assert not (tmp_path / "v").exists()
