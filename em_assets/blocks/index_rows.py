"""The rows of an index of blocks: every block of a plan's grid is read, and described, once.

Rows are in the order of the grid, z slowest, and so is `id`. `features.py` says what the numbers are; the columns are
explained where the catalogue has them (`catalog/schema.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from em_assets.blocks.features import NUMBERS, block_numbers, label_numbers
from em_assets.blocks.index_plan import IndexInfo, Plan, checked_features
from em_assets.volume import Zyx

if TYPE_CHECKING:
    import pyarrow as pa

    from em_assets.blocks.block import Batch, Block

Progress = Callable[[int, int], None]
"""Is told how many blocks are done, and of how many."""


def layers_of_rows(plan: Plan, workers: int | None, progress: Progress | None) -> Iterator[pa.Table]:
    """The rows, layer by layer, in the order of the grid."""
    import pyarrow as pa

    total, done = math.prod(len(starts) for starts in plan.info.axes), 0
    split = plan.info.split(plan.volume.name)
    row = partial(_row, plan, schema_names=tuple(row_schema(plan.info).names))
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="em_assets-blocks") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="em_assets-bricks") as ahead,
    ):
        for layer in plan.layers():
            tables = []
            for brick, batch in _read_ahead(plan, layer, ahead):
                names = split.of_all([block.box.start for block in batch], plan.info.block)
                rows = list(pool.map(row, brick, batch, names))
                tables.append(pa.Table.from_pylist(rows, schema=row_schema(plan.info)))
                done += len(rows)
                if progress is not None:
                    progress(done, total)
            yield pa.concat_tables(tables).sort_by("id")


def _read_ahead(
    plan: Plan, bricks: Iterable[list[Zyx]], ahead: ThreadPoolExecutor
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


def _read(plan: Plan, brick: Sequence[Zyx]) -> Batch:
    z, y, x = plan.info.axes
    starts = [(z[index[0]], y[index[1]], x[index[2]]) for index in brick]
    batches = plan.volume.read_many(
        starts, shape=plan.info.block, batch_size=len(starts), level=plan.info.level, missing="mask"
    )
    return next(batches)


def _row(plan: Plan, index: Zyx, block: Block, split: str | None, *, schema_names: tuple[str, ...]) -> dict[str, Any]:
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
        "licence": info.license,
        "publisher": info.publisher,
        "coverage": coverage,
        "split": split,
    }
    for number, axis in enumerate("zyx"):
        row[f"start_{axis}"], row[f"shape_{axis}"] = block.box.start[number], block.box.shape[number]
        row[f"start_nm_{axis}"], row[f"stop_nm_{axis}"] = block.box_nm.start[number], block.box_nm.stop[number]
        row[f"voxel_size_{axis}_nm"] = block.voxel_size_nm[number]
    return row | (_numbers(plan, block) if coverage > 0 else {})


def _numbers(plan: Plan, block: Block) -> dict[str, Any]:
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
    features = checked_features(vector, info.features_length)
    return found | numbers | {"features": features, "features_method": info.features_method}


def row_schema(info: IndexInfo) -> pa.Schema:
    import pyarrow as pa

    number, text, whole = pa.float64(), pa.string(), pa.int64()
    vector = pa.list_(pa.float32(), info.features_length or -1)  # -1: of no fixed length
    columns = [("name", text), ("id", whole), ("level", pa.int32())]
    columns += [(f"{what}_{axis}", whole) for what in ("start", "shape") for axis in "zyx"]
    columns += [(f"{what}_nm_{axis}", number) for what in ("start", "stop") for axis in "zyx"]
    columns += [*((f"voxel_size_{axis}_nm", number) for axis in "zyx"), ("max_voxel_size_nm", number)]
    columns += [(name, text) for name in ("content", "dtype", "license", "licence", "publisher")]
    columns += [(name, number) for name in ("coverage", *NUMBERS, "label_fraction")]
    columns += [("labels", whole), ("split", text), ("digest", text), ("features", vector), ("features_method", text)]
    return pa.schema(columns)
