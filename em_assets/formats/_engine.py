"""Regions from requests: fetch ahead on I/O threads, decode and work on CPU threads, in bounded memory.

Knows nothing of formats. A region needs the bodies of some requests; a body may serve several regions. Regions are
taken in the given order, at most one per worker is open at a time (so many arrays exist), and all workers decode for
the oldest open region that has a body waiting. Whoever decodes a region's last body also does the work on it, so that
no array crosses a queue.

Bodies are fetched in the order of their next use while they fit. A body that a region waits for and that does not fit
pushes others out, those used latest first, which are then fetched again: bounded memory goes before few requests.
Everything below is guarded by one lock; nothing slow is done while it is held. Who waits for it waits in one of three
conditions, so that the eight threads that fetch are not woken for every chunk that is decoded.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from em_assets.errors import Mismatch
from em_assets.fetch.hosts import Interrupt, Interrupted

LOOKAHEAD_BYTES = 64 * 2**20
"""Bodies under way or waiting for their first use. At 200 MB/s a third of a second: no worker waits for the network."""
STOP_SECONDS = 5.0
"""How long the end of the threads is waited for when a run is given up; they are daemons, nothing hangs on them."""

B = TypeVar("B")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class Jobs(Generic[B, R, T]):
    """What is to be done. All functions are called from other threads."""

    needs: Sequence[Sequence[int]]
    """The requests each region needs, region by region in the order of work."""
    sizes: Sequence[int]
    """Bytes of each request's body; an estimate where nobody knows."""
    fetch: Callable[[int, Interrupt], B]
    """Gets the body of a request. An error fails every region that needs it, and no other."""
    size_of: Callable[[B], int]
    open_region: Callable[[int], R]
    """Quick: makes what `use` fills. An error fails the region, and no other."""
    use: Callable[[R, int, B], None]
    """Takes a region's part of one request's body; several threads may do so at once for different requests."""
    finish: Callable[[R], T]
    """Called once everything is used."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    region: int
    value: T | None
    error: Exception | None


def run_regions(jobs: Jobs[B, R, T], *, workers: int, connections: int, memory_bytes: int) -> Iterator[Outcome[T]]:
    """An outcome for every region, as they end. Closing the iterator stops the threads."""
    return _Engine(jobs, workers, connections, memory_bytes).outcomes()


@dataclass
class _Open(Generic[R]):
    """A region that is being put together."""

    region: R
    waiting: list[int]
    """Requests not taken yet, in order."""
    running: int = 0
    """Workers on it now."""
    error: Exception | None = None


class _Engine(Generic[B, R, T]):
    def __init__(self, jobs: Jobs[B, R, T], workers: int, connections: int, memory_bytes: int) -> None:
        self._jobs = jobs
        self._workers = workers
        self._connections = min(connections, len(jobs.sizes))
        self._memory_bytes = memory_bytes
        self._interrupt = Interrupt()
        self._lock = threading.Lock()
        self._for_workers = threading.Condition(self._lock)
        """A body came or failed, or a region ended."""
        self._for_fetchers = threading.Condition(self._lock)
        """Memory became free, a body is demanded, or there is nothing more to fetch."""
        self._for_reader = threading.Condition(self._lock)
        """An outcome is there."""
        self._stopped = False
        self._fatal: BaseException | None = None
        self._outcomes: deque[Outcome[T]] = deque()

        self._next = 0
        self._open: dict[int, _Open[R]] = {}

        self._users: list[list[int]] = [[] for _ in jobs.sizes]
        """Regions that still need each request, first use first."""
        for rank, requests in enumerate(jobs.needs):
            for request in requests:
                self._users[request].append(rank)
        self._sizes = list(jobs.sizes)
        self._pending = [(users[0], request) for request, users in enumerate(self._users) if users]
        heapq.heapify(self._pending)
        """What to fetch ahead, by next use. Entries may be outdated: `_is_pending` decides."""
        self._demanded: deque[int] = deque()
        """Requests that a worker waits for while everything else stands still."""
        self._fetching: set[int] = set()
        self._bodies: dict[int, B] = {}
        self._errors: dict[int, Exception] = {}
        self._fresh: set[int] = set()
        """Fetching or held, and not used yet."""
        self._held_bytes = 0
        self._fresh_bytes = 0

    def outcomes(self) -> Iterator[Outcome[T]]:
        loops = [self._fetch_loop] * self._connections + [self._work_loop] * min(self._workers, len(self._jobs.needs))
        threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=f"em_assets{loop.__name__}", daemon=True)
            for loop in loops
        ]
        try:
            for thread in threads:
                thread.start()
            for _ in self._jobs.needs:
                yield self._next_outcome()
        finally:
            self._stop(threads)

    def _next_outcome(self) -> Outcome[T]:
        with self._lock:
            while not self._outcomes:
                if self._fatal is not None:
                    raise self._fatal
                self._for_reader.wait()
            return self._outcomes.popleft()

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        with self._lock:
            self._stopped = True
            self._wake_all()
        self._interrupt.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(STOP_SECONDS / len(threads))

    def _guarded(self, loop: Callable[[], None]) -> None:
        """Whatever ends a thread that should not end is raised by the one who reads the outcomes."""
        try:
            loop()
        except BaseException as error:  # noqa: BLE001
            with self._lock:
                self._fatal = self._fatal or error
                self._stopped = True
                self._wake_all()

    def _wake_all(self) -> None:
        for condition in (self._for_workers, self._for_fetchers, self._for_reader):
            condition.notify_all()

    # -- workers

    def _work_loop(self) -> None:
        while (job := self._next_job()) is not None:
            job()

    def _next_job(self) -> Callable[[], None] | None:
        """Something to do, waiting for it if need be; None when there will be nothing more."""
        with self._lock:
            while not self._stopped:
                job = self._ready_job()
                if job is not None:
                    return job
                if self._all_done():
                    return None
                self._demand()
                self._for_workers.wait()
            return None

    def _ready_job(self) -> Callable[[], None] | None:
        while True:
            for rank, region in list(self._open.items()):
                job = self._job_for(rank, region)
                if job is not None:
                    return job
            if len(self._open) >= self._workers or self._next == len(self._jobs.needs):
                return None
            rank, self._next = self._next, self._next + 1
            try:
                region = _Open(self._jobs.open_region(rank), list(self._jobs.needs[rank]))
            except Exception as error:  # noqa: BLE001  # belongs to this region: the others go on
                self._close(rank, None, error)
                continue
            self._open[rank] = region
            if not region.waiting:
                region.running = 1
                return partial(self._finish, rank, region)

    def _job_for(self, rank: int, region: _Open[R]) -> Callable[[], None] | None:
        for request in region.waiting:
            if request in self._errors:
                self._give_up(rank, region, self._errors[request])
                return None
            if request in self._bodies:
                region.waiting.remove(request)
                region.running += 1
                self._note_use(request)
                return partial(self._use, rank, region, request, self._bodies[request])
        return None

    def _use(self, rank: int, region: _Open[R], request: int, body: B) -> None:
        error: Exception | None = None
        try:
            self._jobs.use(region.region, request, body)
        except Exception as caught:  # noqa: BLE001  # belongs to this region: the others go on
            error = caught
        with self._lock:
            region.running -= 1
            self._release(rank, request)
            if error is not None or region.error is not None:
                self._give_up(rank, region, region.error or error)
                return
            if region.waiting or region.running:
                return
            region.running = 1
        self._finish(rank, region)

    def _finish(self, rank: int, region: _Open[R]) -> None:
        value: T | None = None
        error: Exception | None = None
        try:
            value = self._jobs.finish(region.region)
        except Exception as caught:  # noqa: BLE001  # belongs to this region: the others go on
            error = caught
        with self._lock:
            self._close(rank, value, error)

    def _give_up(self, rank: int, region: _Open[R], error: Exception | None) -> None:
        """The last of its workers closes a region that failed."""
        region.error = error
        region.waiting.clear()
        if not region.running:
            self._close(rank, None, error)

    def _close(self, rank: int, value: T | None, error: Exception | None) -> None:
        if isinstance(error, MemoryError):
            error = Mismatch(f"a box does not fit into the memory that is free ({error}); ask for smaller boxes.")
        self._open.pop(rank, None)  # not there if it could not be opened
        for request in self._jobs.needs[rank]:
            self._release(rank, request)
        self._outcomes.append(Outcome(rank, value, error))
        self._wake_all()

    def _all_done(self) -> bool:
        return self._next == len(self._jobs.needs) and not self._open

    def _demand(self) -> None:
        """Nothing can go on and nothing that is needed is coming: ask for the first body that is, whatever fits."""
        needed = [request for region in self._open.values() for request in region.waiting]
        if not needed or any(request in self._fetching or request in self._demanded for request in needed):
            return
        self._demanded.append(needed[0])
        self._for_fetchers.notify_all()

    # -- bodies

    def _fetch_loop(self) -> None:
        while (request := self._next_fetch()) is not None:
            try:
                body = self._jobs.fetch(request, self._interrupt)
            except Interrupted:
                return
            except Exception as error:  # noqa: BLE001  # belongs to the regions that need it
                with self._lock:
                    self._fetching.discard(request)
                    self._errors[request] = error
                    self._forget(request)
                    self._for_workers.notify_all()
            else:
                self._arrived(request, body)

    def _next_fetch(self) -> int | None:
        with self._lock:
            while not self._stopped:
                request = self._demanded_fetch()
                if request is None:
                    request = self._affordable_fetch()
                if request is not None:
                    self._fetching.add(request)
                    self._fresh.add(request)
                    self._held_bytes += self._sizes[request]
                    self._fresh_bytes += self._sizes[request]
                    self._for_fetchers.notify()  # there may be room for one more
                    return request
                if self._all_done():
                    return None
                self._for_fetchers.wait()
            return None

    def _demanded_fetch(self) -> int | None:
        while self._demanded:
            request = self._demanded.popleft()
            if self._is_pending(request):
                self._make_room(self._sizes[request])
                return request
        return None

    def _affordable_fetch(self) -> int | None:
        while self._pending:
            request = self._pending[0][1]
            if not self._is_pending(request):
                heapq.heappop(self._pending)
                continue
            size = self._sizes[request]
            fits = self._held_bytes + size <= self._memory_bytes and self._fresh_bytes + size <= LOOKAHEAD_BYTES
            if not fits and self._held_bytes:
                return None
            heapq.heappop(self._pending)
            return request
        return None

    def _is_pending(self, request: int) -> bool:
        known = request in self._fetching or request in self._bodies or request in self._errors
        return not known and bool(self._users[request])

    def _make_room(self, size: int) -> None:
        """Drops bodies that no open region needs, those used latest first."""
        idle = [request for request in self._bodies if self._users[request][0] not in self._open]
        idle.sort(key=lambda request: self._users[request][0])
        while idle and self._held_bytes + size > self._memory_bytes:
            request = idle.pop()
            self._forget(request)
            heapq.heappush(self._pending, (self._users[request][0], request))

    def _arrived(self, request: int, body: B) -> None:
        with self._lock:
            self._fetching.discard(request)
            size = self._jobs.size_of(body)
            self._held_bytes += size - self._sizes[request]
            self._fresh_bytes += size - self._sizes[request]
            self._sizes[request] = size
            self._bodies[request] = body
            if not self._users[request]:
                self._forget(request)
            self._for_workers.notify_all()

    def _note_use(self, request: int) -> None:
        if request in self._fresh:
            self._fresh.discard(request)
            self._fresh_bytes -= self._sizes[request]
            self._for_fetchers.notify()

    def _release(self, rank: int, request: int) -> None:
        """This region does not need this request any more."""
        users = self._users[request]
        if rank in users:
            users.remove(rank)
            if not users and request in self._bodies:
                self._forget(request)

    def _forget(self, request: int) -> None:
        """Its body is not held any more, or never came."""
        self._note_use(request)
        self._bodies.pop(request, None)
        self._held_bytes -= self._sizes[request]
        self._for_fetchers.notify()
