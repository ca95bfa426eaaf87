"""`em-assets doctor`: this machine, and publishers (the sample's) that serve what the specs expect, or do not."""

import json
import re
import shutil
import socket
import sys

import numpy as np
import pytest
import yaml

from em_assets import cli
from em_assets.datasets.loading import load_spec
from em_assets.datasets.source import FilesSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.doctor.installation import Requirement, look_at_installation
from em_assets.doctor.live import BUDGET_BYTES, ask_publishers
from em_assets.doctor.report import Report, Section
from em_assets.errors import Mismatch
from em_assets.sample.ftp import FtpServer
from em_assets.sample.origin import PUBLISHERS, Request
from em_assets.sample.publishing import Addresses
from em_assets.sample.server import OriginHandler, OriginServer
from em_assets.settings import PACKAGED_DATASETS
from small import quick_settings, voxels

BLOCK_BYTES = 256 * 2**10
"""So much a client may have taken from the network when it notices that it is enough."""


class Sample:
    """All publishers, served in this process; their specs by name and as files."""

    def __init__(self, folder, http, specs):
        self.folder, self.http, self.specs = folder, http, specs
        self.origin, self.datasets = folder / "origin", folder / "datasets"

    def find(self, pattern):
        (file,) = self.origin.rglob(pattern)
        return file

    def ask(self, *names, budget_bytes=BUDGET_BYTES):
        wanted = [self.specs[name] for name in names or self.specs]
        return ask_publishers(wanted, quick_settings(self.folder / "data"), lambda _: None, budget_bytes=budget_bytes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    np.save(folder / "small.npy", voxels())
    request = Request(seed=1, volume=folder / "small.npy")
    facts = {name: publisher.write(folder / "origin", request) for name, publisher in PUBLISHERS.items()}
    return folder, facts


@pytest.fixture(scope="module")
def sample(written):
    folder, facts = written
    (folder / "datasets").mkdir()
    specs = {}
    with OriginServer(folder / "origin") as http, FtpServer(folder / "origin") as ftp:
        for name, publisher in PUBLISHERS.items():
            file = folder / "datasets" / f"{name}.yaml"
            file.write_text(yaml.safe_dump(publisher.spec(facts[name], Addresses(http.url, ftp.url))))
            specs[name] = load_spec(file)
        yield Sample(folder, http, specs)


@pytest.fixture
def altered(sample):
    """The sample, and afterwards every file that was altered as it was: `altered(file, new bytes or None)`."""
    kept = {}

    def alter(file, content):
        kept.setdefault(file, file.read_bytes())
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)

    yield alter
    for file, content in kept.items():
        file.write_bytes(content)


def lines_of(report):
    return [line for section in report.sections for line in section.lines]


# The publishers


def test_an_intact_sample_has_nothing_to_complain_of(sample):
    """Every question is answered as expected; what EMPIAR's entry says wrongly is shown, and is no failure."""
    before = sample.http.bytes_sent
    report = sample.ask()
    assert not report.failures
    odd = [(line.question, line.expected, line.found) for line in lines_of(report) if line.verdict != "ok"]
    assert odd == [("entry.json: image_height", "550", "563"), ("entry.json: image_width", "548", "561")]
    assert [section.title.split()[0] for section in report.sections] == list(sample.specs)
    assert 0 < sample.http.bytes_sent - before < 10_000_000
    assert f"Received {sample.http.bytes_sent - before} bytes" in report.closing[0]


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("hemibrain_crop", "'data_encoding': 'raw'"),
        ("hemibrain_crop", "data encoding met: raw"),
        ("hemibrain_crop", "Content-Encoding: gzip"),
        ("jrc_mus_nacc_2", "'dimension_separator': '/'"),
        ("jrc_mus_nacc_2", "'compressor': {'id': 'zstd', 'level': 1}"),
        ("epfl_hippocampus", "training.tif: size: 267109"),
        ("epfl_hippocampus", "volumedata.tif: headers: ETag: "),
        ("idr_9846137", "Content-Type: application/json"),
    ],
)
def test_what_nobody_knew_is_learned(sample, name, fact):
    """How servers answer, encodings, separators, sizes that no spec pins: below the table of their dataset."""
    text = sample.ask(name).markdown()
    assert fact in text.partition("Learned:")[2]


def longer(sample, alter):
    alter(sample.find("*slice_0003.dm3"), sample.find("*slice_0003.dm3").read_bytes() + b"more")


def another_shape(sample, alter):
    file = sample.find("info")
    info = json.loads(file.read_bytes())
    info["scales"][0]["size"][2] += 64
    alter(file, json.dumps(info).encode())


def another_dtype(sample, alter):
    file = sample.find("recon-2/em/fibsem-int16/s0/.zarray")
    alter(file, file.read_bytes().replace(b"<i2", b"<u2"))


def no_document(sample, alter):
    alter(sample.find("imgData/*/.index.json"), None)


def another_entry(sample, alter):
    for file in sample.origin.rglob("api/entry/*/.index.json"):
        alter(file, file.read_bytes().replace(b"EMPIAR-11759", b"EMPIAR-10000"))


def a_page(sample, alter):
    file = sample.find("training.tif")
    alter(file, b"<html>moved</html>".ljust(file.stat().st_size))


def cut_header(sample, alter):
    file = sample.find("*_xy.tif")
    alter(file, file.read_bytes()[:8] + b"\xff" * (file.stat().st_size - 8))


def no_chunk_document(sample, alter):
    alter(sample.find("nuc/.zattrs"), b"{}")


def damaged_chunk(sample, alter):
    file = sample.find("recon-2/em/fibsem-int16/s0/1/2/2")
    alter(file, b"\0" * file.stat().st_size)


ALTERED = {
    "a longer file": (longer, "empiar_11759", "F57-8_test1_3VBSED_slice_0003.dm3: size", "460034", "460038"),
    "another shape in info": (another_shape, "hemibrain_crop", "shape (z, y, x)", "(150, 170, 190)", "(214, 170, 190)"),
    "another dtype in .zarray": (another_dtype, "jrc_mus_nacc_2", "dtype", "int16", "uint16"),
    "a document that is gone": (no_document, "idr_9846137", "imgData.json", "idr_image", "404"),
    "another entry": (another_entry, "empiar_11759", "entry.json", "empiar_entry", "EMPIAR-11759 was asked for"),
    "a page for a file": (a_page, "epfl_hippocampus", "training.tif: first bytes", "tiff", "web page"),
    "a damaged header": (
        cut_header,
        "idr_9846137",
        "header of Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xy.tif",
        "",
        "broken",
    ),
    "labels without levels": (no_chunk_document, "jrc_mus_nacc_2", "nuc: metadata", "nuc", "multiscales"),
    "a damaged chunk": (damaged_chunk, "jrc_mus_nacc_2", "a piece of level s0", "the chunk 64:128", "zstd"),
}


@pytest.mark.parametrize("case", ALTERED.values(), ids=ALTERED)
def test_what_was_altered_is_named_and_the_rest_is_still_asked(sample, altered, case):
    """The failing line has question, expected and found; every other question has its answer."""
    alter, name, question, expected, found = case
    asked = {line.question for line in lines_of(sample.ask(name))}
    alter(sample, altered)
    report = sample.ask(name)
    (line,) = [line for _, line in report.failures if line.question == question]
    assert expected in line.expected and found in line.found
    assert {line.question for line in lines_of(report)} & asked > {question} & asked
    assert len([line for line in lines_of(report) if line.verdict == "ok"]) > 0.4 * len(asked)


def test_a_mirror_that_lacks_the_file_is_a_failure(sample):
    """The second way is asked too, so that it is known before it is needed."""
    spec = sample.specs["idr_9846137"]
    moved = spec.source.model_copy(update={"mirrors": (spec.source.mirrors[0] + "/elsewhere",)})
    report = ask_publishers(
        [spec.model_copy(update={"source": moved})], quick_settings(sample.folder / "data"), lambda _: None
    )
    assert [line.question.partition(":")[0] for _, line in report.failures] == ["mirror ftp"]


def test_a_contradiction_that_the_spec_names_is_known(sample):
    """The live spec says that EMPIAR's entry is wrong: then it is neither a failure nor news."""
    spec = sample.specs["empiar_11759"]
    report = ask_publishers(
        [spec.model_copy(update={"notes": {"expected.source_shape": "the entry states 561 x 563"}})],
        quick_settings(sample.folder / "data"),
        lambda _: None,
    )
    known = [line for line in lines_of(report) if line.verdict == "known"]
    assert [line.question for line in known] == ["entry.json: image_height", "entry.json: image_width"]
    real = load_spec(PACKAGED_DATASETS / "empiar_11759.yaml")
    assert "5628 x 5632" in real.notes["expected.source_shape"]


@pytest.mark.parametrize("budget_bytes", [1000, 60_000, 400_000])
def test_the_budget_is_kept_whatever_is_asked(sample, budget_bytes):
    """What no longer fits is a line that says so, and the report comes to its end; the server's count proves it."""
    before = sample.http.bytes_sent
    report = sample.ask(budget_bytes=budget_bytes)
    assert sample.http.bytes_sent - before <= budget_bytes + BLOCK_BYTES
    spent = [line for line in lines_of(report) if "used up" in line.found]
    assert spent
    assert {line.verdict for line in spent} == {"warn"}
    assert len(report.sections) == len(sample.specs)


def test_a_server_that_ignores_ranges_cannot_break_the_budget(sample, tmp_path, monkeypatch):
    """A whole file instead of a range is cut off."""
    monkeypatch.setattr(OriginHandler, "wanted_range", lambda *_: None)
    (tmp_path / "big.tif").write_bytes(b"II*\0" + bytes(8_000_000))
    spec = sample.specs["epfl_hippocampus"]
    with OriginServer(tmp_path) as server:
        source = {"kind": "files", "url": server.url, "files": [{"path": "big.tif"}], "volume": {"files": ["big.tif"]}}
        changes = {"source": FilesSource.model_validate(source), "volumes": {}, "documents": ()}
        settings = quick_settings(tmp_path)
        report = ask_publishers([spec.model_copy(update=changes)], settings, lambda _: None, budget_bytes=300_000)
    received = int(re.search(r"Received (\d+) bytes", report.closing[0])[1])
    assert received <= 300_000 + BLOCK_BYTES


def test_unreachable_publishers_are_lines_and_not_the_end(sample):
    """Nobody listens: each question of each dataset fails with the reason, and nothing is raised."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        specs = [
            DatasetSpec.model_validate(json.loads(spec.model_dump_json().replace(sample.http.url, nobody)))
            for spec in (sample.specs["hemibrain_crop"], sample.specs["jrc_mus_nacc_2"])
        ]
        report = ask_publishers(specs, quick_settings(sample.folder / "data"), lambda _: None)
    assert {title.split()[0] for title, _ in report.failures} == {"hemibrain_crop", "jrc_mus_nacc_2"}
    assert all("cannot be reached" in line.found for _, line in report.failures)
    assert "0 requests" in report.closing[0]


# The report


def test_markdown_keeps_what_publishers_send_inside_its_cells(monkeypatch, tmp_path):
    """Pipes, tags and line breaks are escaped, long texts are cut, and the home folder is not shown."""
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "jane"))
    section = Section("evil (files)")
    section.add("FAIL", "question", f"a | b\n# <script>\x07 [x](y) {tmp_path}/home/jane/data {'x' * 5000}", "none")
    section.learn("header", "`code`")
    section.learn("nothing", None)
    text = Report([section]).markdown()
    (row,) = [line for line in text.splitlines() if line.startswith("| question |") and "expected" not in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "\\<script\\>" in row and "\\[x\\](y)" in row and "~/data" in row
    assert "jane" not in text and "\x07" not in text and len(row) < 500
    assert "- header: \\`code\\`" in text and "nothing" not in text


def test_a_bug_in_one_question_costs_no_other():
    """What is raised is the answer, be it a sentence of ours or anything else."""

    def broken():
        raise KeyError("size")

    def refused():
        raise Mismatch("changed.")

    section = Section("one")
    assert section.attempt("a", "x", broken) is None
    assert section.attempt("b", "x", refused) is None
    assert section.attempt("c", "x", lambda: 3) == 3
    assert [(line.question, line.verdict) for line in section.lines] == [("a", "FAIL"), ("b", "FAIL")]
    assert "KeyError: 'size'" in section.lines[0].found and section.lines[1].found == "changed."


# This machine


def test_each_bad_spec_is_named_and_the_others_load(tmp_path, monkeypatch):
    """One that is misspelt stops neither the others nor the doctor."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PACKAGED_DATASETS / "idr_9846137.yaml", tmp_path)
    (tmp_path / "bad.yaml").write_text("name: bad\nlicence: CC0\n")
    (tmp_path / "worse.yaml").write_bytes(b"\xff\xfe")
    section, specs = look_at_installation(quick_settings(tmp_path / "data", datasets=str(tmp_path)))
    assert list(specs) == ["idr_9846137"]
    failed = {line.question: line.found for line in section.lines if line.verdict == "FAIL"}
    assert list(failed) == ["spec bad.yaml", "spec worse.yaml"]
    assert "did you mean license?" in failed["spec bad.yaml"]


def test_a_name_given_twice_is_a_failure(tmp_path, monkeypatch):
    """Each spec is sound by itself, together they are not."""
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(PACKAGED_DATASETS / "idr_9846137.yaml", tmp_path / folder)
    section, _ = look_at_installation(quick_settings(tmp_path / "data", datasets=f"{tmp_path}/a:{tmp_path}/b"))
    failed = [line for line in section.lines if line.verdict == "FAIL"]
    assert [line.question for line in failed] == ["specs together"] and "is given by both" in failed[0].found


def test_a_store_that_cannot_be_written_is_a_failure(tmp_path, monkeypatch):
    """Below a file nothing can be made; nothing is left of the attempt where something can."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    section, _ = look_at_installation(quick_settings(tmp_path / "file" / "data", cache=tmp_path / "cache" / "deep"))
    verdicts = {line.question: line.verdict for line in section.lines}
    assert (verdicts["store"], verdicts["cache"]) == ("FAIL", "ok")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("home", "verdict"), [("", "warn"), ("relative", "FAIL"), ("{0}/absent", "FAIL"), ("{0}", "warn"), ("{0}/h", "ok")]
)
def test_dagster_home(tmp_path, monkeypatch, home, verdict):
    """Dagster refuses one that is relative or absent; one without a dagster.yaml is somebody's oversight."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "dagster.yaml").touch()
    monkeypatch.setenv("DAGSTER_HOME", home.format(tmp_path))
    section, _ = look_at_installation(quick_settings(tmp_path / "data"))
    assert [line.verdict for line in section.lines if line.question == "DAGSTER_HOME"] == [verdict]


def test_no_secret_is_shown(tmp_path, monkeypatch):
    """Credentials are named, never their values."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("https_proxy", "http://user:hunter2@proxy:8080")
    section, _ = look_at_installation(quick_settings(tmp_path / "data"))
    text = Report([section]).markdown() + Report([section]).text()
    assert "hunter2" not in text and "AWS_SECRET_ACCESS_KEY" in text and "https_proxy" in text


@pytest.mark.parametrize(
    ("line", "version", "allowed"),
    [
        ("zarr<4,>=3.1.2", "3.1.2", True),
        ("zarr<4,>=3.1.2", "3.1.1", False),
        ("zarr<4,>=3.1.2", "3.10", True),
        ("zarr<4,>=3.1.2", "4.0.0", False),
        ("tifffile>=2025.5.10", "2026.1.2", True),
        ("dagster<1.14,>=1.13.27", "1.13.9", False),
        ("dagster<1.14,>=1.13.27", "1.13.27+local", True),
        ("dagster-webserver", "0.0.1", True),
        ('neuroglancer<3,>=2.40; extra == "view"', "2.40.1", True),
        ("x==1.5", "1.5.0", True),
    ],
)
def test_versions_are_compared_as_numbers(line, version, allowed):
    """3.10 comes after 3.9, and 4 is 4.0.0."""
    assert Requirement.parse(line).allows(version) is allowed


def test_extras_are_told_from_what_is_needed():
    """An extra's packages may be absent."""
    assert Requirement.parse('neuroglancer<3,>=2.40; extra == "view"').extra == "view"
    assert Requirement.parse("zarr<4").extra is None


# As typed


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, sample):
    """Runs a command line in this process, in an empty folder, with the sample's specs: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EM_ASSETS_DATASETS", str(sample.datasets))
    monkeypatch.setenv("EM_ASSETS_CACHE", str(tmp_path / "cache"))

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["em-assets", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return command


def test_without_live_nobody_is_asked(run, sample):
    """One line per question, and no request."""
    before = sample.http.requests
    code, out, _ = run("doctor")
    assert code == 0
    assert re.search(r"^  ok +specs +6 load", out, re.MULTILINE)
    assert sample.http.requests == before


def test_live_prints_a_report_and_writes_it(run, sample, tmp_path):
    """Exit code 0, Markdown on stdout and in the file, who is being asked on stderr."""
    code, out, err = run("doctor", "--live", "idr_9846137", "--output", "report.md")
    assert code == 0, err
    assert out.startswith("# em-assets doctor") and "## idr_9846137 (files)" in out and "## hemibrain" not in out
    assert "asking for idr_9846137" in err
    assert (tmp_path / "report.md").read_text().splitlines()[-5:] == out.splitlines()[-5:]


def test_live_with_a_failure_is_exit_code_1(run, sample, altered):
    """The last line on stderr is the first failure."""
    longer(sample, altered)
    code, out, err = run("doctor", "--live", "empiar_11759")
    assert code == 1
    assert "| FAIL |" in out
    assert "empiar_11759 (files), F57-8_test1_3VBSED_slice_0003.dm3: size: 460038" in err.splitlines()[-1]


def test_a_name_that_is_not_there(run):
    """As in every command: exit code 2, and the nearest."""
    code, _, err = run("doctor", "--live", "idr_984613")
    assert code == 2 and "did you mean idr_9846137?" in err
    code, _, err = run("doctor", "idr_9846137")
    assert code == 2 and "with --live only" in err


def test_help_shows_an_example(run):
    """One that can be typed."""
    code, out, _ = run("doctor", "--help")
    assert code == 0 and "Example: em-assets doctor --live" in out
