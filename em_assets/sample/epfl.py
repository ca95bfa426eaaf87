"""EPFL's part of the sample origin: TIFF stacks as ITK writes them, in a folder whose name begins with a space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from em_assets.sample.pages import write_page
from em_assets.sample.publishing import (
    FOLDER,
    Addresses,
    Facts,
    drawn_words,
    file_facts,
    moved_documents,
    moved_files,
    packaged_spec,
    sample_spec,
    settle,
)
from em_assets.volume import Box, Zyx

if TYPE_CHECKING:
    from em_assets.sample.origin import Request
    from em_assets.sample.texture import Voxels

DATASET = "epfl_hippocampus"
SHAPE: Zyx = (107, 154, 205)
"""A page has an even number of bytes, as a real one has: so every page but the first begins on an odd byte."""
PART_SHAPE: Zyx = (33, 76, 102)
PARTS = {"training": Box.from_shape(PART_SHAPE), "testing": Box.from_shape(PART_SHAPE, at=(0, 76, 102))}
"""The labelled parts, of the first slices."""
LABEL = 255
SHARD, CHUNK = [64, 64, 64], [32, 32, 32]
"""Of the output: 24 shards."""


def write(origin: Path, request: Request) -> Facts:
    """Writes files and the page below `origin`."""
    from em_assets.sample.texture import draw, draw_mitochondria

    root = origin / FOLDER / "epfl"
    real = packaged_spec(DATASET)
    folder = root / unquote(urlsplit(real["source"]["url"]).path).lstrip("/")
    folder.mkdir(parents=True)
    volume = draw(SHAPE, request.seed)
    labels = draw_mitochondria(SHAPE, request.seed, slices=PART_SHAPE[0]) * LABEL
    stacks = {"volumedata": volume}
    for name, box in PARTS.items():
        stacks |= {name: volume[box.slices], f"{name}_groundtruth": labels[box.slices]}
    for name, stack in stacks.items():
        _write_stack(folder / f"{name}.tif", stack)
    files = {f"{name}.tif": file_facts(folder / f"{name}.tif") for name in stacks}
    page = urlsplit(real["page_url"]).path
    to_root = "../" * len(page.strip("/").split("/"))
    write_page(root / page.strip("/"), _page(to_root + folder.relative_to(root).as_posix(), list(files)), ".html")
    return {"root": f"{FOLDER}/{settle(root).name}", "page": page, "seed": request.seed, "files": files}


def spec(facts: Facts, addresses: Addresses) -> dict[str, Any]:
    """The packaged spec with everything changed that would pass the sample off as the real thing."""
    base = addresses.below(facts["root"])
    served = "served on this machine as EPFL serves its hippocampus; the 5 nm are nominal."
    words = drawn_words(facts["seed"], instead_of="the hippocampus", served=served)
    document = sample_spec(DATASET, words, base.http + facts["page"])
    document["source"] = moved_files(document["source"], base, facts["files"])
    document["documents"] = moved_documents(document["documents"], base)
    document["claims"] = [_claim_of_the_page(document["page_url"])]
    document["expected"] |= {"source_shape": list(SHAPE)}
    document["volumes"] = {name: v | {"shape": list(PART_SHAPE)} for name, v in document["volumes"].items()}
    document["output"] = {"shard": SHARD, "chunk": CHUNK}
    return document


def write_sparse_volume(file: Path, shape: Zyx, pages: dict[int, Voxels]) -> None:
    """A `volumedata.tif` of any size of which only some pages are written; the others are holes that read as zeros."""
    from em_assets.sample.tiff import write_itk

    write_itk(file, shape, pages.get)


def _write_stack(file: Path, stack: Voxels) -> None:
    z, y, x = stack.shape
    write_sparse_volume(file, (z, y, x), dict(enumerate(stack)))


def _claim_of_the_page(page_url: str) -> dict[str, Any]:
    z, y, x = SHAPE
    return {"key": "volume_shape", "value": f"{z}x{x}x{y}", "url": page_url, "note": "in the page's order of axes"}


def _page(folder: str, names: list[str]) -> str:
    """As the real page has them, the links hold the space itself, and the axes are in an order of their own."""
    z, y, x = SHAPE
    links = "".join(f'<li><a href=" {folder}/{name}">{name}</a></li>\n' for name in names)
    return f"""<!DOCTYPE html>
<html>
<head><title>SAMPLE: Electron Microscopy Dataset</title></head>
<body>
<h1>SAMPLE: Electron Microscopy Dataset</h1>
<p>Drawn by em_assets, not measured. The dataset available for download on this webpage corresponds to
a {z}x{x}x{y} volume. The resolution of each voxel is approximately 5x5x5nm. The data is provided as multipage TIF
files.</p>
<ul>
{links}</ul>
</body>
</html>
"""
