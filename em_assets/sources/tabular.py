"""The IDR's study files and tables from outside as (path, value), read strictly and within limits.

Values are text, whatever they look like; nothing of a line is left out but blanks. `markup.py` reads XML and pages.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator

from em_assets.errors import Malformed
from em_assets.formats.reader import Scalar

MAX_LINES = 100_000
MAX_CELLS = 500_000
MAX_NAME_CHARACTERS = 1_000
"""Of a key or a column."""
KEY = re.compile(r"[A-Z]\w*(?: [A-Z]\w*)*(?: ?\[[^\]]*\])?")
"""How study files write keys: `Study Title`, `Comment[IDR Experiment Name]`."""
SECTION = "Experiment Number"
"""The key with which a study file begins to speak of its next experiment."""

Leaf = tuple[str, Scalar]


def study_leaves(raw: bytes, where: str) -> list[Leaf]:
    """Every value of an IDR study file by its key and column: `/Study Title/0`, `/experiment/4/Protocol Name/2`.

    Lines are a key and its values, tab separated; `#` begins a comment. What follows an `Experiment Number` is about
    that experiment. A key without values is None, one that occurs again in its section has its number: `[2]`.
    Raises Malformed: not UTF-8, no key with a value, too many lines or values, a key that is too long.
    """
    leaves: list[Leaf] = []
    section, sections, seen = "", Counter[str](), Counter[str]()
    for number, (name, *cells) in _records(raw, where):
        if name == SECTION:
            title = next((cell for cell in cells if cell), "without a number")
            section, seen = f"/experiment/{_numbered(_token(title, where, number), sections)}", Counter()
        key = f"{section}/{_numbered(_token(name, where, number), seen)}"
        values = [(f"{key}/{column}", cell) for column, cell in enumerate(cells) if cell]
        leaves += values or [(f"{key}/0", None)]
        _require_few(len(leaves), where, number)
    if not any(value for key, value in leaves if not key.startswith("/line ")):
        raise Malformed(f"{where} has no line of a key, a tab and a value, expected an IDR study file.")
    return leaves


def _records(raw: bytes, where: str) -> Iterator[tuple[int, list[str]]]:
    """A key and its values, with the number of their line.

    In idr0086 two values have a line break in them. A line that does not begin with a key goes on where the one
    before it ended; behind a comment, where there is nothing to go on with, it is called by its number.
    """
    open_record: tuple[int, list[str]] | None = None
    for number, line in _lines(raw, where):
        cells = [cell.strip() for cell in line.split("\t")]
        if not any(cells):
            continue
        is_comment, is_key = cells[0].startswith("#"), KEY.fullmatch(cells[0]) is not None
        if open_record is not None and not is_comment and not is_key:
            record = open_record[1]
            record[-1:] = [f"{record[-1]}\n{cells[0]}".strip(), *cells[1:]]
            continue
        if open_record is not None:
            yield open_record
        open_record = None if is_comment else (number, cells if is_key else [f"line {number}", *cells])
    if open_record is not None:
        yield open_record


def table_leaves(raw: bytes, where: str) -> Iterator[Leaf]:
    """Every cell of a table that is not blank, by row (from 0) and column: `/rows/0/Image Name`.

    The first line names the columns (a table without such a line is kept as text); a tab in it makes them tab
    separated. A name that occurs again has its number, `[2]`, and a column without one is called `column 3`. Blank
    rows are not counted. Raises Malformed, naming the line: not UTF-8, quotes that do not close, too many lines or
    cells, a name that is too long.
    """
    rows = _rows(_decoded(raw, where), where)
    seen = Counter[str]()
    line, head = next(rows, (0, None))
    if head is None:
        raise Malformed(f"{where} is empty, expected a table whose first line names its columns.")
    columns = [_column(name, place, seen, where, line) for place, name in enumerate(head, 1)]
    values = 0
    for row, (line, cells) in enumerate(rows):
        values += len(cells)
        _require_few(values, where, line)
        columns += [_column("", place, seen, where, line) for place in range(len(columns) + 1, len(cells) + 1)]
        for name, cell in zip(columns, cells, strict=False):  # a row may be shorter than the first
            if cell:
                yield f"/rows/{row}/{name}", cell


def _column(name: str, place: int, seen: Counter[str], where: str, line: int) -> str:
    return _numbered(_token(name or f"column {place}", where, line), seen)


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Malformed(f"{where}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}).") from None


def _lines(raw: bytes, where: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_decoded(raw, where).split("\n"), 1):
        if number > MAX_LINES:
            raise Malformed(f"{where} has more than {MAX_LINES} lines, which no such document needs.")
        yield number, line


def _rows(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the number of its last line: a quoted cell may have several."""
    head = text.lstrip("\r\n").split("\n", 1)[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in head else ",", strict=True)
    try:
        for row in rows:
            if rows.line_num > MAX_LINES:
                raise Malformed(f"{where} has more than {MAX_LINES} lines, which no such document needs.")
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield rows.line_num, cells
    except csv.Error as error:
        raise Malformed(f"{where}, line {rows.line_num}: not a table ({error}).") from None


def _require_few(cells: int, where: str, line: int) -> None:
    if cells > MAX_CELLS:
        raise Malformed(f"{where}, line {line}: more than {MAX_CELLS} values, which no such document needs.")


def _token(name: str, where: str, line: int) -> str:
    """A name as a JSON pointer has it (RFC 6901)."""
    if len(name) > MAX_NAME_CHARACTERS:
        raise Malformed(f"{where}, line {line}: a name of more than {MAX_NAME_CHARACTERS} characters, {name[:80]!r}...")
    return name.replace("~", "~0").replace("/", "~1")


def _numbered(name: str, seen: Counter[str]) -> str:
    """The name, with its number from the second time on."""
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}[{seen[name]}]"
