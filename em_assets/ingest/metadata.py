"""What a config says of each entity: the portal's metadata models, with the portal's own names."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

from em_assets.ingest.fields import (
    Angle,
    Count,
    Date,
    Dois,
    Entries,
    Flag,
    FloatColumn,
    Keys,
    Length,
    Matrix,
    Number,
    ObjectId,
    Positive,
    Publications,
    TemplateText,
    Text,
    Whole,
    enum,
    number,
    pattern,
)

# Metadata that several entities have


class Author(Keys):
    name: Text
    ORCID: (
        Annotated[str, pattern("an ORCID such as 0000-0002-1825-0097", r"[0-9]{4}-[0-9]{4}-[0-9]{4}-[0-9]{3}[0-9X]$")]
        | None
    ) = None
    email: Text | None = None
    affiliation_name: Text | None = None
    affiliation_address: Text | None = None
    affiliation_identifier: Text | None = None
    corresponding_author_status: Flag | None = None
    primary_author_status: Flag | None = None
    kaggle_id: Text | None = None


Authors = Annotated[list[Author], Field(min_length=1)]


class DateStamp(Keys):
    deposition_date: Date
    last_modified_date: Date
    release_date: Date


class CrossReferences(Keys):
    publications: Dois | None = None
    related_database_entries: Entries | None = None
    related_database_links: Text | None = None
    dataset_citations: Text | None = None


# Depositions and datasets


class Deposition(Keys):
    deposition_identifier: Whole
    deposition_title: Text
    deposition_description: Text
    deposition_types: Annotated[list[Annotated[str, enum("annotation", "dataset", "tomogram")]], Field(min_length=1)]
    authors: Authors
    dates: DateStamp
    tag: Text | None = None
    cross_references: CrossReferences | None = None


def _ontology(*patterns: str) -> Any:
    shown = [re.sub(r"\[0-9\]\{(\d)\}", lambda digits: "0" * int(digits[1]), one).strip("^$") for one in patterns]
    shown = [one.replace("[0-9]+", "00000").replace("[A-Z0-9]{4,}", "XXXX") for one in shown]
    return pattern(f"an id of the form {', '.join(shown)}", *patterns)


WBBT, ZFA, FBBT, UBERON, CL = (
    r"WBbt:[0-9]{7}$",
    r"ZFA:[0-9]{7}$",
    r"FBbt:[0-9]{8}$",
    r"^UBERON:[0-9]{7}$",
    r"^CL:[0-9]{7}$",
)


class CellComponent(Keys):
    name: Text
    id: Annotated[str, _ontology(r"^GO:[0-9]{7}$")] | None = None


class CellStrain(Keys):
    name: Text
    id: (
        Annotated[
            str,
            _ontology(r"WBStrain[0-9]{8}$", r"^NCBITaxon:[0-9]+$", r"^CVCL_[A-Z0-9]{4,}$", r"^CC-[0-9]{4}$"),
        ]
        | None
    ) = None


class CellType(Keys):
    name: Text
    id: Annotated[str, _ontology(CL, WBBT, ZFA, FBBT, UBERON)] | None = None


class TissueDetails(Keys):
    name: Text
    id: Annotated[str, _ontology(r"^BTO:[0-9]{7}$", CL, WBBT, ZFA, FBBT, UBERON)] | None = None


class OrganismDetails(Keys):
    name: Text
    taxonomy_id: Annotated[int, number(1, whole=True)] | None = None


class Assay(Keys):
    name: Text
    id: Annotated[str, _ontology(r"^EFO:[0-9]{7}$")] | None = None


class DevelopmentStageDetails(Keys):
    name: Text | None = None
    id: (
        Annotated[
            str,
            _ontology(
                r"^unknown$",
                r"WBls:[0-9]{7}$",
                UBERON,
                r"HsapDv:[0-9]{7}$",
                r"MmusDv:[0-9]{7}$",
                r"ZFS:[0-9]{7}$",
                r"FBdv:[0-9]{8}$",
            ),
        ]
        | None
    ) = None


class Disease(Keys):
    name: Text | None = None
    id: Annotated[str, _ontology(r"^MONDO:[0-9]{7}$", r"^PATO:[0-9]{7}$")] | None = None


class FundingDetails(Keys):
    funding_agency_name: Text | None = None
    grant_id: Text | None = None


class Dataset(Keys):
    dataset_identifier: Whole
    dataset_title: Text
    dataset_description: Text
    sample_type: Annotated[
        str,
        enum(
            *("cell_line", "in_silico", "in_vitro", "organelle", "organism", "organoid", "other"),
            *("primary_cell_culture", "tissue", "virus"),
        ),
    ]
    authors: Authors
    dates: DateStamp
    assay: Assay
    development_stage: DevelopmentStageDetails
    disease: Disease
    organism: OrganismDetails | None = None
    tissue: TissueDetails | None = None
    cell_type: CellType | None = None
    cell_strain: CellStrain | None = None
    cell_component: CellComponent | None = None
    funding: list[FundingDetails] | None = None
    cross_references: CrossReferences | None = None
    grid_preparation: Text | None = None
    sample_preparation: Text | None = None
    other_setup: Text | None = None


# What a run has


class Frame(Keys):
    dose_rate: FloatColumn
    is_gain_corrected: Flag


class Ctf(Keys):
    format: Annotated[str, enum("CTFFIND", "Gctf", "IMOD")]


class CameraDetails(Keys):
    manufacturer: Annotated[str, enum("Gatan", "FEI", "TFS", "simulated")]
    model: Annotated[
        str,
        enum(
            *("FALCON IV", "FALCON 4i", "K2", "K2 SUMMIT", "K3", "K3 BIOQUANTUM", "UltraCam", "UltraScan"),
            "simulated",
            column=True,
        ),
    ]
    acquire_mode: Annotated[str, enum("counting", "superresolution", "linear", "cds", column=True)] | None = None


class MicroscopeDetails(Keys):
    manufacturer: Annotated[str, enum("FEI", "TFS", "JEOL", "SIMULATED", column=True)]
    model: Text
    additional_info: Text | None = None


class MicroscopeOpticalSetup(Keys):
    energy_filter: Text
    phase_plate: Text | None = None
    image_corrector: Text | None = None


class TiltRange(Keys):
    min: Angle
    max: Angle


class TiltSeries(Keys):
    acceleration_voltage: Annotated[float, number(20000)]
    spherical_aberration_constant: Annotated[float | str, number(0, column=True)]
    microscope: MicroscopeDetails
    microscope_optical_setup: MicroscopeOpticalSetup
    camera: CameraDetails
    data_acquisition_software: Text
    pixel_spacing: Length
    tilt_axis: Annotated[float | str, number(-360, 360, column=True)]
    tilt_range: TiltRange
    tilt_step: Annotated[float | str, number(0, 90, column=True)]
    tilting_scheme: Text
    total_flux: Annotated[float | str, number(0, column=True)]
    tilt_series_quality: Annotated[int | str, number(1, 5, column=True, whole=True)]
    is_aligned: Flag
    aligned_tiltseries_binning: Annotated[float | str, number(0, column=True)] | None = None
    binning_from_frames: Annotated[float | str, number(0, column=True)] | None = None
    frames_count: Whole | None = None
    related_empiar_entry: Annotated[str, pattern("an entry such as EMPIAR-10988", r"^EMPIAR-[0-9]+$")] | None = None
    tilt_alignment_software: Text | None = None


class AlignmentVector(Keys):
    """The portal's AlignmentOffset and AlignmentSize."""

    x: FloatColumn
    y: FloatColumn
    z: FloatColumn


class Alignment(Keys):
    format: Annotated[str, enum("IMOD", "ARETOMO3")]
    alignment_type: Annotated[str, enum("LOCAL", "GLOBAL")] | None = None
    method_type: (
        Annotated[str, enum("fiducial_based", "patch_tracking", "projection_matching", "simulated", "undefined")] | None
    ) = None
    affine_transformation_matrix: Matrix | None = None
    is_portal_standard: Flag | None = None
    tilt_offset: Number | None = None
    x_rotation_offset: Annotated[int | str, number(column=True, whole=True)] | None = None
    volume_offset: AlignmentVector | None = None
    volume_dimension: AlignmentVector | None = None


class IdentifiedObjectList(Keys):
    filter_value: TemplateText | None = None


# What a voxel spacing has


class TomogramOffset(Keys):
    x: Whole
    y: Whole
    z: Whole


class TomogramSize(Keys):
    x: Count
    y: Count
    z: Count


class Tomogram(Keys):
    voxel_spacing: Length
    reconstruction_method: Annotated[str, enum("SART", "Fourier Space", "SIRT", "WBP", "Unknown", column=True)]
    reconstruction_software: Text
    processing: Annotated[str, enum("denoised", "filtered", "raw")]
    fiducial_alignment_status: Annotated[str, enum("FIDUCIAL", "NON_FIDUCIAL", column=True)]
    is_visualization_default: Flag
    tomogram_version: Positive
    offset: TomogramOffset
    authors: Authors
    dates: DateStamp
    processing_software: Text | None = None
    align_software: Text | None = None
    ctf_corrected: Flag | None = None
    affine_transformation_matrix: Matrix | None = None
    size: TomogramSize | None = None
    cross_references: CrossReferences | None = None


class AnnotationObject(Keys):
    id: ObjectId
    name: Text
    description: Text | None = None
    state: Text | None = None


class AnnotationConfidence(Keys):
    precision: Annotated[float, number(0, 100)] | None = None
    recall: Annotated[float, number(0, 100)] | None = None
    ground_truth_used: Text | None = None


class AnnotationMethodLinks(Keys):
    link: Text
    link_type: Annotated[str, enum("documentation", "models_weights", "other", "source_code", "website")]
    custom_name: Text | None = None


class AnnotationSourceFile(Keys):
    """The schema lets a config repeat its sources in the metadata; nobody reads them there."""

    glob_string: Text | None = None
    glob_strings: list[Text] | None = None
    is_portal_standard: Flag | None = None
    is_visualization_default: Flag | None = None


class Annotation(Keys):
    annotation_ingest_id: Text
    annotation_object: AnnotationObject
    annotation_method: Text
    method_type: Annotated[str, enum("manual", "automated", "hybrid", "simulated")]
    authors: Authors
    dates: DateStamp
    annotation_software: Text | None = None
    annotation_publications: Publications | None = None
    method_links: list[AnnotationMethodLinks] | None = None
    confidence: AnnotationConfidence | None = None
    ground_truth_status: Flag | None = None
    is_curator_recommended: Flag | None = None
    object_count: Whole | None = None
    version: Positive | None = None
    files: list[AnnotationSourceFile] | None = None
