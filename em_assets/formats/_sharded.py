"""`neuroglancer_uint64_sharded_v1`: where each chunk lies in the shard files. Reads indices, no voxels.

Specification: github.com/google/neuroglancer, src/datasource/precomputed/sharded.rst. The indices come from outside:
every number is checked against the file's size and a bound on memory before it is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import EmAssetsError, Malformed
from em_assets.fetch.client import Client
from em_assets.fetch.compression import BadGzipError, gunzip
from em_assets.fetch.http import Interrupt, NotThere, Reply
from em_assets.fetch.parallel import fetch_all
from em_assets.fetch.ranges import plan_requests
from em_assets.volume import Zyx

Ids = NDArray[np.uint64]
Integers = NDArray[np.int64]
Packing = Literal["raw", "gzip"]

ENTRY_BYTES = 16
"""Of the shard index: start and end of one minishard's index."""
RECORD_BYTES = 24
"""Of a minishard index: id, offset and size of one chunk."""
MAX_MINISHARD_INDEX_BYTES = 64 * 2**20
"""Unpacked: 2.8 million chunks. The hemibrain's have at most 12 KiB; what is larger is taken for damage."""
MAX_OFFSET = 2**53
"""No file is larger; sums of offsets below it are exact."""
MISSING = -1
"""As the object of a chunk: the publisher does not have it."""
UNREADABLE = -2
"""As the object of a chunk: its index is damaged or could not be read."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How chunk ids are spread over files."""

    preshift_bits: int
    minishard_bits: int
    shard_bits: int
    hash: Literal["identity", "murmurhash3_x86_128"]
    minishard_index_encoding: Packing
    data_encoding: Packing

    @property
    def index_bytes(self) -> int:
        """Size of the shard index, to whose end all offsets are relative."""
        return ENTRY_BYTES << self.minishard_bits

    def places(self, ids: Ids) -> tuple[Integers, Integers]:
        """(shard, minishard) of each chunk id."""
        hashed = _hashed(ids >> np.uint64(self.preshift_bits), self.hash)
        minishards = hashed & np.uint64((1 << self.minishard_bits) - 1)
        rest = hashed >> np.uint64(self.minishard_bits) if self.minishard_bits < 64 else np.zeros_like(hashed)
        shards = rest & np.uint64((1 << self.shard_bits) - 1)
        return shards.astype(np.int64), minishards.astype(np.int64)

    def shard_name(self, shard: int) -> str:
        """Without the suffix: lowercase hexadecimal, padded to the digits that `shard_bits` need."""
        return f"{shard:0{-(-self.shard_bits // 4)}x}" if self.shard_bits else f"{shard:x}"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A file that holds chunks."""

    url: str
    etag: str | None
    """As its index was read."""


@dataclass(frozen=True, slots=True)
class ChunkPlaces:
    """Where chunks lie, row by row."""

    object_of: Integers
    """Index into `objects`, or MISSING, or UNREADABLE."""
    start: Integers
    stop: Integers
    objects: tuple[StoredObject, ...]
    errors: dict[int, EmAssetsError]
    """By row, for those that are UNREADABLE."""


def morton_ids(cells: Integers, grid: Zyx) -> Ids:
    """Compressed Morton code of each (z, y, x) row: an axis gives bits only as long as its grid needs them."""
    ids = np.zeros(len(cells), np.uint64)
    columns = [cells[:, axis].astype(np.uint64) for axis in (2, 1, 0)]
    place = 0
    for bit in range(max(grid).bit_length()):
        for column, size in zip(columns, grid[::-1], strict=True):
            if (1 << bit) < size:
                ids |= ((column >> np.uint64(bit)) & np.uint64(1)) << np.uint64(place)
                place += 1
    return ids


def morton_bits(grid: Zyx) -> int:
    """How many bits the ids of a grid have."""
    return sum((size - 1).bit_length() for size in grid)


class ShardIndex:
    """Looks chunks up in the shards below one address. Safe for use by several threads."""

    def __init__(
        self,
        client: Client,
        scale_url: str,
        sharding: Sharding,
        threads: int,
        accept_absence: Callable[[NotThere], None],
        *,
        chunks: int,
    ) -> None:
        """`accept_absence` raises if a refusal is not to be taken for a missing shard.

        `chunks` is how many the whole level has: no minishard lists more.
        """
        self._client = client
        self._url = scale_url
        self._sharding = sharding
        self._threads = threads
        self._accept_absence = accept_absence
        self._max_index_bytes = min(RECORD_BYTES * chunks, MAX_MINISHARD_INDEX_BYTES)
        self._lock = threading.Lock()
        self._split: bool | None = None
        """Whether shards are `.index` and `.data` files, the form before 2020; None until a shard was found."""

    def locate(self, ids: Ids) -> ChunkPlaces:
        """Where each chunk lies. Raises HostUnreachable; any other trouble belongs to the chunks it concerns."""
        shards, minishards = self._sharding.places(ids)
        found = _Found(len(ids))
        wanted = [int(shard) for shard in np.unique(shards)]
        rows_of = {shard: np.flatnonzero(shards == shard) for shard in wanted}
        jobs = [partial(self._open_shard, shard, np.unique(minishards[rows_of[shard]])) for shard in wanted]
        # The first shard is asked for alone: it tells the form of all.
        answers = [*fetch_all(jobs[:1], 1), *fetch_all(jobs[1:], self._threads)]
        reads = []
        for shard, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, EmAssetsError):
                found.fail(rows_of[shard], answer)
            elif answer is not None:
                index = found.add_object(StoredObject(answer.data_url, answer.etag))
                reads += [(index, rows_of[shard], answer, request) for request in answer.requests()]
        indices = fetch_all([partial(r[2].read, self._client, r[3]) for r in reads], self._threads)
        for (index, rows, shard_file, request), parsed in zip(reads, indices, strict=True):
            for minishard in request:
                here = rows[minishards[rows] == minishard]
                if isinstance(parsed, EmAssetsError):
                    found.fail(here, parsed)
                else:
                    found.look_up(index, here, ids[here], shard_file, parsed[minishard])
        return found.places()

    def _open_shard(self, shard: int, minishards: Integers, interrupt: Interrupt) -> _ShardFile | None:
        """The entries of these minishards in a shard's index; None if there is no such shard."""
        stem = f"{self._url}/{self._sharding.shard_name(shard)}"
        if self._split is not True:
            try:
                opened = self._read_entries(f"{stem}.shard", f"{stem}.shard", 0, minishards, interrupt)
            except NotThere as refusal:
                self._accept_absence(refusal)
                if self._split is False:
                    return None
            else:
                self._split = False
                return opened
        try:
            opened = self._read_entries(
                f"{stem}.index", f"{stem}.data", self._sharding.index_bytes, minishards, interrupt
            )
        except NotThere as refusal:
            self._accept_absence(refusal)
            return None
        self._split = True
        return opened

    def _read_entries(
        self, index_url: str, data_url: str, shift: int, minishards: Integers, interrupt: Interrupt
    ) -> _ShardFile:
        pieces = [(int(m) * ENTRY_BYTES, (int(m) + 1) * ENTRY_BYTES) for m in minishards]
        entries: dict[int, tuple[int, int]] = {}
        reply: Reply | None = None
        for request in plan_requests(pieces):
            reply = self._client.get_range(
                index_url,
                request.start,
                request.stop,
                expect_etag=reply.etag if reply else None,
                interrupt=interrupt,
            )
            table = np.frombuffer(reply.body, "<u8").reshape(-1, 2)
            for piece in request.pieces:
                start, stop = table[(pieces[piece][0] - request.start) // ENTRY_BYTES]
                entries[int(minishards[piece])] = int(start), int(stop)
        assert reply is not None
        one_file = index_url == data_url
        shard_file = _ShardFile(
            self._sharding,
            data_url,
            entries,
            shift=shift,
            etag=reply.etag if one_file else None,
            size_bytes=reply.object_bytes if one_file else None,
            max_index_bytes=self._max_index_bytes,
        )
        shard_file.require_sound_entries()
        return shard_file


class _ShardFile:
    """One shard after its index was read. Offsets are those of a `.shard`; those in `data_url` are `shift` less."""

    def __init__(
        self,
        sharding: Sharding,
        data_url: str,
        entries: dict[int, tuple[int, int]],
        *,
        shift: int,
        etag: str | None,
        size_bytes: int | None,
        max_index_bytes: int,
    ) -> None:
        """`max_index_bytes` is what the index of a minishard may have when it is unpacked."""
        self.data_url = data_url
        self.etag = etag
        self.shift = shift
        self._sharding = sharding
        self._size_bytes = size_bytes
        self._max_index_bytes = max_index_bytes
        base = sharding.index_bytes
        self._entries = {m: (base + start, base + stop) for m, (start, stop) in entries.items() if start != stop}

    @property
    def end(self) -> int:
        """No offset lies beyond it."""
        return MAX_OFFSET if self._size_bytes is None else self._size_bytes

    def require_sound_entries(self) -> None:
        for minishard, (start, stop) in self._entries.items():
            if not start < stop <= self.end:
                raise self._damaged(minishard, f"lies at bytes {start}-{stop}, but the file has {self.end}")
            if stop - start > MAX_MINISHARD_INDEX_BYTES:
                raise self._damaged(
                    minishard, f"at byte {start} has {stop - start} bytes, more than {MAX_MINISHARD_INDEX_BYTES}"
                )

    def requests(self) -> list[tuple[int, ...]]:
        """The minishards to read together, request by request."""
        minishards = list(self._entries)
        planned = plan_requests([self._entries[m] for m in minishards])
        return [tuple(minishards[piece] for piece in request.pieces) for request in planned]

    def read(
        self, client: Client, minishards: tuple[int, ...], interrupt: Interrupt
    ) -> dict[int, NDArray[np.uint64] | Malformed]:
        """The index of each of these minishards, or what is wrong with it."""
        start = min(self._entries[m][0] for m in minishards)
        stop = max(self._entries[m][1] for m in minishards)
        reply = client.get_range(
            self.data_url, start - self.shift, stop - self.shift, expect_etag=self.etag, interrupt=interrupt
        )
        view = memoryview(reply.body)
        indices: dict[int, NDArray[np.uint64] | Malformed] = {}
        for minishard in minishards:
            first, last = self._entries[minishard]
            try:
                indices[minishard] = self._parse(minishard, view[first - start : last - start])
            except Malformed as error:
                indices[minishard] = error
        return indices

    def _parse(self, minishard: int, packed: memoryview) -> NDArray[np.uint64]:
        """Rows of (id, start, stop), offsets in the whole shard file, ids ascending."""
        plain: bytes | memoryview = packed
        at = self._entries[minishard][0]
        if self._sharding.minishard_index_encoding == "gzip":
            try:
                plain = gunzip(packed, max_bytes=self._max_index_bytes)
            except BadGzipError as error:
                raise self._damaged(minishard, f"at byte {at} is said to be gzip-encoded, but {error}") from None
        if len(plain) % RECORD_BYTES:
            raise self._damaged(minishard, f"at byte {at} has {len(plain)} bytes, not a multiple of {RECORD_BYTES}")
        ids, offsets, sizes = np.frombuffer(plain, "<u8").reshape(3, -1)
        if float(offsets.sum(dtype=np.float64) + sizes.sum(dtype=np.float64)) >= MAX_OFFSET:
            raise self._damaged(minishard, f"at byte {at} has offsets that leave the file")
        stops = np.uint64(self._sharding.index_bytes) + np.cumsum(offsets) + np.cumsum(sizes)
        ids = np.cumsum(ids, dtype=np.uint64)
        if np.any(ids[1:] <= ids[:-1]):
            raise self._damaged(minishard, f"at byte {at} does not list its chunks in ascending order")
        if len(stops) and int(stops[-1]) > self.end:
            raise self._damaged(minishard, f"at byte {at} refers to byte {int(stops[-1])}, but the file has {self.end}")
        return np.stack([ids, stops - sizes, stops], axis=1)

    def _damaged(self, minishard: int, what: str) -> Malformed:
        return Malformed(f"{self.data_url}: the index of minishard {minishard} {what}; report it to the publisher.")


class _Found:
    """Collects what `locate` finds out."""

    def __init__(self, rows: int) -> None:
        self._object_of = np.full(rows, MISSING, np.int64)
        self._start = np.zeros(rows, np.int64)
        self._stop = np.zeros(rows, np.int64)
        self._objects: list[StoredObject] = []
        self._errors: dict[int, EmAssetsError] = {}

    def add_object(self, stored: StoredObject) -> int:
        self._objects.append(stored)
        return len(self._objects) - 1

    def fail(self, rows: Iterable[Any], error: EmAssetsError) -> None:
        for row in rows:
            self._object_of[row] = UNREADABLE
            self._errors[int(row)] = error

    def look_up(
        self, stored: int, rows: Integers, ids: Ids, shard_file: _ShardFile, index: NDArray[np.uint64] | Malformed
    ) -> None:
        """Takes the places of these chunks from their minishard's index; those it does not list are missing."""
        if isinstance(index, Malformed):
            self.fail(rows, index)
            return
        at = np.searchsorted(index[:, 0], ids)
        listed = at < len(index)
        listed[listed] = index[at[listed], 0] == ids[listed]
        hit, entry = rows[listed], index[at[listed]].astype(np.int64)
        # An entry of no bytes is what some writers leave for a chunk they do not have.
        there = entry[:, 2] > entry[:, 1]
        self._object_of[hit[there]] = stored
        self._start[hit] = entry[:, 1] - shard_file.shift
        self._stop[hit] = entry[:, 2] - shard_file.shift

    def places(self) -> ChunkPlaces:
        return ChunkPlaces(self._object_of, self._start, self._stop, tuple(self._objects), self._errors)


def _hashed(numbers: Ids, name: str) -> Ids:
    if name == "identity":
        return numbers
    import mmh3

    distinct, inverse = np.unique(numbers, return_inverse=True)
    # The low 64 of the 128 bits, seed 0.
    hashes: Sequence[int] = [
        mmh3.hash64(int(number).to_bytes(8, "little"), x64arch=False, signed=False)[0] for number in distinct
    ]
    return np.array(hashes, np.uint64)[inverse]
