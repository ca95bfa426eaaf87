"""The nouns of the package: boxes, volumes, remote files. Frozen, no I/O.

Triples are always (z, y, x); boxes are half open; sizes are float nanometres. Order and unit are turned
around in `formats/` and `sources/`, so nobody further in has to wonder.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from dataclasses import dataclass

Zyx = tuple[int, int, int]
VoxelSize = tuple[float, float, float]
"""(z, y, x) size of one voxel in nanometres, as float64: 7.998250424861908 is a real value."""


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A half-open box of voxels, (z, y, x). What it is relative to is said by whoever holds it."""

    start: Zyx
    stop: Zyx

    def __post_init__(self) -> None:
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"a box must not end before it starts: {self}")

    @classmethod
    def from_shape(cls, shape: Zyx, at: Zyx = (0, 0, 0)) -> Box:
        return cls(at, add(at, shape))

    @property
    def shape(self) -> Zyx:
        return subtract(self.stop, self.start)

    @property
    def voxels(self) -> int:
        z, y, x = self.shape
        return z * y * x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def shifted(self, by: Zyx) -> Box:
        return Box(add(self.start, by), add(self.stop, by))

    def intersection(self, other: Box) -> Box | None:
        """The common part, or None where there is no common voxel."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            return None
        return Box(zyx(start), zyx(stop))

    def contains(self, other: Box) -> bool:
        return all(a <= b for a, b in zip(self.start, other.start, strict=True)) and all(
            a >= b for a, b in zip(self.stop, other.stop, strict=True)
        )

    def cells(self, cell: Zyx) -> Iterator[Zyx]:
        """Indices of the cells of a grid (anchored at 0) that this box touches, z slowest."""
        ranges = [
            range(a // c, -(-b // c)) if b > a else range(0)
            for a, b, c in zip(self.start, self.stop, cell, strict=True)
        ]
        z, y, x = ranges
        yield from itertools.product(z, y, x)

    def __str__(self) -> str:
        return ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + " (z, y, x)"


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """What a volume says of itself: one level of it, before any crop."""

    shape: Zyx
    """(z, y, x). A 2D image has one plane."""
    dtype: str
    """numpy name without byte order: "uint8", "int16"."""
    voxel_size_nm: VoxelSize | None
    """None where the file or publisher does not say: never invented."""
    chunk: Zyx
    """The publisher's chunk (or page, or file) grid; aligned reads decode nothing twice."""
    origin: Zyx = (0, 0, 0)
    """First voxel in the publisher's own voxel coordinates (precomputed `voxel_offset`)."""
    corner_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """(z, y, x) place of the corner of voxel (0, 0, 0) in the publisher's frame; its centre is half a voxel further."""
    channels: int | None = None
    """How many channels a leading channel axis has (axes c, z, y, x); None without one."""

    @property
    def axes(self) -> str:
        """Names of the axes of an array that is read: `zyx`, or `czyx`."""
        return "zyx" if self.channels is None else "czyx"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One object a publisher serves."""

    url: str
    path: str
    """Relative to the dataset, `/` between parts."""
    size_bytes: int | None = None
    checksum: str | None = None
    """As `algorithm:hex`, where the publisher gives one."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One value that somebody states about a dataset, with where it came from."""

    key: str
    """JSON pointer or tag path within the document."""
    value: str | int | float | bool | None
    document: str
    """Path of the stored raw document, relative to the dataset's folder."""
    url: str
    """Where that came from; empty where somebody wrote it who names no address."""
    extractor: str
    """What read the document: `empiar_entry`, `dm`, `tiff`, `zarr` ... decides what the key means."""
    unit: str | None = None
    """Of the value, where the key says it; None where it does not."""


def zyx(values: tuple[int, ...] | list[int]) -> Zyx:
    """Three whole numbers of any integer type as plain ints. A float is a TypeError: nothing is rounded silently."""
    z, y, x = values
    return operator.index(z), operator.index(y), operator.index(x)


def add(a: Zyx, b: Zyx) -> Zyx:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def subtract(a: Zyx, b: Zyx) -> Zyx:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def multiply(a: Zyx, b: Zyx) -> Zyx:
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


def ceil_divide(a: Zyx, b: Zyx) -> Zyx:
    return -(-a[0] // b[0]), -(-a[1] // b[1]), -(-a[2] // b[2])
