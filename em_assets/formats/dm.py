"""Gatan DigitalMicrograph files, DM3 and DM4: one image or stack as a volume. The container is in `_dm_tags.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.formats._boxes import checked_box, map_boxes
from em_assets.formats._bytes import ByteSource
from em_assets.formats._dm_image import choose_image
from em_assets.formats._dm_tags import read_tags
from em_assets.formats._raw_array import RawArray
from em_assets.formats.reader import ReadPlan, RegionOutcome, RegionVoxels, Scalar
from em_assets.settings import Settings
from em_assets.volume import Box, VolumeInfo, Zyx

T = TypeVar("T")


def open_dm(source: ByteSource, settings: Settings, *, dataset: str | None = None) -> DmReader:
    """The image that the file is about, or the one that `dataset` names (`ImageList/2`).

    Raises Malformed for what is damaged or no DM file, Unsupported for what is not a volume (spectra, colours,
    Fourier transforms), Mismatch if `dataset` is not there. Reads tags, no voxels.
    """
    return DmReader(source, settings, dataset)


class DmReader:
    """A `VolumeReader` of one image: (1, y, x), or (z, y, x) for a stack. Safe for use by several threads."""

    def __init__(self, source: ByteSource, settings: Settings, dataset: str | None) -> None:
        self._source = source
        self._settings = settings
        self._tags = read_tags(source)
        image = choose_image(self._tags, dataset)
        shape = (image.shape_xyz[2] if image.shape_xyz[2:] else 1, image.shape_xyz[1], image.shape_xyz[0])
        dtype = np.dtype(image.dtype).newbyteorder(self._tags.order)
        connections = settings.connections_per_host
        self._array = RawArray(source, image.data.start, shape, dtype, connections=connections)
        self.dataset = image.path
        """The image that was chosen, as its path in the tags: `ImageList/1`."""
        self.pixel_size_nm = image.pixel_size_nm
        """(y, x), also where z is not stated."""
        self.info = VolumeInfo(shape, image.dtype, image.voxel_size_nm, (1, *shape[1:]))

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """The voxels of a box, of the whole image without one; of a local file a view where that is possible."""
        return self._array.read(checked_box(self.info, box, self._source.name))

    def tags(self) -> Iterator[tuple[str, Scalar]]:
        """Every tag of the file, of all its images: `/ImageList/1/ImageTags/Microscope Info/Voltage`."""
        return self._tags.leaves()

    def plan(self, boxes: Sequence[Box]) -> ReadPlan:
        return self._array.plan([checked_box(self.info, box, self._source.name) for box in boxes])

    @property
    def sampler(self) -> Callable[[Zyx], float] | None:
        """Reads one voxel by another way than `read`. Of a local file only: of a remote one each costs a request."""
        return self._array.sample if self._source.mapped() is not None else None

    def map_regions(
        self,
        boxes: Sequence[Box],
        work: Callable[[RegionVoxels], T],
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[RegionOutcome[T]]:
        return map_boxes(
            boxes,
            self.read,
            work,
            sample=self.sampler,
            source_url=self._source.name,
            workers=self._settings.workers,
            on_bytes=on_bytes,
        )
