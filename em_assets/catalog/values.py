"""What publishers write, in the form that the catalogue compares: ISO dates, SPDX licences, numpy's types, SI numbers.

Each function gives None for what it does not understand. Nothing is guessed: a date that can be read two ways is both.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, timedelta

from em_assets.formats.reader import Scalar

TYPES = {
    # EMPIAR's voxel types, as words and as the codes of its schema
    "unsigned byte": "uint8",
    "signed byte": "int8",
    "unsigned 16 bit integer": "uint16",
    "signed 16 bit integer": "int16",
    "unsigned 32 bit integer": "uint32",
    "signed 32 bit integer": "int32",
    "32 bit float": "float32",
    "t1": "uint8",
    "t2": "int8",
    "t3": "uint16",
    "t4": "int16",
    "t5": "uint32",
    "t6": "int32",
    "t7": "float32",
    # OME's
    "float": "float32",
    "double": "float64",
}
NUMPY_TYPE = re.compile(r"[<>|=]?(?:(u?int)(8|16|32|64)|(float)(16|32|64)|([iu])([1248])|(f)([248]))")
KINDS = {"i": "int", "u": "uint", "f": "float"}
"""By the letter in numpy's codes, which count bytes; names count bits."""
LICENCES = {
    "cc by 4.0": "CC-BY-4.0",
    "cc-by 4.0": "CC-BY-4.0",
    "cc by": "CC-BY-4.0",
    "creative commons attribution 4.0 international": "CC-BY-4.0",
    "https://creativecommons.org/licenses/by/4.0/": "CC-BY-4.0",
    "cc by-nc 4.0": "CC-BY-NC-4.0",
    "cc by-sa 4.0": "CC-BY-SA-4.0",
    "cc by-nc-sa 4.0": "CC-BY-NC-SA-4.0",
    "cc by 3.0": "CC-BY-3.0",
    "cc0": "CC0-1.0",
    "cc0 1.0": "CC0-1.0",
    "https://creativecommons.org/publicdomain/zero/1.0/": "CC0-1.0",
}
COMMERCIAL = re.compile(r"^(CC0-1\.0|CC-BY(-SA)?-[0-9.]+|ODC-By-1\.0|PDDL-1\.0|MIT|Apache-2\.0|BSD-[23]-Clause)$")
NOT_COMMERCIAL = re.compile(r"(^|-)(NC|non-commercial|noncommercial)(-|$)", re.IGNORECASE)
MODALITIES = {
    "sbf-sem": "SBF-SEM",
    "sbem": "SBF-SEM",
    "serial block face sem": "SBF-SEM",
    "fib-sem": "FIB-SEM",
    "fib sem": "FIB-SEM",
    "sstem": "ssTEM",
    "ssem": "ssSEM",
    "cryo-et": "cryo-ET",
}
SIZES = {"b": 1, "bytes": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
NUMERIC_DATE = re.compile(r"(\d{1,2})[./-](\d{1,2})[./-](\d{4})")
WRITTEN_DATE = re.compile(r"(?:[A-Za-z]{3,9},? )?([A-Za-z]{3})[a-z]* +(\d{1,2}),?(?: \d{2}:\d{2}(?::\d{2})?)? (\d{4})")
FILETIME_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)


def number(value: Scalar) -> float | None:
    """A finite number, also where it is given as text."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def count(value: Scalar) -> float | None:
    """A positive whole number, also where it is given as text."""
    found = number(value)
    return found if found is not None and found > 0 and found == int(found) else None


def shape(text: Scalar) -> tuple[float, float, float] | None:
    """`1065x2048x1536`, `(10384, 10080, 1669.44) (x, y, z)`: the three numbers, in the order given."""
    if not isinstance(text, str):
        return None
    found = re.findall(r"\d+(?:\.\d+)?", text)
    return (float(found[0]), float(found[1]), float(found[2])) if len(found) == 3 else None


def quantity(text: Scalar) -> tuple[float, str] | None:
    """`200 eV` as number and unit."""
    match = (
        re.fullmatch(r"\s*([-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s*([^\d\s.]\S*)\s*", text) if isinstance(text, str) else None
    )
    value = number(match[1]) if match else None
    return (value, match[2]) if match and value is not None else None


def size_bytes(text: Scalar) -> float | None:
    """`1.2 GB` in bytes; a publisher's GB is taken for 10^9."""
    found = quantity(text)
    if found is None:
        return number(text)
    factor = SIZES.get(found[1].lower())
    return None if factor is None else found[0] * factor


def dtype(text: Scalar) -> str | None:
    """Numpy's name: `UNSIGNED BYTE`, `<i2`, `uint8`, `|u1`."""
    if not isinstance(text, str):
        return None
    known = TYPES.get(text.strip().lower())
    match = NUMPY_TYPE.fullmatch(text.strip().lower())
    if known is not None or match is None:
        return known
    kind, size = (part for part in match.groups() if part is not None)
    return f"{KINDS[kind]}{int(size) * 8}" if kind in KINDS else f"{kind}{size}"


def licence(text: Scalar) -> str | None:
    """SPDX where it is known; else the text as it is."""
    if not isinstance(text, str) or not text.strip():
        return None
    return LICENCES.get(" ".join(text.lower().split()), text.strip())


def allows_commercial_use(spdx: str | None) -> bool | None:
    """Whether a licence allows it; None where that is not known."""
    if spdx is None:
        return None
    if NOT_COMMERCIAL.search(spdx):
        return False
    return True if COMMERCIAL.match(spdx) else None


def modality(text: Scalar) -> str | None:
    if not isinstance(text, str) or not text.strip():
        return None
    return MODALITIES.get(" ".join(text.lower().split()), text.strip())


def doi(text: Scalar) -> str | None:
    """Bare: 10.6019/EMPIAR-11759, without what ends the sentence or the brackets around it."""
    found = re.search(r"10\.\d{4,9}/[^\s\"'<>]*[^\s\"'<>.,;)]", text) if isinstance(text, str) else None
    return found[0] if found else None


def dates(text: Scalar) -> tuple[date, ...]:
    """The days that a text can mean: none if it is no date, two where day and month could be swapped."""
    if not isinstance(text, str):
        return ()
    plain = " ".join(text.split())
    try:
        return (date.fromisoformat(plain[:10]),)
    except ValueError:
        pass
    if match := WRITTEN_DATE.search(plain):
        month = match[1].lower()
        return _day(int(match[3]), MONTHS.index(month) + 1, int(match[2])) if month in MONTHS else ()
    if match := NUMERIC_DATE.search(plain):
        first, second, year = int(match[1]), int(match[2]), int(match[3])
        return tuple(dict.fromkeys((*_day(year, second, first), *_day(year, first, second))))  # day first, then month
    return ()


def filetime(value: Scalar) -> datetime | None:
    """Windows' 100 ns since 1601, in UTC. Its digits beyond the 53rd bit are lost where a file holds it as a float."""
    ticks = number(value)
    try:
        return FILETIME_EPOCH + timedelta(microseconds=ticks / 10) if ticks else None
    except OverflowError:
        return None


def _day(year: int, month: int, day: int) -> tuple[date, ...]:
    try:
        return (date(year, month, day),)
    except ValueError:
        return ()
