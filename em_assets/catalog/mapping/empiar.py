"""EMPIAR's entries, as its API gives them (JSON) and as they lie beside the data (XML): one vocabulary, two spellings.

A volume is an image set there, and pixel sizes are in angstrom. Neither document states a licence, and a species or a
microscope only in prose, which is not taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from em_assets.catalog.mapping.saying import said
from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.datasets.source import FilesSource
from em_assets.datasets.spec import DatasetSpec

ANGSTROM = "angstrom"


@dataclass(frozen=True)
class _Spelling:
    """Where one of the two documents has what. Keys are relative to the entry, or to the image set."""

    entry: Mapping[str, str]
    """Fields by key."""
    author: re.Pattern[str]
    image_set: re.Pattern[str]
    """Its first group is the place of an image set."""
    directory: str
    of_image_set: Mapping[str, str]
    """Fields by key."""
    pixel_size: Mapping[str, str]
    """Likewise; in angstrom, unless the document names another unit."""


JSON = _Spelling(
    entry={
        "title": "title",
        "entry_doi": "doi",
        "deposition_date": "deposited_on",
        "release_date": "released_on",
        "update_date": "updated_on",
        "experiment_type": "modality",
        "dataset_size": "dataset_size_bytes",
        "citation/0/doi": "publication_doi",
    },
    author=re.compile(r"authors/(\d+)/author/name"),
    image_set=re.compile(r"(imagesets/\d+)/"),
    directory="directory",
    of_image_set={
        "details": "description",
        "data_format": "file_format",
        "voxel_type": "dtype",
        "num_images_or_tilt_series": "image_count",
        "image_width": "source_size_x",
        "image_height": "source_size_y",
    },
    pixel_size={"pixel_width": "voxel_size_x_nm", "pixel_height": "voxel_size_y_nm"},
)
XML = _Spelling(
    entry={
        "@accessionCode": "source_id",
        "admin/title": "title",
        "admin/entryDOI": "doi",
        "admin/keyDates/depositionDate": "deposited_on",
        "admin/keyDates/releaseDate": "released_on",
        "admin/keyDates/updateDate": "updated_on",
        "admin/experimentType": "modality",
        "admin/datasetSize": "dataset_size_bytes",
    },
    author=re.compile(r"admin/authorsList/author(?:\[(\d+)\])?"),
    image_set=re.compile(r"(imageSet(?:\[\d+\])?)/"),
    directory="directory",
    of_image_set={
        "details": "description",
        "dataFormat": "file_format",
        "voxelType": "dtype",
        "numImagesOrTiltSeries": "image_count",
        "dimensions/imageWidth": "source_size_x",
        "dimensions/imageHeight": "source_size_y",
    },
    pixel_size={"dimensions/pixelWidth": "voxel_size_x_nm", "dimensions/pixelHeight": "voxel_size_y_nm"},
)


def read_entry(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """Of `api/entry/<accession>/`: an object whose only key is the accession."""
    root = next((key.split("/")[1] for key in document.values if key.count("/") > 1), "")
    return _read(document, context.spec, f"/{root}/", JSON)


def read_xml(document: StatedDocument, context: Context) -> Iterator[Statement]:
    """Of `<number>.xml`."""
    return _read(document, context.spec, "/entry/", XML)


def _read(document: StatedDocument, spec: DatasetSpec, root: str, spelling: _Spelling) -> Iterator[Statement]:
    for key, field in spelling.entry.items():
        yield from said(document, root + key, field, unit=_unit(document, root + key))
    yield from _authors(document, root, spelling)
    at = _image_set(document, spec, root, spelling)
    if at is None:
        return
    for key, field in spelling.of_image_set.items():
        yield from said(document, at + key, field)
    for key, field in spelling.pixel_size.items():
        yield from said(document, at + key, field, unit=_unit(document, at + key) or ANGSTROM)


def _unit(document: StatedDocument, key: str) -> str | None:
    """XML has it beside the number: `<datasetSize units="GB">1.2</datasetSize>`."""
    unit = document.values.get(f"{key}/@units")
    return unit if isinstance(unit, str) and unit.strip() else None


def _authors(document: StatedDocument, root: str, spelling: _Spelling) -> Iterator[Statement]:
    found = {
        int(match[1] or 1): (key, name.strip())
        for key, name in document.values.items()
        if isinstance(name, str) and name.strip() and (match := spelling.author.fullmatch(key.removeprefix(root)))
    }
    people = [found[place] for place in sorted(found)]
    if people:
        yield from said(document, people[0][0], "authors", text="; ".join(name for _, name in people))


def _image_set(document: StatedDocument, spec: DatasetSpec, root: str, spelling: _Spelling) -> str | None:
    """Key of the image set that the dataset's volume lies in; None if that cannot be told.

    Of several, the one whose directory holds the volume's files (the nearest, if one lies in another).
    """
    keys = (spelling.image_set.match(key.removeprefix(root)) for key in document.values if key.startswith(root))
    places = list(dict.fromkeys(f"{root}{match[1]}/" for match in keys if match))
    if len(places) == 1:
        return places[0]
    folder = _folder(spec)
    fitting: dict[int, list[str]] = {}
    for at in places:
        directory = str(document.values.get(at + spelling.directory) or "").strip("/")
        if directory and f"/{directory}/" in folder:
            fitting.setdefault(len(directory), []).append(at)
    nearest = fitting[max(fitting)] if fitting else []
    return nearest[0] if len(nearest) == 1 else None


def _folder(spec: DatasetSpec) -> str:
    """Path of the folder at the publisher's that the volume's first file, or the container, lies in or is."""
    path = unquote(urlsplit(spec.source.volume_url).path)
    return path.rpartition("/")[0] + "/" if isinstance(spec.source, FilesSource) else f"{path.rstrip('/')}/"
