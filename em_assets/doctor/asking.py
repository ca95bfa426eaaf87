"""What all questions about one dataset share: where answers go, and what they are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from em_assets.datasets.fields import WIDENED
from em_assets.datasets.spec import DatasetSpec
from em_assets.doctor.metered import MeteredClient
from em_assets.doctor.report import Section
from em_assets.fetch.ftp import FtpClient
from em_assets.settings import Settings
from em_assets.volume import VolumeInfo, VoxelSize, Zyx

SAME_SIZE = 1e-9
"""Relative: the noise of computing with the same number."""
TOLD = ("ETag", "Last-Modified", "Content-Type", "Content-Encoding", "Accept-Ranges", "Server")


@dataclass(frozen=True)
class Wanted:
    """What a spec expects of one of its volumes."""

    prefix: str
    """Before each question: the volume's name, nothing for the main one."""
    shapes: Sequence[Zyx]
    dtype: str
    voxel_size_nm: VoxelSize
    """As the publisher states it, also where that is known to be wrong."""
    is_labels: bool
    """Whole chunks of labels may be empty."""


@dataclass(frozen=True)
class Asking:
    """One dataset under question."""

    section: Section
    spec: DatasetSpec
    client: MeteredClient
    ftp: FtpClient
    settings: Settings

    @property
    def main(self) -> Wanted:
        expected = self.spec.expected
        is_labels, size_nm = self.spec.content == "labels", expected.voxel_size_at_publisher_nm
        return Wanted("", expected.source_shape, expected.dtype, size_nm, is_labels)

    def further(self, name: str) -> Wanted:
        volume = self.spec.volumes[name]
        is_labels = volume.content == "labels"
        return Wanted(f"{name}: ", (volume.shape,), volume.dtype, volume.voxel_size_nm, is_labels)

    def compare_info(self, wanted: Wanted, info: VolumeInfo) -> None:
        shapes = " or ".join(map(str, wanted.shapes))
        self.section.compare(f"{wanted.prefix}shape (z, y, x)", shapes, info.shape, agrees=info.shape in wanted.shapes)
        self.compare_dtype(f"{wanted.prefix}dtype", wanted.dtype, info.dtype)
        self.compare_voxel_size(f"{wanted.prefix}voxel size (nm)", wanted.voxel_size_nm, info.voxel_size_nm)

    def compare_dtype(self, question: str, expected: str, found: str) -> None:
        """Of files, half precision is read as single precision; chunks are stored as they are."""
        agrees = found == expected or (self.spec.is_by_file and WIDENED.get(found) == expected)
        self.section.compare(question, expected, found, agrees=agrees)

    def compare_voxel_size(self, question: str, expected: VoxelSize, found: VoxelSize | None) -> None:
        """A volume that does not state it contradicts nothing."""
        agrees = found is None or all(
            math.isclose(a, b, rel_tol=SAME_SIZE) for a, b in zip(found, expected, strict=True)
        )
        self.section.compare(question, expected, found or "not stated", agrees=agrees)

    def learn_headers(self, what: str, url: str) -> None:
        told = self.client.headers_of(url)
        self.section.learn(f"{what}: headers", ", ".join(f"{name}: {told[name]}" for name in TOLD if name in told))
