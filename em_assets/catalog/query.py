"""Asking the catalogue: SQL in, a table out. Nothing can be written, and no other file or address be reached."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_assets.catalog.build import CATALOG
from em_assets.catalog.schema import OVERVIEW, TABLES
from em_assets.errors import EmAssetsError, Malformed, Unavailable
from em_assets.settings import Settings
from em_assets.store import LocalStore, ObjectStore, Store

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

BUILD_IT = "build it with `em-assets catalog`"

# DuckDB's own locks, with those that `_start` sets: the file is attached read-only, and SQL may touch no other file, no
# network, no extension, no variable of this process, and none of these settings.
LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "python_enable_replacements": False,
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
}

ATTACHED = "metadata"
"""The database's name in SQL, as its file's: `metadata.main.datasets` is `datasets`."""

READING = ("SELECT", "EXPLAIN", "PRAGMA", "MULTI")
"""Kinds of statements that are questions; `pivot` is MULTI."""


@dataclass(frozen=True, slots=True)
class Table:
    """An answer: as many names and types as each row has values."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    """DuckDB's names: VARCHAR, DOUBLE, INTEGER[3] ..."""
    rows: list[tuple[Any, ...]]


def catalog_path(store: Store, settings: Settings) -> Path:
    """The database as a file of this machine; from S3 it is downloaded to the cache if it is another than before.

    Raises Unavailable if there is none yet.
    """
    path = _download(store, settings) if isinstance(store, ObjectStore) else store.local_path(CATALOG)
    if path is None or not path.is_file():
        raise Unavailable(f"there is no catalogue at {store.uri(CATALOG)} yet; {BUILD_IT}.")
    return path


def query(path: Path, sql: str) -> Table:
    """The answer to one SQL statement, e.g. `from overview`.

    Raises Malformed if it is not one, not SQL, or more than reading; Unavailable if the catalogue cannot be opened.
    """
    with _answer(path, sql) as result:
        described = result.description or []
        columns = tuple(str(column[0]) for column in described)
        return Table(columns, tuple(str(column[1]) for column in described), result.fetchall())


def frame(path: Path, sql: str) -> pd.DataFrame:
    """The same as a pandas DataFrame."""
    with _answer(path, sql) as result:
        return result.df()


def _download(store: ObjectStore, settings: Settings) -> Path | None:
    version = store.version(CATALOG)
    if version is None:
        return None
    of_root = settings.cache_folder() / "catalog" / hashlib.sha256(store.root.encode()).hexdigest()[:16]
    of_version = of_root / hashlib.sha256(version.encode()).hexdigest()[:16]
    file = of_version / CATALOG
    if not file.exists():
        LocalStore(of_version).write(CATALOG, store.read(CATALOG))
        for other in of_root.iterdir():
            if other != of_version:  # whoever has it open keeps it
                shutil.rmtree(other, ignore_errors=True)
    return file


@contextmanager
def _answer(path: Path, sql: str) -> Iterator[duckdb.DuckDBPyConnection]:
    import duckdb

    if not path.is_file():
        raise Unavailable(f"there is no catalogue at {path} yet; {BUILD_IT}.")
    with _engine(path.absolute()) as engine, _attached(engine, path.absolute()) as database:
        try:
            yield database.execute(_single_reading_statement(sql))
        except duckdb.Error as error:
            raise _explained(error) from None


_idle: dict[tuple[int, Path], list[duckdb.DuckDBPyConnection]] = {}
_idle_lock = threading.Lock()


@contextmanager
def _engine(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB engine of this process with nothing in it, which may attach `path` only; nobody else uses it meanwhile.

    Starting one takes 30 ms, attaching a file 5: engines are kept. A child process starts its own, because a DuckDB
    engine's threads do not survive a fork.
    """
    key = (os.getpid(), path)
    with _idle_lock:
        kept = _idle.get(key)
        engine = kept.pop() if kept else None
    engine = engine or _start(path)
    try:
        yield engine
    finally:
        with _idle_lock:
            _idle.setdefault(key, []).append(engine)


def _start(path: Path) -> duckdb.DuckDBPyConnection:
    import duckdb

    engine = duckdb.connect(config=LOCKED)
    # Neither the file nor the log that a writer may have left beside it counts as external.
    engine.execute("set allowed_paths = $1", [[str(path), f"{path}.wal"]])
    engine.execute("set enable_external_access = false")
    engine.execute("set lock_configuration = true")
    return engine


@contextmanager
def _attached(engine: duckdb.DuckDBPyConnection, path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that sees the catalogue as it is now: whoever replaces the file meanwhile does not disturb it."""
    import duckdb

    with engine.cursor() as database:
        try:
            database.execute(f"attach {_quoted(path)} as {ATTACHED} (read_only)")
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            if "could not set lock" in reason.lower():
                raise Unavailable(
                    f"{path} is open for writing in another program; close it there ({reason})."
                ) from None
            raise Malformed(f"{path} is not a catalogue that can be read ({reason}); {BUILD_IT}.") from None
        try:
            database.execute(f"use {ATTACHED}")
            yield database
        finally:
            database.execute("use memory")
            database.execute(f"detach {ATTACHED}")


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _single_reading_statement(sql: str) -> duckdb.Statement:
    """The one statement of `sql`. Raises Malformed on none, several, or one that is not a question."""
    import duckdb

    statements = duckdb.extract_statements(sql)
    if len(statements) != 1:
        found = f"these are {len(statements)}" if statements else "this is none"
        raise Malformed(f'one SQL statement at a time, {found}: try "from overview".')
    [statement] = statements
    if statement.type.name not in READING:
        raise Malformed(
            f"the catalogue is only read, and {statement.type.name} is no question: begin with from, select, with, "
            "describe, summarize or show."
        )
    return statement


def _explained(error: duckdb.Error) -> EmAssetsError:
    """DuckDB's message, which names the place in the SQL, with a word on what there is to ask."""
    import duckdb

    text = str(error).strip()
    if isinstance(error, duckdb.PermissionException):
        return Malformed(f"a query reads the catalogue only, no other file and no address ({text.splitlines()[0]}).")
    if isinstance(error, duckdb.CatalogException):
        names = ", ".join(relation.name for relation in (OVERVIEW, *TABLES))
        return Malformed(f"{text}\nThe catalogue has: {names}.")
    return Malformed(text)
