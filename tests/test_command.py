"""The command as a person types it, in a copy of the repository, against the running sample origin.

Every case is a subprocess of some ten seconds, so one sample and one store serve them all, in order.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from em_assets.records import VOLUME
from shell import Shell

pytestmark = pytest.mark.slow  # CI's quickstart types the same commands
COMMAND = ["dagster", "asset", "materialize", "--select", "hemibrain_crop"]
SHARD = f"{VOLUME}/0/c/1/0/1"


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    shell = Shell(tmp_path_factory.mktemp("copy"))
    up = shell.run("em-assets", "sample", "up")
    assert up.returncode == 0, up.stderr
    shell.switch_to_sample()
    yield shell
    assert shell.run("em-assets", "sample", "down").returncode == 0


@pytest.fixture(scope="module")
def materialized(shell):
    done = shell.run(*COMMAND)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return shell


def last_line(process: subprocess.CompletedProcess[str]) -> str:
    return (process.stdout + process.stderr).strip().splitlines()[-1]


def runs(shell: Shell) -> list[dict]:
    import json

    folder = shell.dataset
    return [json.loads(folder.store.read(path)) for path, _ in sorted(folder.store.list(folder.path("runs")))]


def test_the_literal_command_does_the_whole_job(materialized):
    """Exit 0; every chunk partition is stored; the record is complete; the sample's own history and store were used."""
    import dagster as dg

    folder = materialized.dataset
    record = folder.read_record()
    assert record.status == "complete"
    assert record.title.startswith("SAMPLE")
    level0 = [r.key for r in folder.partition_records() if r.level == 0]
    assert len(level0) == 27
    assert not (materialized.folder / ".dagster").exists()
    assert not (materialized.folder / "data").exists()
    with dg.DagsterInstance.from_config(materialized.environment["DAGSTER_HOME"]) as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("hemibrain_crop_chunks")) == set(level0)


def test_the_catalogue_has_its_row(materialized):
    """`em-assets sql "from overview"` after the literal command alone."""
    shown = materialized.run("em-assets", "sql", "from overview")
    assert shown.returncode == 0, shown.stderr
    assert "hemibrain_crop" in shown.stdout
    assert "complete" in shown.stdout


def test_again_fetches_nothing(materialized):
    """The second run succeeds without a byte from the origin."""
    assert materialized.run(*COMMAND).returncode == 0
    assert runs(materialized)[-1]["received_bytes"] == 0


def test_a_damaged_shard_fails_the_command_and_is_healed_by_the_next(materialized):
    """Exit 1 and the check's sentence as the last line; then exit 0, and just that shard came again."""
    folder = materialized.dataset
    before = folder.read_record().sha256
    file = Path(folder.uri(SHARD))
    stat = file.stat()
    data = bytearray(file.read_bytes())
    data[4000] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    failed = materialized.run(*COMMAND)
    assert failed.returncode == 1
    assert last_line(failed).startswith("hemibrain_crop: check checksums failed")
    assert folder.read_record().status == "error"
    healed = materialized.run(*COMMAND)
    assert healed.returncode == 0
    assert "1 of 27 partitions to fetch" in healed.stdout + healed.stderr
    assert folder.read_record().sha256 == before


def test_a_killed_command_leaves_nothing_to_wait_for(materialized):
    """SIGKILL of the whole command in the middle; the next one finishes, and the bytes are the same."""
    folder = materialized.dataset
    before = folder.read_record().sha256
    for index in range(9):
        folder.store.delete(folder.path(f"{VOLUME}/0/c/{index // 3}/{index % 3}/1"))
    process = subprocess.Popen(
        COMMAND,
        cwd=materialized.folder,
        env=materialized.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while folder.read_record().status != "saving-data" and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10  # the kernel may still be busy with the step's process
    while folder.read_record().visible_status == "saving-data" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert folder.read_record().visible_status in ("interrupted", "complete")
    finished = materialized.run(*COMMAND)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert folder.read_record().sha256 == before
    assert not list(Path(materialized.environment["EM_ASSETS_ROOT"]).rglob("*.em-partial"))


def test_get_shows_only_what_a_person_needs(materialized):
    """The front door on a finished dataset: exit 0, short, with the path and what to do next."""
    got = materialized.run("em-assets", "get", "hemibrain_crop", "--yes")
    assert got.returncode == 0, got.stderr
    assert "volume.ome.zarr" in got.stdout
    assert len(got.stdout.splitlines()) < 25
    assert "Traceback" not in got.stdout + got.stderr


def test_an_unreachable_origin_ends_in_one_sentence(materialized):
    """Exit 1 within 30 s of the first attempt; the sentence is the last line, and with `get` the only one.

    The error row is in the catalogue. Then the origin comes back and the next run finishes.
    """
    folder = materialized.dataset
    folder.store.delete(folder.path(SHARD))
    assert materialized.run("em-assets", "sample", "down").returncode == 0
    started = time.monotonic()
    failed = materialized.run(*COMMAND)
    assert failed.returncode == 1
    assert time.monotonic() - started < 45  # the start of Dagster included
    assert "127.0.0.1" in last_line(failed)
    assert "cannot be reached" in last_line(failed)
    got = materialized.run("em-assets", "get", "hemibrain_crop", "--yes")
    assert got.returncode == 1
    assert got.stderr.strip().splitlines() == [last_line(failed)]
    rows = materialized.run("em-assets", "sql", "select status, status_reason from datasets", "--format", "csv").stdout
    assert "error" in rows
    assert "cannot be reached" in rows
    assert materialized.run("em-assets", "sample", "up").returncode == 0
    materialized.switch_to_sample()
    assert materialized.run(*COMMAND).returncode == 0


def test_live_after_sample_never_takes_the_sample_for_the_real_thing(materialized):
    """Pointed at the sample's store, the real spec is refused, and the sample's record is untouched."""
    record = materialized.dataset.read_record()
    environment = dict(materialized.environment)
    try:
        del materialized.environment["EM_ASSETS_DATASETS"]
        refused = materialized.run(*COMMAND)
    finally:
        materialized.environment = environment
    assert refused.returncode == 1
    assert "em-assets rm hemibrain_crop" in last_line(refused)
    assert materialized.dataset.read_record() == record


def test_another_seed_is_refused_until_the_dataset_is_removed(materialized, tmp_path):
    """A copied spec with another seed: refused; after `em-assets rm` a new origin, and no old shard survives."""
    old = materialized.dataset.read_record()
    file = Path(materialized.environment["EM_ASSETS_DATASETS"]) / "hemibrain_crop.yaml"
    spec = yaml.safe_load(file.read_text())
    spec["crop"]["seed"] += 1
    (tmp_path / file.name).write_text(yaml.safe_dump(spec))
    environment = dict(materialized.environment)
    try:
        materialized.environment["EM_ASSETS_DATASETS"] = str(tmp_path)
        refused = materialized.run(*COMMAND)
        assert refused.returncode == 1
        assert "em-assets rm hemibrain_crop" in last_line(refused)
        assert materialized.dataset.read_record() == old
        assert materialized.run("em-assets", "rm", "hemibrain_crop", "--yes").returncode == 0
        assert materialized.run(*COMMAND).returncode == 0
        new = materialized.dataset.read_record()
        assert new.source_box != old.source_box
        assert {record.identity for record in materialized.dataset.partition_records()} == {new.identity}
        assert materialized.run("em-assets", "rm", "hemibrain_crop", "--yes").returncode == 0
    finally:
        materialized.environment = environment
    assert materialized.run(*COMMAND).returncode == 0
    assert materialized.dataset.read_record().sha256 == old.sha256


def test_the_location_loads_for_dagster_dev(materialized):
    """`dagster definitions validate` with the repository's workspace.yaml."""
    checked = materialized.run("dagster", "definitions", "validate")
    assert checked.returncode == 0, checked.stderr[-2000:]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--select", "hemibrain_crob"], "there is no asset hemibrain_crob; the nearest are hemibrain_crop,"),
        (["--select", "hemibrain_crop_chunks"], "hemibrain_crop_chunks is partitioned: give --partition"),
        (
            ["--select", "hemibrain_crop_chunks", "--partition", "../../etc"],
            "'../../etc' is not a partition of hemibrain_crop_chunks; the nearest are z00",
        ),
    ],
    ids=["asset", "no key", "key"],
)
def test_a_wrong_name_or_key_ends_in_a_sentence(materialized, arguments, sentence):
    """Dagster's stack trace is followed by what is wrong and what is near."""
    refused = materialized.run(*COMMAND[:3], *arguments)
    assert refused.returncode != 0
    assert last_line(refused).startswith(sentence)
