"""N5 containers: what their `attributes.json` say of a volume. Their x, y, z order ends here.

Levels and sizes stand in attributes of several tools, COSEM's `multiscales` and `transform`, `pixelResolution` and
others; which of them holds follows `formats/n5.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from em_assets.catalog.mapping.containers import (
    NO_COMPRESSION,
    Axes,
    WantedVolume,
    compression,
    joined,
    kept,
    letters,
    listed,
    state,
    state_transform,
    texts,
    wanted_volumes,
)
from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.catalog.values import dtype, number
from em_assets.formats.reader import Scalar

DOCUMENT = "attributes.json"
LISTED = ("/multiscales/0/datasets/{}/path", "/multiscales/0/datasets/{}")
"""Where COSEM lists the paths of levels; older files have paths alone."""


def read(document: StatedDocument, context: Context) -> Iterator[Statement]:
    for wanted in wanted_volumes(context.spec, "n5"):
        level = _level(wanted, context)
        group = kept(context, level.group, DOCUMENT)
        array = kept(context, level.array, DOCUMENT)
        if array is None:
            continue
        if array is document:
            yield from _array(array, _axes(array, group), wanted.name)
            yield from _voxel_size(array, group, wanted.name)
        if group is document:
            yield from _levels(group, wanted.name)
            yield from state_transform(group, wanted.name, f"/multiscales/0/datasets/{level.number}/transform")
            if array is not group and not (_has_resolution(array) or "/transform/scale/0" in array.values):
                yield from _outer_voxel_size(group, array, level.number, wanted.name)


@dataclass(frozen=True, slots=True)
class _Level:
    """Where the wanted level's metadata stand: paths in the container."""

    group: str
    """With what is said of all levels; the array itself if it is no level of a group."""
    array: str
    number: int
    """Its place among the levels."""


def _level(wanted: WantedVolume, context: Context) -> _Level:
    """Of a group, by the levels that it lists or by their usual names; an array may be named by its path, too."""
    paths = _paths(kept(context, wanted.group, DOCUMENT), wanted.group, context)
    level = wanted.level
    if isinstance(level, str) and level not in paths:
        array = joined(wanted.group, level)
        if _is_array(kept(context, array, DOCUMENT)):
            group, _, name = array.rpartition("/")
            siblings = _paths(kept(context, group, DOCUMENT), group, context)
            return _Level(group, array, siblings.index(name)) if name in siblings else _Level(array, array, 0)
    place = paths.index(level) if level in paths else int(level) if str(level).isdecimal() else -1
    if 0 <= place < len(paths):
        return _Level(wanted.group, joined(wanted.group, paths[place]), place)
    return _Level(wanted.group, wanted.group, 0)


def _paths(group: StatedDocument | None, path: str, context: Context) -> list[str]:
    """The levels of a group: as COSEM's multiscales list them, else `s0`, `s1` ... as far as there are arrays."""
    values = {} if group is None else group.values
    for pattern in LISTED:
        if found := texts(values, pattern):
            return found
    found = []
    while _is_array(kept(context, joined(path, f"s{len(found)}"), DOCUMENT)):
        found.append(f"s{len(found)}")
    return found


def _is_array(document: StatedDocument | None) -> bool:
    return document is not None and "/dimensions/0" in document.values and "/dataType" in document.values


def _axes(array: StatedDocument, group: StatedDocument | None) -> str:
    """In the file's own order, x first; without names x, y, z. Empty for more axes that nobody names."""
    rank = len(listed(array.values, "/dimensions"))
    for document in (array, group):
        names = [] if document is None else [name for _, name in listed(document.values, "/axes")]
        if len(names) == rank and (found := letters(names)):
            return found
    return "xyz"[:rank] if rank <= 3 else ""


def _array(array: StatedDocument, axes: str, volume: str | None) -> Iterator[Statement]:
    values = array.values
    stated = Axes(array, volume, axes)
    yield from stated.state_sizes("/dimensions")
    yield from stated.state_chunk("/blockSize")
    yield from state(array, volume, "dtype", dtype(values.get("/dataType")), "/dataType")
    if axes:
        shown = "x first" if "/axes/0" not in values else ", ".join(str(name) for _, name in listed(values, "/axes"))
        yield from state(array, volume, "source_axes", axes[::-1], "/dimensions/0", stated=shown)
    yield from state(array, volume, "file_format", "N5", "/dataType", stated="N5, by its attributes")
    for key in ("/compression/type", "/compression", "/compressionType"):  # the last until version 1.5
        name = NO_COMPRESSION if values.get(key) == "raw" else compression(values, key, "/compression")
        yield from state(array, volume, "compression", name, key)


def _levels(group: StatedDocument, volume: str | None) -> Iterator[Statement]:
    for pattern in LISTED:
        if paths := texts(group.values, pattern):
            key = pattern.format(len(paths) - 1)
            yield from state(group, volume, "source_levels", float(len(paths)), key, note="as many as are listed")
            return
    levels = 0
    while _numbers(group, f"/scales/{levels}"):
        levels += 1
    key = f"/scales/{levels - 1}/0"
    yield from state(group, volume, "source_levels", float(levels), key, note="as many as have a scale")


def _has_resolution(document: StatedDocument) -> bool:
    return any(
        f"{prefix}/0" in document.values
        for prefix in ("/pixelResolution/dimensions", "/pixelResolution", "/resolution")
    )


def _voxel_size(array: StatedDocument, group: StatedDocument | None, volume: str | None) -> Iterator[Statement]:
    """An array's own size is that of the volume at full resolution where `downsamplingFactors` stand beside it."""
    if "/transform/scale/0" in array.values:
        yield from state_transform(array, volume, "/transform")
        return
    axes = _axes(array, group)
    factors = _numbers(array, "/downsamplingFactors")
    yield from _resolution(array, volume, axes, factors or [1.0] * len(axes))


def _outer_voxel_size(
    group: StatedDocument, array: StatedDocument, level: int, volume: str | None
) -> Iterator[Statement]:
    """The group's size is that of level 0; a coarser level without factors has none."""
    axes = _axes(array, group)
    factors = _numbers(array, "/downsamplingFactors")
    for key in (f"/scales/{level}", f"/downsamplingFactors/{level}"):
        factors = factors or _numbers(group, key)
    if factors or level == 0:
        yield from _resolution(group, volume, axes, factors or [1.0] * len(axes))


def _resolution(document: StatedDocument, volume: str | None, axes: str, factors: list[float]) -> Iterator[Statement]:
    """`pixelResolution` has a unit or, as a bare list, none; `resolution` one only where `units` stand beside it."""
    note = "at full resolution, times downsampling factors" if any(factor != 1 for factor in factors) else None
    unit: Scalar = document.values.get("/pixelResolution/unit")
    units = [value for _, value in listed(document.values, "/units")]
    scale = Axes(document, volume, axes)
    yield from scale.state_scale("/pixelResolution/dimensions", [unit] * len(axes), factors, note=note)
    if "/pixelResolution/dimensions/0" not in document.values and "/pixelResolution/0" not in document.values:
        yield from scale.state_scale("/resolution", units, factors, note=note)


def _numbers(document: StatedDocument, prefix: str) -> list[float]:
    """A list of positive numbers, empty if one of them is none."""
    found = [number(value) for _, value in listed(document.values, prefix)]
    return [value for value in found if value] if all(value and value > 0 for value in found) else []
