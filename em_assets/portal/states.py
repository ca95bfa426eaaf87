"""One Neuroglancer state for each tomogram, as `<id>-neuroglancer_config.json` beside it: image, then its labels.

The volumes are the tree's own OME-Zarr groups. Their addresses are a base, which is given, and the key in the tree;
without a base they are relative to the tree's root, and Neuroglancer, which takes whole addresses only, wants
`with_base` first. A state is in the tomogram's frame: the corner of its voxel 0 is 0. Each volume is put where it lies
there, because the portal's OME-Zarr metadata do not say it: the middle of voxel 0 is 0 in all of them.

What a state looks like otherwise is decided in `neuroglancer.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from em_assets.errors import Mismatch
from em_assets.neuroglancer import FRAGMENT_SAFE, Picture, neuroglancer_state
from em_assets.volume import Box, VoxelSize, Zyx

DRIVER = "zarr://"
"""Neuroglancer's name of the reader; it finds out itself which version of Zarr and OME-Zarr it is."""
ORIGIN: VoxelSize = (0.0, 0.0, 0.0)
BACKGROUND = "#000000"
"""Around the volume, as the portal's states have it."""


@dataclass(frozen=True, slots=True)
class ShownVolume:
    """An OME-Zarr group of the tree, as a state shows it."""

    name: str
    key: str
    """Of the group, relative to the tree's root."""
    shape: Zyx
    voxel_size_nm: VoxelSize
    corner_nm: VoxelSize = ORIGIN
    """(z, y, x) where the corner of its voxel 0 lies, from the corner of the tomogram's."""
    value_range: tuple[float, float] | None = None
    """Shown from black to white; None: the whole range of the dtype."""
    is_labels: bool = False


def tomogram_state(image: ShownVolume, further: Sequence[ShownVolume] = (), base_url: str = "") -> dict[str, Any]:
    """The state that shows a tomogram, centred and to scale, with its labels over it and other images hidden.

    `base_url` is where the tree's root is served. Raises Mismatch if Neuroglancer reads nothing from there.
    """
    volumes = [image, *further]
    state = neuroglancer_state(_picture(image), [_picture(volume) for volume in further])
    for volume, layer in zip(volumes, state["layers"], strict=True):
        layer["source"] = {"url": f"{DRIVER}{quote(volume.key, safe=FRAGMENT_SAFE)}", "transform": _transform(volume)}
    state["crossSectionBackgroundColor"] = BACKGROUND
    return with_base(state, base_url) if base_url else state


def with_base(state: dict[str, Any], base_url: str) -> dict[str, Any]:
    """A copy in which addresses that were relative to the tree's root are below `base_url`; others stay."""
    base = _checked(base_url)

    def based(layer: dict[str, Any]) -> dict[str, Any]:
        url = layer["source"]["url"].removeprefix(DRIVER)
        if "://" in url:
            return layer
        return layer | {"source": layer["source"] | {"url": f"{DRIVER}{base}/{url}"}}

    return state | {"layers": [based(layer) for layer in state["layers"]]}


def source_urls(state: dict[str, Any]) -> Iterator[str]:
    """The addresses of the groups that a state shows, without Neuroglancer's driver."""
    return (layer["source"]["url"].removeprefix(DRIVER) for layer in state["layers"])


def state_json(state: dict[str, Any], deposition_id: int, last_updated_at: int) -> bytes:
    """The document, with what the portal's writer adds to every one. `last_updated_at` is POSIX time."""
    document = state | {"deposition_id": deposition_id, "last_updated_at": last_updated_at}
    return json.dumps(document, indent=4).encode() + b"\n"


def _checked(base_url: str) -> str:
    if re.fullmatch(r"(https?|s3|gs)://[^\s/?#]+[^\s?#]*", base_url) is None:
        raise Mismatch(
            f"the base address is {base_url!r}, expected one that Neuroglancer reads from, such as "
            "https://example.org/tree or s3://bucket/tree, without `?` and `#`; correct --base-url."
        )
    return base_url.rstrip("/")


def _picture(volume: ShownVolume) -> Picture:
    return Picture(
        name=volume.name,
        source=volume.key,
        voxel_size_nm=volume.voxel_size_nm,
        box=Box.from_shape(volume.shape),
        value_range=volume.value_range,
        is_labels=volume.is_labels,
        corner_nm=volume.corner_nm,
    )


def _transform(volume: ShownVolume) -> dict[str, Any]:
    """From where Neuroglancer would put the group to where it lies; axes in the group's own order, counted in voxels.

    By the group's metadata the middle of voxel 0 is 0, so Neuroglancer puts its corner half a voxel before.
    """
    sizes = volume.voxel_size_nm
    shifts = [round(corner / size + 0.5, 9) for corner, size in zip(volume.corner_nm, sizes, strict=True)]
    matrix = [[*(float(row == column) for column in range(3)), shift] for row, shift in enumerate(shifts)]
    dimensions = {axis: [size * 1e-9, "m"] for axis, size in zip("zyx", sizes, strict=True)}
    return {"outputDimensions": dimensions, "matrix": matrix}
