"""TIFF files as volumes: classic and BigTIFF, either byte order, one page per slice (z, y, x).

The file is walked and checked before any of its pixels, or any library, is touched: `_tiff_ifd.py`, `_tiff_pages.py`,
`_tiff_text.py`. Uncompressed pages are read by offset, on a server by the ranges that hold the wanted rows; of
compressed ones only the strips or tiles that a box touches are decoded (`_tiff_decode.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed, Mismatch
from em_assets.fetch.ranges import GAP_BYTES, plan_requests
from em_assets.formats._boxes import checked_box, map_boxes
from em_assets.formats._bytes import ByteSource, read_pieces
from em_assets.formats._raw_array import STRUCT_LETTERS
from em_assets.formats._recent import DecodedChunks
from em_assets.formats._tiff_decode import decode
from em_assets.formats._tiff_ifd import MAX_TEXT_BYTES, Entry, Ifd, IfdChain, decoded
from em_assets.formats._tiff_pages import Contents, Layout, Page, read_contents
from em_assets.formats._tiff_remote import for_walking
from em_assets.formats._tiff_tags import as_text, numbers, shown_text, tag_name
from em_assets.formats._tiff_text import MAX_PATH_CHARACTERS, text_leaves
from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, Scalar
from em_assets.settings import Settings
from em_assets.volume import Box, VolumeInfo, Zyx

T = TypeVar("T")
MAX_KEYS = 10_000
"""Of one text; the text itself is given whole."""
BATCH_BYTES = 32 * 2**20
"""Stored bytes that a read holds at once beside its result."""


def open_tiff(source: ByteSource, settings: Settings, *, dataset: str | None = None) -> TiffReader:
    """The volume in a TIFF: its pages, or the planes of its ImageJ or OME description.

    Raises Malformed, naming the page and what is wrong with it, Unsupported, naming the kind of picture, and Mismatch
    if a dataset is named: there is one volume. Reads directories, no pixels.
    """
    if dataset is not None:
        raise Mismatch(f"{source.name} is a TIFF, which holds one volume; leave out the dataset {dataset!r}.")
    walked = for_walking(source, settings.connections_per_host)
    return TiffReader(source, settings, read_contents(walked, settings.max_bytes))


class _Piece(NamedTuple):
    """Stored bytes that a box needs of one page, and which rows or which strip or tile they are."""

    start: int
    stop: int
    first: int
    """Row of the page, or number of the strip or tile."""
    rows: int
    """Of an uncompressed page; 0 for a strip or tile."""


class _Planned(NamedTuple):
    page: Page
    pieces: list[_Piece]
    plane: NDArray[Any]
    """(y, x) of the result, to be filled."""


class TiffReader:
    """A `VolumeReader`. Safe for use by several threads."""

    def __init__(self, source: ByteSource, settings: Settings, contents: Contents) -> None:
        self._source = source
        self._settings = settings
        self._contents = contents
        self._decoded = DecodedChunks(settings.memory_bytes)
        layout = contents.pages[0].layout
        channels, slices = contents.planes.shape
        self.info = VolumeInfo(
            (slices, layout.height, layout.width),
            layout.packing.dtype.name,
            contents.stack.voxel_size_nm,
            (1, layout.packing.rows, layout.packing.columns),
            channels=channels if channels > 1 else None,
        )

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """The voxels of a box, of the whole volume without one; of every channel where there are several."""
        box = checked_box(self.info, box, self._source.name)
        voxels = np.empty((len(self._contents.planes), *box.shape), self.info.dtype)
        batch: list[_Planned] = []
        held = 0
        for channel, z, page in self._pages(box):
            pieces = self._pieces(page, box)
            size = sum(piece.stop - piece.start for piece in pieces)
            if batch and held + size > BATCH_BYTES:
                self._read_batch(batch, box)
                batch, held = [], 0
            batch.append(_Planned(page, pieces, voxels[channel, z - box.start[0]]))
            held += size
        self._read_batch(batch, box)
        return voxels if self.info.channels else voxels[0]

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """`/0/ImageWidth`: every tag of the first page, keys of its texts below them; of other pages what differs."""
        tags = self._contents.tags
        assert tags.first is not None
        for entry in tags.first.entries.values():
            yield from _shown(tags.first, entry)
        for ifd, entry in tags.differing:
            yield from _shown(ifd, entry)
        for number, what in tags.skipped:
            yield f"/{number}/skipped", what
        if 330 in tags.first.entries:
            yield f"/{tags.first.number}/SubIFDs/skipped", "images within this page, not read"
        if tags.not_listed:
            yield "/not_listed", f"{tags.not_listed} further tags differ between pages"

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        """Requests are those to a server: a local file has none. A chunk is a strip or tile, or an unpacked page."""
        is_local = self._source.mapped() is not None
        voxel_bytes = len(self._contents.planes) * self._contents.pages[0].layout.packing.dtype.itemsize
        chunks: set[tuple[int, int, int]] = set()
        requests = received = 0
        for box in boxes:
            stored: list[tuple[int, int]] = []
            for channel, z, page in self._pages(box):
                pieces = self._pieces(page, box, also_decoded=True)
                stored += [(piece.start, piece.stop) for piece in pieces]
                chunks.update((channel, z, 0 if piece.rows else piece.first) for piece in pieces)
            ranges = [] if is_local else [request.size_bytes for request in plan_requests(stored)]
            requests += len(ranges)
            received += box.voxels * voxel_bytes if is_local else sum(ranges)
        return ReadPlan(requests, received, len(chunks), 0)

    def map_regions(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[RegionOutcome[T]]:
        """Reads every box and calls `work` with it on a worker thread, in order.

        Where strips or tiles have to be decoded, the boxes that share them follow one another instead.
        """
        return map_boxes(
            boxes if self._is_plain else sorted(boxes),
            self.read,
            work,
            sample=self.sampler,
            source_url=self._source.name,
            workers=self._settings.workers,
            on_bytes=on_bytes,
        )

    @property
    def sampler(self) -> Callable[[Zyx], float] | None:
        """A second way to a voxel; None for compressed and remote files, and those with channels."""
        is_known = self._is_plain and self.info.channels is None
        return self._sample if is_known and self._source.mapped() is not None else None

    @property
    def _is_plain(self) -> bool:
        """Whether pixels lie in the file as they are."""
        return all(page.layout.packing.compression == 1 for page in self._contents.pages)

    def _sample(self, position: Zyx) -> float:
        """By arithmetic of its own, with the page's table of strips or tiles as it stands in the file."""
        z, y, x = position
        page, planes_after = self._stored_page(0, z)
        layout = page.layout
        (rows, columns), dtype = (layout.packing.rows, layout.packing.columns), layout.packing.dtype
        ifd, _ = IfdChain(self._source, self._contents.form).read(page.ifd_at, page.number)
        starts = ifd.integers(324 if layout.is_tiled else 273)
        assert starts is not None
        chunk = (y // rows) * -(-layout.width // columns) + x // columns
        within = (y % rows) * columns + x % columns
        at = int(starts[chunk]) + within * dtype.itemsize + planes_after * layout.page_bytes
        letter = self._contents.form.order + STRUCT_LETTERS[f"{dtype.kind}{dtype.itemsize}"]
        return float(struct.unpack(letter, self._source.read(at, dtype.itemsize))[0])

    def _stored_page(self, channel: int, z: int) -> tuple[Page, int]:
        """The page that has a directory, and how many planes after it the wanted one lies."""
        contents = self._contents
        plane = int(contents.planes[channel, z])
        return (contents.pages[0], plane) if contents.follow_one_page else (contents.pages[plane], 0)

    def _page(self, channel: int, z: int) -> Page:
        page, planes_after = self._stored_page(channel, z)
        if not planes_after:
            return page
        assert page.start is not None
        return replace(page, start=page.start + planes_after * page.layout.page_bytes)

    def _pages(self, box: Box) -> Iterator[tuple[int, int, Page]]:
        """(channel, z, page) of every plane of a box."""
        for channel in range(len(self._contents.planes)):
            for z in range(box.start[0], box.stop[0]):
                yield channel, z, self._page(channel, z)

    def _pieces(self, page: Page, box: Box, *, also_decoded: bool = False) -> list[_Piece]:
        """The stored bytes of a page that a box needs; not of strips and tiles that are decoded already."""
        if page.start is not None:
            return self._rows(page.layout, page.start, box)
        assert page.offsets is not None
        assert page.sizes is not None
        return [
            _Piece(start, start + int(page.sizes[chunk]), chunk, 0)
            for chunk in _chunks(page.layout, box)
            if also_decoded or not self._decoded.has((page.number, chunk))
            for start in (int(page.offsets[chunk]),)
        ]

    def _rows(self, layout: Layout, page_start: int, box: Box) -> list[_Piece]:
        """All rows at once, with what lies between them, unless that is much and has to be fetched."""
        (_, y, x), item = box.slices, layout.packing.dtype.itemsize
        is_wide = layout.row_bytes - (x.stop - x.start) * item > GAP_BYTES
        step = 1 if is_wide and self._source.mapped() is None else y.stop - y.start
        return [
            _Piece(
                page_start + row * layout.row_bytes + x.start * item,
                page_start + (row + step - 1) * layout.row_bytes + x.stop * item,
                row,
                step,
            )
            for row in range(y.start, y.stop, step)
        ]

    def _read_batch(self, batch: list[_Planned], box: Box) -> None:
        wanted = [(piece.start, piece.stop) for planned in batch for piece in planned.pieces]
        bodies = iter(read_pieces(self._source, wanted, self._settings.connections_per_host))
        for planned in batch:
            received = [(piece, next(bodies)) for piece in planned.pieces]
            if planned.page.start is not None:
                _fill_rows(planned, received, box)
            else:
                self._fill_chunks(planned, {piece.first: body for piece, body in received}, box)

    def _fill_chunks(self, planned: _Planned, bodies: dict[int, bytes | memoryview], box: Box) -> None:
        layout = planned.page.layout
        rows, columns = layout.packing.rows, layout.packing.columns
        for chunk in _chunks(layout, box):
            row, column = divmod(chunk, layout.grid[1])
            pixels = self._chunk(planned.page, chunk, bodies.get(chunk))
            place = Box((0, row * rows, column * columns), (1, row * rows + len(pixels), (column + 1) * columns))
            common = place.intersection(Box((0, *box.start[1:]), (1, *box.stop[1:])))
            assert common is not None
            _, inside_y, inside_x = common.shifted((0, -place.start[1], -place.start[2])).slices
            _, y, x = common.shifted((0, -box.start[1], -box.start[2])).slices
            planned.plane[y, x] = pixels[inside_y, inside_x]

    def _chunk(self, page: Page, chunk: int, body: bytes | memoryview | None) -> NDArray[Any]:
        """A strip or tile, decoded once for all boxes that want it about now."""
        where = f"{self._source.name}, page {page.number}: {'tile' if page.layout.is_tiled else 'strip'} {chunk}"
        packing = page.layout.packing

        def make() -> NDArray[Any]:
            assert page.offsets is not None
            assert page.sizes is not None
            data = self._source.read(int(page.offsets[chunk]), int(page.sizes[chunk])) if body is None else body
            return decode(packing, data, page.layout.rows_of(chunk), where)

        return make() if packing.compression == 1 else self._decoded.get((page.number, chunk), make)


def _chunks(layout: Layout, box: Box) -> list[int]:
    """Numbers of the strips or tiles that a box touches."""
    across = layout.grid[1]
    cells = Box((0, *box.start[1:]), (1, *box.stop[1:])).cells((1, layout.packing.rows, layout.packing.columns))
    return [row * across + column for _, row, column in cells]


def _fill_rows(planned: _Planned, received: list[tuple[_Piece, bytes | memoryview]], box: Box) -> None:
    layout = planned.page.layout
    dtype = layout.packing.dtype
    for piece, body in received:
        shape, strides = (piece.rows, box.shape[2]), (layout.row_bytes, dtype.itemsize)
        pixels: NDArray[Any] = np.ndarray(shape, dtype, body, strides=strides)
        first = piece.first - box.start[1]
        planned.plane[first : first + piece.rows] = pixels


def _shown(ifd: Ifd, entry: Entry) -> Iterator[tuple[str, Scalar]]:
    """A tag's values, or its text and the keys in it."""
    path = f"/{ifd.number}/{tag_name(entry.tag)}"
    if entry.size_bytes > MAX_TEXT_BYTES:
        yield path, f"{entry.length} values, {entry.size_bytes} bytes"
        return
    raw = ifd.raw(entry.tag)
    if (text := as_text(entry.kind, raw)) is None:
        yield from numbers(path, entry.kind, raw, ifd.form.order)
        return
    yield path, shown_text(text)
    try:
        leaves = list(islice(text_leaves(decoded(raw), f"{ifd.where}: {tag_name(entry.tag)}"), MAX_KEYS))
    except Malformed as error:  # the text is there as it is, only its keys cannot be told
        leaves = [("/unreadable", str(error))]
    yield from ((f"{path}{key}", value) for key, value in leaves if len(key) <= MAX_PATH_CHARACTERS)
    if len(leaves) == MAX_KEYS:
        yield f"{path}/not_listed", f"keys after the first {MAX_KEYS}"
