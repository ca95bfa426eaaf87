"""`em-assets read`: one block of any volume, described or written to a file. `cli_blocks.py` takes it in.

How a block is asked for is, word for word the same as over HTTP, `serve/parameters.py`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_assets.cli_blocks_shared import (
    ChannelOption,
    TimeOption,
    WhereArgument,
    as_option,
    is_dataset,
    open_volume,
    range_nm_text,
    require_place,
    shape_text,
    share_text,
    voxel_size_text,
)
from em_assets.cli_shared import JsonOption, Platform, say, warn
from em_assets.errors import Unsupported
from em_assets.progress import human_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from em_assets.blocks.block import Block
    from em_assets.blocks.volume import Volume
    from em_assets.serve.parameters import BlockRequest

read_commands = typer.Typer()

STDOUT = "-"
ENDINGS = (".npy", ".npz", ".tif", ".tiff")
TIFF_DTYPES = ("uint8", "uint16", "float32")
"""That ImageJ knows; others become OME-TIFF."""


@read_commands.command(epilog="Example: em-assets read hemibrain_crop --start 512,300,77 --shape 128 -o block.npy")
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
    channel: ChannelOption = None,
    time: TimeOption = None,
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
    volume = open_volume(where, channel, time)
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
    from em_assets.serve.parameters import parse_block

    with as_option():
        return parse_block([(name, text) for name, text in given.items() if text is not None])


def _target(output: str | None, *, has_labels: bool, force: bool) -> str | None:
    """Refuses a place before anything is read for it."""
    ending = os.path.splitext(output)[1].lower() if output not in (None, STDOUT) else ".npy"  # noqa: PTH122  # of a str
    if ending not in ENDINGS:
        raise typer.BadParameter(f"{output}: a block is written as .npy, .npz or .tif; give such a name to --output.")
    if has_labels and output is not None and ending != ".npz":
        raise typer.BadParameter("voxels and --labels are two arrays, which .npz alone holds; give --output x.npz.")
    if output not in (None, STDOUT):
        require_place(Path(str(output)), force=force)
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
    if name in ("uint64", "int64", "float16"):
        raise Unsupported(f"OME-TIFF has no {name}, which {block.volume} is; write .npy or .npz, or give --dtype.")
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
    what = f"{shape_text(block.data.shape)} voxels (z, y, x) of {block.data.dtype.name}"
    if target is None:
        yield f"{what}, not written (-o block.npy does)"
    else:
        place = "stdout" if target == STDOUT else target
        yield f"{place}: {what}, {human_bytes(size_bytes or 0)}"
    yield f"  of      {block.volume}, level {block.level} of 0 to {len(volume.levels) - 1}, voxels {block.box}"
    yield f"  where   {range_nm_text(block.box_nm.start, block.box_nm.stop)}"
    yield f"  voxel   {voxel_size_text(block.voxel_size_nm)} nm"
    yield f"  real    {share_text(block.valid_fraction)} of the voxels"
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
    """What shows the block on this machine; None for what is no dataset, or is published in files and not stored."""
    from em_assets.viewer import can_view

    if not is_dataset(volume):
        return None
    dataset, _, sub = volume.name.partition("/")
    platform = Platform.read(dataset)
    if not can_view(platform.folder(dataset).further(sub or None), platform.specs.get(dataset)):
        return None
    place = ",".join(f"{nm:.10g}" for nm in block.box_nm.center)
    return f"em-assets view {volume.name} --at {place} --shape {','.join(map(str, block.data.shape))}"
