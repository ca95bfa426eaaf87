"""Which image of a DM3 or DM4 file is meant, and what it is: its voxels' type, dimensions, calibration.

The choice follows `ImageSourceList` and `Thumbnails`, never a fixed place: a thumbnail usually comes first, and its
size varies from file to file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.formats._dm_tags import Array, DmTags, Group, Node, shown
from em_assets.formats._units import to_nanometres
from em_assets.volume import VoxelSize

DTYPES = {
    1: "int16",
    2: "float32",
    6: "uint8",
    7: "int32",
    9: "int8",
    10: "uint16",
    11: "uint32",
    12: "float64",
    39: "int64",
    40: "uint64",
}
"""`ImageData.DataType`."""
REFUSED_KINDS = {
    3: "complex numbers",
    5: "packed complex numbers (a Fourier transform)",
    8: "RGB colours",
    13: "complex numbers",
    14: "single bits",
    23: "RGBA colours",
    27: "packed complex numbers (a Fourier transform)",
    28: "packed complex numbers (a Fourier transform)",
}
MAX_AXES = 3
MAX_SHOWN_IMAGES = 10
ENERGY = r"[kmMµμu]?eV"
TIME = r"([numµμ]?s|sec|seconds?|min|minutes?|h|hours?)"
RECIPROCAL = r"1\s*/.*|.*(\^-1|⁻¹)|[mµμu]?rad"


@dataclass(frozen=True, slots=True)
class DmImage:
    """One entry of `ImageList`, checked: an image or a stack of voxels that numpy has a type for."""

    path: str
    """`ImageList/1`."""
    shape_xyz: tuple[int, ...]
    """Of two or three axes."""
    dtype: str
    data: Array
    spacings: tuple[float | None, ...]
    """Of every axis in nanometres, x first; None where the unit is missing or none of length."""
    slice_nm: float | None
    """Distance to the next slice, as the tags of a serial block-face microscope say."""

    @property
    def pixel_size_nm(self) -> tuple[float, float] | None:
        """(y, x), also where z is not stated."""
        x, y = self.spacings[:2]
        return None if x is None or y is None else (y, x)

    @property
    def voxel_size_nm(self) -> VoxelSize | None:
        z = self.spacings[2] if self.spacings[2:] and self.spacings[2] is not None else self.slice_nm
        return None if z is None or self.pixel_size_nm is None else (z, *self.pixel_size_nm)


def choose_image(tags: DmTags, dataset: str | None) -> DmImage:
    """The image that the file is about, or the one that `dataset` names (`ImageList/2`, or `2`).

    Raises Mismatch if there is no such image, Unsupported for what is not a volume (spectra, colours, transforms).
    """
    images = tags.root.get("ImageList")
    count = len(images.entries) if isinstance(images, Group) else 0
    pictures = _without_thumbnails(tags, count)
    number = _choice(tags, count, pictures) if dataset is None else _named(tags, dataset, count)
    others = [n for n in pictures if n != number]
    return _read_image(tags, number, f" (dataset may name another: {_listed(others)})" if others else "")


def _without_thumbnails(tags: DmTags, count: int) -> list[int]:
    thumbnails = set(_numbers(_children(tags.root.get("Thumbnails")), "ImageIndex", tags))
    return [number for number in range(count) if number not in thumbnails]


def _choice(tags: DmTags, count: int, pictures: list[int]) -> int:
    name = tags.source.name
    sources = _sources(tags)
    for number in sources:
        if not 0 <= number < count:
            raise Malformed(f"{name}: ImageSourceList refers to image {number} of {count}; get the file again.")
    allowed = set(pictures)
    found = [number for number in sources if number in allowed] if sources else pictures
    if not found:
        raise Unsupported(f"{name} holds no image besides thumbnails (ImageList has {count}); choose another file.")
    if not sources and len(found) > 1:
        raise Unsupported(
            f"{name} does not say which of its images it is about; name one as dataset: {_listed(found)}."
        )
    return found[0]


def _sources(tags: DmTags) -> list[int]:
    """The images that are shown, in order; one source may show several (a spectrum with its background)."""
    found = []
    for source in _children(tags.root.get("ImageSourceList")):
        found += _numbers([source], "ImageRef", tags) or _numbers(_children(source.get("ImageList")), "ImageRef", tags)
    return found


def _children(node: Node | None) -> list[Group]:
    return [child for _, child in node.entries if isinstance(child, Group)] if isinstance(node, Group) else []


def _numbers(groups: list[Group], name: str, tags: DmTags) -> list[int]:
    numbers = [tags.number(group, name) for group in groups]
    return [number for number in numbers if isinstance(number, int)]


def _named(tags: DmTags, dataset: str, count: int) -> int:
    match = re.fullmatch(r"/?(?:ImageList/)?(\d{1,9})/?", dataset, re.ASCII)
    if not match or int(match[1]) >= count:
        raise Mismatch(f"{tags.source.name} has no image {dataset!r}; it has {_listed(range(count))}.")
    return int(match[1])


def _listed(numbers: Sequence[int]) -> str:
    shown_numbers = ", ".join(f"ImageList/{n}" for n in numbers[:MAX_SHOWN_IMAGES])
    return (shown_numbers or "none") + (", ..." if len(numbers) > MAX_SHOWN_IMAGES else "")


def _read_image(tags: DmTags, number: int, hint: str) -> DmImage:
    path = f"ImageList/{number}"
    where = f"{tags.source.name}: {path}"
    image = tags.root.get("ImageList", str(number))
    data = image.get("ImageData", "Data") if isinstance(image, Group) else None
    if not isinstance(image, Group) or not isinstance(data, Array):
        raise Malformed(f"{where} has no ImageData/Data; get the file again.")
    dtype = _dtype(tags, image, where, hint)
    shape_xyz = _shape(image, where)
    axes = [_axis(tags, image, axis) for axis in range(len(shape_xyz))]
    units = [unit for _, unit in axes]
    if reason := _no_volume(tags.text(image, "ImageTags", "Meta Data", "Format"), units):
        raise Unsupported(f"{where} {reason}; choose another file{hint}.")
    needed = math.prod(shape_xyz) * np.dtype(dtype).itemsize
    if data.size_bytes != needed:
        raise Malformed(
            f"{where} has {data.size_bytes} bytes of data, but {' x '.join(map(str, shape_xyz))} (x, y, z) voxels of "
            f"{dtype} are {needed}; get the file again."
        )
    spacings = tuple(None if scale is None else to_nanometres(scale, unit) for scale, unit in axes)
    return DmImage(path, shape_xyz, dtype, data, spacings, _slice_nm(tags, image, units))


def _shape(image: Group, where: str) -> tuple[int, ...]:
    dimensions = image.get("ImageData", "Dimensions")
    nodes = [node for _, node in dimensions.entries] if isinstance(dimensions, Group) else []
    shape = tuple(n for n in nodes if isinstance(n, int))
    if not shape or len(shape) != len(nodes) or min(shape) < 1:
        raise Malformed(
            f"{where} has the dimensions {shown(str(nodes[:8]))}, expected positive numbers; get the file again."
        )
    return shape


def _axis(tags: DmTags, image: Group, axis: int) -> tuple[float | None, str]:
    """Scale and unit."""
    path = ("ImageData", "Calibrations", "Dimension", str(axis))
    return tags.number(image, *path, "Scale"), _unit(tags, image, *path)


def _no_volume(meta_format: str | None, units: list[str]) -> str | None:
    """What it is instead, None if it is an image or a stack."""
    form = (meta_format or "").strip()
    if len(units) == 1:
        return "is a one-dimensional signal" + (f" in {shown(units[0])}" if units[0] else "") + ", not an image"
    if form.lower().startswith("spectrum"):
        return f"is a {shown(form.lower())} by its own tags, not a volume"
    for axis, unit in enumerate(units):
        for kind, pattern in (("energy", ENERGY), ("time", TIME), ("reciprocal space", RECIPROCAL)):
            if re.fullmatch(pattern, unit):
                return f"has {kind} ({shown(unit)}) along axis {axis}, not a place in space"
    if len(units) > MAX_AXES:
        return f"has {len(units)} dimensions, accepted are 2 and 3"
    return None


def _dtype(tags: DmTags, image: Group, where: str, hint: str) -> str:
    code = tags.number(image, "ImageData", "DataType")
    if not isinstance(code, int) or code not in DTYPES:
        kind = REFUSED_KINDS.get(code, "voxels of unknown type") if isinstance(code, int) else "voxels of unstated type"
        raise Unsupported(
            f"{where} holds {kind} (DataType {code}), accepted are {', '.join(DTYPES.values())}; "
            f"choose another file{hint}."
        )
    dtype = DTYPES[code]
    depth = tags.number(image, "ImageData", "PixelDepth")
    if depth is not None and depth != np.dtype(dtype).itemsize:
        raise Malformed(f"{where} has PixelDepth {depth}, but DataType {code} is {dtype}; get the file again.")
    return dtype


def _slice_nm(tags: DmTags, image: Group, units: list[str]) -> float | None:
    """For an image that has no z itself, or one without unit. What states its unit goes before what does not."""
    if units[2:] and units[2]:
        return None
    path = ("ImageTags", "Meta Data", "Dimension info", "2")
    step = tags.number(image, *path, "Scale")
    stated = None if step is None else to_nanometres(step, _unit(tags, image, *path))
    # The microscope's software has the slice thickness in nanometres; the tag itself says no unit.
    thickness = tags.number(image, "ImageTags", "SBFSEM", "Record", "Slice thickness")
    return stated or (None if thickness is None else to_nanometres(thickness, "nm"))


def _unit(tags: DmTags, image: Group, *path: str) -> str:
    """Empty where there is none."""
    return (tags.text(image, *path, "Units") or "").strip()
