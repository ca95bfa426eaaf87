"""Publishers of Neuroglancer precomputed images (the hemibrain and some twenty others; facts in each YAML).

The format is `formats/precomputed.py`; here is what the spec asks of it: is it the volume that is expected,
and where does the crop lie.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed, Mismatch
from em_assets.fetch.http import HttpClient
from em_assets.formats.precomputed import PrecomputedReader, open_precomputed
from em_assets.settings import Settings
from em_assets.volume import Box, Claim, RemoteFile, VolumeInfo, Zyx, add, subtract, zyx

INFO_DOCUMENT = "documents/info.json"


class PrecomputedImage:
    """The image of one spec, after its `info` was read and compared with what the spec expects."""

    def __init__(self, spec: DatasetSpec, settings: Settings) -> None:
        self._spec = spec
        client = HttpClient(settings)
        self.reader: PrecomputedReader = open_precomputed(spec.source.url, spec.source.level, client, settings)
        self._info_bytes = self.reader.info_document
        _require_expected(spec, self.reader.info)

    def list(self) -> list[RemoteFile]:
        return [RemoteFile(url=f"{self._spec.source.url}/info", path="info", size_bytes=len(self._info_bytes))]

    def documents(self) -> dict[str, bytes]:
        return {INFO_DOCUMENT: self._info_bytes}

    def crop_box(self) -> tuple[Box, dict[str, Any]]:
        return find_crop(self._spec, self.reader)

    def met(self) -> dict[str, Any]:
        reply = self.reader.info_reply
        return {
            "info_etag": reply.etag,
            "info_last_modified": reply.last_modified,
            "info_content_encoding": reply.content_encoding,
            "data_encoding": sorted(self.reader.data_encoding_met),
        }


def describe(spec: DatasetSpec, documents: dict[str, bytes]) -> list[Claim]:
    """Every scalar of the stored `info`, by JSON pointer. Raises Malformed if the stored document is not JSON."""
    if INFO_DOCUMENT not in documents:
        return []
    try:
        info = json.loads(documents[INFO_DOCUMENT])
    except ValueError as error:
        raise Malformed(
            f"{spec.name}/{INFO_DOCUMENT} is not JSON ({error}); remove it and materialize again."
        ) from None
    url = f"{spec.source.url}/info"
    return [Claim(key=pointer, value=value, document=INFO_DOCUMENT, url=url) for pointer, value in _leaves(info)]


def find_crop(spec: DatasetSpec, reader: PrecomputedReader) -> tuple[Box, dict[str, Any]]:
    """The crop in the publisher's voxels, and how it came to lie there.

    Drawn origins depend on the seed and the volume's shape alone, so they are the same wherever they are drawn.
    Raises Mismatch if the crop does not fit, or if no draw is filled enough.
    """
    crop, info = spec.crop, reader.info
    room = subtract(info.shape, crop.shape)
    if min(room) < 0:
        raise Mismatch(
            f"{spec.name}: a crop of {crop.shape} does not fit into the publisher's volume of {info.shape} voxels "
            "(z, y, x); make crop.shape smaller."
        )
    if crop.seed is None:
        box = Box.from_shape(crop.shape, at=_given_origin(spec, info))
        return box, {"origin": "given", "snapped": crop.snap}
    step = info.chunk if crop.snap else (1, 1, 1)
    draws: list[dict[str, Any]] = []
    for number in range(crop.redraw.max_draws if crop.redraw else 1):
        origin = add(info.origin, _draw(crop.seed, number, room, step))
        box = Box.from_shape(crop.shape, at=origin)
        filled = _filled_fraction(reader, box, crop.redraw.level) if crop.redraw else None
        draws.append({"origin": list(origin), "filled_fraction": filled})
        if crop.redraw is None or filled is None or filled >= crop.redraw.min_filled_fraction:
            return box, {"origin": "drawn", "seed": crop.seed, "snapped": crop.snap, "draws": draws}
    assert crop.redraw is not None
    best = max(float(draw["filled_fraction"] or 0) for draw in draws)
    raise Mismatch(
        f"{spec.name}: none of {len(draws)} draws of seed {crop.seed} is at least "
        f"{crop.redraw.min_filled_fraction:.0%} filled (the best is {best:.0%}); "
        "take another seed, a smaller crop, or give crop.origin."
    )


def _require_expected(spec: DatasetSpec, info: VolumeInfo) -> None:
    expected = spec.expected
    found: tuple[tuple[str, object, object, bool], ...] = (
        ("shape", info.shape, " or ".join(map(str, expected.source_shape)), info.shape in expected.source_shape),
        ("dtype", info.dtype, expected.dtype, info.dtype == expected.dtype),
        (
            "voxel size in nm",
            info.voxel_size_nm,
            expected.voxel_size_nm,
            all(
                math.isclose(a, b, rel_tol=1e-9)
                for a, b in zip(info.voxel_size_nm, expected.voxel_size_nm, strict=True)
            ),
        ),
    )
    for what, is_now, was_expected, agrees in found:
        if not agrees:
            raise Mismatch(
                f"{spec.name}: the publisher's {what} at {spec.source.url} level {spec.source.level} is {is_now}, the "
                f"spec expects {was_expected} (z, y, x); look at what changed, then correct `expected` in the spec."
            )


def _given_origin(spec: DatasetSpec, info: VolumeInfo) -> Zyx:
    crop = spec.crop
    if crop.origin is not None:
        origin = zyx(crop.origin)
    else:
        assert crop.origin_nm is not None
        origin = zyx([voxel_of(nm, size) for nm, size in zip(crop.origin_nm, info.voxel_size_nm, strict=True)])
    if crop.snap:
        steps = ((o - first) // c for o, first, c in zip(origin, info.origin, info.chunk, strict=True))
        origin = zyx([first + s * c for s, first, c in zip(steps, info.origin, info.chunk, strict=True)])
    whole = Box.from_shape(info.shape, at=info.origin)
    if not whole.contains(Box.from_shape(crop.shape, at=origin)):
        raise Mismatch(
            f"{spec.name}: a crop of {crop.shape} at {origin} leaves the publisher's volume {whole}; "
            "move crop.origin or make crop.shape smaller."
        )
    return origin


def voxel_of(nm: float, size_nm: float) -> int:
    """The voxel that a coordinate lies in. A millionth of a voxel is forgiven: n * size must not fall to n - 1."""
    return math.floor(nm / size_nm + 1e-6)


def _draw(seed: int, number: int, room: Zyx, step: Zyx) -> Zyx:
    """An offset in 0..room on the grid of `step`, uniform, from the digest of (seed, number, axis).

    A digest, because the streams of random generators are not promised to stay the same between versions.
    """
    offsets = []
    for axis, (space, grid) in enumerate(zip(room, step, strict=True)):
        digest = hashlib.sha256(f"em_assets crop {seed} {number} {axis}".encode()).digest()
        offsets.append(int.from_bytes(digest, "big") % (space // grid + 1) * grid)
    return zyx(offsets)


def _filled_fraction(reader: PrecomputedReader, box: Box, level: int) -> float:
    """Share of non-zero voxels under `box` on a coarse scale of the publisher; missing chunks are empty."""
    import numpy as np

    coarse = reader.at_level(min(level, len(reader.scales) - 1))
    scales = zip(box.start, box.stop, reader.info.voxel_size_nm, coarse.info.voxel_size_nm, strict=True)
    bounds = [(math.floor(a * fine / rough), math.ceil(b * fine / rough)) for a, b, fine, rough in scales]
    wanted = Box(zyx([a for a, _ in bounds]), zyx([b for _, b in bounds]))
    inside = wanted.intersection(Box.from_shape(coarse.info.shape, at=coarse.info.origin))
    if inside is None:
        return 0.0
    (outcome,) = coarse.map_regions([inside], lambda region: int(np.count_nonzero(region.voxels)))
    if outcome.error is not None:
        raise outcome.error
    return round((outcome.value or 0) / inside.voxels, 4)


def _leaves(value: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of a JSON document with its JSON pointer (RFC 6901)."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{pointer}/{index}")
    else:
        yield pointer, value
