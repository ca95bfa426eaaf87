"""An ingestion in Dagster: a run of the config is a partition; and the file by which Dagster knows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import mrcfile
import numpy as np
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from em_assets.cli import app
from em_assets.datasets.loading import load_specs
from em_assets.definitions import build_defs
from em_assets.errors import Malformed, Mismatch
from em_assets.ingest.registered import Ingestion, default_name, load_ingestions, register
from em_assets.ingest_assets import build_ingestion_assets
from small import quick_settings

ROOT = Path(__file__).parents[1]
DATES = dict.fromkeys(("deposition_date", "last_modified_date", "release_date"), "2024-04-09")
RUNS = ("TS_1", "TS_2", "TS_3")
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
AUTHORS = [{"name": "A", "primary_author_status": True}]
TOMOGRAM = {
    "voxel_spacing": 10.0,
    "reconstruction_method": "WBP",
    "reconstruction_software": "IMOD",
    "processing": "raw",
    "fiducial_alignment_status": "NON_FIDUCIAL",
    "is_visualization_default": True,
    "tomogram_version": 1,
    "offset": {"x": 0, "y": 0, "z": 0},
    "authors": AUTHORS,
    "dates": DATES,
}
DATASET = {
    "dataset_identifier": 10001,
    "dataset_title": "Small",
    "dataset_description": "Three small tomograms.",
    "sample_type": "in_silico",
    "authors": AUTHORS,
    "dates": DATES,
    "assay": {"name": "microscopy assay"},
    "development_stage": {"name": "unknown"},
    "disease": {"name": "normal"},
}


def config() -> dict[str, Any]:
    return {
        "version": "1.3.0",
        "standardization_config": {"deposition_id": 10301, "source_prefix": "raw"},
        "depositions": [{"sources": [{"literal": {"value": [10301]}}]}],
        "datasets": [{"metadata": DATASET, "sources": [{"literal": {"value": ["10001"]}}]}],
        "runs": [{"sources": [{"source_glob": {"list_glob": "TS_*.mrc", "name_regex": r"(.*)\.mrc"}}]}],
        "voxel_spacings": [{"sources": [{"literal": {"value": [10.0]}}]}],
        "tomograms": [{"metadata": TOMOGRAM, "sources": [{"source_glob": {"list_glob": "{run_name}.mrc"}}]}],
    }


class Location:
    """A bucket with three runs, a registered ingestion, and a history."""

    def __init__(self, folder: Path) -> None:
        self.raw, self.tree, self.specs = folder / "bucket/raw", folder / "tree", folder / "specs"
        self.raw.mkdir(parents=True)
        for number, run in enumerate(RUNS):
            with mrcfile.new(self.raw / f"{run}.mrc", np.full((4, 5, 6), number, np.int16)) as file:
                file.voxel_size = 10.0
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config()))
        self.ingestion = Ingestion(
            name="ingest_small",
            config=str(self.config),
            source=str(folder / "bucket"),
            destination=str(self.tree),
            runs=RUNS,
        )
        register(self.ingestion, self.specs)
        self.settings = quick_settings(folder / "store", datasets=str(self.specs), cache=folder / "cache")
        self.instance = dg.DagsterInstance.ephemeral(tempdir=str(folder))

    def run(self, name: str, partitions: tuple[str, str] | None = None) -> dg.ExecuteInProcessResult:
        tags = dict(zip((RANGE_START, RANGE_END), partitions, strict=True)) if partitions else {}
        assets = build_ingestion_assets([self.specs], self.settings, [])
        job = dg.Definitions(assets=assets).resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            asset_selection=[dg.AssetKey(name)], instance=self.instance, raise_on_error=False, tags=tags
        )

    @property
    def materialized(self) -> set[str]:
        return set(self.instance.get_materialized_partitions(dg.AssetKey("ingest_small_runs")))

    def spoil(self, run: str) -> None:
        (self.raw / f"{run}.mrc").write_bytes(b"not an MRC file")


@pytest.fixture
def location(tmp_path, monkeypatch) -> Location:
    monkeypatch.setenv("EM_ASSETS_RUN_NOTE", str(tmp_path / "note"))
    return Location(tmp_path)


def has_run(location: Location, run: str) -> bool:
    return (location.tree / f"10001/{run}/run_metadata.json").is_file()


def test_the_definitions_have_an_ingestion(location):
    """An ingestion beside the specs is two assets, its runs are partitions, and no spec is taken for broken."""
    defs = build_defs(settings=location.settings)
    assert {"ingest_small", "ingest_small_runs"} <= {key.to_user_string() for key in defs.resolve_all_asset_keys()}
    runs = defs.resolve_assets_def(dg.AssetKey("ingest_small_runs"))
    assert runs.partitions_def is not None and tuple(runs.partitions_def.get_partition_keys()) == RUNS
    assert load_specs([location.specs]) == {}


def test_a_partition_is_a_run(location):
    """One partition makes one run of the tree, and nothing above it."""
    assert location.run("ingest_small_runs", ("TS_2", "TS_2")).success
    assert [has_run(location, run) for run in RUNS] == [False, True, False]
    assert not (location.tree / "10001/dataset_metadata.json").exists()
    assert location.materialized == {"TS_2"}


def test_the_whole_makes_what_is_missing(location):
    """The unpartitioned asset makes the runs that are not whole, says so of each partition, and writes the dataset."""
    location.run("ingest_small_runs", ("TS_2", "TS_2"))
    before = (location.tree / "10001/TS_2/run_metadata.json").stat().st_mtime_ns
    assert location.run("ingest_small").success
    assert location.materialized == set(RUNS)
    assert (location.tree / "10001/TS_2/run_metadata.json").stat().st_mtime_ns == before
    assert json.loads((location.tree / "10001/dataset_metadata.json").read_text())["dataset_title"] == "Small"
    runs = dg.AssetKey("ingest_small_runs")
    assert location.run("ingest_small").success
    assert len(location.instance.fetch_materializations(runs, limit=20).records) == len(RUNS)


@pytest.mark.parametrize("name", ["ingest_small", "ingest_small_runs"])
def test_a_run_that_fails_leaves_the_others(location, name, tmp_path):
    """The step fails with one sentence that names the file; the other runs are there, and materialized."""
    location.spoil("TS_2")
    result = location.run(name, ("TS_1", "TS_3") if name.endswith("_runs") else None)
    assert not result.success
    assert location.materialized == {"TS_1", "TS_3"}
    assert [has_run(location, run) for run in RUNS] == [True, False, True]
    note = (tmp_path / "note").read_text()
    assert "2 of 3 runs are whole" in note and "TS_2.mrc" in note


def test_a_name_that_is_taken_is_left_out(location):
    """An ingestion that is called like an asset of a dataset does not break the others."""
    assert build_ingestion_assets([location.specs], location.settings, ["ingest_small_runs"]) == []


WRONG = {
    "no YAML": ("a: [", "no YAML that can be read"),
    "a list": ("- 1", "valid dictionary"),
    "unknown": ("name: ingest_bad\nconfig: a\nfrom: b\nto: c\nruns: []\nmore: 1", "more"),
    "another name": ("name: other\nconfig: a\nfrom: b\nto: c\nruns: []", "name is other, but the file is"),
    "twice": ("name: ingest_bad\nconfig: a\nfrom: b\nto: c\nruns: [x, x]", "of different names"),
    "nested": ("a: " + "[" * 100_000, "nested more than"),
    "in itself": ("a: &a [*a]", "stands inside"),
    "key": ('name: ingest_bad\nconfig: a\nfrom: b\nto: c\nruns: ["a...b"]', "cannot be a partition"),
}


@pytest.mark.parametrize(("text", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named_and_the_others_load(location, text, reason):
    """What is wrong with one file is said of it, by name."""
    (location.specs / "ingest_bad.ingest.yaml").write_text(text)
    found, wrong = load_ingestions([location.specs])
    assert set(found) == {"ingest_small"}
    assert set(wrong) == {"ingest_bad.ingest.yaml"} and reason in str(wrong["ingest_bad.ingest.yaml"])


def test_an_ingestion_reads_back(location):
    """What is registered is what is loaded; a dataset of that name refuses it."""
    found, _ = load_ingestions([location.specs])
    assert found["ingest_small"] == location.ingestion
    (location.specs / "ingest_other.yaml").write_text("name: ingest_other")
    with pytest.raises(Mismatch, match="is a dataset of this name"):
        register(location.ingestion.model_copy(update={"name": "ingest_other"}), location.specs)


@pytest.mark.parametrize(
    ("file", "name"), [("10001.yaml", "ingest_10001"), ("Été 2/My Config.v1.yaml", "ingest_my_config_v1")]
)
def test_an_ingestion_is_named_after_its_config(file, name):
    """The name is a dataset's: lower-case letters, digits and single underscores."""
    assert default_name(Path(file)) == name


def test_a_run_that_is_no_partition_is_made_with_the_whole(location, monkeypatch):
    """A name that Dagster does not take keeps neither the others nor itself from being made."""
    shutil.copy(location.raw / "TS_1.mrc", location.raw / "TS_....mrc")
    done = command(location, monkeypatch, "--name", "ingest_odd", "--to", str(location.tree))
    assert done.exit_code == 0, done.output
    assert "1 with names that Dagster does not take are made with ingest_odd alone" in done.output
    assert load_ingestions([location.specs])[0]["ingest_odd"].runs == RUNS
    assert has_run(location, "TS_...") and has_run(location, "TS_1")


def test_an_unknown_run_is_malformed(location):
    """A partition whose run is gone from the source is refused by its name."""
    (location.raw / "TS_3.mrc").unlink()
    with pytest.raises(Malformed, match="there is no run TS_3"):
        location.ingestion.carry_out(location.settings, ["TS_3"])


def test_loading_ingestions_is_light(location):
    """Reading the registered files brings in neither array nor cloud libraries, nor what an ingestion is made with."""
    code = (
        "import json, sys; from pathlib import Path; from em_assets.ingest.registered import load_ingestions; "
        f"assert load_ingestions([Path({str(location.specs)!r})])[0]; print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"numpy", "zarr", "obstore", "duckdb", "em_assets.ingest.run", "em_assets.ingest.config"}


def command(location: Location, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setenv("EM_ASSETS_ROOT", str(location.settings.root))
    monkeypatch.setenv("EM_ASSETS_DATASETS", str(location.specs))
    monkeypatch.setenv("EM_ASSETS_CACHE", str(location.settings.cache))
    words = ["ingest", str(location.config), "--from", str(location.raw.parent), *arguments]
    return CliRunner().invoke(app, words)


def test_the_command_ingests_and_registers(location, monkeypatch):
    """`em-assets ingest` makes the tree, and Dagster knows the ingestion afterwards."""
    done = command(location, monkeypatch)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"3 of 3 runs are whole in {location.settings.root}/portal."
    assert (Path(location.settings.root) / "portal/10001/dataset_metadata.json").is_file()
    found, _ = load_ingestions([location.specs])
    assert (found["ingest_config"].runs, found["ingest_config"].source) == (RUNS, str(location.raw.parent))


def test_the_command_says_what_failed(location, monkeypatch):
    """An entity that fails is named with its reason, the exit code is 1, and the others are made."""
    location.spoil("TS_2")
    done = command(location, monkeypatch, "--to", str(location.tree), "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    [failed] = [one for run in report["runs"] for one in run["entities"] if one["status"] == "failed"]
    assert failed["kind"] == "tomogram" and "TS_2.mrc" in failed["error"]
    assert [has_run(location, run) for run in RUNS] == [True, False, True]


def test_a_choice_of_runs_is_registered_by_name_only(location, monkeypatch):
    """With filters the ingestion of all runs stays as it is, unless a name is given for the choice."""
    to = ("--to", str(location.tree), "--filter-run-name", "TS_1")
    assert command(location, monkeypatch, *to).exit_code == 0
    assert "ingest_config" not in load_ingestions([location.specs])[0]
    assert command(location, monkeypatch, *to, "--name", "first").exit_code == 0
    first = load_ingestions([location.specs])[0]["first"]
    assert (first.runs, first.filters) == (("TS_1",), ("--filter-run-name", "TS_1"))
    wrong = command(location, monkeypatch, *to, "--name", "No Name")
    assert wrong.exit_code == 1
