"""The `info` document of a precomputed volume: read strictly, turned around to (z, y, x).

Specification: github.com/google/neuroglancer, src/datasource/precomputed/volume.rst. Members that nobody here needs
(meshes, skeletons, notes of other tools) are let through; those that decide where voxels lie are checked.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from em_assets.errors import Malformed, Unsupported
from em_assets.formats._compressed_segmentation import MAX_BLOCK_VOXELS, padded_shape
from em_assets.formats._sharded import Sharding, morton_bits
from em_assets.volume import VoxelSize, Zyx, ceil_divide

MAX_INFO_BYTES = 8 * 2**20
MAX_SCALES = 256
MAX_CHUNK_VOXELS = 2**26
"""406^3: no publisher we know comes near, and no image of a chunk is larger."""


@dataclass(frozen=True, slots=True)
class Scale:
    """One level of the volume as `info` describes it; (z, y, x)."""

    key: str
    shape: Zyx
    chunk: Zyx
    voxel_offset: Zyx
    voxel_size_nm: VoxelSize
    encoding: str
    block: Zyx | None
    """Of compressed_segmentation; None for other encodings."""
    sharding: Sharding | None


@dataclass(frozen=True, slots=True)
class PrecomputedInfo:
    """What `info` says of the whole volume."""

    kind: Literal["image", "segmentation"]
    dtype: str
    scales: tuple[Scale, ...]
    """As listed: finest first."""


def parse_info(document: bytes, url: str) -> PrecomputedInfo:
    """Raises Malformed naming the field, or Unsupported where a volume has several channels."""
    if document.lstrip()[:1] == b"<":
        raise Malformed(f"{url} is a web page or XML, not the JSON of a precomputed volume; check the address.")
    try:
        model = _Info.model_validate(_json(document, url))
    except ValidationError as error:
        first = error.errors()[0]
        pointer = "/".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        found = "is absent" if first["type"] == "missing" else f"is {_short(first['input'])}"
        raise Malformed(
            f"{url}: {pointer or 'the document'} {found}: {message[:1].lower()}{message[1:]}; "
            "it is not a precomputed volume that can be read."
        ) from None
    if model.num_channels != 1:
        raise Unsupported(f"{url}: num_channels is {model.num_channels}; accepted is 1.")
    scales = tuple(_scale(model.scales[i], f"{url}: scales/{i}") for i in range(len(model.scales)))
    return PrecomputedInfo(model.type, model.data_type, scales)


def _scale(model: _Scale, where: str) -> Scale:
    shape, chunk = _zyx(model.size), _zyx(model.chunk_sizes[0])
    if math.prod(chunk) > MAX_CHUNK_VOXELS:
        raise Unsupported(f"{where}/chunk_sizes/0 has {math.prod(chunk)} voxels; accepted are {MAX_CHUNK_VOXELS}.")
    bits = morton_bits(ceil_divide(shape, chunk))
    if bits > 62:
        raise Unsupported(f"{where}: its chunk grid needs ids of {bits} bits; accepted are 62.")
    x, y, z = model.resolution
    return Scale(
        model.key,
        shape,
        chunk,
        _zyx(model.voxel_offset),
        (z, y, x),
        model.encoding,
        _block(model, where) if model.encoding == "compressed_segmentation" else None,
        _sharding(model.sharding, where),
    )


def _block(model: _Scale, where: str) -> Zyx:
    """How compressed_segmentation cuts a chunk; blocks that the chunk ends in are padded, which takes room, too."""
    where = f"{where}/compressed_segmentation_block_size"
    if model.compressed_segmentation_block_size is None:
        raise Malformed(f"{where} is absent, so chunks encoded as compressed_segmentation cannot be read.")
    block = _zyx(model.compressed_segmentation_block_size)
    padded = math.prod(padded_shape(_zyx(model.chunk_sizes[0]), block))
    if math.prod(block) > MAX_BLOCK_VOXELS or padded > MAX_CHUNK_VOXELS:
        raise Unsupported(
            f"{where} is {list(model.compressed_segmentation_block_size)}: a block has {math.prod(block)} voxels and a "
            f"chunk of whole blocks {padded}; accepted are {MAX_BLOCK_VOXELS} and {MAX_CHUNK_VOXELS}."
        )
    return block


def _sharding(model: _Sharding | None, where: str) -> Sharding | None:
    if model is None:
        return None
    bits = model.preshift_bits + model.minishard_bits + model.shard_bits
    if bits > 64:
        raise Malformed(f"{where}/sharding: preshift, minishard and shard have {bits} bits together; at most 64 are.")
    return Sharding(
        model.preshift_bits,
        model.minishard_bits,
        model.shard_bits,
        model.hash,
        model.minishard_index_encoding,
        model.data_encoding,
    )


def _zyx(xyz: tuple[int, int, int]) -> Zyx:
    x, y, z = xyz
    return z, y, x


def _safe_key(key: str) -> str:
    """Refuses what leaves the volume's own folder."""
    if key.startswith("/") or "://" in key or "\\" in key or not key.isprintable() or ".." in key.split("/"):
        raise ValueError("expected the name of a folder below info")
    return key


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


Size = Annotated[int, Field(strict=True, ge=1, le=2**40)]
Offset = Annotated[int, Field(strict=True, ge=-(2**40), le=2**40)]
Nanometres = Annotated[float, Field(strict=True, gt=0), AfterValidator(_finite)]
Bits = Annotated[int, Field(strict=True, ge=0, le=64)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Sharding(_Model):
    type: Annotated[Literal["neuroglancer_uint64_sharded_v1"], Field(alias="@type")]
    preshift_bits: Bits
    minishard_bits: Annotated[int, Field(strict=True, ge=0, le=32)]
    shard_bits: Annotated[int, Field(strict=True, ge=0, le=62)]
    hash: Literal["identity", "murmurhash3_x86_128"]
    minishard_index_encoding: Literal["raw", "gzip"] = "raw"
    data_encoding: Literal["raw", "gzip"] = "raw"


class _Scale(_Model):
    key: Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_safe_key)]
    size: tuple[Size, Size, Size]
    resolution: tuple[Nanometres, Nanometres, Nanometres]
    voxel_offset: tuple[Offset, Offset, Offset] = (0, 0, 0)
    chunk_sizes: Annotated[tuple[tuple[Size, Size, Size], ...], Field(min_length=1, max_length=64)]
    encoding: Annotated[str, Field(max_length=64)]
    compressed_segmentation_block_size: tuple[Size, Size, Size] | None = None
    sharding: _Sharding | None = None


class _Info(_Model):
    at_type: Annotated[Literal["neuroglancer_multiscale_volume"] | None, Field(alias="@type")] = None
    type: Literal["image", "segmentation"]
    data_type: Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32"]
    num_channels: Annotated[int, Field(strict=True, ge=1)]
    scales: Annotated[tuple[_Scale, ...], Field(min_length=1, max_length=MAX_SCALES)]


def _json(document: bytes, url: str) -> Any:
    """The document, without what other readers would read differently: repeated names, NaN, depth."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise Malformed(f"{url}: {twice!r} is given twice in one object; which of them holds is unknown.")
        return names

    def no_number(name: str) -> NoReturn:
        raise Malformed(f"{url}: {name} stands where JSON has a number.")

    try:
        return json.loads(document.decode("utf-8-sig"), object_pairs_hook=distinct, parse_constant=no_number)
    except UnicodeDecodeError as error:
        raise Malformed(f"{url} is not UTF-8 (byte {error.start}); it is not a precomputed volume's info.") from None
    except json.JSONDecodeError as error:
        what = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise Malformed(f"{url} is not JSON ({what}); it is not a precomputed volume's info.") from None
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        raise Malformed(f"{url} is nested too deep or has a number with too many digits.") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
