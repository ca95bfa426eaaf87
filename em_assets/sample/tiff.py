"""Writes TIFF stacks in the two byte layouts that publishers serve: ImageJ's (IDR) and libtiff's as ITK uses it (EPFL).

Independent of `formats/tiff.py`; both layouts are those of the real files to the byte, but for the sizes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from em_assets.volume import Zyx

Pixels = npt.NDArray[np.uint8]
Page = Callable[[int], Pixels | None]

ASCII, SHORT, LONG, RATIONAL = 2, 3, 4, 5
ITEM_FORMATS = {SHORT: "H", LONG: "I"}
HEADER_BYTES = 8
ENTRY_BYTES = 12
INLINE_BYTES = 4
"""A value that is longer lies elsewhere, and the entry holds its offset."""
PIXELS_PER_UM = (50_000_000, 1_000_000)
"""As a rational: 20 nm."""
ITK_ROWS_PER_STRIP = 4
ITK_SOFTWARE = b"InsightToolkit\0"


def imagej_description(slices: int) -> bytes:
    """As ImageJ 1.52p wrote it: the micro sign is six ASCII characters, and a line feed and NUL end the text."""
    lines = ["ImageJ=1.52p", f"images={slices}", f"slices={slices}", r"unit=\u00B5m", "spacing=0.02", "loop=false"]
    return "\n".join([*lines, "min=36.0", "max=199.0", "\0"]).encode()


def write_imagej(file: Path, pages: Pixels) -> None:
    """Big endian, 13 tags, no Compression: IFD 0 at 8, its values, all pixels in one piece, then the other IFDs."""
    count, height, width = pages.shape
    description = imagej_description(count)
    description_at = HEADER_BYTES + _ifd_bytes(13)
    resolution_at = description_at + len(description)
    pixels_at = resolution_at + 2 * struct.calcsize(">2I")
    pages_end = pixels_at + pages.size

    def ifd(page: int) -> bytes:
        entries = [
            _entry(">", 254, LONG, [0]),
            _entry(">", 256, LONG, [width]),
            _entry(">", 257, LONG, [height]),
            _entry(">", 258, SHORT, [8]),
            _entry(">", 262, SHORT, [1]),
            struct.pack(">HHII", 270, ASCII, len(description), description_at),
            _entry(">", 273, LONG, [pixels_at + page * height * width]),
            _entry(">", 277, SHORT, [1]),
            _entry(">", 278, SHORT, [height]),
            _entry(">", 279, LONG, [height * width]),
            struct.pack(">HHII", 282, RATIONAL, 1, resolution_at),
            struct.pack(">HHII", 283, RATIONAL, 1, resolution_at + 8),
            _entry(">", 296, SHORT, [1]),
        ]
        following = 0 if page + 1 == count else pages_end + page * _ifd_bytes(len(entries))
        return _ifd(">", entries, following)

    with file.open("wb") as stream:
        stream.write(b"MM" + struct.pack(">HI", 42, HEADER_BYTES))
        stream.write(ifd(0) + description + struct.pack(">4I", *PIXELS_PER_UM, *PIXELS_PER_UM))
        stream.write(np.ascontiguousarray(pages).data)
        stream.writelines(ifd(page) for page in range(1, count))


def write_itk(file: Path, shape: Zyx, page: Page) -> None:
    """Little endian, 14 tags, strips of 4 rows; each page's pixels come before its IFD, which begins on an even byte.

    `page` gives the pixels of one page, or None for zeros that are not written (a hole in the file): so a file of
    several gigabytes takes a few megabytes of the disk.
    """
    count = shape[0]
    with file.open("wb") as stream:
        stream.write(b"II" + struct.pack("<HI", 42, 0))
        link_at = INLINE_BYTES  # where the offset of the next IFD is to be written
        for number in range(count):
            pixels_at = stream.seek(0, 2)
            _write_page(stream, page(number), shape)
            ifd_at = stream.tell() + stream.tell() % 2
            stream.seek(ifd_at)
            stream.write(_itk_ifd(ifd_at, pixels_at, number, shape))
            stream.seek(link_at)
            stream.write(struct.pack("<I", ifd_at))
            link_at = ifd_at + _ifd_bytes(14) - INLINE_BYTES


def _write_page(stream: BinaryIO, pixels: Pixels | None, shape: Zyx) -> None:
    _, height, width = shape
    if pixels is None:
        stream.seek(height * width, 1)
    else:
        assert pixels.shape == (height, width)
        stream.write(np.ascontiguousarray(pixels).data)


def _itk_ifd(at: int, pixels_at: int, page: int, shape: Zyx) -> bytes:
    """The IFD and the values that do not fit into it."""
    count, height, width = shape
    strip_bytes = ITK_ROWS_PER_STRIP * width
    strips = -(-height // ITK_ROWS_PER_STRIP)
    sizes = [min(strip_bytes, height * width - strip * strip_bytes) for strip in range(strips)]
    offsets = [pixels_at + strip * strip_bytes for strip in range(strips)]
    tables = struct.pack(f"<{2 * strips}I", *offsets, *sizes) if strips > 1 else b""
    offsets_at = at + _ifd_bytes(14)
    sizes_at = offsets_at + len(tables) // 2
    software_at = offsets_at + len(tables)
    entries = [
        _entry("<", 254, LONG, [2]),
        _entry("<", 256, SHORT, [width]),
        _entry("<", 257, SHORT, [height]),
        _entry("<", 258, SHORT, [8]),
        _entry("<", 259, SHORT, [1]),
        _entry("<", 262, SHORT, [1]),
        _table("<", 273, offsets, offsets_at),
        _entry("<", 274, SHORT, [1]),
        _entry("<", 277, SHORT, [1]),
        _entry("<", 278, SHORT, [ITK_ROWS_PER_STRIP]),
        _table("<", 279, sizes, sizes_at),
        _entry("<", 284, SHORT, [1]),
        _entry("<", 297, SHORT, [page, count]),
        struct.pack("<HHII", 305, ASCII, len(ITK_SOFTWARE), software_at),
    ]
    return _ifd("<", entries, 0) + tables + ITK_SOFTWARE


Order = Literal["<", ">"]


def _ifd_bytes(entries: int) -> int:
    return 2 + entries * ENTRY_BYTES + INLINE_BYTES


def _ifd(order: Order, entries: list[bytes], following: int) -> bytes:
    return struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "I", following)


def _entry(order: Order, tag: int, kind: int, values: Iterable[int]) -> bytes:
    """An entry whose value fits into it; a shorter one is followed by zeros."""
    items = list(values)
    packed = struct.pack(f"{order}{len(items)}{ITEM_FORMATS[kind]}", *items)
    return struct.pack(order + "HHI", tag, kind, len(items)) + packed.ljust(INLINE_BYTES, b"\0")


def _table(order: Order, tag: int, values: list[int], at: int) -> bytes:
    """An entry whose values lie at an offset; a single one fits into the entry."""
    if len(values) == 1:
        return _entry(order, tag, LONG, values)
    return struct.pack(order + "HHII", tag, LONG, len(values), at)
