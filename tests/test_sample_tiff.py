"""The two TIFF writers: layouts to the byte as the real files have them, and tifffile reads the voxels back."""

import struct

import numpy as np
import pytest
import tifffile

from em_assets.sample.epfl import write_sparse_volume
from em_assets.sample.tiff import imagej_description, write_imagej, write_itk


def stack(shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def names(page):
    return [tag.name for tag in page.tags.values()]


IMAGEJ_TAGS = (
    "NewSubfileType ImageWidth ImageLength BitsPerSample PhotometricInterpretation ImageDescription StripOffsets"
)
IMAGEJ_TAGS += " SamplesPerPixel RowsPerStrip StripByteCounts XResolution YResolution ResolutionUnit"
ITK_TAGS = "NewSubfileType ImageWidth ImageLength BitsPerSample Compression PhotometricInterpretation StripOffsets"
ITK_TAGS += " Orientation SamplesPerPixel RowsPerStrip StripByteCounts PlanarConfiguration PageNumber Software"


@pytest.mark.parametrize(
    ("shape", "size_bytes", "last_page_at"),
    [
        pytest.param((184, 775, 1121), 159_884_524, 158_986_103, id="xy of the real file"),
        pytest.param((775, 184, 1121), 159_980_266, 159_648_614, id="xz of the real file"),
    ],
)
def test_the_imagej_layout_gives_the_real_sizes(tmp_path, shape, size_bytes, last_page_at):
    """With the real shape the file has the size and the offsets that were recorded of the real one."""
    slices, height, width = shape
    write_imagej(tmp_path / "a.tif", np.broadcast_to(np.uint8(7), (slices, height, width)))
    assert (tmp_path / "a.tif").stat().st_size == size_bytes
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.byteorder == ">" and not tiff.is_bigtiff and len(tiff.pages) == slices
        assert tiff.pages[0].dataoffsets == (278,)
        assert tiff.pages[1].dataoffsets == (278 + height * width,)
        assert tiff.pages[-1].dataoffsets == (last_page_at,)


def test_the_imagej_file_is_what_imagej_wrote(tmp_path):
    """13 tags in order, no Compression, the unit in six ASCII characters, IFD 0 at 8, the others after the pixels."""
    volume = stack((5, 31, 17))
    write_imagej(tmp_path / "a.tif", volume)
    raw = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        np.testing.assert_array_equal(tiff.asarray(), volume)
        assert tiff.is_imagej and tiff.imagej_metadata["unit"] == "\\u00B5m" and tiff.imagej_metadata["slices"] == 5
        pixels_at = 8 + 162 + len(imagej_description(5)) + 16
        assert [page.offset for page in tiff.pages] == [8, *(pixels_at + 5 * 527 + n * 162 for n in range(4))]
        for number, page in enumerate(tiff.pages):
            assert names(page) == IMAGEJ_TAGS.split()
            assert page.dataoffsets == (pixels_at + number * 527,)
            assert page.tags["XResolution"].value == (50_000_000, 1_000_000)
    assert rb"unit=\u00B5m" in raw
    assert raw[pixels_at : pixels_at + volume.size] == volume.tobytes()


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((4, 8, 10), id="whole strips, even page"),
        pytest.param((4, 7, 5), id="odd page, last strip of 3 rows"),
        pytest.param((3, 2, 9), id="one short strip"),
        pytest.param((1, 4, 4), id="one page"),
    ],
)
def test_the_itk_file_is_what_libtiff_wrote(tmp_path, shape):
    """14 tags, strips of 4 rows, each IFD after its page's pixels on an even byte, nothing after the last text."""
    volume = stack(shape)
    write_itk(tmp_path / "a.tif", shape, lambda page: volume[page])
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        np.testing.assert_array_equal(tiff.asarray(), volume.squeeze())
        assert tiff.byteorder == "<" and len(tiff.pages) == shape[0]
        end = 8
        for number, page in enumerate(tiff.pages):
            assert names(page) == ITK_TAGS.split()
            assert page.dataoffsets[0] == end
            pixels_end = end + shape[1] * shape[2]
            assert page.offset == pixels_end + pixels_end % 2
            assert page.tags["PageNumber"].value == (number, shape[0])
            strips = -(-shape[1] // 4)
            tables_bytes = strips * 8 if strips > 1 else 0  # a single value stands in the entry itself
            end = page.offset + 174 + tables_bytes + 15
            assert sum(page.databytecounts) == shape[1] * shape[2]
    assert (tmp_path / "a.tif").stat().st_size == end


def test_a_sparse_volume_has_the_real_size_and_offsets_above_2_31(tmp_path):
    """3.35 GB that take a few megabytes of the disk, to the byte as the real volumedata.tif."""
    first, last = stack((1536, 2048)), stack((1536, 2048), seed=2)
    file = tmp_path / "volumedata.tif"
    write_sparse_volume(file, (1065, 1536, 2048), {0: first, 1064: last})
    assert file.stat().st_size == 3_353_674_357
    assert file.stat().st_blocks * 512 < 40e6
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[1064]
        assert page.dataoffsets[0] == 3_350_525_367 and page.dataoffsets[-1] == 3_353_662_903
        assert tiff.pages[1].dataoffsets[0] == 8 + 3_148_989
        np.testing.assert_array_equal(page.asarray(), last)
        np.testing.assert_array_equal(tiff.pages[0].asarray(), first)
        assert not tiff.pages[500].asarray().any()


def test_the_chain_of_ifds_ends(tmp_path):
    """The last IFD's link is 0, in either layout."""
    volume = stack((3, 6, 4))
    write_itk(tmp_path / "itk.tif", (3, 6, 4), lambda page: volume[page])
    write_imagej(tmp_path / "ij.tif", volume)
    for name, order in (("itk.tif", "<"), ("ij.tif", ">")):
        raw = (tmp_path / name).read_bytes()
        at, seen = struct.unpack(order + "I", raw[4:8])[0], []
        while at:
            seen.append(at)
            (tags,) = struct.unpack(order + "H", raw[at : at + 2])
            (at,) = struct.unpack(order + "I", raw[at + 2 + 12 * tags : at + 6 + 12 * tags])
        assert len(seen) == 3
