"""A series of files as one volume: its order, row B14 of the bad inputs, and reading it lazily."""

import itertools
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.formats._bytes import LocalBytes
from em_assets.formats.opening import open_volume
from em_assets.formats.series import open_series, ordered_by_number
from em_assets.settings import Settings
from em_assets.volume import Box

tifffile = pytest.importorskip("tifffile")

SETTINGS = Settings(workers=2)


def slices(count: int, shape: tuple[int, ...] = (12, 15), dtype: str = "u2") -> np.ndarray:
    return np.random.default_rng(7).integers(0, 250, (count, *shape)).astype(dtype)


def write(folder: Path, volume: np.ndarray, names: str = "carotid_Z{:04d}.tif", first: int = 1, **options) -> list[str]:
    """One file per slice; returns the paths in an order that is not theirs."""
    paths = [folder / names.format(number) for number in range(first, first + len(volume))]
    for path, page in zip(paths, volume, strict=True):
        tifffile.imwrite(path, page, photometric="minisblack", **{"metadata": None, **options})
    return [str(path) for path in sorted(paths, key=lambda path: str(path)[::-1])]


def refusal(paths: list[str]) -> str:
    with pytest.raises(Malformed) as caught:
        open_series(paths, SETTINGS)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    "names", ["carotid_Z{:04d}.tif", "8x8x8nm.v2 {}.tif", "{}.tif"], ids=["padded", "bare", "only"]
)
def test_slices_are_put_in_the_order_of_their_numbers(tmp_path: Path, names: str):
    """10 comes after 9, whatever the shell thinks, and numbers that stay the same do not matter."""
    volume = slices(12)
    paths = write(tmp_path, volume, names, first=3)
    reader = open_series(paths, SETTINGS)
    assert reader.info.shape == (12, 12, 15)
    assert reader.info.dtype == "uint16"
    assert reader.info.voxel_size_nm is None
    np.testing.assert_array_equal(reader.read(), volume)
    np.testing.assert_array_equal(reader.read(Box((2, 3, 4), (9, 5, 15))), volume[2:9, 3:5, 4:])
    np.testing.assert_array_equal(open_volume(tmp_path / "*.tif").read(), volume)


def test_a_series_of_stacks(tmp_path: Path):
    """Files of several pages follow one another."""
    volume = slices(9)
    for number in range(3):
        tifffile.imwrite(tmp_path / f"part{number}.tif", volume[3 * number :][:3], photometric="minisblack")
    reader = open_volume(tmp_path / "part*.tif")
    assert reader.info.shape == (9, 12, 15)
    np.testing.assert_array_equal(reader.read(Box((2, 0, 0), (7, 12, 15))), volume[2:7])


def test_channels_and_voxel_size_come_from_the_files(tmp_path: Path):
    metadata = {"axes": "CYX", "PhysicalSizeX": 4, "PhysicalSizeY": 4, "PhysicalSizeZ": 30}
    metadata |= {f"PhysicalSize{axis}Unit": "nm" for axis in "XYZ"}
    volume = slices(4, (2, 12, 15))
    paths = write(tmp_path, volume, "s{}.ome.tif", metadata=metadata, ome=True)
    reader = open_series(paths, SETTINGS)
    assert reader.info.voxel_size_nm == (30, 4, 4)
    assert (reader.info.channels, reader.info.shape) == (2, (4, 12, 15))
    np.testing.assert_array_equal(reader.read(Box((1, 0, 5), (4, 12, 15))), volume[1:, :, :, 5:].swapaxes(0, 1))
    assert list(reader.map_regions([Box((0, 0, 0), (1, 1, 1))], lambda r: len(r.samples)))[0].value == 0  # noqa: RUF015
    tifffile.imwrite(paths[0], volume[0], photometric="minisblack", ome=True, metadata=metadata | {"PhysicalSizeX": 5})
    assert "its voxel size is (30.0, 4.0," in refusal(paths)


def test_a_series_of_one_file(tmp_path: Path):
    (path,) = write(tmp_path, slices(1))
    assert open_series([path], SETTINGS).info.shape == (1, 12, 15)
    with pytest.raises(Unavailable, match="no files"):
        open_series([], SETTINGS)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=1), st.integers(1, 30), st.randoms())
def test_any_run_of_numbers_is_ordered(first, count, chance):
    """Padded or not, from anywhere, in any order given."""
    names = [f"a{first[0] + k}_8nm.dm3" for k in range(count)]
    shuffled = list(names)
    chance.shuffle(shuffled)
    assert ordered_by_number(shuffled) == names


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["s1.tif", "s2.tif", "s4.tif", "s9.tif"], "4 files, but 5 numbers between them are missing: 3, 5 to 8"),
        (["s1.tif", "s01.tif"], "s01.tif and s1.tif have the same number, 1"),
        (["a/s1.tif", "b/s1.tif"], "s1.tif is there 2 times"),
        (
            ["s1_t1.tif", "s1_t2.tif", "s2_t1.tif"],
            "2 numbers vary in the names of the series (1, 2; 1, 2; for instance",
        ),
        (["s1.tif", "slice2.tif"], "s1.tif and slice2.tif are not named alike"),
        (["s1.tif", "s.tif"], "are not named alike"),
        (["s1.tif", *(f"s{k}.tif" for k in range(3, 40, 2))], "missing: 2, 4, 6, 8, 10, ...;"),
    ],
    ids=["B14 missing", "B14 duplicate", "B14 same name", "two numbers", "two names", "no number", "B14 every second"],
)
def test_b14_names_that_leave_the_order_open(names, words):
    with pytest.raises(Malformed) as caught:
        ordered_by_number(names)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (slices(1, (12, 14))[0], "its shape (z, y, x) is (1, 12, 14), that of s1.tif is (1, 12, 15)"),
        (slices(2), "its shape (z, y, x) is (2, 12, 15)"),
        (slices(1, dtype="u1")[0], "its dtype is uint8, that of s1.tif is uint16"),
    ],
    ids=["B14 another size", "B14 two pages", "B14 another type"],
)
def test_b14_slices_that_differ(tmp_path: Path, odd, words):
    paths = write(tmp_path, slices(5), "s{}.tif")
    tifffile.imwrite(tmp_path / "s4.tif", odd, photometric="minisblack", metadata=None)
    sentence = refusal(paths)
    assert "s4.tif differs in the series" in sentence
    assert words in sentence


def test_a_damaged_slice_is_named(tmp_path: Path):
    paths = write(tmp_path, slices(5), "s{}.tif")
    (tmp_path / "s3.tif").write_bytes((tmp_path / "s3.tif").read_bytes()[:-9])
    assert "s3.tif, page 0: strip 0 needs 360 bytes" in refusal(paths)


def fei_slice(path: Path, page: np.ndarray, taken: str) -> None:
    """A slice with FEI's XML, of which only the time is written."""
    text = f"<Metadata><Acquisition><AcquisitionDatetime>{taken}</AcquisitionDatetime></Acquisition></Metadata>"
    tifffile.imwrite(path, page, metadata=None, extratags=[(34683, 2, 0, text, True)])


@pytest.mark.parametrize(
    ("minutes", "words"),
    [
        ([1, 2, 3, 4], None),
        ([4, 3, 2, 1], None),
        ([1, 2, 2, 3], None),
        ([7, 7, 7, 7], None),
        ([1, 3, 2, 4], "s2.tif and s3.tif are in the order of their numbers, but their acquisition time"),
        ([4, 2, 3, 1], "s2.tif and s3.tif"),
    ],
    ids=["up", "down", "pause", "all the same", "swapped", "swapped down"],
)
def test_the_order_is_held_against_the_time_of_acquisition(tmp_path: Path, minutes, words):
    """Numbers that go one way while the clock goes another are not believed."""
    volume = slices(4)
    paths = [tmp_path / f"s{k}.tif" for k in range(1, 5)]
    for path, page, minute in zip(paths, volume, minutes, strict=True):
        fei_slice(path, page, f"2024-05-01T12:0{minute}:16")
    if words is None:
        np.testing.assert_array_equal(open_series([str(path) for path in paths], SETTINGS).read(), volume)
    else:
        assert words in refusal([str(path) for path in paths])


def dm3(page: np.ndarray, stage_z: float) -> bytes:
    """The least of a DM3: one uint16 image, no thumbnail, with the stage's z in micrometres."""

    def label(kind: int, name: str, body: bytes) -> bytes:
        return bytes([kind]) + struct.pack(">H", len(name)) + name.encode("latin-1") + body

    def value(name: str, kind: int, data: bytes) -> bytes:
        return label(21, name, b"%%%%" + struct.pack(">II", 1, kind) + data)

    def group(name: str, *items: bytes) -> bytes:
        return label(20, name, struct.pack(">BBI", 1, 0, len(items)) + b"".join(items))

    data = page.astype("<u2").tobytes()
    array = label(21, "Data", b"%%%%" + struct.pack(">IIII", 3, 20, 4, page.size) + data)
    sizes = group("Dimensions", *(value("", 5, struct.pack("<I", n)) for n in page.shape[::-1]))
    kind = value("DataType", 5, struct.pack("<I", 10))
    depth = value("PixelDepth", 5, struct.pack("<I", 2))
    stage = group("Microscope Info", group("Stage Position", value("Stage Z", 7, struct.pack("<d", stage_z))))
    image = group("", group("ImageData", array, kind, sizes, depth), group("ImageTags", stage))
    root = struct.pack(">BBI", 1, 0, 1) + group("ImageList", image)
    return struct.pack(">III", 3, len(root), 1) + root + bytes(8)


def test_dm_slices_and_their_stage(tmp_path: Path):
    """DM files make a series as TIFFs do; a stage that moves the other way in between contradicts the names."""
    pytest.importorskip("em_assets.formats.dm")
    volume = slices(4)
    for k, z in enumerate((21.05, 21.10, 21.15, 21.20)):
        (tmp_path / f"slice_{k:04d}.dm3").write_bytes(dm3(volume[k], z))
    paths = [str(tmp_path / f"slice_{k:04d}.dm3") for k in range(4)]
    np.testing.assert_array_equal(open_series(paths, SETTINGS).read(), volume)
    (tmp_path / "slice_0002.dm3").write_bytes(dm3(volume[2], 21.01))
    assert "slice_0001.dm3 and slice_0002.dm3 are in the order of their numbers, but their stage z" in refusal(paths)


def test_real_slices(realdata: Path):
    """Five files of a multi-file OME-TIFF, each a slice."""
    paths = sorted(str(path) for path in (realdata / "tiff/viv_multifile").glob("*.tiff"))
    expected = np.stack([tifffile.imread(path, key=0, is_ome=False) for path in paths])
    np.testing.assert_array_equal(open_series(paths, SETTINGS).read(), expected)


def test_tags_are_those_of_the_first_file_and_what_differs(tmp_path: Path):
    paths = write(tmp_path, slices(3), "s{}.tif", software=False, datetime="2020:01:01 00:00:00")
    tifffile.imwrite(tmp_path / "s2.tif", slices(3)[1], metadata=None, software=False, datetime="2020:01:01 00:00:01")
    tags = dict(open_series(paths, SETTINGS).tags())
    assert tags["/s1.tif/0/ImageWidth"] == 15
    assert {path: value for path, value in tags.items() if not path.startswith("/s1.tif/")} == {
        "/s2.tif/0/DateTime": "2020:01:01 00:00:01"
    }


def test_regions_come_with_samples_and_as_planned(tmp_path: Path):
    volume = slices(7)
    reader = open_series(write(tmp_path, volume), SETTINGS)
    boxes = [Box((z, 0, x), (min(z + 3, 7), 12, min(x + 8, 15))) for z, x in itertools.product((0, 3, 6), (0, 8))]
    counted: list[int] = []
    outcomes = list(reader.map_regions(boxes, lambda region: region, on_bytes=counted.append))
    assert {outcome.box for outcome in outcomes} == set(boxes)
    for outcome in outcomes:
        np.testing.assert_array_equal(outcome.value.voxels, volume[outcome.box.slices])
        assert all(sample.value == volume[sample.position] for sample in outcome.value.samples)
        assert outcome.value.samples
    plan = reader.plan(boxes)
    assert (plan.requests, plan.received_bytes, plan.missing_chunks) == (0, sum(counted), 0)


def test_compressed_slices_have_no_samples(tmp_path: Path):
    """There is no second way to their voxels, so none is claimed."""
    volume = slices(3)
    reader = open_series(write(tmp_path, volume, compression="zlib"), SETTINGS)
    (outcome,) = reader.map_regions([Box((0, 0, 0), (3, 12, 15))], lambda region: region)
    np.testing.assert_array_equal(outcome.value.voxels, volume)
    assert outcome.value.samples == ()


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch):
    """However long the series, no more files than the system can spare are open at once."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (40, 40))
    volume = slices(60, (3, 4))
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        pytest.skip("the system does not say how many files are open")
    before = len(list(handles.iterdir()))
    reader = open_series(write(tmp_path, volume), SETTINGS)
    np.testing.assert_array_equal(reader.read(), volume)
    np.testing.assert_array_equal(reader.read(), volume)
    assert len(list(handles.iterdir())) <= before + 10


def test_a_slice_that_changes_meanwhile_is_noticed(tmp_path: Path):
    paths = write(tmp_path, slices(3), "s{}.tif")
    reader = open_series(paths, SETTINGS)
    tifffile.imwrite(tmp_path / "s2.tif", slices(3)[1] + 1, metadata=None)
    os.utime(tmp_path / "s2.tif", ns=(1, 1))
    with pytest.raises(Mismatch, match=r"s2\.tif changed while its series was read"):
        reader.read()


def test_slices_may_lie_elsewhere(tmp_path: Path):
    """Whoever keeps the files says how to get at their bytes."""
    volume = slices(3)
    write(tmp_path, volume, "s{}.tif")
    reader = open_series(
        [f"kept/s{k}.tif" for k in (3, 1, 2)], SETTINGS, bytes_of=lambda p: LocalBytes(tmp_path / p[5:])
    )
    np.testing.assert_array_equal(reader.read(), volume)
