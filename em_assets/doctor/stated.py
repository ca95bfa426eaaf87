"""What publishers' replies state about a dataset, against its spec: shape, voxel size, DOI."""

from __future__ import annotations

import math
import re
from typing import Any

from em_assets.datasets.source import Document, FilesSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.doctor.report import Section
from em_assets.formats._json import parse_json

ROUNDED = 5e-3
"""Publishers' replies round sizes: 80 angstrom for 79.98."""


def compare_reply(section: Section, spec: DatasetSpec, document: Document, raw: bytes) -> None:
    """One line for every fact that both give. A contradiction is no failure: what the data says decides."""
    facts: dict[str, tuple[object, object]] = {}
    if document.kind == "empiar_entry":
        facts = _empiar(spec, parse_json(raw, document.url))
    elif document.kind == "idr_image":
        facts = _idr(spec, parse_json(raw, document.url))
    elif document.kind == "omero_image":
        facts = _omero(spec, parse_json(raw, document.url))
    for what, (expected, found) in facts.items():
        if found is None:
            continue
        agrees = _agree(expected, found)
        known = not agrees and _names(spec, str(found))
        note = "; the spec names this contradiction" if known else ""
        section.compare(
            f"{document.path}: {what}",
            expected,
            f"{found}{note}",
            agrees=agrees,
            otherwise="known" if known else "warn",
        )


def _empiar(spec: DatasetSpec, reply: dict[str, Any]) -> dict[str, tuple[object, object]]:
    (entry,) = list(reply.values())[:1] or [{}]
    images = _imageset(spec, entry["imagesets"])
    z, y, x = spec.expected.source_shape[0]
    _, y_nm, x_nm = spec.expected.voxel_size_nm
    count = len(spec.source.volume.paths()) if isinstance(spec.source, FilesSource) else z
    return {
        "num_images_or_tilt_series": (count, images.get("num_images_or_tilt_series")),
        "image_height": (y, images.get("image_height")),
        "image_width": (x, images.get("image_width")),
        "pixel_height (angstrom)": (y_nm * 10, images.get("pixel_height")),
        "pixel_width (angstrom)": (x_nm * 10, images.get("pixel_width")),
        "entry_doi": (spec.doi or "none known", entry.get("entry_doi")),
    }


def _imageset(spec: DatasetSpec, imagesets: list[dict[str, Any]]) -> dict[str, Any]:
    """The one whose folder the spec reads, else the first."""
    address = spec.source.url.rstrip("/")
    folders = [str(images.get("directory") or "").strip("/") for images in imagesets]
    at = next((n for n, folder in enumerate(folders) if folder and address.endswith(f"/{folder}")), 0)
    return imagesets[at]


def _idr(spec: DatasetSpec, reply: dict[str, Any]) -> dict[str, tuple[object, object]]:
    size, pixel = reply.get("size"), reply.get("pixel_size")
    found = size if isinstance(size, dict) else {}
    facts: dict[str, tuple[object, object]] = {
        f"size {key}": (expected, found.get(key))
        for key, expected in zip(("z", "height", "width"), spec.expected.source_shape[0], strict=True)
    }
    for axis, nm in zip("zyx", spec.expected.voxel_size_nm, strict=True):
        facts[f"pixel_size {axis} (um)"] = (nm / 1000, pixel.get(axis) if isinstance(pixel, dict) else None)
    return facts | {"pixelsType": (spec.dtype, reply["meta"].get("pixelsType"))}


def _omero(spec: DatasetSpec, reply: dict[str, Any]) -> dict[str, tuple[object, object]]:
    pixels = reply["data"].get("Pixels")
    found = pixels if isinstance(pixels, dict) else {}
    return {
        f"Size{axis}": (expected, found.get(f"Size{axis}"))
        for axis, expected in zip("ZYX", spec.expected.source_shape[0], strict=True)
    }


def _agree(expected: object, found: object) -> bool:
    """Numbers are compared as numbers, also where the publisher writes them as text."""
    if isinstance(expected, int | float):
        try:
            return math.isclose(float(str(found)), expected, rel_tol=0 if isinstance(expected, int) else ROUNDED)
        except ValueError:
            return False
    return str(found) == str(expected)


def _names(spec: DatasetSpec, value: str) -> bool:
    """Whether the spec's own words mention the value that contradicts it."""
    words = " ".join([spec.description, *spec.notes.values(), *(str(claim.value) for claim in spec.claims)])
    return re.search(rf"(?<![\w.]){re.escape(value)}(?![\w])", words) is not None
