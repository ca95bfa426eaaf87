"""The first 1024 bytes of a remote MRC file as a document: what the file says of itself, for a kilobyte of gigabytes.

It is kept as those bytes, and behind them the reply's Content-Range, which has the file's size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from em_assets.errors import Malformed
from em_assets.fetch.client import Client
from em_assets.formats._mrc_extended import header_tags
from em_assets.formats._mrc_header import HEADER_BYTES, MrcHeader, read_header
from em_assets.formats.reader import Scalar

CONTENT_RANGE = re.compile(rb"bytes 0-1023/(\d{1,18})\n")


def fetch_mrc_header(client: Client, url: str) -> bytes:
    """The document. Raises Malformed if it is no MRC file or the server does not say how large it is, NotThere ..."""
    reply = client.get_range(url, 0, HEADER_BYTES)
    size = "*" if reply.object_bytes is None else reply.object_bytes
    return bytes(reply.body) + f"bytes 0-{HEADER_BYTES - 1}/{size}\n".encode()


def read_header_document(raw: bytes, where: str) -> tuple[MrcHeader, int]:
    """(the header, the file's size in bytes). Raises Malformed, also if the header does not describe that size."""
    found = CONTENT_RANGE.fullmatch(raw, HEADER_BYTES)
    if found is None:
        raise Malformed(
            f"{where} has {raw[HEADER_BYTES:][:60]!r} after the header's {HEADER_BYTES} bytes, expected the reply's "
            "Content-Range with the file's size; get it again."
        )
    size_bytes = int(found[1])
    return read_header(raw[:HEADER_BYTES], where, size_bytes), size_bytes


def header_leaves(raw: bytes, where: str) -> Iterator[tuple[str, Scalar]]:
    """`/size_bytes` of the whole file, and the header's fields by the standard's names, as a reader's tags."""
    header, size_bytes = read_header_document(raw, where)
    yield "/size_bytes", size_bytes
    yield from header_tags(header)
