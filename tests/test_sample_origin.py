"""`up`, `down`, `status` and the environment of the sample; a small volume stands in where the drawing is not meant."""

import ftplib
import hashlib
import http.server
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import urllib3
import yaml

from em_assets.datasets.loading import load_spec
from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.sample import hemibrain, origin
from em_assets.sample.origin import Request, down, env_exports, status, up
from em_assets.sample.texture import draw

ROOT = Path(__file__).parents[1]
ALL_PUBLISHERS = dict(origin.PUBLISHERS)


@pytest.fixture(scope="module")
def voxels():
    return draw((40, 45, 50), seed=5)


@pytest.fixture
def volume(tmp_path, voxels):
    file = tmp_path / "mine.npy"
    np.save(file, voxels)
    return file


@pytest.fixture
def folder(tmp_path):
    """Where a sample may be put; its server is stopped afterwards."""
    place = tmp_path / "with a blank" / ".sample"
    yield place
    down(place)


@pytest.fixture(autouse=True)
def only_the_hemibrain(monkeypatch):
    """What is said here of one publisher holds for all, and a second is written in no time."""
    monkeypatch.setattr(origin, "PUBLISHERS", {hemibrain.DATASET: hemibrain})


def spec_of(folder):
    return load_spec(folder / "datasets" / "hemibrain_crop.yaml")


def served_info(folder):
    reply = urllib3.request("GET", spec_of(folder).source.url + "/info", retries=False, timeout=5)
    assert reply.status == 200
    return reply.json()


def tree(folder):
    """Every file with its time, except the lock, which is opened for writing."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    return {file: file.stat().st_mtime_ns for file in files}


def test_up_serves_what_the_spec_says(folder, volume, voxels):
    """The spec loads, its URL answers, and the publisher states what the spec expects."""
    state = up(folder, volume=volume)
    assert (state.wrote, state.started, state.running, state.datasets) == (True, True, True, ("hemibrain_crop",))
    spec = spec_of(folder)
    scale = served_info(folder)["scales"][0]
    assert list(reversed(scale["size"])) == list(spec.expected.source_shape[0]) == list(voxels.shape)
    assert spec.expected.voxel_size_nm == (8.0, 8.0, 8.0)


def test_status_counts_what_was_fetched(folder, volume):
    """Requests and bytes since the server started; asking for the status is none."""
    up(folder, volume=volume)
    assert (status(folder).requests, status(folder).bytes_sent) == (0, 0)
    served_info(folder)
    after = status(folder)
    assert after.requests == 1
    assert 100 < after.bytes_sent < 5000


def test_another_client_reads_the_sample_over_http(folder, volume, voxels):
    """cloud-volume finds gzip-encoded info, shards and ranges as it finds them in the real bucket."""
    cloudvolume = pytest.importorskip("cloudvolume")
    up(folder, volume=volume)
    opened = cloudvolume.CloudVolume(f"precomputed://{spec_of(folder).source.url}", progress=False, cache=False)
    found = np.asarray(opened[:])[..., 0].T
    assert np.abs(found.astype(int) - voxels).mean() < 6


def test_nobody_can_take_the_sample_for_the_hemibrain(folder, volume):
    """Title, address and every claim differ from the packaged spec's, and no word of its rights is left."""
    up(folder, volume=volume)
    spec, real = spec_of(folder), load_spec(ROOT / "em_assets" / "datasets" / "hemibrain_crop.yaml")
    assert spec.title.startswith("SAMPLE")
    assert "mine.npy" in spec.description
    assert "/sample/" in spec.source.url
    assert spec.identity() != real.identity()
    for key in ("title", "description", "license", "citation", "doi", "source_id", "page_url", "publisher"):
        assert getattr(spec, key) != getattr(real, key), key
    assert spec.organism is None


def test_a_second_up_does_nothing(folder, volume):
    """No file is touched, the server is the same, and it takes no time."""
    first = up(folder, volume=volume)
    before = tree(folder)
    started = time.monotonic()
    second = up(folder, volume=volume)
    assert time.monotonic() - started < 1
    assert second == replace(first, wrote=False, started=False)
    assert tree(folder) == before


def test_another_request_is_another_address(folder, volume, voxels):
    """Other voxels lie at another path, so a store of the old ones cannot be continued with the new."""
    up(folder, volume=volume)
    old = spec_of(folder)
    np.save(volume, voxels[::-1])
    state = up(folder, volume=volume)
    assert (state.wrote, state.started) == (True, False)
    assert spec_of(folder).identity() != old.identity()
    assert served_info(folder)["scales"][0]["size"] == [50, 45, 40]
    assert not list(folder.glob("origin.*"))


def test_the_same_request_gives_the_same_bytes(tmp_path, volume):
    """Two origins written apart are equal to the byte."""
    digests = []
    for name in ("a", "b"):
        hemibrain.write(tmp_path / name, Request(seed=1, volume=volume))
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.is_file())
        digests.append(
            {file.relative_to(tmp_path / name): hashlib.sha256(file.read_bytes()).digest() for file in files}
        )
    assert digests[0] == digests[1]
    assert any(file.suffix == ".shard" for file in digests[0])


@pytest.mark.parametrize("damage", ["delete", "truncate", "rewrite", "marker"])
def test_a_damaged_origin_is_written_again(folder, volume, damage):
    """A file that was deleted, cut or changed is noticed, and so is a marker that says nothing."""
    up(folder, volume=volume)
    shard = next((folder / "origin").rglob("*.shard"))
    good = shard.read_bytes()
    if damage == "delete":
        shard.unlink()
    elif damage == "marker":
        (folder / "origin" / "made.json").write_text("[]")
    else:
        shard.write_bytes(good[:-1] if damage == "truncate" else good[:-1] + bytes([good[-1] ^ 1]))
    assert up(folder, volume=volume).wrote
    assert shard.read_bytes() == good


def test_a_failed_write_leaves_the_old_sample_whole(folder, volume):
    """A volume that cannot be used is refused, and what was served before still is."""
    up(folder, volume=volume)
    before = tree(folder / "origin")
    np.save(bad := volume.with_name("bad.npy"), np.zeros((40, 40, 40), np.float32))
    with pytest.raises(Unsupported, match="holds float32; the sample is uint8"):
        up(folder, volume=bad)
    assert tree(folder / "origin") == before
    assert not list(folder.glob("origin.*"))
    served_info(folder)


def test_down_stops_the_server_and_up_takes_the_same_port(folder, volume):
    """Nothing answers after `down`, a second one is no error, and `up` need not rewrite the spec."""
    first = up(folder, volume=volume)
    spec = (folder / "datasets" / "hemibrain_crop.yaml").read_bytes()
    stopped = down(folder)
    assert (stopped.running, stopped.pid, stopped.datasets) == (False, None, ("hemibrain_crop",))
    with pytest.raises(urllib3.exceptions.HTTPError):
        served_info(folder)
    assert not answers_ftp(first.ftp_url)
    assert not down(folder).running
    again = up(folder, volume=volume)
    assert (again.started, again.wrote, again.url, again.ftp_url) == (True, False, first.url, first.ftp_url)
    assert answers_ftp(again.ftp_url)
    assert (folder / "datasets" / "hemibrain_crop.yaml").read_bytes() == spec


def test_a_killed_server_is_started_again(folder, volume):
    """After SIGKILL `status` says that nothing runs, and `up` brings it back on the same port."""
    first = up(folder, volume=volume)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: not status(folder).running)
    again = up(folder, volume=volume)
    assert again.started
    assert again.url == first.url
    assert again.pid != first.pid
    served_info(folder)


def test_another_port_rewrites_the_spec(folder, volume):
    """If a stranger has taken the port, the server moves and the spec follows; its identity stays."""
    first = up(folder, volume=volume)
    identity = spec_of(folder).identity()
    down(folder)
    port = urllib3.util.parse_url(first.url).port
    with http.server.HTTPServer(("127.0.0.1", port), Stranger) as stranger:
        thread = threading.Thread(target=stranger.serve_forever, args=(0.05,))
        thread.start()
        try:
            moved = up(folder, volume=volume)
        finally:
            stranger.shutdown()
            thread.join()
    assert moved.started
    assert moved.url != first.url
    assert spec_of(folder).source.url.startswith(moved.url)
    assert spec_of(folder).identity() == identity


class Stranger(http.server.BaseHTTPRequestHandler):
    """Answers everything with somebody else's token."""

    def do_GET(self):
        body = json.dumps({"token": "other", "pid": os.getpid(), "requests": 0, "bytes_sent": 0}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Silent."""


def test_a_taken_ftp_port_moves_ftp_alone(folder, volume):
    """HTTP keeps its address; FTP is served elsewhere."""
    first = up(folder, volume=volume)
    down(folder)
    with socket.create_server(("127.0.0.1", urlsplit(first.ftp_url).port)):
        moved = up(folder, volume=volume)
    assert moved.url == first.url
    assert moved.ftp_url != first.ftp_url
    assert answers_ftp(moved.ftp_url)


def test_without_the_ftp_library_up_says_what_to_install(folder, monkeypatch):
    """One sentence before anything is written."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"pip install 'em_assets\[sample\]'"):
        up(folder)
    assert not folder.exists()


def test_no_other_process_is_ever_taken_for_the_server(folder, volume):
    """A record whose pid or port is another program's: that program survives `down`, and `up` does without it."""
    up(folder, volume=volume)
    record = json.loads((folder / "server.json").read_text())
    down(folder)
    with (
        subprocess.Popen(["sleep", "60"]) as bystander,
        http.server.HTTPServer(("127.0.0.1", 0), Stranger) as stranger,
    ):
        thread = threading.Thread(target=stranger.serve_forever, args=(0.05,))
        thread.start()
        try:
            forged = record | {"pid": bystander.pid, "port": stranger.server_port}
            (folder / "server.json").write_text(json.dumps(forged))
            assert not status(folder).running
            assert not down(folder).running
            assert bystander.poll() is None
            assert up(folder, volume=volume).started
        finally:
            stranger.shutdown()
            thread.join()
            bystander.kill()


def test_the_pid_in_the_record_is_not_believed(folder, volume):
    """With the right token and a wrong pid, `down` stops the server and nobody else."""
    up(folder, volume=volume)
    record = json.loads((folder / "server.json").read_text())
    with subprocess.Popen(["sleep", "60"]) as bystander:
        (folder / "server.json").write_text(json.dumps(record | {"pid": bystander.pid}))
        try:
            assert not down(folder).running
            assert bystander.poll() is None
        finally:
            bystander.kill()


@pytest.mark.parametrize("content", ["", "[]", '{"port": "x"}', '{"port": 99999999, "token": "t"}', '{"token": "t"}'])
def test_a_spoilt_record_is_no_server(folder, volume, content):
    """Whatever stands in server.json, `status` answers and `up` starts afresh."""
    up(folder, volume=volume)
    down(folder)
    (folder / "server.json").write_text(content)
    assert not status(folder).running
    assert up(folder, volume=volume).started


def test_the_server_ends_when_its_folder_is_deleted(folder, volume):
    """`rm -r .sample` leaves no process behind."""
    state = up(folder, volume=volume)
    shutil.rmtree(folder)
    wait_until(lambda: not answers(state.url))


def test_two_at_once_start_one_server(folder, volume):
    """The second waits for the first and finds everything there."""
    states = []
    threads = [threading.Thread(target=lambda: states.append(up(folder, volume=volume))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(state.started for state in states) == [False, True]
    assert len({state.pid for state in states}) == 1


def test_env_lines_are_absolute_and_quoted(folder, volume, monkeypatch):
    """`eval` of the lines sets three folders below the sample, from a relative path and with blanks in it."""
    up(folder, volume=volume)
    monkeypatch.chdir(folder.parent)
    lines = env_exports(Path(folder.name)).splitlines()
    values = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    assert values == {
        "EM_ASSETS_DATASETS": f"{folder}/datasets",
        "EM_ASSETS_ROOT": f"{folder}/data",
        "DAGSTER_HOME": f"{folder}/dagster",
    }
    shell = subprocess.run(
        ["sh", "-c", f'{env_exports(folder)} printf %s "$DAGSTER_HOME"'], check=True, capture_output=True, text=True
    )
    assert shell.stdout == f"{folder}/dagster"


def test_env_without_a_sample_says_what_to_do(tmp_path):
    """One sentence, not three exports to nowhere."""
    with pytest.raises(Mismatch, match=r"there is no sample at .*; run `em-assets sample up` first"):
        env_exports(tmp_path / "none")


def test_asking_creates_nothing(tmp_path):
    """`status` and `down` of a folder that is not there."""
    assert not status(tmp_path / "none").running
    assert not down(tmp_path / "none").running
    assert not (tmp_path / "none").exists()


def test_a_folder_of_somebody_else_is_refused(tmp_path, volume):
    """A folder that holds other things is not written into; neither is a file."""
    with pytest.raises(Mismatch, match=r"was not made by `em-assets sample up` and is not empty"):
        up(volume.parent, volume=volume)
    with pytest.raises(Mismatch, match="is not a folder"):
        up(volume)


def test_dagster_home_is_the_repositorys_with_absolute_roots(folder, volume):
    """The same instance settings as dagster.yaml at the root, except where things lie."""
    up(folder, volume=volume)
    home = folder / "dagster"
    ours = (home / "dagster.yaml").read_text()
    theirs = (ROOT / "dagster.yaml").read_text()
    assert yaml.safe_load(ours.replace(str(home), ".dagster")) == yaml.safe_load(theirs)
    assert ours.count(str(home)) == 3


# Volumes of the user's own


def test_a_tiff_a_png_stack_and_a_zarr_give_the_voxels(tmp_path, voxels):
    """The same volume in each format, cut to its middle; leading axes of length 1 are dropped."""
    from em_assets.sample.volumes import read_volume

    for file in write_all_formats(tmp_path, voxels):
        np.testing.assert_array_equal(read_volume(file, (400, 400, 400)), voxels, err_msg=file.name)
        np.testing.assert_array_equal(read_volume(file, (20, 45, 31)), voxels[10:30, :, 9:40], err_msg=file.name)


def write_all_formats(folder, voxels):
    import tifffile
    import zarr
    from PIL import Image

    tifffile.imwrite(folder / "v.tif", voxels)
    tifffile.imwrite(folder / "ij.tiff", voxels, imagej=True)
    np.save(folder / "v.npy", voxels[None, None])
    (folder / "png").mkdir()
    for z, plane in enumerate(voxels):
        Image.fromarray(plane).save(folder / "png" / f"slice{z + 95}.png")
    zarr.save_array(folder / "array.zarr", voxels)
    group = zarr.open_group(folder / "group.zarr", mode="w")
    group.create_array("s0", data=voxels[None])
    group.attrs["ome"] = {"multiscales": [{"datasets": [{"path": "s0"}]}]}
    return [folder / name for name in ("v.tif", "ij.tiff", "v.npy", "png", "array.zarr", "group.zarr")]


def make_bad_volumes(folder):
    """(path, error, sentence) of what is refused."""
    from PIL import Image

    np.save(folder / "flat.npy", np.zeros((40, 40), np.uint8))
    np.save(folder / "four.npy", np.zeros((2, 40, 40, 40), np.uint8))
    np.save(folder / "wide.npy", np.zeros((40, 40, 40), np.uint16))
    np.save(folder / "thin.npy", np.zeros((40, 8, 40), np.uint8))
    (folder / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (folder / "broken.tif").write_bytes(b"II*\x00")
    (folder / "text.txt").write_text("x")
    (folder / "png").mkdir()
    for z in range(20):
        Image.new("L", (30, 30 + (z == 7))).save(folder / "png" / f"{z}.png")
    for name, content in {"bad.zarr": "{", "group.zarr": "{}"}.items():
        (folder / name).mkdir()
        (folder / name / "zarr.json").write_text(content)
    yield folder / "none.tif", Malformed, "does not exist"
    yield folder / "flat.npy", Unsupported, "has shape (40, 40); one (z, y, x) volume is needed"
    yield folder / "four.npy", Unsupported, "has shape (2, 40, 40, 40)"
    yield folder / "wide.npy", Unsupported, "holds uint16; the sample is uint8"
    yield folder / "thin.npy", Unsupported, "is 40 x 8 x 40 (z, y, x); at least 16 voxels"
    yield folder / "broken.npy", Malformed, "cannot be read"
    yield folder / "broken.tif", Malformed, "cannot be read"
    yield folder / "text.txt", Unsupported, "is of no kind that is read here"
    yield folder / "png", Unsupported, "7.png is 30 x 31 of mode L; every slice must be 30 x 30"
    yield folder / "bad.zarr", Malformed, "cannot be read"
    yield folder / "group.zarr", Unsupported, "is a Zarr group without multiscales; name one of its arrays"


def test_a_volume_that_cannot_be_used_is_refused_in_one_sentence(tmp_path):
    """The path, what was found and what is needed, on one line."""
    from em_assets.sample.volumes import read_volume

    for path, error, sentence in make_bad_volumes(tmp_path):
        with pytest.raises(error) as caught:
            read_volume(path, (64, 64, 64))
        assert sentence in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_real_fibsem_voxels_can_be_served(folder, realdata):
    """The PNG stack of the medulla is cut and published, and the spec says from what."""
    stack = realdata / "fibsem" / "fib_medulla_training_sample2" / "grayscale_maps"
    if not stack.is_dir():
        pytest.skip(f"no PNG stack at {stack}")
    up(folder, volume=stack)
    assert served_info(folder)["scales"][0]["size"] == [250, 250, 250]
    spec = spec_of(folder)
    assert spec.title == "SAMPLE: cut from grayscale_maps, not the hemibrain"
    assert spec.crop.shape == (175, 175, 175)


@pytest.mark.slow  # `make quickstart` draws the same one
def test_the_drawn_sample_has_several_shards_minishards_and_missing_chunks(folder):
    """The default: 27 partitions, 9 scales, clipped edges."""
    up(folder)
    spec = spec_of(folder)
    assert spec.expected.source_shape == ((443, 477, 509),)
    assert (spec.crop.shape, spec.output.shard) == ((300, 300, 300), (128, 128, 128))
    assert len(list(spec.shard_indices())) == 27
    assert spec.license == "CC0-1.0"
    scales = served_info(folder)["scales"]
    assert len(scales) == 9
    assert len(list((folder / "origin").rglob("8.0x8.0x8.0/*.shard"))) > 8


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def answers(url):
    try:
        urllib3.request("GET", url, retries=False, timeout=1)
    except urllib3.exceptions.HTTPError:
        return False
    return True


def answers_ftp(url):
    parts = urlsplit(url)
    try:
        with ftplib.FTP(timeout=5) as ftp:
            ftp.connect(parts.hostname, parts.port)
            return ftp.login().startswith("230")
    except OSError:
        return False


def test_the_sample_needs_no_numpy_to_be_switched():
    """`status`, `down` and `env` answer at once: no array library is loaded for them."""
    code = "import sys, em_assets.sample.origin; print(sorted({'numpy', 'zarr', 'tifffile', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_publisher_has_a_packaged_spec():
    """A sample of a dataset that the package does not have would be of no use."""
    packaged = {file.stem for file in (ROOT / "em_assets" / "datasets").glob("*.yaml")}
    assert set(ALL_PUBLISHERS) <= packaged
