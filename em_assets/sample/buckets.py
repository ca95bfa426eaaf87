"""Lists a folder as S3 lists a bucket: ListObjectsV2 and error replies, as XML.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
"""

from __future__ import annotations

import base64
import binascii
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from xml.sax.saxutils import escape

from em_assets.sample.pages import is_hidden

MAX_KEYS = 1000
"""Of one page, whatever is asked for."""
CONTENT_TYPE = "application/xml"
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

Etag = Callable[[os.stat_result], str]


def is_listing(query: str) -> bool:
    return _parameters(query).get("list-type") == "2"


def listing(bucket: Path, query: str, etag_of: Etag) -> tuple[HTTPStatus, str]:
    """(status, XML) of one page."""
    asked = _parameters(query)
    prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
    try:
        limit = min(int(asked.get("max-keys", MAX_KEYS)), MAX_KEYS)
        after = base64.b64decode(asked.get("continuation-token", ""), validate=True).decode()
    except (ValueError, binascii.Error):
        limit, after = -1, ""
    if limit < 0:
        return HTTPStatus.BAD_REQUEST, error("InvalidArgument", "max-keys or continuation-token is not valid")

    start_after = _order(asked.get("start-after", ""))
    keys = (key for key in _keys(bucket) if key.startswith(prefix) and _order(key) > start_after)
    entries = [entry for entry in _rolled_up(keys, prefix, delimiter) if _order(entry.name) > _order(after)]
    page, is_truncated = entries[:limit], 0 < limit < len(entries)
    encode = urllib.parse.quote if asked.get("encoding-type") == "url" else escape
    lines = [
        f'{DECLARATION}<ListBucketResult xmlns="{NAMESPACE}"><Name>{bucket.name}</Name>',
        f"<Prefix>{encode(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount><MaxKeys>{limit}</MaxKeys>",
        f"<Delimiter>{encode(delimiter)}</Delimiter>" if delimiter else "",
        "<EncodingType>url</EncodingType>" if "encoding-type" in asked else "",
        f"<IsTruncated>{str(is_truncated).lower()}</IsTruncated>",
        f"<NextContinuationToken>{_token(page[-1].name)}</NextContinuationToken>" if is_truncated else "",
        *(_entry_xml(bucket, entry, encode, etag_of) for entry in page),
        "</ListBucketResult>",
    ]
    return HTTPStatus.OK, "".join(lines)


def error(code: str, message: str, key: str = "") -> str:
    where = f"<Key>{escape(key)}</Key>" if key else ""
    return f"{DECLARATION}<Error><Code>{code}</Code><Message>{escape(message)}</Message>{where}</Error>"


def _parameters(query: str) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(query, keep_blank_values=True))


def _keys(bucket: Path) -> list[str]:
    """Every key, in S3's order: of the UTF-8 bytes."""
    files = (Path(folder, name) for folder, _, names in os.walk(bucket) for name in names if not is_hidden(name))
    return sorted((file.relative_to(bucket).as_posix() for file in files), key=_order)


def _order(key: str) -> bytes:
    return key.encode()


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key, or the common beginning of several."""

    name: str
    is_prefix: bool


def _rolled_up(keys: Iterator[str], prefix: str, delimiter: str) -> Iterator[_Entry]:
    """Keys, and in place of those with the delimiter after the prefix their common beginning, once."""
    last = None
    for key in keys:
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        entry = _Entry(key, is_prefix=False) if end < 0 else _Entry(key[: end + len(delimiter)], is_prefix=True)
        if entry != last:
            yield entry
        last = entry


def _entry_xml(bucket: Path, entry: _Entry, encode: Callable[[str], str], etag_of: Etag) -> str:
    if entry.is_prefix:
        return f"<CommonPrefixes><Prefix>{encode(entry.name)}</Prefix></CommonPrefixes>"
    stat = (bucket / entry.name).stat()
    modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stat.st_mtime))
    return (
        f"<Contents><Key>{encode(entry.name)}</Key><LastModified>{modified}</LastModified>"
        f"<ETag>{escape(etag_of(stat))}</ETag><Size>{stat.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def _token(entry: str) -> str:
    return base64.b64encode(entry.encode()).decode()
