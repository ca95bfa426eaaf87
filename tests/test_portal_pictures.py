"""Key photos of a tomogram: the right planes, the right way round, in the portal's four sizes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from em_assets.portal import pictures
from em_assets.portal.pictures import central_slab, key_photos
from em_assets.volume import Box, VolumeInfo


@dataclass
class ArrayReader:
    """A level in memory, which remembers what was asked of it."""

    array: np.ndarray
    voxel_size_nm: tuple[float, float, float] | None = (1.0, 1.0, 1.0)
    chunk: tuple[int, int, int] = (32, 32, 32)
    asked: list[Box] = field(default_factory=list)

    @property
    def info(self) -> VolumeInfo:
        return VolumeInfo(self.array.shape, self.array.dtype.name, self.voxel_size_nm, self.chunk)

    def read(self, box: Box) -> np.ndarray:
        self.asked.append(box)
        return self.array[box.slices]


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def original(levels: Sequence[ArrayReader], **options) -> np.ndarray:
    return picture(key_photos(levels, **options)["original"])


def quarters(shape=(50, 60, 80), dtype="uint16") -> np.ndarray:
    """Each quarter of the plane has a grey value of its own: 10, 20 above 30, 40."""
    volume = np.full(shape, 10, dtype)
    volume[:, :, shape[2] // 2 :] += 10
    volume[:, shape[1] // 2 :] += 20
    return volume


def test_the_four_sizes():
    """Whole; and 1024, 512 and 134 pixels wide, 4:3. All are grey PNGs."""
    photos = key_photos([ArrayReader(quarters((8, 60, 100)))])
    images = {which: Image.open(io.BytesIO(png)) for which, png in photos.items()}
    sizes = {"original": (100, 60), "expanded": (1024, 768), "snapshot": (512, 384), "thumbnail": (134, 100)}
    assert {which: image.size for which, image in images.items()} == sizes
    assert {(image.format, image.mode) for image in images.values()} == {("PNG", "L")}


def test_x_is_to_the_right_and_y_down():
    """Voxel (y, x) of the plane is pixel (y, x) of the original, the darkest black and the brightest white."""
    pixels = original([ArrayReader(quarters())])
    assert [pixels[15, 20], pixels[15, 60], pixels[45, 20], pixels[45, 60]] == [0, 85, 170, 255]
    assert np.unique(pixels).size == 4


def test_a_high_plane_is_turned_as_the_portal_turns_it():
    """Counter-clockwise by 90 degrees, but for the original: what was right is above."""
    photos = key_photos([ArrayReader(quarters((8, 80, 60)))])
    assert picture(photos["original"]).shape == (80, 60)
    small = picture(photos["thumbnail"])
    assert small.shape == (100, 134)
    assert [small[25, 30], small[25, 100], small[75, 30], small[75, 100]] == [85, 255, 0, 170]


def test_it_is_cut_to_what_fits_around_the_middle():
    """Of a plane twice as wide as high the whole height is shown, not 3/4 of it."""
    volume = np.full((1, 90, 180), 10, np.uint8)
    volume[:, :3], volume[:, -3:] = 0, 20  # the first and the last rows
    volume[:, :, :30], volume[:, :, -30:] = 0, 20  # beyond 4:3
    small = picture(key_photos([ArrayReader(volume)])["snapshot"])
    assert small[4, 256] < 10 and small[-5, 256] > 245
    assert abs(int(small[192, 0]) - 128) < 3 and abs(int(small[192, -1]) - 128) < 3


def test_pixels_are_square_whatever_the_voxels_are():
    """A plane of 60 x 80 voxels of 4 nm x 2 nm is 120 x 80 pixels."""
    assert original([ArrayReader(quarters(), (7.0, 4.0, 2.0))]).shape == (120, 80)
    assert original([ArrayReader(quarters(), None)]).shape == (60, 80)


@pytest.mark.parametrize(
    ("finest", "shown", "planes"),
    [
        pytest.param((100, 9, 9), (100, 9, 9), (30, 70), id="40 in the middle"),
        pytest.param((101, 9, 9), (101, 9, 9), (30, 70), id="odd"),
        pytest.param((30, 9, 9), (30, 9, 9), (0, 30), id="all of a thin one, where the portal takes the last 5"),
        pytest.param((1, 9, 9), (1, 9, 9), (0, 1), id="one plane"),
        pytest.param((100, 9, 9), (50, 5, 5), (15, 35), id="as thick in a coarser level"),
        pytest.param((100, 9, 9), (100, 5, 5), (30, 70), id="z not reduced"),
    ],
)
def test_the_central_planes(finest, shown, planes):
    """40 planes of level 0 around the middle, as far as there are so many; nothing outside the volume."""
    slab = central_slab(finest, shown)
    assert (slab.start[0], slab.stop[0]) == planes
    assert (slab.start[1:], slab.stop[1:]) == ((0, 0), shown[1:])


def test_only_the_central_planes_are_averaged():
    """What lies above and below them is not seen."""
    volume = np.zeros((100, 20, 20), np.uint8)
    volume[30:70, :, 10:] = 50
    volume[:30, :10] = volume[70:, 10:] = 255
    assert (original([ArrayReader(volume)]) == np.repeat([0, 255], 10)).all()


def test_one_level_is_read_and_no_voxel_twice(monkeypatch):
    """The finest whose planes are small enough."""
    monkeypatch.setattr(pictures, "MOST_PIXELS", 40 * 40)
    monkeypatch.setattr(pictures, "TILE", 32)
    levels = [ArrayReader(np.zeros((8 // n, 80 // n, 80 // n), np.uint8)) for n in (1, 2, 4)]
    assert original(levels).shape == (40, 40)
    assert [sum(box.voxels for box in level.asked) for level in levels] == [0, 4 * 40 * 40, 0]


@pytest.mark.parametrize("chunk", [(1, 61, 83), (4, 16, 16)], ids=["by plane", "small chunks"])
def test_a_plane_that_is_too_large_is_averaged_while_it_is_read(monkeypatch, chunk):
    """No level is small enough: cells of 3 x 3 voxels, those at the far edges of what is there."""
    monkeypatch.setattr(pictures, "MOST_PIXELS", 21 * 28)
    monkeypatch.setattr(pictures, "TILE", 20)
    monkeypatch.setattr(pictures, "PERCENTILES", (0, 100))
    monkeypatch.setattr(pictures, "WIDTHS", {"original": None})
    volume = np.random.default_rng(1).integers(0, 255, (5, 61, 83)).astype(np.uint8)
    reader = ArrayReader(volume, chunk=chunk)
    expected = np.array([[volume[:, y : y + 3, x : x + 3].mean() for x in range(0, 83, 3)] for y in range(0, 61, 3)])
    expected = (expected - expected.min()) / np.ptp(expected) * 255
    assert np.abs(original([reader]) - expected).max() <= 0.5
    assert max(box.voxels for box in reader.asked) <= 5 * 24 * 24


def test_a_bright_bead_does_not_darken_the_rest():
    """Contrast is by percentiles: one voxel that is a thousand times brighter leaves the other pixels as they are."""
    volume = quarters((8, 60, 80), "float32")
    before = original([ArrayReader(volume)])
    volume[:, 3, 4] = 4e4
    after = original([ArrayReader(volume)])
    changed = before != after
    assert changed.sum() == 1 and after[3, 4] == 255


@pytest.mark.parametrize("hole", ["missing", "nan"])
def test_what_is_not_there_is_hatched(hole):
    """In colour, never black, and without a part in the contrast; where only some planes lack a voxel, it is the mean
    of the others.
    """
    volume = quarters((8, 60, 80), "float32")
    before = original([ArrayReader(volume)])
    real = np.ones(volume.shape, bool)
    real[:, :20, :30] = False
    real[:4, 30:, 60:] = False
    volume[~real] = np.nan if hole == "nan" else 0
    options = {} if hole == "nan" else {"present": lambda level, box: real[box.slices] if level == 0 else None}
    after = original([ArrayReader(volume)], **options)
    assert after.shape == (60, 80, 3)
    assert (after[real.any(0)] == before[real.any(0)][:, None]).all()
    assert {tuple(colour) for colour in after[~real.any(0)]} == {pictures._HATCH_LIGHT, pictures._HATCH_DARK}


def test_nothing_at_all_is_hatched_everywhere():
    """A volume without a single voxel has a picture, too."""
    pixels = original([ArrayReader(np.full((3, 8, 9), np.nan, np.float32))])
    assert pixels.shape == (8, 9, 3) and (np.ptp(pixels, axis=2) > 40).all()


def test_constant_volumes_are_grey():
    """No contrast to stretch: neither an error nor black."""
    assert np.unique(original([ArrayReader(np.full((3, 8, 9), 7, np.uint8))])).tolist() == [128]


def test_equal_volumes_give_equal_bytes():
    """So that writing again changes nothing, whatever the chunks are."""
    first = key_photos([ArrayReader(quarters())])
    assert first == key_photos([ArrayReader(quarters().copy(), chunk=(1, 7, 80))])
    assert list(first) == ["original", "expanded", "snapshot", "thumbnail"]
