"""EMPIAR's part of the sample origin: sixteen DM3 slices, their TrakEM2 project, and the entry as JSON and XML.

The entry contradicts the files as the real one does: its width and height are wrong, and texts instead of numbers.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from em_assets.datasets.source import expand
from em_assets.sample.pages import write_autoindex, write_json_page
from em_assets.sample.publishing import (
    FOLDER,
    SAMPLE_DOI,
    Addresses,
    Facts,
    drawn_words,
    file_facts,
    moved,
    moved_documents,
    moved_files,
    packaged_spec,
    sample_spec,
    settle,
)
from em_assets.volume import Zyx

if TYPE_CHECKING:
    from em_assets.sample.origin import Request
    from em_assets.sample.texture import Voxels

DATASET = "empiar_11759"
ACCESSION = "EMPIAR-11759"
SHAPE: Zyx = (16, 550, 548)
SHARD, CHUNK = [16, 256, 256], [16, 128, 128]
"""Of the output: 9 shards."""
THUMBNAIL_YX = (192, 192)
LARGER_THUMBNAIL_YX = (384, 383)
LARGER_FROM = 10
"""The window was made larger at this slice, and with it the thumbnail: from here on the pixels begin elsewhere."""
OMITTED = 7
"""The slice that the index of the folder does not name."""
STATED_TOO_LARGE = 13
"""By how many pixels the entry's width and height are wrong."""
TITLE = "SAMPLE: drawn neuropil, not a retina."
AUTHOR = "Sample A"
CITATION_NULLS = (
    *("book_chapter_title", "details", "doi", "first_page", "issue", "journal", "journal_abbreviation", "language"),
    *("last_page", "preprint", "pubmedid", "volume", "year"),
)
CITATION_BLANKS = ("country", "publication_location", "publisher")
DETAILS = (
    "SAMPLE: drawn by em_assets, nobody measured it. \nIt is in the form of a SBF-SEM data set. \nThe resolution is "
    "8nm/px in xy and 50nm per section (z). \n\nThe acquisition conditions on the FEI Magellan400 SEM were 1.9kV "
    "accelerating voltage and 200pA current at 0.5 usec dwell time. \nThe microtome unit of the SBF-SEM is called "
    "Gatan 3ViewXP."
)


def write(origin: Path, request: Request) -> Facts:
    """Writes files and replies below `origin`."""
    from em_assets.sample.dm3 import dm3_bytes
    from em_assets.sample.sbfsem import slice_tags
    from em_assets.sample.texture import draw

    root = origin / FOLDER / "empiar"
    source = packaged_spec(DATASET)["source"]
    slices = expand(source["volume"]["files"][0])
    folder = root / urlsplit(source["url"]).path.lstrip("/")
    (folder / "trakem2_data").mkdir(parents=True)
    files = {}
    for number, (name, image) in enumerate(zip(slices, draw(SHAPE, request.seed), strict=True)):
        (folder / name).write_bytes(dm3_bytes(slice_tags(number, image, _thumbnail(number, image))))
        files[name] = file_facts(folder / name) | {"pixels_sha256": hashlib.sha256(image).hexdigest()}
    project = source["files"][-1]["path"]
    (folder / project).write_bytes(gzip.compress(_trakem2_project(slices).encode(), mtime=0))
    files[project] = file_facts(folder / project)
    (folder / "trakem2_data" / "readme.txt").write_text("SAMPLE: TrakEM2 keeps its caches here.\n")
    write_autoindex(folder, omit=slices[OMITTED])
    _write_entry(root, folder.parent)
    return {"root": f"{FOLDER}/{settle(root).name}", "seed": request.seed, "files": files}


def spec(facts: Facts, addresses: Addresses) -> dict[str, Any]:
    """The packaged spec with everything changed that would pass the sample off as the real thing."""
    base = addresses.below(facts["root"])
    served = f"served on this machine as EMPIAR serves entry {ACCESSION}; the voxel size is nominal."
    words = drawn_words(facts["seed"], instead_of="the retina", served=served)
    real_folder = packaged_spec(DATASET)["source"]["url"]
    document = sample_spec(DATASET, words, moved(real_folder, base.http) + "/")
    document["source"] = moved_files(document["source"], base, facts["files"])
    document["documents"] = moved_documents(document["documents"], base)
    document["expected"] |= {"source_shape": list(SHAPE)}
    document["output"] = {"shard": SHARD, "chunk": CHUNK}
    return document


def _thumbnail(number: int, image: Voxels) -> Voxels:
    """(y, x, 4): the grey value three times, and full opacity."""
    import numpy as np

    rows, columns = LARGER_THUMBNAIL_YX if number >= LARGER_FROM else THUMBNAIL_YX
    y = np.arange(rows) * image.shape[0] // rows
    x = np.arange(columns) * image.shape[1] // columns
    thumbnail = np.full((rows, columns, 4), 255, np.uint8)
    thumbnail[..., :3] = image[np.ix_(y, x)][..., None]
    return thumbnail


def _write_entry(root: Path, folder: Path) -> None:
    """The API's reply, below both addresses it has, and the XML beside the data."""
    for name in (ACCESSION, ACCESSION.removeprefix("EMPIAR-")):
        write_json_page(root / "empiar" / "api" / "entry" / name, {ACCESSION: _entry()})
    (folder / f"{folder.name}.xml").write_text(_entry_xml(), encoding="utf-8")


def _stated_yx() -> tuple[str, str]:
    return str(SHAPE[1] + STATED_TOO_LARGE), str(SHAPE[2] + STATED_TOO_LARGE)


def _entry() -> dict[str, Any]:
    """The keys and types of the real reply; its people are replaced."""
    author = {"author_orcid": None, "name": AUTHOR}
    person = {
        "author_orcid": None,
        "country": "Germany",
        "first_name": "A",
        "last_name": "Sample",
        "middle_name": None,
        "organization": "None",
        "post_or_zip": None,
        "state_or_province": None,
        "street": None,
        "town_or_city": None,
    }
    investigator = {"email": "sample [at] example.org", "entry": ACCESSION, "fax": None, "telephone": None}
    return {
        "authors": [{"author": author}],
        "biostudies_references": [],
        "citation": [
            dict.fromkeys(CITATION_NULLS)
            | dict.fromkeys(CITATION_BLANKS, "")
            | {"authors": [author], "editors": [], "j_or_nj_citation": False, "published": False, "title": TITLE}
        ],
        "corresponding_author": {"author": person},
        "cross_references": [],
        "dataset_size": "15 MB",
        "deposition_date": "2023-11-01",
        "empiar_references": [],
        "entry_doi": SAMPLE_DOI,
        "experiment_type": "SBF-SEM",
        "grant_references": [],
        "idr_references": [],
        "imagesets": [_imageset()],
        "obsolete_date": None,
        "principal_investigator": [person | investigator],
        "release_date": "2024-01-15",
        "scale": "tissue",
        "status": "REL",
        "title": TITLE,
        "update_date": "2024-01-15",
        "version_history": [],
        "workflow_file": None,
    }


def _imageset() -> dict[str, Any]:
    height, width = _stated_yx()
    return {
        "category": "reconstructed volumes",
        "data_format": "DM3",
        "details": DETAILS,
        "directory": "data",
        "frame_range_max": None,
        "frame_range_min": None,
        "frames_per_image": 1,
        "header_format": "DM3",
        "image_height": height,
        "image_width": width,
        "micrographs_file_pattern": "",
        "name": TITLE,
        "num_images_or_tilt_series": SHAPE[0],
        "picked_particles_directory": "",
        "picked_particles_file_pattern": "",
        "pixel_height": 80.0,
        "pixel_width": 80.0,
        "segmentations": [],
        "voxel_type": "UNSIGNED BYTE",
    }


def _entry_xml() -> str:
    """Schema 0.64, shortened; the directory begins with a slash here and has none in the JSON."""
    height, width = _stated_yx()
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<entry xmlns="http://pdbe.org/empiar" accessionCode="{ACCESSION}" schemaVersion="0.64" public="true">
  <admin>
    <currentStatus>REL</currentStatus>
    <keyDates>
      <depositionDate>2023-11-01</depositionDate>
      <releaseDate>2024-01-15</releaseDate>
      <updateDate>2024-01-15</updateDate>
    </keyDates>
    <title>{TITLE}</title>
    <authorsList><author>{AUTHOR}</author></authorsList>
    <datasetSize units="MB">15</datasetSize>
    <entryDOI>{SAMPLE_DOI}</entryDOI>
    <experimentType>SBF-SEM</experimentType>
    <scale>tissue</scale>
  </admin>
  <imageSet>
    <name>{TITLE}</name>
    <directory>/data</directory>
    <category>reconstructed volumes</category>
    <headerFormat>DM3</headerFormat>
    <dataFormat>DM3</dataFormat>
    <numImagesOrTiltSeries>{SHAPE[0]}</numImagesOrTiltSeries>
    <framesPerImage>1</framesPerImage>
    <voxelType>UNSIGNED BYTE</voxelType>
    <dimensions>
      <imageWidth>{width}</imageWidth>
      <pixelWidth>80.0</pixelWidth>
      <imageHeight>{height}</imageHeight>
      <pixelHeight>80.0</pixelHeight>
    </dimensions>
    <details>{DETAILS}</details>
  </imageSet>
</entry>
"""


def _trakem2_project(slices: list[str]) -> str:
    _, height, width = SHAPE
    size = f'width="{width}" height="{height}"'
    layers = "".join(
        f'<t2_layer oid="{number}" thickness="6.25" z="{number * 6.25}">'
        f'<t2_patch oid="{number + 100}" {size} title="{name}" file_path="{name}"/></t2_layer>\n'
        for number, name in enumerate(slices)
    )
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<trakem2>
<project id="0" title="SAMPLE"></project>
<t2_layer_set oid="3" layer_width="{width}.0" layer_height="{height}.0">
{layers}</t2_layer_set>
</trakem2>
"""
