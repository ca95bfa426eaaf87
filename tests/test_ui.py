"""Dagster's UI in a headless Chromium: it shows the graph, and a click materializes every chunk."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from em_assets.catalog.build import CATALOG
from em_assets.catalog.query import query
from em_assets.records import DatasetFolder
from em_assets.store import LocalStore
from faulty import FaultyServer
from shell import Shell
from small import publish, write_spec

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium")


def wait_for(what, seconds: float, message: str):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = what()
        if value:
            return value
        time.sleep(0.5)
    pytest.fail(message)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (OSError, urllib.error.URLError):
        return False


@pytest.fixture(scope="module")
def dagster_dev(tmp_path_factory):
    """(address, the dataset's folder) of `dagster dev` in a copy of the repository, on a small volume."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian package chromium)")
    folder = tmp_path_factory.mktemp("ui")
    publish(folder / "published")
    shell = Shell(folder / "copy")
    with FaultyServer(folder / "published") as origin, socket.socket() as probe:
        write_spec(folder / "specs", origin.url)
        shell.environment |= {"EM_ASSETS_DATASETS": str(folder / "specs"), "EM_ASSETS_ROOT": str(folder / "store")}
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        with (folder / "dev.log").open("wb") as log:
            process = subprocess.Popen(
                ["dagster", "dev", "-h", "127.0.0.1", "-p", str(port)],
                cwd=shell.folder,
                env=shell.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: answers(f"{address}/server_info"), 120, (folder / "dev.log").read_text()[-2000:])
            yield address, DatasetFolder(LocalStore(folder / "store"), "small")
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


@pytest.fixture
def page(dagster_dev):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        yield page
        browser.close()


def test_the_ui_shows_the_graph(dagster_dev, page):
    """All four assets are drawn, and the page asks nobody but this machine."""
    address, _ = dagster_dev
    page.goto(f"{address}/locations/em_assets/asset-groups/test")
    for name in ("small_chunks", "small", "small_metadata"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.goto(f"{address}/locations/em_assets/asset-groups/catalog")
    page.get_by_text("metadata_catalog", exact=True).first.wait_for()
    strangers = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
    assert strangers == []


@pytest.mark.slow
def test_a_backfill_from_the_ui_fetches_every_chunk_and_the_sensors_finish(dagster_dev, page):
    """Materialize, All, Launch: 27 partitions in one run; the dataset and its catalogue row follow by themselves."""
    address, folder = dagster_dev
    page.goto(f"{address}/assets/small_chunks?view=partitions")
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_role("button", name="All", exact=True).click()
    page.get_by_role("button", name="Launch backfill").click()
    stored = lambda: sum(record.level == 0 for record in folder.partition_records()) == 27  # noqa: E731
    wait_for(stored, 180, "the backfill did not store 27 partitions")
    page.goto(f"{address}/assets/small_chunks?view=partitions")
    page.get_by_text("Materialized (27)").wait_for(timeout=120_000)

    def is_complete() -> bool:
        record = folder.read_record()
        return record is not None and record.status == "complete"

    wait_for(is_complete, 180, "the dataset was not finished after its chunks")
    finished = time.monotonic()

    def is_in_the_catalogue() -> bool:
        catalog = folder.store.local_path(CATALOG)
        return catalog.is_file() and query(catalog, "select status from datasets").rows == [("complete",)]

    wait_for(is_in_the_catalogue, 120, "the catalogue does not have the dataset")
    print(f"its row is in the catalogue {time.monotonic() - finished:.0f} s after the dataset was whole")
