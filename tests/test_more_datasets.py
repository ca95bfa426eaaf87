"""A dataset is a YAML: each spec of `em_assets/datasets/more/` stores a small volume in its publisher's layout.

The volumes are written by other libraries, or byte by byte, and lie at the publisher's own paths on a server here. The
specs are the packaged ones; only hosts, shapes and boxes are others.
"""

import json
import struct
from urllib.parse import urlsplit

import numcodecs
import numpy as np
import pytest
import yaml
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from em_assets.catalog.claims import read_claims
from em_assets.datasets.loading import load_spec, load_specs
from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.fetch.client import FolderClient, folder_url
from em_assets.fetch.listings import compare_with_count, parse_index
from em_assets.formats.zarr import open_zarr
from em_assets.pipeline import describe_dataset
from em_assets.records import DatasetFolder
from em_assets.sample.pages import BUCKET, write_autoindex, write_json_page
from em_assets.sample.server import OriginServer
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.standardize.opening import open_level
from em_assets.store import open_store
from em_assets.volume import Box
from small import materialize, quick_settings

MORE = PACKAGED_DATASETS / "more"
NAMES = ["empiar_10392", "empiar_13192_carotid2", "fib25", "idr_6001240", "jrc_hela_2_n5"]


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


@pytest.fixture
def server(site):
    with OriginServer(site) as running:
        yield running


def at_publisher(site, name):
    """Where the volume of a spec lies below the served folder: the path of its address."""
    source = yaml.safe_load((MORE / f"{name}.yaml").read_text())["source"]
    return site / urlsplit(source["url"]).path.lstrip("/") / source.get("group", "")


def nearby(tmp_path, server, name, **changes):
    """The packaged spec with the server's host in every address of its publisher, and these changes."""

    def moved(address):
        return server.url + urlsplit(address).path

    document = yaml.safe_load((MORE / f"{name}.yaml").read_text())
    source = document["source"]
    source["url"] = moved(source["url"])
    source |= {"mirrors": []} if "mirrors" in source else {}
    for entry in document.get("documents", []):
        entry["url"] = moved(entry["url"])
    for key, value in changes.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return load_spec(file)


def stored(tmp_path, spec):
    """(record, level 0 as zarr-python reads it) of the materialized dataset."""
    settings = quick_settings(tmp_path / "data")
    record, _ = materialize(spec, settings)
    assert record.status == "complete"
    return record, open_level(DatasetFolder(open_store(settings.root), spec.name))[:]


def texture(shape, dtype):
    """Every voxel another value than its neighbours, none 0."""
    return (np.arange(1, np.prod(shape) + 1).reshape(shape) % 251 + 1).astype(dtype)


def datasets(*scales):
    """The levels of an OME-NGFF image."""
    transformations = [[{"type": "scale", "scale": list(scale)}] for scale in scales]
    return [{"path": str(n), "coordinateTransformations": each} for n, each in enumerate(transformations)]


# -- the specs


def test_they_load_and_are_not_loaded_by_default():
    assert list(load_specs([MORE])) == NAMES
    assert not set(NAMES) & set(load_specs([PACKAGED_DATASETS]))


@pytest.mark.parametrize("name", NAMES)
def test_they_are_small(name):
    spec = load_spec(MORE / f"{name}.yaml")
    assert np.prod(spec.shape) * np.dtype(spec.dtype).itemsize < 300e6
    assert len(list(spec.shard_indices())) <= 27


@pytest.mark.parametrize("name", NAMES)
def test_they_say_how_sure_they_are(name):
    """What a run depends on and a person relies on has a note; a note is about a key that there is."""
    document = yaml.safe_load((MORE / f"{name}.yaml").read_text())
    assert {"license", "citation", "organism", "expected.source_shape", "expected.voxel_size_nm"} <= set(
        document["notes"]
    )
    for key in document["notes"]:
        place = document
        for part in key.split("."):
            assert part in place, f"{key} of the notes is nowhere in the spec"
            place = place[part]


# -- jrc_hela-2: N5, whose x, y, z order ends in the reader


def write_hela(folder, volume):
    """Levels s0 and s1 by tensorstore, with the attributes that COSEM puts on arrays and group."""
    ts = pytest.importorskip("tensorstore")
    for level, array in enumerate([volume, volume[::2, ::2, ::2]]):
        metadata = {
            "dimensions": array.shape[::-1],
            "blockSize": [32, 24, 16],
            "dataType": "uint16",
            "compression": {"type": "gzip"},
        }
        spec = {"driver": "n5", "kvstore": f"file://{folder}/s{level}/", "metadata": metadata}
        ts.open(spec, create=True).result()[...] = array.T
        sizes = [5.24 * 2**level, 4.0 * 2**level, 4.0 * 2**level]
        shift = [(size - first) / 2 for size, first in zip(sizes, [5.24, 4.0, 4.0], strict=True)]
        transform = {"axes": ["z", "y", "x"], "units": ["nm"] * 3, "scale": sizes, "translate": shift}
        file = folder / f"s{level}/attributes.json"
        resolution = {"dimensions": sizes[::-1], "unit": "nm"}
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"transform": transform, "pixelResolution": resolution})
        )
    levels = [{"path": f"s{n}"} for n in range(2)]
    (folder / "attributes.json").write_text(json.dumps({"multiscales": [{"datasets": levels}]}))


@pytest.mark.parametrize("by", ["http", "s3"])
def test_the_sizes_of_n5_are_turned_around(tmp_path, site, server, by):
    """Sides, blocks and voxel sizes differ along every axis where that is possible; the box is z, y, x."""
    volume = texture((50, 70, 120), "uint16") + np.uint16(300)
    write_hela(at_publisher(site / "janelia-cosem-datasets", "jrc_hela_2_n5"), volume)
    (site / "janelia-cosem-datasets" / BUCKET).touch()
    path = "janelia-cosem-datasets/jrc_hela-2/jrc_hela-2.n5"
    address = {"url": f"{server.url}/{path}"} if by == "http" else {"url": f"s3://{path}", "endpoint": server.url}
    spec = nearby(
        tmp_path,
        server,
        "jrc_hela_2_n5",
        source=address,
        crop={"shape": [20, 30, 40], "origin": [17, 25, 70], "snap": True},
        expected={"source_shape": [50, 70, 120], "chunk": [16, 24, 32]},
        output={"shard": [16, 32, 32], "chunk": [16, 16, 16]},
    )
    record, voxels = stored(tmp_path, spec)
    np.testing.assert_array_equal(voxels, volume[16:36, 24:54, 64:104])  # snapped to the blocks
    assert voxels.dtype == np.uint16
    assert record.source_box == Box((16, 24, 64), (36, 54, 104))
    assert record.corner_nm == (-2.62, -2.0, -2.0)  # COSEM places centres


def test_n5_sizes_in_their_own_order_are_refused(tmp_path, site, server):
    """Whoever copies x, y, z from `dimensions` into a spec is told."""
    write_hela(at_publisher(site, "jrc_hela_2_n5"), texture((50, 70, 120), "uint16"))
    spec = nearby(
        tmp_path,
        server,
        "jrc_hela_2_n5",
        source={"url": f"{server.url}/jrc_hela-2/jrc_hela-2.n5"},
        crop={"shape": [20, 30, 40], "origin": [0, 0, 0]},
        expected={"source_shape": [120, 70, 50]},
    )
    with pytest.raises(Mismatch, match=r"shape is \(50, 70, 120\), the spec expects \(120, 70, 50\)"):
        materialize(spec, quick_settings(tmp_path / "data"))


# -- FIB-25: unsharded precomputed


def write_fib25(folder, size, offset, encoding):
    """Two scales by tensorstore, the second rounded down as FIB-25's are; (z, y, x) as tensorstore reads the first."""
    ts = pytest.importorskip("tensorstore")
    z, y, x = np.mgrid[: size[2], : size[1], : size[0]]
    smooth = (125 + 40 * np.sin(x / 9) + 30 * np.cos(y / 7) + 20 * np.sin(z / 5)).astype(np.uint8).T
    for level, array in enumerate([smooth, smooth[1::2, 1::2, 1::2]]):
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": f"file://{folder}/",
            "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 1},
            "scale_metadata": {
                "size": array.shape,
                "voxel_offset": [n // 2**level for n in offset],
                "resolution": [8 * 2**level] * 3,
                "encoding": encoding,
                "chunk_size": [32, 32, 32],
            },
        }
        opened = ts.open(spec, create=True).result()
        opened[..., 0] = array
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}/", "scale_index": 0}
    return ts.open(spec).result()[..., 0].read().result().T


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("offset", [(0, 0, 0), (64, 32, 96), (7, 3, 11)], ids=str)
def test_the_box_is_in_the_publishers_voxels(tmp_path, site, server, encoding, offset):
    """A voxel offset (x, y, z) moves the box with it, whether or not the offset is on a multiple of the chunk."""
    volume = write_fib25(at_publisher(site, "fib25"), (75, 61, 43), offset, encoding)
    first = offset[::-1]
    spec = nearby(
        tmp_path,
        server,
        "fib25",
        crop={
            "shape": [11, 29, 40],
            "origin": [a + b for a, b in zip(first, (33, 32, 35), strict=True)],
            "snap": True,
        },
        expected={"source_shape": [43, 61, 75]},
        output={"shard": [16, 32, 32], "chunk": [16, 16, 16]},
    )
    record, voxels = stored(tmp_path, spec)
    np.testing.assert_array_equal(voxels, volume[32:43, 32:61, 32:72])  # snapped to the chunks
    assert record.source_box.start == tuple(a + 32 for a in first)


# -- EMPIAR-13192: the microscope's own TIFFs, and a listing that leaves one out

CAROTID = "Stalker_SBF-SEM/Carotid2"
ROWS, COLUMNS = 30, 46
STRIP_ROWS = 2


def fei_tiff(page, number):
    """One image from byte 8 in strips of two rows, then the only directory, then what does not fit into it."""
    rows, columns = page.shape
    strips = rows // STRIP_ROWS
    settings = (
        "[System]\r\nType=SEM\r\nSystemType=Volumescope\r\n\r\n"
        f"[Image]\r\nResolutionX={columns}\r\nResolutionY={rows}\r\n\r\n"
        "[Scan]\r\nPixelWidth=6.5e-008\r\nPixelHeight=6.5e-008\r\n\x00"
    )
    taken = f"2022-05-24T13:{number % 60:02d}:12"
    xml = f"<Metadata><Acquisition><AcquisitionDatetime>{taken}</AcquisitionDatetime></Acquisition></Metadata>\x00"
    ascii_, short, long_, rational = 2, 3, 4, 5
    tags = [
        (254, long_, struct.pack("<I", 0)),
        (256, long_, struct.pack("<I", columns)),
        (257, long_, struct.pack("<I", rows)),
        (258, short, struct.pack("<H", 8)),
        (259, short, struct.pack("<H", 1)),
        (262, short, struct.pack("<H", 1)),
        (273, long_, struct.pack(f"<{strips}I", *(8 + k * STRIP_ROWS * columns for k in range(strips)))),
        (277, short, struct.pack("<H", 1)),
        (278, long_, struct.pack("<I", STRIP_ROWS)),
        (279, long_, struct.pack(f"<{strips}I", *[STRIP_ROWS * columns] * strips)),
        (282, rational, struct.pack("<II", 72, 1)),
        (283, rational, struct.pack("<II", 72, 1)),
        (296, short, struct.pack("<H", 2)),
        (34682, ascii_, settings.encode()),
        (34683, ascii_, xml.encode()),
    ]
    item_bytes = {ascii_: 1, short: 2, long_: 4, rational: 8}
    directory_at = 8 + page.size
    entries, tail, tail_at = b"", b"", directory_at + 2 + 12 * len(tags) + 4
    for tag, kind, raw in tags:
        entries += struct.pack("<HHI", tag, kind, len(raw) // item_bytes[kind])
        if len(raw) <= 4:
            entries += raw.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", tail_at + len(tail))
            tail += raw + b"\0" * (len(raw) % 2)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", directory_at) + page.tobytes() + directory + tail


@pytest.fixture
def carotid(site):
    """Ten slices, 1232 to 1241, of which the spec names eight; one is left out of the listing."""
    tifffile = pytest.importorskip("tifffile")
    data = at_publisher(site, "empiar_13192_carotid2")
    folder = data / CAROTID
    folder.mkdir(parents=True)
    volume = texture((10, ROWS, COLUMNS), "uint8")
    for number, page in enumerate(volume, start=1232):
        file = folder / f"Carotid2_Z{number:04d}.tif"
        file.write_bytes(fei_tiff(page, number))
        with tifffile.TiffFile(file) as opened:  # another reader takes the layout for what it is meant to be
            np.testing.assert_array_equal(opened.asarray(), page)
            assert len(opened.pages) == 1
            assert opened.fei_metadata["Scan"]["PixelWidth"] == 6.5e-08
    write_autoindex(folder, omit="Carotid2_Z1236.tif")
    entry = {"imagesets": [{"directory": f"data/{CAROTID}", "num_images_or_tilt_series": 10, "pixel_width": 650.0}]}
    write_json_page(site / "empiar/api/entry/EMPIAR-13192", {"EMPIAR-13192": entry})
    return volume


def carotid_spec(tmp_path, server, **changes):
    shape = {"source_shape": [8, ROWS, COLUMNS]}
    crop = {"shape": [8, 16, 20], "origin": [0, 7, 13]}
    output = {"shard": [8, 16, 16], "chunk": [8, 8, 8]}
    return nearby(
        tmp_path, server, "empiar_13192_carotid2", **{"expected": shape, "crop": crop, "output": output} | changes
    )


def test_a_slice_that_the_listing_lacks_is_received(tmp_path, server, carotid):
    """Names come from the spec, so what a listing leaves out is asked for; what no volume needs is not."""
    page = server.find(f"/empiar/world_availability/13192/data/{CAROTID}/").read_bytes()
    listed = [entry.name for entry in parse_index(page, f"{server.url}/")]
    expected = [f"Carotid2_Z{number}.tif" for number in range(1232, 1242)]
    assert compare_with_count(listed, 10, expected).lacking == ("Carotid2_Z1236.tif",)
    _, voxels = stored(tmp_path, carotid_spec(tmp_path, server))
    np.testing.assert_array_equal(voxels, carotid[1:9, 7:23, 13:33])
    asked = {path.rpartition("/")[2] for _, path, _ in server.log if path.endswith(".tif")}
    assert asked == {f"Carotid2_Z{number}.tif" for number in range(1233, 1241)}


def test_files_are_kept_below_their_own_folders(tmp_path, server, carotid):
    stored(tmp_path, carotid_spec(tmp_path, server))
    kept = tmp_path / "data/empiar_13192_carotid2/original" / CAROTID
    assert kept.joinpath("Carotid2_Z1236.tif").read_bytes() == fei_tiff(carotid[4], 1236)


def test_the_settings_behind_the_pixels_become_claims(tmp_path, server, carotid):
    """The pixel size is in metres there; the entry says angstrom. Both are kept as they were said."""
    spec = carotid_spec(tmp_path, server)
    settings = quick_settings(tmp_path / "data")
    materialize(spec, settings)
    store = open_store(settings.root)
    describe_dataset(spec, settings, store, fetch=False)
    claims = read_claims(DatasetFolder(store, spec.name))
    said = {(row["document"], row["key"]): row for row in claims.to_pylist()}
    first = f"original/{CAROTID}/Carotid2_Z1233.tif"
    assert said[first, "/0/FEI_HELIOS/Scan/PixelWidth"]["value_text"] == "6.5e-008"
    acquired = said[first, "/0/FEI_TITAN/Metadata/Acquisition/AcquisitionDatetime"]
    assert acquired["value_text"] == "2022-05-24T13:33:12"
    stated = said["documents/entry.json", "/EMPIAR-13192/imagesets/0/pixel_width"]
    assert (stated["value_number"], stated["unit"]) == (650.0, "angstrom")


def test_the_print_resolution_is_no_voxel_size(tmp_path, server, carotid):
    """72 pixels per inch are 0.35 mm; the spec's size stands."""
    record, _ = stored(tmp_path, carotid_spec(tmp_path, server))
    assert record.voxel_size_nm == (200.0, 65.0, 65.0)


def test_slices_out_of_order_are_refused(tmp_path, site, server, carotid):
    """The time of acquisition rises with the number, or the names are wrong."""
    folder = at_publisher(site, "empiar_13192_carotid2") / CAROTID
    (folder / "Carotid2_Z1235.tif").write_bytes(fei_tiff(carotid[3], 1250))
    with pytest.raises(Malformed, match=r"Carotid2_Z1235.tif and Carotid2_Z1236.tif .* their acquisition time"):
        materialize(carotid_spec(tmp_path, server), quick_settings(tmp_path / "data"))


# -- EMPIAR-10392: Zarr v3, five axes, shards larger than a plane


def write_schizont(folder, volume, unit=None):
    """Three levels by zarr-python, (t, c, z, y, x), sharded as the real ones; every size 1, without a unit."""
    root = zarr.open_group(str(folder), mode="w", zarr_format=3)
    for level in range(3):
        array = volume[None, None, :, :: 2**level, :: 2**level]
        codecs = [BytesCodec(), ZstdCodec(level=3)]
        shards = ShardingCodec(
            chunk_shape=(1, 1, 1, 256, 256), codecs=codecs, index_codecs=[BytesCodec(), Crc32cCodec()]
        )
        written = zarr.create(
            store=str(folder),
            path=str(level),
            shape=array.shape,
            dtype=array.dtype,
            zarr_format=3,
            chunks=(1, 1, 1, 2048, 2048),
            codecs=[shards],
            dimension_names=list("tczyx"),
            fill_value=0,
        )
        written[...] = array
    kinds = {"t": "time", "c": "channel"}
    axes = [{"name": axis, "type": kinds.get(axis, "space")} for axis in "tczyx"]
    axes = [axis | ({"unit": unit} if unit and axis["type"] == "space" else {}) for axis in axes]
    scales = [(1.0, 1.0, 1.0, 2.0**level, 2.0**level) for level in range(3)]
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets(*scales)}]}


def schizont_spec(tmp_path, server, shape):
    output = {"shard": [16, 256, 256], "chunk": [16, 64, 64]}
    return nearby(tmp_path, server, "empiar_10392", expected={"source_shape": list(shape)}, output=output)


def test_five_axes_become_three(tmp_path, site, server):
    """Shards of 2048 x 2048 hold planes of 300 x 280: whole, in chunks of which the last are cut."""
    volume = np.random.default_rng(7).normal(0, 1e3, (18, 300, 280)).astype(np.float32)
    write_schizont(at_publisher(site, "empiar_10392"), volume)
    record, voxels = stored(tmp_path, schizont_spec(tmp_path, server, volume.shape))
    np.testing.assert_array_equal(voxels, volume)
    assert voxels.dtype == np.float32
    assert record.voxel_size_nm == (20.0, 10.0, 10.0)  # a scale without a unit contradicts none
    assert record.additional_metadata["documents_missing"].keys() == {"documents/entry.json"}  # and stops nothing


def test_a_size_that_was_never_measured_stops_the_run(tmp_path, site, server):
    """If the container gives its 1 a unit of length, that is another voxel size, and a person decides."""
    write_schizont(at_publisher(site, "empiar_10392"), texture((2, 20, 20), "float32"), unit="micrometer")
    with pytest.raises(Mismatch, match=r"voxel size in nm is \(1000.0, 1000.0, 1000.0\), the spec expects \(20.0,"):
        materialize(schizont_spec(tmp_path, server, (2, 20, 20)), quick_settings(tmp_path / "data"))


# -- IDR 6001240: two channels, of which one is the volume

MICROMETRES = (0.5002025531914894, 0.3603981534640209, 0.3603981534640209)


def write_blastocyst(folder, volume):
    """Three levels by zarr-python, (c, z, y, x), of which y and x are halved, rounded down; a chunk is a plane."""
    root = zarr.open_group(str(folder), mode="w", zarr_format=2)
    z, y, x = MICROMETRES
    scales = []
    for level in range(3):
        step = 2**level
        array = volume[..., : volume.shape[2] // step * step : step, : volume.shape[3] // step * step : step]
        written = root.create_array(
            str(level),
            shape=array.shape,
            dtype=array.dtype,
            chunks=(1, 1, *array.shape[2:]),
            compressors=numcodecs.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE),
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        written[...] = array
        scales.append((1.0, z, y * step, x * step))
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    root.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets(*scales)}]
    root.attrs["omero"] = {"channels": [{"label": "LaminB1"}, {"label": "Dapi"}]}


@pytest.fixture
def blastocyst(site):
    volume = texture((2, 21, 45, 39), "uint16")
    volume[1] += 1000
    write_blastocyst(at_publisher(site, "idr_6001240"), volume)
    return volume


def blastocyst_spec(tmp_path, server, **source):
    expected = {"source_shape": [21, 45, 39], "chunk": [1, 45, 39]}
    output = {"shard": [16, 64, 64], "chunk": [16, 32, 32]}
    return nearby(tmp_path, server, "idr_6001240", source=source, expected=expected, output=output)


@pytest.mark.parametrize("channel", [0, 1])
def test_one_channel_is_stored_and_the_other_not_fetched(tmp_path, server, blastocyst, channel):
    record, voxels = stored(tmp_path, blastocyst_spec(tmp_path, server, channel=channel))
    np.testing.assert_array_equal(voxels, blastocyst[channel])
    assert record.voxel_size_nm == (500.2025531914894, 360.3981534640209, 360.3981534640209)
    place = "/idr/zarr/v0.4/idr0062A/6001240.zarr/0/"
    planes = [path.removeprefix(place) for _, path, _ in server.log if path.startswith(place) and "." not in path[-8:]]
    assert sorted(planes) == sorted(f"{channel}/{z}/0/0" for z in range(21))  # each once


@pytest.mark.parametrize(
    ("channel", "refusal"),
    [
        (None, (Unsupported, r"has 2 channels, .* such as channel: 0 \(they are 0 to 1\)")),
        (2, (Mismatch, r"has 2 channels, so there is no channel 2; choose one of 0 to 1")),
    ],
    ids=["none chosen", "not there"],
)
@pytest.mark.usefixtures("blastocyst")
def test_a_channel_is_never_guessed(tmp_path, server, channel, refusal):
    error, words = refusal
    with pytest.raises(error, match=words):
        materialize(blastocyst_spec(tmp_path, server, channel=channel), quick_settings(tmp_path / "data"))


# -- one channel of any array


def write_channels(folder, chunks, shards=None, absent=()):
    """(c, z, y, x) by zarr-python, fill value 9; `absent` are stored objects to delete, by their paths."""
    volume = texture((3, 10, 12, 14), "uint16")
    array = zarr.create_array(
        str(folder), shape=volume.shape, dtype=volume.dtype, chunks=chunks, shards=shards, fill_value=9
    )
    array[...] = volume
    for path in absent:
        (folder / path).unlink()
    return volume


def channel_of(folder, channel):
    settings = Settings(workers=2)
    return open_zarr(folder_url(folder), None, FolderClient(), settings).select_channel(channel)


def region_of(reader, box):
    (outcome,) = reader.map_regions([box], lambda region: region)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


@pytest.mark.parametrize("channel", range(3))
@pytest.mark.parametrize(
    ("chunks", "shards"),
    [((1, 4, 5, 6), None), ((2, 4, 5, 6), None), ((3, 4, 5, 6), None), ((1, 2, 4, 7), (2, 4, 8, 14))],
    ids=["chunks of one channel", "chunks of two", "chunks of all", "shards of two"],
)
def test_a_channel_reads_as_a_volume_without_one(tmp_path, chunks, shards, channel):
    """Voxels, and the samples by which a second decoder controls them."""
    volume = write_channels(tmp_path / "a", chunks, shards)[channel]
    reader = channel_of(tmp_path / "a", channel)
    assert (reader.info.shape, reader.info.axes) == ((10, 12, 14), "zyx")
    np.testing.assert_array_equal(reader.read(), volume)
    box = Box((1, 3, 2), (9, 11, 14))
    region = region_of(reader, box)
    np.testing.assert_array_equal(region.voxels, volume[box.slices])
    assert region.samples
    assert all(sample.value == volume[sample.position] for sample in region.samples)


def test_a_channel_of_every_level(tmp_path):
    """Another level of a chosen channel is that channel's, too."""
    volume = texture((2, 4, 20, 20), "uint16")
    write_blastocyst(tmp_path / "a", volume)
    reader = channel_of(tmp_path / "a", 1)
    np.testing.assert_array_equal(reader.at_level("1").read(), volume[1, :, ::2, ::2])


@pytest.mark.parametrize("channel", range(3))
def test_what_is_missing_of_another_channel_is_not_missing(tmp_path, channel):
    """In chunks of two channels an object is gone of 0 and 1 (the lower half of x), and one of 2 (the upper)."""
    volume = write_channels(tmp_path / "a", (2, 10, 12, 7), absent=["c/0/0/0/0", "c/1/0/0/1"])
    region = region_of(channel_of(tmp_path / "a", channel), Box((0, 0, 0), (10, 12, 14)))
    gone = Box((0, 0, 0), (10, 12, 7)) if channel < 2 else Box((0, 0, 7), (10, 12, 14))
    expected = volume[channel].copy()
    expected[gone.slices] = 0
    np.testing.assert_array_equal(region.voxels, expected)
    assert region.missing == (gone,)
