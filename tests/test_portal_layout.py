"""Where everything lies in the portal's tree."""

import json

import pytest

from em_assets.errors import Malformed
from em_assets.portal import layout
from em_assets.portal.layout import RunPlace

RUN = RunPlace(10000, "TS_026")
SPACING = RUN.spacing(13.48)
TOMOGRAM = SPACING.tomogram(100)
ANNOTATION = SPACING.annotation(117, layout.object_slug("Cytosolic ribosome"), 1.0)
RECONSTRUCTIONS = "10000/TS_026/Reconstructions/VoxelSpacing13.480"

PLACES = {
    "depositions_metadata/10000/deposition_metadata.json": layout.deposition_metadata(10000),
    "depositions_metadata/10000/Images/thumbnail.gif": layout.deposition_image(10000, "thumbnail", ".gif"),
    "10000/dataset_metadata.json": layout.dataset_metadata(10000),
    "10000/Images/snapshot.png": layout.dataset_image(10000, "snapshot", "png"),
    "10000/TS_026/run_metadata.json": RUN.metadata,
    "10000/TS_026/Frames/TS_026_001.tif": RUN.frames("TS_026_001.tif"),
    "10000/TS_026/Frames/TS_026.mdoc": RUN.mdoc,
    "10000/TS_026/Frames/frames_metadata.json": RUN.frames_metadata,
    "10000/TS_026/Gains/CountRef.mrc": RUN.gain("CountRef.mrc"),
    "10000/TS_026/TiltSeries": RUN.all_tilt_series,
    "10000/TS_026/TiltSeries/100/TS_026.mrc": RUN.tilt_series(100).mrc,
    "10000/TS_026/TiltSeries/100/TS_026.zarr": RUN.tilt_series(100).zarr,
    "10000/TS_026/TiltSeries/100/TS_026.rawtlt": RUN.tilt_series(100).rawtlt,
    "10000/TS_026/TiltSeries/100/TS_026_CTFFIND_ctf.txt": RUN.tilt_series(100).ctf("CTFFIND"),
    "10000/TS_026/TiltSeries/100/tiltseries_metadata.json": RUN.tilt_series(100).metadata,
    "10000/TS_026/Alignments": RUN.alignments,
    "10000/TS_026/Alignments/101/TS_026.xf": RUN.alignment(101).file("xf"),
    "10000/TS_026/Alignments/101/alignment_metadata.json": RUN.alignment(101).metadata,
    "10000/TS_026/IdentifiedObjects/identified_objects.json": RUN.identified_objects,
    "10000/TS_026/IdentifiedObjects/identified_objects_metadata.json": RUN.identified_objects_metadata,
    f"{RECONSTRUCTIONS}/Tomograms": SPACING.tomograms,
    f"{RECONSTRUCTIONS}/Tomograms/100/TS_026.mrc": TOMOGRAM.mrc,
    f"{RECONSTRUCTIONS}/Tomograms/100/TS_026.zarr": TOMOGRAM.zarr,
    f"{RECONSTRUCTIONS}/Tomograms/100/tomogram_metadata.json": TOMOGRAM.metadata,
    f"{RECONSTRUCTIONS}/Images/100/key-photo-expanded.png": TOMOGRAM.image("expanded"),
    f"{RECONSTRUCTIONS}/NeuroglancerPrecompute/100-neuroglancer_config.json": TOMOGRAM.state,
    f"{RECONSTRUCTIONS}/Annotations": SPACING.annotations,
    f"{RECONSTRUCTIONS}/Annotations/117/cytosolic_ribosome-1.0.json": ANNOTATION.metadata,
    f"{RECONSTRUCTIONS}/Annotations/117/cytosolic_ribosome-1.0_point.ndjson": ANNOTATION.file(
        layout.SHAPE_SUFFIXES["Point"], "ndjson"
    ),
    f"{RECONSTRUCTIONS}/Annotations/117/cytosolic_ribosome-1.0_segmentationmask.zarr": ANNOTATION.file(
        layout.SHAPE_SUFFIXES["SemanticSegmentationMask"], "zarr"
    ),
    f"{RECONSTRUCTIONS}/Annotations/117/cytosolic_ribosome-1.0_point_caption.json": ANNOTATION.file(
        layout.caption_suffix("Point"), "json"
    ),
    f"{RECONSTRUCTIONS}/NeuroglancerPrecompute/117-cytosolic_ribosome-1.0_point": ANNOTATION.precomputed("point"),
}


@pytest.mark.parametrize("expected", PLACES)
def test_everything_lies_where_the_portal_puts_it(expected):
    """As its code names it: underscores in the names of metadata, three decimals of the spacing, the run's name."""
    assert PLACES[expected] == expected


def test_the_portals_own_files_name_the_same_places(payloads):
    """Paths within its metadata files, apart from two that are older than its present layout."""
    folder, run = payloads / "cryoet/metadata", RunPlace(30001, "RUN1")
    tomogram = json.loads((folder / "tomogram_metadata.json").read_text())
    place = run.spacing(tomogram["voxel_spacing"]).tomogram(100)
    assert (tomogram["omezarr_dir"], tomogram["mrc_file"]) == (place.zarr, place.mrc)
    assert tomogram["alignment_metadata_path"] == run.alignment(100).metadata
    alignment = json.loads((folder / "alignment_metadata.json").read_text())
    assert alignment["tiltseries_path"] == run.tilt_series(100).metadata
    assert tomogram["neuroglancer_config_path"].replace("100/neuro", "100-neuro") == place.state
    assert tomogram["key_photo"]["snapshot"].replace("Images/", "Images/100/") == place.image("snapshot")


@pytest.mark.parametrize(
    ("spacing", "folder"),
    [
        pytest.param(10, "VoxelSpacing10.000", id="whole number"),
        pytest.param(13.480796, "VoxelSpacing13.481", id="more decimals"),
        pytest.param(3.3702, "VoxelSpacing3.370", id="four decimals"),
    ],
)
def test_spacings_have_three_decimals(spacing, folder):
    """The one place where a spacing is rounded."""
    assert layout.spacing_folder(spacing) == folder


@pytest.mark.parametrize(
    ("name", "description", "slug"),
    [
        pytest.param("Cytosolic ribosome", None, "cytosolic_ribosome", id="name"),
        pytest.param("membrane", "Inner, \u03b2-actin", "inner____actin", id="description"),
        pytest.param("membrane", "x" * 51, "membrane", id="long description"),
        pytest.param("membrane", "x" * 50, "x" * 50, id="longest description"),
        pytest.param("membrane", "", "membrane", id="empty description"),
    ],
)
def test_slugs(name, description, slug):
    """Lower case, `_` for all but a to z and digits."""
    assert layout.annotation_slug(name, description) == slug


@pytest.mark.parametrize("version", [1.0, "1.0"])
def test_versions_keep_their_dot(version):
    """As number and as text alike; a version is no way out of the folder."""
    assert SPACING.annotation(100, "a", version).stem == "a-1.0"
    assert SPACING.annotation(100, "a", "../B").stem == "a-.._b"


HOSTILE = ["", ".", "..", "../x", "a/b", "a\\b", "a\nb", "\0"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_in_its_folder(name):
    """Names come from buckets and configurations: one that leads elsewhere is refused wherever it is used."""
    uses = [
        lambda: RunPlace(1, name),
        lambda: RUN.frames(name),
        lambda: RUN.gain(name),
        lambda: RUN.alignment(100).file(name),
        lambda: RUN.tilt_series(100).ctf(name),
        lambda: ANNOTATION.file(name, "zarr"),
        lambda: ANNOTATION.file("point", name),
        lambda: SPACING.annotation(100, name, "1.0"),
        lambda: layout.dataset_image(1, "snapshot", name),
    ]
    for use in uses:
        with pytest.raises(Malformed, match="expected one name"):
            use()
