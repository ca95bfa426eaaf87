"""Text files beside a tilt series: its angles, what the microscope noted, how it was aligned, its CTF.

Each has a function that gives typed rows; `leaves` gives all that a file says as (path, value), for the metadata.
Sections are counted from 0, as `z_index` of the portal; CTF programs count from 1, and their rows say so. A value that
a program did not give is None, never 0. Angles are degrees, lengths what the name says.
`_mdoc.py` reads SerialEM's notes, `_ctf_tables.py` what CTF programs write.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.formats._ctf_tables import CTF_FORMATS, CtfFormat, CtfRow, ctf
from em_assets.formats._mdoc import Mdoc, MdocSection, mdoc
from em_assets.formats._text_lines import number_in, shown, text_lines, whole_number_in
from em_assets.formats._tilt_lines import (
    MAX_LINES,
    Leaf,
    lines_of_words,
    numbers_in,
    pointer_token,
    require_some,
    scalar_of,
)

__all__ = [
    "CTF_FORMATS",
    "KINDS_BY_ENDING",
    "SAME_ANGLE_DEGREES",
    "TILT_KINDS",
    "Aln",
    "AlnRow",
    "CtfFormat",
    "CtfRow",
    "Mdoc",
    "MdocSection",
    "TiltKind",
    "XfRow",
    "aln",
    "ctf",
    "leaves",
    "mdoc",
    "sections_of_angles",
    "tilt_angles",
    "xf",
]

TiltKind = Literal["rawtlt", "tlt", "xtilt", "mdoc", "xf", "aln", "ctf"]
TILT_KINDS: tuple[TiltKind, ...] = get_args(TiltKind)
KINDS_BY_ENDING: dict[str, TiltKind] = {
    ".rawtlt": "rawtlt",
    ".tlt": "tlt",
    ".xtilt": "xtilt",
    ".tltx": "xtilt",
    ".mdoc": "mdoc",
    ".xf": "xf",
    ".aln": "aln",
}
"""CTF files have no ending of their own."""
MAX_ANGLE_DEGREES = 180.0
SAME_ANGLE_DEGREES = 0.1
"""As far as an angle of a list may be from that of its image's mdoc section, which has more digits."""


def leaves(raw: bytes, kind: TiltKind | str, where: str, *, ctf_format: CtfFormat | None = None) -> Iterator[Leaf]:
    """All that a file says, by JSON pointer: `/angle/0`, `/ZValue/3/TiltAngle`, `/section/0/tx`.

    Local rows of AreTomo are only counted. Of `ctf` files the format is to be named. Raises Unsupported for other kinds
    and formats, Malformed naming the line.
    """
    if kind in ("rawtlt", "tlt", "xtilt"):
        yield from ((f"/angle/{number}", angle) for number, angle in enumerate(tilt_angles(raw, where)))
    elif kind == "mdoc":
        yield from mdoc(raw, where).leaves()
    elif kind == "xf":
        yield from _rows_as_leaves(xf(raw, where))
    elif kind == "aln":
        yield from aln(raw, where).leaves()
    elif kind == "ctf":
        if ctf_format is None:
            raise Unsupported(f"{where}: of a CTF file its format is to be named: {', '.join(CTF_FORMATS)}.")
        yield from _rows_as_leaves(ctf(raw, ctf_format, where))
    else:
        raise Unsupported(f"{where}: {kind!r} is no kind of file that is read; accepted are {', '.join(TILT_KINDS)}.")


# Lists of angles


def tilt_angles(raw: bytes, where: str) -> list[float]:
    """One angle a line, in degrees, in the order of sections (`.rawtlt`, `.tlt`, `.xtilt`). Blank lines do not count.

    Raises Malformed, naming the line: several values, no number, beyond 180 degrees, no angle at all.
    """
    angles = []
    for line, words in lines_of_words(raw, where):
        if len(words) != 1:
            raise Malformed(f"{where}, line {line}: {len(words)} values, expected one tilt angle; correct the file.")
        angle = number_in(words[0], "the tilt angle", where, line)
        if abs(angle) > MAX_ANGLE_DEGREES:
            raise Malformed(
                f"{where}, line {line}: a tilt angle of {words[0]}, expected degrees from -180 to 180; correct it."
            )
        angles.append(angle)
    require_some(angles, "tilt angle", where)
    return angles


def sections_of_angles(
    angles: Sequence[float],
    notes: Mdoc,
    where: str,
    *,
    tolerance_degrees: float = SAME_ANGLE_DEGREES,
) -> list[MdocSection]:
    """For every angle of a list the mdoc section whose TiltAngle is nearest; sections may be left over.

    Raises Mismatch, naming both, if the nearest is further away than `tolerance_degrees`, if two are equally near, or
    if one section is the nearest of two angles. `where` names list and mdoc.
    """
    tilted = [(section, section.number("TiltAngle", where)) for section in notes.sections]
    known = sorted(((tilt, section) for section, tilt in tilted if tilt is not None), key=_tilt_of)
    taken: dict[int, float] = {}
    paired = []
    for number, angle in enumerate(angles):
        section = _nearest(angle, f"{where}: tilt angle {angle:g} (number {number})", known, tolerance_degrees)
        if section.z_value in taken:
            raise Mismatch(
                f"{where}: the tilt angles {taken[section.z_value]:g} and {angle:g} are both nearest to section "
                f"{section.z_value} of the mdoc ({section.values['TiltAngle']}); look whether the two files are of one "
                "series."
            )
        taken[section.z_value] = angle
        paired.append(section)
    return paired


def _nearest(angle: float, what: str, known: list[tuple[float, MdocSection]], within: float) -> MdocSection:
    at = bisect_left(known, angle, key=_tilt_of)
    near = sorted(known[max(0, at - 2) : at + 2], key=lambda item: abs(item[0] - angle))[:2]
    if not near or abs(near[0][0] - angle) > within:
        nearest = f"{near[0][0]:g} of section {near[0][1].z_value}" if near else "none"
        raise Mismatch(
            f"{what} fits no section of the mdoc within {within:g} degrees, the nearest is {nearest}; look whether the "
            "two files are of one series."
        )
    if len(near) == 2 and abs(near[0][0] - angle) == abs(near[1][0] - angle):
        raise Mismatch(
            f"{what} is as near to section {near[0][1].z_value} as to section {near[1][1].z_value} of the mdoc "
            f"({near[0][0]:g} and {near[1][0]:g}); say by hand which it is."
        )
    return near[0][1]


def _tilt_of(item: tuple[float, MdocSection]) -> float:
    return item[0]


# Alignments


@dataclass(frozen=True, slots=True)
class XfRow:
    """One section's transform of IMOD: x' = a11 x + a12 y + dx, y' = a21 x + a22 y + dy, about the image's centre.

    As https://bio3d.colorado.edu/imod/doc/man/newstack.html applies it.
    """

    a11: float
    a12: float
    a21: float
    a22: float
    dx_pixels: float
    dy_pixels: float


def xf(raw: bytes, where: str) -> list[XfRow]:
    """One row for each section. Raises Malformed, naming the line, if one has not six numbers."""
    rows = []
    for line, words in lines_of_words(raw, where):
        if len(words) != 6:
            raise Malformed(f"{where}, line {line}: {len(words)} values, expected six (a11 a12 a21 a22 dx dy).")
        rows.append(XfRow(*(number_in(word, "a value", where, line) for word in words)))
    require_some(rows, "transform", where)
    return rows


@dataclass(frozen=True, slots=True)
class AlnRow:
    """One section of a global alignment of AreTomo, in its own names."""

    sec: int
    """Of the raw series, from 0."""
    rot: float
    """Of the tilt axis, degrees."""
    gmag: float
    tx: float
    """Shift in pixels of the raw image."""
    ty: float
    smean: float
    sfit: float
    scale: float
    base: float
    tilt: float


@dataclass(frozen=True, slots=True)
class Aln:
    """An alignment of AreTomo (https://github.com/czimaginginstitute/AreTomo3)."""

    values: Mapping[str, str]
    """`# RawSize = 10 20 3` and its like, as written."""
    sections: tuple[AlnRow, ...]
    dark_frames: tuple[tuple[float, ...], ...]
    """`# DarkFrame = 3 4 -57.0`: images that were left out."""
    local: tuple[tuple[float, ...], ...]
    """Rows below `# Local Alignment`, one for each patch and section."""

    @property
    def raw_size_xyz(self) -> tuple[int, int, int] | None:
        words = self.values.get("RawSize", "").split()
        if len(words) != 3 or not all(word.isdecimal() and len(word) < 10 for word in words):
            return None
        return int(words[0]), int(words[1]), int(words[2])

    def leaves(self) -> Iterator[Leaf]:
        yield from ((f"/{pointer_token(key)}", scalar_of(text)) for key, text in self.values.items())
        for number, frame in enumerate(self.dark_frames):
            yield f"/DarkFrame/{number}", " ".join(f"{value:g}" for value in frame)
        yield from _rows_as_leaves(self.sections)
        if self.local:
            yield "/local_rows", len(self.local)


ALN_COLUMNS = ("SEC", "ROT", "GMAG", "TX", "TY", "SMEAN", "SFIT", "SCALE", "BASE", "TILT")


def aln(raw: bytes, where: str) -> Aln:
    """Raises Malformed, naming the line: other columns than AreTomo's, no number, no section."""
    values: dict[str, str] = {}
    sections: list[AlnRow] = []
    dark: list[tuple[float, ...]] = []
    local: list[tuple[float, ...]] = []
    is_local = False
    for line, text in text_lines(raw, where, MAX_LINES):
        words = text.split()
        if not words:
            continue
        if not words[0].startswith("#"):
            numbers = numbers_in(words, where, line)
            if is_local:
                local.append(numbers)
            else:
                sections.append(_aln_row(words, numbers, where, line))
            continue
        comment = text.strip().removeprefix("#").strip()
        key, _, value = (part.strip() for part in comment.partition("="))
        is_local = is_local or comment.startswith("Local Alignment")
        if comment.split()[:1] == ["SEC"] and tuple(comment.split()) != ALN_COLUMNS:
            raise Malformed(
                f"{where}, line {line}: the columns are {shown(comment)}, expected {' '.join(ALN_COLUMNS)}."
            )
        if key == "DarkFrame":
            dark.append(numbers_in(value.split(), where, line))
        elif "=" in comment:
            values[key] = value
    require_some(sections, "section", where)
    return Aln(values, tuple(sections), tuple(dark), tuple(local))


def _aln_row(words: list[str], numbers: tuple[float, ...], where: str, line: int) -> AlnRow:
    if len(numbers) != len(ALN_COLUMNS):
        raise Malformed(f"{where}, line {line}: {len(numbers)} values, expected {len(ALN_COLUMNS)}: one a column.")
    return AlnRow(whole_number_in(words[0], "SEC", where, line), *numbers[1:])


def _rows_as_leaves(rows: Sequence[XfRow | AlnRow | CtfRow]) -> Iterator[Leaf]:
    for number, row in enumerate(rows):
        yield from ((f"/section/{number}/{name}", value) for name, value in asdict(row).items())
