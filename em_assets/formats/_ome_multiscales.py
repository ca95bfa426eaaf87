"""OME-NGFF `multiscales`, versions 0.1 to 0.5: parsed JSON to a `Pyramid`. No I/O.

Specification: ngff.openmicroscopy.org. What places voxels is checked and refused by its JSON pointer; what nobody
needs here (labels, metadata) is let through; of `omero` only the channels' names are read.
"""

from __future__ import annotations

import re
from typing import Any

from em_assets.errors import Malformed, Unsupported
from em_assets.formats._pyramid import (
    Floats,
    Pyramid,
    PyramidLevel,
    axis_letters,
    convention_of,
    numbers,
    positive,
)
from em_assets.formats._stored_array import short

MAX_LEVELS = 64
AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def find_multiscales(attributes: Any) -> tuple[Any, str, Any] | None:
    """(the list, its JSON pointer within the attributes, the version beside it), or None where there is none."""
    if not isinstance(attributes, dict):
        return None
    ome = attributes.get("ome")
    if isinstance(ome, dict) and "multiscales" in ome:
        return ome["multiscales"], "/ome/multiscales", ome.get("version")
    if "multiscales" in attributes:
        return attributes["multiscales"], "/multiscales", None
    return None


def parse_multiscales(attributes: Any, where: str) -> Pyramid | None:
    """The first image of a group's attributes, None where they have no `multiscales`.

    Raises Malformed or Unsupported naming `where` and the JSON pointer. Without scales or units (as in 0.1 to 0.3) the
    levels have no size: it is not guessed.
    """
    found = find_multiscales(attributes)
    if found is None:
        return None
    images, pointer, version = found
    if not isinstance(images, list) or not images or not isinstance(images[0], dict):
        raise Malformed(f"{where}: {pointer} is {short(images)}, expected a list with an image.")
    image, here = images[0], f"{where}: {pointer}/0"
    _require_known_version(image.get("version", version), here)
    names, units = _axes(image.get("axes"), f"{here}/axes")
    datasets = image.get("datasets")
    if not isinstance(datasets, list) or not 1 <= len(datasets) <= MAX_LEVELS:
        raise Malformed(f"{here}/datasets is {short(datasets)}, expected a list of 1 to {MAX_LEVELS} levels.")
    common = _transformation(image.get("coordinateTransformations"), names, f"{here}/coordinateTransformations")
    levels = tuple(_level(item, names, common, f"{here}/datasets/{k}") for k, item in enumerate(datasets))
    if len({level.path for level in levels}) < len(levels):
        raise Malformed(f"{here}/datasets names the same path twice: {short([level.path for level in levels])}.")
    return Pyramid(names, units, levels, convention_of(names, levels), where)


def channel_labels(document: Any, count: int) -> tuple[str, ...]:
    """What `omero` calls each of so many channels, "" without a name. `document`: `zarr.json` or `.zattrs`, parsed.

    It is for display only, so what is not understood of it is no error.
    """
    attributes = document.get("attributes", document) if isinstance(document, dict) else {}
    place = attributes.get("ome", attributes) if isinstance(attributes, dict) else {}
    omero = place.get("omero") if isinstance(place, dict) else None
    channels = omero.get("channels") if isinstance(omero, dict) else None
    listed = channels if isinstance(channels, list) else []
    labels = [channel.get("label") if isinstance(channel, dict) else None for channel in listed[:count]]
    found = [label if isinstance(label, str) and label.isprintable() else "" for label in labels]
    return (*found, *[""] * (count - len(found)))


def safe_path(path: Any, where: str) -> str:
    """A path below its group, `/` between its parts. Raises Malformed for one that leads elsewhere."""
    parts = path.split("/") if isinstance(path, str) else []
    sound = parts and all(part not in ("", ".", "..") and part.isprintable() for part in parts)
    if not sound or any(mark in path for mark in ("\\", ":", "?", "#")) or len(path) > 1024:
        raise Malformed(f"{where} is {short(path)}, expected a path below the folder it stands in.")
    return str(path)


def _require_known_version(version: Any, where: str) -> None:
    """0.1 to 0.5 and their drafts ("0.4-dev-spatialdata"); some writers state none."""
    if version is not None and not (isinstance(version, str) and re.fullmatch(r"0\.[1-5]([^0-9].*)?", version)):
        raise Unsupported(f"{where}: its OME-NGFF version is {short(version)}; accepted are 0.1 to 0.5.")


def _axes(value: Any, where: str) -> tuple[str, tuple[str | None, ...]]:
    """(a letter per axis, their units); nothing where there are no axes, as in 0.1 and 0.2."""
    if value is None:
        return "", ()
    if not isinstance(value, list) or not 1 <= len(value) <= 5:
        raise Malformed(f"{where} is {short(value)}, expected a list of 1 to 5 axes.")
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in value]
    for number, axis in enumerate(axes):
        if not isinstance(axis, dict) or not isinstance(axis.get("name"), str):
            raise Malformed(f"{where}/{number} is {short(axis)}, expected an axis with a name.")
    letters = axis_letters([axis["name"] for axis in axes], where)
    for number, (axis, letter) in enumerate(zip(axes, letters, strict=True)):
        kind = axis.get("type")
        if kind is not None and kind != AXIS_TYPES[letter]:
            raise Malformed(
                f"{where}/{number}/type is {short(kind)}, but the axis is {short(axis['name'])}, which is of type "
                f"{AXIS_TYPES[letter]!r}."
            )
    return letters, tuple(unit if isinstance(unit := axis.get("unit"), str) else None for axis in axes)


def _level(item: Any, axes: str, common: tuple[Floats | None, Floats | None], where: str) -> PyramidLevel:
    if not isinstance(item, dict):
        raise Malformed(f"{where} is {short(item)}, expected an object with a path.")
    path = safe_path(item.get("path"), f"{where}/path")
    scale, translation = _transformation(
        item.get("coordinateTransformations"), axes, f"{where}/coordinateTransformations"
    )
    common_scale, common_translation = common
    if common_scale is not None and scale is not None:
        scale = tuple(a * b for a, b in zip(common_scale, scale, strict=True))
        if translation is not None:
            translation = tuple(a * b for a, b in zip(common_scale, translation, strict=True))
    if common_translation is not None:
        translation = tuple(a + b for a, b in zip(common_translation, translation or (0.0,) * len(axes), strict=True))
    return PyramidLevel(path, scale, translation)


def _transformation(value: Any, axes: str, where: str) -> tuple[Floats | None, Floats | None]:
    """(scale, translation) of a list that has at most one of each, in this order; nothing where there are no axes."""
    if value is None or value == [] or not axes:
        return None, None
    if not isinstance(value, list):
        raise Malformed(f"{where} is {short(value)}, expected a list of transformations.")
    scale: Floats | None = None
    translation: Floats | None = None
    for number, item in enumerate(value):
        here = f"{where}/{number}"
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "scale" and scale is None and translation is None:
            scale = positive(numbers(item.get("scale"), len(axes), f"{here}/scale"), axes, f"{here}/scale")
        elif kind == "translation" and translation is None:
            translation = numbers(item.get("translation"), len(axes), f"{here}/translation")
        elif kind in ("scale", "translation"):
            raise Malformed(f"{here} is a second {kind}, or a scale after a translation; expected one of each.")
        elif kind != "identity":
            raise Unsupported(f"{here} is {short(item)}; accepted are scale, translation and identity.")
    return scale, translation
