"""The IDR's replies about an image (OMERO's, in JSON), and the curated files of its study (tab or comma separated).

A study has several experiments and each of them many images: only what is about the main volume's own image counts.
No title is taken from here. An image's name is that of its file and a study's that of the paper; both would go before
the spec's title, and neither says in one line what the volume is. The term for the imaging method is left out for the
same reason: "scanning electron microscopy" is true of a FIB-SEM volume, and says less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from em_assets.catalog.mapping.saying import said
from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.catalog.values import number
from em_assets.datasets.source import FilesSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.formats.reader import Scalar

IMAGE = {
    "/id": "source_id",
    "/meta/imageDescription": "description",
    "/meta/pixelsType": "dtype",
    "/size/z": "source_size_z",
    "/size/height": "source_size_y",
    "/size/width": "source_size_x",
    "/size/c": "channels",
}
OMERO = {
    "/data/@id": "source_id",
    "/data/Description": "description",
    "/data/Pixels/Type/value": "dtype",
    "/data/Pixels/SizeZ": "source_size_z",
    "/data/Pixels/SizeY": "source_size_y",
    "/data/Pixels/SizeX": "source_size_x",
    "/data/Pixels/SizeC": "channels",
}
CURATED = {"Organism": "organism", "Cell Line": "cell_line", "Image Description": "description"}
"""What the curators' map annotations and tables call fields."""
TAXON = re.compile(r"NCBITaxon[_:]\d+")
IN_BRACKETS = re.compile(r"[A-Za-z ]+\[(.+)\]")
"""Columns of a table: `Characteristics [Organism]`, `Comment [Image Description]`."""
IMAGE_NAME = "Image Name"
STUDY = {
    "Study License": "license",
    "Study Public Release Date": "released_on",
    "Study Data Publisher": "publisher_name",
    "Study DOI": "publication_doi",
}
EXPERIMENT_NAME = "Comment[IDR Experiment Name]"
PREPARATIONS = (("preparation", "fixation", "embedding", "staining"), ("treatment",))
"""Words in the names of protocols that say how a specimen was prepared. Where none names it outright, it is the
treatment that came before the imaging."""


def read_image(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """Of OMERO.web's `imgData`. Pixel sizes are in micrometres; the time stamp may be that of the import."""
    if _is_of_another_file(document.values.get("/meta/imageName"), context.spec):
        return
    for key, field in IMAGE.items():
        yield from said(document, key, field)
    for axis in "zyx":
        yield from said(document, f"/pixel_size/{axis}", f"voxel_size_{axis}_nm", unit="micrometer")


def read_omero(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """Of the OMERO JSON API's image, in OME's terms: each length with its unit."""
    values = document.values
    if _is_of_another_file(values.get("/data/Name"), context.spec):
        return
    for key, field in OMERO.items():
        yield from said(document, key, field)
    for axis in "zyx":
        length = f"/data/Pixels/PhysicalSize{axis.upper()}"
        unit = values.get(f"{length}/Unit")
        if isinstance(unit, str):
            yield from said(document, f"{length}/Value", f"voxel_size_{axis}_nm", unit=unit)
    key, note = "/data/AcquisitionDate", "milliseconds since 1970, in UTC"
    day = _day(values.get(key))
    if day is not None:
        yield from said(document, key, "acquired_on", text=day, stated=str(values[key]), note=note)


def read_annotations(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """Of OMERO.web's map annotations: pairs of a key and a value, about one image."""
    values = document.values
    pairs = []
    for key, name in values.items():
        match = re.fullmatch(r"(/annotations/\d+)/values/\d+/0", key)
        if match and not _is_of_another_file(values.get(f"{match[1]}/link/parent/name"), context.spec):
            pairs.append((name, f"{key[:-1]}1"))
    return _curated(document, pairs)


def read_table(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """Of a study's annotation table: the row of each of the main volume's files. Other tables state nothing."""
    files = _main_files(context.spec)
    for key, name in document.values.items():
        match = re.fullmatch(rf"(/rows/\d+/){IMAGE_NAME}", key)
        if match and name in files:
            row = [column for column in document.values if column.startswith(match[1])]
            yield from _curated(document, [(_column(column.removeprefix(match[1])), column) for column in row])


def read_study(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """Of `idr0000-study.txt`: what it says of the study, and of the experiment that the image belongs to."""
    for name, field in STUDY.items():
        yield from said(document, f"/{name}/0", field)
    yield from _authors(document)
    ours = _experiment(document, context)
    below = None if ours is None else f"/experiment/{ours}/"
    keys = [] if below is None else [f"{below}Experiment Data DOI/0"]
    yield from _first(document, [*keys, "/Study Data DOI/0"], "doi")
    yield from _organism(document, below)
    if below is not None:
        yield from said(document, f"{below}Experiment Description/0", "description")
        yield from _preparation(document, below)


def _main_files(spec: DatasetSpec) -> set[str]:
    """Names of the files that the main volume is made of."""
    source = spec.source
    return {PurePosixPath(path).name for path in source.volume.paths()} if isinstance(source, FilesSource) else set()


def _is_of_another_file(name: Scalar, spec: DatasetSpec) -> bool:
    """Whether an image is one of the dataset's other files: the same volume cut another way, or an attachment."""
    if not isinstance(spec.source, FilesSource) or name in _main_files(spec):
        return False
    return name in {PurePosixPath(path).name for path in spec.source.by_path()}


def _day(milliseconds: Scalar) -> str | None:
    """The day, in UTC, of a time in OMERO's milliseconds since 1970."""
    time = number(milliseconds)
    try:
        return None if time is None else datetime.fromtimestamp(time / 1000, UTC).date().isoformat()
    except (OverflowError, OSError, ValueError):  # beyond the years that there are
        return None


def _column(name: str) -> str:
    match = IN_BRACKETS.fullmatch(name)
    return match[1].strip() if match else name


def _curated(document: StatedDocument, pairs: list[tuple[Scalar, str]]) -> Iterator[Statement]:
    """Pairs of a curator's name and the key of its value. A mixture (two organisms) is no value of a field."""
    found: dict[str, list[str]] = {}
    for name, key in pairs:
        value = document.values.get(key)
        is_taxon = isinstance(value, str) and TAXON.fullmatch(value.strip())
        field = "organism_taxid" if is_taxon else CURATED.get(str(name))
        if field is not None and value not in (None, ""):
            found.setdefault(field, []).append(key)
    for field, keys in found.items():
        if len({str(document.values[key]).strip().casefold() for key in keys}) == 1:
            yield from said(document, keys[0], field)


def _columns(document: StatedDocument, key: str) -> dict[int, str]:
    """The values of a study's key that are not blank, by column."""
    columns = {}
    for full, value in document.values.items():
        place = full.removeprefix(f"{key}/")
        if place != full and place.isdecimal() and value is not None and str(value).strip():
            columns[int(place)] = str(value).strip()
    return columns


def _first(document: StatedDocument, keys: list[str], field: str) -> Iterator[Statement]:
    """The first of the keys that states the field."""
    for key in keys:
        statements = list(said(document, key, field))
        if statements:
            yield from statements
            return


def _authors(document: StatedDocument) -> Iterator[Statement]:
    """`Miron E, Oldenkamp R`: names that are not of this form are left as they are."""
    listed = document.values.get("/Study Author List/0")
    if not isinstance(listed, str):
        return
    people = [name.strip() for name in listed.split(",") if name.strip()]
    is_plain = ";" not in listed and all(" " in name for name in people)
    text = "; ".join(people) if is_plain else listed
    yield from said(document, "/Study Author List/0", "authors", text=text, note="of the study's publication")


def _experiment(document: StatedDocument, context: Context) -> str | None:
    """Number of the experiment that the image belongs to, as its project or the folder of its files is named."""
    names = {
        match[1]: str(value)
        for key, value in document.values.items()
        if (match := re.fullmatch(rf"/experiment/([^/]+)/{re.escape(EXPERIMENT_NAME)}/0", key)) and value
    }
    projects = {
        other.values.get("/meta/projectName")
        for other in context.documents.values()
        if other.extractor == "idr_image" and not _is_of_another_file(other.values.get("/meta/imageName"), context.spec)
    }
    folders = unquote(urlsplit(context.spec.source.url).path).split("/")
    by_project = [ours for ours, name in names.items() if name in projects]
    by_folder = [ours for ours, name in names.items() if name.rpartition("/")[2] in folders]
    return next((fitting[0] for fitting in (by_project, by_folder) if len(fitting) == 1), None)


def _organism(document: StatedDocument, below: str | None) -> Iterator[Statement]:
    """Of the experiment, else of the study; only where it is one."""
    groups = [*([] if below is None else [f"{below}Experiment Organism"]), "/Study Organism"]
    key = next((key for key in groups if _columns(document, key)), None)
    if key is None:
        return
    organisms = _columns(document, key)
    taxa, terms = (_columns(document, f"{key} Term {what}") for what in ("Accession", "Source REF"))
    if len(organisms) != 1:
        return
    yield from said(document, f"{key}/{next(iter(organisms))}", "organism")
    if len(taxa) == 1 and list(terms.values()) == ["NCBITaxon"]:
        yield from said(document, f"{key} Term Accession/{next(iter(taxa))}", "organism_taxid")


def _preparation(document: StatedDocument, below: str) -> Iterator[Statement]:
    """Protocols are columns: name, type and description of one protocol lie under each other."""
    names, types = _columns(document, f"{below}Protocol Name"), _columns(document, f"{below}Protocol Type")
    described = _columns(document, f"{below}Protocol Description")
    for words in PREPARATIONS:
        ours = [
            column
            for column in sorted(described)
            if any(word in f"{names.get(column, '')} {types.get(column, '')}".lower() for word in words)
        ]
        if ours:
            called = ", ".join(names.get(column) or types[column] for column in ours)
            text = "\n\n".join(described[column] for column in ours)
            key = f"{below}Protocol Description/{ours[0]}"
            yield from said(document, key, "preparation", text=text, note=f"of the study's {called}")
            return
