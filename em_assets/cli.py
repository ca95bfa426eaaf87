"""`em-assets`: the front door for people. Thin: each command asks a module below and prints what it says.

Whatever fails, the last line is the sentence that says why: exit code 1, 2 for a wrong command line, 130 for Ctrl-C.
A traceback is shown with `--debug` only. What takes seconds to import is imported by the command that needs it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from em_assets.adding.commands import add_app
from em_assets.cli_blocks import block_commands
from em_assets.cli_catalog import catalog_commands
from em_assets.cli_ingest import ingest_commands
from em_assets.cli_portal import (
    BaseUrlOption,
    DatasetIdOption,
    DepositionIdOption,
    NgffOption,
    ToOption,
    VerifyOption,
    export_trees,
)
from em_assets.cli_shared import (
    FormatOption,
    JsonOption,
    NameArgument,
    Platform,
    YesOption,
    print_table,
    terminal_width,
    unknown_dataset,
)
from em_assets.datasets.fields import ITEM_BYTES
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unavailable
from em_assets.progress import human_bytes, human_seconds
from em_assets.records import DatasetFolder, DatasetRecord
from em_assets.settings import read_settings

if TYPE_CHECKING:
    from em_assets.checks.volume import CheckOutcome
    from em_assets.sample.origin import SampleState

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
SHOWN_RUNS = 20
RECEIVED_FOLDERS = ("original", "original_records", "documents")
"""What `rm --keep-original` leaves."""
VERIFIED = ("files", "checksums", "completeness")
"""The checks of `verify`."""
ExportFormat = Literal["npy", "tiff", "mrc", "ome-zarr-0.4", "cryoet-portal"]

FolderOption = Annotated[Path, typer.Option("--folder", help="where the sample lies")]


class _Group(typer.core.TyperGroup):
    """Ctrl-C in any command is exit code 130, in every version of typer."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    rich_markup_mode=None,  # plain help: it is read in logs and over slow lines, too
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
sample_app = typer.Typer(cls=_Group, rich_markup_mode=None, help="The publishers in small, on this machine.")
app.add_typer(sample_app, name="sample", no_args_is_help=True)
app.add_typer(add_app, name="add", no_args_is_help=True)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a locale without µ is no reason to fail
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    _say_little(debug)
    try:
        app(arguments, prog_name="em-assets")
    except EmAssetsError as error:
        if debug:
            raise
        _end_with(str(error))
    except Exception as error:
        if debug:
            raise
        what = error.strerror if isinstance(error, OSError) else None
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        _end_with(
            f"{what}{where}; `--debug` shows where it happened."
            if what
            else f"this is a bug ({type(error).__name__}: {error}); `--debug` shows where, please report it."
        )
    finally:
        _flush()


def _say_little(debug: bool) -> None:
    """What the modules log on their way (a host that is slow, a lock that is not there) is shown with `--debug`."""
    if debug:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    else:
        logging.getLogger("em_assets").addHandler(logging.NullHandler())  # or Python prints warnings by itself


def _end_with(sentence: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(sentence, file=sys.stderr)
    sys.exit(EXIT_FAILED)


def _flush() -> None:
    """Sends what is still buffered. A reader who has gone (`| head -1`) has seen enough."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or the interpreter complains at its end


def _print_version() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"em_assets {version('em_assets')}")
    except PackageNotFoundError:
        print("em_assets (run from its source, not installed)")


@app.callback(invoke_without_command=True, epilog="Begin with: em-assets list")
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show where an error happened")] = False,  # noqa: ARG001  # main
) -> None:
    """Public 3D electron-microscopy volumes: download, look, ask, remove.

    The environment says where: EM_ASSETS_ROOT is the store (default ./data), EM_ASSETS_DATASETS the specs.
    """
    if version:
        _print_version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


# What there is


@app.command("list", epilog="Example: em-assets list --format csv")
def list_datasets(form: FormatOption = "table") -> None:
    """Every dataset, and whether it is here.

    With size, shape, voxel size and licence. Needs no network and no catalogue.
    """
    platform = Platform.read()
    found = [_Listed.read(name, platform) for name in platform.names()]
    if form != "table":
        values = ("name", "status", "size_bytes", "shape", "voxel_size_nm", "license", "title", "status_reason")
        print_table(values, [one.values() for one in found], form)
        return
    columns = ("name", "status", "size", "shape (z, y, x)", "voxel (nm)", "licence", "title")
    print_table(*_fitting(columns, [one.cells() for one in found], terminal_width()), form)
    for line in _notes_below(found):
        print(line)


# Between the list of datasets and what else there is of them, which is the order of the help.
app.registered_commands += catalog_commands.registered_commands
app.registered_commands += block_commands.registered_commands
app.registered_commands += ingest_commands.registered_commands


@app.command(epilog="Example: em-assets plan hemibrain_crop")
def plan(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="datasets; all of them if none is given")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="do not ask the publisher for requests and bytes")] = False,
    as_json: JsonOption = False,
) -> None:
    """What `get` would fetch and store: objects, bytes and requests.

    Exact where the spec pins every size or the publisher says it, else the most it can be, marked so. And whether there
    is room: exit code 1 if one of several would be refused.
    """
    from em_assets.pipeline import plan_dataset

    platform = Platform.read(*(names or ()))
    specs = [platform.spec(name) for name in dict.fromkeys(names or platform.specs)]
    plans = [plan_dataset(spec, platform.settings, platform.store, ask_publisher=not offline) for spec in specs]
    if as_json:
        import dataclasses

        values = [dataclasses.asdict(planned) for planned in plans]
        print(json.dumps(values[0] if names and len(values) == 1 else values, indent=1))
    else:
        for planned in plans:
            print(planned.line())
    for planned in plans:
        if planned.refusals:
            raise Mismatch(planned.refusals[0])


@app.command(epilog="Example: em-assets du")
def du(form: FormatOption = "table") -> None:
    """How much room each dataset takes."""
    platform = Platform.read()
    sizes: dict[str, list[int]] = {}
    for path, size in platform.store.list(""):
        name = path.partition("/")[0] if "/" in path else "(catalogue)"
        if not path.startswith("."):
            sizes.setdefault(name, []).append(size)
    ordered = sorted(sizes.items(), key=lambda item: -sum(item[1]))
    if form == "table":
        total = sum(map(sum, sizes.values()))
        rows = [(name, human_bytes(sum(found)), f"{len(found)}") for name, found in ordered]
        print_table(("name", "size", "objects"), [*rows, ("total", human_bytes(total), "")], form)
        free = platform.store.free_bytes()
        print(f"{platform.store.uri('')}{f': {human_bytes(free)} free' if free is not None else ''}")
    else:
        print_table(
            ("name", "size_bytes", "objects"), [(name, sum(found), len(found)) for name, found in ordered], form
        )


@app.command(epilog="Example: em-assets logs hemibrain_crop")
def logs(
    name: NameArgument,
    count: Annotated[int, typer.Option("-n", min=1, max=10**6, help="how many runs, the newest first")] = SHOWN_RUNS,
    form: FormatOption = "table",
) -> None:
    """What happened to a dataset.

    Its runs, the newest first, and what state it is in.
    """
    platform = Platform.read(name)
    platform.require(name)
    folder = platform.folder(name)
    paths = sorted((path for path, _ in platform.store.list(folder.path("runs"))), reverse=True)[:count]
    runs = [run for run in map(platform.read_run, paths) if run is not None]
    if form == "table":
        print_table(("started", "outcome", "took", "received", "reason"), list(map(_run_cells, runs)), form)
        record = folder.read_record()
        status = "listed: nothing is stored yet" if record is None else _status_line(record)
        print(f"{name} is {status}")
    else:
        keys = list(dict.fromkeys(key for run in runs for key in run))
        print_table(keys, [tuple(run.get(key) for key in keys) for run in runs], form)


@app.command(epilog="Example: em-assets view hemibrain_crop --at 8000,16000,12000 --shape 128")
def view(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a dataset, or one of its volumes as NAME/VOLUME")],
    *,
    at: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="nanometres: look there, a block's box drawn around it")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="with --at: the block's voxels, z,y,x or one number [128]")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 0,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets the whole network look")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open a browser if there is one")] = True,
    napari: Annotated[bool, typer.Option("--napari", help="in napari, where that is installed")] = False,
) -> None:
    """Opens a volume in Neuroglancer.

    A stored one is served from this machine alone; one that is not stored is read from its publisher by the browser.
    Ctrl-C ends it.
    """
    from em_assets import viewer
    from em_assets.serve.parameters import BadRequest, parse_view

    given = [(option, text) for option, text in (("at", at), ("shape", shape)) if text is not None]
    try:
        at_nm, voxels = parse_view(given)
    except BadRequest as error:
        raise typer.BadParameter(str(error)) from None
    dataset, _, volume = name.partition("/")
    platform = Platform.read(dataset)
    platform.require(dataset)
    folder = platform.folder(dataset).further(volume or None)
    record = folder.read_record()
    if record is not None and volume and volume not in record.volumes:
        known = ", ".join(f"{dataset}/{one}" for one in record.volumes) or "none"
        raise typer.BadParameter(f"{dataset} has no volume {volume!r}; its further volumes: {known}.")
    if record is not None and record.visible_status != "complete":
        print(f"careful: {name} is {_status_line(record)}", file=sys.stderr)
    if napari:
        viewer.view_in_napari(folder, at_nm=at_nm, shape=voxels)
        return
    viewer.view(
        folder,
        spec=platform.specs.get(dataset),
        settings=platform.settings,
        at_nm=at_nm,
        shape=voxels,
        host=host,
        port=port,
        open_browser=browser,
        say=lambda line: print(line, flush=True),
    )


@app.command(epilog="Example: em-assets doctor --live --output report.md")
def doctor(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="with --live: only these datasets")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="ask the publishers, too: less than 10 MB in all")] = False,
    output: Annotated[Path | None, typer.Option(help="also write the report, as Markdown, to this file")] = None,
) -> None:
    """Checks the installation and, with --live, what the publishers serve.

    Prints a report fit to paste into an issue, without secrets and home folders. Exit code 1 if anything failed.
    """
    from em_assets.doctor.installation import look_at_installation
    from em_assets.doctor.report import Report

    if names and not live:
        raise typer.BadParameter("datasets are asked for with --live only; add it, or leave the names out.")
    settings = read_settings()
    section, specs = look_at_installation(settings)
    report = Report([section])
    if live:
        from em_assets.doctor.live import ask_publishers

        unknown = [name for name in names or () if name not in specs]
        if unknown:
            raise unknown_dataset(unknown[0], specs)
        wanted = [specs[name] for name in names or specs]
        answers = ask_publishers(wanted, settings, lambda line: print(line, file=sys.stderr, flush=True))
        report = Report([section, *answers.sections], answers.closing)
    print(report.markdown() if live else report.text(), end="")
    if output is not None:
        output.write_text(report.markdown(), encoding="utf-8")
    if report.failures:
        title, line = report.failures[0]
        raise Mismatch(f"{len(report.failures)} failed, the first: {title}, {line.question}: {line.found}")


# What changes the store


@app.command(epilog="Example: em-assets get hemibrain_crop --yes")
def get(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="datasets, as `em-assets list` names them")],
    yes: YesOption = False,
) -> None:
    """Downloads datasets and makes them whole.

    Plan, question, progress, summary. Materializes the same Dagster assets as `dagster asset materialize --select
    NAME`. Interrupt it at any moment and run it again: it goes on where it stopped.
    """
    from em_assets.pipeline import plan_dataset

    platform = Platform.read(*names)
    specs = [platform.spec(name) for name in dict.fromkeys(names)]
    plans = [plan_dataset(spec, platform.settings, platform.store, ask_publisher=True) for spec in specs]
    for planned in plans:
        print(planned.line(), flush=True)
    for planned in plans:
        if planned.refusals:
            raise Mismatch(planned.refusals[0])
    unfinished = [planned.name for planned in plans if not planned.is_complete]
    if unfinished:
        _confirm("Download?", yes)
        _materialize(unfinished, platform)
    for spec in specs:
        print("\n".join(_summary(platform.folder(spec.name))))


@app.command(
    epilog="Example: em-assets export hemibrain_crop --format tiff --level 2; or "
    "em-assets export hemibrain_crop --format cryoet-portal --to tree"
)
def export(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME[/VOLUME]...", help="a dataset, or a further volume of it")
    ],
    *,
    form: Annotated[ExportFormat, typer.Option("--format", help="what to write")],
    level: Annotated[int | None, typer.Option(min=0, help="0 is the finest; ome-zarr-0.4 takes all by default")] = None,
    box: Annotated[str | None, typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="a part, in voxels of the level")] = None,
    output: Annotated[Path | None, typer.Option(help="by default ./NAME[.LEVEL] with the format's ending")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace what is there")] = False,
    to: ToOption = None,
    dataset_id: DatasetIdOption = None,
    deposition_id: DepositionIdOption = None,
    base_url: BaseUrlOption = None,
    ngff: NgffOption = None,
    verify: VerifyOption = False,
) -> None:
    """Writes a stored volume in a plain format, or datasets as the CryoET Data Portal's tree.

    A plain format has the volume, a level or a box of it. Beside it lies a JSON file: what it is of, where it lies,
    its sha256, licence and citation. `cryoet-portal` writes whole datasets below --to, and what is there already as it
    would be written is left alone.
    """
    of_tree = {"--to": to, "--dataset-id": dataset_id, "--deposition-id": deposition_id, "--base-url": base_url}
    of_tree["--verify"] = verify or None
    of_file = {"--level": level, "--box": box, "--output": output, "--force": force or None}
    _refuse_options(form, of_file if form == "cryoet-portal" else of_tree | {"--ngff": ngff})
    if form == "cryoet-portal":
        export_trees(
            names, to, dataset_id=dataset_id, deposition_id=deposition_id, base_url=base_url, ngff=ngff, verify=verify
        )
        return
    if len(names) > 1:
        raise typer.BadParameter(f"{form} is of one volume; give one NAME, or --format cryoet-portal.")
    _export_volume(names[0], form, level=level, box=box, output=output, force=force)


def _refuse_options(form: ExportFormat, others: Mapping[str, object]) -> None:
    given = [option for option, value in others.items() if value is not None]
    if given:
        raise typer.BadParameter(f"--format {form} has no {', '.join(given)}; leave it out.")


def _export_volume(
    name: str,
    form: Literal["npy", "tiff", "mrc", "ome-zarr-0.4"],
    *,
    level: int | None,
    box: str | None,
    output: Path | None,
    force: bool,
) -> None:
    from em_assets.export import export_volume
    from em_assets.progress import open_reporter

    dataset, slash, volume = name.partition("/")
    platform = Platform.read(dataset)
    platform.require(dataset)
    folder = platform.folder(dataset)
    if slash:
        folder = folder.further(_require_volume(folder, volume))
    is_watched = sys.stderr is not None and sys.stderr.isatty() and platform.settings.progress != "off"
    with open_reporter(print, label=name, show="bar" if is_watched else "off") as reporter:
        done = export_volume(
            folder,
            form,
            output,
            level=level,
            box=box,
            force=force,
            workers=platform.settings.workers,
            progress=reporter,
        )
    shape = " x ".join(map(str, done.shape))
    print(f"{done.path} is written: {shape} {done.dtype}, {human_bytes(done.size_bytes)}, sha256 {done.sha256}")
    if done.missing_voxels:
        print(f"  missing  {done.missing_voxels} voxels that the publisher does not have are 0")
    for note in done.notes:
        print(f"  careful  {note}")
    print(f"  facts    {done.sidecar}")


def _require_volume(folder: DatasetFolder, volume: str) -> str:
    record = folder.read_record()
    known = list(record.volumes) if record is not None else []
    if volume not in known:
        has = f"it has {', '.join(known)}" if known else "it has none that is stored"
        raise typer.BadParameter(f"{folder.name} has no further volume {volume!r}; {has}.")
    return volume


@app.command(epilog="Example: em-assets verify hemibrain_crop --repair")
def verify(
    name: NameArgument,
    repair: Annotated[bool, typer.Option("--repair", help="make what is damaged or missing again")] = False,
) -> None:
    """Reads every stored byte and compares it with the records.

    One line for each problem, exit code 1 if there is any.
    """
    from em_assets.catalog.build import build_catalog
    from em_assets.pipeline import plan_dataset, recheck_dataset

    platform = Platform.read(name)
    spec = platform.spec(name)
    platform.refuse_if_written(name)
    outcomes, record = recheck_dataset(spec, platform.store, VERIFIED, lambda line: print(line, file=sys.stderr))
    if record is None:
        raise Unavailable(f"nothing of {name} is stored; `em-assets get {name}` fetches it.")
    problems = [line for outcome in outcomes if not outcome.passed for line in _problems(outcome)]
    if not problems and record.visible_status != "complete":
        problems = [f"{name} is {_status_line(record)}"]
    if not problems:
        print(f"{name} is whole: {'; '.join(outcome.message for outcome in outcomes)}")
        return
    print("\n".join(problems), flush=True)
    if not repair:
        build_catalog(platform.specs, platform.store, platform.settings)
        raise Mismatch(f"{name} is not as it was written; `em-assets verify {name} --repair` makes it whole again.")
    planned = plan_dataset(spec, platform.settings, platform.store)
    print(planned.line(), flush=True)
    if planned.refusals:
        raise Mismatch(planned.refusals[0])
    _materialize([name], platform)
    print("\n".join(_summary(platform.folder(name))))


def _problems(outcome: CheckOutcome) -> Iterator[str]:
    """What a check found, one by one as far as it lists them: of one volume, or of several by their name."""
    from em_assets.checks.volume import MOST_LISTED

    details = [outcome.details, *(value for value in outcome.details.values() if isinstance(value, dict))]
    listed = [one[key] for one in details for key in ("problems", "items") if key in one]
    for items in listed:
        yield from (f"{outcome.name}: {item}" for item in items)
    if not any(listed) or any(len(items) >= MOST_LISTED for items in listed):
        yield f"{outcome.name}: {outcome.message}"  # which says how many there are


@app.command("rm", epilog="Example: em-assets rm hemibrain_crop")
def remove(
    name: NameArgument,
    keep_original: Annotated[
        bool, typer.Option("--keep-original", help="keep received files, so that nothing is downloaded again")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Removes what is stored of a dataset.

    Its spec stays, so that it can be downloaded again. Where files were received, `--keep-original` removes only what
    was made of them: after a change of crop or encoding, say.
    """
    from em_assets.catalog.build import build_catalog
    from em_assets.pipeline import dataset_lock

    platform = Platform.read(name)
    platform.require(name)
    kept = tuple(f"{name}/{folder}/" for folder in RECEIVED_FOLDERS) if keep_original else ()
    found = [(path, size) for path, size in platform.store.list(name) if not path.startswith(kept or ("\0",))]
    sizes = [size for _, size in found]
    where = platform.store.uri(name)
    if not found:
        if not keep_original:
            platform.store.delete_all(name)  # of an interrupted download there may be a part, which is no object
        print(f"nothing of {name} is stored at {where}{' but what was received' if keep_original else ''}")
        return
    platform.refuse_if_written(name)
    print(f"{where}: {human_bytes(sum(sizes))} in {len(sizes)} objects")
    _confirm("Remove?", yes)

    def refuse_to_wait(_: str) -> None:
        raise Mismatch(f"{name} is being written by another process; stop it first, or wait for its end.")

    with dataset_lock(platform.store, name, refuse_to_wait):
        platform.refuse_if_written(name)
        platform.store.delete(f"{name}/metadata.json")  # first: from here on nobody takes the rest for a dataset
        if keep_original:
            for path, _ in found:
                platform.store.delete(path)
        else:
            platform.store.delete_all(name)
    build_catalog(platform.specs, platform.store, platform.settings)
    print(f"removed {name}: {human_bytes(sum(sizes))}")


# The sample


@sample_app.command("up", epilog="Example: em-assets sample up")
def sample_up(
    folder: FolderOption = Path(".sample"),
    volume: Annotated[
        Path | None, typer.Option(help="publish this TIFF, folder of PNGs, .npy or Zarr instead of a drawn volume")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of the drawn volume")] = 1,
) -> None:
    """Writes the sample and serves it.

    On 127.0.0.1, in the background. A second call finds both and does nothing.
    """
    from em_assets.sample import origin

    state = origin.up(folder, volume=volume, seed=seed)
    print(f"the sample is {'now' if state.wrote else 'already'} in {state.folder}, {_served(state)}")
    print(f"  datasets  {', '.join(state.datasets)}")
    option = "" if folder == Path(".sample") else f" --folder {folder}"
    print(f'  switch    eval "$(em-assets sample env{option})"   (this shell then works on the sample alone)')
    print(f"  then      em-assets get {state.datasets[0]}")


@sample_app.command("down", epilog="Example: em-assets sample down")
def sample_down(folder: FolderOption = Path(".sample")) -> None:
    """Stops the sample's server.

    Its files and what was made of them stay.
    """
    from em_assets.sample import origin

    was_running = origin.status(folder).running
    origin.down(folder)
    print(f"the sample's server {'is stopped' if was_running else 'was not running'} ({folder.absolute()})")


@sample_app.command("status", epilog="Example: em-assets sample status")
def sample_status(folder: FolderOption = Path(".sample")) -> None:
    """What there is, and whether it is served."""
    from em_assets.sample import origin

    state = origin.status(folder)
    if not state.datasets:
        print(f"there is no sample in {state.folder}; `em-assets sample up` makes one")
        return
    print(f"the sample is in {state.folder}, {_served(state)}")
    print(f"  datasets  {', '.join(state.datasets)}")
    if state.running:
        print(f"  answered  {state.requests} requests with {human_bytes(state.bytes_sent)}")


@sample_app.command("env", epilog='Example: eval "$(em-assets sample env)"')
def sample_env(folder: FolderOption = Path(".sample")) -> None:
    """Prints what switches a shell to the sample.

    The `export` lines, and nothing else: of the specs, the store and the history.
    """
    from em_assets.sample import origin

    print(origin.env_exports(folder), end="")


def _served(state: SampleState) -> str:
    if state.url is None:
        return "but its server is not running: `em-assets sample up`"
    return f"{'now' if state.started else 'already'} served at {state.url}"


# What the commands print and ask


@dataclass(frozen=True)
class _Listed:
    """One dataset in the list."""

    name: str
    status: str
    reason: str | None
    size_bytes: int | None
    size_is_bound: bool
    shape: tuple[int, ...] | None
    voxel_size_nm: tuple[float, ...] | None
    license: str
    title: str

    @classmethod
    def read(cls, name: str, platform: Platform) -> _Listed:
        spec = platform.specs.get(name)
        try:
            record = platform.folder(name).read_record()
            status, reason = ("listed", None) if record is None else (record.visible_status, record.status_reason)
        except Malformed as error:
            record, status, reason = None, "error", str(error)
        size = record.file_size_bytes if record is not None and status == "complete" else None
        shown = spec or record
        return cls(
            name=name,
            status=status,
            reason=reason,
            size_bytes=_largest_size_bytes(spec) if size is None and spec is not None else size,
            size_is_bound=size is None,
            shape=(record.volume_shape if record is not None else None) or (spec.shape if spec is not None else None),
            voxel_size_nm=_voxel_size_nm(record, spec),
            license=shown.license if shown is not None else "",
            title=shown.title if shown is not None else "",
        )

    def cells(self) -> tuple[str, ...]:
        size = "" if self.size_bytes is None else human_bytes(self.size_bytes)
        return (
            self.name,
            self.status,
            f"up to {size}" if size and self.size_is_bound else size,
            " x ".join(map(str, self.shape or ())),
            " x ".join(f"{value:.6g}" for value in self.voxel_size_nm or ()),
            self.license,
            self.title,
        )

    def values(self) -> tuple[Any, ...]:
        return (
            self.name,
            self.status,
            self.size_bytes,
            self.shape,
            self.voxel_size_nm,
            self.license,
            self.title,
            self.reason,
        )


def _voxel_size_nm(record: DatasetRecord | None, spec: DatasetSpec | None) -> tuple[float, ...] | None:
    stored = record.voxel_size_nm if record is not None else None
    return stored or (spec.expected.voxel_size_nm if spec is not None else None)


def _largest_size_bytes(spec: DatasetSpec) -> int:
    """About: nothing compresses, a pyramid adds a seventh. `plan` counts whole chunks, which needs heavier imports."""
    return math.prod(spec.shape) * ITEM_BYTES[spec.expected.dtype] * 8 // 7


def _notes_below(found: Sequence[_Listed]) -> Iterator[str]:
    """What a table has no room for: why something failed, and what to do next."""
    for one in found:
        if one.reason:
            yield f"{one.name}: {one.reason}"
    listed = [one.name for one in found if one.status == "listed"]
    if listed:
        yield f"download one with: em-assets get {listed[0]}"


def _status_line(record: DatasetRecord) -> str:
    return f"{record.visible_status}{f': {record.status_reason}' if record.status_reason else ''}"


def _run_cells(run: dict[str, Any]) -> tuple[str, ...]:
    started = str(run.get("started", "")).partition("+")[0].replace("T", " ")
    seconds, received = run.get("seconds"), run.get("received_bytes")
    return (
        f"{started} UTC" if started else "",
        str(run.get("outcome", "")),
        human_seconds(seconds) if isinstance(seconds, int | float) else "",
        human_bytes(received) if isinstance(received, int) else "",
        str(run.get("reason") or ""),
    )


def _fitting(
    columns: tuple[str, ...], rows: list[tuple[str, ...]], width: int | None
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table without its last columns where the terminal is too narrow: a list has one line per dataset."""
    widths = [max(map(len, column)) + 2 for column in zip(columns, *rows, strict=True)]
    count = len(columns)
    while width is not None and count > 2 and sum(widths[:count]) > width + 2:
        count -= 1
    return columns[:count], [row[:count] for row in rows]


def _confirm(question: str, yes: bool) -> None:
    """Returns if the answer is yes; nothing is done otherwise."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        print("nobody can be asked here (stdin is no terminal): add --yes to go on.", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE)
    if not typer.confirm(question):
        print("nothing was done")
        raise typer.Exit(EXIT_FAILED)


def _summary(folder: DatasetFolder) -> list[str]:
    record = folder.read_record()
    if record is None or record.visible_status != "complete":
        state = "not stored" if record is None else _status_line(record)
        raise Unavailable(f"{folder.name} is {state}; `em-assets logs {folder.name}` shows its history.")
    volume = record.local_paths["volume"]
    return [
        f"{folder.name} is complete: {human_bytes(record.file_size_bytes or 0)} stored",
        f"  volume  {volume}",
        f"  look    em-assets view {folder.name}",
        '  ask     em-assets sql "from overview"',
        "  use     import zarr",
        f'          volume = zarr.open_group("{volume}", mode="r")',
        '          block = volume["0"][0:128, 0:128, 0:128]  # z, y, x at full resolution',
    ]


def _materialize(names: Sequence[str], platform: Platform) -> None:
    """Runs Dagster and shows what a person needs. Raises Unavailable with the reason if it fails."""
    from em_assets import dagster_child

    log = dagster_child.new_log(platform.settings, names[0])
    print(f"  Dagster starts (some seconds); its log is {log}", flush=True)
    outcome = dagster_child.materialize(names, platform.settings, log)
    if outcome.stopped_by is not None:
        print(f"stopped; what was fetched is kept: `em-assets get {' '.join(names)}` goes on from there.", flush=True)
        raise typer.Exit(128 + outcome.stopped_by)
    if outcome.exit_code != 0:
        raise Unavailable("\n".join(outcome.reasons) or _recorded_reason(names, platform, outcome.exit_code, log))
    print(f"  done in {human_seconds(outcome.seconds)}")


def _recorded_reason(names: Sequence[str], platform: Platform, exit_code: int, log: Path) -> str:
    """What the records say of a failed run that left no note; else where to look."""
    for name in names:
        record = platform.folder(name).read_record()
        if record is not None and record.visible_status in ("error", "interrupted") and record.status_reason:
            return f"{name}: {record.status_reason}"
    return f"Dagster ended with exit code {exit_code} before it could say why; its log is {log}"


if __name__ == "__main__":
    main()
