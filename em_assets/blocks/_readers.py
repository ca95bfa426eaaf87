"""Readers of any Zarr or N5, where it lies: in a folder, on a server, or in S3 with the S3 settings."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from em_assets.blocks._choice import UNSAID, Choice
from em_assets.errors import EmAssetsError, Malformed, Unavailable, Unsupported
from em_assets.settings import S3Access, Settings
from em_assets.store import open_store

if TYPE_CHECKING:
    from em_assets.fetch.hosts import Interrupt
    from em_assets.fetch.replies import OnBytes, Reply
    from em_assets.formats._chunked import ChunkedReader
    from em_assets.formats.reader import VolumeReader

AWS_KEYS = (
    *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
)
"""Any of them, and there are keys to ask S3 with, without looking for a machine's role, which may take long."""
ELSEWHERE = ("NoSuchBucket", "AuthorizationHeaderMalformed", "PermanentRedirect", "redirect without LOCATION")
"""How S3 says that it has no such bucket, or has it in another region, which the public address finds by itself."""


def open_reader(location: str, settings: Settings, choice: Choice = UNSAID) -> ChunkedReader:
    """Level 0 of the channel and point in time that are chosen, of what lies in S3 at its public address.

    Raises Unsupported for what is not a Zarr or N5 volume, Mismatch if there is not what is chosen.
    """
    from em_assets.formats import open_volume

    return _chunked(open_volume(location, settings=settings), location, choice)


def _chunked(reader: VolumeReader, location: str, choice: Choice) -> ChunkedReader:
    from em_assets.formats._chunked import ChunkedReader

    if not isinstance(reader, ChunkedReader):
        raise Unsupported(
            f"{location} is read by voxels of chunks only where it is Zarr or N5; convert it, or add it as a dataset "
            "(`em-assets add`)."
        )
    if lacking := [axis for axis in "zyx" if axis not in reader.axes]:
        raise Unsupported(
            f"{location} has no axis {' and '.join(lacking)} (its axes: {', '.join(reader.axes)}), so it is no volume; "
            "open one with z, y and x."
        )
    return choice.of_reader(reader, location)


# Any Zarr or N5 in S3, with the S3 settings


class Refused(Unavailable):
    """S3 does not give it with the settings that there are; it may be public."""


def is_in_s3(location: str) -> bool:
    from em_assets.formats.opening import split_kind

    return split_kind(location)[1].startswith("s3://")


def s3_is_set(settings: Settings) -> bool:
    """Whether what lies in S3 is asked for there as a store of ours is: an endpoint, keys or anonymity say so."""
    access = S3Access.from_environment()
    is_set = access.endpoint_url is not None or access.anonymous or settings.root.startswith("s3://")
    return is_set or any(map(os.environ.get, AWS_KEYS))


def is_refusal(error: Unavailable) -> bool:
    """Whether the bucket may be public all the same: S3 refuses these keys, or this bucket is not its own."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    cause = error.__cause__
    is_refused = isinstance(cause, PermissionDeniedError | UnauthenticatedError)
    return is_refused or any(text in str(cause) for text in ELSEWHERE)


def require_endpoint() -> None:
    """Raises Unavailable if nothing listens where the S3 settings say. The store itself would try it for 20 s."""
    import socket
    from urllib.request import getproxies, proxy_bypass

    from em_assets.store import CONNECT_WITHIN

    endpoint = S3Access.from_environment().endpoint_url
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        name = parts.hostname or ""
        if parts.scheme in getproxies() and not proxy_bypass(name):
            return  # the proxy knows
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((name, port), CONNECT_WITHIN.total_seconds()).close()
    except (OSError, ValueError) as error:  # ValueError: a port or name that none can be
        raise Unavailable(
            f"no S3 answers at {endpoint}, which AWS_ENDPOINT_URL names ({getattr(error, 'strerror', None) or error}); "
            "start it or correct the variable, or unset it to read public buckets."
        ) from error


def open_reader_in_s3(location: str, settings: Settings, choice: Choice) -> ChunkedReader:
    """As `open_reader`, of `s3://bucket/key`, with the S3 settings. Its address is that of a store at the bucket.

    Raises Refused, NotThere if S3 says that nothing is there.
    """
    from em_assets.fetch.replies import NotThere
    from em_assets.formats.opening import open_at, split_kind

    root, (stated, uri) = bucket_root(location), split_kind(location)
    key = uri.removeprefix(root).strip("/")
    if not key.isprintable() or (key and any(part in ("", ".", "..") for part in key.split("/"))):
        raise Refused(f"{location} has a key that no store of ours has; it is only read where it is public.")
    client = _BucketClient(root)
    with _named(root):
        try:
            return _chunked(open_at(f"store:///{quote(key)}", stated, None, client, settings), location, choice)
        except NotThere:
            if client.refusal is None:
                raise
            raise Refused(str(client.refusal)) from client.refusal


def bucket_root(location: str) -> str:
    """`s3://bucket`. Raises Malformed."""
    from em_assets.fetch.s3 import parse_bucket
    from em_assets.formats.opening import split_kind

    return f"s3://{parse_bucket(split_kind(location)[1]).name}"


@contextlib.contextmanager
def _named(root: str) -> Iterator[None]:
    """In errors, the addresses in S3 of what readers know by `store:///`."""
    try:
        yield
    except EmAssetsError as error:
        error.args = (re.sub(r"\bstore:/*", f"{root}/", str(error)), *error.args[1:])
        raise


class _BucketClient:
    """`store:///key` addresses in somebody's bucket: a `Client`.

    A refusal is NotThere with 403, as `HttpClient` has it: buckets that nobody may list say so of what is absent.
    """

    def __init__(self, root: str) -> None:
        self._store = open_store(root)
        self.refusal: Unavailable | None = None
        """The last."""

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        accept_gzip: bool = False,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        from em_assets.fetch.compression import BadGzipError, gunzip
        from em_assets.fetch.replies import Reply

        body, uri = self._read(url, 0, max_bytes + 1)
        if len(body) > max_bytes:
            raise Malformed(f"{uri} has more than the {max_bytes} bytes expected at most.")
        is_packed = accept_gzip and body.startswith(b"\x1f\x8b")  # with a Content-Encoding, which no JSON looks like
        if is_packed:
            try:
                body = gunzip(body, max_bytes=max_bytes)
            except BadGzipError as error:
                raise Malformed(f"{uri} is not what was expected: {error}; get it again.") from None
        if on_bytes is not None:
            on_bytes(len(body))
        return Reply(uri, body, None, None, "gzip" if is_packed else None, len(body))

    def get_range(
        self,
        url: str,
        start: int,
        stop: int,
        *,
        expect_etag: str | None = None,
        on_bytes: OnBytes | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        from em_assets.fetch.replies import Reply

        body, uri = self._read(url, start, stop - start)
        if len(body) != stop - start:
            raise Malformed(f"{uri} ends before byte {stop}; it was cut, or is empty.")
        if on_bytes is not None:
            on_bytes(len(body))
        return Reply(uri, body, None, None, None, self._store.size_bytes(_key(url)))

    def _read(self, url: str, start: int, length: int) -> tuple[bytes, str]:
        """(bytes, address for people). Not `Store.size_bytes` first, which cannot tell an absent bucket."""
        from em_assets.fetch.replies import NotThere

        key, uri = _key(url), self._store.uri(_key(url))
        if not key:
            raise NotThere(f"{uri} is a bucket without a volume's documents; name a folder in it.", 404)
        try:
            return self._store.read_range(key, start, length), uri
        except FileNotFoundError:
            raise NotThere(f"{uri} is not there; correct the address.", 404) from None
        except Unavailable as error:
            if not is_refusal(error):
                raise
            self.refusal = error
            raise NotThere(f"{uri} is not there, or not for these keys; check both.", 403) from error


def _key(url: str) -> str:
    return unquote(urlsplit(url).path).strip("/")
