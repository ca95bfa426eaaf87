"""The service: blocks over HTTP are those of Python, to the byte; HTTP's own rules hold; what is wrong is said."""

import gzip
import http.client
import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlencode, urlsplit

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import em_assets.blocks as em
from conftest import ROOT
from em_assets.blocks._resample import Sampling
from em_assets.blocks.geometry import Grid
from em_assets.errors import EmAssetsError
from em_assets.records import DatasetFolder, now
from em_assets.serve.block import _bytes_made
from em_assets.serve.limits import Limits
from em_assets.serve.parameters import BLOCK_PARAMETERS, VIEW_PARAMETERS, BadRequest, parse_block
from em_assets.serve.representation import chosen_coding, encode, has_tag, requested_range
from em_assets.settings import Settings
from em_assets.standardize.finish import write_coverage
from em_assets.store import LocalStore, Store, open_store
from em_assets.volume import Box
from test_catalog_volumes import NUC_SHAPE, ORIGIN, SHAPE, VOXEL_SIZE_NM, files_spec, store_all, zarr_spec

for _module in ("starlette", "uvicorn"):
    pytest.importorskip(_module, reason=f"{_module} (extra `view`) is not installed")

HOLE = Box((32, 64, 128), (64, 96, 160))
"""Of the dataset `holed`: what its publisher does not have."""
BLOCK = "/v1/datasets/cell/block"


def store_with_coverage(store: Store, spec, holes=None) -> DatasetFolder:
    """A finished dataset as the pipeline leaves it, as far as blocks need it."""
    folder = store_all(store, spec, holes)
    for sub, layout in spec.layouts().items():
        own = folder.further(sub)
        write_coverage(own, layout, [record for record in own.partition_records() if record.level == 0])
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Settings:
    """An image with labels and a second image; one with a hole; one that is not whole; one that keeps files alone."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "specs").mkdir()
    store = LocalStore(folder / "data")
    store_with_coverage(store, zarr_spec())
    store_with_coverage(store, zarr_spec("holed", volumes={}), {None: [HOLE]})
    half = store_all(store, zarr_spec("half", volumes={}))
    half.write_record(half.read_record().with_status("error", "the publisher went away"))
    store_all(store, files_spec(keep="original", volumes={}))
    return Settings(root=str(folder / "data"), datasets=str(folder / "specs"))


@contextmanager
def serving(settings: Settings, limits: Limits | None = None, **options):
    """The port of a service, in a thread of this process."""
    from em_assets.serve import LOCAL, new_server, open_shelf
    from em_assets.serve.app import build_app
    from em_assets.serve.client import client_folder

    pytest.importorskip("neuroglancer", reason="neuroglancer (extra `view`) is not installed")
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    app = build_app(
        open_shelf(settings),
        limits or Limits(),
        client_folder(),
        allowed_hosts=LOCAL,
        is_ending=lambda: server.should_exit,
        **options,
    )
    server = new_server(app, 1, limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture(scope="module")
def port(stored):
    with serving(stored) as number:
        yield number


@pytest.fixture(scope="module")
def volume(stored):
    return em.open("cell", settings=stored)


def ask(port: int, path: str, method: str = "GET", **headers: str):
    """One request, its path sent as it is: (status, headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def ask_block(port: int, dataset: str = "cell", **parameters):
    return ask(port, f"/v1/datasets/{dataset}/block?{urlencode(parameters)}")


def triple(values) -> str:
    return ",".join(map(str, values))


# The same block on every face


def test_a_block_is_the_one_that_python_reads(port, volume):
    """The .npy file, the raw bytes and the headers say what `Volume.read` says."""
    block = volume.read((5, 17, 33), shape=(20, 30, 40))
    status, headers, body = ask_block(port, start="5,17,33", shape="20,30,40")
    assert (status, body) == (200, block.npy())
    assert (np.load(io.BytesIO(body)) == block.data).all()
    assert headers["x-em-digest"] == block.digest
    assert headers["x-em-dtype"] == "int16"
    assert headers["x-em-shape"] == "20,30,40"
    assert headers["x-em-box"] == "5,17,33,25,47,73"
    assert tuple(map(float, headers["x-em-box-nm"].split(","))) == (*block.box_nm.start, *block.box_nm.stop)
    assert headers["x-em-level"] == "0"
    assert tuple(map(float, headers["x-em-voxel-size-nm"].split(","))) == VOXEL_SIZE_NM
    assert headers["x-em-valid-fraction"] == "1.0"
    assert headers["x-em-volume"] == "cell"
    status, headers, raw = ask_block(port, z=5, y=17, x=33, shape="20,30,40", format="raw")
    assert (status, raw) == (200, block.data.tobytes())
    assert headers["x-em-digest"] == block.digest


def test_the_command_line_writes_the_same_file(port, stored, tmp_path):
    """`em-assets read`, HTTP and Python: one file, one digest."""
    file = tmp_path / "block.npy"
    place = ["--start", "5,17,33", "--shape", "20,30,40"]
    done = subprocess.run(
        [sys.executable, "-m", "em_assets.cli", "read", "cell", *place, "-o", str(file)],
        env={
            **os.environ,
            "EM_ASSETS_ROOT": stored.root,
            "EM_ASSETS_DATASETS": stored.datasets,
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, headers, body = ask_block(port, start="5,17,33", shape="20,30,40")
    assert file.read_bytes() == body
    assert headers["x-em-digest"] in done.stdout


WAYS = [
    pytest.param({"center_nm": "500,2000,12300", "shape": "16"}, id="around a place"),
    pytest.param({"start": "0,0,0", "shape": "8", "level": "1"}, id="level"),
    pytest.param({"center_nm": "500,2000,12300", "shape": "16", "voxel_size_nm": "16"}, id="nearest voxel size"),
    pytest.param(
        {"center_nm": "500,2000,12300", "shape": "9", "voxel_size_nm": "13.48,8,7.5", "resample": "true"},
        id="resampled",
    ),
    pytest.param({"start": "-3,90,150", "shape": "16", "pad": "constant", "fill": "7"}, id="padded"),
    pytest.param({"start": "-3,90,150", "shape": "16", "pad": "reflect"}, id="mirrored"),
    pytest.param({"start": "1,2,3", "shape": "8", "dtype": "float32"}, id="another dtype"),
    pytest.param({"start": "1,2,3", "shape": "8", "normalize": "-1000,1000"}, id="normalized"),
]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_ask_is_python_s(port, volume, way):
    """What the parameters mean is what `Volume.read` means by them."""
    asked = parse_block(way.items())
    block = volume.read(asked.start, center_nm=asked.center_nm, shape=asked.shape, **asked.how)
    status, headers, body = ask_block(port, **way)
    assert (status, body) == (200, block.npy())
    assert headers["x-em-digest"] == block.digest
    assert float(headers["x-em-valid-fraction"]) == block.valid_fraction


@given(
    start=st.tuples(st.integers(-40, 80), st.integers(-40, 110), st.integers(-40, 180)),
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    pad=st.sampled_from([None, "constant", "edge", "reflect"]),
    form=st.sampled_from(["npy", "raw"]),
    coding=st.sampled_from(["identity", "gzip", "zstd"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_block_is_the_same_or_refused_alike(port, volume, *, start, shape, pad, form, coding):
    """Any box, padding, format and coding: Python's bytes and digest, or Python's sentence."""
    parameters = {"start": triple(start), "shape": triple(shape), "format": form} | ({"pad": pad} if pad else {})
    status, headers, body = ask(port, f"{BLOCK}?{urlencode(parameters)}", Accept_Encoding=coding)
    if status == 422:
        with pytest.raises(EmAssetsError, match=re.escape(json.loads(body)["error"])):
            volume.read(start, shape=shape, pad=pad)
        return
    block = volume.read(start, shape=shape, pad=pad)
    data = {"identity": bytes, "gzip": gzip.decompress, "zstd": zstandard.decompress}[coding](body)
    assert (status, data) == (200, block.npy() if form == "npy" else block.data.tobytes())
    assert headers["x-em-digest"] == block.digest


def test_labels_come_with_the_image(port, stored, volume):
    """The labels at the same nanometres, and which of them are real, each as an array of its own."""
    nuc = em.open("cell/nuc", settings=stored)
    block = volume.read((0, 0, 0), shape=(30, 90, 150), labels=nuc)
    asked = {"start": "0,0,0", "shape": "30,90,150", "labels": "cell/nuc"}
    _, headers, body = ask_block(port, **asked, what="labels")
    assert (np.load(io.BytesIO(body)) == block.labels).all()
    assert headers["x-em-dtype"] == "uint8"
    assert headers["x-em-digest"] == block.digest
    _, _, body = ask_block(port, **asked, what="labels_valid")
    assert (np.load(io.BytesIO(body)) == block.labels_valid).all()
    assert 0 < np.load(io.BytesIO(body)).mean() < 1
    assert ask_block(port, **asked)[2] == block.npy()
    assert ask_block(port, "cell/nuc", start="0,0,0", shape="8")[2] == nuc.read((0, 0, 0), shape=8).npy()


def test_missing_voxels_are_refused_or_masked(port, stored):
    """A hole is an error that names its box, or a mask that is exact; without a hole all are real."""
    status, _, body = ask_block(port, "holed", start="24,56,120", shape="16")
    assert status == 422
    assert "32:40, 64:72, 128:136" in json.loads(body)["error"]
    asked = {"start": "24,56,120", "shape": "16", "missing": "mask"}
    _, headers, body = ask_block(port, "holed", **asked)
    valid = np.load(io.BytesIO(ask_block(port, "holed", **asked, what="valid")[2]))
    assert (~valid).sum() == 8**3
    assert not valid[8:, 8:, 8:].any()
    assert (np.load(io.BytesIO(body))[8:, 8:, 8:] == 0).all()
    assert float(headers["x-em-valid-fraction"]) == 1 - 8**3 / 16**3
    whole = np.load(io.BytesIO(ask_block(port, start="0,0,0", shape="4", what="valid")[2]))
    assert (whole.dtype, whole.all()) == (np.bool_, True)


def test_from_s3_it_is_the_same(moto_s3, volume, tmp_path):
    """A bucket gives the blocks of a folder."""
    store_with_coverage(open_store(moto_s3), zarr_spec())
    (tmp_path / "cell.yaml").write_text(spec_text())
    with serving(Settings(root=moto_s3, datasets=str(tmp_path))) as port:
        status, headers, body = ask_block(port, start="5,17,33", shape="20,30,40")
        block = volume.read((5, 17, 33), shape=(20, 30, 40))
        assert (status, body, headers["x-em-digest"]) == (200, block.npy(), block.digest)
        assert [one["id"] for one in json.loads(ask(port, "/v1/datasets")[2])["datasets"]] == VOLUMES[:3]


def spec_text() -> str:
    import yaml

    return yaml.safe_dump(zarr_spec().model_dump(mode="json", exclude_none=True, exclude_unset=True))


# What there is

VOLUMES = ["cell", "cell/coarse", "cell/nuc", "holed"]


def test_what_can_be_read_is_listed(port):
    """Finished volumes, further ones too; what is not whole is left out."""
    status, headers, body = ask(port, "/v1/datasets")
    assert (status, headers["content-type"]) == (200, "application/json")
    found = json.loads(body)["datasets"]
    assert [one["id"] for one in found] == VOLUMES
    nuc = found[2]
    assert (nuc["labels_of"], nuc["shape"], nuc["dtype"]) == ("cell", list(NUC_SHAPE), "uint8")
    for one in found:
        for link in (one["links"]["self"], one["links"]["view"], one["links"]["ome_zarr"] + "zarr.json"):
            assert ask(port, link)[0] in (200, 302), link


def test_a_volume_tells_its_levels(port, volume):
    """Shapes, voxel sizes and corners of the levels are those of Python."""
    about = json.loads(ask(port, "/v1/datasets/cell")[2])
    assert [tuple(level["shape"]) for level in about["levels"]] == [level.grid.shape for level in volume.levels]
    assert [tuple(level["corner_nm"]) for level in about["levels"]] == [level.grid.corner_nm for level in volume.levels]
    assert about["box_nm"]["start"] == [o * s for o, s in zip(ORIGIN, VOXEL_SIZE_NM, strict=True)]
    assert (about["content"], about["dtype"], about["shape"]) == ("image", "int16", list(SHAPE))
    assert json.loads(ask(port, "/v1/datasets/cell/nuc")[2])["content"] == "labels"


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        pytest.param("/v1/datasets/cel", 404, "did you mean cell?", id="misspelt"),
        pytest.param("/v1/datasets/cell/nucl", 404, "cell/coarse, cell/nuc", id="no such volume"),
        pytest.param("/v1/datasets/half", 409, "the publisher went away", id="not whole"),
        pytest.param("/v1/datasets/slices", 409, "keep: both", id="files alone"),
        pytest.param("/v1/datasets/cell%2F..%2Fholed", 404, "there is", id="a way out"),
        pytest.param("/v1/datasets/..%2Fcell", 404, "there is no dataset", id="a way up"),
        pytest.param("/v1/datasets/%2Fetc%2Fpasswd", 404, "there is", id="a path"),
        pytest.param("/v1/datasets/s3:%2F%2Fbucket%2Fx", 404, "there is", id="an address"),
    ],
)
def test_what_is_not_served_is_said(port, path, status, says):
    """404 for what nobody knows, 409 for what is not whole; never another place than the store's datasets."""
    for suffix in ("", "/block?start=0,0,0&shape=1"):
        found, _, body = ask(port, path + suffix)
        assert found == status, body
        assert says in json.loads(body)["error"]


def test_a_dataset_that_was_made_anew_is_read_anew(tmp_path, monkeypatch):
    """Another record, another volume: no process has to be started again."""
    monkeypatch.setattr("em_assets.serve.shelf.RECORD_SECONDS", 0.0)
    (tmp_path / "specs").mkdir()
    store = LocalStore(tmp_path / "data")
    folder = store_with_coverage(store, zarr_spec())
    settings = Settings(root=str(tmp_path / "data"), datasets=str(tmp_path / "specs"))
    with serving(settings) as port:
        assert ask_block(port, start="0,0,0", shape="4")[0] == 200
        assert ask_block(port, start="0,0,0", shape="4", level="1")[0] == 200
        small = zarr_spec(expected={"source_shape": [20, 20, 20], "dtype": "uint8", "voxel_size_nm": [12, 8, 4]})
        store.delete_all("cell")
        assert ask_block(port, start="0,0,0", shape="4")[0] == 404
        folder = store_with_coverage(store, small)
        folder.write_record(folder.read_record().model_copy(update={"timestamp": now()}))
        status, headers, _ = ask_block(port, start="0,0,0", shape="4")
        assert (status, headers["x-em-dtype"]) == (200, "uint8")
        assert json.loads(ask(port, "/v1/datasets/cell")[2])["levels"][0]["shape"] == [20, 20, 20]


# HTTP's own rules

QUERY = f"{BLOCK}?start=5,17,33&shape=20,30,40"


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, deflate", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=0.5, zstd;q=0.4", "gzip"),
        ("GZIP;Q=1.0", "gzip"),
        ("gzip;q=0", "identity"),
        ("gzip;q=0.3, identity;q=0.8", "identity"),
        ("identity", "identity"),
        ("br", "identity"),
        ("*", "identity"),
        ("identity;q=0, gzip;q=0.001", "gzip"),
        ("identity;q=0, *", "gzip"),
        ("*;q=0, zstd", "zstd"),
        ("*;q=0", None),
        ("identity;q=0", None),
        ("identity;q=0, br", None),
        ("gzip;q=2, zstd;q=nonsense", "identity"),
        (",,;;gzip", "identity"),
    ],
)
def test_codings(port, volume, header, coding):
    """The best of what the client takes, by q-values; decoded it is the same file; 406 if all is refused."""
    assert chosen_coding(header) == coding
    status, headers, body = ask(port, QUERY, **({} if header is None else {"Accept_Encoding": header}))
    if coding is None:
        assert status == 406
        return
    assert headers.get("content-encoding", "identity") == coding
    assert headers["vary"].split(", ")[0] == "Accept-Encoding"
    data = {"identity": bytes, "gzip": gzip.decompress, "zstd": zstandard.decompress}[coding](body)
    assert data == volume.read((5, 17, 33), shape=(20, 30, 40)).npy()


def test_a_tag_is_the_digest_and_differs_by_coding(port):
    """Strong tags: equal blocks have equal ones, and each coding of them has one of its own."""
    _, plain, _ = ask(port, QUERY)
    _, packed, _ = ask(port, QUERY, Accept_Encoding="gzip")
    assert plain["etag"] == f'"{plain["x-em-digest"]}"'
    assert packed["etag"] == f'"{plain["x-em-digest"]}-gzip"'
    assert ask(port, QUERY.replace("start=5,17,33", "z=5&y=17&x=33"))[1]["etag"] == plain["etag"]


@pytest.mark.parametrize(
    ("form", "status"),
    [
        pytest.param("{}", 304, id="same"),
        pytest.param("W/{}", 304, id="weak"),
        pytest.param('"other", {}', 304, id="one of several"),
        pytest.param("*", 304, id="any"),
        pytest.param('"other"', 200, id="another"),
        pytest.param("{}x", 304, id="trailing nonsense"),
    ],
)
def test_what_a_client_has_is_not_sent_again(port, form, status):
    """304 without a body, with the tag, for GET and HEAD."""
    tag = ask(port, QUERY)[1]["etag"]
    for method in ("GET", "HEAD"):
        found, headers, body = ask(port, QUERY, method, If_None_Match=form.format(tag))
        assert (found, headers["etag"]) == (status, tag)
        assert (not body) == (status == 304 or method == "HEAD")
    assert ask(port, QUERY, If_None_Match=tag, Accept_Encoding="gzip")[0] == 200


@pytest.mark.parametrize("coding", ["identity", "gzip", "zstd"])
@pytest.mark.parametrize(
    ("value", "part"),
    [
        pytest.param("bytes=10-19", slice(10, 20), id="both ends"),
        pytest.param("bytes=10-", slice(10, None), id="to the end"),
        pytest.param("bytes=-100", slice(-100, None), id="suffix"),
        pytest.param("bytes=0-99999999", slice(0, None), id="beyond the end"),
    ],
)
def test_ranges(port, coding, value, part):
    """206 with a part of the coded body, and what it is a part of."""
    whole = ask(port, QUERY, Accept_Encoding=coding)[2]
    status, headers, body = ask(port, QUERY, Accept_Encoding=coding, Range=value)
    assert (status, body) == (206, whole[part])
    start = range(len(whole))[part].start
    assert headers["content-range"] == f"bytes {start}-{start + len(body) - 1}/{len(whole)}"
    assert headers["content-length"] == str(len(body))


def test_ranges_that_are_none(port):
    """416 beyond the end; a range of another version, or what is no single range, or of HEAD, gives the whole."""
    _, headers, whole = ask(port, QUERY)
    status, refused, body = ask(port, QUERY, Range=f"bytes={len(whole)}-")
    assert (status, refused["content-range"]) == (416, f"bytes */{len(whole)}")
    assert str(len(whole)) in json.loads(body)["error"]
    assert ask(port, QUERY, Range="bytes=0-9", If_Range='"other"')[2] == whole
    assert ask(port, QUERY, Range="bytes=0-9", If_Range=f"W/{headers['etag']}")[2] == whole
    assert ask(port, QUERY, Range="bytes=0-9", If_Range=headers["etag"])[0] == 206
    assert ask(port, QUERY, Range="bytes=0-9,20-29")[2] == whole
    status, headers, _ = ask(port, QUERY, "HEAD", Range="bytes=0-9")
    assert (status, headers["content-length"]) == (200, str(len(whole)))


def test_head_says_the_same_without_a_body(port):
    """All of GET's headers, for blocks and for what describes them."""
    for path in (QUERY, "/v1/datasets", "/v1/datasets/cell", "/openapi.json", "/healthz"):
        got, told = ask(port, path), ask(port, path, "HEAD")
        assert (told[0], told[2]) == (got[0], b""), path
        left_out = {"date"}
        assert {k.lower(): v for k, v in told[1].items() if k.lower() not in left_out} == {
            k.lower(): v for k, v in got[1].items() if k.lower() not in left_out
        }, path


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        pytest.param("http://localhost:8888", True, id="a notebook here"),
        pytest.param("http://127.0.0.1", True, id="loopback"),
        pytest.param("https://viewer.example", True, id="named"),
        pytest.param("https://elsewhere.example", False, id="elsewhere"),
        pytest.param("http://localhost.elsewhere.example", False, id="looks like here"),
        pytest.param("null", False, id="a file or a sandbox"),
    ],
)
def test_other_origins(stored, origin, allowed):
    """Pages of this machine and of named origins may read answers and their headers; others may not."""
    with serving(stored, cors_origins=["https://viewer.example"]) as port:
        status, headers, _ = ask(port, QUERY, Origin=origin)
        assert status == 200
        assert headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert {"accept-encoding", "origin"} <= {
            part.strip().lower() for part in headers["vary"].split(",")
        } or not allowed
        wish = {"Access_Control_Request_Method": "GET", "Access_Control_Request_Headers": "range,if-none-match"}
        status, headers, _ = ask(port, QUERY, "OPTIONS", Origin=origin, **wish)
        assert (status == 200) == allowed
        assert (headers.get("access-control-allow-origin") == origin) == allowed
        if allowed:
            exposed = ask(port, QUERY, Origin=origin)[1]["access-control-expose-headers"].lower()
            assert {"x-em-digest", "x-em-box-nm", "etag", "content-range"} <= set(exposed.split(", "))
            wish["Access_Control_Request_Method"] = "PUT"
            assert ask(port, QUERY, "OPTIONS", Origin=origin, **wish)[0] == 400


def test_any_page_may_read_where_that_is_said(stored):
    """`*` lets every origin in, without naming it."""
    with serving(stored, cors_origins=["*"]) as port:
        for method, more in (("GET", {}), ("OPTIONS", {"Access_Control_Request_Method": "GET"})):
            status, headers, _ = ask(port, QUERY, method, Origin="https://elsewhere.example", **more)
            assert (status, headers["access-control-allow-origin"]) == (200, "*")


def test_only_this_machine_is_answered(port):
    """A page that reaches loopback under a name of its own is refused."""
    status, _, body = ask(port, QUERY, Host="elsewhere.example:8080")
    assert status == 400
    assert "elsewhere.example" in json.loads(body)["error"]
    assert ask(port, QUERY, Host="localhost:1234")[0] == 200
    assert ask(port, QUERY, Host="LOCALHOST")[0] == 200


@given(st.integers(0, 1000), st.none() | st.integers(0, 1000), st.none() | st.integers(0, 1000))
def test_a_range_is_a_slice(size, first, last):
    """`bytes=a-b` is `data[a:b+1]`, `bytes=-n` is the last n, on data of any size."""
    data = bytes(i % 256 for i in range(size))
    text = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    part = requested_range(text, size)
    if first is None and last is None:
        assert part is None
    elif first is None:
        assert bytes(data[i] for i in part) == (data[-last:] if last else b"")
    elif last is not None and last < first:
        assert part is None
    else:
        assert bytes(data[i] for i in part) == (data[first:] if last is None else data[first : last + 1])


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b", "bytes=1-²", f"bytes={'9' * 5000}-"],
)
def test_what_is_no_single_range_is_ignored(header):
    """The whole object is sent instead."""
    assert requested_range(header, 100) is None


def test_a_coded_body_is_always_the_same():
    """No time and no chance in it: a part that is asked for later belongs to the same whole."""
    data = bytes(range(256)) * 100
    assert encode(data, "gzip")[4:8] == bytes(4)
    for coding in ("gzip", "zstd", "identity"):
        assert encode(data, coding) == encode(data, coding)
    assert not has_tag(None, '"a"')


# What is refused

MALFORMED = {
    "nothing asked": "",
    "no place": "shape=16",
    "two places": "start=0,0,0&center_nm=500,2000,12300",
    "start twice": "start=0,0,0&start=0,0,0",
    "start in two ways": "start=0,0,0&z=0&y=0&x=0",
    "an axis is missing": "z=0&y=0",
    "two numbers": "start=0,0",
    "four numbers": "start=0,0,0,0",
    "a fraction of a voxel": "start=0.5,0,0",
    "words": "start=a,b,c",
    "an empty number": "start=0,,0",
    "empty": "start=",
    "a very long number": f"start={'9' * 400},0,0",
    "other digits": "start=%D9%A1,0,0",
    "an underscore": "start=1_0,0,0",
    "hexadecimal": "start=0x10,0,0",
    "not a number": "center_nm=nan,0,0",
    "infinite": "center_nm=inf,0,0",
    "too large for a float": "center_nm=1e999,0,0",
    "beyond a kilometre": "center_nm=1e15,0,0",
    "shape 0": "start=0,0,0&shape=0",
    "shape below 0": "start=0,0,0&shape=-8",
    "shape of two": "start=0,0,0&shape=8,8",
    "shape of halves": "start=0,0,0&shape=8.5",
    "too many voxels": "start=0,0,0&shape=1000",
    "far too many voxels": "start=0,0,0&shape=999999999999",
    "outside": "start=0,0,0&shape=128",
    "far outside": "start=999999999999,0,0&shape=8",
    "padding without a voxel": "start=9999,0,0&shape=8&pad=edge",
    "level below 0": "start=0,0,0&level=-1&shape=8",
    "no such level": "start=0,0,0&level=9&shape=8",
    "a level and a size": "center_nm=500,2000,12300&level=0&voxel_size_nm=8&shape=8",
    "a size with a start": "start=0,0,0&voxel_size_nm=8&shape=8",
    "voxels of no size": "center_nm=500,2000,12300&voxel_size_nm=0&shape=8",
    "a resample to nothing": "center_nm=500,2000,12300&resample=true&shape=8",
    "an unclear flag": "center_nm=500,2000,12300&voxel_size_nm=8&resample=yes&shape=8",
    "unknown padding": "start=0,0,0&pad=wrap&shape=8",
    "unknown policy": "start=0,0,0&missing=ignore&shape=8",
    "unknown dtype": "start=0,0,0&dtype=object&shape=8",
    "a dtype that loses": "start=0,0,0&dtype=uint8&shape=8",
    "a fill that does not fit": "start=0,0,0&fill=100000&pad=constant&shape=8",
    "a fill between voxels": "start=0,0,0&fill=0.5&pad=constant&shape=8",
    "a fill beyond any float": "start=-8,0,0&fill=1e300&pad=constant&dtype=float32&shape=8",
    "a fill beyond what is normalized": "start=-8,0,0&fill=1e300&pad=constant&normalize=0,1&shape=8",
    "unknown normalization": "start=0,0,0&normalize=magic&shape=8",
    "limits in the wrong order": "start=0,0,0&normalize=5,1&shape=8",
    "unknown format": "start=0,0,0&format=tiff&shape=8",
    "unknown array": "start=0,0,0&what=everything&shape=8",
    "labels without labels": "start=0,0,0&what=labels&shape=8",
    "labels of nobody": "start=0,0,0&labels=cell/none&shape=8",
    "labels from a path": "start=0,0,0&labels=/etc/passwd&shape=8",
    "labels of another dataset that has none": "start=0,0,0&labels=holed/nuc&shape=8",
    "unknown parameter": "start=0,0,0&size=8",
    "a parameter in capitals": "START=0,0,0",
    "markup": "start=%3Cscript%3E&shape=8",
    "control characters": "start=%00%0d%0a&shape=8",
    "broken UTF-8": "start=%ff%fe&shape=8",
    "a very long query": f"start=0,0,0&shape={'8' * 3000}",
}


@pytest.mark.parametrize("query", MALFORMED.values(), ids=MALFORMED)
def test_malformed_requests(port, query):
    """Each is refused with 4xx and one sentence on one line; none is taken for something else or for our fault."""
    status, headers, body = ask(port, f"{BLOCK}?{query}")
    assert 400 <= status < 500, body
    assert headers["content-type"] == "application/json"
    said = json.loads(body)
    assert list(said) == ["error"]
    assert re.fullmatch(r"[^\n\r\0]{20,600}\.", said["error"]), said
    assert "Traceback" not in said["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("POST", QUERY, 405, id="post"),
        pytest.param("PUT", "/v1/datasets/cell", 405, id="put"),
        pytest.param("DELETE", "/v1/datasets", 405, id="delete"),
        pytest.param("OPTIONS", QUERY, 405, id="options of no page"),
        pytest.param("GET", "/v2/datasets", 404, id="no such address"),
        pytest.param("GET", "/v1/datasets/cell/nuc/more/block", 404, id="too deep"),
        pytest.param("GET", "/v1/datasets?all=1", 400, id="a parameter where there is none"),
        pytest.param("GET", "/v1/datasets/cell?x=1", 400, id="another"),
        pytest.param("GET", "/openapi.json?a", 400, id="an empty one"),
        pytest.param("GET", "/view/cell?at=1,2", 400, id="half a place"),
        pytest.param("GET", "/view/cell?at=0,0,0", 422, id="a place outside"),
        pytest.param("GET", "/view/none", 404, id="nothing to view"),
    ],
)
def test_other_refusals(port, method, path, status):
    """Whatever is asked, the answer is JSON with a sentence."""
    found, headers, body = ask(port, path, method)
    assert found == status
    assert json.loads(body)["error"].endswith(".")
    if status == 405:
        assert {"GET", "HEAD"} == {part.strip() for part in headers["allow"].split(",")}


def test_coarse_voxels_out_of_very_many_are_refused(stored):
    """A small block whose making would read more than a request may is refused before anything is read."""
    with serving(stored, Limits(voxels=1000)) as port:
        asked = {"center_nm": "500,2000,12300", "shape": "9", "voxel_size_nm": "50", "resample": "true", "pad": "edge"}
        status, _, body = ask_block(port, **asked)
        assert status == 413
        assert "would be made of" in json.loads(body)["error"]
        assert ask_block(port, start="0,0,0", shape="10")[0] == 200
        assert ask_block(port, start="0,0,0", shape="11")[0] == 413


def test_what_an_interpolation_needs_on_its_way_counts(stored):
    """Axis after axis, few voxels out of few may need very many in between: refused before anything is read."""
    with serving(stored, Limits(voxels=20_000)) as port:
        asked = {"center_nm": "500,2000,12300", "voxel_size_nm": "0.1,800,1600", "resample": "true", "pad": "edge"}
        status, _, body = ask_block(port, **asked, shape="2000,1,1")
        assert status == 413
        assert "and a request may take 1.3 MB" in json.loads(body)["error"]
        assert ask_block(port, **asked, shape="1,1,1")[0] == 200


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((60, 60, 60), (60, 60, 60)), ((90, 90, 90), (45, 45, 45)), ((2, 90, 90), (200, 9, 9)), ((40,) * 3, (80,) * 3)],
    ids=["as many", "coarser", "finer and coarser", "finer"],
)
def test_an_interpolation_takes_no_more_than_is_charged(given, wanted):
    """Measured, with the level's voxels; nor is it charged very much more."""
    grid = Grid(given, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    size = tuple(n / m for n, m in zip(given, wanted, strict=True))
    sampling = Sampling.of(grid, (0.0, 0.0, 0.0), size, wanted)
    tracemalloc.start()
    try:
        sampling.linear(np.zeros(given), Box((0, 0, 0), given))
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    charged = _bytes_made(given, wanted, is_linear=True)
    assert 0.6 * charged < taken < 1.05 * charged


class Slow:
    """A volume that is read only when the test says so."""

    def __init__(self, volume, go: threading.Event) -> None:
        self._volume, self._go = volume, go

    def __getattr__(self, name):
        return getattr(self._volume, name)

    def read(self, *args, **options):
        assert self._go.wait(30)
        return self._volume.read(*args, **options)


@contextmanager
def slowly(monkeypatch, stored):
    from em_assets.serve.shelf import Shelf

    go, volume = threading.Event(), em.open("cell", settings=stored)
    monkeypatch.setattr(Shelf, "volume", lambda self, entry: Slow(volume, go))
    try:
        yield go
    finally:
        go.set()


def test_too_many_at_once_are_told_to_come_again(stored, monkeypatch):
    """503 with Retry-After for the request that finds no place; those that have one are answered; then all is free."""
    limits = Limits(reads=1, requests=3)
    with slowly(monkeypatch, stored) as go, serving(stored, limits) as port:
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(ask(port, QUERY)[0])) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: metric(port, "em_assets_block_requests_in_flight") == 3)
        status, headers, body = ask(port, QUERY)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "3 blocks are under way" in json.loads(body)["error"]
        assert ask(port, "/healthz")[0] == 200  # what is no block is not kept waiting
        go.set()
        for thread in threads:
            thread.join(30)
        assert answers == [200] * 3
        wait_until(lambda: metric(port, "em_assets_block_requests_in_flight") == 0)
        assert metric(port, "em_assets_blocks_refused_total") == 1
        assert ask(port, QUERY)[0] == 200


def test_what_takes_too_long_is_given_up(stored, monkeypatch):
    """503 after the time that a request has; its place is free again."""
    with slowly(monkeypatch, stored) as go, serving(stored, Limits(seconds=0.2)) as port:
        started = time.monotonic()
        status, headers, body = ask(port, QUERY)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "within 0.2 s" in json.loads(body)["error"]
        assert time.monotonic() - started < 5
        assert metric(port, "em_assets_block_requests_in_flight") == 0
        go.set()
        wait_until(lambda: ask(port, QUERY)[0] == 200)


def test_a_client_that_does_not_listen_gives_up_its_place(stored):
    """Whoever takes no bytes for as long as a request has is left; nobody else is kept waiting by it."""
    with serving(stored, Limits(seconds=0.5, requests=1)) as port:
        deaf = socket.create_connection(("127.0.0.1", port))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        path = f"{BLOCK}?start=-90,-90,-90&shape=255&pad=constant"
        deaf.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        wait_until(lambda: metric(port, "em_assets_block_requests_in_flight") == 1)
        wait_until(lambda: metric(port, "em_assets_block_requests_in_flight") == 0)
        assert ask(port, QUERY)[0] == 200
        deaf.close()


@pytest.mark.parametrize("path", ["/data/cell.ome.zarr/big", f"{BLOCK}?start=-90,-90,-90&shape=170&pad=constant"])
def test_a_client_that_does_not_listen_is_cut_off(stored, path):
    """Its connection is reset, though it reads nothing and does not go by itself; what it was to get is let go."""
    big = Path(stored.root) / "cell/volume.ome.zarr/big"
    big.write_bytes(bytes(10 * 2**20))
    try:
        with serving(stored, Limits(seconds=1)) as port, socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", port))
            deaf.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            ended = select.poll()
            ended.register(deaf, 0)
            wait_until(lambda: ended.poll(0))
            wait_until(lambda: metric(port, "em_assets_http_requests_in_flight") == 1)
    finally:
        big.unlink()


def test_no_more_connections_than_allowed(stored, monkeypatch):
    """Whatever they are for: 503 for one more, and when one has gone, there is a place again."""
    monkeypatch.setattr("em_assets.serve.limits.LEAST_CONNECTIONS", 4)
    with serving(stored, Limits(requests=1)) as port:
        pages = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
        for page in pages:
            page.sendall(b"GET /events/cell HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in page.recv(4096)
        assert ask(port, "/healthz")[0] == 503
        pages.pop().close()
        wait_until(lambda: ask(port, "/healthz")[0] == 200)
        for page in pages:
            page.close()


def test_our_own_faults_are_noted_and_not_told(stored, monkeypatch, capfd):
    """500 with a sentence that gives nothing away; the operator sees where it came from."""
    from em_assets.serve.shelf import Shelf

    def broken(self, entry):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Shelf, "volume", broken)
    with serving(stored) as port:
        status, _, body = ask(port, QUERY)
    assert status == 500
    assert b"secret" not in body and json.loads(body)["error"].endswith(".")
    assert "ZeroDivisionError: secret" in capfd.readouterr().err


def test_damage_is_no_fault_of_the_client(tmp_path):
    """A shard that was lost is a 500 that names what to do, not a block of zeros."""
    (tmp_path / "specs").mkdir()
    folder = store_with_coverage(LocalStore(tmp_path / "data"), zarr_spec())
    folder.store.delete(folder.path("volume.ome.zarr/0/c/0/0/0"))
    with serving(Settings(root=str(tmp_path / "data"), datasets=str(tmp_path / "specs"))) as port:
        status, _, body = ask_block(port, start="0,0,0", shape="8")
        assert status == 500
        assert "em-assets verify cell --repair" in json.loads(body)["error"]


def test_what_was_lost_and_found_is_read_again(tmp_path):
    """A volume that could not be read is opened anew: no process has to be started again for it."""
    (tmp_path / "specs").mkdir()
    folder = store_with_coverage(LocalStore(tmp_path / "data"), zarr_spec())
    coverage = folder.read("coverage.parquet")
    folder.store.delete(folder.path("coverage.parquet"))
    with serving(Settings(root=str(tmp_path / "data"), datasets=str(tmp_path / "specs"))) as port:
        assert ask_block(port, start="0,0,0", shape="8")[0] == 500
        folder.write("coverage.parquet", coverage)
        assert ask_block(port, start="0,0,0", shape="8")[0] == 200


def wait_until(fact) -> None:
    for _ in range(300):
        if fact():
            return
        time.sleep(0.05)
    raise AssertionError("that never came to be")


def metric(port: int, name: str) -> float:
    text = ask(port, "/metrics")[2].decode()
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


# What it tells about itself


def test_the_document_is_openapi(port):
    """It validates as OpenAPI 3.1, and names each parameter that is read, no other, and every header of a block."""
    document = json.loads(ask(port, "/openapi.json")[2])
    assert document["openapi"] == "3.1.0"
    block = document["paths"]["/v1/datasets/{name}/block"]["get"]
    assert {one["name"] for one in block["parameters"] if one["in"] == "query"} == set(BLOCK_PARAMETERS)
    view = document["paths"]["/view/{name}"]["get"]
    assert {one["name"] for one in view["parameters"] if one["in"] == "query"} == set(VIEW_PARAMETERS)
    sent = {name.lower() for name in ask(port, QUERY)[1] if name.lower().startswith("x-em-")}
    assert {name.lower() for name in block["responses"]["200"]["headers"]} == sent | {"etag", "vary"}
    validator = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
    validator.validate(document)


def test_examples_and_defaults_of_the_document_are_read(port):
    """What the document shows as an example is understood, and what it calls the default is what is taken."""
    document = json.loads(ask(port, "/openapi.json")[2])
    parameters = document["paths"]["/v1/datasets/{name}/block"]["get"]["parameters"]
    for one in parameters:
        if one["in"] == "query":
            BLOCK_PARAMETERS[one["name"]](one["name"], str(one["example"]))
            assert matches(one["schema"], one["example"]), one
    defaults = {one["name"]: str(one["schema"]["default"]) for one in parameters if "default" in one["schema"]}
    del defaults["shape"], defaults["resample"]  # the one does not fit this volume, the other goes with a size
    plain = ask_block(port, start="0,0,0", shape="8")
    assert ask_block(port, start="0,0,0", **({"shape": "8"} | defaults))[1]["etag"] == plain[1]["etag"]


def matches(schema: dict, value) -> bool:
    import jsonschema

    return jsonschema.Draft202012Validator(schema).is_valid(value)


REPLIES = [
    ("/", "/", "200"),
    ("/healthz", "/healthz", "200"),
    ("/v1/datasets", "/v1/datasets", "200"),
    ("/v1/datasets/{name}", "/v1/datasets/cell", "200"),
    ("/v1/datasets/{name}/{sub}", "/v1/datasets/cell/nuc", "200"),
    ("/v1/datasets/{name}", "/v1/datasets/none", "404"),
    ("/v1/datasets/{name}", "/v1/datasets/half", "409"),
    ("/v1/datasets/{name}", "/v1/datasets/cell?a=1", "400"),
    ("/v1/datasets/{name}/block", f"{BLOCK}?start=1", "400"),
    ("/v1/datasets/{name}/block", f"{BLOCK}?start=0,0,0&shape=1000", "413"),
    ("/v1/datasets/{name}/block", f"{BLOCK}?start=0,0,0&shape=128", "422"),
    ("/v1/datasets/{name}/{sub}/block", "/v1/datasets/cell/none/block?start=0,0,0", "404"),
    ("/view/{name}", "/view/cell?at=0,0,0", "422"),
]


@pytest.mark.parametrize(("path", "asked", "status"), REPLIES, ids=[f"{asked}" for _, asked, _ in REPLIES])
def test_replies_are_as_documented(port, path, asked, status):
    """Each reply that is JSON has the schema that the document gives for its status."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    document = json.loads(ask(port, "/openapi.json")[2])
    found, headers, body = ask(port, asked)
    assert str(found) == status
    reply = document["paths"][path]["get"]["responses"][status]
    schema = reply["content"][headers["content-type"]]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(json.loads(body))


def test_every_status_of_a_block_is_documented(port):
    """Nothing is answered that the document does not tell."""
    document = json.loads(ask(port, "/openapi.json")[2])
    documented = set(document["paths"]["/v1/datasets/{name}/block"]["get"]["responses"])
    found = {str(ask(port, f"{BLOCK}?{query}")[0]) for name, query in MALFORMED.items() if name != "a very long query"}
    assert found <= documented


def test_metrics_count_what_was_asked(stored):
    """Requests by route, method and status, their bytes and seconds, as Prometheus reads them."""
    with serving(stored) as port:
        sizes = [len(ask(port, QUERY)[2]) for _ in range(3)]
        ask(port, QUERY, "HEAD")
        ask(port, f"{BLOCK}?start=1")
        ask(port, "/v1/datasets/none")
        ask(port, "/nothing/here")
        status, headers, body = ask(port, "/metrics")
        text = body.decode()
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    block = 'route="/v1/datasets/{name}/block"'
    for line in [
        f'em_assets_http_requests_total{{{block},method="GET",status="200"}} 3',
        f'em_assets_http_requests_total{{{block},method="HEAD",status="200"}} 1',
        f'em_assets_http_requests_total{{{block},method="GET",status="400"}} 1',
        'em_assets_http_requests_total{route="/v1/datasets/{name}",method="GET",status="404"} 1',
        'em_assets_http_requests_total{route="other",method="GET",status="404"} 1',
        f"em_assets_http_request_seconds_count{{{block}}} 5",
        f'em_assets_http_request_seconds_bucket{{{block},le="+Inf"}} 5',
        f"em_assets_block_voxels_total {4 * 20 * 30 * 40}",
        "em_assets_http_requests_in_flight 1",
    ]:
        assert line in text.splitlines(), line
    sent = int(re.search(rf"em_assets_http_response_bytes_total{{{re.escape(block)}}} (\d+)", text)[1])
    assert sum(sizes) <= sent < sum(sizes) + 500
    slots = [int(n) for n in re.findall(rf'_bucket{{{re.escape(block)},le="[^"]+"}} (\d+)', text)]
    assert slots == sorted(slots)
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert {re.sub(r"_(bucket|sum|count)$", "", n) for n in re.findall(r"^(em_\w+)", text, re.MULTILINE)} <= names


# The volumes themselves, and the viewer


def test_the_volumes_are_served_and_nothing_beside_them(port, stored):
    """The OME-Zarr's objects, with ranges; records and what is not whole are not."""
    folder = DatasetFolder(LocalStore(stored.root), "cell")
    assert (
        ask(port, "/data/cell.ome.zarr/0/c/0/0/0", Range="bytes=-8")[2] == folder.read("volume.ome.zarr/0/c/0/0/0")[-8:]
    )
    assert ask(port, "/data/cell/volumes/nuc.ome.zarr/zarr.json")[2] == folder.read("volumes/nuc.ome.zarr/zarr.json")
    for path in [
        "/data/cell.ome.zarr/../metadata.json",
        "/data/cell.ome.zarr/%2e%2e/metadata.json",
        "/data/cell.ome.zarr/..%2fmetadata.json",
        "/data/cell/volumes/../metadata.json",
        "/data/half.ome.zarr/zarr.json",
        "/data/../cell/metadata.json",
        "/data/.ome.zarr/zarr.json",
        "/data/cell/records/z000_y000_x000.json",
        "/v/none/",
        "/events/none",
    ]:
        assert ask(port, path)[0] == 404, path


def test_the_viewer_opens_with_the_block_drawn(port, volume):
    """The state's box is the box of the block that is read around that place, in voxels of the frame, x y z."""
    block = volume.read(center_nm=(500, 2000, 12300), shape=16)
    status, headers, _ = ask(port, "/view/cell?at=500,2000,12300&shape=16", Host="localhost:7777")
    assert status == 302
    link = urlsplit(headers["location"])
    assert (link.netloc, link.path) == ("localhost:7777", "/v/cell/")
    state = json.loads(unquote(link.fragment.removeprefix("!")))
    assert state["layers"][1]["source"] == "zarr3://http://localhost:7777/data/cell.ome.zarr/"
    drawn = state["layers"][0]["annotations"][0]
    for corner, place in (("pointA", block.box_nm.start), ("pointB", block.box_nm.stop)):
        expected = [nm / size for nm, size in zip(place, VOXEL_SIZE_NM, strict=True)][::-1]
        assert drawn[corner] == pytest.approx(expected, abs=1e-9)
    assert ask(port, link.path)[0] == 200
    assert b"<script" in ask(port, link.path)[2]


# Its life


@contextmanager
def started(stored, *arguments: str):
    """The service in a process of its own: (process, port)."""
    code = f"from em_assets.serve import serve, Limits; serve(port=0, {', '.join(arguments)})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "EM_ASSETS_ROOT": stored.root,
            "EM_ASSETS_DATASETS": stored.datasets,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line + process.stderr.read()
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def test_sigterm_lets_requests_finish(stored):
    """A block that is on its way arrives whole; a viewer's open line keeps nobody; then the process ends with 0."""
    with started(stored) as (process, port):
        page = socket.create_connection(("127.0.0.1", port))
        page.sendall(b"GET /events/cell HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in page.recv(4096)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", f"{BLOCK}?start=-90,-90,-90&shape=255&pad=constant&format=raw")
        response = connection.getresponse()  # 33 MB, more than the sockets hold: most of it is still to be sent
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert len(response.read()) == 255**3 * 2
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
        for one in (page, connection):
            one.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_ctrl_c_ends_it(stored):
    """As everywhere: KeyboardInterrupt, which a command turns into its exit code."""
    with started(stored) as (process, port):
        assert ask(port, QUERY)[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
        assert process.stderr.read().rstrip().endswith("KeyboardInterrupt")


def test_it_listens_to_this_machine_alone_unless_told(stored):
    """127.0.0.1 by default."""
    with started(stored) as (_, port):
        table = Path("/proc/net/tcp").read_text()
        listening = re.findall(r"^\s*\d+: (\w{8}):(\w{4}) 00000000:0000 0A", table, re.MULTILINE)
        assert [address for address, number in listening if int(number, 16) == port] == ["0100007F"]


def test_parameters_that_python_would_take_are_refused():
    """A number with spaces, signs or separators is no number here."""
    for text in (" 1,2,3", "1, 2,3", "+1,2,3", "1,2,3 ", "\u0661,2,3", "1e2,2,3", "--1,2,3"):
        with pytest.raises(BadRequest):
            parse_block([("start", text)])
    assert quote("1,2,3", safe=",") == "1,2,3"
