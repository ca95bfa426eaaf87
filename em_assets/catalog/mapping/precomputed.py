"""Neuroglancer precomputed volumes: what `info` says of the scale that the spec names. Its x, y, z order ends here.

Specification: github.com/google/neuroglancer, src/datasource/precomputed/volume.rst.
"""

from __future__ import annotations

from collections.abc import Iterator

from em_assets.catalog.mapping.containers import NO_COMPRESSION, Axes, state, texts
from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.catalog.values import count, dtype
from em_assets.datasets.source import PrecomputedSource

XYZ = "xyz"
TYPE = "neuroglancer_multiscale_volume"
NANOMETRES = ("nm", "nm", "nm")


def read(document: StatedDocument, context: Context) -> Iterator[Statement]:
    source = context.spec.source
    if isinstance(source, PrecomputedSource):
        yield from _volume(document)
        yield from _scale(document, f"/scales/{source.level}")


def _volume(document: StatedDocument) -> Iterator[Statement]:
    values = document.values
    key = "/@type" if "/@type" in values else "/scales/0/key"  # it may be left out
    if values.get("/@type", TYPE) == TYPE:
        yield from state(document, None, "file_format", "Neuroglancer precomputed", key, stated=TYPE)
    yield from state(document, None, "dtype", dtype(values.get("/data_type")), "/data_type")
    channels = count(values.get("/num_channels"))
    yield from state(document, None, "channels", channels, "/num_channels")
    if channels:
        axes = "zyx" if channels == 1 else "czyx"
        yield from state(document, None, "source_axes", axes, "/num_channels", stated="x is fastest, channel slowest")
    levels = len(texts(values, "/scales/{}/key"))
    key = f"/scales/{levels - 1}/key"
    yield from state(document, None, "source_levels", float(levels), key, note="as many scales as are listed")


def _scale(document: StatedDocument, scale: str) -> Iterator[Statement]:
    values = document.values
    axes = Axes(document, None, XYZ)
    yield from axes.state_sizes(f"{scale}/size")
    yield from axes.state_scale(f"{scale}/resolution", NANOMETRES, (1.0, 1.0, 1.0))
    sharding = values.get(f"{scale}/sharding/@type")
    yield from axes.state_chunk(f"{scale}/chunk_sizes/0", "in shards" if sharding is not None else None)
    encoding = values.get(f"{scale}/encoding")
    if isinstance(encoding, str) and encoding.strip():
        packed = [encoding] if encoding != "raw" else []
        packed += ["gzip"] if values.get(f"{scale}/sharding/data_encoding") == "gzip" else []
        name = " + ".join(packed) or NO_COMPRESSION
        yield from state(document, None, "compression", name, f"{scale}/encoding")
