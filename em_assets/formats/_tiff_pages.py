"""The pages of a TIFF as planes of a volume: their shape, type and where their pixels lie.

TIFF 6.0. Reads the directories (`_tiff_ifd.py`) and the text that says what the pages are (`_tiff_text.py`), never a
pixel. Whatever would decode to something else than grey values is refused here by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed, Unsupported
from em_assets.formats._bytes import ByteSource
from em_assets.formats._tiff_decode import COMPRESSIONS, NOT_READ, Packing
from em_assets.formats._tiff_ifd import Entry, Form, Ifd, IfdChain, read_header
from em_assets.formats._tiff_text import Stack, read_stack, require_one_plane

MAX_SIDE = 2**31 - 1
MAX_CHUNK_BYTES = 256 * 2**20
"""Decoded, of one strip or tile: it has to fit into memory whole."""
BOMB_RATIO = 1000
"""Real images do not shrink to a thousandth; where they do (empty ones), small strips are let pass."""
SMALL_CHUNK_BYTES = 64 * 2**20
MAX_PLACES = 2**22
"""Strips or tiles of one page."""
MAX_KEPT_PLACES = 2**24
"""Those of all pages that do not lie in one piece; each takes 16 bytes of memory."""

REDUCED = 1
"""NewSubfileType, bit 0: a smaller copy of another page."""
LAYOUT_TAGS = (256, 257, 258, 259, 262, 266, 277, 278, 317, 322, 323, 324, 339, 32997, 33629)
PLACES = (273, 279, 324, 325)
"""Tags that say where pixels lie: different on every page."""
PHOTOMETRIC = {2: "RGB", 3: "palette colour", 4: "a transparency mask", 5: "CMYK", 6: "YCbCr", 8: "CIE Lab"} | {
    32803: "a colour filter array (CFA)",
    34892: "raw camera data",
}
KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
"""SampleFormat to numpy; 4, undefined, is read as if it were not there (TIFF 6.0, section 19)."""
LayoutKey = tuple[tuple[int, int, bytes], ...]
DTYPES = {"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a page is cut into strips or tiles, and how these are stored. Shared by all pages that are alike."""

    height: int
    width: int
    packing: Packing
    is_tiled: bool

    @property
    def page_bytes(self) -> int:
        return self.height * self.width * self.packing.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        return self.width * self.packing.dtype.itemsize

    @property
    def grid(self) -> tuple[int, int]:
        """Strips or tiles down and across."""
        return -(-self.height // self.packing.rows), -(-self.width // self.packing.columns)

    def rows_of(self, chunk: int) -> int:
        """Rows that a strip has; tiles are always whole."""
        if self.is_tiled:
            return self.packing.rows
        return min(self.packing.rows, self.height - chunk * self.packing.rows)

    def describe(self) -> str:
        return f"{self.height} x {self.width} (y, x) {self.packing.dtype.name}"


class _Places(NamedTuple):
    """Where the strips or tiles of a page lie."""

    what: str
    """`strip` or `tile`."""
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    """Bytes, as stored."""


@dataclass(frozen=True, slots=True)
class Page:
    """One plane: where its pixels lie."""

    number: int
    """Of its directory in the chain, from 0."""
    ifd_at: int
    layout: Layout
    start: int | None
    """Of the first pixel, where the page lies uncompressed in one piece; else None and the next two tell."""
    offsets: NDArray[np.int64] | None = None
    sizes: NDArray[np.int64] | None = None


@dataclass
class TagLog:
    """The entries worth showing: all of the first page, and those of later pages that differ from it."""

    first: Ifd | None = None
    differing: list[tuple[Ifd, Entry]] = field(default_factory=list)
    not_listed: int = 0
    """Further differences, or values too large to compare, that were not noted."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """(number, what it is) of directories that are no planes."""

    MAX_DIFFERING = 10_000
    COMPARED_BYTES = 64 * 2**10
    """Larger values are compared by their place only."""
    BUDGET_BYTES = 64 * 2**20

    def __post_init__(self) -> None:
        self._compared = 0
        self._values: dict[int, bytes] = {}

    def note(self, ifd: Ifd) -> None:
        if self.first is None:
            self.first = ifd
            return
        lean: Ifd | None = None
        for entry in ifd.entries.values():
            if entry.tag in PLACES or not self._differs(ifd, entry):
                continue
            if len(self.differing) >= self.MAX_DIFFERING:
                self.not_listed += 1
                continue
            lean = lean or Ifd(ifd.source, ifd.form, ifd.number, ifd.at, {})
            lean.entries[entry.tag] = entry
            self.differing.append((lean, entry))

    def _differs(self, ifd: Ifd, entry: Entry) -> bool:
        assert self.first is not None
        known = self.first.entries.get(entry.tag)
        if known is None or known[1:3] != entry[1:3]:
            return True
        if known.field == entry.field:
            return False
        if entry.size_bytes <= len(entry.field):
            return known.field[: entry.size_bytes] != entry.field[: entry.size_bytes]
        if entry.size_bytes > self.COMPARED_BYTES or self._compared > self.BUDGET_BYTES:
            return True
        if entry.tag not in self._values:
            self._values[entry.tag] = bytes(self.first.raw(entry.tag))
        self._compared += entry.size_bytes
        return self._values[entry.tag] != ifd.raw(entry.tag)


@dataclass(frozen=True)
class Contents:
    """A TIFF that was walked and checked to its end."""

    form: Form
    pages: list[Page]
    stack: Stack
    planes: NDArray[np.int64]
    """[channel, z] -> index in `pages`, or, where they follow one page, how many planes after it."""
    follow_one_page: bool
    tags: TagLog


def read_contents(source: ByteSource, max_bytes: int) -> Contents:
    """Walks all directories. `max_bytes`: compressed files that claim to decode to more must look like images."""
    form = read_header(source)
    chain = IfdChain(source, form)
    builder = _Builder(source)
    tags = TagLog()
    stack = Stack()
    for ifd in chain:
        if ifd.integer(254, 0) & REDUCED:
            tags.skipped.append((ifd.number, "a reduced-resolution page, not read"))
            continue
        builder.add(ifd)
        tags.note(ifd)
        if ifd is tags.first:
            layout = builder.pages[0].layout
            stack = read_stack(ifd, layout.height, layout.width)
            chain.expected = stack.said
        elif stack.is_page_by_page:
            layout = builder.pages[-1].layout
            require_one_plane(ifd, layout.height, layout.width)
    if not builder.pages:
        raise Malformed(f"{source.name} has no page of full resolution ({len(tags.skipped)} reduced); get it again.")
    planes, follow_one_page = _planes(source, builder.pages, stack)
    _require_plausible(source, builder, planes.size, max_bytes)
    return Contents(form, builder.pages, stack, planes, follow_one_page, tags)


def _planes(source: ByteSource, pages: list[Page], stack: Stack) -> tuple[NDArray[np.int64], bool]:
    if stack.order is None:
        return np.arange(len(pages))[None], False
    claimed = stack.order.size
    if claimed == len(pages):
        return stack.order, False
    if len(pages) == 1 and stack.may_follow_one_page and pages[0].start is not None:
        return stack.order, True
    raise Malformed(
        f"{source.name}: its page structure is broken: {len(pages)} pages found, expected {stack.said}; it was cut, or "
        "changed by a program that kept an old description: get it again."
    )


def _require_plausible(source: ByteSource, builder: _Builder, planes: int, max_bytes: int) -> None:
    """The volume as a whole against the file's size."""
    first = builder.pages[0]
    claimed = planes * first.layout.page_bytes
    if builder.is_compressed:
        if claimed > max_bytes and claimed > BOMB_RATIO * source.size_bytes:
            raise Malformed(
                f"{source.name}: its decoded size exceeds the limit: {planes} pages of {first.layout.describe()} are "
                f"{_size(claimed)}, from a file of {source.size_bytes} bytes; EM_ASSETS_MAX_BYTES is {max_bytes}."
            )
        return
    follow_one_page = planes > len(builder.pages)
    if claimed > source.size_bytes - (first.start or 0 if follow_one_page else 0):
        raise Malformed(
            f"{source.name} claims {_size(claimed)} of pixels ({planes} pages of {first.layout.describe()}), but the "
            f"file has {source.size_bytes} bytes; it was cut or is damaged: get it again."
        )


class _Builder:
    """Makes pages of directories, in order, and holds them against the first."""

    def __init__(self, source: ByteSource) -> None:
        self.pages: list[Page] = []
        self.is_compressed = False
        self._source = source
        self._layouts: dict[LayoutKey, Layout] = {}
        self._table_bytes = 0
        self._kept_places = 0

    def add(self, ifd: Ifd) -> None:
        layout = self._layouts.get(key := _layout_key(ifd))
        if layout is None:
            layout = self._layouts[key] = _layout(ifd)
        self._require_same(ifd, layout)
        places = self._places(ifd, layout)
        start = self._start(layout, places.offsets)
        self.is_compressed |= layout.packing.compression != 1
        if start is not None:
            self.pages.append(Page(ifd.number, ifd.at, layout, start))
            return
        self._kept_places += len(places.offsets)
        if self._kept_places > MAX_KEPT_PLACES:
            raise Unsupported(f"{ifd.where}: the file has more than {MAX_KEPT_PLACES} strips or tiles; cut it up.")
        self.pages.append(Page(ifd.number, ifd.at, layout, None, places.offsets, places.sizes))

    def _require_same(self, ifd: Ifd, layout: Layout) -> None:
        if not self.pages:
            return
        first = self.pages[0].layout
        if (layout.height, layout.width, layout.packing.dtype) != (first.height, first.width, first.packing.dtype):
            raise Malformed(
                f"{self._source.name}: page {ifd.number} differs: it is {layout.describe()}, page "
                f"{self.pages[0].number} is {first.describe()}; pages of one volume are alike, save the others apart."
            )

    def _places(self, ifd: Ifd, layout: Layout) -> _Places:
        """Of the strips or tiles; all inside the file."""
        tags, what = ((324, 325), "tile") if layout.is_tiled else ((273, 279), "strip")
        table = ifd.entries.get(tags[0])
        self._table_bytes += table.size_bytes if table and table.length > 1 else 0
        if self._table_bytes > self._source.size_bytes:  # each page has a table of its own
            raise Malformed(f"{ifd.where}: the tables of {what}s up to here are larger than the file; it is damaged.")
        if layout.packing.compression == 1 and layout.page_bytes > self._source.size_bytes:
            raise Malformed(
                f"{ifd.where} claims {layout.describe()} pixels, {_size(layout.page_bytes)}, but the file has "
                f"{self._source.size_bytes} bytes; it was cut or is damaged: get it again."
            )
        found, needed = 0 if table is None else table.length, layout.grid[0] * layout.grid[1]
        if found != needed:
            raise Malformed(
                f"{ifd.where} has {found} {what}s, but {layout.describe()} pixels in {what}s of {layout.packing.rows} "
                f"x {layout.packing.columns} need {needed}; it is damaged: get it again."
            )
        if found > MAX_PLACES:
            raise Unsupported(f"{ifd.where} has {found} {what}s, more than {MAX_PLACES}; save it in larger ones.")
        places = _read_places(ifd, layout, what, tags)
        _require_inside(ifd, places)
        if layout.packing.compression != 1:
            _require_no_bomb(ifd, layout, places)
        return places

    def _start(self, layout: Layout, offsets: NDArray[np.int64]) -> int | None:
        """Of the first pixel, where all strips of an uncompressed page follow one another."""
        if layout.packing.compression != 1 or layout.grid[1] > 1 or layout.packing.columns != layout.width:
            return None
        strip_bytes = layout.packing.size_bytes
        in_one_piece = len(offsets) == 1 or bool((np.diff(offsets) == strip_bytes).all())
        return int(offsets[0]) if in_one_piece else None


def _read_places(ifd: Ifd, layout: Layout, what: str, tags: tuple[int, int]) -> _Places:
    offsets, counts = ifd.integers(tags[0]), ifd.integers(tags[1])
    assert offsets is not None
    plain = np.full(len(offsets), layout.packing.size_bytes, np.int64)
    plain[-1] = layout.rows_of(len(offsets) - 1) * layout.packing.columns * layout.packing.dtype.itemsize
    if layout.packing.compression == 1:
        counts = plain if counts is None else counts
    if counts is None or len(counts) != len(offsets):
        raise Malformed(f"{ifd.where} has {len(offsets)} {what}s, but does not say how long each is; it is damaged.")
    if (empty := counts == 0).any():
        raise Unsupported(
            f"{ifd.where}: {what} {empty.argmax()} was never written (a sparse TIFF); what is missing cannot be told "
            "from black, save it whole."
        )
    if layout.packing.compression != 1:
        return _Places(what, offsets, counts)
    if (short := counts < plain).any():
        at = short.argmax()
        raise Malformed(
            f"{ifd.where}: {what} {at} has {counts[at]} bytes, expected {plain[at]}; it is damaged: get it again."
        )
    return _Places(what, offsets, plain)


def _require_inside(ifd: Ifd, places: _Places) -> None:
    size = ifd.source.size_bytes
    if (outside := places.offsets > size - places.sizes).any():
        at = outside.argmax()
        raise Malformed(
            f"{ifd.where}: {places.what} {at} needs {places.sizes[at]} bytes at offset {places.offsets[at]}, but the "
            f"file has {size} bytes; it was cut: get it again."
        )


def _require_no_bomb(ifd: Ifd, layout: Layout, places: _Places) -> None:
    decoded = layout.packing.size_bytes
    if decoded > SMALL_CHUNK_BYTES and (bomb := places.sizes < decoded // BOMB_RATIO).any():
        at = bomb.argmax()
        raise Malformed(
            f"{ifd.where}: the decoded size of {places.what} {at} exceeds the limit: {_size(decoded)} from "
            f"{places.sizes[at]} bytes, more than {BOMB_RATIO} times as much; it is damaged or made to fill the memory."
        )


def _layout_key(ifd: Ifd) -> LayoutKey:
    """What decides the layout. A single number has at most 8 bytes; of anything longer only its presence matters."""
    entries = [ifd.entries[tag] for tag in LAYOUT_TAGS if tag in ifd.entries]
    return tuple((e.tag, e.kind, bytes(ifd.raw(e.tag)) if e.size_bytes <= 8 else b"") for e in entries)


def _layout(ifd: Ifd) -> Layout:
    width, height = ifd.integer(256), ifd.integer(257)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise Malformed(
            f"{ifd.where} has invalid dimensions, {height} x {width} (y, x); expected 1 to {MAX_SIDE}: get it again."
        )
    _require_grey(ifd)
    dtype = _dtype(ifd)
    is_tiled = 324 in ifd.entries
    if is_tiled:
        rows, columns = ifd.integer(323), ifd.integer(322)
    else:
        rows, columns = min(ifd.integer(278, height) or height, height), width
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise Malformed(f"{ifd.where} has invalid dimensions of tiles, {rows} x {columns} (y, x); it is damaged.")
    packing = Packing(dtype, _compression(ifd), _predictor(ifd, dtype), rows, columns)
    if packing.size_bytes > MAX_CHUNK_BYTES and packing.compression != 1:
        raise Unsupported(
            f"{ifd.where} is compressed in pieces whose decoded size exceeds the limit: {rows} x {columns} (y, x) "
            f"pixels, {_size(packing.size_bytes)}, are more than {_size(MAX_CHUNK_BYTES)}; save it in smaller strips."
        )
    return Layout(height, width, packing, is_tiled)


def _require_grey(ifd: Ifd) -> None:
    """Raises Unsupported, naming the kind of picture, for all but plain grey values."""
    photometric, samples = ifd.integer(262, 1), ifd.integer(277, 1)
    if photometric not in (0, 1) or samples != 1:
        grey = "a grey image with channels" if photometric in (0, 1) else f"of photometric interpretation {photometric}"
        kind = PHOTOMETRIC.get(photometric, grey)
        raise Unsupported(f"{ifd.where} is {kind} ({samples} samples per pixel); only single grey values are read.")
    for tag, kind in ((32997, "a volume in one page (ImageDepth)"), (33629, "a MetaMorph stack")):
        if tag in ifd.entries and (tag != 32997 or ifd.integer(tag) != 1):
            raise Unsupported(f"{ifd.where} is {kind}, which is not read; save it as one page per slice.")
    if ifd.integer(266, 1) != 1:
        raise Unsupported(f"{ifd.where} stores its bits in reverse (FillOrder 2), which is not read.")


def _dtype(ifd: Ifd) -> np.dtype[Any]:
    bits, sample_format = ifd.integer(258, 1), ifd.integer(339, 1)
    if bits % 8 or bits == 0:
        raise Unsupported(f"{ifd.where} has {bits}-bit pixels; read are 8, 16, 32 and 64 bits.")
    name = f"{KINDS.get(sample_format, '?')}{bits // 8}"
    if name not in DTYPES:
        kind = {"f2": "float16", "?": "complex"}.get(name if name == "f2" else name[0], f"{bits}-bit")
        raise Unsupported(f"{ifd.where} has {kind} pixels (SampleFormat {sample_format}), which are not read.")
    order: Any = ifd.form.order
    return np.dtype(name).newbyteorder(order)


def _compression(ifd: Ifd) -> int:
    compression = ifd.integer(259, 1)
    if compression not in COMPRESSIONS:
        name = NOT_READ.get(compression, "unknown")
        accepted = ", ".join(sorted(set(COMPRESSIONS.values())))
        raise Unsupported(f"{ifd.where} is compressed by {name} ({compression}); read are {accepted}.")
    return compression


def _predictor(ifd: Ifd, dtype: np.dtype[Any]) -> int:
    predictor = ifd.integer(317, 1)
    if ifd.integer(259, 1) == 1:  # has no meaning without compression
        return 1
    if predictor not in (1, 2, 3) or (predictor == 3 and dtype.kind != "f"):
        raise Unsupported(f"{ifd.where} uses predictor {predictor} for {dtype.name} pixels, which is not read.")
    return predictor


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
