"""Public buckets: their addresses over plain HTTPS, and what they list.

Plain HTTPS is unsigned by construction: credentials in the environment, right or wrong, cannot spoil it. Many small
objects at once are `s3_copy.py`'s.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote_plus, urlencode
from xml.etree import ElementTree as ET

from em_assets.errors import Malformed
from em_assets.fetch.client import Client

MAX_PAGE_BYTES = 8 * 2**20
"""A thousand keys of 1024 bytes, each byte as %XX, are half of that."""
MAX_PAGE_TAGS = 60_000
"""A thousand objects have about 20,000."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """`s3://name/key`, `gs://name/key`, taken apart."""

    scheme: Literal["s3", "gs"]
    name: str
    key: str
    """As it is, not percent-encoded: such addresses never are."""
    url: str
    """Of the bucket, over HTTP(S), without a slash at its end."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}/{self.key}"

    def object_url(self, key: str) -> str:
        """Where a plain GET finds the object. Raises Malformed for keys that no plain GET can name."""
        if any(part in (".", "..") for part in key.split("/")):
            raise Malformed(f"the key {key[:300]!r} has `.` or `..` parts, which HTTP clients drop; leave it out.")
        return f"{self.url}/{quote(key, safe='/')}"


@dataclass(frozen=True, slots=True)
class ListedObject:
    key: str
    size_bytes: int
    etag: str | None
    """Without quotes: the md5 in hex if there is no `-` in it."""


@dataclass(frozen=True, slots=True)
class CommonPrefix:
    """What a listing with a delimiter has in place of a folder's objects."""

    prefix: str


_Entry = ListedObject | CommonPrefix


def https_url(url: str, *, endpoint: str | None = None) -> str:
    """Where a plain GET finds `s3://bucket/key` or `gs://bucket/key`: at `endpoint`, else at Amazon or Google.

    Raises Malformed for what names no bucket.
    """
    bucket = parse_bucket(url, endpoint=endpoint)
    return bucket.object_url(bucket.key)


def parse_bucket(url: str, *, endpoint: str | None = None) -> Bucket:
    """Raises Malformed for what is not `s3://bucket/key` or `gs://bucket/key`."""
    scheme, _, rest = url.partition("://")
    name, _, key = rest.partition("/")
    if scheme not in ("s3", "gs") or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9]", name):
        raise Malformed(f"{url[:300]!r} names no bucket: expected s3://bucket/key or gs://bucket/key; correct it.")
    if endpoint is not None:
        if not re.fullmatch(r"https?://[^\s/?#@]+/?", endpoint):
            raise Malformed(f"{endpoint!r} is not an endpoint: expected http(s)://host or http(s)://host:port.")
        base = f"{endpoint.rstrip('/')}/{name}"
    elif scheme == "gs":
        base = f"https://storage.googleapis.com/{name}"
    else:
        amazon = "s3.amazonaws.com"  # which finds the bucket's region
        # the certificate is for one name before Amazon's, so not for one with dots; and hosts have no capitals or _
        is_host = re.fullmatch(r"[a-z0-9-]{3,63}", name) is not None
        base = f"https://{name}.{amazon}" if is_host else f"https://{amazon}/{name}"
    return Bucket("s3" if scheme == "s3" else "gs", name, key, base)


def list_objects(
    url: str, client: Client, *, endpoint: str | None = None, delimiter: str | None = None
) -> Iterator[_Entry]:
    """Every object of `s3://bucket/prefix` in the order of the keys; with a delimiter, `CommonPrefix` for folders.

    It ends for every server: keys must ascend. Raises Malformed where a listing contradicts itself or the prefix, and
    what `Client.get` raises.
    """
    bucket = parse_bucket(url, endpoint=endpoint)
    query = {"list-type": "2", "encoding-type": "url", "prefix": bucket.key, "delimiter": delimiter or ""}
    last: bytes | None = None
    token: str | None = None
    while True:
        asked = {**query, "continuation-token": token or ""}
        address = f"{bucket.url}/?{urlencode({name: text for name, text in asked.items() if text}, quote_via=quote)}"
        reply = client.get(address, max_bytes=MAX_PAGE_BYTES)
        entries, next_token = _page(bytes(reply.body), str(bucket))
        for entry in entries:
            last = _require_ascending(entry, last, bucket)
            yield entry
        if next_token is None:
            return
        if next_token == token or not entries:
            what = "its page token twice" if next_token == token else "an empty page and says that more follows"
            raise Malformed(f"{bucket}: the listing gives {what}, so that it would never end; try again later.")
        token = next_token


def _require_ascending(entry: _Entry, last: bytes | None, bucket: Bucket) -> bytes:
    """The entry's place in the order: the UTF-8 bytes of its key. Raises Malformed if it is out of place."""
    name = _name(entry)
    place = name.encode()
    if not name.startswith(bucket.key) or not name:
        raise Malformed(f"{bucket}: the listing has {name[:300]!r}, which does not begin as asked for; it is not used.")
    if last is not None and place <= last:
        raise Malformed(
            f"{bucket}: the listing has {name[:300]!r} after {last.decode()[:300]!r}, but keys ascend and come once; "
            "it is not used."
        )
    return place


def _page(body: bytes, shown: str) -> tuple[list[_Entry], str | None]:
    """(entries in order, the token of the next page or None) of a ListObjectsV2 reply."""
    root = _parsed(body, shown)
    if _tag(root) != "ListBucketResult":
        said = " ".join(text for name in ("Code", "Message") if (text := _text(root, name)))
        raise Malformed(f"{shown}: expected a listing, got <{_tag(root)[:40]}> {said[:200]}; check the address.")
    encoding = _text(root, "EncodingType")
    if encoding not in (None, "url"):
        raise Malformed(f"{shown}: the listing encodes its keys as {encoding[:40]!r}, expected `url`; it is not used.")
    decoded = _url_decoded(shown) if encoding else str
    objects: list[_Entry] = [_listed_object(each, decoded, shown) for each in root.findall("{*}Contents")]
    prefixes: list[_Entry] = [
        CommonPrefix(decoded(_required(each, "Prefix", shown))) for each in root.findall("{*}CommonPrefixes")
    ]
    entries = list(heapq.merge(objects, prefixes, key=_name))  # which leaves what is out of order as it is
    truncated = _required(root, "IsTruncated", shown)
    if truncated not in ("true", "false"):
        raise Malformed(f"{shown}: IsTruncated of the listing is {truncated[:40]!r}, expected true or false.")
    return entries, _required(root, "NextContinuationToken", shown) if truncated == "true" else None


def _parsed(body: bytes, shown: str) -> ET.Element:
    """XML without a document type, which is what could make it grow, and of limited size."""
    try:
        text = body.decode("utf-8-sig")
        if "<!DOCTYPE" in text or text.count("<") > MAX_PAGE_TAGS:
            raise Malformed(f"{shown}: the listing has a document type or more than {MAX_PAGE_TAGS} tags; not used.")
        return ET.fromstring(text)  # noqa: S314  # see the line above
    except UnicodeDecodeError as error:
        raise Malformed(f"{shown}: the listing is not UTF-8 at byte {error.start}; check the address.") from None
    except (ET.ParseError, ValueError) as error:
        quoted = " ".join(body[:80].decode("utf-8", "replace").split())
        raise Malformed(f"{shown}: the listing is not XML ({error}): {quoted!r}; check the address.") from None


def _listed_object(element: ET.Element, decoded: Callable[[str], str], shown: str) -> ListedObject:
    key = decoded(_required(element, "Key", shown))
    size = _required(element, "Size", shown)
    if not re.fullmatch("[0-9]{1,18}", size):
        raise Malformed(f"{shown}: the listing gives {key[:300]!r} the size {size[:40]!r}; it is not used.")
    etag = (_text(element, "ETag") or "").removeprefix("W/").strip('"')
    return ListedObject(key, int(size), etag or None)


def _url_decoded(shown: str) -> Callable[[str], str]:
    def decoded(text: str) -> str:
        try:
            return unquote_plus(text, errors="strict")  # a space is a + there, and a + is %2B
        except UnicodeDecodeError:
            raise Malformed(f"{shown}: the listing has the key {text[:300]!r}, which is not UTF-8; not used.") from None

    return decoded


def _name(entry: _Entry) -> str:
    return entry.key if isinstance(entry, ListedObject) else entry.prefix


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(element: ET.Element, name: str) -> str | None:
    return element.findtext(f"{{*}}{name}") or None


def _required(element: ET.Element, name: str, shown: str) -> str:
    text = _text(element, name)
    if text is None:
        raise Malformed(f"{shown}: the listing lacks <{name}> in <{_tag(element)[:40]}>; it is not used.")
    return text
