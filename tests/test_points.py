"""Points of annotations: the portal's own example of every format, what others must read, and hostile files."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unsupported
from em_assets.formats._rotations import IDENTITY, is_rotation, relion_rotation, slicer_rotation, stopgap_rotation
from em_assets.formats.points import POINT_FORMATS, Point, PointOptions, read_points, write_ndjson


def points(raw, kind_of_file="csv", **options):
    raw = raw.encode() if isinstance(raw, str) else raw
    return list(read_points(raw, kind_of_file, "a file", options=PointOptions(**options)))


def places(raw, kind_of_file="csv", **options):
    return [point.xyz for point in points(raw, kind_of_file, **options)]


# What the portal publishes of its own test files: (x, y, z), and for some the rotation

SIN_45, SIN_60 = math.sqrt(0.5), math.sqrt(0.75)
THREE = [(1, 2, 3), (2, 2, 2), (0, 3, 0)]
HALF_OF_THREE = [(0.5, 1, 1.5), (1, 1, 1), (0, 1.5, 0)]
FIRST_TWO = [(0, -SIN_45, SIN_45, 1, 0, 0, 0, SIN_45, SIN_45), None]
QUARTER_TURNS = [(0, 0, -1, 0, 1, 0, 1, 0, 0), None, (0, 0, 1, 0, 1, 0, -1, 0, 0)]
PARTICLES_1, PARTICLES_2 = [(1.3, 2.6, 3.8), (0.2, 0.4, 0.7)], [(3.5, 3, 2.5), (-1.5, 2, -0.5), (4, 0.5, 1)]
FIRST_SLICE = (0.8642748, -0.48992935, -0.11401013, 0.50301996, 0.84178288, 0.19588902, 0, -0.22665131, 0.97397597)
COPICK = [(4, 2, 3), (0, 5, 1), (3, 1.5, 9.2), (3, 1, 5)]
STOPGAP_PLACES = [(0.7, 1.4, 2.2), (1.8, 1.6, 1.3)]
STOPGAP_1 = [(0, 1, 0, -SIN_45, 0, SIN_45, SIN_45, 0, SIN_45), None]
POINTS, WITH_HEADER = ("points.csv", "csv"), ("points_with_header_pipe_delim.csv", "csv_with_header")
RELION_3, RELION_4 = ("relion_3_star.star", "relion3_star"), ("relion_4_star.star", "relion4_star")
TOMOMAN, STOPGAP_FILE = ("tomoman_relion_star.star", "tomoman_relion_star"), ("stopgap_star.star", "stopgap_star")
PORTAL = {
    "csv": (*POINTS, {}, THREE, None),
    "tabs": ("points_tab_delim.csv", "csv", {"delimiter": "\t", "binning": 2}, HALF_OF_THREE, None),
    "tsv": ("points_tab_delim.csv", "tsv", {}, THREE, None),
    "header": ("points_with_header.csv", "csv_with_header", {"columns": "xyz"}, THREE, None),
    "bars": (
        "points_with_header_pipe_delim.csv",
        "csv_with_header",
        {"delimiter": "|", "binning": 2},
        HALF_OF_THREE,
        None,
    ),
    "model": ("points.mod", "mod", {"binning": 2.0}, HALF_OF_THREE, None),
    "RELION 3, 1": (
        "relion_3_star.star",
        "relion3_star",
        {"filter_value": "tomo_1.tomostar", "binning": 4},
        PARTICLES_1,
        FIRST_TWO,
    ),
    "RELION 3, 2": (
        "relion_3_star.star",
        "relion3_star",
        {"filter_value": "tomo_2.tomostar", "binning": 2},
        PARTICLES_2,
        QUARTER_TURNS,
    ),
    "RELION 4, 1": (
        "relion_4_star.star",
        "relion4_star",
        {"filter_value": "TS_001", "binning": 4},
        PARTICLES_1,
        FIRST_TWO,
    ),
    "RELION 4, 3": (*RELION_4, {"filter_value": "TS_003"}, [(1, 0, -1)], [IDENTITY]),
    "TOMOMAN": (
        "tomoman_relion_star.star",
        "tomoman_relion_star",
        {"filter_value": "grid_1_lamella1_pos2", "binning": 2},
        PARTICLES_2,
        QUARTER_TURNS,
    ),
    "STOPGAP, 1": (
        "stopgap_star.star",
        "stopgap_star",
        {"filter_value": "1", "binning": 4},
        [(0.7, 1.4, 2.2), (1.8, 1.6, 1.3)],
        STOPGAP_1,
    ),
    "STOPGAP, 3": (*STOPGAP_FILE, {"filter_value": "3"}, [(5, 4, 3)], [IDENTITY]),
    "slices of a model": (
        "oriented_points.mod",
        "mod",
        {"kind": "orientedPoint"},
        [
            (235.5195770263672, 682.744140625, 302.0),
            (221.94244384765625, 661.1932373046875, 327.0),
            (232.7907257080078, 671.33203125, 327.0),
            (240.12918090820312, 679.9277954101562, 324.0),
        ],
        [
            (0.8642748, -0.48992935, -0.11401013, 0.50301996, 0.84178288, 0.19588902, 0, -0.22665131, 0.97397597),
            None,
            None,
            None,
        ],
    ),
    "copick": (
        "copick.json",
        "copick",
        {"kind": "orientedPoint", "binning": 10},
        [(4, 2, 3), (0, 5, 1), (3, 1.5, 9.2), (3, 1, 5)],
        [FIRST_TWO[0], None, None, None],
    ),
}


@pytest.mark.parametrize("case", PORTAL.values(), ids=PORTAL)
def test_files_of_the_portals_tests_read_as_the_portal_reads_them(payloads, case):
    """Locations and rotations are those that its own tests expect; every rotation is one."""
    name, kind_of_file, options, expected, rotations = case
    raw = (payloads / "cryoet/source/20002/annotations" / name).read_bytes()
    found = points(raw, kind_of_file, **options)
    assert np.allclose([point.xyz for point in found], expected, rtol=0, atol=1e-12)
    for point, rotation in zip(found, rotations or [None] * len(found), strict=True):
        assert (point.rotation is None) == (rotations is None)
        assert point.rotation is None or is_rotation(point.rotation, 1e-6)
        assert rotation is None or np.allclose(point.rotation, rotation, rtol=0, atol=1e-7)
    assert points(write_ndjson(found), "ndjson") == [
        Point(p.zyx, p.rotation, p.instance_id, n) for n, p in enumerate(found, 1)
    ]


def test_instances_are_those_of_the_file(payloads):
    folder = payloads / "cryoet/source/20002/annotations"
    found = points((folder / "tardis.csv").read_bytes(), "tardis", binning=2)
    assert [(p.instance_id, p.xyz) for p in found] == [
        *[(0, (2, 4, 6)), (0, (2, 2, 2)), (1, (3, 2, 1)), (1, (0, 3, 0)), (1, (4, 2, 1)), (2, (1.5, 1, 0.5))]
    ]
    picks = points((folder / "copick_instance.json").read_bytes(), "copick", kind="instancePoint", binning=5)
    assert [(p.instance_id, p.rotation) for p in picks] == [(0, None)] * 6 and picks[0].xyz == (2, 4, 6)


# Rotations

ANGLES = st.tuples(*[st.floats(-400, 400) | st.sampled_from([0.0, 90.0, -90.0, 180.0, 270.0])] * 3)


def turn(axis, degrees):
    """By Rodrigues' formula, for an axis that is a vector."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]], float)
    return np.eye(3) + math.sin(math.radians(degrees)) * cross + (1 - math.cos(math.radians(degrees))) * cross @ cross


def turned_along(axes, degrees):
    """The axes turn along: every rotation is about where the ones before it took its axis."""
    rotation = np.eye(3)
    for axis, angle in zip(axes, degrees, strict=True):
        rotation = turn(rotation @ np.eye(3)["xyz".index(axis)], angle) @ rotation
    return rotation


def turned_about(axes, degrees):
    """The axes stay."""
    rotation = np.eye(3)
    for axis, angle in zip(axes, degrees, strict=True):
        rotation = turn(np.eye(3)["xyz".index(axis)], angle) @ rotation
    return rotation


@settings(max_examples=60, deadline=None)
@given(ANGLES)
def test_angles_become_the_rotations_that_their_conventions_describe(angles):
    """One after the other about axes that turn along or stay; each is orthonormal with determinant 1."""
    first, second, third = angles
    for found, expected in (
        (relion_rotation(first, second, third), turned_along("zyz", angles).T),
        (stopgap_rotation(phi=first, psi=third, the=second), turned_about("zxz", angles)),
        (slicer_rotation(third, second, first), turned_about("zyx", angles).T),
    ):
        assert np.allclose(found, expected.ravel(), rtol=0, atol=1e-12) and is_rotation(found, 1e-12)


def test_where_the_axis_of_a_particle_points_to_is_known():
    """Tilted by 90 degrees the reference's z lies along -x in RELION's convention, along -y in STOPGAP's."""
    assert relion_rotation(0, 90, 0)[2::3] == (-1, 0, 0)
    assert stopgap_rotation(phi=0, psi=0, the=90)[2::3] == (0, -1, 0)
    assert stopgap_rotation(phi=90, psi=0, the=0) == (0, -1, 0, 1, 0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    "matrix", [(0, 1, 0, 1, 0, 0, 0, 0, 1), (2, 0, 0, 0, 2, 0, 0, 0, 2), (1, 0.1, 0, 0, 1, 0, 0, 0, 1)]
)
def test_a_mirror_a_stretch_and_a_shear_are_no_rotations(matrix):
    assert not is_rotation(matrix)


STOPGAP = "data_x\nloop_\n" + "".join(
    f"_{name}\n"
    for name in ["tomo_num", "orig_x", "orig_y", "orig_z", "x_shift", "y_shift", "z_shift", "phi", "psi", "the"]
)


def test_other_axes_turn_location_and_rotation_together():
    """A file whose x is our z: a turn about its x by 90 degrees is ours about z by -90."""
    raw = STOPGAP + "1 10 20 30 1 2 3 0 0 90\n"
    (turned,) = points(raw, "stopgap_star", order="zyx")
    assert turned.xyz == (33, 22, 11)
    assert np.allclose(turned.rotation, turn((0, 0, 1), -90).ravel())
    (as_is,) = points(raw, "stopgap_star")
    assert as_is.zyx == (33, 22, 11) and as_is.line == 13


# Options

CSV = "1,2,3\n4,5,6\n"
HEADED = "z,y,x,score\n1,2,3,0.5\n"


def test_columns_say_which_axis_is_which():
    assert places(CSV, columns="zyx") == [(3, 2, 1), (6, 5, 4)]
    assert places(CSV, columns="yzx", binning=2) == [(1.5, 0.5, 1), (3, 2, 2.5)]
    assert places("1  2 3\n", delimiter=" ") == [(1, 2, 3)]


def test_a_header_that_names_axes_is_believed_and_must_not_contradict():
    assert places(HEADED, "csv_with_header") == [(3, 2, 1)]
    with pytest.raises(Mismatch, match="line 1: the header names its columns z, y, x, but columns is xyz"):
        places(HEADED, "csv_with_header", columns="xyz")
    assert places("a,b,c\n1,2,3", "csv_with_header") == [(1, 2, 3)]


WRONG_OPTIONS = {
    "columns": ({"columns": "xy"}, Malformed, "columns is 'xy'"),
    "order": ({"order": "xxz"}, Malformed, "order is 'xxz'"),
    "delimiter": ({"delimiter": "::"}, Malformed, "delimiter is '::'"),
    "no binning": ({"binning": 0}, Malformed, "binning is 0"),
    "binning that is no number": ({"binning": math.nan}, Malformed, "binning is nan"),
    "binning that is true": ({"binning": True}, Malformed, "binning is True"),
    "kind": ({"kind": "mesh"}, Unsupported, "accepted are point, orientedPoint"),
    "filter": ({"filter_value": "TS_1"}, Unsupported, "format csv says of no point which tomogram it is in"),
    "rotation": ({"kind": "orientedPoint"}, Unsupported, "line 1: the point has no rotation"),
    "instance": ({"kind": "instancePoint"}, Unsupported, "line 1: the point has no instance"),
}


@pytest.mark.parametrize(("options", "error", "reason"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_an_option_that_means_nothing_is_refused(options, error, reason):
    with pytest.raises(error, match=reason):
        points(CSV, **options)


def test_a_format_that_is_not_read_is_refused_before_anything_is_read():
    with pytest.raises(Unsupported, match="'xlsx' are not read; accepted are ndjson, csv"):
        read_points(b"", "xlsx", "a file")


def test_a_filter_that_fits_nothing_names_what_there_is(payloads):
    """Numbers are compared as numbers: a tomogram 01 is 1."""
    raw = (payloads / "cryoet/source/20002/annotations/stopgap_star.star").read_bytes()
    assert len(points(raw, "stopgap_star", filter_value="02.0")) == 3
    assert len(points(raw, "stopgap_star", filter_value="")) == 6
    with pytest.raises(Mismatch, match="no particle of _tomo_num '9'; it has '1', '2', '3'"):
        points(raw, "stopgap_star", filter_value="9")


def test_a_point_with_rotation_and_instance_is_not_written_as_one_of_them():
    pick = {"location": {"x": 1, "y": 2, "z": 3}, "transformation_": np.eye(4).tolist(), "instance_id": 7}
    raw = json.dumps({"unit": "angstrom", "points": [pick]})
    both = points(raw, "copick")
    assert both[0].instance_id == 7 and both[0].rotation == IDENTITY
    with pytest.raises(Unsupported, match="has a rotation and the instance 7"):
        write_ndjson(both)
    plain = {"type": "point", "location": {"x": 1.0, "y": 2.0, "z": 3.0}}
    assert json.loads(write_ndjson(points(raw, "copick", kind="point"))) == plain


def test_ndjson_is_written_as_the_portal_writes_it():
    """Keys and types of its point converter; lines are separated, the last has no end."""
    written = write_ndjson([Point((3, 2, 1), IDENTITY), Point((6, 5, 4), instance_id=9)])
    matrix = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert written.count(b"\n") == 1 and [json.loads(line) for line in written.split(b"\n")] == [
        {"type": "orientedPoint", "location": {"x": 1, "y": 2, "z": 3}, "xyz_rotation_matrix": matrix},
        {"type": "instancePoint", "location": {"x": 4, "y": 5, "z": 6}, "instance_id": 9},
    ]


# What formats mean


def relion4(optics, particle, extra=""):
    places = [f"rln{what}{axis}{unit}" for what, unit in (("Coordinate", ""), ("Origin", "Angst")) for axis in "XYZ"]
    columns = "".join(f"_{name}\n" for name in ["rlnTomoName", *places, "rlnOpticsGroup", *extra.split()])
    return f"data_optics\nloop_\n{optics}\ndata_particles\nloop_\n{columns}{particle}\n"


def test_a_shift_in_angstrom_is_divided_by_the_pixel_of_its_own_optics_group():
    """What coordinates count are pixels of the tilt series; the portal takes the image's pixel of the first group."""
    optics = "_rlnOpticsGroup\n_rlnTomoTiltSeriesPixelSize\n_rlnImagePixelSize\n1 1.0 4.0\n2 2.0 8.0\n"
    assert places(relion4(optics, "TS 10 20 30 2 4 6 2"), "relion4_star") == [(9, 18, 27)]
    with pytest.raises(Malformed, match=r"gives no pixel size .* of optics group 3"):
        places(relion4(optics, "TS 10 20 30 2 4 6 3"), "relion4_star")
    assert places(relion4(optics, "TS 10 20 30 0 0 0 3"), "relion4_star") == [(10, 20, 30)]


def test_particles_whose_orientation_is_in_two_parts_are_refused():
    """RELION 4 keeps the subtomogram's own rotation apart; reading one part alone would be wrong."""
    extra = "rlnTomoSubtomogramRot rlnTomoSubtomogramTilt rlnTomoSubtomogramPsi"
    optics = "_rlnOpticsGroup\n_rlnImagePixelSize\n1 1.0\n"
    assert places(relion4(optics, "TS 1 2 3 0 0 0 1 0 0 0", extra), "relion4_star") == [(1, 2, 3)]
    with pytest.raises(Unsupported, match="line 20: _rlnTomoSubtomogramRot and its like are not 0"):
        places(relion4(optics, "TS 1 2 3 0 0 0 1 0 30 0", extra), "relion4_star")


def test_a_table_of_a_later_relion_is_not_read_as_an_earlier_one():
    """Its shifts, which are in angstrom, would be lost."""
    with pytest.raises(Unsupported, match="read it as relion4_star"):
        places(relion4("_rlnOpticsGroup\n1\n", "TS 1 2 3 9 9 9 1"), "relion3_star")


def test_star_files_may_have_quotes_comments_and_tables_of_one_row():
    raw = "# c\ndata_\n_rlnCoordinateX 1 #1\n_rlnCoordinateY '2'\n_rlnCoordinateZ \"3\"\n_rlnTomoName 'a b'\r\n"
    assert places(raw, "tomoman_relion_star", filter_value="a b") == [(1, 2, 3)]


def test_a_pick_of_copick_is_shifted_by_its_matrix_and_turned_only_if_that_is_to_be_trusted():
    matrix = [[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]]
    document = {"unit": "angstrom", "points": [{"location": {"x": 1, "y": 2, "z": 3}, "transformation_": matrix}]}
    (point,) = points(json.dumps(document), "copick")
    assert point.xyz == (11, 22, 33) and point.rotation == (0, -1, 0, 1, 0, 0, 0, 0, 1) and point.instance_id is None
    (point,) = points(json.dumps(document | {"trust_orientation": False}), "copick")
    assert point.xyz == (11, 22, 33) and point.rotation is None
    with pytest.raises(Unsupported, match="unit is 'nm'; accepted is angstrom"):
        points(json.dumps(document | {"unit": "nm"}), "copick")


# Hostile files

NDJSON = '{"type": "point", "location": {"x": 1, "y": 2, "z": 3}}'
TARDIS = "IDs,X [A],Y [A],Z [A]\n"
ORIENTED = NDJSON.replace('"point"', '"orientedPoint"')
HOSTILE = {
    "csv: not UTF-8": (b"1,2,3\n1,\xff,3\n", "csv", "line 2: not UTF-8 .byte 0xff"),
    "csv: NUL": ("1,2,3\n1,\0,3\n", "csv", "line 2: it has a NUL"),
    "csv: not a number": ("1,2,3\n1,2,nan\n", "csv", "line 2: z is 'nan', expected a finite number"),
    "csv: infinite": ("1,inf,3\n", "csv", "line 1: y is 'inf'"),
    "csv: beyond any float": ("1e999,2,3\n", "csv", "line 1: x is '1e999'"),
    "csv: as Python writes it": ("1_0,2,3\n", "csv", "line 1: x is '1_0'"),
    "csv: two columns": ("1,2\n", "csv", r"line 1: 2 columns, expected at least 3; .*delimiter"),
    "csv: a longer row": ("1,2,3\n1,2,3,4\n", "csv", "line 2: 4 columns, where the lines before have 3"),
    "csv: a header": ("x,y,z\n1,2,3\n", "csv", "line 1: x is 'x'"),
    "csv: an open quote": ('1,2,"3\n4,5,6\n', "csv", "line 1: not a row of a table"),
    "csv: a long line": ("1,2," + "3" * 20_000, "csv", "line 1: longer than 10000 characters"),
    "header: none": (CSV, "csv_with_header", "line 1: '1,2,3' names no columns; read it as format csv"),
    "header: empty": ("\n\n", "csv_with_header", "is empty"),
    "header: row as wide as it": ("x,y,z\n1,2,3,4\n", "csv_with_header", "line 2: 4 columns"),
    "tardis: other columns": ("X,Y,Z,IDs\n1,2,3,4\n", "tardis", "expected IDs, X, Y and Z"),
    "tardis: half an id": (TARDIS + "0.5,1,2,3\n", "tardis", "line 2: IDs is '0.5', expected a whole number"),
    "tardis: a huge id": (TARDIS + f"{2**70},1,2,3\n", "tardis", "line 2: IDs is"),
    "ndjson: no JSON": (NDJSON + "\n{", "ndjson", "line 2, line 1 column 2: not JSON"),
    "ndjson: a number": ("1\n", "ndjson", "line 1: '1' is no object"),
    "ndjson: NaN": (NDJSON.replace("1", "NaN"), "ndjson", "line 1: NaN is not JSON"),
    "ndjson: 1e999": (NDJSON.replace("1", "1e999"), "ndjson", "line 1: location/x is 'inf'"),
    "ndjson: an integer beyond floats": (NDJSON.replace("1", "9" * 390), "ndjson", "location/x is"),
    "ndjson: true": (NDJSON.replace("1", "true"), "ndjson", "location/x is 'True'"),
    "ndjson: no location": ('{"type": "point"}', "ndjson", "line 1: location is 'None'"),
    "ndjson: a type": (NDJSON.replace('"point"', '"mesh"'), "ndjson", "type is 'mesh', expected one of point"),
    "ndjson: no matrix": (ORIENTED, "ndjson", "the rotation is 'None', expected 3 rows of 3 numbers"),
    "ndjson: no instance": (NDJSON.replace('"point"', '"instancePoint"'), "ndjson", "instance_id is 'None'"),
    "copick: a list": ("[]", "copick", "has no list of points"),
    "copick: a point": ('{"unit": "angstrom", "points": [1]}', "copick", "point 1: '1' is no object"),
    "STAR: nothing": ("", "stopgap_star", "has 0 tables with a column _orig_x .it has nothing"),
    "STAR: no block": ("loop_\n_a\n1\n", "stopgap_star", "line 1: expected data_"),
    "STAR: a short row": (STOPGAP + "1 2 3\n", "stopgap_star", "line 13: 3 values, expected 10"),
    "STAR: a row without columns": ("data_\nloop_\n1 2\n", "stopgap_star", "line 3: a row of values"),
    "STAR: a name without value": ("data_\n_a\n", "stopgap_star", "line 2: _a has no value"),
    "STAR: a column twice": ("data_\nloop_\n_a\n_a\n", "stopgap_star", "line 4: _a is given twice"),
    "STAR: an angle": (STOPGAP + "1 1 1 1 0 0 0 0 NaN 0\n", "stopgap_star", "line 13: _psi is 'NaN'"),
    "STAR: two tables": (2 * (STOPGAP + "1 1 1 1 0 0 0 0 0 0\n"), "stopgap_star", "has 2 tables"),
    "STAR: another dialect": (
        "data_\nloop_\n_rlnCoordinateX\n1\n",
        "relion3_star",
        "no column _rlnCoordinateY, _rlnCoord",
    ),
}


@pytest.mark.parametrize(("raw", "kind_of_file", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_not_of_its_format_is_malformed_and_the_line_is_named(raw, kind_of_file, reason):
    with pytest.raises(Malformed, match=reason) as raised:
        points(raw, kind_of_file)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500 and str(raised.value).startswith("a file")


def model(*chunks):
    header = bytearray(232)
    return b"IMODV1.2" + bytes(header) + b"".join(chunks) + b"IEOF"


OBJECT = b"OBJT" + bytes(176)
CONTOUR = b"CONT" + struct.pack(">4i6f", 2, 0, 0, 0, 1, 2, 3, 4, 5, 6)


def test_the_points_of_a_model_are_found_between_other_chunks():
    """Of all objects; a mesh, which is long, is passed over."""
    mesh = b"MESH" + struct.pack(">4i", 1, 2, 0, 0) + bytes(12 + 8)
    raw = model(b"XYZW" + struct.pack(">i", 5) + bytes(5), OBJECT, CONTOUR, mesh, OBJECT, CONTOUR)
    assert places(raw, "mod") == [(1, 2, 3), (4, 5, 6)] * 2
    assert points(raw, "mod", kind="orientedPoint") == []


WRONG_MODELS = {
    "not a model": (b"MRC " + bytes(300), "expected b'IMODV1.2'"),
    "another version": (model().replace(b"V1.2", b"V1.1"), "is of version b'V1.1'"),
    "cut": (model(OBJECT, CONTOUR)[:-20], "a CONT of 2 points does not fit"),
    "cut header": (model()[:100], "byte 240: a chunk's name"),
    "no end": (model(OBJECT)[:-4], "does not fit"),
    "2^31 points": (model(b"CONT" + struct.pack(">4i", 2**31 - 1, 0, 0, 0)), "a CONT of 2147483647 points"),
    "-1 points": (model(b"CONT" + struct.pack(">4i", -1, 0, 0, 0)), "a CONT of -1 points"),
    "a chunk of -8 bytes": (model(b"XYZW" + struct.pack(">i", -8)), "of -8 bytes"),
    "a mesh of -1": (model(b"MESH" + struct.pack(">4i", -1, 100, 0, 0) + bytes(900)), "a MESH of -1 vertices"),
    "not finite": (model(b"CONT" + struct.pack(">4i3f", 1, 0, 0, 0, 1, math.nan, 3)), "is not finite"),
}


@pytest.mark.parametrize(("raw", "reason"), WRONG_MODELS.values(), ids=WRONG_MODELS)
def test_a_damaged_model_is_malformed(raw, reason):
    with pytest.raises(Malformed, match=reason):
        points(raw, "mod")


SEEDS = [CSV, NDJSON, STOPGAP + "1 10 20 30 1 2 3 0 0 90\n", HEADED, TARDIS + "0,1,2,3\n", model(OBJECT, CONTOUR)]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_bytes_are_points_or_an_error_of_ours(data):
    """Good files with bytes changed, read as any format: finite points, or one sentence."""
    seed = data.draw(st.sampled_from(SEEDS))
    raw = bytearray(seed.encode() if isinstance(seed, str) else seed)
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = points(bytes(raw), data.draw(st.sampled_from(POINT_FORMATS)))
    except EmAssetsError:
        return
    assert all(math.isfinite(value) for point in found for value in (*point.zyx, *(point.rotation or ())))
