"""Tomograms of the CryoET Data Portal: which one a spec means, and where it and its annotations lie now.

The portal's API is asked before anything is fetched, at every door to its files (`current_spec`); keys are never built
from names or voxel spacings. The bytes themselves come as of any other publisher: OME-Zarr chunk by chunk
(`chunked.py`), MRC as a file (`files.py`). What the API says is `_cryoet_api.py`'s to read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from em_assets.datasets.portal import PointSet, PortalTomogram
from em_assets.datasets.source import ChunkedSource, FilesSource, SubVolume
from em_assets.datasets.spec import PORTAL_DOCUMENTS, DatasetSpec
from em_assets.errors import EmAssetsError, Malformed, Mismatch
from em_assets.formats._json import MAX_JSON_BYTES
from em_assets.settings import Settings
from em_assets.sources.claims import document_path

if TYPE_CHECKING:
    from em_assets.fetch.http import HttpClient
    from em_assets.sources import _cryoet_api as api

ASK_RETRY_SECONDS = 20.0
ASK_UNREACHABLE_SECONDS = 10.0
"""Without an answer the spec's own addresses serve, as a rule: less patience than a download has."""
REPLIES = document_path(PORTAL_DOCUMENTS[0])
FOLDER = re.compile(r"/Annotations/(\d+)[/-]")
"""In the address of an annotation's metadata."""
MASK_SHAPES = frozenset({"SegmentationMask", "SemanticSegmentationMask", "InstanceSegmentationMask"})
POINT_SHAPES = frozenset({"Point", "OrientedPoint", "InstanceSegmentation"})


@dataclass(frozen=True)
class CurrentSpec:
    """A spec with the addresses of now."""

    spec: DatasetSpec
    stated: DatasetSpec
    """As it was given: identity, partitions and names are the same."""
    documents: dict[str, bytes] = field(default_factory=dict)
    """What the API answered, as received, by path below the dataset's folder."""
    met: dict[str, Any] = field(default_factory=dict)
    """What became of asking, for the record."""
    unanswered: dict[str, str] = field(default_factory=dict)
    """Why the API's answer is not among the documents, by its path."""

    def kept_path(self, path: str) -> str:
        """Where a metadata document of the container is kept: below the group that the spec states."""
        groups = zip(_groups(self.spec), _groups(self.stated), strict=True)
        moved = sorted(((now, was) for now, was in groups if now != was), key=lambda pair: -len(pair[0]))
        for now, was in moved:
            begin = document_path(f"{now.replace('/', '__')}__")
            if path.startswith(begin):
                return document_path(f"{was.replace('/', '__')}__{path[len(begin) :]}")
        return path


def current_spec(spec: DatasetSpec, settings: Settings, client: HttpClient | None = None) -> CurrentSpec:
    """The spec with the addresses that the portal's API gives now; any other spec as it is.

    Where the API does not answer, or its answer cannot be believed, the spec's own addresses stay, and that is said.
    Raises Mismatch where it answers that no tomogram, or several, fit.
    """
    if spec.portal is None:
        return CurrentSpec(spec, spec)
    from em_assets.fetch.http import HttpClient
    from em_assets.sources._cryoet_api import NotInPortal, PortalClient

    replies: list[bytes] = []
    refused: list[Malformed] = []
    http, keep = client or HttpClient(_hurried(settings)), lambda _, raw: replies.append(raw)
    portal = PortalClient(spec.portal.api, http, keep=keep)
    try:
        found = fitting_tomograms(portal, spec.portal)
    except NotInPortal:
        raise
    except EmAssetsError as error:
        return stated_spec(spec, str(error))
    tomogram = one_tomogram(spec.name, spec.portal, found)
    notes: dict[str, str] = {}
    # one annotation that cannot be believed is left out, and the others are not
    lenient = PortalClient(spec.portal.api, http, keep=keep, refused=refused.append)
    files = _annotation_files(lenient, spec, tomogram, notes)
    placed = _placed(spec, tomogram, files, notes)
    met: dict[str, Any] = {"address": "the API's", "portal_tomogram": tomogram.id}
    kept = first_replies(replies)
    if len(kept) < len(replies):
        met["replies"] = f"the first {len(kept)} of {len(replies)} are kept: more is no document that is read again"
    if notes:
        met["annotations"] = notes
    if refused:
        met["refused"] = [str(error) for error in refused]
    return CurrentSpec(placed, spec, {REPLIES: joined_replies(kept)}, met)


def stated_spec(spec: DatasetSpec, reason: str) -> CurrentSpec:
    """The spec with its own addresses, because of `reason`."""
    return CurrentSpec(spec, spec, {}, {"address": _the_specs(reason)}, {REPLIES: reason})


def _the_specs(reason: str) -> str:
    return f"the spec's; the API did not answer: {reason}"


def _hurried(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "retry_seconds": min(settings.retry_seconds, ASK_RETRY_SECONDS),
            "unreachable_seconds": min(settings.unreachable_seconds, ASK_UNREACHABLE_SECONDS),
        }
    )


def first_replies(replies: Sequence[bytes]) -> list[bytes]:
    """As many as are one JSON document that its readers take."""
    sizes = itertools.accumulate(len(joined_replies([reply])) for reply in replies)
    return [reply for reply, size in zip(replies, sizes, strict=True) if size <= MAX_JSON_BYTES]


def joined_replies(replies: Sequence[bytes]) -> bytes:
    """Every reply as it was received, as one JSON list."""
    return b"[\n" + b",\n".join(replies) + b"\n]\n"


# Which tomogram


def fitting_tomograms(portal: api.PortalClient, wanted: PortalTomogram) -> list[api.PortalTomogram]:
    """Every one of the run that fits. Raises NotInPortal if there is none of the id that is given, and as the API."""
    from em_assets.sources._cryoet_api import Condition

    where = []
    if wanted.reconstruction_method is not None:
        where.append(Condition("reconstructionMethod", "_eq", wanted.reconstruction_method))
    if wanted.deposition is not None:
        where.append(Condition("depositionId", "_eq", wanted.deposition))
    return portal.tomograms(
        wanted.dataset,
        wanted.run,
        ids=None if wanted.tomogram is None else (wanted.tomogram,),
        voxel_spacing=wanted.voxel_spacing_angstrom,
        processing=wanted.processing,
        where=where,
    )


def one_tomogram(name: str, wanted: PortalTomogram, found: Sequence[api.PortalTomogram]) -> api.PortalTomogram:
    """Raises Mismatch naming those that fit unless there is exactly one."""
    if len(found) == 1:
        return found[0]
    asked = ", ".join(f"{key} {value}" for key, value in wanted.choice().items())
    if not found:
        raise Mismatch(
            f"{name}: the portal at {wanted.api} has no tomogram of {asked}; look at what is there with `em-assets add "
            f"cryoet {wanted.dataset}/{wanted.run}`, then correct source.portal."
        )
    raise Mismatch(
        f"{name}: {len(found)} tomograms fit {asked}: {'; '.join(map(described, found))}; choose one in source.portal, "
        "by voxel_spacing_angstrom, processing, reconstruction_method, deposition or tomogram (its id)."
    )


def described(tomogram: api.PortalTomogram) -> str:
    """For a person who has to choose."""
    return (
        f"id {tomogram.id} ({tomogram.voxel_spacing_angstrom:g} angstrom, {tomogram.processing}, "
        f"{tomogram.reconstruction_method}, deposition {tomogram.deposition_id})"
    )


# Which files of its annotations


def folder_number(annotation: api.PortalAnnotation) -> int | None:
    """The number of the annotation's folder in its run, which keeps when the portal numbers its entities anew."""
    return number_in(annotation.s3_metadata)


def number_in(address: str) -> int | None:
    """The number of an annotation's folder in the address of one of its files."""
    found = FOLDER.search(address)
    return None if found is None else int(found[1])


def files_of(
    annotation: api.PortalAnnotation, tomogram: api.PortalTomogram, shapes: Iterable[str], format_name: str
) -> list[api.PortalAnnotationFile]:
    """Its files of these shapes in that format, in the tomogram's voxels."""
    from em_assets.sources._cryoet_api import files_for

    fitting = {file.id for file in files_for(annotation, tomogram)}
    wanted = frozenset(shapes)
    return [
        file
        for shape in annotation.shapes or ()
        if shape.shape_type in wanted
        for file in shape.files or ()
        if file.id in fitting and file.format == format_name
    ]


def _annotation_files(
    portal: api.PortalClient, spec: DatasetSpec, tomogram: api.PortalTomogram, notes: dict[str, str]
) -> dict[str, api.PortalAnnotationFile]:
    """Where each of the spec's annotations lies, by `volumes/<name>` or `points/<name>`; why others are not known."""
    masks = {f"volumes/{name}": volume for name, volume in spec.volumes.items() if volume.annotation is not None}
    wanted: dict[str, SubVolume | PointSet] = {**masks}
    wanted |= {f"points/{name}": points for name, points in spec.points.items()}
    if not wanted:
        return {}
    try:
        annotations = portal.annotations(tomogram=tomogram)
    except EmAssetsError as error:
        notes.update(dict.fromkeys(wanted, _the_specs(str(error))))
        return {}
    found: dict[str, api.PortalAnnotationFile] = {}
    for key, item in wanted.items():
        own = [one for one in annotations if item.annotation in (None, folder_number(one))]
        files = [file for one in own for file in files_of(one, tomogram, *_form_of(spec, item))]
        stated = file_name(_stated_address(spec, item))
        named = [file for file in files if object_in(file.https_path) == object_in(stated)]
        exact = [file for file in named if file_name(file.https_path) == stated]
        if len(named) == 1 or len(exact) == 1:
            found[key] = named[0] if len(named) == 1 else exact[0]
        else:
            of = "" if item.annotation is None else f" of annotation {item.annotation}"
            notes[key] = f"the spec's; the API lists {len(files)} such files{of}, {len(named)} of this object"
    return found


def file_name(address: str) -> str:
    return unquote(address.rstrip("/").rpartition("/")[2])


def object_in(address: str) -> str:
    """What a file of an annotation is about, as its name has it: `cytoplasm` of cytoplasm-1.0_segmentationmask.zarr."""
    return file_name(address).partition("-")[0]


def _form_of(spec: DatasetSpec, item: SubVolume | PointSet) -> tuple[frozenset[str], str]:
    if isinstance(item, PointSet):
        return POINT_SHAPES, item.format
    return MASK_SHAPES, "mrc" if spec.is_by_file else "zarr"


def _stated_address(spec: DatasetSpec, item: SubVolume | PointSet) -> str:
    """As the spec has it, without a slash at the end."""
    if isinstance(item, PointSet):
        return item.url
    if item.source is not None and isinstance(spec.source, FilesSource):
        return spec.source.file_url(item.source.paths()[0])
    return (item.group or "").rstrip("/")


# Where they lie


def _placed(
    spec: DatasetSpec,
    tomogram: api.PortalTomogram,
    files: Mapping[str, api.PortalAnnotationFile],
    notes: dict[str, str],
) -> DatasetSpec:
    points = {
        name: item.model_copy(update={"url": files[f"points/{name}"].https_path}) if f"points/{name}" in files else item
        for name, item in spec.points.items()
    }
    if isinstance(spec.source, FilesSource):
        changes = {"source": _placed_files(spec, spec.source, tomogram, files)}
        was, now = spec.source.volume_url, changes["source"].volume_url
    else:
        assert isinstance(spec.source, ChunkedSource)
        source, volumes = _placed_groups(spec, spec.source, tomogram, files, notes)
        changes = {"source": source, "volumes": volumes}  # type: ignore[dict-item]  # two kinds of values
        was, now = spec.source.group, source.group
    documents = tuple(document.model_copy(update={"url": moved(document.url, was, now)}) for document in spec.documents)
    return spec.model_copy(update={**changes, "points": points, "documents": documents})


def _placed_files(
    spec: DatasetSpec,
    source: FilesSource,
    tomogram: api.PortalTomogram,
    files: Mapping[str, api.PortalAnnotationFile],
) -> FilesSource:
    """Files that lie elsewhere now have addresses of their own; paths, which partitions are named by, stay."""
    address = _require(spec, tomogram, "MRC", tomogram.https_mrc)
    now = {source.volume.paths()[0]: address}
    for name, volume in spec.volumes.items():
        if f"volumes/{name}" in files and volume.source is not None:
            now[volume.source.paths()[0]] = files[f"volumes/{name}"].https_path
    listed = tuple(
        file
        if file.path not in now or unquote(source.file_url(file.path)) == unquote(now[file.path])
        else file.model_copy(update={"url": now[file.path]})
        for file in source.files
    )
    return source.model_copy(update={"files": listed})


def _placed_groups(
    spec: DatasetSpec,
    source: ChunkedSource,
    tomogram: api.PortalTomogram,
    files: Mapping[str, api.PortalAnnotationFile],
    notes: dict[str, str],
) -> tuple[ChunkedSource, dict[str, SubVolume]]:
    address = tomogram.s3_omezarr if source.is_bucket else tomogram.https_omezarr
    address = _require(spec, tomogram, "OME-Zarr", address)
    base, group = _split(source.url, address)
    volumes = dict(spec.volumes)
    for name, volume in spec.volumes.items():
        file = files.get(f"volumes/{name}")
        if file is None:
            continue
        own_base, own_group = _split(base, file.s3_path if source.is_bucket else file.https_path)
        if own_base != base:
            notes[f"volumes/{name}"] = f"the spec's; the API places it in {own_base}, outside of {base}"
            continue
        volumes[name] = volume.model_copy(update={"group": own_group})
    return source.model_copy(update={"url": base, "group": group}), volumes


def _require(spec: DatasetSpec, tomogram: api.PortalTomogram, form: str, address: str | None) -> str:
    if address is None:
        raise Mismatch(
            f"{spec.name}: the portal has no {form} of tomogram {tomogram.id} any more; choose its other form, or "
            "another tomogram."
        )
    return address.rstrip("/")


def _split(base: str, address: str) -> tuple[str, str]:
    """(container, path in it): below `base` if it lies there, else below its own bucket or server."""
    address, within = address.rstrip("/"), f"{base.rstrip('/')}/"
    is_web = address.startswith(("http://", "https://"))
    if address.startswith(within):
        path = address[len(within) :]
        return base, unquote(path) if is_web else path
    scheme, _, rest = address.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", unquote(path) if is_web else path


def moved(url: str, was: str, now: str) -> str:
    """The address of a document that lies beside the tomogram, where the tomogram lies now; others stay."""
    old, new = (_web_path(text).rpartition("/")[0] for text in (was, now))
    return url.replace(f"/{old}/", f"/{new}/", 1) if old and old != new else url


def _web_path(address: str) -> str:
    """As it stands in a web address: the path of a web address, or a key, which is not encoded yet."""
    if address.startswith(("http://", "https://")):
        return urlsplit(address).path.strip("/")
    return quote(address.strip("/"))


def _groups(spec: DatasetSpec) -> list[str]:
    """Of the main volume and each further one, in the spec's order."""
    if not isinstance(spec.source, ChunkedSource):
        return []
    return [spec.source.group, *(volume.group or "" for volume in spec.volumes.values())]
