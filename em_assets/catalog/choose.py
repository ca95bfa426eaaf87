"""Which of several statements about a field is taken: the written precedence, and nothing else.

Every statement stays beside the one that was chosen; `conflicts` shows the pairs that disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from em_assets.catalog.statements import Statement
from em_assets.catalog.vocabulary import FIELDS, Authority

LAST = 99
"""Rank of an authority that a field's precedence does not name: it is shown, and never chosen."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One value that one authority states of one field, however many of its claims say so."""

    statement: Statement
    """The first of them."""
    claims: int
    rank: int
    """Place among all values of the field: 1 goes first."""
    chosen: bool


def judge(statements: Iterable[Statement]) -> list[Judged]:
    """One for each (volume, field, authority, value), ranked within its volume and field; at most one is chosen.

    Among values of one authority the one that most claims state goes first, then the one that came first.
    """
    counted: dict[tuple[str | None, str, Authority, str], tuple[Statement, int]] = {}
    for item in statements:
        key = (item.volume, item.field, item.authority, as_text(item.value).casefold())
        first, count = counted.get(key, (item, 0))
        counted[key] = (first, count + 1)
    of_field: dict[tuple[str | None, str], list[tuple[Statement, int]]] = {}
    for first, count in counted.values():
        of_field.setdefault((first.volume, first.field), []).append((first, count))
    judged = []
    for values in of_field.values():
        values.sort(key=lambda value: (_precedence(value[0]), -value[1]))  # stable: then by order of appearance
        judged += [
            Judged(first, count, rank, chosen=rank == 1 and _precedence(first) < LAST)
            for rank, (first, count) in enumerate(values, 1)
        ]
    return judged


def as_text(value: str | float) -> str:
    """A value as it stands in a table: whole numbers without a point, others as short as they can be told apart."""
    if isinstance(value, str):
        return value
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**63 else repr(float(value))


def _precedence(statement: Statement) -> int:
    order = FIELDS[statement.field].precedence
    return order.index(statement.authority) if statement.authority in order else LAST
