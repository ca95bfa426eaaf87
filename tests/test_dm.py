"""Gatan DM3 and DM4: real files, and files that a small writer of this module makes from a tree of tags."""

import contextlib
import hashlib
import itertools
import json
import re
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unsupported
from em_assets.fetch.http import HttpClient
from em_assets.formats import _dm_tags, open_volume
from em_assets.formats._bytes import BLOCK_BYTES, LocalBytes, RemoteBytes
from em_assets.formats._dm_tags import read_tags
from em_assets.formats.dm import open_dm
from em_assets.settings import Settings
from em_assets.volume import Box
from faulty import FaultyServer
from small import quick_settings

CODES = {
    "int16": 2,
    "int32": 3,
    "uint16": 4,
    "uint32": 5,
    "float32": 6,
    "float64": 7,
    "bool": 8,
    "int8": 9,
    "uint8": 10,
    "int64": 11,
    "uint64": 12,
}
DATA_TYPES = {
    "int16": 1,
    "float32": 2,
    "uint8": 6,
    "int32": 7,
    "int8": 9,
    "uint16": 10,
    "uint32": 11,
    "float64": 12,
    "int64": 39,
    "uint64": 40,
}


class DmWriter:
    """A dict is a group, a list a group without names, a tuple a struct, an array an array, a str a uint16 array."""

    def __init__(self, version=3, order="<"):
        self.version, self.order = version, order

    def file(self, tree, *, size_error=0, end=bytes(8)):
        body = self.group(tree) + end
        word = ">i" if self.version == 3 else ">q"
        header = struct.pack(">i", self.version)
        size = len(body) + (12 if self.version == 3 else 16) - (16 if self.version == 3 else 24) + size_error
        return header + struct.pack(word, size) + struct.pack(">i", int(self.order == "<")) + body

    def word(self, number):
        return struct.pack(">I" if self.version == 3 else ">Q", number)

    def group(self, tree, count=None):
        entries = list(tree.items()) if isinstance(tree, dict) else [("", node) for node in tree]
        packed = b"".join(self.entry(name, node) for name, node in entries)
        return b"\1\0" + self.word(len(entries) if count is None else count) + packed

    def entry(self, name, node):
        raw = name if isinstance(name, bytes) else name.encode()
        body = self.group(node) if isinstance(node, dict | list) else self.value(node)
        head = struct.pack(">BH", 20 if isinstance(node, dict | list) else 21, len(raw)) + raw
        return head + (struct.pack(">Q", len(body)) if self.version == 4 else b"") + body

    def value(self, node):
        numbers, data = self.typed(node)
        return b"%%%%" + self.word(len(numbers)) + b"".join(map(self.word, numbers)) + data

    def typed(self, node):
        if isinstance(node, Raw):
            return node.numbers, node.data
        if isinstance(node, str):
            return [20, 4, len(node.encode("utf-16-le")) // 2], node.encode(
                f"utf-16-{'l' if self.order == '<' else 'b'}e"
            )
        if isinstance(node, np.ndarray):
            return [20, CODES[node.dtype.name], node.size], node.astype(node.dtype.newbyteorder(self.order)).tobytes()
        if isinstance(node, tuple):
            fields = [self.typed(field) for field in node]
            return [15, 0, len(node), *(n for (code,), _ in fields for n in (0, code))], b"".join(d for _, d in fields)
        node = np.asarray({bool: np.bool_, int: np.int32, float: np.float64}.get(type(node), lambda v: v)(node))
        return [CODES[node.dtype.name]], node.astype(node.dtype.newbyteorder(self.order)).tobytes()


class Raw:
    """A value with type numbers of its own."""

    def __init__(self, numbers, data=b""):
        self.numbers, self.data = numbers, data


def image(voxels, scales=(1.0, 1.0, 1.0), units=("", "", ""), name="data", **changes):
    """An entry of ImageList. Scales and units are in the file's order, x first."""
    axes = voxels.shape[::-1]
    dimension = [
        {"Origin": np.float32(0), "Scale": np.float32(scale) if type(scale) is float else scale, "Units": unit}
        for _, scale, unit in zip(axes, scales, units, strict=False)
    ]
    data = {
        "Calibrations": {"Brightness": {"Scale": np.float32(1)}, "Dimension": dimension},
        "Data": voxels.reshape(-1),
        "DataType": np.uint32(DATA_TYPES[voxels.dtype.name]),
        "Dimensions": [np.uint32(n) for n in axes],
        "PixelDepth": np.uint32(voxels.dtype.itemsize),
    }
    return {"ImageData": data | changes, "ImageTags": {}, "Name": name}


def thumbnail(height=4, width=4):
    drawn = image(np.zeros((height, width), np.int32), name="Image Of data")
    drawn["ImageData"]["DataType"] = np.uint32(23)
    return drawn


def document(*images, sources=(1,), thumbnails=(0,)):
    tree = {
        "ImageList": list(images),
        "ImageSourceList": [{"ClassName": "ImageSource:Simple", "ImageRef": np.uint32(n)} for n in sources],
        "Thumbnails": [{"ImageIndex": np.uint32(n)} for n in thumbnails],
    }
    return {name: node for name, node in tree.items() if node}


def ramp(*shape, dtype="uint8"):
    return (np.arange(np.prod(shape)) % 251).astype(dtype).reshape(shape)


def opened(path, data, **options):
    path.write_bytes(data)
    return open_dm(LocalBytes(path), Settings(workers=2), **options)


@pytest.fixture
def dm(tmp_path):
    """Opens the DM3 file of a tree, each in a file of its own: a reader keeps its file mapped."""
    numbers = itertools.count()
    return lambda tree, **options: opened(tmp_path / f"{next(numbers)}.dm3", DmWriter().file(tree), **options)


# What real files hold

REFUSED = {
    "damaged_truncated_etspy_BF_001.dm3": (Malformed, "ends at byte 119257"),
    "nexuslims_test_corrupted.dm3": (Malformed, "ends at byte 624"),
    "nexuslims_Titan_EDS_SI_dataZeroed.dm4": (Unsupported, "spectrum image"),
    "nexuslims_Titan_EELS_proc_1_dataZeroed.dm3": (Unsupported, "one-dimensional signal in eV"),
    "nexuslims_Titan_FFT.dm3": (Unsupported, "Fourier transform"),
    "nion_ref_F_0_1.dm3": (Unsupported, "one-dimensional"),
    "nion_ref_F_0_1.dm4": (Unsupported, "one-dimensional"),
    "nion_ref_F_2_1.dm3": (Unsupported, "spectrum image"),
    "nion_ref_F_2_1.dm4": (Unsupported, "spectrum image"),
    "scifireaders_EELS_STO.dm3": (Unsupported, "one-dimensional signal in eV"),
}
PIXEL_SIZES_NM = {
    "etspy_BF_001.dm3": 19.10869963467121,
    "etspy_HAADF.dm3": 17.994916066527367,
    "nexuslims_Titan_Tecnai_mag_dataZeroed.dm3": 1.2943786568939686,
    "nexuslims_TEM_list_signal_dataZeroed.dm3": 0.017751578241586685,
    "nexuslims_neoarm-gatan_image_dataZeroed.dm4": 0.019231438636779785,
}


def test_every_real_file_reads_as_independent_readers_read_it_or_is_refused_with_the_right_reason(realdata, tmp_path):
    entries = [e for e in json.loads((realdata / "index.json").read_text()) if e["kind"] == "dm"]
    assert len(entries) >= 24
    for entry in entries:
        name, path = unpacked(realdata / "dm" / entry["name"], tmp_path)
        if name in REFUSED:
            error, reason = REFUSED[name]
            with pytest.raises(error, match=reason) as raised:
                open_volume(path)
            print(f"{name}: refused, {str(raised.value).removeprefix(str(path))}")
            continue
        reader = open_volume(path)
        voxels = reader.read()
        recorded = re.search(r"ncempy: shape=(\([^)]*\)) dtype=\S+ .*?arr_sha256=(\w+)", entry["read"])
        print(f"{name}: {reader.info.shape} {reader.info.dtype}, (y, x) {reader.pixel_size_nm} nm, {reader.dataset}")
        assert hashlib.sha256(voxels.tobytes()).hexdigest() == recorded[2], name
        shape = tuple(int(n) for n in re.findall(r"\d+", recorded[1]))
        assert voxels.shape == reader.info.shape == (1, *shape)[-3:] and voxels.dtype.name == reader.info.dtype
        assert reader.info.voxel_size_nm is None, "none of these files states a distance in z"
        if name in PIXEL_SIZES_NM:
            assert reader.pixel_size_nm == (PIXEL_SIZES_NM[name],) * 2


def unpacked(file, folder):
    if file.name.endswith(".tar.gz"):
        with tarfile.open(file) as archive:
            (member,) = [m for m in archive.getmembers() if m.isfile()]
            archive.extract(member, folder, filter="data")
        return f"nexuslims_{member.name}", folder / member.name
    return file.name, file


def test_tags_of_a_real_file_are_all_there_with_their_paths_and_values(realdata):
    tags = dict(open_volume(realdata / "dm/etspy_BF_001.dm3").tags())
    assert len(tags) == 1381
    assert tags["/ImageList/1/ImageTags/Microscope Info/Voltage"] == 300000.0
    assert tags["/ImageList/1/ImageData/Calibrations/Dimension/0/Units"] == "µm"
    assert tags["/ImageSourceList/0/ImageRef"] == 1
    assert tags["/Thumbnails/0/SourceSize_Pixels"] == "(128, 128)"
    assert tags["/ImageList/1/ImageData/Data"] == "16384 x float32 at byte 70770"


def test_names_are_read_in_both_encodings_that_real_files_have(realdata):
    """One of two names with a micro sign is Latin-1 in this file, the other UTF-8."""
    names = {
        path.split("/")[-1] for path, _ in read_tags_of(realdata / "dm/nexuslims_Titan_EELS_proc_1_dataZeroed.dm3")
    }
    assert {"Field of View (µm)", "Emission Current (µA)"} <= names


def read_tags_of(path):
    return list(read_tags(LocalBytes(path)).leaves())


@pytest.mark.parametrize("name", ["etspy_HAADF.dm3", "nexuslims_TEM_list_signal_dataZeroed.dm3", "nion_ref_T_0_2.dm4"])
def test_ncempy_agrees(realdata, name):
    ncempy = pytest.importorskip("ncempy.io.dm", reason="ncempy is not installed")
    recorded = ncempy.dmReader(str(realdata / "dm" / name))["data"]
    assert np.array_equal(open_volume(realdata / "dm" / name).read().squeeze(), recorded)


@pytest.mark.parametrize("name", ["etspy_HAADF.dm3", "nexuslims_neoarm-gatan_image_dataZeroed.dm4"])
def test_rosettasciio_agrees(realdata, name):
    digitalmicrograph = pytest.importorskip("rsciio.digitalmicrograph", reason="rosettasciio is not installed")
    recorded = digitalmicrograph.file_reader(str(realdata / "dm" / name))[0]["data"]
    assert np.array_equal(open_volume(realdata / "dm" / name).read().squeeze(), recorded)


# EMPIAR-11759, rebuilt small from the tags that were recorded of it


@pytest.fixture(scope="module", params=["0000", "0015"])
def empiar_tree(request, realdata):
    """The tree that the recorded tags describe; images are smaller, thumbnails as they are."""
    file = realdata.parent / f"payloads/empiar/dm3_full_tags_slice_{request.param}.json"
    if not file.is_file():
        pytest.skip(f"no recorded tags at {file}")
    recorded = json.loads(file.read_text())["full_original_tags"]
    tree = {}
    for path, value in recorded.items():
        *groups, name = re.sub(r"^root\.", "", path).split(".")
        if name in ("Size", "Offset"):
            continue
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = guessed(value)
    side = {"0000": (192, 192), "0015": (383, 384)}[request.param]
    images = tree["ImageList"]
    images["0"]["ImageData"]["Data"] = np.zeros(side, np.int32).reshape(-1)
    images["1"]["ImageData"]["Dimensions"] = {"0": np.uint32(96), "1": np.uint32(100)}
    images["1"]["ImageData"]["Data"] = ramp(100, 96).reshape(-1)
    return with_lists(tree)


def guessed(text):
    if text in ("True", "False"):
        return text == "True"
    if re.fullmatch(r"-?\d{1,10}", text):
        return np.uint32(int(text)) if int(text) >= 0 else int(text)
    if re.fullmatch(r"-?\d+\.\d+(e[+-]?\d+)?", text):
        return float(text)
    return text


def with_lists(node):
    if not isinstance(node, dict):
        return node
    inner = {name: with_lists(child) for name, child in node.items()}
    return list(inner.values()) if list(inner) == [str(n) for n in range(len(inner))] else inner


def expected_leaves(node, path=""):
    entries = node.items() if isinstance(node, dict) else ((str(n), child) for n, child in enumerate(node))
    for name, child in entries:
        here = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
        if isinstance(child, dict | list):
            yield from expected_leaves(child, here)
        else:
            yield here, child


def test_b13_a_slice_of_empiar_11759_is_its_image_with_the_recorded_voxel_size(dm, empiar_tree):
    reader = dm(empiar_tree)
    assert reader.dataset == "ImageList/1"
    assert reader.info.shape == (1, 100, 96) and reader.info.dtype == "uint8"
    assert reader.info.voxel_size_nm == (50.0, 7.998250424861908, 7.998250424861908)
    assert np.array_equal(reader.read()[0], ramp(100, 96))


def test_every_recorded_tag_of_a_slice_of_empiar_11759_comes_back(dm, empiar_tree):
    tags = dict(dm(empiar_tree).tags())
    expected = dict(expected_leaves(empiar_tree))
    assert list(tags) == list(expected)
    assert {path: tags[path] for path in expected if not path.endswith("/Data")} == {
        path: value for path, value in expected.items() if not path.endswith("/Data")
    }
    assert "\u2028" in tags["/ImageList/1/Description"]


def test_b13_the_place_of_the_image_follows_the_size_of_the_thumbnail(dm):
    small, large = (dm(document(thumbnail(*side), image(ramp(6, 5)))) for side in ((192, 192), (383, 384)))
    assert np.array_equal(small.read(), large.read())
    places = [dict(reader.tags())["/ImageList/1/ImageData/Data"] for reader in (small, large)]
    moved = [int(place.rpartition(" ")[2]) for place in places]
    assert moved[1] - moved[0] == 588288 - 147456


# Which image

A, B = image(ramp(4, 5), name="a"), image(ramp(6, 7), name="b")
CHOICES = {
    "source after its thumbnail": (document(thumbnail(), A), "ImageList/1"),
    "source before its thumbnail": (document(A, thumbnail(), sources=[0], thumbnails=[1]), "ImageList/0"),
    "no thumbnail": (document(A, sources=[0], thumbnails=[]), "ImageList/0"),
    "the first of two sources": (document(thumbnail(), A, B, sources=[2, 1]), "ImageList/2"),
    "a source that is a thumbnail is passed over": (document(thumbnail(), A, sources=[0, 1]), "ImageList/1"),
    "no sources, one image besides the thumbnail": (document(thumbnail(), A, sources=[]), "ImageList/1"),
    "one source that shows several": (
        document(thumbnail(), A, B, sources=[])
        | {"ImageSourceList": [{"ImageList": [{"ImageRef": np.uint32(2)}, {"ImageRef": np.uint32(1)}]}]},
        "ImageList/2",
    ),
}
NO_CHOICE = {
    "only a thumbnail": (document(thumbnail(), sources=[]), None, Unsupported, "no image besides thumbnails"),
    "no image": ({"Name": "x"}, None, Unsupported, "no image besides thumbnails"),
    "several and no source": (document(A, B, sources=[], thumbnails=[]), None, Unsupported, "ImageList/0, ImageList/1"),
    "source that is not there": (document(thumbnail(), A, sources=[7]), None, Malformed, "image 7 of 2"),
    "dataset that is not there": (document(thumbnail(), A), "ImageList/2", Mismatch, "it has ImageList/0, ImageList/1"),
    "dataset that is no image": (document(thumbnail(), A), "Name", Mismatch, "it has ImageList/0, ImageList/1"),
    "dataset that is a thumbnail": (document(thumbnail(), A), "ImageList/0", Unsupported, "RGBA"),
    "spectrum first": (
        document(thumbnail(), image(ramp(9)), A, sources=[1, 2]),
        None,
        Unsupported,
        "one-dimensional.*dataset may name another: ImageList/2",
    ),
}


@pytest.mark.parametrize(("tree", "expected"), CHOICES.values(), ids=CHOICES)
def test_b13_the_image_that_the_file_is_about_is_chosen(dm, tree, expected):
    assert dm(tree).dataset == expected


@pytest.mark.parametrize(("tree", "dataset", "error", "reason"), NO_CHOICE.values(), ids=NO_CHOICE)
def test_no_image_is_chosen_by_guess(dm, tree, dataset, error, reason):
    with pytest.raises(error, match=reason):
        dm(tree, dataset=dataset)


@pytest.mark.parametrize("dataset", ["ImageList/2", "/ImageList/2", "2"])
def test_dataset_names_another_image(dm, dataset):
    assert dm(document(thumbnail(), A, B), dataset=dataset).info.shape == (1, 6, 7)


# Types, shapes, units


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [3, 4])
def test_every_type_of_voxel_is_read_in_both_versions_and_byte_orders(tmp_path, version, order):
    for dtype in DATA_TYPES:
        voxels = ramp(2, 3, 5, dtype=dtype) * np.dtype(dtype).type(1 if np.dtype(dtype).itemsize == 1 else 3)
        data = DmWriter(version, order).file(document(thumbnail(), image(voxels)))
        reader = opened(tmp_path / "a.dm3", data)
        read = reader.read()
        assert reader.info.dtype == dtype and read.dtype == np.dtype(dtype) and read.dtype.isnative
        assert np.array_equal(read, voxels) and read.flags.c_contiguous and read.flags.aligned, dtype
        assert np.array_equal(reader.read(Box((1, 1, 2), (2, 3, 4))), voxels[1:2, 1:3, 2:4])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (3, "complex"),
        (5, "Fourier"),
        (8, "RGB"),
        (13, "complex"),
        (14, "bits"),
        (23, "RGBA"),
        (27, "Fourier"),
        (99, "unknown"),
        (np.float64("inf"), "unstated"),
    ],
)
def test_what_is_no_grey_value_is_refused_by_its_kind(dm, code, kind):
    with pytest.raises(Unsupported, match=f"{kind}.*DataType {code}"):
        dm(document(thumbnail(), image(ramp(4, 5), DataType=code if isinstance(code, float) else np.uint32(code))))


def meta(node, **tags):
    return node | {"ImageTags": {"Meta Data": tags}}


NOT_SPACE = {
    "spectrum": (image(ramp(8), [0.2], ["eV"]), "one-dimensional signal in eV"),
    "energy in x": (image(ramp(4, 8), [0.01, 2.0], ["keV", "nm"]), r"energy \(keV\) along axis 0"),
    "energy in z": (image(ramp(3, 4, 8), [1.0, 1.0, 0.2], ["nm", "nm", "eV"]), r"energy \(eV\) along axis 2"),
    "spectrum image by its tags": (meta(image(ramp(3, 4, 8)), Format="Spectrum image"), "is a spectrum image"),
    "time": (image(ramp(3, 4, 8), [1.0, 1.0, 0.2], ["nm", "nm", "s"]), r"time \(s\)"),
    "diffraction": (image(ramp(4, 8), [0.1, 0.1], ["1/nm", "1/nm"]), r"reciprocal space \(1/nm\)"),
    "four axes": (image(ramp(2, 3, 4, 5)), "4 dimensions"),
}


@pytest.mark.parametrize(("node", "reason"), NOT_SPACE.values(), ids=NOT_SPACE)
def test_what_is_no_image_in_space_is_refused(dm, node, reason):
    with pytest.raises(Unsupported, match=reason):
        dm(document(thumbnail(), node))


@pytest.mark.parametrize(
    ("unit", "scale", "expected_nm"),
    [
        ("\u00b5m", 0.007998250424861908, 7.998250424861908),
        ("\u03bcm", 0.5, 500.0),
        ("um", 0.5, 500.0),
        ("nm", 2.96, 2.96),
        ("\u00c5", 5.0, 0.5),
        ("\u212b", 5.0, 0.5),
        ("A", 5.0, 0.5),
        ("pm", 500.0, 0.5),
        ("mm", 0.25, 250_000.0),
        ("m", 1e-9, 1.0),
        (" nm ", 4.0, 4.0),
        ("", 1.0, None),
        ("deg", 2.0, None),
        ("px", 2.0, None),
        ("µ", 2.0, None),
        ("nm", 0.0, None),
        ("nm", -4.0, None),
        ("nm", float("nan"), None),
        ("nm", float("inf"), None),
    ],
)
def test_a_length_is_exact_in_nanometres_and_none_where_it_is_not_stated(dm, unit, scale, expected_nm):
    reader = dm(document(thumbnail(), image(ramp(3, 4, 5), [np.float64(scale)] * 3, [unit] * 3)))
    assert reader.info.voxel_size_nm == (None if expected_nm is None else (expected_nm,) * 3)
    assert reader.pixel_size_nm == (None if expected_nm is None else (expected_nm,) * 2)


def test_axes_and_their_sizes_are_turned_around(dm):
    reader = dm(document(thumbnail(), image(ramp(3, 4, 5), [1.0, 2.0, 3.0], ["nm", "nm", "nm"])))
    assert reader.info.shape == (3, 4, 5) and reader.info.voxel_size_nm == (3.0, 2.0, 1.0)


STEP = {"2": {"Origin": 0.0, "Scale": 50.0, "Units": "nm"}}
THICKNESS = {"SBFSEM": {"Record": {"Slice thickness": 40.0}}}
Z_STATED = {
    "with unit": ({"Meta Data": {"Dimension info": STEP}}, 50.0),
    "slice thickness": (THICKNESS, 40.0),
    "both": ({"Meta Data": {"Dimension info": STEP}} | THICKNESS, 50.0),
    "another unit": ({"Meta Data": {"Dimension info": {"2": {"Scale": 0.05, "Units": "µm"}}}}, 50.0),
    "tilt angles": ({"Meta Data": {"Dimension info": {"2": {"Scale": 2.0, "Units": "deg"}}}}, None),
    "nowhere": ({}, None),
}


@pytest.mark.parametrize(("image_tags", "z_nm"), Z_STATED.values(), ids=Z_STATED)
def test_a_slice_takes_its_z_from_the_tags_of_the_microscope(dm, image_tags, z_nm):
    slice_ = image(ramp(4, 5), [8.0, 8.0], ["nm", "nm"]) | {"ImageTags": image_tags}
    assert dm(document(thumbnail(), slice_)).info.voxel_size_nm == (None if z_nm is None else (z_nm, 8.0, 8.0))


def test_a_tilt_series_is_a_stack_without_a_z_size_even_with_a_slice_thickness(dm):
    tilts = image(ramp(3, 4, 5), [8.0, 8.0, 2.0], ["nm", "nm", "deg"]) | {"ImageTags": THICKNESS}
    reader = dm(document(thumbnail(), tilts))
    assert reader.info.shape == (3, 4, 5) and reader.info.voxel_size_nm is None and reader.pixel_size_nm == (8.0, 8.0)


WRONG_IMAGES = {
    "dimension 0": (image(ramp(4, 5), Dimensions=[np.uint32(0), np.uint32(5)]), "dimensions"),
    "no dimensions": (image(ramp(4, 5), Dimensions=[]), "dimensions"),
    "dimension is a text": (image(ramp(4, 5), Dimensions=["4", "5"]), "dimensions"),
    "2^32 x 2^32": (image(ramp(4, 5), Dimensions=[np.uint32(2**32 - 1)] * 2), "20 bytes of data"),
    "too few voxels": (image(ramp(4, 5), Dimensions=[np.uint32(5), np.uint32(5)]), "20 bytes of data.*25"),
    "pixel depth": (image(ramp(4, 5), PixelDepth=np.uint32(2)), "PixelDepth 2"),
    "data is a number": (image(ramp(4, 5), Data=7), "no ImageData/Data"),
}


@pytest.mark.parametrize(("node", "reason"), WRONG_IMAGES.values(), ids=WRONG_IMAGES)
def test_an_image_that_contradicts_itself_is_malformed(dm, node, reason):
    with pytest.raises(Malformed, match=reason):
        dm(document(thumbnail(), node))


# The container, damaged

TINY = document(thumbnail(), image(ramp(3, 4, 5)), sources=[1])


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("size_error", [-4, 0, 4])
def test_b11_a_file_cut_anywhere_is_malformed(tmp_path, version, size_error):
    """Genuine files state 4 bytes too few, third parties' 4 too many: both are read, and found when they are cut."""
    data = DmWriter(version).file(TINY, size_error=size_error)
    opened(tmp_path / "whole.dm3", data).read()
    reason = re.compile("ends at byte|not of a known|is empty|is damaged")
    for length in {*range(0, len(data), max(1, len(data) // 200)), *range(len(data) - 24, len(data))}:
        with pytest.raises(Malformed, match=reason) as raised:
            opened(tmp_path / "cut.dm3", data[:length])
        assert str(raised.value).count("\n") == 0


@pytest.mark.parametrize("name", ["nion_ref_F_1_2.dm3", "nion_ref_T_0_2.dm4"])
def test_b11_a_real_file_cut_anywhere_is_malformed(realdata, tmp_path, name):
    data = (realdata / "dm" / name).read_bytes()
    for length in range(0, len(data), len(data) // 200):
        with pytest.raises(Malformed):
            opened(tmp_path / "cut.dm3", data[:length])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="B11 empty"),
        pytest.param(b"<html><body>Not found</body></html>", "web page", id="B11 web page"),
        pytest.param(b"\0\0\0\5" + bytes(100), "expected a DM3 or DM4", id="B11 version 5"),
        pytest.param(b"\0\0\0\3", "ends at byte 4", id="B11 four bytes"),
        pytest.param(bytes(range(256)), "expected a DM3 or DM4", id="B11 random"),
        pytest.param(b"\0\0\0\3" + bytes(4) + b"\0\0\0\7" + bytes(40), "byte order is 7", id="B11 byte order"),
    ],
)
def test_b11_what_is_no_dm_file_is_named(tmp_path, data, reason):
    with pytest.raises(Malformed, match=reason):
        opened(tmp_path / "a.dm3", data)


def test_b11_a_dm4_file_named_dm3_is_read_as_what_it_is(tmp_path):
    path = tmp_path / "named.dm3"
    path.write_bytes(DmWriter(version=4).file(TINY))
    assert np.array_equal(open_volume(path).read(), ramp(3, 4, 5))


def test_bytes_after_the_end_are_no_harm(tmp_path):
    assert np.array_equal(opened(tmp_path / "a.dm3", DmWriter().file(TINY) + bytes(99)).read(), ramp(3, 4, 5))


def nested(writer, depth):
    group = writer.group({})
    for _ in range(depth):
        group = b"\1\0" + writer.word(1) + writer.entry("", [])[: 3 + 8 * (writer.version == 4)] + group
    return group


def hostile_files(version):
    writer = DmWriter(version)

    def file(root):
        return (
            struct.pack(">i", version)
            + struct.pack(">i" if version == 3 else ">q", len(root))
            + struct.pack(">i", 1)
            + root
            + bytes(8)
        )

    def value(numbers, data=b""):
        return writer.file({"a": Raw(numbers, data)})

    most = 2**31 if version == 3 else 2**63
    return {
        "B12 2^31 tags": (file(b"\1\0" + writer.word(most)), "claims .* entries, but the rest of the file has room"),
        "B12 2^31 tags in a group": (
            writer.file({"a": {}})[: -8 - len(writer.word(0))] + writer.word(most) + bytes(8),
            "claims",
        ),
        "B12 20,000 nested groups": (file(nested(writer, 20_000)), "nested more than 64 deep"),
        "B12 data above the file": (value([20, 4, 2**31 - 1]), "ends at byte .* /a needs 4294967294 bytes"),
        "B12 data of 2^31 structs": (value([20, 15, 0, 2, 0, 7, 0, 7, 2**31]), "needs 34359738368 bytes"),
        "B12 string above the file": (value([18, 2**31]), "needs 2147483648 bytes"),
        "B12 type of 2^31 numbers": (
            writer.file({"a": 1}).replace(b"%%%%" + writer.word(1), b"%%%%" + writer.word(2**31)),
            "type of 2147483648 numbers exceeds the limit",
        ),
        "B12 type of no numbers": (value([]), "type of 0 numbers"),
        "B12 struct of 2^31 fields": (value([15, 0, 2**31, 0, 3]), "unknown type"),
        "B12 struct with named fields": (value([15, 0, 1, 4, 3], b"name1234"), "unknown type"),
        "B12 unknown type": (value([77]), "unknown type 77"),
        "B12 array of arrays": (value([20, 20, 3, 2, 2]), "unknown type"),
        "B12 entry of unknown type": (writer.file({"abc": 1}).replace(b"\x15\0\3abc", b"\x16\0\3abc"), "type is 22"),
        "B12 value without its mark": (writer.file({"a": 1}).replace(b"%%%%", b"%%%x"), "does not begin with %%%%"),
        "B12 no zeros at the end": (writer.file({"a": 1}, end=b"\0\0\0\0\0\0\0\1"), "eight zero bytes"),
    }


@pytest.mark.parametrize("version", [3, 4])
def test_b12_a_structure_beyond_its_limits_is_refused_before_anything_is_allocated(tmp_path, version):
    for name, (data, reason) in hostile_files(version).items():
        tracemalloc.start()
        with pytest.raises(Malformed, match=reason) as raised:
            opened(tmp_path / "a.dm3", data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 16 * 2**20, name
        assert len(str(raised.value)) < 600, name


def test_b12_a_dm4_tag_of_another_length_than_it_states_is_malformed(tmp_path):
    data = DmWriter(4).file({"abc": 7, "d": 8})
    at = data.index(b"abc") + 3
    with pytest.raises(Malformed, match="its own length says"):
        opened(tmp_path / "a.dm4", data[:at] + struct.pack(">Q", 5) + data[at + 8 :])


def test_b12_more_tags_than_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_dm_tags, "MAX_TAGS", 1000)
    with pytest.raises(Malformed, match="more than 1000 tags"):
        opened(tmp_path / "a.dm3", DmWriter().file({"list": [1] * 1001}))


def test_names_from_the_file_cannot_break_a_message(tmp_path):
    data = DmWriter().file({"line\nbreak\x1b[31m" + "x" * 5000: Raw([20, 4, 2**31 - 1])})
    with pytest.raises(Malformed) as raised:
        opened(tmp_path / "a.dm3", data)
    assert "\n" not in str(raised.value) and "\x1b" not in str(raised.value) and len(str(raised.value)) < 600


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_b11_damage_is_read_or_refused_but_nothing_else_happens(tmp_path_factory, data):
    whole = DmWriter(data.draw(st.sampled_from([3, 4]))).file(TINY)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(EmAssetsError):
        reader = opened(tmp_path_factory.getbasetemp() / "damaged.dm3", bytes(damaged))
        assert reader.read().shape == reader.info.shape
        assert all(isinstance(value, str | int | float) for _, value in reader.tags())


# Tags

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
values = st.one_of(
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.floats(allow_nan=False),
    st.integers(0, 2**16 - 1).map(np.uint16),
    st.floats(width=32, allow_nan=False).map(np.float32),
    texts,
    st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=9).map(lambda v: np.array(v, np.int16)),
    st.tuples(st.integers(-(2**31), 2**31 - 1), st.floats(allow_nan=False), st.booleans()),
)
trees = st.recursive(
    values,
    lambda inner: st.one_of(st.dictionaries(names, inner, max_size=5), st.lists(inner, max_size=5)),
    max_leaves=25,
)


def as_tag(value):
    if isinstance(value, np.ndarray):
        return f"{value.size} x int16: {', '.join(map(str, value))}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(str, value)) + ")"
    return value


@settings(max_examples=80, deadline=None)
@given(
    tree=st.dictionaries(names, trees, max_size=6), version=st.sampled_from([3, 4]), order=st.sampled_from(["<", ">"])
)
def test_every_tree_comes_back_leaf_by_leaf_in_order(tmp_path_factory, tree, version, order):
    path = tmp_path_factory.getbasetemp() / "tree.dm"
    path.write_bytes(DmWriter(version, order).file(tree))
    assert read_tags_of(path) == [(where, as_tag(value)) for where, value in expected_leaves(tree)]


ODD_VALUES = {
    "lone surrogate": (Raw([20, 4, 2], b"A\0\0\xd8"), "2 x uint16: 65, 55296"),
    "control characters": (Raw([20, 4, 2], b"\1\0\2\0"), "2 x uint16: 1, 2"),
    "line breaks are text": ("a\r\n\tb\u2028c", "a\r\n\tb\u2028c"),
    "no text": ("", ""),
    "long array": (np.zeros(1000, np.float32), "1000 x float32 at byte 42"),
    "array of structs": (
        Raw([20, 15, 0, 2, 0, 2, 0, 2, 2], bytes([1, 0, 2, 0, 3, 0, 4, 0])),
        "2 x (int16, int16): (1, 2), (3, 4)",
    ),
    "string": (Raw([18, 4], "aµb".encode()), "aµb"),
    "int64": (np.int64(-(2**62)), -(2**62)),
    "uint64": (np.uint64(2**64 - 1), 2**64 - 1),
}


@pytest.mark.parametrize(("value", "expected"), ODD_VALUES.values(), ids=ODD_VALUES)
def test_what_is_no_plain_text_or_number_is_described(tmp_path, value, expected):
    (tmp_path / "a.dm3").write_bytes(DmWriter().file({"a": value}))
    assert read_tags_of(tmp_path / "a.dm3") == [("/a", expected)]


def test_pixels_are_never_taken_for_text(dm):
    letters = np.full((2, 3), ord("A"), np.uint16)
    tags = dict(dm(document(thumbnail(), image(letters))).tags())
    assert tags["/ImageList/1/ImageData/Data"].startswith("6 x uint16 at byte ")


# Reading boxes


def test_a_small_box_of_a_large_image_copies_only_itself(dm):
    reader = dm(document(thumbnail(), image(ramp(10, 500, 1000, dtype="uint16"))))
    tracemalloc.start()
    box = reader.read(Box((4, 100, 100), (5, 110, 120)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert box.shape == (1, 10, 20) and peak_bytes < 100_000


@pytest.mark.parametrize("box", [Box((0, 0, 0), (1, 4, 6)), Box((0, 0, 0), (0, 0, 0)), Box((2, 0, 0), (4, 1, 1))])
def test_a_box_outside_the_volume_is_refused(dm, box):
    with pytest.raises(Mismatch, match="leaves the volume"):
        dm(document(thumbnail(), image(ramp(3, 4, 5)))).read(box)


def test_regions_come_with_samples_that_agree(dm):
    voxels = ramp(6, 50, 40, dtype="int16") * np.int16(-7)
    reader = dm(document(thumbnail(), image(voxels)))
    boxes = [Box((0, 0, 0), (3, 50, 40)), Box((3, 10, 20), (6, 40, 40))]
    outcomes = {o.box: o for o in reader.map_regions(boxes, lambda region: region)}
    assert set(outcomes) == set(boxes)
    for box, outcome in outcomes.items():
        assert np.array_equal(outcome.value.voxels, voxels[box.slices]) and outcome.value.missing == ()
        assert len(outcome.value.samples) > 10
        assert all(sample.value == voxels[sample.position] for sample in outcome.value.samples)
    plan = reader.plan(boxes)
    assert (plan.requests, plan.chunks, plan.missing_chunks) == (0, 6, 0)
    assert plan.received_bytes == sum(outcome.value.received_bytes for outcome in outcomes.values())


def test_a_remote_file_is_read_by_the_ranges_that_were_planned(tmp_path):
    voxels = ramp(4, 900, 1000)
    (tmp_path / "a.dm3").write_bytes(DmWriter().file(document(thumbnail(383, 384), image(voxels))))
    with FaultyServer(tmp_path) as server:
        config = quick_settings(tmp_path)
        reader = open_dm(RemoteBytes(f"{server.url}/a.dm3", HttpClient(config)), config)
        dict(reader.tags())
        assert len(server.log) <= 5, "its size, and the blocks before, between and after the two images"
        for box in (Box((1, 100, 200), (3, 140, 260)), Box((0, 10, 0), (4, 20, 1000)), Box((2, 0, 0), (3, 900, 1000))):
            before, plan = len(server.log), reader.plan([box])
            (outcome,) = reader.map_regions([box], lambda region: region)
            assert np.array_equal(outcome.value.voxels, voxels[box.slices])
            assert len(server.log) - before == plan.requests <= 4
            assert box.voxels <= plan.received_bytes <= 4 * BLOCK_BYTES or box.shape == (1, 900, 1000)
