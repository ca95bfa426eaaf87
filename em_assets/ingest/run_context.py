"""One run that is being ingested, for whoever makes its entities: what the plan found, where it goes, what is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from em_assets.errors import EmAssetsError
from em_assets.ingest.making import Bench, Values
from em_assets.ingest.plan import Found, IngestPlan, RunPlan
from em_assets.ingest.schema import TomogramHeader
from em_assets.ingest.volumes_of import SAME_SPACING, described, voxel_size_of
from em_assets.portal._levels import nanometres
from em_assets.portal.layout import RunPlace
from em_assets.store import Store
from em_assets.volume import VolumeInfo, VoxelSize, Zyx


@dataclass
class RunContext:
    """Made for one run, used by one thread."""

    plan: IngestPlan
    run: RunPlan
    bench: Bench
    place: RunPlace
    _infos: dict[str, VolumeInfo | None] = field(default_factory=dict)

    @property
    def source(self) -> Store:
        return self.bench.source

    @property
    def deposition_id(self) -> int:
        return self.bench.deposition_id

    def of(self, kind: str, **parents: str) -> list[Found]:
        """What the plan found of a kind, in what has these names: `voxel_spacing="13.480"`."""
        return [
            found
            for found in self.run.entities
            if found.kind == kind and all(found.parents.get(parent) == name for parent, name in parents.items())
        ]

    def where(self, found: Found) -> str:
        """Where the config states an entity's metadata."""
        return f"{self.plan.config.file}, line {self.plan.config.line(found.block)}, {found.block}.metadata"

    def info(self, path: str) -> VolumeInfo | None:
        """What a volume of the source says of itself, None where it cannot be read: its own entity says why."""
        if path not in self._infos:
            try:
                self._infos[path] = described(self.source, path, self.bench.settings)
            except (EmAssetsError, OSError):
                self._infos[path] = None
        return self._infos[path]

    def shape(self, tomogram: Found) -> Zyx | None:
        """Of a tomogram that the plan found; None where it cannot be known."""
        if tomogram.is_new:
            info = self.info(tomogram.paths[0]) if tomogram.paths else None
            return None if info is None else info.shape
        size = tomogram.metadata.get("size")
        try:
            return None if size is None else (int(size["z"]), int(size["y"]), int(size["x"]))
        except (KeyError, TypeError, ValueError):
            return None

    def voxel_size(self, tomogram: Found) -> tuple[VoxelSize, tuple[str, ...]]:
        """(z, y, x) of a tomogram as it is written, and what there is to say of its header."""
        name = tomogram.parents["voxel_spacing"]
        spacing = self.spacing(name)
        info = self.info(tomogram.paths[0]) if tomogram.is_new and tomogram.paths else None
        if info is None:
            return (nanometres(spacing),) * 3, ()
        if info.voxel_size_nm is not None and self._is_from_header(name):
            return info.voxel_size_nm, _rounded(info.voxel_size_nm, spacing, tomogram.paths[0])
        return voxel_size_of(info, spacing, tomogram.paths[0])

    def _is_from_header(self, name: str) -> bool:
        """Whether the config took a voxel spacing from the tomograms' headers, and so says nothing of its own."""
        key = next((found.key for found in self.of("voxel_spacing") if found.name == name), None)
        sources = (source for block in self.plan.config.blocks["voxel_spacing"] for source in block.sources)
        return any(source.key == key and isinstance(source.finder, TomogramHeader) for source in sources)

    def spacing(self, name: str) -> float:
        """In angstrom, unrounded, of the voxel spacing that is called so."""
        found = self.of("voxel_spacing")
        return float(next((one.metadata["voxel_spacing"] for one in found if one.name == name), name))


def _rounded(size_nm: VoxelSize, spacing_angstrom: float, name: str) -> tuple[str, ...]:
    """What there is to say where the folder's one number, y's, is not all."""
    if max(size_nm) - min(size_nm) <= SAME_SPACING * max(size_nm):
        return ()
    shown = " x ".join(f"{size:.8g}" for size in angstrom(size_nm))
    return (f"The voxels of {name} are {shown} A (z, y, x); its folder and JSON have y's alone, {spacing_angstrom:g}.",)


def without_nulls(value: Any) -> Any:
    """Metadata without keys that say nothing, and without mappings that are empty then."""
    if not isinstance(value, Mapping):
        return [without_nulls(item) for item in value] if isinstance(value, list) else value
    kept = {key: without_nulls(item) for key, item in value.items()}
    return {key: item for key, item in kept.items() if item is not None and item != {}}


def stated(found: Found) -> Values:
    """An entity's metadata as the config states them."""
    values: Values = without_nulls(found.metadata)
    return values


def angstrom(size_nm: VoxelSize) -> tuple[float, float, float]:
    z, y, x = (float(f"{size * 10:.12g}") for size in size_nm)
    return z, y, x
