"""Draws a volume that looks like neuropil under a FIB-SEM: cells, mitochondria, vesicles, grain.

The same seed gives the same voxels on every machine and version: the random bits are PCG64's raw words (numpy promises
those, not the streams of its distributions), and the arithmetic is elementwise +, -, *, /, sqrt only, which IEEE 754
fixes to the bit (no exp or sin, no sums whose order is free).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from em_assets.volume import Zyx

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]
Voxels = npt.NDArray[np.uint8]

SLAB = 32
"""Slices one thread draws before it takes the next slab."""
CELL_KINDS = 7
"""Smooth random fields that compete for each voxel: the highest owns it, a membrane runs where two are level."""
CYTOPLASM = (160, 128, 178, 143, 166, 104, 150)
"""Grey value of each kind of cell; neighbours differ a little, as stain uptake does."""
HAS_MITOCHONDRIA = (True, False, True, True, False, True, False)
"""By kind of cell: two neighbours seldom both have one at the same place."""


def draw(shape: Zyx, seed: int = 1, *, fill: float = 1.0) -> Voxels:
    """An EM-like uint8 volume, (z, y, x), isotropic at about 8 nm, mean about 125.

    With `fill` below 1 the specimen is a rounded box of that fraction of each edge; outside it every voxel is 0.
    """
    if not 0 < fill <= 1:
        raise ValueError(f"fill must be above 0 and at most 1, not {fill}")
    scene = _Scene.lay_out(shape, seed)
    volume = np.zeros(shape, np.uint8)

    def draw_slab(start: int) -> None:
        for z, grey in scene.slices(start, min(start + SLAB, shape[0])):
            volume[z] = grey
            if fill < 1:
                volume[z][_outside(z, shape, fill)] = 0

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(draw_slab, range(0, shape[0], SLAB)))
    return volume


def draw_mitochondria(shape: Zyx, seed: int = 1, *, slices: int) -> Voxels:
    """Where the first slices of `draw` with the same shape and seed show a mitochondrion: 1, else 0."""
    scene = _Scene.lay_out(shape, seed)
    inside = np.zeros((slices, *shape[1:]), np.uint8)
    for z, distance, owner in scene.territories(0, slices):
        inside[z] = scene.mitochondria_depth(z, distance, owner) > 0
    return inside


@dataclass(frozen=True)
class _Field:
    """A smooth random function: a cubic B-spline over a coarse lattice, spread out in y and x already."""

    planes: Floats
    spacing: int

    @classmethod
    def random(cls, shape: Zyx, seed: tuple[int, ...], spacing: int, blurs: int = 0) -> _Field:
        """Values have mean about 0 and standard deviation about 1."""
        lattice: Floats = _uniform(seed, tuple(n // spacing + 4 + 2 * blurs for n in shape)) - np.float32(0.5)
        for _ in range(blurs):
            for axis in range(3):
                lattice = _blurred(lattice, axis)
        deviation = float((lattice.astype(np.float64) ** 2).mean()) ** 0.5
        lattice *= np.float32(round(1.6 / deviation, 2))  # rounded: the order of the sum above is free
        return cls(_spread(_spread(lattice, 2, shape[2], spacing), 1, shape[1], spacing), spacing)

    def at(self, z: int) -> Floats:
        a, b, c, d = self.planes[z // self.spacing : z // self.spacing + 4]
        w = _spline_weights(self.spacing)[z % self.spacing]
        plane: Floats = a * w[0]
        term = b * w[1]
        plane += term
        plane += np.multiply(c, w[2], out=term)
        plane += np.multiply(d, w[3], out=term)
        return plane


@dataclass(frozen=True)
class _Scene:
    """Everything that is drawn at random, before it is drawn voxel by voxel."""

    shape: Zyx
    seed: int
    cells: tuple[_Field, ...]
    mitochondria: _Field
    cristae: _Field
    reticulum: _Field
    mottle: _Field
    slow: _Field
    vesicles: Voxels

    @classmethod
    def lay_out(cls, shape: Zyx, seed: int) -> _Scene:
        kinds = (_Field.random(shape, (seed, 1, kind), 16, blurs=1) for kind in range(CELL_KINDS))
        return cls(
            shape,
            seed,
            cells=tuple(kinds),
            mitochondria=_Field.random(shape, (seed, 2), 28),
            cristae=_Field.random(shape, (seed, 3), 24),
            reticulum=_Field.random(shape, (seed, 4), 16),
            mottle=_Field.random(shape, (seed, 6), 4),
            slow=_Field.random(shape, (seed, 5), 64),
            vesicles=_scatter_vesicles(shape, seed),
        )

    def slices(self, start: int, stop: int) -> Iterator[tuple[int, Floats]]:
        """(z, grey values) of each slice, in order."""
        for z, distance, owner in self.territories(start, stop):
            yield z, self._grey(z, distance, owner)

    def territories(self, start: int, stop: int) -> Iterator[tuple[int, Floats, npt.NDArray[np.uint8]]]:
        """(z, how far the nearest cell membrane is, in voxels, which kind of cell it is) of each slice, in order."""
        window = [self._territory(max(start - 1, 0)), self._territory(start)]
        for z in range(start, stop):
            window.append(self._territory(min(z + 1, self.shape[0] - 1)))
            (below, _), (gap, owner), (above, _) = window
            yield z, gap / _slope(below, gap, above), owner
            del window[0]

    def _territory(self, z: int) -> tuple[Floats, npt.NDArray[np.uint8]]:
        """By how much the owner of each voxel of a slice wins, and which kind of cell it is."""
        best = self.cells[0].at(z)
        second = np.full_like(best, -100)
        owner = np.zeros(best.shape, np.uint8)
        for kind, field in enumerate(self.cells[1:], 1):
            here = field.at(z)
            np.maximum(second, np.minimum(best, here), out=second)
            owner[here > best] = kind
            np.maximum(best, here, out=best)
        best -= second
        return best, owner

    def _grey(self, z: int, distance: Floats, owner: npt.NDArray[np.uint8]) -> Floats:
        """One slice."""
        slow = self.slow.at(z)
        grey = np.array(CYTOPLASM, np.float32)[owner]
        grey += 6 * slow
        grey += 11 * self.mottle.at(z)
        inside = distance > 3.5
        grey -= self.vesicles[z] * inside

        tubule = np.abs(self.reticulum.at(z)) * 14
        grey -= _ramp(2.2 - tubule) * 34 * (inside & (slow > 0.3))

        depth = self.mitochondria_depth(z, distance, owner)
        y, x = np.nonzero(depth > 0)
        grey[y, x] = self._mitochondrion(z, y, x, depth[y, x])

        width = 1.5 + np.clip(self.cristae.at(z) * slow - 0.4, 0, 1) * 2.5
        membrane = _ramp((width - distance) * 0.7 + 0.5)
        grey += membrane * (68 - grey)
        grey += self._noise(z)
        return np.clip(grey, 1, 255)

    def mitochondria_depth(self, z: int, distance: Floats, owner: npt.NDArray[np.uint8]) -> Floats:
        """How deep inside a mitochondrion each voxel of a slice lies; 0 or less outside."""
        depth = np.minimum((self.mitochondria.at(z) - 0.65) * 18, distance - 3)
        return np.where(np.array(HAS_MITOCHONDRIA)[owner], depth, np.float32(0))

    def _mitochondrion(self, z: int, y: Indices, x: Indices, depth: Floats) -> Floats:
        """Grey values at some voxels of a slice, `depth` voxels below the organelle's surface: two membranes, folds."""
        phase = (z * 9 + y * 11 + x * 7).astype(np.float32) / 100 + self.cristae.at(z)[y, x] * np.float32(2.2)
        fold = np.abs(phase - np.floor(phase) - np.float32(0.5)) * 2
        grey = 104 - _ramp(fold * 3 - np.float32(1.6)) * 26 * _ramp(depth * np.float32(0.4) - np.float32(0.6))
        return grey - _ramp(np.float32(2.2) - depth) * 30

    def _noise(self, z: int) -> Floats:
        """Grain that is correlated over neighbouring voxels in all three axes, and shot noise."""
        height, width = self.shape[1], self.shape[2]
        lower, upper = (self._bytes(z + step, height + 1, width + 1) for step in (0, 1))
        grain = lower + upper
        grain = grain[1:] + grain[:-1]
        grain = grain[:, 1:] + grain[:, :-1]
        shot = lower[1:, 1:]
        return (grain - 8 * 127.5) * 0.032 + (shot - 127.5) * 0.07

    def _bytes(self, z: int, height: int, width: int) -> Floats:
        words = np.random.PCG64([self.seed, 10, z]).random_raw(-(-height * width // 8))
        return (
            words.astype("<u8", copy=False).view(np.uint8)[: height * width].reshape(height, width).astype(np.float32)
        )


def _scatter_vesicles(shape: Zyx, seed: int) -> Voxels:
    """Darkness of small round vesicles, crowded where a slow field is high: one at most per cell of a grid of 7."""
    cell, radius = 7, 2
    grid = (shape[0] // cell, shape[1] // cell, shape[2] // cell)
    darkness = np.zeros(shape, np.uint8)
    if min(grid) == 0:
        return darkness
    crowd = _Field.random(grid, (seed, 7), 8)
    wanted = np.stack([crowd.at(z) for z in range(grid[0])]) > 0.9
    wanted &= _uniform((seed, 8), grid) < 0.75
    corners = np.argwhere(wanted) * cell
    jitter = (_uniform((seed, 9), corners.shape) * 3).astype(np.int64)
    centres = corners + jitter + radius
    reach = range(-radius, radius + 1)
    for offset in ((z, y, x) for z in reach for y in reach for x in reach):
        square = sum(o * o for o in offset)
        if square <= 6:
            at = centres + offset
            at = at[(at < shape).all(axis=1)]
            darkness[tuple(at.T)] = 62 if square >= 2 else 34
    return darkness


def _outside(z: int, shape: Zyx, fill: float) -> npt.NDArray[np.bool_]:
    """Where a slice lies outside the rounded box |z|^4 + |y|^4 + |x|^4 <= 1, each in half edges of the specimen."""

    def fourth(n: int) -> npt.NDArray[np.float64]:
        t = (2 * np.arange(n) + 1 - n) / (n * fill)
        return t * t * t * t

    outside: npt.NDArray[np.bool_] = fourth(shape[0])[z] + fourth(shape[1])[:, None] + fourth(shape[2])[None, :] > 1
    return outside


def _uniform(seed: tuple[int, ...], shape: tuple[int, ...]) -> Floats:
    """Uniform in [0, 1): the top 24 bits of each raw word, which float32 holds exactly."""
    words = np.random.PCG64(list(seed)).random_raw(int(np.prod(shape)))
    return ((words >> np.uint64(40)).astype(np.float32) / np.float32(2**24)).reshape(shape)


def _blurred(values: Floats, axis: int) -> Floats:
    """Weights 1, 2, 1 along an axis, which gets shorter by two."""
    v = np.moveaxis(values, axis, 0)
    return np.moveaxis((v[:-2] + 2 * v[1:-1] + v[2:]) / 4, 0, axis)


def _spline_weights(spacing: int) -> Floats:
    """(phase, 4) weights of a uniform cubic B-spline."""
    t = np.arange(spacing) / spacing
    s = 1 - t
    weights = np.stack([s * s * s, 3 * t * t * t - 6 * t * t + 4, 3 * s * s * s - 6 * s * s + 4, t * t * t], axis=1) / 6
    return weights.astype(np.float32)


def _spread(lattice: Floats, axis: int, size: int, spacing: int) -> Floats:
    """Evaluates the spline at every voxel of one axis."""
    at = np.arange(size)
    weights = _spline_weights(spacing)[at % spacing]
    along = tuple(-1 if i == axis else 1 for i in range(3))
    terms = (np.take(lattice, at // spacing + k, axis) * weights[:, k].reshape(along) for k in range(4))
    total: Floats = next(terms)
    for term in terms:
        total += term
    return total


def _slope(below: Floats, here: Floats, above: Floats) -> Floats:
    """Length of the gradient of the middle slice, from the steeper side of each voxel (right also next to a crease)."""
    square = np.maximum(np.abs(here - below), np.abs(above - here)) ** 2
    for axis in (axis for axis in (0, 1) if here.shape[axis] > 1):
        step = np.abs(np.diff(here, axis=axis))
        first, last = (np.take(step, [i], axis) for i in (0, -1))
        square += np.maximum(np.concatenate([first, step], axis), np.concatenate([step, last], axis)) ** 2
    slope: Floats = np.sqrt(square)
    return slope + np.float32(0.01)


def _ramp(values: Floats) -> Floats:
    ramp: Floats = np.clip(values, 0, 1)
    return ramp
