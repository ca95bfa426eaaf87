"""The I/O manager that writes regions of a dataset's OME-Zarr volume and reads them back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from em_assets.datasets.loading import load_sound_specs
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Mismatch
from em_assets.partitions import CHUNKS_SUFFIX
from em_assets.records import DatasetFolder, partition_index
from em_assets.resources.storage import Storage
from em_assets.settings import read_settings


class ZarrRegionIOManager(dg.ConfigurableIOManager):
    """Partition keys are regions (shards) of one volume.

    An asset partitioned by a dataset's keys hands over a (z, y, x) array for one key, or `{key: array}` for
    several, and each lands in its own shard through `standardize.write_region`; the volume is then unfinished until
    its dataset is materialized. Such an asset is named after its dataset, with or without `_chunks`. Reading gives
    an array for one key and the lazy `zarr.Array` of level 0 otherwise. The package's own `<name>_chunks` writes
    inside the step instead (a range of regions does not fit into memory), and uses this for reading alone.
    """

    storage: dg.ResourceDependency[Storage]
    dataset_folders: list[str]
    """Folders of dataset specs."""

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        from em_assets.pipeline import write_dataset_regions

        spec = self._spec_of(context.asset_key)
        keys = list(context.asset_partition_keys)
        regions: Mapping[str, Any] = obj if isinstance(obj, Mapping) else dict.fromkeys(keys, obj)
        if set(regions) != set(keys) or (len(keys) > 1 and not isinstance(obj, Mapping)):
            raise Mismatch(
                f"{context.asset_key.to_user_string()}: regions were given for {sorted(regions)}, the partitions "
                f"are {sorted(keys)}; return a mapping from each partition key to its (z, y, x) array."
            )
        write_dataset_regions(spec, read_settings(), self.storage.store, regions, log=context.log.info)

    def load_input(self, context: dg.InputContext) -> Any:
        from em_assets.standardize.opening import open_level

        spec = self._spec_of(context.asset_key)
        array = open_level(DatasetFolder(self.storage.store, spec.name))
        keys = list(context.asset_partition_keys) if context.has_asset_partitions else []
        if len(keys) == 1:
            return array[spec.shard_box(partition_index(keys[0])).slices]
        return array

    def _spec_of(self, key: dg.AssetKey) -> DatasetSpec:
        name = key.path[-1].removesuffix(CHUNKS_SUFFIX)
        specs, wrong = load_sound_specs([Path(folder) for folder in self.dataset_folders])
        if name in wrong:
            raise wrong[name]
        if name not in specs:
            raise Mismatch(f"{key.to_user_string()} belongs to none of the datasets {', '.join(sorted(specs))}.")
        return specs[name]
