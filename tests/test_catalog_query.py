"""Asking the catalogue: right answers, clear errors, and nothing but reading."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from em_assets.catalog.build import CATALOG
from em_assets.catalog.query import Table, catalog_path, frame, query
from em_assets.errors import Malformed, Unavailable
from em_assets.settings import Settings
from em_assets.store import LocalStore
from test_catalog_build import build, make_spec, store_dataset


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("store")
    store_dataset(root, make_spec())
    build(root, make_spec(), make_spec("later"))
    return catalog_path(LocalStore(root), Settings(root=str(root)))


def test_from_overview(catalog: Path):
    """The shortest question works, and the datasets come sorted by name."""
    table = query(catalog, "from overview")
    assert [row[0] for row in table.rows] == ["crop", "later"]
    assert len(table.columns) == len(table.types) == len(table.rows[0])


def test_values_and_types(catalog: Path):
    """An answer has names, DuckDB's types and Python values; arrays, JSON and empty values included."""
    sql = "select name, volume_shape, voxel_size_nm, sha256, local_paths from datasets where name = 'later';"
    assert query(catalog, sql) == Table(
        columns=("name", "volume_shape", "voxel_size_nm", "sha256", "local_paths"),
        types=("VARCHAR", "INTEGER[3]", "DOUBLE[3]", "VARCHAR", "JSON"),
        rows=[("later", (100, 64, 100), (8.0, 4.5, 7.998250424861908), None, None)],
    )


def test_threads_and_children_ask_at_once(catalog: Path):
    """Eight threads and a forked child, after the engine was started here, all get the answer."""
    right = query(catalog, "from overview")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: query(catalog, "from overview"), range(40))) == [right] * 40
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as child:
        assert child.submit(query, catalog, "from overview").result(timeout=60) == right


def test_what_replaced_the_file_is_asked(tmp_path: Path):
    """The file is opened anew for each question: another one under the same name answers the next."""
    path = tmp_path / "metadata.duckdb"
    for number in range(3):
        with duckdb.connect(tmp_path / "new") as database:
            database.execute(f"create table t as select {number} as n")
        (tmp_path / "new").replace(path)
        assert query(path, "from t").rows == [(number,)]


@pytest.mark.parametrize(
    "sql",
    [
        "describe datasets",
        "show tables",
        "summarize levels",
        "explain from files",
        "pragma table_info('chunks')",
        "with fine as (from datasets where max_voxel_size_nm < 10) select count(*) from fine",
        "select now()",
        "  -- a comment\n from levels ; ",
        "pivot (from chunks) on status in ('present', 'absent') using count(*) group by name",
    ],
)
def test_every_way_to_ask(catalog: Path, sql: str):
    """All that only reads is answered."""
    assert query(catalog, sql).rows


def test_a_dataframe(catalog: Path):
    """One call gives a pandas DataFrame."""
    answer = frame(catalog, "select name, max_voxel_size_nm from datasets order by name")
    pd.testing.assert_frame_equal(
        answer, pd.DataFrame({"name": ["crop", "later"], "max_voxel_size_nm": [8.0, 8.0]}), check_dtype=False
    )


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("form overview", "syntax error"),
        ("from overveiw", "(?s)overveiw does not exist.*overview, datasets, files, chunks, levels"),
        ("select nope from datasets", '"nope" not found'),
        ("", "this is none"),
        (" ; -- nothing", "this is none"),
        ("from overview; from levels", "these are 2"),
        ("select 'a'::int", "Could not convert"),
        ("select error('x')", "x"),
        ("\0", "."),
        ("select $1", "."),
    ],
)
def test_what_is_no_question(catalog: Path, sql: str, message: str):
    """A mistake is answered with what is wrong, where, and what there is to ask."""
    with pytest.raises(Malformed, match=message):
        query(catalog, sql)


HOSTILE = """
copy datasets to '{out}/a.csv'
copy (select 1) to '{out}/a.parquet' (format parquet)
explain analyze copy datasets to '{out}/a.csv'
export database '{out}/a'
import database '{out}'
attach '{out}/new.duckdb' as other
attach '{secret}' as other
copy from database metadata to other
install httpfs
load httpfs
load '{secret}'
from '{secret}'
from read_text('{secret}')
from read_blob('{secret}')
from read_csv('{secret}')
from read_json('{secret}')
from read_parquet('{secret}')
from read_duckdb('{secret}')
from sniff_csv('{secret}')
from glob('{out}/*')
from 'https://example.org/x.parquet'
from 's3://bucket/x.parquet'
set enable_external_access = true
set lock_configuration = false
reset enable_external_access
set temp_directory = '{out}'
set log_query_path = '{out}/log'
pragma enable_external_access = true
pragma profiling_output = '{out}/profile.json'
call enable_logging(storage='file', storage_config={{'path': '{out}/logs'}})
from enable_logging(storage='file', storage_config={{'path': '{out}/logs'}})
create persistent secret s (type http, extra_http_headers map{{'a': 'b'}})
create table stolen as from datasets
create view v as from datasets
create or replace view overview as select 1
drop table datasets
delete from datasets
update datasets set license = 'CC0-1.0'
insert into files select * from files
alter table datasets drop column license
comment on table datasets is 'mine'
truncate datasets
from query('copy datasets to ''{out}/a.csv''')
from query_table('{secret}')
from catalog
from sql
use memory
select getenv('HOME')
begin
prepare p as select 1
""".strip().splitlines()


@pytest.mark.parametrize("sql", HOSTILE)
def test_hostile_sql_is_refused(catalog: Path, tmp_path: Path, sql: str):
    """No statement writes a file, changes the catalogue, or reads anything that is not in it."""
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    (tmp_path / "out").mkdir()
    before = catalog.read_bytes()
    with pytest.raises(Malformed):
        query(catalog, sql.format(out=tmp_path / "out", secret=secret))
    assert not list((tmp_path / "out").iterdir())
    assert catalog.read_bytes() == before
    assert {file.name for file in catalog.parent.iterdir()} == {
        CATALOG,
        f".{CATALOG}.lock",
        "README.md",
        "crop",
    }


def test_no_catalogue_yet(tmp_path: Path):
    """Before the first build, the sentence says how to build it, and nothing is created."""
    for ask in (lambda: catalog_path(LocalStore(tmp_path), Settings()), lambda: query(tmp_path / CATALOG, "select 1")):
        with pytest.raises(Unavailable, match=r"no catalogue .*metadata\.duckdb yet; build it with"):
            ask()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no database", b"\0" * 5000, b"\0" * 8 + b"DUCK" + b"\xff" * 5000])
def test_a_damaged_catalogue(tmp_path: Path, content: bytes):
    """A file that is no database is reported with its path and the way to a new one."""
    file = tmp_path / CATALOG
    file.write_bytes(content)
    with pytest.raises(Malformed, match=r"metadata\.duckdb is not a catalogue .*build it with"):
        query(file, "from overview")
    assert file.read_bytes() == content


def test_a_rebuild_is_seen_by_the_next_question(tmp_path: Path):
    """In a process that has asked before, the next question goes to the new file."""
    build(tmp_path, make_spec())
    assert len(query(tmp_path / CATALOG, "from overview").rows) == 1
    build(tmp_path, make_spec(), make_spec("second"))
    assert len(query(tmp_path / CATALOG, "from overview").rows) == 2


def test_open_for_writing_elsewhere(tmp_path: Path):
    """When another program holds the database for writing, the sentence says to close it there."""
    import subprocess
    import sys

    build(tmp_path, make_spec())
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / CATALOG)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(Unavailable, match="open for writing in another program; close it there"):
            query(tmp_path / CATALOG, "from overview")
        build(tmp_path, make_spec(), make_spec("second"))
        assert len(query(tmp_path / CATALOG, "from overview").rows) == 2
        holder.stdin.close()
        holder.wait(30)


def test_the_database_opens_with_plain_duckdb(catalog: Path):
    """Nothing of ours is needed to read it."""
    with duckdb.connect(catalog, read_only=True) as database:
        assert database.execute("select count(*) from overview").fetchone() == (2,)
