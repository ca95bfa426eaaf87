"""The index of a volume's blocks, `blocks.parquet`: where each lies, what is in it, which split it is of.

The grid has whole blocks of one shape (at most the volume's), one every `stride` voxels from 0 on. Where the last one
would leave the volume it is moved back inside: every voxel is in a block, and those blocks, whose start is no multiple
of the stride, share voxels with their neighbours. Rows are in the order of the grid, z slowest, and so is `id`.

`features.py` says what the numbers are and `split.py` what the splits; the columns are explained where the catalogue
has them (`catalog/schema.py`). Beside them the file says what it was made from (`IndexInfo`), so that making it again
is nothing where nothing has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np

from em_assets.blocks.features import (
    LENGTH,
    METHOD,
    NUMBERS,
    Features,
    ValueRange,
    block_numbers,
    dtype_range,
    feature_vector,
    label_numbers,
)
from em_assets.blocks.geometry import Grid, nm3
from em_assets.blocks.split import MARGIN, Split, draw_split
from em_assets.catalog.block_indexes import index_path
from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.records import DatasetFolder, DatasetRecord
from em_assets.volume import Box, Zyx, multiply, zyx

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from numpy.typing import NDArray

    from em_assets.blocks.block import Batch, Block
    from em_assets.blocks.volume import Volume

BLOCK: Zyx = (128, 128, 128)
INDEX_METHOD = 2
"""Raise it when the same voxels give other rows, `features.METHOD` apart: every index is then made again."""
INFO = b"em_assets"
"""The key of what an index says of itself, in the file's schema metadata: JSON."""
READ_BYTES = 32 * 2**20
"""Voxels of blocks that are read together. Twice that is in memory, since the next are read meanwhile."""
ROW_GROUP = 2**16
"""Rows that are written together: at most so many are in memory, or two layers of blocks."""

Progress = Callable[[int, int], None]
"""Is told how many blocks are done, and of how many."""


class IndexOptions(TypedDict, total=False):
    """What may be asked for."""

    block: int | Zyx
    """The blocks' shape, clipped to the level's; 128 along each axis unless told."""
    stride: int | Zyx | None
    """Voxels from one block to the next, at most the block's shape, which it is unless told."""
    level: int
    margin: int
    """Blocks of different splits are at least so many voxels apart (default: `split.MARGIN`)."""
    seed: int
    """Of the split."""
    features: Features | None
    """In place of the feature vector of images. It is called from several threads, with voxels, which of them are real
    (None: all), voxel size and value range, and always gives the same number of finite values."""
    features_method: str | None
    """Names it (default: its module and name); is to change whenever it gives other values."""


@dataclass(frozen=True)
class IndexInfo:
    """What an index was made from."""

    sha256: str | None
    """The dataset's (`DatasetRecord.sha256`); None of a volume that is in no store."""
    coverage_sha256: str | None
    method: int
    shape: Zyx
    """Of the level."""
    level: int
    block: Zyx
    stride: Zyx
    margin: int
    seed: int
    value_range: ValueRange | None
    """Darkest and brightest value that entropy and features refer to; None: each block's own (floats), or labels."""
    license: str | None
    publisher: str | None
    features_method: str | None
    """None of labels, which have no features."""
    features_length: int | None
    grid: Grid
    """The level in space."""
    split_grid: Grid
    """What the split is drawn on: level 0 of the dataset's main volume."""
    split_block: Zyx
    split_stride: Zyx

    def digest(self) -> str:
        """Two indexes with one digest have the same rows."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def axes(self) -> tuple[tuple[int, ...], ...]:
        """The starts of the grid's blocks along z, y and x."""
        return grid_axes(self.shape, self.block, self.stride)

    def split(self, name: str) -> Split:
        """The split of the volume `name`, for any box of its level: that of the whole dataset."""
        dataset, axes = name.partition("/")[0], grid_axes(self.split_grid.shape, self.split_block, self.split_stride)
        drawn = draw_split(dataset, axes, self.split_block, seed=self.seed, margin=self.margin)
        return drawn.on(self.split_grid, self.grid)


@dataclass(frozen=True)
class IndexSummary:
    """What `write_index` leaves in the store."""

    path: str
    """Relative to the dataset's folder."""
    info: IndexInfo
    blocks: int
    per_split: dict[str, int]
    """Blocks in `train`, `val`, `test` and `margin`."""
    coverage: float
    """Mean of the blocks' coverage."""
    was_written: bool
    """False: it was there already."""


def write_index(
    folder: DatasetFolder,
    volume: Volume,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[IndexOptions],
) -> IndexSummary:
    """Makes `blocks.parquet` of the folder's volume (`open(folder.title)`), unless it is there and would be the same.

    Further volumes have `volumes/<name>.blocks.parquet`. Arguments as `build_index`. The file lands whole or not at
    all; an earlier one stays until then. Raises Mismatch if the dataset is not complete, and as `build_index`.
    """
    record = folder.read_record()
    if record is None or record.visible_status != "complete":
        raise Mismatch(
            f"{folder.name} is {'not there' if record is None else record.visible_status}, so its blocks cannot be "
            f"described; finish it with `em-assets get {folder.name}`."
        )
    plan = _plan(volume, options, None if folder.sub is None else _main_grid(record))
    coverage = record.coverage_sha256 if folder.sub is None else record.volumes[folder.sub].coverage_sha256
    plan = plan.of_dataset(record.sha256, coverage, record.license, record.source)
    path = index_path(folder.sub)
    known = _read_metadata(folder)
    if known is not None and _digest(known) == plan.info.digest():
        return _summary(folder, plan.info, was_written=False)
    with tempfile.TemporaryDirectory(prefix="em_assets_") as temporary:
        file = Path(temporary) / "blocks.parquet"
        _write(file, plan, workers, progress)
        folder.store.write_file(folder.path(path), file)
    return _summary(folder, plan.info, was_written=True)


def build_index(
    volume: Volume,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[IndexOptions],
) -> pa.Table:
    """The index of any volume, in memory. `workers` threads compute; as many as there are cores unless told.

    Raises Mismatch if the arguments do not fit each other or the volume, Malformed or Unavailable as reading does.
    """
    import pyarrow as pa

    plan = _plan(volume, options)
    return pa.concat_tables(_layers(plan, workers, progress)).replace_schema_metadata(_metadata(plan.info))


def read_index(folder: DatasetFolder, columns: Sequence[str] | None = None) -> pa.Table | None:
    """The index of the folder's volume (or some columns), None if there is none; Malformed if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = index_path(folder.sub)
    local = folder.store.local_path(folder.path(path))
    try:
        source = pa.BufferReader(folder.read(path)) if local is None else pa.memory_map(str(local))
        return pq.read_table(source, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(folder, error) from None


def index_info(folder: DatasetFolder) -> IndexInfo | None:
    """What the index of the folder's volume was made from, None if there is none; reads the file's end only.

    Raises Malformed if the file says nothing of the kind.
    """
    found = _read_metadata(folder)
    if found is None:
        return None
    try:
        stated = json.loads((found.metadata or {})[INFO])
        fields = {field.name: stated[field.name] for field in dataclasses.fields(IndexInfo)}
        triples = {name: zyx(fields[name]) for name in ("shape", "block", "stride", "split_block", "split_stride")}
        grids = {name: _stated_grid(fields[name]) for name in ("grid", "split_grid")}
        span = fields["value_range"]
        return IndexInfo(**fields | triples | grids | {"value_range": None if span is None else (span[0], span[1])})
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(folder, error) from None


def grid_axes(shape: Zyx, block: Zyx, stride: Zyx) -> tuple[tuple[int, ...], ...]:
    """The starts of a grid's blocks along z, y and x: every `stride` voxels, the last one moved back inside."""
    axes = []
    for n, length, step in zip(shape, block, stride, strict=True):
        last = n - length
        axes.append((*range(0, last, step), last))
    return tuple(axes)


# Questions to the table `blocks`.


def similar_sql(name: str, block_id: int, *, limit: int = 20, table: str = "blocks") -> str:
    """SQL for the blocks that look most like one: the table's columns and `distance`, nearest first, itself left out.

    `table` is `blocks`, or `read_parquet('.../blocks.parquet')`. Blocks whose features are of another method, or that
    have none, are left out.
    """
    return (
        f"select b.* exclude (features), list_distance(b.features, q.features) as distance\n"  # noqa: S608  # quoted
        f"from {table} b join (select * from {table} where name = {_quoted(name)} and id = {int(block_id)}) q\n"
        "on b.features_method = q.features_method and (b.name, b.id) <> (q.name, q.id)\n"
        f"where b.features is not null\norder by distance, b.name, b.id limit {int(limit)}"
    )


def near_duplicates_sql(distance: float, *, table: str = "blocks", where: str = "true") -> str:
    """SQL for all pairs of blocks (chosen by the condition `where`) whose features are at most so far apart.

    Pairs whose boxes share voxels of one volume are left out. Each block is compared with every other, about a million
    pairs a second: 5,000 blocks take ten seconds, so choose. Exact duplicates are cheap among any number:
    `select digest, list((name, id)) from blocks group by digest having count(*) > 1`.
    """
    apart = " or ".join(
        f"a.start_{axis} + a.shape_{axis} <= b.start_{axis} or b.start_{axis} + b.shape_{axis} <= a.start_{axis}"
        for axis in "zyx"
    )
    return (
        "with chosen as (select *, row_number() over (order by name, id) as place\n"
        f"from {table} where features is not null and ({where}))\n"
        "select a.name, a.id, b.name as other_name, b.id as other_id,\n"
        "list_distance(a.features, b.features) as distance\n"
        "from chosen a join chosen b on a.features_method = b.features_method and a.place < b.place\n"
        f"where distance <= {float(distance)} and (a.name <> b.name or {apart})\n"
        "order by distance, a.name, a.id"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# The plan of an index.


@dataclass(frozen=True)
class _Plan:
    volume: Volume
    info: IndexInfo
    features: Features | None
    """None of labels."""

    def of_dataset(self, sha256: str | None, coverage: str | None, license_: str, publisher: str) -> _Plan:
        info = dataclasses.replace(
            self.info, sha256=sha256, coverage_sha256=coverage, license=license_, publisher=publisher
        )
        return dataclasses.replace(self, info=info)

    def layers(self) -> Iterator[Iterator[list[Zyx]]]:
        """The grid's indices in bricks that are read together, and these in layers, whole along y and x.

        A layer is to be gone through before the next; nothing is listed before it is needed.
        """
        counts = zyx([len(starts) for starts in self.info.axes])
        brick, whole = self._brick(counts), Box.from_shape(counts)
        for _, layer in itertools.groupby(whole.cells(brick), key=lambda cell: cell[0]):
            parts = (Box.from_shape(brick, multiply(cell, brick)).intersection(whole) for cell in layer)
            yield (list(part.cells((1, 1, 1))) for part in parts if part is not None)

    def _brick(self, counts: Zyx) -> Zyx:
        """Blocks that are read together: neighbours, doubled along x, y and z in turn."""
        block_bytes = math.prod(self.info.block) * self.volume.dtype.itemsize
        brick, at_most = [1, 1, 1], max(1, READ_BYTES // block_bytes)
        is_growing = True
        while is_growing:
            is_growing = False
            for axis in (2, 1, 0):
                if brick[axis] < counts[axis] and math.prod(brick) * 2 <= at_most:
                    brick[axis] *= 2
                    is_growing = True
        return zyx(brick)


def _main_grid(record: DatasetRecord) -> Grid | None:
    """Level 0 of the dataset's main volume, None if the record does not say."""
    if record.volume_shape is None or record.voxel_size_nm is None:
        return None
    whole = Grid(record.volume_shape, record.voxel_size_nm, record.corner_nm or (0.0, 0.0, 0.0))
    origin = (0, 0, 0) if record.source_box is None else record.source_box.start
    return dataclasses.replace(whole, corner_nm=whole.place_nm(origin))


def _stated_grid(stated: dict[str, Any]) -> Grid:
    return Grid(zyx(stated["shape"]), nm3(stated["voxel_size_nm"]), nm3(stated["corner_nm"]))


def _plan(volume: Volume, options: IndexOptions, main: Grid | None = None) -> _Plan:
    """`main`: level 0 of another volume, by which the dataset is split.

    Raises Mismatch if the options do not fit each other or the volume.
    """
    level, margin, features = options.get("level", 0), options.get("margin", MARGIN), options.get("features")
    if not 0 <= level < len(volume.levels):
        raise Mismatch(f"{volume.name} has the levels 0 to {len(volume.levels) - 1}, not {level}; choose one of them.")
    if margin < 0:
        raise Mismatch(f"{volume.name}: the margin is {margin} voxels, expected 0 or more.")
    shape = volume.levels[level].grid.shape
    block, stride = _block_and_stride(volume, shape, options)
    split_grid = main or volume.levels[0].grid
    split_block, split_stride = _clipped(volume, split_grid.shape, options)
    chosen = None if volume.content == "labels" else features or feature_vector
    info = IndexInfo(
        sha256=None,
        coverage_sha256=None,
        method=INDEX_METHOD,
        shape=shape,
        level=level,
        block=block,
        stride=stride,
        margin=margin,
        seed=options.get("seed", 0),
        value_range=None if chosen is None else _value_range(volume),
        license=None,
        publisher=None,
        features_method=None if chosen is None else options.get("features_method") or _method(chosen),
        features_length=None if chosen is None else _length(chosen, volume, level, block),
        grid=volume.levels[level].grid,
        split_grid=split_grid,
        split_block=split_block,
        split_stride=split_stride,
    )
    return _Plan(volume, info, chosen)


def _block_and_stride(volume: Volume, shape: Zyx, options: IndexOptions) -> tuple[Zyx, Zyx]:
    block, step = _clipped(volume, shape, options)
    # a longer step than a block that was clipped leaves nothing out: there is one block along that axis
    if any(s > b and b < n for s, b, n in zip(step, block, shape, strict=True)):
        raise Mismatch(
            f"{volume.name}: a stride of {step} would leave out voxels between blocks of {block} (z, y, x); make it "
            "at most the block's shape."
        )
    return block, step


def _clipped(volume: Volume, shape: Zyx, options: IndexOptions) -> tuple[Zyx, Zyx]:
    """Block, at most of this shape, and stride as they are asked for."""
    wanted = _triple(volume, "block", options.get("block", BLOCK))
    block = zyx([min(length, n) for length, n in zip(wanted, shape, strict=True)])
    stride = options.get("stride")
    return block, block if stride is None else _triple(volume, "stride", stride)


def _triple(volume: Volume, what: str, value: int | Sequence[int]) -> Zyx:
    triple = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(triple) != 3 or any(n < 1 for n in triple):
        raise Mismatch(f"{volume.name}: the {what} is {value}, expected three whole numbers (z, y, x) of at least 1.")
    return zyx(triple)


def _value_range(volume: Volume) -> ValueRange | None:
    """All values of 8 bit; of wider voxels those that nearly all of the volume's have, where that is known."""
    if volume.dtype.itemsize > 1:
        try:
            percentiles = volume.statistics().distribution.percentiles
        except Unsupported:
            percentiles = {}
        if {"0.1", "99.9"} <= set(percentiles):
            return percentiles["0.1"], percentiles["99.9"]
    return dtype_range(volume.dtype)


def _method(features: Features) -> str:
    if features is feature_vector:
        return METHOD
    name = getattr(features, "__qualname__", type(features).__qualname__)
    if "<" in name:
        raise Mismatch(f"the features are computed by {name}, which is no name to tell them by; give features_method.")
    return f"{getattr(features, '__module__', type(features).__module__)}.{name}"


def _length(features: Features, volume: Volume, level: int, block: Zyx) -> int:
    """How many numbers the features are, from a block that is as dark on one side as it is bright on the other."""
    if features is feature_vector:
        return LENGTH
    ramp = np.broadcast_to(np.linspace(0, 1, block[2]) * 100, block).astype(volume.dtype)
    return len(_checked(features(ramp, None, volume.levels[level].grid.voxel_size_nm, (0.0, 100.0)), None))


def _checked(vector: Any, length: int | None) -> NDArray[np.float32]:
    found = np.asarray(vector, np.float32)
    if found.ndim != 1 or not found.size or length not in (None, found.size) or not np.isfinite(found).all():
        raise Mismatch(
            f"the features of a block have the shape {found.shape} and {int(np.isfinite(found).sum())} finite values, "
            f"expected {length or 'one row of'} finite values; correct the function that computes them."
        )
    return found


# Rows.


def _layers(plan: _Plan, workers: int | None, progress: Progress | None) -> Iterator[pa.Table]:
    """The rows, layer by layer, in the order of the grid."""
    import pyarrow as pa

    total, done = math.prod(len(starts) for starts in plan.info.axes), 0
    split = plan.info.split(plan.volume.name)
    row = partial(_row, plan, schema_names=tuple(_schema(plan.info).names))
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="em_assets-blocks") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="em_assets-bricks") as ahead,
    ):
        for layer in plan.layers():
            tables = []
            for brick, batch in _read_ahead(plan, layer, ahead):
                names = split.of_all([block.box.start for block in batch], plan.info.block)
                rows = list(pool.map(row, brick, batch, names))
                tables.append(pa.Table.from_pylist(rows, schema=_schema(plan.info)))
                done += len(rows)
                if progress is not None:
                    progress(done, total)
            yield pa.concat_tables(tables).sort_by("id")


def _read_ahead(
    plan: _Plan, bricks: Iterable[list[Zyx]], ahead: ThreadPoolExecutor
) -> Iterator[tuple[list[Zyx], Batch]]:
    """Each brick's blocks; the next are read while these are looked at. A chunk is decoded once for all of a brick."""
    upcoming = None
    for brick in bricks:
        following = brick, ahead.submit(_read, plan, brick)
        if upcoming is not None:
            yield upcoming[0], upcoming[1].result()
        upcoming = following
    if upcoming is not None:
        yield upcoming[0], upcoming[1].result()


def _read(plan: _Plan, brick: Sequence[Zyx]) -> Batch:
    z, y, x = plan.info.axes
    starts = [(z[index[0]], y[index[1]], x[index[2]]) for index in brick]
    batches = plan.volume.read_many(
        starts, shape=plan.info.block, batch_size=len(starts), level=plan.info.level, missing="mask"
    )
    return next(batches)


def _row(plan: _Plan, index: Zyx, block: Block, split: str | None, *, schema_names: tuple[str, ...]) -> dict[str, Any]:
    info, coverage = plan.info, block.valid_fraction
    _, many_y, many_x = (len(starts) for starts in info.axes)
    row: dict[str, Any] = dict.fromkeys(schema_names)
    row |= {
        "name": plan.volume.name,
        "id": (index[0] * many_y + index[1]) * many_x + index[2],
        "level": info.level,
        "max_voxel_size_nm": max(block.voxel_size_nm),
        "content": plan.volume.content,
        "dtype": plan.volume.dtype.name,
        "license": info.license,
        "publisher": info.publisher,
        "coverage": coverage,
        "split": split,
    }
    for number, axis in enumerate("zyx"):
        row[f"start_{axis}"], row[f"shape_{axis}"] = block.box.start[number], block.box.shape[number]
        row[f"start_nm_{axis}"], row[f"stop_nm_{axis}"] = block.box_nm.start[number], block.box_nm.stop[number]
        row[f"voxel_size_{axis}_nm"] = block.voxel_size_nm[number]
    return row | (_numbers(plan, block) if coverage > 0 else {})


def _numbers(plan: _Plan, block: Block) -> dict[str, Any]:
    """What is in a block that has a real voxel."""
    found: dict[str, Any] = {"digest": block.digest}
    if plan.features is None:
        return found | label_numbers(block.data, block.valid)
    info = plan.info
    numbers = block_numbers(block.data, block.valid, voxel_size_nm=block.voxel_size_nm, value_range=info.value_range)
    if numbers["mean"] is None:  # real, but not one is finite
        return found
    value_range = info.value_range or (numbers["minimum"] or 0.0, numbers["maximum"] or 0.0)
    vector = plan.features(block.data, block.valid, block.voxel_size_nm, value_range)
    features = _checked(vector, info.features_length)
    return found | numbers | {"features": features, "features_method": info.features_method}


def _schema(info: IndexInfo) -> pa.Schema:
    import pyarrow as pa

    number, text, whole = pa.float64(), pa.string(), pa.int64()
    vector = pa.list_(pa.float32(), info.features_length or -1)  # -1: of no fixed length
    columns = [("name", text), ("id", whole), ("level", pa.int32())]
    columns += [(f"{what}_{axis}", whole) for what in ("start", "shape") for axis in "zyx"]
    columns += [(f"{what}_nm_{axis}", number) for what in ("start", "stop") for axis in "zyx"]
    columns += [*((f"voxel_size_{axis}_nm", number) for axis in "zyx"), ("max_voxel_size_nm", number)]
    columns += [(name, text) for name in ("content", "dtype", "license", "publisher")]
    columns += [(name, number) for name in ("coverage", *NUMBERS, "label_fraction")]
    columns += [("labels", whole), ("split", text), ("digest", text), ("features", vector), ("features_method", text)]
    return pa.schema(columns)


# The file.


def _write(file: Path, plan: _Plan, workers: int | None, progress: Progress | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(plan.info).with_metadata(_metadata(plan.info))
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for layer in _layers(plan, workers, progress):
            waiting.append(layer)
            if sum(table.num_rows for table in waiting) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP)
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP)


def _metadata(info: IndexInfo) -> dict[bytes, bytes]:
    stated = {**dataclasses.asdict(info), "digest": info.digest()}
    return {INFO: json.dumps(stated).encode()}


def _digest(schema: pa.Schema) -> str | None:
    """`IndexInfo.digest()` of an index, None if it does not say."""
    try:
        stated = json.loads((schema.metadata or {})[INFO])
        digest = stated["digest"]
    except (KeyError, TypeError, ValueError):
        return None
    return str(digest)


def _read_metadata(folder: DatasetFolder) -> pa.Schema | None:
    """The schema of the folder's index with what is stated in it; None if there is none or it is no Parquet file."""
    file = _read_end(folder)
    return None if file is None else file.schema.to_arrow_schema()


def _read_end(folder: DatasetFolder) -> pq.FileMetaData | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder.path(index_path(folder.sub))
    size_bytes = folder.store.size_bytes(path)
    if size_bytes is None:
        return None

    def last(length: int) -> bytes:
        return folder.store.read_range(path, max(0, size_bytes - length), length)

    try:
        length = int.from_bytes(last(8)[:4], "little") + 8
        # a Parquet file is read from its end; that much of one is as good as all of it
        return pq.read_metadata(pa.BufferReader(b"PAR1" + last(min(length, size_bytes))))
    except (FileNotFoundError, pa.ArrowException, OSError, ValueError):
        return None


def _summary(folder: DatasetFolder, info: IndexInfo, *, was_written: bool) -> IndexSummary:
    import pyarrow.compute as pc

    table = read_index(folder, ["split", "coverage"])
    assert table is not None  # it was written, or its end was read, a moment ago
    counts = dict.fromkeys(("train", "val", "test", "margin"), 0)
    for found in pc.value_counts(table["split"].fill_null("margin")).to_pylist():
        counts[found["values"]] = found["counts"]
    return IndexSummary(
        path=index_path(folder.sub),
        info=info,
        blocks=table.num_rows,
        per_split=counts,
        coverage=float(pc.mean(table["coverage"]).as_py()),
        was_written=was_written,
    )


def _unreadable(folder: DatasetFolder, why: object) -> Malformed:
    return Malformed(
        f"{folder.uri(index_path(folder.sub))} is not the index of the volume's blocks "
        f"({str(why).partition(chr(10))[0].rstrip('.')}); remove it and materialize {folder.name}_blocks again."
    )
