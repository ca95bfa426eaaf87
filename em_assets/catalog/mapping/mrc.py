"""MRC files: what the header, FEI's and SerialEM's extended headers, and the labels say of a volume.

DMIN, DMAX, DMEAN and RMS stay claims: the catalogue's own statistics are of the voxels, and no field is about what a
file says of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from em_assets.catalog.mapping.files import COLUMN, PAGE, ROW, ZYX, FileReading, exact, readings
from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.catalog.values import MONTHS, count, number
from em_assets.datasets.fields import WIDENED
from em_assets.formats._mrc_header import DTYPES, MAX_LABELS, VOLUME_STACKS, dtype_of, places_of, spacings_angstrom

AXES = ("/maps", "/mapr", "/mapc")
GEOMETRY = (
    *("nz", "mx", "my", "mz", "ispg", "cella/x", "cella/y", "cella/z"),
    *("cellb/alpha", "cellb/beta", "cellb/gamma"),
)
"""What the distance of voxels follows from."""
SECTION = "/extended/0"
NUMBERS = (
    ("accelerating_voltage_v", "HT", "V"),
    ("dwell_time_s", "Dwell time", "s"),
    ("magnification", "Magnification", ""),
)
"""Field, what FEI and SerialEM call it, the unit of both."""
PIXEL_SIZES = ((ROW, "Pixel size Y"), (COLUMN, "Pixel size X"), (ROW, "Pixel size"), (COLUMN, "Pixel size"))
"""Of FEI, in metres; its old files have one for both."""
SERIALEM = re.compile(r"SerialEM: (\S.*?) {2,}(\d\d?)-([A-Za-z]{3})-(\d\d)  ?\d\d:\d\d:\d\d")
"""A label: the title that a site gave its microscope, day, month, year of this century."""


def read(document: StatedDocument, context: Context) -> Iterator[Statement]:
    for reading in readings(document, context):
        yield from _sizes(reading)
        volume = context.spec if reading.volume is None else context.spec.volumes[reading.volume]
        yield from _voxels(reading, volume.dtype)
        yield from _microscope(reading)
        yield from _serialem(reading)


def _sizes(reading: FileReading) -> Iterator[Statement]:
    """Along z, y and x, whichever of them the file calls columns, rows and sections."""
    axes = [number(reading.values.get(key)) for key in AXES]
    whole = [int(axis) for axis in axes if axis is not None and axis == int(axis)]
    places = places_of(*whole) if len(whole) == len(AXES) else None
    if places is None:
        return
    sections = "/mz" if number(reading.values.get("/ispg")) in VOLUME_STACKS else "/nz"
    for place, key in zip(places, (sections, "/ny", "/nx"), strict=True):
        yield from reading.state_size(place, count(reading.values.get(key)), key)
    stated = ", ".join(f"{key[1:].upper()} {axis}" for key, axis in zip(AXES, whole, strict=True))
    letters = "".join(reading.files.axes[place] for place in places)
    yield from reading.state("source_axes", letters, "/maps", stated=stated)


def _voxels(reading: FileReading, stored_dtype: str) -> Iterator[Statement]:
    """Half floats that the spec has stored as single ones are no contradiction."""
    mode, flags = number(reading.values.get("/mode")), number(reading.values.get("/imodFlags"))
    if mode is not None and mode in DTYPES:
        found = dtype_of(int(mode), None if flags is None else int(flags))
        note = None
        if not mode:
            note = "signed in MRC2014" if flags is None else f"by IMOD's flags, {flags:.0f}"
        elif WIDENED.get(found) == stored_dtype:
            note, found = (
                f"{found} in the file, stored as {stored_dtype}, which holds each of them exactly",
                stored_dtype,
            )
        yield from reading.state("dtype", found, "/mode", stated=f"MODE {mode:.0f}", note=note)
        yield from reading.state("file_format", "MRC", "/mode", stated="MRC, by its header")
    geometry = {name: number(reading.values.get(f"/{name}")) for name in GEOMETRY}
    for axis, size in zip((PAGE, ROW, COLUMN), spacings_angstrom(geometry), strict=True):
        intervals = f"M{ZYX[axis].upper()} {geometry[f'm{ZYX[axis]}'] or 0:.0f}"
        note = f"an edge of the cell, divided by {intervals}; shortest decimal within single precision"
        yield from reading.state_voxel_size(axis, size, "angstrom", f"/cella/{ZYX[axis]}", note=note)


def _microscope(reading: FileReading) -> Iterator[Statement]:
    """Of the first section; the sections of one file are of one session."""
    for field, name, unit in NUMBERS:
        key = f"{SECTION}/{name}"
        yield from reading.state(field, reading.positive(key), key, "file metadata", unit=unit)
    for axis, name in PIXEL_SIZES:
        key = f"{SECTION}/{name}"
        yield from reading.state_voxel_size(axis, exact(reading.values.get(key)), "m", key, "file metadata")
    key = f"{SECTION}/Microscope type"
    yield from reading.state("instrument", reading.text(key), key, "file metadata")
    key = f"{SECTION}/Application"
    if name := reading.text(key):
        program = f"{name} {reading.text(f'{key} version')}".strip()
        yield from reading.state("acquisition_software", program, key, "file metadata")


def _serialem(reading: FileReading) -> Iterator[Statement]:
    for key in [f"/label/{place}" for place in range(MAX_LABELS)]:
        written = reading.values.get(key)
        found = SERIALEM.match(written) if isinstance(written, str) else None
        if found is None:
            continue
        note = "the title that the site gave its microscope in SerialEM"
        yield from reading.state("instrument", found[1], key, "file metadata", note=note)
        yield from reading.state("acquisition_software", "SerialEM", key, "file metadata")
        day = _day(found[2], found[3], found[4])
        if day is not None and reading.is_first:
            yield from reading.state("acquired_on", day.isoformat(), key, "file metadata")


def _day(day: str, month: str, year: str) -> date | None:
    """SerialEM writes two digits of the year; it is younger than the century."""
    try:
        return date(2000 + int(year), MONTHS.index(month.lower()) + 1, int(day))
    except ValueError:
        return None
