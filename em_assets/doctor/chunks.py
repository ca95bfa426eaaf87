"""Publishers of chunks: their metadata against the spec, and one chunk of the middle, decoded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from em_assets.datasets.fields import ITEM_BYTES
from em_assets.datasets.source import ChunkedSource, PrecomputedSource
from em_assets.doctor.asking import Asking, Wanted
from em_assets.doctor.report import Section
from em_assets.fetch.s3 import ListedObject, list_objects
from em_assets.formats._chunked import ChunkedReader
from em_assets.formats._json import parse_json
from em_assets.formats.precomputed import PrecomputedReader, open_precomputed
from em_assets.formats.reader import VolumeReader
from em_assets.progress import human_bytes
from em_assets.sources.chunked import joined, open_level
from em_assets.volume import Box, zyx

MAX_PIECE_BYTES = 4 * 2**20
"""A chunk that unpacks to more is not read."""
SCALE_KEYS = ("key", "encoding", "jpeg_quality", "chunk_sizes", "voxel_offset", "sharding")
ARRAY_DOCUMENTS = (".zarray", "zarr.json", "attributes.json")
ARRAY_KEYS = ("zarr_format", "compressor", "codecs", "compression", "dimension_separator", "order", "fill_value")


def ask_precomputed(asking: Asking, source: PrecomputedSource) -> None:
    section, url = asking.section, source.volume_url
    reader = section.attempt("info", url, lambda: open_precomputed(url, source.level, asking.client, asking.settings))
    if reader is None:
        return
    asking.compare_info(asking.main, reader.info)
    asking.learn_headers("info", f"{url}/info")
    for level in dict.fromkeys((len(reader.scales) - 1, source.level)):
        _read_piece(asking, asking.main, str(level), reader.at_level(level))
    _learn_scales(section, reader, source.level)


def _learn_scales(section: Section, reader: PrecomputedReader, level: int) -> None:
    section.learn("levels", ", ".join(f"{scale.key} {scale.shape}" for scale in reader.scales))
    stated: dict[str, Any] = parse_json(reader.info_document, "info")["scales"][level]
    section.learn(f"level {level} as stated", {key: stated[key] for key in SCALE_KEYS if key in stated})


def ask_chunked(asking: Asking, source: ChunkedSource) -> None:
    for wanted, group, level in _volumes(asking, source):
        reader = asking.section.attempt(
            f"{wanted.prefix}metadata",
            joined(source.url.rstrip("/"), group),
            partial(open_level, source, group, level, asking.client, asking.settings),
        )
        if reader is None:
            continue
        asking.compare_info(wanted, reader.info)
        present = [one.path for one in reader.levels if one.shape is not None]
        for path in dict.fromkeys((present[-1], reader.levels[reader.level].path)):
            _read_piece(asking, wanted, path or "0", reader.at_level(path) if path else reader)
        _learn_levels(asking.section, wanted.prefix, reader)
    if source.url.startswith(("s3://", "gs://")):
        asking.section.attempt("listing", "objects of the group", lambda: _ask_listing(asking, source))


def _volumes(asking: Asking, source: ChunkedSource) -> Iterator[tuple[Wanted, str, int | str]]:
    yield asking.main, source.group, source.level
    for name, volume in asking.spec.volumes.items():
        yield asking.further(name), volume.group or "", volume.level


def _learn_levels(section: Section, prefix: str, reader: ChunkedReader) -> None:
    section.learn(f"{prefix}levels", ", ".join(f"{one.path or '(array)'} {one.shape}" for one in reader.levels))
    section.learn(f"{prefix}translations place", reader.convention)
    for name in ARRAY_DOCUMENTS:
        path = joined(reader.path, name)
        raw = reader.documents().get(path)
        document = parse_json(raw, path) if raw is not None else None
        if isinstance(document, dict):
            section.learn(f"{prefix}{path}", {key: document[key] for key in ARRAY_KEYS if key in document})


def _ask_listing(asking: Asking, source: ChunkedSource) -> None:
    """What the bucket lists directly in the image group."""
    folder = f"{joined(source.url.rstrip('/'), source.group)}/"
    entries = list_objects(folder, asking.client, endpoint=source.endpoint, delimiter="/")
    names = [entry.key if isinstance(entry, ListedObject) else entry.prefix for entry in entries]
    shown = ", ".join(name.rstrip("/").rpartition("/")[2] for name in names)
    asking.section.compare("listing", "objects of the group", shown or "nothing", agrees=bool(names))


def _read_piece(asking: Asking, wanted: Wanted, level: str, reader: VolumeReader) -> None:
    info, section, question = reader.info, asking.section, f"{wanted.prefix}a piece of level {level}"
    middle = zyx([o + n // 2 // c * c for o, n, c in zip(info.origin, info.shape, info.chunk, strict=True)])
    box = Box.from_shape(info.chunk, at=middle).intersection(Box.from_shape(info.shape, at=info.origin))
    if box is None or box.voxels * ITEM_BYTES.get(info.dtype, 8) > MAX_PIECE_BYTES:
        section.add("ok", question, f"not read: a chunk has {info.chunk} voxels", "small chunks")
        return
    before = asking.client.received_bytes
    voxels = section.attempt(question, f"the chunk {box}", lambda: reader.read(box))
    if voxels is None:
        return
    size = human_bytes(asking.client.received_bytes - before)
    found = f"{box}: {voxels.min()} to {voxels.max()}, mean {voxels.mean():.1f}; {size} received"
    is_sound = wanted.is_labels or voxels.any()  # what is not stored reads as 0, too
    section.add("ok" if is_sound else "warn", question, found if is_sound else f"{found}; empty or not stored")
    section.learn(f"{question}: data encoding met", ", ".join(sorted(getattr(reader, "data_encoding_met", ()))))
