"""The CryoET Data Portal: which tomograms a person means, and what the API and each form's own header say of one.

Shape, dtype and voxel size are read from the form that is asked for, never from the other one: they may differ.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote, unquote

from em_assets.adding.chunked import chunked_source, know_chunked
from em_assets.adding.draft import Draft, slug, title
from em_assets.adding.files import files_source
from em_assets.adding.volume import Wishes, know_volume
from em_assets.datasets.fields import ITEM_BYTES, WIDENED, AtKey
from em_assets.datasets.portal import PortalTomogram as Selection
from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unsupported
from em_assets.fetch.http import HttpClient
from em_assets.formats._bytes import RemoteBytes
from em_assets.formats._json import MAX_JSON_BYTES, parse_json
from em_assets.formats.opening import open_file
from em_assets.settings import Settings
from em_assets.sources._cryoet_api import (
    PORTAL_URL,
    PortalAnnotation,
    PortalAnnotationFile,
    PortalClient,
    PortalRun,
    PortalTomogram,
    bucket_of,
)
from em_assets.sources._graphql import Refused
from em_assets.sources.chunked import open_level
from em_assets.sources.cryoet import MASK_SHAPES, POINT_SHAPES, described, file_name, files_of, folder_number, object_in
from em_assets.volume import VolumeInfo, VoxelSize

Form = Literal["zarr", "mrc"]
PAGE = "https://cryoetdataportal.czscience.com/datasets"
TARGET = re.compile(r"(\d{1,10})(?:/([^/]{1,200}))?")
FULL_SIZE, COARSEST = 0, 2
UNLIKE = 0.01
"""Share by which a header's voxel size may differ from the portal's and still be the better number of the two."""
MOST_NAMED = 20
BAD_REPLIES = (Malformed, Unsupported)
"""What one list says cannot be believed; the others may be."""
SIDE_KINDS = {".xf": "xf", ".tlt": "tilt_angles", ".xtilt": "tilt_angles", ".tltx": "tilt_angles", ".aln": "aln"}
"""Files of an alignment that are kept, by their ending."""


@dataclass(frozen=True)
class Choice:
    """What of a portal's run the person asked for."""

    form: Form = "zarr"
    level: int = COARSEST
    """Of the OME-Zarr: 0, 1, 2 for 100, 50, 25 %."""
    annotations: str | None = None
    """A pattern as the shell has them, for the names of objects; None: no annotation."""
    tomogram: int | None = None
    is_one_of_several: bool = False
    """Of a run, each of which gets a spec: their names have the tomogram's id."""
    voxel_spacing_angstrom: float | None = None
    processing: str | None = None
    endpoint: str | None = None
    """Another server of the bucket."""


@dataclass(frozen=True)
class Place:
    """What all questions about one tomogram share."""

    portal: PortalClient
    client: HttpClient
    settings: Settings
    choice: Choice
    tomogram: PortalTomogram
    run: PortalRun


def portal_client(api: str | None, settings: Settings, refused: Refused | None = None) -> PortalClient:
    """With `refused`, what cannot be believed of a list is told there, and the others go on."""
    return PortalClient(api or PORTAL_URL, HttpClient(settings), refused=refused)


def wanted_runs(portal: PortalClient, target: str, pattern: str | None) -> list[tuple[int, str]]:
    """(dataset, run) of each run that is meant: `10000/TS_026`, or `10000` with a pattern.

    Raises Mismatch naming what there is where it is not clear.
    """
    found = TARGET.fullmatch(target.strip())
    if found is None:
        raise Mismatch(
            f"{target[:200]!r} names no run of the portal; it looks like 10000/TS_026, or 10000 with --runs 'TS_*'."
        )
    dataset, run = int(found[1]), found[2]
    if run is not None and pattern is not None:
        raise Mismatch(f"{target} names a run, and --runs {pattern} others; give one of them.")
    if run is not None:
        return [(dataset, run)]
    runs = sorted(one.name for one in portal.runs(dataset, pattern))
    if pattern is None or not runs:
        names = runs or [one.name for one in portal.runs(dataset)]
        shown = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if names[MOST_NAMED:] else "")
        what = "no run fits" if pattern is not None else "choose its runs with --runs 'TS_*', or give one"
        raise Mismatch(f"dataset {dataset}: {what}; it has {shown or 'none'}.")
    return [(dataset, name) for name in runs]


def run_of_tomogram(portal: PortalClient, tomogram_id: int) -> tuple[int, str]:
    """(dataset, run) that a tomogram is of. Raises NotInPortal."""
    tomogram = portal.tomogram(tomogram_id)
    run = _run(tomogram)
    return run.dataset_id, run.name


def every_choice(dataset: int, run: str, choice: Choice, portal: PortalClient) -> list[Choice]:
    """One for each tomogram of the run that fits; only the choice itself where none or one does."""
    found = _fitting(portal.tomograms(dataset, run), choice)
    return [replace(choice, tomogram=one.id, is_one_of_several=True) for one in found] if len(found) > 1 else [choice]


def draft_cryoet(dataset: int, run: str, choice: Choice, portal: PortalClient, settings: Settings) -> Draft:
    """Of one tomogram of a run. Raises Mismatch naming the choices where several fit, Unsupported, Malformed ..."""
    refused: list[Malformed] = []
    fitting = portal_client(portal.url, settings, refused.append).tomograms(dataset, run)
    if refused and not fitting:
        raise refused[0]
    tomogram = _choose(dataset, run, fitting, choice)
    place = Place(portal, HttpClient(settings), settings, choice, tomogram, _run(tomogram))
    base = f"cryoet_{dataset}_{slug(run).removeprefix('dataset_')}"
    draft = Draft(base_name=f"{base}_{tomogram.id}" if choice.is_one_of_several else base)
    draft.found += [f"left out: {error}" for error in refused]
    _know_words(draft, place)
    full_size_nm = _know_zarr(draft, place) if choice.form == "zarr" else _know_mrc(draft, place)
    draft.document["source"]["portal"] = _selection(portal.url, place, fitting)
    annotations = _wanted_annotations(draft, place)
    if choice.annotations is not None:
        _know_masks(draft, place, annotations)
        _know_points(draft, place, annotations, full_size_nm)
    documents = _documents(draft, place, annotations if choice.annotations is not None else ())
    draft.know("documents", list({document["path"]: document for document in documents}.values()))
    return draft


# Which tomogram


def _fitting(tomograms: Sequence[PortalTomogram], choice: Choice) -> list[PortalTomogram]:
    return [
        one
        for one in tomograms
        if choice.tomogram in (None, one.id)
        and choice.processing in (None, one.processing)
        and (
            choice.voxel_spacing_angstrom is None
            or math.isclose(choice.voxel_spacing_angstrom, one.voxel_spacing_angstrom, abs_tol=5e-4)
        )
    ]


def _choose(dataset: int, run: str, fitting: Sequence[PortalTomogram], choice: Choice) -> PortalTomogram:
    found = _fitting(fitting, choice)
    if len(found) == 1:
        return found[0]
    names = "; ".join(map(described, found or fitting)) or "none"
    what = f"{len(found)} tomograms fit" if found else "no tomogram fits"
    raise Mismatch(
        f"{dataset}/{run}: {what}; choose one with --voxel-spacing, --processing or --tomogram ID, or take --every: "
        f"there are {names}."
    )


def _run(tomogram: PortalTomogram) -> PortalRun:
    if tomogram.run is None:
        raise Unsupported(f"tomogram {tomogram.id} is of no run, so that it cannot be found again; choose another one.")
    return tomogram.run


def _selection(api: str, place: Place, fitting: Sequence[PortalTomogram]) -> dict[str, Any]:
    """By as little as tells it from the run's other tomograms; by its id, which may change, last of all."""
    tomogram, run = place.tomogram, place.run
    chosen: dict[str, Any] = {
        "voxel_spacing_angstrom": tomogram.voxel_spacing_angstrom,
        "processing": tomogram.processing,
    }
    more = {
        "reconstruction_method": tomogram.reconstruction_method,
        "deposition": tomogram.deposition_id,
        "tomogram": tomogram.id,
    }
    names = {"voxel_spacing_angstrom": "voxel_spacing_angstrom", "deposition": "deposition_id", "tomogram": "id"}
    for key, value in more.items():
        if sum(all(getattr(one, names.get(k, k)) == v for k, v in chosen.items()) for one in fitting) == 1:
            break
        chosen[key] = value
    document = {"api": api, "dataset": run.dataset_id, "run": run.name, **chosen}
    try:
        Selection.model_validate(document)
    except (ValueError, AtKey) as error:
        raise Unsupported(f"tomogram {tomogram.id}: what the API says of it makes no selection ({error}).") from None
    return document


# What is said of it


def _know_words(draft: Draft, place: Place) -> None:
    tomogram, run, dataset = place.tomogram, place.run, place.run.dataset
    named = "" if dataset is None else f", {dataset.title}"
    draft.know("title", title(f"Tomogram {run.name} (cryo-ET){named}, CryoET Data Portal {run.dataset_id}"))
    made = f"{tomogram.processing}, {tomogram.reconstruction_method} by {tomogram.reconstruction_software}"
    form = f"OME-Zarr at {100 >> place.choice.level} %" if place.choice.form == "zarr" else "MRC file"
    about = "" if dataset is None else f" {dataset.description}"
    draft.know(
        "description",
        f"Run {run.name} of the CryoET Data Portal's dataset {run.dataset_id}: the tomogram ({made}; "
        f"{tomogram.voxel_spacing_angstrom:g} angstrom at full size) as its {form}.{about}",
        "the last part as the portal's API states it of the whole dataset" if about else None,
    )
    draft.know("publisher", "cryoet")
    draft.know("source_id", f"{run.dataset_id}/{run.name}")
    draft.know("page_url", f"{PAGE}/{run.dataset_id}", "follows the site's pattern")
    draft.miss("license", "the API states none; the portal's terms of use do")
    draft.miss("citation", "whom to cite; the dataset's page says it")
    dois = None if dataset is None else dataset.publications
    draft.take_doi(dois, "of the dataset or its paper; the API names no publication")
    if dois and draft.document.get("doi"):
        draft.note("doi", f"the first of the publications that the API names: {dois}")
    draft.know("modality", "cryo-ET")
    if dataset is not None and dataset.organism_name:
        draft.know("organism", title(dataset.organism_name))


def _know_zarr(draft: Draft, place: Place) -> VoxelSize:
    """Returns the size of a voxel at full size, which points are counted in."""
    tomogram, choice = place.tomogram, place.choice
    address = tomogram.s3_omezarr or tomogram.https_omezarr
    if address is None:
        raise Unsupported(f"tomogram {tomogram.id} has no OME-Zarr; take --form mrc.")
    if address.startswith("s3://"):
        bucket = bucket_of(address)
        url, group = f"s3://{bucket.name}", bucket.key
    else:
        scheme, _, rest = address.rstrip("/").partition("://")
        host, _, path = rest.partition("/")
        url, group = f"{scheme}://{host}", unquote(path)
    source = chunked_source("zarr", url, group, choice.level, choice.endpoint if url.startswith("s3://") else None)
    reader = know_chunked(draft, source, _wishes(place, 2**choice.level), place.settings)
    draft.document["expected"]["chunk"] = list(reader.info.chunk)
    draft.note("expected", "read from the OME-Zarr itself, not from the MRC file, which may be another")
    full = open_level(source, source.group, FULL_SIZE, place.client, place.settings).info
    return full.voxel_size_nm or _stated_nm(place)


def _know_mrc(draft: Draft, place: Place) -> VoxelSize:
    tomogram = place.tomogram
    if tomogram.https_mrc is None:
        raise Unsupported(f"tomogram {tomogram.id} has no MRC file; take --form zarr.")
    base, _, _ = tomogram.https_mrc.rpartition("/")
    name = file_name(tomogram.https_mrc)
    info, size_bytes = _file_info(tomogram.https_mrc, place)
    draft.know("source", files_source(base, [{"path": name, "size_bytes": size_bytes}], [name], ()))
    draft.found.append(f"{name}: {size_bytes} bytes")
    if tomogram.mrc_bytes not in (None, size_bytes):
        draft.claim(
            "dataset_size_bytes", tomogram.mrc_bytes, place.portal.url, f"the file itself has {size_bytes} bytes"
        )
    know_volume(draft, tomogram.https_mrc, info, _wishes(place, 1), place.settings, from_files=True)
    draft.note("expected", "read from the MRC file itself, not from the OME-Zarr, which may be another")
    _reconcile(draft, place, info)
    z, y, x = draft.document["expected"]["voxel_size_nm"]
    return z, y, x


def _wishes(place: Place, factor: int) -> Wishes:
    """What the portal says of the voxel size serves where the header says nothing (0, not a number)."""
    z, y, x = (size * factor for size in _stated_nm(place))
    return Wishes(api_voxel_size_nm=(z, y, x))


def _stated_nm(place: Place) -> VoxelSize:
    size = float(f"{place.tomogram.voxel_spacing_angstrom / 10:.12g}")
    return size, size, size


def _reconcile(draft: Draft, place: Place, info: VolumeInfo) -> None:
    """A header that is plainly wrong about the voxel size (1 angstrom, say) gives way; both values stay on record."""
    stated, header = _stated_nm(place), info.voxel_size_nm
    if header is None or header == stated:
        return
    shown = f"{header[0]:.9g} x {header[1]:.9g} x {header[2]:.9g} nm"
    expected = draft.document["expected"]
    if all(abs(a - b) <= UNLIKE * b for a, b in zip(header, stated, strict=True)):
        note = f"as the file's header has it, {shown}; the portal states {stated[0]:.9g} nm"
    else:
        expected["published_voxel_size_nm"], expected["voxel_size_nm"] = list(header), list(stated)
        note = f"as the portal states it; the file's header says {shown}, which is not taken"
        draft.found.append(f"voxel size: {stated[0]:.9g} nm by the portal is used, the header says {shown}")
    draft.note("expected.voxel_size_nm", note)
    draft.claim("voxel_size_nm", list(stated), place.portal.url, f"the MRC header says {shown} (z, y, x)")


def _file_info(url: str, place: Place) -> tuple[VolumeInfo, int]:
    """What an MRC file says of itself, as it can be stored; and its size."""
    source = RemoteBytes(url, place.client)
    info = open_file(source, None, place.settings).info
    return replace(info, dtype=WIDENED.get(info.dtype, info.dtype)), source.size_bytes


# Its annotations


def _wanted_annotations(draft: Draft, place: Place) -> list[PortalAnnotation]:
    """Those whose object's name fits the pattern; all of them are named to the person."""
    refused: list[Malformed] = []
    portal, pattern = portal_client(place.portal.url, place.settings, refused.append), place.choice.annotations
    try:
        every = sorted(portal.annotations(tomogram=place.tomogram), key=lambda one: (folder_number(one) or 0, one.id))
    except BAD_REPLIES as error:
        if pattern is not None:
            raise
        draft.found.append(f"annotations left out: {error}")
        return []
    draft.found += [f"left out: {error}" for error in refused]
    if every:
        names = ", ".join(f"{one.object_name} ({folder_number(one)})" for one in every[:MOST_NAMED])
        draft.found.append(f"{len(every)} annotations: {names}")
    if pattern is None:
        return []
    fitting = [one for one in every if _fits(one.object_name, pattern) and folder_number(one) is not None]
    if not fitting:
        names = ", ".join(dict.fromkeys(one.object_name for one in every)) or "none"
        raise Mismatch(f"no annotation of {place.run.name} fits {pattern!r}; it has {names}.")
    return fitting


def _fits(name: str, pattern: str) -> bool:
    """As it is written, or as files have it; a pattern may begin anywhere in the name."""
    words = (name.lower(), slug(name))
    return any(fnmatch.fnmatchcase(word, f"*{pattern.lower()}") for word in words)


def _know_masks(draft: Draft, place: Place, annotations: Sequence[PortalAnnotation]) -> None:
    volumes: dict[str, Any] = {}
    for annotation, file in _files(place, annotations, MASK_SHAPES, place.choice.form):
        address = _address(file, place)
        try:
            volume = _mask_of(draft, place, annotation, file)
        except EmAssetsError as error:
            draft.found.append(f"mask left out: {address}: {error}")
            continue
        name = _free(object_in(address), volumes, annotation)
        volumes[name] = volume
        _note_other_shape(draft, f"volumes.{name}.shape", "the mask", volume["shape"])
    if volumes:
        draft.know("volumes", volumes)


def _note_other_shape(draft: Draft, key: str, what: str, shape: Sequence[int]) -> None:
    """That it is of another size than the tomogram, as MRC files may be: then nobody states where one is in the other.

    Both begin at the corner of voxel 0.
    """
    own = draft.document["expected"]["source_shape"]
    if list(shape) == own:
        return
    sizes = (" x ".join(map(str, voxels)) for voxels in (shape, own))
    note = "{} is of {} voxels, the tomogram's own file has {}; nobody states where one lies in the other".format(
        what, *sizes
    )
    draft.note(key, f"{note}, both are taken to begin at voxel 0")
    draft.found.append(f"{key}: {note}")


def _mask_of(draft: Draft, place: Place, annotation: PortalAnnotation, file: PortalAnnotationFile) -> dict[str, Any]:
    source, number = draft.document["source"], folder_number(annotation)
    where: dict[str, Any]
    if place.choice.form == "zarr":
        base = source["url"].rstrip("/")
        address = _address(file, place).rstrip("/")
        if not address.startswith(f"{base}/"):
            raise Unsupported(f"it lies outside of {base}")
        group = address[len(base) + 1 :]
        container = chunked_source("zarr", source["url"], group, place.choice.level, source.get("endpoint"))
        info = open_level(container, group, place.choice.level, place.client, place.settings).info
        where, listed = {"group": group, "level": place.choice.level}, None
    else:
        info, size_bytes = _file_info(file.https_path, place)
        path = f"annotations/{number}/{file_name(file.https_path)}"
        where, listed = {"source": {"files": [path]}}, {"path": path, "size_bytes": size_bytes, "url": file.https_path}
    if info.dtype not in ITEM_BYTES or info.dtype == "float32" or info.channels is not None:
        raise Unsupported(f"a mask of {info.dtype} is not stored; whole numbers are")
    if listed is not None:
        source["files"].append(listed)
    size_nm = info.voxel_size_nm or draft.document["expected"]["voxel_size_nm"]
    return {
        "title": title(annotation.object_name),
        "content": "labels",
        **where,
        "annotation": number,
        "shape": list(info.shape),
        "dtype": info.dtype,
        "voxel_size_nm": [float(size) for size in size_nm],
    }


def _know_points(draft: Draft, place: Place, annotations: Sequence[PortalAnnotation], full_size_nm: VoxelSize) -> None:
    points: dict[str, Any] = {}
    for annotation, file in _files(place, annotations, POINT_SHAPES, "ndjson"):
        points[_free(object_in(file.https_path), points, annotation)] = {
            "title": title(annotation.object_name),
            "url": file.https_path,
            "format": "ndjson",
            "voxel_size_nm": [float(size) for size in full_size_nm],
            "annotation": folder_number(annotation),
        }
    if points and place.choice.form == "mrc":
        _note_other_shape(draft, "points.location", "what the portal counts points in", place.tomogram.shape)
    if points:
        draft.know("points", points)
        draft.note("points", "whether a location counts voxels' corners or their middles nobody states: middles")


def _files(
    place: Place, annotations: Sequence[PortalAnnotation], shapes: frozenset[str], format_name: str
) -> Iterator[tuple[PortalAnnotation, PortalAnnotationFile]]:
    for annotation in annotations:
        yield from ((annotation, file) for file in files_of(annotation, place.tomogram, shapes, format_name))


def _address(file: PortalAnnotationFile, place: Place) -> str:
    is_bucket = place.choice.form == "zarr" and place.tomogram.s3_omezarr is not None
    return file.s3_path if is_bucket else file.https_path


def _free(text: str, taken: Container[str], annotation: PortalAnnotation) -> str:
    """One annotation may have several shapes of one object."""
    name = slug(text)
    numbered = f"{name}_{folder_number(annotation)}"
    names = itertools.chain((name, numbered), (f"{numbered}_{count}" for count in itertools.count(2)))
    return next(free for free in names if free not in taken)


# What else is kept


def _documents(draft: Draft, place: Place, annotations: Sequence[PortalAnnotation]) -> Iterator[dict[str, Any]]:
    tomogram, run = place.tomogram, place.run
    prefix = "" if run.dataset is None else run.dataset.https_prefix.rstrip("/")
    form = tomogram.https_mrc if place.choice.form == "mrc" else tomogram.https_omezarr
    if prefix:
        yield _document("dataset_metadata.json", f"{prefix}/dataset_metadata.json")
    yield _document("run_metadata.json", f"{run.https_prefix.rstrip('/')}/run_metadata.json")
    if form is not None:
        beside = form.rstrip("/").rpartition("/")[0]
        yield _document("tomogram_metadata.json", f"{beside}/tomogram_metadata.json")
    yield from _of_the_other_form(place)
    for what, of in (("alignment", _of_alignment), ("tilt series", _of_tilt_series), ("mdoc", _of_acquisition)):
        try:
            yield from of(place)
        except (*BAD_REPLIES, Mismatch) as error:
            draft.found.append(f"{what} left out: {error}")
    for annotation in annotations:
        yield _document(f"annotation_{folder_number(annotation)}.json", annotation.https_metadata)


def _of_alignment(place: Place) -> Iterator[dict[str, Any]]:
    """Its metadata, and the files that these name: the API has no addresses of them."""
    alignment = place.tomogram.alignment
    address = None if alignment is None else alignment.https_metadata
    if address is None:
        return
    yield _document("alignment_metadata.json", address)
    reply = place.client.get(address, max_bytes=MAX_JSON_BYTES, accept_gzip=True)
    metadata = parse_json(reply.body, address)
    files = metadata.get("files") if isinstance(metadata, dict) else None
    for key in files if isinstance(files, list) else ():
        within = str(key).removeprefix(f"{place.run.dataset_id}/{place.run.name}/")
        ending = within[within.rfind(".") :]
        if within == key or ending not in SIDE_KINDS or {"", ".", ".."} & set(within.split("/")):
            continue
        yield _document(
            f"alignment{ending}", f"{place.run.https_prefix.rstrip('/')}/{quote(within)}", SIDE_KINDS[ending]
        )


def _of_tilt_series(place: Place) -> Iterator[dict[str, Any]]:
    for number, series in enumerate(place.portal.tilt_series(place.run.id)):
        name = "tiltseries" if number == 0 else f"tiltseries_{number}"
        angles = series.https_angles
        if angles is not None:
            yield _document(f"{name}.rawtlt", angles, "tilt_angles")
        lies = angles or series.https_mrc or series.https_omezarr
        if lies is not None:
            beside = lies.rstrip("/").rpartition("/")[0]
            yield _document(f"{name}_metadata.json", f"{beside}/tiltseries_metadata.json")


def _of_acquisition(place: Place) -> Iterator[dict[str, Any]]:
    for number, file in enumerate(place.portal.acquisition_files(place.run.id)):
        yield _document("frames.mdoc" if number == 0 else f"frames_{number}.mdoc", file.https_mdoc, "mdoc")


def _of_the_other_form(place: Place) -> Iterator[dict[str, Any]]:
    """What the form says that is not taken, so that differences show."""
    tomogram = place.tomogram
    if place.choice.form == "zarr" and tomogram.https_mrc is not None:
        yield _document("tomogram.mrc.header", tomogram.https_mrc, "mrc_header")
    if place.choice.form == "mrc" and tomogram.https_omezarr is not None:
        address = tomogram.https_omezarr.rstrip("/")
        yield _document("other_form_multiscales.json", f"{address}/.zattrs", "ome_zarr_attributes")
        yield _document("other_form_level_0.json", f"{address}/0/.zarray", "zarr_array")


def _document(path: str, url: str, kind: str = "cryoet_metadata") -> dict[str, Any]:
    return {"path": path, "url": url, "kind": kind}
