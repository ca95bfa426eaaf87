"""What the tests of whole-file downloads share: data, a server that refuses a crowd, downloads in other processes."""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

from em_assets.fetch import _partial, _transfer, attempts
from em_assets.fetch.files import Downloader, Receipt
from em_assets.fetch.http import HttpClient
from em_assets.settings import Settings
from em_assets.volume import RemoteFile
from faulty import FaultyHandler, FaultyServer

DATA = bytes(itertools.islice(itertools.cycle(range(251)), 3_000_000))
SHA256 = hashlib.sha256(DATA).hexdigest()
MD5 = f"md5:{hashlib.md5(DATA).hexdigest()}"
NEW = bytes(reversed(DATA))
"""Another version of the same size."""
QUICK = {"unreachable_seconds": 1.0, "retry_seconds": 3.0, "connect_seconds": 1.0, "read_seconds": 0.5}


def downloader(**changes) -> Downloader:
    settings = Settings(**{**QUICK, **changes})
    return Downloader(HttpClient(settings), settings)


def fetch(url: str, target: Path, *, size_bytes: int | None = None, checksum: str | None = None, **options) -> Receipt:
    """One download with a client of its own; `settings` and the options of `Downloader.download`."""
    file = RemoteFile(url, "data.bin", size_bytes, checksum)
    return downloader(**options.pop("settings", {})).download(file, target, **options)


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


class CrowdedServer(FaultyServer):
    """Turns away whoever comes while `most` replies are under way, with 503 and no word of when to come again."""

    most = 2

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.under_way = self.most_seen = self.refused = 0

    @staticmethod
    def handler_class():
        return CrowdedHandler


class CrowdedHandler(FaultyHandler):
    origin: CrowdedServer
    is_let_in = False

    def reply_to(self, path):
        with self.origin.lock:
            self.is_let_in = self.origin.under_way < self.origin.most
            self.origin.under_way += self.is_let_in
            self.origin.refused += not self.is_let_in
            self.origin.most_seen = max(self.origin.most_seen, self.origin.under_way)
        reply = super().reply_to(path)
        if not self.is_let_in:
            reply.status, reply.headers, reply.file, reply.body, reply.length = 503, {}, None, b"", 0
            self.fault = None
        return reply

    def send(self, reply):
        try:
            super().send(reply)
        finally:
            with self.origin.lock:
                self.origin.under_way -= self.is_let_in


CHILD = textwrap.dedent("""
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import downloading
    downloading.quicken()
    url, target, options = sys.argv[2], Path(sys.argv[3]), eval(sys.argv[4])
    print(downloading.fetch(url, target, **options).sha256)
""")
"""Its one expression to evaluate is ours."""


def quicken() -> None:
    """Back-off, journal and look-out in the rhythm of tests."""
    attempts.BACKOFF_SECONDS = 0.02
    _transfer.SAVE_SECONDS = 0.02
    _partial.BEAT_SECONDS = 0.1


def start_child(url: str, target: Path, **options) -> subprocess.Popen:
    """A whole interpreter that downloads, as a run is one."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(Path(__file__).parent), url, str(target), repr(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _download_each(url: str, options: dict, pipe, lock_is_a_lie: bool) -> None:
    quicken()
    if lock_is_a_lie:
        _partial.fcntl.flock = lambda *_: None
    pipe.send("ready")
    while target := pipe.recv():
        pipe.send(fetch(url, Path(target), **options).sha256)


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["downloading"])


@contextlib.contextmanager
def _light_start():
    """Keeps a new process from importing what is `__main__` here (pytest), lets the fork server find this folder."""
    main, path = sys.modules["__main__"], os.environ.get("PYTHONPATH")
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), path]))
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        os.environ.pop("PYTHONPATH")
        if path is not None:
            os.environ["PYTHONPATH"] = path


class Process:
    """Downloads in a process of its own, one after the other, each begun by `go`."""

    def __init__(self, url: str, *, lock_is_a_lie: bool = False, **options) -> None:
        self.pipe, theirs = _FORKS.Pipe()
        self.process = _FORKS.Process(target=_download_each, args=(url, options, theirs, lock_is_a_lie), daemon=True)
        with _light_start():
            self.process.start()
        theirs.close()
        self.pipe.recv()

    def go(self, target: Path) -> None:
        self.pipe.send(str(target))

    def sha256(self) -> str:
        """Of what it downloaded."""
        return self.pipe.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
