"""Points of annotations: kept as they came, and as a table in the frame of the volume they belong to."""

import json

import pyarrow.parquet as pq
import pytest

from em_assets import blocks as em
from em_assets.catalog.build import build_catalog
from em_assets.datasets.portal import PointSet
from em_assets.errors import Malformed, Mismatch
from em_assets.formats.points import Point
from em_assets.pipeline import describe_dataset
from em_assets.records import DatasetFolder
from em_assets.sources.points import encode_points, is_made_of, point_leaves, points_table, read_stored_points
from em_assets.store import open_store
from portal_sample import SPACING, ServedPortal, write_once

RIBOSOME = "cytosolic_ribosome"
KEPT = f"documents/points.{RIBOSOME}.ndjson"
PUBLISHED = f"{SPACING}/Annotations/100/{RIBOSOME}-1.0_point.ndjson"
METADATA = f"{SPACING}/Annotations/100/{RIBOSOME}-1.0.json"
URL = "https://example.org/10000/TS_026/Annotations/100/spots-1.0_point.ndjson"
TURN = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
LINES = b"""{"type": "point", "location": {"x": 1, "y": 2, "z": 3}}
{"type": "instancePoint", "location": {"x": -4.5, "y": 0, "z": 7}, "instance_id": 8}
{"type": "instancePoint", "location": {"x": 1, "y": 1, "z": 1}, "instance_id": 8}
"""


@pytest.fixture
def portal(tmp_path_factory, tmp_path):
    with ServedPortal(write_once(tmp_path_factory.getbasetemp()), tmp_path) as served:
        yield served


def points_of(**changes):
    return PointSet.model_validate({"url": URL, "voxel_size_nm": [1.5, 2.0, 4.0], **changes})


# The table


@pytest.mark.parametrize(
    ("counted_from", "nm"),
    [pytest.param("centre", (5.25, 5.0, 6.0), id="centre"), pytest.param("corner", (4.5, 4.0, 4.0), id="corner")],
)
def test_a_location_becomes_a_place_in_nanometres(counted_from, nm):
    """Location i is the middle of voxel i, unless the spec says that it is the corner; voxels stay as published."""
    table = points_table(points_of(counted_from=counted_from), [Point((3.0, 2.0, 1.0))], URL)
    (row,) = table.to_pylist()
    assert (row["z_nm"], row["y_nm"], row["x_nm"]) == nm
    assert (row["z"], row["y"], row["x"]) == (3.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        pytest.param(Point((0, 0, 0), line=4), ("point", None, None, 4), id="point"),
        pytest.param(Point((0, 0, 0), rotation=TURN), ("orientedPoint", None, list(TURN), 0), id="oriented"),
        pytest.param(Point((0, 0, 0), instance_id=7), ("instancePoint", 7, None, 0), id="instance"),
    ],
)
def test_what_a_point_has_is_in_its_row(point, expected):
    """Its kind, object, rotation row by row, and line; null where it has none."""
    (row,) = points_table(points_of(), [point], URL).to_pylist()
    assert (row["kind"], row["instance_id"], row["rotation"], row["line"]) == expected


@pytest.mark.parametrize(("given", "number"), [(117, 117), (None, 100)], ids=["the spec's", "the address'"])
def test_the_annotation_is_in_every_row(given, number):
    """As the spec has it, else as the address that delivered the file."""
    (row,) = points_table(points_of(annotation=given), [Point((0, 0, 0))], URL).to_pylist()
    assert row["annotation"] == number


def test_no_points_are_a_table_of_no_rows():
    """With all its columns and their types."""
    empty, one = points_table(points_of(), [], URL), points_table(points_of(), [Point((0, 0, 0))], URL)
    assert (empty.num_rows, empty.schema) == (0, one.schema)


def test_equal_files_give_equal_bytes_that_are_known_again():
    """A table is made anew if the file is another, or the spec reads it otherwise."""
    points = points_of()
    one, other = (encode_points("spots", points, LINES, "x", URL, sha256="ab") for _ in range(2))
    assert one == other and is_made_of(one, "spots", points, "ab")
    assert not is_made_of(one, "spots", points, "cd")
    assert not is_made_of(one, "spots", points_of(counted_from="corner"), "ab")
    assert not is_made_of(b"no table", "spots", points, "ab")


def test_what_a_file_states_as_a_whole():
    """How many points of which kind, of how many objects, between which locations."""
    counts = {"/points": 3, "/kinds/instancePoint": 2, "/kinds/point": 1, "/instances": 1}
    lowest = {"/lowest/z": 1.0, "/lowest/y": 0.0, "/lowest/x": -4.5}
    highest = {"/highest/z": 7.0, "/highest/y": 2.0, "/highest/x": 1.0}
    assert dict(point_leaves(points_of(), LINES, "x")) == counts | lowest | highest


# With a dataset


def test_points_arrive_beside_the_volume(portal):
    """Raw as published, a table of the same number, and a frame from Python, before and after downloading."""
    spec = portal.spec()
    before = em.open(spec.name, settings=portal.settings).points(RIBOSOME)
    record, _ = portal.materialize(spec)
    raw = (portal.tree / PUBLISHED).read_bytes()
    assert portal.folder(spec).read(KEPT) == raw
    lines = [json.loads(line)["location"] for line in raw.splitlines()]
    table = pq.read_table(portal.file(spec, f"points/{RIBOSOME}.parquet"))
    assert record.additional_metadata["points"][RIBOSOME]["points"] == table.num_rows == len(lines) > 0
    assert table["z_nm"].to_pylist() == [(line["z"] + 0.5) * 1.348 for line in lines]
    volume = em.open(spec.name, settings=portal.settings)
    frame = volume.points(RIBOSOME)
    assert frame.equals(before) and set(frame["annotation"]) == {100}
    low, high = volume.box_nm.start, volume.box_nm.stop
    for axis, column in enumerate(("z_nm", "y_nm", "x_nm")):
        assert frame[column].between(low[axis], high[axis]).all()
    with pytest.raises(Mismatch, match=f"no points 'actin'; here are: .*{RIBOSOME}"):
        volume.points("actin")


def test_a_crop_keeps_the_points_outside_of_it(portal):
    """Their coordinates are those of the whole tomogram, and say that they lie elsewhere."""
    document = portal.document()
    document["crop"] = {"shape": [8, 6, 8], "origin": [8, 8, 8], "snap": False}
    spec = portal.spec(document)
    portal.materialize(spec)
    volume = em.open(spec.name, settings=portal.settings)
    frame, (low, high) = volume.points(RIBOSOME), (volume.box_nm.start, volume.box_nm.stop)
    assert low == pytest.approx((8 * 5.392,) * 3)
    inside = [all(low[n] <= row[n] < high[n] for n in range(3)) for row in frame[["z_nm", "y_nm", "x_nm"]].to_numpy()]
    assert len(frame) == len((portal.tree / PUBLISHED).read_bytes().splitlines()) and not all(inside)


def test_another_count_in_the_metadata_is_a_conflict(portal):
    """The file's lines are counted; what the portal says stands beside, and the view `points` has both."""
    import duckdb

    portal.edit(METADATA, object_count=5000)
    spec, store = portal.added("zarr", "ribosome"), open_store(portal.settings.root)
    describe_dataset(spec, portal.settings, store, fetch=True)
    build_catalog({spec.name: spec}, store, portal.settings)
    count = len((portal.tree / PUBLISHED).read_bytes().splitlines())
    with duckdb.connect(f"{portal.settings.root}/metadata.duckdb", read_only=True) as database:
        conflicts = database.sql("select volume, value_a, value_b from conflicts where field = 'object_count'")
        assert conflicts.fetchall() == [(f"points/{RIBOSOME}", str(count), "5000")]
        rows = database.sql("select name, points, count, stated_count, document from points").fetchall()
    assert rows == [(spec.name, RIBOSOME, count, 5000, KEPT)]


def test_points_that_cannot_be_had_stop_nothing_and_come_later(portal):
    """Which line is none is said, nothing of it is kept, all else is whole; when it is right it comes, voxels stay."""
    right = (portal.tree / PUBLISHED).read_bytes()
    portal.replace(PUBLISHED, b'{"type": "point", "location": {"x": 1, "y": 2}}\n')
    spec = portal.spec()
    first, _ = portal.materialize(spec)
    assert first.status == "complete"
    assert "line 1" in first.additional_metadata["documents_missing"][KEPT]
    noted = first.additional_metadata["points"]
    assert KEPT in noted[RIBOSOME]["problem"] and "points" in noted["fatty_acid_synthase_complex"]
    assert not portal.file(spec, f"points/{RIBOSOME}.parquet").exists()
    portal.replace(PUBLISHED, right)
    second, result = portal.materialize(spec)
    assert (second.status, second.sha256, result.changed) == ("complete", first.sha256, False)
    assert second.additional_metadata["points"][RIBOSOME]["points"] == len(right.splitlines())
    assert second.additional_metadata["documents_missing"] == {}


def test_a_damaged_table_is_named(tmp_path):
    """Not a stack trace of a Parquet reader."""
    folder = DatasetFolder(open_store(str(tmp_path)), "some")
    folder.write("points/spots.parquet", b"damaged")
    with pytest.raises(Malformed, match=r"points/spots\.parquet is no table of points"):
        read_stored_points(folder, "spots")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"columns": "zyx"}, "ndjson says all of that itself", id="columns of ndjson"),
        pytest.param({"format": "xlsx"}, "format", id="an unknown format"),
        pytest.param({"format": "csv", "columns": "xyy"}, "columns", id="columns"),
        pytest.param({"counted_from": "edge"}, "counted_from", id="counted from"),
    ],
)
def test_points_that_mean_nothing_are_refused(portal, changes, message):
    document = portal.document()
    document["points"][RIBOSOME] |= changes
    with pytest.raises(Malformed, match=message):
        portal.spec(document)
