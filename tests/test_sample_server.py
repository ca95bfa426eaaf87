"""The origin server as clients see it: urllib3 and raw sockets against real files."""

import gzip
import json
import socket
import threading
import time

import pytest
import urllib3

from em_assets.sample.server import IDENTITY_PATH, OriginServer
from faulty import Fault, FaultyServer

DATA = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "served"
    (root / "a b").mkdir(parents=True)
    (root / "0.shard").write_bytes(DATA)
    (root / "a b" / "1.shard").write_bytes(b"one")
    (root / "empty").write_bytes(b"")
    (root / "info").write_text('{"@type": "x"}')
    (tmp_path / "secret").write_text("not served")
    (root / "link").symlink_to(tmp_path / "secret")
    return root


@pytest.fixture
def server(folder):
    with OriginServer(folder) as running:
        yield running


@pytest.fixture
def get(server):
    """Asks with urllib3, without retries, redirects or decoding."""
    with urllib3.PoolManager(retries=False, timeout=5) as pool:

        def ask(path, method="GET", **headers):
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            return pool.request(method, server.url + path, headers=headers, decode_content=False)

        yield ask


RANGES = [
    pytest.param("bytes=0-9", 206, DATA[:10], "bytes 0-9/10240", id="first"),
    pytest.param("bytes=100-100", 206, DATA[100:101], "bytes 100-100/10240", id="one-byte"),
    pytest.param("bytes=10230-", 206, DATA[10230:], "bytes 10230-10239/10240", id="open"),
    pytest.param("bytes=10230-99999", 206, DATA[10230:], "bytes 10230-10239/10240", id="past-the-end"),
    pytest.param("bytes=-5", 206, DATA[-5:], "bytes 10235-10239/10240", id="suffix"),
    pytest.param("bytes=-99999", 206, DATA, "bytes 0-10239/10240", id="suffix-longer-than-file"),
    pytest.param("bytes=10240-", 416, None, "bytes */10240", id="starts-at-the-end"),
    pytest.param("bytes=-0", 416, None, "bytes */10240", id="empty-suffix"),
    pytest.param("bytes=9-5", 200, DATA, None, id="backwards"),
    pytest.param("bytes=0-1,5-6", 200, DATA, None, id="several"),
    pytest.param("lines=0-1", 200, DATA, None, id="other-unit"),
    pytest.param("bytes=-", 200, DATA, None, id="nothing"),
]


@pytest.mark.parametrize(("asked", "status", "body", "content_range"), RANGES)
def test_a_range_is_answered_as_rfc_9110_says(get, asked, status, body, content_range):
    """Status, Content-Range and exactly the bytes asked for."""
    reply = get("/0.shard", Range=asked)
    assert reply.status == status
    assert reply.headers.get("Content-Range") == content_range
    assert body is None or reply.data == body
    assert int(reply.headers["Content-Length"]) == len(reply.data)


def test_a_range_holds_only_for_the_version_it_was_meant_for(get):
    """If-Range with the current ETag or date gives the part, with any other the whole file."""
    whole = get("/0.shard")
    for current in (whole.headers["ETag"], whole.headers["Last-Modified"]):
        assert get("/0.shard", Range="bytes=0-1", If_Range=current).status == 206
    assert get("/0.shard", Range="bytes=0-1", If_Range='"other"').data == DATA


def test_what_the_client_has_is_not_sent_again(get):
    """If-None-Match and If-Modified-Since give 304 without a body; If-Match of another version gives 412."""
    whole = get("/0.shard")
    etag = whole.headers["ETag"]
    assert get("/0.shard", If_None_Match=f'"x", W/{etag}').status == 304
    assert get("/0.shard", If_None_Match='"x"').status == 200
    assert get("/0.shard", If_Modified_Since=whole.headers["Last-Modified"]).status == 304
    assert get("/0.shard", If_Modified_Since="no date").status == 200
    assert get("/0.shard", If_Match='"x"').status == 412
    assert get("/0.shard", If_Match=etag).status == 200


def test_a_changed_file_has_another_etag(get, folder):
    """Also when its size is the same."""
    before = get("/0.shard").headers["ETag"]
    (folder / "0.shard").write_bytes(DATA[::-1])
    assert get("/0.shard").headers["ETag"] != before


@pytest.mark.parametrize("accept", ["gzip", "identity"])
def test_info_is_gzip_encoded_whoever_asks(get, accept):
    """As the real bucket sends it; ranges count the encoded bytes, of which HEAD tells the number."""
    reply = get("/info", Accept_Encoding=accept)
    assert reply.headers["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(reply.data)) == {"@type": "x"}
    assert get("/info", "HEAD").headers["Content-Length"] == str(len(reply.data))
    assert get("/info", Range="bytes=2-5").data == reply.data[2:6]


def test_head_and_options_have_no_body(get):
    """HEAD says what GET would; OPTIONS answers a browser's preflight."""
    head = get("/0.shard", "HEAD")
    assert (head.status, head.data, head.headers["Content-Length"]) == (200, b"", str(len(DATA)))
    options = get("/0.shard", "OPTIONS", Origin="http://x", Access_Control_Request_Headers="range")
    assert (options.status, options.data) == (204, b"")
    assert options.headers["Access-Control-Allow-Headers"] == "*"


@pytest.mark.parametrize("path", ["/0.shard", "/info", "/missing"])
def test_any_origin_may_read(get, path):
    """CORS headers stand on every reply, and expose what a browser needs for ranges."""
    headers = get(path).headers
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert "Content-Range" in headers["Access-Control-Expose-Headers"]


HIDDEN = ["/", "/a%20b", "/a%20b/", "/missing", "/../secret", "/%2e%2e/secret", "/..%2fsecret", "//secret", "/link"]
HIDDEN += ["/a%20b/../0.shard", "/..%5csecret", "/0.shard/", "/%00", "/" + "x" * 5000, IDENTITY_PATH]


@pytest.mark.parametrize("path", HIDDEN)
def test_only_files_below_the_folder_are_served(server, path):
    """No listing, no way up, no link out: 404, sent as it stands (urllib3 would tidy the path)."""
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(request)
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 404 ")
    assert b"not served" not in reply


def test_escaped_names_and_empty_files_are_served(get):
    """A blank in a name, a query after it, and a file of no bytes."""
    assert get("/a%20b/1.shard?x=1").data == b"one"
    assert (get("/empty").status, get("/empty").data) == (200, b"")
    assert get("/empty", Range="bytes=0-").status == 416


def test_one_connection_serves_many_requests_quickly(server):
    """Keep-alive, also after 404 and 304, and no reply waits for a delayed acknowledgement."""
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        stream = connection.makefile("rb")
        started = time.monotonic()
        for path in ["/0.shard", "/missing", "/0.shard"] * 10:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n".encode())
            stream.readline()
            lines = iter(stream.readline, b"\r\n")
            headers = dict(line.decode().strip().lower().split(": ", 1) for line in lines)
            stream.read(int(headers["content-length"]))
        assert time.monotonic() - started < 2


def test_requests_and_bytes_are_counted(server, get):
    """What a test asserts about a client: how often, what, and how much was sent."""
    get("/0.shard", Range="bytes=0-9")
    get("/missing", "HEAD")
    assert server.requests == 2
    assert list(server.log) == [("GET", "/0.shard", "bytes=0-9"), ("HEAD", "/missing", None)]
    get("/0.shard")
    assert server.bytes_sent == 10 + len(DATA)


def test_stopping_cuts_open_connections(folder):
    """A client in the middle of a keep-alive connection sees the server go, and the port is free again."""
    server = OriginServer(folder).start()
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(b"GET /0.shard HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(10)
        server.stop()
        while connection.recv(65536):
            continue
    with OriginServer(folder, port=server.port) as again:
        assert again.port == server.port


def test_a_client_that_goes_away_disturbs_nobody(server, get, folder, capfd):
    """Its connection ends silently, the others go on."""
    (folder / "large").write_bytes(bytes(8 << 20))
    with socket.create_connection((server.host, server.port)) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(10)
    assert get("/0.shard").data == DATA
    time.sleep(0.2)
    assert capfd.readouterr().err == ""
    assert server.bytes_sent < 8 << 20


def test_large_files_are_sent_fast(server, get, folder):
    """At least 50 MB/s on one connection (measured alone: over 2 GB/s; other work may share the machine)."""
    (folder / "large").write_bytes(bytes(100 << 20))
    started = time.monotonic()
    assert len(get("/large").data) == 100 << 20
    assert time.monotonic() - started < 2


def test_connections_are_served_side_by_side(server, folder):
    """Sixteen clients at once, each with its own range, all answered right."""
    found = {}

    def ask(number):
        with urllib3.PoolManager() as pool:
            reply = pool.request("GET", f"{server.url}/0.shard", headers={"Range": f"bytes={number}-{number + 99}"})
            found[number] = reply.data

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(0, 1600, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: DATA[number : number + 100] for number in range(0, 1600, 100)}


# What the faulty server of the tests does when told to.


@pytest.fixture
def faulty(folder):
    with FaultyServer(folder) as running:
        yield running


def ask(server, timeout=5.0, **headers):
    with urllib3.PoolManager(retries=False, timeout=timeout) as pool:
        return pool.request("GET", f"{server.url}/0.shard", headers=headers)


def test_faults_of_status_headers_and_body(faulty):
    """Another status, a wrong Content-Range, the whole file for a part, a page for a file, a wrong bit."""
    faults = {
        1: Fault(status=503, headers={"Retry-After": "1"}),
        2: Fault(headers={"Content-Range": "bytes 5-14/10240"}),
        3: Fault(ignore_range=True),
        4: Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<html>"),
        5: Fault(flip_bit_at=3),
    }
    faulty.fail = lambda path, range_header, count: faults.get(count)
    replies = [ask(faulty, Range="bytes=0-9") for _ in range(6)]
    assert [reply.status for reply in replies] == [503, 206, 200, 200, 206, 206]
    assert replies[0].headers["Retry-After"] == "1"
    assert replies[1].headers["Content-Range"] == "bytes 5-14/10240"
    assert replies[2].data == DATA
    assert replies[3].data == b"<html>"
    assert [a ^ b for a, b in zip(replies[4].data, DATA[:10], strict=True)] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert replies[5].data == DATA[:10]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        pytest.param(Fault(cut_after=100), urllib3.exceptions.ProtocolError, id="cut-in-the-body"),
        pytest.param(Fault(cut_after=100, reset=True), urllib3.exceptions.ProtocolError, id="reset-in-the-body"),
        pytest.param(Fault(cut_after=-1), urllib3.exceptions.ProtocolError, id="cut-before-the-reply"),
        pytest.param(Fault(stall_seconds=20, stall_after=-1), urllib3.exceptions.ReadTimeoutError, id="no-reply"),
        pytest.param(Fault(stall_seconds=20, stall_after=100), urllib3.exceptions.ReadTimeoutError, id="stall"),
    ],
)
def test_faults_of_the_connection(faulty, fault, error):
    """The client sees a cut or a silence, and the next request is answered."""
    faulty.fail = lambda path, range_header, count: fault if count == 1 else None
    with pytest.raises(error):
        ask(faulty, timeout=0.3)
    assert ask(faulty).data == DATA


def test_a_trickle_is_slow_and_right(faulty):
    """10240 bytes at 51200 a second take a fifth of one."""
    faulty.fail = lambda path, range_header, count: Fault(bytes_per_second=51200)
    started = time.monotonic()
    assert ask(faulty).data == DATA
    assert 0.15 < time.monotonic() - started < 1
