"""What programs found of each image's contrast transfer function: CTFFIND, Gctf, IMOD, AreTomo3."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from em_assets.errors import Malformed, Unsupported
from em_assets.formats._text_lines import number_in, whole_number_in
from em_assets.formats._tilt_lines import lines_of_words, numbers_in, require_some

CtfFormat = Literal["CTFFIND", "Gctf", "IMOD", "AreTomo3"]
CTF_FORMATS: tuple[CtfFormat, ...] = get_args(CtfFormat)
MAX_PHASE_RADIANS = 2 * math.pi


@dataclass(frozen=True, slots=True)
class CtfRow:
    """The contrast transfer function of one image."""

    section: int
    """From 1, as the file counts."""
    last_section: int
    """IMOD fits several images at once; else the same."""
    defocus_1_angstrom: float
    defocus_2_angstrom: float
    azimuth_degrees: float | None
    """None if the two are fitted as one."""
    phase_shift_radians: float | None
    cross_correlation: float | None
    resolution_angstrom: float | None
    """Up to which the fit is good; also None where the program says that it has none (inf)."""


def ctf(raw: bytes, format: CtfFormat | str, where: str) -> list[CtfRow]:  # noqa: A002  # the portal's key
    """The rows of a CTF file, by format as the portal names it (in any case).

    CTFFIND and AreTomo3: number, defocus 1 and 2, azimuth, phase shift in radians, correlation, resolution, and
    columns of later versions that are not read (https://grigoriefflab.umassmed.edu/ctffind4). Gctf: the same with
    or without a phase shift. IMOD: `.defocus` files (`https://bio3d.colorado.edu/imod/doc/man/ctfphaseflip.html`).
    Raises Unsupported for another format, Malformed naming the line.
    """
    reader = {name.lower(): reader for name, reader in _CTF_READERS.items()}.get(format.lower())
    if reader is None:
        raise Unsupported(f"{where}: CTF files of {format!r} are not read; accepted are {', '.join(CTF_FORMATS)}.")
    rows = reader(raw, where)
    require_some(rows, "row", where)
    return rows


def _ctffind(raw: bytes, where: str) -> list[CtfRow]:
    rows = []
    for line, words in lines_of_words(raw, where, comments="#"):
        if not 7 <= len(words) <= 12:
            raise Malformed(f"{where}, line {line}: {len(words)} columns, expected the seven of CTFFIND or some more.")
        rows.append(_ctf_row(words[:4], words[4], words[5:7], where, line))
    return rows


def _gctf(raw: bytes, where: str) -> list[CtfRow]:
    """Gctf itself counts phase shifts in degrees, the portal takes those of such a table for radians.

    A value beyond 2 pi tells that it is not in radians, and is refused.
    """
    rows = []
    for line, words in lines_of_words(raw, where, comments="#;%"):
        if len(words) not in (6, 7):
            raise Malformed(f"{where}, line {line}: {len(words)} columns, expected six, or seven with a phase shift.")
        row = _ctf_row(words[:4], words[4] if len(words) == 7 else None, words[-2:], where, line)
        if abs(row.phase_shift_radians or 0) > MAX_PHASE_RADIANS:
            raise Malformed(f"{where}, line {line}: a phase shift of {words[4]}, more than 2 pi; give it in radians.")
        rows.append(row)
    return rows


def _ctf_row(first: list[str], phase: str | None, last: list[str], where: str, line: int) -> CtfRow:
    section = _section(first[0], where, line)
    low, high, azimuth = (number_in(word, "a defocus or azimuth", where, line) for word in first[1:])
    shift = None if phase is None else number_in(phase, "the phase shift", where, line)
    correlation, resolution = (_number_or_none(word, where, line) for word in last)
    return CtfRow(section, section, low, high, azimuth, shift, correlation, resolution)


IMOD_ASTIGMATISM, IMOD_AZIMUTH_IN_RADIANS, IMOD_PHASE, IMOD_PHASE_IN_RADIANS, IMOD_CUT_ON = 1, 2, 4, 8, 32
"""Flags in the first line of a defocus file of version 3: which columns follow and in which unit."""
ANGSTROM_PER_NM = 10.0


def _imod_defocus(raw: bytes, where: str) -> list[CtfRow]:
    lines = list(lines_of_words(raw, where))
    flags, data = _imod_flags(lines, where)
    has_two, has_phase = bool(flags & IMOD_ASTIGMATISM), bool(flags & IMOD_PHASE)
    columns = 5 + 2 * has_two + has_phase + bool(flags & IMOD_CUT_ON)
    rows = []
    for place, (line, words) in enumerate(data):
        has_version = data is lines and place == 0 and len(words) == columns + 1  # before version 3
        if len(words) != columns + has_version:
            raise Malformed(f"{where}, line {line}: {len(words)} columns, expected {columns} (flags {flags}).")
        rows.append(_imod_row(words, flags, where, line))
    return rows


def _imod_flags(lines: list[tuple[int, list[str]]], where: str) -> tuple[int, list[tuple[int, list[str]]]]:
    """Flags, and the lines after the one that has them; 0 and all lines where none has."""
    if not lines:
        return 0, lines
    line, words = lines[0]
    numbers = numbers_in(words, where, line)
    if len(numbers) != 6 or any(numbers[1:5]):
        return 0, lines
    return whole_number_in(words[0], "the flags", where, line), lines[1:]


def _imod_row(words: list[str], flags: int, where: str, line: int) -> CtfRow:
    first, last = _section(words[0], where, line), _section(words[1], where, line)
    if last < first:
        raise Malformed(f"{where}, line {line}: views {first} to {last}; correct the file.")
    numbers = numbers_in(words, where, line)
    low = high = numbers[4] * ANGSTROM_PER_NM
    azimuth = phase = None
    at = 5
    if flags & IMOD_ASTIGMATISM:
        high, azimuth, at = numbers[5] * ANGSTROM_PER_NM, numbers[6], 7
        azimuth = math.degrees(azimuth) if flags & IMOD_AZIMUTH_IN_RADIANS else azimuth
    if flags & IMOD_PHASE:
        phase = numbers[at] if flags & IMOD_PHASE_IN_RADIANS else math.radians(numbers[at])
    return CtfRow(first, last, low, high, azimuth, phase, None, None)


def _section(word: str, where: str, line: int) -> int:
    section = whole_number_in(word, "the image's number", where, line)
    if section < 1:
        raise Malformed(
            f"{where}, line {line}: image {section}, but images are counted from 1 (IMOD before 4.1 wrote 0 for the "
            "first); number them anew."
        )
    return section


_CTF_READERS: dict[CtfFormat, Callable[[bytes, str], list[CtfRow]]] = {
    "CTFFIND": _ctffind,
    "Gctf": _gctf,
    "IMOD": _imod_defocus,
    "AreTomo3": _ctffind,
}


def _number_or_none(word: str, where: str, line: int) -> float | None:
    """None for `inf` and `nan`, which CTFFIND writes where nothing could be fitted."""
    if word.lower().lstrip("+-") in ("inf", "infinity", "nan"):
        return None
    return number_in(word, "a value", where, line)
