"""The IDR's study files and tables: every value under its key and column, and what is refused."""

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_assets.errors import Malformed
from em_assets.sources import tabular
from em_assets.sources.tabular import study_leaves, table_leaves


@pytest.fixture(scope="session")
def payloads():
    """The folder of publishers' real replies, beside the real files, or a skip."""
    folder = Path(os.environ.get("EM_ASSETS_REALDATA") or Path(__file__).parents[2] / "shared/realdata") / "../payloads"
    if not folder.is_dir():
        pytest.skip(f"no publishers' replies at {folder.resolve()}")
    return folder.resolve()


def study(text):
    leaves = study_leaves(text.encode(), "study.txt")
    assert len(dict(leaves)) == len(leaves), "a key twice"
    return dict(leaves)


def table(text):
    leaves = list(table_leaves(text.encode(), "table.csv"))
    assert len(dict(leaves)) == len(leaves), "a key twice"
    return dict(leaves)


# -- study files


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("/Comment[IDR Study Accession]/0", "idr0086"),
        ("/Study License/0", "CC BY 4.0"),
        ("/Study Person Last Name/1", "Schermelleh"),
        ("/Study Organism/0", None),
        ("/Study External URL/0", None),
        ("/experiment/1/Experiment Organism/1", "Homo sapiens"),
        ("/experiment/4/Experiment Number/0", "4"),
        ("/experiment/4/Experiment Data DOI/0", "https://doi.org/10.17867/10000141d"),
        ("/experiment/4/Protocol Name/2", "image acquisition and feature extraction protocol"),
        ("/experiment/4/Processed Data File Format/0", "tab-delimited text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_real_study_file(payloads, key, value):
    """idr0086: each of the four experiments repeats the keys of the others."""
    leaves = dict(study_leaves((payloads / "idr/idr0086-study.txt").read_bytes(), "study.txt"))
    assert leaves[key] == value
    assert {name.split("/")[2] for name in leaves if name.startswith("/experiment/")} == {"1", "2", "3", "4"}


def test_keys_of_the_real_study_file_are_keys(payloads):
    """Neither hints behind `#` nor the rest of a value that goes on in the next line."""
    raw = (payloads / "idr/idr0086-study.txt").read_bytes()
    leaves = dict(study_leaves(raw, "study.txt"))
    assert raw.count(b"#") > 20 and raw.count(b"\nstreptomycin. ") == 1
    assert not any("#" in key or "line " in key or max(map(len, key.split("/"))) > 60 for key in leaves)
    growth, treatment, imaging = (leaves[f"/experiment/3/Protocol Description/{column}"] for column in range(3))
    assert "1% penicillin and\nstreptomycin. Cells were incubated" in growth
    assert "Cells were fixed" in treatment and imaging.startswith("3D-SIM images")


STUDIES = {
    "columns keep their places": ("A\tx\t\tz", {"/A/0": "x", "/A/2": "z"}),
    "a key without values": ("A\tx\nB\t \t", {"/A/0": "x", "/B/0": None}),
    "a key again": ("A\tx\nA\ty", {"/A/0": "x", "/A[2]/0": "y"}),
    "blanks around": (" A \t x ", {"/A/0": "x"}),
    "lines of Windows": ("A\tx\r\nB\ty\r\n", {"/A/0": "x", "/B/0": "y"}),
    "a byte order mark": ("\ufeffA\tx", {"/A/0": "x"}),
    "comments": ("# A\tx\nA\t#1", {"/A/0": "#1"}),
    "a slash in a key": ("A[B/C~]\tx", {"/A[B~1C~0]/0": "x"}),
    "a value of two lines": (
        "A B\tx\ty and\nso on\tz\nC\tu",
        {"/A B/0": "x", "/A B/1": "y and\nso on", "/A B/2": "z", "/C/0": "u"},
    ),
    "a value of two paragraphs": ("A\tx\n\ny\n", {"/A/0": "x\ny"}),
    "more values on the next line": ("A\tx\n\ty", {"/A/0": "x", "/A/1": "y"}),
    "values without a key": ("A\tx\n# B\n\ty\n# C\nz z", {"/A/0": "x", "/line 3/1": "y", "/line 5/0": "z z"}),
    "experiments": (
        "A\tx\nExperiment Number\t1\nA\ty\nExperiment Number\t2\nA\tz",
        {
            "/A/0": "x",
            "/experiment/1/Experiment Number/0": "1",
            "/experiment/1/A/0": "y",
            "/experiment/2/Experiment Number/0": "2",
            "/experiment/2/A/0": "z",
        },
    ),
    "two experiments of one number": (
        "Experiment Number\t1\nExperiment Number\t1",
        {"/experiment/1/Experiment Number/0": "1", "/experiment/1[2]/Experiment Number/0": "1"},
    ),
    "an experiment without a number": (
        "Experiment Number\t\nA\tx",
        {"/experiment/without a number/Experiment Number/0": None, "/experiment/without a number/A/0": "x"},
    ),
}


@pytest.mark.parametrize(("text", "leaves"), STUDIES.values(), ids=STUDIES)
def test_a_study_file(text, leaves):
    """Every value is under its key and column, in the section it was written in."""
    assert study(text) == leaves


# -- tables


def test_the_real_annotation_table(payloads):
    """idr0086, experiment D: eleven images, a byte order mark before the first column's name."""
    leaves = dict(table_leaves((payloads / "idr/idr0086-experimentD-annotation.csv").read_bytes(), "annotation.csv"))
    assert leaves["/rows/3/Dataset Name"] == "U2OS_chromatin"
    assert leaves["/rows/3/Image Name"] == "Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xy.tif"
    assert leaves["/rows/3/Term Source 1 Accession"] == "NCBITaxon_9606"
    assert leaves["/rows/3/Experimental Condition [Cell Cycle Stage]"] == "G1"
    assert {key.split("/")[2] for key in leaves} == {str(row) for row in range(11)}


TABLES = {
    "commas": ("a,b\n1,2\n3,4", {"/rows/0/a": "1", "/rows/0/b": "2", "/rows/1/a": "3", "/rows/1/b": "4"}),
    "tabs, with commas in a cell": ("a\tb\n1,5\t2", {"/rows/0/a": "1,5", "/rows/0/b": "2"}),
    "one column": ("a\n1", {"/rows/0/a": "1"}),
    "a header only": ("a,b\n", {}),
    "lines of Windows": ("a,b\r\n1,2\r\n", {"/rows/0/a": "1", "/rows/0/b": "2"}),
    "lines of old Macs": ("a,b\r1,2\r", {"/rows/0/a": "1", "/rows/0/b": "2"}),
    "quotes": ('a,b\n"1,\n""x""",2', {"/rows/0/a": '1,\n"x"', "/rows/0/b": "2"}),
    "blank rows and cells": ("a,b\n\n,\n,2\n", {"/rows/0/b": "2"}),
    "a column again": ("a,a\n1,2", {"/rows/0/a": "1", "/rows/0/a[2]": "2"}),
    "a column without a name": ("a,,b\n1,2,3", {"/rows/0/a": "1", "/rows/0/column 2": "2", "/rows/0/b": "3"}),
    "a short row": ("a,b\n1", {"/rows/0/a": "1"}),
    "a long row": (
        "a\n1,2\n3,4",
        {"/rows/0/a": "1", "/rows/0/column 2": "2", "/rows/1/a": "3", "/rows/1/column 2": "4"},
    ),
    "a slash in a name": ("a/b\n1", {"/rows/0/a~1b": "1"}),
    "a byte order mark": ("\ufeffa\n1", {"/rows/0/a": "1"}),
}


@pytest.mark.parametrize(("text", "leaves"), TABLES.values(), ids=TABLES)
def test_a_table(text, leaves):
    """Every cell is under its row and its column's name; none is lost, none takes another's place."""
    assert table(text) == leaves


cell = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8).map(str.strip)


@given(st.lists(st.lists(cell.filter(bool), min_size=3, max_size=3), max_size=6), st.sampled_from(",\t"))
def test_what_was_written_is_read_back(rows, delimiter):
    """Whatever the cells hold: commas, quotes, any script."""
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([["a", "b", "c"], *rows])
    assert table(file.getvalue()) == {
        f"/rows/{number}/{name}": value
        for number, row in enumerate(rows)
        for name, value in zip("abc", row, strict=True)
    }


# -- what is refused


REFUSED = {
    "a study that is not UTF-8": (study_leaves, b"A\tx\nB\t\xb5m\n", r"^where, line 2: not UTF-8 \(byte 0xb5\)\.$"),
    "a table that is not UTF-8": (table_leaves, b"a\n1\n\xb5m\n", r"^where, line 3: not UTF-8 \(byte 0xb5\)\.$"),
    "a page instead of a study": (study_leaves, b"<html>\n<title>404</title>", "no line of a key, a tab and a value"),
    "a page with tabs": (study_leaves, b"<html>\n\t<title>\t404</title>", "no line of a key, a tab and a value"),
    "two words": (study_leaves, b"Not Found", "no line of a key, a tab and a value"),
    "an empty table": (table_leaves, b"\n \n", "is empty, expected a table whose first line names its columns"),
    "quotes that do not close": (table_leaves, b'a,b\n1,"2\n', r"line 2: not a table \(unexpected end of data\)"),
    "text behind quotes": (table_leaves, b'a,b\n1,"2"x\n', "line 2: not a table"),
    "a huge cell": (table_leaves, b"a\n" + b"x" * 200_000, "line 2: not a table .field larger"),
    "a long key": (study_leaves, b"A\tx\n" + b"B" * 1001 + b"\ty", "line 2: a name of more than 1000 characters"),
    "a long column": (table_leaves, b"a," + b"B" * 1001 + b"\n1,2", "line 1: a name of more than 1000 characters"),
    "a long number of an experiment": (study_leaves, b"Experiment Number\t" + b"1" * 1001, "line 1: a name of more"),
}


@pytest.mark.parametrize(("leaves", "raw", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_of_its_kind_is_refused(leaves, raw, message):
    """The sentence names the document, the line and what was found."""
    with pytest.raises(Malformed, match=message):
        list(leaves(raw, "where"))


@pytest.mark.parametrize("leaves", [study_leaves, table_leaves])
def test_lines_and_values_are_limited(leaves, monkeypatch):
    """A document of any size costs a bounded time and memory."""
    raw = b"A\tb\n" + b"C\t2\n" * 9
    assert list(leaves(raw, "where"))
    monkeypatch.setattr(tabular, "MAX_CELLS", 5)
    with pytest.raises(Malformed, match=r"where, line \d: more than 5 values"):
        list(leaves(raw, "where"))
    monkeypatch.setattr(tabular, "MAX_LINES", 3)
    with pytest.raises(Malformed, match="where has more than 3 lines"):
        list(leaves(raw, "where"))
