"""OpenOrganelle's part of the sample origin: a Zarr v2 container in a bucket, with the images and the nuclei's labels.

As in the real one there is no consolidated metadata, the pyramid's sides are rounded down, and its scales are not
round numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from em_assets.sample.pages import BUCKET
from em_assets.sample.publishing import FOLDER, Addresses, Facts, drawn_words, packaged_spec, sample_spec, settle
from em_assets.volume import Zyx

if TYPE_CHECKING:
    from em_assets.sample.origin import Request
    from em_assets.sample.zarr_v2 import Level, Triple, Voxels

DATASET = "jrc_mus_nacc_2"
SHAPE: Zyx = (141, 315, 324)
"""Of the images: that of the real level s2, so the sides of the coarser levels are real, too."""
SHARD, LABELS_SHARD = [64, 128, 128], [64, 64, 64]
"""Of the output: 27 shards of the images, one of the labels."""
SCALES_NM: tuple[Triple, ...] = (
    (2.96, 4.0, 4.0),
    (5.92, 8.0, 8.0),
    (11.840000000000002, 16.0, 16.0),
    (23.68, 32.0, 32.0),
    (47.36, 64.0, 64.0),
    (94.72, 128.0, 128.0),
)
"""As they stand in the real file."""
TRANSLATIONS_NM: tuple[Triple, ...] = (
    (0.0, 0.0, 0.0),
    (1.48, 2.0, 2.0),
    (4.4399999999999995, 6.0, 6.0),
    (10.36, 14.0, 14.0),
    (22.2, 30.0, 30.0),
    (45.88, 62.0, 62.0),
)
LABELS_FROM_LEVEL = 3
"""The labels' first level lies on the grid of the images' s3."""
MIDDLE_GREY, STEPS_PER_GREY = 140, 97
"""How the drawn grey values become signed 16 bit ones, about 0."""
IMAGES_ZSTD, LABELS_ZSTD = 1, 6


def write(origin: Path, request: Request) -> Facts:
    """Writes the container below `origin`."""
    from em_assets.sample.zarr_v2 import write_group, write_multiscale

    real = packaged_spec(DATASET)
    address = urlsplit(real["source"]["url"])
    bucket = origin / address.netloc
    root = bucket / FOLDER
    container = root / address.path.lstrip("/")
    images, labels = real["source"]["group"], real["volumes"]["nuc"]["group"]
    for group in {parent for name in (images, labels) for parent in Path(name).parents}:
        write_group(container / group)
    write_multiscale(container / images, _image_levels(request.seed), zstd_level=IMAGES_ZSTD)
    nuclei = _label_levels()
    write_multiscale(container / labels, nuclei, zstd_level=LABELS_ZSTD)
    (bucket / BUCKET).touch()
    objects = [file.stat().st_size for file in (container / images).rglob("*") if file.is_file()]
    return {
        "bucket": address.netloc,
        "key": f"{settle(root).name}{address.path}",
        "seed": request.seed,
        "objects": len(objects),
        "object_bytes": sum(objects),
        "labels_shape": list(nuclei[0].voxels.shape),
    }


def spec(facts: Facts, addresses: Addresses) -> dict[str, Any]:
    """The packaged spec with everything changed that would pass the sample off as the real thing."""
    bucket, key = facts["bucket"], facts["key"]
    served = "served on this machine as OpenOrganelle serves jrc_mus-nacc-2; the voxel size is nominal."
    words = drawn_words(facts["seed"], instead_of="the nucleus accumbens", served=served)
    document = sample_spec(DATASET, words, f"{addresses.http}/{bucket}/?list-type=2&prefix={key}/")
    document["source"] |= {"url": f"s3://{bucket}/{key}", "endpoint": addresses.http}
    document["expected"] |= {"source_shape": list(SHAPE)} | {key: facts[key] for key in ("objects", "object_bytes")}
    nuclei = {key: value for key, value in document["volumes"]["nuc"].items() if key != "doi"}
    drawn = {"title": "SAMPLE: drawn balls, not nuclei", "shape": facts["labels_shape"], "shard": LABELS_SHARD}
    document["volumes"] = {"nuc": nuclei | drawn}
    document["output"] |= {"shard": SHARD}
    return document


def _image_levels(seed: int) -> list[Level]:
    import numpy as np

    from em_assets.sample.texture import draw
    from em_assets.sample.zarr_v2 import halved

    voxels: Voxels = ((draw(SHAPE, seed).astype(np.int16) - MIDDLE_GREY) * STEPS_PER_GREY).astype("<i2")
    pyramid = [voxels]
    while len(pyramid) < len(SCALES_NM):
        pyramid.append(halved(pyramid[-1]))
    return _levels(pyramid, 0)


def _label_levels() -> list[Level]:
    """Three balls, numbered."""
    import numpy as np

    from em_assets.sample.zarr_v2 import halved

    z, y, x = (size >> LABELS_FROM_LEVEL for size in SHAPE)
    at = np.ogrid[:z, :y, :x]
    nuclei = np.zeros((z, y, x), np.uint8)
    for label, (centre, radius) in enumerate({(8, 10, 12): 7, (10, 28, 25): 6, (4, 20, 34): 4}.items(), 1):
        nuclei[sum((axis - c) ** 2 for axis, c in zip(at, centre, strict=True)) < radius**2] = label
    pyramid = [nuclei]
    while len(pyramid) < len(SCALES_NM) - LABELS_FROM_LEVEL:
        pyramid.append(halved(pyramid[-1], labels=True))
    return _levels(pyramid, LABELS_FROM_LEVEL)


def _levels(pyramid: list[Voxels], first: int) -> list[Level]:
    from em_assets.sample.zarr_v2 import Level

    places = zip(SCALES_NM[first:], TRANSLATIONS_NM[first:], strict=True)
    return [Level(voxels, *place) for voxels, place in zip(pyramid, places, strict=True)]
