"""A file server that behaves like the publishers' servers: HTTP/1.1, Range, ETag, CORS, gzip-encoded `info`, GraphQL.

Dot files in a folder give it a page of its own or make it an S3 bucket (`pages.py`, `buckets.py`). In a test:
`with OriginServer(folder) as server: server.url`. In the background, with FTP beside it (`ftp.py`):
`python -m em_assets.sample.server FOLDER --record FILE --ftp-port 0` (`origin.py` starts it so).
"""

from __future__ import annotations

import argparse
import email.utils
import gzip
import json
import os
import re
import signal
import socket
import socketserver
import sys
import threading
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import unquote, urlsplit

from em_assets.sample import buckets, pages

IDENTITY_PATH = "/.well-known/em-assets-sample"
"""Answers who is listening, so that nobody takes another program on the same port for this one; not counted."""
GZIPPED_NAMES = frozenset({"info"})
"""Files the real bucket stores gzip-encoded and sends so whether or not the client asked."""
IDLE_SECONDS = 120
RECORD_SECONDS = 2.0
"""How often a background server looks whether its record still stands: whoever deletes the folder stops it, too."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PORT_TAKEN = 3
"""Exit code."""
LOG_ENTRIES = 100_000
"""Requests `log` keeps, so that a long-running server does not grow."""

MAX_QUERY_BYTES = 1 << 20
"""Of a GraphQL query."""
METHODS = "GET, HEAD, OPTIONS, POST"

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Accept-Ranges, Content-Encoding, Content-Length, Content-Range, ETag",
}
PREFLIGHT = {
    "Access-Control-Allow-Methods": METHODS,
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Max-Age": "3600",
}

Headers = dict[str, str]


@dataclass
class Reply:
    """What is about to be sent. The body is bytes or a part of a file."""

    status: int
    headers: Headers = field(default_factory=dict)
    body: bytes = b""
    file: Path | None = None
    start: int = 0
    length: int = 0

    @classmethod
    def text(cls, status: HTTPStatus, text: str = "", **headers: str) -> Reply:
        body = f"{text or status.phrase}\n".encode()
        return cls(status, {"Content-Type": "text/plain; charset=utf-8", **headers}, body, length=len(body))


class OriginServer:
    """Serves the files below `folder` on a thread per connection. Use as a context manager, or `start` and `stop`."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int = 0, *, token: str = "") -> None:
        """Binds at once (port 0: a free one). Raises OSError if the port is taken."""
        self.folder = folder.resolve()
        self.token = token
        self.requests = 0
        self.bytes_sent = 0
        """Bytes of bodies, as far as they were really sent."""
        self.ftp_port: int | None = None
        """Of the FTP server that runs beside this one, if one does; its requests and bytes are counted here."""
        self.log: deque[tuple[str, str, str | None]] = deque(maxlen=LOG_ENTRIES)
        """(method, path, Range header) of each request, in order of arrival."""
        self.lock = threading.Lock()
        self._http = _Server((host, port), partial(self.handler_class(), self))
        self.host, self.port = host, int(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @staticmethod
    def handler_class() -> type[OriginHandler]:
        return OriginHandler

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stops listening and cuts the open connections, as the death of a server does."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()
        self._http.cut_connections()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def find(self, path: str, query: str = "") -> Path | None:
        """The file a URL names, None if there is none below the folder. A folder (it ends in `/`) may have a page."""
        parts = unquote(path).removeprefix("/").split("/")
        is_folder = parts[-1] == "" and len(parts) > 1
        if any(_is_odd(part) for part in (parts[:-1] if is_folder else parts)):
            return None
        place = self.folder.joinpath(*parts)
        file = pages.page_of(place, query) if is_folder else place
        inside = file and os.path.isfile(file) and file.resolve().is_relative_to(self.folder)  # noqa: PTH113  # never raises
        return file if inside else None

    def bucket(self, path: str) -> tuple[Path | None, str]:
        """(folder, key) of the S3 bucket a URL path lies in; (None, "") outside of buckets."""
        name, _, key = unquote(path).removeprefix("/").partition("/")
        if _is_odd(name) or not os.path.isfile(self.folder / name / pages.BUCKET):  # noqa: PTH113  # never raises
            return None, ""
        return self.folder / name, key

    def count_request(self, method: str, path: str, range_header: str | None) -> None:
        with self.lock:
            self.requests += 1
            self.log.append((method, path, range_header))

    def count_sent(self, size_bytes: int) -> None:
        with self.lock:
            self.bytes_sent += size_bytes


def _is_odd(part: str) -> bool:
    """Whether a part of a path leads elsewhere or to what is not served."""
    return part in {"", ".", ".."} or "\0" in part or "\\" in part or pages.is_hidden(part)


class _Server(socketserver.ThreadingTCPServer):
    """Not HTTPServer, which looks the host's name up when it binds: that can take seconds."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def cut_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed by the other side meanwhile
                continue


class OriginHandler(BaseHTTPRequestHandler):
    """One connection. `reply_to` decides, `send` sends; a test's faulty server overrides `send`."""

    protocol_version = "HTTP/1.1"
    server_version = "em-assets-sample"
    sys_version = ""
    disable_nagle_algorithm = True  # header and body are two writes: without this each reply may wait 40 ms
    timeout = IDLE_SECONDS

    def __init__(self, origin: OriginServer, *args: Any) -> None:
        self.origin = origin
        self.posted = b""
        super().__init__(*args)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path != IDENTITY_PATH:
            self.origin.count_request(self.command, path, self.headers.get("Range"))
        self.drop_request_body()
        self.send(self.reply_to(path))

    do_HEAD = do_OPTIONS = do_GET  # noqa: N815  # the base class looks for these names

    def do_POST(self) -> None:
        """GraphQL: what is posted is read before anything is decided, so that the connection can be used again."""
        path = urlsplit(self.path).path
        self.origin.count_request(self.command, path, None)
        length = self.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) <= MAX_QUERY_BYTES:
            self.posted = self.rfile.read(int(length))
        else:
            self.posted = b""
            self.close_connection = True
        self.send(self.reply_to(path))

    def drop_request_body(self) -> None:
        """Nothing here takes one: if it comes anyway, the connection cannot be used again."""
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True

    def reply_to(self, path: str) -> Reply:
        if self.command == "OPTIONS":
            return Reply(HTTPStatus.NO_CONTENT, {**CORS, **PREFLIGHT, "Allow": METHODS})
        if self.command == "POST":
            return self.reply_to_query(path)
        if path == IDENTITY_PATH and self.origin.token:
            return self.identity()
        return self.reply_from_files(path)

    def reply_from_files(self, path: str) -> Reply:
        query = urlsplit(self.path).query
        bucket, key = self.origin.bucket(path)
        if bucket is not None and not key and buckets.is_listing(query):
            return _xml(*buckets.listing(bucket, query, etag_of))
        file = self.origin.find(path, query)
        if file is not None:
            return self.reply_with(file)
        if bucket is not None:
            text = buckets.error("NoSuchKey", "The specified key does not exist.", key)
            return _xml(HTTPStatus.NOT_FOUND, text)
        return Reply.text(HTTPStatus.NOT_FOUND, f"there is no file {path}", **CORS)

    def reply_to_query(self, path: str) -> Reply:
        from em_assets.sample import graphql  # what answers it is loaded by whoever asks

        if not path.endswith(graphql.SUFFIX):
            return Reply.text(HTTPStatus.METHOD_NOT_ALLOWED, **CORS, Allow="GET, HEAD, OPTIONS")
        host_url = f"http://{self.headers['Host']}" if self.headers.get("Host") else self.origin.url
        answer = graphql.answer(self.origin.folder, path, urlsplit(self.path).query, self.posted, host_url)
        headers = {**CORS, "Content-Type": answer.content_type}
        return Reply(answer.status, headers, answer.body, length=len(answer.body))

    def identity(self) -> Reply:
        origin = self.origin
        counts = {"requests": origin.requests, "bytes_sent": origin.bytes_sent}
        who = {"token": origin.token, "pid": os.getpid(), "ftp_port": origin.ftp_port}
        body = json.dumps(who | counts).encode()
        return Reply(HTTPStatus.OK, {"Content-Type": "application/json"}, body, length=len(body))

    def reply_with(self, file: Path) -> Reply:
        try:
            stat = file.stat()
            gzipped = gzip.compress(file.read_bytes(), mtime=0) if file.name in GZIPPED_NAMES else None
        except OSError:  # replaced since it was found
            return Reply.text(HTTPStatus.NOT_FOUND, "this file has just gone", **CORS)
        size = stat.st_size if gzipped is None else len(gzipped)
        etag = etag_of(stat, size)
        modified = email.utils.formatdate(stat.st_mtime, usegmt=True)
        headers = {**CORS, **_content_headers(file), "ETag": etag, "Last-Modified": modified, "Accept-Ranges": "bytes"}
        if self.is_unchanged(etag, stat.st_mtime):
            return Reply(HTTPStatus.NOT_MODIFIED, headers)
        if (wanted := self.headers.get("If-Match")) and not _matches(wanted, etag):
            return Reply.text(HTTPStatus.PRECONDITION_FAILED, **CORS)

        part = self.wanted_range(size, etag, modified)
        if part is None:
            reply = Reply(HTTPStatus.OK, headers, start=0, length=size)
        elif part == (0, 0):
            return Reply.text(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, **CORS, **{"Content-Range": f"bytes */{size}"}
            )
        else:
            headers["Content-Range"] = f"bytes {part[0]}-{part[1] - 1}/{size}"
            reply = Reply(HTTPStatus.PARTIAL_CONTENT, headers, start=part[0], length=part[1] - part[0])
        if gzipped is None:
            reply.file = file
        else:
            reply.body = gzipped[reply.start : reply.start + reply.length]
        return reply

    def is_unchanged(self, etag: str, modified_at: float) -> bool:
        """Whether the client's copy is current (RFC 9110, 13.2.2: If-None-Match goes before If-Modified-Since)."""
        if known := self.headers.get("If-None-Match"):
            return _matches(known, etag)
        since = _http_date(self.headers.get("If-Modified-Since"))
        return since is not None and int(modified_at) <= since

    def wanted_range(self, size: int, etag: str, modified: str) -> tuple[int, int] | None:
        """Half-open range to send; None for the whole file, (0, 0) if there is no such part (RFC 9110, section 14)."""
        condition = self.headers.get("If-Range")
        if condition is not None and condition.strip() not in {etag, modified}:
            return None
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").replace(" ", ""), re.ASCII)
        if match is None or match.group(1) == match.group(2) == "":
            return None  # none, several, or one that is not understood: the whole file is a lawful answer
        first, last = match.groups()
        if first == "":
            start, stop = max(size - int(last), 0), size
        else:
            start, stop = int(first), min(int(last) + 1, size) if last else size
            if last and int(last) < int(first):
                return None
        return (start, stop) if start < stop else (0, 0)

    def send(self, reply: Reply) -> None:
        self.send_headers(reply)
        if self.command != "HEAD":
            self.send_body(reply)

    def send_headers(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            self.send_header("Content-Length", str(reply.length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def send_body(self, reply: Reply) -> None:
        if reply.file is None:
            if urlsplit(self.path).path != IDENTITY_PATH:
                self.count(len(reply.body))
            self.wfile.write(reply.body)
            return
        with reply.file.open("rb") as file:
            self.send_part(file, reply.start, reply.length)

    def send_part(self, file: BinaryIO, start: int, length: int) -> None:
        """Counts first, so that a client that has its last byte finds it counted; then takes back what was not sent."""
        if not length:
            return
        self.count(length)
        file.seek(start)
        try:
            self.connection.sendfile(file, start, length)
        finally:
            missing = start + length - file.tell()
            if missing:  # the client left, or the file shrank: then it must not wait for the rest
                self.count(-missing)
                self.close_connection = True

    def count(self, size: int) -> None:
        self.origin.count_sent(size)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it so
        """Silent: `origin.log` has the requests, and a terminal belongs to the program under test."""


def _content_headers(file: Path) -> Headers:
    if file.name in GZIPPED_NAMES:
        return {"Content-Type": "application/json", "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    if pages.is_hidden(file.name):
        return {"Content-Type": pages.CONTENT_TYPES[file.suffix], **pages.headers_of(file)}
    return {"Content-Type": pages.CONTENT_TYPES.get(file.suffix, "application/octet-stream")}


def etag_of(stat: os.stat_result, size_bytes: int | None = None) -> str:
    """Changes with the file; `size_bytes` is of what is sent, where that is not the file as it is."""
    return f'"{stat.st_mtime_ns:x}-{stat.st_ino:x}-{stat.st_size if size_bytes is None else size_bytes:x}"'


def _xml(status: HTTPStatus, text: str) -> Reply:
    body = text.encode()
    return Reply(status, {**CORS, "Content-Type": buckets.CONTENT_TYPE}, body, length=len(body))


def _matches(tags: str, etag: str) -> bool:
    return etag in {tag.strip().removeprefix("W/") for tag in tags.split(",")} or tags.strip() == "*"


def _http_date(text: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except ValueError:  # a date that is none is ignored (RFC 9110, 13.1.3)
        return None


def main(arguments: list[str] | None = None) -> int:
    """Serves until SIGTERM, SIGINT, or its record is gone or another server's. Exit code 3: the port is taken."""
    parser = argparse.ArgumentParser(prog="python -m em_assets.sample.server", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--ftp-port", type=int, help="serve FTP, too, on this port or a free one; default: no FTP")
    parser.add_argument(
        "--record", type=Path, help="JSON file to write once it listens: pid, ports, url, token, started"
    )
    parser.add_argument("--token", default="", help=f"what {IDENTITY_PATH} answers")
    options = parser.parse_args(arguments)
    try:
        server = OriginServer(options.folder, port=options.port, token=options.token)
    except OSError as error:
        print(f"127.0.0.1:{options.port} cannot be listened on: {error.strerror}", file=sys.stderr)
        return PORT_TAKEN
    for number in STOP_SIGNALS:
        signal.signal(number, _leave)
    # Threads inherit the mask: a signal that reached one of them would not wake the main thread from its sleep.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    with server, _ftp_beside(server, options.ftp_port):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if options.record is not None:
            _write_record(options.record, server)
        print(f"serving {server.folder} at {server.url}", flush=True)
        while options.record is None or _record_is_mine(options.record, server):
            time.sleep(RECORD_SECONDS)
        print(f"{options.record} is gone or another server's: nobody would ever stop this one", flush=True)
    return 0


def _ftp_beside(server: OriginServer, port: int | None) -> AbstractContextManager[object]:
    """An FTP server of the same files whose requests and bytes the HTTP server counts; nothing if no port is given."""
    if port is None:
        return nullcontext()
    from em_assets.sample.ftp import FtpServer

    def listen(on: int) -> FtpServer:
        return FtpServer(server.folder, port=on, on_request=on_request, on_sent=server.count_sent)

    def on_request(path: str) -> None:
        server.count_request("RETR", path, None)

    try:
        ftp = listen(port)
    except OSError:  # taken meanwhile
        ftp = listen(0)
    server.ftp_port = ftp.port
    return ftp


def _leave(*_: object) -> None:
    """Ends the sleep above at once (an Event would not always: its lock may be held when the signal comes)."""
    raise SystemExit(0)


def _record_is_mine(file: Path, server: OriginServer) -> bool:
    try:
        return bool(json.loads(file.read_text())["token"] == server.token)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_record(file: Path, server: OriginServer) -> None:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ports = {"port": server.port, "ftp_port": server.ftp_port}
    record = {"pid": os.getpid(), **ports, "url": server.url, "token": server.token, "started": started}
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, file)


if __name__ == "__main__":
    sys.exit(main())
