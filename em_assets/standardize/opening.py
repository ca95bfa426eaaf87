"""Opening what was written with zarr-python: an independent reader for checks, and the arrays Dagster hands on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from em_assets.records import DatasetFolder
from em_assets.store import ObjectStore, Store

if TYPE_CHECKING:
    import zarr


def open_level(folder: DatasetFolder, level: int = 0) -> zarr.Array[Any]:
    """One level of the stored volume, lazily, read-only. Raises FileNotFoundError if it is not there.

    Voxels the publisher does not have read as 0: ask the coverage record which they are.
    """
    import zarr

    path = folder.path(f"{folder.volume}/{level}")
    local = folder.store.local_path(path)
    if local is not None:
        return zarr.open_array(str(local), mode="r")
    return zarr.open_array(folder.store.uri(path), mode="r", storage_options=_s3fs_options(folder.store))


def _s3fs_options(store: Store) -> dict[str, Any]:
    """The store's access as s3fs takes it; what is None it finds in the standard variables or files itself."""
    assert isinstance(store, ObjectStore)
    access = store.access
    return {
        "key": access.access_key_id,
        "secret": access.secret_access_key,
        "token": access.session_token,
        "anon": access.anonymous,
        "endpoint_url": access.endpoint_url,
        "client_kwargs": {"region_name": access.region},
    }
