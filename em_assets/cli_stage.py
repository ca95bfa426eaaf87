"""`em-assets stage`: a copy of a volume that is read faster (`standardize/stage.py`). `cli_blocks.py` takes it in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from em_assets.cli_blocks_shared import VolumeArgument, as_option, dataset_folder, shape_text, show_progress
from em_assets.cli_shared import say, warn
from em_assets.errors import Mismatch
from em_assets.progress import human_bytes

if TYPE_CHECKING:
    from em_assets.standardize.stage import Staged
    from em_assets.standardize.stage_plan import Request

stage_commands = typer.Typer()


@stage_commands.command(epilog="Example: em-assets stage hemibrain_crop --codec none")
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

    platform, folder = dataset_folder(name)
    platform.refuse_if_written(folder.name)
    request = _stage_request(codec, chunk, level)
    target = None if to is None else to / f"{folder.title.replace('/', '.')}.ome.zarr"

    def refuse_to_wait(_: str) -> None:
        raise Mismatch(f"{folder.name} is being written by another process; stop it first, or wait for its end.")

    with (
        dataset_lock(platform.store, folder.name, refuse_to_wait),
        open_reporter(warn, label=folder.title, show=show_progress(platform)) as reporter,
    ):
        staged = stage_volume(folder, request, to=target, workers=platform.settings.workers, reporter=reporter)
    for line in _staged_lines(name, staged, codec):
        say(line)


def _stage_request(codec: Literal["none", "zstd"], chunk: str | None, level: str) -> Request:
    from em_assets.serve.parameters import parse_shape
    from em_assets.standardize.stage_plan import Request

    with as_option():
        wanted = None if chunk is None else parse_shape("chunk", chunk)
    return Request(codec=codec, chunk=wanted, only_level_0=level == "0")


def _staged_lines(name: str, staged: Staged, codec: str) -> Iterator[str]:
    how = "is there already" if staged.was_there else "is made"
    kept = f"; {staged.kept} shards of it were there" if staged.kept else ""
    yield f"{staged.path} {how}{kept}"
    stored = human_bytes(staged.stored_bytes)
    more = staged.size_bytes / max(staged.stored_bytes, 1)
    yield f"  size    {human_bytes(staged.size_bytes)}, {more:.2f} times the volume's {stored}"
    yield f"  chunks  {shape_text(staged.chunk)} voxels at level 0, {'uncompressed' if codec == 'none' else codec}"
    yield f"  digest  {staged.sha256}"
    if staged.coverage is None:
        yield f'  use     em_assets.blocks.open("{name}") takes it by itself'
    else:
        yield f"  real    which voxels are, says {staged.coverage}"
        yield f'  use     em_assets.blocks.open("{staged.path}")'
