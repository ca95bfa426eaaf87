"""`em-assets export`: a stored volume, or a box of one of its levels, in a plain format that other programs read.

    npy           NumPy's, C order (z, y, x)
    tiff          a page for each z: ImageJ's kind below 4 GB where ImageJ knows the dtype, else OME-TIFF; uncompressed
    mrc           MRC2014, cell in angstrom
    ome-zarr-0.4  Zarr v2, chunks of 64^3, Blosc with zstd

`stored.py` is what is read, `plain.py` the formats of one file, `ome_zarr.py` the folder. What is exported appears
under its name when it is whole; beside it lies `NAME.json`: what it is of, and its sha256. A process that is killed
leaves no more than a hidden file or folder that ends in `.em-partial`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from em_assets.errors import Mismatch, Unavailable, Unsupported
from em_assets.export.stored import Part, Progress, StoredVolume, Work
from em_assets.progress import human_bytes
from em_assets.records import DatasetFolder, now
from em_assets.standardize.region import tool
from em_assets.store import PARTIAL_SUFFIX
from em_assets.volume import Zyx

Format = Literal["npy", "tiff", "mrc", "ome-zarr-0.4"]
SUFFIXES: dict[Format, str] = {"npy": ".npy", "tiff": ".tif", "mrc": ".mrc", "ome-zarr-0.4": ".ome.zarr"}
WITHOUT: dict[Format, tuple[str, ...]] = {
    "npy": (),
    "tiff": ("uint64",),
    "mrc": ("uint32", "uint64", "int32"),
    "ome-zarr-0.4": (),
}
"""Dtypes that a format has no name for."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    path: Path
    sidecar: Path
    shape: Zyx
    """Of the finest level that was written; likewise `missing_voxels`."""
    dtype: str
    size_bytes: int
    sha256: str
    """Of the file; of a folder, `records.manifest_digest` over its files."""
    missing_voxels: int
    """Voxels that the publisher does not have; they are 0."""
    notes: tuple[str, ...]
    """What whoever uses it has to know."""


def export_volume(
    folder: DatasetFolder,
    form: Format,
    output: Path | None = None,
    *,
    level: int | None = None,
    box: str | None = None,
    force: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Exported:
    """Writes a complete dataset's volume to `output`, by default `NAME[.LEVEL]` with the format's ending, here.

    `level` is 0 by default, all levels for ome-zarr-0.4. `box` is `z0:z1,y0:y1,x0:x1` in voxels of that level; numbers
    may be left out, as in Python. What is at `output`, or where its JSON goes, is replaced with `force` only.

    Raises Unavailable if the dataset is not complete, the place cannot be written or has no room, Unsupported if the
    format has no such dtype, Malformed if a stored object is damaged, Mismatch for a box or level that is not there.
    Then `output` is as it was.
    """
    volume = StoredVolume.read(folder)
    is_whole = form == "ome-zarr-0.4" and level is None and box is None
    parts = volume.every_level() if is_whole else [volume.part(level or 0, box)]
    if volume.dtype.name in WITHOUT[form]:
        others = [other for other in SUFFIXES if volume.dtype.name not in WITHOUT[other]]
        raise Unsupported(f"{form} has no {volume.dtype.name}, which {folder.title} is; use {' or '.join(others)}.")
    target = output or Path(_name(folder, level) + SUFFIXES[form])
    _require_place(target, form, force=force)
    _require_room(target, sum(part.box.voxels for part in parts) * volume.dtype.itemsize)
    work = Work(volume, parts, workers, progress)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        with _explained(target):
            size_bytes, sha256, notes = _write(work, form, temporary)
            done = Exported(
                target,
                _sidecar(target),
                parts[0].shape,
                volume.dtype.name,
                size_bytes,
                sha256,
                work.missing_voxels,
                notes,
            )
            done.sidecar.unlink(missing_ok=True)  # it must never describe another file
            _put_in_place(temporary, target)
            _write_sidecar(volume, parts, form, done)
    finally:
        _remove(temporary)
    return done


def _write(work: Work, form: Format, temporary: Path) -> tuple[int, str, tuple[str, ...]]:
    """(size, sha256, notes)."""
    if form == "ome-zarr-0.4":
        from em_assets.export.ome_zarr import write_folder

        return *write_folder(work, temporary), ()
    from em_assets.export.plain import notes_on, write_file

    return *write_file(work, form, temporary), notes_on(form, work.volume.dtype)


def _name(folder: DatasetFolder, level: int | None) -> str:
    return ".".join([folder.title.replace("/", "."), *([] if level is None else [str(level)])])


def _require_place(target: Path, form: Format, *, force: bool) -> None:
    if not target.parent.is_dir():
        raise Unavailable(f"{target.parent} is not a folder; make it, or give another --output.")
    there = [place for place in (target, _sidecar(target)) if os.path.lexists(place)]
    if there and not force:
        raise Mismatch(f"{there[0]} is there already; give another --output, or replace it with --force.")
    is_replaceable = (target / ".zgroup").is_file() if form == "ome-zarr-0.4" else not target.is_dir()
    if target in there and not is_replaceable:
        raise Mismatch(
            f"{target} is there, and --force replaces a file by a file, or a Zarr group by a Zarr group only."
        )


def _sidecar(target: Path) -> Path:
    return Path(f"{target}.json")


def _require_room(target: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(target.parent).free
    if needed_bytes > free_bytes:
        raise Unavailable(
            f"{target} needs up to {human_bytes(needed_bytes)}, where {human_bytes(free_bytes)} are free; free some, "
            "or choose another --output, a coarser --level or a smaller --box."
        )


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise Unavailable(
            f"{target} could not be written ({why}): free space or correct the folder's permissions and run again."
        ) from error


def _put_in_place(temporary: Path, target: Path) -> None:
    """Renames. A folder cannot be renamed over another one, so an old one is moved out of the way first."""
    if target.is_dir() and not target.is_symlink():
        old = temporary.with_name(f"{temporary.name}.old")
        os.replace(target, old)
        os.replace(temporary, target)
        shutil.rmtree(old)
    else:
        os.replace(temporary, target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def _write_sidecar(volume: StoredVolume, parts: list[Part], form: Format, done: Exported) -> None:
    record, first = volume.record, parts[0]
    further = record.volumes.get(volume.folder.sub or "")
    is_folder = done.path.is_dir()
    facts = {
        "dataset": volume.folder.title,
        "dataset_sha256": record.sha256,
        "format": form,
        "levels": [part.level for part in parts],
        "level": first.level,
        "box": [list(first.box.start), list(first.box.stop)],
        "axes": "zyx",
        "shape": list(first.shape),
        "dtype": volume.dtype.name,
        "voxel_size_nm": list(first.voxel_size_nm),
        "translation_nm": list(first.translation_nm),
        "missing_voxels": done.missing_voxels,
        "file": done.path.name,
        "size_bytes": done.size_bytes,
        "sha256": done.sha256,
        "sha256_of": "`path NUL size NUL sha256 LF` of every file of the folder, sorted" if is_folder else "the file",
        "notes": list(done.notes),
        "title": (further and further.title) or record.title,
        "source": record.source,
        "source_id": record.source_id,
        "page_url": record.page_url,
        "license": record.license,
        "citation": record.citation,
        "doi": (further and further.doi) or record.doi,
        "tool": tool(),
        "written_at": now().isoformat(),
    }
    temporary = done.sidecar.with_name(f".{done.sidecar.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        temporary.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, done.sidecar)
    finally:
        temporary.unlink(missing_ok=True)
