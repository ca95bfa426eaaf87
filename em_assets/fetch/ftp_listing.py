"""What lies in an FTP folder: MLSD, LIST and NLST, as far as the server knows them."""

from __future__ import annotations

import ftplib
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from em_assets.errors import Malformed, Mismatch
from em_assets.fetch.ftp_connection import Control, Target, ftp_errors, reply_code
from em_assets.fetch.hosts import Interrupt
from em_assets.fetch.replies import NotThere

BLOCK_BYTES = 256 * 2**10
MAX_LISTING_BYTES = 64 * 2**20
"""A folder of 100,000 files lists about 15 MB."""

Kind = Literal["file", "folder", "skip"]
_KINDS: dict[str, Kind] = {"file": "file", "dir": "folder", "cdir": "skip", "pdir": "skip"}
"""Of MLSD, `skip` for the folder itself and the one above."""
_UNIX_ROW = re.compile(
    r"([-dl])[-rwxsStT]{9}[.+@]?\s+[0-9]+\s+(?:\S+\s+){0,2}?([0-9]{1,18})\s+"
    r"(?:[A-Z][a-z]{2}\s+[0-9]{1,2}|[0-9]{1,2}\s+[A-Z][a-z]{2})\s+(?:[0-9]{4}|[0-9]{1,2}:[0-9]{2}) (.+)"
)


@dataclass(frozen=True, slots=True)
class FtpEntry:
    """One row of a folder."""

    name: str
    """Bytes that are not UTF-8 are lone surrogates, as in `os.fsdecode`."""
    size_bytes: int | None
    """None for folders, and where the server does not say."""
    is_folder: bool


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    kind: Kind | None
    """None where only asking tells (links, NLST)."""
    size_bytes: int | None


def list_folder(control: Control, target: Target, interrupt: Interrupt) -> list[FtpEntry]:
    """A folder by MLSD, else LIST if every row is of the known kind, else NLST and SIZE."""
    with ftp_errors(target.shown):
        # as an argument, a name like -la or *.tif would mean something else to some servers
        control.voidcmd(f"CWD {target.path}")
    lines = _lines(control, target, "MLSD", interrupt)
    if lines is not None:
        rows: list[_Row] | None = [_facts_row(line, target) for line in lines]
    else:
        lines = _lines(control, target, "LIST", interrupt)
        rows = None if lines is None else _unix_rows(lines)
    if rows is None:
        lines = _lines(control, target, "NLST", interrupt)
        if lines is None:
            raise Mismatch(f"{target.shown} cannot be listed: its server has no MLSD, LIST or NLST.")
        rows = [_Row(line.rpartition("/")[2], None, None) for line in lines]
    entries: dict[str, FtpEntry] = {}
    for row in rows:
        if row.name in (".", "..") or row.kind == "skip":
            continue
        interrupt.check()
        _require_name(row.name, target)
        entry = _entry(control, target, row)
        if entries.setdefault(row.name, entry) != entry:
            raise Malformed(f"{target.shown} lists {row.name!r} twice, and not alike; look at it before reading on.")
    return [entries[name] for name in sorted(entries)]


def _lines(control: Control, target: Target, command: str, interrupt: Interrupt) -> list[str] | None:
    """What a listing command sends; None if the server does not know it. No length is known: it must end well."""
    try:
        data = control.begin(command)
    except ftplib.error_perm as error:
        if reply_code(error) in (500, 501, 502, 504):
            control.close_data()
            return None
        with ftp_errors(target.shown):
            raise
    except (ftplib.Error, OSError, EOFError):
        with ftp_errors(target.shown):
            raise
    text = bytearray()
    with ftp_errors(target.shown):
        while block := data.recv(BLOCK_BYTES):
            interrupt.check()
            text += block
            if len(text) > MAX_LISTING_BYTES:
                raise Malformed(f"{target.shown} lists more than {MAX_LISTING_BYTES} bytes, the most that is read.")
        control.close_data()
        control.voidresp()
    lines = text.decode(errors="surrogateescape").split("\n")
    return [line.removesuffix("\r") for line in lines if line.strip()]


def _facts_row(line: str, target: Target) -> _Row:
    """A line of MLSD (RFC 3659, 7.2): `type=file;size=5; name`."""
    facts, space, name = line.partition(" ")
    known = dict(fact.lower().split("=", 1) for fact in facts.split(";") if "=" in fact)
    kind, size = known.get("type", ""), known.get("size", "")
    if not space or not kind:
        raise Malformed(
            f"{target.shown} lists {line[:200]!r}, where `type=...; name` was expected; its server is faulty."
        )
    return _Row(name, _KINDS.get(kind), int(size) if re.fullmatch("[0-9]{1,18}", size) else None)


def _unix_rows(lines: list[str]) -> list[_Row] | None:
    """Lines like those of `ls -l`; None if one is not: half understood is not understood."""
    rows = []
    for line in lines:
        if re.fullmatch(r"total [0-9]+", line):
            continue
        found = _UNIX_ROW.fullmatch(line)
        if found is None:
            return None
        letter, size, name = found.groups()
        if letter == "l":
            rows.append(_Row(name.partition(" -> ")[0], None, None))
        else:
            rows.append(_Row(name, "folder" if letter == "d" else "file", int(size)))
    return rows


def _entry(control: Control, target: Target, row: _Row) -> FtpEntry:
    """A row, asked after where its kind is not known. What cannot be opened either way is a file without a size."""
    if row.kind is not None:
        is_folder = row.kind == "folder"
        return FtpEntry(row.name, None if is_folder else row.size_bytes, is_folder)
    place = target.below(row.name)
    with suppress(NotThere):
        return FtpEntry(row.name, control.size_bytes(place), is_folder=False)
    with suppress(NotThere), ftp_errors(place.shown):
        control.voidcmd(f"CWD {place.path}")
        return FtpEntry(row.name, None, is_folder=True)
    return FtpEntry(row.name, None, is_folder=False)


def _require_name(name: str, target: Target) -> None:
    if not name or "/" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise Malformed(f"{target.shown} lists {name[:200]!r}, which is not a name; look at it before reading on.")
