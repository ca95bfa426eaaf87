"""The CryoET Data Portal: its API's replies, its metadata files, the header of a tomogram's other form, and points.

A tomogram is served twice, as OME-Zarr and as MRC, and the two need not agree. What the form says that this dataset is
not made of stands beside what the dataset's own form says, brought to the level that is stored; it is never taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

from em_assets.catalog.choose import as_text
from em_assets.catalog.mapping.saying import said
from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.catalog.values import count, dtype, number
from em_assets.catalog.vocabulary import Authority
from em_assets.datasets.portal import PointSet
from em_assets.datasets.source import ChunkedSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.formats._mrc_header import DTYPES, VOLUME_STACKS, dtype_of, places_of, spacings_angstrom
from em_assets.formats._units import to_nanometres
from em_assets.formats.reader import Scalar
from em_assets.sources.cryoet import file_name, number_in, object_in
from em_assets.sources.points import POINTS, named_by_document

OTHER: Authority = "publisher API"
"""Of what is said of the other form: below the file that is stored here, and below the spec, which was read from it."""
DATES = (("deposition_date", "deposited_on"), ("release_date", "released_on"), ("last_modified_date", "updated_on"))
Place = tuple[str, str]
"""(name of points, JSON pointer of their annotation)."""
API_ITEM = re.compile(r"(/\d+/data/items/\d+)/(voxelSpacing|objectCount)$")
API_PATH = re.compile(r"/annotationFiles/edges/\d+/node/httpsPath$")
OF_DATASET = {  # not its title: that is the portal's dataset's, of which this is one tomogram
    "description": "description",
    "organismName": "organism",
    "organismTaxid": "organism_taxid",
    "datasetPublications": "publication_doi",
    "depositionDate": "deposited_on",
    "releaseDate": "released_on",
    "lastModifiedDate": "updated_on",
}
GEOMETRY = (
    *("nz", "mx", "my", "mz", "ispg", "cella/x", "cella/y", "cella/z"),
    *("cellb/alpha", "cellb/beta", "cellb/gamma"),
)


def read_metadata(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """Of a metadata file: which entity it is about shows in its keys."""
    values = document.values
    if "/dataset_title" in values:
        yield from _dataset(document)
    elif "/annotation_object/name" in values:
        yield from _annotation(document, context.spec)
    elif "/acceleration_voltage" in values:
        yield from _tilt_series(document)
    elif "/voxel_spacing" in values:
        yield from _tomogram(document, context.spec)


def _dataset(document: StatedDocument) -> Iterator[Statement]:
    yield from said(document, "/dataset_description", "description")
    yield from said(document, "/organism/name", "organism")
    yield from said(document, "/organism/taxonomy_id", "organism_taxid")
    yield from said(document, "/cross_references/publications", "publication_doi")
    yield from said(document, "/cell_type/name", "sample")
    yield from said(document, "/sample_preparation", "preparation")
    for key, field in DATES:
        yield from said(document, f"/dates/{key}", field)
    names = _listed(document, "/authors/{}/name")
    if names:
        yield from said(document, "/authors/0/name", "authors", text="; ".join(names))


def _tilt_series(document: StatedDocument) -> Iterator[Statement]:
    yield from said(document, "/acceleration_voltage", "accelerating_voltage_v", unit="V")
    parts = [document.values.get(f"/microscope/{key}") for key in ("manufacturer", "model")]
    named = " ".join(str(part) for part in parts if part)
    yield from said(document, "/microscope/model", "instrument", text=named)
    yield from said(document, "/data_acquisition_software", "acquisition_software")


def _tomogram(document: StatedDocument, spec: DatasetSpec) -> Iterator[Statement]:
    level = level_of(spec)
    yield from _spacing(document, "/voxel_spacing", level)
    for axis in "zyx":
        key = f"/scales/{level}/{axis}"
        yield from said(document, key if key in document.values or level else f"/size/{axis}", f"source_size_{axis}")


def _annotation(document: StatedDocument, spec: DatasetSpec) -> Iterator[Statement]:
    """How many objects it says it has, of the points that its files list."""
    for name in _points_of(spec, _listed(document, "/files/{}/path")):
        yield from said(document, "/object_count", "object_count", volume=f"{POINTS}/{name}")


def _points_of(spec: DatasetSpec, paths: Sequence[str]) -> list[str]:
    """The spec's points that one of these files lists."""
    files = [path for path in paths if "point" in file_name(path) or "instanceseg" in file_name(path)]
    return [name for name, points in spec.points.items() if any(_lists(path, points) for path in files)]


def _lists(path: str, points: PointSet) -> bool:
    """Whether this is the file of these points: of the same annotation, where the spec has its number, and object."""
    if points.annotation is not None and number_in(path) not in (None, points.annotation):
        return False
    return object_in(path) == object_in(points.url) and path.endswith(".ndjson")


def read_api(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """Of the replies: the tomogram, where they are about one only, and the annotations whose points are kept."""
    found: dict[str, list[str]] = {"voxelSpacing": [], "objectCount": []}
    for key in document.values:
        match = API_ITEM.fullmatch(key)
        if match is not None:
            found[match[2]].append(match[1])
    tomograms = found["voxelSpacing"]
    if len(tomograms) == 1:
        yield from _spacing(document, f"{tomograms[0]}/voxelSpacing", level_of(context.spec))
        for key, field in OF_DATASET.items():
            yield from said(document, f"{tomograms[0]}/run/dataset/{key}", field)
    for name, at in _annotations_of_points(document, context.spec, found["objectCount"]):
        yield from said(document, f"{at}/objectCount", "object_count", volume=f"{POINTS}/{name}")


def _annotations_of_points(document: StatedDocument, spec: DatasetSpec, places: Sequence[str]) -> Iterator[Place]:
    """Which annotation of the replies each of the spec's points is of; none where that is not clear."""
    paths: dict[str, list[str]] = {}
    for key in filter(API_PATH.search, document.values):
        paths.setdefault(key.partition("/annotationShapes/")[0], []).append(str(document.values[key]))
    for name, points in spec.points.items():
        fitting = [at for at in places if name in _points_of(spec, paths.get(at, ()))]
        stated = file_name(points.url)
        if len(fitting) > 1:  # several people annotated this object
            fitting = [at for at in fitting if stated in map(file_name, paths[at])]
        if len(fitting) == 1:
            yield name, fitting[0]


def read_points(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """How many objects the file has: points, or, of instances, how many different ones."""
    name = named_by_document(context.spec, document.path)
    key = "/instances" if "/instances" in document.values else "/points"
    if name is not None:
        yield from said(document, key, "object_count", "file header", volume=f"{POINTS}/{name}")


def read_mrc_header(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """Of the tomogram's MRC form, at the level that is stored here."""
    values, level = document.values, level_of(context.spec)
    mode, flags = count_or_zero(values.get("/mode")), number(values.get("/imodFlags"))
    if mode in DTYPES:
        found = dtype_of(mode, None if flags is None else int(flags))
        yield from said(document, "/mode", "dtype", OTHER, text=found, stated=f"MODE {mode}", note=_form("MRC", 0))
    axes = [count_or_zero(values.get(f"/{name}")) for name in ("maps", "mapr", "mapc")]
    places = places_of(*axes)
    if places is not None:
        sections = "/mz" if count_or_zero(values.get("/ispg")) in VOLUME_STACKS else "/nz"
        for place, key in zip(places, (sections, "/ny", "/nx"), strict=True):
            yield from _size(document, key, "zyx"[place], level, "MRC")
    geometry = {name: number(values.get(f"/{name}")) for name in GEOMETRY}
    for axis, size in zip("zyx", spacings_angstrom(geometry), strict=True):
        if size is not None:
            yield from _voxel_size(document, f"/cella/{axis}", axis, size * 2**level, _form("MRC", level))


def read_zarr_array(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """Of level 0 of the tomogram's OME-Zarr form."""
    level = level_of(context.spec)
    for place, axis in enumerate("zyx"):
        yield from _size(document, f"/shape/{place}", axis, level, "OME-Zarr")
    stated = document.values.get("/dtype")
    found = dtype(stated)
    if found is not None:
        yield from said(document, "/dtype", "dtype", OTHER, text=found, stated=str(stated), note=_form("OME-Zarr", 0))


def read_zarr_attributes(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """The size of a voxel of level 0 of the OME-Zarr form; nothing where its axes are not z, y, x in angstrom."""
    image, level = "/multiscales/0", level_of(context.spec)
    names = [document.values.get(f"{image}/axes/{place}/name") for place in range(3)]
    units = [document.values.get(f"{image}/axes/{place}/unit") for place in range(3)]
    transform = f"{image}/datasets/0/coordinateTransformations/0"
    if names != list("zyx") or set(units) != {"angstrom"} or document.values.get(f"{transform}/type") != "scale":
        return
    for place, axis in enumerate("zyx"):
        key = f"{transform}/scale/{place}"
        size = number(document.values.get(key))
        if size is not None and size > 0:
            yield from _voxel_size(document, key, axis, Fraction(repr(size)) * 2**level, _form("OME-Zarr", level))


def read_mdoc(document: StatedDocument, context: Context) -> Iterator[Statement]:  # noqa: ARG001  # a Reader's signature
    """What SerialEM noted of the tilt series."""
    for key in ("/Voltage", "/ZValue/0/Voltage"):
        yield from said(document, key, "accelerating_voltage_v", "file metadata", unit="kV")
    for key in ("/Magnification", "/ZValue/0/Magnification"):
        yield from said(document, key, "magnification", "file metadata")


def level_of(spec: DatasetSpec) -> int:
    """How many times the tomogram is halved at the level that is stored; MRC files are of full size."""
    level = spec.source.level if isinstance(spec.source, ChunkedSource) else 0
    return int(level) if isinstance(level, int) or level.isdecimal() else 0


def count_or_zero(value: Scalar) -> int:
    found = number(value)
    return int(found) if found is not None and found == int(found) else 0


def _listed(document: StatedDocument, pattern: str) -> list[str]:
    found: list[str] = []
    while isinstance(text := document.values.get(pattern.format(len(found))), str):
        found.append(text)
    return found


def _spacing(document: StatedDocument, key: str, level: int) -> Iterator[Statement]:
    """One number for all axes, at full size."""
    spacing = number(document.values.get(key))
    if spacing is None or spacing <= 0:
        return
    scaled = Decimal(repr(spacing)) * 2**level
    note = f"{as_text(spacing)} angstrom at full size, at level {level} {2**level} times that" if level else None
    for axis in "zyx":
        yield from said(
            document,
            key,
            f"voxel_size_{axis}_nm",
            unit="angstrom",
            text=str(scaled),
            stated=f"{as_text(spacing)} angstrom",
            note=note,
        )


def _size(document: StatedDocument, key: str, axis: str, level: int, form: str) -> Iterator[Statement]:
    voxels = count(document.values.get(key))
    if voxels is None:
        return
    halved = -(-int(voxels) // 2**level)
    stated = as_text(voxels)
    yield from said(
        document, key, f"source_size_{axis}", OTHER, text=str(halved), stated=stated, note=_form(form, level)
    )


def _voxel_size(
    document: StatedDocument, key: str, axis: str, size_angstrom: Fraction, note: str
) -> Iterator[Statement]:
    """At the level that is stored."""
    size_nm = to_nanometres(size_angstrom, "angstrom")
    if size_nm is not None:
        stated = f"{document.values[key]} angstrom"
        yield from said(document, key, f"voxel_size_{axis}_nm", OTHER, text=repr(size_nm), stated=stated, note=note)


def _form(form: str, level: int) -> str:
    """Whose word it is."""
    halved = f", halved {level} times to the level that is stored" if level else ""
    return f"of the {form} form, which this dataset is not made of{halved}"
