"""Addresses of a store's own S3 objects that a plain GET can read for a while: presigned, computed here.

docs.aws.amazon.com, "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)". Where the keys are
known (`S3Access`, or the standard variables) nothing but arithmetic is needed, in a forked child too. Keys that only a
machine's role or a profile gives are obstore's to find, and obstore hangs in a child of a process that has used it.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, urlsplit

from em_assets.errors import Unsupported
from em_assets.fetch.s3 import parse_bucket
from em_assets.settings import S3Access

if TYPE_CHECKING:
    from obstore.store import S3Config

VALID_FOR = timedelta(hours=1)
"""Longer than any request takes with all its repetitions."""
RENEW_SECONDS = 300
"""How long one signature serves."""

_inherited: list[str] = []
"""Libraries that were in use when this process was forked."""
os.register_at_fork(after_in_child=lambda: _inherited.extend({"obstore"} & sys.modules.keys()))


@dataclass(frozen=True, slots=True)
class Keys:
    access_key_id: str
    secret_access_key: str
    session_token: str | None = None

    @classmethod
    def found(cls, access: S3Access) -> Keys | None:
        """Those that are given, else those of the standard variables, as any S3 client reads them."""
        if access.access_key_id and access.secret_access_key:
            return cls(access.access_key_id, access.secret_access_key, access.session_token)
        key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        return cls(key, secret, os.environ.get("AWS_SESSION_TOKEN")) if key and secret else None


def object_url(uri: str, access: S3Access) -> str:
    """The address of `s3://bucket/key`, unsigned."""
    endpoint = access.endpoint_url or f"https://s3.{access.region}.amazonaws.com"
    bucket = parse_bucket(uri, endpoint=endpoint)
    return bucket.object_url(bucket.key)


def signed_url(uri: str, access: S3Access) -> str:
    """The address of `s3://bucket/key` as this access may read it. Raises Unsupported where it cannot be signed."""
    if access.anonymous:
        return object_url(uri, access)
    keys = Keys.found(access)
    if keys is None:
        return _signed_by_obstore(uri, access)
    began = time.time() // RENEW_SECONDS * RENEW_SECONDS
    return presigned(object_url(uri, access), keys, access.region, datetime.fromtimestamp(began, UTC))


@functools.lru_cache(maxsize=4096)
def presigned(url: str, keys: Keys, region: str, now: datetime) -> str:
    """A GET of this address (with an encoded path, without a query), good for `VALID_FOR`."""
    parts = urlsplit(url)
    day, stamp = f"{now:%Y%m%d}", f"{now:%Y%m%dT%H%M%SZ}"
    scope = f"{day}/{region}/s3/aws4_request"
    query = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{keys.access_key_id}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(int(VALID_FOR.total_seconds())),
        "X-Amz-SignedHeaders": "host",
    }
    if keys.session_token is not None:
        query["X-Amz-Security-Token"] = keys.session_token
    asked = "&".join(f"{name}={quote(query[name], safe='')}" for name in sorted(query))
    request = f"GET\n{parts.path}\n{asked}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{keys.secret_access_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}".encode(), "sha256").hex()
    return f"{url}?{asked}&X-Amz-Signature={signature}"


def _signed_by_obstore(uri: str, access: S3Access) -> str:
    if _inherited:
        raise Unsupported(
            f"{uri} cannot be read in a forked process with keys that a role or a profile gives; start the workers by "
            "spawn, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    import obstore
    from obstore.store import S3Store

    bucket = parse_bucket(uri)
    config = {"region": access.region} | ({"endpoint": access.endpoint_url} if access.endpoint_url else {})
    store = S3Store(bucket.name, config=cast("S3Config", config), client_options={"allow_http": True})
    return obstore.sign(store, "GET", bucket.key, VALID_FOR)
