"""The resolution levels of a stored OME-Zarr 0.5 volume, read from its `zarr.json` files without a Zarr library.

Shape, shard, chunk and codec are each array's own (Zarr v3, `sharding_indexed`), the voxel size is the scale of the
multiscale's coordinate transformations (OME-Zarr 0.5, section "multiscales").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from em_assets.errors import Malformed
from em_assets.records import DatasetFolder

NANOMETRES = {"nanometer": 1.0, "micrometer": 1e3, "angstrom": 0.1}


def stored_levels(folder: DatasetFolder, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows of the table `levels`, finest first. `sizes` are those of the stored objects (`folder.stored_sizes()`).

    Raises Malformed naming the file if the volume's metadata is gone or is not what OME-Zarr 0.5 asks for.
    """
    where = f"{folder.volume}/zarr.json"
    try:
        multiscale = _read_json(folder, where)["attributes"]["ome"]["multiscales"][0]
        units = [NANOMETRES[axis["unit"]] for axis in multiscale["axes"]]
        rows = []
        for level, dataset in enumerate(multiscale["datasets"]):
            where = f"{folder.volume}/{dataset['path']}/zarr.json"
            scale = next(t["scale"] for t in dataset["coordinateTransformations"] if t["type"] == "scale")
            voxel_size_nm = [value * unit for value, unit in zip(scale, units, strict=True)]
            objects = [size for path, size in sizes.items() if path.startswith(f"{folder.volume}/{dataset['path']}/c/")]
            rows.append(
                {
                    "name": folder.name,
                    "volume": folder.sub,
                    "level": level,
                    **_array_columns(_read_json(folder, where)),
                    **{f"voxel_size_{axis}_nm": float(v) for axis, v in zip("zyx", voxel_size_nm, strict=True)},
                    "shards": len(objects),
                    "size_bytes": sum(objects),
                }
            )
    except FileNotFoundError:
        raise Malformed(f"{folder.uri(where)} is gone; materialize {folder.name} again, which writes it.") from None
    except (KeyError, IndexError, TypeError, ValueError, StopIteration, OSError) as error:
        raise Malformed(
            f"{folder.uri(where)} is not the metadata of an OME-Zarr 0.5 volume ({type(error).__name__}: {error}); "
            f"remove it and materialize {folder.name} again."
        ) from None
    return rows


def _read_json(folder: DatasetFolder, relative: str) -> Any:
    return json.loads(folder.read(relative))


def _array_columns(metadata: Any) -> dict[str, Any]:
    shard = _triple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
    chunk, codecs = shard, metadata["codecs"]
    if codecs[0]["name"] == "sharding_indexed":
        inner = codecs[0]["configuration"]
        chunk, codecs = _triple(inner["chunk_shape"]), inner["codecs"]
    shape = {f"shape_{axis}": size for axis, size in zip("zyx", _triple(metadata["shape"]), strict=True)}
    return {**shape, "shard": shard, "chunk": chunk, "codec": _codec_name(codecs)}


def _triple(values: Any) -> list[int]:
    z, y, x = values
    return [int(z), int(y), int(x)]


def _codec_name(codecs: list[Any]) -> str:
    """The compressors in order, with their level: `zstd 1`, or `none`."""
    names = []
    for codec in codecs:
        if codec["name"] not in ("bytes", "transpose", "crc32c"):
            level = codec.get("configuration", {}).get("level")
            names.append(codec["name"] if level is None else f"{codec['name']} {level}")
    return ", ".join(names) or "none"
