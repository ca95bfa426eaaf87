"""A dataset that is not downloaded, read block by block from its publisher, through the cache (`fetch/cached.py`).

It has the voxels, the place and the missing parts that its standardized volume will have once `em-assets get` has made
one: the same box of the publisher's volume, found the same way, by the same readers. It has no coarser levels, which
are made by standardizing, and no statistics. Files are read in parts where that is possible: one TIFF on an HTTP
server; of such a file the size is compared with the spec, but no checksum, which takes all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from em_assets.blocks.engine import Engine, Missing
from em_assets.blocks.geometry import BoxNm, Grid
from em_assets.blocks.volume import Description, Level, Volume
from em_assets.datasets.source import ChunkedSource, FilesSource, PrecomputedSource
from em_assets.datasets.spec import DatasetSpec, Layout
from em_assets.errors import Mismatch, Unavailable, Unsupported
from em_assets.fetch.cached import CachedClient, cached_client
from em_assets.fetch.http import HttpClient
from em_assets.records import DatasetFolder
from em_assets.sources.crop import Coarser, find_crop
from em_assets.sources.cryoet import current_spec
from em_assets.store import open_store
from em_assets.volume import Box, VolumeInfo, subtract

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from em_assets.fetch.client import Client
    from em_assets.formats.precomputed import PrecomputedReader
    from em_assets.formats.reader import RegionVoxels, VolumeReader
    from em_assets.settings import Settings
    from em_assets.standardize.intensity import Intensity
    from em_assets.standardize.presence import Presence

HEAD_BYTES = 64
"""By which a format is known."""


def published_volume(spec: DatasetSpec, sub: str | None, settings: Settings) -> Volume:
    """The volume that `em-assets get` would make of the spec's main volume, or of the further one `sub`.

    Raises Mismatch if there is no such volume or the publisher's is not what the spec expects, Unavailable if the
    publisher cannot be reached or its files have to be downloaded as a whole, Unsupported, Malformed.
    """
    layout = _layout(spec, sub)
    spec = current_spec(spec, settings).spec  # also for processes that open it again
    source = _open(spec, sub, settings)
    place = _place(spec, sub, settings, source)
    info = source.reader.info
    level = Level(0, _grid(layout, info, place), info.chunk)
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    description = Description(layout.name, layout.name, (level,), dtype, layout.content, _convention(source.reader))
    return Volume(description, PublishedVolume(spec, sub, settings, place))


@dataclass(frozen=True)
class PublishedVolume:
    """Which part of which volume of a publisher: a `Backing`."""

    spec: DatasetSpec
    sub: str | None
    settings: Settings
    place: Box
    """In the publisher's voxels."""

    def open(self) -> OpenedPublished:
        return OpenedPublished(self)

    def intensity(self) -> Intensity | None:
        """Nobody has counted them."""
        return None

    def points(self, name: str) -> pa.Table:
        from em_assets.sources.points import fetch_points

        return fetch_points(self.spec, name, self.settings)

    def neuroglancer_url(self, box_nm: BoxNm, client_url: str | None) -> str:
        from em_assets.neuroglancer import hosted_url

        found = hosted_url(self.spec, None, box_nm, client_url)
        if found is None:
            raise Unsupported(f"{self.spec.name} is published as files, which no browser reads; get it and view it.")
        return found


class OpenedPublished:
    """One process's connection to a publisher: an `Opened`, and the `Engine` of its one level."""

    def __init__(self, volume: PublishedVolume) -> None:
        self._volume = volume
        self._layout = _layout(volume.spec, volume.sub)
        self._source = _open(volume.spec, volume.sub, volume.settings)

    @property
    def presence(self) -> Presence | None:
        """What is missing shows when it is read."""
        return None

    def require_current(self) -> None:
        """A change of the publisher's shows when it is read."""

    def engine(self, level: int) -> Engine:
        assert level == 0
        return self

    def read(self, boxes: Sequence[Box], outs: Sequence[NDArray[Any]]) -> list[Missing]:
        """As the contract says. All boxes are planned together; a chunk that several need is fetched once."""
        source = self._source
        changes = source.changes
        try:
            return self._read(source.reader, boxes, outs)
        except Mismatch:
            if source.changes == changes:
                raise
        # An object is not the one any more of which parts were kept. Those are forgotten now: its index and its chunks
        # are read anew, all of one version.
        self._source = _open(self._volume.spec, self._volume.sub, self._volume.settings)
        return self._read(self._source.reader, boxes, outs)

    def _read(self, reader: VolumeReader, boxes: Sequence[Box], outs: Sequence[NDArray[Any]]) -> list[Missing]:
        corner = self._volume.place.start
        numbers: dict[Box, list[int]] = {}
        for number, box in enumerate(boxes):
            self._require_inside(box)
            if box.voxels:
                numbers.setdefault(box.shifted(corner), []).append(number)
        missing: list[Missing] = [()] * len(boxes)

        def place(region: RegionVoxels) -> None:
            absent = self._settled(region)
            for number in numbers[region.box]:
                outs[number][...] = region.voxels
                missing[number] = tuple(part.shifted(subtract((0, 0, 0), corner)) for part in absent)

        for outcome in reader.map_regions(list(numbers), place):
            if outcome.error is not None:
                raise outcome.error
        return missing

    def _settled(self, region: RegionVoxels) -> Missing:
        """Puts the format's fill value where the publisher has nothing; the parts of it that count as missing."""
        policy = self._layout.missing_policy
        if region.missing and policy == "error":
            raise Mismatch(
                f"{region.source_url} has no data in {len(region.missing)} chunks of {region.box}, first "
                f"{region.missing[0]}, in the publisher's voxels; the spec says `missing: error`: ask for another box, "
                "or set `missing: record` or `missing: fill` in it."
            )
        for part in region.missing:
            region.voxels[part.shifted(subtract((0, 0, 0), region.box.start)).slices] = region.fill_value
        return () if policy == "fill" else region.missing

    def _require_inside(self, box: Box) -> None:
        """What the publisher has around the place is not of the volume."""
        if not Box.from_shape(self._layout.shape).contains(box):
            raise ValueError(f"box {box} leaves the volume {self._layout.name} of {self._layout.shape} voxels")


@dataclass(frozen=True)
class _Source:
    """A publisher's volume that answered and is what the spec expects."""

    reader: VolumeReader
    client: Client

    @property
    def changes(self) -> int:
        """How often what was kept of an object turned out to be of another version of it."""
        return self.client.changes if isinstance(self.client, CachedClient) else 0


def _open(spec: DatasetSpec, sub: str | None, settings: Settings) -> _Source:
    http = HttpClient(settings)
    if isinstance(spec.source, FilesSource):
        http.limit(spec.source.url, spec.source.connections)
    client = cached_client(settings, http)
    if isinstance(spec.source, PrecomputedSource):
        return _Source(_precomputed(spec, spec.source, client, settings), client)
    if isinstance(spec.source, ChunkedSource):
        from em_assets.sources.chunked import ChunkedVolume

        source = ChunkedVolume(spec, settings, client=client)
        return _Source(source.reader if sub is None else source.volume_reader(sub), client)
    return _Source(_file(spec, spec.source, sub, client, settings), client)


def _precomputed(spec: DatasetSpec, source: PrecomputedSource, client: Client, settings: Settings) -> PrecomputedReader:
    """As `sources/precomputed.py`, which has a client of its own, through this one."""
    from em_assets.formats.precomputed import open_precomputed
    from em_assets.sources.expected import require_expected

    url, level, expected = source.volume_url, source.level, spec.expected
    reader = open_precomputed(url, level, client, settings)
    where = f"{spec.name}, {url} level {level}"
    require_expected(where, reader.info, expected.source_shape, expected.dtype, expected.voxel_size_at_publisher_nm)
    return reader


def _file(spec: DatasetSpec, source: FilesSource, sub: str | None, client: Client, settings: Settings) -> VolumeReader:
    """Raises Unavailable if the volume is not one TIFF."""
    from em_assets.formats._bytes import RemoteBytes
    from em_assets.formats.opening import kind_of
    from em_assets.sources.files import open_further, open_main

    files = source.volume if sub is None else spec.volumes[sub].source
    assert files is not None  # of a volume of this kind of source
    first, *others = files.paths()
    if others:
        raise _must_be_downloaded(spec, f"published as {len(others) + 1} files")
    opened = RemoteBytes(source.file_url(first), client)
    kind = kind_of(opened.read(0, min(HEAD_BYTES, opened.size_bytes)))
    if kind not in ("tiff", None):  # None: what that is, opening it says
        raise _must_be_downloaded(spec, f"published as a file of format {kind}")
    return (
        open_main(spec, lambda _: opened, settings)
        if sub is None
        else open_further(spec, sub, lambda _: opened, settings)
    )


def _must_be_downloaded(spec: DatasetSpec, why: str) -> Unavailable:
    return Unavailable(
        f"{spec.name} is {why}, which cannot be read in parts at its publisher's; download it with `em-assets get "
        f"{spec.name}`."
    )


def _layout(spec: DatasetSpec, sub: str | None) -> Layout:
    if sub is None:
        return spec
    layouts = spec.layouts()
    if sub not in layouts:
        volumes = ", ".join(f"{spec.name}/{other}" for other in layouts if other is not None) or "none"
        raise Mismatch(f"{spec.name} has no volume {sub!r}; its further volumes: {volumes}.")
    return layouts[sub]


def _place(spec: DatasetSpec, sub: str | None, settings: Settings, source: _Source) -> Box:
    """Where the volume is cut out of the publisher's: as recorded, if a download began; else where one would begin."""
    record = DatasetFolder(open_store(settings.root), spec.name).read_record()
    if record is not None and record.identity == spec.identity():
        described = record if sub is None else record.volumes.get(sub)
        if described is not None and described.source_box is not None:
            return described.source_box  # type: ignore[no-any-return]  # a Box, whose field pydantic knows as Any
    if sub is not None:
        return Box.from_shape(spec.volumes[sub].shape, at=source.reader.info.origin)
    return find_crop(spec, source.reader, _coarser(source.reader))[0]


def _coarser(reader: VolumeReader) -> Coarser | None:
    """The publisher's coarse levels, by which a drawn place is judged."""
    from em_assets.formats.precomputed import PrecomputedReader

    if not isinstance(reader, PrecomputedReader):
        return None
    coarsest = len(reader.scales) - 1
    return lambda level: reader.at_level(min(level, coarsest))


def _grid(layout: Layout, info: VolumeInfo, place: Box) -> Grid:
    """By way of the first voxel's centre, which is what a stored volume states: equal to the last digit."""
    size = layout.voxel_size_nm
    centres = [corner + (o + 0.5) * s for corner, o, s in zip(info.corner_nm, place.start, size, strict=True)]
    z, y, x = (centre - s / 2 for centre, s in zip(centres, size, strict=True))
    return Grid(layout.shape, size, (z, y, x))


def _convention(reader: VolumeReader) -> str:
    """What the publisher's offsets place."""
    from em_assets.formats._chunked import ChunkedReader
    from em_assets.formats.precomputed import PrecomputedReader

    if isinstance(reader, ChunkedReader):
        return reader.convention
    return "corner" if isinstance(reader, PrecomputedReader) else "scale-only"
