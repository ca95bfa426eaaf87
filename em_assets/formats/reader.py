"""What every format gives: a `VolumeReader`, which reads boxes of a volume in the publisher's coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from em_assets.volume import Box, VolumeInfo, Zyx

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    fill_value: float = 0
    """What the format says of voxels in `missing`. They are 0 here all the same: whether they count is the spec's."""


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


Scalar = str | int | float | bool | None


class VolumeReader(Protocol):
    """One level of a published volume, or the volume that a file, a folder or a series of files holds."""

    @property
    def info(self) -> VolumeInfo:
        """Of this level."""

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """The voxels of exactly `box` (in the publisher's voxels), of the whole volume without one.

        (z, y, x) in C order, (c, z, y, x) where `info.channels` is not None. Raises Mismatch if the box leaves the
        volume, and what the format raises for a part that cannot be read.
        """

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """Everything the container says of itself: (path within it, value), in its own order, names and units."""

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
