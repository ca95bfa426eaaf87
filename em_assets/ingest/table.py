"""A plan for a person: each source of the config, what its globs matched, and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from em_assets.ingest.plan import GlobReport, IngestPlan

SHOWN_RUNS = 8
COLUMNS = ("LINE", "SOURCE", "GLOB", "RUNS", "FILES")


def plan_lines(plan: IngestPlan, source: str) -> Iterator[str]:
    """`source` is where the raw files are, as it is to be shown."""
    kinds = Counter(found.kind for run in plan.runs for found in run.entities)
    version = plan.config.version or "without a version"
    place = "/".join(part for part in (source.rstrip("/"), plan.config.source_prefix) if part)
    yield f"{plan.config.file} ({version}) from {place}"
    yield f"  {_counted(len(plan.depositions), 'deposition')}, {_counted(len(plan.datasets), 'dataset')}, " + ", ".join(
        [_counted(len(plan.runs), "run"), *(_counted(count, kind.replace("_", " ")) for kind, count in kinds.items())]
    )
    yield ""
    yield from _table(plan.globs)
    yield from _unmatched(plan.globs)
    problems = sorted(plan.every_problem, key=lambda one: (not one.is_error, one.file, one.line))
    for problem in problems:
        yield f"{'error' if problem.is_error else 'note'}: {problem}"
    if problems:
        yield f"{_counted(len(plan.errors), 'error')}, {_counted(len(problems) - len(plan.errors), 'note')}"


def _table(reports: tuple[GlobReport, ...]) -> Iterator[str]:
    rows = [COLUMNS, *(_row(report) for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row, report in zip(rows, (None, *reports), strict=True):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if report is not None:
            indent = " " * (widths[0] + widths[1] + 4)
            if report.example not in ("", report.text):
                yield f"{indent}= {_visible(report.example)}"
            for example in report.examples if report.is_glob else ():
                yield f"{indent}> {_visible(example)}"
            if report.is_glob and report.files > len(report.examples):
                yield f"{indent}> and {report.files - len(report.examples)} more"


def _row(report: GlobReport) -> tuple[str, ...]:
    tried = len(report.matched) + len(report.unmatched)
    line = str(report.line) if report.line else "-"
    return (line, report.key, _visible(report.text), f"{len(report.matched)}/{tried}", str(report.files))


def _unmatched(reports: tuple[GlobReport, ...]) -> Iterator[str]:
    """Globs that match for some runs and not for others."""
    yield ""
    for report in reports:
        if report.is_glob and report.matched and report.unmatched:
            names = ", ".join(map(_visible, report.unmatched[:SHOWN_RUNS]))
            more = f" and {len(report.unmatched) - SHOWN_RUNS} more" if len(report.unmatched) > SHOWN_RUNS else ""
            count = _counted(len(report.unmatched), "run")
            yield f"line {report.line}, {report.key}: nothing for {count}: {names}{more}"


def _counted(count: int, noun: str) -> str:
    """`3 runs`. The portal's own words for its kinds do not all have a plural."""
    is_invariable = noun in ("tiltseries", "collection metadata")
    return f"{count} {noun}" if count == 1 or is_invariable else f"{count} {noun}s"


def _visible(text: str) -> str:
    """A file's name must not steer the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
