"""Switches the sample on and off: writes what each publisher serves, starts the server, writes the specs.

Everything lies in one folder (`.sample`): `origin/` is what is served, `datasets/` the specs that point at it, `data/`
the store and `dagster/` the history of who works with it, `server.json` and `server.log` the running server's. A
publisher is a module with `write` and `spec` and one line in PUBLISHERS.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from em_assets.errors import Mismatch, Unavailable
from em_assets.sample import cryoet, empiar, epfl, hemibrain, idr, openorganelle
from em_assets.sample.ftp import require_ftp_server
from em_assets.sample.graphql import require_graphql
from em_assets.sample.publishing import Addresses
from em_assets.sample.server import IDENTITY_PATH, PORT_TAKEN

RECORD = "server.json"
LOG = "server.log"
LOCK = ".em-assets-sample.lock"
"""Also says that a folder is ours."""
MADE = "made.json"
"""In `origin/`: what it was made from, and the size and time of each file."""
START_SECONDS = 30.0
STOP_SECONDS = 5.0
LOCK_SECONDS = 300.0
MAX_PORT = 1 << 16
SERVING = frozenset({"origin", "server", "ftp", "buckets", "graphql", "cryoet_rows"})
"""Modules that decide nothing of what is written."""

_CHILDREN: list[subprocess.Popen[bytes]] = []
"""Servers this process started: held so that they can be waited for, and go on when it ends."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be served."""

    seed: int
    volume: Path | None
    """The hemibrain's, instead of a drawn one."""

    def digest(self) -> str:
        """Changes with the request, with a file of the volume and with the code that draws and writes."""
        from em_assets.sample.volumes import fingerprint

        modules = (file for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem not in SERVING)
        code = [file.read_bytes() for file in modules]
        volume = self.volume and fingerprint(self.volume)
        return hashlib.sha256(repr((self.seed, volume, code)).encode()).hexdigest()


class Publisher(Protocol):
    """A module that imitates one publisher."""

    def write(self, origin: Path, request: Request) -> dict[str, Any]:
        """Writes its files below `origin`; returns JSON facts for `spec`."""

    def spec(self, facts: dict[str, Any], addresses: Addresses) -> dict[str, Any]:
        """The dataset's spec, pointing at the server."""


PUBLISHERS: dict[str, Publisher] = {
    hemibrain.DATASET: hemibrain,
    idr.DATASET: idr,
    empiar.DATASET: empiar,
    epfl.DATASET: epfl,
    openorganelle.DATASET: openorganelle,
    cryoet.DATASET: cryoet,
}
"""By dataset name."""


@dataclass(frozen=True, slots=True)
class SampleState:
    """What there is of a sample."""

    folder: Path
    datasets: tuple[str, ...] = ()
    """Names of the specs; empty: nothing was written yet."""
    url: str | None = None
    pid: int | None = None
    """Both None when no server of this folder answers."""
    ftp_url: str | None = None
    """The same files over FTP."""
    requests: int = 0
    bytes_sent: int = 0
    """What the running server has answered since it started: a run that fetches nothing leaves both as they are."""
    wrote: bool = False
    """This call wrote files to serve."""
    started: bool = False
    """This call started the server."""

    @property
    def running(self) -> bool:
        return self.url is not None


def up(folder: Path = Path(".sample"), *, volume: Path | None = None, seed: int = 1) -> SampleState:
    """Writes and serves the sample; a second call finds both and does nothing.

    `volume` is published instead of the drawn hemibrain. What was there before stays until the new is whole. Raises
    Mismatch for a folder that is not ours, Malformed or Unsupported for a volume that cannot be used, Unsupported
    without the libraries of the FTP server and of GraphQL, Unavailable if the server does not start.
    """
    require_ftp_server()
    require_graphql()
    folder = folder.absolute()
    _claim(folder)
    with _locked(folder):
        _write(folder / ".gitignore", "*\n")
        wrote, facts = _write_origin(folder, Request(seed, volume))
        server = _answering(folder)
        started = server is None
        if server is None:
            server = _start(folder)
        _write_specs(folder, facts, server.addresses)
        _write_dagster_home(folder / "dagster")
    return replace(status(folder), wrote=wrote, started=started)


def down(folder: Path = Path(".sample")) -> SampleState:
    """Stops the folder's server if it runs; the files and the port number are kept. No other process is touched."""
    folder = folder.absolute()
    if not folder.is_dir():
        return SampleState(folder)
    with _locked(folder):
        if (server := _answering(folder)) is not None:
            _stop(folder, server)
            _write_json(folder / RECORD, {"port": server.port, "ftp_port": server.ftp_port})
    return status(folder)


def status(folder: Path = Path(".sample")) -> SampleState:
    """What is there and whether its server answers; changes nothing."""
    folder = folder.absolute()
    names = tuple(name for name in PUBLISHERS if (folder / "datasets" / f"{name}.yaml").is_file())
    server = _answering(folder)
    if server is None:
        return SampleState(folder, names)
    where = server.addresses
    return SampleState(folder, names, where.http, server.pid, where.ftp, server.requests, server.bytes_sent)


def env_exports(folder: Path = Path(".sample")) -> str:
    """Lines for `eval "$(em-assets sample env)"`: they switch a shell to the sample, its store and its history."""
    folder = folder.absolute()
    if not (folder / "datasets").is_dir():
        raise Mismatch(f"there is no sample at {folder}; run `em-assets sample up` first.")
    places = {"EM_ASSETS_DATASETS": "datasets", "EM_ASSETS_ROOT": "data", "DAGSTER_HOME": "dagster"}
    return "".join(f"export {name}={shlex.quote(str(folder / place))}\n" for name, place in places.items())


def dagster_yaml(home: Path) -> dict[str, Any]:
    """The repository's dagster.yaml with roots in `home` (absolute: DAGSTER_HOME holds from any folder)."""
    purge_days = {"skipped": 1, "success": 30, "failure": 30, "started": 30}
    return {
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
        "storage": {"sqlite": {"base_dir": str(home / "storage")}},
        "local_artifact_storage": {
            "module": "dagster._core.storage.root",
            "class": "LocalArtifactStorage",
            "config": {"base_dir": str(home)},
        },
        "compute_logs": {
            "module": "dagster._core.storage.local_compute_log_manager",
            "class": "LocalComputeLogManager",
            "config": {"base_dir": str(home / "compute_logs")},
        },
        "concurrency": {"runs": {"max_concurrent_runs": 2}},
        "run_monitoring": {"enabled": True},
        "retention": {
            "schedule": {"purge_after_days": 30},
            "sensor": {"purge_after_days": dict(purge_days)},
            "auto_materialize": {"purge_after_days": dict(purge_days)},
        },
    }


def _claim(folder: Path) -> None:
    """Makes the folder ours, or refuses one that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise Mismatch(f"{folder} is not a folder; name another one for the sample.")
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if names and LOCK not in names:
        raise Mismatch(f"{folder} was not made by `em-assets sample up` and is not empty; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK).touch()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One `up` or `down` at a time; the lock of a killed one is free."""
    import filelock

    try:
        with filelock.FileLock(folder / LOCK, timeout=LOCK_SECONDS):
            yield
    except filelock.Timeout:
        raise Unavailable(f"another `em-assets sample` has held {folder / LOCK} for {LOCK_SECONDS:.0f} s.") from None


# What is served


def _write_origin(folder: Path, request: Request) -> tuple[bool, dict[str, dict[str, Any]]]:
    """(whether anything was written, facts by dataset). `origin/` is replaced whole or stays as it was."""
    origin = folder / "origin"
    digest = request.digest()
    made = _read_json(origin / MADE)
    if made.get("digest") == digest and made.get("files") == _stats(origin):
        return False, made["facts"]

    for leftover in [*folder.glob("origin.new-*"), *folder.glob("origin.old-*")]:
        shutil.rmtree(leftover)
    new = Path(tempfile.mkdtemp(prefix="origin.new-", dir=folder))
    try:
        facts = {name: publisher.write(new, request) for name, publisher in PUBLISHERS.items()}
        _write_json(new / MADE, {"digest": digest, "facts": facts, "files": _stats(new)})
    except BaseException:
        shutil.rmtree(new)
        raise
    old = new.with_name(new.name.replace("origin.new-", "origin.old-"))
    if origin.exists():
        origin.rename(old)
    new.rename(origin)
    shutil.rmtree(old, ignore_errors=True)
    return True, facts


def _stats(origin: Path) -> dict[str, list[int]]:
    """Size and time of every file, so that one that was deleted or changed is noticed."""
    files = (file for file in sorted(origin.rglob("*")) if file.is_file() and file.name != MADE)
    return {file.relative_to(origin).as_posix(): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _write_specs(folder: Path, facts: dict[str, dict[str, Any]], addresses: Addresses) -> None:
    from em_assets.datasets.loading import load_spec

    (folder / "datasets").mkdir(exist_ok=True)
    for name, publisher in PUBLISHERS.items():
        file = folder / "datasets" / f"{name}.yaml"
        document = publisher.spec(facts[name], addresses)
        _write_yaml(file, "Written by `em-assets sample up`, which overwrites it.", document)
        load_spec(file)


def _write_dagster_home(home: Path) -> None:
    home.mkdir(exist_ok=True)
    comment = "Written by `em-assets sample up`: the repository's dagster.yaml, with this folder as its root."
    _write_yaml(home / "dagster.yaml", comment, dagster_yaml(home))


# The server


@dataclass(frozen=True, slots=True)
class _Server:
    port: int
    ftp_port: int
    pid: int
    requests: int
    bytes_sent: int

    @property
    def addresses(self) -> Addresses:
        return Addresses(http=f"http://127.0.0.1:{self.port}", ftp=f"ftp://127.0.0.1:{self.ftp_port}")


def _answering(folder: Path) -> _Server | None:
    """The folder's server, if the one on the recorded port proves with the recorded token that it is ours.

    The pid is what the server itself says: a number in a file may be anybody's by now.
    """
    record = _read_json(folder / RECORD)
    port, token = record.get("port"), record.get("token")
    if not isinstance(port, int) or not 0 < port < MAX_PORT or not token:
        return None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", IDENTITY_PATH)
        answer = json.loads(connection.getresponse().read(4096))
        ours = isinstance(answer, dict) and answer["token"] == token
        counts = int(answer["requests"]), int(answer["bytes_sent"])
        return _Server(port, int(answer["ftp_port"]), int(answer["pid"]), *counts) if ours else None
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None  # nobody there, or a program that speaks otherwise
    finally:
        connection.close()


def _start(folder: Path) -> _Server:
    """Starts a server that outlives this process, on the ports it had before if they are free."""
    record = _read_json(folder / RECORD)
    port, ftp_port = (_port_or_any(record.get(key)) for key in ("port", "ftp_port"))
    server = _launch(folder, port, ftp_port) or _launch(folder, 0, ftp_port)
    if server is None:
        raise Unavailable(f"the sample's server found no free port on 127.0.0.1; see {folder / LOG}.")
    return server


def _port_or_any(port: Any) -> int:
    return port if isinstance(port, int) and 0 < port < MAX_PORT else 0


def _launch(folder: Path, port: int, ftp_port: int) -> _Server | None:
    """None if the port is taken; if only FTP's is, that moves."""
    token = secrets.token_hex(16)
    command = [sys.executable, "-P", "-m", "em_assets.sample.server", str(folder / "origin"), "--port", str(port)]
    command += ["--ftp-port", str(ftp_port), "--record", str(folder / RECORD), "--token", token]
    search_path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(search_path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _CHILDREN.append(process)
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _read_json(folder / RECORD).get("token") == token and (server := _answering(folder)):
            return server
        time.sleep(0.05)
    if process.poll() == PORT_TAKEN:
        return None
    process.kill()
    process.wait()
    said = (folder / LOG).read_text(errors="replace").strip().splitlines()
    raise Unavailable(
        f"the sample's server did not start ({said[-1] if said else 'it said nothing'}): see {folder / LOG}."
    )


def _stop(folder: Path, server: _Server) -> None:
    os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _answering(folder) is not None:
        if time.monotonic() > deadline:
            os.kill(server.pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    for child in _CHILDREN:
        if child.pid == server.pid:
            child.wait(STOP_SECONDS)


# Small files


def _read_json(file: Path) -> dict[str, Any]:
    """Empty if there is none, or it is not ours to understand."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    _write(file, json.dumps(content, indent=2) + "\n")


def _write_yaml(file: Path, comment: str, content: dict[str, Any]) -> None:
    _write(file, f"# {comment}\n" + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110))


def _write(file: Path, text: str) -> None:
    """Whole or not at all; an unchanged file keeps its time."""
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)
