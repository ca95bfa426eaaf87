"""Writes Neuroglancer precomputed image volumes, sharded or not, as files that a plain HTTP server can serve.

Follows the format's specification (github.com/google/neuroglancer, datasource/precomputed: volume.md, sharded.md), not
`formats/`: the product's reader is tested against this writer, and this writer against tensorstore and cloud-volume.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from em_assets.errors import Unsupported
from em_assets.volume import Box, VoxelSize, Zyx, ceil_divide

Encoding = Literal["raw", "jpeg", "png"]
Compression = Literal["raw", "gzip"]
Array = npt.NDArray[Any]

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
ENCODING_DTYPES: dict[Encoding, tuple[str, ...]] = {"raw": DTYPES, "jpeg": ("uint8",), "png": ("uint8", "uint16")}
AXES = "zyx"
"""Of every array here; files name them the other way round."""
MAX_IMAGE_EDGE = 65535
"""What JPEG allows. A chunk is one image: x wide, y times z high."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How chunk ids are spread over shard files. Bits as in `neuroglancer_uint64_sharded_v1`."""

    preshift_bits: int
    """Low bits of the id that are not hashed: so many neighbours share a minishard."""
    minishard_bits: int
    shard_bits: int
    hash: Literal["identity", "murmurhash3_x86_128"] = "identity"
    minishard_index_encoding: Compression = "gzip"
    data_encoding: Compression = "raw"

    def coarser(self) -> Sharding:
        """For a level of an eighth of the chunks: three bits fewer, of the shards first, as in the hemibrain."""
        drop = 3
        bits = []
        for have in (self.shard_bits, self.minishard_bits, self.preshift_bits):
            bits.append(have - min(have, drop))
            drop -= min(have, drop)
        shard, minishard, preshift = bits
        return Sharding(preshift, minishard, shard, self.hash, self.minishard_index_encoding, self.data_encoding)

    def place(self, chunk_id: int) -> tuple[int, int]:
        """(shard, minishard) that hold a chunk."""
        number = chunk_id >> self.preshift_bits
        if self.hash == "murmurhash3_x86_128":
            import mmh3

            number = mmh3.hash64(number.to_bytes(8, "little"), x64arch=False, signed=False)[0]
        minishard = number & ((1 << self.minishard_bits) - 1)
        shard = (number >> self.minishard_bits) & ((1 << self.shard_bits) - 1)
        return shard, minishard

    def file_name(self, shard: int) -> str:
        return f"{shard:0{-(-self.shard_bits // 4)}x}.shard"

    def info(self) -> dict[str, Any]:
        return {
            "@type": "neuroglancer_uint64_sharded_v1",
            "data_encoding": self.data_encoding,
            "hash": self.hash,
            "minishard_bits": self.minishard_bits,
            "minishard_index_encoding": self.minishard_index_encoding,
            "preshift_bits": self.preshift_bits,
            "shard_bits": self.shard_bits,
        }


@dataclass(frozen=True)
class _Level:
    """One scale: its voxels and where they lie in the publisher's coordinates."""

    voxels: Array
    offset: Zyx
    voxel_size_nm: VoxelSize

    @property
    def key(self) -> str:
        return key_of(self.voxel_size_nm)

    def coarser(self) -> _Level:
        z, y, x = (2 * size for size in self.voxel_size_nm)
        halved = (self.offset[0] // 2, self.offset[1] // 2, self.offset[2] // 2)
        return _Level(_halved(self.voxels, self.offset), halved, (z, y, x))


def write_precomputed(
    folder: Path,
    volume: Array,
    *,
    voxel_size_nm: VoxelSize = (8.0, 8.0, 8.0),
    voxel_offset: Zyx = (0, 0, 0),
    levels: int = 9,
    chunk: int = 64,
    encoding: Encoding = "jpeg",
    jpeg_quality: int = 85,
    sharding: Sharding | None = None,
    skip_empty_chunks: bool = True,
) -> None:
    """Writes `volume` (z, y, x) and its pyramid of 2x means below `folder`, `info` last.

    `voxel_offset` (z, y, x) is where the first voxel lies. `sharding` is that of the finest level; without one every
    chunk is a file. Chunks without any non-zero voxel are left out if `skip_empty_chunks`: readers take missing for
    zero. The bytes depend on the arguments and on the versions of libjpeg, libpng and zlib alone. Raises Unsupported
    for a dtype or chunk the encoding cannot hold, before anything is written.
    """
    _check(volume, encoding, chunk)
    encode = _encoder(encoding, jpeg_quality)
    level = _Level(volume, voxel_offset, voxel_size_nm)
    scales = []
    for index in range(levels):
        chunks = _encoded_chunks(level, chunk, encode, skip_empty=skip_empty_chunks)
        target = folder / level.key
        target.mkdir(parents=True, exist_ok=True)
        if sharding is None:
            _write_files(target, level, chunks)
        else:
            _write_shards(target, ceil_divide(_shape(level.voxels), (chunk, chunk, chunk)), chunks, sharding)
        scales.append(_scale_info(level, chunk, encoding, jpeg_quality, sharding))
        if index + 1 < levels:
            level = level.coarser()
            sharding = sharding and sharding.coarser()
    (folder / "info").write_text(json.dumps(_info(volume, scales), indent=2) + "\n")


def key_of(voxel_size_nm: VoxelSize) -> str:
    """The folder of a scale, x first, as the hemibrain names it: `8.0x8.0x8.0`."""
    return "x".join(str(float(size)) for size in reversed(voxel_size_nm))


def morton_id(index: Zyx, grid: Zyx) -> int:
    """Compressed Morton code: the bits of x, y, z in turn, without those a grid of this size never sets."""
    code = position = 0
    for bit in range(max(grid).bit_length()):
        for value, size in zip(reversed(index), reversed(grid), strict=True):
            if 1 << bit < size:
                code |= (value >> bit & 1) << position
                position += 1
    return code


def shard_bytes(chunks: dict[int, dict[int, bytes]], sharding: Sharding) -> bytes:
    """One shard file from encoded chunks by minishard and chunk id."""
    body = bytearray()
    index = np.zeros((1 << sharding.minishard_bits, 2), "<u8")
    for minishard, by_id in sorted(chunks.items()):
        rows = np.zeros((3, len(by_id)), "<u8")
        previous_id = previous_end = 0
        for column, (chunk_id, data) in enumerate(sorted(by_id.items())):
            rows[:, column] = chunk_id - previous_id, len(body) - previous_end, len(data)
            body += data
            previous_id, previous_end = chunk_id, len(body)
        start = len(body)
        body += _compressed(rows.tobytes(), sharding.minishard_index_encoding)
        index[minishard] = start, len(body)
    return index.tobytes() + bytes(body)


def _check(volume: Array, encoding: Encoding, chunk: int) -> None:
    if volume.ndim != len(AXES) or volume.size == 0:
        raise Unsupported(
            f"a precomputed volume is written from a non-empty (z, y, x) array, not of shape {volume.shape}."
        )
    if volume.dtype.name not in ENCODING_DTYPES[encoding]:
        accepted = ", ".join(ENCODING_DTYPES[encoding])
        raise Unsupported(f"{encoding} chunks cannot hold {volume.dtype.name}; convert it to one of {accepted}.")
    if encoding == "jpeg" and chunk * chunk > MAX_IMAGE_EDGE:
        raise Unsupported(
            f"a JPEG is at most {MAX_IMAGE_EDGE} high, a chunk of {chunk} needs {chunk * chunk}; use 255."
        )


def _encoder(encoding: Encoding, jpeg_quality: int) -> Callable[[Array], bytes]:
    if encoding == "raw":
        return _raw
    import imagecodecs

    def jpeg(image: Array) -> bytes:
        return bytes(imagecodecs.jpeg8_encode(image, level=jpeg_quality))

    def png(image: Array) -> bytes:
        return bytes(imagecodecs.png_encode(image))

    encode = jpeg if encoding == "jpeg" else png
    return lambda voxels: encode(voxels.reshape(-1, voxels.shape[2]))


def _raw(voxels: Array) -> bytes:
    """Little endian, x fastest: the memory of a (z, y, x) array in C order."""
    return voxels.astype(voxels.dtype.newbyteorder("<"), copy=False).tobytes()


def _encoded_chunks(
    level: _Level, chunk: int, encode: Callable[[Array], bytes], *, skip_empty: bool
) -> Iterator[tuple[Zyx, Box, bytes]]:
    """(index, box, bytes) of each chunk, clipped to the volume. Boxes start at 0, not at the offset."""
    whole = Box.from_shape(_shape(level.voxels))
    for index in whole.cells((chunk, chunk, chunk)):
        box = Box.from_shape((chunk, chunk, chunk), at=(index[0] * chunk, index[1] * chunk, index[2] * chunk))
        clipped = box.intersection(whole)
        assert clipped is not None
        voxels = np.ascontiguousarray(level.voxels[clipped.slices])
        if not skip_empty or voxels.any():
            yield index, clipped, encode(voxels)


def _write_files(folder: Path, level: _Level, chunks: Iterator[tuple[Zyx, Box, bytes]]) -> None:
    for _, box, data in chunks:
        placed = box.shifted(level.offset)
        ranges = [f"{a}-{b}" for a, b in zip(reversed(placed.start), reversed(placed.stop), strict=True)]
        (folder / "_".join(ranges)).write_bytes(data)


def _write_shards(folder: Path, grid: Zyx, chunks: Iterator[tuple[Zyx, Box, bytes]], sharding: Sharding) -> None:
    shards: defaultdict[int, defaultdict[int, dict[int, bytes]]] = defaultdict(lambda: defaultdict(dict))
    for index, _, data in chunks:
        chunk_id = morton_id(index, grid)
        shard, minishard = sharding.place(chunk_id)
        shards[shard][minishard][chunk_id] = _compressed(data, sharding.data_encoding)
    for shard, content in shards.items():
        (folder / sharding.file_name(shard)).write_bytes(shard_bytes(dict(content), sharding))


def _compressed(data: bytes, how: Compression) -> bytes:
    return gzip.compress(data, mtime=0) if how == "gzip" else data


def _halved(voxels: Array, offset: Zyx) -> Array:
    """2x means of the real voxels, halves rounded up, aligned to even coordinates of the publisher's grid.

    Repeating the last voxel of an odd edge leaves the mean of the real ones unchanged.
    """
    padding = [(start % 2, (start + size) % 2) for start, size in zip(offset, voxels.shape, strict=True)]
    padded = np.pad(voxels, padding, mode="edge")
    integer = np.issubdtype(voxels.dtype, np.integer)
    wide = np.int32 if voxels.dtype.itemsize < np.dtype(np.int32).itemsize else np.int64
    total: Array = np.zeros([size // 2 for size in padded.shape], wide if integer else np.float64)
    for corner in itertools.product((0, 1), repeat=3):
        total += padded[tuple(slice(start, None, 2) for start in corner)]
    mean = (total + 4) >> 3 if integer else total / 8
    return mean.astype(voxels.dtype)


def _shape(voxels: Array) -> Zyx:
    z, y, x = voxels.shape
    return z, y, x


def _scale_info(
    level: _Level, chunk: int, encoding: Encoding, jpeg_quality: int, sharding: Sharding | None
) -> dict[str, Any]:
    scale: dict[str, Any] = {
        "chunk_sizes": [[chunk, chunk, chunk]],
        "encoding": encoding,
        "key": level.key,
        "resolution": [float(size) for size in reversed(level.voxel_size_nm)],
        "size": list(reversed(_shape(level.voxels))),
        "voxel_offset": list(reversed(level.offset)),
    }
    if encoding == "jpeg":
        scale["jpeg_quality"] = jpeg_quality
    if sharding is not None:
        scale["sharding"] = sharding.info()
    return dict(sorted(scale.items()))


def _info(volume: Array, scales: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "@type": "neuroglancer_multiscale_volume",
        "data_type": volume.dtype.name,
        "num_channels": 1,
        "scales": scales,
        "type": "image",
    }
