"""An answer of the catalogue as text: aligned for a person, CSV or JSON for a program."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal

from em_assets.catalog.query import Table

Format = Literal["table", "csv", "json"]
NUMBERS = re.compile(r"^(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL.*)$")
NARROWEST = 8
"""Folding text narrower than this helps nobody: the rows are shown one below the other instead."""
GAP = 2


def render(table: Table, *, format: Format = "table", width: int | None = None) -> str:  # noqa: A002 - the flag's name
    """The answer as text that ends with a newline.

    `table` is aligned for a terminal `width` characters wide (None: as wide as it gets, nothing is folded), each row
    on its own lines where the columns do not fit. `csv` and `json` hold every value exactly; an empty value is an
    empty field or null.
    """
    if format == "csv":
        return _csv(table)
    if format == "json":
        return _json(table)
    if not table.columns:
        return ""
    cells = [[_cell(value) for value in row] for row in table.rows]
    if width is not None and _narrowest_width(table, cells) > width:
        return _rows_apart(table, cells, width)
    return _aligned(table, cells, width)


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if table.columns:
        writer.writerow(table.columns)
    writer.writerows([_field(value) for value in row] for row in table.rows)
    return text.getvalue()


def _field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple | dict):
        return json.dumps(_plain(value), ensure_ascii=False)
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _json(table: Table) -> str:
    names = _distinct(table.columns)
    rows = [
        {name: _json_value(value, kind) for name, kind, value in zip(names, table.types, row, strict=True)}
        for row in table.rows
    ]
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def _json_value(value: Any, kind: str) -> Any:
    return json.loads(value) if kind == "JSON" and isinstance(value, str) else _plain(value)


def _distinct(names: tuple[str, ...]) -> list[str]:
    """`a, a` as `a, a_2`: an object cannot have a key twice."""
    found: list[str] = []
    for name in names:
        number, candidate = 2, name
        while candidate in found:
            candidate, number = f"{name}_{number}", number + 1
        found.append(candidate)
    return found


def _plain(value: Any) -> Any:
    """A value of DuckDB's as JSON has it; times in ISO 8601, what JSON cannot say as text."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bool | int | str | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _as_text(value)


def _as_text(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)


def _cell(value: Any) -> str:
    """A value on one line, without control characters: what a publisher wrote must not steer the terminal."""
    if value is None:
        return ""
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, list | tuple):
        text = " ".join(_cell(item) for item in value)
    elif isinstance(value, datetime | timedelta):
        text = str(value)
    else:
        text = _field(value)
    return "".join(" " if c in "\r\n\t" else c for c in text if c in "\r\n\t" or unicodedata.category(c) != "Cc")


def _is_number(kind: str) -> bool:
    return NUMBERS.match(kind) is not None


def _narrowest_width(table: Table, cells: list[list[str]]) -> int:
    """The least width at which a table is still pleasant: no word broken, no number folded."""
    total = 0
    for index, (name, kind) in enumerate(zip(table.columns, table.types, strict=True)):
        longest = _longest(name, cells, index)
        word = max((len(word) for row in cells for word in row[index].split()), default=0)
        total += longest if _is_number(kind) else min(longest, max(NARROWEST, len(name), word))
    return total + GAP * (len(table.columns) - 1)


def _longest(name: str, cells: list[list[str]], index: int) -> int:
    return max([len(name), *(len(row[index]) for row in cells)])


def _aligned(table: Table, cells: list[list[str]], width: int | None) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), collapse_padding=True)
    for name, kind in zip(table.columns, table.types, strict=True):
        number = _is_number(kind)
        grid.add_column(Text(name), justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in cells:
        grid.add_row(*map(Text, row))
    text = io.StringIO()
    # a character takes at most two places
    unlimited = sum(GAP + 2 * _longest(name, cells, i) for i, name in enumerate(table.columns))
    Console(file=text, width=width or unlimited, color_system=None, legacy_windows=False).print(grid)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _rows_apart(table: Table, cells: list[list[str]], width: int) -> str:
    """Each row as `column  value` lines, empty values left out, a blank line between rows."""
    import textwrap

    if not cells:
        return "no rows\n"
    indent = max(map(len, table.columns)) + GAP

    def lines(row: list[str]) -> Iterator[str]:
        for name, value in zip(table.columns, row, strict=True):
            if value:
                wrapped = textwrap.wrap(value, max(width - indent, 20)) or [""]
                yield f"{name:<{indent}}{wrapped[0]}"
                yield from (" " * indent + more for more in wrapped[1:])

    return "\n".join("".join(line + "\n" for line in lines(row)) for row in cells)
