"""The precomputed reader against real files, tensorstore, cloud-volume, and volumes damaged on purpose."""

import gzip
import hashlib
import io
import itertools
import json
import re
import shutil
import struct
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch import attempts
from em_assets.fetch.http import HostUnreachable, HttpClient, NotThere
from em_assets.formats import _chunk_codec, _precomputed_regions, _sharded
from em_assets.formats._precomputed_info import parse_info
from em_assets.formats._sharded import morton_bits, morton_ids
from em_assets.formats.precomputed import open_precomputed
from em_assets.settings import Settings
from em_assets.volume import Box, ceil_divide, subtract
from faulty import Fault, FaultyServer

SHAPE = (100, 130, 150)
"""(z, y, x); with chunks of 32 every axis ends in a smaller chunk."""
OFFSET = (2600, 200, 100)
SHARDED = {
    "@type": "neuroglancer_uint64_sharded_v1",
    "preshift_bits": 2,
    "minishard_bits": 2,
    "shard_bits": 3,
    "hash": "identity",
    "minishard_index_encoding": "gzip",
    "data_encoding": "raw",
}
SPEED = {"unreachable_seconds": 1.0, "retry_seconds": 1.0, "connect_seconds": 1.0, "read_seconds": 1.0, "workers": 2}


def texture(shape=SHAPE, dtype="uint8", seed=0):
    """Smooth enough for JPEG, different everywhere."""
    z, y, x = np.indices(shape, dtype=np.float32)
    waves = np.sin(z / 5) + np.sin(y / 7 + z / 11) + np.sin(x / 9)
    noise = np.random.default_rng(seed).normal(0, 0.2, shape)
    scaled = (waves + noise + 4) / 8
    if dtype == "float32":
        return scaled.astype(dtype)
    limits = np.iinfo(dtype)
    return (scaled * min(float(limits.max), 2.0**53)).astype(dtype)


def write(folder, volume, *, encoding="jpeg", sharding=None, chunk=32, offset=OFFSET, gaps=()):
    """A volume as tensorstore writes it; the chunks at `gaps` (z, y, x cells) are never written."""
    ts = pytest.importorskip("tensorstore")
    scale = {
        "size": volume.shape[::-1],
        "chunk_size": [chunk] * 3,
        "encoding": encoding,
        "resolution": [8.0, 10.0, 12.5],
        "voxel_offset": offset[::-1],
        "key": "8_10_12",
    }
    if encoding == "jpeg":
        scale["jpeg_quality"] = 85
    if sharding:
        scale["sharding"] = sharding
    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": f"file://{folder}/",
            "multiscale_metadata": {"type": "image", "data_type": str(volume.dtype), "num_channels": 1},
            "scale_metadata": scale,
        },
        create=True,
    ).result()
    with ts.Transaction() as transaction:
        target = store.with_transaction(transaction)
        for cell in Box.from_shape(volume.shape).cells((chunk,) * 3):
            if cell not in gaps:
                z, y, x = (slice(c * chunk, (c + 1) * chunk) for c in cell)
                part = volume[z, y, x]
                start = [c * chunk + o for c, o in zip(cell, offset, strict=True)][::-1]
                box = tuple(slice(a, a + n) for a, n in zip(start, part.shape[::-1], strict=True))
                target[(*box, 0)] = part.T
    return folder


def tensorstore_voxels(folder):
    """The oracle: (z, y, x), missing chunks 0."""
    import tensorstore as ts

    store = ts.open({"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}/"}, open=True).result()
    return store[..., 0].read().result().T


def reader_of(server, path="", **changes):
    values = Settings(**{**SPEED, **changes})
    return open_precomputed(f"{server.url}/{path}".rstrip("/"), 0, HttpClient(values), values)


def whole(reader):
    return Box.from_shape(reader.info.shape, at=reader.info.origin)


def read(reader, *boxes):
    """The regions, in the order of the boxes; the first error is raised."""
    outcomes = {outcome.box: outcome for outcome in reader.map_regions(boxes, lambda region: region)}
    for outcome in outcomes.values():
        if outcome.error is not None:
            raise outcome.error
    return [outcomes[box].value for box in boxes]


def edit_info(folder, change):
    info = json.loads((folder / "info").read_text())
    change(info)
    (folder / "info").write_text(json.dumps(info))


@pytest.fixture(scope="module", autouse=True)
def _short_backoff():
    """Faults are tried again soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "BACKOFF_SECONDS", 0.02)
        yield


@pytest.fixture
def jpeg_shards(tmp_path):
    """The hemibrain's layout in small: sharded, JPEG, identity, gzip minishard indices."""
    return write(tmp_path / "volume", texture(), sharding=SHARDED)


# -- real files


@pytest.mark.parametrize(
    ("name", "sha256", "missing"),
    [
        ("gen_ts_fib25_raw", "e485d6316af392f10e920b0e1ab5ec77908ee6f535f271cf7945674468937654", 0),
        ("gen_ts_fib25_jpeg", "018263065a61aefb18872cc7e9a717d6c2072f28150193912943bc2270514918", 0),
        ("gen_ts_fib25_sharded_jpeg", "54d5f21f60cf668ed3c0db6f30c2d2eb19039e8c137cfbe1afe6d51611c1fa4b", 0),
        ("damaged_ts_fib25_raw_missing_chunk", "406829f3205e33711699431e2c0e4c733fc0d8f0f5a21bfa75247b231aaf4ebe", 1),
    ],
)
def test_real_voxels_are_those_of_independent_readers(realdata, name, sha256, missing):
    """The digests were made with another reader, of voxels from a FIB-SEM microscope."""
    with FaultyServer(realdata / "precomputed") as server:
        reader = reader_of(server, name)
        (region,) = read(reader, whole(reader))
    assert hashlib.sha256(region.voxels.tobytes()).hexdigest() == sha256
    assert len(region.missing) == missing
    assert all(
        not region.voxels[box.shifted(subtract((0, 0, 0), region.box.start)).slices].any() for box in region.missing
    )


def test_a_truncated_real_chunk_is_an_error(realdata):
    """Not zeros, not garbage: the chunk is named."""
    with FaultyServer(realdata / "precomputed") as server:
        reader = reader_of(server, "damaged_ts_fib25_raw_truncated_chunk")
        with pytest.raises(Malformed, match=r"chunk 100-164_264-328_2600-2640 .*expected 163840 bytes .* found 81920"):
            read(reader, whole(reader))


def test_real_gzip_chunks(realdata, tmp_path):
    """cloud-volume stores gzip-encoded chunks; whoever copies them serves them without saying so."""
    source = realdata / "precomputed/gen_cv_fib25_raw_gz_2mips"
    shutil.copytree(source, tmp_path / "v", copy_function=shutil.copyfile)
    for file in (tmp_path / "v").rglob("*.gz"):
        file.rename(file.with_suffix(""))
    with FaultyServer(tmp_path) as server:
        reader = reader_of(server, "v")
        (region,) = read(reader, whole(reader))
        assert reader.data_encoding_met == {"gzip"}
        coarse = reader.at_level(1)
        assert coarse.info.shape == (24, 96, 96)
        assert coarse.info.origin == (50, 0, 0)
        (rough,) = read(coarse, whole(coarse))
    first = np.frombuffer(gzip.decompress((source / "10_10_10/0-64_64-128_116-132.gz").read_bytes()), "u1")
    assert (region.voxels[16:32, 64:128, 0:64] == first.reshape(16, 64, 64)).all()
    assert abs(float(rough.voxels.mean()) - float(region.voxels.mean())) < 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cv_seg_compresso", r"'compresso'; accepted are raw, jpeg, png"),
        ("ng_two_channels_info", r"num_channels is 2; accepted is 1"),
        ("webilastik_c_cells_2.precomputed", r"num_channels is 3; accepted is 1"),
    ],
)
def test_real_volumes_of_other_kinds_are_refused(realdata, name, said):
    """Well formed, but not what is read here; the message says what would be."""
    with FaultyServer(realdata / "precomputed") as server, pytest.raises(Unsupported, match=said):
        reader_of(server, name)


def test_real_info_documents_are_understood(realdata):
    """MICrONS and cloud-volume's own: members nobody needs are let through."""
    for name, levels in (("cv_minnie65_graphene_sharded.info.json", 10), ("cv_test_cv.info.json", 5)):
        document = (realdata / "precomputed/info_samples" / name).read_bytes()
        assert len(parse_info(document, "http://x/info").scales) == levels


# -- other implementations


@pytest.mark.parametrize("minishard_index_encoding", ["raw", "gzip"])
@pytest.mark.parametrize("data_encoding", ["raw", "gzip"])
@pytest.mark.parametrize("hash_name", ["identity", "murmurhash3_x86_128"])
@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_shards_of_tensorstore(tmp_path, encoding, hash_name, data_encoding, minishard_index_encoding):
    """Every combination of the sharded format's options, edge chunks and offsets included."""
    sharding = SHARDED | {
        "hash": hash_name,
        "data_encoding": data_encoding,
        "minishard_index_encoding": minishard_index_encoding,
    }
    folder = write(tmp_path / "v", texture(), encoding=encoding, sharding=sharding)
    with FaultyServer(tmp_path) as server:
        reader = reader_of(server, "v")
        (region,) = read(reader, whole(reader))
        plan = reader.plan([whole(reader)])
    assert (region.voxels == tensorstore_voxels(folder)).all()
    assert reader.data_encoding_met == {data_encoding}
    assert (plan.chunks, plan.missing_chunks) == (4 * 5 * 5, 0)
    assert region.received_bytes <= plan.received_bytes


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32"])
def test_every_data_type_raw(tmp_path, dtype):
    """Little endian, x fastest, exact."""
    volume = texture(dtype=dtype)
    write(tmp_path / "v", volume, encoding="raw")
    with FaultyServer(tmp_path) as server:
        reader = reader_of(server, "v")
        (region,) = read(reader, whole(reader))
    assert region.voxels.dtype == np.dtype(dtype)
    assert (region.voxels == volume).all()
    assert reader.info.dtype == dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("sharding", [None, SHARDED])
def test_png_is_exact(tmp_path, dtype, sharding):
    """8 and 16 bits."""
    volume = texture(dtype=dtype)
    write(tmp_path / "v", volume, encoding="png", sharding=sharding)
    with FaultyServer(tmp_path) as server:
        reader = reader_of(server, "v")
        (region,) = read(reader, whole(reader))
    assert (region.voxels == volume).all()
    check_samples(region)


@pytest.mark.slow
def test_what_cloud_volume_reads(jpeg_shards):
    """A third implementation, of shards and JPEG."""
    cloudvolume = pytest.importorskip("cloudvolume")
    theirs = cloudvolume.CloudVolume(f"file://{jpeg_shards}", progress=False)[:][..., 0].T
    with FaultyServer(jpeg_shards) as server:
        reader = reader_of(server)
        (region,) = read(reader, whole(reader))
    assert (region.voxels == theirs).all()


def test_info_says_where_and_how_large(jpeg_shards):
    """x, y, z is turned around, resolution is float nanometres, the raw document and its reply are kept."""
    with FaultyServer(jpeg_shards) as server:
        reader = reader_of(server)
    assert reader.info.shape == SHAPE
    assert reader.info.origin == OFFSET
    assert reader.info.chunk == (32, 32, 32)
    assert reader.info.voxel_size_nm == (12.5, 10.0, 8.0)
    assert reader.info_document == (jpeg_shards / "info").read_bytes()
    assert reader.info_reply.content_encoding == "gzip"
    assert reader.info_reply.etag
    assert [scale.key for scale in reader.scales] == ["8_10_12"]


# -- boxes


def boxes_of(shape, offset):
    def box(corners):
        low, high = zip(*(sorted(pair) for pair in corners), strict=True)
        return Box(low, tuple(b + 1 for b in high)).shifted(offset)

    return st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)) for n in shape)).map(box)


def octants():
    """The volume cut in eight, across its chunks."""
    corners = itertools.product((0, 50), (0, 65), (0, 75))
    return [Box.from_shape((50, 65, 75), at=tuple(np.add(OFFSET, corner))) for corner in corners]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Sharded and unsharded, with a missing chunk: (server, what tensorstore reads)."""
    folder = tmp_path_factory.mktemp("served")
    gaps = [(1, 2, 3), (3, 4, 4)]
    for name, sharding in (("sharded", SHARDED), ("plain", None)):
        write(folder / name, texture(), sharding=sharding, gaps=gaps)
    with FaultyServer(folder) as server:
        yield server, tensorstore_voxels(folder / "sharded")


@pytest.mark.parametrize("name", ["sharded", "plain"])
@pytest.mark.parametrize("memory_bytes", [2**28, 2**20], ids=["roomy", "tight"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(boxes=st.lists(boxes_of(SHAPE, OFFSET), min_size=1, max_size=5, unique=True))
@example(boxes=[Box.from_shape((1, 1, 1), at=OFFSET)])
@example(boxes=[Box.from_shape(SHAPE, at=OFFSET)])
def test_any_boxes_are_right(served, name, memory_bytes, boxes):
    """Overlapping or not, aligned or not: the voxels, the missing parts and the samples of each."""
    server, voxels = served
    reader = reader_of(server, name, memory_bytes=memory_bytes)
    for region in read(reader, *boxes):
        local = region.box.shifted(subtract((0, 0, 0), OFFSET))
        assert (region.voxels == voxels[local.slices]).all()
        gaps = [Box((32, 64, 96), (64, 96, 128)), Box((96, 128, 128), (100, 130, 150))]
        clipped = (gap.intersection(local) for gap in gaps)
        assert region.missing == tuple(gap.shifted(OFFSET) for gap in clipped if gap)
        check_samples(region)


def check_samples(region):
    """The second decoder says what the first says."""
    for sample in region.samples:
        assert region.voxels[tuple(np.subtract(sample.position, region.box.start))] == sample.value


@pytest.mark.parametrize("name", ["sharded", "plain"])
def test_samples_are_taken_and_repeatable(served, name):
    """Two chunks, 64 voxels each, the same for the same box."""
    server, _ = served
    box = Box.from_shape((64, 64, 64), at=OFFSET)
    first, again = (read(reader_of(server, name), box)[0] for _ in range(2))
    assert len(first.samples) == 128
    assert first.samples == again.samples
    assert len({sample.position for sample in first.samples}) > 100


@pytest.mark.parametrize(
    "box",
    [
        Box.from_shape((10, 10, 10), at=(0, 0, 0)),
        Box.from_shape((101, 10, 10), at=OFFSET),
        Box.from_shape((0, 10, 10), at=OFFSET),
    ],
    ids=["elsewhere", "beyond", "empty"],
)
def test_boxes_outside_are_refused(served, box):
    """Before anything is fetched."""
    server, _ = served
    with pytest.raises(Mismatch, match="is empty or leaves the volume"):
        read(reader_of(server, "sharded"), box)


def test_no_boxes_are_no_work(served):
    """Nothing is asked for."""
    server, _ = served
    reader = reader_of(server, "sharded")
    assert list(reader.map_regions([], lambda region: region)) == []
    assert reader.plan([]).requests == 0


def test_the_plan_is_what_happens(served):
    """Requests and bytes of voxels, known beforehand; progress ends at 100 %."""
    server, _ = served
    reader = reader_of(server, "sharded")
    boxes = octants()
    plan = reader.plan(boxes)
    before, heard = server.requests, []
    for outcome in reader.map_regions(boxes, lambda region: None, on_bytes=heard.append):
        assert outcome.error is None
    assert server.requests - before == plan.requests
    assert sum(heard) == plan.received_bytes
    assert plan.missing_chunks == 2
    assert plan.chunks == 100


def test_a_whole_volume_takes_few_requests(jpeg_shards):
    """A hundred chunks in eight shards: the index of each shard, its minishards, its voxels."""
    shards = len(list(jpeg_shards.glob("*/*.shard")))
    with FaultyServer(jpeg_shards) as server:
        reader = reader_of(server)
        read(reader, whole(reader))
    assert server.requests <= 1 + 3 * shards


def test_chunks_that_regions_share_are_decoded_once(served, monkeypatch):
    """An unaligned cut costs no second decoding while the cache has room."""
    server, _ = served
    decoded = []
    original = _chunk_codec.ChunkCodec.decode
    monkeypatch.setattr(_chunk_codec.ChunkCodec, "decode", lambda *args: (decoded.append(1), original(*args))[1])
    boxes = octants()
    read(reader_of(server, "sharded", workers=1), *boxes)
    assert len(decoded) == 98


# -- Morton codes


@given(
    st.tuples(*[st.integers(1, 3000)] * 3),
    st.lists(st.tuples(*[st.integers(0, 2999)] * 3), min_size=1, max_size=20),
)
def test_morton_ids_follow_the_definition(grid, cells):
    """Bit i of x, y, z in turn, as long as 2**i is less than the grid's size."""
    cells = [tuple(c % n for c, n in zip(cell, grid, strict=True)) for cell in cells]
    ids = morton_ids(np.array(cells, np.int64), grid)
    for cell, found in zip(cells, ids.tolist(), strict=True):
        bits = [
            (coordinate >> i) & 1
            for i in range(12)
            for coordinate, size in zip(cell[::-1], grid[::-1], strict=True)
            if 2**i < size
        ]
        assert found == sum(bit << place for place, bit in enumerate(bits))
        assert found < 2 ** morton_bits(grid)


def test_the_hemibrains_ids_have_30_bits():
    """538 x 621 x 647 chunks need 10 bits each, which are its preshift, minishard and shard bits together."""
    assert morton_bits((647, 621, 538)) == 9 + 6 + 15


# -- what is missing


def test_absent_shards_and_minishards_are_missing_chunks(jpeg_shards):
    """Whole shards that were never written, because nothing is there."""
    gone = sorted(jpeg_shards.glob("*/*.shard"))[1]
    gone.unlink()
    expected = tensorstore_voxels(jpeg_shards)
    with FaultyServer(jpeg_shards) as server:
        reader = reader_of(server)
        (region,) = read(reader, whole(reader))
        plan = reader.plan([whole(reader)])
    assert (region.voxels == expected).all()
    assert len(region.missing) == plan.missing_chunks > 0
    assert plan.received_bytes > 0


@pytest.mark.parametrize("status", [403, 404])
@pytest.mark.parametrize("sharding", [None, SHARDED])
def test_a_volume_without_any_chunk(tmp_path, status, sharding):
    """FAFB's finest level is such a placeholder; S3 without a listing permission answers 403 for it."""
    write(tmp_path / "v", texture(), sharding=sharding)
    with FaultyServer(tmp_path) as server:
        server.fail = lambda path, *_: None if path.endswith("info") else Fault(status=status)
        reader = reader_of(server, "v")
        (region,) = read(reader, whole(reader))
    assert sum(box.voxels for box in region.missing) == region.box.voxels
    assert not region.voxels.any()
    assert region.samples == ()
    assert region.received_bytes == 0


@pytest.mark.parametrize("sharding", [None, SHARDED])
def test_a_403_is_not_absence_when_everything_is_refused(tmp_path, sharding):
    """A server that blocks us would otherwise look like an empty volume."""
    write(tmp_path / "v", texture(), sharding=sharding)
    with FaultyServer(tmp_path) as server:
        reader = reader_of(server, "v")
        server.fail = lambda *_: Fault(status=403)
        (outcome,) = reader.map_regions([whole(reader)], lambda region: region)
    assert isinstance(outcome.error, Unavailable)
    assert "is not taken for missing" in str(outcome.error)


def test_the_older_form_of_shards(jpeg_shards):
    """`.index` and `.data` in place of `.shard`: found out once, then asked for at once."""
    expected = tensorstore_voxels(jpeg_shards)
    index_bytes = 16 * 2 ** SHARDED["minishard_bits"]
    for shard in list(jpeg_shards.glob("*/*.shard")):
        data = shard.read_bytes()
        shard.with_suffix(".index").write_bytes(data[:index_bytes])
        shard.with_suffix(".data").write_bytes(data[index_bytes:])
        shard.unlink()
    with FaultyServer(jpeg_shards) as server:
        reader = reader_of(server)
        (region,) = read(reader, whole(reader))
        assert sum(path.endswith(".shard") for _, path, _ in server.log) == 1
    assert (region.voxels == expected).all()
    assert region.missing == ()


# -- damage: info


def info(**scale):
    scales = [
        {"key": "8", "size": [64, 64, 64], "resolution": [8, 8, 8], "chunk_sizes": [[64, 64, 64]], "encoding": "raw"}
    ]
    scales[0] |= scale
    return {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": scales}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"hello", "not JSON", id="text"),
        pytest.param(b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "web page or XML", id="xml"),
        pytest.param(b"\xff\xfe{", "not UTF-8", id="not utf-8"),
        pytest.param(b"[" * 100_000, "nested too deep", id="deep"),
        pytest.param(b'{"num_channels": ' + b"9" * 5000 + b"}", "too many digits", id="digits"),
        pytest.param(b'{"type": "image", "type": "segmentation"}', "'type' is given twice", id="twice"),
        pytest.param(b'{"num_channels": NaN}', "NaN stands where JSON has a number", id="NaN"),
        pytest.param([], "the document is", id="list"),
        pytest.param({}, "type is absent", id="nothing"),
        pytest.param(
            info() | {"@type": "neuroglancer_skeletons"}, "@type is 'neuroglancer_skeletons'", id="other type"
        ),
        pytest.param(info() | {"data_type": "float64"}, "data_type is 'float64'", id="dtype"),
        pytest.param(info() | {"num_channels": "1"}, "num_channels is '1'", id="text channels"),
        pytest.param(info() | {"scales": []}, r"scales is \[\]", id="no scales"),
        pytest.param(info() | {"scales": info()["scales"] * 300}, "scales is", id="many scales"),
        pytest.param(info(key="../x"), "scales/0/key is '../x'", id="key up"),
        pytest.param(info(key="a/../../x"), "scales/0/key is", id="key up inside"),
        pytest.param(info(key="/etc"), "scales/0/key is '/etc'", id="key absolute"),
        pytest.param(info(key="https://evil/x"), "scales/0/key is", id="key url"),
        pytest.param(info(key="a\nb"), "scales/0/key is", id="key newline"),
        pytest.param(info(size=[64, 0, 64]), "scales/0/size/1 is 0", id="size 0"),
        pytest.param(info(size=[64, 64]), "scales/0/size/2", id="two axes"),
        pytest.param(info(size=[64, 64, 10**30]), "scales/0/size/2", id="size huge"),
        pytest.param(info(size=[64, 64, 6.5]), "scales/0/size/2 is 6.5", id="size fraction"),
        pytest.param(info(chunk_sizes=[[64, 64, 0]]), "scales/0/chunk_sizes/0/2 is 0", id="chunk 0"),
        pytest.param(info(chunk_sizes=[]), r"scales/0/chunk_sizes is \[\]", id="no chunk"),
        pytest.param(info(resolution=[8, 8, 0]), "scales/0/resolution/2 is 0", id="resolution 0"),
        pytest.param(info(resolution=[8, 8, -1]), "scales/0/resolution/2 is -1", id="resolution negative"),
        pytest.param(info(resolution=["8", 8, 8]), "scales/0/resolution/0 is '8'", id="resolution text"),
        pytest.param(
            json.dumps(info()).replace('"resolution": [8', '"resolution": [1e999').encode(),
            "scales/0/resolution/0 is inf",
            id="resolution infinite",
        ),
        pytest.param(info(sharding={"@type": "other"}), "scales/0/sharding/@type is 'other'", id="sharding type"),
        pytest.param(info(sharding=SHARDED | {"hash": "md5"}), "scales/0/sharding/hash is 'md5'", id="hash"),
        pytest.param(info(sharding=SHARDED | {"preshift_bits": 62}), "67 bits together", id="bits"),
        pytest.param(info(sharding=SHARDED | {"minishard_bits": -1}), "minishard_bits is -1", id="bits negative"),
        pytest.param(info(sharding=SHARDED | {"data_encoding": "zstd"}), "data_encoding is 'zstd'", id="data encoding"),
    ],
)
def test_a_damaged_info_names_the_field(document, said):
    """One sentence each, of the kind that skips the dataset."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(Malformed, match=said) as caught:
        parse_info(data, "https://host/volume/info")
    assert "https://host/volume/info" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("document", "error", "said"),
    [
        (info(chunk_sizes=[[4096, 4096, 4096]]), Unsupported, "68719476736 voxels; accepted"),
        (info(size=[2**40] * 3, chunk_sizes=[[1, 1, 1]]), Unsupported, "120 bits"),
        (info(encoding="jxl"), Unsupported, "scales/0/encoding is 'jxl'; accepted are raw, jpeg, png"),
        (info(encoding="jpeg") | {"data_type": "uint16"}, Malformed, "data_type is uint16; such chunks hold uint8"),
    ],
)
def test_what_is_not_read_is_said(tmp_path, document, error, said):
    """Limits and kinds."""
    (tmp_path / "info").write_text(json.dumps(document))
    with FaultyServer(tmp_path) as server, pytest.raises(error, match=said):
        reader_of(server)


def test_info_with_a_byte_order_mark_and_without_optional_members(tmp_path):
    """Both occur; the offset is then 0."""
    (tmp_path / "info").write_bytes(b"\xef\xbb\xbf" + json.dumps(info()).encode())
    with FaultyServer(tmp_path) as server:
        reader = reader_of(server)
        assert reader.info.origin == (0, 0, 0)
        with pytest.raises(Mismatch, match="1 levels, 0 to 0, but not 1"):
            reader.at_level(1)


def test_no_info_is_said_at_once(tmp_path):
    """The address is named, once."""
    with FaultyServer(tmp_path) as server:
        with pytest.raises(NotThere, match=r"/nothing/info does not exist \(404 Not Found\); check the address"):
            reader_of(server, "nothing")
        assert server.requests == 1


# -- damage: shards


def first_minishard(shard):
    """(where its entry stands, start, stop) of the first minishard index that is not empty, in the file."""
    data, index_bytes = shard.read_bytes(), 16 * 2 ** SHARDED["minishard_bits"]
    for at in range(0, index_bytes, 16):
        start, stop = struct.unpack_from("<QQ", data, at)
        if stop > start:
            return at, start + index_bytes, stop + index_bytes
    raise AssertionError("no minishard")


def patch(file, at, data):
    whole_file = bytearray(file.read_bytes())
    whole_file[at : at + len(data)] = data
    file.write_bytes(whole_file)


def rewrite_minishard(shard, change):
    """Replaces the first minishard's index by another one, put at the end of the file."""
    at, start, stop = first_minishard(shard)
    data = shard.read_bytes()
    table = np.frombuffer(gzip.decompress(data[start:stop]), "<u8").reshape(3, -1).copy()
    changed = change(table)
    packed = gzip.compress(changed if isinstance(changed, bytes) else np.asarray(changed, "<u8").tobytes())
    index_bytes = 16 * 2 ** SHARDED["minishard_bits"]
    shard.write_bytes(data + packed)
    patch(shard, at, struct.pack("<QQ", len(data) - index_bytes, len(data) + len(packed) - index_bytes))


def set_in(row, column, value):
    def change(table):
        table[row, column] = value
        return table

    return change


SHARD_DAMAGE = {
    "cut in the index": (lambda s: s.write_bytes(s.read_bytes()[:40]), "has 40 bytes, but bytes 0-63"),
    "cut in the data": (lambda s: s.write_bytes(s.read_bytes()[:9000]), r"but the file has 9000"),
    "entry beyond the file": (
        lambda s: patch(s, first_minishard(s)[0], struct.pack("<QQ", 10, 2**40)),
        r"index of minishard \d lies at bytes 74-1099511627840, but the file has",
    ),
    "entry backwards": (
        lambda s: patch(s, first_minishard(s)[0], struct.pack("<QQ", 1000, 10)),
        "lies at bytes 1064-74",
    ),
    "entry of nonsense": (
        lambda s: patch(s, first_minishard(s)[0], struct.pack("<QQ", 2**64 - 1, 2**64 - 2)),
        "lies at bytes",
    ),
    "index not gzip": (
        lambda s: patch(s, first_minishard(s)[1], b"garbage"),
        "is said to be gzip-encoded, but it is not gzip",
    ),
    "index of odd length": (lambda s: rewrite_minishard(s, lambda t: bytes(25)), "25 bytes, not a multiple of 24"),
    "ids not ascending": (lambda s: rewrite_minishard(s, set_in(0, 1, 0)), "ascending order"),
    "ids overflow": (lambda s: rewrite_minishard(s, set_in(0, 1, 2**64 - 1)), "ascending order"),
    "offset beyond the file": (
        lambda s: rewrite_minishard(s, set_in(1, 1, 2**33)),
        r"refers to byte \d+, but the file has",
    ),
    "offset overflow": (lambda s: rewrite_minishard(s, set_in(1, 1, 2**64 - 1)), "offsets that leave the file"),
    "size beyond the file": (lambda s: rewrite_minishard(s, set_in(2, 0, 2**50)), "refers to byte"),
    "index bomb": (
        lambda s: rewrite_minishard(s, lambda t: bytes(24 * 101)),
        r"unpacks to more than 2400 bytes",
    ),
}


@pytest.mark.parametrize("name", SHARD_DAMAGE)
def test_a_damaged_shard_is_named_and_the_others_go_on(jpeg_shards, name):
    """Boxes that need the shard fail with its name; all other boxes are read."""
    damage, said = SHARD_DAMAGE[name]
    expected = tensorstore_voxels(jpeg_shards)
    shard = min(jpeg_shards.glob("*/*.shard"))
    damage(shard)
    with FaultyServer(jpeg_shards) as server:
        reader = reader_of(server)
        boxes = [
            Box(tuple(np.multiply(cell, 32)), tuple(np.minimum(np.multiply(cell, 32) + 32, SHAPE))).shifted(OFFSET)
            for cell in Box.from_shape(SHAPE).cells((32, 32, 32))
        ]
        outcomes = list(reader.map_regions(boxes, lambda region: region))
        plan = reader.plan(boxes)
    assert len(outcomes) == len(boxes)
    failed = [outcome for outcome in outcomes if outcome.error]
    assert 0 < len(failed) < 40
    for outcome in failed:
        assert isinstance(outcome.error, Malformed)
        assert shard.name in str(outcome.error)
    assert any(re.search(said, str(outcome.error)) for outcome in failed)
    for outcome in outcomes:
        if not outcome.error:
            local = outcome.box.shifted(subtract((0, 0, 0), OFFSET))
            assert (outcome.value.voxels == expected[local.slices]).all()
    assert plan.chunks == 100


def test_a_shard_cut_anywhere_is_never_a_success(jpeg_shards):
    """Whole volume: an error, whatever byte the file ends at."""
    shard = min(jpeg_shards.glob("*/*.shard"))
    data = shard.read_bytes()
    with FaultyServer(jpeg_shards) as server:
        for length in [0, 1, 15, 16, 63, 64, 65, *range(100, len(data), len(data) // 15), len(data) - 1]:
            shard.write_bytes(data[:length])
            reader = reader_of(server)
            with pytest.raises(EmAssetsError):
                read(reader, whole(reader))


def test_a_hostile_minishard_count_costs_nothing(jpeg_shards):
    """2**32 minishards are an index of 64 GiB: only the entries that are needed are asked for."""
    edit_info(jpeg_shards, lambda i: i["scales"][0]["sharding"].update(minishard_bits=32))
    with FaultyServer(jpeg_shards) as server:
        reader = reader_of(server)
        with pytest.raises(Malformed, match="the index of minishard 0 lies at bytes 6871"):
            read(reader, whole(reader))


def test_a_shard_that_is_replaced_meanwhile(jpeg_shards):
    """Its index is of one version, its data of another: nothing is taken from either."""
    with FaultyServer(jpeg_shards) as server:
        reader = reader_of(server)
        reader.plan([whole(reader)])
        for shard in jpeg_shards.glob("*/*.shard"):
            shard.write_bytes(shard.read_bytes()[::-1])
        with pytest.raises(Mismatch, match="changed while it was read: its ETag was"):
            read(reader, whole(reader))


# -- damage: chunks


def jpeg(pixels, **options):
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "jpeg", **options)
    return data.getvalue()


def png(pixels):
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    return data.getvalue()


GREY = (np.indices((40, 48, 64)).sum(axis=0) % 200).astype("u1")
"""One chunk (z, y, x) that is the whole volume."""


def one_chunk(folder, data, *, encoding="jpeg", dtype="uint8", size=(40, 48, 64), chunk=(40, 48, 64), **scale):
    """An unsharded volume of one chunk with these bytes."""
    key = folder / "8"
    key.mkdir(parents=True)
    document = info(size=size[::-1], chunk_sizes=[chunk[::-1]], encoding=encoding, **scale) | {"data_type": dtype}
    (folder / "info").write_text(json.dumps(document))
    (key / "_".join(f"0-{n}" for n in size[::-1])).write_bytes(data)
    return folder


SMOOTH = np.full((40, 48, 64), 100, "u1") + np.arange(64, dtype="u1")[None, None, :]


@pytest.mark.parametrize("shape", [(40 * 48, 64), (40, 48 * 64), (48 * 64, 40), (20 * 48, 128)])
def test_an_image_may_have_any_width(tmp_path, shape):
    """Only its number of pixels is given; row by row they are the chunk with x fastest."""
    one_chunk(tmp_path, png(GREY.reshape(shape)), encoding="png")
    with FaultyServer(tmp_path) as server:
        (region,) = read(reader_of(server), Box.from_shape((40, 48, 64)))
    assert (region.voxels == GREY).all()
    check_samples(region)


def test_an_edge_chunk_may_hold_the_whole_chunk(tmp_path):
    """DVID's edge JPEGs have the rows of an unclipped chunk; what lies outside is dropped."""
    full = np.zeros((64, 64, 64), "u1")
    full[:40, :48, :64] = SMOOTH
    one_chunk(tmp_path, jpeg(full.reshape(-1, 64), quality=95), chunk=(64, 64, 64))
    with FaultyServer(tmp_path) as server:
        (region,) = read(reader_of(server), Box.from_shape((40, 48, 64)))
    assert np.abs(region.voxels.astype(int) - SMOOTH).mean() < 2
    check_samples(region)


def test_a_grey_image_of_three_bands_is_taken(tmp_path):
    """Some tools know no grey JPEG; equal bands are one."""
    grey = jpeg(np.repeat(SMOOTH.reshape(-1, 64)[..., None], 3, axis=2), quality=95, subsampling=0)
    one_chunk(tmp_path, grey)
    with FaultyServer(tmp_path) as server:
        (region,) = read(reader_of(server), Box.from_shape((40, 48, 64)))
    assert np.abs(region.voxels.astype(int) - SMOOTH).mean() < 2
    check_samples(region)


COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1).reshape(-1, 64, 3)
RAW = GREY.tobytes()


@pytest.mark.parametrize(
    ("data", "options", "error", "said"),
    [
        pytest.param(
            jpeg(GREY.reshape(-1, 64))[:2000], {}, Malformed, "has no end, it was cut after 2000", id="jpeg cut"
        ),
        pytest.param(jpeg(GREY[1:].reshape(-1, 64)), {}, Malformed, "119808 pixels, expected 122880", id="jpeg small"),
        pytest.param(jpeg(COLOUR), {}, Unsupported, "a colour JPEG", id="jpeg colour"),
        pytest.param(b"\xff\xd8\xff\xe0\x00\x02\xff\xd9", {}, Malformed, "no frame header", id="jpeg empty"),
        pytest.param(
            b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00\xff\xd9",
            {},
            Malformed,
            "4294836225 pixels, expected 122880",
            id="jpeg bomb",
        ),
        pytest.param(
            b"\xff\xd8\xff\xc0\x00\x0b\x08\x07\x80\x00\x40\x01\x01\x11\x00\xff\xd9",
            {},
            Malformed,
            "cannot be decoded",
            id="jpeg without data",
        ),
        pytest.param(
            b"", {}, Malformed, "expected jpeg image, plain or gzip-encoded, found 0 bytes", id="jpeg nothing"
        ),
        pytest.param(RAW, {}, Malformed, "expected jpeg image", id="raw labelled jpeg"),
        pytest.param(png(GREY.reshape(-1, 64)), {}, Malformed, "expected jpeg image", id="png labelled jpeg"),
        pytest.param(gzip.compress(RAW), {}, Malformed, "found gzip of 122880 other bytes", id="gzip of raw"),
        pytest.param(
            gzip.compress(jpeg(GREY.reshape(-1, 64)))[:-9], {}, Malformed, "middle of its gzip", id="gzip cut"
        ),
        pytest.param(RAW[:-1], {"encoding": "raw"}, Malformed, "expected 122880 bytes of raw voxels", id="raw short"),
        pytest.param(
            gzip.compress(RAW + b"x"), {"encoding": "raw"}, Malformed, "unpacks to more than", id="raw gzip long"
        ),
        pytest.param(gzip.compress(RAW[1:]), {"encoding": "raw"}, Malformed, "122879 other bytes", id="raw gzip short"),
        pytest.param(png(GREY[1:].reshape(-1, 64)), {"encoding": "png"}, Malformed, "119808 pixels", id="png small"),
        pytest.param(png(COLOUR), {"encoding": "png"}, Unsupported, "colour type 2", id="png colour"),
        pytest.param(
            png(GREY.reshape(-1, 64)), {"encoding": "png", "dtype": "uint16"}, Unsupported, "8 bits", id="png depth"
        ),
        pytest.param(
            png(GREY.reshape(-1, 64))[:-200], {"encoding": "png"}, Malformed, "cannot be decoded", id="png cut"
        ),
        pytest.param(png(GREY.reshape(-1, 64))[:20], {"encoding": "png"}, Malformed, "no header", id="png header"),
    ],
)
def test_a_damaged_chunk_is_named(tmp_path, data, options, error, said):
    """Its box fails with the chunk's name and what is wrong; nothing is made up."""
    one_chunk(tmp_path, data, **options)
    with FaultyServer(tmp_path) as server:
        reader = reader_of(server)
        with pytest.raises(error, match=said) as caught:
            read(reader, Box.from_shape((40, 48, 64)))
    assert "chunk 0-64_0-48_0-40" in str(caught.value)


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def frame(height, width, bands):
    return segment(0xC0, struct.pack(">BHHB", 8, height, width, bands) + bytes(range(1, bands + 1)) + bytes(2 * bands))


@pytest.mark.parametrize("marker", [0x00, 0x01, 0xD0, 0xD7], ids=hex)
@pytest.mark.parametrize("bands", [1, 3])
def test_a_second_frame_before_the_first_is_never_decoded(tmp_path, monkeypatch, marker, bands):
    """A marker that has no length hides a huge frame from whoever skips one: the decoder must not see such an image."""
    import imagecodecs

    monkeypatch.setattr(imagecodecs, "jpeg8_decode", lambda *_, **__: pytest.fail("it was decoded"))
    data = b"\xff\xd8" + bytes([0xFF, marker]) + frame(60000, 60000, bands)
    data = data.ljust(4 + 0xFFC0, b"\0")  # where one lands who takes the frame's own marker for a length
    one_chunk(tmp_path, data + frame(40 * 48, 64, bands) + b"\xff\xd9")
    with FaultyServer(tmp_path) as server, pytest.raises(Malformed, match=r"0-64_0-48_0-40 .* no frame header"):
        read(reader_of(server), Box.from_shape((40, 48, 64)))


@pytest.mark.parametrize("bands", [1, 3])
def test_an_image_that_is_not_what_its_header_says_is_malformed(tmp_path, monkeypatch, bands):
    """Whatever the decoder finds, it has room for the header's size only."""
    shape = (40 * 48, 64) if bands == 1 else (40 * 48, 64, 3)
    one_chunk(tmp_path, jpeg(np.zeros((99, 99, 3)[: len(shape)], "u1")))
    monkeypatch.setattr(_chunk_codec, "_jpeg_header", lambda *_: (40 * 48, 64, bands))
    with FaultyServer(tmp_path) as server, pytest.raises(Malformed, match="cannot be decoded"):
        read(reader_of(server), Box.from_shape((40, 48, 64)))


def test_what_only_one_decoder_reads_is_malformed(tmp_path, monkeypatch):
    from PIL import Image, UnidentifiedImageError

    def refuse(_):
        raise UnidentifiedImageError("cannot identify image file <_io.BytesIO object>")

    one_chunk(tmp_path, png(GREY.reshape(-1, 64)), encoding="png")
    monkeypatch.setattr(Image, "open", refuse)
    with FaultyServer(tmp_path) as server, pytest.raises(Malformed, match="a second decoder cannot read it"):
        read(reader_of(server), Box.from_shape((40, 48, 64)))


@pytest.mark.parametrize(
    ("edge", "chunk", "said"),
    [
        pytest.param(2**16, 64, "has 281474976710656 bytes", id="bytes"),
        pytest.param(2**10, 4, "16777216 chunks", id="chunks"),
    ],
)
@pytest.mark.parametrize("sharding", [None, SHARDED])
def test_an_absurd_size_is_refused_before_it_is_planned(tmp_path, edge, chunk, said, sharding):
    extra = {} if sharding is None else {"sharding": sharding}
    document = info(size=[edge] * 3, chunk_sizes=[[chunk] * 3], encoding="raw", **extra)
    (tmp_path / "info").write_text(json.dumps(document))
    with FaultyServer(tmp_path) as server:
        reader = reader_of(server)
        for ask in (reader.read, lambda: reader.plan([whole(reader)])):
            with pytest.raises(Mismatch, match=f"{said}.*ask for smaller boxes"):
                ask()


def test_a_box_that_does_not_fit_into_memory_fails_alone(served, monkeypatch):
    server, _ = served
    real, asked = _precomputed_regions.RegionRun.open_region, []

    def open_region(self, rank):
        asked.append(rank)
        if rank == 1:
            raise MemoryError("Unable to allocate 3 TiB")
        return real(self, rank)

    monkeypatch.setattr(_precomputed_regions.RegionRun, "open_region", open_region)
    outcomes = list(reader_of(server, "sharded").map_regions(grid_of_boxes(30), lambda region: region.box))
    failed = [outcome.error for outcome in outcomes if outcome.error]
    assert len(outcomes) == len(grid_of_boxes(30))
    assert [type(error) for error in failed] == [Mismatch]
    assert "3 TiB); ask for smaller boxes" in str(failed[0])


@pytest.mark.parametrize("sharding", [None, SHARDED])
@pytest.mark.parametrize("labelled", ["raw", "gzip"])
@pytest.mark.parametrize("packed", ["raw", "gzip"])
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_what_chunks_are_is_seen_not_believed(tmp_path, sharding, labelled, packed, encoding):
    """gzip that is labelled raw and the other way round is read, and what was met is kept."""
    if sharding is None and labelled == "gzip":
        pytest.skip("unsharded volumes have no label")
    volume = texture((64, 64, 64))
    folder = write(
        tmp_path / "v", volume, encoding=encoding, sharding=sharding and sharding | {"data_encoding": packed}
    )
    expected = tensorstore_voxels(folder)
    if sharding:
        edit_info(folder, lambda i: i["scales"][0]["sharding"].update(data_encoding=labelled))
    elif packed == "gzip":
        for file in folder.glob("*/*_*_*"):
            file.write_bytes(gzip.compress(file.read_bytes()))
    with FaultyServer(tmp_path) as server:
        reader = reader_of(server, "v")
        (region,) = read(reader, whole(reader))
    assert (region.voxels == expected).all()
    assert reader.data_encoding_met == {packed}


# -- faults under way


def grid_of_boxes(edge=50):
    return [
        Box(tuple(start), tuple(np.minimum(np.add(start, edge), SHAPE))).shifted(OFFSET)
        for start in itertools.product(*(range(0, n, edge) for n in SHAPE))
    ]


@pytest.mark.parametrize("name", ["sharded", "plain"])
def test_every_request_may_fail_once(served, name):
    """Errors, cuts and stalls in turn: the voxels are the same."""
    server, voxels = served
    faults = itertools.cycle([Fault(status=503), Fault(cut_after=500), Fault(cut_after=-1), Fault(status=429), None])
    server.fail = lambda path, range_header, count: next(faults) if count % 2 else None
    try:
        for region in read(reader_of(server, name, retry_seconds=20.0), *grid_of_boxes()):
            local = region.box.shifted(subtract((0, 0, 0), OFFSET))
            assert (region.voxels == voxels[local.slices]).all()
    finally:
        server.fail = lambda *_: None


def test_one_bad_chunk_fails_its_boxes_only(served):
    """The other boxes are read; the error is the chunk's."""
    server, _ = served
    server.fail = lambda path, *_: Fault(status=500) if path.endswith("/100-132_200-232_2600-2632") else None
    try:
        outcomes = list(reader_of(server, "plain", retry_seconds=0.3).map_regions(grid_of_boxes(), lambda r: r.box))
    finally:
        server.fail = lambda *_: None
    failed = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.box.start for outcome in failed] == [OFFSET]
    assert isinstance(failed[0].error, Unavailable)
    assert len(outcomes) == len(grid_of_boxes())


def test_a_host_that_is_gone_ends_everything_soon(jpeg_shards):
    """It dies after the plan: every box has the same error, none waits its own time."""
    server = FaultyServer(jpeg_shards).start()
    reader = reader_of(server, retry_seconds=1.0)
    reader.plan(grid_of_boxes(20))
    server.stop()
    begun = time.monotonic()
    outcomes = list(reader.map_regions(grid_of_boxes(20), lambda region: region))
    assert time.monotonic() - begun < 4
    assert len(outcomes) == len(grid_of_boxes(20))
    assert all(isinstance(outcome.error, HostUnreachable) for outcome in outcomes)


def test_an_unreachable_host_is_raised_before_any_box(jpeg_shards):
    """Reading the indices is where it shows."""
    server = FaultyServer(jpeg_shards).start()
    reader = reader_of(server)
    server.stop()
    with pytest.raises(HostUnreachable):
        next(reader.map_regions(grid_of_boxes(), lambda region: region))


def test_work_that_fails_fails_its_box(served):
    """Whatever it raises, the others go on."""
    server, _ = served
    boxes = grid_of_boxes()

    def work(region):
        if region.box == boxes[3]:
            raise ZeroDivisionError("on purpose")
        return region.box

    outcomes = list(reader_of(server, "sharded").map_regions(boxes, work))
    assert sorted(o.value for o in outcomes if o.error is None) == sorted(set(boxes) - {boxes[3]})
    (failed,) = [outcome for outcome in outcomes if outcome.error]
    assert isinstance(failed.error, ZeroDivisionError)
    assert failed.box == boxes[3]


def threads_left(before, within_seconds=3.0):
    """The reader's threads that are still there after a moment; those of `before` are other tests' (pools stay)."""
    deadline = time.monotonic() + within_seconds
    while True:
        left = [t for t in threading.enumerate() if t.name.startswith("em_assets") and t not in before]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def test_giving_up_stops_the_threads(served):
    """A consumer that leaves after the first box is not kept waiting by a stalled server."""
    server, _ = served
    before = set(threading.enumerate())
    seen = itertools.count()
    server.fail = lambda path, *_: Fault(stall_seconds=20, stall_after=9) if next(seen) > 20 else None
    reader = reader_of(server, "plain", read_seconds=20.0, retry_seconds=20.0)
    try:
        outcomes = reader.map_regions(grid_of_boxes(40), lambda region: region.box)
        assert next(outcomes).error is None
        begun = time.monotonic()
        outcomes.close()
        assert time.monotonic() - begun < 2
        assert threads_left(before) == []
    finally:
        server.fail = lambda *_: None
        server.stopping.set()  # ends the stalls
        server.stopping.clear()


def test_no_thread_is_left_behind(served):
    """After a run all have ended."""
    server, _ = served
    before = set(threading.enumerate())
    read(reader_of(server, "sharded"), *grid_of_boxes())
    assert threads_left(before) == []


def test_memory_is_bounded_by_fetching_again(tmp_path):
    """With room for one body, regions far apart in the file still come out right, at the price of more requests."""
    volume = texture((96, 96, 96))
    write(tmp_path / "v", volume, encoding="raw", sharding=SHARDED | {"preshift_bits": 0}, chunk=16, offset=(0, 0, 0))
    boxes = [
        Box(tuple(start), tuple(np.minimum(np.add(start, 40), 96)))
        for start in itertools.product(range(0, 96, 40), repeat=3)
    ]
    with FaultyServer(tmp_path) as server:
        for memory_bytes in (2**28, 2**20):
            for region in read(reader_of(server, "v", memory_bytes=memory_bytes), *boxes):
                assert (region.voxels == volume[region.box.slices]).all()


def test_at_most_one_region_per_worker_is_open(served, monkeypatch):
    """Memory goes with the workers, not with the boxes."""
    server, _ = served
    opened, most, lock = [0], [0], threading.Lock()
    original = _precomputed_regions.RegionRun.open_region

    def open_region(self, rank):
        with lock:
            opened[0] += 1
            most[0] = max(most[0], opened[0])
        return original(self, rank)

    def work(region):
        time.sleep(0.01)
        with lock:
            opened[0] -= 1

    monkeypatch.setattr(_precomputed_regions.RegionRun, "open_region", open_region)
    assert all(o.error is None for o in reader_of(server, "sharded", workers=3).map_regions(grid_of_boxes(30), work))
    assert most[0] <= 3


def test_a_cap_on_minishard_indices_is_kept(jpeg_shards, monkeypatch):
    """An index that claims to be larger is not read at all."""
    monkeypatch.setattr(_sharded, "MAX_MINISHARD_INDEX_BYTES", 20)
    with FaultyServer(jpeg_shards) as server:
        reader = reader_of(server)
        with pytest.raises(Malformed, match="more than 20"):
            read(reader, whole(reader))
        assert all(
            header is None or int(header.split("-")[1]) < 64 for _, path, header in server.log if "shard" in path
        )


def test_the_grid_covers_the_volume():
    """Chunks per axis are rounded up."""
    assert ceil_divide(SHAPE, (32, 32, 32)) == (4, 5, 5)
