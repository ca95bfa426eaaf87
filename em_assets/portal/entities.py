"""What the metadata files of the tree say: a model for each, with the portal's own names, words and limits.

The authority is the portal's schema of these files (2.0.0); the models have its names. Where the portal's own code
writes more than that schema allows, and its database and client read it, the models allow it, too: `deposition_id` and
`last_updated_at` of a run, formats and shapes of annotation files as they are written (`ndjson`, `saber`, instance
masks, meshes), and the file about identified objects, for which the schema has nothing.

Paths, sizes and counts are filled in by whoever wrote what they are of. What is not given is not written; None is
written as null, where the schema has it.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    ValidationError,
)

from em_assets.errors import Malformed

T = TypeVar("T", bound="Entity")


def _given(value: Any) -> Any:
    if value is None:
        raise ValueError("is null, which the schema does not have here; leave it out")
    return value


def _day(value: Any) -> Any:
    return value.isoformat() if type(value) is dt.date else value


def _existing_day(value: str) -> str:
    dt.date.fromisoformat(value)
    return value


def _listed(item: str) -> str:
    """One or several, between commas."""
    return rf"^({item})(\s*,\s*({item}))*$"


def _any_of(*patterns: str) -> str:
    return "|".join(f"({pattern})" for pattern in patterns)


_DOI = r"(doi:)?10\.[0-9]{4,9}/[-._;()/:a-zA-Z0-9]+"
_ENTRY = r"EMPIAR-[0-9]{5}|EMD-[0-9]{4,5}|PDB-[0-9a-zA-Z]{4,8}"
_UNIPROT = r"^UniProtKB:(?:[OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2})$"
_CELL_TYPES = ("WBbt:[0-9]{7}$", "ZFA:[0-9]{7}$", "FBbt:[0-9]{8}$", "^UBERON:[0-9]{7}$", "^CL:[0-9]{7}$")
_STRAINS = ("WBStrain[0-9]{8}$", "^NCBITaxon:[0-9]+$", "^CVCL_[A-Z0-9]{4,}$", "^CC-[0-9]{4}$")
_STAGES = ("^unknown$", "^UBERON:[0-9]{7}$", "(WBls|HsapDv|MmusDv|ZFS):[0-9]{7}$", "FBdv:[0-9]{8}$")
_OBJECTS = ("^(GO|UBERON|CDPO|CL):[0-9]{7}$", "^CHEBI:[0-9]+$", "^PDB-[0-9a-zA-Z]{4,8}$", _UNIPROT)

Dois = Annotated[str, StringConstraints(pattern=_listed(_DOI))]
DatabaseEntries = Annotated[str, StringConstraints(pattern=_listed(_ENTRY))]
Publications = Annotated[str, StringConstraints(pattern=_listed(f"{_ENTRY}|{_DOI}"))]
EmpiarEntry = Annotated[str, StringConstraints(pattern="^EMPIAR-[0-9]+$")]
Orcid = Annotated[str, StringConstraints(pattern="[0-9]{4}-[0-9]{4}-[0-9]{4}-[0-9]{3}[0-9X]$")]
AssayId = Annotated[str, StringConstraints(pattern="^EFO:[0-9]{7}$")]
ComponentId = Annotated[str, StringConstraints(pattern="^GO:[0-9]{7}$")]
StrainId = Annotated[str, StringConstraints(pattern=_any_of(*_STRAINS))]
CellTypeId = Annotated[str, StringConstraints(pattern=_any_of(*_CELL_TYPES))]
TissueId = Annotated[str, StringConstraints(pattern=_any_of("^BTO:[0-9]{7}$", *_CELL_TYPES))]
StageId = Annotated[str, StringConstraints(pattern=_any_of(*_STAGES))]
DiseaseId = Annotated[str, StringConstraints(pattern="^(MONDO|PATO):[0-9]{7}$")]
ObjectId = Annotated[str, StringConstraints(pattern=_any_of(*_OBJECTS))]
Date = Annotated[
    str, BeforeValidator(_day), StringConstraints(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), AfterValidator(_existing_day)
]
"""YYYY-MM-DD; a date of YAML becomes one."""

Number = Annotated[StrictInt | StrictFloat, Field(allow_inf_nan=False)]
"""Whole numbers stay whole."""
NonNegative = Annotated[StrictInt | StrictFloat, Field(allow_inf_nan=False, ge=0)]
Percent = Annotated[StrictInt | StrictFloat, Field(allow_inf_nan=False, ge=0, le=100)]
Spacing = Annotated[StrictInt | StrictFloat, Field(allow_inf_nan=False, ge=0.001)]
"""In angstrom."""
TiltAngle = Annotated[StrictInt | StrictFloat, Field(allow_inf_nan=False, ge=-90, le=90)]
Count = Annotated[StrictInt, Field(ge=0)]
Row4 = tuple[Number, Number, Number, Number]
Matrix4 = tuple[Row4, Row4, Row4, Row4]
Rotation2 = tuple[tuple[Number, Number], tuple[Number, Number]] | Row4
"""Two rows of two; some files have the four in one row."""

SampleType = Literal[
    "cell_line",
    "in_silico",
    "in_vitro",
    "organelle",
    "organism",
    "organoid",
    "other",
    "primary_cell_culture",
    "tissue",
    "virus",
]
CameraModel = Literal[
    "FALCON IV",
    "FALCON 4i",
    "K2",
    "K2 SUMMIT",
    "K3",
    "K3 BIOQUANTUM",
    "UltraCam",
    "UltraScan",
    "simulated",
]
AlignmentMethod = Literal["fiducial_based", "patch_tracking", "projection_matching", "simulated", "undefined"]
ReconstructionMethod = Literal["SART", "Fourier Space", "SIRT", "WBP", "Unknown"]
LinkType = Literal["documentation", "models_weights", "other", "source_code", "website"]
AnnotationFormat = Literal["ndjson", "mrc", "zarr", "glb", "saber"]
"""Of what is written; the schema lists those of what is read."""
AnnotationShape = Literal[
    "SegmentationMask",
    "InstanceSegmentationMask",
    "Point",
    "OrientedPoint",
    "InstanceSegmentation",
    "TriangularMesh",
    "GlobalCaption",
    "AnnotationCaption",
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entity(_Part):
    """What one metadata file says."""

    deposition_id: StrictInt
    last_updated_at: StrictInt
    """Seconds since 1970, UTC."""


# -- parts of several files


class Author(_Part):
    name: str
    ORCID: Orcid | None = None
    email: str | None = None
    affiliation_name: str | None = None
    affiliation_address: str | None = None
    affiliation_identifier: str | None = None
    corresponding_author_status: StrictBool | None = None
    primary_author_status: StrictBool | None = None
    kaggle_id: str | None = None


Authors = Annotated[tuple[Author, ...], Field(min_length=1)]


class DateStamp(_Part):
    deposition_date: Date
    last_modified_date: Date
    release_date: Date


class CrossReferences(_Part):
    publications: Dois | None = None
    related_database_entries: DatabaseEntries | None = None
    related_database_links: str | None = None
    dataset_citations: str | None = None


class PicturePath(_Part):
    """Keys in the tree."""

    snapshot: str | None = None
    thumbnail: str | None = None


class Size(_Part):
    """In voxels."""

    z: Count
    y: Count
    x: Count


class Place(_Part):
    """In angstrom."""

    x: Number
    y: Number
    z: Number


# -- dataset and deposition


class FundingDetails(_Part):
    funding_agency_name: str | None = None
    grant_id: str | None = None


class OrganismDetails(_Part):
    name: str
    taxonomy_id: Annotated[StrictInt, Field(ge=1)] | None = None


class Assay(_Part):
    name: str
    id: AssayId | None = None


class CellComponent(_Part):
    name: str
    id: ComponentId | None = None


class CellStrain(_Part):
    name: str
    id: StrainId | None = None


class CellType(_Part):
    name: str
    id: CellTypeId | None = None


class TissueDetails(_Part):
    name: str
    id: TissueId | None = None


class DevelopmentStageDetails(_Part):
    name: str | None = None
    id: StageId | None = None


class Disease(_Part):
    name: str | None = None
    id: DiseaseId | None = None


class DatasetMetadata(Entity):
    dataset_identifier: StrictInt
    dataset_title: str
    dataset_description: str
    sample_type: SampleType
    organism: OrganismDetails | None = None
    tissue: TissueDetails | None = None
    cell_type: CellType | None = None
    cell_strain: CellStrain | None = None
    cell_component: CellComponent | None = None
    assay: Assay
    disease: Disease
    development_stage: DevelopmentStageDetails
    authors: Authors
    funding: tuple[FundingDetails, ...] | None = None
    cross_references: CrossReferences | None = None
    dates: DateStamp
    sample_preparation: str | None = None
    grid_preparation: str | None = None
    other_setup: str | None = None
    key_photos: PicturePath


class DepositionMetadata(Entity):
    deposition_identifier: StrictInt
    deposition_title: str
    deposition_description: str
    deposition_types: Annotated[tuple[Literal["annotation", "dataset", "tomogram"], ...], Field(min_length=1)]
    tag: str | None = None
    authors: Authors
    dates: DateStamp
    cross_references: CrossReferences | None = None
    key_photos: PicturePath


# -- run


class IdentifiedObject(_Part):
    object_id: ObjectId
    object_name: str
    object_description: str | None = None
    object_state: str | None = None


class RunMetadata(Entity):
    run_name: str | None = None
    identified_objects: tuple[IdentifiedObject, ...] | None = None


class IdentifiedObjectsMetadata(Entity):
    """Of `identified_objects.json`: the rows of a table that are this run's."""

    object_count: Count
    columns: tuple[str, ...]
    file_format: str
    source_file: str
    identifier: StrictInt


class PerFrameMetadata(_Part):
    acquisition_order: StrictInt
    accumulated_dose: Number | None = None
    exposure_dose: Number | None = None
    is_gain_corrected: StrictBool | None = None
    path: str | None = None


class FramesMetadata(Entity):
    dose_rate: Number | None = None
    is_gain_corrected: StrictBool | None = None
    frames_acquisition_file: str | None = None
    frames: tuple[PerFrameMetadata, ...] | None = None


# -- tilt series and alignment


class CameraDetails(_Part):
    manufacturer: Literal["Gatan", "FEI", "TFS", "simulated"]
    model: CameraModel
    acquire_mode: Literal["counting", "superresolution", "linear", "cds"] | None = None


class MicroscopeDetails(_Part):
    manufacturer: Literal["FEI", "TFS", "JEOL", "SIMULATED"]
    model: str
    additional_info: str | None = None


class MicroscopeOpticalSetup(_Part):
    energy_filter: str
    phase_plate: str | None = None
    image_corrector: str | None = None


class TiltRange(_Part):
    min: TiltAngle
    max: TiltAngle


class PerSectionParameter(_Part):
    z_index: Count
    frame_acquisition_order: StrictInt
    raw_angle: TiltAngle | None = None
    astigmatic_angle: Annotated[StrictInt | StrictFloat, Field(allow_inf_nan=False, ge=-180, le=180)] | None = None
    cross_correlation: Number | None = None
    major_defocus: Number | None = None
    minor_defocus: Number | None = None
    max_resolution: Number | None = None
    phase_shift: Number | None = None


class TiltSeriesMetadata(Entity):
    acceleration_voltage: Annotated[StrictInt | StrictFloat, Field(allow_inf_nan=False, ge=20000)]
    """In volts."""
    spherical_aberration_constant: NonNegative
    microscope: MicroscopeDetails
    microscope_optical_setup: MicroscopeOpticalSetup
    camera: CameraDetails
    data_acquisition_software: str
    tilt_axis: Annotated[StrictInt | StrictFloat, Field(allow_inf_nan=False, ge=-360, le=360)]
    tilt_step: Annotated[StrictInt | StrictFloat, Field(allow_inf_nan=False, ge=0, le=90)]
    tilt_range: TiltRange
    tilting_scheme: str
    total_flux: NonNegative
    tilt_series_quality: Annotated[StrictInt, Field(ge=1, le=5)]
    pixel_spacing: Spacing
    is_aligned: StrictBool
    aligned_tiltseries_binning: NonNegative | None = None
    binning_from_frames: NonNegative | None = None
    tilt_alignment_software: str | None = None
    related_empiar_entry: EmpiarEntry | None = None
    scales: tuple[Size, ...] | None = None
    size: Size
    omezarr_dir: str | None = None
    mrc_file: str | None = None
    run_name: str | None = None
    frames_count: StrictInt | None = None
    raw_tlt_path: str | None = None
    ctf_path: str | None = None
    per_section_parameter: tuple[PerSectionParameter, ...] | None = None


class PerSectionAlignmentParameters(_Part):
    z_index: Count
    in_plane_rotation: Rotation2 | None = None
    x_offset: Number | None = None
    y_offset: Number | None = None
    tilt_angle: Number | None = None
    volume_x_rotation: Number | None = None
    beam_tilt: Number | None = None


class AlignmentMetadata(Entity):
    format: Annotated[Literal["IMOD", "ARETOMO3"] | None, AfterValidator(_given)] = None
    alignment_type: Annotated[Literal["LOCAL", "GLOBAL"] | None, AfterValidator(_given)] = None
    method_type: Annotated[AlignmentMethod | None, AfterValidator(_given)] = None
    is_portal_standard: StrictBool | None = None
    affine_transformation_matrix: Matrix4 | None = None
    volume_dimension: Place | None = None
    volume_offset: Place | None = None
    tilt_offset: Number | None = None
    x_rotation_offset: StrictInt | None = None
    per_section_alignment_parameters: tuple[PerSectionAlignmentParameters, ...] | None = None
    alignment_path: str | None = None
    tilt_path: str | None = None
    tiltx_path: str | None = None
    tiltseries_path: str | None = None
    files: tuple[str, ...] | None = None


# -- tomogram and annotation


class TomogramOffset(_Part):
    """In voxels, from the tomogram that others of the run are compared with."""

    x: StrictInt
    y: StrictInt
    z: StrictInt


class TomogramMetadata(Entity):
    voxel_spacing: Spacing
    reconstruction_method: ReconstructionMethod
    reconstruction_software: str
    fiducial_alignment_status: Literal["FIDUCIAL", "NON_FIDUCIAL"]
    ctf_corrected: StrictBool | None = None
    processing: Literal["denoised", "filtered", "raw"]
    processing_software: str | None = None
    align_software: str | None = None
    tomogram_version: NonNegative
    is_visualization_default: StrictBool
    offset: TomogramOffset
    affine_transformation_matrix: Matrix4 | None = None
    authors: Authors
    dates: DateStamp
    cross_references: CrossReferences | None = None
    scales: tuple[Size, ...] | None = None
    size: Size | None = None
    omezarr_dir: str | None = None
    mrc_file: str | None = None
    run_name: str | None = None
    key_photo: PicturePath | None = None
    alignment_metadata_path: str | None = None
    neuroglancer_config_path: str | None = None


class AnnotationObject(_Part):
    id: ObjectId
    name: str
    description: str | None = None
    state: str | None = None


class AnnotationMethodLinks(_Part):
    link: str
    link_type: LinkType
    custom_name: str | None = None


class AnnotationConfidence(_Part):
    ground_truth_used: str | None = None
    precision: Percent | None = None
    recall: Percent | None = None


class AnnotationFileMetadata(_Part):
    format: AnnotationFormat
    path: str
    shape: AnnotationShape
    is_visualization_default: StrictBool


class AnnotationMetadata(Entity):
    annotation_ingest_id: str
    annotation_object: AnnotationObject
    annotation_method: str
    method_type: Literal["manual", "automated", "hybrid", "simulated"]
    method_links: tuple[AnnotationMethodLinks, ...] | None = None
    annotation_software: str | None = None
    annotation_publications: Publications | None = None
    confidence: AnnotationConfidence | None = None
    ground_truth_status: StrictBool | None = None
    is_curator_recommended: StrictBool | None = None
    version: NonNegative | None = None
    authors: Authors
    dates: DateStamp
    object_count: StrictInt | None = None
    files: tuple[AnnotationFileMetadata, ...] | None = None
    alignment_metadata_path: str | None = None


ENTITIES: Mapping[str, type[Entity]] = {
    model.__name__: model
    for model in (
        DatasetMetadata,
        DepositionMetadata,
        RunMetadata,
        FramesMetadata,
        TiltSeriesMetadata,
        AlignmentMetadata,
        TomogramMetadata,
        AnnotationMetadata,
        IdentifiedObjectsMetadata,
    )
}
"""By the names that the schema gives them."""


def parse_entity(model: type[T], values: Mapping[str, Any], where: str) -> T:
    """What a metadata file says, or shall say. `where` names it. Raises Malformed, naming every field that is wrong."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        wrong = "; ".join(_complaint(one) for one in error.errors())
        raise Malformed(f"{where} breaks the portal's schema of a {model.__name__}: {wrong}; correct it.") from None


def as_json(entity: Entity) -> bytes:
    """The file, as the portal writes it: four spaces, and who deposited it and when it was made come last.

    Equal entities give equal bytes.
    """
    values = entity.model_dump(mode="json", exclude_unset=True)
    last = {key: values.pop(key) for key in Entity.model_fields}
    return json.dumps(values | last, indent=4, ensure_ascii=False).encode() + b"\n"


def _complaint(error: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return f"{path} is missing" if error["type"] == "missing" else f"{path} is {error['input']!r}: {message}"
