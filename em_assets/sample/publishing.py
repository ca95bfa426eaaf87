"""What the publishers' modules share: addresses that follow the content, and specs nobody can take for the real ones.

A publisher module has DATASET, `write(origin, request) -> Facts` (writes below `origin`, returns JSON) and
`spec(facts, addresses)`: the packaged spec, changed with the functions below.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from em_assets.datasets.source import expand
from em_assets.settings import PACKAGED_DATASETS

SAMPLE_DOI = "10.5072/em-assets-sample"
SAMPLE_NOTES = {"doi": "10.5072 is the prefix for tests; no such DOI is registered"}
MEASURED = ("organism", "sample", "instrument", "modality")
"""Keys of a spec that say what was measured, and with what: a drawing has none."""
FOLDER = "sample"
"""What all samples lie below, so that every address shows what it is."""

Facts = dict[str, Any]
FileFacts = dict[str, dict[str, Any]]
"""By path below the dataset's folder: `size_bytes`, `checksum`, `pixels_sha256`."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the sample is served, without a slash at the end."""

    http: str
    ftp: str

    def below(self, root: str) -> Addresses:
        return Addresses(f"{self.http}/{root}", f"{self.ftp}/{root}")


def settle(folder: Path) -> Path:
    """Renames a written folder after its content: a store can never take one sample's files for another's."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(repr((file.relative_to(folder).as_posix(), file_sha256(file))).encode())
    return folder.rename(f"{folder}-{digest.hexdigest()[:12]}")


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_facts(file: Path) -> dict[str, Any]:
    """Size and md5, as a spec may pin them."""
    with file.open("rb") as stream:
        md5 = hashlib.file_digest(stream, "md5").hexdigest()
    return {"size_bytes": file.stat().st_size, "checksum": f"md5:{md5}"}


def packaged_spec(dataset: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((PACKAGED_DATASETS / f"{dataset}.yaml").read_text(encoding="utf-8"))
    return document


def drawn_words(seed: int, *, instead_of: str, served: str) -> dict[str, Any]:
    """Title, description and rights of something drawn. `served`: how, and which of its numbers are nominal."""
    return {
        "title": f"SAMPLE: drawn neuropil (seed {seed}), not {instead_of}",
        "description": f"Not measured: a texture that em_assets drew, seed {seed}, {served}",
        "license": "CC0-1.0",
        "citation": "None: nobody measured it.",
        "doi": SAMPLE_DOI,
        "modality": "none (drawn)",
        "notes": SAMPLE_NOTES,
    }


def sample_spec(dataset: str, words: dict[str, Any], page_url: str) -> dict[str, Any]:
    """The packaged spec with the words of the sample; what it measures and where it lies is still the real one's."""
    document = {key: value for key, value in packaged_spec(dataset).items() if key not in MEASURED}
    publisher = f"sample_{document['publisher']}"
    return document | words | {"publisher": publisher, "page_url": page_url, "claims": []}


def moved(address: str, base: str) -> str:
    """A publisher's address on the sample's server: the path and the query stay."""
    parts = urlsplit(address)
    return base + parts.path + (f"?{parts.query}" if parts.query else "")


def moved_files(source: dict[str, Any], base: Addresses, files: FileFacts) -> dict[str, Any]:
    """A `files` source with the sample's addresses; every size and digest that the real spec pins is the sample's."""
    return source | {
        "url": moved(source["url"], base.http),
        "mirrors": [moved(mirror, base.ftp) for mirror in source.get("mirrors", [])],
        "files": [
            entry | {key: value for key, value in files[expand(entry["path"])[0]].items() if key in entry}
            for entry in source["files"]
        ],
    }


def moved_documents(documents: list[dict[str, Any]], base: Addresses) -> list[dict[str, Any]]:
    return [
        document
        | {"url": moved(document["url"], base.http)}
        | ({"first": [moved(first, base.http) for first in document["first"]]} if "first" in document else {})
        for document in documents
    ]
