"""IDR, EMPIAR, EPFL and OpenOrganelle through Dagster: assets, partitions, checks, what a person sees of them."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from conftest import ROOT
from em_assets.checks.volume import checks_of
from em_assets.definitions import build_defs
from em_assets.originals import file_paths
from em_assets.partitions import explain_arguments, received_asset
from em_assets.pipeline.state import partition_keys
from em_assets.sample.origin import dagster_yaml
from faulty import Fault
from published import EMPIAR, EPFL, IDR, JRC, MODULES, ODD, Publishers, write_once

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
SLICE_4 = "F57-8_test1_3VBSED_slice_0004.dm3"


class Location(Publishers):
    """One code location over the four publishers, and a history."""

    def begin(self, folder: Path) -> None:
        (self.specs_folder / f"{ODD}.yaml").unlink()
        self.note = folder / "note"
        self.instance = dg.DagsterInstance.ephemeral(tempdir=str(folder))

    def run(self, *names: str, partitions: tuple[str, str] | None = None) -> dg.ExecuteInProcessResult:
        job = build_defs(settings=self.settings).resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            asset_selection=[dg.AssetKey(name) for name in names],
            instance=self.instance,
            raise_on_error=False,
            tags=dict(zip((RANGE_START, RANGE_END), partitions, strict=True)) if partitions else {},
        )

    def materialized(self, name: str) -> set[str]:
        """Partitions, as the history knows them."""
        return self.instance.get_materialized_partitions(dg.AssetKey(received_asset(self.spec(name))))


@pytest.fixture
def location(tmp_path_factory, tmp_path, monkeypatch):
    monkeypatch.setenv("EM_ASSETS_RUN_NOTE", str(tmp_path / "note"))
    with Location(write_once(tmp_path_factory.getbasetemp()), tmp_path) as location:
        location.begin(tmp_path)
        yield location


def check_results(result) -> dict[str, bool]:
    return {item.check_name: item.passed for item in result.get_asset_check_evaluations()}


def datasets(location) -> dict[str, tuple]:
    """Name, status and reason of each row of the catalogue."""
    import duckdb

    with duckdb.connect(f"{location.settings.root}/metadata.duckdb", read_only=True) as connection:
        rows = connection.sql("select name, status, status_reason from datasets").fetchall()
    return {name: (status, reason) for name, status, reason in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_one_name_does_the_whole_job(location, name):
    """Every partition is in the history, every check green, the catalogue has the row; metadata says what it is."""
    result = location.run(name, f"{name}_metadata")
    assert result.success, location.note.read_text()
    spec = location.spec(name)
    assert location.materialized(name) == set(partition_keys(spec))
    checks = check_results(result)
    assert list(checks) == [*checks_of(spec), "metadata_keys"] and set(checks.values()) == {True}
    assert ("files" in checks) == spec.is_by_file
    assert ("same_volume" in checks) == (name == IDR)
    assert datasets(location)[name] == ("complete", None)
    metadata = result.asset_materializations_for_node(name)[-1].metadata
    assert metadata["shape (z, y, x)"].value == " x ".join(map(str, spec.shape))
    assert metadata["voxel_size_nm (z, y, x)"].value == " x ".join(map(str, spec.voxel_size_nm))
    assert metadata["partitions_fetched"].value == len(partition_keys(spec))
    assert metadata["received_bytes"].value > 0 and "preview" in metadata
    for sub, volume in spec.volumes.items():
        sides = " x ".join(map(str, volume.shape))
        assert metadata[f"volume {sub}"].value == f"{sides} {volume.dtype} {volume.content}"
    described = result.asset_materializations_for_node(f"{name}_metadata")[-1].metadata
    assert described["claims"].value > 100
    assert described["doi"].value == f"https://doi.org/{spec.doi}"


def test_a_file_in_the_history_is_the_file_that_is_stored(location):
    """Each partition's event has the size, the digest and the address of its receipt."""
    assert location.run(IDR).success
    spec = location.spec(IDR)
    records = location.instance.fetch_materializations(dg.AssetKey(received_asset(spec)), limit=10).records
    events = {record.partition_key: record.asset_materialization for record in records}
    for key, path in file_paths(spec).items():
        data = location.served(IDR, path).read_bytes()
        assert events[key].metadata["size_bytes"].value == len(data) == events[key].metadata["received_bytes"].value
        assert events[key].metadata["url"].value == spec.source.file_url(path)
        assert events[key].tags["dagster/data_version"] == events[key].metadata["sha256"].value


@pytest.mark.slow
def test_one_file_alone_leaves_the_rest_to_do(location):
    """A file can be fetched by itself: the dataset is unfinished and says so; its name then does the rest."""
    keys = partition_keys(location.spec(EMPIAR))
    assert location.run(f"{EMPIAR}_files", partitions=(keys[4], keys[4])).success
    assert location.materialized(EMPIAR) == {keys[4]}
    record = location.folder(EMPIAR).read_record()
    assert record.status == "interrupted" and f"1 of {len(keys)}" in record.status_reason
    result = location.run(EMPIAR)
    assert result.success
    metadata = result.asset_materializations_for_node(EMPIAR)[-1].metadata
    assert metadata["partitions_fetched"].value == len(keys) - 1
    assert location.materialized(EMPIAR) == set(keys)


@pytest.mark.slow
def test_a_second_run_makes_no_second_event(location):
    """Nothing is asked of anybody; the data version stays."""
    location.run(EPFL)
    before = location.requests
    assert location.run(EPFL).success
    assert location.requests == before
    assert len(location.instance.fetch_materializations(dg.AssetKey(f"{EPFL}_files"), limit=50).records) == 5
    made = location.instance.fetch_materializations(dg.AssetKey(EPFL), limit=10).records
    versions = [record.asset_materialization.tags["dagster/data_version"] for record in made]
    assert len(versions) == 2 and len(set(versions)) == 1


@pytest.mark.slow
def test_a_file_that_fails_is_named_and_the_others_are_kept(location):
    """The sentence is the failure's, the record's and the catalogue's; the next run fetches that file alone."""
    location.spec(EMPIAR, source={"mirrors": []})
    location.fail(SLICE_4, Fault(status=404))
    result = location.run(EMPIAR, f"{EMPIAR}_metadata")
    assert not result.success
    sentence = result.failure_data_for_node(EMPIAR).user_failure_data.description
    assert f"1 of 17 partitions could not be fetched ({SLICE_4})" in sentence and "404" in sentence
    assert location.note.read_text().strip() == sentence
    assert datasets(location)[EMPIAR] == ("error", sentence)
    assert result.asset_materializations_for_node(f"{EMPIAR}_metadata") == []
    assert location.materialized(EMPIAR) == set(partition_keys(location.spec(EMPIAR))) - {SLICE_4}
    location.heal()
    before = len(location.http.log)
    assert location.run(EMPIAR).success
    assert [name for name in location.requested(since=before) if name.endswith(".dm3")] == [SLICE_4]


def test_a_lost_file_turns_the_check_red(location):
    """Checks alone, as from the UI: red, blocking, with the numbers; record and catalogue say so."""
    location.finished(EPFL)
    lost = list(location.spec(EPFL).source.by_path())[1]
    location.file(EPFL, f"original/{lost}").unlink()
    defs = build_defs(settings=location.settings)
    keys = [dg.AssetCheckKey(dg.AssetKey(EPFL), check) for check in checks_of(location.spec(EPFL))]
    job = dg.define_asset_job("look", selection=dg.AssetSelection.checks(*keys))
    job = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("look")
    result = job.execute_in_process(instance=location.instance, raise_on_error=False)
    evaluations = {item.check_name: item for item in result.get_asset_check_evaluations()}
    red = evaluations["files"]
    assert not red.passed and red.blocking and lost in red.description
    assert (red.metadata["expected wrong"].value, red.metadata["found wrong"].value) == (0, 1)
    assert location.folder(EPFL).read_record().status == "error"
    assert datasets(location)[EPFL][0] == "error"


def test_kept_objects_go_through_dagster_too(location):
    """Partitions, checks, catalogue and metadata of a container that is kept as published."""
    location.spec(JRC, keep="original")
    result = location.run(JRC, f"{JRC}_metadata")
    assert result.success, location.note.read_text()
    assert location.materialized(JRC) == set(partition_keys(location.spec(JRC)))
    assert set(check_results(result).values()) == {True}
    assert datasets(location)[JRC] == ("complete", None)
    metadata = result.asset_materializations_for_node(JRC)[-1].metadata
    assert metadata["file_size_bytes"].value == location.folder(JRC).read_record().file_size_bytes
    assert "preview" not in metadata


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--select", "idr_984613"], "there is no asset idr_984613; the nearest are idr_9846137,"),
        (
            ["--select", f"{EMPIAR}_files", "--partition", "slice_0004"],
            f"'slice_0004' is not a partition of {EMPIAR}_files; the nearest are F57-8_test1_3VBSED_slice_0004.dm3,",
        ),
        (
            ["--select", f"{EPFL}_files"],
            f"{EPFL}_files is partitioned: give --partition volumedata.tif or --partition-range volumedata.tif...test",
        ),
        (["--select", f"{EPFL}_files", "--partition", "training.tif"], None),
        (["--select", IDR], None),
    ],
    ids=["no such asset", "no such file", "no file named", "a file", "a dataset"],
)
def test_a_wrong_name_or_key_is_explained(location, arguments, sentence):
    specs = {name: location.spec(name) for name in MODULES}
    assets = [part for name, spec in specs.items() for part in (name, received_asset(spec), f"{name}_metadata")]
    explained = explain_arguments(arguments, specs, assets)
    assert (explained is None) if sentence is None else explained.startswith(sentence)


@pytest.mark.slow
def test_the_literal_command_materializes_idr(location, tmp_path):
    """`dagster asset materialize --select idr_9846137`, as typed: exit 0, complete, both files in the history."""
    command = Path(sys.executable).parent / "dagster"
    if not command.exists():
        pytest.skip("the dagster command is not beside this Python; run the tests with `make test`")
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(dagster_yaml(home)))
    done = subprocess.run(
        [command, "asset", "materialize", "--select", IDR],
        cwd=ROOT,
        env={
            "PATH": str(command.parent),
            "HOME": str(tmp_path),
            "NO_PROXY": "127.0.0.1",
            "DAGSTER_HOME": str(home),
            "EM_ASSETS_DATASETS": location.settings.datasets,
            "EM_ASSETS_ROOT": str(tmp_path / "typed"),
        },
        capture_output=True,
        text=True,
        timeout=180,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    settings = location.settings.model_copy(update={"root": str(tmp_path / "typed")})
    assert location.folder(IDR, settings).read_record().status == "complete"
    with dg.DagsterInstance.from_config(str(home)) as instance:
        known = instance.get_materialized_partitions(dg.AssetKey(f"{IDR}_files"))
    assert known == set(partition_keys(location.spec(IDR)))
