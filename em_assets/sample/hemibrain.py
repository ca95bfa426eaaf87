"""The hemibrain's part of the sample origin: a sharded JPEG precomputed volume, and the spec that points at it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_assets.sample.publishing import (
    SAMPLE_DOI,
    SAMPLE_NOTES,
    Addresses,
    Facts,
    drawn_words,
    sample_spec,
)
from em_assets.volume import Zyx

if TYPE_CHECKING:
    from em_assets.sample.origin import Request
    from em_assets.sample.volumes import Voxels

DATASET = "hemibrain_crop"
SHAPE: Zyx = (443, 477, 509)
"""Odd, as the real one is: the last chunk of each axis is clipped."""
FILL = 0.95
"""The tissue does not fill the box: the chunks of the corners do not exist."""
CROP_EDGE = 300
SHARD_EDGE = 128
"""Of the output: a crop of 300 has 27 partitions."""
REDRAW_LEVEL = 3


def write(origin: Path, request: Request) -> Facts:
    """Writes the volume below `origin`; what is returned (JSON) is all that `spec` needs."""
    from em_assets.sample.precomputed import Sharding, write_precomputed

    voxels = _voxels(request)
    # The content is part of the address, so a store can never take one sample's voxels for another's.
    digest = hashlib.sha256(repr((voxels.shape, "jpeg 85, 3+2+4 bits")).encode() + voxels.tobytes()).hexdigest()[:12]
    path = f"sample/hemibrain-{digest}/emdata/clahe_yz/jpeg"
    sharding = Sharding(preshift_bits=3, minishard_bits=2, shard_bits=4)
    write_precomputed(origin / path, voxels, sharding=sharding, jpeg_quality=85)
    cut_from = None if request.volume is None else request.volume.resolve().name
    return {"path": path, "shape": list(voxels.shape), "seed": request.seed, "cut_from": cut_from}


def spec(facts: Facts, addresses: Addresses) -> dict[str, Any]:
    """The packaged spec with everything changed that would pass the sample off as the real thing."""
    url = f"{addresses.http}/{facts['path']}"
    document = sample_spec(DATASET, _words(facts), f"{url}/info") | {"source_id": facts["path"]}
    document["source"] = {"kind": "precomputed", "url": url, "level": 0}
    crop = [min(CROP_EDGE, size * 7 // 10) for size in facts["shape"]]
    redraw = {"level": REDRAW_LEVEL, "min_filled_fraction": 0.9}
    document["crop"] = {"shape": crop, "seed": document["crop"]["seed"], "redraw": redraw}
    document["expected"] = {"source_shape": facts["shape"], "dtype": "uint8", "voxel_size_nm": [8.0, 8.0, 8.0]}
    document["output"] = document.get("output", {}) | {"shard": [SHARD_EDGE] * 3}
    return document


def _voxels(request: Request) -> Voxels:
    if request.volume is not None:
        from em_assets.sample.volumes import read_volume

        return read_volume(request.volume, at_most=SHAPE)
    from em_assets.sample.texture import draw

    return draw(SHAPE, request.seed, fill=FILL)


def _words(facts: Facts) -> dict[str, Any]:
    """Title, description and rights: of a drawing, or of a file that somebody gave."""
    served = "served on this machine in the hemibrain's format; the 8 nm are nominal."
    name = facts["cut_from"]
    if name is None:
        return drawn_words(facts["seed"], instead_of="the hemibrain", served=served)
    return {
        "title": f"SAMPLE: cut from {name}, not the hemibrain",
        "description": f"The middle of {name}, {served}",
        "license": f"that of {name}, unknown here",
        "citation": f"None known: whoever made {name}.",
        "doi": SAMPLE_DOI,
        "notes": SAMPLE_NOTES | {"expected.voxel_size_nm": f"nominal: the voxel size of {name} was not looked at"},
    }
