"""The 1024 bytes that an MRC file begins with: read in either byte order, and held against the file's size.

MRC2014 (https://doi.org/10.1016/j.jsb.2015.04.002, https://www.ccpem.ac.uk/mrc-format/mrc2014/) with what came before
it and with IMOD's flags. Nothing is mapped or allocated here. What the file's extended header holds is read in
`_mrc_extended.py`, the voxels in `mrc.py`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from em_assets.errors import Malformed, Unsupported
from em_assets.volume import Zyx

ByteOrder = Literal["<", ">"]
ORDERS: tuple[ByteOrder, ByteOrder] = ("<", ">")
HEADER_BYTES = 1024
LABELS_AT, LABEL_BYTES, MAX_LABELS = 224, 80, 10
LAYOUT = "10i6f3i3f2i8s4si84s3f4s4sfi"
FIELDS = (
    *("nx", "ny", "nz", "mode", "nxstart", "nystart", "nzstart", "mx", "my", "mz"),
    *("cella/x", "cella/y", "cella/z", "cellb/alpha", "cellb/beta", "cellb/gamma", "mapc", "mapr", "maps"),
    *("dmin", "dmax", "dmean", "ispg", "nsymbt", "extra1", "exttyp", "nversion", "extra2"),
    *("origin/x", "origin/y", "origin/z", "map", "machst", "rms", "nlabl"),
)
"""The words of `LAYOUT`, by the names that the standard gives them."""
MAP, MAP_AT, STAMP_AT = b"MAP", 208, 212
STAMPS: dict[bytes, ByteOrder] = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}
"""The first two bytes of MACHST; the others say nothing."""
NO_STAMP = b"\0\0"
DTYPES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
ITEM_BYTES = {0: 1, 1: 2, 2: 4, 6: 2, 12: 2}
REFUSED_MODES = {
    3: "complex numbers (a transform)",
    4: "complex numbers (a transform)",
    16: "RGB colours",
    101: "4-bit numbers, two in a byte",
}
VOLUME_STACKS = range(401, 631)
"""ISPG of files that hold several volumes of MZ sections each, one after the other."""
IMOD_STAMP, IMOD_STAMP_AT = 0x444F4D49, 40
"""IMOD's mark, a word of `extra2` before its flags (https://bio3d.colorado.edu/imod/doc/mrc_format.txt)."""
SIGNED_BYTES, HALF_BYTES = 1, 16
"""Of IMOD's flags."""
UNLIKELY_SIDE = 2**24
"""A side that is swapped is as long as this, or longer."""
SINGLE_PRECISION = Fraction(1, 2**23)
"""A size and its product with a number of voxels, each rounded to single precision, differ by less than this share."""

Spacings = tuple[Fraction | None, Fraction | None, Fraction | None]
"""(z, y, x) in angstrom; None where the file does not say."""


@dataclass(frozen=True, slots=True)
class MrcHeader:
    """What the header says; `read_header` gives one that agrees with itself and with the file's size."""

    order: ByteOrder
    order_by: str
    """How it is known, in words."""
    values: Mapping[str, int | float | bytes]
    """By the names in `FIELDS`, as stored."""
    labels: tuple[bytes, ...]
    """All ten, as stored, however many the file says it uses."""

    def integer(self, name: str) -> int:
        value = self.values[name]
        assert isinstance(value, int), name
        return value

    def raw(self, name: str) -> bytes:
        value = self.values[name]
        assert isinstance(value, bytes), name
        return value

    @property
    def sections_rows_columns(self) -> Zyx:
        """Of the whole file, in its own order, slowest first."""
        return self.integer("nz"), self.integer("ny"), self.integer("nx")

    @property
    def places(self) -> Zyx | None:
        """As `places_of`."""
        return places_of(self.integer("maps"), self.integer("mapr"), self.integer("mapc"))

    @property
    def imod_flags(self) -> int | None:
        """None if the file does not bear IMOD's mark."""
        stamp, flags = struct.unpack_from(f"{self.order}2i", self.raw("extra2"), IMOD_STAMP_AT)
        return int(flags) if stamp == IMOD_STAMP else None

    @property
    def is_plausible(self) -> bool:
        """Whether it may say so if it is read in the right byte order: in the other one MAPC is 16777216."""
        mode = self.integer("mode")
        sides = self.sections_rows_columns
        is_sized = min(sides) > 0 and max(sides) < UNLIKELY_SIDE and self.integer("nsymbt") >= 0
        return is_sized and (mode in DTYPES or mode in REFUSED_MODES) and self.places is not None

    def fits(self, size_bytes: int) -> bool:
        """Whether it describes exactly a file of this size."""
        return self.is_plausible and self.integer("mode") in DTYPES and self.described_bytes == size_bytes

    @property
    def described_bytes(self) -> int:
        """Of the whole file. The mode is one of DTYPES."""
        voxels = math.prod(self.sections_rows_columns)
        return HEADER_BYTES + self.integer("nsymbt") + voxels * ITEM_BYTES[self.integer("mode")]


def looks_like_mrc(head: bytes, size_bytes: int | None = None) -> bool:
    """Whether a file that begins so is an MRC file: by its MAP, or, of an old one, by all else that it says.

    A file that has neither MAP nor MACHST is known only with its size.
    """
    if head[MAP_AT : MAP_AT + len(MAP)] == MAP:
        return True
    if len(head) < HEADER_BYTES:
        return False
    stamped = STAMPS.get(head[STAMP_AT : STAMP_AT + 2])
    if stamped is not None:
        return _unpacked(head, stamped).is_plausible
    return size_bytes is not None and any(_unpacked(head, order).fits(size_bytes) for order in ORDERS)


def read_header(raw: bytes, name: str, size_bytes: int) -> MrcHeader:
    """The header of a file of this size. Raises Malformed, naming field and value, and Unsupported for its voxels."""
    _require_header(raw, name, size_bytes)
    header = _in_its_order(raw, name, size_bytes)
    if not header.raw("map").startswith(MAP) and not header.fits(size_bytes):
        raise Malformed(
            f"{name}: MAP is {header.raw('map')!r}, expected b'MAP ', and its other fields do not describe its "
            f"{size_bytes} bytes either; it is damaged or no MRC file: get it again."
        )
    _require_sound(header, name, size_bytes)
    _require_readable(header, name)
    _require_size(header, name, size_bytes)
    return header


def size_by_header(raw: bytes, name: str) -> int:
    """How many bytes a file with this header has: of one whose size is not known, because it is packed.

    Raises Malformed and Unsupported as `read_header` does.
    """
    _require_header(raw, name, len(raw))
    header = _in_its_order(raw, name, None)
    _require_sound(header, name, None)
    _require_readable(header, name)
    return header.described_bytes


def places_of(maps: int, mapr: int, mapc: int) -> Zyx | None:
    """For sections, rows and columns, which of (z, y, x) each is: by MAPS, MAPR, MAPC, which count x as 1.

    None if these are not 1, 2, 3 in some order. Three zeros, as files from before 2000 have, mean the usual one.
    """
    if maps == mapr == mapc == 0:
        return 0, 1, 2
    return (3 - maps, 3 - mapr, 3 - mapc) if sorted((maps, mapr, mapc)) == [1, 2, 3] else None


def dtype_of(mode: int, imod_flags: int | None) -> str:
    """Bytes are signed, unless IMOD wrote them and says otherwise. The mode is one of DTYPES."""
    is_unsigned = mode == 0 and imod_flags is not None and not imod_flags & SIGNED_BYTES
    return "uint8" if is_unsigned else DTYPES[mode]


def spacings_angstrom(values: Mapping[str, object]) -> Spacings:
    """Distances of voxels, by the cell and the grid over it.

    None in all three directions for a cell with other angles than 90 degrees: its voxels are no boxes. None along z for
    a stack of pictures (ISPG 0, one section to a grid): what lies between those is no distance.
    """
    angles = [_number(values, f"cellb/{name}") for name in ("alpha", "beta", "gamma")]
    if any(angle not in (0, 90) for angle in angles):  # 0: not filled in
        return None, None, None
    z, y, x = (spacing_angstrom(_number(values, f"cella/{axis}"), _number(values, f"m{axis}")) for axis in "zyx")
    return None if is_picture_stack(values) else z, y, x


def is_picture_stack(values: Mapping[str, object]) -> bool:
    """Several pictures that are no sections of one volume: ISPG 0 and MZ 1, as MRC2014 has it."""
    ispg, mz, nz = (_number(values, name) for name in ("ispg", "mz", "nz"))
    return ispg == 0 and mz == 1 and nz > 1


def spacing_angstrom(edge: float, intervals: float) -> Fraction | None:
    """An edge of the cell divided into so many: the shortest decimal that single precision cannot tell from it.

    The header holds the product of size and count, often multiplied in single precision: 121.31999206542969 for 9
    voxels of 13.48. None where the edge is not positive and finite, or nothing divides it.
    """
    if not (math.isfinite(edge) and math.isfinite(intervals) and edge > 0 and intervals >= 1):
        return None
    whole, count = Fraction(edge), Fraction(intervals)
    for digits in range(17):
        shortest = Fraction(f"{edge / intervals:.{digits}e}")
        if abs(shortest * count - whole) <= whole * SINGLE_PRECISION:
            return shortest
    return whole / count


def _number(values: Mapping[str, object], name: str) -> float:
    """Not a number where there is none."""
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _unpacked(raw: bytes, order: ByteOrder) -> MrcHeader:
    labels = tuple(raw[LABELS_AT + n * LABEL_BYTES :][:LABEL_BYTES] for n in range(MAX_LABELS))
    return MrcHeader(order, "", dict(zip(FIELDS, struct.unpack_from(order + LAYOUT, raw), strict=True)), labels)


def _in_its_order(raw: bytes, name: str, size_bytes: int | None) -> MrcHeader:
    stamp = raw[STAMP_AT : STAMP_AT + 2]
    if stamp in STAMPS:
        return replace(_unpacked(raw, STAMPS[stamp]), order_by=f"by MACHST {stamp.hex(' ')}")
    candidates = [_unpacked(raw, order) for order in ORDERS] if stamp == NO_STAMP else []
    for header in candidates:
        if size_bytes is not None and header.fits(size_bytes):
            return replace(header, order_by="without MACHST: so read, the header describes the file's size")
    for header in candidates:
        if header.is_plausible:
            return replace(header, order_by="without MACHST: so read, the header makes sense")
    raise Malformed(
        f"{name}: MACHST is {raw[STAMP_AT : STAMP_AT + 4].hex(' ')}, expected 44 44 or 44 41 (little-endian) or 11 11 "
        "(big-endian), and nothing else says its byte order; it is damaged or no MRC file: get it again."
    )


def _require_header(raw: bytes, name: str, size_bytes: int) -> None:
    if len(raw) < HEADER_BYTES:
        raise Malformed(
            f"{name} ends at byte {size_bytes}, but an MRC header alone has {HEADER_BYTES}; it was cut: get it again."
        )


def _require_sound(header: MrcHeader, name: str, size_bytes: int | None) -> None:
    """Every field that says where voxels lie, by itself."""
    for field in ("nx", "ny", "nz"):
        if header.integer(field) < 1:
            raise _malformed(name, field, header.integer(field), "a positive number")
    mode = header.integer("mode")
    if mode not in DTYPES and mode not in REFUSED_MODES:
        raise _malformed(name, "mode", mode, f"one of {', '.join(map(str, DTYPES))}")
    extended = header.integer("nsymbt")
    if extended < 0 or (size_bytes is not None and extended > size_bytes - HEADER_BYTES):
        within = "" if size_bytes is None else f" within the {size_bytes} bytes of the file"
        raise _malformed(name, "nsymbt", extended, f"bytes of an extended header{within}")
    if header.places is None:
        found = ", ".join(str(header.integer(field)) for field in ("mapc", "mapr", "maps"))
        raise _malformed(name, "mapc, mapr, maps", found, "1, 2, 3 in some order")
    if header.integer("ispg") in VOLUME_STACKS:
        per_volume, sections = header.integer("mz"), header.integer("nz")
        if per_volume < 1 or sections % per_volume:
            raise _malformed(name, "mz", per_volume, f"a divisor of NZ, {sections}, in a stack of volumes")


def _require_readable(header: MrcHeader, name: str) -> None:
    mode, flags = header.integer("mode"), header.imod_flags
    if mode == 0 and flags is not None and flags & HALF_BYTES:
        mode = 101
    if mode in REFUSED_MODES:
        raise Unsupported(
            f"{name} holds {REFUSED_MODES[mode]} (MODE {header.integer('mode')}); accepted are "
            f"{', '.join(f'{number} ({dtype})' for number, dtype in DTYPES.items())}."
        )


def _require_size(header: MrcHeader, name: str, size_bytes: int) -> None:
    expected = header.described_bytes
    if expected == size_bytes:
        return
    nz, ny, nx = header.sections_rows_columns
    what = "it was cut: get it again" if size_bytes < expected else "its header is not of this file: get it again"
    raise Malformed(
        f"{name} has {size_bytes} bytes, but its header describes {expected}: {HEADER_BYTES} + NSYMBT "
        f"{header.integer('nsymbt')} + {nx} x {ny} x {nz} (NX, NY, NZ) voxels of "
        f"{DTYPES[header.integer('mode')]}; {what}."
    )


def _malformed(name: str, field: str, found: int | str, expected: str) -> Malformed:
    return Malformed(f"{name}: {field.upper()} is {found}, expected {expected}; it is damaged: get it again.")
