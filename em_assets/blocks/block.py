"""A block: voxels, which of them are real, and where they lie."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from em_assets.blocks.geometry import BoxNm
from em_assets.errors import Unsupported
from em_assets.volume import Box, VoxelSize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from em_assets.blocks.volume import Volume


@dataclass(frozen=True)
class Block:
    """What `Volume.read` gives. Comparing blocks compares objects: compare `digest` or `data`."""

    data: NDArray[Any]
    """(z, y, x), C order, little endian; 0 (or what was asked for) where `valid` is False."""
    valid: NDArray[np.bool_] | None
    """True where a voxel is the publisher's; False where the publisher has none, and in padding. None: all are."""
    box: Box
    """In voxels of `level`, from the volume's first; leaves the volume where it was padded. Of a resampled block, the
    voxels that it was made of."""
    box_nm: BoxNm
    """The space it fills, in the publisher's frame."""
    level: int
    voxel_size_nm: VoxelSize
    volume: str
    labels: NDArray[Any] | None = None
    """The label at the middle of each voxel, of the volume that was asked for with `labels=`."""
    labels_valid: NDArray[np.bool_] | None = None
    """As `valid`, of the labels."""
    source: Volume | None = field(default=None, repr=False)
    """The volume it was read from."""

    @cached_property
    def digest(self) -> str:
        """`sha256:` of shape, dtype, voxels and which are real (and labels): equal requests have equal digests.

        Of one line of JSON with dtype and shape, then the bytes of `data`, then `valid` as a byte per voxel if it is
        not None; then the same of `labels` if there are any.
        """
        hashed = hashlib.sha256()
        for voxels, valid in ((self.data, self.valid), (self.labels, self.labels_valid)):
            if voxels is None:
                continue
            head = {"dtype": voxels.dtype.name, "shape": list(voxels.shape), "valid": valid is not None}
            hashed.update(json.dumps(head).encode() + b"\n")
            hashed.update(_bytes(voxels))
            if valid is not None:
                hashed.update(_bytes(valid))
        return f"sha256:{hashed.hexdigest()}"

    @property
    def valid_fraction(self) -> float:
        """Share of the voxels that are real, 0 to 1."""
        return 1.0 if self.valid is None else float(np.count_nonzero(self.valid) / self.valid.size)

    def npy(self) -> bytes:
        """`data` as the bytes of a .npy file (format 1.0)."""
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, self.data, version=(1, 0), allow_pickle=False)
        return buffer.getvalue()

    def neuroglancer_url(self, client_url: str | None = None) -> str:
        """A link that shows the block's box in its volume.

        Without `client_url`, in the public Neuroglancer, which reads the publisher's own volume or one at an address.
        With the address of an `em-assets serve`, the stored volume. Raises Unsupported where a browser cannot read the
        volume: published files, folders.
        """
        if self.source is None:
            raise Unsupported(f"the block of {self.volume} was not read from a volume, so there is no link to it.")
        return self.source.neuroglancer_url(self.box_nm, client_url)


@dataclass(frozen=True)
class Batch(Sequence[Block]):
    """Blocks of one shape that were read together."""

    blocks: tuple[Block, ...]
    data: NDArray[Any]
    """(n, z, y, x); the blocks' own `data` are parts of it."""

    @property
    def valid(self) -> NDArray[np.bool_] | None:
        """(n, z, y, x), None if every voxel of every block is real."""
        if all(block.valid is None for block in self.blocks):
            return None
        return np.stack([np.ones(b.data.shape, np.bool_) if b.valid is None else b.valid for b in self.blocks])

    @property
    def labels(self) -> NDArray[Any] | None:
        """(n, z, y, x) where labels were asked for."""
        found = [block.labels for block in self.blocks if block.labels is not None]
        return np.stack(found) if found else None

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Block, ...]: ...
    def __getitem__(self, index: int | slice) -> Block | tuple[Block, ...]:
        return self.blocks[index]


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")
