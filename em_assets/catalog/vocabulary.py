"""The fields of a dataset's normalized record: what each means, its unit, and when two values of it disagree.

The modules are REMBI's (https://doi.org/10.1038/s41592-021-01166-8); OME, EMPIAR and DataCite columns say what those
vocabularies call the same thing. `values.py` brings what is stated into a field's form, `choose.py` picks among claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Module = Literal["Study", "Biosample", "Specimen", "Image acquisition", "Image data"]
"""REMBI's modules that public EM volumes have something to say about."""
Kind = Literal["text", "name", "number", "date"]
"""How values of a field are compared.

`text` is prose: two wordings of one thing are no conflict. `name` is compared without regard to case and spaces,
`number` within the field's tolerance, `date` by the day (ISO 8601).
"""
Authority = Literal[
    "override", "file header", "file metadata", "publisher API", "publisher page", "spec", "third party"
]
"""Who says so. `file header` is what a reader needs to decode the voxels, `file metadata` all else in the file."""

PRECEDENCE: tuple[Authority, ...] = (
    "override",
    "file header",
    "file metadata",
    "publisher API",
    "publisher page",
    "spec",
)
"""First goes first; what a third party says is shown and never chosen."""

SPEC_FIRST: tuple[Authority, ...] = ("override", "spec", *PRECEDENCE[1:-1])
"""For prose that has to be about what is kept here, a crop say, and that licences and citations ask for by wording."""

EXPECTED: tuple[Authority, ...] = (
    *("override", "file header", "file metadata", "spec", "publisher API", "publisher page"),
)
"""For what the spec pins and every download is checked against: whoever wrote the spec had read it from the file."""


@dataclass(frozen=True, slots=True)
class Field:
    """One property of a dataset or volume."""

    name: str
    module: Module
    kind: Kind
    comment: str
    unit: str | None = None
    """Of `number`: the unit every claim is converted to."""
    tolerance: float = 0.0
    """Of `number`: relative difference up to which two values are one."""
    ome: str | None = None
    empiar: str | None = None
    datacite: str | None = None
    precedence: tuple[Authority, ...] = PRECEDENCE


VOXEL_TOLERANCE = 1e-4
"""Over ten thousand voxels it adds up to one: closer than that nobody can tell two claims apart."""


def _size(axis: str) -> Field:
    return Field(
        f"source_size_{axis}",
        "Image data",
        "number",
        f"Voxels of the publisher's whole volume along {axis}.",
        unit="voxels",
        ome=f"Pixels/@Size{axis.upper()}",
        empiar={"x": "image_width", "y": "image_height"}.get(axis),
        precedence=EXPECTED,
    )


def _voxel_size(axis: str) -> Field:
    return Field(
        f"voxel_size_{axis}_nm",
        "Image data",
        "number",
        f"Size of a voxel along {axis} at the level that is stored here.",
        unit="nm",
        tolerance=VOXEL_TOLERANCE,
        ome=f"Pixels/@PhysicalSize{axis.upper()}",
        empiar={"x": "pixel_width", "y": "pixel_height"}.get(axis),
        precedence=EXPECTED,
    )


_ALL = (
    Field("title", "Study", "text", "Title in one line.", empiar="title", datacite="Title"),
    Field(
        "description",
        "Study",
        "text",
        "What was imaged and what of it is kept here.",
        empiar="imagesets/details",
        datacite="Description",
        precedence=SPEC_FIRST,
    ),
    Field("source_id", "Study", "name", "The publisher's own identifier.", datacite="AlternateIdentifier"),
    Field("authors", "Study", "text", "People, separated by semicolons.", empiar="authors", datacite="Creator"),
    Field("publisher_name", "Study", "name", "Who published the data.", datacite="Publisher"),
    Field(
        "license", "Study", "name", "Licence of the data: its SPDX identifier where there is one.", datacite="Rights"
    ),
    Field(
        "citation",
        "Study",
        "text",
        "What to cite when the data is used.",
        datacite="RelatedItem",
        precedence=SPEC_FIRST,
    ),
    Field("doi", "Study", "name", "DOI of the data.", empiar="entry_doi", datacite="Identifier"),
    Field("publication_doi", "Study", "name", "DOI of the paper about the data.", datacite="RelatedIdentifier"),
    Field(
        "deposited_on", "Study", "date", "Day of the deposition.", empiar="deposition_date", datacite="Date/Submitted"
    ),
    Field("released_on", "Study", "date", "Day of the release.", empiar="release_date", datacite="Date/Available"),
    Field("updated_on", "Study", "date", "Day of the last change.", empiar="update_date", datacite="Date/Updated"),
    Field("organism", "Biosample", "name", "Species, by its scientific name."),
    Field("organism_taxid", "Biosample", "name", "The species in the NCBI taxonomy: NCBITaxon:9606."),
    Field("cell_line", "Biosample", "name", "Cell line."),
    Field("sample", "Biosample", "text", "Tissue, cell or other specimen."),
    Field("preparation", "Specimen", "text", "How the specimen was fixed, stained and embedded."),
    Field(
        "modality", "Image acquisition", "name", "Kind of microscopy: FIB-SEM, SBF-SEM ...", empiar="experiment_type"
    ),
    Field("instrument", "Image acquisition", "name", "Microscope.", ome="Instrument/Microscope/@Model"),
    Field(
        "acquired_on",
        "Image acquisition",
        "date",
        "Day on which imaging began.",
        ome="Image/AcquisitionDate",
        datacite="Date/Collected",
    ),
    Field(
        "accelerating_voltage_v",
        "Image acquisition",
        "number",
        "Voltage that accelerates the electrons.",
        unit="V",
        tolerance=1e-3,
    ),
    Field("bias_voltage_v", "Image acquisition", "number", "Bias of the specimen.", unit="V", tolerance=1e-3),
    Field("primary_energy_ev", "Image acquisition", "number", "Energy of the electrons.", unit="eV", tolerance=1e-3),
    Field("beam_current_a", "Image acquisition", "number", "Current of the beam.", unit="A", tolerance=1e-3),
    Field("dwell_time_s", "Image acquisition", "number", "Time on each pixel.", unit="s", tolerance=1e-3),
    Field("scan_rate_hz", "Image acquisition", "number", "Pixels scanned in a second.", unit="Hz", tolerance=1e-3),
    Field("working_distance_mm", "Image acquisition", "number", "Working distance.", unit="mm", tolerance=1e-3),
    Field("magnification", "Image acquisition", "number", "Magnification as the microscope gave it.", tolerance=1e-3),
    Field("acquisition_software", "Image acquisition", "name", "Software that recorded or wrote the file."),
    _size("z"),
    _size("y"),
    _size("x"),
    Field("channels", "Image data", "number", "Channels.", ome="Pixels/@SizeC"),
    Field(
        "dtype",
        "Image data",
        "name",
        "Pixel type, as numpy calls it.",
        ome="Pixels/@Type",
        empiar="voxel_type",
        precedence=EXPECTED,
    ),
    _voxel_size("z"),
    _voxel_size("y"),
    _voxel_size("x"),
    Field("source_axes", "Image data", "name", "The published file's axes, slowest first."),
    Field(
        "file_format", "Image data", "name", "Format of the published data.", empiar="data_format", datacite="Format"
    ),
    Field("compression", "Image data", "name", "How the published voxels are compressed."),
    Field("source_chunk", "Image data", "name", "Voxels (z, y, x) that the publisher stores together."),
    Field("source_levels", "Image data", "number", "Resolution levels that the publisher has."),
    Field(
        "image_count",
        "Image data",
        "number",
        "Images of the publisher's series.",
        empiar="num_images_or_tilt_series",
    ),
    Field("object_count", "Image data", "number", "Objects of an annotation: points, or instances."),
    Field(
        "dataset_size_bytes",
        "Image data",
        "number",
        "Size of all that is published.",
        unit="bytes",
        tolerance=0.05,
        empiar="dataset_size",
        datacite="Size",
    ),
)

FIELDS: Mapping[str, Field] = {field.name: field for field in _ALL}
