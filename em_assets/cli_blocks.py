"""The commands about blocks: read, blocks, geometry, stage, serve. `cli.py` takes them in.

What a block is and how it is asked for is `blocks/` and, word for word the same as over HTTP, `serve/parameters.py`.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from em_assets.cli_catalog import fresh_catalog
from em_assets.cli_shared import FormatOption, JsonOption, Platform, print_table, say, warn
from em_assets.cli_show import ask, quoted
from em_assets.datasets.fields import NAME_PATTERN
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.progress import human_bytes, human_seconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from em_assets.blocks.block import Block
    from em_assets.blocks.volume import Level, Volume
    from em_assets.records import DatasetFolder
    from em_assets.serve.parameters import BlockRequest
    from em_assets.standardize.stage import Request, Staged

block_commands = typer.Typer()

WhereArgument = Annotated[
    str,
    typer.Argument(metavar="NAME|PATH|URL", help="a dataset, NAME/VOLUME of a further volume, or any Zarr or N5"),
]
VolumeArgument = Annotated[
    str, typer.Argument(metavar="NAME[/VOLUME]", help="a dataset, or one of its further volumes")
]
STDOUT = "-"
ENDINGS = (".npy", ".npz", ".tif", ".tiff")
TIFF_DTYPES = ("uint8", "uint16", "float32")
"""That ImageJ knows; others become OME-TIFF."""
SHOWN_BLOCKS = 64
NEAREST = 20
SUMMARIZED = (
    *("coverage", "mean", "std", "p01", "p99", "entropy_bits", "sharpness", "saturation", "zero_fraction"),
    *("label_fraction", "labels"),
)
"""Columns of the index whose range is told."""
SPLITS = ("train", "val", "test", "margin")
SHOWN_OF_A_BLOCK = ("name", "id", "distance", "start_z", "start_y", "start_x", "split", "coverage", "mean", "std")

CONVENTIONS = {
    "centre": "offsets place the centre of each level's first voxel, as OME-Zarr defines it",
    "corner": "offsets place the outer corner of each level's first voxel: they do not move from level to level",
    "scale-only": "nothing is offset: the levels' outer corners are taken to lie at 0, all in one place",
}


# Reading


@block_commands.command(epilog="Example: em-assets read hemibrain_crop --start 512,300,77 --shape 128 -o block.npy")
def read(
    where: WhereArgument,
    *,
    start: Annotated[str | None, typer.Option(metavar="Z,Y,X", help="its first voxel, in the level's")] = None,
    center_nm: Annotated[
        str | None, typer.Option("--center-nm", metavar="Z,Y,X", help="or its middle, in the publisher's nanometres")
    ] = None,
    shape: Annotated[str, typer.Option(metavar="N|Z,Y,X", help="voxels")] = "128",
    level: Annotated[str | None, typer.Option(metavar="N", help="0 is the finest, and what is taken")] = None,
    voxel_size_nm: Annotated[
        str | None,
        typer.Option("--voxel-size-nm", metavar="NM|Z,Y,X", help="with --center-nm: the level that is nearest to it"),
    ] = None,
    resample: Annotated[bool, typer.Option("--resample", help="exactly that voxel size, interpolated")] = False,
    pad: Annotated[str | None, typer.Option(help="what lies outside: constant, edge or reflect")] = None,
    fill: Annotated[str | None, typer.Option(help="the constant [0]")] = None,
    missing: Annotated[
        str | None, typer.Option(help="voxels nobody has: raise (an error), mask (0), fill [raise]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="another pixel type, such as float32")] = None,
    normalize: Annotated[
        str | None, typer.Option(metavar="HOW|A,B", help="range, standard, percentile, or what becomes 0 and 1")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="NAME/VOLUME", help="its labels at the same place; for .npz")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help=".npy, .tif or .npz; - is stdout, as .npy")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace what is there")] = False,
    as_json: JsonOption = False,
) -> None:
    """Reads one block of any volume, by voxel or by nanometre.

    Says where it lies, how much of it is real and its digest, which is the same in Python and over HTTP. A block that
    leaves the volume is refused unless --pad says how, one with missing voxels unless --missing does.
    """
    given = {
        "start": start,
        "center_nm": center_nm,
        "shape": shape,
        "level": level,
        "voxel_size_nm": voxel_size_nm,
        "resample": "true" if resample else None,
        "pad": pad,
        "fill": fill,
        "missing": missing,
        "dtype": dtype,
        "normalize": normalize,
        "labels": labels,
    }
    request = _block_request(given)
    target = _target(output, has_labels=labels is not None, force=force)
    volume = _open(where)
    block = volume.read(
        request.start, center_nm=request.center_nm, shape=request.shape, labels=request.labels, **request.how
    )
    size_bytes = None if target is None else _write_block(block, target)
    tell = warn if target == STDOUT else say
    if as_json:
        tell(json.dumps(_block_facts(volume, block, target, size_bytes), indent=1))
    else:
        for line in _block_lines(volume, block, target, size_bytes):
            tell(line)


def _block_request(given: Mapping[str, str | None]) -> BlockRequest:
    """Read by the service's own rules, so that equal questions are equal on every face."""
    from em_assets.serve.parameters import BadRequest, parse_block

    try:
        return parse_block([(name, text) for name, text in given.items() if text is not None])
    except BadRequest as error:
        raise typer.BadParameter(str(error)) from None


def _open(where: str) -> Volume:
    from em_assets.blocks import open as open_volume

    return open_volume(where)


def _target(output: str | None, *, has_labels: bool, force: bool) -> str | None:
    """Refuses a place before anything is read for it."""
    ending = os.path.splitext(output)[1].lower() if output not in (None, STDOUT) else ".npy"  # noqa: PTH122  # of a str
    if ending not in ENDINGS:
        raise typer.BadParameter(f"{output}: a block is written as .npy, .npz or .tif; give such a name to --output.")
    if has_labels and output is not None and ending != ".npz":
        raise typer.BadParameter("voxels and --labels are two arrays, which .npz alone holds; give --output x.npz.")
    if output in (None, STDOUT):
        return output
    path = Path(str(output))
    if not path.parent.is_dir():
        raise Unavailable(f"{path.parent} is not a folder; make it, or give another --output.")
    if os.path.lexists(path) and not force:
        raise Mismatch(f"{path} is there already; give another --output, or replace it with --force.")
    return output


def _write_block(block: Block, target: str) -> int:
    """Whole under its name, or not at all; its size."""
    if target == STDOUT:
        data = block.npy()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return len(data)
    from em_assets.store import replacing

    path = Path(target)
    with replacing(path) as partial:
        _encode(block, path.suffix.lower(), partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
    return path.stat().st_size


def _encode(block: Block, ending: str, file: Path) -> None:
    if ending == ".npy":
        file.write_bytes(block.npy())
    elif ending == ".npz":
        _encode_npz(block, file)
    else:
        _encode_tiff(block, file)


def _encode_npz(block: Block, file: Path) -> None:
    """`data`; `valid` where not all is real; `labels` and `labels_valid`; `start_nm`, `stop_nm`, `voxel_size_nm`."""
    import numpy as np

    arrays: dict[str, NDArray[Any] | None] = {
        "data": block.data,
        "valid": block.valid,
        "labels": block.labels,
        "labels_valid": block.labels_valid,
        "start_nm": np.array(block.box_nm.start),
        "stop_nm": np.array(block.box_nm.stop),
        "voxel_size_nm": np.array(block.voxel_size_nm),
    }
    with file.open("wb") as opened:
        np.savez(opened, allow_pickle=False, **{name: array for name, array in arrays.items() if array is not None})


def _encode_tiff(block: Block, file: Path) -> None:
    """As ImageJ writes it where ImageJ knows the dtype, with voxels in nanometres; else as OME-TIFF."""
    import tifffile

    name = block.data.dtype.name
    if name in ("uint64", "int64"):
        raise Unsupported(f"TIFF has no {name}, which {block.volume} is; write .npy or .npz.")
    size_z, size_y, size_x = block.voxel_size_nm
    is_imagej = name in TIFF_DTYPES
    spacing = {"axes": "ZYX", "spacing": size_z, "unit": "nm"}
    physical = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", block.voxel_size_nm, strict=True)}
    units = {f"PhysicalSize{axis}Unit": "nm" for axis in "XYZ"}
    tifffile.imwrite(
        file,
        block.data,
        imagej=is_imagej,
        ome=not is_imagej,
        photometric="minisblack",  # or a width of 3 or 4 voxels would be taken for colours
        resolution=(1 / size_x, 1 / size_y) if is_imagej else None,  # pixels in one of ImageJ's own unit
        resolutionunit="NONE" if is_imagej else None,
        metadata=spacing if is_imagej else {"axes": "ZYX", **physical, **units},
    )


def _block_facts(volume: Volume, block: Block, target: str | None, size_bytes: int | None) -> dict[str, Any]:
    return {
        "file": None if target in (None, STDOUT) else str(Path(str(target)).absolute()),
        "size_bytes": size_bytes,
        "volume": block.volume,
        "location": volume.location,
        "level": block.level,
        "start": list(block.box.start),
        "stop": list(block.box.stop),
        "shape": list(block.data.shape),
        "dtype": block.data.dtype.name,
        "start_nm": list(block.box_nm.start),
        "stop_nm": list(block.box_nm.stop),
        "voxel_size_nm": list(block.voxel_size_nm),
        "valid_fraction": block.valid_fraction,
        "digest": block.digest,
        "neuroglancer_url": _link(block),
        "view": _view_command(volume, block),
    }


def _block_lines(volume: Volume, block: Block, target: str | None, size_bytes: int | None) -> Iterator[str]:
    what = f"{_times(block.data.shape)} voxels (z, y, x) of {block.data.dtype.name}"
    if target is None:
        yield f"{what}, not written (-o block.npy does)"
    else:
        place = "stdout" if target == STDOUT else target
        yield f"{place}: {what}, {human_bytes(size_bytes or 0)}"
    yield f"  of      {block.volume}, level {block.level} of 0 to {len(volume.levels) - 1}, voxels {block.box}"
    yield f"  where   {_range_nm(block.box_nm.start, block.box_nm.stop)}"
    yield f"  voxel   {_size(block.voxel_size_nm)}"
    yield f"  real    {_share(block.valid_fraction)} of the voxels"
    yield f"  digest  {block.digest}"
    if (command := _view_command(volume, block)) is not None:
        yield f"  look    {command}"
    if block.valid is not None and target is not None and not target.endswith(".npz"):
        yield "  careful: which voxels are real is not in this file; write .npz, which has a mask"


def _link(block: Block) -> str | None:
    """For --json alone: it fills a screen. None where a browser cannot read the volume."""
    try:
        return block.neuroglancer_url()
    except Unsupported:
        return None


def _view_command(volume: Volume, block: Block) -> str | None:
    """What shows the block on this machine; None for what is no dataset."""
    if not _is_dataset(volume):
        return None
    place = ",".join(f"{nm:.10g}" for nm in block.box_nm.center)
    return f"em-assets view {volume.name} --at {place} --shape {','.join(map(str, block.data.shape))}"


def _is_dataset(volume: Volume) -> bool:
    parts = volume.name.split("/")
    return volume.location == volume.name and all(re.fullmatch(NAME_PATTERN, part) for part in parts)


# The index


@block_commands.command(
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
    platform, folder = _dataset_folder(name)
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
        from em_assets.blocks.index import similar_sql

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


def _dataset_folder(name: str) -> tuple[Platform, DatasetFolder]:
    """Refuses what is no dataset, or no volume of it."""
    dataset, slash, sub = name.partition("/")
    platform = Platform.read(dataset)
    platform.require(dataset)
    folder = platform.folder(dataset)
    if not slash:
        return platform, folder
    record = folder.read_record()
    known = [] if record is None else list(record.volumes)
    if sub not in known:
        has = f"it has {', '.join(known)}" if known else "it has none that is stored"
        raise typer.BadParameter(f"{dataset} has no further volume {sub!r}; {has}.")
    return platform, folder.further(sub)


def _build_index(platform: Platform, folder: DatasetFolder) -> None:
    from time import monotonic

    from em_assets.blocks import open as open_volume
    from em_assets.blocks.index import write_index
    from em_assets.catalog.build import build_catalog
    from em_assets.progress import open_reporter

    started, done_before = monotonic(), 0
    with open_reporter(warn, label=folder.title, show=_show_progress(platform)) as reporter:

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


def _show_progress(platform: Platform) -> Literal["bar", "off"]:
    is_watched = sys.stderr is not None and sys.stderr.isatty() and platform.settings.progress != "off"
    return "bar" if is_watched else "off"


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
        voxels = f"{_times(grid['shape'])} voxels (z, y, x)"
        say(f"{summary['name']}: blocks of {voxels}, level {grid['level']}, {_size(grid['voxel_size_nm'])}")
    say(f"{_blocks(summary['blocks'])}, {_not_whole(summary)}")
    say("")
    rows = [(one["split"], one["blocks"], _share(one["coverage"])) for one in summary["splits"]]
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
    if not output.parent.is_dir():
        raise Unavailable(f"{output.parent} is not a folder; make it, or give another --output.")
    if os.path.lexists(output) and not force:
        raise Mismatch(f"{output} is there already; give another --output, or replace it with --force.")
    return output


def _write_sheet(target: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from em_assets.blocks.sheet import sheet_of
    from em_assets.store import replacing

    volumes = {name: _open(name) for name in dict.fromkeys(str(row["name"]) for row in rows)}
    picture = sheet_of([(volumes[str(row["name"])], row) for row in rows])
    with replacing(target) as partial:
        partial.write_bytes(picture)
    warn(f"{target}: {_blocks(len(rows))}, {human_bytes(len(picture))}")


# Where voxels lie


@block_commands.command(epilog="Example: em-assets geometry hemibrain_crop --at 8000,16000,12000")
def geometry(
    where: WhereArgument,
    at: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="a place in nanometres; the middle unless told")
    ] = None,
    form: FormatOption = "table",
) -> None:
    """Where a volume's voxels lie, level by level, in nanometres.

    Shape, voxel size, outer corner, centre of the first voxel, extent, and which voxel holds a place. And what the
    publisher's offsets mean, how that was found out, and how they were converted.
    """
    volume = _open(where)
    place = volume.box_nm.center if at is None else _place_nm(at)
    rows = [_geometry_row(level, place) for level in volume.levels]
    if form != "table":
        print_table(list(rows[0]), [tuple(row.values()) for row in rows], form)
        return
    say(f"{volume.name}: {volume.content} of {volume.dtype.name} at {volume.location}")
    for line in _convention_lines(volume, where):
        say(line)
    say("")
    columns = ("level", "shape (z, y, x)", "voxel nm", "corner nm", "first centre nm", "extent nm", "holds the place")
    print_table(columns, [_geometry_cells(level, place) for level in volume.levels], "table")
    say(f"the place: {', '.join(map(_nm, place))} nm (z, y, x){'' if at else ', the middle'}")


def _place_nm(text: str) -> tuple[float, float, float]:
    from em_assets.serve.parameters import BadRequest, parse_nm3

    try:
        return parse_nm3("at", text)
    except BadRequest as error:
        raise typer.BadParameter(str(error)) from None


def _geometry_row(level: Level, place: tuple[float, float, float]) -> dict[str, Any]:
    grid = level.grid
    extent = grid.box_nm(grid.box)
    return {
        "level": level.number,
        "shape": list(grid.shape),
        "voxel_size_nm": list(grid.voxel_size_nm),
        "corner_nm": list(extent.start),
        "first_centre_nm": list(grid.center_nm((0, 0, 0))),
        "stop_nm": list(extent.stop),
        "chunk": list(level.chunk),
        "voxel_at_place": list(grid.voxel_at(place)),
    }


def _geometry_cells(level: Level, place: tuple[float, float, float]) -> tuple[str, ...]:
    grid = level.grid
    voxel = grid.voxel_at(place)
    is_inside = all(0 <= at < n for at, n in zip(voxel, grid.shape, strict=True))
    return (
        str(level.number),
        _times(grid.shape),
        _exact(grid.voxel_size_nm),
        ", ".join(map(_nm, grid.corner_nm)),
        ", ".join(map(_nm, grid.center_nm((0, 0, 0)))),
        " x ".join(map(_nm, grid.box_nm(grid.box).shape)),
        ", ".join(map(str, voxel)) if is_inside else "outside",
    )


def _convention_lines(volume: Volume, where: str) -> Iterator[str]:
    why = CONVENTIONS[volume.convention]
    if volume.convention == "centre" and len(volume.levels) == 1:
        why += "; of one level alone that cannot be told, so the definition holds"
    elif volume.convention == "centre":
        why += "; from level to level they move, as centres do"
    yield f"  convention  {volume.convention}: {why}"
    yield "  here        half-open boxes from outer corners: corner = first centre - voxel size / 2"
    yield from _conversion_lines(volume, where)


def _conversion_lines(volume: Volume, where: str) -> Iterator[str]:
    """Of a dataset: how its place in the publisher's frame came about."""
    dataset, _, sub = where.partition("/")
    if not _is_dataset(volume):
        return
    platform = Platform.read(dataset)
    spec = platform.specs.get(dataset)
    if spec is not None:
        yield f"  published   {PUBLISHED.get(spec.source.kind, spec.source.kind)}"
    record = platform.folder(dataset).read_record()
    described = record if not sub or record is None else record.volumes.get(sub)
    if described is None or described.source_box is None or described.voxel_size_nm is None:
        return
    corner = described.corner_nm or (0.0, 0.0, 0.0)
    sums = (
        f"{_nm(c)} + {o} x {_exact([s])}"
        for c, o, s in zip(corner, described.source_box.start, described.voxel_size_nm, strict=True)
    )
    yield f"  crop        first voxel is the publisher's {described.source_box.start}: corner = {', '.join(sums)} nm"


PUBLISHED = {
    "precomputed": "Neuroglancer precomputed, whose voxel_offset counts voxels from a corner",
    "zarr": "Zarr; its own offsets were read by the same three conventions",
    "n5": "N5; its own offsets were read by the same three conventions",
    "files": "files, which state no place: the corner of their first voxel is 0",
}
"""What each kind of source says of places."""


# A faster copy


@block_commands.command(epilog="Example: em-assets stage hemibrain_crop --codec none")
def stage(
    name: VolumeArgument,
    *,
    codec: Annotated[Literal["none", "zstd"], typer.Option(help="none is read by mapping it into memory")] = "none",
    chunk: Annotated[
        str | None, typer.Option(metavar="N|Z,Y,X", help="inside shards; unless told up to 256 (none), 32 (zstd)")
    ] = None,
    level: Annotated[Literal["all", "0"], typer.Option(help="0: levels above stay as they are stored")] = "all",
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="a disk of your own; by default beside the volume")
    ] = None,
) -> None:
    """Makes a copy of a volume that is read faster.

    Uncompressed, so that nothing is decoded. Real FIB-SEM compresses only 1.2 times (zstd 1): the copy, which lies
    beside the volume, is a fifth larger, and blocks are read from it three to seven times faster. Small volumes, and
    ends of volumes, are filled up to whole chunks. `em-assets` and `em_assets.blocks.open(NAME)` then use it by
    themselves, as long as it is of what is stored now; `em-assets rm` removes it with the dataset, `du` counts it.

    Other programs read whole chunks: for them, add --chunk 64. With --codec zstd the copy stays compressed, in smaller
    chunks, of which less is decoded for a block that lies across them. Interrupt it at any moment and run it again: it
    goes on where it stopped.
    """
    from em_assets.pipeline import dataset_lock
    from em_assets.progress import open_reporter
    from em_assets.standardize.stage import stage_volume

    platform, folder = _dataset_folder(name)
    platform.refuse_if_written(folder.name)
    request = _stage_request(codec, chunk, level)
    target = None if to is None else to / f"{folder.title.replace('/', '.')}.ome.zarr"

    def refuse_to_wait(_: str) -> None:
        raise Mismatch(f"{folder.name} is being written by another process; stop it first, or wait for its end.")

    with (
        dataset_lock(platform.store, folder.name, refuse_to_wait),
        open_reporter(warn, label=folder.title, show=_show_progress(platform)) as reporter,
    ):
        staged = stage_volume(folder, request, to=target, workers=platform.settings.workers, reporter=reporter)
    for line in _staged_lines(name, staged, codec):
        say(line)


def _stage_request(codec: Literal["none", "zstd"], chunk: str | None, level: str) -> Request:
    from em_assets.serve.parameters import BadRequest, parse_shape
    from em_assets.standardize.stage import Request

    try:
        wanted = None if chunk is None else parse_shape("chunk", chunk)
    except BadRequest as error:
        raise typer.BadParameter(str(error)) from None
    return Request(codec=codec, chunk=wanted, only_level_0=level == "0")


def _staged_lines(name: str, staged: Staged, codec: str) -> Iterator[str]:
    how = "is there already" if staged.was_there else "is made"
    kept = f"; {staged.kept} shards of it were there" if staged.kept else ""
    yield f"{staged.path} {how}{kept}"
    stored = human_bytes(staged.stored_bytes)
    more = staged.size_bytes / max(staged.stored_bytes, 1)
    yield f"  size    {human_bytes(staged.size_bytes)}, {more:.2f} times the volume's {stored}"
    yield f"  chunks  {_times(staged.chunk)} voxels at level 0, {'uncompressed' if codec == 'none' else codec}"
    yield f"  digest  {staged.sha256}"
    if staged.coverage is None:
        yield f'  use     em_assets.blocks.open("{name}") takes it by itself'
    else:
        yield f"  real    which voxels are, says {staged.coverage}"
        yield f'  use     em_assets.blocks.open("{staged.path}")'


# Over HTTP


@block_commands.command(epilog="Example: em-assets serve --port 8080")
def serve(
    host: Annotated[str, typer.Option(help="0.0.0.0 lets the whole network read")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 8080,
    origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", help="of pages elsewhere that may read answers; * is any")
    ] = None,
    max_voxels: Annotated[int | None, typer.Option(min=1, max=2**33, help="of one block [256^3]")] = None,
    max_requests: Annotated[int | None, typer.Option(min=1, max=10_000, help="under way at once [64]")] = None,
) -> None:
    """Serves blocks, volumes and the viewer over HTTP, read-only.

    GET /v1/datasets lists them, /v1/datasets/NAME/block?start=z,y,x&shape=128 gives a block as .npy, /openapi.json says
    all. Only this machine may ask unless --host says otherwise: there is no password. Ctrl-C ends it.
    """
    import dataclasses

    from em_assets.serve import Limits
    from em_assets.serve import serve as serve_blocks

    wanted = {"voxels": max_voxels, "requests": max_requests}
    limits = dataclasses.replace(Limits(), **{name: value for name, value in wanted.items() if value is not None})
    serve_blocks(
        host=host, port=port, limits=limits, cors_origins=origin or (), say=lambda line: say(line, at_once=True)
    )


# Words


def _times(numbers: Iterable[int]) -> str:
    return " x ".join(map(str, numbers))


def _nm(value: float) -> str:
    """Every digit that a place needs, none that a float adds."""
    return f"{value:.12g}"


def _size(voxel_size_nm: Sequence[float]) -> str:
    return f"{_exact(voxel_size_nm)} nm"


def _exact(voxel_size_nm: Sequence[float]) -> str:
    """With every digit: 7.998250424861908 is a real voxel size."""
    return " x ".join(str(size).removesuffix(".0") for size in voxel_size_nm)


def _range_nm(start: Sequence[float], stop: Sequence[float]) -> str:
    return ", ".join(f"{_nm(a)}:{_nm(b)}" for a, b in zip(start, stop, strict=True)) + " nm (z, y, x)"


def _share(fraction: float) -> str:
    """Never 100 % of what is not all, nor 0 % of what is something."""
    if fraction in (0, 1):
        return f"{fraction:.0%}".replace("%", " %")
    return (
        f"{min(max(fraction * 100, 0.001), 99.999):.3g} %"
        if fraction < 0.999
        else f"{math.floor(fraction * 1e5) / 1e3:.3f} %"
    )


def _blocks(count: int) -> str:
    return f"{count} block{'' if count == 1 else 's'}"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
