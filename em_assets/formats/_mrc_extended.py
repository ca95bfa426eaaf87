"""What an MRC file's headers say, as tags: the first 1024 bytes, and the extended header of FEI, SerialEM and others.

CCP4's is text, 80 characters a line. Of a header of any other kind only its place and length are told. Of later
sections only what differs from the first is listed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from functools import partial

from em_assets.formats._bytes import ByteSource
from em_assets.formats._mrc_header import HEADER_BYTES, MrcHeader
from em_assets.formats.reader import Scalar

Values = dict[str, Scalar]
MAX_SECTIONS = 4096
MAX_SECTION_BYTES = 16 * 2**20
"""Of all that are listed."""
MAX_DIFFERING = 10_000
LINE_BYTES = 80
MAX_LINES = 1000
NUMBERED = (b"SERI", b"AGAR", b"MRCO")
"""Kinds whose sections are described by numbers that the header counts; so may be one that is not named."""
COUNTS_AT = 16
"""Within `extra2`: integers (or SerialEM's bytes) and reals (or its flags) per section, two bytes each."""

FEI = (
    "Metadata size i|Metadata version i|Bitmask 1 I|Timestamp d|Microscope type 16|D-Number 16|Application 16|"
    "Application version 16|HT d|Dose d|Alpha tilt d|Beta tilt d|X-Stage d|Y-Stage d|Z-Stage d|Tilt axis angle d|"
    "Dual axis rotation d|Pixel size X d|Pixel size Y d|Unused range 48|Defocus d|STEM Defocus d|Applied defocus d|"
    "Instrument mode i|Projection mode i|Objective lens mode 16|High magnification mode 16|Probe mode i|EFTEM On ?|"
    "Magnification d|Bitmask 2 I|Camera length d|Spot index i|Illuminated area d|Intensity d|Convergence angle d|"
    "Illumination mode 16|Wide convergence angle range ?|Slit inserted ?|Slit width d|Acceleration voltage offset d|"
    "Drift tube voltage d|Energy shift d|Shift offset X d|Shift offset Y d|Shift X d|Shift Y d|Integration time d|"
    "Binning Width i|Binning Height i|Camera name 16|Readout area left i|Readout area top i|Readout area right i|"
    "Readout area bottom i|Ceta noise reduction ?|Ceta frames summed i|Direct detector electron counting ?|"
    "Direct detector align frames ?|Camera param reserved 0 i|Camera param reserved 1 i|Camera param reserved 2 i|"
    "Camera param reserved 3 i|Bitmask 3 I|Camera param reserved 4 i|Camera param reserved 5 i|"
    "Camera param reserved 6 i|Camera param reserved 7 i|Camera param reserved 8 i|Camera param reserved 9 i|"
    "Phase Plate ?|STEM Detector name 16|Gain d|Offset d|STEM param reserved 0 i|STEM param reserved 1 i|"
    "STEM param reserved 2 i|STEM param reserved 3 i|STEM param reserved 4 i|Dwell time d|Frame time d|"
    "Scan size left i|Scan size top i|Scan size right i|Scan size bottom i|Full scan FOV X d|Full scan FOV Y d|"
    "Element 16|Energy interval lower d|Energy interval higher d|Method i|Is dose fraction ?|Fraction number i|"
    "Start frame i|End frame i|Input stack filename 80|Bitmask 4 I|Alpha tilt min d|Alpha tilt max d"
)
"""Thermo Fisher's metadata of version 0 (FEI1): name and type of every field, in order and without gaps."""
FEI_VERSION_2 = (
    "|Scan rotation d|Diffraction pattern rotation d|Image rotation d|Scan mode enumeration i|"
    "Acquisition time stamp q|Detector commercial name 16|Start tilt angle d|End tilt angle d|Tilt per image d|"
    "Tilt speed d|Beam center X pixel i|Beam center Y pixel i|CFEG flash timestamp q|Phase plate position index i|"
    "Objective aperture name 16"
)
"""What FEI2 has after that."""
FEI_TYPES = {b"FEI1": FEI, b"FEI2": FEI + FEI_VERSION_2}

OLD_FEI = (
    *("Alpha tilt", "Beta tilt", "X-Stage", "Y-Stage", "Z-Stage", "X shift", "Y shift", "Defocus"),
    *("Exposure time", "Mean intensity", "Tilt axis angle", "Pixel size", "Magnification", "HT", "Binning"),
    "Applied defocus",
)
"""The reals of FEI's files from before there were names for extended headers; degrees, metres, seconds, volts."""

SERIALEM = (
    (1, "h", ("TiltAngle",), 100),
    (2, "hhh", ("PieceCoordinates/X", "PieceCoordinates/Y", "PieceCoordinates/Z"), 1),
    (4, "hh", ("StagePosition/X", "StagePosition/Y"), 25),
    (8, "h", ("Magnification",), 0.01),
    (16, "h", ("Intensity",), 25000),
    (32, "hh", ("ExposureDose",), 1),
    (64, "h", (), 1),
    (128, "hh", (), 1),
    (256, "h", (), 1),
    (512, "hh", (), 1),
    (1024, "h", (), 1),
)
"""Flag, type, its name in SerialEM's `.mdoc` files, what it is divided by. Those without a name are reserved."""


def extended_tags(source: ByteSource, header: MrcHeader) -> Iterator[tuple[str, Scalar]]:
    """`/extended/0/HT`: section, field. Nothing where there is no extended header."""
    size_bytes = header.integer("nsymbt")
    if not size_bytes:
        return
    described = _sections(source, header)
    if described is not None:
        yield from _differing(source, header, *described)
        return
    lines = _lines(source, size_bytes)
    if lines is not None:
        yield from ((f"/extended/{number}", line) for number, line in enumerate(lines) if line)
    else:
        yield "/extended", f"{size_bytes} bytes at byte {HEADER_BYTES}"


def header_tags(header: MrcHeader) -> Iterator[tuple[str, Scalar]]:
    """The first 1024 bytes: `/nx` and the other fields by the standard's names, `/imodFlags`, `/label/0` ..."""
    for name, value in header.values.items():
        if not isinstance(value, bytes):
            yield f"/{name}", value
        elif name == "machst":
            yield "/machst", value.hex(" ")
        elif value.strip(b"\0 "):
            yield f"/{name}", shown_bytes(value)
    if header.imod_flags is not None:
        yield "/imodFlags", header.imod_flags
    for number, label in enumerate(header.labels):
        if label.strip(b"\0 "):
            yield f"/label/{number}", shown_bytes(label)


def shown_bytes(raw: bytes) -> str:
    """The text without what fills it up; bytes that are no printable UTF-8 in hexadecimal, none of them lost."""
    body = raw.rstrip(b"\0 ")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = "\0"
    return text if text.isprintable() else f"{len(body)} bytes: {body.hex(' ')}"


def _sections(source: ByteSource, header: MrcHeader) -> tuple[int, Callable[[bytes], Values]] | None:
    """How many bytes are about each section, and what reads them; None if the header has no such parts."""
    kind = header.raw("exttyp")
    size_bytes = header.integer("nsymbt")
    if kind in FEI_TYPES:
        layout = _fei_layout(FEI_TYPES[kind], header.order)
        # each record begins with its own length, by which other versions would show
        is_whole = layout.size <= size_bytes
        return (layout.size, layout.read) if is_whole and _first_word(source, header.order) == layout.size else None
    first, second = struct.unpack_from(f"{header.order}2h", header.raw("extra2"), COUNTS_AT)
    is_unnamed = not kind.strip(b"\0 ")
    if not (kind in NUMBERED or is_unnamed) or min(first, second) < 0:
        return None
    flagged_bytes = 2 * sum(len(part[1]) for part in SERIALEM if second & part[0])
    if kind not in (b"AGAR", b"MRCO") and 0 < first == flagged_bytes <= size_bytes:
        return first, partial(_serialem, header.order, second)
    record = 4 * (first + second)
    if not 0 < record <= size_bytes:
        return None
    is_fei = first == 0 and header.labels[0].strip(b"\0 ").lower().startswith(b"fei company")
    names = [*(f"integer {n}" for n in range(first)), *(f"real {n}" for n in range(second))]
    if is_fei:
        names[: len(OLD_FEI)] = OLD_FEI[:second]
    return record, partial(_numbers, f"{header.order}{first}i{second}f", names)


def _differing(
    source: ByteSource, header: MrcHeader, record: int, read: Callable[[bytes], Values]
) -> Iterator[tuple[str, Scalar]]:
    stated = min(header.integer("nz"), header.integer("nsymbt") // record)
    first: Values = {}
    left = MAX_DIFFERING
    listed = min(stated, MAX_SECTIONS, max(1, MAX_SECTION_BYTES // record))
    for number in range(listed):
        values = read(bytes(source.read(HEADER_BYTES + number * record, record)))
        first = first or values
        differing = {name: value for name, value in values.items() if not number or value != first[name]}
        if len(differing) > left:
            yield "/extended/not_listed", f"what differs in sections from {number} on"
            return
        left -= len(differing)
        yield from ((f"/extended/{number}/{name}", value) for name, value in differing.items())
    if stated > listed:
        yield "/extended/not_listed", f"sections {listed} to {stated - 1}"


def _first_word(source: ByteSource, order: str) -> int:
    return int(struct.unpack(f"{order}i", source.read(HEADER_BYTES, 4))[0])


class _FeiLayout:
    """Fields in order, each of its own type; bit masks are little-endian in either byte order."""

    def __init__(self, fields: list[tuple[str, str]], order: str) -> None:
        self._fields = [(name, _struct(kind, order)) for name, kind in fields]
        self.size = sum(form.size for _, form in self._fields)

    def read(self, raw: bytes) -> Values:
        found: Values = {}
        at = 0
        for name, form in self._fields:
            (value,) = form.unpack_from(raw, at)
            at += form.size
            found[name] = shown_bytes(value) if isinstance(value, bytes) else value
        return found


def _fei_layout(table: str, order: str) -> _FeiLayout:
    rows = (row.rpartition(" ") for row in table.split("|"))
    return _FeiLayout([(name, kind) for name, _, kind in rows], order)


def _struct(kind: str, order: str) -> struct.Struct:
    """A flag is read as a number, which any byte is."""
    if kind.isdecimal():
        return struct.Struct(f"{kind}s")
    return struct.Struct({"I": "<I", "?": "B"}.get(kind, order + kind))


def _serialem(order: str, flags: int, raw: bytes) -> Values:
    found: Values = {}
    at = 0
    for flag, letters, names, divisor in SERIALEM:
        if not flags & flag:
            continue
        words = struct.unpack_from(order + letters, raw, at)
        at += 2 * len(letters)
        if names == ("ExposureDose",):
            found[names[0]] = _dose(*words)
        else:
            found.update({name: word / divisor for name, word in zip(names, words, strict=False)})
    return found


def _dose(mantissa: int, exponent: int) -> float:
    """SerialEM's own number of two words: 8 more bits of the mantissa, and the exponent, are in the second."""
    size = abs(mantissa) * 256 + abs(exponent) % 256
    power = abs(exponent) // 256
    value = size * 2.0 ** (power if exponent >= 0 else -power)
    return value if mantissa >= 0 else -value


def _numbers(layout: str, names: list[str], raw: bytes) -> Values:
    return dict(zip(names, struct.unpack_from(layout, raw), strict=True))


def _lines(source: ByteSource, size_bytes: int) -> list[str] | None:
    """Text in lines of 80 characters, None if it is none."""
    if size_bytes % LINE_BYTES or size_bytes > MAX_LINES * LINE_BYTES:
        return None
    raw = bytes(source.read(HEADER_BYTES, size_bytes))
    lines = [raw[at : at + LINE_BYTES].rstrip(b"\0 ") for at in range(0, size_bytes, LINE_BYTES)]
    if not all(re.fullmatch(rb"[ -~]*", line) for line in lines):
        return None
    return [line.decode("ascii") for line in lines]
