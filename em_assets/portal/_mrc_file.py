"""An MRC file to write: its header, and which mode holds a volume's voxels.

MRC2014, little endian, no extended header. Equal volumes give equal files: no label holds a time.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from em_assets.formats._mrc_header import FIELDS, HEADER_BYTES, LABEL_BYTES, LAYOUT, MAX_LABELS
from em_assets.portal._staged import Measured, StagedVolume, Statistics
from em_assets.volume import VoxelSize, Zyx

MODES = {"int8": 0, "int16": 1, "float32": 2, "uint16": 6, "float16": 12}
LARGEST_SIGNED_BYTE = 127
EXACT_IN_SINGLE = 2**24
"""Whole numbers up to here are what they are in single precision, too."""
VERSION = 20141
LITTLE_ENDIAN = b"\x44\x44\0\0"
_CONVERTED_AT_ONCE = 2**21


def mrc_dtype(dtype: np.dtype[Any], measured: Measured, *, is_labels: bool) -> tuple[str | None, str | None]:
    """(dtype of the voxels in an MRC file, what to say about it); no dtype where no mode holds every voxel exactly.

    Unsigned bytes are widened: mode 0 is signed, and IMOD's mark for the contrary is not read by mrcfile, nor by the
    portal's own tools.
    """
    name = dtype.name
    if is_labels and name == "uint8" and measured.largest <= LARGEST_SIGNED_BYTE:
        return "int8", None
    if name in MODES:
        return name, None
    if name == "uint8":
        return "uint16", "The MRC holds the unsigned bytes as uint16 (mode 6): mode 0 is signed."
    reach = max(abs(measured.smallest), abs(measured.largest)) if measured.count else 0
    if (dtype.kind in "iu" and reach <= EXACT_IN_SINGLE) or (dtype.kind == "f" and measured.is_single):
        return "float32", f"The MRC holds the {name} values as float32 (mode 2), each of them exactly."
    return None, (
        f"No MRC was written: no mode of it holds these {name} values exactly ({measured.smallest} to "
        f"{measured.largest}). They are in the OME-Zarr."
    )


def mrc_header(
    shape: Zyx,
    dtype: str,
    voxel_size_angstrom: Sequence[float],
    statistics: Statistics | None,
    *,
    is_tilt_series: bool,
    origin_angstrom: VoxelSize,
    labels: Sequence[str],
) -> bytes:
    """The 1024 bytes. A tilt series is a stack of pictures: ISPG 0, MZ 1, and a cell that is one picture thick.

    Without statistics the fields say "not determined", as the standard has it.
    """
    sampling = (1 if is_tilt_series else shape[0], *shape[1:])
    cell = [count * size for count, size in zip(sampling, voxel_size_angstrom, strict=True)]
    found = (statistics.minimum, statistics.maximum, statistics.mean) if statistics else (0.0, -1.0, -2.0)
    texts = [_label(text) for text in labels[:MAX_LABELS]]
    values: dict[str, int | float | bytes] = {
        **_by_axis("n{}", shape),
        "mode": MODES[dtype],
        **_by_axis("n{}start", (0, 0, 0)),
        **_by_axis("m{}", sampling),
        **_by_axis("cella/{}", cell),
        **{f"cellb/{angle}": 90.0 for angle in ("alpha", "beta", "gamma")},
        "mapc": 1,
        "mapr": 2,
        "maps": 3,
        **dict(zip(("dmin", "dmax", "dmean"), found, strict=True)),
        "ispg": 0 if is_tilt_series else 1,
        "nsymbt": 0,
        "extra1": b"",
        "exttyp": b"",
        "extra2": b"",
        "nversion": VERSION,
        **_by_axis("origin/{}", origin_angstrom),
        "map": b"MAP ",
        "machst": LITTLE_ENDIAN,
        "rms": statistics.rms if statistics else -1.0,
        "nlabl": len(texts),
    }
    fields = struct.pack(f"<{LAYOUT}", *(values[name] for name in FIELDS))
    return (fields + b"".join(texts)).ljust(HEADER_BYTES, b"\0")


def write_converted(staged: StagedVolume, dtype: str, file: Path) -> None:
    """A new file with room for the header, and the voxels as `dtype`, which holds each of them."""
    with file.open("xb") as opened:
        opened.write(bytes(HEADER_BYTES))
        for piece in staged.pieces(_CONVERTED_AT_ONCE):
            opened.write(piece.astype(np.dtype(dtype).newbyteorder("<")).data)


def _by_axis(name: str, of_zyx: Sequence[float]) -> dict[str, int | float | bytes]:
    return {name.format(axis): value for axis, value in zip("zyx", of_zyx, strict=True)}


def _label(text: str) -> bytes:
    """80 characters of ASCII, blanks at the end."""
    return text.encode("ascii", "replace")[:LABEL_BYTES].ljust(LABEL_BYTES)
