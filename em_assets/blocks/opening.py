"""`em.open`: from a name, a path or an address to a `Volume`.

A dataset's name means its standardized volume in the store (or a staged copy of it that is faster to read); if it is
not downloaded, its publisher, through the cache. Everything else is a Zarr or N5 volume where it lies.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np

from em_assets.blocks._local import LocalChunks
from em_assets.blocks.engine import ChunkEngine, Engine
from em_assets.blocks.geometry import BoxNm, Grid, nm3
from em_assets.blocks.volume import Content, Description, Level, Opened, Volume
from em_assets.datasets.fields import NAME_PATTERN
from em_assets.datasets.loading import load_sound_specs
from em_assets.errors import Mismatch, Unavailable, Unsupported
from em_assets.records import DatasetFolder, DatasetRecord
from em_assets.settings import Settings, read_settings
from em_assets.store import LocalStore, open_store
from em_assets.volume import Box

if TYPE_CHECKING:
    import pyarrow as pa

    from em_assets.formats._chunked import ChunkedReader
    from em_assets.standardize.intensity import Intensity
    from em_assets.standardize.presence import Presence

_NAME = re.compile(rf"({NAME_PATTERN.strip('^$')})(?:/({NAME_PATTERN.strip('^$')}))?")
LABELS_TYPE = "nearest"
"""The multiscale's `type` of volumes whose coarser levels are voxels of the finer ones. Their translations are all that
of the first voxel's centre, and not, as equal ones of a pyramid of means, that of a corner."""


def open(location: str | os.PathLike[str], *, settings: Settings | None = None) -> Volume:  # noqa: A001  # em.open
    """The volume at `location`: `hemibrain_crop`, `jrc_mus_nacc_2/nuc`, a folder, `s3://...`, `https://...`.

    A dataset that is not downloaded is read from its publisher. Raises Unavailable if nothing is there, Unsupported
    for what cannot be read in blocks, Malformed for what is damaged.
    """
    settings = settings or read_settings()
    text = os.fspath(location)
    match = _NAME.fullmatch(text) if isinstance(location, str) else None
    if match is not None:
        found = _open_dataset(match[1], match[2], settings)
        if found is not None:
            return found
    if "://" not in text and not Path(text).exists():
        raise Unavailable(f"there is neither a dataset nor a folder {text!r}; `em-assets list` shows the datasets.")
    if "://" not in text:
        found = _open_ours(Path(text).resolve(), settings)
        if found is not None:
            return found
    return _open_place(text, settings)


def _open_ours(path: Path, settings: Settings) -> Volume | None:
    """A folder that is a dataset's volume in some store: only with its record and coverage is it known what is real."""
    from em_assets.standardize.stage import STAGED

    if STAGED in path.parts[-3:]:  # the copy that is read anyway
        path = Path(*(part for part in path.parts if part != STAGED))
    sub = path.name.removesuffix(".ome.zarr") if path.parent.name == "volumes" else None
    dataset = path.parent.parent if sub is not None else path.parent
    is_named = re.fullmatch(NAME_PATTERN, dataset.name) and (sub is None or re.fullmatch(NAME_PATTERN, sub))
    folder = DatasetFolder(LocalStore(dataset.parent), dataset.name, sub)
    if not is_named or dataset / folder.volume != path or folder.read_record() is None:
        return None
    record = folder.read_record()
    if record is not None and record.visible_status != "complete":
        raise Unavailable(f"{path}: {dataset.name} is {record.visible_status}; finish it, then read it.")
    return _open_dataset(dataset.name, sub, settings.model_copy(update={"root": str(dataset.parent)}))


def _open_dataset(name: str, sub: str | None, settings: Settings) -> Volume | None:
    """None if nobody knows a dataset of this name."""
    folder = DatasetFolder(open_store(settings.root), name, sub)
    record = folder.read_record()
    if record is not None and record.visible_status == "complete" and "volume" in record.local_paths:
        if sub is not None and sub not in record.volumes:
            volumes = ", ".join(f"{name}/{other}" for other in record.volumes) or "none"
            raise Mismatch(f"{name} has no volume {sub!r}; its further volumes: {volumes}.")
        backing = StoredVolume(settings, name, sub)
        return Volume(backing.describe(record), backing)
    specs, wrong = load_sound_specs(settings.dataset_folders())
    if name in wrong:
        raise wrong[name]
    if name not in specs:
        if record is None:
            return None
        raise Unavailable(f"{name} is {record.visible_status}; finish it with `em-assets get {name}`.")
    from em_assets.blocks._publisher import published_volume

    return published_volume(specs[name], sub, settings)


# A dataset in the store


@dataclass(frozen=True)
class StoredVolume:
    """A volume of a complete dataset: a `Backing`."""

    settings: Settings
    name: str
    sub: str | None

    @property
    def folder(self) -> DatasetFolder:
        return DatasetFolder(open_store(self.settings.root), self.name, self.sub)

    def describe(self, record: DatasetRecord) -> Description:
        summary = record.volumes[self.sub] if self.sub is not None else None
        reader = self._reader()
        content = summary.content if summary is not None else _content(reader)
        title = self.folder.title
        return _description(title, title, reader, content, is_ours=True)

    def open(self) -> Opened:
        from em_assets.blocks.coverage import read_missing

        reader, folder = self._reader(), self.folder
        presence = _presence(reader, read_missing(folder))
        return OpenedZarr(reader, self.settings, presence, is_ours=True, current=Current(folder))

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


# Any Zarr or N5


@dataclass(frozen=True)
class PlacedVolume:
    """A volume at a path or address: a `Backing`."""

    location: str
    settings: Settings

    def open(self) -> Opened:
        from em_assets.blocks.coverage import read_missing_file
        from em_assets.standardize.stage import coverage_of_copy, is_staged_copy

        reader, path = open_reader(self.location, self.settings), Path(self.location)
        if "://" in self.location or not is_staged_copy(path):
            return OpenedZarr(reader, self.settings, None, is_ours=False)
        return OpenedZarr(
            reader, self.settings, _presence(reader, read_missing_file(coverage_of_copy(path))), is_ours=True
        )

    def intensity(self) -> Intensity | None:
        return None

    def neuroglancer_url(self, box_nm: BoxNm, client_url: str | None) -> str:
        from em_assets.neuroglancer import HOSTED_CLIENT, Picture, block_state, neuroglancer_url

        if "://" not in self.location:
            raise Unsupported(
                f"{self.location} is a folder, which no browser reads; serve it, and open it by its address."
            )
        info = open_reader(self.location, self.settings).info
        assert info.voxel_size_nm is not None  # else it had not been opened
        source = self.location if self.location.startswith("n5://") else f"zarr://{self.location}"
        state = block_state(Picture("volume", source, info.voxel_size_nm, None), box_nm)
        return neuroglancer_url(f"{(client_url or HOSTED_CLIENT).rstrip('/')}/", state)


def _open_place(text: str, settings: Settings) -> Volume:
    location = text if "://" in text else str(Path(text).absolute())
    reader = open_reader(location, settings)
    name = unquote(urlsplit(location).path if "://" in location else location).rstrip("/").rpartition("/")[2]
    return Volume(
        _description(name, location, reader, _content(reader), is_ours=False), PlacedVolume(location, settings)
    )


def open_reader(location: str, settings: Settings) -> ChunkedReader:
    """Level 0. Raises Unsupported for what is not a Zarr or N5 volume with one channel and a voxel size."""
    from em_assets.formats import open_volume
    from em_assets.formats._chunked import ChunkedReader

    reader = open_volume(location, settings=settings)
    if not isinstance(reader, ChunkedReader):
        raise Unsupported(
            f"{location} is read by voxels of chunks only where it is Zarr or N5; convert it, or add it as a dataset "
            "(`em-assets add`)."
        )
    if reader.info.channels is not None:
        raise Unsupported(f"{location} has {reader.info.channels} channels; blocks are read of volumes with one.")
    return reader


class Current:
    """Whether a stored dataset is still the one that was opened: its record is looked at when its file has changed.

    On S3 it is not looked at again, because that is a round trip for each block: objects are replaced whole there.
    """

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder = folder
        self._file = folder.store.local_path(folder.path("metadata.json"))
        self._seen = self._signature()
        record = folder.read_record()
        self._sha256 = None if record is None else record.sha256

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

    def _signature(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
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
    return Presence(shapes, level_factors(shapes), missing, _content(reader))


def _present(reader: ChunkedReader) -> list[int]:
    """The numbers of the levels that are there: some publishers list more."""
    return [number for number, level in enumerate(reader.levels) if level.shape is not None]


def _description(name: str, location: str, reader: ChunkedReader, content: Content, *, is_ours: bool) -> Description:
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


def _content(reader: ChunkedReader) -> Content:
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
