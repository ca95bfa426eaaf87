"""File and volume formats. Each module turns one format into a `VolumeReader` (`reader.py`); x, y, z order,
voxel offsets, angstrom and micrometre end here. `open_volume` is the one way in.
"""

from __future__ import annotations

from em_assets.formats.opening import open_volume

__all__ = ["open_volume"]
