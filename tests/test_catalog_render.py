"""Answers as text: aligned for people, exact for programs."""

import csv
import io
import json
import math
from datetime import date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_assets.catalog.query import Table
from em_assets.catalog.render import render

TABLE = Table(
    ("name", "shape_z", "voxel_size_nm", "note"),
    ("VARCHAR", "INTEGER", "DOUBLE[3]", "VARCHAR"),
    [("hemibrain_crop", 1000, (8.0, 8.0, 8.0), None), ("epfl", 165, (5.0, 5.0, 5.0), "one level\nonly")],
)


def test_aligned():
    """Numbers stand right, text left, arrays are short, what is empty is empty, a value stays on its line."""
    assert render(TABLE) == (
        "name            shape_z  voxel_size_nm  note\n"
        "────────────────────────────────────────────────────\n"
        "hemibrain_crop     1000  8 8 8\n"
        "epfl                165  5 5 5          one level only\n"
    ).replace("─" * 52, "─" * 54)


def test_nothing_is_cut_off_when_piped():
    """Without a width every value is whole on its line, however long."""
    long = Table(("text", "more"), ("VARCHAR", "VARCHAR"), [("x y " * 500, "電子" * 300)])
    assert ("x y " * 500).strip() in render(long)
    assert "電子" * 300 in render(long)


def test_folds_where_words_fit():
    """On a narrow terminal text is folded between words, no line is wider, and no word is lost."""
    table = Table(("name", "text"), ("VARCHAR", "VARCHAR"), [("a", "one two three four five six seven")])
    lines = render(table, width=20).splitlines()
    assert max(map(len, lines)) <= 20
    assert " ".join(" ".join(lines[2:]).split()) == "a one two three four five six seven"


def test_many_columns_are_shown_below_each_other():
    """Where the columns cannot stand side by side, each row is a list of its values that are not empty."""
    assert render(TABLE, width=30) == (
        "name           hemibrain_crop\n"
        "shape_z        1000\n"
        "voxel_size_nm  8 8 8\n"
        "\n"
        "name           epfl\n"
        "shape_z        165\n"
        "voxel_size_nm  5 5 5\n"
        "note           one level only\n"
    )


@pytest.mark.parametrize("width", [None, 200, 10])
def test_no_rows(width):
    """An answer without rows says so, or shows its columns."""
    assert render(Table(("a" * 20,), ("VARCHAR",), []), width=width).strip()


@pytest.mark.parametrize("width", [None, 60, 10])
def test_a_publishers_text_does_not_steer_the_terminal(width):
    """Escape sequences lose their escape, and square brackets are text."""
    hostile = Table(("t",), ("VARCHAR",), [("[red]a[/red] \x1b[31mb\x07\r\nc\x9b",)])
    text = render(hostile, width=width)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\x9b" not in text
    assert "".join(text.split()).endswith("[red]a[/red][31mbc")


def test_json_of_every_kind():
    """JSON columns are nested, times are ISO 8601, names are distinct, and nothing is not JSON."""
    table = Table(
        ("a", "a", "j", "when", "day", "nan", "money", "raw", "gap", "none"),
        ("INTEGER", "INTEGER[2]", "JSON", "TIMESTAMP", "DATE", "DOUBLE", "DECIMAL(9,2)", "BLOB", "INTERVAL", "NULL"),
        [
            (
                *(1, (1, 2), '{"x": [1]}', datetime.fromisoformat("2026-01-02T03:04:05"), date(2026, 1, 2)),
                *(math.nan, Decimal("1.50"), b"\x00\xff", timedelta(seconds=90), None),
            )
        ],
    )
    [row] = json.loads(render(table, format="json"), parse_constant=pytest.fail)
    assert row == {
        "a": 1,
        "a_2": [1, 2],
        "j": {"x": [1]},
        "when": "2026-01-02T03:04:05",
        "day": "2026-01-02",
        "nan": "nan",
        "money": 1.5,
        "raw": "00ff",
        "gap": "0:01:30",
        "none": None,
    }


values = st.one_of(st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(), st.booleans())


@given(st.lists(st.tuples(values, values), max_size=5))
def test_json_keeps_every_value(rows):
    """What goes in comes out of a JSON reader, to the last bit."""
    text = render(Table(("a", "b"), ("VARCHAR", "VARCHAR"), rows), format="json")
    assert [(row["a"], row["b"]) for row in json.loads(text)] == rows


@given(st.lists(st.tuples(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])), st.integers())))
def test_csv_keeps_every_value(rows):
    """What goes in comes out of a CSV reader: commas, quotes and line ends included."""
    text = render(Table(("text", "number"), ("VARCHAR", "BIGINT"), rows), format="csv")
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    assert header == ["text", "number"]
    assert [(text, int(number)) for text, number in lines] == rows


@given(st.lists(st.tuples(st.text(max_size=30), st.floats()), max_size=4), st.none() | st.integers(1, 90))
def test_a_table_is_never_wider_than_asked(rows, width):
    """Any text at any width is laid out without an error."""
    assert render(Table(("text", "number"), ("VARCHAR", "DOUBLE"), rows), width=width)
