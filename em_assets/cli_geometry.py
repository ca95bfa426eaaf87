"""`em-assets geometry`: where a volume's voxels lie, and how that is known. `cli_blocks.py` takes it in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_assets.cli_blocks_shared import (
    ChannelOption,
    TimeOption,
    WhereArgument,
    as_option,
    is_dataset,
    nm_text,
    open_volume,
    shape_text,
    voxel_size_text,
)
from em_assets.cli_shared import FormatOption, Platform, print_table, say

if TYPE_CHECKING:
    from em_assets.blocks.volume import Level, Volume

geometry_commands = typer.Typer()

CONVENTIONS = {
    "centre": "offsets place the centre of each level's first voxel, as OME-Zarr defines it",
    "corner": "offsets place the outer corner of each level's first voxel: they do not move from level to level",
    "scale-only": "nothing is offset: the levels' outer corners are taken to lie at 0, all in one place",
}
PUBLISHED = {
    "precomputed": "Neuroglancer precomputed, whose voxel_offset counts voxels from a corner",
    "zarr": "Zarr; its own offsets were read by the same three conventions",
    "n5": "N5; its own offsets were read by the same three conventions",
    "files": "files, which state no place: the corner of their first voxel is 0",
}
"""What each kind of source says of places."""


@geometry_commands.command(epilog="Example: em-assets geometry hemibrain_crop --at 8000,16000,12000")
def geometry(
    where: WhereArgument,
    at: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="a place in nanometres; the middle unless told")
    ] = None,
    channel: ChannelOption = None,
    time: TimeOption = None,
    form: FormatOption = "table",
) -> None:
    """Where a volume's voxels lie, level by level, in nanometres.

    Shape, voxel size, outer corner, centre of the first voxel, extent, and which voxel holds a place. And what the
    publisher's offsets mean, how that was found out, and how they were converted. And which channels there are: all lie
    in the same place.
    """
    volume = _open_any_part(where, channel, time)
    place = volume.box_nm.center if at is None else _place_nm(at)
    rows = [_geometry_row(level, place) for level in volume.levels]
    if form != "table":
        print_table(list(rows[0]), [tuple(row.values()) for row in rows], form)
        return
    say(f"{volume.name}: {volume.content} of {volume.dtype.name} at {volume.location}")
    for line in (*_part_lines(volume), *_convention_lines(volume)):
        say(line)
    say("")
    columns = ("level", "shape (z, y, x)", "voxel nm", "corner nm", "first centre nm", "extent nm", "holds the place")
    print_table(columns, [_geometry_cells(level, place) for level in volume.levels], "table")
    say(f"the place: {', '.join(map(nm_text, place))} nm (z, y, x){'' if at else ', the middle'}")


def _open_any_part(where: str, channel: str | None, time: int | None) -> Volume:
    """The first channel and point in time, where there are several and none is named."""
    from em_assets.blocks._choice import Unchosen

    try:
        return open_volume(where, channel, time)
    except Unchosen:
        return open_volume(where, 0 if channel is None else channel, time or 0)


def _part_lines(volume: Volume) -> Iterator[str]:
    from em_assets.blocks._choice import channel_text

    part = volume.part
    if part is not None and len(part.channels) > 1:
        yield f"  channels    {', '.join(channel_text(*one) for one in enumerate(part.channels))}; one is a volume"
    if part is not None and part.times > 1:
        yield f"  times       {part.times}, 0 to {part.times - 1}; one is a volume"


def _place_nm(text: str) -> tuple[float, float, float]:
    from em_assets.serve.parameters import parse_nm3

    with as_option():
        return parse_nm3("at", text)


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
        shape_text(grid.shape),
        voxel_size_text(grid.voxel_size_nm),
        ", ".join(map(nm_text, grid.corner_nm)),
        ", ".join(map(nm_text, grid.center_nm((0, 0, 0)))),
        " x ".join(map(nm_text, grid.box_nm(grid.box).shape)),
        ", ".join(map(str, voxel)) if is_inside else "outside",
    )


def _convention_lines(volume: Volume) -> Iterator[str]:
    why = CONVENTIONS[volume.convention]
    if volume.convention == "centre" and len(volume.levels) == 1:
        why += "; of one level alone that cannot be told, so the definition holds"
    elif volume.convention == "centre":
        why += "; from level to level they move, as centres do"
    yield f"  convention  {volume.convention}: {why}"
    yield "  here        half-open boxes from outer corners: corner = first centre - voxel size / 2"
    yield from _conversion_lines(volume)


def _conversion_lines(volume: Volume) -> Iterator[str]:
    """Of a dataset: how its place in the publisher's frame came about."""
    if not is_dataset(volume):
        return
    dataset, _, sub = volume.name.partition("/")
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
        f"{nm_text(c)} + {o} x {voxel_size_text([s])}"
        for c, o, s in zip(corner, described.source_box.start, described.voxel_size_nm, strict=True)
    )
    yield f"  crop        first voxel is the publisher's {described.source_box.start}: corner = {', '.join(sums)} nm"
