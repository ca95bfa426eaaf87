"""The whole job for one dataset, as plain functions: what is missing, fetch it, make the volumes, check, commit.

No Dagster here; `assets.py` calls these and reports. Everything is decided from the store's own records, never from an
event log (`state.py`). One writer at a time holds a dataset (`locking.py`, `job.py`). A partition is a region of the
published volume (`chunks.py`) or a file (`files.py`); `volumes.py` makes the stored volumes whole. The order of writes
is the safety: the record says `saving-data` before the first byte, each shard's or file's record follows its object,
the volumes' own metadata comes after every shard, `complete` comes last. A process that is killed anywhere leaves a
store from which the next run goes on.
"""

from __future__ import annotations

from em_assets.pipeline.job import ChecksFailed, Fetched, FetchResult, PartitionsFailed
from em_assets.pipeline.locking import dataset_lock
from em_assets.pipeline.plan import DatasetPlan
from em_assets.pipeline.recorded import described, listed_record, local_paths
from em_assets.pipeline.run import (
    Described,
    describe_dataset,
    fetch_dataset_partitions,
    materialize_dataset,
    plan_dataset,
    recheck_dataset,
    write_dataset_regions,
)

__all__ = [
    "ChecksFailed",
    "DatasetPlan",
    "Described",
    "FetchResult",
    "Fetched",
    "PartitionsFailed",
    "dataset_lock",
    "describe_dataset",
    "described",
    "fetch_dataset_partitions",
    "listed_record",
    "local_paths",
    "materialize_dataset",
    "plan_dataset",
    "recheck_dataset",
    "write_dataset_regions",
]
