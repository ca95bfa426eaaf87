"""A `VolumeReader`'s regions to an OME-Zarr 0.5 volume with its pyramid.

`shard.py` is the bytes of one Zarr shard, `stored.py` shards in the store, `ome.py` the volume's `zarr.json` documents,
`region.py` the only writer of level 0, `mean.py` and `presence.py` what a coarser voxel is and whether it is real,
`above.py` one shard of the levels above, `pyramid.py` all of them and their repair, `ascent.py` those that can be made
while level 0 is in memory, `finish.py` manifest and coverage, `intensity.py` the grey values, `preview.py` the picture,
`ingest.py` the joining function of reading and writing, `opening.py` an independent way to read what was written,
`complete.py` what the documents of a finished volume say, `stage.py` a copy of it that is faster to read
(`stage_plan.py`, `stage_copy.py`).
"""
