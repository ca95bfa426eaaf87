"""The environment: what each variable accepts, and what a wrong one is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from em_assets.errors import Malformed
from em_assets.settings import PACKAGED_DATASETS, S3Access, Settings, read_settings


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("EM_ASSETS_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_nothing_needs_to_be_set():
    """An empty environment is a complete configuration: the store is ./data."""
    settings = read_settings()
    assert settings.root == "data"
    assert settings.workers >= 1
    assert settings.dataset_folders() == [PACKAGED_DATASETS]


def test_an_empty_variable_is_an_unset_one(monkeypatch):
    """`EM_ASSETS_ROOT=` means the default, as in a shell script that leaves it blank."""
    monkeypatch.setenv("EM_ASSETS_ROOT", "")
    monkeypatch.setenv("EM_ASSETS_MAX_BYTES", "")
    assert read_settings() == Settings()


def test_a_run_sees_one_configuration():
    """Settings do not change after they were read."""
    with pytest.raises(ValueError, match="frozen"):
        read_settings().root = "elsewhere"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ROOT", "gs://bucket/x", "is neither a folder nor s3://bucket/prefix"),
        ("ROOT", "file:///data", "is neither a folder nor s3://bucket/prefix"),
        ("WORKERS", "0", "greater than or equal to 1"),
        ("WORKERS", "-1", "greater than or equal to 1"),
        ("WORKERS", "abc", "valid integer"),
        ("WORKERS", "1000000", "less than or equal to 256"),
        ("WORKERS", "1.5", "valid integer"),
        ("CONNECTIONS_PER_HOST", "0", "greater than or equal to 1"),
        ("MAX_BYTES", "20GB", "valid integer"),
        ("MAX_BYTES", "-1", "greater than or equal to 0"),
        ("READ_SECONDS", "0", "greater than 0"),
        ("READ_SECONDS", "inf", "less than or equal to 86400"),
        ("RETRY_SECONDS", "nan", "86400"),
        ("CONNECT_SECONDS", "ten", "valid number"),
        ("MEMORY_BYTES", "1", "greater than or equal to 1048576"),
        ("MIN_BYTES_PER_SECOND", "0", "greater than or equal to 1"),
        ("MIN_BYTES_PER_SECOND", "1kB", "valid integer"),
    ],
)
def test_a_wrong_value_is_one_sentence(monkeypatch, name, value, says):
    """The variable, what it holds, what it accepts and what to do; no stack of a library's."""
    monkeypatch.setenv(f"EM_ASSETS_{name}", value)
    with pytest.raises(Malformed) as caught:
        read_settings()
    message = str(caught.value)
    assert message.startswith(f"EM_ASSETS_{name} is {value!r}: it ")
    assert says in message
    assert message.endswith("; correct or unset it.")
    assert "\n" not in message
    assert caught.value.__cause__ is None


def test_the_datasets_variable_replaces_the_packaged_folder(monkeypatch, tmp_path):
    """Several folders are separated like PATH, empty parts are skipped, and the order is kept."""
    folders = [tmp_path / "b", tmp_path / "a c"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setenv("EM_ASSETS_DATASETS", os.pathsep.join(["", *map(str, folders), ""]))
    assert read_settings().dataset_folders() == folders


def test_own_datasets_are_found_beside_the_packaged_ones(tmp_path):
    """A folder `datasets` where one works is read too, without being named."""
    (tmp_path / "datasets").mkdir()
    assert read_settings().dataset_folders() == [PACKAGED_DATASETS, Path("datasets")]


@pytest.mark.parametrize("kind", ["absent", "a file"])
def test_a_folder_that_is_none_is_named(monkeypatch, tmp_path, kind):
    """A misspelt folder is an error, not an empty list of datasets."""
    place = tmp_path / "specs"
    if kind == "a file":
        place.touch()
    monkeypatch.setenv("EM_ASSETS_DATASETS", str(place))
    with pytest.raises(Malformed, match=f"EM_ASSETS_DATASETS names {place}, which is not a folder"):
        read_settings().dataset_folders()


def test_a_list_of_no_folders_is_refused(monkeypatch):
    """A lone separator would otherwise be a platform without datasets."""
    monkeypatch.setenv("EM_ASSETS_DATASETS", os.pathsep)
    with pytest.raises(Malformed, match="names no folder"):
        read_settings().dataset_folders()


def test_the_cache_is_where_it_is_said_to_be(monkeypatch, tmp_path):
    """EM_ASSETS_CACHE wins, then XDG_CACHE_HOME."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert read_settings().cache_folder().is_relative_to(tmp_path / "xdg")
    monkeypatch.setenv("EM_ASSETS_CACHE", str(tmp_path / "own"))
    assert read_settings().cache_folder() == tmp_path / "own"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become a user without a home")
def test_a_user_without_a_home_is_told_what_to_set():
    """In a container with a bare user number, no folder named `~` appears in the working directory."""
    code = (
        "import os; from em_assets.settings import *\n"
        "import platformdirs\n"
        "settings = read_settings(); os.setuid(54321)\n"
        "for name in ('HOME', 'XDG_CACHE_HOME'): os.environ.pop(name, None)\n"
        "try: print(settings.cache_folder())\n"
        "except Malformed as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGED_DATASETS.parents[1]
    )
    assert "EM_ASSETS_CACHE is not set" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("environment", "field", "value"),
    [
        ({"AWS_ENDPOINT_URL": "http://a"}, "endpoint_url", "http://a"),
        ({"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b"}, "endpoint_url", "http://b"),
        ({}, "endpoint_url", None),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, "region", "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1", "AWS_REGION": "us-west-2"}, "region", "us-west-2"),
        ({"AWS_SKIP_SIGNATURE": "TRUE"}, "anonymous", True),
        ({"AWS_SKIP_SIGNATURE": "1"}, "anonymous", True),
        ({"AWS_SKIP_SIGNATURE": "no"}, "anonymous", False),
        ({}, "anonymous", False),
    ],
)
def test_s3_is_configured_by_the_standard_variables(monkeypatch, environment, field, value):
    """The names that every S3 tool knows, the more special one first."""
    for name, content in environment.items():
        monkeypatch.setenv(name, content)
    assert getattr(S3Access.from_environment(), field) == value


def test_the_credentials_stay_where_they_are(monkeypatch):
    """No key and no secret is copied into a configuration that the UI shows."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    assert "hush" not in str(S3Access.from_environment())
    assert "hush" not in repr(read_settings())
