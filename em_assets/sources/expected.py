"""Is what a publisher serves what the spec expects? Asked of every volume before its first voxel is read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from em_assets.errors import Mismatch, Unsupported
from em_assets.volume import VolumeInfo, VoxelSize, Zyx

SAME_SIZE = 1e-9
"""Relative: the noise of computing with the same number, no more."""


def require_expected(where: str, info: VolumeInfo, shapes: Sequence[Zyx], dtype: str, voxel_size_nm: VoxelSize) -> None:
    """Raises Mismatch naming the first of shape, dtype and voxel size that differs, Unsupported for several channels.

    Any of `shapes` is accepted. A volume that does not state its voxel size contradicts none.
    """
    if info.channels not in (None, 1):
        raise Unsupported(
            f"{where} has {info.channels} channels, but volumes of one channel are stored; name one that has one."
        )
    found: tuple[tuple[str, object, object, bool], ...] = (
        ("shape", info.shape, " or ".join(map(str, shapes)), info.shape in shapes),
        ("dtype", info.dtype, dtype, info.dtype == dtype),
        ("voxel size in nm", info.voxel_size_nm, voxel_size_nm, _same_size(info.voxel_size_nm, voxel_size_nm)),
    )
    for what, is_now, was_expected, agrees in found:
        if not agrees:
            raise Mismatch(
                f"{where}: the publisher's {what} is {is_now}, the spec expects {was_expected} (z, y, x); look at "
                "what changed, then correct what the spec expects."
            )


def _same_size(found: VoxelSize | None, expected: VoxelSize) -> bool:
    return found is None or all(math.isclose(a, b, rel_tol=SAME_SIZE) for a, b in zip(found, expected, strict=True))
