"""Publishers of Zarr and N5 containers, over plain HTTP and as public buckets; and which objects they consist of."""

import json
from urllib.parse import urlsplit

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Mismatch, Unsupported
from em_assets.fetch.client import FolderClient, folder_url
from em_assets.fetch.http import HttpClient
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.sources import describe, open_source
from em_assets.sources.chunked import ChunkedVolume
from em_assets.sources.original import list_original
from em_assets.volume import Box
from faulty import FaultyServer

QUICK = Settings(unreachable_seconds=1.0, retry_seconds=1.0, connect_seconds=1.0, read_seconds=2.0, workers=2)
IMAGES, LABELS = "recon-2/em/fibsem-int16", "recon-2/labels/nuc"
SHAPE = (21, 45, 53)
CONTAINER = "bucket/a+b.zarr"
"""Of S3 a plus must be written %2B in an address."""


def voxels(shape, dtype, seed):
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max, shape, dtype)


def write_zarr(folder, group, levels):
    """A Zarr v2 multiscale as OpenOrganelle's, by zarr-python; all chunks written."""
    import zarr

    root = zarr.open_group(str(folder / group), mode="w", zarr_format=2)
    datasets = []
    for number, array in enumerate(levels):
        scale = [2.96 * 2**number, 4.0 * 2**number, 4.0 * 2**number]
        shift = [(2.96 * 2**number - 2.96) / 2, *[(4.0 * 2**number - 4.0) / 2] * 2]
        stored = root.create_array(
            f"s{number}",
            shape=array.shape,
            dtype=array.dtype,
            chunks=(16, 16, 16),
            chunk_key_encoding={"name": "v2", "separator": "/"},
            config={"write_empty_chunks": True},
        )
        stored[:] = array
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": f"s{number}", "coordinateTransformations": transforms})
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    root.attrs["multiscales"] = [{"version": "0.4", "name": "", "axes": axes, "datasets": datasets}]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(folder, images, labels): a container in a bucket, as files."""
    folder = tmp_path_factory.mktemp("published")
    images = [voxels(SHAPE, "int16", 1), voxels((10, 22, 26), "int16", 2)]
    labels = [voxels((5, 11, 13), "uint8", 3)]
    write_zarr(folder / CONTAINER, IMAGES, images)
    write_zarr(folder / CONTAINER, LABELS, labels)
    return folder, images, labels


@pytest.fixture
def server(published):
    with FaultyServer(published[0]) as running:
        yield running


def spec_of(source, **changes):
    values = yaml.safe_load((PACKAGED_DATASETS / "jrc_mus_nacc_2.yaml").read_text())
    values["source"] = {"kind": "zarr", "group": IMAGES, "level": 0, **source}
    values["expected"] = {"source_shape": list(SHAPE), "dtype": "int16", "voxel_size_nm": [2.96, 4.0, 4.0]}
    values["volumes"] = {
        "nuc": {
            "content": "labels",
            "group": LABELS,
            "shape": [5, 11, 13],
            "dtype": "uint8",
            "voxel_size_nm": [2.96, 4.0, 4.0],
        }
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if value is not None else {}
    return DatasetSpec.model_validate(values)


@pytest.fixture(params=["http", "s3"])
def source(request, server):
    """The same container at a plain address and in a bucket of another server than Amazon's."""
    if request.param == "http":
        return {"url": f"{server.url}/{CONTAINER.replace('+', '%2B')}/"}
    return {"url": f"s3://{CONTAINER}", "endpoint": server.url}


def test_both_volumes_are_read_and_compared(source, published, monkeypatch):
    """Every voxel of both; credentials in the environment, here wrong ones, are sent to nobody."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    _, images, labels = published
    opened = open_source(spec_of(source), QUICK)
    assert np.array_equal(opened.reader.read(), images[0])
    assert np.array_equal(opened.volume_reader("nuc").read(), labels[0])
    assert opened.crop_box() == (Box.from_shape(SHAPE), {"origin": "whole"})


@pytest.mark.parametrize("level", [1, "s1"])
def test_a_coarser_level_is_chosen_by_number_or_path(source, published, level):
    expected = {"source_shape": [10, 22, 26], "voxel_size_nm": [5.92, 8.0, 8.0]}
    opened = open_source(spec_of({**source, "level": level}, expected=expected), QUICK)
    assert np.array_equal(opened.reader.read(), published[1][1])


def test_an_array_is_its_own_level(source, published):
    """A group may name the array itself."""
    opened = open_source(spec_of({**source, "group": f"{IMAGES}/s0"}), QUICK)
    assert np.array_equal(opened.reader.read(), published[1][0])


def test_what_was_met_is_told(source, published):
    """What nobody knew for sure before: convention, format, compression, whether metadata are consolidated."""
    met = open_source(spec_of(source), QUICK).met()
    assert met["convention"] == "centre"
    assert met["published_levels"] == ["s0", "s1"]
    assert met["format"] == "zarr 2"
    array = json.loads((published[0] / CONTAINER / IMAGES / "s0/.zarray").read_text())
    assert met["compressor"] == array["compressor"]
    assert met["has_consolidated_metadata"] is False
    assert json.loads(json.dumps(met)) == met


def test_a_server_that_does_not_say_is_no_no(server):
    source = {"url": f"{server.url}/{CONTAINER.replace('+', '%2B')}"}
    opened = open_source(spec_of(source), QUICK)
    server.stop()
    assert opened.met()["has_consolidated_metadata"] is None


def test_documents_are_kept_as_received_and_described(source, published):
    """By their path in the container, those of further volumes once they are opened; each value with its address."""
    spec = spec_of(source)
    opened = open_source(spec, QUICK)
    before = set(opened.documents())
    opened.volume_reader("nuc")
    documents = opened.documents()
    assert before < set(documents)
    for path, raw in documents.items():
        inside = path.removeprefix("documents/").replace("__", "/")
        assert raw == (published[0] / CONTAINER / inside).read_bytes()
    stored = "documents/recon-2__em__fibsem-int16__s0__.zarray"
    found = {(c.key, c.value, c.url) for c in describe(spec, documents) if c.document == stored}
    base = spec.source.url.rstrip("/")
    assert ("/shape/2", 53, f"{base}/{IMAGES}/s0/.zarray") in found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expected": {"source_shape": [21, 45, 54]}}, "shape is"),
        ({"expected": {"dtype": "uint16"}}, "dtype is int16"),
        ({"expected": {"voxel_size_nm": [3.0, 4.0, 4.0]}}, "voxel size in nm is"),
    ],
    ids=["shape", "dtype", "voxel size"],
)
def test_a_publisher_that_says_otherwise_is_a_mismatch(source, changes, words):
    """The sentence names dataset, address, level, and both values."""
    with pytest.raises(Mismatch, match=rf"jrc_mus_nacc_2, {urlsplit(source['url']).scheme}://.* level 0: .*{words}"):
        open_source(spec_of(source, **changes), QUICK)


def test_a_further_volume_that_is_otherwise_is_a_mismatch(source):
    wrong = {"nuc": {"group": f"{IMAGES}/s1", "shape": [5, 11, 13], "dtype": "uint8", "voxel_size_nm": [3, 4, 4]}}
    opened = open_source(spec_of(source, volumes=wrong), QUICK)
    with pytest.raises(Mismatch, match=r"s1 level 0: the publisher's shape is \(10, 22, 26\)"):
        opened.volume_reader("nuc")


def test_a_crop_snaps_to_the_chunks(source):
    crop = {"shape": [4, 5, 6], "origin": [17, 20, 40], "snap": True}
    box, how = open_source(spec_of(source, crop=crop), QUICK).crop_box()
    assert (box.start, box.shape, how["snapped"]) == ((16, 16, 32), (4, 5, 6), True)


def test_a_copy_is_read_in_place_of_the_publishers(published):
    """With a client for it: nothing is asked of the publisher, and it is compared all the same."""
    folder, images, labels = published
    spec = spec_of({"url": "s3://nobody-is-there/a.zarr"})
    opened = ChunkedVolume(spec, QUICK, client=FolderClient(), url=folder_url(folder / CONTAINER))
    assert np.array_equal(opened.reader.read(), images[0])
    assert np.array_equal(opened.volume_reader("nuc").read(), labels[0])
    assert opened.met()["has_consolidated_metadata"] is False


def test_ftp_is_no_way_to_chunks():
    with pytest.raises(ValidationError, match="begins with https://, http://, s3:// or gs://"):
        spec_of({"url": "ftp://host/a.zarr"})


def test_an_n5_container_is_read(tmp_path, server):
    """x, y, z end in the reader: the volume is (z, y, x) as tensorstore wrote it."""
    ts = pytest.importorskip("tensorstore")
    array = voxels((9, 10, 11), "uint8", 4)
    group = server.folder / "b.n5/em/s0"
    metadata = {
        "dimensions": [11, 10, 9],
        "blockSize": [4, 5, 6],
        "dataType": "uint8",
        "compression": {"type": "gzip"},
        "resolution": [8.0, 8.0, 10.0],
        "units": ["nm", "nm", "nm"],
        "axes": ["x", "y", "z"],
    }
    stored = ts.open(
        {"driver": "n5", "kvstore": f"file://{group}/", "metadata": metadata}, create=True, delete_existing=True
    ).result()
    stored[...] = array.T
    expected = {"source_shape": [9, 10, 11], "dtype": "uint8", "voxel_size_nm": [10.0, 8.0, 8.0]}
    source = {"kind": "n5", "url": f"{server.url}/b.n5", "group": "em/s0"}
    opened = open_source(spec_of(source, expected=expected, volumes=None), QUICK)
    assert np.array_equal(opened.reader.read(), array)
    met = opened.met()
    assert (met["format"], met["compression"]["type"]) == ("n5", "gzip")


def files_of(folder, *groups):
    return {str(file.relative_to(folder)) for group in groups for file in (folder / group).rglob("*") if file.is_file()}


def test_a_plain_server_lists_nothing():
    with pytest.raises(Unsupported, match="is no bucket"):
        next(list_original(spec_of({"url": "https://host/a.zarr"}), HttpClient(QUICK)))


def test_a_bucket_lists_every_object_of_the_groups(moto_s3, monkeypatch, published):
    """All levels of all volumes, byte counts included; neighbours whose names begin alike are left out."""
    import boto3

    container = published[0] / CONTAINER
    prefix = moto_s3.removeprefix("s3://em-data/")
    client = boto3.client("s3")
    uploaded = {}
    for path in files_of(container, IMAGES, LABELS):
        client.upload_file(str(container / path), "em-data", f"{prefix}/{path}")
        uploaded[f"{prefix}/{path}"] = (container / path).stat().st_size
    for stranger in (f"{prefix}/{IMAGES}-other/.zgroup", f"{prefix}/recon-2/.zgroup"):
        client.put_object(Bucket="em-data", Key=stranger, Body=b"{}")
    spec = spec_of({"url": moto_s3, "endpoint": client.meta.endpoint_url})
    assert {entry.key: entry.size_bytes for entry in list_original(spec, HttpClient(QUICK))} == uploaded
