"""Datasets are cited with what is known of them, and what is not known is said."""

import json
import re
from pathlib import Path

import pytest

from em_assets.catalog.cite import UNAVAILABLE, as_datacite, citations, formatted, is_spdx
from em_assets.errors import Malformed
from test_catalog_exports import ONE, TWO, statement, store_with


@pytest.fixture
def database(tmp_path: Path) -> Path:
    note = {"name": "brain_crop", "document": "spec", "extractor": "spec", "key": "/notes/license"}
    claims = [note | {"key_pattern": "/notes/license", "value_text": "as third parties state it"}]
    return store_with(tmp_path, datasets=[ONE, TWO], claims=claims)[0]


def test_text_is_the_sentence_the_doi_and_the_licence(database: Path):
    """One line per dataset, in the order asked for."""
    retina, brain = formatted(citations(database, ["retina", "brain_crop"]), "text").splitlines()
    assert retina == f"{ONE['citation']} https://doi.org/10.6019/EMPIAR-11759 Licence: CC0-1.0."
    assert brain == f"{TWO['citation']} https://doi.org/10.7554/eLife.57443 Licence: CC-BY-4.0."


def test_bibtex(database: Path):
    """Names are never taken apart, what TeX would read as its own is escaped, unknown fields are left out."""
    text = formatted(citations(database, ["retina", "brain_crop"]), "bibtex")
    retina, brain = text.split("\n@misc")
    assert retina.startswith("@misc{retina,\n") and brain.startswith("{brain_crop,\n")
    assert "author = {{Wilsch-Bräuninger M} and Schmidt, Anna}" in retina
    assert "title = {{Developing retina}}" in retina and "year = {2024}" in retina
    assert "author" not in brain
    assert all(block.count("{") == block.count("}") for block in (retina, "@misc" + brain))


def test_bibtex_escapes(tmp_path: Path):
    """Titles may hold any character."""
    database, _ = store_with(tmp_path, datasets=[ONE | {"title": "50 % of A&B_1 {x} #2"}])
    text = formatted(citations(database, ["retina"]), "bibtex")
    assert r"title = {{50 \% of A\&B\_1 \{x\} \#2}}" in text


def test_datacite_has_its_mandatory_properties(database: Path):
    """Kernel 4: identifier, creators, title, publisher, year and type are there; dates and rights where known."""
    [entry] = json.loads(formatted(citations(database, ["retina"]), "datacite"))
    assert entry["identifiers"] == [{"identifier": "10.6019/EMPIAR-11759", "identifierType": "DOI"}]
    assert entry["creators"] == [{"name": "Wilsch-Bräuninger M"}, {"name": "Schmidt, Anna"}]
    assert entry["titles"] == [{"title": "Developing retina"}]
    assert (entry["publisher"], entry["publicationYear"]) == ({"name": "EMPIAR"}, "2024")
    assert entry["types"] == {"resourceTypeGeneral": "Dataset", "resourceType": "SBF-SEM volume"}
    assert {"date": "2024-01-16", "dateType": "Available"} in entry["dates"]
    assert entry["rightsList"][0]["rightsUri"] == "https://spdx.org/licenses/CC0-1.0"
    assert re.fullmatch(r"http://datacite\.org/schema/kernel-4", entry["schemaVersion"])


def test_what_is_unknown_is_said_and_not_made_up(database: Path):
    """DataCite's code stands for it, `missing` names it, and a paper's DOI is not taken for the data's."""
    [brain] = citations(database, ["brain_crop"])
    assert brain.missing == ("Identifier", "Creator", "Publisher")
    entry = as_datacite(brain)
    assert entry["identifiers"][0]["identifier"] == UNAVAILABLE
    assert entry["creators"] == [{"name": UNAVAILABLE}] and entry["publisher"] == {"name": UNAVAILABLE}
    assert entry["relatedIdentifiers"][0] == {
        "relatedIdentifier": "10.7554/eLife.57443",
        "relatedIdentifierType": "DOI",
        "relationType": "IsDescribedBy",
    }
    assert (brain.published, brain.published_as) == ("2020", "the year of the citation")
    assert brain.notes == ("licence: as third parties state it",)


def test_csl(database: Path):
    """Reference managers get the day of the release and the DOI."""
    [entry] = json.loads(formatted(citations(database, ["retina"]), "csl"))
    assert entry["issued"] == {"date-parts": [[2024, 1, 16]]}
    assert (entry["type"], entry["DOI"]) == ("dataset", "10.6019/EMPIAR-11759")
    assert entry["author"] == [{"literal": "Wilsch-Bräuninger M"}, {"literal": "Schmidt, Anna"}]


def test_an_unknown_name(database: Path):
    """The error names the nearest dataset."""
    with pytest.raises(Malformed, match=r"no dataset 'retnia' in the catalogue; the nearest is retina;"):
        citations(database, ["brain_crop", "retnia"])


def test_what_a_marked_claim_says_is_not_cited(tmp_path: Path):
    """Authors that were read from a claim with somebody's address are left out, and named as missing."""
    said = [statement("retina", "authors", "x", "file metadata", chosen=True, personal=True)]
    database, _ = store_with(tmp_path, datasets=[ONE], statements=said)
    [retina] = citations(database, ["retina"])
    assert retina.creators == () and retina.missing == ("Creator",)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("CC-BY-4.0", True),
        ("CC0-1.0", True),
        ("CC-BY-NC-SA-4.0", True),
        ("ODC-By-1.0", True),
        ("LicenseRef-non-commercial", False),
        ("CC BY 4.0", False),
        ("see the page", False),
    ],
)
def test_spdx_identifiers(name: str, known: bool):
    """Only an identifier becomes an address at spdx.org."""
    assert is_spdx(name) is known
