"""File and volume formats. Each module turns one format into a `VolumeReader` (`reader.py`); x, y, z order,
voxel offsets, angstrom and micrometre end here.
"""
