"""Blocks of any volume, by voxel or by nanometre: `import em_assets.blocks as em`, then `em.open("hemibrain_crop")`.

`opening.py` finds a volume, `geometry.py` says where voxels lie, `volume.py` reads blocks, `engine.py` turns boxes into
chunks and chunks into voxels, `index.py` describes every block of a dataset (`index_plan.py`: which blocks,
`index_rows.py`: what is said of each, `similar.py`: those like one of them), `sampling.py` and `dataset.py` draw blocks
for training.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from em_assets.blocks.block import Batch, Block
    from em_assets.blocks.dataset import BlockDataset, BlockStream, SamplerState, collate
    from em_assets.blocks.geometry import BoxNm, Grid
    from em_assets.blocks.opening import open  # noqa: A004  # em.open
    from em_assets.blocks.volume import Level, Volume

_HOMES = {
    "open": "opening",
    "Volume": "volume",
    "Level": "volume",
    "Block": "block",
    "Batch": "block",
    "BlockDataset": "dataset",
    "BlockStream": "dataset",
    "SamplerState": "dataset",
    "collate": "dataset",
    "BoxNm": "geometry",
    "Grid": "geometry",
}
"""Loaded when they are first asked for: importing the package stays light."""

__all__ = [
    "Batch",
    "Block",
    "BlockDataset",
    "BlockStream",
    "BoxNm",
    "Grid",
    "Level",
    "SamplerState",
    "Volume",
    "collate",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
