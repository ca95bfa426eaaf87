"""Chunks over HTTP and S3: the right bytes in few requests, whatever the server does; against zarr-python."""

import contextlib
import ipaddress
import itertools
import multiprocessing
import re
import socketserver
import ssl
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.storage import LocalStore

from em_assets.blocks import _plain_http, _remote, _remote_process, _signed_s3
from em_assets.blocks._plain_http import Connections, NotPlain
from em_assets.blocks._remote import RemoteChunks, coalesced
from em_assets.blocks._remote_process import BESIDES_BYTES, IndexCache, KeptChunks, Rooms
from em_assets.blocks.engine import ChunkEngine
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch import attempts
from em_assets.fetch.client import StoreClient
from em_assets.fetch.http import HttpClient, NotThere
from em_assets.fetch.streams import Version
from em_assets.formats._chunk_codecs import crc32c
from em_assets.formats._zarr_shards import Sharding, ShardTable
from em_assets.formats.zarr import open_zarr
from em_assets.settings import S3Access, Settings
from em_assets.store import open_store
from em_assets.volume import Box
from fault_server import RawServer
from faulty import Fault, FaultyServer

SHAPE, CHUNK, SHARD = (40, 70, 90), (8, 16, 16), (16, 32, 64)
"""(z, y, x); every axis ends in a smaller part, and a shard holds 2 x 2 x 4 chunks."""
SPEED = {"unreachable_seconds": 1.0, "retry_seconds": 2.0, "connect_seconds": 1.0, "read_seconds": 1.0, "workers": 2}
KEEPING = {"kept_chunk_bytes": 10**6}
BOXES = [
    Box((0, 0, 0), SHAPE),
    Box((3, 5, 7), (21, 50, 68)),
    Box((8, 16, 32), (16, 32, 64)),
    Box((39, 69, 89), (40, 70, 90)),
]
INNER = Box((1, 1, 1), (15, 31, 63))
"""Every chunk of the first shard, and no other."""


@pytest.fixture(autouse=True)
def _own_process(monkeypatch):
    """Threads, connections and indices of each test's own, and no long waits before something is tried again."""
    process = _remote_process.Process()
    monkeypatch.setattr(_remote, "this_process", lambda: process)
    monkeypatch.setattr(attempts, "BACKOFF_SECONDS", 0.02)
    yield
    process.connections.close()


@pytest.fixture
def server(tmp_path):
    with FaultyServer(tmp_path) as started:
        yield started


def texture(seed=0, shape=SHAPE):
    """Noise: every chunk has other bytes, and packing does not make them small."""
    return np.random.default_rng(seed).integers(1, 60_000, shape).astype("u2")


def sharded(location="end", *inner):
    codecs = inner or (BytesCodec(), ZstdCodec(level=1))
    return {"chunks": SHARD, "codecs": [ShardingCodec(chunk_shape=CHUNK, codecs=codecs, index_location=location)]}


def write(folder, volume, *, zarr_format=3, **options):
    array = zarr.create(
        store=LocalStore(folder),  # of a string, newer ones take `?` and `#` for those of an address
        shape=volume.shape,
        dtype=volume.dtype,
        zarr_format=zarr_format,
        overwrite=True,
        fill_value=7,
        **{"chunks": CHUNK, **options},
    )
    array[...] = volume
    return volume


class Opened:
    """An array on a server, and an engine that reads it over `RemoteChunks`."""

    def __init__(self, url, **changes):
        self.settings = Settings(**{**SPEED, "kept_chunk_bytes": 0, **changes})
        self.reader = open_zarr(url, None, HttpClient(self.settings), self.settings)
        self.chunks = RemoteChunks(self.reader, self.settings)

    def read(self, *boxes):
        outs = [np.empty(box.shape, self.reader.info.dtype) for box in boxes]
        self.missing = ChunkEngine(self.reader, self.chunks, 2).read(boxes, outs)
        return outs

    def fetch(self, box=INNER):
        cells = list(box.cells(self.reader.info.chunk))
        return {cells[row]: data and bytes(data) for row, data in self.chunks.fetch(cells)}


def asked(server, name="c/"):
    """(path, Range) of the requests for chunks or shards so far."""
    return [(path, byte_range) for _, path, byte_range in server.log if f"/{name}" in path]


def is_index(byte_range):
    return byte_range is not None and byte_range.startswith("bytes=-")


# The right bytes


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"zarr_format": 2, "dimension_separator": "/"}, id="v2, slashes"),
        pytest.param({"zarr_format": 2, "compressor": None, "order": "F"}, id="v2, dots, plain, F"),
        pytest.param({"codecs": [BytesCodec(), ZstdCodec(level=1)]}, id="v3"),
        pytest.param({"codecs": [BytesCodec(endian="big"), Crc32cCodec()]}, id="v3, big endian, checksum"),
        pytest.param(sharded(), id="shards"),
        pytest.param(sharded("start"), id="shards, index at the start"),
        pytest.param(sharded("end", BytesCodec(), Crc32cCodec()), id="shards, plain with checksum"),
    ],
)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="default"),
        pytest.param({"memory_bytes": 2**20, "connections_per_host": 2}, id="little memory, two connections"),
        pytest.param(KEEPING, id="chunks are kept"),
        pytest.param({"kept_chunk_bytes": 10**5}, id="some chunks are kept"),
    ],
)
def test_blocks_are_what_was_written(tmp_path, server, options, changes):
    """Any box of any layout, together and one after the other, has zarr-python's voxels."""
    volume = write(tmp_path / "a", texture(), **options)
    opened = Opened(f"{server.url}/a", **changes)
    for box, voxels in zip(BOXES, opened.read(*BOXES), strict=True):
        assert np.array_equal(voxels, volume[box.slices])
    for box in BOXES:
        assert np.array_equal(opened.read(box)[0], volume[box.slices])
    assert opened.missing == [()]


def test_one_channel_of_several(tmp_path, server):
    """A level with channels is asked for the chunks of the channel that is read."""
    volume = np.stack([texture(1), texture(2)])
    write(tmp_path / "a", volume, chunks=(1, *CHUNK), dimension_names=list("czyx"))
    opened = Opened(f"{server.url}/a")
    opened.reader = opened.reader.select_channel(1)
    opened.chunks = RemoteChunks(opened.reader, opened.settings)
    assert np.array_equal(opened.read(INNER)[0], volume[1][INNER.slices])


def test_names_with_signs_are_found(tmp_path, server):
    """Blanks, percent signs and question marks in a path are those of the path."""
    volume = write(tmp_path / "a b%20?#c", texture(), **sharded())
    assert np.array_equal(Opened(f"{server.url}/a%20b%2520%3F%23c").read(INNER)[0], volume[INNER.slices])


# What is not stored


def test_absent_objects_and_chunks_are_none(tmp_path, server):
    """A shard that is not there and a chunk that its shard does not have are None; their voxels the fill value."""
    volume = write(tmp_path / "a", texture(), **sharded())
    array = zarr.open_array(str(tmp_path / "a"))
    array[:8, :16, :16] = 7  # the fill value: zarr-python then leaves the chunk out
    (tmp_path / "a/c/0/0/1").unlink()
    opened = Opened(f"{server.url}/a")
    box = Box((0, 0, 0), (8, 16, 90))
    chunks = opened.fetch(box)
    assert {cell for cell, data in chunks.items() if data is None} == {(0, 0, 0), (0, 0, 4), (0, 0, 5)}
    (voxels,) = opened.read(box)
    assert (voxels[:, :, :16] == 7).all()
    assert (voxels[:, :, 64:] == 7).all()
    assert np.array_equal(voxels[:, :, 16:64], volume[:8, :16, 16:64])
    assert opened.missing == [(Box((0, 0, 0), (8, 16, 16)), Box((0, 0, 64), (8, 16, 80)), Box((0, 0, 80), (8, 16, 90)))]


@pytest.mark.parametrize("options", [pytest.param({}, id="chunks"), pytest.param(sharded(), id="shards")])
def test_a_403_is_absence_only_with_proof(tmp_path, server, options):
    """A bucket that hides what is absent answers 403; one that refuses everything has nothing missing."""
    write(tmp_path / "a", texture(), **options)
    opened = Opened(f"{server.url}/a")
    server.fail = lambda path, _range, _count: Fault(status=403) if "/c/" in path else None
    assert set(opened.fetch().values()) == {None}
    server.fail = lambda _path, _range, _count: Fault(status=403)
    with pytest.raises(Unavailable, match="is not taken for missing"):
        opened.fetch()


# Few requests


def test_an_index_is_read_once_and_then_all_is_one_round(tmp_path, server):
    """The index comes in one request; when it is known, neighbours share requests and nothing else is asked for."""
    write(tmp_path / "a", texture(), **sharded())
    opened = Opened(f"{server.url}/a")
    opened.fetch(Box((0, 0, 0), (1, 1, 1)))
    assert [is_index(byte_range) for _, byte_range in asked(server)] == [True, False]
    server.log.clear()
    stored = opened.fetch()
    assert len(stored) == 16
    ((_, byte_range),) = asked(server)  # all chunks of the shard, in one request
    first, last = map(int, byte_range.removeprefix("bytes=").split("-"))
    assert last + 1 - first == sum(map(len, stored.values()))


def test_all_requests_of_a_call_are_under_way_together(tmp_path, server):
    """None waits for another's reply: with 0.2 s before each answer, twenty take about as long as one."""
    write(tmp_path / "a", texture())
    opened = Opened(f"{server.url}/a")
    server.fail = lambda path, _range, _count: Fault(stall_after=-1, stall_seconds=0.2) if "/c/" in path else None
    begun = time.monotonic()
    assert len(opened.fetch(Box((0, 0, 0), (16, 32, 80)))) == 20
    assert time.monotonic() - begun < 1.5


def test_a_limit_that_was_set_holds(tmp_path, server):
    """`connections_per_host` of 1 means one request after the other; by default object stores get many."""
    write(tmp_path / "a", texture())
    opened = Opened(f"{server.url}/a", connections_per_host=1)
    server.fail = lambda path, _range, _count: Fault(stall_after=-1, stall_seconds=0.1) if "/c/" in path else None
    begun = time.monotonic()
    opened.fetch(Box((0, 0, 0), (16, 32, 16)))
    assert time.monotonic() - begun >= 0.4


def test_threads_that_begin_together_read_an_index_once(tmp_path, server):
    """Who needs an index that is on its way waits for it."""
    volume = write(tmp_path / "a", texture(), **sharded())
    opened = Opened(f"{server.url}/a")
    server.fail = lambda _path, r, _count: Fault(stall_after=-1, stall_seconds=0.2) if is_index(r) else None
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: opened.read(INNER)[0], range(8)):
            assert np.array_equal(found, volume[INNER.slices])
    assert sum(is_index(byte_range) for _, byte_range in asked(server)) == 1


def test_who_stops_early_ends_the_rest(tmp_path, server):
    """A call that is closed after its first chunk asks for no more; the next one works."""
    write(tmp_path / "a", texture())
    opened = Opened(f"{server.url}/a", connections_per_host=1)
    server.fail = lambda path, _range, _count: Fault(stall_after=-1, stall_seconds=0.1) if "/c/" in path else None
    cells = list(Box((0, 0, 0), SHAPE).cells(CHUNK))
    chunks = opened.chunks.fetch(cells)
    next(chunks)
    chunks.close()
    time.sleep(0.5)
    assert len(asked(server)) <= 3
    server.fail = lambda _path, _range, _count: None
    assert len(opened.fetch()) == 16


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**6)), min_size=1, max_size=60))
def test_requests_cover_every_piece_and_hardly_more(drawn):
    """Each piece lies whole in exactly one request, and what is read besides is at most `READ_OVER` of the pieces."""
    pieces = [(start, start + size) for start, size in drawn]
    requests = coalesced(pieces)
    assert sorted(piece for request in requests for piece in request.pieces) == list(range(len(pieces)))
    for request in requests:
        assert all(request.start <= pieces[n][0] and pieces[n][1] <= request.stop for n in request.pieces)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(requests))
    union, end = 0, 0
    for start, stop in sorted(pieces):
        union += max(0, stop - max(start, end))
        end = max(end, stop)
    read = sum(request.size_bytes for request in requests)
    assert union <= read <= union + _remote.READ_OVER * sum(stop - start for start, stop in pieces)


def test_neighbours_share_a_request_and_those_far_off_do_not():
    """Pieces that touch are read together up to the largest request; a gap only if it is small beside what is read."""
    touching = [(n * 1000, n * 1000 + 1000) for n in range(5)]
    assert len(coalesced(touching)) == 1
    assert len(coalesced([(0, 1000), (1010, 2010)])) == 1
    assert len(coalesced([(0, 1000), (1500, 2500)])) == 2
    large = [(n * 2**19, (n + 1) * 2**19) for n in range(8)]
    assert [request.size_bytes for request in coalesced(large)] == [_remote.REQUEST_BYTES] * 4


def test_indices_are_kept_up_to_so_many_bytes():
    """The cache drops what was not used for longest, and forgets a table only if it is the one that is meant."""
    sharding = Sharding((4, 4, 4), at_end=True, byte_order="<", has_checksum=False)

    def table(name):
        return ShardTable.parse(sharding, bytes(sharding.index_bytes), name, Version())

    cache = IndexCache(2 * sharding.index_bytes)
    old = table("a")
    for made in (old, table("b")):
        cache.put(made)
    assert cache.get("a") is old
    cache.put(table("c"))
    assert cache.get("b") is None
    new = table("a")
    cache.put(new)
    cache.drop(old)
    assert cache.get("a") is new
    cache.drop(new)
    assert cache.get("a") is None
    assert cache.get("c") is not None


def test_rooms_are_used_again_only_when_nobody_looks():
    """A room stays lent while a part of it, or an array over it, is held; then the next one who asks gets it."""
    rooms = Rooms(1000, 2)
    first = rooms.take(600)
    first[:3] = b"abc"
    array = np.frombuffer(first[:3], np.uint8)
    del first
    other = rooms.take(600)
    other[:3] = b"xyz"
    assert array.tobytes() == b"abc"
    place = array.ctypes.data
    del array
    again = rooms.take(10)
    assert np.frombuffer(again, np.uint8).ctypes.data == place
    assert len(rooms.take(5000)) == 5000


# Chunks that are kept


def believe_for(seconds, monkeypatch):
    for name in ("BELIEVED_SECONDS", "OBJECT_BELIEVED_SECONDS"):
        monkeypatch.setattr(_remote, name, seconds)


LAYOUTS = pytest.mark.parametrize("options", [pytest.param({}, id="chunks"), pytest.param(sharded(), id="shards")])


@LAYOUTS
def test_a_chunk_that_was_decoded_is_not_fetched_again(tmp_path, server, options):
    """Boxes that overlap fetch and decode what they share once; nobody is asked at once whether it still holds."""
    volume = write(tmp_path / "a", texture(), **options)
    opened = Opened(f"{server.url}/a", **KEEPING)
    box, further = Box((0, 0, 0), (16, 32, 32)), Box((0, 0, 0), (16, 32, 48))
    opened.read(box)
    server.log.clear()
    assert np.array_equal(opened.read(box)[0], volume[box.slices])
    assert asked(server) == []
    fetched = server.bytes_sent
    assert np.array_equal(opened.read(further)[0], volume[further.slices])
    assert 0 < server.bytes_sent - fetched < 1.1 * 4 * 8 * 16 * 16 * 2  # the four chunks that are new
    assert opened.missing == [()]


@LAYOUTS
def test_what_is_kept_is_confirmed_after_some_time(tmp_path, server, options, monkeypatch):
    """Then the server is asked, for an index or with the known tag, and sends no voxels."""
    volume = write(tmp_path / "a", texture(), **options)
    opened = Opened(f"{server.url}/a", **KEEPING)
    opened.read(INNER)
    believe_for(0.0, monkeypatch)
    server.log.clear()
    fetched = server.bytes_sent
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])
    assert server.bytes_sent - fetched <= 16 * 16 + 4
    assert len(asked(server)) == (1 if options else 16)


@LAYOUTS
@pytest.mark.parametrize(
    "known", [pytest.param(INNER, id="all-kept"), pytest.param(Box((0, 0, 0), (16, 32, 8)), id="some-kept")]
)
def test_what_is_kept_of_another_version_is_not_given(tmp_path, server, options, monkeypatch, known):
    """What was replaced is read anew: all of it, whether all of it is kept or the rest has to come."""
    write(tmp_path / "a", texture(1), **options)
    opened = Opened(f"{server.url}/a", **KEEPING)
    opened.read(known)
    believe_for(0.0, monkeypatch)
    volume = write(tmp_path / "a", texture(2), **options)
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])


def test_kept_and_new_chunks_of_two_versions_are_never_mixed(tmp_path, server):
    """Also while kept chunks are believed, bytes of the shard that come tell that it is another one."""
    write(tmp_path / "a", texture(1), **sharded())
    opened = Opened(f"{server.url}/a", **KEEPING)
    opened.read(Box((0, 0, 0), (8, 16, 16)))
    volume = write(tmp_path / "a", texture(2), **sharded())
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])


def test_a_server_that_contradicts_itself_is_not_believed(tmp_path, server, monkeypatch):
    """One that says "unchanged" of another tag than is known."""
    write(tmp_path / "a", texture(1))
    opened = Opened(f"{server.url}/a", **KEEPING)
    opened.read(INNER)
    believe_for(0.0, monkeypatch)
    volume = write(tmp_path / "a", texture(2))
    odd = Fault(status=304, headers={"ETag": '"another"'})
    server.fail = lambda path, _range, count: odd if "/c/" in path and count == 2 else None
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])


def test_a_chunk_is_believed_since_its_bytes_came(tmp_path, server, monkeypatch):
    """Not since it was decoded, which may be later."""
    write(tmp_path / "a", texture())
    opened = Opened(f"{server.url}/a", **KEEPING)
    believe_for(0.1, monkeypatch)
    ((_, chunk),) = opened.chunks.fetch([(0, 0, 0)])
    time.sleep(0.1)
    chunk.keep(np.zeros(CHUNK, "u2"))
    server.log.clear()
    list(opened.chunks.fetch([(0, 0, 0)]))
    assert asked(server) == [("/a/c/0/0/0", None)]


def test_without_a_tag_or_a_time_nothing_is_kept(tmp_path, server):
    """It could not be told whether it is outdated."""
    volume = write(tmp_path / "a", texture())
    opened = Opened(f"{server.url}/a", **KEEPING)
    server.fail = lambda _path, _range, _count: Fault(headers={"ETag": "", "Last-Modified": ""})
    for _ in range(2):
        server.log.clear()
        assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])
        assert len(asked(server)) == 16


def test_what_is_missing_is_not_kept(tmp_path, server, monkeypatch):
    """A chunk that a repair adds is found."""
    volume = write(tmp_path / "a", texture())
    lost = tmp_path / "a/c/0/0/0"
    data = lost.read_bytes()
    lost.unlink()
    opened = Opened(f"{server.url}/a", **KEEPING)
    opened.read(INNER)
    assert opened.missing == [(Box((1, 1, 1), (8, 16, 16)),)]
    lost.write_bytes(data)
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])


def test_voxels_that_are_kept_are_nobodys_room(tmp_path, server):
    """Uncompressed and turned chunks are decoded into memory that the next one uses: what is kept is a copy."""
    volume = texture()
    for name, options in {"plain": {"codecs": [BytesCodec()]}, "turned": {"order": "F", "zarr_format": 2}}.items():
        write(tmp_path / name, volume, **options)
        opened = Opened(f"{server.url}/{name}", **KEEPING)
        opened.read(INNER)
        opened.read(Box((16, 32, 0), SHAPE))
        server.log.clear()
        assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])
        assert asked(server, "") == []


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_of_several_channels_are_kept_for_each(tmp_path, server, chunk):
    """The same bytes hold both."""
    volume = np.stack([texture(1), texture(2)])
    write(tmp_path / "a", volume, chunks=(chunk, *CHUNK), dimension_names=list("czyx"))
    opened = Opened(f"{server.url}/a", **KEEPING)
    both = opened.reader
    for channel in (0, 1, 0, 1):
        opened.reader = both.select_channel(channel)
        opened.chunks = RemoteChunks(opened.reader, opened.settings)
        assert np.array_equal(opened.read(INNER)[0], volume[channel][INNER.slices])


def test_what_was_kept_of_an_array_is_not_another_ones(tmp_path, server):
    """One that has taken its place, with chunks of the same bytes and another type."""
    volume = write(tmp_path / "a", texture(), codecs=[BytesCodec()])
    read = Opened(f"{server.url}/a", **KEEPING)
    read.read(INNER)
    described = tmp_path / "a/zarr.json"
    described.write_text(described.read_text().replace("uint16", "int16"))
    assert np.array_equal(Opened(f"{server.url}/a", **KEEPING).read(INNER)[0], volume[INNER.slices].view("i2"))


VERSION = Version('"1"')


def kept(count, *, of=10):
    """A memory for ten chunks that was given so many."""
    memory = KeptChunks(of * (100 + BESIDES_BYTES))
    for number in range(count):
        memory.put(("a", number, number + 1, ""), VERSION, 0.0, np.zeros(100, np.uint8))
    return memory


def test_chunks_are_kept_up_to_so_many_bytes():
    """Those used last stay; one that is larger than all that is kept displaces nothing."""
    memory = kept(10)
    memory.get(("a", 0, 1, ""))
    memory.put(("b", 0, 1, ""), VERSION, 0.0, np.zeros(100, np.uint8))
    memory.put(("c", 0, 1, ""), VERSION, 0.0, np.zeros(10 * (100 + BESIDES_BYTES), np.uint8))
    held = [("a", number, number + 1, "") for number in range(10) if memory.get(("a", number, number + 1, ""))]
    assert held == [("a", number, number + 1, "") for number in (0, *range(2, 10))]
    assert memory.get(("b", 0, 1, "")) is not None
    assert memory.get(("c", 0, 1, "")) is None


def test_small_chunks_take_no_more_memory_than_may_be_kept():
    """What holds a chunk counts, too: addresses and versions of chunks of 64 bytes are most of what is kept."""
    memory = KeptChunks(2**20)
    tracemalloc.start()
    try:
        for number in range(3000):
            place = (f"https://a.host/of/some/volume.zarr/0/{number}/0/0", 0, 0, "")
            version = Version(f'"{number:032}"', f"Sun, 22 Nov 2026 00:00:00 {number}", 64)
            memory.put(place, version, float(number), np.frombuffer(bytes(64), np.uint8).reshape(4, 4, 4))
        assert 2**19 < tracemalloc.get_traced_memory()[0] < 1.3 * 2**20
    finally:
        tracemalloc.stop()


def test_chunks_that_nobody_asks_for_again_are_hardly_kept():
    """Once the memory is full and of no use, each eighth is kept; when those are asked for again, all are."""
    memory = kept(9)
    for _ in range(_remote_process.JUDGED_AFTER):
        assert memory.get(("new", 0, 1, "")) is None
    assert all(memory.wants_next for _ in range(8)), "it is not full yet"
    memory = kept(11)
    for _ in range(_remote_process.JUDGED_AFTER):
        memory.get(("new", 0, 1, ""))
    assert sum(memory.wants_next for _ in range(80)) == 10
    for number in range(_remote_process.JUDGED_AFTER):
        memory.get(("a", 10, 11, "") if number % 8 == 0 else ("new", 0, 1, ""))
    assert sum(memory.wants_next for _ in range(80)) == 80


# What changes, breaks off or is damaged


def test_a_shard_that_was_replaced_is_read_anew(tmp_path, server):
    """A known index is of an older shard: that is noticed by the first reply, and the new index is read, once."""
    write(tmp_path / "a", texture(1), **sharded())
    opened = Opened(f"{server.url}/a")
    opened.read(INNER)
    volume = write(tmp_path / "a", texture(2), **sharded("end", BytesCodec(), ZstdCodec(level=3)))
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])
    assert sum(is_index(byte_range) for _, byte_range in asked(server)) == 2


def test_a_shard_that_went_is_missing(tmp_path, server):
    """A known index does not make a shard that was removed exist."""
    write(tmp_path / "a", texture(), **sharded())
    opened = Opened(f"{server.url}/a")
    opened.fetch()
    (tmp_path / "a/c/0/0/0").unlink()
    assert set(opened.fetch().values()) == {None}


def test_a_chunk_that_was_repaired_is_found(tmp_path, server, monkeypatch):
    """A known index is not believed for long that a chunk is absent: then it is read again, once."""
    volume = write(tmp_path / "a", texture(), **sharded())
    sound = (tmp_path / "a/c/0/0/0").read_bytes()
    zarr.open_array(str(tmp_path / "a"))[:8, :16, :16] = 7  # the fill value: zarr-python then leaves the chunk out
    opened = Opened(f"{server.url}/a")
    assert opened.fetch()[0, 0, 0] is None
    (tmp_path / "a/c/0/0/0").write_bytes(sound)
    server.log.clear()
    monkeypatch.setattr(_remote, "BELIEVED_SECONDS", 60.0)
    first = Box((0, 0, 0), (1, 1, 1))
    assert opened.fetch(first) == {(0, 0, 0): None}
    assert asked(server) == []
    monkeypatch.setattr(_remote, "BELIEVED_SECONDS", 0.0)
    for box in (first, INNER):
        assert np.array_equal(opened.read(box)[0], volume[box.slices])
    assert sum(is_index(byte_range) for _, byte_range in asked(server)) == 1


def test_a_shard_that_never_stays_the_same_is_refused(tmp_path, server):
    """After one new beginning it is told, in one sentence."""
    write(tmp_path / "a", texture(), **sharded())
    opened = Opened(f"{server.url}/a")
    ticks = itertools.count()
    server.fail = lambda path, _range, _count: Fault(headers={"ETag": f'"{next(ticks)}"'}) if "/c/" in path else None
    with pytest.raises(Mismatch, match=r"a/c/0/0/0 changed while it was read: its ETag was .*; read it again\.$"):
        opened.fetch()


def test_versions_of_a_shard_are_never_mixed(tmp_path, server, monkeypatch):
    """Once chunks of the old shard were given, the new one does not follow; the next call works."""
    monkeypatch.setattr(_remote, "REQUEST_BYTES", 1)  # each chunk by itself
    volume = write(tmp_path / "a", texture(), **sharded())
    opened = Opened(f"{server.url}/a")
    opened.fetch(Box((0, 0, 0), (1, 1, 1)))
    first = asked(server)[-1][1]

    def fail(path, byte_range, count):
        late = "/c/" in path and byte_range != first and not is_index(byte_range)
        return Fault(headers={"ETag": '"new"'}, stall_after=-1, stall_seconds=0.3) if late and count == 1 else None

    server.fail = fail
    with pytest.raises(Mismatch, match="changed while it was read"):
        opened.fetch()
    server.fail = lambda _path, _range, _count: None
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])


def test_a_reply_that_breaks_off_is_asked_for_again_from_there(tmp_path, server):
    """What has come of a range is kept; only the rest is asked for."""
    volume = write(tmp_path / "a", texture(), **sharded())
    opened = Opened(f"{server.url}/a")
    opened.fetch(Box((0, 0, 0), (1, 1, 1)))
    server.log.clear()
    server.fail = lambda path, _range, _count: (
        Fault(cut_after=10_000) if "/c/" in path and len(server.log) == 1 else None
    )
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])
    (_, whole), (_, rest) = asked(server)
    first, last = whole.removeprefix("bytes=").split("-")
    assert rest == f"bytes={int(first) + 10_000}-{last}"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"cut_after": -1}, id="no reply"),
        pytest.param({"cut_after": 50, "reset": True}, id="reset"),
        pytest.param({"stall_seconds": 30, "stall_after": 50}, id="silence"),
        pytest.param({"status": 503, "body": b"slow down"}, id="503"),
        pytest.param({"status": 500}, id="500"),
        pytest.param({"ignore_range": True}, id="whole object"),
        pytest.param({"headers": {"Content-Range": "bytes 0-9/10"}}, id="another range"),
        pytest.param({"headers": {"Content-Range": "words"}}, id="no range"),
    ],
)
@pytest.mark.parametrize("options", [pytest.param({}, id="chunks"), pytest.param(sharded(), id="shards")])
def test_a_fault_that_passes_is_survived(tmp_path, server, fault, options):
    """What goes wrong with the first reply for index and data is tried again, with patience, to the right voxels."""
    volume = write(tmp_path / "a", texture(), **options)
    opened = Opened(f"{server.url}/a")
    failed = set()

    def fail(path, byte_range, _count):
        this = path, is_index(byte_range)
        if "/c/" not in path or this in failed:
            return None
        failed.add(this)
        return Fault(**fault)

    server.fail = fail
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])
    assert failed


def test_retry_after_is_heeded(tmp_path, server):
    """A server that asks for time gets it."""
    write(tmp_path / "a", texture(), **sharded())
    opened = Opened(f"{server.url}/a")
    opened.fetch()
    asked_at = []

    def fail(_path, _range, _count):
        asked_at.append(time.monotonic())
        return Fault(status=429, headers={"Retry-After": "1"}) if len(asked_at) <= 2 else None

    server.fail = fail  # once to the plain request, once to the patient one
    assert None not in opened.fetch().values()
    assert asked_at[2] - asked_at[1] >= 0.95


def test_a_server_that_is_gone_is_said_so(tmp_path):
    """When nothing answers any more, the error names the host and what to do."""
    write(tmp_path / "a", texture(), **sharded())
    with FaultyServer(tmp_path) as server:
        opened = Opened(f"{server.url}/a")
    with pytest.raises(Unavailable, match=r"cannot be reached: .* tried for 1 s"):
        opened.fetch()


def damaged(shard: Path, change) -> None:
    """Rewrites the table of a shard's index (offset and size of each chunk), its checksum put right."""
    data = bytearray(shard.read_bytes())
    table = np.frombuffer(data[-16 * 16 - 4 : -4], "<u8").reshape(-1, 2).copy()
    change(table)
    raw = table.tobytes()
    shard.write_bytes(bytes(data[: -16 * 16 - 4]) + raw + crc32c(raw).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda t: t.__setitem__((0, 0), 10**9), "1000000000 with .* but the shard has", id="beyond"),
        pytest.param(lambda t: t.__setitem__((0, 1), 0), "with 0 bytes, expected 1 to", id="empty"),
        pytest.param(lambda t: t.__setitem__((0, 1), 2**63), "but the shard has", id="huge"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path, server, change, said):
    """Places are checked before anything is asked for; the sentence names shard, chunk and bytes."""
    write(tmp_path / "a", texture(), **sharded())
    damaged(tmp_path / "a/c/0/0/0", change)
    with pytest.raises(Malformed, match=rf"index of shard .*a/c/0/0/0 places its chunk \(0, 0, 0\) at byte .*{said}"):
        Opened(f"{server.url}/a").fetch()
    assert [is_index(byte_range) for _, byte_range in asked(server)] == [True]


def test_an_index_with_a_wrong_checksum_is_refused(tmp_path, server):
    """And not kept: once it is repaired it is read."""
    volume = write(tmp_path / "a", texture(), **sharded())
    shard = tmp_path / "a/c/0/0/0"
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-20] + bytes([sound[-20] ^ 1]) + sound[-19:])
    opened = Opened(f"{server.url}/a")
    with pytest.raises(Malformed, match="CRC-32C"):
        opened.fetch()
    shard.write_bytes(sound)
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])


def test_a_shard_shorter_than_its_index_is_refused(tmp_path, server):
    """With what it has and what it needs."""
    write(tmp_path / "a", texture(), **sharded())
    (tmp_path / "a/c/0/0/0").write_bytes(b"x" * 100)
    with pytest.raises(Malformed, match="needs 260 bytes, but the shard has 100"):
        Opened(f"{server.url}/a").fetch()


def test_chunks_that_share_bytes_are_each_given(tmp_path, server):
    """An index may name the same bytes twice; each chunk has them."""
    write(tmp_path / "a", texture(), **sharded())
    damaged(tmp_path / "a/c/0/0/0", lambda table: table.__setitem__(5, table[2]))
    stored = opened_cells(Opened(f"{server.url}/a"))
    assert stored[5] == stored[2]
    assert len(set(stored)) == 15


def opened_cells(opened):
    """The bytes of the first shard's chunks, in the order of its index."""
    found = opened.fetch()
    return [found[cell] for cell in itertools.product(range(2), range(2), range(4))]


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        pytest.param(b"<!DOCTYPE html><p>no", {}, "web page", id="page"),
        pytest.param(b"x" * 10**6, {}, "1000000 bytes, expected at most", id="too large"),
    ],
)
def test_what_is_no_chunk_is_refused(tmp_path, server, body, headers, said):
    """An object of its own is taken for a chunk only if it can be one."""
    write(tmp_path / "a", texture())
    (tmp_path / "a/c/0/0/0").write_bytes(body)
    with pytest.raises(Malformed, match=said):
        Opened(f"{server.url}/a").fetch()


# Plain replies


def raw(status="206 Partial Content", body=b"0123456789", **headers):
    """A reply to `bytes=0-9` on a connection that says nothing of closing."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    given = {"Content-Length": str(len(body)), "Content-Range": "bytes 0-9/100", **named}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def plainly(connections, url):
    with connections.ask(url, "0-9", Settings(**SPEED)) as answer:
        answer.require(0, 10)
        return bytes(answer.read())


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(raw("200 OK"), id="whole"),
        pytest.param(raw("302 Found", Location="/else"), id="redirect"),
        pytest.param(raw("503 Busy"), id="busy"),
        pytest.param(raw(Content_Range="bytes 0-8/100"), id="shorter range"),
        pytest.param(raw(Content_Range="bytes 0-9/*"), id="unknown size"),
        pytest.param(raw(Content_Range=None), id="no range"),
        pytest.param(raw(Content_Length=None), id="no length"),
        pytest.param(raw(Content_Length="9"), id="shorter length"),
        pytest.param(raw(Transfer_Encoding="chunked"), id="chunked"),
        pytest.param(raw(Content_Encoding="gzip"), id="encoded"),
        pytest.param(raw(content_length="10"), id="length twice"),
        pytest.param(raw(Content_Length="9" * 5000), id="endless length"),
        pytest.param(raw(body=b"01234", Content_Length="10"), id="cut"),
        pytest.param(b"SSH-2.0 hello\r\n\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 206 OK\r\n" + b"x: y\r\n" * 10_000, id="endless head"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_only_the_plain_reply_counts(sent):
    """Everything but exactly the bytes that were asked for is left to the patient client."""
    with RawServer(lambda *_: sent) as server, pytest.raises(NotPlain):
        plainly(Connections(), server.url)


def test_a_connection_closed_while_idle_is_replaced():
    """The server may close what it said nothing about; the request is then sent again on a new connection."""
    with RawServer(lambda *_: raw()) as server, contextlib.closing(Connections()) as connections:
        for _ in range(3):
            assert plainly(connections, server.url) == b"0123456789"
        assert len(server.requests) == 3


def test_what_comes_unasked_is_no_reply():
    """A server sends a second reply behind each that was asked for, on a connection that it keeps."""

    class Talkative(socketserver.StreamRequestHandler):
        def handle(self):
            while line := self.rfile.readline():
                if line == b"\r\n":
                    self.wfile.write(raw())
                    time.sleep(0.01)
                    self.wfile.write(raw(body=b"unasked-fo"))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Talkative) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with contextlib.closing(Connections()) as connections:
            for _ in range(5):
                assert plainly(connections, f"http://127.0.0.1:{server.server_address[1]}/") == b"0123456789"
                time.sleep(0.1)
        server.shutdown()


def test_connections_are_kept(tmp_path, server, monkeypatch):
    """One after the other, all requests go over one connection; not after it was idle for too long."""
    (tmp_path / "a").write_bytes(bytes(range(100)))
    opened = []
    connect = _plain_http.Connections._connected
    monkeypatch.setattr(_plain_http.Connections, "_connected", lambda *given: opened.append(1) or connect(*given))
    with contextlib.closing(Connections()) as connections:
        for _ in range(5):
            assert plainly(connections, f"{server.url}/a") == bytes(range(10))
        with pytest.raises(NotThere):
            plainly(connections, f"{server.url}/b")
        assert len(opened) == 1
        monkeypatch.setattr(_plain_http, "IDLE_SECONDS", 0.0)
        plainly(connections, f"{server.url}/a")
        assert len(opened) == 2


def test_after_an_odd_reply_a_host_is_left_to_the_patient_client():
    """A server that turns requests away is not asked in this way for a while."""
    with RawServer(lambda *_: raw("503 Busy")) as server:
        connections = Connections()
        for _ in range(4):
            with pytest.raises(NotPlain):
                plainly(connections, server.url)
        assert len(server.requests) == 1


def test_a_trickle_is_given_up():
    """A reply slower than the settings allow is not waited for."""

    def trickle(*_):
        yield raw(body=b"", Content_Length="10")
        for _ in range(10):
            time.sleep(0.1)
            yield b"0"

    settings = Settings(**{**SPEED, "read_seconds": 0.3, "min_bytes_per_second": 1000})
    with (
        RawServer(trickle) as server,
        Connections().ask(server.url, "0-9", settings) as answer,
        pytest.raises(NotPlain, match="bytes came in"),
    ):
        answer.read()


def test_a_head_that_trickles_is_given_up():
    """Each byte comes in time, the head does not."""

    def trickle(*_):
        for byte in raw():
            time.sleep(0.05)
            yield bytes([byte])

    settings = Settings(**{**SPEED, "read_seconds": 0.3})
    begun = time.monotonic()
    with RawServer(trickle) as server, pytest.raises(NotPlain, match=r"headers did not come within 0\.3 s"):
        Connections().ask(server.url, "0-9", settings)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("host", [pytest.param("bücher.example", id="umlaut"), pytest.param("例え.test", id="kanji")])
def test_a_host_with_other_letters_is_left_to_the_patient_client(host):
    """It knows how they are encoded."""
    with pytest.raises(NotPlain, match="not asked for directly"):
        plainly(Connections(), f"http://{host}/a")


def test_a_proxy_is_left_to_the_patient_client(monkeypatch):
    """Where the environment names a proxy, nothing goes past it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    _plain_http._has_proxy.cache_clear()
    with pytest.raises(NotPlain, match="not asked for directly"):
        plainly(Connections(), "http://proxied.example/a")
    _plain_http._has_proxy.cache_clear()


@pytest.fixture
def certificate(tmp_path):
    """A file with a certificate for 127.0.0.1, signed by itself, and its key."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography, which moto brings, is not installed")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = tmp_path / "certificate.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(*forms))
    return file


@pytest.mark.parametrize("is_trusted", [pytest.param(True, id="trusted"), pytest.param(False, id="unknown")])
def test_https_needs_a_trusted_certificate(tmp_path, certificate, monkeypatch, is_trusted):
    """Bytes come over TLS from a server whose certificate is trusted; from another one nothing is taken."""
    (tmp_path / "a").write_bytes(bytes(range(100)))
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with FaultyServer(tmp_path) as server, contextlib.closing(Connections()) as connections:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
        url = f"https://127.0.0.1:{server.port}/a"
        if is_trusted:
            assert [plainly(connections, url) for _ in range(3)] == [bytes(range(10))] * 3
        else:
            with pytest.raises(NotPlain, match="certificate"):
                plainly(connections, url)


# Processes


def _read_in_child(opened, pipe):
    pipe.send(opened.read(INNER)[0].tobytes())


def test_a_forked_child_reads_too(tmp_path, server, monkeypatch):
    """With connections and threads of its own, while the parent goes on."""
    monkeypatch.undo()  # the real state of a process
    volume = write(tmp_path / "a", texture(), **sharded())
    opened = Opened(f"{server.url}/a", read_seconds=5.0)
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])
    context = multiprocessing.get_context("fork")
    children = []
    for _ in range(2):
        mine, theirs = context.Pipe()
        child = context.Process(target=_read_in_child, args=(opened, theirs))
        child.start()
        children.append((child, mine))
    for child, mine in children:
        assert mine.poll(20), "the child does not answer"
        assert mine.recv() == volume[INNER.slices].tobytes()
        child.join(20)
        assert child.exitcode == 0
    assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])


def test_one_process_has_one_state():
    """Volumes share threads, connections and indices."""
    assert _remote_process.this_process() is _remote_process.this_process()


# S3


def put_volume(root, name, volume, tmp_path, **options):
    write(tmp_path / "local", volume, **options)
    store = open_store(root)
    for file in sorted((tmp_path / "local").rglob("*")):
        if file.is_file():
            store.write(f"{name}/{file.relative_to(tmp_path / 'local').as_posix()}", file.read_bytes())
    return store


@pytest.mark.parametrize("options", [pytest.param({}, id="chunks"), pytest.param(sharded(), id="shards")])
def test_a_volume_in_a_store_in_s3(tmp_path, moto_s3, options):
    """With the store's own access: signed where it has keys."""
    volume = texture()
    store = put_volume(moto_s3, "some thing/volume", volume, tmp_path, **options)
    settings = Settings(root=moto_s3, **SPEED, kept_chunk_bytes=0)
    opened = Opened.__new__(Opened)
    opened.settings = settings
    opened.reader = open_zarr("store:///some%20thing/volume", None, StoreClient(store), settings)
    opened.chunks = RemoteChunks(opened.reader, settings)
    for box, voxels in zip(BOXES, opened.read(*BOXES), strict=True):
        assert np.array_equal(voxels, volume[box.slices])
    first = opened.chunks.url_of("c/0/0/0")
    assert first == f"{moto_s3}/some thing/volume/c/0/0/0"
    assert "X-Amz-Signature=" in opened.chunks.asked(first)
    store.delete("some thing/volume/c/0/0/0")
    assert None in opened.fetch(Box((0, 0, 0), (1, 1, 1))).values()


def test_one_address_in_two_services_is_two_chunks(tmp_path, monkeypatch):
    """A bucket of the same name at another endpoint has other voxels, also while what was kept is believed."""
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    settings = Settings(root="s3://bucket/x", **SPEED, **KEEPING)
    for seed in range(2):
        volume = write(tmp_path / f"{seed}/bucket/x/a", texture(seed))
        with FaultyServer(tmp_path / f"{seed}") as service:
            monkeypatch.setenv("AWS_ENDPOINT_URL", service.url)
            opened = Opened.__new__(Opened)
            opened.reader = open_zarr("store:///a", None, StoreClient(open_store(settings.root)), settings)
            opened.chunks = RemoteChunks(opened.reader, settings)
            assert np.array_equal(opened.read(INNER)[0], volume[INNER.slices])


def test_a_store_in_a_folder_is_not_for_this(tmp_path):
    """A `store://` address of a local store is refused with the way out."""
    store = put_volume(str(tmp_path / "store"), "a", texture(), tmp_path)
    settings = Settings(root=str(tmp_path / "store"), **SPEED)
    reader = open_zarr("store:///a", None, StoreClient(store), settings)
    with pytest.raises(Unsupported, match="which is read as files"):
        RemoteChunks(reader, settings)


NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "token"),
    [
        pytest.param("https://s3.eu-west-1.amazonaws.com/bucket/a/zarr.json", None, id="plain"),
        pytest.param("http://127.0.0.1:9000/bucket/a%20b%2Bc/c/0/0/0", None, id="signs and a port"),
        pytest.param("https://s3.eu-west-1.amazonaws.com/bucket/%C3%A9~-_.", "to/k+en=", id="a token"),
    ],
)
def test_signatures_are_amazons(url, token, monkeypatch):
    """Addresses are signed as botocore signs them."""
    from botocore import auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    monkeypatch.setattr(auth, "get_current_datetime", lambda: NOW.replace(tzinfo=None))
    request = AWSRequest("GET", url)
    auth.S3SigV4QueryAuth(Credentials("AKID", "secret/+", token), "s3", "eu-west-1", 3600).add_auth(request)
    ours = _signed_s3.presigned(url, _signed_s3.Keys("AKID", "secret/+", token), "eu-west-1", NOW)
    assert set(ours.partition("?")[2].split("&")) == set(request.url.partition("?")[2].split("&"))
    assert ours.partition("?")[0] == url


@pytest.mark.parametrize(
    ("access", "environment", "expected"),
    [
        pytest.param(S3Access(anonymous=True), {}, "https://s3.us-east-1.amazonaws.com/bucket/a%20b", id="anonymous"),
        pytest.param(
            S3Access("http://h:1", "eu-x", "KEY", "s"),
            {},
            "http://h:1/bucket/a%20b?.*Credential=KEY%2F",
            id="given keys",
        ),
        pytest.param(
            S3Access("http://h:1"),
            {"AWS_ACCESS_KEY_ID": "ENV", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"},
            "http://h:1/bucket/a%20b?.*Credential=ENV%2F.*Security-Token=t",
            id="keys of the environment",
        ),
    ],
)
def test_how_an_address_is_signed(access, environment, expected, monkeypatch):
    """Not at all for public data, else with the keys that are given, else with those of the standard variables."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    url = _signed_s3.signed_url("s3://bucket/a b", access)
    assert re.match(expected.replace("?", r"\?"), url)
    assert ("Signature" in url) is not access.anonymous


def test_keys_that_obstore_finds_sign_too(tmp_path, moto_s3):
    """Without keys in the variables, obstore signs with those that it finds (here the same), for the same address."""
    open_store(moto_s3).write("some thing/a+b", b"content")
    access = S3Access.from_environment()
    url = _signed_s3._signed_by_obstore(f"{moto_s3}/some thing/a+b", access)
    assert "X-Amz-Signature=" in url
    assert url.partition("?")[0] == _signed_s3.object_url(f"{moto_s3}/some thing/a+b", access)
    assert HttpClient(Settings(**SPEED)).get(url, max_bytes=100).body == b"content"


def test_keys_of_a_role_are_refused_where_they_cannot_be_had(monkeypatch):
    """obstore, which finds them, hangs in a forked child: that is said instead."""
    monkeypatch.setattr(_signed_s3, "_inherited", ["obstore"])
    with pytest.raises(Unsupported, match="start the workers by spawn, or set AWS_ACCESS_KEY_ID"):
        _signed_s3.signed_url("s3://bucket/a", S3Access())
