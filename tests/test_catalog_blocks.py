"""The table `blocks` has every index that belongs to its volume as it is now; Croissant tells ML tools of them."""

import hashlib
import json
from pathlib import Path

import duckdb
import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em_assets.catalog.block_indexes import SUMMARY, index_path
from em_assets.catalog.build import CATALOG, build_catalog
from em_assets.catalog.croissant import (
    CROISSANT,
    REQUIRED,
    REQUIRED_OF_FILES,
    croissants,
    missing_required,
    write_croissants,
)
from em_assets.catalog.exports import write_exports
from em_assets.catalog.query import catalog_path, query
from em_assets.catalog.schema import BLOCKS, OF_INDEX
from em_assets.checks.blocks import check_croissants
from em_assets.records import DatasetFolder, VolumeSummary
from em_assets.settings import Settings
from em_assets.store import LocalStore, open_store
from test_catalog_build import build, make_spec, rows_of, store_dataset, write_volume

ARROW = {
    "VARCHAR": pa.string(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "FLOAT[]": pa.list_(pa.float32(), 4),
}
SPLITS = ("train", "train", "train", "val", None, "test")


def index_table(name: str = "crop", blocks: int = 6, features: int | None = 4, **columns) -> pa.Table:
    """An index as `blocks/index.py` writes it, of made-up blocks in a row along x."""
    rows = range(blocks)
    made = {
        "name": [name] * blocks,
        "id": list(rows),
        "level": [0] * blocks,
        **{f"start_{axis}": [16 * n if axis == "x" else 0 for n in rows] for axis in "zyx"},
        **{f"shape_{axis}": [16] * blocks for axis in "zyx"},
        "max_voxel_size_nm": [8.0] * blocks,
        "split": [SPLITS[n % len(SPLITS)] for n in rows],
        "digest": [f"sha256:{n:064x}" for n in rows],
        "coverage": [1.0 - 0.1 * (n == 4) for n in rows],
        "labels": [None] * blocks,
        "label_fraction": [None] * blocks,
        "features": [None if features is None else [float(n)] * features for n in rows],
        "features_method": [None if features is None else f"made-up/{features}"] * blocks,
        "license": ["what the index says"] * blocks,
        **columns,
    }
    types = ARROW | {"FLOAT[]": pa.list_(pa.float32(), features or -1)}
    arrays = {
        c.name: pa.array(made.get(c.name, [0.5 * n for n in rows]), types[c.type])
        for c in OF_INDEX
        if made.get(c.name, ()) is not None
    }
    return pa.table(arrays | {"license": pa.array(made["license"])})


def put_index(folder: DatasetFolder, table: pa.Table | None = None, **stated) -> Path:
    """Beside the folder's volume, stated to be of the dataset as it is."""
    record = folder.read_record()
    summary = {"sha256": record.sha256, "margin": 32} | stated
    table = index_table(folder.title) if table is None else table
    file = folder.store.local_path(folder.path(index_path(folder.sub)))
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({SUMMARY: json.dumps(summary)}), file)
    return file


@pytest.fixture
def stored(tmp_path) -> DatasetFolder:
    return store_dataset(tmp_path, make_spec())


def test_the_rows_are_the_indexes(stored, tmp_path):
    """Each block has its row as the index has it, in its order; the licence and what it is are the dataset's."""
    put_index(stored)
    assert build(tmp_path, make_spec()).rows["blocks"] == 6
    rows = rows_of(tmp_path, "from blocks")
    assert [row["id"] for row in rows] == list(range(6))
    kept = index_table().drop_columns(["license"]).to_pylist()
    assert [{**row, "features": list(row["features"])} for row in rows] == [
        row
        | {
            "content": "image",
            "dtype": "uint8",
            "license": "CC-BY-4.0",
            "licence": "CC-BY-4.0",
            "publisher": "somebody",
        }
        for row in kept
    ]
    [kind] = query(tmp_path / CATALOG, "select typeof(features) from blocks limit 1").rows[0]
    assert kind == "FLOAT[4]"
    assert rows_of(tmp_path, "select status_reason from datasets") == [{"status_reason": None}]


def test_without_an_index_the_table_is_there(stored, tmp_path):
    """A question about blocks has an answer before there are any."""
    assert build(tmp_path, make_spec()).rows["blocks"] == 0
    for spelt in ("license", "licence"):
        assert rows_of(tmp_path, f"select name from blocks where {spelt} like 'CC%' and coverage = 1") == []


def test_a_further_volume_has_its_own(tmp_path):
    """Labels beside the image: named as `open` takes them, with their own content and type, without features."""
    summary = VolumeSummary(content="labels", shape=(100, 64, 100), dtype="uint16", voxel_size_nm=(8, 4.5, 8))
    folder = store_dataset(tmp_path, make_spec(), volumes={"nuc": summary})
    write_volume(tmp_path / "crop/volumes/nuc.ome.zarr", make_spec())
    put_index(folder)
    put_index(folder.further("nuc"), index_table("crop/nuc", blocks=2, features=None, labels=[3, 0]))
    assert build(tmp_path, make_spec()).rows["blocks"] == 8
    assert rows_of(tmp_path, "select name, content, dtype, labels, features from blocks where name like '%/%'") == [
        {"name": "crop/nuc", "content": "labels", "dtype": "uint16", "labels": labels, "features": None}
        for labels in (3, 0)
    ]
    assert query(tmp_path / CATALOG, "select distinct typeof(features) from blocks").rows == [("FLOAT[4]",)]


def test_features_of_several_lengths(tmp_path):
    """Vectors of two methods lie in one column, and are compared with their like."""
    for name, length in (("crop", 4), ("other", 7)):
        put_index(store_dataset(tmp_path, make_spec(name)), index_table(name, features=length))
    build(tmp_path, make_spec(), make_spec("other"))
    assert query(tmp_path / CATALOG, "select distinct typeof(features) from blocks").rows == [("FLOAT[]",)]
    nearest = (
        "select b.id, list_distance(b.features, q.features) as distance from blocks b join blocks q "
        "on b.features_method = q.features_method where q.name = 'other' and q.id = 2 order by distance, b.id limit 3"
    )
    assert [row["id"] for row in rows_of(tmp_path, nearest)] == [2, 1, 3]


@pytest.mark.parametrize("status", ["error", "interrupted", "saving-data"])
def test_only_complete_datasets_have_blocks(stored, tmp_path, status):
    """While a volume is written or is in doubt, nobody is led to its blocks."""
    put_index(stored)
    stored.write_record(stored.read_record().with_status(status, "for a reason"))
    assert build(tmp_path, make_spec()).rows["blocks"] == 0


def test_a_dataset_whose_records_are_damaged_has_none(stored, tmp_path):
    """Its record says complete, its row does not: the row decides."""
    put_index(stored)
    (tmp_path / "crop/manifest.parquet").write_bytes(b"no")
    assert build(tmp_path, make_spec()).rows["blocks"] == 0


def no_parquet(file: Path):
    file.write_bytes(b"id,name\n1,crop\n")


def truncated(file: Path):
    file.write_bytes(file.read_bytes()[:-100])


def too_short(file: Path):
    file.write_bytes(b"PAR1")


def footer_of_nonsense(file: Path):
    data = file.read_bytes()
    file.write_bytes(data[:-400] + bytes(392) + data[-8:])


def empty(file: Path):
    file.write_bytes(b"")


def column_gone(file: Path):
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["coverage"]), file)


def nothing_stated(file: Path):
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)


def stated_is_no_json(file: Path):
    pq.write_table(pq.read_table(file).replace_schema_metadata({SUMMARY: "{"}), file)


def stated_is_a_list(file: Path):
    pq.write_table(pq.read_table(file).replace_schema_metadata({SUMMARY: "[1]"}), file)


def of_another_state(file: Path):
    pq.write_table(pq.read_table(file).replace_schema_metadata({SUMMARY: json.dumps({"sha256": "00" * 32})}), file)


def text_for_numbers(file: Path):
    table = pq.read_table(file)
    at = table.schema.get_field_index("coverage")
    pq.write_table(table.set_column(at, "coverage", pa.array(["much"] * table.num_rows)), file)


def damaged_pages(file: Path):
    data = bytearray(file.read_bytes())
    data[4:2000] = b"\xff" * 1996
    file.write_bytes(data)


DAMAGE = (
    *(no_parquet, truncated, too_short, footer_of_nonsense, empty, column_gone, nothing_stated, stated_is_no_json),
    *(stated_is_a_list, of_another_state, text_for_numbers, damaged_pages),
)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda function: function.__name__)
def test_what_is_no_index_is_left_out(tmp_path, damage):
    """Its dataset stays complete and says which file, in one sentence; the blocks of others are all there."""
    specs = make_spec(), make_spec("other")
    files = {spec.name: put_index(store_dataset(tmp_path, spec), index_table(spec.name)) for spec in specs}
    damage(files["crop"])
    assert build(tmp_path, *specs).rows["blocks"] == 6
    assert rows_of(tmp_path, "select distinct name from blocks") == [{"name": "other"}]
    rows = {row["name"]: row for row in rows_of(tmp_path, "select name, status, status_reason from datasets")}
    assert {row["status"] for row in rows.values()} == {"complete"}
    assert rows["other"]["status_reason"] is None
    reason = rows["crop"]["status_reason"]
    assert reason.startswith(f"{files['crop']} is not the index of the volume's blocks (")
    assert "crop_blocks" in reason and "\n" not in reason


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    """DuckDB takes brackets and asterisks in a file's name for a pattern; here they are a folder's."""
    root = tmp_path / "[a-c]* 'quoted'"
    put_index(store_dataset(root, make_spec()))
    assert build(root, make_spec()).rows["blocks"] == 6
    assert len(rows_of(root, "from blocks")) == 6


def test_the_other_exports_do_not_change(stored, tmp_path):
    """A million blocks are nothing for metadata.csv: with an index the exports are what they are without."""
    build(tmp_path, make_spec())
    write_exports(tmp_path / CATALOG, stored.store)
    put_index(stored)
    build(tmp_path, make_spec())
    assert not any(export.changed for export in write_exports(tmp_path / CATALOG, stored.store))


def test_a_catalogue_of_before_has_no_blocks(stored, tmp_path):
    """Commands that find a catalogue without the table build it anew."""
    from em_assets.cli_catalog import _has_our_columns

    build(tmp_path, make_spec())
    assert _has_our_columns(tmp_path / CATALOG)
    with duckdb.connect(tmp_path / CATALOG) as database:
        database.execute("drop table blocks")
    assert not _has_our_columns(tmp_path / CATALOG)


def test_an_s3_store_has_the_same_rows(moto_s3, tmp_path):
    """The indexes are fetched from the bucket, one after the other, and nothing of them stays in the cache."""
    local = LocalStore(tmp_path / "store")
    specs = {name: make_spec(name) for name in ("crop", "other")}
    for name, spec in specs.items():
        put_index(store_dataset(tmp_path / "store", spec), index_table(name))
    store = open_store(moto_s3)
    for path, _ in list(local.list("")):
        store.write(path, local.read(path))
    settings = Settings(root=moto_s3, cache=tmp_path / "cache")
    here, there = build_catalog(specs, local, settings), build_catalog(specs, store, settings)
    assert here.rows == there.rows and there.rows["blocks"] == 12
    assert query(catalog_path(store, settings), "from blocks order by all") == query(
        tmp_path / "store" / CATALOG, "from blocks order by all"
    )
    assert not list((tmp_path / "cache/catalog").glob("*.em-partial*"))


# Croissant


@pytest.fixture
def catalogued(stored, tmp_path) -> Path:
    put_index(stored)
    build(tmp_path, make_spec())
    return tmp_path / CATALOG


def written(database: Path) -> dict:
    store = LocalStore(database.parent)
    [export] = write_croissants(database, store)
    assert (export.path, export.changed) == (f"crop/{CROISSANT}", True)
    return json.loads(store.read(export.path))


def test_mlcroissant_loads_the_index(catalogued):
    """The reference implementation finds no fault, not even a warning, and gives the index's rows and splits."""
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed (pip install -e .[dev])")
    written(catalogued)
    dataset = mlcroissant.Dataset(jsonld=str(catalogued.parent / "crop" / CROISSANT))
    issues = dataset.metadata.issues
    assert (list(issues.errors), list(issues.warnings)) == ([], [])
    records = list(dataset.records("blocks"))
    assert [record["blocks/id"] for record in records] == list(range(6))
    assert [record["blocks/start_x"] for record in records] == [16 * n for n in range(6)]
    assert [record["blocks/split"] for record in records] == [None if s is None else s.encode() for s in SPLITS]
    assert list(records[2]["blocks/features"]) == [2.0] * 4
    assert {record["splits/name"] for record in dataset.records("splits")} == {"train", "val", "test"}
    assert [record["volumes/url"] for record in dataset.records("volumes")] == ["volume.ome.zarr/"]


def test_it_says_what_the_file_is(catalogued):
    """Checksum, size and place are those of blocks.parquet; every column of an index is a field with its comment."""
    document = written(catalogued)
    data = (catalogued.parent / "crop/blocks.parquet").read_bytes()
    [file] = document["distribution"]
    assert file["sha256"] == hashlib.sha256(data).hexdigest()
    assert (file["contentUrl"], file["contentSize"]) == ("blocks.parquet", f"{len(data)} B")
    assert document["license"] == "https://spdx.org/licenses/CC-BY-4.0"
    assert document["datePublished"] == "2020"  # of the citation, as the publisher says nothing
    blocks = next(records for records in document["recordSet"] if records["@id"] == "blocks")
    assert {field["name"]: field["description"] for field in blocks["field"]} == {c.name: c.comment for c in OF_INDEX}


SCHEMA = {
    "type": "object",
    "required": list(REQUIRED),
    "properties": {
        "@type": {"const": "sc:Dataset"},
        "conformsTo": {"const": "http://mlcommons.org/croissant/1.1"},
        "distribution": {
            "type": "array",
            "minItems": 1,
            "items": {
                "required": ["@id", "name", *REQUIRED_OF_FILES],
                "properties": {
                    "@type": {"const": "cr:FileObject"},
                    "sha256": {"pattern": "^[0-9a-f]{64}$"},
                    "contentUrl": {"not": {"pattern": "^/"}},
                },
            },
        },
        "recordSet": {"type": "array", "items": {"required": ["@id", "field", "key"]}},
    },
}


def test_it_has_what_the_specification_requires(catalogued):
    """By a schema of our own, for where mlcroissant is silent; and no field refers to what is not there."""
    document = written(catalogued)
    jsonschema.validate(document, SCHEMA)
    assert missing_required(document) == []
    ids = {file["@id"] for file in document["distribution"]}
    fields = {field["@id"] for records in document["recordSet"] for field in records["field"]}
    for records in document["recordSet"]:
        assert records["key"]["@id"] in fields
        for field in records["field"]:
            assert field["references"]["field"]["@id"] in fields if "references" in field else True
            assert field["source"]["fileObject"]["@id"] in ids if "source" in field else "data" in records


@pytest.mark.parametrize("key", [*REQUIRED, *(f"blocks.parquet: {key}" for key in REQUIRED_OF_FILES), "distribution"])
def test_what_is_required_is_missed(catalogued, key):
    """Without any one of these it is no Croissant, whatever mlcroissant says."""
    document = written(catalogued)
    target, name = (document["distribution"][0], key.split(": ")[1]) if ": " in key else (document, key)
    target[name] = None
    assert key in missing_required(document)


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        pytest.param("license = null", "license", id="licence"),
        pytest.param("citation = 'Someone et al.', released_on = null", "datePublished", id="day of publication"),
    ],
)
def test_without_what_is_required_there_is_none(stored, tmp_path, change, lacking):
    """A document that lacks it is not written, nothing is made up for it, an older one is removed; the check tells."""
    put_index(stored)
    build(tmp_path, make_spec())
    database, store = tmp_path / CATALOG, stored.store
    written(database)
    with duckdb.connect(database) as connection:
        connection.execute(f"update datasets set {change}")
    assert [export.path for export in write_croissants(database, store)] == [f"crop/{CROISSANT}"]
    assert store.size_bytes(f"crop/{CROISSANT}") is None
    outcome = check_croissants(database, store)
    assert not outcome.passed and f"crop has no croissant.json, for lack of {lacking}:" in outcome.message


def test_it_goes_with_the_index(stored, catalogued, tmp_path):
    """Without blocks in the catalogue there is nothing to describe: the document is removed, once."""
    written(catalogued)
    (tmp_path / "crop/blocks.parquet").unlink()
    build(tmp_path, make_spec())
    assert [export.changed for export in write_croissants(catalogued, stored.store)] == [True]
    assert write_croissants(catalogued, stored.store) == []
    assert croissants(catalogued, stored.store) == {}


def test_it_is_written_only_when_it_changes(stored, catalogued, tmp_path):
    """Another index, another checksum; the same one, the same file."""
    first = written(catalogued)
    assert [export.changed for export in write_croissants(catalogued, stored.store)] == [False]
    assert check_croissants(catalogued, stored.store).passed
    put_index(stored, index_table(blocks=3))
    build(tmp_path, make_spec())
    assert not check_croissants(catalogued, stored.store).passed
    assert written(catalogued)["distribution"][0]["sha256"] != first["distribution"][0]["sha256"]
    assert check_croissants(catalogued, stored.store).passed


def test_it_names_nobodys_paths(stored, tmp_path):
    """What leaves holds no path of this machine and no e-mail address."""
    put_index(stored)
    build(tmp_path, make_spec(description="Ask jane@example.org; see /home/jane/notes."))
    text = json.dumps(written(tmp_path / CATALOG))
    assert "jane" not in text and str(tmp_path) not in text


def test_every_column_is_described():
    """Each column of the table says what it means."""
    assert all(column.comment.endswith((".", ")")) for column in BLOCKS.columns)
    assert len({column.name for column in BLOCKS.columns}) == len(BLOCKS.columns) == 44
