"""The service under bad clients: too slow, too many, too long, or not speaking HTTP at all. Over real sockets, with
each of the parsers and event loops that may be installed."""

import contextlib
import http.client
import importlib.util
import io
import json
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time

import pytest

from em_assets.serve.limits import HEAD_BYTES, PIPELINED_REQUESTS, Limits
from test_serve import BLOCK, QUERY, ask, metric, serving, started, stored, wait_until  # noqa: F401  # a fixture

uvicorn = pytest.importorskip("uvicorn", reason="uvicorn (extra `view`) is not installed")

HEAD_SECONDS = 0.4
LATE_SECONDS = 3.0
"""After which a client of these tests says that the server hangs."""
LAST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module", params=["httptools", "h11"])
def parser(request):
    """Uvicorn's protocol for each parser; httptools with the fastest event loop, h11 with Python's own."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed: uvicorn takes it where it is")
    module = importlib.import_module(f"uvicorn.protocols.http.{request.param}_impl")
    with pytest.MonkeyPatch.context() as patch:
        name = {"httptools": "HttpToolsProtocol", "h11": "H11Protocol"}[request.param]
        patch.setattr("uvicorn.protocols.http.auto.AutoHTTPProtocol", getattr(module, name))
        if request.param == "h11":
            patch.setitem(uvicorn.config.LOOP_FACTORIES, "auto", "uvicorn.loops.asyncio:asyncio_loop_factory")
        yield request.param


@pytest.fixture(scope="module")
def port(stored, parser):  # noqa: F811  # the fixture
    with serving(stored, Limits(head_seconds=HEAD_SECONDS)) as number:
        yield number


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(LATE_SECONDS)
    return connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes or cuts the connection. TimeoutError if it does neither."""
    got = b""
    try:
        while piece := connection.recv(2**16):
            got += piece
    except ConnectionResetError:
        pass
    return got


def exchange(port: int, data: bytes) -> bytes:
    with connect(port) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
            connection.sendall(data)
        return rest(connection)


def answers(got: bytes) -> list[int]:
    """The statuses of one or more answers."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", got)]


# Too slow

SLOW = {
    "nothing": (b"", b"", []),
    "nothing more of a line": (b"GET /hea", b"", [408]),
    "a head, byte by byte": (HEALTH[:-4], b"a", [408]),
    "a second head, byte by byte": (HEALTH + b"GET /healthz?", b"a", [200, 408]),
    "a body, byte by byte": (
        b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n",
        b"a",
        [405, 408],
    ),
}


@pytest.mark.parametrize(("at_once", "then", "statuses"), SLOW.values(), ids=SLOW)
def test_who_sends_too_slowly_is_given_up(port, at_once, then, statuses):
    """A request that does not come in time ends the connection, however often something of it comes."""
    with connect(port) as connection:
        connection.sendall(at_once)
        got, taken = trickled(connection, then)
    assert HEAD_SECONDS * 0.9 < taken < LATE_SECONDS
    assert answers(got) == statuses
    if 408 in statuses:
        assert "0.4 s" in json.loads(got[got.rindex(b"{") :])["error"]


def test_empty_lines_are_no_request(port, parser):
    """Sent for ever instead of a second request, they do not keep the connection either."""
    with connect(port) as connection:
        connection.sendall(HEALTH)
        got, taken = trickled(connection, b"\r\n")
    assert answers(got) == [200, 408 if parser == "httptools" else 400]  # h11 takes none at all
    assert taken < LATE_SECONDS


def trickled(connection: socket.socket, piece: bytes) -> tuple[bytes, float]:
    """What is answered, and the seconds until the connection is ended, to whoever sends a little ever again."""
    started_at, got = time.monotonic(), b""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() - started_at < LATE_SECONDS:
            if not select.select([connection], [], [], HEAD_SECONDS / 10)[0]:
                connection.sendall(piece)
            elif news := connection.recv(2**16):
                got += news
            else:
                break
    return got, time.monotonic() - started_at


def test_who_is_merely_slow_is_answered(port):
    """A head in pieces, a pause between two requests, and an answer that goes on: none of them is late."""
    with connect(port) as connection, connect(port) as page:
        page.sendall(b"GET /events/cell HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answers(page.recv(4096)) == [200]
        for _ in range(2):
            for piece in (HEALTH[:9], HEALTH[9:30], HEALTH[30:]):
                connection.sendall(piece)
                time.sleep(HEAD_SECONDS / 8)
            assert answers(connection.recv(4096)) == [200]
            time.sleep(HEAD_SECONDS * 1.5)
        while has_news(page):
            assert page.recv(4096), "the open answer was ended"


def test_the_last_bytes_have_to_be_taken_as_well(stored, parser, monkeypatch):  # noqa: F811  # the fixture
    """A client that leaves so little that uvicorn would go on is cut off, too: nothing would ever end it."""
    from em_assets.serve.connections import _Bounds

    real = _Bounds.connection_made

    def connection_made(self, transport):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        real(self, transport)

    monkeypatch.setattr(_Bounds, "connection_made", connection_made)
    with serving(stored, Limits(seconds=1)) as port, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", port))
        path = f"{BLOCK}?start=0,0,0&shape=16,32,32&format=raw"  # 32 KiB, half of what uvicorn takes for little
        deaf.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        cut = select.poll()
        cut.register(deaf, 0)  # reset, that is; an end after the last byte would not be told
        wait_until(lambda: cut.poll(0))


def test_slow_clients_do_not_keep_it_from_ending(stored):  # noqa: F811  # the fixture
    """SIGTERM ends it with 0 while clients are connected that sent nothing, or half of a head, or do not read."""
    with started(stored, "limits=Limits(seconds=1)") as (process, port):
        clients = [connect(port) for _ in range(3)]
        clients[1].sendall(HEALTH[:20])
        clients[2].sendall(f"GET {BLOCK}?start=-90,-90,-90&shape=255&pad=constant HTTP/1.1\r\n".encode())
        clients[2].sendall(b"Host: localhost\r\n\r\n")
        assert clients[2].recv(1)
        sent_at = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - sent_at < 5
        assert process.stderr.read() == ""
        for client in clients:
            client.close()


# Too many


def test_idle_connections_take_no_more_than_their_places(stored, parser, monkeypatch):  # noqa: F811  # the fixture
    """Those that have a place are answered, a few more are told to come again, and all others are cut at once."""
    monkeypatch.setattr("em_assets.serve.limits.LEAST_CONNECTIONS", 3)
    monkeypatch.setattr("em_assets.serve.limits.SPARE_CONNECTIONS", 2)
    with serving(stored, Limits(requests=0)) as port:
        clients = [connect(port) for _ in range(40)]
        wait_until(lambda: sum(is_closed(client) for client in clients) == 35)
        for client in clients:
            if not is_closed(client):
                client.sendall(HEALTH)
        got = [client.recv(4096) for client in clients[:3]] + [rest(client) for client in clients[3:5]]
        assert [answers(one) for one in got] == [[200]] * 3 + [[503]] * 2
        assert b"\r\nretry-after: 1\r\n" in got[3]
        assert json.loads(got[3].partition(b"\r\n\r\n")[2])["error"].endswith("come again.")
        clients[0].close()
        wait_until(lambda: answers(exchange(port, LAST)) == [200])
        for client in clients:
            client.close()


def has_news(connection: socket.socket) -> bool:
    """Something to read, or that it has ended."""
    return bool(select.select([connection], [], [], 0)[0])


def is_closed(connection: socket.socket) -> bool:
    try:
        return has_news(connection) and connection.recv(1, socket.MSG_PEEK) == b""
    except ConnectionResetError:
        return True


def test_places_are_files_that_may_be_opened():
    """The process allows itself as many as it needs; where the system does not, it says so before it starts."""
    code = """if True:
        import resource
        from em_assets.errors import Unsupported
        from em_assets.serve.connections import allow_files
        from em_assets.serve.limits import Limits
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, most))
        allow_files(Limits(requests=64))
        print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 600))
        try:
            allow_files(Limits(requests=64))
        except Unsupported as error:
            print(error)
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < 640:
        pytest.skip(f"this machine allows {most} open files, too few to allow more of them")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    allowed, said = done.stdout.splitlines()
    assert allowed == "640"
    assert said.startswith("256 connections need 640 open files, and this process may have 600; ")


def test_requests_in_a_row_are_answered_and_a_flood_is_not(port, parser):
    """As many as may be sent before the first answer come in their order; of more, not one is kept."""
    row = b"".join(f"GET /healthz?a{i} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for i in range(PIPELINED_REQUESTS))
    with connect(port) as connection:
        connection.sendall(row + LAST)
        assert answers(rest(connection)) == [200] * (PIPELINED_REQUESTS + 1)
    with connect(port) as connection:
        connection.sendall(b"GET /events/cell HTTP/1.1\r\nHost: localhost\r\n\r\n" + HEALTH * 3000)
        if parser == "httptools":  # h11 reads on only when it has answered, and keeps bytes, not requests
            assert answers(rest(connection)) in ([], [200])
    wait_until(lambda: metric(port, "em_assets_http_requests_in_flight") == 1)


# Every address, every method

ADDRESSES = {
    "/": "/",
    "/healthz": "/healthz",
    "/metrics": "/metrics",
    "/openapi.json": "/openapi.json",
    "/v1/datasets": "/v1/datasets",
    "/v1/datasets/{name}": "/v1/datasets/cell",
    "/v1/datasets/{name}/{sub}": "/v1/datasets/cell/nuc",
    "/v1/datasets/{name}/block": QUERY,
    "/v1/datasets/{name}/{sub}/block": "/v1/datasets/cell/nuc/block?start=0,0,0&shape=8",
    "/view/{name}": "/view/cell",
    "/view/{name}/{sub}": "/view/cell/nuc",
    "/v/{name}/{file}": "/v/cell/",
    "/events/{name}": "/events/cell",
    "/data/{name}.ome.zarr/{path}": "/data/cell.ome.zarr/zarr.json",
    "/data/{name}/{document}": "/data/cell/metadata.json",
    "/data/{name}/volumes/{sub}.ome.zarr/{path}": "/data/cell/volumes/nuc.ome.zarr/zarr.json",
}


def test_no_address_is_forgotten(stored):  # noqa: F811  # the fixture
    """The table has every route of the service."""
    from em_assets.serve import open_shelf
    from em_assets.serve.app import build_app

    app = build_app(open_shelf(stored), Limits(), None, allowed_hosts=["*"])
    assert {route.name for route in app.routes} == set(ADDRESSES)


@pytest.mark.parametrize("path", ADDRESSES.values(), ids=ADDRESSES)
def test_head_ends_everywhere(port, path):
    """The status and headers of GET and nothing else: what comes next on the connection is the next answer."""
    with connect(port) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        response = http.client.HTTPResponse(connection, method="GET")
        response.begin()
        got = response.status, described(response)
    with connect(port) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        connection.sendall(LAST)
        told, _, after = rest(connection).partition(b"\r\n\r\n")
    head = http.client.HTTPResponse(Replay(told + b"\r\n\r\n"), method="HEAD")
    head.begin()
    assert (head.status, described(head)) == got
    assert after.startswith(b"HTTP/1.1 200 OK\r\n")
    assert after.endswith(b'{"status":"ok"}')


class Replay:
    """Bytes in the place of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str):
        return io.BytesIO(self._data)


def described(response: http.client.HTTPResponse) -> dict[str, str]:
    """Headers but for how the body is sent, which is left to the server, and for what changes with time."""
    changing = {"date", "transfer-encoding"}
    if "version=0.0.4" in (response.getheader("content-type") or ""):  # the numbers grow
        changing.add("content-length")
    return {name.lower(): value for name, value in response.getheaders() if name.lower() not in changing}


@pytest.mark.parametrize("path", ADDRESSES.values(), ids=ADDRESSES)
def test_nothing_can_be_changed_anywhere(port, path):
    """405 for what is neither GET nor HEAD, with what is allowed."""
    for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE"):
        status, headers, body = ask(port, path, method)
        assert status == 405
        assert {"GET", "HEAD"} == set(re.split(r",\s*", headers["allow"]))
        assert json.loads(body)["error"].endswith(".")


# Too long, or no HTTP


def get(path: bytes, *headers: bytes, host: bytes | None = b"localhost") -> bytes:
    named = [] if host is None else [b"Host: " + host]
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", *named, *headers, b"Connection: close", b"", b""])


HERE = QUERY.encode()
TOO_LONG = b"a" * (HEAD_BYTES * 8)
ODD = {
    "a header without end": (get(HERE, b"X: " + TOO_LONG), {400, 431}),
    "an address without end": (get(HERE + b"&x=" + TOO_LONG), {400, 431}),
    "headers without end": (get(HERE, *[b"X%d: a" % i for i in range(100_000)]), {400, 431}),
    "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), {400}),
    "HTTP 2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "no version": (b"GET /\r\n\r\n", {400}),
    "NUL in the address": (get(b"/v1/\0"), {400}),
    "NUL in a header": (get(HERE, b"X: a\0b"), {400}),
    "NUL in a name": (get(b"/data/cell.ome.zarr/a%00b"), {404}),
    "NUL in the client's file": (get(b"/v/cell/%00"), {404}),
    "bytes in the address": (get(b"/v1/\xff\xfe"), {400}),
    "bytes in the host": (get(HERE, host=b"\xff\xfe"), {400}),
    "a host with a huge port": (get(b"/view/cell", host=b"localhost:" + b"9" * 30), {302}),
    "no host": (get(HERE, host=None), {400}),
    "percent signs that mean nothing": (get(b"/data/cell.ome.zarr/%zz%ff%fe%ed%a0%80%"), {404}),
    "a file name that is too long": (get(b"/data/cell.ome.zarr/" + b"a" * 5000), {404}),
    "folders without end": (get(b"/data/cell.ome.zarr/" + b"a/" * 5000), {404}),
    "a dataset's name that is too long": (get(b"/v1/datasets/" + b"a" * 20_000), {404}),
    "a line break in a name": (get(b"/view/cell%0d%0aX-Y:%20z"), {404}),
    "a length below nothing": (get(HERE, b"Content-Length: -5"), {400}),
    "a length of 400 digits": (get(HERE, b"Content-Length: " + b"9" * 400), {400}),
    "two lengths": (get(HERE, b"Content-Length: 5", b"Content-Length: 6"), {400}),
    "an unknown coding of the body": (get(HERE, b"Transfer-Encoding: gzip"), {400}),
    "chunks that are none": (get(HERE, b"Transfer-Encoding: chunked") + b"zz\r\nhello", {400}),
    "a body that does not come": (get(HERE, b"Content-Length: 500"), {200}),
    "an upgrade": (get(HERE, b"Connection: Upgrade", b"Upgrade: websocket"), {200}),
    "a range of huge numbers": (get(HERE, b"Range: bytes=" + b"9" * 18 + b"-" + b"9" * 18), {416}),
    "a range of nothing": (get(HERE, b"Range: bytes=-0"), {416}),
    "bytes for a range": (get(HERE, b"Range: bytes=\xff-\xfe"), {200}),
    "a range beyond the end of what is known": (get(HERE, b"Range: bytes=99999999-", b"If-None-Match: *"), {304}),
    "tags without end": (get(HERE, b"If-None-Match: " + b'W/"' * 20_000), {200}),
    "codings without end": (get(HERE, b"Accept-Encoding: " + b"gzip;q=0.001," * 4000), {200}),
    "separators without end": (get(HERE, b"Accept-Encoding: " + b";" * 30_000), {200}),
    "all codings refused in two lines": (
        get(HERE, b"Accept-Encoding: gzip;q=0", b"Accept-Encoding: identity;q=0"),
        {406},
    ),
    "parameters without end": (get(b"/v1/datasets/cell/block?" + b"&" * 1999), {400}),
    "one parameter very often": (get(b"/v1/datasets/cell/block?" + b"start=0,0,0&" * 150), {400}),
}


@pytest.mark.parametrize(("data", "statuses"), ODD.values(), ids=ODD)
def test_odd_requests(port, capfd, data, statuses):
    """Each has one answer and an end; none is a fault of ours, nothing is logged, and nothing of this machine told."""
    got = exchange(port, data)
    found = answers(got)
    assert set(found) <= statuses
    assert found
    head, _, body = got.partition(b"\r\n\r\n")
    if found[0] >= 400 and body:
        assert b"\r\ncontent-type: application/json" in head
        assert json.JSONDecoder().raw_decode(body.decode())[0]["error"].endswith(".")
    assert b"volume.ome.zarr" not in got
    said = capfd.readouterr()
    assert said.err == ""


def test_what_is_no_http_does_not_garble_an_answer(port, capfd):
    """Sent while an answer is on its way, it ends the connection; no second answer gets into the first."""
    query = f"{BLOCK}?start=-90,-90,-90&shape=255&pad=constant&format=raw"
    with connect(port) as connection:
        connection.sendall(f"GET {query} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        got = connection.recv(4096)
        connection.sendall(b"zz\r\nno chunk at all\r\n")
        got += rest(connection)
    assert answers(got[:100]) == [200]
    assert len(got) < 255**3 * 2
    assert b"HTTP/1.1" not in got[100:]
    assert capfd.readouterr().err == ""
    assert ask(port, QUERY)[0] == 200
