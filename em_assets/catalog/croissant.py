"""Croissant 1.1 for the blocks of each finished dataset: `<name>/croissant.json`, so that ML tools load their index.

https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html has no type for a Zarr, so what it describes is the
index of blocks (Parquet), one record for each: the box, in voxels and in nanometres, how much of it is real, its
numbers and its split. `volumes` says where each volume lies, `splits` what the splits are for. `missing_required` has
what the specification asks for: mlcroissant is silent about some of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_assets.catalog.block_indexes import index_path
from em_assets.catalog.cite import Citation, as_bibtex, citations, doi_url, is_spdx, spdx_url
from em_assets.catalog.crate import ORGANIZATION
from em_assets.catalog.exports import Export, as_json, as_rows, public_datasets, public_rows, write_if_changed
from em_assets.catalog.schema import OF_INDEX, Column
from em_assets.records import VOLUME, DatasetFolder
from em_assets.store import Store

CROISSANT = "croissant.json"
VERSION = "http://mlcommons.org/croissant/1.1"
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "description": {"@container": "@language"},
    **{
        term: f"cr:{term}"
        for term in (
            *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileObject"),
            *("fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5"),
            *("parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate"),
            *("separator", "source", "subField", "transform"),
        )
    },
}
"""The one that the specification gives."""
PARQUET = "application/x-parquet"
"""As the specification's own examples have it."""
SPLITS = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
TYPES = {
    "VARCHAR": "sc:Text",
    "INTEGER": "cr:Int32",
    "BIGINT": "cr:Int64",
    "DOUBLE": "cr:Float64",
    "FLOAT[]": "cr:Float32",
}
REQUIRED = ("@context", "@type", "conformsTo", "name", "description", "license", "url", "creator", "datePublished")
REQUIRED_OF_FILES = ("contentUrl", "encodingFormat", "sha256")
HASHED_AT_ONCE = 16 * 2**20


@dataclass(frozen=True, slots=True)
class IndexFile:
    """One volume's index, as it is in the store."""

    volume: str | None
    blocks: int
    content: str
    features: int | None
    """How many numbers describe a block; None where none do."""
    size_bytes: int
    sha256: str

    @property
    def path(self) -> str:
        return index_path(self.volume)

    @property
    def location(self) -> str:
        """Of the volume, relative to the dataset's folder."""
        return VOLUME if self.volume is None else f"volumes/{self.volume}.ome.zarr"


def write_croissants(database: Path, store: Store) -> list[Export]:
    """Writes those of the datasets whose blocks are in the catalogue, and removes the others'.

    One that lacks what is required is not written either: `missing_required` of `croissants` tells.
    """
    documents = croissants(database, store)
    whole = {name: made for name, made in documents.items() if not missing_required(made)}
    exports = [write_if_changed(store, f"{name}/{CROISSANT}", as_json(made)) for name, made in whole.items()]
    names = [row["name"] for row in as_rows(public_datasets(database, store))]
    for path in (f"{name}/{CROISSANT}" for name in names if name not in whole):
        if store.size_bytes(path) is not None:
            store.delete(path)
            exports.append(Export(path, changed=True))
    return exports


def croissants(database: Path, store: Store) -> dict[str, dict[str, Any]]:
    """The document of each dataset whose blocks are in the catalogue, by its name."""
    indexes: dict[str, list[IndexFile]] = {}
    for row in public_rows(
        database,
        "select name, count(*) as blocks, any_value(content) as content, max(len(features)) as features from blocks "
        "group by name order by name",
        store,
    ):
        dataset, _, volume = row.pop("name").partition("/")
        found = _index_file(DatasetFolder(store, dataset), volume or None, row)
        if found is not None:
            indexes.setdefault(dataset, []).append(found)
    records = {row["name"]: row for row in as_rows(public_datasets(database, store)) if row["name"] in indexes}
    cited = dict(zip(records, citations(database, list(records)), strict=True))
    return {name: croissant(record, cited[name], indexes[name]) for name, record in records.items()}


def _index_file(folder: DatasetFolder, volume: str | None, known: Mapping[str, Any]) -> IndexFile | None:
    """None if it is gone by now."""
    path = folder.path(index_path(volume))
    size_bytes = folder.store.size_bytes(path)
    if size_bytes is None:
        return None
    digest = hashlib.sha256()
    for start in range(0, size_bytes, HASHED_AT_ONCE):
        digest.update(folder.store.read_range(path, start, HASHED_AT_ONCE))
    return IndexFile(volume=volume, size_bytes=size_bytes, sha256=digest.hexdigest(), **known)


def croissant(record: Mapping[str, Any], cited: Citation, indexes: Sequence[IndexFile]) -> dict[str, Any]:
    """The document; what is not known is left out."""
    known = {
        "name": record["title"] or record["name"],
        "alternateName": record["name"],
        "description": record["description"] or record["title"] or record["name"],
        "license": _license(record["license"]),
        "url": record["page_url"],
        "sameAs": doi_url(cited.doi) if cited.doi else None,
        "creator": [_creator(name) for name in cited.creators] or _publisher(record, cited),
        "publisher": _publisher(record, cited),
        "datePublished": cited.published,
        "citeAs": as_bibtex(cited).strip(),
        "version": _version(record["sha256"]),
        "keywords": [word for word in ("electron microscopy", record["modality"], record["organism"]) if word],
        "distribution": [_file(record, index) for index in indexes],
        "recordSet": [_splits(), _volumes(record, indexes), *(_blocks(index) for index in indexes)],
    }
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        **{key: value for key, value in known.items() if value not in (None, "", [])},
    }


def missing_required(document: Mapping[str, Any]) -> list[str]:
    """What the specification requires and the document lacks: `license`, `blocks.parquet: sha256` ..."""
    lacking = [key for key in REQUIRED if not document.get(key)]
    if document.get("conformsTo") not in (None, VERSION):
        lacking.append("conformsTo")
    files = document.get("distribution") or []
    lacking += [f"{file.get('@id')}: {key}" for file in files for key in REQUIRED_OF_FILES if not file.get(key)]
    return lacking if files else [*lacking, "distribution"]


def _license(name: str | None) -> str | None:
    return spdx_url(name) if name is not None and is_spdx(name) else name


def _creator(name: str) -> dict[str, str]:
    is_organization = any(word in name.casefold().split() for word in ORGANIZATION)
    return {"@type": "sc:Organization" if is_organization else "sc:Person", "name": name}


def _publisher(record: Mapping[str, Any], cited: Citation) -> dict[str, str] | None:
    """Who answers for the data; stands in for its creators where the publisher does not name them."""
    name = cited.publisher or record["source"]
    return {"@type": "sc:Organization", "name": name} if name else None


def _version(sha256: str | None) -> str:
    """Semantic; what the voxels are follows `+`, so that equal volumes have equal versions."""
    return f"1.0.0+{sha256[:12]}" if sha256 else "1.0.0"


def _file(record: Mapping[str, Any], index: IndexFile) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": index.path,
        "name": index.path,
        "description": f"The {index.blocks} blocks of {_volume_name(record, index)}: where each lies, what is in it.",
        "contentUrl": index.path,
        "contentSize": f"{index.size_bytes} B",
        "encodingFormat": PARQUET,
        "sha256": index.sha256,
    }


def _splits() -> dict[str, Any]:
    """`sc:URL`, not `cr:Split`, for what each is: mlcroissant 1.1 refuses the specification's own example."""
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "Blocks of different splits never touch; those in the margin between them are in none.",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [_inline("splits/name", "sc:Text"), _inline("splits/url", "sc:URL")],
        "data": [{"splits/name": name, "splits/url": url} for name, url in SPLITS.items()],
    }


def _volumes(record: Mapping[str, Any], indexes: Sequence[IndexFile]) -> dict[str, Any]:
    """The URL is relative to the document, as the files' are."""
    return {
        "@type": "cr:RecordSet",
        "@id": "volumes",
        "name": "volumes",
        "description": "The OME-Zarr 0.5 volumes that the blocks are of; a block is a box of one of its levels.",
        "key": {"@id": "volumes/name"},
        "field": [
            _inline("volumes/name", "sc:Text"),
            _inline("volumes/url", "sc:URL"),
            _inline("volumes/content", "sc:Text"),
        ],
        "data": [
            {
                "volumes/name": _volume_name(record, index),
                "volumes/url": f"{index.location}/",
                "volumes/content": index.content,
            }
            for index in indexes
        ],
    }


def _inline(id_: str, data_type: str) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": id_, "name": id_.rpartition("/")[2], "dataType": data_type}


def _blocks(index: IndexFile) -> dict[str, Any]:
    name = "blocks" if index.volume is None else f"blocks_{index.volume}"
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": "Boxes are half open; axes are z, y, x; nanometres are the publisher's frame.",
        "key": {"@id": f"{name}/id"},
        "field": list(_fields(name, index)),
    }


def _fields(record_set: str, index: IndexFile) -> Iterator[dict[str, Any]]:
    for column in OF_INDEX:
        if column.name.startswith("features") and index.features is None:
            continue
        field = _field(record_set, index, column)
        if column.name == "split":
            field["references"] = {"field": {"@id": "splits/name"}}
        elif column.name == "name":
            field["references"] = {"field": {"@id": "volumes/name"}}
        elif column.name == "features":
            field |= {"isArray": True, "arrayShape": str(index.features)}
        yield field


def _field(record_set: str, index: IndexFile, column: Column) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{column.name}",
        "name": column.name,
        "description": column.comment,
        "dataType": TYPES[column.type],
        "source": {"fileObject": {"@id": index.path}, "extract": {"column": column.name}},
    }


def _volume_name(record: Mapping[str, Any], index: IndexFile) -> str:
    return record["name"] if index.volume is None else f"{record['name']}/{index.volume}"
