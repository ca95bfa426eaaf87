"""What `show` and `conflicts` answer: rows of the catalogue as lines for a person, or as values for a program.

Nothing is printed here. A `width` is that of the terminal, None where nobody folds lines: there each fact is one line.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from em_assets.catalog.vocabulary import FIELDS
from em_assets.cli_shared import on_one_line
from em_assets.progress import human_bytes

Row = dict[str, Any]
"""A row of the catalogue as JSON has it: dates as text, columns of type JSON parsed."""
Fact = tuple[str, str, str]
"""What it is, its value, where it is from."""

SPEC_KEYS = {"source": "/publisher", "page_url": "/page_url", "download_url": "/source/url"}
"""Columns of `datasets` beyond the vocabulary, and where the spec states them."""
COUNTED_HERE = frozenset(
    {"status", "status_reason", "conflicts", "levels", "partitions_stored", "missing_fraction", "timestamp"}
)
"""Columns that no spec can state."""
LABEL_WIDTH, VALUE_WIDTH = 24, 18
"""A value that is longer has its origin on the next line."""


def ask(database: Path, sql: str) -> list[Row]:
    from em_assets.catalog.query import query
    from em_assets.catalog.render import render

    rows: list[Row] = json.loads(render(query(database, sql), format="json"))
    return rows


def quoted(name: str) -> str:
    """A name as SQL has text."""
    return "'" + name.replace("'", "''") + "'"


@dataclass(frozen=True)
class Shown:
    """One dataset as the catalogue has it."""

    row: Row
    """Of `datasets`."""
    chosen: list[Row]
    """Of `statements`: of each field of each volume the one that was taken."""
    levels: list[Row]
    conflicts: list[Row]
    in_spec: Mapping[str, str]
    """What the spec states, by key."""

    @classmethod
    def read(cls, database: Path, name: str) -> Shown | None:
        """None if the catalogue has no such dataset."""
        of_it = f"where name = {quoted(name)}"
        rows = ask(database, f"from datasets {of_it}")
        if not rows:
            return None
        stated = ask(database, f"from claims {of_it} and extractor = 'spec'")
        return cls(
            row=rows[0],
            chosen=ask(database, f"from statements {of_it} and chosen order by volume nulls first"),
            levels=ask(database, f"from levels {of_it} order by volume nulls first, level"),
            conflicts=ask(database, f"from conflicts {of_it}"),
            in_spec={claim["key"]: claim["value_text"] for claim in stated},
        )

    def values(self) -> Row:
        """For a program: all columns of `datasets`, and under other names what belongs to them."""
        more = {"from": self.origins(), "disagreements": self.conflicts, "stored_levels": self.levels}
        return {**self.row, **more}

    def origins(self) -> dict[str, Row]:
        """Where each known value is from, by column of `datasets`.

        Also fields without a column, with their value (`source_size_z`), and those of further volumes
        (`training/source_size_z`).
        """
        spec, here = {"authority": "spec", "document": "spec.json"}, {"authority": "stored here"}
        is_listed = self.row["status"] == "listed"
        origins = {
            column: spec if is_listed and column not in COUNTED_HERE else here
            for column, value in self.row.items()
            if value is not None
        }
        for statement in self.chosen:
            field, volume = statement["field"], statement["volume"]
            column = self.row.get(field) if volume is None else None
            if column is None or _is_same(statement, column):
                origins[field if volume is None else f"{volume}/{field}"] = _origin(statement)
        for column, key in SPEC_KEYS.items():
            if column in origins and self.in_spec.get(key) == self.row[column]:
                origins[column] = {**spec, "key": key}
        if "commercial_use" in origins:
            origins["commercial_use"] = {"authority": "the licence, by its name"}
        return origins

    def lines(self, width: int | None) -> Iterator[str]:
        """For a person: by module, then what is stored here, then what disagrees."""
        name, is_listed = self.row["name"], self.row["status"] == "listed"
        yield on_one_line(f"{name}: {self.row['title'] or ''}").removesuffix(":")
        for title, facts in self._sections():
            yield from ("", title)
            for fact in facts:
                yield from _fact_lines(fact, width)
        if self.levels and not is_listed:
            yield ""
            yield from (f"  {line}" for line in _level_lines(self.levels))
        if self.conflicts:
            yield from ("", "Conflicts")
            for _, pairs in groupby(self.conflicts, key=_about):
                yield from _folded("  ", _conflict_line(list(pairs)), width, later=4)
        if is_listed:
            yield from ("", f"download it with: em-assets get {name}")

    def _sections(self) -> Iterator[tuple[str, list[Fact]]]:
        origins = self.origins()
        known = self._facts(origins)
        for module, names in groupby(known, key=lambda name: FIELDS[name].module):
            yield module, [*(known[name] for name in names), *(self._links(origins) if module == "Study" else ())]
        order = list(FIELDS)
        further = [statement for statement in self.chosen if statement["volume"] is not None]
        for volume, stated in groupby(further, key=lambda statement: statement["volume"]):
            yield (
                f"Volume {volume}",
                [
                    (one["field"], _with_unit(one["field"], one["value"]), _whence(one))
                    for one in sorted(stated, key=lambda statement: order.index(statement["field"]))
                ],
            )
        unknown = [name for name in FIELDS if name not in known]
        if unknown:
            yield "Not known", [("", ", ".join(unknown), "")]
        yield "Stored here", [(label, value, "") for label, value in _stored_here(self.row) if value]

    def _facts(self, origins: Mapping[str, Row]) -> dict[str, Fact]:
        """Each field with its value as it was stated, or as it was measured or decided here.

        A note that the field before has, too, is not repeated: one for three axes is enough.
        """
        facts, note = {}, None
        for field in FIELDS:
            if field in origins:
                origin = origins[field]
                value = origin["value"] if "value" in origin else _plain(self.row[field])
                is_repeated = note is not None and origin.get("note") == note
                facts[field] = (
                    field,
                    _with_unit(field, value),
                    _whence({**origin, "note": None} if is_repeated else origin),
                )
                note = origin.get("note")
        return facts

    def _links(self, origins: Mapping[str, Row]) -> Iterator[Fact]:
        """What belongs to the study, and is no field of the vocabulary."""
        for column in SPEC_KEYS:
            if column in origins:
                yield column, self.row[column], _whence(origins[column])
        if (allowed := self.row["commercial_use"]) is not None:
            yield "commercial_use", "allowed" if allowed else "not allowed", _whence(origins["commercial_use"])


def _origin(statement: Row) -> Row:
    return {key: statement[key] for key in ("value", "unit", "authority", "document", "key", "stated", "note")}


def _whence(origin: Row) -> str:
    """`file header: original/a.dm3 ImageList/1 (note)`."""
    where = " ".join(str(origin[key]) for key in ("document", "key") if origin.get(key))
    note = f" ({origin['note']})" if origin.get("note") else ""
    return f"{origin['authority']}{f': {where}' if where else ''}{note}"


def _is_same(statement: Row, value: Any) -> bool:
    """Whether a column holds what was stated, and not what was measured or decided here."""
    if statement["number"] is None or not isinstance(value, int | float):
        return str(value) == str(statement["value"])
    return math.isclose(value, statement["number"], rel_tol=FIELDS[statement["field"]].tolerance)


def _with_unit(field: str, value: str) -> str:
    unit = FIELDS[field].unit
    if unit == "bytes" and value.isdigit():
        return _size(int(value))
    return f"{value} {unit}" if unit else value


def _plain(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _size(size_bytes: int) -> str:
    return f"{human_bytes(size_bytes)} ({size_bytes} bytes)"


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.10g}" for value in values)


# What is stored here


def _stored_here(row: Row) -> Iterator[tuple[str, str | None]]:
    """By the names of the columns."""
    yield "status", row["status"]
    yield "status_reason", row["status_reason"]
    if row["volume_shape"]:
        yield "volume_shape", f"{_times(row['volume_shape'])} voxels (z, y, x)"
    yield "content", row["content"]
    yield "source_box", _box(row)
    if row["partitions"] is not None:
        yield "partitions", f"{row['partitions_stored'] or 0} of {row['partitions']} {row['partitioned_by']}s"
    if row["missing_fraction"]:
        yield "missing_fraction", f"{100 * row['missing_fraction']:.3g} % of the voxels are not published"
    yield "intensity", _intensity(row)
    for column in ("file_size_bytes", "uncompressed_size_bytes"):
        yield column, None if row[column] is None else _size(row[column])
    yield "sha256", row["sha256"]
    yield "identity", row["identity"]
    if row["timestamp"]:
        yield "timestamp", f"{row['timestamp'].replace('T', ' ')} UTC"
    yield from (row["local_paths"] or {}).items()
    for name, volume in (row["volumes"] or {}).items():
        shape = f"{_times(volume['shape'])} voxels, " if volume.get("shape") else ""
        yield name, f"further volume: {shape}{volume.get('content', '')}".strip(", ")


def _box(row: Row) -> str | None:
    start, stop = row["source_box_start"], row["source_box_stop"]
    if start is None or stop is None:
        return None
    sides = (f"{axis} {a}:{b}" for axis, a, b in zip("zyx", start, stop, strict=True))
    return f"{', '.join(sides)} of the publisher's voxels"


def _intensity(row: Row) -> str | None:
    keys = ("minimum", "maximum", "mean", "standard_deviation")
    low, high, mean, deviation = (row[f"intensity_{key}"] for key in keys)
    if None in (low, high, mean, deviation):
        return None
    return f"{low:.6g} to {high:.6g}, mean {mean:.6g}, standard deviation {deviation:.6g}"


def _level_lines(levels: Sequence[Row]) -> list[str]:
    from em_assets.catalog.query import Table
    from em_assets.catalog.render import render

    columns = ("level", "shape (z, y, x)", "voxel (nm)", "shards", "size")
    rows: list[tuple[str, ...]] = []
    for level in levels:
        sizes_nm = [level[f"voxel_size_{axis}_nm"] for axis in "zyx"]
        rows.append(
            (
                " ".join(str(part) for part in (level["volume"], level["level"]) if part is not None),
                " x ".join(str(level[f"shape_{axis}"]) for axis in "zyx"),
                "" if None in sizes_nm else " x ".join(f"{size:.6g}" for size in sizes_nm),
                str(level["shards"]),
                human_bytes(level["size_bytes"]),
            )
        )
    return render(Table(columns, tuple("VARCHAR" for _ in columns), rows)).splitlines()


# Claims and conflicts


def claim_lines(claims: Iterable[Row], width: int | None) -> Iterator[str]:
    """All claims by document, each with its unit and what is marked about it."""
    for (path, extractor), stated in groupby(claims, key=lambda claim: (claim["document"], claim["extractor"])):
        rows = list(stated)
        source = f", from {rows[0]['source_url']}" if rows[0]["source_url"] else ""
        yield on_one_line(f"{path} ({extractor}){source}")
        for claim in rows:
            value = " ".join(claim[key] for key in ("value_text", "unit") if claim[key] is not None)
            yield from _fact_lines((claim["key"], value, claim["mark"] or ""), width)


def conflict_lines(
    pairs: Sequence[Row], statements: Iterable[Row], width: int | None, asked: Iterable[str] = ()
) -> Iterator[str]:
    """A block for each field that is disagreed about: every value, who states it, and why one was taken.

    `pairs` are rows of `conflicts`; `statements` those of the same datasets, in the order of name, volume,
    field and rank; of datasets that were asked for by name it is said if there is no conflict.
    """
    names = {pair["name"] for pair in pairs}
    yield from (f"{name}: no conflicts" for name in dict.fromkeys(asked) if name not in names)
    if not pairs:
        yield from () if asked else ("no conflicts",)
        return
    of_field = {about: list(group) for about, group in groupby(pairs, key=_about)}
    stated = {about: list(group) for about, group in groupby(statements, key=_about)}
    for name, fields in groupby(of_field, key=lambda about: about[0]):
        yield name
        for about in fields:
            yield from _block_lines(about, of_field[about], stated[about], width)
        yield ""
    yield f"conflicts: {len(pairs)} pairs of values, fields: {len(of_field)}, datasets: {len(names)}"


def _about(row: Row) -> tuple[str, str | None, str]:
    return row["name"], row["volume"], row["field"]


def _block_lines(
    about: tuple[str, str | None, str], pairs: Sequence[Row], statements: Sequence[Row], width: int | None
) -> Iterator[str]:
    """The value that was taken, then the others by precedence; under each, all who state it."""
    _, volume, field = about
    yield f"  {field}{f' of {volume}' if volume else ''}"
    disagreeing = {pair[side].casefold() for pair in pairs for side in ("value_a", "value_b")}
    by_value: dict[str, list[Row]] = {}
    for statement in statements:  # by rank: the chosen one comes first
        if statement["chosen"] or statement["value"].casefold() in disagreeing:
            by_value.setdefault(statement["value"].casefold(), []).append(statement)
    is_decided = any(statement["chosen"] for statement in statements)
    for number, said in enumerate(by_value.values()):
        tag = "said" if not is_decided else "not" if number else "taken"
        yield from _folded(f"    {tag:<7}", _with_unit(field, said[0]["value"]), width, later=11)
        for one in said:
            times = f", {one['claims']} times" if one["claims"] > 1 else ""
            yield from _folded(" " * 13, _whence({**one, "authority": one["authority"] + times}), width, later=15)
    for reason in _reasons(pairs):
        yield from _folded(f"    {'why':<7}", reason, width, later=11)


def _reasons(pairs: Sequence[Row]) -> Iterable[str]:
    """Why the chosen value was taken: those of the pairs that it is one of, where there are such."""
    its_own = [pair["reason"] for pair in pairs if pair["chosen"] == pair["value_a"]]
    return dict.fromkeys(its_own or [pair["reason"] for pair in pairs])


def _conflict_line(pairs: Sequence[Row]) -> str:
    """All that is said of one field: the value that was taken, then the others."""
    first = pairs[0]
    field = first["field"]
    about = f"{field} of {first['volume']}" if first["volume"] else field
    told = {pair[f"value_{side}"]: pair[f"authority_{side}"] for pair in reversed(pairs) for side in "ba"}
    others = [
        f"{_with_unit(field, value)} ({authority})"
        for value, authority in reversed(told.items())
        if value != first["chosen"]
    ]
    taken = f"{_with_unit(field, first['chosen'])}, not " if first["chosen"] is not None else ""
    return f"{about}: {taken}{' or '.join(others)}: {'; '.join(_reasons(pairs))}"


# Lines


def _fact_lines(fact: Fact, width: int | None) -> Iterator[str]:
    """`label  value  origin` in one line, or where the terminal is too narrow for that, one below the other."""
    label, value, origin = map(on_one_line, fact)
    head = f"  {label:<{LABEL_WIDTH - 1}} " if label else "  "
    line = f"{head}{value:<{VALUE_WIDTH}}  {origin}".rstrip()
    if width is None or (len(line) <= width and (len(value) <= VALUE_WIDTH or not origin)):
        yield line
        return
    yield from _wrapped(value, width, head, " " * len(head))
    if origin:
        yield from _wrapped(origin, width, " " * (len(head) + 2), " " * (len(head) + 2))


def _folded(head: str, text: str, width: int | None, *, later: int) -> list[str]:
    """`head` and the text as one line, or as folded ones that go on at `later`."""
    line = on_one_line(text)
    return [head + line] if width is None else _wrapped(line, width, head, " " * later)


def _wrapped(text: str, width: int, first: str, later: str) -> list[str]:
    room = max(width, len(later) + 20)
    folded = textwrap.wrap(text, room, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
    return folded or [first.rstrip()]
