"""A `VolumeReader` over an array, specs of any shape and dtype, and an independent reference: for standardize tests."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from em_assets.datasets.spec import DatasetSpec
from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, SampledVoxel
from em_assets.records import DatasetFolder, PartitionRecord, partition_key
from em_assets.settings import PACKAGED_DATASETS
from em_assets.standardize.ingest import fetch_regions
from em_assets.standardize.ome import write_metadata
from em_assets.standardize.pyramid import build_pyramid
from em_assets.store import LocalStore, Store
from em_assets.volume import Box, VolumeInfo, Zyx

ORIGIN: Zyx = (100, 40, 7)
"""Where the stored volume begins in the publisher's voxels."""


@dataclass
class MemoryReader:
    """Serves an array that begins at `origin` in the publisher's voxels. `holes` are in the publisher's voxels too."""

    array: np.ndarray
    origin: Zyx = ORIGIN
    holes: Sequence[Box] = ()
    broken: dict[Box, Exception] = field(default_factory=dict)
    """Boxes that cannot be read, and why."""
    falsify: bool = False
    """Give samples that are not what the voxels are."""

    @property
    def info(self) -> VolumeInfo:
        return VolumeInfo(self.array.shape, str(self.array.dtype), (8.0, 8.0, 8.0), (32, 32, 32), self.origin)

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        return ReadPlan(len(boxes), None, len(boxes), None)

    def map_regions(
        self, boxes: Sequence[Box], work: Callable, *, on_bytes: Callable[[int], None] | None = None
    ) -> Iterator[RegionOutcome]:
        for box in boxes:
            try:
                yield RegionOutcome(box, work(self._read(box, on_bytes)), None)
            except Exception as error:  # noqa: BLE001  the contract: one box that fails does not stop the others
                yield RegionOutcome(box, None, error)

    def _read(self, box: Box, on_bytes: Callable[[int], None] | None) -> RegionVoxels:
        if box in self.broken:
            raise self.broken[box]
        local = box.shifted(tuple(-o for o in self.origin))
        voxels = self.array[local.slices].copy()
        missing = tuple(part for hole in self.holes if (part := hole.intersection(box)))
        for part in missing:
            voxels[part.shifted(tuple(-o for o in box.start)).slices] = 0
        generator = np.random.default_rng(box.start)
        samples = []
        for _ in range(20):
            place = tuple(int(generator.integers(n)) for n in box.shape)
            position = tuple(a + b for a, b in zip(place, box.start, strict=True))
            if not any(hole.contains(Box.from_shape((1, 1, 1), at=position)) for hole in missing):
                samples.append(SampledVoxel(position, float(voxels[place]) + self.falsify))
        if on_bytes is not None:
            on_bytes(voxels.nbytes)
        return RegionVoxels(box, voxels, missing, tuple(samples), "memory://volume", voxels.nbytes)


def make_spec(
    shape: Zyx, dtype: str = "uint8", *, shard: int | Zyx = 64, chunk: int | Zyx = 32, **output: Any
) -> DatasetSpec:
    """A spec for a volume of this shape; its source is never asked."""
    values = yaml.safe_load((PACKAGED_DATASETS / "hemibrain_crop.yaml").read_text())
    values["crop"] = {"shape": list(shape), "origin": list(ORIGIN), "snap": False}
    values["expected"] |= {"dtype": dtype, "voxel_size_nm": output.pop("voxel_size_nm", [8.0, 8.0, 8.0])}
    values["missing"] = output.pop("missing", "record")
    as_zyx = [[n] * 3 if isinstance(n, int) else list(n) for n in (shard, chunk)]
    values["output"] = {"shard": as_zyx[0], "chunk": as_zyx[1], **output}
    return DatasetSpec.model_validate(values)


@dataclass
class Standardized:
    """A volume that was written, whole."""

    spec: DatasetSpec
    folder: DatasetFolder
    level0: list[PartitionRecord]
    levels: list[PartitionRecord]

    @property
    def path(self) -> Path:
        return Path(self.folder.uri("volume.ome.zarr"))

    def read(self, level: int) -> np.ndarray:
        """A whole level, by zarr-python."""
        import zarr

        return zarr.open_array(str(self.path / str(level)), mode="r")[:]

    def shards(self) -> dict[str, str]:
        """sha256 of every shard, by path."""
        return {o.path: o.sha256 for record in (*self.level0, *self.levels) for o in record.objects}


def all_keys(spec: DatasetSpec) -> list[str]:
    return [partition_key(index) for index in spec.shard_indices()]


def standardize(
    spec: DatasetSpec, array: np.ndarray, place: Path | Store, holes: Sequence[Box] = (), workers: int = 2
) -> Standardized:
    """The whole of standardize on an array. `holes` are in voxels of the stored volume."""
    folder = DatasetFolder(LocalStore(place) if isinstance(place, Path) else place, spec.name)
    reader = MemoryReader(array, holes=[hole.shifted(ORIGIN) for hole in holes])
    records, errors = fetch_regions(folder, spec, reader, Box.from_shape(spec.shape, at=ORIGIN), all_keys(spec))
    assert not errors, errors
    levels = build_pyramid(folder, spec, records, workers=workers)
    write_metadata(folder, spec, ORIGIN)
    return Standardized(spec, folder, records, levels)


def noise(shape: Zyx, dtype: str = "uint8", seed: int = 1) -> np.ndarray:
    """Random voxels over the dtype's whole range, none of them 0."""
    generator = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return generator.normal(0, 1000, shape).astype(kind) + kind.type(1e5)
    info = np.iinfo(kind)
    values = generator.integers(info.min, info.max, shape, kind, endpoint=True)
    return np.where(values == 0, kind.type(1), values)


def reference_levels(array: np.ndarray, shapes: Sequence[Zyx], present: np.ndarray | None = None) -> list[np.ndarray]:
    """Every level by plain NumPy: object integers (exact at any size), blocks as an axis of their own, NaN-free."""
    present = np.ones(array.shape, bool) if present is None else present
    levels = [np.where(present, array, 0).astype(array.dtype)]
    for _ in shapes[1:]:
        fine, real = levels[-1], present
        grown = [(0, n % 2) for n in fine.shape]
        values, real = np.pad(fine, grown), np.pad(real, grown)
        blocks = tuple(v for n in values.shape for v in (n // 2, 2))
        wide = values.astype(object) if array.dtype.kind in "iu" else values.astype(np.float64)
        total = (wide * real).reshape(blocks).sum(axis=(1, 3, 5))
        count = real.reshape(blocks).sum(axis=(1, 3, 5))
        present = count > 0
        some = np.maximum(count, 1)
        if array.dtype.kind in "iu":
            whole, rest = total // some, total % some
            mean = whole + ((2 * rest > some) | ((2 * rest == some) & (whole % 2 == 1)))
        else:
            mean = total / some
        levels.append(mean.astype(array.dtype))
    return levels
