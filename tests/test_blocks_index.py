"""The index of a volume's blocks: every voxel in a block, every row what reading the block gives, made once."""

import dataclasses
import itertools
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import em_assets.blocks as em
from em_assets.blocks import index, index_plan
from em_assets.blocks._local import LocalChunks
from em_assets.blocks.features import LENGTH, METHOD, NUMBERS, block_numbers, feature_vector
from em_assets.blocks.index import build_index, index_info, read_index, write_index
from em_assets.blocks.index_plan import grid_axes, plan_index
from em_assets.blocks.similar import near_duplicates_sql, similar_sql
from em_assets.catalog.schema import BLOCKS
from em_assets.errors import Malformed, Mismatch
from em_assets.records import DatasetFolder, VolumeSummary
from em_assets.store import open_store
from em_assets.volume import Box
from faulty import FaultyServer
from ome_volumes import halved, write_ome_zarr
from small import materialize, publish, quick_settings, voxels, write_spec

SHAPE, BLOCK = (40, 72, 64), (16, 32, 16)
ABSENT = [(0, 0, 0), (1, 0, 0), (1, 1, 1)]
"""Chunks of 16 voxels: the first and third block along z has none or half of its voxels there."""


@pytest.fixture(scope="module")
def holey(tmp_path_factory) -> em.Volume:
    """An image in two levels, some of whose chunks are not stored."""
    level0 = voxels(SHAPE)
    levels = [level0, np.rint(halved(level0)).astype(np.uint8)]
    folder = tmp_path_factory.mktemp("volumes") / "holey.zarr"
    write_ome_zarr(
        folder,
        levels,
        chunk=(16, 16, 16),
        shard=(32, 32, 32),
        voxel_size_nm=(50.0, 8.0, 8.0),
        corner_nm=(100.0, 200.0, 300.0),
        absent=ABSENT,
    )
    return em.open(folder)


@pytest.fixture(scope="module")
def rows(holey) -> list[dict]:
    return build_index(holey, block=BLOCK, margin=4).to_pylist()


def as_read(volume: em.Volume, row: dict) -> em.Block:
    start, shape = ([row[f"{what}_{axis}"] for axis in "zyx"] for what in ("start", "shape"))
    return volume.read(start, shape=shape, level=row["level"], missing="mask")


# The grid.


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_every_voxel_is_in_a_block(data):
    """Blocks of one shape, inside the volume, a stride apart but for the last, without a gap."""
    shape = data.draw(st.tuples(*[st.integers(1, 300)] * 3))
    block = tuple(data.draw(st.integers(1, n)) for n in shape)
    stride = tuple(data.draw(st.integers(1, n)) for n in block)
    for n, length, step, starts in zip(shape, block, stride, grid_axes(shape, block, stride), strict=True):
        assert starts[0] == 0
        assert starts[-1] == n - length
        assert {b - a for a, b in itertools.pairwise(starts[:-1])} <= {step}
        assert all(0 < b - a <= step for a, b in itertools.pairwise(starts))


def test_rows_are_the_grid(rows):
    """In the grid's order, z slowest, with ids that count them."""
    axes = grid_axes(SHAPE, BLOCK, BLOCK)
    assert axes[0] == (0, 16, 24)
    assert [(row["start_z"], row["start_y"], row["start_x"]) for row in rows] == list(itertools.product(*axes))
    assert [row["id"] for row in rows] == list(range(len(rows)))
    assert {(row["shape_z"], row["shape_y"], row["shape_x"]) for row in rows} == {BLOCK}


def test_columns_are_those_of_the_catalogue(holey):
    """All of its table `blocks`, in its order."""
    assert build_index(holey, block=BLOCK).schema.names == [column.name for column in BLOCKS.columns]


# The rows.


def test_a_row_is_what_reading_gives(holey, rows):
    """Place, coverage, digest and numbers are those of the block that `read` gives with a mask."""
    for row in rows:
        block = as_read(holey, row)
        assert row["coverage"] == block.valid_fraction
        assert (row["start_nm_z"], row["start_nm_y"], row["start_nm_x"]) == block.box_nm.start
        assert (row["stop_nm_z"], row["stop_nm_y"], row["stop_nm_x"]) == block.box_nm.stop
        assert (row["voxel_size_z_nm"], row["max_voxel_size_nm"]) == (50.0, 50.0)
        if block.valid_fraction > 0:
            assert row["digest"] == block.digest
            expected = block_numbers(block.data, block.valid, voxel_size_nm=block.voxel_size_nm, value_range=(0, 255))
            assert {name: row[name] for name in NUMBERS} == expected
            vector = feature_vector(block.data, block.valid, block.voxel_size_nm, (0, 255))
            assert row["features"] == vector.tolist()
            assert row["features_method"] == METHOD


def test_missing_voxels_are_known(rows):
    """Blocks with holes say how much is real; where nothing is, nothing is said of it."""
    coverage = {(row["start_z"], row["start_y"], row["start_x"]): row["coverage"] for row in rows}
    assert coverage[0, 0, 0] == coverage[16, 0, 0] == 0.5
    assert coverage[24, 0, 0] == 0.75  # moved back, so half of it is behind the hole
    assert Counter(value == 1 for value in coverage.values()) == {True: len(rows) - 5, False: 5}
    assert all(row["mean"] is not None for row in rows)


def test_where_nothing_is_real_nothing_is_said(tmp_path):
    """Coverage 0: no numbers, no features, no digest, beside a row that has them all."""
    folder = write_ome_zarr(tmp_path / "v.zarr", [voxels((16, 16, 32))], chunk=(16, 16, 16), absent=[(0, 0, 1)])
    real, absent = build_index(em.open(folder), block=16).to_pylist()
    unknown = {*NUMBERS, "digest", "features", "features_method"}
    assert absent["coverage"] == 0
    assert {name for name in unknown if absent[name] is not None} == set()
    assert {name for name in unknown if real[name] is None} == set()


def test_splits_are_of_the_blocks(holey, rows):
    """Each row's split is that of its box, and the same for whoever draws it again."""
    info = plan_index(holey, {"block": BLOCK, "margin": 4}).info
    split = info.split(holey.name)
    for row in rows:
        start = (row["start_z"], row["start_y"], row["start_x"])
        assert row["split"] == split.of(Box.from_shape(BLOCK, start))
    assert {row["split"] for row in rows} == {"train", "val", "test", None}


@pytest.mark.slow
def test_a_place_has_one_split_at_all_levels(tmp_path):
    """Blocks of a level that train are as far from those of another that judge as the margin is wide."""
    level0 = voxels((128, 128, 128))
    folder = write_ome_zarr(tmp_path / "v.zarr", [level0, np.rint(halved(level0)).astype(np.uint8)], chunk=(32,) * 3)
    rows = [row for level in (0, 1) for row in build_index(em.open(folder), block=8, level=level, margin=8).to_pylist()]
    assert {(row["level"], row["split"]) for row in rows} >= set(itertools.product((0, 1), ("train", "val", "test")))
    assert nearest_nm(rows) >= 8 * 8.0


def nearest_nm(rows: list[dict]) -> float:
    """Between blocks of different splits: the least distance along the axis where they are farthest apart."""
    starts, stops = (
        np.array([[row[f"{what}_nm_{axis}"] for axis in "zyx"] for row in rows]) for what in ("start", "stop")
    )
    names = np.array([row["split"] or "" for row in rows])
    found = []
    for name, other in itertools.permutations(("train", "val", "test"), 2):
        for start, stop in zip(starts[names == name], stops[names == name], strict=True):
            found.append(np.maximum(starts[names == other] - stop, start - stops[names == other]).max(axis=1).min())
    return min(found)


def test_a_level_has_its_own_index(holey):
    """In voxels of the level, clipped to its shape."""
    (row,) = build_index(holey, level=1).to_pylist()
    assert (row["level"], row["shape_z"], row["shape_y"], row["shape_x"]) == (1, 20, 36, 32)
    assert (row["voxel_size_z_nm"], row["voxel_size_x_nm"]) == (100.0, 16.0)
    assert row["digest"] == holey.read((0, 0, 0), shape=(20, 36, 32), level=1).digest


def test_labels_are_counted_not_averaged(tmp_path):
    """Of labels: how much is labelled and by how many, no intensities and no features."""
    labels = np.zeros((16, 16, 32), np.uint32)
    labels[:, :, 24:], labels[:4, :, 24:] = 7, 9
    folder = write_ome_zarr(tmp_path / "labels.zarr", [labels], chunk=(16, 16, 16), kind="nearest")
    first, second = build_index(em.open(folder), block=16).to_pylist()
    assert (first["content"], first["dtype"]) == ("labels", "uint32")
    assert [(row["label_fraction"], row["labels"]) for row in (first, second)] == [(0, 0), (0.5, 2)]
    assert {name for name in (*NUMBERS, "features", "features_method") if second[name] is not None} == set()
    assert second["digest"] == as_read(em.open(folder), second).digest


@pytest.mark.parametrize("read_bytes", [1, 20_000, 100_000, 2**30])
@pytest.mark.parametrize("workers", [1, 3])
def test_how_it_is_read_does_not_matter(holey, rows, monkeypatch, read_bytes, workers):
    """One block at a time or all at once, by one thread or three: the same rows in the same order."""
    monkeypatch.setattr(index_plan, "READ_BYTES", read_bytes)
    assert build_index(holey, block=BLOCK, margin=4, workers=workers).to_pylist() == rows


def test_few_blocks_are_read_together(holey, monkeypatch):
    """What is read at once stays below the bound, whatever the volume's size."""
    monkeypatch.setattr(index_plan, "READ_BYTES", 4 * 16 * 32 * 16)
    plan = plan_index(holey, {"block": BLOCK})
    bricks = [brick for layer in plan.layers() for brick in layer]
    assert max(len(brick) for brick in bricks) == 4
    assert sorted(itertools.chain(*bricks)) == list(itertools.product(range(3), range(3), range(4)))


def test_what_is_to_be_read_is_not_listed_first(holey):
    """A million blocks: the first brick takes the memory of a few."""
    plan = plan_index(holey, {"block": BLOCK})
    large = dataclasses.replace(plan.info, shape=(12_800,) * 3, block=(128,) * 3, stride=(128,) * 3)
    tracemalloc.start()
    try:
        assert next(iter(next(dataclasses.replace(plan, info=large).layers())))[0] == (0, 0, 0)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_every_chunk_is_decoded_once(tmp_path, monkeypatch):
    """Where blocks are whole chunks, whatever is read together."""
    folder = write_ome_zarr(tmp_path / "v.zarr", [voxels((64, 64, 64))], chunk=(8, 8, 8), shard=(32, 32, 32))
    fetched, fetch = Counter(), LocalChunks.fetch

    def counting(self, cells):
        fetched.update(cells)
        return fetch(self, cells)

    monkeypatch.setattr(LocalChunks, "fetch", counting)
    monkeypatch.setattr(index_plan, "READ_BYTES", 5 * 16**3)
    build_index(em.open(folder), block=16)
    assert fetched == Counter(itertools.product(range(8), repeat=3))


def test_progress_is_told(holey, rows):
    """How many blocks are done, up to all of them."""
    told: list[tuple[int, int]] = []
    build_index(holey, block=BLOCK, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (len(rows), len(rows))


def test_wide_voxels_refer_to_the_volume(tmp_path):
    """Without statistics, 16 bit voxels are placed in their type and floats in their own block."""
    wide = voxels((16, 16, 32)).astype(np.uint16)
    infos = []
    for dtype in ("uint16", "float32"):
        folder = write_ome_zarr(tmp_path / dtype, [wide.astype(dtype)], chunk=(16, 16, 16))
        infos.append(plan_index(em.open(folder), {"block": 16}).info.value_range)
        entropy = build_index(em.open(folder), block=16)["entropy_bits"].to_pylist()
    assert infos == [(0, 65535), None]
    assert min(entropy) > 4


# A user's own features.


def corner_voxels(block, valid, voxel_size_nm, value_range):
    return block[0, 0, :2].astype(np.float32) / value_range[1]


class Uneven:
    """As many numbers as it likes."""

    def __call__(self, block, valid, voxel_size_nm, value_range):
        return np.ones(int(block[0, 0, 1]) % 7 + 1)


def test_features_may_be_ones_own(holey):
    """A function's numbers and its name stand in the rows."""
    table = build_index(holey, block=BLOCK, features=corner_voxels)
    assert table["features"].type == pa.list_(pa.float32(), 2)
    row = table.to_pylist()[5]
    assert row["features"] == pytest.approx((as_read(holey, row).data[0, 0, :2] / 255).tolist())
    assert set(table["features_method"].to_pylist()) == {f"{__name__}.corner_voxels"}


def test_a_function_without_a_name_needs_one(holey):
    """Two lambdas cannot be told apart later."""

    def ones(*_):
        return np.ones(3)

    with pytest.raises(Mismatch, match="features_method"):
        build_index(holey, block=BLOCK, features=ones)
    named = build_index(holey, block=BLOCK, features=ones, features_method="ones/1")
    assert set(named["features_method"].to_pylist()) == {"ones/1"}


def test_uneven_features_are_refused(holey):
    """Blocks are compared number by number."""
    with pytest.raises(Mismatch, match="features of a block have the shape"):
        build_index(holey, block=BLOCK, features=Uneven())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({"level": 2}, "levels 0 to 1, not 2", id="level"),
        pytest.param({"margin": -1}, "margin is -1 voxels", id="margin"),
        pytest.param({"block": (16, 32)}, "the block is", id="two axes"),
        pytest.param({"block": 0}, "the block is 0", id="no voxels"),
        pytest.param({"block": 16, "stride": 17}, "would leave out voxels", id="stride"),
    ],
)
def test_nonsense_is_refused(holey, options, said):
    """With a sentence that names the volume and the value."""
    with pytest.raises(Mismatch, match=said):
        build_index(holey, **options)


# In the store.


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store with one complete dataset, whose publisher lacks 32 x 32 x 64 voxels."""
    place, volume = tmp_path_factory.mktemp("small"), voxels()
    volume[32:64, 0:32, 0:64] = 0  # the writer leaves empty chunks out, as the real service does
    publish(place / "published", volume, encoding="raw")
    with FaultyServer(place / "published") as server:
        spec = write_spec(place / "specs", server.url, crop={"seed": None, "origin": [0, 0, 0]})
        materialize(spec, quick_settings(place / "store"))
    return place / "store"


@pytest.fixture
def folder(store) -> DatasetFolder:
    folder = DatasetFolder(open_store(str(store)), "small")
    folder.store.delete("small/blocks.parquet")
    return folder


@pytest.fixture
def volume(store) -> em.Volume:
    return em.open("small", settings=quick_settings(store))


def test_the_file_is_the_index(folder, volume):
    """What lies in the store is what `build_index` makes, with the dataset's licence, publisher and digests."""
    summary = write_index(folder, volume, block=64)
    table, record = read_index(folder), folder.read_record()
    built = build_index(volume, block=64)
    assert (
        table.drop_columns(["license", "licence", "publisher"]).to_pylist()
        == built.drop_columns(["license", "licence", "publisher"]).to_pylist()
    )
    assert set(table["license"].to_pylist()) == {record.license}
    assert set(table["publisher"].to_pylist()) == {"test"}
    assert index_info(folder) == summary.info
    assert summary.info.sha256 == record.sha256
    assert (summary.path, summary.was_written) == ("blocks.parquet", True)
    assert summary.blocks == sum(summary.per_split.values()) == 27
    assert 0.9 < summary.coverage < 1


def test_volumes_of_a_dataset_are_split_alike(tmp_path):
    """A further volume of other voxels, elsewhere in the frame, keeps the margin from the main one's blocks."""
    publish(tmp_path / "published", encoding="raw")
    with FaultyServer(tmp_path / "published") as server:
        materialize(write_spec(tmp_path / "specs", server.url), quick_settings(tmp_path / "store"))
    main = DatasetFolder(open_store(str(tmp_path / "store")), "small")
    opened = em.open("small", settings=quick_settings(tmp_path / "store"))
    assert max(opened.levels[0].grid.corner_nm) > 0
    nuc, record = main.further("nuc"), main.read_record()
    at = {"voxel_size_nm": (16.0,) * 3, "corner_nm": opened.levels[0].grid.place_nm((3, 5, 8))}
    write_ome_zarr(Path(nuc.uri(nuc.volume)), [voxels((60, 64, 68))], chunk=(32,) * 3, kind="nearest", **at)
    shutil.copyfile(main.uri(main.coverage), nuc.uri(nuc.coverage))
    summary = VolumeSummary(content="labels", shape=(60, 64, 68), dtype="uint8", **at)
    main.write_record(record.model_copy(update={"volumes": {"nuc": summary}}))

    rows = []
    for folder in (main, nuc):
        volume = em.open(folder.title, settings=quick_settings(tmp_path / "store"))
        made = write_index(folder, volume, block=16, margin=8)
        assert made.info.split_grid == opened.levels[0].grid
        assert index_info(folder) == made.info
        assert made.per_split["train"] > 0 < made.per_split["test"]
        rows += read_index(folder).to_pylist()
    assert {row["name"] for row in rows} == {"small", "small/nuc"}
    assert nearest_nm(rows) >= 8 * 8.0 - 1e-3


def test_coverage_agrees_with_the_volume(folder, volume):
    """With what the volume knows without reading a voxel."""
    write_index(folder, volume, block=64)
    for row in read_index(folder).to_pylist():
        box = Box.from_shape((64, 64, 64), (row["start_z"], row["start_y"], row["start_x"]))
        assert row["coverage"] == pytest.approx(1 - volume.missing_fraction(box))
        assert (row["start_z"] <= 32 and row["start_y"] == row["start_x"] == 0) <= (row["coverage"] < 1)


def test_again_is_nothing(folder, volume, monkeypatch):
    """Nothing is read or written where nothing has changed."""
    first = write_index(folder, volume, block=64)
    file = folder.store.local_path("small/blocks.parquet")
    before = file.stat()
    monkeypatch.setattr(em.Volume, "read_many", None)
    again = write_index(folder, em.open("small", settings=quick_settings(folder.store.root)), block=64)
    assert not again.was_written
    assert file.stat() == before
    assert (again.info, again.blocks, again.per_split) == (first.info, first.blocks, first.per_split)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"block": 90}, id="block"),
        pytest.param({"stride": 60}, id="stride"),
        pytest.param({"margin": 5}, id="margin"),
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"level": 1}, id="level"),
        pytest.param({"features": corner_voxels}, id="features"),
    ],
)
def test_what_changes_is_made_again(folder, volume, changed):
    """Another grid, split or method is another index; the first one comes back the same, byte for byte."""
    write_index(folder, volume, block=96)
    data = folder.read("blocks.parquet")
    assert write_index(folder, volume, **{"block": 96} | changed).was_written
    assert folder.read("blocks.parquet") != data
    assert write_index(folder, volume, block=96).was_written
    assert folder.read("blocks.parquet") == data


def test_other_voxels_are_described_again(folder, volume):
    """The dataset was repaired: its digest is another one."""
    write_index(folder, volume, block=64)
    record = folder.read_record()
    try:
        folder.write_record(record.model_copy(update={"sha256": "0" * 64}))
        changed = em.open("small", settings=quick_settings(folder.store.root))
        assert write_index(folder, changed, block=64).was_written
        assert index_info(folder).sha256 == "0" * 64
    finally:
        folder.write_record(record)


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"nothing of the kind", b"\xff\xff\xff\x7fPAR1"])
def test_a_damaged_index_is_made_again(folder, volume, damage):
    """Reading it is an error that says what to do; writing replaces it."""
    folder.write("blocks.parquet", damage)
    with pytest.raises(Malformed, match="small_blocks"):
        read_index(folder)
    assert write_index(folder, volume, block=64).was_written
    assert read_index(folder).num_rows == 27


def test_a_parquet_file_that_is_no_index(folder):
    """It says nothing of what it was made from."""
    pq.write_table(pa.table({"split": ["train"]}), folder.store.local_path("small/blocks.parquet"))
    with pytest.raises(Malformed, match="is not the index"):
        index_info(folder)


def test_without_an_index(folder):
    """There is none: not an error."""
    assert read_index(folder) is None
    assert index_info(folder) is None


def test_only_finished_datasets_are_described(folder, volume):
    """What is being written has no blocks yet."""
    record = folder.read_record()
    try:
        folder.write_record(record.with_status("error", "for the test"))
        with pytest.raises(Mismatch, match="small is error"):
            write_index(folder, volume)
    finally:
        folder.write_record(record)
    with pytest.raises(Mismatch, match="nobody is not there"):
        write_index(DatasetFolder(folder.store, "nobody"), volume)


def test_a_failure_leaves_the_earlier_index(folder, volume):
    """The file lands whole or not at all."""
    write_index(folder, volume, block=64)
    data = folder.read("blocks.parquet")

    def failing(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_index(folder, volume, block=48, progress=failing)
    assert folder.read("blocks.parquet") == data
    assert [path for path, _ in folder.store.list("small") if "blocks" in path] == ["small/blocks.parquet"]


def test_many_row_groups_are_one_index(folder, volume, monkeypatch):
    """Rows are written as they come; they are the same however many are held."""
    write_index(folder, volume, block=32)
    whole = read_index(folder)
    folder.store.delete("small/blocks.parquet")
    monkeypatch.setattr(index, "ROW_GROUP", 10)
    write_index(folder, volume, block=32)
    assert pq.ParquetFile(folder.store.local_path("small/blocks.parquet")).num_row_groups > 5
    assert read_index(folder).equals(whole)


def test_in_a_bucket(moto_s3, store, volume):
    """On S3 the same file, of which only the end is read to see that nothing has changed."""
    local = open_store(str(store))
    folder = DatasetFolder(open_store(moto_s3), "small")
    folder.store.write("small/metadata.json", local.read("small/metadata.json"))
    assert write_index(folder, volume, block=64).was_written
    assert not write_index(folder, volume, block=64).was_written
    assert read_index(folder).num_rows == 27


# Questions.


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The table `blocks` of a volume whose second quarter is almost its first one, and whose fourth is its third."""
    level0 = voxels((32, 32, 128), seed=11)
    grain = np.random.default_rng(0).integers(-2, 3, (32, 32, 32))
    level0[:, :, 32:64] = np.clip(level0[:, :, :32].astype(int) + grain, 1, 254)
    level0[:, :, 96:] = level0[:, :, 64:96]
    place = tmp_path_factory.mktemp("similar")
    tables = []
    for name, data in {"it's": level0, "other": voxels((32, 32, 64), seed=4)}.items():
        folder = write_ome_zarr(place / name, [data], chunk=(32, 32, 32))
        tables.append(build_index(em.open(folder), block=32))
    connection = duckdb.connect()
    rows = pa.concat_tables(tables)  # noqa: F841  # DuckDB finds it by its name
    connection.execute("create table blocks as select * from rows")
    yield connection
    connection.close()


def asked(database: duckdb.DuckDBPyConnection, sql: str) -> list[dict]:
    found = database.execute(sql)
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def test_blocks_like_this_one(database):
    """The nearest is the near-duplicate, never the block itself."""
    first, *others = asked(database, similar_sql("it's", 0, limit=3))
    assert (first["name"], first["id"]) == ("it's", 1)
    assert len(others) == 2
    assert 0 < first["distance"] < others[0]["distance"] <= others[1]["distance"]
    assert ("it's", 0) not in {(row["name"], row["id"]) for row in (first, *others)}


def test_distances_are_of_the_features(database):
    """Euclidean, of the 64 numbers."""
    features = dict(database.execute("select id, features from blocks where name = 'it''s'").fetchall())
    nearest = asked(database, similar_sql("it's", 0, limit=1))[0]
    expected = np.linalg.norm(np.array(features[0]) - np.array(features[nearest["id"]]))
    assert len(features[0]) == LENGTH
    assert nearest["distance"] == pytest.approx(expected, rel=1e-5)


def test_near_duplicates_in_one_query(database):
    """All pairs within a distance: the exact copy and the near one."""
    pairs = database.execute(near_duplicates_sql(0.095)).fetchall()
    assert [(pair[0], pair[1], pair[3]) for pair in pairs] == [("it's", 2, 3), ("it's", 0, 1)]
    assert pairs[0][-1] == 0


def test_exact_duplicates_share_a_digest(database):
    """Equal voxels, equal digest: no distance is needed."""
    sql = "select list(id order by id) from blocks group by digest having count(*) > 1"
    assert database.execute(sql).fetchall() == [([2, 3],)]


def test_blocks_of_another_method_are_not_compared(database):
    """Their numbers mean something else."""
    with database.cursor() as cursor:
        cursor.execute("begin")
        cursor.execute("update blocks set features_method = 'other/1', features = null where name = 'other'")
        found = asked(cursor, similar_sql("it's", 0, limit=50))
        cursor.execute("rollback")
    assert {row["name"] for row in found} == {"it's"}


def test_overlapping_blocks_are_no_duplicates(tmp_path):
    """Neighbours of an overlapping grid are alike because they are the same voxels."""
    folder = write_ome_zarr(tmp_path / "v", [voxels((32, 32, 96))], chunk=(32, 32, 32))
    rows = build_index(em.open(folder), block=32, stride=8)  # noqa: F841  # DuckDB finds it by its name
    pairs = duckdb.sql(near_duplicates_sql(9.0, table="rows")).fetchall()
    starts = [8 * number for number in range(9)]
    assert sorted((pair[1], pair[3]) for pair in pairs) == [
        (a, b) for a, b in itertools.combinations(range(9), 2) if starts[b] - starts[a] >= 32
    ]
