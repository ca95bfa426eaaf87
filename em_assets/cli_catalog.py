"""The commands about the catalogue: show, describe, sql, conflicts, cite, catalog. `cli.py` takes them in.

What is printed comes from metadata.duckdb alone; `fresh_catalog` sees to it that this is there, and not older than
what it is asked about.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from em_assets.cli_shared import (
    FormatOption,
    JsonOption,
    NameArgument,
    Platform,
    on_one_line,
    say,
    terminal_width,
    unknown_dataset,
    warn,
)
from em_assets.cli_show import Shown, ask, claim_lines, conflict_lines, quoted
from em_assets.errors import EmAssetsError, Malformed, Unavailable
from em_assets.progress import human_seconds
from em_assets.settings import read_settings
from em_assets.store import open_store

if TYPE_CHECKING:
    from em_assets.pipeline.run import Described

CitationFormat = Literal["text", "bibtex", "datacite", "csl"]
NamesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="NAME", help="datasets; all of them if none is given")
]

catalog_commands = typer.Typer()


@catalog_commands.command(epilog="Example: em-assets show hemibrain_crop --json")
def show(
    name: NameArgument,
    *,
    as_json: JsonOption = False,
    claims: Annotated[bool, typer.Option("--claims", help="everything that is stated, under its own key")] = False,
) -> None:
    """Everything known about a dataset, and where it is from.

    Each field with its value, who states it and where; what is stored here; which claims disagree.
    """
    platform = Platform.read(name)
    platform.require(name)
    database = fresh_catalog(platform, [name])
    stated = ask(database, f"from claims where name = {quoted(name)}") if claims else []
    shown = Shown.read(database, name)
    if shown is None:
        raise unknown_dataset(name, platform.names())
    if as_json:
        more = {"record": _record(platform, name), **({"claims": stated} if claims else {})}
        say(json.dumps(shown.values() | more, indent=1, ensure_ascii=False))
    else:
        width = terminal_width()
        say("\n".join(claim_lines(stated, width) if claims else shown.lines(width)))


@catalog_commands.command(epilog="Example: em-assets describe hemibrain_crop empiar_11759")
def describe(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="datasets, or --all")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="every dataset")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="read again what is here, ask nobody")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="receive anew what is already here")] = False,
) -> None:
    """Fetches what publishers say about datasets, without voxels.

    Their replies, pages and metadata documents, a few small requests each. Every value in them is kept as a claim, and
    the catalogue rebuilt.
    """
    from em_assets.catalog.build import build_catalog
    from em_assets.catalog.query import catalog_path
    from em_assets.pipeline import describe_dataset

    if bool(names) == every:
        raise typer.BadParameter("name the datasets, or give --all for every one of them.")
    if offline and refresh:
        raise typer.BadParameter("--offline asks nobody and --refresh asks again; choose one of them.")
    platform = Platform.read(*(names or ()))
    specs = [platform.spec(name) for name in dict.fromkeys(names or platform.specs)]
    described: dict[str, Described] = {}
    failed: list[EmAssetsError] = []
    for spec in specs:
        if not offline and sys.stderr is not None and sys.stderr.isatty():
            warn(f"asking about {spec.name}")
        try:
            one = describe_dataset(spec, platform.settings, platform.store, fetch=not offline, refresh=refresh)
        except EmAssetsError as error:  # the others are described all the same
            failed.append(error)
        else:
            described[spec.name] = one
    build_catalog(platform.specs, platform.store, platform.settings)
    for line in _described_lines(described, catalog_path(platform.store, platform.settings)):
        say(line)
    for failure in failed[:-1]:
        warn(str(failure))
    if failed:
        raise failed[-1]


@catalog_commands.command(epilog='Example: em-assets sql "from overview"')
def sql(
    query: Annotated[str, typer.Argument(help='one statement of DuckDB\'s SQL, such as "from overview"')],
    form: FormatOption = "table",
) -> None:
    """Asks the catalogue, metadata.duckdb.

    Read-only. `show tables` and `describe datasets` say what there is.
    """
    from em_assets.catalog import query as catalog
    from em_assets.catalog.render import render

    settings = read_settings()
    answer = catalog.query(catalog.catalog_path(open_store(settings.root), settings), query)
    say(render(answer, format=form, width=terminal_width()), end="")


@catalog_commands.command(epilog="Example: em-assets conflicts empiar_11759")
def conflicts(names: NamesArgument = None, form: FormatOption = "table") -> None:
    """Where publishers, files and specs disagree.

    Each field with the value that was taken, the others, who states them and where, and why it was decided so.
    """
    from em_assets.catalog.query import query
    from em_assets.catalog.render import render

    platform = Platform.read(*(names or ()))
    for name in names or ():
        platform.require(name)
    database = fresh_catalog(platform, names or platform.names())
    where = f" where name in ({', '.join(map(quoted, names))})" if names else ""
    if form == "table":
        told = f"from statements{where} order by name, volume nulls first, field, rank"
        pairs = ask(database, f"from conflicts{where}")
        say("\n".join(conflict_lines(pairs, ask(database, told), terminal_width(), names or ())))
    else:
        say(render(query(database, f"from conflicts{where}"), format=form), end="")


@catalog_commands.command(epilog="Example: em-assets cite hemibrain_crop empiar_11759 --format bibtex")
def cite(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="datasets, as `em-assets list` names them")],
    form: Annotated[CitationFormat, typer.Option("--format", help="how; datacite and csl are JSON")] = "text",
) -> None:
    """How to cite datasets, with licence and DOI.

    What is not known is not made up: it is named on stderr, as is how sure the licence is.
    """
    from em_assets.catalog.cite import citations, formatted

    platform = Platform.read(*names)
    for name in names:
        platform.require(name)
    cited = citations(fresh_catalog(platform, names), list(dict.fromkeys(names)))
    text = formatted(cited, form)
    say(
        "".join(on_one_line(line) + "\n" for line in text.splitlines()) if form == "text" else text,
        end="",
        at_once=True,
    )
    for citation in cited:
        for note in citation.notes:
            warn(on_one_line(f"careful: {citation.name}: {note}"))
        if citation.missing:
            warn(f"careful: {citation.name}: not known: {', '.join(citation.missing)}")


@catalog_commands.command(epilog="Example: em-assets catalog")
def catalog() -> None:
    """Rebuilds the catalogue and its exports from the store.

    metadata.duckdb and README.md, then metadata.csv, .json and .parquet, METADATA_SUMMARY.md and the RO-Crates. Needs
    no network.
    """
    from em_assets.catalog.build import build_catalog
    from em_assets.catalog.exporting import EXPORTS, export_catalog

    platform = Platform.read()
    built = build_catalog(platform.specs, platform.store, platform.settings)
    counts = ", ".join(f"{built.rows[table]} {table}" for table in ("datasets", "files", "claims", "documents"))
    say(f"{built.uri} is rebuilt in {human_seconds(built.seconds)}: {counts}", at_once=True)
    for kind in EXPORTS:
        for export in export_catalog(kind, platform.store, platform.settings):
            say(f"  {export.path}{'' if export.changed else ' (as it was)'}")


def _record(platform: Platform, name: str) -> Any:
    """The store's own record as JSON has it; None if there is none, or it is damaged: then `status_reason` says so."""
    try:
        record = platform.folder(name).read_record()
    except Malformed:
        return None
    return None if record is None else record.model_dump(mode="json") | {"status": record.visible_status}


def _described_lines(described: Mapping[str, Described], database: Path) -> Iterator[str]:
    """A line each with what there is now; below it what is missing, and which keys are others than before."""
    of_name = "select name, count(*) as documents from documents where problem is null group by name"
    documents = {row["name"]: row["documents"] for row in ask(database, of_name)}
    conflicts = {row["name"]: row["conflicts"] for row in ask(database, "select name, conflicts from datasets")}
    for name, one in described.items():
        received = f" ({len(one.received)} received now)" if one.received else ""
        counts = f"{documents.get(name, 0)} documents{received}, {one.claims} claims, {conflicts[name]} conflicts"
        yield f"{name}: {counts}"
        for document, reason in one.missing.items():
            yield f"  missing: {document}: {on_one_line(reason)}"
        if not one.keys.passed:
            yield f"  changed: {on_one_line(one.keys.message)}"
    for name in list(described)[:1]:
        yield f"next: em-assets show {name}, em-assets conflicts"


# The database


def fresh_catalog(platform: Platform, names: Iterable[str]) -> Path:
    """The database, built first if there is none or if it is older than what it should tell about these datasets.

    Where a new one cannot be written (somebody else's store), the old one is good enough, and that is said.
    """
    from em_assets.catalog.build import CATALOG, build_catalog
    from em_assets.catalog.query import catalog_path

    store, settings = platform.store, platform.settings
    is_there = store.size_bytes(CATALOG) is not None
    if is_there and not _is_stale(catalog_path(store, settings), platform, names):
        return catalog_path(store, settings)
    try:
        build_catalog(platform.specs, store, settings)
    except Unavailable as error:
        if not is_there:
            raise
        warn(f"careful: the catalogue is older than the store: {error}")
    return catalog_path(store, settings)


def _is_stale(database: Path, platform: Platform, names: Iterable[str]) -> bool:
    """Whether it is of another version, or older than a record, claims or spec of these datasets.

    A store on S3 is asked for nothing: there its builders see to it.
    """
    if not _has_our_columns(database):
        return True
    if platform.store.local_path("") is None:
        return False
    wanted = list(names)
    statuses = {row["name"]: row["status"] for row in ask(database, "select name, status from datasets")}
    # a writer that dies changes the status without a word, and its dataset's shards are counted in their records
    if any(statuses.get(name, "saving-data") == "saving-data" for name in wanted):
        return True
    built = database.stat().st_mtime_ns
    return any(file.exists() and file.stat().st_mtime_ns >= built for file in _files_behind(platform, wanted))


def _files_behind(platform: Platform, names: Iterable[str]) -> Iterator[Path]:
    """What the rows of these datasets are made of, as far as a person or a run changes it by itself."""
    folders = platform.settings.dataset_folders()
    for name in names:
        stored = (
            platform.store.local_path(f"{name}/{file}")
            for file in ("metadata.json", "claims.parquet", "blocks.parquet")
        )
        yield from (path for path in stored if path is not None)
        yield from (folder / f"{name}.yaml" for folder in folders)


def _has_our_columns(database: Path) -> bool:
    """False for the database of an earlier version, and for what is none."""
    from em_assets.catalog.query import query
    from em_assets.catalog.schema import DERIVED, TABLES

    try:
        found = query(database, "select table_name, column_name from duckdb_columns()").rows
    except Malformed:
        return False
    relations = (*TABLES, *(relation for relation, _ in DERIVED))
    return {(relation.name, column.name) for relation in relations for column in relation.columns} <= set(found)
