"""What a person sees of a long job: on a real (pseudo) terminal, in a log, and when the terminal goes away."""

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT
from em_assets.progress import Progress, Reporter, human_bytes, human_seconds, open_reporter


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_999, "1.0 MB"),
        (1_300_000_000, "1.3 GB"),
        (20_000_000_000_000, "20.0 TB"),
    ],
)
def test_bytes_are_decimal(count, text):
    """1 GB is 10^9 bytes, and no number is written as 1000 of the smaller unit."""
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_seconds_read_as_a_person_says_them(seconds, text):
    """Two units at most, and no 60 of the smaller one."""
    assert human_seconds(seconds) == text


counts = st.integers(0, 10**15)


@given(
    st.builds(
        Progress,
        what=st.text("abc_", min_size=1, max_size=70),
        done_bytes=counts,
        total_bytes=st.none() | counts,
        done_items=st.integers(0, 1000),
        total_items=st.integers(0, 1000),
        bytes_per_second=st.floats(0, 1e10),
        items_per_second=st.floats(0, 1e6),
    ),
    st.integers(5, 200),
)
def test_a_line_always_fits(progress, columns):
    """Whatever the numbers and the terminal, the line is not wider than asked, and says how much is done."""
    line = progress.line(columns)
    assert len(line) <= columns
    assert "%" in line
    assert progress.fraction < 1 or progress.done_items >= progress.total_items


def test_the_line_tells_rate_items_and_time_left():
    """Half of 200 MB at 10 MB/s are 10 s; 48 items at 2 a second are 24 s: that is how long it takes."""
    line = Progress("crop", 100_000_000, 200_000_000, 16, 64, 10e6, 2.0).line(100)
    assert line == "crop  [#########---------------]   37 %  16/64  24 s left  10.0 MB/s  100.0 MB"
    assert "10 s left" in Progress("crop", 100_000_000, 200_000_000, 0, 64, 10e6, 0.0).line(100)


def test_the_log_gets_a_line_per_tenth(monkeypatch):
    """1000 steps make ten lines, the first at 10 %, the last at 100 %."""
    lines: list[str] = []
    reporter = open_reporter(lines.append, label="crop", show="log")
    reporter._clock = iter(range(10**6)).__next__
    reporter.plan("the plan")
    reporter.start(1000, 1000, "crop")
    for _ in range(1000):
        reporter.advance(bytes=1, items=1)
    reporter.finish(["the end"])
    assert [lines[0], lines[-1]] == ["the plan", "the end"]
    assert [re.search(r"(\d+) %", line)[1] for line in lines[1:-1]] == [str(n) for n in range(10, 101, 10)]


def test_counts_are_exact_from_many_threads():
    """No step is lost when eight threads report at once."""
    lines: list[str] = []
    reporter = open_reporter(lines.append, label="crop", show="log")
    reporter.start(None, 8000, "crop")
    threads = [
        threading.Thread(target=lambda: [reporter.advance(bytes=3, items=1) for _ in range(1000)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "100 %, 8000/8000, finishing" in lines[-1]
    assert "24.0 kB" in lines[-1]


def test_reporting_is_cheap():
    """A report costs microseconds: it may be called for every chunk."""
    reporter = open_reporter(lambda line: None, label="crop", show="log")
    reporter.start(10**9, 10**6, "crop")
    started = time.perf_counter()
    for _ in range(10_000):
        reporter.advance(bytes=1)
    assert time.perf_counter() - started < 1.0


def test_off_says_nothing(capfd):
    """`off` is silence, in the log and on the terminal."""
    lines: list[str] = []
    with open_reporter(lines.append, label="crop", show="off") as reporter:
        reporter.plan("the plan")
        reporter.start(1, 1, "crop")
        reporter.advance(items=1)
        reporter.finish(["the end"])
    assert not lines
    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_the_log_is_used():
    """A process of no terminal (a server, CI) logs instead, and does not fail."""
    done = subprocess.run(
        [sys.executable, "-c", JOB],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
        start_new_session=True,
    )
    assert done.stdout.splitlines()[0] == "log: the plan"
    assert "log: the end" in done.stdout
    assert "\x1b" not in done.stdout


JOB = textwrap.dedent("""
    import os, sys, time
    from em_assets.progress import open_reporter
    label, show = os.environ.get("LABEL", "crop"), os.environ.get("SHOW", "tty")
    reporter = open_reporter(lambda line: print("log:", line, flush=True), label=label, show=show)
    reporter.plan("the plan")
    reporter.start(100_000_000, 20, label)
    for _ in range(20):
        time.sleep(float(os.environ.get("STEP", "0.03")))
        reporter.advance(bytes=5_000_000, items=1)
    reporter.finish(["the end"])
""")


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **changes}


class Terminal:
    """A pseudo terminal whose session is a shell of our own; commands run in it, stdout apart."""

    def __init__(self, script: str, **variables: str) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execvpe("bash", ["bash", "-c", script], environment(JOB=JOB, **variables))  # pragma: no cover

    def read_all(self, timeout: float = 20) -> str:
        data = b""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not select.select([self.descriptor], [], [], 0.1)[0]:
                continue
            try:
                more = os.read(self.descriptor, 65536)
            except OSError:  # Linux: the last process of the terminal has ended
                break
            if not more:
                break
            data += more
        os.close(self.descriptor)
        os.waitpid(self.pid, 0)
        return data.decode()


PYTHON = f'"{sys.executable}" -c "$JOB"'


def test_a_terminal_gets_plan_bar_and_summary():
    """The bar redraws one line and is gone at the end; stdout is a file, as inside a Dagster step."""
    shown = Terminal(f"{PYTHON} > /dev/null").read_all()
    assert shown.startswith("\r\x1b[Kthe plan\r\n")
    frames = [frame for frame in shown.split("\r") if "crop" in frame]
    assert len(frames) >= 3
    assert re.search(r"crop  \[#+-+\] +\d+ %  \d+/20  .* left  \d+\.\d MB/s", frames[len(frames) // 2])
    assert shown.endswith("the end\r\n\r\x1b[K")
    assert "log:" not in shown


def test_the_bar_alone():
    """`bar` leaves plan and summary to the caller."""
    shown = Terminal(f"{PYTHON} > /dev/null", SHOW="bar").read_all()
    assert "the plan" not in shown
    assert "the end" not in shown
    assert "20/20" in shown


def test_a_dumb_terminal_gets_lines():
    """No escape sequence reaches a terminal that has none; a line per tenth instead."""
    shown = Terminal(f"{PYTHON} > /dev/null", TERM="dumb").read_all()
    assert "\x1b" not in shown
    assert "100 %, 20/20" in shown


def test_two_jobs_on_one_terminal_do_not_write_into_each_other():
    """One draws the bar; the other writes whole lines above it."""
    other = f"LABEL=second {PYTHON} > /dev/null"
    shown = Terminal(f"LABEL=first {PYTHON} > /dev/null & sleep 0.3; {other} & wait", STEP="0.1").read_all()
    assert "first  [" in shown
    lines = [line for line in shown.split("\n") if "second: " in line]
    assert len(lines) >= 4
    for line in lines:
        assert re.search(r"\r\x1b\[Ksecond: [^\x1b]*\r$", line), repr(line)


def test_a_background_process_may_draw_under_tostop():
    """With `stty tostop` a background writer would be stopped by the terminal; the job goes on."""
    script = f'stty tostop; set -m; {PYTHON} > "$OUT" & wait %1; echo done with $?'
    shown = Terminal(script, OUT=os.devnull).read_all()
    assert "20/20" in shown
    assert "done with 0" in shown


def test_a_terminal_that_goes_away_does_not_stop_the_job(tmp_path):
    """The window is closed in the middle: the job ends well and the log has the rest."""
    out = tmp_path / "out"
    terminal = Terminal(f'trap \'\' HUP; {PYTHON} > "$OUT"; echo $? > "$OUT.code"', OUT=str(out), STEP="0.1")
    time.sleep(0.8)
    os.close(terminal.descriptor)
    os.waitpid(terminal.pid, 0)
    assert Path(f"{out}.code").read_text().strip() == "0"
    assert "log: the end" in out.read_text()


def test_a_failed_job_frees_the_bar(monkeypatch):
    """A job that raised without closing its reporter leaves the bar to the next one."""
    from em_assets import progress

    main, other = pty.openpty()
    monkeypatch.setattr(progress, "TERMINAL", os.ttyname(other))
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.suppress(ZeroDivisionError):
        fail()
    with open_reporter(lambda line: None, label="second") as reporter:
        reporter.start(None, 4, "second")
    shown = ""
    while select.select([main], [], [], 0.5)[0]:
        shown += os.read(main, 65536).decode()
    os.close(main)
    os.close(other)
    assert "first  [" in shown
    assert "second  [" in shown


def fail() -> None:
    reporter: Reporter = open_reporter(lambda line: None, label="first")
    reporter.start(None, 4, "first")
    raise ZeroDivisionError
