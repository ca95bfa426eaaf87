"""Where the part of a publisher's volume lies that a spec asks for: all of it, a given box, or one that is drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

from em_assets.datasets.spec import Crop, DatasetSpec
from em_assets.errors import Mismatch, Unsupported
from em_assets.formats.reader import VolumeReader
from em_assets.volume import Box, VolumeInfo, Zyx, add, subtract, zyx

Coarser = Callable[[int], VolumeReader]
"""One of the publisher's coarse levels by its number, the coarsest if there are not so many."""


def find_crop(spec: DatasetSpec, reader: VolumeReader, coarser: Coarser | None = None) -> tuple[Box, dict[str, Any]]:
    """The box to read in the publisher's voxels, and how it came to lie there.

    Drawn origins depend on the seed and the volume's shape alone, so they are the same wherever they are drawn.
    Raises Mismatch if the crop does not fit, or if no draw is filled enough, Unsupported if draws are to be judged
    on a coarse level and there is none.
    """
    crop, info = spec.crop, reader.info
    if crop is None:
        return Box.from_shape(info.shape, at=info.origin), {"origin": "whole"}
    room = subtract(info.shape, crop.shape)
    if min(room) < 0:
        raise Mismatch(
            f"{spec.name}: a crop of {crop.shape} does not fit into the publisher's volume of {info.shape} voxels "
            "(z, y, x); make crop.shape smaller."
        )
    if crop.seed is None:
        box = Box.from_shape(crop.shape, at=_given_origin(spec, crop, info))
        return box, {"origin": "given", "snapped": crop.snaps}
    return _drawn(spec, crop, crop.seed, reader, coarser)


def _given_origin(spec: DatasetSpec, crop: Crop, info: VolumeInfo) -> Zyx:
    origin = crop.given_origin(spec.voxel_size_nm)
    assert origin is not None
    if crop.snaps:
        steps = ((o - first) // c for o, first, c in zip(origin, info.origin, info.chunk, strict=True))
        origin = zyx([first + s * c for s, first, c in zip(steps, info.origin, info.chunk, strict=True)])
    whole = Box.from_shape(info.shape, at=info.origin)
    if not whole.contains(Box.from_shape(crop.shape, at=origin)):
        raise Mismatch(
            f"{spec.name}: a crop of {crop.shape} at {origin} leaves the publisher's volume {whole}; "
            "move crop.origin or make crop.shape smaller."
        )
    return origin


def _drawn(
    spec: DatasetSpec, crop: Crop, seed: int, reader: VolumeReader, coarser: Coarser | None
) -> tuple[Box, dict[str, Any]]:
    info, redraw = reader.info, crop.redraw
    if redraw is not None and coarser is None:
        raise Unsupported(f"{spec.name}: crop.redraw needs a publisher's coarse levels, here are none; leave it out.")
    room, step = subtract(info.shape, crop.shape), info.chunk if crop.snaps else (1, 1, 1)
    draws: list[dict[str, Any]] = []
    for number in range(redraw.max_draws if redraw else 1):
        origin = add(info.origin, _draw(seed, number, room, step))
        box = Box.from_shape(crop.shape, at=origin)
        filled = _filled_fraction(reader, box, coarser(redraw.level)) if redraw and coarser else None
        draws.append({"origin": list(origin), "filled_fraction": filled})
        if redraw is None or filled is None or filled >= redraw.min_filled_fraction:
            return box, {"origin": "drawn", "seed": seed, "snapped": crop.snaps, "draws": draws}
    assert redraw is not None
    best = max(float(draw["filled_fraction"] or 0) for draw in draws)
    raise Mismatch(
        f"{spec.name}: none of {len(draws)} draws of seed {seed} is at least "
        f"{redraw.min_filled_fraction:.0%} filled (the best is {best:.0%}); "
        "take another seed, a smaller crop, or give crop.origin."
    )


def _draw(seed: int, number: int, room: Zyx, step: Zyx) -> Zyx:
    """An offset in 0..room on the grid of `step`, uniform, from the digest of (seed, number, axis).

    A digest, because the streams of random generators are not promised to stay the same between versions.
    """
    offsets = []
    for axis, (space, grid) in enumerate(zip(room, step, strict=True)):
        digest = hashlib.sha256(f"em_assets crop {seed} {number} {axis}".encode()).digest()
        offsets.append(int.from_bytes(digest, "big") % (space // grid + 1) * grid)
    return zyx(offsets)


def _filled_fraction(reader: VolumeReader, box: Box, coarse: VolumeReader) -> float:
    """Share of non-zero voxels under `box` on a coarse level of the publisher; missing chunks are empty."""
    import numpy as np

    fine_nm, coarse_nm = reader.info.voxel_size_nm, coarse.info.voxel_size_nm
    if fine_nm is None or coarse_nm is None:
        raise Unsupported("crop.redraw needs levels that state their voxel size; leave it out.")
    scales = zip(box.start, box.stop, fine_nm, coarse_nm, strict=True)
    bounds = [(math.floor(a * fine / rough), math.ceil(b * fine / rough)) for a, b, fine, rough in scales]
    wanted = Box(zyx([a for a, _ in bounds]), zyx([b for _, b in bounds]))
    inside = wanted.intersection(Box.from_shape(coarse.info.shape, at=coarse.info.origin))
    if inside is None:
        return 0.0
    (outcome,) = coarse.map_regions([inside], lambda region: int(np.count_nonzero(region.voxels)))
    if outcome.error is not None:
        raise outcome.error
    return round((outcome.value or 0) / inside.voxels, 4)
