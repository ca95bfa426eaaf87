"""The IDR's part of the sample origin: one volume in two ImageJ TIFFs, cut along xy and xz, and the JSON about it.

Served over HTTP and FTP below the real paths; `webclient/` hands out a session cookie, as the real one does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from em_assets.sample.pages import write_autoindex, write_json_page, write_page
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

DATASET = "idr_9846137"
SHAPE: Zyx = (61, 155, 187)
SHARD, CHUNK = [64, 64, 64], [32, 32, 32]
"""Of the output: 9 shards."""
VOXEL_SIZE_UM = 0.02
IMAGE_ID, DATASET_ID, PROJECT_ID = 9846137, 10740, 1161
DRAWN = "SAMPLE: drawn by em_assets, nobody measured it"
COOKIE = "sessionid=sample; Path=/; HttpOnly"


def write(origin: Path, request: Request) -> Facts:
    """Writes files and replies below `origin`."""
    from em_assets.sample.texture import draw
    from em_assets.sample.tiff import write_imagej

    root = origin / FOLDER / "idr"
    source = packaged_spec(DATASET)["source"]
    xy, xz = (entry["path"] for entry in source["files"])
    folder = root / unquote(urlsplit(source["url"]).path).lstrip("/")
    folder.mkdir(parents=True)
    volume = draw(SHAPE, request.seed)
    write_imagej(folder / xy, volume)
    write_imagej(folder / xz, volume.swapaxes(0, 1))
    files = {name: file_facts(folder / name) for name in (xy, xz)}
    write_autoindex(folder, omit=xz)
    _write_replies(root, xy)
    _write_study(root, xy, xz)
    return {"root": f"{FOLDER}/{settle(root).name}", "shape": list(SHAPE), "seed": request.seed, "files": files}


def spec(facts: Facts, addresses: Addresses) -> dict[str, Any]:
    """The packaged spec with everything changed that would pass the sample off as the real thing."""
    base = addresses.below(facts["root"])
    served = "served on this machine as the IDR serves image 9846137; the 20 nm are nominal."
    words = drawn_words(facts["seed"], instead_of="the IDR's image", served=served)
    real_folder = packaged_spec(DATASET)["source"]["url"]
    document = sample_spec(DATASET, words, moved(real_folder, base.http) + "/")
    document["source"] = moved_files(document["source"], base, facts["files"])
    document["documents"] = moved_documents(document["documents"], base)
    document["expected"] |= {"source_shape": facts["shape"]}
    document["output"] = {"shard": SHARD, "chunk": CHUNK}
    return document


def _write_replies(root: Path, name: str) -> None:
    client = root / "webclient"
    page = "<html><head><title>SAMPLE webclient</title></head><body></body></html>\n"
    write_page(client, page, ".html", headers={"Set-Cookie": COOKIE})
    write_json_page(client / "imgData" / str(IMAGE_ID), _image_data(name))
    image = root / "api" / "v0" / "m" / "images" / str(IMAGE_ID)
    write_json_page(image, {"data": _omero_image(name)}, headers={"X-OMERO-ApiVersion": "0"})
    annotations = client / "api" / "annotations"
    write_json_page(annotations, {"annotations": [], "experimenters": []})
    write_json_page(annotations, _map_annotations(name), query=f"type=map&image={IMAGE_ID}")


def _write_study(root: Path, *names: str) -> None:
    """The study's two files, each in the folder that the packaged spec names."""
    texts = {"study.txt": _study(), "annotation.csv": _annotation_table(*names)}
    for document in packaged_spec(DATASET)["documents"]:
        if document["path"] in texts:
            file = root / unquote(urlsplit(document["url"]).path).lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(texts[document["path"]], encoding="utf-8")


def _study() -> str:
    """Sections of tab separated lines: the study, then each of its experiments under the same keys."""
    study = [
        "# STUDY DESCRIPTION SECTION",
        f"Study Title\t{DRAWN}",
        "Study Public Release Date\t2020-07-22",
        "Study Author List\tSample A, Sample B",
        "Study Person Email\tsample@example.org",
        "Study License\tCC0 1.0",
        "Study Data Publisher\tem_assets",
        f"Study Data DOI\thttps://doi.org/{SAMPLE_DOI}",
    ]
    experiments = [
        "\n".join(
            (
                f"Experiment Number\t{number}",
                f"Comment[IDR Experiment Name]\tidr0086-miron-micrographs/experiment{letter}",
                f"Experiment Imaging Method\tnone ({DRAWN})",
                "Experiment Organism\tnone",
            )
        )
        for number, letter in enumerate("ABCD", 1)
    ]
    return "\n\n".join(["\n".join(study), *experiments]) + "\n"


def _annotation_table(*names: str) -> str:
    """With a byte order mark, as the real one."""
    heads = "Dataset Name,Image Name,Characteristics [Organism],Characteristics [Cell Line],Channels"
    return (
        "\ufeff"
        + "\n".join([heads, *(f"U2OS_chromatin,{name},none,none,Channel 1: greyscale" for name in names)])
        + "\n"
    )


def _image_data(name: str) -> dict[str, Any]:
    """The keys of a real reply, nulls included."""
    z, y, x = SHAPE
    window = {"end": 153.0, "max": 255.0, "min": 0.0, "start": 85.0}
    channel = {"active": True, "coefficient": 1.0, "color": "808080", "emissionWave": None, "family": "linear"}
    return {
        "channels": [channel | {"inverted": False, "label": "0", "reverseIntensity": False, "window": window}],
        "id": IMAGE_ID,
        "init_zoom": 0,
        "interpolate": True,
        "meta": {
            "datasetDescription": "",
            "datasetId": DATASET_ID,
            "datasetName": "U2OS_chromatin",
            "imageAuthor": "Public data",
            "imageDescription": DRAWN,
            "imageId": IMAGE_ID,
            "imageName": name,
            "imageTimestamp": 1595376000.0,
            "pixelsType": "uint8",
            "projectDescription": "",
            "projectId": PROJECT_ID,
            "projectName": "idr0086-miron-micrographs/experimentD",
            "wellId": None,
            "wellSampleId": "",
        },
        "perms": {"canAnnotate": False, "canDelete": False, "canEdit": False, "canLink": False},
        "pixel_range": [0, 255],
        "pixel_size": {"x": VOXEL_SIZE_UM, "y": VOXEL_SIZE_UM, "z": VOXEL_SIZE_UM},
        "rdefs": {"defaultT": 0, "defaultZ": z // 2, "invertAxis": False, "model": "greyscale", "projection": "normal"},
        "size": {"c": 1, "height": y, "t": 1, "width": x, "z": z},
        "split_channel": {"c": {"border": 2, "gridx": 1, "gridy": 1, "height": y + 4, "width": x + 4}},
        "tiles": False,
    }


def _omero_image(name: str) -> dict[str, Any]:
    """OMERO's JSON API leaves out what is null."""
    z, y, x = SHAPE
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    length = {"Symbol": "\N{MICRO SIGN}m", "Value": VOXEL_SIZE_UM, "@type": "TBD#LengthI", "Unit": "MICROMETER"}
    return {
        "@id": IMAGE_ID,
        "@type": f"{schema}#Image",
        "Name": name,
        "Description": DRAWN,
        "AcquisitionDate": 1595376000000,
        "omero:details": {},
        "omero:series": 0,
        "Pixels": {
            "@id": IMAGE_ID,
            "@type": f"{schema}#Pixels",
            **{f"Size{axis}": size for axis, size in zip("XYZCT", (x, y, z, 1, 1), strict=True)},
            **{f"PhysicalSize{axis}": length for axis in "XYZ"},
            "SignificantBits": 8,
            "Type": {"@id": 1, "@type": "TBD#PixelsType", "omero:details": {}, "value": "uint8"},
            "omero:details": {},
        },
    }


def _map_annotations(name: str) -> dict[str, Any]:
    by_namespace = {
        "openmicroscopy.org/mapr/organism": [["Organism", "none"]],
        "openmicroscopy.org/mapr/cell_line": [["Cell Line", "none"]],
        "openmicroscopy.org/omero/bulk_annotations": [
            ["Cell Cycle Stage", "none"],
            ["Assay Description", DRAWN],
            ["Image Description", DRAWN],
            ["Channels", "Channel 1: greyscale"],
        ],
    }
    return {
        "annotations": [_annotation(number, *entry, name) for number, entry in enumerate(by_namespace.items(), 1)],
        "experimenters": [{"lastName": "Sample", "omeName": "sample", "id": 2, "firstName": "Sample"}],
    }


def _annotation(number: int, namespace: str, values: list[list[str]], image_name: str) -> dict[str, Any]:
    rights = {"canAnnotate": False, "canEdit": False, "canDelete": False, "canLink": False}
    date = "2020-07-22T00:00:00Z"
    parent = {"id": IMAGE_ID, "name": image_name, "class": "ImageI"}
    return {
        "description": None,
        "class": "MapAnnotationI",
        "date": date,
        "link": {"owner": {"id": 2}, "date": date, "id": number, "parent": parent, "permissions": rights},
        "owner": {"id": 2},
        "values": values,
        "ns": namespace,
        "id": number,
        "permissions": rights,
    }
