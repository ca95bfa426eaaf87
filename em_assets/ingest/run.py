"""Carrying a plan out: `ingest`. Each run's entities in the portal's order, then datasets and depositions.

An entity that fails is named with its reason, whatever refers to it waits, and the rest goes on; a run with one that
failed has no `run_metadata.json`. Running again makes what is not whole, and nothing else. `making.py` is how one
entity is made, `ledger.py` how it is known again; what the portal's code does otherwise is said where it is done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from em_assets.errors import Malformed
from em_assets.ingest.above import make_above
from em_assets.ingest.acquisition import Acquisition
from em_assets.ingest.making import Bench, Job, Made, Progress
from em_assets.ingest.plan import IngestPlan, RunPlan
from em_assets.ingest.reconstructions import Reconstructions
from em_assets.ingest.report import IngestReport, RunOutcome
from em_assets.ingest.run_context import RunContext
from em_assets.ingest.yaml_lines import Problems
from em_assets.portal import entities
from em_assets.portal.layout import RunPlace
from em_assets.settings import Settings
from em_assets.store import Store


def ingest(
    plan: IngestPlan,
    source: Store,
    destination: Store,
    *,
    runs: Collection[str] | None = None,
    settings: Settings,
    progress: Progress | None = None,
) -> IngestReport:
    """Makes everything of a plan that is not there yet; of `runs` only, if they are given (then nothing above them).

    Raises Problems if the plan as a whole has errors, Malformed for a run that it does not have. All else that goes
    wrong is in the report. What is finished at any moment stays finished, whatever happens to the process.
    """
    errors = tuple(problem for problem in plan.problems if problem.is_error)
    if errors:
        raise Problems(errors)
    chosen = list(_chosen(plan, runs))
    outcomes = tuple(_run(plan, run, _bench(run, source, destination, settings, progress)) for run in chosen)
    above = make_above(plan, source, destination, settings, progress) if runs is None else ()
    return IngestReport(destination.uri(""), outcomes, above)


def run_key(run: RunPlan, plan: IngestPlan) -> str:
    """What `runs` and partitions call a run: its name, and where the plan has several datasets theirs before it."""
    return run.run.name if len(plan.datasets) < 2 else f"{run.run.parents['dataset']}__{run.run.name}"


def _chosen(plan: IngestPlan, runs: Collection[str] | None) -> Iterator[RunPlan]:
    known = {run_key(run, plan): run for run in plan.runs}
    unknown = sorted(set(runs or ()) - set(known))
    if unknown:
        some = ", ".join(list(known)[:10]) or "none"
        raise Malformed(f"{plan.config.file}: there is no run {', '.join(unknown)}; the config finds {some}.")
    yield from (run for key, run in known.items() if runs is None or key in runs)


def _bench(run: RunPlan, source: Store, destination: Store, settings: Settings, progress: Progress | None) -> Bench:
    place = RunPlace(int(run.run.parents["dataset"]), run.run.name).folder
    destination.remove_partials(place)
    number = int(run.run.parents["deposition"])
    return Bench(source, destination, place, deposition_id=number, settings=settings, progress=progress)


def _run(plan: IngestPlan, run: RunPlan, bench: Bench) -> RunOutcome:
    dataset = run.run.parents["dataset"]
    place = RunPlace(int(dataset), run.run.name)
    context = RunContext(plan, run, bench, place)
    for problem in run.problems:
        if problem.is_error:
            bench.fail("plan", problem.key, problem.line, str(problem))
        else:
            bench.leave("plan", problem.key, problem.line, str(problem))
    acquisition = Acquisition(context)
    acquisition.all()
    for spacing in context.of("voxel_spacing"):
        Reconstructions(context, acquisition, spacing).all()
    if run.run.is_new:
        _finish(bench, run, place)
    return RunOutcome(dataset, run.run.name, tuple(bench.outcomes))


def _finish(bench: Bench, run: RunPlan, place: RunPlace) -> None:
    """Writes what says that the run is whole, or takes it away if it is not any more."""
    if any(outcome.status == "failed" for outcome in bench.outcomes):
        bench.destination.delete(place.metadata)
        return
    values = {"run_name": place.run}
    bench.make(
        Job(
            "run",
            place.run,
            run.run.line,
            [],
            values,
            lambda _sources: Made((), values),
            entities.RunMetadata,
            place.metadata,
        )
    )
