"""The command `em-assets ingest`: the CryoET Data Portal's ingestion config, over a bucket or folder of raw files.

What a config says and finds is `ingest/`.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from em_assets.cli_shared import JsonOption, on_one_line, say, warn
from em_assets.errors import Malformed

if TYPE_CHECKING:
    from em_assets.ingest.plan import IngestPlan
    from em_assets.ingest.report import EntityOutcome
    from em_assets.settings import Settings

EXIT_FAILED = 1
FILTERS = ("--filter-", "--exclude-")


class _WithFilters(typer.core.TyperCommand):
    """Takes the 34 options `--filter-<type>-name` and `--exclude-<type>-name`, which no signature spells, by itself."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words, filters, rest = iter(args), [], []
        for word in words:
            if not word.startswith(FILTERS):
                rest.append(word)
            else:
                filters.append(word)
                filters += [] if "=" in word else list(islice(words, 1))
        ctx.meta[__name__] = filters
        return super().parse_args(ctx, rest)


ingest_commands = typer.Typer()


@ingest_commands.command(
    cls=_WithFilters,
    epilog="Example: em-assets ingest 10001.yaml --from s3://raw-files --to portal --dry-run --filter-run-name TS_0",
)
def ingest(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="the portal's ingestion config, version 1.3.0")],
    *,
    source: Annotated[str, typer.Option("--from", metavar="PATH|s3://...", help="what source_prefix lies in")],
    destination: Annotated[
        str | None, typer.Option("--to", metavar="PATH|s3://...", help="the root of the portal's tree")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what every glob matches, write nothing")] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="take a config that lacks what the schema wants, and say what")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="of its assets in Dagster [ingest_ and the config's name]")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="read what is there, and make anew what is damaged")] = False,
    as_json: JsonOption = False,
) -> None:
    """Makes a bucket of raw files into the CryoET Data Portal's tree.

    What is whole there already is left alone. The tree lies in `portal` of EM_ASSETS_ROOT unless --to says where.
    Dagster knows the ingestion by the asset NAME and its runs as partitions of NAME_runs; with filters only if --name
    is given.

    --filter-TYPE-name RE keeps entities whose names begin so, --exclude-TYPE-name RE leaves them out; both may be given
    again. TYPE is deposition, dataset, run, gain, collection-metadata, frame, tiltseries, ctf, rawtilt, alignment,
    identified-object, voxel-spacing, annotation, tomogram, key-image, dataset-keyphoto or deposition-keyphoto.
    """
    from em_assets.ingest.config import load_config
    from em_assets.ingest.filters import read_filters
    from em_assets.ingest.plan import make_plan
    from em_assets.ingest.table import plan_lines
    from em_assets.settings import read_settings
    from em_assets.store import open_store

    words = tuple(context.meta[__name__])
    settings = read_settings()
    if destination is None and not dry_run:
        destination = f"{settings.root.rstrip('/')}/portal"
    try:
        filters = read_filters(words)
    except Malformed as error:
        raise typer.BadParameter(str(error)) from None
    loaded = load_config(config, partial=partial)
    plan = make_plan(loaded, open_store(source), open_store(destination) if destination else None, filters)
    if destination is not None and not dry_run and not any(problem.is_error for problem in plan.problems):
        registered = _registered(plan, _Asked(config, source, destination, words, partial=partial), name, settings)
        _carry_out(plan, source, destination, registered, settings, verify=verify, as_json=as_json)
        return
    if as_json:
        say(json.dumps(_values(plan), indent=1, ensure_ascii=False, default=str))
    else:
        for line in plan_lines(plan, source):
            say(line)
    if plan.errors:
        count = "1 error" if len(plan.errors) == 1 else f"{len(plan.errors)} errors; the first"
        warn(on_one_line(f"{count}: {plan.errors[0]}"))
        raise typer.Exit(EXIT_FAILED)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What the command line says of an ingestion."""

    config: Path
    source: str
    destination: str
    filters: tuple[str, ...]
    partial: bool = dataclasses.field(kw_only=True)


def _registered(plan: IngestPlan, asked: _Asked, name: str | None, settings: Settings) -> str | None:
    """Makes Dagster know the ingestion, and says how; None for a choice of runs that nobody gave a name."""
    from em_assets.adding.draft import output_folder
    from em_assets.ingest.registered import default_name, new_ingestion, register

    if asked.filters and name is None:
        return None
    ingestion = new_ingestion(
        name or default_name(asked.config),
        plan,
        source=asked.source,
        destination=asked.destination,
        filters=asked.filters,
        partial=asked.partial,
    )
    file = register(ingestion, output_folder(settings))
    rest = len(plan.runs) - len(ingestion.runs)
    others = f"; {rest} with names that Dagster does not take are made with {ingestion.name} alone" if rest else ""
    return f"{len(ingestion.runs)} runs, in Dagster the partitions of {ingestion.runs_asset} ({file}){others}"


def _carry_out(
    plan: IngestPlan,
    source: str,
    destination: str,
    registered: str | None,
    settings: Settings,
    *,
    verify: bool,
    as_json: bool,
) -> None:
    from em_assets.ingest.run import ingest as carry_out
    from em_assets.store import open_store

    def tell(outcome: EntityOutcome) -> None:
        warn(on_one_line(str(outcome)))

    if registered is not None:
        warn(registered)
    stores = open_store(source), open_store(destination)
    report = carry_out(plan, *stores, settings=settings, progress=tell, verify=verify)
    if as_json:
        say(json.dumps(dataclasses.asdict(report) | {"is_complete": report.is_complete}, indent=1, ensure_ascii=False))
    else:
        for line in report.lines():
            say(on_one_line(line) if not line.startswith(" ") else f"  {on_one_line(line)}")
    if not report.is_complete:
        raise typer.Exit(report.exit_code)


def _values(plan: IngestPlan) -> dict[str, Any]:
    """The plan as JSON has it, without the config itself."""
    others = ("config", "is_filtered")
    parts = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan) if field.name not in others}
    return {
        "config": plan.config.file,
        "is_filtered": plan.is_filtered,
        **{name: [dataclasses.asdict(item) for item in items] for name, items in parts.items()},
    }
