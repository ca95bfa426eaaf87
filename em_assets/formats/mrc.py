"""MRC and CCP4 files (`.mrc`, `.rec`, `.st`, `.map`): one volume, or one of several, as (z, y, x).

The header is checked in `_mrc_header.py` before anything is mapped; what it says beside the voxels is in
`_mrc_extended.py`. A packed file (`.mrc.gz`, `.mrc.bz2`) comes here unpacked, by `_packed.py`. ORIGIN and NSTART are
tags only: writers disagree about their sign, unit and frame, so they place nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Mismatch, Unsupported
from em_assets.formats._boxes import checked_box, map_boxes
from em_assets.formats._bytes import ByteSource
from em_assets.formats._mrc_extended import extended_tags, header_tags
from em_assets.formats._mrc_header import (
    HEADER_BYTES,
    ITEM_BYTES,
    VOLUME_STACKS,
    MrcHeader,
    dtype_of,
    is_picture_stack,
    read_header,
    spacings_angstrom,
)
from em_assets.formats._raw_array import RawArray
from em_assets.formats._units import to_nanometres
from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, Scalar
from em_assets.settings import Settings
from em_assets.volume import Box, VolumeInfo, Zyx, zyx

T = TypeVar("T")
ORDER_NAMES = {"<": "little-endian", ">": "big-endian"}
LARGEST_SIGNED_BYTE = 127


def open_mrc(source: ByteSource, settings: Settings, *, dataset: str | None = None) -> MrcReader:
    """The volume of the file, or of a stack of volumes the one that `dataset` numbers, from 0.

    Raises Malformed, naming field and value, Unsupported for voxels that are no real numbers and for a stack of which
    none is named, Mismatch if `dataset` is not there. Reads headers, no voxels.
    """
    return MrcReader(source, settings, dataset)


class MrcReader:
    """A `VolumeReader`. Safe for use by several threads."""

    def __init__(self, source: ByteSource, settings: Settings, dataset: str | None) -> None:
        self._source = source
        self._settings = settings
        raw = bytes(source.read(0, min(HEADER_BYTES, source.size_bytes)))
        self._header = header = read_header(raw, source.name, source.size_bytes)
        stored, start = _volume_of(header, dataset, source.name)
        dtype = dtype_of(header.integer("mode"), header.imod_flags)
        typed = np.dtype(dtype).newbyteorder(header.order)
        self._array = RawArray(source, start, stored, typed, connections=settings.connections_per_host)
        assert header.places is not None
        self._places = header.places
        self._turn = tuple(self._places.index(axis) for axis in range(3))
        z, y, x = (None if n is None else to_nanometres(n, "angstrom") for n in spacings_angstrom(header.values))
        self.pixel_size_nm = None if y is None or x is None else (y, x)
        """(y, x), also where z is not stated."""
        size_nm = None if z is None or self.pixel_size_nm is None else (z, *self.pixel_size_nm)
        section = self._turned((1, stored[1], stored[2]))
        self.info = VolumeInfo(self._turned(stored), dtype, size_nm, section)

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """The voxels of a box, of the whole volume without one; of a local file a view where that is possible."""
        voxels = self._array.read(self._stored_box(box))
        return np.ascontiguousarray(voxels.transpose(self._turn))

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """`/nx`: the header's fields by the standard's names, `/label/0`, `/extended/0/...`; `/read_as/...` is ours."""
        header = self._header
        yield from header_tags(header)
        yield from extended_tags(self._source, header)
        yield from _read_as(header, self.info.dtype)

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        return self._array.plan([self._stored_box(box) for box in boxes])

    @property
    def sampler(self) -> Callable[[Zyx], float] | None:
        """Reads one voxel by another way than `read`. Of a local file only: of a remote one each costs a request."""
        return self._sample if self._source.mapped() is not None else None

    def map_regions(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[RegionOutcome[T]]:
        return map_boxes(
            boxes,
            self.read,
            work,
            sample=self.sampler,
            source_url=self._source.name,
            workers=self._settings.workers,
            on_bytes=on_bytes,
        )

    def _turned(self, stored: Zyx) -> Zyx:
        """(sections, rows, columns) as (z, y, x)."""
        return zyx([stored[axis] for axis in self._turn])

    def _stored(self, position: Zyx) -> Zyx:
        """(z, y, x) as (sections, rows, columns)."""
        return zyx([position[place] for place in self._places])

    def _stored_box(self, box: Box | None) -> Box:
        box = checked_box(self.info, box, self._source.name)
        return Box(self._stored(box.start), self._stored(box.stop))

    def _sample(self, position: Zyx) -> float:
        return self._array.sample(self._stored(position))


def _volume_of(header: MrcHeader, dataset: str | None, name: str) -> tuple[Zyx, int]:
    """(sections, rows, columns) of the wanted volume, and the byte at which it begins."""
    sections, rows, columns = header.sections_rows_columns
    start = HEADER_BYTES + header.integer("nsymbt")
    count = 1
    if header.integer("ispg") in VOLUME_STACKS:
        count, sections = sections // header.integer("mz"), header.integer("mz")
    stored = (sections, rows, columns)
    if dataset is None:
        if count > 1:
            raise Unsupported(f"{name} holds {count} volumes; name one as dataset: 0 to {count - 1}.")
        return stored, start
    if not re.fullmatch(r"\d{1,9}", dataset, re.ASCII) or int(dataset) >= count:
        raise Mismatch(f"{name} has no volume {dataset!r}; it has 0{f' to {count - 1}' if count > 1 else ''}.")
    return stored, start + int(dataset) * math.prod(stored) * ITEM_BYTES[header.integer("mode")]


def _read_as(header: MrcHeader, dtype: str) -> Iterator[tuple[str, Scalar]]:
    """What was decided where the header leaves something open, and why."""
    yield "/read_as/byte_order", f"{ORDER_NAMES[header.order]}, {header.order_by}"
    if header.integer("mode") == 0:
        yield "/read_as/bytes", f"{dtype}, {_sign_reason(header)}"
    if dtype == "float16":
        yield "/read_as/half", "float16 (MODE 12); a dataset stores it as float32, which holds each of them exactly"
    if header.integer("maps") == 0:
        yield "/read_as/axes", "MAPC, MAPR and MAPS are not filled in: columns are x, rows y, sections z"
    angles = [header.values[f"cellb/{angle}"] for angle in ("alpha", "beta", "gamma")]
    if any(angle not in (0, 90) for angle in angles):
        yield "/read_as/voxel_size", "none: the cell's angles are not 90 degrees, so its voxels are no boxes"
    elif is_picture_stack(header.values):
        yield "/read_as/voxel_size", "none along z: ISPG 0 and MZ 1 say that the sections are single pictures"


def _sign_reason(header: MrcHeader) -> str:
    flags, largest = header.imod_flags, header.values["dmax"]
    if flags is not None:
        return f"as IMOD's flags ({flags}) say"
    if isinstance(largest, float) and largest > LARGEST_SIGNED_BYTE:
        return f"as MRC2014 has mode 0, although DMAX is {largest:g}: whoever wrote it may have meant uint8"
    return "as MRC2014 has mode 0"
