"""What every format gives: a `VolumeReader`, which reads boxes of a volume in the publisher's coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from em_assets.volume import Box, VolumeInfo, Zyx

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SampledVoxel:
    """One voxel of the source, decoded by a second, independent decoder with its own index arithmetic."""

    position: Zyx
    """In the publisher's voxels."""
    value: float


@dataclass(frozen=True, slots=True)
class RegionVoxels:
    """A box that was read, whole."""

    box: Box
    """In the publisher's voxels (the voxel offset included)."""
    voxels: NDArray[Any]
    """(z, y, x), C order, little endian; 0 where `missing`."""
    missing: tuple[Box, ...]
    """Parts of `box` that the publisher does not have, in the publisher's voxels: whole source chunks, clipped."""
    samples: tuple[SampledVoxel, ...]
    """For comparison with what will be stored."""
    source_url: str
    received_bytes: int
    """Payload bytes of this region's chunks; bytes that two regions share count for both."""


@dataclass(frozen=True, slots=True)
class RegionOutcome(Generic[T]):
    """What became of one box: the value of `work`, or why there is none."""

    box: Box
    value: T | None
    error: Exception | None


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What reading some boxes will take, known before any voxel is fetched."""

    requests: int
    received_bytes: int | None
    """None where the publisher does not say before it is asked for every chunk."""
    chunks: int
    missing_chunks: int | None
    """None likewise."""


class VolumeReader(Protocol):
    """One level of a published volume."""

    @property
    def info(self) -> VolumeInfo:
        """Of this level."""

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        """What `map_regions` would fetch for these boxes; reads indices, no voxels."""

    def map_regions(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[RegionOutcome[T]]:
        """Reads every box and calls `work` with it on one of a few worker threads; yields as they end, in any order.

        Requests are planned over all boxes together. Memory is bounded by the number of workers, not of boxes.
        One box that fails does not stop the others: its outcome carries the error. `on_bytes` is told of every
        payload byte received, from any thread. Raises Unavailable at once if the publisher cannot be reached at all.
        """
