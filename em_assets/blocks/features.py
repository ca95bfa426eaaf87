"""What a block looks like, in numbers: `block_numbers` for filters, `feature_vector` for "blocks like this one".

Only real voxels count. Nothing here reads a volume: arrays come in, numbers go out, and the same array gives the same
numbers everywhere. What is counted is counted in whole numbers and what is summed is summed in float64 in one order, so
that two machines differ in the last digit of a float64 at most; the vector is rounded to float32 after that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.volume import VoxelSize, Zyx

Mask = NDArray[np.bool_]
"""Which voxels are real."""
ValueRange = tuple[float, float]
"""The darkest and the brightest value that are to be expected: what is beyond counts as the end it lies behind."""
Features = Callable[[NDArray[Any], Mask | None, VoxelSize, ValueRange], NDArray[np.float32]]
"""What `feature_vector` is, and what a user may give in its place: always the same number of finite values."""

METHOD = "em_assets.features/1"
"""Raise the number when the same voxels give another vector: vectors of two methods are never compared."""
PERCENTILES = (1, 5, 50, 95, 99)
NUMBERS = (
    *("mean", "std", *(f"p{percent:02}" for percent in PERCENTILES), "minimum", "maximum"),
    *("entropy_bits", "sharpness", "saturation", "zero_fraction"),
)
"""The keys of `block_numbers`."""

HISTOGRAM_BINS = 16
GRADIENT_SCALES_NM = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
GRADIENT_EDGES = (1 / 16, 1 / 8, 1 / 4)
"""Between weak and strong changes, as parts of the block's own contrast."""
FINEST_WAVELENGTH_NM = 8.0
SPECTRUM_BANDS = 18
"""Half octaves from the finest wavelength: 8 to 11.3 nm, ... 2896 to 4096 nm."""
_ABSOLUTE = (*PERCENTILES, "std")
PARTS = {
    "absolute": slice(0, 6),
    "histogram": slice(6, 22),
    "gradients": slice(22, 46),
    "spectrum": slice(46, 64),
}
"""Which entries of the vector are what."""
LENGTH = 64

_GREYS = 256
_ENTROPY_BINS = 256
_SIMILAR_SIZES = 1.5
"""Axes whose voxels are at most so many times the finest show how sharp a block is; a thick section's axis does not."""
_LEAST_STRUCTURE = 0.02
"""Share of the variance that must be lost between one and four voxels, or nothing but noise is there."""
_SMOOTH = 1 / 5
"""(D2 - D1) / (D4 - D1) of what changes evenly, whose differences grow with the distance: (4 - 1) / (16 - 1)."""


def block_numbers(
    voxels: NDArray[Any],
    valid: Mask | None = None,
    *,
    voxel_size_nm: VoxelSize = (1.0, 1.0, 1.0),
    value_range: ValueRange | None = None,
) -> dict[str, float | None]:
    """What `NUMBERS` names, of the real and finite voxels of an image; every value None if there are none.

    mean, std, minimum, maximum
    p01, p05, p50, p95, p99   the smallest value that so many per cent of the voxels do not exceed
    entropy_bits              of a histogram of 256 equal bins over `value_range` (default: the dtype's ends; of floats
                              the block's own extremes): 0 to 8
    sharpness                 0 to 1: how fast neighbouring voxels cease to be alike. With half the mean squared
                              difference D(d) of voxels d apart, (D2 - D1) / (D4 - D1) over the axes of the finest
                              voxels is 1/5 where all is smooth and 1 where nothing is; stretched to 0 to 1. A blur of
                              one voxel about halves it (real FIB-SEM of 10 nm has 0.13). Noise, which differs from
                              voxel to voxel, adds the same to every D and changes nothing; contrast, brightness and a
                              dark rim hardly matter. Of noise alone it is 0; None where no axis has five voxels
    saturation                share of voxels at the dtype's largest value; of floats 0
    zero_fraction             share of voxels that are exactly 0

    All are the same for a block that is flipped, or whose axes (and voxel sizes) are exchanged.
    """
    values = Distribution.of(voxels, valid)
    if values.count == 0:
        return dict.fromkeys(NUMBERS)
    grey = _Grey.of(voxels, valid, values)
    ends = dtype_range(voxels.dtype)
    percentiles = {f"p{percent:02}": values.percentile(percent) for percent in PERCENTILES}
    return {
        "mean": values.mean,
        "std": values.std,
        **percentiles,
        "minimum": values.minimum,
        "maximum": values.maximum,
        "entropy_bits": _entropy_bits(values, _range(value_range, values, voxels.dtype)),
        "sharpness": _sharpness(grey, voxel_size_nm),
        "saturation": 0.0 if ends is None else values.share_of(ends[1]),
        "zero_fraction": values.share_of(0.0),
    }


def label_numbers(voxels: NDArray[Any], valid: Mask | None = None) -> dict[str, float | int | None]:
    """Of labels: the share of the real voxels that are not 0, and how many distinct labels (0 is none) there are."""
    real = voxels.reshape(-1) if valid is None else voxels[valid]
    if real.size == 0:
        return {"label_fraction": None, "labels": None}
    named = int(np.count_nonzero(real))
    distinct = np.unique(_changes(real))
    return {"label_fraction": named / real.size, "labels": len(distinct) - int(0 in distinct)}


def feature_vector(
    voxels: NDArray[Any],
    valid: Mask | None = None,
    voxel_size_nm: VoxelSize = (1.0, 1.0, 1.0),
    value_range: ValueRange | None = None,
) -> NDArray[np.float32]:
    """64 numbers that are close (Euclidean distance) where two blocks look alike; always finite.

    absolute, 6     p01, p05, p50, p95, p99 as places in `value_range` (0 to 1; default as for `block_numbers`), and
                    the standard deviation in the same unit; each divided by sqrt(6)
    histogram, 16   of the grey values, in equal bins
    gradients, 24   for each of 6 lengths (4, 8, ... 128 nm): shares of the changes over that length that are below
                    1/16, 1/8, 1/4 of the contrast, or above. Voxels are averaged in bins of a power of two that is
                    nearest to the length along each axis; changes are those between neighbouring bins along each axis,
                    all axes together, scaled to the length. Axes with coarser voxels, or fewer than two bins, are left
                    out; without any, the four are 0
    spectrum, 18    shares of the power in half octaves of wavelength (8 to 11.3 nm, ... 2896 to 4096 nm; the outermost
                    two also hold what is beyond), over all directions: |FFT|² of the block under a sin² window

    Grey values are the voxels between p01 and p99 (or the extremes, where these are equal) on 256 steps, so that all
    but `absolute` stay as they are when brightness or contrast change. Shares are given as square roots (the distance
    of two is Hellinger's), those of gradients divided by sqrt(6): no part outweighs the others. A block of one value
    has no contrast: its gradients and its spectrum are 0. Missing and not finite voxels count as the mean grey value in
    the spectrum, and nowhere else.

    The same, up to rounding, for a block whose axes (and voxel sizes) are exchanged or that is flipped; the latter
    where the gradients' bins divide the shape, as any power of two up to 128 does.

    Raises ValueError if no voxel is real.
    """
    values = Distribution.of(voxels, valid)
    if values.count == 0:
        raise ValueError("a block without a single real voxel has no features")
    grey = _Grey.of(voxels, valid, values)
    vector = np.concatenate(
        [
            _absolute(values, _range(value_range, values, voxels.dtype)),
            np.sqrt(_shares(grey.counts.reshape(HISTOGRAM_BINS, -1).sum(axis=1))),
            _gradients(grey, voxel_size_nm),
            _spectrum(grey, voxel_size_nm),
        ]
    )
    return vector.astype(np.float32)


def dtype_range(dtype: np.dtype[Any]) -> ValueRange | None:
    """The smallest and the largest value of integers; None for floats, whose ends no microscope means."""
    if dtype.kind not in "iu":
        return None
    info = np.iinfo(dtype)
    return float(info.min), float(info.max)


@dataclass(frozen=True)
class Distribution:
    """How often each value occurs among the real and finite voxels. Their places are forgotten."""

    values: NDArray[np.float64]
    """Ascending."""
    counts: NDArray[np.int64] | None
    """Of each value, at least 1; None: each stands for one voxel, and may occur again."""

    @classmethod
    def of(cls, voxels: NDArray[Any], valid: Mask | None) -> Distribution:
        real = np.ascontiguousarray(voxels).reshape(-1) if valid is None else voxels[valid]
        if voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2:
            counts = _histogram(real)
            values = np.arange(len(counts), dtype=f"<u{real.dtype.itemsize}").view(real.dtype).astype(np.float64)
            if real.dtype.kind == "i":
                values, counts = np.roll(values, len(values) // 2), np.roll(counts, len(counts) // 2)
            return cls(values[counts > 0], counts[counts > 0])
        return cls(np.sort(real[np.isfinite(real)]).astype(np.float64), None)

    @cached_property
    def count(self) -> int:
        return len(self.values) if self.counts is None else int(self.counts.sum())

    @cached_property
    def mean(self) -> float:
        # a mean of equal values may be rounded away from them
        return min(max(self._average(self.values), self.minimum), self.maximum)

    @cached_property
    def std(self) -> float:
        return math.sqrt(self._average((self.values - self.mean) ** 2))

    @property
    def minimum(self) -> float:
        return float(self.values[0])

    @property
    def maximum(self) -> float:
        return float(self.values[-1])

    @cached_property
    def _upto(self) -> NDArray[np.int64]:
        counts = np.ones(len(self.values), np.int64) if self.counts is None else self.counts
        return np.cumsum(counts)

    def percentile(self, percent: int) -> float:
        """The smallest value that so many per cent of the voxels do not exceed; in whole numbers, without rounding."""
        return float(self.values[np.searchsorted(self._upto, max(1, -(-percent * self.count // 100)))])

    def share_of(self, value: float) -> float:
        first, last = np.searchsorted(self.values, value, "left"), np.searchsorted(self.values, value, "right")
        found = last - first if self.counts is None else self.counts[first:last].sum()
        return int(found) / self.count

    def binned(self, start: float, stop: float, bins: int) -> NDArray[np.int64]:
        """Voxels in equal bins; what lies outside counts in the first or the last."""
        place = np.clip((self.values - start) * bins / (stop - start), 0, bins - 1).astype(np.intp)
        if self.counts is None:
            return np.bincount(place, minlength=bins)
        binned = np.zeros(bins, np.int64)
        np.add.at(binned, place, self.counts)
        return binned

    def _average(self, of_values: NDArray[np.float64]) -> float:
        weighted = of_values if self.counts is None else of_values * self.counts
        return float(weighted.sum()) / self.count


@dataclass(frozen=True)
class _Grey:
    """A block on 256 steps between its own p01 and p99: integers, whatever its voxels are."""

    voxels: NDArray[np.uint8]
    """(z, y, x)"""
    valid: Mask | None
    """None: all are real and finite. What is not is somewhere about the middle."""
    is_flat: bool
    """Whether all real voxels have one value."""

    @classmethod
    def of(cls, voxels: NDArray[Any], valid: Mask | None, values: Distribution) -> _Grey:
        dark, bright = values.percentile(1), values.percentile(99)
        if dark == bright:
            dark, bright = values.minimum, values.maximum
        if dark == bright:
            return cls(np.zeros(voxels.shape, np.uint8), valid, is_flat=True)
        if values.counts is not None:
            # the table has every bit pattern, in its own order
            every = np.arange(2 ** (8 * voxels.dtype.itemsize)).astype(f"<u{voxels.dtype.itemsize}")
            table = _on_grey_steps(every.view(voxels.dtype).astype(np.float64), dark, bright)
            grey = np.take(table, voxels.view(f"u{voxels.dtype.itemsize}"))
        else:
            finite = np.isfinite(voxels)
            valid = finite if valid is None else valid & finite
            grey = _on_grey_steps(np.where(finite, voxels, dark).astype(np.float64), dark, bright)
        valid = None if valid is None or valid.all() else valid
        if valid is not None:
            grey[~valid] = round(float(grey[valid].mean()))
        return cls(grey, valid, is_flat=False)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Real voxels of each grey value."""
        return _histogram(self.voxels.reshape(-1) if self.valid is None else self.voxels[self.valid])


def _on_grey_steps(values: NDArray[np.float64], dark: float, bright: float) -> NDArray[np.uint8]:
    steps = (values - dark) * (_GREYS - 1) / (bright - dark)
    return np.floor(np.clip(steps, 0, _GREYS - 1) + 0.5).astype(np.uint8)


def _histogram(real: NDArray[Any]) -> NDArray[np.int64]:
    """How often each bit pattern of 8 or 16 bits occurs."""
    from PIL import Image

    if real.dtype.itemsize == 2:
        return np.bincount(real.view("<u2"), minlength=2**16)
    if real.size == 0:
        return np.zeros(_GREYS, np.int64)
    # Pillow counts bytes twice as fast as numpy, and lets other threads run meanwhile
    line = Image.frombuffer("L", (real.size, 1), np.ascontiguousarray(real).view("u1"), "raw", "L", 0, 1)
    return np.array(line.histogram(), np.int64)


def _changes(real: NDArray[Any]) -> NDArray[Any]:
    """The first voxel of each run of equal ones: all labels are among them, and they are few."""
    differs = np.empty(len(real), np.bool_)
    differs[0] = True
    np.not_equal(real[1:], real[:-1], out=differs[1:])
    return real[differs]


def _shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Parts of their sum; all 0 if that is."""
    total = counts.sum()
    return np.zeros(len(counts)) if total == 0 else counts / float(total)


def _entropy_bits(values: Distribution, value_range: ValueRange) -> float:
    start, stop = value_range
    shares = _shares(values.binned(start, stop, _ENTROPY_BINS))
    return -math.fsum(share * math.log2(share) for share in shares[shares > 0].tolist()) + 0.0  # never -0


def _range(stated: ValueRange | None, values: Distribution, dtype: np.dtype[Any]) -> ValueRange:
    """What is stated, or the dtype's ends, or the block's own; with some width, also of a volume of one value."""
    start, stop = stated or dtype_range(dtype) or (values.minimum, values.maximum)
    return (start, stop) if stop > start else (start, start + max(1.0, abs(start)))


def _absolute(values: Distribution, value_range: ValueRange) -> NDArray[np.float64]:
    start, stop = value_range
    places = [(values.percentile(percent) - start) / (stop - start) for percent in PERCENTILES]
    numbers = np.clip([*places, values.std / (stop - start)], 0.0, 1.0)
    return numbers / math.sqrt(len(numbers))


def _sharpness(grey: _Grey, voxel_size_nm: VoxelSize) -> float | None:
    fine = [axis for axis in range(3) if voxel_size_nm[axis] <= _SIMILAR_SIZES * min(voxel_size_nm)]
    known = [spread for axis in fine if (spread := _spread(grey, axis)) is not None]
    if not known:
        return None
    if grey.is_flat:
        return 0.0
    one, two, four = (math.fsum(spread[lag] for spread in known) / len(known) for lag in range(3))
    shares, values = _shares(grey.counts), np.arange(_GREYS, dtype=np.float64)
    variance = float((shares * (values - (shares * values).sum()) ** 2).sum())
    # by how much chance alone can make them differ: where there is nothing but noise, nothing is sharp
    least = variance * max(_LEAST_STRUCTURE, 8 / math.sqrt(grey.counts.sum()))
    return min(max(((two - one) / max(four - one, least) - _SMOOTH) / (1 - _SMOOTH), 0.0), 1.0)


def _spread(grey: _Grey, axis: int) -> tuple[float, float, float] | None:
    """Half the mean squared difference of voxels 1, 2 and 4 apart along an axis; None if none are."""
    squares = np.arange(_GREYS, dtype=np.int64) ** 2
    counts = [_histogram(_differences(grey.voxels, grey.valid, axis, lag)) for lag in (1, 2, 4)]
    if not all(count.any() for count in counts):
        return None
    one, two, four = (int((count * squares).sum()) / int(count.sum()) / 2 for count in counts)
    return one, two, four


def _differences(voxels: NDArray[Any], valid: Mask | None, axis: int, lag: int = 1) -> NDArray[Any]:
    """How much voxels (unsigned) differ that lie so far apart along an axis, where both are real; flat."""
    behind, ahead = _along(axis, slice(lag, None)), _along(axis, slice(None, -lag))
    a, b = voxels[behind], voxels[ahead]
    difference = np.maximum(a, b) - np.minimum(a, b)
    flat: NDArray[Any] = difference.reshape(-1) if valid is None else difference[valid[behind] & valid[ahead]]
    return flat


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if other == axis else slice(None) for other in range(3))


def _gradients(grey: _Grey, voxel_size_nm: VoxelSize) -> NDArray[np.float64]:
    shares = np.zeros((len(GRADIENT_SCALES_NM), len(GRADIENT_EDGES) + 1))
    if not grey.is_flat:
        for number, (scale_nm, bins) in enumerate(_binnings(grey, voxel_size_nm)):
            counts = sum((bins.changes(axis, scale_nm) for axis in range(3)), start=np.zeros(shares.shape[1], np.int64))
            shares[number] = _shares(counts)
    return np.sqrt(shares.reshape(-1) / len(GRADIENT_SCALES_NM))


@dataclass(frozen=True)
class _Bins:
    """Grey values summed in bins of powers of two along each axis."""

    sums: NDArray[Any]
    """Unsigned integers: exact."""
    valid: Mask | None
    """Bins all of whose voxels are real."""
    size: Zyx
    """Voxels in a bin."""
    voxel_size_nm: VoxelSize

    def changes(self, axis: int, scale_nm: float) -> NDArray[np.int64]:
        """How many neighbours along an axis differ weakly to strongly; none where a voxel is too long for the scale."""
        if _doublings(scale_nm, self.voxel_size_nm[axis]) < 0 or self.sums.shape[axis] < 2:
            return np.zeros(len(GRADIENT_EDGES) + 1, np.int64)
        difference = _differences(self.sums, self.valid, axis)
        # of two bins' means, scaled from their distance to the scale, in sums of grey values
        length_nm = self.size[axis] * self.voxel_size_nm[axis]
        full = (_GREYS - 1) * math.prod(self.size) * length_nm / scale_nm
        above = [int(np.count_nonzero(difference >= math.ceil(edge * full))) for edge in GRADIENT_EDGES]
        upto = [difference.size, *above, 0]
        return np.array([more - less for more, less in itertools.pairwise(upto)], np.int64)


def _binnings(grey: _Grey, voxel_size_nm: VoxelSize) -> Iterator[tuple[float, _Bins]]:
    """For each scale of the gradients, the block in bins as long as it: each made from the one before."""
    bins = _Bins(grey.voxels, grey.valid, (1, 1, 1), voxel_size_nm)
    for scale_nm in GRADIENT_SCALES_NM:
        for axis in range(3):
            while bins.size[axis] < 2 ** _doublings(scale_nm, voxel_size_nm[axis]) and bins.sums.shape[axis] > 1:
                bins = _halved(bins, axis)
        yield scale_nm, bins


def _doublings(scale_nm: float, voxel_size_nm: float) -> int:
    """How often a voxel must be doubled to be as long as the scale, within a factor of sqrt(2)."""
    doublings = -1
    while voxel_size_nm**2 * 2.0 ** (2 * doublings + 1) < scale_nm**2:
        doublings += 1
    return doublings


def _halved(bins: _Bins, axis: int) -> _Bins:
    """Pairs of bins as one; an odd last one is left out."""
    even = bins.sums.shape[axis] // 2 * 2
    first, second = _along(axis, slice(0, even, 2)), _along(axis, slice(1, even, 2))
    z, y, x = (n * 2 if other == axis else n for other, n in enumerate(bins.size))
    wide = next(kind for kind in (np.uint16, np.uint32, np.uint64) if (_GREYS - 1) * z * y * x <= np.iinfo(kind).max)
    sums = np.add(bins.sums[first], bins.sums[second], dtype=wide)
    valid = None if bins.valid is None else bins.valid[first] & bins.valid[second]
    return _Bins(sums, valid, (z, y, x), bins.voxel_size_nm)


def _spectrum(grey: _Grey, voxel_size_nm: VoxelSize) -> NDArray[np.float64]:
    if grey.is_flat:
        return np.zeros(SPECTRUM_BANDS)
    z, y, x = (_window(n) for n in grey.voxels.shape)
    window = z[:, None, None] * y[None, :, None]
    windowed = grey.voxels * window
    windowed *= x
    mean = windowed.sum() / (z.sum() * y.sum() * x.sum())
    windowed -= (mean * window) * x
    transform = np.fft.rfftn(windowed)
    power = transform.real**2
    power += transform.imag**2
    # a real signal's spectrum is the same at -f: all planes but those that are their own counterpart stand for two
    power[..., 1 : (grey.voxels.shape[2] + 1) // 2] *= 2
    shape = grey.voxels.shape
    in_bands = np.bincount(_bands((shape[0], shape[1], shape[2]), voxel_size_nm), power.reshape(-1), SPECTRUM_BANDS + 1)
    return np.sqrt(_shares(in_bands[:SPECTRUM_BANDS]))


def _window(n: int) -> NDArray[np.float64]:
    window: NDArray[np.float64] = np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2
    return window


@lru_cache(maxsize=4)
def _bands(shape: Zyx, voxel_size_nm: VoxelSize) -> NDArray[np.intp]:
    """Which band each frequency of `rfftn` belongs to; the constant's is one more than there are. 8 MB for 128³."""
    z, y, x = (np.fft.fftfreq(n, size) ** 2 for n, size in zip(shape, voxel_size_nm, strict=True))
    squared = z[:, None, None] + y[None, :, None] + x[None, None, : shape[2] // 2 + 1]
    # squares of the bands' wavelengths are powers of two; a trifle more, lest rounding decide where one lies on an edge
    edges = 1 / (FINEST_WAVELENGTH_NM**2 * 2.0 ** np.arange(SPECTRUM_BANDS - 1, 0, -1)) * (1 + 1e-9)
    bands: NDArray[np.intp] = SPECTRUM_BANDS - 1 - np.searchsorted(edges, squared.reshape(-1), "left")
    bands[0] = SPECTRUM_BANDS
    return bands
