"""What must be true of an index of blocks, as plain functions: whoever trains by it relies on it unread.

Each outcome carries expected and found. Where a blocking one is red, the index is not what its volume is: it is
removed, so that the catalogue has none of its rows and the next run makes it anew. `blocks/index.py` writes indexes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_assets.checks.volume import MOST_LISTED, CheckOutcome, outcome_document
from em_assets.errors import Malformed
from em_assets.records import DatasetFolder
from em_assets.settings import Settings
from em_assets.volume import Box, Zyx, zyx

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from em_assets.blocks.geometry import Grid
    from em_assets.blocks.volume import Volume
    from em_assets.store import Store

NM_TOLERANCE = 1e-6
SHARE_TOLERANCE = 1e-9
SAMPLED_DIGESTS = 8
"""Blocks that are read again: each is 2 MB and takes milliseconds."""
SAMPLED_COVERAGES = 1000
"""Of the whole blocks, and as many of the others, where the publisher does not have all."""
ROWS_AT_ONCE = 2**14
PLACES = tuple(f"{what}_{axis}" for what in ("start", "shape", "start_nm", "stop_nm") for axis in "zyx")
NUMBERS = (
    *("coverage", "mean", "std", "minimum", "p01", "p05", "p50", "p95", "p99", "maximum"),
    *("entropy_bits", "sharpness", "saturation", "zero_fraction", "label_fraction"),
)
ASCENDING = ("minimum", "p01", "p05", "p50", "p95", "p99", "maximum")
SHARES = ("coverage", "saturation", "zero_fraction", "label_fraction")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class VolumeIndex:
    """A volume and its index, the columns that say where the blocks are read once."""

    volume: Volume
    folder: DatasetFolder
    """With this volume."""
    file: Path
    """Of this machine."""
    summary: dict[str, Any]
    columns: dict[str, NDArray[Any]]
    """In the order of the rows."""

    @property
    def uri(self) -> str:
        from em_assets.catalog.block_indexes import index_path

        return self.folder.uri(index_path(self.folder.sub))

    @property
    def blocks(self) -> int:
        return len(self.columns["id"])

    def triples(self, what: str) -> NDArray[Any]:
        """(blocks, 3): `start`, `shape`, `start_nm`, `stop_nm`."""
        import numpy as np

        return np.stack([self.columns[f"{what}_{axis}"] for axis in "zyx"], axis=1)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        import numpy as np

        return self.triples("start").astype(np.int64)

    @cached_property
    def shapes(self) -> NDArray[np.int64]:
        import numpy as np

        return self.triples("shape").astype(np.int64)

    def box(self, row: int) -> Box:
        return Box.from_shape(zyx(self.shapes[row].tolist()), at=zyx(self.starts[row].tolist()))

    def row(self, number: int) -> dict[str, Any]:
        """Of the columns that are read, as plain values."""
        return {
            "name": self.volume.name,
            **{name: values[number : number + 1].tolist()[0] for name, values in self.columns.items()},
        }

    @cached_property
    def axes(self) -> tuple[NDArray[np.int64], ...]:
        """Where blocks start along z, y, x, ascending."""
        import numpy as np

        return tuple(np.unique(self.starts[:, axis]) for axis in range(3))

    @cached_property
    def grid_problems(self) -> list[str]:
        """Why the rows are not blocks that fill a level: then nothing else can be said of them."""
        return list(_grid_problems(self))

    @cached_property
    def is_grid(self) -> bool:
        """Whether the rows are all blocks of a grid, z slowest, and there is one."""
        import numpy as np

        if self.blocks == 0 or math.prod(map(len, self.axes)) != self.blocks:
            return False
        return np.array_equal(self.starts, np.stack(np.meshgrid(*self.axes, indexing="ij"), axis=-1).reshape(-1, 3))


@contextlib.contextmanager
def open_index(volume: Volume, folder: DatasetFolder) -> Iterator[VolumeIndex]:
    """Raises Malformed if there is no index that can be read, or it is of another state of the volume."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from em_assets.catalog.block_indexes import SUMMARY, index_path

    path, record = index_path(folder.sub), folder.read_record()
    with _local_file(folder, path) as file:
        try:
            parquet = pq.ParquetFile(file)
            summary = json.loads((parquet.schema_arrow.metadata or {})[SUMMARY])
            columns = ["id", "level", *PLACES, "coverage", "split", "digest"]
            table = parquet.read(columns)
            found = {name: table[name].to_numpy() for name in columns}
            if record is None or summary["sha256"] != record.sha256:
                raise ValueError("it is of the volume as it was before")  # noqa: TRY301  # said as all that is wrong
        except FileNotFoundError:
            raise Malformed(f"there is no {folder.uri(path)}; materialize {folder.name}_blocks.") from None
        except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
            raise Malformed(
                f"{folder.uri(path)} is not the index of the volume's blocks ({str(error).splitlines()[0]}); "
                f"materialize {folder.name}_blocks to make it again."
            ) from None
        yield VolumeIndex(volume, folder, file, summary, found)


@contextlib.contextmanager
def _local_file(folder: DatasetFolder, path: str) -> Iterator[Path]:
    from em_assets.catalog.block_indexes import download

    local = folder.store.local_path(folder.path(path))
    if local is not None:
        yield local
        return
    with tempfile.TemporaryDirectory(prefix="em_assets-index-") as place:
        file = Path(place, "blocks.parquet")
        if folder.store.size_bytes(folder.path(path)) is not None:
            download(folder.store, folder.path(path), file)
        yield file


# The checks.


def check_block_grid(index: VolumeIndex) -> CheckOutcome:
    """Every block of the grid has one row, in order, inside of its level, at the place that the level gives it."""
    problems = index.grid_problems
    grid = [len(axis) for axis in index.axes]
    expected = {"blocks": math.prod(grid) or 1, "problems": 0}
    found = {"blocks": index.blocks, "problems": len(problems)}
    message = (
        f"{index.blocks} blocks are a grid of {' x '.join(map(str, grid))} (z, y, x) inside of {index.volume.name}"
        if not problems
        else f"{index.uri}: {problems[0]}"
    )
    return CheckOutcome("block_grid", not problems, expected, found, message, details={"problems": problems})


def _grid_problems(index: VolumeIndex) -> Iterator[str]:
    import numpy as np

    if index.blocks == 0:
        yield "it has no block"
        return
    levels = set(index.columns["level"].tolist())
    if len(levels) != 1 or not levels <= {level.number for level in index.volume.levels}:
        yield f"its blocks are of the levels {sorted(levels)}, expected one of the volume's {len(index.volume.levels)}"
        return
    if not index.is_grid:
        grid_of = " x ".join(str(len(axis)) for axis in index.axes)
        yield f"its {index.blocks} rows are not the {grid_of} blocks (z, y, x) that their starts make, z slowest"
    if not np.array_equal(index.columns["id"], np.arange(index.blocks)):
        yield "the ids are not the rows' numbers"
    if len(np.unique(index.shapes, axis=0)) > 1:
        yield "its blocks are not of one shape"
    yield from _place_problems(index, index.volume.levels[levels.pop()].grid)


def _place_problems(index: VolumeIndex, grid: Grid) -> Iterator[str]:
    """Of blocks that leave the level, leave out some of it, or are not where they say."""
    import numpy as np

    starts, stops = index.starts, index.starts + index.shapes
    outside = np.flatnonzero(((starts < 0) | (index.shapes <= 0) | (stops > np.array(grid.shape))).any(axis=1))
    if len(outside):
        yield f"the block {outside[0]}, {_box_text(index, outside[0])}, is not inside of {grid.shape} (z, y, x)"
    for axis, along, length, n in zip("zyx", index.axes, index.shapes[0], grid.shape, strict=True):
        if along[0] > 0 or along[-1] + length < n or (np.diff(along) > length).any():
            yield f"its blocks leave out voxels along {axis}"
    size, corner = np.array(grid.voxel_size_nm), np.array(grid.corner_nm)
    for what, voxels in (("start_nm", starts), ("stop_nm", stops)):
        off = np.abs(index.triples(what) - (corner + voxels * size)).max()
        if not off <= NM_TOLERANCE:
            yield f"{what} is up to {off:g} nm from where the level has the block"


def _box_text(index: VolumeIndex, row: int) -> str:
    """Also of what is no box."""
    starts, shapes = index.starts[row].tolist(), index.shapes[row].tolist()
    return ", ".join(f"{start}:{start + n}" for start, n in zip(starts, shapes, strict=True))


def _without_grid(name: str, index: VolumeIndex) -> CheckOutcome:
    """Of a check that needs to know which blocks there are."""
    message = f"{index.uri}: {index.grid_problems[0]}"
    problems = len(index.grid_problems)
    return CheckOutcome(
        name, passed=False, expected={"grid problems": 0}, found={"grid problems": problems}, message=message
    )


def check_block_splits(index: VolumeIndex) -> CheckOutcome:
    """Blocks of different splits keep the margin, along some axis: nothing that trains is seen by what judges."""
    margin = _margin(index)
    unknown = sorted(set(index.columns["split"].tolist()) - {*SPLITS, None})
    expected = {"pairs_nearer_than_the_margin": 0, "margin_voxels": list(margin), "unknown_splits": []}
    if index.grid_problems:
        return _without_grid("block_splits", index)
    pairs = sum(count for _, count in _near_pairs(index, margin))
    counts = {name: int((index.columns["split"] == name).sum()) for name in SPLITS}
    found: dict[str, Any] = {"pairs_nearer_than_the_margin": pairs, "unknown_splits": unknown, **counts}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    message = (
        f"{told} blocks, {index.blocks - sum(counts.values())} in margins; splits are {margin} voxels apart or more"
        if not pairs and not unknown
        else f"{index.uri}: {pairs} pairs of blocks of different splits are nearer than {margin} voxels (z, y, x)"
        + (f", and there are splits called {unknown}" if unknown else "")
    )
    return CheckOutcome("block_splits", not pairs and not unknown, expected, found, message)


def _margin(index: VolumeIndex) -> Zyx:
    margin = index.summary["margin"]
    return zyx(margin) if isinstance(margin, list) else (margin, margin, margin)


def _near_pairs(index: VolumeIndex, margin: Zyx) -> Iterator[tuple[Zyx, int]]:
    """How many pairs of different splits are nearer than the margin, by their distance in the grid."""
    codes = _split_codes(index)
    near = [_near_along(axis, index.shapes[0][n] + margin[n]) for n, axis in enumerate(index.axes)]
    reaches = [max((step for step, mask in steps.items() if mask.any()), default=0) for steps in near]
    for step in itertools.product(*(range(-reach, reach + 1) for reach in reaches)):
        if step <= (0, 0, 0):
            continue  # each pair once
        here, there = codes[_shifted(step, ahead=False)], codes[_shifted(step, ahead=True)]
        z, y, x = (near[n][abs(step[n])] for n in range(3))
        is_near = z[:, None, None] & y[None, :, None] & x[None, None, :]
        count = int((is_near & (here != there) & (here > 0) & (there > 0)).sum())
        if count:
            yield zyx(step), count


def _split_codes(index: VolumeIndex) -> NDArray[np.int8]:
    """On the grid: 1, 2, 3 for the splits, 0 in a margin and where no block is."""
    import numpy as np

    codes = np.zeros([len(axis) for axis in index.axes], np.int8)
    at = tuple(np.searchsorted(axis, index.starts[:, n]) for n, axis in enumerate(index.axes))
    for number, name in enumerate(SPLITS, 1):
        chosen = index.columns["split"] == name
        codes[tuple(where[chosen] for where in at)] = number
    return codes


def _near_along(starts: NDArray[np.int64], reach: int) -> dict[int, NDArray[np.bool_]]:
    """By steps in the grid: whether the block so many steps on begins nearer than `reach` to this one's beginning."""
    near: dict[int, NDArray[np.bool_]] = {}
    for step in range(len(starts)):
        near[step] = starts[step:] - starts[: len(starts) - step] < reach
        if not near[step].any():
            break
    return near


def _shifted(step: Sequence[int], *, ahead: bool) -> tuple[slice, ...]:
    """The part of the grid that has a partner so many steps on (or, ahead, that is one)."""
    steps = step if ahead else [-n for n in step]
    return tuple(slice(n, None) if n >= 0 else slice(None, n) for n in steps)


def check_block_coverage(index: VolumeIndex) -> CheckOutcome:
    """How much of each block is real is what coverage.parquet says; where voxels are missing, of samples."""
    import numpy as np

    from em_assets.blocks.coverage import read_missing

    if index.grid_problems:
        return _without_grid("block_coverage", index)
    coverage = index.columns["coverage"]
    if read_missing(index.folder):
        rows = _sample(np.flatnonzero(coverage < 1).tolist()) + _sample(np.flatnonzero(~(coverage < 1)).tolist())
        wanted = np.array([1 - index.volume.missing_fraction(index.box(row), _level(index, row)) for row in rows])
    else:
        rows, wanted = list(range(index.blocks)), np.ones(index.blocks)
    wrong = np.flatnonzero(~(np.abs(coverage[rows] - wanted) <= SHARE_TOLERANCE))
    message = f"{len(rows)} of {index.blocks} blocks are as real as coverage.parquet says"
    if len(wrong):
        row = rows[int(wrong[0])]
        message = (
            f"{index.uri}: {len(wrong)} of {len(rows)} blocks are not as real as coverage.parquet says, first "
            f"{index.box(row)}: {coverage[row]}, there {wanted[wrong[0]]}"
        )
    found = {"compared": len(rows), "wrong": len(wrong)}
    return CheckOutcome("block_coverage", not len(wrong), {"wrong": 0}, found, message)


def check_block_digests(index: VolumeIndex) -> CheckOutcome:
    """Random blocks that are read again have the digest, and as many real voxels, as the index says."""
    if index.grid_problems:
        return _without_grid("block_digests", index)
    rows = _sample(range(index.blocks), SAMPLED_DIGESTS)
    wrong: list[str] = []
    for row in rows:
        box, digest = index.box(row), index.columns["digest"][row]
        block = index.volume.read(box.start, shape=box.shape, level=_level(index, row), missing="mask")
        if digest is None and block.valid_fraction == 0:
            continue
        if block.digest != digest or abs(block.valid_fraction - index.columns["coverage"][row]) > SHARE_TOLERANCE:
            wrong.append(f"{box}: {block.digest} with {block.valid_fraction:.9g} real, expected {digest}")
    message = (
        f"{len(rows)} blocks that were read again are what the index says"
        if not wrong
        else f"{index.uri}: {len(wrong)} of {len(rows)} blocks are not what the index says (first: {wrong[0]}); "
        f"`em-assets verify {index.folder.name}` tells whether the volume is damaged"
    )
    found = {"read": len(rows), "wrong": len(wrong)}
    return CheckOutcome("block_digests", not wrong, {"wrong": 0}, found, message, details={"items": wrong})


def check_block_numbers(index: VolumeIndex) -> CheckOutcome:
    """The blocks' numbers and features are finite, shares lie between 0 and 1, percentiles ascend."""
    import pyarrow.parquet as pq

    problems: Counter[str] = Counter()
    lengths: set[int] = set()
    for batch in pq.ParquetFile(index.file).iter_batches(ROWS_AT_ONCE, columns=[*NUMBERS, "features"]):
        problems += _number_problems(batch)
        lengths |= _feature_lengths(batch)
        problems += _feature_problems(batch)
    if len(lengths) > 1:
        problems["features of different lengths"] = len(lengths)
    message = (
        f"the numbers of {index.blocks} blocks are sound"
        if not problems
        else f"{index.uri}: " + ", ".join(f"{count} times {what}" for what, count in problems.items())
    )
    found = {"problems": problems.total(), "features": max(lengths, default=0)}
    return CheckOutcome("block_numbers", not problems, {"problems": 0}, found, message, details={"problems": problems})


def _number_problems(batch: pa.RecordBatch) -> Counter[str]:
    """A number that is not known (None) is no problem, one that is not a number is."""
    import numpy as np

    values = {name: batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64) for name in NUMBERS}
    problems: Counter[str] = Counter()
    for name, column in values.items():
        known = ~batch.column(name).is_null().to_numpy(zero_copy_only=False)
        problems[f"{name} is not finite"] = int((known & ~np.isfinite(column)).sum())
        if name in SHARES:
            problems[f"{name} is not between 0 and 1"] = int((known & ((column < 0) | (column > 1))).sum())
    for low, high in itertools.pairwise(ASCENDING):  # NaN and None are neither more nor less
        problems[f"{low} is more than {high}"] = int((values[low] > values[high]).sum())
    return +problems


def _feature_lengths(batch: pa.RecordBatch) -> set[int]:
    import pyarrow.compute as pc

    return set(pc.list_value_length(batch.column("features")).drop_null().unique().to_pylist())


def _feature_problems(batch: pa.RecordBatch) -> Counter[str]:
    import numpy as np
    import pyarrow.compute as pc

    features = batch.column("features").drop_null()
    values = features.flatten().to_numpy(zero_copy_only=False)
    blocks = np.repeat(np.arange(len(features)), pc.list_value_length(features).to_numpy())
    return +Counter({"a feature is not finite": len(np.unique(blocks[~np.isfinite(values)]))})


def _sample(rows: Sequence[int], count: int = SAMPLED_COVERAGES) -> list[int]:
    """At most so many of them, the same in each run, in order."""
    return sorted(random.Random(0).sample(rows, min(count, len(rows))))  # noqa: S311  # a sample of places


def _level(index: VolumeIndex, row: int) -> int:
    return int(index.columns["level"][row])


# Over a dataset.

OF_INDEXES: dict[str, Callable[[VolumeIndex], CheckOutcome]] = {
    "block_grid": check_block_grid,
    "block_splits": check_block_splits,
    "block_coverage": check_block_coverage,
    "block_digests": check_block_digests,
    "block_numbers": check_block_numbers,
}
BLOCKING = ("block_grid", "block_splits", "block_coverage", "block_digests")
"""Who trains by the index relies on these: one that fails stops what lies downstream."""


def check_indexes(folders: Sequence[DatasetFolder], settings: Settings, names: Iterable[str]) -> list[CheckOutcome]:
    """Runs the named checks over the indexes of all volumes of a complete dataset, the main one's folder first.

    Keeps each result in the store, and removes indexes that are wrong.
    """
    from em_assets.catalog.block_indexes import index_path

    wanted, main = set(names), folders[0]
    outcomes: dict[str, dict[str, CheckOutcome]] = {name: {} for name in OF_INDEXES if name in wanted}
    for folder in folders:
        for outcome in _check_volume(folder, settings, list(outcomes)):
            outcomes[outcome.name][folder.title] = outcome
            if not outcome.passed and outcome.name in BLOCKING:
                main.store.delete(main.path(index_path(folder.sub)))
    joined = [_joined(of_volumes) for of_volumes in outcomes.values()]
    for outcome in joined:
        main.write(f"checks/{outcome.name}.json", outcome_document(outcome, is_blocking=outcome.name in BLOCKING))
    return joined


def _check_volume(folder: DatasetFolder, settings: Settings, names: Sequence[str]) -> list[CheckOutcome]:
    from em_assets.blocks.opening import open as open_volume

    try:
        with open_index(open_volume(folder.title, settings=settings), folder) as index:
            return [OF_INDEXES[name](index) for name in names]
    except Malformed as problem:
        return [
            CheckOutcome(
                name, passed=False, expected={"index": "readable"}, found={"index": "not"}, message=str(problem)
            )
            for name in names
        ]


def _joined(outcomes: dict[str, CheckOutcome]) -> CheckOutcome:
    """One outcome for all volumes of a dataset: the first red one's sentence, or the main volume's."""
    if len(outcomes) == 1:
        return next(iter(outcomes.values()))
    red = [(title, outcome) for title, outcome in outcomes.items() if not outcome.passed]
    title, shown = red[0] if red else next(iter(outcomes.items()))
    return CheckOutcome(
        shown.name,
        not red,
        {name: outcome.expected for name, outcome in outcomes.items()},
        {name: outcome.found for name, outcome in outcomes.items()},
        f"{title}: {shown.message}" if red else f"in each of {len(outcomes)} volumes; {title}: {shown.message}",
        details={name: outcome.details for name, outcome in outcomes.items() if outcome.details},
    )


# Croissant.

CROISSANT_CHECK = "croissant_required"


def check_croissants(database: Path, store: Store) -> CheckOutcome:
    """Each dataset with blocks has a croissant.json, with all that Croissant 1.1 requires and its files' checksums."""
    from em_assets.catalog.croissant import CROISSANT, croissants, missing_required

    problems = []
    documents = croissants(database, store)
    for name, document in documents.items():
        lacking = missing_required(document)
        if lacking:
            problems.append(f"{name} has no {CROISSANT}, for lack of {', '.join(lacking)}: state it in its spec")
            continue
        with contextlib.suppress(FileNotFoundError, ValueError):
            if json.loads(store.read(f"{name}/{CROISSANT}")) == document:
                continue
        problems.append(f"{name}/{CROISSANT} is not of the blocks that are there: materialize croissants")
    message = f"{len(documents)} of {len(documents)} are whole" if not problems else problems[0]
    expected, found = {"documents": len(documents), "problems": 0}, {"problems": len(problems)}
    return CheckOutcome(
        CROISSANT_CHECK, not problems, expected, found, message, details={"items": problems[:MOST_LISTED]}
    )
