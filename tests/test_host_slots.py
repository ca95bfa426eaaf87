"""A publisher that takes few requests at once gets few from this machine, however many processes ask it."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest

from em_assets.fetch import hosts
from em_assets.fetch.hosts import SHARED_AT_MOST, Host, Interrupt, Interrupted
from em_assets.fetch.http import HttpClient
from em_assets.settings import Settings

BODY = b"x" * 1000


class CountingServer(ThreadingHTTPServer):
    """Every reply takes `seconds`; counts how many are under way at once, in all and by who asks (the path)."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self, seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), CountingHandler)
        self.seconds = seconds
        self.lock = threading.Lock()
        self.under_way: list[str] = []
        self.most: dict[str, int] = {}
        self.begun: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()

    def note(self, who: str) -> None:
        with self.lock:
            self.begun.append(who)
            self.under_way.append(who)
            for name, now in (("all", len(self.under_way)), (who, self.under_way.count(who))):
                self.most[name] = max(self.most.get(name, 0), now)

    def wait_for(self, who: str, times: int) -> None:
        """Until it has been asked so often."""
        end = time.monotonic() + 30
        while self.begun.count(who) < times:
            assert time.monotonic() < end, f"{who} asked {self.begun.count(who)} times, expected {times}"
            time.sleep(0.01)


class CountingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CountingServer

    def do_GET(self) -> None:
        who = self.path.strip("/")
        self.server.note(who)
        time.sleep(self.server.seconds)
        with self.server.lock:  # before the client has the reply: what comes after it is not counted as beside it
            self.server.under_way.remove(who)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(BODY)

    def log_message(self, *args: object) -> None:
        pass


CHILD = textwrap.dedent("""
    import json, sys, threading
    from em_assets.fetch.http import HttpClient
    from em_assets.settings import Settings
    url, who, connections, threads, requests = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    client = HttpClient(Settings())
    client.limit(url, connections)
    lengths = []
    def ask():
        for _ in range(requests):
            lengths.append(len(client.get(f"{url}/{who}", max_bytes=10_000).body))
    sys.stdin.readline()
    asking = [threading.Thread(target=ask, daemon=True) for _ in range(threads)]
    for thread in asking: thread.start()
    for thread in asking: thread.join()
    print(json.dumps(lengths))
""")


@contextlib.contextmanager
def asking(
    server: CountingServer, cache: Path, *children: tuple[str, int, int, int]
) -> Iterator[list[subprocess.Popen]]:
    """A process for each (name, connections, threads, requests per thread); all begin to ask at one moment."""
    environment = {**os.environ, "EM_ASSETS_CACHE": str(cache)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, server.url, who, *map(str, numbers)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for who, *numbers in children
    ]
    try:
        time.sleep(0.5)
        for child in started:
            child.stdin.write("\n")
            child.stdin.flush()
        yield started
    finally:
        for child in started:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()


def answers(child: subprocess.Popen) -> int:
    """How many replies the process got, all of them whole."""
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    lengths = json.loads(out)
    assert set(lengths) <= {len(BODY)}
    return len(lengths)


def slots_in(cache: Path) -> list[str]:
    return sorted(file.name for file in cache.rglob("*.lock"))


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


class TestProcesses:
    def test_four_processes_together_keep_the_limit(self, cache):
        """Each may send three requests at once, and has six threads that want to: the publisher sees three, no more."""
        with CountingServer(0.1) as server, asking(server, cache, *[(name, 3, 6, 2) for name in "abcd"]) as children:
            assert [answers(child) for child in children] == [12] * 4
        assert server.most["all"] == 3
        assert slots_in(cache) == ["0.lock", "1.lock", "2.lock", "line.lock"]

    def test_each_keeps_the_number_it_was_given(self, cache):
        """Specs that state two and four connections for one host: never more than four, and two for the first."""
        with CountingServer(0.1) as server, asking(server, cache, ("two", 2, 6, 4), ("four", 4, 6, 6)) as children:
            assert [answers(child) for child in children] == [24, 36]
        assert server.most["two"] == 2
        assert server.most["all"] == server.most["four"] == 4

    def test_nobody_starves(self, cache):
        """Beside a process with many threads that never stop asking, one with a single thread has its turns, too."""
        with CountingServer(0.1) as server, asking(server, cache, ("greedy", 1, 8, 1000)):
            server.wait_for("greedy", 3)
            with asking(server, cache, ("modest", 1, 1, 10)) as (modest,):
                assert answers(modest) == 10
            asked = list(server.begun)
        first, last = asked.index("modest"), len(asked) - asked[::-1].index("modest")
        assert asked[first:last].count("greedy") <= 30
        assert server.most["all"] == 1

    def test_a_killed_process_holds_nothing(self, cache):
        """In the middle of its requests, with slots and the first place in line: the others go on at once."""
        with CountingServer(0.5) as server, asking(server, cache, ("doomed", 2, 8, 100)) as (doomed,):
            server.wait_for("doomed", 2)
            doomed.send_signal(signal.SIGKILL)
            doomed.wait()
            begun = time.monotonic()
            with asking(server, cache, ("next", 2, 2, 1)) as (following,):
                assert answers(following) == 2
            assert time.monotonic() - begun < 10

    def test_a_stopped_process_makes_others_wait_and_not_fail(self, cache):
        """Waiting for a slot is not the publisher's silence: it may last longer than all patience with that."""
        patience = Settings(cache=cache, unreachable_seconds=0.3, retry_seconds=0.3)
        with CountingServer(0.3) as server, asking(server, cache, ("stopped", 1, 2, 1000)) as (stopped,):
            server.wait_for("stopped", 3)  # and it waits for the third reply
            stopped.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            threading.Timer(1.5, stopped.kill).start()
            client = HttpClient(patience)
            client.limit(server.url, 1)
            assert client.get(f"{server.url}/patient", max_bytes=10_000).body == BODY
            assert time.monotonic() - begun > 1.5


class TestOneProcess:
    def hold(self, host: Host) -> contextlib.ExitStack:
        held = contextlib.ExitStack()
        held.enter_context(host.turn(Interrupt()))
        return held

    def host(self, cache: Path, connections: int) -> Host:
        """As a client of another process has it: locks are per open file, not per process."""
        host = Host("https://ftp.example.org:443", Settings(cache=cache))
        host.limit(connections)
        return host

    def test_who_gives_up_waiting_leaves_the_line(self, cache):
        """An interrupted request is not waited for by those behind it."""
        first, second, third = (self.host(cache, 1) for _ in range(3))
        held = self.hold(first)
        interrupt, ended = Interrupt(), []

        def wait() -> None:
            try:
                with second.turn(interrupt):
                    ended.append("let in")
            except Interrupted:
                ended.append("interrupted")

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.3)
        interrupt.set()
        waiting.join(5)
        assert ended == ["interrupted"]
        held.close()
        patience = Interrupt()
        timer = threading.Timer(5, patience.set)
        timer.start()
        with third.turn(patience):  # Interrupted, if the line is not free
            timer.cancel()

    def test_a_turn_that_ends_badly_gives_its_slot_back(self, cache):
        """Whatever happens within."""
        first, second = self.host(cache, 1), self.host(cache, 1)
        with pytest.raises(ValueError, match="broken"), first.turn(Interrupt()):
            raise ValueError("broken")
        with second.turn(Interrupt()) as waited_seconds:
            assert waited_seconds < 1

    def test_slots_lie_by_host_in_the_cache(self, cache):
        """`hosts/NAME_PORT/NUMBER.lock`: what a person looks for who wonders what is waited for."""
        with self.hold(self.host(cache, 2)):
            assert (cache / "hosts/ftp.example.org_443/1.lock").exists()

    @pytest.mark.parametrize("connections", [None, SHARED_AT_MOST + 1, 128], ids=["not limited", "17", "128"])
    def test_a_host_that_takes_many_is_not_shared_out(self, cache, connections):
        """S3 takes more than a machine sends: no file is locked for it."""
        host = Host("https://s3.example.org:443", Settings(cache=cache))
        if connections is not None:
            host.limit(connections)
        with self.hold(host):
            assert slots_in(cache) == []

    def test_a_cache_that_cannot_be_used_leaves_the_limit_of_this_process(self, tmp_path, caplog, monkeypatch):
        """Requests go on, no more at once than allowed within the process; the log says so once."""
        monkeypatch.setattr(hosts, "_reasons_told", set())
        (tmp_path / "cache").write_text("a file")
        caplog.set_level(logging.WARNING, "em_assets")
        settings = Settings(cache=tmp_path / "cache")
        with CountingServer(0.05) as server:
            for _ in range(2):
                client = HttpClient(settings)
                client.limit(server.url, 2)
                threads = [
                    threading.Thread(target=client.get, args=(f"{server.url}/a",), kwargs={"max_bytes": 10_000})
                    for _ in range(6)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        assert len(server.begun) == 12
        assert server.most["all"] == 2
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 1
        assert "counted in this process alone" in told[0] and "EM_ASSETS_CACHE" in told[0]

    def test_a_cache_that_is_cleared_meanwhile_is_made_again(self, cache):
        """Caches are there to be deleted."""
        import shutil

        host = self.host(cache, 2)
        with host.turn(Interrupt()):
            shutil.rmtree(cache)
        with host.turn(Interrupt()):
            assert slots_in(cache) == ["1.lock", "line.lock"]

    def test_a_free_slot_costs_no_time(self, cache):
        """A thousand turns of sixteen threads, nobody else there: no thread ever sleeps for want of a slot."""
        host = self.host(cache, SHARED_AT_MOST)

        def work() -> None:
            for _ in range(60):
                with host.turn(Interrupt()):
                    pass

        begun = time.monotonic()
        threads = [threading.Thread(target=work) for _ in range(SHARED_AT_MOST)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun < 3
