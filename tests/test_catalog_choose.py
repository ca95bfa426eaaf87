"""The written precedence: which of several statements is taken, and which pairs of them are conflicts."""

import itertools

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_assets.catalog.choose import as_text, judge
from em_assets.catalog.schema import CONFLICTS_SQL, STATEMENTS, VOCABULARY, arrow_table
from em_assets.catalog.stated import Stated
from em_assets.catalog.statements import Statement
from em_assets.catalog.vocabulary import FIELDS, PRECEDENCE


def said(field, value, authority, document="d", **more):
    return Statement(field, value, authority, document, "/k", str(value), **more)


def chosen(statements):
    return {(j.statement.volume, j.statement.field): j.statement.value for j in judge(statements) if j.chosen}


@pytest.mark.parametrize(("higher", "lower"), list(itertools.pairwise(PRECEDENCE)), ids=lambda authority: authority)
def test_each_authority_goes_before_the_next(higher, lower):
    """Override, file header, file metadata, publisher's API, its page, the spec: whatever order they come in."""
    one, other = said("instrument", "A", higher), said("instrument", "B", lower)
    assert chosen([one, other]) == chosen([other, one]) == {(None, "instrument"): "A"}


def test_a_third_party_is_never_believed():
    """EPFL states no organism: that somebody else calls it human does not make it so."""
    assert chosen([said("organism", "Homo sapiens", "third party"), said("organism", "rodent", "third party")]) == {}


def test_a_crops_description_is_the_specs():
    """Prose is about what is kept here: the publisher describes its whole entry."""
    assert chosen([said("description", "all", "publisher API"), said("description", "a crop", "spec")]) == {
        (None, "description"): "a crop"
    }


def test_among_equals_the_most_frequent_goes_first_then_the_first():
    """Two slices of three agree; of two that occur once, the first one stated."""
    statements = [
        said("magnification", 1.0, "file metadata", "a"),
        said("magnification", 2.0, "file metadata", "b"),
        said("magnification", 2.0, "file metadata", "c"),
        said("dwell_time_s", 5.0, "file metadata", "a"),
        said("dwell_time_s", 6.0, "file metadata", "b"),
    ]
    assert chosen(statements) == {(None, "magnification"): 2.0, (None, "dwell_time_s"): 5.0}
    assert [(j.statement.document, j.claims, j.rank) for j in judge(statements[:3])] == [("b", 2, 1), ("a", 1, 2)]


def test_each_volume_chooses_for_itself():
    """The training part is smaller than the volume, and that is no conflict."""
    statements = [said("source_size_z", 1065.0, "file header"), said("source_size_z", 165.0, "file header", volume="t")]
    assert chosen(statements) == {(None, "source_size_z"): 1065.0, ("t", "source_size_z"): 165.0}
    assert conflicts(statements) == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["instrument", "license", "source_size_x"]),
            st.sampled_from(["A", "b", "B"]),
            st.sampled_from([*PRECEDENCE, "third party"]),
        ),
        max_size=30,
    )
)
def test_one_of_each_field_is_chosen_and_none_is_lost(items):
    """Every claim is counted once; ranks are 1, 2, 3 ...; at most one is chosen, and none by a third party's word."""
    judged = judge([said(*item) for item in items])
    assert sum(j.claims for j in judged) == len(items)
    for field in {item[0] for item in items}:
        of_field = [j for j in judged if j.statement.field == field]
        assert [j.rank for j in of_field] == list(range(1, len(of_field) + 1))
        believed = {item[2] for item in items if item[0] == field} - {"third party"}
        assert sum(j.chosen for j in of_field) == bool(believed)


@pytest.mark.parametrize(
    ("value", "text"),
    [(5496.0, "5496"), (7.998250424861908, "7.998250424861908"), ("SBF-SEM", "SBF-SEM"), (0.1, "0.1")],
)
def test_values_as_text_are_exact(value, text):
    """No digit is lost between a claim and the table."""
    assert as_text(value) == text


def conflicts(statements, name="d"):
    """(value_a, value_b, chosen, reason) of the view, over a database of these statements."""
    stated = Stated(claims=None, judged=judge(statements))
    vocabulary = [
        {"field": f.name, "kind": f.kind, "tolerance": f.tolerance if f.kind == "number" else None}
        for f in FIELDS.values()
    ]
    with duckdb.connect() as database:
        for relation, rows in ((STATEMENTS, list(stated.rows(name))), (VOCABULARY, vocabulary)):
            table = arrow_table(relation, rows)
            database.register("incoming", table)
            database.execute(f"create table {relation.name} as from incoming")
            database.unregister("incoming")
        database.execute(CONFLICTS_SQL)
        return database.execute("select value_a, value_b, chosen, reason from conflicts").fetchall()


def test_a_conflict_names_both_values_and_the_choice():
    """EMPIAR's entry says 5628 columns, in two of its documents; the files have 5496."""
    statements = [
        said("source_size_x", 5628.0, "publisher API", "documents/entry.json"),
        said("source_size_x", 5628.0, "publisher API", "documents/entry.xml"),
        *(said("source_size_x", 5496.0, "file header", f"original/{n}.dm3") for n in range(16)),
        said("source_size_x", 5496.0, "spec", "spec.json"),
    ]
    assert conflicts(statements) == [("5496", "5628", "5496", "file header goes before publisher API")]


@pytest.mark.parametrize(
    ("field", "a", "b", "count"),
    [
        pytest.param("voxel_size_x_nm", 7.998250424861908, 8.0, 1, id="80 angstrom against 7.998 nm"),
        pytest.param("voxel_size_x_nm", 7.998250424861908, 7.99825, 0, id="rounded"),
        pytest.param("source_size_y", 39725.0, 39726.0, 1, id="one voxel of forty thousand"),
        pytest.param("dataset_size_bytes", 1.2e9, 1.17e9, 0, id="two digits"),
        pytest.param("instrument", "FEI Quanta", "fei quanta", 0, id="case"),
        pytest.param("instrument", "FEI Quanta", "FEI Magellan400", 1, id="two microscopes"),
        pytest.param("title", "one", "another", 0, id="prose"),
        pytest.param("acquired_on", "2018-06-11", "2018-11-06", 1, id="day and month"),
    ],
)
def test_what_disagrees(field, a, b, count):
    """Beyond the field's tolerance, after conversion; prose never."""
    assert len(conflicts([said(field, a, "file header"), said(field, b, "publisher API")])) == count


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (
            [said("organism", "a", "third party"), said("organism", "b", "third party")],
            "nobody whose word is taken states it",
        ),
        (
            [said("doi", "a", "override", note="the paper's is meant"), said("doi", "b", "publisher API")],
            "decided in the spec: the paper's is meant",
        ),
        ([said("doi", "a", "spec"), said("doi", "b", "third party")], "what a third party says is never taken"),
        (
            [said("working_distance_mm", 5.5, "file metadata"), said("working_distance_mm", 5591.26, "file metadata")],
            "both are of the file metadata: the more frequent, then the first",
        ),
    ],
    ids=["unknown", "override", "third party", "one file"],
)
def test_the_reason_is_in_words(statements, reason):
    """Why one was taken, or none."""
    assert [row[3] for row in conflicts(statements)] == [reason]


def test_what_is_below_the_choice_is_compared_too():
    """A page and the spec that disagree are listed, although a file's header was taken."""
    rows = conflicts([said("doi", "c", "file header"), said("doi", "a", "publisher page"), said("doi", "b", "spec")])
    assert ("a", "b", "c", "neither: file header goes before both") in rows
    assert len(rows) == 3
