"""Which voxels of a stored volume are real: `coverage.parquet` (`standardize/finish.py` describes it) as boxes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from em_assets.errors import Malformed
from em_assets.records import DatasetFolder
from em_assets.standardize.finish import CORNERS
from em_assets.volume import Box, zyx

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def read_missing(folder: DatasetFolder) -> tuple[Box, ...]:
    """The boxes of level 0 that the publisher does not have; they do not overlap.

    Of a volume that is wholly real only the summary is looked at. Raises Malformed if there is no coverage that can
    be read: then nobody knows what is real.
    """
    hint = f"write it again with `em-assets verify {folder.name} --repair`"
    return _missing(lambda: folder.read(folder.coverage), folder.uri(folder.coverage), hint)


def read_missing_file(file: Path) -> tuple[Box, ...]:
    """The same of a coverage that lies beside a copy of a volume."""
    return _missing(file.read_bytes, str(file), "make the copy again with `em-assets stage`")


def _missing(read: Callable[[], bytes], where: str, hint: str) -> tuple[Box, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(read()))
        summary = json.loads(file.schema_arrow.metadata[b"em_assets"])
        if summary["voxels"] == summary["present_voxels"]:
            return ()
        return tuple(_boxes(file))
    except FileNotFoundError:
        why = "it is not there"
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        why = str(error).splitlines()[0]
    raise Malformed(f"{where} does not say which voxels are real ({why}); {hint}.")


def _boxes(file: pq.ParquetFile) -> list[Box]:
    found = []
    for batch in file.iter_batches(columns=["missing"]):
        for parts in _given(batch.column(0)):
            corners = [int(parts[name]) for name in CORNERS]
            found.append(Box(zyx(corners[:3]), zyx(corners[3:])))
    return found


def _given(lists: pa.ListArray) -> list[dict[str, int]]:
    return lists.flatten().to_pylist()  # type: ignore[no-any-return]
