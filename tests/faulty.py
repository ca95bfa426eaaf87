"""An origin server that misbehaves on request: `FaultyServer(folder)` with `fail` set to what goes wrong.

    with FaultyServer(folder) as server:
        server.fail = lambda path, range_header, count: Fault(status=503) if count == 1 else None

Everything else is `OriginServer`: counts, log, ranges.
"""

import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from em_assets.sample.server import OriginHandler, OriginServer, Reply

TRICKLE_SECONDS = 0.02


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one reply. Several may be combined."""

    status: int | None = None
    """Another status with `body` instead of the file: 503, or 200 with an HTML page."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent instead of the right ones: {"Retry-After": "1"}, {"Content-Range": "bytes 0-9/10"}."""
    body: bytes = b""
    ignore_range: bool = False
    """The whole file with 200."""
    cut_after: int | None = None
    """The connection ends after so many bytes of the body; -1: before the first byte of the reply."""
    reset: bool = False
    """It ends with a reset instead of an orderly close."""
    stall_seconds: float = 0
    stall_after: int = 0
    """The stall comes after so many bytes of the body; -1: before the first byte of the reply."""
    flip_bit_at: int | None = None
    """The lowest bit of this byte of the body is wrong."""
    bytes_per_second: float | None = None


class FaultyServer(OriginServer):
    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int = 0, *, token: str = "") -> None:
        super().__init__(folder, host, port, token=token)
        self.fail: Callable[[str, str | None, int], Fault | None] = lambda path, range_header, count: None
        """(path, Range header, how often this path and range were asked for, this time included) -> Fault | None."""
        self.stopping = threading.Event()
        self._asked: Counter[tuple[str, str | None]] = Counter()

    @staticmethod
    def handler_class() -> type[OriginHandler]:
        return FaultyHandler

    def stop(self) -> None:
        self.stopping.set()
        super().stop()

    def fault_of(self, path: str, range_header: str | None) -> Fault | None:
        with self.lock:
            self._asked[path, range_header] += 1
            count = self._asked[path, range_header]
        return self.fail(path, range_header, count)


class FaultyHandler(OriginHandler):
    origin: FaultyServer
    fault: Fault | None = None

    def reply_to(self, path: str) -> Reply:
        self.fault = fault = self.origin.fault_of(path, self.headers.get("Range"))
        if fault is None:
            return super().reply_to(path)
        if fault.ignore_range:
            del self.headers["Range"]
        if fault.status is None:
            reply = super().reply_to(path)
        else:
            reply = Reply(fault.status, {}, fault.body, length=len(fault.body))
        reply.headers |= fault.headers
        return reply

    def send(self, reply: Reply) -> None:
        if self.fault is None:
            super().send(reply)
            return
        fault, body = self.fault, self.body_of(reply)
        stop = len(body) if fault.cut_after is None else min(fault.cut_after, len(body))
        if fault.stall_after < 0:
            self.pause(fault.stall_seconds)
        if stop >= 0:
            self.send_headers(reply)
            middle = min(max(fault.stall_after, 0), stop)
            self.send_slowly(body[:middle], fault.bytes_per_second)
            if fault.stall_after >= 0:
                self.pause(fault.stall_seconds)
            self.send_slowly(body[middle:stop], fault.bytes_per_second)
        if fault.cut_after is not None:
            self.cut(reset=fault.reset)

    def body_of(self, reply: Reply) -> bytearray:
        if self.command == "HEAD":
            return bytearray()
        whole = reply.body if reply.file is None else reply.file.read_bytes()
        body = bytearray(whole if reply.file is None else whole[reply.start : reply.start + reply.length])
        if self.fault.flip_bit_at is not None:
            body[self.fault.flip_bit_at] ^= 1
        return body

    def send_slowly(self, data: bytearray, bytes_per_second: float | None) -> None:
        step = len(data) if bytes_per_second is None else max(1, int(bytes_per_second * TRICKLE_SECONDS))
        for start in range(0, len(data), max(step, 1)):
            self.count(len(data[start : start + step]))
            self.connection.sendall(data[start : start + step])
            if bytes_per_second is not None:
                self.pause(TRICKLE_SECONDS)

    def pause(self, seconds: float) -> None:
        """Ends early when the server is stopped, so that no test waits for its own fault."""
        self.origin.stopping.wait(seconds)

    def cut(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            if not reset:
                self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
