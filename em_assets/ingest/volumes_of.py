"""Volumes of the source as readers: opened wherever they lie, masks taken out of them, brought to another grid.

Nothing is held whole: a box that is asked for is read in pieces.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Mismatch
from em_assets.formats._boxes import checked_box, map_boxes
from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, Scalar, VolumeReader
from em_assets.ingest.copying import Sources, scratch_file
from em_assets.portal._levels import nanometres
from em_assets.settings import Settings
from em_assets.store import Store
from em_assets.volume import Box, VolumeInfo, VoxelSize, Zyx, ceil_divide, zyx

T = TypeVar("T")
PIECE_VOXELS = 2**22
"""Of the source, read at a time: 16 MiB of float32."""
CHUNK_VOXELS = 2**24
"""Of a chunk that is read whole: the portal's have 256^3. A larger one is decoded several times."""
SAME_SPACING = 1e-6
"""Relative: as far as a header's float32 may be from the number it was written from."""
CLOSE_SPACING_ANGSTROM = 1e-3
"""The portal's own tolerance between a voxel spacing and a header."""
HALF = 0.5


@contextlib.contextmanager
def opened(sources: Sources, path: str, settings: Settings) -> Iterator[VolumeReader]:
    """The volume in a file or Zarr group of the source. One file of a remote store is had once, whole, into the cache.

    Raises Unsupported, Malformed and Unavailable as `formats.opening.open_volume`.
    """
    from em_assets.formats.opening import open_volume

    local, is_file = sources.store.local_path(path), sources.store.size_bytes(path) is not None
    if local is not None:
        yield open_volume(local, settings=settings)
    elif is_file:
        with scratch_file(settings, path) as file:
            sources.fetch(path, file)
            yield open_volume(file, settings=settings)
    else:
        yield _stored_zarr(sources.store, path, settings)


def described(store: Store, path: str, settings: Settings) -> VolumeInfo:
    """What a volume says of itself; of a remote file no more than its header is had. Raises as `opened`."""
    from em_assets.formats.opening import open_file, open_volume

    local, size_bytes = store.local_path(path), store.size_bytes(path)
    if local is not None:
        return open_volume(local, settings=settings).info
    if size_bytes is not None:
        from em_assets.formats._bytes import StoredBytes

        return open_file(StoredBytes(store, path, size_bytes), None, settings).info
    return _stored_zarr(store, path, settings).info


def _stored_zarr(store: Store, path: str, settings: Settings) -> VolumeReader:
    from em_assets.fetch.client import StoreClient
    from em_assets.formats.zarr import open_zarr

    return open_zarr(f"store:///{quote(path)}", None, StoreClient(store), settings)


def voxel_size_of(info: VolumeInfo, stated_angstrom: float, name: str) -> tuple[VoxelSize, tuple[str, ...]]:
    """(z, y, x) in nanometres as it is written, and what there is to say where the file's header says otherwise.

    The config's spacing is the curator's word about a header that may be wrong, and it is one number. Where the header
    agrees with it along y, and says that the voxels are no cubes, the header's three numbers are written.
    """
    stated_nm = (nanometres(stated_angstrom),) * 3
    found = info.voxel_size_nm
    if found is None:
        return stated_nm, (f"{name} does not say how large its voxels are; {stated_angstrom:g} A is the config's.",)
    shown = " x ".join(f"{size * 10:.8g}" for size in found)
    if all(math.isclose(size, stated_nm[0], rel_tol=SAME_SPACING) for size in found):
        return stated_nm, ()
    said = f"The header of {name} says {shown} A (z, y, x), the config {stated_angstrom:g} A"
    agrees = abs(found[1] * 10 - stated_angstrom) <= CLOSE_SPACING_ANGSTROM
    if agrees and not all(math.isclose(size, found[1], rel_tol=SAME_SPACING) for size in found):
        return found, (f"{said} for all three axes; the header's are written.",)
    return stated_nm, (f"{said}; the config's is written.",)


class Derived:
    """A `VolumeReader` of what is made from another one's voxels, box by box."""

    def __init__(self, reader: VolumeReader, info: VolumeInfo) -> None:
        self.source, self.info = reader, info

    def read(self, box: Box | None = None) -> NDArray[Any]:
        raise NotImplementedError

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """The source's: where the volume lies is the same."""
        return self.source.tags()

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        chunks = sum(1 for box in boxes for _ in box.cells(self.info.chunk))
        return ReadPlan(requests=chunks, received_bytes=None, chunks=chunks, missing_chunks=None)

    def map_regions(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[RegionOutcome[T]]:
        return map_boxes(boxes, self.read, work, sample=None, source_url="", workers=1, on_bytes=on_bytes)


class Sized(Derived):
    """The same voxels, of another size."""

    def __init__(self, reader: VolumeReader, voxel_size_nm: VoxelSize) -> None:
        super().__init__(reader, replace(reader.info, voxel_size_nm=voxel_size_nm))

    def read(self, box: Box | None = None) -> NDArray[Any]:
        return self.source.read(box)


class Mask(Derived):
    """1 where the source has a label, or is at least a threshold, else 0. NaN is neither."""

    def __init__(self, reader: VolumeReader, *, label: int = 1, threshold: float | None = None) -> None:
        super().__init__(reader, replace(reader.info, dtype="uint8"))
        self._label, self._threshold = label, threshold

    def read(self, box: Box | None = None) -> NDArray[Any]:
        box = checked_box(self.info, box, "the mask")
        found = np.zeros(box.shape, np.uint8)
        for piece in read_pieces(box, self.source.info.chunk):
            inside = piece.shifted(zyx([-n for n in box.start]))
            found[inside.slices] = self.of(self.source.read(piece))
        return found

    def of(self, voxels: NDArray[Any]) -> NDArray[np.bool_]:
        """Of voxels of the source."""
        return voxels == self._label if self._threshold is None else voxels >= self._threshold

    def is_empty(self) -> bool:
        """Whether no voxel is 1; reads until one is."""
        whole = Box.from_shape(self.info.shape, at=self.info.origin)
        return not any(self.of(self.source.read(piece)).any() for piece in read_pieces(whole, self.source.info.chunk))


class Resampled(Derived):
    """The same extent in another number of voxels.

    `nearest`: the voxel in which the middle of the new one lies; of labels, which have no mean. `mean`: the mean of
    what the new voxel covers, each part by its share (float64). Beside a `threshold`, 1 where that mean reaches it:
    of a mask with 0.5 a voxel is in if half of it is, so that the mask neither grows nor shrinks.
    """

    def __init__(
        self, reader: VolumeReader, shape: Zyx, how: Literal["nearest", "mean"], *, threshold: float | None = None
    ) -> None:
        dtype = reader.info.dtype if how == "nearest" else "float64" if threshold is None else "uint8"
        size_nm = _scaled(reader.info, shape)
        super().__init__(reader, replace(reader.info, shape=shape, dtype=dtype, voxel_size_nm=size_nm, chunk=shape))
        if reader.info.origin != (0, 0, 0):
            raise Mismatch(f"the volume begins at voxel {reader.info.origin}, expected 0; write it anew from 0.")
        self._how, self._threshold = how, threshold
        self._edge = zyx(
            [max(1, min(m, int(160 * min(1.0, m / n)))) for n, m in zip(reader.info.shape, shape, strict=True)]
        )

    def read(self, box: Box | None = None) -> NDArray[Any]:
        box = checked_box(self.info, box, "the volume on its new grid")
        found = np.zeros(box.shape, self.info.dtype)
        for cell in box.cells(self._edge):
            corner = zyx([i * n for i, n in zip(cell, self._edge, strict=True)])
            piece = Box.from_shape(self._edge, at=corner).intersection(box)
            assert piece is not None
            found[piece.shifted(zyx([-n for n in box.start])).slices] = self._piece(piece)
        return found

    def _piece(self, piece: Box) -> NDArray[Any]:
        spans = [
            (a, b, n, m)
            for a, b, n, m in zip(piece.start, piece.stop, self.source.info.shape, self.info.shape, strict=True)
        ]
        inside = Box(zyx([a * n // m for a, _, n, m in spans]), zyx([-(-b * n // m) for _, b, n, m in spans]))
        voxels = self.source.read(inside)
        if self._how == "nearest":
            places = [
                (2 * np.arange(a, b) + 1) * n // (2 * m) - first
                for (a, b, n, m), first in zip(spans, inside.start, strict=True)
            ]
            return voxels[np.ix_(*places)]
        mean = voxels.astype(np.float64)
        for axis, (span, first) in enumerate(zip(spans, inside.start, strict=True)):
            shares = _shares(span, first, inside.shape[axis])
            mean = np.moveaxis(np.tensordot(shares, mean, (1, axis)), 0, axis)
        return mean if self._threshold is None else mean >= self._threshold - 1e-12


def _scaled(info: VolumeInfo, shape: Zyx) -> VoxelSize | None:
    if info.voxel_size_nm is None:
        return None
    z, y, x = (size * n / m for size, n, m in zip(info.voxel_size_nm, info.shape, shape, strict=True))
    return z, y, x


def _shares(span: tuple[int, int, int, int], first: int, count: int) -> NDArray[np.float64]:
    """How much of new voxel start + i, of m that span n old ones, the old voxel first + j is.

    `span` is (start, stop, n, m).
    """
    start, stop, n, m = span
    low = (np.arange(start, stop) * n / m)[:, None]
    high = (np.arange(start + 1, stop + 1) * n / m)[:, None]
    old = np.arange(first, first + count)[None, :]
    overlap: NDArray[np.float64] = np.clip(np.minimum(high, old + 1) - np.maximum(low, old), 0, None)
    shares: NDArray[np.float64] = overlap / overlap.sum(1, keepdims=True)
    return shares


def read_pieces(box: Box, chunk: Zyx | None) -> Iterator[Box]:
    """The box in parts of about PIECE_VOXELS, along whole chunks up to CHUNK_VOXELS."""
    edge = [min(n, c) for n, c in zip(box.shape, chunk or box.shape, strict=True)]
    limit = CHUNK_VOXELS if chunk else PIECE_VOXELS
    while math.prod(edge) > limit:
        longest = next(axis for axis in (0, 1, 2) if edge[axis] > 1)
        edge[longest] = -(-edge[longest] // 2)
    for axis in (2, 1, 0):
        edge[axis] = min(box.shape[axis], edge[axis] * max(1, PIECE_VOXELS // math.prod(edge)))
    for at in Box.from_shape(zyx(ceil_divide(box.shape, zyx(edge)))).cells((1, 1, 1)):
        corner = zyx([first + i * n for first, i, n in zip(box.start, at, edge, strict=True)])
        piece = Box.from_shape(zyx(edge), at=corner).intersection(box)
        assert piece is not None
        yield piece


def label_count(reader: VolumeReader) -> int:
    """How many labels other than 0 a volume has."""
    found: set[float] = set()
    whole = Box.from_shape(reader.info.shape, at=reader.info.origin)
    for piece in read_pieces(whole, reader.info.chunk):
        found.update(np.unique(reader.read(piece)).tolist())
    return len(found - {0})
