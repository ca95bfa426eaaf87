"""Side files of tilt series: the portal's own examples, what the formats allow, pairing with mdoc, hostile files."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unsupported
from em_assets.formats.tilt_files import (
    CTF_FORMATS,
    KINDS_BY_ENDING,
    TILT_KINDS,
    CtfRow,
    XfRow,
    aln,
    ctf,
    leaves,
    mdoc,
    sections_of_angles,
    tilt_angles,
    xf,
)

INPUT = "cryoet/source/10001_input"


@pytest.fixture
def side_file(payloads):
    return lambda path: (payloads / INPUT / path).read_bytes()


# The portal's examples


def test_lists_of_angles_are_in_degrees_and_in_the_order_of_sections(side_file):
    """Without a line end behind the last one, too."""
    assert tilt_angles(side_file("metadata/TS_run1.rawtlt"), "a") == [-4.38, -1.98, 0.0, 2.013]
    assert tilt_angles(side_file("alignments/TS_run1.tlt"), "a") == [-5.0, 0.0, 5.0]
    assert tilt_angles(side_file("alignments/TS_run1.xtilt"), "a") == [0.23, 2.12, 1.97]


def test_an_mdoc_says_what_it_says_of_the_series_and_of_each_image(side_file):
    notes = mdoc(side_file("metadata/mdocs_modified/foo-TS_run1.mdoc"), "a")
    assert notes.values["PixelSpacing"] == "3.3702" and notes.values["ImageSize"] == "3708 3838"
    assert notes.titles[1] == "Tilt axis angle = 84.7, binning = 1  spot = 6  camera = 0"
    assert [section.z_value for section in notes.sections] == [0, 1, 2, 3, 4]
    first = notes.sections[0]
    assert first.number("ExposureDose", "a") == 2.35936 and first.number("Unheard", "a") is None
    assert first.values["SubFramePath"] == "TS_run1_1.tiff" and first.line == 11


def test_an_mdoc_by_path_has_numbers_and_text(side_file, realdata):
    """Also that of a real microscope, with its CRLF line ends."""
    found = dict(leaves(side_file("metadata/mdocs_modified/foo-TS_run1.mdoc"), "mdoc", "a"))
    assert (found["/Voltage"], found["/PixelSpacing"], found["/ZValue/3/TiltAngle"]) == (300, 3.3702, -4.38)
    assert found["/ZValue/0/StagePosition"] == "181.087 446.897" and found["/ZValue/0/NumSubFrames"] == 10
    real = dict(leaves((realdata / "mrc/etspy_SerialEM_MultiTilt_000.mrc.mdoc").read_bytes(), "mdoc", "b"))
    assert real["/Version"].startswith("SerialEM Version 4.0.20") and real["/T/0"].startswith("SerialEM: NIST Titan")
    assert {key.split("/")[2] for key in real if key.startswith("/ZValue/")} == {"0", "1"}


def test_a_transform_of_imod_has_its_six_numbers_by_name(side_file):
    rows = xf(side_file("alignments/TS_run1.xf"), "a")
    assert rows[1] == XfRow(0.029, 1.0, -1.0, 0.029, -75.84, 55.1) and len(rows) == 3
    assert dict(leaves(side_file("alignments/TS_run1.xf"), "xf", "a"))["/section/2/dy_pixels"] == 77.79


def test_an_alignment_of_aretomo_has_its_header_and_rows(side_file):
    found = aln(side_file("alignments/TS_run1.aln"), "a")
    assert found.raw_size_xyz == (10, 20, 3) and found.values["AlphaOffset"] == "0.00"
    assert [(row.sec, row.rot, row.tx, row.ty, row.tilt) for row in found.sections][1] == (
        1,
        88.3389,
        57.299,
        74.242,
        0,
    )
    assert found.local == () and found.dark_frames == ()
    assert dict(leaves(side_file("alignments/TS_run1.aln"), "aln", "a"))["/section/2/tilt"] == 5.0


def test_local_rows_and_dark_frames_of_aretomo_are_apart_from_sections():
    row = "0 88.3 1.0 1 2 1 1 1 0 -5.0\n"
    found = aln(f"# DarkFrame =  3  4  -57.0\n{row}# Local Alignment\n0 1 2.5 3.5 4 5 1\n".encode(), "a")
    assert found.dark_frames == ((3.0, 4.0, -57.0),) and found.local == ((0, 1, 2.5, 3.5, 4, 5, 1),)
    assert len(found.sections) == 1 and found.raw_size_xyz is None
    assert dict(found.leaves())["/local_rows"] == 1


def test_a_ctf_table_has_units_in_its_names(side_file):
    """The fixture is CTFFIND's layout as AreTomo3 writes it, with one column more."""
    rows = ctf(side_file("metadata/TS_run1_ctffind4.txt"), "CTFFIND", "a")
    assert rows[0] == CtfRow(1, 1, 72249.28, 71262.08, -42.32, 0.0, 0.1138, 28.4226)
    assert rows == ctf(side_file("metadata/TS_run1_ctffind4.txt"), "aretomo3", "a") and len(rows) == 3
    found = dict(leaves(side_file("metadata/TS_run1_ctffind4.txt"), "ctf", "a", ctf_format="CTFFIND"))
    assert found["/section/1/defocus_2_angstrom"] == 71235.27


# CTF formats

IMOD_FLAGGED = "{flags} 0 0.0 0.0 0.0 3\n2 3 -50 -47 {values}\n"
CTF = {
    "CTFFIND writes inf": ("CTFFIND", "1.000 1 2 3 0 0.1 inf\n", (1, 1, 1, 2, 3, 0, 0.1, None)),
    "Gctf without phase": ("Gctf", "; c\n% c\n1 1 2 3 0.1 8\n", (1, 1, 1, 2, 3, None, 0.1, 8)),
    "Gctf with phase": ("gctf", "1 1 2 3 1.5 0.1 8\n", (1, 1, 1, 2, 3, 1.5, 0.1, 8)),
    "IMOD 1": ("IMOD", "1 1 -60 -60 7000\n", (1, 1, 70000, 70000, None, None, None, None)),
    "IMOD 2": ("IMOD", "1 1 -64.8 -64.8 7643 2\n", (1, 1, 76430, 76430, None, None, None, None)),
    "IMOD, zero tilt": ("IMOD", "20 20 0.0 0.0 7000\n", (20, 20, 70000, 70000, None, None, None, None)),
    "IMOD, flags 0": ("IMOD", IMOD_FLAGGED.format(flags=0, values="7"), (2, 3, 70, 70, None, None, None, None)),
    "IMOD, astigmatism": (
        "IMOD",
        IMOD_FLAGGED.format(flags=1, values="7 6 -62"),
        (2, 3, 70, 60, -62, None, None, None),
    ),
    "IMOD, in radians": (
        "IMOD",
        IMOD_FLAGGED.format(flags=15, values="7 6 1.5 0.5"),
        (2, 3, 70, 60, math.degrees(1.5), 0.5, None, None),
    ),
    "IMOD, phase and cut-on": (
        "IMOD",
        IMOD_FLAGGED.format(flags=36, values="7 180 0.17"),
        (2, 3, 70, 70, None, math.pi, None, None),
    ),
}


@pytest.mark.parametrize(("ctf_format", "text", "row"), CTF.values(), ids=CTF)
def test_what_a_program_did_not_give_is_none_and_units_are_one(ctf_format, text, row):
    """Nanometres and degrees of IMOD become angstrom and radians."""
    (found,) = ctf(text.encode(), ctf_format, "a")
    assert found == CtfRow(*row)


# Pairing angles with what was noted


def test_every_angle_finds_its_section_though_digits_differ(side_file):
    """0 is section 0, at -0.00499939; the order of the list is kept."""
    notes = mdoc(side_file("metadata/mdocs_modified/foo-TS_run1.mdoc"), "a")
    paired = sections_of_angles(tilt_angles(side_file("metadata/TS_run1.rawtlt"), "b"), notes, "a, b")
    assert [section.z_value for section in paired] == [3, 2, 0, 1]


def test_angles_closer_than_the_tolerance_find_each_their_own_section(side_file):
    """Those that the portal's own test has for it: -6.02 and -5.99, 6.08 and 6.088."""
    notes = mdoc(side_file("metadata/mdocs_modified/close-TS_run1.mdoc"), "a")
    paired = sections_of_angles(tilt_angles(side_file("metadata/close_TS_run1.rawtlt"), "b"), notes, "a, b")
    assert [float(section.values["TiltAngle"]) for section in paired] == [
        *[-6.016, -5.9944, -4.38, -1.98, 2.013, 4.28, 6.0833, 6.09]
    ]


def test_an_angle_without_a_section_is_named_with_the_nearest(side_file):
    """Where the portal's code ends with a KeyError."""
    notes = mdoc(side_file("metadata/mdocs_modified/foo-TS_run1.mdoc"), "a")
    with pytest.raises(
        Mismatch,
        match=r"^a, b: tilt angle 6 \(number 4\) fits no section .*0.1 degrees, the nearest is 4.28 of section 4",
    ):
        sections_of_angles(tilt_angles(side_file("metadata/invalid_TS_run1.rawtlt"), "b"), notes, "a, b")


def noted(*angles):
    return mdoc("".join(f"[ZValue = {n}]\nTiltAngle = {angle}\n" for n, angle in enumerate(angles)).encode(), "a")


UNPAIRED = {
    "two angles, one section": (
        [1.0, 1.04],
        noted(1.02, 9),
        "1 and 1.04 are both nearest to section 0 of the mdoc .1.02",
    ),
    "two equally near": ([1.0], noted(0.96875, 1.03125), "as near to section 0 as to section 1"),
    "the same angle twice": ([0.0], noted(0.0, 3, 0.0), "as near to section 0 as to section 2"),
    "no angles noted": ([0.0], mdoc(b"[ZValue = 0]\nDefocus = 1\n", "a"), "the nearest is none"),
}


@pytest.mark.parametrize(("angles", "notes", "reason"), UNPAIRED.values(), ids=UNPAIRED)
def test_no_section_is_chosen_by_guess(angles, notes, reason):
    with pytest.raises(Mismatch, match=reason):
        sections_of_angles(angles, notes, "a")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-60, 60), min_size=1, max_size=40, unique=True), st.randoms(use_true_random=False))
def test_any_series_of_distinct_angles_is_paired_in_any_order(angles, random):
    """Noted with noise and in the order they were taken, listed rounded."""
    taken = random.sample(angles, len(angles))
    notes = noted(*[angle + random.uniform(-0.04, 0.04) for angle in taken])
    listed = sorted(angles)
    assert [taken[s.z_value] for s in sections_of_angles(listed, notes, "a")] == listed


# Hostile files

WRONG = {
    "rawtlt: two columns": ("rawtlt", "1.0\n1.0 2.0\n", "line 2: 2 values, expected one tilt angle"),
    "tlt: text": ("tlt", "-60\nabc\n", "line 2: the tilt angle is 'abc', expected a finite number"),
    "tlt: nan": ("tlt", "nan\n", "line 1: the tilt angle is 'nan'"),
    "tlt: 200 degrees": ("tlt", "200\n", "line 1: a tilt angle of 200, expected degrees from -180 to 180"),
    "tlt: nothing": ("tlt", "\n \n", "has no tilt angle"),
    "tlt: too many": ("tlt", "1\n" * 10_001, "line 10001: more than 10000 rows"),
    "xtilt: not UTF-8": ("xtilt", b"1\n\xb5\n", "line 2: not UTF-8 .byte 0xb5"),
    "xf: five": ("xf", "1 0 0 1 0\n", "line 1: 5 values, expected six"),
    "xf: infinite": ("xf", "1 0 0 1 0 inf\n", "line 1: a value is 'inf'"),
    "xf: nothing": ("xf", "", "has no transform"),
    "aln: nine": ("aln", "# RawSize = 1 2 3\n0 1 2 3 4 5 6 7 8\n", "line 2: 9 values, expected 10"),
    "aln: other columns": ("aln", "# SEC ROT TX\n", "line 1: the columns are 'SEC ROT TX', expected SEC ROT GMAG"),
    "aln: half a section": ("aln", "0.5 1 1 1 1 1 1 1 1 1\n", "line 1: SEC is '0.5', expected a whole number"),
    "aln: nothing": ("aln", "# AreTomo\n", "has no section"),
    "mdoc: no pair": ("mdoc", "A = 1\nwhat is this\n", "line 2: 'what is this' is neither key = value nor"),
    "mdoc: no key": ("mdoc", " = 3\n", "line 1: '= 3' is neither"),
    "mdoc: an open head": ("mdoc", "[ZValue = 0\nTiltAngle = 1\n", r"line 1: '\[ZValue = 0' is neither"),
    "mdoc: a section twice": (
        "mdoc",
        "[ZValue = 0]\n[ZValue = 0]\n",
        "line 2: .ZValue = 0. was there before, on line 1",
    ),
    "mdoc: a section of no number": ("mdoc", "[ZValue = x]\n", "line 1: ZValue is 'x'"),
    "mdoc: a key twice": (
        "mdoc",
        "A = 1\nA = 1\nA = 2\n",
        "line 3: 'A' is '2', but was '1' before in the same section",
    ),
    "mdoc: nothing": ("mdoc", "", "says nothing"),
    "mdoc: NUL": ("mdoc", "A = \0\n", "line 1: it has a NUL"),
    "mdoc: spaces": ("mdoc", "[" + " " * 9000 + "x\n", "line 1: .* is neither"),
}


@pytest.mark.parametrize(("kind", "text", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_not_of_its_kind_is_malformed_and_the_line_is_named(kind, text, reason):
    with pytest.raises(Malformed, match=reason) as raised:
        list(leaves(text if isinstance(text, bytes) else text.encode(), kind, "a file"))
    assert "\n" not in str(raised.value) and str(raised.value).startswith("a file") and len(str(raised.value)) < 400


WRONG_CTF = {
    "CTFFIND: six columns": ("CTFFIND", "1 2 3 4 5 6\n", "line 1: 6 columns, expected the seven"),
    "CTFFIND: image 0": ("CTFFIND", "0 1 1 1 0 0 9\n", "line 1: image 0, but images are counted from 1"),
    "CTFFIND: infinite defocus": ("CTFFIND", "1 inf 1 1 0 0 9\n", "line 1: a defocus or azimuth is 'inf'"),
    "Gctf: eight": ("Gctf", "1 2 3 4 5 6 7 8\n", "line 1: 8 columns, expected six"),
    "Gctf: degrees": ("Gctf", "1 2 3 4 90 6 7\n", "line 1: a phase shift of 90, more than 2 pi; give it in radians"),
    "IMOD: counted from 0": ("IMOD", "0 0 -60 -60 7000\n", "line 1: image 0, but images are counted from 1 .IMOD"),
    "IMOD: astigmatism unannounced": ("IMOD", "1 1 -60 -60 3665 3472 -62\n", "line 1: 7 columns, expected 5 .flags 0"),
    "IMOD: a short row": ("IMOD", "1 0 0 0 0 3\n1 1 -5 -5 36\n", "line 2: 5 columns, expected 7 .flags 1"),
    "IMOD: backwards": ("IMOD", "3 2 -5 -5 36\n", "line 1: views 3 to 2"),
    "IMOD: nothing": ("IMOD", "\n", "has no row"),
}


@pytest.mark.parametrize(("ctf_format", "text", "reason"), WRONG_CTF.values(), ids=WRONG_CTF)
def test_a_ctf_table_that_is_not_of_its_format_is_malformed(ctf_format, text, reason):
    with pytest.raises(Malformed, match=reason):
        ctf(text.encode(), ctf_format, "a file")


def test_kinds_and_formats_that_are_not_read_are_named_with_those_that_are():
    assert set(KINDS_BY_ENDING.values()) == set(TILT_KINDS) - {"ctf"}
    for kind, options, reason in (
        ("com", {}, "accepted are rawtlt, tlt, xtilt, mdoc, xf, aln, ctf"),
        ("ctf", {}, "its format is to be named: CTFFIND, Gctf, IMOD, AreTomo3"),
        ("ctf", {"ctf_format": "warp"}, "'warp' are not read; accepted are CTFFIND"),
    ):
        with pytest.raises(Unsupported, match=reason):
            list(leaves(b"1\n", kind, "a", **options))


SEEDS = [
    b"-4.38\n1\n",
    b"0 1 2 3 4 5 6 7 8 9\n",
    b"A = 1\n[ZValue = 0]\nTiltAngle = 3\n",
    b"1 2 3 4 5 6\n1 2 3 4 5 6 7\n",
]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_bytes_are_values_or_an_error_of_ours(data):
    raw = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = list(
            leaves(
                bytes(raw),
                data.draw(st.sampled_from(TILT_KINDS)),
                "a",
                ctf_format=data.draw(st.sampled_from(CTF_FORMATS)),
            )
        )
    except EmAssetsError:
        return
    assert all(not isinstance(value, float) or math.isfinite(value) for _, value in found)
