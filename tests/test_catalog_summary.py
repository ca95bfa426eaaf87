"""METADATA_SUMMARY.md tells the catalogue in words that need no SQL."""

import re
from pathlib import Path

import pytest

from em_assets.catalog.query import query
from em_assets.catalog.summary import QUERIES, SUMMARY, summary, write_summary
from em_assets.store import LocalStore
from test_catalog_exports import ONE, TWO, make_database, statement, store_with

DM3 = "original/slice_0000.dm3"
WIDTH = "source_size_x"
SAID = [
    statement("retina", WIDTH, 5496.0, "file header", document=DM3, stated="5496", chosen=True),
    statement("retina", WIDTH, 5628.0, "publisher API", stated="5628", rank=2),
    statement("retina", "voxel_size_x_nm", 7.998250424861908, "file header", document=DM3, chosen=True),
    statement("retina", "voxel_size_x_nm", 8.0, "publisher API", stated="80 Å", rank=2),
    statement("retina", "organism", "Danio rerio", "spec", document="spec", chosen=True),
    statement("brain_crop", "organism", "Drosophila melanogaster", "spec", document="spec", chosen=True),
    statement("brain_crop", WIDTH, 34427.0, "third party", document="spec", note="read from emdata/raw/jpeg"),
    statement("brain_crop", WIDTH, 34432.0, "third party", document="spec", rank=2),
]
CLAIMS = [
    {"name": "retina", "document": DM3, "key": "/x", "extractor": "dm"},
    {"name": "retina", "document": "original/slice_0001.dm3", "key": "/x", "extractor": "dm"},
    {"name": "retina", "document": "documents/entry.json", "key": "/x", "extractor": "empiar_entry"},
    {"name": "brain_crop", "document": "spec", "key": "/x", "extractor": "spec"},
]
KEYS = [
    {"extractor": "dm", "key": "a.*.b", "source": "empiar", "documents": 2, "documents_with_key": 2, "share": 1.0},
    {"extractor": "dm", "key": "c|d", "source": "empiar", "documents": 2, "documents_with_key": 1, "share": 0.5},
]


def write(root: Path, **rows) -> tuple[Path, LocalStore]:
    given = {"datasets": [ONE, TWO], "statements": SAID, "claims": CLAIMS, "key_presence": KEYS}
    return store_with(root, **(given | rows))


def section(text: str, title: str) -> str:
    return re.split(r"\n## ", text.split(f"## {title}\n", 1)[1])[0]


def test_a_contradiction_in_words(tmp_path: Path):
    """Who says what, what was taken and why, in a sentence."""
    told = section(summary(*write(tmp_path)), "Where the sources contradict each other")
    assert (
        "- **Voxels of the whole published volume along x:** EMPIAR's entry says 5,628; the files' headers say 5,496. "
        "Taken: **5,496** (file header goes before publisher API)."
    ) in told
    assert "EMPIAR's entry says 8 nm (as “80 Å”); the files' headers say 7.9982504 nm" in told


def test_what_third_parties_say_is_shown_and_not_taken(tmp_path: Path):
    """Two outsiders disagree: both are quoted, with how sure they are, and nothing is taken."""
    told = section(summary(*write(tmp_path)), "Where the sources contradict each other")
    assert (
        "a third party says 34,432; another says 34,427 (read from emdata/raw/jpeg). "
        "Nothing was taken: nobody whose word is taken states it."
    ) in told


def test_axes_that_are_told_alike_are_told_once(tmp_path: Path):
    """The same words about x and y are one line; a small quantity is read in a unit of its size."""
    said = [
        statement("retina", f"voxel_size_{axis}_nm", value, authority, document=DM3, rank=rank, chosen=rank == 1)
        for axis in "xy"
        for value, authority, rank in ((4.0, "file header", 1), (8.0, "publisher page", 2))
    ]
    currents = ((2e-10, "file metadata", 1), (2.2e-10, "publisher page", 2))
    said += [statement("retina", "beam_current_a", value, who, rank=n, chosen=n == 1) for value, who, n in currents]
    told = section(summary(*write(tmp_path, statements=said)), "Where the sources contradict each other")
    assert told.count("oxel size along") == 1 and "- **Voxel size along x and y:** " in told
    assert "says 220 pA; " in told and "Taken: **200 pA**" in told


def test_common_and_unique_fields(tmp_path: Path):
    """What all have, what one has."""
    told = section(summary(*write(tmp_path)), "What they have in common")
    common, unique = told.split("Known of one only:")
    assert "Known of all 2:" in common and "organism" in common and "voxel size along x" not in common
    assert "- **retina:** voxels of the whole published volume along x, voxel size along x" in unique


def test_the_table_has_every_dataset(tmp_path: Path):
    """One line each, with status, shape, voxel size, type and licence."""
    told = section(summary(*write(tmp_path)), "The datasets")
    shape = "16 x 5500 x 5496 | 50 x 7.99825 x 7.99825"
    assert f"| [retina](#retina) | complete | {shape} | uint8 | 1.2 MB | CC0-1.0 | yes | 2 |" in told
    assert (
        "| [brain_crop](#brain_crop) | listed | 1000 x 1000 x 1000 | 8 x 8 x 8 | uint8 |  | CC-BY-4.0 | yes | 0 |"
        in told
    )


@pytest.mark.parametrize(
    ("compression", "told"),
    [
        pytest.param("zstd 1", "TIFF; zstd 1", id="compressed"),
        pytest.param("none", "TIFF; uncompressed", id="stated to be none"),
        pytest.param(None, "TIFF", id="not stated"),
    ],
)
def test_how_a_dataset_is_published(tmp_path: Path, compression: str | None, told: str):
    """No compression is a fact to tell, and another one than that nobody said."""
    rows = [ONE | {"file_format": "TIFF", "compression": compression}]
    assert f"\n- **Published as:** {told}\n" in section(summary(*write(tmp_path, datasets=rows)), "One by one")


def test_publishers_keys(tmp_path: Path):
    """How many keys a publisher's documents have and how many are in every one."""
    told = section(summary(*write(tmp_path)), "The publishers' own keys")
    assert "| empiar | dm | 2 | 2 | 1 |  | `a.*.b`, `c\\|d` |" in told


def test_gaps(tmp_path: Path):
    """What is not known, not downloaded, failed or not to be had."""
    rows = [
        ONE | {"missing_fraction": 0.125},
        TWO,
        TWO | {"name": "lost", "status": "error", "status_reason": "it *broke*"},
    ]
    documents = [{"name": "retina", "path": "documents/entry.xml", "problem": "not found (404)"}]
    checks = [{"name": "retina", "check_name": "shape", "passed": False, "message": "5 is not 6"}]
    told = section(summary(*write(tmp_path, datasets=rows, documents=documents, checks=checks)), "What is missing")
    for line in (
        "- **Not downloaded:** brain_crop.",
        "- **retina:** the publisher does not have 12 % of its voxels.",
        "- **lost** is error: it \\*broke\\*.",
        "- **retina:** `documents/entry.xml` could not be had: not found (404).",
        "- **retina:** the check `shape` failed: 5 is not 6.",
        "| brain_crop | authors, day of release, organism, organism's number in the NCBI taxonomy, sample, ",
    ):
        assert line in told


@pytest.mark.parametrize("sql", [sql for _, sql in QUERIES], ids=[question for question, _ in QUERIES])
def test_the_questions_work_as_printed(tmp_path: Path, sql: str):
    """Each is printed as one shell line and has an answer."""
    database, store = write(tmp_path)
    assert f'em-assets sql "{sql}"' in summary(database, store)
    assert query(database, sql).rows


def test_the_same_database_gives_the_same_text(tmp_path: Path):
    """In whatever order the rows lie; nothing is written twice."""
    database, store = write(tmp_path / "one")
    other, _ = write(
        tmp_path / "two", datasets=[TWO, ONE], statements=SAID[::-1], claims=CLAIMS[::-1], key_presence=KEYS[::-1]
    )
    assert summary(database, store) == summary(other, store)
    assert [export.changed for export in write_summary(database, store)] == [True]
    assert [export.changed for export in write_summary(database, store)] == [False]
    assert store.read(SUMMARY).decode() == summary(database, store)


def test_nothing_known_yet(tmp_path: Path):
    """A fresh clone's page is whole, too: no datasets at all, and one that says next to nothing."""
    database, store = store_with(tmp_path)
    assert "0 datasets of 0 publishers: none." in summary(database, store)
    database.unlink()
    make_database(database, datasets=[{"name": "x", "status": "listed"}])
    text = summary(database, store)
    assert "### x" in text and "None" not in text


def test_markdown_of_publishers_is_text(tmp_path: Path):
    """What a publisher writes cannot become a heading, a link, a table cell or a tag."""
    title = "<script>x</script> | [a](b) *c* `d`\n# e"
    text = summary(*write(tmp_path, datasets=[ONE | {"title": title}]))
    assert "\\<script\\>x\\</script\\> \\| \\[a\\](b) \\*c\\* \\`d\\` # e" in text
    assert "\n# e" not in text


def test_nothing_personal_is_in_it(tmp_path: Path):
    """Neither an address nor a local path nor the words of a marked claim."""
    said = [
        statement("retina", "instrument", "FEI Quanta", "file header", chosen=True, document=DM3),
        statement("retina", "instrument", "at jane's", "publisher API", rank=2, personal=True, stated="Jane's desk"),
        statement("retina", "instrument", "/home/jane/x", "publisher page", rank=3, note="jane@example.org says"),
    ]
    text = summary(*write(tmp_path, datasets=[ONE], statements=said))
    assert "jane" not in text.casefold()
