"""The HTTP client under faults: what comes back is what was asked for, or an error that says why."""

import contextlib
import gzip
import itertools
import socket
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.fetch import attempts, http, replies
from em_assets.fetch.hosts import Interrupted
from em_assets.fetch.http import HostUnreachable, HttpClient, Interrupt, NotThere, safe_url
from em_assets.settings import Settings
from fault_server import RawServer, reply
from faulty import Fault, FaultyServer

DATA = bytes(itertools.islice(itertools.cycle(range(251)), 3_000_000))


def client(**changes) -> HttpClient:
    values = {"unreachable_seconds": 1.0, "retry_seconds": 3.0, "connect_seconds": 1.0, "read_seconds": 0.5}
    return HttpClient(Settings(**{**values, **changes}))


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch):
    """Tests wait for the rule under test, not for back-off."""
    monkeypatch.setattr(attempts, "BACKOFF_SECONDS", 0.02)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "data.bin").write_bytes(DATA)
    (tmp_path / "small.bin").write_bytes(DATA[:1000])
    (tmp_path / "info").write_bytes(b'{"scales": []}')
    with FaultyServer(tmp_path) as running:
        yield running


def fail_first(times: int, fault: Fault):
    """Each path and range misbehaves so many times, then not."""
    return lambda path, range_header, count: fault if count <= times else None


def fail_requests(*faults: Fault | None):
    """The first request, the second ... whatever they ask for; then none fails."""
    coming = iter(faults)
    return lambda path, range_header, count: next(coming, None)


class TestRanges:
    def test_a_range_is_exactly_the_bytes_asked_for(self, server):
        """Start inclusive, stop exclusive; the reply says how large the object is."""
        part = client().get_range(f"{server.url}/data.bin", 1000, 5000)
        assert part.body == DATA[1000:5000]
        assert part.object_bytes == len(DATA)
        assert part.etag

    @pytest.mark.parametrize("percent", [10, 50, 99])
    @pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
    def test_a_cut_range_is_resumed(self, server, percent, reset):
        """Only the rest is asked for again, so nothing is transferred twice."""
        cut = len(DATA) * percent // 100
        server.fail = fail_requests(Fault(cut_after=cut, reset=reset))
        assert client().get_range(f"{server.url}/data.bin", 0, len(DATA)).body == DATA
        assert server.requests == 2
        if not reset:
            assert server.log[1][2] == f"bytes={cut}-{len(DATA) - 1}"
            assert server.bytes_sent == len(DATA)

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.integers(1, 200_000), max_size=6), st.integers(0, 500_000), st.integers(1, 400_000))
    def test_any_number_of_cuts_leaves_the_right_bytes(self, server, cuts, start, size):
        """As long as each attempt brings something, the range ends right, and no byte is sent twice."""
        server.fail = fail_requests(*(Fault(cut_after=cut) for cut in cuts))
        before = server.bytes_sent
        assert client().get_range(f"{server.url}/data.bin", start, start + size).body == DATA[start : start + size]
        assert server.bytes_sent - before == size

    def test_on_bytes_hears_of_every_byte_once(self, server):
        """Over cuts, too: a progress bar ends at 100 %."""
        server.fail = fail_requests(Fault(cut_after=1234), Fault(cut_after=0))
        heard = []
        client().get_range(f"{server.url}/data.bin", 0, 100_000, on_bytes=heard.append)
        assert sum(heard) == 100_000

    def test_a_whole_small_object_is_sliced(self, server):
        """A server without ranges is put up with where that is cheap."""
        server.fail = fail_first(9, Fault(ignore_range=True))
        assert client().get_range(f"{server.url}/data.bin", 1000, 5000).body == DATA[1000:5000]

    def test_a_whole_large_object_is_refused(self, server, monkeypatch):
        """Its size is seen before it is read."""
        monkeypatch.setattr(replies, "WHOLE_INSTEAD_OF_RANGE_BYTES", 1_000_000)
        server.fail = fail_first(9, Fault(ignore_range=True))
        with pytest.raises(Mismatch, match=r"sent whole \(3000000 bytes\).*1000-4999"):
            client().get_range(f"{server.url}/data.bin", 1000, 5000)
        assert server.requests == 1

    def test_a_resumed_range_that_comes_whole_has_no_double_bytes(self, server):
        """A cut, then a machine that ignores ranges."""
        server.fail = fail_requests(Fault(cut_after=1000), Fault(ignore_range=True))
        assert client().get_range(f"{server.url}/data.bin", 500, 5000).body == DATA[500:5000]

    @pytest.mark.parametrize(
        "said",
        ["bytes 0-3999/3000000", "bytes 1001-4999/3000000", "bytes 1000-4998/3000000", "bytes */3000000", "4000", ""],
    )
    def test_a_wrong_content_range_is_not_believed(self, server, said):
        """It may be one machine of many: tried again; if all say so, the error names both ranges."""
        server.fail = fail_requests(Fault(headers={"Content-Range": said}))
        assert client().get_range(f"{server.url}/data.bin", 1000, 5000).body == DATA[1000:5000]
        server.fail = fail_first(9, Fault(headers={"Content-Range": said}))
        with pytest.raises(Mismatch, match=r"bytes 1000-4999 .* were asked for, but the reply says"):
            client().get_range(f"{server.url}/data.bin", 1000, 5000)

    def test_another_etag_in_the_middle_is_a_change(self, server):
        """Parts of two versions are never put together."""
        server.fail = fail_requests(Fault(cut_after=100), Fault(headers={"ETag": '"new"'}))
        with pytest.raises(Mismatch, match=r"changed while it was read.*\"new\""):
            client().get_range(f"{server.url}/data.bin", 0, 5000)

    def test_an_expected_etag_must_hold(self, server):
        """An index and its data are of one version; a weak tag counts as the strong one."""
        etag = client().get_range(f"{server.url}/data.bin", 0, 10).etag
        assert client().get_range(f"{server.url}/data.bin", 0, 10, expect_etag=f"W/{etag}").body == DATA[:10]
        with pytest.raises(Mismatch, match="changed while it was read"):
            client().get_range(f"{server.url}/data.bin", 0, 10, expect_etag='"other"')

    def test_another_size_in_the_middle_is_a_change(self, server):
        """Where there is no ETag, the object's size tells."""
        server.fail = fail_requests(
            Fault(cut_after=100, headers={"ETag": ""}),
            Fault(headers={"ETag": "", "Content-Range": "bytes 100-4999/3000001"}),
        )
        with pytest.raises(Mismatch, match="its size was 3000000, now it is 3000001"):
            client().get_range(f"{server.url}/data.bin", 0, 5000)

    @pytest.mark.parametrize("start", [500, 1000, 5000], ids=["straddles", "at the end", "beyond"])
    def test_an_object_that_is_too_short(self, server, start):
        """An offset beyond the end is the fault of what referred to it: no retry."""
        with pytest.raises(Malformed, match=rf"has 1000 bytes, but bytes {start}-5999"):
            client().get_range(f"{server.url}/small.bin", start, 6000)
        assert server.requests == 1

    def test_encoded_ranges_are_refused(self, server):
        """A range of a gzip stream is not a range of the object, and identity was asked for."""
        with pytest.raises(Mismatch, match="Content-Encoding gzip though a byte range was asked for"):
            client().get_range(f"{server.url}/info", 0, 10)

    def test_more_bytes_than_the_range_are_refused(self):
        """A chunked 206 that does not stop where it says."""
        body = b"14\r\n" + DATA[:20] + b"\r\n0\r\n\r\n"

        def script(number, path, headers):
            return reply("206 X", body, Content_Range="bytes 0-9/100", Transfer_Encoding="chunked")

        with RawServer(script) as raw, pytest.raises(Mismatch, match="sent more than the bytes 0-9"):
            client().get_range(f"{raw.url}/x", 0, 10)

    def test_a_range_without_a_length_is_taken_when_it_is_full(self):
        """Content-Range says what must come, so a close-delimited body can be judged."""

        def script(number, path, headers):
            start = int(headers["range"].removeprefix("bytes=").split("-")[0])
            stop = 4 if number == 1 else 10
            return reply("206 X", DATA[start:stop], Content_Range=f"bytes {start}-9/100")

        with RawServer(script) as raw:
            assert client().get_range(f"{raw.url}/x", 0, 10).body == DATA[:10]
            assert len(raw.requests) == 2


class TestWholeObjects:
    def test_gzip_is_undone_once(self, server):
        """`info` is served gzip-encoded whether or not that was asked for; the file itself is plain."""
        found = client().get(f"{server.url}/info", max_bytes=1000, accept_gzip=True)
        assert found.body == b'{"scales": []}'
        assert found.content_encoding == "gzip"
        assert client().get(f"{server.url}/data.bin", max_bytes=len(DATA)).body == DATA

    def test_a_gzip_bomb_stays_small(self):
        """A megabyte that unpacks to a gigabyte is refused at the limit."""
        bomb = gzip.compress(bytes(50_000_000))

        def script(number, path, headers):
            return reply("200 OK", bomb, Content_Encoding="gzip", Content_Length=str(len(bomb)))

        with RawServer(script) as raw, pytest.raises(Malformed, match="unpacks to more than 100000 bytes"):
            client().get(f"{raw.url}/info", max_bytes=100_000)

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            pytest.param(b"plain", "it is not gzip", id="plain"),
            pytest.param(gzip.compress(DATA[:999])[:-20], "middle of its gzip stream", id="cut"),
            pytest.param(gzip.compress(b"x") + b"more", "4 bytes follow", id="trailing"),
        ],
    )
    def test_what_is_said_to_be_gzip_must_be(self, body, said):
        """Wrong labels are named, not guessed at."""

        def script(number, path, headers):
            return reply("200 OK", body, Content_Encoding="gzip", Content_Length=str(len(body)))

        with RawServer(script) as raw, pytest.raises(Malformed, match=said):
            client().get(f"{raw.url}/info", max_bytes=100_000)

    def test_a_cut_body_is_asked_for_again(self, server):
        """With a known length a cut is seen."""
        server.fail = fail_requests(Fault(cut_after=10), Fault(cut_after=999))
        assert client().get(f"{server.url}/small.bin", max_bytes=1000).body == DATA[:1000]
        assert server.requests == 3

    def test_a_cut_chunked_body_is_never_a_success(self):
        """The last chunk is the proof; here it never comes."""
        part = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        with RawServer(lambda *_: part) as raw, pytest.raises(Unavailable, match="broke off"):
            client(retry_seconds=0.3).get(f"{raw.url}/x", max_bytes=1000)

    def test_a_chunked_body_is_taken_whole(self):
        """Chunked encoding has an end of its own."""
        body = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
        with RawServer(lambda *_: reply("200 OK", body, Transfer_Encoding="chunked")) as raw:
            assert client().get(f"{raw.url}/x", max_bytes=1000).body == b"hello world"

    def test_a_body_without_any_length_is_refused(self):
        """The end of a connection is no proof of a whole body."""
        with RawServer(lambda *_: reply("200 OK", b"hello")) as raw, pytest.raises(Mismatch, match="without a length"):
            client().get(f"{raw.url}/x", max_bytes=1000)

    @pytest.mark.parametrize("chunked", [False, True])
    def test_no_more_than_allowed_is_read(self, chunked):
        """The limit holds whether or not the length is announced."""
        body = b"2000\r\n" + bytes(0x2000) + b"\r\n0\r\n\r\n" if chunked else bytes(0x2000)
        headers = {"Transfer_Encoding": "chunked"} if chunked else {"Content_Length": str(0x2000)}
        with RawServer(lambda *_: reply("200 OK", body, **headers)) as raw, pytest.raises(Malformed, match="5000"):
            client().get(f"{raw.url}/x", max_bytes=5000)

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param(Fault(headers={"Content-Type": "text/html; charset=utf-8"}), id="by type"),
            pytest.param(Fault(status=200, body=b"\n <!DOCTYPE html><title>Maintenance"), id="by content"),
        ],
    )
    def test_a_web_page_is_not_data(self, server, fault):
        """Portals answer 200 with a page; the error quotes how it begins."""
        server.fail = fail_first(9, fault)
        with pytest.raises(Malformed, match="web page where data was expected"):
            client().get(f"{server.url}/small.bin", max_bytes=10_000)
        assert server.requests == 1

    def test_a_web_page_instead_of_a_range(self, server):
        """The same for ranges, quoted."""
        page = Fault(status=200, body=b"<html>Sorry</html>", headers={"Content-Type": "text/html"})
        server.fail = fail_first(9, page)
        with pytest.raises(Malformed, match="<html>Sorry"):
            client().get_range(f"{server.url}/data.bin", 0, 10)


class TestRetries:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_a_passing_status_is_tried_again(self, server, status):
        """Twice bad, then good."""
        server.fail = fail_first(2, Fault(status=status, body=b"sorry"))
        assert client().get_range(f"{server.url}/data.bin", 0, 10).body == DATA[:10]
        assert server.requests == 3

    def test_a_lasting_fault_ends_and_is_quoted(self, server):
        """After `retry_seconds`, with the last status."""
        server.fail = lambda *_: Fault(status=503)
        begun = time.monotonic()
        with pytest.raises(Unavailable, match=r"answered 503.*attempts in 0\.5 s.*try again later"):
            client(retry_seconds=0.5).get_range(f"{server.url}/data.bin", 0, 10)
        assert 0.4 < time.monotonic() - begun < 3

    @pytest.mark.parametrize(("status", "error"), [(404, NotThere), (410, NotThere), (403, NotThere), (401, Mismatch)])
    def test_a_final_status_is_asked_for_once(self, server, status, error):
        """No retry, and the message names the address and what to do."""
        server.fail = lambda *_: Fault(status=status, body=b"<html>nope</html>", headers={"Content-Type": "text/html"})
        with pytest.raises(error, match=rf"{server.url}/data\.bin .*{status}.*check the address") as caught:
            client().get_range(f"{server.url}/data.bin", 0, 10)
        assert server.requests == 1
        assert getattr(caught.value, "status", status) == status

    def test_retry_after_seconds_are_waited_for(self, server):
        """Twice a second, then the data."""
        server.fail = fail_first(2, Fault(status=503, headers={"Retry-After": "1"}))
        begun = time.monotonic()
        assert client(retry_seconds=10).get_range(f"{server.url}/data.bin", 0, 10).body == DATA[:10]
        assert 2 <= time.monotonic() - begun < 5

    def test_retry_after_holds_for_every_thread(self, server):
        """While one was told to wait, nobody else asks this host."""
        server.fail = fail_first(1, Fault(status=429, headers={"Retry-After": "1"}))
        shared = client(retry_seconds=10)
        told = threading.Thread(target=shared.get_range, args=(f"{server.url}/data.bin", 0, 10))
        told.start()
        time.sleep(0.3)
        server.fail = lambda *_: None
        begun = time.monotonic()
        shared.get_range(f"{server.url}/small.bin", 0, 10)
        assert time.monotonic() - begun > 0.4
        told.join()

    @pytest.mark.parametrize(
        ("value", "least", "most"),
        [
            ("120", 120, 120),
            ("1000000000", 600, 600),
            # named, because two workers that collect at the turn of a second would find different tests
            pytest.param(formatdate(time.time() + 3600, usegmt=True), 600, 600, id="in an hour"),
            pytest.param(formatdate(time.time() - 10, usegmt=True), 0, 0, id="ten seconds ago"),
            ("soon", None, None),
            ("-5", None, None),
            ("1e9", None, None),
            ("", None, None),
            (None, None, None),
            ("Fri, 99 Foo 2026 00:00:00 GMT", None, None),
        ],
    )
    def test_retry_after_is_read_with_care(self, value, least, most):
        """Seconds or a date, at most ten minutes; garbage is ignored."""
        found = replies._retry_after_seconds(value)
        assert found is None if least is None else least <= found <= most

    def test_a_date_is_honoured(self):
        """Two seconds from now, give or take the second that HTTP dates are rounded to."""
        assert 0 < replies._retry_after_seconds(formatdate(time.time() + 2, usegmt=True)) <= 2

    def test_jitter_is_full_and_grows(self):
        """Eight clients that failed together do not come back together."""
        waits = [[attempts.jitter(n) for _ in range(200)] for n in (1, 4, 30)]
        means = [sum(row) / len(row) for row in waits]
        assert means[0] < means[1] < means[2]
        assert max(max(row) for row in waits) <= attempts.MAX_BACKOFF_SECONDS
        assert all(min(row) < 0.2 * max(row) for row in waits)

    @pytest.mark.parametrize("after", [-1, 1000], ids=["before the reply", "in the body"])
    def test_a_stall_is_given_up_and_resumed(self, server, after):
        """Silence of `read_seconds` ends the attempt, not the request."""
        server.fail = fail_requests(Fault(stall_seconds=30, stall_after=after))
        begun = time.monotonic()
        assert client().get_range(f"{server.url}/data.bin", 0, 5000).body == DATA[:5000]
        assert time.monotonic() - begun < 2.5

    def test_a_trickle_is_given_up(self, server):
        """Fifty bytes a second is no connection: it is left, and if all are so, the error says it."""
        server.fail = fail_requests(Fault(bytes_per_second=50))
        assert client().get_range(f"{server.url}/data.bin", 0, 5000).body == DATA[:5000]
        server.fail = lambda *_: Fault(bytes_per_second=50)
        with pytest.raises(Unavailable, match=r"only \d+ bytes came in"):
            client(retry_seconds=1).get_range(f"{server.url}/data.bin", 0, 5000)

    def test_a_slow_link_is_not_a_trickle(self, server):
        """40 kB/s takes longer than `read_seconds` and is let be."""
        server.fail = lambda *_: Fault(bytes_per_second=40_000)
        assert client().get_range(f"{server.url}/data.bin", 0, 50_000).body == DATA[:50_000]
        assert server.requests == 1

    def test_no_more_connections_than_allowed(self, server):
        """The gate holds over all threads."""
        under_way, most, lock = [0], [0], threading.Lock()

        def slow(*_):
            with lock:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
            time.sleep(0.05)
            with lock:
                under_way[0] -= 1

        server.fail = slow
        shared = client(connections_per_host=3)
        threads = [
            threading.Thread(target=shared.get_range, args=(f"{server.url}/data.bin", n, n + 10)) for n in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most[0] <= 3


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class TestUnreachable:
    def test_a_host_that_never_answers_is_given_up(self):
        """After `unreachable_seconds` from the first attempt, with one sentence."""
        begun = time.monotonic()
        with pytest.raises(HostUnreachable, match=r"cannot be reached: the connection was refused, tried for 1 s"):
            client().get(f"http://127.0.0.1:{closed_port()}/info", max_bytes=10)
        assert 0.9 < time.monotonic() - begun < 2.5

    def test_a_host_that_accepts_and_says_nothing_is_given_up(self):
        """Time-outs shrink to what is left, so the limit holds whatever the settings are."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            begun = time.monotonic()
            with pytest.raises(HostUnreachable, match="sent nothing"):
                client(read_seconds=30).get(f"http://127.0.0.1:{listener.getsockname()[1]}/info", max_bytes=10)
            assert time.monotonic() - begun < 3.5

    def test_an_unknown_name_is_given_up(self, monkeypatch):
        """DNS fails like any other way of not getting through."""

        def unknown(*_args, **_kwargs):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(HostUnreachable, match=r"name is not known.*check the network, or run the offline sample"):
            client(unreachable_seconds=0.3).get("http://no-such-host.example/info", max_bytes=10)

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (ConnectionRefusedError(111, "Connection refused"), "the connection was refused"),
            (
                ConnectionResetError(104, "Connection reset by peer"),
                "the connection broke off (Connection reset by peer)",
            ),
            (TimeoutError("timed out"), "it sent nothing for too long"),
            (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "its name is not known (DNS)"),
            (EOFError(), "the connection was closed"),
            (RuntimeError("http://user:pa55word@host/"), "the connection broke off (RuntimeError)"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
    )
    def test_a_cause_is_said_in_plain_words(self, error, words):
        """What sockets and FTP raise, too; never in an address."""
        assert replies.explained(error) == words

    def test_the_verdict_is_everybodys(self):
        """Waiting requests end with it, later ones at once, with the same sentence."""
        port, shared, said = closed_port(), client(connections_per_host=2), []

        def ask():
            try:
                shared.get(f"http://127.0.0.1:{port}/info", max_bytes=10)
            except HostUnreachable as error:
                said.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(10)]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun < 3
        begun = time.monotonic()
        ask()
        assert time.monotonic() - begun < 0.2
        assert len(said) == 11
        assert len(set(said)) == 1

    def test_a_host_that_comes_up_in_time_is_used(self, tmp_path):
        """Refused at first, there a moment later."""
        (tmp_path / "data.bin").write_bytes(DATA)
        port = closed_port()
        with contextlib.ExitStack() as stack:
            starter = threading.Timer(0.5, lambda: stack.enter_context(FaultyServer(tmp_path, port=port)))
            starter.start()
            found = client(unreachable_seconds=5).get_range(f"http://127.0.0.1:{port}/data.bin", 0, 10)
            starter.join()
        assert found.body == DATA[:10]

    def test_a_host_that_dies_later_is_given_up_after_retry_seconds(self, tmp_path):
        """It has answered before, so it is waited for longer; then all its requests end."""
        (tmp_path / "data.bin").write_bytes(DATA)
        shared = client(unreachable_seconds=0.1, retry_seconds=1)
        with FaultyServer(tmp_path) as running:
            shared.get_range(f"{running.url}/data.bin", 0, 10)
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            shared.get_range(f"{running.url}/data.bin", 0, 10)
        assert 0.9 < time.monotonic() - begun < 2.5


class TestRedirects:
    def test_a_redirect_is_followed(self, server):
        """To the same kind of place; the range goes along."""
        server.fail = lambda path, *_: Fault(status=302, headers={"Location": "/data.bin"}) if path == "/old" else None
        assert client().get_range(f"{server.url}/old", 5, 10).body == DATA[5:10]

    def test_a_loop_ends(self, server):
        """Five, then no more."""
        server.fail = lambda *_: Fault(status=301, headers={"Location": "/again"})
        with pytest.raises(Mismatch, match="redirects more than 5 times"):
            client().get(f"{server.url}/old", max_bytes=10)
        assert server.requests == 6

    @pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/", "", "http://[bad/"])
    def test_only_http_is_followed(self, server, target):
        """Whatever a server says, local files and other protocols stay out of reach."""
        server.fail = lambda *_: Fault(status=302, headers={"Location": target})
        with pytest.raises(Mismatch, match="redirects to"):
            client().get(f"{server.url}/old", max_bytes=10)

    @pytest.mark.parametrize(
        ("source", "target", "why"),
        [
            ("https://8.8.8.8/x", "http://8.8.8.8/x", "not encrypted"),
            ("http://8.8.8.8/x", "http://127.0.0.1/x", "private network"),
            ("http://8.8.8.8/x", "http://169.254.169.254/latest/meta-data", "private network"),
            ("http://8.8.8.8/x", "http://[::1]/x", "private network"),
            ("http://8.8.8.8/x", "http://[::ffff:10.0.0.1]/x", "private network"),
            ("https://8.8.8.8/x", "//192.168.1.1/x", "private network"),
        ],
    )
    def test_a_public_server_does_not_lead_inside(self, source, target, why):
        """Nor from encrypted to plain."""
        with pytest.raises(Mismatch, match=why):
            http._followed(source, source, target)

    def test_public_redirects_are_fine(self):
        """Between public hosts, and up to https."""
        assert http._followed("http://8.8.8.8/a", "http://8.8.8.8/a", "https://1.1.1.1/b") == "https://1.1.1.1/b"


class PostServer:
    """Answers each POST with `script(number from 1, path)`: (status, headers, body); keeps what was posted."""

    def __init__(self, script) -> None:
        self.posted: list[tuple[str, str, bytes]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.posted.append((self.path, self.headers["Content-Type"], body))
                status, headers, answer = script(len(server.posted), self.path)
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class TestQueries:
    QUERY = b'{"query": "{ datasets { id } }"}'
    OK = (200, {}, b'{"data": {}}')

    def test_a_query_is_posted_as_it_is(self):
        """And its answer comes back."""
        with PostServer(lambda *_: self.OK) as server:
            assert client().post_query(f"{server.url}/graphql", self.QUERY, max_bytes=100).body == self.OK[2]
        assert server.posted == [("/graphql", "application/json", self.QUERY)]

    @pytest.mark.parametrize("first", [(503, {}, b""), (200, {"Content-Length": "999"}, b"cut")], ids=["503", "cut"])
    def test_a_query_is_tried_again_whole(self, first):
        """It changes nothing there, so that it is repeated like any GET."""
        with PostServer(lambda number, _: first if number == 1 else self.OK) as server:
            assert client().post_query(server.url, self.QUERY, max_bytes=1000).body == self.OK[2]
        assert [body for _, _, body in server.posted] == [self.QUERY] * 2

    @pytest.mark.parametrize("status", [307, 308])
    def test_a_redirect_that_keeps_the_query_is_followed(self, status):
        """On the same host."""
        moved = (status, {"Location": "/new"}, b"")
        with PostServer(lambda _, path: moved if path == "/old" else self.OK) as server:
            assert client().post_query(f"{server.url}/old", self.QUERY, max_bytes=100).body == self.OK[2]
        assert [(path, body) for path, _, body in server.posted] == [("/old", self.QUERY), ("/new", self.QUERY)]

    @pytest.mark.parametrize("status", [301, 302, 303])
    def test_a_redirect_that_would_drop_the_query_is_refused(self, status):
        """Clients turn these into GETs, which ask for something else."""
        refused = pytest.raises(Mismatch, match=f"redirects a posted query with {status} to .*/new")
        with PostServer(lambda *_: (status, {"Location": "/new"}, b"")) as server, refused:
            client().post_query(f"{server.url}/old", self.QUERY, max_bytes=100)
        assert len(server.posted) == 1

    def test_a_redirect_to_another_host_gets_no_query(self):
        """What is asked is for the server that was named."""
        with PostServer(lambda *_: self.OK) as other:
            target = other.url.replace("127.0.0.1", "localhost")
            refused = pytest.raises(Mismatch, match="to another server, http://localhost")
            with PostServer(lambda *_: (308, {"Location": target}, b"")) as server, refused:
                client().post_query(server.url, self.QUERY, max_bytes=100)
        assert other.posted == []

    def test_a_refusal_that_explains_itself_is_an_answer(self):
        """A GraphQL server may say with status 400 what is wrong with a query; one without a document says nothing."""
        with PostServer(lambda *_: (400, {}, b'{"errors": []}')) as server:
            assert client().post_query(server.url, self.QUERY, max_bytes=100).body == b'{"errors": []}'
        refused = pytest.raises(Mismatch, match="answered 400")
        with PostServer(lambda *_: (400, {"Content-Type": "text/plain"}, b"no")) as server, refused:
            client().post_query(server.url, self.QUERY, max_bytes=100)

    @pytest.mark.parametrize(
        ("answer", "error", "said"),
        [
            ((200, {}, b"x" * 101), Malformed, "101 bytes, expected at most 100"),
            ((200, {"Content-Type": "text/html"}, b"<html>log in"), Malformed, "a web page where data was expected"),
            ((404, {}, b""), NotThere, "does not exist"),
            ((401, {}, b""), Mismatch, "asks for a login"),
        ],
        ids=["too large", "a page", "404", "401"],
    )
    def test_what_is_no_answer_is_an_error(self, answer, error, said):
        """As for a GET."""
        with PostServer(lambda *_: answer) as server, pytest.raises(error, match=said):
            client().post_query(server.url, self.QUERY, max_bytes=100)

    def test_a_host_that_is_not_there_is_given_up(self):
        """With the verdict that holds for every request."""
        with pytest.raises(HostUnreachable, match="cannot be reached"):
            client(unreachable_seconds=0.2).post_query(f"http://127.0.0.1:{closed_port()}/", self.QUERY, max_bytes=100)


class TestSecrets:
    SECRET = "user:pa55word@"
    QUERY = "?X-Amz-Signature=deadbeef"

    def test_addresses_are_shown_without_secrets(self):
        """User, password, query and fragment are gone."""
        assert safe_url("https://user:pw@host:8443/a/b?sig=1#x") == "https://host:8443/a/b"

    @pytest.mark.parametrize("status", [404, 401, 503, 418])
    def test_errors_show_no_secrets(self, server, status, caplog):
        """Nor do log lines, nor what the server redirects to."""
        caplog.set_level("DEBUG", logger="em_assets")
        server.fail = lambda *_: Fault(status=status)
        url = server.url.replace("//", f"//{self.SECRET}") + f"/data.bin{self.QUERY}"
        with pytest.raises((Mismatch, Unavailable)) as caught:
            client(retry_seconds=0.2).get_range(url, 0, 10)
        for text in (str(caught.value), caplog.text):
            assert "pa55word" not in text
            assert "deadbeef" not in text

    def test_unreachable_hosts_show_no_secrets(self, caplog):
        """urllib3's own messages hold the whole address; ours do not pass them on."""
        caplog.set_level("INFO")
        with pytest.raises(HostUnreachable) as caught:
            client(unreachable_seconds=0.2).get(
                f"http://{self.SECRET}127.0.0.1:{closed_port()}/x{self.QUERY}", max_bytes=1
            )
        assert "pa55word" not in str(caught.value) + caplog.text
        assert "deadbeef" not in str(caught.value) + caplog.text


@pytest.mark.parametrize("url", ["ftp://host/x", "host/x", "http:///x", "http://host:notaport/x", "file:///etc/passwd"])
def test_what_is_no_http_address_is_refused(url):
    """At once, with the form that is expected."""
    with pytest.raises(Mismatch, match="not an address of the form https://host/path"):
        client().get(url, max_bytes=10)


@pytest.mark.parametrize(
    "fault",
    [Fault(stall_seconds=20, stall_after=100), Fault(status=503, headers={"Retry-After": "9"})],
    ids=["reading", "waiting"],
)
def test_an_interrupt_ends_a_request_at_once(server, fault):
    """From another thread, whether it reads or waits."""
    server.fail = lambda *_: fault
    interrupt = Interrupt()
    threading.Timer(0.3, interrupt.set).start()
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        client(read_seconds=20, retry_seconds=20).get_range(f"{server.url}/data.bin", 0, 5000, interrupt=interrupt)
    assert time.monotonic() - begun < 1.5


def test_connections_are_kept(server):
    """A hundred requests in a row use one connection."""
    opened = []
    original = server._http.process_request
    server._http.process_request = lambda *args: (opened.append(1), original(*args))
    shared = client()
    for n in range(100):
        shared.get_range(f"{server.url}/data.bin", n, n + 100)
        if n % 10 == 0:
            with contextlib.suppress(NotThere):
                shared.get(f"{server.url}/absent", max_bytes=10)
    assert len(opened) == 1
