"""The command line of `em-assets add`: one command per publisher, each with the options that it needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from em_assets.errors import EmAssetsError, Mismatch
from em_assets.settings import read_settings

if TYPE_CHECKING:
    from em_assets.adding.draft import Draft
    from em_assets.adding.volume import Wishes
    from em_assets.volume import VoxelSize

T = TypeVar("T")
PROCESSINGS = ("raw", "denoised", "filtered")
PORTAL_LEVELS = (("100%", "100", "0"), ("50%", "50", "1"), ("25%", "25", "2"))
"""Of the CryoET Data Portal's OME-Zarr: how a person may call each."""
NUMBER = r"-?\d+(?:\.\d+)?"

NameOption = Annotated[str | None, typer.Option("--name", help="of the dataset; default: made from what it is")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", help="folder; default: the last of EM_ASSETS_DATASETS, else ./datasets")
]
ForceOption = Annotated[bool, typer.Option("--force", help="replace a spec of this name")]
BoxOption = Annotated[
    str | None, typer.Option("--box", metavar="Z:Z,Y:Y,X:X", help="this part only, in the publisher's voxels")
]
BoxNmOption = Annotated[
    str | None, typer.Option("--box-nm", metavar="Z:Z,Y:Y,X:X", help="this part only, in nanometres")
]
VoxelSizeOption = Annotated[
    str | None, typer.Option("--voxel-size-nm", metavar="Z,Y,X", help="where the publisher states none")
]
LabelsOption = Annotated[bool, typer.Option("--labels", help="it is a segmentation: never averaged")]
LevelOption = Annotated[str, typer.Option("--level", help="which of the published levels; 0 is the finest")]
GroupOption = Annotated[str, typer.Option("--group", help="path of the image group inside the container")]
ServerOption = Annotated[
    str | None, typer.Option("--server", help="another server of the same paths: a mirror, the sample")
]

add_app = typer.Typer(
    rich_markup_mode=None, help="Writes the spec of a further dataset, from what its publisher states."
)


@add_app.command("empiar", epilog="Example: em-assets add empiar 13192 --max-files 100 --voxel-size-nm 65,65,65")
def add_empiar(
    accession: Annotated[str, typer.Argument(metavar="ID", help="13192 or EMPIAR-13192")],
    *,
    imageset: Annotated[
        str | None, typer.Option("--imageset", help="its number or name, where there are several")
    ] = None,
    files: Annotated[str | None, typer.Option("--files", metavar="PATTERN", help="such as 'slice_*.tif'")] = None,
    max_files: Annotated[int | None, typer.Option("--max-files", min=1, max=1000, help="the first so many")] = None,
    box: BoxOption = None,
    voxel_size_nm: VoxelSizeOption = None,
    labels: LabelsOption = False,
    name: NameOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    server: ServerOption = None,
) -> None:
    """An image set of an EMPIAR entry.

    From the entry's API, the folder's listing and the files' own headers; where these contradict, the files win.
    """
    from em_assets.adding.empiar import Choice, draft_empiar

    choice, wishes = Choice(imageset, files, max_files), _wishes(box, None, voxel_size_nm, labels=labels)
    draft = draft_empiar(accession, choice, wishes, read_settings(), server=_server(server))
    _write(draft, name, output, force=force)


@add_app.command("idr", epilog="Example: em-assets add idr 9846137 --file https://ftp.ebi.ac.uk/.../xy.tif")
def add_idr(
    image: Annotated[int, typer.Argument(metavar="ID", min=1, help="of the image")],
    *,
    file: Annotated[str | None, typer.Option("--file", metavar="URL", help="where its file lies")] = None,
    zarr: Annotated[str | None, typer.Option("--zarr", metavar="URL", help="or where its OME-Zarr lies")] = None,
    level: LevelOption = "0",
    box: BoxOption = None,
    voxel_size_nm: VoxelSizeOption = None,
    labels: LabelsOption = False,
    name: NameOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    server: ServerOption = None,
) -> None:
    """An image of the IDR.

    Its replies do not say where the file lies: without --file or --zarr that is left for a person.
    """
    from em_assets.adding.idr import SERVER, draft_idr

    wishes = _wishes(box, None, voxel_size_nm, labels=labels)
    place = _server(server) or SERVER
    draft = draft_idr(image, wishes, read_settings(), file=file, zarr=zarr, level=_level(level), server=place)
    _write(draft, name, output, force=force)


@add_app.command("openorganelle", epilog="Example: em-assets add openorganelle jrc_hela-2 --level 3")
def add_openorganelle(
    dataset: Annotated[str, typer.Argument(metavar="NAME", help="as openorganelle.janelia.org names it")],
    *,
    group: Annotated[str | None, typer.Option("--group", help="where there are several image groups")] = None,
    level: LevelOption = "0",
    box: BoxOption = None,
    box_nm: BoxNmOption = None,
    name: NameOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    server: ServerOption = None,
) -> None:
    """An image of an OpenOrganelle dataset.

    From its folder in the public bucket.
    """
    from em_assets.adding.openorganelle import draft_openorganelle

    wishes = _wishes(box, box_nm, None, labels=False)
    draft = draft_openorganelle(
        dataset, wishes, read_settings(), group=group, level=_level(level), endpoint=_server(server)
    )
    _write(draft, name, output, force=force)


@add_app.command("precomputed", epilog="Example: em-assets add precomputed gs://bucket/image --level 4")
def add_precomputed(
    url: Annotated[str, typer.Argument(metavar="URL", help="the folder that holds `info`")],
    *,
    level: Annotated[int, typer.Option("--level", min=0, max=63, help="which scale; 0 is the finest")] = 0,
    box: BoxOption = None,
    box_nm: BoxNmOption = None,
    labels: LabelsOption = False,
    name: NameOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """A Neuroglancer precomputed volume."""
    from em_assets.adding.chunked import draft_precomputed

    draft = draft_precomputed(url, level, _wishes(box, box_nm, None, labels=labels), read_settings())
    _write(draft, name, output, force=force)


@add_app.command("zarr", epilog="Example: em-assets add zarr https://host/image.zarr --box 0:100,0:500,0:500")
def add_zarr(
    url: Annotated[str, typer.Argument(metavar="URL", help="the container: https, http, s3 or gs")],
    *,
    group: GroupOption = "",
    level: LevelOption = "0",
    box: BoxOption = None,
    box_nm: BoxNmOption = None,
    voxel_size_nm: VoxelSizeOption = None,
    labels: LabelsOption = False,
    name: NameOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    server: ServerOption = None,
) -> None:
    """A Zarr or OME-Zarr volume."""
    from em_assets.adding.chunked import draft_chunked

    wishes = _wishes(box, box_nm, voxel_size_nm, labels=labels)
    place = _server(server)
    draft = draft_chunked("zarr", url, wishes, read_settings(), group=group, level=_level(level), endpoint=place)
    _write(draft, name, output, force=force)


@add_app.command("n5", epilog="Example: em-assets add n5 s3://bucket/image.n5 --group em/fibsem-uint16 --level 3")
def add_n5(
    url: Annotated[str, typer.Argument(metavar="URL", help="the container: https, http, s3 or gs")],
    *,
    group: GroupOption = "",
    level: LevelOption = "0",
    box: BoxOption = None,
    box_nm: BoxNmOption = None,
    voxel_size_nm: VoxelSizeOption = None,
    labels: LabelsOption = False,
    name: NameOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    server: ServerOption = None,
) -> None:
    """An N5 volume."""
    from em_assets.adding.chunked import draft_chunked

    wishes = _wishes(box, box_nm, voxel_size_nm, labels=labels)
    place = _server(server)
    draft = draft_chunked("n5", url, wishes, read_settings(), group=group, level=_level(level), endpoint=place)
    _write(draft, name, output, force=force)


@add_app.command("cryoet", epilog="Example: em-assets add cryoet 10000/TS_026 --level 50% --annotations 'ribosome*'")
def add_cryoet(
    target: Annotated[
        str | None, typer.Argument(metavar="DATASET/RUN", help="10000/TS_026; or 10000, with --runs")
    ] = None,
    *,
    runs: Annotated[str | None, typer.Option("--runs", metavar="PATTERN", help="a spec for each: 'TS_*'")] = None,
    tomogram: Annotated[
        int | None, typer.Option("--tomogram", metavar="ID", min=1, help="the portal's id, in place of DATASET/RUN")
    ] = None,
    form: Annotated[str, typer.Option("--form", metavar="zarr|mrc", help="which of the published forms")] = "zarr",
    level: Annotated[
        str | None, typer.Option("--level", help="of the zarr: 100%, 50% or 25%, or 0, 1, 2  [25%]")
    ] = None,
    voxel_spacing: Annotated[
        float | None, typer.Option("--voxel-spacing", metavar="ANGSTROM", help="where there are several")
    ] = None,
    processing: Annotated[
        str | None, typer.Option("--processing", help="raw, denoised or filtered, where there are several")
    ] = None,
    every: Annotated[bool, typer.Option("--every", help="where a run has several that fit: a spec for each")] = False,
    annotations: Annotated[
        str | None, typer.Option("--annotations", metavar="PATTERN", help="masks and points of such objects, too: '*'")
    ] = None,
    api: Annotated[str | None, typer.Option("--api", metavar="URL", help="the portal's GraphQL")] = None,
    name: NameOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    server: ServerOption = None,
) -> None:
    """A tomogram of the CryoET Data Portal.

    From its API, and the header of the form that is asked for; the other form may differ.
    """
    from em_assets.adding.cryoet import Choice, draft_cryoet, every_choice, portal_client, run_of_tomogram, wanted_runs

    if (target is None) == (tomogram is None):
        raise typer.BadParameter("give either DATASET/RUN, as in 10000/TS_026, or --tomogram ID.")
    choice = Choice(
        form="mrc" if _one_of("--form", form, ("zarr", "mrc")) == "mrc" else "zarr",
        level=_portal_level(level, form),
        annotations=annotations,
        tomogram=tomogram,
        voxel_spacing_angstrom=voxel_spacing,
        processing=None if processing is None else _one_of("--processing", processing, PROCESSINGS),
        endpoint=_server(server),
    )
    settings = read_settings()
    portal = portal_client(_server(api), settings)
    refused: list[EmAssetsError] = []
    lenient = portal_client(_server(api), settings, refused.append)
    wanted = [run_of_tomogram(portal, tomogram)] if tomogram is not None else wanted_runs(lenient, target or "", runs)
    drafts = {
        f"{dataset}/{run}" + (f" tomogram {one.tomogram}" if one.is_one_of_several else ""): partial(
            draft_cryoet, dataset, run, one, portal, settings
        )
        for dataset, run in wanted
        for one in (every_choice(dataset, run, choice, lenient) if every else [choice])
    }
    if name is not None and len(drafts) > 1:
        raise typer.BadParameter(f"--name {name} is for one tomogram, but {len(drafts)} fit; leave it out.")
    _write_each(
        drafts,
        _each_its_own_file(name, output, force=force),
        {f"a part of {target} (number {number})": error for number, error in enumerate(refused, 1)},
    )


def _each_its_own_file(name: str | None, output: Path | None, *, force: bool) -> Callable[[Draft], None]:
    """Writes drafts; `force` replaces what was there before, not what was written just now of a similar name."""
    taken: set[str] = set()

    def write(draft: Draft) -> None:
        from em_assets.adding.draft import slug

        base = slug(draft.base_name)
        _write(draft, name, output, force=force and base not in taken)
        taken.add(base)

    return write


def _write_each(
    drafts: Mapping[str, Callable[[], Draft]], write: Callable[[Draft], None], refused: Mapping[str, EmAssetsError]
) -> None:
    """One that fails does not keep the others from being written; then Mismatch names every one that did.

    `refused` are those that failed before there was anything to draft.
    """
    failed: dict[str, EmAssetsError] = dict(refused)
    for what, error in refused.items():
        typer.echo(f"failed {what}: {error}")
    for what, draft in drafts.items():
        try:
            write(draft())
        except EmAssetsError as error:
            if len(drafts) == 1 and not refused:
                raise
            failed[what] = error
            typer.echo(f"failed {what}: {error}")
    if failed:
        raise Mismatch(
            f"{len(failed)} of {len(drafts) + len(refused)} specs were not written ({', '.join(failed)}), the others "
            f"were; first: {next(iter(failed.values()))}"
        )


def _portal_level(text: str | None, form: str) -> int:
    if form == "mrc":
        if text not in (None, *PORTAL_LEVELS[0]):
            raise typer.BadParameter(f"--level is {text!r}, but MRC files are of full size only; leave it out.")
        return 0
    found = next((number for number, names in enumerate(PORTAL_LEVELS) if text in names), None)
    if text is None:
        return len(PORTAL_LEVELS) - 1
    if found is None:
        raise typer.BadParameter(f"--level is {text!r}: expected 100%, 50% or 25%.")
    return found


def _one_of(option: str, text: str, known: tuple[str, ...]) -> str:
    if text not in known:
        raise typer.BadParameter(f"{option} is {text!r}: expected {', '.join(known)}.")
    return text


def _write(draft: Draft, name: str | None, output: Path | None, *, force: bool) -> None:
    """Writes the file, and says what was found, what is to do, and what comes next."""
    from em_assets.adding.draft import write_draft

    settings = read_settings()
    file = write_draft(draft, settings, name=name, output=output, force=force)
    typer.echo(f"wrote {file}")
    for line in draft.found:
        typer.echo(f"  {line}")
    for key, what in draft.todo.items():
        typer.echo(f"  for a person: {key}: {what}")
    known = {folder.resolve() for folder in settings.dataset_folders()}
    if file.parent.resolve() not in known:
        typer.echo(f"  {file.parent} is not among the folders of specs: add it to EM_ASSETS_DATASETS")
    typer.echo(f"  next: em-assets plan {file.stem}")


def _wishes(box: str | None, box_nm: str | None, voxel_size_nm: str | None, *, labels: bool) -> Wishes:
    from em_assets.adding.volume import Wishes
    from em_assets.volume import Box, zyx

    in_voxels = _ranges("--box", box, int)
    in_nm = _ranges("--box-nm", box_nm, float)
    try:
        wanted = None if in_voxels is None else Box(zyx(list(in_voxels[0])), zyx(list(in_voxels[1])))
    except ValueError:
        raise typer.BadParameter(f"--box {box}: each range rises, as in 0:100,0:500,0:500.") from None
    return Wishes(wanted, in_nm, _size(voxel_size_nm), labels=labels)


def _ranges(option: str, text: str | None, of: Callable[[str], T]) -> tuple[tuple[T, T, T], tuple[T, T, T]] | None:
    """(start, stop), both (z, y, x), of `z0:z1,y0:y1,x0:x1`."""
    if text is None:
        return None
    number = r"-?\d{1,12}" if of is int else r"-?\d{1,12}(?:\.\d{1,12})?"
    one = rf"({number}):({number})"
    found = re.fullmatch(",".join([one] * 3), text.replace(" ", ""))
    if found is None:
        raise typer.BadParameter(f"{option} is {text!r}: expected z0:z1,y0:y1,x0:x1, as in 0:100,0:500,0:500.")
    a, b, c, d, e, f = (of(value) for value in found.groups())
    return (a, c, e), (b, d, f)


def _size(text: str | None) -> VoxelSize | None:
    if text is None:
        return None
    found = re.fullmatch(",".join([r"(\d{1,9}(?:\.\d{1,15})?)"] * 3), text.replace(" ", ""))
    values = tuple(float(value) for value in found.groups()) if found is not None else ()
    if len(values) != 3 or min(values) <= 0:
        raise typer.BadParameter(f"--voxel-size-nm is {text!r}: expected three positive numbers, as in 50,8,8.")
    return values[0], values[1], values[2]


def _level(text: str) -> int | str:
    """A number is a place in the list, anything else a path."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 3 else text


def _server(text: str | None) -> str | None:
    if text is None:
        return None
    if not re.fullmatch(r"https?://[^\s?#@]+", text):
        raise typer.BadParameter(f"--server is {text!r}: expected http(s)://host, maybe with a path.")
    return text.rstrip("/")
