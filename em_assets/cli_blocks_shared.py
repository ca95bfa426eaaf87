"""What the commands about blocks share: the volume that is meant, the service's rules, words for places and sizes."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from em_assets.cli_shared import Platform
from em_assets.datasets.fields import NAME_PATTERN
from em_assets.errors import Mismatch, Unavailable

if TYPE_CHECKING:
    from em_assets.blocks.volume import Volume
    from em_assets.records import DatasetFolder

WhereArgument = Annotated[
    str,
    typer.Argument(metavar="NAME|PATH|URL", help="a dataset, NAME/VOLUME of a further volume, or any Zarr or N5"),
]
VolumeArgument = Annotated[
    str, typer.Argument(metavar="NAME[/VOLUME]", help="a dataset, or one of its further volumes")
]


ChannelOption = Annotated[
    str | None, typer.Option(metavar="N|NAME", help="which one, of an address that has several channels")
]
TimeOption = Annotated[
    int | None, typer.Option(metavar="N", help="which point in time, of an address that has several")
]


def open_volume(where: str, channel: int | str | None = None, time: int | None = None) -> Volume:
    from em_assets.blocks import open as open_any

    return open_any(where, channel=channel, time=time)


def is_dataset(volume: Volume) -> bool:
    parts = volume.name.split("/")
    return volume.location == volume.name and all(re.fullmatch(NAME_PATTERN, part) for part in parts)


def dataset_folder(name: str) -> tuple[Platform, DatasetFolder]:
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


def show_progress(platform: Platform) -> Literal["bar", "off"]:
    is_watched = sys.stderr is not None and sys.stderr.isatty() and platform.settings.progress != "off"
    return "bar" if is_watched else "off"


def require_place(file: Path, *, force: bool) -> None:
    """Refuses a place to write to, before anything is read for it."""
    if not file.parent.is_dir():
        raise Unavailable(f"{file.parent} is not a folder; make it, or give another --output.")
    if os.path.lexists(file) and not force:
        raise Mismatch(f"{file} is there already; give another --output, or replace it with --force.")


@contextlib.contextmanager
def as_option() -> Iterator[None]:
    """What the service would refuse is, here, a wrong command line."""
    from em_assets.serve.parameters import BadRequest

    try:
        yield
    except BadRequest as error:
        raise typer.BadParameter(str(error)) from None


# Words


def shape_text(numbers: Iterable[int]) -> str:
    return " x ".join(map(str, numbers))


def nm_text(value: float) -> str:
    """Every digit that a place needs, none that a float adds."""
    return f"{value:.12g}"


def voxel_size_text(voxel_size_nm: Sequence[float]) -> str:
    """With every digit: 7.998250424861908 is a real voxel size."""
    return " x ".join(str(size).removesuffix(".0") for size in voxel_size_nm)


def range_nm_text(start: Sequence[float], stop: Sequence[float]) -> str:
    return ", ".join(f"{nm_text(a)}:{nm_text(b)}" for a, b in zip(start, stop, strict=True)) + " nm (z, y, x)"


def share_text(fraction: float) -> str:
    """Never 100 % of what is not all, nor 0 % of what is something."""
    if fraction in (0, 1):
        return f"{fraction:.0%}".replace("%", " %")
    return (
        f"{min(max(fraction * 100, 0.001), 99.999):.3g} %"
        if fraction < 0.999
        else f"{math.floor(fraction * 1e5) / 1e3:.3f} %"
    )
