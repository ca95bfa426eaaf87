"""Rebuilds `metadata.duckdb` from the specs and the store, and puts it in place whole.

Locally: written to a temporary sibling, synced, renamed, under a lock that the operating system frees when its
holder dies. On S3: written in the cache folder and uploaded on the condition that nobody uploaded another one
meanwhile. A reader that has the old file open keeps it; a builder that is killed leaves the old file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from em_assets.catalog.block_indexes import BlockIndex, blocks_table, download, load_indexes
from em_assets.catalog.readme import write_store_readme
from em_assets.catalog.rows import Rows, collect_rows
from em_assets.catalog.schema import BLOCKS, COUNT_CONFLICTS_SQL, DERIVED, KEY_PRESENCE_SQL, TABLES, Relation
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Unavailable
from em_assets.settings import Settings
from em_assets.store import PARTIAL_SUFFIX, ObjectStore, Store, process_is_alive

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

CATALOG = "metadata.duckdb"
LOCK = f".{CATALOG}.lock"
LOCK_SECONDS = 60.0
"""Longest wait for another builder; one takes seconds."""
UPLOAD_ATTEMPTS = 10
STORAGE_VERSION = "v1.0.0"
"""Every DuckDB since 1.0 opens it; what 2.0 writes by default, no 1.x opens."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CatalogBuild:
    """What a rebuild made."""

    uri: str
    rows: dict[str, int]
    """Per table."""
    seconds: float


def build_catalog(specs: Mapping[str, DatasetSpec], store: Store, settings: Settings) -> CatalogBuild:
    """Rebuilds the catalogue and the store's README.md; the old ones stay until the new ones are whole.

    Raises Unavailable if the store cannot be read or written. What is wrong with one dataset becomes its row's
    `status_reason` instead.
    """
    started = monotonic()
    rows = _build_on_s3(specs, store, settings) if isinstance(store, ObjectStore) else _build_locally(specs, store)
    counts = {table: sum(lines.num_rows for lines in tables) for table, tables in rows.tables.items()}
    counts[BLOCKS.name] = sum(index.blocks for index in rows.indexes)
    return CatalogBuild(uri=store.uri(CATALOG), rows=counts, seconds=monotonic() - started)


def _build_locally(specs: Mapping[str, DatasetSpec], store: Store) -> Rows:
    target = store.local_path(CATALOG)
    if target is None:
        raise TypeError(f"{store.root} is neither a folder nor an ObjectStore")
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(LOCK)):
            _remove_partials(target.parent)
            rows = collect_rows(specs, store)
            with _temporary(target.parent) as temporary:
                _write_database(temporary, rows, store)
                os.replace(temporary, target)
            write_store_readme(rows, store)
    return rows


def _build_on_s3(specs: Mapping[str, DatasetSpec], store: ObjectStore, settings: Settings) -> Rows:
    folder = settings.cache_folder() / "catalog"
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_partials(folder)
        for _ in range(UPLOAD_ATTEMPTS):
            replaces = store.version(CATALOG)  # before the store is read: whoever uploads after this has read it later
            rows = collect_rows(specs, store)
            with _temporary(folder) as temporary:
                _write_database(temporary, rows, store)
                if store.write_if_unchanged(CATALOG, temporary.read_bytes(), replaces):
                    write_store_readme(rows, store)
                    return rows
    raise Unavailable(
        f"{store.uri(CATALOG)} was replaced by others during each of {UPLOAD_ATTEMPTS} rebuilds; "
        "the one that is there is whole, build again when less is going on."
    )


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"the catalogue at {place} could not be built ({error.strerror or error}): free space or correct the "
            "folder's permissions and build it again; the old one stays."
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One builder at a time where the file system can lock; where it cannot, the last one to rename wins.

    The file stays: removing it would let two builders hold locks on two files of one name.
    """
    import filelock

    lock = filelock.FileLock(path, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except (filelock.Timeout, NotImplementedError, OSError) as error:
        log.warning("%s could not be locked (%s); the catalogue is rebuilt without the lock", path, error)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A name for an unfinished file; whatever lies under it afterwards is removed."""
    path = folder / f"{CATALOG}.{os.getpid()}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
    try:
        yield path
    finally:
        for file in folder.glob(f"{path.name}*"):  # DuckDB's own `.wal` too
            file.unlink(missing_ok=True)


def _remove_partials(folder: Path) -> None:
    """What killed builders left."""
    for file in folder.glob(f"{CATALOG}.*{PARTIAL_SUFFIX}*"):
        pid = file.name.removeprefix(f"{CATALOG}.").split(".")[0]
        if not (pid.isdigit() and process_is_alive(int(pid))):
            file.unlink(missing_ok=True)


def _write_database(path: Path, rows: Rows, store: Store) -> None:
    """The whole database as one synced file; indexes that turn out to be damaged are dropped from `rows`.

    Raises Unavailable if the disk does not take it.
    """
    import duckdb

    try:
        with duckdb.connect(
            path, config={"storage_compatibility_version": STORAGE_VERSION, "temp_directory": ""}
        ) as database:
            database.execute("begin")
            for table in TABLES:
                _create(database, table if table is not BLOCKS else blocks_table(rows.indexes))
                _load(database, table.name, rows.tables.get(table.name, []))
            database.execute(KEY_PRESENCE_SQL)
            for relation, statement in DERIVED:
                database.execute(statement)
                _comment(database, statement.split()[1], relation)
            database.execute(COUNT_CONFLICTS_SQL)
            database.execute("commit")
            rows.indexes = load_indexes(database, rows.indexes, partial(_file_of, store, path), store.uri)
            database.execute("checkpoint")
    except (duckdb.IOException, duckdb.FatalException) as error:
        raise Unavailable(
            f"{path.with_name(CATALOG)} could not be written ({str(error).splitlines()[0]}): free space or correct "
            "the folder's permissions and build the catalogue again; the old one stays."
        ) from error
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _file_of(store: Store, database: Path, index: BlockIndex) -> Path:
    """The index as a file of this machine; from S3 it is downloaded to a name that is removed with the database's."""
    local = store.local_path(index.path)
    if local is not None:
        return local
    file = database.with_name(f"{database.name}.blocks")
    download(store, index.path, file)
    return file


def _create(database: duckdb.DuckDBPyConnection, table: Relation) -> None:
    columns = ", ".join(f'"{column.name}" {column.type}' for column in table.columns)
    database.execute(f"create table {table.name} ({columns})")
    _comment(database, "table", table)


def _comment(database: duckdb.DuckDBPyConnection, kind: str, relation: Relation) -> None:
    database.execute(f"comment on {kind} {relation.name} is {_quoted(relation.comment)}")
    for column in relation.columns:
        database.execute(f'comment on column {relation.name}."{column.name}" is {_quoted(column.comment)}')


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _load(database: duckdb.DuckDBPyConnection, table: str, rows: list[pa.Table]) -> None:
    """By column: a hundred thousand rows go in at once, not one by one."""
    import pyarrow as pa

    if rows:
        database.register("incoming", pa.concat_tables(rows))
        database.execute(f"insert into {table} by name from incoming")
        database.unregister("incoming")
