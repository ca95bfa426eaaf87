"""What one connection may take: a place among all, time and bytes for a request's head, time to accept an answer.

Uvicorn has none of these limits (it counts connections only when a head is complete), and neither has the ASGI
application, which is not called before. Closing a connection would not always do: what was not taken yet, and the
descriptor, would be kept until the client goes by itself, so it is cut.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from em_assets.errors import Unsupported
from em_assets.serve.limits import HEAD_BYTES, PIPELINED_REQUESTS, Limits

DROP_UNSENT = struct.pack("ii", 1, 0)
"""SO_LINGER: the kernel does not keep it either."""
FILES_PER_CONNECTION = 2
"""As many for the rest of the process, which opens volumes."""


def bounded(protocol: type[asyncio.Protocol], limits: Limits) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, httptools' or h11's, whichever is installed, held to the limits."""
    return type("Bounded", (_Bounds, protocol), {"limits": limits})


class _Bounds(asyncio.Protocol):
    """Goes before either of uvicorn's protocols; the fields without a value are theirs."""

    limits: Limits
    transport: asyncio.Transport
    connections: set[Any]
    app: Any
    cycle: Any
    """The request that was read last; None before the first one."""
    _late: asyncio.TimerHandle | None = None
    """Runs while a request is awaited of which something has come, or the first one of all."""
    _unsent: asyncio.TimerHandle | None = None
    """Runs while something that was sent has not been taken."""
    _head_bytes: int | None = None
    """Of the head that is coming in, without the piece it began in; None between heads. With httptools alone: h11 has
    such a limit."""
    _has_begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=0)  # else nobody is told of the last bytes that are not taken
        others = len(self.connections) - 1
        if others >= self.limits.connections + self.limits.spare_connections:
            self._abort()
            return
        if others >= self.limits.connections:
            self.app = come_again
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        self._has_begun, seen = True, self._head_bytes
        super().data_received(data)
        if self.transport.is_closing():
            return
        if seen is not None and self._head_bytes is not None:
            self._head_bytes += len(data)
        if self._head_bytes is not None and self._head_bytes > HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head has more than {HEAD_BYTES} bytes.")
        elif len(getattr(self, "pipeline", ())) > PIPELINED_REQUESTS:
            self._abort()
        elif self._is_answering():
            self._late = _cancel(self._late)
        elif self._late is None:
            self._expect_request()

    def on_message_begin(self) -> None:
        super().on_message_begin()  # type: ignore[misc]  # httptools calls it, and the protocol for it has it
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        super().on_headers_complete()  # type: ignore[misc]  # as above

    def send_400_response(self, msg: str) -> None:
        """Of uvicorn, about what is no HTTP; its own is written even in the midst of an answer."""
        sentence = f"this is no request of HTTP/1.1 with a head of at most {HEAD_BYTES} bytes."
        self._refuse(HTTPStatus.BAD_REQUEST, sentence)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = asyncio.get_running_loop().call_later(self.limits.seconds, self._abort)

    def resume_writing(self) -> None:
        self._unsent = _cancel(self._unsent)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._late, self._unsent = _cancel(self._late), _cancel(self._unsent)
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        self._late = asyncio.get_running_loop().call_later(self.limits.head_seconds, self._give_up)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _give_up(self) -> None:
        if self._has_begun:
            seconds = self.limits.head_seconds
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request was not sent within {seconds:g} s.")
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        if self._is_answering():
            if self.cycle.response_started or getattr(self, "pipeline", ()):  # an answer would be garbled
                self._abort()
                return
            self.cycle.disconnected = True  # its own answer is not sent after this one
        self.transport.write(_reply(status, sentence))
        self.transport.close()

    def _abort(self) -> None:
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DROP_UNSENT)
        self.transport.abort()


async def come_again(scope: Scope, receive: Receive, send: Send) -> None:
    """The application for a connection that found no place."""
    sentence = "as many connections are open as this service has at once; come again."
    headers = {"retry-after": "1", "connection": "close"}
    await JSONResponse({"error": sentence}, 503, headers)(scope, receive, send)


def allow_files(limits: Limits) -> None:
    """Lets this process open as many files as that many connections take.

    Raises Unsupported if the system does not allow it: refusing connections works only as long as they can be opened.
    """
    needed = FILES_PER_CONNECTION * (limits.connections + limits.spare_connections)
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or needed <= allowed:
        return
    if most != resource.RLIM_INFINITY and needed > most:
        raise Unsupported(
            f"{limits.connections} connections need {needed} open files, and this process may have {most}; allow more "
            "with `ulimit -Hn`, or fewer requests at once with --max-requests."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Nothing is left of it."""
    if timer is not None:
        timer.cancel()
    return None


def _reply(status: HTTPStatus, sentence: str) -> bytes:
    body = json.dumps({"error": sentence}).encode()
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
