"""The rows of the CryoET Data Portal's entities as its API chooses them: filtered, ordered, cut into pages.

Plain Python over `cryoet_entities.py`'s rows, with SQL's notion of null; `graphql.py` is what calls it. A ValueError is
what is wrong with a query, in the words the client is given.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from em_assets.sample.cryoet_entities import Entities, Row

PAGE_LIMIT = 2
"""Rows of a page, whatever is asked for."""

TypeOf = Callable[[str, str], str]
"""(type, field) -> the field's type by name: `Run`, `RunConnection` or `RunAggregate`."""


class Rows:
    """One query's rows, and how they are related."""

    def __init__(self, entities: Entities, type_of: TypeOf, *, is_endless: bool = False) -> None:
        """`is_endless`: every page is the first, and there is always another."""
        self.entities, self._type_of, self._is_endless = entities, type_of, is_endless

    def item(self, kind: str, number: int | None) -> Row | None:
        return next((row for row in self.entities.get(kind, ()) if row["id"] == number), None)

    def children(self, kind: str, parent: str, row: Row) -> list[Row]:
        """The rows that belong to a row of another type: theirs is the column that says so."""
        column = f"{parent[0].lower()}{parent[1:]}Id"
        return [child for child in self.entities.get(kind, ()) if child[column] == row["id"]]

    def select(self, kind: str, asked: Mapping[str, Any], rows: list[Row] | None = None) -> list[Row]:
        """Those that fit, in order; by id where none is asked for."""
        rows = self.entities.get(kind, []) if rows is None else rows
        where = asked.get("where") or {}
        found = sorted((row for row in rows if self.fits(kind, row, where)), key=lambda row: int(row["id"]))
        for clause in reversed(asked.get("orderBy") or []):
            for path, direction in reversed(list(_paths(clause))):
                found = self._ordered(kind, found, path, direction)
        return found

    def _ordered(self, kind: str, rows: list[Row], path: tuple[str, ...], direction: str) -> list[Row]:
        """As PostgreSQL: nulls count as the largest unless it is said where they go."""
        is_reversed = direction.startswith("desc")
        nulls_first = direction.endswith("first") or (is_reversed and not direction.endswith("last"))
        values = [(self.along(kind, row, path), row) for row in rows]
        nulls = [row for value, row in values if value is None]
        known = sorted(((v, r) for v, r in values if v is not None), key=lambda pair: pair[0], reverse=is_reversed)
        ordered = [row for _, row in known]
        return nulls + ordered if nulls_first else ordered + nulls

    def along(self, kind: str, row: Row, path: tuple[str, ...]) -> Any:
        """A column of the row, or of one that it belongs to."""
        name, *others = path
        if not others:
            return row[name]
        related = self._type_of(kind, name)
        found = self.item(related, row[f"{name}Id"])
        return None if found is None else self.along(related, found, tuple(others))

    def page(self, rows: list[Row], limit_offset: Mapping[str, int | None] | None) -> list[Row]:
        """All without a limit, as the portal's client asks; else no more than a page."""
        asked = limit_offset or {}
        limit, offset = asked.get("limit"), asked.get("offset")
        if limit is None:
            if offset is not None:
                raise ValueError("Cannot use offset without limit")
            return rows
        if limit < 0 or (offset or 0) < 0:
            raise ValueError("limit and offset must not be negative")
        start = 0 if self._is_endless else offset or 0
        return rows[start : start + min(limit, PAGE_LIMIT)]

    def connection(self, rows: list[Row], asked: Mapping[str, Any]) -> dict[str, Any]:
        """A page of a relation (https://relay.dev/graphql/connections.htm, section 4)."""
        start, stop = 0, len(rows)
        if asked.get("after") is not None and not self._is_endless:
            start = min(_position(asked["after"]) + 1, stop)
        if asked.get("before") is not None:
            stop = max(min(_position(asked["before"]), stop), start)
        first, last = asked.get("first"), asked.get("last")
        if last is not None and first is None:
            start = max(stop - min(last, PAGE_LIMIT), start)
        else:
            stop = min(start + min(PAGE_LIMIT if first is None else first, PAGE_LIMIT), stop)
        edges = [{"cursor": _cursor(at), "node": rows[at]} for at in range(start, stop)]
        page = {
            "hasNextPage": stop < len(rows) or self._is_endless,
            "hasPreviousPage": start > 0,
            "startCursor": edges[0]["cursor"] if edges else None,
            "endCursor": edges[-1]["cursor"] if edges else None,
        }
        return {"pageInfo": page, "edges": edges}

    def fits(self, kind: str, row: Row, where: Mapping[str, Any]) -> bool:
        """Whether a row passes a filter: every comparison, also through relations, holds."""
        return all(self._holds(kind, row, name, asked) for name, asked in where.items() if asked is not None)

    def _holds(self, kind: str, row: Row, name: str, asked: Mapping[str, Any]) -> bool:
        if name in row:
            return all(_compare(operator, row[name], value) for operator, value in asked.items())
        related = self._type_of(kind, name)
        if related.endswith("Aggregate"):
            return self._counts(related.removesuffix("Aggregate"), kind, row, asked["count"])
        if related.endswith("Connection"):
            related = related.removesuffix("Connection")
            return any(self.fits(related, child, asked) for child in self.children(related, kind, row))
        found = self.item(related, row[f"{name}Id"])
        return found is not None and self.fits(related, found, asked)

    def _counts(self, kind: str, parent: str, row: Row, asked: Mapping[str, Any]) -> bool:
        """Whether the number of related rows is as asked."""
        rows = self.select(kind, {"where": asked.get("filter")}, self.children(kind, parent, row))
        number = count_of(rows, asked.get("arguments"), distinct=bool(asked.get("distinct")))
        return all(_compare(operator, number, value) for operator, value in (asked.get("predicate") or {}).items())


def count_of(rows: Sequence[Row], column: str | None, *, distinct: bool) -> int:
    if column is None and not distinct:
        return len(rows)
    values = [row[column or "id"] for row in rows if row[column or "id"] is not None]
    return len(set(values) if distinct else values)


def _paths(clause: Mapping[str, Any]) -> Iterable[tuple[tuple[str, ...], str]]:
    """(path, direction) of an order, which may be that of something related."""
    for name, asked in clause.items():
        if isinstance(asked, Mapping):
            yield from (((name, *path), direction) for path, direction in _paths(asked))
        elif asked is not None:
            yield (name,), asked


def _cursor(position: int) -> str:
    return base64.b64encode(f"arrayconnection:{position}".encode()).decode()


def _position(cursor: str) -> int:
    try:
        return int(base64.b64decode(cursor, validate=True).decode().removeprefix("arrayconnection:"))
    except (ValueError, binascii.Error):
        raise ValueError(f"{cursor!r} is not a cursor of this server") from None


# Comparisons, as SQL makes them: nothing compares with null


def _compare(operator: str, value: Any, asked: Any) -> bool:
    if operator == "_is_null":
        return asked is None or (value is None) == asked
    if value is None or asked is None:
        return False
    if isinstance(value, str) and _is_time(value):
        value, asked = _time(value), [_time(a) for a in asked] if isinstance(asked, list) else _time(asked)
    return bool(_OPERATORS[operator](value, asked))


def _is_time(text: str) -> bool:
    return re.fullmatch(r"\d{4}-\d\d-\d\dT\S+", text) is not None


def _time(text: str) -> float:
    """Seconds; of a text that is no time nothing is true."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _like(value: str, pattern: str, flags: int = 0) -> bool:
    r"""SQL's LIKE: % is any text, _ any character, \% and \_ these themselves."""
    pieces = re.findall(r"\\.|.", pattern, re.DOTALL)
    wild = {"%": ".*", "_": "."}
    translated = "".join(wild.get(piece) or re.escape(piece[-1]) for piece in pieces)
    return re.fullmatch(translated, value, flags | re.DOTALL) is not None


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "_eq": lambda value, asked: value == asked,
    "_neq": lambda value, asked: value != asked,
    "_in": lambda value, asked: value in asked,
    "_nin": lambda value, asked: value not in asked,
    "_gt": lambda value, asked: value > asked,
    "_gte": lambda value, asked: value >= asked,
    "_lt": lambda value, asked: value < asked,
    "_lte": lambda value, asked: value <= asked,
    "_like": _like,
    "_nlike": lambda value, asked: not _like(value, asked),
    "_ilike": lambda value, asked: _like(value, asked, re.IGNORECASE),
    "_nilike": lambda value, asked: not _like(value, asked, re.IGNORECASE),
    "_regex": lambda value, asked: re.search(asked, value) is not None,
    "_nregex": lambda value, asked: re.search(asked, value) is None,
    "_iregex": lambda value, asked: re.search(asked, value, re.IGNORECASE) is not None,
    "_niregex": lambda value, asked: re.search(asked, value, re.IGNORECASE) is None,
}
