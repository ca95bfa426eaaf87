"""The publishers beside the hemibrain: what each serves, read over the network by clients that are not ours."""

import ftplib
import gzip
import hashlib
import io
import re
import xml.etree.ElementTree as ET
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
import tifffile
import urllib3
import yaml

from em_assets.datasets.loading import load_spec
from em_assets.sample import cryoet, empiar, epfl, idr, openorganelle
from em_assets.sample.ftp import FtpServer
from em_assets.sample.origin import PUBLISHERS, Request
from em_assets.sample.publishing import Addresses
from em_assets.sample.server import OriginServer
from em_assets.sample.texture import draw
from em_assets.settings import PACKAGED_DATASETS

MODULES = {module.DATASET: module for module in (idr, empiar, epfl, openorganelle, cryoet)}
REQUEST = Request(seed=1, volume=None)


class Served:
    """The samples, served; their specs by name."""

    def __init__(self, folder, http, ftp):
        self.folder, self.http, self.ftp = folder, http, ftp
        self.specs = {}
        self.pool = urllib3.PoolManager(retries=False, timeout=10)

    def get(self, url, **headers):
        return self.pool.request("GET", url, headers=headers)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    facts = {name: module.write(folder / "origin", REQUEST) for name, module in MODULES.items()}
    with OriginServer(folder / "origin") as http, FtpServer(folder / "origin") as ftp:
        served = Served(folder / "origin", http, ftp)
        for name, module in MODULES.items():
            file = folder / f"{name}.yaml"
            file.write_text(yaml.safe_dump(module.spec(facts[name], Addresses(http.url, ftp.url))))
            served.specs[name] = load_spec(file)
        yield served
        served.pool.clear()


def over_ftp(url):
    parts = urlsplit(url)
    received = io.BytesIO()
    with ftplib.FTP(timeout=5) as client:
        client.connect(parts.hostname, parts.port)
        client.login()
        client.retrbinary(f"RETR {unquote(parts.path)}", received.write)
    return received.getvalue()


# All of them


@pytest.mark.parametrize("name", MODULES)
def test_nobody_can_take_a_sample_for_the_real_thing(served, name):
    """Words, rights and claims are the sample's, every address is the sample's, and the identity is another."""
    spec, real = served.specs[name], load_spec(PACKAGED_DATASETS / f"{name}.yaml")
    assert spec.title.startswith("SAMPLE") and "drew" in spec.description
    assert (spec.publisher.split("_")[0], spec.license, spec.doi) == ("sample", "CC0-1.0", "10.5072/em-assets-sample")
    assert (spec.organism, spec.sample, spec.instrument) == (None, None, None)
    assert not set(spec.claims) & set(real.claims)
    assert spec.identity() != real.identity()
    for volume in spec.volumes.values():
        assert volume.doi is None
    text = spec.model_dump_json()
    assert set(re.findall(r"(?:https?|ftp)://[^/\"]+", text)) <= {served.http.url, served.ftp.url}
    assert real.citation not in text
    assert served.get(spec.page_url).status == 200


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_another_seed_is_another_address_and_identity(served, name, tmp_path):
    """The path follows the content, so that a store can never take one sample's files for another's."""
    module, spec = MODULES[name], served.specs[name]
    documents = {}
    for seed in (1, 2):
        facts = module.write(tmp_path / str(seed), Request(seed=seed, volume=None))
        documents[seed] = module.spec(facts, Addresses("http://127.0.0.1:1", "ftp://127.0.0.1:2"))
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(documents[1]))
    assert load_spec(file).identity() == spec.identity()
    file.write_text(yaml.safe_dump(documents[2]))
    assert load_spec(file).identity() != spec.identity()
    assert bytes_of(tmp_path / "1") == {
        path: data for path, data in bytes_of(served.folder).items() if path_of(path, name)
    }


def bytes_of(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def path_of(path, name):
    """Whether a served file is of this publisher."""
    buckets = {"jrc_mus_nacc_2": "janelia-cosem-datasets", "cryoet_10000_ts_026": "cryoet-data-portal-public"}
    word = buckets.get(name, f"sample/{name.split('_')[0]}")
    return path.startswith(word)


@pytest.mark.parametrize("name", ["idr_9846137", "empiar_11759", "epfl_hippocampus"])
def test_every_file_is_served_with_the_size_and_digest_of_the_spec(served, name):
    """Over HTTP, from every mirror over FTP, and by ranges; the same keys are pinned as in the packaged spec."""
    spec, real = served.specs[name], load_spec(PACKAGED_DATASETS / f"{name}.yaml")
    assert list(spec.source.by_path()) == list(real.source.by_path())
    assert len(spec.source.mirrors) == len(real.source.mirrors)
    for path, file in spec.source.by_path().items():
        pinned = real.source.by_path()[path]
        for key in ("size_bytes", "checksum", "pixels_sha256"):
            assert (getattr(file, key) is None) == (getattr(pinned, key) is None), key
        reply = served.get(spec.source.file_url(path))
        assert reply.status == 200
        assert file.size_bytes in (None, len(reply.data))
        assert file.checksum in (None, f"md5:{hashlib.md5(reply.data).hexdigest()}")
        part = served.get(spec.source.file_url(path), Range="bytes=100-299")
        assert (part.status, part.data) == (206, reply.data[100:300])
    for mirror in spec.source.mirrors:
        assert over_ftp(spec.source.file_url(path, mirror)) == reply.data


@pytest.mark.parametrize("name", MODULES)
def test_every_document_answers(served, name):
    """With 200 and its content type, also after the addresses that hand out a cookie."""
    text = dict.fromkeys(("idr_study", "table"), "text/plain; charset=utf-8")
    bare = dict.fromkeys(("mrc_header", "mdoc", "tilt_angles", "xf"), "application/octet-stream")
    types = {"html": "text/html;charset=UTF-8", "empiar_xml": "application/xml", **text, **bare}
    wordless = {"table", "tilt_angles", "xf"}
    for document in served.specs[name].documents:
        for first in document.first:
            assert "sessionid" in served.get(first).headers["Set-Cookie"]
        reply = served.get(document.url)
        assert (reply.status, reply.headers["Content-Type"]) == (200, types.get(document.kind, "application/json"))
        has_words = document.kind not in wordless and document.path != "run_metadata.json"
        assert b"SAMPLE" in reply.data or not has_words


def test_every_dataset_has_several_shards(served):
    """Small, but nothing of the pipeline is left out; one bucket's has tens of partitions."""
    shards = {name: len(list(spec.shard_indices())) for name, spec in served.specs.items()}
    buckets = {"jrc_mus_nacc_2": 27, "cryoet_10000_ts_026": 8}
    assert shards == {"idr_9846137": 9, "empiar_11759": 9, "epfl_hippocampus": 24, **buckets}
    assert set(MODULES) | {"hemibrain_crop"} == set(PUBLISHERS)


# IDR


def test_idr_serves_one_volume_cut_two_ways(served):
    """tifffile reads xy pages and xz pages of the same voxels, as the spec's axes say."""
    source = served.specs["idr_9846137"].source
    volume = tifffile.imread(io.BytesIO(served.get(source.volume_url).data))
    np.testing.assert_array_equal(volume, draw(idr.SHAPE))
    (other,) = source.same_volume
    assert other.axes == "yzx"
    turned = tifffile.imread(io.BytesIO(served.get(source.file_url(other.files[0])).data))
    np.testing.assert_array_equal(turned.swapaxes(0, 1), volume)


def test_idr_replies_agree_with_the_file(served):
    """Three replies, each in its own words; nulls are there in one and left out in the other."""
    spec = served.specs["idr_9846137"]
    image, omero, annotations = (served.get(document.url).json() for document in spec.documents[:3])
    z, y, x = idr.SHAPE
    assert image["size"] == {"c": 1, "height": y, "t": 1, "width": x, "z": z}
    assert image["pixel_size"] == {"x": 0.02, "y": 0.02, "z": 0.02}
    assert image["meta"]["imageName"] == omero["data"]["Name"] == spec.source.volume.files[0]
    assert (image["id"], omero["data"]["@id"]) == (9846137, 9846137)
    pixels = omero["data"]["Pixels"]
    assert [pixels[f"Size{axis}"] for axis in "XYZ"] == [x, y, z]
    assert pixels["PhysicalSizeZ"] == {"Symbol": "µm", "Value": 0.02, "@type": "TBD#LengthI", "Unit": "MICROMETER"}
    assert None in image["meta"].values() and "null" not in served.get(spec.documents[1].url).data.decode()
    assert annotations["annotations"][0]["ns"] == "openmicroscopy.org/mapr/organism"
    other = spec.documents[2].url.replace("9846137", "1")
    assert served.get(other).json() == {"annotations": [], "experimenters": []}


def test_the_indexes_omit_a_file_that_is_there(served):
    """As one of the real host's backends did: IDR's second file, one of EMPIAR's slices."""
    for name, omitted in {"idr_9846137": 1, "empiar_11759": 7}.items():
        source = served.specs[name].source
        linked = set(re.findall(r'href="([^"?/]+)"', served.get(f"{source.url}/").data.decode()))
        paths = list(source.by_path())
        assert linked == set(paths) - {paths[omitted]}


# EMPIAR


def test_empiar_folder_has_eighteen_names(served):
    """Sixteen slices, the project, a sub-folder: FTP shows what the index omits."""
    (mirror,) = served.specs["empiar_11759"].source.mirrors
    parts = urlsplit(mirror)
    with ftplib.FTP(timeout=5) as client:
        client.connect(parts.hostname, parts.port)
        client.login()
        client.cwd(parts.path)
        names = client.nlst()
    assert len(names) == 18
    assert set(served.specs["empiar_11759"].source.by_path()) < set(names)


def test_empiar_slices_hold_the_drawn_pixels_where_their_headers_say(served):
    """The pinned digest is of the pixels, which begin elsewhere once the thumbnail has grown."""
    spec = served.specs["empiar_11759"]
    volume = draw(empiar.SHAPE)
    places = []
    for number, (path, file) in enumerate(list(spec.source.by_path().items())[:16]):
        raw = served.get(spec.source.file_url(path)).data
        pixels = volume[number].tobytes()
        places.append(raw.index(pixels))
        assert file.pixels_sha256 in (None, hashlib.sha256(pixels).hexdigest())
        assert raw[places[-1] - 24 : places[-1] - 12] == b"Data%%%%" + (3).to_bytes(4)
    grown = 4 * (383 * 384 - 192 * 192)
    assert places == [places[0]] * 10 + [places[0] + grown] * 6
    assert sum(file.pixels_sha256 is not None for file in spec.source.by_path().values()) == 5


def test_empiar_entry_is_wrong_as_the_real_one_is(served):
    """Width and height as texts and too large; counts and voxels as numbers; the XML says the same."""
    spec = served.specs["empiar_11759"]
    reply = served.get(spec.documents[0].url).json()
    assert list(reply) == ["EMPIAR-11759"]
    assert served.get(spec.documents[0].url.replace("EMPIAR-11759", "11759")).json() == reply
    (images,) = reply["EMPIAR-11759"]["imagesets"]
    assert (images["image_height"], images["image_width"]) == ("563", "561")
    assert (images["num_images_or_tilt_series"], images["pixel_width"]) == (16, 80.0)
    space = "{http://pdbe.org/empiar}"
    entry = ET.fromstring(served.get(spec.documents[1].url).data)
    assert entry.findtext(f"{space}imageSet/{space}dimensions/{space}imageWidth") == "561"
    assert entry.findtext(f"{space}imageSet/{space}directory") == "/data"


def test_empiar_project_is_gzipped_xml_that_names_the_slices(served):
    spec = served.specs["empiar_11759"]
    *slices, project = spec.source.by_path()
    root = ET.fromstring(gzip.decompress(served.get(spec.source.file_url(project)).data))
    assert [patch.get("file_path") for patch in root.iter("t2_patch")] == slices


# EPFL


@pytest.mark.slow
def test_epfl_stacks_are_the_volume_and_parts_of_it(served):
    """tifffile reads all five; the parts are cut from the first slices; the labels are 0 and 255 and fit the image."""
    source = served.specs["epfl_hippocampus"].source
    assert "/%20ElectronMicroscopy_Hippocampus" in source.url
    stacks = {path: tifffile.imread(io.BytesIO(served.get(source.file_url(path)).data)) for path in source.by_path()}
    volume = stacks["volumedata.tif"]
    np.testing.assert_array_equal(volume, draw(epfl.SHAPE))
    np.testing.assert_array_equal(stacks["training.tif"], volume[:33, :76, :102])
    np.testing.assert_array_equal(stacks["testing.tif"], volume[:33, 76:152, 102:204])
    for part in ("training", "testing"):
        labels, image = stacks[f"{part}_groundtruth.tif"], stacks[f"{part}.tif"]
        assert (labels.shape, set(np.unique(labels))) == (image.shape, {0, 255})
        assert image[labels == 255].mean() < image[labels == 0].mean() - 15  # mitochondria are darker


def test_epfl_layout_follows_the_real_arithmetic(served):
    """Page 0 takes an even number of pixels, an IFD, the strip tables and 15 bytes; every later one a byte more."""
    spec = served.specs["epfl_hippocampus"]
    z, y, x = epfl.SHAPE
    strips = -(-y // 4)
    first = y * x + (2 + 14 * 12 + 4) + 2 * 4 * strips + 15
    with tifffile.TiffFile(io.BytesIO(served.get(spec.source.volume_url).data)) as tiff:
        starts = [page.dataoffsets[0] for page in tiff.pages]
    assert starts == [8, *(8 + first + number * (first + 1) for number in range(z - 1))]
    assert spec.source.by_path()["volumedata.tif"].size_bytes == starts[-1] + first + 1


def test_epfl_page_has_raw_blanks_in_its_links(served):
    """Cleaned as a browser does, every link leads to a file of the spec; the page states the axes in its own order."""
    spec = served.specs["epfl_hippocampus"]
    page = served.get(spec.page_url).data.decode()
    assert "107x205x154 volume" in page
    links = re.findall(r'href="([^"]+)"', page)
    assert all(link.startswith(" ") and "/ ElectronMicroscopy" in link for link in links)
    found = {urljoin(spec.page_url, link.strip().replace(" ", "%20")) for link in links}
    assert found == {spec.source.file_url(path) for path in spec.source.by_path()}


# OpenOrganelle


def opened(served, group, level):
    """An array of the container, read by zarr-python from the bucket as any S3 client sees it."""
    import zarr
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    source = served.specs["jrc_mus_nacc_2"].source
    address = urlsplit(source.url)
    store = S3Store(
        address.netloc,
        prefix=address.path.strip("/"),
        endpoint=source.endpoint,
        region="us-east-1",
        skip_signature=True,
        client_options={"allow_http": True},
    )
    return zarr.open_group(ObjectStore(store, read_only=True), path=group, mode="r", zarr_format=2)[level]


def test_openorganelle_volume_is_read_from_the_bucket(served):
    """Signed 16 bit, sides rounded down, every level the mean of the finer one."""
    spec = served.specs["jrc_mus_nacc_2"]
    levels = [opened(served, spec.source.group, f"s{number}") for number in range(6)]
    assert [level.shape for level in levels] == [
        *((141, 315, 324), (70, 157, 162), (35, 78, 81), (17, 39, 40), (8, 19, 20), (4, 9, 10))
    ]
    voxels = levels[0][:]
    assert voxels.dtype == np.int16 and voxels.min() < 0 < voxels.max()
    np.testing.assert_array_equal(voxels, (draw(openorganelle.SHAPE).astype(int) - 140) * 97)
    block = voxels[:140, :314].reshape(70, 2, 157, 2, 162, 2).mean(axis=(1, 3, 5))
    np.testing.assert_array_equal(levels[1][:], np.floor(block))


def test_openorganelle_labels_lie_on_the_grid_of_s3(served):
    spec = served.specs["jrc_mus_nacc_2"]
    volume = spec.volumes["nuc"]
    nuclei = opened(served, volume.group, "s0")
    assert nuclei.shape == volume.shape == opened(served, spec.source.group, "s3").shape
    assert set(np.unique(nuclei[:])) == {0, 1, 2, 3}
    np.testing.assert_array_equal(opened(served, volume.group, "s1")[:], nuclei[:16:2, :38:2, ::2])


def test_openorganelle_has_the_attributes_and_objects_of_the_real_one(served):
    """Float noise in the scales, groups all the way down, nothing consolidated, no chunk missing."""
    spec = served.specs["jrc_mus_nacc_2"]
    address = urlsplit(spec.source.url)
    container = f"{spec.source.endpoint}/{address.netloc}{address.path}"
    group = f"{container}/{spec.source.group}"
    (multiscale,) = served.get(f"{group}/.zattrs").json()["multiscales"]
    transforms = [dataset["coordinateTransformations"] for dataset in multiscale["datasets"]]
    assert transforms[2][0]["scale"] == [11.840000000000002, 16.0, 16.0]
    assert transforms[2][1]["translation"] == [4.4399999999999995, 6.0, 6.0]
    assert tuple(transforms[0][0]["scale"]) == spec.voxel_size_nm
    for path in ("", "/recon-2", "/recon-2/em", "/recon-2/labels/inference/segmentations"):
        assert served.get(f"{container}{path}/.zgroup").json() == {"zarr_format": 2}
    missing = served.get(f"{container}/.zmetadata")
    assert (missing.status, ET.fromstring(missing.data).findtext("Code")) == (404, "NoSuchKey")
    keys = listed_keys(served, f"{address.path.strip('/')}/{spec.source.group}/")
    assert sum(re.search(r"/s0/\d+/\d+/\d+$", key) is not None for key in keys) == 3 * 5 * 6
    assert sum(key.endswith(".zarray") for key in keys) == 6


def listed_keys(served, prefix):
    url = f"{served.http.url}/janelia-cosem-datasets?list-type=2&prefix={prefix}"
    return re.findall(r"<Key>([^<]+)</Key>", served.get(url).data.decode())


def test_the_four_samples_are_small(served):
    """Beside the hemibrain's 30 MB: a sample is written in seconds and forgotten."""
    assert sum(len(data) for data in bytes_of(served.folder).values()) < 60e6
