"""FTP under faults: bytes come whole, in order and once, or an error says why."""

import contextlib
import io
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.fetch import attempts, ftp, ftp_connection, ftp_listing
from em_assets.fetch.ftp import FtpClient, FtpEntry, NoResume
from em_assets.fetch.hosts import HostUnreachable, Interrupt, Interrupted
from em_assets.fetch.replies import NotThere
from em_assets.settings import Settings

with contextlib.suppress(ImportError):
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import DTPHandler, FTPHandler
    from pyftpdlib.ioloop import IOLoop
    from pyftpdlib.servers import FTPServer
if "FTPHandler" not in globals():
    pytest.skip("pyftpdlib is not installed", allow_module_level=True)

DATA = bytes(itertools.islice(itertools.cycle(range(251)), 3_000_000))


class Data(DTPHandler):
    """Breaks off after `server.cut` bytes, once for each number in that list."""

    def initiate_send(self):
        cuts = self.cmd_channel.server.cuts
        if cuts and self.tot_bytes_sent >= cuts[0]:
            cuts.pop(0)
            self.cmd_channel.server.lost.append(self.tot_bytes_sent)
            self.close()
            self.cmd_channel.close()
            return
        super().initiate_send()

    def send(self, data):
        """Never beyond the next cut."""
        cuts = self.cmd_channel.server.cuts
        return super().send(data[: max(0, cuts[0] - self.tot_bytes_sent)] if cuts else data)


class Handler(FTPHandler):
    """Anonymous FTP that does what `server.refuse` and the like say."""

    dtp_handler = Data
    auth_failed_timeout = 0
    use_sendfile = False
    banner = "ready"

    def on_connect(self):
        if self.server.busy > 0:
            self.server.busy -= 1
            self.respond("421 Too many connections, try later.")
            self.close_when_done()

    def process_command(self, cmd, *args, **kwargs):
        self.server.commands.append((cmd, args[0] if args else ""))
        refusal = self.server.refuse.get(cmd)
        if refusal is not None:
            self.respond(refusal)
            if refusal.startswith("421"):
                self.close_when_done()
            return
        super().process_command(cmd, *args, **kwargs)

    def respond(self, resp, *args, **kwargs):
        if resp.startswith("226") and self.server.lose_226 > 0:
            self.server.lose_226 -= 1
            self.close()
            return
        super().respond(self.server.reword(resp), *args, **kwargs)


class Server:
    """`with Server(folder) as server: server.url`. What it does wrong is set on it."""

    def __init__(self, folder: Path) -> None:
        authorizer = DummyAuthorizer()
        authorizer.add_anonymous(str(folder))
        handler = type("OwnHandler", (Handler,), {"authorizer": authorizer})
        self.loop = IOLoop()
        self.ftpd = FTPServer(("127.0.0.1", 0), handler, ioloop=self.loop)
        self.ftpd.busy = 0
        self.ftpd.cuts = []
        self.ftpd.lost = []
        self.ftpd.lose_226 = 0
        self.ftpd.refuse = {}
        self.ftpd.commands = []
        self.ftpd.reword = lambda reply: reply
        self.url = f"ftp://127.0.0.1:{self.ftpd.socket.getsockname()[1]}"
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self.ftpd, self.url

    def __exit__(self, *exc_info: object) -> None:
        self.stopping.set()
        self.thread.join(5)

    def serve(self) -> None:
        """Closed in its own thread: the loop must not wait on what is closed."""
        while not self.stopping.is_set():
            self.loop.loop(0.05, blocking=False)
        self.ftpd.close_all()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    """Tests wait for the rule under test, not for back-off; pyftpdlib's log is its own."""
    monkeypatch.setattr(attempts, "BACKOFF_SECONDS", 0.02)
    logging.getLogger("pyftpdlib").setLevel(logging.CRITICAL)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data.bin").write_bytes(DATA)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "a b+c").mkdir()
    (tmp_path / "a b+c" / "é#1.tif").write_bytes(DATA[:1000])
    (tmp_path / "a b+c" / "-la").write_bytes(b"x")
    (tmp_path / "a b+c" / "deeper").mkdir()
    (tmp_path / "a b+c" / "link").symlink_to("é#1.tif")
    return tmp_path


@pytest.fixture
def server(folder):
    with Server(folder) as (ftpd, url):
        ftpd.url = url
        yield ftpd


@pytest.fixture
def client():
    clients = []

    def make(**changes) -> FtpClient:
        values = {"unreachable_seconds": 1.0, "retry_seconds": 3.0, "connect_seconds": 1.0, "read_seconds": 1.0}
        clients.append(FtpClient(Settings(**{**values, **changes})))
        return clients[-1]

    yield make
    for made in clients:
        made.close()


def read(client: FtpClient, url: str, start: int = 0, stop: int | None = None, **options) -> bytes:
    """What the sink got."""
    got = io.BytesIO()
    client.read(url, start, got.write, stop=stop, **options)
    return got.getvalue()


def said(server, command: str) -> list[str]:
    return [argument for name, argument in server.commands if name == command]


class TestReading:
    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, None), (0, 1), (1000, 5000), (2_999_999, None), (0, 3_000_000), (3_000_000, None), (5, 5)],
    )
    def test_a_range_is_exactly_the_bytes_asked_for(self, server, client, start, stop):
        """Start inclusive, stop exclusive."""
        assert read(client(), f"{server.url}/data.bin", start, stop) == DATA[start:stop]

    def test_an_empty_file_is_whole(self, server, client):
        assert read(client(), f"{server.url}/empty") == b""

    def test_an_address_is_decoded_once(self, server, client):
        """Spaces, plus, letters beyond ASCII and # are sent as the file's name has them."""
        url = f"{server.url}/a%20b+c/%C3%A9%231.tif"
        assert client().size_bytes(url) == 1000
        assert read(client(), url) == DATA[:1000]

    def test_a_connection_is_used_again(self, server, client):
        """One login for all that comes one after the other."""
        one = client()
        for _ in range(3):
            assert read(one, f"{server.url}/data.bin") == DATA
            with pytest.raises(NotThere):
                one.size_bytes(f"{server.url}/absent")
        assert len(said(server, "USER")) == 1

    def test_a_connection_that_was_dropped_while_idle_is_replaced(self, server, client):
        """The next transfer logs in again, at once."""
        one = client()
        one.size_bytes(f"{server.url}/data.bin")
        server.refuse = {"NOOP": "421 Idle for too long."}
        assert read(one, f"{server.url}/data.bin") == DATA
        assert len(said(server, "USER")) == 2

    def test_no_more_connections_than_the_gate_allows(self, server, client):
        """Sixteen threads, two connections."""
        one = client(connections_per_host=2)
        threads = [threading.Thread(target=read, args=(one, f"{server.url}/data.bin")) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(said(server, "RETR")) == 16
        assert len(said(server, "USER")) <= 2

    def test_on_bytes_hears_of_every_byte_once(self, server, client):
        """Over breaks, too."""
        server.cuts = [1000, 70_000]
        heard = []
        read(client(), f"{server.url}/data.bin", on_bytes=heard.append)
        assert sum(heard) == len(DATA)

    def test_what_the_sink_raises_ends_it(self, server, client):
        """A full disk is not the server's fault: no new attempt."""

        def full(_: memoryview) -> None:
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            client().read(f"{server.url}/data.bin", 0, full)
        assert len(said(server, "RETR")) == 1

    def test_an_interrupt_ends_it(self, server, client):
        """Also while nothing comes."""
        interrupt = Interrupt()
        got = []

        def sink(block: memoryview) -> None:
            got.append(len(block))
            interrupt.set()

        with pytest.raises(Interrupted):
            client().read(f"{server.url}/data.bin", 0, sink, interrupt=interrupt)
        assert len(got) == 1


class TestF22:
    """What FTP servers do wrong: each is met, or named."""

    @pytest.mark.parametrize("percent", [0, 10, 50, 99])
    def test_a_transfer_that_breaks_off_goes_on_where_it_was(self, server, client, percent):
        """The rest is asked for by REST; nothing is sent twice."""
        cut = len(DATA) * percent // 100
        server.cuts = [cut]
        assert read(client(), f"{server.url}/data.bin") == DATA
        assert server.lost == [cut]
        assert said(server, "REST") == ([str(cut)] if cut else [])

    @hypothesis_settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.integers(0, 400_000), max_size=5), st.integers(0, 2_000_000), st.integers(1, 1_000_000))
    def test_any_number_of_breaks_leaves_the_right_bytes(self, server, client, cuts, start, size):
        """In order, each once."""
        server.cuts = list(cuts)
        assert read(client(), f"{server.url}/data.bin", start, start + size) == DATA[start : start + size]
        server.cuts = []

    @pytest.mark.parametrize("times", [1, 3])
    def test_421_at_login_is_tried_again(self, server, client, times):
        """Too many connections is something that passes."""
        server.busy = times
        assert read(client(), f"{server.url}/data.bin") == DATA

    def test_421_for_ever_is_unavailable(self, server, client):
        """The sentence quotes the server."""
        server.busy = 10**6
        with pytest.raises(Unavailable, match=r"421 Too many connections.*try again later") as caught:
            read(client(retry_seconds=0.3), f"{server.url}/data.bin")
        assert not isinstance(caught.value, HostUnreachable)

    def test_421_in_place_of_a_transfer_is_tried_again(self, server, client):
        """A busy server may only say so when it is asked for data."""
        busy = iter(["421 Server is going down."])

        def retr(reply: str) -> str:
            return next(busy, reply) if reply.startswith(("150", "125")) else reply

        server.reword = retr
        assert read(client(), f"{server.url}/data.bin") == DATA

    @pytest.mark.parametrize("start", [0, 1000])
    def test_a_lost_226_is_a_success(self, server, client, start):
        """All bytes are here: SIZE decides, and nothing is read again."""
        server.lose_226 = 1
        assert read(client(), f"{server.url}/data.bin", start) == DATA[start:]
        assert len(said(server, "RETR")) == 1

    @pytest.mark.parametrize("reply", ["426 Connection closed; transfer aborted.", "451 Local error.", "226 Done."])
    def test_whatever_is_said_after_all_bytes(self, server, client, reply):
        server.reword = lambda said: reply if said.startswith("226") else said
        one = client()
        assert read(one, f"{server.url}/data.bin") == DATA
        assert read(one, f"{server.url}/data.bin") == DATA

    def test_226_without_all_bytes_is_no_success(self, server, client):
        """Half a file that is called done is asked for further, and refused if that stays so."""
        server.reword = lambda said: "213 4000000" if said.startswith("213 3") else said
        with pytest.raises(Malformed, match="has 4000000 bytes, but its server sends 3000000 and says it is done"):
            read(client(), f"{server.url}/data.bin")

    def test_more_bytes_than_size_is_refused(self, server, client):
        server.reword = lambda said: "213 2000000" if said.startswith("213 3") else said
        with pytest.raises(Mismatch, match="sent more than its 2000000 bytes"):
            read(client(), f"{server.url}/data.bin")

    @pytest.mark.parametrize("code", ["500 Unknown", "501 Bad", "502 Not implemented", "504 Not for that"])
    def test_no_rest_says_so(self, server, client, code):
        """What the sink took cannot be taken back; only the caller can begin again."""
        server.refuse = {"REST": code}
        with pytest.raises(NoResume, match=rf"from byte 1000 on.*{code}.*read it again from the beginning"):
            read(client(), f"{server.url}/data.bin", 1000)
        server.cuts = [5000]
        with pytest.raises(NoResume, match="from byte 5000 on"):
            read(client(), f"{server.url}/data.bin")

    def test_no_rest_is_not_needed_before_the_first_byte(self, server, client):
        server.refuse = {"REST": "502 Not implemented"}
        server.cuts = [0]
        assert read(client(), f"{server.url}/data.bin") == DATA

    @pytest.mark.parametrize("code", ["500 Unknown", "502 Not implemented", "425 Cannot"])
    def test_epsv_refused_uses_pasv(self, server, client, code):
        """And does not ask for EPSV again."""
        server.refuse = {"EPSV": code}
        one = client()
        for _ in range(3):
            assert read(one, f"{server.url}/data.bin") == DATA
        assert len(said(server, "EPSV")) == 1
        assert len(said(server, "PASV")) == 3

    def test_epsv_whose_port_is_blocked_uses_pasv(self, server, client):
        """A firewall that opens ports by reading PASV replies."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        server.reword = lambda said: f"229 Extended (|||{port}|)" if said.startswith("229") else said
        assert read(client(), f"{server.url}/data.bin") == DATA

    @pytest.mark.parametrize("command", ["EPSV", "PASV"])
    def test_an_address_for_data_is_not_believed(self, server, client, command):
        """Only the port counts: the data comes from the server that was asked (192.0.2.1 leads nowhere)."""
        server.refuse = {"EPSV": "500 Unknown"} if command == "PASV" else {}

        def reword(said: str) -> str:
            if said.startswith("229"):
                return said.replace("(|||", "(|1|192.0.2.1|")
            return said.replace("127,0,0,1", "192,0,2,1") if said.startswith("227") else said

        server.reword = reword
        assert read(client(), f"{server.url}/data.bin") == DATA

    @pytest.mark.parametrize("refused", [[], ["MLSD"], ["MLSD", "LIST"]], ids=["MLSD", "LIST", "NLST"])
    def test_no_mlsd_uses_list_and_then_nlst(self, server, client, refused):
        """The same rows in all three ways."""
        server.refuse = dict.fromkeys(refused, "500 Unknown command")
        assert client().list(f"{server.url}/a%20b+c") == [
            FtpEntry("-la", 1, is_folder=False),
            FtpEntry("deeper", None, is_folder=True),
            FtpEntry("link", 1000, is_folder=False),
            FtpEntry("é#1.tif", 1000, is_folder=False),
        ]

    def test_a_list_of_an_unknown_kind_is_not_guessed_at(self, server, client, monkeypatch):
        """Rows of another system: names come by NLST, sizes by SIZE."""
        server.refuse = {"MLSD": "500 Unknown command"}
        monkeypatch.setattr(ftp_listing, "_UNIX_ROW", ftp_listing.re.compile("no row is like this"))
        names = [entry.name for entry in client().list(f"{server.url}/")]
        assert names == ["a b+c", "data.bin", "empty"]
        assert len(said(server, "SIZE")) == 3


class TestFiles:
    @pytest.mark.parametrize("path", ["absent", "a%20b+c", "absent/deeper"])
    def test_what_is_not_there_is_not_tried_again(self, server, client, path):
        """A folder has no size either."""
        one = client()
        with pytest.raises(NotThere, match=r"does not exist.*550") as caught:
            one.size_bytes(f"{server.url}/{path}")
        assert caught.value.status == 550
        with pytest.raises(NotThere):
            read(one, f"{server.url}/{path}")
        assert len(said(server, "SIZE")) == 2

    @pytest.mark.parametrize("path", ["absent/", "data.bin"])
    def test_what_is_no_folder_is_not_listed(self, server, client, path):
        """Some servers list nothing there, and say it went well."""
        with pytest.raises(NotThere):
            client().list(f"{server.url}/{path}")

    def test_a_range_beyond_the_end_is_malformed(self, server, client):
        """Nothing is transferred."""
        with pytest.raises(Malformed, match="has 3000000 bytes, but bytes 2999000-3000001"):
            read(client(), f"{server.url}/data.bin", 2_999_000, 3_000_001)
        assert not said(server, "RETR")

    @pytest.mark.parametrize("change", ["size", "time"])
    def test_a_file_that_changes_between_attempts_is_refused(self, server, client, change):
        """F6: never half of one and half of the other."""
        server.cuts = [1000]
        prefix, changed = {"size": ("213 3", "213 3000001"), "time": ("213 2", "213 20300101000000")}[change]
        seen = itertools.count()
        server.reword = lambda said: changed if said.startswith(prefix) and next(seen) else said
        with pytest.raises(Mismatch, match="changed while it was read"):
            read(client(), f"{server.url}/data.bin")

    def test_a_login_that_is_asked_for_is_refused(self, server, client):
        """After some attempts: some servers say so when too many are there."""
        server.refuse = {"PASS": "530 Login incorrect."}
        with pytest.raises(Mismatch, match="does not let anonymous users in"):
            client().size_bytes(f"{server.url}/data.bin")
        assert len(said(server, "PASS")) == 3

    def test_a_server_without_size_is_refused(self, server, client):
        """A cut transfer would look whole."""
        server.refuse = {"SIZE": "502 Not implemented"}
        with pytest.raises(Mismatch, match="502 Not implemented"):
            read(client(), f"{server.url}/data.bin")

    @pytest.mark.parametrize(
        "url",
        [
            pytest.param("ftp://127.0.0.1/a%0D%0ADELE%20b", id="CRLF"),
            pytest.param("ftp://127.0.0.1/a%0Ab", id="LF"),
            pytest.param("ftp://127.0.0.1/a\nb", id="a raw LF, which urllib would drop"),
            pytest.param("ftp://127.0.0.1/a%00b", id="NUL"),
            pytest.param("ftp://127.0.0.1/a%7Fb", id="DEL"),
            pytest.param("ftp://user:secret@127.0.0.1/a", id="user and password"),
            pytest.param("ftp://127.0.0.1/a?b", id="query"),
            pytest.param("ftp://127.0.0.1/a#b", id="fragment"),
            pytest.param("ftp:///a", id="no host"),
            pytest.param("ftp://127.0.0.1:99999/a", id="port"),
            pytest.param(f"ftp://{'a' * 70}.example/a", id="host name too long"),
            pytest.param("ftp://[::1/a", id="half an address"),
            pytest.param("http://127.0.0.1/a", id="http"),
            pytest.param("", id="nothing"),
        ],
    )
    def test_an_address_that_is_not_plain_is_refused(self, client, url):
        """Nothing is sent; a password is not shown, a line break does not reach the terminal."""
        with pytest.raises(Mismatch) as caught:
            client().size_bytes(url)
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


class TestListing:
    @pytest.mark.parametrize(
        ("line", "row"),
        [
            ("-rw-r--r--   1 ftp      ftp      30396050 Jun 11  2018 A 1.dm3", ("A 1.dm3", "file", 30396050)),
            ("drwxrwsr-x. 2 1000 1000 4096 Jan  1 00:01  led by a space", (" led by a space", "folder", 4096)),
            ("-rw-r--r-- 1 ftp 5 Jan 01 2020 no group", ("no group", "file", 5)),
            ("-rw-r--r--+ 1 a b 5 1 Jan 12:00 day first", ("day first", "file", 5)),
            ("lrwxrwxrwx 1 a b 3 Jan 01 2020 link -> there", ("link", None, None)),
            ("-rw-r--r-- 1 a b 5 Jan 01 2020 2019 3 Jan 01 2020", ("2019 3 Jan 01 2020", "file", 5)),
        ],
    )
    def test_a_row_like_ls_is_understood(self, line, row):
        found = ftp_listing._unix_rows(["total 8", line])
        assert [(r.name, r.kind, r.size_bytes) for r in found] == [row]

    @pytest.mark.parametrize(
        "line",
        [
            "04-27-00  09:09PM       <DIR>          licensed",
            "+i8388621.48594,m825718503,r,s280,\tdjb.html",
            "-rw-r--r-- 1 a b Jan 01 2020 no size",
            "brw-rw---- 1 a b 8, 0 Jan 01 2020 sda",
            "-rw-r--r-- 1 a b -5 Jan 01 2020 x",
            "x",
        ],
    )
    def test_other_rows_are_not_guessed_at(self, line):
        assert ftp_listing._unix_rows([line]) is None

    @pytest.mark.parametrize(
        ("listed", "says"),
        [
            pytest.param(b"type=file;size=1; ../evil\r\n", "is not a name", id="B34 ../evil"),
            pytest.param(b"type=file;size=1; /etc/x\r\n", "is not a name", id="B34 /etc/x"),
            pytest.param(b"type=file;size=1; a\x1b[2J\r\n", "is not a name", id="B34 escape"),
            pytest.param(b"type=file;size=1; a\rDELE b\r\n", "is not a name", id="B34 line break"),
            pytest.param(b"type=file;size=1; \r\n", "is not a name", id="B34 empty"),
            pytest.param(b"type=file; a\r\ntype=dir; a\r\n", "twice, and not alike", id="B34 a file and a folder"),
            pytest.param(b"hello\r\n", "type=...; name", id="no facts"),
            pytest.param(b"size=1; a\r\n", "type=...; name", id="no type"),
            pytest.param(b"type=file;size=1; a\r\n" * 10**6, "more than", id="endless"),
        ],
    )
    def test_a_bad_listing_is_refused_by_name(self, client, monkeypatch, listed, says):
        monkeypatch.setattr(ftp_listing, "MAX_LISTING_BYTES", 10**6)
        with Scripted(lambda command: None, listed) as url, pytest.raises(Malformed, match=says) as caught:
            client().list(f"{url}/folder")
        assert "\x1b" not in str(caught.value) and "\r" not in str(caught.value)

    def test_rows_that_say_the_same_twice_are_one(self, client):
        """Bytes that are not UTF-8 stay what they are; the folder itself and the one above are left out."""
        listed = b"type=cdir; .\r\ntype=pdir; ..\r\ntype=file;size=7; a\xff\ntype=FILE;Size=7; a\xff\n"
        with Scripted(lambda command: None, listed) as url:
            assert client().list(f"{url}/folder") == [FtpEntry("a\udcff", 7, is_folder=False)]

    def test_a_listing_that_is_cut_is_not_believed(self, server, client):
        """No size tells that it is whole, so it must end well."""
        server.lose_226 = 1
        assert len(client().list(f"{server.url}/")) == 3
        assert len(said(server, "MLSD")) == 2


class Scripted:
    """A server that says exactly what a test gives it: replies that no FTP library can be made to send."""

    def __init__(
        self, script: Callable[[str], str | bytes | None], data: bytes = b"", banner: bytes = b"220 ready\r\n"
    ):
        """`script(command)`: the reply, "" for none at all, None for the usual one."""
        self.script, self.data, self.banner = script, data, banner
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.passive = socket.create_server(("127.0.0.1", 0))
        self.logins = 0

    def __enter__(self) -> str:
        threading.Thread(target=self.listen, daemon=True).start()
        return f"ftp://127.0.0.1:{self.listener.getsockname()[1]}"

    def __exit__(self, *exc_info: object) -> None:
        for listener in (self.listener, self.passive):
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def listen(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.logins += 1
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(self.banner)
            for line in connection.makefile("rb"):
                command = line.decode("latin-1").strip()
                reply = self.script(command)
                reply = self.usual(command) if reply is None else reply
                connection.sendall(reply if isinstance(reply, bytes) else f"{reply}\r\n".encode() if reply else b"")
                if command.startswith(("RETR", "MLSD")):
                    with self.passive.accept()[0] as data:
                        data.sendall(self.data)
                    connection.sendall(b"226 done\r\n")

    def usual(self, command: str) -> str:
        replies = {
            "USER": "331 password",
            "PASS": "230 in",
            "EPSV": f"229 here (|||{self.passive.getsockname()[1]}|)",
            "SIZE": f"213 {len(self.data)}",
            "MDTM": "213 20180611222645",
            "RETR": "150 here it comes",
            "MLSD": "150 here it comes",
        }
        return replies.get(command.partition(" ")[0], "200 ok")


class TestOddServers:
    @pytest.mark.parametrize(
        ("banner", "says"),
        [
            pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", "not FTP", id="an HTTP server"),
            pytest.param(b"x" * 10_000 + b"\r\n", "not FTP", id="an endless line"),
            pytest.param(b"220-hello\r\n" * 10_000, "not FTP", id="an endless reply"),
            pytest.param(b"\xff\xfe\x00\r\n", "not FTP", id="bytes"),
            pytest.param(b"530 Not for you\r\n", "anonymous", id="530 at once"),
        ],
    )
    def test_what_is_not_ftp_is_refused(self, client, banner, says):
        """After some attempts; its words are shown without what a terminal would obey."""
        with Scripted(lambda command: None, banner=banner) as url, pytest.raises(Mismatch, match=says) as caught:
            client().size_bytes(f"{url}/x")
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500

    @pytest.mark.parametrize(
        "reply",
        ["213 x", "213 -5", f"213 {'9' * 5000}", "213", "200 ok", "213 \uff15"],
        ids=["word", "negative", "digits", "none", "other code", "other digits"],
    )
    def test_a_size_that_is_no_number_is_refused(self, client, reply):
        script = Scripted(lambda command: reply if command.startswith("SIZE") else None)
        with script as url, pytest.raises(Mismatch, match="not FTP"):
            client().size_bytes(f"{url}/x")

    @pytest.mark.parametrize(
        "reply",
        ["229 ok", "229 (|||0|)", "229 (|||99999|)", f"229 (|||{'9' * 5000}|)", "229 (||||)", "200 ok"],
        ids=["nothing", "0", "99999", "digits", "empty", "other code"],
    )
    def test_a_port_that_is_none_is_refused(self, client, reply):
        script = Scripted(lambda command: reply if command.startswith("EPSV") else None, b"abc")
        with script as url, pytest.raises(Mismatch, match="not FTP"):
            read(client(), f"{url}/x")

    def test_a_stalled_transfer_goes_on(self, server, client, monkeypatch):
        """F13: nothing comes for `read_seconds`: a new connection, from there on."""
        stall = iter([True])

        def send(self, data):
            if self.tot_bytes_sent >= 500_000 and next(stall, False):
                server.stalled = True
                time.sleep(1.5)
            return DTPHandler.send(self, data[:500_000])

        monkeypatch.setattr(Data, "send", send)
        assert read(client(read_seconds=0.3), f"{server.url}/data.bin") == DATA
        assert server.stalled
        assert said(server, "REST") != []

    def test_a_trickle_is_given_up(self, client):
        """F14: slower than the least speed over `read_seconds`: not worth waiting for."""
        with Trickle() as url, pytest.raises(Unavailable, match=r"only \d+ bytes came in"):
            read(client(read_seconds=0.2, retry_seconds=0.5, min_bytes_per_second=1000), f"{url}/x")

    @pytest.mark.parametrize(
        ("kind", "words"), [("refused", "the connection was refused"), ("silent", "it sent nothing for too long")]
    )
    def test_a_host_that_never_answers_is_given_up(self, client, kind, words):
        """F16: one verdict for all requests to it, in one sentence."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            if kind == "refused":
                listener.close()
            one = client(unreachable_seconds=0.5)
            with pytest.raises(HostUnreachable, match=rf"ftp://127.0.0.1:{port} cannot be reached: {words}"):
                one.size_bytes(f"ftp://127.0.0.1:{port}/x")
            begun = time.monotonic()
            with pytest.raises(HostUnreachable):
                read(one, f"ftp://127.0.0.1:{port}/y")
            assert time.monotonic() - begun < 0.4

    def test_an_interrupt_ends_a_silence(self, client):
        """Without waiting for the time-out."""
        interrupt = Interrupt()
        with Scripted(lambda command: "" if command.startswith("SIZE") else None) as url:
            threading.Timer(0.2, interrupt.set).start()
            with pytest.raises(Interrupted):
                client(read_seconds=30).size_bytes(f"{url}/x", interrupt=interrupt)


class Trickle(Scripted):
    """Ten bytes a second."""

    def __init__(self) -> None:
        super().__init__(lambda command: None, b"x" * 10**6)

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(self.banner)
            for line in connection.makefile("rb"):
                command = line.decode().strip()
                connection.sendall(f"{self.usual(command)}\r\n".encode())
                if command.startswith("RETR"):
                    with self.passive.accept()[0] as data:
                        for byte in self.data:
                            data.sendall(bytes([byte]))
                            time.sleep(0.1)


def test_waits_for_endings_are_short():
    """Nothing depends on them any more."""
    assert ftp.ENDING_SECONDS == ftp_connection.ENDING_SECONDS <= 10
