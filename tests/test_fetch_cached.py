"""What was received once is not asked for again, never mixed with another version, and never more than is allowed."""

import logging
import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.fetch.cached import (
    ABSENT_SECONDS,
    DATA_SECONDS,
    DOCUMENT_SECONDS,
    PART_BYTES,
    CachedClient,
    cached_client,
)
from em_assets.fetch.client import FolderClient, folder_url
from em_assets.fetch.http import HttpClient
from em_assets.fetch.replies import NotThere
from em_assets.settings import Settings, read_settings
from faulty import Fault, FaultyServer
from small import quick_settings

DATA = random.Random(1).randbytes(3 * PART_BYTES + 12_345)
MAX_BYTES = 10**8


@pytest.fixture
def server(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "data").write_bytes(DATA)
    (site / "info").write_text('{"type": "image"}')
    with FaultyServer(site) as running:
        yield running


@pytest.fixture
def cache(tmp_path):
    """The folder that clients share."""
    return tmp_path / "cache"


def client_of(cache: Path, max_bytes: int = MAX_BYTES) -> CachedClient:
    """As another process would have it."""
    return CachedClient(HttpClient(quick_settings("unused")), cache, max_bytes)


def files(cache: Path) -> list[Path]:
    return [file for file in cache.rglob("*") if file.is_file() and file.name not in ("lock", "size")]


def make_older(cache: Path, seconds: float) -> None:
    """As if everything had been received so long ago."""
    for file in files(cache):
        status = file.stat()
        os.utime(file, (status.st_atime - seconds, status.st_mtime - seconds))


def ranges_asked(server: FaultyServer) -> list[str | None]:
    return [asked for _, path, asked in server.log if path == "/data"]


# -- whole objects and ranges


def test_a_whole_object_comes_once(server, cache):
    """Another process gets the same reply, encoding included, without a request."""
    first = client_of(cache).get(f"{server.url}/info", max_bytes=1000, accept_gzip=True)
    second = client_of(cache).get(f"{server.url}/info", max_bytes=1000, accept_gzip=True)
    assert (bytes(first.body), first.content_encoding) == (b'{"type": "image"}', "gzip")
    assert second == first
    assert server.requests == 1


def test_what_is_kept_is_no_larger_than_allowed(server, cache):
    """A caller who expects less is told so, as without a cache."""
    client_of(cache).get(f"{server.url}/data", max_bytes=len(DATA))
    with pytest.raises(Malformed, match="expected at most 1000"):
        client_of(cache).get(f"{server.url}/data", max_bytes=1000)


def test_the_same_range_comes_once(server, cache):
    """With its ETag and the object's size, by which readers go on; `on_bytes` hears of what really came."""
    heard: list[int] = []
    for _ in range(2):
        reply = client_of(cache).get_range(f"{server.url}/data", 100, 700_000, on_bytes=heard.append)
        assert (bytes(reply.body), reply.object_bytes) == (DATA[100:700_000], len(DATA))
        assert client_of(cache).get_range(f"{server.url}/data", 5, 9, expect_etag=reply.etag).body == DATA[5:9]
    assert sum(heard) == 700_000 - 100
    assert len(ranges_asked(server)) == 2


@pytest.mark.parametrize(
    ("before", "wanted", "asked"),
    [
        pytest.param([(0, 400_000)], (100, 399_999), [], id="within"),
        pytest.param([(0, 400_000)], (300_000, 500_000), ["bytes=400000-499999"], id="the end is new"),
        pytest.param([(300_000, 500_000)], (0, 400_000), ["bytes=0-299999"], id="the beginning is new"),
        pytest.param([(0, 10), (20, 30)], (0, 40), ["bytes=10-39"], id="small gaps together"),
        pytest.param(
            [(200_000, 600_000)], (0, 700_000), ["bytes=0-199999", "bytes=600000-699999"], id="large ones apart"
        ),
    ],
)
def test_only_the_rest_of_a_range_is_asked_for(server, cache, before, wanted, asked):
    """Whatever was asked for together before; requests are joined by the rule that readers have."""
    client = client_of(cache)
    for start, stop in before:
        client.get_range(f"{server.url}/data", start, stop)
    assert client.get_range(f"{server.url}/data", *wanted).body == DATA[slice(*wanted)]
    assert ranges_asked(server)[len(before) :] == asked


class CountingClient(FolderClient):
    """Counts the bytes that are asked for."""

    def __init__(self) -> None:
        self.asked_bytes = 0

    def get_range(self, url, start, stop, **options):
        self.asked_bytes += stop - start
        return super().get_range(url, start, stop, **options)


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(1, 400)), min_size=1, max_size=12))
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ranges_are_the_objects_bytes(tmp_path_factory, pieces):
    """In any order and overlap; and the second time they cost nothing."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "object").write_bytes(DATA)
    scale = len(DATA) // 1400
    ranges = [(start * scale, (start + length) * scale) for start, length in pieces]
    inner = CountingClient()
    for turn in range(2):
        client = CachedClient(inner, folder / "cache", MAX_BYTES)
        for start, stop in ranges:
            assert client.get_range(folder_url(folder / "object"), start, stop).body == DATA[start:stop]
        if not turn:
            asked_bytes = inner.asked_bytes
    assert inner.asked_bytes == asked_bytes


# -- versions


def test_a_changed_object_is_read_anew(server, cache):
    """Not a byte of the old one is left, though most of the range was kept."""
    client = client_of(cache)
    client.get_range(f"{server.url}/data", 0, 500_000)
    changed = bytes(len(DATA))
    (server.folder / "data").write_bytes(changed)
    assert client.get_range(f"{server.url}/data", 0, 600_000).body == changed[:600_000]
    assert client.changes == 1
    assert client.get_range(f"{server.url}/data", 1000, 2000).body == changed[1000:2000]


def test_what_belongs_to_a_changed_object_is_not_believed(server, cache):
    """Another document may mean other shards, and the other way round: they are confirmed before they are used."""
    client = client_of(cache)
    client.get(f"{server.url}/info", max_bytes=1000)
    client.get_range(f"{server.url}/data", 0, 1000)
    make_older(cache, DOCUMENT_SECONDS + 1)
    (server.folder / "info").write_text("{}")
    (server.folder / "data").write_bytes(bytes(len(DATA)))
    assert client.get(f"{server.url}/info", max_bytes=1000).body == b"{}"
    assert client.get_range(f"{server.url}/data", 0, 1000).body == bytes(1000)


@pytest.mark.parametrize("ask", ["get", "get_range"])
def test_without_the_server_old_and_new_are_not_mixed(server, cache, ask):
    """After an object has changed, what was kept of others before is no answer; what was confirmed since is one."""
    client = client_of(cache)

    def read(name):
        url = f"{server.url}/{name}"
        return (client.get(url, max_bytes=len(DATA)) if ask == "get" else client.get_range(url, 0, 10)).body

    for name in ("first", "other"):
        (server.folder / name).write_bytes(DATA)
    for name in ("first", "data", "other"):
        read(name)
    make_older(cache, 10 * DATA_SECONDS)
    (server.folder / "first").write_bytes(bytes(len(DATA)))
    assert not any(read("first"))
    assert client.changes == 1
    time.sleep(0.02)  # of the clock of file systems
    confirmed = read("other")
    server.stop()
    with pytest.raises(Unavailable):
        read("data")
    assert bytes(read("other")) == confirmed


def test_who_expects_a_version_never_gets_another(server, cache):
    """He is told that it changed, and gets the new one by beginning anew; what is kept of the old one stays that."""
    client = client_of(cache)
    old = client.get_range(f"{server.url}/data", 0, 500_000).etag
    (server.folder / "data").write_bytes(bytes(len(DATA)))
    assert client.get_range(f"{server.url}/data", 0, 1000, expect_etag=old).body == DATA[:1000]
    with pytest.raises(Mismatch, match="changed while it was read"):
        client.get_range(f"{server.url}/data", 0, 600_000, expect_etag=old)
    new = client.get_range(f"{server.url}/data", 0, 10)
    assert new.etag != old
    assert client.get_range(f"{server.url}/data", 0, 600_000, expect_etag=new.etag).body == bytes(600_000)
    with pytest.raises(Mismatch):
        client.get_range(f"{server.url}/data", 0, 1000, expect_etag=old)


def test_a_weakened_tag_is_the_same_version(server, cache):
    """Caches on the way weaken the tags of what they pass on unchanged."""
    etag = client_of(cache).get_range(f"{server.url}/data", 0, 1000).etag
    server.fail = lambda *_: Fault(headers={"ETag": f"W/{etag}"})
    assert client_of(cache).get_range(f"{server.url}/data", 0, 2000).body == DATA[:2000]
    assert ranges_asked(server)[-1] == "bytes=1000-1999"


def test_without_a_tag_date_and_size_say_which_version_it_is(server, cache):
    """Parts of two dates are not put together."""
    date = "Sat, 01 Jan 2022 00:00:00 GMT"
    server.fail = lambda *_: Fault(headers={"ETag": "", "Last-Modified": date})
    client = client_of(cache)
    client.get_range(f"{server.url}/data", 0, 500_000)
    assert client.get_range(f"{server.url}/data", 0, 500_000).body == DATA[:500_000]
    assert len(ranges_asked(server)) == 1
    (server.folder / "data").write_bytes(bytes(len(DATA)))
    date = "Sun, 02 Jan 2022 00:00:00 GMT"
    assert client.get_range(f"{server.url}/data", 0, 600_000).body == bytes(600_000)


def test_what_cannot_be_told_apart_is_not_kept(server, cache):
    """Neither a tag nor a date: the range is asked for each time."""
    server.fail = lambda *_: Fault(headers={"ETag": "", "Last-Modified": ""})
    for _ in range(2):
        assert client_of(cache).get_range(f"{server.url}/data", 0, 1000).body == DATA[:1000]
    assert len(ranges_asked(server)) == 2


# -- how long


def test_documents_are_asked_for_again_after_a_while(server, cache):
    """What says how all else is read may be corrected; it is given as it was then."""
    url = f"{server.url}/info"
    client_of(cache).get(url, max_bytes=1000)
    make_older(cache, DOCUMENT_SECONDS - 60)
    client_of(cache).get(url, max_bytes=1000)
    assert server.requests == 1
    (server.folder / "info").write_text("{}")
    make_older(cache, 61)
    assert client_of(cache).get(url, max_bytes=1000).body == b"{}"
    assert server.requests == 2


def test_voxels_are_believed_for_longer(server, cache):
    """Whole objects and ranges are looked after once a week; ranges of a version that is named never are."""
    url = f"{server.url}/data"
    client = client_of(cache)
    client.get(url, max_bytes=len(DATA))
    etag = client.get_range(url, 0, 1000).etag
    make_older(cache, DATA_SECONDS - 60)
    client.get(url, max_bytes=len(DATA))
    client.get_range(url, 0, 1000)
    assert server.requests == 2
    make_older(cache, 61)
    client.get_range(url, 0, 1000, expect_etag=etag)
    assert server.requests == 2
    client.get(url, max_bytes=len(DATA))
    client.get_range(url, 0, 10)
    assert server.requests == 4
    client.get_range(url, 0, 1000)  # confirmed by the ten bytes, so all of them are still good
    assert server.requests == 4


@pytest.mark.parametrize("ask", ["get", "get_range"])
def test_an_absent_object_is_asked_for_now_and_then(server, cache, ask):
    """A 404 is believed for ten minutes, in the same words; then what was uploaded meanwhile is found."""
    url = f"{server.url}/new"

    def read():
        client = client_of(cache)
        return client.get(url, max_bytes=100) if ask == "get" else client.get_range(url, 0, 3)

    with pytest.raises(NotThere) as first:
        read()
    (server.folder / "new").write_bytes(b"abc")
    with pytest.raises(NotThere) as second:
        read()
    assert (str(second.value), second.value.status) == (str(first.value), 404)
    assert server.requests == 1
    make_older(cache, ABSENT_SECONDS + 1)
    assert read().body == b"abc"


def test_a_refusal_is_not_kept_and_calls_for_a_proof(server, cache):
    """After a 403 a document that was kept proves nothing: the server is asked for it, and for the object again."""
    client = client_of(cache)
    client.get(f"{server.url}/info", max_bytes=1000)
    server.fail = lambda path, *_: Fault(status=403) if path == "/chunk" else None
    for _ in range(2):
        time.sleep(0.02)  # of the clock of file systems
        with pytest.raises(NotThere):
            client.get(f"{server.url}/chunk", max_bytes=10)
        client.get(f"{server.url}/info", max_bytes=1000)
    assert [path for _, path, _ in server.log] == ["/info", "/chunk", "/info", "/chunk", "/info"]


def test_without_the_server_what_is_kept_is_used(server, cache, caplog):
    """However old it is, and said so; what is not kept is Unavailable."""
    url = f"{server.url}/data"
    client_of(cache).get(f"{server.url}/info", max_bytes=1000)
    client_of(cache).get_range(url, 0, 1000)
    make_older(cache, 10 * DATA_SECONDS)
    server.stop()
    client = client_of(cache)
    with caplog.at_level(logging.WARNING):
        assert client.get(f"{server.url}/info", max_bytes=1000).body == b'{"type": "image"}'
        assert client.get_range(url, 0, 1000).body == DATA[:1000]
    assert caplog.text.count("What was kept of") == 2
    with pytest.raises(Unavailable):
        client.get_range(url, 0, 1001)
    with pytest.raises(Unavailable):
        client.get(url, max_bytes=len(DATA))


# -- on disk


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def renamed_over(file: Path) -> None:
    """By another part that is sound in itself."""
    other = next(one for one in file.parent.iterdir() if one != file)
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize("harm", [truncated, emptied, flipped, renamed_over], ids=lambda harm: harm.__name__)
def test_a_damaged_part_is_fetched_again(server, cache, harm):
    """The bytes are right, the rest is not asked for again, and then all is whole."""
    url = f"{server.url}/data"
    client_of(cache).get_range(url, 0, len(DATA))
    part = next(file for file in files(cache) if file.name == f"{PART_BYTES}-{2 * PART_BYTES}")
    harm(part)
    for _ in range(2):
        assert client_of(cache).get_range(url, 0, len(DATA)).body == DATA
    assert ranges_asked(server)[1:] == [f"bytes={PART_BYTES}-{2 * PART_BYTES - 1}"]


@pytest.mark.parametrize("harm", [truncated, emptied, flipped], ids=lambda harm: harm.__name__)
def test_a_damaged_object_is_fetched_again(server, cache, harm):
    """Whole objects, and what is known of versions."""
    client_of(cache).get(f"{server.url}/info", max_bytes=1000)
    client_of(cache).get_range(f"{server.url}/data", 0, 10)
    for file in files(cache):
        harm(file)
    assert client_of(cache).get(f"{server.url}/info", max_bytes=1000).body == b'{"type": "image"}'
    assert client_of(cache).get_range(f"{server.url}/data", 0, 10).body == DATA[:10]
    assert server.requests == 4


def test_no_more_is_kept_than_allowed(tmp_path, cache):
    """What was used longest ago goes first; what is left still costs nothing."""
    site, inner, most = tmp_path, CountingClient(), 40 * PART_BYTES
    bodies = {f"object{number}": random.Random(number).randbytes(PART_BYTES) for number in range(70)}
    for name, body in bodies.items():
        (site / name).write_bytes(body)
    client = CachedClient(inner, cache, most)
    for number, (name, body) in enumerate(bodies.items()):
        assert client.get_range(folder_url(site / name), 0, PART_BYTES).body == body
        make_older(cache, 100)  # one after the other
        if number >= 1:
            assert client.get_range(folder_url(site / "object1"), 0, PART_BYTES).body == bodies["object1"]
        assert sum(file.stat().st_size for file in files(cache)) <= most
    # the first one was used once, the second one each time, the last one just now
    before = inner.asked_bytes
    client.get_range(folder_url(site / "object1"), 0, PART_BYTES)
    client.get_range(folder_url(site / "object69"), 0, PART_BYTES)
    assert inner.asked_bytes == before
    client.get_range(folder_url(site / "object0"), 0, PART_BYTES)
    assert inner.asked_bytes == before + PART_BYTES


def test_what_is_larger_than_allowed_is_not_kept(server, cache):
    """And costs nothing but the request."""
    assert client_of(cache, max_bytes=100_000).get(f"{server.url}/data", max_bytes=len(DATA)).body == DATA
    assert files(cache) == []


def read_at_random(url: str, cache: Path, seed: int) -> int:
    """What one process does; how many ranges were wrong."""
    dice, wrong = random.Random(seed), 0
    client = CachedClient(HttpClient(quick_settings("unused")), cache, 6 * PART_BYTES // 2)
    for _ in range(60):
        start = dice.randrange(len(DATA) - 1)
        stop = dice.randrange(start + 1, len(DATA))
        wrong += client.get_range(url, start, stop).body != DATA[start:stop]
    return wrong


@pytest.mark.slow
def test_processes_share_a_cache_that_is_too_small(server, cache):
    """They write, read and remove the same entries at once: every byte is right, and nothing is left half written."""
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        wrong = pool.starmap(read_at_random, [(f"{server.url}/data", cache, seed) for seed in range(3)])
    assert wrong == [0, 0, 0]
    assert not [file for file in files(cache) if file.suffix == ".em-partial"]


def test_a_cache_that_cannot_be_written_costs_only_time(server, tmp_path, caplog):
    """A file lies where the folder should be: every read is right, and one warning says that nothing is kept."""
    (tmp_path / "cache").write_text("in the way")
    client = client_of(tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert client.get_range(f"{server.url}/data", 0, 1000).body == DATA[:1000]
    assert caplog.text.count("is asked for each time") == 1


def test_what_a_dead_process_left_is_removed(server, cache):
    """Half-written files go with the next sweep once they are old; younger ones may still be written."""
    client_of(cache).get(f"{server.url}/info", max_bytes=1000)
    old, young = (files(cache)[0].with_name(f"x.1.{name}.em-partial") for name in ("old", "young"))
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    (cache / "size").unlink()  # counted anew
    client_of(cache).get(f"{server.url}/data", max_bytes=len(DATA))
    assert (old.exists(), young.exists()) == (False, True)


def test_no_password_is_written_down(server, cache):
    """An address may carry one in its query: it decides what is found, and stands nowhere."""
    url = f"{server.url}/data?signature=a-secret"
    client_of(cache).get_range(url, 0, 1000)
    client_of(cache).get(f"{server.url}/info?signature=a-secret", max_bytes=1000)
    assert len(files(cache)) == 3
    for file in files(cache):
        assert b"a-secret" not in file.read_bytes()
        assert "a-secret" not in str(file)
    client_of(cache).get_range(f"{server.url}/data?signature=another", 0, 1000)
    assert len(ranges_asked(server)) == 2


# -- settings


def test_the_settings_say_where_and_how_much(monkeypatch, tmp_path, server):
    """EM_ASSETS_CACHE and EM_ASSETS_CACHE_BYTES; 0 keeps nothing."""
    monkeypatch.setenv("EM_ASSETS_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("EM_ASSETS_CACHE_BYTES", "1000000")
    cached_client(read_settings()).get_range(f"{server.url}/data", 0, 1000)
    assert len(files(tmp_path / "mine" / "objects")) == 2
    monkeypatch.setenv("EM_ASSETS_CACHE_BYTES", "0")
    assert isinstance(cached_client(read_settings()), HttpClient)
    monkeypatch.setenv("EM_ASSETS_CACHE_BYTES", "-1")
    with pytest.raises(Malformed, match="EM_ASSETS_CACHE_BYTES"):
        read_settings()


def test_bytes_are_given_in_arrays_as_they_are(server, cache):
    """Readers take arrays from bodies without a copy: kept ones allow that, too."""
    client_of(cache).get_range(f"{server.url}/data", 0, 800)
    body = client_of(cache).get_range(f"{server.url}/data", 0, 800).body
    assert np.frombuffer(body, "<u8").sum() == np.frombuffer(DATA[:800], "<u8").sum()
    assert Settings().cache_bytes == 20_000_000_000
