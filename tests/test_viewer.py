"""The viewer: links that open the right place, a server that gives away nothing else, and the picture in a browser."""

import http.client
import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import zarr

import em_assets.blocks as em
from conftest import ROOT
from em_assets import cli
from em_assets.blocks.geometry import BoxNm
from em_assets.datasets.loading import load_spec
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.neuroglancer import (
    Picture,
    block_box_nm,
    block_state,
    grid_of,
    hosted_url,
    neuroglancer_state,
    neuroglancer_url,
    read_picture,
    read_pictures,
    value_range,
)
from em_assets.pipeline import listed_record
from em_assets.records import VOLUME, DatasetFolder, PartitionRecord, VoxelStatistics, now
from em_assets.serve.client import client_folder
from em_assets.settings import PACKAGED_DATASETS
from em_assets.standardize.finish import write_coverage
from em_assets.standardize.ome import write_metadata
from em_assets.store import LocalStore, Store, open_store
from em_assets.viewer import (
    build_app,
    can_view,
    napari_layers,
    published_link,
    show_layers,
    stored_link,
    view,
    view_in_napari,
)
from em_assets.volume import Box
from faulty import FaultyServer
from small import PATH, publish, quick_settings, write_spec
from test_catalog_volumes import HIGH, LOW, NUC_ORIGIN, NUC_SHAPE, NUC_VOXEL_SIZE_NM, files_spec, store_all, zarr_spec

SHAPE = (64, 96, 160)
VOXEL_SIZE_NM = (12.0, 8.0, 4.0)
ORIGIN = (10, 200, 3000)
NAME = "asymmetric"
BASE, LEFT_X, TOP_Y, FIRST_Z = 100, 250, 170, 30
"""Grey values: of the whole, and of the first quarter along x, y and z."""
BACKGROUND = 128
"""Neuroglancer's, where there is no volume."""


def asymmetric() -> np.ndarray:
    """No axis can be taken for another, and none for its mirror image."""
    volume = np.full(SHAPE, BASE, np.uint8)
    volume[: SHAPE[0] // 4] = FIRST_Z
    volume[:, : SHAPE[1] // 4] = TOP_Y
    volume[:, :, : SHAPE[2] // 4] = LEFT_X
    return volume


def write_volume(store: Store, root: str, storage_options: dict | None = None) -> DatasetFolder:
    """The volume with two levels, sharded, by zarr-python: another writer than the product's."""
    import zarr

    level0 = asymmetric()
    options = {"storage_options": storage_options} if storage_options else {}
    group = zarr.create_group(f"{root}/{NAME}/{VOLUME}", **options)
    datasets = []
    for level, data in enumerate([level0, level0[::2, ::2, ::2]]):
        array = group.create_array(
            str(level), shape=data.shape, dtype="uint8", chunks=(16, 16, 16), shards=(32, 32, 32), fill_value=0
        )
        array[:] = data
        scale = [size * 2**level for size in VOXEL_SIZE_NM]
        first = [(o + 0.5) * s + (k - s) / 2 for o, s, k in zip(ORIGIN, VOXEL_SIZE_NM, scale, strict=True)]
        transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": first}]
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": NAME, "axes": axes, "datasets": datasets}]}
    return DatasetFolder(store, NAME)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("store"))
    return write_volume(LocalStore(root), root)


@contextmanager
def served(folder: DatasetFolder, at_nm=None, shape=(128, 128, 128), opens=None):
    """The port of the viewer's server, in a thread of this process."""
    for module in ("starlette", "uvicorn", "neuroglancer"):
        pytest.importorskip(module, reason=f"{module} (extra `view`) is not installed")
    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    opens = opens or stored_link(folder, at_nm, shape)
    app = build_app(folder, client_folder(), opens, allowed_hosts=["127.0.0.1", "localhost"])
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture(scope="module")
def port(folder):
    with served(folder) as number:
        yield number


def ask(port: int, path: str, method: str = "GET", **headers: str):
    """One request, its path sent as it is: (status, headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


SHARD = f"/data/{NAME}.ome.zarr/0/c/0/0/0"


@pytest.fixture
def shard(folder):
    return folder.read(f"{VOLUME}/0/c/0/0/0")


def test_an_object_is_served_whole(port, shard):
    """GET gives the very bytes, with length and tag."""
    status, headers, body = ask(port, SHARD)
    assert (status, body) == (200, shard)
    assert headers["content-length"] == str(len(shard))
    assert headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("value", "part"),
    [
        pytest.param("bytes=10-19", slice(10, 20), id="both ends"),
        pytest.param("bytes=10-", slice(10, None), id="to the end"),
        pytest.param("bytes=-100", slice(-100, None), id="suffix"),
        pytest.param("bytes=0-99999999", slice(0, None), id="beyond the end"),
    ],
)
def test_ranges(port, shard, value, part):
    """206 with the right bytes and the right Content-Range: shards are read in parts, the index from the end."""
    status, headers, body = ask(port, SHARD, Range=value)
    assert (status, body) == (206, shard[part])
    start = range(len(shard))[part].start
    assert headers["content-range"] == f"bytes {start}-{start + len(body) - 1}/{len(shard)}"


def test_a_range_outside_is_refused(port, shard):
    """416, with the size."""
    status, headers, _ = ask(port, SHARD, Range=f"bytes={len(shard)}-")
    assert status == 416
    assert headers["content-range"] == f"bytes */{len(shard)}"


def test_head_says_the_same_without_a_body(port, shard):
    """HEAD has GET's headers."""
    status, headers, body = ask(port, SHARD, "HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-length"] == str(len(shard))


def test_tags(port):
    """An unchanged object is not sent twice, and a part of another version not taken for one of this."""
    _, headers, whole = ask(port, SHARD)
    assert ask(port, SHARD, If_None_Match=headers["etag"])[0] == 304
    assert ask(port, SHARD, Range="bytes=0-9", If_Range=headers["etag"])[0] == 206
    assert ask(port, SHARD, Range="bytes=0-9", If_Range='"other"')[2] == whole


@pytest.mark.parametrize(
    "path",
    [
        f"/data/{NAME}.ome.zarr/0/c/9/9/9",
        f"/data/{NAME}.ome.zarr/0/c",
        f"/data/{NAME}.ome.zarr/",
        f"/data/{NAME}.ome.zarr/../metadata.json",
        f"/data/{NAME}.ome.zarr/..%2fmetadata.json",
        f"/data/{NAME}.ome.zarr/%2e%2e/metadata.json",
        f"/data/{NAME}.ome.zarr/..%5cmetadata.json",
        f"/data/{NAME}.ome.zarr/%2e%2e%2f%2e%2e%2fsecret",
        f"/data/{NAME}.ome.zarr//etc/passwd",
        f"/data/{NAME}.ome.zarr/0%00",
        f"/{NAME}/metadata.json",
        f"/data/{NAME}/manifest.parquet",
        f"/data/{NAME}/../metadata.json",
        "/data/other/metadata.json",
        "/secret",
        "/v/other/",
        f"/v/{NAME}/../../secret",
        f"/v/{NAME}/..%2f..%2fsecret",
    ],
)
def test_nothing_else_can_be_read(folder, port, path):
    """404 for missing chunks, for folders, for whatever lies beside the volume, however the way there is written."""
    Path(folder.store.root, "secret").write_text("secret")
    folder.write("metadata.json", b"secret")
    try:
        status, _, body = ask(port, path)
    finally:
        folder.store.delete(folder.path("metadata.json"))
    assert status == 404
    assert b"secret" not in body


def test_other_methods_and_other_origins(port):
    """Nothing can be written; nobody is invited across origins; a page that calls us by another name is refused."""
    assert ask(port, SHARD, "PUT")[0] == 405
    status, headers, _ = ask(port, SHARD, "OPTIONS", Origin="http://elsewhere.example")
    assert status == 405
    assert "access-control-allow-origin" not in headers
    assert ask(port, SHARD, Host="elsewhere.example")[0] == 400


def test_home_leads_to_the_client_with_a_state(port):
    """`/` opens the client on this dataset, with the address the browser used: forwarded ports work."""
    status, headers, _ = ask(port, "/", Host="localhost:9999")
    assert status == 302
    link = urlsplit(headers["location"])
    assert (link.netloc, link.path) == ("localhost:9999", f"/v/{NAME}/")
    state = json.loads(unquote(link.fragment.removeprefix("!")))
    assert state["layers"][0]["source"] == f"zarr3://http://localhost:9999/data/{NAME}.ome.zarr/"
    status, headers, body = ask(port, link.path)
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert b"<script" in body


def test_from_s3_it_is_the_same(moto_s3):
    """The voxels of a bucket are served as those of a folder."""
    folder = write_volume(open_store(moto_s3), moto_s3, {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})
    with served(folder) as port:
        whole = ask(port, SHARD)
        assert whole[0] == 200
        assert whole[2] == folder.read(f"{VOLUME}/0/c/0/0/0")
        assert ask(port, SHARD, Range="bytes=-20")[2] == whole[2][-20:]
        assert ask(port, f"/data/{NAME}.ome.zarr/0/c/9/9/9")[0] == 404
        assert ask(port, "/")[0] == 302


def test_the_state_is_centred_and_to_scale():
    """Dimensions in metres, position in voxels at the middle, axes x, y, z."""
    box = Box((10, 200, 3000), (74, 296, 3160))
    state = neuroglancer_state(Picture("em", "zarr3://http://h/", VOXEL_SIZE_NM, box, (10.0, 200.5)))
    assert list(state["dimensions"]) == ["x", "y", "z"]
    assert state["dimensions"]["x"] == [pytest.approx(4e-9), "m"]
    assert state["dimensions"]["z"] == [pytest.approx(12e-9), "m"]
    assert state["position"] == [3080, 248, 42]
    assert state["crossSectionScale"] == pytest.approx(768 / 4 / 400)
    assert "range=[10,200.5]" in state["layers"][0]["shader"]
    assert state["layout"] == "4panel"


def test_neuroglancer_itself_reads_the_link_back():
    """The wheel's own parser understands the link, and nothing is lost."""
    neuroglancer = pytest.importorskip("neuroglancer", reason="neuroglancer (extra `view`) is not installed")
    state = neuroglancer_state(Picture("em", "zarr3://http://h/a.ome.zarr/", VOXEL_SIZE_NM, Box((0, 0, 0), SHAPE)))
    parsed = neuroglancer.parse_url(neuroglancer_url("http://h/v/em/", state)).to_json()
    assert parsed["position"] == state["position"]
    assert parsed["dimensions"] == state["dimensions"]
    assert parsed["layers"][0]["shader"] == state["layers"][0]["shader"]


def test_the_hosted_link_opens_the_publishers_volume_at_the_crop():
    """No server needed: the publisher's own address, the crop in the middle and outlined."""
    spec = load_spec(PACKAGED_DATASETS / "hemibrain_crop.yaml")
    box = Box((100, 200, 300), (1100, 1200, 1300))
    link = hosted_url(spec, listed_record(spec).model_copy(update={"source_box": box}))
    assert link.startswith("https://neuroglancer-demo.appspot.com/#!")
    state = json.loads(unquote(link.partition("#!")[2]))
    assert state["layers"][1]["source"] == f"precomputed://{spec.source.url}"
    assert state["position"] == [800, 700, 600]
    assert state["layers"][0]["annotations"][0]["pointA"] == [300, 200, 100]
    assert "position" not in json.loads(unquote(hosted_url(spec, None).partition("#!")[2]))


def state_of(link: str) -> dict:
    return json.loads(unquote(link.partition("#!")[2]))


def test_the_hosted_link_of_a_bucket():
    """A Zarr in a bucket is opened over https, its labels as a segmentation; a whole volume needs no outline."""
    spec = load_spec(PACKAGED_DATASETS / "jrc_mus_nacc_2.yaml")
    # the publisher's translation is the centre of the first voxel, as Neuroglancer takes it: half a voxel before 0
    size_nm = spec.voxel_size_nm
    changes = {"source_box": Box.from_shape(spec.shape), "corner_nm": tuple(-size / 2 for size in size_nm)}
    state = state_of(hosted_url(spec, listed_record(spec).model_copy(update=changes)))
    group = "https://janelia-cosem-datasets.s3.amazonaws.com/jrc_mus-nacc-2/jrc_mus-nacc-2.zarr/recon-2"
    assert [(layer["type"], layer["name"], layer["source"]) for layer in state["layers"]] == [
        ("image", "openorganelle", f"zarr://{group}/em/fibsem-int16"),
        ("segmentation", "jrc_mus_nacc_2/nuc", f"zarr://{group}/labels/inference/segmentations/nuc"),
    ]
    assert state["position"] == [2596 / 2 - 0.5, 2520 / 2 - 0.5, 564 / 2 - 0.5]
    assert [scale for scale, _ in state["dimensions"].values()] == pytest.approx([4e-9, 4e-9, 2.96e-9])


@pytest.mark.parametrize(
    ("source", "url"),
    [
        (
            {"kind": "n5", "url": "https://example.org/a.n5", "group": "volumes/raw"},
            "n5://https://example.org/a.n5/volumes/raw",
        ),
        (
            {"kind": "zarr", "url": "gs://bucket/a_b.zarr"},
            "zarr://https://storage.googleapis.com/bucket/a_b.zarr",
        ),
        (
            {"kind": "zarr", "url": "s3://my.bucket/a.zarr", "endpoint": "https://s3.example.org", "group": "a b"},
            "zarr://https://s3.example.org/my.bucket/a.zarr/a%20b",
        ),
    ],
    ids=["n5", "google", "other endpoint"],
)
def test_the_hosted_link_of_other_containers(source, url):
    """As Neuroglancer takes it, whatever the spec calls it; an N5 is counted from its own corner."""
    spec = zarr_spec(source=source, volumes={})
    box = Box.from_shape(spec.shape, at=ORIGIN)
    state = state_of(
        hosted_url(spec, listed_record(spec).model_copy(update={"source_box": box, "corner_nm": (6, 4, 2)}))
    )
    assert [layer["source"] for layer in state["layers"]] == [url]
    half = 0 if source["kind"] == "n5" else 0.5
    assert state["position"] == [3080 + half, 248 + half, 42 + half]


def test_a_block_of_an_n5_that_is_not_stored_is_drawn_at_its_place():
    """Its publisher's corner is told by the volume itself, where there is no record of it yet."""
    spec = zarr_spec(source={"kind": "n5", "url": "https://example.org/a.n5", "group": "raw"}, volumes={})
    corner_nm, box_nm = (600.0, 400.0, 200.0), BoxNm((640.0, 440.0, 240.0), (680.0, 480.0, 280.0))
    record = listed_record(spec).model_copy(update={"corner_nm": corner_nm})
    stored, published = hosted_url(spec, record, box_nm), hosted_url(spec, None, box_nm, corner_nm=corner_nm)
    drawn, expected = (
        [layer for layer in state_of(url)["layers"] if "annotations" in layer] for url in (published, stored)
    )
    assert drawn
    assert drawn[0]["annotations"][-1] == expected[0]["annotations"][-1]


def test_files_have_no_hosted_link():
    """Neuroglancer reads no TIFF and no DM3 of a publisher's server."""
    assert hosted_url(files_spec(), None) is None


def test_the_picture_is_read_from_the_volume_itself(folder):
    """Shape, voxel size and place come from the OME-Zarr metadata: the corner is half a voxel before the centre."""
    picture = read_picture(folder, "here")
    assert picture.voxel_size_nm == VOXEL_SIZE_NM
    assert picture.box == Box.from_shape(SHAPE, at=ORIGIN)
    assert picture.value_range is None


def test_contrast_follows_the_statistics(tmp_path):
    """Three standard deviations around the mean of all voxels, within what occurs."""
    folder = DatasetFolder(LocalStore(tmp_path), "em")
    for index, (mean, deviation) in enumerate([(100.0, 10.0), (120.0, 10.0)]):
        statistics = VoxelStatistics(
            voxels=1000,
            minimum=90,
            maximum=255,
            mean=mean,
            standard_deviation=deviation,
            zero_fraction=0,
            saturated_fraction=0,
        )
        record = PartitionRecord(
            key=f"z000_y000_x00{index}",
            level=0,
            box=Box((0, 0, 0), (1, 1, 1)),
            objects=(),
            identity="any",
            written_at=now(),
            tool="test",
            statistics=statistics,
        )
        folder.write_partition_record(record)
    low, high = value_range(folder)
    assert low == 90
    assert high == pytest.approx(110 + 3 * 200**0.5)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A signed image, labels over a part of it at another resolution, and a second image."""
    return store_all(LocalStore(tmp_path_factory.mktemp("several")), zarr_spec())


def test_further_volumes_are_further_layers(several):
    """Labels lie over the image as a segmentation, other images wait to be asked for; contrast is signed."""
    main, further = read_pictures(several, "http://h")
    state = neuroglancer_state(main, further)
    image, nuc, coarse = state["layers"]
    assert (image["type"], image["name"], image["source"]) == ("image", "cell", "zarr3://http://h/cell.ome.zarr/")
    assert f"range=[{LOW},{HIGH}]" in image["shader"]
    assert nuc == {
        "type": "segmentation",
        "name": "cell/nuc",
        "source": "zarr3://http://h/cell/volumes/nuc.ome.zarr/",
    }
    assert (coarse["type"], coarse["name"], coarse["visible"]) == ("image", "cell/coarse", False)
    assert further[1].value_range is None  # all of one value: the main volume's contrast is not taken for it
    assert further[0].box == Box.from_shape(NUC_SHAPE, at=NUC_ORIGIN)
    assert further[0].voxel_size_nm == NUC_VOXEL_SIZE_NM
    neuroglancer = pytest.importorskip("neuroglancer", reason="neuroglancer (extra `view`) is not installed")
    parsed = neuroglancer.parse_url(neuroglancer_url("http://h/v/cell/", state)).to_json()
    assert [layer["type"] for layer in parsed["layers"]] == ["image", "segmentation", "image"]


def test_only_stored_volumes_are_shown(tmp_path):
    """One that the record names but that is not whole yet is left out; a dataset of files alone says so."""
    folder = store_all(LocalStore(tmp_path), zarr_spec())
    folder.store.delete(folder.path("volumes/nuc.ome.zarr/zarr.json"))
    _, further = read_pictures(folder, "http://h")
    assert [picture.name for picture in further] == ["cell/coarse"]
    files = store_all(LocalStore(tmp_path), files_spec(keep="original", volumes={}))
    with pytest.raises(Unavailable, match=r"keeps the publisher's files only, in .*slices/original"):
        read_pictures(files, "http://h")


def test_a_volume_off_the_grid_lies_where_its_metadata_say(tmp_path):
    """A frame whose origin is the centre of a voxel: half a voxel is not rounded away."""
    spec = zarr_spec()
    folder = store_all(LocalStore(tmp_path), spec)
    write_metadata(folder, spec, (0, 0, 0), (-6.0, -4.0, -2.0))
    picture = read_picture(folder, "here")
    assert (picture.box, picture.corner_nm) == (Box.from_shape(SHAPE), (-6.0, -4.0, -2.0))
    assert neuroglancer_state(picture)["position"] == [79.5, 47.5, 31.5]


def test_a_block_is_drawn_where_it_is():
    """Its box in the frame's voxels, x y z, in the middle of the view, filling half of a panel; scales stay."""
    box = Box.from_shape(SHAPE, at=ORIGIN)
    picture = Picture("em", "zarr3://http://h/", VOXEL_SIZE_NM, box, corner_nm=(-6.0, -4.0, -2.0))
    block = BoxNm((300.0, 1800.0, 12100.0), (684.0, 2056.0, 12228.0))
    state = block_state(picture, block)
    annotation = state["layers"][-1]["annotations"][0]
    assert annotation["type"] == "axis_aligned_bounding_box"
    assert annotation["pointA"] == pytest.approx([3025.0, 225.0, 25.0])
    assert annotation["pointB"] == pytest.approx([3057.0, 257.0, 57.0])
    assert state["position"] == pytest.approx([3041.0, 241.0, 41.0])
    assert state["crossSectionScale"] == pytest.approx(384 / 4 / 200)
    assert state["layers"][0] == neuroglancer_state(picture)["layers"][0]
    neuroglancer = pytest.importorskip("neuroglancer", reason="neuroglancer (extra `view`) is not installed")
    parsed = neuroglancer.parse_url(neuroglancer_url("http://h/v/em/", state))
    assert [layer.type for layer in parsed.layers] == ["annotation", "image"]


def test_the_box_is_that_of_the_block_that_is_read(several, tmp_path):
    """Around any place, also of another volume and where it leaves the volume; wholly outside is refused."""
    for sub in (None, "nuc"):
        picture = read_picture(several.further(sub), "")
        grid = grid_of(picture)
        middle = grid.box_nm(grid.box).center
        for shift in (0.0, 0.3, -7.9, 50.0):
            place = tuple(nm + shift for nm in middle)
            start = grid.start_around(place, (16, 8, 4))
            assert block_box_nm(picture, place, (16, 8, 4)) == grid.box_nm(Box.from_shape((16, 8, 4), at=start))
    with pytest.raises(Mismatch, match=r"the block around 0, 0, 0 nm .* lies outside cell/nuc, which\s+fills"):
        block_box_nm(picture, (0.0, 0.0, 0.0), (16, 16, 16))


def test_view_at_opens_on_the_block(several):
    """`/` leads to the state with the block's box, of a further volume too, over the same layers."""
    nuc = several.further("nuc")
    picture = read_picture(nuc, "")
    at_nm = grid_of(picture).box_nm(grid_of(picture).box).center
    with served(nuc, at_nm=at_nm, shape=(8, 8, 8)) as port:
        state = state_of(ask(port, "/")[1]["location"])
    assert [layer["name"] for layer in state["layers"]] == ["block", "cell", "cell/nuc", "cell/coarse"]
    drawn = state["layers"][0]["annotations"][0]
    box_nm = block_box_nm(picture, at_nm, (8, 8, 8))
    expected = [nm / size for nm, size in zip(box_nm.start, VOXEL_SIZE_NM, strict=True)][::-1]
    assert drawn["pointA"] == pytest.approx(expected)


def test_napari_gets_every_volume_at_its_place(several):
    """Levels, scale and the middle of the first voxel, in nanometres; labels as labels; the block as a layer."""
    main = read_picture(several, "")
    at_nm = grid_of(main).box_nm(grid_of(main).box).center
    (data, image, kind), (_, nuc, labels), _, (block, options, _) = napari_layers(several, at_nm=at_nm, shape=(8, 4, 2))
    assert (kind, labels) == ("image", "labels")
    assert [level.shape for level in data] == [SHAPE, tuple(n // 2 for n in SHAPE)]
    assert data[0][0, 0, 0] == LOW
    assert image["translate"] == [(o + 0.5) * s for o, s in zip(ORIGIN, VOXEL_SIZE_NM, strict=True)]
    assert nuc["scale"] == list(NUC_VOXEL_SIZE_NM)
    assert (image["contrast_limits"], image["visible"]) == ((LOW, HIGH), True)
    assert block.shape == (8, 4, 2)
    corner = block_box_nm(main, at_nm, (8, 4, 2)).start
    assert options["translate"] == [c + s / 2 for c, s in zip(corner, VOXEL_SIZE_NM, strict=True)]


def test_napari_shows_them():
    """In napari's own model the layers fill the space that they should, and the view is at the place."""
    pytest.importorskip("napari", reason="napari is not installed; it is no dependency")
    from napari.components import ViewerModel

    viewer = ViewerModel()
    data = np.zeros((4, 6, 8), np.uint8)
    options = {"scale": [12.0, 8.0, 4.0], "translate": [6.0, 4.0, 2.0]}
    show_layers(
        viewer, [(data, options | {"name": "em"}, "image"), (data, options | {"name": "block"}, "image")], (24, 24, 16)
    )
    assert viewer.layers["em"].extent.world[0].tolist() == [6.0, 4.0, 2.0]
    assert viewer.dims.point == (24, 24, 16)
    assert viewer.layers["block"].bounding_box.visible


def test_without_napari_it_is_said(several):
    """One sentence, with the way to get it."""
    if importlib.util.find_spec("napari") is not None:
        pytest.skip("napari is installed here")
    with pytest.raises(Unsupported, match=r"napari is not installed here: run `pip install 'napari\[all\]'`"):
        view_in_napari(several)


@pytest.fixture
def type_view(several, tmp_path, monkeypatch, capsys):
    """Runs `em-assets view` in this process: (exit code, stderr)."""
    monkeypatch.setenv("EM_ASSETS_ROOT", several.store.root)
    monkeypatch.setenv("EM_ASSETS_DATASETS", str(tmp_path))

    def view_command(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["em-assets", "view", *arguments, "--no-browser"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr().err

    return view_command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["cell", "--at", "1,2"], "must be three numbers", id="half a place"),
        pytest.param(["cell", "--shape", "16"], "give at=z,y,x", id="a shape of nothing"),
        pytest.param(["cell", "--at", "0,0,0"], "lies outside cell", id="outside"),
        pytest.param(["cell/none"], "cell/nuc", id="no such volume"),
        pytest.param(["cel"], "did you mean cell?", id="misspelt"),
    ],
)
def test_what_cannot_be_viewed_is_said(type_view, arguments, says):
    """Before anything is served, in a sentence."""
    code, said = type_view(*arguments)
    assert code not in (0, 130)
    assert says in " ".join(said.split())
    assert "Traceback" not in said


def test_further_volumes_are_served_and_nothing_beside_them(several):
    """Below their own folder, with ranges; records, originals and whatever has no volume's name are not."""
    several.write("original/secret.tif", b"secret")
    several.write("manifest.parquet", b"secret")
    several.write("volumes/Other Volume.ome.zarr/secret", b"secret")
    several.write("volumes/Other Volume.coverage.parquet", b"secret")
    with served(several) as port:
        status, _, body = ask(port, "/data/cell/volumes/nuc.ome.zarr/0/c/0/0/0", Range="bytes=-8")
        assert (status, body) == (206, several.read("volumes/nuc.ome.zarr/0/c/0/0/0")[-8:])
        state = state_of(ask(port, "/")[1]["location"])
        assert state["layers"][1]["source"] == f"zarr3://http://127.0.0.1:{port}/data/cell/volumes/nuc.ome.zarr/"
        for path in [
            "/data/cell/volumes/nuc.ome.zarr/../nuc.coverage.parquet",
            "/data/cell/volumes/nuc.ome.zarr/%2e%2e/nuc.coverage.parquet",
            "/data/cell/volumes/nuc.ome.zarr/..%2fnuc.coverage.parquet",
            "/data/cell/volumes/nuc.ome.zarr%2f..%2fnuc.coverage.parquet",
            "/data/cell/volumes/Other%20Volume.coverage.parquet",
            "/data/cell/volumes/Other%20Volume.ome.zarr/secret",
            "/data/cell/volumes/../original/secret.tif",
            "/data/cell/volumes/...ome.zarr/secret",
            "/data/cell/original/secret.tif",
            "/data/cell/records/volumes/nuc/z000_y000_x000.json",
            "/cell/metadata.json",
            "/data/cell/spec.json",
        ]:
            status, _, body = ask(port, path)
            assert (status, b"secret" in body) == (404, False), path


@pytest.mark.parametrize("sub", [pytest.param(None, id="main"), pytest.param("nuc", id="further")])
def test_python_reads_it_by_its_address_and_knows_what_is_missing(tmp_path, sub):
    """What the viewer calls a volume is the dataset for `em.open`, holes and all; and links of blocks lead to it."""
    hole = Box((0, 0, 0), (25, 20, 15))
    folder = store_all(LocalStore(tmp_path / "store"), zarr_spec(missing="record"), {sub: [hole]}).further(sub)
    for one, layout in zarr_spec(missing="record").layouts().items():
        own = folder.further(one)
        write_coverage(own, layout, [record for record in own.partition_records() if record.level == 0])
    elsewhere = quick_settings(tmp_path / "own", datasets=str(tmp_path))
    with served(folder) as port:
        source = [layer["source"] for layer in state_of(ask(port, "/")[1]["location"])["layers"]][sub is not None]
        volume = em.open(source, settings=elsewhere)
        assert volume.name == folder.title
        assert volume.missing_fraction(hole) == 1
        here = em.open(folder.title, settings=quick_settings(tmp_path / "store"))
        link = here.neuroglancer_url(here.box_nm, f"http://127.0.0.1:{port}")
        assert ask(port, urlsplit(link).path)[0] == 200
        at = urlsplit(state_of(link)["layers"][-1]["source"].removeprefix("zarr3://")).path
        assert ask(port, f"{at}zarr.json")[0] == 200
        record = json.loads(ask(port, "/data/cell/metadata.json")[2])
        assert record["local_paths"] == {"volume": "/data/cell.ome.zarr/"}


@pytest.fixture(scope="module")
def at_publisher(tmp_path_factory):
    """A dataset that is not stored: (its folder in an empty store, its spec, settings, its publisher's server)."""
    place = tmp_path_factory.mktemp("publisher")
    publish(place / "origin")
    with FaultyServer(place / "origin") as server:
        spec = write_spec(place / "specs", server.url, crop={"seed": None, "origin": [5, 9, 21]})
        settings = quick_settings(place / "store", datasets=str(place / "specs"))
        yield DatasetFolder(LocalStore(place / "store"), "small"), spec, settings, server


@pytest.mark.parametrize(
    ("at_voxel", "shape", "start"),
    [
        pytest.param(None, (128, 128, 128), (5, 9, 21), id="the volume"),
        pytest.param((69, 79, 96), (16, 8, 4), (61, 75, 94), id="a block"),
    ],
)
def test_what_is_not_stored_is_shown_at_its_publisher(at_publisher, at_voxel, shape, start):
    """The client of this machine, on the publisher's volume, with the box that a download or a block would be."""
    folder, spec, settings, server = at_publisher
    assert can_view(folder, spec)
    at_nm = None if at_voxel is None else tuple(8.0 * n for n in at_voxel)
    opens = published_link(folder, settings, at_nm, shape)
    with served(folder, opens=opens) as port:
        link = ask(port, "/")[1]["location"]
        assert link.startswith(f"http://127.0.0.1:{port}/v/small/#!")
        assert ask(port, "/v/small/")[0] == 200
        assert ask(port, "/data/small/metadata.json")[0] == 404
    state = state_of(link)
    block, image = state["layers"]
    assert image["source"] == f"precomputed://{server.url}/{PATH}"
    [drawn] = block["annotations"]
    assert drawn["pointA"][::-1] == list(start)
    read = em.open("small", settings=settings).read((56, 66, 73), shape=(16, 8, 4))
    assert at_voxel is None or [8.0 * n for n in drawn["pointB"][::-1]] == list(read.box_nm.stop)


def test_what_cannot_be_shown_at_a_publisher_is_said(at_publisher, tmp_path):
    """A place outside is named with what the volume fills; files are for no browser, and have to be got."""
    folder, _, settings, _ = at_publisher
    with pytest.raises(Mismatch, match=r"the block around 0, 0, 0 nm .* lies outside small, which fills"):
        published_link(folder, settings, (0.0, 0.0, 0.0), (4, 4, 4))
    files = DatasetFolder(LocalStore(tmp_path), "slices")
    assert not can_view(files, files_spec())
    with pytest.raises(Unavailable, match="em-assets get slices"):
        view(files, spec=files_spec(), open_browser=False)


def test_what_is_not_there_is_said_with_what_to_do(tmp_path):
    """No volume: the way to get it. Damaged metadata: the file and the way out."""
    folder = DatasetFolder(LocalStore(tmp_path), "em")
    with pytest.raises(Unavailable, match="em-assets get em"):
        read_picture(folder, "")
    folder.write(f"{VOLUME}/zarr.json", b'{"attributes": {}}')
    with pytest.raises(Malformed, match=r"zarr\.json is not the metadata of an OME-Zarr"):
        read_picture(folder, "")


def test_the_command_serves_until_interrupted(folder):
    """`em-assets view NAME` prints the address and answers there; Ctrl-C ends it within 5 s, also with a page open."""
    process = subprocess.Popen(
        [sys.executable, "-m", "em_assets.cli", "view", NAME, "--no-browser"],
        env={**os.environ, "EM_ASSETS_ROOT": folder.store.root, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith(f"{NAME}: http://127.0.0.1:"), line + process.stderr.read()
        port = urlsplit(line.split()[1]).port
        assert ask(port, SHARD)[0] == 200
        events = socket.create_connection(("127.0.0.1", port))
        events.sendall(f"GET /events/{NAME} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert b"200 OK" in events.recv(4096)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert time.monotonic() - started < 5
        assert "Traceback" not in process.stderr.read()
        events.close()
    finally:
        process.kill()
        process.communicate()


Z, Y, X = range(3)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian package chromium)")
def test_the_browser_shows_the_volume_upright_and_to_scale(port):
    """Each axis where it belongs, none mirrored, each as long as its voxels times their size, at its place in space."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--ignore-gpu-blocklist"])
        page = browser.new_page(viewport={"width": 1100, "height": 1100})
        refused: list[str] = []
        page.on("request", lambda request: refused.append(request.url) if "127.0.0.1" not in request.url else None)
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function("window.viewer && viewer.isReady()", timeout=60_000)
        space = page.evaluate(
            "(({names, scales, bounds}) => ({names, scales: [...scales], lower: [...bounds.lowerBounds],"
            " upper: [...bounds.upperBounds]}))(viewer.coordinateSpace.value)"
        )
        boxes = [panel.bounding_box() for panel in page.query_selector_all(".neuroglancer-rendered-data-panel")]
        pixels = picture_of(page)
        status = page.inner_text("body")
        browser.close()
    assert space["names"] == ["x", "y", "z"]
    assert space["scales"] == pytest.approx([size * 1e-9 for size in VOXEL_SIZE_NM[::-1]])
    assert space["lower"] == list(ORIGIN[::-1])
    assert space["upper"] == [o + n for o, n in zip(ORIGIN[::-1], SHAPE[::-1], strict=True)]
    assert "Disconnected" not in status
    assert "Connecting" not in status
    assert not [url for url in refused if url.startswith("http")]
    z, y, x = (n * s / min(VOXEL_SIZE_NM) * 400 / 192 for n, s in zip(SHAPE, VOXEL_SIZE_NM, strict=True))
    xy, xz, _, yz = sorted(boxes, key=lambda box: (round(box["y"] / 100), box["x"]))
    assert_panel(pixels, xy, (x, y), LEFT_X, TOP_Y)
    assert_panel(pixels, xz, (x, z), LEFT_X, FIRST_Z)
    assert_panel(pixels, yz, (-z, y), FIRST_Z, TOP_Y)  # Neuroglancer looks along x here: z grows to the left


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian package chromium)")
def test_the_browser_draws_the_block(folder):
    """The block's box is drawn in the middle of each cross-section, half as high as a panel, as a coloured line."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    grid = grid_of(read_picture(folder, ""))
    at_nm = grid.box_nm(grid.box).center
    with served(folder, at_nm=at_nm, shape=(16, 24, 48)) as port, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--ignore-gpu-blocklist"])
        page = browser.new_page(viewport={"width": 1100, "height": 1100})
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function("window.viewer && viewer.isReady()", timeout=60_000)
        boxes = [panel.bounding_box() for panel in page.query_selector_all(".neuroglancer-rendered-data-panel")]
        pixels = picture_of(page, "RGB")
        browser.close()
    panel = min(boxes, key=lambda box: (round(box["y"] / 100), box["x"]))
    # all sides are 192 nm: 48 voxels of 4 nm, in 200 pixels; the lines through the middle are not looked at
    middle = np.array([panel["y"] + panel["height"] / 2, panel["x"] + panel["width"] / 2])
    for side in (-100, 100):
        for near, coloured in ((0, True), (-10, False), (10, False)):
            assert is_coloured(pixels, np.add(middle, (30, side + near))) == coloured
            assert is_coloured(pixels, np.add(middle, (side + near, 30))) == coloured


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian package chromium)")
def test_the_browser_shows_the_publishers_volume(at_publisher):
    """Of a dataset that is not stored: the publisher's own voxels around the box, which is a coloured line."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder, _, settings, _ = at_publisher
    opens = published_link(folder, settings, tuple(8.0 * n for n in (75, 85, 95)), (32, 32, 32))
    with served(folder, opens=opens) as port, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--ignore-gpu-blocklist"])
        page = browser.new_page(viewport={"width": 1100, "height": 1100})
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function("window.viewer && viewer.layerManager.managedLayers.length == 2", timeout=60_000)
        page.wait_for_function("viewer.isReady()", timeout=60_000)
        boxes = [panel.bounding_box() for panel in page.query_selector_all(".neuroglancer-rendered-data-panel")]
        pixels = picture_of(page, "RGB")
        browser.close()
    panel = min(boxes, key=lambda box: (round(box["y"] / 100), box["x"]))
    middle = np.array([panel["y"] + panel["height"] / 2, panel["x"] + panel["width"] / 2])
    assert is_coloured(pixels, np.add(middle, (30, 100)))
    row, column = np.round(middle).astype(int)
    assert np.ptp(pixels[row + 20 : row + 80, column + 20 : column + 80]) > 20  # noise, where the background is plain


def is_coloured(pixels: np.ndarray, place: np.ndarray) -> bool:
    """Whether something that is not grey lies within three pixels of a place."""
    row, column = np.round(place).astype(int)
    around = pixels[row - 3 : row + 4, column - 3 : column + 4]
    return bool(np.ptp(around, axis=2).max() > 40)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian package chromium)")
def test_the_browser_shows_labels_where_they_lie(several):
    """Labels of another resolution colour just their part of a signed image, in every panel."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with served(several) as port, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--ignore-gpu-blocklist"])
        page = browser.new_page(viewport={"width": 1100, "height": 1100})
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function("window.viewer && viewer.isReady()", timeout=60_000)
        boxes = [panel.bounding_box() for panel in page.query_selector_all(".neuroglancer-rendered-data-panel")]
        pixels = picture_of(page, "RGB")
        browser.close()
    xy, xz, _, yz = sorted(boxes, key=lambda box: (round(box["y"] / 100), box["x"]))
    labels = Box.from_shape(NUC_SHAPE, at=NUC_ORIGIN)
    first, last = (np.multiply(corner, NUC_VOXEL_SIZE_NM) for corner in (labels.start, labels.stop))
    middle = np.multiply(ORIGIN, VOXEL_SIZE_NM) + np.multiply(SHAPE, VOXEL_SIZE_NM) / 2
    beside = middle - 30  # the lines that mark the middle are coloured too
    for panel, across, down in [(xy, X, Y), (xz, X, Z), (yz, Z, Y)]:
        for axis in (across, down):
            for edge_nm, inward in [(first[axis], 8), (last[axis], -8)]:
                inside, outside = beside.copy(), beside.copy()
                inside[axis], outside[axis] = edge_nm + inward, edge_nm - inward
                assert np.ptp(colour_at(pixels, panel, (across, down), inside - middle)) > 20
                assert np.ptp(colour_at(pixels, panel, (across, down), outside - middle)) == 0
    size_nm = np.multiply(SHAPE, VOXEL_SIZE_NM)
    for where, grey in [((0, 0.4, -0.4), 0), ((0, -0.4, 0.4), 255), ((0, 0.4, 0.4), 128)]:  # LOW, HIGH, between them
        assert colour_at(pixels, xy, (X, Y), where * size_nm) == pytest.approx(grey, abs=3)


def colour_at(pixels: np.ndarray, panel: dict, axes: tuple[int, int], from_middle_nm: np.ndarray) -> np.ndarray:
    """The colour of a place in a panel that shows 768 nm, the longest side, in 400 pixels, the middle in its middle."""
    across, down = axes
    step = from_middle_nm * 400 / 768
    right = -step[Z] if across == Z else step[X]  # where Neuroglancer looks along x, z grows to the left
    row, column = panel["y"] + panel["height"] / 2 + step[down], panel["x"] + panel["width"] / 2 + right
    return pixels[round(row), round(column)]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian package chromium)")
def test_the_browser_shows_the_channel(folder, tmp_path):
    """The link of a volume that is one of two channels shows that one: here the first is dark and the second bright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    array = zarr.create_array(str(tmp_path / "v.zarr/0"), shape=(2, 32, 32, 32), chunks=(1, 32, 32, 32), dtype="u1")
    array[0], array[1] = 30, 220
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "nanometer"} for a in "zyx")]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 4, 4, 4]}]}
    group = zarr.open_group(str(tmp_path / "v.zarr"), mode="a")
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [level]}]}
    found = []
    with FaultyServer(tmp_path) as site, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--ignore-gpu-blocklist"])
        for channel in (0, 1):
            volume = em.open(f"{site.url}/v.zarr", channel=channel)
            opens = partial(_link_through, volume, folder.name)
            with served(folder, opens=opens) as port:
                page = browser.new_page(viewport={"width": 1100, "height": 1100})
                page.goto(f"http://127.0.0.1:{port}/")
                page.wait_for_function("window.viewer && viewer.layerManager.managedLayers.length == 2", timeout=60_000)
                page.wait_for_function("viewer.isReady()", timeout=60_000)
                panel = page.query_selector(".neuroglancer-rendered-data-panel").bounding_box()
                pixels = picture_of(page)
            y, x = (int(panel[at] + panel[size] / 2) for at, size in (("y", "height"), ("x", "width")))
            found.append(pixels[y + 20, x + 20])
        browser.close()
    assert found[0] < 100
    assert found[1] > 180


def _link_through(volume, name, origin):
    return volume.neuroglancer_url(volume.box_nm, f"{origin}/v/{name}")


def picture_of(page, mode="L") -> np.ndarray:
    """The page as grey values (or RGB), once it no longer changes."""
    from PIL import Image

    before = None
    for _ in range(60):
        pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert(mode)).astype(int)
        if before is not None and (pixels == before).all():
            return pixels
        before = pixels
        page.wait_for_timeout(500)
    raise AssertionError("the page never came to rest")


def assert_panel(pixels: np.ndarray, box: dict, size: tuple[float, float], left: int, top: int) -> None:
    """One cross-section: as wide and high as it must be, its first quarters at the left and at the top.

    A negative width: the panel's axis grows to the left.
    """
    across, down = size
    middle_x, middle_y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def at(right: float, below: float) -> int:
        return pixels[round(middle_y + (below - 0.5) * down), round(middle_x + (right - 0.5) * across)]

    assert at(0.6, 0.6) == pytest.approx(BASE, abs=3)
    # the slab along x lies over that along y, which lies over that along z
    assert at(0.12, 0.6) == pytest.approx(left, abs=3)
    assert at(0.6, 0.12) == pytest.approx(top, abs=3)
    for inside, outside in [(0.98, 1.02), (0.02, -0.02)]:
        assert at(inside, 0.6) != pytest.approx(BACKGROUND, abs=3)
        assert at(0.6, inside) != pytest.approx(BACKGROUND, abs=3)
        assert at(outside, 0.6) == pytest.approx(BACKGROUND, abs=3)
        assert at(0.6, outside) == pytest.approx(BACKGROUND, abs=3)
