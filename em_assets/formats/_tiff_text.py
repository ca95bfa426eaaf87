"""What the texts in a TIFF say: which planes its pages are, how large a voxel is, and all their keys.

ImageJ's `key=value` lines, OME-XML (the OME-TIFF specification, TiffData), the JSON of tifffile, and the instrument
texts of FEI. Voxel sizes are believed from ImageJ and OME only: a bare XResolution is mostly the print size of some
program, and stays a tag.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed, Unsupported
from em_assets.formats._json import json_leaves, parse_json
from em_assets.formats._tiff_ifd import Ifd
from em_assets.formats._units import to_nanometres
from em_assets.formats.reader import Scalar
from em_assets.volume import VoxelSize

MAX_XML_DEPTH = 64
MAX_XML_ITEMS = 200_000
MAX_PATH_CHARACTERS = 1000
MAX_LINES_CHARACTERS = 2**20
"""Of texts of lines, and of JSON: real ones have a few thousand."""
MAX_PLANES = 2**20
MAX_NUMBER_CHARACTERS = 100
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
"""An exact power of ten is as large as it says: longer exponents would fill the memory."""


@dataclass(frozen=True)
class Stack:
    """How the planes of a volume follow one another, as far as a text says so."""

    order: NDArray[np.int64] | None = None
    """[channel, z] -> page. None: every page is a slice, in their order."""
    voxel_size_nm: VoxelSize | None = None
    said: str = ""
    """Who says how many pages there are, for messages: `184 (ImageDescription says images=184)`."""
    may_follow_one_page: bool = False
    """All planes may lie one after the other where only the first has a page: ImageJ above 4 GB, tifffile."""
    is_page_by_page: bool = False
    """Each page may have a text of its own, which says that it is one plane: tifffile, written one after the other."""


def read_stack(first: Ifd, height: int, width: int) -> Stack:
    """By the first page's ImageDescription. Raises Malformed if it contradicts itself, Unsupported for times."""
    text = first.text(270)
    if text.startswith("ImageJ="):
        return _imagej_stack(first, text)
    if re.search(r"<(\w+:)?OME[\s>]", text[:4096]):
        return _ome_stack(first, text, height, width)
    if text.startswith('{"shape"'):
        return _tifffile_stack(first, text, height, width)
    return Stack()


def text_leaves(text: str, where: str) -> Iterator[tuple[str, Scalar]]:
    """The keys of a text of a known kind below `/`; nothing for other texts. Raises Malformed if it breaks its form."""
    begin = text.lstrip()[:64]
    if text.startswith("ImageJ="):
        yield from ((f"/{key}", value) for key, value in imagej_keys(text, where).items())
    elif begin.startswith("<"):
        yield from xml_leaves(text, where)
    elif len(text) > MAX_LINES_CHARACTERS:
        return
    elif re.match(r"\[[\w .]+\]\s*[\r\n]", begin):
        yield from _section_leaves(text)
    elif begin.startswith("{"):
        yield from json_leaves(parse_json(text.encode(), where))


def imagej_keys(text: str, where: str) -> dict[str, str]:
    r"""The lines of an ImageJ description; `\u00B5` (six characters, as ImageJ writes it) is the letter it means."""
    if len(text) > MAX_LINES_CHARACTERS:
        raise Malformed(f"{where} has {len(text)} characters, expected at most {MAX_LINES_CHARACTERS}.")
    plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    pairs = (line.partition("=") for line in plain.splitlines())
    return {key.strip(): value.strip() for key, is_pair, value in pairs if is_pair}


def _imagej_stack(first: Ifd, text: str) -> Stack:
    where = f"{first.where}: ImageDescription"
    keys = imagej_keys(text, where)
    images = _count(keys, "images", where)
    channels = _count(keys, "channels", where) or 1
    frames = _count(keys, "frames", where) or 1
    slices = _count(keys, "slices", where)
    _require_no_frames(where, "frames", frames)
    if images is None and slices is None and channels == 1:
        return Stack(voxel_size_nm=_imagej_voxel_size(first, keys))
    images = channels * (slices or 1) if images is None else images
    _require_planes(where, "images", images)
    slices = images // channels if slices is None else slices
    if slices * channels != images:
        raise Malformed(
            f"{where} says images={images}, but slices={slices} and channels={channels}, which make "
            f"{slices * channels}; save it again from ImageJ."
        )
    order = np.arange(images).reshape(slices, channels).T
    said = f"{images} (ImageDescription says images={images})"
    return Stack(order, _imagej_voxel_size(first, keys), said, may_follow_one_page=True)


def _imagej_voxel_size(first: Ifd, keys: dict[str, str]) -> VoxelSize | None:
    """X and YResolution are pixels per `unit`, `spacing` is z. ImageJ leaves a spacing of 1 out, but so do others who
    know none: it counts as not stated.
    """
    unit = keys.get("unit", "")
    x, y = (_per_pixel(first.rational(tag)) for tag in (282, 283))
    z = _number(keys.get("spacing", ""))
    sizes = (
        _nanometres(None if z is None else abs(z), keys.get("zunit", unit)),
        _nanometres(y, keys.get("yunit", unit)),
        _nanometres(x, unit),
    )
    return _all_three(*sizes)


def _ome_stack(first: Ifd, text: str, height: int, width: int) -> Stack:
    where = f"{first.where}: OME-XML"
    leaves = dict(xml_leaves(text, where))
    images = {found[0] for path in leaves if (found := re.match(r"/OME/Image(\[\d+\])?(?=/)", path))}
    if not images:  # the metadata are in a file of their own: each page stands for itself
        return Stack()
    if len(images) > 1:
        raise Unsupported(
            f"{where} describes {len(images)} images; files with one are read, save the wanted one alone."
        )
    prefix = "/OME/Image/Pixels/@"
    pixels = {path.removeprefix(prefix): str(value) for path, value in leaves.items() if path.startswith(prefix)}
    sizes = {axis: _count(pixels, f"Size{axis}", where) or 1 for axis in "XYZCT"}
    _require_no_frames(where, "SizeT", sizes["T"])
    if (sizes["Y"], sizes["X"]) != (height, width):
        raise Malformed(
            f"{where} says SizeY={sizes['Y']} and SizeX={sizes['X']}, but the page is {height} x {width} (y, x)."
        )
    if (axes := pixels.get("DimensionOrder", "")) not in ("XYZCT", "XYZTC", "XYCZT", "XYCTZ", "XYTCZ", "XYTZC"):
        raise Malformed(f"{where} says DimensionOrder={axes[:20]!r}, expected X, Y and then Z, C, T in some order.")
    order = _ome_order(leaves, sizes, axes[2:], where)
    voxel_size = _all_three(*(_ome_size(pixels, axis) for axis in "ZYX"))
    planes = order.size
    return Stack(order, voxel_size, f"{planes} (OME-XML says SizeZ={sizes['Z']}, SizeC={sizes['C']})")


def _ome_size(pixels: dict[str, str], axis: str) -> float | None:
    unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")  # the schema's default
    return _nanometres(_number(pixels.get(f"PhysicalSize{axis}", "")), unit)


def _ome_order(leaves: dict[str, Scalar], sizes: dict[str, int], axes: str, where: str) -> NDArray[np.int64]:
    """[channel, z] -> page. Each TiffData puts some pages, one after the other, at some planes."""
    planes = sizes["Z"] * sizes["C"]
    _require_planes(where, "SizeZ times SizeC", planes)
    page_of = np.full(planes, -1, np.int64)
    for block in _tiff_data(leaves, where) or [{}]:
        plane, stride = 0, 1
        for axis in axes:
            plane += block.get(f"First{axis}", 0) * stride
            stride *= sizes[axis]
        ifd = block.get("IFD", 0)
        count = block.get("PlaneCount", 1 if "IFD" in block else planes - plane)
        if plane + count > planes or (page_of[plane : plane + count] >= 0).any():
            raise Malformed(f"{where} puts {count} pages at plane {plane}, which is taken or not there; it is damaged.")
        page_of[plane : plane + count] = np.arange(ifd, ifd + count)
    if not np.array_equal(np.sort(page_of), np.arange(planes)):
        raise Malformed(f"{where} does not say of each of its {planes} planes which page it is; it is damaged.")
    fast, slow = (axis for axis in axes if axis != "T")
    grid = page_of.reshape(sizes[slow], sizes[fast])
    return grid if slow == "C" else grid.T


def _tiff_data(leaves: dict[str, Scalar], where: str) -> list[dict[str, int]]:
    """The attributes of each TiffData. Raises Unsupported if planes lie in other files."""
    blocks: dict[str, dict[str, int]] = {}
    files: set[str] = set()
    for path, value in leaves.items():
        if not (found := re.fullmatch(r"/OME/Image/Pixels/(TiffData(?:\[\d+\])?)(?:/(.*))?", path)):
            continue
        block, inner = blocks.setdefault(found[1], {}), found[2] or ""
        if inner.startswith("@"):
            block[inner[1:]] = _whole(str(value), f"{where}, TiffData {inner[1:]}")
        elif inner.endswith("@FileName"):
            files.add(str(value))
    if len(files) > 1:
        a, b, *_ = sorted(files)
        raise Unsupported(
            f"{where} spreads its planes over {len(files)} files ({a[:80]}, {b[:80]}, ...); open them as a series."
        )
    return list(blocks.values())


def _tifffile_stack(first: Ifd, text: str, height: int, width: int) -> Stack:
    where = f"{first.where}: ImageDescription"
    said = parse_json(text.encode(), where)
    shape = said.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise Malformed(f"{where} says shape {json.dumps(shape)[:80]}, expected a list of whole numbers.")
    leading = [n for n in shape[:-2] if n != 1]
    if shape[-2:] != [height, width] or len(leading) > 1:
        raise Unsupported(
            f"{where} says shape {shape}, of which pages of {height} x {width} (y, x) are no volume (z, y, x); save "
            "the wanted part alone."
        )
    planes = math.prod(leading)
    _require_planes(where, "shape", planes)
    if planes == 1:
        return Stack(is_page_by_page=True)
    said_by = f"{planes} (ImageDescription says shape {shape})"
    return Stack(np.arange(planes)[None], None, said_by, may_follow_one_page=bool(said.get("truncated")))


def require_one_plane(ifd: Ifd, height: int, width: int) -> None:
    """Of a later page of a stack that was written page by page. Raises Malformed if it begins a stack of its own."""
    text = ifd.text(270)
    if text.startswith('{"shape"') and not _tifffile_stack(ifd, text, height, width).is_page_by_page:
        raise Malformed(
            f"{ifd.where}: ImageDescription begins a stack of its own, {text[:80]!r}, but the pages before it are one "
            "plane each; save the wanted stack alone."
        )


def xml_leaves(text: str, where: str) -> Iterator[tuple[str, Scalar]]:
    """Every attribute (`/OME/Image/Pixels/@SizeX`) and text of an XML document; a second `Image` is `Image[2]`.

    Namespaces are left out; an element with nothing in it has the value None. Raises Malformed for a document that is
    not well formed, declares a document type (which is where entities come from), nests deeper than 64 or is too large.
    """
    reader = _XmlReader(where)
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    try:
        parser.Parse(re.sub(r"^\ufeff?\s*<\?xml[^>]*\?>", "", text).strip().encode(), True)  # noqa: FBT003  # expat's own order
    except expat.ExpatError as error:
        raise Malformed(
            f"{where}, line {error.lineno}: not well-formed XML ({expat.errors.messages[error.code]})."
        ) from None
    except (LookupError, ValueError) as error:  # a second declaration, of an encoding that Python does not know
        raise Malformed(f"{where}: its encoding is not one that can be read ({error}).") from None
    yield from reader.found


class _XmlReader:
    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[tuple[str, Scalar]] = []
        self._paths = [""]
        self._texts: list[list[str]] = [[]]
        self._siblings: list[Counter[str]] = [Counter()]
        self._is_bare = [False]
        """Whether nothing was found yet in each open element."""

    def refuse(self, *_: object) -> NoReturn:
        raise Malformed(f"{self.where}: it declares a document type, which no such document needs; it is not read.")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._paths) > MAX_XML_DEPTH:
            raise Malformed(f"{self.where}: its XML is nested more than {MAX_XML_DEPTH} deep.")
        own = name.rpartition(":")[2]
        self._siblings[-1][own] += 1
        count = self._siblings[-1][own]
        path = f"{self._paths[-1]}/{own}" + (f"[{count}]" if count > 1 else "")
        if len(path) > MAX_PATH_CHARACTERS or len(self.found) > MAX_XML_ITEMS:
            raise Malformed(f"{self.where}: its XML has more, or longer names, than any such document needs.")
        self._is_bare[-1] = False
        shown = [(key, value) for key, value in attributes.items() if not key.startswith("xmlns")]
        self.found += [(f"{path}/@{key.rpartition(':')[2]}", value) for key, value in shown]
        self._paths.append(path)
        self._texts.append([])
        self._siblings.append(Counter())
        self._is_bare.append(not shown)

    def characters(self, text: str) -> None:
        self._texts[-1].append(text)

    def end(self, _: str) -> None:
        path, text = self._paths.pop(), "".join(self._texts.pop()).strip()
        self._siblings.pop()
        is_bare = self._is_bare.pop()
        if text or is_bare:
            self.found.append((path, text or None))


def _section_leaves(text: str) -> Iterator[tuple[str, Scalar]]:
    """`[Section]` and `key=value` lines, as FEI's instruments write them."""
    section = ""
    for line in text.splitlines():
        key, is_pair, value = line.partition("=")
        if is_pair:
            yield f"{section}/{key.strip()}", value.strip()
        elif found := re.fullmatch(r"\[(.{1,100})\]", line.strip()):
            section = f"/{found[1]}"


def _require_no_frames(where: str, key: str, frames: int) -> None:
    if frames > 1:
        raise Unsupported(f"{where} says {key}={frames}: a time series is no volume; save one time alone.")


def _require_planes(where: str, key: str, planes: int) -> None:
    if planes > MAX_PLANES:
        raise Malformed(f"{where} says {key} is {planes}, expected at most {MAX_PLANES} planes; it is damaged.")


def _count(keys: dict[str, str], key: str, where: str) -> int | None:
    """A number of at least 1, None where it is not said."""
    if key not in keys:
        return None
    number = _whole(keys[key], f"{where} {key}")
    if not 0 < number <= 2**31:
        raise Malformed(f"{where} says {key}={number}, expected at least 1; it is damaged.")
    return number


def _whole(text: str, where: str) -> int:
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII):
        raise Malformed(f"{where} is {text[:40]!r}, expected a whole number; it is damaged.")
    return int(text)


def _number(text: str) -> Fraction | None:
    """Exactly what is written, None where it is no number of a sensible length."""
    is_number = len(text) <= MAX_NUMBER_CHARACTERS and NUMBER.fullmatch(text.strip())
    return Fraction(text.strip()) if is_number else None


def _per_pixel(resolution: tuple[int, int] | None) -> Fraction | None:
    """Units per pixel from pixels per unit."""
    return Fraction(resolution[1], resolution[0]) if resolution and resolution[0] else None


def _nanometres(value: Fraction | None, unit: str) -> float | None:
    return None if value is None else to_nanometres(value, unit)


def _all_three(z: float | None, y: float | None, x: float | None) -> VoxelSize | None:
    return None if z is None or y is None or x is None else (z, y, x)
