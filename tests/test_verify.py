"""`em-assets verify`: every stored byte against the records, and what is wrong made again by the same run as `get`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from em_assets import cli
from em_assets.records import VOLUME, DatasetFolder
from em_assets.store import LocalStore
from faulty import FaultyServer
from published import ODD, Publishers, write_once
from small import data_requests, materialize, publish, quick_settings, write_spec

SHARD = f"{VOLUME}/0/c/1/0/2"
COARSE_SHARD = f"{VOLUME}/1/c/0/1/0"


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A publisher that stays reachable."""
    folder = tmp_path_factory.mktemp("published")
    publish(folder)
    with FaultyServer(folder) as server:
        yield server


@pytest.fixture(scope="module")
def whole(tmp_path_factory, origin):
    """A folder with specs and a store in which `small` is complete."""
    folder = tmp_path_factory.mktemp("whole")
    materialize(write_spec(folder / "specs", origin.url), quick_settings(folder / "store"))
    return folder


class Place:
    """A copy of it, and commands on it."""

    def __init__(self, folder: Path, monkeypatch, capsys, name: str = "small") -> None:
        self.dataset = DatasetFolder(LocalStore(folder / "store"), name)
        for variable, part in (("DATASETS", "specs"), ("ROOT", "store"), ("CACHE", "cache")):
            monkeypatch.setenv(f"EM_ASSETS_{variable}", str(folder / part))
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def type(self, *arguments: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr), in this process."""
        self._monkeypatch.setattr(sys, "argv", ["em-assets", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capsys.readouterr()
        return ended.value.code or 0, out, err

    def file(self, relative: str) -> Path:
        return Path(self.dataset.uri(relative))

    def flip(self, relative: str, at: int = -1) -> None:
        """One bit, unseen by whoever looks at size and time."""
        file = self.file(relative)
        times = file.stat()
        data = bytearray(file.read_bytes())
        data[at] ^= 1
        file.write_bytes(data)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def place(whole, tmp_path, monkeypatch, capsys):
    for name in ("specs", "store"):
        shutil.copytree(whole / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, monkeypatch, capsys)


def test_a_whole_dataset_is_said_to_be_whole(place, origin):
    """One line with what was looked at, exit code 0; nobody is asked and the record stays as it was."""
    before, record = data_requests(origin), place.dataset.read_record()
    code, out, err = place.type("verify", "small")
    assert (code, err) == (0, "")
    [line] = out.splitlines()
    assert line.startswith("small is whole: ")
    assert "objects have the sha256 they were written with" in line
    assert "shards of 2 levels are stored" in line
    assert data_requests(origin) == before
    assert place.dataset.read_record() == record


DAMAGES = [
    pytest.param(lambda p: p.flip(SHARD, 1000), [f"checksums: {SHARD} is not what was written"], id="flipped bit"),
    pytest.param(lambda p: p.flip(COARSE_SHARD), [f"checksums: {COARSE_SHARD} is not"], id="flipped bit of level 1"),
    pytest.param(lambda p: p.flip(f"{VOLUME}/zarr.json"), [f"checksums: {VOLUME}/zarr.json is not"], id="metadata"),
    pytest.param(lambda p: p.flip("manifest.parquet"), ["checksums: manifest.parquet is"], id="manifest"),
    pytest.param(lambda p: p.flip("coverage.parquet"), ["checksums: coverage.parquet is not"], id="coverage"),
    pytest.param(
        lambda p: p.file(SHARD).unlink(),
        [f"checksums: {SHARD} is not what was written", "completeness: level 0 z001_y000_x002"],
        id="shard gone",
    ),
    pytest.param(
        lambda p: p.file(f"{VOLUME}/0/c/9/9/9").parent.mkdir(parents=True) or p.file(f"{VOLUME}/0/c/9/9/9").touch(),
        [f"completeness: {VOLUME}/0/c/9/9/9"],
        id="stranger",
    ),
    pytest.param(
        lambda p: (p.flip(SHARD, 1000), p.flip(f"{VOLUME}/0/c/0/0/0", 1000)),
        [f"checksums: {VOLUME}/0/c/0/0/0 is not", f"checksums: {SHARD} is not"],
        id="two shards",
    ),
]


@pytest.mark.parametrize(("damage", "problems"), DAMAGES)
def test_each_damage_is_a_line(place, damage, problems):
    """F35: exit code 1; a line for each problem; the last line says what to do; list and catalogue know of it."""
    damage(place)
    code, out, err = place.type("verify", "small")
    assert code == 1
    lines = out.splitlines()
    for problem in problems:
        assert any(line.startswith(problem) for line in lines), out
    assert len(lines) == len(set(lines))
    assert err == "small is not as it was written; `em-assets verify small --repair` makes it whole again.\n"
    assert place.dataset.read_record().status == "error"
    assert json.loads(place.type("sql", "select status from datasets", "--format", "json")[1]) == [{"status": "error"}]
    assert place.type("verify", "small")[0] == 1  # still


def test_more_problems_than_are_listed_are_counted(place):
    """27 damaged shards: the lines that are shown, and how many there are in all."""
    for path in place.dataset.stored_sizes():
        if path.startswith(f"{VOLUME}/0/c/"):
            place.flip(path, 500)
    code, out, _ = place.type("verify", "small")
    assert code == 1
    lines = [line for line in out.splitlines() if line.startswith("checksums: ")]
    assert len(lines) == 21
    assert "(and 26 more)" in lines[-1]


@pytest.mark.slow
def test_repair_makes_just_what_is_damaged_again(place, origin):
    """Shards of both levels, metadata and a stranger at once: whole again as it was, one shard's bytes received."""
    first = place.dataset.read_record()
    place.flip(SHARD, 1000)
    place.file(COARSE_SHARD).unlink()
    place.flip(f"{VOLUME}/0/zarr.json")
    place.file(f"{VOLUME}/stranger").touch()
    origin.log.clear()
    done = subprocess.run(
        [sys.executable, "-m", "em_assets.cli", "verify", "small", "--repair"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"checksums: {SHARD} is not what was written" in done.stdout
    assert re.search(r"small: 1 of 27 partitions to fetch", done.stdout)
    assert "small is complete" in done.stdout
    repaired = place.dataset.read_record()
    assert (repaired.status, repaired.sha256) == ("complete", first.sha256)
    assert data_requests(origin) < 27
    assert place.type("verify", "small")[0] == 0


def test_repair_of_what_is_whole_starts_nothing(place, origin):
    """No Dagster, no request: it says that it is whole."""
    before = data_requests(origin)
    code, out, _ = place.type("verify", "small", "--repair")
    assert code == 0
    assert "small is whole" in out
    assert data_requests(origin) == before
    assert not Path("cache").exists()


def test_received_files_and_every_volume_are_verified(tmp_path, tmp_path_factory, monkeypatch, capsys):
    """F35: a file of the publisher's and a shard of the labels: each named with where it lies."""
    with Publishers(write_once(tmp_path_factory.getbasetemp()), tmp_path) as publishers:
        publishers.finished(ODD)
        folder = publishers.folder(ODD)
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path, monkeypatch, capsys, ODD)
    code, out, err = place.type("verify", ODD)
    assert (code, err) == (0, "")
    assert "all 2 files are stored" in out
    place.flip("original/volumedata.tif", 5000)
    shard = f"{folder.further('labels').volume}/1/c/0/0/0"
    place.file(shard).unlink()
    code, out, err = place.type("verify", ODD)
    assert code == 1
    lines = out.splitlines()
    assert "checksums: original/volumedata.tif is not what was written" in lines
    assert f"checksums: {shard} is not what was written" in lines
    assert "completeness: level 1 z000_y000_x000" in lines


def test_what_is_not_stored_cannot_be_verified(place):
    """What to do instead."""
    place.dataset.store.delete_all("small")
    code, out, err = place.type("verify", "small")
    assert (code, out, err) == (1, "", "nothing of small is stored; `em-assets get small` fetches it.\n")


@pytest.mark.parametrize("status", ["interrupted", "error"])
def test_an_unfinished_dataset_is_not_whole(place, status):
    """Every byte may be right: the status is the problem then, with its reason."""
    place.dataset.write_record(place.dataset.read_record().with_status(status, "the power went"))
    code, out, err = place.type("verify", "small")
    assert code == 1
    assert out == f"small is {status}: the power went\n"
    assert "--repair" in err


def test_a_dataset_that_is_being_written_is_left_alone(place):
    """A living writer is named; nothing is judged in the middle of its work."""
    writing = place.dataset.read_record().with_status("saving-data")
    place.dataset.write_record(writing)
    code, out, err = place.type("verify", "small")
    assert (code, out) == (1, "")
    assert f"small is being written (process {os.getpid()}" in err
    assert place.dataset.read_record() == writing


def test_an_unknown_name_is_exit_code_2(place):
    code, _, err = place.type("verify", "smal")
    assert code == 2
    assert "did you mean small?" in err
