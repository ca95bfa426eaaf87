"""What the CryoET Data Portal's interface has: each type as a frozen class, read from a reply field by field.

Each class is also the list of what is asked for: a line names the fields of the schema (that of the portal's own client
4.9.0) and how they are read. Its order is x, y, z and its unit angstrom: shapes and offsets are turned around to
(z, y, x) here, lengths keep the unit in their name. What the schema requires is required, what it lets be absent may be
None; addresses are checked before anybody uses them. Who asks is `_cryoet_api.py`.
"""

# ruff: noqa: RUF009  # what is called for each attribute below returns dataclasses.field(...)

from __future__ import annotations

import dataclasses
import functools
import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar
from urllib.parse import unquote, urlsplit

from em_assets.errors import Malformed, Mismatch
from em_assets.fetch.hosts import is_private
from em_assets.fetch.http import host_address, safe_url
from em_assets.fetch.s3 import parse_bucket
from em_assets.sources._graphql import Entity, Kind, Refused
from em_assets.volume import Zyx

T = TypeVar("T")
E = TypeVar("E", bound="PortalEntity")
OptionalZyx = tuple[float | None, float | None, float | None]


class Addresses:
    """Which addresses of an interface are believed."""

    def __init__(self, api: str) -> None:
        self._api = urlsplit(api)
        self._is_private = functools.cache(is_private)

    def s3_refusal(self, url: str) -> str | None:
        """Why `s3://bucket/key` is refused; None if it is not."""
        try:
            bucket = parse_bucket(url)
        except Malformed:
            bucket = None
        if bucket is None or bucket.scheme != "s3":
            return "expected s3://bucket/key"
        return _refused_path(bucket.key)

    def https_refusal(self, url: str) -> str | None:
        """Why it is refused; None if it is not. What an encrypted, public interface names is so, too."""
        try:
            host_address(url)
        except Mismatch:
            return "expected https://host/path"
        parts = urlsplit(url)
        if parts.scheme != "https" and self._api.scheme == "https":
            return "expected https://host/path"
        if "@" in parts.netloc or parts.query or parts.fragment:
            return "expected no user, query or fragment"
        if not self._is_private(self._api.hostname or "") and self._is_private(parts.hostname or ""):
            return "it lies in a private network, the interface does not"
        return _refused_path(unquote(parts.path.removeprefix("/")))


def _refused_path(path: str) -> str | None:
    if any(part in ("", ".", "..") for part in path.removesuffix("/").split("/")) or "\\" in path:
        return "its path has empty, `.` or `..` parts or a backslash"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in path):
        return "its path has characters that cannot be shown"
    return None


@dataclass(frozen=True, slots=True)
class Reading:
    """How replies of one interface are read."""

    url: str
    addresses: Addresses
    refused: Refused | None = None
    """Told of what cannot be believed, which is left out then; None: it is raised."""


class Fields:
    """One entity's fields, each of the type that it must have. Every method raises Malformed if it is not."""

    def __init__(self, entity: str, raw: Entity, reading: Reading) -> None:
        self.raw = raw
        self._entity = entity
        self._reading = reading

    def text(self, name: str) -> str:
        return self._required(name, self.text_if_any(name))

    def text_if_any(self, name: str) -> str | None:
        return self._of(str, name, "text")

    def joined(self, *names: str) -> str:
        return " ".join(self.text(name) for name in names)

    def flag(self, name: str) -> bool:
        return self._required(name, self.flag_if_any(name))

    def flag_if_any(self, name: str) -> bool | None:
        return self._of(bool, name, "true or false")

    def number(self, name: str) -> float:
        return self._required(name, self.number_if_any(name))

    def number_if_any(self, name: str) -> float | None:
        value = self.raw.get(name)
        if value is None:
            return None
        if not _is_number(value):
            raise self._wrong(name, "a finite number")
        return float(value)

    def numbers_if_any(self, *names: str) -> tuple[float | None, ...]:
        return tuple(self.number_if_any(name) for name in names)

    def positive(self, name: str) -> float:
        value = self.number(name)
        if value <= 0:
            raise self._wrong(name, "a number above 0")
        return value

    def whole(self, name: str) -> int:
        return self._required(name, self.whole_if_any(name))

    def whole_if_any(self, name: str) -> int | None:
        """Also of the type Float, which is how the portal gives sizes in bytes."""
        value = self.number_if_any(name)
        if value is not None and not value.is_integer():
            raise self._wrong(name, "a whole number")
        return None if value is None else int(self.raw[name])

    def wholes(self, *names: str) -> tuple[int, ...]:
        return tuple(self.whole(name) for name in names)

    def wholes_if_any(self, *names: str) -> tuple[int | None, ...]:
        return tuple(self.whole_if_any(name) for name in names)

    def bytes_if_any(self, name: str) -> int | None:
        value = self.whole_if_any(name)
        if value is not None and value < 0:
            raise self._wrong(name, "a number of bytes")
        return value

    def shape(self, *names: str) -> tuple[int, ...]:
        for name in names:
            if self.whole(name) <= 0:
                raise self._wrong(name, "a number of voxels above 0")
        return self.wholes(*names)

    def dimensions_if_any(self, *names: str) -> tuple[Zyx | None, ...]:
        return tuple(self._dimensions(name) for name in names)

    def matrix_if_any(self, name: str) -> tuple[tuple[float, ...], ...] | None:
        rows = self._of(list, name, "rows of numbers")
        if rows is None:
            return None
        if not all(isinstance(row, list) and all(map(_is_number, row)) for row in rows):
            raise self._wrong(name, "rows of numbers")
        return tuple(tuple(map(float, row)) for row in rows)

    def s3(self, name: str) -> str:
        return self._required(name, self.s3_if_any(name))

    def s3_if_any(self, name: str) -> str | None:
        return self._address(name, self._reading.addresses.s3_refusal)

    def https(self, name: str) -> str:
        return self._required(name, self.https_if_any(name))

    def https_if_any(self, name: str) -> str | None:
        return self._address(name, self._reading.addresses.https_refusal)

    def one(self, name: str, of: type[E]) -> E | None:
        value = self._of(dict, name, f"an object, the {of.KIND[0]}")
        return None if value is None else read(of, value, self._reading)

    def many(self, name: str, of: type[E]) -> tuple[E, ...] | None:
        """None: the list was not asked for, as the entity came along with another one."""
        if name not in self.raw:
            return None
        found = (read_or_refuse(of, item, self._reading) for item in self.raw[name])
        return tuple(sorted((item for item in found if item is not None), key=of.place))

    def _dimensions(self, name: str) -> Zyx | None:
        """`960,928,1000` in the order x, y, z."""
        text = self.text_if_any(name)
        if not text:
            return None
        if not re.fullmatch(r"\s*[1-9]\d{0,9}(\s*,\s*[1-9]\d{0,9}){2}\s*", text, re.ASCII):
            raise self._wrong(name, "three whole numbers above 0 as in 960,928,1000 (x, y, z)")
        x, y, z = map(int, text.split(","))
        return z, y, x

    def _address(self, name: str, refusal: Callable[[str], str | None]) -> str | None:
        value = self.text_if_any(name)
        if not value:  # the portal has both null and empty text
            return None
        if (why := refusal(value)) is not None:
            raise self._wrong(name, f"an address that can be used ({why})")
        return value

    def _of(self, kind: type[T], name: str, expected: str) -> T | None:
        value = self.raw.get(name)
        if value is not None and not isinstance(value, kind):
            raise self._wrong(name, expected)
        return value

    def _required(self, name: str, value: T | None) -> T:
        if value is None:
            raise self._wrong(name, "a value, which the portal's schema requires")
        return value

    def _wrong(self, name: str, expected: str) -> Malformed:
        found = "absent" if self.raw.get(name) is None else repr(self.raw[name])[:200]
        return Malformed(
            f"{safe_url(self._reading.url)}: {self._entity} {self.raw.get('id')}, field {name} is {found}, expected "
            f"{expected}; this {self._entity} is not used, tell the portal if it stays so."
        )


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


# What an entity's attribute is read from. `Any`: to the type checker these are the attribute's default.


def of(names: str, how: Callable[..., object]) -> Any:
    """Scalar fields of the schema."""
    return dataclasses.field(metadata={"names": names.split(), "how": how})


def one(name: str, entity: type[PortalEntity]) -> Any:
    """An entity to which this one belongs; it comes along without its lists."""
    return dataclasses.field(metadata={"one": (name, entity), "names": [name], "how": _bound(Fields.one, entity)})


def many(name: str, entity: type[PortalEntity]) -> Any:
    """A whole list of entities that belong to this one."""
    return dataclasses.field(metadata={"many": (name, entity), "names": [name], "how": _bound(Fields.many, entity)})


def _bound(how: Callable[..., object], entity: type[PortalEntity]) -> Callable[[Fields, str], object]:
    return lambda fields, name: how(fields, name, entity)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalEntity:
    """What all have."""

    KIND: ClassVar[tuple[str, str, str]]
    """Its name for people, its type and the list of all of them in the schema."""
    MORE: ClassVar[str] = ""
    """Fields that are asked for besides, for `raw`."""

    id: int = of("id", Fields.whole)
    """The portal says of these numbers that they may change."""
    raw: Entity = dataclasses.field(repr=False, compare=False, hash=False)
    """Every field as the reply had it, lists whole: for claims."""

    def place(self) -> int:
        """Where it stands in a list."""
        return self.id


def kind_of(entity: type[PortalEntity], *, along: bool = False) -> Kind:
    """What is asked for of a class; without its lists if it comes `along` with another one."""
    marks = [field.metadata for field in dataclasses.fields(entity) if field.name not in ("id", "raw")]
    related = [mark for mark in marks if "one" in mark or "many" in mark]
    scalars = [name for mark in marks if mark not in related for name in mark["names"]]
    ones = [mark["one"] for mark in related if "one" in mark]
    manys = [] if along else [mark["many"] for mark in related if "many" in mark]
    return Kind(
        *entity.KIND,
        scalars=(*scalars, *entity.MORE.split()),
        one=tuple((name, kind_of(part, along=True)) for name, part in ones),
        many=tuple((name, kind_of(part)) for name, part in manys),
    )


def read(entity: type[E], raw: Entity, reading: Reading) -> E:
    """Raises Malformed naming the entity, its id and the field that is absent or of another type."""
    fields = Fields(entity.KIND[0], raw, reading)
    values = {
        field.name: field.metadata["how"](fields, *field.metadata["names"])
        for field in dataclasses.fields(entity)
        if field.name != "raw"
    }
    return entity(raw=raw, **values)


def read_or_refuse(entity: type[E], raw: Entity, reading: Reading) -> E | None:
    """None if it cannot be believed and `reading.refused` was told; raises Malformed if there is nobody to tell."""
    try:
        return read(entity, raw, reading)
    except Malformed as error:
        if reading.refused is None:
            raise
        reading.refused(error)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalAuthor(PortalEntity):
    KIND = ("author", "", "")  # of four types; never asked for alone
    MORE = "affiliationName affiliationIdentifier"
    name: str = of("name", Fields.text)
    orcid: str | None = of("orcid", Fields.text_if_any)
    is_primary: bool | None = of("primaryAuthorStatus", Fields.flag_if_any)
    is_corresponding: bool | None = of("correspondingAuthorStatus", Fields.flag_if_any)
    order: int = of("authorListOrder", Fields.whole)

    def place(self) -> int:
        return self.order


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalFunding(PortalEntity):
    KIND = ("funding", "DatasetFunding", "datasetFunding")
    agency: str | None = of("fundingAgencyName", Fields.text_if_any)
    grant: str | None = of("grantId", Fields.text_if_any)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalDepositionType(PortalEntity):
    KIND = ("deposition type", "DepositionType", "depositionTypes")
    type: str | None = of("type", Fields.text_if_any)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalDeposition(PortalEntity):
    KIND = ("deposition", "Deposition", "depositions")
    MORE = "tag"
    title: str = of("title", Fields.text)
    description: str = of("description", Fields.text)
    types: tuple[PortalDepositionType, ...] | None = many("depositionTypes", PortalDepositionType)
    authors: tuple[PortalAuthor, ...] | None = many("authors", PortalAuthor)
    publications: str | None = of("depositionPublications", Fields.text_if_any)
    """DOIs between commas."""
    related_database_entries: str | None = of("relatedDatabaseEntries", Fields.text_if_any)
    deposition_date: str = of("depositionDate", Fields.text)
    release_date: str = of("releaseDate", Fields.text)
    last_modified_date: str = of("lastModifiedDate", Fields.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalDataset(PortalEntity):
    KIND = ("dataset", "Dataset", "datasets")
    MORE = (
        "assayLabel assayOntologyId developmentStageName developmentStageOntologyId diseaseName diseaseOntologyId "
        "tissueId cellTypeId cellStrainId cellComponentName cellComponentId samplePreparation gridPreparation "
        "otherSetup"
    )
    deposition_id: int = of("depositionId", Fields.whole)
    title: str = of("title", Fields.text)
    description: str = of("description", Fields.text)
    organism_name: str | None = of("organismName", Fields.text_if_any)
    organism_taxid: int | None = of("organismTaxid", Fields.whole_if_any)
    sample_type: str | None = of("sampleType", Fields.text_if_any)
    tissue_name: str | None = of("tissueName", Fields.text_if_any)
    cell_name: str | None = of("cellName", Fields.text_if_any)
    cell_strain_name: str | None = of("cellStrainName", Fields.text_if_any)
    publications: str | None = of("datasetPublications", Fields.text_if_any)
    """DOIs between commas."""
    related_database_entries: str | None = of("relatedDatabaseEntries", Fields.text_if_any)
    s3_prefix: str = of("s3Prefix", Fields.s3)
    https_prefix: str = of("httpsPrefix", Fields.https)
    size_bytes: int | None = of("fileSize", Fields.bytes_if_any)
    authors: tuple[PortalAuthor, ...] | None = many("authors", PortalAuthor)
    """None: not asked for, as the dataset came along with a run or tomogram; likewise `funding`."""
    funding: tuple[PortalFunding, ...] | None = many("fundingSources", PortalFunding)
    deposition_date: str = of("depositionDate", Fields.text)
    release_date: str = of("releaseDate", Fields.text)
    last_modified_date: str = of("lastModifiedDate", Fields.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalRun(PortalEntity):
    KIND = ("run", "Run", "runs")
    name: str = of("name", Fields.text)
    dataset_id: int = of("datasetId", Fields.whole)
    dataset: PortalDataset | None = one("dataset", PortalDataset)
    s3_prefix: str = of("s3Prefix", Fields.s3)
    https_prefix: str = of("httpsPrefix", Fields.https)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalSectionAlignment(PortalEntity):
    KIND = ("section alignment", "PerSectionAlignmentParameters", "perSectionAlignmentParameters")
    z_index: int = of("zIndex", Fields.whole)
    tilt_angle_degrees: float | None = of("tiltAngle", Fields.number_if_any)
    x_offset_angstrom: float | None = of("xOffset", Fields.number_if_any)
    y_offset_angstrom: float | None = of("yOffset", Fields.number_if_any)
    volume_x_rotation_degrees: float | None = of("volumeXRotation", Fields.number_if_any)
    in_plane_rotation: tuple[tuple[float, ...], ...] | None = of("inPlaneRotation", Fields.matrix_if_any)

    def place(self) -> int:
        return self.z_index


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalAlignment(PortalEntity):
    KIND = ("alignment", "Alignment", "alignments")
    run_id: int | None = of("runId", Fields.whole_if_any)
    tilt_series_id: int | None = of("tiltseriesId", Fields.whole_if_any)
    deposition_id: int | None = of("depositionId", Fields.whole_if_any)
    alignment_type: str | None = of("alignmentType", Fields.text_if_any)
    method: str | None = of("alignmentMethod", Fields.text_if_any)
    volume_size_angstrom: OptionalZyx = of("volumeZDimension volumeYDimension volumeXDimension", Fields.numbers_if_any)
    volume_offset_angstrom: OptionalZyx = of("volumeZOffset volumeYOffset volumeXOffset", Fields.numbers_if_any)
    x_rotation_offset_degrees: float | None = of("xRotationOffset", Fields.number_if_any)
    tilt_offset_degrees: float | None = of("tiltOffset", Fields.number_if_any)
    affine_transformation_matrix: str | None = of("affineTransformationMatrix", Fields.text_if_any)
    """As the portal writes it: text, in the order x, y, z."""
    s3_metadata: str | None = of("s3AlignmentMetadata", Fields.s3_if_any)
    https_metadata: str | None = of("httpsAlignmentMetadata", Fields.https_if_any)
    is_portal_standard: bool | None = of("isPortalStandard", Fields.flag_if_any)
    sections: tuple[PortalSectionAlignment, ...] | None = many("perSectionAlignments", PortalSectionAlignment)
    """None: not asked for, as the alignment came along with a tomogram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalTomogram(PortalEntity):
    """Not with neuroglancerConfig: for each tomogram that is kilobytes of JSON as text."""

    KIND = ("tomogram", "Tomogram", "tomograms")
    name: str | None = of("name", Fields.text_if_any)
    run_id: int | None = of("runId", Fields.whole_if_any)
    run: PortalRun | None = one("run", PortalRun)
    deposition_id: int = of("depositionId", Fields.whole)
    alignment_id: int | None = of("alignmentId", Fields.whole_if_any)
    alignment: PortalAlignment | None = one("alignment", PortalAlignment)
    voxel_spacing_id: int | None = of("tomogramVoxelSpacingId", Fields.whole_if_any)
    voxel_spacing_angstrom: float = of("voxelSpacing", Fields.positive)
    """Of all three axes, as its folder is named; the files' own headers may say otherwise."""
    shape: Zyx = of("sizeZ sizeY sizeX", Fields.shape)
    """What the portal says of level 0; each file's own header decides."""
    level_shapes: tuple[Zyx | None, ...] = of(
        "scale0Dimensions scale1Dimensions scale2Dimensions", Fields.dimensions_if_any
    )
    """Of levels 0, 1, 2 of the OME-Zarr."""
    offset: Zyx = of("offsetZ offsetY offsetX", Fields.wholes)
    """(z, y, x) voxels, relative to the run's canonical tomogram."""
    processing: str = of("processing", Fields.text)
    """`raw`, `filtered`, `denoised` ..."""
    processing_software: str | None = of("processingSoftware", Fields.text_if_any)
    reconstruction_method: str = of("reconstructionMethod", Fields.text)
    reconstruction_software: str = of("reconstructionSoftware", Fields.text)
    fiducial_alignment_status: str = of("fiducialAlignmentStatus", Fields.text)
    version: float | None = of("tomogramVersion", Fields.number_if_any)
    ctf_corrected: bool | None = of("ctfCorrected", Fields.flag_if_any)
    is_portal_standard: bool | None = of("isPortalStandard", Fields.flag_if_any)
    is_author_submitted: bool | None = of("isAuthorSubmitted", Fields.flag_if_any)
    is_visualization_default: bool | None = of("isVisualizationDefault", Fields.flag_if_any)
    s3_omezarr: str | None = of("s3OmezarrDir", Fields.s3_if_any)
    https_omezarr: str | None = of("httpsOmezarrDir", Fields.https_if_any)
    omezarr_bytes: int | None = of("fileSizeOmezarr", Fields.bytes_if_any)
    s3_mrc: str | None = of("s3MrcFile", Fields.s3_if_any)
    https_mrc: str | None = of("httpsMrcFile", Fields.https_if_any)
    mrc_bytes: int | None = of("fileSizeMrc", Fields.bytes_if_any)
    publications: str | None = of("publications", Fields.text_if_any)
    related_database_entries: str | None = of("relatedDatabaseEntries", Fields.text_if_any)
    authors: tuple[PortalAuthor, ...] | None = many("authors", PortalAuthor)
    deposition_date: str | None = of("depositionDate", Fields.text_if_any)
    release_date: str | None = of("releaseDate", Fields.text_if_any)
    last_modified_date: str | None = of("lastModifiedDate", Fields.text_if_any)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalTiltSeries(PortalEntity):
    KIND = ("tilt series", "Tiltseries", "tiltseries")
    MORE = (
        "sphericalAberrationConstant microscopeEnergyFilter microscopePhasePlate microscopeImageCorrector "
        "microscopeAdditionalInfo tiltRange dataAcquisitionSoftware binningFromFrames tiltSeriesQuality "
        "alignedTiltseriesBinning"
    )
    run_id: int = of("runId", Fields.whole)
    deposition_id: int | None = of("depositionId", Fields.whole_if_any)
    shape: tuple[int | None, ...] = of("sizeZ sizeY sizeX", Fields.wholes_if_any)
    """(sections, y, x)."""
    pixel_spacing_angstrom: float = of("pixelSpacing", Fields.positive)
    tilt_min_degrees: float = of("tiltMin", Fields.number)
    tilt_max_degrees: float = of("tiltMax", Fields.number)
    tilt_step_degrees: float = of("tiltStep", Fields.number)
    tilt_axis_degrees: float = of("tiltAxis", Fields.number)
    tilting_scheme: str = of("tiltingScheme", Fields.text)
    total_flux: float = of("totalFlux", Fields.number)
    """Electrons per square angstrom."""
    acceleration_voltage: int = of("accelerationVoltage", Fields.whole)
    microscope: str = of("microscopeManufacturer microscopeModel", Fields.joined)
    camera: str = of("cameraManufacturer cameraModel", Fields.joined)
    is_aligned: bool = of("isAligned", Fields.flag)
    related_empiar_entry: str | None = of("relatedEmpiarEntry", Fields.text_if_any)
    s3_omezarr: str | None = of("s3OmezarrDir", Fields.s3_if_any)
    https_omezarr: str | None = of("httpsOmezarrDir", Fields.https_if_any)
    omezarr_bytes: int | None = of("fileSizeOmezarr", Fields.bytes_if_any)
    s3_mrc: str | None = of("s3MrcFile", Fields.s3_if_any)
    https_mrc: str | None = of("httpsMrcFile", Fields.https_if_any)
    mrc_bytes: int | None = of("fileSizeMrc", Fields.bytes_if_any)
    s3_angles: str | None = of("s3AngleList", Fields.s3_if_any)
    https_angles: str | None = of("httpsAngleList", Fields.https_if_any)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalAcquisitionFile(PortalEntity):
    """SerialEM's notes of a run (mdoc)."""

    KIND = ("frame acquisition file", "FrameAcquisitionFile", "frameAcquisitionFiles")
    run_id: int | None = of("runId", Fields.whole_if_any)
    s3_mdoc: str = of("s3MdocPath", Fields.s3)
    https_mdoc: str = of("httpsMdocPath", Fields.https)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalVoxelSpacing(PortalEntity):
    KIND = ("voxel spacing", "TomogramVoxelSpacing", "tomogramVoxelSpacings")
    angstrom: float = of("voxelSpacing", Fields.positive)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalAnnotationFile(PortalEntity):
    KIND = ("annotation file", "AnnotationFile", "annotationFiles")
    format: str = of("format", Fields.text)
    """`ndjson`, `zarr`, `mrc`, `glb` ..."""
    s3_path: str = of("s3Path", Fields.s3)
    https_path: str = of("httpsPath", Fields.https)
    size_bytes: int | None = of("fileSize", Fields.bytes_if_any)
    is_visualization_default: bool | None = of("isVisualizationDefault", Fields.flag_if_any)
    source: str | None = of("source", Fields.text_if_any)
    alignment_id: int | None = of("alignmentId", Fields.whole_if_any)
    voxel_spacing_id: int | None = of("tomogramVoxelSpacingId", Fields.whole_if_any)
    voxel_spacing: PortalVoxelSpacing | None = one("tomogramVoxelSpacing", PortalVoxelSpacing)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalAnnotationShape(PortalEntity):
    KIND = ("annotation shape", "AnnotationShape", "annotationShapes")
    shape_type: str | None = of("shapeType", Fields.text_if_any)
    """`Point`, `OrientedPoint`, `SegmentationMask`, `InstanceSegmentationMask`, `Mesh` ..."""
    files: tuple[PortalAnnotationFile, ...] | None = many("annotationFiles", PortalAnnotationFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalMethodLink(PortalEntity):
    KIND = ("method link", "AnnotationMethodLink", "annotationMethodLinks")
    link_type: str = of("linkType", Fields.text)
    name: str | None = of("name", Fields.text_if_any)
    link: str = of("link", Fields.text)
    """As the depositor gave it: for people, nothing here opens it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalAnnotation(PortalEntity):
    KIND = ("annotation", "Annotation", "annotations")
    MORE = "groundTruthUsed"
    run_id: int | None = of("runId", Fields.whole_if_any)
    deposition_id: int | None = of("depositionId", Fields.whole_if_any)
    voxel_spacing_id: int | None = of("tomogramVoxelSpacingId", Fields.whole_if_any)
    voxel_spacing: PortalVoxelSpacing | None = one("tomogramVoxelSpacing", PortalVoxelSpacing)
    object_id: str = of("objectId", Fields.text)
    object_name: str = of("objectName", Fields.text)
    object_description: str | None = of("objectDescription", Fields.text_if_any)
    object_state: str | None = of("objectState", Fields.text_if_any)
    object_count: int | None = of("objectCount", Fields.whole_if_any)
    method: str = of("annotationMethod", Fields.text)
    method_type: str = of("methodType", Fields.text)
    method_links: tuple[PortalMethodLink, ...] | None = many("methodLinks", PortalMethodLink)
    software: str | None = of("annotationSoftware", Fields.text_if_any)
    ingest_id: str = of("annotationIngestId", Fields.text)
    is_ground_truth: bool | None = of("groundTruthStatus", Fields.flag_if_any)
    is_curator_recommended: bool | None = of("isCuratorRecommended", Fields.flag_if_any)
    confidence_precision: float | None = of("confidencePrecision", Fields.number_if_any)
    confidence_recall: float | None = of("confidenceRecall", Fields.number_if_any)
    publication: str | None = of("annotationPublication", Fields.text_if_any)
    s3_metadata: str = of("s3MetadataPath", Fields.s3)
    https_metadata: str = of("httpsMetadataPath", Fields.https)
    authors: tuple[PortalAuthor, ...] | None = many("authors", PortalAuthor)
    shapes: tuple[PortalAnnotationShape, ...] | None = many("annotationShapes", PortalAnnotationShape)
    deposition_date: str = of("depositionDate", Fields.text)
    release_date: str = of("releaseDate", Fields.text)
    last_modified_date: str = of("lastModifiedDate", Fields.text)

    @property
    def files(self) -> tuple[PortalAnnotationFile, ...]:
        """Of all its shapes."""
        return tuple(file for shape in self.shapes or () for file in shape.files or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalIdentifiedObject(PortalEntity):
    KIND = ("identified object", "IdentifiedObject", "identifiedObjects")
    run_id: int | None = of("runId", Fields.whole_if_any)
    object_id: str = of("objectId", Fields.text)
    object_name: str = of("objectName", Fields.text)
    object_description: str | None = of("objectDescription", Fields.text_if_any)
    object_state: str | None = of("objectState", Fields.text_if_any)
