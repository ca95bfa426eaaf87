"""What the mappings of all files share: which volumes a file is part of, and how its axes lie (`readings`).

Which day a date means (`decided`) and numbers as they are written (`exact`) are here, too. What a format's own tags
mean stands in `dm.py`, `tiff.py` and `hdf5.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from functools import lru_cache

from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.catalog.values import dates, number
from em_assets.catalog.vocabulary import Authority
from em_assets.datasets.source import FilesSource, VolumeFiles
from em_assets.formats._units import to_nanometres
from em_assets.formats.reader import Scalar
from em_assets.originals import original_path

OF_THE_FILE = frozenset({"file_format", "compression", "source_chunk", "source_axes", "acquisition_software"})
"""Fields about how a file is written: another file with the same voxels says nothing of them."""
PAGE, ROW, COLUMN = 0, 1, 2
"""A file's own axes, slowest first; `VolumeFiles.axes` says which of z, y, x each is."""
ZYX = "zyx"


@dataclass(frozen=True)
class FileReading:
    """One file as a part of one volume: what it claims, and how that is stated."""

    document: StatedDocument
    values: Mapping[str, Scalar]
    """Its claims; of a later file of a series those of the first, too, which it does not repeat."""
    volume: str | None
    files: VolumeFiles
    is_copy: bool
    """Whether it holds the voxels of the main volume a second time (`same_volume`)."""
    is_first: bool
    """Of its series."""

    @property
    def is_series(self) -> bool:
        return len(_paths_and_first(self.files)[0]) > 1

    def number(self, key: str) -> float | None:
        return number(self.values.get(key))

    def positive(self, key: str, factor: float = 1) -> float | None:
        """A number above 0, times a factor: where an instrument did not measure, it writes 0."""
        found = self.number(key)
        product = None if found is None else number(found * factor)
        return product if product is not None and product > 0 else None

    def text(self, key: str) -> str:
        """In one line; empty where there is none."""
        found = self.values.get(key)
        return " ".join(found.split()) if isinstance(found, str) else ""

    def state(
        self,
        field: str,
        value: str | float | None,
        key: str,
        authority: Authority = "file header",
        *,
        unit: str = "",
        stated: str | None = None,
        note: str | None = None,
    ) -> Iterator[Statement]:
        """Nothing if there is no value, the claim is not this file's own, or it is about this file alone."""
        if value is None or value == "" or key not in self.document.values or (self.is_copy and field in OF_THE_FILE):
            return
        stated = f"{self.values[key]} {unit}".strip() if stated is None else stated
        yield Statement(field, value, authority, self.document.path, key, stated, self.volume, note)

    def state_size(self, axis: int, value: float | None, key: str, *, note: str | None = None) -> Iterator[Statement]:
        """Voxels along one of the file's own axes. One file of a series does not say how many there are."""
        if not (self.is_series and axis == PAGE):
            yield from self.state(f"source_size_{self.files.axes[axis]}", value, key, note=note)

    def state_voxel_size(
        self,
        axis: int,
        value: Fraction | None,
        unit: str,
        key: str,
        authority: Authority = "file header",
        *,
        per: str = "",
        note: str | None = None,
    ) -> Iterator[Statement]:
        """Along one of the file's own axes; nothing where the unit is none of length. `per `: of a claim in 1/unit."""
        size_nm = None if value is None else to_nanometres(value, unit)
        field = f"voxel_size_{self.files.axes[axis]}_nm"
        yield from self.state(field, size_nm, key, authority, unit=f"{per}{unit}", note=note)

    def as_zyx(self, sizes: Sequence[float]) -> str:
        """Three sizes along the file's own axes as (z, y, x)."""
        return " x ".join(str(int(sizes[self.files.axes.index(axis)])) for axis in ZYX)

    def state_day(self, key: str, evidence: Sequence[tuple[date, str]]) -> Iterator[Statement]:
        """The day of acquisition by a claim. Later files of a series do not say when imaging began."""
        if not self.is_first or (found := decided(self.values.get(key), evidence)) is None:
            return
        day, note = found
        yield from self.state("acquired_on", day.isoformat(), key, "file metadata", note=note)


def readings(document: StatedDocument, context: Context) -> Iterator[FileReading]:
    """The volumes that a file is part of; nothing for an attachment."""
    source = context.spec.source
    if not isinstance(source, FilesSource):
        return
    further = [(name, volume.source, False) for name, volume in context.spec.volumes.items() if volume.source]
    for volume, files, is_copy in (
        (None, source.volume, False),
        *((None, same, True) for same in source.same_volume),
        *further,
    ):
        paths, first = _paths_and_first(files)
        if document.path in paths:
            values = document.values
            if document.path != first and first in context.documents:
                values = {**context.documents[first].values, **values}
            yield FileReading(document, values, volume, files, is_copy, document.path == first)


@lru_cache(maxsize=64)
def _paths_and_first(files: VolumeFiles) -> tuple[frozenset[str], str]:
    """Where the files are kept, and which of them comes first by the numbers in its name."""
    paths = files.paths()
    first = min(paths, key=lambda path: [int(digits) for digits in re.findall(r"\d+", path.rpartition("/")[2])])
    return frozenset(map(original_path, paths)), original_path(first)


def decided(text: Scalar, evidence: Sequence[tuple[date, str]]) -> tuple[date, str | None] | None:
    """The day that a text means and, if day and month could be swapped, what decided; None if nothing does.

    Evidence may be a day off: clocks in UTC beside local time.
    """
    possible = dates(text)
    if len(possible) == 1:
        return possible[0], None
    for day, said in evidence:
        near = next((other for other in possible if abs(other - day) <= timedelta(days=1)), None)
        if near is not None:  # the other one is three weeks away at least
            return near, f"day and month could be swapped; {said} decides"
    return None


def exact(value: Scalar) -> Fraction | None:
    """A positive number as it is written: 0.02 is 1/50, not the nearest binary number."""
    found = number(value)
    return Fraction(repr(found)) if found is not None and found > 0 else None
