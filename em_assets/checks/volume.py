"""What must be true of a stored volume, as plain functions. Each outcome carries expected and found, pass or fail.

They look at the stored objects themselves, not at what a record claims of them, wherever that is affordable;
none of them needs the network. `pipeline.py` runs the blocking ones before a dataset becomes `complete`;
`asset_checks.py` runs them all for Dagster.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from em_assets.datasets.spec import DatasetSpec
from em_assets.records import (
    VOLUME,
    DatasetFolder,
    DatasetRecord,
    PartitionRecord,
    StoredObject,
    is_intact,
    manifest_digest,
    now,
    partition_key,
)
from em_assets.volume import Box, Zyx, multiply, zyx

MOST_LISTED = 20
"""Most bad items that one outcome names; their number is always given."""
BLANK_FRACTION_LIMIT = 0.5
SATURATED_FRACTION_LIMIT = 0.05
OUTLIER_DEVIATIONS = 8.0
"""Distance of a shard's mean from the median of all, in robust standard deviations, that is worth a look."""
SAMPLED_BLOCKS_PER_LEVEL = 64


@dataclass(frozen=True)
class CheckOutcome:
    """One fact, tested."""

    name: str
    passed: bool
    expected: Any
    found: Any
    message: str
    """One sentence, true whether it passed or not."""
    bad_objects: tuple[StoredObject, ...] = ()
    """Stored objects that are not what their record says; their records are no longer to be believed."""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredVolume:
    """What the checks look at, read once."""

    spec: DatasetSpec
    folder: DatasetFolder
    record: DatasetRecord
    partitions: tuple[PartitionRecord, ...]
    sizes: dict[str, int]

    @classmethod
    def read(cls, spec: DatasetSpec, folder: DatasetFolder, record: DatasetRecord) -> StoredVolume:
        return cls(spec, folder, record, tuple(folder.partition_records()), folder.stored_sizes())

    def level(self, level: int) -> list[PartitionRecord]:
        return [record for record in self.partitions if record.level == level]

    def document(self, relative: str) -> dict[str, Any]:
        """A `zarr.json` of the volume; empty if it is absent or not JSON."""
        try:
            value = json.loads(self.folder.read(f"{VOLUME}/{relative}"))
        except (FileNotFoundError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


def check_shape(volume: StoredVolume) -> CheckOutcome:
    """Level 0 has the spec's shape, and was cut from a source of an expected shape."""
    expected: dict[str, Any] = {
        "shape": list(volume.spec.shape),
        "source_shape": [list(s) for s in volume.spec.expected.source_shape],
    }
    source = volume.record.source_shape
    found: dict[str, Any] = {
        "shape": volume.document("0/zarr.json").get("shape"),
        "source_shape": list(source) if source else None,
    }
    passed = found["shape"] == expected["shape"] and found["source_shape"] in expected["source_shape"]
    return CheckOutcome("shape", passed, expected, found, _sentence("shape (z, y, x)", expected, found, passed=passed))


def check_dtype(volume: StoredVolume) -> CheckOutcome:
    """Level 0 has the publisher's pixel type."""
    expected, found = volume.spec.expected.dtype, volume.document("0/zarr.json").get("data_type")
    return CheckOutcome(
        "dtype", found == expected, expected, found, _sentence("dtype", expected, found, passed=found == expected)
    )


def check_voxel_size(volume: StoredVolume) -> CheckOutcome:
    """The OME-Zarr scale of level 0 is the expected voxel size, in nanometres."""
    expected = list(volume.spec.expected.voxel_size_nm)
    found: dict[str, Any] = {"scale": None, "unit": None}
    try:
        image = volume.document("zarr.json")["attributes"]["ome"]["multiscales"][0]
        scale = image["datasets"][0]["coordinateTransformations"][0]["scale"]
        found = {"scale": scale, "unit": sorted({axis["unit"] for axis in image["axes"]})}
    except (KeyError, IndexError, TypeError):
        scale = None
    passed = (
        found["unit"] == ["nanometer"]
        and isinstance(scale, list)
        and len(scale) == 3
        and all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(scale, expected, strict=True))
    )
    return CheckOutcome(
        "voxel_size", passed, expected, found, _sentence("voxel size in nm", expected, found, passed=passed)
    )


def check_completeness(volume: StoredVolume) -> CheckOutcome:
    """Every shard of every level has a record and its object, and nothing else lies in the volume."""
    from em_assets.standardize.ome import level_shapes

    identity = volume.spec.identity()
    intact = {(r.level, r.key) for r in volume.partitions if r.identity == identity and is_intact(r, volume.sizes)}
    shapes = level_shapes(volume.spec.shape)
    wanted = {
        (level, partition_key(index))
        for level, shape in enumerate(shapes)
        for index in Box.from_shape(shape).cells(volume.spec.output.shard)
    }
    missing = sorted(wanted - intact)
    recorded = {stored.path for record in volume.partitions for stored in record.objects}
    metadata = {f"{VOLUME}/zarr.json", *(f"{VOLUME}/{level}/zarr.json" for level in range(len(shapes)))}
    strangers = sorted(set(volume.sizes) - recorded - metadata)
    absent = sorted(metadata - set(volume.sizes))
    names = [f"level {level} {key}" for level, key in missing] + absent + strangers
    passed = not names
    message = (
        f"all {len(wanted)} shards of {len(shapes)} levels are stored"
        if passed
        else f"{len(missing)} of {len(wanted)} shards and {len(absent)} metadata files are missing, {len(strangers)} "
        f"objects do not belong to the volume (first: {names[0]}); materialize again to repair it"
    )
    found = {"shards": len(wanted) - len(missing), "missing": len(missing), "strangers": len(strangers)}
    expected = {"shards": len(wanted), "missing": 0, "strangers": 0}
    return CheckOutcome("completeness", passed, expected, found, message, details={"items": names[:MOST_LISTED]})


def check_checksums(volume: StoredVolume, workers: int = 2) -> CheckOutcome:
    """Every stored byte is the one of the manifest: all objects are hashed. And the whole is what the spec pins."""
    listed = _manifest(volume)
    recorded = {stored for record in volume.partitions for stored in record.objects}
    objects = sorted(recorded | set(listed or ()), key=lambda stored: stored.path)
    with ThreadPoolExecutor(workers) as pool:
        digests = pool.map(volume_digest(volume), objects)
        wrong = [stored for stored, digest in zip(objects, digests, strict=True) if digest != stored.sha256]
    problems = [f"{stored.path} is not what was written" for stored in wrong]
    problems += _manifest_problems(volume, listed, recorded)
    expected: dict[str, Any] = {"objects": len(objects), "wrong": 0}
    found: dict[str, Any] = {"objects": len(objects), "wrong": len(wrong)}
    pinned, record = volume.spec.expected, volume.record
    for key, want, have in (
        ("sha256", pinned.sha256, record.sha256),
        ("file_size_bytes", pinned.file_size_bytes, record.file_size_bytes),
    ):
        if want is not None:
            expected[key], found[key] = want, have
            if want != have:
                problems.append(f"the dataset's {key} is {have}, the spec expects {want}: look at what changed")
    message = (
        f"all {len(objects)} objects have the sha256 they were written with"
        if not problems
        else f"{problems[0]}{f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''}; "
        "what is damaged is made again by the next run"
    )
    return CheckOutcome(
        "checksums", not problems, expected, found, message, tuple(wrong), {"problems": problems[:MOST_LISTED]}
    )


def _manifest(volume: StoredVolume) -> list[StoredObject] | None:
    """What manifest.parquet lists, None if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(volume.folder.read("manifest.parquet")))
        rows = table.select(["path", "size_bytes", "sha256"]).to_pylist()
    except (FileNotFoundError, pa.ArrowException, KeyError):
        return None
    return [StoredObject(**row) for row in rows]


def _manifest_problems(
    volume: StoredVolume, listed: list[StoredObject] | None, recorded: set[StoredObject]
) -> list[str]:
    if listed is None:
        return ["manifest.parquet is gone or damaged"]
    problems = []
    if manifest_digest(listed) != volume.record.sha256:
        problems.append("manifest.parquet is not the one of the record's sha256")
    if {stored for stored in listed if "/c/" in stored.path} != recorded:
        problems.append("manifest.parquet does not list the shards of the records")
    try:
        coverage = hashlib.sha256(volume.folder.read("coverage.parquet")).hexdigest()
    except FileNotFoundError:
        coverage = None
    if coverage != volume.record.coverage_sha256:
        problems.append("coverage.parquet is not what was written")
    return problems


def volume_digest(volume: StoredVolume) -> Callable[[StoredObject], str | None]:
    """sha256 of a stored object, None if it is gone."""

    def digest(stored: StoredObject) -> str | None:
        try:
            return hashlib.sha256(volume.folder.read(stored.path)).hexdigest()
        except FileNotFoundError:
            return None

    return digest


def check_source_voxels(volume: StoredVolume) -> CheckOutcome:
    """Sampled voxels were equal to the source's when they were fetched (kept with its date; no network here)."""
    stored = [record for record in volume.level(0) if record.objects]
    present = [record for record in stored if record.source_url]  # others were computed here, from nobody's voxels
    compared = [record for record in present if record.comparison is not None]
    voxels = sum(record.comparison.compared_voxels for record in compared if record.comparison)
    different = sum(record.comparison.different_voxels for record in compared if record.comparison)
    dates = sorted(record.comparison.compared_at for record in compared if record.comparison)
    expected = {"shards_compared": len(present), "different_voxels": 0}
    found = {
        "shards_compared": len(compared),
        "different_voxels": different,
        "compared_voxels": voxels,
        "shards_without_source": len(stored) - len(present),
    }
    passed = len(compared) == len(present) and different == 0
    when = f" between {dates[0]:%Y-%m-%d} and {dates[-1]:%Y-%m-%d}" if dates else ""
    message = (
        f"{different} of {voxels} sampled voxels in {len(compared)} of {len(present)} shards differed "
        f"from the source{when}"
    )
    return CheckOutcome("source_voxels", passed, expected, found, message)


def check_pyramid(volume: StoredVolume) -> CheckOutcome:
    """Sampled voxels of each level are the mean of the voxels under them, read back by zarr-python."""
    import numpy as np

    from em_assets.standardize.ome import level_factors, level_shapes
    from em_assets.standardize.opening import open_level
    from em_assets.standardize.presence import Presence

    shapes = level_shapes(volume.spec.shape)
    missing = [box for record in volume.level(0) for box in record.missing]
    presence = Presence(shapes, level_factors(shapes), missing)
    wrong: list[str] = []
    sampled = 0
    for level in range(1, len(shapes)):
        try:
            fine, coarse = open_level(volume.folder, level - 1), open_level(volume.folder, level)
        except (FileNotFoundError, ValueError) as error:
            wrong.append(f"level {level} cannot be opened: {str(error).splitlines()[0]}")
            continue
        for at in _random_voxels(shapes[level], SAMPLED_BLOCKS_PER_LEVEL, seed=level):
            block = _block_below(at, shapes[level - 1], shapes[level])
            if presence.touches(level - 1, block):
                continue  # the mean leaves missing voxels out; the writer's tests cover that
            sampled += 1
            try:
                values, value = np.asarray(fine[block.slices]), float(np.asarray(coarse[at]))
            except (FileNotFoundError, ValueError, RuntimeError, IndexError) as error:
                wrong.append(f"level {level} at {at} cannot be read: {str(error).splitlines()[0]}")
                continue
            mean = values.astype(np.float64).mean()
            should_be = mean if values.dtype.kind == "f" else np.rint(mean)
            if not np.isclose(value, should_be, rtol=1e-6, atol=0, equal_nan=True):
                wrong.append(f"level {level} at {at}: {value}, the mean below is {mean}")
    passed = not wrong
    message = (
        f"{sampled} sampled voxels of {len(shapes) - 1} levels are the mean of the level below"
        if passed
        else f"{len(wrong)} of {sampled} sampled voxels are not the mean of the level below (first: {wrong[0]})"
    )
    found = {"sampled": sampled, "wrong": len(wrong)}
    return CheckOutcome("pyramid", passed, {"wrong": 0}, found, message, details={"items": wrong[:MOST_LISTED]})


def _random_voxels(shape: Zyx, count: int, seed: int) -> list[Zyx]:
    generator = random.Random(seed)  # noqa: S311  # a sample of places, the same in each run
    return [zyx([generator.randrange(n) for n in shape]) for _ in range(count)]


def _block_below(at: Zyx, fine: Zyx, coarse: Zyx) -> Box:
    """The voxels of the finer level that one voxel of the coarser one is the mean of."""
    factor = zyx([1 if a == b else 2 for a, b in zip(fine, coarse, strict=True)])
    start = multiply(at, factor)
    return Box(start, zyx([min(a + f, n) for a, f, n in zip(start, factor, fine, strict=True)]))


def check_blank_or_saturated(volume: StoredVolume) -> CheckOutcome:
    """Little of the volume is exactly 0 or at the pixel type's largest value."""
    known = [record.statistics for record in volume.level(0) if record.statistics is not None]
    voxels = sum(item.voxels for item in known)
    zero = sum(item.zero_fraction * item.voxels for item in known) / voxels if voxels else None
    saturated = sum(item.saturated_fraction * item.voxels for item in known) / voxels if voxels else None
    expected = {"zero_fraction": f"<= {BLANK_FRACTION_LIMIT}", "saturated_fraction": f"<= {SATURATED_FRACTION_LIMIT}"}
    found = {"zero_fraction": zero, "saturated_fraction": saturated, "voxels": voxels}
    passed = (
        zero is not None
        and saturated is not None
        and (zero <= BLANK_FRACTION_LIMIT and saturated <= SATURATED_FRACTION_LIMIT)
    )
    message = (
        f"{zero:.2%} of the voxels are 0, {saturated:.2%} are saturated"
        if zero is not None and saturated is not None
        else "the publisher has no voxel of this volume"
    )
    return CheckOutcome("blank_or_saturated", passed, expected, found, message)


def check_intensity(volume: StoredVolume) -> CheckOutcome:
    """No shard is much darker or brighter than the others."""
    means = {record.key: record.statistics.mean for record in volume.level(0) if record.statistics is not None}
    outliers = intensity_outliers(means)
    expected = {"outliers": 0, "limit_in_robust_deviations": OUTLIER_DEVIATIONS}
    found = {"outliers": len(outliers), "shards": len(means)}
    message = (
        f"none of {len(means)} shards stands out by its mean grey value"
        if not outliers
        else f"{len(outliers)} of {len(means)} shards stand out by their mean grey value (first: {outliers[0]})"
    )
    return CheckOutcome("intensity", not outliers, expected, found, message, details={"items": outliers[:MOST_LISTED]})


def intensity_outliers(means: dict[str, float]) -> list[str]:
    """Keys whose mean lies far from the median, in units of the median absolute deviation (at least 1 grey value)."""
    if len(means) < 8:
        return []
    middle = statistics.median(means.values())
    spread = max(1.4826 * statistics.median(abs(mean - middle) for mean in means.values()), 1.0)
    return [key for key, mean in sorted(means.items()) if not abs(mean - middle) / spread <= OUTLIER_DEVIATIONS]


BLOCKING: dict[str, Callable[[StoredVolume], CheckOutcome]] = {
    "shape": check_shape,
    "dtype": check_dtype,
    "voxel_size": check_voxel_size,
    "completeness": check_completeness,
    "checksums": check_checksums,
    "source_voxels": check_source_voxels,
    "pyramid": check_pyramid,
}
"""A consumer relies on these: one that fails makes the dataset `error` and stops what lies downstream."""

WARNING: dict[str, Callable[[StoredVolume], CheckOutcome]] = {
    "blank_or_saturated": check_blank_or_saturated,
    "intensity": check_intensity,
}


def run_checks(volume: StoredVolume, names: Iterable[str]) -> list[CheckOutcome]:
    """Runs the named checks, keeps each result in the store, and disowns damaged objects.

    The record of a shard whose bytes are wrong is deleted, so that the next run makes just that shard again.
    """
    every = BLOCKING | WARNING
    outcomes = []
    for name in names:  # one after the other: what one finds is kept, whatever happens to the next
        outcome = every[name](volume)
        volume.folder.write(f"checks/{outcome.name}.json", _document(outcome))
        disown(volume, outcome.bad_objects)
        outcomes.append(outcome)
    return outcomes


def disown(volume: StoredVolume, bad_objects: Sequence[StoredObject]) -> None:
    bad = {stored.path for stored in bad_objects}
    for record in volume.partitions:
        if any(stored.path in bad for stored in record.objects):
            volume.folder.delete_partition_record(record.level, record.key)


def _document(outcome: CheckOutcome) -> bytes:
    value = {
        "check": outcome.name,
        "passed": outcome.passed,
        "blocking": outcome.name in BLOCKING,
        "expected": outcome.expected,
        "found": outcome.found,
        "message": outcome.message,
        "details": outcome.details,
        "checked_at": now().isoformat(),
    }
    return json.dumps(value, indent=1).encode() + b"\n"


def _sentence(what: str, expected: Any, found: Any, *, passed: bool) -> str:
    return f"{what} is {found}, as expected" if passed else f"{what} is {found}, expected {expected}"
