"""The catalogue is rebuilt from specs and store, whatever state they are in, and is always one whole file."""

import dataclasses
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from em_assets.catalog import build as build_module
from em_assets.catalog.build import CATALOG, build_catalog
from em_assets.catalog.query import query
from em_assets.catalog.readme import MARK
from em_assets.catalog.schema import DERIVED, OVERVIEW, TABLES
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Unavailable
from em_assets.records import (
    VOLUME,
    Comparison,
    DatasetFolder,
    DatasetRecord,
    Heartbeat,
    PartitionRecord,
    StoredObject,
    VoxelStatistics,
    manifest_digest,
    partition_key,
)
from em_assets.settings import Settings
from em_assets.store import LocalStore, open_store
from em_assets.volume import Box

ROOT = Path(__file__).parents[1]
WRITTEN_AT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
ORIGIN = (100, 200, 300)


def make_spec(name="crop", shape=(100, 64, 100), **changes) -> DatasetSpec:
    spec = {
        "name": name,
        "title": "A crop",
        "description": "Some neuropil.",
        "publisher": "somebody",
        "source_id": "their/id",
        "page_url": "https://example.org/page",
        "license": "CC-BY-4.0",
        "citation": "Someone et al. | Journal (2020).",
        "doi": "10.1234/abc",
        "modality": "FIB-SEM",
        "source": {"kind": "precomputed", "url": "https://example.org/volume"},
        "crop": {"shape": shape, "seed": 1},
        "expected": {
            "source_shape": [5000, 6000, 7000],
            "dtype": "uint8",
            "voxel_size_nm": [8, 4.5, 7.998250424861908],
        },
        "output": {"shard": (64, 64, 64), "chunk": (32, 32, 32)},
    }
    return DatasetSpec.model_validate(spec | changes)


def write_volume(folder: Path, spec: DatasetSpec) -> None:
    """An OME-Zarr 0.5 volume of two levels, by zarr-python."""
    group = zarr.create_group(folder)
    levels = []
    for level, shape in enumerate([spec.shape, tuple(-(-s // 2) for s in spec.shape)]):
        array = group.create_array(
            str(level),
            shape=shape,
            dtype=spec.expected.dtype,
            shards=spec.output.shard,
            chunks=spec.output.chunk,
            compressors=zarr.codecs.ZstdCodec(level=1),
        )
        array[:] = np.random.default_rng(level).integers(1, 255, shape, dtype="uint8")
        scale = [s * 2**level for s in spec.expected.voxel_size_nm]
        levels.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}


def partition_records(folder: DatasetFolder, spec: DatasetSpec) -> list[PartitionRecord]:
    """Records of what is stored; the last chunk is one the publisher has nothing of, the first is half missing."""
    indices = list(spec.shard_indices())
    records = []
    for index in indices:
        path = f"{VOLUME}/0/c/" + "/".join(map(str, index))
        box = spec.shard_box(index)
        absent = index == indices[-1]
        if absent:
            folder.store.delete(folder.path(path))
        data = b"" if absent else folder.read(path)
        half = Box(box.start, (box.start[0] + 32, *box.stop[1:]))
        records.append(
            PartitionRecord(
                key=partition_key(index),
                level=0,
                box=box,
                objects=() if absent else (StoredObject(path=path, size_bytes=len(data), sha256="ab" * 32),),
                identity=spec.identity(),
                missing=(box,) if absent else (half,) if index == indices[0] else (),
                source_url="https://example.org/volume/8_8_8",
                source_box=box.shifted(ORIGIN),
                received_bytes=12345,
                seconds=0.5,
                written_at=WRITTEN_AT,
                tool="em_assets",
                comparison=Comparison(compared_voxels=100, different_voxels=0, compared_at=WRITTEN_AT),
                statistics=None
                if absent
                else VoxelStatistics(
                    voxels=9,
                    minimum=1,
                    maximum=254,
                    mean=127.5,
                    standard_deviation=70.25,
                    zero_fraction=0,
                    saturated_fraction=0.125,
                ),
            )
        )
    return records


def write_manifest(folder: DatasetFolder, records: list[PartitionRecord]) -> list[StoredObject]:
    rows = [
        {
            "path": stored.path,
            "level": record.level,
            "key": record.key,
            "size_bytes": stored.size_bytes,
            "sha256": stored.sha256,
            "source_url": record.source_url,
            "written_at": record.written_at,
            "tool": record.tool,
        }
        for record in records
        for stored in record.objects
    ]
    metadata = {**dict.fromkeys(rows[0]), "path": f"{VOLUME}/zarr.json", "size_bytes": 10, "sha256": "cd" * 32}
    raw = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([*rows, metadata]), raw)
    folder.write("manifest.parquet", raw.getvalue())
    return [StoredObject(path=r["path"], size_bytes=r["size_bytes"], sha256=r["sha256"]) for r in [*rows, metadata]]


def record_of(spec: DatasetSpec, folder: DatasetFolder, **changes) -> DatasetRecord:
    known = spec.model_dump(
        include={"name", "source_id", "title", "description", "license", "citation", "doi", "page_url"}
    )
    values = {
        "source": spec.publisher,
        "volume_shape": spec.shape,
        "voxel_size_nm": spec.expected.voxel_size_nm,
        "dtype": spec.expected.dtype,
        "download_url": spec.source.url,
        "local_paths": {"volume": folder.uri(VOLUME)},
        "status": "complete",
        "timestamp": WRITTEN_AT,
        "identity": spec.identity(),
        "source_box": Box.from_shape(spec.shape, at=ORIGIN),
        "source_shape": (5000, 6000, 7000),
    }
    return DatasetRecord(**(known | values | changes))


def store_dataset(root: Path, spec: DatasetSpec, **record_changes) -> DatasetFolder:
    """A finished dataset, but for what `record_changes` says."""
    folder = DatasetFolder(LocalStore(root), spec.name)
    write_volume(root / spec.name / VOLUME, spec)
    records = partition_records(folder, spec)
    for record in records:
        folder.write_partition_record(record)
    objects = write_manifest(folder, records)
    size = sum(stored.size_bytes for stored in objects)
    changes = {"sha256": manifest_digest(objects), "file_size_bytes": size} | record_changes
    folder.write_record(record_of(spec, folder, **changes))
    return folder


def build(root: Path, *specs: DatasetSpec):
    return build_catalog({spec.name: spec for spec in specs}, open_store(str(root)), Settings(root=str(root)))


def rows_of(root: Path, sql: str) -> list[dict]:
    table = query(root / CATALOG, sql)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def overview_of(root: Path, name="crop") -> dict:
    [row] = rows_of(root, f"from overview where name = '{name}'")
    return row


def test_a_listed_dataset_has_all_its_spec_says(tmp_path: Path):
    """Before anything is downloaded, a question about voxel sizes finds the dataset, and its chunks are counted."""
    spec = make_spec()
    built = build(tmp_path / "store", spec)
    assert built.rows.items() >= {"datasets": 1, "files": 0, "chunks": 4, "levels": 1}.items()
    [row] = rows_of(tmp_path / "store", "from datasets where max_voxel_size_nm <= 8")
    assert (row["name"], row["status"], row["volume_shape"]) == ("crop", "listed", (100, 64, 100))
    assert (row["voxel_size_z_nm"], row["voxel_size_y_nm"], row["voxel_size_x_nm"]) == (8, 4.5, 7.998250424861908)
    assert (row["uncompressed_size_bytes"], row["file_size_bytes"], row["timestamp"]) == (640_000, None, None)
    [chunk] = rows_of(tmp_path / "store", "from chunks where partition_key = 'z001_y000_x001'")
    assert [chunk[c] for c in ("z0", "y0", "x0", "z1", "y1", "x1")] == [64, 0, 64, 100, 64, 100]
    assert chunk["status"] == "not downloaded"
    assert overview_of(tmp_path / "store")["size"] == "~640.0 kB"


def test_a_complete_dataset(tmp_path: Path):
    """Every column of a finished dataset's row, files, chunks and levels is what its records say."""
    spec = make_spec()
    folder = store_dataset(tmp_path, spec)
    build(tmp_path, spec)
    record = folder.read_record()
    [row] = rows_of(tmp_path, "from datasets")
    for column in ("title", "source_id", "sha256", "file_size_bytes", "identity", "volume_shape", "source_shape"):
        assert row[column] == getattr(record, column)
    assert (row["status"], row["status_reason"], row["modality"]) == ("complete", None, "FIB-SEM")
    assert (row["source_box_start"], row["source_box_stop"]) == (ORIGIN, (200, 264, 400))
    assert json.loads(row["local_paths"]) == {"volume": str(tmp_path / "crop" / VOLUME)}
    assert row["timestamp"] == WRITTEN_AT.replace(tzinfo=None)
    missing = 32 * 64 * 64 + 36 * 64 * 36
    assert row["missing_fraction"] == missing / (100 * 64 * 100)
    assert overview_of(tmp_path) == {
        "name": "crop",
        "status": "complete",
        "shape": "100 x 64 x 100",
        "voxel_nm": "8 x 4.5 x 7.998",
        "dtype": "uint8",
        "size": f"{row['file_size_bytes'] / 1000:.1f} kB",
        "license": "CC-BY-4.0",
        "source": "somebody",
        "updated": "2026-02-03 04:05",
        "note": "33 % not published",
    }


def test_chunks_tell_present_absent_and_not_downloaded(tmp_path: Path):
    """What the publisher lacks, what is here and what was never fetched are three things; a lost shard is the third."""
    spec = make_spec()
    store_dataset(tmp_path, spec)
    (tmp_path / "crop" / VOLUME / "0/c/0/0/1").unlink()
    build(tmp_path, spec)
    chunks = {row["partition_key"]: row for row in rows_of(tmp_path, "from chunks")}
    assert {key: row["status"] for key, row in chunks.items()} == {
        "z000_y000_x000": "present",
        "z000_y000_x001": "not downloaded",
        "z001_y000_x000": "present",
        "z001_y000_x001": "absent",
    }
    here, absent = chunks["z000_y000_x000"], chunks["z001_y000_x001"]
    assert (here["missing_fraction"], absent["missing_fraction"], absent["size_bytes"]) == (0.5, 1, 0)
    assert (here["mean"], here["standard_deviation"], here["saturated_fraction"]) == (127.5, 70.25, 0.125)
    assert (here["compared_voxels"], here["different_voxels"]) == (100, 0)
    assert (here["source_box_start"], here["source_box_stop"]) == (ORIGIN, (164, 264, 364))
    assert here["written_at"] == WRITTEN_AT.replace(tzinfo=None)
    assert rows_of(tmp_path, "select missing_fraction from datasets") == [{"missing_fraction": None}]


def test_levels_are_the_stored_arrays(tmp_path: Path):
    """Shape, voxel size, shard, chunk and codec of each level are read from the volume that zarr-python wrote."""
    spec = make_spec()
    store_dataset(tmp_path, spec)
    build(tmp_path, spec)
    fine, coarse = rows_of(tmp_path, "from levels order by level")
    assert [fine[f"shape_{axis}"] for axis in "zyx"] == [100, 64, 100]
    assert [coarse[f"shape_{axis}"] for axis in "zyx"] == [50, 32, 50]
    assert [coarse[f"voxel_size_{axis}_nm"] for axis in "zyx"] == [16, 9, 2 * 7.998250424861908]
    assert (fine["shard"], fine["chunk"], fine["codec"]) == ((64, 64, 64), (32, 32, 32), "zstd 1")
    objects = [f.stat().st_size for f in (tmp_path / "crop" / VOLUME / "0/c").rglob("*") if f.is_file()]
    assert (fine["shards"], fine["size_bytes"]) == (len(objects), sum(objects))


def test_files_are_the_manifest(tmp_path: Path):
    """A finished dataset's files are its manifest's lines; before that they are what the chunk records list."""
    spec = make_spec()
    folder = store_dataset(tmp_path, spec)
    build(tmp_path, spec)
    assert len(rows_of(tmp_path, "from files")) == 4
    [metadata] = rows_of(tmp_path, "from files where partition_key is null")
    assert (metadata["path"], metadata["level"], metadata["sha256"]) == (f"{VOLUME}/zarr.json", None, "cd" * 32)
    folder.write_record(folder.read_record().with_status("saving-data", file_size_bytes=None))
    build(tmp_path, spec)
    assert len(rows_of(tmp_path, "from files")) == 3
    [size] = rows_of(tmp_path, "select file_size_bytes - (select sum(size_bytes) from files) as rest from datasets")
    assert size == {"rest": 0}


def test_error_and_interrupted_and_saving(tmp_path: Path):
    """A failure shows with its reason, a dead writer as interrupted, a living one with its progress."""
    names = ["failed", "dead", "alive"]
    specs = {name: make_spec(name) for name in names}
    for spec in specs.values():
        store_dataset(tmp_path, spec)
    folders = {name: DatasetFolder(LocalStore(tmp_path), name) for name in names}
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    heartbeat = Heartbeat.now().model_copy(update={"pid": int(gone.stdout)})
    failed = folders["failed"].read_record().with_status("error", "example.org did not answer. " * 20)
    folders["failed"].write_record(failed)
    saving = folders["alive"].read_record().with_status("saving-data")
    folders["alive"].write_record(saving)
    folders["dead"].write_record(
        folders["dead"].read_record().with_status("saving-data").model_copy(update={"heartbeat": heartbeat})
    )
    build(tmp_path, *specs.values())
    assert len(rows_of(tmp_path, "from levels where name = 'failed'")) == 2  # as far as it came
    shown = {row["name"]: (row["status"], row["note"]) for row in rows_of(tmp_path, "from overview")}
    assert shown["alive"] == ("saving-data", "4 of 4 chunks")
    assert shown["dead"] == ("interrupted", "4 of 4 chunks")
    status, note = shown["failed"]
    assert status == "error"
    assert note.startswith("example.org did not answer")
    assert len(note) == 80
    reasons = dict(query(tmp_path / CATALOG, "select name, status_reason from datasets").rows)
    assert reasons["failed"] == failed.status_reason
    assert "materialize dead again" in reasons["dead"]


def test_a_dataset_whose_spec_is_gone_stays(tmp_path: Path):
    """What is stored is catalogued from its own records when nothing describes it any more."""
    store_dataset(tmp_path, make_spec())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/todo.txt").write_text("not a dataset")
    built = build(tmp_path)
    assert built.rows.items() >= {"datasets": 1, "files": 4, "chunks": 4, "levels": 2}.items()
    assert overview_of(tmp_path)["status"] == "complete"


def test_another_crop_under_the_same_name(tmp_path: Path):
    """When the spec has changed, the row is of what is stored, and says what to do."""
    store_dataset(tmp_path, make_spec())
    build(tmp_path, make_spec(shape=(640, 640, 640), title="Another"))
    [row] = rows_of(tmp_path, "from datasets")
    assert (row["volume_shape"], row["status"]) == ((100, 64, 100), "complete")
    assert "em-assets rm crop" in row["status_reason"]
    assert len(rows_of(tmp_path, "from chunks")) == 4


def damage_record(folder: Path):
    (folder / "metadata.json").write_text('{"name": "crop"')


def damage_record_of_another(folder: Path):
    text = (folder / "metadata.json").read_text()
    (folder / "metadata.json").write_text(text.replace('"name": "crop"', '"name": "other"', 1))


def damage_manifest(folder: Path):
    (folder / "manifest.parquet").write_bytes(b"PAR1 no")


def damage_manifest_columns(folder: Path):
    pq.write_table(pa.table({"path": ["a"]}), folder / "manifest.parquet")


def remove_manifest(folder: Path):
    (folder / "manifest.parquet").unlink()


def damage_chunk_record(folder: Path):
    (folder / "records/z000_y000_x000.json").write_bytes(b"\xff\x00")


def damage_volume_metadata(folder: Path):
    (folder / VOLUME / "zarr.json").write_text("[]")


def remove_level(folder: Path):
    (folder / VOLUME / "1/zarr.json").unlink()


def damage_with(file: str, old: str, new: str):
    def damage(folder: Path):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return damage


def damage_manifest_types(folder: Path):
    table = pq.read_table(folder / "manifest.parquet")
    column = table.schema.get_field_index("size_bytes")
    pq.write_table(table.set_column(column, "size_bytes", table["sha256"]), folder / "manifest.parquet")


@pytest.mark.parametrize(
    ("damage", "culprit"),
    [
        (damage_record, "metadata.json"),
        (damage_record_of_another, "metadata.json"),
        (damage_manifest, "manifest.parquet"),
        (damage_manifest_columns, "manifest.parquet"),
        (remove_manifest, "manifest.parquet"),
        (damage_chunk_record, "records/z000_y000_x000.json"),
        (damage_volume_metadata, f"{VOLUME}/zarr.json"),
        (remove_level, f"{VOLUME}/1/zarr.json"),
        (damage_with(f"{VOLUME}/0/zarr.json", '"chunk_shape": [', '"chunk_shape": [7, '), f"{VOLUME}/0/zarr.json"),
        (damage_with(f"{VOLUME}/zarr.json", "nanometer", "furlong"), f"{VOLUME}/zarr.json"),
        (damage_with("metadata.json", "\n  64,", "\n  64000000000000000000,"), ""),
        (damage_with("records/z000_y000_x000.json", "12345", "12345678901234567890123"), ""),
        (damage_manifest_types, ""),
    ],
)
@pytest.mark.parametrize("with_spec", [True, False])
def test_damage_is_one_datasets_error(tmp_path: Path, damage, culprit, with_spec):
    """A damaged file makes its dataset's row an error that names the file; the others are as they were."""
    spec, other = make_spec(), make_spec("other")
    for each in (spec, other):
        store_dataset(tmp_path, each)
    damage(tmp_path / "crop")
    build(tmp_path, *([spec] if with_spec else []), other)
    [row] = rows_of(tmp_path, "from datasets where name = 'crop'")
    assert row["status"] == "error"
    assert str(tmp_path / "crop" / culprit).rstrip("/") in row["status_reason"]
    assert "\n" not in row["status_reason"]
    assert overview_of(tmp_path)["note"]
    assert overview_of(tmp_path, "other")["status"] == "complete"


def test_a_record_with_what_json_cannot_say(tmp_path: Path):
    """Not-a-number in a record's further metadata is null in the catalogue, which is JSON."""
    folder = store_dataset(tmp_path, make_spec())
    text = (tmp_path / "crop/metadata.json").read_text()
    more = '"additional_metadata":{"a":NaN,"b":[Infinity,"\\u0000é"]}'
    folder.write("metadata.json", re.sub(r'"additional_metadata": *\{\}', lambda _: more, text).encode())
    build(tmp_path, make_spec())
    [row] = rows_of(tmp_path, "select status, additional_metadata from datasets")
    assert (row["status"], json.loads(row["additional_metadata"])) == ("complete", {"a": None, "b": [None, "\0é"]})


def test_every_table_and_column_is_commented(tmp_path: Path):
    """Whoever opens the file elsewhere finds what each column means; the columns are those of the schema."""
    build(tmp_path, make_spec())
    sql = "select table_name, column_name, comment from duckdb_columns() where not internal"
    commented = query(tmp_path / CATALOG, sql).rows
    ours = {(r.name, c.name): c.comment for r in (*TABLES, *(made for made, _ in DERIVED)) for c in r.columns}
    assert {(table, column): comment for table, column, comment in commented} == ours
    assert all(ours.values())
    for kind in ("table", "view"):
        names = f"select {kind}_name, comment from duckdb_{kind}s() where not internal"
        assert all(comment for _, comment in query(tmp_path / CATALOG, names).rows)
    assert len(OVERVIEW.columns) <= 10


def test_clients_of_duckdb_1_can_open_it(tmp_path: Path):
    """The file is in the storage version of DuckDB 1.0 (64, in the main header), not in that of the library here."""
    build(tmp_path, make_spec())
    header = (tmp_path / CATALOG).read_bytes()[8:20]
    assert header[:4] == b"DUCK"
    assert int.from_bytes(header[4:], "little") == 64


def test_the_readme_opens_the_volume(tmp_path: Path, monkeypatch):
    """The README names each dataset, its licence and citation; its Python lines run where it lies."""
    store_dataset(tmp_path, make_spec())
    build(tmp_path, make_spec(), make_spec("later"))
    text = (tmp_path / "README.md").read_text()
    assert "| crop | complete | 100 x 64 x 100 | 8 x 4.5 x 7.99825 | uint8 |" in text
    assert "Someone et al. \\| Journal (2020). https://doi.org/10.1234/abc" in text
    assert "not downloaded: later." in text
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["block"].shape == (100, 64, 100)


def test_the_readme_is_written_only_when_it_changes(tmp_path: Path):
    """A rebuild of the same state leaves the file alone, and so it does one that a person wrote."""
    readme = tmp_path / "README.md"
    build(tmp_path, make_spec())
    os.utime(readme, (1, 1))
    build(tmp_path, make_spec())
    assert readme.stat().st_mtime == 1
    readme.write_text("# Mine\n")
    build(tmp_path, make_spec())
    assert readme.read_text() == "# Mine\n"
    readme.write_text(MARK)
    build(tmp_path, make_spec())
    assert "crop" in readme.read_text()


def test_a_reader_keeps_its_snapshot(tmp_path: Path):
    """A process that has the database open across a rebuild keeps the old one; whoever opens it then sees the new."""
    build(tmp_path, make_spec())
    code = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True)\n"
        "count = lambda: print(c.execute('select count(*) from overview').fetchone()[0], flush=True)\n"
        "count()\nfor _ in sys.stdin: count()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / CATALOG)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "1\n"
        for number in range(2, 12):
            build(tmp_path, *(make_spec(f"d{n}") for n in range(number)))
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "1\n"
            assert query(tmp_path / CATALOG, "select count(*) from overview").rows == [(number,)]
        reader.stdin.close()
        assert reader.wait(30) == 0


BUILDER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from test_catalog_build import build, make_spec
root, name, rounds = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
print("ready", flush=True)
for number in range(rounds):
    build(root, *(make_spec(f"{name}{n}") for n in range(1 + number % 2)))
"""


def start_builder(root: Path, name: str, rounds: int) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILDER, str(Path(__file__).parent), str(root), name, str(rounds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def litter(root: Path) -> set[str]:
    return {entry.name for entry in root.iterdir()} - {CATALOG, "README.md", f".{CATALOG}.lock"}


@pytest.mark.slow
def test_two_builders_at_once(tmp_path: Path):
    """Processes that rebuild at the same time all succeed, and one of their files is there whole."""
    builders = [start_builder(tmp_path, name, 5) for name in "ab"]
    assert [builder.wait(120) for builder in builders] == [0, 0]
    for builder in builders:
        builder.stdout.close()
    names = {row["name"] for row in rows_of(tmp_path, "from overview")}
    assert names in ({"a0"}, {"b0"})
    assert not litter(tmp_path)


@pytest.mark.slow
def test_a_killed_builder_leaves_the_old_or_the_new_file(tmp_path: Path):
    """SIGKILL at random moments: the database is always whole, the lock is free, the next build clears up."""
    build(tmp_path, make_spec())
    for moment in random.Random(5).sample(range(600), 5):
        with start_builder(tmp_path, "k", 1000) as builder:
            assert builder.stdout.readline() == "ready\n"
            time.sleep(moment / 1000)
            builder.send_signal(signal.SIGKILL)
        names = [row["name"] for row in rows_of(tmp_path, "from overview")]
        assert names in (["crop"], ["k0"], ["k0", "k1"])
    started = time.monotonic()
    build(tmp_path, make_spec())
    assert time.monotonic() - started < 20
    assert not litter(tmp_path)
    assert overview_of(tmp_path)["status"] == "listed"


def test_without_a_working_lock_it_is_still_built(tmp_path: Path, monkeypatch):
    """On a file system that cannot lock, the catalogue is built all the same."""

    def no_locks(_self):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "_acquire", no_locks)
    build(tmp_path, make_spec())
    assert overview_of(tmp_path)["status"] == "listed"


def test_a_stuck_builder_does_not_block_for_ever(tmp_path: Path, monkeypatch):
    """When another builder holds the lock too long, the catalogue is built all the same."""
    monkeypatch.setattr(build_module, "LOCK_SECONDS", 0.2)
    with filelock.FileLock(tmp_path / build_module.LOCK):
        build(tmp_path, make_spec())
    assert overview_of(tmp_path)["status"] == "listed"


def test_an_unreadable_folder_is_one_datasets_error(tmp_path: Path, monkeypatch):
    """A dataset whose files cannot be read is an error with the reason; the others are as they were."""
    store_dataset(tmp_path, make_spec())
    store_dataset(tmp_path, make_spec("other"))
    read = LocalStore.read

    def refuse(self, path):
        if path.startswith("crop/"):
            raise Unavailable(f"{path} could not be read (Permission denied): check the permissions.")
        return read(self, path)

    monkeypatch.setattr(LocalStore, "read", refuse)
    build(tmp_path, make_spec(), make_spec("other"))
    assert overview_of(tmp_path)["status"] == "error"
    assert "Permission denied" in overview_of(tmp_path)["note"]
    assert overview_of(tmp_path, "other")["status"] == "complete"


def test_questions_while_it_is_rebuilt(tmp_path: Path):
    """Threads of one process ask without an error while others rebuild."""
    build(tmp_path, make_spec())
    done, counts = threading.Event(), []

    def ask():
        while not done.is_set():
            counts.append(query(tmp_path / CATALOG, "select count(*) from overview").rows[0][0])

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        for number in (2, 3, 4):
            build(tmp_path, *(make_spec(f"d{n}") for n in range(number)))
        done.set()
        for future in asking:
            future.result()
    assert set(counts) <= {1, 2, 3, 4}


def test_a_place_that_cannot_be_written(tmp_path: Path):
    """Where nothing can be written, one sentence says where and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"file.*could not be built \(.*permissions"):
        build(tmp_path / "file", make_spec())


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_catalogue(tmp_path: Path):
    """When the new file does not fit, the old one stays and nothing unfinished lies beside it."""
    build(tmp_path, make_spec())
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n{BUILDER}"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path), "b", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "Unavailable" in done.stderr.splitlines()[-1]
    assert "the old one stays" in done.stderr.splitlines()[-1]
    assert overview_of(tmp_path)["status"] == "listed"
    assert not litter(tmp_path)


def test_the_rows_are_counted(tmp_path: Path):
    """The result says where the catalogue is and how many rows each table has."""
    built = build(tmp_path, make_spec(), make_spec("other"))
    assert built.uri == str(tmp_path / CATALOG)
    assert dataclasses.asdict(built)["rows"] == {
        table: query(tmp_path / CATALOG, f"select count(*) from {table}").rows[0][0] for table in built.rows
    }
