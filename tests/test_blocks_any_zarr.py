"""Any OME-Zarr and N5 in blocks: every voxel type is kept, of channels and points in time one is chosen."""

import io
import itertools
import json
import math
import multiprocessing
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from operator import methodcaller
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import tensorstore as ts
import zarr
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import em_assets.blocks as em
from em_assets import cli
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch import attempts
from em_assets.store import LocalStore, open_store
from faulty import FaultyServer
from small import quick_settings
from test_stage import store_dataset

KINDS = {"t": "time", "c": "channel"}
LENGTHS = {"t": 3, "c": 4, "z": 6, "y": 7, "x": 8}
SPACE = (LENGTHS["z"], LENGTHS["y"], LENGTHS["x"])
NAMES = ("DAPI", "GFP", "membrane", "7")


def group(folder: Path, attributes: dict, *, zarr_format: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if zarr_format == 3:
        document = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", **attributes}}}
        (folder / "zarr.json").write_text(json.dumps(document))
    else:
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps(attributes))
    return folder


def write(folder, voxels, axes="zyx", *, zarr_format=2, chunks=None, shards=None, unit="nanometer", scale=True, **more):
    """An OME-Zarr of one level as zarr-python writes it, of 8 nm along z, 4 along y, 2 along x; 0.4, or 0.5."""
    array = zarr.create_array(
        str(folder / "0"),
        shape=voxels.shape,
        chunks=chunks or tuple(min(n, 4) for n in voxels.shape),
        shards=shards,
        dtype=voxels.dtype,
        zarr_format=zarr_format,
        chunk_key_encoding={"name": "default" if zarr_format == 3 else "v2", "separator": "/"},
        config={"write_empty_chunks": True},
    )
    array[...] = voxels
    named = [{"name": axis, "type": KINDS.get(axis, "space")} for axis in axes]
    for axis in named:
        if axis["type"] == "space" and unit is not None:
            axis["unit"] = unit
    sizes = [{"z": 8.0, "y": 4.0, "x": 2.0}.get(axis, 1.0) for axis in axes]
    level = {"path": "0"} | ({"coordinateTransformations": [{"type": "scale", "scale": sizes}]} if scale else {})
    image = {"axes": named, "datasets": [level]} | ({} if zarr_format == 3 else {"version": "0.4"})
    return group(folder, {"multiscales": [image], **more}, zarr_format=zarr_format)


def of_axes(axes: str, dtype: str = "uint16") -> np.ndarray:
    """No voxel is like another."""
    shape = [LENGTHS[axis] for axis in axes]
    return (np.arange(math.prod(shape)).reshape(shape) * 7 % 65_521 + 1).astype(dtype)


def omero(*labels: str) -> dict:
    return {"omero": {"channels": [{"label": label} for label in labels]}}


def whole(volume: em.Volume, **how) -> em.Block:
    return volume.read((0, 0, 0), shape=volume.shape, **how)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """A folder with `c.zarr` (channels, two in a chunk) and `tc.zarr` (3 times, 4 channels, in shards of both)."""
    folder = tmp_path_factory.mktemp("theirs")
    write(folder / "c.zarr", of_axes("czyx"), "czyx", chunks=(2, 3, 4, 5), **omero(*NAMES))
    options = {"zarr_format": 3, "chunks": (1, 2, 3, 4, 4), "shards": (2, 4, 6, 8, 8)}
    write(folder / "tc.zarr", of_axes("tczyx"), "tczyx", **options, **omero(*NAMES))
    return folder


@pytest.fixture(scope="module")
def server(theirs):
    with FaultyServer(theirs) as started:
        yield started


@pytest.fixture
def elsewhere(tmp_path):
    """Settings of somebody who has an empty store."""
    return quick_settings(tmp_path / "own", datasets=str(tmp_path))


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch):
    monkeypatch.setattr(attempts, "BACKOFF_SECONDS", 0.02)


# Voxel types

SHARDED = {"zarr_format": 3, "chunks": (2, 4, 4), "shards": (4, 8, 8)}
LAYOUTS = [
    pytest.param({}, id="v2"),
    pytest.param({"zarr_format": 3}, id="v3"),
    pytest.param(SHARDED, id="shards"),
]


@pytest.mark.parametrize("options", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bool", "<f2", ">f2"])
def test_the_type_is_kept(tmp_path, dtype, options):
    """Of volume, block and .npy, and the voxels are those of zarr-python and tensorstore."""
    voxels = (of_axes("zyx").astype("f4") / 7 - 20).astype(dtype) if dtype != "bool" else of_axes("zyx") % 3 == 0
    folder = write(tmp_path / "v.zarr", voxels, **options)
    volume = em.open(folder)
    block = whole(volume)
    name = np.dtype(dtype).name
    assert (volume.dtype.name, block.data.dtype.name) == (name, name)
    assert np.array_equal(block.data, zarr.open_array(str(folder / "0"), mode="r")[...])
    driver = "zarr3" if "zarr_format" in options else "zarr"
    spec = {"driver": driver, "kvstore": f"file://{folder}/0/"}
    assert np.array_equal(block.data, ts.open(spec, open=True).result().read().result())
    read_again = np.load(io.BytesIO(block.npy()))
    assert read_again.dtype == np.dtype(name)
    assert np.array_equal(read_again, voxels)
    assert volume.read((1, 2, 3), shape=3).digest == em.open(folder).read((1, 2, 3), shape=3).digest


def test_truth_values_are_one_or_zero_whatever_byte_is_stored(tmp_path):
    """Equal voxels have equal digests: a writer may store another byte than 1 for true."""
    digests = set()
    for byte in (1, 255):
        folder = write(tmp_path / f"{byte}.zarr", np.full((2, 2, 2), byte, "u1"), chunks=(2, 2, 2))
        document = json.loads((folder / "0/.zarray").read_text())
        (folder / "0/.zarray").write_text(json.dumps(document | {"dtype": "|b1", "fill_value": False}))
        block = whole(em.open(folder))
        assert block.data.tobytes() == bytes([1] * 8)
        digests.add(block.digest)
    assert len(digests) == 1


def test_truth_values_are_labels(tmp_path):
    """Resampled to the nearest voxel, never normalized; padding is a truth value; wider types are given on request."""
    voxels = of_axes("zyx") % 3 == 0
    volume = em.open(write(tmp_path / "v.zarr", voxels))
    assert volume.content == "labels"
    fine = volume.read(center_nm=volume.box_nm.center, shape=(12, 7, 8), voxel_size_nm=(4, 4, 2), resample=True)
    assert fine.data.dtype == np.bool_
    assert np.array_equal(fine.data, voxels.repeat(2, 0))
    padded = volume.read((-1, 0, 0), shape=(2, 7, 8), pad="constant", fill=1)
    assert padded.data[0].all()
    assert np.array_equal(padded.data[1], voxels[0])
    assert np.array_equal(whole(volume, dtype="uint8").data, voxels.astype("u1"))
    for how, said in (
        ({"normalize": "range"}, "holds labels, which have no grey values to normalize"),
        ({"pad": "constant", "fill": 2}, "bool does not hold fill=2"),
    ):
        with pytest.raises(Mismatch, match=said):
            whole(volume, **how)


def test_truth_values_pair_with_an_image(tmp_path):
    """As a mask of labels, also in batches for training."""
    mask = of_axes("zyx") % 2 == 0
    image = em.open(write(tmp_path / "image.zarr", of_axes("zyx")))
    other = em.open(write(tmp_path / "mask.zarr", mask))
    block = whole(image, labels=other)
    assert block.labels.dtype == np.bool_
    assert np.array_equal(block.labels, mask)
    dataset = em.BlockDataset([(image, 1.0)], shape=SPACE, labels={image.name: other.location})
    assert np.array_equal(np.asarray(dataset[0]["labels"]), mask)


@pytest.mark.parametrize("options", LAYOUTS)
def test_absent_chunks_of_truth_values(tmp_path, options):
    """Are known as missing, or have the fill value that the array states."""
    folder = write(tmp_path / "v.zarr", np.ones(SPACE, bool), **options)
    volume = em.open(folder)
    first = Path(folder / "0" / ("c" if "zarr_format" in options else "") / "0/0/0")
    first.unlink()
    with pytest.raises(Mismatch, match="no chunk is stored for"):
        whole(volume)
    block = whole(volume, missing="mask")
    assert np.array_equal(block.data, block.valid)
    assert not block.data[0, 0, 0]
    assert np.array_equal(whole(volume, missing="fill").data, block.data)


def test_half_precision_is_computed_with_in_more(tmp_path):
    """Resampled and normalized in float64, rounded once at the end; infinities and NaN stay."""
    voxels = of_axes("zyx").astype("f4").astype("f2")
    volume = em.open(write(tmp_path / "v.zarr", voxels))
    at = {"center_nm": volume.box_nm.center, "shape": (11, 7, 8), "voxel_size_nm": (4, 4, 2), "resample": True}
    made = volume.read(**at).data
    exact = voxels.astype("f8").repeat(2, 0)
    near, far = exact[:-2], exact[2:]
    # the middles of 11 voxels of 4 nm around the centre of 6 of 8 nm are those of the voxels or halfway between
    between = (voxels[:-1].astype("f8") + voxels[1:].astype("f8")) / 2
    assert (made.dtype, near.shape) == (np.float16, far.shape)
    assert np.array_equal(made[1::2], between.astype("f2"))
    assert np.array_equal(made[::2], voxels)
    scaled = whole(volume, normalize=(-1.0, 2.0)).data
    assert np.array_equal(scaled, ((voxels.astype("f8") + 1) / 3).astype("f4"))
    odd = voxels.copy()
    odd[0, 0, :3] = np.nan, np.inf, 6e-8
    block = whole(em.open(write(tmp_path / "odd.zarr", odd)))
    assert np.array_equal(block.data, odd, equal_nan=True)
    with pytest.raises(Unsupported, match=r"is float16, whose range is no scale; give normalize=\(low, high\)"):
        whole(volume, normalize="range")


# Channels and points in time


@st.composite
def layouts(draw):
    """Axes in some order, how they are chunked and whether in shards."""
    letters = draw(st.sampled_from(["zyx", "czyx", "tzyx", "tczyx"]))
    axes = "".join(draw(st.permutations(letters)))
    chunks = tuple(draw(st.integers(1 if axis in "tc" else 3, LENGTHS[axis])) for axis in axes)
    per_shard = draw(st.none() | st.tuples(*[st.integers(1, 3) for _ in axes]))
    shards = None if per_shard is None else tuple(a * b for a, b in zip(chunks, per_shard, strict=True))
    return axes, {"chunks": chunks, "shards": shards, "zarr_format": 2 if shards is None else 3}


@given(layout=layouts(), data=st.data())
@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_axes_any_chunks_any_part(tmp_path_factory, layout, data):
    """Any box of any channel and point in time is what NumPy cuts out."""
    axes, options = layout
    voxels = of_axes(axes)
    folder = write(tmp_path_factory.mktemp("any") / "v.zarr", voxels, axes, **options)
    number = {axis: data.draw(st.integers(0, LENGTHS[axis] - 1), axis) for axis in "tc" if axis in axes}
    volume = em.open(folder, channel=number.get("c"), time=number.get("t"))
    part = voxels[tuple(number.get(axis, slice(None)) for axis in axes)]
    left = [axis for axis in axes if axis in "zyx"]
    part = part.transpose([left.index(axis) for axis in "zyx"])
    start = [data.draw(st.integers(0, n - 1)) for n in part.shape]
    shape = [data.draw(st.integers(1, n - a)) for n, a in zip(part.shape, start, strict=True)]
    cut = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    assert (volume.shape, volume.voxel_size_nm) == (part.shape, (8.0, 4.0, 2.0))
    assert np.array_equal(volume.read(start, shape=shape).data, part[cut])
    assert np.array_equal(whole(em.open(volume.location)).data, part)


def digests(location, settings) -> list[str]:
    """Of all times of two channels of `tc.zarr`, and of those channels of `c.zarr`."""
    parts = [f"tc.zarr#channel={channel}&time={time}" for time, channel in itertools.product(range(3), (0, 3))]
    return [
        whole(em.open(f"{location}/{part}", settings=settings)).digest
        for part in (*parts, "c.zarr#channel=0", "c.zarr#channel=3")
    ]


def test_local_https_and_s3_are_alike(theirs, server, elsewhere, moto_s3):
    """In shards with several times and in chunks of several channels; no two parts are mistaken for each other."""
    expected = digests(theirs, elsewhere)
    assert expected[6:] == expected[:2]  # the voxels of the first point in time
    assert len(set(expected)) == 6
    tensor = ts.open({"driver": "zarr3", "kvstore": f"file://{theirs}/tc.zarr/0/"}, open=True).result()
    volume = em.open(f"{server.url}/tc.zarr", channel="membrane", time=2, settings=elsewhere)
    assert np.array_equal(whole(volume).data, tensor[2, 2].read().result())
    there, here = open_store(moto_s3), LocalStore(theirs)
    for path, _ in here.list(""):
        there.write(path, here.read(path))
    assert digests(server.url, elsewhere) == expected
    assert digests(moto_s3, elsewhere) == expected


def test_only_its_own_chunks_are_asked_for(theirs, server, elsewhere):
    """Of four channels in chunks of two, half the chunks."""
    volume = em.open(f"{server.url}/c.zarr", channel=2, settings=elsewhere)
    server.log.clear()
    whole(volume)
    chunks = {path for _, path, _ in server.log if path.startswith("/c.zarr/0/") and path[-1].isdigit()}
    assert chunks == {f"/c.zarr/0/1/{z}/{y}/{x}" for z in range(2) for y in range(2) for x in range(2)}


def test_equal_channels_have_equal_digests(tmp_path):
    """The choice is no part of it, as it is no part of the voxels."""
    one = of_axes("zyx")
    folder = write(tmp_path / "v.zarr", np.stack([one, one, one + 1]), "czyx")
    first, second, third = (whole(em.open(folder, channel=channel)).digest for channel in range(3))
    assert first == second == whole(em.open(write(tmp_path / "one.zarr", one))).digest
    assert first != third


def test_the_choice_belongs_to_the_volume(theirs, elsewhere):
    """Its name and location say it, a spawned worker reads it, and its location opens it again."""
    volume = em.open(theirs / "tc.zarr", channel="GFP", time=2, settings=elsewhere)
    assert volume.name == "tc.zarr#channel=1&time=2"
    assert volume.location == f"{theirs}/tc.zarr#channel=1&time=2"
    assert (volume.part.channel, volume.part.time, volume.part.channels, volume.part.times) == (1, 2, NAMES, 3)
    expected = of_axes("tczyx")[2, 1]
    assert np.array_equal(whole(pickle.loads(pickle.dumps(volume))).data, expected)
    spawned = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with spawned as process:
        block = process.submit(methodcaller("read", (0, 0, 0), shape=SPACE), volume).result()
    assert np.array_equal(block.data, expected)
    for location in (volume.location, f"{theirs}/tc.zarr#channel=GFP&time=2"):
        again = em.open(location, settings=elsewhere)
        assert (again.location, whole(again).digest) == (volume.location, block.digest)


def test_channels_are_volumes_of_a_dataset(theirs, elsewhere):
    """Two channels of one array may be mixed, or one be the other's labels."""
    first, second = (em.open(theirs / "c.zarr", channel=c, settings=elsewhere) for c in (0, 1))
    voxels = of_axes("czyx")
    dataset = em.BlockDataset([(first, 1.0), (second, 1.0)], shape=SPACE, length=20)
    met = {dataset[n]["info"]["volume"] for n in range(20)}
    assert met == {"c.zarr#channel=0", "c.zarr#channel=1"}
    assert np.array_equal(whole(first, labels=second.location).labels, voxels[1])


def test_a_link_shows_the_channel(theirs, server, elsewhere):
    """Where Neuroglancer can choose it; a point in time it cannot."""
    block = whole(em.open(f"{server.url}/c.zarr", channel=2, settings=elsewhere))
    state = json.loads(unquote(block.neuroglancer_url().partition("#!")[2]))
    assert state["layers"][-1]["localDimensions"] == {"c'": [1.0, ""]}
    assert state["layers"][-1]["localPosition"] == [2]
    with pytest.raises(Unsupported, match="4 channels and 3 points in time; a link can only choose among channels"):
        whole(em.open(f"{server.url}/tc.zarr#channel=0&time=1", settings=elsewhere)).neuroglancer_url()


def test_one_channel_needs_no_choice(tmp_path, elsewhere):
    """And may be named all the same; its location says nothing of it."""
    voxels = of_axes("zyx")
    folder = write(tmp_path / "v.zarr", voxels[None, None], "tczyx", **omero("EM"))
    for how in ({}, {"channel": 0}, {"channel": "EM"}, {"channel": "0", "time": 0}, {"channel": np.int64(0)}):
        volume = em.open(folder, **how, settings=elsewhere)
        assert volume.location == str(folder)
        assert np.array_equal(whole(volume).data, voxels)


@pytest.mark.parametrize(
    ("address", "how", "said"),
    [
        pytest.param(
            "c.zarr", {}, r"4 channels: 0 \(DAPI\), 1 \(GFP\), 2 \(membrane\), 3 \(7\); a volume is one", id="none"
        ),
        pytest.param(
            "tc.zarr", {}, r"3 \(7\) and 3 points in time: 0 to 2; .* such as channel=0, time=0\.$", id="neither"
        ),
        pytest.param("tc.zarr", {"channel": 0}, r"has 3 points in time: 0 to 2; .* such as time=0\.$", id="no time"),
        pytest.param("c.zarr", {"channel": 4}, "so there is no channel 4; choose one of 0 to 3", id="beyond"),
        pytest.param("c.zarr", {"channel": "5"}, "so there is no channel 5", id="beyond, as text"),
        pytest.param("c.zarr", {"channel": -1}, "so there is no channel -1", id="negative"),
        pytest.param(
            "c.zarr", {"channel": "gfp"}, r"no channel is called 'gfp'; there are 0 \(DAPI\)", id="other name"
        ),
        pytest.param("c.zarr", {"channel": True}, "channel is True, expected a number or a name", id="bool"),
        pytest.param("c.zarr", {"channel": 1.0}, "channel is 1.0, expected a number or a name", id="float"),
        pytest.param("c.zarr", {"channel": 0, "time": 1}, "1 point in time, so there is no point in time 1", id="time"),
        pytest.param("c.zarr", {"channel": 0, "time": "1"}, "time is '1', expected a number", id="time as text"),
        pytest.param("c.zarr#channel=1", {"channel": 1}, "names a channel or time itself", id="said twice"),
        pytest.param("c.zarr#channel=1&channel=2", {}, "expected such as channel=1&time=2", id="two in the location"),
        pytest.param("c.zarr#channel=", {}, "ends in 'channel=', expected such as", id="none in the location"),
        pytest.param("c.zarr#time=x&channel=1", {}, "time is 'x', expected a number", id="no time in the location"),
    ],
)
def test_choices_that_cannot_be(theirs, elsewhere, address, how, said):
    """One sentence that says what there is."""
    with pytest.raises(Mismatch, match=said):
        em.open(f"{theirs}/{address}", **how, settings=elsewhere)


def test_a_name_comes_before_a_number(theirs, elsewhere):
    """A channel that is called 7 is the fourth; two of one name are told apart by number."""
    assert em.open(theirs / "c.zarr", channel="7", settings=elsewhere).part.channel == 3
    assert em.open(theirs / "c.zarr", channel="2", settings=elsewhere).part.channel == 2


def test_in_a_location_a_number_comes_before_a_name(tmp_path, elsewhere):
    """Or the location of the first channel would open another, which is called 0; times may stand before channels."""
    folder = write(tmp_path / "v.zarr", of_axes("tczyx"), "tczyx", **omero("a", "b", "0", "1"))
    volume = em.open(folder, channel=0, time=2, settings=elsewhere)
    assert em.open(folder, channel="0", time=2, settings=elsewhere).part.channel == 2
    for location in (volume.location, f"{folder}#time=2&channel=0", f"{folder}#time=2&channel=a"):
        assert em.open(location, settings=elsewhere).part == volume.part


@pytest.mark.parametrize(
    "stated",
    [{}, {"omero": None}, {"omero": {"channels": "x"}}, omero("a", "a"), omero("a"), {"omero": {"channels": [3]}}],
)
def test_odd_names_of_channels_keep_nobody_from_reading(tmp_path, elsewhere, stated):
    """`omero` is for display: without it numbers are left, and a name that two have is none."""
    voxels = np.stack([of_axes("zyx")] * 2)
    folder = write(tmp_path / "v.zarr", voxels, "czyx", **stated)
    assert np.array_equal(whole(em.open(folder, channel=1, settings=elsewhere)).data, voxels[1])
    if stated == omero("a", "a"):
        with pytest.raises(Mismatch, match="2 channels are called 'a'"):
            em.open(folder, channel="a", settings=elsewhere)


def test_a_dataset_has_one_channel(tmp_path):
    """By its name and by its address; saying so is allowed."""
    settings = quick_settings(tmp_path / "data")
    store_dataset(settings.root, np.ones((16, 16, 16), "u1"))
    for location in ("em", f"{settings.root}/em"):
        digest = em.open(location, settings=settings).read((0, 0, 0), shape=8).digest
        chosen = em.open(location, channel=0, time=0, settings=settings)
        assert chosen.read((0, 0, 0), shape=8).digest == digest
        for how in ({"channel": 1}, {"channel": "DAPI"}, {"time": 1}):
            with pytest.raises(Mismatch, match="is a dataset of one channel and one point in time; leave out"):
                em.open(location, **how, settings=settings)


def write_n5(folder: Path, voxels: np.ndarray, axes: str, block: tuple[int, ...]) -> Path:
    """`axes` and `block` in the order of the array's z, y, x; N5 states both the other way round."""
    metadata = {
        "dimensions": voxels.shape[::-1],
        "blockSize": block[::-1],
        "dataType": voxels.dtype.name,
        "compression": {"type": "raw"},
    }
    spec = {"driver": "n5", "kvstore": f"file://{folder}/", "metadata": metadata}
    ts.open(spec, create=True).result()[...] = voxels.T
    document = json.loads((folder / "attributes.json").read_text()) | {"axes": list(axes[::-1])}
    stated = {"dimensions": [2.0 if axis == "x" else 4.0 for axis in axes[::-1]], "unit": "nm"}
    (folder / "attributes.json").write_text(json.dumps(document | {"pixelResolution": stated}))
    return folder


@pytest.mark.parametrize("axes", ["czyx", "tczyx", "zyxc"])
def test_parts_of_an_n5(tmp_path, elsewhere, axes):
    """With blocks of several channels and times, the last of them smaller."""
    voxels = of_axes(axes)
    blocks = {"t": 2, "c": 3, "z": 4, "y": 4, "x": 4}
    folder = write_n5(tmp_path / "v.n5", voxels, axes, tuple(blocks[axis] for axis in axes))
    for channel, time in itertools.product(range(4), range(3) if "t" in axes else [None]):
        volume = em.open(folder, channel=channel, time=time, settings=elsewhere)
        part = voxels[tuple({"c": channel, "t": time}.get(axis, slice(None)) for axis in axes)]
        assert np.array_equal(whole(volume).data, part)


def test_an_n5_block_without_the_channel(tmp_path, elsewhere):
    """A block that states fewer channels than it must have is damage, not another channel."""
    folder = write_n5(tmp_path / "v.n5", of_axes("czyx"), "czyx", (4, *SPACE))
    block = folder / "0/0/0/0"
    raw = bytearray(block.read_bytes())
    raw[16:20] = (1).to_bytes(4, "big")  # c is the last of its axes
    block.write_bytes(raw[: 20 + 2 * math.prod(SPACE)])
    assert np.array_equal(whole(em.open(folder, channel=0, settings=elsewhere)).data, of_axes("czyx")[0])
    with pytest.raises(Malformed, match="too few for its place 3 along c; report it"):
        whole(em.open(folder, channel=3, settings=elsewhere))


# Commands


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command line in this process, in an empty folder with a store: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EM_ASSETS_ROOT", str(tmp_path / "data"))

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["em-assets", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return command


def test_read_takes_a_channel(theirs, run, tmp_path):
    """By name or number, as Python does; without one it says which there are."""
    box = ("--start", "0,0,0", "--shape", ",".join(map(str, SPACE)))
    code, out, _ = run("read", f"{theirs}/tc.zarr", *box, "--channel", "GFP", "--time", "2", "-o", "a.npy", "--json")
    assert code == 0
    expected = whole(em.open(theirs / "tc.zarr", channel=1, time=2))
    assert json.loads(out)["digest"] == expected.digest
    assert json.loads(out)["location"].endswith("tc.zarr#channel=1&time=2")
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected.data)
    code, _, err = run("read", f"{theirs}/c.zarr", *box)
    assert code != 0
    assert "has 4 channels: 0 (DAPI), 1 (GFP)" in err


def test_read_writes_truth_values(run, tmp_path):
    """As .npy and .npz, and as .tif what ImageJ and others open."""
    voxels = of_axes("zyx") % 3 == 0
    folder = write(tmp_path / "v.zarr", voxels)
    box = ("--start", "0,0,0", "--shape", ",".join(map(str, SPACE)))
    for ending in ("npy", "npz", "tif"):
        assert run("read", str(folder), *box, "-o", f"a.{ending}")[0] == 0
    assert np.load(tmp_path / "a.npy").dtype == np.bool_
    assert np.array_equal(np.load(tmp_path / "a.npz")["data"], voxels)
    tifffile = pytest.importorskip("tifffile")
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif").astype(bool), voxels)


def test_half_precision_is_no_tiff(run, tmp_path):
    """Which no viewer knows: wider numbers hold it exactly."""
    voxels = of_axes("zyx").astype("f4").astype("f2")
    folder = write(tmp_path / "v.zarr", voxels)
    box = ("--start", "0,0,0", "--shape", ",".join(map(str, SPACE)))
    code, _, err = run("read", str(folder), *box, "-o", "a.tif")
    assert code != 0
    assert "OME-TIFF has no float16" in err
    assert not (tmp_path / "a.tif").exists()
    assert run("read", str(folder), *box, "--dtype", "float32", "-o", "a.tif")[0] == 0
    assert np.array_equal(pytest.importorskip("tifffile").imread(tmp_path / "a.tif"), voxels.astype("f4"))


def test_geometry_lists_channels(theirs, run):
    """Without a choice too: all lie in the same place."""
    code, out, _ = run("geometry", f"{theirs}/tc.zarr")
    assert code == 0
    assert "channels    0 (DAPI), 1 (GFP), 2 (membrane), 3 (7); one is a volume" in out
    assert "times       3, 0 to 2; one is a volume" in out
    assert "#channel=2&time=0" in run("geometry", f"{theirs}/tc.zarr", "--channel", "membrane")[1]


# What else of OME-Zarr there is


def test_images_of_a_collection(tmp_path, elsewhere):
    """Series, fields and labels are opened by their own address."""
    voxels = of_axes("zyx")
    for path in ("bf.zarr/0", "plate.zarr/A/1/0", "image.zarr", "image.zarr/labels/nuc"):
        write(tmp_path / path, voxels)
        assert np.array_equal(whole(em.open(tmp_path / path, settings=elsewhere)).data, voxels)
    assert em.open(tmp_path / "image.zarr/labels/nuc", settings=elsewhere).content == "labels"


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        pytest.param({"bioformats2raw.layout": 3}, r"images \(series\): .* such as \S+/g\.zarr/0\.$", id="series"),
        pytest.param({"series": ["0", "1"]}, r"images beside it: .* such as \S+/0, \S+/1\.$", id="list of series"),
        pytest.param(
            {"plate": {"wells": [{"path": "A/1"}, {"path": "B/2"}]}, "bioformats2raw.layout": 3},
            r"a plate of wells .* such as \S+/g\.zarr/A/1/0, \S+/g\.zarr/B/2/0\.$",
            id="plate",
        ),
        pytest.param({"well": {"images": [{"path": "7"}]}}, r"a well .* such as \S+/g\.zarr/7\.$", id="well"),
        pytest.param({"labels": ["nuc"]}, r"a list of label images: .* such as \S+/g\.zarr/nuc\.$", id="labels"),
        pytest.param({"plate": {"wells": 3}}, "a plate of wells .* or open it by its address.$", id="odd plate"),
        pytest.param({}, "name an array or image within it", id="plain group"),
    ],
)  # fmt: skip  # a row per case
def test_collections_name_what_to_open(tmp_path, elsewhere, attributes, said, zarr_format):
    """One sentence with the address of what can be opened."""
    folder = group(tmp_path / "g.zarr", attributes, zarr_format=zarr_format)
    with pytest.raises(Unsupported, match=said):
        em.open(folder, settings=elsewhere)


@pytest.mark.parametrize(
    ("axes", "changes", "said"),
    [
        pytest.param("yx", {}, r"has no axis z \(its axes: y, x\), so it is no volume", id="2-D"),
        pytest.param("cyx", {}, "has no axis z", id="2-D channels"),
        pytest.param("zyx", {"unit": None}, "its levels state no unit of length .*z None", id="no unit"),
        pytest.param("zyx", {"unit": "pixel"}, r"no unit of length \(z 'pixel', y 'pixel', x 'pixel'\)", id="pixel"),
        pytest.param("zyx", {"scale": False}, "its levels state no scale; complete a copy", id="no scale"),
    ],
)
def test_what_has_no_place_is_refused(tmp_path, elsewhere, axes, changes, said):
    """And the sentence says what is not stated, and what to do."""
    folder = write(tmp_path / "v.zarr", of_axes(axes), axes, **changes)
    with pytest.raises(Unsupported, match=said):
        em.open(folder, settings=elsewhere)


def test_a_level_alone_has_no_place(tmp_path, elsewhere):
    """Its group states it: the sentence says so."""
    folder = write(tmp_path / "v.zarr", of_axes("zyx"))
    with pytest.raises(Unsupported, match="if it is a level of an image, open the group above"):
        em.open(folder / "0", settings=elsewhere)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("micrometer", 1e3), ("angstrom", 0.1), ("Micrometers", 1e3), ("millimeter", 1e6), ("nm", 1.0)],
)
def test_units_of_length_become_nanometres(tmp_path, elsewhere, unit, factor):
    """Whatever the publisher counts in."""
    volume = em.open(write(tmp_path / "v.zarr", of_axes("zyx"), unit=unit), settings=elsewhere)
    assert volume.voxel_size_nm == pytest.approx((8 * factor, 4 * factor, 2 * factor), rel=1e-12)


def test_nothing_there_is_unavailable(tmp_path, elsewhere):
    """With a choice as without."""
    for location in (tmp_path / "no.zarr", f"{tmp_path}/no.zarr#channel=1"):
        with pytest.raises(Unavailable, match="neither a dataset nor a folder"):
            em.open(location, settings=elsewhere)
