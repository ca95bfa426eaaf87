"""What goes wrong on the way to a file, one class for each kind of fault: right bytes, or a sentence and no file."""

import contextlib
import itertools
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest

from downloading import DATA, MD5, NEW, SHA256, CrowdedServer, Process, downloader, fetch, left_in, quicken, start_child
from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unavailable
from em_assets.fetch import _partial, _transfer, attempts
from em_assets.fetch.files import read_receipt
from em_assets.fetch.http import HostUnreachable, NotThere
from em_assets.volume import RemoteFile
from fault_server import RawServer, reply
from faulty import Fault, FaultyServer

RANGES = {"connections": 3, "range_bytes": 400_000}
BOTH_WAYS = pytest.mark.parametrize("options", [{}, RANGES], ids=["one connection", "ranges"])


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(attempts, "BACKOFF_SECONDS", attempts.BACKOFF_SECONDS)
    monkeypatch.setattr(_transfer, "SAVE_SECONDS", _transfer.SAVE_SECONDS)
    monkeypatch.setattr(_partial, "BEAT_SECONDS", _partial.BEAT_SECONDS)
    quicken()


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "data.bin").write_bytes(DATA)
    with FaultyServer(folder) as running:
        yield running


@pytest.fixture
def target(tmp_path):
    return tmp_path / "store" / "data.bin"


def fail_requests(*faults: Fault | None):
    """The first request, the second ... whatever they ask for; then none fails."""
    coming, lock = iter(faults), threading.Lock()

    def fail(path, range_header, count):
        with lock:
            return next(coming, None)

    return fail


def require_nothing(target: Path) -> None:
    """No file, no receipt; at most what the next run goes on with."""
    if target.parent.exists():
        assert left_in(target.parent) in ([], ["data.bin.em-part"])


class TestBrokenTransfers:
    @BOTH_WAYS
    @pytest.mark.parametrize("percent", [10, 50, 99])
    def test_f1_a_cut_is_resumed(self, server, target, percent, options):
        """Only the rest is asked for: not a byte comes twice."""
        whole = 400_000 if options else len(DATA)
        server.fail = fail_requests(*[Fault(cut_after=whole * percent // 100)] * 2)
        receipt = fetch(f"{server.url}/data.bin", target, **options)
        assert target.read_bytes() == DATA
        assert (receipt.sha256, receipt.received_bytes, server.bytes_sent) == (SHA256, len(DATA), len(DATA))

    @pytest.mark.parametrize("part", [b"5\r\nhe", b"5\r\nhello\r\n"], ids=["in a chunk", "between chunks"])
    def test_f3_a_cut_chunked_body_is_never_whole(self, target, part):
        """Its last chunk is the proof; a later attempt begins anew, a server that never sends one is given up."""
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        whole = head + b"5\r\nHELLO\r\n0\r\n\r\n"
        with RawServer(lambda number, *_: head + part if number < 3 else whole) as raw:
            receipt = fetch(f"{raw.url}/x", target)
        assert target.read_bytes() == b"HELLO"
        assert receipt.sha256 == "3733cd977ff8eb18b987357e22ced99f46097f31ecb239e878ae63760e83e4d5"
        second = target.parent / "second" / "data.bin"
        with RawServer(lambda *_: head + part) as raw, pytest.raises(Unavailable, match="broke off"):
            fetch(f"{raw.url}/x", second, settings={"retry_seconds": 0.3})
        require_nothing(second)

    def test_f4_a_server_that_ignores_ranges_starts_over(self, server, target):
        """The whole comes again from byte 0, and lands there."""
        server.fail = lambda path, range_header, count: Fault(
            ignore_range=True, cut_after=1_234_567 if server.requests < 3 else None
        )
        assert fetch(f"{server.url}/data.bin", target).sha256 == SHA256
        assert target.read_bytes() == DATA

    def test_f4_what_came_of_another_file_is_forgotten(self, target):
        """Nothing tells the two apart, so nothing of the first may be in the digest, either."""

        def script(number, path, headers):
            yield reply("200 OK", (NEW if number == 1 else DATA)[:2_000_000], Content_Length=str(len(DATA)))
            time.sleep(0.2)  # the first half is hashed meanwhile
            if number > 1:
                yield DATA[2_000_000:]

        with RawServer(script) as raw:
            assert fetch(f"{raw.url}/x", target).sha256 == SHA256
        assert target.read_bytes() == DATA

    def test_f4_a_whole_file_instead_of_a_range_is_taken(self, server, target):
        """One request is enough, and the other connections are not opened."""
        server.fail = lambda *_: Fault(ignore_range=True)
        assert fetch(f"{server.url}/data.bin", target, **RANGES).sha256 == SHA256
        assert server.requests == 1

    def test_f4_what_an_earlier_run_left_is_no_use_without_ranges(self, server, target):
        """Detected by the status; the file is fetched whole, by one connection."""
        server.fail = fail_requests(Fault(cut_after=1_000_000), *[Fault(status=500)] * 99)
        with pytest.raises(Unavailable):
            fetch(f"{server.url}/data.bin", target, settings={"retry_seconds": 0.2})
        server.fail = lambda *_: Fault(ignore_range=True)
        receipt = fetch(f"{server.url}/data.bin", target, **RANGES)
        assert target.read_bytes() == DATA
        assert receipt.received_bytes == len(DATA)
        assert "must support byte ranges" in receipt.notes[0]

    def test_f4_a_server_that_misunderstands_conditions(self, target):
        """It sends the whole to whoever says If-Range: then that is left out, and the ranges are had."""

        def script(number, path, headers):
            if "if-range" in headers:
                return reply("200 OK", DATA, Content_Length=str(len(DATA)), ETag='"1"')
            first, last = map(int, headers["range"].removeprefix("bytes=").split("-"))
            said = f"bytes {first}-{last}/{len(DATA)}"
            body = DATA[first : last + 1]
            return reply("206 X", body, Content_Range=said, Content_Length=str(len(body)), ETag='"1"')

        with RawServer(script) as raw:
            receipt = fetch(f"{raw.url}/x", target, size_bytes=len(DATA), **RANGES)
        assert (receipt.sha256, receipt.received_bytes, receipt.notes) == (SHA256, len(DATA), ())

    @pytest.mark.parametrize(
        "said", ["bytes 0-9/3000000", "bytes 1000001-2999999/3000000", "bytes 1000000-2999998/3000000", "4000", ""]
    )
    def test_f5_a_wrong_content_range_is_not_believed(self, server, target, said):
        """Once is one machine's fault; if it stays so, both ranges are named."""
        lie = Fault(headers={"Content-Range": said})
        server.fail = fail_requests(Fault(cut_after=1_000_000), lie)
        assert fetch(f"{server.url}/data.bin", target).sha256 == SHA256
        server.fail = fail_requests(Fault(cut_after=1_000_000), *[lie] * 9)
        with pytest.raises(Mismatch, match=r"bytes 1000000-2999999 of .* were asked for, but the reply says"):
            fetch(f"{server.url}/data.bin", target.with_name("again"))

    def test_f5_a_wrong_total_is_a_change(self, server, target):
        """Parts of files of two sizes are never put together."""
        server.fail = lambda path, range_header, count: (
            Fault(headers={"Content-Range": f"bytes {range_header[6:]}/3000001"})
            if range_header != "bytes=0-399999" and range_header
            else None
        )
        with pytest.raises(Mismatch, match="its size was 3000000, now it is 3000001"):
            fetch(f"{server.url}/data.bin", target, **RANGES)
        require_nothing(target)


class TestChanges:
    @BOTH_WAYS
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            pytest.param({"ETag": '"old"'}, {"ETag": '"new"'}, id="ETag"),
            pytest.param(
                {"ETag": "", "Last-Modified": formatdate(1, usegmt=True)},
                {"ETag": "", "Last-Modified": formatdate(99, usegmt=True)},
                id="Last-Modified",
            ),
        ],
    )
    def test_f6_a_file_that_changes_on_the_way_is_fetched_anew(self, server, target, before, after, options):
        """Nothing of the old one is left in it."""
        whole = 400_000 if options else len(DATA)
        changed, once = threading.Event(), threading.Lock()

        def fail(path, range_header, count):
            if server.requests <= 1:
                return Fault(headers=before, cut_after=whole // 2)
            with once:  # a second connection must not find it half written
                if not changed.is_set():
                    (server.folder / "data.bin").write_bytes(NEW)
                    changed.set()
            return Fault(headers=after)

        server.fail = fail
        receipt = fetch(f"{server.url}/data.bin", target, **options)
        assert target.read_bytes() == NEW
        assert "changed while it was read" in receipt.notes[0]

    def test_f6_a_file_that_keeps_changing_is_an_error(self, server, target):
        """After one fresh start: somebody has to look."""
        numbers = itertools.count()
        server.fail = lambda *_: Fault(headers={"ETag": f'"{next(numbers)}"'}, cut_after=1000)
        with pytest.raises(Mismatch, match=r"changed while it was read: its ETag was .* look at what its publisher"):
            fetch(f"{server.url}/data.bin", target)
        require_nothing(target)

    def test_f6_a_file_that_changed_between_two_runs(self, server, target):
        """The condition goes along (If-Range), so that the new file comes at once as a whole."""
        server.fail = fail_requests(Fault(cut_after=1_000_000), *[Fault(status=500)] * 99)
        with pytest.raises(Unavailable):
            fetch(f"{server.url}/data.bin", target, settings={"retry_seconds": 0.2})
        server.fail = lambda *_: None
        (server.folder / "data.bin").write_bytes(NEW[:-1])
        receipt = fetch(f"{server.url}/data.bin", target)
        assert target.read_bytes() == NEW[:-1]
        assert receipt.size_bytes == len(NEW) - 1


class TestAnswers:
    def test_f7_retry_after_is_waited_for(self, server, target, caplog):
        """Twice a second, and the log says why."""
        server.fail = fail_requests(*[Fault(status=503, headers={"Retry-After": "1"})] * 2)
        begun = time.monotonic()
        fetch(f"{server.url}/data.bin", target, settings={"retry_seconds": 10})
        assert time.monotonic() - begun >= 2
        assert "asked to wait: nothing is requested from it for 1.0 s" in caplog.text

    @pytest.mark.parametrize("value", ["soon", "-1", "1e9", ""])
    def test_f8_garbage_is_not_waited_for(self, server, target, value):
        """Nor is it an error."""
        server.fail = fail_requests(Fault(status=429, headers={"Retry-After": value}))
        fetch(f"{server.url}/data.bin", target)

    def test_f8_a_date_is_honoured_and_an_age_is_capped(self, server, target):
        """A date two seconds ahead; 10^9 seconds are as much as the patience allows, then it is an error."""
        server.fail = fail_requests(
            Fault(status=429, headers={"Retry-After": formatdate(time.time() + 2, usegmt=True)})
        )
        begun = time.monotonic()
        fetch(f"{server.url}/data.bin", target, settings={"retry_seconds": 10})
        assert time.monotonic() - begun > 0.5
        server.fail = lambda *_: Fault(status=429, headers={"Retry-After": "1000000000"})
        with pytest.raises(Unavailable, match="answered 429"):
            fetch(f"{server.url}/data.bin", target.with_name("b"), settings={"retry_seconds": 0.5})

    @BOTH_WAYS
    @pytest.mark.parametrize("status", [500, 502, 504, 408])
    def test_f9_a_passing_error_passes(self, server, target, status, options):
        """Four times bad, then good."""
        server.fail = fail_requests(*[Fault(status=status)] * 4)
        assert fetch(f"{server.url}/data.bin", target, **options).sha256 == SHA256

    @BOTH_WAYS
    def test_f9_a_lasting_error_is_quoted(self, server, target, options):
        """After `retry_seconds`."""
        server.fail = lambda *_: Fault(status=502)
        with pytest.raises(Unavailable, match=r"data\.bin: answered 502.*attempts in 0\.3 s\); try again later"):
            fetch(f"{server.url}/data.bin", target, settings={"retry_seconds": 0.3}, **options)
        require_nothing(target)

    @BOTH_WAYS
    @pytest.mark.parametrize("status", [404, 403, 410, 401])
    def test_f10_a_final_answer_is_asked_for_once(self, server, target, status, options):
        """The sentence has the address and what to do."""
        server.fail = lambda *_: Fault(status=status)
        with pytest.raises(Mismatch, match=rf"{server.url}/data\.bin .*{status}.*check the address") as caught:
            fetch(f"{server.url}/data.bin", target, **options)
        assert isinstance(caught.value, NotThere) == (status != 401)
        assert server.requests == 1
        require_nothing(target)

    def test_f12_a_crowd_is_thinned(self, server, target, monkeypatch):
        """At most two at once, else 503: it settles at two, and few are turned away."""
        monkeypatch.setattr(attempts, "BACKOFF_SECONDS", 0.2)
        with CrowdedServer(server.folder) as crowded:
            crowded.fail = lambda *_: Fault(bytes_per_second=2_000_000)
            options = {"connections": 16, "range_bytes": 60_000, "settings": {"connections_per_host": 16}}
            receipt = fetch(f"{crowded.url}/data.bin", target, **options)
            assert receipt.sha256 == SHA256
            assert crowded.most_seen == 2
            assert crowded.refused < 0.1 * crowded.requests

    def test_f13_a_stall_is_left(self, server, target):
        """Silence of `read_seconds`, then the rest by another connection."""
        server.fail = fail_requests(Fault(stall_seconds=60, stall_after=1_000_000))
        assert fetch(f"{server.url}/data.bin", target).received_bytes == len(DATA)
        assert server.log[1][2] == "bytes=1000000-2999999"

    def test_f14_a_trickle_is_left(self, server, target):
        """Fifty bytes a second; if it stays so, that is the error, and what has come is kept."""
        server.fail = fail_requests(Fault(bytes_per_second=50))
        assert fetch(f"{server.url}/data.bin", target).sha256 == SHA256
        server.fail = lambda *_: Fault(bytes_per_second=50)
        with pytest.raises(Unavailable, match=r"only \d+ bytes came in"):
            fetch(f"{server.url}/data.bin", target.with_name("b"), settings={"retry_seconds": 1})

    def test_f15_a_slow_link_is_let_be(self, server, target):
        """A transfer that takes longer than every time-out, and goes on all the time."""
        server.fail = lambda *_: Fault(bytes_per_second=2_000_000, stall_seconds=0.2, stall_after=-1)
        begun = time.monotonic()
        fetch(f"{server.url}/data.bin", target, settings={"retry_seconds": 0.6})
        assert time.monotonic() - begun > 0.9
        assert server.requests == 1


class TestHosts:
    def test_f16_a_host_that_comes_up_in_time(self, server, target):
        """Refused at first."""
        port = closed_port()
        with contextlib.ExitStack() as stack:
            starter = threading.Timer(0.5, lambda: stack.enter_context(FaultyServer(server.folder, port=port)))
            starter.start()
            receipt = fetch(f"http://127.0.0.1:{port}/data.bin", target, settings={"unreachable_seconds": 10})
            starter.join()
        assert receipt.sha256 == SHA256

    def test_f16_a_host_that_stays_down_is_one_sentence(self, target):
        """Within the patience for hosts that never answered."""
        with pytest.raises(HostUnreachable, match=r"cannot be reached: the connection was refused, tried for 1 s; "):
            fetch(f"http://127.0.0.1:{closed_port()}/data.bin", target, **RANGES)
        require_nothing(target)

    def test_f16_a_host_that_dies_on_the_way_and_comes_back(self, server, target):
        """The rest is fetched when it is there again."""
        server.fail = lambda *_: Fault(bytes_per_second=4_000_000)
        with contextlib.ExitStack() as stack:

            def restart():
                wait_until(lambda: server.bytes_sent > 1_000_000)
                server.stop()
                stack.enter_context(FaultyServer(server.folder, port=server.port))

            restarter = threading.Thread(target=restart)
            restarter.start()
            receipt = fetch(f"{server.url}/data.bin", target, settings={"retry_seconds": 20})
            restarter.join()
        assert receipt.sha256 == SHA256
        assert receipt.received_bytes == len(DATA)

    @pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/", "/data.bin"])
    def test_f17_redirects_lead_nowhere_else(self, server, target, place):
        """Other protocols and loops are refused, naming where they lead."""
        server.fail = lambda *_: Fault(status=302, headers={"Location": place})
        with pytest.raises(Mismatch, match="redirects"):
            fetch(f"{server.url}/data.bin", target)
        require_nothing(target)

    def test_f17_an_honest_redirect_is_followed(self, server, target):
        """With ranges, each of them."""
        server.fail = lambda path, *_: Fault(status=302, headers={"Location": "/data.bin"}) if path == "/old" else None
        assert fetch(f"{server.url}/old", target, **RANGES).sha256 == SHA256

    def test_f11_a_limited_rate_is_kept_to(self, nginx, target):
        """Twelve files by three threads, five requests a second allowed: all arrive, without a loop of refusals."""
        shared = downloader(retry_seconds=60)

        def download(n):
            shared.download(RemoteFile(f"{nginx.url}/rate/small.bin", f"{n}"), target.with_name(f"{n}"))

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(download, range(12)))
        answers = nginx.answers()
        assert answers["200"] == 12
        assert answers["429"] <= 24

    def test_f12_nginx_turns_a_crowd_away(self, nginx, target):
        """`limit_conn 2` answers 503."""
        receipt = fetch(f"{nginx.url}/crowd/data.bin", target, connections=8, range_bytes=60_000)
        assert receipt.sha256 == SHA256
        answers = nginx.answers()
        assert answers["503"] < 0.1 * sum(answers.values())

    def test_f4_nginx_without_ranges(self, nginx, target):
        """`max_ranges 0`."""
        assert fetch(f"{nginx.url}/whole/data.bin", target, **RANGES).sha256 == SHA256

    def test_f15_nginx_with_a_slow_line(self, nginx, target):
        """`limit_rate 1m` per connection: three are faster than one."""
        assert fetch(f"{nginx.url}/slow/data.bin", target, **RANGES).sha256 == SHA256


class TestBodies:
    @BOTH_WAYS
    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            pytest.param({"Content-Type": "text/html"}, b"<html>Maintenance</html>", id="page by type"),
            pytest.param({}, b"\n<!DOCTYPE html><title>Maintenance", id="page by content"),
            pytest.param({"Content-Type": "text/plain"}, b"ERROR 12 No entries found (Maintenance)", id="error text"),
        ],
    )
    def test_f18_a_page_is_no_file(self, server, target, headers, body, options):
        """Refused, quoted, not kept."""
        server.fail = lambda *_: Fault(status=200, headers=headers, body=body)
        with pytest.raises(Malformed, match=r"Maintenance.*check the address"):
            fetch(f"{server.url}/data.bin", target, magic=[DATA[:4]], **options)
        assert server.requests == 1
        assert left_in(target.parent) == []

    def test_f19_no_more_than_expected_is_read(self, target):
        """Of a body without a length: it ends at the limit."""
        sent = []

        def script(number, path, headers):
            yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            for _ in range(1000):
                sent.append(1)
                yield b"10000\r\n" + bytes(0x10000) + b"\r\n"

        with RawServer(script) as raw, pytest.raises(Mismatch, match="sent more than the 100000 bytes"):
            fetch(f"{raw.url}/x", target, size_bytes=100_000)
        assert len(sent) < 900
        require_nothing(target)

    def test_f19_bytes_behind_the_end_are_not_taken(self, target):
        """A Content-Length that is too small: the rest belongs to nothing."""
        with RawServer(lambda *_: reply("200 OK", DATA[:1500], Content_Length="1000")) as raw:
            assert fetch(f"{raw.url}/x", target, size_bytes=1000).size_bytes == 1000
            with pytest.raises(Mismatch, match="has 1000 bytes, expected 1500"):
                fetch(f"{raw.url}/x", target.with_name("b"), size_bytes=1500)

    @BOTH_WAYS
    def test_f20_an_encoded_body_is_refused(self, server, target, options):
        """The plain file is asked for; what comes otherwise is not guessed at."""
        (server.folder / "info").write_bytes(b"{}")
        with pytest.raises(Mismatch, match="Content-Encoding gzip though it was asked for as it is stored"):
            fetch(f"{server.url}/info", target, **options)
        require_nothing(target)

    @BOTH_WAYS
    def test_f21_a_flipped_bit_is_found(self, server, target, options):
        """By the publisher's checksum; once it may be the line, twice it is an error naming both."""
        server.fail = fail_requests(Fault(flip_bit_at=100))
        receipt = fetch(f"{server.url}/data.bin", target, checksum=MD5, **options)
        assert target.read_bytes() == DATA
        assert len(receipt.notes) == 1
        server.fail = lambda *_: Fault(flip_bit_at=100)
        with pytest.raises(Mismatch, match=rf"has md5 [0-9a-f]{{32}}, its publisher states {MD5[4:]}"):
            fetch(f"{server.url}/data.bin", target.with_name("b"), checksum=MD5, **options)
        assert left_in(target.parent) == ["data.bin", "data.bin.receipt.json"]


class TestDeath:
    @BOTH_WAYS
    def test_f25_killed_at_any_instant(self, server, target, options):
        """Eight times somewhere: never half a file under its name, and in the end the right one, nothing else."""
        server.fail = lambda *_: Fault(bytes_per_second=1_000_000)
        chance = random.Random(25)
        for _ in range(8):
            process = Process(f"{server.url}/data.bin", **options)
            process.go(target)
            time.sleep(chance.uniform(0, 0.5))
            process.kill()
            if target.exists():
                assert target.read_bytes() == DATA
                assert read_receipt(target).sha256 == SHA256
        server.fail = lambda *_: None
        receipt = fetch(f"{server.url}/data.bin", target, **options)
        assert receipt.sha256 == SHA256
        assert target.read_bytes() == DATA
        assert left_in(target.parent) == ["data.bin", "data.bin.receipt.json"]

    def test_f25_what_was_noted_is_not_lost(self, server, target):
        """A killed run's bytes are not fetched again."""
        server.fail = lambda *_: Fault(bytes_per_second=4_000_000)
        process = Process(f"{server.url}/data.bin")
        process.go(target)
        wait_until(lambda: server.bytes_sent > 1_500_000)
        process.kill()
        server.fail = lambda *_: None
        assert fetch(f"{server.url}/data.bin", target).received_bytes < len(DATA) - 500_000
        assert target.read_bytes() == DATA

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
    def test_f26_stopped_and_gone_on_with(self, server, target, number):
        """It ends within seconds, and the next run fetches the rest."""
        server.fail = lambda *_: Fault(bytes_per_second=1_000_000)
        child = start_child(f"{server.url}/data.bin", target)
        wait_until(lambda: server.bytes_sent > 800_000)
        child.send_signal(number)
        child.communicate(timeout=5)
        assert child.returncode in {-number, 128 + number, 1}
        server.fail = lambda *_: None
        assert fetch(f"{server.url}/data.bin", target).received_bytes < len(DATA) - 300_000
        assert target.read_bytes() == DATA

    @pytest.mark.parametrize("lock_is_a_lie", [False, True], ids=["locks", "locks that do nothing"])
    def test_f29_two_processes_at_once(self, server, target, lock_is_a_lie):
        """Eight times: both end with the right file; where locks work, it is fetched once."""
        server.fail = lambda *_: Fault(bytes_per_second=30_000_000)
        processes = [Process(f"{server.url}/data.bin", lock_is_a_lie=lock_is_a_lie, **RANGES) for _ in range(2)]
        for n in range(8):
            place, before = target.with_name(f"{n}.bin"), server.bytes_sent
            for process in processes:
                process.go(place)
            assert [process.sha256() for process in processes] == [SHA256] * 2
            assert place.read_bytes() == DATA
            assert lock_is_a_lie or server.bytes_sent - before == len(DATA)
        for process in processes:
            process.kill()
        assert left_in(target.parent) == sorted(f"{n}.bin{end}" for n in range(8) for end in ("", ".receipt.json"))


class TestDisks:
    def test_f27_space_is_looked_for_first(self, server, target, monkeypatch):
        """The sentence has what is needed and what is free; the body is not read."""
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 12_345))
        server.fail = lambda *_: Fault(bytes_per_second=2_000_000)
        with pytest.raises(Unavailable, match=r"needs 3000000 more bytes, but only 12345 are free on its disk"):
            fetch(f"{server.url}/data.bin", target)
        assert left_in(target.parent) == []
        assert server.bytes_sent < len(DATA) / 2

    def test_f27_a_disk_that_fills_on_the_way(self, server, small_disk):
        """One sentence; what has come is kept, and the next run goes on when there is space."""
        target, filler = small_disk / "data.bin", small_disk / "filler"
        server.fail = lambda *_: Fault(bytes_per_second=5_000_000)

        def fill(_):
            if server.bytes_sent > 1_000_000 and not filler.exists():
                filler.write_bytes(bytes(4_500_000))

        with pytest.raises(
            Unavailable, match=rf"{target} could not be written \(No space left on device\): free space"
        ):
            fetch(f"{server.url}/data.bin", target, on_bytes=fill)
        assert left_in(small_disk) == ["data.bin.em-part", "filler"]
        filler.unlink()
        server.fail = lambda *_: None
        assert fetch(f"{server.url}/data.bin", target).received_bytes < len(DATA) - 500_000
        assert target.read_bytes() == DATA

    def test_f28_a_disk_that_does_not_take_it(self, server, target, monkeypatch):
        """A failing fsync: nothing is done; when it works again, nothing is fetched again."""

        def fail(_):
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            with pytest.raises(Unavailable, match=rf"{target} could not be \w+ \(Input/output error\)"):
                fetch(f"{server.url}/data.bin", target)
        assert left_in(target.parent) == ["data.bin.em-part"]
        assert fetch(f"{server.url}/data.bin", target).received_bytes == 0
        assert target.read_bytes() == DATA

    def test_f28_a_read_only_target(self, server, small_disk):
        """Said before anything is requested."""
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(Unavailable, match=r"could not be written \(Read-only file system\)"):
            fetch(f"{server.url}/data.bin", small_disk / "data.bin")
        assert server.requests == 0


class TestSecrets:
    @pytest.mark.parametrize("status", [None, 404, 503], ids=["received", "absent", "unavailable"])
    def test_f37_secrets_are_nowhere(self, server, target, status, caplog):
        """Not in the log, the error, the journal, the receipt or a file's name."""
        caplog.set_level(logging.DEBUG, logger="em_assets")
        url = server.url.replace("//", "//user:pa55word@") + "/data.bin?X-Amz-Signature=deadbeef"
        texts = []
        server.fail = lambda *_: Fault(status=status, cut_after=None if status else 1_000_000)
        if status is None:
            server.fail = fail_requests(Fault(cut_after=1_000_000), *[Fault(status=500)] * 60)
        try:
            fetch(url, target, settings={"retry_seconds": 0.3})
        except EmAssetsError as error:
            texts.append(str(error))
        texts += [str(path) for path in target.parent.rglob("*")]
        texts += [path.read_text("latin-1") for path in target.parent.rglob("*.json")]
        server.fail = lambda *_: None
        texts.append(fetch(url, target).model_dump_json())
        for text in [*texts, caplog.text, target.with_name("data.bin.receipt.json").read_text()]:
            assert "pa55word" not in text
            assert "deadbeef" not in text


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def is_listening(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB; only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class Nginx:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"

    def answers(self) -> Counter:
        """How often it gave each status."""
        return Counter((self.folder / "access.log").read_text().split())


@pytest.fixture
def nginx(tmp_path):
    """nginx with one place for each limit: /rate/, /crowd/, /whole/, /slow/."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (apt install nginx-light)")
    folder, port = tmp_path / "nginx", closed_port()
    (folder / "www").mkdir(parents=True)
    (folder / "www" / "data.bin").write_bytes(DATA)
    (folder / "www" / "small.bin").write_bytes(DATA[:1000])
    temporary = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    www = f"alias {folder}/www/;"
    (folder / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
        events {{ worker_connections 64; }}
        http {{
            {temporary} log_format status $status; access_log {folder}/access.log status;
            limit_req_zone $server_name zone=rate:1m rate=5r/s; limit_req_status 429;
            limit_conn_zone $server_name zone=crowd:1m;
            server {{
                listen 127.0.0.1:{port};
                location /rate/ {{ {www} limit_req zone=rate; add_header Retry-After 1 always; }}
                location /crowd/ {{ {www} limit_conn crowd 2; limit_rate 2m; }}
                location /whole/ {{ {www} max_ranges 0; }}
                location /slow/ {{ {www} limit_rate 1m; }}
            }}
        }}""")
    with subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf")]) as process:
        wait_until(lambda: is_listening(port))
        yield Nginx(folder, port)
        process.terminate()
