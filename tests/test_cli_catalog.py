"""The commands about the catalogue: what a person reads about a dataset, from where, and what disagrees."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT
from em_assets import cli, cli_show
from em_assets.catalog.schema import CONFLICTS, DATASETS
from em_assets.catalog.vocabulary import FIELDS
from em_assets.pipeline import listed_record
from em_assets.records import VOLUME, DatasetFolder, Heartbeat
from em_assets.store import LocalStore
from faulty import Fault, FaultyServer
from small import data_requests, publish, write_spec

PAGE = "https://host.example/page"
STATED = {
    "instrument": "FEI Magellan 400",
    "organism": "Drosophila melanogaster",
    "claims": [
        {"key": "instrument", "value": "FEI Quanta", "url": PAGE, "note": "in the text"},
        {"key": "organism", "value": "Mus musculus", "by": "third party"},
        {"key": "dwell_time_s", "value": "5 us", "url": PAGE},
    ],
}
"""Of the spec `small`: a page against the spec, a third party against the spec."""
OVERRIDES = {"modality": {"value": "SBF-SEM", "reason": "the authors say so"}}
"""And a person against the spec."""


def small_spec(folder: Path, url: str = "http://127.0.0.1:9", **changes) -> None:
    file = folder / f"{write_spec(folder, url, **{**STATED, **changes}).name}.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "overrides": OVERRIDES}, sort_keys=False))


@pytest.fixture
def specs(monkeypatch, tmp_path):
    """An empty folder to work in, whose specs are those of its own folder `specs`, which has `small`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EM_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EM_ASSETS_DATASETS", str(tmp_path / "specs"))
    small_spec(tmp_path / "specs")
    return tmp_path / "specs"


@pytest.fixture
def packaged(monkeypatch, tmp_path):
    """An empty folder to work in, with the package's own specs, as on a fresh clone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EM_ASSETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["em-assets", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return command


@pytest.fixture
def served(specs, monkeypatch, tmp_path):
    """The volume `small` on a server, with a page and an address where there is none."""
    publish(tmp_path / "published")
    (tmp_path / "published" / "about.json").write_text('{"instrument": "FEI Quanta"}')
    for name, value in {"EM_ASSETS_UNREACHABLE_SECONDS": "1", "EM_ASSETS_RETRY_SECONDS": "1"}.items():
        monkeypatch.setenv(name, value)
    with FaultyServer(tmp_path / "published") as server:
        documents = [
            {"path": name, "url": f"{server.url}/{name}", "kind": "json"} for name in ("about.json", "no.json")
        ]
        small_spec(specs, server.url, documents=documents)
        yield server


def stored(spec_folder: Path, **changes) -> DatasetFolder:
    """A store with a record and some bytes of `small`, made without a download."""
    from em_assets.datasets.loading import load_specs

    folder = DatasetFolder(LocalStore(spec_folder.parent / "data"), "small")
    volume = folder.write(f"{VOLUME}/zarr.json", b"{}" * 500)
    values = {"file_size_bytes": volume.size_bytes, "local_paths": {"volume": folder.uri(VOLUME)}, **changes}
    folder.write_record(listed_record(load_specs([spec_folder])["small"]).with_status("error", "half of it", **values))
    return folder


def blocks(text: str) -> dict[str, list[str]]:
    """The indented lines below each heading."""
    parts = re.split(r"\n\n", text.strip())
    return {part.splitlines()[0]: part.splitlines()[1:] for part in parts}


def database(specs: Path) -> Path:
    return specs.parent / "data" / "metadata.duckdb"


# show


def test_show_on_a_fresh_clone(packaged, run):
    """Every field by REMBI's module with its value, unit and origin, before anything was downloaded or built."""
    code, out, err = run("show", "hemibrain_crop")
    assert (code, err) == (0, "")
    shown = blocks(out)
    assert out.startswith("hemibrain_crop: Hemibrain crop")
    [licence] = [line for line in shown["Study"] if line.split()[0] == "license"]
    assert re.fullmatch(r"  license +CC-BY-4\.0 +spec: spec\.json /license \(as third parties state it; .*\)", licence)
    [size] = [line for line in shown["Image data"] if line.split()[0] == "voxel_size_z_nm"]
    assert re.fullmatch(r"  voxel_size_z_nm +8 nm +spec: spec\.json /expected/voxel_size_nm/0", size)
    assert any(line.split() == ["status", "listed"] for line in shown["Stored here"])
    assert any(line.startswith("  source_size_z: ") for line in shown["Conflicts"])
    assert "em-assets get hemibrain_crop" in out.splitlines()[-1]


def test_show_says_who_and_why(specs, run):
    """A page goes before the spec, a decision before both, its reason stands beside it; the unknown is named."""
    shown = blocks(run("show", "small")[1])
    lines = {line.split()[0]: " ".join(line.split()[1:]) for block in shown.values() for line in block}
    assert lines["instrument"] == "FEI Quanta publisher page: spec.json /claims/0/value (in the text)"
    assert lines["modality"] == "SBF-SEM override: spec.json /overrides/modality/value (the authors say so)"
    assert lines["dwell_time_s"] == "5e-06 s publisher page: spec.json /claims/2/value"
    assert lines["page_url"].endswith("spec: spec.json /page_url")
    [unknown] = shown["Not known"]
    assert "cell_line" in unknown
    assert "instrument" not in unknown
    [conflict] = [line for line in shown["Conflicts"] if "instrument" in line]
    assert conflict == "  instrument: FEI Quanta, not FEI Magellan 400 (spec): publisher page goes before spec"


def test_show_of_what_is_stored(specs, run):
    """Status with its reason, sizes, digests and paths; what it is about stays beside it."""
    folder = stored(specs, sha256="0" * 64)
    shown = blocks(run("show", "small")[1])
    here = {line.split()[0]: " ".join(line.split()[1:]) for line in shown["Stored here"]}
    assert here["status"] == "error"
    assert here["status_reason"] == "half of it"
    assert here["file_size_bytes"] == "1.0 kB (1000 bytes)"
    assert here["sha256"] == "0" * 64
    assert here["volume"] == folder.uri(VOLUME)
    assert here["volume_shape"] == "130 x 140 x 150 voxels (z, y, x)"


def test_show_as_json(specs, run):
    """Every column of `datasets`, and of every one that is known where it is from."""
    shown = json.loads(run("show", "small", "--json")[1])
    columns = {column.name for column in DATASETS.columns}
    assert columns <= shown.keys()
    assert shown["record"] is None
    assert {column for column in columns if shown[column] is not None} <= shown["from"].keys()
    assert shown["from"]["instrument"] == {
        "value": "FEI Quanta",
        "unit": None,
        "authority": "publisher page",
        "document": "spec.json",
        "key": "/claims/0/value",
        "stated": "FEI Quanta",
        "note": "in the text",
    }
    assert shown["from"]["status"] == {"authority": "stored here"}
    assert {pair["field"] for pair in shown["disagreements"]} == {"instrument", "organism", "modality"}
    assert "claims" not in shown


def test_what_is_measured_here_is_not_the_specs(specs, run):
    """A stored volume of another voxel size than the spec's: the record's value, and no claim's name beside it."""
    stored(specs, voxel_size_nm=(9.0, 8.0, 8.0))
    shown = json.loads(run("show", "small", "--json")[1])
    assert shown["voxel_size_z_nm"] == 9.0
    assert shown["from"]["voxel_size_z_nm"] == {"authority": "stored here"}
    assert shown["from"]["voxel_size_y_nm"]["key"] == "/expected/voxel_size_nm/1"


def test_show_all_claims(specs, run):
    """Each under its document with its own key; the same beside the record as JSON."""
    out = run("show", "small", "--claims")[1]
    assert out.startswith("spec.json (spec)\n")
    assert re.search(rf"^  /claims/0/url +{PAGE}$", out, re.MULTILINE)
    claims = json.loads(run("show", "small", "--claims", "--json")[1])["claims"]
    assert {"/claims/0/value", "/overrides/modality/reason"} <= {claim["key"] for claim in claims}
    assert len(out.splitlines()) == 1 + len(claims)


def test_a_damaged_record_is_shown_as_such(specs, run):
    """What the spec states is shown all the same, with the reason."""
    stored(specs).write("metadata.json", b"{")
    code, out, _ = run("show", "small")
    assert code == 0
    assert re.search(r"^  status +error$", out, re.MULTILINE)
    assert "is not a DatasetRecord" in out
    assert json.loads(run("show", "small", "--json")[1])["record"] is None


def test_a_further_volumes_fields_are_in_the_records_order(packaged, run):
    """As those of the dataset: sizes along z, y, x, one below the other."""
    section = run("show", "jrc_mus_nacc_2")[1].split("\nVolume nuc\n")[1].split("\n\n")[0]
    fields = re.findall(r"^  (\w+)", section, re.MULTILINE)
    assert len(fields) > 6
    assert fields == [field for field in FIELDS if field in fields]


@pytest.mark.parametrize("command", ["show", "describe", "conflicts", "cite"])
def test_an_unknown_name_is_exit_code_2(specs, run, command):
    """The nearest one is named; no catalogue is built for it."""
    code, out, err = run(command, "smal")
    assert (code, out) == (2, "")
    assert "did you mean small?" in err.splitlines()[-1]
    assert not database(specs).exists()


def test_a_folder_of_somebody_else_is_no_dataset(specs, run):
    """Neither spec nor record: exit code 2 as for any unknown name."""
    LocalStore(specs.parent / "data").write("notes/file", b"1")
    code, _, err = run("show", "notes")
    assert code == 2
    assert "there is no dataset 'notes'" in err


# At the terminal


def on_terminal(*arguments: str, cwd: Path, columns: int) -> list[str]:
    """The lines that a person sees on a terminal so wide."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "em_assets.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns)},
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=subprocess.PIPE,
    )
    os.close(slave)
    raw = b""
    try:
        while piece := os.read(master, 65536):
            raw += piece
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(master)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0
    return raw.decode().replace("\r\n", "\n").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("show", "small"), ("show", "small", "--claims"), ("conflicts",)])
def test_it_fits_the_terminal(specs, arguments):
    """No line is wider than 80 columns, and control characters of a publisher stay behind."""
    note = "\x9b2J seen \x1b[31min the text, which is so long that it has to be folded at the end of the line"
    claims = [{"key": "instrument", "value": "FEI\x1b[31m Quanta", "url": PAGE, "note": note}]
    small_spec(specs, claims=claims)
    lines = on_terminal(*arguments, cwd=specs.parent, columns=80)
    assert len(lines) > 5
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "FEI[31m Quanta" in text
    assert "\x1b" not in text
    assert "\x9b" not in text


WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=12), max_size=20).map(" ".join)


@given(label=st.text("abc_", min_size=1, max_size=24), value=WORDS, origin=WORDS, width=st.integers(50, 120))
def test_folding_loses_nothing(label, value, origin, width):
    """Whatever the width: the same words in the same order, no line longer than it."""
    lines = list(cli_show._fact_lines((label, value, origin), width))
    assert " ".join(" ".join(lines).split()) == " ".join(f"{label} {value} {origin}".split())
    assert all(len(line) <= width for line in lines)


# When the catalogue is built


def test_what_is_up_to_date_is_not_built_again(specs, run):
    """Asking twice leaves the database as it is."""
    run("show", "small")
    before = database(specs).stat()
    for arguments in (["show", "small", "--json"], ["conflicts"], ["cite", "small"]):
        assert run(*arguments)[0] == 0
    after = database(specs).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_changed_record_or_spec_is_seen(specs, run):
    """Without anybody having built the catalogue: a new record, then a new title in the spec."""
    assert "status               " in run("show", "small")[1]
    folder = stored(specs)
    assert "half of it" in run("show", "small")[1]
    folder.store.delete_all("small")
    write_spec(specs, "http://127.0.0.1:9", title="Another title")
    assert run("show", "small")[1].startswith("small: Another title\n")


def test_a_new_spec_is_seen(specs, run):
    """`em-assets add` wrote one since the catalogue was built."""
    run("show", "small")
    write_spec(specs, "http://127.0.0.1:9", name="smaller")
    assert run("show", "smaller")[0] == 0


def test_a_writer_that_died_is_seen(specs, run):
    """Its record says nothing new, and is interrupted all the same."""
    folder = stored(specs)
    writer = subprocess.Popen(["sleep", "60"])
    beat = Heartbeat.now().model_copy(update={"pid": writer.pid, "process_start": None})
    record = folder.read_record().with_status("saving-data")
    folder.write_record(record.model_copy(update={"heartbeat": beat}))
    assert json.loads(run("show", "small", "--json")[1])["status"] == "saving-data"
    writer.kill()
    writer.wait()
    assert json.loads(run("show", "small", "--json")[1])["status"] == "interrupted"


@pytest.mark.parametrize("kind", ["of an earlier version", "no database"])
def test_another_catalogue_is_replaced(specs, run, kind):
    """It is a cache: what an earlier version left, or a damaged one, is no obstacle."""
    database(specs).parent.mkdir()
    if kind == "no database":
        database(specs).write_bytes(b"junk" * 1000)
    else:
        with duckdb.connect(database(specs)) as old:
            old.execute("create table datasets (name varchar)")
    code, out, err = run("show", "small")
    assert (code, err) == (0, "")
    assert "FEI Quanta" in out


@pytest.mark.slow
def test_a_store_that_cannot_be_written_is_read(specs, run):
    """The old catalogue answers, with a word of warning; where there is none, the reason is the answer."""
    limited = 'ulimit -f 0; exec "$0" -m em_assets.cli show small'
    place = {"cwd": specs.parent, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    refused = subprocess.run(["bash", "-c", limited, sys.executable], **place, check=False)
    assert refused.returncode == 1
    assert "could not be written" in refused.stderr
    run("show", "small")
    write_spec(specs, "http://127.0.0.1:9", title="Another title")
    old = subprocess.run(["bash", "-c", limited, sys.executable], **place, check=False)
    assert old.returncode == 0, old.stderr
    assert old.stdout.startswith("small: A small volume\n")
    assert old.stderr.startswith("careful: the catalogue is older than the store: ")


# conflicts


IN_WORDS = """small
  instrument
    taken  FEI Quanta
             publisher page: spec.json /claims/0/value (in the text)
    not    FEI Magellan 400
             spec: spec.json /instrument
    why    publisher page goes before spec
  modality
    taken  SBF-SEM
             override: spec.json /overrides/modality/value (the authors say so)
    not    FIB-SEM
             spec: spec.json /modality
    why    decided in the spec: the authors say so
  organism
    taken  Drosophila melanogaster
             spec: spec.json /organism
    not    Mus musculus
             third party: spec.json /claims/1/value
    why    what a third party says is never taken

conflicts: 3 pairs of values, fields: 3, datasets: 1
"""


def test_conflicts_in_words(specs, run):
    """The value that was taken, the other ones, all who state them, and why."""
    code, out, _ = run("conflicts", "small")
    assert code == 0
    assert out == IN_WORDS


def test_many_values_of_a_field_are_one_block(specs, run):
    """Not six pairs: each value once, with how often it is stated, the one that was taken first."""
    extents = ("10 x 11 x 12", "10 x 11 x 13", "10 x 11 x 12", "10 x 11 x 14")
    small_spec(specs, claims=[{"key": "source_shape", "value": value, "by": "third party"} for value in extents])
    out = run("conflicts")[1]
    [block] = re.findall(r"^  source_size_x\n((?:    .*\n)+)", out, re.MULTILINE)
    values = re.findall(r"^    (\w+) +(\d+) voxels\n +(.*): spec\.json (\S+)", block, re.MULTILINE)
    assert values == [
        ("taken", "190", "spec", "/expected/source_shape/0/2"),
        ("not", "12", "third party, 2 times", "/claims/0/value"),
        ("not", "13", "third party", "/claims/1/value"),
        ("not", "14", "third party", "/claims/3/value"),
    ]
    [line] = [line for line in run("show", "small")[1].splitlines() if line.startswith("  source_size_x: ")]
    assert all(f"{value} voxels" in line for _, value, _, _ in values)


def test_a_field_that_nobody_may_decide(specs, run):
    """Two third parties: both are said, none is taken."""
    extra = [{"key": "cell_line", "value": value, "by": "third party"} for value in ("HeLa", "U2OS")]
    small_spec(specs, claims=extra)
    out = run("conflicts")[1]
    assert "    said   HeLa\n" in out
    assert "    said   U2OS\n" in out
    assert "    why    nobody whose word is taken states it\n" in out
    assert "  cell_line: HeLa (third party) or U2OS (third party): nobody whose" in run("show", "small")[1]


def test_conflicts_for_a_program(specs, run):
    """The view as it is, as CSV and JSON; also of nothing."""
    columns = [column.name for column in CONFLICTS.columns]
    assert run("conflicts", "--format", "csv")[1].splitlines()[0].split(",") == columns
    rows = json.loads(run("conflicts", "small", "--format", "json")[1])
    assert [(row["field"], row["value_a"], row["value_b"], row["chosen"]) for row in rows] == [
        ("instrument", "FEI Quanta", "FEI Magellan 400", "FEI Quanta"),
        ("modality", "SBF-SEM", "FIB-SEM", "SBF-SEM"),
        ("organism", "Drosophila melanogaster", "Mus musculus", "Drosophila melanogaster"),
    ]
    write_spec(specs, "http://127.0.0.1:9", claims=[])
    assert run("conflicts") == (0, "no conflicts\n", "")
    assert run("conflicts", "small") == (0, "small: no conflicts\n", "")
    assert run("conflicts", "--format", "json")[1] == "[]\n"


# cite


def test_cite_in_one_line_each(packaged, run):
    """Citation, DOI and licence on stdout, in the order asked; how sure that is on stderr."""
    code, out, err = run("cite", "empiar_11759", "hemibrain_crop", "empiar_11759")
    assert code == 0
    first, second = out.splitlines()
    assert "10.6019/EMPIAR-11759" in first
    assert "CC0-1.0" in first
    assert "10.7554/eLife.57443" in second
    assert "CC-BY-4.0" in second
    assert "careful: hemibrain_crop: licence: as third parties state it" in err


@pytest.mark.parametrize("form", ["bibtex", "datacite", "csl"])
def test_cite_for_a_program(packaged, run, form):
    """BibTeX, and JSON lists with an entry for each name; nothing else on stdout."""
    out = run("cite", "idr_9846137", "epfl_hippocampus", "--format", form)[1]
    if form == "bibtex":
        assert re.findall(r"^@misc\{(\w+),$", out, re.MULTILINE) == ["idr_9846137", "epfl_hippocampus"]
    else:
        assert len(json.loads(out)) == 2


# catalog


def test_catalog_builds_database_and_exports(specs, run):
    """All of them, from specs and store alone; what did not change is left as it was."""
    code, out, err = run("catalog")
    assert (code, err) == (0, "")
    assert "1 datasets" in out
    for name in ("metadata.duckdb", "metadata.csv", "metadata.json", "metadata.parquet", "METADATA_SUMMARY.md"):
        assert (specs.parent / "data" / name).is_file()
    assert re.search(r"^  metadata\.csv$", out, re.MULTILINE)
    assert re.search(r"^  metadata\.csv \(as it was\)$", run("catalog")[1], re.MULTILINE)
    database(specs).unlink()
    assert run("catalog")[0] == 0
    assert database(specs).is_file()


# describe


def test_describe_fetches_documents_and_no_voxels(served, specs, run):
    """One line with documents, claims and conflicts, what is missing and why, what to do next; it stays listed."""
    code, out, err = run("describe", "small")
    assert (code, err) == (0, "")
    line, missing, following = out.splitlines()
    assert re.fullmatch(r"small: 2 documents \(2 received now\), \d+ claims, 3 conflicts", line)
    assert missing.startswith("  missing: documents/no.json: ")
    assert "404" in missing
    assert "em-assets show small" in following
    assert data_requests(served) == 2  # about.json and no.json; the third is `info`
    assert json.loads(run("show", "small", "--json")[1])["status"] == "listed"
    assert re.search(r"^  /instrument +FEI Quanta$", run("show", "small", "--claims")[1], re.MULTILINE)


def test_describe_asks_again_only_on_request(served, run):
    """What is here is here; --refresh asks for it, --offline for nothing at all."""
    run("describe", "small")

    def asked(*arguments: str) -> set[str]:
        before = len(served.log)
        assert run("describe", "small", *arguments)[0] == 0
        return {path for _, path, _ in list(served.log)[before:]}

    assert asked("--offline") == set()
    assert asked() == {"/no.json"}
    assert "/about.json" in asked("--refresh")


def test_describe_goes_on_after_a_failure(served, specs, run):
    """One dataset's damaged document costs the others nothing; it is the last line, and exit code 1."""
    run("describe", "small")
    write_spec(specs, served.url, name="other")
    DatasetFolder(LocalStore(specs.parent / "data"), "small").write("documents/about.json", b"{")
    code, out, err = run("describe", "--all", "--offline")
    assert code == 1
    assert out.startswith("other: 0 documents, ")
    assert "documents/about.json" in err.splitlines()[-1]


def test_describe_of_an_unreachable_publisher(served, run):
    """What cannot be had is named, and stops nothing."""
    served.fail = lambda path, range_header, count: Fault(cut_after=-1, reset=True)
    code, out, _ = run("describe", "small")
    assert code == 0
    assert out.startswith("small: 0 documents, ")
    assert "  missing: documents/about.json: " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--all"),
        (["small", "--all"], "--all"),
        (["small", "--offline", "--refresh"], "choose one"),
    ],
    ids=["nothing", "names and all", "offline and refresh"],
)
def test_describe_wants_to_know_what(specs, run, arguments, message):
    """A wrong command line is exit code 2, and nothing is made."""
    code, _, err = run("describe", *arguments)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert not (specs.parent / "data").exists()
