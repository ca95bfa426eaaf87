"""Exports that are one file: NumPy, TIFF, MRC. All hold the voxels in one piece, so one way of writing serves them.

A file is laid out first (what comes before the voxels, room for them, what comes after), then filled shard by shard
through a window of one layer of shards: memory holds one shard for each worker, whatever the volume's size. Equal
exports are equal files.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from em_assets.export.stored import Part, StoredVolume, Work, cells_of
from em_assets.standardize.region import tool
from em_assets.volume import Box, subtract

if TYPE_CHECKING:
    from hashlib import _Hash

Plain = Literal["npy", "tiff", "mrc"]

IMAGEJ_DTYPES = ("uint8", "uint16", "int16", "float32")
CLASSIC_TIFF_BYTES = 2**32 - 2**25
"""Offsets have 32 bits. What is not voxels takes less than the difference, up to 100,000 pages."""
CLASSIC_TIFF_PAGES = 100_000

MRC_MODES = {"int8": 0, "uint8": 0, "int16": 1, "float32": 2, "uint16": 6}
MRC_UNSIGNED = (
    "MRC has no unsigned bytes, so this is mode 0 with IMOD's mark for them; programs that ignore it (mrcfile among "
    "them) take grey values above 127 for negative ones."
)
IMOD_STAMP = 1146047817
IMOD_STAMP_AT, IMOD_FLAGS_AT = 152, 156
"""Bytes 152 to 159 of the header, in IMOD's use of it. Bit 0 of the flags would say that bytes are signed."""

HASHED_AT_ONCE = 2**20


def notes_on(form: Plain, dtype: np.dtype[Any]) -> tuple[str, ...]:
    """What whoever opens such a file has to know."""
    return (MRC_UNSIGNED,) if form == "mrc" and dtype.name == "uint8" else ()


def write_file(work: Work, form: Plain, file: Path) -> tuple[int, str]:
    """Writes the one part; (size, sha256) of the file, which is on the disk then."""
    [part], volume = work.parts, work.volume
    lay_out = {"npy": _lay_out_npy, "tiff": _lay_out_tiff, "mrc": _lay_out_mrc}[form]
    first = lay_out(file, part, volume)
    last = first + part.box.voxels * volume.dtype.itemsize
    size_bytes = max(last, file.stat().st_size)
    digest = hashlib.sha256()
    with file.open("r+b") as opened:
        _reserve(opened, size_bytes)
        _hash(opened, digest, 0, first)
        _fill(work, part, file, first, digest)
        _hash(opened, digest, last, size_bytes)
        os.fsync(opened.fileno())
    return size_bytes, digest.hexdigest()


def _fill(work: Work, part: Part, file: Path, first: int, digest: _Hash) -> None:
    """Copies the voxels to their place, from byte `first`, and hashes them: one layer of shards after another."""
    form, dtype = work.volume.form, work.volume.dtype
    plane_bytes = part.shape[1] * part.shape[2] * dtype.itemsize
    slabs = cells_of(part.box, (form.shard[0], part.box.stop[1], part.box.stop[2]))
    work.start(sum(len(cells_of(slab, form.shard)) for slab in slabs))
    for slab in slabs:
        offset = first + (slab.start[0] - part.box.start[0]) * plane_bytes
        # pages of the file, not memory of this process; room for them is reserved
        window = np.memmap(file, dtype, "r+", offset, slab.shape)

        def copy(box: Box, window: NDArray[Any] = window, slab: Box = slab) -> int:
            return work.read_into(window[box.shifted(subtract((0, 0, 0), slab.start)).slices], part.level, box)

        work.missing_voxels += sum(work.each(copy, cells_of(slab, form.shard)))
        digest.update(window.reshape(-1).view(np.uint8).data)


def _reserve(file: IO[bytes], size_bytes: int) -> None:
    """Takes the room on the disk: an error now, instead of a signal when a mapped page finds none."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    else:
        os.truncate(file.fileno(), size_bytes)


def _hash(file: IO[bytes], digest: _Hash, start: int, stop: int) -> None:
    file.seek(start)
    for at in range(start, stop, HASHED_AT_ONCE):
        digest.update(file.read(min(HASHED_AT_ONCE, stop - at)))


def _lay_out_npy(file: Path, part: Part, volume: StoredVolume) -> int:
    """Writes everything but the voxels and returns where these begin; so do the others."""
    with file.open("wb") as opened:
        header = {"descr": volume.dtype.str, "fortran_order": False, "shape": part.shape}
        np.lib.format.write_array_header_1_0(opened, header)
        return opened.tell()


def _lay_out_tiff(file: Path, part: Part, volume: StoredVolume) -> int:
    """Classic TIFF as ImageJ writes it, where it can be that; else OME-TIFF, as BigTIFF where it has to be."""
    import tifffile

    voxel_bytes = part.box.voxels * volume.dtype.itemsize
    is_big = voxel_bytes > CLASSIC_TIFF_BYTES or part.shape[0] > CLASSIC_TIFF_PAGES
    is_imagej = volume.dtype.name in IMAGEJ_DTYPES and not is_big
    _, y, x = part.voxel_size_nm
    place = tifffile.imwrite(
        file,
        shape=part.shape,
        dtype=volume.dtype,
        byteorder="<",
        bigtiff=is_big,
        imagej=is_imagej,
        ome=not is_imagej,
        photometric="minisblack",  # or a width of 3 or 4 voxels would be taken for colours
        resolution=(1 / x, 1 / y) if is_imagej else None,  # pixels in one of ImageJ's own unit
        resolutionunit="NONE" if is_imagej else None,
        software=tool(),
        metadata=_imagej_facts(part) if is_imagej else _ome_facts(part, volume),
        returnoffset=True,
    )
    assert place is not None
    return place[0]  # of the first page; uncompressed ones follow each other without a gap


def _imagej_facts(part: Part) -> dict[str, Any]:
    """ImageJ places a voxel at (index - origin) times its size."""
    facts = {"axes": "ZYX", "unit": "nm", "spacing": part.voxel_size_nm[0]}
    origins = {
        f"{axis}origin": -t / size for axis, t, size in zip("zyx", part.translation_nm, part.voxel_size_nm, strict=True)
    }
    return facts | origins


def _ome_facts(part: Part, volume: StoredVolume) -> dict[str, Any]:
    planes, identity = part.shape[0], f"{volume.folder.title} {volume.record.sha256} {part}"
    facts: dict[str, Any] = {"axes": "ZYX", "Name": volume.folder.title, "Creator": tool()}
    facts["UUID"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, identity)}"
    facts["Plane"] = {}
    for axis, size, t in zip("ZYX", part.voxel_size_nm, part.translation_nm, strict=True):
        facts |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "nm"}
        step = size if axis == "Z" else 0.0
        facts["Plane"][f"Position{axis}"] = [t + number * step for number in range(planes)]
        facts["Plane"][f"Position{axis}Unit"] = ["nm"] * planes
    return facts


def _lay_out_mrc(file: Path, part: Part, volume: StoredVolume) -> int:
    """MRC2014, where `origin` is the place of a subvolume: here, of its first voxel's centre."""
    import mrcfile

    with mrcfile.new_mmap(file, part.shape, MRC_MODES[volume.dtype.name], overwrite=True) as opened:
        header = opened.header
        opened.voxel_size = tuple(10 * size for size in reversed(part.voxel_size_nm))  # x, y, z in angstrom
        header.origin.z, header.origin.y, header.origin.x = (10 * t for t in part.translation_nm)
        header.dmin, header.dmax, header.dmean, header.rms = 0, -1, -2, -1  # which means: not determined
        header.label[0] = tool().encode()[:80]  # instead of the present time
    if volume.dtype.name == "uint8":
        with file.open("r+b") as again:
            again.seek(IMOD_STAMP_AT)
            again.write(IMOD_STAMP.to_bytes(4, "little"))
            again.seek(IMOD_FLAGS_AT)
            again.write(bytes(4))
    return file.stat().st_size - part.box.voxels * volume.dtype.itemsize
