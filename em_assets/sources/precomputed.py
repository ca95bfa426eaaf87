"""Publishers of Neuroglancer precomputed images (the hemibrain and some twenty others; facts in each YAML).

The format is `formats/precomputed.py`; here is what the spec asks of it.
"""

from __future__ import annotations

from typing import Any, NoReturn

from em_assets.datasets.source import PrecomputedSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Unsupported
from em_assets.fetch.http import HttpClient
from em_assets.formats.precomputed import PrecomputedReader, open_precomputed
from em_assets.settings import Settings
from em_assets.sources.crop import find_crop
from em_assets.sources.expected import require_expected
from em_assets.volume import Box

INFO_DOCUMENT = "documents/info.json"


class PrecomputedImage:
    """The image of one spec, after its `info` was read and compared with what the spec expects."""

    def __init__(self, spec: DatasetSpec, settings: Settings) -> None:
        assert isinstance(spec.source, PrecomputedSource)
        self._spec = spec
        url, level = spec.source.volume_url, spec.source.level
        self.reader: PrecomputedReader = open_precomputed(url, level, HttpClient(settings), settings)
        expected = spec.expected
        require_expected(
            f"{spec.name}, {url} level {level}",
            self.reader.info,
            expected.source_shape,
            expected.dtype,
            expected.voxel_size_at_publisher_nm,
        )

    def documents(self) -> dict[str, bytes]:
        return {INFO_DOCUMENT: self.reader.info_document}

    def crop_box(self) -> tuple[Box, dict[str, Any]]:
        coarsest = len(self.reader.scales) - 1
        return find_crop(self._spec, self.reader, lambda level: self.reader.at_level(min(level, coarsest)))

    def met(self) -> dict[str, Any]:
        reply = self.reader.info_reply
        return {
            "info_etag": reply.etag,
            "info_last_modified": reply.last_modified,
            "info_content_encoding": reply.content_encoding,
            "data_encoding": sorted(self.reader.data_encoding_met),
        }

    def volume_reader(self, name: str) -> NoReturn:
        raise Unsupported(
            f"{self._spec.name} has no volume {name}: a precomputed source has one; make another dataset of the other."
        )
