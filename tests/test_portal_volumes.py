"""A volume as OME-Zarr and MRC in the portal's form, with what the portal's own writer gets wrong done right."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.errors import Mismatch, Unavailable, Unsupported
from em_assets.fetch.client import FolderClient, folder_url
from em_assets.formats._bytes import LocalBytes
from em_assets.formats.mrc import open_mrc
from em_assets.formats.zarr import open_zarr
from em_assets.portal import _levels
from em_assets.portal._staged import READ_BYTES, read_boxes
from em_assets.portal.volumes import write_volume
from em_assets.settings import Settings
from em_assets.store import PARTIAL_SUFFIX, LocalStore, open_store
from em_assets.volume import Box, VolumeInfo
from memory_reader import noise, reference_levels

ROOT = Path(__file__).parents[1]
SIZE_NM = (1.348, 1.348, 1.348)
ZARR, MRC = "10000/RUN/Tomograms/100/RUN.zarr", "10000/RUN/Tomograms/100/RUN.mrc"


@dataclass
class ArrayReader:
    """An array that begins at `origin` in its publisher's voxels; remembers what was read of it."""

    array: np.ndarray
    chunk: tuple[int, int, int] = (64, 64, 64)
    origin: tuple[int, int, int] = (3, 5, 7)
    boxes: list[Box] = field(default_factory=list)

    @property
    def info(self) -> VolumeInfo:
        return VolumeInfo(self.array.shape, self.array.dtype.name, None, self.chunk, self.origin)

    def read(self, box: Box | None = None) -> np.ndarray:
        self.boxes.append(box)
        return np.ascontiguousarray(self.array[box.shifted(tuple(-n for n in self.origin)).slices])


class Unreadable(ArrayReader):
    """Nobody may ask it for a voxel."""

    def read(self, box=None):
        raise AssertionError("a voxel was read")


class Broken(ArrayReader):
    """Fails in its last part, when the rest was read."""

    def read(self, box=None):
        if box.stop[0] == self.origin[0] + self.array.shape[0]:
            raise Unavailable("the source is gone")
        return super().read(box)


@pytest.fixture
def portal_chunks():
    """Asks for chunks as large as the portal's, of which one has 64 MB; other tests do with small ones."""


@pytest.fixture(autouse=True)
def small_chunks(request, monkeypatch):
    if "portal_chunks" not in request.fixturenames:
        small = {"CHUNK": (64, 64, 64), "INNER_CHUNK": (32, 32, 32), "TILT_CHUNK": (1, 64, 64)}
        for name, chunk in (small | {"TILT_INNER_CHUNK": (1, 32, 32)}).items():
            monkeypatch.setattr(_levels, name, chunk)


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "tree")


def write(store, array, content="image", *, reader=ArrayReader, zarr_key=ZARR, mrc_key=MRC, **options):
    options = {"voxel_size_nm": SIZE_NM, "identity": "source 1", "workers": 2} | options
    reader = reader(array) if isinstance(reader, type) else reader
    return write_volume(reader, store, zarr_key=zarr_key, mrc_key=mrc_key, content=content, **options)


def levels(store, key=ZARR) -> list[np.ndarray]:
    """All three, by zarr-python."""
    group = zarr.open_group(store.uri(key), mode="r")
    return [group[str(level)][:] for level in range(3)]


def multiscale(store, key=ZARR) -> dict:
    return json.loads(store.read(f"{key}/.zattrs"))["multiscales"][0]


def files(store) -> dict[str, bytes]:
    return {path: store.read(path) for path, _ in store.list("")}


def everything_below(store) -> list[str]:
    """Also what is unfinished."""
    return sorted(path.name for path in Path(store.root).rglob("*"))


# -- voxels


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int16"])
def test_odd_ends_average_real_voxels_only(store, dtype):
    """A constant 5^3 of 100 is 100 everywhere on every level; the portal's has 12.5 and 1.56 in its corners."""
    write(store, np.full((5, 5, 5), 100, dtype))
    found = levels(store)
    assert [level.shape for level in found] == [(5, 5, 5), (3, 3, 3), (2, 2, 2)]
    assert all((level == 100).all() for level in found)


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param((5, 7, 9), "int8", id="one chunk"),
        pytest.param((67, 5, 66), "uint16", id="two chunks of level 0"),
        pytest.param((2, 3, 259), "float32", id="two chunks of level 2"),
    ],
)
def test_levels_are_exact_means(store, shape, dtype, ngff):
    """Across chunks as within them: every level is what plain NumPy gives, in the source's dtype."""
    array = noise(shape, dtype)
    written = write(store, array, ngff=ngff, workers=3)
    expected = reference_levels(array, written.scales)
    for found, level in zip(levels(store), expected, strict=True):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, level)


def test_a_tilt_series_is_averaged_within_its_pictures_only(store):
    """z stays as long as it is on every level, and every picture is the mean of its own pixels."""
    array = noise((3, 259, 21), "float32")
    written = write(store, array, "tilt_series")
    assert written.scales == ((3, 259, 21), (3, 130, 11), (3, 65, 6))
    for number, picture in enumerate(array):
        expected = reference_levels(np.stack([picture, picture]), [None] * 2)[1][0]
        np.testing.assert_array_equal(levels(store)[1][number], expected)


@pytest.mark.parametrize(
    ("largest", "dtype", "mrc_dtype"),
    [
        pytest.param(1, "uint8", "int8", id="mask"),
        pytest.param(200, "uint8", "uint16", id="byte"),
        pytest.param(70_000, "uint32", "float32", id="portal wraps it to 4464"),
        pytest.param(2**24 + 1, "uint32", None, id="not in single precision"),
        pytest.param(2**64 - 1, "uint64", None, id="largest there is"),
    ],
)
def test_labels_never_wrap(store, largest, dtype, mrc_dtype):
    """The smallest dtype that holds the largest label; an MRC only where a mode holds it, else a note says so."""
    array = np.zeros((4, 4, 4), "uint64")
    array[0, 0, 0] = largest
    written = write(store, array, "labels")
    assert (written.dtype, written.mrc_dtype) == (dtype, mrc_dtype)
    assert [int(level.max()) for level in levels(store)] == [largest] * 3
    if mrc_dtype is None:
        assert written.mrc_bytes is None and store.size_bytes(MRC) is None
        assert f"0 to {largest}" in written.notes[-1]
    else:
        with mrcfile.open(store.uri(MRC)) as opened:
            assert opened.data.dtype == mrc_dtype and opened.data.max() == largest


def test_masks_do_not_grow(store):
    """A coarser voxel is voxel 2i, not whatever is somewhere under it: the portal's masks grow by 8 and 64."""
    mask = np.zeros((8, 8, 8), "int8")
    mask[4, 4, 4] = mask[3, 3, 3] = 1
    write(store, mask, "labels")
    for number, level in enumerate(levels(store)):
        step = 2**number
        np.testing.assert_array_equal(level, mask[::step, ::step, ::step])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        pytest.param(np.array([-1, 3], "int16"), "-1 to 3", id="negative"),
        pytest.param(np.array([0.5, 3], "float32"), "not all of them whole numbers", id="fraction"),
        pytest.param(np.array([np.nan, 3], "float32"), "not all of them whole numbers", id="no number"),
    ],
)
def test_labels_are_whole_numbers(store, values, named):
    """What is no label is refused, with its values; nothing is left of it."""
    with pytest.raises(Mismatch, match=named):
        write(store, values.reshape(1, 1, 2), "labels")
    assert not files(store)


def test_whole_floats_are_labels(store):
    """Many masks are published as float32: their labels are what they are."""
    write(store, np.array([0, 300], "float32").reshape(1, 1, 2), "labels")
    np.testing.assert_array_equal(levels(store)[0], np.array([[[0, 300]]], "uint16"))


@pytest.mark.parametrize(
    ("dtype", "mrc_dtype", "mode"),
    [
        pytest.param("int8", "int8", 0, id="int8"),
        pytest.param("uint8", "uint16", 6, id="uint8"),
        pytest.param("int16", "int16", 1, id="int16"),
        pytest.param("uint16", "uint16", 6, id="uint16"),
        pytest.param("float16", "float16", 12, id="float16"),
        pytest.param("float32", "float32", 2, id="float32"),
        pytest.param("int32", "float32", 2, id="int32 of small values"),
        pytest.param("float64", "float32", 2, id="float64 of single values"),
    ],
)
def test_the_dtype_is_kept(store, dtype, mrc_dtype, mode):
    """In the OME-Zarr always; the MRC has the mode that holds every value, and a note where that is another dtype."""
    array = np.arange(-30, 75).reshape(3, 5, 7).clip(0 if dtype.startswith("u") else None).astype(dtype)
    written = write(store, array)
    assert (written.dtype, written.mrc_dtype) == (dtype, mrc_dtype)
    assert bool(written.notes) == (dtype != mrc_dtype)
    np.testing.assert_array_equal(levels(store)[0], array, strict=True)
    with mrcfile.open(store.uri(MRC)) as opened:
        assert opened.header.mode == mode
        np.testing.assert_array_equal(opened.data, array)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.array([0, 2**24 + 1], "int32"), id="int32"),
        pytest.param(np.array([0, 0.1], "float64"), id="float64"),
    ],
)
def test_an_mrc_that_would_round_is_not_written(store, array):
    """A note says so, an earlier MRC of the name is gone, and the OME-Zarr has every value."""
    write(store, np.ones((1, 1, 2), "float32"))
    written = write(store, array.reshape(1, 1, 2), identity="source 2")
    assert written.mrc_bytes is None and "No MRC was written" in written.notes[0]
    assert store.size_bytes(MRC) is None
    np.testing.assert_array_equal(levels(store)[0].ravel(), array)


@pytest.mark.parametrize("dtype", ["complex64"])
def test_complex_numbers_are_refused(store, dtype):
    """Before anything is read."""
    with pytest.raises(Unsupported, match="complex64"):
        write(store, np.zeros((2, 2, 2), dtype), reader=Unreadable)


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("content", ["image", "tilt_series"])
def test_missing_voxels_are_in_no_mean(store, content, dtype, ngff):
    """A constant volume that lacks some boxes stays constant where anything is real, on every level, and is else 0."""
    shape, gaps = (67, 70, 131), (Box((0, 0, 0), (64, 64, 64)), Box((61, 3, 63), (67, 66, 70)))
    real = np.ones(shape, bool)
    for gap in gaps:
        real[gap.slices] = False
    array = np.where(real, 100, 0).astype(dtype)

    def present(box):
        assert Box.from_shape(shape).contains(box)
        return None if real[box.slices].all() else real[box.slices]

    write(store, array, content, ngff=ngff, workers=3, present=present)
    factor = (1, 2, 2) if content == "tilt_series" else (2, 2, 2)
    for level in levels(store):
        np.testing.assert_array_equal(level, np.where(real, 100, 0))
        padded = np.pad(real, [(0, n % f) for n, f in zip(real.shape, factor, strict=True)])
        blocks = padded.reshape([part for n, f in zip(padded.shape, factor, strict=True) for part in (n // f, f)])
        real = blocks.any(axis=(1, 3, 5))


# -- metadata


def test_scales_are_those_of_the_source(store):
    """All three voxel sizes, in angstrom, unrounded, times 2^level; a mean lies in the middle of its voxels."""
    write(store, np.ones((4, 4, 4), "float32"), voxel_size_nm=(1.2, 0.33702, 0.4))
    found = multiscale(store)
    assert [axis["unit"] for axis in found["axes"]] == ["angstrom"] * 3
    for level, dataset in enumerate(found["datasets"]):
        scale, *translation = dataset["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [12.0 * 2**level, 3.3702 * 2**level, 4.0 * 2**level]}
        if level:
            assert translation[0]["translation"] == [size * (2**level - 1) / 2 for size in (12.0, 3.3702, 4.0)]
        else:
            assert not translation
    with mrcfile.open(store.uri(MRC)) as opened:
        assert opened.voxel_size.tolist() == pytest.approx((4.0, 3.3702, 12.0), rel=1e-6)


def test_labels_stay_where_their_voxel_was(store):
    """No level of labels has a translation: voxel 2i is what it is of."""
    write(store, np.ones((4, 4, 4), "uint8"), "labels")
    kinds = [[one["type"] for one in dataset["coordinateTransformations"]] for dataset in multiscale(store)["datasets"]]
    assert kinds == [["scale"]] * 3
    assert "image-label" in json.loads(store.read(f"{ZARR}/.zattrs"))


def test_the_z_of_a_tilt_series_is_no_length(store):
    """It has neither unit nor the pixels' size, on no level; the MRC is a stack of pictures."""
    write(store, np.ones((4, 6, 6), "float32"), "tilt_series", voxel_size_nm=(0.5, 0.5, 0.4))
    found = multiscale(store)
    assert found["axes"][0] == {"name": "z"}
    scales = [dataset["coordinateTransformations"][0]["scale"] for dataset in found["datasets"]]
    assert scales == [[1.0, 5.0, 4.0], [1.0, 10.0, 8.0], [1.0, 20.0, 16.0]]
    with mrcfile.open(store.uri(MRC)) as opened:
        assert (opened.header.ispg, opened.header.mz, opened.header.nz) == (0, 1, 4)
        assert opened.voxel_size.tolist() == pytest.approx((4.0, 5.0, 5.0))
    reader = open_mrc(LocalBytes(Path(store.uri(MRC))), Settings(workers=1))
    assert reader.pixel_size_nm == (0.5, 0.4)


def test_the_mrc_header_is_right(store):
    """By mrcfile's own validation; its statistics are the voxels', its size exact, and no label holds a time."""
    array = noise((5, 6, 7), "float32")
    written = write(store, array, labels_text=["from a test"])
    assert mrcfile.validate(store.uri(MRC))
    with mrcfile.open(store.uri(MRC)) as opened:
        header = opened.header
        exact = array.astype(np.float64)
        expected = (exact.min(), exact.max(), exact.mean(), exact.std())
        assert [header.dmin, header.dmax, header.dmean, header.rms] == pytest.approx(expected, rel=1e-6)
        assert (header.mx, header.my, header.mz, header.ispg) == (7, 6, 5, 1)
        labels = [label.strip() for label in opened.get_labels()]
    assert labels[0].startswith("em_assets ") and labels[-1] == "from a test"
    found = written.statistics
    assert [found.minimum, found.maximum, found.mean, found.rms] == pytest.approx(expected, rel=1e-12)
    assert written.mrc_bytes == store.size_bytes(MRC) == 1024 + array.nbytes


def test_the_origin_is_kept(store, tmp_path):
    """ORIGIN of a source that is MRC; the portal writes 0."""
    with mrcfile.new(tmp_path / "source.mrc", np.ones((3, 4, 5), "int16")) as source:
        source.header.origin = (10, 20, 30)
    write(store, None, reader=open_mrc(LocalBytes(tmp_path / "source.mrc"), Settings(workers=1)))
    with mrcfile.open(store.uri(MRC)) as opened:
        assert opened.header.origin.tolist() == (10, 20, 30)


def test_what_is_no_number_is_left_out_of_statistics(store):
    """NaN is stored as it is; a volume of nothing else has no statistics, and its header says "not determined"."""
    array = np.array([np.nan, np.inf, 2, 4], "float32").reshape(1, 2, 2)
    assert write(store, array).statistics.mean == 3
    np.testing.assert_array_equal(levels(store)[0], array)
    assert write(store, np.full((1, 2, 2), np.nan, "float32"), identity="source 2").statistics is None
    with mrcfile.open(store.uri(MRC)) as opened:
        assert opened.header.dmax < opened.header.dmin and opened.header.rms == -1


def test_only_chunks_of_zeros_are_absent(store):
    """It is stated how many there are of each level; -0.0 is not absent, because it is not the fill value."""
    array = np.zeros((2, 2, 150), "float32")
    array[..., 75] = 7
    array[..., 140] = -0.0
    write(store, array)
    chunks = [path for path, _ in store.list(ZARR) if "/." not in path]
    assert [path.removeprefix(f"{ZARR}/") for path in chunks] == ["0/0/0/1", "0/0/0/2", "1/0/0/0", "2/0/0/0"]
    stated = json.loads(store.read(f"{ZARR}/.zattrs"))["em_assets"]["absent_chunks"]
    assert stated == {"by_level": [1, 1, 0], "meaning": "Every voxel of a chunk that is not there is 0."}
    np.testing.assert_array_equal(levels(store)[0].view("u4"), array.view("u4"))


@pytest.mark.parametrize("content", ["image", "labels", "tilt_series"])
@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_others_read_it(store, content, ngff):
    """ome-zarr-models accepts the group, and our own reader gives the voxels and their size."""
    from ome_zarr_models.v04 import Image as Image04
    from ome_zarr_models.v05 import Image as Image05

    array = noise((3, 6, 7), "uint8")
    write(store, array, content, ngff=ngff, voxel_size_nm=(0.5, 0.5, 0.4))
    model = {"0.4": Image04, "0.5": Image05}[ngff]
    model.from_zarr(zarr.open_group(store.uri(ZARR), mode="r"))
    reader = open_zarr(folder_url(Path(store.uri(ZARR))), None, FolderClient(), Settings(workers=1))
    np.testing.assert_array_equal(reader.read(), array)
    if content != "tilt_series":
        assert reader.info.voxel_size_nm == pytest.approx((0.5, 0.5, 0.4))


# -- beside what the portal's own writer made


def test_as_the_portal_where_that_is_right(store, payloads, portal_chunks):
    """Of the same int16 MRC: the portal's documents but for the dtype; but for odd ends also its voxels."""
    folder = payloads / "cryoet/ngff"
    source = open_mrc(LocalBytes(folder / "source_int16_9x37x41.mrc"), Settings(workers=1))
    write(store, None, reader=source, voxel_size_nm=source.info.voxel_size_nm)
    theirs = zarr.open_group(str(folder / "tomogram_9x37x41_v0.4.zarr"), mode="r")
    inner = (slice(4), slice(18), slice(20))
    for number, level in enumerate(levels(store)):
        there = tuple(slice(part.stop // 2 ** max(number - 1, 0)) for part in inner) if number else ...
        tolerance = 0.5 if number == 1 else 1.0  # of rounding to integers, once or twice
        np.testing.assert_allclose(level[there], theirs[str(number)][there], atol=tolerance if number else 0)
        ours_said = json.loads(store.read(f"{ZARR}/{number}/.zarray"))
        theirs_said = json.loads((folder / f"tomogram_9x37x41_v0.4.zarr/{number}/.zarray").read_text())
        assert {**ours_said, "dtype": None, "fill_value": None} == {**theirs_said, "dtype": None, "fill_value": None}
    said = json.loads((folder / "tomogram_9x37x41_v0.4.zarr/.zattrs").read_text())["multiscales"][0]
    assert said["axes"] == multiscale(store)["axes"]
    for mine, their in zip(multiscale(store)["datasets"], said["datasets"], strict=True):
        assert mine["path"] == their["path"]
        assert mine["coordinateTransformations"][0] == their["coordinateTransformations"][0]


def test_a_tilt_series_has_the_portals_chunks(store, payloads, portal_chunks):
    """Of one picture each; the rest of the array's document is the portal's, too."""
    write(store, noise((9, 37, 41), "float32"), "tilt_series")
    for number in range(3):
        said = (payloads / f"cryoet/ngff/tiltseries_v0.4.zarr/{number}/.zarray").read_text()
        assert json.loads(store.read(f"{ZARR}/{number}/.zarray")) == json.loads(said)


def test_instance_masks_are_the_portals(store, payloads):
    """Its levels of instance masks are right, and so ours are the same, with the same dtype for such labels."""
    theirs = zarr.open_group(str(payloads / "cryoet/ngff/instance_mask_v0.4.zarr"), mode="r")
    array = theirs["0"][:].astype("int64")
    write(store, array, "labels")
    for number, level in enumerate(levels(store)):
        np.testing.assert_array_equal(level, theirs[str(number)][:])


# -- again


def test_the_same_volume_is_not_written_again(store):
    """Nothing is read and no file touched; what comes back says the same as before."""
    array = noise((5, 6, 7), "float32")
    first = write(store, array)
    before = {path: Path(store.uri(path)).stat().st_mtime_ns for path in files(store)}
    again = write(store, array, reader=Unreadable)
    assert again == replace(first, is_new=False)
    assert {path: Path(store.uri(path)).stat().st_mtime_ns for path in files(store)} == before


def test_an_mrc_alone_is_found_again(store):
    """By the label in its header, and measured anew."""
    array = noise((5, 6, 7), "uint8")
    first = write(store, array, zarr_key=None)
    again = write(store, array, zarr_key=None, reader=Unreadable)
    assert again.statistics.mean == pytest.approx(first.statistics.mean)
    assert replace(again, statistics=first.statistics, is_new=True) == first
    assert write(store, array, zarr_key=None, identity="source 2").is_new


def zarr_file(name):
    return lambda store: store.delete(f"{ZARR}/{name}")


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(zarr_file("0/0/0/0"), id="chunk gone"),
        pytest.param(lambda store: store.write(f"{ZARR}/0/0/0/0", b"cut"), id="chunk cut"),
        pytest.param(lambda store: store.write(f"{ZARR}/0/0/0/9", b""), id="file too many"),
        pytest.param(zarr_file(".zattrs"), id="no last document"),
        pytest.param(lambda store: store.write(f"{ZARR}/.zattrs", b"{}"), id="nothing recorded"),
        pytest.param(lambda store: store.delete(MRC), id="MRC gone"),
        pytest.param(lambda store: store.write(MRC, bytes(store.size_bytes(MRC))), id="another MRC of the same size"),
    ],
)
def test_what_is_not_whole_is_written_again(store, harm):
    """And is then the same as before."""
    array = noise((3, 4, 5), "int16")
    write(store, array)
    before = files(store)
    harm(store)
    assert write(store, array).is_new
    assert files(store) == before


def flip(key):
    """Changes a byte in the middle of a file, but not its size."""

    def harm(store):
        data = bytearray(store.read(key))
        data[len(data) // 2] ^= 1
        store.write(key, bytes(data))

    return harm


def changed_record(store):
    document = json.loads(store.read(f"{ZARR}/.zattrs"))
    del document["em_assets"]["files"]["count"]
    store.write(f"{ZARR}/.zattrs", json.dumps(document, indent=4, ensure_ascii=False).encode() + b"\n")


@pytest.mark.parametrize(
    ("harm", "verify"),
    [
        pytest.param(flip(f"{ZARR}/1/0/0/0"), True, id="chunk"),
        pytest.param(flip(MRC), True, id="MRC"),
        pytest.param(flip(f"{ZARR}/.zattrs"), False, id="last document"),
        pytest.param(changed_record, False, id="record"),
    ],
)
def test_a_flipped_byte_is_found(store, harm, verify):
    """Though every size is right: in the voxels when they are verified, in what the group says always."""
    array = noise((3, 4, 5), "int16")
    write(store, array)
    before = files(store)
    assert not write(store, array, reader=Unreadable, verify=True).is_new
    harm(store)
    assert write(store, array, verify=verify).is_new
    assert files(store) == before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"identity": "source 2"}, id="source"),
        pytest.param({"voxel_size_nm": (1, 1, 1)}, id="voxel size"),
        pytest.param({"ngff": "0.5"}, id="version"),
        pytest.param({"content": "labels"}, id="content"),
        pytest.param({"labels_text": ["other"]}, id="label"),
        pytest.param({"mrc_key": None}, id="no MRC"),
    ],
)
def test_another_volume_replaces_it(store, change):
    """Nothing of the earlier group stays in its folder."""
    array = noise((3, 4, 5), "uint8")
    write(store, array)
    assert write(store, array, **change).is_new
    changed = files(store)
    fresh = LocalStore(Path(store.root).with_name("fresh"))
    write(fresh, array, **change)
    kept = {MRC} if "mrc_key" in change else set()
    assert {path: data for path, data in changed.items() if path not in kept} == files(fresh)


def test_without_identity_it_is_always_written(store):
    """Nobody knows then whether it is the same."""
    for _ in range(2):
        assert write(store, np.ones((2, 2, 2), "uint8"), identity=None).is_new


def test_workers_change_no_byte(tmp_path):
    """Equal arguments make equal files, whatever the number of threads and in whichever order they end."""
    array = noise((150, 130, 10), "int16")
    stores = [LocalStore(tmp_path / str(workers)) for workers in (1, 3)]
    for workers, store in zip((1, 3), stores, strict=True):
        write(store, array, workers=workers)
    assert files(stores[0]) == files(stores[1])


# -- interrupted


def test_a_source_that_fails_leaves_what_was_there(store):
    """Neither key changes before everything is whole, and nothing unfinished stays."""
    array = noise((300, 4, 5), "float32")
    write(store, array)
    before, names = files(store), everything_below(store)
    with pytest.raises(Unavailable, match="the source is gone"):
        write(store, array, reader=Broken(array, chunk=(150, 4, 5)), identity="source 2")
    assert files(store) == before and everything_below(store) == names


class FullDisk(LocalStore):
    """Takes some objects, then no more."""

    room = 2

    def write(self, path, data):
        self.room -= 1
        if self.room < 0:
            raise Unavailable(f"{path}: the disk is full")
        super().write(path, data)


def test_a_full_disk_leaves_nothing(tmp_path):
    """A group of which a chunk could not be written is not there, nor its MRC."""
    store = FullDisk(tmp_path)
    with pytest.raises(Unavailable, match="the disk is full"):
        write(store, noise((3, 4, 150), "float32"))
    assert not [name for name in everything_below(store) if name.startswith("RUN.")]


def test_after_a_kill_the_next_run_cleans_up(store):
    """SIGKILL while the source is read and while chunks are written: nothing under the final names, then all whole."""
    for where in ("read", "write"):
        script = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}]
import numpy as np
from em_assets.portal.volumes import write_volume
from em_assets.store import LocalStore
from em_assets.volume import VolumeInfo
def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
class Ones:
    info = VolumeInfo((3, 4, 5), "uint8", None, (3, 4, 5))
    def read(self, box=None):
        return killed() if {where!r} == "read" else np.ones(box.shape, "uint8")
LocalStore.write = killed
size, store = (1, 1, 1), LocalStore({store.root!r})
write_volume(Ones(), store, zarr_key={ZARR!r}, mrc_key={MRC!r}, voxel_size_nm=size, content="image")
"""
        done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
        assert done.returncode == -9, done.stderr
        assert not files(store)
        assert any(name.endswith(PARTIAL_SUFFIX) for name in everything_below(store))
    write(store, noise((3, 4, 5), "float32"))
    assert not [name for name in everything_below(store) if name.endswith(PARTIAL_SUFFIX)]
    np.testing.assert_array_equal(levels(store)[0], noise((3, 4, 5), "float32"))


# -- S3


def test_on_s3_as_in_a_folder(moto_s3, store, tmp_path, monkeypatch):
    """The same objects, the group's last document after all others; one that fails is no group, and can be repeated."""
    array = noise((5, 6, 7), "float32")
    write(store, array)
    s3, written = open_store(moto_s3), []
    original = type(s3).write
    monkeypatch.setattr(type(s3), "write", lambda self, path, data: written.append(path) or original(self, path, data))
    first = write(s3, array, scratch=tmp_path / "scratch")
    assert files(s3) == files(store)
    assert written[-1] == f"{ZARR}/.zattrs"
    assert write(s3, array, reader=Unreadable) == replace(first, is_new=False)

    def broken(self, path, data):
        if path.endswith(".zarray"):
            raise Unavailable("S3 is gone")
        original(self, path, data)

    monkeypatch.setattr(type(s3), "write", broken)
    with pytest.raises(Unavailable, match=rf"S3 is gone The volume that lay at {s3.uri(ZARR)} before is gone"):
        write(s3, array, identity="source 2", scratch=tmp_path / "scratch")
    assert s3.size_bytes(f"{ZARR}/.zattrs") is None
    monkeypatch.setattr(type(s3), "write", original)
    write(s3, array, scratch=tmp_path / "scratch")
    assert files(s3) == files(store)
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("size_angstrom", [0.545, 3.3702, 7.84, 13.48, 1.0833])
def test_sizes_come_back_as_they_were_given(size_angstrom):
    """From angstrom to nanometres and back, in decimal digits."""
    assert _levels.angstrom(_levels.nanometres(size_angstrom)) == size_angstrom


# -- reading


sides = st.tuples(*[st.integers(1, 5000)] * 3)


@settings(max_examples=60, deadline=None)
@given(shape=sides, chunk=sides, origin=st.tuples(*[st.integers(0, 50)] * 3), dtype=st.sampled_from(["u1", "f8"]))
def test_boxes_tile_the_volume(shape, chunk, origin, dtype):
    """Every voxel is in one box, none of which is much larger than what is read at once; chunks that fit stay whole."""
    info = VolumeInfo(shape, np.dtype(dtype).name, None, chunk, origin)
    size = np.dtype(dtype).itemsize
    if math.prod(shape) * size > 400 * READ_BYTES:
        return
    boxes = read_boxes(info)
    assert sum(box.voxels for box in boxes) == math.prod(shape)
    assert len({box.start for box in boxes}) == len(boxes)
    assert all(Box.from_shape(shape, at=origin).contains(box) for box in boxes)
    assert max(box.voxels for box in boxes) * size <= READ_BYTES
    clipped = [min(c, n) for c, n in zip(chunk, shape, strict=True)]
    if math.prod(clipped) * size <= READ_BYTES:
        for box in boxes:
            starts = zip(box.start, origin, clipped, strict=True)
            assert all((a - o) % c == 0 for a, o, c in starts)


def test_progress_counts_every_voxel_once(store):
    """`on_voxels` sums up to the volume."""
    counts = []
    write(store, np.ones((200, 300, 300), "int16"), on_voxels=counts.append)
    assert sum(counts) == 200 * 300 * 300 and len(counts) > 1


# -- memory


class Sparse:
    """4 GiB, of which a few planes are not 0; read without a file."""

    def __init__(self, shape, chunk, dtype):
        self.info = VolumeInfo(shape, dtype, None, chunk)

    def read(self, box=None):
        voxels = np.zeros(box.shape, self.info.dtype)
        voxels[:, :, ::97] = np.arange(box.start[0], box.stop[0])[:, None, None] + 2**33
        return voxels


@pytest.mark.slow  # 4 GiB each, up to two minutes
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is read from Linux's /proc")
@pytest.mark.parametrize(
    ("shape", "chunk", "dtype", "content"),
    [
        pytest.param((1024, 1024, 1024), (256, 256, 256), "float32", "image", id="cube"),
        pytest.param((512, 1024, 1024), (128, 128, 128), "uint64", "labels", id="labels"),
        pytest.param((64, 4096, 4096), (1, 4096, 4096), "float32", "image", id="flat, in pages"),
        pytest.param((41, 5120, 5120), (1, 5120, 5120), "float32", "tilt_series", id="tilt series"),
    ],
)
def test_memory_is_bounded(tmp_path, shape, chunk, dtype, content):
    """A source of 4 GiB, of any aspect, takes less than 1 GiB of anonymous memory, however many workers there are."""
    script = f"""
import sys, threading
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
from test_portal_volumes import *
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = max(peak, next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")))
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
write(LocalStore({str(tmp_path)!r}), None, {content!r}, reader=Sparse({shape}, {chunk}, {dtype!r}), workers=8)
done.set(); watcher.join()
print(peak)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(shape, int(done.stdout) / 2**20, "MiB")
    assert int(done.stdout) < 2**30
