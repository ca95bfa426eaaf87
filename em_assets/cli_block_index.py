"""`em-assets blocks`: what is in a volume's blocks, out of the catalogue, with a contact sheet.

The index that it asks is made by `blocks/index.py`. `cli_blocks.py` takes the command in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from em_assets.cli_blocks_shared import (
    VolumeArgument,
    dataset_folder,
    open_volume,
    require_place,
    shape_text,
    share_text,
    show_progress,
    voxel_size_text,
)
from em_assets.cli_catalog import fresh_catalog
from em_assets.cli_shared import JsonOption, Platform, print_table, say, warn
from em_assets.cli_show import ask, quoted
from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.progress import human_bytes, human_seconds

if TYPE_CHECKING:
    from em_assets.records import DatasetFolder

index_commands = typer.Typer()

SHOWN_BLOCKS = 64
NEAREST = 20
SUMMARIZED = (
    *("coverage", "mean", "std", "p01", "p99", "entropy_bits", "sharpness", "saturation", "zero_fraction"),
    *("label_fraction", "labels"),
)
"""Columns of the index whose range is told."""
SPLITS = ("train", "val", "test", "margin")
SHOWN_OF_A_BLOCK = ("name", "id", "distance", "start_z", "start_y", "start_x", "split", "coverage", "mean", "std")


@index_commands.command(
    epilog="Example: em-assets blocks hemibrain_crop --split train --where 'sharpness > 0.5' -o a.png"
)
def blocks(
    name: VolumeArgument,
    *,
    split: Annotated[Literal["train", "val", "test", "margin"] | None, typer.Option(help="only these")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="only these: a condition on columns of the table `blocks`")
    ] = None,
    like: Annotated[int | None, typer.Option(metavar="ID", min=0, help="those that look most like this one")] = None,
    count: Annotated[int, typer.Option("-n", min=1, max=10_000, help="blocks to list or show at most")] = SHOWN_BLOCKS,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.png", help="a contact sheet of their middle planes")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace what is there")] = False,
    build: Annotated[bool, typer.Option("--build", help="make the index first, unless it is there")] = False,
    as_json: JsonOption = False,
) -> None:
    """What is in a volume's blocks, with a contact sheet.

    How many there are, in which split, how real, bright and sharp. From the index, which `--build` (or the asset
    NAME_blocks) makes by reading every voxel once. The sheet shows blocks from all over the volume, or those that
    --where, --split or --like choose. For lists: em-assets sql "select * exclude (features) from blocks where ..."
    """
    platform, folder = dataset_folder(name)
    picture = _picture_target(output, force=force)
    if build:
        _build_index(platform, folder)
    database = _blocks_catalog(platform, folder)
    chosen = _Chosen(folder.title, split, where)
    if like is None:
        rows = chosen.spread(database, count)
        _tell_summary(chosen.summary(database), as_json=as_json)
    else:
        rows = chosen.nearest(database, like, min(count, NEAREST) if count == SHOWN_BLOCKS else count)
        _tell_rows(rows, as_json=as_json)
    if picture is not None:
        _write_sheet(picture, rows)


@dataclass(frozen=True)
class _Chosen:
    """Blocks of one volume, as SQL chooses them."""

    name: str
    split: str | None
    where: str | None

    @property
    def condition(self) -> str:
        parts = [f"name = {quoted(self.name)}"]
        if self.split is not None:
            parts.append("split is null" if self.split == "margin" else f"split = {quoted(self.split)}")
        if self.where is not None:
            parts.append(f"({self.where}\n)")  # a comment at its end must not swallow the bracket
        return " and ".join(parts)

    def summary(self, database: Path) -> dict[str, Any]:
        """Counts, and of each number its least, middle and largest value."""
        of_it = f"from blocks where {self.condition}"
        (found,) = ask(
            database,
            "select count(*) as blocks, count(*) filter (coverage < 1) as not_whole,"
            f" count(*) filter (coverage = 0) as without_a_real_voxel {of_it}",
        )
        if not found["blocks"]:
            raise Mismatch(f"no block of {self.name} is such; `em-assets blocks {self.name}` tells of all.")
        splits = ask(
            database,
            "select coalesce(split, 'margin') as split, count(*) as blocks, avg(coverage) as coverage "
            f"{of_it} group by 1",
        )
        splits.sort(key=lambda row: SPLITS.index(row["split"]))
        grid = ask(
            database,
            "select distinct level, [shape_z, shape_y, shape_x] as shape,"
            f" [voxel_size_z_nm, voxel_size_y_nm, voxel_size_x_nm] as voxel_size_nm {of_it} order by all",
        )
        measures = ", ".join(
            f"[min({column}), quantile_cont({column}, 0.5), max({column})] as {column}" for column in SUMMARIZED
        )
        (ranges,) = ask(database, f"select {measures} {of_it}")
        numbers = {column: values for column, values in ranges.items() if values and values[0] is not None}
        return {"name": self.name, "grids": grid, **found, "splits": splits, "numbers": numbers}

    def spread(self, database: Path, count: int) -> list[dict[str, Any]]:
        """At most so many, evenly from all over the volume."""
        order = "row_number() over (order by level, id) - 1 as n, count(*) over () as m"
        return ask(
            database,
            f"select * exclude (features, n, m) from (select *, {order} from blocks where {self.condition}) "  # noqa: S608
            f"where n = 0 or (n * {count}) // m <> ((n - 1) * {count}) // m order by n",
        )

    def nearest(self, database: Path, like: int, count: int) -> list[dict[str, Any]]:
        """The block itself, then those that look most like it: of any volume, unless something else is asked for."""
        from em_assets.blocks.similar import similar_sql

        itself = f"from blocks where name = {quoted(self.name)} and id = {like}"
        rows = ask(database, f"select * exclude (features), 0.0 as distance {itself}")
        if not rows:
            raise Mismatch(f"{self.name} has no block {like}; `em-assets blocks {self.name}` tells how many it has.")
        table = "blocks"
        if self.split is not None or self.where is not None:
            table = f"(from blocks where {self.condition} union {itself})"
        found = ask(database, similar_sql(self.name, like, limit=count, table=table))
        if not found:
            raise Mismatch(f"block {like} of {self.name} has no features, or there is no other such block to compare.")
        return [*rows, *found]


def _build_index(platform: Platform, folder: DatasetFolder) -> None:
    from time import monotonic

    from em_assets.blocks import open as open_volume
    from em_assets.blocks.index import write_index
    from em_assets.catalog.build import build_catalog
    from em_assets.progress import open_reporter

    started, done_before = monotonic(), 0
    with open_reporter(warn, label=folder.title, show=show_progress(platform)) as reporter:

        def progress(done: int, total: int) -> None:
            nonlocal done_before
            if done_before == 0:
                reporter.start(None, total, f"{folder.title} blocks")
            reporter.advance(items=done - done_before)
            done_before = done

        volume = open_volume(folder.title, settings=platform.settings)
        made = write_index(folder, volume, workers=platform.settings.workers, progress=progress)
    if made.was_written:
        build_catalog(platform.specs, platform.store, platform.settings)
        warn(f"{folder.uri(made.path)} is made in {human_seconds(monotonic() - started)}")


def _blocks_catalog(platform: Platform, folder: DatasetFolder) -> Path:
    """The database with this volume's index in it. Raises Unavailable if there is no index."""
    from em_assets.catalog.block_indexes import index_path
    from em_assets.catalog.build import build_catalog

    index = folder.path(index_path(folder.sub))
    if platform.store.size_bytes(index) is None:
        raise Unavailable(
            f"there is no index of {folder.title}'s blocks; `em-assets blocks {folder.title} --build` makes it (it "
            "reads every voxel once)."
        )
    database = fresh_catalog(platform, [folder.name])
    of_it = f"from blocks where name = {quoted(folder.title)} limit 1"
    local = platform.store.local_path(index)
    is_older = local is not None and local.stat().st_mtime_ns >= database.stat().st_mtime_ns
    if is_older or not ask(database, of_it):
        build_catalog(platform.specs, platform.store, platform.settings)
        if not ask(database := fresh_catalog(platform, [folder.name]), of_it):
            raise Malformed(
                f"{folder.uri(index_path(folder.sub))} is not of {folder.title} as it is now; make it anew with "
                f"`em-assets blocks {folder.title} --build`."
            )
    return database


def _tell_summary(summary: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(summary, indent=1))
        return
    for grid in summary["grids"]:
        voxels = f"{shape_text(grid['shape'])} voxels (z, y, x)"
        say(
            f"{summary['name']}: blocks of {voxels}, level {grid['level']}, {voxel_size_text(grid['voxel_size_nm'])} nm"
        )
    say(f"{_blocks(summary['blocks'])}, {_not_whole(summary)}")
    say("")
    rows = [(one["split"], one["blocks"], share_text(one["coverage"])) for one in summary["splits"]]
    print_table(("split", "blocks", "real"), rows, "table")
    say("")
    numbers = [(column, *(_number(value) for value in values)) for column, values in summary["numbers"].items()]
    print_table(("of the blocks", "least", "middle", "most"), numbers, "table")


def _not_whole(summary: Mapping[str, Any]) -> str:
    if not summary["not_whole"]:
        return "wholly real"
    return f"{summary['not_whole']} of them with missing voxels, {summary['without_a_real_voxel']} with no real one"


def _tell_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(list(rows), indent=1))
        return
    shown = [{**row, "split": row["split"] or "margin"} for row in rows]
    cells = [tuple(_number(row[column]) for column in SHOWN_OF_A_BLOCK) for row in shown]
    print_table(SHOWN_OF_A_BLOCK, cells, "table")


def _picture_target(output: Path | None, *, force: bool) -> Path | None:
    """Refuses a place before anything is read for it."""
    if output is None:
        return None
    if output.suffix.lower() != ".png":
        raise typer.BadParameter(f"{output}: a contact sheet is a PNG; give --output a name that ends in .png.")
    require_place(output, force=force)
    return output


def _write_sheet(target: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from em_assets.blocks.sheet import sheet_of
    from em_assets.store import replacing

    volumes = {name: open_volume(name) for name in dict.fromkeys(str(row["name"]) for row in rows)}
    picture = sheet_of([(volumes[str(row["name"])], row) for row in rows])
    with replacing(target) as partial:
        partial.write_bytes(picture)
    warn(f"{target}: {_blocks(len(rows))}, {human_bytes(len(picture))}")


def _blocks(count: int) -> str:
    return f"{count} block{'' if count == 1 else 's'}"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
