"""One server that speaks FTP: its address, the connections to it and what its replies mean."""

# ruff: noqa: S321  # it is what these servers speak; what comes is checked by size, and by hash where there is one

from __future__ import annotations

import ftplib
import re
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes, urlsplit

from em_assets.errors import Mismatch
from em_assets.fetch.attempts import Passing
from em_assets.fetch.hosts import Host, Interrupt
from em_assets.fetch.replies import NotThere, explained, safe_url

ENDING_SECONDS = 5.0
"""How long is waited for what a server says of a transfer that has ended: nothing depends on it any more."""
IDLE_SECONDS = 60.0
"""A connection that nobody used for so long is not tried again: servers and firewalls drop it in silence."""
MAX_REPLY_LINES = 500
"""Welcome texts have some dozens."""


class NoResume(Mismatch):
    """The server cannot begin within a file (REST). Only reading it from byte 0 can help."""


@dataclass(frozen=True, slots=True)
class Target:
    """An address, taken apart."""

    shown: str
    name: str
    port: int
    path: str
    """Its bytes, as latin-1: FTP knows no encoding, so what the address encodes is sent as it is."""

    def below(self, name: str) -> Target:
        path = f"{self.path.rstrip('/')}/{name.encode(errors='surrogateescape').decode('latin-1')}"
        return Target(f"{self.shown.rstrip('/')}/{name[:100]!r}", self.name, self.port, path)


def parse_target(url: str) -> Target:
    """Raises Mismatch for anything but a plain ftp address."""
    shown = safe_url(url)
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port or 21
        name.encode("idna")
    except ValueError:
        name, port, parts = "", 0, urlsplit("")
    path = unquote_to_bytes(parts.path)
    if any(byte < 32 or byte == 127 for byte in url.encode(errors="replace") + path):
        # a line break would begin a command of its own
        raise Mismatch(f"{shown!r} holds control characters, which no public file has in its name; correct it.")
    if parts.scheme != "ftp" or not name or parts.query or parts.fragment:
        raise Mismatch(f"{shown} is not an address of the form ftp://host/path (? as %3F, # as %23); correct it.")
    if "@" in parts.netloc:
        raise Mismatch(f"{shown} was given with a user; only public data can be read: leave out what is before the @.")
    return Target(shown, name, port, "/" + path.decode("latin-1").lstrip("/"))


@dataclass(slots=True)
class Place:
    """One server and the connections to it: never more than its host's gate lets through."""

    name: str
    port: int
    host: Host
    idle: deque[Control] = field(default_factory=deque)
    takes_epsv: bool = True

    @contextmanager
    def connected(self, interrupt: Interrupt) -> Iterator[Control]:
        """A connection that is logged in, for one thread. It is used again if all went well."""
        control = self._take_idle() or self._log_in(interrupt)
        keep = False
        try:
            with interrupt.cutting(control.cut):
                yield control
            keep = not control.is_spent
        except NotThere:
            keep = True
            raise
        finally:
            control.close_data()
            if keep:
                control.idle_since = time.monotonic()
                self.idle.append(control)
            else:
                control.close()

    def close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self.idle.pop().close()

    def _take_idle(self) -> Control | None:
        while self.idle:
            try:
                control = self.idle.pop()
            except IndexError:  # another thread took it
                return None
            if control.is_alive():
                return control
            control.close()
        return None

    def _log_in(self, interrupt: Interrupt) -> Control:
        control = Control(self, *self.host.timeouts())
        try:
            self._greet(control)
            with interrupt.cutting(control.cut), ftp_errors(self.host.address):
                control.login()
                control.voidcmd("TYPE I")
        except BaseException:
            control.close()
            raise
        return control

    def _greet(self, control: Control) -> None:
        """Connects and waits for the first reply, which tells whether the host is there."""
        try:
            control.greet(socket.create_connection((self.name, self.port), control.timeout))
        except (OSError, EOFError) as error:
            reason = explained(error)
            self.host.stayed_silent(reason)
            raise Passing(reason, silent=True) from None
        except ftplib.Error as error:
            self.host.answered()
            if reply_code(error) == 421:  # the connections we keep count, too
                self.host.refused()
                self.close_idle()
            with ftp_errors(self.host.address):
                raise
        self.host.answered()


class Control(ftplib.FTP):
    """One control connection, and its data connection where there is one."""

    def __init__(self, place: Place, connect_seconds: float, read_seconds: float) -> None:
        super().__init__(timeout=connect_seconds, encoding="latin-1")
        self.place = place
        self.read_seconds = read_seconds
        self.data: socket.socket | None = None
        self.is_spent = False
        """It cannot be known what it says next: it is not used again."""
        self.idle_since = 0.0
        self._lines = 0

    def greet(self, connection: socket.socket) -> None:
        connection.settimeout(self.read_seconds)
        self.sock, self.af = connection, connection.family
        self.file = connection.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()

    def getmultiline(self) -> str:
        self._lines = 0
        return super().getmultiline()

    def getline(self) -> str:
        self._lines += 1
        if self._lines > MAX_REPLY_LINES:
            raise ftplib.error_proto(f"a reply of more than {MAX_REPLY_LINES} lines")
        return super().getline()

    def makepasv(self) -> tuple[str, int]:
        """Where the data comes from: always the server itself, whatever address it names."""
        assert self.sock is not None
        peer: str = self.sock.getpeername()[0]
        if self.place.takes_epsv or self.af != socket.AF_INET:
            try:
                return peer, _extended_port(self.sendcmd("EPSV"))
            except (ftplib.error_perm, ftplib.error_temp):
                if self.af != socket.AF_INET:
                    raise
                self.place.takes_epsv = False
        return peer, _passive_port(self.sendcmd("PASV"))

    def begin(self, command: str, position: int = 0) -> socket.socket:
        """The data connection of a transfer that has begun. Raises NoResume if it cannot begin at `position`."""
        address = self.makepasv()
        try:
            self.data = socket.create_connection(address, self.timeout)
        except OSError:
            self.place.takes_epsv = False  # some firewalls only understand PASV
            raise
        self.data.settimeout(self.read_seconds)
        if position:
            try:
                self.sendcmd(f"REST {position}")
            except ftplib.error_perm as error:
                raise NoResume(said_by(error)) from None
        reply = self.sendcmd(command)
        if reply.startswith("2"):  # of no meaning; some servers send one first
            reply = self.getresp()
        if not reply.startswith("1"):
            raise ftplib.error_reply(reply)
        return self.data

    def ending(self) -> str | None:
        """What the server says of a transfer that has ended; None if it says nothing."""
        self.close_data()
        assert self.sock is not None
        try:
            self.sock.settimeout(min(ENDING_SECONDS, self.read_seconds))
            said = self.getresp()
            self.sock.settimeout(self.read_seconds)
        except ftplib.Error as error:
            said = str(error)
        except (OSError, EOFError):
            self.is_spent = True
            return None
        self.is_spent = not said.startswith("2")
        return said

    def size_bytes(self, target: Target) -> int:
        with ftp_errors(target.shown):
            said = self.sendcmd(f"SIZE {target.path}")
            found = re.fullmatch(r"213 +([0-9]{1,18}) *", said)
            if found is None:
                raise ftplib.error_proto(said)
            return int(found[1])

    def modified(self, target: Target) -> str | None:
        """When the file changed, in the server's words; None if it does not say."""
        with ftp_errors(target.shown):
            try:
                return self.sendcmd(f"MDTM {target.path}").removeprefix("213").strip()
            except ftplib.error_perm:
                return None

    def is_alive(self) -> bool:
        if time.monotonic() - self.idle_since > IDLE_SECONDS:
            return False
        assert self.sock is not None
        try:
            self.sock.settimeout(self.timeout)  # the short one: another connection is soon made
            self.voidcmd("NOOP")
            self.sock.settimeout(self.read_seconds)
        except (ftplib.Error, OSError, EOFError):
            return False
        return True

    def cut(self) -> None:
        """Ends both connections from another thread."""
        for connection in (self.data, self.sock):
            if connection is not None:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close_data(self) -> None:
        if self.data is not None:
            self.data.close()
            self.data = None


def _extended_port(said: str) -> int:
    """Of `229 Entering Extended Passive Mode (|||6446|)` (RFC 2428, 3)."""
    found = re.search(r"\((\D)[^()]*\1([0-9]{1,5})\1\)", said)
    return _valid_port(said, int(found[2]) if found else 0)


def _passive_port(said: str) -> int:
    """Of `227 Entering Passive Mode (h1,h2,h3,h4,p1,p2)`."""
    found = re.search(r"[0-9]+(?:,[0-9]+){3},([0-9]{1,3}),([0-9]{1,3})", said)
    return _valid_port(said, int(found[1]) * 256 + int(found[2]) if found else 0)


def _valid_port(said: str, port: int) -> int:
    if not 0 < port < 2**16:
        raise ftplib.error_proto(said)
    return port


@contextmanager
def ftp_errors(shown: str) -> Iterator[None]:
    """Turns what ftplib and sockets raise into what it means for the address `shown`."""
    try:
        yield
    except ftplib.error_temp as error:
        raise Passing(f"answered {said_by(error)}") from None
    except ftplib.error_perm as error:
        raise _refusal(shown, error) from None
    except ftplib.Error as error:
        odd = Mismatch(f"{shown} answered what is not FTP ({said_by(error)}); check the address, or try again later.")
        raise Passing(f"answered {said_by(error)}, which is not FTP", odd=odd) from None
    except (OSError, EOFError) as error:
        raise Passing(explained(error)) from None


def _refusal(shown: str, error: ftplib.error_perm) -> Exception:
    code, said = reply_code(error), said_by(error)
    if code == 550:
        return NotThere(f"{shown} does not exist, or is not a public file or folder ({said}); check the address.", 550)
    if code == 530:  # some servers say so when too many are there
        odd = Mismatch(f"{shown} does not let anonymous users in ({said}); only public data can be read.")
        return Passing(f"answered {said}", odd=odd)
    return Mismatch(f"{shown} cannot be read: its server answered {said}; check the address.")


def reply_code(error: Exception) -> int:
    code = str(error)[:3]
    return int(code) if re.fullmatch("[0-9]{3}", code) else 0


def said_by(error: Exception) -> str:
    return plain(str(error))


def plain(said: str) -> str:
    """A server's words as they may be shown."""
    text = said.encode("latin-1", "replace").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:150]
