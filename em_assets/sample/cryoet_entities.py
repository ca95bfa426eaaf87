"""What the CryoET Data Portal's database holds of a tree: its entities, read from the metadata JSON as its import does.

Rows have the columns of the portal's GraphQL types, under the same names, and are filed by type. Nothing here knows
GraphQL; `graphql.py` answers queries from these rows, of the sample as of any tree in the portal's layout.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em_assets.errors import Malformed

Row = dict[str, Any]
Entities = dict[str, list[Row]]
"""By GraphQL type: `Dataset`, `Run`, `Tomogram` ..."""

METADATA_PATTERNS = (
    "depositions_metadata/*/deposition_metadata.json",
    "*/dataset_metadata.json",
    "*/*/run_metadata.json",
    "*/*/Frames/frames_metadata.json",
    "*/*/TiltSeries/*/tiltseries_metadata.json",
    "*/*/Alignments/*/alignment_metadata.json",
    "*/*/IdentifiedObjects/identified_objects.json",
    "*/*/Reconstructions/VoxelSpacing*/Tomograms/*/tomogram_metadata.json",
    "*/*/Reconstructions/VoxelSpacing*/Annotations/*/*.json",
)
SPACING = "VoxelSpacing"
SHAPES = {"SemanticSegmentationMask": "SegmentationMask", "TriangularMesh": "Mesh", "TriangularMeshGroup": "Mesh"}
"""Shapes of annotations that the database calls otherwise than the files do."""
MAX_ID = 2**31 - 1

ALIGNMENT_METHODS = ("projection_matching", "patch_tracking", "fiducial_based", "simulated")
"""The database has no word for `undefined`."""


def is_tree(folder: Path) -> bool:
    """Whether a folder is the root of a tree in the portal's layout."""
    return any(folder.glob(METADATA_PATTERNS[1]))


def metadata_files(root: Path) -> list[Path]:
    """Every file that entities are read from; they change if and only if one of these does."""
    return sorted(file for pattern in METADATA_PATTERNS for file in root.glob(pattern))


def entities_of_tree(root: Path, *, s3_base: str = "", https_base: str = "") -> Entities:
    """The rows of a tree; addresses begin with the bases (without a slash at the end), or are keys below the root.

    What a metadata file leaves out is None. Raises Malformed for a file that is no JSON object, KeyError for one
    without what the portal's schema requires.
    """
    return _Tree(root, s3_base, https_base).read()


def portal_id(root: Path, kind: str, identity: str) -> int:
    """The id of an entity: as arbitrary as the portal's own, the same for ever for the same thing in the same tree."""
    return zlib.crc32(f"{root.name}/{kind}/{identity}".encode()) % MAX_ID + 1


@dataclass
class _Tree:
    root: Path
    s3_base: str
    https_base: str
    rows: Entities = field(default_factory=dict)
    alignments: dict[str, Row] = field(default_factory=dict)
    """By the key of their metadata."""
    tilt_series: dict[str, Row] = field(default_factory=dict)

    def read(self) -> Entities:
        deposition_pattern, dataset_pattern, *_ = METADATA_PATTERNS
        for file in sorted(self.root.glob(deposition_pattern)):
            self._deposition(_json(file))
        for file in sorted(self.root.glob(dataset_pattern)):
            dataset = self._dataset(file.parent, _json(file))
            for run_file in sorted(file.parent.glob("*/run_metadata.json")):
                self._run(run_file.parent, dataset, _json(run_file))
        return self.rows

    # What every entity needs

    def _add(self, kind: str, identity: str | int, columns: Row) -> Row:
        number = identity if isinstance(identity, int) else portal_id(self.root, kind, identity)
        taken = {row["id"] for row in self.rows.get(kind, ())}
        while number in taken:  # two checksums may agree
            number = number % MAX_ID + 1
        row = {"id": number, **columns}
        self.rows.setdefault(kind, []).append(row)
        return row

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _named(self, text: str | None) -> str | None:
        """The key that a metadata file names, without the bucket that some begin with."""
        below = (text or "").partition("/")[2]
        return below if below and not (self.root / str(text)).exists() and (self.root / below).exists() else text

    def _https(self, key: str | None) -> str | None:
        return _joined(self.https_base, key)

    def _places(self, name: str, key: str | None) -> Row:
        """Both addresses of something: the columns s3<name> and https<name>."""
        return {f"s3{name}": _joined(self.s3_base, key), f"https{name}": self._https(key)}

    def _size_bytes(self, key: str | None) -> int | None:
        place = self.root / key if key else None
        if place is None or not place.exists():
            return None
        files = place.rglob("*") if place.is_dir() else [place]
        return sum(file.stat().st_size for file in files if file.is_file())

    def _pictures(self, photos: Mapping[str, str] | None) -> Row:
        found = photos or {}
        columns = {"keyPhotoUrl": "snapshot", "keyPhotoThumbnailUrl": "thumbnail"}
        return {column: self._https(self._named(found.get(name))) for column, name in columns.items()}

    def _authors(self, kind: str, parent_column: str, parent_id: int, authors: Sequence[Mapping[str, Any]]) -> None:
        for number, author in enumerate(authors, 1):
            columns = {parent_column: parent_id, "authorListOrder": number, "orcid": author.get("ORCID")}
            words = ("kaggle_id", "name", "email", "affiliation_name", "affiliation_address", "affiliation_identifier")
            columns |= {_camel(word): author.get(word) for word in words}
            states = ("corresponding_author_status", "primary_author_status")
            columns |= {_camel(word): bool(author.get(word)) for word in states}
            self._add(kind, f"{parent_id}/{number}", columns)

    # Depositions, datasets, runs

    def _deposition(self, meta: Mapping[str, Any]) -> None:
        number = int(meta["deposition_identifier"])
        references = meta.get("cross_references") or {}
        columns = {
            "title": meta["deposition_title"],
            "description": meta["deposition_description"],
            "tag": meta.get("tag"),
            "depositionPublications": references.get("publications"),
            "relatedDatabaseEntries": references.get("related_database_entries"),
            **_dates(meta),
            **self._pictures(meta.get("key_photos")),
        }
        self._add("Deposition", number, columns)
        self._authors("DepositionAuthor", "depositionId", number, meta["authors"])
        for kind in meta["deposition_types"]:
            self._add("DepositionType", f"{number}/{kind}", {"depositionId": number, "type": kind})

    def _dataset(self, folder: Path, meta: Mapping[str, Any]) -> Row:
        number = int(meta["dataset_identifier"])
        references = meta.get("cross_references") or {}
        columns = {
            "depositionId": meta["deposition_id"],
            "title": meta["dataset_title"],
            "description": meta["dataset_description"],
            "organismName": _inner(meta, "organism", "name"),
            "organismTaxid": _inner(meta, "organism", "taxonomy_id"),
            "datasetPublications": references.get("publications"),
            "relatedDatabaseEntries": references.get("related_database_entries"),
            **{_camel(word): meta.get(word) for word in ("sample_type", "sample_preparation", "grid_preparation")},
            "otherSetup": meta.get("other_setup"),
            **_ontology(meta),
            **_dates(meta),
            **self._pictures(meta.get("key_photos")),
            **self._places("Prefix", f"{self._key(folder)}/"),
            "fileSize": self._size_bytes(self._key(folder)),
        }
        row = self._add("Dataset", number, columns)
        self._authors("DatasetAuthor", "datasetId", number, meta["authors"])
        for index, source in enumerate(meta.get("funding") or ()):
            words = ("funding_agency_name", "grant_id")
            columns = {"datasetId": number, **{_camel(word): source.get(word) for word in words}}
            self._add("DatasetFunding", f"{number}/{index}", columns)
        return row

    def _run(self, folder: Path, dataset: Row, meta: Mapping[str, Any]) -> None:
        key = self._key(folder)
        columns = {"datasetId": dataset["id"], "name": meta["run_name"], **self._places("Prefix", f"{key}/")}
        run = self._add("Run", key, columns)
        for file in sorted(file for file in folder.glob("Gains/*") if file.is_file()):
            self._file_of(run, "GainFile", "FilePath", self._key(file))
        for file in folder.glob("IdentifiedObjects/identified_objects.json"):
            self._identified_objects(run, json.loads(file.read_text(encoding="utf-8")))
        for file in folder.glob("Frames/frames_metadata.json"):
            self._frames(file.parent, run, dataset, _json(file))
        for file in sorted(folder.glob("TiltSeries/*/tiltseries_metadata.json")):
            self._tilt_series_of(file, run, _json(file))
        for file in sorted(folder.glob("Alignments/*/alignment_metadata.json")):
            self._alignment(file, run, _json(file))
        for spacing in sorted(folder.glob(f"Reconstructions/{SPACING}*")):
            self._spacing(spacing, run, dataset)

    def _file_of(self, run: Row, kind: str, column: str, key: str) -> None:
        self._add(kind, key, {"runId": run["id"], **self._places(column, key)})

    def _identified_objects(self, run: Row, objects: Sequence[Mapping[str, Any]]) -> None:
        words = ("object_id", "object_name", "object_description", "object_state")
        for number, found in enumerate(objects):
            columns = {_camel(word): found.get(word) for word in words}
            self._add("IdentifiedObject", f"{run['id']}/{number}", {"runId": run["id"], **columns})

    # The microscope's side of a run

    def _frames(self, folder: Path, run: Row, dataset: Row, meta: Mapping[str, Any]) -> None:
        mdoc = self._named(meta.get("frames_acquisition_file"))
        if mdoc:
            self._file_of(run, "FrameAcquisitionFile", "MdocPath", mdoc)
        words = ("acquisition_order", "accumulated_dose", "exposure_dose", "is_gain_corrected")
        for frame in meta.get("frames") or ():
            key = self._named(frame.get("path"))
            columns = {
                "runId": run["id"],
                "depositionId": meta.get("deposition_id", dataset["depositionId"]),
                **{_camel(word): frame.get(word) for word in words},
                **self._places("FramePath", key),
                "fileSize": self._size_bytes(key),
            }
            self._add("Frame", f"{self._key(folder)}/{frame['acquisition_order']}", columns)

    def _tilt_series_of(self, file: Path, run: Row, meta: Mapping[str, Any]) -> None:
        zarr, mrc = (self._named(meta.get(name)) for name in ("omezarr_dir", "mrc_file"))
        angles = self._named(meta.get("raw_tlt_path")) or self._first(file.parent, "*.rawtlt", "*.tlt")
        low, high = (round(float(meta["tilt_range"][end]), 2) for end in ("min", "max"))
        words = (
            *("acceleration_voltage", "spherical_aberration_constant", "tilt_step", "tilting_scheme", "tilt_axis"),
            *("total_flux", "data_acquisition_software", "related_empiar_entry", "binning_from_frames"),
            *("tilt_series_quality", "pixel_spacing", "aligned_tiltseries_binning"),
        )
        columns = {
            "runId": run["id"],
            "depositionId": meta.get("deposition_id"),
            **self._places("OmezarrDir", zarr),
            "fileSizeOmezarr": self._size_bytes(zarr),
            **self._places("MrcFile", mrc),
            "fileSizeMrc": self._size_bytes(mrc),
            **self._places("AngleList", angles),
            **{_camel(word): meta.get(word) for word in words},
            **_instrument(meta),
            "tiltMin": low,
            "tiltMax": high,
            "tiltRange": round(high - low, 2),
            "isAligned": bool(meta.get("is_aligned")),
            **{f"size{axis.upper()}": _inner(meta, "size", axis) for axis in "xyz"},
        }
        row = self._add("Tiltseries", self._key(file.parent), columns)
        self.tilt_series[self._key(file)] = row
        self._sections(row, run, meta.get("per_section_parameter") or ())

    def _first(self, folder: Path, *patterns: str) -> str | None:
        return next((self._key(file) for pattern in patterns for file in sorted(folder.glob(pattern))), None)

    def _sections(self, series: Row, run: Row, sections: Sequence[Mapping[str, Any]]) -> None:
        """Those that have a frame: the database holds no others."""
        frames = {row["acquisitionOrder"]: row["id"] for row in self.rows.get("Frame", ()) if row["runId"] == run["id"]}
        words = ("astigmatic_angle", "major_defocus", "minor_defocus", "max_resolution", "phase_shift", "raw_angle")
        for section in sections:
            frame = frames.get(section["frame_acquisition_order"])
            if frame is not None:
                columns = {"runId": run["id"], "tiltseriesId": series["id"], "frameId": frame}
                columns |= {_camel(word): section.get(word) for word in (*words, "z_index")}
                self._add("PerSectionParameters", f"{series['id']}/{section['z_index']}", columns)

    def _alignment(self, file: Path, run: Row, meta: Mapping[str, Any]) -> None:
        series = self.tilt_series.get(self._named(meta.get("tiltseries_path")) or "")
        method = meta.get("method_type")
        columns = {
            "runId": run["id"],
            "depositionId": meta.get("deposition_id"),
            "tiltseriesId": series and series["id"],
            "alignmentType": meta.get("alignment_type"),
            "alignmentMethod": method if method in ALIGNMENT_METHODS else None,
            **{f"volume{axis.upper()}Dimension": _inner(meta, "volume_dimension", axis) for axis in "xyz"},
            **{f"volume{axis.upper()}Offset": _inner(meta, "volume_offset", axis) for axis in "xyz"},
            "xRotationOffset": meta.get("x_rotation_offset"),
            "tiltOffset": meta.get("tilt_offset"),
            "affineTransformationMatrix": _text(meta.get("affine_transformation_matrix")),
            **self._places("AlignmentMetadata", self._key(file)),
            "isPortalStandard": bool(meta.get("is_portal_standard")),
        }
        row = self.alignments[self._key(file)] = self._add("Alignment", self._key(file.parent), columns)
        words = ("z_index", "x_offset", "y_offset", "volume_x_rotation", "tilt_angle")
        for section in meta.get("per_section_alignment_parameters") or ():
            columns = {"alignmentId": row["id"], **{_camel(word): section.get(word) for word in words}}
            columns["inPlaneRotation"] = _matrix(section.get("in_plane_rotation"))
            self._add("PerSectionAlignmentParameters", f"{row['id']}/{section['z_index']}", columns)

    # Reconstructions

    def _spacing(self, folder: Path, run: Row, dataset: Row) -> None:
        key = self._key(folder)
        number = float(folder.name.removeprefix(SPACING))
        columns = {"runId": run["id"], "voxelSpacing": number, **self._places("Prefix", f"{key}/")}
        spacing = self._add("TomogramVoxelSpacing", key, columns)
        for file in sorted(folder.glob("Tomograms/*/tomogram_metadata.json")):
            self._tomogram(file, spacing, dataset, _json(file))
        for file in sorted(folder.glob("Annotations/*/*.json")):
            meta = _json(file)
            if "annotation_object" in meta:  # captions are JSON, too
                self._annotation(file, spacing, dataset, meta)

    def _alignment_id(self, meta: Mapping[str, Any]) -> int | None:
        row = self.alignments.get(self._named(meta.get("alignment_metadata_path")) or "")
        return None if row is None else int(row["id"])

    def _tomogram(self, file: Path, spacing: Row, dataset: Row, meta: Mapping[str, Any]) -> None:
        zarr, mrc = (self._named(meta.get(name)) for name in ("omezarr_dir", "mrc_file"))
        references = meta.get("cross_references") or {}
        status = self.alignments.get(self._named(meta.get("alignment_metadata_path")) or "", {})
        columns = {
            "runId": spacing["runId"],
            "tomogramVoxelSpacingId": spacing["id"],
            "alignmentId": self._alignment_id(meta),
            "depositionId": meta["deposition_id"],
            "name": meta.get("run_name"),
            **{f"size{axis.upper()}": _inner(meta, "size", axis) for axis in "xyz"},
            "reconstructionMethod": (meta.get("reconstruction_method") or "Unknown").replace(" ", "_"),
            "reconstructionSoftware": meta.get("reconstruction_software") or "Unknown",
            **{_camel(word): meta.get(word) for word in ("voxel_spacing", "fiducial_alignment_status", "processing")},
            **{_camel(word): meta.get(word) for word in ("processing_software", "tomogram_version", "ctf_corrected")},
            "isPortalStandard": bool(status.get("isPortalStandard")),
            "isAuthorSubmitted": meta["deposition_id"] == dataset["depositionId"],
            "isVisualizationDefault": bool(meta.get("is_visualization_default")),
            **self._places("OmezarrDir", zarr),
            "fileSizeOmezarr": self._size_bytes(zarr),
            **self._places("MrcFile", mrc),
            "fileSizeMrc": self._size_bytes(mrc),
            **{f"scale{n}Dimensions": _dimensions(meta, n) for n in range(3)},
            **{f"offset{axis.upper()}": _inner(meta, "offset", axis) for axis in "xyz"},
            **self._pictures(meta.get("key_photo")),
            "neuroglancerConfig": self._whole_text(meta.get("neuroglancer_config_path")),
            "publications": references.get("publications"),
            "relatedDatabaseEntries": references.get("related_database_entries"),
            **_dates(meta),
        }
        row = self._add("Tomogram", self._key(file.parent), columns)
        self._authors("TomogramAuthor", "tomogramId", row["id"], meta["authors"])

    def _whole_text(self, path: str | None) -> str | None:
        """A JSON file as the database keeps it: its text, without spaces."""
        key = self._named(path)
        return _text(_json(self.root / key)) if key and (self.root / key).is_file() else None

    def _annotation(self, file: Path, spacing: Row, dataset: Row, meta: Mapping[str, Any]) -> None:
        words = (
            *("annotation_method", "annotation_ingest_id", "ground_truth_status", "object_count"),
            *("annotation_software", "is_curator_recommended", "method_type"),
        )
        columns = {
            "runId": spacing["runId"],
            "depositionId": meta["deposition_id"],
            "tomogramVoxelSpacingId": spacing["id"],
            **self._places("MetadataPath", self._key(file)),
            "annotationPublication": meta.get("annotation_publications"),
            **{_camel(word): meta.get(word) for word in words},
            **{f"object{word.title()}": _inner(meta, "annotation_object", word) for word in ("id", "name")},
            **{f"object{word.title()}": _inner(meta, "annotation_object", word) for word in ("description", "state")},
            **{f"confidence{word.title()}": _inner(meta, "confidence", word) for word in ("precision", "recall")},
            "groundTruthUsed": _inner(meta, "confidence", "ground_truth_used"),
            **_dates(meta),
        }
        row = self._add("Annotation", self._key(file), columns)
        self._authors("AnnotationAuthor", "annotationId", row["id"], meta["authors"])
        for number, link in enumerate(meta.get("method_links") or ()):
            said = {"linkType": link["link_type"], "name": link.get("custom_name"), "link": link["link"]}
            self._add("AnnotationMethodLink", f"{row['id']}/{number}", {"annotationId": row["id"], **said})
        self._annotation_files(row, spacing, dataset, meta)

    def _annotation_files(self, annotation: Row, spacing: Row, dataset: Row, meta: Mapping[str, Any]) -> None:
        shapes: dict[str, Row] = {}
        alignment = self._alignment_id(meta)
        for file in meta.get("files") or ():
            kind = SHAPES.get(file["shape"], file["shape"])
            if kind not in shapes:
                said = {"annotationId": annotation["id"], "shapeType": kind}
                shapes[kind] = self._add("AnnotationShape", f"{annotation['id']}/{kind}", said)
            key = self._named(file["path"])
            is_authors = annotation["depositionId"] == dataset["depositionId"]
            columns = {
                "alignmentId": alignment,
                "annotationShapeId": shapes[kind]["id"],
                "tomogramVoxelSpacingId": spacing["id"],
                "format": file["format"],
                "isVisualizationDefault": bool(file.get("is_visualization_default")),
                "source": "dataset_author" if is_authors else "community",
                **self._places("Path", key),
                "fileSize": self._size_bytes(key),
            }
            self._add("AnnotationFile", str(key), columns)


def _json(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise Malformed(f"{file} is no JSON object, as metadata of the portal is; correct the file.")
    return content


def _joined(base: str, key: str | None) -> str | None:
    return f"{base}/{key}" if base and key else key


def _camel(word: str) -> str:
    """tilt_step -> tiltStep."""
    first, *others = word.split("_")
    return first + "".join(other.title() for other in others)


def _inner(meta: Mapping[str, Any], outer: str, inner: str) -> Any:
    return (meta.get(outer) or {}).get(inner)


def _text(content: object) -> str | None:
    return None if content is None else json.dumps(content, separators=(",", ":"))


def _dates(meta: Mapping[str, Any]) -> Row:
    words = ("deposition_date", "release_date", "last_modified_date")
    found = {_camel(word): _inner(meta, "dates", word) for word in words}
    return {column: value and f"{value}T00:00:00+00:00" for column, value in found.items()}


def _ontology(meta: Mapping[str, Any]) -> Row:
    """What the sample was, each with its number in an ontology."""

    def pairs() -> Iterator[tuple[str, Any]]:
        names = {
            "assay": ("assayLabel", "assayOntologyId"),
            "development_stage": ("developmentStageName", "developmentStageOntologyId"),
            "disease": ("diseaseName", "diseaseOntologyId"),
            "tissue": ("tissueName", "tissueId"),
            "cell_type": ("cellName", "cellTypeId"),
            "cell_strain": ("cellStrainName", "cellStrainId"),
            "cell_component": ("cellComponentName", "cellComponentId"),
        }
        for outer, (name, number) in names.items():
            found = _inner(meta, outer, "id")
            yield name, _inner(meta, outer, "name")
            yield number, None if found is None else str(found)

    return dict(pairs())


def _instrument(meta: Mapping[str, Any]) -> Row:
    setup = "microscope_optical_setup"
    return {
        "microscopeManufacturer": (_inner(meta, "microscope", "manufacturer") or "").upper() or None,
        "microscopeModel": _inner(meta, "microscope", "model"),
        "microscopeAdditionalInfo": _inner(meta, "microscope", "additional_info"),
        "microscopeEnergyFilter": _inner(meta, setup, "energy_filter"),
        "microscopePhasePlate": _inner(meta, setup, "phase_plate"),
        "microscopeImageCorrector": _inner(meta, setup, "image_corrector"),
        "cameraManufacturer": _inner(meta, "camera", "manufacturer"),
        "cameraModel": _inner(meta, "camera", "model"),
    }


def _dimensions(meta: Mapping[str, Any], level: int) -> str | None:
    """x,y,z of a level."""
    scales = meta.get("scales") or ()
    return ",".join(str(scales[level][axis]) for axis in "xyz") if level < len(scales) else None


def _matrix(numbers: Sequence[Any] | None) -> list[list[float]] | None:
    """2 x 2, which some files give as four numbers in a row."""
    if numbers is not None and len(numbers) == 4:
        return [list(numbers[:2]), list(numbers[2:])]
    return None if numbers is None else [list(row) for row in numbers]
