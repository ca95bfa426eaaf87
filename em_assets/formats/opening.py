"""`open_volume`: from a place to a reader. What is there decides (magic bytes, marker documents), never its name."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote, urlsplit

from em_assets.errors import Malformed, Unavailable, Unsupported
from em_assets.formats._bytes import ByteSource, LocalBytes, RemoteBytes
from em_assets.formats._mrc_header import looks_like_mrc
from em_assets.formats._packed import packing_of, unpacked_mrc

if TYPE_CHECKING:
    from em_assets.fetch.client import Client
    from em_assets.formats.reader import VolumeReader
    from em_assets.settings import Settings

HEAD_BYTES = 1024
"""By which a format is known: MRC has its mark far inside."""
FolderKind = Literal["precomputed", "zarr", "n5"]
STATED_KINDS: dict[str, FolderKind] = {
    "precomputed": "precomputed",
    "zarr": "zarr",
    "zarr2": "zarr",
    "zarr3": "zarr",
    "n5": "n5",
}
"""What Neuroglancer writes before an address: precomputed://https://..."""
MARKERS: dict[str, FolderKind] = {
    "zarr.json": "zarr",
    ".zarray": "zarr",
    ".zgroup": "zarr",
    "info": "precomputed",
    ".zattrs": "zarr",
    "attributes.json": "n5",
}
"""Documents by which a folder is known; the first that is there decides."""
ACCEPTED = "TIFF, DM3/DM4, MRC, HDF5 files, and Zarr, N5 or precomputed folders"


def open_volume(location: str | Path, dataset: str | None = None, *, settings: Settings | None = None) -> VolumeReader:
    """The volume at `location`: a file, a folder, a glob of a series of 2D files, or an address (http, https, s3, gs).

    `dataset` names the array inside a container: a path within it (HDF5, Zarr, N5), or a multiscale's level by its
    path or key or number. An address may say what it is, as Neuroglancer writes it: precomputed://https://...
    Raises Unsupported for what is not read (naming what it is), Malformed for what is damaged, Mismatch where the
    publisher has nothing of this name, Unavailable where it cannot be had.
    """
    from em_assets.settings import read_settings

    settings = settings or read_settings()
    stated, text = split_kind(str(location))
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if "\0" in f"{text}{dataset or ''}":
        raise Unavailable(f"{text!r} or the dataset's name has a NUL byte, which no name can have; correct it.")
    if "://" in text:
        return _open_remote(text, stated, dataset, settings)
    path = Path(text)
    if _is_known(path.is_dir):
        return _open_local_folder(path, stated, dataset, settings)
    if _is_known(path.exists) or not glob.has_magic(text):
        return open_file(LocalBytes(path), dataset, settings)
    found = sorted(glob.glob(text))  # noqa: PTH207  # Path.glob takes no absolute pattern
    if not found:
        raise Unavailable(f"{text} matches no file; correct the pattern.")
    from em_assets.formats.series import open_series

    return open_series(found, settings, dataset=dataset)


def split_kind(location: str) -> tuple[FolderKind | None, str]:
    """(what an address says it is, as Neuroglancer writes it, or None; the address itself)."""
    prefix, _, rest = location.partition("://")
    kind = STATED_KINDS.get(prefix)
    return kind, rest if kind else location


def open_at(
    url: str, stated: FolderKind | None, dataset: str | None, client: Client, settings: Settings
) -> VolumeReader:
    """What the client gives at `url`: a folder by its documents, else a file. Raises as `open_volume` does."""
    reader = _open_folder(url.rstrip("/"), stated, dataset, client, settings)
    return reader or open_file(RemoteBytes(url, client), dataset, settings)


def open_file(source: ByteSource, dataset: str | None, settings: Settings) -> VolumeReader:
    """The volume in one file, by its first bytes; of files packed by gzip or bzip2 those that hold an MRC file."""
    head = bytes(source.read(0, min(HEAD_BYTES, source.size_bytes)))
    kind = kind_of(head, source.size_bytes)
    if packing_of(head) is not None:
        unpacked = unpacked_mrc(source, settings)
        source, kind = (source, None) if unpacked is None else (unpacked, kind)
    if kind == "tiff":
        from em_assets.formats.tiff import open_tiff

        return open_tiff(source, settings, dataset=dataset)
    if kind == "dm":
        from em_assets.formats.dm import open_dm

        return open_dm(source, settings, dataset=dataset)
    if kind == "hdf5":
        from em_assets.formats.hdf5 import open_hdf5

        return open_hdf5(source, settings, dataset=dataset)
    if kind == "mrc":
        from em_assets.formats.mrc import open_mrc

        return open_mrc(source, settings, dataset=dataset)
    found = f"{source.name} is {looks_like(head, source.size_bytes)}"
    if not head or _is_web_page(head):
        raise Malformed(f"{found}; get it again.")
    raise Unsupported(f"{found}; accepted are {ACCEPTED}.")


def _is_known(question: Callable[[], bool]) -> bool:
    """False where the system does not say (a name that is too long, no permission): opening it says why."""
    try:
        return question()
    except OSError:
        return False


def kind_of(head: bytes, size_bytes: int | None = None) -> str | None:
    """`tiff`, `dm`, `hdf5`, `mrc` by magic bytes, else None; an old MRC, which has none, by its header and size.

    What gzip or bzip2 packed is taken for MRC, the only format that is read so; opening it tells.
    """
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if looks_like_mrc(head):  # before DM, which begins like a big-endian MRC of 3 or 4 columns
        return "mrc"
    if head[:4] in (b"\0\0\0\3", b"\0\0\0\4"):
        return "dm"
    return "mrc" if looks_like_mrc(head, size_bytes) or packing_of(head) is not None else None


def looks_like(head: bytes, size_bytes: int) -> str:
    """In words, what a file that is not a volume probably is."""
    if not size_bytes:
        return "empty"
    if _is_web_page(head):
        return "a web page (an error or login page saved under this name?)"
    for magic, name in (
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"PK\3\4", "a zip archive, which must be unpacked first"),
        (b"\x1f\x8b", "gzip-compressed, and must be unpacked first"),
        (b"BZh", "bzip2-compressed, and must be unpacked first"),
    ):
        if head.startswith(magic):
            return name
    text = head.lstrip()
    if text.startswith(b"<?xml"):
        return "an XML document"
    if text.startswith(b"{"):
        return "a JSON document"
    return f"not of a known format (it begins {head[:8].hex(' ')})"


def _is_web_page(head: bytes) -> bool:
    return head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<head"))


def _open_remote(url: str, stated: FolderKind | None, dataset: str | None, settings: Settings) -> VolumeReader:
    from em_assets.fetch.http import HttpClient
    from em_assets.fetch.s3 import https_url

    scheme = url.partition("://")[0]
    if scheme in ("s3", "gs"):
        url = https_url(url)
    elif scheme not in ("http", "https"):
        raise Unsupported(f"{scheme}:// addresses are not read; accepted are http, https, s3 and gs.")
    return open_at(url, stated, dataset, HttpClient(settings), settings)


def _open_local_folder(path: Path, stated: FolderKind | None, dataset: str | None, settings: Settings) -> VolumeReader:
    from em_assets.fetch.client import FolderClient, folder_url

    reader = _open_folder(folder_url(path), stated, dataset, FolderClient(), settings)
    if reader is None:
        raise Unsupported(
            f"{path} is a folder without any of {', '.join(MARKERS)}, so no volume; name the folder that has one, or a "
            "series of files by a pattern (*.tif)."
        )
    return reader


def _open_folder(
    url: str, stated: FolderKind | None, dataset: str | None, client: Client, settings: Settings
) -> VolumeReader | None:
    """None if neither the folder nor, with a `dataset`, the one below it has a marker document."""
    kind = stated or _kind_of_folder(url, client)
    if kind is None and dataset:  # folders above a volume need no documents
        below = f"{url}/{quote(dataset.strip('/'))}"
        kind = _kind_of_folder(below, client)
        if kind == "precomputed":
            url, dataset = below, None
    if kind == "precomputed":
        from em_assets.formats.precomputed import open_precomputed

        return open_precomputed(url, dataset or 0, client, settings)
    if kind == "zarr":
        from em_assets.formats.zarr import open_zarr

        return open_zarr(url, dataset, client, settings)
    if kind == "n5":
        from em_assets.formats.n5 import open_n5

        return open_n5(url, dataset, client, settings)
    return None


def _kind_of_folder(url: str, client: Client) -> FolderKind | None:
    from em_assets.fetch.replies import NotThere

    for marker, kind in MARKERS.items():
        try:
            client.get(f"{url}/{marker}", max_bytes=16 * 2**20, accept_gzip=True)
        except (NotThere, Malformed):  # Malformed: a web page, for instance, which no marker is
            continue
        return kind
    return None
