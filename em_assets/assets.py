"""A dataset's spec -> its Dagster assets. The one place where the parts meet; the work itself is `pipeline.py`.

    hemibrain_crop_chunks (by region) --> hemibrain_crop --> hemibrain_crop_metadata --+
                                                        +--> hemibrain_crop_blocks   --+
                                                        +--> hemibrain_crop_portal, when it is asked for
    empiar_11759_files    (by file)   --> empiar_11759   --> empiar_11759_metadata   --+--> metadata_catalog --> exports
                                                        +--> empiar_11759_blocks     --+

`hemibrain_crop` carries no partitions because Dagster refuses to materialize a partitioned asset by its name
alone, and `dagster asset materialize --select hemibrain_crop` has to do the whole job. It fetches what is missing
with the same function as the partitioned asset, and logs a materialization of each partition it fetched.
"""

import base64
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from em_assets import pipeline
from em_assets._default_target import leave_run_note
from em_assets.checks import blocks as block_checks
from em_assets.checks.asset_checks import build_block_checks, build_volume_checks, check_result
from em_assets.checks.metadata import METADATA_KEYS
from em_assets.checks.volume import BLOCKING, CheckOutcome
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError, Mismatch
from em_assets.partitions import received_asset, received_partitions
from em_assets.progress import Reporter, human_bytes, human_seconds, open_reporter
from em_assets.records import DatasetFolder, DatasetRecord
from em_assets.resources.storage import Storage
from em_assets.settings import Settings
from em_assets.store import Store

if TYPE_CHECKING:
    from em_assets.blocks.volume import Volume

CATALOG = "metadata_catalog"
STARTED_BY_SENSOR = "dagster/sensor_name"
"""Dagster's tag on the runs of a sensor: those finish what is here and never download."""
FOLLOWS = dg.AutomationCondition.eager() & dg.AutomationCondition.all_deps_blocking_checks_passed()
"""Made again when what it depends on was, unless a blocking check of that is red."""
FOLLOWS_ANY = (
    dg.AutomationCondition.any_deps_updated().since(
        dg.AutomationCondition.newly_requested() | dg.AutomationCondition.initial_evaluation()
    )
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
)
"""Likewise, of whichever of its dependencies are there: nobody downloads every dataset to get a catalogue of one.
Unlike `eager` it is not put off by the catalogue of a dataset's own step: that may be older than the claims."""
RESOURCES = {"storage"}
PORTAL = "portal"
"""Folder of the store with the tree that all datasets share that were asked for in the CryoET Data Portal's layout."""
LARGEST_INLINE_PREVIEW_BYTES = 50_000
"""Each copy stays in the event log for ever."""
CONTACT_SHEET_BLOCKS, CONTACT_SHEET_PIXELS = (24, 12), 48
"""Fewer where the picture would be larger than that: noise hardly compresses."""


@dataclass(frozen=True)
class Platform:
    """What every asset of one code location shares."""

    settings: Settings
    specs: Mapping[str, DatasetSpec]


def build_dataset_assets(
    spec: DatasetSpec, platform: Platform
) -> tuple[list[dg.AssetsDefinition], list[dg.AssetChecksDefinition]]:
    """The assets of one dataset, and their checks. Without a standardized volume there are no blocks of it, and no
    tree of the portal's.
    """
    assets = [_received_asset(spec, platform), _dataset_asset(spec, platform), _metadata_asset(spec, platform)]
    checks = [build_volume_checks(spec, _run_checks(spec, platform), RESOURCES)]
    if spec.makes_standard:
        assets += [_blocks_asset(spec, platform), _portal_asset(spec, platform)]
        checks.append(build_block_checks(blocks_asset(spec.name), _run_block_checks(spec, platform), RESOURCES))
    return assets, checks


def _received_asset(spec: DatasetSpec, platform: Platform) -> dg.AssetsDefinition:
    """What was received, by partition."""
    what = (
        f"Files of {spec.title}, byte for byte as published, each with a receipt."
        if spec.is_by_file
        else f"Regions of {spec.title}: one shard of the stored volume each, voxel for voxel as published."
    )

    @_asset(
        spec,
        received_asset(spec),
        partitions_def=received_partitions(spec),
        backfill_policy=dg.BackfillPolicy.single_run(),
        description=what,
        kinds={"file"} if spec.is_by_file else {"zarr", spec.source.kind},
        **({} if spec.is_by_file else {"io_manager_key": "zarr_regions"}),
    )
    def received(context: dg.AssetExecutionContext) -> None:
        store, keys = _store(context), list(context.partition_keys)
        with _explained(context, spec, platform), _reporter(context, spec, platform) as reporter:
            try:
                result = pipeline.fetch_dataset_partitions(
                    spec, platform.settings, store, keys, reporter=reporter, log=context.log.info
                )
            except pipeline.PartitionsFailed as error:
                _log_partitions(context, spec, error.result.fetched + error.result.kept)
                raise
            for item in result.fetched + result.kept:
                context.add_asset_metadata(_partition_metadata(item), partition_key=item.key)
            reporter.finish([f"{spec.name}: {len(result.fetched)} partitions fetched, {len(result.kept)} already here"])

    return received


def _dataset_asset(spec: DatasetSpec, platform: Platform) -> dg.AssetsDefinition:
    received = dg.AssetKey(received_asset(spec))

    @_asset(
        spec,
        spec.name,
        deps=[dg.AssetDep(received, partition_mapping=dg.AllPartitionMapping())],
        backfill_policy=dg.BackfillPolicy.single_run(),
        io_manager_key="zarr_regions",
        automation_condition=dg.AutomationCondition.eager(),
        description=spec.description,
        kinds={"zarr", "ome"},
    )
    def dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        store = _store(context)
        with _explained(context, spec, platform), _reporter(context, spec, platform) as reporter:
            refresh_catalog(context, platform, store)
            try:
                record, result = pipeline.materialize_dataset(
                    spec,
                    platform.settings,
                    store,
                    reporter=reporter,
                    log=context.log.info,
                    may_fetch=STARTED_BY_SENSOR not in context.run.tags,
                )
            except pipeline.PartitionsFailed as error:
                _log_partitions(context, spec, error.result.fetched)
                raise
            _log_partitions(context, spec, _not_yet_known(context, received, result))
            refresh_catalog(context, platform, store)
            reporter.finish(_summary(spec, record, result))
        return dg.MaterializeResult(
            metadata=_dataset_metadata(spec, DatasetFolder(store, spec.name), record, result),
            data_version=dg.DataVersion(record.sha256 or record.identity),
        )

    return dataset


def _metadata_asset(spec: DatasetSpec, platform: Platform) -> dg.AssetsDefinition:
    name = f"{spec.name}_metadata"

    @_asset(
        spec,
        name,
        deps=[spec.name],
        automation_condition=FOLLOWS,
        description=f"What the publisher's own documents state about {spec.name}, each value with its origin.",
        kinds={"parquet"},
        check_specs=[
            dg.AssetCheckSpec(
                METADATA_KEYS,
                asset=name,
                description="Documents and files have the keys they had before, and those that are relied on.",
            )
        ],
    )
    def metadata(
        context: dg.AssetExecutionContext,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster takes the parametrized one for an output beside the check
        store = _store(context)
        with _explained(context, spec, platform):
            described = pipeline.describe_dataset(
                spec,
                platform.settings,
                store,
                fetch=STARTED_BY_SENSOR not in context.run.tags,
                log=context.log.info,
            )
        rows = [
            dg.TableRecord({"key": claim.key, "value": str(claim.value), "document": claim.document})
            for claim in described.first_claims
        ]
        return dg.MaterializeResult(
            metadata={
                "claims": described.claims,
                "documents_received": len(described.received),
                "documents_missing": dg.MetadataValue.json(described.missing),
                "keys": described.keys.message,
                "page": dg.MetadataValue.url(spec.page_url),
                "license": spec.license,
                "citation": spec.citation,
                **({} if spec.doi is None else {"doi": dg.MetadataValue.url(f"https://doi.org/{spec.doi}")}),
                **({"first_claims": dg.MetadataValue.table(rows)} if rows else {}),
            },
            check_results=[check_result(name, described.keys)],
        )

    return metadata


def blocks_asset(name: str) -> str:
    """The name of the asset with a dataset's index of blocks."""
    return f"{name}_blocks"


def _blocks_asset(spec: DatasetSpec, platform: Platform) -> dg.AssetsDefinition:
    @_asset(
        spec,
        blocks_asset(spec.name),
        deps=[spec.name],
        automation_condition=FOLLOWS,
        description=f"What is in every block of {spec.name}: grey values, features, split, digest; blocks.parquet.",
        kinds={"parquet"},
    )
    def blocks(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        folder = DatasetFolder(_store(context), spec.name)
        with _explained(context, spec, platform), _reporter(context, spec, platform) as reporter:
            metadata: dict[str, Any] = {}
            digests = []
            for place in _volumes(folder):
                told, digest = _index(place, platform.settings, reporter)
                metadata |= told
                digests.append(digest)
            refresh_catalog(context, platform, folder.store)
        version = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(version))

    return blocks


def portal_asset(name: str) -> str:
    """The name of the asset with a dataset's tree as the CryoET Data Portal has one."""
    return f"{name}_portal"


def _portal_asset(spec: DatasetSpec, platform: Platform) -> dg.AssetsDefinition:
    """Made when somebody asks for it: it is as large as the dataset."""

    @_asset(
        spec,
        portal_asset(spec.name),
        deps=[spec.name],
        description=f"{spec.name} in the CryoET Data Portal's layout, below {PORTAL}/: OME-Zarr, MRC, metadata JSON.",
        kinds={"zarr", "mrc", "json"},
    )
    def portal(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from em_assets.portal.tree import export_tree
        from em_assets.store import ObjectStore, open_store

        store = _store(context)
        target = open_store(store.uri(PORTAL), store.access if isinstance(store, ObjectStore) else None)
        with _explained(context, spec, platform), _reporter(context, spec, platform) as reporter:
            done = export_tree(
                DatasetFolder(store, spec.name),
                target,
                spec=spec,
                workers=platform.settings.workers,
                progress=reporter,
            )
            pictures = [target.read(key) for key in done.pictures] if done.new else []
            written = f"{done.new} of {len(done.keys)} files and groups written"
            reporter.finish([f"{spec.name}: {written}, {human_bytes(done.size_bytes)} in {target.uri('')}"])
        metadata: dict[str, Any] = {
            "dagster/uri": target.uri(str(done.dataset_id)),
            "dataset": done.dataset_id,
            "deposition": done.deposition_id,
            "runs": ", ".join(done.runs),
            "files_and_groups": len(done.keys),
            "written": done.new,
            "file_size_bytes": done.size_bytes,
            "missing_voxels": done.missing_voxels,
            "not stated by anybody": dg.MetadataValue.json(dict(done.unknown)),
            "paths": dg.MetadataValue.md("\n".join(f"- {key}" for key in done.keys)),
        }
        if done.notes:
            metadata["careful"] = dg.MetadataValue.md("\n".join(f"- {note}" for note in done.notes))
        picture = next((one for one in pictures if len(one) <= LARGEST_INLINE_PREVIEW_BYTES), None)
        if picture is not None:
            inline = base64.b64encode(picture).decode()
            metadata["picture"] = dg.MetadataValue.md(f"![key photo](data:image/png;base64,{inline})")
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(done.sha256))

    return portal


def _volumes(folder: DatasetFolder) -> list[DatasetFolder]:
    """Of a complete dataset: the folder with each of its volumes, the main one first. Raises Mismatch for others."""
    record = folder.read_record()
    status = "not there" if record is None else record.visible_status
    if record is None or status != "complete":
        raise Mismatch(f"{folder.name} is {status}, so nobody knows its blocks; materialize {folder.name} first.")
    return [folder.further(sub) for sub in (None, *record.volumes)]


def _index(place: DatasetFolder, settings: Settings, reporter: Reporter) -> tuple[dict[str, Any], str]:
    """Writes the index of one volume's blocks unless it is there; (what the UI shows of it, digest of its rows)."""
    from em_assets.blocks.index import write_index
    from em_assets.blocks.opening import open as open_volume

    volume = open_volume(place.title, settings=settings)
    made = write_index(place, volume, workers=settings.workers, progress=_counted(reporter, place.title))
    splits = ", ".join(f"{count} {name}" for name, count in made.per_split.items())
    how = "indexed" if made.was_written else "indexed before"
    reporter.finish([f"{place.title}: {made.blocks} blocks {how} ({splits})"])
    label = "" if place.sub is None else f"{place.sub}: "
    metadata: dict[str, Any] = {
        f"{label}blocks": made.blocks,
        f"{label}coverage": made.coverage,
        f"{label}method": made.info.features_method or "labels",
        f"{label}dagster/uri" if place.sub is None else f"{label}uri": place.uri(made.path),
        **{f"{label}blocks in {name}": count for name, count in made.per_split.items()},
    }
    if made.was_written and (picture := _contact_sheet(place, volume)) is not None:
        metadata[f"{label}contact sheet"] = picture
    return metadata, made.info.digest()


def _counted(reporter: Reporter, title: str) -> Callable[[int, int], None]:
    """What an index calls with (blocks done, of how many)."""
    done_before = 0

    def progress(done: int, total: int) -> None:
        nonlocal done_before
        if done_before == 0:
            reporter.start(None, total, f"{title} blocks")
        reporter.advance(items=done - done_before)
        done_before = done

    return progress


def _contact_sheet(place: DatasetFolder, volume: "Volume") -> dg.MarkdownMetadataValue | None:
    """The middle planes of blocks from all over the volume, as many as fit."""
    from em_assets.blocks.sheet import contact_sheet

    with block_checks.open_index(volume, place) as index:
        for most in CONTACT_SHEET_BLOCKS:
            shown = min(most, index.blocks)
            rows = [index.row(number * index.blocks // shown) for number in range(shown)]
            picture = contact_sheet(volume, rows, pixels=CONTACT_SHEET_PIXELS)
            if len(picture) <= LARGEST_INLINE_PREVIEW_BYTES:
                return dg.MetadataValue.md(f"![blocks](data:image/png;base64,{base64.b64encode(picture).decode()})")
    return None


def _run_block_checks(spec: DatasetSpec, platform: Platform) -> Callable[[Any, Sequence[str]], list[CheckOutcome]]:
    def run(context: dg.AssetCheckExecutionContext, names: Sequence[str]) -> list[CheckOutcome]:
        from em_assets.catalog.build import build_catalog

        folder = DatasetFolder(context.resources.storage.store, spec.name)
        with _explained(context, spec, platform):
            outcomes = block_checks.check_indexes(_volumes(folder), platform.settings, names)
            build_catalog(platform.specs, folder.store, platform.settings)
        _note_red(spec.name, outcomes, block_checks.BLOCKING)
        return outcomes

    return run


def build_catalog_asset(platform: Platform) -> dg.AssetsDefinition:
    """`metadata_catalog`: `metadata.duckdb`, rebuilt from the store and swapped in whole."""

    @dg.asset(
        name=CATALOG,
        deps=[
            *(f"{name}_metadata" for name in platform.specs),
            *(blocks_asset(name) for name, spec in platform.specs.items() if spec.makes_standard),
        ],
        required_resource_keys=RESOURCES,
        automation_condition=FOLLOWS_ANY,
        group_name="catalog",
        kinds={"duckdb"},
        owners=["team:em_assets"],
        description="metadata.duckdb: a row for each dataset, file, chunk, level and block; rebuilt from the store.",
    )
    def metadata_catalog(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        with _explained(context, None, platform):
            return dg.MaterializeResult(metadata=_build_catalog(platform, _store(context)))

    return metadata_catalog


def build_export_assets(platform: Platform) -> list[dg.AssetsDefinition]:
    """The catalogue in other forms. Each file is written again only if what it says has changed."""
    return [
        _export_asset(
            platform,
            "metadata_exports",
            {"csv", "json", "parquet"},
            "metadata.csv, .json and .parquet with a record for each dataset, metadata.schema.json that describes it, "
            "and a dated catalogue of what was there.",
        ),
        _export_asset(
            platform,
            "metadata_summary",
            {"markdown"},
            "METADATA_SUMMARY.md: the datasets, what their metadata share, conflicts and gaps, in words.",
        ),
        _export_asset(
            platform, "ro_crates", {"json"}, "ro-crate-metadata.json (RO-Crate 1.2) beside each complete dataset."
        ),
        _export_asset(
            platform,
            "croissants",
            {"json"},
            "croissant.json (Croissant 1.1) beside each dataset whose blocks are indexed: ML tools load these by it.",
            check=block_checks.check_croissants,
        ),
    ]


def _export_asset(
    platform: Platform,
    name: str,
    kinds: set[str],
    description: str,
    check: Callable[[Path, Store], CheckOutcome] | None = None,
) -> dg.AssetsDefinition:
    """`check`, of what was written, is told as `block_checks.CROISSANT_CHECK`."""

    @dg.asset(
        name=name,
        deps=[CATALOG],
        required_resource_keys=RESOURCES,
        automation_condition=FOLLOWS,
        group_name="catalog",
        kinds=kinds,
        owners=["team:em_assets"],
        description=description,
        check_specs=[
            dg.AssetCheckSpec(block_checks.CROISSANT_CHECK, asset=name, description=(check.__doc__ or "").strip())
        ]
        if check is not None
        else None,
    )
    def export(
        context: dg.AssetExecutionContext,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]  # as of `metadata`
        from em_assets.catalog.exporting import export_catalog
        from em_assets.catalog.query import catalog_path

        store = _store(context)
        with _explained(context, None, platform):
            files = export_catalog(name, store, platform.settings)
            outcome = None if check is None else check(catalog_path(store, platform.settings), store)
        return dg.MaterializeResult(
            metadata={
                "files": len(files),
                "changed": sum(file.changed for file in files),
                "paths": dg.MetadataValue.md("\n".join(f"- {store.uri(file.path)}" for file in files)),
            },
            check_results=[] if outcome is None else [check_result(name, outcome)],
        )

    return export


def refresh_catalog(context: dg.AssetExecutionContext, platform: Platform, store: Store) -> None:
    """Rebuilds the catalogue from inside a dataset's step, so that its name alone leaves a database with its row."""
    context.log_event(dg.AssetMaterialization(CATALOG, metadata=_build_catalog(platform, store)))


def _build_catalog(platform: Platform, store: Store) -> dict[str, Any]:
    from em_assets.catalog.build import build_catalog

    built = build_catalog(platform.specs, store, platform.settings)
    return {"dagster/uri": built.uri, "seconds": round(built.seconds, 3), **built.rows}


def _run_checks(spec: DatasetSpec, platform: Platform) -> Callable[[Any, Sequence[str]], list[CheckOutcome]]:
    def run(context: dg.AssetCheckExecutionContext, names: Sequence[str]) -> list[CheckOutcome]:
        from em_assets.catalog.build import build_catalog

        store: Store = context.resources.storage.store
        with _explained(context, spec, platform):
            outcomes, _ = pipeline.recheck_dataset(spec, store, names, context.log.info)
            if not outcomes:
                raise pipeline.ChecksFailed(f"{spec.name} is not stored yet; materialize it before checking it.")
            build_catalog(platform.specs, store, platform.settings)
        _note_red(spec.name, outcomes, BLOCKING)
        return outcomes

    return run


def _note_red(name: str, outcomes: Sequence[CheckOutcome], blocking: Sequence[str]) -> None:
    """Leaves the sentence of the first red check that stops what lies downstream."""
    red = [outcome for outcome in outcomes if not outcome.passed and outcome.name in blocking]
    if red:
        leave_run_note(f"{name}: check {red[0].name} failed: {red[0].message}.")


@contextlib.contextmanager
def _explained(context: Any, spec: DatasetSpec | None, platform: Platform) -> Iterator[None]:
    """Turns our errors into a Dagster failure of one sentence, after the catalogue shows it.

    No retry by Dagster: what may help to try again was tried by `fetch/`.
    """
    try:
        yield
    except Exception as error:
        ours = isinstance(error, EmAssetsError)
        sentence = " ".join(str(error).split())
        leave_run_note(sentence if ours else f"this is a bug, please report it: {type(error).__name__}: {sentence}")
        if spec is not None and isinstance(context, dg.AssetExecutionContext):
            # the reason of the failure matters more than a catalogue that cannot be written now
            try:
                refresh_catalog(context, platform, _store(context))
            except EmAssetsError as second:
                context.log.warning("the catalogue could not be refreshed: %s", second)
        if not ours:
            raise
        raise dg.Failure(description=sentence, allow_retries=False) from error


def _store(context: Any) -> Store:
    storage: Storage = context.resources.storage
    return storage.store


def _reporter(context: dg.AssetExecutionContext, spec: DatasetSpec, platform: Platform) -> Reporter:
    return open_reporter(context.log.info, label=spec.name, show=platform.settings.progress)


def _asset(spec: DatasetSpec, name: str, **options: Any) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """`dg.asset` with what all assets of a dataset share."""
    decorator = dg.asset(
        name=name,
        group_name=spec.publisher,
        owners=list(spec.owners),
        tags={"license": _tag_value(spec.license)},
        metadata={
            "page": dg.MetadataValue.url(spec.page_url),
            "source": dg.MetadataValue.url(spec.source.url),
            "license": spec.license,
            "shape (z, y, x)": " x ".join(map(str, spec.shape)),
            "voxel_size_nm (z, y, x)": " x ".join(str(size) for size in spec.expected.voxel_size_nm),
        },
        required_resource_keys=RESOURCES,
        **options,
    )
    return cast("Callable[[Callable[..., Any]], dg.AssetsDefinition]", decorator)


def _tag_value(text: str) -> str:
    """Dagster's tags hold letters, digits, `-`, `_` and `.`, at most 63."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)[:63].strip("-_.")


def _not_yet_known(
    context: dg.AssetExecutionContext, received: dg.AssetKey, result: pipeline.FetchResult
) -> list[pipeline.Fetched]:
    """What was fetched now, and what this history has never heard of (a fresh history over a full store)."""
    known = context.instance.get_materialized_partitions(received)
    return result.fetched + [item for item in result.kept if item.key not in known]


def _log_partitions(context: dg.AssetExecutionContext, spec: DatasetSpec, items: Iterable[pipeline.Fetched]) -> None:
    for item in items:
        context.log_event(
            dg.AssetMaterialization(
                received_asset(spec),
                partition=item.key,
                metadata=_partition_metadata(item),
                tags={"dagster/data_version": item.sha256 or "absent"},
            )
        )


def _partition_metadata(item: pipeline.Fetched) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "size_bytes": item.size_bytes,
        "received_bytes": item.received_bytes,
        "seconds": item.seconds,
        **item.details,
    }
    if item.sha256 is not None:
        metadata["sha256"] = item.sha256
    return metadata


def _dataset_metadata(
    spec: DatasetSpec, folder: DatasetFolder, record: DatasetRecord, result: pipeline.FetchResult
) -> dict[str, Any]:
    from em_assets.neuroglancer import hosted_url

    rate = result.received_bytes / result.seconds / 1e6 if result.seconds else None
    metadata: dict[str, Any] = {
        "dagster/uri": folder.uri(folder.volume if spec.makes_standard else "original"),
        "shape (z, y, x)": " x ".join(map(str, spec.shape)),
        "voxel_size_nm (z, y, x)": " x ".join(str(size) for size in spec.expected.voxel_size_nm),
        "file_size_bytes": record.file_size_bytes or 0,
        "partitions_fetched": len(result.fetched),
        "received_bytes": result.received_bytes,
        "source_box (z, y, x)": str(record.source_box),
    }
    if (hosted := hosted_url(spec, record)) is not None:
        metadata["neuroglancer at the publisher"] = dg.MetadataValue.url(hosted)
    for name, volume in record.volumes.items():
        metadata[f"volume {name}"] = f"{' x '.join(map(str, volume.shape))} {volume.dtype} {volume.content}"
    if rate is not None:
        metadata["received_MB_per_second"] = round(rate, 1)
    if result.changed and spec.makes_standard:
        preview = folder.read(folder.preview)
        if len(preview) <= LARGEST_INLINE_PREVIEW_BYTES:
            picture = base64.b64encode(preview).decode()
            metadata["preview"] = dg.MetadataValue.md(f"![three slices](data:image/png;base64,{picture})")
    return metadata


def _summary(spec: DatasetSpec, record: DatasetRecord, result: pipeline.FetchResult) -> list[str]:
    from em_assets.neuroglancer import hosted_url

    done = (
        f"{len(result.fetched)} partitions fetched "
        f"({human_bytes(result.received_bytes)} in {human_seconds(result.seconds)})"
        if result.fetched
        else "nothing had to be fetched"
    )
    places = {name: where for name, where in record.local_paths.items() if name.endswith(("volume", "original"))}
    hosted = hosted_url(spec, record)
    return [
        f"{record.name} is complete: {done}, {human_bytes(record.file_size_bytes or 0)} stored",
        *(f"  {name:<9} {where}" for name, where in places.items()),
        f"  look      em-assets view {record.name}",
        '  query     em-assets sql "from overview"',
        *([f"  at the publisher  {hosted}"] if hosted is not None else []),
    ]


def spec_file(name: str, folders: Sequence[Path]) -> Path | None:
    """The YAML that describes a dataset."""
    return next((folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()), None)
