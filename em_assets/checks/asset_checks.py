"""The checks of `volume.py` and `blocks.py` as Dagster asset checks: a step runs all of one, each reports by itself."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from em_assets.checks import blocks
from em_assets.checks.volume import BLOCKING, CheckOutcome, checks_of
from em_assets.datasets.spec import DatasetSpec

RunChecks = Callable[[Any, Sequence[str]], list[CheckOutcome]]
"""(Dagster context, check names) -> outcomes."""
ALL_BLOCKING = frozenset({*BLOCKING, *blocks.BLOCKING})


def build_volume_checks(
    dataset: DatasetSpec, run: RunChecks, required_resource_keys: set[str]
) -> dg.AssetChecksDefinition:
    """The checks of one dataset: blocking ones stop what lies downstream, the others warn."""
    return _build_checks(dataset.name, checks_of(dataset), run, required_resource_keys)


def build_block_checks(asset: str, run: RunChecks, required_resource_keys: set[str]) -> dg.AssetChecksDefinition:
    """The checks of one dataset's indexes of blocks, likewise."""
    return _build_checks(asset, blocks.OF_INDEXES, run, required_resource_keys)


def _build_checks(
    name: str, every: Mapping[str, Callable[..., CheckOutcome]], run: RunChecks, required_resource_keys: set[str]
) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(check, asset=name, blocking=check in ALL_BLOCKING, description=_first_line(function))
        for check, function in every.items()
    ]

    @dg.multi_asset_check(
        name=f"{name}_checks", specs=specs, can_subset=True, required_resource_keys=required_resource_keys
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        selected = {key.name for key in context.selected_asset_check_keys}
        for outcome in run(context, [check for check in every if check in selected]):
            yield check_result(name, outcome)

    return checks


def check_result(asset: str, outcome: CheckOutcome) -> dg.AssetCheckResult:
    """An outcome as Dagster reports it."""
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=outcome.name,
        passed=outcome.passed,
        severity=dg.AssetCheckSeverity.ERROR if outcome.name in ALL_BLOCKING else dg.AssetCheckSeverity.WARN,
        description=outcome.message,
        metadata={
            **_entries("expected", outcome.expected),
            **_entries("found", outcome.found),
            **({"details": dg.MetadataValue.json(_plain(outcome.details))} if outcome.details else {}),
        },
    )


def _entries(label: str, value: Any) -> dict[str, Any]:
    """One entry per value, so that the UI shows them at a glance and plots numbers over time."""
    values = _plain(value)
    named = {f"{label} {key}": item for key, item in values.items()} if isinstance(values, dict) else {label: values}
    return {
        key: item if isinstance(item, str | int | float) else dg.MetadataValue.text(json.dumps(item))
        for key, item in named.items()
    }


def _plain(value: Any) -> Any:
    """What JSON makes of it: metadata must hold no tuples and no numpy scalars."""
    return json.loads(json.dumps(value))


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]
