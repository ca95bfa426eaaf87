"""Tells a person how far a long job is: a bar on the terminal, or a line in the log for every 10 %.

Inside a Dagster step stdout is a file, so the terminal is reached as `/dev/tty`. Jobs of several processes may share
it: the first draws the bar, the others write lines above it. Nothing here may stop the job: a terminal that goes
away is the log's turn.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Literal, Protocol, Self

Log = Callable[[str], None]
Show = Literal["tty", "bar", "log", "off"]
"""`tty`: plan, bar and summary on the terminal. `bar`: the bar alone, for a caller who prints the rest. Both are `log`
where there is no terminal. `off`: nothing."""

TERMINAL = "/dev/tty"
REDRAW_SECONDS = 0.2
RATE_WINDOW_SECONDS = 10.0
LONGEST_ESTIMATE_SECONDS = 30 * 86400.0
WIDEST = 110
"""Columns. A line of Dagster's own log that is printed over the bar is longer and hides it."""
BAR_CELLS = 24
UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def human_bytes(count: int) -> str:
    """Decimal, as disks are sold: 1.3 GB."""
    for unit, name in UNITS:
        if count >= unit * 0.99995:  # 999,950 would be rounded to 1000.0 kB
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def human_seconds(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands at one moment."""

    what: str
    done_bytes: int
    total_bytes: int | None
    done_items: int
    total_items: int
    bytes_per_second: float
    """Of the last seconds."""
    items_per_second: float

    @property
    def fraction(self) -> float:
        """0 to 1: the mean of bytes and items, as bytes come first and items are what counts.

        1 only when every item is done, whatever the plan said of the bytes.
        """
        if self.done_items >= self.total_items:
            return 1.0
        items = self.done_items / self.total_items
        if not self.total_bytes:
            return items
        return min((items + min(self.done_bytes / self.total_bytes, 1.0)) / 2, 0.99)

    @property
    def seconds_left(self) -> float | None:
        """Until both the bytes and the items are there; None where nothing says how fast it goes, or hardly moves."""
        if self.fraction == 1.0:
            return 0.0
        estimates = []
        if self.total_bytes and self.bytes_per_second > 0:
            estimates.append((self.total_bytes - self.done_bytes) / self.bytes_per_second)
        if self.items_per_second > 0:
            estimates.append((self.total_items - self.done_items) / self.items_per_second)
        seconds = max(estimates, default=0.0)
        return seconds if 0 < seconds < LONGEST_ESTIMATE_SECONDS else None

    def facts(self) -> list[str]:
        """The numbers in words, the most important first."""
        left = self.seconds_left
        ending = "finishing" if left == 0.0 else f"{human_seconds(left)} left" if left is not None else None
        words = [
            f"{int(self.fraction * 100):3d} %",
            f"{self.done_items}/{self.total_items}",
            ending,
            f"{self.bytes_per_second / 1e6:.1f} MB/s" if self.bytes_per_second > 0 else None,
            human_bytes(self.done_bytes) if self.done_bytes else None,
        ]
        return [word for word in words if word is not None]

    def line(self, columns: int) -> str:
        """One line of at most `columns` characters; what does not fit is left out, the least important first."""
        facts = self.facts()
        filled = int(self.fraction * BAR_CELLS)
        bar = f"[{'#' * filled}{'-' * (BAR_CELLS - filled)}]"
        for parts in ([self.what, bar, *facts], [self.what, *facts]):
            for count in range(len(parts), len(parts) - len(facts), -1):
                text = "  ".join(parts[:count])
                if len(text) <= columns:
                    return text
        return facts[0].strip()[:columns]


class Sink(Protocol):
    """Where a reporter's words go."""

    def say(self, lines: Sequence[str]) -> None:
        """Lines that stay."""

    def show(self, progress: Progress) -> None:
        """Where the job stands; called a few times a second."""

    def close(self) -> None:
        """Nothing more will come."""


class Reporter:
    """One job's progress. `advance` is cheap and may be called from any thread."""

    def __init__(self, sink: Sink, label: str, clock: Callable[[], float] = monotonic) -> None:
        self._sink, self._label, self._clock = sink, label, clock
        self._counting, self._drawing = threading.Lock(), threading.Lock()
        self._what, self._total_items = label, 0
        self._total_bytes: int | None = None
        self._reset()

    def plan(self, line: str) -> None:
        """Says what is going to be done."""
        with self._drawing:
            self._sink.say([line])

    def start(self, total_bytes: int | None, total_items: int, what: str) -> None:
        """The job begins. `total_bytes` may be unknown, or wrong: the items decide when it is done."""
        self._what, self._total_bytes, self._total_items = what or self._label, total_bytes, total_items
        self._reset()
        self._draw()

    def advance(self, bytes: int = 0, items: int = 0) -> None:  # noqa: A002  # the unit is the name
        """So much more was received, so many more items are done."""
        with self._counting:
            self._bytes += bytes
            self._items += items
            last = items > 0 and self._items == self._total_items
            due = last or self._clock() - self._drawn >= REDRAW_SECONDS
        if due:
            self._draw(wait=last)

    def finish(self, summary_lines: Sequence[str]) -> None:
        """The job is done: the bar goes, the summary stays."""
        with self._drawing:
            self._sink.say(list(summary_lines))
        self.close()

    def close(self) -> None:
        """Takes the bar away. May be called more than once."""
        with self._drawing:
            self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reset(self) -> None:
        with self._counting:
            self._bytes = self._items = 0
            self._drawn = float("-inf")
            self._samples = deque([(self._clock(), 0, 0)], maxlen=int(RATE_WINDOW_SECONDS / REDRAW_SECONDS))

    def _draw(self, *, wait: bool = False) -> None:
        # one thread draws, which may wait for a slow terminal; the others go on with their work
        if not self._drawing.acquire(blocking=wait):
            return
        try:
            self._sink.show(self._progress())
        finally:
            self._drawing.release()

    def _progress(self) -> Progress:
        with self._counting:
            now = self._drawn = self._clock()
            then, bytes_then, items_then = self._samples[0]
            self._samples.append((now, self._bytes, self._items))
            seconds = max(now - then, 1e-9)
            moved = now > then
            return Progress(
                self._what,
                self._bytes,
                self._total_bytes,
                self._items,
                self._total_items,
                (self._bytes - bytes_then) / seconds if moved else 0.0,
                (self._items - items_then) / seconds if moved else 0.0,
            )


def open_reporter(log: Log, *, label: str, show: Show = "tty") -> Reporter:
    """A reporter for the job `label`: on the terminal if this process has one, else through `log`."""
    if show == "off":
        return Reporter(_Silence(), label)
    if show == "log":
        return Reporter(_LogLines(log), label)
    terminal = _open_terminal()
    if terminal is None:
        return Reporter(_LogLines(log), label)
    return Reporter(_Terminal(terminal, _LogLines(log), bar_alone=show == "bar"), label)


def _open_terminal() -> int | None:
    """`/dev/tty` for writing, None for a process without a terminal."""
    try:
        return os.open(TERMINAL, os.O_WRONLY | os.O_NOCTTY)
    except OSError:
        return None


class _Silence:
    def say(self, lines: Sequence[str]) -> None:
        """Nobody listens."""

    def show(self, progress: Progress) -> None:
        """Nobody looks."""

    def close(self) -> None:
        """Nothing is open."""


class _Tenths:
    """A line whenever another tenth is done."""

    def __init__(self) -> None:
        self._reached = 0

    def line(self, progress: Progress) -> str | None:
        tenths = int(progress.fraction * 10)
        due = tenths > self._reached
        self._reached = tenths
        return f"{progress.what}: {', '.join(progress.facts()).strip()}" if due else None


class _LogLines:
    def __init__(self, write: Log) -> None:
        self._write, self._tenths = write, _Tenths()

    def say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._write(line)

    def show(self, progress: Progress) -> None:
        line = self._tenths.line(progress)
        if line is not None:
            self._write(line)

    def close(self) -> None:
        """Nothing is open."""


class _Terminal:
    """Draws one line over and over; only where another process does so already, lines that stay."""

    def __init__(self, descriptor: int, otherwise: _LogLines, *, bar_alone: bool) -> None:
        self._terminal: int | None = descriptor
        self._otherwise, self._bar_alone = otherwise, bar_alone
        self._tenths = _Tenths()
        # a "dumb" terminal cannot go back to the beginning of the line
        self._can_redraw = os.environ.get("TERM", "dumb") not in ("", "dumb")
        self._clear = "\r\x1b[K" if self._can_redraw else ""
        self._place: int | None = None

    def say(self, lines: Sequence[str]) -> None:
        self._otherwise.say(lines)  # whoever reads the log later wants the plan and the summary too
        if not self._bar_alone:
            self._write_lines(lines)

    def show(self, progress: Progress) -> None:
        if self._terminal is None:
            self._otherwise.show(progress)
            return
        if self._can_redraw and self._place is None:
            self._place = _claim_bar()
        if self._place is None:
            line = self._tenths.line(progress)
            self._write_lines([] if line is None else [line])
        else:
            # the cursor stays at the beginning, so that whatever else is printed overwrites the bar
            self._write(self._clear + progress.line(self._columns()) + "\r")

    def close(self) -> None:
        if self._place is not None:
            self._write(self._clear)
            os.close(self._place)
            self._place = None
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None

    def __del__(self) -> None:
        # a job that failed without closing its reporter gives the bar's place to the next one
        self.close()

    def _columns(self) -> int:
        assert self._terminal is not None
        try:
            columns = os.get_terminal_size(self._terminal).columns
        except OSError:
            columns = 0
        return min(columns or 80, WIDEST) - 1

    def _write_lines(self, lines: Sequence[str]) -> None:
        self._write("".join(f"{self._clear}{line}\n" for line in lines))

    def _write(self, text: str) -> None:
        if self._terminal is None:
            return
        try:
            with _no_stop_for_writing():
                os.write(self._terminal, text.encode("utf-8", "replace"))
        except BlockingIOError:
            return  # the terminal is busy; the next frame says more
        except OSError:
            os.close(self._terminal)  # it went away; the log is still there
            self._terminal = None


@contextlib.contextmanager
def _no_stop_for_writing() -> Iterator[None]:
    """Under `stty tostop` a background process that writes is stopped, unless it blocks the signal that says so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _claim_bar() -> int | None:
    """A lock that says "this process draws the bar of this terminal", None if another one holds it.

    The operating system frees it when its holder dies.
    """
    import fcntl

    path = Path(tempfile.gettempdir(), f"em_assets-progress-{os.getuid()}-{os.getsid(0)}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
