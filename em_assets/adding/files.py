"""Published files: which belong to a volume, how large they are, and what the headers of the first and last say."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise
from typing import Any
from urllib.parse import quote, unquote

from em_assets.adding.draft import Draft
from em_assets.adding.volume import Wishes, know_volume
from em_assets.datasets.source import MAX_FILES
from em_assets.errors import Mismatch, Unavailable
from em_assets.fetch.hosts import Interrupt
from em_assets.fetch.http import HttpClient, NotThere
from em_assets.fetch.parallel import fetch_all
from em_assets.formats._bytes import RemoteBytes
from em_assets.formats.opening import open_file
from em_assets.formats.reader import VolumeReader
from em_assets.settings import Settings
from em_assets.volume import VolumeInfo

CONNECTIONS = 3
"""EBI takes more for an attack."""
ALL_SIZES = 100
"""So many files are asked for their size one by one; of more, only some."""
SOME_SIZES = 8
VOLUME_ENDINGS = (".tif", ".tiff", ".dm3", ".dm4", ".h5", ".hdf5", ".mrc", ".mrcs", ".rec", ".st", ".map")
NUMBERED = re.compile(r"(.*?)(\d+)(\D*?(?:\.[^.]*)?)", re.DOTALL | re.ASCII)
"""What comes before the last number of a name, the number, and the rest; digits of the ending do not count."""
MAX_NAME_CHARACTERS = 200
"""Longer names are of no file that is stored."""
MOST_UNLISTED = 20
"""So many names that a listing lacks are asked for."""


@dataclass(frozen=True)
class Folder:
    """A publisher's folder."""

    url: str
    """Without a slash at its end, percent-encoded."""
    client: HttpClient

    def file_url(self, name: str) -> str:
        return f"{self.url}/{quote(name, safe='/')}"

    def size_bytes(self, name: str) -> int | None:
        """By a range of one byte. None where the server does not say. Raises NotThere, Unavailable ..."""
        return self.client.get_range(self.file_url(name), 0, 1).object_bytes

    def sizes_bytes(self, names: Sequence[str]) -> list[int | None]:
        def job(name: str) -> Callable[[Interrupt], int | None]:
            return lambda _: self.size_bytes(name)

        answers = fetch_all([job(name) for name in names], CONNECTIONS)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer for answer in answers if not isinstance(answer, Exception)]


def know_single_file(
    draft: Draft, url: str, client: HttpClient, wishes: Wishes, settings: Settings, *, mirrors: Sequence[str] = ()
) -> VolumeInfo:
    """Fills in a source of one file that holds the volume."""
    base, _, last = url.partition("#")[0].partition("?")[0].rpartition("/")
    folder, name = Folder(base, client), unquote(last)
    if "://" not in base or not name:
        raise Mismatch(f"{url[:200]!r} is no address of a file; it looks like https://host/folder/name.tif.")
    source = RemoteBytes(folder.file_url(name), client)
    info = open_file(source, None, settings).info
    draft.know("source", files_source(folder.url, [{"path": name, "size_bytes": source.size_bytes}], [name], mirrors))
    draft.found.append(f"{name}: {source.size_bytes} bytes")
    know_volume(draft, source.name, info, wishes, settings, from_files=True)
    return info


def files_source(url: str, files: list[dict[str, Any]], volume: list[str], mirrors: Sequence[str]) -> dict[str, Any]:
    source: dict[str, Any] = {"kind": "files", "url": url}
    if mirrors:
        source["mirrors"] = list(mirrors)
    return source | {"connections": CONNECTIONS, "files": files, "volume": {"files": volume}}


# Which files


def choose_files(names: Sequence[str], pattern: str | None, expected_count: int | None) -> list[str]:
    """The files of the volume, in the order of their numbers.

    By the pattern, else the only series, else the one that has as many files as the publisher counts. Raises Mismatch
    naming the choices.
    """
    names = [name for name in names if len(name) <= MAX_NAME_CHARACTERS]
    fitting = [n for n in names if fnmatch.fnmatchcase(n, pattern)] if pattern else _of_volumes(names)
    if not fitting:
        raise Mismatch(
            f"no file {'fits ' + repr(pattern) if pattern else 'of a known format is listed'}; there are "
            f"{', '.join(sorted(names)[:5]) or 'none'}; give --files PATTERN."
        )
    series = _series(fitting)
    if len(series) > 1:
        counted = [members for members in series.values() if len(members) == expected_count]
        if len(counted) != 1:
            shown = ", ".join(f"'{key}' ({len(members)})" for key, members in list(series.items())[:8])
            raise Mismatch(f"the folder has {len(series)} series of files: {shown}; choose one with --files PATTERN.")
        return counted[0]
    return next(iter(series.values()))


def _of_volumes(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(VOLUME_ENDINGS)]


def _series(names: Sequence[str]) -> dict[str, list[str]]:
    """Files whose names differ in their last number, by the pattern that fits them (`a_*.tif`)."""
    series: dict[str, list[str]] = {}
    for name in names:
        found = NUMBERED.fullmatch(name)
        series.setdefault(f"{found[1]}*{found[3]}" if found else name, []).append(name)
    return {key: in_order(members) for key, members in series.items()}


def in_order(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: (_number(name), name))


def _number(name: str) -> int:
    found = NUMBERED.fullmatch(name)
    return int(found[2]) if found else -1


def _named(like: str, number: int) -> str | None:
    """The name with another number in it, of the same width at least."""
    found = NUMBERED.fullmatch(like)
    return f"{found[1]}{number:0{len(found[2])}d}{found[3]}" if found else None


def unlisted_files(listed: Sequence[str], expected_count: int | None, folder: Folder) -> list[str]:
    """Files of a series that the listing lacks and the server gives all the same: in gaps, and at both ends."""
    numbers = [_number(name) for name in listed]
    if len(listed) < 2 or (expected_count is not None and len(listed) >= expected_count):
        return []
    lacking = MOST_UNLISTED if expected_count is None else expected_count - len(listed)
    # a listing may hold any numbers: a gap of billions is not counted out
    gaps = (n for a, b in pairwise(numbers) for n in range(a + 1, min(b, a + 1 + MOST_UNLISTED)))
    wanted = islice(gaps, MOST_UNLISTED)
    found = [name for n in wanted if (name := _named(listed[0], n)) and _is_there(name, folder)]
    if expected_count is not None and len(found) < lacking:
        ends = [_named(listed[0], n) for n in (numbers[0] - 1, numbers[-1] + 1) if n >= 0]
        found += [name for name in ends if name and _is_there(name, folder)]
    return found


def _is_there(name: str, folder: Folder) -> bool:
    try:
        folder.size_bytes(name)
    except NotThere:
        return False
    return True


def require_no_gaps(names: Sequence[str]) -> None:
    """Raises Unavailable naming the numbers that are missing: a volume with a slice less is another volume."""
    numbers = [_number(name) for name in names]
    gaps = [n for a, b in pairwise(numbers) for n in range(a + 1, min(b, a + 6))]
    if gaps and len(names) > 1:
        raise Unavailable(
            f"the series from {names[0]} to {names[-1]} lacks the numbers {', '.join(map(str, gaps[:5]))}, which the "
            "server does not give; choose a part without gaps with --files PATTERN or --max-files N."
        )


# How large they are


@dataclass(frozen=True)
class Sizes:
    """What was asked of the files' sizes."""

    entries: list[dict[str, Any]]
    """For `source.files`: ranges of names where they follow one another and are alike."""
    ranges: list[str]
    """The same names for `volume.files`."""
    said: str
    """For the person."""
    all_asked: bool


def ask_sizes(names: Sequence[str], folder: Folder) -> Sizes:
    """Of every file, or of first, last and a few between where there are too many: then none is pinned."""
    everything = len(names) <= ALL_SIZES
    steps = range(SOME_SIZES)
    asked = list(names) if everything else [names[k * (len(names) - 1) // (SOME_SIZES - 1)] for k in steps]
    sizes = dict(zip(asked, folder.sizes_bytes(asked), strict=True))
    known = [size for size in sizes.values() if size is not None]
    alike = (
        f"{known[0]} bytes each" if len(set(known)) == 1 else f"{min(known)} to {max(known)} bytes" if known else "?"
    )
    if everything:
        return Sizes(_entries(names, sizes), ranges_of(names), f"{len(names)} files, {alike}", all_asked=True)
    said = f"{len(names)} files; {len(asked)} were asked for their size: {alike}; sizes are not pinned"
    return Sizes(_entries(names, {}), ranges_of(names), said, all_asked=False)


def _entries(names: Sequence[str], sizes: dict[str, int | None]) -> list[dict[str, Any]]:
    entries = []
    for size, members in groupby(names, key=sizes.get):
        pinned = {} if size is None else {"size_bytes": size}
        entries += [{"path": path, **pinned} for path in ranges_of(list(members))]
    return entries


def ranges_of(names: Sequence[str]) -> list[str]:
    """`slice_{0000..0015}.dm3` for names that follow one another; others one by one."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _named(runs[-1][-1], _number(runs[-1][-1]) + 1) == name:
            runs[-1].append(name)
        else:
            runs.append([name])
    return [_range(run) for run in runs]


def _range(run: Sequence[str]) -> str:
    first, last = NUMBERED.fullmatch(run[0]), NUMBERED.fullmatch(run[-1])
    if len(run) == 1 or first is None or last is None:
        return run[0]
    return f"{first[1]}{{{first[2]}..{last[2]}}}{first[3]}"


# What they say


@dataclass(frozen=True)
class Headers:
    """What the first and the last file of a series say."""

    info: VolumeInfo
    """Of the volume that all of them make."""
    pixel_nm: tuple[float, float] | None
    """(y, x), where the file states the pixels but not the slices."""


def read_headers(names: Sequence[str], folder: Folder, settings: Settings) -> Headers:
    """Raises Mismatch if first and last are not alike, and what the format raises."""
    readers = [_open(name, folder, settings) for name in dict.fromkeys((names[0], names[-1]))]
    first, last = readers[0], readers[-1]
    if (first.info.shape, first.info.dtype) != (last.info.shape, last.info.dtype):
        raise Mismatch(
            f"{names[0]} is {first.info.shape} {first.info.dtype} (z, y, x), but {names[-1]} is {last.info.shape} "
            f"{last.info.dtype}; files of one volume are alike: choose them with --files PATTERN."
        )
    z, y, x = first.info.shape
    return Headers(replace(first.info, shape=(z * len(names), y, x)), _fei_pixel_nm(first))


def _open(name: str, folder: Folder, settings: Settings) -> VolumeReader:
    return open_file(RemoteBytes(folder.file_url(name), folder.client), None, settings)


def _fei_pixel_nm(reader: VolumeReader) -> tuple[float, float] | None:
    """FEI's tags give the pixel in metres, below [Scan] or [EScan]; slices they do not know of."""
    found: dict[str, float] = {}
    for key, value in reader.tags():
        name = key.rpartition("/")[2].lower()
        if name in ("pixelwidth", "pixelheight"):
            try:
                found.setdefault(name, float(str(value)) * 1e9)
            except ValueError:
                continue
    sizes = found.get("pixelheight", math.nan), found.get("pixelwidth", math.nan)
    return sizes if all(math.isfinite(size) and size > 0 for size in sizes) else None


def require_few(names: Sequence[str], max_files: int | None) -> list[str]:
    """The first `max_files`. Raises Mismatch for more than a dataset may have."""
    taken = list(names if max_files is None else names[:max_files])
    if len(taken) > MAX_FILES:
        raise Mismatch(
            f"{len(taken)} files are more than the {MAX_FILES} that a dataset may have; take a part: --max-files N, or "
            "--files PATTERN."
        )
    return taken
