"""One file from one address into a partial: several ranges at once, hashed behind the front while they arrive.

What is tried again within a range is the client's matter (`http.py`); which addresses are tried, and what becomes of
the bytes, is decided in `files.py`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial as bind
from queue import Empty, SimpleQueue
from typing import Protocol

from em_assets.errors import Malformed, Mismatch
from em_assets.fetch._hashing import Hasher
from em_assets.fetch._partial import Journal, Partial
from em_assets.fetch._pieces import SMALLEST_RANGE_BYTES, Piece, Pieces, missing, split
from em_assets.fetch.hosts import Interrupt, Interrupted
from em_assets.fetch.replies import OnBytes
from em_assets.fetch.streams import OnBegin, Sink, Version

SAVE_SECONDS = 1.0
"""How often the journal is written: what a killed process has to fetch again."""
HEAD_BYTES = 80
"""Of the beginning, judged and quoted."""


class WrongKind(Malformed):
    """The file does not begin as it must: its bytes are of no use."""


class Stream(Protocol):
    """`HttpClient.stream` for one address, or what does the same over another protocol."""

    def __call__(
        self,
        sink: Sink,
        *,
        start: int,
        stop: int | None,
        expect: Version | None,
        size_bytes: int | None,
        on_begin: OnBegin,
        on_bytes: OnBytes | None,
        interrupt: Interrupt,
    ) -> Version: ...


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted, whichever address it comes from."""

    size_bytes: int | None
    most_bytes: int
    """No file is larger, whatever its server says."""
    algorithms: tuple[str, ...]
    """`sha256` first."""
    magic: tuple[bytes, ...]
    """How it may begin; empty: anything but a web page."""
    connections: int
    range_bytes: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A whole file, as it lies in the partial."""

    version: Version
    size_bytes: int
    digests: dict[str, str]
    received_bytes: int
    """Over the network, now."""


class Transfer:
    """Fetches what is missing of one file, once: `run`."""

    def __init__(
        self, url: str, stream: Stream, partial: Partial, order: Order, *, resumed: Journal | None, expect: Version
    ) -> None:
        """`url` is for messages and the journal; `resumed` says what is here already, `expect` what of."""
        self._url, self._stream, self._partial, self._order = url, stream, partial, order
        self._resumed = resumed
        self._expect = expect
        self._pieces = Pieces(resumed.done if resumed else ())
        self._hasher = Hasher(partial, self._pieces, order.algorithms)
        self._events: SimpleQueue[str | BaseException] = SimpleQueue()
        self._door = _Door()
        self._starting = threading.Lock()
        self._version: Version | None = None
        self._size_bytes: int | None = None
        self._saved: tuple[tuple[int, int], ...] = ()

    def run(self, interrupt: Interrupt, on_bytes: OnBytes | None) -> Arrived:
        """The whole file. Whatever ends it before leaves a journal of what has come.

        Raises what `HttpClient.stream` does, DiskTrouble, WrongKind, Mismatch if it has another size than it must.
        """
        own = Interrupt()
        with interrupt.cutting(own.set):
            try:
                if not self._is_whole_already():
                    self._plan()
                    self._move(own, on_bytes)
                size_bytes = self._size()
                digests = self._hasher.finish(size_bytes, own)
                self._require_beginning(size_bytes)
            finally:
                own.set()
                self._door.close()
                self._hasher.stop()
                self._save()
        version = self._version or self._expect
        return Arrived(version, size_bytes, digests, self._pieces.received_bytes)

    def _is_whole_already(self) -> bool:
        """A run that was killed at the very end left nothing to fetch."""
        if self._resumed is None or missing(self._resumed.done, self._resumed.size_bytes):
            return False
        self._version, self._size_bytes = self._resumed.version, self._resumed.size_bytes
        return True

    def _plan(self) -> None:
        order = self._order
        if self._resumed is not None:
            size_bytes, done = self._resumed.size_bytes, self._resumed.done
        elif order.size_bytes is not None:
            size_bytes, done = order.size_bytes, ()
        else:  # the first reply will tell
            first = min(order.range_bytes, SMALLEST_RANGE_BYTES)
            self._pieces.add([(0, first if order.connections > 1 else None)])
            return
        self._pieces.add(split(missing(done, size_bytes), size_bytes, order.connections, order.range_bytes))

    def _move(self, own: Interrupt, on_bytes: OnBytes | None) -> None:
        """Until nothing is missing.

        Each reply that begins well lets two more be asked for: a server that takes only a few at once has to refuse
        only a few.
        """
        running = begun = 0
        save_at = time.monotonic() + SAVE_SECONDS
        while running or self._pieces.waiting:
            while self._pieces.waiting and running < min(self._order.connections, max(1, 2 * begun)):
                threading.Thread(target=self._work, args=(own, on_bytes), name="em_assets-file", daemon=True).start()
                running += 1
            with contextlib.suppress(Empty):
                event = self._events.get(timeout=max(0.0, save_at - time.monotonic()))
                if isinstance(event, BaseException):
                    raise event
                begun += event == "begun"
                running -= event == "ended"
            if time.monotonic() >= save_at:
                self._save()
                save_at = time.monotonic() + SAVE_SECONDS

    def _work(self, own: Interrupt, on_bytes: OnBytes | None) -> None:
        try:
            while (piece := self._pieces.take()) is not None:
                self._stream(
                    bind(self._take, piece),
                    start=piece.start,
                    stop=piece.stop,
                    expect=self._version or self._expect,
                    size_bytes=self._order.size_bytes,
                    on_begin=bind(self._begin, piece),
                    on_bytes=on_bytes,
                    interrupt=own,
                )
            self._events.put("ended")
        except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
            self._events.put(error)

    def _begin(self, piece: Piece, version: Version, whole: bool) -> None:  # noqa: FBT001  # as OnBegin has it
        """The first reply decides what the file is; the others were checked against it."""
        with self._starting, self._door.entered():
            if self._version is None:
                self._start(piece, version, whole=whole)
        self._events.put("begun")

    def _start(self, piece: Piece, version: Version, *, whole: bool) -> None:
        order = self._order
        size_bytes = version.size_bytes if version.size_bytes is not None else order.size_bytes
        if order.size_bytes not in (None, size_bytes):
            raise Mismatch(
                f"{self._url} has {size_bytes} bytes, expected {order.size_bytes}; look at what its publisher replaced "
                "before correcting the dataset's spec."
            )
        if size_bytes is not None and size_bytes > order.most_bytes:
            raise Mismatch(
                f"{self._url} has {size_bytes} bytes, at most {order.most_bytes} are allowed; set EM_ASSETS_MAX_BYTES "
                "to allow more."
            )
        if self._resumed is None:
            self._partial.reset()
        if size_bytes is not None:
            self._partial.reserve(size_bytes)
        if whole:
            self._pieces.keep_only(piece)
        elif order.size_bytes is None and self._resumed is None and size_bytes is not None and piece.stop is not None:
            piece.stop = min(piece.stop, size_bytes)
            if piece.stop < size_bytes:
                gap = [(piece.stop, size_bytes)]
                self._pieces.add(split(gap, size_bytes, order.connections, order.range_bytes))
        self._version, self._size_bytes = version, size_bytes

    def _take(self, piece: Piece, offset: int, data: memoryview) -> None:
        with self._door.entered():
            most = self._order.most_bytes if self._size_bytes is None else self._size_bytes
            if offset + len(data) > most:
                raise Mismatch(
                    f"{self._url} sent more than the {most} bytes that were expected; look at what its publisher "
                    "replaced, then run again."
                )
            if offset == 0:
                self._require_begins_well(data[:HEAD_BYTES])
            self._pieces.rewind(piece, offset)
            self._partial.write(offset, data)
            self._pieces.advance(piece, len(data))

    def _size(self) -> int:
        """Known at the end at the latest."""
        if self._size_bytes is None:
            with self._pieces.changed:
                self._size_bytes = self._pieces.front
        return self._size_bytes

    def _require_beginning(self, size_bytes: int) -> None:
        """Once more, of the whole: the first block may have been shorter than what is to be compared."""
        head = memoryview(bytearray(min(size_bytes, HEAD_BYTES)))
        self._partial.read_into(head, 0)
        self._require_begins_well(head, whole=True)

    def _require_begins_well(self, data: memoryview, *, whole: bool = False) -> None:
        head, magic = bytes(data), self._order.magic
        shown = repr(" ".join(head.decode("utf-8", "replace").split()))
        if head.lstrip().lower().startswith((b"<!doctype html", b"<html")) and not head.startswith(magic):
            raise WrongKind(
                f"{self._url} answered with a web page where data was expected ({shown}); check the address."
            )
        same = [head.startswith(m) or (not whole and m.startswith(head)) for m in magic]
        if magic and not any(same):
            accepted = " or ".join(repr(m) for m in magic)
            raise WrongKind(
                f"{self._url} is not the kind of file that was expected: it begins with {shown}, not with {accepted}; "
                "check the address."
            )

    def _save(self) -> None:
        """Notes what is here, if there is more than last time and its size is known (else it cannot be resumed)."""
        if self._version is None or self._version.size_bytes is None:
            return
        done = self._pieces.here()
        if done != self._saved:
            journal = Journal(
                source=self._url,
                etag=self._version.etag,
                last_modified=self._version.last_modified,
                size_bytes=self._version.size_bytes,
                done=done,
            )
            self._partial.save(journal)
            self._saved = done


class _Door:
    """Lets many in until it is closed, and closes when all are out: afterwards nobody writes any more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._is_closed = False

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        with self._changed:
            if self._is_closed:
                raise Interrupted
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            while self._inside:
                self._changed.wait()
