"""Whole files: what is there afterwards is exactly the publisher's file, with a receipt, or nothing."""

import contextlib
import itertools
import json
import os
import threading
import time
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloading import DATA, MD5, NEW, SHA256, CrowdedServer, downloader, fetch, left_in, quicken
from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.fetch import _partial, _transfer, attempts
from em_assets.fetch._pieces import Pieces, missing, split
from em_assets.fetch.files import Downloader, Receipt, read_receipt, verify
from em_assets.fetch.ftp import FtpClient, NoResume
from em_assets.fetch.hosts import Interrupted
from em_assets.fetch.http import HttpClient, Interrupt, NotThere
from em_assets.sample.ftp import FtpServer
from em_assets.settings import Settings
from em_assets.store import LocalStore
from em_assets.volume import RemoteFile
from fault_server import RawServer, reply
from faulty import Fault, FaultyServer


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


def interrupted(server, target: Path, *, after_bytes: int = 1_000_000, **options) -> int:
    """A download that is given up on the way, in this process; how many bytes it had received."""
    interrupt, heard = Interrupt(), [0]

    def on_bytes(count):
        heard[0] += count
        if heard[0] >= after_bytes:
            interrupt.set()

    server.fail = lambda *_: Fault(bytes_per_second=10_000_000)
    with pytest.raises(Interrupted):
        fetch(f"{server.url}/data.bin", target, on_bytes=on_bytes, interrupt=interrupt, **options)
    server.fail = lambda *_: None
    return heard[0]


class TestPlanning:
    @given(st.data())
    def test_requests_tile_what_is_missing(self, data):
        """Each missing byte is asked for once, none that is here, and no range is too long."""
        size = data.draw(st.integers(1, 1000))
        edges = sorted(data.draw(st.sets(st.integers(0, size), max_size=8)))
        done = list(zip(edges[::2], edges[1::2], strict=False))
        connections, range_bytes = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 1200))
        gaps = missing(done, size)
        asked = split(gaps, size, connections, range_bytes) if gaps else []
        covered = sorted([*((start, stop or size) for start, stop in asked), *done])
        assert covered[0][0] == 0
        assert covered[-1][1] == size
        assert all(a[1] == b[0] for a, b in itertools.pairwise(covered))
        if connections > 1 and size > range_bytes:
            assert all(stop - start <= range_bytes for start, stop in asked)

    @pytest.mark.parametrize(
        ("size", "connections", "range_bytes", "ranges"),
        [
            pytest.param(2_000_000_000, 16, 64 * 2**20, 32, id="two equal rounds"),
            pytest.param(200_000_000, 16, 64 * 2**20, 16, id="one round"),
            pytest.param(160_000_000, 4, 64 * 2**20, 4, id="few"),
            pytest.param(64 * 2**20, 4, 64 * 2**20, 1, id="one range"),
            pytest.param(20_000_000_000, 1, 64 * 2**20, 1, id="one connection"),
        ],
    )
    def test_all_connections_end_together(self, size, connections, range_bytes, ranges):
        """As many requests as there are connections, or a multiple: none is left with a rest."""
        assert len(split([(0, size)], size, connections, range_bytes)) == ranges

    @given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.data())
    def test_here_is_what_was_taken(self, sizes, data):
        """Whatever arrives first: the parts that are here, joined, and how far there is no hole."""
        edges = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
        pieces = Pieces([])
        pieces.add(list(itertools.pairwise(edges)))
        here = set()
        for _ in sizes:
            piece = pieces.take()
            count = data.draw(st.integers(0, piece.stop - piece.start))
            pieces.advance(piece, count)
            here |= set(range(piece.start, piece.start + count))
        assert {n for start, stop in pieces.here() for n in range(start, stop)} == here
        assert all(a[1] < b[0] for a, b in itertools.pairwise(pieces.here()))
        with pieces.changed:
            assert pieces.front == next(n for n in range(edges[-1] + 1) if n not in here)


class TestWhole:
    def test_one_request_and_a_receipt(self, server, target):
        """A file is asked for as a whole, without a range; what is known of it lies beside it, and nothing else."""
        heard = []
        receipt = fetch(f"{server.url}/data.bin", target, on_bytes=heard.append)
        assert target.read_bytes() == DATA
        assert [entry[2] for entry in server.log] == [None]
        assert (receipt.sha256, receipt.size_bytes, receipt.received_bytes) == (SHA256, len(DATA), len(DATA))
        assert receipt.etag and receipt.last_modified and receipt.url == f"{server.url}/data.bin"
        assert receipt.notes == ()
        assert sum(heard) == len(DATA)
        assert left_in(target.parent) == ["data.bin", "data.bin.receipt.json"]
        assert read_receipt(target) == receipt == Receipt.model_validate_json(receipt.model_dump_json())

    @pytest.mark.parametrize("size_bytes", [None, len(DATA)], ids=["size unknown", "size stated"])
    def test_ranges_side_by_side(self, server, target, size_bytes):
        """Several connections bring ranges that cover the file once; the digest is that of the whole."""
        options = {"connections": 3, "range_bytes": 400_000}
        receipt = fetch(f"{server.url}/data.bin", target, size_bytes=size_bytes, **options)
        assert target.read_bytes() == DATA
        assert receipt.sha256 == SHA256
        asked = sorted(tuple(map(int, entry[2].removeprefix("bytes=").split("-"))) for entry in server.log)
        assert asked[0][0] == 0 and asked[-1][1] == len(DATA) - 1
        assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(asked))
        assert all(stop - start < 400_000 for start, stop in asked)
        assert server.bytes_sent == len(DATA)

    def test_no_more_connections_than_allowed(self, server, target):
        """The client's gate holds over all files, whatever each asks for; a host's own limit goes before it."""
        with CrowdedServer(server.folder) as crowded:
            crowded.most = 99
            crowded.fail = lambda *_: Fault(bytes_per_second=5_000_000)
            settings = Settings(connections_per_host=8)
            client = HttpClient(settings)
            client.limit(f"{crowded.url}/data.bin", 3)
            jobs = [
                threading.Thread(
                    target=Downloader(client, settings).download,
                    args=(RemoteFile(f"{crowded.url}/data.bin", "data.bin"), target.with_name(str(n))),
                    kwargs={"connections": 4, "range_bytes": 300_000},
                )
                for n in range(3)
            ]
            for job in jobs:
                job.start()
            for job in jobs:
                job.join()
            assert crowded.most_seen == 3
        assert all(target.with_name(str(n)).read_bytes() == DATA for n in range(3))

    @pytest.mark.parametrize("connections", [1, 4])
    def test_an_empty_file(self, server, target, connections):
        """Nothing is also something."""
        (server.folder / "empty").write_bytes(b"")
        receipt = fetch(f"{server.url}/empty", target, connections=connections)
        assert target.read_bytes() == b""
        assert receipt.sha256 == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

    @pytest.mark.parametrize("connections", [1, 4])
    def test_a_small_file_is_one_request(self, server, target, connections):
        """However many connections there may be."""
        (server.folder / "small").write_bytes(DATA[:1000])
        fetch(f"{server.url}/small", target, connections=connections, size_bytes=1000)
        assert [entry[2] for entry in server.log] == [None]

    def test_a_second_run_asks_for_nothing(self, server, target):
        """What is there and fits its receipt stays; what does not is downloaded again."""
        first = fetch(f"{server.url}/data.bin", target)
        assert fetch(f"{server.url}/data.bin", target, size_bytes=len(DATA)) == first
        assert server.requests == 1
        target.write_bytes(NEW)
        assert fetch(f"{server.url}/data.bin", target).sha256 == SHA256
        assert target.read_bytes() == DATA

    @pytest.mark.parametrize("change", [{"checksum": MD5}, {"url": "/other.bin"}], ids=["checksum", "address"])
    def test_another_order_is_another_file(self, server, target, change):
        """A receipt vouches for what was asked for then."""
        (server.folder / "other.bin").write_bytes(DATA)
        fetch(f"{server.url}/data.bin", target)
        fetch(f"{server.url}{change.get('url', '/data.bin')}", target, checksum=change.get("checksum"))
        assert server.requests == 2

    def test_the_old_file_stays_until_the_new_one_is_whole(self, server, target):
        """A failed download takes nothing away."""
        target.parent.mkdir()
        target.write_bytes(b"old")
        server.fail = lambda *_: Fault(cut_after=0)
        with pytest.raises(Unavailable):
            fetch(f"{server.url}/data.bin", target, settings={"retry_seconds": 0.2})
        assert target.read_bytes() == b"old"

    def test_an_unwanted_size_is_seen_at_once(self, server, target):
        """Before the body is read; the sentence has both sizes."""
        with pytest.raises(Mismatch, match="has 3000000 bytes, expected 3000001"):
            fetch(f"{server.url}/data.bin", target, size_bytes=len(DATA) + 1)
        assert not target.exists()
        with pytest.raises(Mismatch, match="at most 2999999 are allowed; set EM_ASSETS_MAX_BYTES"):
            fetch(f"{server.url}/data.bin", target, settings={"max_bytes": len(DATA) - 1})

    def test_a_close_delimited_body_needs_a_stated_size(self, target):
        """The end of a connection proves nothing, unless it is known how much must come."""

        def script(number, path, headers):
            return reply("200 OK", DATA[:500] if number == 2 else DATA[:1000])

        with RawServer(script) as raw:
            with pytest.raises(Mismatch, match=r"without a length.*state its size"):
                fetch(f"{raw.url}/x", target)
            assert fetch(f"{raw.url}/x", target, size_bytes=1000).size_bytes == 1000
            assert len(raw.requests) == 3
        assert target.read_bytes() == DATA[:1000]


class TestChecksums:
    @pytest.mark.parametrize(
        "checksum",
        [MD5, f"sha256:{SHA256.upper()}", f"crc32c:{google_crc32c.value(DATA):08x}"],
        ids=["md5", "sha256", "crc32c"],
    )
    def test_the_publishers_checksum_is_compared(self, server, target, checksum):
        """Whichever of the usual ones it is; over ranges, too."""
        options = {"connections": 3, "range_bytes": 500_000}
        assert fetch(f"{server.url}/data.bin", target, checksum=checksum, **options).checksum == checksum
        algorithm, digest = checksum.split(":")
        wrong = f"{algorithm}:{'0' * len(digest)}"
        with pytest.raises(Mismatch, match=rf"{algorithm} [0-9a-f]+, its publisher states 0+"):
            fetch(f"{server.url}/data.bin", target.with_name("b"), checksum=wrong)
        assert not target.with_name("b").exists()

    @pytest.mark.parametrize("checksum", ["md5", "md5:123", "crc64:0000000000000000", "md5:" + "g" * 32, ""])
    def test_a_checksum_that_cannot_be_compared(self, server, target, checksum):
        """Said before anything is downloaded."""
        with pytest.raises(Malformed, match="expected algorithm:hex"):
            fetch(f"{server.url}/data.bin", target, checksum=checksum)
        assert server.requests == 0

    def test_magic_is_judged_by_the_first_bytes(self, server, target):
        """A gigabyte of something else is not downloaded to find that out."""
        server.fail = lambda *_: Fault(bytes_per_second=2_000_000)
        with pytest.raises(Malformed, match=r"not with b'II\*\\x00' or b'MM\\x00\*'"):
            fetch(f"{server.url}/data.bin", target, magic=[b"II*\0", b"MM\0*"])
        assert server.bytes_sent < len(DATA) / 2
        assert left_in(target.parent) == []
        server.fail = lambda *_: None
        assert fetch(f"{server.url}/data.bin", target, magic=[b"II", DATA[:4]]).sha256 == SHA256

    def test_a_file_shorter_than_its_magic(self, server, target):
        """It agrees as far as it goes, which is not enough; nothing of it is kept for the next run."""
        (server.folder / "short").write_bytes(b"II")
        with pytest.raises(Malformed, match="not the kind of file"):
            fetch(f"{server.url}/short", target, magic=[b"II*\0"])
        assert left_in(target.parent) == []


class TestResuming:
    @pytest.mark.parametrize("options", [{}, {"connections": 3, "range_bytes": 400_000}], ids=["one", "ranges"])
    def test_the_next_run_fetches_the_rest(self, server, target, options):
        """What has come is not asked for again, but for what was not yet noted."""
        interrupted(server, target, **options)
        assert left_in(target.parent) == ["data.bin.em-part"]
        noted = json.loads((target.parent / "data.bin.em-part" / "journal.json").read_text())
        here = sum(stop - start for start, stop in noted["done"])
        assert here > 500_000
        receipt = fetch(f"{server.url}/data.bin", target, **options)
        assert target.read_bytes() == DATA
        assert (receipt.sha256, receipt.received_bytes) == (SHA256, len(DATA) - here)
        assert left_in(target.parent) == ["data.bin", "data.bin.receipt.json"]

    def test_tidying_a_store_leaves_what_can_be_gone_on_with(self, server, target):
        """What is unfinished is no object of a store, and no rubbish."""
        interrupted(server, target)
        store = LocalStore(target.parent)
        assert list(store.list("")) == []
        store.remove_partials("")
        assert fetch(f"{server.url}/data.bin", target).received_bytes < len(DATA)
        assert [path for path, _ in store.list("")] == ["data.bin", "data.bin.receipt.json"]

    def test_a_damaged_journal_is_no_journal(self, server, target):
        """The file is fetched from the beginning."""
        for text in ["", "{}", "[1", '{"done": [[5, 2]]}']:
            interrupted(server, target)
            (target.parent / "data.bin.em-part" / "journal.json").write_text(text)
            assert fetch(f"{server.url}/data.bin", target).received_bytes == len(DATA)
            target.unlink()

    @pytest.mark.parametrize("done", [[[0, 4_000_000]], [[100, 50]], [[-5, 100]], [[0, 10], [5, 20]]])
    def test_an_impossible_journal_is_no_journal(self, server, target, done):
        """Ranges out of order or beyond the data."""
        interrupted(server, target)
        file = target.parent / "data.bin.em-part" / "journal.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"done": done}))
        assert fetch(f"{server.url}/data.bin", target).received_bytes == len(DATA)
        assert target.read_bytes() == DATA

    def test_a_run_that_died_at_the_very_end_left_nothing_to_fetch(self, server, target, monkeypatch):
        """All bytes are here; they are hashed and put in place."""
        with monkeypatch.context() as patched:
            patched.setattr(_partial.Partial, "commit", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                fetch(f"{server.url}/data.bin", target)
        receipt = fetch(f"{server.url}/data.bin", target, checksum=MD5)
        assert (receipt.sha256, receipt.received_bytes, server.requests) == (SHA256, 0, 1)
        assert target.read_bytes() == DATA

    @pytest.mark.parametrize(("checksum", "resumes"), [(None, False), (MD5, True)], ids=["no checksum", "checksum"])
    def test_another_address_goes_on_only_under_a_checksum(self, server, target, checksum, resumes):
        """Two servers' copies may differ; the publisher's checksum would tell."""
        (server.folder / "mirror.bin").write_bytes(DATA)
        interrupted(server, target, checksum=checksum)
        receipt = fetch(f"{server.url}/mirror.bin", target, checksum=checksum)
        assert (receipt.received_bytes < len(DATA)) == resumes
        assert target.read_bytes() == DATA

    def test_a_copy_that_differs_is_found_by_its_checksum(self, server, target):
        """Half of one file and half of another: noticed, and fetched whole."""
        (server.folder / "data.bin").write_bytes(NEW)
        interrupted(server, target, checksum=MD5)
        (server.folder / "mirror.bin").write_bytes(DATA)
        receipt = fetch(f"{server.url}/mirror.bin", target, checksum=MD5)
        assert target.read_bytes() == DATA
        assert any("its publisher states" in note for note in receipt.notes)

    def test_what_only_a_size_tells_is_not_resumed_by_another_run(self, server, target):
        """Without ETag, date or checksum nobody knows whether it is the same file."""
        bare = {"ETag": "", "Last-Modified": ""}
        real = server.fail
        interrupt = Interrupt()
        server.fail = lambda *_: Fault(bytes_per_second=10_000_000, headers=bare)
        threading.Timer(0.1, interrupt.set).start()
        with pytest.raises(Interrupted):
            fetch(f"{server.url}/data.bin", target, interrupt=interrupt)
        server.fail = lambda *_: Fault(headers=bare)
        assert fetch(f"{server.url}/data.bin", target).received_bytes == len(DATA)
        server.fail = real

    def test_a_stranger_at_work_is_waited_for(self, server, target):
        """Another machine's process that shows signs of life; once it is silent, its work is gone on with."""
        interrupted(server, target)
        stranger = target.with_name("data.bin.00000000-1-1-00000000.em-part")
        (target.parent / "data.bin.em-part").rename(stranger)
        interrupt = Interrupt()
        os.utime(stranger)
        threading.Timer(0.5, interrupt.set).start()
        before = server.requests
        with pytest.raises(Interrupted):
            fetch(f"{server.url}/data.bin", target, interrupt=interrupt)
        assert server.requests == before
        os.utime(stranger, (1, time.time() - 2 * _partial.SILENT_SECONDS))
        assert fetch(f"{server.url}/data.bin", target).received_bytes < len(DATA)
        assert left_in(target.parent) == ["data.bin", "data.bin.receipt.json"]

    def test_a_process_that_stands_still_is_left_alone(self, server, target):
        """Stopped, but alive: it may go on writing, so its work is not taken over, and it is not waited for."""
        interrupted(server, target)
        stopped = _partial._new_name(target)
        (target.parent / "data.bin.em-part").rename(stopped)
        os.utime(stopped, (1, time.time() - 2 * _partial.SILENT_SECONDS))
        assert fetch(f"{server.url}/data.bin", target).received_bytes == len(DATA)
        assert left_in(stopped) == ["data", "journal.json"]


class FakeFtp:
    """Gives a file as FTP does: its size, then bytes from an offset."""

    def __init__(self, data: bytes, *, can_resume: bool = True, breaks: int = 0) -> None:
        self.data, self.can_resume, self.breaks = data, can_resume, breaks
        self.starts = []

    def size_bytes(self, url, *, interrupt=None):
        return len(self.data)

    def read(self, url, start, sink, *, stop=None, on_bytes=None, interrupt=None):
        self.starts.append(start)
        if start and not self.can_resume:
            raise NoResume(f"{url} cannot be read from byte {start} on.")
        for begin in range(start, stop or len(self.data), 100_000):
            sink(memoryview(self.data)[begin : min(begin + 100_000, stop or len(self.data))])
            if self.breaks:
                self.breaks -= 1
                raise NoResume(f"{url} cannot be read from byte {begin} on.")


class TestMirrors:
    def test_the_next_address_is_tried(self, server, target, tmp_path):
        """A file that is not there, a host that does not answer: the receipt says what gave it and what did not."""
        with FaultyServer(tmp_path) as gone:
            dead = gone.url
        receipt = fetch(f"{server.url}/absent", target, mirrors=[f"{dead}/data.bin", f"{server.url}/data.bin"])
        assert target.read_bytes() == DATA
        assert receipt.url == f"{server.url}/data.bin"
        assert ["does not exist" in receipt.notes[0], "cannot be reached" in receipt.notes[1]] == [True, True]
        assert fetch(f"{server.url}/absent", target, mirrors=[f"{server.url}/data.bin"]) == receipt

    def test_all_fail(self, server, target):
        """One sentence names each; a single one is told as it is."""
        with pytest.raises(Unavailable, match=r"cannot be had from any of its 2 addresses: .*/a .*404.*; .*/b .*404"):
            fetch(f"{server.url}/a", target, mirrors=[f"{server.url}/b"])
        with pytest.raises(NotThere):
            fetch(f"{server.url}/a", target)
        assert left_in(target.parent) == []

    def test_ftp_after_https(self, server, target):
        """The same file by the other protocol."""
        settings = Settings()
        ftp = FakeFtp(DATA)
        file = RemoteFile(f"{server.url}/absent", "data.bin")
        receipt = Downloader(HttpClient(settings), settings, ftp=ftp).download(
            file, target, mirrors=["ftp://example.org/data.bin"], magic=[DATA[:3]], connections=4, range_bytes=500_000
        )
        assert receipt.url == "ftp://example.org/data.bin"
        assert (receipt.sha256, receipt.etag) == (SHA256, None)
        assert target.read_bytes() == DATA

    def test_real_ftp_after_https(self, server, target):
        """Through the FTP client, from a server that it knows nothing of; an interrupted run is gone on with."""
        pytest.importorskip("pyftpdlib", reason="pyftpdlib is not installed")
        file = RemoteFile(f"{server.url}/absent", "data.bin", len(DATA), MD5)
        settings, interrupt = Settings(), Interrupt()
        with FtpServer(server.folder) as ftp, contextlib.closing(FtpClient(settings)) as client:
            shared = Downloader(HttpClient(settings), settings, ftp=client)
            options = {"mirrors": [f"{ftp.url}/data.bin"], "connections": 4, "range_bytes": 500_000}
            with pytest.raises(Interrupted):
                shared.download(file, target, on_bytes=lambda _: interrupt.set(), interrupt=interrupt, **options)
            receipt = shared.download(file, target, **options)
        assert receipt.url == f"{ftp.url}/data.bin"
        assert receipt.received_bytes < len(DATA)
        assert target.read_bytes() == DATA

    def test_ftp_without_resuming_starts_over(self, target):
        """Where only the beginning can be asked for, the beginning it is."""
        settings, ftp = Settings(), FakeFtp(DATA, can_resume=False, breaks=2)
        file = RemoteFile("ftp://example.org/data.bin", "data.bin", len(DATA), MD5)
        receipt = Downloader(HttpClient(settings), settings, ftp=ftp).download(file, target)
        assert ftp.starts == [0, 0, 0]
        assert target.read_bytes() == DATA
        assert len(receipt.notes) == 2

    def test_a_local_fault_is_no_reason_for_a_mirror(self, server, target):
        """Another address would not help a folder that is a file."""
        target.parent.write_bytes(b"")
        with pytest.raises(Unavailable, match=rf"{target} could not be written"):
            fetch(f"{server.url}/data.bin", target, mirrors=[f"{server.url}/absent"])
        assert server.requests == 0


class TestVerify:
    def test_f35_what_was_altered_is_found(self, server, target):
        """Size without reading; content when somebody wrote to it, or when the whole is to be read."""
        receipt = fetch(f"{server.url}/data.bin", target)
        assert verify(target, receipt, full=False) is None
        assert verify(target, receipt, full=True) is None
        target.write_bytes(NEW)
        assert "was altered after the download" in verify(target, receipt, full=False)
        os.utime(target, ns=(0, receipt.modified_ns))
        assert verify(target, receipt, full=False) is None
        assert receipt.sha256 in verify(target, receipt, full=True)
        target.write_bytes(DATA + b"x")
        assert "has 3000001 bytes, but 3000000 were downloaded" in verify(target, receipt, full=False)
        target.unlink()
        assert "is not there any more" in verify(target, receipt, full=False)

    @pytest.mark.parametrize("seconds", [0, 4_000_000_000], ids=["1970", "future"])
    def test_f36_a_wrong_clock_does_no_harm(self, server, target, seconds):
        """An odd date is a reason to read the file, not to fetch it again."""
        receipt = fetch(f"{server.url}/data.bin", target)
        os.utime(target, (seconds, seconds))
        assert verify(target, receipt, full=False) is None
        assert fetch(f"{server.url}/data.bin", target) == receipt
        assert server.requests == 1

    @pytest.mark.parametrize("text", ["", "{}", "no json"])
    def test_a_damaged_receipt_is_none(self, server, target, text):
        """Then nothing is known of the file, and it is fetched again."""
        fetch(f"{server.url}/data.bin", target)
        target.with_name("data.bin.receipt.json").write_text(text)
        assert read_receipt(target) is None
        fetch(f"{server.url}/data.bin", target)
        assert server.requests == 2
        assert read_receipt(target) is not None


def test_many_threads_one_file(server, target):
    """They do not tread on each other: one fetches, the others find it there."""
    shared = downloader()
    file = RemoteFile(f"{server.url}/data.bin", "data.bin")
    server.fail = lambda *_: Fault(bytes_per_second=20_000_000)
    found = []
    threads = [threading.Thread(target=lambda: found.append(shared.download(file, target))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len({receipt.sha256 for receipt in found}) == 1
    assert server.requests == 1
    with contextlib.suppress(FileNotFoundError):
        assert left_in(target.parent) == ["data.bin", "data.bin.receipt.json"]
