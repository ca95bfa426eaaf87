"""Publishers of files: which there are and where, the volumes they hold in any order of axes, and comparing two."""

import gc
import hashlib
import itertools
import weakref

import h5py
import numpy as np
import pytest
import tifffile
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from em_assets.datasets.source import VolumeFiles
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.formats._bytes import LocalBytes
from em_assets.formats.opening import open_file
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.sources.crop import find_crop
from em_assets.sources.expected import require_expected
from em_assets.sources.files import (
    claims_of_files,
    mirror_urls,
    open_further,
    open_main,
    open_volume_files,
    remote_files,
)
from em_assets.sources.transposed import as_zyx
from em_assets.sources.voxels import compare_same_volume, pixels_sha256
from em_assets.volume import Box, VolumeInfo
from memory_reader import MemoryReader

QUICK = Settings(workers=2)
AXES = ["".join(order) for order in itertools.permutations("zyx")]


class ChannelReader(MemoryReader):
    """As `MemoryReader`, with `read` and tags."""

    def read(self, box=None):
        box = box or Box.from_shape(self.array.shape, at=self.origin)
        return self.array[box.shifted(tuple(-o for o in self.origin)).slices].copy()

    def tags(self):
        yield "/kind", "memory"


def spec_of(name="idr_9846137", **changes):
    values = yaml.safe_load((PACKAGED_DATASETS / f"{name}.yaml").read_text())
    return DatasetSpec.model_validate({**values, **changes})


def volume(shape=(11, 13, 17), dtype="uint8", seed=1):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def small_spec(files, shape, *, dtype="uint8", volumes=None, **source):
    """A spec of TIFF files in one folder."""
    values = yaml.safe_load((PACKAGED_DATASETS / "idr_9846137.yaml").read_text())
    listed = [{"path": path} if isinstance(path, str) else path for path in files]
    values["source"] = {"kind": "files", "url": "https://host/a%20b", "files": listed, **source}
    values["source"].setdefault("volume", {"files": [listed[0]["path"]]})
    values["expected"] = {"source_shape": list(shape), "dtype": dtype, "voxel_size_nm": [20.0, 20.0, 20.0]}
    values["volumes"] = volumes or {}
    return DatasetSpec.model_validate(values)


def write_tiff(file, array, **keys):
    tifffile.imwrite(
        file,
        array,
        imagej=True,
        byteorder=">",
        resolution=(50, 50),
        metadata={"unit": "um", "spacing": 0.02, "axes": "ZYX", **keys},
    )


def bytes_in(folder):
    return lambda path: LocalBytes(folder / path)


# -- which files there are


def test_the_packaged_specs_name_every_file_once():
    """Ranges are expanded, spaces stay encoded, checksums are the spec's, `/` is no part of a key."""
    files = remote_files(spec_of("empiar_11759"))
    assert len(files) == 17
    assert sum(file.size_bytes for file in files.values()) == 10 * 30396050 + 6 * 30836882 + 3909
    (big, *_), base = remote_files(spec_of("epfl_hippocampus")).values(), "https://documents.epfl.ch/groups/c/cv"
    assert big.url == f"{base}/cvlab-unit/www/data/%20ElectronMicroscopy_Hippocampus/volumedata.tif"
    assert (big.size_bytes, big.checksum) == (3353674357, "md5:14fc2fb6a5061ea4ea9b69a090c327c9")
    nested = small_spec(["sub folder/a.tif"], (1, 2, 3))
    assert {key: file.url for key, file in remote_files(nested).items()} == {
        "sub folder__a.tif": "https://host/a%20b/sub%20folder/a.tif"
    }


def test_mirrors_come_in_order():
    spec = spec_of("idr_9846137")
    path = "Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xy.tif"
    (mirror,) = mirror_urls(spec, path)
    assert mirror == remote_files(spec)[path].url.replace("https://", "ftp://", 1)
    assert mirror_urls(spec_of("epfl_hippocampus"), "volumedata.tif") == []


PATHS = {
    "up": "../../etc/x",
    "absolute": "/etc/x",
    "backslash": "a\\b",
    "newline": "a\nb",
    "delete": "a\x7fb",
    "300 bytes": "x" * 300,
    "dot": "./a.tif",
    "twice slash": "a//b.tif",
    "decomposed": "u\u0308.tif",
    "empty": "",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=[f"B34 {name}" for name in PATHS])
def test_paths_that_leave_their_folder_are_no_paths(path):
    """B34: refused when the spec is read, so that nothing further in has to wonder."""
    with pytest.raises(ValidationError):
        small_spec([path], (1, 2, 3))


@pytest.mark.parametrize("twins", [("a.tif", "A.tif"), ("a.tif", "a.tif")], ids=["B34 case twins", "B34 twice"])
def test_twins_are_refused(twins):
    with pytest.raises(ValidationError, match="listed twice"):
        small_spec(twins, (1, 2, 3))


@pytest.mark.parametrize("path", ["-rf", "CON", "a b+c%2F#?.tif"], ids=["B34 -rf", "B34 CON", "B34 signs"])
def test_odd_names_stay_inside_their_address(path):
    """B34, B35: what a name holds is encoded: it can add neither folder, query nor host."""
    (file,) = remote_files(small_spec([path], (1, 2, 3))).values()
    folder, _, name = file.url.rpartition("/")
    assert folder == "https://host/a%20b"
    assert not set(name) & set("#? +") and file.path == path


@pytest.mark.parametrize(
    "url",
    [
        "//evil/x",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://user:secret@host/x",
        "https:///x",
        "ftp://host/x",
    ],
    ids=lambda url: f"B35 {url}",
)
def test_addresses_that_are_not_the_webs_are_refused(url):
    """B35: files come over http and https; only mirrors may be ftp."""
    with pytest.raises(ValidationError):
        small_spec(["a.tif"], (1, 2, 3), url=url)


# -- the volumes they hold


def test_main_and_further_volumes_are_opened_and_compared(tmp_path):
    """A spec's files, by path; what each volume must be is the spec's word."""
    main, part = volume(), volume((3, 4, 5), seed=2)
    write_tiff(tmp_path / "main.tif", main)
    write_tiff(tmp_path / "part.tif", part)
    further = {
        "part": {
            "source": {"files": ["part.tif"]},
            "shape": [3, 4, 5],
            "dtype": "uint8",
            "voxel_size_nm": [20.0, 20.0, 20.0],
        }
    }
    spec = small_spec(["main.tif", "part.tif"], main.shape, volumes=further)
    assert np.array_equal(open_main(spec, bytes_in(tmp_path), QUICK).read(), main)
    assert np.array_equal(open_further(spec, "part", bytes_in(tmp_path), QUICK).read(), part)
    further["part"]["shape"] = [3, 5, 4]
    wrong = small_spec(["main.tif", "part.tif"], (11, 13, 18), volumes=further)
    with pytest.raises(Mismatch, match=r"main.tif: the publisher's shape is \(11, 13, 17\).*\(11, 13, 18\)"):
        open_main(wrong, bytes_in(tmp_path), QUICK)
    with pytest.raises(Mismatch, match=r"part.tif \(volume part\): the publisher's shape is \(3, 4, 5\)"):
        open_further(wrong, "part", bytes_in(tmp_path), QUICK)


def test_a_file_of_another_size_is_not_opened(tmp_path):
    write_tiff(tmp_path / "main.tif", volume())
    size = (tmp_path / "main.tif").stat().st_size
    spec = small_spec([{"path": "main.tif", "size_bytes": size + 1}], (11, 13, 17))
    with pytest.raises(Mismatch, match=f"main.tif has {size} bytes, the spec expects {size + 1}"):
        open_main(spec, bytes_in(tmp_path), QUICK)


def test_a_series_of_files_is_one_volume(tmp_path):
    """Slices in the order of their numbers."""
    whole = volume((4, 13, 17))
    (tmp_path / "deep").mkdir()
    for z, plane in enumerate(whole):
        write_tiff(tmp_path / f"deep/slice_{z + 8}.tif", plane[None])
    spec = small_spec(["deep/slice_{8..11}.tif"], whole.shape)
    reader = open_main(spec, bytes_in(tmp_path), QUICK)
    assert np.array_equal(reader.read(), whole)


def slices(folder, count=12):
    """(voxels, spec) of a series of TIFFs, numbered without leading zeros; the second says something of its own."""
    whole = volume((count, 13, 17))
    (folder / "deep").mkdir()
    for z, plane in enumerate(whole):
        write_tiff(folder / f"deep/slice_{z + 1}.tif", plane[None], **({"min": 7.5} if z == 1 else {}))
    return whole, small_spec([f"deep/slice_{{1..{count}}}.tif"], whole.shape)


def test_every_file_of_a_series_says_all_that_it_says(tmp_path):
    """Each with its own address, in the order of their numbers, and how many pages it has."""
    _, spec = slices(tmp_path)
    claims = list(claims_of_files(spec, bytes_in(tmp_path), QUICK))
    assert {claim.extractor for claim in claims} == {"tiff"}
    for key, value in {"/0/ImageWidth": 17, "/pages": 1}.items():
        found = [(c.value, c.document, c.url) for c in claims if c.key == key]
        names = [f"deep/slice_{number}.tif" for number in range(1, 13)]
        assert found == [(value, f"original/{name}", f"https://host/a%20b/{name}") for name in names]
    said = [c.document for c in claims if c.key == "/0/ImageDescription/min" and c.value == "7.5"]
    assert said == ["original/deep/slice_2.tif"]


def test_only_the_files_that_are_here_are_read(tmp_path):
    """Half a download is described as far as it goes; what is absent is not opened."""
    _, spec = slices(tmp_path)
    (tmp_path / "deep/slice_12.tif").unlink()
    here = {"deep/slice_2.tif", "deep/slice_10.tif"}
    claims = claims_of_files(spec, bytes_in(tmp_path), QUICK, here)
    assert list(dict.fromkeys(claim.document for claim in claims)) == [
        "original/deep/slice_2.tif",
        "original/deep/slice_10.tif",
    ]


@pytest.mark.slow
def test_one_file_is_open_at_a_time(tmp_path):
    """Claims come while files are read, and a file is let go before the next: a thousand need no more memory."""
    _, spec = slices(tmp_path)
    opened = []

    def bytes_of(path):
        opened.append(weakref.ref(source := LocalBytes(tmp_path / path)))
        return source

    for claim in claims_of_files(spec, bytes_of, QUICK):
        assert claim.document == f"original/deep/slice_{len(opened)}.tif"
        if claim.key == "/0/ImageWidth":
            gc.collect()
            assert sum(source() is not None for source in opened) == 1


def test_pages_that_say_the_same_say_it_once(tmp_path):
    """Of a stack: every tag of the first page, of later ones what differs; and the number of pages."""
    stack = volume((5, 13, 17))
    with tifffile.TiffWriter(tmp_path / "stack.tif") as writer:
        for number, plane in enumerate(stack):
            writer.write(plane, contiguous=False, metadata=None, software="one" if number < 4 else "another")
    spec = small_spec(["stack.tif"], stack.shape)
    claims = list(claims_of_files(spec, bytes_in(tmp_path), QUICK))
    found = {claim.key: claim.value for claim in claims}
    assert found["/pages"] == 5 and claims[0].key == "/pages"
    assert [key for key in found if key.endswith("/ImageWidth")] == ["/0/ImageWidth"]
    assert {key: value for key, value in found.items() if key.endswith("/Software")} == {
        "/0/Software": "one",
        "/4/Software": "another",
    }


def test_two_arrays_of_one_file_are_one_document(tmp_path):
    """What the groups say that both lie in is there once; what each says is there under its own path."""
    with h5py.File(tmp_path / "both.h5", "w") as file:
        group = file.create_group("volumes")
        group.attrs["instrument"] = "FIB-SEM"
        for name, unit in {"raw": "nm", "labels": "µm"}.items():
            group.create_dataset(name, data=volume((3, 4, 5))).attrs["unit"] = unit
    labels = {
        "source": {"files": ["both.h5"], "dataset": "volumes/labels"},
        "content": "labels",
        "shape": [3, 4, 5],
        "dtype": "uint8",
        "voxel_size_nm": [20.0] * 3,
    }
    main = {"files": ["both.h5"], "dataset": "volumes/raw"}
    spec = small_spec(["both.h5"], (3, 4, 5), volume=main, volumes={"labels": labels})
    claims = list(claims_of_files(spec, bytes_in(tmp_path), QUICK))
    assert {(claim.document, claim.extractor) for claim in claims} == {("original/both.h5", "hdf5")}
    assert [(claim.key, claim.value) for claim in claims] == [
        ("/volumes@instrument", "FIB-SEM"),
        ("/volumes/raw@unit", "nm"),
        ("/volumes/labels@unit", "µm"),
    ]


def test_a_file_of_another_size_states_nothing(tmp_path):
    write_tiff(tmp_path / "main.tif", volume())
    spec = small_spec([{"path": "main.tif", "size_bytes": 10}], (11, 13, 17))
    with pytest.raises(Mismatch, match="the spec expects 10"):
        list(claims_of_files(spec, bytes_in(tmp_path), QUICK))


@pytest.mark.parametrize("axes", AXES)
def test_a_file_cut_another_way_is_the_same_volume(tmp_path, axes):
    """`axes` is what the file's own first, second and third axis are."""
    whole = volume()
    in_file = whole.transpose(["zyx".index(name) for name in axes])
    write_tiff(tmp_path / "main.tif", whole)
    write_tiff(tmp_path / "other.tif", np.ascontiguousarray(in_file))
    other = {"files": ["other.tif"], "axes": axes}
    spec = small_spec(["main.tif", "other.tif"], whole.shape, same_volume=[other])
    reader = open_volume_files(spec, VolumeFiles.model_validate(other), bytes_in(tmp_path), QUICK)
    assert reader.info.shape == whole.shape
    assert np.array_equal(reader.read(), whole)
    main = open_main(spec, bytes_in(tmp_path), QUICK)
    assert compare_same_volume(main, reader, part_bytes=500) == (whole.size, 0, None)
    documents = {claim.document for claim in claims_of_files(spec, bytes_in(tmp_path), QUICK)}
    assert documents == {"original/main.tif", "original/other.tif"}


@settings(max_examples=60, deadline=None)
@given(
    axes=st.sampled_from(AXES),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    origin=st.tuples(*[st.integers(0, 5)] * 3),
    data=st.data(),
)
def test_a_transposed_reader_is_a_transposed_array(axes, shape, origin, data):
    """Any box of any order of axes: voxels, missing parts, samples and outcomes as of `numpy.transpose`."""
    in_file = volume(shape, "int16", seed=sum(shape))
    hole = Box.from_shape((1, 1, 1), at=origin)
    reader = as_zyx(ChannelReader(in_file, origin=origin, holes=[hole]), axes)
    order = [axes.index(name) for name in "zyx"]
    expected, first = in_file.transpose(order), tuple(origin[axis] for axis in order)
    assert (reader.info.shape, reader.info.origin) == (expected.shape, first)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in expected.shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, expected.shape, strict=True))
    box = Box(start, stop).shifted(first)
    voxels = reader.read(box)
    assert voxels.flags.c_contiguous and np.array_equal(voxels, expected[Box(start, stop).slices])
    (outcome,) = reader.map_regions([box], lambda region: region)
    region = outcome.value
    assert (outcome.box, region.box) == (box, box)
    blank = expected.copy()
    blank[0, 0, 0] = 0
    assert np.array_equal(region.voxels, blank[Box(start, stop).slices])
    assert region.missing == ((Box.from_shape((1, 1, 1), at=first),) if start == (0, 0, 0) else ())
    for sample in region.samples:
        place = tuple(a - b for a, b in zip(sample.position, first, strict=True))
        assert sample.value == expected[place]
    assert reader.plan([box]).chunks == 1
    assert list(reader.tags()) == [("/kind", "memory")]


def test_sizes_and_places_turn_with_the_axes():
    """Voxel size, chunk, corner follow their axis; what is not stated stays so; channels stay in front."""

    class Anisotropic(ChannelReader):
        size_nm = (1.0, 2.0, 3.0)

        @property
        def info(self):
            return VolumeInfo((4, 5, 6), "uint8", self.size_nm, (1, 5, 6), (7, 8, 9), (0.1, 0.2, 0.3), channels=2)

        def read(self, box=None):
            return self.array

    reader = as_zyx(Anisotropic(np.zeros((2, 4, 5, 6), np.uint8)), "yxz")
    info = reader.info
    assert (info.shape, info.voxel_size_nm, info.chunk) == ((6, 4, 5), (3.0, 1.0, 2.0), (6, 1, 5))
    assert (info.origin, info.corner_nm) == ((9, 7, 8), (0.3, 0.1, 0.2))
    assert reader.read().shape == (2, 6, 4, 5)
    Anisotropic.size_nm = None
    assert as_zyx(Anisotropic(np.zeros((2, 4, 5, 6))), "yxz").info.voxel_size_nm is None


# -- comparing and hashing


@pytest.mark.parametrize("part_bytes", [1, 300, 5000, 10**9], ids=lambda n: f"{n} bytes at a time")
@pytest.mark.parametrize("places", [[(0, 0, 0)], [(10, 12, 16)], [(7, 3, 2), (2, 11, 5)]], ids=str)
def test_one_changed_voxel_is_found_and_named(part_bytes, places):
    """Every voxel is compared once; the first difference is the first of the volume, not of a part."""
    whole = volume()
    changed = whole.copy()
    for place in places:
        changed[place] ^= 1
    other = as_zyx(ChannelReader(changed.transpose(1, 2, 0), origin=(0, 0, 0)), "yxz")
    found = compare_same_volume(ChannelReader(whole), other, part_bytes=part_bytes)
    assert found == (whole.size, len(places), min(places))
    assert found.first_difference == min(places)


def test_nan_is_nan():
    a, b = np.zeros((2, 2, 2), np.float32), np.zeros((2, 2, 2), np.float32)
    a[0, 0, 0] = b[0, 0, 0] = np.nan
    b[1, 0, 1] = np.nan
    assert compare_same_volume(ChannelReader(a), ChannelReader(b)) == (8, 1, (1, 0, 1))


@pytest.mark.parametrize("other", [volume((11, 17, 13)), volume(dtype="int16")], ids=["shape", "dtype"])
def test_volumes_of_another_kind_are_not_compared(other):
    with pytest.raises(Mismatch, match="correct same_volume and its axes"):
        compare_same_volume(ChannelReader(volume()), ChannelReader(other))


@pytest.mark.parametrize("part_bytes", [1, 100, 1000, 10**9], ids=lambda n: f"{n} bytes at a time")
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_the_sum_of_voxels_is_that_of_the_array(tmp_path, byteorder, part_bytes):
    """Little endian whatever the file's byte order, and however it is gone through."""
    array = volume(dtype="uint16") * 300
    tifffile.imwrite(tmp_path / "a.tif", array, byteorder=byteorder, rowsperstrip=4)
    found = pixels_sha256(LocalBytes(tmp_path / "a.tif"), QUICK, part_bytes=part_bytes)
    assert found == hashlib.sha256(array.astype("<u2").tobytes()).hexdigest()


def test_the_published_sums_are_of_the_decoded_voxels(realdata):
    """A real DM3 slice: the sum of its voxels is that of the array its reader gives."""
    files = sorted((realdata / "dm").rglob("*.dm3"))
    if not files:
        pytest.skip("no DM3 file among the real files")
    read = []
    for file in files:
        try:
            array = open_file(LocalBytes(file), None, QUICK).read()
        except (Unsupported, Malformed):
            continue
        if array.ndim == 3:
            digest = hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()
            assert pixels_sha256(LocalBytes(file), QUICK) == digest
            read.append(file)
    assert read


# -- what is expected, and where the crop lies


INFO = VolumeInfo((4, 5, 6), "uint8", (50.0, 7.998250424861908, 7.998250424861908), (1, 5, 6))


@pytest.mark.parametrize(
    ("expected", "error", "words"),
    [
        (([(4, 5, 7), (4, 6, 6)], "uint8", INFO.voxel_size_nm), Mismatch, r"shape is \(4, 5, 6\).*7\) or \(4, 6, 6\)"),
        (([(4, 5, 6)], "int8", INFO.voxel_size_nm), Mismatch, "dtype is uint8, the spec expects int8"),
        (([(4, 5, 6)], "uint8", (50.0, 8.0, 8.0)), Mismatch, "7.998250424861908.*expects .50.0, 8.0, 8.0"),
        (([(4, 5, 6)], "uint8", (50.0, 7.9982504, 7.9982504)), Mismatch, "voxel size"),
    ],
    ids=["shape", "dtype", "voxel size", "voxel size, nearly"],
)
def test_another_volume_than_expected_is_named(expected, error, words):
    with pytest.raises(error, match=words):
        require_expected("name, file", INFO, *expected)


def test_what_is_as_expected_passes():
    """Noise in the last digits is the same size; what states no size contradicts none; one channel is a volume."""
    require_expected("x", INFO, [(1, 1, 1), (4, 5, 6)], "uint8", (50.00000000001, 7.998250424861908, 7.99825042486))
    silent = VolumeInfo((4, 5, 6), "uint8", None, (1, 5, 6), channels=1)
    require_expected("x", silent, [(4, 5, 6)], "uint8", (5.0, 5.0, 5.0))


def test_several_channels_are_unsupported():
    info = VolumeInfo((4, 5, 6), "uint8", None, (1, 5, 6), channels=3)
    with pytest.raises(Unsupported, match="x has 3 channels"):
        require_expected("x", info, [(4, 5, 6)], "uint8", (5.0, 5.0, 5.0))


def test_without_a_crop_the_whole_volume_is_taken():
    reader = ChannelReader(volume(), origin=(3, 4, 5))
    spec = small_spec(["a.tif"], (11, 13, 17))
    assert find_crop(spec, reader) == (Box.from_shape((11, 13, 17), at=(3, 4, 5)), {"origin": "whole"})


def test_a_corner_in_nanometres_uses_the_specs_size_where_the_file_states_none():
    """20 nm voxels by the spec: 61 nm lie in voxel 3."""

    class Silent(ChannelReader):
        @property
        def info(self):
            return VolumeInfo(self.array.shape, "uint8", None, (1, 13, 17))

    values = small_spec(["a.tif"], (11, 13, 17)).model_dump()
    values["crop"] = {"shape": [2, 2, 2], "origin_nm": [61.0, 0.0, 40.0], "snap": False}
    box, how = find_crop(DatasetSpec.model_validate(values), Silent(volume()))
    assert (box.start, how["origin"]) == ((3, 0, 2), "given")
