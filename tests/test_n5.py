"""The N5 reader against tensorstore, blocks made by hand, and the attributes that different tools write."""

import bz2
import gzip
import json
import lzma
import shutil
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch.client import FolderClient, folder_url
from em_assets.fetch.http import HttpClient, NotThere
from em_assets.formats.n5 import open_n5
from em_assets.settings import Settings
from em_assets.volume import Box
from faulty import Fault, FaultyServer

SHAPE = (20, 33, 47)
"""(z, y, x); with blocks of 8, 16, 16 every axis ends in a smaller one."""
CHUNK = (8, 16, 16)
SPEED = {"unreachable_seconds": 1.0, "retry_seconds": 1.0, "connect_seconds": 1.0, "read_seconds": 1.0, "workers": 2}
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
COMPRESSIONS = {
    "raw": {"type": "raw"},
    "gzip": {"type": "gzip", "level": 1},
    "zlib": {"type": "gzip", "level": 1, "useZlib": True},
    "bzip2": {"type": "bzip2", "blockSize": 1},
    "xz": {"type": "xz", "preset": 0},
    "zstd": {"type": "zstd", "level": 1},
    "blosc": {"type": "blosc", "cname": "lz4", "clevel": 3, "shuffle": 1},
}


def texture(shape=SHAPE, dtype="uint16"):
    """Different along each axis, nowhere 0."""
    return (np.arange(np.prod(shape)).reshape(shape) % 113 + 1).astype(dtype)


def write(folder, volume, *, chunk=CHUNK, compression="raw", **attributes):
    """An array as tensorstore writes it, with more attributes."""
    ts = pytest.importorskip("tensorstore")
    metadata = {
        "dimensions": volume.shape[::-1],
        "blockSize": chunk[::-1],
        "dataType": volume.dtype.name,
        "compression": COMPRESSIONS[compression],
    }
    spec = {"driver": "n5", "kvstore": f"file://{folder}/", "metadata": metadata}
    ts.open(spec, create=True).result()[...] = volume.T
    edit(folder, **attributes)
    return folder


def edit(folder, **attributes):
    """Adds to `attributes.json`; None takes away."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "attributes.json"
    document = (json.loads(file.read_text()) if file.exists() else {}) | attributes
    file.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def opened(folder, dataset=None):
    return open_n5(folder_url(folder), dataset, FolderClient(), Settings(**SPEED))


def opened_over_http(server, path, dataset=None):
    values = Settings(**SPEED)
    return open_n5(f"{server.url}/{path}".rstrip("/"), dataset, HttpClient(values), values)


def regions(reader, *boxes):
    outcomes = {outcome.box: outcome for outcome in reader.map_regions(boxes, lambda region: region)}
    for outcome in outcomes.values():
        if outcome.error is not None:
            raise outcome.error
    return [outcomes[box].value for box in boxes]


def pyramid(folder, *, levels=2, volume=None):
    """Arrays s0, s1, ... of halves."""
    volume = texture() if volume is None else volume
    for k in range(levels):
        write(folder / f"s{k}", volume[tuple(slice(None, n // 2**k * 2**k, 2**k) for n in volume.shape)])
    return volume


def transform(level, axes=("z", "y", "x"), sizes=None, **more):
    """COSEM's, with half-voxel translations; the sizes are 5.24, 4, 8 nm along z, y, x."""
    sizes = {"z": 5.24, "y": 4.0, "x": 8.0} if sizes is None else sizes
    scale = [sizes[axis] * 2**level for axis in axes]
    moved = [(a - sizes[axis]) / 2 for a, axis in zip(scale, axes, strict=True)]
    return {"axes": list(axes), "scale": scale, "translate": moved, "units": ["nm"] * len(axes)} | more


# -- other implementations


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
def test_what_tensorstore_writes(tmp_path, compression, dtype):
    """The same voxels, turned around to z, y, x; the samples of a second decoder, too."""
    volume = texture(dtype=dtype)
    reader = opened(write(tmp_path / "a", volume, compression=compression))
    voxels = reader.read()
    np.testing.assert_array_equal(voxels, volume)
    assert voxels.flags.c_contiguous
    assert voxels.dtype == np.dtype(dtype).newbyteorder("<")
    assert (reader.info.shape, reader.info.chunk, reader.info.dtype) == (SHAPE, CHUNK, dtype)
    box = Box((3, 0, 15), (20, 17, 47))
    (region,) = regions(reader, box)
    np.testing.assert_array_equal(region.voxels, volume[box.slices])
    assert len(region.samples) == 128
    assert all(sample.value == volume[sample.position] for sample in region.samples)


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_box_of_any_array(tmp_path, data):
    """The law of a reader, for one to three axes."""
    folder = tmp_path / "a"
    shutil.rmtree(folder, ignore_errors=True)
    axes = data.draw(st.integers(1, 3), "axes")
    shape = data.draw(st.tuples(*[st.integers(1, 13)] * axes), "shape")
    chunk = data.draw(st.tuples(*[st.integers(1, 6)] * axes), "chunk")
    volume = texture(shape, data.draw(st.sampled_from(DTYPES), "dtype"))
    compression = data.draw(st.sampled_from(sorted(COMPRESSIONS)), "compression")
    reader = opened(write(folder, volume, chunk=chunk, compression=compression))
    volume = volume.reshape((1,) * (3 - axes) + shape)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in volume.shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, volume.shape, strict=True))
    (region,) = regions(reader, Box(start, stop))
    np.testing.assert_array_equal(region.voxels, volume[region.box.slices])
    assert all(sample.value == float(volume[sample.position]) for sample in region.samples)


def test_blocks_at_the_end_may_be_whole(tmp_path):
    """Some writers fill them up; what lies beyond the array is not read."""
    folder = write(tmp_path / "a", texture((3, 4, 5)), chunk=(2, 3, 4))
    block = np.arange(24, dtype=">u2")
    (folder / "1/1/1").write_bytes(struct.pack(">HHIII", 0, 3, 4, 3, 2) + block.tobytes())
    assert opened(folder).read()[2:, 3:, 4:].tolist() == [[[0]]]


def test_the_attribute_of_older_versions(tmp_path):
    """Until 1.5 the compression was a word."""
    volume = texture()
    folder = write(tmp_path / "a", volume, compression="gzip")
    edit(folder, compression=None, compressionType="gzip")
    np.testing.assert_array_equal(opened(folder).read(), volume)


def test_missing_blocks_are_0_and_recorded(tmp_path):
    """B24: N5 has no fill value."""
    volume = texture()
    folder = write(tmp_path / "a", volume)
    (folder / "2/1/0").unlink()  # x, y, z
    reader = opened(folder)
    hole = Box((0, 16, 32), (8, 32, 47))
    volume[hole.slices] = 0
    np.testing.assert_array_equal(reader.read(), volume)
    (region,) = regions(reader, Box((4, 0, 0), (9, 33, 40)))
    assert region.missing == (Box((4, 16, 32), (8, 32, 40)),)
    assert reader.object_path((0, 1, 2)) == "2/1/0"


@pytest.mark.parametrize("status", [403, 404])
def test_absence_by_status(tmp_path, status):
    """B24: S3 without a permission to list answers 403 for what is absent, also for groups without attributes."""
    volume = pyramid(tmp_path / "em")
    with FaultyServer(tmp_path) as server:
        server.fail = lambda path, *_: (
            Fault(status=status) if path.endswith("/0/0/0") or path == "/em/attributes.json" else None
        )
        reader = opened_over_http(server, "em")
        (region,) = regions(reader, Box.from_shape(SHAPE))
        assert region.missing == (Box.from_shape(CHUNK),)
        volume[:8, :16, :16] = 0
        np.testing.assert_array_equal(region.voxels, volume)
        server.fail = lambda *_: Fault(status=403)
        with pytest.raises(Unavailable, match="not taken for missing"):
            reader.read()


# -- levels and sizes


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "by name"])
def test_a_level_by_any_of_its_names(tmp_path, listed):
    """The trap of jrc_hela-2: the group's multiscales name axes z, y, x, its own attributes x, y, z."""
    volume = pyramid(tmp_path / "em/fibsem-uint16")
    if listed:
        edit(
            tmp_path / "em/fibsem-uint16",
            axes=["x", "y", "z"],
            units=["nm"] * 3,
            scales=[[1, 1, 1], [2, 2, 2]],
            pixelResolution={"dimensions": [8.0, 4.0, 5.24], "unit": "nm"},
            multiscales=[{"datasets": [{"path": f"s{k}", "transform": transform(k)} for k in range(2)]}],
        )
    for path, dataset in [("em/fibsem-uint16", "s1"), ("", "em/fibsem-uint16/s1"), ("em/fibsem-uint16", "1")]:
        reader = opened(tmp_path / path, dataset)
        np.testing.assert_array_equal(reader.read(), volume[:20:2, :32:2, :46:2])
        assert [(level.path, level.shape) for level in reader.levels] == [("s0", SHAPE), ("s1", (10, 16, 23))]
        assert reader.info.voxel_size_nm == ((10.48, 8.0, 16.0) if listed else None)
        assert reader.info.corner_nm == ((-2.62, -2.0, -4.0) if listed else (0.0, 0.0, 0.0))
        assert reader.convention == ("centre" if listed else "scale-only")
        assert (tmp_path / path / reader.object_path((1, 0, 1))).is_file()
    for path, dataset in [("em/fibsem-uint16", None), ("", "em/fibsem-uint16")]:
        np.testing.assert_array_equal(opened(tmp_path / path, dataset).read(), volume)
    with pytest.raises(Mismatch, match="its levels are s0, s1"):
        reader.at_level("s7")


NM_XYZ = {"dimensions": [8.0, 4.0, 5.24], "unit": "nm"}
NM_ZYX = (5.24, 4.0, 8.0)


@pytest.mark.parametrize(
    ("group", "own", "sizes"),
    [
        ({}, {"transform": transform}, (NM_ZYX, (10.48, 8.0, 16.0))),
        ({}, {"transform": lambda k: transform(k, axes="xyz")}, (NM_ZYX, (10.48, 8.0, 16.0))),
        ({}, {"transform": lambda k: transform(k, units=["um"] * 3)}, ((5240.0, 4e3, 8e3), (10480.0, 8e3, 16e3))),
        ({}, {"transform": lambda k: transform(k, units=["pixel"] * 3)}, (None, None)),
        (
            {},
            {"pixelResolution": lambda k: NM_XYZ, "downsamplingFactors": lambda k: [2**k] * 3},
            (NM_ZYX, (10.48, 8.0, 16.0)),
        ),
        (
            {},
            {"pixelResolution": lambda k: {"dimensions": [8.0 * 2**k, 4.0 * 2**k, 5.24 * 2**k], "unit": "nm"}},
            (NM_ZYX, (10.48, 8.0, 16.0)),
        ),
        ({"pixelResolution": NM_XYZ, "scales": [[1, 1, 1], [2, 2, 2]]}, {}, (NM_ZYX, (10.48, 8.0, 16.0))),
        (
            {"resolution": [8.0, 4.0, 5.24], "units": ["nm"] * 3},
            {"downsamplingFactors": lambda k: [2**k] * 3},
            (NM_ZYX, (10.48, 8.0, 16.0)),
        ),
        ({"pixelResolution": NM_XYZ}, {}, (NM_ZYX, None)),
        ({"resolution": [8.0, 4.0, 5.24]}, {}, (None, None)),
        ({}, {"pixelResolution": lambda k: [8.0 * 2**k, 4.0 * 2**k, 5.24 * 2**k]}, (None, None)),
        ({}, {}, (None, None)),
    ],
    ids=[
        "COSEM zyx",
        "COSEM xyz",
        "COSEM micrometres",
        "COSEM no length",
        "N5 viewer",
        "each its own",
        "N5 viewer group",
        "Neuroglancer",
        "factors not stated",
        "Paintera, no unit",
        "bare list, no unit",
        "nothing",
    ],
)
def test_sizes_as_different_tools_state_them(tmp_path, group, own, sizes):
    """What is not stated, or not as a length, is None."""
    pyramid(tmp_path / "em")
    edit(tmp_path / "em", **group)
    for k in range(2):
        edit(tmp_path / f"em/s{k}", **{key: value(k) for key, value in own.items()})
    reader = opened(tmp_path / "em")
    assert tuple(level.scale_nm for level in reader.levels) == sizes
    placed = "transform" in own and sizes[0] is not None
    for k in range(2):
        corner = reader.at_level(str(k)).info.corner_nm
        assert corner == (tuple(-size / 2 for size in sizes[0]) if placed else (0.0, 0.0, 0.0))


def test_axes_named_otherwise_are_turned_around(tmp_path):
    """By their names: the first of this array is z."""
    volume = texture((5, 6, 7))
    folder = write(tmp_path / "a", volume, chunk=(2, 2, 2), axes=["z", "y", "x"])
    np.testing.assert_array_equal(opened(folder).read(), volume.T)


def test_channels_have_to_be_named(tmp_path):
    """A fourth axis may be anything."""
    volume = texture((2, 5, 6, 7))
    folder = write(tmp_path / "a", volume, chunk=(1, 2, 2, 2))
    with pytest.raises(Unsupported, match="4 axes and does not name them"):
        opened(folder)
    edit(folder, axes=["x", "y", "z", "c"])
    reader = opened(folder)
    assert reader.info.channels == 2
    np.testing.assert_array_equal(reader.read(), volume)
    np.testing.assert_array_equal(reader.read(Box((1, 2, 3), (4, 5, 6))), volume[:, 1:4, 2:5, 3:6])


def test_documents_are_given_as_received(tmp_path):
    """With every scalar in them as a tag."""
    pyramid(tmp_path / "em")
    edit(tmp_path / "em", n5="2.0.0")
    reader = opened(tmp_path, "em/s1")
    documents = reader.documents()
    assert set(documents) == {"em/attributes.json", "em/s0/attributes.json", "em/s1/attributes.json"}
    assert all((tmp_path / path).read_bytes() == raw for path, raw in documents.items())
    assert dict(reader.tags())["em/s1/attributes.json/dimensions/0"] == 23


def test_real_cosem_attributes(realdata):
    """n5-universe's examples of COSEM's attributes: millimetres and x, y, z; nanometres and z, y, x."""
    folder = realdata / "zarr/n5universe_test.n5"
    reader = opened(folder, "c0/s1")
    assert reader.info.voxel_size_nm == (26e6, 22e6, 14e6)
    assert reader.levels[1].translation_nm == (7.5e6, 4.5e6, 3e6)
    assert opened(folder, "cosem").info.voxel_size_nm == (64.0, 64.0, 64.0)
    assert opened(folder, "n5v_pra").info.voxel_size_nm is None
    assert [level.path for level in opened(folder, "cosem_ms").levels] == ["s0", "s1", "s2"]


# -- what is refused


@pytest.mark.parametrize(
    ("attributes", "kind", "said"),
    [
        pytest.param({"dimensions": [-1, 3, 3]}, Malformed, "/dimensions is", id="B21 shape negative"),
        pytest.param({"dimensions": [10**9] * 3}, Unsupported, "more than", id="B21 10^27 voxels"),
        pytest.param({"dimensions": [0, 3, 3]}, Unsupported, "no voxel", id="B21 shape 0"),
        pytest.param({"blockSize": [0, 16, 8]}, Malformed, "/blockSize is", id="B21 block 0"),
        pytest.param({"blockSize": [10**4] * 3}, Unsupported, "2000000000000 bytes", id="B21 block of 10^12 bytes"),
        pytest.param({"blockSize": [16, 8]}, Malformed, "its chunks have 2", id="B21 block of 2 axes"),
        pytest.param({"dataType": "object"}, Unsupported, "/dataType is 'object'", id="B22 object"),
        pytest.param({"dataType": ["uint8"]}, Unsupported, "/dataType is", id="B22 type a list"),
        pytest.param({"compression": {"type": "pickle"}}, Unsupported, "'pickle'; accepted are raw", id="B22 pickle"),
        pytest.param({"compression": {"type": "lz4"}}, Unsupported, "/compression/type is 'lz4'", id="B22 lz4"),
        pytest.param({"compression": {"type": {}}}, Unsupported, "/compression/type is", id="B22 codec an object"),
        pytest.param({"compression": None}, Malformed, "/compression is None", id="B22 no codec"),
        pytest.param(
            {"compression": {"type": "blosc", "cname": "snappy"}}, Unsupported, "/cname is", id="B22 blosc of snappy"
        ),
        pytest.param({"transform": {"axes": ["y", "x"]}}, Malformed, "/transform/axes is", id="B25 axes"),
        pytest.param({"transform": []}, Malformed, "/transform is", id="B25 transform a list"),
        pytest.param(
            {"transform": transform(0) | {"scale": [1, 0, 1]}}, Malformed, "/transform/scale is", id="B25 scale 0"
        ),
        pytest.param(
            {"pixelResolution": {"dimensions": [1, -1, 1], "unit": "nm"}}, Malformed, "resolution is", id="B25 size < 0"
        ),
        pytest.param({"axes": ["x", "x", "y"]}, Malformed, "given twice", id="B25 axes twice"),
    ],
)
def test_broken_attributes(tmp_path, attributes, kind, said):
    """B21, B22, B25: before any block is fetched; the field is named."""
    folder = write(tmp_path / "a", texture())
    edit(folder, **attributes)
    with pytest.raises(kind, match=said) as caught:
        opened(folder)
    assert "attributes.json" in str(caught.value)


@pytest.mark.parametrize("path", ["../../x", "/s1", "https://evil/x", "a\\b", ""])
def test_b25_listed_paths_lead_nowhere_else(tmp_path, path):
    """The field is named."""
    pyramid(tmp_path / "em")
    edit(tmp_path / "em", multiscales=[{"datasets": [{"path": "s0"}, {"path": path}]}])
    with pytest.raises(Malformed, match="/multiscales/0/datasets/1/path is"):
        opened(tmp_path / "em")
    with pytest.raises(Malformed, match="expected a path below"):
        opened(tmp_path / "em", "../em/s0")


def test_b26_levels_that_do_not_fit(tmp_path):
    """The level is named."""
    pyramid(tmp_path / "em")
    edit(tmp_path / "em", pixelResolution=NM_XYZ, scales=[[1, 1, 1], [4, 2, 2]])
    with pytest.raises(Malformed, match=r"level 1 \(s1\) has 23 voxels along x"):
        opened(tmp_path / "em")


def test_b20_there_is_nothing(tmp_path):
    """Neither an array nor levels; none of the listed levels."""
    with pytest.raises(NotThere, match="is no N5 array and has no levels"):
        opened(tmp_path)
    edit(tmp_path, multiscales=[{"datasets": [{"path": "s0"}]}])
    with pytest.raises(Mismatch, match="lists s0, but none of them is there"):
        opened(tmp_path)


PACKERS = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("name", PACKERS)
def test_b23_damaged_blocks(tmp_path, name):
    """Empty, cut anywhere, longer, a bomb: the array and the block are named, every time."""
    volume = texture((4, 4, 4), "uint8")
    folder = write(tmp_path / "a", volume, chunk=(4, 4, 4), compression=name)
    file = folder / "0/0/0"
    good = file.read_bytes()
    reader = opened(folder)
    for data in [good[:n] for n in range(len(good))] + [good + b"\0", good[:16] + PACKERS[name](b"\0" * 2**24)]:
        file.write_bytes(data)
        with pytest.raises(Malformed, match="0/0/0") as caught:
            reader.read()
        assert str(tmp_path) in str(caught.value)
    file.write_bytes(good)
    np.testing.assert_array_equal(reader.read(), volume)


@pytest.mark.parametrize(
    ("header", "kind", "said"),
    [
        (struct.pack(">HHIII", 0, 3, 5, 4, 4), Malformed, "states .* voxels, expected at most"),
        (struct.pack(">HHIII", 0, 3, 0, 4, 4), Malformed, "states"),
        (struct.pack(">HHIII", 0, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), Malformed, "states"),
        (struct.pack(">HHIII", 0, 3, 3, 4, 4), Malformed, r"has \(1, 4, 4, 3\) voxels"),
        (struct.pack(">HHII", 0, 2, 4, 4), Malformed, "2 axes, expected 0 and 3"),
        (struct.pack(">HHIIII", 1, 3, 4, 4, 4, 64), Unsupported, "varying length"),
        (struct.pack(">HHI", 2, 3, 64), Unsupported, "of objects"),
        (struct.pack(">HHIII", 9, 3, 4, 4, 4), Malformed, "mode 9"),
    ],
    ids=["larger", "0", "2^96", "smaller", "axes", "mode 1", "mode 2", "mode 9"],
)
def test_b23_headers_of_blocks(tmp_path, header, kind, said):
    """A block inside the array has all its voxels; none has more than a block may have."""
    folder = write(tmp_path / "a", texture((4, 4, 4), "uint8"), chunk=(4, 4, 4))
    size = 48 if "3" in said and "voxels" in said else 64
    (folder / "0/0/0").write_bytes(header + bytes(size))
    with pytest.raises(kind, match=said):
        opened(folder).read()
