"""Where a publisher serves a dataset, and in which form: the models of a spec's `source`, `volumes` and `documents`.

`kind` decides which: `precomputed`, `zarr` and `n5` publish chunks, of which a box is read; `files` publishes files,
which are downloaded whole.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field, model_validator

from em_assets.datasets.fields import (
    AtKey,
    Doi,
    Dtype,
    Line,
    Name,
    Shape,
    SpecModel,
    Text,
    VoxelSizeNm,
    WebAddress,
    web_address,
)
from em_assets.datasets.portal import PortalId, PortalTomogram
from em_assets.fetch.receipts import RECEIPT_SUFFIX
from em_assets.store import DOWNLOAD_SUFFIX, PARTIAL_SUFFIX

MAX_FILES = 1000
"""Each is a partition."""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
METADATA_NAMES = ("info.json", ".zarray", ".zattrs", ".zgroup", "zarr.json", "attributes.json")
"""By which the documents end that describe a chunked volume; they are kept among the others."""
OWN_SUFFIXES = (RECEIPT_SUFFIX, PARTIAL_SUFFIX, DOWNLOAD_SUFFIX)
"""By which names end that mean something in the store."""
FLOAT_LABELS = "labels are whole numbers; give an integer dtype, or content: image"
Checksum = Annotated[str, Field(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|crc32c:[0-9a-f]{8})$")]
Level = Annotated[int, Field(ge=0, lt=64, strict=True)]


def expand(pattern: str) -> list[str]:
    """`slice_{0000..0015}.dm3` as sixteen names, with leading zeros as given; a name without a range is itself."""
    found = RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last, width = int(found[1]), int(found[2]), len(found[1])
    if last < first or last - first >= MAX_FILES or RANGE.search(pattern, found.end()):
        raise ValueError(f"{pattern!r}: a range {{first..last}} rises, spans at most {MAX_FILES} and occurs once")
    return [f"{pattern[: found.start()]}{n:0{width}d}{pattern[found.end() :]}" for n in range(first, last + 1)]


def _inside(path: str) -> str:
    """A path that stays inside its folder on every system."""
    parts = path.split("/")
    plain = path == unicodedata.normalize("NFC", path) and not re.search(r"[\x00-\x1f\x7f\\]", path)
    if not plain or any(part in ("", ".", "..") or len(part.encode()) > 200 for part in parts):
        raise ValueError("a path is relative, with / between its parts, and stays inside its folder")
    return path


def file_key(path: str) -> str:
    """The partition key of a file: its path with `__` for `/`."""
    return path.replace("/", "__")


def _storable(path: str) -> str:
    """A file's path that neither the store nor Dagster reads in a way of its own."""
    ours = next((end for part in path.casefold().split("/") for end in OWN_SUFFIXES if part.endswith(end)), None)
    if ours is not None:
        raise ValueError(f"names that end in {ours} are the store's own; leave this file out")
    if "..." in path or path.endswith("."):
        raise ValueError("three dots in a row, or one at the end, look like a range of partitions; leave this file out")
    return path


def _free_document_name(name: str) -> str:
    if name.casefold().endswith((*METADATA_NAMES, *OWN_SUFFIXES)):
        raise ValueError("such names are those of the volume's own metadata, or the store's; take one like entry.json")
    return name


def _address(*schemes: str) -> AfterValidator:
    """Of a folder, file or container; no query, because paths are joined to it."""
    accepted = f"{', '.join(schemes[:-1])} or {schemes[-1]}"

    def check(value: str) -> str:
        if not value.startswith(schemes) or re.search(r"[\s?#]", value):
            raise ValueError(f"an address begins with {accepted} and has no query")
        return web_address(value)

    return AfterValidator(check)


FileAddress = Annotated[str, _address("https://", "http://", "ftp://")]
ContainerAddress = Annotated[str, _address("https://", "http://", "s3://", "gs://")]
DocumentAddress = Annotated[str, Field(pattern=r"^https?://[^\s#]+$"), AfterValidator(web_address)]
Group = Annotated[str, Field(max_length=500), AfterValidator(lambda value: _inside(value) if value else value)]
RelativePath = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_inside)]


class PrecomputedSource(SpecModel):
    """A Neuroglancer precomputed image, read over HTTP(S)."""

    kind: Literal["precomputed"]
    url: WebAddress
    """The folder that holds `info`, e.g. https://storage.googleapis.com/bucket/path."""
    level: Level = 0
    """Which of the publisher's scales is level 0 of the stored volume."""

    @property
    def volume_url(self) -> str:
        return self.url.rstrip("/")


class ChunkedSource(SpecModel):
    """A Zarr (v2, v3, OME-Zarr 0.1 to 0.5) or N5 container, read over HTTP(S), or from a public bucket (unsigned)."""

    kind: Literal["zarr", "n5"]
    url: ContainerAddress
    """The container: https://..., or s3://bucket/name.zarr."""
    endpoint: WebAddress | None = None
    """Of a bucket, s3:// or gs://: another server than Amazon's or Google's."""
    group: Group = ""
    """Path of the multiscale group (or the array) inside the container; empty: the container itself."""
    level: Level | RelativePath = 0
    """Which of the published levels is level 0 of the stored volume: its place in the list, or its path."""
    channel: Level | None = None
    """Which of several channels is the volume; needed where there are several."""
    portal: PortalTomogram | None = None
    """Of the CryoET Data Portal: which tomogram it is. url and group are where it lay when the spec was written."""

    @model_validator(mode="after")
    def _portals_serve_zarr(self) -> ChunkedSource:
        if self.portal is not None and self.kind != "zarr":
            raise AtKey("portal", "the portal serves no N5; give kind: zarr, or kind: files for MRC")
        return self

    @model_validator(mode="after")
    def _endpoint_is_of_a_bucket(self) -> ChunkedSource:
        if self.endpoint is not None and not self.is_bucket:
            raise AtKey("endpoint", "it is the server of a bucket; leave it out, or give url as s3://bucket/path")
        return self

    @property
    def is_bucket(self) -> bool:
        """Whether its objects can be listed."""
        return self.url.startswith(("s3://", "gs://"))

    @property
    def volume_url(self) -> str:
        return "/".join(part for part in (self.url.rstrip("/"), self.group) if part)


class PublishedFile(SpecModel):
    """One file, or, with a range in its path, several of one size: `slice_{0000..0009}.dm3`."""

    path: Annotated[RelativePath, AfterValidator(_storable)]
    """Below the source's url, and where it is kept below `original/`."""
    size_bytes: Annotated[int, Field(ge=0, strict=True)] | None = None
    """None where the publisher does not say and nobody has measured it."""
    checksum: Checksum | None = None
    """The publisher's or an independent downloader's: `md5:...`, `sha256:...`, `crc32c:...`."""
    pixels_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """sha256 of the decoded voxels (C order), where somebody published that."""
    url: FileAddress | None = None
    """Its own address, where it does not lie at its path below the source's url."""

    @model_validator(mode="after")
    def _several_files_have_no_one_checksum(self) -> PublishedFile:
        if len(self.paths()) > 1 and (self.checksum or self.pixels_sha256):
            raise AtKey("path", "a range of files cannot have one checksum; list that file by itself")
        if len(self.paths()) > 1 and self.url is not None:
            raise AtKey("url", "a range of files cannot have one address; list that file by itself")
        return self

    def paths(self) -> list[str]:
        return expand(self.path)


class VolumeFiles(SpecModel):
    """Which of the source's files hold a volume, and how they are read."""

    files: Annotated[tuple[RelativePath, ...], Field(min_length=1)]
    """One container, or a series of 2D images along z (ranges allowed)."""
    dataset: Text | None = None
    """The array inside a container (HDF5)."""
    axes: Literal["zyx", "zxy", "yzx", "yxz", "xzy", "xyz"] = "zyx"
    """What the file's own first, second and third axis are: `yzx` if its pages are planes of one y."""

    @model_validator(mode="after")
    def _each_file_once(self) -> VolumeFiles:
        seen: set[str] = set()
        for path in itertools.chain.from_iterable(map(expand, self.files)):
            if path in seen:
                raise AtKey("files", f"{path} is listed twice")
            if len(seen) == MAX_FILES:
                raise AtKey("files", f"a volume of more than {MAX_FILES} files is not read; list fewer")
            seen.add(path)
        return self

    def paths(self) -> list[str]:
        return [path for pattern in self.files for path in expand(pattern)]


class FilesSource(SpecModel):
    """Files, downloaded whole, byte for byte, and kept."""

    kind: Literal["files"]
    url: WebAddress
    """The folder that all paths are relative to; a space in it is written %20."""
    mirrors: tuple[FileAddress, ...] = ()
    """The same folder elsewhere (https or ftp), tried in order where the first does not give a file."""
    connections: Annotated[int, Field(ge=1, le=16, strict=True)] = 4
    """At once to this publisher's server. Some take many for an attack."""
    range_bytes: Annotated[int, Field(ge=2**20, le=2**32, strict=True)] = 64 * 2**20
    """A file larger than this is fetched in ranges of this size."""
    files: Annotated[tuple[PublishedFile, ...], Field(min_length=1)]
    """Each is a partition; files that no volume uses are kept as attachments."""
    volume: VolumeFiles
    """The files of the volume itself."""
    same_volume: tuple[VolumeFiles, ...] = ()
    """Other files that hold the same voxels (cut another way); compared voxel by voxel, not stored a second time."""
    portal: PortalTomogram | None = None
    """Of the CryoET Data Portal: which tomogram it is. The addresses are those of when the spec was written."""

    @model_validator(mode="after")
    def _portals_serve_single_files(self) -> FilesSource:
        if self.portal is not None and len(self.volume.paths()) > 1:
            raise AtKey("volume.files", "a tomogram of the portal is one MRC file; name that one")
        return self

    @model_validator(mode="after")
    def _files_are_listed_once(self) -> FilesSource:
        folded: dict[str, str] = {}
        keys: dict[str, str] = {}
        for path in itertools.chain.from_iterable(file.paths() for file in self.files):
            name, key = path.casefold(), file_key(path)
            if name in folded:
                raise AtKey("files", f"{path} is listed twice (names that differ in case only are one on some disks)")
            if key in keys:
                raise AtKey("files", f"{keys[key]} and {path} would be one partition, {key}; list one of them")
            if len(keys) == MAX_FILES:
                raise AtKey("files", f"more than {MAX_FILES} files, each a partition; list fewer")
            folded[name] = keys[key] = path
        for name, path in folded.items():
            folder = next((folder for folder in _folders(name) if folder in folded), None)
            if folder is not None:
                raise AtKey("files", f"{folded[folder]} is a file and the folder of {path}; list one of them")
        return self

    @model_validator(mode="after")
    def _volumes_are_of_listed_files(self) -> FilesSource:
        seen: dict[tuple[Any, ...], str] = {}
        for number, part in enumerate((self.volume, *self.same_volume)):
            key = "volume.files" if number == 0 else f"same_volume.{number - 1}"
            self.require_listed(key, part)
            other = seen.setdefault((part.dataset, *part.paths()), key)
            if other != key:
                raise AtKey(key, f"these files are those of source.{other} already; name others, or leave it out")
        return self

    def require_listed(self, key: str, part: VolumeFiles) -> None:
        """Raises AtKey if a file of the part is not among the source's."""
        listed = self.by_path()
        for path in part.paths():
            if path not in listed:
                raise AtKey(key, f"{path} is not among source.files; list it there")

    def by_path(self) -> dict[str, PublishedFile]:
        """Every single file, ranges expanded."""
        return {path: file for file in self.files for path in file.paths()}

    def main_paths(self) -> list[str]:
        """The files that hold the main volume, or the same voxels."""
        return [path for part in (self.volume, *self.same_volume) for path in part.paths()]

    @property
    def volume_url(self) -> str:
        """Where the volume (or its first file) lies."""
        return self.file_url(self.volume.paths()[0])

    def file_url(self, path: str, base: str | None = None) -> str:
        """The address of a file, on a mirror if `base` is one."""
        own = (file.url for file in self.files if file.url is not None and file.path == path)
        found = next(own, None) if base is None else None
        if found is not None:
            return found
        return f"{(base or self.url).rstrip('/')}/{quote(path, safe='/')}"


def _folders(path: str) -> Iterator[str]:
    """Every folder that a path lies in."""
    parts = path.split("/")
    yield from ("/".join(parts[:length]) for length in range(1, len(parts)))


Source = Annotated[PrecomputedSource | ChunkedSource | FilesSource, Field(discriminator="kind")]


class SubVolume(SpecModel):
    """A further volume of the dataset, stored as `volumes/<name>.ome.zarr`: a training part, a segmentation."""

    title: Line | None = None
    """One line about it."""
    content: Literal["image", "labels"] = "image"
    """Labels are never averaged: a coarser level takes voxel 2i."""
    labels_of: Name | None = None
    """Which of the dataset's volumes the labels belong to; absent: the main one."""
    source: VolumeFiles | None = None
    """Of a `files` source."""
    group: Group | None = None
    """Of a `zarr` or `n5` source: path of its multiscale group inside the container; empty: the container itself."""
    level: Level | RelativePath = 0
    """Which of the group's levels is level 0 of the stored volume."""
    channel: Level | None = None
    """Which of several channels is the volume."""
    shape: Shape
    """(z, y, x); another answer by the publisher stops the run."""
    dtype: Dtype
    """Of one voxel; it is kept as it is."""
    voxel_size_nm: VoxelSizeNm
    """(z, y, x) of one voxel, in nanometres."""
    annotation: PortalId | None = None
    """Of a portal's run: the number of the annotation's folder, as in Annotations/117/. Its address is asked for."""
    doi: Doi | None = None
    """Its own, where it has one."""
    shard: Shape | None = None
    """As in `output`; absent: the same as the main volume's."""

    @model_validator(mode="after")
    def _labels_are_whole_numbers_of_an_image(self) -> SubVolume:
        if self.content == "labels" and self.dtype == "float32":
            raise AtKey("dtype", FLOAT_LABELS)
        if self.content != "labels" and self.labels_of is not None:
            raise AtKey("labels_of", "only labels belong to another volume; leave it out, or give content: labels")
        return self


class Document(SpecModel):
    """A reply or page of the publisher about the dataset, kept raw; its values become claims."""

    path: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"), AfterValidator(_free_document_name)]
    """Its name below `documents/`."""
    url: DocumentAddress
    """May have a query."""
    kind: Literal[
        "json",
        "idr_image",
        "omero_image",
        "idr_annotations",
        "idr_study",
        "empiar_entry",
        "empiar_xml",
        "table",
        "xml",
        "text",
        "html",
        "cryoet_metadata",
        "mrc_header",
        "ome_zarr_attributes",
        "zarr_array",
        "points",
        "mdoc",
        "tilt_angles",
        "xf",
        "aln",
        "ctf_ctffind",
        "ctf_gctf",
        "ctf_imod",
        "ctf_aretomo3",
    ]
    """How it is read, and what is checked before it is believed."""
    first: tuple[DocumentAddress, ...] = ()
    """Addresses to ask first in the same session (IDR hands out a cookie that way)."""


def decides_bytes(source: PrecomputedSource | ChunkedSource | FilesSource) -> dict[str, Any]:
    """The part of a source that decides the voxels of the volume: where it lies, whoever serves it, and nothing that
    is only expected of it. Of a portal's tomogram that is which one it is, and in which form: its address may change.
    """
    if not isinstance(source, PrecomputedSource) and source.portal is not None:
        return {"portal": source.portal.choice(), **_form(source)}
    document = {"kind": source.kind, "url": urlsplit(source.url).path.rstrip("/")}
    if isinstance(source, FilesSource):
        return document | {"volume": source.volume.model_dump()}
    if isinstance(source, ChunkedSource):
        return document | source.model_dump(include={"group", "level", "channel"})
    return document | {"level": source.level}


def further_decides_bytes(source: PrecomputedSource | ChunkedSource | FilesSource, volume: SubVolume) -> dict[str, Any]:
    """The same of a further volume of the source."""
    said = volume.model_dump(exclude={"title", "doi", "labels_of"})
    if volume.annotation is None:
        del said["annotation"]
    if isinstance(source, PrecomputedSource) or source.portal is None:
        return {"url": urlsplit(source.url).path.rstrip("/"), "volume": said}
    if volume.annotation is not None:  # else it is known by its address alone
        said["group"] = None
        said["source"] = None if volume.source is None else volume.source.model_dump(exclude={"files"})
    return {"portal": source.portal.choice(), "volume": said}


def _form(source: ChunkedSource | FilesSource) -> dict[str, Any]:
    if isinstance(source, FilesSource):
        return {"form": "files", "volume": source.volume.model_dump(exclude={"files"})}
    return {"form": source.kind, **source.model_dump(include={"level", "channel"})}
