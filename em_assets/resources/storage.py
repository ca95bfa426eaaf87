"""The store as a Dagster resource. The only place that knows a folder from S3 is `em_assets/store.py`."""

from functools import cached_property
from typing import TYPE_CHECKING

import dagster as dg

from em_assets.settings import S3Access
from em_assets.store import Store, open_store

if TYPE_CHECKING:
    from dagster_aws.s3 import S3Resource


class Storage(dg.ConfigurableResource):  # type: ignore[type-arg]  # ConfigurableResource[None]: nothing is yielded
    """Where datasets are stored: a folder, or `s3://bucket/prefix`.

    Without the S3 fields the standard AWS variables say how to reach S3.
    """

    root: str
    endpoint_url: str | None = None
    region_name: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    anonymous: bool = False

    @classmethod
    def from_s3_resource(cls, root: str, s3: "S3Resource") -> "Storage":
        """The store at `root` with the credentials of a `dagster_aws.s3.S3Resource`."""
        return cls(
            root=root,
            endpoint_url=s3.endpoint_url,
            region_name=s3.region_name,
            access_key_id=s3.aws_access_key_id,
            secret_access_key=s3.aws_secret_access_key,
            session_token=s3.aws_session_token,
            anonymous=bool(s3.use_unsigned_session),
        )

    @cached_property
    def store(self) -> Store:
        if self.region_name is None and self.endpoint_url is None and self.access_key_id is None and not self.anonymous:
            return open_store(self.root)
        access = S3Access(
            endpoint_url=self.endpoint_url,
            region=self.region_name or "us-east-1",
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            session_token=self.session_token,
            anonymous=self.anonymous,
        )
        return open_store(self.root, access)
