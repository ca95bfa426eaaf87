"""Points of annotations: every format that the CryoET Data Portal takes, and the ndjson that it publishes.

A location is counted in voxels of the tomogram, in the file's own way of counting (corners or centres are the
caller's to know), and divided by `binning`, as the portal does: how many of the file's units a voxel has. copick and
tardis count in angstrom, so there it is the voxel spacing. STAR files are read by `_star_particles.py`,
IMOD's models by `_imod_model.py`; angles become matrices in `_rotations.py`.

Two things are not as the portal's own code has them. `order: zyx` turns around locations and axes of a rotation; there
it transposes the matrix, which inverts the rotation, and leaves the locations of STAR files. And a RELION 4 shift in
angstrom is divided by the pixel size that its coordinates count in, of the particle's own optics group; there by
rlnImagePixelSize of the first group.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from em_assets.datasets.portal import PointFormat
from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.formats import _star_particles
from em_assets.formats._found_point import FoundPoint, Xyz, plus
from em_assets.formats._imod_model import model_points
from em_assets.formats._json import parse_json
from em_assets.formats._rotations import Rotation, of_turned_axes, rotation_of, slicer_rotation
from em_assets.formats._text_lines import MAX_ID, is_number, number_in, shown, text_lines, whole_number_in

PointKind = Literal["point", "orientedPoint", "instancePoint"]
"""As the portal's ndjson calls them."""
POINT_FORMATS: tuple[PointFormat, ...] = get_args(PointFormat)
POINT_KINDS: tuple[PointKind, ...] = get_args(PointKind)
FILTERED: tuple[PointFormat, ...] = ("relion3_star", "relion4_star", "tomoman_relion_star", "stopgap_star")
"""What has points of several tomograms in one file."""
MAX_POINTS = 5_000_000
"""Of one file, and lines of one."""
ANGSTROM = "angstrom"

_Reader = Callable[[bytes, str, "PointOptions"], Iterator[FoundPoint]]


@dataclass(frozen=True, slots=True)
class Point:
    """One point of an annotation."""

    zyx: tuple[float, float, float]
    """In voxels of the tomogram, as the file counts them."""
    rotation: Rotation | None = None
    """3 x 3, row by row: turns a column (x, y, z) of the object's reference into one of the tomogram."""
    instance_id: int | None = None
    """Points of one number are of one object."""
    line: int = 0
    """Where it stands in its file, from 1; of files without lines, which point it is."""

    @property
    def xyz(self) -> Xyz:
        z, y, x = self.zyx
        return x, y, z


@dataclass(frozen=True, slots=True)
class PointOptions:
    """How a file is to be read; the portal's keys, and its defaults where nothing (or null) is said.

    Raises Malformed for a value that means nothing.
    """

    columns: str | None = None
    """Of csv: which axes its first three columns are. None: `xyz`, or what its header says if that names them."""
    delimiter: str | None = None
    """Of csv: one character; None: a comma."""
    binning: float | None = None
    """Locations are divided by it; None: 1."""
    order: str | None = None
    """Of the axes that the file calls x, y, z; None: `xyz`."""
    filter_value: str | None = None
    """Of STAR files: the tomogram of which points are wanted, in the file's own words. None or empty: of all."""
    kind: PointKind | None = None
    """What is wanted of each point: `point` leaves out rotation and number, the others require theirs. None: all that
    the file says; of an IMOD model its contours, where `orientedPoint` are the slices saved with it."""

    def __post_init__(self) -> None:
        for name in ("columns", "order"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or sorted(value) != ["x", "y", "z"]):
                raise Malformed(f"{name} is {value!r}, expected x, y and z in some order, `xyz`; correct it.")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"\0'):
            raise Malformed(f"delimiter is {self.delimiter!r}, expected one character; correct it.")
        binning = self.binning
        if binning is not None and (isinstance(binning, bool) or not (math.isfinite(binning) and binning > 0)):
            raise Malformed(f"binning is {binning!r}, expected a positive number; correct it.")
        if self.kind is not None and self.kind not in POINT_KINDS:
            raise Unsupported(f"kind is {self.kind!r}; accepted are {', '.join(POINT_KINDS)}.")


def read_points(
    raw: bytes,
    format: PointFormat | str,  # noqa: A002  # as the portal's config and everybody here calls it
    where: str,
    *,
    options: PointOptions | None = None,
) -> Iterator[Point]:
    """The points of a file, in its order; `where` names it in errors.

    Raises Unsupported at once for a format that is not read and for an option that means nothing in it. While it is
    read: Malformed, naming the line, for what is not of that format, not finite, not UTF-8 or beyond limits;
    Mismatch if `filter_value` fits none of the file's tomograms, or a header contradicts `columns`.
    """
    options = options or PointOptions()
    reader = _READERS.get(format)
    if reader is None:
        raise Unsupported(
            f"{where}: points of format {format!r} are not read; accepted are {', '.join(POINT_FORMATS)}."
        )
    if options.filter_value and format not in FILTERED:
        raise Unsupported(
            f"{where}: filter_value is {shown(options.filter_value)}, but a file of format {format} says of no point "
            f"which tomogram it is in; leave it out. It means something in {', '.join(FILTERED)}."
        )
    return _finished(reader(raw, where, options), where, options)


def write_ndjson(points: Iterable[Point]) -> bytes:
    """In the portal's form: one object a line, no line end behind the last.

    Raises Unsupported for a point with both a rotation and an instance, which has no type there.
    """
    return "\n".join(json.dumps(_as_json(point), allow_nan=False) for point in points).encode()


def _as_json(point: Point) -> dict[str, Any]:
    x, y, z = point.xyz
    location = {"x": x, "y": y, "z": z}
    if point.rotation is not None and point.instance_id is not None:
        raise Unsupported(
            f"the point of line {point.line} has a rotation and the instance {point.instance_id}, but the portal's "
            "ndjson has no type with both; read it as orientedPoint or as instancePoint."
        )
    if point.rotation is not None:
        rows = [list(point.rotation[at : at + 3]) for at in (0, 3, 6)]
        return {"type": "orientedPoint", "location": location, "xyz_rotation_matrix": rows}
    if point.instance_id is not None:
        return {"type": "instancePoint", "location": location, "instance_id": point.instance_id}
    return {"type": "point", "location": location}


def _finished(found: Iterator[FoundPoint], where: str, options: PointOptions) -> Iterator[Point]:
    binning, order = options.binning or 1.0, options.order or "xyz"
    for number, point in enumerate(found, 1):
        if number > MAX_POINTS:
            raise Malformed(f"{where} has more than {MAX_POINTS} points; split it.")
        named = dict(zip(order, point.place, strict=True))
        zyx = (named["z"] / binning, named["y"] / binning, named["x"] / binning)
        if not all(math.isfinite(value) for value in (*zyx, *(point.rotation or ()))):
            raise Malformed(f"{where}, line {point.line}: its location or rotation is not finite; correct the file.")
        rotation, instance = point.rotation, point.instance_id
        if rotation is not None and order != "xyz":
            rotation = of_turned_axes(rotation, order)
        if options.kind is not None:
            _require_kind(point, where, options.kind)
            rotation = rotation if options.kind == "orientedPoint" else None
            instance = instance if options.kind == "instancePoint" else None
        yield Point(zyx, rotation, instance, point.line)


def _require_kind(point: FoundPoint, where: str, kind: PointKind) -> None:
    missing = {"orientedPoint": point.rotation is None, "instancePoint": point.instance_id is None}
    if missing.get(kind):
        what = "rotation" if kind == "orientedPoint" else "instance"
        raise Unsupported(
            f"{where}, line {point.line}: the point has no {what}, which an {kind} needs; read it as point."
        )


# The portal's own


def _ndjson(raw: bytes, where: str, _options: PointOptions) -> Iterator[FoundPoint]:
    for line, text in text_lines(raw, where, MAX_POINTS):
        if not text.strip():
            continue
        here = f"{where}, line {line}"
        item = _json_of_line(text, here)
        place = _location(item.get("location"), here)
        kind = item.get("type")
        if kind not in POINT_KINDS:
            raise Malformed(f"{here}: type is {shown(str(kind))}, expected one of {', '.join(POINT_KINDS)}.")
        rotation = _matrix(item.get("xyz_rotation_matrix"), 3, here) if kind == "orientedPoint" else None
        instance = _json_id(item.get("instance_id"), here) if kind == "instancePoint" else None
        yield FoundPoint(place, line, rotation, instance)


def _json_of_line(text: str, here: str) -> dict[str, Any]:
    item = parse_json(text.encode(), here)
    if not isinstance(item, dict):
        raise Malformed(f"{here}: {shown(text)} is no object of type and location.")
    return item


def _location(value: object, here: str) -> Xyz:
    if not isinstance(value, dict):
        raise Malformed(f"{here}: location is {shown(str(value))}, expected an object of x, y and z.")
    x, y, z = (_json_number(value.get(axis), f"location/{axis}", here) for axis in "xyz")
    return x, y, z


def _json_number(value: object, what: str, here: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise Malformed(f"{here}: {what} is {shown(str(value))}, expected a finite number.")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond what a float holds
        return False


def _json_id(value: object, here: str) -> int:
    number = _json_number(value, "instance_id", here)
    if not number.is_integer() or abs(number) > MAX_ID:
        raise Malformed(f"{here}: instance_id is {value}, expected a whole number.")
    return int(number)


def _matrix(value: object, side: int, here: str) -> Rotation:
    """The upper left 3 x 3 of a matrix of so many rows."""
    rows = value if isinstance(value, list) else []
    if len(rows) != side or not all(isinstance(row, list) and len(row) == side for row in rows):
        raise Malformed(f"{here}: the rotation is {shown(str(value))}, expected {side} rows of {side} numbers.")
    return rotation_of([_json_number(cell, "a cell of the rotation", here) for row in rows[:3] for cell in row[:3]])


# Tables


def _csv(raw: bytes, where: str, options: PointOptions) -> Iterator[FoundPoint]:
    return _from_rows(_rows(raw, where, options.delimiter or ","), where, options.columns or "xyz")


def _tsv(raw: bytes, where: str, options: PointOptions) -> Iterator[FoundPoint]:
    return _from_rows(_rows(raw, where, options.delimiter or "\t"), where, options.columns or "xyz")


def _csv_with_header(raw: bytes, where: str, options: PointOptions) -> Iterator[FoundPoint]:
    rows = _rows(raw, where, options.delimiter or ",")
    line, head = next(rows, (0, []))
    if not head:
        raise Malformed(f"{where} is empty, expected a line that names its columns.")
    if all(is_number(cell) for cell in head):
        raise Malformed(f"{where}, line {line}: {shown(','.join(head))} names no columns; read it as format csv.")
    named = "".join(head[:3]).lower()
    is_named = len(head) >= 3 and sorted(named) == ["x", "y", "z"]
    if is_named and options.columns not in (None, named):
        raise Mismatch(
            f"{where}, line {line}: the header names its columns {', '.join(head[:3])}, but columns is "
            f"{options.columns}; correct one of them."
        )
    return _from_rows(rows, where, options.columns or (named if is_named else "xyz"), len(head))


def _from_rows(
    rows: Iterator[tuple[int, list[str]]], where: str, columns: str, expected: int | None = None
) -> Iterator[FoundPoint]:
    """Points of the first three cells of each row; all rows are as long as the first, or as `expected`."""
    for line, cells in rows:
        expected = expected or len(cells)
        _require_width(cells, expected, 3, where, line)
        named = {axis: number_in(cell, axis, where, line) for axis, cell in zip(columns, cells[:3], strict=True)}
        yield FoundPoint((named["x"], named["y"], named["z"]), line)


def _tardis(raw: bytes, where: str, options: PointOptions) -> Iterator[FoundPoint]:
    """TARDIS writes `IDs,X [A],Y [A],Z [A]` and one point a line (https://github.com/SMLC-NYSBC/TARDIS)."""
    rows = _rows(raw, where, options.delimiter or ",")
    line, head = next(rows, (0, []))
    names = [cell.split("[")[0].strip().lower() for cell in head[:4]]
    if names != ["ids", "x", "y", "z"]:
        raise Malformed(f"{where}, line {line}: the columns are {shown(','.join(head))}, expected IDs, X, Y and Z.")
    for number, cells in rows:
        _require_width(cells, len(head), 4, where, number)
        x, y, z = (number_in(cell, axis, where, number) for axis, cell in zip("xyz", cells[1:4], strict=True))
        yield FoundPoint((x, y, z), number, instance_id=whole_number_in(cells[0], "IDs", where, number))


def _rows(raw: bytes, where: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank; one line each."""
    for line, text in text_lines(raw, where, MAX_POINTS):
        if not text.strip():
            continue
        if delimiter == " ":
            yield line, text.split()
            continue
        try:
            (cells,) = csv.reader([text], delimiter=delimiter, strict=True)
        except (csv.Error, ValueError) as error:
            raise Malformed(f"{where}, line {line}: not a row of a table ({error}).") from None
        yield line, [cell.strip() for cell in cells]


def _require_width(cells: list[str], expected: int, least: int, where: str, line: int) -> None:
    if len(cells) < least:
        raise Malformed(
            f"{where}, line {line}: {len(cells)} columns, expected at least {least}; look whether it is separated by "
            "another character (delimiter)."
        )
    if len(cells) != expected:
        raise Malformed(f"{where}, line {line}: {len(cells)} columns, where the lines before have {expected}.")


# Others


def _mod(raw: bytes, where: str, options: PointOptions) -> Iterator[FoundPoint]:
    wants_slices = options.kind == "orientedPoint"
    for number, point in enumerate(model_points(raw, where), 1):
        if (point.angles_xyz is not None) == wants_slices:
            rotation = None if point.angles_xyz is None else slicer_rotation(*point.angles_xyz)
            yield FoundPoint(point.xyz, number, rotation)


def _copick(raw: bytes, where: str, _options: PointOptions) -> Iterator[FoundPoint]:
    """Picks of copick (https://copick.github.io/copick): in angstrom, each with a 4 x 4 matrix and a number.

    The matrix's last column is a shift in angstrom, which is added. Its rotation is left out where the file says that
    it is not to be trusted.
    """
    document = parse_json(raw, where)
    points = document.get("points") if isinstance(document, dict) else None
    if not isinstance(points, list):
        raise Malformed(f"{where} has no list of points, expected the picks of copick.")
    if document.get("unit") != ANGSTROM:
        raise Unsupported(f"{where}: unit is {shown(str(document.get('unit')))}; accepted is {ANGSTROM}.")
    is_trusted = document.get("trust_orientation") is not False
    for number, item in enumerate(points, 1):
        here = f"{where}, point {number}"
        if not isinstance(item, dict):
            raise Malformed(f"{here}: {shown(str(item))} is no object with a location.")
        place, matrix = _location(item.get("location"), here), item.get("transformation_")
        rotation = None if matrix is None else _matrix(matrix, 4, here)
        if matrix is not None:
            x, y, z = (_json_number(row[3], "a shift", here) for row in matrix[:3])
            place = plus(place, (x, y, z))
        instance = item.get("instance_id")
        instance = None if instance is None else _json_id(instance, here)
        yield FoundPoint(place, number, rotation if is_trusted else None, instance)


def _particles(read: Callable[[bytes, str, str | None], Iterator[FoundPoint]]) -> _Reader:
    return lambda raw, where, options: read(raw, where, options.filter_value)


_READERS: dict[str, _Reader] = {
    "ndjson": _ndjson,
    "csv": _csv,
    "csv_with_header": _csv_with_header,
    "tsv": _tsv,
    "mod": _mod,
    "relion3_star": _particles(_star_particles.relion3),
    "relion4_star": _particles(_star_particles.relion4),
    "tomoman_relion_star": _particles(_star_particles.tomoman),
    "stopgap_star": _particles(_star_particles.stopgap),
    "copick": _copick,
    "tardis": _tardis,
}
