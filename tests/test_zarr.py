"""The Zarr reader against real files, zarr-python, tensorstore, and stores damaged on purpose."""

import contextlib
import gzip
import hashlib
import json
import re
import resource
import shutil
import struct
import zlib

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch.client import FolderClient, folder_url
from em_assets.fetch.http import HttpClient, NotThere
from em_assets.formats import _boxes, _stored_array
from em_assets.formats._compression import BadChunkError, decompress
from em_assets.formats.n5 import open_n5
from em_assets.formats.zarr import open_zarr
from em_assets.sample.server import OriginServer
from em_assets.settings import Settings
from em_assets.volume import Box
from faulty import Fault, FaultyServer

SHAPE = (20, 33, 47)
"""(z, y, x); with chunks of 8, 16, 16 every axis ends in a smaller part."""
CHUNK = (8, 16, 16)
SPEED = {"unreachable_seconds": 1.0, "retry_seconds": 1.0, "connect_seconds": 1.0, "read_seconds": 1.0, "workers": 2}
NM = "nanometer"
DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


def texture(shape=SHAPE, dtype="u2", seed=0):
    """Different everywhere, nowhere 0, and it compresses."""
    values = np.arange(1, np.prod(shape) + 1).reshape(shape) % 251 + 1
    return (values % 120 + 1).astype(dtype) if np.dtype(dtype).itemsize == 1 else (values + seed).astype(dtype)


def write_v2(folder, volume, **options):
    array = zarr.create_array(
        str(folder), shape=volume.shape, dtype=volume.dtype, zarr_format=2, **{"chunks": CHUNK, **options}
    )
    array[...] = volume
    return folder


def write_v3(folder, volume, *, chunks=CHUNK, codecs=None, **options):
    array = zarr.create(
        store=str(folder),
        shape=volume.shape,
        dtype=volume.dtype,
        zarr_format=3,
        chunks=chunks,
        codecs=codecs,
        **options,
    )
    array[...] = volume
    return folder


def sharded(*inner, chunk=(4, 8, 8), location="end"):
    return [
        ShardingCodec(chunk_shape=chunk, codecs=inner or [BytesCodec(), ZstdCodec(level=1)], index_location=location)
    ]


def opened(folder, dataset=None):
    return open_zarr(folder_url(folder), dataset, FolderClient(), Settings(**SPEED))


def opened_over_http(server, path="", dataset=None, **changes):
    values = Settings(**{**SPEED, **changes})
    return open_zarr(f"{server.url}/{path}".rstrip("/"), dataset, HttpClient(values), values)


def write_group(folder, version=2, *, levels=2, axes="zyx", scale=4.0, moved=True, unit=NM, **more):
    """A pyramid of OME-NGFF 0.4 or 0.5; its finest volume."""
    volume = texture()
    datasets = []
    for k in range(levels):
        part = volume[tuple(slice(None, n // 2**k * 2**k, 2**k) for n in volume.shape)]
        (write_v2 if version == 2 else write_v3)(folder / f"s{k}", part)
        transformations = [{"type": "scale", "scale": [scale * 2**k] * 3}]
        if moved:
            transformations.append({"type": "translation", "translation": [scale * (2**k - 1) / 2] * 3})
        datasets.append({"path": f"s{k}", "coordinateTransformations": transformations})
    image = {"axes": [{"name": a, "type": "space", "unit": unit} for a in axes], "datasets": datasets} | more
    if version == 2:
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps({"multiscales": [image | {"version": "0.4"}]}))
    else:
        attributes = {"ome": {"version": "0.5", "multiscales": [image]}}
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (folder / "zarr.json").write_text(json.dumps(document))
    return volume


def edit(file, change):
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def regions(reader, *boxes):
    """In the order of the boxes; the first error is raised."""
    outcomes = {outcome.box: outcome for outcome in reader.map_regions(boxes, lambda region: region)}
    for outcome in outcomes.values():
        if outcome.error is not None:
            raise outcome.error
    return [outcomes[box].value for box in boxes]


def whole(reader):
    return Box.from_shape(reader.info.shape)


# -- real files


def test_real_files_give_the_recorded_voxels(realdata):
    """Every array of the collection has the hash an independent reader gave it, or is refused for a right reason."""
    entries = [
        entry
        for entry in json.loads((realdata / "index.json").read_text())
        if entry["kind"] == "zarr" and not entry["name"].endswith((".zip", ".json"))
    ]
    reasons = {
        r"\.S7|\.U7|\.U13": (Unsupported, "/dtype is"),
        r"^zarrs_v3_": (Malformed, "both zarr.json and .zarray"),
        r"storage_transformer exists": (Unsupported, "/storage_transformers is"),
        r"^damaged_.* em/fibsem-uint8/s0": (Malformed, r"chunk 1/1/1 of .*cannot be unpacked by zstd"),
    }
    wrong, same = [], 0
    for entry in entries:
        folder = realdata / "zarr" / entry["name"]
        is_n5 = ".n5" in entry["name"] or "_n5_" in entry["name"]
        for name, _, said in re.findall(r"(?:^| \| )(\S+) \[([^\]]*)\] (.*?)(?= \| |$)", entry["read"]):
            found = re.search(r"arr_sha256=(\w+)", said)
            title = f"{entry['name']} {name}"
            try:
                reader = (open_n5 if is_n5 else open_zarr)(
                    folder_url(folder), None if name == "." else name, FolderClient(), Settings(**SPEED)
                )
                digest = hashlib.sha256(reader.read().tobytes()).hexdigest()
            except EmAssetsError as error:
                kind, why = next((r for p, r in reasons.items() if re.search(p, title)), (None, ""))
                sound = kind is not None and isinstance(error, kind) and re.search(why, str(error)) is not None
                result = f"{type(error).__name__}: {error}"
            else:
                # what the independent readers could not read (an older N5) has no hash
                sound, result = found is None or digest.startswith(found[1]), f"{reader.info.shape} {digest[:12]}"
                same += found is not None and sound
            print(f"{'ok   ' if sound else 'WRONG'} {title}: {result}")
            wrong += [] if sound else [title]
    assert not wrong
    assert same > 60


@pytest.mark.parametrize("name", ["bit_invalid_image-01.zarr", "bit_invalid_image-02.zarr"])
def test_b25_real_groups_that_are_no_image(realdata, name):
    """Both are published as examples of what is not valid."""
    with pytest.raises((Malformed, Unsupported), match="multiscales"):
        opened(realdata / "zarr" / name)


def test_a_real_sharded_volume_with_its_place(realdata):
    """OME-NGFF 0.5 with half-voxel translations from an offset."""
    reader = opened(realdata / "zarr/gen_zarrpy_v3_sharded_ome0.5.zarr", "1")
    assert (reader.info.shape, reader.info.voxel_size_nm) == ((24, 85, 85), (20.0, 20.0, 20.0))
    assert (reader.info.corner_nm, reader.convention) == ((25995.0, -5.0, -5.0), "centre")
    assert [level.path for level in reader.levels] == ["s0", "s1"]
    assert reader.levels[1].translation_nm == (26005.0, 5.0, 5.0)


# -- other implementations


V2_COMPRESSORS = {
    "none": None,
    "zstd": numcodecs.Zstd(level=1),
    "gzip": numcodecs.GZip(level=3),
    "zlib": numcodecs.Zlib(level=3),
    "bz2": numcodecs.BZ2(level=1),
    "lz4": numcodecs.LZ4(),
    **{
        f"blosc-{cname}-{shuffle}": numcodecs.Blosc(cname=cname, clevel=3, shuffle=shuffle)
        for cname in ("lz4", "lz4hc", "zstd", "zlib", "blosclz")
        for shuffle in (0, 1, 2)
    },
}


@pytest.mark.parametrize("compressor", V2_COMPRESSORS.values(), ids=V2_COMPRESSORS)
def test_compressors_of_version_2(tmp_path, compressor):
    """The voxels zarr-python wrote, and the samples of a second decoder are the same."""
    volume = texture()
    reader = opened(write_v2(tmp_path / "a", volume, compressors=compressor))
    np.testing.assert_array_equal(reader.read(), volume)
    (region,) = regions(reader, whole(reader))
    assert len(region.samples) == 128
    assert all(sample.value == volume[sample.position] for sample in region.samples)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [f"{end}{kind}" for kind in DTYPES for end in "<>"])
def test_dtypes_and_orders_of_version_2(tmp_path, dtype, order):
    """Whatever the bytes' order, the voxels come in C order and little endian."""
    volume = texture(dtype=dtype)
    reader = opened(write_v2(tmp_path / "a", volume, order=order))
    voxels = reader.read()
    np.testing.assert_array_equal(voxels, volume)
    assert reader.info.dtype == np.dtype(dtype).newbyteorder("=").name
    assert voxels.flags.c_contiguous
    assert voxels.dtype == np.dtype(dtype).newbyteorder("<")
    (region,) = regions(reader, whole(reader))
    assert all(sample.value == float(volume[sample.position]) for sample in region.samples)


@pytest.mark.parametrize("separator", [".", "/"])
def test_separators_of_version_2(tmp_path, separator):
    """Read from the file, never assumed."""
    volume = texture()
    folder = write_v2(tmp_path / "a", volume, chunk_key_encoding={"name": "v2", "separator": separator})
    reader = opened(folder)
    np.testing.assert_array_equal(reader.read(), volume)
    assert reader.object_path((2, 1, 0)) == separator.join("210")
    assert (folder / reader.object_path((2, 1, 0))).is_file()


@pytest.mark.parametrize("version", [2, 3])
def test_bool_is_read_as_uint8(tmp_path, version):
    """The same bytes; nothing further in knows bool."""
    volume = texture() % 3 == 0
    reader = opened((write_v2 if version == 2 else write_v3)(tmp_path / "a", volume))
    assert reader.info.dtype == "uint8"
    np.testing.assert_array_equal(reader.read(), volume.astype("u1"))


V3_CODECS = {
    "bytes": [BytesCodec()],
    "big endian": [BytesCodec(endian="big")],
    "zstd": [BytesCodec(), ZstdCodec(level=1)],
    "gzip": [BytesCodec(), GzipCodec(level=2)],
    "blosc": [BytesCodec(), BloscCodec(cname="zstd", shuffle="bitshuffle", typesize=2)],
    "crc32c": [BytesCodec(), Crc32cCodec()],
    "zstd in crc32c": [BytesCodec(), ZstdCodec(level=1), Crc32cCodec()],
    "crc32c in gzip": [BytesCodec(), Crc32cCodec(), GzipCodec()],
    "transpose": [TransposeCodec(order=(2, 0, 1)), BytesCodec()],
    "two transposes": [TransposeCodec(order=(2, 0, 1)), TransposeCodec(order=(1, 0, 2)), BytesCodec(), ZstdCodec()],
    "shards": sharded(),
    "shards, index first": sharded(location="start"),
    "shards of gzip": sharded(BytesCodec(endian="big"), GzipCodec()),
    "shards, transposed": sharded(TransposeCodec(order=(1, 2, 0)), BytesCodec(), BloscCodec(typesize=2), Crc32cCodec()),
}


@pytest.mark.parametrize("codecs", V3_CODECS.values(), ids=V3_CODECS)
def test_codecs_of_version_3(tmp_path, codecs):
    """The voxels zarr-python wrote, from disk and over HTTP, and the samples of a second decoder are the same."""
    volume = texture()
    write_v3(tmp_path / "a", volume, codecs=codecs)
    box = Box((3, 0, 15), (20, 17, 47))
    with OriginServer(tmp_path) as server:
        for reader in (opened(tmp_path / "a"), opened_over_http(server, "a")):
            np.testing.assert_array_equal(reader.read(), volume)
            np.testing.assert_array_equal(reader.read(box), volume[box.slices])
            (region,) = regions(reader, box)
            assert region.samples
            assert all(sample.value == volume[sample.position] for sample in region.samples)


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_what_tensorstore_writes(tmp_path, driver):
    """Another writer, and with it a second opinion of what the formats mean."""
    ts = pytest.importorskip("tensorstore")
    volume = texture(dtype="f4")
    metadata = {
        "zarr": {
            "shape": SHAPE,
            "chunks": CHUNK,
            "dtype": "<f4",
            "order": "F",
            "compressor": {"id": "bz2", "level": 1},
        },
        "zarr3": {
            "shape": SHAPE,
            "data_type": "float32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 16, 16]}},
            "chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}},
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [8, 4, 4],
                        "codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "zstd"}],
                        "index_codecs": [{"name": "bytes", "configuration": {"endian": "big"}}],
                        "index_location": "start",
                    },
                }
            ],
        },
    }[driver]
    store = ts.open({"driver": driver, "kvstore": f"file://{tmp_path}/a/", "metadata": metadata}, create=True).result()
    store[...] = volume
    np.testing.assert_array_equal(opened(tmp_path / "a").read(), volume)


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_box_of_any_array(tmp_path, data):
    """The law of a reader: `read(box)` is the array's slice, whatever shape, chunk, type, codec and order it has."""
    folder = tmp_path / "a"
    shutil.rmtree(folder, ignore_errors=True)
    shape = data.draw(st.tuples(*[st.integers(1, 13)] * 3), "shape")
    chunk = data.draw(st.tuples(*[st.integers(1, 6)] * 3), "chunk")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    volume = texture(shape, dtype)
    kind = data.draw(st.sampled_from(["v2 C", "v2 F", "v3", "sharded"]), "kind")
    if kind.startswith("v2"):
        compressor = data.draw(st.sampled_from(sorted(V2_COMPRESSORS)), "compressor")
        write_v2(folder, volume, chunks=chunk, order=kind[-1], compressors=V2_COMPRESSORS[compressor])
    elif kind == "v3":
        order = data.draw(st.permutations([0, 1, 2]), "transposition")
        write_v3(folder, volume, chunks=chunk, codecs=[TransposeCodec(order=tuple(order)), BytesCodec(), GzipCodec()])
    else:
        inner = tuple(data.draw(st.sampled_from([n for n in (1, 2, 3, 6) if c % n == 0]), "inner") for c in chunk)
        location = data.draw(st.sampled_from(["start", "end"]), "index")
        write_v3(folder, volume, chunks=chunk, codecs=sharded(chunk=inner, location=location))
    reader = opened(folder)
    boxes = set()
    for _ in range(2):
        start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
        stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
        boxes.add(Box(start, stop))
    for region in regions(reader, *boxes):
        np.testing.assert_array_equal(region.voxels, volume[region.box.slices])
        assert all(sample.value == float(volume[sample.position]) for sample in region.samples)
        assert region.missing == ()
    np.testing.assert_array_equal(reader.read(), volume)


# -- groups, levels, documents


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("over_http", [False, True], ids=["file", "http"])
def test_a_level_by_any_of_its_names(tmp_path, version, over_http):
    """From the group, from the root, by path or number, and from another level: the same reader."""
    folder = tmp_path / "recon-2/em/fibsem-int16"
    volume = write_group(folder, version)
    (tmp_path / "recon-2/.zgroup").write_text('{"zarr_format": 2}')
    half = volume[:20:2, :32:2, :46:2]
    with OriginServer(tmp_path) as server:

        def open_at(path, dataset):
            return opened_over_http(server, path, dataset) if over_http else opened(tmp_path / path, dataset)

        for path, dataset in [
            ("recon-2/em/fibsem-int16", "s1"),
            ("recon-2/em/fibsem-int16", "1"),
            ("recon-2", "em/fibsem-int16/s1"),
            ("", "recon-2/em/fibsem-int16/s1"),
        ]:
            reader = open_at(path, dataset)
            assert (reader.info.shape, reader.info.voxel_size_nm) == ((10, 16, 23), (8.0, 8.0, 8.0))
            assert reader.info.corner_nm == (-2.0, -2.0, -2.0)
            np.testing.assert_array_equal(reader.read(), half)
            assert (tmp_path / path / reader.object_path((1, 0, 1))).is_file()
        for path, dataset in [("recon-2/em/fibsem-int16", None), ("recon-2", "em/fibsem-int16")]:
            reader = open_at(path, dataset)
            np.testing.assert_array_equal(reader.read(), volume)
            np.testing.assert_array_equal(reader.at_level("s1").read(), half)
            assert [(level.path, level.shape) for level in reader.levels] == [("s0", SHAPE), ("s1", (10, 16, 23))]
            with pytest.raises(Mismatch, match="its levels are s0, s1"):
                reader.at_level("s2")


def test_documents_are_given_as_received(tmp_path):
    """Byte for byte, with every scalar in them as a tag."""
    write_group(tmp_path, unit=NM, omero={"channels": [{"label": "EM"}]})
    reader = opened(tmp_path)
    documents = reader.documents()
    assert set(documents) >= {".zattrs", ".zgroup", "s0/.zarray", "s1/.zarray"}
    assert all((tmp_path / path).read_bytes() == raw for path, raw in documents.items())
    tags = dict(reader.tags())
    assert tags[".zattrs/multiscales/0/omero/channels/0/label"] == "EM"
    assert tags[".zattrs/multiscales/0/datasets/1/path"] == "s1"
    assert tags["s1/.zarray/chunks/0"] == 8


def test_a_listed_level_that_is_not_there_is_said_so(tmp_path):
    """The others can be read."""
    volume = write_group(tmp_path)
    shutil.rmtree(tmp_path / "s1")
    reader = opened(tmp_path)
    np.testing.assert_array_equal(reader.read(), volume)
    assert reader.levels[1].shape is None
    with pytest.raises(Mismatch, match=r"level s1 is listed .*choose another"):
        reader.at_level("s1")


def test_an_array_without_a_group_has_no_size(tmp_path):
    """Missing is missing."""
    info = opened(write_v2(tmp_path / "a", texture())).info
    assert (info.voxel_size_nm, info.corner_nm, info.channels, info.chunk) == (None, (0.0, 0.0, 0.0), None, CHUNK)


def test_an_array_with_the_transform_of_cosem(tmp_path):
    """Opened by itself, it still says its size."""
    transform = {"axes": ["z", "y", "x"], "scale": [5.24, 4, 4], "translate": [2.62, 2, 2], "units": ["nm"] * 3}
    write_v2(tmp_path / "s1", texture(), attributes={"transform": transform})
    info = opened(tmp_path / "s1").info
    assert (info.voxel_size_nm, info.corner_nm) == ((5.24, 4.0, 4.0), (0.0, 0.0, 0.0))
    edit(tmp_path / "s1/.zattrs", lambda document: document["transform"].update(translate=[0, 0, 0]))
    assert opened(tmp_path / "s1").info.corner_nm == (-2.62, -2.0, -2.0)


def test_paths_with_spaces_and_signs(tmp_path):
    """Names are quoted when they become addresses."""
    volume = write_group(tmp_path / "my group+1 %41")
    with OriginServer(tmp_path) as server:
        np.testing.assert_array_equal(opened_over_http(server, dataset="my group+1 %41").read(), volume)


# -- axes


def write_axes(folder, volume, axes, chunks, *, version="0.4"):
    kinds = {"t": "time", "c": "channel"}
    write_v2(folder / "0", volume, chunks=chunks)
    image = {"version": version, "datasets": [{"path": "0"}]}
    if axes:
        image["axes"] = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / ".zattrs").write_text(json.dumps({"multiscales": [image]}))
    return folder


@pytest.mark.parametrize(
    ("axes", "shape", "chunks", "turned"),
    [
        ("xyz", (7, 5, 3), (2, 3, 2), lambda v: v.transpose(2, 1, 0)),
        ("yzx", (7, 5, 3), (2, 3, 2), lambda v: v.transpose(1, 0, 2)),
        ("yx", (7, 5), (2, 3), lambda v: v[None]),
        ("x", (7,), (2,), lambda v: v[None, None]),
        ("tczyx", (1, 1, 7, 5, 3), (1, 1, 2, 3, 2), lambda v: v[0, 0]),
        ("tczyx", (1, 2, 7, 5, 3), (1, 1, 2, 3, 2), lambda v: v[0]),
        ("tczyx", (1, 3, 7, 5, 3), (2, 2, 2, 3, 2), lambda v: v[0]),
        ("zyxc", (7, 5, 3, 3), (2, 3, 2, 3), lambda v: v.transpose(3, 0, 1, 2)),
        ("cyx", (3, 5, 3), (1, 3, 2), lambda v: v[:, None]),
        ("", (1, 2, 7, 5, 3), (1, 1, 2, 3, 2), lambda v: v[0]),
    ],
    ids=["xyz", "yzx", "2D", "1D", "5D", "channels", "chunks of channels", "channels last", "2D channels", "0.1"],
)
def test_any_order_of_axes_becomes_czyx(tmp_path, axes, shape, chunks, turned):
    """And a box is a box of z, y, x in any of them."""
    volume = texture(shape)
    expected = turned(volume)
    reader = opened(write_axes(tmp_path, volume, axes, chunks))
    np.testing.assert_array_equal(reader.read(), expected)
    assert reader.info.shape == expected.shape[-3:]
    assert reader.info.channels == (expected.shape[0] if expected.ndim == 4 else None)
    box = Box((0, 0, 1), (1, 1, 3))
    np.testing.assert_array_equal(reader.read(box), expected[(..., *box.slices)])
    (region,) = regions(reader, box)
    assert all(sample.value == expected[sample.position] for sample in region.samples)


def test_of_several_points_in_time_one_must_be_chosen(tmp_path):
    """The message names the axis; any chunking along it, and samples are of the point that is read."""
    volume = texture((3, 2, 7, 5, 3))
    reader = opened(write_axes(tmp_path, volume, "tczyx", (2, 1, 2, 3, 2)))
    with pytest.raises(Unsupported, match=r"3 points in time \(axis t\)"):
        reader.read()
    for time in range(3):
        one = reader.select_time(time).select_channel(1)
        np.testing.assert_array_equal(one.read(), volume[time, 1])
        (region,) = regions(one, whole(one))
        assert all(sample.value == volume[time, 1][sample.position] for sample in region.samples)
    with pytest.raises(Mismatch, match="has 3 points in time, so there is no point in time 3; choose one of 0 to 2"):
        reader.select_time(3)


def test_axes_that_an_array_names_itself(tmp_path):
    """`dimension_names` of version 3 decide; names that are no image's are refused."""
    volume = texture((7, 5, 3))
    write_v3(tmp_path / "a", volume, chunks=(2, 2, 2), dimension_names=["x", "y", "z"])
    np.testing.assert_array_equal(opened(tmp_path / "a").read(), volume.transpose(2, 1, 0))
    edit(tmp_path / "a/zarr.json", lambda document: document.update(dimension_names=["angle", "y", "x"]))
    with pytest.raises(Unsupported, match="axis 'angle'"):
        opened(tmp_path / "a")


# -- requests


def test_the_plan_is_what_happens(tmp_path):
    """Chunks of a shard that lie together are asked for together, over all boxes; bytes are known beforehand."""
    volume = texture()
    write_v3(tmp_path / "a", volume, codecs=sharded())
    boxes = [Box((0, 0, 0), (8, 16, 16)), Box((0, 16, 0), (8, 33, 16)), Box((0, 0, 16), (8, 33, 47))]
    with OriginServer(tmp_path) as server:
        reader = opened_over_http(server, "a")
        plan = reader.plan(boxes)
        before, heard = server.requests, []
        for outcome in reader.map_regions(boxes, lambda region: None, on_bytes=heard.append):
            assert outcome.error is None
        assert server.requests - before == plan.requests == 9  # one for each shard
        assert sum(heard) == plan.received_bytes
        assert (plan.chunks, plan.missing_chunks) == (2 * 5 * 6, 0)
        assert reader.info.chunk == (4, 8, 8)


def test_each_chunk_is_fetched_once_for_all_boxes(tmp_path):
    """Boxes that are not aligned share chunks."""
    volume = texture()
    write_v2(tmp_path / "a", volume)
    boxes = [Box((0, 0, 0), (10, 33, 47)), Box((10, 0, 0), (20, 33, 47)), Box((5, 5, 5), (15, 20, 30))]
    with OriginServer(tmp_path) as server:
        reader = opened_over_http(server, "a")
        assert (reader.plan(boxes).requests, reader.plan(boxes).received_bytes) == (27, None)
        before = server.requests
        for region in regions(reader, *boxes):
            np.testing.assert_array_equal(region.voxels, volume[region.box.slices])
        assert server.requests - before == 27


@pytest.mark.parametrize("box", [Box((0, 0, 0), (0, 1, 1)), Box((0, 0, 0), (21, 1, 1)), Box((-1, 0, 0), (1, 1, 1))])
def test_boxes_outside_are_refused(tmp_path, box):
    """Never clipped in silence."""
    reader = opened(write_v2(tmp_path / "a", texture()))
    for call in (reader.read, lambda box: regions(reader, box), lambda box: reader.plan([box])):
        with pytest.raises(Mismatch, match="is empty or leaves the volume"):
            call(box)


def test_no_boxes_are_no_work(tmp_path):
    """Nothing is asked for."""
    reader = opened(write_v3(tmp_path / "a", texture(), codecs=sharded()))
    assert list(reader.map_regions([], lambda region: region)) == []
    assert reader.plan([]).requests == 0


def test_more_chunks_than_can_be_listed_are_refused(tmp_path, monkeypatch):
    """Before memory is taken for them."""
    monkeypatch.setattr(_boxes, "MAX_CHUNKS", 26)
    with pytest.raises(Mismatch, match=r"27 chunks .* ask for smaller boxes"):
        opened(write_v2(tmp_path / "a", texture())).read()


# -- missing chunks


@pytest.mark.parametrize("codecs", [None, sharded()], ids=["chunks", "shards"])
@pytest.mark.parametrize("fill_value", [0, 7])
def test_b24_missing_chunks_are_recorded(tmp_path, codecs, fill_value):
    """`read` gives the array's fill value, as zarr does; regions give 0, and say where and what the fill value is."""
    volume = texture()
    folder = tmp_path / "a"
    write_v3(folder, volume, codecs=codecs, fill_value=fill_value)
    (folder / "c/0/1/2").unlink()
    reader = opened(folder)
    hole = Box((0, 16, 32), (8, 32, 47))
    expected = volume.copy()
    expected[hole.slices] = fill_value
    np.testing.assert_array_equal(reader.read(), expected)
    box = Box((0, 20, 30), (9, 33, 40))
    (region,) = regions(reader, box)
    expected[hole.slices] = 0
    np.testing.assert_array_equal(region.voxels, expected[box.slices])
    assert region.fill_value == fill_value
    assert all(part.shape == (min(8, part.shape[0]), *part.shape[1:]) for part in region.missing)
    covered = np.zeros(SHAPE, bool)
    for part in region.missing:
        covered[part.slices] = True
    both = hole.intersection(box)
    assert covered[both.slices].all()
    assert covered.sum() == both.voxels
    if codecs is not None:
        assert reader.plan([whole(reader)]).missing_chunks == 2 * 2 * 2


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("dtype", "fill_value"),
    [
        ("f2", np.nan),
        ("f2", -0.5),
        ("f4", np.nan),
        ("f8", -np.inf),
        ("f4", 0.1),
        ("u8", 2**64 - 1),
        ("i8", -(2**63)),
        ("u1", None),
    ],
    ids=str,
)
def test_b24_fill_values(tmp_path, version, dtype, fill_value):
    """Of an array in which nothing was ever written, exactly as zarr-python reads it."""
    array = zarr.create_array(
        str(tmp_path / "a"), shape=(3, 4, 5), chunks=(2, 2, 2), dtype=dtype, fill_value=fill_value, zarr_format=version
    )
    reader = opened(tmp_path / "a")
    np.testing.assert_array_equal(reader.read(), array[...])
    (region,) = regions(reader, whole(reader))
    assert not region.voxels.any()
    assert sum(part.voxels for part in region.missing) == 60


def test_b24_fill_value_in_hexadecimal(tmp_path):
    """How version 3 writes a NaN with a payload."""
    zarr.create_array(str(tmp_path / "a"), shape=(2, 2, 2), dtype="f4", zarr_format=3)
    edit(tmp_path / "a/zarr.json", v2_with(fill_value="0x7fc00001"))
    assert (opened(tmp_path / "a").read().view("u4") == 0x7FC00001).all()


def test_b24_chunks_never_written_into_a_shard(tmp_path):
    """The index has no place for them."""
    array = zarr.create(
        store=str(tmp_path / "a"), shape=SHAPE, dtype="u2", zarr_format=3, chunks=CHUNK, codecs=sharded(), fill_value=3
    )
    array[0:4, 0:8, 8:16] = 5
    reader = opened(tmp_path / "a")
    np.testing.assert_array_equal(reader.read(), array[...])
    (region,) = regions(reader, Box((0, 0, 0), CHUNK))
    assert len(region.missing) == 7
    assert region.received_bytes > 0


def test_b24_a_channel_that_is_missing(tmp_path):
    """Its voxels are 0, the other channel's are not; the place is told once."""
    volume = texture((2, 4, 4, 4))
    folder = write_axes(tmp_path, volume, "czyx", (1, 4, 4, 4))
    (folder / "0/1.0.0.0").unlink()
    (region,) = regions(opened(folder), Box.from_shape((4, 4, 4)))
    np.testing.assert_array_equal(region.voxels[0], volume[0])
    assert not region.voxels[1].any()
    assert region.missing == (Box.from_shape((4, 4, 4)),)


@pytest.mark.parametrize("codecs", [None, sharded()], ids=["chunks", "shards"])
@pytest.mark.parametrize("status", [403, 404])
def test_b24_absence_by_status(tmp_path, codecs, status):
    """S3 without a permission to list answers 403 for what is absent."""
    write_v3(tmp_path / "a", texture(), codecs=codecs)
    with FaultyServer(tmp_path) as server:
        server.fail = lambda path, *_: Fault(status=status) if path.endswith("/c/1/1/1") else None
        reader = opened_over_http(server, "a")
        (region,) = regions(reader, whole(reader))
        covered = np.zeros(SHAPE, bool)
        for part in region.missing:
            covered[part.slices] = True
        assert covered.sum() == 8 * 16 * 16
        assert not region.voxels[covered].any()


@pytest.mark.parametrize("codecs", [None, sharded()], ids=["chunks", "shards"])
def test_a_403_is_not_absence_when_everything_is_refused(tmp_path, codecs):
    """A server that blocks us would otherwise look like an empty volume."""
    write_v3(tmp_path / "a", texture(), codecs=codecs)
    with FaultyServer(tmp_path) as server:
        reader = opened_over_http(server, "a")
        server.fail = lambda *_: Fault(status=403)
        with pytest.raises(Unavailable, match="not taken for missing"):
            reader.read()


# -- damage


def test_b20_there_is_nothing(tmp_path):
    """What was looked for is named."""
    with pytest.raises(NotThere, match=r"none of zarr.json, \.zarray, \.zgroup, \.zattrs"):
        opened(tmp_path)


@pytest.mark.parametrize("names", [("zarr.json", ".zarray"), ("zarr.json", ".zgroup"), (".zarray", ".zgroup")])
def test_b20_two_versions_side_by_side(tmp_path, names):
    """They need not describe the same bytes."""
    write_v3(tmp_path / "3", texture())
    write_v2(tmp_path / "2", texture())
    folder = tmp_path / "a"
    folder.mkdir()
    for name in names:
        source = {"zarr.json": tmp_path / "3/zarr.json", ".zarray": tmp_path / "2/.zarray"}.get(name)
        (folder / name).write_text(source.read_text() if source else '{"zarr_format": 2}')
    with pytest.raises(Malformed, match=f"has both {names[0]} and {names[1]}, so it is ambiguous"):
        opened(folder)


def test_b20_a_group_is_not_an_array(tmp_path):
    """The way out is named; for a collection of images, too."""
    (tmp_path / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(Unsupported, match=r"without /multiscales .*name an array"):
        opened(tmp_path)
    (tmp_path / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    with pytest.raises(
        Unsupported, match=r"a collection of images \(series\): name one of them .*such as file://.*/0\.$"
    ):
        opened(tmp_path)
    with pytest.raises(NotThere, match="correct the address or the dataset"):
        opened(tmp_path, "5")


@pytest.mark.parametrize("dataset", ["../secret", "/../secret", "a//b", "http://127.0.0.1:1/x", "a\\..\\b"])
def test_b25_a_dataset_leads_nowhere_else(tmp_path, dataset):
    """Also where a person asks for it."""
    write_v2(tmp_path / "secret", texture())
    write_group(tmp_path / "open")
    with pytest.raises(Malformed, match="expected a path below"):
        opened(tmp_path / "open", dataset)


def v2_with(**fields):
    return lambda document: document.update(fields)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        pytest.param(v2_with(shape=[-1, 3, 3]), Malformed, "/shape is", id="B21 shape negative"),
        pytest.param(v2_with(shape=[0, 3, 3]), Unsupported, "holds no voxel", id="B21 shape 0"),
        pytest.param(v2_with(shape=[10**9] * 3), Unsupported, "more than", id="B21 10^27 voxels"),
        pytest.param(v2_with(shape=[3.0, 3, 3]), Malformed, "/shape is", id="B21 shape a float"),
        pytest.param(v2_with(shape=[True, 3, 3]), Malformed, "/shape is", id="B21 shape a bool"),
        pytest.param(v2_with(shape="3"), Malformed, "/shape is", id="B21 shape a string"),
        pytest.param(v2_with(shape=[], chunks=[]), Unsupported, "0 axes", id="B21 no axes"),
        pytest.param(v2_with(shape=[1] * 6, chunks=[1] * 6), Unsupported, "6 axes", id="B21 6 axes"),
        pytest.param(v2_with(chunks=[0, 16, 16]), Malformed, "/chunks is", id="B21 chunk 0"),
        pytest.param(v2_with(chunks=[-8, 16, 16]), Malformed, "/chunks is", id="B21 chunk negative"),
        pytest.param(v2_with(chunks=[10**4] * 3), Unsupported, "2000000000000 bytes", id="B21 chunk of 10^12 bytes"),
        pytest.param(v2_with(chunks=[16, 16]), Malformed, "3 axes, its chunks have 2", id="B21 chunk of 2 axes"),
        pytest.param(v2_with(dtype="|O"), Unsupported, "/dtype is '|O'; accepted are uint8", id="B22 object"),
        pytest.param(v2_with(dtype="<c8"), Unsupported, "/dtype", id="B22 complex"),
        pytest.param(v2_with(dtype="|u2"), Unsupported, "/dtype", id="B22 no byte order"),
        pytest.param(v2_with(dtype=[["a", "<u2"]]), Unsupported, "/dtype", id="B22 structured"),
        pytest.param(
            v2_with(compressor={"id": "pickle"}), Unsupported, "'pickle'; accepted are none and zstd", id="B22 pickle"
        ),
        pytest.param(v2_with(compressor={"id": ["zstd"]}), Unsupported, "/compressor/id is", id="B22 codec a list"),
        pytest.param(v2_with(compressor="zstd"), Malformed, "/compressor is", id="B22 codec a string"),
        pytest.param(
            v2_with(compressor={"id": "blosc", "cname": "snappy"}), Unsupported, "/cname is 'snappy'", id="B22 snappy"
        ),
        pytest.param(v2_with(filters=[{"id": "delta"}]), Unsupported, "/filters is", id="B22 filter"),
        pytest.param(v2_with(order="K"), Malformed, "/order is", id="B22 order"),
        pytest.param(v2_with(dimension_separator=".."), Malformed, "/dimension_separator is", id="B22 separator"),
        pytest.param(v2_with(fill_value=70000), Malformed, "/fill_value is 70000", id="B22 fill too large"),
        pytest.param(v2_with(fill_value="x"), Malformed, "/fill_value is 'x'", id="B22 fill a string"),
        pytest.param(v2_with(zarr_format=3), Malformed, "/zarr_format is 3", id="B22 version"),
    ],
)
def test_broken_metadata_of_version_2(tmp_path, change, kind, said):
    """B21, B22: before any chunk is fetched or any library sees it; the field is named."""
    write_v2(tmp_path / "a", texture())
    edit(tmp_path / "a/.zarray", change)
    with pytest.raises(kind, match=re.escape(said)) as caught:
        opened(tmp_path / "a")
    assert ".zarray" in str(caught.value)


def codec(name, **configuration):
    return {"name": name, "configuration": configuration}


LITTLE = codec("bytes", endian="little")
SHARDS = {"chunk_shape": [4, 8, 8], "codecs": [LITTLE], "index_codecs": [LITTLE, codec("crc32c")]}


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        pytest.param(v2_with(shape=[-1, 3, 3]), Malformed, "/shape is", id="B21 shape negative"),
        pytest.param(v2_with(shape=[10**9] * 3), Unsupported, "more than", id="B21 10^27 voxels"),
        pytest.param(
            v2_with(chunk_grid=codec("regular", chunk_shape=[0, 8, 8])), Malformed, "chunk_shape is", id="B21 chunk 0"
        ),
        pytest.param(
            v2_with(chunk_grid=codec("regular", chunk_shape=[10**4] * 3)),
            Unsupported,
            "2000000000000 bytes",
            id="B21 chunk of 10^12 bytes",
        ),
        pytest.param(v2_with(chunk_grid=codec("rectilinear")), Unsupported, "'rectilinear'", id="B21 grid"),
        pytest.param(
            v2_with(codecs=[codec("sharding_indexed", **SHARDS | {"chunk_shape": [3, 8, 8]})]),
            Malformed,
            "does not divide",
            id="B21 shard not divided",
        ),
        pytest.param(
            lambda document: document.update(
                chunk_grid=codec("regular", chunk_shape=[10**4] * 3),
                codecs=[codec("sharding_indexed", **SHARDS | {"chunk_shape": [1, 1, 1]})],
            ),
            Unsupported,
            "a shard has 1000000000000 chunks",
            id="B21 shard index",
        ),
        pytest.param(v2_with(data_type="string"), Unsupported, "/data_type is 'string'", id="B22 string"),
        pytest.param(v2_with(data_type={"name": "x"}), Unsupported, "/data_type is", id="B22 type an object"),
        pytest.param(v2_with(codecs=[LITTLE, codec("pickle")]), Unsupported, "/codecs/1 is 'pickle'", id="B22 pickle"),
        pytest.param(v2_with(codecs=[]), Malformed, "/codecs is", id="B22 no codecs"),
        pytest.param(v2_with(codecs=["zstd"]), Unsupported, "/codecs/0 is 'zstd'", id="B22 no bytes"),
        pytest.param(v2_with(codecs=[codec("bytes")]), Malformed, "endian is None", id="B22 no byte order"),
        pytest.param(
            v2_with(codecs=[LITTLE, codec("zstd"), codec("gzip")]), Unsupported, "/codecs/2", id="B22 packed twice"
        ),
        pytest.param(
            v2_with(codecs=[codec("transpose", order=[0, 0, 1]), LITTLE]), Malformed, "order is", id="B22 transpose"
        ),
        pytest.param(
            v2_with(codecs=[codec("sharding_indexed", **SHARDS), codec("gzip")]), Unsupported, "alone", id="B22 packed"
        ),
        pytest.param(
            v2_with(codecs=[codec("sharding_indexed", **SHARDS | {"codecs": [codec("sharding_indexed", **SHARDS)]})]),
            Unsupported,
            "no shards within shards",
            id="B22 shards in shards",
        ),
        pytest.param(
            v2_with(codecs=[codec("sharding_indexed", **SHARDS | {"index_codecs": [LITTLE, codec("gzip")]})]),
            Unsupported,
            "index_codecs is",
            id="B22 packed index",
        ),
        pytest.param(v2_with(secret={"x": 1}), Unsupported, "/secret is not known", id="B22 extension"),
        pytest.param(v2_with(storage_transformers=[{}]), Unsupported, "/storage_transformers", id="B22 transformer"),
        pytest.param(v2_with(chunk_key_encoding=codec("x")), Unsupported, "/chunk_key_encoding is 'x'", id="B22 keys"),
        pytest.param(v2_with(node_type="x"), Unsupported, "without /multiscales", id="B22 neither array nor group"),
    ],
)
def test_broken_metadata_of_version_3(tmp_path, change, kind, said):
    """B21, B22: before any chunk is fetched or any library sees it; the field is named."""
    write_v3(tmp_path / "a", texture())
    edit(tmp_path / "a/zarr.json", change)
    with pytest.raises(kind, match=re.escape(said)) as caught:
        opened(tmp_path / "a")
    assert "zarr.json" in str(caught.value)


def test_an_extension_that_need_not_be_understood(tmp_path):
    """As the specification has it."""
    volume = texture()
    write_v3(tmp_path / "a", volume)
    edit(tmp_path / "a/zarr.json", v2_with(hint={"must_understand": False}))
    np.testing.assert_array_equal(opened(tmp_path / "a").read(), volume)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{", "not JSON"),
        (b'{"zarr_format": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[" * 200_000, "nested"),
        (b'{"a": ' + b"1" * 5000 + b"}", "digits"),
        (b'"\xff"', "not UTF-8"),
        (b"[1]", "expected a JSON object"),
        (b" " * (16 * 2**20 + 1), "16777216"),
    ],
    ids=["cut", "NaN", "key twice", "200,000 brackets", "5,000 digits", "not UTF-8", "list", "too large"],
)
def test_b33_hostile_json(tmp_path, raw, said):
    """Of the outside's documents only plain JSON of a sane size is taken."""
    (tmp_path / ".zarray").write_bytes(raw)
    with pytest.raises(Malformed, match=said):
        opened(tmp_path)


def test_b33_a_byte_order_mark_is_accepted(tmp_path):
    """Some editors leave one."""
    volume = texture()
    write_v2(tmp_path / "a", volume)
    file = tmp_path / "a/.zarray"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    np.testing.assert_array_equal(opened(tmp_path / "a").read(), volume)


BOMB = b"\0" * 64 * 2**20


@pytest.mark.parametrize("name", ["none", "zstd", "gzip", "zlib", "bz2", "lz4", "blosc-lz4-1"])
def test_b23_damaged_chunks(tmp_path, name):
    """Empty, cut at many places, longer, of another size, a bomb: the array and the chunk are named, every time."""
    compressor = V2_COMPRESSORS[name]
    folder = write_v2(tmp_path / "a", texture(), compressors=compressor)
    file = folder / "1.1.0"
    good = file.read_bytes()
    packed = (lambda data: compressor.encode(np.frombuffer(data, "u1"))) if compressor else (lambda data: data)
    reader = opened(folder)
    bad = [b"", good + b"\0", b"\xff" * (len(good) // 2), bytes(packed(b"x" * 100)), bytes(packed(BOMB))]
    bad += [good[: len(good) * n // 20] for n in range(1, 20)]
    for data in bad:
        file.write_bytes(data)
        with pytest.raises(Malformed) as caught:
            reader.read(Box((8, 16, 0), (16, 32, 16)))
        assert "1.1.0" in str(caught.value)
        assert str(tmp_path) in str(caught.value)
    file.write_bytes(good)
    assert (reader.read() == texture()).all()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("zstd", numcodecs.Zstd().encode(BOMB)),
        ("gzip", gzip.compress(BOMB)),
        ("zlib", zlib.compress(BOMB)),
        ("bz2", numcodecs.BZ2().encode(BOMB)),
        ("lz4", numcodecs.LZ4().encode(BOMB)),
        ("blosc", numcodecs.Blosc().encode(BOMB)),
    ],
    ids=["zstd", "gzip", "zlib", "bz2", "lz4", "blosc"],
)
def test_b23_a_bomb_is_never_unpacked(kind, data):
    """Of 64 MiB nothing beyond the expected kilobyte comes to lie in memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        with pytest.raises(BadChunkError):
            decompress(kind, bytes(data), np.empty(1024, np.uint8))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 2**10  # KiB


def test_b23_one_bad_chunk_fails_only_its_boxes(tmp_path):
    """The others are read."""
    volume = texture()
    folder = write_v2(tmp_path / "a", volume, compressors=V2_COMPRESSORS["zstd"])
    (folder / "0.0.0").write_bytes(b"no")
    boxes = [Box((0, 0, 0), (8, 16, 16)), Box((8, 16, 16), (20, 33, 47))]
    outcomes = {o.box: o for o in opened(folder).map_regions(boxes, lambda region: region.voxels)}
    assert isinstance(outcomes[boxes[0]].error, Malformed)
    np.testing.assert_array_equal(outcomes[boxes[1]].value, volume[boxes[1].slices])


def test_b23_a_wrong_checksum(tmp_path):
    """CRC-32C of version 3 is verified."""
    volume = texture()
    write_v3(tmp_path / "a", volume, codecs=V3_CODECS["crc32c"])
    file = tmp_path / "a/c/0/0/0"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(Malformed, match=r"chunk c/0/0/0 of .*CRC-32C"):
        opened(tmp_path / "a").read()


def shard_with(folder, change, location="end"):
    """A shard of 2x2x2 chunks whose index was changed, with its checksum as the change leaves it."""
    write_v3(folder, texture(), codecs=sharded(location=location))
    file = folder / "c/0/0/0"
    data = bytearray(file.read_bytes())
    at = 0 if location == "start" else len(data) - 132
    index = np.frombuffer(data[at : at + 128], "<u8").reshape(8, 2).copy()
    checksum = change(index)
    data[at : at + 128] = index.tobytes()
    if checksum is not False:
        import google_crc32c

        data[at + 128 : at + 132] = struct.pack("<I", google_crc32c.value(bytes(data[at : at + 128])))
    file.write_bytes(data)
    return folder


def set_entry(row, offset, size):
    def change(index):
        index[row] = offset, size

    return change


def without_checksum(index):
    index[3, 0] += 1
    return False


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(without_checksum, "CRC-32C", id="B27 checksum"),
        pytest.param(set_entry(3, 10**6, 100), r"chunk \(0, 1, 1\) at byte 1000000 .* the shard has", id="B27 offset"),
        pytest.param(set_entry(3, 2**64 - 100, 100), r"at byte 18446744073709551516", id="B27 offset overflows"),
        pytest.param(set_entry(3, 0, 2**63), "9223372036854775808 bytes", id="B27 size"),
        pytest.param(set_entry(3, 0, 0), "with 0 bytes", id="B27 size 0"),
    ],
)
def test_b27_damaged_shard_indices(tmp_path, change, said, location):
    """The shard and the place are named; boxes that do not need it are read."""
    reader = opened(shard_with(tmp_path / "a", change, location))
    with pytest.raises(Malformed, match=said) as caught:
        reader.read()
    assert "a/c/0/0/0" in str(caught.value)
    reader.read(Box((8, 0, 0), (16, 16, 16)))


def test_b27_a_shard_shorter_than_its_index(tmp_path):
    """Cut anywhere: refused, never read as absent."""
    folder = write_v3(tmp_path / "a", texture(), codecs=sharded())
    file = folder / "c/0/0/0"
    good = file.read_bytes()
    for length in (0, 1, 131, 132, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:length])
        with pytest.raises(Malformed, match="a/c/0/0/0"):
            opened(folder).read()


def test_b27_entries_that_point_into_other_chunks(tmp_path):
    """What is there does not unpack to a chunk, or to this one's voxels; the checksum of the index is right."""
    reader = opened(shard_with(tmp_path / "a", set_entry(3, 1, 50)))
    with pytest.raises(Malformed, match=r"chunk \(0, 1, 1\) in shard c/0/0/0 of .*cannot be unpacked"):
        reader.read()


def test_b21_limits_come_before_memory(tmp_path, monkeypatch):
    """The cap on a chunk is one number."""
    monkeypatch.setattr(_stored_array, "MAX_CHUNK_BYTES", 8 * 16 * 16 * 2 - 1)
    with pytest.raises(Unsupported, match="has 4096 bytes; accepted are 4095"):
        opened(write_v2(tmp_path / "a", texture()))


@pytest.mark.parametrize("kind", ["zstd", "lz4", "blosc", "gzip"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_b23_any_flipped_bytes_are_told_or_harmless(kind, data):
    """No byte of a chunk makes a decoder leave its room."""
    plain = texture((8, 16, 16)).tobytes()
    encoder = {
        "zstd": V2_COMPRESSORS["zstd"],
        "lz4": numcodecs.LZ4(),
        "blosc": numcodecs.Blosc(),
        "gzip": numcodecs.GZip(),
    }
    packed = bytearray(encoder[kind].encode(plain))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    room = np.full(len(plain) + 64, 0xA5, np.uint8)
    with contextlib.suppress(BadChunkError):
        decompress(kind, bytes(packed), room[: len(plain)])
    assert (room[len(plain) :] == 0xA5).all()
