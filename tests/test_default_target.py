"""The default target of `dagster asset ...`: when it applies, when it keeps out, what it prints last."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_assets import _default_target

ROOT = Path(__file__).parents[1]
PTH = "em_assets_default_target.pth"
MATERIALIZE = ["asset", "materialize", "--select", "hemibrain_crop"]

TOY_DEFINITIONS = '''
"""Two toy assets: one works, one leaves its sentence and fails."""
import dagster as dg
from em_assets._default_target import leave_run_note

@dg.asset
def hemibrain_crop():
    print("made hemibrain_crop")

@dg.asset
def broken():
    leave_run_note("the origin 127.0.0.1:1 did not answer\\nwithin 20 s; check the network.")
    raise dg.Failure("a long story", allow_retries=False)

defs = dg.Definitions(assets=[hemibrain_crop, broken])
'''
OTHER_DEFINITIONS = """
import dagster as dg

@dg.asset
def other():
    pass

defs = dg.Definitions(assets=[other])
"""


# --- Which command lines are Dagster's, decided without running anything


@pytest.mark.parametrize(
    ("command_line", "arguments"),
    [
        pytest.param("/v/bin/python /v/bin/dagster asset list", ["asset", "list"], id="console script"),
        pytest.param("python /v/bin/dagster", [], id="console script alone"),
        pytest.param("/v/bin/python3.11 -I /v/bin/dagster asset list", ["asset", "list"], id="isolated"),
        pytest.param("python -m dagster asset list", ["asset", "list"], id="module"),
        pytest.param("python -mdagster asset list", ["asset", "list"], id="module, joined"),
        pytest.param("python -Im dagster asset list", ["asset", "list"], id="module, in a cluster"),
        pytest.param("python -X dev -W ignore -u -m dagster asset list", ["asset", "list"], id="options with values"),
        pytest.param("python -Xdev -Wm -m dagster asset list", ["asset", "list"], id="joined values"),
        pytest.param("python --check-hash-based-pycs never -m dagster asset", ["asset"], id="long option"),
        pytest.param("python -- /v/bin/dagster asset", ["asset"], id="end of options"),
        pytest.param("python -m dagster_webserver asset", [], id="another module"),
        pytest.param("python -m pytest dagster asset", [], id="dagster as an argument"),
        pytest.param("python -c pass dagster asset", [], id="a command string"),
        pytest.param("python - dagster asset", [], id="a script on stdin"),
        pytest.param("python /v/bin/dagster-daemon asset", [], id="another script"),
        pytest.param("python /home/dagster/run.py asset", [], id="a folder called dagster"),
        pytest.param("python", [], id="the interpreter alone"),
        pytest.param("python -m", [], id="an unfinished option"),
        pytest.param("", [], id="no command line at all"),
    ],
)
def test_dagster_is_recognised_in_every_form(command_line: str, arguments: list[str]):
    """What follows `dagster` is found for the console script and for `-m`, and nothing else is taken for it."""
    assert _default_target.dagster_arguments(command_line.split()) == arguments


@given(st.lists(st.one_of(st.text(max_size=6), st.sampled_from(["-m", "-c", "-Im", "dagster", "asset", "--", "-"]))))
def test_no_command_line_breaks_the_start_of_python(words: list[str]):
    """Any command line is answered with a tail of itself: an exception here would print at each start of Python."""
    arguments = _default_target.dagster_arguments(words)
    assert arguments == words[len(words) - len(arguments) :]
    assert _default_target.names_a_target(arguments, {}) in (True, False)


@pytest.mark.parametrize(
    "option",
    [
        *("-m x", "-mx", "-f x.py", "-d .", "-a defs", "-w workspace.yaml", "--module-name x", "--module-name=x"),
        *("--python-file x.py", "--package-name=x", "--attribute defs", "--working-directory=.", "--workspace=w.yaml"),
        "--autoload-defs-module-name x",
    ],
)
def test_an_option_that_names_a_target_wins(option: str):
    """With any pointer option of Dagster's the default keeps out, wherever the option stands."""
    assert _default_target.names_a_target(["asset", "list", *option.split()], {})
    assert _default_target.names_a_target(["asset", *option.split(), "list"], {})


@pytest.mark.parametrize(
    "arguments",
    [MATERIALIZE, ["asset", "list"], [*MATERIALIZE, "--partition", "z000"], [*MATERIALIZE, "-c", "run.yaml"]],
)
def test_other_options_are_no_target(arguments: list[str]):
    """Selections, partitions and run configuration do not say where the definitions are."""
    assert not _default_target.names_a_target(arguments, {"DAGSTER_HOME": "/x", "DAGSTER_MODULE_NAME": ""})


@pytest.mark.parametrize("suffix", ["MODULE_NAME", "PYTHON_FILE", "PACKAGE_NAME", "WORKING_DIRECTORY", "ATTRIBUTE"])
def test_a_variable_that_names_a_target_wins(suffix: str):
    """A target in the environment is the user's and stays as it is."""
    assert _default_target.names_a_target(MATERIALIZE, {f"DAGSTER_{suffix}": "x"})


def test_dagster_has_no_further_pointers():
    """Every option and variable by which this Dagster's `asset materialize` takes a target is known to us."""
    from dagster._cli.asset import asset_materialize_command

    own = {"select", "partition", "partition_range", "config_json", "config", "help"}
    pointers = [p for p in asset_materialize_command.params if p.name not in own]
    assert pointers
    for parameter in pointers:
        for option in parameter.opts:
            assert _default_target.names_a_target(["asset", "materialize", option, "x"], {}), option
        assert _default_target.names_a_target([], {str(parameter.envvar): "x"}), parameter.envvar


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        pytest.param((ROOT / "workspace.yaml").read_text(), True, id="this repository's"),
        pytest.param("load_from:\n  - python_module: em_assets.definitions\n", True, id="short form"),
        pytest.param('load_from: [{python_module: "em_assets.definitions"}]', True, id="quoted, inline"),
        pytest.param("# em_assets.definitions\nload_from: []", False, id="only in a comment"),
        pytest.param("load_from:\n  - python_module: my_em_assets.definitions", False, id="longer at the front"),
        pytest.param("load_from:\n  - python_module: em_assets.definitions_v2", False, id="longer at the end"),
        pytest.param("", False, id="empty"),
    ],
)
def test_only_a_workspace_that_names_us_counts(text: str, ours: bool):
    """The default applies where workspace.yaml names our module as a whole word outside comments."""
    assert _default_target.names_module(text) is ours


# --- The real thing: interpreters that start with the .pth file active


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A repository with toy definitions, our workspace.yaml and the .pth file, which `run` makes active."""
    package = tmp_path / "site" / "em_assets"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "definitions.py").write_text(TOY_DEFINITIONS)
    shutil.copy(ROOT / "em_assets/_default_target.py", package)
    shutil.copy(ROOT / PTH, tmp_path / "site")
    # What `site` does with the .pth files of site-packages, for a folder that is on PYTHONPATH only.
    (tmp_path / "site/sitecustomize.py").write_text("import os, site\nsite.addsitedir(os.path.dirname(__file__))\n")
    repository = tmp_path / "repository"
    repository.mkdir()
    shutil.copy(ROOT / "workspace.yaml", repository)
    (repository / "other.py").write_text(OTHER_DEFINITIONS)
    return repository


def run(command: list[str], folder: Path, site: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in `folder` with `site` active as a site-packages folder."""
    for name in ("tmp", "home"):
        (site / name).mkdir(exist_ok=True)
    (site / "home/dagster.yaml").write_text("telemetry: {enabled: false}\n")
    own = {"PYTHONPATH": str(site), "TMPDIR": str(site / "tmp"), "DAGSTER_HOME": str(site / "home")}
    env = {**os.environ, **own, **variables}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)


def dagster(arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m dagster ...` in the toy repository (or the folder beside it)."""
    return run([sys.executable, "-m", "dagster", *arguments], folder, folder.parent / "site", **variables)


def console_script() -> str:
    """The `dagster` that belongs to this interpreter."""
    script = shutil.which("dagster", path=str(Path(sys.executable).parent))
    assert script, f"no dagster command beside {sys.executable}; install the package with its dependencies"
    return script


@pytest.mark.slow  # `.ci/run` types it, too
def test_the_literal_command_finds_the_definitions(toy: Path):
    """`dagster asset materialize --select hemibrain_crop` works in the repository with no flags and no variables."""
    done = run([console_script(), *MATERIALIZE], toy, toy.parent / "site")
    assert done.returncode == 0, done.stderr
    assert "RUN_SUCCESS" in done.stderr
    assert not list((toy.parent / "site/tmp").glob("em-assets-run-note-*"))


@pytest.mark.slow
def test_the_reason_is_the_last_line(toy: Path):
    """A step's sentence, written in a child process, is the command's last line, on one line; the note is gone."""
    command = [*MATERIALIZE[:-1], "broken"]
    script = 'exec "$@" 2>&1'  # into one pipe, as a person or a log sees it
    done = run(["sh", "-c", script, "sh", console_script(), *command], toy, toy.parent / "site")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "the origin 127.0.0.1:1 did not answer within 20 s; check the network."
    assert not list((toy.parent / "site/tmp").glob("em-assets-run-note-*"))


@pytest.mark.slow
def test_a_note_asked_for_by_the_parent_is_left_to_it(toy: Path, tmp_path: Path):
    """Whoever sets the note's path before starting Dagster finds the sentence there, and it is not printed twice."""
    note = tmp_path / "note"
    done = dagster([*MATERIALIZE[:-1], "broken"], toy, **{_default_target.RUN_NOTE_VARIABLE: str(note)})
    assert done.returncode == 1
    assert note.read_text() == "the origin 127.0.0.1:1 did not answer within 20 s; check the network.\n"
    assert not done.stderr.splitlines()[-1].startswith("the origin")


@pytest.mark.slow
def test_outside_the_repository_the_error_is_dagsters(toy: Path, tmp_path: Path):
    """Without a workspace.yaml that names us, Dagster says and returns what it does without us."""
    outside = tmp_path / "outside"
    outside.mkdir()
    ours = dagster(MATERIALIZE, outside)
    (toy.parent / "site" / PTH).unlink()
    (toy.parent / "site/sitecustomize.py").unlink()
    plain = dagster(MATERIALIZE, outside)
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    assert ours.returncode == 2
    assert "Invalid set of CLI arguments" in ours.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "variables", "listed"),
    [
        pytest.param(["asset", "list"], {}, "hemibrain_crop", id="the default"),
        pytest.param(["asset", "list", "-f", "other.py"], {}, "other", id="-f"),
        pytest.param(["asset", "list", "-m", "other"], {}, "other", id="-m"),
        pytest.param(["asset", "list", "-d", ".", "-m", "other"], {}, "other", id="-d -m"),
        pytest.param(["asset", "list"], {"DAGSTER_PYTHON_FILE": "other.py"}, "other", id="a variable"),
    ],
)
def test_a_target_of_the_users_own_is_used(toy: Path, arguments: list[str], variables: dict[str, str], listed: str):
    """Inside the repository every way to name another target works as it does without us."""
    done = dagster(arguments, toy, **variables)
    assert done.returncode == 0, done.stderr
    assert listed in done.stdout.split()
    assert ("broken" in done.stdout.split()) is (listed == "hemibrain_crop")


@pytest.mark.slow
def test_workspace_option_of_other_commands_works(toy: Path):
    """`dagster definitions validate -w workspace.yaml` is not disturbed by a second target."""
    done = dagster(["definitions", "validate", "-w", "workspace.yaml"], toy)
    assert done.returncode == 0, done.stderr


LOADED = "import sys; print(*sorted(sys.modules), sep=chr(10))"


def test_the_start_of_other_programs_loads_nothing(toy: Path):
    """An interpreter that does not run `dagster asset` loads no module because of us, not even this package."""
    site = toy.parent / "site"
    ours = run([sys.executable, "-c", LOADED], toy, site).stdout.split()
    (site / PTH).unlink()
    plain = run([sys.executable, "-c", LOADED], toy, site).stdout.split()
    assert len(plain) > 20
    assert set(ours) == set(plain)


def test_the_word_asset_alone_costs_two_empty_modules(toy: Path):
    """A program that merely has the argument `asset` loads the package's docstring and the guard, nothing further."""
    site = toy.parent / "site"
    ours = run([sys.executable, "-c", LOADED, "asset"], toy, site).stdout.split()
    plain = run([sys.executable, "-c", LOADED], toy, site).stdout.split()
    assert set(ours) - set(plain) == {"em_assets", "em_assets._default_target"}


def test_a_package_that_is_gone_is_harmless(toy: Path):
    """The .pth file without its package (moved checkout, half an uninstall) prints nothing and Dagster works on."""
    site = toy.parent / "site"
    shutil.rmtree(site / "em_assets")
    # -S and a site folder of its own: an installed em_assets must not stand in for the missing one
    script = f"import site, sys; sys.orig_argv = ['p', 'dagster', 'asset']; site.addsitedir({str(site)!r}); print('on')"
    done = run([sys.executable, "-S", "-c", script], toy, site)
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")


def test_a_folder_that_is_gone_is_harmless(toy: Path):
    """A command started in a deleted folder gets no exception from us."""
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    code = "import sys; print('on')"
    done = run(["sh", "-c", script, "sh", sys.executable, "-c", code, "asset"], toy, toy.parent / "site")
    assert (done.stdout, done.stderr) == ("on\n", "")


def test_the_installed_package_has_the_pth_file():
    """Installing the package puts the .pth file where `site` looks: at the top of site-packages."""
    try:
        files = importlib.metadata.files("em_assets")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("em_assets is on the path but not installed")
    assert PTH in [str(file) for file in files or []]
