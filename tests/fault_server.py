"""A server that sends exactly the bytes a test gives it: replies that no HTTP library can be made to send."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Self

Script = Callable[[int, str, dict[str, str]], bytes | Iterable[bytes]]
"""(number of the request from 1, path, headers with lower-case names) -> what to send before the connection closes."""


class RawServer:
    """`with RawServer(script) as server: server.url`. One reply per connection."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                data = connection.recv(65536)
                if not data:
                    return
                head += data
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            path = first.split(" ")[1]
            with self._lock:
                self.requests.append((path, headers))
                number = len(self.requests)
            sent = self.script(number, path, headers)
            for part in [sent] if isinstance(sent, bytes) else sent:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)


def reply(status: str, body: bytes = b"", **headers: str) -> bytes:
    """A whole reply; underscores in header names are hyphens. Content-Length is not added by itself."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body
