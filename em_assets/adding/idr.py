"""IDR (Image Data Resource, OMERO): what its replies say of one image, and the file or Zarr that holds its voxels.

The replies do not say where the file lies: the person gives its address. Without one the spec is written with what is
known, and a person must fill in the source.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import quote

from em_assets.adding.chunked import chunked_source, know_chunked
from em_assets.adding.draft import Draft, title
from em_assets.adding.files import know_single_file
from em_assets.adding.replies import as_spec, ask
from em_assets.adding.volume import Wishes, know_volume
from em_assets.datasets.source import Document
from em_assets.errors import EmAssetsError, Mismatch
from em_assets.fetch.http import HttpClient
from em_assets.formats._json import parse_json
from em_assets.formats._units import to_nanometres
from em_assets.settings import Settings
from em_assets.volume import VolumeInfo, VoxelSize

SERVER = "https://idr.openmicroscopy.org"
FILES = "https://ftp.ebi.ac.uk/pub/databases/IDR"
FTP = "ftp://ftp.ebi.ac.uk/pub/databases/IDR"
STATED_TYPES = {"float": "float32"}
"""Where OMERO's name of a pixel type is not numpy's."""


def draft_idr(
    image: int,
    wishes: Wishes,
    settings: Settings,
    *,
    file: str | None = None,
    zarr: str | None = None,
    level: int | str = 0,
    server: str = SERVER,
) -> Draft:
    """Of one image. Raises NotThere, Malformed, Mismatch, Unavailable for replies that are not about it."""
    if file is not None and zarr is not None:
        raise Mismatch("--file and --zarr both say where the voxels are; give one of them.")
    client = HttpClient(settings)
    documents = _documents(image, server)
    replies, missing = ask(documents, client)
    data = replies["imgData.json"]
    meta = data["meta"]
    draft = Draft(base_name=f"idr_{image}")
    draft.document["documents"] = as_spec(documents)
    draft.found += [f"not answered: {reason}" for reason in missing]
    _know_words(draft, image, meta, _study(meta, client, server, draft), _texts(replies.get("map_annotations.json")))
    stated = _stated_volume(data)
    wishes = replace(wishes, api_voxel_size_nm=stated.voxel_size_nm)
    if zarr is not None:
        source = chunked_source("zarr", zarr.rstrip("/"), "", level, None)
        _compare(draft, stated, know_chunked(draft, source, wishes, settings).info, documents[0].url)
    elif file is not None:
        info = know_single_file(draft, file, client, wishes, settings, mirrors=_mirrors(file))
        _compare(draft, stated, info, documents[0].url)
    else:
        _miss_file(draft, meta)
        know_volume(draft, f"IDR image {image}", stated, wishes, settings)
        draft.note("expected", "as the publisher's API states it; no file was looked at")
    return draft


def _documents(image: int, server: str) -> list[Document]:
    first = (f"{server}/webclient/?experimenter=-1",)
    kinds = {
        "imgData.json": (f"{server}/webclient/imgData/{image}/", "idr_image"),
        "omero_image.json": (f"{server}/api/v0/m/images/{image}/", "omero_image"),
        "map_annotations.json": (f"{server}/webclient/api/annotations/?type=map&image={image}", "idr_annotations"),
    }
    return [
        Document.model_validate({"path": path, "url": url, "kind": kind, "first": first})
        for path, (url, kind) in kinds.items()
    ]


def _study(meta: dict[str, Any], client: HttpClient, server: str, draft: Draft) -> dict[str, str]:
    """What the study's own annotations say (title, licence, DOI); empty where nothing does."""
    project = meta.get("projectId")
    if type(project) is not int:
        return {}
    url = f"{server}/webclient/api/annotations/?type=map&project={project}"
    try:
        return _texts(parse_json(client.get(url, max_bytes=2**22, accept_gzip=True).body, url))
    except EmAssetsError as error:
        draft.found.append(f"not answered: {error}")
        return {}


def _texts(reply: Any) -> dict[str, str]:
    """Key-value pairs of map annotations, keys in lower case; the first of each."""
    found: dict[str, str] = {}
    annotations = reply.get("annotations") if isinstance(reply, dict) else None
    for annotation in annotations if isinstance(annotations, list) else []:
        pairs = annotation.get("values") if isinstance(annotation, dict) else None
        for pair in pairs if isinstance(pairs, list) else []:
            if isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
                found.setdefault(pair[0].strip().lower(), pair[1])
    return found


def _know_words(draft: Draft, image: int, meta: dict[str, Any], study: dict[str, str], texts: dict[str, str]) -> None:
    name, project = _text(meta, "imageName"), _text(meta, "projectName")
    draft.know("title", title(f"{name or 'image'} (IDR image {image}{f', {project}' if project else ''})"))
    said = [texts.get("image description"), texts.get("assay description"), study.get("study title")]
    draft.take(
        "description",
        ". ".join(dict.fromkeys(text for text in said if text)),
        "what was imaged; the study's page says it",
    )
    draft.know("publisher", "idr")
    draft.know("source_id", str(image))
    dataset = meta.get("datasetId")
    show = f"?dataset={dataset}" if type(dataset) is int else ""
    draft.know("page_url", f"{SERVER}/webclient/img_detail/{image}/{show}", "follows the site's pattern")
    draft.take("license", study.get("license"), "the study's annotations state it; IDR's data is mostly CC BY 4.0")
    cited = [study.get("publication authors"), study.get("publication title"), study.get("publication doi")]
    draft.take("citation", ". ".join(text for text in cited if text), "the paper; the study's page names it")
    draft.take_doi(study.get("data doi") or study.get("publication doi"), "of the study's data or paper")
    for key, word in (("organism", "organism"), ("sample", "cell line"), ("modality", "imaging method")):
        value = title(texts.get(word) or study.get(word) or "")
        if value:
            draft.know(key, value, "as the publisher's annotations state it")


def _text(meta: dict[str, Any], key: str) -> str:
    value = meta.get(key)
    return title(value) if isinstance(value, str) else ""


def _stated_volume(data: dict[str, Any]) -> VolumeInfo:
    """What `imgData` says. Raises Mismatch where it says nothing that could be stored."""
    size, meta = data.get("size"), data["meta"]
    numbers = [size.get(key) if isinstance(size, dict) else None for key in ("z", "height", "width", "c", "t")]
    if any(type(n) is not int or n < 1 for n in numbers):
        raise Mismatch(
            f"the publisher's reply states the size {size!r:.200}, expected whole numbers of z, height, width."
        )
    z, y, x, channels, times = (int(n) for n in numbers if n is not None)
    if times > 1:
        raise Mismatch(f"the image has {times} points in time, but volumes of one are stored.")
    stated = str(meta.get("pixelsType"))
    dtype = STATED_TYPES.get(stated, stated)
    return VolumeInfo(
        (z, y, x), dtype, _stated_voxel_size(data), (1, y, x), channels=channels if channels > 1 else None
    )


def _stated_voxel_size(data: dict[str, Any]) -> VoxelSize | None:
    """OMERO.web gives micrometres."""
    stated = data.get("pixel_size")
    values = [stated.get(axis) if isinstance(stated, dict) else None for axis in "zyx"]
    sizes = [to_nanometres(value, "um") if isinstance(value, int | float) else None for value in values]
    if sizes[0] is None or sizes[1] is None or sizes[2] is None:
        return None
    return sizes[0], sizes[1], sizes[2]


def _compare(draft: Draft, stated: VolumeInfo, found: VolumeInfo, url: str) -> None:
    """What the API says otherwise than the data is kept as a claim."""
    for key, said, is_so in (
        ("volume_shape", stated.shape, found.shape),
        ("voxel_size_nm", stated.voxel_size_nm, found.voxel_size_nm),
    ):
        if said is not None and is_so is not None and said != is_so:
            draft.claim(key, list(said), url, f"the data itself says {list(is_so)} (z, y, x)")
    if stated.dtype != found.dtype:
        draft.claim("dtype", stated.dtype, url, f"the data itself says {found.dtype}")


def _miss_file(draft: Draft, meta: dict[str, Any]) -> None:
    """Which study's folder the file lies in is known, its path below it is not."""
    study = _text(meta, "projectName").partition("/")[0]
    name = _text(meta, "imageName").replace("/", "_") or "unknown"
    url = f"{FILES}/{quote(study)}" if study else FILES
    what = f"the folder below {url} in which {name} lies (or the address of an OME-Zarr), and the file's size"
    draft.miss("source", what, {"kind": "files", "url": url, "connections": 3, "files": [{"path": name}]})
    draft.document["source"]["volume"] = {"files": [name]}
    draft.found.append("where the file lies is not known: look it up and give --file URL, or --zarr URL")


def _mirrors(file: str) -> list[str]:
    """The same folder over FTP, for files of IDR's own server."""
    folder = file.rpartition("/")[0]
    return [FTP + folder.removeprefix(FILES)] if folder.startswith(FILES) else []
