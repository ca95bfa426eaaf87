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
from em_assets.fetch.replies import NotThere, Reply, safe_url
from em_assets.formats._chunk_codecs import CRC_BYTES, Index, crc32c
from em_assets.formats._sharded import MISSING, UNREADABLE, ChunkPlaces, Integers, StoredObject

ENTRY_BYTES = 16
"""Of the index: offset and size of one chunk."""
MAX_INDEX_BYTES = 64 * 2**20
"""4 million chunks in a shard; what is larger is taken for damage."""
ABSENT = 2**64 - 1
"""As offset and as size of a chunk: it was never written."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the chunks of one shard are found."""

    chunks: Index
    """Chunks per shard along each axis of the array."""
    at_end: bool
    byte_order: Literal["<", ">"]
    has_checksum: bool

    @property
    def index_bytes(self) -> int:
        return math.prod(self.chunks) * ENTRY_BYTES + CRC_BYTES * self.has_checksum


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
        shards, shard_of = np.unique(cells // self._sharding.chunks, axis=0, return_inverse=True)
        rows_of = grouped(np.arange(rows), shard_of.ravel())
        entries = np.ravel_multi_index(tuple((cells % self._sharding.chunks).T), self._sharding.chunks)
        urls = [self._url_of(tuple(int(n) for n in shard)) for shard in shards]
        answers = fetch_all([partial(self._read_index, url) for url in urls], self._threads)
        for url, here, answer in zip(urls, rows_of, answers, strict=True):
            if answer is None:
                continue
            if isinstance(answer, EmAssetsError):
                object_of[here] = UNREADABLE
                errors |= dict.fromkeys(here.tolist(), answer)
                continue
            index, reply = answer
            for row, (offset, size) in zip(here.tolist(), index[entries[here]].tolist(), strict=True):
                if offset == size == ABSENT:
                    continue
                error = self._damage(url, int(entries[row]), offset, size, reply.object_bytes)
                if error is not None:
                    object_of[row], errors[row] = UNREADABLE, error
                else:
                    object_of[row], start[row], stop[row] = len(objects), offset, offset + size
            objects.append(StoredObject(url, reply.etag))
        return ChunkPlaces(object_of, start, stop, tuple(objects), errors)

    def _read_index(self, url: str, interrupt: Interrupt) -> tuple[NDArray[np.uint64], Reply] | None:
        """(offset and size of each chunk, how they came); None if there is no such shard."""
        size = self._sharding.index_bytes
        try:
            if self._sharding.at_end:
                first = self._client.get_range(url, 0, 1, interrupt=interrupt)  # tells how large the shard is
                end = first.object_bytes
                if end is None or end < size:
                    raise self._bad_index(url, f"needs {size} bytes, but the shard has {end or 'an unknown number'}")
                reply = self._client.get_range(url, end - size, end, expect_etag=first.etag, interrupt=interrupt)
            else:
                reply = self._client.get_range(url, 0, size, interrupt=interrupt)
        except NotThere as refusal:
            self._accept_absence(refusal)
            return None
        body = memoryview(reply.body)
        if self._sharding.has_checksum:
            stated, found = int.from_bytes(body[-CRC_BYTES:], "little"), crc32c(body[:-CRC_BYTES])
            if stated != found:
                raise self._bad_index(url, f"has the CRC-32C {found:08x}, but {stated:08x} is stored with it")
            body = body[:-CRC_BYTES]
        table = np.frombuffer(body, f"{self._sharding.byte_order}u8").astype(np.uint64).reshape(-1, 2)
        return table, reply

    def _damage(self, url: str, entry: int, offset: int, size: int, shard_bytes: int | None) -> Malformed | None:
        """What is wrong with the place that an index states."""
        place = "(" + ", ".join(str(int(n)) for n in np.unravel_index(entry, self._sharding.chunks)) + ")"
        where = f"places its chunk {place} at byte {offset} with {size} bytes"
        if shard_bytes is not None and offset + size > shard_bytes:
            return self._bad_index(url, f"{where}, but the shard has {shard_bytes} bytes")
        if not 0 < size <= self._max_chunk_bytes:
            return self._bad_index(url, f"{where}, expected 1 to {self._max_chunk_bytes} bytes")
        if offset + size >= 2**63:
            return self._bad_index(url, f"{where}, where no object reaches")
        return None

    def _bad_index(self, url: str, what: str) -> Malformed:
        return Malformed(f"the index of shard {safe_url(url)} {what}; report it to the publisher.")


def grouped(values: Integers, keys: Integers) -> list[Integers]:
    """The values of each distinct key, in ascending order of the keys; within a key in their own order."""
    if not len(values):
        return []
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(keys[order])) + 1)
