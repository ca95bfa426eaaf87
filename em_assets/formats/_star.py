"""STAR files as RELION, TOMOMAN and STOPGAP write them: tables of named columns. Nothing of CIF beyond that.

A block begins with `data_name`, a table in it with `loop_` and its columns (`_rlnCoordinateX #1`); a row is one line.
A line of a name and a value is a table of one row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from em_assets.errors import Malformed
from em_assets.formats._text_lines import text_lines

MAX_COLUMNS = 500
WORDS = re.compile(r"""'((?:[^']|'(?=\S))*)'(?=\s|$)|"((?:[^"]|"(?=\S))*)"(?=\s|$)|(\S+)""")


@dataclass
class StarTable:
    """One table. Names are without their underscore."""

    block: str
    """What follows `data_`."""
    line: int
    """On which it begins."""
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[int, list[str]]] = field(default_factory=list)
    """With the number of their line."""

    def places(self, names: Sequence[str], where: str) -> list[int]:
        """Of these columns. Raises Malformed naming those that are not there."""
        missing = [f"_{name}" for name in names if name not in self.columns]
        if missing:
            raise Malformed(
                f"{where}, line {self.line}: the table data_{self.block} has no column {', '.join(missing)}; look "
                "whether the file is of the format that is named."
            )
        return [self.columns.index(name) for name in names]


def star_tables(raw: bytes, where: str, max_lines: int) -> list[StarTable]:
    """Every table that has rows. Raises Malformed, naming the line."""
    tables: list[StarTable] = []
    reading = _Reading(where)
    for number, line in text_lines(raw, where, max_lines):
        tables += reading.take(number, line)
    tables += reading.end()
    return tables


class _Reading:
    """What is open: a block, and within it a loop or names with values."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._block: str | None = None
        self._loop: StarTable | None = None
        self._single: StarTable | None = None

    def take(self, number: int, line: str) -> Iterator[StarTable]:
        """Tables that this line ends."""
        text = line.strip()
        if not text or text.startswith("#"):
            return
        if text.startswith("data_"):
            yield from self.end()
            self._block = text[len("data_") :].split()[0] if text != "data_" else ""
            return
        if self._block is None:
            raise Malformed(f"{self._where}, line {number}: expected data_, with which a STAR file begins.")
        if text == "loop_":
            yield from self.end()
            self._loop = StarTable(self._block, number)
        elif text.startswith("_"):
            yield from self._name(number, text)
        else:
            self._row(number, text)

    def end(self) -> Iterator[StarTable]:
        for table in (self._loop, self._single):
            if table is not None and table.rows:
                yield table
        self._loop = self._single = None

    def _name(self, number: int, text: str) -> Iterator[StarTable]:
        name, *values = _words(text)
        name = name[1:]
        if self._loop is not None and self._loop.rows:
            yield from self.end()
        table = self._loop
        if table is None:
            if not values or values[0].startswith("#"):
                raise Malformed(f"{self._where}, line {number}: _{name[:60]} has no value, and no loop_ is open.")
            assert self._block is not None
            table = self._single = self._single or StarTable(self._block, number, rows=[(number, [])])
            table.rows[0][1].append(values[0])
        if name in table.columns or len(table.columns) == MAX_COLUMNS:
            what = (
                "is given twice" if name in table.columns else f"is column {MAX_COLUMNS + 1}, too many for such a file"
            )
            raise Malformed(f"{self._where}, line {number}: _{name[:60]} {what}.")
        table.columns.append(name)

    def _row(self, number: int, text: str) -> None:
        if self._loop is None or not self._loop.columns:
            raise Malformed(f"{self._where}, line {number}: a row of values, but no loop_ with columns is open.")
        words = _words(text)
        if len(words) != len(self._loop.columns):
            raise Malformed(
                f"{self._where}, line {number}: {len(words)} values, expected {len(self._loop.columns)}, one for each "
                f"column of data_{self._block}; it is damaged: get it again."
            )
        self._loop.rows.append((number, words))


def _words(text: str) -> list[str]:
    if "'" not in text and '"' not in text:
        return text.split()
    return [match[match.lastindex or 0] for match in WORDS.finditer(text)]
