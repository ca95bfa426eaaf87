"""The CryoET Data Portal's tree of files, written: where everything lies, what its JSON says, how voxels get there.

`layout.py` names every path; `entities.py` are the metadata files; `volumes.py` writes a volume as OME-Zarr and MRC;
`ids.py` gives numbers to what lies in a folder of its own. Nothing here reads the portal itself: that is
`sources/cryoet.py`.
"""
