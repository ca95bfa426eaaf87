"""What the mappings of containers of chunks share: which volumes of one are wanted, which document of it is where.

Lists in documents, sizes and chunks along an array's own axes (`Axes`), names of compressions, and COSEM's
`transform`, which Zarr and N5 both have, are here, too. What a format's own keys mean stands in `zarr.py`, `n5.py` and
`precomputed.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.catalog.values import count, number
from em_assets.catalog.vocabulary import Authority
from em_assets.datasets.source import ChunkedSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError
from em_assets.formats._pyramid import axis_letters
from em_assets.formats._units import to_nanometres
from em_assets.formats.reader import Scalar
from em_assets.sources.claims import document_path

Values = Mapping[str, Scalar]
ZYX = "zyx"
COMPRESSORS = frozenset({"zstd", "gzip", "zlib", "blosc", "lz4", "bz2", "bzip2", "xz", "lzma"})
NO_COMPRESSION = "none"


def state(
    document: StatedDocument,
    volume: str | None,
    field: str,
    value: str | float | None,
    key: str,
    *,
    authority: Authority = "file header",
    unit: str = "",
    stated: str | None = None,
    note: str | None = None,
) -> Iterator[Statement]:
    """Nothing if there is no value, or no such claim."""
    if value is not None and value != "" and key in document.values:
        stated = f"{document.values[key]} {unit}".strip() if stated is None else stated
        yield Statement(field, value, authority, document.path, key, stated, volume, note)


@dataclass(frozen=True, slots=True)
class WantedVolume:
    """A volume as the spec asks for it."""

    name: str | None
    group: str
    level: int | str


def wanted_volumes(spec: DatasetSpec, kind: str) -> list[WantedVolume]:
    """Of a container of this kind; empty if the spec's source is another."""
    source = spec.source
    if not isinstance(source, ChunkedSource) or source.kind != kind:
        return []
    further = [WantedVolume(name, volume.group or "", volume.level) for name, volume in spec.volumes.items()]
    return [WantedVolume(None, source.group, source.level), *further]


def joined(folder: str, path: str) -> str:
    return "/".join(part for part in (folder, path) if part)


def kept(context: Context, path: str, name: str) -> StatedDocument | None:
    """The metadata document of that name at a path of the container, as it is kept: `__` for `/`."""
    return context.documents.get(document_path(joined(path, name).replace("/", "__")))


def listed(values: Values, prefix: str) -> list[tuple[str, Scalar]]:
    """(key, value) of a list's scalars: prefix/0, prefix/1 ..."""
    found: list[tuple[str, Scalar]] = []
    while (key := f"{prefix}/{len(found)}") in values:
        found.append((key, values[key]))
    return found


def texts(values: Values, pattern: str) -> list[str]:
    """The texts at these keys, `{}` for 0, 1 ..., up to the first that is none or blank."""
    found: list[str] = []
    while isinstance(text := values.get(pattern.format(len(found))), str) and text.strip():
        found.append(text)
    return found


def counts(values: Values, prefix: str) -> list[tuple[str, float]]:
    """A list of positive whole numbers; empty if one of them is none."""
    found = [(key, size) for key, value in listed(values, prefix) if (size := count(value)) is not None]
    return found if len(found) == len(listed(values, prefix)) else []


def letters(names: Sequence[Scalar]) -> str:
    """One of `tczyx` per axis; empty unless all are known and different."""
    if not all(isinstance(name, str) for name in names):
        return ""
    try:
        return axis_letters([str(name) for name in names], "")
    except EmAssetsError:
        return ""


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of an array in its own order, and the document that states things along them."""

    document: StatedDocument
    volume: str | None
    names: str
    """One letter of `tczyx` per axis."""

    def state_sizes(self, prefix: str) -> Iterator[Statement]:
        """Voxels and channels by a list of as many numbers as there are axes."""
        sizes = counts(self.document.values, prefix)
        if len(sizes) == len(self.names):
            for axis, (key, size) in zip(self.names, sizes, strict=True):
                field = "channels" if axis == "c" else f"source_size_{axis}"
                if axis != "t":
                    yield from state(self.document, self.volume, field, size, key)

    def state_chunk(self, prefix: str, note: str | None = None) -> Iterator[Statement]:
        sizes = counts(self.document.values, prefix)
        if len(sizes) == len(self.names) and all(axis in self.names for axis in ZYX):
            chunk = " x ".join(f"{sizes[self.names.index(axis)][1]:.0f}" for axis in ZYX)
            stated = ", ".join(f"{size:.0f}" for _, size in sizes)
            yield from state(self.document, self.volume, "source_chunk", chunk, sizes[0][0], stated=stated, note=note)

    def state_scale(
        self,
        prefix: str,
        units: Sequence[Scalar],
        factors: Sequence[float],
        *,
        authority: Authority = "file header",
        note: str | None = None,
    ) -> Iterator[Statement]:
        """Sizes of a voxel by a list of numbers, each times its factor; nothing along axes whose unit is not known."""
        sizes = listed(self.document.values, prefix)
        if not len(sizes) == len(self.names) == len(units) == len(factors):
            return
        for axis, (key, size), unit, factor in zip(self.names, sizes, units, factors, strict=True):
            if axis in ZYX and isinstance(unit, str):
                yield from state(
                    self.document,
                    self.volume,
                    f"voxel_size_{axis}_nm",
                    nanometres(size, factor, unit),
                    key,
                    authority=authority,
                    unit=unit,
                    note=note,
                )


def nanometres(size: Scalar, factor: float, unit: str) -> float | None:
    """A voxel's size; what is written in decimal is taken exactly so."""
    found = number(size)
    product = None if found is None else number(found * factor)
    return to_nanometres(Fraction(repr(product)), unit.strip()) if product is not None and product > 0 else None


def compression(values: Values, name_key: str, options: str) -> str | None:
    """`zstd 1`, `blosc lz4 5`: the codec, what blosc uses within, the level; None for what is not known."""
    name = values.get(name_key)
    if not isinstance(name, str) or name not in COMPRESSORS:
        return None
    within = values.get(f"{options}/cname")
    levels = [number(values.get(f"{options}/{key}")) for key in ("level", "clevel")]
    level = next((f"{level:.0f}" for level in levels if level is not None and level >= 0), "")  # N5: -1 is the default
    parts = [name, within if isinstance(within, str) else "", level]
    return " ".join(part for part in parts if part)


def state_transform(
    document: StatedDocument, volume: str | None, pointer: str, authority: Authority = "file header"
) -> Iterator[Statement]:
    """Values belong to the axes that are named beside them, in whichever order."""
    values = document.values
    axes = letters([name for _, name in listed(values, f"{pointer}/axes")])
    units = [unit for _, unit in listed(values, f"{pointer}/units")]
    if axes:
        scale = Axes(document, volume, axes)
        yield from scale.state_scale(f"{pointer}/scale", units, [1.0] * len(axes), authority=authority)
