"""Gatan DM3 and DM4 files: what DigitalMicrograph's tags say of the image, the microscope and the session.

The image among several is chosen as `formats/_dm_image.py` does it, by the file's own lists, from the claims alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date

from em_assets.catalog.mapping.files import COLUMN, PAGE, ROW, FileReading, exact, readings
from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.catalog.values import count, dates, filetime, number
from em_assets.catalog.vocabulary import Authority
from em_assets.formats._dm_image import DTYPES
from em_assets.formats._units import to_nanometres
from em_assets.formats.reader import Scalar

AXES = ((COLUMN, 0), (ROW, 1), (PAGE, 2))
"""Which of the file's axes each of DigitalMicrograph's dimensions is: x comes first."""
NUMBERS = (
    ("accelerating_voltage_v", "Microscope Info/Voltage", 1, "V", None),
    ("beam_current_a", "Microscope Info/Probe Current (nA)", 1e-9, "nA", None),
    ("dwell_time_s", "DigiScan/Sample Time", 1e-6, "µs", "DigiScan counts in microseconds; the tag says no unit"),
    ("working_distance_mm", "Microscope Info/WD (mm)", 1, "mm", None),
    ("working_distance_mm", "Session Info/WD (mm)", 1, "mm", None),
    ("magnification", "Microscope Info/Indicated Magnification", 1, "", None),
)
"""Field, tag of the image, its unit in the field's, the unit, how the unit is known."""
INSTRUMENTS = ("Microscope Info/Name", "Microscope Info/Microscope", "Session Info/Microscope")
VERSIONS = ("GMS Version/Created", "GMS Version/Saved")
SLICE_THICKNESS = "SBFSEM/Record/Slice thickness"
FORMATS = {".dm3": "DM3", ".dm4": "DM4"}


def read(document: StatedDocument, context: Context) -> Iterator[Statement]:
    for reading in readings(document, context):
        number_of_image = _image(reading.values, reading.files.dataset)
        if number_of_image is not None:
            image = f"/ImageList/{number_of_image}"
            yield from _voxels(reading, image)
            yield from _slice(reading, image)
            yield from _microscope(reading, f"{image}/ImageTags")
            yield from _days(reading, f"{image}/ImageTags")


def _image(values: Mapping[str, Scalar], dataset: str | None) -> int | None:
    """The image that the file is about, or the one that the spec names; None if the file does not say."""
    images = {int(found[1]) for key in values if (found := re.match(r"/ImageList/(\d{1,9})/", key))}
    if dataset is not None:
        named = re.fullmatch(r"/?(?:ImageList/)?(\d{1,9})/?", dataset, re.ASCII)
        return int(named[1]) if named and int(named[1]) in images else None
    pictures = sorted(images - set(_listed(values, r"/Thumbnails/(\d+)/ImageIndex")))
    shown = _listed(values, r"/ImageSourceList/(\d+)/(?:ImageList/(\d+)/)?ImageRef")
    if shown:
        return next((image for image in shown if image in pictures), None)
    return pictures[0] if len(pictures) == 1 else None


def _listed(values: Mapping[str, Scalar], pattern: str) -> list[int]:
    """The numbers under such keys, in the order of the places in the keys."""
    found = [(match.groups(), number(value)) for key, value in values.items() if (match := re.fullmatch(pattern, key))]
    placed = sorted(([int(n) if n else -1 for n in place], value) for place, value in found if value is not None)
    return [int(value) for _, value in placed]


def _voxels(reading: FileReading, image: str) -> Iterator[Statement]:
    data = f"{image}/ImageData"
    for axis, dimension in AXES:
        key = f"{data}/Dimensions/{dimension}"
        yield from reading.state_size(axis, count(reading.values.get(key)), key)
        key = f"{data}/Calibrations/Dimension/{dimension}"
        unit = reading.text(f"{key}/Units")
        yield from reading.state_voxel_size(axis, exact(reading.values.get(f"{key}/Scale")), unit, f"{key}/Scale")
    key = f"{data}/DataType"
    code = int(count(reading.values.get(key)) or 0)
    yield from reading.state("dtype", DTYPES.get(code), key, stated=f"DataType {code}")
    form = FORMATS.get(reading.document.path[-4:].lower())
    yield from reading.state("file_format", form, key, stated=form, note="which of the two, by the file's name")


def _slice(reading: FileReading, image: str) -> Iterator[Statement]:
    """The distance of slices, where the image has no z of its own: what states its unit goes before what does not."""
    has_own = reading.text(f"{image}/ImageData/Calibrations/Dimension/2/Units") != ""
    step = f"{image}/ImageTags/Meta Data/Dimension info/2/Scale"
    size, unit = exact(reading.values.get(step)), reading.text(step.replace("/Scale", "/Units"))
    yield from reading.state_voxel_size(PAGE, size, unit, step, "file metadata" if has_own else "file header")
    is_stated = has_own or (size is not None and to_nanometres(size, unit) is not None)
    key = f"{image}/ImageTags/{SLICE_THICKNESS}"
    authority: Authority = "file metadata" if is_stated else "file header"
    note = "Gatan's block-face software counts in nanometres; the tag says no unit"
    yield from reading.state_voxel_size(PAGE, exact(reading.values.get(key)), "nm", key, authority, note=note)


def _microscope(reading: FileReading, tags: str) -> Iterator[Statement]:
    for key in INSTRUMENTS:
        yield from reading.state("instrument", reading.text(f"{tags}/{key}"), f"{tags}/{key}", "file metadata")
    for field, name, factor, unit, note in NUMBERS:
        key = f"{tags}/{name}"
        yield from reading.state(field, reading.positive(key, factor), key, "file metadata", unit=unit, note=note)
    for key in VERSIONS:
        if version := reading.text(f"{tags}/{key}"):
            program = f"Gatan Microscopy Suite {version}"
            yield from reading.state("acquisition_software", program, f"{tags}/{key}", "file metadata")
            break
    note = "tags of Gatan's serial block-face software"
    key = f"{tags}/{SLICE_THICKNESS}"
    yield from reading.state("modality", "SBF-SEM", key, "file metadata", stated="SBFSEM", note=note)


def _days(reading: FileReading, tags: str) -> Iterator[Statement]:
    """DataBar's date is in the order of whoever set up the computer; the other clocks of the file decide it."""
    stamp, written = f"{tags}/DigiScan/TimeStamp", f"{tags}/DataBar/Acquisition Date"
    clock = f"{tags}/DataBar/Acquisition Time (OS)"
    evidence: list[tuple[date, str]] = []
    if len(days := dates(reading.values.get(stamp))) == 1:
        evidence.append((days[0], f"DigiScan/TimeStamp ({reading.text(stamp)})"))
    if moment := filetime(reading.values.get(clock)):
        evidence.append((moment.date(), f"DataBar/Acquisition Time (OS) ({moment:%Y-%m-%d %H:%M} UTC)"))
    yield from reading.state_day(stamp, evidence)
    yield from reading.state_day(written, evidence)
