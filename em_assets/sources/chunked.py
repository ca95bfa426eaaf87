"""Publishers of Zarr and N5 containers (OpenOrganelle and others; facts in each YAML), in buckets or behind a server.

The formats are `formats/zarr.py` and `formats/n5.py`; here is what the spec asks of them. Buckets are read over plain
HTTPS, unsigned whatever credentials the environment holds.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from em_assets.datasets.source import ChunkedSource, SubVolume
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError, Unsupported
from em_assets.fetch.client import Client
from em_assets.fetch.http import HttpClient, NotThere
from em_assets.formats._chunked import ChunkedReader
from em_assets.formats._json import parse_json
from em_assets.settings import Settings
from em_assets.sources.claims import document_path
from em_assets.sources.crop import find_crop
from em_assets.sources.expected import require_expected
from em_assets.volume import Box, VoxelSize, Zyx

ARRAY_DOCUMENTS = {".zarray": "compressor", "zarr.json": "codecs", "attributes.json": "compression"}
"""The document that describes an array, and its key that says how chunks are packed."""


class ChunkedVolume:
    """The volume of one spec, after its metadata were read and compared with what the spec expects.

    `client` and `url` are those of a copy of the container, where it is not read at its publisher's.
    """

    def __init__(
        self, spec: DatasetSpec, settings: Settings, *, client: Client | None = None, url: str | None = None
    ) -> None:
        self._spec, self._settings = spec, settings
        self._source = chunked_source(spec)
        self._client = client or HttpClient(settings)
        self._url = url or container_url(self._source)
        self._readers: dict[str, ChunkedReader] = {}
        """Every one that was opened, by its group."""
        expected = spec.expected
        self.reader: ChunkedReader = self._open(
            self._source, self._source.group, expected.source_shape, expected.dtype, expected.voxel_size_at_publisher_nm
        )

    def volume_reader(self, name: str) -> ChunkedReader:
        volume = self._spec.volumes[name]
        assert volume.group is not None
        return self._open(volume, volume.group, (volume.shape,), volume.dtype, volume.voxel_size_nm)

    def documents(self) -> dict[str, bytes]:
        """The metadata documents as received, of every volume opened so far; `__` stands for `/` in their paths."""
        return {
            document_path(joined(group, path).replace("/", "__")): raw
            for group, reader in self._readers.items()
            for path, raw in reader.documents().items()
        }

    def crop_box(self) -> tuple[Box, dict[str, Any]]:
        return find_crop(self._spec, self.reader)

    def met(self) -> dict[str, Any]:
        return {
            "convention": self.reader.convention,
            "published_levels": [level.path for level in self.reader.levels],
            **_stored_as(self.reader),
            "has_consolidated_metadata": self._is_there(".zmetadata"),
        }

    def _open(
        self,
        chosen: ChunkedSource | SubVolume,
        group: str,
        shapes: tuple[Zyx, ...],
        dtype: str,
        voxel_size_nm: VoxelSize,
    ) -> ChunkedReader:
        where = f"{self._spec.name}, {joined(self._source.url.rstrip('/'), group)} level {chosen.level}"
        reader = open_level(self._source, group, chosen.level, self._client, self._settings, url=self._url)
        reader = _of_channel(reader, chosen.channel, where)
        require_expected(where, reader.info, shapes, dtype, voxel_size_nm)
        self._readers[group] = reader
        return reader

    def _is_there(self, name: str) -> bool | None:
        """None if the server does not say."""
        try:
            self._client.get_range(f"{self._url}/{name}", 0, 1)
        except NotThere:
            return False
        except EmAssetsError:
            return None
        return True


def chunked_source(spec: DatasetSpec) -> ChunkedSource:
    assert isinstance(spec.source, ChunkedSource), f"{spec.name} publishes {spec.source.kind}, not zarr or n5"
    return spec.source


def container_url(source: ChunkedSource) -> str:
    """Where the container is read: http(s), also of a bucket."""
    url = source.url.rstrip("/")
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        return url
    if scheme in ("s3", "gs"):
        from em_assets.fetch.s3 import https_url

        return https_url(url, endpoint=source.endpoint).rstrip("/")  # of a bucket itself
    raise Unsupported(f"{url} cannot be read chunk by chunk: accepted are https, http, s3 and gs addresses.")


def open_level(
    source: ChunkedSource, group: str, level: int | str, client: Client, settings: Settings, *, url: str | None = None
) -> ChunkedReader:
    """A level by its place in the list or its path; an array that is no pyramid's is its own level 0.

    `url` is the container's where it is a copy of the source's.
    """
    from em_assets.formats.n5 import open_n5
    from em_assets.formats.zarr import open_zarr

    open_container = open_zarr if source.kind == "zarr" else open_n5
    dataset = None if level == 0 else str(level)
    where = joined(url or container_url(source), quote(group))
    reader: ChunkedReader = open_container(where, dataset, client, settings)
    if isinstance(level, int) and reader.level != level:  # another level's path looks like this number
        reader = reader.at_level(reader.levels[level].path)
    return reader


def _of_channel(reader: ChunkedReader, channel: int | None, where: str) -> ChunkedReader:
    """Raises Unsupported where there are several and none is chosen, Mismatch where there is no such channel."""
    if channel is not None:
        return reader.select_channel(channel)
    if reader.info.channels is not None:
        raise Unsupported(
            f"{where} has {reader.info.channels} channels, but volumes of one are stored; say in the spec which one is "
            f"the volume, such as channel: 0 (they are 0 to {reader.info.channels - 1})."
        )
    return reader


def _stored_as(reader: ChunkedReader) -> dict[str, Any]:
    """Format and compression, as the array's own document says."""
    for name, key in ARRAY_DOCUMENTS.items():
        raw = reader.documents().get(joined(reader.path, name))
        if raw is not None:
            document = parse_json(raw, f"{reader.url}/{name}")
            version = document.get("zarr_format")
            return {"format": "n5" if version is None else f"zarr {version}", key: document.get(key)}
    return {}


def joined(folder: str, path: str) -> str:
    return "/".join(part for part in (folder, path) if part)
