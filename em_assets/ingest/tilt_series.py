"""What the side files of a tilt series say, as the portal's metadata has it: doses, sections, alignments.

Everything here is values in, values out; the files are read by `formats/tilt_files.py` and put in place by `run.py`.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from em_assets.errors import Malformed, Mismatch
from em_assets.formats import tilt_files
from em_assets.formats.tilt_files import CtfRow, Mdoc

Values = dict[str, Any]
IDENTITY: list[list[float]] = [[float(row == column) for column in range(4)] for row in range(4)]
ALIGNMENT_DEFAULTS: Mapping[str, Any] = {
    "affine_transformation_matrix": IDENTITY,
    "alignment_type": "GLOBAL",
    "is_portal_standard": False,
    "method_type": "undefined",
    "tilt_offset": 0,
    "volume_offset": {"x": 0, "y": 0, "z": 0},
    "x_rotation_offset": 0,
}
"""What the portal's code writes where the config is silent."""
XF_ENDINGS, TLT_ENDINGS, XTILT_ENDINGS, ALN_ENDINGS = (".xf",), (".tlt",), (".tltx", ".xtilt"), (".aln",)
TILT_COM = "tilt.com"
COMMANDS = (TILT_COM, "newst.com")
"""Of IMOD: one ending for two files that say different things."""
EXCLUDED = re.compile(r"^\s*EXCLUDELIST2?\s+(.+?)\s*$", re.MULTILINE | re.IGNORECASE)
MAX_VIEWS = 10_000


def frame_values(
    notes: Mdoc, dose_rate: float, keys_by_name: Mapping[str, str], where: str, *, is_gain_corrected: bool | None
) -> list[Values]:
    """A movie for each section of the mdoc, in the order in which they were taken; doses in electrons per A^2.

    `keys_by_name` has the movies that there are, by file name; a section whose movie is not there has no path. Raises
    Malformed for a section without ExposureTime, by which its dose is known.
    """
    found: list[Values] = []
    accumulated = 0.0
    for section in notes.sections:
        seconds = section.number("ExposureTime", where)
        if seconds is None:
            raise Malformed(
                f"{where}, section {section.z_value}, line {section.line}: no ExposureTime, by which the dose of its "
                "movie is known; correct the mdoc, or leave `frames` out of the config."
            )
        dose = seconds * dose_rate
        found.append(
            {
                "acquisition_order": section.z_value,
                "accumulated_dose": accumulated,
                "exposure_dose": dose,
                "is_gain_corrected": is_gain_corrected,
                "path": keys_by_name.get(_base_name(section.values.get("SubFramePath", ""))),
            }
        )
        accumulated += dose
    return found


def frames_without_section(notes: Mdoc, names: Sequence[str]) -> list[str]:
    """Movies that no section of the mdoc names."""
    known = {_base_name(section.values.get("SubFramePath", "")) for section in notes.sections}
    return [name for name in names if name not in known]


def _base_name(path: str) -> str:
    r"""SerialEM writes Windows' paths: `D:\frames\TS_1.tif`."""
    return re.split(r"[\\/]", path)[-1]


def section_values(angles: Sequence[float], notes: Mdoc, rows: Sequence[CtfRow], where: str) -> list[Values]:
    """`per_section_parameter`: an entry for each raw tilt angle, with its image's place in the order of acquisition.

    `raw_angle` is the mdoc's, which has more digits. Raises Mismatch where an angle fits no section, naming both.
    """
    found: list[Values] = []
    sections = tilt_files.sections_of_angles(angles, notes, where)
    for z_index, section in enumerate(sections):
        row = next((row for row in rows if row.section <= z_index + 1 <= row.last_section), None)
        found.append(
            {
                "z_index": z_index,
                "frame_acquisition_order": section.z_value,
                "raw_angle": section.number("TiltAngle", where),
                "astigmatic_angle": row and row.azimuth_degrees,
                "cross_correlation": row and row.cross_correlation,
                "major_defocus": row and row.defocus_1_angstrom,
                "minor_defocus": row and row.defocus_2_angstrom,
                "max_resolution": row and row.resolution_angstrom,
                "phase_shift": row and row.phase_shift_radians,
            }
        )
    return found


def with_ending(names: Sequence[str], endings: Sequence[str]) -> str | None:
    """The first file that ends so."""
    return next((name for name in names if name.lower().endswith(tuple(endings))), None)


def alignment_values(form: str, files: Mapping[str, bytes]) -> list[Values]:
    """`per_section_alignment_parameters` of an alignment whose files are given by name.

    As the portal's code writes them, for IMOD and AreTomo alike: AreTomo's in-plane rotation (2 x 2) and shift in
    pixels of the tilt series. (The portal's schema calls the shift angstrom; its code and those who read it count
    pixels.) Of IMOD, whose transform goes the other way, R and d become R^T and -R^T d. Views that `tilt.com` excludes
    and AreTomo's dark frames are left out. Raises Malformed for a file that is not what its name says, Mismatch where
    two disagree about the number of sections.
    """
    if form == "IMOD":
        return _imod_values(files)
    if form == "ARETOMO3":
        return _aretomo_values(files)
    return []


def _imod_values(files: Mapping[str, bytes]) -> list[Values]:
    xf_name, tlt_name = with_ending(list(files), XF_ENDINGS), with_ending(list(files), TLT_ENDINGS)
    if xf_name is None:
        return []
    rows = tilt_files.xf(files[xf_name], xf_name)
    tilts = _angles(files, tlt_name, len(rows), xf_name)
    x_tilts = _angles(files, with_ending(list(files), XTILT_ENDINGS), len(rows), xf_name)
    excluded = _excluded_views(files)
    found = []
    for z_index, row in enumerate(rows):
        if z_index + 1 in excluded:
            continue
        found.append(
            {
                "z_index": z_index,
                "tilt_angle": tilts[z_index] if tilts else None,
                "volume_x_rotation": x_tilts[z_index] if x_tilts else 0.0,
                "in_plane_rotation": [[row.a11, row.a21], [row.a12, row.a22]],
                "x_offset": -(row.a11 * row.dx_pixels + row.a21 * row.dy_pixels),
                "y_offset": -(row.a12 * row.dx_pixels + row.a22 * row.dy_pixels),
            }
        )
    return found


def _angles(files: Mapping[str, bytes], name: str | None, count: int, transforms: str) -> list[float]:
    if name is None:
        return []
    angles = tilt_files.tilt_angles(files[name], name)
    if len(angles) != count:
        raise Mismatch(
            f"{name} has {len(angles)} angles, but {transforms} has {count} transforms; look whether they are of one "
            "tilt series."
        )
    return angles


def _excluded_views(files: Mapping[str, bytes]) -> set[int]:
    """Views, from 1, that IMOD left out of the reconstruction: `EXCLUDELIST2 1,5-7` in tilt.com."""
    name = with_ending(list(files), (TILT_COM,))
    found: set[int] = set()
    for line in EXCLUDED.findall(files[name].decode("utf-8", "replace") if name else ""):
        for part in re.split(r"[,\s]+", line):
            span = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
            if span is None or int(span[2] or span[1]) > MAX_VIEWS:
                raise Malformed(f"{name}: the list of excluded views has {part[:40]!r}, expected numbers as in 1,5-7.")
            found.update(range(int(span[1]), int(span[2] or span[1]) + 1))
    return found


def _aretomo_values(files: Mapping[str, bytes]) -> list[Values]:
    name = with_ending(list(files), ALN_ENDINGS)
    if name is None:
        return []
    aln = tilt_files.aln(files[name], name)
    found = []
    for z_index, row in zip(_sections(aln, name), aln.sections, strict=True):
        cosine, sine = math.cos(math.radians(row.rot)), math.sin(math.radians(row.rot))
        found.append(
            {
                "z_index": z_index,
                "tilt_angle": row.tilt,
                "volume_x_rotation": 0.0,
                "in_plane_rotation": [[cosine, -sine], [sine, cosine]],
                "x_offset": row.tx,
                "y_offset": row.ty,
            }
        )
    return found


def _sections(aln: tilt_files.Aln, name: str) -> list[int]:
    """The sections of the raw series that the rows are about: all but the dark ones."""
    if aln.raw_size_xyz is None:
        return [row.sec for row in aln.sections]
    dark = {int(frame[1]) for frame in aln.dark_frames if len(frame) > 1}
    left = [section for section in range(min(aln.raw_size_xyz[2], MAX_VIEWS)) if section not in dark]
    if len(left) != len(aln.sections):
        raise Mismatch(
            f"{name} has {len(aln.sections)} sections, but its RawSize and DarkFrame lines leave {len(left)}; get the "
            "file again."
        )
    return left


def alignment_ending(path: str) -> str:
    """The ending that an alignment's file keeps when it gets the run's name: `xf`, or `tilt.com`."""
    name = posixpath.basename(path)
    command = next((known for known in COMMANDS if name.lower().endswith(known)), None)
    return command or posixpath.splitext(name)[1].removeprefix(".") or name
