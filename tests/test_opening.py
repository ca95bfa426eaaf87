"""`open_volume`: what lies at a place decides how it is read, never its name; and what is no volume is said."""

import gzip
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch import attempts
from em_assets.fetch.client import FolderClient, folder_url
from em_assets.fetch.http import NotThere
from em_assets.formats import open_volume
from em_assets.formats.reader import VolumeReader
from em_assets.sample.precomputed import write_precomputed
from em_assets.settings import Settings
from em_assets.volume import Box
from faulty import Fault, FaultyServer

VOLUME = np.random.default_rng(3).integers(1, 250, (9, 20, 31), dtype="u1")
SETTINGS = Settings(workers=2, unreachable_seconds=0.5, retry_seconds=0.5, connect_seconds=0.5, read_seconds=2.0)


def opened(location: str | Path, dataset: str | None = None) -> VolumeReader:
    return open_volume(location, dataset, settings=SETTINGS)


def holds(reader: VolumeReader, volume: np.ndarray = VOLUME) -> bool:
    return bool(np.array_equal(reader.read(), volume))


def refusal(location: str | Path, kind: type[EmAssetsError], dataset: str | None = None) -> str:
    """The sentence of exactly this kind of error."""
    with pytest.raises(kind) as caught:
        opened(location, dataset)
    said = str(caught.value)
    assert said.endswith((".", ")")) and "\n" not in said and "Traceback" not in said
    return said


@pytest.fixture(scope="module", autouse=True)
def _short_backoff():
    """What fails on purpose is tried again soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "BACKOFF_SECONDS", 0.02)
        yield


def write_zarr(folder: Path, version: int) -> None:
    """A group of two levels, s0 and s1, with multiscales of 4 nm."""
    group = zarr.open_group(folder, mode="w", zarr_format=version)
    datasets = []
    for level in (0, 1):
        group.create_array(f"s{level}", data=VOLUME[:: 2**level, :: 2**level, :: 2**level], chunks=(8, 8, 8))
        transform = {"type": "scale", "scale": [4.0 * 2**level] * 3}
        datasets.append({"path": f"s{level}", "coordinateTransformations": [transform]})
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    image = {"axes": axes, "datasets": datasets}
    if version == 2:
        group.attrs["multiscales"] = [image | {"version": "0.4"}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


def write_n5(folder: Path) -> None:
    """An array `volume/s0`; the root knows only its version."""
    array = folder / "volume/s0"
    (array / "0/0").mkdir(parents=True)
    (folder / "attributes.json").write_text('{"n5": "2.0.0"}')
    document = {
        "dimensions": [31, 20, 9],
        "blockSize": [31, 20, 9],
        "dataType": "uint8",
        "compression": {"type": "raw"},
    }
    (array / "attributes.json").write_text(json.dumps(document))
    header = b"".join(n.to_bytes(size, "big") for n, size in ((0, 2), (3, 2), (31, 4), (20, 4), (9, 4)))
    (array / "0/0/0").write_bytes(header + VOLUME.tobytes())


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The same voxels in every format."""
    folder = tmp_path_factory.mktemp("volumes")
    tifffile.imwrite(folder / "stack.tif", VOLUME, photometric="minisblack")
    tifffile.imwrite(folder / "big.tif", VOLUME, photometric="minisblack", bigtiff=True, byteorder=">")
    with h5py.File(folder / "stack.h5", "w") as file:
        file["volumes/raw"] = VOLUME
    (folder / "slices").mkdir()
    for number, page in enumerate(VOLUME):
        tifffile.imwrite(folder / f"slices/z{number + 1}.tif", page, photometric="minisblack")
    for version in (2, 3):
        write_zarr(folder / f"v{version}", version)
    write_n5(folder / "n5")
    write_precomputed(folder / "precomputed", VOLUME, levels=2, chunk=16, encoding="raw")
    return folder


@pytest.fixture(scope="module")
def server(place):
    with FaultyServer(place) as server:
        yield server


FILES = ["stack.tif", "big.tif", "stack.h5"]
REMOTE_FILES = ["stack.tif", "big.tif"]
FOLDERS = {"v2": None, "v3": None, "n5": "volume/s0", "precomputed": None}


# -- what is there decides


@pytest.mark.parametrize("name", ["x.tif", "x.dm3", "x.h5", "x.zarr", "x.json", "x.tif.gz", "x", "x[1]*.tif"])
@pytest.mark.parametrize("file", FILES)
def test_a_file_is_known_by_its_bytes(place, tmp_path, file, name):
    """Whatever it is called: also a name that looks like a pattern is that of a file, if one has it."""
    shutil.copy(place / file, tmp_path / name)
    assert holds(opened(tmp_path / name))


@pytest.mark.parametrize("name", ["etspy_HAADF.dm3", "nion_ref_T_0_2.dm4"])
def test_a_dm_file_is_known_by_its_bytes(realdata, tmp_path, name):
    shutil.copy(realdata / "dm" / name, tmp_path / "x.tif")
    assert holds(opened(tmp_path / "x.tif"), opened(realdata / "dm" / name).read())


@pytest.mark.parametrize("name", ["x", "x.tif", "x.zarr", "x y%20#?.n5"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_known_by_its_documents(place, tmp_path, folder, name):
    """Also under a name that an address would have to escape."""
    shutil.copytree(place / folder, tmp_path / name)
    assert holds(opened(tmp_path / name, FOLDERS[folder]))
    assert holds(opened(f"{tmp_path / name}/", FOLDERS[folder]))


def test_a_pattern_is_a_series(place):
    """In the order of the numbers; a pattern of one file is its one slice."""
    assert holds(opened(f"{place}/slices/z*.tif"))
    assert holds(opened(place / "slices/z[3].tif"), VOLUME[2:3])


def test_a_relative_path_and_a_file_address(place, monkeypatch):
    """As they are typed, and as our own messages write folders."""
    monkeypatch.chdir(place)
    for location in ("stack.tif", "v3", "slices/*.tif", Path("stack.h5")):
        assert holds(opened(location))
    for name in ("stack.tif", "v3", "precomputed"):
        assert holds(opened((place / name).as_uri()))
        assert holds(opened(f"file://{place}/{name}"))


# -- addresses


@pytest.mark.parametrize("file", REMOTE_FILES)
def test_a_file_behind_an_address(server, file):
    assert holds(opened(f"{server.url}/{file}"))


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_behind_an_address(server, folder, end):
    assert holds(opened(f"{server.url}/{folder}{end}", FOLDERS[folder]))


def test_a_remote_tiff_is_read_by_range(tmp_path):
    """A slice of it takes a slice's bytes, not the file's."""
    volume = np.random.default_rng(0).integers(0, 250, (64, 256, 256), dtype="u1")
    tifffile.imwrite(tmp_path / "a.tif", volume, photometric="minisblack")
    with FaultyServer(tmp_path) as server:
        reader = opened(f"{server.url}/a.tif")
        assert np.array_equal(reader.read(Box((40, 0, 0), (41, 256, 256))), volume[40:41])
        assert server.bytes_sent < volume.nbytes / 4
        assert all(asked is not None for _, path, asked in server.log if path == "/a.tif")


@pytest.mark.parametrize("marker_reply", [404, 403, 410])
def test_markers_that_are_refused_are_absent(server, marker_reply):
    """403 is what a bucket says that does not list."""
    server.fail = lambda path, *_: None if path.endswith(".tif") else Fault(status=marker_reply)
    try:
        assert holds(opened(f"{server.url}/stack.tif"))
    finally:
        server.fail = lambda *_: None


def test_a_server_that_answers_anything_with_a_page(server):
    """A page is no marker: the file is found, and where there is none the page is said."""
    page = Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<!doctype html><p>Welcome")
    server.fail = lambda path, *_: None if path.endswith("stack.tif") else page
    try:
        assert holds(opened(f"{server.url}/stack.tif"))
        assert "a web page" in refusal(f"{server.url}/volume", Malformed)
    finally:
        server.fail = lambda *_: None


@pytest.mark.parametrize(
    ("prefix", "folder"),
    [("precomputed", "precomputed"), ("zarr", "v2"), ("zarr2", "v2"), ("zarr3", "v3"), ("n5", "n5")],
)
def test_an_address_that_says_what_it_is(server, place, prefix, folder):
    """As Neuroglancer writes it; then nothing else is looked for."""
    before = len(server.log)
    assert holds(opened(f"{prefix}://{server.url}/{folder}", FOLDERS[folder]))
    asked = {path.rpartition("/")[2] for _, path, _ in list(server.log)[before:]}
    assert ("info" in asked) == (prefix == "precomputed")
    assert holds(opened(f"{prefix}://file://{place}/{folder}", FOLDERS[folder]))


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize("prefix", ["", "precomputed://"])
def test_a_bucket_is_read_by_its_https_address(server, monkeypatch, scheme, prefix):
    """Without credentials."""
    asked = []
    monkeypatch.setattr(
        "em_assets.fetch.s3.https_url", lambda url: asked.append(url) or f"{server.url}/{url.rpartition('/')[2]}"
    )
    assert holds(opened(f"{prefix}{scheme}://bucket/precomputed"))
    assert asked == [f"{scheme}://bucket/precomputed"]


# -- the array inside


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize(("dataset", "step"), [(None, 1), ("0", 1), ("s0", 1), ("1", 2), ("s1", 2)], ids=str)
def test_a_level_by_its_path_or_number(place, server, version, dataset, step):
    for location in (place / version, f"{server.url}/{version}"):
        reader = opened(location, dataset)
        assert holds(reader, VOLUME[::step, ::step, ::step])
        assert reader.info.voxel_size_nm == (4.0 * step,) * 3


@pytest.mark.parametrize(("dataset", "nm"), [(None, 8.0), ("0", 8.0), ("1", 16.0), ("8.0x8.0x8.0", 8.0)])
def test_a_precomputed_level_by_its_key_or_number(place, dataset, nm):
    keys = [scale["key"] for scale in json.loads((place / "precomputed/info").read_text())["scales"]]
    dataset = keys[0] if dataset and "x" in dataset else dataset
    assert opened(place / "precomputed", dataset).info.voxel_size_nm == (nm,) * 3


def test_folders_above_a_volume_need_no_documents(place, tmp_path):
    """As in buckets, where only arrays have them; the group's levels count all the same."""
    for name in ("v3", "precomputed"):
        shutil.copytree(place / name, tmp_path / "em" / name)
    shutil.copytree(place / "n5/volume", tmp_path / "em/n5")
    with FaultyServer(tmp_path) as server:
        for root in (tmp_path, server.url):
            assert holds(opened(root, "em/precomputed"))
            assert holds(opened(root, "em/n5/s0"))
            assert holds(opened(root, "/em/v3/"))
            reader = opened(root, "em/v3/s1")
            assert (reader.info.voxel_size_nm, holds(reader, VOLUME[::2, ::2, ::2])) == ((8.0, 8.0, 8.0), True)


def test_an_array_of_an_hdf5_file(place, server):
    """On this machine or a server: of that one only the parts that are needed."""
    for root in (place, server.url):
        assert holds(opened(f"{root}/stack.h5", "volumes/raw"))


@pytest.mark.parametrize(
    ("folder", "dataset", "said"),
    [
        ("v2", "nothing", "v2/nothing is no Zarr array or group"),
        ("v3", "7", "v3/7 is no Zarr array or group"),
        ("n5", "volume/s7", "volume/s7"),
        ("precomputed", "2", "has 2 levels, 0 to 1, but not 2"),
        ("precomputed", "s0", r"info has no level 's0'; its levels are "),
        ("precomputed", "9" * 5000, "info has no level '999"),
    ],
)
def test_a_dataset_that_is_not_there_is_named(place, server, folder, dataset, said):
    """Never another one in its place; and remotely it is not the folder's address that is wrong."""
    for root in (place, server.url):
        assert said in refusal(f"{root}/{folder}", Mismatch, dataset)


# -- what is no volume


def png() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(VOLUME[0]).save(stream, "png")
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.tif", b"II*\0")
    return stream.getvalue()


ACCEPTED = "accepted are TIFF, DM3/DM4, MRC, HDF5 files, and Zarr, N5 or precomputed folders."
NO_VOLUME = {
    "B1 empty": (b"", Malformed, "is empty; get it again."),
    "B1 8 bytes of TIFF": (b"II*\0\x08\0\0\0", Malformed, "page"),
    "B1 web page": (b"\n <!DOCTYPE html><title>404</title>", Malformed, "is a web page (an error or login page"),
    "B1 PNG": (png(), Unsupported, f"is a PNG picture; {ACCEPTED}"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(99), Unsupported, f"is a JPEG picture; {ACCEPTED}"),
    "zip": (zipped(), Unsupported, f"is a zip archive, which must be unpacked first; {ACCEPTED}"),
    "gzip": (gzip.compress(b"II*\0"), Unsupported, f"is gzip-compressed, and must be unpacked first; {ACCEPTED}"),
    "XML": (b"\n<?xml version='1.0'?><a/>", Unsupported, f"is an XML document; {ACCEPTED}"),
    "JSON": (b'\n{"scales": []}', Unsupported, f"is a JSON document; {ACCEPTED}"),
    "text": (b"hello", Unsupported, "is not of a known format (it begins 68 65 6c 6c 6f);"),
    "one byte": (b"I", Unsupported, "is not of a known format (it begins 49);"),
}


@pytest.mark.parametrize(("data", "kind", "said"), NO_VOLUME.values(), ids=NO_VOLUME)
def test_b1_what_it_is_instead_is_said(tmp_path, data, kind, said):
    """On this machine, in a series and behind an address; the place is named."""
    for number in (1, 2):
        (tmp_path / f"a{number}.tif").write_bytes(data)
    file = tmp_path / "a1.tif"
    with FaultyServer(tmp_path) as server:
        for location in (file, f"{tmp_path}/a*.tif", f"{server.url}/a1.tif"):
            found = refusal(location, kind)
            assert (said if data or "://" not in str(location) else "has 0 bytes") in found
            assert "a1.tif" in found


@pytest.mark.parametrize(
    ("location", "kind", "said"),
    [
        pytest.param("nothing.tif", Unavailable, "nothing.tif could not be read (No such file", id="relative path"),
        pytest.param("{place}/nothing.tif", Unavailable, "nothing.tif could not be read (No such file", id="no file"),
        pytest.param("{place}/x/*.tif", Unavailable, "x/*.tif matches no file; correct the pattern", id="no match"),
        pytest.param("{place}/slices", Unsupported, "slices is a folder without any of zarr.json", id="no markers"),
        pytest.param("{place}/z*", Unavailable, "matches no file", id="pattern"),
        pytest.param("{place}/v*", Unavailable, "Is a directory", id="pattern of folders"),
        pytest.param("{url}/nothing.tif", NotThere, "nothing.tif does not exist (404", id="remote file"),
        pytest.param("precomputed://{url}/v3", NotThere, "v3/info does not exist (404", id="stated precomputed"),
        pytest.param("zarr://{url}/precomputed", NotThere, "precomputed is no Zarr array or group", id="stated zarr"),
        pytest.param("ftp://ftp.ebi.ac.uk/x.tif", Unsupported, "ftp:// addresses are not read; accepted", id="ftp"),
        pytest.param("javascript://x", Unsupported, "javascript:// addresses are not read", id="javascript"),
        pytest.param("precomputed://nothing", Unavailable, "nothing could not be read", id="stated, but no address"),
        pytest.param("http://127.0.0.1:1/a.tif", Unavailable, "127.0.0.1", id="nobody listens"),
        pytest.param("n" * 256, Unavailable, "could not be read (File name too long)", id="a name of 256 bytes"),
        pytest.param("n" * 256 + "*", Unavailable, "matches no file", id="a pattern of 257 bytes"),
        pytest.param("a\0b.tif", Unavailable, "'a\\x00b.tif' or the dataset's name has a NUL", id="NUL"),
        pytest.param("file:///a%00b*.tif", Unavailable, "has a NUL byte", id="NUL in a file address"),
        pytest.param("", Unsupported, "is a folder without any of", id="nothing at all"),  # the folder tests run in
    ],
)
def test_a_place_without_a_volume(place, server, location, kind, said):
    assert said in refusal(location.format(place=place, url=server.url), kind)


def test_what_opening_would_wait_for_is_refused(tmp_path):
    """A pipe that nobody writes to, as a file and as a marker document of a folder."""
    os.mkfifo(tmp_path / "info")
    assert "info is a pipe, socket or device" in refusal(tmp_path / "info", Unavailable)
    assert "info is a pipe, socket or device" in refusal(tmp_path, Unavailable)


def test_a_folder_that_may_not_be_entered_is_named(tmp_path):
    closed = tmp_path / "closed"
    (closed / "below").mkdir(parents=True)
    closed.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may enter everything
        os.seteuid(65534)
    try:
        assert "below could not be read (Permission denied)" in refusal(closed / "below", Unavailable)
        with pytest.raises(Unavailable, match=r"info could not be read \(Permission denied\)"):
            FolderClient().get(folder_url(closed / "info"), max_bytes=1)
    finally:
        os.seteuid(user)
        closed.chmod(0o700)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        pytest.param("n" * 256, Unavailable, r"could not be read \(File name too long\)", id="256 bytes"),
        pytest.param("n" * 253, NotThere, "is not there", id="253 bytes, but more with .gz"),
        pytest.param("a%00b", Unavailable, r"a\\0b could not be read", id="NUL"),
    ],
)
def test_a_name_that_no_file_can_have(tmp_path, name, kind, said):
    with pytest.raises(kind, match=said):
        FolderClient().get(f"{folder_url(tmp_path)}/{name}", max_bytes=1)
    with pytest.raises(kind, match=said):
        FolderClient().get_range(f"{folder_url(tmp_path)}/{name}", 0, 1)


def test_a_damaged_marker_is_not_passed_over(tmp_path):
    """What the folder says it is, it is: the document is named, not another format tried."""
    (tmp_path / "info").write_text("<html>Sign in</html>")
    assert "info is a web page or XML" in refusal(tmp_path, Malformed)
    (tmp_path / "info").write_text("{}")
    assert "info: type is absent" in refusal(tmp_path, Malformed)
    (tmp_path / "zarr.json").write_text("{")
    assert "zarr.json" in refusal(tmp_path, Malformed)
