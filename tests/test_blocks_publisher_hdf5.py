"""HDF5 files are read from their publisher chunk by chunk, as they will be stored; their structure by few requests."""

import io
import math
import multiprocessing
import os
import pickle
import struct
import sys
import threading
import time
import tracemalloc

import h5py
import numpy as np
import pytest

import em_assets.blocks as em
from em_assets.blocks._publisher import published_volume
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch.http import HttpClient
from em_assets.formats import _hdf5_dataset, hdf5, open_volume
from em_assets.formats._bytes import BLOCK_BYTES, LocalBytes, RemoteBytes
from em_assets.formats._hdf5_remote import children, run_reading
from em_assets.formats.hdf5 import open_hdf5
from em_assets.settings import Settings
from em_assets.volume import Box
from faulty import Fault, FaultyServer
from small import materialize
from test_blocks_publisher import asked_since, digest_of, files_spec, require_equal, settings_of, site_of

NAME, DATASET, NM = "volume.h5", "volumes/raw", (40.0, 4.0, 4.0)
SHAPE, CHUNK = (20, 48, 52), (8, 16, 16)
PLAIN_SHAPE, PLAIN_CHUNK = (150, 256, 256), (1, 256, 256)
"""Unpacked chunks of 64 KiB, so many that the tree that lists them has leaves far apart."""
NODE_BYTES = 24 + 65 * 40 + 64 * 8
"""Of a tree whose keys have three axes: head, keys, places."""


def noise(shape, dtype="uint8", seed=1):
    return np.random.default_rng(seed).integers(0, 120, shape).astype(dtype)


def write(file, voxels, *, libver=None, others=True, **options):
    """A file of ours, replaced as a whole; the labels have every voxel's number."""
    fresh = file.with_suffix(".new")
    with h5py.File(fresh, "w", libver=libver) as h5:
        stored = h5.create_dataset(DATASET, data=voxels, **options)
        stored.attrs.update({"resolution": NM, "unit": "nm"})
        if others:
            numbers = np.arange(voxels.size, dtype="uint64").reshape(voxels.shape)
            h5.create_dataset("volumes/labels/ids", data=numbers, chunks=CHUNK, compression="gzip")
    os.replace(fresh, file)


def spec_for(server, voxels, *, dataset=DATASET, **changes):
    volume = {"files": [NAME], **({"dataset": dataset} if dataset else {})}
    dtype = voxels.dtype.newbyteorder("=").name
    return files_spec(server, [NAME], voxels.shape, dtype, NM, **{"volume": volume, **changes})


@pytest.fixture
def server(tmp_path):
    with site_of(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A file of nearly 10 MB, and its voxels."""
    voxels = noise(PLAIN_SHAPE)
    file = tmp_path_factory.mktemp("plain") / NAME
    write(file, voxels, chunks=PLAIN_CHUNK, others=False)
    return file, voxels


@pytest.fixture
def plain_server(plain):
    """A server of that file, which stays as it is."""
    with FaultyServer(plain[0].parent) as running:
        yield running


def plain_volume(server, tmp_path, plain, **changes):
    (tmp_path / "specs").mkdir(exist_ok=True)
    return published_volume(spec_for(server, plain[1]), None, settings_of(tmp_path, **changes))


# -- the law

PACKED = {"chunks": CHUNK, "compression": "gzip"}


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        pytest.param("uint8", {}, id="contiguous"),
        pytest.param("uint8", PACKED, id="gzip", marks=pytest.mark.slow),
        pytest.param(">i2", {**PACKED, "shuffle": True}, id="gzip and shuffle, big-endian"),
        pytest.param("uint16", {"chunks": CHUNK, "compression": "lzf", "libver": "latest"}, id="lzf, new structure"),
        pytest.param("float32", {"chunks": CHUNK}, id="chunks as they are", marks=pytest.mark.slow),
    ],
)
def test_a_dataset_reads_as_it_will_be_stored(server, tmp_path, dtype, options):
    """The one that the spec names, beside others."""
    voxels = noise(SHAPE, dtype)
    write(server.folder / NAME, voxels, **options)
    spec, settings = spec_for(server, voxels), settings_of(tmp_path)
    volume = published_volume(spec, None, settings)
    np.testing.assert_array_equal(volume.read((0, 0, 0), shape=SHAPE).data, voxels)
    materialize(spec, settings)
    require_equal(volume, em.open(spec.name, settings=settings))


def test_what_was_never_written_is_missing_alike(server, tmp_path):
    """Chunk by chunk, in blocks that cut them."""
    with h5py.File(server.folder / NAME, "w") as file:
        file.create_dataset(DATASET, SHAPE, "int16", fillvalue=-5, **PACKED)[8:16, :20] = noise((8, 20, 52), "int16")
    spec, settings = spec_for(server, np.empty(SHAPE, "int16")), settings_of(tmp_path)
    volume = published_volume(spec, None, settings)
    materialize(spec, settings)
    require_equal(volume, em.open(spec.name, settings=settings))
    whole = volume.read((0, 0, 0), shape=SHAPE, missing="mask")
    assert whole.valid[8:16, :32].all() and not whole.valid[:8].any() and not whole.valid[:, 32:].any()


def test_the_same_place_through_a_server_as_a_file(server, tmp_path):
    """`open_volume` takes an address, with the dataset named or the only one that it may be."""
    voxels = noise(SHAPE)
    write(server.folder / NAME, voxels, others=False, **PACKED)
    for dataset in (None, DATASET):
        reader = open_volume(f"{server.url}/{NAME}", dataset)
        here = open_volume(server.folder / NAME, dataset)
        assert (reader.info, reader.dataset) == (here.info, here.dataset)
        assert list(reader.tags()) == list(here.tags())
        np.testing.assert_array_equal(reader.read(), voxels)


@pytest.mark.parametrize("name", [pytest.param("gala_train-image.h5", marks=pytest.mark.slow), "gala_train-gt.lzf.h5"])
def test_a_real_file_reads_as_from_this_machine(realdata, tmp_path, name):
    """Chunks of a sort that h5py chose, and lzf."""
    with FaultyServer(realdata / "fibsem") as server:
        far = open_volume(f"{server.url}/{name}").read()
    np.testing.assert_array_equal(far, open_volume(realdata / "fibsem" / name).read())


# -- what it costs


def test_only_structure_and_the_chunks_that_a_block_needs_are_asked_for(plain_server, tmp_path, plain):
    """The first block, that with the tree's root and its leaves, then chunks; what was read once, never again."""
    volume = plain_volume(plain_server, tmp_path, plain)
    asked = [size for _, size in asked_since(plain_server, 0)]
    assert asked[:3] == [1, BLOCK_BYTES - 1, BLOCK_BYTES]
    assert 1 <= len(asked[3:]) <= 4 and sum(asked[3:]) <= 4 * NODE_BYTES
    before = plain_server.requests
    block = volume.read((70, 3, 200), shape=(3, 200, 20))
    np.testing.assert_array_equal(block.data, plain[1][70:73, 3:203, 200:220])
    received = sum(size for _, size in asked_since(plain_server, before))
    assert 3 * 2**16 <= received <= 3 * 2**16 + NODE_BYTES  # a leaf may lie between two chunks
    _hdf5_dataset._kept.clear()
    before = plain_server.requests
    again = plain_volume(plain_server, tmp_path, plain)
    assert again.read((70, 3, 200), shape=(3, 200, 20)).digest == block.digest
    assert plain_server.requests == before


def test_structure_is_made_out_once_in_a_process(plain_server, tmp_path, plain, monkeypatch):
    """A volume that is opened again takes no program to read it, whose start costs more than a block."""
    digest = plain_volume(plain_server, tmp_path, plain).read((0, 0, 0), shape=4).digest
    monkeypatch.setattr(_hdf5_dataset, "PROGRAM", tmp_path / "nothing.py")
    assert plain_volume(plain_server, tmp_path, plain).read((0, 0, 0), shape=4).digest == digest
    assert len(_hdf5_dataset._kept) <= _hdf5_dataset.MOST_KEPT
    _hdf5_dataset._kept.clear()
    with pytest.raises(Malformed, match=r"nothing\.py"):
        plain_volume(plain_server, tmp_path, plain)


def test_blocks_of_a_batch_share_their_chunks(plain_server, tmp_path, plain):
    """Threads that want them at the same time wait for each other: no chunk comes twice."""
    volume = plain_volume(plain_server, tmp_path, plain, workers=8)
    volume.read((0, 0, 0), shape=1)
    plain_server.fail = lambda path, range_header, count: time.sleep(0.02)
    sent = plain_server.bytes_sent
    starts = [(z, 0, x) for z in (70, 71) for x in range(0, 160, 20)]
    (batch,) = volume.read_many(starts, shape=(2, 40, 90), batch_size=len(starts))
    for (z, y, x), block in zip(starts, batch, strict=True):
        np.testing.assert_array_equal(block.data, plain[1][z : z + 2, y : y + 40, x : x + 90])
    assert plain_server.bytes_sent - sent <= 3 * 2**16 + 2 * NODE_BYTES


def test_blocks_of_a_batch_unpack_what_they_share_once(server, tmp_path, monkeypatch):
    """By whichever thread comes first; also where nothing is kept on disk."""
    voxels, unpacked = noise(SHAPE), []
    write(server.folder / NAME, voxels, **PACKED)
    volume = published_volume(spec_for(server, voxels), None, settings_of(tmp_path, workers=4, cache_bytes=0))
    decompress = hdf5.decompress
    monkeypatch.setattr(hdf5, "decompress", lambda codec, *data: unpacked.append(codec) or decompress(codec, *data))
    starts = [(z, y, 0) for z in range(12) for y in range(0, 8, 4)]
    (batch,) = volume.read_many(starts, shape=(8, 8, 40), batch_size=len(starts))
    for (z, y, _), block in zip(starts, batch, strict=True):
        np.testing.assert_array_equal(block.data, voxels[z : z + 8, y : y + 8, :40])
    assert unpacked.count("zlib") == 3 * 1 * 3


def test_no_more_requests_at_once_than_the_publisher_takes(plain_server, tmp_path, plain):
    """For the structure, and for chunks that do not lie together."""
    lock, now, most = threading.Lock(), 0, 0

    def count(path, range_header, number):
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.01)
        with lock:
            now -= 1

    plain_server.fail = count
    (tmp_path / "specs").mkdir()
    spec = spec_for(plain_server, plain[1], connections=2)
    volume = published_volume(spec, None, settings_of(tmp_path, workers=8))
    assert most == 2
    most = 0
    starts = [(z, 0, 0) for z in range(0, 150, 10)]
    (batch,) = volume.read_many(starts, shape=(1, 9, 9), batch_size=len(starts))
    assert most == 2
    for (z, _, _), block in zip(starts, batch, strict=True):
        np.testing.assert_array_equal(block.data[0], plain[1][z, :9, :9])


@pytest.mark.parametrize(("axes", "count"), [(1, 300), (3, 300), (3, 5000), (4, 300), (5, 300)])
def test_of_a_tree_the_nodes_below_one_are_foreseen(tmp_path, axes, count):
    """All that the library goes on to read, and no others: of every number of axes, and of more than two levels."""
    wanted = []

    class Recorded(io.FileIO):
        def readinto(self, buffer):
            at, size = self.tell(), super().readinto(buffer)
            wanted.append((at, bytes(memoryview(buffer)[:size])))
            return size

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (count, *[1] * (axes - 1)), "u1", chunks=(1,) * axes)[:] = 1
    with Recorded(tmp_path / "a.h5") as contents, h5py.File(contents, "r") as file:
        file["a"].id.chunk_iter(lambda stored: None)
    size_bytes = (tmp_path / "a.h5").stat().st_size
    nodes = [(at, body) for at, body in wanted if body[:5] == b"TREE\x01"]
    foreseen = [place for _, body in nodes for place in children(body, size_bytes)]
    assert len(nodes) >= count // 64 and sorted(foreseen) == sorted(at for at, _ in nodes[1:])


def test_what_is_no_tree_foresees_nothing():
    """Nor does a node that places others outside the file."""
    node = struct.pack("<4sBBHQQ", b"TREE", 1, 1, 2, 0, 0) + bytes(40) + struct.pack("<Q40xQ", 5000, 9000)
    node += bytes(NODE_BYTES - len(node))
    assert children(node, 20_000) == [5000, 9000]
    assert children(node, 9000) == children(node[:-1], 20_000) == children(node[:20], 20_000) == []
    assert children(node[:4] + b"\0" + node[5:], 20_000) == children(node[:5] + b"\0" + node[6:], 20_000) == []


def test_a_block_of_many_chunks_is_read_by_and_by(plain_server, tmp_path, plain, monkeypatch):
    """A narrow one needs every chunk of the file, of which a batch is held at a time."""
    monkeypatch.setattr(hdf5, "BATCH_BYTES", 2**20)
    volume = plain_volume(plain_server, tmp_path, plain, cache_bytes=0)
    volume.read((0, 0, 0), shape=1)
    tracemalloc.start()
    block = volume.read((0, 0, 9), shape=(150, 256, 2))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(block.data, plain[1][:, :, 9:11])
    assert peak_bytes < 4 * 2**20 < math.prod(PLAIN_SHAPE) / 2


def test_what_reading_will_take_is_known_before(plain_server, plain):
    """Requests and bytes, as they are then counted."""
    settings = Settings()
    reader = open_hdf5(RemoteBytes(f"{plain_server.url}/{NAME}", HttpClient(settings)), settings)
    box = Box((0, 0, 0), (40, 9, 9))
    plan, requests, sent = reader.plan([box]), plain_server.requests, plain_server.bytes_sent
    reader.read(box)
    assert (plan.requests, plan.received_bytes) == (plain_server.requests - requests, plain_server.bytes_sent - sent)
    assert (plan.chunks, plan.missing_chunks) == (40, 0)


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_another_process_goes_on_with_the_same_volume(plain_server, tmp_path, plain, start_method):
    """Also one that began as a copy of this one, which has read already; from the cache, without a request."""
    volume = plain_volume(plain_server, tmp_path, plain)
    digest = volume.read((3, 5, 7), shape=40).digest
    _hdf5_dataset._kept.clear()
    before = plain_server.requests
    with multiprocessing.get_context(start_method).Pool(1) as pool:
        assert pool.apply(digest_of, (pickle.dumps(volume),)) == digest
    assert plain_server.requests == before


# -- what may have changed, and what is damaged


@pytest.mark.parametrize(
    "options", [pytest.param({}, id="contiguous", marks=pytest.mark.slow), pytest.param(PACKED, id="chunks")]
)
def test_a_replaced_file_is_read_anew(server, tmp_path, options):
    """Its voxels lie elsewhere now, which the structure that was kept does not know: all is read of the new one."""
    old, new = noise((80, 96, 104)), noise((80, 96, 104), seed=2)  # larger than what is read of it at first
    write(server.folder / NAME, old, others=False, **options)
    volume = published_volume(spec_for(server, old, files=[{"path": NAME}]), None, settings_of(tmp_path))
    np.testing.assert_array_equal(volume.read((0, 0, 0), shape=(4, 20, 20)).data, old[:4, :20, :20])
    write(server.folder / NAME, new, libver="latest", others=False, **options)
    np.testing.assert_array_equal(volume.read((1, 0, 0), shape=(79, 96, 104)).data, new[1:])


def test_without_a_cache_a_replaced_file_is_an_error(server, tmp_path):
    """Nothing was kept that could be forgotten; opened again, it is read."""
    old, new = noise(SHAPE), noise(SHAPE, seed=2)
    write(server.folder / NAME, old, **PACKED)
    spec, settings = spec_for(server, old, files=[{"path": NAME}]), settings_of(tmp_path, cache_bytes=0)
    volume = published_volume(spec, None, settings)
    volume.read((0, 0, 0), shape=8)
    write(server.folder / NAME, new, **PACKED)
    with pytest.raises(Mismatch, match=rf"{NAME} .*changed"):
        volume.read((8, 0, 0), shape=8)
    again = published_volume(spec, None, settings)
    np.testing.assert_array_equal(again.read((0, 0, 0), shape=8).data, new[:8, :8, :8])


def test_a_file_that_changes_while_its_structure_is_read_is_an_error(plain_server, tmp_path, plain):
    """What the server said of it counts, not what the library makes of it; opened again, it is read."""
    (tmp_path / "specs").mkdir()
    spec, settings = spec_for(plain_server, plain[1]), settings_of(tmp_path)
    plain_server.fail = lambda path, range_header, count: (
        None if range_header.startswith("bytes=0-") else Fault(headers={"ETag": '"other"'})
    )
    with pytest.raises(Mismatch, match=rf"{NAME} .*changed"):
        published_volume(spec, None, settings)
    plain_server.fail = lambda path, range_header, count: None
    assert published_volume(spec, None, settings).read((0, 0, 0), shape=1).digest


@pytest.mark.parametrize(
    ("pinned", "error", "said"),
    [
        pytest.param(True, Mismatch, r"has 5000 bytes, the spec expects \d+", id="of a size that the spec knows"),
        pytest.param(False, Malformed, "is no sound HDF5 file .*truncated file", id="by its header"),
    ],
)
def test_a_file_cut_short_is_refused(server, tmp_path, pinned, error, said):
    """One sentence: what it is, where, and how much it lacks."""
    voxels = noise(SHAPE)
    write(server.folder / NAME, voxels, **PACKED)
    spec = spec_for(server, voxels, **({} if pinned else {"files": [{"path": NAME}]}))
    (server.folder / NAME).write_bytes((server.folder / NAME).read_bytes()[:5000])
    with pytest.raises(error, match=rf"{NAME} {said}") as raised:
        published_volume(spec, None, settings_of(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("dataset", "error", "said"),
    [
        pytest.param("volumes/grey", Mismatch, r"has no dataset volumes/grey; it has .*/volumes/raw", id="not there"),
        pytest.param("volumes", Mismatch, "volumes is a group; it has .*/volumes/raw", id="a group"),
        pytest.param(None, Unsupported, "has 2 datasets that may be a volume; name one", id="not named"),
        pytest.param("volumes/labels/ids", Mismatch, "dtype is uint64, the spec expects uint8", id="another one"),
    ],
)
def test_a_dataset_that_is_not_the_one_is_refused(server, tmp_path, dataset, error, said):
    """As when it is downloaded, naming those that are there."""
    voxels = noise(SHAPE)
    write(server.folder / NAME, voxels, **PACKED)
    with pytest.raises(error, match=said):
        published_volume(spec_for(server, voxels, dataset=dataset), None, settings_of(tmp_path))


def test_a_server_without_ranges_is_refused(server, tmp_path):
    """The sentence says so, before the file is sent as a whole."""
    with h5py.File(server.folder / NAME, "w") as file:
        file.create_dataset(DATASET, (17, 1024, 1024), "u1")[-1] = 1
    server.fail = lambda path, range_header, count: Fault(ignore_range=True)
    with pytest.raises(Mismatch, match=rf"{NAME} was sent whole .*must support byte ranges"):
        published_volume(spec_for(server, np.empty((17, 1024, 1024), "u1")), None, settings_of(tmp_path))


def test_a_server_that_fails_is_what_is_said(plain_server, tmp_path, plain):
    """Not that the file is damaged: the library, which asked for the bytes, has no part in it."""
    plain_server.fail = lambda path, range_header, count: (
        None if range_header.startswith("bytes=0-") else Fault(status=503)
    )
    with pytest.raises(Unavailable, match="503"):
        plain_volume(plain_server, tmp_path, plain)


PROGRAMS = {
    "crash": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "crashes the HDF5 library"),
    "for ever": ("import time\ntime.sleep(99)", "cannot be made out within 1 s"),
    "error": ("1 / 0", r"cannot be read \(ZeroDivisionError: division by zero\)"),
    "more than there is": (
        "import struct, sys\nsys.stdout.buffer.write(struct.pack('<cQQ', b'W', 9, 2**40))",
        "its structure places 1099511627776 bytes at 9",
    ),
    "past the end": (
        "import struct, sys\nsys.stdout.buffer.write(struct.pack('<cQQ', b'W', 2**40, 9))",
        "ends at byte [0-9]+, but its own headers place 9 bytes at 1099511627776",
    ),
    "nothing": ("", r"cannot be read \(there is no answer\)"),
    "another word": (
        "import struct, sys\nsys.stdout.buffer.write(struct.pack('<cQQ', b'Z', 1, 1))",
        r"cannot be read \(there is no answer\)",
    ),
    "half an answer": (
        "import struct, sys\nsys.stdout.buffer.write(struct.pack('<cQQ', b'A', 100, 0) + b'{}')",
        r"cannot be read \(there is no answer\)",
    ),
    "an answer without end": (
        "import os, struct\nwhile True: os.write(1, struct.pack('<cQQ', b'A', 2**62, 0) * 10**5)",
        "cannot be made out within 1 s",
    ),
    "says no more, but stays": ("import os, time\nos.close(1)\ntime.sleep(99)", "cannot be made out within 1 s"),
    "never takes what it asked for": (
        "import os, struct, time\nos.write(1, struct.pack('<cQQ', b'W', 0, 10**6))\ntime.sleep(99)",
        "cannot be made out within 1 s",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_whatever_the_library_does_is_one_sentence(plain_server, tmp_path, plain, monkeypatch, name):
    """It runs in a process of its own, which is ended; and what it says is not held without limit."""
    program, said = PROGRAMS[name]
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(_hdf5_dataset, "PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(_hdf5_dataset, "STRUCTURE_SECONDS", 1.0)
    tracemalloc.start()
    with pytest.raises(Malformed, match=said):
        plain_volume(plain_server, tmp_path, plain)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 32 * 2**20


class Slow(LocalBytes):
    """Takes longer for its bytes than a program may for itself."""

    def read(self, start, length):
        time.sleep(1.2)
        return super().read(start, length)

    def mapped(self):
        return None


def test_a_slow_server_takes_no_time_from_the_library(tmp_path):
    """What the program asks for it gets, also after the time that it may take itself."""
    (tmp_path / "a").write_bytes(b"0123456789")
    code = """
import struct, sys
sys.stdout.buffer.write(struct.pack("<cQQ", b"W", 3, 4)); sys.stdout.flush()
body = sys.stdin.buffer.read(4)
sys.stdout.buffer.write(struct.pack("<cQQ", b"A", len(body), 0) + body)
"""
    ended = run_reading([sys.executable, "-S", "-c", code], Slow(tmp_path / "a"), 1, 1.0, dict(os.environ))
    assert (ended.returncode, ended.stdout) == (0, b"3456")
