"""Zarr v3 `sharding_indexed`: where each chunk lies in the shard objects. Reads indices, no voxels.

Specification: zarr-specs.readthedocs.io, v3/codecs/sharding-indexed. The index comes from outside: its checksum and
every number in it are checked before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import EmAssetsError, Malformed
from em_assets.fetch.client import Client
from em_assets.fetch.hosts import Interrupt
from em_assets.fetch.parallel import fetch_all
from em_assets.fetch.replies import NotThere, safe_url
from em_assets.fetch.streams import Version
from em_assets.formats._chunk_codecs import CRC_BYTES, Index, crc32c
from em_assets.formats._sharded import MISSING, UNREADABLE, ChunkPlaces, Integers, StoredObject

ENTRY_BYTES = 16
"""Of the index: offset and size of one chunk."""
MAX_INDEX_BYTES = 64 * 2**20
"""4 million chunks in a shard; what is larger is taken for damage."""
ABSENT = 2**64 - 1
"""As offset and as size of a chunk: it was never written."""
MAX_OFFSET = 2**63 - 1
"""Where objects whose size is not known end at the latest."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the chunks of one shard are found."""

    chunks: Index
    """Chunks per shard along each axis of the array."""
    at_end: bool
    byte_order: Literal["<", ">"]
    has_checksum: bool
    first_entry: int = 0
    """The entry of chunk 0 in a shard's index: another where the array's chunks are counted from another."""

    @property
    def index_bytes(self) -> int:
        return math.prod(self.chunks) * ENTRY_BYTES + CRC_BYTES * self.has_checksum

    def spread(self, cells: Integers) -> tuple[list[Index], list[Integers], Integers]:
        """(the shards that hold these chunks, the rows of `cells` in each, each row's entry in its shard's index)."""
        shards, shard_of = np.unique(cells // self.chunks, axis=0, return_inverse=True)
        entries = np.ravel_multi_index(tuple((cells % self.chunks).T), self.chunks) + self.first_entry
        return [tuple(shard) for shard in shards.tolist()], grouped(np.arange(len(cells)), shard_of.ravel()), entries


@dataclass(frozen=True, slots=True, eq=False)
class ShardTable:
    """The index of one shard, as its checksum vouches for it. The places in it are checked as they are asked for."""

    sharding: Sharding
    url: str
    version: Version
    """Of the shard that it was read from."""
    entries: NDArray[np.uint64]
    """(offset, size) of each chunk."""

    @classmethod
    def parse(cls, sharding: Sharding, index: bytes | bytearray | memoryview, url: str, version: Version) -> ShardTable:
        """From `sharding.index_bytes` bytes. Raises Malformed if the checksum is wrong."""
        body = memoryview(index)
        if sharding.has_checksum:
            stated, found = int.from_bytes(body[-CRC_BYTES:], "little"), crc32c(body[:-CRC_BYTES])
            if stated != found:
                raise bad_index(url, f"has the CRC-32C {found:08x}, but {stated:08x} is stored with it")
            body = body[:-CRC_BYTES]
        return cls(
            sharding,
            url,
            version,
            np.frombuffer(body, f"{sharding.byte_order}u8").astype(np.uint64).reshape(-1, 2),
        )

    def place(self, entry: int, max_chunk_bytes: int) -> tuple[int, int] | None:
        """(start, stop) of a chunk in the shard, None if it was never written. Raises Malformed if it cannot be."""
        offset, size = self.entries[entry].tolist()
        if offset == size == ABSENT:
            return None
        shard_bytes = self.version.size_bytes
        if not 0 < size <= max_chunk_bytes or offset + size > (MAX_OFFSET if shard_bytes is None else shard_bytes):
            raise self._damage(entry, offset, size, max_chunk_bytes)
        return offset, offset + size

    def _damage(self, entry: int, offset: int, size: int, max_chunk_bytes: int) -> Malformed:
        place = "(" + ", ".join(str(int(n)) for n in np.unravel_index(entry, self.sharding.chunks)) + ")"
        where = f"places its chunk {place} at byte {offset} with {size} bytes"
        shard_bytes = self.version.size_bytes
        if shard_bytes is not None and offset + size > shard_bytes:
            return bad_index(self.url, f"{where}, but the shard has {shard_bytes} bytes")
        if not 0 < size <= max_chunk_bytes:
            return bad_index(self.url, f"{where}, expected 1 to {max_chunk_bytes} bytes")
        return bad_index(self.url, f"{where}, where no object reaches")


class ShardIndices:
    """Looks chunks up in the shards of one array. Safe for use by several threads."""

    def __init__(
        self,
        client: Client,
        sharding: Sharding,
        url_of: Callable[[Index], str],
        max_chunk_bytes: int,
        *,
        threads: int,
        accept_absence: Callable[[NotThere], None],
    ) -> None:
        """`url_of` names the shard at a place in their grid; `accept_absence` raises if a refusal is no absence."""
        self._client = client
        self._sharding = sharding
        self._url_of = url_of
        self._max_chunk_bytes = max_chunk_bytes
        self._threads = threads
        self._accept_absence = accept_absence

    def locate(self, cells: Integers) -> ChunkPlaces:
        """Where each chunk lies; a cell is a row in the array's own axis order.

        Raises HostUnreachable; any other trouble belongs to the chunks it concerns.
        """
        rows = len(cells)
        object_of = np.full(rows, MISSING, np.int64)
        start, stop = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        objects: list[StoredObject] = []
        errors: dict[int, EmAssetsError] = {}
        shards, rows_of, entries = self._sharding.spread(cells)
        urls = [self._url_of(shard) for shard in shards]
        answers = fetch_all([partial(self._read_index, url) for url in urls], self._threads)
        for url, here, answer in zip(urls, rows_of, answers, strict=True):
            if answer is None:
                continue
            if isinstance(answer, EmAssetsError):
                object_of[here] = UNREADABLE
                errors |= dict.fromkeys(here.tolist(), answer)
                continue
            for row in here.tolist():
                try:
                    place = answer.place(int(entries[row]), self._max_chunk_bytes)
                except Malformed as error:
                    object_of[row], errors[row] = UNREADABLE, error
                    continue
                if place is not None:
                    object_of[row], (start[row], stop[row]) = len(objects), place
            objects.append(StoredObject(url, answer.version.etag))
        return ChunkPlaces(object_of, start, stop, tuple(objects), errors)

    def _read_index(self, url: str, interrupt: Interrupt) -> ShardTable | None:
        """None if there is no such shard."""
        try:
            return read_table(self._client, self._sharding, url, interrupt)
        except NotThere as refusal:
            self._accept_absence(refusal)
            return None


def read_table(client: Client, sharding: Sharding, url: str, interrupt: Interrupt | None = None) -> ShardTable:
    """The index of one shard. Raises NotThere if there is no such shard, Malformed if its index is damaged."""
    size = sharding.index_bytes
    if not sharding.at_end:
        reply = client.get_range(url, 0, size, interrupt=interrupt)
    else:
        first = client.get_range(url, 0, 1, interrupt=interrupt)  # tells how large the shard is
        end = first.object_bytes
        if end is None or end < size:
            raise bad_index(url, f"needs {size} bytes, but the shard has {end or 'an unknown number'}")
        reply = client.get_range(url, end - size, end, expect_etag=first.etag, interrupt=interrupt)
    return ShardTable.parse(sharding, reply.body, url, Version(reply.etag, reply.last_modified, reply.object_bytes))


def bad_index(url: str, what: str) -> Malformed:
    return Malformed(f"the index of shard {safe_url(url)} {what}; report it to the publisher.")


def grouped(values: Integers, keys: Integers) -> list[Integers]:
    """The values of each distinct key, in ascending order of the keys; within a key in their own order."""
    if not len(values):
        return []
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(keys[order])) + 1)
