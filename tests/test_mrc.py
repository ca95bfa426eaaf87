"""MRC and CCP4 files: real ones, those that mrcfile writes, and headers that a small writer of this module packs."""

import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import struct
import tracemalloc

import mrcfile
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.datasets.loading import load_spec
from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch.http import HttpClient
from em_assets.formats import open_volume
from em_assets.formats._bytes import LocalBytes, RemoteBytes
from em_assets.formats._mrc_extended import FEI_TYPES, MAX_SECTION_BYTES, MAX_SECTIONS
from em_assets.formats._mrc_header import HEADER_BYTES, spacing_angstrom
from em_assets.formats.mrc import open_mrc
from em_assets.formats.opening import kind_of, open_file
from em_assets.pipeline import describe_dataset
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.sources.widened import widened
from em_assets.store import open_store
from em_assets.volume import Box
from faulty import FaultyServer
from small import materialize, quick_settings

MODES = {"int8": 0, "int16": 1, "float32": 2, "uint16": 6, "float16": 12}
STAMPS = {"<": b"\x44\x44\0\0", ">": b"\x11\x11\0\0"}
AT = {
    **{name: (4 * word, "i") for word, name in enumerate(["nx", "ny", "nz", "mode", "nxstart", "nystart", "nzstart"])},
    **{name: (28 + 4 * word, "i") for word, name in enumerate(["mx", "my", "mz"])},
    **{name: (40 + 4 * word, "f") for word, name in enumerate(["cx", "cy", "cz", "alpha", "beta", "gamma"])},
    **{name: (64 + 4 * word, "i") for word, name in enumerate(["mapc", "mapr", "maps"])},
    **{name: (76 + 4 * word, "f") for word, name in enumerate(["dmin", "dmax", "dmean"])},
    "ispg": (88, "i"),
    "nsymbt": (92, "i"),
    "nint": (128, "h"),
    "nreal": (130, "h"),
    "imod_stamp": (152, "i"),
    "imod_flags": (156, "i"),
    "ox": (196, "f"),
    "rms": (216, "f"),
    "nlabl": (220, "i"),
}
"""Where the standard has each field: byte and type."""
RAW_AT = {"exttyp": 104, "map": 208, "machst": 212, "label0": 224, "label1": 304}
IMOD = {"imod_stamp": 1146047817}


def packed(voxels, order="<", extended=b"", turned=(0, 1, 2), **fields):
    """The bytes of a file of (sections, rows, columns), which are `turned` of z, y, x; `fields` go over all others."""
    nz, ny, nx = voxels.shape
    sizes = {"xyz"[2 - axis]: voxels.shape[place] for place, axis in enumerate(turned)}
    header = {"nx": nx, "ny": ny, "nz": nz, "mode": MODES.get(voxels.dtype.name, 0), "ispg": 1, "nsymbt": len(extended)}
    header |= {f"m{axis}": size for axis, size in sizes.items()} | {f"c{axis}": 8.0 * n for axis, n in sizes.items()}
    header |= dict.fromkeys(("alpha", "beta", "gamma"), 90.0)
    header |= {name: 3 - axis for name, axis in zip(("maps", "mapr", "mapc"), turned, strict=True)}
    header |= {"map": b"MAP ", "machst": STAMPS[order]} | fields
    raw = bytearray(HEADER_BYTES)
    for name, value in header.items():
        if name in RAW_AT:
            raw[RAW_AT[name] : RAW_AT[name] + len(value)] = value
        else:
            at, letter = AT[name]
            struct.pack_into(order + letter, raw, at, value)
    return bytes(raw) + extended + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes()


def ramp(*shape, dtype="uint8"):
    return (np.arange(np.prod(shape)) % 121).astype(dtype).reshape(shape)


@pytest.fixture
def mrc(tmp_path):
    """Opens the file that `packed` makes, each in a file of its own: a reader keeps its file mapped."""
    numbers = itertools.count()

    def opened(voxels, dataset=None, **options):
        path = tmp_path / f"{next(numbers)}.mrc"
        path.write_bytes(voxels if isinstance(voxels, bytes) else packed(voxels, **options))
        return open_mrc(LocalBytes(path), Settings(workers=2), dataset=dataset)

    return opened


# What real files hold

REFUSED = {
    "TRUNCATED_mrcfile_fei-extended.mrc": (Malformed, r"has 1048576 bytes, but its header describes 29265416: .*cut"),
    "etspy_SerialEM_MultiTilt_000.mrc.mdoc": (Unsupported, "not of a known format"),
}
STORED_AXES = {"mrcfile_EMD-3001.map": (1, 2, 0)}
"""Of a file with MAPC 3, MAPR 1, MAPS 2: sections are y, rows x, columns z."""
NO_VOXEL_SIZE = {"mrcfile_EMD-3001.map"}
"""A monoclinic cell."""


def test_every_real_file_reads_as_mrcfile_read_it_or_is_refused_with_the_right_reason(realdata):
    """The recorded digests are of voxels in the file's own order of axes and bytes."""
    entries = [e for e in json.loads((realdata / "index.json").read_text()) if e["kind"] == "mrc"]
    assert len(entries) >= 13
    for entry in entries:
        name = entry["name"]
        if name in REFUSED:
            error, reason = REFUSED[name]
            with pytest.raises(error, match=reason):
                open_volume(realdata / "mrc" / name)
            continue
        reader = open_volume(realdata / "mrc" / name)
        voxels = reader.read()
        recorded = re.search(
            r"shape=(\([^)]*\)) dtype=(\S+) .*?arr_sha256=(\w+) voxel_size_A=\(([^)]*)\)", entry["read"]
        )
        stored = voxels.transpose(STORED_AXES.get(name, (0, 1, 2)))
        assert hashlib.sha256(stored.astype(recorded[2]).tobytes()).hexdigest() == recorded[3], name
        shape = tuple(int(n) for n in re.findall(r"\d+", recorded[1]))
        assert stored.shape == (1, *shape)[-3:] and voxels.shape == reader.info.shape
        assert voxels.dtype.name == reader.info.dtype and voxels.dtype.isnative and voxels.flags.c_contiguous
        size_nm = tuple(float(n) / 10 for n in reversed(recorded[4].split(",")))
        assert reader.info.voxel_size_nm == (None if name in NO_VOXEL_SIZE else pytest.approx(size_nm, rel=1e-6)), name


def test_packed_maps_read_like_the_one_that_was_never_packed(realdata):
    """Voxels and all that the header says."""
    plain = open_volume(realdata / "mrc/mrcfile_EMD-3197.map")
    for name in ("mrcfile_EMD-3197.map.bz2", "mrcfile_emd_3197.map.gz"):
        unpacked = open_volume(realdata / "mrc" / name)
        assert np.array_equal(unpacked.read(), plain.read()), name
        assert list(unpacked.tags()) == list(plain.tags()) and unpacked.info == plain.info


def test_every_source_file_of_the_portals_tests_reads_as_mrcfile_reads_it(payloads):
    """Voxels, and voxel sizes to single precision; as decimals they are the ones that were meant."""
    paths = [path for path in (payloads / "cryoet").rglob("*") if path.suffix in (".mrc", ".rec", ".st")]
    assert len(paths) >= 14
    found = set()
    for path in paths:
        reader = open_volume(path)
        with mrcfile.open(path, permissive=True) as other:
            assert np.array_equal(reader.read(), other.data), path
            size = other.voxel_size.x
            assert reader.info.voxel_size_nm == (pytest.approx((size / 10,) * 3, rel=2e-7) if size else None), path
        found.add(reader.info.voxel_size_nm)
    assert found == {None, (0.5678,) * 3, (1.348,) * 3, (1.408,) * 3}


def test_tags_of_a_serialem_file_say_what_its_mdoc_says(realdata):
    """Header, labels, and the extended header; the side file has one digit more of the stage."""
    tags = dict(open_volume(realdata / "mrc/etspy_SerialEM_MultiTilt_000.mrc").tags())
    assert (tags["/nx"], tags["/mode"], tags["/exttyp"], tags["/nversion"]) == (1024, 1, "SERI", 20140)
    assert tags["/label/0"] == "SerialEM: NIST Titan D3094                              31-Mar-23  16:24:14"
    assert tags["/imodFlags"] == 0 and tags["/machst"] == "44 44 00 00"
    mdoc = (realdata / "mrc/etspy_SerialEM_MultiTilt_000.mrc.mdoc").read_text().split("[ZValue = ")
    for section, text in enumerate(mdoc[1:]):
        said = {key: value.split() for key, value in re.findall(r"^(\w+) = (.*)$", text, re.MULTILINE)}
        here = {**{key: tags[key] for key in tags if key.startswith("/extended/0/")}}
        here |= {
            key.replace(f"/{section}/", "/0/"): tags[key] for key in tags if key.startswith(f"/extended/{section}/")
        }
        for name, place, tolerance in (
            ("TiltAngle", 0, 0.01),
            ("Magnification", 0, 0),
            ("Intensity", 0, 0.0001),
            ("ExposureDose", 0, 0),
        ):
            assert here[f"/extended/0/{name}"] == pytest.approx(float(said[name][place]), abs=tolerance), section
        stage = [here[f"/extended/0/StagePosition/{axis}"] for axis in "XY"]
        assert stage == pytest.approx([float(n) for n in said["StagePosition"]], abs=0.04)


def test_tags_of_an_old_fei_file_are_named_though_it_has_no_map_and_no_machine_stamp(realdata):
    """Known by its header and its exact size; 77 tilts, two degrees apart."""
    tags = dict(open_volume(realdata / "mrc/etspy_HAADF.mrc").tags())
    assert tags["/extended/0/HT"] == 300000.0 and tags["/extended/0/Pixel size"] == pytest.approx(3.36e-9)
    tilts = [tags.get(f"/extended/{n}/Alpha tilt") for n in range(77)]
    assert tilts == [-76.0 + 2 * n for n in range(77)]
    assert "/extended/77/Alpha tilt" not in tags
    assert "without MACHST" in tags["/read_as/byte_order"]


def test_a_ccp4_map_lists_its_lines_of_symmetry(realdata):
    tags = dict(open_volume(realdata / "mrc/mrcfile_EMD-3001.map").tags())
    assert [tags["/extended/0"], tags["/extended/1"]] == ["X,  Y,  Z", "-X,  Y+1/2,  -Z"]
    assert tags["/nystart"] == -21 and "angles are not 90" in tags["/read_as/voxel_size"]


# Types, byte orders, axes


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", MODES)
def test_what_mrcfile_writes_is_read(tmp_path, dtype, order):
    """Every mode in both byte orders, with a voxel size of its own in each direction."""
    voxels = ramp(3, 4, 5, dtype=dtype)
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(voxels.astype(voxels.dtype.newbyteorder(order)))
        file.voxel_size = (4.0, 7.9, 29.61)
    reader = open_volume(tmp_path / "a.mrc")
    assert reader.info.dtype == dtype and np.array_equal(reader.read(), voxels)
    assert reader.info.voxel_size_nm == (2.961, 0.79, 0.4)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_box_of_any_file_is_that_of_the_voxels(tmp_path_factory, data):
    """Any mode, byte order, order of axes, extended header; by `read` and by the second way, voxel by voxel."""
    shape = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    turned = data.draw(st.permutations(range(3)))
    order = data.draw(st.sampled_from("<>"))
    dtype = data.draw(st.sampled_from(list(MODES)))
    extended = bytes(data.draw(st.integers(0, 99)))
    volume = np.random.default_rng(data.draw(st.integers(0, 99))).integers(-100, 100, shape).astype(dtype)
    path = tmp_path_factory.getbasetemp() / "any.mrc"
    path.unlink(missing_ok=True)
    path.write_bytes(packed(volume.transpose(turned), order, extended, turned))
    reader = open_volume(path)
    assert (reader.info.shape, reader.info.dtype) == (shape, dtype)
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    box = Box(tuple(start), tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)))
    read = reader.read(box)
    assert np.array_equal(read, volume[box.slices]) and read.flags.c_contiguous and read.dtype.isnative
    assert reader.sampler(box.start) == volume[box.start]
    assert reader.info.chunk[turned[0]] == 1


def test_turned_axes_turn_voxel_sizes_too(mrc):
    """Cell and grid are in x, y, z whatever the columns are; the grid may be longer than what is stored of it."""
    volume = ramp(2, 3, 4, dtype="int16")
    reader = mrc(volume.transpose(1, 2, 0), turned=(1, 2, 0), mx=40, my=12, mz=72, cx=40.0, cy=24.0, cz=216.0)
    assert np.array_equal(reader.read(), volume)
    assert reader.info.voxel_size_nm == (0.3, 0.2, 0.1) and reader.info.chunk == (2, 1, 4)
    assert reader.pixel_size_nm == (0.2, 0.1)


def test_axes_that_are_not_filled_in_are_the_usual_ones(mrc):
    reader = mrc(ramp(2, 3, 4), maps=0, mapr=0, mapc=0)
    assert reader.info.shape == (2, 3, 4)
    assert "not filled in" in dict(reader.tags())["/read_as/axes"]


BYTES = {
    "not by IMOD": ({}, "int8", "as MRC2014"),
    "IMOD, unsigned": (IMOD | {"imod_flags": 0}, "uint8", r"IMOD's flags \(0\)"),
    "IMOD, unsigned, other flags": (IMOD | {"imod_flags": 12}, "uint8", r"IMOD's flags \(12\)"),
    "IMOD, signed": (IMOD | {"imod_flags": 1}, "int8", r"IMOD's flags \(1\)"),
    "flags without the mark": ({"imod_flags": 2}, "int8", "as MRC2014"),
    "a largest value no signed byte has": ({"dmax": 255.0}, "int8", "DMAX is 255: whoever wrote it may have meant"),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("fields", "dtype", "reason"), BYTES.values(), ids=BYTES)
def test_bytes_are_signed_unless_imod_says_otherwise_and_the_tags_say_so(mrc, fields, dtype, reason, order):
    stored = np.arange(256, dtype="uint8").reshape(4, 8, 8)
    reader = mrc(stored, order=order, **fields)
    assert reader.info.dtype == dtype and np.array_equal(reader.read(), stored.view(dtype))
    assert re.search(rf"^{dtype}, .*{reason}", dict(reader.tags())["/read_as/bytes"])


REFUSED_MODES = {
    "complex integers": ({"mode": 3}, "complex numbers.*MODE 3"),
    "complex floats": ({"mode": 4}, "complex numbers.*MODE 4"),
    "colours": ({"mode": 16}, "RGB colours.*MODE 16"),
    "half bytes": ({"mode": 101}, "4-bit numbers.*MODE 101"),
    "half bytes by IMOD's flag": (IMOD | {"imod_flags": 16}, "4-bit numbers.*MODE 0"),
}


@pytest.mark.parametrize(("fields", "reason"), REFUSED_MODES.values(), ids=REFUSED_MODES)
def test_voxels_that_are_no_real_numbers_are_refused_by_their_kind(mrc, fields, reason):
    with pytest.raises(Unsupported, match=reason):
        mrc(ramp(2, 3, 4), **fields)


# Voxel sizes


@pytest.mark.parametrize(
    ("edge", "intervals", "angstrom"),
    [
        pytest.param(552.6799926757812, 41, "13.48", id="rounded once"),
        pytest.param(121.31999206542969, 9, "13.48", id="multiplied in single precision"),
        pytest.param(53.91999816894531, 4, "13.48", id="portal"),
        pytest.param(17.93000030517578, 40, "0.44825", id="EMD-3001"),
        pytest.param(24113024.0, 1348, "17888", id="exact"),
        pytest.param(3167.507080078125, 3710, "0.8537755", id="no short decimal"),
        pytest.param(np.float32(1 / 3), 1, "0.33333334", id="a third"),
    ],
)
def test_a_voxel_is_the_shortest_decimal_that_the_header_can_mean(edge, intervals, angstrom):
    found = spacing_angstrom(float(edge), intervals)
    assert float(found) == float(angstrom)
    assert abs(float(found) * intervals - edge) <= edge * 2**-23


@given(st.integers(1, 999_999), st.integers(-4, 4), st.integers(1, 100_000), st.booleans())
def test_a_size_of_six_digits_comes_back_however_it_was_multiplied(digits, exponent, intervals, in_single_precision):
    """In double precision and stored in single, or in single precision throughout."""
    size = float(f"{digits}e{exponent - 5}")
    count = np.float32(intervals)
    edge = np.float32(size) * count if in_single_precision else np.float32(size * intervals)
    assert float(spacing_angstrom(float(edge), intervals)) == size


NO_SIZE = {
    "B18 zero": {"cx": 0.0},
    "B18 not a number": {"cy": math.nan},
    "B18 infinite": {"cz": math.inf},
    "B18 negative": {"cz": -8.0},
    "B18 no grid": {"my": 0},
    "B18 negative grid": {"mx": -4},
    "B18 beyond any voxel": {"cx": 3e38},
    "oblique cell": {"beta": 94.3},
    "angle that is no number": {"alpha": math.nan},
    "stack of pictures": {"ispg": 0, "mz": 1},
}


@pytest.mark.parametrize("fields", NO_SIZE.values(), ids=NO_SIZE)
def test_b18_a_voxel_size_that_is_not_stated_is_none(mrc, fields):
    """The voxels are read all the same, and the header's own numbers are tags."""
    reader = mrc(ramp(2, 3, 4), **fields)
    assert reader.info.voxel_size_nm is None and np.array_equal(reader.read(), ramp(2, 3, 4).view("int8"))
    assert "/cella/x" in dict(reader.tags())


@pytest.mark.parametrize(
    ("fields", "size_nm", "pixel_nm"),
    [
        pytest.param({"ispg": 0, "mz": 1}, None, (0.8, 0.8), id="single pictures"),
        pytest.param({"ispg": 0}, (0.8, 0.8, 0.8), (0.8, 0.8), id="ISPG 0 with a grid along z"),
        pytest.param({"alpha": 0.0, "beta": 0.0, "gamma": 0.0}, (0.8, 0.8, 0.8), (0.8, 0.8), id="angles not filled in"),
        pytest.param({"ox": 700.0, "nxstart": 9}, (0.8, 0.8, 0.8), (0.8, 0.8), id="origin"),
    ],
)
def test_space_is_what_the_header_says_and_nothing_is_placed(mrc, fields, size_nm, pixel_nm):
    reader = mrc(ramp(2, 3, 4), **fields)
    assert (reader.info.voxel_size_nm, reader.pixel_size_nm) == (size_nm, pixel_nm)
    assert reader.info.corner_nm == (0, 0, 0) and reader.info.origin == (0, 0, 0)


# Several volumes


@pytest.mark.parametrize("dataset", ["0", "1", "2"])
def test_a_volume_of_a_stack_is_named_by_its_number(mrc, dataset):
    stack = ramp(6, 4, 5, dtype="int16") * np.int16(3)
    reader = mrc(stack, ispg=401, mz=2, dataset=dataset)
    first = 2 * int(dataset)
    assert np.array_equal(reader.read(), stack[first : first + 2])
    assert reader.sampler((1, 2, 3)) == stack[first + 1, 2, 3]


def test_none_of_several_volumes_is_chosen_by_guess(mrc):
    with pytest.raises(Unsupported, match="holds 3 volumes; name one as dataset: 0 to 2"):
        mrc(ramp(6, 4, 5), ispg=401, mz=2)


@pytest.mark.parametrize("dataset", ["1", "raw", "-1", "\u0660", ""])
def test_a_volume_that_is_not_there_is_said(mrc, dataset):
    with pytest.raises(Mismatch, match=r"has no volume .*; it has 0"):
        mrc(ramp(2, 3, 4), dataset=dataset)


def test_a_stack_whose_volumes_do_not_fill_it_is_malformed(mrc):
    with pytest.raises(Malformed, match="MZ is 4, expected a divisor of NZ, 6"):
        mrc(ramp(6, 4, 5), ispg=401, mz=4)


# Extended headers and labels


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", FEI_TYPES)
def test_fei_headers_are_read_as_mrcfile_reads_them(mrc, tmp_path, kind, order):
    """Every field of two sections full of random bytes: the second gives what differs, which is nearly all."""
    size = mrcfile.dtypes.get_ext_header_dtype(kind, order).itemsize
    noise = np.random.default_rng(7).integers(1, 200, 2 * size, dtype="u1").tobytes()
    records = [struct.pack(f"{order}i", size) + noise[at + 4 : at + size] for at in (0, size)]
    raw = packed(ramp(2, 3, 4), order, b"".join(records), exttyp=kind)
    (tmp_path / "other.mrc").write_bytes(raw)
    with mrcfile.open(tmp_path / "other.mrc") as other:
        records = other.indexed_extended_header
    tags = dict(mrc(raw).tags())
    for section in range(2):
        for name in records.dtype.names:
            expected = records[section][name]
            key = f"/extended/{section}/{name}"
            if records.dtype[name].kind == "S":
                assert key in tags or tags[f"/extended/0/{name}"] == expected.decode()
            elif records.dtype[name].kind != "b":  # a truth value of any byte is no number to compare
                found = tags.get(key, tags[f"/extended/0/{name}"])
                assert found == expected or (math.isnan(found) and math.isnan(expected)), key


def test_the_real_fei_header_of_a_cut_file_is_read(realdata, mrc):
    """Its extended header is whole: 1024 records, the first of which is of the one micrograph."""
    head = (realdata / "mrc/TRUNCATED_mrcfile_fei-extended.mrc").read_bytes()[: 1024 + 786432]
    tags = dict(mrc(packed(ramp(1, 3, 4), extended=head[1024:], exttyp=b"FEI1")).tags())
    here = {key.rpartition("/")[2]: value for key, value in tags.items() if key.startswith("/extended/0/")}
    assert not any(key.startswith("/extended/1/") for key in tags)
    assert here["HT"] == 300000.0 and here["Metadata size"] == 768
    assert here["Pixel size X"] == pytest.approx(0.853776e-10, rel=1e-5)
    assert re.match(r"TITAN", here["Microscope type"])


SERI_FLAGS = 1 | 2 | 4 | 8 | 16 | 32
SERI = struct.pack("<h3hhhhhhh", -6012, 10, 20, 3, -400, 25, 1150, 12500, 300, 0x0104)


@pytest.mark.parametrize("kind", [b"SERI", b"\0\0\0\0"])
def test_a_serialem_header_says_what_its_flags_announce(mrc, kind):
    reader = mrc(ramp(2, 3, 4), extended=SERI * 2, exttyp=kind, nint=len(SERI), nreal=SERI_FLAGS)
    found = {key.removeprefix("/extended/"): value for key, value in reader.tags() if key.startswith("/extended")}
    assert found == {
        "0/TiltAngle": -60.12,
        "0/PieceCoordinates/X": 10,
        "0/PieceCoordinates/Y": 20,
        "0/PieceCoordinates/Z": 3,
        "0/StagePosition/X": -16.0,
        "0/StagePosition/Y": 1.0,
        "0/Magnification": 115000.0,
        "0/Intensity": 0.5,
        "0/ExposureDose": (300 * 256 + 4) * 2.0,
    }


def test_numbers_of_sections_are_listed_in_their_order(mrc):
    """As many integers and reals as the header counts; of a later section what differs."""
    sections = [struct.pack(">i2f", 7, 1.5, -2.0), struct.pack(">i2f", 7, 1.5, 4.0)]
    reader = mrc(ramp(2, 3, 4), order=">", extended=b"".join(sections), exttyp=b"AGAR", nint=1, nreal=2)
    found = [(key, value) for key, value in reader.tags() if key.startswith("/extended")]
    assert found == [
        ("/extended/0/integer 0", 7),
        ("/extended/0/real 0", 1.5),
        ("/extended/0/real 1", -2.0),
        ("/extended/1/real 1", 4.0),
    ]


OTHER_HEADERS = {
    "unknown kind": (bytes(range(40)), b"HDF5", "40 bytes at byte 1024"),
    "no text": (bytes([200]) * 160, b"CCP4", "160 bytes at byte 1024"),
    "FEI's, too short": (bytes([1]) * 100, b"FEI1", "100 bytes at byte 1024"),
    "no kind, nothing counted": (bytes([1]) * 100, b"", "100 bytes at byte 1024"),
}


@pytest.mark.parametrize(("extended", "kind", "shown"), OTHER_HEADERS.values(), ids=OTHER_HEADERS)
def test_of_other_extended_headers_place_and_length_are_told(mrc, extended, kind, shown):
    assert dict(mrc(ramp(2, 3, 4), extended=extended, exttyp=kind).tags())["/extended"] == shown


def test_a_header_of_very_many_sections_is_listed_up_to_a_limit(mrc):
    """A million numbers in it cost neither their listing nor their time."""
    count = 2 * MAX_SECTIONS
    extended = np.arange(count, dtype="<f4").tobytes()
    tags = dict(mrc(ramp(count, 1, 1), extended=extended, exttyp=b"AGAR", nreal=1).tags())
    assert tags["/extended/not_listed"] == f"sections {MAX_SECTIONS} to {count - 1}"
    assert tags[f"/extended/{MAX_SECTIONS - 1}/real 0"] == MAX_SECTIONS - 1
    wide = np.arange(3 * 16000, dtype="<f4").tobytes()
    tags = dict(mrc(ramp(3, 1, 1), extended=wide, exttyp=b"AGAR", nreal=16000).tags())
    assert tags["/extended/not_listed"] == "what differs in sections from 0 on"


class CountedBytes(LocalBytes):
    """Adds up what is read of it."""

    read_bytes = 0

    def read(self, start, length):
        self.read_bytes += length
        return super().read(start, length)


@pytest.mark.parametrize(
    ("integers", "shown"),
    [
        pytest.param(2000, "sections 2097 to 7999", id="8 kB each"),
        pytest.param(32767, "what differs in sections from 0 on", id="128 kB each"),
    ],
)
def test_an_extended_header_of_two_gigabytes_is_not_read_through(tmp_path, integers, shown):
    """Its sections are all alike and none is on disk."""
    head = packed(ramp(8000, 1, 1), exttyp=b"AGAR", nint=integers, nsymbt=2**31 - 8)[:1024]
    with (tmp_path / "a.mrc").open("wb") as file:
        file.write(head)
        os.truncate(file.fileno(), 1024 + 2**31 - 8 + 8000)
    source = CountedBytes(tmp_path / "a.mrc")
    tags = dict(open_mrc(source, Settings(workers=1)).tags())
    assert tags["/extended/not_listed"] == shown
    assert source.read_bytes <= MAX_SECTION_BYTES + HEADER_BYTES


LABELS = {
    "filled with spaces": (b"Created by a program".ljust(80), "Created by a program"),
    "filled with zeros": (b"  indented\0\0", "  indented"),
    "UTF-8": ("pixel 2 µm".encode().ljust(80), "pixel 2 µm"),
    "Latin-1": (b"2 \xb5m" + b" " * 76, "4 bytes: 32 20 b5 6d"),
    "text after a zero": (b"old\0older text", "14 bytes: 6f 6c 64 00 6f 6c 64 65 72 20 74 65 78 74"),
    "line break": (b"a\nb", "3 bytes: 61 0a 62"),
}


@pytest.mark.parametrize(("label", "shown"), LABELS.values(), ids=LABELS)
def test_labels_are_text_or_their_bytes_and_none_is_lost(mrc, label, shown):
    """Also beyond the number that the header says are used."""
    tags = dict(mrc(ramp(2, 3, 4), label1=label, nlabl=0).tags())
    assert tags["/label/1"] == shown and "/label/0" not in tags


def test_every_field_of_the_header_is_a_tag_as_it_is_stored(mrc):
    stored = {"dmin": -3.5, "dmax": 121.25, "dmean": 7.75, "rms": -1.0, "nxstart": -7, "ox": 12.5, "nlabl": 3}
    tags = dict(mrc(ramp(2, 3, 4), **stored).tags())
    assert {name: tags[f"/{'origin/x' if name == 'ox' else name}"] for name in stored} == stored
    assert (tags["/nx"], tags["/ny"], tags["/nz"], tags["/mapc"], tags["/cella/z"]) == (4, 3, 2, 1, 16.0)
    assert tags["/map"] == "MAP" and tags["/ispg"] == 1 and tags["/nsymbt"] == 0


# The header, damaged

WRONG = {
    "B15 MAP": ({"map": b"MAQ ", "nz": 9}, "MAP is b'MAQ ', expected b'MAP '"),
    "B15 machine stamp": ({"machst": b"\x17\x17\0\0"}, "MACHST is 17 17 00 00, expected 44 44"),
    "B15 mode 77": ({"mode": 77}, "MODE is 77, expected one of 0, 1, 2, 6, 12"),
    "B15 negative mode": ({"mode": -1}, "MODE is -1"),
    "B15 axes": ({"mapc": 1, "mapr": 1}, "MAPC, MAPR, MAPS is 1, 1, 3, expected 1, 2, 3 in some order"),
    "B16 larger than the file": ({"nz": 9}, "has 1048 bytes, but its header describes 1132: .*cut"),
    "B16 smaller than the file": ({"nz": 1}, "has 1048 bytes, but its header describes 1036: .*not of this file"),
    "B17 no columns": ({"nx": 0}, "NX is 0, expected a positive number"),
    "B17 negative rows": ({"ny": -3}, "NY is -3"),
    "B17 sections": ({"nz": -(2**31)}, "NZ is -2147483648"),
    "B17 2^31 voxels in each direction": (dict.fromkeys(("nx", "ny", "nz"), 2**31 - 1), "header describes 99035203"),
    "B17 extended header of 2^31-1": ({"nsymbt": 2**31 - 1}, "NSYMBT is 2147483647, expected .* the 1048 bytes"),
    "B17 extended header of -100": ({"nsymbt": -100}, "NSYMBT is -100"),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("fields", "reason"), WRONG.values(), ids=WRONG)
def test_b15_to_b17_a_wrong_header_is_named_by_field_and_value_before_anything_is_allocated(mrc, fields, reason, order):
    tracemalloc.start()
    with pytest.raises(Malformed, match=reason) as raised:
        mrc(ramp(2, 3, 4), order=order, **fields)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**20
    assert str(raised.value).count("\n") == 0 and len(str(raised.value)) < 600


@pytest.mark.parametrize("length", [*range(0, 1024, 97), 1023, 1024, 1040, 1047])
def test_b15_a_file_cut_anywhere_is_malformed_or_not_known(tmp_path, length):
    """Below the byte that has its mark it could be anything."""
    (tmp_path / "a.mrc").write_bytes(packed(ramp(2, 3, 4))[:length])
    with pytest.raises(Malformed if length > 210 or not length else Unsupported) as raised:
        open_volume(tmp_path / "a.mrc")
    if length > 210:
        assert f"ends at byte {length}" in str(raised.value) or f"has {length} bytes" in str(raised.value)


# Packed by gzip or bzip2

PACK = {"gz": gzip.compress, "bz2": bz2.compress}


@pytest.fixture(params=PACK)
def packs(request, tmp_path):
    """What packs, and what opens the result with a cache folder of its own."""

    def opened(raw, **changes):
        (tmp_path / "a.mrc").unlink(missing_ok=True)
        (tmp_path / "a.mrc").write_bytes(raw)
        return open_volume(tmp_path / "a.mrc", settings=Settings(workers=2, cache=tmp_path / "cache", **changes))

    return PACK[request.param], opened


def left_in_cache(folder):
    return [path for path in (folder / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", MODES)
def test_a_packed_file_is_read_at_random_like_the_plain_one(packs, tmp_path, dtype, order):
    """Any mode, byte order and extended header; what it is unpacked to has no name, so nothing is left."""
    pack, opened = packs
    volume = ramp(5, 6, 7, dtype=dtype)
    reader = opened(pack(packed(volume, order, b"12345678" * 10, exttyp=b"CCP4")))
    box = Box((1, 2, 3), (4, 5, 6))
    assert np.array_equal(reader.read(box), volume[box.slices]) and np.array_equal(reader.read(), volume)
    assert reader.sampler((4, 5, 6)) == volume[4, 5, 6]
    assert dict(reader.tags())["/extended/0"] == "12345678" * 10
    assert (tmp_path / "cache/unpacked").is_dir() and left_in_cache(tmp_path) == []


def test_streams_that_follow_each_other_are_one_file(packs):
    """As parallel packers write them; the last may be empty."""
    pack, opened = packs
    volume = ramp(9, 100, 70, dtype="int16")
    raw = packed(volume)
    parts = [pack(raw[at : at + 50_000]) for at in range(0, len(raw), 50_000)]
    assert np.array_equal(opened(b"".join([*parts, pack(b"")])).read(), volume)


RAW = packed(np.random.default_rng(3).integers(-99, 99, (4, 30, 40)).astype("int16"))
B19 = {
    "cut": (lambda pack: pack(RAW)[:-1], "stream ends in the middle, after .* unpacked bytes; it was cut"),
    "cut early": (lambda pack: pack(RAW)[:20], "stream ends in the middle, after 0 unpacked bytes"),
    "cut between streams": (lambda pack: pack(RAW[:5000]) + pack(RAW[5000:])[:9], "ends in the middle, after 5000 "),
    "too little in it": (lambda pack: pack(RAW[:-1]), "unpacks to 10623 bytes, but its MRC header describes 10624"),
    "one byte too much in it": (lambda pack: pack(RAW + b"x"), "unpacks to more than the 10624 bytes that its MRC"),
    "a further stream": (lambda pack: pack(RAW) + pack(b"x"), "unpacks to more than the 10624 bytes"),
    "zeros after it": (lambda pack: pack(RAW) + bytes(512), r"512 bytes follow its (gzip|bzip2) stream .they begin 00"),
    "something after it": (lambda pack: pack(RAW) + b"PK\3\4", "4 bytes follow its .*; it is damaged or more than one"),
    "damaged": (lambda pack: pack(RAW)[:-6] + b"\xaa" * 6, "(stream is damaged after|bytes follow|ends in the middle)"),
    "part of a header": (lambda pack: pack(RAW[:215]), "ends at byte 215, but an MRC header alone has 1024"),
    "no rows": (lambda pack: pack(packed(ramp(2, 3, 4), ny=0)), "NY is 0, expected a positive number"),
    "extended header of -100": (lambda pack: pack(packed(ramp(2, 3, 4), nsymbt=-100)), "NSYMBT is -100"),
    "extended header of 2^31-1": (lambda pack: pack(packed(ramp(2, 3, 4), nsymbt=2**31 - 1)), "describes 2147484695"),
    "2^31 in each direction": (
        lambda pack: pack(packed(ramp(2, 3, 4), **dict.fromkeys(("nx", "ny", "nz"), 2**31 - 1))),
        "claims to unpack to 99035203.* bytes .*beyond the limit; EM_ASSETS_MAX_BYTES is 20000000000",
    ),
}


@pytest.mark.parametrize(("make", "reason"), B19.values(), ids=B19)
def test_b19_a_packed_file_that_is_not_whole_or_not_alone_is_named_for_what_it_is(packs, tmp_path, make, reason):
    pack, opened = packs
    with pytest.raises(Malformed, match=reason) as raised:
        opened(make(pack))
    assert str(raised.value).startswith(str(tmp_path / "a.mrc")) and left_in_cache(tmp_path) == []


def test_b19_a_bomb_is_stopped_where_its_header_ends(packs, tmp_path):
    """24 MiB behind a header that describes 1048 bytes cost neither memory nor disk."""
    pack, opened = packs
    bomb = pack(packed(ramp(2, 3, 4)) + bytes(24 * 2**20))
    tracemalloc.start()
    with pytest.raises(Malformed, match=r"unpacks to more than the 1048 bytes .*made to fill the disk"):
        opened(bomb)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 8 * 2**20 and left_in_cache(tmp_path) == []


def test_a_packed_file_for_which_there_is_no_room_says_how_to_make_some(packs, tmp_path):
    """An honest header of a petabyte where that is allowed, and a cache folder that is a file."""
    pack, opened = packs
    huge = packed(ramp(1, 1, 1), nx=2**17, ny=2**17, nz=2**16)
    with pytest.raises(Unavailable, match=r"unpacks to 1125899906843648 bytes, but .*cache/unpacked has \d+ left; set"):
        opened(pack(huge), max_bytes=2**60)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match=r"could not be unpacked to .*set EM_ASSETS_CACHE to a folder"):
        open_volume(tmp_path / "a.mrc", settings=Settings(max_bytes=2**60, cache=tmp_path / "file"))


def test_what_is_packed_but_no_mrc_is_refused_as_before(packs):
    pack, opened = packs
    for inside in (b"II*\0" + bytes(2000), b"", b"MAP ", bytes(5000)):
        with pytest.raises(Unsupported, match=r"(gzip|bzip2)-compressed, and must be unpacked first"):
            opened(pack(inside))


def test_a_file_of_35615_columns_is_not_taken_for_a_packed_one(tmp_path):
    """Its first two bytes are those of gzip."""
    volume = ramp(1, 1, 0x8B1F)
    (tmp_path / "a.mrc").write_bytes(packed(volume, map=bytes(4)))
    assert np.array_equal(open_volume(tmp_path / "a.mrc").read().view("uint8"), volume)


def test_modes_that_are_not_read_are_refused_before_a_packed_file_is_unpacked(packs, tmp_path):
    pack, opened = packs
    with pytest.raises(Unsupported, match=r"complex numbers.*MODE 4"):
        opened(pack(packed(ramp(2, 3, 4), mode=4)))
    assert not (tmp_path / "cache").exists()


def test_the_header_of_a_packed_file_behind_an_address_costs_its_beginning_only(tmp_path):
    """Its voxels, once they are asked for, the whole file, once."""
    volume = np.random.default_rng(4).integers(-9999, 9999, (30, 300, 300)).astype("int16")
    (tmp_path / "served").mkdir()
    (tmp_path / "served/a.mrc.gz").write_bytes(gzip.compress(packed(volume), 1))
    size = (tmp_path / "served/a.mrc.gz").stat().st_size
    with FaultyServer(tmp_path / "served") as server:
        config = quick_settings(tmp_path, cache=tmp_path / "cache")
        source = RemoteBytes(f"{server.url}/a.mrc.gz", HttpClient(config))
        reader = open_file(source, None, config)
        assert reader.info.shape == (30, 300, 300) and dict(reader.tags())["/nx"] == 300
        asked = sum(int(b) - int(a) + 1 for a, b in re.findall(r"bytes=(\d+)-(\d+)", str(server.log)))
        assert 0 < asked < size / 2 and left_in_cache(tmp_path) == []
        boxes = [Box((z, 0, 0), (z + 10, 300, 300)) for z in (0, 10, 20)]
        for outcome in reader.map_regions(boxes, lambda region: region):
            assert np.array_equal(outcome.value.voxels, volume[outcome.box.slices])
        asked = sum(int(b) - int(a) + 1 for a, b in re.findall(r"bytes=(\d+)-(\d+)", str(server.log)))
        assert size <= asked < 2 * size


# Half precision


def test_every_half_is_exactly_a_float(mrc):
    """All 65536 of them, in regions with samples; what is no number stays none."""
    halves = np.arange(65536, dtype="uint16").view("float16").reshape(16, 64, 64)
    reader = mrc(halves, mode=12)
    wide = widened(reader, "float32")
    assert wide.info == dataclasses.replace(reader.info, dtype="float32") and list(wide.tags()) == list(reader.tags())
    voxels = wide.read()
    assert voxels.dtype == "float32" and np.array_equal(voxels, halves.astype("float32"), equal_nan=True)
    assert np.array_equal(voxels.astype("float16"), halves, equal_nan=True)
    box = Box((0, 0, 0), (4, 64, 64))
    (outcome,) = wide.map_regions([box], lambda region: region)
    assert outcome.value.voxels.dtype == "float32" and np.array_equal(outcome.value.voxels, voxels[:4])
    assert all(sample.value == voxels[sample.position] for sample in outcome.value.samples) and outcome.value.samples
    assert wide.plan([box]) == reader.plan([box])
    assert "exactly" in dict(reader.tags())["/read_as/half"]


@pytest.mark.parametrize("dtype", ["float16", "float64", "int16"])
def test_nothing_else_is_widened(mrc, dtype):
    """What differs is for the comparison with the spec to say."""
    reader = mrc(ramp(2, 3, 4, dtype="float16"))
    assert widened(reader, dtype) is reader
    plain = mrc(ramp(2, 3, 4, dtype="int16"))
    assert widened(plain, "float32") is plain


# Known by its bytes

KNOWN = {
    "MAP and stamp": {},
    "stamp of CCP4": {"machst": b"\x44\x41\0\0"},
    "MAP followed by a zero": {"map": b"MAP\0"},
    "no stamp": {"machst": bytes(4)},
    "no MAP": {"map": bytes(4)},
    "neither": {"map": bytes(4), "machst": bytes(4)},
}


@pytest.mark.parametrize("columns", [3, 4, 70])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("fields", KNOWN.values(), ids=KNOWN)
def test_a_file_is_known_by_its_mark_or_by_a_header_that_describes_its_size_exactly(tmp_path, fields, order, columns):
    """Big-endian ones of 3 or 4 columns begin like DigitalMicrograph's files."""
    if order == ">" and fields.get("machst", b"\x44")[0] == 0x44:
        fields = fields | {"machst": STAMPS[">"]}
    volume = ramp(2, 3, columns, dtype="int16")
    without_mark = order == ">" and columns < 70 and "map" in fields and not any(fields.get("machst", b""))
    raw = packed(volume, order, **fields)
    assert kind_of(raw[:1024], len(raw)) == ("dm" if without_mark else "mrc")
    if not without_mark:
        (tmp_path / "a.tif").write_bytes(raw)
        assert np.array_equal(open_volume(tmp_path / "a.tif").read(), volume)


def test_what_lacks_mark_and_stamp_and_does_not_fill_its_file_is_of_no_known_format(tmp_path):
    (tmp_path / "a.mrc").write_bytes(packed(ramp(2, 3, 70), map=bytes(4), machst=bytes(4)) + b"\0")
    with pytest.raises(Unsupported, match="not of a known format"):
        open_volume(tmp_path / "a.mrc")


def test_a_cut_file_without_stamp_is_still_read_in_its_byte_order(mrc):
    with pytest.raises(Malformed, match=r"header describes 1072: .*4 x 3 x 2 .*int16; it was cut"):
        mrc(packed(ramp(2, 3, 4, dtype="int16"), ">", machst=bytes(4))[:-1])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_read_or_refused_but_nothing_else_happens(tmp_path_factory, data):
    """Bytes of the header and the extended header changed, the file cut: an error of ours, or voxels and tags."""
    kind, nint, nreal, extended = data.draw(
        st.sampled_from(
            [
                (b"", 0, 0, b""),
                (b"SERI", len(SERI), SERI_FLAGS, SERI * 2),
                (b"FEI1", 0, 0, bytes(2000)),
                (b"", 1, 2, bytes(96)),
            ]
        )
    )
    order = data.draw(st.sampled_from("<>"))
    raw = packed(ramp(2, 3, 4), order, extended, exttyp=kind, nint=nint, nreal=nreal)
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.sampled_from([*range(224), *range(1024, len(raw))]))
        damaged[at] = data.draw(st.sampled_from([0, 1, 2, 127, 128, 255]) | st.integers(0, 255))
    length = data.draw(st.just(len(raw)) | st.integers(0, len(raw)))
    path = tmp_path_factory.getbasetemp() / "damaged.mrc"
    path.unlink(missing_ok=True)
    path.write_bytes(bytes(damaged[:length]))
    with contextlib.suppress(EmAssetsError):
        reader = open_mrc(LocalBytes(path), Settings(workers=1))
        assert reader.read().shape == reader.info.shape
        size_nm = reader.info.voxel_size_nm
        assert size_nm is None or all(math.isfinite(size) and size > 0 for size in size_nm)
        assert all(isinstance(value, str | int | float) for _, value in reader.tags())


# Reading boxes


def test_a_small_box_of_a_file_of_many_gigabytes_costs_only_itself(tmp_path):
    """A sparse file of 16 GiB: header, tags and a box."""
    head = packed(ramp(1, 1, 1, dtype="float32"), nx=2048, ny=2048, nz=1024, mz=1024)[:1024]
    with (tmp_path / "huge.mrc").open("wb") as file:
        file.write(head)
        file.seek(1024 + 4 * (2048 * 2048 * 900 + 2048 * 1000 + 77))
        file.write(struct.pack("<f", 2.5))
        os.truncate(file.fileno(), 1024 + 2**34)
    tracemalloc.start()
    reader = open_volume(tmp_path / "huge.mrc")
    box = reader.read(Box((899, 1000, 70), (901, 1001, 80)))
    assert len(dict(reader.tags())) > 30
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**20
    assert box[1, 0, 7] == 2.5 and np.count_nonzero(box) == 1


@pytest.mark.parametrize("box", [Box((0, 0, 0), (1, 4, 6)), Box((0, 0, 0), (0, 0, 0)), Box((1, 0, 0), (3, 1, 1))])
def test_a_box_outside_the_volume_is_refused(mrc, box):
    with pytest.raises(Mismatch, match="leaves the volume"):
        mrc(ramp(2, 4, 5)).read(box)


def test_voxels_of_a_local_file_are_a_view_of_it(mrc):
    """Nothing is copied where the file has this machine's byte order and the usual axes."""
    assert not mrc(ramp(2, 3, 4, dtype="int16")).read().flags.writeable, "nobody may write into a mapped file"
    assert mrc(ramp(2, 3, 4, dtype="int16"), order=">").read().flags.writeable


@pytest.mark.parametrize("turned", [(0, 1, 2), (1, 2, 0)], ids=["zyx", "yxz"])
def test_regions_come_with_samples_that_agree(mrc, turned):
    volume = ramp(6, 50, 40, dtype="float16") * np.float16(-0.5)
    reader = mrc(volume.transpose(turned), turned=turned)
    boxes = [Box((0, 0, 0), (3, 50, 40)), Box((3, 10, 20), (6, 40, 40))]
    outcomes = {o.box: o for o in reader.map_regions(boxes, lambda region: region)}
    assert set(outcomes) == set(boxes)
    for box, outcome in outcomes.items():
        assert np.array_equal(outcome.value.voxels, volume[box.slices]) and outcome.value.missing == ()
        assert len(outcome.value.samples) > 10
        assert all(sample.value == volume[sample.position] for sample in outcome.value.samples)
    assert reader.plan(boxes).received_bytes == sum(outcome.value.received_bytes for outcome in outcomes.values())


def test_a_remote_file_is_read_by_the_ranges_that_were_planned(tmp_path):
    volume = ramp(4, 900, 1000)
    (tmp_path / "a.mrc").write_bytes(packed(volume, extended=bytes(300_000), imod_flags=0, **IMOD))
    with FaultyServer(tmp_path) as server:
        config = quick_settings(tmp_path)
        reader = open_mrc(RemoteBytes(f"{server.url}/a.mrc", HttpClient(config)), config)
        dict(reader.tags())
        assert len(server.log) <= 2, "its size, and its first block"
        for box in (Box((1, 100, 200), (3, 140, 260)), Box((0, 10, 0), (4, 20, 1000)), Box((2, 0, 0), (3, 900, 1000))):
            before, plan = len(server.log), reader.plan([box])
            (outcome,) = reader.map_regions([box], lambda region: region)
            assert np.array_equal(outcome.value.voxels, volume[box.slices])
            assert len(server.log) - before == plan.requests <= 4


def test_an_address_is_opened_by_its_bytes(tmp_path):
    volume = ramp(4, 30, 40, dtype="int16")
    (tmp_path / "tomogram").write_bytes(packed(volume))
    with FaultyServer(tmp_path) as server:
        reader = open_volume(f"{server.url}/tomogram", settings=quick_settings(tmp_path))
        assert np.array_equal(reader.read(), volume)


def test_a_series_of_files_is_one_volume(tmp_path):
    """One section each, in the order of their numbers."""
    volume = ramp(3, 4, 5, dtype="int16")
    for number, section in enumerate(volume):
        (tmp_path / f"slice_{number + 9}.mrc").write_bytes(packed(section[None]))
    reader = open_volume(f"{tmp_path}/slice_*.mrc")
    assert np.array_equal(reader.read(), volume) and reader.info.voxel_size_nm == (0.8, 0.8, 0.8)


@pytest.mark.parametrize(("name", "stored", "dtype"), [("a.mrc", "int16", "int16"), ("a.mrc.gz", "float16", "float32")])
def test_an_mrc_file_becomes_a_dataset_with_all_that_it_says(tmp_path, name, stored, dtype):
    """Downloaded, standardized with its axes put right, its header among the claims; packed halves as floats."""
    volume = np.random.default_rng(5).integers(-100, 100, (40, 50, 60)).astype(stored)
    (tmp_path / "served").mkdir()
    raw = packed(volume.transpose(1, 2, 0), turned=(1, 2, 0), label0=b"a label")
    (tmp_path / "served" / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    with FaultyServer(tmp_path / "served") as server:
        document = yaml.safe_load((PACKAGED_DATASETS / "epfl_hippocampus.yaml").read_text())
        document |= {"name": "tomogram", "documents": [], "volumes": {}, "claims": [], "notes": {}}
        document["source"] = {
            "kind": "files",
            "url": server.url,
            "files": [{"path": name}],
            "volume": {"files": [name]},
        }
        document["expected"] = {"source_shape": [40, 50, 60], "dtype": dtype, "voxel_size_nm": [0.8] * 3}
        (tmp_path / "tomogram.yaml").write_text(yaml.safe_dump(document))
        settings = quick_settings(tmp_path / "store")
        spec = load_spec(tmp_path / "tomogram.yaml")
        record, _ = materialize(spec, settings)
    describe_dataset(spec, settings, open_store(settings.root), fetch=False)
    assert record.status == "complete"
    folder = tmp_path / "store/tomogram"
    stored_volume = open_volume(folder / "volume.ome.zarr")
    assert stored_volume.info.dtype == dtype and np.array_equal(stored_volume.read(), volume)
    claims = {
        row["key"]: row for row in pq.read_table(folder / "claims.parquet").to_pylist() if row["extractor"] == "mrc"
    }
    assert claims["/label/0"]["value_text"] == "a label" and claims["/mapc"]["value_number"] == 3
    assert (claims["/cella/x"]["value_number"], claims["/cella/x"]["unit"]) == (480.0, "angstrom")
