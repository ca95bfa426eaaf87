"""What is known of a stored dataset, in the portal's words: the statements in its metadata files.

They come from our record, the spec and what was chosen among the publishers' claims; of a tomogram of the portal, first
from the portal's own metadata files. What the portal asks for and nobody stated is never made up: it becomes the
portal's own word for that (`Unknown`, `not_reported`), or, where its schema has none, the word that claims least, and
it is listed in `Known.unknown` for whoever exports.

Numbers, paths and sizes are not here: they are what `tree.py` writes.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed
from em_assets.portal.entities import ENTITIES
from em_assets.records import DatasetFolder, DatasetRecord

Values = dict[str, Any]
DATASET, DEPOSITION, TOMOGRAM = "dataset_metadata.json", "deposition_metadata.json", "tomogram_metadata.json"
TILT_SERIES, ALIGNMENT = "tiltseries_metadata.json", "alignment_metadata.json"
ANNOTATION = "annotation"
"""Not the end of a name: each is called after its object."""
MODELS = {
    DATASET: "DatasetMetadata",
    DEPOSITION: "DepositionMetadata",
    TOMOGRAM: "TomogramMetadata",
    TILT_SERIES: "TiltSeriesMetadata",
    ALIGNMENT: "AlignmentMetadata",
}
"""Whose words are taken over where the portal's own file is kept."""
DOI = re.compile(r"10\.[0-9]{4,9}/[-._;()/:a-zA-Z0-9]+")
DATABASE_ENTRY = re.compile(r"EMPIAR-[0-9]{5}|EMD-[0-9]{4,5}|PDB-[0-9a-zA-Z]{4,8}")
TAXON = re.compile(r"(?:NCBITaxon:)?([1-9][0-9]*)")
NOT_REPORTED, UNKNOWN = "not_reported", "unknown"
ANY_COMPONENT = "GO:0005575"
"""`cellular_component`, the root of that ontology: its annotators give it where it is not known which one."""
INSTEAD: Mapping[str, Values] = {
    DATASET: {
        "sample_type": "other",
        "assay": {"name": NOT_REPORTED},
        "disease": {"name": NOT_REPORTED},
        "development_stage": {"id": UNKNOWN, "name": UNKNOWN},
    },
    TOMOGRAM: {
        "reconstruction_method": "Unknown",
        "reconstruction_software": NOT_REPORTED,
        "fiducial_alignment_status": "NON_FIDUCIAL",
        "processing": "raw",
    },
    ANNOTATION: {"annotation_method": NOT_REPORTED, "method_type": "hybrid"},
}
"""What is written where the portal's schema asks for a value and nobody stated one."""
WITHOUT_A_WORD = ("sample_type", "fiducial_alignment_status", "processing", "method_type")
"""Those of them for which the schema has no word that says so."""
ABOUT_THEIR_TREE = frozenset(
    {"deposition_id", "last_updated_at", "dataset_identifier", "deposition_identifier", "key_photos", "key_photo"}
    | {"scales", "size", "omezarr_dir", "mrc_file", "run_name", "alignment_metadata_path", "neuroglancer_config_path"}
    | {
        "voxel_spacing",
        "is_visualization_default",
        "offset",
        "affine_transformation_matrix",
        "raw_tlt_path",
        "ctf_path",
    }
    | {"alignment_path", "tilt_path", "tiltx_path", "tiltseries_path", "files"}
)
"""Keys of the portal's own files that are not taken over: in this tree they are something else."""


@dataclass
class Known:
    """The statements about one dataset. Each method is the part of a metadata file that states something."""

    record: DatasetRecord
    said: Mapping[str, Any]
    """The catalogue's fields (`catalog/vocabulary.py`), each with the value that was chosen."""
    published: Mapping[str, Values]
    """The portal's own metadata files, by the last part of their names. Empty of a dataset from elsewhere."""
    missing: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """(key, what is written instead) of what nobody stated, with the entities that it is of."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Keys of the portal's own files that break the portal's own schema, by file."""

    @classmethod
    def read(cls, folder: DatasetFolder, record: DatasetRecord, spec: DatasetSpec | None) -> Known:
        """Of a complete dataset. Without a spec that it was made with is used. Raises Malformed for damaged claims."""
        from em_assets.catalog.stated import read_stated

        stated = read_stated(folder.further(None), spec, anything_stored=True)
        return cls(record, stated.chosen(), _published(folder))

    @property
    def unknown(self) -> dict[str, str]:
        """What nobody stated, such as `authors of tomogram, dataset`, with what is written instead."""
        return {f"{key} of {', '.join(files)}": instead for (key, instead), files in self.missing.items()}

    def dataset(self) -> Values:
        ours = {
            "authors": self._authors(DATASET),
            "dates": self._dates(DATASET),
            "cross_references": self._references(),
            "organism": self._organism(),
            "sample_preparation": self.said.get("preparation"),
            "assay": {"name": self.said["modality"]} if "modality" in self.said else None,
        }
        titled = {"dataset_title": self.record.title, "dataset_description": self.record.description}
        setup = [text for text in (self.published.get(DATASET, {}).get("other_setup"), self._terms()) if text]
        return self._filled(DATASET, ours) | titled | {"other_setup": "; ".join(setup)}

    def deposition(self) -> Values:
        ours = {"authors": self._authors(DEPOSITION), "dates": self._dates(DEPOSITION)}
        titled = {"deposition_title": self.record.title, "deposition_description": self.record.description}
        return self._filled(DEPOSITION, ours | {"cross_references": self._references()}) | titled

    def tomogram(self) -> Values:
        ours = {"authors": self._authors(TOMOGRAM), "dates": self._dates(TOMOGRAM), "tomogram_version": 1}
        return self._filled(TOMOGRAM, ours | {"cross_references": self._references()})

    def annotation(self, name: str) -> Values:
        """Of a volume of labels or a table of points of the dataset, by its name."""
        ours = {
            "annotation_ingest_id": f"{self.record.name}-{name}",
            "annotation_object": {"id": ANY_COMPONENT, "name": name},
            "authors": self._authors(ANNOTATION),
            "dates": self._dates(ANNOTATION),
            "version": 1.0,
        }
        self._note(ANNOTATION, "annotation_object.id", f"{ANY_COMPONENT}, any component of a cell")
        return self._filled(ANNOTATION, ours)

    def tilt_series(self) -> Values | None:
        """Of the pictures that the tomogram is made of; None where the portal's own file does not say all it must."""
        values = self._filled(TILT_SERIES, {"size": self.published.get(TILT_SERIES, {}).get("size")})
        try:
            ENTITIES[MODELS[TILT_SERIES]].model_validate(values | {"deposition_id": 0, "last_updated_at": 0})
        except ValidationError:
            return None
        return values

    def alignment(self) -> Values:
        return self._filled(ALIGNMENT, {})

    def _filled(self, file: str, ours: Values) -> Values:
        """The portal's own words where there are any, then ours, then what stands for unknown."""
        values = {key: value for key, value in (ours | self._theirs(file)).items() if value is not None}
        for key, instead in INSTEAD.get(file, {}).items():
            if key not in values:
                values[key] = instead
                self._note(file, key, instead)
        return values

    def _theirs(self, file: str) -> Values:
        """What the portal's own file says, without what breaks its schema (files of old do)."""
        stated = {key: value for key, value in self.published.get(file, {}).items() if key not in ABOUT_THEIR_TREE}
        if not stated:
            return {}
        try:
            ENTITIES[MODELS[file]].model_validate(stated)
        except ValidationError as error:
            wrong = {str(one["loc"][0]) for one in error.errors()} & stated.keys()
            if wrong:
                self.left_out[file] = sorted(wrong)
            return {key: value for key, value in stated.items() if key not in wrong}
        return stated

    def _note(self, file: str, key: str, instead: Any) -> None:
        word = instead.get("name") if isinstance(instead, dict) else instead
        has_none = ", because the schema has no word for unknown" if key in WITHOUT_A_WORD else ""
        of = self.missing.setdefault((key, f"{word}{has_none}"), [])
        name = file.removesuffix("_metadata.json")
        if name not in of:
            of.append(name)

    def _authors(self, file: str) -> list[Values]:
        names = [name.strip() for name in str(self.said.get("authors", "")).split(";")]
        people = [{"name": name} for name in names if name]
        if not people and "authors" not in self.published.get(file, {}):
            self._note(file, "authors", NOT_REPORTED)
        return people or [{"name": NOT_REPORTED}]

    def _dates(self, file: str) -> dict[str, str]:
        """The publisher's where it stated them, else the day on which the dataset was complete here."""
        here = self.record.timestamp.date().isoformat()
        fields = {"deposition_date": "deposited_on", "release_date": "released_on", "last_modified_date": "updated_on"}
        for name, stated in fields.items():
            if stated not in self.said and "dates" not in self.published.get(file, {}):
                self._note(file, name, f"{here}, when the dataset was complete here")
        return {name: str(self.said.get(stated, here)) for name, stated in fields.items()}

    def _references(self) -> dict[str, str]:
        """DOIs, entries of other databases and the publisher's page, as far as the schema lets them be."""
        dois = dict.fromkeys(f"doi:{doi}" for doi in (self.record.doi, self.said.get("publication_doi")) if doi)
        entry = DATABASE_ENTRY.fullmatch(self.record.source_id)
        found = {
            "publications": ", ".join(doi for doi in dois if DOI.fullmatch(doi.removeprefix("doi:"))),
            "related_database_entries": entry[0] if entry else "",
            "related_database_links": self.record.page_url,
        }
        return {key: text for key, text in found.items() if text}

    def _organism(self) -> Values | None:
        if "organism" not in self.said:
            return None
        number = TAXON.fullmatch(str(self.said.get("organism_taxid", "")))
        return {"name": self.said["organism"], "taxonomy_id": int(number[1]) if number else None}

    def _terms(self) -> str:
        """What the schema has no key for, and nobody may use the data without."""
        facts = {
            "licence": self.record.license,
            "cite": self.record.citation,
            "source": f"{self.record.source} {self.record.source_id}, {self.record.page_url}",
            **{name: self.said.get(name) for name in ("sample", "cell_line", "instrument")},
        }
        return "; ".join(f"{name}: {text}" for name, text in facts.items() if text)


def _published(folder: DatasetFolder) -> dict[str, Values]:
    """The portal's own metadata files among the kept documents. Raises Malformed for one that is not JSON."""
    found: dict[str, Values] = {}
    for path in folder.documents():
        name = posixpath.basename(path)
        if name in MODELS:
            try:
                content = json.loads(folder.read(path))
            except ValueError as error:
                raise Malformed(
                    f"{folder.uri(path)} is not JSON ({error}); remove it and materialize {folder.name}_metadata."
                ) from None
            found[name] = content if isinstance(content, dict) else {}
    return found
