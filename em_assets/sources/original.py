"""Which objects a published Zarr or N5 volume consists of, for keeping them byte for byte: a bucket lists them."""

from __future__ import annotations

from collections.abc import Iterator

from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Unsupported
from em_assets.fetch.client import Client
from em_assets.fetch.s3 import ListedObject, list_objects
from em_assets.sources.chunked import chunked_source, joined


def list_original(spec: DatasetSpec, client: Client) -> Iterator[ListedObject]:
    """Every object of the groups that the spec names, all levels, in the order of the bucket, as it is listed.

    Raises Unsupported for an address that is not a bucket's, Malformed and Unavailable as `list_objects`.
    """
    source = chunked_source(spec)
    if not source.url.startswith(("s3://", "gs://")):
        raise Unsupported(
            f"{spec.name}: {source.url} is no bucket, so it does not list its objects; leave keep out, or give the "
            "address of the bucket (s3://, gs://)."
        )
    for group in _groups(spec):
        for entry in list_objects(f"{joined(source.url.rstrip('/'), group)}/", client, endpoint=source.endpoint):
            if isinstance(entry, ListedObject):
                yield entry


def _groups(spec: DatasetSpec) -> list[str]:
    """Of all volumes, each once; a group that lies in another is listed with that one."""
    groups = sorted({chunked_source(spec).group, *(volume.group or "" for volume in spec.volumes.values())})
    return [
        g
        for g in groups
        if not any(g != outer and f"{g}/".startswith(f"{outer}/" if outer else "") for outer in groups)
    ]
