"""Where a volume's voxels come from, and how each process opens them again: the `Backing`s of `em.open`.

A complete dataset in a store (`StoredVolume`), the same on a web server (`ServedVolume`), any Zarr or N5 where it lies
(`PlacedVolume`). Only datasets know by their coverage which voxels are real. Whatever lies in S3 is read as our own
stores there are where S3 is set (`s3_is_set`), else at its public address.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np

from em_assets.blocks._local import LocalChunks
from em_assets.blocks._web_store import WebStore
from em_assets.blocks.engine import ChunkEngine, Engine
from em_assets.blocks.geometry import BoxNm, Grid, nm3
from em_assets.blocks.volume import Content, Description, Level, Opened
from em_assets.datasets.loading import load_sound_specs
from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unavailable, Unsupported
from em_assets.records import DatasetFolder, DatasetRecord
from em_assets.settings import S3Access, Settings
from em_assets.store import open_store
from em_assets.volume import Box

if TYPE_CHECKING:
    import pyarrow as pa

    from em_assets.fetch.hosts import Interrupt
    from em_assets.fetch.replies import OnBytes, Reply
    from em_assets.formats._chunked import ChunkedReader
    from em_assets.formats.reader import VolumeReader
    from em_assets.standardize.intensity import Intensity
    from em_assets.standardize.presence import Presence

LABELS_TYPE = "nearest"
"""The multiscale's `type` of volumes whose coarser levels are voxels of the finer ones. Their translations are all that
of the first voxel's centre, and not, as equal ones of a pyramid of means, that of a corner."""
AWS_KEYS = (
    *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
)
"""Any of them, and there are keys to ask S3 with, without looking for a machine's role, which may take long."""
ELSEWHERE = ("NoSuchBucket", "AuthorizationHeaderMalformed", "PermanentRedirect", "redirect without LOCATION")
"""How S3 says that it has no such bucket, or has it in another region, which the public address finds by itself."""


# A dataset in the store


@dataclass(frozen=True)
class StoredVolume:
    """A volume of a complete dataset in the store at `settings.root`: a `Backing`."""

    settings: Settings
    name: str
    sub: str | None
    sha256: str | None
    """The dataset's, when it was opened."""

    @property
    def folder(self) -> DatasetFolder:
        return DatasetFolder(open_store(self.settings.root), self.name, self.sub)

    def describe(self, record: DatasetRecord, location: str) -> Description:
        summary = record.volumes[self.sub] if self.sub is not None else None
        reader = self._reader()
        content = summary.content if summary is not None else content_of(reader)
        return description(self.folder.title, location, reader, content, is_ours=True)

    def open(self) -> Opened:
        from em_assets.blocks.coverage import read_missing

        reader, folder = self._reader(), self.folder
        presence = _presence(reader, read_missing(folder))
        current = Current(folder, self.sha256)
        current.require()  # workers may open it long after it was found to be complete
        return OpenedZarr(reader, self.settings, presence, is_ours=True, current=current)

    def intensity(self) -> Intensity | None:
        from em_assets.standardize.intensity import read_intensities

        return read_intensities(self.folder).get(self.sub or "")

    def points(self, name: str) -> pa.Table:
        from em_assets.sources.points import read_stored_points

        return read_stored_points(self.folder, name)

    def neuroglancer_url(self, box_nm: BoxNm, client_url: str | None) -> str:
        from em_assets.neuroglancer import block_state, hosted_url, neuroglancer_url, read_picture

        folder = self.folder
        if client_url is not None:
            address = client_url.rstrip("/")
            path = f"{self.name}.ome.zarr" if self.sub is None else f"{self.name}/{folder.volume}"
            picture = read_picture(folder, f"zarr3://{address}/data/{path}/")
            return neuroglancer_url(f"{address}/v/{self.name}/", block_state(picture, box_nm))
        spec = load_sound_specs(self.settings.dataset_folders())[0].get(self.name)
        found = None if spec is None else hosted_url(spec, folder.read_record(), box_nm)
        if found is None:
            raise Unsupported(
                f"{folder.title} has no published volume that a browser reads; look at the stored one with "
                f"`em-assets view {folder.title} --at ...`, or give the address of an `em-assets serve`."
            )
        return found

    def _reader(self) -> ChunkedReader:
        from em_assets.fetch.client import FolderClient, StoreClient, folder_url
        from em_assets.formats.zarr import open_zarr

        folder = self.folder
        local = folder.store.local_path(folder.path(folder.volume))
        if local is not None:
            return open_zarr(folder_url(_staged(folder) or local), None, FolderClient(), self.settings)
        return open_zarr(f"store:///{folder.path(folder.volume)}", None, StoreClient(folder.store), self.settings)


def _staged(folder: DatasetFolder) -> Path | None:
    from em_assets.standardize.stage import staged_volume

    return staged_volume(folder)


@dataclass(frozen=True)
class ServedVolume(StoredVolume):
    """The same on a web server."""

    root: str
    """Where the dataset's record and coverage lie: in the folder of its name below."""
    url: str
    """The volume's."""

    @property
    def folder(self) -> DatasetFolder:
        from em_assets.fetch.http import HttpClient

        return DatasetFolder(WebStore(self.root, HttpClient(self.settings)), self.name, self.sub)

    def neuroglancer_url(self, box_nm: BoxNm, client_url: str | None) -> str:
        return PlacedVolume(self.url, self.settings).neuroglancer_url(box_nm, client_url)

    def _reader(self) -> ChunkedReader:
        from em_assets.fetch.http import HttpClient
        from em_assets.formats.zarr import open_zarr

        return open_zarr(self.url, None, HttpClient(self.settings), self.settings)


# Any Zarr or N5


@dataclass(frozen=True)
class PlacedVolume:
    """A volume at a path or address: a `Backing`."""

    location: str
    settings: Settings
    is_public: bool = True
    """Of an `s3://` address: read at its public address, else with the S3 settings, where there are any."""

    def open(self) -> Opened:
        from em_assets.blocks.coverage import read_missing_file
        from em_assets.standardize.stage import coverage_of_copy, is_staged_copy

        reader, path = self._reader(), Path(self.location)
        if reader.url.startswith("store:"):
            there = self.settings.model_copy(update={"root": _bucket_root(self.location)})
            return OpenedZarr(reader, there, None, is_ours=False)
        if "://" in self.location or not is_staged_copy(path):
            return OpenedZarr(reader, self.settings, None, is_ours=False)
        return OpenedZarr(
            reader, self.settings, _presence(reader, read_missing_file(coverage_of_copy(path))), is_ours=True
        )

    def intensity(self) -> Intensity | None:
        return None

    def neuroglancer_url(self, box_nm: BoxNm, client_url: str | None) -> str:
        from em_assets.formats.opening import split_kind
        from em_assets.neuroglancer import HOSTED_CLIENT, Picture, block_state, neuroglancer_url

        if "://" not in self.location:
            raise Unsupported(
                f"{self.location} is a folder, which no browser reads; serve it, and open it by its address."
            )
        if not self.is_public and S3Access.from_environment().endpoint_url is not None:
            raise Unsupported(
                f"{self.location} is read at the endpoint of the S3 settings, which a browser does not have; serve it, "
                "and open it by its address."
            )
        info = self._reader().info
        assert info.voxel_size_nm is not None  # else it had not been opened
        stated, address = split_kind(self.location)
        source = f"{stated or 'zarr'}://{address}"
        state = block_state(Picture("volume", source, info.voxel_size_nm, None), box_nm)
        return neuroglancer_url(f"{(client_url or HOSTED_CLIENT).rstrip('/')}/", state)

    def _reader(self) -> ChunkedReader:
        if not self.is_public and s3_is_set(self.settings):
            return open_reader_in_s3(self.location, self.settings)
        return open_reader(self.location, self.settings)


def open_reader(location: str, settings: Settings) -> ChunkedReader:
    """Level 0, of what lies in S3 at its public address.

    Raises Unsupported for what is not a Zarr or N5 volume with one channel and a voxel size.
    """
    from em_assets.formats import open_volume

    return _chunked(open_volume(location, settings=settings), location)


def _chunked(reader: VolumeReader, location: str) -> ChunkedReader:
    from em_assets.formats._chunked import ChunkedReader

    if not isinstance(reader, ChunkedReader):
        raise Unsupported(
            f"{location} is read by voxels of chunks only where it is Zarr or N5; convert it, or add it as a dataset "
            "(`em-assets add`)."
        )
    if reader.info.channels is not None:
        raise Unsupported(f"{location} has {reader.info.channels} channels; blocks are read of volumes with one.")
    return reader


# Any Zarr or N5 in S3, with the S3 settings


class Refused(Unavailable):
    """S3 does not give it with the settings that there are; it may be public."""


def is_in_s3(location: str) -> bool:
    from em_assets.formats.opening import split_kind

    return split_kind(location)[1].startswith("s3://")


def s3_is_set(settings: Settings) -> bool:
    """Whether what lies in S3 is asked for there as a store of ours is: an endpoint, keys or anonymity say so."""
    access = S3Access.from_environment()
    is_set = access.endpoint_url is not None or access.anonymous or settings.root.startswith("s3://")
    return is_set or any(map(os.environ.get, AWS_KEYS))


def is_refusal(error: Unavailable) -> bool:
    """Whether the bucket may be public all the same: S3 refuses these keys, or this bucket is not its own."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    cause = error.__cause__
    is_refused = isinstance(cause, PermissionDeniedError | UnauthenticatedError)
    return is_refused or any(text in str(cause) for text in ELSEWHERE)


def require_endpoint() -> None:
    """Raises Unavailable if nothing listens where the S3 settings say. The store itself would try it for 20 s."""
    import socket
    from urllib.request import getproxies, proxy_bypass

    from em_assets.store import CONNECT_WITHIN

    endpoint = S3Access.from_environment().endpoint_url
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        name = parts.hostname or ""
        if parts.scheme in getproxies() and not proxy_bypass(name):
            return  # the proxy knows
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((name, port), CONNECT_WITHIN.total_seconds()).close()
    except (OSError, ValueError) as error:  # ValueError: a port or name that none can be
        raise Unavailable(
            f"no S3 answers at {endpoint}, which AWS_ENDPOINT_URL names ({getattr(error, 'strerror', None) or error}); "
            "start it or correct the variable, or unset it to read public buckets."
        ) from error


def open_reader_in_s3(location: str, settings: Settings) -> ChunkedReader:
    """As `open_reader`, of `s3://bucket/key`, with the S3 settings. Its address is that of a store at the bucket.

    Raises Refused, NotThere if S3 says that nothing is there.
    """
    from em_assets.fetch.replies import NotThere
    from em_assets.formats.opening import open_at, split_kind

    root, (stated, uri) = _bucket_root(location), split_kind(location)
    key = uri.removeprefix(root).strip("/")
    if not key.isprintable() or (key and any(part in ("", ".", "..") for part in key.split("/"))):
        raise Refused(f"{location} has a key that no store of ours has; it is only read where it is public.")
    client = _BucketClient(root)
    with _named(root):
        try:
            return _chunked(open_at(f"store:///{quote(key)}", stated, None, client, settings), location)
        except NotThere:
            if client.refusal is None:
                raise
            raise Refused(str(client.refusal)) from client.refusal


def _bucket_root(location: str) -> str:
    """`s3://bucket`. Raises Malformed."""
    from em_assets.fetch.s3 import parse_bucket
    from em_assets.formats.opening import split_kind

    return f"s3://{parse_bucket(split_kind(location)[1]).name}"


@contextlib.contextmanager
def _named(root: str) -> Iterator[None]:
    """In errors, the addresses in S3 of what readers know by `store:///`."""
    try:
        yield
    except EmAssetsError as error:
        error.args = (re.sub(r"\bstore:/*", f"{root}/", str(error)), *error.args[1:])
        raise


class _BucketClient:
    """`store:///key` addresses in somebody's bucket: a `Client`.

    A refusal is NotThere with 403, as `HttpClient` has it: buckets that nobody may list say so of what is absent.
    """

    def __init__(self, root: str) -> None:
        self._store = open_store(root)
        self.refusal: Unavailable | None = None
        """The last."""

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        accept_gzip: bool = False,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        from em_assets.fetch.compression import BadGzipError, gunzip
        from em_assets.fetch.replies import Reply

        body, uri = self._read(url, 0, max_bytes + 1)
        if len(body) > max_bytes:
            raise Malformed(f"{uri} has more than the {max_bytes} bytes expected at most.")
        is_packed = accept_gzip and body.startswith(b"\x1f\x8b")  # with a Content-Encoding, which no JSON looks like
        if is_packed:
            try:
                body = gunzip(body, max_bytes=max_bytes)
            except BadGzipError as error:
                raise Malformed(f"{uri} is not what was expected: {error}; get it again.") from None
        if on_bytes is not None:
            on_bytes(len(body))
        return Reply(uri, body, None, None, "gzip" if is_packed else None, len(body))

    def get_range(
        self,
        url: str,
        start: int,
        stop: int,
        *,
        expect_etag: str | None = None,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        from em_assets.fetch.replies import Reply

        body, uri = self._read(url, start, stop - start)
        if len(body) != stop - start:
            raise Malformed(f"{uri} ends before byte {stop}; it was cut, or is empty.")
        if on_bytes is not None:
            on_bytes(len(body))
        return Reply(uri, body, None, None, None, self._store.size_bytes(_key(url)))

    def _read(self, url: str, start: int, length: int) -> tuple[bytes, str]:
        """(bytes, address for people). Not `Store.size_bytes` first, which cannot tell an absent bucket."""
        from em_assets.fetch.replies import NotThere

        key, uri = _key(url), self._store.uri(_key(url))
        if not key:
            raise NotThere(f"{uri} is a bucket without a volume's documents; name a folder in it.", 404)
        try:
            return self._store.read_range(key, start, length), uri
        except FileNotFoundError:
            raise NotThere(f"{uri} is not there; correct the address.", 404) from None
        except Unavailable as error:
            if not is_refusal(error):
                raise
            self.refusal = error
            raise NotThere(f"{uri} is not there, or not for these keys; check both.", 403) from error


def _key(url: str) -> str:
    return unquote(urlsplit(url).path).strip("/")


# Opened


class Current:
    """Whether a stored dataset is still the one that was opened: its record is looked at when its file has changed.

    On S3 and web servers it is looked at once, because that is a round trip for each block: objects are replaced whole
    there.
    """

    def __init__(self, folder: DatasetFolder, sha256: str | None) -> None:
        self._folder, self._sha256 = folder, sha256
        self._file = folder.store.local_path(folder.path("metadata.json"))
        self._seen: tuple[int, ...] | None = None

    def require(self) -> None:
        """Raises Unavailable while it is being written, Mismatch if it has other voxels now."""
        signature = self._signature()
        if signature == self._seen:
            return
        record = self._folder.read_record()
        name = self._folder.name
        if record is None or record.visible_status != "complete":
            status = "gone" if record is None else record.visible_status
            raise Unavailable(f"{name} is {status} since it was opened; finish it with `em-assets get {name}`.")
        if record.sha256 != self._sha256:
            raise Mismatch(f"{name} has other voxels than when it was opened; open it again.")
        self._seen = signature

    def _signature(self) -> tuple[int, ...]:
        if self._file is None:
            return ()
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns


class OpenedZarr:
    """The levels of a Zarr or N5 volume: an `Opened`."""

    def __init__(
        self,
        reader: ChunkedReader,
        settings: Settings,
        presence: Presence | None,
        *,
        is_ours: bool,
        current: Current | None = None,
    ) -> None:
        self._reader, self._settings, self._is_ours, self._current = reader, settings, is_ours, current
        self.presence = presence
        self._engines: dict[int, Engine] = {}

    def require_current(self) -> None:
        if self._current is not None:
            self._current.require()

    def engine(self, level: int) -> Engine:
        if level not in self._engines:  # two threads may both make one; either serves
            self._engines[level] = self._make(level)
        return self._engines[level]

    def _make(self, level: int) -> Engine:
        at = _present(self._reader)[level]
        reader = self._reader if at == self._reader.level else self._reader.at_level(self._reader.levels[at].path)
        if reader.url.startswith("file://"):
            folder = Path(unquote(urlsplit(reader.url).path))
            return ChunkEngine(reader, LocalChunks(reader, folder, mapped=self._is_ours), self._settings.workers)
        from em_assets.blocks._remote import RemoteChunks

        return ChunkEngine(reader, RemoteChunks(reader, self._settings), self._settings.workers)


def _presence(reader: ChunkedReader, missing: Sequence[Box]) -> Presence:
    """Of a volume as we write it."""
    from em_assets.standardize.ome import level_factors
    from em_assets.standardize.presence import Presence

    shapes = [_shape(level.shape) for level in reader.levels]
    return Presence(shapes, level_factors(shapes), missing, content_of(reader))


def _present(reader: ChunkedReader) -> list[int]:
    """The numbers of the levels that are there: some publishers list more."""
    return [number for number, level in enumerate(reader.levels) if level.shape is not None]


def description(name: str, location: str, reader: ChunkedReader, content: Content, *, is_ours: bool) -> Description:
    is_picked = reader.convention == "corner" and _pyramid_type(reader) == LABELS_TYPE
    convention = "centre" if is_ours or is_picked else reader.convention
    levels = []
    for number, at in enumerate(_present(reader)):
        info = (reader.at_level(reader.levels[at].path) if at != reader.level else reader).info
        size = info.voxel_size_nm
        if size is None:
            raise Unsupported(
                f"{location} does not state the size of its voxels, so no box of it has a place in space."
            )
        corner = info.corner_nm
        if convention != reader.convention:
            centre = reader.levels[at].translation_nm or (0.0, 0.0, 0.0)
            corner = nm3([t - s / 2 for t, s in zip(centre, size, strict=True)])
        levels.append(Level(number, Grid(info.shape, size, corner), info.chunk))
    dtype = np.dtype(reader.info.dtype).newbyteorder("<")
    return Description(name, location, tuple(levels), dtype, content, convention)


def content_of(reader: ChunkedReader) -> Content:
    """Labels are integers whose multiscale says `nearest`, as we write it, or says `image-label` beside it, or that lie
    in the group `labels` of an image.
    """
    if np.dtype(reader.info.dtype).kind not in "iu":
        return "image"
    *_, above, name = ["", "", *(part for part in reader.url.split("/") if not part.isdecimal())]
    is_in_labels = above == "labels" and not name.endswith((".zarr", ".n5"))
    is_labels = is_in_labels or _pyramid_type(reader) == LABELS_TYPE or _has_image_label(reader)
    return "labels" if is_labels else "image"


def _pyramid_type(reader: ChunkedReader) -> str | None:
    """What the multiscale says of how its levels were made."""
    from em_assets.formats._ome_multiscales import find_multiscales

    for attributes in _attributes(reader):
        found = find_multiscales(attributes)
        if found is not None:
            kind = found[0][0].get("type")
            return kind if isinstance(kind, str) else None
    return None


def _has_image_label(reader: ChunkedReader) -> bool:
    return any("image-label" in attributes.get("ome", attributes) for attributes in _attributes(reader))


def _attributes(reader: ChunkedReader) -> Iterator[dict[str, Any]]:
    for path, raw in reader.documents().items():
        if path.endswith(("zarr.json", ".zattrs")):
            document = json.loads(raw)
            found = document.get("attributes") if path.endswith("zarr.json") else document
            if isinstance(found, dict):
                yield found


def _shape(shape: Sequence[int] | None) -> tuple[int, int, int]:
    assert shape is not None  # every level of ours is there
    z, y, x = shape
    return z, y, x
