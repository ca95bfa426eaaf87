"""Particles in STAR files: what RELION 3 and 4, TOMOMAN and STOPGAP mean by their columns.

Locations come out in the pixels that the file counts in, shifts included. The tables are read by `_star.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.formats._found_point import FoundPoint, Xyz, plus
from em_assets.formats._rotations import Rotation, relion_rotation, stopgap_rotation
from em_assets.formats._star import StarTable, star_tables
from em_assets.formats._text_lines import is_number, number_in, shown

MAX_LINES = 5_000_000

RELION_COORDINATES = ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ")
RELION_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
RELION_SHIFTS = ("rlnOriginX", "rlnOriginY", "rlnOriginZ")
"""In the coordinates' pixels, to be taken off."""
RELION_SHIFTS_ANGSTROM = ("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst")
SUBTOMOGRAM_ANGLES = ("rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi")
COORDINATE_PIXELS = ("rlnTomoTiltSeriesPixelSize", "rlnImagePixelSize")
"""Of an optics group, in angstrom: what coordinates count. RELION 4 counts pixels of the tilt series; converters that
do not know one count those of the image."""
STOPGAP_COORDINATES = ("orig_x", "orig_y", "orig_z")
STOPGAP_SHIFTS = ("x_shift", "y_shift", "z_shift")
"""To be added."""
STOPGAP_ANGLES = ("phi", "psi", "the")


def relion3(raw: bytes, where: str, filter_value: str | None) -> Iterator[FoundPoint]:
    return _relion_in_pixels(raw, where, filter_value, "rlnMicrographName")


def tomoman(raw: bytes, where: str, filter_value: str | None) -> Iterator[FoundPoint]:
    return _relion_in_pixels(raw, where, filter_value, "rlnTomoName")


def _relion_in_pixels(raw: bytes, where: str, filter_value: str | None, tomogram: str) -> Iterator[FoundPoint]:
    """Location: coordinate - origin, both in pixels; without origins the coordinate."""
    table = _table_with(RELION_COORDINATES[0], raw, where)
    if any(name in table.columns for name in RELION_SHIFTS_ANGSTROM):
        raise Unsupported(
            f"{where}, line {table.line}: the table has shifts in angstrom (_{RELION_SHIFTS_ANGSTROM[0]}), as RELION "
            "writes them from 3.1 on; read it as relion4_star."
        )
    for row in _rows_of(table, tomogram, where, filter_value):
        place = row.numbers(RELION_COORDINATES)
        shift = row.numbers_if_there(RELION_SHIFTS)
        yield FoundPoint(plus(place, shift, -1.0), row.line, _relion_rotation(row))


def relion4(raw: bytes, where: str, filter_value: str | None) -> Iterator[FoundPoint]:
    """Location: coordinate - origin in angstrom / the pixel size of the particle's optics group."""
    tables = star_tables(raw, where, MAX_LINES)
    table = _table_among(tables, RELION_COORDINATES[0], where)
    optics = next((found for found in tables if "rlnOpticsGroup" in found.columns and found is not table), None)
    sizes = {} if optics is None else _pixel_sizes(optics, where)
    for row in _rows_of(table, "rlnTomoName", where, filter_value):
        place = row.numbers(RELION_COORDINATES)
        shift = row.numbers_if_there(RELION_SHIFTS_ANGSTROM)
        if any(shift):
            size = _pixel_size_of(row, sizes)
            shift = (shift[0] / size, shift[1] / size, shift[2] / size)
        yield FoundPoint(plus(place, shift, -1.0), row.line, _relion_rotation(row))


def _pixel_sizes(optics: StarTable, where: str) -> dict[str, float]:
    """By optics group, in angstrom."""
    column = next((name for name in COORDINATE_PIXELS if name in optics.columns), None)
    if column is None:
        return {}
    group_at, size_at = optics.places(("rlnOpticsGroup", column), where)
    sizes = {}
    for line, cells in optics.rows:
        size = number_in(cells[size_at], f"_{column}", where, line)
        if size <= 0:
            raise Malformed(f"{where}, line {line}: _{column} is {cells[size_at]}, expected a positive number.")
        sizes[cells[group_at]] = size
    return sizes


def _pixel_size_of(row: _Row, sizes: Mapping[str, float]) -> float:
    group = row.text_if_there("rlnOpticsGroup")
    size = next(iter(sizes.values())) if group is None and len(sizes) == 1 else sizes.get(group or "")
    if size is None:
        raise Malformed(
            f"{row.where}, line {row.line}: the shift is in angstrom, but the file gives no pixel size "
            f"({' or '.join('_' + name for name in COORDINATE_PIXELS)}) of optics group {group}; add it."
        )
    return size


def _relion_rotation(row: _Row) -> Rotation | None:
    """None where the file has no angles."""
    if any(row.numbers_if_there(SUBTOMOGRAM_ANGLES)):
        raise Unsupported(
            f"{row.where}, line {row.line}: _{SUBTOMOGRAM_ANGLES[0]} and its like are not 0, so the angles are of a "
            "subtomogram that was itself turned; export the particles with the two combined."
        )
    if not any(name in row.table.columns for name in RELION_ANGLES):
        return None
    return relion_rotation(*row.numbers(RELION_ANGLES))


def stopgap(raw: bytes, where: str, filter_value: str | None) -> Iterator[FoundPoint]:
    """Location: orig + shift, in pixels."""
    table = _table_with(STOPGAP_COORDINATES[0], raw, where)
    for row in _rows_of(table, "tomo_num", where, filter_value):
        place = row.numbers(STOPGAP_COORDINATES)
        shift = row.numbers_if_there(STOPGAP_SHIFTS)
        yield FoundPoint(plus(place, shift), row.line, stopgap_rotation(*row.numbers(STOPGAP_ANGLES)))


@dataclass(frozen=True, slots=True)
class _Row:
    """One particle of a STAR table."""

    table: StarTable
    line: int
    cells: list[str]
    where: str

    def numbers(self, names: tuple[str, str, str]) -> Xyz:
        places = self.table.places(names, self.where)
        a, b, c = (
            number_in(self.cells[place], f"_{name}", self.where, self.line)
            for name, place in zip(names, places, strict=True)
        )
        return a, b, c

    def numbers_if_there(self, names: tuple[str, str, str]) -> Xyz:
        """Zeros where the table has none of the three columns."""
        return self.numbers(names) if any(name in self.table.columns for name in names) else (0.0, 0.0, 0.0)

    def text_if_there(self, name: str) -> str | None:
        return self.cells[self.table.columns.index(name)] if name in self.table.columns else None


def _table_with(column: str, raw: bytes, where: str) -> StarTable:
    return _table_among(star_tables(raw, where, MAX_LINES), column, where)


def _table_among(tables: list[StarTable], column: str, where: str) -> StarTable:
    found = [table for table in tables if column in table.columns]
    if len(found) != 1:
        blocks = ", ".join(f"data_{table.block}" for table in tables) or "nothing"
        raise Malformed(
            f"{where} has {len(found)} tables with a column _{column} (it has {blocks}), expected one; look whether "
            "the file is of the format that is named."
        )
    return found[0]


def _rows_of(table: StarTable, tomogram: str, where: str, wanted: str | None) -> Iterator[_Row]:
    """Those of one tomogram. Raises Mismatch if there is none."""
    rows = (_Row(table, line, cells, where) for line, cells in table.rows)
    if not wanted:
        yield from rows
        return
    (place,) = table.places((tomogram,), where)
    fits = _same_as(wanted)
    found = [row for row in rows if fits(row.cells[place])]
    if not found:
        names = sorted({cells[place] for _, cells in table.rows})
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise Mismatch(
            f"{where} has no particle of _{tomogram} {shown(wanted)}; it has {', '.join(map(shown, names[:5]))}{more}. "
            "Correct filter_value."
        )
    yield from found


def _same_as(wanted: str) -> Callable[[str], bool]:
    """The same text, or the same number: tomograms of STOPGAP are counted."""
    if not is_number(wanted):
        return lambda text: text == wanted
    return lambda text: text == wanted or (is_number(text) and float(text) == float(wanted))
