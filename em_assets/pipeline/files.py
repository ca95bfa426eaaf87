"""Partitions that are files: downloaded whole, byte for byte, verified, kept below `original/` with a receipt each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from em_assets.datasets.source import FilesSource, PublishedFile
from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.fetch._hashing import checksum_of
from em_assets.fetch.files import Downloader
from em_assets.fetch.hosts import Interrupt
from em_assets.fetch.http import HttpClient
from em_assets.fetch.parallel import fetch_all
from em_assets.fetch.receipts import Receipt, forget, verify
from em_assets.formats._bytes import ByteSource, LocalBytes, StoredBytes
from em_assets.originals import file_key, file_paths, original_path, read_receipt, receipt_path
from em_assets.pipeline.job import Fetched
from em_assets.pipeline.plan import Transfer
from em_assets.pipeline.state import agrees
from em_assets.sources.files import mirror_urls, open_further, open_main, remote_files
from em_assets.sources.voxels import pixels_sha256
from em_assets.volume import Box, RemoteFile

if TYPE_CHECKING:
    from em_assets.formats.reader import VolumeReader
    from em_assets.pipeline.job import Job
    from em_assets.pipeline.state import DatasetState
    from em_assets.settings import Settings


class FilePartitions:
    """Files of one publisher."""

    def __init__(self, job: Job) -> None:
        assert isinstance(job.spec.source, FilesSource)
        self._job = job
        self._stated = job.spec.source
        self._mirrors: set[str] = set()

    @cached_property
    def _source(self) -> FilesSource:
        """Where the files lie now."""
        source = self._job.current.spec.source
        assert isinstance(source, FilesSource)
        return source

    @cached_property
    def _remote(self) -> dict[str, RemoteFile]:
        return remote_files(self._job.current.spec)

    @cached_property
    def downloader(self) -> Downloader:
        client = HttpClient(self._job.settings)
        for base in (self._source.url, *self._source.mirrors):
            if base.startswith("http"):
                client.limit(base, self._source.connections)
        return Downloader(client, self._job.settings)

    def here(self, key: str) -> Fetched | None:
        receipt = self._job.state.receipts.get(key)
        return None if receipt is None else Fetched.of_file(key, receipt)

    def prepare(self, missing: Sequence[str]) -> Transfer:
        return self.ask(missing)

    def adopt(self) -> list[str]:
        """Takes files for received whose spec has got new pins since, if they agree. Returns their keys.

        What a pin asks for is computed from the file that is here; a disagreement leaves it missing.
        """
        job, adopted = self._job, []
        for key in job.state.missing:
            path = file_paths(job.spec)[key]
            local, receipt = job.store.local_path(job.folder.path(original_path(path))), read_receipt(job.folder, path)
            if local is None or receipt is None or verify(local, receipt, full=False) is not None:
                continue
            pinned = self._stated.by_path()[path]
            found = receipt.model_copy(update=_pins_of(local, pinned, receipt, job.settings))
            if agrees(pinned, found):
                job.folder.write(receipt_path(path), found.model_dump_json(indent=1).encode() + b"\n")
                adopted.append(key)
        return adopted

    def ask(self, missing: Sequence[str]) -> Transfer:
        """Asks for the sizes that nobody has pinned; each is a request more."""
        unknown = [key for key in missing if self._remote[key].size_bytes is None]

        def ask(key: str, interrupt: Interrupt) -> int:
            return self.downloader.size_bytes(self._remote[key], mirrors=self._mirror_urls(key), interrupt=interrupt)

        jobs = [lambda interrupt, key=key: ask(key, interrupt) for key in unknown]
        answers = dict(zip(unknown, fetch_all(jobs, self._source.connections), strict=True))
        # a file that cannot be had now is reported when it is its turn; the others need not wait for it
        sizes = [answers.get(key, self._remote[key].size_bytes) for key in missing]
        known = [size for size in sizes if isinstance(size, int)]
        requests = sum(max(1, math.ceil(size / self._source.range_bytes)) for size in known)
        total = sum(known) if len(known) == len(missing) else None
        return Transfer(len(missing), len(unknown) + requests, total, is_upper_bound=False)

    def fetch(
        self, missing: Sequence[str], on_bytes: Callable[[int], None], on_item: Callable[[], None]
    ) -> tuple[list[Fetched], dict[str, Exception]]:
        def one(key: str, interrupt: Interrupt) -> Fetched:
            fetched = self._fetch_one(key, on_bytes, interrupt)
            on_item()
            return fetched

        jobs = [lambda interrupt, key=key: one(key, interrupt) for key in missing]
        answers = fetch_all(jobs, self._source.connections)
        fetched = [answer for answer in answers if isinstance(answer, Fetched)]
        ended = zip(missing, answers, strict=True)
        failures: dict[str, Exception] = {key: answer for key, answer in ended if isinstance(answer, Exception)}
        return sorted(fetched, key=lambda item: item.key), failures

    def met(self) -> dict[str, Any]:
        return {"served_by": sorted(self._mirrors)}

    def _fetch_one(self, key: str, on_bytes: Callable[[int], None], interrupt: Interrupt) -> Fetched:
        job, file = self._job, self._remote[key]
        pinned = self._stated.by_path()[file.path]
        place = job.store.local_path(job.folder.path(original_path(file.path)))
        target = place or job.settings.cache_folder() / "downloads" / job.spec.name / file.path
        receipt = self.downloader.download(
            file,
            target,
            mirrors=self._mirror_urls(key),
            connections=self._source.connections,
            range_bytes=self._source.range_bytes,
            magic=magic_of(file.path),
            check=lambda partial: _require_pixels(pinned, partial, job.settings),
            on_bytes=on_bytes,
            interrupt=interrupt,
        )
        if pinned.pixels_sha256 is not None:
            receipt = receipt.model_copy(update={"pixels_sha256": pinned.pixels_sha256})
        if place is None:
            job.store.write_file(job.folder.path(original_path(file.path)), target)
        if place is None or pinned.pixels_sha256 is not None:
            job.folder.write(receipt_path(file.path), receipt.model_dump_json(indent=1).encode() + b"\n")
        if place is None:
            forget(target)
        self._mirrors.add(receipt.url.rpartition("/")[0])
        return Fetched.of_file(key, receipt)

    def _mirror_urls(self, key: str) -> list[str]:
        return mirror_urls(self._job.spec, file_paths(self._job.spec)[key])


MAGIC = {
    **dict.fromkeys((".tif", ".tiff"), (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    **dict.fromkeys((".dm3", ".dm4"), (b"\0\0\0\3", b"\0\0\0\4")),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), (b"\x89HDF",)),
    **dict.fromkeys((".gz", ".tgz"), (b"\x1f\x8b",)),
    ".zip": (b"PK",),
    ".png": (b"\x89PNG",),
}
"""How files of a kind begin, by the end of their name: what else comes under it is an error page, say."""


def magic_of(path: str) -> tuple[bytes, ...]:
    return MAGIC.get(PurePosixPath(path).suffix.lower(), ())


def open_received(job: Job, sub: str | None) -> tuple[VolumeReader, Box]:
    """The voxels of a volume from the files that were received.

    Where a file is not what its format asks for, the next run receives those again that no checksum vouches for.
    """
    from em_assets.sources.crop import find_crop

    bytes_of = bytes_of_stored(job.state)
    try:
        if sub is None:
            reader = open_main(job.spec, bytes_of, job.settings)
            box, how = find_crop(job.spec, reader)
            job.note(crop=how)
            return reader, box
        reader = open_further(job.spec, sub, bytes_of, job.settings)
    except (Malformed, Unsupported):
        _forget_unpinned(job, sub)
        raise
    return reader, Box.from_shape(job.spec.volumes[sub].shape, at=reader.info.origin)


def _forget_unpinned(job: Job, sub: str | None) -> None:
    """Drops the receipts of a volume's files that may have been wrong from the beginning."""
    source = job.spec.source
    assert isinstance(source, FilesSource)
    files = source.volume if sub is None else job.spec.volumes[sub].source
    assert files is not None
    for path in files.paths():
        pinned = source.by_path()[path]
        if pinned.checksum is None and pinned.pixels_sha256 is None:
            job.store.delete(job.folder.path(receipt_path(path)))


def _pins_of(file: Path, pinned: PublishedFile, receipt: Receipt, settings: Settings) -> dict[str, str]:
    """What the pins that a receipt knows nothing of ask for, computed from the file."""
    found = {}
    if pinned.checksum is not None and receipt.checksum is None:
        found["checksum"] = checksum_of(file, pinned.checksum.partition(":")[0])
    if pinned.pixels_sha256 is not None and receipt.pixels_sha256 is None:
        found["pixels_sha256"] = pixels_sha256(LocalBytes(file), settings)
    return found


def bytes_of_stored(state: DatasetState) -> Callable[[str], ByteSource]:
    """The bytes of a received file, by its path: mapped from disk, or read from S3 by ranges."""
    store = state.folder.store

    def bytes_of(path: str) -> ByteSource:
        where = state.folder.path(original_path(path))
        local = store.local_path(where)
        if local is not None:
            return LocalBytes(local)
        return StoredBytes(store, where, state.receipts[file_key(path)].size_bytes)

    return bytes_of


def _require_pixels(pinned: PublishedFile, partial: Path, settings: Settings) -> None:
    """Compares the decoded voxels with what somebody published of them, before the file counts as received."""
    if pinned.pixels_sha256 is None:
        return
    found = pixels_sha256(LocalBytes(partial), settings)
    if found != pinned.pixels_sha256:
        raise Mismatch(
            f"{pinned.path}: its decoded voxels have sha256 {found}, expected {pinned.pixels_sha256}; the publisher "
            "changed the file, or it was damaged on the way: look at what changed, then correct pixels_sha256."
        )
