"""What grey values a stored volume has: `intensity.json`, for the catalogue and for whoever sets a contrast.

Moments and extremes are those of level 0, joined from what each shard's record says of its voxels; nothing is read for
them. Percentiles and the histogram need the voxels: they are those of one level, and it is named. Real voxels only;
one of a coarser level is real if any voxel under it is (`presence.py`), as the means of the pyramid have it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from em_assets.datasets.spec import Layout
from em_assets.errors import Malformed, Mismatch
from em_assets.records import DatasetFolder, PartitionRecord, VoxelStatistics, manifest_digest, partition_key
from em_assets.standardize.ome import level_factors, level_shapes
from em_assets.standardize.opening import open_level
from em_assets.standardize.presence import Presence
from em_assets.standardize.stored import shard_path
from em_assets.volume import Box, Zyx, ceil_divide, multiply, subtract

if TYPE_CHECKING:
    import zarr

INTENSITY = "intensity.json"
MOST_VOXELS = 2**26
"""The largest level whose voxels are read: it bounds what a volume of any size costs at the end of its job (64 MB of
8 bit). Crops of 400 voxels a side are read at full resolution; of larger volumes at least 8 million means are."""
PERCENTILES_PER_MILLE = (1, 10, 50, 250, 500, 750, 950, 990, 999)
BINS = 256
_FINE_BINS = 2**16
"""Bins from which percentiles are interpolated, where voxels have more than 16 bits; a multiple of BINS."""
_READ_BYTES = 8 * 2**20
"""Voxels that are read at once. With what zarr holds beside them (the chunks, compressed and not) about 30 MB."""
_COUNTED_VOXELS = 2**18
"""Voxels that are counted at once: they stay in the cache, and a mask of them takes 4 MB."""
_METHOD = 1
"""Part of the digest: raise it when the same voxels give other numbers, so that what is kept is computed again."""


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Histogram(_Kept):
    """Voxels in bins of equal width. A bin begins with its lower edge; the last one has its upper edge too."""

    start: float
    stop: float
    counts: tuple[int, ...]

    @property
    def edges(self) -> list[float]:
        """One more than there are bins."""
        return [float(edge) for edge in np.linspace(self.start, self.stop, len(self.counts) + 1)]


class Distribution(_Kept):
    """How the voxels of one level are distributed."""

    level: int
    """The finest one with at most `MOST_VOXELS` voxels."""
    voxels: int
    """Real and finite: those that are counted below."""
    missing_voxels: int
    not_finite_voxels: int
    """NaN or infinite."""
    percentiles: dict[str, float]
    """`0.1` to `99.9`; empty if no voxel is counted."""
    percentiles_within: float
    """How far a percentile may be from the exact one: 0 for voxels of up to 16 bits, else the width of a fine bin."""
    histogram: Histogram | None
    """8 bit: a bin for each grey value. Else 256 bins from this level's minimum to its maximum."""


class Intensity(_Kept):
    """The grey values of one image volume."""

    identity: str
    """The dataset's `DatasetSpec.identity()` (a further volume's own)."""
    voxels_sha256: str
    """`voxels_digest` of what it was computed of."""
    missing_voxels: int
    """Of level 0."""
    not_finite_voxels: int
    """Of level 0: NaN or infinite."""
    statistics: VoxelStatistics | None
    """Of level 0, all other voxels; None if there are none."""
    distribution: Distribution


_DOCUMENT = TypeAdapter(dict[str, Intensity])


def update_intensity(folder: DatasetFolder, layout: Layout, records: Iterable[PartitionRecord]) -> Intensity | None:
    """What `intensity.json` says of the folder's volume, computed and written first if it is of other voxels.

    None for labels, of which nothing is written. An `intensity.json` that cannot be read is begun anew: all in it can
    be computed again. One writer at a time. Raises as `intensity_of`.
    """
    if layout.content == "labels":
        return None
    records = list(records)
    try:
        kept = read_intensities(folder)
    except Malformed:
        kept = {}
    known = kept.get(folder.sub or "")
    if known is not None and known.voxels_sha256 == voxels_digest(layout, records):
        return known
    intensity = intensity_of(folder, layout, records)
    if intensity is not None:
        write_intensities(folder, {**kept, folder.sub or "": intensity})
    return intensity


def read_intensities(folder: DatasetFolder) -> dict[str, Intensity]:
    """Of each image volume of the dataset, by name, the main one's being ""; empty if there is no `intensity.json`.

    Raises Malformed if it is not one.
    """
    try:
        return _DOCUMENT.validate_json(folder.read(INTENSITY))
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise Malformed(
            f"{folder.uri(INTENSITY)} does not say the grey values of volumes ({where}: {first['msg']}); it was "
            f"damaged or written by another version: remove it and materialize {folder.name} again."
        ) from None


def write_intensities(folder: DatasetFolder, intensities: Mapping[str, Intensity]) -> None:
    """Writes `intensity.json` whole. Equal values give equal bytes."""
    folder.write(INTENSITY, _DOCUMENT.dump_json(dict(sorted(intensities.items())), indent=1) + b"\n")


def voxels_digest(layout: Layout, records: Iterable[PartitionRecord]) -> str:
    """sha256 of what decides a volume's intensity: its shards of level 0, which voxels are missing, and the method."""
    level0 = [record for record in records if record.level == 0]
    missing = sorted(str(box) for record in level0 for box in record.missing)
    shards = manifest_digest(stored for record in level0 for stored in record.objects)
    return hashlib.sha256("\n".join([str(_METHOD), layout.identity(), shards, *missing]).encode()).hexdigest()


def intensity_of(
    folder: DatasetFolder, layout: Layout, records: Iterable[PartitionRecord], *, most_voxels: int = MOST_VOXELS
) -> Intensity | None:
    """The grey values of a finished volume, None for labels. Equal volumes give equal ones, wherever they are stored.

    `records` are those of level 0, in any order; others are ignored. The level of the distribution is the finest with
    at most `most_voxels`, or the coarsest. Percentiles are exact for integers of up to 16 bits (the smallest value that
    so many of the voxels do not exceed: numpy's `inverted_cdf`); otherwise interpolated within 65536 equal bins
    between the level's minimum and maximum, so that one extreme voxel can make them coarse: `percentiles_within` says
    how far they may be off.

    Raises Mismatch if level 0 is not recorded whole, Malformed if a shard of the level is gone or damaged.
    """
    if layout.content == "labels":
        return None
    level0 = _level_0(folder, layout, records)
    missing = [box for record in level0 for box in record.missing]
    missing_voxels = sum(box.voxels for box in missing)
    statistics = joined(record.statistics for record in level0 if record.statistics is not None)
    return Intensity(
        identity=layout.identity(),
        voxels_sha256=voxels_digest(layout, level0),
        missing_voxels=missing_voxels,
        not_finite_voxels=_not_finite(folder, layout, math.prod(layout.shape) - missing_voxels, statistics),
        statistics=statistics,
        distribution=_measured(_Level.open(folder, layout, missing, most_voxels), np.dtype(layout.dtype)),
    )


def joined(parts: Iterable[VoxelStatistics]) -> VoxelStatistics | None:
    """The statistics of all the parts' voxels together, None if there are none; the order of the parts is nothing."""
    parts = list(parts)
    voxels = sum(part.voxels for part in parts)
    if voxels == 0:
        return None

    def weighted(values: Iterable[float]) -> float:
        products = (part.voxels * value for part, value in zip(parts, values, strict=True))
        return math.fsum(products) / voxels  # fsum rounds once, at the end: in every order the same

    minimum, maximum = min(part.minimum for part in parts), max(part.maximum for part in parts)
    # rounding must not carry it beyond: a constant volume has deviation 0
    mean = min(max(weighted(part.mean for part in parts), minimum), maximum)
    # from the common mean, never as a difference of squares, which would lose the digits of a small deviation
    variance = weighted(part.standard_deviation**2 + (part.mean - mean) ** 2 for part in parts)
    return VoxelStatistics(
        voxels=voxels,
        minimum=minimum,
        maximum=maximum,
        mean=mean,
        standard_deviation=math.sqrt(variance),
        zero_fraction=weighted(part.zero_fraction for part in parts),
        saturated_fraction=weighted(part.saturated_fraction for part in parts),
    )


def _level_0(folder: DatasetFolder, layout: Layout, records: Iterable[PartitionRecord]) -> list[PartitionRecord]:
    """The records of level 0 in one order. Raises Mismatch if they are not those of all its shards, each once."""
    level0 = sorted((record for record in records if record.level == 0), key=lambda record: record.key)
    found = [(record.key, record.identity) for record in level0]
    wanted = sorted((partition_key(index), layout.identity()) for index in layout.shard_indices())
    if found != wanted:
        good = len(set(found) & set(wanted))
        raise Mismatch(
            f"{folder.uri(folder.volume)}: level 0 has records of {good} of its {len(wanted)} shards and "
            f"{len(found) - good} others; materialize {folder.name} again."
        )
    return level0


def _not_finite(folder: DatasetFolder, layout: Layout, real_voxels: int, statistics: VoxelStatistics | None) -> int:
    """How many real voxels of level 0 no statistics count. Raises Mismatch where each has to be counted."""
    counted = 0 if statistics is None else statistics.voxels
    if counted > real_voxels or (counted < real_voxels and np.dtype(layout.dtype).kind != "f"):
        raise Mismatch(
            f"{folder.uri(folder.volume)}: the records of level 0 have statistics of {counted} voxels, expected "
            f"{real_voxels}, all that are real; remove {folder.name} with `em-assets rm {folder.name}` and materialize "
            "it again."
        )
    return real_voxels - counted


@dataclass(frozen=True)
class _Level:
    """One stored level, read in parts."""

    folder: DatasetFolder
    layout: Layout
    level: int
    shape: Zyx
    array: zarr.Array[Any]
    presence: Presence
    stored: frozenset[str]
    """The paths of its shards."""

    @classmethod
    def open(cls, folder: DatasetFolder, layout: Layout, missing: Sequence[Box], most_voxels: int) -> _Level:
        shapes = level_shapes(layout.shape)
        fitting = [level for level, shape in enumerate(shapes) if math.prod(shape) <= most_voxels]
        level = fitting[0] if fitting else len(shapes) - 1
        presence = Presence(shapes, level_factors(shapes), missing, layout.content)
        stored = frozenset(path for path, _ in folder.store.list(folder.path(f"{folder.volume}/{level}")))
        try:
            array = open_level(folder, level)
        except (FileNotFoundError, ValueError) as error:
            raise _unreadable(folder, level, error) from None
        return cls(folder, layout, level, shapes[level], array, presence, stored)

    def real_voxels(self) -> Iterator[NDArray[Any]]:
        """All real voxels, flat, few at a time."""
        shard = self.layout.output.shard
        for index in Box.from_shape(self.shape).cells(shard):
            box = Box.from_shape(shard, at=multiply(index, shard)).intersection(Box.from_shape(self.shape))
            assert box is not None
            if self.folder.path(shard_path(self.folder, self.level, index)) in self.stored:
                yield from self._of_shard(box)
            elif any(mask is None or mask.any() for _, mask in self._masks(box)):  # it would read as black
                raise _unreadable(self.folder, self.level, f"its shard {partition_key(index)} is gone")

    def _of_shard(self, box: Box) -> Iterator[NDArray[Any]]:
        for region in _parts(box, self.layout.output.chunk, _READ_BYTES // self.array.dtype.itemsize):
            try:
                voxels = np.asarray(self.array[region.slices])
            except (FileNotFoundError, ValueError, RuntimeError) as error:
                raise _unreadable(self.folder, self.level, error) from None
            for part, mask in self._masks(region):
                values = voxels[part.shifted(subtract((0, 0, 0), region.start)).slices]
                yield values.reshape(-1) if mask is None else values[mask]

    def _masks(self, box: Box) -> Iterator[tuple[Box, NDArray[np.bool_] | None]]:
        """Which voxels of the box are real, part by part; None if all are."""
        for part in _parts(box, (1, 1, 1), _COUNTED_VOXELS):
            yield part, self.presence.mask(self.level, part)


def _unreadable(folder: DatasetFolder, level: int, why: object) -> Malformed:
    return Malformed(
        f"{folder.uri(f'{folder.volume}/{level}')} cannot be read ({str(why).partition(chr(10))[0]}); materialize "
        f"{folder.name} again, which makes anew what is damaged."
    )


def _parts(box: Box, cell: Zyx, most_voxels: int) -> Iterator[Box]:
    """The box in whole cells of a grid, few enough that they have at most so many voxels (or one cell), z slowest.

    The box begins at a cell. Slow axes are halved first, so that parts are as contiguous as may be.
    """
    cells = ceil_divide(box.shape, cell)
    axis = next((axis for axis in range(3) if cells[axis] > 1), None)
    if axis is None or box.voxels <= most_voxels:
        yield box
        return
    middle = list(box.start)
    middle[axis] += cells[axis] // 2 * cell[axis]
    stop, start = list(box.stop), list(box.start)
    stop[axis] = start[axis] = middle[axis]
    yield from _parts(Box(box.start, (stop[0], stop[1], stop[2])), cell, most_voxels)
    yield from _parts(Box((start[0], start[1], start[2]), box.stop), cell, most_voxels)


def _measured(level: _Level, dtype: np.dtype[Any]) -> Distribution:
    return _exact(level, dtype) if dtype.kind in "iu" and dtype.itemsize <= 2 else _binned(level)


def _distribution(
    level: _Level,
    *,
    real: int,
    voxels: int = 0,
    percentiles: dict[str, float] | None = None,
    within: float = 0.0,
    histogram: Histogram | None = None,
) -> Distribution:
    """`voxels` of the `real` ones are finite."""
    return Distribution(
        level=level.level,
        voxels=voxels,
        missing_voxels=math.prod(level.shape) - real,
        not_finite_voxels=real - voxels,
        percentiles=percentiles or {},
        percentiles_within=within,
        histogram=histogram,
    )


def _exact(level: _Level, dtype: np.dtype[Any]) -> Distribution:
    """Of 8 and 16 bit: how often each value occurs says all."""
    info = np.iinfo(dtype)
    values = np.arange(info.min, info.max + 1, dtype=np.float64)
    counts = np.zeros(len(values), np.int64)
    for part in level.real_voxels():
        # signed values by their bits
        counts += np.bincount(part.view(f"u{dtype.itemsize}"), minlength=len(values))
    if dtype.kind == "i":
        counts = np.roll(counts, len(values) // 2)
    voxels = int(counts.sum())
    if voxels == 0:
        return _distribution(level, real=0)
    below = np.cumsum(counts)
    percentiles = {_name(p): float(values[np.searchsorted(below, _rank(p, voxels))]) for p in PERCENTILES_PER_MILLE}
    if dtype.itemsize == 1:
        histogram = Histogram(start=info.min, stop=info.max + 1, counts=tuple(counts.tolist()))
    else:
        met = counts > 0
        bins, edges = np.histogram(values[met], BINS, weights=counts[met])
        histogram = Histogram(start=edges[0], stop=edges[-1], counts=tuple(bins.tolist()))
    return _distribution(level, real=voxels, voxels=voxels, percentiles=percentiles, histogram=histogram)


def _binned(level: _Level) -> Distribution:
    """Of wider voxels: in two passes, since the bins lie between the extremes."""
    real, minimum, maximum = 0, math.inf, -math.inf
    for part in level.real_voxels():
        real += part.size
        values = _finite(part)
        if values.size:
            minimum, maximum = min(minimum, float(values.min())), max(maximum, float(values.max()))
    if minimum > maximum:
        return _distribution(level, real=real)
    edges = np.histogram_bin_edges(np.empty(0), _FINE_BINS, (minimum, maximum))  # around a single value: half beside it
    counts = np.zeros(_FINE_BINS, np.int64)
    for part in level.real_voxels():
        counts += np.histogram(_finite(part), _FINE_BINS, (minimum, maximum))[0]
    percentiles = {_name(p): min(max(_interpolated(p, counts, edges), minimum), maximum) for p in PERCENTILES_PER_MILLE}
    bins = counts.reshape(BINS, -1).sum(axis=1)
    histogram = Histogram(start=edges[0], stop=edges[-1], counts=tuple(bins.tolist()))
    return _distribution(
        level,
        real=real,
        voxels=int(counts.sum()),
        percentiles=percentiles,
        within=(maximum - minimum) / _FINE_BINS,
        histogram=histogram,
    )


def _finite(part: NDArray[Any]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = part.astype(np.float64)
    return values[np.isfinite(values)] if part.dtype.kind == "f" else values


def _interpolated(per_mille: int, counts: NDArray[np.int64], edges: NDArray[np.float64]) -> float:
    """A percentile, as if the voxels of a bin lay evenly in it."""
    upto = np.cumsum(counts)
    voxels = int(upto[-1])
    at = int(np.searchsorted(upto, _rank(per_mille, voxels)))
    inside = per_mille * voxels / 1000 - float(upto[at] - counts[at])
    return float(edges[at] + (edges[at + 1] - edges[at]) * inside / float(counts[at]))


def _rank(per_mille: int, voxels: int) -> int:
    """How many of the voxels do not exceed the percentile, at least; in whole numbers, so without rounding."""
    return -(-per_mille * voxels // 1000)


def _name(per_mille: int) -> str:
    return f"{per_mille / 10:g}"
