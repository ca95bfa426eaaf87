"""What publishers' own keys mean: one module per kind of document, each turning claims into statements.

A module knows one vocabulary (EMPIAR's, OMERO's, DigitalMicrograph's ...) and says what of it is about a dataset's
fields, in which unit, and about which of the dataset's volumes. It believes nothing and raises nothing: what it does
not understand states nothing, and stays a claim. What several of them need is in `saying.py` (a claim as a statement),
`files.py` (parts of a volume, their axes and dates) and `containers.py` (volumes stored in chunks).
"""

from __future__ import annotations

from collections.abc import Mapping

from em_assets.catalog.mapping import cryoet, dm, empiar, hdf5, idr, mrc, n5, precomputed, spec, tiff, zarr
from em_assets.catalog.statements import Reader

READERS: Mapping[str, Reader] = {
    "spec": spec.read,
    "empiar_entry": empiar.read_entry,
    "empiar_xml": empiar.read_xml,
    "idr_image": idr.read_image,
    "omero_image": idr.read_omero,
    "idr_annotations": idr.read_annotations,
    "idr_study": idr.read_study,
    "table": idr.read_table,
    "dm": dm.read,
    "tiff": tiff.read,
    "hdf5": hdf5.read,
    "mrc": mrc.read,
    "zarr": zarr.read,
    "n5": n5.read,
    "precomputed": precomputed.read,
    "cryoet_api": cryoet.read_api,
    "cryoet_metadata": cryoet.read_metadata,
    "mrc_header": cryoet.read_mrc_header,
    "ome_zarr_attributes": cryoet.read_zarr_attributes,
    "zarr_array": cryoet.read_zarr_array,
    "points": cryoet.read_points,
    "mdoc": cryoet.read_mdoc,
}
"""By extractor."""
