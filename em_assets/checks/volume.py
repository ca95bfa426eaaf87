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
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

from em_assets.datasets.source import FilesSource
from em_assets.datasets.spec import DatasetSpec, Layout
from em_assets.fetch.receipts import Receipt
from em_assets.originals import file_paths, read_receipt, receipt_path
from em_assets.records import (
    DatasetFolder,
    DatasetRecord,
    ObjectsRecord,
    PartitionRecord,
    StoredObject,
    is_intact,
    manifest_digest,
    now,
    partition_key,
)
from em_assets.volume import Box, Zyx, multiply, zyx

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_LISTED = 20
"""Most bad items that one outcome names; their number is always given."""
BLANK_FRACTION_LIMIT = 0.5
SATURATED_FRACTION_LIMIT = 0.05
OUTLIER_DEVIATIONS = 8.0
"""Distance of a shard's mean from the median of all, in robust standard deviations, that is worth a look."""
SAMPLED_BLOCKS_PER_LEVEL = 64
HASHED_AT_ONCE = 16 * 2**20


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
    """One volume as the checks look at it, read once."""

    layout: Layout
    folder: DatasetFolder
    source_shape: Zyx | None
    """As the publisher stated it when it was read."""
    expected_source_shapes: tuple[Zyx, ...]
    coverage_sha256: str | None
    partitions: tuple[PartitionRecord, ...]
    sizes: dict[str, int]

    def level(self, level: int) -> list[PartitionRecord]:
        return [record for record in self.partitions if record.level == level]

    def document(self, relative: str) -> dict[str, Any]:
        """A `zarr.json` of the volume; empty if it is absent or not JSON."""
        try:
            value = json.loads(self.folder.read(f"{self.folder.volume}/{relative}"))
        except (FileNotFoundError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class StoredDataset:
    """All that is stored of a dataset."""

    spec: DatasetSpec
    folder: DatasetFolder
    record: DatasetRecord
    volumes: tuple[StoredVolume, ...]
    """The main one first."""
    receipts: dict[str, Receipt | None]
    """Of each file that the spec lists, by path; None where there is none."""
    objects: tuple[ObjectsRecord, ...]
    """Of the published objects that are kept."""

    @classmethod
    def read(cls, spec: DatasetSpec, folder: DatasetFolder, record: DatasetRecord) -> StoredDataset:
        volumes = []
        for sub, layout in spec.layouts().items():
            place = folder.further(sub)
            described = record if sub is None else record.volumes.get(sub)
            shapes = spec.expected.source_shape if sub is None else (layout.shape,)
            volumes.append(
                StoredVolume(
                    layout,
                    place,
                    None if described is None else described.source_shape,
                    shapes,
                    None if described is None else described.coverage_sha256,
                    tuple(place.partition_records()),
                    place.stored_sizes(),
                )
            )
        receipts = {path: read_receipt(folder, path) for path in file_paths(spec).values()}
        keeps_objects = spec.keeps_original and not spec.is_by_file
        objects = tuple(folder.objects_records()) if keeps_objects else ()
        return cls(spec, folder, record, tuple(volumes), receipts, objects)

    def originals(self) -> set[StoredObject]:
        """Everything that is kept as it was published."""
        files = {_stored_file(receipt) for receipt in self.receipts.values() if receipt is not None}
        return files | {stored for record in self.objects for stored in record.objects}


def check_shape(volume: StoredVolume) -> CheckOutcome:
    """Level 0 has the spec's shape, and was cut from a source of an expected shape."""
    expected: dict[str, Any] = {
        "shape": list(volume.layout.shape),
        "source_shape": [list(s) for s in volume.expected_source_shapes],
    }
    source = volume.source_shape
    found: dict[str, Any] = {
        "shape": volume.document("0/zarr.json").get("shape"),
        "source_shape": list(source) if source else None,
    }
    passed = found["shape"] == expected["shape"] and found["source_shape"] in expected["source_shape"]
    return CheckOutcome("shape", passed, expected, found, _sentence("shape (z, y, x)", expected, found, passed=passed))


def check_dtype(volume: StoredVolume) -> CheckOutcome:
    """Level 0 has the publisher's pixel type."""
    expected, found = volume.layout.dtype, volume.document("0/zarr.json").get("data_type")
    return CheckOutcome(
        "dtype", found == expected, expected, found, _sentence("dtype", expected, found, passed=found == expected)
    )


def check_voxel_size(volume: StoredVolume) -> CheckOutcome:
    """The OME-Zarr scale of level 0 is the expected voxel size, in nanometres."""
    expected = list(volume.layout.voxel_size_nm)
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

    identity = volume.layout.identity()
    intact = {(r.level, r.key) for r in volume.partitions if r.identity == identity and is_intact(r, volume.sizes)}
    shapes = level_shapes(volume.layout.shape)
    wanted = {
        (level, partition_key(index))
        for level, shape in enumerate(shapes)
        for index in Box.from_shape(shape).cells(volume.layout.output.shard)
    }
    missing = sorted(wanted - intact)
    recorded = {stored.path for record in volume.partitions for stored in record.objects}
    root = volume.folder.volume
    metadata = {f"{root}/zarr.json", *(f"{root}/{level}/zarr.json" for level in range(len(shapes)))}
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


def check_checksums(dataset: StoredDataset, workers: int = 2) -> CheckOutcome:
    """Every stored byte is the one of the manifest: all objects are hashed. And the whole is what the spec pins."""
    listed = _manifest(dataset)
    shards = {stored for volume in dataset.volumes for record in volume.partitions for stored in record.objects}
    objects = sorted(shards | dataset.originals() | set(listed or ()), key=lambda stored: stored.path)
    with ThreadPoolExecutor(workers) as pool:
        digests = pool.map(partial(_digest, dataset.folder), objects)
        wrong = [stored for stored, digest in zip(objects, digests, strict=True) if digest != stored.sha256]
    problems = [f"{stored.path} is not what was written" for stored in wrong]
    problems += _manifest_problems(dataset, listed, shards)
    expected: dict[str, Any] = {"objects": len(objects), "wrong": 0}
    found: dict[str, Any] = {"objects": len(objects), "wrong": len(wrong)}
    pinned, record = dataset.spec.expected, dataset.record
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


def _manifest(dataset: StoredDataset) -> list[StoredObject] | None:
    """What manifest.parquet lists, None if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(dataset.folder.read("manifest.parquet")))
        rows = table.select(["path", "size_bytes", "sha256"]).to_pylist()
    except (FileNotFoundError, pa.ArrowException, KeyError):
        return None
    return [StoredObject(**row) for row in rows]


def _manifest_problems(
    dataset: StoredDataset, listed: list[StoredObject] | None, shards: set[StoredObject]
) -> list[str]:
    if listed is None:
        return ["manifest.parquet is gone or damaged"]
    problems = []
    if manifest_digest(listed) != dataset.record.sha256:
        problems.append("manifest.parquet is not the one of the record's sha256")
    originals = {stored for stored in listed if stored.path.startswith("original/")}
    if {stored for stored in listed if "/c/" in stored.path} - originals != shards:
        problems.append("manifest.parquet does not list the shards of the records")
    if originals != dataset.originals():
        problems.append("manifest.parquet does not list the files of the receipts")
    for volume in dataset.volumes:
        try:
            coverage = hashlib.sha256(volume.folder.read(volume.folder.coverage)).hexdigest()
        except FileNotFoundError:
            coverage = None
        if coverage != volume.coverage_sha256:
            problems.append(f"{volume.folder.coverage} is not what was written")
    return problems


def _stored_file(receipt: Receipt) -> StoredObject:
    return StoredObject(path=f"original/{receipt.path}", size_bytes=receipt.size_bytes, sha256=receipt.sha256)


def _digest(folder: DatasetFolder, stored: StoredObject) -> str | None:
    """sha256 of a stored object, None if it is gone. A large one is not read at once."""
    digest, path = hashlib.sha256(), folder.path(stored.path)
    if folder.store.size_bytes(path) is None:
        return None
    try:
        for start in range(0, max(stored.size_bytes, 1) + 1, HASHED_AT_ONCE):
            digest.update(folder.store.read_range(path, start, HASHED_AT_ONCE))
    except FileNotFoundError:
        return None
    return digest.hexdigest() if folder.store.size_bytes(path) == stored.size_bytes else None


def check_files(dataset: StoredDataset) -> CheckOutcome:
    """Every file that the spec lists was received whole, in its pinned size, and agrees with its pinned checksum."""
    source = dataset.spec.source
    assert isinstance(source, FilesSource)
    problems, bad = [], []
    for path, receipt in dataset.receipts.items():
        pinned = source.by_path()[path]
        stored = dataset.folder.store.size_bytes(dataset.folder.path(f"original/{path}"))
        if receipt is None or stored is None:
            problems.append(f"{path} is not stored")
        elif stored != receipt.size_bytes:
            problems.append(f"{path} has {stored} bytes, {receipt.size_bytes} were received")
            bad.append(_stored_file(receipt))
        elif pinned.size_bytes not in (None, receipt.size_bytes):
            problems.append(f"{path} has {receipt.size_bytes} bytes, the spec expects {pinned.size_bytes}")
        elif pinned.checksum not in (None, receipt.checksum):
            problems.append(f"{path} was compared with {receipt.checksum}, the spec expects {pinned.checksum}")
    expected = {"files": len(dataset.receipts), "wrong": 0}
    found = {"files": len(dataset.receipts), "wrong": len(problems)}
    message = (
        f"all {len(dataset.receipts)} files are stored in their pinned size and agree with their pinned checksums"
        if not problems
        else f"{problems[0]}{f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''}; materialize again"
    )
    return CheckOutcome(
        "files", not problems, expected, found, message, tuple(bad), {"problems": problems[:MOST_LISTED]}
    )


def check_same_volume(dataset: StoredDataset) -> CheckOutcome:
    """The publisher's other files of the same volume have the same voxels (compared when they were received)."""
    source = dataset.spec.source
    assert isinstance(source, FilesSource)
    known = dataset.record.additional_metadata.get("same_volume")
    compared: list[dict[str, Any]] = known if isinstance(known, list) else []
    different = sum(item["different_voxels"] for item in compared)
    voxels = sum(item["compared_voxels"] for item in compared)
    passed = len(compared) == len(source.same_volume) and different == 0
    message = f"{different} of {voxels} voxels differ in {len(compared)} of {len(source.same_volume)} other files"
    first = next((item for item in compared if item["different_voxels"]), None)
    if first is not None:
        at = tuple(first["first_difference"])
        message += f", first at {at} (z, y, x) in {first['files'][0]}; look at both and ask the publisher"
    expected = {"compared": len(source.same_volume), "different_voxels": 0}
    found = {"compared": len(compared), "different_voxels": different, "compared_voxels": voxels}
    return CheckOutcome("same_volume", passed, expected, found, message, details={"items": compared})


def check_source_voxels(volume: StoredVolume) -> CheckOutcome:
    """Sampled voxels were equal to the source's when they were fetched (kept with its date; no network here)."""
    stored = [record for record in volume.level(0) if record.objects]
    # others were computed here, from nobody's voxels
    present = [record for record in stored if record.source_url]
    compared = [record for record in present if record.comparison is not None]
    # of a compressed file there is no second way to a voxel; that file is here, and its checksum is compared
    owed = [record for record in present if record.comparison is None and not record.inputs]
    voxels = sum(record.comparison.compared_voxels for record in compared if record.comparison)
    different = sum(record.comparison.different_voxels for record in compared if record.comparison)
    dates = sorted(record.comparison.compared_at for record in compared if record.comparison)
    expected = {"shards_compared": len(compared) + len(owed), "different_voxels": 0}
    found = {
        "shards_compared": len(compared),
        "different_voxels": different,
        "compared_voxels": voxels,
        "shards_without_source": len(stored) - len(present),
    }
    passed = not owed and different == 0
    when = f" between {dates[0]:%Y-%m-%d} and {dates[-1]:%Y-%m-%d}" if dates else ""
    message = (
        f"{different} of {voxels} sampled voxels in {len(compared)} of {len(present)} shards differed "
        f"from the source{when}"
    )
    return CheckOutcome("source_voxels", passed, expected, found, message)


def check_pyramid(volume: StoredVolume) -> CheckOutcome:
    """Sampled voxels of each level are the mean (labels: the first) of those under them, read back by zarr-python."""
    import numpy as np

    from em_assets.standardize.ome import level_factors, level_shapes
    from em_assets.standardize.opening import open_level
    from em_assets.standardize.presence import Presence

    shapes = level_shapes(volume.layout.shape)
    missing = [box for record in volume.level(0) for box in record.missing]
    presence = Presence(shapes, level_factors(shapes), missing, volume.layout.content)
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
                values, value = np.asarray(fine[block.slices]), np.asarray(coarse[at]).item()
            except (FileNotFoundError, ValueError, RuntimeError, IndexError) as error:
                wrong.append(f"level {level} at {at} cannot be read: {str(error).splitlines()[0]}")
                continue
            should_be = _coarse_value(values, volume.layout)
            if value != should_be and not _are_close(value, should_be):
                wrong.append(f"level {level} at {at}: {value}, the level below gives {should_be}")
    passed = not wrong
    message = (
        f"{sampled} sampled voxels of {len(shapes) - 1} levels are what the level below gives"
        if passed
        else f"{len(wrong)} of {sampled} sampled voxels are not what the level below gives (first: {wrong[0]})"
    )
    found = {"sampled": sampled, "wrong": len(wrong)}
    return CheckOutcome("pyramid", passed, {"wrong": 0}, found, message, details={"items": wrong[:MOST_LISTED]})


def _coarse_value(below: NDArray[Any], layout: Layout) -> float:
    """What the voxel above a block of a finer level has to be; a whole number, exactly, where voxels are such."""
    import numpy as np

    if layout.content == "labels":
        return below[0, 0, 0].item()  # type: ignore[no-any-return]
    if below.dtype.kind == "f":
        return float(below.astype(np.float64).mean())
    return round(Fraction(sum(below.ravel().tolist()), below.size))  # half to even


def _are_close(value: float, should_be: float) -> bool:
    """Equal but for rounding, which only floats have."""
    is_whole = isinstance(value, int) and isinstance(should_be, int)
    both_nan = value != value and should_be != should_be  # noqa: PLR0124  # what NaN is known by
    return not is_whole and (both_nan or math.isclose(value, should_be, rel_tol=1e-6))


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
    is_labels = volume.layout.content == "labels"  # mostly background, and 255 is a usual label
    passed = (
        zero is not None
        and saturated is not None
        and (is_labels or (zero <= BLANK_FRACTION_LIMIT and saturated <= SATURATED_FRACTION_LIMIT))
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
    outliers = [] if volume.layout.content == "labels" else intensity_outliers(means)
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


VolumeCheck = Callable[[StoredVolume], CheckOutcome]
DatasetCheck = Callable[[StoredDataset], CheckOutcome]

OF_VOLUMES: dict[str, VolumeCheck] = {
    "shape": check_shape,
    "dtype": check_dtype,
    "voxel_size": check_voxel_size,
    "completeness": check_completeness,
    "source_voxels": check_source_voxels,
    "pyramid": check_pyramid,
    "blank_or_saturated": check_blank_or_saturated,
    "intensity": check_intensity,
}
"""Each looks at one volume; a dataset with several has one outcome over all."""

OF_DATASETS: dict[str, DatasetCheck] = {
    "checksums": check_checksums,
    "files": check_files,
    "same_volume": check_same_volume,
}

BLOCKING = (
    "files",
    "shape",
    "dtype",
    "voxel_size",
    "completeness",
    "checksums",
    "source_voxels",
    "pyramid",
)
"""A consumer relies on these: one that fails makes the dataset `error` and stops what lies downstream."""

WARNING = ("same_volume", "blank_or_saturated", "intensity")


def checks_of(spec: DatasetSpec) -> dict[str, Callable[..., CheckOutcome]]:
    """The checks that a dataset has, by name, blocking ones first."""
    every: dict[str, Callable[..., CheckOutcome]] = {**OF_VOLUMES, **OF_DATASETS}
    names = [name for name in (*BLOCKING, *WARNING) if spec.makes_standard or name in OF_DATASETS]
    if not isinstance(spec.source, FilesSource):
        names = [name for name in names if name not in ("files", "same_volume")]
    elif not spec.source.same_volume:
        names.remove("same_volume")
    return {name: every[name] for name in names}


def run_checks(dataset: StoredDataset, names: Iterable[str]) -> list[CheckOutcome]:
    """Runs those of the named checks that the dataset has, keeps each result in the store, disowns damaged objects.

    The record of a shard or file whose bytes are wrong is deleted, so that the next run makes just that one again.
    """
    wanted = set(names)
    outcomes = []
    for name in checks_of(dataset.spec):  # one after the other: what one finds is kept, whatever happens to the next
        if name not in wanted:
            continue
        outcome = OF_DATASETS[name](dataset) if name in OF_DATASETS else _over_volumes(dataset, OF_VOLUMES[name])
        dataset.folder.write(f"checks/{outcome.name}.json", outcome_document(outcome))
        disown(dataset, outcome.bad_objects)
        outcomes.append(outcome)
    return outcomes


def _over_volumes(dataset: StoredDataset, check: VolumeCheck) -> CheckOutcome:
    """One outcome for all volumes of a dataset: the first red one's sentence, or the main volume's."""
    outcomes = {volume.layout.name: check(volume) for volume in dataset.volumes}
    if len(outcomes) == 1:
        return next(iter(outcomes.values()))
    red = [(name, outcome) for name, outcome in outcomes.items() if not outcome.passed]
    title, shown = red[0] if red else next(iter(outcomes.items()))
    return CheckOutcome(
        shown.name,
        not red,
        {name: outcome.expected for name, outcome in outcomes.items()},
        {name: outcome.found for name, outcome in outcomes.items()},
        f"{title}: {shown.message}" if red else f"in each of {len(outcomes)} volumes; {title}: {shown.message}",
        tuple(stored for outcome in outcomes.values() for stored in outcome.bad_objects),
        {name: outcome.details for name, outcome in outcomes.items() if outcome.details},
    )


def disown(dataset: StoredDataset, bad_objects: Sequence[StoredObject]) -> None:
    bad = {stored.path for stored in bad_objects}
    # what was made from a damaged file or object may have been made from the damage
    suspect = {receipt.sha256 for path, receipt in dataset.receipts.items() if receipt and f"original/{path}" in bad}
    if any(stored.path in bad for record in dataset.objects for stored in record.objects):
        suspect.add(manifest_digest(stored for record in dataset.objects for stored in record.objects))
    for volume in dataset.volumes:
        for record in volume.partitions:
            is_suspect = record.level == 0 and not suspect.isdisjoint(record.inputs)
            if is_suspect or any(stored.path in bad for stored in record.objects):
                volume.folder.delete_partition_record(record.level, record.key)
    for path in dataset.receipts:
        if f"original/{path}" in bad:
            dataset.folder.store.delete(dataset.folder.path(receipt_path(path)))
    for kept in dataset.objects:
        if any(stored.path in bad for stored in kept.objects):
            dataset.folder.delete_objects_record(kept.key)


def outcome_document(outcome: CheckOutcome, *, is_blocking: bool | None = None) -> bytes:
    """What is kept of it; `is_blocking` of a check that is none of these."""
    value = {
        "check": outcome.name,
        "passed": outcome.passed,
        "blocking": outcome.name in BLOCKING if is_blocking is None else is_blocking,
        "expected": outcome.expected,
        "found": outcome.found,
        "message": outcome.message,
        "details": outcome.details,
        "checked_at": now().isoformat(),
    }
    return json.dumps(value, indent=1).encode() + b"\n"


def _sentence(what: str, expected: Any, found: Any, *, passed: bool) -> str:
    return f"{what} is {found}, as expected" if passed else f"{what} is {found}, expected {expected}"
