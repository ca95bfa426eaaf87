"""Serves the origin's files over FTP as ftp.ebi.ac.uk does: anonymous, read only, passive mode, SIZE and REST.

pyftpdlib does the work; it comes with the extra `sample`.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from em_assets.errors import Unsupported
from em_assets.sample.pages import is_hidden

READ_ONLY = "elr"
"""Of pyftpdlib: change folder, list, retrieve."""
POLL_SECONDS = 0.1


def require_ftp_server() -> None:
    """Raises Unsupported if the sample's FTP server cannot be started here."""
    if importlib.util.find_spec("pyftpdlib") is None:
        raise Unsupported(
            "the sample serves FTP with pyftpdlib, which is not installed: pip install 'em_assets[sample]'."
        )


class FtpServer:
    """Serves the files below `folder` on a thread of its own. Use as a context manager."""

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        on_request: Callable[[str], None] = lambda _: None,
        on_sent: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Binds at once (port 0: a free one). Raises OSError if the port is taken.

        `on_request` is told the path of each file asked for, `on_sent` the bytes of each data connection.
        """
        from pyftpdlib.ioloop import IOLoop  # type: ignore[import-untyped]  # published without types
        from pyftpdlib.servers import FTPServer  # type: ignore[import-untyped]  # as above

        _silence()
        self._loop = IOLoop()  # its own: the library's default is one for the whole process
        handler = _handler(folder.resolve(), on_request, on_sent)
        self._server = FTPServer((host, port), handler, ioloop=self._loop)
        self.host, self.port = host, int(self._server.address[1])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"ftp://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._loop.loop(POLL_SECONDS, blocking=False)
        self._server.close_all()


def _silence() -> None:
    """A terminal belongs to the program under test: only what is wrong is logged."""
    logger = logging.getLogger("pyftpdlib")
    logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.WARNING)


def _handler(folder: Path, on_request: Callable[[str], None], on_sent: Callable[[int], None]) -> Any:
    """The class that pyftpdlib makes one of per connection; made here, because the library is imported late."""
    from pyftpdlib.authorizers import DummyAuthorizer  # type: ignore[import-untyped]  # published without types
    from pyftpdlib.filesystems import AbstractedFS  # type: ignore[import-untyped]  # as above
    from pyftpdlib.handlers import DTPHandler, FTPHandler  # type: ignore[import-untyped]  # as above

    class Files(AbstractedFS):  # type: ignore[misc]  # the base has no types
        def listdir(self, path: str) -> list[str]:
            return sorted(name for name in super().listdir(path) if not is_hidden(name))

    class Data(DTPHandler):  # type: ignore[misc]  # as above
        def close(self) -> None:
            """Counts before the library tells the client that the transfer is complete."""
            if not self._closed:
                on_sent(self.tot_bytes_sent)
            super().close()

    class Control(FTPHandler):  # type: ignore[misc]  # as above
        banner = "em-assets-sample"
        abstracted_fs = Files
        dtp_handler = Data
        authorizer = DummyAuthorizer()

        def ftp_RETR(self, file: str) -> Any:  # noqa: N802  # the base class names it so
            on_request(self.fs.fs2ftp(file))
            return super().ftp_RETR(file)

    Control.authorizer.add_anonymous(str(folder), perm=READ_ONLY)
    return Control
