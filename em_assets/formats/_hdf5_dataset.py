"""What an HDF5 file says of one of its datasets: where its voxels lie, how they are packed, what its attributes say.

The HDF5 library reads this structure and nothing else, in a process of its own (`_hdf5_structure.py`): a damaged file
can crash it or keep it for ever. Of a file that is elsewhere that process gets its bytes from this one
(`_hdf5_remote.py`). Voxels are read by `hdf5.py`, from places that are checked, so none passes through the library's
filters, which unpack without limit, or waits for its global lock.
"""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets import errors
from em_assets.errors import Malformed, Unsupported
from em_assets.formats._bytes import ByteSource, LocalBytes, RemoteBytes
from em_assets.formats._hdf5_remote import run_reading
from em_assets.formats._units import to_nanometres
from em_assets.formats.reader import Scalar
from em_assets.volume import VoxelSize

Index = tuple[int, ...]

PROGRAM = Path(__file__).with_name("_hdf5_structure.py")
STRUCTURE_SECONDS = 30.0
"""A file of a million chunks takes three."""
DEFLATE, SHUFFLE, LZF = 1, 2, 32000
FILTERS = {DEFLATE: "gzip", SHUFFLE: "shuffle", LZF: "lzf"}
"""By their registered number."""
MOST_KEPT = 4
"""Datasets of files on servers: one that is opened again here needs no other process again. Of one with as many chunks
as may be, their table has 64 MB."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """Where the stored chunks lie, sorted by number: that of their place in the grid, last axis fastest."""

    number: NDArray[np.int64]
    start: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    skipped: NDArray[np.int64]
    """Bit n: filter n was not applied."""


@dataclass(frozen=True, slots=True)
class Hdf5Dataset:
    """One dataset that can be read as a volume. Axes in its own order: (z, y, x) at the end."""

    path: str
    shape: Index
    dtype: np.dtype[Any]
    """With the byte order as stored."""
    fill_value: float
    voxel_size_nm: VoxelSize | None
    attributes: tuple[tuple[str, Scalar], ...]
    """Of the groups it lies in and its own: `/volumes/raw@resolution`."""
    chunk: Index
    """The whole shape where it is not stored in chunks."""
    filters: tuple[int, ...] = ()
    """In the order they were applied."""
    start: int | None = None
    """Byte of the first voxel, where all lie together unpacked."""
    within: bytes | None = None
    """The voxels themselves, of a small dataset that is stored within its own header."""
    chunks: Chunks | None = None

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.chunk) * self.dtype.itemsize


_kept: dict[tuple[str, str, int, str | None], Hdf5Dataset] = {}
"""By address, version, size and path. Without a lock, which a process that is forked meanwhile would never get."""


def read_dataset(source: ByteSource, path: str | None, connections: int = 1) -> Hdf5Dataset:
    """The dataset at `path`, or the only three-dimensional one; with so many requests at a time where it is elsewhere.

    Raises Malformed for a damaged file, Mismatch if there is nothing at `path`, Unsupported for what is no volume, is
    packed in another way, or lies in another file; and what reading the source raises.
    """
    if isinstance(source, LocalBytes):
        return _dataset(_ask(source.name, path), source.name)
    if not isinstance(source, RemoteBytes) or source.etag is None:
        return _dataset(_ask(source.name, path, source, connections), source.name)
    key = (source.url, source.etag, source.size_bytes, path)
    found = _kept.get(key)
    if found is None:
        _kept[key] = found = _dataset(_ask(source.name, path, source, connections), source.name)
        for oldest in list(_kept)[:-MOST_KEPT]:
            _kept.pop(oldest, None)
    return found


def _dataset(answer: bytes, name: str) -> Hdf5Dataset:
    line, _, table = answer.partition(b"\n")
    head = json.loads(line)
    if "error" in head:
        raise getattr(errors, head["error"])(head["message"])
    return Hdf5Dataset(
        path=head["path"],
        shape=tuple(head["shape"]),
        dtype=np.dtype(head["dtype"]),
        fill_value=head["fill_value"],
        voxel_size_nm=_nanometres(head["voxel_size"]),
        attributes=tuple((attribute, value) for attribute, value in head["attributes"]),
        chunk=tuple(head["chunk"]),
        filters=_known(head["filters"], f"{name}: {head['path']}"),
        start=head["start"],
        within=None if head["within"] is None else bytes.fromhex(head["within"]),
        chunks=Chunks(*np.load(io.BytesIO(table), allow_pickle=False)) if head["chunked"] else None,
    )


def _ask(name: str, path: str | None, elsewhere: ByteSource | None = None, connections: int = 1) -> bytes:
    """What `answer` of `_hdf5_structure.py` says. Raises Malformed if the HDF5 library crashes or never comes back."""
    size = "" if elsewhere is None else str(elsewhere.size_bytes)
    # Its folder is no place to import from (-P): modules here have the names of libraries.
    arguments = [sys.executable, "-P", str(PROGRAM), name, size, *([] if path is None else [path])]
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # each thread's stack counts as memory
    env = {**os.environ, **one_thread}
    try:
        if elsewhere is None:
            ended = subprocess.run(arguments, capture_output=True, timeout=STRUCTURE_SECONDS, check=False, env=env)
        else:
            ended = run_reading(arguments, elsewhere, connections, STRUCTURE_SECONDS, env)
    except subprocess.TimeoutExpired:
        found = f"cannot be made out within {STRUCTURE_SECONDS:.0f} s"
    else:
        if ended.returncode == 0 and ended.stdout:
            return ended.stdout
        last_line = (ended.stderr.decode(errors="replace").strip().splitlines() or ["there is no answer"])[-1]
        found = "crashes the HDF5 library" if ended.returncode < 0 else f"cannot be read ({last_line})"
    raise Malformed(f"{name}: its structure {found}; the file is probably damaged: get it again.")


def _known(filters: list[tuple[int, str]], where: str) -> tuple[int, ...]:
    for code, title in filters:
        if code not in FILTERS:
            raise Unsupported(
                f"{where} is packed by {title or 'a filter'} (number {code}); accepted are "
                f"{', '.join(FILTERS.values())} and none: repack it with h5repack -f GZIP=1."
            )
    return tuple(code for code, _ in filters)


def _nanometres(stated: list[tuple[float, str]] | None) -> VoxelSize | None:
    if stated is None:
        return None
    z, y, x = (to_nanometres(value, unit) for value, unit in stated)
    return None if z is None or y is None or x is None else (z, y, x)
