"""HDF5 datasets as volumes: real files, and files that h5py writes here."""

import ctypes
import gzip
import hashlib
import re
import resource
import subprocess
import sys
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest

from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.formats import _hdf5_dataset, _hdf5_structure, open_volume
from em_assets.formats._bytes import LocalBytes
from em_assets.formats.hdf5 import open_hdf5
from em_assets.settings import Settings
from em_assets.volume import Box

SHAPE = (11, 22, 33)


def ramp(*shape, dtype="uint8"):
    return (np.arange(np.prod(shape)) % 251).astype(dtype).reshape(shape)


@pytest.fixture
def written(tmp_path):
    """An HDF5 file that a function fills: its path."""

    def write(fill, name="a.h5", **options):
        with h5py.File(tmp_path / name, "w", **options) as file:
            fill(file)
        return tmp_path / name

    return write


@pytest.fixture
def in_this_process(monkeypatch):
    """Where many datasets are opened, starting a process for each would take most of the time."""
    monkeypatch.setattr(_hdf5_dataset, "_ask", _hdf5_structure.answer)


def opened(path, dataset=None):
    return open_hdf5(LocalBytes(path), Settings(workers=2), dataset=dataset)


def refused(error, path, dataset=None):
    with pytest.raises(error) as raised:
        opened(path, dataset)
    message = str(raised.value)
    assert "\n" not in message and str(path) in message and message.endswith(".")
    return message


# Real files

REAL = {
    "gala_train-image.h5": ("/stack", "ec9c2b745765f010ac057066d158e55962772c3e4829f1124cc71ab2b1f16c65"),
    "gala_train-gt.lzf.h5": ("/stack", "33ba95cc5172c22c55cb86a7d8e5c7137bb058aae7a5a32465283f0b72690eb2"),
    "gen_ffn_style_grayscale_maps_z0-39.h5": (
        "/raw",
        "477c48e88029825c9617010b5aab0f7c0e9d60c0e375e1790baa303f259c732f",
    ),
    "fib_medulla_training_sample2/groundtruth.h5.gz": (
        "/stack",
        "f4d5915501a08316219b300b623161d1bad505513482a7df164401e406cf71b7",
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_reads_as_h5py_read_it(realdata, tmp_path, name):
    """Uncompressed, lzf, gzip; one of them beside a two-dimensional table."""
    path, (dataset, sha256) = realdata / "fibsem" / name, REAL[name]
    if path.suffix == ".gz":
        (tmp_path / "a.h5").write_bytes(gzip.decompress(path.read_bytes()))
        path = tmp_path / "a.h5"
    reader = open_volume(path)
    assert reader.dataset == dataset and reader.info.voxel_size_nm is None
    assert hashlib.sha256(reader.read().tobytes()).hexdigest() == sha256


# Layouts

CHUNKED = {"chunks": (4, 8, 16)}
LAYOUTS = {
    "contiguous": {},
    "gzip": CHUNKED | {"compression": "gzip"},
    "gzip and shuffle": CHUNKED | {"compression": "gzip", "shuffle": True},
    "lzf and shuffle": CHUNKED | {"compression": "lzf", "shuffle": True},
    "unpacked chunks": CHUNKED,
}
DTYPES = ["uint8", "int8", "uint16", "int16", ">u2", ">i4", "uint64", "float32", ">f8"]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_type_and_byte_order_is_read_and_sampled_exactly(in_this_process, written, layout):
    rng = np.random.default_rng(1)
    arrays = {n: rng.integers(0, 100, SHAPE).astype(dtype) for n, dtype in enumerate(DTYPES[:: 2 if layout else 1])}
    path = written(lambda file: [file.create_dataset(f"g/{n}", data=a, **layout) for n, a in arrays.items()])
    boxes = [Box((0, 0, 0), (5, 22, 33)), Box((5, 7, 9), (11, 20, 32))]
    for n, array in arrays.items():
        reader = opened(path, f"g/{n}")
        whole = reader.read()
        assert np.array_equal(whole, array) and whole.dtype.isnative and whole.flags.c_contiguous
        assert reader.info.dtype == whole.dtype.name and reader.info.shape == SHAPE
        for outcome in reader.map_regions(boxes, lambda region: region):
            assert np.array_equal(outcome.value.voxels, array[outcome.box.slices]) and outcome.value.missing == ()
            assert layout.get("compression") == "lzf" or len(outcome.value.samples) > 10
            assert all(sample.value == array[sample.position] for sample in outcome.value.samples)


def test_a_chunk_that_a_filter_was_not_applied_to_is_read(written):
    """lzf leaves noise as it is, and says so of every chunk."""
    noise = np.random.default_rng(2).integers(0, 256, SHAPE).astype(np.uint8)
    path = written(lambda file: file.create_dataset("a", data=noise, chunks=(4, 8, 16), compression="lzf"))
    assert np.array_equal(opened(path).read(), noise)


@pytest.mark.parametrize(
    "filters", [{"shuffle": True}, {"shuffle": True, "compression": "gzip"}], ids=["shuffle", "both"]
)
def test_chunks_at_the_edge_that_are_stored_without_filters_are_read(in_this_process, written, filters):
    """As HDF5 1.10 may store them: none says so of itself, and shuffled bytes look like others."""

    def fill(file):
        library, properties = ctypes.CDLL(h5py.h5p.__file__), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4, 8, 16))
        assert library.H5Pset_chunk_opts(ctypes.c_int64(properties.id), 2) == 0
        file.create_dataset("a", data=voxels, chunks=(4, 8, 16), dcpl=properties, **filters)

    voxels = np.random.default_rng(3).integers(0, 2**16, SHAPE).astype("uint16")
    reader = opened(written(fill, libver="latest"))
    assert np.array_equal(reader.read(), voxels)
    (outcome,) = reader.map_regions([Box((0, 0, 0), SHAPE)], lambda region: region.samples)
    assert all(sample.value == voxels[sample.position] for sample in outcome.value)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("shape", "chunk", "growing", "is_read"),
    [
        pytest.param(SHAPE, (4, 8, 16), 0, True, id="the first"),
        pytest.param((1, 1, *SHAPE), (1, 1, 4, 8, 16), 2, True, id="the first with several chunks"),
        pytest.param(SHAPE, (4, 8, 16), 2, False, id="the last"),
        pytest.param((3, *SHAPE), (1, 4, 8, 16), 1, False, id="z, behind channels"),
    ],
)
def test_a_dataset_that_may_grow_along_one_axis(written, shape, chunk, growing, is_read):
    """Its chunks are read at their places, or it is refused: the library lists some of them at others."""
    voxels = np.random.default_rng(4).integers(0, 256, shape).astype("uint8")
    most = tuple(None if axis == growing else n for axis, n in enumerate(shape))
    path = written(lambda file: file.create_dataset("a", data=voxels, chunks=chunk, maxshape=most), libver="latest")
    if is_read:
        assert np.array_equal(opened(path).read(), voxels.reshape(SHAPE))
    else:
        assert f"may grow along axis {growing} only" in refused(Unsupported, path)
    old = written(lambda file: file.create_dataset("a", data=voxels, chunks=chunk, maxshape=most), "b.h5")
    assert np.array_equal(opened(old).read(), voxels.reshape(shape[-3:] if shape[0] == 1 else shape))


def test_a_dataset_within_its_own_header_is_read(written):
    def fill(file):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((2, 3, 4))
        stored = h5py.h5d.create(file.id, b"small", h5py.h5t.STD_I16BE, space, dcpl=properties)
        stored.write(h5py.h5s.ALL, h5py.h5s.ALL, ramp(2, 3, 4, dtype="int16"))

    assert np.array_equal(opened(written(fill)).read(), ramp(2, 3, 4, dtype="int16"))


def test_what_was_never_written_is_known_as_missing(in_this_process, written):
    def fill(file):
        file.create_dataset("a", SHAPE, "int16", chunks=(4, 8, 16), compression="gzip", fillvalue=-5)[4:8] = 7
        file.create_dataset("nothing", SHAPE, "uint8")

    path = written(fill)
    reader = opened(path, "a")
    voxels = reader.read()
    assert (voxels[4:8] == 7).all() and (voxels[:4] == -5).all() and (voxels[8:] == -5).all()
    box = Box((2, 1, 1), (6, 20, 33))
    (outcome,) = reader.map_regions([box], lambda region: region)
    absent = np.ones(SHAPE, bool)
    absent[4:8] = False
    covered = np.zeros(SHAPE, bool)
    for part in outcome.value.missing:
        assert box.contains(part)
        covered[part.slices] = True
    assert np.array_equal(covered[box.slices], absent[box.slices])
    plan = reader.plan([box])
    assert (plan.chunks, plan.missing_chunks) == (18, 9)
    assert all(sample.value == voxels[sample.position] for sample in outcome.value.samples)
    empty = opened(path, "nothing")
    (outcome,) = empty.map_regions([Box((0, 0, 0), SHAPE)], lambda region: region)
    assert not outcome.value.voxels.any() and outcome.value.missing == (Box((0, 0, 0), SHAPE),)


def test_a_small_box_copies_only_itself(written):
    path = written(lambda file: file.create_dataset("a", data=ramp(20, 500, 500)))
    reader = opened(path)
    tracemalloc.start()
    reader.read(Box((4, 100, 100), (5, 110, 120)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 100_000


# Which dataset, which axes


def test_axes_before_z_y_x_are_dropped_named_or_refused(in_this_process, written):
    arrays = {
        "plane": (ramp(5, 6), (1, 5, 6), None),
        "leading one": (ramp(1, 4, 5, 6), (4, 5, 6), None),
        "two leading ones": (ramp(1, 1, 4, 5, 6), (4, 5, 6), None),
        "channels": (ramp(3, 4, 5, 6), (4, 5, 6), 3),
        "chunked channels": (ramp(3, 4, 5, 6), (4, 5, 6), 3),
        "chunked, and room to grow": (ramp(1, 1, 4, 5, 6), (4, 5, 6), None),
    }
    bad = {"rgb last": ramp(8, 9, 10, 3), "long first": ramp(17, 4, 5, 6), "one axis": ramp(9), "empty": ramp(0, 4, 5)}

    def fill(file):
        for name, (array, *_) in arrays.items():
            chunks = (2, 2, 3, 4, 5)[-array.ndim :] if name.startswith("chunked") else None
            maxshape = (None,) * array.ndim if chunks else None
            file.create_dataset(name, data=array, chunks=chunks, maxshape=maxshape)
        for name, array in bad.items():
            file.create_dataset(name, data=array)

    path = written(fill)
    for name, (array, shape, channels) in arrays.items():
        reader = opened(path, name)
        assert (reader.info.shape, reader.info.channels) == (shape, channels), name
        expected = array.reshape(shape if channels is None else (channels, *shape))
        assert np.array_equal(reader.read(), expected), name
        box = Box((0, 1, 2), (1, 5, 4))
        assert np.array_equal(reader.read(box), expected[..., 0:1, 1:5, 2:4]), name
    for name in bad:
        assert "shape" in refused(Unsupported, path, name) or "axes" in refused(Unsupported, path, name)


def test_the_only_volume_is_found_and_several_are_listed(in_this_process, written):
    def one(file):
        file["deep/er/raw"] = ramp(*SHAPE)
        file["table"] = ramp(100, 2)
        file["labels"] = h5py.SoftLink("/deep/er/raw")
        file["words"] = "text"

    def two(file):
        one(file)
        file["other"] = ramp(2, 3, 4, dtype="int16")

    assert opened(written(one)).dataset == "/deep/er/raw"
    several = refused(Unsupported, written(two, "b.h5"))
    assert "/deep/er/raw (11, 22, 33) uint8" in several and "/other (2, 3, 4) int16" in several
    assert "no datasets" in refused(Unsupported, written(lambda file: file.create_group("g"), "c.h5"))


def test_what_dataset_may_not_name_is_refused(in_this_process, written, tmp_path):
    def fill(file):
        file["g/raw"] = ramp(*SHAPE)
        file["soft"] = h5py.SoftLink("/g/raw")
        file["outside"] = h5py.ExternalLink("/etc/passwd", "/x")
        file["texts"] = np.array([[["a"]]], dtype=h5py.string_dtype())
        file["pairs"] = np.zeros((2, 3, 4), [("a", "i2"), ("b", "f4")])
        file["complex"] = np.zeros((2, 3, 4), "c8")
        file["half"] = np.zeros((2, 3, 4), "f2")
        file.create_dataset("scaled", data=ramp(*SHAPE), chunks=(4, 8, 16), scaleoffset=0)
        file.create_dataset("checked", data=ramp(*SHAPE), chunks=(4, 8, 16), fletcher32=True)
        elsewhere = [(str(tmp_path / "raw.bin"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("external", SHAPE, "u1", external=elsewhere)[...] = 0
        virtual = h5py.VirtualLayout(SHAPE, "u1")
        virtual[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", SHAPE)
        file.create_virtual_dataset("virtual", virtual)
        growing = h5py.VirtualLayout((4, 5, 6), "u1", maxshape=(None, 5, 6))
        source = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4, 5, 6), maxshape=(None, 5, 6))
        growing[0 : h5py.h5s.UNLIMITED] = source[0 : h5py.h5s.UNLIMITED]
        file.create_virtual_dataset("growing", growing)

    path = written(fill)
    for dataset, error, reason in (
        ("nowhere", Mismatch, "it has .*/g/raw"),
        ("g/raw/x", Mismatch, "no dataset g/raw/x"),
        ("g", Mismatch, "is a group"),
        ("soft", Unsupported, "a link"),
        ("outside", Unsupported, "a link"),
        ("texts", Unsupported, "object; accepted"),
        ("pairs", Unsupported, "accepted are uint8"),
        ("complex", Unsupported, "complex64; accepted"),
        ("half", Unsupported, "float16; accepted"),
        ("scaled", Unsupported, "scaleoffset.*accepted are gzip, shuffle, lzf"),
        ("checked", Unsupported, "fletcher32.*accepted"),
        ("external", Unsupported, "in other files"),
        ("virtual", Unsupported, "in other files"),
        ("growing", Unsupported, "in other files"),
    ):
        assert re.search(reason, refused(error, path, dataset)), dataset


# Voxel size, attributes

SIZES = {
    "element_size_um": ({"element_size_um": [0.05, 0.008, 0.004]}, (50.0, 8.0, 4.0)),
    "resolution without unit": ({"resolution": [40.0, 4.0, 4.0]}, None),
    "resolution and unit": ({"resolution": [40, 4, 4], "unit": "nm"}, (40.0, 4.0, 4.0)),
    "resolution and its unit": ({"resolution": [40, 4, 4], "resolution_units": b"angstrom"}, (4.0, 0.4, 0.4)),
    "units by axis": ({"voxel_size": [0.04, 4.0, 4.0], "units": ["um", "nm", "nm"]}, (40.0, 4.0, 4.0)),
    "unknown unit": ({"voxel_size": [40.0, 4.0, 4.0], "unit": "px"}, None),
    "zero": ({"element_size_um": [0.0, 0.004, 0.004]}, None),
    "one number": ({"element_size_um": 0.004}, None),
    "not a number": ({"voxel_size": ["a", "b", "c"], "unit": "nm"}, None),
    "none": ({}, None),
}


def test_a_voxel_size_is_taken_only_with_its_unit(in_this_process, written):
    def fill(file):
        for name, (attributes, _) in SIZES.items():
            file[name] = ramp(2, 3, 4)
            file[name].attrs.update(attributes)

    path = written(fill)
    assert {name: opened(path, name).info.voxel_size_nm for name in SIZES} == {
        n: size for n, (_, size) in SIZES.items()
    }


def test_all_attributes_on_the_way_to_the_dataset_are_tags(written):
    def fill(file):
        file.attrs["made by"] = "a microscope"
        group = file.create_group("volumes")
        group.attrs["count"] = np.int64(3)
        group["raw"] = ramp(2, 3, 4)
        group["raw"].attrs.update({"offset": [1.5, 2, 3], "ok": True, "bytes": np.bytes_(b"\xb5m"), "long": range(100)})
        group["raw"].attrs["names"] = ["µ", "b"]
        group["raw"].attrs["nothing"] = h5py.Empty("f4")
        group["other"] = ramp(2)
        group["other"].attrs["not"] = "its own"

    tags = dict(opened(written(fill)).tags())
    assert tags.pop("/volumes/raw@nothing")
    assert tags == {
        "/@made by": "a microscope",
        "/volumes@count": 3,
        "/volumes/raw@offset": "3 x float64: 1.5, 2.0, 3.0",
        "/volumes/raw@ok": True,
        "/volumes/raw@bytes": repr(b"\xb5m"),
        "/volumes/raw@long": "100 x int64",
        "/volumes/raw@names": "2 x object: µ, b",
    }


# Damage


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_cut_file_is_malformed(in_this_process, written, libver):
    path = written(lambda file: file.create_dataset("a", data=ramp(*SHAPE), compression="gzip"), libver=libver)
    whole = path.read_bytes()
    for length in (0, 7, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "get it again" in refused(Malformed, path)


def test_damaged_chunks_fail_the_boxes_they_lie_in_and_no_others(written):
    path = written(lambda file: file.create_dataset("a", data=ramp(8, 16, 16), chunks=(4, 16, 16), compression="gzip"))
    with h5py.File(path) as file:
        start, size = file["a"].id.get_chunk_info_by_coord((4, 0, 0))[2:]
    data = bytearray(path.read_bytes())
    data[start + size // 2] ^= 255
    path.write_bytes(data)
    first, second = Box((0, 0, 0), (4, 16, 16)), Box((4, 0, 0), (8, 16, 16))
    outcomes = {outcome.box: outcome for outcome in opened(path).map_regions([first, second], lambda region: region)}
    assert outcomes[first].error is None
    assert isinstance(outcomes[second].error, Malformed) and "chunk at 4, 0, 0 (z, y, x)" in str(outcomes[second].error)


BAD_CHUNKS = {
    "bomb": (zlib.compress(bytes(2**26)), "more than the expected 1024 bytes"),
    "too short": (zlib.compress(bytes(10)), "10 bytes, expected 1024"),
    "not zlib": (b"x" * 50, "cannot be unpacked"),
    "bytes after it": (zlib.compress(bytes(1024)) + b"x", "1 bytes follow"),
    "larger than it may be": (bytes(200_000), "200000 bytes, expected at most"),
}


def test_a_chunk_unpacks_to_its_size_or_not_at_all(in_this_process, written):
    def fill(file):
        for name, (stored, _) in BAD_CHUNKS.items():
            dataset = file.create_dataset(name, (4, 16, 16), "u1", chunks=(4, 16, 16), compression="gzip")
            dataset.id.write_direct_chunk((0, 0, 0), stored)

    path = written(fill)
    for name, (_, reason) in BAD_CHUNKS.items():
        reader = opened(path, name)
        tracemalloc.start()
        with pytest.raises(Malformed, match=reason):
            reader.read()
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 2**20, name


def test_sizes_beyond_any_volume_are_refused_before_they_are_allocated(written):
    def fill(file):
        file.create_dataset("volume", (2**20,) * 3, "u1", chunks=(64, 64, 64))
        file.create_dataset("chunk", (2**12,) * 3, "u1", chunks=(2**10, 2**10, 2**10))

    path = written(fill)
    assert "the most that is read" in refused(Unsupported, path, "volume")
    assert "1073741824 bytes, accepted are" in refused(Unsupported, path, "chunk")


def test_a_file_that_keeps_the_library_for_ever_is_malformed(written, monkeypatch):
    """The text of an attribute lies in a heap that says of it that it takes no room."""
    monkeypatch.setattr(_hdf5_dataset, "STRUCTURE_SECONDS", 3.0)
    path = written(lambda file: file.create_dataset("a", data=ramp(2, 3, 4)).attrs.update(unit="nm"))
    data = path.read_bytes()
    heap = data.index(b"GCOL")
    path.write_bytes(data[: heap + 24] + bytes(8) + data[heap + 32 :])
    assert "within 3 s" in refused(Malformed, path)


@pytest.mark.parametrize(
    ("allowed", "limit"),
    [(resource.RLIM_INFINITY, 2**30), (2**40, 2**30), (2**29, 2**29)],
    ids=["no limit", "a higher limit", "a lower limit"],
)
def test_memory_is_limited_and_a_limit_never_raised(monkeypatch, allowed, limit):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (allowed, allowed))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append((kind, limits)))
    _hdf5_structure._limit(resource.RLIMIT_AS, 2**30)
    assert asked == [(resource.RLIMIT_AS, (limit, limit))]


def test_a_library_that_nobody_waits_for_any_more_ends():
    """Whoever started it may have been killed: it is allowed some time of a processor, and no more."""
    arguments = [sys.executable, "-P", str(_hdf5_dataset.PROGRAM), "a.h5", "1000"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout.read(1) == _hdf5_structure.WANTED
        seconds = resource.prlimit(program.pid, resource.RLIMIT_CPU)[0]
        program.kill()
    assert _hdf5_dataset.STRUCTURE_SECONDS < seconds <= _hdf5_structure.MAX_CPU_SECONDS


def test_a_program_that_says_nothing_is_malformed(written, monkeypatch, tmp_path):
    """Though it ended well: where no process hears of its children's ends, a crash looks like that."""
    (tmp_path / "silent.py").write_text("")
    monkeypatch.setattr(_hdf5_dataset, "PROGRAM", tmp_path / "silent.py")
    path = written(lambda file: file.create_dataset("a", data=ramp(2, 3, 4)))
    assert "there is no answer" in refused(Malformed, path)


def test_a_library_that_crashes_takes_nothing_with_it(written, monkeypatch, tmp_path):
    crashing = tmp_path / "crashing.py"
    crashing.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(_hdf5_dataset, "PROGRAM", crashing)
    path = written(lambda file: file.create_dataset("a", data=ramp(2, 3, 4)))
    assert "crashes the HDF5 library" in refused(Malformed, path)
