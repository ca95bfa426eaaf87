"""The tables of runs beside the raw files: their columns are template variables of each run.

`run_data_map_file` is a CSV, or a TSV if its name ends so, with a header and a column `run_name`. The three older maps
are CSV of two columns without a header: run, and the name that `{mapped_tomo_name}`, `{mapped_frame_name}` or
`{mapped_ts_name}` stands for.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from em_assets.ingest.config import IngestConfig
from em_assets.ingest.templates import NAME
from em_assets.ingest.yaml_lines import Problem
from em_assets.store import Store

MAX_MAP_BYTES = 64 * 2**20
RUN_NAME = "run_name"
Rows = list[tuple[int, list[str]]]
"""(line, cells)."""


@dataclass(frozen=True)
class RunMaps:
    """All the tables of a config together."""

    files: tuple[str, ...]
    columns: frozenset[str]
    """Of all tables, without `run_name`."""
    variables: Mapping[str, Mapping[str, str]]
    """By run, then by column."""
    problems: tuple[Problem, ...]

    def of(self, run: str) -> Mapping[str, str]:
        return self.variables.get(run, {})


def read_run_maps(config: IngestConfig, source: Store) -> RunMaps:
    """Of every table that the config names; what is wrong with them is in `problems`. Raises Unavailable."""
    maps = config.maps
    older = {"tomo": maps.tomo, "frame": maps.frame, "ts": maps.ts}
    tables = [(f"run_to_{name}_map_csv", path, f"mapped_{name}_name") for name, path in older.items() if path]
    if maps.run_data:
        tables.append(("run_data_map_file", maps.run_data, ""))
    reader = _Reader(config, source)
    for key, path, column in tables:
        reader.read(f"standardization_config.{key}", path, column)
    return RunMaps(
        tuple(path for _, path, _ in tables),
        frozenset(reader.columns),
        MappingProxyType({run: MappingProxyType(row) for run, row in reader.variables.items()}),
        tuple(reader.problems),
    )


class _Reader:
    def __init__(self, config: IngestConfig, source: Store) -> None:
        self.config, self.source = config, source
        self.columns: set[str] = set()
        self.variables: dict[str, dict[str, str]] = {}
        self.problems: list[Problem] = []

    def read(self, key: str, path: str, column: str) -> None:
        """`column` is what the second cell of an older map is called; "" for a table with a header."""
        text = self._text(key, path)
        if text is None:
            return
        delimiter = "\t" if path.endswith("tsv") else ","
        try:
            rows = list(_rows(text, delimiter))
        except csv.Error as error:
            self.problems.append(self.config.problem(key, f"{path} is no table ({error}); correct it."))
            return
        names = [RUN_NAME, column] if column else self._header(path, rows)
        if names:
            self.columns.update(name for name in names if name != RUN_NAME)
            self._take(path, names, rows if column else rows[1:])

    def _text(self, key: str, path: str) -> str | None:
        place = "/".join(part for part in (*self.config.source_prefix.split("/"), *path.split("/")) if part)
        where = self.source.uri(place)
        try:
            size_bytes = self.source.size_bytes(place)
            if size_bytes is not None and size_bytes <= MAX_MAP_BYTES:
                return self.source.read(place).decode("utf-8-sig")
            found = "is not there" if size_bytes is None else f"has more than {MAX_MAP_BYTES} bytes"
        except UnicodeDecodeError as error:
            found = f"is not UTF-8 (byte {error.start})"
        except FileNotFoundError:
            found = "is not there"
        self.problems.append(self.config.problem(key, f"{where} {found}, expected the table of the runs; correct it."))
        return None

    def _header(self, path: str, rows: Rows) -> list[str]:
        names = [cell.strip() for cell in rows[0][1]] if rows else []
        if RUN_NAME not in names:
            self._add(
                path, 1, f"found the columns {', '.join(names) or 'none'}, expected {RUN_NAME} among them; add it."
            )
            return []
        wrong = sorted({name for name in names if not NAME.fullmatch(name) or names.count(name) > 1})
        for name in wrong:
            expected = "names of letters, digits, _ and -, each once"
            self._add(path, 1, f"found the column {name!r}, expected {expected}; rename it.")
        return [] if wrong else names

    def _take(self, path: str, names: list[str], rows: Rows) -> None:
        seen: dict[str, int] = {}
        for line, cells in rows:
            if len(cells) != len(names):
                self._add(
                    path, line, f"found {len(cells)} cells, expected {len(names)}: {', '.join(names)}; correct it."
                )
                continue
            row = dict(zip(names, (cell.strip() for cell in cells), strict=True))
            run = row.pop(RUN_NAME)
            if run in seen:
                self._add(
                    path, line, f"found the run {run} here and on line {seen[run]}, expected it once; remove one."
                )
                continue
            seen[run] = line
            self.variables.setdefault(run, {}).update(row)

    def _add(self, path: str, line: int, text: str) -> None:
        self.problems.append(Problem(path, line, RUN_NAME, text))


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """With the line on which each begins; empty lines are none."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    for cells in reader:
        if cells:
            yield line, cells
        line = reader.line_num + 1
