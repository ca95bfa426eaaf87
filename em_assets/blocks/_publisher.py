"""A dataset that is not downloaded, read block by block from its publisher, through the cache (`fetch/cached.py`).

It has the voxels, the place and the missing parts that its standardized volume will have once `em-assets get` has made
one: the same box of the publisher's volume, found the same way, by the same readers. It has no coarser levels, which
are made by standardizing, and no statistics.

Files on an HTTP server, one or a series, are read in parts where their voxels lie at known places: TIFF, DM3, DM4, MRC,
HDF5. Headers come first, then of the files that a box touches the rows or chunks that it needs; what lies between two
comes along where that costs less than asking twice. Each file's size is compared with the spec, but no checksum, which
takes all of it, and it stays the version that it was when its header was read.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from em_assets.blocks.engine import Engine, Missing
from em_assets.blocks.geometry import BoxNm, Grid, Nm3
from em_assets.blocks.volume import Description, Level, Volume
from em_assets.datasets.source import FilesSource, PrecomputedSource, VolumeFiles
from em_assets.datasets.spec import DatasetSpec, Layout
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch.cached import CachedClient, cached_client, version_of
from em_assets.fetch.http import HttpClient
from em_assets.records import DatasetFolder
from em_assets.sources.crop import Coarser, find_crop
from em_assets.sources.cryoet import current_spec
from em_assets.store import open_store
from em_assets.volume import Box, VolumeInfo, subtract, zyx

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from em_assets.fetch.client import Client
    from em_assets.fetch.hosts import Interrupt
    from em_assets.fetch.replies import OnBytes, Reply
    from em_assets.formats._bytes import ByteSource
    from em_assets.formats.precomputed import PrecomputedReader
    from em_assets.formats.reader import RegionVoxels, VolumeReader
    from em_assets.settings import Settings
    from em_assets.standardize.intensity import Intensity
    from em_assets.standardize.presence import Presence

IN_PARTS = ("tiff", "dm", "mrc", "hdf5")
"""Formats whose voxels lie at places that their headers tell."""


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
    return Volume(description, PublishedVolume(spec, sub, settings, place, info.corner_nm))


@dataclass(frozen=True)
class PublishedVolume:
    """Which part of which volume of a publisher: a `Backing`."""

    spec: DatasetSpec
    sub: str | None
    settings: Settings
    place: Box
    """In the publisher's voxels."""
    corner_nm: Nm3
    """Of the publisher's volume."""

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

        found = hosted_url(self.spec, None, box_nm, client_url, self.corner_nm)
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
            return self._read(source, boxes, outs)
        except (Malformed, Mismatch):
            if source.changes == changes:
                raise
        # An object is not the one any more of which parts were kept. Those are forgotten now: its index and its chunks
        # are read anew, all of one version. The client stays: it knows that others may have changed as well.
        volume = self._volume
        self._source = _open(volume.spec, volume.sub, volume.settings, source.client)
        return self._read(self._source, boxes, outs)

    def _read(self, source: _Source, boxes: Sequence[Box], outs: Sequence[NDArray[Any]]) -> list[Missing]:
        corner = self._volume.place.start
        wanted: dict[Box, list[tuple[int, Box]]] = {}
        for number, box in enumerate(boxes):
            self._require_inside(box)
            for part in source.cut(box.shifted(corner)) if box.voxels else ():
                wanted.setdefault(part, []).append((number, part.shifted(subtract((0, 0, 0), corner))))
        missing: list[list[Box]] = [[] for _ in boxes]

        def place(region: RegionVoxels) -> None:
            absent = self._settled(region)
            for number, part in wanted[region.box]:
                outs[number][part.shifted(subtract((0, 0, 0), boxes[number].start)).slices] = region.voxels
                missing[number].extend(lack.shifted(subtract((0, 0, 0), corner)) for lack in absent)

        for outcome in source.reader.map_regions(list(wanted), place):
            if outcome.error is not None:
                raise outcome.error
        return [tuple(parts) for parts in missing]

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
    file_axis: int = 0
    file_depth: int | None = None
    """So many planes along an axis are in each file of a series; None: it is none."""

    def cut(self, box: Box) -> Iterator[Box]:
        """The box in parts that may be read side by side: one of each file."""
        axis, depth = self.file_axis, self.file_depth
        first, last = box.start[axis], box.stop[axis]
        edges = [] if depth is None else range((first // depth + 1) * depth, last, depth)
        for a, b in itertools.pairwise((first, *edges, last)):
            start, stop = list(box.start), list(box.stop)
            start[axis], stop[axis] = a, b
            yield Box(zyx(start), zyx(stop))

    @property
    def changes(self) -> int:
        """How often what was kept of an object turned out to be of another version of it."""
        return self.client.changes if isinstance(self.client, CachedClient) else 0


class _OneVersion:
    """A `Client` for which an object stays the version that it was first: a header and its voxels belong together."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._first: dict[str, tuple[str | None, str | None]] = {}
        """ETag and version of each object."""

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        accept_gzip: bool = False,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        return self._client.get(
            url, max_bytes=max_bytes, accept_gzip=accept_gzip, on_bytes=on_bytes, interrupt=interrupt
        )

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
        """Raises Mismatch if it is another version."""
        if expect_etag is None and url in self._first:
            expect_etag, _ = self._first[url]
        reply = self._client.get_range(
            url, start, stop, expect_etag=expect_etag, on_bytes=on_bytes, interrupt=interrupt
        )
        with self._lock:
            _, first = self._first.setdefault(url, (reply.etag, version_of(reply)))
        if first != version_of(reply):
            raise Mismatch(f"{reply.url} changed while it was read; look at what its publisher replaced.")
        return reply


def _open(spec: DatasetSpec, sub: str | None, settings: Settings, client: Client | None = None) -> _Source:
    """`client`: the one that it was opened with before."""
    if isinstance(spec.source, FilesSource):
        return _files(spec, spec.source, sub, settings, client)
    client = client or cached_client(settings)
    if isinstance(spec.source, PrecomputedSource):
        return _Source(_precomputed(spec, spec.source, client, settings), client)
    from em_assets.sources.chunked import ChunkedVolume

    source = ChunkedVolume(spec, settings, client=client)
    return _Source(source.reader if sub is None else source.volume_reader(sub), client)


def _precomputed(spec: DatasetSpec, source: PrecomputedSource, client: Client, settings: Settings) -> PrecomputedReader:
    """As `sources/precomputed.py`, which has a client of its own, through this one."""
    from em_assets.formats.precomputed import open_precomputed
    from em_assets.sources.expected import require_expected

    url, level, expected = source.volume_url, source.level, spec.expected
    reader = open_precomputed(url, level, client, settings)
    where = f"{spec.name}, {url} level {level}"
    require_expected(where, reader.info, expected.source_shape, expected.dtype, expected.voxel_size_at_publisher_nm)
    return reader


def _files(
    spec: DatasetSpec, source: FilesSource, sub: str | None, settings: Settings, client: Client | None
) -> _Source:
    """Raises Unavailable if a file of the volume cannot be read in parts."""
    from em_assets.sources.files import open_further, open_main

    files = source.volume if sub is None else spec.volumes[sub].source
    assert files is not None  # of a volume of this kind of source
    urls = {path: source.file_url(path) for path in files.paths()}
    if any(not url.startswith("http") for url in urls.values()):
        raise _must_be_downloaded(spec, "published over FTP")
    if client is None:
        http = HttpClient(settings)
        for url in urls.values():
            http.limit(url, source.connections)
        client = cached_client(settings, http)
    one_version = _OneVersion(client)
    # a thread for each request that the publisher takes at once, though there may be fewer processors
    settings = settings.model_copy(update={"workers": max(settings.workers, source.connections)})

    def bytes_of(path: str) -> ByteSource:
        return _bytes_in_parts(spec, urls[path], one_version)

    reader = open_main(spec, bytes_of, settings) if sub is None else open_further(spec, sub, bytes_of, settings)
    return _Source(reader, client, *_files_of_series(files, reader.info))


def _bytes_in_parts(spec: DatasetSpec, url: str, client: Client) -> ByteSource:
    """What the file is shows in its first bytes, which its reader looks at again. Raises Unavailable, as `_files`."""
    from em_assets.formats._bytes import RemoteBytes
    from em_assets.formats._packed import packing_of
    from em_assets.formats.opening import HEAD_BYTES, kind_of

    source = RemoteBytes(url, client)
    head = bytes(source.read(0, min(HEAD_BYTES, source.size_bytes)))
    packing, kind = packing_of(head), kind_of(head, source.size_bytes)
    if packing is not None:
        raise _must_be_downloaded(spec, f"published as a file packed by {packing}")
    if kind not in (*IN_PARTS, None):  # None: what that is, opening it says
        raise _must_be_downloaded(spec, f"published as a file of format {kind}")
    return source


def _files_of_series(files: VolumeFiles, info: VolumeInfo) -> tuple[int, int | None]:
    """Along which axis they follow one another, and how many planes each has."""
    count, axis = len(files.paths()), "zyx".index(files.axes[0])
    return axis, (info.shape[axis] // count if count > 1 else None)


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
