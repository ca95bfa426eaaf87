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
from em_assets.ingest.ledger import FOLDER, Ledger
from em_assets.ingest.making import Bench, Job, Made, Progress
from em_assets.ingest.plan import IngestPlan, RunPlan
from em_assets.ingest.reconstructions import Reconstructions
from em_assets.ingest.report import EntityOutcome, IngestReport, RunOutcome
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
    verify: bool = False,
) -> IngestReport:
    """Makes everything of a plan that is not there yet; of `runs` only, if they are given (then nothing above them).

    What is there is known to be whole by the sizes that were recorded, with `verify` by every byte of it. Nothing is
    removed because the config finds it no more; without filters the report names it.

    Raises Problems if the plan as a whole has errors, Malformed for a run that it does not have. All else that goes
    wrong is in the report. What is finished at any moment stays finished, whatever happens to the process.
    """
    errors = tuple(problem for problem in plan.problems if problem.is_error)
    if errors:
        raise Problems(errors)
    chosen = list(_chosen(plan, runs))
    outcomes = tuple(
        _run(plan, run, _bench(run, source, destination, settings, progress, verify=verify)) for run in chosen
    )
    above: tuple[EntityOutcome, ...] = ()
    if runs is None:
        above = make_above(plan, source, destination, settings, progress, verify=verify)
        above += () if plan.is_filtered else tuple(_left_runs(plan, destination))
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


def _left_runs(plan: IngestPlan, destination: Store) -> Iterator[EntityOutcome]:
    """Runs that an earlier config of a deposition made, and this one does not find."""
    known = {(int(run.run.parents["dataset"]), run.run.name) for run in plan.runs}
    for dataset in plan.datasets:
        number, deposition_id = int(dataset.name), int(dataset.parents["deposition"])
        prefix = f"{FOLDER}/{number}/"
        names = {path.removeprefix(prefix).partition("/")[0] for path, _ in destination.list(prefix.rstrip("/"))}
        for name in sorted(name for name in names if (number, name) not in known):
            place = f"{number}/{name}"
            ledger = Ledger(destination, place)
            if ledger.sizes and any(
                one.kind == "run" and one.deposition_id == deposition_id for one in ledger.records()
            ):
                note = f"The config does not find it any more. Remove it if nobody wants it: {place}, {prefix}{name}."
                yield EntityOutcome("run", name, "left", 0, (place,), sum(ledger.sizes.values()), (note,))


def _bench(
    run: RunPlan, source: Store, destination: Store, settings: Settings, progress: Progress | None, *, verify: bool
) -> Bench:
    place = RunPlace(int(run.run.parents["dataset"]), run.run.name).folder
    destination.remove_partials(place)
    number = int(run.run.parents["deposition"])
    return Bench(source, destination, place, deposition_id=number, settings=settings, progress=progress, verify=verify)


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
    if not plan.is_filtered and not any(outcome.status == "failed" for outcome in bench.outcomes):
        bench.tell_of_others()
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
