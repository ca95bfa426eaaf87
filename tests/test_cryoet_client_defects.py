"""Defects of the CryoET Data Portal's own client (4.8 and 4.9) in downloading; each test is named after one.

They are absent from `em_assets/fetch`, which brings the portal's files and chunks. Those that concern queries are in
`test_cryoet_api.py`.
"""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from downloading import DATA, MD5, NEW, SHA256, CrowdedServer, downloader, fetch, left_in, quicken
from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.fetch import _partial, _transfer, attempts
from em_assets.fetch.cached import cached_client
from em_assets.fetch.files import read_receipt, verify
from em_assets.fetch.http import HttpClient, NotThere
from em_assets.fetch.s3 import ListedObject, list_objects
from em_assets.fetch.s3_copy import CopiedObject, FailedObject, copy_objects
from em_assets.sample import buckets
from em_assets.settings import Settings
from em_assets.store import LocalStore
from em_assets.volume import RemoteFile
from fault_server import RawServer, reply
from faulty import Fault, FaultyServer

ZARR = "10000/TS_026/Reconstructions/VoxelSpacing13.480/Tomograms/100/TS_026.zarr"
MRC = ZARR.replace(".zarr", ".mrc")
BUCKET = "cryoet-data-portal-public"
QUICK = {"unreachable_seconds": 1.0, "retry_seconds": 2.0, "connect_seconds": 1.0, "read_seconds": 0.5}
CHUNKS = {f"{level}/{z}/0/{x}": bytes([level, z, x]) * 100 for level in range(3) for z in range(4) for x in range(3)}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(attempts, "BACKOFF_SECONDS", attempts.BACKOFF_SECONDS)
    monkeypatch.setattr(_transfer, "SAVE_SECONDS", _transfer.SAVE_SECONDS)
    monkeypatch.setattr(_partial, "BEAT_SECONDS", _partial.BEAT_SECONDS)
    quicken()


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A bucket as the portal's: one MRC, one Zarr of three levels."""
    folder = tmp_path_factory.mktemp("published")
    bucket = folder / BUCKET
    for key, body in {MRC: DATA, f"{ZARR}/.zattrs": b"{}", **{f"{ZARR}/{k}": v for k, v in CHUNKS.items()}}.items():
        file = bucket / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)
    (bucket / ".bucket").touch()
    return folder


@pytest.fixture
def server(published):
    with CrowdedServer(published) as running:
        running.most = 1000
        yield running


@pytest.fixture
def mrc(server) -> str:
    return f"{server.url}/{BUCKET}/{MRC}"


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "here" / "TS_026.mrc"


def listed(server: FaultyServer, prefix: str) -> list[ListedObject]:
    found = list_objects(f"s3://{BUCKET}/{prefix}", HttpClient(Settings(**QUICK)), endpoint=server.url)
    return [item for item in found if isinstance(item, ListedObject)]


def copied(server: FaultyServer, objects: list[ListedObject], folder: Path, **options) -> list:
    settings = Settings(**QUICK)
    found = copy_objects(
        f"s3://{BUCKET}/{ZARR}/", objects, LocalStore(folder), "zarr", settings=settings, endpoint=server.url, **options
    )
    return list(found)


def test_no_raise_for_status(server, mrc, target):
    """There, the page that says 404 is saved as the tomogram."""
    with pytest.raises(NotThere, match="does not exist"):
        fetch(f"{mrc}.gone", target)
    server.fail = lambda *_: Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<html>maintenance")
    with pytest.raises(Malformed, match="a web page where data was expected"):
        fetch(mrc, target)
    assert not target.exists()


def test_no_timeout(server, mrc, target):
    """There, a server that stops in the middle is waited for without end."""
    server.fail = lambda *_: Fault(stall_seconds=60, stall_after=1000 if server.requests == 1 else 0)
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="try again later"):
        fetch(mrc, target, settings={"retry_seconds": 0.6})
    assert time.monotonic() - begun < 10


def test_no_retry(server, mrc, target):
    """There, one 503 of a busy server ends it; so does a connection that is reset."""
    faults = iter([Fault(status=503), Fault(cut_after=0, reset=True)])
    server.fail = lambda *_: next(faults, None)
    assert fetch(mrc, target).sha256 == SHA256


def test_no_resume_by_range(server, mrc, target):
    """There, what broke off begins anew, for gigabytes; also in the next run nothing comes twice here."""
    server.fail = lambda path, asked, count: Fault(cut_after=2_000_000) if server.requests == 1 else Fault(status=503)
    with pytest.raises(Unavailable):
        fetch(mrc, target, settings={"retry_seconds": 0.3})
    server.fail = lambda *_: None
    assert fetch(mrc, target).sha256 == SHA256
    assert server.bytes_sent == len(DATA)


def test_a_partial_file_stays_under_the_final_name(server, mrc, target):
    """There, the next run, which compares nothing but names and sizes, takes it or a part of it for the tomogram."""
    server.fail = lambda *_: Fault(cut_after=1_000_000 if server.requests == 1 else 0)
    with pytest.raises(Unavailable):
        fetch(mrc, target, settings={"retry_seconds": 0.3})
    assert not target.exists()
    server.fail = lambda *_: None
    fetch(mrc, target)
    assert left_in(target.parent) == ["TS_026.mrc", "TS_026.mrc.receipt.json"]


def test_content_length_key_error_1132(target):
    """#1132: there (4.8), a KeyError where a server sends chunks; here only a body without any end is refused."""
    chunks = b"3e8\r\n" + DATA[:1000] + b"\r\n0\r\n\r\n"
    with RawServer(lambda *_: reply("200 OK", chunks, Transfer_Encoding="chunked")) as raw:
        assert fetch(f"{raw.url}/a.mrc", target).size_bytes == 1000
    assert target.read_bytes() == DATA[:1000]
    with RawServer(lambda *_: reply("200 OK", DATA[:1000])) as raw, pytest.raises(Mismatch, match="without a length"):
        fetch(f"{raw.url}/b.mrc", target.with_name("b.mrc"))


def test_serial_directory_download(server, tmp_path):
    """There, thousands of chunks come one after the other."""
    objects = listed(server, f"{ZARR}/")
    server.fail = lambda *_: Fault(stall_seconds=0.1, stall_after=-1)
    found = copied(server, objects, tmp_path, connections=16)
    assert [item for item in found if isinstance(item, FailedObject)] == []
    assert {item.path for item in found} == {f"zarr/{key}" for key in (".zattrs", *CHUNKS)}
    assert server.most_seen > 8


def test_serial_listing_before_anything_comes(server, monkeypatch):
    """There, the last page has to be there before the first object is asked for; here pages come as they are used."""
    monkeypatch.setattr(buckets, "MAX_KEYS", 5)
    found = list_objects(f"s3://{BUCKET}/{ZARR}/", HttpClient(Settings(**QUICK)), endpoint=server.url)
    assert next(found).key == f"{ZARR}/.zattrs"
    assert server.requests == 1
    assert len(list(found)) == len(CHUNKS)
    assert server.requests == 8


def test_no_checksum_and_no_etag(server, mrc, target):
    """There, nothing of what came is compared or noted."""
    receipt = fetch(mrc, target, checksum=MD5)
    assert (receipt.sha256, receipt.checksum, bool(receipt.etag)) == (SHA256, MD5, True)
    with pytest.raises(Mismatch, match="its publisher states"):
        fetch(mrc, target.with_name("other.mrc"), checksum=f"md5:{hashlib.md5(NEW).hexdigest()}")


def test_no_manifest(server, mrc, target, tmp_path):
    """There, nobody knows afterwards what came from where; here each object has its size, sha256 and source."""
    fetch(mrc, target)
    assert read_receipt(target).url == mrc
    found = copied(server, listed(server, f"{ZARR}/0/"), tmp_path)
    assert {(item.path, item.size_bytes, item.sha256) for item in found} == {
        (f"zarr/{key}", len(body), hashlib.sha256(body).hexdigest())
        for key, body in CHUNKS.items()
        if key.startswith("0/")
    }


def test_no_level_selection(server, tmp_path):
    """There, the whole pyramid must come; here 25 % is what lies below its own level."""
    found = copied(server, listed(server, f"{ZARR}/2/"), tmp_path)
    assert {item.path for item in found} == {f"zarr/{key}" for key in CHUNKS if key.startswith("2/")}
    assert not [path for _, path, _ in server.log if f"{ZARR}/0/" in path]


def test_contents_none_on_an_empty_prefix(server, tmp_path):
    """There, `TypeError: 'NoneType' object is not iterable`."""
    assert listed(server, "10000/TS_999/") == []
    assert copied(server, [], tmp_path) == []


def test_size_equal_but_corrupt_is_never_detected(server, mrc, target):
    """There, a file of the right size is right; here one that somebody wrote to is fetched again."""
    fetch(mrc, target)
    target.write_bytes(NEW)
    assert fetch(mrc, target).sha256 == SHA256
    assert target.read_bytes() == DATA


def test_size_and_date_equal_but_corrupt_is_detected_by_reading(server, mrc, target):
    """As `em-assets verify` does."""
    receipt = fetch(mrc, target)
    target.write_bytes(NEW)
    os.utime(target, ns=(receipt.modified_ns, receipt.modified_ns))
    assert "was altered after the download" in verify(target, receipt, full=True)


def test_a_chunk_of_the_right_size_that_is_wrong_on_the_way(server, tmp_path):
    """There, it is in place for ever; here the bucket's md5 is compared, one wrong byte is one failed object."""
    objects = [ListedObject(f"{ZARR}/0/{z}/0/0", 300, hashlib.md5(CHUNKS[f"0/{z}/0/0"]).hexdigest()) for z in range(2)]

    def fail(path, *_):
        (etag,) = [item.etag for item in objects if path.endswith(item.key)]
        return Fault(headers={"ETag": f'"{etag}"'}, flip_bit_at=7 if path.endswith("0/1/0/0") else None)

    server.fail = fail
    found = copied(server, objects, tmp_path)
    (good,) = [item for item in found if isinstance(item, CopiedObject)]
    (bad,) = [item for item in found if isinstance(item, FailedObject)]
    assert good.path == "zarr/0/0/0/0"
    assert "does not have the md5" in str(bad.error)
    assert not (tmp_path / "zarr/0/1").exists()


def test_one_missing_key_ends_the_whole_directory(server, tmp_path):
    """There, what is listed and not there is an exception in the middle; here it is named and the rest goes on."""
    gone = ListedObject(f"{ZARR}/0/9/0/0", 300, None)
    found = copied(server, [gone, *listed(server, f"{ZARR}/1/")], tmp_path)
    (failed,) = [item for item in found if isinstance(item, FailedObject)]
    assert (failed.key, isinstance(failed.error, NotThere)) == (gone.key, True)
    assert len(found) == 1 + 12


def test_no_cache(server, mrc, tmp_path):
    """There, whoever looks at the same header twice asks twice."""
    settings = Settings(**QUICK, cache=tmp_path / "cache")
    for _ in range(2):
        assert cached_client(settings).get_range(mrc, 0, 1024).body == DATA[:1024]
    assert server.bytes_sent == 1024


def test_one_session_for_many_threads(server, mrc, tmp_path):
    """#1130, for files: one downloader serves many threads."""
    loader = downloader()
    with ThreadPoolExecutor(8) as pool:
        receipts = list(
            pool.map(lambda n: loader.download(RemoteFile(mrc, f"{n}.mrc"), tmp_path / f"{n}.mrc"), range(8))
        )
    assert {receipt.sha256 for receipt in receipts} == {SHA256}
