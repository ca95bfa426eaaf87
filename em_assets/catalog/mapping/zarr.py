"""Zarr containers, versions 2 and 3, with or without OME-NGFF multiscales: what their metadata say of a volume.

Of all that a container holds, the level that the spec names counts; which document says what follows
`formats/zarr.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from em_assets.catalog.mapping.containers import (
    COMPRESSORS,
    NO_COMPRESSION,
    Axes,
    Values,
    WantedVolume,
    compression,
    counts,
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
from em_assets.catalog.values import count, dtype, number
from em_assets.formats._pyramid import AXES, usual_axes
from em_assets.formats.reader import Scalar

NO_COMPRESSORS = frozenset({"bytes", "transpose", "crc32c"})
"""Codecs of Zarr version 3 that leave the size as it is, or nearly so."""


def read(document: StatedDocument, context: Context) -> Iterator[Statement]:
    for wanted in wanted_volumes(context.spec, "zarr"):
        level = _level(wanted, context)
        if level.attributes is not None and level.attributes.document is document:
            yield from _multiscales(level.attributes, wanted.name, level.number)
        for array in (kept(context, level.array, ".zarray"), kept(context, level.array, "zarr.json")):
            if array is document:
                yield from _array(array, level, wanted.name, context)
        own = _attributes(context, level.array)
        if own is not None and own.document is document:
            yield from _transform(own, wanted.name, is_read=level.attributes is None)


@dataclass(frozen=True, slots=True)
class _Attributes:
    """The attributes of a group or an array: a document, and where in it they stand."""

    document: StatedDocument
    pointer: str

    @property
    def multiscales(self) -> str | None:
        """Pointer of the first image, None where there is none."""
        for place in ("/ome/multiscales/0", "/multiscales/0"):
            if f"{self.pointer}{place}/datasets/0/path" in self.document.values:
                return f"{self.pointer}{place}"
        return None

    @property
    def paths(self) -> list[str]:
        """Of the levels."""
        return texts(self.document.values, f"{self.multiscales}/datasets/{{}}/path")

    @property
    def axes(self) -> str:
        """One letter each; empty where they are not stated or not understood."""
        return letters([name for _, name in self.axis_names])

    @property
    def axis_names(self) -> list[tuple[str, Scalar]]:
        """(key, name): objects with a name or, in version 0.3, names."""
        values, found = self.document.values, list[tuple[str, Scalar]]()
        while True:
            place = f"{self.multiscales}/axes/{len(found)}"
            key = next((key for key in (f"{place}/name", place) if key in values), None)
            if key is None:
                return found
            found.append((key, values[key]))


@dataclass(frozen=True, slots=True)
class _Level:
    """Where the wanted level's metadata stand."""

    array: str
    """Its path in the container."""
    attributes: _Attributes | None = None
    """Those with the multiscales that list it."""
    number: int = 0
    """Its place among them."""


def _level(wanted: WantedVolume, context: Context) -> _Level:
    """By the group's multiscales; or by those of a group on the way to the path that is given as level."""
    places: list[tuple[str, int | str]] = [(wanted.group, wanted.level)]
    parts = wanted.level.split("/") if isinstance(wanted.level, str) else []
    for length in range(len(parts), 0, -1):
        within = "/".join(parts[length:])
        places.append((joined(wanted.group, "/".join(parts[:length])), within or 0))
    for group, level in places:
        attributes = _attributes(context, group)
        paths = attributes.paths if attributes is not None and attributes.multiscales is not None else []
        place = paths.index(level) if level in paths else int(level) if str(level).isdecimal() else -1
        if 0 <= place < len(paths):
            return _Level(joined(group, paths[place]), attributes, place)
    return _Level(joined(wanted.group, wanted.level if isinstance(wanted.level, str) else ""))


def _attributes(context: Context, path: str) -> _Attributes | None:
    if (document := kept(context, path, "zarr.json")) is not None:
        return _Attributes(document, "/attributes")
    document = kept(context, path, ".zattrs")
    return None if document is None else _Attributes(document, "")


def _multiscales(attributes: _Attributes, volume: str | None, level: int) -> Iterator[Statement]:
    document, image, paths = attributes.document, attributes.multiscales, attributes.paths
    values = document.values
    names = attributes.axis_names
    last = f"{image}/datasets/{len(paths) - 1}/path"
    yield from state(document, volume, "source_levels", float(len(paths)), last, note="as many as are listed")
    keys = (f"{image}/version", f"{attributes.pointer}/ome/version")
    key = next((key for key in keys if re.match(r"0\.\d", str(values.get(key)))), f"{image}/datasets/0/path")
    version = str(values[key]) if key in keys else ""
    form = f"OME-Zarr {version}".strip()
    yield from state(document, volume, "file_format", form, key, stated=version or "multiscales")
    if not attributes.axes:
        return
    stated = ", ".join(str(name) for _, name in names)
    yield from state(document, volume, "source_axes", attributes.axes, names[0][0], stated=stated)
    units = [values.get(f"{image}/axes/{axis}/unit") for axis in range(len(names))]
    common = _scale(values, image or "")
    factors = [number(value) or 0.0 for _, value in listed(values, common)] if common else [1.0] * len(names)
    if scale := _scale(values, f"{image}/datasets/{level}"):
        note = None if all(factor == 1 for factor in factors) else "times the scale that all levels share"
        yield from Axes(document, volume, attributes.axes).state_scale(scale, units, factors, note=note)


def _scale(values: Values, place: str) -> str | None:
    """Prefix of the numbers of the scale among the transformations there."""
    step = 0
    while f"{place}/coordinateTransformations/{step}/type" in values:
        here = f"{place}/coordinateTransformations/{step}"
        if values[f"{here}/type"] == "scale":
            return f"{here}/scale"
        step += 1
    return None


def _array(document: StatedDocument, level: _Level, volume: str | None, context: Context) -> Iterator[Statement]:
    values = document.values
    axes = Axes(document, volume, _array_axes(document, level, context))
    yield from axes.state_sizes("/shape")
    if document.path.endswith(".zarray"):
        yield from axes.state_chunk("/chunks")
        yield from _dtype(document, volume, "/dtype")
        yield from _v2_compression(document, volume)
    else:
        yield from _v3_packing(axes)
        yield from _dtype(document, volume, "/data_type")
    if level.attributes is None:
        version = count(values.get("/zarr_format"))
        yield from state(document, volume, "file_format", f"Zarr v{version:.0f}" if version else None, "/zarr_format")


def _array_axes(document: StatedDocument, level: _Level, context: Context) -> str:
    """As the multiscales or the array itself names them; else those of an image, counted from the last."""
    rank = len(listed(document.values, "/shape"))
    own = _attributes(context, level.array)
    found = [letters([name for _, name in listed(document.values, "/dimension_names")])]
    if level.attributes is not None:
        found = [level.attributes.axes]
    elif own is not None:
        keys = (f"{own.pointer}/_ARRAY_DIMENSIONS", f"{own.pointer}/transform/axes")
        found += [letters([name for _, name in listed(own.document.values, key)]) for key in keys]
    usual = usual_axes(rank) if 0 < rank <= len(AXES) else ""
    return next((axes for axes in found if axes and len(axes) == rank), usual)


def _dtype(document: StatedDocument, volume: str | None, key: str) -> Iterator[Statement]:
    stated = document.values.get(key)
    is_bool = stated in ("|b1", "bool")
    note = "truth values, a byte each" if is_bool else None
    yield from state(document, volume, "dtype", "uint8" if is_bool else dtype(stated), key, note=note)


def _v2_compression(document: StatedDocument, volume: str | None) -> Iterator[Statement]:
    values = document.values
    if "/compressor" in values and values["/compressor"] is None:
        yield from state(document, volume, "compression", NO_COMPRESSION, "/compressor", stated="null")
    name = compression(values, "/compressor/id", "/compressor")
    yield from state(document, volume, "compression", name, "/compressor/id", stated=name)


def _v3_packing(axes: Axes) -> Iterator[Statement]:
    """A shard's inner chunks are what is stored together: each is read by itself."""
    values, chain, chunk = axes.document.values, "/codecs", "/chunk_grid/configuration/chunk_shape"
    note = None
    if values.get("/codecs/0/name") == "sharding_indexed":
        shard = [f"{size:.0f}" for _, size in counts(values, chunk)]
        note = f"in shards of {', '.join(shard)}" if shard else None
        chain, chunk = "/codecs/0/configuration/codecs", "/codecs/0/configuration/chunk_shape"
    yield from axes.state_chunk(chunk, note)
    names = _codec_names(values, chain)
    packed = [key for key in names if values[key] in COMPRESSORS]
    if packed:
        name = compression(values, packed[0], f"{packed[0].removesuffix('/name')}/configuration")
        yield from state(axes.document, axes.volume, "compression", name, packed[0], stated=name)
    elif names and all(values[key] in NO_COMPRESSORS for key in names):
        stated = ", ".join(str(values[key]) for key in names)
        yield from state(axes.document, axes.volume, "compression", NO_COMPRESSION, names[0], stated=stated)


def _codec_names(values: Values, chain: str) -> list[str]:
    """Keys of the names; a codec without options may be written as its name alone."""
    found: list[str] = []
    while True:
        place = f"{chain}/{len(found)}"
        key = next((key for key in (f"{place}/name", place) if key in values), None)
        if key is None:
            return found
        found.append(key)


def _transform(own: _Attributes, volume: str | None, *, is_read: bool) -> Iterator[Statement]:
    """COSEM's `transform` of an array; voxels are placed by it where no multiscales list the array."""
    yield from state_transform(
        own.document, volume, f"{own.pointer}/transform", "file header" if is_read else "file metadata"
    )
