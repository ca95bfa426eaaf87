"""N5 volumes of other people: from address to reader. Their x, y, z order ends here.

An N5 array is known by `attributes.json`; groups need no document, and each tool keeps levels, sizes and units in its
own attributes: COSEM `multiscales` and `transform`, N5 viewer and Paintera `pixelResolution`, `resolution`, `scales`,
`downsamplingFactors`. Blocks are decoded by `_chunk_codecs.py` and read by `_chunked.py`. Specification:
github.com/saalfeldlab/n5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.fetch.client import Client
from em_assets.fetch.replies import NotThere, safe_url
from em_assets.formats._chunk_codecs import STRUCT_FORMATS, Index, N5Codec
from em_assets.formats._chunked import ChunkedReader, ChunkedVolume, join
from em_assets.formats._compression import BLOSC_CODECS, Compression
from em_assets.formats._cosem import cosem_pyramid
from em_assets.formats._json import MAX_JSON_BYTES, parse_json
from em_assets.formats._ome_multiscales import MAX_LEVELS, safe_path
from em_assets.formats._pyramid import (
    Floats,
    Pyramid,
    PyramidLevel,
    axis_letters,
    numbers,
    positive,
    require_consistent,
)
from em_assets.formats._stored_array import (
    StoredArray,
    require_chunk_bytes,
    require_shapes,
    short,
    whole_numbers,
)
from em_assets.settings import Settings

__all__ = ["N5Reader", "open_n5"]

DOCUMENT = "attributes.json"
DTYPES = tuple(name for name in STRUCT_FORMATS if name != "float16")
"""Those that N5 has."""
COMPRESSIONS: dict[str, Compression | None] = {
    "raw": None,
    "gzip": "gzip",
    "blosc": "blosc",
    "bzip2": "bz2",
    "xz": "xz",
    "zstd": "zstd",
}
Attributes = dict[str, Any]


class N5Reader(ChunkedReader):
    """One level of an N5 volume: a `VolumeReader`."""


def open_n5(url: str, dataset: str | None, client: Client, settings: Settings) -> N5Reader:
    """The volume at `url`, or the one at the path `dataset` below it: an array, or a group of levels `s0`, `s1`, ...

    Of a group of levels `dataset` may also name the level, by its path or number; without it, it is the first. Raises
    NotThere, Malformed and Unsupported naming document and field, Mismatch if there is no such level, Unavailable.
    """
    tree = _Tree(url.rstrip("/"), client, settings)
    path = safe_path(dataset.strip("/"), f"{safe_url(tree.url)}: the dataset asked for") if dataset else ""
    if _is_array(tree.attributes(path)):
        group, within = tree.group_of(path)
        if group is not None:
            volume = tree.volume(group, tree.level_paths(group))
            return N5Reader(volume, volume.level_of(within))
        return N5Reader(tree.volume(path, [""]), 0)
    levels = tree.level_paths(path)
    if levels:
        return N5Reader(tree.volume(path, levels), 0)
    if dataset and dataset.isascii() and dataset.isdecimal() and (levels := tree.level_paths("")):
        volume = tree.volume("", levels)
        return N5Reader(volume, volume.level_of(dataset))
    raise NotThere(
        f"{safe_url(join(tree.url, path))} is no N5 array and has no levels (s0, s1, ...) below it; name an array or "
        "a group of levels (dataset).",
        404,
    )


class _Tree:
    """The attributes below one address, each document fetched once."""

    def __init__(self, url: str, client: Client, settings: Settings) -> None:
        self.url = url
        self._client = client
        self._settings = settings
        self._raw: dict[str, bytes | None] = {}

    def attributes(self, path: str) -> Attributes:
        """Of a group or an array; empty for a group that needs none."""
        document = f"{path}/{DOCUMENT}".lstrip("/")
        if document not in self._raw:
            try:
                reply = self._client.get(join(self.url, document), max_bytes=MAX_JSON_BYTES, accept_gzip=True)
                self._raw[document] = bytes(reply.body)
            except NotThere:
                self._raw[document] = None
        raw = self._raw[document]
        if raw is None:
            return {}
        found = parse_json(raw, self.where(path))
        if not isinstance(found, dict):
            raise Malformed(f"{self.where(path)} is {short(found)}, expected a JSON object.")
        return found

    def where(self, path: str) -> str:
        return safe_url(join(self.url, f"{path}/{DOCUMENT}".lstrip("/")))

    def level_paths(self, group: str) -> list[str]:
        """The levels of a group, as it lists them, or by their usual names; empty if there are none."""
        listed = self._listed(group)
        if listed is not None:
            return [path for path, _ in listed]
        found: list[str] = []
        while len(found) < MAX_LEVELS and _is_array(self.attributes(f"{group}/s{len(found)}".lstrip("/"))):
            found.append(f"s{len(found)}")
        return found

    def group_of(self, path: str) -> tuple[str | None, str]:
        """(the group of levels that an array belongs to, its path below that), (None, "") for an array by itself."""
        group = path
        while group:
            group = group.rpartition("/")[0]
            within = path[len(group) :].lstrip("/")
            if within in [listed for listed, _ in self._listed(group) or []]:
                return group, within
        group, _, name = path.rpartition("/")
        if re.fullmatch(r"s\d{1,2}", name) and name in self.level_paths(group):
            return group, name
        return None, ""

    def volume(self, group: str, paths: Sequence[str]) -> ChunkedVolume:
        """Raises Malformed or Unsupported for a level that cannot be read; one that is not there stays away."""
        full = [f"{group}/{path}".strip("/") for path in paths]
        found = [self.attributes(path) for path in full]
        arrays = [
            parse_array(attributes, self.where(path)) if _is_array(attributes) else None
            for path, attributes in zip(full, found, strict=True)
        ]
        pyramid = self._pyramid(group, paths, found, arrays)
        require_consistent(pyramid, [None if array is None else array.shape for array in arrays])
        documents = {path: raw for path, raw in sorted(self._raw.items()) if raw is not None}
        proofs = tuple(f"{path}/{DOCUMENT}".lstrip("/") for path in full)
        return ChunkedVolume(self.url, self._client, self._settings, documents, group, pyramid, tuple(arrays), proofs)

    def _listed(self, group: str) -> list[tuple[str, Any]] | None:
        """(path, transform) of each level in COSEM's `multiscales`, None without one."""
        images = self.attributes(group).get("multiscales")
        if images is None:
            return None
        where = f"{self.where(group)}: /multiscales"
        if not isinstance(images, list) or not images or not isinstance(images[0], dict):
            raise Malformed(f"{where} is {short(images)}, expected a list with an image.")
        datasets = images[0].get("datasets")
        if not isinstance(datasets, list) or not 1 <= len(datasets) <= MAX_LEVELS:
            raise Malformed(f"{where}/0/datasets is {short(datasets)}, expected a list of 1 to {MAX_LEVELS} levels.")
        levels = []
        for number, item in enumerate(datasets):
            fields = item if isinstance(item, dict) else {"path": item}  # older COSEM files list paths alone
            levels.append((safe_path(fields.get("path"), f"{where}/0/datasets/{number}/path"), fields.get("transform")))
        if len({path for path, _ in levels}) < len(levels):
            raise Malformed(f"{where}/0/datasets names the same path twice.")
        return levels

    def _pyramid(
        self,
        group: str,
        paths: Sequence[str],
        found: Sequence[Attributes],
        arrays: Sequence[StoredArray | None],
    ) -> Pyramid:
        known = next((array for array in arrays if array is not None), None)
        if known is None:
            raise Mismatch(f"{self.where(group)} lists {', '.join(paths)}, but none of them is there.")
        own = found[arrays.index(known)]
        outer = self.attributes(group)
        axes = _axes(own, outer, len(known.shape), self.where(group))
        listed = dict(self._listed(group) or []) if paths != [""] else {}
        transforms = [
            (path, listed.get(path) or attributes.get("transform"))
            for path, attributes in zip(paths, found, strict=True)
        ]
        if all(transform is not None for _, transform in transforms):
            return cosem_pyramid(transforms, axes, self.where(group))
        sizes = [_voxel_size(attributes, outer, k, axes, self.where(group)) for k, attributes in enumerate(found)]
        units = next((units for size, units in sizes if size is not None), (None,) * len(axes))
        levels = tuple(
            PyramidLevel(path, size if stated == units else None, None)
            for path, (size, stated) in zip(paths, sizes, strict=True)
        )
        return Pyramid(axes, units, levels, "scale-only", self.where(group))


def parse_array(attributes: Attributes, where: str) -> StoredArray:
    """An array by its attributes, turned around to (z, y, x). Raises Malformed or Unsupported naming the field."""
    shape = whole_numbers(attributes.get("dimensions"), 0, f"{where}: /dimensions")[::-1]
    chunk = whole_numbers(attributes.get("blockSize"), 1, f"{where}: /blockSize")[::-1]
    require_shapes(shape, chunk, where)
    dtype = attributes.get("dataType")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Unsupported(f"{where}: /dataType is {short(dtype)}; accepted are {', '.join(DTYPES)}.")
    require_chunk_bytes(chunk, dtype, where)
    codec = N5Codec(dtype, chunk, _compression(attributes, where))
    return StoredArray(shape, chunk, dtype, 0, codec, _name_of, attributes=attributes)


def _name_of(cell: Index) -> str:
    return "/".join(map(str, cell[::-1]))


def _compression(attributes: Attributes, where: str) -> Compression | None:
    compression = attributes.get("compression")
    if compression is None and "compressionType" in attributes:  # until version 1.5
        compression = {"type": attributes["compressionType"]}
    if isinstance(compression, str):
        compression = {"type": compression}
    if not isinstance(compression, dict):
        raise Malformed(f"{where}: /compression is {short(compression)}, expected an object with a type.")
    name = compression.get("type")
    if not isinstance(name, str) or name not in COMPRESSIONS:
        raise Unsupported(f"{where}: /compression/type is {short(name)}; accepted are {', '.join(COMPRESSIONS)}.")
    if name == "blosc" and compression.get("cname", "lz4") not in BLOSC_CODECS:
        raise Unsupported(
            f"{where}: /compression/cname is {short(compression['cname'])}; accepted are {', '.join(BLOSC_CODECS)}."
        )
    return COMPRESSIONS[name]


def _is_array(attributes: Attributes) -> bool:
    return "dimensions" in attributes and "dataType" in attributes


def _axes(own: Attributes, outer: Attributes, count: int, where: str) -> str:
    """The axes in the order of the array, slowest first; without names, x is an N5 array's first, then y and z."""
    for attributes in (own, outer):
        names = attributes.get("axes")
        if isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names):
            return axis_letters(names[::-1], f"{where}: axes")
    if count > 3:
        raise Unsupported(f"{where}: the array has {count} axes and does not name them; accepted are up to 3 without.")
    return "xyz"[:count][::-1]


def _voxel_size(
    own: Attributes, outer: Attributes, level: int, axes: str, where: str
) -> tuple[Floats | None, tuple[str | None, ...]]:
    """(size of a level's voxel, its unit along each axis) in the order of `axes`; None where nobody states it.

    An array's own size is that of the volume at full resolution where `downsamplingFactors` stand beside it.
    """
    factors = own.get("downsamplingFactors")
    size, units = _resolution(own, axes, where)
    if size is None:
        size, units = _resolution(outer, axes, where)
        for key in ("scales", "downsamplingFactors"):
            listed = outer.get(key)
            if factors is None and isinstance(listed, list) and level < len(listed) and isinstance(listed[level], list):
                factors = listed[level]
        if factors is None and level > 0:
            return None, units
    if size is None or factors is None:
        return size, units
    here = f"{where}: the downsampling factors of level {level}"
    scaled = zip(size, positive(numbers(factors, len(axes), here)[::-1], axes, here), strict=True)
    return tuple(a * b for a, b in scaled), units


def _resolution(attributes: Attributes, axes: str, where: str) -> tuple[Floats | None, tuple[str | None, ...]]:
    """(size of a voxel, its unit along each axis) as one document states it, in the order of `axes`.

    `pixelResolution` has a unit or, as a bare list, none; `resolution` has one only where `units` stand beside it.
    """
    count = len(axes)
    stated: Any = attributes.get("pixelResolution")
    unit = None
    if isinstance(stated, dict):
        stated, unit = stated.get("dimensions"), stated.get("unit")
    units: list[Any] = [unit] * count
    if stated is None:
        stated, beside = attributes.get("resolution"), attributes.get("units")
        units = beside if isinstance(beside, list) and len(beside) == count else units
    if stated is None:
        return None, (None,) * count
    size = positive(numbers(stated, count, f"{where}: the resolution")[::-1], axes, f"{where}: the resolution")
    return size, tuple(unit if isinstance(unit, str) else None for unit in units[::-1])
