"""`em-assets add`: what is asked of each publisher, what the written spec says, and what is left for a person."""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_assets import cli
from em_assets.adding.chunked import draft_chunked, draft_precomputed
from em_assets.adding.draft import Draft, clean, slug, write_draft
from em_assets.adding.empiar import Choice, draft_empiar
from em_assets.adding.files import ranges_of
from em_assets.adding.idr import draft_idr
from em_assets.adding.openorganelle import draft_openorganelle
from em_assets.adding.volume import Wishes, output_for
from em_assets.datasets.fields import ITEM_BYTES, NAME_PATTERN
from em_assets.datasets.loading import load_spec, load_specs
from em_assets.datasets.source import expand
from em_assets.datasets.spec import Output
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch.http import HttpClient
from em_assets.formats._bytes import RemoteBytes
from em_assets.sample import empiar, idr, openorganelle
from em_assets.sample.origin import Request
from em_assets.sample.pages import write_autoindex, write_json_page
from em_assets.sample.publishing import Addresses
from em_assets.sample.server import OriginServer
from em_assets.sources import open_source
from em_assets.sources.files import open_main
from em_assets.volume import Box
from small import PATH, SOURCE_SHAPE, publish, quick_settings

SAMPLES = {"empiar": empiar, "idr": idr, "openorganelle": openorganelle}
WHOLE = Wishes()
ALL = Choice()


class Served:
    """The samples of three publishers and a precomputed volume."""

    def __init__(self, folder, url, facts):
        self.folder, self.url, self.facts = folder, url, facts

    def root(self, name):
        return f"{self.url}/{self.facts[name]['root']}"

    def spec(self, name):
        return SAMPLES[name].spec(self.facts[name], Addresses(self.url, "ftp://127.0.0.1:1"))

    @property
    def precomputed(self):
        return f"{self.url}/{PATH}"

    @property
    def bucket(self):
        return f"s3://{self.facts['openorganelle']['bucket']}/{self.facts['openorganelle']['key'].split('/')[0]}"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("origin")
    facts = {name: module.write(folder, Request(seed=1, volume=None)) for name, module in SAMPLES.items()}
    publish(folder)
    with OriginServer(folder) as server:
        yield Served(folder, server.url, facts)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in: its settings."""
    monkeypatch.chdir(tmp_path)
    return quick_settings(tmp_path / "data")


def written(draft, place, **options):
    """The spec, from the file, through the loader that everything else uses."""
    file = write_draft(draft, place, **{"name": None, "output": None, "force": False, **options})
    return load_spec(file)


def todo_lines(file):
    return [line for line in Path(file).read_text().splitlines() if line.startswith("# TODO(person)")]


# EMPIAR


def test_empiar_the_files_win_over_the_api(served, place):
    """Sizes, shape and voxel size are the files' own; width and height of the API are kept as claims (F19 too)."""
    spec = written(draft_empiar("EMPIAR-11759", ALL, WHOLE, place, server=served.root("empiar")), place)
    known = {p: f for p, f in served.facts["empiar"]["files"].items() if p.endswith(".dm3")}
    assert {path: file.size_bytes for path, file in spec.source.by_path().items()} == {
        path: facts["size_bytes"] for path, facts in known.items()
    }
    assert spec.shape == empiar.SHAPE and spec.dtype == "uint8"
    assert spec.voxel_size_nm == (50.0, 7.998250424861908, 7.998250424861908)
    assert {claim.key: claim.value for claim in spec.claims} == {"image_height": "563", "image_width": "561"}
    assert spec.license == "CC0-1.0" and spec.publisher == "empiar" and spec.source_id == "EMPIAR-11759"
    assert spec.doi == "10.5072/em-assets-sample" and spec.modality == "SBF-SEM"
    assert "Sample A" in spec.citation and [document.kind for document in spec.documents] == ["empiar_entry"]


def test_empiar_what_the_listing_lacks_is_asked_for(served, place):
    """F19: the folder's index omits a slice that the server gives: it is in the spec, and that is said."""
    draft = draft_empiar("11759", ALL, WHOLE, place, server=served.root("empiar"))
    omitted = "F57-8_test1_3VBSED_slice_0007.dm3"
    assert any(omitted in line for line in draft.found)
    spec = written(draft, place)
    assert omitted in spec.source.by_path() and omitted in spec.notes["source.files"]


def test_empiar_a_written_spec_opens_what_it_names(served, place):
    """The spec's own reader finds what the spec expects: nothing between asking and fetching is lost."""
    spec = written(draft_empiar("11759", ALL, WHOLE, place, server=served.root("empiar")), place)
    client = HttpClient(place)
    reader = open_main(spec, lambda path: RemoteBytes(spec.source.file_url(path), client), place)
    assert reader.info.shape == spec.shape
    assert reader.read(Box((10, 0, 0), (11, 2, 3))).shape == (1, 2, 3)


def test_empiar_the_first_files_only(served, place):
    """--max-files cuts the volume, too."""
    spec = written(draft_empiar("11759", Choice(max_files=5), WHOLE, place, server=served.root("empiar")), place)
    assert spec.shape == (5, *empiar.SHAPE[1:]) and len(spec.source.by_path()) == 5


def test_empiar_a_pattern_that_fits_nothing_shows_what_there_is(served, place):
    """The sentence names files of the folder."""
    with pytest.raises(Mismatch, match=r"no file fits '\*\.tif'; there are F57-8_test1"):
        draft_empiar("11759", Choice(files="*.tif"), WHOLE, place, server=served.root("empiar"))


@pytest.mark.parametrize("accession", ["", "abc", "EMPIAR-", "../11759", "11759/..", "EMPIAR-011759"])
def test_empiar_an_odd_accession_is_refused_before_anything_is_asked(place, accession):
    """It becomes part of an address."""
    with pytest.raises(Mismatch, match="no accession of EMPIAR"):
        draft_empiar(accession, ALL, WHOLE, place, server="http://127.0.0.1:1")


FEI_TEXT = "[User]\r\nDate=11/02/2020\r\n[Scan]\r\nPixelWidth=6.5e-08\r\nPixelHeight=6.5e-08\r\n"


def write_entry(folder, number, imagesets, **values):
    entry = {"title": "A vessel: carotid #2", "authors": [], "imagesets": imagesets, **values}
    write_json_page(folder / f"empiar/api/entry/EMPIAR-{number}", {f"EMPIAR-{number}": entry})


def write_slices(folder, number, directory, count, name="Carotid2_Z{:04d}.tif"):
    """One TIFF per slice, the pixel size in FEI's tag, an index without the third."""
    place = folder / f"empiar/world_availability/{number}/{directory}"
    place.mkdir(parents=True)
    for z in range(1, count + 1):
        image = np.full((6, 9), z % 256, np.uint8)
        tags = [(34682, "s", 0, FEI_TEXT, True)]
        tifffile.imwrite(place / name.format(z), image, extratags=tags, description=None, metadata=None)
    write_autoindex(place, omit=name.format(3))
    return place


IMAGES = {"directory": "data/Stalker SBF/Carotid2", "name": "Carotid 2", "num_images_or_tilt_series": 12}


@pytest.fixture
def vessel(tmp_path):
    """EMPIAR-13192 in small: a folder with a space in its name, files that do not state how thick a slice is."""
    folder = tmp_path / "origin"
    images = {**IMAGES, "pixel_width": 700, "pixel_height": "650", "image_width": 9, "image_height": 6}
    write_entry(folder, 13192, [images], entry_doi="https://doi.org/10.6019/EMPIAR-13192")
    write_slices(folder, 13192, IMAGES["directory"], 12)
    with OriginServer(folder) as server:
        yield server


def test_empiar_a_thickness_that_nobody_states_is_not_guessed(vessel, place):
    """The sentence gives what is known of the pixels and what to type."""
    with pytest.raises(Mismatch, match=r"pixels of 65 x 65 nm .*--voxel-size-nm Z,65,65"):
        draft_empiar("13192", ALL, WHOLE, place, server=vessel.url)


def test_empiar_fei_tags_and_a_folder_with_a_space(vessel, place):
    """The person's voxel size is marked as such; a pixel width that the API states otherwise is a claim."""
    wishes = Wishes(voxel_size_nm=(50.0, 65.0, 65.0))
    draft = draft_empiar("13192", ALL, wishes, place, server=vessel.url)
    spec = written(draft, place)
    assert spec.shape == (12, 6, 9) and spec.voxel_size_nm == (50.0, 65.0, 65.0)
    assert "given by the person" in spec.notes["expected.voxel_size_nm"]
    assert [(claim.key, claim.value) for claim in spec.claims] == [("pixel_width", 700)]
    assert spec.source.url.endswith("/13192/data/Stalker%20SBF/Carotid2")
    assert [file.path for file in spec.source.files] == ["Carotid2_Z{0001..0012}.tif"]
    assert spec.doi == "10.6019/EMPIAR-13192"
    assert list(draft.todo) == ["citation"], "the entry names no authors"


def test_empiar_several_image_sets_are_a_choice(tmp_path, place):
    """Without --imageset they are listed; by number or name one is taken."""
    other = {"directory": "data/b", "name": "second one", "num_images_or_tilt_series": 4}
    write_entry(tmp_path, 10001, [{**other, "directory": "data/a", "name": "first"}, other])
    for directory, count in (("data/a", 3), ("data/b", 4)):
        write_slices(tmp_path, 10001, directory, count)
    wishes = Wishes(voxel_size_nm=(1.0, 1.0, 1.0))
    with OriginServer(tmp_path) as server:
        with pytest.raises(Mismatch, match=r"2 image sets.*--imageset N: 1: first \(data/a\); 2: second one"):
            draft_empiar("10001", ALL, wishes, place, server=server.url)
        with pytest.raises(Mismatch, match="no single image set '3'"):
            draft_empiar("10001", Choice(imageset="3"), wishes, place, server=server.url)
        for wanted in ("2", "second one"):
            draft = draft_empiar("10001", Choice(imageset=wanted), wishes, place, server=server.url)
            assert draft.document["source"]["url"].endswith("data/b")


def test_empiar_of_many_files_some_are_asked_for_their_size(tmp_path, place):
    """More than 100: first, last and a few, and then none is pinned; that is said, and kept in the spec."""
    write_entry(tmp_path, 10002, [{**IMAGES, "num_images_or_tilt_series": 120}])
    write_slices(tmp_path, 10002, IMAGES["directory"], 120)
    with OriginServer(tmp_path) as server:
        spec = written(
            draft_empiar("10002", ALL, Wishes(voxel_size_nm=(1.0, 1.0, 1.0)), place, server=server.url), place
        )
        ranges = {path for _, path, header in server.log if header == "bytes=0-0"}
    assert len(spec.source.by_path()) == 120 and {f.size_bytes for f in spec.source.files} == {None}
    assert "8 were asked" in spec.notes["source.files"]
    assert len(ranges) <= 12


def test_empiar_a_slice_that_is_really_missing_is_refused(tmp_path, place):
    """A volume with a slice less would be another volume."""
    write_entry(tmp_path, 10003, [IMAGES])
    (write_slices(tmp_path, 10003, IMAGES["directory"], 12) / "Carotid2_Z0003.tif").unlink()
    with OriginServer(tmp_path) as server, pytest.raises(Unavailable, match="lacks the numbers 3"):
        draft_empiar("10003", ALL, Wishes(voxel_size_nm=(1.0, 1.0, 1.0)), place, server=server.url)


def test_empiar_a_gap_of_any_width_is_refused_at_once(tmp_path, place):
    """A listing is text from outside: its numbers may be anything."""
    write_entry(tmp_path, 10006, [IMAGES])
    folder = write_slices(tmp_path, 10006, IMAGES["directory"], 2)
    for name in ("Carotid2_Z9999999999999999999.tif", f"{'1' * 240}.tif"):
        (folder / name).write_bytes(b"II*\0")
    write_autoindex(folder, omit="")
    with OriginServer(tmp_path) as server, pytest.raises(Unavailable, match=r"lacks the numbers 3, 4, 5"):
        draft_empiar("10006", ALL, Wishes(voxel_size_nm=(1.0, 1.0, 1.0)), place, server=server.url)
    assert server.requests < 30


def test_empiar_two_series_are_a_choice_unless_the_count_tells(tmp_path, place):
    """The entry's own count picks one; otherwise --files."""
    images = {**IMAGES, "num_images_or_tilt_series": 5}
    write_entry(tmp_path, 10004, [images])
    folder = write_slices(tmp_path, 10004, IMAGES["directory"], 5)
    for z in range(4):
        tifffile.imwrite(folder / f"mask{z}.tif", np.zeros((6, 9), np.uint8))
    wishes = Wishes(voxel_size_nm=(1.0, 1.0, 1.0))
    write_autoindex(folder, omit="")
    with OriginServer(tmp_path) as server:
        draft = draft_empiar("10004", ALL, wishes, place, server=server.url)
        assert draft.document["source"]["volume"]["files"] == ["Carotid2_Z{0001..0005}.tif"]
        write_entry(tmp_path, 10004, [{**images, "num_images_or_tilt_series": 9}])
        with pytest.raises(Mismatch, match=r"2 series of files: 'Carotid2_Z\*\.tif' \(5\), 'mask\*\.tif' \(4\)"):
            draft_empiar("10004", ALL, wishes, place, server=server.url)
        chosen = draft_empiar("10004", Choice(files="mask*.tif"), wishes, place, server=server.url)
        assert chosen.document["source"]["volume"]["files"] == ["mask{0..3}.tif"]


def test_empiar_a_directory_that_leaves_the_entry_is_refused(tmp_path, place):
    """What the API says becomes part of an address."""
    write_entry(tmp_path, 10005, [{**IMAGES, "directory": "../../10006/data"}])
    with OriginServer(tmp_path) as server, pytest.raises(Mismatch, match="leaves the entry's own folder"):
        draft_empiar("10005", ALL, WHOLE, place, server=server.url)


# IDR


def test_idr_without_a_file_the_source_is_left_for_a_person(served, place):
    """What the API says is there, the spec loads, and the lines to fill in are marked in it."""
    draft = draft_idr(9846137, WHOLE, place, server=served.root("idr"))
    spec = written(draft, place)
    assert spec.shape == idr.SHAPE and spec.voxel_size_nm == (20.0, 20.0, 20.0) and spec.dtype == "uint8"
    assert spec.source.url == "https://ftp.ebi.ac.uk/pub/databases/IDR/idr0086-miron-micrographs"
    assert {"license", "citation", "doi", "source"} <= set(draft.todo)
    assert (spec.license, spec.doi) == ("unknown", None)
    assert "not known" in spec.notes["doi"] and "no file was looked at" in spec.notes["expected"]
    assert len(todo_lines(f"datasets/{spec.name}.yaml")) == len(draft.todo)
    assert spec.page_url.endswith("/img_detail/9846137/?dataset=10740")
    assert [document.kind for document in spec.documents] == ["idr_image", "omero_image", "idr_annotations"]


def test_idr_with_its_file(served, place):
    """Size and header are the file's own."""
    source = served.spec("idr")["source"]
    name = source["files"][0]["path"]
    spec = written(draft_idr(9846137, WHOLE, place, file=f"{source['url']}/{name}", server=served.root("idr")), place)
    assert spec.source.by_path()[name].size_bytes == source["files"][0]["size_bytes"]
    assert spec.shape == idr.SHAPE and spec.claims == ()
    client = HttpClient(place)
    open_main(spec, lambda path: RemoteBytes(spec.source.file_url(path), client), place)


def test_idr_what_the_api_says_otherwise_is_a_claim(served, place):
    """The other cut of the same volume has other sides than the API states for this image."""
    source = served.spec("idr")["source"]
    name = source["files"][1]["path"]
    draft = draft_idr(9846137, WHOLE, place, file=f"{source['url']}/{name}", server=served.root("idr"))
    spec = written(draft, place)
    (claim,) = spec.claims
    assert claim.key == "volume_shape" and claim.value == tuple(map(float, idr.SHAPE))
    assert spec.shape == (idr.SHAPE[1], idr.SHAPE[0], idr.SHAPE[2])


def test_idr_the_api_states_what_the_file_does_not(served, place, tmp_path):
    """A TIFF without a unit: the voxel size is the API's, and the spec says so."""
    folder = tmp_path / "o"
    folder.mkdir()
    tifffile.imwrite(folder / "plain+1 x.tif", np.zeros(idr.SHAPE, np.uint8), description=None, metadata=None)
    with OriginServer(folder) as server:
        url = f"{server.url}/plain%2B1%20x.tif"
        spec = written(draft_idr(9846137, WHOLE, place, file=url, server=served.root("idr")), place)
    assert spec.voxel_size_nm == (20.0, 20.0, 20.0) and spec.claims == ()
    assert "API states it" in spec.notes["expected.voxel_size_nm"]
    assert spec.source.file_url(spec.source.files[0].path) == url


def test_idr_an_image_that_is_not_there_is_one_sentence(served, place):
    """No spec is written."""
    with pytest.raises(Unavailable, match="404"):
        draft_idr(12, WHOLE, place, server=served.root("idr"))


# OpenOrganelle


def test_openorganelle_takes_the_only_image_group(served, place):
    """Found by listing the bucket; shape, dtype and voxel size as the metadata say."""
    spec = written(
        draft_openorganelle("jrc_mus-nacc-2", WHOLE, place, bucket=served.bucket, endpoint=served.url), place
    )
    assert spec.source.group == "recon-2/em/fibsem-int16" and spec.source.kind == "zarr"
    assert (spec.shape, spec.dtype, spec.voxel_size_nm) == (openorganelle.SHAPE, "int16", (2.96, 4.0, 4.0))
    assert spec.page_url == "https://openorganelle.janelia.org/datasets/jrc_mus-nacc-2"
    assert open_source(spec, place).reader.info.shape == openorganelle.SHAPE


def test_openorganelle_lists_the_choices(served, place, request):
    """Two groups: named with --group; a third that nobody published is refused with the same list."""
    (container,) = served.folder.glob("janelia-cosem-datasets/*/jrc_mus-nacc-2")
    n5 = container / "jrc_mus-nacc-2.n5" / "em" / "fibsem-uint8"
    n5.mkdir(parents=True)
    (n5 / "attributes.json").write_text("{}")
    request.addfinalizer((n5 / "attributes.json").unlink)

    def draft(group):
        return draft_openorganelle(
            "jrc_mus-nacc-2", WHOLE, place, group=group, bucket=served.bucket, endpoint=served.url
        )

    with pytest.raises(Mismatch, match=r"2 image groups; choose one with --group: .*\.n5/em/fibsem-uint8, .*int16"):
        draft(None)
    with pytest.raises(Mismatch, match="no image group 'em/nothing'"):
        draft("em/nothing")
    assert draft("fibsem-int16").document["source"]["group"] == "recon-2/em/fibsem-int16"


@pytest.mark.parametrize("name", ["jrc_nothing", "jrc_mus-nacc"])
def test_openorganelle_an_unknown_name_is_one_sentence(served, place, name):
    """The beginning of a name is not the name."""
    with pytest.raises(Unavailable, match="lists no image group"):
        draft_openorganelle(name, WHOLE, place, bucket=served.bucket, endpoint=served.url)


# Plain addresses


def test_precomputed_a_box_is_exactly_that_box(served, place):
    """Not moved to the chunk grid: who names a box means it. The spec's source finds it there."""
    box = Box((3, 5, 7), (40, 105, 95))
    spec = written(draft_precomputed(f"precomputed://{served.precomputed}", 0, Wishes(box=box), place), place)
    assert spec.shape == box.shape and spec.expected.source_shape == (SOURCE_SHAPE,)
    found, _ = open_source(spec, place).crop_box()
    assert found == box


def test_precomputed_a_box_in_nanometres(served, place):
    """8 nm voxels: every voxel that the range touches."""
    wishes = Wishes(box_nm=((8.0, 12.0, 0.0), (80.0, 81.0, 8.0)))
    spec = written(draft_precomputed(served.precomputed, 0, wishes, place), place)
    assert spec.crop.origin == (1, 1, 0) and spec.shape == (9, 10, 1)


def test_precomputed_a_coarser_level(served, place):
    """Its shape and voxel size."""
    spec = written(draft_precomputed(served.precomputed, 1, WHOLE, place), place)
    assert spec.source.level == 1 and spec.voxel_size_nm == (16.0, 16.0, 16.0) and spec.crop is None
    assert spec.shape == tuple(-(-n // 2) for n in SOURCE_SHAPE)


def test_too_large_is_refused_with_a_box_and_a_level_that_work(served, place):
    """What the sentence proposes can be typed as it stands."""
    small = place.model_copy(update={"max_bytes": 2_000_000})
    with pytest.raises(Mismatch, match=r"EM_ASSETS_MAX_BYTES allows 2\.0 MB") as refusal:
        draft_precomputed(served.precomputed, 0, WHOLE, small)
    proposed = re.search(r"--box (\d+):(\d+),(\d+):(\d+),(\d+):(\d+), or .* --level (\d+) ", str(refusal.value))
    a, b, c, d, e, f, level = map(int, proposed.groups())
    box = Box((a, c, e), (b, d, f))
    draft_precomputed(served.precomputed, 0, Wishes(box=box), small)
    draft_precomputed(served.precomputed, level, WHOLE, small)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (Wishes(box=Box((0, 0, 0), (151, 10, 10))), "leaves the volume"),
        (Wishes(box=Box((5, 5, 5), (5, 9, 9))), "is empty or leaves"),
        (Wishes(box=Box((0, 0, 0), (9, 9, 9)), box_nm=((0, 0, 0), (9, 9, 9))), "the same thing twice"),
        (Wishes(box_nm=((0, 0, 0), (0, 9, 9))), "--box-nm is empty"),
        (Wishes(voxel_size_nm=(4.0, 8.0, 8.0)), "states voxels of 8 x 8 x 8 nm"),
    ],
    ids=["outside", "empty", "twice", "empty in nm", "another voxel size"],
)
def test_wishes_that_cannot_be(served, place, wishes, message):
    """One sentence each, before anything is written."""
    with pytest.raises(Mismatch, match=message):
        draft_precomputed(served.precomputed, 0, wishes, place)


def test_zarr_all_but_the_voxels_is_left_for_a_person(served, place):
    """An address says nothing of who made what it leads to; every required text says so itself."""
    facts = served.facts["openorganelle"]
    url = f"s3://{facts['bucket']}/{facts['key']}"
    draft = draft_chunked("zarr", url, WHOLE, place, group="recon-2/em/fibsem-int16", level="s2", endpoint=served.url)
    spec = written(draft, place)
    assert spec.source.level == "s2" and spec.shape == tuple(n // 4 for n in openorganelle.SHAPE)
    assert set(draft.todo) == {"title", "description", "publisher", "page_url", "license", "citation", "doi"}
    assert all(spec.notes[key].startswith("not known") for key in draft.todo)
    assert open_source(spec, place).reader.info.shape == spec.shape


@pytest.mark.parametrize(
    ("shape", "dtype", "refusal"),
    [
        ((8, 9, 10), "uint8", (Mismatch, "--voxel-size-nm Z,Y,X")),
        ((3, 8, 9, 10), "uint8", (Unsupported, "3 channels")),
        ((8, 9, 10), "float64", (Unsupported, "is of float64; stored are uint8")),
    ],
    ids=["no voxel size", "channels", "dtype"],
)
def test_zarr_that_cannot_be_stored(tmp_path, place, shape, dtype, refusal):
    """Refused with the reason; nothing is assumed."""
    zarr = pytest.importorskip("zarr")
    zarr.create_array(tmp_path / "o" / "a.zarr", shape=shape, dtype=dtype, chunks=shape, zarr_format=2)
    error, message = refusal
    with OriginServer(tmp_path / "o") as server, pytest.raises(error, match=message):
        draft_chunked("zarr", f"{server.url}/a.zarr", WHOLE, place)


def test_n5_has_its_axes_turned(tmp_path, place):
    """Written x, y, z by an independent library; the spec is z, y, x."""
    tensorstore = pytest.importorskip("tensorstore")
    folder = tmp_path / "o" / "c.n5"
    tensorstore.open(
        {
            "driver": "n5",
            "kvstore": {"driver": "file", "path": f"{folder}/em/s0"},
            "metadata": {
                "dimensions": [10, 9, 8],
                "blockSize": [4, 4, 4],
                "dataType": "uint16",
                "compression": {"type": "gzip"},
            },
        },
        create=True,
    ).result()
    with OriginServer(tmp_path / "o") as server:
        wishes = Wishes(voxel_size_nm=(5.24, 4.0, 4.0))
        spec = written(draft_chunked("n5", f"{server.url}/c.n5", wishes, place, group="em/s0"), place)
        assert open_source(spec, place).reader.info.shape == (8, 9, 10)
    assert (spec.shape, spec.dtype) == ((8, 9, 10), "uint16")


# The file


def sound_draft(**changes):
    draft = Draft(base_name="things")
    for key in ("title", "description", "citation", "license"):
        draft.take(key, changes.get(key, key), "?")
    draft.take_doi(changes.get("doi"), "?")
    for key, value in {"publisher": "p", "source_id": "1", "page_url": "https://host/"}.items():
        draft.know(key, value)
    draft.know("source", {"kind": "precomputed", "url": "https://host/path"})
    draft.document["expected"] = {"source_shape": [9, 9, 9], "dtype": "uint8", "voxel_size_nm": [1.0, 1.0, 1.0]}
    return draft


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=200), min_size=3, max_size=3))
def test_any_text_of_a_publisher_gives_a_sound_spec(texts, tmp_path):
    """Quotes, colons, line breaks, control characters, emoji: what loads is the cleaned text, or `unknown`."""
    place = quick_settings(tmp_path / "data", datasets=str(tmp_path))
    keys = ("title", "description", "citation")
    draft = sound_draft(**dict(zip(keys, texts, strict=True)))
    spec = load_spec(write_draft(draft, place, name="things", output=tmp_path, force=True))
    for key, text in zip(keys, texts, strict=True):
        assert getattr(spec, key) == (clean(text) or "unknown")
        assert (key in draft.todo) == (not clean(text))


@pytest.mark.parametrize(
    ("text", "doi"),
    [
        ("10.6019/EMPIAR-13192", "10.6019/EMPIAR-13192"),
        ("https://doi.org/10.7554/eLife.57443", "10.7554/eLife.57443"),
        ("10.17867/10000141d https://doi.org/10.17867/10000141d", "10.17867/10000141d"),
        ("none yet", None),
        (None, None),
        (17, None),
    ],
)
def test_a_doi_in_any_form(text, doi):
    """Bare in the spec; null, marked, where there is none."""
    draft = sound_draft(doi=text)
    assert draft.document["doi"] == doi and ("doi" in draft.todo) == (doi is None)


def test_nothing_is_overwritten_without_force(place, tmp_path):
    """A default name gets out of the way, a given one is refused, --force replaces."""
    first = write_draft(sound_draft(), place, name=None, output=None, force=False)
    assert first == Path("datasets/things.yaml")
    assert write_draft(sound_draft(), place, name=None, output=None, force=False).stem == "things_2"
    before = first.read_bytes()
    with pytest.raises(Mismatch, match=r"taken by datasets/things\.yaml; give another --name, or --force"):
        write_draft(sound_draft(title="other"), place, name="things", output=None, force=False)
    assert first.read_bytes() == before
    assert written(sound_draft(title="other"), place, name="things", force=True).title == "other"
    assert sorted(file.name for file in Path("datasets").iterdir()) == ["things.yaml", "things_2.yaml"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hemibrain_crop", "taken by .*hemibrain_crop.yaml; give another --name.$"),
        ("hemibrain_crop_chunks", "taken by .*hemibrain_crop.yaml"),
        ("config", "taken by em_assets itself"),
        ("Things", "use lower-case letters"),
        ("../things", "use lower-case letters"),
    ],
)
def test_a_name_that_cannot_be(place, name, message):
    """Also with --force: other folders' specs are not replaced, and together the specs must load."""
    with pytest.raises(Mismatch, match=message):
        write_draft(sound_draft(), place, name=name, output=None, force=True)
    assert not list(Path("datasets").glob("*"))


def test_all_specs_load_together_afterwards(place):
    """A derived name collides with none of the package's."""
    draft = sound_draft()
    draft.base_name = "hemibrain crop"
    assert write_draft(draft, place, name=None, output=None, force=False).stem == "hemibrain_crop_2"
    assert "hemibrain_crop_2" in load_specs(place.dataset_folders())


def test_where_it_is_written(tmp_path, monkeypatch):
    """The last folder of EM_ASSETS_DATASETS; --output is any other."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    place = quick_settings(tmp_path / "data", datasets=f"{tmp_path}/a:{tmp_path}/b")
    assert write_draft(sound_draft(), place, name=None, output=None, force=False).parent == tmp_path / "b"
    assert write_draft(sound_draft(), place, name=None, output=tmp_path / "c", force=False).parent == tmp_path / "c"


def test_what_makes_no_sound_spec_is_not_written(place):
    """The sentence is the loader's, about a file of the spec's own name."""
    draft = sound_draft()
    draft.document["expected"]["dtype"] = "int7"
    with pytest.raises(Malformed, match=r"makes no sound spec: things\.yaml, line"):
        write_draft(draft, place, name=None, output=None, force=False)
    assert not list(Path("datasets").iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(place, tmp_path):
    """It is a file here."""
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"cannot be written .*--output"):
        write_draft(sound_draft(), place, name=None, output=tmp_path / "file", force=False)


# Laws


@given(st.text(max_size=100))
def test_any_text_has_a_name(text):
    """It is one that a spec may have."""
    assert re.match(NAME_PATTERN, slug(text))


SIDE = st.integers(1, 4000)


@given(shape=st.tuples(SIDE, SIDE, SIDE), dtype=st.sampled_from(sorted(ITEM_BYTES)))
def test_any_volume_is_cut_into_tens_of_partitions(shape, dtype):
    """Fewer only if the shards cannot be smaller, more only if they would be too large for memory."""
    output = Output.model_validate(output_for(shape, dtype))
    count = math.prod(-(-n // s) for n, s in zip(shape, output.shard, strict=True))
    size = math.prod(output.shard) * ITEM_BYTES[dtype]
    assert size < 2**28
    assert count < 100 or size >= 2**26
    assert count >= 10 or not any(s % (2 * c) == 0 for s, c in zip(output.shard, output.chunk, strict=True))
    assert all(s - c < max(n, 2) for n, s, c in zip(shape, output.shard, output.chunk, strict=True))


@given(
    st.lists(st.integers(0, 1200), unique=True, max_size=40),
    st.integers(1, 5),
    st.sampled_from(["a_{}.tif", "F57-8_{}_raw.dm3", "{}.tif", "z{}"]),
)
def test_ranges_expand_to_the_names_they_stand_for(numbers, width, pattern):
    """Whatever gaps and leading zeros there are."""
    names = [pattern.format(f"{n:0{width}d}") for n in sorted(numbers)]
    assert [name for entry in ranges_of(names) for name in expand(entry)] == names


# As typed


@pytest.fixture
def run(monkeypatch, capsys, place):
    """Runs a command line in this process, in an empty folder: (exit code, stdout, stderr)."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["em-assets", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return command


def test_add_says_what_it_found_and_what_is_left(run, served):
    """The path, the volume, what a person must look at, and the next command, which works."""
    code, out, err = run("add", "precomputed", served.precomputed, "--box", "0:30, 0:40, 0:50", "--name", "mine")
    assert code == 0, err
    assert out.startswith("wrote datasets/mine.yaml")
    assert "stored is the box 0:30, 0:40, 0:50" in out and "for a person: license:" in out
    assert out.endswith("next: em-assets plan mine\n")
    assert run("plan", "mine", "--offline")[0] == 0
    assert yaml.safe_load(Path("datasets/mine.yaml").read_text())["crop"]["shape"] == [30, 40, 50]


@pytest.mark.parametrize("kind", ["empiar", "idr", "openorganelle", "precomputed", "zarr", "n5"])
def test_every_publisher_explains_itself_with_an_example(run, kind):
    """`--help` shows a command line that can be typed."""
    code, out, _ = run("add", kind, "--help")
    assert code == 0 and f"Example: em-assets add {kind} " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["precomputed", "http://h/p", "--box", "0:1,0:1"], "expected z0:z1,y0:y1,x0:x1"),
        (["precomputed", "http://h/p", "--box", "5:1,0:1,0:1"], "each range rises"),
        (["zarr", "http://h/p", "--voxel-size-nm", "8,8"], "expected three positive numbers"),
        (["zarr", "http://h/p", "--voxel-size-nm", "0,8,8"], "expected three positive numbers"),
        (["empiar", "11759", "--server", "ftp://host"], "expected http(s)://host"),
        (["idr", "abc"], "valid integer"),
        (["lims", "1"], "No such command 'lims'"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(run, arguments, message):
    """The last line says what is accepted; nothing is asked or written."""
    code, _, err = run("add", *arguments)
    assert code == 2 and message in " ".join(err.split()) and not Path("datasets").exists()


@pytest.mark.parametrize("url", ["nonsense", "ftp://host/x", "file:///etc/passwd", "http://user:secret@127.0.0.1:1/x"])
@pytest.mark.parametrize("kind", ["precomputed", "zarr"])
def test_an_odd_address_is_one_sentence_without_secrets(run, kind, url, monkeypatch):
    """Exit code 1, no traceback, nothing written."""
    monkeypatch.setenv("EM_ASSETS_UNREACHABLE_SECONDS", "0.2")
    code, _, err = run("add", kind, url)
    assert code == 1 and "Traceback" not in err and "bug" not in err and "secret" not in err
    assert not Path("datasets").exists()


def test_an_entry_as_empiar_really_answers(place, tmp_path, realdata):
    """The exact reply of 2025: its words become the spec's, its wrong width and height claims."""
    reply = realdata / "../payloads/empiar/api_entry_EMPIAR-11759.json"
    if not reply.is_file():
        pytest.skip(f"no publishers' replies beside {realdata}")
    entry = json.loads(reply.read_text())
    entry["EMPIAR-11759"]["imagesets"][0]["num_images_or_tilt_series"] = 12
    write_json_page(tmp_path / "o/empiar/api/entry/EMPIAR-11759", entry)
    write_slices(tmp_path / "o", 11759, "data", 12)
    with OriginServer(tmp_path / "o") as server:
        draft = draft_empiar("11759", ALL, Wishes(voxel_size_nm=(50.0, 8.0, 8.0)), place, server=server.url)
    spec = written(draft, place)
    assert spec.doi == "10.6019/EMPIAR-11759" and not draft.todo
    assert spec.citation.startswith("Wilsch-Bräuninger M. Developing retina in zebrafish 55 hpf larval eye. EMPIAR")
    assert {claim.key for claim in spec.claims} >= {"image_width", "image_height"}
