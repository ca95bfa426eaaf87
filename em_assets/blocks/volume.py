"""A volume to read blocks from, wherever it lies.

Everything is (z, y, x). Voxels are counted from the volume's first (level by level), places are nanometres in the
publisher's frame. What is read is exact or an error: nothing is clipped, filled or rounded that was not asked for.

A `Volume` knows its levels and reopens its files or connections in each process that reads: it may be pickled, and
used after a fork, by several threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

import numpy as np

from em_assets.blocks.asking import (
    MissingPolicy,
    Normalize,
    Options,
    Pad,
    Shape,
    box_of,
    choose_level,
    is_on_grid,
    leaves,
    level_of,
    level_of_size,
    place_of,
    shape_of,
    size_of,
)
from em_assets.blocks.block import Batch, Block
from em_assets.blocks.engine import Engine
from em_assets.blocks.geometry import BoxNm, Grid
from em_assets.blocks.making import make_blocks, make_resampled
from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.volume import Box, VoxelSize, Zyx, add, subtract, zyx

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from em_assets.blocks._choice import Part
    from em_assets.standardize.intensity import Intensity
    from em_assets.standardize.presence import Presence

Content = Literal["image", "labels"]


@dataclass(frozen=True, slots=True)
class Level:
    number: int
    grid: Grid
    chunk: Zyx
    """What is decoded at once: aligned blocks are read faster."""


class Opened(Protocol):
    """A volume's files or connections, in one process."""

    def engine(self, level: int) -> Engine: ...

    def require_current(self) -> None:
        """Raises Unavailable or Mismatch if the volume is being written, or is another than when it was opened."""

    @property
    def presence(self) -> Presence | None:
        """What is known of missing voxels; None: nothing, so a chunk that is not stored may be anything."""


class Backing(Protocol):
    """Where a volume lies: small, frozen, picklable."""

    def open(self) -> Opened: ...

    def intensity(self) -> Intensity | None:
        """What is known of its grey values."""

    def neuroglancer_url(self, box_nm: BoxNm, client_url: str | None) -> str:
        """As `Block.neuroglancer_url`."""


@runtime_checkable
class WithPoints(Protocol):
    """A backing of a dataset, which may have points beside its volumes."""

    def points(self, name: str) -> pa.Table: ...


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a volume once it was opened."""

    name: str
    location: str
    levels: tuple[Level, ...]
    dtype: np.dtype[Any]
    content: Content
    convention: str
    """What the levels' offsets place as they are published: `centre`, `corner`, `scale-only`."""
    part: Part | None = None
    """Of an array with channels or points in time; None: nobody says."""


class Volume:
    """Made by `em_assets.blocks.open`."""

    def __init__(self, description: Description, backing: Backing) -> None:
        self._description = description
        self._backing = backing
        self._forget()

    def _forget(self) -> None:
        self._opened: Opened | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()  # last: until then no thread takes what was open before

    def __getstate__(self) -> dict[str, Any]:
        return {"_description": self._description, "_backing": self._backing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._forget()

    def __repr__(self) -> str:
        size = " x ".join(f"{nm:g}" for nm in self.voxel_size_nm)
        return (
            f"<Volume {self.name}: {self.shape} voxels (z, y, x) of {size} nm, {self.dtype}, {len(self.levels)} levels>"
        )

    @property
    def name(self) -> str:
        """`hemibrain_crop`, `jrc_mus_nacc_2/nuc`; of other places the last part of their address."""
        return self._description.name

    @property
    def location(self) -> str:
        """What `open` was given, so that another process finds it."""
        return self._description.location

    @property
    def levels(self) -> tuple[Level, ...]:
        """Finest first."""
        return self._description.levels

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._description.dtype

    @property
    def content(self) -> Content:
        return self._description.content

    @property
    def convention(self) -> str:
        return self._description.convention

    @property
    def part(self) -> Part | None:
        """Which channel and point in time of an array it is, and what others there are; None of what is no array."""
        return self._description.part

    @property
    def shape(self) -> Zyx:
        """Of level 0."""
        return self.levels[0].grid.shape

    @property
    def voxel_size_nm(self) -> VoxelSize:
        """Of level 0."""
        return self.levels[0].grid.voxel_size_nm

    @property
    def box_nm(self) -> BoxNm:
        """The space that level 0 fills."""
        return self.levels[0].grid.box_nm(self.levels[0].grid.box)

    def engine(self, level: int = 0) -> Engine:
        """Reads boxes of one level and nothing else."""
        return self._open().engine(level_of(self, level).number)

    def statistics(self) -> Intensity:
        """The catalogue's statistics of its grey values. Raises Unsupported where there are none."""
        found = self._backing.intensity()
        if found is None or found.statistics is None:
            raise Unsupported(
                f"{self.name} has no recorded grey values; name the two that become 0 and 1: normalize=(low, high)."
            )
        return found

    def points(self, name: str) -> pd.DataFrame:
        """Points of an annotation of the dataset, one a row: `em.open("cryoet_10000_ts_026").points("ribosome")`.

        `z_nm`, `y_nm`, `x_nm` are places in the volume's frame, as `box_nm`; `z`, `y`, `x` voxels as published; beside
        them `kind`, `instance_id`, `rotation` (9 numbers, row by row, that turn x, y, z), `line` and `annotation`. Of a
        crop, too, all are there: those outside lie outside `box_nm`. Raises Mismatch if there are none of this name,
        Unsupported if the volume is no dataset's, Malformed, Unavailable.
        """
        if not isinstance(self._backing, WithPoints):
            raise Unsupported(f"{self.name} is no volume of a dataset, so no points belong to it; open the dataset.")
        frame: pd.DataFrame = self._backing.points(name).to_pandas()
        return frame

    def neuroglancer_url(self, box_nm: BoxNm, client_url: str | None = None) -> str:
        """A link that draws a box in the volume; as `Block.neuroglancer_url`."""
        return self._backing.neuroglancer_url(box_nm, client_url)

    def missing_fraction(self, box: Box, level: int = 0) -> float:
        """Share (0 to 1) of a box's voxels that the publisher does not have; reads no voxel. 0 where nobody knows."""
        presence = self._open().presence
        mask = None if presence is None else presence.mask(level, self._inside(level, box))
        return 0.0 if mask is None else float(1 - np.count_nonzero(mask) / mask.size)

    def read(
        self,
        start: Sequence[int] | None = None,
        *,
        center_nm: Sequence[float] | None = None,
        shape: Shape = 128,
        level: int | None = None,
        voxel_size_nm: float | Sequence[float] | None = None,
        resample: bool = False,
        pad: Pad | None = None,
        fill: float = 0,
        missing: MissingPolicy = "raise",
        dtype: Any = None,
        normalize: Normalize | None = None,
        labels: str | Volume | None = None,
    ) -> Block:
        """One block: `shape` voxels of `level` from the voxel `start`, or around `center_nm`.

        `voxel_size_nm` chooses the level whose voxels are nearest in size; with `resample`, voxels of exactly that size
        are made: linearly out of the coarsest level that is not coarser (labels: the nearest voxel). A box around
        `center_nm` begins at voxel `floor((center - corner) / size - shape / 2 + 1/2)`; resampled, its middle is exact.
        `pad` says what lies outside the volume (`fill`, the nearest voxel, or its mirror image); without it, leaving
        the volume is a Mismatch. `missing` says what becomes of voxels that the publisher does not have: `raise`
        (Mismatch naming a box), `mask` (0, and False in `valid`), `fill` (an array's own fill value, which counts as
        real; for Zarrs of other people that leave out chunks of it). `normalize` maps grey values to float32: the
        dtype's `range` to 0..1, `standard` to mean 0 and deviation 1, `percentile` the 1st and 99th to 0 and 1, two
        numbers to 0 and 1; nothing is clipped. `labels` names a volume whose labels are read at the same nanometres.
        Raises also Unavailable, Malformed.
        """
        options = Options.of(self, pad=pad, fill=fill, missing=missing, dtype=dtype, normalize=normalize, labels=labels)
        wanted, size = shape_of(self, shape), size_of(self, voxel_size_nm)
        if resample:
            if size is None or center_nm is None or start is not None or level is not None:
                raise Mismatch(f"{self.name}: resample=True takes voxel_size_nm= and center_nm=, and nothing beside.")
            found = level_of_size(self.levels, size)
            if found is None or not is_on_grid(found.grid, place_of(self, center_nm), wanted):
                return make_resampled(self, place_of(self, center_nm), wanted, size, options)
            size, level = None, found.number
        chosen = choose_level(self, level, size, is_placed=center_nm is not None)
        box = box_of(self, start, center_nm, wanted, chosen.grid)
        return make_blocks(self, [box], wanted, chosen.number, options)[0]

    def read_many(
        self,
        starts: Iterable[Sequence[int]] | None = None,
        *,
        centers_nm: Iterable[Sequence[float]] | None = None,
        shape: Shape = 128,
        batch_size: int = 32,
        level: int | None = None,
        voxel_size_nm: float | Sequence[float] | None = None,
        pad: Pad | None = None,
        fill: float = 0,
        missing: MissingPolicy = "raise",
        dtype: Any = None,
        normalize: Normalize | None = None,
        labels: str | Volume | None = None,
    ) -> Iterator[Batch]:
        """Blocks in batches, in order, as `read` gives them; a chunk that a batch needs twice is decoded once.

        The next batch is read while one is used: memory is that of two batches.
        """
        options = Options.of(self, pad=pad, fill=fill, missing=missing, dtype=dtype, normalize=normalize, labels=labels)
        wanted, size = shape_of(self, shape), size_of(self, voxel_size_nm)
        chosen = choose_level(self, level, size, is_placed=centers_nm is not None)
        if (starts is None) == (centers_nm is None):
            raise Mismatch(f"{self.name}: give either starts or centers_nm, not both or none.")
        if batch_size < 1:
            raise Mismatch(f"{self.name}: batch_size is {batch_size}, expected at least 1.")
        places = cast("Iterable[Sequence[Any]]", centers_nm if starts is None else starts)
        boxes = (
            box_of(self, None, place, wanted, chosen.grid)
            if starts is None
            else box_of(self, place, None, wanted, chosen.grid)
            for place in places
        )
        is_one = isinstance(places, Sized) and len(places) <= batch_size
        return self._batches(boxes, wanted, chosen.number, options, batch_size, is_one=is_one)

    def _batches(
        self, boxes: Iterator[Box], wanted: Zyx, level: int, options: Options, batch_size: int, *, is_one: bool
    ) -> Iterator[Batch]:
        def read() -> Batch | None:
            some = [box for _, box in zip(range(batch_size), boxes, strict=False)]
            if not some:
                return None
            blocks = make_blocks(self, some, wanted, level, options)
            base = blocks[0].data.base
            whole = base if base is not None and base.shape == (len(blocks), *wanted) else None
            return Batch(tuple(blocks), np.stack([block.data for block in blocks]) if whole is None else whole)

        if is_one:  # a thread would cost more than it gains
            yield from filter(None, [read()])
            return
        with ThreadPoolExecutor(1, thread_name_prefix="em_assets-ahead") as ahead:
            upcoming = ahead.submit(read)
            while (batch := upcoming.result()) is not None:
                upcoming = ahead.submit(read)
                yield batch

    # Reading

    def _open(self) -> Opened:
        if self._process != os.getpid():  # forked: what the parent has open is not ours
            self._forget()
        with self._lock:
            if self._opened is None:
                self._opened = self._backing.open()
            return self._opened

    def _inside(self, level: int, box: Box) -> Box:
        inside = box.intersection(self.levels[level].grid.box)
        if inside != box or inside is None:
            raise leaves(self, box, level)
        return inside

    def fill_boxes(
        self, boxes: Sequence[Box], outs: Sequence[NDArray[Any]], level: int, options: Options
    ) -> list[NDArray[np.bool_] | None]:
        """Reads boxes within the level; which of their voxels are real (None: all)."""
        opened = self._open()
        opened.require_current()
        absent = opened.engine(level).read(boxes, outs)
        opened.require_current()
        presence = opened.presence
        masks: list[NDArray[np.bool_] | None] = []
        for box, out, parts in zip(boxes, outs, absent, strict=True):
            mask = None if presence is None else presence.mask(level, box)
            if parts and presence is not None:
                self._require_known(box, mask, parts, level)
            elif parts and options.missing != "fill":
                mask = np.ones(box.shape, np.bool_)
                for part in parts:
                    mask[part.shifted(subtract((0, 0, 0), box.start)).slices] = False
            if mask is not None:
                if mask.all():
                    mask = None
                elif options.missing == "mask":
                    out[~mask] = 0
                else:
                    raise self._is_missing(box, mask, level, is_known=presence is not None)
            masks.append(mask)
        return masks

    def _require_known(self, box: Box, mask: NDArray[np.bool_] | None, parts: Sequence[Box], level: int) -> None:
        """A chunk that is not stored although its voxels are real was lost."""
        for part in parts:
            if mask is None or mask[part.shifted(subtract((0, 0, 0), box.start)).slices].any():
                raise Malformed(
                    f"{self.name}: level {level} has lost its voxels {part}; fetch them again with `em-assets verify "
                    f"{self.name.partition('/')[0]} --repair`."
                )

    def _is_missing(self, box: Box, mask: NDArray[np.bool_], level: int, *, is_known: bool) -> Mismatch:
        holes = np.argwhere(~mask)
        first, last = holes.min(axis=0).tolist(), (holes.max(axis=0) + 1).tolist()
        hole = Box(add(box.start, zyx(first)), add(box.start, zyx(last)))
        why = "the publisher does not have" if is_known else "no chunk is stored for"
        further = "" if is_known else ", or missing='fill' if absent chunks hold the array's fill value"
        return Mismatch(
            f"{self.name}: {why} {len(holes)} voxels of the box {box} of level {level}, in {hole}; ask for another "
            f"box, or take it with missing='mask'{further}."
        )
