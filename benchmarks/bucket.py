"""A bucket for nginx to serve: files below a folder, and a small back end that lists them as S3 does.

nginx answers for the objects; only listings come here, over `locations`. Signatures are not looked at.
"""

from __future__ import annotations

import bisect
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Bucket:
    """Lists the folder `root/name` while the `with` block runs."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        folder = root / name
        files = {file.relative_to(folder).as_posix(): file.stat() for file in folder.rglob("*") if file.is_file()}
        self._keys = sorted(files, key=str.encode)
        self._entries = {key: _entry(key, status.st_size, status.st_mtime) for key, status in files.items()}
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
                body = b"" if self.command == "HEAD" else bucket._listing(query)
                self.send_response(200)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815  # as http.server calls it

            def log_message(self, *arguments: object) -> None:
                """nginx counts."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def locations(self) -> str:
        """For nginx: requests for the bucket itself come here."""
        proxy = f"proxy_pass http://127.0.0.1:{self._server.server_port};"
        return "\n".join(f"location = /{self.name}{slash} {{ {proxy} }}" for slash in ("", "/"))

    def _listing(self, query: dict[str, str]) -> bytes:
        """ListObjectsV2. The token is the last key of the page before."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after") or ""
        most = min(int(query.get("max-keys", PAGE)), PAGE)
        entries: list[str] = []
        last, is_truncated = after, False
        for key in self._keys[bisect.bisect_right(self._keys, after) if after else 0 :]:
            if not key.startswith(prefix) or (after.endswith("/") and key.startswith(after)):
                continue
            if len(entries) == most:
                is_truncated = True
                break
            folder, found, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else ("", "", "")
            if not found:
                entries.append(self._entries[key])
                last = key
            elif last != f"{prefix}{folder}{delimiter}":
                last = f"{prefix}{folder}{delimiter}"
                entries.append(f"<CommonPrefixes><Prefix>{escape(quote(last))}</Prefix></CommonPrefixes>")
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if is_truncated else ""
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="{NAMESPACE}"><Name>{self.name}</Name>'
            f"<Prefix>{escape(quote(prefix))}</Prefix><KeyCount>{len(entries)}</KeyCount><MaxKeys>{most}</MaxKeys>"
            f"<EncodingType>url</EncodingType><IsTruncated>{str(is_truncated).lower()}</IsTruncated>{token}"
            f"{''.join(entries)}</ListBucketResult>"
        ).encode()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _entry(key: str, size_bytes: int, modified: float) -> str:
    """With the ETag that nginx gives the file."""
    etag = f"&quot;{int(modified):x}-{size_bytes:x}&quot;"
    when = datetime.fromtimestamp(int(modified), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return (
        f"<Contents><Key>{escape(quote(key))}</Key><LastModified>{when}</LastModified><ETag>{etag}</ETag>"
        f"<Size>{size_bytes}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )
