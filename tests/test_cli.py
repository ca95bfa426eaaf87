"""The front door: what a person types, what is printed, which exit code, and what is left in the store."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from em_assets import cli, cli_shared, dagster_child
from em_assets.pipeline import listed_record
from em_assets.records import VOLUME, DatasetFolder, Heartbeat
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.store import LocalStore
from faulty import Fault, FaultyServer
from small import publish, write_spec

COMMANDS = [
    "list",
    "show",
    "describe",
    "sql",
    "conflicts",
    "cite",
    "catalog",
    "plan",
    "du",
    "logs",
    "read",
    "blocks",
    "geometry",
    "stage",
    "serve",
    "view",
    "verify",
    "export",
    "get",
    "rm",
    "add",
    "doctor",
    "sample",
]
GROUPS = {
    "sample": ["up", "down", "status", "env"],
    "add": ["empiar", "idr", "openorganelle", "precomputed", "zarr", "n5"],
}
PACKAGED = [file.stem for file in PACKAGED_DATASETS.glob("*.yaml")]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command line in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EM_ASSETS_CACHE", str(tmp_path / "cache"))

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["em-assets", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return command


def shell(*arguments: str, cwd: Path, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess:
    """The same as a process of its own, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "em_assets.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        start_new_session=True,
        check=False,
    )


def store_of(tmp_path: Path, status: str = "complete") -> DatasetFolder:
    """A store with a record and some bytes of hemibrain_crop, made without a download."""
    from em_assets.datasets.loading import load_specs

    folder = DatasetFolder(LocalStore(tmp_path / "data"), "hemibrain_crop")
    record = listed_record(load_specs(Settings().dataset_folders())["hemibrain_crop"])
    volume = folder.write(f"{VOLUME}/zarr.json", b"{}" * 500)
    paths = {"volume": folder.uri(VOLUME)}
    folder.write_record(record.with_status(status, file_size_bytes=volume.size_bytes, local_paths=paths))
    return folder


# Help and wrong command lines


@pytest.mark.parametrize(
    "words", [[c] for c in COMMANDS if c not in GROUPS] + [[group, c] for group, names in GROUPS.items() for c in names]
)
def test_every_command_explains_itself_with_an_example(run, words):
    """`--help` says what it does and shows a command line that can be typed."""
    code, out, _ = run(*words, "--help")
    assert code == 0
    example = re.search(r"Example: (.*em-assets .*)", out)
    assert example, out
    assert f"em-assets {' '.join(words)}" in example[1]


def test_alone_it_lists_its_commands(run):
    """Without a command: all of them, each in one whole sentence, and where to begin."""
    code, out, _ = run()
    assert code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\S.*\.$", out, re.MULTILINE), f"{name} in\n{out}"
    assert "em-assets list" in out


def test_version(run):
    """`--version` names the package."""
    assert run("--version")[1].startswith("em_assets ")


@pytest.mark.parametrize(
    ("arguments", "last_line"),
    [
        pytest.param(["lst"], "No such command 'lst'", id="unknown command"),
        pytest.param(["sample", "upp"], "No such command 'upp'", id="unknown subcommand"),
        pytest.param(["list", "--long"], "No such option: --long", id="unknown option"),
        pytest.param(["list", "extra"], "unexpected extra argument", id="too many arguments"),
        pytest.param(["get"], "Missing argument 'NAME...'", id="missing name"),
        pytest.param(["sql"], "Missing argument", id="missing query"),
        pytest.param(["list", "--format"], "requires an argument", id="missing value"),
        pytest.param(["list", "--format", "xml"], "'table', 'csv', 'json'", id="value not among the choices"),
        pytest.param(["view", "hemibrain_crop", "--port", "abc"], "Invalid value for '--port'", id="not a number"),
        pytest.param(["view", "hemibrain_crop", "--port", "70000"], "65535", id="number out of range"),
        pytest.param(["logs", "hemibrain_crop", "-n", "0"], "Invalid value for '-n'", id="number too small"),
        pytest.param(["get", "hemibrain_corp"], "did you mean hemibrain_crop?", id="name with a slip"),
        pytest.param(["get", "qqqq"], "there is no dataset 'qqqq'; `em-assets list` shows all.", id="unknown name"),
        pytest.param(["rm", "../../etc"], "there is no dataset '../../etc'", id="path as a name"),
        pytest.param(["rm", ""], "there is no dataset ''", id="empty name"),
        pytest.param(["view", "metadata.duckdb"], "there is no dataset 'metadata.duckdb'", id="file as a name"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(run, arguments, last_line):
    """The last line says what is wrong and what is accepted; no traceback; nothing is made."""
    code, out, err = run(*arguments)
    assert code == 2
    assert last_line in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""
    assert not Path("data").exists()


# Errors


def test_an_error_is_one_sentence(run, monkeypatch):
    """Exit code 1, the sentence alone on stderr; the traceback with --debug only, wherever that stands."""
    code, out, err = run("sql", "from overview")
    assert (code, out) == (1, "")
    assert len(err.strip().splitlines()) == 1
    assert "there is no catalogue at" in err
    monkeypatch.setattr(sys, "argv", ["em-assets", "sql", "from overview", "--debug"])
    with pytest.raises(Exception, match="there is no catalogue"):
        cli.main()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("EM_ASSETS_WORKERS", "0", "EM_ASSETS_WORKERS"),
        ("EM_ASSETS_WORKERS", "abc", "EM_ASSETS_WORKERS"),
        ("EM_ASSETS_WORKERS", "1000000", "EM_ASSETS_WORKERS"),
        ("EM_ASSETS_ROOT", "ftp://host/data", "neither a folder nor s3://"),
        ("EM_ASSETS_DATASETS", "/nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_a_wrong_environment_is_one_sentence(run, monkeypatch, variable, value, message):
    """The variable or its value is named."""
    monkeypatch.setenv(variable, value)
    code, _, err = run("list")
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_wrong_spec_is_named_with_file_and_key(run, monkeypatch, tmp_path):
    """`list` says which file and which key, in one line, and goes on."""
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "bad.yaml").write_text("name: bad\ntitel: slip\n")
    monkeypatch.setenv("EM_ASSETS_DATASETS", str(tmp_path / "specs"))
    code, _, err = run("list")
    assert code == 0
    assert re.fullmatch(
        r"careful: bad is left out: .*bad\.yaml, line 2: unknown key titel; did you mean title\?\n", err
    )


def test_a_bug_is_called_one(run, monkeypatch):
    """An error nobody foresaw: one line with its kind, and how to see more."""
    monkeypatch.setattr(cli_shared, "read_settings", lambda: {}["nothing"])
    code, _, err = run("list")
    assert code == 1
    assert err == "this is a bug (KeyError: 'nothing'); `--debug` shows where, please report it.\n"


@pytest.mark.slow
def test_s3_without_credentials_is_one_sentence(run, monkeypatch):
    """A store that refuses us: what was tried, why not, what to do."""
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_SKIP_SIGNATURE": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EM_ASSETS_ROOT", "s3://em-data/none")
    code, _, err = run("du")
    assert code == 1
    assert "s3://em-data/none" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tmp_path):
    """`em-assets list | head -0` and a closed stdout say nothing on stderr."""
    for script in ('"$0" -m em_assets.cli show hemibrain_crop | true', '"$0" -m em_assets.cli list >&-'):
        done = subprocess.run(
            ["bash", "-c", script, sys.executable],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""


def test_any_locale_will_do(tmp_path):
    """Text that the locale has no letters for is shown as well as it can be."""
    done = shell("list", cwd=tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert "hemibrain_crop" in done.stdout


# What there is


def test_list_on_a_fresh_clone(tmp_path):
    """Every dataset with its facts, from the specs alone: nothing heavy is imported, nothing is made."""
    script = (
        "import sys; from em_assets import cli; sys.argv = ['em-assets', 'list']\n"
        "try: cli.main()\n"
        "finally: print('HEAVY', sorted({'dagster', 'duckdb', 'pandas', 'zarr', 'numpy', 'pyarrow'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("hemibrain_crop")]
    for fact in ("listed", "up to 1.1 GB", "1000 x 1000 x 1000", "8 x 8 x 8", "CC-BY-4.0", "FIB-SEM"):
        assert fact in line
    assert "em-assets get " in done.stdout
    assert "HEAVY []" in done.stdout
    assert not list(tmp_path.iterdir())


def test_list_shows_what_the_store_says(run, tmp_path):
    """The stored size instead of the bound; a dataset without a spec; the reason of a failure below the table."""
    folder = store_of(tmp_path)
    record = folder.read_record()
    other = DatasetFolder(folder.store, "forgotten")
    other.write_record(record.model_copy(update={"name": "forgotten"}).with_status("error", "the origin burnt down"))
    damaged = DatasetFolder(folder.store, "damaged")
    damaged.write("metadata.json", b"{")
    _, out, _ = run("list")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "complete" in lines["hemibrain_crop"]
    assert "1.0 kB" in lines["hemibrain_crop"]
    assert "error" in lines["forgotten"]
    assert "error" in lines["damaged"]
    assert "forgotten: the origin burnt down" in out
    assert "damaged/metadata.json is not a DatasetRecord" in out
    rows = json.loads(run("list", "--format", "json")[1])
    assert [row["name"] for row in rows] == sorted(["damaged", "forgotten", *PACKAGED])
    by_name = {row["name"]: row for row in rows}
    assert by_name["hemibrain_crop"]["size_bytes"] == 1000
    assert by_name["hemibrain_crop"]["shape"] == [1000, 1000, 1000]


def test_a_narrow_terminal_still_gets_one_line_per_dataset():
    """The last columns are left out where they do not fit; name and status always stay."""
    columns, rows = ("name", "status", "title"), [("hemibrain_crop", "listed", "T" * 50)]
    assert cli._fitting(columns, rows, None) == (columns, rows)
    assert cli._fitting(columns, rows, 74) == (columns, rows)
    assert cli._fitting(columns, rows, 73) == (columns[:2], [rows[0][:2]])
    assert cli._fitting(columns, rows, 5) == (columns[:2], [rows[0][:2]])


def test_show(run, tmp_path):
    """What is stated of a dataset that is not here, what is stored of one that is, the same and its record as JSON."""
    assert re.search(r"^  status +listed$", run("show", "hemibrain_crop")[1], re.MULTILINE)
    folder = store_of(tmp_path)
    assert re.search(r"^  file_size_bytes +1\.0 kB \(1000 bytes\)$", run("show", "hemibrain_crop")[1], re.MULTILINE)
    shown = json.loads(run("show", "hemibrain_crop", "--json")[1])
    record = folder.read_record()
    assert shown["record"] == record.model_dump(mode="json") | {"status": record.visible_status}
    assert shown["identity"] == record.identity
    assert shown["file_size_bytes"] == 1000


def test_plan_without_the_network(run, monkeypatch):
    """Partitions and disk, from spec and store alone; what is too large is refused with exit code 1."""
    code, out, _ = run("plan", "hemibrain_crop", "--offline")
    assert code == 0
    assert "64 of 64 partitions" in out
    assert json.loads(run("plan", "hemibrain_crop", "--offline", "--json")[1])["partitions_missing"] == 64
    monkeypatch.setenv("EM_ASSETS_MAX_BYTES", "1000000")
    code, out, err = run("plan", "hemibrain_crop", "--offline")
    assert code == 1
    assert "64 of 64" in out
    assert "EM_ASSETS_MAX_BYTES" in err


def test_du(run, tmp_path):
    """Each dataset's bytes and their sum."""
    folder = store_of(tmp_path)
    folder.store.write("README.md", b"x" * 10)
    rows = json.loads(run("du", "--format", "json")[1])
    stored = sum(size for _, size in folder.store.list("hemibrain_crop"))
    assert {row["name"]: row["size_bytes"] for row in rows} == {"hemibrain_crop": stored, "(catalogue)": 10}
    assert re.search(r"^total +\S+ kB", run("du")[1], re.MULTILINE)
    assert " free" in run("du")[1]


def test_logs(run, tmp_path):
    """The runs, the newest first, and why the last one failed; an unreadable one is left out."""
    folder = store_of(tmp_path)
    for day, outcome in [("20260101", "success"), ("20260201", "failure")]:
        line = {"started": f"{day}T000000", "outcome": outcome, "reason": None, "received_bytes": 1500, "seconds": 90.0}
        folder.write(f"runs/{day}T000000Z-a.json", json.dumps(line).encode())
    folder.write("runs/20260301T000000Z-b.json", b"{")
    folder.write_record(folder.read_record().with_status("error", "the origin burnt down"))
    _, out, _ = run("logs", "hemibrain_crop")
    assert out.index("failure") < out.index("success")
    assert "1.5 kB" in out
    assert "1 min 30 s" in out
    assert out.endswith("hemibrain_crop is error: the origin burnt down\n")
    assert "success" not in run("logs", "hemibrain_crop", "-n", "2")[1]


# What changes the store


def test_rm_asks_first(run, tmp_path):
    """Where nobody can be asked, nothing is removed: exit code 2, and what to add."""
    folder = store_of(tmp_path)
    code, out, err = run("rm", "hemibrain_crop")
    assert code == 2
    assert "1.0 kB" in out or "kB in 2 objects" in out
    assert "--yes" in err
    assert folder.read_record() is not None


def test_rm_removes_the_dataset_and_its_row(run, tmp_path):
    """Nothing of it is left, its neighbour is untouched, the catalogue knows; a second time there is nothing."""
    folder = store_of(tmp_path)
    folder.store.write("neighbour/file", b"1")
    code, out, err = run("rm", "hemibrain_crop", "--yes")
    assert code == 0, err
    assert "removed hemibrain_crop" in out
    assert list(folder.store.list("hemibrain_crop")) == []
    assert not Path(folder.store.root, "hemibrain_crop").exists()
    assert list(folder.store.list("neighbour")) == [("neighbour/file", 1)]
    rows = json.loads(run("sql", "select name, status from datasets", "--format", "json")[1])
    assert rows == [{"name": name, "status": "listed"} for name in sorted(PACKAGED)]
    assert "nothing of hemibrain_crop is stored" in run("rm", "hemibrain_crop", "--yes")[1]


def test_rm_removes_what_has_lost_its_spec_or_its_record(run, tmp_path):
    """What a killed first run or a deleted spec left is a dataset to `rm`, and a damaged record no obstacle."""
    folder = store_of(tmp_path)
    folder.store.write("forgotten/volume.ome.zarr/zarr.json", b"{}")
    assert run("rm", "forgotten", "--yes")[0] == 0
    folder.write("metadata.json", b"{")
    assert run("rm", "hemibrain_crop", "--yes")[0] == 0
    assert list(folder.store.list("hemibrain_crop")) == []


def test_rm_leaves_a_dataset_that_is_being_written(run, tmp_path):
    """A living writer is named and its dataset untouched; a dead one is no obstacle."""
    folder = store_of(tmp_path)
    writing = folder.read_record().with_status("saving-data")
    folder.write_record(writing)
    code, _, err = run("rm", "hemibrain_crop", "--yes")
    assert code == 1
    assert f"is being written (process {os.getpid()}" in err
    assert folder.read_record() == writing
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    beat = Heartbeat.now().model_copy(update={"pid": dead.pid})
    folder.write_record(writing.model_copy(update={"heartbeat": beat}))
    assert run("rm", "hemibrain_crop", "--yes")[0] == 0


def test_rm_does_not_wait_for_the_lock(run, tmp_path):
    """A run that holds the dataset without having said so yet is not waited for."""
    from em_assets.pipeline import dataset_lock

    folder = store_of(tmp_path)
    with dataset_lock(folder.store, "hemibrain_crop", print):
        code, _, err = run("rm", "hemibrain_crop", "--yes")
    assert code == 1
    assert "is being written by another process" in err
    assert folder.read_record() is not None


def test_an_answer_at_the_terminal(tmp_path):
    """`n` does nothing (exit code 1), `y` does it."""
    folder = store_of(tmp_path)
    assert typed("n\n", tmp_path)[0] == 1
    assert folder.read_record() is not None
    code, shown = typed("y\n", tmp_path)
    assert code == 0, shown
    assert "Remove?" in shown
    assert folder.read_record() is None


def typed(answer: str, cwd: Path) -> tuple[int, str]:
    """`em-assets rm hemibrain_crop` on a pseudo terminal at which somebody types: (exit code, what was shown)."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "em_assets.cli", "rm", "hemibrain_crop"])
    shown, asked = b"", False
    while select.select([descriptor], [], [], 30)[0]:
        try:
            shown += os.read(descriptor, 4096)
        except OSError:
            break
        if b"?" in shown and not asked:
            os.write(descriptor, answer.encode())
            asked = True
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(descriptor)
    return code, shown.decode()


# The sample


@pytest.mark.slow
def test_sample_prints_only_exports_and_what_to_do(tmp_path):
    """`up` says what it did and the next step, `env` gives a shell exactly three variables, `down` stops the server."""
    assert "em-assets sample up" in shell("sample", "env", cwd=tmp_path).stderr
    assert "there is no sample" in shell("sample", "status", cwd=tmp_path).stdout
    try:
        up = shell("sample", "up", cwd=tmp_path)
        assert up.returncode == 0, up.stderr
        assert 'eval "$(em-assets sample env)"' in up.stdout
        lines = shell("sample", "env", cwd=tmp_path).stdout.splitlines()
        assert [line.partition("=")[0] for line in lines] == [
            "export EM_ASSETS_DATASETS",
            "export EM_ASSETS_ROOT",
            "export DAGSTER_HOME",
        ]
        assert "already served at http://127.0.0.1:" in shell("sample", "status", cwd=tmp_path).stdout
    finally:
        down = shell("sample", "down", cwd=tmp_path)
    assert "is stopped" in down.stdout
    assert "was not running" in shell("sample", "down", cwd=tmp_path).stdout


# get: Dagster as a child


class Place:
    """A folder of specs, a store and a cache, outside any repository; and the origin they point at."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        """`changes`: of the spec."""
        publish(folder / "published")
        self.folder, self.server = folder, FaultyServer(folder / "published")
        self.server.__enter__()
        self.spec = write_spec(folder / "specs", self.server.url, **changes)
        self.dataset = DatasetFolder(LocalStore(folder / "store"), "small")
        self.variables = {
            "EM_ASSETS_DATASETS": str(folder / "specs"),
            "EM_ASSETS_ROOT": str(folder / "store"),
            "EM_ASSETS_CACHE": str(folder / "cache"),
            "EM_ASSETS_UNREACHABLE_SECONDS": "2",
            "EM_ASSETS_RETRY_SECONDS": "2",
        }
        self.done: subprocess.CompletedProcess | None = None
        self.cwd = folder / "elsewhere"
        self.cwd.mkdir()

    def type(self, *arguments: str) -> subprocess.CompletedProcess:
        return shell(*arguments, cwd=self.cwd, **self.variables)

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "em_assets.cli", *arguments],
            cwd=self.cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **self.variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def status(self) -> str | None:
        record = self.dataset.read_record()
        return record.visible_status if record is not None else None


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.server.stop()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A place where `get` has done the whole job, and what it printed."""
    place = Place(tmp_path_factory.mktemp("finished"), output={"shard": [128, 128, 128]})
    place.done = place.type("get", "small", "--yes")
    yield place
    place.server.stop()


def sessions() -> set[int]:
    """The sessions that living processes belong to."""
    lines = subprocess.run(["ps", "-eo", "sid=,stat="], capture_output=True, text=True, check=True).stdout.splitlines()
    return {int(line.split()[0]) for line in lines if "Z" not in line}


def data_only(fault: Fault):
    """The fault for everything but `info`."""
    return lambda path, range_header, count: None if path.endswith("/info") else fault


def slow_voxels(path: str, range_header: str | None, count: int) -> Fault | None:
    """A slow line, on which only the small replies (`info`, indices) come at once."""
    first, last = re.findall(r"\d+", range_header or "0-0")
    return Fault(bytes_per_second=20_000) if int(last) - int(first) > 4000 else None


def test_get_asks_first(place):
    """The plan with bytes and requests, then the question; where nobody can answer: exit code 2, nothing fetched."""
    asked = place.type("get", "small")
    assert asked.returncode == 2
    assert re.search(r"small: 27 of 27 partitions to fetch \(\S+ \wB, \d+ objects, \d+ requests\)", asked.stdout)
    assert "--yes" in asked.stderr.strip().splitlines()[-1]
    assert place.dataset.read_record() is None


def test_get_of_an_unreachable_origin_is_one_sentence(place):
    """Nothing but the reason on stderr; exit code 1."""
    place.server.fail = lambda path, range_header, count: Fault(cut_after=-1, reset=True)
    failed = place.type("get", "small", "--yes")
    assert failed.returncode == 1
    assert len(failed.stderr.strip().splitlines()) == 1
    assert "127.0.0.1" in failed.stderr


@pytest.mark.slow
def test_get_that_fails_midway_ends_with_the_reason(place):
    """The failing step's own sentence is the only line on stderr; the history and the catalogue have it."""
    place.server.fail = data_only(Fault(status=500))
    failed = place.type("get", "small", "--yes")
    assert failed.returncode == 1, failed.stdout
    [reason] = failed.stderr.strip().splitlines()
    assert reason.startswith("small: ")
    assert "500" in reason
    assert reason in place.type("logs", "small").stdout
    assert place.status() == "error"


@pytest.mark.slow
def test_get_can_be_interrupted(place):
    """SIGINT in the middle of the download: within 5 s exit code 130, nothing goes on, and what to do is said."""
    place.server.fail = slow_voxels
    process = place.start("get", "small", "--yes")
    try:
        deadline = time.monotonic() + 60
        while place.status() != "saving-data" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert place.status() == "saving-data"
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert time.monotonic() - started < 5
    assert process.returncode == 130
    assert "em-assets get small" in out.strip().splitlines()[-1]
    assert err == ""
    assert place.status() == "interrupted"
    assert process.pid not in sessions()


def test_get_does_the_whole_job(finished):
    """Plan, summary with the path and what to do next; the log apart; Dagster's memory in the cache, not here."""
    done = finished.done
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert finished.dataset.read_record().status == "complete"
    for text in (finished.dataset.uri(VOLUME), "em-assets view small", 'em-assets sql "from overview"', "import zarr"):
        assert text in done.stdout
    assert len(done.stdout.splitlines()) < 15
    log = re.search(r"log is (\S+)", done.stdout)[1]
    assert "RUN_SUCCESS" in Path(log).read_text()
    assert (finished.folder / "cache" / "dagster" / "dagster.yaml").is_file()
    assert not list(finished.cwd.iterdir())


def test_get_of_what_is_here_starts_nothing(finished):
    """Again: the summary at once, not a byte from the origin, no Dagster."""
    before, logs = len(finished.server.log), len(list((finished.folder / "cache" / "logs").iterdir()))
    started = time.monotonic()
    again = finished.type("get", "small")
    assert again.returncode == 0, again.stderr
    assert "nothing to fetch" in again.stdout
    assert time.monotonic() - started < 5
    assert len(finished.server.log) == before
    assert len(list((finished.folder / "cache" / "logs").iterdir())) == logs


def test_the_lines_to_try_next_work(finished):
    """The Python that the summary prints reads the voxels."""
    lines = finished.type("get", "small").stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if "import zarr" in line)
    code = "\n".join(line[10:] for line in lines[start : start + 3]) + "\nprint(block.shape, block.max() > 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(128, 128, 128) True", done.stderr


def test_sql_in_every_format(finished, run, monkeypatch):
    """The catalogue as a table, CSV and JSON; only reading is possible."""
    for name, value in finished.variables.items():
        monkeypatch.setenv(name, value)
    assert "small" in run("sql", "from overview")[1]
    assert run("sql", "select name from datasets", "--format", "csv")[1] == "name\nsmall\n"
    assert json.loads(run("sql", "select name from datasets", "--format", "json")[1]) == [{"name": "small"}]
    code, _, refusal = run("sql", "drop table datasets")
    assert code == 1
    assert "only read" in refusal


def test_a_too_large_dataset_is_refused_with_its_plan(place):
    """EM_ASSETS_MAX_BYTES is named; nothing is asked or started."""
    place.variables["EM_ASSETS_MAX_BYTES"] = "1000"
    refused = place.type("get", "small", "--yes")
    assert refused.returncode == 1
    assert "27 of 27 partitions" in refused.stdout
    assert "EM_ASSETS_MAX_BYTES" in refused.stderr


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    """A file where the cache folder should be (as root, permissions would not do): the variable is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="EM_ASSETS_CACHE"):
        dagster_child.new_log(Settings(cache=tmp_path / "file"), "small")


def test_only_the_newest_logs_are_kept(tmp_path):
    """Twenty per dataset; those of other datasets stay."""
    folder = tmp_path / "logs"
    folder.mkdir()
    for number in range(30):
        (folder / f"small-202601{number:02d}T000000Z-1.log").touch()
    (folder / "small_two-20260101T000000Z-1.log").touch()
    newest = dagster_child.new_log(Settings(cache=tmp_path), "small")
    left = sorted(folder.glob("small-*.log"))
    assert len(left) == 20
    assert newest in left
    assert (folder / "small_two-20260101T000000Z-1.log").exists()


def test_a_stubborn_child_is_killed(tmp_path):
    """A child and its own child that ignore SIGINT are gone within 5 s of it."""
    script = "trap '' INT; sleep 60 & echo started; wait; sleep 60"
    runner = (
        "import sys; from em_assets.dagster_child import run_group\n"
        f"print(run_group(['bash', '-c', {script!r}], {{'PATH': '/usr/bin:/bin'}}, sys.stdout.buffer), flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", runner],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "started\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "(-9, 15)\n"
    assert time.monotonic() - started < 5
    assert process.pid not in sessions()
