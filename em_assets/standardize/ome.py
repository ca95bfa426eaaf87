"""The volume's documents: OME-Zarr 0.5 `zarr.json` of the group and of each level, and what levels there are.

The group's document names the levels, so it is written last of all and removed first when a volume is repaired: a
reader never takes half a volume for a whole one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from em_assets.datasets.spec import Layout
from em_assets.records import DatasetFolder, StoredObject
from em_assets.standardize.shard import ShardFormat
from em_assets.volume import VoxelSize, Zyx

SMALLEST_LEVEL_BELOW = 128
Triple = tuple[float, float, float]
PYRAMID: dict[str, dict[str, Any]] = {
    "image": {
        "type": "mean",
        "metadata": {"description": "mean of the real voxels of each 2x2x2 block; integers rounded half to even"},
    },
    "labels": {
        "type": "nearest",
        "metadata": {"description": "voxel 2i of the level below; labels are never averaged"},
    },
}
"""How coarser levels came to be, as the multiscale says it."""


def level_shapes(shape: Zyx) -> list[Zyx]:
    """(z, y, x) of every level: all axes halve, rounded up, until every one is under 128 voxels.

    All together also where voxels are longer along one axis than along the others, so one rule holds for every
    volume. An axis that has come down to 1 stays 1, and its voxel size stays with it (`level_factors`).
    """
    shapes = [shape]
    while max(shapes[-1]) >= SMALLEST_LEVEL_BELOW:
        z, y, x = shapes[-1]
        shapes.append((-(-z // 2), -(-y // 2), -(-x // 2)))
    return shapes


def level_factors(shapes: Sequence[Zyx]) -> list[Zyx]:
    """How many level-0 voxels one voxel of each level spans along z, y, x: doubled where the axis really halved."""
    factors = [(1, 1, 1)]
    for fine, coarse in itertools.pairwise(shapes):
        z, y, x = (f * (1 if a == b else 2) for f, a, b in zip(factors[-1], fine, coarse, strict=True))
        factors.append((z, y, x))
    return factors


def write_metadata(
    folder: DatasetFolder, spec: Layout, origin: Zyx, corner_nm: Triple = (0.0, 0.0, 0.0)
) -> list[StoredObject]:
    """Writes every `zarr.json`, the group's last. `origin` is the volume's first voxel in the publisher's voxels, of
    which the corner of (0, 0, 0) lies at `corner_nm`.

    Call it when every shard is in place: from here on the volume can be opened as a whole.
    """
    shapes = level_shapes(spec.shape)
    written = [
        folder.write(_array_path(folder, level), array_document(spec, shape)) for level, shape in enumerate(shapes)
    ]
    return [*written, folder.write(_group_path(folder), group_document(spec, origin, corner_nm))]


def write_level_metadata(folder: DatasetFolder, spec: Layout, level: int) -> None:
    """Makes one level readable as an array of its own while the volume is not finished. Writes nothing if it is."""
    document = array_document(spec, level_shapes(spec.shape)[level])
    try:
        if folder.read(_array_path(folder, level)) == document:
            return
    except FileNotFoundError:
        pass
    folder.write(_array_path(folder, level), document)


def remove_group_metadata(folder: DatasetFolder) -> None:
    """Hides the volume from readers; call it before anything of a finished volume is changed."""
    folder.store.delete(folder.path(_group_path(folder)))


def group_document(spec: Layout, origin: Zyx, corner_nm: Triple = (0.0, 0.0, 0.0)) -> bytes:
    """OME-Zarr 0.5, section "multiscales". Equal specs and origins give equal bytes.

    `translation` is the centre of the first voxel in the publisher's frame, so the mean of two voxels lies half a fine
    voxel further: `t_k = t_0 + (s_k - s_0) / 2`. A label of a coarser level is that of one voxel, `2i`, and stays at
    its place.
    """
    size = spec.voxel_size_nm
    first = [corner + (o + 0.5) * s for corner, o, s in zip(corner_nm, origin, size, strict=True)]
    shift = 0.0 if spec.content == "labels" else 0.5
    datasets = []
    for level, factor in enumerate(level_factors(level_shapes(spec.shape))):
        scale = _scaled(size, factor)
        translation = [t + (s_k - s_0) * shift for t, s_k, s_0 in zip(first, scale, size, strict=True)]
        transformations = [{"type": "scale", "scale": list(scale)}, {"type": "translation", "translation": translation}]
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    multiscale = {
        "name": spec.name,
        **PYRAMID[spec.content],
        "axes": [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"],
        "datasets": datasets,
    }
    ome = {"version": "0.5", "multiscales": [multiscale]}
    return _json({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}})


def array_document(spec: Layout, shape: Zyx) -> bytes:
    """Zarr v3 metadata of one level: `sharding_indexed` as `shard.py` encodes it."""
    form = ShardFormat.of(spec)
    endian = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs: list[dict[str, Any]] = [endian]
    if form.codec == "zstd":
        codecs.append({"name": "zstd", "configuration": {"level": form.codec_level, "checksum": False}})
    sharding = {
        "chunk_shape": list(form.chunk),
        "codecs": codecs,
        "index_codecs": [endian, {"name": "crc32c"}],
        "index_location": "end",
    }
    return _json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": form.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(form.shard)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if np.dtype(form.dtype).kind == "f" else 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "dimension_names": ["z", "y", "x"],
        }
    )


def _group_path(folder: DatasetFolder) -> str:
    return f"{folder.volume}/zarr.json"


def _array_path(folder: DatasetFolder, level: int) -> str:
    return f"{folder.volume}/{level}/zarr.json"


def _scaled(size: VoxelSize, factor: Zyx) -> VoxelSize:
    return size[0] * factor[0], size[1] * factor[1], size[2] * factor[2]


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"
