"""The DM3 writer, read back by a parser of a few lines, and compared with the offsets recorded of the real files."""

import struct

import numpy as np
import pytest

from em_assets.sample.dm3 import dm3_bytes
from em_assets.sample.sbfsem import PIXEL_UM, slice_tags

FORMATS = {2: "h", 3: "i", 4: "H", 5: "I", 6: "f", 7: "d", 8: "?", 10: "B"}


class Parser:
    """`tags` by path; an array or a text is (offset, bytes)."""

    def __init__(self, raw):
        self.raw, self.at, self.tags = raw, 12, {}
        self.version, self.size, self.order = struct.unpack(">3i", raw[:12])
        self.group("")
        self.rest = raw[self.at :]

    def take(self, form):
        values = struct.unpack_from(form, self.raw, self.at)
        self.at += struct.calcsize(form)
        return values

    def group(self, path):
        is_sorted, _, count = self.take(">BBi")
        names = []
        for number in range(count):
            kind, length = self.take(">Bh")
            name = self.take(f"{length}s")[0].decode("latin-1")
            names.append(name)
            place = f"{path}/{name or number}"
            if kind == 20:
                self.group(place)
            else:
                self.tags[place] = self.data()
        assert is_sorted == (names != [""] * count or path.endswith("Tags") or not path), path
        assert not is_sorted or names == sorted(names, key=str.lower)

    def data(self):
        assert self.take("4s") == (b"%%%%",)
        (length,) = self.take(">i")
        info = self.take(f">{length}i")
        if info[0] in FORMATS:
            return self.take("<" + FORMATS[info[0]])[0]
        if info[0] == 15:
            return self.take("<" + "".join(FORMATS[code] for code in info[4::2]))
        assert info[0] == 20
        fields = [FORMATS[code] for code in info[5:-1:2]] if info[1] == 15 else [FORMATS[info[1]]]
        size = struct.calcsize("<" + "".join(fields)) * info[-1]
        start, self.at = self.at, self.at + size
        return start, self.raw[start : self.at]


def text(value):
    return value[1].decode("utf-16-le")


def written(number, shape=(20, 30), thumbnail=(4, 6)):
    image = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
    small = np.full((*thumbnail, 4), 9, np.uint8)
    return image, Parser(dm3_bytes(slice_tags(number, image, small)))


@pytest.mark.parametrize(
    ("number", "thumbnail", "offset"),
    [
        pytest.param(0, (192, 192), 152_855, id="slices 0 to 9"),
        pytest.param(10, (384, 383), 593_687, id="from slice 10"),
    ],
)
def test_with_the_real_sizes_all_before_the_pixels_lies_where_it_really_lies(number, thumbnail, offset):
    """The colour table, the thumbnail, the pixels, the gaps of the page set-up and the tail: to the byte."""
    image, found = written(number, (5500, 5496), thumbnail)
    tags = found.tags
    assert tags["/DocumentObjectList/0/ImageDisplayInfo/CLUT"][0] == 654
    assert tags["/ImageList/0/ImageData/Data"][0] == 4515
    assert tags["/ImageList/1/ImageData/Data"] == (offset, image.tobytes())
    win32, devmode, devnames = (tags[f"/PageSetup/{name}"] for name in ("Win32", "Win32_DevModeW", "Win32_DevNamesW"))
    assert devmode[0] - win32[0] == 30_394_555 - 30_394_458
    assert devnames[0] - devmode[0] == 30_395_669 - 30_394_555
    assert len(found.raw) - (devnames[0] + len(devnames[1])) == 235


def test_the_container_is_closed():
    """Version, size, order of the bytes; eight zero bytes and nothing else after the root group."""
    _, found = written(3)
    assert (found.version, found.order) == (3, 1)
    assert found.size == len(found.raw) - 20
    assert found.rest == bytes(8)


def test_the_image_is_told_from_its_thumbnail():
    """By the source list and the thumbnail's index; each says its type, its depth and its size, x first."""
    image, found = written(3)
    tags = found.tags
    assert (tags["/ImageSourceList/0/ImageRef"], tags["/Thumbnails/0/ImageIndex"]) == (1, 0)
    assert text(tags["/ImageSourceList/0/ClassName"]) == "ImageSource:Simple"
    for place, expected in {"0": (23, 4, 6, 4), "1": (6, 1, 30, 20)}.items():
        data = f"/ImageList/{place}/ImageData"
        keys = ("DataType", "PixelDepth", "Dimensions/0", "Dimensions/1")
        assert tuple(tags[f"{data}/{key}"] for key in keys) == expected
    assert tags["/ImageList/1/ImageData/Data"][1] == image.tobytes()


def test_the_calibration_and_the_traps_of_the_real_headers_are_there():
    """The pixel size exact in 32 bits, micro sign, line separators, the slice thickness, the day before the month."""
    _, found = written(3)
    tags, image = found.tags, "/ImageList/1"
    for axis in "01":
        dimension = f"{image}/ImageData/Calibrations/Dimension/{axis}"
        assert tags[f"{dimension}/Scale"] == PIXEL_UM
        assert text(tags[f"{dimension}/Units"]) == "µm"
    assert text(tags[f"{image}/Description"]) == "pixel size : \u20280.0080µm x 0.0080µm\u2028"
    assert text(tags[f"{image}/Name"]) == "3VBSED_slice_0003"
    notes = f"{image}/ImageTags"
    assert tags[f"{notes}/Meta Data/Dimension info/2/Scale"] == 50.0
    assert text(tags[f"{notes}/Meta Data/Dimension info/2/Units"]) == "nm"
    assert tags[f"{notes}/SBFSEM/Record/Slice thickness"] == 50.0
    assert text(tags[f"{notes}/DataBar/Acquisition Date"]) == "11.06.2018"
    assert text(tags[f"{notes}/DataBar/Acquisition Time"]) == "22:29:58"
    assert text(tags[f"{notes}/DigiScan/TimeStamp"]) == "Mon Jun 11 22:29:27 2018\u2028"
    assert text(tags[f"{notes}/Microscope Info/Name"]) == "FEI Quanta"


def test_slices_differ_as_a_series_does():
    """Names, times and the stage's height rise; the ids are all different; the same slice gives the same bytes."""
    series = [written(number)[1].tags for number in range(16)]
    for key in ("DataBar/Acquisition Time (OS)", "Microscope Info/Stage Position/Stage Z", "DataBar/Exposure Number"):
        values = [tags[f"/ImageList/1/ImageTags/{key}"] for tags in series]
        assert values == sorted(set(values)), key
    ids = {tags[f"/ImageList/{place}/UniqueID/0"] for tags in series for place in "01"}
    assert len(ids) == 32
    assert written(5)[1].raw == written(5)[1].raw
