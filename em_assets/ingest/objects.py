"""Lists of what somebody found in a run: `identified_objects.csv` as the portal's JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass

from em_assets.errors import Malformed

RUN_COLUMNS = ("run_name", "run_identifier")
"""Says of which run a row is; the portal's configs and its code call it differently."""
REQUIRED = ("object_id", "object_name")
MAX_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class IdentifiedObjects:
    """The rows of one run."""

    columns: tuple[str, ...]
    """Without the run's."""
    rows: tuple[dict[str, str | None], ...]

    def as_json(self) -> bytes:
        return json.dumps(self.rows, indent=4, ensure_ascii=False).encode() + b"\n"


def read_objects(raw: bytes, run: str, where: str) -> IdentifiedObjects:
    """The rows of `run`; all rows of a table that does not say of which run each is. Empty cells are null.

    Raises Malformed naming the line: not UTF-8, no table, a row of another length, a column that is missing.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Malformed(f"{where}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save it as UTF-8.") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head = [cell.strip() for cell in next(reader, [])]
        _check_head(head, where)
        rows: list[dict[str, str | None]] = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(head):
                raise Malformed(
                    f"{where}, line {reader.line_num}: {len(cells)} cells, expected {len(head)}: {', '.join(head)}; "
                    "correct it."
                )
            if len(rows) == MAX_ROWS:
                raise Malformed(f"{where} has more than {MAX_ROWS} rows; divide it.")
            rows.append(dict(zip(head, (cell.strip() or None for cell in cells), strict=True)))
    except csv.Error as error:
        raise Malformed(f"{where}, line {reader.line_num}: not a row of a table ({error}); correct it.") from None
    of_run = next((name for name in RUN_COLUMNS if name in head), None)
    kept = [row for row in rows if of_run is None or row[of_run] == run]
    columns = tuple(name for name in head if name != of_run)
    return IdentifiedObjects(columns, tuple({name: row[name] for name in columns} for row in kept))


def _check_head(head: list[str], where: str) -> None:
    missing = [name for name in REQUIRED if name not in head]
    if missing or len(set(head)) != len(head):
        expected = f"{', '.join(REQUIRED)} among them, each once"
        raise Malformed(f"{where}, line 1: the columns are {', '.join(head)[:200] or 'none'}, expected {expected}.")
