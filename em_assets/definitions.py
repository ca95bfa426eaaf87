"""The Dagster code location: every spec's assets and checks, the catalogue, the resources, the sensor.

Loading stays light: no array, table or cloud library is imported before a step needs it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from em_assets._default_target import leave_run_note
from em_assets.assets import Platform, build_catalog_asset, build_dataset_assets, build_export_assets, spec_file
from em_assets.automation import build_sensors
from em_assets.datasets.loading import load_sound_specs
from em_assets.datasets.spec import ASSET_SUFFIXES
from em_assets.errors import EmAssetsError, Malformed
from em_assets.ingest_assets import build_ingestion_assets
from em_assets.partitions import explain_arguments
from em_assets.resources.storage import Storage
from em_assets.resources.zarr_io import ZarrRegionIOManager
from em_assets.settings import S3Access, Settings, read_settings

# single-run backfills are what this platform rests on; Dagster still calls them beta
warnings.filterwarnings("ignore", category=dg.BetaWarning)

STEPS_AT_ONCE = 4


def build_defs(
    *, settings: Settings | None = None, resources: Mapping[str, Any] | None = None, executor: Any = None
) -> dg.Definitions:
    """Everything, from the environment or from `settings`. `resources` replaces any of them by key (tests)."""
    settings = settings or read_settings()
    folders = settings.dataset_folders()
    specs, wrong = load_sound_specs(folders)
    for name, error in wrong.items():
        dg.get_dagster_logger().warning("dataset %s is left out: %s", name, error)
    platform = Platform(settings, specs)
    assets: list[dg.AssetsDefinition] = [build_catalog_asset(platform), *build_export_assets(platform)]
    checks: list[dg.AssetChecksDefinition] = []
    for spec in platform.specs.values():
        dataset_assets, dataset_checks = build_dataset_assets(spec, platform)
        assets += _with_reference(dataset_assets, spec_file(spec.name, folders))
        checks += dataset_checks
    taken = [key.to_user_string() for asset in assets for key in asset.keys]
    assets += build_ingestion_assets(folders, settings, taken)
    return dg.Definitions(
        assets=assets,
        asset_checks=checks,
        sensors=build_sensors(),
        resources=_resources(settings, folders, resources or {}),
        executor=executor or _executor(),
    )


def _executor() -> dg.ExecutorDefinition:
    """A process for each step. On Linux it is forked from one that has imported Dagster and this package and nothing
    more, no thread started: forty steps took 126 s in place of 235 s on two cores.
    """
    options: dict[str, Any] = {"max_concurrent": STEPS_AT_ONCE}
    if sys.platform == "linux":
        options["start_method"] = {"forkserver": {"preload_modules": ["em_assets.assets"]}}
    return dg.multiprocess_executor.configured(options)


def _resources(settings: Settings, folders: list[Path], given: Mapping[str, Any]) -> dict[str, Any]:
    """Ours, with those that are given in their place; the I/O manager uses the storage that is given."""
    resources: dict[str, Any] = {}
    if "storage" in given:
        storage = given["storage"]
    elif settings.root.startswith("s3://"):
        # seconds to import, so only where it is used; replace it in `resources` to give credentials in code
        from dagster_aws.s3 import S3Resource

        access = S3Access.from_environment()
        resources["s3"] = S3Resource(
            endpoint_url=access.endpoint_url, region_name=access.region, use_unsigned_session=access.anonymous
        )
        storage = Storage.from_s3_resource(settings.root, resources["s3"])
    else:
        storage = Storage(root=settings.root)
    folder_names = [str(folder.absolute()) for folder in folders]
    regions = ZarrRegionIOManager(storage=storage, dataset_folders=folder_names)
    return {**resources, "storage": storage, "zarr_regions": regions, **given}


def _with_reference(assets: list[dg.AssetsDefinition], file: Path | None) -> list[dg.AssetsDefinition]:
    """The dataset's YAML as the assets' source: that is what a person edits."""
    if file is None:
        return assets
    reference = dg.CodeReferencesMetadataValue(
        code_references=[dg.LocalFileCodeReference(file_path=str(file.absolute()), line_number=1, label=file.name)]
    )
    return list(
        dg.map_asset_specs(lambda spec: spec.merge_attributes(metadata={"dagster/code_references": reference}), assets)
    )


def _load() -> dg.Definitions:
    """The definitions of the environment; what is wrong with it, or with the command, is left as one sentence."""
    try:
        settings = read_settings()
        loaded = build_defs(settings=settings)
    except EmAssetsError as error:
        leave_run_note(str(error))
        raise
    names = [key.to_user_string() for key in loaded.resolve_all_asset_keys()]
    specs, wrong = load_sound_specs(settings.dataset_folders())
    sentence = explain_arguments(sys.orig_argv, specs, names)
    if sentence is not None:
        leave_run_note(_explain_wrong(sys.orig_argv, wrong) or sentence)
    return loaded


def _explain_wrong(arguments: Sequence[str], wrong: Mapping[str, Malformed]) -> str | None:
    """What is wrong with the spec of the dataset that a command names; None if it names none of those."""
    words = {argument.removeprefix("--select=") for argument in arguments}
    asked = (name for name in wrong if words & {name, *(name + suffix for suffix in ASSET_SUFFIXES)})
    return next((str(wrong[name]) for name in asked), None)


defs = _load()
