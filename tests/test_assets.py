"""The Dagster side, in process: what a run materializes, what its failure leaves, what checks stop."""

import base64
import json
import os
import re
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from em_assets.definitions import build_defs
from em_assets.records import VOLUME, DatasetFolder
from em_assets.store import LocalStore
from faulty import Fault, FaultyServer
from small import CROP_SHAPE, publish, quick_settings, write_spec

KEYS = [f"z{z:03d}_y{y:03d}_x{x:03d}" for z in range(3) for y in range(3) for x in range(3)]
CHUNKS = dg.AssetKey("small_chunks")
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    publish(folder)
    return folder


@pytest.fixture
def origin(published):
    with FaultyServer(published) as server:
        yield server


class Location:
    """One code location over a store of its own, and a history."""

    def __init__(self, tmp_path: Path, url: str) -> None:
        self.spec = write_spec(tmp_path / "specs", url)
        self.note = tmp_path / "note"
        self.settings = quick_settings(tmp_path / "store", datasets=str(tmp_path / "specs"))
        self.instance = dg.DagsterInstance.ephemeral(tempdir=str(tmp_path))
        self.folder = DatasetFolder(LocalStore(tmp_path / "store"), "small")

    def run(self, *names: str, partitions: tuple[str, str] | None = None) -> dg.ExecuteInProcessResult:
        job = build_defs(settings=self.settings).resolve_implicit_global_asset_job_def()
        tags = dict(zip((RANGE_START, RANGE_END), partitions, strict=True)) if partitions else {}
        return job.execute_in_process(
            asset_selection=[dg.AssetKey(name) for name in names],
            instance=self.instance,
            raise_on_error=False,
            tags=tags,
        )

    def statuses(self) -> dict[str, str]:
        status = self.instance.get_status_by_partition(
            CHUNKS, KEYS, build_defs(settings=self.settings).resolve_assets_def(CHUNKS).partitions_def
        )
        return {key: value.value for key, value in (status or {}).items() if value is not None}


@pytest.fixture
def location(tmp_path, origin, monkeypatch):
    monkeypatch.setenv("EM_ASSETS_RUN_NOTE", str(tmp_path / "note"))
    return Location(tmp_path, origin.url)


def check_results(result) -> dict[str, bool]:
    return {item.check_name: item.passed for item in result.get_asset_check_evaluations()}


def test_one_name_does_the_whole_job(location):
    """Materializing the dataset alone materializes every partition, runs every check, and leaves a catalogue."""
    import duckdb

    result = location.run("small")
    assert result.success
    assert location.instance.get_materialized_partitions(CHUNKS) == set(KEYS)
    assert set(check_results(result).values()) == {True}
    assert {"shape", "dtype", "voxel_size", "completeness", "checksums", "source_voxels", "pyramid"} <= set(
        check_results(result)
    )
    with duckdb.connect(str(location.settings.root) + "/metadata.duckdb", read_only=True) as connection:
        rows = connection.sql("select name, status from datasets").fetchall()
    assert rows == [("small", "complete")]


def test_a_second_run_materializes_no_partition_again(location, origin):
    """The history gets no second event for what was not fetched; the data version stays."""
    location.run("small")
    before = origin.requests
    location.run("small")
    assert origin.requests == before
    events = location.instance.fetch_materializations(CHUNKS, limit=200).records
    assert len(events) == len(KEYS)
    versions = [
        record.asset_materialization.tags["dagster/data_version"]
        for record in location.instance.fetch_materializations(dg.AssetKey("small"), limit=10).records
    ]
    assert len(versions) == 2 and len(set(versions)) == 1


@pytest.mark.slow
def test_a_fresh_history_over_a_full_store_learns_the_partitions(location, origin, tmp_path):
    """The store is the truth: a new history shows what is stored, without a request."""
    location.run("small")
    before = origin.requests
    location.instance = dg.DagsterInstance.ephemeral(tempdir=str(tmp_path))
    location.run("small")
    assert location.instance.get_materialized_partitions(CHUNKS) == set(KEYS)
    assert origin.requests == before


def test_one_partition_alone(location):
    """A single region can be fetched; the dataset is then unfinished and says so."""
    assert location.run("small_chunks", partitions=(KEYS[4], KEYS[4])).success
    assert location.instance.get_materialized_partitions(CHUNKS) == {KEYS[4]}
    record = location.folder.read_record()
    assert record.status == "interrupted" and "1 of 27" in record.status_reason


def test_a_range_then_the_dataset_fetches_the_rest(location):
    """The dataset takes what the partitioned asset has left."""
    assert location.run("small_chunks", partitions=(KEYS[0], KEYS[9])).success
    result = location.run("small")
    assert result.success
    metadata = result.asset_materializations_for_node("small")[-1].metadata
    assert metadata["partitions_fetched"].value == 17


def test_partial_failure_marks_the_good_and_names_the_bad(location, origin):
    """Good partitions are MATERIALIZED, only the bad FAILED; the sentence reaches the note; healing is one run."""
    origin.fail = lambda path, range_header, count: Fault(status=500) if path.endswith("3.shard") else None
    result = location.run("small_chunks", partitions=(KEYS[0], KEYS[-1]))
    assert not result.success
    statuses = location.statuses()
    bad = {key for key, status in statuses.items() if status == "FAILED"}
    assert 0 < len(bad) < 27
    assert {status for key, status in statuses.items() if key not in bad} == {"MATERIALIZED"}
    assert f"{len(bad)} of 27 partitions could not be fetched" in location.note.read_text()
    origin.fail = lambda path, range_header, count: None
    assert location.run("small_chunks", partitions=(KEYS[0], KEYS[-1])).success
    assert set(location.statuses().values()) == {"MATERIALIZED"}


def test_a_failing_dataset_leaves_its_row(tmp_path, monkeypatch):
    """Publisher gone: the run fails in one sentence, and the catalogue has the row with that reason."""
    import duckdb

    monkeypatch.setenv("EM_ASSETS_RUN_NOTE", str(tmp_path / "note"))
    location = Location(tmp_path, "http://127.0.0.1:9")
    result = location.run("small")
    assert not result.success
    sentence = location.note.read_text().strip().splitlines()[-1]
    failure = result.failure_data_for_node("small").user_failure_data
    assert failure.description == sentence
    with duckdb.connect(str(tmp_path / "store" / "metadata.duckdb"), read_only=True) as connection:
        rows = connection.sql("select name, status, status_reason from datasets").fetchall()
    assert rows == [("small", "error", sentence)]


def test_a_red_blocking_check_stops_what_lies_downstream(location):
    """A damaged shard: the run fails, the metadata asset is not run, the record and the note say why."""
    location.run("small")
    file = Path(location.folder.uri(f"{VOLUME}/0/c/1/1/1"))
    stat = file.stat()
    data = bytearray(file.read_bytes())
    data[777] ^= 4
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    result = location.run("small", "small_metadata")
    assert not result.success
    assert check_results(result)["checksums"] is False
    assert result.asset_materializations_for_node("small_metadata") == []
    assert location.folder.read_record().status == "error"
    assert "checksums failed" in location.note.read_text()
    healed = location.run("small", "small_metadata")
    assert healed.success and len(healed.asset_materializations_for_node("small_metadata")) == 1


def test_checks_show_expected_and_found(location):
    """Pass or fail, each check carries the numbers."""
    result = location.run("small")
    for evaluation in result.get_asset_check_evaluations():
        for word in ("expected", "found"):
            assert any(key.startswith(word) for key in evaluation.metadata), evaluation.check_name
        assert evaluation.description


def test_what_the_ui_shows_of_a_dataset(location):
    """Shape, voxel size, bytes, rate, a link, and a small preview: only when bytes changed."""
    metadata = location.run("small").asset_materializations_for_node("small")[-1].metadata
    assert metadata["shape (z, y, x)"].value == "130 x 140 x 150"
    assert metadata["voxel_size_nm (z, y, x)"].value == "8.0 x 8.0 x 8.0"
    assert metadata["received_MB_per_second"].value > 0
    assert metadata["neuroglancer at the publisher"].value.startswith("https://")
    picture = base64.b64decode(re.search(r"base64,([^)]+)\)", metadata["preview"].value)[1])
    assert picture.startswith(b"\x89PNG") and len(picture) <= 50_000
    again = location.run("small").asset_materializations_for_node("small")[-1].metadata
    assert "preview" not in again


def test_definitions_say_what_each_asset_is(location):
    """Groups, kinds, owners, descriptions, code references, dependencies and automation, for every asset."""
    defs = build_defs(settings=location.settings)
    dg.Definitions.validate_loadable(defs)
    found = {
        spec.key.to_user_string(): (
            sorted(dep.asset_key.to_user_string() for dep in spec.deps),
            spec.group_name,
            sorted(spec.kinds),
            list(spec.owners),
            spec.automation_condition is not None,
            "dagster/code_references" in spec.metadata,
        )
        for spec in defs.resolve_all_asset_specs()
    }
    team = ["team:em_assets"]
    assert found == {
        "small_chunks": ([], "test", ["precomputed", "zarr"], team, False, True),
        "small": (["small_chunks"], "test", ["ome", "zarr"], team, True, True),
        "small_metadata": (["small"], "test", ["parquet"], team, True, True),
        "small_blocks": (["small"], "test", ["parquet"], team, True, True),
        "small_portal": (["small"], "test", ["json", "mrc", "zarr"], team, False, True),
        "metadata_catalog": (["small_blocks", "small_metadata"], "catalog", ["duckdb"], team, True, False),
        "metadata_exports": (["metadata_catalog"], "catalog", ["csv", "json", "parquet"], team, True, False),
        "metadata_summary": (["metadata_catalog"], "catalog", ["markdown"], team, True, False),
        "ro_crates": (["metadata_catalog"], "catalog", ["json"], team, True, False),
        "croissants": (["metadata_catalog"], "catalog", ["json"], team, True, False),
    }


def test_the_metadata_asset_keeps_what_the_publisher_states(location):
    """claims.parquet has every value of `info`, each with its document and address."""
    import pyarrow.parquet as pq

    assert location.run("small", "small_metadata", "metadata_catalog").success
    rows = {row["key"]: row for row in pq.read_table(location.folder.uri("claims.parquet")).to_pylist()}
    assert rows["/data_type"]["value_text"] == "uint8"
    assert rows["/scales/0/size/0"]["value_number"] == 190
    assert json.loads(location.folder.read(rows["/data_type"]["document"]))["data_type"] == "uint8"


def test_downstream_assets_get_regions_or_the_whole_lazily(location):
    """The I/O manager: one key gives its (z, y, x) array, an unpartitioned consumer the lazy zarr array."""
    import zarr

    location.run("small")
    defs = build_defs(settings=location.settings)
    partitions = defs.resolve_assets_def(CHUNKS).partitions_def
    seen = {}

    @dg.asset(partitions_def=partitions)
    def block_mean(small_chunks) -> None:
        seen["block"] = small_chunks

    @dg.asset
    def whole(small) -> None:
        seen["whole"] = small

    extended = dg.Definitions.merge(defs, dg.Definitions([block_mean, whole]))
    job = extended.resolve_implicit_global_asset_job_def()
    job.execute_in_process(asset_selection=[block_mean.key], instance=location.instance, partition_key=KEYS[-1])
    job.execute_in_process(asset_selection=[whole.key], instance=location.instance)
    assert isinstance(seen["whole"], zarr.Array) and seen["whole"].shape == CROP_SHAPE
    assert np.array_equal(seen["block"], seen["whole"][128:, 128:, 128:])


def test_the_io_manager_writes_what_it_reads(location):
    """Write, read back, write again, read back; several keys as a mapping; wrong keys are refused."""
    defs = build_defs(settings=location.settings)
    manager = defs.resources["zarr_regions"]
    partitions = defs.resolve_assets_def(CHUNKS).partitions_def

    def output(key):
        return dg.build_output_context(asset_key=CHUNKS, asset_partitions_def=partitions, partition_key=key)

    def read(key):
        context = dg.build_input_context(
            asset_key=CHUNKS, asset_partitions_def=partitions, asset_partition_key_range=dg.PartitionKeyRange(key, key)
        )
        return manager.load_input(context)

    for value in (7, 9):
        block = np.full((64, 64, 64), value, np.uint8)
        manager.handle_output(output(KEYS[0]), block)
        assert np.array_equal(read(KEYS[0]), block)
        assert location.folder.read_record().status == "interrupted"
    with pytest.raises(Exception, match="z000_y000_x001"):
        manager.handle_output(output(KEYS[0]), {"z000_y000_x001": block})


@pytest.mark.slow
def test_an_s3_root_works_through_dagster_too(tmp_path, origin, moto_s3):
    """The same job on S3: complete, checked, catalogued."""
    location = Location(tmp_path, origin.url)
    location.settings = location.settings.model_copy(update={"root": moto_s3, "cache": tmp_path / "cache"})
    result = location.run("small")
    assert result.success and set(check_results(result).values()) == {True}


def test_a_preview_is_shown_when_the_dataset_only_finishes(location):
    """Chunks first, then the dataset: the picture belongs to the run that made it."""
    assert location.run("small_chunks", partitions=(KEYS[0], KEYS[-1])).success
    metadata = location.run("small").asset_materializations_for_node("small")[-1].metadata
    assert metadata["partitions_fetched"].value == 0
    assert "preview" in metadata


def test_a_sensor_never_starts_a_download(location, origin):
    """A run of the sensor finishes what is here; with partitions missing it fails, and asks nobody."""
    job = build_defs(settings=location.settings).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        asset_selection=[dg.AssetKey("small")],
        instance=location.instance,
        raise_on_error=False,
        tags={"dagster/sensor_name": "follow_the_data"},
    )
    assert not result.success
    assert "only a person starts a download" in location.note.read_text()
    assert origin.requests == 0


def test_the_sensor_waits_for_red_checks(location):
    """After a red blocking check neither the metadata nor the catalogue is requested by their conditions."""
    assert location.run("small").success
    file = Path(location.folder.uri(f"{VOLUME}/0/c/0/0/0"))
    file.write_bytes(bytes(file.stat().st_size))
    assert not location.run("small").success
    defs = build_defs(settings=location.settings)
    evaluated = dg.evaluate_automation_conditions(defs=defs, instance=location.instance)
    assert evaluated.get_num_requested(dg.AssetKey("small_metadata")) == 0
    assert evaluated.get_num_requested(dg.AssetKey("metadata_catalog")) == 0


def test_a_given_storage_serves_every_part(location, tmp_path):
    """`build_defs(resources={"storage": ...})`: the assets and the I/O manager use that store."""
    from em_assets.resources.storage import Storage

    other = Storage(root=str(tmp_path / "other"))
    defs = build_defs(settings=location.settings, resources={"storage": other})
    assert defs.resources["storage"].root == other.root
    assert defs.resources["zarr_regions"].storage.root == other.root


@pytest.mark.slow
@pytest.mark.parametrize(
    "expected",
    [{"source_shape": [150, 170, 191]}, {"sha256": "0" * 64}, {"file_size_bytes": 123}],
    ids=["shape", "checksum", "size"],
)
def test_a_changed_expectation_stops_what_lies_downstream(location, tmp_path, origin, expected):
    """One digit changed after the fact: a blocking check is red, and the metadata asset is not run."""
    assert location.run("small").success
    write_spec(tmp_path / "specs", origin.url, expected=expected)
    result = location.run("small", "small_metadata")
    assert not result.success
    assert False in check_results(result).values()
    assert result.asset_materializations_for_node("small_metadata") == []
    assert location.folder.read_record().status == "error"
