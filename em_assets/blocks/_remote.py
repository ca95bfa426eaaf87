"""Encoded chunks over HTTP(S), or out of a store in S3: an engine's `Chunks`.

An index of a shard is read once, in one round trip, and kept with the version (ETag, time, size) of its shard; again
only if it lacks what is wanted, or the shard is another one. Chunks that were decoded last are kept with the version of
their object, and given again if the server has said lately that it is still that one. Whatever a call of `fetch` needs
is planned at once and in flight together, neighbours in one request, and each chunk is given when its last byte is
there. How requests travel is `_plain_http.py`, which has the measurements behind it; what goes wrong there is asked for
again by `HttpClient`, with its patience and its errors. S3 is read at plain addresses, signed ones (`_signed_s3.py`) of
a store of our own.

Threads, connections and indices belong to the process (`_remote_process.py`): a forked child has its own.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from em_assets.blocks._plain_http import Answer, NotPlain
from em_assets.blocks._remote_process import ROOM_BYTES, ChunkPlace, IndexCache, KeptChunk, Process, this_process
from em_assets.blocks._signed_s3 import signed_url
from em_assets.blocks.engine import ToKeep
from em_assets.errors import Mismatch, Unsupported
from em_assets.fetch.hosts import Interrupted
from em_assets.fetch.http import HttpClient, Interrupt, NotThere, OnBytes, Reply, safe_url
from em_assets.fetch.ranges import GAP_BYTES, RangeRequest, plan_requests
from em_assets.fetch.streams import Version
from em_assets.formats._zarr_shards import ShardTable, bad_index, read_table
from em_assets.settings import S3Access, Settings
from em_assets.store import ObjectStore, open_store
from em_assets.volume import Zyx

if TYPE_CHECKING:
    from em_assets.formats._chunked import ChunkedReader

REQUEST_BYTES = ROOM_BYTES
"""No request is larger, unless a chunk is: large enough to be few, small enough to come side by side."""
READ_OVER = 0.05
"""Of the bytes of the chunks, so much may be read besides to have neighbours in one request."""
HELD_BYTES = 32 * 2**20
"""Asked for and not yet taken, of one call: enough for a gigabit at 200 ms; with more, memory is not used again while
it is still in the cache (batches of 32 blocks took twice as long with 256 MB). `Settings.memory_bytes` may be less."""
BELIEVED_SECONDS = 1.0
"""How long it is believed without asking that a chunk was never written, and that a kept one is still the stored one: a
repair must show. Where bytes of a shard come, its version comes with them and tells."""
OBJECT_BELIEVED_SECONDS = 60.0
"""The same of a kept chunk that is an object of its own: nothing else would tell, and asking for each costs half of
fetching it. Such objects have no common version anyway."""
FEW_ENDED = 4
"""Where fewer chunks wait to be decoded, each is handed over as soon as it is there; else all of a reply together: that
wakes fewer threads (a tenth of the CPU time of batches)."""
PAGE_STARTS = (b"<!doctype html", b"<html")

log = logging.getLogger(__name__)


class RemoteChunks:
    """The chunks of one level of a Zarr or N5 volume on a server. Safe for use by several threads, and after a fork."""

    is_immediate = False

    def __init__(
        self,
        reader: ChunkedReader,
        settings: Settings,
        indices: IndexCache | None = None,
        on_version: Callable[[Version], None] | None = None,
    ) -> None:
        """`store:///` addresses are those of the store at `settings.root`. `indices`: others than the process's.

        `on_version` is told of each shard before chunks of it are given, from any thread.
        """
        self.reader, self.settings = reader, settings
        self._indices, self.on_version = indices, on_version
        self._url, self._access = reader.url, None
        if reader.url.startswith("store:"):
            self._url, self._access = _in_store(reader.url, settings)
        endpoint = self._access and self._access.endpoint_url
        self.read_as = f"{reader.array.codec} {reader.axes} {reader.channels} {reader.time} {endpoint}"
        """How bytes of a chunk become voxels, and where an `s3://` address is."""
        self._clients: dict[int, HttpClient] = {}

    def fetch(self, cells: Sequence[Zyx]) -> Iterator[tuple[int, Chunk | None]]:
        """(place in `cells`, the chunk, None where nothing is stored) of each, as they come.

        All chunks of a shard are of one version of it. Raises Mismatch if it changes meanwhile, Malformed if its index
        is damaged, Unavailable; and ends what is still under way when it is closed.
        """
        process = this_process()
        return _Fetch(self, process, self._indices or process.indices).run(cells)

    def url_of(self, name: str) -> str:
        """Of an object of this level: its name in messages."""
        return f"{self._url}/{quote(name)}" if self._access is None else f"{self._url}/{name}"

    def asked(self, url: str) -> str:
        """What `url_of` gave as an address that can be asked for."""
        return url if self._access is None else signed_url(url, self._access)

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        accept_gzip: bool = False,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        """A whole object, with patience: with `get_range` this is a `fetch.client.Client`."""
        return self._client().get(
            self.asked(url), max_bytes=max_bytes, accept_gzip=accept_gzip, on_bytes=on_bytes, interrupt=interrupt
        )

    def get_range(
        self,
        url: str,
        start: int,
        stop: int,
        *,
        expect_etag: str | None = None,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        return self._client().get_range(
            self.asked(url), start, stop, expect_etag=expect_etag, on_bytes=on_bytes, interrupt=interrupt
        )

    def gate(self, process: Process) -> AbstractContextManager[object]:
        """Held during a request. Only a number that somebody has set is below what the threads allow."""
        if "connections_per_host" not in self.settings.model_fields_set:
            return contextlib.nullcontext()
        limit = self.settings.connections_per_host
        host = urlsplit(self._url).netloc
        return process.gates.setdefault((host, limit), threading.BoundedSemaphore(limit))

    def _client(self) -> HttpClient:
        """This process's: a parent's connections are not ours."""
        return self._clients.setdefault(os.getpid(), HttpClient(self.settings))


def _in_store(url: str, settings: Settings) -> tuple[str, S3Access]:
    store = open_store(settings.root)
    if not isinstance(store, ObjectStore):
        raise Unsupported(f"{url} lies in the folder {settings.root}, which is read as files; open it by its path.")
    return store.uri(unquote(urlsplit(url).path).strip("/")), store.access


@dataclass(slots=True, eq=False)
class _Shard:
    """What one call wants of a shard."""

    url: str
    rows: list[int]
    """Places in the call's cells."""
    entries: list[int]
    """Of each row, in the shard's index."""
    attempt: int = 0
    is_given: bool = False
    """Chunks of this version of it were given to the caller: another version must not follow."""


@dataclass(slots=True, eq=False)
class _Plan:
    """Where a shard's index says that its chunks are."""

    table: ShardTable
    wanted: list[tuple[int, int, int]]
    """(row, start, stop) of the chunks that have to come."""
    ready: list[tuple[int, NDArray[Any] | None]]
    """(row, its voxels that were kept; None if it was never written)."""

    @property
    def must_be_recent(self) -> bool:
        """Something is ready that no reply would vouch for."""
        return bool(self.ready) and (not self.wanted or any(voxels is None for _, voxels in self.ready))


@dataclass(slots=True, eq=False)
class _Part:
    """One request for chunks of a shard."""

    shard: _Shard
    attempt: int
    table: ShardTable
    start: int
    stop: int
    todo: deque[tuple[int, int, int]]
    """(row, start, stop) of the chunks within that were not given yet, in the order of their bytes."""
    ready: list[tuple[int, NDArray[Any] | None]] = field(default_factory=list)
    """As in the plan; told once the shard is known to be the one that they belong to."""

    @property
    def held_bytes(self) -> int:
        return sum(stop - start for _, start, stop in self.todo)


Chunk = memoryview | ToKeep | NDArray[Any]
"""Encoded bytes, with or without somebody who wants the voxels; or voxels that were kept."""
Ended = tuple[int, Chunk | None, int]
"""(row, the chunk, bytes to be counted as free again)."""


class _Fetch:
    """One call of `fetch`: jobs on the process's threads, and a queue of what came."""

    def __init__(self, chunks: RemoteChunks, process: Process, indices: IndexCache) -> None:
        self._chunks, self._process, self._indices = chunks, process, indices
        self._reader, self._settings = chunks.reader, chunks.settings
        self._max_chunk_bytes = chunks.reader.array.codec.max_bytes
        self._sharding = chunks.reader.array.sharding
        most = chunks.settings.kept_chunk_bytes
        self._kept = process.kept(most) if most else None
        self._gate = chunks.gate(process)
        self._interrupt = Interrupt()
        self._ended: SimpleQueue[Ended | BaseException] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._held_bytes = 0
        self._most_bytes = min(HELD_BYTES, chunks.settings.memory_bytes)

    def run(self, cells: Sequence[Zyx]) -> Iterator[tuple[int, Chunk | None]]:
        try:
            self._begin(cells)
            for _ in range(len(cells)):
                ended = self._ended.get()
                if isinstance(ended, BaseException):
                    raise ended
                row, data, size = ended
                self._release(size)
                yield row, data
        finally:
            with self._lock:
                self._waiting.clear()
            self._interrupt.set()

    def _begin(self, cells: Sequence[Zyx]) -> None:
        array = self._reader.array
        if not len(cells):
            return
        places = self._own_places(cells)
        if array.sharding is None:
            for row, place in enumerate(places.tolist()):
                url = self._chunks.url_of(array.name_of(tuple(place)))
                kept = self._recall((url, 0, 0, self._chunks.read_as))
                if kept is not None and time.monotonic() - kept.seen_at < OBJECT_BELIEVED_SECONDS:
                    self._ended.put((row, kept.voxels, 0))
                else:
                    self._start(array.codec.room_bytes, partial(self._receive_object, url, row, kept))
            return
        shards, rows_of, entries = array.sharding.spread(places)
        for shard, rows in zip(shards, rows_of, strict=True):
            wanted = _Shard(self._chunks.url_of(array.name_of(shard)), rows.tolist(), entries[rows].tolist())
            table = self._indices.get(wanted.url)
            plan = None if table is None else self._planned(wanted, table)
            if plan is not None and plan.must_be_recent and self._indices.age_seconds(plan.table) > BELIEVED_SECONDS:
                self._indices.drop(plan.table)
                plan = None
            if plan is None:
                self._start(array.sharding.index_bytes, partial(self._read_index, wanted))
            else:
                self._ask(wanted, plan)

    def _planned(self, shard: _Shard, table: ShardTable) -> _Plan:
        plan = _Plan(table, [], [])
        for row, entry in zip(shard.rows, shard.entries, strict=True):
            place = table.place(entry, self._max_chunk_bytes)
            if place is None:
                plan.ready.append((row, None))
                continue
            kept = self._recall((shard.url, *place, self._chunks.read_as))
            if kept is not None and kept.version == table.version:
                plan.ready.append((row, kept.voxels))
            else:
                plan.wanted.append((row, *place))
        return plan

    def _recall(self, place: ChunkPlace) -> KeptChunk | None:
        return None if self._kept is None else self._kept.get(place)

    def _to_keep(self, data: memoryview, place: ChunkPlace, version: Version) -> Chunk:
        if self._kept is None or not self._kept.wants_next:
            return data
        return ToKeep(data, partial(self._kept.put, place, version, time.monotonic()))

    def _own_places(self, cells: Sequence[Zyx]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """The cells in the array's own axis order, row by row."""
        zyx = np.array(cells, np.int64).reshape(-1, 3)
        channel = self._reader.channels.start // self._reader.chunk[0]
        columns = {
            "t": np.zeros(len(zyx), np.int64),
            "c": np.full(len(zyx), channel, np.int64),
            **dict(zip("zyx", zyx.T, strict=True)),
        }
        return np.stack([columns[axis] for axis in self._reader.axes], axis=1)

    # Jobs: which of them run, and how many bytes wait to be used

    def _start(self, size_bytes: int, job: Callable[[], None]) -> None:
        """Runs the job once its bytes fit beside those that the caller has not taken yet."""
        with self._lock:
            self._waiting.append((size_bytes, job))
        self._start_more()

    def _start_more(self) -> None:
        with self._lock:
            while self._waiting:
                size_bytes, job = self._waiting[0]
                if self._held_bytes and self._held_bytes + size_bytes > self._most_bytes:
                    return
                self._waiting.popleft()
                self._held_bytes += size_bytes
                self._process.threads.run(partial(self._do, job))

    def _release(self, size_bytes: int) -> None:
        with self._lock:
            self._held_bytes -= size_bytes
        self._start_more()

    def _do(self, job: Callable[[], None]) -> None:
        try:
            with self._gate:
                self._interrupt.check()
                job()
        except Interrupted:
            pass  # nobody waits for it any more
        except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
            self._ended.put(error)

    # An index

    def _read_index(self, shard: _Shard) -> None:
        with self._indices.reading(shard.url):
            table = self._indices.get(shard.url)
            if table is None:
                table = self._index(shard.url)
                if table is not None:
                    self._indices.put(table)
        if table is None:
            for row in shard.rows:
                self._ended.put((row, None, 0))
        else:
            self._ask(shard, self._planned(shard, table))
        assert self._sharding is not None
        self._release(self._sharding.index_bytes)

    def _index(self, url: str) -> ShardTable | None:
        """None if there is no such shard."""
        try:
            try:
                return self._index_in_one_request(url)
            except NotPlain as odd:
                log.debug("%s: %s", url, odd)
                assert self._sharding is not None
                return read_table(self._chunks, self._sharding, url, self._interrupt)
        except NotThere as refusal:
            self._reader.accept_absence(refusal)
            return None

    def _index_in_one_request(self, url: str) -> ShardTable:
        sharding = self._sharding
        assert sharding is not None
        size = sharding.index_bytes
        with self._plainly(url, f"-{size}" if sharding.at_end else f"0-{size - 1}") as answer:
            shard_bytes = answer.object_bytes()
            start = max(0, shard_bytes - size) if sharding.at_end else 0
            answer.require(start, min(start + size, shard_bytes))
            if shard_bytes < size:
                raise bad_index(url, f"needs {size} bytes, but the shard has {shard_bytes}")
            return ShardTable.parse(sharding, answer.read(), url, answer.version(shard_bytes))

    # Chunks of a shard

    def _ask(self, shard: _Shard, plan: _Plan) -> None:
        """Starts the requests for what is wanted of a shard whose index is known."""
        if self._chunks.on_version is not None:
            self._chunks.on_version(plan.table.version)
        ready = plan.ready
        if not plan.wanted:
            self._tell(ready)
        for request in coalesced([(start, stop) for _, start, stop in plan.wanted]):
            todo = deque(plan.wanted[piece] for piece in request.pieces)
            part = _Part(shard, shard.attempt, plan.table, request.start, request.stop, todo, ready)
            ready = []
            self._start(part.held_bytes, partial(self._receive, part))

    def _tell(self, ready: Sequence[tuple[int, NDArray[Any] | None]]) -> None:
        for row, voxels in ready:
            self._ended.put((row, voxels, 0))

    def _receive(self, part: _Part) -> None:
        try:
            self._receive_part(part)
        except NotThere as refusal:
            self._reader.accept_absence(refusal)
            self._changed(part, "it is not there any more")
        finally:
            if part.todo:  # of another version
                self._release(part.held_bytes)

    def _receive_part(self, part: _Part) -> None:
        room = self._process.rooms.take(part.stop - part.start)
        url, answer = part.shard.url, None
        try:
            with self._plainly(url, f"{part.start}-{part.stop - 1}") as answer:
                answer.require(part.start, part.stop)
                if not self._is_same(part, answer.version(answer.object_bytes())):
                    return
                while part.todo:
                    self._interrupt.check()
                    stop = part.todo[0 if self._ended.qsize() < FEW_ENDED else -1][2] - part.start
                    answer.fill(room[answer.received : stop])
                    self._give(part, room[:stop])
        except NotPlain as odd:
            received = 0 if answer is None else answer.received
            log.debug("%s, bytes %d-%d: %s", url, part.start, part.stop, odd)
            reply = self._chunks.get_range(url, part.start + received, part.stop, interrupt=self._interrupt)
            if self._is_same(part, Version(reply.etag, reply.last_modified, reply.object_bytes)):
                room[received:] = reply.body
                self._give(part, room)

    def _is_same(self, part: _Part, version: Version) -> bool:
        """Whether the bytes to come are of the shard that the index is of."""
        difference = part.table.version.difference(version)
        if difference is not None:
            self._changed(part, difference)
            return False
        if version.etag or version.last_modified:
            self._indices.confirm(part.table)
        return True

    def _give(self, part: _Part, body: memoryview) -> None:
        """Hands over the chunks that lie wholly in what has come."""
        whole: list[Ended] = []
        while part.todo and part.todo[0][2] - part.start <= len(body):
            row, start, stop = part.todo.popleft()
            data = body[start - part.start : stop - part.start]
            chunk = self._to_keep(data, (part.shard.url, start, stop, self._chunks.read_as), part.table.version)
            whole.append((row, chunk, stop - start))
        if not whole:
            return
        with self._lock:
            is_outdated = part.attempt != part.shard.attempt
            part.shard.is_given = part.shard.is_given or not is_outdated
        if is_outdated:
            self._release(sum(size for _, _, size in whole))
            return
        self._tell(part.ready)
        part.ready = []
        for ended in whole:
            self._ended.put(ended)

    def _changed(self, part: _Part, difference: str) -> None:
        """Begins the shard anew, once, if nothing of it was given. Raises Mismatch otherwise."""
        shard = part.shard
        with self._lock:
            if part.attempt != shard.attempt:  # somebody else has noticed before
                return
            self._indices.drop(part.table)
            if shard.is_given or shard.attempt:
                raise Mismatch(f"{safe_url(shard.url)} changed while it was read: {difference}; read it again.")
            shard.attempt += 1
        assert self._sharding is not None
        self._start(self._sharding.index_bytes, partial(self._read_index, shard))

    # A chunk that is an object of its own

    def _receive_object(self, url: str, row: int, kept: KeptChunk | None) -> None:
        chunk: Chunk
        size = self._reader.array.codec.room_bytes
        try:
            try:
                chunk = self._object(url, kept)
            except NotPlain as odd:
                log.debug("%s: %s", url, odd)
                reply = self._chunks.get(url, max_bytes=self._max_chunk_bytes, interrupt=self._interrupt)
                chunk = memoryview(reply.body)
        except NotThere as refusal:
            self._reader.accept_absence(refusal)
            self._ended.put((row, None, size))
        else:
            self._ended.put((row, chunk, size))

    def _object(self, url: str, kept: KeptChunk | None) -> Chunk:
        with self._plainly(url, None, None if kept is None else kept.version.etag) as answer:
            if kept is not None and answer.status == 304:
                if (difference := kept.version.difference(answer.version(None))) is not None:
                    raise NotPlain(f"it is said to be unchanged, but {difference}")
                kept.seen_at = time.monotonic()
                return kept.voxels
            if answer.length is None or answer.length > self._max_chunk_bytes:
                raise NotPlain(f"it has {answer.length} bytes")
            body = answer.read(self._process.rooms.take)
            version = answer.version(len(body))
        if bytes(body[:64]).lstrip().lower().startswith(PAGE_STARTS):
            raise NotPlain("it is a web page")
        return self._to_keep(body, (url, 0, 0, self._chunks.read_as), version)

    def _plainly(self, url: str, byte_range: str | None, known_etag: str | None = None) -> Answer:
        return self._process.connections.ask(self._chunks.asked(url), byte_range, self._settings, known_etag)


def coalesced(pieces: Sequence[tuple[int, int]]) -> list[RangeRequest]:
    """Few requests for these (start, stop) pieces of one object that read at most `READ_OVER` more than they have."""
    return plan_requests(pieces, gap_bytes=_affordable_gap(pieces), max_bytes=REQUEST_BYTES)


def _affordable_gap(pieces: Sequence[tuple[int, int]]) -> int:
    """The largest gap such that it and all smaller ones together may be read over."""
    gaps, end = [], None
    for start, stop in sorted(pieces):
        if end is not None and start > end:
            gaps.append(start - end)
        end = stop if end is None else max(end, stop)
    left, affordable = READ_OVER * sum(stop - start for start, stop in pieces), 0
    for gap, same in itertools.groupby(sorted(gaps)):
        left -= gap * len(list(same))
        if left < 0 or gap > GAP_BYTES:
            break
        affordable = gap
    return affordable
