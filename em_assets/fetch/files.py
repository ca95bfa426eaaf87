"""Whole files: resumable, verified, each with a receipt. Nothing is visible under its name before it is whole.

    receipt = Downloader(HttpClient(settings), settings).download(file, folder / "volume.tif", magic=[b"II", b"MM"])

Which bytes are here survives any end of the process (`_partial.py`); ranges arrive side by side and are hashed
meanwhile (`_transfer.py`); what a reply must look like is `replies.py`.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial as bind
from pathlib import Path
from time import monotonic
from typing import Protocol

from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch._hashing import DIGEST_DIGITS
from em_assets.fetch._partial import DiskTrouble, Journal, Partial, claim
from em_assets.fetch._transfer import Arrived, Order, Stream, Transfer, WrongKind
from em_assets.fetch.hosts import Interrupt
from em_assets.fetch.http import HttpClient
from em_assets.fetch.receipts import Receipt, read_receipt, verify
from em_assets.fetch.replies import NotThere, OnBytes, safe_url
from em_assets.fetch.streams import Changed, NoRanges, OnBegin, Sink, Version
from em_assets.settings import Settings
from em_assets.volume import RemoteFile

__all__ = ["Downloader", "Receipt", "read_receipt", "verify"]

RANGE_BYTES = 64 * 2**20
"""EBI's firewall takes many partial reads for an attack: few large ones."""
POLL_SECONDS = 0.2
"""How often it is looked whether another process has finished the same file."""

FRESH_STARTS = 1
"""After a file changed while it was read, or had another checksum than its publisher states."""
FRESH_STARTS_WITHOUT_RANGES = 3
"""Where a broken transfer cannot be resumed."""

log = logging.getLogger(__name__)


class WrongChecksum(Mismatch):
    """The file arrived whole, and is not what its publisher says."""


class Ftp(Protocol):
    """What is used of `ftp.FtpClient`."""

    def size_bytes(self, url: str, *, interrupt: Interrupt | None = None) -> int: ...
    def read(
        self,
        url: str,
        start: int,
        sink: Callable[[memoryview], None],
        *,
        stop: int | None = None,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> None: ...


class Downloader:
    """Downloads for many threads at once; requests go through one client, so its gates per host hold over all files."""

    def __init__(self, client: HttpClient, settings: Settings, *, ftp: Ftp | None = None) -> None:
        """An FTP client is made when it is first needed."""
        self._client, self._settings = client, settings
        self._ftp = ftp
        self._lock = threading.Lock()

    def download(
        self,
        file: RemoteFile,
        target: Path,
        *,
        mirrors: Sequence[str] = (),
        connections: int = 1,
        range_bytes: int = RANGE_BYTES,
        magic: Sequence[bytes] = (),
        check: Callable[[Path], None] | None = None,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Receipt:
        """The file at `target`, whole and verified, with its receipt beside it.

        One that is there already and fits its receipt stays, and nothing is requested. `mirrors` are tried in order
        where the file's own address does not give it. More than one of `connections` fetch ranges of at most
        `range_bytes` (over HTTP; the smaller they are, the closer behind the digest is when the last one ends). The
        file must begin with one of `magic`; `check` may refuse it by an error when it is whole, and not yet in place.
        `on_bytes` hears of what comes over the network: less than the file's size if an earlier run was interrupted,
        more if something had to come twice.

        Raises NotThere, Unavailable, Malformed (a web page, another kind of file), Mismatch (size, checksum, changed
        while it was read). What was received stays beside the target for the next run.
        """
        algorithms = ["sha256"] if file.checksum is None else ["sha256", parse_checksum(file)[0]]
        order = Order(
            size_bytes=file.size_bytes,
            most_bytes=self._settings.max_bytes if file.size_bytes is None else file.size_bytes,
            algorithms=tuple(dict.fromkeys(algorithms)),
            magic=tuple(magic),
            connections=connections,
            range_bytes=range_bytes,
        )
        job = _Job(self, file, target, order, check=check, on_bytes=on_bytes, interrupt=interrupt or Interrupt())
        return job.run((file.url, *mirrors))

    def size_bytes(self, file: RemoteFile, *, mirrors: Sequence[str] = (), interrupt: Interrupt | None = None) -> int:
        """The file's size as its server says it: a request for one byte. Raises as `download`."""
        failures: list[NotThere | Unavailable] = []
        for address in (file.url, *mirrors):
            try:
                if _is_ftp(address):
                    return self._ftp_client().size_bytes(address, interrupt=interrupt)
                reply = self._client.get_range(address, 0, 1, interrupt=interrupt)
            except (NotThere, Unavailable) as error:
                failures.append(error)
                continue
            if reply.object_bytes is not None:
                return reply.object_bytes
            failures.append(Unavailable(f"{safe_url(address)}: its server does not say how large it is."))
        raise failures[0]

    def stream(self, address: str) -> Stream:
        """How bytes come from there."""
        if _is_ftp(address):
            return _FtpStream(self._ftp_client(), address)
        return bind(self._client.stream, address)

    def _ftp_client(self) -> Ftp:
        with self._lock:
            if self._ftp is None:
                from em_assets.fetch.ftp import FtpClient

                self._ftp = FtpClient(self._settings)
            return self._ftp


class _Job:
    """One file."""

    def __init__(
        self,
        downloader: Downloader,
        file: RemoteFile,
        target: Path,
        order: Order,
        *,
        check: Callable[[Path], None] | None,
        on_bytes: OnBytes | None,
        interrupt: Interrupt,
    ) -> None:
        self._downloader, self._file, self._target, self._order = downloader, file, target, order
        self._check = check
        self._on_bytes, self._interrupt = on_bytes, interrupt
        self._notes: list[str] = []

    def run(self, addresses: Sequence[str]) -> Receipt:
        """Waits while another process is at it. What an error leaves behind can be gone on with."""
        while (receipt := self._present(addresses)) is None:
            if (partial := claim(self._target)) is None:
                self._interrupt.wait(POLL_SECONDS)
                continue
            is_done = False
            try:
                # another process may have finished between the look and the claim
                if (receipt := self._present(addresses)) is None:
                    receipt = self._receipt(partial, addresses)
                    partial.commit(receipt)
                is_done = True
            finally:
                partial.discard() if is_done else partial.release()
        return receipt

    def _present(self, addresses: Sequence[str]) -> Receipt | None:
        """The receipt of the file that is there, if it is the one that is wanted, unaltered."""
        receipt = read_receipt(self._target)
        if receipt is None or receipt.path != self._file.path or receipt.checksum != self._file.checksum:
            return None
        if self._file.size_bytes not in (None, receipt.size_bytes) or receipt.url not in map(safe_url, addresses):
            return None
        difference = verify(self._target, receipt, full=False)
        if difference is not None:
            log.warning("%s It is downloaded again.", difference)
        return receipt if difference is None else None

    def _receipt(self, partial: Partial, addresses: Sequence[str]) -> Receipt:
        """Fetches the file into the partial, from the first address that gives it."""
        begun = monotonic()
        url, arrived = self._from_first(partial, addresses)
        modified_ns = partial.settle(arrived.size_bytes)
        self._require_accepted(partial)
        return Receipt(
            path=self._file.path,
            url=safe_url(url),
            size_bytes=arrived.size_bytes,
            sha256=arrived.digests["sha256"],
            etag=arrived.version.etag,
            last_modified=arrived.version.last_modified,
            checksum=self._file.checksum,
            modified_ns=modified_ns,
            downloaded_at=datetime.now(UTC).replace(microsecond=0),
            seconds=round(monotonic() - begun, 3),
            received_bytes=arrived.received_bytes,
            notes=tuple(self._notes),
        )

    def _require_accepted(self, partial: Partial) -> None:
        """What the caller refuses is of no use to the next run either."""
        if self._check is None:
            return
        try:
            self._check(partial.folder / "data")
        except (Malformed, Mismatch, Unsupported):
            partial.reset()
            raise

    def _from_first(self, partial: Partial, addresses: Sequence[str]) -> tuple[str, Arrived]:
        failures: list[NotThere | Unavailable] = []
        for address in addresses:
            try:
                return address, self._from(address, partial)
            except DiskTrouble:
                raise
            except (NotThere, Unavailable) as error:
                failures.append(error)
                self._notes.append(str(error))
                log.warning("%s", error)
        if len(failures) == 1:
            raise failures[0]
        said = "; ".join(str(error).rstrip(".") for error in failures)
        raise Unavailable(f"{self._file.path} cannot be had from any of its {len(failures)} addresses: {said}.")

    def _from(self, address: str, partial: Partial) -> Arrived:
        """From one address; from the beginning again where that is the only right thing to do."""
        order, changes, without_ranges = self._order, 0, 0
        if _is_ftp(address):  # EBI's resets connections that come side by side
            order = replace(order, connections=1)
        resumed = self._resumable(partial.journal(), safe_url(address))
        while True:
            expect = Version()
            if resumed is not None:
                same_source = resumed.source == safe_url(address)
                expect = resumed.version if same_source else Version(size_bytes=resumed.size_bytes)
            stream = self._downloader.stream(address)
            transfer = Transfer(safe_url(address), stream, partial, order, resumed=resumed, expect=expect)
            try:
                arrived = transfer.run(self._interrupt, self._on_bytes)
                self._compare(arrived, safe_url(address))
            except (NoRanges, Changed, WrongChecksum, WrongKind) as error:
                partial.reset()  # what is here is of no use, now or later
                resumed = None
                if isinstance(error, NoRanges):
                    order, without_ranges = replace(order, connections=1), without_ranges + 1
                else:
                    changes += 1
                is_over = changes > FRESH_STARTS or without_ranges > FRESH_STARTS_WITHOUT_RANGES
                if is_over or isinstance(error, WrongKind):
                    raise
                log.warning("%s It is downloaded from the beginning again.", error)
                self._notes.append(str(error))
            else:
                return arrived

    def _resumable(self, journal: Journal | None, source: str) -> Journal | None:
        """What an earlier run left, if it belongs to what this address would send.

        The publisher's checksum settles that in the end; without one, the address must be the same and have an ETag or
        a date.
        """
        if journal is None or self._file.size_bytes not in (None, journal.size_bytes):
            return None
        is_named = journal.source == source and journal.version.condition is not None
        return journal if is_named or self._file.checksum is not None else None

    def _compare(self, arrived: Arrived, url: str) -> None:
        """Raises WrongChecksum if the publisher says something else."""
        if self._file.checksum is None:
            return
        algorithm, digest = parse_checksum(self._file)
        if arrived.digests[algorithm] != digest:
            raise WrongChecksum(
                f"{url} has {algorithm} {arrived.digests[algorithm]}, its publisher states {digest}; compare with "
                "what the publisher states now, then run again."
            )


def _is_ftp(address: str) -> bool:
    return address.lower().startswith("ftp://")


def parse_checksum(file: RemoteFile) -> tuple[str, str]:
    """(algorithm, lower-case hexadecimal digest). Raises Malformed if it is not one that can be compared."""
    algorithm, _, digest = (file.checksum or "").lower().partition(":")
    if len(digest) != DIGEST_DIGITS.get(algorithm) or not re.fullmatch("[0-9a-f]+", digest):
        raise Malformed(
            f"{file.path} has the checksum {file.checksum!r}, expected algorithm:hex with one of "
            f"{', '.join(DIGEST_DIGITS)}; correct the dataset's spec."
        )
    return algorithm, digest


class _FtpStream:
    """Gives FTP the form of `HttpClient.stream`: in order, from one connection; only the size tells versions apart."""

    def __init__(self, client: Ftp, url: str) -> None:
        self._client, self._url = client, url

    def __call__(
        self,
        sink: Sink,
        *,
        start: int,
        stop: int | None,
        expect: Version | None,
        size_bytes: int | None,
        on_begin: OnBegin,
        on_bytes: OnBytes | None,
        interrupt: Interrupt,
    ) -> Version:
        from em_assets.fetch.ftp import NoResume

        version = Version(size_bytes=self._client.size_bytes(self._url, interrupt=interrupt))
        if expect is not None and (difference := expect.difference(version)) is not None:
            raise Changed(
                f"{safe_url(self._url)} changed while it was read: {difference}; look at what its publisher replaced, "
                "then run again."
            )
        on_begin(version, False)  # noqa: FBT003  # ranges can be had
        position = start

        def take(data: memoryview) -> None:
            nonlocal position
            sink(position, data)
            position += len(data)

        try:
            self._client.read(self._url, start, take, stop=stop, on_bytes=on_bytes, interrupt=interrupt)
        except NoResume as error:
            raise NoRanges(str(error)) from None
        return version
