"""The structure of an HDF5 file: which dataset is a volume, and all that `_hdf5_dataset.py` wants to know of it.

Run as a program of its own, with limits on memory and time: the HDF5 library, given a damaged file, may crash or never
come back. It imports little of this package, to start fast.
"""

from __future__ import annotations

import ctypes
import io
import json
import math
import os
import resource
import struct
import sys
from collections.abc import Iterator
from typing import Any

import h5py  # type: ignore[import-untyped]  # published without types
import numpy as np
from numpy.typing import NDArray

from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unsupported

MAX_MEMORY_BYTES = 2**30
MAX_CPU_SECONDS = 60
"""More than the process that started this one waits: for when that was killed."""
MAX_OBJECTS = 100_000
MAX_CHUNKS = 2_000_000
MAX_CHUNK_BYTES = 256 * 2**20
MAX_VOXELS = 2**53
MAX_ATTRIBUTES = 10_000
MAX_ATTRIBUTE_BYTES = 2**20
MAX_SHOWN_VALUES = 64
MAX_SHOWN_DATASETS = 20
DONT_FILTER_PARTIAL_CHUNKS = 2
"""H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS, of HDF5 1.10."""
EVERY_FILTER = 2**32 - 1
EXTENSIBLE_ARRAY = 4
"""H5D_CHUNK_IDX_EARRAY."""
MAX_CHANNELS = 16
"""A longer first axis of four is not taken for channels."""
MESSAGE = struct.Struct("<cQQ")
WANTED, ANSWER = b"W", b"A"
"""What is said to the process that has the file's bytes, as there."""
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


def answer(name: str, path: str | None, contents: io.RawIOBase | None = None) -> bytes:
    """One line of JSON: the dataset, or the error; then, if it is chunked, the table of its chunks in npy format.

    `contents`: the file's, where there is none of that name on this machine.
    """
    try:
        with h5py.File(name, "r", locking=False) if contents is None else h5py.File(contents, "r") as file:
            dataset = _only_volume(file, name) if path is None else _named(file, path, name)
            described, chunks = _describe(dataset, file, name)
    except EmAssetsError as error:
        return _error(error)
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # what h5py raises for damaged structure
        reason = str(error).strip("'\"")
        return _error(Malformed(f"{name} is no sound HDF5 file ({reason}); it was cut or is damaged: get it again."))
    table = io.BytesIO()
    if chunks is not None:
        np.save(table, chunks, allow_pickle=False)
    return json.dumps(described).encode() + b"\n" + table.getvalue()


def _error(error: EmAssetsError) -> bytes:
    message = "".join(c if c.isprintable() else "?" for c in str(error))  # names of datasets may hold anything
    return json.dumps({"error": type(error).__name__, "message": message}).encode() + b"\n"


def _named(file: Any, path: str, name: str) -> Any:
    """Follows plain links only: others may lead out of the file."""
    node, walked = file, ""
    for part in [part for part in path.split("/") if part]:
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            raise Mismatch(f"{name} has no dataset {path}; it has {_listed(_datasets(file, name))}.")
        walked += f"/{part}"
        if not isinstance(link, h5py.HardLink):
            raise Unsupported(
                f"{name}: {walked} is a link to another place or file, which is not followed; name the dataset itself."
            )
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise Mismatch(f"{name}: {path} is a group; it has {_listed(_datasets(file, name))}.")
    return node


def _only_volume(file: Any, name: str) -> Any:
    datasets = _datasets(file, name)
    numeric = [d for d in datasets if _dtype_name(d) in DTYPES and d.shape]
    found = [d for d in numeric if len(_without_leading_ones(d.shape)) == 3] or [
        d for d in numeric if len(_without_leading_ones(d.shape)) == 4
    ]
    if len(found) != 1:
        raise Unsupported(
            f"{name} has {len(found) or 'no'} datasets that may be a volume; name one: {_listed(found or datasets)}."
        )
    return found[0]


def _datasets(file: Any, name: str) -> list[Any]:
    found: list[Any] = []
    visited = 0

    def visit(_: str, node: Any) -> bool | None:
        nonlocal visited
        visited += 1
        if isinstance(node, h5py.Dataset):
            found.append(node)
        return True if visited > MAX_OBJECTS else None

    if file.visititems(visit):
        raise Unsupported(f"{name} has more than {MAX_OBJECTS} groups and datasets; name the one to read.")
    return found


def _listed(datasets: list[Any]) -> str:
    shown = [f"{d.name} {d.shape} {_dtype_name(d)}" for d in datasets[:MAX_SHOWN_DATASETS]]
    more = [f"{len(datasets) - len(shown)} more"] if len(datasets) > len(shown) else []
    return ", ".join(shown + more) or "no dataset"


def _dtype_name(dataset: Any) -> str:
    try:
        return str(dataset.dtype.newbyteorder("=").name)
    except TypeError:  # numpy has no such type
        return "a type of its own"


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _describe(dataset: Any, file: Any, name: str) -> tuple[dict[str, Any], NDArray[np.int64] | None]:
    """The fields of `Hdf5Dataset`, as JSON has them, and the table of chunks."""
    where = f"{name}: {dataset.name}"
    if dataset.is_virtual or dataset.external:  # its shape may depend on them
        raise Unsupported(f"{where} keeps its voxels in other files, which are not read; get them in one file.")
    dtype = _checked_dtype(dataset, where)
    _require_shape(dataset.shape, where)
    properties = dataset.id.get_create_plist()
    compact = properties.get_layout() == h5py.h5d.COMPACT
    chunks = None if dataset.chunks is None else _chunks(dataset, where)
    filters = [properties.get_filter(number) for number in range(properties.get_nfilters())]
    described = {
        "path": dataset.name,
        "shape": list(map(int, dataset.shape)),
        "dtype": dtype.str,
        "fill_value": dataset.fillvalue.item(),
        "voxel_size": _voxel_size(dataset),
        "attributes": list(_attributes(dataset, file, where)),
        "chunk": list(map(int, dataset.chunks or dataset.shape)),
        "filters": [[int(code), bytes(title).decode("ascii", "replace")] for code, _, _, title in filters],
        "start": dataset.id.get_offset() if dataset.chunks is None and not compact else None,
        "within": np.ascontiguousarray(dataset[()], dtype).tobytes().hex() if compact else None,
        "chunked": chunks is not None,
    }
    return described, chunks


def _checked_dtype(dataset: Any, where: str) -> np.dtype[Any]:
    name = _dtype_name(dataset)
    if name not in DTYPES:
        raise Unsupported(f"{where} holds {name}; accepted are {', '.join(DTYPES)}.")
    if not h5py.h5t.py_create(dataset.dtype).equal(dataset.id.get_type()):
        raise Unsupported(f"{where} holds numbers of a layout of its own; accepted are plain {', '.join(DTYPES)}.")
    dtype: np.dtype[Any] = dataset.dtype
    return dtype


def _require_shape(shape: tuple[int, ...], where: str) -> None:
    if not shape or min(shape) < 1:
        raise Unsupported(f"{where} has the shape {shape}, so it holds no voxel; name another dataset.")
    if math.prod(shape) > MAX_VOXELS:
        raise Unsupported(f"{where}: the shape {shape} has more than {MAX_VOXELS} voxels, the most that is read.")
    short = _without_leading_ones(shape)
    if len(short) == 4 and (short[0] > MAX_CHANNELS or short[3] <= 4):
        raise Unsupported(
            f"{where} has the shape {shape}: accepted are (z, y, x), and (channel, z, y, x) with at most "
            f"{MAX_CHANNELS} channels."
        )
    if not 2 <= len(short) <= 4:
        raise Unsupported(f"{where} has {len(shape)} axes, {shape}; accepted are 2 to 4, (z, y, x) at the end.")


def _chunks(dataset: Any, where: str) -> NDArray[np.int64]:
    """Four rows: those of `Chunks`. Raises Unsupported or Malformed for more, or larger ones, than can be."""
    chunk, shape = dataset.chunks, dataset.shape
    chunk_bytes = math.prod(chunk) * dataset.dtype.itemsize
    if chunk_bytes > MAX_CHUNK_BYTES:
        raise Unsupported(
            f"{where}: a chunk of {chunk} voxels has {chunk_bytes} bytes, accepted are {MAX_CHUNK_BYTES}; repack it."
        )
    _require_known_places(dataset, where)
    leaves_partial = _leaves_partial_chunks(dataset)
    grid = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
    rows: list[tuple[int, int, int, int]] = []

    def visit(stored: Any) -> None:  # counting them first would walk their tree twice
        if len(rows) == MAX_CHUNKS:
            raise Unsupported(f"{where} has more than {MAX_CHUNKS} chunks, the most that is read; repack it.")
        number, skipped = 0, stored.filter_mask
        for offset, c, n in zip(stored.chunk_offset, chunk, grid, strict=True):
            if offset % c or offset // c >= n:
                raise Malformed(f"{where}: a chunk lies at {stored.chunk_offset}, outside {shape}; get it again.")
            number = number * n + offset // c
        if leaves_partial and any(o + c > n for o, c, n in zip(stored.chunk_offset, chunk, shape, strict=True)):
            skipped = EVERY_FILTER
        rows.append((number, stored.byte_offset, stored.size, skipped))

    dataset.id.chunk_iter(visit)
    return np.ascontiguousarray(np.array(sorted(rows), np.int64).reshape(-1, 4).T)


def _leaves_partial_chunks(dataset: Any) -> bool:
    """Whether chunks that reach beyond the dataset are stored without its filters: no chunk says so."""
    properties, options = dataset.id.get_create_plist(), ctypes.c_uint()
    _ask_library("H5Pget_chunk_opts", properties.id, options)
    return bool(options.value & DONT_FILTER_PARTIAL_CHUNKS)


def _require_known_places(dataset: Any, where: str) -> None:
    """Raises Unsupported where the library (2.0) finds each chunk, but names wrong places when it lists them.

    An extensible array counts chunks along its one unlimited axis slowest; the list is made as if it were not so.
    """
    index = ctypes.c_int()
    _ask_library("H5Dget_chunk_index_type", dataset.id.id, index)
    if index.value != EXTENSIBLE_ARRAY:
        return
    unlimited = dataset.maxshape.index(None)
    if any(most > c for most, c in zip(dataset.maxshape[:unlimited], dataset.chunks, strict=False)):
        raise Unsupported(
            f"{where} may grow along axis {unlimited} only, not the first one, and the HDF5 library does not list the "
            "chunks of such a dataset at their places; write it anew with a fixed shape."
        )


def _ask_library(function: str, identifier: int, answer: Any) -> None:
    """What h5py has no name for: a function of the HDF5 library with one answer."""
    found = getattr(ctypes.CDLL(h5py.h5p.__file__), function)
    found.argtypes = [ctypes.c_int64, ctypes.c_void_p]
    if found(identifier, ctypes.byref(answer)) < 0:
        raise OSError(f"{function} fails")


def _voxel_size(dataset: Any) -> list[tuple[float, str]] | None:
    """Value and unit by axis, only of what states its unit: `element_size_um` by its name, `resolution` and
    `voxel_size` by an attribute.
    """
    found = _three_numbers(dataset, "element_size_um")
    if found is not None:
        return [(value, "um") for value in found]
    for name in ("resolution", "voxel_size"):
        units = next((u for n in (f"{name}_unit", f"{name}_units", "unit", "units") if (u := _units(dataset, n))), None)
        found = _three_numbers(dataset, name)
        if found and units:
            return list(zip(found, units, strict=True))
    return None


def _three_numbers(dataset: Any, name: str) -> list[float] | None:
    """In the order of the dataset's axes."""
    value = _attribute(dataset, name) if name in dataset.attrs else None
    value = np.asarray(value) if value is not None else np.zeros(0)
    return [float(v) for v in value] if value.shape == (3,) and value.dtype.kind in "iuf" else None


def _units(dataset: Any, name: str) -> list[str]:
    """Of the three axes; one text counts for all."""
    value = _attribute(dataset, name) if name in dataset.attrs else None
    texts = [_text(v) for v in np.asarray(value, object).reshape(-1)] if value is not None else []
    texts = texts * 3 if len(texts) == 1 else texts
    return [text.strip() for text in texts] if len(texts) == 3 else []


def _attributes(dataset: Any, file: Any, where: str) -> Iterator[tuple[str, str | int | float | bool]]:
    """Those of the file, of each group on the way, and of the dataset."""
    parts = dataset.name.strip("/").split("/")
    for depth in range(len(parts) + 1):
        path = "/" + "/".join(parts[:depth])
        node = file[path]
        if len(node.attrs) > MAX_ATTRIBUTES:
            raise Unsupported(f"{where}: {path} has more than {MAX_ATTRIBUTES} attributes, the most that is read.")
        for name in node.attrs:
            yield f"{path}@{name}", _shown(_attribute(node, name))


def _attribute(node: Any, name: str) -> Any:
    """Its value; a description where it is too large, or of a type that numpy does not have."""
    size = h5py.h5a.get_info(node.id, name.encode()).data_size
    if size > MAX_ATTRIBUTE_BYTES:
        return f"{size} bytes"
    try:
        return node.attrs[name]
    except TypeError as error:
        return f"not read: {error}"


def _shown(value: Any) -> str | int | float | bool:
    if isinstance(value, np.ndarray) and value.ndim:
        if value.size > MAX_SHOWN_VALUES or value.dtype.kind not in "biufOSU":
            return f"{' x '.join(map(str, value.shape))} x {value.dtype}"
        return f"{value.size} x {value.dtype}: {', '.join(_text(v) for v in value.reshape(-1))}"
    if isinstance(value, np.generic | np.ndarray):
        value = value.item()
    return value if isinstance(value, int | float | bool) else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return repr(value)
    return str(value)


class _Asked(io.RawIOBase):
    """A file whose bytes the process has that started this one. Past its end there are zeros, as the library has it."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size_bytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size_bytes - self._at))
        if count:
            _tell(WANTED, self._at, count)
            body = sys.stdin.buffer.read(count)
            if len(body) < count:  # nobody is there any more to answer to
                os._exit(1)
            view[:count] = body
        view[count:] = bytes(len(view) - count)
        self._at += len(view)
        return len(view)


def _tell(kind: bytes, first: int, second: int, body: bytes = b"") -> None:
    sys.stdout.buffer.write(MESSAGE.pack(kind, first, second) + body)
    sys.stdout.buffer.flush()


def _limit(kind: int, most: int) -> None:
    """To `most`, or to what is allowed already where that is less: it cannot be raised."""
    allowed = resource.getrlimit(kind)[1]
    limit = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
    resource.setrlimit(kind, (limit, limit))


def main(name: str, size: str, path: str | None = None) -> None:
    """`size`: the file's, where another process has its bytes; else empty."""
    if not size:
        sys.stdout.buffer.write(answer(name, path))
        return
    answered = answer(name, path, _Asked(int(size)))
    _tell(ANSWER, len(answered), 0, answered)


if __name__ == "__main__":
    _limit(resource.RLIMIT_AS, MAX_MEMORY_BYTES)
    _limit(resource.RLIMIT_CPU, MAX_CPU_SECONDS)
    main(*sys.argv[1:])
