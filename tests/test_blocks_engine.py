"""The engine and its local chunks: whom a read waits for, what it keeps open, what damage it takes, and forks."""

import multiprocessing
import os
import resource
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, ShardingCodec, ZstdCodec

from em_assets.blocks import _local, engine
from em_assets.blocks._local import LocalChunks
from em_assets.blocks.engine import ChunkEngine
from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.formats._chunk_codecs import crc32c
from em_assets.formats.opening import open_volume
from em_assets.settings import Settings
from em_assets.volume import Box

SHAPE, CHUNK = (32, 32, 64), (8, 8, 8)
"""128 chunks."""
WHOLE = Box((0, 0, 0), SHAPE)
SHARDED = {
    "chunks": (16, 16, 16),
    "codecs": [ShardingCodec(chunk_shape=CHUNK, codecs=[BytesCodec(), ZstdCodec(level=1)])],
}
BOTH = pytest.mark.parametrize("mapped", [pytest.param(True, id="mapped"), pytest.param(False, id="read")])


def write(folder, seed=0, **options):
    volume = np.random.default_rng(seed).integers(1, 60_000, SHAPE).astype("u2")
    array = zarr.create(store=str(folder), shape=SHAPE, dtype="u2", fill_value=7, **{"chunks": CHUNK, **options})
    array[...] = volume
    return volume


class Opened:
    """A local array and its engine, with two threads."""

    def __init__(self, folder, *, mapped=False):
        self.reader = open_volume(str(folder), settings=Settings())
        self.chunks = LocalChunks(self.reader, folder, mapped=mapped)

    def read(self, box=WHOLE, *, workers=2):
        out = np.empty(box.shape, "u2")
        ChunkEngine(self.reader, self.chunks, workers).read([box], [out])
        return out


@pytest.fixture
def open_files():
    """Lets the test set how many files this process may have open; afterwards it is as it was."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda count: resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def highest_descriptor():
    return max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())


# Waiting


@pytest.fixture
def _busy():
    """The threads that decode are all at work for another read, until the test is over."""
    done = threading.Event()
    pool = engine._pool(2, waits=False)
    blockers = [pool.submit(done.wait) for _ in range(2)]
    yield
    done.set()
    for blocker in blockers:
        blocker.result()


@pytest.mark.usefixtures("_busy")
def test_a_read_does_not_wait_for_helpers_that_never_began(tmp_path):
    """With the pool busy a read is done by its own thread, and nothing of it stays with the pool."""
    volume = write(tmp_path / "a")
    found = []
    thread = threading.Thread(target=lambda: found.append(Opened(tmp_path / "a").read()), daemon=True)
    thread.start()
    thread.join(10)
    assert found, "the read waits for the pool"
    assert np.array_equal(found[0], volume)
    voxels = weakref.ref(found.pop())
    assert voxels() is None


class SlowChunks:
    """Chunks of a network from which nothing comes until it is let go."""

    is_immediate = False

    def __init__(self, chunks):
        self.chunks, self.asked, self.go = chunks, threading.Event(), threading.Event()

    def fetch(self, cells):
        self.asked.set()
        self.go.wait(20)
        yield from self.chunks.fetch(cells)


def test_who_waits_for_a_network_keeps_no_decoding_thread(tmp_path):
    """While a remote read waits, the threads that decode files are free."""
    volume = write(tmp_path / "a")
    opened = Opened(tmp_path / "a")
    slow = Opened(tmp_path / "a")
    slow.chunks = SlowChunks(opened.chunks)
    found = []
    thread = threading.Thread(target=lambda: found.append(slow.read()))
    thread.start()
    try:
        assert slow.chunks.asked.wait(10)
        time.sleep(0.1)  # its helpers have begun
        decoding = engine._pool(2, waits=False)
        both = threading.Barrier(3)
        tasks = [decoding.submit(both.wait, 10) for _ in range(2)]
        both.wait(10)
        for task in tasks:
            task.result()
    finally:
        slow.chunks.go.set()
        thread.join(20)
    assert np.array_equal(found[0], volume)


# Forks


def _read_in_child(opened, pipe):
    pipe.send(opened.read().tobytes())


@pytest.mark.parametrize(
    "lock",
    [
        pytest.param(lambda: engine._pools_lock, id="of the pools"),
        pytest.param(lambda: _local._files._lock, id="of the open files"),
    ],
)
def test_a_child_forked_while_a_lock_is_held_reads(tmp_path, lock):
    """A lock that another thread of the parent holds at the fork is not the child's."""
    volume = write(tmp_path / "a")
    opened = Opened(tmp_path / "a")
    assert np.array_equal(opened.read(), volume)
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    child = context.Process(target=_read_in_child, args=(opened, theirs))
    with lock():
        child.start()
    try:
        assert mine.poll(20), "the child does not answer"
        assert mine.recv() == volume.tobytes()
    finally:
        child.kill()
        child.join()


# Open files


@BOTH
def test_many_volumes_fit_into_few_descriptors(tmp_path, open_files, mapped):
    """All volumes of a process share what it may have open: three of 128 files are read twice with room for 80."""
    volumes = [write(tmp_path / name, seed) for seed, name in enumerate("abc")]
    opened = [Opened(tmp_path / name, mapped=mapped) for name in "abc"]
    open_files(highest_descriptor() + 80)
    for _ in range(2):
        for one, volume in zip(opened, volumes, strict=True):
            assert np.array_equal(one.read(), volume)


@BOTH
def test_too_many_open_files_are_said_so(tmp_path, open_files, monkeypatch, mapped):
    """In a sentence of its own, and nothing else is complained about."""
    write(tmp_path / "a")
    opened = Opened(tmp_path / "a", mapped=mapped)
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    spare = [os.open("/dev/null", os.O_RDONLY)]
    while spare[-1] < highest_descriptor() - 1:  # no gaps below the limit
        spare.append(os.open("/dev/null", os.O_RDONLY))
    open_files(max(spare) + 1)
    try:
        with pytest.raises(Unavailable, match=r"too many files are open already .* allow more with `ulimit -n`"):
            opened.read(Box((0, 0, 0), (1, 1, 1)))
    finally:
        for descriptor in spare:
            os.close(descriptor)
    assert not unraisable


@BOTH
def test_a_file_replaced_while_it_is_read_is_read_to_its_end(tmp_path, mapped):
    """As long as not too many are read together: it stays open."""
    write(tmp_path / "a", **SHARDED)
    ((_, found),) = Opened(tmp_path / "a", mapped=mapped).chunks.fetch([(0, 0, 0)])
    expected = bytes(found if mapped else found())
    shard = tmp_path / "a/c/0/0/0"
    shard.with_name("new").write_bytes(b"other")
    shard.with_name("new").replace(shard)
    assert bytes(found if mapped else found()) == expected


def test_a_file_that_was_not_kept_open_and_is_replaced_is_told(tmp_path, monkeypatch):
    """Pieces that are read later are of the file whose index placed them, or of none."""
    monkeypatch.setattr(_local, "OPEN_FILES", 0)
    write(tmp_path / "a", **SHARDED)
    chunks = dict(Opened(tmp_path / "a").chunks.fetch([(0, 0, 0), (0, 0, 1)]))
    assert len(chunks[0]()) > 100
    shard = tmp_path / "a/c/0/0/0"
    shard.with_name("new").write_bytes(shard.read_bytes())
    shard.with_name("new").replace(shard)
    with pytest.raises(Mismatch, match="was replaced or removed while it was read; read it again"):
        chunks[1]()


# Damage


@BOTH
@pytest.mark.parametrize(
    ("offset", "size", "said"),
    [
        pytest.param(0, 2**40, "with 1099511627776 bytes, expected 1 to", id="more than a chunk has"),
        pytest.param(0, 0, "with 0 bytes, expected 1 to", id="none"),
        pytest.param(2**42, 100, "with 100 bytes, but the shard has", id="beyond the shard"),
    ],
)
def test_an_index_that_no_sound_shard_has_is_refused(tmp_path, mapped, offset, size, said):
    """Before anything is allocated for its chunks, also where a sparse file is as large as the index says."""
    write(tmp_path / "a", **SHARDED)
    shard = tmp_path / "a/c/0/0/0"
    data = shard.read_bytes()
    table = np.frombuffer(data[-8 * 16 - 4 : -4], "<u8").reshape(-1, 2).copy()
    table[3] = offset, size
    with shard.open("r+b") as file:
        file.truncate(2**41)
        file.seek(2**41)
        file.write(table.tobytes() + crc32c(table.tobytes()).to_bytes(4, "little"))
    with pytest.raises(Malformed, match=rf"a/c/0/0/0 places its chunk \(0, 1, 1\) at byte {offset} {said}"):
        Opened(tmp_path / "a", mapped=mapped).read(Box((0, 0, 0), (1, 1, 1)))


@BOTH
def test_what_is_absent_and_what_is_there(tmp_path, mapped):
    """Chunks and shards that are not stored are the fill value; all others have zarr-python's voxels."""
    volume = write(tmp_path / "a", **SHARDED)
    zarr.open_array(str(tmp_path / "a"))[:8, :8, :8] = 7
    (tmp_path / "a/c/0/0/1").unlink()
    volume[:8, :8, :8] = 7
    volume[:16, :16, 16:32] = 7
    assert np.array_equal(Opened(tmp_path / "a", mapped=mapped).read(), volume)
