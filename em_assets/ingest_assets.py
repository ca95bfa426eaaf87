"""An ingestion of the CryoET Data Portal's config -> its Dagster assets. The work itself is `ingest/`.

    ingest_10001_runs (by run) --> ingest_10001

`ingest_10001_runs` makes one run of the portal's tree for each partition; `ingest_10001` makes all runs that are not
whole, logging a materialization of each, and then the JSON of datasets and depositions. Both are made on request only.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from em_assets._default_target import leave_run_note
from em_assets.errors import EmAssetsError
from em_assets.ingest.registered import Ingestion, load_ingestions
from em_assets.progress import human_bytes
from em_assets.settings import Settings

if TYPE_CHECKING:
    from em_assets.ingest.report import IngestReport, RunOutcome

GROUP = "cryoet_ingestion"
MOST_SHOWN = 200
"""Lines of a report that go into the event log, where they stay for ever."""


class RunsFailed(EmAssetsError):
    """Some entities could not be made; what could be stays."""


def build_ingestion_assets(
    folders: Sequence[Path], settings: Settings, taken: Iterable[str]
) -> list[dg.AssetsDefinition]:
    """Of every ingestion in the folders of specs. One that is wrong, or has a name that is taken, is left out."""
    ingestions, wrong = load_ingestions(folders)
    for name, error in wrong.items():
        dg.get_dagster_logger().warning("ingestion %s is left out: %s", name, error)
    names = set(taken)
    assets: list[dg.AssetsDefinition] = []
    for ingestion in ingestions.values():
        if names & {ingestion.name, ingestion.runs_asset}:
            dg.get_dagster_logger().warning("ingestion %s is left out: its name is taken", ingestion.name)
            continue
        names |= {ingestion.name, ingestion.runs_asset}
        assets += [_runs_asset(ingestion, settings), _whole_asset(ingestion, settings)]
    return assets


def _runs_asset(ingestion: Ingestion, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        name=ingestion.runs_asset,
        partitions_def=dg.StaticPartitionsDefinition(list(ingestion.runs)),
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=GROUP,
        kinds={"zarr", "ome"},
        metadata=_stated(ingestion),
        description=f"Runs of {Path(ingestion.config).name}, each as the CryoET Data Portal's tree has it.",
    )
    def runs(context: dg.AssetExecutionContext) -> None:
        keys = list(context.partition_keys)
        with _explained():
            report = ingestion.carry_out(settings, keys, lambda outcome: context.log.info(str(outcome)))
            _log_lines(context, report)
            if report.is_complete:
                for key, run in _by_key(ingestion, report):
                    context.add_asset_metadata(_run_metadata(run), partition_key=key)
                return
            _log_whole(context, ingestion, _by_key(ingestion, report))
            _raise(report)

    return runs


def _whole_asset(ingestion: Ingestion, settings: Settings) -> dg.AssetsDefinition:
    runs = dg.AssetKey(ingestion.runs_asset)

    @dg.asset(
        name=ingestion.name,
        deps=[dg.AssetDep(runs, partition_mapping=dg.AllPartitionMapping())],
        group_name=GROUP,
        kinds={"zarr", "ome"},
        metadata=_stated(ingestion),
        description=f"What {Path(ingestion.config).name} describes, as the CryoET Data Portal's tree: all runs that "
        "are not whole, then the JSON of datasets and depositions.",
    )
    def whole(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        with _explained():
            report = ingestion.carry_out(settings, None, lambda outcome: context.log.info(str(outcome)))
            _log_lines(context, report)
            known = context.instance.get_materialized_partitions(runs)
            found = [(key, run) for key, run in _by_key(ingestion, report) if run.is_new or key not in known]
            _log_whole(context, ingestion, found)
            if not report.is_complete:
                _raise(report)
        return dg.MaterializeResult(
            metadata={
                "dagster/uri": report.destination,
                "runs": len(report.runs),
                "entities": sum(len(run.entities) for run in report.runs) + len(report.above),
                "size": human_bytes(sum(run.size_bytes for run in report.runs)),
                "notes": dg.MetadataValue.md(_notes(report)),
            }
        )

    return whole


def _stated(ingestion: Ingestion) -> dict[str, Any]:
    return {
        "config": dg.MetadataValue.path(ingestion.config),
        "from": ingestion.source,
        "to": ingestion.destination,
        "runs": len(ingestion.runs),
    }


def _by_key(ingestion: Ingestion, report: "IngestReport") -> Iterator[tuple[str, "RunOutcome"]]:
    """Runs by the partition that they are; a run that came after the ingestion was registered is none yet."""
    for run in report.runs:
        key = next((key for key in (run.run, f"{run.dataset}__{run.run}") if key in ingestion.runs), None)
        if key is not None:
            yield key, run


def _log_whole(
    context: dg.AssetExecutionContext, ingestion: Ingestion, runs: Iterable[tuple[str, "RunOutcome"]]
) -> None:
    for key, run in runs:
        if run.is_complete:
            context.log_event(dg.AssetMaterialization(ingestion.runs_asset, partition=key, metadata=_run_metadata(run)))


def _run_metadata(run: "RunOutcome") -> dict[str, Any]:
    counts = {status: sum(one.status == status for one in run.entities) for status in ("made", "kept", "absent")}
    notes = "\n".join(f"- {note}" for note in run.notes[:MOST_SHOWN])
    return {
        **{f"entities {status}": count for status, count in counts.items()},
        "size_bytes": run.size_bytes,
        **({"notes": dg.MetadataValue.md(notes)} if notes else {}),
    }


def _notes(report: "IngestReport") -> str:
    notes = [f"- {run.run}: {note}" for run in report.runs for note in run.notes]
    more = [f"- and {len(notes) - MOST_SHOWN} more"] if len(notes) > MOST_SHOWN else []
    return "\n".join([*notes[:MOST_SHOWN], *more]) or "none"


def _log_lines(context: dg.AssetExecutionContext, report: "IngestReport") -> None:
    for line in list(report.lines())[:MOST_SHOWN]:
        context.log.info(line)


def _raise(report: "IngestReport") -> None:
    first = report.failed[0]
    raise RunsFailed(f"{list(report.lines())[-1]} The first: {first}")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns our errors into a Dagster failure of one sentence."""
    try:
        yield
    except EmAssetsError as error:
        sentence = " ".join(str(error).split())
        leave_run_note(sentence)
        raise dg.Failure(description=sentence, allow_retries=False) from error
    except Exception as error:
        leave_run_note(f"this is a bug, please report it: {type(error).__name__}: {' '.join(str(error).split())}")
        raise
