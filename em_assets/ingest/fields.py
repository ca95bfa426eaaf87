"""The values that a config's keys may hold: each says what it expects, and gives back what it was given."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator

from em_assets.ingest.templates import TemplateError, parse

COLUMN = r"[ ]*\{[a-zA-Z0-9_-]+\}[ ]*$"
MAX_REGEX = 1000
"""Characters of a regular expression."""
MAX_NUMBER = 1e15
"""Also keeps infinity, and what is no number, out."""


def checked(expected: str, accepts: Callable[[Any], bool]) -> Any:
    def check(value: Any) -> Any:
        if not accepts(value):
            raise ValueError(f"expected {expected}")
        return value

    return PlainValidator(check)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def _is_within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _range_in_words(low: float | None, high: float | None) -> str:
    if high is not None:
        return f" from {low} to {high}"
    return "" if low is None else f", at least {low}"


def number(low: float | None = None, high: float | None = None, *, column: bool = False, whole: bool = False) -> Any:
    kind = "int" if whole else "float"
    from_column = re.compile("^" + kind + COLUMN)

    def accepts(value: Any) -> bool:
        if column and isinstance(value, str):
            return from_column.search(value) is not None
        return _is_number(value) and (not whole or value == int(value)) and _is_within(value, low, high)

    noun = "a whole number" if whole else "a number"
    return checked(f"{noun}{_range_in_words(low, high)}{f' or `{kind} {{column}}`' if column else ''}", accepts)


def enum(*values: str, column: bool = False) -> Any:
    from_column = re.compile("^" + COLUMN)

    def accepts(value: Any) -> bool:
        return _is_text(value) and (value in values or (column and from_column.search(value) is not None))

    return checked(f"one of {', '.join(values)}{' or `{column}`' if column else ''}", accepts)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def pattern(expected: str, *patterns: str) -> Any:
    compiled = [re.compile(pattern) for pattern in patterns]
    return checked(expected, lambda value: _is_text(value) and any(one.search(value) for one in compiled))


def _is_date(value: Any) -> bool:
    if not (_is_text(value) and re.fullmatch(r"\d{4}-\d\d-\d\d", value)):
        return False
    try:
        date.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_matrix(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(row, list) and len(row) == 4 and all(map(_is_number, row)) for row in value)
    )


def _check_regex(value: Any) -> Any:
    if not (_is_text(value) and len(value) <= MAX_REGEX):
        raise ValueError(f"expected a regular expression of at most {MAX_REGEX} characters")
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"expected a regular expression ({error})") from None
    return value


def _check_name_regex(value: Any) -> Any:
    if re.compile(_check_regex(value)).groups < 1:
        raise ValueError("expected a regular expression with a group in parentheses, which becomes the name")
    return value


def _check_template(value: Any) -> Any:
    if not _is_text(value):
        raise ValueError("expected text")
    try:
        parse(value)
    except TemplateError as error:
        raise ValueError(str(error)) from None
    return value


def _check_glob(value: Any) -> Any:
    if ".." in _check_template(value).split("/"):
        raise ValueError("expected a glob that does not leave its folder by `..`")
    return value


def _is_path(value: Any) -> bool:
    return _is_text(value) and bool(value.strip("/")) and not {".", ".."}.intersection(value.split("/"))


Text = Annotated[str, checked("text", _is_text)]
Flag = Annotated[bool, checked("true or false", lambda value: isinstance(value, bool))]
Whole = Annotated[int, number(whole=True)]
Number = Annotated[float, number()]
Positive = Annotated[float, number(0)]
Count = Annotated[int, number(0, whole=True)]
FloatColumn = Annotated[float | str, number(column=True)]
Length = Annotated[float | str, number(0.001, column=True)]
Angle = Annotated[float | str, number(-90, 90, column=True)]
Date = Annotated[str, checked("a date such as '2024-04-09', in quotes", _is_date)]
Address = Annotated[
    str, pattern("an http, https or s3 address", r"^(((https?|s3)://)|cryoetportal-rawdatasets-dev).*$")
]
Matrix = Annotated[list[list[float]], checked("4 lists of 4 numbers", _is_matrix)]
Regex = Annotated[str, PlainValidator(_check_regex)]
NameRegex = Annotated[str, PlainValidator(_check_name_regex)]
TemplateText = Annotated[str, PlainValidator(_check_template)]
GlobText = Annotated[str, PlainValidator(_check_glob)]
PathText = Annotated[str, checked("a path without `.` and `..`", _is_path)]
FolderText = Annotated[
    str, checked("a folder without `..`", lambda value: _is_text(value) and ".." not in value.split("/"))
]
LiteralName = Annotated[
    str | float,
    checked("text or a number", lambda value: _is_text(value) or _is_number(value)),
]
Scalar = Annotated[
    str | float | bool,
    checked(
        "text, a number, true or false", lambda value: _is_text(value) or isinstance(value, bool) or _is_number(value)
    ),
]

DOI = r"(doi:)?10\.[0-9]{4,9}/[-._;()/:a-zA-Z0-9]+"
ENTRY = r"EMPIAR-[0-9]{5}|EMD-[0-9]{4,5}|PDB-[0-9a-zA-Z]{4,8}"


def _list_of(pattern: str) -> str:
    return rf"^({pattern})(\s*,\s*({pattern}))*$"


Dois = Annotated[str, pattern("DOIs such as doi:10.1101/2022.04.12.488077, divided by commas", _list_of(DOI))]
Entries = Annotated[
    str, pattern("entries such as EMPIAR-10988, EMD-14412 or PDB-8b0x, divided by commas", _list_of(ENTRY))
]
Publications = Annotated[
    str, pattern("DOIs and entries of EMPIAR, EMDB or PDB, divided by commas", _list_of(f"{ENTRY}|{DOI}"))
]
ObjectId = Annotated[
    str,
    pattern(
        "an id such as GO:0022626, UniProtKB:P12345, UBERON:0002107, CHEBI:15377, CDPO:0000001, CL:0000334 or PDB-8b0x",
        r"^GO:[0-9]{7}$",
        r"^UniProtKB:(?:[OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2})$",
        r"^UBERON:[0-9]{7}$",
        r"^CHEBI:[0-9]+$",
        r"^CDPO:[0-9]{7}$",
        r"^CL:[0-9]{7}$",
        r"^PDB-[0-9a-zA-Z]{4,8}$",
    ),
]


class Keys(BaseModel):
    """A mapping of the file. Keys that are not named are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
