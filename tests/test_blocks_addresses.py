"""A volume of our own store by its address, in S3 and on web servers: what is missing is known, as by its name."""

import gzip
import json
import multiprocessing
import pickle
import struct
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest

import em_assets.blocks as em
from em_assets.blocks import opening
from em_assets.blocks._readers import AWS_KEYS
from em_assets.blocks.sampling import Crops, Source
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch import attempts
from em_assets.fetch.http import HttpClient, NotThere
from em_assets.records import DatasetFolder
from em_assets.standardize.finish import write_coverage
from em_assets.standardize.intensity import update_intensity
from em_assets.store import LocalStore, open_store
from em_assets.volume import Box
from fault_server import RawServer, reply
from faulty import Fault, FaultyServer
from ome_volumes import halved, write_ome_zarr
from small import quick_settings
from test_catalog_volumes import NUC_SHAPE, SHAPE, store_all, zarr_spec

HOLE = Box((16, 30, 41), (48, 70, 90))
"""What the publisher does not have of the image: no chunk of 32 voxels a side is wholly within, many are in part."""
NUC_HOLE = Box((0, 0, 0), (25, 20, 15))
"""Likewise of the labels, which are one chunk."""
INSIDE_A_CHUNK = Box((16, 32, 64), (32, 64, 90))
"""A part of the hole within a chunk that is stored."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Settings whose store has a finished dataset with a hole in its image and one in its labels."""
    root, spec = tmp_path_factory.mktemp("addresses") / "data", zarr_spec(missing="record")
    folder = store_all(LocalStore(root), spec, {None: [HOLE], "nuc": [NUC_HOLE]})
    for sub, layout in spec.layouts().items():
        own = folder.further(sub)
        records = list(own.partition_records())
        write_coverage(own, layout, [record for record in records if record.level == 0])
        update_intensity(own, layout, records)
    folder.write_record(folder.read_record().with_status("complete"))  # dated after all that it is about
    return quick_settings(root)


@pytest.fixture(scope="module")
def server(stored):
    with FaultyServer(Path(stored.root)) as started:
        yield started


@pytest.fixture(autouse=True)
def _as_it_was(server, monkeypatch):
    """Nothing fails, nothing was asked for, and nobody waits long before something is tried again."""
    monkeypatch.setattr(attempts, "BACKOFF_SECONDS", 0.02)
    yield
    server.fail = lambda path, range_header, count: None


@pytest.fixture
def elsewhere(tmp_path):
    """Settings of somebody who has another, empty store."""
    return quick_settings(tmp_path / "own", datasets=str(tmp_path))


def put(stored, root: str) -> str:
    """The same dataset below another root."""
    here, there = LocalStore(stored.root), open_store(root)
    for path, _ in here.list("cell"):
        there.write(path, here.read(path))
    return root


def image_mask() -> np.ndarray:
    real = np.ones(SHAPE, np.bool_)
    real[HOLE.slices] = False
    return real


def digests(volume: em.Volume) -> list[str]:
    """Of a block without a hole, of two with parts of it, at both levels."""
    blocks = [
        volume.read((0, 0, 90), shape=30),
        volume.read((3, 7, 21), shape=60, missing="mask"),
        volume.read((1, 2, 3), shape=30, level=1, missing="mask"),
    ]
    return [block.digest for block in blocks]


def asked(server, since: int = 0) -> Counter:
    """How often each document beside the volumes was asked for."""
    return Counter(path for _, path, _ in list(server.log)[since:] if ".ome.zarr/" not in path)


# It is the dataset


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("{url}/cell/volume.ome.zarr", id="volume"),
        pytest.param("{url}/cell/volume.ome.zarr/", id="slash"),
        pytest.param("zarr3://{url}/cell/volume.ome.zarr/", id="as Neuroglancer writes it"),
        pytest.param("{url}/cell", id="dataset"),
        pytest.param("{url}/cell/staged/volume.ome.zarr", id="staged copy"),
        pytest.param("{root}/cell/volume.ome.zarr", id="path"),
        pytest.param("{root}/cell", id="path of the dataset"),
        pytest.param("file://{root}/cell/volume.ome.zarr", id="file address"),
        pytest.param("zarr://{root}/cell/volume.ome.zarr", id="path as Neuroglancer writes it"),
    ],
)
def test_equal_blocks_by_name_path_and_address(stored, server, elsewhere, address):
    """However the volume is called, the same requests give the same digests, masks included."""
    by_name = em.open("cell", settings=stored)
    volume = em.open(address.format(url=server.url, root=stored.root), settings=elsewhere)
    assert digests(volume) == digests(by_name)
    assert (volume.name, volume.box_nm, volume.convention) == ("cell", by_name.box_nm, "centre")
    assert volume.statistics() == by_name.statistics()


def test_its_location_opens_it_again(stored, server, elsewhere):
    """An address or a path is what another process needs to find the volume; its name may be nothing there."""
    for place in (f"{server.url}/cell/volume.ome.zarr", f"{stored.root}/cell/volume.ome.zarr"):
        volume = em.open(place, settings=elsewhere)
        assert volume.location == place
        assert em.open(volume.location, settings=elsewhere).name == "cell"


def test_the_mask_is_exact_at_both_levels(stored, server, elsewhere):
    """Every voxel of the hole and no other; above, those of which nothing below is real."""
    volume = em.open(f"{server.url}/cell/volume.ome.zarr", settings=elsewhere)
    real = image_mask()
    block = volume.read((0, 0, 0), shape=SHAPE, missing="mask")
    assert (block.valid == real).all()
    assert (block.data[~real] == 0).all()
    z, y, x = (n // 2 for n in SHAPE)
    above = volume.read((0, 0, 0), shape=(z, y, x), level=1, missing="mask")
    assert (above.valid == real.reshape(z, 2, y, 2, x, 2).any(axis=(1, 3, 5))).all()


def test_a_hole_in_a_stored_chunk_is_an_error(stored, server, elsewhere):
    """Asked for voxels that the publisher does not have, the volume names the box of them."""
    chunk = Path(stored.root) / "cell/volume.ome.zarr/0/c/0/0/1"
    assert chunk.is_file()
    volume = em.open(f"{server.url}/cell/volume.ome.zarr", settings=elsewhere)
    with pytest.raises(Mismatch, match=r"the publisher does not have 13312 voxels .* in 16:32, 32:64, 64:90"):
        volume.read((0, 32, 64), shape=32)
    assert volume.missing_fraction(INSIDE_A_CHUNK) == 1


def test_a_further_volume_by_its_address(stored, server, elsewhere):
    """Labels have a coverage and a content of their own, which their record states."""
    volume = em.open(f"{server.url}/cell/volumes/nuc.ome.zarr", settings=elsewhere)
    assert (volume.name, volume.content) == ("cell/nuc", "labels")
    block = volume.read((0, 0, 0), shape=NUC_SHAPE, missing="mask")
    real = np.ones(NUC_SHAPE, np.bool_)
    real[NUC_HOLE.slices] = False
    assert (block.valid == real).all()
    by_name = em.open("cell/nuc", settings=stored)
    assert block.digest == by_name.read((0, 0, 0), shape=NUC_SHAPE, missing="mask").digest


def test_the_sampler_never_draws_it(server, elsewhere):
    """Of crops at random, many would touch the hole, although its chunks are stored; those that are drawn do not."""
    source = Source.of(em.open(f"{server.url}/cell/volume.ome.zarr", settings=elsewhere), 16, None)

    def touching(*, is_whole: bool) -> int:
        crops = Crops([source], [1.0], length=64, is_padded=False, is_whole=is_whole)
        boxes = [Box.from_shape((16, 16, 16), at=crops.place(3, 0, n).start) for n in range(64)]
        return sum(HOLE.intersection(box) is not None for box in boxes)

    assert touching(is_whole=False) > 10
    assert touching(is_whole=True) == 0


def test_what_is_beside_it_is_asked_for_once(server, elsewhere):
    """The record when it is opened; record and coverage when it is first read; then nothing."""
    since = len(server.log)
    volume = em.open(f"{server.url}/cell/volume.ome.zarr", settings=elsewhere)
    assert asked(server, since) == {"/cell/metadata.json": 1}
    for _ in range(3):
        volume.read((0, 0, 100), shape=20)
    assert asked(server, since) == {"/cell/metadata.json": 2, "/cell/coverage.parquet": 1}


def test_spawned_workers_ask_once(server, elsewhere):
    """A volume that travels to another process is known there for what it is, by one look of that process."""
    volume = em.open(f"{server.url}/cell/volume.ome.zarr", settings=elsewhere)
    read = methodcaller("read", (3, 7, 21), shape=40, missing="mask")  # which is light to import in a worker
    here, since = read(volume), len(server.log)
    assert here.valid is not None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
        assert workers.submit(read, volume).result(60).digest == here.digest
    assert asked(server, since) == {"/cell/metadata.json": 1, "/cell/coverage.parquet": 1}


def test_a_browser_is_sent_to_the_address(server, elsewhere):
    """The link of a block is to the web server's volume: nothing of ours has to run."""
    volume = em.open(f"{server.url}/cell", settings=elsewhere)
    assert f"zarr://{server.url}/cell/volume.ome.zarr" in volume.read((0, 0, 90), shape=8).neuroglancer_url()


# It is not, or not whole


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("{url}/cell/volume.ome.zarr", id="web"),
        pytest.param("{url}/cell/volumes/nuc.ome.zarr", id="web, labels"),
        pytest.param("{root}/cell/volume.ome.zarr", id="path"),
    ],
)
def test_an_unfinished_dataset_is_refused(stored, tmp_path, elsewhere, address):
    """A record that does not say `complete` keeps its volumes from being read."""
    folder = DatasetFolder(LocalStore(put(stored, str(tmp_path / "half"))), "cell")
    folder.write_record(folder.read_record().with_status("error", "for a test"))
    with FaultyServer(tmp_path / "half") as half, pytest.raises(Unavailable, match="cell is error; finish it"):
        em.open(address.format(url=half.url, root=tmp_path / "half"), settings=elsewhere)


def test_a_dataset_of_files_alone(stored, tmp_path, elsewhere):
    """Where only the publisher's files are kept, the address of the dataset says so and what to do."""
    folder = DatasetFolder(LocalStore(put(stored, str(tmp_path / "files"))), "cell")
    folder.write_record(folder.read_record().with_status("complete", local_paths={"original": "original"}))
    with pytest.raises(Unavailable, match="only the publisher's files of cell are kept; set `keep: both`"):
        em.open(tmp_path / "files/cell", settings=elsewhere)


def test_a_dataset_that_is_made_anew_before_a_worker_reads(stored, tmp_path, elsewhere):
    """A process that first reads later than the volume was opened refuses other voxels, and unfinished ones."""
    folder = DatasetFolder(LocalStore(put(stored, str(tmp_path / "again"))), "cell")
    whole = folder.read_record()
    with FaultyServer(tmp_path / "again") as again:
        for place in (f"{again.url}/cell", tmp_path / "again/cell"):
            changed, halted = (em.open(place, settings=elsewhere) for _ in range(2))
            folder.write_record(whole.with_status("complete", sha256="0" * 64))
            with pytest.raises(Mismatch, match="other voxels than when it was opened"):
                changed.read((0, 0, 90), shape=8)
            folder.write_record(whole.with_status("error", "for a test"))
            with pytest.raises(Unavailable, match="cell is error since it was opened"):
                halted.read((0, 0, 90), shape=8)
            folder.write_record(whole)


def test_a_volume_that_the_record_does_not_know(server, elsewhere):
    """Is named with those that it knows."""
    with pytest.raises(Mismatch, match=r"cell has no volume 'other'; its further volumes: .*cell/nuc"):
        em.open(f"{server.url}/cell/volumes/other.ome.zarr", settings=elsewhere)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(status=404), id="404"),
        pytest.param(Fault(status=403), id="403"),
        pytest.param(Fault(status=200, body=b"<!DOCTYPE html><p>home"), id="a page"),
        pytest.param(Fault(status=200, body=b"PAR1 PAR1"), id="damaged"),
    ],
)
def test_a_coverage_that_cannot_be_read_is_an_error(server, elsewhere, fault):
    """With a record but no coverage nobody knows what is real: that is said, not taken for all."""
    server.fail = lambda path, _range, _count: fault if path.endswith("coverage.parquet") else None
    volume = em.open(f"{server.url}/cell/volume.ome.zarr", settings=elsewhere)
    with pytest.raises(Malformed, match=r"coverage\.parquet does not say which voxels are real"):
        volume.read((0, 0, 90), shape=8, missing="mask")


def test_a_damaged_record_is_an_error(stored, server, elsewhere):
    """A record of which the end is missing is not taken for none."""
    raw = (Path(stored.root) / "cell/metadata.json").read_bytes()[:-200]
    server.fail = lambda path, _range, _count: Fault(status=200, body=raw) if path.endswith("metadata.json") else None
    with pytest.raises(Malformed, match="is no record that can be read"):
        em.open(f"{server.url}/cell/volume.ome.zarr", settings=elsewhere)


def test_a_server_that_fails_is_no_server_without_a_record(server, elsewhere):
    """Whether there is a record is not known while its server answers with errors, so nothing is opened."""
    server.fail = lambda path, _range, _count: Fault(status=500) if path.endswith("metadata.json") else None
    with pytest.raises(Unavailable, match="answered 500"):
        em.open(f"{server.url}/cell/volume.ome.zarr", settings=elsewhere.model_copy(update={"retry_seconds": 0.2}))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A folder with somebody's Zarr, at an address as ours: (folder, its voxels)."""
    folder = tmp_path_factory.mktemp("foreign")
    voxels = np.random.default_rng(0).integers(1, 255, (20, 24, 28)).astype(np.uint8)
    for path in ("theirs/volume.ome.zarr", "bare"):
        (folder / path).mkdir(parents=True)
        write_ome_zarr(folder / path, [voxels], chunk=(8, 8, 8))
    return folder, voxels


PAGE = b"<!DOCTYPE html>\n<title>An application that answers everything</title>"


@pytest.mark.parametrize("path", ["theirs/volume.ome.zarr", "bare"])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(status=404), id="404"),
        pytest.param(Fault(status=403), id="403"),
        pytest.param(Fault(status=410), id="410"),
        pytest.param(Fault(status=200, body=PAGE, headers={"Content-Type": "text/html"}), id="a page"),
        pytest.param(Fault(status=200, body=PAGE, headers={"Content-Type": "text/plain"}), id="a page called text"),
        pytest.param(Fault(status=200, body=b"<!-- hello -->" + PAGE), id="a page after a comment"),
        pytest.param(Fault(status=200, body=b'{"name": "theirs", "voxel_size_nm": 8}'), id="another document"),
        pytest.param(Fault(status=200, body=b"[]"), id="no object"),
        pytest.param(Fault(status=200, body=b""), id="nothing"),
    ],
)
def test_somebodys_zarr_opens_as_before(foreign, elsewhere, path, fault):
    """Where no record is, whatever the server says instead, the Zarr is read for what it is."""
    folder, voxels = foreign
    with FaultyServer(folder) as server:
        server.fail = lambda path, _range, _count: fault if "/metadata.json" in path else None
        volume = em.open(f"{server.url}/{path}", settings=elsewhere)
        assert (volume.read((0, 0, 0), shape=voxels.shape).data == voxels).all()
        assert volume.location == f"{server.url}/{path}"
        assert [path for _, path, _ in server.log].count(f"/{path.partition('/')[0]}/metadata.json") == 1


def test_somebodys_document_beside_a_folder(foreign, elsewhere):
    """A `metadata.json` of another kind beside a Zarr on the disk is not taken for a damaged record."""
    folder, voxels = foreign
    document = folder / "theirs/metadata.json"
    document.write_text('{"title": "a volume"}')
    try:
        volume = em.open(folder / "theirs/volume.ome.zarr", settings=elsewhere)
        assert (volume.read((0, 0, 0), shape=voxels.shape).data == voxels).all()
    finally:
        document.unlink()


@pytest.mark.parametrize(
    "address",
    [
        "https://host/v.zarr",
        "https://host/data/Cell",
        "https://host/cell/volume.ome.zarr?key=1",
        "https://host/cell/volume.ome.zarr/0",
        "s3://cell",
        "s3://bucket",
        "https://host",
    ],
)
def test_addresses_that_are_none_of_ours(address):
    """Nothing is asked for beside them."""
    assert opening._Place.of(address) is None


@pytest.mark.parametrize(
    ("address", "root", "sub"),
    [
        ("s3://bucket/cell/volume.ome.zarr", "s3://bucket", None),
        ("s3://bucket/a/b/cell/volumes/nuc.ome.zarr/", "s3://bucket/a/b", "nuc"),
        ("https://host:80/cell", "https://host:80", None),
        ("https://host/a/cell/staged/volumes/nuc.ome.zarr", "https://host/a", "nuc"),
        ("/cell/volume.ome.zarr", "/", None),
        ("https://host/data/cell.ome.zarr/", "https://host/data", None),
    ],
)
def test_addresses_that_may_be_ours(address, root, sub):
    """The store's root, the dataset's name and the volume's."""
    place = opening._Place.of(address)
    assert (place.root, place.name, place.sub) == (root, "cell", sub)


# In S3


@pytest.mark.parametrize("path", ["cell/volume.ome.zarr", "cell"])
def test_in_a_bucket(stored, moto_s3, elsewhere, path):
    """By its s3:// address with the S3 settings, the volume gives the same blocks, and errors name the hole."""
    volume = em.open(f"{put(stored, moto_s3)}/{path}", settings=elsewhere)
    assert volume.location == f"{moto_s3}/{path}"
    assert digests(volume) == digests(em.open("cell", settings=stored))
    with pytest.raises(Mismatch, match=r"the publisher does not have 13312 voxels .* in 16:32, 32:64, 64:90"):
        volume.read((0, 32, 64), shape=32)


def test_in_a_bucket_unfinished_and_further_volumes(stored, moto_s3, elsewhere):
    """The record there decides what may be read, and labels have their own coverage."""
    put(stored, moto_s3)
    labels = em.open(f"{moto_s3}/cell/volumes/nuc.ome.zarr", settings=elsewhere)
    block = labels.read((0, 0, 0), shape=NUC_SHAPE, missing="mask")
    assert np.count_nonzero(~block.valid) == NUC_HOLE.voxels
    folder = DatasetFolder(open_store(moto_s3), "cell")
    folder.write_record(folder.read_record().with_status("error", "for a test"))
    with pytest.raises(Unavailable, match="cell is error; finish it"):
        em.open(f"{moto_s3}/cell", settings=elsewhere)


def test_a_public_bucket_is_asked_as_a_web_server(stored, server, elsewhere, monkeypatch):
    """Without S3 settings, or with keys that it refuses, a bucket's own address has record and coverage, too."""
    monkeypatch.setattr("em_assets.fetch.s3.https_url", lambda url: url.replace("s3://bucket", server.url))
    volume = em.open("s3://bucket/cell/volume.ome.zarr", settings=elsewhere)
    assert digests(volume) == digests(em.open("cell", settings=stored))
    refusal = b"<Error><Code>InvalidAccessKeyId</Code></Error>"
    denied = reply("403 Forbidden", refusal, Content_Length=str(len(refusal)))
    with RawServer(lambda *_: denied) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert em.open("s3://bucket/cell", settings=elsewhere).name == "cell"
        assert s3.requests


def test_an_s3_that_does_not_answer_is_an_error(elsewhere, monkeypatch):
    """Whether there is a record is not known then, so the bucket of this name elsewhere is not read in its place."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    began = time.monotonic()
    for path in ("cell/volume.ome.zarr", "Other.zarr"):
        with pytest.raises(Unavailable, match=r"no S3 answers at http://127\.0\.0\.1:9, which AWS_ENDPOINT_URL names"):
            em.open(f"s3://bucket/{path}", settings=elsewhere)
    assert time.monotonic() - began < 5  # and not after the 20 s for which a store is tried


# Somebody's volume in S3

S3_SHAPE = (20, 24, 28)
S3_ABSENT = (1, 0, 2)
"""A chunk of 8 voxels a side that was never written."""
S3_KINDS = {"v2": {"zarr_format": 2}, "v3": {}, "sharded": {"shard": (16, 16, 16)}}
S3_BLOCKS = [((0, 0, 0), S3_SHAPE, 0), ((3, 5, 7), (9, 11, 13), 0), ((1, 2, 3), (8, 8, 8), 1)]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder with a Zarr of two levels of each kind, and an N5 that is one array."""
    folder = tmp_path_factory.mktemp("theirs")
    voxels = np.random.default_rng(1).integers(1, 255, S3_SHAPE).astype(np.uint8)
    levels = [voxels, halved(voxels).astype(np.uint8)]
    for kind, options in S3_KINDS.items():
        (folder / f"{kind}.zarr").mkdir()
        write_ome_zarr(folder / f"{kind}.zarr", levels, chunk=(8, 8, 8), absent=[S3_ABSENT], **options)
    block = struct.pack(">HHIII", 0, 3, 4, 3, 2) + bytes(range(24))  # x, y, z
    (folder / "v.n5/0/0").mkdir(parents=True)
    (folder / "v.n5/0/0/0").write_bytes(block)
    stated = {"dimensions": [4, 3, 2], "blockSize": [4, 3, 2], "dataType": "uint8", "compression": {"type": "raw"}}
    stated |= {"pixelResolution": {"dimensions": [4.0, 5.0, 6.0], "unit": "nm"}}
    (folder / "v.n5/attributes.json").write_text(json.dumps(stated))
    return folder


def put_theirs(folder: Path, root: str) -> str:
    """The same files below an s3:// root."""
    here, there = LocalStore(folder), open_store(root)
    for path, _ in here.list(""):
        there.write(path, here.read(path))
    return root


def their_digests(volume: em.Volume) -> list[str]:
    return [volume.read(at, shape=shape, level=level, missing="mask").digest for at, shape, level in S3_BLOCKS]


@pytest.fixture
def anonymous(theirs, monkeypatch):
    """S3 settings for a server of the bucket `bkt` that asks for no keys: the server, which may fail."""
    for name in AWS_KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setattr("em_assets.store.RETRY_FOR", timedelta(seconds=0.2))
    with FaultyServer(theirs.parent) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.fixture
def refusing(monkeypatch):
    """S3 settings with keys that their server refuses."""
    refusal = b"<Error><Code>InvalidAccessKeyId</Code></Error>"
    denied = reply("403 Forbidden", refusal, Content_Length=str(len(refusal)))
    with RawServer(lambda *_: denied) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        yield s3


@pytest.fixture
def public(theirs, monkeypatch):
    """What public addresses lead to: a server of the folder `theirs`, for whichever bucket."""
    with FaultyServer(theirs) as server:
        monkeypatch.setattr("em_assets.fetch.s3.https_url", lambda url: f"{server.url}/{url.split('/', 3)[3]}")
        yield server


def test_somebodys_zarr_in_a_bucket(theirs, moto_s3, elsewhere, public):
    """With the S3 settings, any Zarr gives the blocks of its local copy; the public address is not asked."""
    root = put_theirs(theirs, moto_s3)
    for kind in S3_KINDS:
        volume = em.open(f"{root}/{kind}.zarr", settings=elsewhere)
        here = em.open(theirs / f"{kind}.zarr", settings=elsewhere)
        assert their_digests(volume) == their_digests(here)
        block = volume.read((0, 0, 0), shape=S3_SHAPE, missing="mask")
        assert np.count_nonzero(~block.valid) == 8**3
        assert not block.valid[8:16, 0:8, 16:24].any()
        assert (volume.location, volume.name) == (f"{root}/{kind}.zarr", f"{kind}.zarr")
        assert pickle.loads(pickle.dumps(volume)).location == volume.location
    assert not public.log


def test_an_n5_and_a_whole_bucket(theirs, moto_s3, elsewhere):
    """An N5, also by an address that states its kind, and a Zarr that is the bucket itself."""
    root = put_theirs(theirs / "v.n5", f"{moto_s3}/v.n5")
    for location in (root, f"n5://{root}/"):
        volume = em.open(location, settings=elsewhere)
        block = volume.read((0, 0, 0), shape=(2, 3, 4))
        assert (block.data.ravel() == np.arange(24)).all()
        with pytest.raises(Unsupported, match="at the endpoint of the S3 settings, which a browser does not have"):
            block.neuroglancer_url()
    boto3 = pytest.importorskip("boto3")
    boto3.client("s3").create_bucket(Bucket="own-bucket")
    put_theirs(theirs / "v3.zarr", "s3://own-bucket")
    here = em.open(theirs / "v3.zarr", settings=elsewhere)
    assert their_digests(em.open("s3://own-bucket", settings=elsewhere)) == their_digests(here)


def test_a_key_with_odd_letters_and_packed_documents(theirs, moto_s3, elsewhere):
    """Spaces, percent and plus signs name what they are; documents that the publisher stored packed are unpacked."""
    root = put_theirs(theirs / "v3.zarr", f"{moto_s3}/a b+%20c/v#.zarr")
    boto3 = pytest.importorskip("boto3")
    bucket, key = f"{root}/0/zarr.json".removeprefix("s3://").split("/", 1)
    packed = gzip.compress((theirs / "v3.zarr/0/zarr.json").read_bytes())
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=packed, ContentEncoding="gzip")
    here = em.open(theirs / "v3.zarr", settings=elsewhere)
    assert their_digests(em.open(root, settings=elsewhere)) == their_digests(here)


def test_a_spawned_process_reads_it_in_the_bucket(theirs, moto_s3, elsewhere, public):
    """A volume that travels to another process is read there with the same settings."""
    volume = em.open(put_theirs(theirs / "sharded.zarr", f"{moto_s3}/v.zarr"), settings=elsewhere)
    read = methodcaller("read", (3, 5, 7), shape=(9, 11, 13), missing="mask")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
        assert workers.submit(read, volume).result(60).digest == read(volume).digest
    assert not public.log


def test_a_bucket_that_hides_what_is_absent(theirs, anonymous, elsewhere, public):
    """403 for documents and chunks that are not there is absence, as long as those that are there are given."""
    bucket = theirs.name

    def hidden(path, _range, _count):
        return None if (theirs.parent / path.lstrip("/")).is_file() else Fault(status=403)

    anonymous.fail = hidden
    for kind in S3_KINDS:
        volume = em.open(f"s3://{bucket}/{kind}.zarr", settings=elsewhere)
        assert their_digests(volume) == their_digests(em.open(theirs / f"{kind}.zarr", settings=elsewhere))
    assert not public.log


def test_what_s3_refuses_is_read_in_public(theirs, refusing, elsewhere, public):
    """Here, and in another process without a further question; the location stays the s3:// address."""
    volume = em.open("s3://bucket/v2.zarr", settings=elsewhere)
    here = em.open(theirs / "v2.zarr", settings=elsewhere)
    asked = len(refusing.requests)
    assert asked
    assert their_digests(pickle.loads(pickle.dumps(volume))) == their_digests(here)
    assert len(refusing.requests) == asked
    assert "zarr://s3://bucket/v2.zarr" in volume.read((0, 0, 0), shape=8).neuroglancer_url()
    assert volume.location == "s3://bucket/v2.zarr"


def test_a_bucket_that_s3_does_not_have_is_read_in_public(theirs, moto_s3, elsewhere, public):
    """An endpoint of one's own does not keep anybody from reading public buckets."""
    volume = em.open("s3://nobodys-bucket/v3.zarr", settings=elsewhere)
    assert their_digests(volume) == their_digests(em.open(theirs / "v3.zarr", settings=elsewhere))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("301 Moved Permanently", b"<Error><Code>PermanentRedirect</Code></Error>"),
        ("400 Bad Request", b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>"),
        ("401 Unauthorized", b""),
    ],
)
def test_a_bucket_of_another_region_is_read_in_public(monkeypatch, elsewhere, public, status, body):
    """Keys for one's own region do not keep anybody from reading public buckets of others."""
    with RawServer(lambda *_: reply(status, body, Content_Length=str(len(body)))) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
        assert em.open("s3://bucket/v3.zarr", settings=elsewhere).shape == S3_SHAPE


def test_what_is_neither_in_s3_nor_public(refusing, elsewhere, public):
    """The error has both answers."""
    with pytest.raises(
        Unavailable, match=r"s3://bucket/none\.zarr could not be read \(InvalidAccessKeyId\).* not public either: .*404"
    ):
        em.open("s3://bucket/none.zarr", settings=elsewhere)


def test_what_s3_does_not_have(moto_s3, elsewhere, public):
    """Where the bucket can be read, its word counts: nothing is asked for in public."""
    with pytest.raises(NotThere, match=rf"{moto_s3}/none\.zarr is not there"):
        em.open(f"{moto_s3}/none.zarr", settings=elsewhere)
    open_store(moto_s3).write("notes", b"plain text, and no volume")
    with pytest.raises(Unsupported, match=rf"{moto_s3}/notes is not of a known format"):
        em.open(f"{moto_s3}/notes", settings=elsewhere)
    open_store(moto_s3).write("group.zarr/zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(Unsupported, match=rf"{moto_s3}/group\.zarr is a Zarr group without"):
        em.open(f"{moto_s3}/group.zarr", settings=elsewhere)
    assert not public.log


def test_other_failures_of_s3_are_errors(theirs, anonymous, elsewhere, public):
    """A server that fails is not taken for one that refuses."""
    anonymous.fail = lambda *_: Fault(status=500)
    with pytest.raises(Unavailable, match=r"v3\.zarr/zarr\.json could not be read"):
        em.open(f"s3://{theirs.name}/v3.zarr", settings=elsewhere)
    assert not public.log


def test_a_key_that_no_store_has_is_read_in_public(theirs, moto_s3, elsewhere, public):
    """Such as with two slashes side by side."""
    assert em.open("s3://bucket//v3.zarr", settings=elsewhere).shape == S3_SHAPE


# What `em-assets serve` serves


@pytest.fixture(scope="module")
def service(stored):
    for module in ("starlette", "uvicorn", "neuroglancer"):
        pytest.importorskip(module, reason=f"{module} (extra `view`) is not installed")
    from test_serve import serving

    with serving(stored) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("path", "name"), [("cell.ome.zarr", "cell"), ("cell.ome.zarr/", "cell"), ("cell/volumes/nuc.ome.zarr", "cell/nuc")]
)
def test_what_the_service_serves(stored, service, elsewhere, path, name):
    """Below /data/, too, a volume is the dataset's: the same blocks, the same holes, the same statistics."""
    volume, by_name = em.open(f"{service}/data/{path}", settings=elsewhere), em.open(name, settings=stored)
    assert volume.name == name
    for each in (volume, by_name):
        with pytest.raises(Mismatch, match="the publisher does not have"):
            each.read((0, 0, 0), shape=each.shape)
    assert (
        volume.read((0, 0, 0), shape=volume.shape, missing="mask").digest
        == by_name.read((0, 0, 0), shape=volume.shape, missing="mask").digest
    )


def test_the_service_keeps_its_own_paths(stored, service, elsewhere):
    """Of the record everything is told but where the store lies on its machine."""
    record = HttpClient(elsewhere).get(f"{service}/data/cell/metadata.json", max_bytes=2**20).body
    assert b"source_id" in record
    assert stored.root.encode() not in record


def test_an_export_beside_a_dataset_is_no_volume_of_it(foreign, stored, tmp_path, elsewhere):
    """`cell.ome.zarr` beside the folder `cell` of a store is somebody's, if the record does not name it."""
    put(stored, str(tmp_path / "both"))
    _, voxels = foreign
    (tmp_path / "both/cell.ome.zarr").mkdir()
    write_ome_zarr(tmp_path / "both/cell.ome.zarr", [voxels], chunk=(8, 8, 8))
    with FaultyServer(tmp_path / "both") as server:
        volume = em.open(f"{server.url}/cell.ome.zarr", settings=elsewhere)
        assert (volume.read((0, 0, 0), shape=voxels.shape).data == voxels).all()


# A store on a web server


def test_a_web_store_is_only_read(server, elsewhere):
    """Objects are read by their names; changing or listing them is refused in a sentence."""
    store = opening.WebStore(f"{server.url}/", HttpClient(elsewhere))
    whole = store.read("cell/metadata.json")
    assert store.size_bytes("cell/metadata.json") == len(whole)
    assert store.read_range("cell/metadata.json", 5, 7) == whole[5:12]
    assert store.size_bytes("cell/none.json") is None
    with pytest.raises(FileNotFoundError):
        store.read("cell/none.json")
    for refused in (
        lambda: store.write("a", b""),
        lambda: store.write_file("a", Path("a")),
        lambda: store.delete("a"),
        lambda: store.delete_all("a"),
        lambda: store.remove_partials("a"),
        lambda: list(store.list("a")),
    ):
        with pytest.raises(Unsupported, match=f"{server.url}/a is on a web server"):
            refused()
