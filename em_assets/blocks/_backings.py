"""Where a volume's voxels come from, and how each process opens them again: the `Backing`s of `em.open`.

A complete dataset in a store (`StoredVolume`), the same on a web server (`ServedVolume`), any Zarr or N5 where it lies
(`PlacedVolume`). Only datasets know by their coverage which voxels are real. Whatever lies in S3 is read as our own
stores there are where S3 is set (`_readers.s3_is_set`), else at its public address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from em_assets.blocks._choice import UNSAID, Choice
from em_assets.blocks._currency import Currency
from em_assets.blocks._describing import content_of, description, multiscale, present_levels
from em_assets.blocks._local import LocalChunks
from em_assets.blocks._readers import bucket_root, open_reader, open_reader_in_s3, s3_is_set
from em_assets.blocks._web_store import WebStore
from em_assets.blocks.engine import ChunkEngine, Engine
from em_assets.blocks.geometry import BoxNm
from em_assets.blocks.volume import Description, Opened
from em_assets.datasets.loading import load_sound_specs
from em_assets.errors import Unsupported
from em_assets.records import DatasetFolder, DatasetRecord
from em_assets.settings import S3Access, Settings
from em_assets.store import open_store
from em_assets.volume import Box

if TYPE_CHECKING:
    import pyarrow as pa

    from em_assets.formats._chunked import ChunkedReader
    from em_assets.standardize.intensity import Intensity
    from em_assets.standardize.presence import Presence

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
        current = Currency(folder, self.sha256)
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
    choice: Choice = UNSAID
    """By numbers."""

    def open(self) -> Opened:
        from em_assets.blocks.coverage import read_missing_file
        from em_assets.standardize.stage import coverage_of_copy, is_staged_copy

        reader, path = self._reader(), Path(self.location)
        if reader.url.startswith("store:"):
            there = self.settings.model_copy(update={"root": bucket_root(self.location)})
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
        reader = self._reader()
        size = reader.info.voxel_size_nm
        assert size is not None  # else it had not been opened
        stated, address = split_kind(self.location)
        source = f"{stated or 'zarr'}://{address}"
        state = block_state(Picture("volume", source, size, None), box_nm)
        state["layers"][0] |= _shown_channel(reader, self.location)
        return neuroglancer_url(f"{(client_url or HOSTED_CLIENT).rstrip('/')}/", state)

    def _reader(self) -> ChunkedReader:
        if not self.is_public and s3_is_set(self.settings):
            return open_reader_in_s3(self.location, self.settings, self.choice)
        return open_reader(self.location, self.settings, self.choice)


def _shown_channel(reader: ChunkedReader, location: str) -> dict[str, Any]:
    """What a Neuroglancer layer says of the channel that is read; nothing where there is one.

    Neuroglancer takes an OME axis of the type channel for a dimension of the layer's own, and adds a ' to its name.
    """
    count = reader.shape[0]
    if count == 1 and reader.times == 1:
        return {}
    image = multiscale(reader)
    names = [axis["name"] for axis in image.get("axes", []) if axis.get("type") == "channel"]
    scale = reader.pyramid.levels[0].scale
    if reader.times > 1 or not names or scale is None:
        raise Unsupported(
            f"{location} has {count} channels and {reader.times} points in time; a link can only choose among channels "
            "of an OME-Zarr."
        )
    unit = [scale[reader.axes.index("c")], ""]
    return {"localDimensions": {f"{names[0]}'": unit}, "localPosition": [reader.channels.start]}


# Opened


class OpenedZarr:
    """The levels of a Zarr or N5 volume: an `Opened`."""

    def __init__(
        self,
        reader: ChunkedReader,
        settings: Settings,
        presence: Presence | None,
        *,
        is_ours: bool,
        current: Currency | None = None,
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
        at = present_levels(self._reader)[level]
        reader = self._reader if at == self._reader.level else self._reader.at_level(self._reader.levels[at].path)
        if reader.url.startswith("file://"):
            folder = Path(unquote(urlsplit(reader.url).path))
            return ChunkEngine(reader, LocalChunks(reader, folder, mapped=self._is_ours), self._settings.workers)
        from em_assets.blocks._remote import RemoteChunks

        saw = None if self._current is None else self._current.saw
        return ChunkEngine(reader, RemoteChunks(reader, self._settings, on_version=saw), self._settings.workers)


def _presence(reader: ChunkedReader, missing: Sequence[Box]) -> Presence:
    """Of a volume as we write it."""
    from em_assets.standardize.ome import level_factors
    from em_assets.standardize.presence import Presence

    shapes = [_shape(level.shape) for level in reader.levels]
    return Presence(shapes, level_factors(shapes), missing, content_of(reader))


def _shape(shape: Sequence[int] | None) -> tuple[int, int, int]:
    assert shape is not None  # every level of ours is there
    z, y, x = shape
    return z, y, x
