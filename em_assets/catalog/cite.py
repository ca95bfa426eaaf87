"""How to cite datasets: as text, BibTeX, DataCite (kernel 4, as JSON) and CSL-JSON. The unknown is said, not made up.

DataCite's properties are those of https://schema.datacite.org/meta/kernel-4; its word for what is not known is `:unav`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from em_assets.catalog.exports import as_rows, public_datasets, public_rows
from em_assets.errors import Malformed

Format = Literal["text", "bibtex", "datacite", "csl"]
UNAVAILABLE = ":unav"
"""DataCite: value unavailable, possibly unknown."""
DATA_REPOSITORIES = {
    "10.6019": "EMPIAR",
    "10.17867": "IDR",
    "10.25378": "Janelia's figshare",
    "10.6084": "figshare",
    "10.5281": "Zenodo",
    "10.5061": "Dryad",
    "10.60533": "BossDB",
}
"""By the prefix of their DOIs. A DOI of nobody of these is taken for the paper's that a spec asks to cite."""
YEAR = re.compile(r"\(((?:19|20)\d{2})[a-z]?\)")
SPDX = re.compile(
    r"(CC0|CC-BY(-(NC|SA|ND))*|ODC-By|ODbL|PDDL|MIT|Apache|BSD-[234]-Clause|ISC|(A|L)?GPL)"
    r"(-\d+(\.\d+)*(-only|-or-later)?)?"
)
"""Licences that public volumes have."""


@dataclass(frozen=True)
class Citation:
    """What is known of a dataset for whoever cites it; empty where nothing is."""

    name: str
    title: str | None
    description: str | None
    creators: tuple[str, ...]
    publisher: str | None
    published: str | None
    """ISO 8601: the day, or the year alone."""
    published_as: str | None
    """Who says so: `the day of the release`, or `the year of the citation`."""
    doi: str | None
    """Of the data."""
    paper_doi: str | None
    """Of the paper about it."""
    source_id: str | None
    page_url: str | None
    download_url: str | None
    license: str | None
    citation: str | None
    """The sentence that the spec asks for."""
    kind: str
    """What sort of images: `FIB-SEM volume`."""
    dates: Mapping[str, str]
    """By DataCite's types: Submitted, Available ..."""
    notes: tuple[str, ...]
    """How sure the licence, the citation and the DOI are, in the spec's words."""

    @property
    def year(self) -> str | None:
        return self.published[:4] if self.published else None

    @property
    def missing(self) -> tuple[str, ...]:
        """Which of DataCite's mandatory properties are not known."""
        known = {
            "Identifier": self.doi,
            "Creator": self.creators,
            "Title": self.title,
            "Publisher": self.publisher,
            "PublicationYear": self.published,
        }
        return tuple(name for name, value in known.items() if not value)


def citations(database: Path, names: Sequence[str]) -> list[Citation]:
    """One for each name, in their order. Raises Malformed naming the nearest if a dataset is unknown."""
    rows = {row["name"]: row for row in as_rows(public_datasets(database))}
    notes: dict[str, list[str]] = {}
    for note in public_rows(
        database,
        "select name, key, value_text from claims where extractor = 'spec' "
        "and key in ('/notes/license', '/notes/citation', '/notes/doi') and mark is null order by name, key",
    ):
        what = note["key"].rpartition("/")[2].replace("license", "licence").replace("doi", "DOI")
        notes.setdefault(note["name"], []).append(f"{what}: {note['value_text']}")
    for name in names:
        if name not in rows:
            near = difflib.get_close_matches(name, list(rows), n=1, cutoff=0.0)
            hint = f"the nearest is {near[0]}; " if near else ""
            raise Malformed(f"there is no dataset {name!r} in the catalogue; {hint}`em-assets list` shows all.")
    return [citation_of(rows[name], notes.get(name, ())) for name in names]


def citation_of(row: Mapping[str, Any], notes: Sequence[str] = ()) -> Citation:
    """Of a row of `datasets`."""
    known = {"doi": row["doi"], "paper_doi": row["publication_doi"]}
    if known["doi"] is not None and (known["doi"] == known["paper_doi"] or not _is_of_data(known["doi"])):
        known = {"doi": None, "paper_doi": known["paper_doi"] or known["doi"]}
    published, published_as = _published(row)
    dates = {
        "Collected": row["acquired_on"],
        "Submitted": row["deposited_on"],
        "Available": row["released_on"],
        "Updated": row["updated_on"],
    }
    same = ("name", "title", "description", "source_id", "page_url", "download_url", "license", "citation")
    return Citation(
        **{key: row[key] for key in same},
        **known,
        creators=tuple(author.strip() for author in (row["authors"] or "").split(";") if author.strip()),
        publisher=row["publisher_name"],
        published=published,
        published_as=published_as,
        kind=f"{row['modality']} volume" if row["modality"] else "Image volume",
        dates={kind: _iso(day) for kind, day in dates.items() if day is not None},
        notes=tuple(notes),
    )


def formatted(cited: Sequence[Citation], form: Format) -> str:
    """All of them as one text that ends with a newline; of `datacite` and `csl`, a JSON list."""
    write: dict[Format, Callable[[Citation], str]] = {"text": as_text, "bibtex": as_bibtex}
    if form in write:
        return "".join(write[form](citation) + "\n" for citation in cited)
    entries = [as_datacite(citation) if form == "datacite" else as_csl(citation) for citation in cited]
    return json.dumps(entries, ensure_ascii=False, indent=1) + "\n"


def as_text(cited: Citation) -> str:
    """One line: the sentence that is asked for, the DOI, the licence."""
    sentence = " ".join((cited.citation or cited.title or cited.name).split())
    links = [
        doi_url(doi)
        for doi in (cited.doi, cited.paper_doi)
        if doi is not None and doi.casefold() not in sentence.casefold()
    ]
    licence = f"Licence: {cited.license}." if cited.license else "Licence: not known."
    return " ".join([sentence, *links, licence])


def as_bibtex(cited: Citation) -> str:
    """`@misc`, which every style knows, under the dataset's name."""
    fields = {
        "title": f"{{{_tex(cited.title)}}}" if cited.title else None,
        "author": " and ".join(_tex_name(name) for name in cited.creators) or None,
        "year": cited.year,
        "publisher": _tex(cited.publisher) if cited.publisher else None,
        "doi": cited.doi or cited.paper_doi,
        "url": cited.page_url,
        "howpublished": _tex(cited.kind),
        "note": _tex(" ".join((cited.citation or "").split())) or None,
        "copyright": _tex(cited.license) if cited.license else None,
    }
    lines = [f"  {key} = {{{value}}}," for key, value in fields.items() if value]
    return "\n".join([f"@misc{{{cited.name},", *lines, "}"])


def as_datacite(cited: Citation) -> dict[str, Any]:
    """Kernel 4. A mandatory property that is not known is `:unav`; `Citation.missing` names it."""
    identifier = {"identifier": cited.doi or UNAVAILABLE, "identifierType": "DOI"}
    entry = {
        "identifiers": [identifier],
        "creators": [{"name": name} for name in cited.creators or (UNAVAILABLE,)],
        "titles": [{"title": cited.title or UNAVAILABLE}],
        "publisher": {"name": cited.publisher or UNAVAILABLE},
        "publicationYear": cited.year or UNAVAILABLE,
        "types": {"resourceTypeGeneral": "Dataset", "resourceType": cited.kind},
        "alternateIdentifiers": [
            {"alternateIdentifier": value, "alternateIdentifierType": kind}
            for kind, value in (("publisher's own", cited.source_id), ("URL", cited.page_url))
            if value
        ],
        "relatedIdentifiers": [
            {"relatedIdentifier": value, "relatedIdentifierType": kind, "relationType": relation}
            for value, kind, relation in (
                (cited.paper_doi, "DOI", "IsDescribedBy"),
                (cited.download_url, "URL", "IsDerivedFrom"),
            )
            if value
        ],
        "dates": [{"date": day, "dateType": kind} for kind, day in cited.dates.items()],
        "rightsList": [_rights(cited.license)] if cited.license else [],
        "descriptions": [{"description": cited.description, "descriptionType": "Abstract"}]
        if cited.description
        else [],
        "schemaVersion": "http://datacite.org/schema/kernel-4",
    }
    return {key: value for key, value in entry.items() if value}


def as_csl(cited: Citation) -> dict[str, Any]:
    """What reference managers read."""
    entry = {
        "id": cited.name,
        "type": "dataset",
        "title": cited.title,
        "author": [{"literal": name} for name in cited.creators],
        "issued": {"date-parts": [[int(part) for part in cited.published.split("-")]]} if cited.published else None,
        "publisher": cited.publisher,
        "DOI": cited.doi or cited.paper_doi,
        "URL": cited.page_url,
        "note": cited.citation,
    }
    return {key: value for key, value in entry.items() if value}


def doi_url(doi: str) -> str:
    return f"https://doi.org/{doi}"


def is_spdx(license_name: str) -> bool:
    """Whether a licence is named by its SPDX identifier (of those that public volumes have)."""
    return SPDX.fullmatch(license_name) is not None


def spdx_url(identifier: str) -> str:
    return f"https://spdx.org/licenses/{identifier}"


def _rights(license_name: str) -> dict[str, str]:
    if not is_spdx(license_name):
        return {"rights": license_name}
    return {
        "rights": license_name,
        "rightsUri": spdx_url(license_name),
        "rightsIdentifier": license_name,
        "rightsIdentifierScheme": "SPDX",
        "schemeUri": "https://spdx.org/licenses/",
    }


def _is_of_data(doi: str) -> bool:
    return doi.partition("/")[0] in DATA_REPOSITORIES


def _published(row: Mapping[str, Any]) -> tuple[str, str] | tuple[None, None]:
    if row["released_on"] is not None:
        return _iso(row["released_on"]), "the day of the release"
    years = YEAR.findall(row["citation"] or "")
    return (years[-1], "the year of the citation") if years else (None, None)


def _iso(day: date | str) -> str:
    return day if isinstance(day, str) else day.isoformat()


TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    character: f"\\{character}" for character in "&%$#_{}"
}


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text)


def _tex_name(name: str) -> str:
    """As it is where it says which part is the family's (Family, Given); else in braces, so that none is guessed."""
    return _tex(name) if "," in name else f"{{{_tex(name)}}}"
