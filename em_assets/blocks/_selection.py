"""Rows of the block index that a query selects, as places to read (`IndexRows`), and what had to be left out.

The order of the rows is their own (name, level, place), not the query's: SQL promises none, and the n-th sample must be
the same one next year.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from em_assets.blocks.asking import SAME_SIZE, Shape
from em_assets.blocks.sampling import Place, Source, Weights, does_not_fit, permuted, random_share
from em_assets.errors import Malformed, Mismatch
from em_assets.volume import Box, zyx

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from em_assets.blocks.volume import Volume

STARTS = ("start_z", "start_y", "start_x")
SHAPES = ("shape_z", "shape_y", "shape_x")
NEEDED = ("name", "level", *STARTS)
CELL = 128
"""Voxels along each axis of the cells in which holes are looked for first."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Blocks that a query selects and that are never drawn."""

    name: str
    """Of the dataset, or of its volume."""
    blocks: int
    reason: str
    location: str
    """As `Volume.location`: names may be equal."""

    def __str__(self) -> str:
        return f"{self.blocks} of {self.name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Wish:
    """How the blocks are to be read, as far as it decides which can be."""

    shape: Shape
    voxel_size_nm: float | Sequence[float] | None
    is_padded: bool
    is_whole: bool
    """Never one with a missing voxel."""


class IndexRows:
    """Each row once per epoch, in an order of the epoch's own; or rows by weight, as many as there are."""

    def __init__(self, groups: Sequence[_Group], extras: pa.Table, weights: NDArray[np.float64] | None) -> None:
        self.sources = tuple(group.source for group in groups)
        self._source = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
        self._starts = np.concatenate([group.starts for group in groups])
        self._starts_nm = np.concatenate([group.starts_nm for group in groups])
        self._extras = extras.combine_chunks()
        self._weights = None if weights is None else Weights(weights, "the query's rows")

    def __len__(self) -> int:
        return len(self._source)

    def place(self, seed: int, epoch: int, n: int, attempt: int = 0) -> Place:  # a row has one place
        if not 0 <= n < len(self):
            raise IndexError(f"there is no sample {n} among {len(self)}")
        if self._weights is None:
            row = permuted(n, len(self), seed, epoch)
        else:
            row = self._weights.at(random_share("row", seed, epoch, n))
        number = int(self._source[row])
        z, y, x = self._starts_nm[row].tolist()
        start = None if self.sources[number].is_resampled else zyx(self._starts[row].tolist())
        return Place(number, (z, y, x), start, row)

    def describe(self, row: int) -> dict[str, Any]:
        """The query's other columns of a row."""
        found: list[dict[str, Any]] = self._extras.slice(row, 1).to_pylist()
        return found[0] if found else {}


def select(
    frame: pd.DataFrame, wish: Wish, weights: str | None, open_volume: Callable[[str], Volume]
) -> tuple[IndexRows, list[LeftOut], bool]:
    """The rows that can be read as wished, those that cannot, and whether blocks reach beyond their rows' boxes.

    Raises Malformed if columns are missing or hold no numbers, Mismatch if no block is left; what `open_volume` raises.
    """
    import pandas as pd

    _require(frame, weights)
    codes, names = pd.factorize(frame["name"], sort=True)
    volumes = [open_volume(str(name)) for name in names]
    has_images = any(volume.content == "image" for volume in volumes)
    left_out: list[LeftOut] = []
    groups, reaching = [], False
    for code, volume in enumerate(volumes):
        for group in _groups(frame, np.flatnonzero(codes == code), volume, wish):
            left_out += group.leave_out(wish, has_images=has_images)
            if len(group):
                groups.append(group)
                reaching |= group.reaches_beyond_rows()
    if not groups:
        raise Mismatch("of the query's blocks none is left: " + "; ".join(map(str, left_out)))
    kept = frame.iloc[np.concatenate([group.rows for group in groups])]
    drawn = None if weights is None else kept[weights].to_numpy(np.float64)
    return IndexRows(groups, _extras(kept), drawn), left_out, reaching


class _Group:
    """Rows of one volume that are read in the same way, in the order of their places."""

    def __init__(self, source: Source, rows: NDArray[np.int64], frame: pd.DataFrame) -> None:
        """`rows` of the query's `frame`."""
        volume, part = source.volume, frame.iloc[rows]
        levels = part["level"].to_numpy(np.int64)
        sizes = np.array([level.grid.voxel_size_nm for level in volume.levels])[levels]
        corners = np.array([level.grid.corner_nm for level in volume.levels])[levels]
        starts_nm = corners + part[list(STARTS)].to_numpy(np.int64) * sizes
        at = (starts_nm - np.array(source.grid.corner_nm)) / np.array(source.grid.voxel_size_nm)
        starts = np.floor(at + 0.5).astype(np.int64)
        order = np.lexsort((np.rint(at / SAME_SIZE) if source.is_resampled else starts).T[::-1])
        self.source, self.rows, self._frame = source, rows[order], part.iloc[order]
        self.starts_nm, self.starts = starts_nm[order], starts[order]
        """(n, 3): the blocks' outer corners, and their first voxels at the source's level."""
        self._sizes, self._at = sizes[order], at[order]

    def __len__(self) -> int:
        return len(self.rows)

    def reaches_beyond_rows(self) -> bool:
        """Whether blocks are larger than the boxes that the index describes (known if it tells their shapes)."""
        if not set(SHAPES) <= set(self._frame):
            return False
        described = self._frame[list(SHAPES)].to_numpy(np.float64) * self._sizes
        return bool((np.array(self.source.shape_nm) > described * (1 + SAME_SIZE)).any())

    def leave_out(self, wish: Wish, *, has_images: bool) -> Iterator[LeftOut]:
        """Keeps what can be read, and tells what cannot."""
        volume = self.source.volume
        if has_images and volume.content == "labels":
            reason = "it holds labels, others images; pair them by labels=, or select one content"
            yield from self._drop(np.ones(len(self), bool), reason)
        yield from self._drop(self._repeated(), "selected more than once; drawn once")
        if not wish.is_padded:
            yield from self._drop(self._outside(), self._why_outside())
        if wish.is_whole:
            reason = "voxels are missing; missing='mask' takes them with a mask"
            yield from self._drop(self._incomplete(), reason)

    def _drop(self, wrong: NDArray[np.bool_], reason: str) -> Iterator[LeftOut]:
        if wrong.any():
            yield LeftOut(self.source.volume.name, int(wrong.sum()), reason, self.source.volume.location)
            keep = ~wrong
            self.rows, self._frame, self._sizes = self.rows[keep], self._frame[keep], self._sizes[keep]
            self.starts, self.starts_nm, self._at = self.starts[keep], self.starts_nm[keep], self._at[keep]

    def _repeated(self) -> NDArray[np.bool_]:
        at = self._at if self.source.is_resampled else self.starts
        same = (np.abs(at[1:] - at[:-1]) < SAME_SIZE).all(axis=1)
        return np.concatenate([np.zeros(min(1, len(self)), bool), same])

    def _outside(self) -> NDArray[np.bool_]:
        at = self._at if self.source.is_resampled else self.starts
        ends = at + np.array(self.source.spans)
        outside: NDArray[np.bool_] = ((at < -SAME_SIZE) | (ends > np.array(self.source.grid.shape) + SAME_SIZE)).any(1)
        return outside

    def _why_outside(self) -> str:
        if min(self.source.room) < 1:
            return does_not_fit(self.source).partition(": ")[2].removesuffix(".")
        return "they leave the volume; pad='constant', 'edge' or 'reflect' says what lies outside"

    def _incomplete(self) -> NDArray[np.bool_]:
        incomplete = np.zeros(len(self), bool)
        if "coverage" in self._frame:
            incomplete |= ~(self._frame["coverage"].to_numpy(np.float64) >= 1)
            if set(SHAPES) <= set(self._frame) and not self.source.is_resampled and not self.reaches_beyond_rows():
                return incomplete  # the index has looked
        for row in np.flatnonzero(~incomplete & self._near_holes()).tolist():
            incomplete[row] = not self.source.is_whole(self._place(row))
        return incomplete

    def _near_holes(self) -> NDArray[np.bool_]:
        """Blocks that share a cell of the volume with some missing voxel: only these are worth a look, one by one."""
        shape = np.array(self.source.grid.shape)
        cells = -(-shape // CELL)
        if cells.prod() >= len(self):
            return np.ones(len(self), bool)
        holes = np.zeros(cells + 1, np.int64)
        for cell in np.ndindex(*cells):
            start, stop = np.array(cell) * CELL, np.minimum((np.array(cell) + 1) * CELL, shape)
            box = Box(zyx(start.tolist()), zyx(stop.tolist()))
            holes[tuple(n + 1 for n in cell)] = self.source.volume.missing_fraction(box, self.source.level) > 0
        upto = holes.cumsum(0).cumsum(1).cumsum(2)  # cells with holes below a corner
        first = np.clip(np.floor(self._at - 1), 0, shape - 1).astype(np.int64) // CELL
        after = np.clip(np.ceil(self._at + self.source.spans) + 1, 1, shape).astype(np.int64)
        ends = (first, -(-after // CELL))
        found = np.zeros(len(self), np.int64)
        for corner in np.ndindex(2, 2, 2):  # inclusion and exclusion
            z, y, x = (ends[side][:, axis] for axis, side in enumerate(corner))
            found += (-1) ** (3 - sum(corner)) * upto[z, y, x]
        near: NDArray[np.bool_] = found > 0
        return near

    def _place(self, row: int) -> Place:
        z, y, x = self.starts_nm[row].tolist()
        start = None if self.source.is_resampled else zyx(self.starts[row].tolist())
        return Place(0, (z, y, x), start)


def read_frame(sql: str, catalog: Path) -> pd.DataFrame:
    """What a query of the catalogue gives. Raises Malformed with DuckDB's sentence."""
    from em_assets.catalog.query import frame

    return frame(catalog, sql)


def _require(frame: pd.DataFrame, weights: str | None) -> None:
    needed = [*NEEDED, *([weights] if weights else [])]
    absent = [name for name in needed if name not in frame]
    if absent:
        raise Malformed(f"the query gives {list(frame)}, without {absent}: select these, too.")
    if frame.columns.has_duplicates:
        raise Malformed(f"the query gives a column twice: {list(frame)}; name each once.")
    if frame.empty:
        raise Mismatch("the query gives no row, so there is no block to draw; widen it.")
    for name in needed:
        if frame[name].isna().any():
            raise Malformed(f"{name} is NULL in {int(frame[name].isna().sum())} of the query's rows; leave them out.")
        if name != "name" and frame[name].dtype.kind not in ("iuf" if name == weights else "iu"):
            expected = "numbers" if name == weights else "whole numbers"
            raise Malformed(f"{name} is {frame[name].dtype} in the query's rows, expected {expected}.")


def _groups(frame: pd.DataFrame, rows: NDArray[np.int64], volume: Volume, wish: Wish) -> Iterator[_Group]:
    """The rows of a volume, level by level, or together where all are to have one voxel size."""
    levels = frame["level"].to_numpy(np.int64)[rows]
    if not 0 <= levels.min() <= levels.max() < len(volume.levels):
        raise Mismatch(
            f"{volume.name} has the levels 0 to {len(volume.levels) - 1}, the query's rows name {levels.min()} to "
            f"{levels.max()}; make the index again."
        )
    if wish.voxel_size_nm is not None:
        yield _Group(Source.of(volume, wish.shape, wish.voxel_size_nm), rows, frame)
        return
    for level in np.unique(levels).tolist():
        yield _Group(Source.of(volume, wish.shape, None, level), rows[levels == level], frame)


def _extras(frame: pd.DataFrame) -> pa.Table:
    """The other columns, compact, fit for other processes and for torch's `default_collate`, which takes no None.

    NULL becomes NaN among numbers (and lists of them), "" among texts; columns of nothing but NULL are left out.
    """
    import pyarrow as pa

    table = pa.Table.from_pandas(frame.drop(columns=list(NEEDED)), preserve_index=False).replace_schema_metadata(None)
    known = [name for name in table.column_names if table[name].null_count < len(table)]
    return pa.table({name: _without_null(table[name]) for name in known})


def _without_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count == 0:
        return column
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.float64()).fill_null(math.nan)
    if pa.types.is_floating(kind):
        return column.fill_null(math.nan)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.fill_null("")
    if pa.types.is_list(kind) and pa.types.is_floating(kind.value_type):
        length = int(pc.max(pc.list_value_length(column)).as_py())
        return pc.coalesce(column, pa.scalar([math.nan] * length, kind))
    return column
