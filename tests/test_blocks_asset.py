"""The asset `<name>_blocks`: what a run leaves, what its checks find, what follows what."""

import json
import shutil
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em_assets.assets import Platform, build_catalog_asset, build_dataset_assets
from em_assets.blocks.index import write_index
from em_assets.blocks.opening import open as open_volume
from em_assets.catalog.block_indexes import index_path
from em_assets.catalog.query import query
from em_assets.checks import blocks as checks
from em_assets.definitions import build_defs
from em_assets.records import VOLUME, DatasetFolder, VolumeSummary
from em_assets.store import LocalStore
from faulty import FaultyServer
from small import materialize, publish, quick_settings, voxels, write_spec
from test_catalog_volumes import files_spec

BLOCK, MARGIN = 32, 8
"""Of the indexes that the checks are tried on: small blocks, so that there are 125 of them and every split."""
HOLE = (slice(32, 64), slice(0, 32), slice(64, 128))
"""What the publisher does not have, in the publisher's voxels."""


def is_meant(row: dict, which: str) -> bool:
    """`all`, an id, `whole` or `part` (of it is real), a split or `margin`."""
    return which in ("all", str(row["id"]), "whole" if row["coverage"] == 1 else "part", row["split"] or "margin")


class Stored:
    """A complete dataset, part of which its publisher does not have, and one code location."""

    def __init__(self, root: Path, instance_folder: Path) -> None:
        self.root = root
        self.settings = quick_settings(root / "store", datasets=str(root / "specs"))
        self.folder = DatasetFolder(LocalStore(root / "store"), "small")
        self.instance = dg.DagsterInstance.ephemeral(tempdir=str(instance_folder))
        self.index_file = Path(self.folder.uri(index_path(None)))

    def volume(self):
        return open_volume("small", settings=self.settings)

    def run(self, *names: str) -> dg.ExecuteInProcessResult:
        job = build_defs(settings=self.settings).resolve_implicit_global_asset_job_def()
        keys = [dg.AssetKey(name) for name in names]
        return job.execute_in_process(asset_selection=keys, instance=self.instance, raise_on_error=False)

    def ask(self, sql: str) -> list[tuple]:
        return query(self.root / "store/metadata.duckdb", sql).rows

    def index(self) -> None:
        """The index of small blocks, which the checks are tried on."""
        write_index(self.folder, self.volume(), block=BLOCK, margin=MARGIN)

    def change(self, column: str, which: str, value) -> None:
        """Writes a value of the index's first such row anew (or of all); all else, and what it states, stays."""
        table = pq.read_table(self.index_file)
        values = table[column].to_pylist()
        rows = [number for number, row in enumerate(table.to_pylist()) if is_meant(row, which)]
        for number in rows if which == "all" else rows[:1]:
            values[number] = value
        at = table.schema.get_field_index(column)
        pq.write_table(
            table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), self.index_file
        )

    def check(self, *names: str) -> dict[str, checks.CheckOutcome]:
        outcomes = checks.check_indexes([self.folder], self.settings, names or checks.OF_INDEXES)
        return {outcome.name: outcome for outcome in outcomes}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stored")
    volume = voxels()
    volume[HOLE] = 0
    publish(root / "published", volume, sharding=None)
    with FaultyServer(root / "published") as server:
        spec = write_spec(root / "specs", server.url, crop={"seed": None, "origin": [0, 0, 0]})
        materialize(spec, quick_settings(root / "store"))
    return root


@pytest.fixture
def stored(whole, tmp_path, monkeypatch) -> Stored:
    for part in ("specs", "store"):
        shutil.copytree(whole / part, tmp_path / part)
    monkeypatch.setenv("EM_ASSETS_RUN_NOTE", str(tmp_path / "note"))
    return Stored(tmp_path, tmp_path)


@pytest.fixture
def indexed(stored) -> Stored:
    stored.index()
    return stored


def results(run: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {item.check_name: item.passed for item in run.get_asset_check_evaluations()}


def test_its_name_alone_leaves_the_rows(stored):
    """One asset: the index in the store, its rows in the catalogue, every check green and kept, the UI's numbers."""
    run = stored.run("small_blocks")
    assert run.success
    assert results(run) == dict.fromkeys(checks.OF_INDEXES, True)
    rows = stored.ask("select name, license, publisher, content, split from blocks order by id")
    assert rows == [("small", "CC-BY-4.0", "test", "image", "train")] * 8
    hole = 32 * 32 * 64
    assert stored.ask("select sum((1 - coverage) * 128^3)::int from blocks where id = 0") == [(hole,)]
    kept = stored.ask("select check_name, passed, blocking from checks where check_name like 'block_%' order by all")
    assert {(name, True, name in checks.BLOCKING) for name in checks.OF_INDEXES} == set(kept)
    metadata = run.asset_materializations_for_node("small_blocks")[-1].metadata
    assert (metadata["blocks"].value, metadata["blocks in train"].value) == (8, 8)
    assert metadata["coverage"].value < 1
    assert metadata["contact sheet"].value.startswith("![blocks](data:image/png;base64,")
    assert len(metadata["contact sheet"].value) < 70_000


def test_a_second_run_changes_nothing(stored):
    """The index is what it was, byte for byte; no picture goes into the history again; the data version stays."""
    stored.run("small_blocks")
    before = stored.index_file.read_bytes()
    again = stored.run("small_blocks").asset_materializations_for_node("small_blocks")[-1]
    assert stored.index_file.read_bytes() == before
    assert "contact sheet" not in again.metadata
    versions = {
        record.asset_materialization.tags["dagster/data_version"]
        for record in stored.instance.fetch_materializations(dg.AssetKey("small_blocks"), limit=10).records
    }
    assert len(versions) == 1


def test_only_what_is_complete_has_blocks(stored):
    """A dataset that is not finished: the run fails in one sentence and nothing is read from its publisher."""
    stored.folder.write_record(stored.folder.read_record().with_status("error", "for a reason"))
    assert not stored.run("small_blocks").success
    assert "small is error, so nobody knows its blocks; materialize small first." in (stored.root / "note").read_text()
    assert not stored.index_file.exists()


def add_labels(stored: Stored) -> DatasetFolder:
    """The same voxels again as a further volume of labels: (its folder)."""
    labels = stored.folder.further("nuc")
    main, further = Path(stored.folder.uri(VOLUME)), Path(labels.uri(labels.volume))
    shutil.copytree(main, further)
    shutil.copyfile(stored.folder.uri(stored.folder.coverage), labels.uri(labels.coverage))
    record = stored.folder.read_record()
    same = {name: getattr(record, name) for name in ("dtype", "voxel_size_nm", "corner_nm", "coverage_sha256")}
    summary = VolumeSummary(content="labels", shape=record.volume_shape, **same)
    stored.folder.write_record(record.model_copy(update={"volumes": {"nuc": summary}}))
    return labels


def test_every_volume_is_indexed(stored):
    """A further volume of labels has an index of its own, without features; each check looks at both."""
    labels = add_labels(stored)
    run = stored.run("small_blocks")
    assert run.success and results(run) == dict.fromkeys(checks.OF_INDEXES, True)
    assert Path(labels.uri(index_path("nuc"))).exists()
    rows = stored.ask(
        "select name, content, count(*), count(features), count(mean), min(label_fraction) from blocks "
        "group by all order by 1"
    )
    assert [row[:5] for row in rows] == [("small", "image", 8, 8, 8), ("small/nuc", "labels", 8, 0, 0)]
    assert rows[1][5] == 1.0  # of what is real nothing is 0
    metadata = run.asset_materializations_for_node("small_blocks")[-1].metadata
    assert (metadata["blocks"].value, metadata["nuc: blocks"].value) == (8, 8)
    evaluated = {item.check_name: item for item in run.get_asset_check_evaluations()}
    assert evaluated["block_digests"].description.startswith("in each of 2 volumes")


def test_a_wrong_index_is_removed_alone(stored):
    """What is wrong with one volume's index is told with its name; the other's stays."""
    labels = add_labels(stored)
    stored.run("small_blocks")
    wrong = Path(labels.uri(index_path("nuc")))
    wrong.write_bytes(b"PAR1")
    outcomes = {o.name: o for o in checks.check_indexes([stored.folder, labels], stored.settings, ["block_grid"])}
    assert not outcomes["block_grid"].passed
    assert outcomes["block_grid"].message.startswith(f"small/nuc: {wrong} is not the index")
    assert stored.index_file.exists() and not wrong.exists()


# What the checks find


@pytest.mark.parametrize("name", checks.OF_INDEXES)
def test_a_sound_index_passes(indexed, name):
    """125 blocks of all splits with a hole among them: each check looks at something and finds it right."""
    outcome = indexed.check(name)[name]
    assert outcome.passed, outcome.message
    assert outcome.found and outcome.expected and outcome.message
    assert indexed.index_file.exists()


DAMAGE = {
    "a start that is off": ("start_x", "7", 33, {"block_grid"}),
    "a start outside": ("start_z", "124", 1000, {"block_grid"}),
    "a shape": ("shape_y", "3", 31, {"block_grid"}),
    "no shape": ("shape_y", "3", 0, {"block_grid"}),
    "an id twice": ("id", "5", 4, {"block_grid"}),
    "another level": ("level", "5", 1, {"block_grid"}),
    "a level that is not there": ("level", "all", 7, {"block_grid"}),
    "another place": ("start_nm_y", "9", 1.0, {"block_grid"}),
    "no place": ("stop_nm_x", "9", float("nan"), {"block_grid"}),
    "another digest": ("digest", "all", "sha256:00", {"block_digests"}),
    "no digest": ("digest", "all", None, {"block_digests"}),
    "a whole block that is said to have a hole": ("coverage", "whole", 0.5, {"block_coverage"}),
    "a hole that is not told": ("coverage", "part", 1.0, {"block_coverage"}),
    "coverage that is no number": ("coverage", "whole", float("nan"), {"block_coverage", "block_numbers"}),
    "no coverage": ("coverage", "part", None, {"block_coverage"}),
    "a split that touches another": ("split", "val", "train", {"block_splits"}),
    "a block of the margin that validates": ("split", "margin", "val", {"block_splits"}),
    "a split that nobody knows": ("split", "0", "holdout", {"block_splits"}),
}


@pytest.mark.parametrize(("column", "which", "value", "found_by"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_wrong_is_found_and_removed(indexed, column, which, value, found_by):
    """Whatever a consumer relies on: the check that is there for it is red, names the file, and the index is gone."""
    indexed.change(column, which, value)
    outcomes = indexed.check()
    assert found_by <= {name for name, outcome in outcomes.items() if not outcome.passed}
    assert all(str(indexed.index_file) in outcomes[name].message for name in found_by)
    assert not indexed.index_file.exists()


NUMBERS = {
    "not a number": ("mean", float("nan"), "mean is not finite"),
    "infinite": ("sharpness", float("inf"), "sharpness is not finite"),
    "more than all": ("saturation", 1.5, "saturation is not between 0 and 1"),
    "less than nothing": ("zero_fraction", -0.1, "zero_fraction is not between 0 and 1"),
    "percentiles that do not ascend": ("p05", 300.0, "p05 is more than p50"),
    "a feature that is not a number": ("features", [float("nan")] * 64, "a feature is not finite"),
}


@pytest.mark.parametrize(("column", "value", "told"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_that_make_no_sense_are_a_warning(indexed, column, value, told):
    """Places, digests and splits are right all the same: the index stays, the check says how many and what."""
    indexed.change(column, "3", value)
    outcomes = indexed.check()
    assert {name for name, outcome in outcomes.items() if not outcome.passed} == {"block_numbers"}
    assert f"1 times {told}" in outcomes["block_numbers"].message
    assert "block_numbers" not in checks.BLOCKING and indexed.index_file.exists()


def test_what_is_not_known_is_no_problem(indexed):
    """A block without a real voxel has no numbers."""
    for column in ("mean", "p05", "sharpness", "features"):
        indexed.change(column, "3", None)
    assert indexed.check("block_numbers")["block_numbers"].passed


@pytest.mark.slow
@pytest.mark.parametrize("stride", [BLOCK, 20], ids=["side by side", "overlapping"])
@pytest.mark.parametrize("seed", range(3))
def test_splits_are_compared_as_by_hand(stored, stride, seed):
    """The check's count of pairs that are too near is that of comparing every block with every other one."""
    write_index(stored.folder, stored.volume(), block=BLOCK, stride=stride, margin=MARGIN)
    table = pq.read_table(stored.index_file)
    drawn = np.random.default_rng(seed).choice(np.array(["train", "val", "test", None]), table.num_rows)
    at = table.schema.get_field_index("split")
    pq.write_table(
        table.set_column(at, table.schema.field(at), pa.array(drawn.tolist(), pa.string())), stored.index_file
    )
    starts = np.stack([table[f"start_{axis}"].to_numpy() for axis in "zyx"], axis=1)
    gaps = np.abs(starts[:, None] - starts[None]) - BLOCK
    is_near = (gaps < MARGIN).all(axis=2)
    known = drawn != np.array(None)
    differ = (drawn[:, None] != drawn[None]) & known[:, None] & known[None]
    outcome = stored.check("block_splits")["block_splits"]
    assert outcome.found["pairs_nearer_than_the_margin"] == np.triu(is_near & differ, 1).sum() > 0


def test_an_index_of_another_state_is_none(indexed):
    """After the dataset has changed, its old index is red in every check, out of the catalogue, and made again."""
    record = indexed.folder.read_record()
    indexed.folder.write_record(record.model_copy(update={"sha256": "0" * 64}))
    outcomes = indexed.check()
    assert {outcome.passed for outcome in outcomes.values()} == {False}
    assert "it is of the volume as it was before" in outcomes["block_grid"].message
    assert indexed.run("small_blocks").success


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"x" * 1000], ids=["empty", "short", "nonsense"])
def test_what_cannot_be_read_is_red_and_goes(indexed, damage):
    """No exception, but a sentence in each check; then nobody takes it for an index."""
    indexed.index_file.write_bytes(damage)
    outcomes = indexed.check()
    assert {outcome.passed for outcome in outcomes.values()} == {False}
    assert not indexed.index_file.exists()


def test_a_damaged_volume_is_found_by_its_digests(indexed):
    """Voxels that changed after they were indexed, or can no longer be read, are not what the digests say."""
    for file in sorted(Path(indexed.folder.uri(VOLUME), "0/c").rglob("*")):
        if file.is_file():
            data = bytearray(file.read_bytes())
            data[1000:-1000:2000] = bytes(len(data[1000:-1000:2000]))
            file.write_bytes(data)
    outcome = indexed.check("block_digests")["block_digests"]
    assert not outcome.passed


@pytest.mark.slow
def test_a_red_check_fails_the_run_and_leaves_no_rows(stored):
    """What trusts the index never sees it: the run fails with the sentence, the catalogue has no block, others wait."""
    assert stored.run("small_blocks").success
    stored.change("split", "all", "holdout")
    run = stored.run("small_blocks", "metadata_catalog")
    assert not run.success
    assert results(run)["block_splits"] is False
    assert run.asset_materializations_for_node("metadata_catalog") == []
    assert stored.ask("select count(*) from blocks") == [(0,)]
    assert "small: check block_splits failed: " in (stored.root / "note").read_text()
    assert stored.run("small_blocks", "metadata_catalog").success
    assert stored.ask("select count(*) from blocks") == [(8,)]


# What follows what


@pytest.mark.slow
def test_they_follow_the_dataset(stored):
    """In `dagster dev`: after the dataset its blocks, after these the catalogue and the exports; then nothing."""
    defs = build_defs(settings=stored.settings)
    exports = {"metadata_exports", "metadata_summary", "ro_crates", "croissants"}
    cursor = None

    def tick() -> set[str]:
        nonlocal cursor
        evaluated = dg.evaluate_automation_conditions(defs=defs, instance=stored.instance, cursor=cursor)
        cursor = evaluated.cursor
        keys = {result.key for result in evaluated.results if isinstance(result.key, dg.AssetKey)}
        return {key.to_user_string() for key in keys if evaluated.get_num_requested(key)}

    assert tick() == set()
    assert stored.run("small").success
    assert tick() == {"small_metadata", "small_blocks", "metadata_catalog"} | exports
    assert stored.run("small_metadata", "small_blocks", "metadata_catalog", *exports).success
    assert tick() == set()
    assert stored.run("small_blocks").success
    assert tick() == {"metadata_catalog"} | exports
    assert json.loads(stored.folder.read("croissant.json"))["distribution"][0]["@id"] == "blocks.parquet"


def test_everything_downstream_is_one_selection(stored):
    """`--select small+` makes blocks, catalogue and exports; `--select small` none of them."""
    defs = build_defs(settings=stored.settings)
    graph = defs.resolve_asset_graph()
    below = dg.AssetSelection.assets("small").downstream().resolve(graph)
    names = {key.to_user_string() for key in below}
    assert {"small_blocks", "metadata_catalog", "croissants"} <= names
    run = stored.run("small")
    assert run.success and run.asset_materializations_for_node("small") != []
    assert not stored.index_file.exists()


def test_a_dataset_without_a_volume_has_no_blocks(stored):
    """Where only the publisher's files are kept, nothing is standardized, so there is nothing to index."""
    for spec, has_blocks in ((files_spec(keep="original", volumes={}), False), (files_spec(), True)):
        platform = Platform(stored.settings, {spec.name: spec})
        assets, _ = build_dataset_assets(spec, platform)
        keys = {asset.key.to_user_string() for asset in assets}
        upstream = {
            key.to_user_string() for key in build_catalog_asset(platform).asset_deps[dg.AssetKey("metadata_catalog")]
        }
        assert (f"{spec.name}_blocks" in keys, f"{spec.name}_blocks" in upstream) == (has_blocks, has_blocks)


def test_an_s3_root_works_too(stored, moto_s3, tmp_path):
    """The same on S3: the index lies in the bucket, is checked there, and is in the catalogue."""
    from em_assets.store import open_store

    store = open_store(moto_s3)
    for path, _ in list(stored.folder.store.list("small")):
        store.write(path, stored.folder.store.read(path))
    stored.settings = stored.settings.model_copy(update={"root": moto_s3, "cache": tmp_path / "cache"})
    run = stored.run("small_blocks", "metadata_catalog")
    assert run.success and results(run) == dict.fromkeys(checks.OF_INDEXES, True)
    assert run.asset_materializations_for_node("metadata_catalog")[-1].metadata["blocks"].value == 8
