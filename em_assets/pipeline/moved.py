"""Whether a portal's tomogram whose address changed while a part of it was stored is still the same one.

The portal's ids and keys change, so neither tells whether what fits the spec's choice now is what fitted it before. The
voxels do: one part that is here is read again where the volume lies now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Mismatch
from em_assets.fetch.replies import safe_url
from em_assets.formats._chunked import ChunkedReader
from em_assets.pipeline.state import VolumeState
from em_assets.records import PartitionRecord
from em_assets.volume import subtract

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from em_assets.formats.reader import VolumeReader


def require_same_voxels(spec: DatasetSpec, state: VolumeState, reader: VolumeReader) -> None:
    """Raises Mismatch if what is stored of a volume is not what the address of now has; reads one part at most.

    Nothing is read where there is no portal, or all that is stored came from this address.
    """
    if spec.portal is None or not isinstance(reader, ChunkedReader):
        return
    here = safe_url(reader.url)
    elsewhere = [
        record
        for record in state.intact.values()
        if record.source_url not in (None, here) and record.source_box is not None and record.received_bytes
    ]
    if not elsewhere:
        return
    record = min(elsewhere, key=lambda one: one.received_bytes)
    assert record.source_box is not None
    if not _are_equal(_stored(state, record), _without_missing(record, reader.read(record.source_box))):
        raise Mismatch(
            f"{state.layout.name}: {len(state.intact)} partitions are stored, of {record.source_url}, but the portal "
            f"now has it at {here}, with other voxels in {record.key}: another tomogram fits source.portal now, and "
            f"voxels of two are not mixed; remove what is stored with `em-assets rm {spec.name}`, then run again."
        )


def _stored(state: VolumeState, record: PartitionRecord) -> NDArray[Any]:
    from em_assets.standardize.shard import ShardFormat
    from em_assets.standardize.stored import read_box

    voxels = read_box(state.folder, ShardFormat.of(state.layout), 0, record.box)
    return _without_missing(record, voxels)


def _without_missing(record: PartitionRecord, voxels: NDArray[Any]) -> NDArray[Any]:
    """0 where the publisher had nothing and nothing was put in its place."""
    for part in record.missing:
        voxels[part.shifted(subtract((0, 0, 0), record.box.start)).slices] = 0
    return voxels


def _are_equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    import numpy as np

    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
