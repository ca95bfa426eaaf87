"""The three levels of a volume as chunks: made from level 0 chunk by chunk, finest first, in bounded memory.

A chunk of a coarser level is made of those under it as soon as they are written, so that of each level one chunk is
held (as a tree is walked, children before their parent). Chunks are of even sides: no mean reaches over two of them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from em_assets.portal._staged import StagedVolume, bits
from em_assets.standardize.mean import every_second, mean_2x2x2
from em_assets.standardize.ome import PYRAMID
from em_assets.standardize.shard import ShardFormat, encode_shard
from em_assets.volume import Box, VoxelSize, Zyx, add, ceil_divide, multiply, subtract

Content = Literal["image", "labels", "tilt_series"]
Ngff = Literal["0.4", "0.5"]
Write = Callable[[str, bytes | bytearray], None]
"""(path within the group, bytes)."""
Present = Callable[[Box], "NDArray[np.bool_] | None"]
"""Of a box of level 0, counted from its corner: True where the source has the voxel; None where it has all."""

LEVELS = 3
CHUNK: Zyx = (256, 256, 256)
TILT_CHUNK: Zyx = (1, 1024, 1024)
INNER_CHUNK: Zyx = (64, 64, 64)
"""Of a shard of OME-NGFF 0.5."""
TILT_INNER_CHUNK: Zyx = (1, 256, 256)
BLOSC = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
TILT_PYRAMID = {
    "type": "mean",
    "metadata": {
        "description": "mean of the real pixels of each 2x2 block of a picture; integers rounded half to even"
    },
}
MEMORY_BYTES = 800 * 2**20
"""What the chunks under way may take together; a process has a gigabyte."""
_MEAN_PLANES = 16
"""Averaged at a time: means of float32 are made in float64."""
_MASKED_PLANES = 4
"""Likewise where some are missing, which takes several arrays of 64 bits; whoever says which takes them, too."""


@dataclass(frozen=True)
class LevelForm:
    """How the levels of one volume are made and cut."""

    content: Content
    ngff: Ngff
    shape: Zyx
    """Of level 0."""
    dtype: np.dtype[Any]
    """As stored; little endian."""
    voxel_size_nm: VoxelSize

    @property
    def chunk(self) -> Zyx:
        return TILT_CHUNK if self.content == "tilt_series" else CHUNK

    @property
    def factor(self) -> Zyx:
        """Voxels that one of the next level spans. Tilts are not averaged: they are pictures, not sections."""
        return (1, 2, 2) if self.content == "tilt_series" else (2, 2, 2)

    @property
    def shapes(self) -> tuple[Zyx, Zyx, Zyx]:
        half = ceil_divide(self.shape, self.factor)
        return self.shape, half, ceil_divide(half, self.factor)

    @property
    def voxel_sizes_nm(self) -> tuple[VoxelSize, VoxelSize, VoxelSize]:
        """Doubled also along an axis of one voxel, as the portal's checks want it."""
        return self._size(0), self._size(1), self._size(2)

    def _size(self, level: int) -> VoxelSize:
        z, y, x = (size * f**level for size, f in zip(self.voxel_size_nm, self.factor, strict=True))
        return z, y, x

    @property
    def shard(self) -> ShardFormat:
        inner = TILT_INNER_CHUNK if self.content == "tilt_series" else INNER_CHUNK
        return ShardFormat(self.chunk, inner, self.dtype.name)

    def chunk_path(self, level: int, at: Zyx) -> str:
        z, y, x = at
        return f"{level}/{z}/{y}/{x}" if self.ngff == "0.4" else f"{level}/c/{z}/{y}/{x}"

    def encoded(self, voxels: NDArray[Any]) -> bytes | bytearray:
        """A chunk that begins with these voxels; beyond them it is filled up with 0. Not for the main thread."""
        if self.ngff == "0.5":
            return encode_shard(voxels, self.shard)
        if voxels.shape != self.chunk:
            whole = np.zeros(self.chunk, self.dtype)
            whole[tuple(slice(n) for n in voxels.shape)] = voxels
            voxels = whole
        from numcodecs import Blosc  # type: ignore[import-untyped]  # published without type information

        # in the main thread numcodecs uses several, and blocks lie in the order in which these end: other bytes
        assert threading.current_thread() is not threading.main_thread()
        codec = Blosc(BLOSC["cname"], BLOSC["clevel"], BLOSC["shuffle"], BLOSC["blocksize"])
        return bytes(codec.encode(np.ascontiguousarray(voxels)))

    def reduced(self, voxels: NDArray[Any], real: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """The voxels of the next level: the mean of the real ones, also at odd ends; of labels, voxel 2i.

        Of an image the ones that are not `real` are left out, and a mean of none is 0.
        """
        if self.content == "labels":
            return every_second(voxels)
        step = 1 if self.content == "tilt_series" else _MEAN_PLANES if real is None else _MASKED_PLANES
        slabs = [slice(z, z + step) for z in range(0, len(voxels), step)]
        with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
            means = [mean_2x2x2(voxels[slab], None if real is None else real[slab]) for slab in slabs]
        return np.concatenate(means)

    def reduced_real(self, real: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Which voxels of the next level have a real one under them; None if all have."""
        starts = [np.arange(0, n, f) for n, f in zip(real.shape, self.factor, strict=True)]
        for axis, at in enumerate(starts):
            real = np.logical_or.reduceat(real, at, axis=axis)
        return None if real.all() else real

    def array_documents(self, level: int) -> Iterator[tuple[str, bytes]]:
        """(path within the group, bytes) of what makes a level an array."""
        if self.ngff == "0.4":
            yield f"{level}/.zarray", _json(self._v2_array(self.shapes[level]))
        else:
            yield f"{level}/zarr.json", _json(self._v3_array(self.shapes[level]))

    def group_documents(self, name: str, record: dict[str, Any]) -> list[tuple[str, bytes]]:
        """Likewise of the group; `record` is kept under `em_assets`. To be written last, in this order."""
        if self.ngff == "0.4":
            multiscale = {"version": "0.4", **self._multiscale(name)}
            attributes = {"multiscales": [multiscale], **self._label_attributes(), "em_assets": record}
            return [(".zgroup", _json({"zarr_format": 2})), (".zattrs", _json(attributes))]
        ome = {"version": "0.5", "multiscales": [self._multiscale(name)], **self._label_attributes()}
        attributes = {"ome": ome, "em_assets": record}
        return [("zarr.json", _json({"zarr_format": 3, "node_type": "group", "attributes": attributes}))]

    @property
    def last_document(self) -> str:
        return ".zattrs" if self.ngff == "0.4" else "zarr.json"

    def _multiscale(self, name: str) -> dict[str, Any]:
        how = TILT_PYRAMID if self.content == "tilt_series" else PYRAMID[self.content]
        axes: list[dict[str, str]] = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
        if self.content == "tilt_series":
            axes[0] = {"name": "z"}  # counts pictures: neither space nor angstrom
        datasets = [
            {"path": str(level), "coordinateTransformations": self._transformations(level)} for level in range(LEVELS)
        ]
        return {"name": name, **how, "axes": axes, "datasets": datasets}

    def _transformations(self, level: int) -> list[dict[str, Any]]:
        """In angstrom. The middle of level 0's first voxel is 0, as in the portal's, which says so by saying nothing.

        The middle of a mean lies between the middles of its voxels; a label stays where its voxel was.
        """
        finest, scale = self._scale_angstrom(0), self._scale_angstrom(level)
        found: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if level and self.content != "labels":
            middle = [(coarse - fine) / 2 for coarse, fine in zip(scale, finest, strict=True)]
            found.append({"type": "translation", "translation": middle})
        return found

    def _scale_angstrom(self, level: int) -> list[float]:
        # converted once, then doubled, which is exact: 13.48, 26.96, 53.92
        scale = [angstrom(size) * f**level for size, f in zip(self.voxel_size_nm, self.factor, strict=True)]
        return [1.0, *scale[1:]] if self.content == "tilt_series" else scale

    def _label_attributes(self) -> dict[str, Any]:
        return {"image-label": {"version": self.ngff}} if self.content == "labels" else {}

    @property
    def _fill_value(self) -> float:
        return 0.0 if self.dtype.kind == "f" else 0

    def _v2_array(self, shape: Zyx) -> dict[str, Any]:
        """Zarr v2, "Arrays: Metadata"."""
        return {
            "zarr_format": 2,
            "shape": shape,
            "chunks": self.chunk,
            "dtype": self.dtype.str,
            "compressor": BLOSC,
            "fill_value": self._fill_value,
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }

    def _v3_array(self, shape: Zyx) -> dict[str, Any]:
        """Zarr v3, `sharding_indexed` as `standardize.shard` encodes it."""
        shard = self.shard
        endian = {"name": "bytes", "configuration": {"endian": "little"}}
        zstd = {"name": "zstd", "configuration": {"level": shard.codec_level, "checksum": False}}
        sharding = {
            "chunk_shape": shard.chunk,
            "codecs": [endian, zstd],
            "index_codecs": [endian, {"name": "crc32c"}],
            "index_location": "end",
        }
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": self._fill_value,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "dimension_names": ["z", "y", "x"],
        }


def angstrom(size_nm: float) -> float:
    """By its decimal digits: 1.348 nm are 13.48 angstrom, not 13.480000000000002."""
    return float(Decimal(repr(float(size_nm))) * 10)


def nanometres(size_angstrom: float) -> float:
    """Likewise: 0.545 angstrom are 0.0545 nm, where dividing gives 0.05450000000000001."""
    return float(Decimal(repr(float(size_angstrom))) / 10)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some voxels of a level; None where all are 0, and where all are real."""

    voxels: NDArray[Any] | None
    real: NDArray[np.bool_] | None


def write_levels(
    staged: StagedVolume, form: LevelForm, write: Write, workers: int, present: Present | None = None
) -> list[int]:
    """Writes every chunk of every level that has a voxel other than 0; how many have none, of each level.

    `write` and `present` are called from several threads.
    """
    chunk_bytes = Box.from_shape(form.chunk).voxels * (form.dtype.itemsize + (present is not None))
    # each worker holds a chunk and its encoded bytes, twice at times; two more wait to be filled
    fitting = (MEMORY_BYTES - 2 * chunk_bytes) // (3 * chunk_bytes)
    workers = max(1, min(workers, fitting))
    with ThreadPoolExecutor(workers) as pool:
        walk = _Walk(staged, form, write, pool, present)
        try:
            walk.all()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return walk.absent


class _Walk:
    """Pictures of a tilt series are small and many: a worker takes one with all its levels.

    Of a volume, the chunks of level 0 under one of level 1 are shared out.
    """

    def __init__(
        self,
        staged: StagedVolume,
        form: LevelForm,
        write: Write,
        pool: ThreadPoolExecutor,
        present: Present | None,
    ) -> None:
        self._staged, self._form, self._write, self._pool = staged, form, write, pool
        self._present = None if form.content == "labels" else present
        self._grids = [ceil_divide(shape, form.chunk) for shape in form.shapes]
        self._is_by_picture = form.content == "tilt_series"
        self._lock = threading.Lock()
        self.absent = [0] * LEVELS

    def all(self) -> None:
        places = Box.from_shape(self._grids[-1]).cells((1, 1, 1))
        each = self._pool.map if self._is_by_picture else map
        for _ in each(self._coarsest, places):
            pass

    def _coarsest(self, at: Zyx) -> None:
        self._parent(LEVELS - 1, at)

    def _parent(self, level: int, at: Zyx) -> _Part:
        """Writes a coarser chunk and all under it."""
        filled = self._filled(level, at)
        if self._is_by_picture:
            return self._finish(level, at, filled)
        # in a worker: see `LevelForm.encoded`
        return self._pool.submit(self._finish, level, at, filled).result()

    def _filled(self, level: int, at: Zyx) -> _Part:
        """The voxels of a coarser chunk, after all under it are written."""
        form = self._form
        box = Box.from_shape(form.chunk, at=multiply(at, form.chunk)).intersection(Box.from_shape(form.shapes[level]))
        assert box is not None
        voxels, real = np.zeros(box.shape, form.dtype), np.ones(box.shape, bool) if self._present else None
        children = self._children(level, at)
        for child, part in zip(children, self._reduced_children(level - 1, children), strict=True):
            first = multiply(subtract(child, multiply(at, form.factor)), ceil_divide(form.chunk, form.factor))
            if part.voxels is not None:
                voxels[Box.from_shape(part.voxels.shape, at=first).slices] = part.voxels
            if part.real is not None and real is not None:
                real[Box.from_shape(part.real.shape, at=first).slices] = part.real
        return _Part(voxels, None if real is None or real.all() else real)

    def _reduced_children(self, level: int, children: Sequence[Zyx]) -> Iterator[_Part]:
        if level > 0:
            return (self._reduced(self._parent(level, child)) for child in children)
        return map(self._finest, children) if self._is_by_picture else self._pool.map(self._finest, children)

    def _finest(self, at: Zyx) -> _Part:
        """Writes a chunk of level 0; what it is on level 1."""
        form = self._form
        box = Box.from_shape(form.chunk, at=multiply(at, form.chunk)).intersection(Box.from_shape(form.shape))
        assert box is not None
        voxels = self._staged.read(box).astype(form.dtype, copy=False)
        return self._reduced(self._finish(0, at, _Part(voxels, self._real(box))))

    def _real(self, box: Box) -> NDArray[np.bool_] | None:
        if self._present is None:
            return None
        real = np.ones(box.shape, bool)
        for z in range(0, box.shape[0], _MASKED_PLANES):
            first, last = box.start[0] + z, min(box.start[0] + z + _MASKED_PLANES, box.stop[0])
            found = self._present(Box((first, *box.start[1:]), (last, *box.stop[1:])))
            if found is not None:
                real[z : z + _MASKED_PLANES] = found
        return None if real.all() else real

    def _reduced(self, part: _Part) -> _Part:
        form, real = self._form, part.real
        voxels = None if part.voxels is None else form.reduced(part.voxels, real)
        return _Part(voxels, None if real is None else form.reduced_real(real))

    def _finish(self, level: int, at: Zyx, part: _Part) -> _Part:
        """Writes a chunk; nothing is written where all of it is 0."""
        assert part.voxels is not None
        if not bits(part.voxels).any():
            with self._lock:
                self.absent[level] += 1
            return _Part(None, part.real)
        self._write(self._form.chunk_path(level, at), self._form.encoded(part.voxels))
        return part

    def _children(self, level: int, at: Zyx) -> Sequence[Zyx]:
        """Indices of the chunks of the level below, those that there are."""
        factor, grid = self._form.factor, self._grids[level - 1]
        all_of_them = (add(multiply(at, factor), (z, y, x)) for z, y, x in np.ndindex(factor))
        return [child for child in all_of_them if all(i < n for i, n in zip(child, grid, strict=True))]


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=4, ensure_ascii=False).encode() + b"\n"
