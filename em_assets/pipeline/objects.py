"""Published objects kept byte for byte (`keep: original` or `both`): chunks and metadata of a Zarr or N5 container.

A partition is a region of the volume, as elsewhere: its share are the chunks of the spec's level that begin in it. What
belongs to no region (metadata, other levels, further volumes) is the first partition's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any

from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Mismatch
from em_assets.fetch.client import StoreClient
from em_assets.fetch.http import HttpClient
from em_assets.fetch.s3 import ListedObject
from em_assets.fetch.s3_copy import CopiedObject, FailedObject, copy_objects
from em_assets.pipeline.documents import keep_container_documents
from em_assets.pipeline.job import Fetched
from em_assets.pipeline.plan import Transfer
from em_assets.records import ObjectsRecord, StoredObject, now, partition_key
from em_assets.sources.chunked import ChunkedVolume, chunked_source
from em_assets.sources.original import list_original
from em_assets.volume import Box, ceil_divide, multiply, zyx

if TYPE_CHECKING:
    from em_assets.formats.reader import VolumeReader
    from em_assets.pipeline.job import Job


class ObjectPartitions:
    """The objects of one container's groups."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._source = chunked_source(job.current.spec)

    @cached_property
    def source(self) -> ChunkedVolume:
        """The volume at the publisher's."""
        return ChunkedVolume(self._job.current.spec, self._job.settings)

    def here(self, key: str) -> Fetched | None:
        record = self._job.state.objects.get(key)
        return None if record is None else Fetched.of_objects(record)

    def ask(self, missing: Sequence[str]) -> Transfer:
        objects = [item for key in missing for item in self._shares[key]]
        return Transfer(len(objects), len(objects), sum(item.size_bytes for item in objects), is_upper_bound=False)

    def prepare(self, missing: Sequence[str]) -> Transfer:
        self._require_one_place()
        keep_container_documents(self._job.folder, self._job.current, self.source.documents())
        return self.ask(missing)

    def fetch(
        self, missing: Sequence[str], on_bytes: Callable[[int], None], on_item: Callable[[], None]
    ) -> tuple[list[Fetched], dict[str, Exception]]:
        started = monotonic()
        key_of = {item.key: key for key in missing for item in self._shares[key]}
        wanted = [item for key in missing for item in self._shares[key]]
        copied: dict[str, list[CopiedObject]] = {key: [] for key in missing}
        failures: dict[str, Exception] = {}
        job = self._job
        for result in copy_objects(
            f"{self._source.url.rstrip('/')}/",
            wanted,
            job.store,
            job.folder.path("original"),
            settings=job.settings,
            endpoint=self._source.endpoint,
            on_bytes=on_bytes,
        ):
            if isinstance(result, FailedObject):
                failures.setdefault(key_of[result.key], result.error)
            else:
                copied[key_of[result.key]].append(result)
        # only now is every object on the disk for good
        seconds = round(monotonic() - started, 3)
        done = [self._record(key, copied[key], seconds) for key in missing if key not in failures]
        for _ in done:
            on_item()
        return [Fetched.of_objects(record) for record in done], failures

    def met(self) -> dict[str, Any]:
        return self.source.met()

    @cached_property
    def kept(self) -> ChunkedVolume:
        """The same volume, read from what is kept of it, which lies here as it lay there when it was received."""
        job, url = self._job, f"store:///{self._job.folder.path('original')}"
        return ChunkedVolume(self._as_kept(), job.settings, client=StoreClient(job.store), url=url)

    def _as_kept(self) -> DatasetSpec:
        """Each volume's group as it is now or as the spec states it, whichever something is kept of."""
        current, kept = self._job.current, self._kept_paths()
        spec, stated = current.spec, current.stated

        def where(now: str | None, was: str | None) -> str | None:
            return now if now == was or any(path.startswith(f"original/{now}/") for path in kept) else was

        source = self._source.model_copy(update={"group": where(self._source.group, chunked_source(stated).group)})
        volumes = {
            name: volume.model_copy(update={"group": where(volume.group, stated.volumes[name].group)})
            for name, volume in spec.volumes.items()
        }
        return spec.model_copy(update={"source": source, "volumes": volumes})

    def _kept_paths(self) -> list[str]:
        return [stored.path for record in self._job.state.objects.values() for stored in record.objects]

    def _require_one_place(self) -> None:
        """Raises Mismatch where a part is kept as it lay elsewhere: what it lacks here would read as its fill value."""
        job, group = self._job, self._source.group
        kept = self._kept_paths()
        if job.spec.portal is not None and kept and not any(path.startswith(f"original/{group}/") for path in kept):
            raise Mismatch(
                f"{job.spec.name}: a part of its objects is kept, but the portal now has them at {group}, which is "
                f"elsewhere, and two places make no copy; remove what is stored with `em-assets rm {job.spec.name}`, "
                "then run again."
            )

    def _record(self, key: str, copied: Sequence[CopiedObject], seconds: float) -> ObjectsRecord:
        prefix = self._job.folder.path("")
        objects = [
            StoredObject(path=item.path.removeprefix(prefix), size_bytes=item.size_bytes, sha256=item.sha256)
            for item in copied
        ]
        record = ObjectsRecord(
            key=key,
            identity=self._job.spec.identity(),
            objects=tuple(sorted(objects, key=lambda stored: stored.path)),
            source_url=self._source.url,
            received_bytes=sum(item.size_bytes for item in copied),
            seconds=seconds,
            written_at=now(),
        )
        self._job.folder.write_objects_record(record)
        return record

    @cached_property
    def _shares(self) -> dict[str, list[ListedObject]]:
        """The publisher's objects, as listed now, by partition key."""
        spec = self._job.current.spec
        listed = list(list_original(spec, HttpClient(self._job.settings)))
        self._require_counts(listed)
        region_of = self._regions()
        shares: dict[str, list[ListedObject]] = {key: [] for key in self._job.state.keys}
        first = self._job.state.keys[0]
        for item in listed:
            shares[next((region_of[end] for end in _ends(item.key) if end in region_of), first)].append(item)
        return shares

    def _regions(self) -> dict[str, str]:
        """The partition key of each chunk object of the level, by its path in the container."""
        spec, reader = self._job.spec, self.source.reader
        shard, chunk = spec.output.shard, reader.info.chunk
        grid = ceil_divide(reader.info.shape, chunk)
        paths: dict[str, str] = {}
        for cell in Box.from_shape(grid).cells((1, 1, 1)):
            corner = multiply(cell, chunk)
            index = zyx([a // s for a, s in zip(corner, shard, strict=True)])
            path = "/".join(part for part in (self._source.group, reader.object_path(cell)) if part)
            paths.setdefault(path, partition_key(index))
        return paths

    def _require_counts(self, listed: Sequence[ListedObject]) -> None:
        """A listing that forgets objects is found out by what was pinned of it."""
        spec = self._job.spec
        group = f"/{self._source.group}/" if self._source.group else "/"
        own = [item for item in listed if group in f"/{item.key}"]
        for what, found, expected in (
            ("objects", len(own), spec.expected.objects),
            ("bytes", sum(item.size_bytes for item in own), spec.expected.object_bytes),
        ):
            if expected not in (None, found):
                raise Mismatch(
                    f"{spec.name}: {self._source.volume_url} lists {found} {what}, the spec expects {expected}; look "
                    f"at what changed, then correct expected.object{'s' if what == 'objects' else '_bytes'}."
                )


def open_kept(job: Job, sub: str | None) -> tuple[VolumeReader, Box]:
    """The voxels of a volume from the objects that are kept."""
    assert isinstance(job.partitions, ObjectPartitions)
    kept = job.partitions.kept
    if sub is None:
        box, how = kept.crop_box()
        job.note(crop=how)
        return kept.reader, box
    reader = kept.volume_reader(sub)
    return reader, Box.from_shape(job.spec.volumes[sub].shape, at=reader.info.origin)


def _ends(key: str) -> list[str]:
    """A key without its first part, without its first two ...: one of them is the path in the container."""
    parts = key.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
