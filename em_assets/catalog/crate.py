"""RO-Crate 1.2 for each finished dataset: `<name>/ro-crate-metadata.json` says what is in the folder, of whom, of what.

https://w3id.org/ro/crate/1.2 asks for the descriptor and the root's name, description, datePublished and license. What
was imaged and how is told as the OME 2024 NGFF challenge does: specimen, biosample with the NCBI taxon, acquisition
with the term of the imaging methods' ontology (FBbi). Volumes are one entity each, never one per chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from em_assets.catalog.cite import Citation, citations, doi_url, is_spdx, spdx_url
from em_assets.catalog.exports import Export, as_json, as_rows, public_datasets, public_rows, write_if_changed
from em_assets.records import VOLUME
from em_assets.store import Store

CRATE = "ro-crate-metadata.json"
VERSION = "https://w3id.org/ro/crate/1.2"
DOIS = "https://registry.identifiers.org/registry/doi"
OME_ZARR = "https://ngff.openmicroscopy.org/0.5/"
CONTEXT: list[Any] = [
    f"{VERSION}/context",
    {
        "obo": "http://purl.obolibrary.org/obo/",
        "NCBI": {"@id": "https://www.ncbi.nlm.nih.gov/taxonomy/?term=", "@prefix": True},
        "sha256": "https://schema.org/sha256",
        "organism_classification": "https://schema.org/taxonomicRange",
        "biosample": "http://purl.obolibrary.org/obo/OBI_0002648",
        "specimen": "http://purl.obolibrary.org/obo/HSO_0000308",
        "preparation_method": "https://www.wikidata.org/wiki/Property:P1537",
        "image_acquisition": "https://schema.org/CreateAction",
        "fbbi_id": {"@id": "https://schema.org/measurementTechnique", "@type": "@id"},
        "resultOf": {"@reverse": "https://schema.org/result", "@type": "@id"},
    },
]
"""The challenge's terms, with those of schema.org where it left them undefined."""
FBBI = {
    "FIB-SEM": ("obo:FBbi_00050000", "focussed ion beam scanning electron microscopy (FIB-SEM)"),
    "SBF-SEM": ("obo:FBbi_00000585", "serial block face SEM (SBFSEM)"),
    "ssSEM": ("obo:FBbi_00000257", "scanning electron microscopy (SEM)"),
    "SEM": ("obo:FBbi_00000257", "scanning electron microscopy (SEM)"),
    "ssTEM": ("obo:FBbi_00000258", "transmission electron microscopy (TEM)"),
    "TEM": ("obo:FBbi_00000258", "transmission electron microscopy (TEM)"),
    "cryo-ET": ("obo:FBbi_00000256", "electron microscopy"),
}
"""The nearest term that the ontology has for each modality; another modality is told in words only."""
DIGEST = "of the sorted manifest: equal volumes have equal digests, wherever they are stored"
ORGANIZATION = ("team", "project", "consortium", "institute", "university", "laboratory", "centre", "center", "group")
OURS = {
    "metadata.json": "The dataset's record",
    "manifest.parquet": "Every stored object with its size, checksum and source",
    "coverage.parquet": "Which voxels the publisher has",
    "claims.parquet": "Everything that the publisher and the files state, word for word",
    "blocks.parquet": "Every block of the volume, with its box, numbers and split",
    "croissant.json": "The same as a Croissant description, for machine learning",
    "preview.png": "Three slices through the volume",
}
"""Further files of a finished dataset, those that are there."""
ENCODINGS = {
    "json": "application/json",
    "xml": "application/xml",
    "html": "text/html",
    "txt": "text/plain",
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "png": "image/png",
    "gz": "application/gzip",
    "h5": "application/x-hdf5",
    "hdf5": "application/x-hdf5",
    "parquet": "application/vnd.apache.parquet",
}
"""By ending; not the machine's own table, so that every machine writes the same crate."""


@dataclass
class _Graph:
    """Entities by their `@id`, in the order in which they came."""

    entities: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, id_: str, type_: str | list[str], **properties: Any) -> dict[str, str]:
        """Adds an entity, without what is unknown; returns a reference to it."""
        known = {key: value for key, value in properties.items() if value not in (None, "", [])}
        self.entities[id_] = {"@id": id_, "@type": type_, **known}
        return {"@id": id_}


def write_crates(database: Path, store: Store) -> list[Export]:
    """Writes the crate of every complete dataset, and removes those of datasets that are not complete (any more)."""
    records = as_rows(public_datasets(database, store))
    complete = [record for record in records if record["status"] == "complete"]
    cited = citations(database, [record["name"] for record in complete])
    files = public_rows(database, "from files where starts_with(path, 'original/') order by name, path", store)
    documents = public_rows(
        database, "select * exclude (text) from documents where problem is null order by name, path", store
    )
    exports = []
    for record, citation in zip(complete, cited, strict=True):
        name = record["name"]
        extras = [file for file in OURS if store.size_bytes(f"{name}/{file}") is not None]
        made = crate(
            record,
            citation,
            originals=[file for file in files if file["name"] == name],
            documents=[document for document in documents if document["name"] == name],
            extras=extras,
        )
        exports.append(write_if_changed(store, f"{name}/{CRATE}", as_json(made)))
    stale = [f"{record['name']}/{CRATE}" for record in records if record["status"] != "complete"]
    return exports + [Export(path, changed=True) for path in stale if _removed(path, store)]


def _removed(path: str, store: Store) -> bool:
    if store.size_bytes(path) is None:
        return False
    store.delete(path)
    return True


def crate(
    record: Mapping[str, Any],
    cited: Citation,
    *,
    originals: Sequence[Mapping[str, Any]] = (),
    documents: Sequence[Mapping[str, Any]] = (),
    extras: Sequence[str] = (),
) -> dict[str, Any]:
    """The document. `originals` and `documents` are rows of `files` and `documents`, `extras` keys of OURS."""
    graph = _Graph()
    graph.add(CRATE, "CreativeWork", about={"@id": "./"}, conformsTo={"@id": VERSION})
    graph.add("./", "Dataset")  # goes second; its properties are known at the end
    root = _described(graph, record, cited)
    root["resultOf"] = _acquisition(graph, record)
    root["hasPart"] = [
        *_volumes(graph, record),
        *_originals(graph, record, originals),
        *(_file(graph, document["path"], document) for document in documents),
        *(graph.add(file, "File", name=OURS[file], encodingFormat=_encoding(file)) for file in extras),
    ]
    graph.add("./", "Dataset", **root)
    return {"@context": CONTEXT, "@graph": list(graph.entities.values())}


def _described(graph: _Graph, record: Mapping[str, Any], cited: Citation) -> dict[str, Any]:
    """The root's own properties: what it is, of whom, under which licence."""
    day, note = _date_published(record, cited)
    return {
        "name": record["title"] or record["name"],
        "alternateName": record["name"],
        "description": record["description"] or record["title"] or record["name"],
        "datePublished": day,
        "license": _license(graph, record["license"]),
        "author": [_author(graph, number, name) for number, name in enumerate(cited.creators, 1)],
        "publisher": _publisher(graph, cited),
        "identifier": _identifier(graph, cited.doi) if cited.doi else None,
        "citation": _paper(graph, cited.paper_doi, cited.citation) if cited.paper_doi else None,
        "creditText": cited.citation,
        "url": record["page_url"],
        "isBasedOn": _source(graph, record),
        "contentSize": _text(record["file_size_bytes"]),
        "additionalProperty": [
            _property(graph, "#date-published", "datePublished", day, note),
            *([_property(graph, "#digest", "sha256", record["sha256"], DIGEST)] if record["sha256"] else []),
            *_measures(graph, "", record),
        ],
    }


def _date_published(record: Mapping[str, Any], cited: Citation) -> tuple[str, str]:
    """RO-Crate requires one: where the publisher's is unknown, the day on which the record was written stands in."""
    if cited.published is not None:
        return cited.published, f"{cited.published_as}"
    day = record["timestamp"].date().isoformat()
    return day, "the publisher's date is not known; this is the day on which the dataset's record was written"


def _license(graph: _Graph, name: str | None) -> dict[str, str]:
    if name is None:
        return graph.add("#licence", "CreativeWork", name="not known", description="Ask the publisher before any use.")
    if is_spdx(name):
        return graph.add(spdx_url(name), "CreativeWork", name=name, identifier=spdx_url(name))
    return graph.add("#licence", "CreativeWork", name=name, description="As the publisher states it.")


def _author(graph: _Graph, number: int, name: str) -> dict[str, str]:
    is_organization = any(word in name.casefold().split() for word in ORGANIZATION)
    return graph.add(f"#author-{number}", "Organization" if is_organization else "Person", name=name)


def _publisher(graph: _Graph, cited: Citation) -> dict[str, str] | None:
    return graph.add("#publisher", "Organization", name=cited.publisher) if cited.publisher else None


def _identifier(graph: _Graph, doi: str) -> dict[str, str]:
    return graph.add(doi_url(doi), "PropertyValue", propertyID=DOIS, value=f"doi:{doi}", url=doi_url(doi))


def _paper(graph: _Graph, doi: str, citation: str | None) -> dict[str, str]:
    return graph.add(doi_url(doi), "ScholarlyArticle", name=citation or doi, identifier=doi_url(doi))


def _source(graph: _Graph, record: Mapping[str, Any]) -> dict[str, str] | None:
    """What the publisher serves, of which this is a copy or a part."""
    if record["download_url"] is None:
        return None
    name = f"{record['source_id'] or record['name']} as published"
    return graph.add(record["download_url"], "CreativeWork", name=name)


def _acquisition(graph: _Graph, record: Mapping[str, Any]) -> dict[str, str]:
    """Specimen, biosample and how it was imaged, each with what is known of it."""
    taxon = _taxon(graph, record["organism_taxid"], record["organism"])
    about = {"organism_classification": taxon, "name": record["sample"], "cellLine": record["cell_line"]}
    biosample = graph.add("#biosample", "biosample", **about)
    specimen = graph.add("#specimen", "specimen", biosample=biosample, preparation_method=record["preparation"])
    term, label = FBBI.get(record["modality"] or "", (None, None))
    method = graph.add(term, "DefinedTerm", name=label, inDefinedTermSet="obo:FBbi") if term else None
    return graph.add(
        "#image-acquisition",
        "image_acquisition",
        name=record["modality"],
        fbbi_id=method,
        specimen=specimen,
        instrument=_instrument(graph, record["instrument"]),
        startTime=_text(record["acquired_on"]),
    )


def _taxon(graph: _Graph, taxid: str | None, name: str | None) -> dict[str, str] | None:
    """`NCBI:txid9606`; a name without a number is a taxon of this crate only."""
    if taxid is not None:
        return graph.add(f"NCBI:txid{taxid.rpartition(':')[2]}", "Taxon", name=name, scientificName=name)
    return graph.add("#taxon", "Taxon", name=name, scientificName=name) if name else None


def _instrument(graph: _Graph, name: str | None) -> dict[str, str] | None:
    return graph.add("#instrument", "Product", name=name) if name else None


def _volumes(graph: _Graph, record: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The main volume, if one was made, and the further ones."""
    standard = graph.add(OME_ZARR, ["CreativeWork", "Standard"], name="OME-Zarr 0.5")
    paths = record["local_paths"] or {}
    if any(path.endswith(f"/{VOLUME}") for path in paths.values()):
        yield graph.add(
            f"{VOLUME}/",
            "Dataset",
            name=f"{record['title'] or record['name']} as OME-Zarr",
            description="All resolution levels; axes z, y, x; level 0 is full resolution.",
            encodingFormat=standard,
            additionalProperty=_measures(graph, "volume-", record),
        )
    for name, summary in (record["volumes"] or {}).items():
        known = summary | {"volume_shape": summary.get("shape")}
        yield graph.add(
            f"volumes/{quote(name)}.ome.zarr/",
            "Dataset",
            name=summary.get("title") or f"{record['name']}/{name}",
            description=f"A further volume of the dataset: {summary.get('content', 'image')}.",
            encodingFormat=standard,
            additionalProperty=_measures(graph, f"{name}-", known),
        )


def _measures(graph: _Graph, prefix: str, known: Mapping[str, Any]) -> list[dict[str, str]]:
    """Shape, voxel size and pixel type: of the dataset's volume (no prefix), or of one by name."""
    shape, size, dtype = known.get("volume_shape"), known.get("voxel_size_nm"), known.get("dtype")
    found = {
        "shape": ("shape (z, y, x)", shape and " x ".join(map(str, shape)), "voxels"),
        "voxel-size": ("voxel size (z, y, x)", size and " x ".join(map(repr, size)), "nm"),
        "dtype": ("pixel type", dtype, None),
    }
    return [
        _property(graph, f"#{prefix}{key}", name, value, unit=unit)
        for key, (name, value, unit) in found.items()
        if value
    ]


def _property(
    graph: _Graph, id_: str, name: str, value: str, description: str | None = None, *, unit: str | None = None
) -> dict[str, str]:
    return graph.add(id_, "PropertyValue", name=name, value=value, description=description, unitText=unit)


def _originals(graph: _Graph, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """The publisher's files one by one; of a chunked container, which has thousands of objects, the whole."""
    if rows and record["partitioned_by"] != "file":
        size = sum(row["size_bytes"] or 0 for row in rows)
        description = f"{len(rows)} objects as the publisher has them, byte for byte; manifest.parquet lists them."
        yield graph.add(
            "original/", "Dataset", name="The published container", description=description, contentSize=str(size)
        )
        return
    for row in rows:
        yield _file(graph, row["path"], row)


def _file(graph: _Graph, path: str, row: Mapping[str, Any]) -> dict[str, str]:
    return graph.add(
        quote(path),
        "File",
        name=path.rpartition("/")[2],
        contentSize=_text(row["size_bytes"]),
        sha256=row["sha256"],
        encodingFormat=_encoding(path),
        contentUrl=row["source_url"],
    )


def _encoding(path: str) -> str | None:
    return ENCODINGS.get(path.rpartition(".")[2].lower())


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
