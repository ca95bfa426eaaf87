"""Fixtures that any test may ask for. Markers are registered in pyproject.toml."""

import atexit
import os
import shutil
import signal
import tempfile
import urllib.request
import uuid
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]
"""The repository."""

# A test configures what it needs itself. A shell switched to the sample, a real store or real credentials must not
# reach it, nor must it leave anything in a person's cache; loopback servers are not to be looked for behind a proxy.
for _name in list(os.environ):
    if _name.startswith(("EM_ASSETS_", "DAGSTER_", "AWS_")) and _name != "EM_ASSETS_REALDATA":
        del os.environ[_name]
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="em_assets_cache_")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# A shell that starts pytest in the background has it ignore Ctrl-C, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A machine that is busy is not a fault of what is tested.
hypothesis.settings.register_profile("em_assets", deadline=None)
hypothesis.settings.load_profile("em_assets")
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real EM files (EM_ASSETS_REALDATA, default ../shared/realdata), or a skip."""
    folder = Path(os.environ.get("EM_ASSETS_REALDATA") or ROOT / "../shared/realdata").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real EM files at {folder}; EM_ASSETS_REALDATA names their folder")
    return folder


@pytest.fixture(scope="session")
def payloads() -> Path:
    """The folder of publishers' real replies and headers, `payloads` beside the real files, or a skip."""
    folder = Path(os.environ.get("EM_ASSETS_REALDATA") or ROOT / "../shared/realdata").resolve().parent / "payloads"
    if not folder.is_dir():
        pytest.skip(f"no publishers' replies and headers at {folder}; they lie beside EM_ASSETS_REALDATA")
    return folder


@pytest.fixture(scope="session")
def moto_address():
    """Of a moto server, one for all tests of a process."""
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def moto_s3(monkeypatch, moto_address):
    """An empty prefix of the bucket `em-data` on a moto server: its `s3://` root."""
    for name, value in {
        "AWS_ENDPOINT_URL": moto_address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    boto3.client("s3").create_bucket(Bucket="em-data")
    yield f"s3://em-data/{uuid.uuid4().hex}"
    reset = urllib.request.Request(f"{moto_address}/moto-api/reset", method="POST")  # else it holds all until the end
    urllib.request.urlopen(reset, timeout=10).close()
