"""The index of a volume's blocks, `blocks.parquet`: where each lies, what is in it, which split it is of.

Beside its rows the file says what it was made from (`IndexInfo`), so that making it again is nothing where nothing has
changed. `index_plan.py` says which blocks there are and what each row is made from, `index_rows.py` makes the rows;
`split.py` what the splits are, `similar.py` which blocks look alike.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from em_assets.blocks.index_plan import IndexInfo, IndexOptions, Plan, main_grid, plan_index
from em_assets.blocks.index_rows import Progress, layers_of_rows, row_schema
from em_assets.catalog.block_indexes import index_path
from em_assets.errors import Malformed, Mismatch
from em_assets.records import DatasetFolder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from em_assets.blocks.volume import Volume

INFO = b"em_assets"
"""The key of what an index says of itself, in the file's schema metadata: JSON."""
ROW_GROUP = 2**16
"""Rows that are written together: at most so many are in memory, or two layers of blocks."""


@dataclass(frozen=True)
class IndexSummary:
    """What `write_index` leaves in the store."""

    path: str
    """Relative to the dataset's folder."""
    info: IndexInfo
    blocks: int
    per_split: dict[str, int]
    """Blocks in `train`, `val`, `test` and `margin`."""
    coverage: float
    """Mean of the blocks' coverage."""
    was_written: bool
    """False: it was there already."""


def write_index(
    folder: DatasetFolder,
    volume: Volume,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[IndexOptions],
) -> IndexSummary:
    """Makes `blocks.parquet` of the folder's volume (`open(folder.title)`), unless it is there and would be the same.

    Further volumes have `volumes/<name>.blocks.parquet`. Arguments as `build_index`. The file lands whole or not at
    all; an earlier one stays until then. Raises Mismatch if the dataset is not complete, and as `build_index`.
    """
    record = folder.read_record()
    if record is None or record.visible_status != "complete":
        raise Mismatch(
            f"{folder.name} is {'not there' if record is None else record.visible_status}, so its blocks cannot be "
            f"described; finish it with `em-assets get {folder.name}`."
        )
    plan = plan_index(volume, options, None if folder.sub is None else main_grid(record))
    coverage = record.coverage_sha256 if folder.sub is None else record.volumes[folder.sub].coverage_sha256
    plan = plan.of_dataset(record.sha256, coverage, record.license, record.source)
    path = index_path(folder.sub)
    known = _read_metadata(folder)
    if known is not None and _digest(known) == plan.info.digest():
        return _summary(folder, plan.info, was_written=False)
    with tempfile.TemporaryDirectory(prefix="em_assets_") as temporary:
        file = Path(temporary) / "blocks.parquet"
        _write(file, plan, workers, progress)
        folder.store.write_file(folder.path(path), file)
    return _summary(folder, plan.info, was_written=True)


def build_index(
    volume: Volume,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[IndexOptions],
) -> pa.Table:
    """The index of any volume, in memory. `workers` threads compute; as many as there are cores unless told.

    Raises Mismatch if the arguments do not fit each other or the volume, Malformed or Unavailable as reading does.
    """
    import pyarrow as pa

    plan = plan_index(volume, options)
    return pa.concat_tables(layers_of_rows(plan, workers, progress)).replace_schema_metadata(_metadata(plan.info))


def read_index(folder: DatasetFolder, columns: Sequence[str] | None = None) -> pa.Table | None:
    """The index of the folder's volume (or some columns), None if there is none; Malformed if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = index_path(folder.sub)
    local = folder.store.local_path(folder.path(path))
    try:
        source = pa.BufferReader(folder.read(path)) if local is None else pa.memory_map(str(local))
        return pq.read_table(source, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(folder, error) from None


def index_info(folder: DatasetFolder) -> IndexInfo | None:
    """What the index of the folder's volume was made from, None if there is none; reads the file's end only.

    Raises Malformed if the file says nothing of the kind.
    """
    found = _read_metadata(folder)
    if found is None:
        return None
    try:
        return IndexInfo.of(json.loads((found.metadata or {})[INFO]))
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(folder, error) from None


# The file


def _write(file: Path, plan: Plan, workers: int | None, progress: Progress | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = row_schema(plan.info).with_metadata(_metadata(plan.info))
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for layer in layers_of_rows(plan, workers, progress):
            waiting.append(layer)
            if sum(table.num_rows for table in waiting) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP)
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP)


def _metadata(info: IndexInfo) -> dict[bytes, bytes]:
    stated = {**dataclasses.asdict(info), "digest": info.digest()}
    return {INFO: json.dumps(stated).encode()}


def _digest(schema: pa.Schema) -> str | None:
    """`IndexInfo.digest()` of an index, None if it does not say."""
    try:
        stated = json.loads((schema.metadata or {})[INFO])
        digest = stated["digest"]
    except (KeyError, TypeError, ValueError):
        return None
    return str(digest)


def _read_metadata(folder: DatasetFolder) -> pa.Schema | None:
    """The schema of the folder's index with what is stated in it; None if there is none or it is no Parquet file."""
    file = _read_end(folder)
    return None if file is None else file.schema.to_arrow_schema()


def _read_end(folder: DatasetFolder) -> pq.FileMetaData | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder.path(index_path(folder.sub))
    size_bytes = folder.store.size_bytes(path)
    if size_bytes is None:
        return None

    def last(length: int) -> bytes:
        return folder.store.read_range(path, max(0, size_bytes - length), length)

    try:
        length = int.from_bytes(last(8)[:4], "little") + 8
        # a Parquet file is read from its end; that much of one is as good as all of it
        return pq.read_metadata(pa.BufferReader(b"PAR1" + last(min(length, size_bytes))))
    except (FileNotFoundError, pa.ArrowException, OSError, ValueError):
        return None


def _summary(folder: DatasetFolder, info: IndexInfo, *, was_written: bool) -> IndexSummary:
    import pyarrow.compute as pc

    table = read_index(folder, ["split", "coverage"])
    assert table is not None  # it was written, or its end was read, a moment ago
    counts = dict.fromkeys(("train", "val", "test", "margin"), 0)
    for found in pc.value_counts(table["split"].fill_null("margin")).to_pylist():
        counts[found["values"]] = found["counts"]
    return IndexSummary(
        path=index_path(folder.sub),
        info=info,
        blocks=table.num_rows,
        per_split=counts,
        coverage=float(pc.mean(table["coverage"]).as_py()),
        was_written=was_written,
    )


def _unreadable(folder: DatasetFolder, why: object) -> Malformed:
    return Malformed(
        f"{folder.uri(index_path(folder.sub))} is not the index of the volume's blocks "
        f"({str(why).partition(chr(10))[0].rstrip('.')}); remove it and materialize {folder.name}_blocks again."
    )
