"""Datasets with further volumes and with received files in the catalogue, each volume apart from the others.

`store_all` makes such datasets for other tests too: written by `em_assets.standardize`, as the pipeline does it.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em_assets.catalog.build import build_catalog
from em_assets.catalog.query import catalog_path, query
from em_assets.datasets.spec import DatasetSpec
from em_assets.fetch.receipts import Receipt
from em_assets.originals import file_key, receipt_path
from em_assets.records import DatasetFolder, DatasetRecord, VolumeSummary, manifest_digest, partition_key
from em_assets.settings import Settings
from em_assets.standardize.finish import Original, write_manifest
from em_assets.standardize.ingest import fetch_regions
from em_assets.standardize.ome import write_metadata
from em_assets.standardize.pyramid import build_pyramid
from em_assets.store import LocalStore, Store, open_store
from em_assets.volume import Box, Zyx
from memory_reader import MemoryReader
from test_catalog_build import build, make_spec, overview_of, rows_of, store_dataset

SHAPE: Zyx = (64, 96, 160)
VOXEL_SIZE_NM = (12.0, 8.0, 4.0)
ORIGIN: Zyx = (10, 200, 3000)
NUC_SHAPE: Zyx = (25, 20, 30)
NUC_VOXEL_SIZE_NM = (20.0, 16.0, 10.0)
NUC_ORIGIN: Zyx = (8, 105, 1210)
"""The labels lie within the image, at another resolution."""
LOW, HIGH = -1000, 1000
"""The image's first quarter along x and along y; the rest is 0."""
LABEL = 7
SOURCE = "memory://volume"
DOWNLOADED_AT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


def zarr_spec(name: str = "cell", **changes: Any) -> DatasetSpec:
    """Published in chunks: a signed image, labels of another resolution, and a second image."""
    values = make_spec(name).model_dump(mode="json", exclude={"crop", "keep"}) | {
        "source": {"kind": "zarr", "url": "s3://bucket/cell.zarr", "group": "em/int16"},
        "expected": {"source_shape": list(SHAPE), "dtype": "int16", "voxel_size_nm": list(VOXEL_SIZE_NM)},
        "output": {"shard": [32, 64, 64], "chunk": [32, 32, 32]},
        "volumes": {
            "nuc": {
                "title": "Nuclei",
                "content": "labels",
                "group": "labels/nuc",
                "shape": list(NUC_SHAPE),
                "dtype": "uint8",
                "voxel_size_nm": list(NUC_VOXEL_SIZE_NM),
                "doi": "10.1234/nuc",
                "shard": [32, 32, 32],
            },
            "coarse": {
                "group": "em/coarse",
                "shape": [16, 24, 40],
                "dtype": "uint8",
                "voxel_size_nm": [48, 32, 16],
            },
        },
    }
    return DatasetSpec.model_validate(values | changes)


def files_spec(name: str = "slices", **changes: Any) -> DatasetSpec:
    """Published as files: a volume, its labels, and an attachment in a folder."""
    values = make_spec(name).model_dump(mode="json", exclude={"crop", "keep"}) | {
        "source": {
            "kind": "files",
            "url": "https://example.org/data",
            "files": [{"path": "em.tif"}, {"path": "labels.tif"}, {"path": "more/notes.xml"}],
            "volume": {"files": ["em.tif"]},
        },
        "expected": {"source_shape": [20, 40, 60], "dtype": "uint8", "voxel_size_nm": [5, 5, 5]},
        "output": {"shard": [32, 32, 32], "chunk": [32, 32, 32]},
        "volumes": {
            "truth": {
                "content": "labels",
                "source": {"files": ["labels.tif"]},
                "shape": [20, 40, 60],
                "dtype": "uint8",
                "voxel_size_nm": [5, 5, 5],
            }
        },
    }
    return DatasetSpec.model_validate(values | changes)


def image() -> np.ndarray:
    volume = np.zeros(SHAPE, np.int16)
    volume[:, : SHAPE[1] // 4] = HIGH
    volume[:, :, : SHAPE[2] // 4] = LOW
    return volume


def voxels(spec: DatasetSpec, sub: str | None) -> np.ndarray:
    layout = spec.layouts()[sub]
    if layout.dtype == "int16":
        return image()
    return np.full(layout.shape, LABEL, layout.dtype)


def place(sub: str | None) -> Zyx:
    return {None: ORIGIN, "nuc": NUC_ORIGIN}.get(sub, (2, 50, 750))


def store_volume(
    store: Store, spec: DatasetSpec, sub: str | None, holes: Sequence[Box] = (), *, shards: int | None = None
) -> tuple[list, list]:
    """One volume, whole, or only its first `shards`: (records, `zarr.json` objects)."""
    layout, folder = spec.layouts()[sub], DatasetFolder(store, spec.name, sub)
    at = place(sub)
    reader = MemoryReader(voxels(spec, sub), at, [hole.shifted(at) for hole in holes])
    keys = [partition_key(index) for index in layout.shard_indices()][:shards]
    records, errors = fetch_regions(folder, layout, reader, Box.from_shape(layout.shape, at=at), keys)
    assert not errors, errors
    if shards is not None:
        return records, []
    levels = build_pyramid(folder, layout, records, workers=2)
    return [*records, *levels], write_metadata(folder, layout, at)


def receive(store: Store, spec: DatasetSpec, path: str) -> Original:
    """A file as the downloader leaves it, a receipt beside it; likewise for the manifest."""
    folder, data = DatasetFolder(store, spec.name), f"the bytes of {path}".encode()
    stored = folder.write(f"original/{path}", data)
    receipt = Receipt(
        path=path,
        url=f"https://mirror.example.org/data/{path}",
        size_bytes=len(data),
        sha256=stored.sha256,
        modified_ns=1,
        downloaded_at=DOWNLOADED_AT,
        seconds=0.5,
        received_bytes=len(data),
    )
    folder.write(receipt_path(path), receipt.model_dump_json().encode())
    return Original(stored, file_key(path), receipt.url, receipt.downloaded_at)


def summary_of(spec: DatasetSpec, sub: str) -> VolumeSummary:
    volume = spec.volumes[sub]
    return VolumeSummary(
        content=volume.content,
        shape=volume.shape,
        dtype=volume.dtype,
        voxel_size_nm=volume.voxel_size_nm,
        source_box=Box.from_shape(volume.shape, at=place(sub)),
    )


def write_record(store: Store, spec: DatasetSpec, status: str = "complete", **changes: Any) -> DatasetRecord:
    folder = DatasetFolder(store, spec.name)
    subs = [sub for sub in spec.layouts() if sub is not None]
    words = ("name", "source_id", "title", "description", "license", "citation", "doi", "page_url")
    values: dict[str, Any] = {
        **{word: getattr(spec, word) for word in words},
        "source": spec.publisher,
        "volume_shape": spec.shape,
        "voxel_size_nm": spec.voxel_size_nm,
        "dtype": spec.dtype,
        "download_url": spec.source.url,
        "local_paths": {"volume": folder.uri(folder.volume)} if spec.makes_standard else {},
        "status": status,
        "timestamp": DOWNLOADED_AT,
        "identity": spec.identity(),
        "source_box": Box.from_shape(spec.shape, at=ORIGIN),
        "volumes": {sub: summary_of(spec, sub) for sub in subs},
    }
    record = DatasetRecord(**(values | changes))
    folder.write_record(record)
    return record


def store_all(store: Store, spec: DatasetSpec, holes: dict[str | None, list[Box]] | None = None) -> DatasetFolder:
    """A finished dataset with all its volumes and files."""
    records, documents = [], []
    for sub in spec.layouts():
        shards, metadata = store_volume(store, spec, sub, (holes or {}).get(sub, ()))
        records += shards
        documents += metadata
    files = [receive(store, spec, path) for path in spec.source.by_path()] if spec.is_by_file else []
    folder = DatasetFolder(store, spec.name)
    manifest = write_manifest(folder, records, documents, files)
    assert manifest.sha256 == manifest_digest(manifest.objects)
    write_record(store, spec, file_size_bytes=manifest.size_bytes, sha256=manifest.sha256)
    return folder


def volume_of(rows: list[dict], volume: str | None) -> list[dict]:
    return [row for row in rows if row["volume"] == volume]


def test_further_volumes_of_a_listed_dataset(tmp_path: Path):
    """Before anything is downloaded, each volume has its level and its chunks; the dataset is one line."""
    built = build(tmp_path, zarr_spec())
    assert built.rows.items() >= {"datasets": 1, "files": 0, "chunks": 2 * 2 * 3 + 1 + 1, "levels": 3}.items()
    [nuc] = rows_of(tmp_path, "from levels where volume = 'nuc'")
    assert [nuc[f"shape_{axis}"] for axis in "zyx"] == list(NUC_SHAPE)
    assert [nuc[f"voxel_size_{axis}_nm"] for axis in "zyx"] == list(NUC_VOXEL_SIZE_NM)
    assert (nuc["shard"], nuc["shards"]) == ((32, 32, 32), 0)
    [row] = rows_of(tmp_path, "from datasets")
    assert (row["content"], row["partitioned_by"], row["partitions"], row["partitions_stored"]) == (
        *("image", "chunk", 12, 0),
    )
    volumes = json.loads(row["volumes"])
    assert volumes["nuc"] == {
        "title": "Nuclei",
        "content": "labels",
        "shape": list(NUC_SHAPE),
        "dtype": "uint8",
        "voxel_size_nm": list(NUC_VOXEL_SIZE_NM),
        "doi": "10.1234/nuc",
    }
    assert list(volumes) == ["nuc", "coarse"]
    overview = overview_of(tmp_path, "cell")
    assert (overview["shape"], overview["dtype"]) == ("64 x 96 x 160", "int16")
    build(tmp_path, make_spec())
    assert rows_of(tmp_path, "select volumes, content from datasets") == [{"volumes": None, "content": "image"}]


def test_stored_volumes_are_kept_apart(tmp_path: Path):
    """Levels, chunks and files of a finished dataset belong to the volume they are of; none is counted for another."""
    store, spec = LocalStore(tmp_path), zarr_spec(missing="record")
    hole = Box((0, 0, 0), (25, 20, 15))
    folder = store_all(store, spec, {"nuc": [hole]})
    build(tmp_path, spec)
    levels, chunks, files = (rows_of(tmp_path, f"from {table}") for table in ("levels", "chunks", "files"))
    assert [row["level"] for row in volume_of(levels, None)] == [0, 1]
    [nuc] = volume_of(levels, "nuc")
    assert [nuc[f"voxel_size_{axis}_nm"] for axis in "zyx"] == list(NUC_VOXEL_SIZE_NM)
    stored = folder.further("nuc").stored_sizes()
    assert (nuc["shards"], nuc["size_bytes"]) == (1, stored["volumes/nuc.ome.zarr/0/c/0/0/0"])
    assert [len(volume_of(chunks, sub)) for sub in (None, "nuc", "coarse")] == [12, 1, 1]
    assert {row["status"] for row in chunks} == {"present"}
    [chunk] = volume_of(chunks, "nuc")
    assert (chunk["missing_fraction"], chunk["mean"], chunk["source_box_start"]) == (0.5, LABEL, NUC_ORIGIN)
    assert {row["path"] for row in volume_of(files, "nuc")} == set(stored)
    assert {row["path"] for row in volume_of(files, None)} == set(folder.stored_sizes())
    [row] = rows_of(tmp_path, "from datasets")
    assert (row["status"], row["missing_fraction"], row["partitions_stored"]) == ("complete", 0, 12)
    assert row["file_size_bytes"] == sum(line["size_bytes"] for line in files)
    assert json.loads(row["volumes"])["nuc"]["source_box"] == [list(NUC_ORIGIN), [33, 125, 1240]]


def test_progress_counts_the_partitions_alone(tmp_path: Path):
    """Three of twelve chunks are three of twelve, however much of the further volumes is here."""
    store, spec = LocalStore(tmp_path), zarr_spec()
    store_volume(store, spec, None, shards=3)
    store_volume(store, spec, "nuc")
    write_record(store, spec, "interrupted", local_paths={}, volumes={"nuc": summary_of(spec, "nuc")})
    build(tmp_path, spec)
    assert overview_of(tmp_path, "cell")["note"] == "3 of 12 chunks"
    counted = "select volume, status, count(*) as n from chunks group by all order by all nulls first"
    assert [tuple(row.values()) for row in rows_of(tmp_path, counted)] == [
        (None, "not downloaded", 9),
        (None, "present", 3),
        ("coarse", "not downloaded", 1),
        ("nuc", "present", 1),
    ]
    assert len(rows_of(tmp_path, "from files where volume = 'nuc'")) == 1


def test_a_further_volume_that_the_spec_now_cuts_otherwise(tmp_path: Path):
    """Its shards of before are no chunks of the one described now; the others are as they were."""
    store, spec = LocalStore(tmp_path), zarr_spec()
    store_all(store, spec)
    volumes = spec.model_dump(mode="json")["volumes"]
    volumes["nuc"]["shard"] = [64, 64, 64]
    build(tmp_path, zarr_spec(volumes=volumes))
    statuses = rows_of(tmp_path, "select volume, any_value(status) as status from chunks group by volume order by all")
    assert [tuple(row.values()) for row in statuses] == [
        ("coarse", "present"),
        ("nuc", "not downloaded"),
        (None, "present"),
    ]


def test_files_before_anything_is_received(tmp_path: Path):
    """Partitions are files; the chunks of the volume to be made of them are not called downloads."""
    build(tmp_path, files_spec())
    [row] = rows_of(tmp_path, "from datasets")
    assert (row["status"], row["partitioned_by"], row["partitions"], row["partitions_stored"]) == (
        "listed",
        "file",
        3,
        0,
    )
    assert {row["status"] for row in rows_of(tmp_path, "from chunks")} == {"not made"}


def cut_file(folder: Path):
    (folder / "labels.tif").write_bytes(b"short")


def lose_file(folder: Path):
    (folder / "labels.tif").unlink()


def lose_receipt(folder: Path):
    (folder / "labels.tif.receipt.json").unlink()


def damage_receipt(folder: Path):
    (folder / "labels.tif.receipt.json").write_text("{")


@pytest.mark.parametrize("harm", [cut_file, lose_file, lose_receipt, damage_receipt])
def test_received_files_are_counted_one_by_one(tmp_path: Path, harm):
    """What arrived whole is in `files` with where it came from, and counts; what is not whole does not."""
    store, spec = LocalStore(tmp_path), files_spec()
    for path in ("labels.tif", "more/notes.xml"):
        receive(store, spec, path)
    write_record(store, spec, "interrupted", local_paths={}, volumes={})
    build(tmp_path, spec)
    assert overview_of(tmp_path, "slices")["note"] == "2 of 3 files"
    harm(tmp_path / "slices/original")
    build(tmp_path, spec)
    [file] = rows_of(tmp_path, "from files")
    assert file == {
        "name": "slices",
        "volume": None,
        "path": "original/more/notes.xml",
        "level": None,
        "partition_key": "more__notes.xml",
        "size_bytes": 27,
        "sha256": file["sha256"],
        "source_url": "https://mirror.example.org/data/more/notes.xml",
        "written_at": DOWNLOADED_AT.replace(tzinfo=None),
    }
    assert overview_of(tmp_path, "slices")["note"] == "1 of 3 files"


def test_files_of_a_finished_dataset(tmp_path: Path):
    """They are listed beside the volumes made of them; one that was lost since is missed."""
    store, spec = LocalStore(tmp_path), files_spec()
    store_all(store, spec)
    build(tmp_path, spec)
    files = rows_of(tmp_path, "from files where path like 'original/%' order by path")
    assert [(row["partition_key"], row["volume"]) for row in files] == [
        ("em.tif", None),
        ("labels.tif", None),
        ("more__notes.xml", None),
    ]
    assert files[0]["source_url"] == "https://mirror.example.org/data/em.tif"
    assert volume_of(rows_of(tmp_path, "from files"), "truth")
    [row] = rows_of(tmp_path, "from datasets")
    assert (row["status"], row["partitions"], row["partitions_stored"]) == ("complete", 3, 3)
    (tmp_path / "slices/original/em.tif").unlink()
    build(tmp_path, spec)
    assert rows_of(tmp_path, "select partitions_stored from datasets") == [{"partitions_stored": 2}]


@pytest.mark.parametrize("with_spec", [True, False])
def test_files_alone(tmp_path: Path, with_spec):
    """A dataset that keeps files only has a row and its files, and no volume anywhere, not in the README either."""
    store, spec = LocalStore(tmp_path), files_spec(keep="original", volumes={})
    store_all(store, spec)
    built = build(tmp_path, *([spec] if with_spec else []))
    assert built.rows.items() >= {"datasets": 1, "files": 3, "chunks": 0, "levels": 0}.items()
    overview = overview_of(tmp_path, "slices")
    assert (overview["status"], overview["note"]) == ("complete", None)
    assert rows_of(tmp_path, "select missing_fraction from datasets") == [{"missing_fraction": None}]
    text = (tmp_path / "README.md").read_text()
    assert "`slices/original`" in text
    assert ".ome.zarr" not in text


@pytest.mark.parametrize("keep", ["original", "both"])
def test_chunks_kept_as_published_do_not_disturb(tmp_path: Path, keep):
    """Whatever of a published container lies in `original/`, the dataset has its row."""
    spec = zarr_spec(keep=keep)
    DatasetFolder(LocalStore(tmp_path), "cell").write("original/em/int16/s0/0.0.0", b"voxels")
    write_record(LocalStore(tmp_path), spec, "interrupted", local_paths={}, volumes={})
    build(tmp_path, spec)
    assert overview_of(tmp_path, "cell")["status"] == "interrupted"
    assert bool(rows_of(tmp_path, "from chunks")) == (keep == "both")


def test_volumes_stay_when_the_spec_is_gone(tmp_path: Path):
    """What is stored is catalogued from the records alone, volume by volume."""
    spec = zarr_spec()
    store_all(LocalStore(tmp_path), spec)
    with_spec = build(tmp_path, spec).rows
    of_the_spec = {"claims": 0, "statements": 0}
    assert build(tmp_path).rows | of_the_spec == with_spec | of_the_spec
    counted = "select volume, count(*) as n from chunks group by all order by all nulls first"
    assert [tuple(row.values()) for row in rows_of(tmp_path, counted)] == [(None, 12), ("coarse", 1), ("nuc", 1)]
    [row] = rows_of(tmp_path, "from datasets")
    assert list(json.loads(row["volumes"])) == ["nuc", "coarse"]
    assert (row["content"], row["partitions"]) == (None, None)  # nobody says so any more


def lose_level(folder: Path):
    (folder / "volumes/nuc.ome.zarr/0/zarr.json").unlink()


def lose_group(folder: Path):
    (folder / "volumes/nuc.ome.zarr/zarr.json").unlink()


def damage_chunk_record(folder: Path):
    (folder / "records/volumes/nuc/z000_y000_x000.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "culprit"),
    [
        (lose_level, "volumes/nuc.ome.zarr/0/zarr.json"),
        (lose_group, "volumes/nuc.ome.zarr/zarr.json"),
        (damage_chunk_record, "records/volumes/nuc/z000_y000_x000.json"),
    ],
)
def test_damage_in_a_further_volume_is_named(tmp_path: Path, damage, culprit):
    """It makes the dataset an error whose reason names the file."""
    store_all(LocalStore(tmp_path), zarr_spec())
    damage(tmp_path / "cell")
    build(tmp_path, zarr_spec())
    [row] = rows_of(tmp_path, "from datasets")
    assert row["status"] == "error"
    assert str(tmp_path / "cell" / culprit) in row["status_reason"]


@pytest.mark.parametrize("name", ["../../crop", "a/b", "", "\n"])
def test_a_record_that_names_a_volume_none_can_be_called(tmp_path: Path, name: str):
    """Names in a record are parts of paths: a wrong one makes its dataset an error, and leads nowhere."""
    store, spec = LocalStore(tmp_path), zarr_spec()
    store_dataset(tmp_path, make_spec())
    write_record(store, spec)
    file = store.local_path("cell/metadata.json")
    file.write_text(file.read_text().replace('"nuc": {', f"{json.dumps(name)}: {{"))
    for specs in ([spec, make_spec()], [make_spec()]):
        build(tmp_path, *specs)
        [row] = rows_of(tmp_path, "from datasets where name = 'cell'")
        assert row["status"] == "error"
        assert "metadata.json is not a DatasetRecord (volumes." in row["status_reason"]
        assert overview_of(tmp_path)["status"] == "complete"


def test_a_manifest_without_paths_is_damage(tmp_path: Path):
    """Lines that name no object are no manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = store_all(LocalStore(tmp_path), files_spec())
    file = Path(folder.uri("manifest.parquet"))
    table = pq.read_table(file)
    pq.write_table(table.set_column(0, "path", pa.nulls(table.num_rows, pa.string())), file)
    build(tmp_path, files_spec())
    [row] = rows_of(tmp_path, "from datasets")
    assert row["status"] == "error"
    assert "manifest.parquet is not a manifest" in row["status_reason"]


def test_the_readme_lists_every_volume(tmp_path: Path):
    """Further volumes are lines of their own with their path; kept files are pointed to; the example opens a volume."""
    store = LocalStore(tmp_path)
    store_all(store, zarr_spec())
    store_all(store, files_spec())
    store_all(store, files_spec("attached", keep="original", volumes={}))
    build(tmp_path, zarr_spec(), files_spec(), files_spec("attached", keep="original", volumes={}), make_spec("later"))
    text = (tmp_path / "README.md").read_text()
    assert "| cell | complete | 64 x 96 x 160 | 12 x 8 x 4 | int16 |" in text
    labels = "| cell/nuc | complete | 25 x 20 x 30 | 20 x 16 x 10 | uint8 labels |  | CC-BY-4.0 | "
    assert f"{labels}`cell/volumes/nuc.ome.zarr` |" in text
    assert "byte for byte in `attached/original`, `slices/original`." in text
    assert 'zarr.open_group("cell/volume.ome.zarr"' in text
    for line in text.splitlines():
        if line.endswith(".ome.zarr` |"):
            assert (tmp_path / line.split("`")[-2]).is_dir()


def test_an_s3_store_has_the_same_rows(moto_s3, tmp_path: Path):
    """Volumes and received files on S3 give the rows they give in a folder."""
    specs = {spec.name: spec for spec in (zarr_spec(), files_spec())}
    local, remote = LocalStore(tmp_path / "store"), open_store(moto_s3)
    store_all(local, specs["cell"])
    receive(local, specs["slices"], "em.tif")
    write_record(local, specs["slices"], "interrupted", local_paths={}, volumes={})
    for path, _ in list(local.list("")):
        remote.write(path, local.read(path))
    settings = Settings(root=moto_s3, cache=tmp_path / "cache")
    build_catalog(specs, local, settings)
    build_catalog(specs, remote, settings)
    for table in ("overview", "files", "chunks", "levels"):
        here, there = (query(catalog_path(s, settings), f"from {table} order by all") for s in (local, remote))
        assert here == there
