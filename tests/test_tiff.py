"""TIFF volumes: the real publishers' layouts, every variant that is read, and the bad-input rows B1 to B10."""

import hashlib
import io
import json
import re
import struct
import threading
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unsupported
from em_assets.fetch.http import HttpClient
from em_assets.formats._bytes import LocalBytes, RemoteBytes
from em_assets.formats._pyramid import Pyramid, PyramidLevel
from em_assets.formats.opening import open_volume
from em_assets.formats.tiff import TiffReader, open_tiff
from em_assets.sample.server import OriginServer
from em_assets.settings import Settings
from em_assets.volume import Box

tifffile = pytest.importorskip("tifffile")

SETTINGS = Settings(workers=2)


def opened(file: Path | bytes, tmp_path: Path | None = None, **changes) -> TiffReader:
    if isinstance(file, bytes):
        assert tmp_path is not None
        path = tmp_path / "file.tif"
        path.write_bytes(file)
        file = path
    return open_tiff(LocalBytes(file), SETTINGS.model_copy(update=changes))


def refusal(file: bytes, tmp_path: Path, kind: type[EmAssetsError]) -> str:
    """The sentence with which a file is refused, by opening or reading it, within 64 MiB of memory."""
    tracemalloc.start()
    try:
        with pytest.raises(kind) as caught:
            opened(file, tmp_path).read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(caught.value) is kind
    assert peak < 64 * 2**20
    sentence = str(caught.value)
    assert "file.tif" in sentence
    assert "\n" not in sentence
    return sentence


def noise(shape: tuple[int, ...], dtype: str = "u1", seed: int = 1) -> np.ndarray:
    """Different everywhere, and smooth enough to be compressed."""
    values = np.random.default_rng(seed).integers(0, 200, shape).cumsum(axis=-1)
    return values.astype(dtype)


# --- a writer of our own, for what tifffile will not write


LETTERS = {1: "B", 3: "H", 4: "I", 5: "I", 16: "Q"}


class Writer:
    """Puts IFDs and values where it is told; entries are (tag, type, values)."""

    def __init__(self, order: str = "<", *, big: bool = False) -> None:
        self.order, self.big = order, big
        mark = b"II" if order == "<" else b"MM"
        self.word = "Q" if big else "I"
        head = struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
        self.body = bytearray(mark + head)
        self.link_at = 8 if big else 4
        self.ifd_places: list[int] = []

    def put(self, data: bytes) -> int:
        self.body += b"\0" * (len(self.body) % 2)
        self.body += data
        return len(self.body) - len(data)

    def link(self, at: int) -> None:
        """The next IFD lies there."""
        struct.pack_into(self.order + self.word, self.body, self.link_at, at)

    def ifd(self, entries: list[tuple], *, linked: bool = True) -> int:
        packed = b"".join(self._entry(*entry) for entry in entries)
        count = struct.pack(self.order + ("Q" if self.big else "H"), len(entries))
        at = self.put(count + packed + bytes(8 if self.big else 4))
        if linked:
            self.link(at)
            self.link_at = len(self.body) - (8 if self.big else 4)
        self.ifd_places.append(at)
        return at

    def _entry(self, tag: int, kind: int, values, count: int | None = None) -> bytes:
        """Values that do not fit are put before; `count` overrides what is said of them."""
        room = 8 if self.big else 4
        if isinstance(values, bytes):
            data, number = values, len(values)
        else:
            values = list(values) if isinstance(values, (list, tuple)) else [values]
            data = struct.pack(f"{self.order}{len(values)}{LETTERS.get(kind, 'I')}", *values)
            number = len(values) // (2 if kind == 5 else 1)
        field = data.ljust(room, b"\0") if len(data) <= room else struct.pack(self.order + self.word, self.put(data))
        head = struct.pack(self.order + ("HHQ" if self.big else "HHI"), tag, kind, count or number)
        return head + field


def page_tags(height: int, width: int, offset: int, size: int, **changes) -> list[tuple]:
    """A grey 8-bit page in one strip; `t259=(3, 5)` changes or adds a tag, None takes one away."""
    tags = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, offset)}
    tags |= {277: (3, 1), 278: (4, height), 279: (4, size)}
    tags |= {int(name[1:]): value for name, value in changes.items()}
    return [(tag, *value) for tag, value in sorted(tags.items()) if value is not None]


def one_page(height: int = 4, width: int = 6, pixels: bytes | None = None, **changes) -> bytes:
    writer = Writer()
    pixels = bytes(range(height * width)) if pixels is None else pixels
    writer.ifd(page_tags(height, width, writer.put(pixels), len(pixels), **changes))
    return bytes(writer.body)


def idr_tiff(volume: np.ndarray) -> bytes:
    """As ImageJ 1.52p wrote IDR's: big-endian, 13 tags without Compression, pixels in one piece, more IFDs after it."""
    pages, height, width = volume.shape
    text = (
        f"ImageJ=1.52p\nimages={pages}\nslices={pages}\nunit=\\u00B5m\nspacing=0.02\nloop=false\nmin=36.0\nmax=199.0\n"
    ).encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    text_at = 8 + 162
    x_at, y_at, start = text_at + len(text), text_at + len(text) + 8, text_at + len(text) + 16
    page_bytes = height * width

    def ifd(number: int, following: int) -> bytes:
        short, long = ">HHIHxx", ">HHII"
        entries = [
            (long, 254, 4, 1, 0),
            (long, 256, 4, 1, width),
            (long, 257, 4, 1, height),
            (short, 258, 3, 1, 8),
            (short, 262, 3, 1, 1),
            (long, 270, 2, len(text), text_at),
            (long, 273, 4, 1, start + number * page_bytes),
            (short, 277, 3, 1, 1),
            (short, 278, 3, 1, height),
            (long, 279, 4, 1, page_bytes),
            (long, 282, 5, 1, x_at),
            (long, 283, 5, 1, y_at),
            (short, 296, 3, 1, 1),
        ]
        packed = b"".join(struct.pack(form, *values) for form, *values in entries)
        return struct.pack(">H", len(entries)) + packed + struct.pack(">I", following)

    after = start + pages * page_bytes
    places = [8, *(after + 162 * k for k in range(pages - 1)), 0]
    ifds = [ifd(k, places[k + 1]) for k in range(pages)]
    resolution = struct.pack(">II", 50_000_000, 1_000_000)
    head = b"MM\0*" + struct.pack(">I", 8) + ifds[0] + text + resolution * 2
    return head + volume.tobytes() + b"".join(ifds[1:])


def write_itk(file: Path, volume: np.ndarray, *, gap_before_last: int = 0) -> None:
    """As ITK wrote EPFL's: each IFD after its page's pixels, strips of 4 rows, tables after the IFD, a pad byte."""
    pages, height, width = volume.shape
    strips = -(-height // 4)
    with file.open("wb") as out:
        at = 8
        out.write(b"II*\0" + bytes(4))
        link_at = 4
        for number, page in enumerate(volume):
            at += gap_before_last if number == pages - 1 else 0
            out.seek(at)
            out.write(page.tobytes())
            ifd_at = at + page.nbytes + (at + page.nbytes) % 2
            tables_at = ifd_at + 2 + 14 * 12 + 4
            offsets = [at + 4 * width * k for k in range(strips)]
            counts = [min(4, height - 4 * k) * width for k in range(strips)]
            entries = [(254, 4, 1, 2), (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1)]
            entries += [(262, 3, 1, 1), (273, 4, strips, tables_at), (274, 3, 1, 1), (277, 3, 1, 1), (278, 4, 1, 4)]
            entries += [(279, 4, strips, tables_at + 4 * strips), (284, 3, 1, 1), (297, 3, 2, number | pages << 16)]
            entries += [(305, 2, 15, tables_at + 8 * strips)]
            out.seek(link_at)
            out.write(struct.pack("<I", ifd_at))
            out.seek(ifd_at)
            out.write(struct.pack("<H", 14) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4))
            out.write(struct.pack(f"<{2 * strips}I", *offsets, *counts) + b"InsightToolkit\0")
            link_at = tables_at - 4
            at = out.tell() + out.tell() % 2


# --- real files


TABLE_HEAD = ("file", "shape", "dtype", "verdict")
REFUSED = {
    "damaged_fib25_bigtiff_truncated.tif": (Malformed, "page 10: strip 0 needs 53627 bytes at offset 539024"),
    "imagecodecs_gray.b1.tif": (Unsupported, "1-bit"),
    "imagecodecs_gray.c8.tif": (Unsupported, "complex"),
    "imagecodecs_gray.depth.deflate.u1.tif": (Unsupported, "ImageDepth"),
    "imagecodecs_gray.lerc.u1.tif": (Unsupported, "LERC"),
    "imagecodecs_gray.lzma.u1.tif": (Unsupported, "LZMA"),
    "imagecodecs_gray.series.u1.tif": (Unsupported, "page 1 is RGB"),
    "imagecodecs_rgb.predict.u1.tif": (Unsupported, "RGB"),
    "imagecodecs_rgb.tiled.jpeg.u1.tif": (Unsupported, "YCbCr"),
    "imagecodecs_rgb.tiled.lzw.u1.tif": (Unsupported, "RGB"),
    "imagecodecs_rgba.separate.u1.tif": (Unsupported, "RGB"),
    "mobie_em.tif.zip": (Malformed, "zip archive"),
    "nexuslims_orion-zeiss_dataZeroed.tif": (Unsupported, "RGB (4 samples"),
    "nexuslims_quanta_bad_metadata.tif": (Malformed, "unknown type 0"),
    "nexuslims_tescan-pfib_dataZeroed.tar.gz": (Malformed, "gzip"),
    "tensorstore_D75_01b.tiff": (Unsupported, "1-bit"),
    "tensorstore_D75_08b_3page.tiff": (Unsupported, "RGB"),
    "tensorstore_D75_08b_lzw.tiff": (Unsupported, "RGB"),
    "tifftools_bad_datatype.tif": (Malformed, "unknown type 514"),
    "tifftools_bad_double_reference.tif": (Unsupported, "2 samples per pixel"),
    "tifftools_bad_header1.tif": (Malformed, "neither version 42 nor BigTIFF"),
    "tifftools_bad_header2.tif": (Malformed, "neither version 42 nor BigTIFF"),
    "tifftools_bad_jpeg2.tif": (Unsupported, "JPEG"),
    "tifftools_bad_subifd_offset.tif": (Unsupported, "2 samples per pixel"),
    "tifftools_bad_tag_offset.tif": (Malformed, "ImageDescription claims 10 values"),
    "tifftools_bad_unicode.tif": (Unsupported, "JPEG"),
    "tifftools_good_single.tif": (Unsupported, "2 samples per pixel"),
}


def test_real_files_read_as_an_independent_reader_read_them(realdata: Path):
    """Every real TIFF has the recorded array hash, or is refused for the right reason; prints the table."""
    table, wrong = [TABLE_HEAD], []
    for entry in json.loads((realdata / "index.json").read_text()):
        if entry["kind"] != "tiff":
            continue
        name, recorded = entry["name"], re.search(r"arr_sha256=(\w+)", entry["read"])
        try:
            voxels = opened(realdata / "tiff" / name).read()
        except EmAssetsError as error:
            kind, words = REFUSED.get(name, (None, ""))
            right = type(error) is kind and words in str(error)
            table.append((name, "", "", f"{type(error).__name__}: {str(error).partition(name)[2]}"))
        else:
            right = name not in REFUSED and hashlib.sha256(voxels.tobytes()).hexdigest() == recorded[1]
            table.append((name, str(voxels.shape), str(voxels.dtype), "equal" if right else "DIFFERENT"))
        if not right:
            wrong.append(table[-1])
    print(*(" | ".join(row) for row in table), sep="\n")
    assert len(table) > 50
    assert not wrong


@pytest.mark.parametrize(
    ("name", "voxel_size_nm"),
    [
        ("gen_fib25.ome.tif", (10, 10, 10)),
        ("gen_fib25_imagej.tif", (10, 10, 10)),
        ("mobie_mri-stack-calibrated.tif", (5000, 1000, 1000)),
        ("tensorstore_D75_16b_grey.tiff", None),  # XResolution in centimetres: for printing
        ("nexuslims_quanta_image.tif", None),  # a pixel size, but of one slice
    ],
)
def test_voxel_sizes_of_real_files(realdata: Path, name: str, voxel_size_nm):
    """ImageJ and OME state a voxel size; a resolution for printing is none."""
    assert opened(realdata / "tiff" / name).info.voxel_size_nm == voxel_size_nm


def test_instrument_texts_are_taken_apart(realdata: Path):
    """FEI's sections and XML become keys below their tag, and the text is there whole."""
    tags = dict(opened(realdata / "tiff/nexuslims_scios_xml_metadata.tif").tags())
    assert tags["/0/FEI_HELIOS/Scan/PixelWidth"] == "2.69792e-08"
    assert tags["/0/FEI_HELIOS/System/SystemType"] == "Scios 2"
    assert tags["/0/FEI_TITAN/Metadata/Acquisition/AcquisitionDatetime"] == "2024-05-01T12:56:16"
    assert tags["/0/FEI_TITAN/Metadata/Optics/ScanFieldOfView/X"] == "4.1439999999999996E-05"
    assert str(tags["/0/FEI_HELIOS"]).startswith("[User]")
    assert tags["/0/StripOffsets"] == "128 values, from 8 to 1560584"
    assert tags["/0/ImageWidth"] == 1536


# --- B8: what the real sources publish


def test_b8_the_layout_of_idr(tmp_path: Path):
    """Big-endian, no Compression tag, pixels in one piece, `unit=\\u00B5m` in six letters: right voxels, 20 nm."""
    volume = noise((13, 31, 47))
    data = idr_tiff(volume)
    assert len(data) == data.index(volume.tobytes()) + volume.size + 12 * 162
    reader = opened(data, tmp_path)
    assert reader.info.shape == volume.shape
    assert reader.info.voxel_size_nm == (20.0, 20.0, 20.0)
    np.testing.assert_array_equal(reader.read(), tifffile.imread(tmp_path / "file.tif"))
    tags = dict(reader.tags())
    assert tags["/0/ImageDescription/unit"] == "µm"
    assert "unit=\\u00B5m" in tags["/0/ImageDescription"]
    assert tags["/0/XResolution"] == 50.0
    assert not [path for path in tags if not path.startswith("/0/")], "all pages say the same"


@pytest.mark.parametrize("shape", [(5, 16, 24), (4, 18, 21), (3, 3, 5)], ids=["even", "short last strip", "odd size"])
def test_b8_the_layout_of_epfl(tmp_path: Path, shape):
    """ITK: IFDs after the pixels, strips of 4 rows, pad bytes between pages."""
    volume = noise(shape)
    file = tmp_path / "itk.tif"
    write_itk(file, volume)
    reader = opened(file)
    assert reader.info.voxel_size_nm is None
    assert reader.info.chunk == (1, min(4, shape[1]), shape[2])
    np.testing.assert_array_equal(reader.read(), tifffile.imread(file))
    tags = dict(reader.tags())
    assert tags["/0/Software"] == "InsightToolkit"
    assert (tags["/2/PageNumber/0"], tags["/2/PageNumber/1"]) == (2, shape[0])
    assert "/2/Software" not in tags


def test_b8_offsets_above_2_to_the_31(tmp_path: Path):
    """A (sparse) classic file of 3.2 GB: offsets are unsigned."""
    volume = noise((3, 8, 16))
    write_itk(tmp_path / "far.tif", volume, gap_before_last=3_200_000_000)
    assert (tmp_path / "far.tif").stat().st_size > 2**31
    np.testing.assert_array_equal(opened(tmp_path / "far.tif").read(), volume)


@pytest.mark.parametrize("order", "<>")
def test_b8_bigtiff_above_2_to_the_32(tmp_path: Path, order: str):
    """A (sparse) BigTIFF whose second page, and its IFD, lie beyond 5 GB."""
    far, volume = 5_000_000_000, noise((2, 4, 6), "u2").astype(f"{order}u2")
    first = Writer(order, big=True)
    first.ifd(page_tags(4, 6, first.put(volume[0].tobytes()), 48, t258=(3, 16)))
    second = Writer(order, big=True)
    second.ifd(page_tags(4, 6, far - 100, 48, t258=(3, 16), t273=(16, far - 100)))
    first.link(far - 16 + second.ifd_places[0])
    with (tmp_path / "big.tif").open("wb") as out:
        out.write(first.body)
        out.seek(far - 100)
        out.write(volume[1].tobytes())
        out.seek(far)
        out.write(second.body[16:])
    np.testing.assert_array_equal(opened(tmp_path / "big.tif").read(), volume)


# --- what is read


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_box_of_any_layout(tmp_path_factory, data):
    """Shape, type, byte order, strips or tiles, compression and predictor change nothing about the voxels."""
    draw = data.draw
    shape = tuple(draw(st.integers(1, most)) for most in (4, 40, 40))
    dtype = draw(st.sampled_from(["u1", "u2", "u4", "u8", "i1", "i2", "i4", "f4", "f8"]))
    compression = draw(st.sampled_from([None, "zlib", "lzw", "zstd", "packbits"]))
    predictors = [1, 3] if dtype[0] == "f" else [1, 2]
    predictor = draw(st.sampled_from(predictors)) if compression not in (None, "packbits") else 1
    options = draw(st.sampled_from([{"rowsperstrip": draw(st.integers(1, 41))}, {"tile": (16, 32)}]))
    file = tmp_path_factory.mktemp("any") / "any.tif"
    volume = noise(shape, dtype, seed=draw(st.integers(0, 9)))
    tifffile.imwrite(
        file,
        volume,
        byteorder=draw(st.sampled_from("<>")),
        bigtiff=draw(st.booleans()),
        compression=compression,
        predictor=predictor,
        photometric="minisblack",
        metadata=None,
        **options,
    )
    reader = opened(file)
    assert reader.info.shape == shape
    np.testing.assert_array_equal(reader.read(), volume)
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    box = Box(start, tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)))
    voxels = reader.read(box)
    np.testing.assert_array_equal(voxels, volume[box.slices])
    assert voxels.dtype == np.dtype(dtype)
    assert voxels.dtype.isnative
    assert voxels.flags.c_contiguous
    if reader.sampler is not None:
        assert reader.sampler(box.start) == volume[box.start]


def test_a_box_outside_is_refused(tmp_path: Path):
    reader = opened(one_page(), tmp_path)
    with pytest.raises(Mismatch, match="leaves the volume"):
        reader.read(Box((0, 0, 0), (2, 4, 6)))
    with pytest.raises(Mismatch, match="leave out the dataset"):
        open_tiff(LocalBytes(tmp_path / "file.tif"), SETTINGS, dataset="raw")


def test_strips_anywhere_in_the_file(tmp_path: Path):
    """Uncompressed strips that do not follow one another are put together."""
    writer = Writer()
    rows = [bytes([k] * 6) for k in range(4)]
    places = {k: writer.put(rows[k] + b"\xff\xff") for k in (2, 0, 3, 1)}
    writer.ifd(page_tags(4, 6, 0, 0, t273=(4, [places[k] for k in range(4)]), t278=(4, 1), t279=(4, [6] * 4)))
    reader = opened(bytes(writer.body), tmp_path)
    np.testing.assert_array_equal(reader.read()[0], np.repeat(np.arange(4), 6).reshape(4, 6))
    assert reader.sampler((0, 3, 5)) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"t259": None, "t277": None},
        {"t278": None},
        {"t278": (4, 2**32 - 1)},
        {"t279": None},
        {"t284": (3, 2)},
        {"t339": (3, 4)},
    ],
    ids=["no Compression", "no RowsPerStrip", "RowsPerStrip 2^32-1", "no counts", "planar 2", "format undefined"],
)
def test_tags_that_may_be_left_out(tmp_path: Path, changes):
    """What TIFF 6.0 gives a default is read with it."""
    assert opened(one_page(**changes), tmp_path).read().ravel().tolist() == list(range(24))


def test_regions_share_decoded_strips(tmp_path: Path, monkeypatch):
    """Boxes side by side in one slab decode each strip once."""
    import imagecodecs

    volume = noise((4, 64, 96))
    file = tmp_path / "packed.tif"
    tifffile.imwrite(file, volume, compression="zlib", rowsperstrip=16, metadata=None, photometric="minisblack")
    decoded: list[int] = []
    original = imagecodecs.deflate_decode
    monkeypatch.setattr(imagecodecs, "deflate_decode", lambda *a, **k: decoded.append(1) or original(*a, **k))
    reader = opened(file)
    boxes = [Box((0, y, x), (4, y + 32, x + 32)) for x in (0, 32, 64) for y in (0, 32)]
    for outcome in reader.map_regions(boxes, lambda region: region.voxels):
        np.testing.assert_array_equal(outcome.value, volume[outcome.box.slices])
    assert len(decoded) == 4 * 4


def test_regions_come_with_samples_and_as_planned(tmp_path: Path):
    """Samples are the voxels by another way; what is planned is what is counted; one bad box stops no other."""
    volume = noise((6, 20, 30), "u2")
    file = tmp_path / "plain.tif"
    tifffile.imwrite(file, volume, byteorder=">", rowsperstrip=3, metadata=None)
    reader = opened(file)
    boxes = [Box((z, 0, 0), (z + 3, 20, 30)) for z in (0, 3)]
    counted, lock = [0], threading.Lock()

    def count(size: int) -> None:
        with lock:
            counted[0] += size

    outside = Box((5, 0, 0), (7, 20, 30))
    outcomes = list(reader.map_regions([*boxes, outside], lambda region: region, on_bytes=count))
    plan = reader.plan(boxes)
    assert (plan.requests, plan.received_bytes, plan.chunks, plan.missing_chunks) == (0, counted[0], 6, 0)
    assert {outcome.box for outcome in outcomes if outcome.error} == {outside}
    for outcome in outcomes:
        if outcome.error is None:
            assert len(outcome.value.samples) == 32
            assert all(sample.value == volume[sample.position] for sample in outcome.value.samples)


# --- what the texts say


def imagej(text: str | bytes, pages: int = 2, **changes) -> bytes:
    writer = Writer()
    raw = (text.encode() if isinstance(text, str) else text) + b"\0"
    resolution = {"t282": (5, (4, 1)), "t283": (5, (2, 1))}
    for k in range(pages):
        options = {"t270": (2, raw), **resolution, **changes} if k == 0 else {}
        writer.ifd(page_tags(2, 2, writer.put(bytes([k] * 4)), 4, **options))
    return bytes(writer.body)


@pytest.mark.parametrize(
    ("lines", "voxel_size_nm"),
    [
        ("unit=\\u00B5m\nspacing=0.02", (20, 500, 250)),
        ("unit=micron\nspacing=5.0", (5000, 500, 250)),
        ("unit=um\nspacing=0.05", (50, 500, 250)),
        ("unit=µm\nspacing=-0.05", (50, 500, 250)),
        ("unit=µm\nspacing=0.05".encode("latin-1"), (50, 500, 250)),
        ("unit=nm\nspacing=7.998250424861908", (7.998250424861908, 0.5, 0.25)),
        ("unit=nm\nyunit=um\nzunit=mm\nspacing=1", (1e6, 500, 0.25)),
        ("unit=pixel\nspacing=2", None),
        ("unit=inch\nspacing=2", None),
        ("unit=um", None),
        ("unit=um\nspacing=0", None),
        ("unit=um\nspacing=nan", None),
        ("spacing=2", None),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, (str, bytes)) else "",
)
def test_imagej_voxel_sizes(tmp_path: Path, lines, voxel_size_nm):
    """Resolutions are pixels per unit; without a unit of length or a spacing there is no voxel size."""
    raw = lines.encode() if isinstance(lines, str) else lines
    info = opened(imagej(b"ImageJ=1.53t\nimages=2\nslices=2\n" + raw), tmp_path).info
    assert info.voxel_size_nm == (None if voxel_size_nm is None else pytest.approx(voxel_size_nm, rel=1e-15))


@pytest.mark.parametrize(
    ("text", "resolution", "voxel_size_nm"),
    [
        ("unit=um\nspacing=0.0041", (50, 1), (4.1, 20.0, 20.0)),
        ("unit=um\nspacing=1e-400", (50, 1), None),
        ("unit=um\nspacing=1e999999999", (50, 1), None),
        ("unit=m\nspacing=1e305", (50, 1), None),
        ("unit=pm\nspacing=1e-5", (50, 1), None),
        ("unit=nanometres\nspacing=3", (3, 10), (3.0, 10 / 3, 10 / 3)),
    ],
)
def test_imagej_voxel_sizes_are_rounded_once(tmp_path: Path, text, resolution, voxel_size_nm):
    """0.0041 um are 4.1 nm to the last bit; what no voxel measures is not stated."""
    tags = {"t282": (5, resolution), "t283": (5, resolution)}
    data = imagej(f"ImageJ=1.53t\nimages=2\nslices=2\n{text}", **tags)
    assert opened(data, tmp_path).info.voxel_size_nm == voxel_size_nm


@pytest.mark.parametrize("unit", ["nanometre", "nanometers", "Nanometer", "nm", "\u00c5", "micron", "inch"])
def test_units_mean_the_same_in_a_pyramid(tmp_path: Path, unit):
    data = imagej(f"ImageJ=1.53t\nimages=2\nslices=2\nunit={unit}\nspacing=0.0041", t282=(5, (2, 1)))
    level = PyramidLevel("0", (0.0041, 0.5, 0.5), None)
    pyramid = Pyramid("zyx", (unit,) * 3, (level,), "scale-only", "here")
    assert pyramid.scale_nm(level) == opened(data, tmp_path).info.voxel_size_nm


def test_imagej_resolution_of_zero_is_none(tmp_path: Path):
    data = imagej("ImageJ=1.53t\nimages=2\nslices=2\nunit=um\nspacing=1", t282=(5, (0, 1000)))
    assert opened(data, tmp_path).info.voxel_size_nm is None


def test_imagej_writes_one_ifd_above_4_gb(tmp_path: Path):
    """Planes that follow the only page are all read, by `read` and by samples."""
    volume = noise((5, 6, 7), "u2")
    file = tmp_path / "one.tif"
    tifffile.imwrite(file, volume, imagej=True, truncate=True, metadata={"axes": "ZYX"})
    reader = opened(file)
    np.testing.assert_array_equal(reader.read(), volume)
    assert reader.sampler((4, 5, 6)) == volume[4, 5, 6]
    cut = file.read_bytes()[:-200]
    assert "claims 0.0 MiB of pixels (5 pages" in refusal(cut, tmp_path, Malformed)


@pytest.mark.parametrize("truncate", [True, False], ids=["one IFD", "all IFDs"])
def test_tifffile_stacks(tmp_path: Path, truncate):
    volume = noise((5, 6, 7))
    tifffile.imwrite(tmp_path / "s.tif", volume, truncate=truncate, photometric="minisblack")
    np.testing.assert_array_equal(opened(tmp_path / "s.tif").read(), volume)


def test_tifffile_stacks_written_page_by_page(tmp_path: Path):
    """Each page has a text of its own that says it is one plane; pages that begin a stack are not joined to it."""
    volume = noise((5, 6, 7))
    for name, last in (("alike", volume[4]), ("other", volume[3:])):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as out:
            for plane in (*volume[:4], last):
                out.write(plane, photometric="minisblack")
    np.testing.assert_array_equal(opened(tmp_path / "alike.tif").read(), volume)
    with pytest.raises(Malformed, match=r"page 4.*begins a stack of its own"):
        opened(tmp_path / "other.tif")


def test_tifffile_stacks_of_more_dimensions_are_no_volume(tmp_path: Path):
    tifffile.imwrite(tmp_path / "s.tif", noise((2, 3, 6, 7)), photometric="minisblack")
    with pytest.raises(Unsupported, match=r"shape \[2, 3, 6, 7\]"):
        opened(tmp_path / "s.tif")


def test_imagej_channels_are_a_leading_axis(tmp_path: Path):
    volume = noise((3, 2, 6, 7))
    tifffile.imwrite(tmp_path / "c.tif", volume, imagej=True, metadata={"axes": "ZCYX"})
    reader = opened(tmp_path / "c.tif")
    assert (reader.info.shape, reader.info.channels, reader.info.axes) == ((3, 6, 7), 2, "czyx")
    np.testing.assert_array_equal(reader.read(Box((1, 2, 0), (3, 6, 5))), volume[1:3, :, 2:6, :5].swapaxes(0, 1))


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("ImageJ=1\nimages=2\nframes=2", Unsupported, "frames=2: a time series"),
        ("ImageJ=1\nimages=2\nslices=3\nchannels=4", Malformed, "slices=3 and channels=4, which make 12"),
        ("ImageJ=1\nimages=two", Malformed, "is 'two', expected a whole number"),
        ("ImageJ=1\nimages=0", Malformed, "images=0"),
        ("ImageJ=1\nimages=2000000000", Malformed, "expected at most"),
        ('{"shape": "wide"}', Malformed, "shape"),
        ('{"shape": [2, 2, 2], "shape": 1}', Malformed, "twice"),
    ],
    ids=["frames", "contradiction", "no number", "none", "too many", "no shape", "key twice"],
)
def test_descriptions_that_are_refused(tmp_path: Path, text, kind, words):
    assert words in refusal(imagej(text), tmp_path, kind)


@pytest.mark.parametrize("axes", ["ZYX", "CZYX", "ZCYX", "CYX"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_planes(tmp_path: Path, axes, compression):
    """OME-XML says which page is which plane, and how large a voxel is, in units of its own."""
    sizes = {"Z": 3, "C": 2, "Y": 6, "X": 7}
    volume = noise(tuple(sizes[axis] for axis in axes), "u2")
    metadata = {"axes": axes, "PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.4}
    metadata |= {"PhysicalSizeYUnit": "Å", "PhysicalSizeZ": 0.05}
    file = tmp_path / "v.ome.tif"
    tifffile.imwrite(file, volume, metadata=metadata, compression=compression, photometric="minisblack")
    reader = opened(file)
    expected = np.moveaxis(volume, axes.index("C"), 0) if "C" in axes else volume
    expected = expected[:, None] if axes == "CYX" else expected
    np.testing.assert_array_equal(reader.read(), expected)
    assert reader.info.voxel_size_nm == pytest.approx((50, 0.04, 4), rel=1e-15)
    assert dict(reader.tags())["/0/ImageDescription/OME/Image/Pixels/@PhysicalSizeX"] == "4"


OME = (
    '<?xml version="1.0" encoding="UTF-8"?>{dtd}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image '
    'ID="Image:0"><Pixels DimensionOrder="{order}" SizeX="2" SizeY="2" SizeZ="{z}" SizeC="{c}" SizeT="{t}" '
    'Type="uint8">{data}</Pixels></Image>{more}</OME>'
)


def ome(pages: int = 2, **changes) -> bytes:
    values = {"dtd": "", "order": "XYZCT", "z": pages, "c": 1, "t": 1, "data": "<TiffData/>", "more": ""}
    return imagej(OME.format(**values | changes), pages)


@pytest.mark.parametrize(
    ("changes", "planes"),
    [
        ({}, [[0, 1, 2, 3, 4, 5]]),
        ({"z": 3, "c": 2}, [[0, 1, 2], [3, 4, 5]]),
        ({"z": 3, "c": 2, "order": "XYCZT"}, [[0, 2, 4], [1, 3, 5]]),
        ({"data": "".join(f'<TiffData IFD="{5 - z}" FirstZ="{z}"/>' for z in range(6))}, [[5, 4, 3, 2, 1, 0]]),
        (
            {"data": '<TiffData IFD="0" PlaneCount="3" FirstZ="3"/><TiffData IFD="3" PlaneCount="3"/>'},
            [[3, 4, 5, 0, 1, 2]],
        ),
    ],
    ids=["plain", "channels slow", "channels fast", "backwards", "blocks"],
)
def test_ome_tiff_data(tmp_path: Path, changes, planes):
    """TiffData may put pages anywhere."""
    voxels = opened(ome(6, **changes), tmp_path).read()
    assert voxels.reshape(len(planes), -1, 4)[:, :, 0].tolist() == planes


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"t": 2, "z": 1}, Unsupported, "SizeT=2: a time series"),
        ({"dtd": '<!DOCTYPE a [<!ENTITY x "y">]>'}, Malformed, "declares a document type"),
        ({"data": "<TiffData>"}, Malformed, "not well-formed XML (mismatched tag)"),
        ({"data": "<a>" * 70 + "</a>" * 70}, Malformed, "nested more than 64 deep"),
        ({"more": '<Image ID="Image:1"><Pixels/></Image>'}, Unsupported, "describes 2 images"),
        ({"order": "YXZCT"}, Malformed, "DimensionOrder='YXZCT'"),
        ({"z": 3}, Malformed, "2 pages found, expected 3 (OME-XML says SizeZ=3"),
        ({"z": 10**7}, Malformed, "SizeZ times SizeC is 10000000"),
        ({"z": "9" * 400}, Malformed, "expected a whole number"),
        ({"data": '<TiffData IFD="5"/><TiffData IFD="1" FirstZ="1"/>'}, Malformed, "each of its 2 planes"),
        ({"data": '<TiffData IFD="0" PlaneCount="9"/>'}, Malformed, "puts 9 pages at plane 0"),
        (
            {
                "data": '<TiffData IFD="0"><UUID FileName="a.tif">1</UUID></TiffData><TiffData IFD="0" FirstZ="1">'
                '<UUID FileName="b.tif">2</UUID></TiffData>'
            },
            Unsupported,
            "over 2 files (a.tif, b.tif",
        ),
    ],
    ids=["time", "DTD", "broken", "deep", "images", "order", "pages", "planes", "digits", "twice", "beyond", "files"],
)
def test_ome_xml_that_is_refused(tmp_path: Path, changes, kind, words):
    assert words in refusal(ome(**changes), tmp_path, kind)


def test_ome_xml_with_two_declarations_is_refused(tmp_path: Path):
    text = '<?xml version="1.0"?><?xml version="1.0" encoding="none-such"?>' + OME.partition("?>")[2]
    assert "encoding" in refusal(imagej(text), tmp_path, Malformed)


def test_smaller_copies_are_skipped_and_named(tmp_path: Path):
    """Reduced-resolution pages and SubIFDs are no slices."""
    file = tmp_path / "pyramid.tif"
    volume = noise((2, 32, 32))
    with tifffile.TiffWriter(file) as out:
        for page in volume:
            out.write(page, subifds=1, metadata=None)
            out.write(page[::2, ::2], subfiletype=1, metadata=None)
        out.write(volume[0, ::4, ::4], subfiletype=1, metadata=None)
    reader = opened(file)
    np.testing.assert_array_equal(reader.read(), volume)
    tags = dict(reader.tags())
    assert "/0/SubIFDs/skipped" in tags
    assert tags["/2/skipped"] == "a reduced-resolution page, not read"


def test_tags_of_every_type(tmp_path: Path):
    """Numbers are numbers, texts are texts, bytes are counted, and a later page shows what it says otherwise."""
    writer = Writer(">")
    extra = {
        "t305": (2, b"caf\xe9\0"),
        "t282": (5, (3, 2)),
        "t283": (5, (3, 0)),
        "t700": (7, bytes(range(40))),
        "t65000": (1, b"<a><b>7</b></a>     "),
        "t65001": (3, [1, 2, 3]),
        "t65002": (2, b"<a>"),
    }
    for k in range(3):
        changes = extra | ({"t65001": (3, [1, 2, 4]), "t65003": (4, 9)} if k == 2 else {})
        writer.ifd(page_tags(2, 2, writer.put(bytes(4)), 4, **changes))
    tags = dict(opened(bytes(writer.body), tmp_path).tags())
    assert tags["/0/Software"] == "café"
    assert (tags["/0/XResolution"], tags["/0/YResolution"]) == (1.5, "3/0")
    assert tags["/0/700"] == "40 bytes"
    assert tags["/0/65000/a/b"] == "7"
    assert [tags[f"/0/65001/{k}"] for k in range(3)] == [1, 2, 3]
    assert "not well-formed" in str(tags["/0/65002/unreadable"])
    assert {path: value for path, value in tags.items() if not path.startswith("/0/")} == {
        "/2/65001/0": 1,
        "/2/65001/1": 2,
        "/2/65001/2": 4,
        "/2/65003": 9,
    }


# --- B1 to B10


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"II*\0\0\0", "not of a known format"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "a PNG picture"),
        (b"II\x2b\0\x04\0\0\0" + bytes(40), "BigTIFF"),
        (b"MM*\0" + bytes(40), "is not a TIFF"),
    ],
    ids=["B1 empty", "B1 short", "B1 HTML", "B1 PNG", "B1 BigTIFF of 4-byte offsets", "B1 mixed order"],
)
def test_b1_what_is_no_tiff(tmp_path: Path, data, words):
    assert words in refusal(data, tmp_path, Malformed)


def test_b1_only_a_header(tmp_path: Path):
    assert "lies at byte 8, outside the file (0 pages found" in refusal(b"II*\0\x08\0\0\0", tmp_path, Malformed)
    assert "has no page" in refusal(b"II*\0\0\0\0\0", tmp_path, Malformed)


@pytest.mark.parametrize("compression", [None, "zlib"], ids=["B2 plain", "B2 Deflate"])
def test_b2_truncated_in_the_pixels(tmp_path: Path, compression):
    """The strip, what it needs, where, and what the file has."""
    tifffile.imwrite(tmp_path / "whole.tif", noise((50, 50)), rowsperstrip=10, compression=compression, metadata=None)
    data = (tmp_path / "whole.tif").read_bytes()[:-100]
    sentence = refusal(data, tmp_path, Malformed)
    assert re.search(rf"page 0: strip 4 needs \d+ bytes at offset \d+, but the file has {len(data)} bytes", sentence)


def packed_codes(*codes: int) -> bytes:
    """Up to 253 LZW codes of 9 bits, as TIFF packs them."""
    bits = "".join(f"{code:09b}" for code in codes)
    return int(bits.ljust(-len(bits) % 8 + len(bits), "0"), 2).to_bytes(-(-len(bits) // 8))


@pytest.mark.parametrize(
    ("strip", "words"),
    [
        (bytes.fromhex("80782050"), "stands for nothing"),
        (packed_codes(256, 258, 257), "stands for nothing"),
        (packed_codes(256, 1, 259, 257), "stands for nothing"),
        (packed_codes(1, 2, 257), "does not begin with a Clear"),
        (b"\x80", "does not begin with a Clear"),
        (packed_codes(*[256] * 200, 257), "clears its LZW table"),
    ],
    ids=["a later code", "an entry at once", "an entry too early", "no Clear", "one byte", "only Clears"],
)
def test_b2_lzw_codes_that_stand_for_nothing(tmp_path: Path, monkeypatch, strip, words):
    """Refused before the decoder sees them: it would follow them out of its memory."""
    imagecodecs = pytest.importorskip("imagecodecs")
    monkeypatch.setattr(imagecodecs, "lzw_decode", lambda *_, **__: pytest.fail("the decoder was called"))
    assert words in refusal(one_page(8, 8, strip, t259=(3, 5)), tmp_path, Malformed)


def test_lzw_codes_that_are_sound(tmp_path: Path):
    """An entry used as it is made; several tables, filled and cleared; pixels that are noise."""
    kwkwk = one_page(1, 4, packed_codes(256, 7, 258, 7, 257), t259=(3, 5))
    assert opened(kwkwk, tmp_path).read().tolist() == [[[7, 7, 7, 7]]]
    pixels = np.random.default_rng(1).integers(0, 256, (200, 300), "u1")
    volume = np.stack([pixels, pixels // 64, pixels * 0])
    options = {"compression": "lzw", "rowsperstrip": 200, "metadata": None, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "v.tif", volume, **options)
    np.testing.assert_array_equal(opened(tmp_path / "v.tif").read(), volume)


def test_b2_a_strip_that_ends_early_when_decoded(tmp_path: Path):
    data = one_page(4, 6, zlib.compress(bytes(20)), t259=(3, 8))
    assert "strip 0 decodes to 20 bytes, expected 24 (Deflate)" in refusal(data, tmp_path, Malformed)
    data = one_page(4, 6, b"not deflate at all", t259=(3, 8))
    assert "strip 0 is no Deflate of 24 bytes" in refusal(data, tmp_path, Malformed)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (one_page(100_000, 100_000, bytes(64)), "9.3 GiB, but the file has"),
        (one_page(4, 6, t279=(4, 20)), "strip 0 has 20 bytes, expected 24"),
    ],
    ids=["B3 100000 x 100000", "B3 short count"],
)
def test_b3_more_pixels_than_bytes(tmp_path: Path, data, words):
    assert words in refusal(data, tmp_path, Malformed)


def test_b3_pages_that_share_their_pixels(tmp_path: Path):
    """Many pages that point at the same bytes do not make a large volume."""
    writer = Writer()
    at = writer.put(bytes(10_000))
    for _ in range(30):
        writer.ifd(page_tags(100, 100, at, 10_000))
    assert "(30 pages of 100 x 100 (y, x) uint8), but the file has" in refusal(bytes(writer.body), tmp_path, Malformed)


@pytest.mark.parametrize("compression", [8, 50000], ids=["B4 zlib", "B4 zstd"])
def test_b4_bomb_in_one_strip(tmp_path: Path, compression):
    """1 GiB, and 256 MiB, out of next to nothing."""
    zstandard = pytest.importorskip("zstandard")
    packed = zlib.compress(bytes(2**20)) if compression == 8 else zstandard.compress(bytes(2**20))
    for side, kind, words in ((32768, Unsupported, "1.0 GiB"), (16384, Malformed, "256.0 MiB")):
        sentence = refusal(one_page(side, side, packed, t259=(3, compression)), tmp_path, kind)
        assert "decoded size" in sentence
        assert "exceeds the limit" in sentence
        assert words in sentence


def test_b4_bomb_in_many_strips(tmp_path: Path):
    """A volume beyond EM_ASSETS_MAX_BYTES, a thousand times its file."""
    packed = zlib.compress(bytes(4096 * 16), 9)
    writer = Writer()
    at, strips = writer.put(packed), 4096 // 16
    table = {"t259": (3, 8), "t278": (4, 16), "t273": (4, [at] * strips), "t279": (4, [len(packed)] * strips)}
    for _ in range(100):
        writer.ifd(page_tags(4096, 4096, 0, 0, **table))
    file = tmp_path / "file.tif"
    file.write_bytes(writer.body)
    assert opened(file).info.shape == (100, 4096, 4096), "1.6 GB of black is no crime"
    with pytest.raises(Malformed, match=r"decoded size exceeds the limit: 100 pages .* are 1.6 GiB"):
        opened(file, max_bytes=10**9)
    assert not opened(file).read(Box((50, 7, 9), (51, 40, 50))).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t256": (4, 0)}, "invalid dimensions, 4 x 0"),
        ({"t257": (4, 0)}, "invalid dimensions, 0 x 6"),
        ({"t256": (4, 2**31)}, "invalid dimensions"),
        ({"t257": (4, 2**31)}, "invalid dimensions"),
        ({"t256": None}, "no ImageWidth"),
        ({"t256": (3, [6, 6])}, "ImageWidth has 2 values"),
        ({"t256": (5, (6, 1))}, "ImageWidth has 1 values of type 5"),
        ({"t322": (4, 0), "t323": (4, 16), "t324": (4, 8), "t325": (4, 9)}, "invalid dimensions of tiles, 16 x 0"),
        ({"t278": (4, 1)}, "has 1 strips, but"),
        ({"t273": None}, "has 0 strips, but"),
    ],
    ids=[
        "B5 width 0",
        "B5 height 0",
        "B5 width 2^31",
        "B5 height 2^31",
        "B5 no width",
        "B5 two widths",
        "B5 rational width",
        "B5 tile width 0",
        "B5 missing strips",
        "B5 no strips",
    ],
)
def test_b5_dimensions(tmp_path: Path, changes, words):
    assert words in refusal(one_page(**changes), tmp_path, Malformed)


def chained(count: int) -> Writer:
    writer = Writer()
    at = writer.put(bytes(count))
    for k in range(count):
        writer.ifd(page_tags(1, 1, at + k, 1))
    return writer


def test_b6_ifd_loops(tmp_path: Path):
    """A chain that leads back, to itself or further, names both pages and how many were found."""
    for back in (2, 0):
        writer = chained(3)
        writer.link(writer.ifd_places[back])
        sentence = refusal(bytes(writer.body), tmp_path, Malformed)
        assert f"it leads from page 2 back to page {back} (3 pages found" in sentence


@pytest.mark.slow
def test_b6_a_million_ifds(tmp_path: Path):
    """Ends at the limit, whatever follows."""
    (tags_at,) = (chain := chained(1)).ifd_places
    page = bytes(chain.body[tags_at:-4])
    places = [tags_at + (len(page) + 4) * k for k in range(70_001)]
    chain.body[tags_at:] = b"".join(page + struct.pack("<I", following) for following in places[1:])
    with pytest.raises(Malformed, match="goes on after 65536 pages"):
        opened(bytes(chain.body), tmp_path)


def test_b6_ifd_past_the_end(tmp_path: Path):
    writer = chained(2)
    writer.link(10**6)
    assert "page 2 lies at byte 1000000, outside the file (2 pages found" in refusal(
        bytes(writer.body), tmp_path, Malformed
    )


def test_b6_fewer_pages_than_the_description_says(tmp_path: Path):
    sentence = refusal(imagej("ImageJ=1\nimages=184\nslices=184", pages=2), tmp_path, Malformed)
    assert "2 pages found, expected 184 (ImageDescription says images=184)" in sentence
    data = bytearray(imagej("ImageJ=1\nimages=184\nslices=184", pages=2))
    data[-4:] = struct.pack("<I", 10**6)
    assert "2 pages found, expected 184" in refusal(bytes(data), tmp_path, Malformed)


@pytest.mark.parametrize("count", [0, 5000], ids=["B6 no tags", "B6 too many tags"])
def test_b6_impossible_directories(tmp_path: Path, count):
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + bytes(70_000)
    assert f"has {count} tags, which cannot be" in refusal(data, tmp_path, Malformed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t256": (4, 3), "t257": (4, 2)}, "page 1 differs: it is 2 x 3 (y, x) uint8, page 0 is 2 x 2 (y, x) uint8"),
        ({"t258": (3, 16), "t256": (4, 1)}, "page 1 differs: it is 2 x 1 (y, x) uint16"),
        ({"t339": (3, 2)}, "page 1 differs: it is 2 x 2 (y, x) int8"),
    ],
    ids=["B7 shape", "B7 depth", "B7 sign"],
)
def test_b7_pages_that_differ(tmp_path: Path, changes, words):
    writer = Writer()
    at = writer.put(bytes(8))
    writer.ifd(page_tags(2, 2, at, 4))
    writer.ifd(page_tags(2, 2, at, 8, **changes))
    assert words in refusal(bytes(writer.body), tmp_path, Malformed)


def test_b9_tags_that_cannot_be(tmp_path: Path):
    """What other readers warn of and leave out is an error."""
    data = one_page(t270=(2, b"text", 2**32 - 16))
    assert "ImageDescription claims 4294967280 values" in refusal(data, tmp_path, Malformed)
    assert "tag 65000 has the unknown type 77" in refusal(one_page(t65000=(77, 1)), tmp_path, Malformed)
    writer = Writer()
    tags = page_tags(4, 6, writer.put(bytes(24)), 24)
    writer.ifd([*tags, tags[0]])
    assert "ImageWidth is there twice" in refusal(bytes(writer.body), tmp_path, Malformed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t262": (3, 3)}, "palette colour"),
        ({"t262": (3, 2), "t277": (3, 3), "t258": (3, [8, 8, 8])}, "RGB (3 samples per pixel)"),
        ({"t277": (3, 2), "t258": (3, [8, 8])}, "a grey image with channels (2 samples per pixel)"),
        ({"t258": (3, 1)}, "1-bit"),
        ({"t258": (3, 12)}, "12-bit"),
        ({"t258": None}, "1-bit"),
        ({"t258": (3, 16), "t339": (3, 3)}, "float16"),
        ({"t258": (3, 64), "t339": (3, 6)}, "complex"),
        ({"t259": (3, 7)}, "JPEG"),
        ({"t259": (3, 34712)}, "JPEG 2000"),
        ({"t259": (3, 4)}, "CCITT"),
        ({"t259": (3, 999)}, "unknown (999)"),
        ({"t262": (3, 32803)}, "colour filter array (CFA)"),
        ({"t262": (3, 99)}, "photometric interpretation 99"),
        ({"t259": (3, 8), "t317": (3, 3)}, "predictor 3 for uint8"),
        ({"t266": (3, 2)}, "FillOrder 2"),
        ({"t33629": (5, (1, 1))}, "a MetaMorph stack"),
        ({"t32997": (4, 5)}, "ImageDepth"),
        ({"t279": (4, 0)}, "strip 0 was never written"),
    ],
    ids=lambda value: f"B10 {value}" if isinstance(value, str) else "",
)
def test_b10_kinds_that_are_not_read(tmp_path: Path, changes, words):
    assert words in refusal(one_page(**changes), tmp_path, Unsupported)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<OME>" + "<a/>" * 250_000 + "</OME>", "more, or longer names, than any such document needs"),
        (f"<OME><{'a' * 2000}/></OME>", "more, or longer names"),
        ("ImageJ=1\n" + "".join(f"{k}=\n" for k in range(200_000)), "expected at most 1048576"),
        ("ImageJ=1\n" + " " * 17 * 2**20, "ImageDescription has 17825802 bytes, expected at most 16777216"),
    ],
    ids=["B9 many elements", "B9 long names", "B9 many lines", "B9 long text"],
)
def test_b9_texts_that_would_fill_the_memory(tmp_path: Path, text, words):
    with pytest.raises(Malformed) as caught:
        opened(imagej(text), tmp_path)
    assert words in str(caught.value)


def test_keys_of_a_long_text_end_somewhere(tmp_path: Path):
    """The text is there whole, of its keys the first 10,000."""
    writer = Writer()
    text = b"<a>" + b"<b/>" * 20_000 + b"</a>\0"
    writer.ifd(page_tags(2, 2, writer.put(bytes(4)), 4, t65000=(2, text)))
    tags = dict(opened(bytes(writer.body), tmp_path).tags())
    assert tags["/0/65000"] == text[:-1].decode()
    assert tags["/0/65000/not_listed"] == "keys after the first 10000"
    assert len(tags) < 10_100


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_always_told_in_our_own_words(tmp_path_factory, data):
    """Cut anywhere, or with bytes changed anywhere, a file is read or refused: nothing else happens."""
    whole = data.draw(st.sampled_from(DAMAGED))
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    damaged = bytearray(data.draw(st.sampled_from([whole, cut])))
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.sampled_from([0, 1, 2, 0x7F, 0xFF]))
    file = tmp_path_factory.getbasetemp() / "damaged.tif"
    file.write_bytes(damaged)
    try:
        reader = opened(file)
        list(reader.tags())
        if np.prod(reader.info.shape) < 10**7:
            assert reader.read().shape[-3:] == reader.info.shape
    except EmAssetsError as error:
        said = str(error)
    else:
        said = "damaged.tif was read"
    assert "damaged.tif" in said


def _damaged() -> list[bytes]:
    volume = noise((3, 9, 11), "u2")
    files = [idr_tiff(noise((3, 5, 7))), ome(3), imagej("ImageJ=1\nimages=2\nslices=2\nunit=um\nspacing=1")]
    for options in (
        {"compression": "lzw", "rowsperstrip": 4, "predictor": 2},
        {"compression": "zlib", "tile": (16, 16), "bigtiff": True},
        {"compression": "zstd", "byteorder": ">"},
        {"compression": "packbits"},
    ):
        target = io.BytesIO()
        tifffile.imwrite(target, volume, photometric="minisblack", **options)
        files.append(target.getvalue())
    return files


DAMAGED = _damaged()


# --- on a server


def remote(server: OriginServer, name: str) -> TiffReader:
    return open_tiff(RemoteBytes(f"{server.url}/{name}", HttpClient(SETTINGS)), SETTINGS)


@pytest.mark.parametrize("layout", ["idr", "itk", "zlib strips", "zlib tiles"])
def test_a_remote_box_takes_a_part_of_the_file(tmp_path: Path, layout):
    """A small box of a file on a server: the right voxels, and less than a fifth of the bytes moved."""
    volume = noise((24, 512, 512)) ^ np.random.default_rng(3).integers(0, 255, (24, 512, 512), np.uint8)
    file = tmp_path / "v.tif"
    if layout == "idr":
        file.write_bytes(idr_tiff(volume))
    elif layout == "itk":
        write_itk(file, volume)
    else:
        options = {"rowsperstrip": 16} if layout.endswith("strips") else {"tile": (64, 64)}
        tifffile.imwrite(file, volume, compression="zlib", metadata=None, **options)
    box = Box((5, 100, 200), (15, 140, 260))
    with OriginServer(tmp_path) as server:
        reader = remote(server, "v.tif")
        assert dict(reader.tags())["/0/ImageWidth"] == 512
        walked, requests = server.bytes_sent, server.requests
        np.testing.assert_array_equal(reader.read(box), volume[box.slices])
        assert server.bytes_sent < file.stat().st_size / 5
        plan = opened(file).plan([box]), reader.plan([box])
        if not layout.startswith("zlib"):  # a plan does not know what is decoded already
            assert plan[1].requests == server.requests - requests == 10
            assert plan[1].received_bytes == server.bytes_sent - walked
        assert plan[0].requests == 0


def test_regular_directories_are_fetched_ahead(tmp_path: Path):
    """120 directories far apart are walked with small requests of which most go out together; nothing is believed."""
    volume = np.zeros((120, 256, 1024), np.uint8)
    write_itk(tmp_path / "v.tif", volume)
    size = (tmp_path / "v.tif").stat().st_size
    with OriginServer(tmp_path) as server:
        assert remote(server, "v.tif").info.shape == volume.shape
        assert server.bytes_sent < size / 20
        assert server.requests < 130
    irregular = bytearray((tmp_path / "v.tif").read_bytes())
    places = [found.start() for found in re.finditer(b"InsightToolkit\0", bytes(irregular))]
    link = places[59] - 8 * 64 - 4
    irregular[link : link + 4] = struct.pack("<I", 10**9)  # where the next would be, is still one: it must not be read
    (tmp_path / "v.tif").write_bytes(irregular)
    with OriginServer(tmp_path) as server, pytest.raises(Malformed, match=r"outside the file \(60 pages found"):
        remote(server, "v.tif")


def test_open_volume_knows_a_tiff_by_its_bytes(tmp_path: Path):
    (tmp_path / "odd.name").write_bytes(one_page())
    assert open_volume(tmp_path / "odd.name").info.shape == (1, 4, 6)
