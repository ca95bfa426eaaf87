"""Partition definitions: static keys, a region of the volume or a file each, known from the spec alone."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import dagster as dg

from em_assets.datasets.spec import DatasetSpec
from em_assets.pipeline.state import partition_keys

CHUNKS_SUFFIX = "_chunks"
FILES_SUFFIX = "_files"


def received_asset(spec: DatasetSpec) -> str:
    """The name of the asset that carries the partitions."""
    return f"{spec.name}{FILES_SUFFIX if spec.is_by_file else CHUNKS_SUFFIX}"


def received_partitions(spec: DatasetSpec) -> dg.StaticPartitionsDefinition:
    """Regions `z000_y001_x002`, z slowest, or files: tens to a few hundred, never the storage chunk."""
    return dg.StaticPartitionsDefinition(partition_keys(spec))


def explain_arguments(arguments: Sequence[str], specs: Mapping[str, DatasetSpec], assets: Sequence[str]) -> str | None:
    """What is wrong with the asset or partition that a `dagster asset materialize` command names, as one sentence.

    Dagster refuses both with a stack trace that names neither what exists nor what is near. None if all is well, or
    if the selection is more than one plain name.
    """
    selected, key = _option(arguments, "--select"), _option(arguments, "--partition")
    if selected is None or not selected.isidentifier():
        return None
    if selected not in assets:
        return f"there is no asset {selected}; the nearest are {_nearest(selected, assets)}."
    spec = next((spec for spec in specs.values() if received_asset(spec) == selected), None)
    if spec is None:
        return None
    keys = partition_keys(spec)
    if key is not None and key not in keys:
        return f"{key!r} is not a partition of {selected}; the nearest are {_nearest(key, keys)}."
    if key is None and _option(arguments, "--partition-range") is None:
        return (
            f"{selected} is partitioned: give --partition {keys[0]} or --partition-range {keys[0]}...{keys[-1]}, or "
            f"select {spec.name}, which fetches all that is missing."
        )
    return None


def _option(arguments: Sequence[str], name: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}=")
    return None


def _nearest(wrong: str, right: Sequence[str]) -> str:
    return ", ".join(difflib.get_close_matches(wrong, right, n=3, cutoff=0.0))
