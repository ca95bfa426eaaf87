"""Runs `dagster asset materialize` as a child process for `em-assets get`: its environment, its log, its end.

The child draws its progress on the terminal itself (`progress.py`); everything else it prints goes to a log. A step
that fails leaves its sentence in a note, so that the caller can end with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO

from em_assets.errors import Unavailable
from em_assets.settings import Settings

STOP_SECONDS = 4.0
"""How long an interrupted run may take to leave the store in order before it is killed."""
POLL_SECONDS = 0.2
KEPT_LOGS = 20
NAMED_TARGETS = tuple(
    f"DAGSTER_{name}" for name in ("MODULE_NAME", "PYTHON_FILE", "PACKAGE_NAME", "WORKING_DIRECTORY", "ATTRIBUTE")
)
"""Variables that name definitions; Dagster refuses a second pointer beside our `-m`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    exit_code: int
    stopped_by: int | None
    """The first signal this process received meanwhile and passed on."""
    reasons: tuple[str, ...]
    """Sentences of the steps that failed."""
    seconds: float


def materialize(names: Sequence[str], settings: Settings, log: Path) -> Outcome:
    """Materializes the assets of these names in one run and waits for its end."""
    command = [sys.executable, "-m", "dagster", "asset", "materialize"]
    command += ["-m", "em_assets.definitions", "--select", ",".join(names)]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="em-assets-") as temporary, log.open("wb") as output:
        note = Path(temporary, "note")
        exit_code, stopped_by = run_group(command, child_environment(settings, note), output)
        lines = note.read_text(encoding="utf-8", errors="replace").splitlines() if note.exists() else []
    return Outcome(exit_code, stopped_by, tuple(dict.fromkeys(lines)), time.monotonic() - started)


def child_environment(settings: Settings, note: Path) -> dict[str, str]:
    """Ours, with the note for a failing step's sentence, the bar alone on the terminal, and a home for Dagster."""
    ours = {name: value for name, value in os.environ.items() if name not in NAMED_TARGETS}
    ours["EM_ASSETS_RUN_NOTE"] = str(note)
    ours.setdefault("EM_ASSETS_PROGRESS", "bar")
    if not ours.get("DAGSTER_HOME") and not Path("dagster.yaml").is_file():
        ours["DAGSTER_HOME"] = str(_dagster_home(settings))
    return ours


def new_log(settings: Settings, name: str) -> Path:
    """A file for what the child prints; the oldest ones of this dataset are removed."""
    folder = settings.cache_folder().absolute() / "logs"
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob(f"{name}-[0-9]*.log"))[: 1 - KEPT_LOGS]:
            old.unlink(missing_ok=True)
        log = folder / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}.log"
        log.touch()
    return log


def run_group(command: Sequence[str], environment: dict[str, str], output: IO[bytes]) -> tuple[int, int | None]:
    """(exit code, the signal that stopped it or None). Signals to this process are passed on to all of the child's.

    A group of its own lets all of its processes be stopped together; its session, and so its terminal, is ours.
    """
    received: list[tuple[int, float]] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append((number, time.monotonic()))
        if process is not None:
            # as Ctrl-C, on which Dagster ends its steps in order; the second time there is no patience
            _signal_group(process, signal.SIGINT if len(received) == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )
        if received:  # while the child was being started
            _signal_group(process, signal.SIGINT)
        while process.poll() is None:
            if received and time.monotonic() - received[0][1] > STOP_SECONDS:
                _signal_group(process, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        if received:
            _signal_group(process, signal.SIGKILL)  # steps that outlived their parent
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return process.returncode, received[0][0] if received else None


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _dagster_home(settings: Settings) -> Path:
    """Where Dagster remembers runs when neither the environment nor the current folder says so."""
    import yaml
    from platformdirs import user_state_path

    from em_assets.sample.origin import dagster_yaml

    home = (settings.cache or user_state_path("em_assets")).absolute() / "dagster"
    with _writable(home):
        home.mkdir(parents=True, exist_ok=True)
        (home / "dagster.yaml").write_text(yaml.safe_dump(dagster_yaml(home)), encoding="utf-8")
    return home


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{folder} cannot be written ({error.strerror or error}); point EM_ASSETS_CACHE to a folder that can."
        ) from None
