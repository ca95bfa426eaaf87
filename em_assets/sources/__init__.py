"""One module per kind of publisher: what it says of itself, and a reader of its voxels. No Dagster.

`open_source(spec, settings)` is the one door to publishers of chunks: a new kind is one module beside its facts, and
one line here. What publishers of files serve is `files.py`; what either says in documents is `documents.py`. Where a
tomogram of the CryoET Data Portal lies now is asked for first (`cryoet.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from em_assets.datasets.spec import DatasetSpec
    from em_assets.formats.reader import VolumeReader
    from em_assets.settings import Settings
    from em_assets.sources.cryoet import CurrentSpec
    from em_assets.volume import Box, Claim


class OpenSource(Protocol):
    """A publisher's volume that answered and is what the spec expects."""

    @property
    def reader(self) -> VolumeReader:
        """The level that the spec names."""

    def volume_reader(self, name: str) -> VolumeReader:
        """A further volume of the spec, opened now and compared with what is expected of it, as the main one was."""

    def met(self) -> dict[str, Any]:
        """What the publisher was found to do where that was not known for sure, for the record."""

    def documents(self) -> dict[str, bytes]:
        """Raw replies worth keeping, by path below the dataset's folder."""

    def crop_box(self) -> tuple[Box, dict[str, Any]]:
        """The box the spec asks for, in the publisher's voxels, and how it was found."""


def describe(spec: DatasetSpec, documents: dict[str, bytes]) -> list[Claim]:
    """Every value that the spec and the stored documents state, with where it came from. No network."""
    from em_assets.sources import claims

    return claims.describe(spec, documents)


def open_source(spec: DatasetSpec, settings: Settings, current: CurrentSpec | None = None) -> OpenSource:
    """Asks the publisher. Raises Unavailable, Malformed, Unsupported, or Mismatch where it is not what is expected.

    `current` is the spec with the addresses of now, where somebody has asked for them already (`cryoet.py`).
    """
    if spec.source.kind == "precomputed":
        from em_assets.sources.precomputed import PrecomputedImage

        return PrecomputedImage(spec, settings)
    if spec.source.kind in ("zarr", "n5"):
        from em_assets.sources.chunked import ChunkedVolume

        if current is None and spec.portal is not None:
            from em_assets.sources.cryoet import current_spec

            current = current_spec(spec, settings)
        return ChunkedVolume(spec if current is None else current.spec, settings)
    raise TypeError(f"{spec.name} publishes files: see sources/files.py")
