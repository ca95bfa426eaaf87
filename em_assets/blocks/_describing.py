"""What a Zarr or N5 says of itself as a volume: its levels and their places, its content, its multiscale."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from em_assets.blocks._choice import part_of
from em_assets.blocks.geometry import Grid, nm3
from em_assets.blocks.volume import Content, Description, Level
from em_assets.errors import Unsupported

if TYPE_CHECKING:
    from em_assets.formats._chunked import ChunkedReader

LABELS_TYPE = "nearest"
"""The multiscale's `type` of volumes whose coarser levels are voxels of the finer ones. Their translations are all that
of the first voxel's centre, and not, as equal ones of a pyramid of means, that of a corner."""


def present_levels(reader: ChunkedReader) -> list[int]:
    """The numbers of the levels that are there: some publishers list more."""
    return [number for number, level in enumerate(reader.levels) if level.shape is not None]


def description(name: str, location: str, reader: ChunkedReader, content: Content, *, is_ours: bool) -> Description:
    is_picked = reader.convention == "corner" and _pyramid_type(reader) == LABELS_TYPE
    convention = "centre" if is_ours or is_picked else reader.convention
    levels = []
    for number, at in enumerate(present_levels(reader)):
        info = (reader.at_level(reader.levels[at].path) if at != reader.level else reader).info
        size = info.voxel_size_nm
        if size is None:
            raise _unplaced(location, reader)
        corner = info.corner_nm
        if convention != reader.convention:
            centre = reader.levels[at].translation_nm or (0.0, 0.0, 0.0)
            corner = nm3([t - s / 2 for t, s in zip(centre, size, strict=True)])
        levels.append(Level(number, Grid(info.shape, size, corner), info.chunk))
    dtype = np.dtype(reader.stated_dtype).newbyteorder("<")
    return Description(name, location, tuple(levels), dtype, content, convention, part_of(reader))


def _unplaced(location: str, reader: ChunkedReader) -> Unsupported:
    """Why a box of it has no place in space."""
    pyramid = reader.pyramid
    if [level.path for level in pyramid.levels] == [""]:
        return Unsupported(
            f"{location} is an array that does not state the size of its voxels, so no box of it has a place in space; "
            "if it is a level of an image, open the group above that lists it."
        )
    first = pyramid.levels[reader.level]
    units = dict(zip(pyramid.axes, pyramid.units, strict=True))
    what = "scale" if first.scale is None else f"unit of length ({_spatial(units)})"
    return Unsupported(
        f"{location} does not state the size of its voxels, so no box of it has a place in space: its levels state no "
        f"{what}; complete a copy of its metadata, or add it as a dataset with `em-assets add --voxel-size-nm`."
    )


def _spatial(units: Mapping[str, str | None]) -> str:
    return ", ".join(f"{axis} {units.get(axis)!r}" for axis in "zyx")


def content_of(reader: ChunkedReader) -> Content:
    """Labels are truth values, and integers whose multiscale says `nearest`, as we write it, or says `image-label`
    beside it, or that lie in the group `labels` of an image.
    """
    if reader.array.is_bool:
        return "labels"
    if np.dtype(reader.info.dtype).kind not in "iu":
        return "image"
    *_, above, name = ["", "", *(part for part in reader.url.split("/") if not part.isdecimal())]
    is_in_labels = above == "labels" and not name.endswith((".zarr", ".n5"))
    is_labels = is_in_labels or _pyramid_type(reader) == LABELS_TYPE or _has_image_label(reader)
    return "labels" if is_labels else "image"


def _pyramid_type(reader: ChunkedReader) -> str | None:
    """What the multiscale says of how its levels were made."""
    kind = multiscale(reader).get("type")
    return kind if isinstance(kind, str) else None


def multiscale(reader: ChunkedReader) -> dict[str, Any]:
    """The image's own document; empty where it has none of OME."""
    from em_assets.formats._ome_multiscales import find_multiscales

    for attributes in _attributes(reader):
        found = find_multiscales(attributes)
        if found is not None:
            image: dict[str, Any] = found[0][0]
            return image
    return {}


def _has_image_label(reader: ChunkedReader) -> bool:
    return any("image-label" in attributes.get("ome", attributes) for attributes in _attributes(reader))


def _attributes(reader: ChunkedReader) -> Iterator[dict[str, Any]]:
    for path, raw in reader.documents().items():
        if path.endswith(("zarr.json", ".zattrs")):
            document = json.loads(raw)
            found = document.get("attributes") if path.endswith("zarr.json") else document
            if isinstance(found, dict):
                yield found
