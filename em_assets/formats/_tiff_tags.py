"""What the tags of a TIFF are called and how their values are shown.

Names are ours and not a library's, because they stand in stored records. The structure that leads to the values is
`_tiff_ifd.py`; texts that are documents of their own (ImageJ, OME-XML, FEI) are taken apart in `_tiff_text.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from em_assets.formats.reader import Scalar

TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""TIFF 6.0, section 2 (1 to 12), the IFD type (13) and BigTIFF's (16 to 18)."""
_LETTERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_TEXT, _OPAQUE, _RATIONALS = 2, (1, 6, 7), (5, 10)
SHOWN_VALUES = 16
SHOWN_CHARACTERS = 2**20

TAG_NAMES = {
    254: "NewSubfileType",
    255: "SubfileType",
    256: "ImageWidth",
    257: "ImageLength",
    258: "BitsPerSample",
    259: "Compression",
    262: "PhotometricInterpretation",
    266: "FillOrder",
    269: "DocumentName",
    270: "ImageDescription",
    271: "Make",
    272: "Model",
    273: "StripOffsets",
    274: "Orientation",
    277: "SamplesPerPixel",
    278: "RowsPerStrip",
    279: "StripByteCounts",
    280: "MinSampleValue",
    281: "MaxSampleValue",
    282: "XResolution",
    283: "YResolution",
    284: "PlanarConfiguration",
    285: "PageName",
    286: "XPosition",
    287: "YPosition",
    296: "ResolutionUnit",
    297: "PageNumber",
    305: "Software",
    306: "DateTime",
    315: "Artist",
    316: "HostComputer",
    317: "Predictor",
    320: "ColorMap",
    322: "TileWidth",
    323: "TileLength",
    324: "TileOffsets",
    325: "TileByteCounts",
    330: "SubIFDs",
    338: "ExtraSamples",
    339: "SampleFormat",
    340: "SMinSampleValue",
    341: "SMaxSampleValue",
    347: "JPEGTables",
    32997: "ImageDepth",
    32998: "TileDepth",
    33432: "Copyright",
    33628: "UIC1tag",
    33629: "UIC2tag",
    34118: "CZ_SEM",
    34412: "CZ_LSMINFO",
    34665: "ExifTag",
    34680: "FEI_SFEG",
    34682: "FEI_HELIOS",
    34683: "FEI_TITAN",
    50838: "IJMetadataByteCounts",
    50839: "IJMetadata",
    51123: "MicroManagerMetadata",
}


def tag_name(tag: int) -> str:
    """The tag's name, or its number where it has none here."""
    return TAG_NAMES.get(tag, str(tag))


def shown_text(text: str) -> str:
    """Whole, unless it has more than a million characters."""
    left_out = len(text) - SHOWN_CHARACTERS
    return text if left_out <= 0 else f"{text[:SHOWN_CHARACTERS]} ... ({left_out} more characters)"


def as_text(kind: int, raw: bytes | memoryview) -> str | None:
    """What a tag says in words; None for numbers. Some instruments put text into untyped bytes."""
    if kind != _TEXT and (kind not in _OPAQUE or len(raw) <= SHOWN_VALUES):
        return None
    body = bytes(raw).rstrip(b"\0")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return body.decode("latin-1") if kind == _TEXT else None
    readable = kind == _TEXT or all(letter.isprintable() or letter.isspace() for letter in text)
    return text if readable else None


def numbers(path: str, kind: int, raw: bytes | memoryview, order: str) -> Iterator[tuple[str, Scalar]]:
    """The values of a tag of numbers: one at its path, up to 16 below it, of more the first and the last."""
    size = TYPE_BYTES[kind]
    count = len(raw) // size
    if kind in _OPAQUE and count > SHOWN_VALUES:
        yield path, f"{count} bytes"
    elif count > SHOWN_VALUES:
        first, last = (_value(kind, raw[at : at + size], order) for at in (0, len(raw) - size))
        yield path, f"{count} values, from {first} to {last}"
    else:
        for place in range(count):
            value = _value(kind, raw[place * size : (place + 1) * size], order)
            yield (path if count == 1 else f"{path}/{place}"), value


def _value(kind: int, raw: bytes | memoryview, order: str) -> Scalar:
    if kind in _RATIONALS:
        top, bottom = struct.unpack(order + ("II" if kind == 5 else "ii"), raw)
        return float(top / bottom) if bottom else f"{top}/{bottom}"
    value: int | float = struct.unpack(order + _LETTERS.get(kind, "B"), raw)[0]
    return value
