"""A `VolumeReader`'s regions to an OME-Zarr 0.5 volume with its pyramid.

`shard.py` is the bytes of one Zarr shard, `stored.py` shards in the store, `ome.py` the volume's `zarr.json` documents,
`region.py` the only writer of level 0, `mean.py` and `presence.py` what a coarser voxel is and whether it is real,
`pyramid.py` the levels above, `finish.py` manifest and coverage, `preview.py` the picture, `ingest.py` the joining
function of reading and writing, `opening.py` an independent way to read what was written.
"""
