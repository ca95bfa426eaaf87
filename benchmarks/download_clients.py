"""The contestants of `download.py` that are Python: the product's plain functions, and s3fs.

Run as `python download_clients.py NAME ENDPOINT BUCKET KEY OUT`, a fresh process per run; a KEY that ends in `/` means
every object below it. Imports stand inside the functions, so that each pays for its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

CONNECTIONS = 16
"""As `aria2c -x16`, and what the specs say where a publisher takes it."""


def em_assets(endpoint: str, bucket: str, key: str, out: Path) -> None:
    """With the sha256 of every object, a receipt for the one file, and everything synced."""
    if key.endswith("/"):
        _em_assets_objects(endpoint, bucket, key, out)
    else:
        _em_assets_file(f"{endpoint}/{bucket}/{key}", key, out)


def _em_assets_file(url: str, key: str, out: Path) -> None:
    from em_assets.fetch.files import Downloader
    from em_assets.fetch.http import HttpClient
    from em_assets.settings import Settings
    from em_assets.volume import RemoteFile

    settings = Settings(root=str(out))
    client = HttpClient(settings)
    client.limit(url, CONNECTIONS)
    Downloader(client, settings).download(RemoteFile(url, key), out / key, connections=CONNECTIONS)


def _em_assets_objects(endpoint: str, bucket: str, key: str, out: Path) -> None:
    from em_assets.fetch.http import HttpClient
    from em_assets.fetch.s3 import ListedObject, list_objects
    from em_assets.fetch.s3_copy import FailedObject, copy_objects
    from em_assets.settings import Settings
    from em_assets.store import open_store

    settings, source = Settings(root=str(out)), f"s3://{bucket}/{key}"
    listed = list_objects(source, HttpClient(settings), endpoint=endpoint)
    objects = (entry for entry in listed if isinstance(entry, ListedObject))
    store = open_store(settings.root)
    for copied in copy_objects(source, objects, store, "", settings=settings, endpoint=endpoint):
        if isinstance(copied, FailedObject):
            raise copied.error


def s3fs(endpoint: str, bucket: str, key: str, out: Path) -> None:
    """With the batch size that was found best."""
    from s3fs import S3FileSystem

    remote = S3FileSystem(anon=True, endpoint_url=endpoint, client_kwargs={"region_name": "us-east-1"})
    if key.endswith("/"):
        remote.get(f"{bucket}/{key}", f"{out}/", recursive=True, batch_size=128)
    else:
        remote.get_file(f"{bucket}/{key}", str(out / key))


CLIENTS = {"em_assets": em_assets, "s3fs": s3fs}

if __name__ == "__main__":
    client, endpoint, bucket, key, out = sys.argv[1:]
    CLIENTS[client](endpoint, bucket, key, Path(out))
