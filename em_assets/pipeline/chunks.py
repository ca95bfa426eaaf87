"""Partitions that are regions of a published volume: each is a shard of level 0 of the stored one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from em_assets.datasets.fields import ITEM_BYTES
from em_assets.errors import EmAssetsError, Mismatch
from em_assets.pipeline.absent import may_be_absent
from em_assets.pipeline.documents import keep_container_documents
from em_assets.pipeline.job import Fetched
from em_assets.pipeline.moved import require_same_voxels
from em_assets.pipeline.plan import Transfer, add_transfers
from em_assets.records import PartitionRecord
from em_assets.sources import OpenSource, open_source
from em_assets.volume import Box

if TYPE_CHECKING:
    from em_assets.formats.reader import VolumeReader
    from em_assets.pipeline.job import Job
    from em_assets.pipeline.state import VolumeState


class ChunkPartitions:
    """Regions of the volume that a publisher serves in chunks."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @cached_property
    def source(self) -> OpenSource:
        """The publisher's volume; asked when it is first needed."""
        return open_source(self._job.spec, self._job.settings, self._job.current)

    def here(self, key: str) -> Fetched | None:
        record = self._job.state.volumes[None].intact.get(key)
        return None if record is None else Fetched.of_region(record)

    def ask(self, missing: Sequence[str]) -> Transfer:
        """Of the further volumes, too, which are read once these are here."""
        main, *further = self._job.state.volumes.items()
        transfers = [_transfer(main[1], self.source.reader, missing, main[1].place or self.source.crop_box()[0])]
        for sub, volume in further:
            if sub is not None and volume.missing:
                try:
                    reader = self.source.volume_reader(sub)
                except EmAssetsError as error:
                    if may_be_absent(self._job.spec, sub, error):
                        continue
                    raise
                place = Box.from_shape(volume.layout.shape, at=reader.info.origin)
                transfers.append(_transfer(volume, reader, volume.missing, place))
        return functools.reduce(add_transfers, transfers)

    def prepare(self, missing: Sequence[str]) -> Transfer:
        require_same_voxels(self._job.spec, self._job.state.volumes[None], self.source.reader)
        return _transfer(self._job.state.volumes[None], self.source.reader, missing, self.place())

    def fetch(
        self, missing: Sequence[str], on_bytes: Callable[[int], None], on_item: Callable[[], None]
    ) -> tuple[list[Fetched], dict[str, Exception]]:
        from em_assets.standardize.ingest import fetch_regions

        job = self._job
        records, failures = fetch_regions(
            job.folder,
            job.spec,
            self.source.reader,
            self.place(),
            missing,
            on_bytes=on_bytes,
            on_region=lambda _: on_item(),
        )
        self._require_something(records)
        return [Fetched.of_region(record) for record in records], failures

    def met(self) -> dict[str, Any]:
        return self.source.met()

    def place(self) -> Box:
        """Where the volume lies in the publisher's: as it was stored, else found now and stored before any voxel."""
        job = self._job
        if job.record.source_box is not None:
            return job.record.source_box  # type: ignore[no-any-return]
        box, how = self.source.crop_box()
        stored = job.state.volumes[None].place
        if stored not in (None, box):
            raise Mismatch(
                f"{job.spec.name}: what is stored was cut at {stored}, the spec now gives {box}, in the "
                f"publisher's voxels; remove what is stored with `em-assets rm {job.spec.name}`."
            )
        keep_container_documents(job.folder, job.current, self.source.documents())
        info = self.source.reader.info
        job.set_status(
            "saving-data",
            source_box=box,
            source_shape=info.shape,
            corner_nm=info.corner_nm,
            additional_metadata={**job.record.additional_metadata, "crop": how},
        )
        return box

    def _require_something(self, fetched: Sequence[PartitionRecord]) -> None:
        """A publisher that has nothing of a whole volume is more likely wrong, moved or closed than empty."""
        job = self._job
        every = [*job.state.volumes[None].intact.values(), *fetched]
        if len(every) < len(job.state.keys) or any(record.received_bytes for record in every):
            return
        for record in every:
            job.folder.delete_partition_record(record.level, record.key)
            for stored in record.objects:  # what was filled
                job.store.delete(job.folder.path(stored.path))
        raise Mismatch(
            f"{job.spec.name}: {job.spec.source.url} has none of the chunks of {job.record.source_box}, in its own "
            "voxels; look at the address in a viewer, choose another place for the crop, or try again later."
        )


def _transfer(volume: VolumeState, reader: VolumeReader, missing: Sequence[str], place: Box) -> Transfer:
    read = reader.plan([volume.source_box(key, place) for key in missing])
    most = read.chunks * math.prod(reader.info.chunk) * ITEM_BYTES[volume.layout.dtype]
    known = read.received_bytes is not None and read.missing_chunks is not None
    return Transfer(read.chunks, read.requests, read.received_bytes if known else most, is_upper_bound=not known)
