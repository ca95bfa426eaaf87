"""TIFF files: what their tags, and the texts of ImageJ, OME and FEI in them, say of a volume."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from em_assets.catalog.mapping.files import COLUMN, PAGE, ROW, ZYX, FileReading, exact, readings
from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.catalog.values import count, dates, dtype, number
from em_assets.formats.reader import Scalar

KINDS = {1: "uint", 2: "int", 3: "float", 4: "uint"}
"""By SampleFormat; 4, undefined, is read as if it were not there (TIFF 6.0, section 19)."""
COMPRESSIONS = {
    1: "none",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32773: "packbits",
    32946: "deflate",
    34712: "jpeg 2000",
    34925: "lzma",
    50000: "zstd",
}
PIXELS = "OME/Image/Pixels/@"
FEI_TEXTS = ("FEI_SFEG", "FEI_HELIOS")
"""Tags with `[Section]` and `key=value` lines."""
FEI_XML = "FEI_TITAN/Metadata"
FEI_NUMBERS = (
    ("accelerating_voltage_v", "EBeam/HV", "Optics/AccelerationVoltage", "V", 1),
    ("beam_current_a", "EBeam/BeamCurrent", "Optics/BeamCurrent", "A", 1),
    ("dwell_time_s", "Scan/Dwelltime", "ScanSettings/DwellTime", "s", 1),
    ("working_distance_mm", "EBeam/WD", "Optics/WorkingDistance", "m", 1000),
)
"""Field, place in the sections, place in the XML, FEI's unit (SI throughout), how many of the field's units that is."""
FEI_DATES = (
    *(f"{text}/{key}" for text in FEI_TEXTS for key in ("User/Date", "PrivateFei/TimeOfCreation")),
    f"{FEI_XML}/Acquisition/AcquisitionDatetime",
)


def read(document: StatedDocument, context: Context) -> Iterator[Statement]:
    for reading in readings(document, context):
        page = _first_page(reading.values)
        if page is not None:
            yield from _page(reading, page)
            yield from _storage(reading, page)
            yield from _imagej(reading, f"{page}/ImageDescription")
            yield from _ome(reading, f"{page}/ImageDescription")
            yield from _pages(reading, page)
            yield from _writer(reading, page)
            yield from _fei(reading, page)


def _first_page(values: Mapping[str, Scalar]) -> str | None:
    """Of full resolution: page 0 may be a small copy, which is not listed."""
    pages = [int(found[1]) for key in values if (found := re.fullmatch(r"/(\d{1,9})/ImageWidth", key))]
    return f"/{min(pages)}" if pages else None


def _page(reading: FileReading, page: str) -> Iterator[Statement]:
    for axis, name in ((ROW, "ImageLength"), (COLUMN, "ImageWidth")):
        yield from reading.state_size(axis, count(reading.values.get(f"{page}/{name}")), f"{page}/{name}")
    kind = KINDS.get(int(number(reading.values.get(f"{page}/SampleFormat", 1)) or 0), "")
    bits = count(reading.values.get(f"{page}/BitsPerSample"))
    yield from reading.state("dtype", dtype(f"{kind}{bits or 0:.0f}"), f"{page}/BitsPerSample", unit=f"bits {kind}")
    text = f"{page}/ImageDescription"
    if f"{text}/{PIXELS}SizeC" not in reading.values and f"{text}/channels" not in reading.values:
        key = f"{page}/SamplesPerPixel"
        yield from reading.state("channels", count(reading.values.get(key)), key)


def _storage(reading: FileReading, page: str) -> Iterator[Statement]:
    is_ome = f"{page}/ImageDescription/{PIXELS}SizeX" in reading.values
    name = "OME-TIFF" if is_ome else "TIFF"
    yield from reading.state("file_format", name, f"{page}/ImageWidth", stated=f"{name}, by its tags")
    key = f"{page}/Compression"
    if key in reading.values:
        yield from reading.state("compression", COMPRESSIONS.get(int(reading.number(key) or 0)), key)
    else:
        for key in (f"{page}/StripByteCounts", f"{page}/TileByteCounts"):
            stated = "without a Compression tag"
            yield from reading.state("compression", "none", key, stated=stated, note="TIFF 6.0: the default is none")
    width, height = (count(reading.values.get(f"{page}/{name}")) for name in ("ImageWidth", "ImageLength"))
    rows = count(reading.values.get(f"{page}/RowsPerStrip"))
    if rows and width and height:  # a file in one strip may say 4294967295 rows
        yield from reading.state("source_chunk", reading.as_zyx((1, min(rows, height), width)), f"{page}/RowsPerStrip")
    tile = [count(reading.values.get(f"{page}/{name}")) for name in ("TileLength", "TileWidth")]
    if tile[0] and tile[1]:
        yield from reading.state("source_chunk", reading.as_zyx((1, tile[0], tile[1])), f"{page}/TileLength")


def _imagej(reading: FileReading, text: str) -> Iterator[Statement]:
    """X and YResolution are pixels per `unit`, `spacing` is the distance of slices (ImageJ's TiffEncoder)."""
    values = reading.values
    if f"{text}/ImageJ" not in values:
        return
    images, channels = count(values.get(f"{text}/images")), count(values.get(f"{text}/channels"))
    key = f"{text}/slices" if f"{text}/slices" in values else f"{text}/images"
    slices = count(values.get(key))
    if slices and key.endswith("images"):
        slices = None if slices % (channels or 1) else slices / (channels or 1)
    yield from reading.state_size(PAGE, slices, key)
    yield from reading.state("channels", channels, f"{text}/channels")
    if slices and images and images == slices * (channels or 1):
        axes = "zyx" if (channels or 1) == 1 else "zcyx"
        yield from reading.state("source_axes", _turned(reading, axes), key, note="pages are ImageJ's slices")
    unit = reading.text(f"{text}/unit")
    spacing = number(values.get(f"{text}/spacing"))
    z = None if spacing is None else exact(abs(spacing))
    yield from reading.state_voxel_size(PAGE, z, reading.text(f"{text}/zunit") or unit, f"{text}/spacing")
    page = text.rpartition("/")[0]
    for axis, key, own_unit in (
        (ROW, f"{page}/YResolution", reading.text(f"{text}/yunit") or unit),
        (COLUMN, f"{page}/XResolution", unit),
    ):
        per_unit = exact(values.get(key))
        size = None if per_unit is None else 1 / per_unit
        yield from reading.state_voxel_size(axis, size, own_unit, key, per="per ", note="in the unit of ImageJ's text")


def _turned(reading: FileReading, axes: str) -> str:
    """The file's axes, where its own z, y, x are others of the volume's."""
    return "".join(reading.files.axes[ZYX.index(axis)] if axis in ZYX else axis for axis in axes)


def _ome(reading: FileReading, text: str) -> Iterator[Statement]:
    """The one image of an OME-XML; several are not told apart."""
    values, pixels = reading.values, f"{text}/{PIXELS}"
    if f"{pixels}SizeX" not in values or any(key.startswith(f"{text}/OME/Image[2]/") for key in values):
        return
    for axis, letter in enumerate("ZYX"):
        yield from reading.state_size(axis, count(values.get(f"{pixels}Size{letter}")), f"{pixels}Size{letter}")
        key, unit = f"{pixels}PhysicalSize{letter}", reading.text(f"{pixels}PhysicalSize{letter}Unit") or "µm"
        note = None if f"{key}Unit" in values else "in µm, the default of OME's schema"
        yield from reading.state_voxel_size(axis, exact(values.get(key)), unit, key, note=note)
    yield from reading.state("channels", count(values.get(f"{pixels}SizeC")), f"{pixels}SizeC")
    yield from reading.state("dtype", dtype(values.get(f"{pixels}Type")), f"{pixels}Type")
    order = reading.text(f"{pixels}DimensionOrder").lower()
    if sorted(order) == sorted("xyzct"):
        axes = [a for a in order[::-1] if a in ZYX or (count(values.get(f"{pixels}Size{a.upper()}")) or 1) > 1]
        yield from reading.state("source_axes", _turned(reading, "".join(axes)), f"{pixels}DimensionOrder")
    yield from reading.state_day(f"{text}/OME/Image/AcquisitionDate", ())
    microscope = f"{text}/OME/Instrument/Microscope/@"
    if model := reading.text(f"{microscope}Model"):
        maker = reading.text(f"{microscope}Manufacturer")
        yield from reading.state("instrument", f"{maker} {model}".strip(), f"{microscope}Model", "file metadata")
    key = f"{text}/OME/Instrument/Objective/@NominalMagnification"
    yield from reading.state("magnification", reading.positive(key), key, "file metadata")


def _pages(reading: FileReading, page: str) -> Iterator[Statement]:
    """How many pages there are, where no description of ImageJ or OME says so."""
    text = f"{page}/ImageDescription"
    shape: list[float] = []
    while (side := count(reading.values.get(f"{text}/shape/{len(shape)}"))) is not None:
        shape.append(side)
    leading = [place for place, side in enumerate(shape[:-2]) if side > 1]  # tifffile's description
    if len(leading) == 1:
        yield from reading.state_size(PAGE, shape[leading[0]], f"{text}/shape/{leading[0]}")
    key = f"{page}/PageNumber/1"  # 0 where the writer did not know (TIFF 6.0, section 12)
    yield from reading.state_size(PAGE, count(reading.values.get(key)), key, note="of PageNumber: page, pages in all")
    several = (f"{page}/SamplesPerPixel", f"{text}/channels", f"{text}/{PIXELS}SizeC")
    if all((count(reading.values.get(key)) or 1) == 1 for key in several):  # pages of channels are no slices
        yield from reading.state_size(PAGE, count(reading.values.get("/pages")), "/pages", note="counted by our reader")


def _writer(reading: FileReading, page: str) -> Iterator[Statement]:
    """Which program wrote the file, by the tag or else by its description; and the camera's tags."""
    text = f"{page}/ImageDescription"
    version = reading.text(f"{text}/ImageJ")
    programs = (
        (f"{page}/Software", reading.text(f"{page}/Software")),
        (f"{text}/OME/@Creator", reading.text(f"{text}/OME/@Creator")),
        (f"{text}/ImageJ", f"ImageJ {version}" if version else ""),
    )
    key, program = next(((key, name) for key, name in programs if name), ("", ""))
    yield from reading.state("acquisition_software", program, key, "file metadata")
    if model := reading.text(f"{page}/Model"):
        maker = reading.text(f"{page}/Make")
        yield from reading.state("instrument", f"{maker} {model}".strip(), f"{page}/Model", "file metadata")


def _fei(reading: FileReading, page: str) -> Iterator[Statement]:
    xml = f"{page}/{FEI_XML}"
    for tag in FEI_TEXTS:
        text = f"{page}/{tag}"
        key = f"{text}/System/SystemType"
        yield from reading.state("instrument", _of_fei(reading.text(key)), key, "file metadata")
        if reading.text(f"{text}/Beam/Beam") in ("", "EBeam"):  # else an ion beam made the image
            for field, key, _, unit, factor in FEI_NUMBERS:
                yield from _state_fei(reading, field, f"{text}/{key}", unit, factor)
        for axis, key in ((ROW, f"{text}/Scan/PixelHeight"), (COLUMN, f"{text}/Scan/PixelWidth")):
            yield from reading.state_voxel_size(axis, exact(reading.values.get(key)), "m", key, "file metadata")
    key = f"{xml}/Instrument/InstrumentClass"
    yield from reading.state("instrument", _of_fei(reading.text(key)), key, "file metadata")
    if reading.text(f"{xml}/Acquisition/BeamType") in ("", "Electron"):
        for field, _, key, unit, factor in FEI_NUMBERS:
            yield from _state_fei(reading, field, f"{xml}/{key}", unit, factor)
    for axis, letter in ((ROW, "Y"), (COLUMN, "X")):
        key = f"{xml}/BinaryResult/PixelSize/{letter}"
        unit = reading.text(f"{key}/@unit")
        yield from reading.state_voxel_size(axis, exact(reading.values.get(key)), unit, key, "file metadata")
    keys = [f"{page}/{key}" for key in FEI_DATES]
    evidence = [(days[0], key) for key in keys if len(days := dates(reading.values.get(key))) == 1]
    for key in keys:
        yield from reading.state_day(key, evidence)


def _state_fei(reading: FileReading, field: str, key: str, unit: str, factor: float) -> Iterator[Statement]:
    yield from reading.state(field, reading.positive(key, factor), key, "file metadata", unit=unit)


def _of_fei(model: str) -> str:
    return f"FEI {model}" if model and not model.lower().startswith("fei") else model
