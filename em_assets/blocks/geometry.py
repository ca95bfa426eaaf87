"""Where voxels lie in space: half-open, corner-based boxes in float64 nanometres, in the publisher's frame.

No I/O and no conventions but this one: what OME-Zarr, precomputed and N5 mean by an offset is turned into a corner in
`formats/`. One rule snaps a place to voxels: `floor(x + 1/2)` of the wanted first voxel's corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from em_assets.volume import Box, VoxelSize, Zyx, zyx

Nm3 = tuple[float, float, float]
"""(z, y, x) in nanometres."""


@dataclass(frozen=True, slots=True)
class BoxNm:
    """A half-open box of space."""

    start: Nm3
    stop: Nm3

    @property
    def shape(self) -> Nm3:
        """Its lengths."""
        (z, y, x), (to_z, to_y, to_x) = self.start, self.stop
        return to_z - z, to_y - y, to_x - x

    @property
    def center(self) -> Nm3:
        (z, y, x), (to_z, to_y, to_x) = self.start, self.stop
        return (z + to_z) / 2, (y + to_y) / 2, (x + to_x) / 2

    def shifted(self, by: Nm3) -> BoxNm:
        start, stop = ((place[0] + by[0], place[1] + by[1], place[2] + by[2]) for place in (self.start, self.stop))
        return BoxNm(start, stop)

    def __str__(self) -> str:
        return ", ".join(f"{a:g}:{b:g}" for a, b in zip(self.start, self.stop, strict=True)) + " nm (z, y, x)"


@dataclass(frozen=True, slots=True)
class Grid:
    """The voxels of one level of a volume, and where they lie."""

    shape: Zyx
    voxel_size_nm: VoxelSize
    corner_nm: Nm3
    """The outer corner of voxel (0, 0, 0); its centre is half a voxel further."""

    @property
    def box(self) -> Box:
        """All of it."""
        return Box.from_shape(self.shape)

    def box_nm(self, box: Box) -> BoxNm:
        """The space that some voxels fill."""
        return BoxNm(self.place_nm(box.start), self.place_nm(box.stop))

    def place_nm(self, corner: tuple[float, float, float]) -> Nm3:
        """The place of a corner, in voxels: (0, 0, 0) is the grid's own, a voxel's centre has halves."""
        return (
            self.corner_nm[0] + corner[0] * self.voxel_size_nm[0],
            self.corner_nm[1] + corner[1] * self.voxel_size_nm[1],
            self.corner_nm[2] + corner[2] * self.voxel_size_nm[2],
        )

    def center_nm(self, voxel: Zyx) -> Nm3:
        """The middle of a voxel."""
        return self.place_nm((voxel[0] + 0.5, voxel[1] + 0.5, voxel[2] + 0.5))

    def voxels_at(self, point_nm: Nm3) -> Nm3:
        """A place counted in voxels from the grid's corner: the inverse of `place_nm`."""
        return (
            (point_nm[0] - self.corner_nm[0]) / self.voxel_size_nm[0],
            (point_nm[1] - self.corner_nm[1]) / self.voxel_size_nm[1],
            (point_nm[2] - self.corner_nm[2]) / self.voxel_size_nm[2],
        )

    def voxel_at(self, point_nm: Nm3) -> Zyx:
        """The voxel that holds a point; outside the grid there are voxels, too, with negative or too large numbers."""
        return zyx([math.floor(n) for n in self.voxels_at(point_nm)])

    def start_around(self, center_nm: Nm3, shape: Zyx) -> Zyx:
        """The first voxel of the box of this shape whose middle is nearest to a place; of two, the further one."""
        middle = self.voxels_at(center_nm)
        return zyx([math.floor(m - n / 2 + 0.5) for m, n in zip(middle, shape, strict=True)])


def nm3(values: tuple[float, ...] | list[float] | float) -> Nm3:
    """Three floats; one number stands for all three."""
    if isinstance(values, int | float):
        return float(values), float(values), float(values)
    z, y, x = values
    return float(z), float(y), float(x)
