"""A series of files as one volume: each a slice, or a stack of slices, of the same shape.

The order comes from the numbers in the names and is held against what the files say of where or when they were taken.
Every header is read once when the series is opened; after that a bounded number of files is open at a time.
"""

from __future__ import annotations

import math
import re
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.formats._boxes import checked_box, map_boxes
from em_assets.formats._bytes import ByteSource, LocalBytes
from em_assets.formats.opening import open_file
from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, Scalar, VolumeReader
from em_assets.settings import Settings
from em_assets.volume import Box, VolumeInfo, VoxelSize, Zyx

T = TypeVar("T")
BytesOf = Callable[[str], ByteSource]
MOST_OPEN_FILES = 256
"""As many slices as a region has, so that regions side by side open each file once; fewer where the system has few."""
MAX_DIFFERING = 10_000
NAMED = 5
"""So many files or numbers are named in a message."""
ORDER_TAGS = (
    ("stage z", "/Stage Position/Stage Z"),
    ("acquisition time", "/DataBar/Acquisition Time (OS)"),
    ("acquisition time", "/Acquisition/AcquisitionDatetime"),
)
"""(what it is, how the path of the tag ends): Gatan's stage, Gatan's clock, FEI's clock (ISO 8601, which sorts)."""


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    info: VolumeInfo
    version: tuple[int, int]
    """Size and, on this machine, time of change, by which a file is known to be the one that was opened first."""
    order: tuple[Scalar, ...]
    """The values of ORDER_TAGS, None where the file has none."""
    can_sample: bool
    """Whether its reader has a second way to a voxel."""

    @property
    def name(self) -> str:
        return Path(self.path).name


def open_series(
    paths: Sequence[str], settings: Settings, *, dataset: str | None = None, bytes_of: BytesOf = LocalBytes
) -> SeriesReader:
    """One volume of many files, of any format that `open_file` reads, in the order of the numbers in their names.

    `bytes_of` gives the bytes of a file by its path, where they are not simply on this machine.
    Raises Malformed, naming the files, where the numbers are not clear, leave gaps or come twice, contradict stage z
    or acquisition time, or the files are not alike; and what the format raises for a file that cannot be read.
    """
    if not paths:
        raise Unavailable("a series of no files was asked for; correct the pattern.")
    in_order = ordered_by_number(paths)
    with ThreadPoolExecutor(settings.workers) as pool:
        files = list(pool.map(lambda path: _look_at(path, bytes_of, dataset, settings), in_order))
    for file in files:
        _require_alike(files[0], file)
    _require_order(files)
    return SeriesReader(files, bytes_of, settings, dataset)


def ordered_by_number(paths: Sequence[str]) -> list[str]:
    """Sorted by the one number in which the names differ; it must go up by one from file to file."""
    parts = {path: re.split(r"(\d+)", Path(path).name) for path in paths}
    first = paths[0]
    for path in paths:
        if parts[path][::2] != parts[first][::2]:
            raise Malformed(
                f"{Path(first).name} and {Path(path).name} are not named alike, so that their order is not known; "
                "choose files whose names differ in one number."
            )
    columns = [{parts[path][at] for path in paths} for at in range(1, len(parts[first]), 2)]
    varying = [at for at, found in enumerate(columns) if len(found) > 1]
    if len(varying) > 1:
        examples = "; ".join(", ".join(sorted(columns[at])[:3]) for at in varying)
        raise Malformed(
            f"{len(varying)} numbers vary in the names of the series ({examples}; for instance {Path(first).name}), so "
            "that their order is not known; choose files whose names differ in one number."
        )
    if not varying:
        if len(paths) > 1:
            raise Malformed(f"{Path(first).name} is there {len(paths)} times; choose files with different numbers.")
        return list(paths)
    numbered = sorted((int(parts[path][2 * varying[0] + 1]), path) for path in paths)
    _require_every_number(numbered)
    return [path for _, path in numbered]


def _require_every_number(numbered: list[tuple[int, str]]) -> None:
    for (a, first), (b, second) in pairwise(numbered):
        if a == b:
            raise Malformed(f"{Path(first).name} and {Path(second).name} have the same number, {a}; remove one.")
    gaps = [(a + 1, b - 1) for (a, _), (b, _) in pairwise(numbered) if b != a + 1]
    if gaps:
        count = sum(last - first + 1 for first, last in gaps)
        named = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in gaps[:NAMED]) + ", ..." * (len(gaps) > NAMED)
        raise Malformed(
            f"the series from {Path(numbered[0][1]).name} to {Path(numbered[-1][1]).name} has {len(numbered)} files, "
            f"but {count} numbers between them are missing: {named}; get these files, or choose a part without gaps."
        )


def _look_at(path: str, bytes_of: BytesOf, dataset: str | None, settings: Settings) -> _File:
    """Opens a file for its header."""
    source = bytes_of(path)
    version = _version(source)
    reader = open_file(source, dataset, settings)
    found: dict[int, Scalar] = {}
    for key, value in reader.tags():
        for at, (_, ending) in enumerate(ORDER_TAGS):
            if key.endswith(ending):
                found.setdefault(at, value)
    order = tuple(found.get(at) for at in range(len(ORDER_TAGS)))
    return _File(path, reader.info, version, order, getattr(reader, "sampler", None) is not None)


def _version(source: ByteSource) -> tuple[int, int]:
    """Size and, of a file of this machine, the time of its last change."""
    return source.size_bytes, Path(source.name).stat().st_mtime_ns if isinstance(source, LocalBytes) else 0


def _require_alike(first: _File, file: _File) -> None:
    for what, one, other in (
        ("shape (z, y, x)", first.info.shape, file.info.shape),
        ("dtype", first.info.dtype, file.info.dtype),
        ("number of channels", first.info.channels, file.info.channels),
    ):
        if one != other:
            raise Malformed(
                f"{file.path} differs in the series: its {what} is {other}, that of {first.name} is {one}; files of "
                "one volume are alike, remove it or get it again."
            )
    if not _same_size(first.info.voxel_size_nm, file.info.voxel_size_nm):
        raise Malformed(
            f"{file.path} differs in the series: its voxel size is {file.info.voxel_size_nm} nm (z, y, x), that of "
            f"{first.name} is {first.info.voxel_size_nm}; one magnification makes a volume, remove it."
        )


def _same_size(one: VoxelSize | None, other: VoxelSize | None) -> bool:
    """To one part in a million: some instruments write single-precision sizes that jitter."""
    if one is None or other is None:
        return one is other
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(one, other, strict=True))


def _require_order(files: list[_File]) -> None:
    """The first thing that every file states, and that is not the same in all, must go one way."""
    for at, (what, _) in enumerate(ORDER_TAGS):
        values: list[Any] = [file.order[at] for file in files]
        if len({type(value) for value in values}) > 1 or values[0] is None or len(set(values)) == 1:
            continue
        goes_up = values[-1] > values[0]
        for one, other, a, b in zip(files, files[1:], values, values[1:], strict=False):
            if a != b and (b > a) != goes_up:
                raise Malformed(
                    f"{one.name} and {other.name} are in the order of their numbers, but their {what} ({a}, {b}) runs "
                    f"against that of the series ({values[0]} to {values[-1]}); correct the names, or leave them out."
                )
        return


class SeriesReader:
    """A `VolumeReader`. Safe for use by several threads."""

    def __init__(self, files: list[_File], bytes_of: BytesOf, settings: Settings, dataset: str | None) -> None:
        self._files = files
        self._bytes_of = bytes_of
        self._settings = settings
        self._dataset = dataset
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        unlimited = allowed == resource.RLIM_INFINITY
        self._most_open = MOST_OPEN_FILES if unlimited else min(MOST_OPEN_FILES, max(allowed // 4, 1))
        share = settings.memory_bytes // self._most_open
        self._settings_of_file = settings.model_copy(update={"memory_bytes": share})
        self._lock = threading.Lock()
        self._open: OrderedDict[int, VolumeReader] = OrderedDict()
        of_file = files[0].info
        self._depth = of_file.shape[0]
        self.info = replace(of_file, shape=(self._depth * len(files), *of_file.shape[1:]))
        self.name = f"{files[0].path} to {files[-1].name}" if len(files) > 1 else files[0].path

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """The voxels of a box, of the whole series without one; of every channel where there are several."""
        box = checked_box(self.info, box, self.name)
        channels = () if self.info.channels is None else (self.info.channels,)
        voxels = np.empty((*channels, *box.shape), self.info.dtype)
        for number, inside in self._parts(box):
            first = number * self._depth + inside.start[0] - box.start[0]
            voxels[..., first : first + inside.shape[0], :, :] = self._reader(number).read(inside)
        return voxels

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """Those of the first file below `/<its name>`; of the other files what differs, up to 10,000 values."""
        first = dict(self._reader(0).tags())
        yield from ((f"/{self._files[0].name}{_rooted(key)}", value) for key, value in first.items())
        left = MAX_DIFFERING
        for number, file in enumerate(self._files[1:], start=1):
            for key, value in self._reader(number).tags():
                if key in first and first[key] == value:
                    continue
                if not left:
                    yield "/not_listed", f"further differences between the files, from {file.name} on"
                    return
                left -= 1
                yield f"/{file.name}{_rooted(key)}", value

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        """The sum of the files' plans."""
        requests = received = chunks = 0
        inside: dict[int, list[Box]] = {}
        for box in boxes:
            for number, part in self._parts(box):
                inside.setdefault(number, []).append(part)
        for number, parts in inside.items():
            plan = self._reader(number).plan(parts)
            requests += plan.requests
            received += plan.received_bytes or 0
            chunks += plan.chunks
        return ReadPlan(requests, received, chunks, 0)

    def map_regions(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[RegionOutcome[T]]:
        """Reads every box and calls `work` with it on a worker thread; boxes with the same files follow one another."""
        return map_boxes(
            sorted(boxes),
            self.read,
            work,
            sample=self._sample if all(file.can_sample for file in self._files) else None,
            source_url=self.name,
            workers=self._settings.workers,
            on_bytes=on_bytes,
        )

    def _parts(self, box: Box) -> Iterator[tuple[int, Box]]:
        """(file, box within it) for each file that a box touches."""
        (z0, *yx0), (z1, *yx1) = box.start, box.stop
        for number in range(z0 // self._depth, -(-z1 // self._depth)):
            base = number * self._depth
            start, stop = max(z0 - base, 0), min(z1 - base, self._depth)
            yield number, Box((start, yx0[0], yx0[1]), (stop, yx1[0], yx1[1]))

    def _sample(self, position: Zyx) -> float:
        number, z = divmod(position[0], self._depth)
        reader: Any = self._reader(number)
        return float(reader.sampler((z, position[1], position[2])))

    def _reader(self, number: int) -> VolumeReader:
        """An open file, opened again if it was closed meanwhile. Raises Mismatch if it is not the same any more."""
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        file = self._files[number]
        source = self._bytes_of(file.path)
        if _version(source) != file.version:
            raise Mismatch(f"{file.path} changed while its series was read; open the series again.")
        reader = open_file(source, self._dataset, self._settings_of_file)
        with self._lock:
            self._open[number] = reader
            while len(self._open) > self._most_open:
                self._open.popitem(last=False)
        return reader


def _rooted(key: str) -> str:
    return key if key.startswith("/") else f"/{key}"
