"""What headers of files and metadata of containers state: DM, TIFF, HDF5, MRC, Zarr, N5, precomputed."""

import json
import math
import re
from collections import Counter
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.catalog.mapping import READERS
from em_assets.catalog.statements import Context, StatedDocument, statements_of
from em_assets.catalog.vocabulary import FIELDS
from em_assets.datasets.loading import load_spec
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError
from em_assets.fetch.client import FolderClient, folder_url
from em_assets.formats._bytes import LocalBytes
from em_assets.formats._json import json_leaves, parse_json
from em_assets.formats.n5 import open_n5
from em_assets.formats.opening import open_file
from em_assets.formats.precomputed import open_precomputed
from em_assets.formats.zarr import open_zarr
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.sources.transposed import as_zyx
from payload_claims import dm_values, idr_document, tiff_values

DM, TAGS = "/ImageList/1", "/ImageList/1/ImageTags"
AXES = ("zyx", "zxy", "yzx", "yxz", "xzy", "xyz")
SIZES = ("source_size_z", "source_size_y", "source_size_x")
VOXEL = ("voxel_size_z_nm", "voxel_size_y_nm", "voxel_size_x_nm")
QUICK = Settings(workers=1)


def packaged(name):
    return load_spec(PACKAGED_DATASETS / f"{name}.yaml")


def spec_with(source, volumes=None):
    """A spec that is about nothing but its source."""
    return DatasetSpec.model_validate(
        {
            "name": "small",
            "title": "A small volume",
            "description": "Drawn for tests.",
            "publisher": "drawer",
            "source_id": "1",
            "page_url": "https://example.org/small",
            "license": "CC-BY-4.0",
            "citation": "Nobody (2020).",
            "doi": "10.1234/small",
            "source": source,
            "volumes": volumes or {},
            "expected": {"source_shape": [8, 8, 8], "dtype": "uint8", "voxel_size_nm": [8.0, 8.0, 8.0]},
        }
    )


def files_spec(*paths, **volume):
    """A spec of these files, all of which are the volume, unless its files are given."""
    files = [{"path": path} for path in paths]
    return spec_with(
        {"kind": "files", "url": "https://example.org/data", "files": files, "volume": {"files": paths, **volume}}
    )


def chunked_spec(kind, group="", level=0, volumes=None):
    return spec_with(
        {"kind": kind, "url": "https://example.org/a.zarr", "group": group, "level": level}, volumes=volumes
    )


def precomputed_spec(level=0):
    return spec_with({"kind": "precomputed", "url": "https://example.org/a", "level": level})


def file(path, extractor, values):
    return StatedDocument(f"original/{path}", extractor, values)


def kept(path, extractor, value):
    """A metadata document of a container, given as what its JSON says."""
    return StatedDocument(f"documents/{path.replace('/', '__')}", extractor, dict(json_leaves(value)))


def values(statements, volume=None, authority=None):
    """Each field's value; a field that is stated twice must be stated alike."""
    found = {}
    for item in statements:
        if item.volume == volume and authority in (None, item.authority):
            assert found.setdefault(item.field, item.value) == item.value, item
    return found


def the(statements, field):
    """The only statement of a field."""
    (found,) = [item for item in statements if item.field == field]
    return found


# -- DigitalMicrograph


@pytest.fixture(scope="module")
def empiar_slices(payloads):
    """Two of the sixteen: as whole files, and the second as a series lists it, with what differs from the first."""
    recorded = {}
    for number in ("0000", "0015"):
        text = (payloads / f"empiar/dm3_full_tags_slice_{number}.json").read_text()
        recorded[number] = dm_values(json.loads(text)["full_original_tags"])
    return recorded


def slice_document(number, found):
    return file(f"F57-8_test1_3VBSED_slice_{number}.dm3", "dm", found)


def test_a_dm3_slice_states_what_was_recorded_of_it(empiar_slices):
    """EMPIAR-11759, slice 0: sizes, calibrated pixels, the step in z, and the microscope in the vocabulary's units."""
    statements = statements_of([slice_document("0000", empiar_slices["0000"])], packaged("empiar_11759"))
    assert values(statements, authority="file header") == {
        "source_size_y": 5500,
        "source_size_x": 5496,
        "dtype": "uint8",
        "file_format": "DM3",
        "voxel_size_z_nm": 50.0,
        "voxel_size_y_nm": 7.998250424861908,
        "voxel_size_x_nm": 7.998250424861908,
    }
    found = [item for item in statements if item.field != "working_distance_mm"]
    assert values(found, authority="file metadata") == {
        "voxel_size_z_nm": 50.0,
        "instrument": "FEI Quanta",
        "modality": "SBF-SEM",
        "accelerating_voltage_v": 1900.0,
        "dwell_time_s": 5e-07,
        "magnification": 2159.0,
        "acquired_on": "2018-06-11",
        "acquisition_software": "Gatan Microscopy Suite 3.21.1374.0",
    }


def test_both_working_distances_of_one_file_are_stated(empiar_slices):
    """The session writes micrometres under a name that says mm; nobody here corrects it."""
    statements = statements_of([slice_document("0000", empiar_slices["0000"])], packaged("empiar_11759"))
    found = {item.key: item.value for item in statements if item.field == "working_distance_mm"}
    assert found == {
        f"{TAGS}/Microscope Info/WD (mm)": pytest.approx(5.5001, abs=1e-4),
        f"{TAGS}/Session Info/WD (mm)": 5591.26,
    }


@pytest.mark.parametrize("number", ["0000", "0015"])
def test_the_day_of_an_ambiguous_date_is_the_one_that_the_files_clock_has(empiar_slices, number):
    """11.06.2018 is 11 June, and the note says which tag decided it."""
    spec = packaged("empiar_11759")
    first = slice_document("0000", empiar_slices[number])
    dates = [item for item in statements_of([first], spec) if item.field == "acquired_on"]
    written = next(item for item in dates if item.key.endswith("Acquisition Date"))
    assert (written.value, written.stated) == ("2018-06-11", "11.06.2018")
    assert "DigiScan/TimeStamp" in written.note
    assert {item.value for item in dates} == {"2018-06-11"}


def test_a_later_slice_states_what_it_says_itself_and_no_first_day(empiar_slices):
    """A series lists of later files what differs: their image is known from the first file's lists."""
    first, last = empiar_slices["0000"], empiar_slices["0015"]
    differing = {key: value for key, value in last.items() if first.get(key) != value}
    assert "/ImageSourceList/0/ImageRef" not in differing
    spec = packaged("empiar_11759")
    moved = {f"{TAGS}/Microscope Info/Voltage": "2000.0", f"{DM}/ImageData/Dimensions/0": "5497"}
    documents = [slice_document("0000", first), slice_document("0015", differing | moved)]
    stated = [item for item in statements_of(documents, spec) if item.document == documents[1].path]
    assert values(stated) == {"accelerating_voltage_v": 2000.0, "source_size_x": 5497}


IMAGES = {f"/ImageList/{n}/ImageData/{key}": n for n in range(4) for key in ("DataType", "Dimensions/1")} | {
    f"/ImageList/{n}/ImageData/Dimensions/0": n + 1 for n in range(4)
}


@pytest.mark.parametrize(
    ("lists", "dataset", "width"),
    [
        pytest.param({"/Thumbnails/0/ImageIndex": 0, "/ImageSourceList/0/ImageRef": 2}, None, 3, id="shown"),
        pytest.param({"/Thumbnails/0/ImageIndex": 2, "/ImageSourceList/0/ImageRef": 2}, None, None, id="thumbnail"),
        pytest.param({"/ImageSourceList/0/ImageList/1/ImageRef": 3}, None, 4, id="several in a source"),
        pytest.param(
            {"/ImageSourceList/10/ImageRef": 1, "/ImageSourceList/9/ImageRef": 2}, None, 3, id="first by its place"
        ),
        pytest.param({f"/Thumbnails/{n}/ImageIndex": n for n in (0, 1, 3)}, None, 3, id="only one left"),
        pytest.param({}, None, None, id="nothing says which"),
        pytest.param({"/ImageSourceList/0/ImageRef": 7}, None, None, id="not there"),
        pytest.param({"/ImageSourceList/0/ImageRef": "?"}, None, None, id="no number"),
        pytest.param({"/ImageSourceList/0/ImageRef": 2}, "ImageList/1", 2, id="named by the spec"),
        pytest.param({"/ImageSourceList/0/ImageRef": 2}, "ImageList/9", None, id="named, not there"),
    ],
)
def test_the_image_is_chosen_by_the_files_own_lists(lists, dataset, width):
    """Never by a fixed place; where the file does not say, nothing is stated."""
    document = file("a.dm3", "dm", IMAGES | lists)
    stated = values(statements_of([document], files_spec("a.dm3", dataset=dataset)))
    assert stated.get("source_size_x") == width


@pytest.mark.parametrize(
    ("written", "others", "day"),
    [
        pytest.param("11.06.2018", {}, None, id="ambiguous"),
        pytest.param("25.06.2018", {}, "2018-06-25", id="day first"),
        pytest.param("6/25/2018", {}, "2018-06-25", id="month first"),
        pytest.param("06.06.2018", {}, "2018-06-06", id="either way the same"),
        pytest.param("11.06.2018", {"DataBar/Acquisition Time (OS)": 1.3173222436078186e17}, "2018-06-11", id="clock"),
        pytest.param("11.06.2018", {"DigiScan/TimeStamp": "Tue Nov 06 09:00:00 2018\u2028"}, "2018-11-06", id="stamp"),
        pytest.param("11.06.2018", {"DataBar/Acquisition Time (OS)": "soon"}, None, id="no clock"),
        pytest.param("11.06.2018", {"DataBar/Acquisition Time (OS)": 1.5e17}, None, id="a clock of another year"),
        pytest.param("soon", {"DataBar/Acquisition Time (OS)": 1.3173222436078186e17}, None, id="no date"),
        pytest.param(None, {}, None, id="null"),
    ],
)
def test_an_ambiguous_day_needs_evidence(written, others, day):
    """A date that can be read two ways states nothing, unless another clock of the file lies within a day of one."""
    tags = {"DataBar/Acquisition Date": written} | others
    found = {f"{TAGS}/{key}": value for key, value in tags.items()} | {f"{DM}/ImageData/DataType": 6}
    stated = statements_of([file("a.dm3", "dm", found)], files_spec("a.dm3"))
    assert {item.value for item in stated if item.field == "acquired_on"} == ({day} if day else set())


@pytest.mark.parametrize(
    ("tags", "stated"),
    [
        pytest.param({"Meta Data/Dimension info/2": (50.0, "nm"), "thickness": 60.0}, 50.0, id="with its unit first"),
        pytest.param({"Meta Data/Dimension info/2": (50.0, "slices"), "thickness": 60.0}, 60.0, id="unknown unit"),
        pytest.param({"thickness": 60.0}, 60.0, id="thickness alone"),
        pytest.param({"thickness": 0.0}, None, id="zero"),
        pytest.param({"own": (0.05, "µm"), "Meta Data/Dimension info/2": (60.0, "nm")}, 50.0, id="the image's own"),
        pytest.param({"own": (2.0, "deg"), "thickness": 60.0}, None, id="a tilt is no step"),
    ],
)
def test_the_step_in_z_is_the_one_that_the_reader_takes(tags, stated):
    """Of several tags one is header, the others are metadata beside it."""
    found = {f"{DM}/ImageData/DataType": 6}
    for name, value in tags.items():
        if name == "thickness":
            found[f"{TAGS}/SBFSEM/Record/Slice thickness"] = value
        else:
            place = f"{DM}/ImageData/Calibrations/Dimension/2" if name == "own" else f"{TAGS}/{name}"
            found |= {f"{place}/Scale": value[0], f"{place}/Units": value[1]}
    statements = statements_of([file("a.dm3", "dm", found)], files_spec("a.dm3"))
    assert values(statements, authority="file header").get("voxel_size_z_nm") == stated


# -- TIFF


def test_an_imagej_stack_states_its_volume(payloads):
    """IDR image 9846137: 184 slices by the description, 20 nm from the resolution in its unit, no Compression tag."""
    document = idr_document(payloads, "xy")
    statements = statements_of([document], packaged("idr_9846137"))
    assert values(statements) == {
        "source_size_z": 184,
        "source_size_y": 775,
        "source_size_x": 1121,
        "channels": 1,
        "dtype": "uint8",
        "voxel_size_z_nm": 20.0,
        "voxel_size_y_nm": 20.0,
        "voxel_size_x_nm": 20.0,
        "source_axes": "zyx",
        "file_format": "TIFF",
        "compression": "none",
        "source_chunk": "1 x 775 x 1121",
        "acquisition_software": "ImageJ 1.52p",
    }
    assert the(statements, "voxel_size_x_nm").stated == "50.0 per µm"
    assert {item.authority for item in statements if item.field != "acquisition_software"} == {"file header"}


def test_the_same_volume_cut_another_way_states_the_same_sizes(payloads):
    """IDR's second file has 775 pages of 184 rows, which are z; how it is written says nothing of the first."""
    spec = packaged("idr_9846137")
    xy, xz = (statements_of([idr_document(payloads, which)], spec) for which in ("xy", "xz"))
    assert values(xz) == {
        field: value for field, value in values(xy).items() if field in (*SIZES, *VOXEL, "channels", "dtype")
    }
    assert the(xz, "source_size_y").key == "/0/ImageDescription/slices"


def test_pages_of_an_itk_stack_are_counted_by_their_numbers(payloads):
    """EPFL: no description and no resolution; PageNumber says 1065, and 64-bit offsets do no harm."""
    tags = [json.loads((payloads / f"epfl/tiff_page{page}_tags.json").read_text()) for page in (0, 1064)]
    spec = packaged("epfl_hippocampus")
    statements = statements_of([file("volumedata.tif", "tiff", tiff_values({0: tags[0], 1064: tags[1]}))], spec)
    assert values(statements) == {
        "source_size_z": 1065,
        "source_size_y": 1536,
        "source_size_x": 2048,
        "channels": 1,
        "dtype": "uint8",
        "file_format": "TIFF",
        "compression": "none",
        "source_chunk": "1 x 4 x 2048",
        "acquisition_software": "InsightToolkit",
    }


def test_a_file_of_a_further_volume_speaks_for_that_volume(payloads):
    """And one that no volume is made of for none."""
    found = tiff_values({0: json.loads((payloads / "epfl/tiff_page0_tags.json").read_text())})
    spec = packaged("epfl_hippocampus")
    statements = statements_of([file("training_groundtruth.tif", "tiff", found)], spec)
    assert {item.volume for item in statements} == {"training_groundtruth"}
    assert statements_of([file("notes.tif", "tiff", found)], spec) == []


PLAIN = {"/0/ImageWidth": 40, "/0/ImageLength": 30, "/0/BitsPerSample": 8}
IMAGEJ = "/0/ImageDescription/"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        pytest.param({"/0/BitsPerSample": 16, "/0/SampleFormat": 2}, {"dtype": "int16"}, id="signed"),
        pytest.param({"/0/BitsPerSample": 32, "/0/SampleFormat": 3}, {"dtype": "float32"}, id="float"),
        pytest.param({"/0/BitsPerSample": 12}, {"dtype": None}, id="12 bits"),
        pytest.param({"/0/SampleFormat": 6}, {"dtype": None}, id="complex"),
        pytest.param({"/0/Compression": 5}, {"compression": "lzw"}, id="lzw"),
        pytest.param({"/0/Compression": 60000}, {"compression": None}, id="unknown packing"),
        pytest.param({"/0/TileLength": 16, "/0/TileWidth": 32}, {"source_chunk": "1 x 16 x 32"}, id="tiles"),
        pytest.param({"/0/RowsPerStrip": 4294967295}, {"source_chunk": "1 x 30 x 40"}, id="one strip"),
        pytest.param({"/0/PageNumber/0": 0, "/0/PageNumber/1": 0}, {"source_size_z": None}, id="pages not known"),
        pytest.param(
            {f"{IMAGEJ}shape/{n}": size for n, size in enumerate((1, 7, 30, 40))}, {"source_size_z": 7}, id="tifffile"
        ),
        pytest.param(
            {f"{IMAGEJ}{key}": value for key, value in {"ImageJ": "1", "images": "6", "channels": "2"}.items()},
            {"source_size_z": 3, "channels": 2, "source_axes": "zcyx"},
            id="imagej without slices",
        ),
        pytest.param(
            {f"{IMAGEJ}{k}": v for k, v in {"ImageJ": "1", "images": "6", "channels": "2", "slices": "3"}.items()},
            {"source_size_z": 3, "channels": 2, "source_axes": "zcyx"},
            id="imagej with channels",
        ),
        pytest.param(
            {f"{IMAGEJ}ImageJ": "1", "/0/XResolution": 50.0, f"{IMAGEJ}unit": "pixel"},
            {"voxel_size_x_nm": None},
            id="unit that is no length",
        ),
        pytest.param({"/0/XResolution": 72.0, "/0/ResolutionUnit": 2}, {"voxel_size_x_nm": None}, id="print size"),
        pytest.param(
            {f"{IMAGEJ}ImageJ": "1", f"{IMAGEJ}unit": "nm", f"{IMAGEJ}spacing": "-50"},
            {"voxel_size_z_nm": 50.0},
            id="spacing",
        ),
        pytest.param({"/0/Make": "Zeiss", "/0/Model": "Merlin"}, {"instrument": "Zeiss Merlin"}, id="camera's tags"),
    ],
)
def test_tags_are_read_as_tiff_and_its_programs_define_them(more, expected):
    """Each case: tags beside those of a plain page, and what of them is stated (None: nothing)."""
    stated = values(statements_of([file("a.tif", "tiff", PLAIN | more)], files_spec("a.tif")))
    assert {field: stated.get(field) for field in expected} == expected


def test_a_file_of_a_series_says_nothing_of_how_many_there_are():
    """Its pages are not the volume's slices, whatever it says of itself."""
    found = PLAIN | {"/0/PageNumber/0": 0, "/0/PageNumber/1": 9}
    stated = values(statements_of([file("a_2.tif", "tiff", found)], files_spec("a_{1..3}.tif")))
    assert (stated.get("source_size_z"), stated["source_size_y"]) == (None, 30)


def test_the_first_file_of_a_series_is_first_by_number():
    """`a_2` comes before `a_10`; only the first says when imaging began."""
    found = PLAIN | {"/0/FEI_TITAN/Metadata/Acquisition/AcquisitionDatetime": "2024-05-01T12:56:16"}
    documents = [file(f"a_{n}.tif", "tiff", found) for n in (10, 11, 2)]
    spec = spec_with(
        {
            "kind": "files",
            "url": "https://example.org/data",
            "files": [{"path": f"a_{n}.tif"} for n in (10, 11, 2)],
            "volume": {"files": [f"a_{n}.tif" for n in (10, 11, 2)]},
        }
    )
    assert the(statements_of(documents, spec), "acquired_on").document == "original/a_2.tif"


@given(st.sampled_from(AXES), *[st.integers(1, 4000) for _ in range(3)], st.integers(1, 1000))
def test_turned_axes_turn_sizes_and_voxels_alike(axes, pages, rows, columns, spacing_nm):
    """The file's own first, second and third axis state what `axes` calls them, in the main volume and in a copy."""
    found = {
        "/0/ImageWidth": columns,
        "/0/ImageLength": rows,
        "/0/RowsPerStrip": rows,
        "/0/ImageDescription/ImageJ": "1.54p",
        "/0/ImageDescription/images": str(pages),
        "/0/ImageDescription/slices": str(pages),
        "/0/ImageDescription/unit": "nm",
        "/0/ImageDescription/spacing": str(spacing_nm),
        "/0/XResolution": 0.25,
        "/0/YResolution": 0.5,
    }
    of_file = {"size": (pages, rows, columns), "voxel": (float(spacing_nm), 2.0, 4.0), "chunk": (1, rows, columns)}
    stated = values(statements_of([file("a.tif", "tiff", found)], files_spec("a.tif", axes=axes)))
    for axis in "zyx":
        place = axes.index(axis)
        assert stated[f"source_size_{axis}"] == of_file["size"][place]
        assert stated[f"voxel_size_{axis}_nm"] == of_file["voxel"][place]
    assert stated["source_chunk"] == " x ".join(str(of_file["chunk"][axes.index(axis)]) for axis in "zyx")
    assert stated["source_axes"] == axes


# -- HDF5


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        pytest.param({"element_size_um": [0.05, 0.008, 0.008]}, (50.0, 8.0, 8.0), id="unit in the name"),
        pytest.param({"resolution": [50, 8, 8], "unit": "nm"}, (50.0, 8.0, 8.0), id="one unit"),
        pytest.param({"voxel_size": [5e-8, 8, 8], "units": ["m", "nm", "nm"]}, (50.0, 8.0, 8.0), id="a unit each"),
        pytest.param({"resolution": [50, 8, 8]}, (None,) * 3, id="no unit"),
        pytest.param({"resolution": [50, 8], "unit": "nm"}, (None,) * 3, id="two numbers"),
        pytest.param({"resolution": [50, 0, 8], "unit": "nm"}, (50.0, None, 8.0), id="no size along one axis"),
    ],
)
def test_a_dataset_states_the_voxel_size_of_its_attributes(tmp_path, attributes, expected):
    """As the library shows them, those of a real file."""
    with h5py.File(tmp_path / "a.h5", "w") as written:
        dataset = written.create_dataset("volumes/raw", data=np.zeros((3, 4, 5), "uint8"))
        written["volumes"].attrs["resolution"] = [1.0, 1.0, 1.0]
        dataset.attrs.update(attributes)
    tags = dict(open_file(LocalBytes(tmp_path / "a.h5"), "volumes/raw", QUICK).tags())
    statements = statements_of([file("a.h5", "hdf5", tags)], files_spec("a.h5", dataset="volumes/raw"))
    stated = values(statements)
    assert tuple(stated.get(field) for field in VOXEL) == expected
    assert stated["file_format"] == "HDF5"


# -- Zarr


@pytest.fixture(scope="module")
def nacc_2(payloads):
    """The container of jrc_mus-nacc-2: its real attributes, and .zarray as another's listing of it says."""
    name = "openorganelle/jrc_mus-nacc-2.zarr__recon-2__em__fibsem-int16__.zattrs.json"
    tree = json.loads((payloads / "openorganelle/zarr_tree_fibsem-int16_helensilva.json").read_text())
    group = "recon-2/em/fibsem-int16"
    documents = [kept(f"{group}/.zattrs", "zarr", json.loads((payloads / name).read_text()))]
    children = tree["children"]
    for child in children.values() if isinstance(children, dict) else children:
        assert child["compressor"] == "Zstd(level=1)"
        array = {"zarr_format": 2, "shape": child["shape"], "chunks": child["chunks"], "dtype": "<i2"}
        array |= {"compressor": {"id": "zstd", "level": 1}}
        documents.append(kept(f"{group}/{child['path'].split('/')[-1]}/.zarray", "zarr", array))
    return documents


@pytest.mark.parametrize(
    ("level", "shape", "size_nm"),
    [
        pytest.param(0, (564, 2520, 2596), (2.96, 4.0, 4.0), id="first"),
        pytest.param(2, (141, 630, 649), (11.840000000000002, 16.0, 16.0), id="by its place"),
        pytest.param("s8", (2, 9, 10), (757.7599999999999, 1024.0, 1024.0), id="by its path"),
    ],
)
def test_the_level_that_the_spec_names_is_the_one_that_is_stated(nacc_2, level, shape, size_nm):
    """OpenOrganelle: whole shape and voxel size of that level, with the noise that the file has."""
    spec = packaged("jrc_mus_nacc_2")
    spec = spec.model_copy(update={"source": spec.source.model_copy(update={"level": level})})
    assert values(statements_of(nacc_2, spec)) == {
        **dict(zip(SIZES, shape, strict=True)),
        **dict(zip(VOXEL, size_nm, strict=True)),
        "dtype": "int16",
        "source_axes": "zyx",
        "file_format": "OME-Zarr 0.4",
        "compression": "zstd 1",
        "source_chunk": "64 x 64 x 64",
        "source_levels": 9,
    }


@pytest.mark.parametrize(
    ("codecs", "stated"),
    [
        pytest.param(["bytes"], "none", id="name alone"),
        pytest.param([{"name": "transpose"}, {"name": "bytes"}, {"name": "crc32c"}], "none", id="nothing packs"),
        pytest.param(
            [{"name": "bytes"}, {"name": "blosc", "configuration": {"cname": "zstd"}}], "blosc zstd", id="blosc"
        ),
        pytest.param([{"name": "bytes"}, {"name": "squeeze"}], None, id="unknown"),
        pytest.param([], None, id="not said"),
    ],
)
def test_that_nothing_is_compressed_needs_codecs_that_are_known(codecs, stated):
    """An unknown codec may pack."""
    array = {"zarr_format": 3, "node_type": "array", "shape": [5, 6, 7], "codecs": codecs}
    statements = statements_of([kept("zarr.json", "zarr", array)], chunked_spec("zarr"))
    assert values(statements).get("compression") == stated


def test_a_further_group_speaks_for_its_volume(nacc_2):
    """The nuclei's array is no level of the images, and the images' are none of the nuclei's."""
    group = "recon-2/labels/inference/segmentations/nuc"
    scale = [{"type": "scale", "scale": [23.68, 32.0, 32.0]}]
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    image = {"version": "0.4", "axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": scale}]}
    array = {"zarr_format": 2, "shape": [70, 315, 324], "chunks": [64, 64, 64], "dtype": "|u1", "compressor": None}
    labels = [kept(f"{group}/.zattrs", "zarr", {"multiscales": [image]}), kept(f"{group}/s0/.zarray", "zarr", array)]
    statements = statements_of([*nacc_2, *labels], packaged("jrc_mus_nacc_2"))
    assert values(statements, volume="nuc") == {
        **dict(zip(SIZES, (70, 315, 324), strict=True)),
        **dict(zip(VOXEL, (23.68, 32.0, 32.0), strict=True)),
        "dtype": "uint8",
        "source_axes": "zyx",
        "file_format": "OME-Zarr 0.4",
        "compression": "none",
        "source_chunk": "64 x 64 x 64",
        "source_levels": 1,
    }
    assert values(statements)["source_size_z"] == 564


def test_an_array_without_multiscales_is_read_by_its_own_transform():
    """COSEM names the axes beside the numbers, in an order of its own."""
    transform = {"axes": ["x", "y", "z"], "scale": [4.0, 4.0, 3.24], "translate": [0, 0, 0], "units": ["nm"] * 3}
    array = {"zarr_format": 2, "shape": [5, 6, 7], "chunks": [1, 6, 7], "dtype": "|u1"}
    array |= {"compressor": {"id": "blosc", "cname": "lz4", "clevel": 5}}
    documents = [kept("em/s1/.zarray", "zarr", array), kept("em/s1/.zattrs", "zarr", {"transform": transform})]
    stated = values(statements_of(documents, chunked_spec("zarr", "em", "s1")))
    assert [stated[field] for field in VOXEL] == [3.24, 4.0, 4.0]
    # the array's axes are those that its attributes name, too
    assert [stated[field] for field in SIZES] == [7, 6, 5]
    assert (stated["compression"], stated["file_format"]) == ("blosc lz4 5", "Zarr v2")


def test_a_scale_that_all_levels_share_counts_in_channels_and_shards_do_not():
    """OME-NGFF 0.5 in zarr.json: five axes, a common scale, sharding with chunks inside."""
    axes = [{"name": "t"}, {"name": "c"}, *({"name": name, "unit": "micrometer"} for name in "zyx")]
    scales = {"datasets": [1, 1, 0.5, 0.25, 0.25], "image": [1, 1, 0.1, 0.1, 0.1]}
    steps = {key: [{"type": "scale", "scale": scale}] for key, scale in scales.items()}
    datasets = [{"path": "0", "coordinateTransformations": steps["datasets"]}]
    image = {"axes": axes, "datasets": datasets, "coordinateTransformations": steps["image"]}
    inner = [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3}}, "crc32c"]
    sharding = {"chunk_shape": [1, 1, 8, 16, 16], "codecs": inner}
    array = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [1, 2, 20, 30, 40],
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1, 16, 32, 32]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    group = {"zarr_format": 3, "attributes": {"ome": {"version": "0.5", "multiscales": [image]}}}
    documents = [kept("zarr.json", "zarr", group), kept("0/zarr.json", "zarr", array)]
    statements = statements_of(documents, chunked_spec("zarr"))
    assert values(statements) == {
        **dict(zip(SIZES, (20, 30, 40), strict=True)),
        **dict(zip(VOXEL, (50.0, 25.0, 25.0), strict=True)),
        "channels": 2,
        "dtype": "uint16",
        "source_axes": "tczyx",
        "file_format": "OME-Zarr 0.5",
        "compression": "zstd 3",
        "source_chunk": "8 x 16 x 16",
        "source_levels": 1,
    }
    assert the(statements, "source_chunk").note == "in shards of 1, 1, 16, 32, 32"


# -- N5


def n5_array(**more):
    array = {"dimensions": [40, 30, 20], "blockSize": [16, 8, 4], "dataType": "uint16", "compression": {"type": "gzip"}}
    return array | more


@pytest.mark.parametrize(
    ("group", "array", "level", "size_nm"),
    [
        pytest.param({}, {"pixelResolution": {"dimensions": [4, 5, 6], "unit": "nm"}}, 0, (6.0, 5.0, 4.0), id="own"),
        pytest.param(
            {},
            {"pixelResolution": {"dimensions": [4, 5, 6], "unit": "nm"}, "downsamplingFactors": [2, 2, 1]},
            1,
            (6.0, 10.0, 8.0),
            id="own, with factors",
        ),
        pytest.param({}, {"pixelResolution": [4, 5, 6]}, 0, (None,) * 3, id="no unit"),
        pytest.param({}, {"resolution": [4, 5, 6], "units": ["nm", "nm", "um"]}, 0, (6000.0, 5.0, 4.0), id="units"),
        pytest.param(
            {"pixelResolution": {"dimensions": [4, 5, 6], "unit": "nm"}, "scales": [[1, 1, 1], [2, 2, 1]]},
            {},
            1,
            (6.0, 10.0, 8.0),
            id="the group's, by its scales",
        ),
        pytest.param(
            {"pixelResolution": {"dimensions": [4, 5, 6], "unit": "nm"}}, {}, 1, (None,) * 3, id="no factors, coarser"
        ),
        pytest.param(
            {},
            {"transform": {"axes": ["z", "y", "x"], "units": ["nm"] * 3, "scale": [6, 5, 4], "translate": [0] * 3}},
            0,
            (6.0, 5.0, 4.0),
            id="transform",
        ),
    ],
)
def test_sizes_of_an_n5_array_are_turned_to_z_y_x(group, array, level, size_nm):
    """Where each tool keeps a voxel's size; dimensions and blocks are x first."""
    documents = [
        kept("em/attributes.json", "n5", group),
        *(kept(f"em/s{n}/attributes.json", "n5", n5_array(**(array if n == level else {}))) for n in range(2)),
    ]
    stated = values(statements_of(documents, chunked_spec("n5", "em", level)))
    assert tuple(stated.get(field) for field in VOXEL) == size_nm
    assert [stated[field] for field in SIZES] == [20, 30, 40]
    assert stated["source_chunk"] == "4 x 8 x 16"
    assert (stated["dtype"], stated["file_format"], stated["compression"]) == ("uint16", "N5", "gzip")
    assert stated["source_axes"] == "zyx"


# -- precomputed


@pytest.mark.parametrize(
    ("level", "shape", "size_nm"),
    [
        pytest.param(0, (41408, 39552, 34432), 8.0, id="finest"),
        pytest.param(1, (20704, 19776, 17216), 16.0, id="coarser"),
        pytest.param(8, (162, 155, 135), 2048.0, id="coarsest"),
    ],
)
def test_the_scale_that_the_spec_names_is_the_one_that_is_stated(payloads, level, shape, size_nm):
    """The hemibrain's segmentation: x, y, z in the file; sizes that round up."""
    info = json.loads((payloads / "hemibrain/v1.0__segmentation__info.json").read_text())
    assert values(statements_of([kept("info.json", "precomputed", info)], precomputed_spec(level))) == {
        **dict(zip(SIZES, shape, strict=True)),
        **dict.fromkeys(VOXEL, size_nm),
        "dtype": "uint64",
        "channels": 1,
        "source_axes": "zyx",
        "file_format": "Neuroglancer precomputed",
        "compression": "compressed_segmentation + gzip",
        "source_chunk": "64 x 64 x 64",
        "source_levels": 9,
    }


@pytest.mark.parametrize(
    ("info", "form"),
    [
        pytest.param({"@type": "neuroglancer_multiscale_volume"}, "Neuroglancer precomputed", id="said"),
        pytest.param({}, "Neuroglancer precomputed", id="left out"),
        pytest.param({"@type": "neuroglancer_skeletons"}, None, id="something else"),
        pytest.param({"@type": ""}, None, id="empty"),
    ],
)
def test_the_type_of_an_info_may_be_left_out_but_is_no_other(info, form):
    """As the specification allows it."""
    document = kept("info.json", "precomputed", info | {"scales": [{"key": "8_8_8"}]})
    assert values(statements_of([document], precomputed_spec())).get("file_format") == form


def test_of_a_crop_the_whole_volume_is_stated(payloads):
    """What the publisher has of it, not what is kept here."""
    info = json.loads((payloads / "hemibrain/NEAREST_jpeg_sharded_info_dvid_test.json").read_text())
    stated = values(statements_of([kept("info.json", "precomputed", info)], packaged("hemibrain_crop")))
    assert [stated[field] for field in SIZES] == [9504, 9286, 11005]
    assert (stated["compression"], stated["dtype"], stated["source_levels"]) == ("jpeg + gzip", "uint8", 8)


# -- MRC


MRC = {
    "/nx": 40,
    "/ny": 30,
    "/nz": 20,
    "/mode": 0,
    "/mx": 40,
    "/my": 30,
    "/mz": 20,
    **{f"/cella/{axis}": 80.0 * n for axis, n in (("x", 40), ("y", 30), ("z", 20))},
    **dict.fromkeys(("/cellb/alpha", "/cellb/beta", "/cellb/gamma"), 90.0),
    "/mapc": 1,
    "/mapr": 2,
    "/maps": 3,
    "/ispg": 1,
    "/imodFlags": 0,
    "/label/0": "SerialEM: Titan at home                                 31-Mar-23  16:24:14",
    "/extended/0/HT": 300000.0,
    "/extended/0/Magnification": 115000.0,
    "/extended/0/Dwell time": 1e-6,
    "/extended/0/Pixel size X": 8e-9,
    "/extended/0/Pixel size Y": 8e-9,
    "/extended/0/Microscope type": "TITAN12345",
    "/extended/0/Application": "EPU",
    "/extended/0/Application version": "2.11",
}


def mrc_statements(**changed):
    tags = {key: value for key, value in (MRC | changed).items() if value is not None}
    return statements_of([file("a.mrc", "mrc", tags)], files_spec("a.mrc"))


def test_an_mrc_header_states_its_volume():
    """Sizes, type by IMOD's flags, the cell's edges divided; what was stated is the edge, and the note says by what."""
    statements = mrc_statements()
    assert values(statements, authority="file header") == {
        **dict(zip(SIZES, (20, 30, 40), strict=True)),
        **dict.fromkeys(VOXEL, 8.0),
        "dtype": "uint8",
        "file_format": "MRC",
        "source_axes": "zyx",
    }
    size = next(item for item in statements if (item.field, item.key) == ("voxel_size_y_nm", "/cella/y"))
    assert size.stated == "2400.0 angstrom" and "divided by MY 30" in size.note
    assert "IMOD's flags, 0" in the(statements, "dtype").note


def test_an_mrc_file_states_the_microscope_of_its_extended_header_and_labels():
    found = {(item.field, item.value) for item in mrc_statements() if item.authority == "file metadata"}
    assert found == {
        ("accelerating_voltage_v", 300000.0),
        ("magnification", 115000.0),
        ("dwell_time_s", 1e-6),
        ("voxel_size_y_nm", 8.0),
        ("voxel_size_x_nm", 8.0),
        ("instrument", "TITAN12345"),
        ("instrument", "Titan at home"),
        ("acquisition_software", "EPU 2.11"),
        ("acquisition_software", "SerialEM"),
        ("acquired_on", "2023-03-31"),
    }


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"/imodFlags": None}, {"dtype": "int8"}, id="bytes without IMOD's mark"),
        pytest.param({"/imodFlags": 1}, {"dtype": "int8"}, id="signed by IMOD"),
        pytest.param({"/mode": 2}, {"dtype": "float32"}, id="mode 2"),
        pytest.param({"/mode": 77}, {"dtype": None, "file_format": None}, id="unknown mode"),
        pytest.param({"/ispg": 401, "/mz": 5}, {"source_size_z": 5, "voxel_size_z_nm": 32.0}, id="stack of volumes"),
        pytest.param({"/ispg": 0, "/mz": 1}, {"voxel_size_z_nm": None, "voxel_size_y_nm": 8.0}, id="single pictures"),
        pytest.param({"/cellb/beta": 94.3}, dict.fromkeys(VOXEL), id="oblique cell"),
        pytest.param({"/cella/x": 0.0}, {"voxel_size_x_nm": None, "voxel_size_y_nm": 8.0}, id="no edge"),
        pytest.param({"/mapc": 3, "/maps": 1}, {"source_axes": "xyz", "source_size_z": 40}, id="columns along z"),
        pytest.param({"/mapc": 2}, {"source_axes": None, "source_size_z": None}, id="an axis twice"),
        pytest.param({"/label/0": "SerialEM: x   31-Foo-23  16:24:14"}, {"acquired_on": None}, id="no month"),
        pytest.param({"/label/0": "SerialEM: x   31-Feb-23  16:24:14"}, {"acquired_on": None}, id="no such day"),
    ],
)
def test_an_mrc_header_states_what_its_reader_takes_from_it(changed, expected):
    statements = [
        item for item in mrc_statements(**changed) if item.field == "acquired_on" or item.authority == "file header"
    ]
    stated = values(statements)
    assert {field: stated.get(field) for field in expected} == expected


def test_a_real_tilt_series_states_the_pixel_of_both_its_headers(realdata):
    """FEI's old files say 1 angstrom in the header, and the truth in the extended one: both are kept."""
    path = realdata / "mrc/etspy_HAADF.mrc"
    tags = dict(open_file(LocalBytes(path), None, QUICK).tags())
    statements = statements_of([file(path.name, "mrc", tags)], files_spec(path.name))
    found = {item.authority: item.value for item in statements if item.field == "voxel_size_x_nm"}
    assert found == {"file header": 0.1, "file metadata": pytest.approx(3.36)}


# -- all of them


def opened_files(realdata):
    """Every real file that can be opened: (its document, its reader)."""
    extractors = {".tif": "tiff", ".tiff": "tiff", ".dm3": "dm", ".dm4": "dm", ".h5": "hdf5"}
    extractors |= {".mrc": "mrc", ".map": "mrc"}
    for folder in ("tiff", "dm", "fibsem", "mrc"):
        for path in sorted((realdata / folder).iterdir()):
            extractor = extractors.get(path.suffix)
            if extractor is None:
                continue
            try:
                reader = open_file(LocalBytes(path), None, QUICK)
            except EmAssetsError:
                continue
            yield file(path.name, extractor, dict(reader.tags())), reader


def disagreement(stated, info):
    """What is stated otherwise than the reader has it: fields, each with both values."""
    sizes = zip((*SIZES, "dtype"), (*info.shape, info.dtype), strict=True)
    wrong = {field: (stated[field], value) for field, value in sizes if stated.get(field, value) != value}
    size_nm = info.voxel_size_nm or (None, None, None)
    for field, value in zip(VOXEL, size_nm, strict=True):
        if value is not None and not math.isclose(stated.get(field, math.nan), value, rel_tol=1e-12):
            wrong[field] = (stated.get(field), value)
    if (stated.get("channels", 1), info.channels or 1) not in ((1, 1), (info.channels,) * 2):
        wrong["channels"] = (stated.get("channels"), info.channels)
    return wrong


def test_real_files_state_what_their_readers_read(realdata):
    """Headers of some forty files of many programs: no size, type or voxel is stated otherwise than it is decoded."""
    compared, stated_fields = Counter(), Counter()
    for document, reader in opened_files(realdata):
        statements = statements_of([document], files_spec(document.path.removeprefix("original/")))
        stated = values(statements, authority="file header")
        assert disagreement(stated, reader.info) == {}, document.path
        assert stated.keys() >= ({"source_size_y", "dtype"} if document.extractor != "hdf5" else set()), document.path
        compared[document.extractor] += 1
        stated_fields.update(stated.keys())
    assert compared["tiff"] > 15
    assert compared["dm"] > 5
    assert compared["hdf5"] > 1
    assert compared["mrc"] > 8
    assert stated_fields["voxel_size_x_nm"] > 5


REAL_CONTAINERS = [
    ("zarr/ng_ome_zarr_simple_0.4", "zarr", 1),
    ("zarr/ng_ome_zarr_simple_0.5", "zarr", 2),
    ("zarr/gen_zarrpy_v3_sharded_ome0.5.zarr", "zarr", "s1"),
    ("zarr/gen_zarrpy_v2_openorganelle.zarr/em/fibsem-uint8", "zarr", 1),
    ("zarr/mobie_mri-stack.ome.zarr", "zarr", 1),
    ("zarr/zarrjava_ome_v0.4", "zarr", 1),
    ("zarr/zarrjava_ome_v0.4/labels/nuclei", "zarr", 0),
    ("zarr/viv_blobs_image_v04.ome.zarr", "zarr", 0),
    ("zarr/omezarrpy_v1", "zarr", 0),
    ("zarr/zarrjava_sharding_end", "zarr", 0),
    ("zarr/ng_zarr_v2_from_zarr-python_data.zarr/3d.chunked.mixed.i2.F", "zarr", 0),
    ("zarr/gen_ts_fib25.n5", "n5", "volumes/raw"),
    ("zarr/ng_n5_viewer_multiscale_modern.n5", "n5", 1),
    ("zarr/n5universe_test.n5", "n5", "c0/s1"),
    ("zarr/n5universe_test.n5/cosem_ms", "n5", 2),
    ("zarr/n5universe_test.n5/cosem", "n5", 0),
    ("zarr/n5universe_test.n5/n5v_pr-ds", "n5", 0),
    ("zarr/n5universe_test.n5/n5v_pra-ds", "n5", 0),
    ("zarr/n5java_data-1.5.0.n5", "n5", "raw"),
    ("zarr/tensorstore_n5_blosc", "n5", 0),
    ("precomputed/gen_ts_fib25_sharded_jpeg", "precomputed", 0),
    ("precomputed/gen_cv_fib25_raw_gz_2mips", "precomputed", 1),
]


@pytest.mark.parametrize(("folder", "kind", "level"), REAL_CONTAINERS, ids=[f"{f}:{n}" for f, _, n in REAL_CONTAINERS])
def test_real_containers_state_what_their_readers_read(realdata, folder, kind, level):
    """The documents that the reader fetched, kept as a run keeps them: shape, chunk, type and voxel of its level."""
    url = folder_url(realdata / folder)
    if kind == "precomputed":
        reader = open_precomputed(url, level, FolderClient(), QUICK)
        documents, spec = {"info.json": reader.info_document}, precomputed_spec(level)
    else:
        open_container = {"zarr": open_zarr, "n5": open_n5}[kind]
        reader = open_container(url, None if level == 0 else str(level), FolderClient(), QUICK)
        documents, spec = reader.documents(), chunked_spec(kind, "", level)
    claims = [kept(path, kind, parse_json(raw, path)) for path, raw in documents.items()]
    stated = values(statements_of(claims, spec), authority="file header")
    assert disagreement(stated, reader.info) == {}
    size_nm = tuple(stated.get(field) for field in VOXEL)
    assert size_nm == reader.info.voxel_size_nm or (reader.info.voxel_size_nm is None and None in size_nm)
    assert {"source_size_x", "dtype", "file_format"} <= stated.keys()
    if "source_size_z" in stated:
        assert stated["source_chunk"] == " x ".join(map(str, reader.info.chunk))


@pytest.mark.parametrize("axes", AXES)
def test_a_turned_real_file_states_what_its_turned_reader_reads(realdata, axes):
    """The same order of axes, taken by the reader and by the mapping."""
    path = realdata / "tiff/mobie_mri-stack-calibrated.tif"
    reader = open_file(LocalBytes(path), None, QUICK)
    statements = statements_of([file(path.name, "tiff", dict(reader.tags()))], files_spec(path.name, axes=axes))
    stated, info = values(statements), as_zyx(reader, axes).info
    assert tuple(stated[field] for field in SIZES) == info.shape
    assert tuple(stated[field] for field in VOXEL) == info.voxel_size_nm


def test_fei_texts_state_the_microscope_in_si(realdata):
    """A Scios 2: sections and XML say the same, in metres; its ISO date decides the two that could be swapped."""
    path = realdata / "tiff/nexuslims_scios_xml_metadata.tif"
    tags = dict(open_file(LocalBytes(path), None, QUICK).tags())
    statements = statements_of([file(path.name, "tiff", tags)], files_spec(path.name))
    found = {(item.field, item.value) for item in statements if item.authority == "file metadata"}
    texts = {field: value for field, value in found if isinstance(value, str)}
    assert texts == {"instrument": "FEI Scios 2", "acquired_on": "2024-05-01"}
    numbers = {field: value for field, value in found if not isinstance(value, str)}
    assert numbers == {
        "voxel_size_y_nm": pytest.approx(26.9792, rel=1e-4),
        "voxel_size_x_nm": pytest.approx(26.9792, rel=1e-4),
        "accelerating_voltage_v": 5000.0,
        "beam_current_a": pytest.approx(1.6e-9),
        "dwell_time_s": pytest.approx(1e-5),
        "working_distance_mm": pytest.approx(6.98462, rel=1e-5),
    }
    days = [item for item in statements if item.field == "acquired_on"]
    assert len(days) == 3
    assert sum("AcquisitionDatetime decides" in (item.note or "") for item in days) == 2


def corpus():
    """One document of each kind with its spec, small enough to break in every way."""
    tags = {
        "Microscope Info/Voltage": 1900.0,
        "Microscope Info/WD (mm)": 5.5,
        "DigiScan/Sample Time": 0.5,
        "DataBar/Acquisition Date": "11.06.2018",
        "DigiScan/TimeStamp": "Mon Jun 11 22:26:45 2018\u2028",
        "DataBar/Acquisition Time (OS)": 1.3173222436078186e17,
        "Meta Data/Dimension info/2/Scale": 50.0,
        "Meta Data/Dimension info/2/Units": "nm",
        "SBFSEM/Record/Slice thickness": 50.0,
    }
    data = {"DataType": 6, "Dimensions/0": 40, "Dimensions/1": 30}
    data |= {
        f"Calibrations/Dimension/{n}/{key}": value for n in range(2) for key, value in (("Scale", 8.0), ("Units", "nm"))
    }
    dm = {f"{TAGS}/{key}": value for key, value in tags.items()} | {
        f"{DM}/ImageData/{key}": v for key, v in data.items()
    }
    dm |= {"/ImageSourceList/0/ImageRef": 1, "/Thumbnails/0/ImageIndex": 0}
    text = "ImageJ=1.54p\nimages=20\nslices=20\nunit=nm\nspacing=8.0\n"
    tags = {
        "ImageWidth": 40,
        "ImageLength": 30,
        "BitsPerSample": 8,
        "SampleFormat": 1,
        "Compression": 1,
        "RowsPerStrip": 30,
    }
    tags |= {"SamplesPerPixel": 1, "XResolution": [1, 8], "YResolution": [1, 8], "PageNumber": [0, 20]}
    tiff = tiff_values({0: tags | {"ImageDescription": text}})
    ome = '<OME Creator="x"><Image><Pixels DimensionOrder="XYZCT" Type="uint8" SizeX="40" SizeY="30" SizeZ="20" '
    ome += 'SizeC="1" SizeT="1" PhysicalSizeX="8" PhysicalSizeXUnit="nm" PhysicalSizeZ="8"/></Image></OME>'
    ome = tiff_values({0: tags | {"ImageDescription": ome}})
    fei = "[User]\nDate=05/01/2024\n[Beam]\nBeam=EBeam\n[EBeam]\nHV=5000\nWD=0.005\n[Scan]\nPixelWidth=8e-9\n"
    fei = tiff_values({0: tags | {"FEI_HELIOS": fei}})
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    steps = [{"type": "scale", "scale": [8.0, 8.0, 8.0]}]
    image = {"version": "0.4", "axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": steps}]}
    v2 = {"zarr_format": 2, "shape": [20, 30, 40], "chunks": [8, 8, 8], "dtype": "<u2", "compressor": {"id": "zstd"}}
    grid = {"name": "regular", "configuration": {"chunk_shape": [8, 8, 8]}}
    v3 = {"zarr_format": 3, "node_type": "array", "shape": [20, 30, 40], "data_type": "int16", "chunk_grid": grid}
    v3 |= {
        "codecs": [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 5}}],
        "attributes": {"transform": {}},
    }
    transform = {"axes": ["z", "y", "x"], "units": ["nm"] * 3, "scale": [8.0] * 3, "translate": [0.0] * 3}
    levels = {"multiscales": [{"datasets": [{"path": "s0", "transform": transform}]}], "scales": [[1, 1, 1]]}
    resolution = {"pixelResolution": {"dimensions": [8, 8, 8], "unit": "nm"}, "downsamplingFactors": [1, 1, 1]}
    scale = {"key": "8", "size": [40, 30, 20], "resolution": [8, 8, 8], "chunk_sizes": [[8, 8, 8]], "encoding": "raw"}
    info = {"@type": "neuroglancer_multiscale_volume", "data_type": "uint8", "num_channels": 1, "scales": [scale]}
    return {
        "dm": ([file("a.dm3", "dm", dm)], files_spec("a.dm3")),
        "imagej": ([file("a.tif", "tiff", tiff)], files_spec("a.tif", axes="yzx")),
        "ome": ([file("a.tif", "tiff", ome)], files_spec("a.tif")),
        "fei": ([file("a.tif", "tiff", fei)], files_spec("a.tif")),
        "hdf5": (
            [file("a.h5", "hdf5", {"/raw@resolution": "3 x float64: 8.0, 8.0, 8.0", "/raw@unit": "nm"})],
            files_spec("a.h5"),
        ),
        "mrc": ([file("a.mrc", "mrc", MRC)], files_spec("a.mrc", axes="xzy")),
        "ome-zarr": (
            [kept("g/.zattrs", "zarr", {"multiscales": [image]}), kept("g/s0/.zarray", "zarr", v2)],
            chunked_spec("zarr", "g"),
        ),
        "zarr v3": ([kept("zarr.json", "zarr", v3)], chunked_spec("zarr")),
        "n5": (
            [kept("g/attributes.json", "n5", levels), kept("g/s0/attributes.json", "n5", n5_array(**resolution))],
            chunked_spec("n5", "g", "s0"),
        ),
        "precomputed": ([kept("info.json", "precomputed", info)], precomputed_spec()),
    }


CORPUS = corpus()
HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        ["", "nan", "-0", "1e999", "1/0", "\u2028", "0", "٣", "9" * 400, "12.13.2018", "°", "3 x float64: a"]
    ),
    st.sampled_from([0, -1, 2**70, 1.5, -0.0, math.inf, -math.inf, math.nan, 1e308, 1e-308]),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
)


def sound(statement, documents):
    """Of the vocabulary, in its kind's form, and of a claim that is there."""
    field = FIELDS[statement.field]
    claims = {document.path: document.values for document in documents}
    assert statement.key in claims[statement.document]
    assert statement.stated != ""
    if field.kind == "number":
        assert isinstance(statement.value, float | int)
        assert math.isfinite(statement.value)
        assert statement.value > 0
    else:
        assert isinstance(statement.value, str)
        assert statement.value.strip() != ""
    if field.kind == "date":
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", statement.value)


@pytest.mark.parametrize("name", CORPUS)
def test_every_statement_has_its_claim_and_its_kinds_form(name):
    """And a whole document of each kind states sizes or a voxel at least."""
    documents, spec = CORPUS[name]
    statements = statements_of(documents, spec)
    for statement in statements:
        sound(statement, documents)
    assert {"voxel_size_x_nm", "source_size_x"} & {item.field for item in statements}


@pytest.mark.parametrize("name", CORPUS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_hostile_values_state_nothing_odd_and_raise_nothing(name, data):
    """Any claims of a document replaced by anything, or missing: what is still stated is sound."""
    documents, spec = CORPUS[name]
    broken = []
    for document in documents:
        keys = data.draw(st.lists(st.sampled_from(sorted(document.values)), min_size=1, max_size=6, unique=True))
        found = dict(document.values) | {key: data.draw(HOSTILE) for key in keys}
        for key in data.draw(st.lists(st.sampled_from(sorted(document.values)), max_size=3, unique=True)):
            del found[key]
        broken.append(replace(document, values=found))
    for statement in statements_of(broken, spec):
        sound(statement, broken)


@pytest.mark.parametrize("name", CORPUS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_order_of_claims_does_not_matter(name, data):
    """Any order of the same claims gives the same statements."""
    documents, spec = CORPUS[name]
    shuffled = [replace(item, values=dict(data.draw(st.permutations(list(item.values.items()))))) for item in documents]
    assert statements_of(shuffled, spec) == statements_of(documents, spec)


@pytest.mark.parametrize("name", CORPUS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_document_does_not_state_what_another_claims(name, data):
    """Each document read alone, beside the others as context, gives its part; together they give all."""
    documents, spec = CORPUS[name]
    context = Context(spec, {document.path: document for document in data.draw(st.permutations(documents))})
    parts = [item for document in documents for item in READERS[document.extractor](document, context)]
    assert parts == statements_of(documents, spec)
    assert all(item.document in context.documents for item in parts)


def test_a_container_of_another_kind_states_nothing():
    """Documents that are left of what the spec named before are not read as what it names now."""
    for name, other in (
        ("ome-zarr", "n5"),
        ("n5", "precomputed"),
        ("precomputed", "mrc"),
        ("mrc", "dm"),
        ("dm", "ome-zarr"),
    ):
        assert statements_of(CORPUS[name][0], CORPUS[other][1]) == [], name
