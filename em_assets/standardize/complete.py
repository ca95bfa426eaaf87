"""A volume of a complete dataset as its own documents and records describe it: what copies and exports begin with.

`ome.py` writes the documents, `stored.py` the shards. Nothing is taken on trust: a shard's bytes are compared with its
recorded sha256 before they are given.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from em_assets.errors import Malformed, Unavailable
from em_assets.records import DatasetFolder, DatasetRecord, PartitionRecord
from em_assets.standardize.shard import ShardFormat
from em_assets.standardize.stored import shard_path
from em_assets.volume import VoxelSize, Zyx, zyx


@dataclass(frozen=True)
class Level:
    """One level of a volume."""

    number: int
    shape: Zyx
    voxel_size_nm: VoxelSize
    translation_nm: VoxelSize
    """Centre of its first voxel in the publisher's frame."""
    form: ShardFormat
    document: dict[str, Any]
    """Its `zarr.json`."""


@dataclass(frozen=True)
class Described:
    """What a volume's documents say."""

    group: dict[str, Any]
    """The group's `zarr.json`."""
    multiscale: dict[str, Any]
    """The one in it."""
    levels: tuple[Level, ...]
    """The finest first."""

    @classmethod
    def read(cls, folder: DatasetFolder) -> Described:
        """Raises Unavailable if a document is not there, Malformed if one is not as `ome.py` writes it."""
        where = f"{folder.volume}/zarr.json"
        try:
            group = json.loads(folder.read(where))
            multiscale, levels = group["attributes"]["ome"]["multiscales"][0], []
            for number, entry in enumerate(multiscale["datasets"]):
                where = f"{folder.volume}/{number}/zarr.json"
                levels.append(_level(number, entry, json.loads(folder.read(where))))
            if not levels:
                raise ValueError("it has no levels")  # noqa: TRY301
        except FileNotFoundError:
            raise Unavailable(
                f"{folder.uri(where)} is not there; see what is missing with `em-assets verify {folder.name}`."
            ) from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise Malformed(
                f"{folder.uri(where)} is not what was written ({type(error).__name__}: {error}); repair it with "
                f"`em-assets verify {folder.name} --repair`."
            ) from None
        return cls(group, multiscale, tuple(levels))


def complete_record(folder: DatasetFolder, done: str, instead: str = "") -> DatasetRecord:
    """The dataset's record; Unavailable if it is not complete, or has no volume.

    The sentence says what was to be done with the volume (`done`: copied), and what can be, where there is none.
    """
    record = folder.read_record()
    status = "listed (nothing of it is stored)" if record is None else record.visible_status
    if record is None or status != "complete":
        raise Unavailable(
            f"{folder.name} is {status}, and only a complete dataset is {done}; finish it with "
            f"`em-assets get {folder.name}`."
        )
    if "volume" not in record.local_paths:
        raise Unavailable(
            f"{folder.name} keeps the publisher's files only, in {folder.uri('original')}; {instead}set `keep: both` "
            f"in its spec and run `em-assets get {folder.name}`."
        )
    return record


def recorded_shard(folder: DatasetFolder, level: int, index: Zyx, record: PartitionRecord | None) -> bytes | None:
    """The bytes of a shard, as they were recorded; None if the publisher has nothing of it. Raises Malformed else."""
    if record is None:
        raise damaged_shard(folder, level, index, "it has no record")
    if not record.objects:
        return None
    try:
        data = folder.read(shard_path(folder, level, index))
    except FileNotFoundError:
        raise damaged_shard(folder, level, index, "it is gone") from None
    if hashlib.sha256(data).hexdigest() != record.objects[0].sha256:
        raise damaged_shard(folder, level, index, "its sha256 is not the recorded one")
    return data


def damaged_shard(folder: DatasetFolder, level: int, index: Zyx, why: str) -> Malformed:
    return Malformed(
        f"{folder.uri(shard_path(folder, level, index))} is not the shard that was written ({why}); repair it with "
        f"`em-assets verify {folder.name} --repair`."
    )


def _level(number: int, entry: dict[str, Any], document: dict[str, Any]) -> Level:
    """From the multiscale's entry and the array's own document."""
    transformations = {one["type"]: one[one["type"]] for one in entry["coordinateTransformations"]}
    size, translation = (_three(transformations[name]) for name in ("scale", "translation"))
    return Level(number, zyx(document["shape"]), size, translation, _form(document), document)


def _form(document: dict[str, Any]) -> ShardFormat:
    sharding = document["codecs"][0]["configuration"]
    shard, chunk = zyx(document["chunk_grid"]["configuration"]["chunk_shape"]), zyx(sharding["chunk_shape"])
    is_compressed = any(codec["name"] == "zstd" for codec in sharding["codecs"])
    return ShardFormat(shard, chunk, document["data_type"], codec="zstd" if is_compressed else "none")


def _three(values: Any) -> VoxelSize:
    z, y, x = (float(value) for value in values)
    return z, y, x
