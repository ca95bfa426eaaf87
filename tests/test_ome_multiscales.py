"""OME-NGFF multiscales as parsed JSON: what they say of axes, sizes and places, and what is refused."""

import contextlib
import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_assets.errors import EmAssetsError, Malformed, Unsupported
from em_assets.formats._ome_multiscales import parse_multiscales, safe_path
from em_assets.formats._pyramid import require_consistent

WHERE = "http://x/.zattrs"
JRC_SHAPES = [
    (564, 2520, 2596),
    (282, 1260, 1298),
    (141, 630, 649),
    (70, 315, 324),
    (35, 157, 162),
    (17, 78, 81),
    (8, 39, 40),
    (4, 19, 20),
    (2, 9, 10),
]
"""Of jrc_mus-nacc-2: rounded down."""
JRC_Z_SCALES = [2.96, 5.92, 11.840000000000002, 23.68, 47.36, 94.72, 189.44, 378.8799999999999, 757.7599999999999]
JRC_Z_TRANSLATIONS = [0.0, 1.48, 4.4399999999999995, 10.36, 22.2, 45.88, 93.24, 187.96, 377.4]


def space(names="zyx", unit="nanometer"):
    return [{"name": name, "type": "space"} | ({"unit": unit} if unit else {}) for name in names]


def level(path, scale=None, translation=None):
    transformations = [{"type": "scale", "scale": scale}] if scale else []
    transformations += [{"type": "translation", "translation": translation}] if translation else []
    return {"path": path} | ({"coordinateTransformations": transformations} if transformations else {})


def image(*levels, axes=None, **more):
    return {"multiscales": [{"version": "0.4", "axes": axes or space(), "datasets": list(levels)} | more]}


def jrc():
    """The real group's attributes, with its quirks: null members, float noise, a group scale of ones."""
    levels = [
        level(f"s{k}", [JRC_Z_SCALES[k], 4.0 * 2**k, 4.0 * 2**k], [JRC_Z_TRANSLATIONS[k], *[2.0 * (2**k - 1)] * 2])
        for k in range(9)
    ]
    group = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    return image(*levels, metadata=None, type=None, name="", coordinateTransformations=group)


def parse(attributes, shapes=None):
    pyramid = parse_multiscales(attributes, WHERE)
    if shapes is not None:
        require_consistent(pyramid, shapes)
    return pyramid


def sizes(pyramid):
    return [pyramid.scale_nm(found) for found in pyramid.levels]


def corners(pyramid):
    return [pyramid.corner_nm(found) for found in pyramid.levels]


# -- what is understood


def test_the_real_pyramid_of_openorganelle():
    """Half-voxel translations say that they place centres: every level begins at the same corner."""
    pyramid = parse(jrc(), JRC_SHAPES)
    assert (pyramid.axes, pyramid.convention) == ("zyx", "centre")
    assert sizes(pyramid)[:3] == [(2.96, 4.0, 4.0), (5.92, 8.0, 8.0), (11.840000000000002, 16.0, 16.0)]
    for corner in corners(pyramid):
        assert corner == pytest.approx((-1.48, -2.0, -2.0), abs=1e-9)


@pytest.mark.parametrize(
    ("unit", "nanometres"),
    [
        ("nanometer", 4.0),
        ("angstrom", 0.4),
        ("micrometer", 4000.0),
        ("millimeter", 4e6),
        ("picometer", 0.004),
        ("meter", 4e9),
        ("um", 4000.0),
        ("\u00b5m", 4000.0),
        ("\u03bcm", 4000.0),
        ("pixel", None),
        ("unit", None),
        (None, None),
    ],
)
def test_units_end_in_nanometres(unit, nanometres):
    """What is no length, or not there, leaves the size unknown: it is not made up."""
    pyramid = parse(image(level("0", [4.0, 4.0, 4.0]), axes=space(unit=unit)))
    assert sizes(pyramid) == [None if nanometres is None else (nanometres,) * 3]


def test_units_are_converted_without_noise():
    """0.0296 micrometres are 29.6 nm, not 29.599999999999998."""
    assert sizes(parse(image(level("0", [0.0296, 0.007, 1.1]), axes=space(unit="micrometer")))) == [(29.6, 7.0, 1100.0)]


@pytest.mark.parametrize(
    ("axes", "letters"),
    [
        (["z", "y", "x"], "zyx"),
        (["t", "c", "z", "y", "x"], "tczyx"),
        ([{"name": "c", "type": "channel"}, *space()], "czyx"),
        ([{"name": "time", "type": "time"}, {"name": "Channel", "type": "channel"}, *space("yx")], "tcyx"),
        (space("xyz"), "xyz"),
        (space("yx"), "yx"),
    ],
    ids=["0.3", "0.3 5D", "0.4 channels", "long names", "xyz", "2D"],
)
def test_axes_by_name(axes, letters):
    """In the order of the array, whatever that is."""
    assert parse(image(level("0"), axes=axes)).axes == letters


def test_sizes_follow_the_names_of_axes():
    """Of an array in x, y, z order the last number is that of z."""
    pyramid = parse(image(level("0", [1.0, 2.0, 3.0], [10.0, 20.0, 30.0]), axes=space("xyz")))
    assert sizes(pyramid) == [(3.0, 2.0, 1.0)]
    assert corners(pyramid) == [(28.5, 19.0, 9.5)]


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_the_first_versions_have_no_axes(version):
    """Those of the array are taken when it is known; sizes are not stated."""
    pyramid = parse({"multiscales": [{"version": version, "datasets": [{"path": "0"}, {"path": "1"}]}]})
    assert pyramid.axes == ""
    pyramid = pyramid.with_axes("tczyx")
    assert (pyramid.axes, sizes(pyramid), pyramid.convention) == ("tczyx", [None, None], "scale-only")


def test_version_0_5_stands_below_ome():
    """And its version beside the list."""
    attributes = image(level("0", [1.0, 1.0, 1.0]))
    del attributes["multiscales"][0]["version"]
    assert sizes(parse({"ome": {"version": "0.5", **attributes}})) == [(1.0, 1.0, 1.0)]


def test_a_group_without_multiscales_has_no_pyramid():
    """Which is not an error by itself."""
    assert parse({}) is None
    assert parse({"ome": {"version": "0.5"}}) is None
    assert parse(None) is None


def test_transformations_of_the_group_come_on_top():
    """Scale of scale, scale of translation, and their sum."""
    group = [{"type": "scale", "scale": [1.0, 2.0, 4.0]}, {"type": "translation", "translation": [100.0, 0.0, 7.0]}]
    attributes = image(
        level("0", [1.0, 1.0, 1.0], [0.0, 3.0, 5.0]),
        level("1", [2.0, 2.0, 2.0], [0.5, 3.5, 5.5]),
        coordinateTransformations=group,
    )
    pyramid = parse(attributes)
    assert sizes(pyramid) == [(1.0, 2.0, 4.0), (2.0, 4.0, 8.0)]
    assert pyramid.translation_nm(pyramid.levels[1]) == (100.5, 7.0, 29.0)
    assert corners(pyramid) == [(99.5, 5.0, 25.0)] * 2


# -- corner or centre


@pytest.mark.parametrize(
    ("translations", "convention", "expected_corners"),
    [
        ([(0, 0, 0), (2, 2, 2), (6, 6, 6)], "centre", [(-2.0,) * 3] * 3),
        ([(104, 0, 0), (106, 2, 2), (110, 6, 6)], "centre", [(102.0, -2.0, -2.0)] * 3),
        ([None, (2, 2, 2), (6, 6, 6)], "centre", [(-2.0,) * 3] * 3),
        ([(0, 0, 0), (2, 2, 2 + 1e-7), (6, 6, 6)], "centre", [(-2.0,) * 3] * 3),
        ([None, None, None], "scale-only", [(0.0,) * 3] * 3),
        ([(0, 0, 0)] * 3, "scale-only", [(0.0,) * 3] * 3),
        ([(100, 0, 8)] * 3, "corner", [(100.0, 0.0, 8.0)] * 3),
        ([(100, 0, 8)], "centre", [(98.0, -2.0, 6.0)]),
        ([None], "scale-only", [(0.0,) * 3]),
    ],
    ids=[
        "half voxels",
        "half voxels from an offset",
        "first left out",
        "noise",
        "none",
        "zero",
        "constant",
        "one level, as the specification says",
        "one level, none",
    ],
)
def test_what_translations_place_shows_in_how_they_grow(translations, convention, expected_corners):
    """A mean of 2x2x2 voxels moves the first centre by half a voxel and leaves the corner where it was."""
    levels = [
        level(str(k), [4.0 * 2**k] * 3, None if moved is None else list(moved)) for k, moved in enumerate(translations)
    ]
    pyramid = parse(image(*levels))
    assert pyramid.convention == convention
    for corner, expected in zip(corners(pyramid), expected_corners, strict=True):
        assert corner == pytest.approx(expected, abs=1e-6)


@given(
    base=st.tuples(*[st.floats(0.1, 100)] * 3),
    start=st.tuples(*[st.floats(-1e6, 1e6)] * 3),
    factors=st.lists(st.tuples(*[st.sampled_from([1, 2, 3, 4])] * 3), max_size=5),
)
def test_block_means_share_one_corner(base, start, factors):
    """The law of the half voxel, for any whole factors and any start."""
    scales = [base]
    for factor in factors:
        scales.append(tuple(a * b for a, b in zip(scales[-1], factor, strict=True)))
    levels = [
        level(str(k), list(s), [t + (a - b) / 2 for t, a, b in zip(start, s, base, strict=True)])
        for k, s in enumerate(scales)
    ]
    pyramid = parse(image(*levels))
    if pyramid.convention == "centre":
        for corner in corners(pyramid):
            assert corner == pytest.approx(corners(pyramid)[0], abs=1e-6)
    else:  # nothing moves, so nothing shows what is placed
        assert len(set(scales)) == 1 or not any(any(found.translation or ()) for found in pyramid.levels)


# -- what is refused


def broken(change):
    attributes = copy.deepcopy(image(level("s0", [1.0, 1.0, 1.0]), level("s1", [2.0, 2.0, 2.0])))
    change(attributes["multiscales"][0])
    return attributes


def set_path(path):
    return lambda found: found["datasets"][1].update(path=path)


def set_scale(scale):
    return lambda found: found["datasets"][1]["coordinateTransformations"][0].update(scale=scale)


PATH = r"/multiscales/0/datasets/1/path is"
SCALE = r"/multiscales/0/datasets/1/coordinateTransformations/0/scale is"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(set_path("../../x"), PATH, id="B25 path leads up"),
        pytest.param(set_path("s0/../../x"), PATH, id="B25 path leads up later"),
        pytest.param(set_path("https://evil/x"), PATH, id="B25 path is an address"),
        pytest.param(set_path("//evil/x"), PATH, id="B25 path is a host"),
        pytest.param(set_path("/etc"), PATH, id="B25 path is absolute"),
        pytest.param(set_path("a\\b"), PATH, id="B25 path with backslash"),
        pytest.param(set_path("s1?x=1"), PATH, id="B25 path with query"),
        pytest.param(set_path("s1\n"), PATH, id="B25 path with newline"),
        pytest.param(set_path(""), PATH, id="B25 path empty"),
        pytest.param(set_path(None), PATH, id="B25 path null"),
        pytest.param(set_path("s0"), "names the same path twice", id="B25 path twice"),
        pytest.param(set_scale([2.0, 0, 2.0]), SCALE, id="B25 scale 0"),
        pytest.param(set_scale([2.0, 2.0, -2.0]), SCALE, id="B25 scale negative"),
        pytest.param(set_scale([2.0, 2.0]), SCALE, id="B25 scale too short"),
        pytest.param(set_scale([2.0, 2.0, "2"]), SCALE, id="B25 scale a string"),
        pytest.param(set_scale([2.0, 2.0, True]), SCALE, id="B25 scale a bool"),
        pytest.param(set_scale([2.0, 2.0, math.inf]), SCALE, id="B25 scale infinite"),
        pytest.param(set_scale(None), SCALE, id="B25 scale null"),
        pytest.param(lambda found: found.update(datasets=[]), "/multiscales/0/datasets is", id="B25 no levels"),
        pytest.param(lambda found: found.update(datasets=[1]), "/multiscales/0/datasets/0 is", id="B25 level a number"),
        pytest.param(lambda found: found.update(axes=["z", "y"]), "no x axis", id="B25 axes without x"),
        pytest.param(lambda found: found.update(axes=["z", "x", "x"]), "given twice", id="B25 axes twice"),
        pytest.param(lambda found: found.update(axes=["a", "y", "x"]), "axis 'a'", id="B25 axis unknown"),
        pytest.param(lambda found: found.update(axes=[]), "/multiscales/0/axes is", id="B25 axes empty"),
        pytest.param(lambda found: found.update(axes=[{}]), "/multiscales/0/axes/0 is", id="B25 axis without name"),
        pytest.param(
            lambda found: found["axes"][0].update(type="time"), "/multiscales/0/axes/0/type", id="B25 type contradicts"
        ),
        pytest.param(
            lambda found: found.update(coordinateTransformations=[{"type": "affine"}]),
            "/multiscales/0/coordinateTransformations/0 is",
            id="B25 transformation unknown",
        ),
        pytest.param(lambda found: found.update(version="0.6"), "version is '0.6'", id="B25 version unknown"),
        pytest.param(lambda found: found.update(version=4), "version is 4", id="B25 version a number"),
    ],
)
def test_broken_multiscales_are_refused(change, said):
    """B25: by the JSON pointer of what is wrong."""
    with pytest.raises((Malformed, Unsupported), match=said) as caught:
        parse(broken(change))
    assert str(caught.value).startswith(WHERE)


@pytest.mark.parametrize("value", [[], {}, None, "x", [None]], ids=repr)
def test_b25_multiscales_that_hold_no_image(value):
    """An empty list is as good as none."""
    with pytest.raises(Malformed, match="/multiscales is"):
        parse({"multiscales": value})


@pytest.mark.parametrize(
    "shapes",
    [
        [(27, 226, 186), (13, 113, 93)],
        [(27, 226, 186), (14, 113, 93)],
        [(27, 226, 186), (13, 112, 93)],
        [(1, 1, 1), (1, 1, 1)],
        [(27, 226, 186), None],
        [None, (3, 3, 3)],
    ],
    ids=[
        "rounded down",
        "rounded up",
        "last voxel lost",
        "nothing left to halve",
        "level absent",
        "first level absent",
    ],
)
def test_b26_both_ways_of_rounding_are_sound(shapes):
    """Publishers do both."""
    parse(image(level("0", [1.0, 1.0, 1.0]), level("1", [2.0, 2.0, 2.0])), shapes)


def test_b26_factors_need_not_be_two_nor_whole():
    """Some writers state the quotient of the shapes."""
    parse(image(level("0", [1, 1, 1]), level("1", [1, 5, 186 / 62])), [(27, 226, 186), (27, 45, 62)])


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([(27, 226, 186), (27, 113, 93)], r"level 1 \(s1\) has 27 voxels along z, expected 13 to 14"),
        ([(27, 226, 186), (13, 111, 93)], r"level 1 \(s1\) has 111 voxels along y, expected 112 to 114 by"),
        ([(27, 226, 186), (13, 113, 186)], r"level 1 \(s1\) has 186 voxels along x"),
        ([(27, 226, 186), (113, 93)], r"level 1 \(s1\) has 2 axes, expected 3"),
        ([(226, 186), (13, 113, 93)], r"level 0 \(s0\) has 2 axes, expected 3"),
    ],
    ids=["not halved", "two too few", "another axis", "other axes", "axes unlike the list"],
)
def test_b26_shapes_must_follow_from_scales(shapes, said):
    """The level is named."""
    with pytest.raises(Malformed, match=said):
        parse(image(level("s0", [1.0, 1.0, 1.0]), level("s1", [2.0, 2.0, 2.0])), shapes)


def test_b26_without_scales_levels_must_not_grow():
    """All that can be said then."""
    pyramid = parse({"multiscales": [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}, {"path": "1"}]}]})
    require_consistent(pyramid, [(2, 9, 9), (2, 3, 4)])
    for wrong in [(2, 9, 10), (1, 4, 4)]:
        with pytest.raises(Malformed, match="level 1"):
            require_consistent(pyramid, [(2, 9, 9), wrong])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["x", "0.4", "scale"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["path", "type", "scale", "translation", "name", "axes"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(["axes", "datasets", "coordinateTransformations", "version", "level", "transformation"]), JSON)
def test_b25_any_other_json_is_read_or_refused(where, value):
    """Never another exception than our own."""
    attributes = jrc()
    found = attributes["multiscales"][0]
    if where == "level":
        found["datasets"][3] = value
    elif where == "transformation":
        found["datasets"][3]["coordinateTransformations"][1] = value
    else:
        found[where] = value
    with contextlib.suppress(EmAssetsError):
        parse(attributes, JRC_SHAPES)


@given(st.text(max_size=20))
def test_b25_safe_paths_stay_below(path):
    """Whatever is let through has only plain parts."""
    try:
        parts = safe_path(path, WHERE).split("/")
    except Malformed:
        return
    assert all(part not in ("", ".", "..") for part in parts)
