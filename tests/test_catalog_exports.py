"""The catalogue leaves as files that other programs read, without anybody's address or this machine's paths."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import jsonschema
import pandas as pd
import pyarrow.parquet as pq
import pytest

from em_assets.catalog.build import CATALOG, build_catalog
from em_assets.catalog.exports import KEPT, frames, without_personal, write_exports
from em_assets.catalog.schema import DATASETS, DERIVED, TABLES, arrow_table
from em_assets.catalog.vocabulary import FIELDS
from em_assets.datasets.loading import load_specs
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.sources import personal
from em_assets.store import LocalStore

WRITTEN_AT = datetime(2026, 2, 3, 4, 5, 6)  # noqa: DTZ001 - the tables' times are in UTC, without saying so
ONE = {
    "name": "retina",
    "title": "Developing retina",
    "description": "Sixteen sections, see https://example.org/home/page.",
    "status": "complete",
    "source": "empiar",
    "source_id": "EMPIAR-11759",
    "volume_shape": [16, 5500, 5496],
    "voxel_size_nm": [50.0, 7.998250424861908, 7.998250424861908],
    "max_voxel_size_nm": 50.0,
    "dtype": "uint8",
    "license": "CC0-1.0",
    "commercial_use": True,
    "citation": "Wilsch-Bräuninger M. Developing retina. EMPIAR-11759 (2024).",
    "doi": "10.6019/EMPIAR-11759",
    "authors": "Wilsch-Bräuninger M; Schmidt, Anna",
    "publisher_name": "EMPIAR",
    "page_url": "https://www.ebi.ac.uk/empiar/EMPIAR-11759/",
    "download_url": "https://ftp.ebi.ac.uk/empiar/world_availability/11759/data",
    "modality": "SBF-SEM",
    "organism": "Danio rerio",
    "organism_taxid": "NCBITaxon:7955",
    "sample": "retina of the larval eye",
    "instrument": "FEI Quanta",
    "released_on": date(2024, 1, 16),
    "deposited_on": date(2023, 11, 2),
    "partitioned_by": "file",
    "partitions": 2,
    "partitions_stored": 2,
    "file_size_bytes": 1234567,
    "sha256": "ab" * 32,
    "timestamp": WRITTEN_AT,
    "conflicts": 2,
}
TWO = {
    "name": "brain_crop",
    "title": "A crop of a brain",
    "description": "Eight nanometres.",
    "status": "listed",
    "source": "flies",
    "volume_shape": [1000, 1000, 1000],
    "voxel_size_nm": [8.0, 8.0, 8.0],
    "max_voxel_size_nm": 8.0,
    "dtype": "uint8",
    "license": "CC-BY-4.0",
    "commercial_use": True,
    "citation": "Scheffer LK, et al. A connectome. eLife 9:e57443 (2020).",
    "doi": "10.7554/eLife.57443",
    "partitioned_by": "chunk",
    "partitions": 64,
    "partitions_stored": 0,
    "conflicts": 0,
}


def statement(name: str, field: str, value: str | float, authority: str, **more) -> dict:
    number = value if isinstance(value, int | float) else None
    same = {"volume": None, "module": FIELDS[field].module, "unit": FIELDS[field].unit, "note": None, "claims": 1}
    told = {"document": "documents/entry.json", "key": "/x", "stated": str(value), "rank": 1, "chosen": False}
    known = {"name": name, "field": field, "value": str(value), "number": number, "authority": authority}
    return {**known, **same, **told, "personal": False, **more}


def make_database(path: Path, **rows: list[dict]) -> Path:
    """A catalogue of these rows, by table, with the real tables, views and vocabulary."""
    rows["vocabulary"] = [
        {"field": f.name, "module": f.module, "kind": f.kind, "unit": f.unit, "tolerance": f.tolerance}
        for f in FIELDS.values()
    ]
    with duckdb.connect(path) as database:
        for table in TABLES:
            columns = ", ".join(f'"{column.name}" {column.type}' for column in table.columns)
            database.execute(f"create table {table.name} ({columns})")
            database.register("incoming", arrow_table(table, rows.get(table.name, [])))
            database.execute(f"insert into {table.name} by name from incoming")
            database.unregister("incoming")
        for _, sql in DERIVED:
            database.execute(sql)
    return path


def store_with(root: Path, **rows: list[dict]) -> tuple[Path, LocalStore]:
    root.mkdir(parents=True, exist_ok=True)
    return make_database(root / CATALOG, **rows), LocalStore(root)


def paths_below(root: Path, name: str = "retina") -> str:
    return json.dumps({"volume": f"{root}/{name}/volume.ome.zarr", "preview": f"{root}/{name}/preview.png"})


def test_the_files_hold_one_record_per_dataset(tmp_path: Path):
    """CSV, JSON and Parquet have a row per dataset, all columns, the same values."""
    database, store = store_with(tmp_path, datasets=[ONE | {"local_paths": paths_below(tmp_path)}, TWO])
    write_exports(database, store)
    records = json.loads(store.read("metadata.json"))
    lines = list(csv.DictReader(io.StringIO(store.read("metadata.csv").decode())))
    table = pq.read_table(tmp_path / "metadata.parquet")
    names = [column.name for column in DATASETS.columns]
    assert list(records[0]) == list(lines[0]) == table.column_names == names
    assert [r["name"] for r in records] == [r["name"] for r in lines] == table["name"].to_pylist()
    retina = records[1]
    assert (retina["voxel_size_nm"], retina["released_on"]) == (
        [50.0, 7.998250424861908, 7.998250424861908],
        "2024-01-16",
    )
    assert retina["timestamp"] == "2026-02-03T04:05:06+00:00"
    assert json.loads(lines[1]["voxel_size_nm"]) == retina["voxel_size_nm"]
    assert table["voxel_size_nm"].to_pylist()[1] == retina["voxel_size_nm"]
    assert table["timestamp"].to_pylist()[1] == WRITTEN_AT.replace(tzinfo=UTC)
    assert lines[0]["organism"] == "" and records[0]["organism"] is None


def test_parquet_says_what_its_columns_mean(tmp_path: Path):
    """Whoever opens metadata.parquet elsewhere finds each column's comment."""
    database, store = store_with(tmp_path, datasets=[ONE])
    write_exports(database, store)
    schema = pq.read_schema(tmp_path / "metadata.parquet")
    assert {field.name: field.metadata[b"comment"].decode() for field in schema} == {
        column.name: column.comment for column in DATASETS.columns
    }


def test_metadata_json_is_valid_by_its_schema(tmp_path: Path):
    """metadata.schema.json is a JSON Schema (2020-12), and metadata.json is what it asks for."""
    rows = [ONE | {"local_paths": paths_below(tmp_path), "additional_metadata": '{"a": [1, null]}'}, TWO]
    database, store = store_with(tmp_path, datasets=rows)
    write_exports(database, store)
    schema = json.loads(store.read("metadata.schema.json"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    assert list(validator.iter_errors(json.loads(store.read("metadata.json")))) == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"status": "finished"}, id="an unknown status"),
        pytest.param({"voxel_size_nm": [8.0, 8.0]}, id="two of three axes"),
        pytest.param({"shape_z": "16"}, id="a number as text"),
        pytest.param({"released_on": "16.01.2024"}, id="a date that is not ISO"),
        pytest.param({"colour": "grey"}, id="an unknown key"),
        pytest.param({"local_paths": {"volume": "/home/me/volume"}}, id="an absolute path"),
        pytest.param({"name": None}, id="no name"),
    ],
)
def test_the_schema_refuses_what_is_no_record(tmp_path: Path, change: dict):
    """A schema that takes everything would say nothing."""
    database, store = store_with(tmp_path, datasets=[ONE])
    write_exports(database, store)
    [record] = json.loads(store.read("metadata.json"))
    schema = json.loads(store.read("metadata.schema.json"))
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    assert validator.is_valid([record])
    assert not validator.is_valid([record | change])


def test_nothing_personal_leaves(tmp_path: Path):
    """Addresses, local paths and values whose claim is marked are in no export; the rest of the record is."""
    rows = [
        ONE
        | {
            "description": "Write to jane.doe@example.org; raw data in C:\\Users\\jane\\em and /home/jane/em.",
            "sample": "what C. Someone wrote",
            "status_reason": f"{tmp_path}/retina/records/a.json and /opt/em/other.json cannot be read.",
            "local_paths": paths_below(tmp_path),
            "additional_metadata": json.dumps({"/home/jane/x": ["mail bob@example.org", "file:///data/y"]}),
        }
    ]
    said = [statement("retina", "sample", "what C. Someone wrote", "file metadata", chosen=True, personal=True)]
    database, store = store_with(tmp_path, datasets=rows, statements=said)
    write_exports(database, store)
    [record] = json.loads(store.read("metadata.json"))
    told = store.read("metadata.csv") + store.read("metadata.json") + json.dumps(_parquet_rows(tmp_path)).encode()
    for private in (b"jane", b"bob", b"/opt/em", b"/data/y", b"Someone", str(tmp_path).encode()):
        assert private not in told
    assert record["local_paths"] == {"volume": "retina/volume.ome.zarr", "preview": "retina/preview.png"}
    assert record["status_reason"].startswith("retina/records/a.json and (local path left out)")
    assert record["sample"] is None and record["organism"] == "Danio rerio"
    assert not [text for text in _texts(record) if personal.marks("", text)]


def _texts(value) -> Iterator[str]:
    """Every text in it, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        yield from _texts(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _parquet_rows(root: Path) -> list[dict]:
    table = pq.read_table(root / "metadata.parquet")
    return [{key: str(value) for key, value in row.items()} for row in table.to_pylist()]


def test_paths_of_a_store_that_was_moved(tmp_path: Path):
    """A record says where things were when it was written; exports say where they are in the store."""
    elsewhere = json.dumps({"volume": "/old/place/retina/volume.ome.zarr", "cache": "/somewhere/else"})
    database, store = store_with(tmp_path, datasets=[ONE | {"local_paths": elsewhere}])
    write_exports(database, store)
    [record] = json.loads(store.read("metadata.json"))
    assert record["local_paths"] == {"volume": "retina/volume.ome.zarr"}


@pytest.mark.parametrize(
    "text",
    [
        "https://ftp.ebi.ac.uk/empiar/world_availability/11759/data",
        "s3://janelia-cosem-datasets/jrc_mus-nacc-2/home/x",
        "emdata/clahe_yz/jpeg",
        "/entry/imageSet/dimensions/imageWidth",
        "8 nm/px at 1.9 kV, 200 pA; https://tinyurl.com/hemibrain-ng",
        "ratio 3:4, and/or",
    ],
)
def test_what_is_not_personal_stays(text: str):
    """Web addresses, object keys, JSON pointers and units are no local paths."""
    assert without_personal(text) == text


def test_unchanged_content_is_not_written_again(tmp_path: Path):
    """A second export touches nothing; a changed record changes the files about it and adds a dated catalogue."""
    database, store = store_with(tmp_path, datasets=[ONE])
    assert all(export.changed for export in write_exports(database, store))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metadata*") if path.name != CATALOG}
    again = write_exports(database, store)
    assert not any(export.changed for export in again)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    database.unlink()
    make_database(database, datasets=[ONE | {"status": "error", "status_reason": "a file is gone"}])
    changed = [export.path for export in write_exports(database, store) if export.changed]
    assert changed[:3] == ["metadata.csv", "metadata.json", "metadata.parquet"]
    assert len(changed) == 4 and changed[3].startswith("catalogs/metadata_catalog_")
    assert len(list((tmp_path / "catalogs").iterdir())) == 2


def test_the_dated_catalogue(tmp_path: Path):
    """It counts statuses, tells each dataset's, and which share of a publisher's documents has a key."""
    keys = [
        {"extractor": "dm", "key": "ImageList.*.Name", "source": "empiar", "documents": 16, "documents_with_key": 16},
        {"extractor": "dm", "key": "Thumbnail", "source": "empiar", "documents": 16, "documents_with_key": 6},
    ]
    keys = [key | {"share": key["documents_with_key"] / 16, "datasets": 1} for key in keys]
    database, store = store_with(tmp_path, datasets=[ONE, TWO], key_presence=keys)
    now = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
    [*_, dated] = write_exports(database, store, now=now)
    assert dated.path == "catalogs/metadata_catalog_20260506T070809.000000Z.json"
    told = json.loads(store.read(dated.path))
    assert told["generated_at"] == "2026-05-06T07:08:09+00:00"
    assert told["status"] == {"complete": 1, "listed": 1}
    assert [(r["name"], r["status"], r["partitions_stored"]) for r in told["records"]] == [
        ("brain_crop", "listed", 0),
        ("retina", "complete", 2),
    ]
    assert told["sources"] == {
        "empiar": {"dm": {"documents": 16, "keys": {"ImageList.*.Name": 1.0, "Thumbnail": 0.375}}}
    }


def test_old_dated_catalogues_stay_up_to_fifty(tmp_path: Path):
    """The newest fifty are kept, a damaged newest one is no reason to stop, and other files there are left alone."""
    database, store = store_with(tmp_path, datasets=[ONE])
    store.write("catalogs/notes.txt", b"mine")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for hour in range(KEPT + 1):
        store.write(f"catalogs/metadata_catalog_{start + timedelta(hours=hour):%Y%m%dT%H%M%S.%fZ}.json", b"{half")
    assert write_exports(database, store, now=start + timedelta(days=9))[-1].changed
    files = sorted(path.name for path in (tmp_path / "catalogs").glob("*.json"))
    assert (len(files), files[0]) == (KEPT, "metadata_catalog_20260101T020000.000000Z.json")
    assert files[-1] == "metadata_catalog_20260110T000000.000000Z.json"
    assert (tmp_path / "catalogs/notes.txt").read_bytes() == b"mine"


def test_frames_are_every_table_and_view(tmp_path: Path):
    """One call gives pandas all there is."""
    database, _ = store_with(tmp_path, datasets=[ONE, TWO])
    found = frames(database)
    assert set(found) == {table.name for table in TABLES} | {made.name for made, _ in DERIVED}
    assert all(isinstance(value, pd.DataFrame) for value in found.values())
    assert sorted(found["datasets"]["name"]) == ["brain_crop", "retina"]
    assert len(found["vocabulary"]) == len(FIELDS)


def test_a_catalogue_that_was_built(tmp_path: Path):
    """Of the packaged specs, without anything downloaded: all exports are made, valid, and the same a second time."""
    specs = load_specs([PACKAGED_DATASETS])
    store = LocalStore(tmp_path)
    build_catalog(specs, store, Settings(root=str(tmp_path)))
    assert all(export.changed for export in write_exports(tmp_path / CATALOG, store))
    records = json.loads(store.read("metadata.json"))
    jsonschema.validate(records, json.loads(store.read("metadata.schema.json")))
    assert {record["name"]: record["license"] for record in records} == {
        name: spec.license for name, spec in specs.items()
    }
    build_catalog(specs, store, Settings(root=str(tmp_path)))
    assert not any(export.changed for export in write_exports(tmp_path / CATALOG, store))
