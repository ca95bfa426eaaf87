"""The CryoET Data Portal's part of the sample origin: one dataset of two runs in the portal's bucket and layout.

Each run has a tomogram as OME-Zarr and as an MRC file that differs from it (dtype, depth, a voxel size in its header
that the folder's name does not have), masks, points, a tilt series with what the microscope wrote, and the metadata
JSON of every entity. The GraphQL beside it (`graphql.py`) answers from that JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_assets.sample.cryoet_run import (
    CHUNK,
    DATASET_ID,
    DEPOSITION_ID,
    Run,
    RunWriter,
    authored,
    photos,
    write_json,
)
from em_assets.sample.pages import BUCKET
from em_assets.sample.publishing import FOLDER, Addresses, Facts, drawn_words, sample_spec, settle

if TYPE_CHECKING:
    from em_assets.sample.origin import Request

DATASET = "cryoet_10000_ts_026"
BUCKET_NAME = "cryoet-data-portal-public"
SHARD, INNER_CHUNK = [16, 16, 16], [8, 8, 8]
"""Of the output: eight shards of level 2."""

RUNS = (
    Run("TS_026", (100, 92, 96), 50, "int16", {117: "cytoplasm", 120: "vesicle"}),
    Run("TS_027", (45, 38, 41), 40, "float16", {114: "cytoplasm", 115: "nucleus"}),
)
"""Sides of the first halve evenly, as the real ones; the second's are odd, so its coarser levels have dark edges."""


def write(origin: Path, request: Request) -> Facts:
    """Writes the bucket below `origin`."""
    from em_assets.sample.cryoet_entities import portal_id

    bucket = origin / BUCKET_NAME
    root = bucket / FOLDER
    _write_dataset(root, request.seed)
    shapes = {run.name: RunWriter(root, run, request.seed + number).write() for number, run in enumerate(RUNS)}
    (bucket / BUCKET).touch()
    settled = settle(root)
    run = RUNS[0]
    return {
        "bucket": BUCKET_NAME,
        "prefix": settled.name,
        "seed": request.seed,
        "tomogram": portal_id(settled, "Tomogram", run.tomogram),
        "shapes": [list(shape) for shape in shapes[run.name]],
    }


def spec(facts: Facts, addresses: Addresses) -> dict[str, Any]:
    """The packaged spec with everything changed that would pass the sample off as the real thing.

    It names the tomogram by its id, which follows the content: a store never takes one sample's for another's.
    """
    bucket, prefix = facts["bucket"], facts["prefix"]
    served = "served on this machine as the CryoET Data Portal serves run TS_026; the voxel size is nominal."
    words = drawn_words(facts["seed"], instead_of="S. pombe", served=served)
    tree = f"{addresses.http}/{bucket}/{prefix}"
    document = sample_spec(DATASET, words, f"{addresses.http}/{bucket}/?list-type=2&prefix={prefix}/{RUNS[0].key}/")
    source = document["source"]
    level = source["level"]
    portal = source["portal"] | {"api": f"{tree}/graphql", "tomogram": facts["tomogram"]}
    document["source"] = source | {
        "url": f"s3://{bucket}",
        "endpoint": addresses.http,
        "group": f"{prefix}/{source['group']}",
        "portal": portal,
    }
    document["expected"] = {
        **{key: value for key, value in document["expected"].items() if key not in ("objects", "object_bytes")},
        "source_shape": list(facts["shapes"][level]),
        "chunk": list(CHUNK),
    }
    document["volumes"] = {
        name: _sample_volume(name, volume, facts) for name, volume in document.get("volumes", {}).items()
    }
    document["points"] = {
        name: points | {"title": "SAMPLE: drawn points", "url": _moved_below(points["url"], tree)}
        for name, points in document.get("points", {}).items()
    }
    document["documents"] = [
        entry | {"url": _moved_below(entry["url"], tree)} for entry in document.get("documents", [])
    ]
    document["output"] = document.get("output", {}) | {"shard": SHARD, "chunk": INNER_CHUNK}
    return document


def _sample_volume(name: str, volume: dict[str, Any], facts: Facts) -> dict[str, Any]:
    kept = {key: value for key, value in volume.items() if key not in ("doi", "shard")}
    return kept | {
        "title": f"SAMPLE: a drawn shape, not {name}",
        "group": f"{facts['prefix']}/{volume['group']}",
        "shape": list(facts["shapes"][volume.get("level", 0)]),
    }


def _moved_below(address: str, tree: str) -> str:
    """A file of the public bucket, whoever serves that, in the sample's tree."""
    return f"{tree}/{address[address.index(f'/{DATASET_ID}/') + 1 :]}"


# The dataset and its deposition


def _write_dataset(root: Path, seed: int) -> None:
    words = f"SAMPLE: drawn by em_assets (seed {seed}), not S. pombe"
    description = "Not measured: textures that em_assets drew, in the layout of the CryoET Data Portal."
    deposition_photos = photos(f"depositions_metadata/{DEPOSITION_ID}/Images", "")
    deposition = {
        "deposition_identifier": DEPOSITION_ID,
        "deposition_title": words,
        "deposition_description": description,
        "deposition_types": ["dataset", "annotation"],
        "cross_references": {"publications": "doi:10.5072/em-assets-sample"},
        "key_photos": deposition_photos,
        **authored(),
    }
    dataset_photos = photos(f"{DATASET_ID}/Images", "")
    dataset = {
        "dataset_identifier": DATASET_ID,
        "dataset_title": words,
        "dataset_description": description,
        "sample_type": "in_silico",
        "organism": {"name": "none (drawn)"},
        "assay": {"id": None, "name": "none (drawn)"},
        "disease": {"id": None, "name": "none (drawn)"},
        "development_stage": {"id": "unknown", "name": "unknown"},
        "funding": [{"funding_agency_name": "none", "grant_id": "0"}],
        "cross_references": {"publications": "doi:10.5072/em-assets-sample"},
        "key_photos": dataset_photos,
        **authored(),
    }
    write_json(root / f"depositions_metadata/{DEPOSITION_ID}/deposition_metadata.json", deposition)
    write_json(root / f"{DATASET_ID}/dataset_metadata.json", dataset)
    for picture in (*deposition_photos.values(), *dataset_photos.values()):
        _write_picture(root / picture, seed)


def _write_picture(file: Path, seed: int) -> None:
    from em_assets.sample.cryoet_volumes import write_png
    from em_assets.sample.texture import draw

    write_png(file, draw((1, 96, 128), seed)[0])
