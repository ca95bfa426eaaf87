"""One command in a child process: how long it takes, what it uses, and what else kept the machine busy meanwhile."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.005
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class CommandFailed(Exception):
    """The command did not exit with 0."""


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    wall_seconds: float
    """From before the process is started until it has ended: start-up and imports are in it."""
    cpu_seconds: float
    peak_anonymous_bytes: int
    """RssAnon, sampled: memory that is really the program's, without mapped files."""
    peak_resident_bytes: int
    """VmHWM: everything, as the kernel saw it."""
    foreign_load: float
    """Share of all cores that other processes used meanwhile (0 = the machine was ours)."""
    output: str


def run_measured(command: list[str], *, environment: dict[str, str], own_pids: list[int]) -> Usage:
    """Runs a command to its end. `own_pids` are servers that belong to the measurement, with their children.

    Raises CommandFailed with the end of what it printed.
    """
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
        own_before, busy_before = _own_ticks(own_pids), _busy_ticks()
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        sampler = _Sampler(process.pid)
        sampler.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:  # interrupted: it must not go on alone
            process.kill()
            process.wait()
            raise
        wall_seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        sampler.stop()
        busy = (_busy_ticks() - busy_before) / TICKS_PER_SECOND
        own = (_own_ticks(own_pids) - own_before) / TICKS_PER_SECOND
        errors.seek(0)
        output.seek(0)
        if process.returncode != 0:
            text = errors.read().decode(errors="replace")[-3000:]
            raise CommandFailed(f"{' '.join(command)} ended with {process.returncode}: {text}")
        cpu_seconds = used.ru_utime + used.ru_stime
        foreign = max(0.0, busy - own - cpu_seconds) / (wall_seconds * (os.cpu_count() or 1))
        return Usage(
            wall_seconds=wall_seconds,
            cpu_seconds=cpu_seconds,
            peak_anonymous_bytes=sampler.peak_anonymous_bytes,
            peak_resident_bytes=sampler.peak_resident_bytes,
            foreign_load=foreign,
            output=output.read().decode().strip(),
        )


class _Sampler(threading.Thread):
    """Follows a process's memory. ru_maxrss would not do: it starts at the size of the process that forked."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = Path(f"/proc/{pid}")
        self._stopped = threading.Event()
        self.peak_anonymous_bytes = self.peak_resident_bytes = 0

    def run(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            try:
                status = (self._process / "status").read_text()
            except OSError:  # it has ended
                return
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, _status_bytes(status, "RssAnon:"))
            self.peak_resident_bytes = max(self.peak_resident_bytes, _status_bytes(status, "VmHWM:"))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _status_bytes(status: str, name: str) -> int:
    """0 for a process that has ended but was not waited for."""
    for line in status.splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def _busy_ticks() -> int:
    """Of all cores, since boot: everything but idle and waiting (guest time is part of user time already)."""
    fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4]


def _own_ticks(pids: list[int]) -> int:
    """CPU time of this process and of these with their children, who must outlive the measurement."""
    return sum(_process_ticks(pid) for parent in pids for pid in (parent, *_children(parent))) + _process_ticks(
        os.getpid()
    )


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _process_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
