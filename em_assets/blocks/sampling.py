"""Which block is the n-th of an epoch. Nothing here knows torch, and no voxel is read.

Every random number is a hash of a counter (what it is for, seed, epoch, n, attempt), so the n-th sample is a function
of these and of nothing else: any process on any machine finds it by itself, without the samples before it. That makes
the sequence the same for any number of workers, and resuming a matter of three integers (`SamplerState`).

- Each row of an index once per epoch: `permuted`, a Feistel network over the row numbers.
- Rows or volumes by weight, with repetition: `Weights`, the inverse of the cumulated weights.
- Places within a volume: uniform over all voxels at which a block may begin (`Crops`), drawn again with the next
  attempt number where a voxel is known to be missing, or turns out to be when it is read (`dataset.py`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from em_assets.blocks._resample import Sampling
from em_assets.blocks.asking import SAME_SIZE, Shape, coarsest_within, level_of, level_of_size, shape_of, size_of
from em_assets.blocks.geometry import Grid, Nm3, nm3
from em_assets.errors import Malformed, Mismatch
from em_assets.volume import Box, VoxelSize, Zyx, zyx

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from em_assets.blocks.volume import Volume

LARGEST = 2**64 - 1
"""Of a seed, an epoch or a number: eight bytes of the counter."""
ROUNDS = 8
"""Of the Feistel network. Four already look random to statistics; the others cost 5 µs."""
ATTEMPTS = 1000
"""At so many places of a volume in a row some voxel was missing: then it has hardly a whole block."""


@dataclass(frozen=True, slots=True)
class SamplerState:
    """Where a sequence of samples is: all that is needed to go on with it, in any process."""

    seed: int
    epoch: int = 0
    next_index: int = 0
    """How many samples of the epoch are done."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
                raise Mismatch(f"{field.name} is {value!r}, expected a whole number from 0 to 2^64 - 1.")

    def state_dict(self) -> dict[str, int]:
        """Three integers, by their names."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, int]) -> SamplerState:
        """Raises Malformed if it is not what `state_dict` gave."""
        expected = [field.name for field in fields(cls)]
        if sorted(state) != sorted(expected):
            raise Malformed(f"a sampler's state has {', '.join(expected)}, not {sorted(state)}; pass a state_dict().")
        return cls(**state)


def random_bits(purpose: str, *counter: int) -> int:
    """128 random bits for a counter of whole numbers from 0 to 2^64 - 1; independent ones for each purpose.

    A purpose is a word of up to 16 letters.
    """
    packed = struct.pack(f"<{len(counter)}Q", *counter)
    return int.from_bytes(blake2b(packed, digest_size=16, person=purpose.encode()).digest(), "little")


def random_below(limit: int, purpose: str, *counter: int) -> int:
    """A whole number from 0 to `limit` - 1, all equally likely (to 2^-64)."""
    return (random_bits(purpose, *counter) * limit) >> 128


def random_share(purpose: str, *counter: int) -> float:
    """A number in [0, 1), a multiple of 2^-53."""
    return (random_bits(purpose, *counter) >> 75) * 2.0**-53


def permuted(n: int, size: int, seed: int, epoch: int) -> int:
    """Where the n-th of 0..size-1 stands in the epoch's order: a permutation of them, computed for one at a time.

    A Feistel network on pairs (left, right) of a grid that is at most sqrt(size) larger than asked for; what falls
    outside of 0..size-1 goes through it again (cycle walking), which keeps it a permutation.
    """
    if not 0 <= n < size:
        raise IndexError(f"there is no sample {n} among {size}")
    lefts = math.isqrt(size - 1) + 1
    rights = -(-size // lefts)
    while True:
        left, right = n % lefts, n // lefts
        for turn in range(0, ROUNDS, 2):
            left = (left + random_below(lefts, "feistel", seed, epoch, turn, right)) % lefts
            right = (right + random_below(rights, "feistel", seed, epoch, turn + 1, left)) % rights
        n = right * lefts + left
        if n < size:
            return n


class Weights:
    """Draws numbers 0..n-1 with given weights."""

    def __init__(self, values: Sequence[float] | NDArray[np.float64], of: str) -> None:
        """`of` says in an error what has these weights. Raises Malformed on a negative one, NaN, or nothing but 0."""
        weights = np.asarray(values, np.float64)
        wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        if len(wrong):
            raise Malformed(f"{of}: weight number {wrong[0]} is {weights[wrong[0]]}, expected 0 or a positive number.")
        self._upto = np.cumsum(weights)  # one after the other, so equal everywhere
        self._total = float(self._upto[-1]) if len(weights) else 0.0
        if not 0 < self._total < math.inf:
            raise Malformed(f"{of}: the weights' sum is {self._total}, expected a positive number; nothing is drawn.")

    def __len__(self) -> int:
        return len(self._upto)

    def at(self, share: float) -> int:
        """The number for a share in [0, 1) of the weights' sum. What weighs 0 is never drawn."""
        upto = min(share * self._total, math.nextafter(self._total, 0))
        return int(np.searchsorted(self._upto, upto, side="right"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block is to be read."""

    source: int
    """Which of the plan's `sources`."""
    start_nm: Nm3
    """Its outer corner."""
    start: Zyx | None
    """Its first voxel at the source's level; None where it is resampled."""
    row: int | None = None
    """Which row of an index."""
    attempt: int = 0
    """Which of the sample's places this is: at those before it some voxel is missing."""


@dataclass(frozen=True, slots=True)
class Source:
    """A volume's blocks of one shape and voxel size: voxels of a level as they are, or resampled ones."""

    volume: Volume
    level: int
    """That is read; of resampled blocks the coarsest that is not coarser than they are."""
    shape: Zyx
    voxel_size_nm: VoxelSize
    is_resampled: bool

    @classmethod
    def of(cls, volume: Volume, shape: Shape, voxel_size_nm: float | Sequence[float] | None, level: int = 0) -> Source:
        """Blocks of `level`, or of the level with this voxel size, or resampled where there is none."""
        wanted, size = shape_of(volume, shape), size_of(volume, voxel_size_nm)
        found = level_of(volume, level) if size is None else level_of_size(volume.levels, size)
        if found is not None:
            return cls(volume, found.number, wanted, found.grid.voxel_size_nm, is_resampled=False)
        assert size is not None
        return cls(volume, coarsest_within(volume.levels, size).number, wanted, size, is_resampled=True)

    @property
    def grid(self) -> Grid:
        return self.volume.levels[self.level].grid

    @property
    def shape_nm(self) -> Nm3:
        return nm3([n * size for n, size in zip(self.shape, self.voxel_size_nm, strict=True)])

    @property
    def spans(self) -> tuple[float, float, float]:
        """A block's lengths in voxels of the level."""
        if not self.is_resampled:
            return nm3(self.shape)
        return nm3([nm / size for nm, size in zip(self.shape_nm, self.grid.voxel_size_nm, strict=True)])

    @property
    def room(self) -> Zyx:
        """At how many of the level's voxels a block may begin, along each axis; 0 or less: none fits."""
        return zyx([math.floor(n - span + SAME_SIZE) + 1 for n, span in zip(self.grid.shape, self.spans, strict=True)])

    def place(self, number: int, start: Zyx) -> Place:
        """The block that begins at a voxel of the level; `number` is this source's."""
        return Place(number, self.grid.place_nm(start), None if self.is_resampled else start)

    def center_nm(self, place: Place) -> Nm3:
        return nm3([a + nm / 2 for a, nm in zip(place.start_nm, self.shape_nm, strict=True)])

    def is_whole(self, place: Place) -> bool:
        """Whether the publisher has every voxel that the block is made of, as far as it lies within the volume."""
        box = self._needs(place)
        return box is not None and self.volume.missing_fraction(box, self.level) == 0

    def _needs(self, place: Place) -> Box | None:
        if place.start is not None:
            return Box.from_shape(self.shape, at=place.start).intersection(self.grid.box)
        sampling = Sampling.of(self.grid, place.start_nm, self.voxel_size_nm, self.shape)
        return sampling.box(self.grid.shape, is_nearest=self.volume.content == "labels")


class Plan(Protocol):
    """Which block is the n-th."""

    sources: tuple[Source, ...]

    def __len__(self) -> int:
        """Samples per epoch."""

    def place(self, seed: int, epoch: int, n: int, attempt: int = 0) -> Place:
        """Of the n-th sample of an epoch. Raises IndexError if the epoch has no such sample.

        `attempt`: the sample's place after so many others, where it is drawn (a row of an index has one place).
        """

    def describe(self, row: int) -> dict[str, Any]:
        """What else is known of a row of an index."""


class Crops:
    """Blocks anywhere within volumes: the volume by weight, then the place uniformly."""

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        *,
        length: int | None,
        is_padded: bool,
        is_whole: bool,
    ) -> None:
        """`length` None: as many samples as blocks fit side by side. `is_whole`: never one with a missing voxel.

        Raises Mismatch if no block fits into one of the volumes and nothing `is_padded`; then blocks stand centred.
        """
        self.sources = tuple(sources)
        self._weights = Weights(weights, "sources")
        self._is_whole = is_whole
        for source in sources:
            if not is_padded and min(source.room) < 1:
                raise Mismatch(does_not_fit(source))
        self._length = sum(_side_by_side(source) for source in sources) if length is None else length
        if self._length < 1:
            raise Mismatch(f"the length is {length}, expected at least one sample per epoch.")

    def __len__(self) -> int:
        return self._length

    def place(self, seed: int, epoch: int, n: int, attempt: int = 0) -> Place:
        if not 0 <= n < self._length:
            raise IndexError(f"there is no sample {n} among {self._length}")
        number = self._weights.at(random_share("source", seed, epoch, n))
        source = self.sources[number]
        for number_of_try in range(attempt, attempt + ATTEMPTS):
            place = source.place(number, _drawn_start(source, seed, epoch, n, number_of_try))
            if not self._is_whole or source.is_whole(place):
                return replace(place, attempt=number_of_try)
        raise Mismatch(hardly_whole(source, ATTEMPTS))

    def describe(self, row: int) -> dict[str, Any]:
        return {}


def hardly_whole(source: Source, attempts: int) -> str:
    """The sentence for a volume of which at so many places in a row some voxel is missing."""
    return (
        f"{source.volume.name}: at {attempts} random places for a block of {source.shape} voxels some voxel is "
        "missing; ask for a smaller shape, leave the volume out, or take blocks with holes by missing='mask'."
    )


def does_not_fit(source: Source) -> str:
    """The sentence, with the ways out."""
    shape, spans = source.grid.shape, source.spans
    fitting = tuple(
        max(1, math.floor(n * min(1.0, have / need + SAME_SIZE)))
        for n, have, need in zip(source.shape, shape, spans, strict=True)
    )
    wanted = tuple(f"{span:g}" for span in spans)
    return (
        f"{source.volume.name}: level {source.level} has {shape} voxels (z, y, x), a block needs "
        f"({', '.join(wanted)}); ask for shape={fitting}, or say what lies outside: pad='constant', 'edge' or "
        "'reflect'."
    )


def _drawn_start(source: Source, seed: int, epoch: int, n: int, attempt: int) -> Zyx:
    start = []
    for axis, room in enumerate(source.room):
        if room >= 1:
            start.append(random_below(room, "start", seed, epoch, n, attempt, axis))
        else:
            start.append(-math.floor((source.spans[axis] - source.grid.shape[axis]) / 2))
    return zyx(start)


def _side_by_side(source: Source) -> int:
    return math.prod(max(1, int(n / span + SAME_SIZE)) for n, span in zip(source.grid.shape, source.spans, strict=True))
