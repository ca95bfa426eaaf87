"""The indexes of blocks (`blocks.parquet`, one per volume), and how they get into the table `blocks`.

Only the end of each file is looked at here, which says whether it is an index, and of which state of the volume; DuckDB
reads the rows by itself. An index that does not belong to the volume as it is now is left out, and its dataset says so.
`blocks/index.py` writes the files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from em_assets.catalog.found import FoundDataset, Row
from em_assets.catalog.schema import BLOCKS, OF_INDEX, Column, Relation, SqlType
from em_assets.errors import Malformed
from em_assets.records import DatasetFolder
from em_assets.store import Store

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

PARQUET = b"PAR1"
FILE_END_BYTES = 8
"""How long the summary is, and what the file is."""
SUMMARY = b"em_assets"
"""The key in the file's schema metadata: JSON."""
DOWNLOADED_AT_ONCE = 16 * 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BlockIndex:
    """One volume's index, as far as its end tells, with what its dataset adds to each row."""

    dataset: str
    volume: str | None
    path: str
    """Below the store's root."""
    blocks: int
    features: int | None
    """How many numbers describe each block; None where none do, or not equally many."""
    added: Row
    """Values of the columns that are the dataset's, not the block's."""

    @property
    def name(self) -> str:
        """As `open` takes it."""
        return self.dataset if self.volume is None else f"{self.dataset}/{self.volume}"


def index_path(volume: str | None) -> str:
    """Where a volume's index lies, relative to the dataset's folder."""
    return "blocks.parquet" if volume is None else f"volumes/{volume}.blocks.parquet"


def find_indexes(found: FoundDataset, folder: DatasetFolder) -> list[BlockIndex]:
    """Those of a complete dataset's volumes; what is none, or of another state of the volume, is noted as unread."""
    record, indexes = found.record, []
    if record is None or record.status != "complete":
        return []
    for volume in found.volumes:
        path = index_path(volume.name)
        if path in found.sizes:
            try:
                indexes.append(_read_end(folder, volume.name, record.sha256, found.sizes[path]))
            except FileNotFoundError:
                continue  # removed since it was listed
            except Malformed as problem:
                found.unread.append(str(problem))
    return indexes


def with_added(indexes: Sequence[BlockIndex], dataset: Row, found: FoundDataset) -> list[BlockIndex]:
    """With what the dataset's row, its licence above all, and its volumes' descriptions say of every block."""
    further = found.record.volumes if found.record is not None else {}
    return [
        replace(
            index,
            added={
                "content": dataset.get("content") if index.volume is None else further[index.volume].content,
                "dtype": dataset.get("dtype") if index.volume is None else further[index.volume].dtype,
                "license": dataset.get("license"),
                "licence": dataset.get("license"),
                "publisher": dataset.get("source"),
            },
        )
        for index in indexes
    ]


def _read_end(folder: DatasetFolder, volume: str | None, sha256: str | None, size_bytes: int) -> BlockIndex:
    """Raises Malformed if it is no index, or not of the volume's present state."""
    path = index_path(volume)
    try:
        metadata = _metadata(folder, path, size_bytes)
        schema = metadata.schema.to_arrow_schema()
        _require_ours(schema, sha256)
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as error:  # pyarrow's errors are among them
        raise Malformed(_sentence(folder.uri(path), folder.name, error)) from None
    return BlockIndex(folder.name, volume, folder.path(path), metadata.num_rows, _length(schema), {})


def _require_ours(schema: pa.Schema, sha256: str | None) -> None:
    """Raises ValueError, KeyError or TypeError."""
    missing = [column.name for column in OF_INDEX if column.name not in schema.names]
    if missing:
        raise ValueError(f"it has no column {missing[0]}")
    if json.loads((schema.metadata or {})[SUMMARY])["sha256"] != sha256:
        raise ValueError("it is of the volume as it was before")


def _sentence(where: str, dataset: str, error: Exception) -> str:
    what = f"it lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0].rstrip(".")
    return (
        f"{where} is not the index of the volume's blocks ({what}); "
        f"`dagster asset materialize --select {dataset}_blocks` makes it again."
    )


def _metadata(folder: DatasetFolder, path: str, size_bytes: int) -> pq.FileMetaData:
    """What a Parquet file says of itself at its end: two small reads, of a million rows as of ten."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read(length: int) -> bytes:
        return folder.store.read_range(folder.path(path), max(0, size_bytes - length), length)

    end = read(FILE_END_BYTES)
    if not end.endswith(PARQUET):
        raise ValueError("it is not a Parquet file, or not a whole one")
    length = int.from_bytes(end[:4], "little") + FILE_END_BYTES
    if length > size_bytes:
        raise ValueError("it is not a whole Parquet file")
    return pq.read_metadata(pa.BufferReader(PARQUET + read(length)))


def _length(schema: pa.Schema) -> int | None:
    import pyarrow as pa

    found = schema.field("features").type
    return found.list_size if pa.types.is_fixed_size_list(found) else None


# Into the database.


def blocks_table(indexes: Sequence[BlockIndex]) -> Relation:
    """The table, with features of a fixed length where all indexes agree: then distances are computed fastest."""
    lengths = {index.features for index in indexes if index.features is not None}
    if len(lengths) != 1:
        return BLOCKS
    (length,) = lengths
    fixed = cast("SqlType", f"FLOAT[{length}]")
    columns = (replace(one, type=fixed) if one.name == "features" else one for one in BLOCKS.columns)
    return replace(BLOCKS, columns=tuple(columns))


def load_indexes(
    database: duckdb.DuckDBPyConnection,
    indexes: Sequence[BlockIndex],
    file_of: Callable[[BlockIndex], Path],
    uri_of: Callable[[str], str],
) -> list[BlockIndex]:
    """Fills the table, which has been created; returns the indexes that are in it.

    One that turns out to be damaged is left out whole, and its dataset's `status_reason` says so where it says nothing
    else. Each is a transaction of its own; there must be none when this is called.
    """
    loaded, table = [], blocks_table(indexes)
    for index in indexes:
        problem = _load(database, table, index, file_of(index))
        if problem is None:
            loaded.append(index)
            continue
        sentence = _sentence(uri_of(index.path), index.dataset, problem)
        log.warning("%s", sentence)
        database.execute(
            "update datasets set status_reason = coalesce(status_reason, $sentence) where name = $name",
            {"sentence": sentence, "name": index.dataset},
        )
    return loaded


def _load(database: duckdb.DuckDBPyConnection, table: Relation, index: BlockIndex, file: Path) -> Exception | None:
    """None if all went well; what is wrong with the file. What is wrong with the disk or the memory is raised."""
    import duckdb

    added = {"name": index.name, **index.added}
    wanted = ", ".join(_selected(table.columns, added))
    try:
        database.execute(
            f"insert into {table.name} by name select {wanted} from read_parquet($file)",  # noqa: S608  # our columns
            {"file": _literally(str(file)), **added},
        )
    except (duckdb.OutOfMemoryException, duckdb.FatalException):
        raise
    except duckdb.IOException as error:
        if str(file) not in str(error):  # then it is not the reading that failed
            raise
        return error
    except duckdb.Error as error:
        return error
    return None


def _selected(columns: Sequence[Column], added: Row) -> Iterator[str]:
    for column in columns:
        value = f"${column.name}" if column.name in added else f'"{column.name}"'
        yield f'cast({value} as {column.type}) as "{column.name}"'


def _literally(path: str) -> str:
    """DuckDB takes a file's name for a pattern."""
    return "".join(f"[{c}]" if c in "[*?" else c for c in path)


def download(store: Store, path: str, file: Path) -> None:
    """Copies an object of the store to a file of this machine, a piece at a time."""
    size_bytes = store.size_bytes(path) or 0
    with file.open("wb") as copy:
        for start in range(0, size_bytes, DOWNLOADED_AT_ONCE):
            copy.write(store.read_range(path, start, DOWNLOADED_AT_ONCE))
