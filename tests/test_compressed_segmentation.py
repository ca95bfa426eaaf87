"""Precomputed labels encoded as compressed_segmentation: real ones, other writers', and chunks damaged on purpose."""

import gzip
import hashlib
import json
import math
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.errors import Malformed, Unsupported
from em_assets.fetch.client import FolderClient, folder_url
from em_assets.formats.opening import open_volume
from em_assets.formats.precomputed import open_precomputed
from em_assets.settings import Settings
from em_assets.volume import Box, ceil_divide
from faulty import FaultyServer
from small import materialize, quick_settings, write_spec

SHAPE = (40, 50, 70)
"""(z, y, x); with chunks of 32 every axis ends in a smaller chunk, which ends in a smaller block."""
OFFSET = (300, 200, 100)
SHARDED = {
    "@type": "neuroglancer_uint64_sharded_v1",
    "preshift_bits": 1,
    "minishard_bits": 1,
    "shard_bits": 1,
    "hash": "identity",
    "data_encoding": "gzip",
}
BITS = (0, 1, 2, 4, 8, 16, 32)


def cells(shape, dtype, *, size=9, seed=0):
    """Neurons in a box: a coarse grid of large labels, 0 between some of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, np.iinfo(dtype).max, ceil_divide(shape, (size,) * 3), dtype=dtype, endpoint=True)
    labels[rng.random(labels.shape) < 0.3] = 0
    return np.kron(labels, np.ones((size,) * 3, dtype))[: shape[0], : shape[1], : shape[2]]


def noise(shape, dtype):
    """No two alike: the widest numbers."""
    return np.random.default_rng(1).permutation(math.prod(shape)).astype(dtype).reshape(shape)


def pack(volume, block, rng=None):
    """A chunk of one channel, packed from the format's description in whole numbers, without numpy.

    With `rng`, all that it leaves open is drawn: the order of tables and numbers, the order within a table, tables
    that blocks share, numbers wider than they need be, and gaps.
    """
    rng = rng or random.Random(0)
    item_bytes = volume.dtype.itemsize
    grid = ceil_divide(volume.shape, block)
    padded = np.pad(volume, [(0, g * b - n) for g, b, n in zip(grid, block, volume.shape, strict=True)], "edge")
    headers, words, known = {}, [], {}
    places = list(np.ndindex(*grid))
    for place in rng.sample(places, len(places)):
        corner = [p * b for p, b in zip(place, block, strict=True)]
        inside = padded[tuple(slice(a, a + b) for a, b in zip(corner, block, strict=True))].ravel().tolist()
        table = sorted(set(inside), key=lambda _: rng.random())
        bits = rng.choice([b for b in BITS if 2**b >= len(table)][: 1 if len(volume) > 20 else 3])
        packed = sum(table.index(label) << bits * i for i, label in enumerate(inside))
        numbers = packed.to_bytes(-(-bits * len(inside) // 32) * 4, "little")
        starts = {}
        for what in rng.sample(["table", "numbers"], 2):
            words += [0xFFFFFFFF] * rng.randrange(2)
            starts[what] = known.get(tuple(table)) if what == "table" else None
            if starts[what] is None:
                starts[what] = len(words)
                data = numbers if what == "numbers" else b"".join(n.to_bytes(item_bytes, "little") for n in table)
                words += struct.unpack(f"<{len(data) // 4}I", data)
        known[tuple(table)] = starts["table"]
        headers[place] = (starts["table"], bits, starts["numbers"])
    first = 2 * len(places)
    packed_headers = [n for p in places for n in (headers[p][0] + first | headers[p][1] << 24, headers[p][2] + first)]
    return struct.pack(f"<{1 + first + len(words)}I", 1, *packed_headers, *words)


def one_chunk(folder, data, shape, dtype="uint64", block=(8, 8, 8), **scale):
    """A volume that is this chunk."""
    scales = {
        "key": "8",
        "size": shape[::-1],
        "resolution": [8, 8, 8],
        "chunk_sizes": [shape[::-1]],
        "encoding": "compressed_segmentation",
        "compressed_segmentation_block_size": block[::-1],
    }
    document = {"type": "segmentation", "data_type": dtype, "num_channels": 1, "scales": [scales | scale]}
    (folder / "8").mkdir(parents=True, exist_ok=True)
    (folder / "info").write_text(json.dumps(document))
    (folder / "8" / "_".join(f"0-{n}" for n in shape[::-1])).write_bytes(data)
    return folder


def region_of(folder):
    """The whole volume as the pipeline gets it, with its samples."""
    reader = open_precomputed(folder_url(folder), 0, FolderClient(), Settings(workers=2))
    (outcome,) = reader.map_regions([Box.from_shape(reader.info.shape, at=reader.info.origin)], lambda region: region)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def check_samples(region):
    """The second way says what the first says."""
    assert region.samples
    for sample in region.samples:
        assert float(region.voxels[tuple(np.subtract(sample.position, region.box.start))]) == sample.value


def write(folder, volume, *, block=(8, 8, 8), sharding=None):
    """As tensorstore writes it."""
    ts = pytest.importorskip("tensorstore", reason="tensorstore is not installed")
    scale = {
        "size": volume.shape[::-1],
        "chunk_size": [32] * 3,
        "encoding": "compressed_segmentation",
        "compressed_segmentation_block_size": block[::-1],
        "resolution": [8.0, 10.0, 12.5],
        "voxel_offset": OFFSET[::-1],
        "key": "8_10_12",
    }
    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": f"file://{folder}/",
            "multiscale_metadata": {"type": "segmentation", "data_type": str(volume.dtype), "num_channels": 1},
            "scale_metadata": scale | ({"sharding": sharding} if sharding else {}),
        },
        create=True,
    ).result()
    store[..., 0] = volume.T
    return folder


# -- real labels and other implementations


def test_real_labels_are_those_of_an_independent_reader(realdata):
    """Ground truth of FIB-SEM tissue, in shards by hash; the digest was made with another reader."""
    region = region_of(realdata / "precomputed/gen_ts_fib25_gt_cseg_sharded")
    assert hashlib.sha256(region.voxels.tobytes()).hexdigest() == (
        "b6d1a4339c8e28128d4c0014473e00cc23b8849cb77229bc78de2302edfc5f32"
    )
    assert region.missing == ()
    check_samples(region)


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
@pytest.mark.parametrize("block", [(8, 8, 8), (4, 16, 10)], ids=str)
def test_the_reference_labels_of_neuroglancer(realdata, tmp_path, block, dtype):
    """As its own encoder packs them, and as they are packed here from the description."""
    packer = pytest.importorskip("compressed_segmentation", reason="compressed_segmentation is not installed")
    volume = np.fromfile(realdata / "precomputed/ng_cseg_64x64x64-raw-uint64.dat", "<u8").reshape(64, 64, 64)
    volume = volume.astype(dtype)
    theirs = packer.compress(np.asfortranarray(volume.T), block_size=block[::-1], order="F")
    for data in (bytes(theirs), pack(volume, block)):
        region = region_of(one_chunk(tmp_path, data, volume.shape, dtype, block))
        assert np.array_equal(region.voxels, volume)
        check_samples(region)
    assert np.array_equal(packer.decompress(data, (64,) * 3, dtype, block[::-1], order="F").T, volume)


@pytest.mark.parametrize("sharding", [None, SHARDED], ids=["plain", "sharded"])
@pytest.mark.parametrize("block", [(8, 8, 8), (5, 7, 12), (64, 64, 64), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("labels", [cells, noise])
@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_what_tensorstore_writes(tmp_path, dtype, labels, block, sharding):
    """Chunks and blocks that do not fit, blocks larger than their chunk, numbers of 0 to 16 bits."""
    volume = labels(SHAPE, dtype)
    region = region_of(write(tmp_path, volume, block=block, sharding=sharding))
    assert np.array_equal(region.voxels, volume)
    assert (region.voxels.dtype, region.box.start) == (np.dtype(dtype), OFFSET)
    check_samples(region)


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_what_cloud_volume_writes(tmp_path, dtype):
    """Its chunks are gzip files of another name."""
    cloudvolume = pytest.importorskip("cloudvolume", reason="cloud-volume is not installed")
    volume = cells(SHAPE, dtype)
    info = cloudvolume.CloudVolume.create_new_info(
        num_channels=1,
        layer_type="segmentation",
        data_type=dtype,
        encoding="compressed_segmentation",
        resolution=[8, 8, 8],
        voxel_offset=OFFSET[::-1],
        chunk_size=[32, 32, 32],
        volume_size=SHAPE[::-1],
    )
    theirs = cloudvolume.CloudVolume(f"file://{tmp_path}", info=info, progress=False)
    theirs.commit_info()
    theirs[:] = volume.T
    assert list(tmp_path.glob("*/*.gz"))
    assert np.array_equal(open_volume(tmp_path).read(), volume)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_the_description_leaves_open_is_read(tmp_path_factory, data):
    """Any block, any order, shared tables, numbers wider than need be up to 32 bits: the same labels."""
    shape = data.draw(st.tuples(*[st.integers(1, 12)] * 3))
    block = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    dtype = data.draw(st.sampled_from(["uint32", "uint64"]))
    few = data.draw(st.sampled_from([1, 2, 3, 5, 17, 300, 10**6]))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    palette = rng.integers(0, np.iinfo(dtype).max, few, dtype=dtype, endpoint=True)
    volume = palette[rng.integers(0, few, shape)]
    folder = tmp_path_factory.mktemp("chunk")
    packed = pack(volume, block, data.draw(st.randoms(use_true_random=False)))
    region = region_of(one_chunk(folder, packed, shape, dtype, block))
    assert np.array_equal(region.voxels, volume)
    check_samples(region)


# -- damage


LABELS = cells((16, 24, 20), "uint64", size=7)
PACKED = pack(LABELS, (8, 8, 8))
"""18 blocks, so 36 words of headers. The last blocks are padded."""


def with_header(data, block, *, table=None, bits=None, start=None):
    first, old_start = struct.unpack_from("<II", data, 4 + 8 * block)
    table = first & 0xFFFFFF if table is None else table
    bits = first >> 24 if bits is None else bits
    changed = bytearray(data)
    struct.pack_into("<II", changed, 4 + 8 * block, table | bits << 24, old_start if start is None else start)
    return bytes(changed)


WORDS = len(PACKED) // 4 - 1
DAMAGED = {
    "empty": (b"", "expected compressed_segmentation of one channel, plain or gzip-encoded, found 0 bytes"),
    "two channels": (struct.pack("<I", 2) + PACKED, "expected compressed_segmentation of one channel"),
    "raw": (LABELS.tobytes(), "expected compressed_segmentation of one channel"),
    "web page": (b"<html>404</html>", r"found 16 bytes beginning with b'<html>40'"),
    "gzip of raw": (gzip.compress(LABELS.tobytes()), "found gzip of 61440 other bytes"),
    "gzip cut": (gzip.compress(PACKED)[:-9], "middle of its gzip"),
    "gzip bomb": (gzip.compress(bytes(10**7)), "unpacks to more than"),
    "cut in the headers": (PACKED[:100], "of 100 bytes, expected a multiple of 4 and at least 148 for .* 18 blocks"),
    "odd length": (PACKED + b"\0", "expected a multiple of 4"),
    "cut at its end": (PACKED[:-4], rf"but there are {WORDS - 1}; report it"),
    "3 bits": (with_header(PACKED, 7, bits=3), r"block 1, 2, 0 \(x, y, z\) has numbers of 3 bits, expected 0, 1, 2"),
    "255 bits": (with_header(PACKED, 0, bits=255), "has numbers of 255 bits"),
    "table beyond": (with_header(PACKED, 5, table=2**24 - 1), "block 2, 1, 0 .* its table of labels would need"),
    "table in the headers": (with_header(PACKED, 17, table=35), "block 2, 2, 1 .* at word 35, inside the 36 words"),
    "numbers beyond": (with_header(PACKED, 0, bits=1, start=2**32 - 1), rf"would need {2**32 + 15} words"),
    "numbers that end beyond": (with_header(PACKED, 0, bits=32, start=WORDS - 511), f"would need {WORDS + 1} words"),
    "numbers in the headers": (with_header(PACKED, 0, bits=1, start=0), "begins at word 0, inside"),
    "a number beyond its table": (
        with_header(PACKED, 3, table=WORDS - 2, bits=32, start=WORDS - 512),
        r"block 0, 1, 0 .* its table of labels would need \d+ words",
    ),
}


@pytest.mark.parametrize(("data", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_chunk_is_named(tmp_path, data, said):
    """With the block and what is wrong; nothing is made up."""
    one_chunk(tmp_path, data, LABELS.shape)
    with pytest.raises(Malformed, match=said) as caught:
        open_volume(tmp_path).read()
    assert "chunk 0-20_0-24_0-16 (x, y, z) of file://" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(PACKED)), at=st.integers(0, len(PACKED) - 1), value=st.integers(0, 255))
def test_any_damage_is_malformed_or_other_labels(tmp_path_factory, cut, at, value):
    """Cut anywhere, any byte another: never another error, and what is read has the second way's values."""
    damaged = bytearray(PACKED)
    damaged[at] = value
    for data in (bytes(damaged), PACKED[:cut], bytes(damaged[:cut])):
        folder, said = one_chunk(tmp_path_factory.mktemp("chunk"), data, LABELS.shape), ""
        try:
            check_samples(region_of(folder))
        except Malformed as error:
            said = str(error)
        assert not said or "chunk 0-20_0-24_0-16" in said


def test_the_widest_sound_chunk_is_not_too_large(tmp_path):
    """32-bit numbers and an entry for each voxel, in blocks of one voxel."""
    volume = noise((16, 16, 16), "uint64")
    region = region_of(one_chunk(tmp_path, pack(volume, (1, 1, 1), random.Random(2)), volume.shape, block=(1, 1, 1)))
    assert np.array_equal(region.voxels, volume)


@pytest.mark.parametrize(
    ("scale", "dtype", "error", "said"),
    [
        pytest.param({"compressed_segmentation_block_size": None}, "uint64", Malformed, "size is absent", id="none"),
        pytest.param(
            {"compressed_segmentation_block_size": [8, 0, 8]}, "uint64", Malformed, "block_size/1 is 0", id="0"
        ),
        pytest.param(
            {"compressed_segmentation_block_size": [8, 8]}, "uint64", Malformed, "block_size/2 is absent", id="two axes"
        ),
        pytest.param(
            {"compressed_segmentation_block_size": [8, "8", 8]}, "uint64", Malformed, "block_size/1 is '8'", id="text"
        ),
        pytest.param(
            {"compressed_segmentation_block_size": [128, 64, 64]},
            "uint64",
            Unsupported,
            r"scales/0/compressed_segmentation_block_size is \[128, 64, 64\]: a block has 524288 voxels .* 262144",
            id="large block",
        ),
        pytest.param(
            {"chunk_sizes": [[2**20, 1, 1]], "compressed_segmentation_block_size": [1, 512, 512]},
            "uint64",
            Unsupported,
            "a chunk of whole blocks 274877906944; accepted are 262144 and 67108864",
            id="hostile padding",
        ),
        pytest.param({}, "uint8", Malformed, "data_type is uint8; such chunks hold uint32 or uint64", id="uint8"),
        pytest.param({}, "int32", Malformed, "data_type is int32", id="int32"),
        pytest.param({}, "float32", Malformed, "data_type is float32", id="float32"),
    ],
)
def test_a_block_size_that_cannot_be_is_refused(tmp_path, scale, dtype, error, said):
    """When the volume is opened, before any chunk."""
    one_chunk(tmp_path, PACKED, LABELS.shape, dtype, **scale)
    with pytest.raises(error, match=said):
        open_volume(tmp_path)


# -- the whole job


def test_a_published_segmentation_is_materialized_as_labels(tmp_path, realdata):
    """A crop in uint64, exact; a coarser level takes voxel 2i, never a mean, which would be another neuron."""
    zarr = pytest.importorskip("zarr")
    folder = realdata / "precomputed/gen_ts_fib25_gt_cseg_sharded"
    with FaultyServer(folder) as server:
        spec = write_spec(
            tmp_path / "specs",
            server.url,
            name="labels",
            content="labels",
            source={"url": server.url},
            crop={"shape": [64, 150, 180]},
            expected={
                "source_shape": [64, 192, 192],
                "dtype": "uint64",
                "voxel_size_nm": [10.0, 10.0, 10.0],
                "chunk": [64, 64, 64],
            },
        )
        record, _ = materialize(spec, quick_settings(tmp_path / "store"))
    published = open_volume(folder).read()
    volume = Path(record.local_paths["volume"])
    finest, coarser = (zarr.open_array(str(volume / level), mode="r")[:] for level in "01")
    assert (record.status, finest.dtype, finest.shape) == ("complete", np.dtype("uint64"), (64, 150, 180))
    assert np.array_equal(finest, published[record.source_box.slices])
    assert np.array_equal(coarser, finest[::2, ::2, ::2])
    assert len(np.unique(finest)) > 100
