"""OME-Zarr 0.4: a Zarr v2 group with an array for each level, for programs that do not read Zarr v3 yet."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from em_assets.export.stored import Part, Work, cells_of
from em_assets.records import StoredObject, manifest_digest
from em_assets.volume import Box, Zyx, ceil_divide, multiply

CHUNK: Zyx = (64, 64, 64)
BLOCK: Zyx = (256, 256, 256)
"""Voxels that a worker holds while it cuts them into chunks."""
BLOSC_LEVEL = 1
BLOSC_SHUFFLE = 1
"""By bytes, which changes nothing for those of one."""


def write_folder(work: Work, folder: Path) -> tuple[int, str]:
    """Writes every part as a level; (size of all files, digest over them).

    Chunks are not synced, which would take longer than all else: after a power cut the digest tells what is whole.
    """
    blocks = [cells_of(Box.from_shape(part.shape), BLOCK) for part in work.parts]
    work.start(sum(map(len, blocks)))
    written = [_write_document(folder, ".zgroup", {"zarr_format": 2})]
    for number, (part, boxes) in enumerate(zip(work.parts, blocks, strict=True)):
        written.append(_write_document(folder, f"{number}/.zarray", _array_document(part, work.volume.dtype)))
        for chunks, missing in work.each(partial(_write_block, work, part, folder, number), boxes):
            written += chunks
            work.missing_voxels += missing if number == 0 else 0
    written.append(_write_document(folder, ".zattrs", _attributes(work)))
    return sum(one.size_bytes for one in written), manifest_digest(written)


def _write_block(work: Work, part: Part, folder: Path, number: int, block: Box) -> tuple[list[StoredObject], int]:
    """Writes the chunks of a block, which is in voxels of what is exported; (chunks, how many voxels are missing)."""
    from imagecodecs import blosc_encode

    dtype = work.volume.dtype
    filled_up = multiply(ceil_divide(block.shape, CHUNK), CHUNK)
    voxels = np.zeros(filled_up, dtype)
    missing = work.read_into(voxels[Box.from_shape(block.shape).slices], part.level, block.shifted(part.box.start))
    written = []
    for at in Box.from_shape(filled_up).cells(CHUNK):
        # not as bytes: imagecodecs takes their items for single bytes whatever typesize says, and shuffles nothing
        chunk = np.ascontiguousarray(voxels[Box.from_shape(CHUNK, at=multiply(at, CHUNK)).slices])
        data = blosc_encode(
            chunk,  # type: ignore[arg-type]  # an array is a buffer
            BLOSC_LEVEL,
            compressor="zstd",
            shuffle=BLOSC_SHUFFLE,
            typesize=dtype.itemsize,
            numthreads=1,
        )
        z, y, x = (i + start // edge for i, start, edge in zip(at, block.start, CHUNK, strict=True))
        written.append(_write(folder, f"{number}/{z}/{y}/{x}", bytes(data)))
    return written, missing


def _array_document(part: Part, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Zarr v2, "Arrays: Metadata"."""
    return {
        "zarr_format": 2,
        "shape": part.shape,
        "chunks": CHUNK,
        "dtype": dtype.str,
        "compressor": {
            "id": "blosc",
            "cname": "zstd",
            "clevel": BLOSC_LEVEL,
            "shuffle": BLOSC_SHUFFLE,
            "blocksize": 0,
        },
        "fill_value": 0.0 if dtype.kind == "f" else 0,
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
    }


def _attributes(work: Work) -> dict[str, Any]:
    """OME-Zarr 0.4, "multiscales"."""
    datasets: list[dict[str, Any]] = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {"type": "scale", "scale": part.voxel_size_nm},
                {"type": "translation", "translation": part.translation_nm},
            ],
        }
        for number, part in enumerate(work.parts)
    ]
    how = {key: value for key, value in work.volume.multiscale.items() if key in ("type", "metadata")}
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    multiscale = {"version": "0.4", "name": work.volume.folder.title, **how, "axes": axes, "datasets": datasets}
    return {"multiscales": [multiscale]}


def _write_document(folder: Path, path: str, document: dict[str, Any]) -> StoredObject:
    return _write(folder, path, json.dumps(document, indent=1).encode() + b"\n")


def _write(folder: Path, path: str, data: bytes) -> StoredObject:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return StoredObject(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
