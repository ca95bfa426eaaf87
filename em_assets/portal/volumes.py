"""A volume as the portal keeps one, OME-Zarr in three levels and MRC; streamed, whatever its size.

What the portal's own writer gets wrong is right here: the dtype is kept, all three voxel sizes are, odd ends average
real voxels only, labels never wrap, masks do not grow. `_staged.py` reads and measures the source, `_levels.py` makes
the levels, `_mrc_file.py` the other file; here they are put together and put in place, or found to be there already.

Files of this machine are written beside their final names and renamed when whole. On S3 chunks go to their final keys
and the group's last document makes them a group; an MRC is laid out in the cache first, because its header is known
last.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Mismatch
from em_assets.formats._mrc_header import HEADER_BYTES
from em_assets.formats.reader import VolumeReader
from em_assets.portal._levels import Content, LevelForm, Ngff, Present, angstrom, write_levels
from em_assets.portal._mrc_file import mrc_dtype, mrc_header, write_converted
from em_assets.portal._placing import Group, explained, put_file, scratch_files
from em_assets.portal._staged import Measured, StagedVolume, Statistics, measure, stage, stored_dtype
from em_assets.records import StoredObject, manifest_digest
from em_assets.standardize.region import tool
from em_assets.store import Store
from em_assets.volume import VoxelSize, Zyx

__all__ = ["Content", "Ngff", "Present", "Statistics", "WrittenVolume", "group_digest", "write_volume"]

RULES = 1
"""Raised by one whenever the same volume would be written as other bytes: what was written before is then replaced."""
RECORD = "em_assets"
"""Key of what is recorded of a volume, in the attributes of its group."""
ABSENT = "Every voxel of a chunk that is not there is 0."
_HASHED_AT_ONCE = 8 * 2**20
_HEADER_TAGS = 64
"""The header's own fields come first among a file's tags."""


@dataclass(frozen=True, slots=True)
class WrittenVolume:
    """What lies in the store."""

    scales: tuple[Zyx, Zyx, Zyx]
    """(z, y, x) of each level, the finest first."""
    voxel_sizes_nm: tuple[VoxelSize, VoxelSize, VoxelSize]
    """(z, y, x) of each level; of a tilt series z is not scaled."""
    dtype: str
    """Of the OME-Zarr."""
    mrc_dtype: str | None
    """None where no MRC was written."""
    statistics: Statistics | None
    """None where no voxel is a finite number."""
    zarr_bytes: int | None
    """All files of the group; None where none was asked for."""
    mrc_bytes: int | None
    """None where none was asked for, or no mode of MRC holds the voxels; `notes` says so."""
    sha256s: Mapping[str, str]
    """By key: of the MRC file, and of the group's files but its last document, as `records.manifest_digest`."""
    notes: tuple[str, ...]
    """What whoever uses the files has to know, in sentences."""
    is_new: bool
    """False where the same volume was there already, and nothing was written."""


def write_volume(
    reader: VolumeReader,
    store: Store,
    *,
    zarr_key: str | None,
    mrc_key: str | None,
    voxel_size_nm: VoxelSize,
    content: Content,
    identity: str | None = None,
    ngff: Ngff = "0.4",
    workers: int = 1,
    on_voxels: Callable[[int], None] | None = None,
    labels_text: Sequence[str] = (),
    scratch: Path | None = None,
    present: Present | None = None,
    verify: bool = False,
) -> WrittenVolume:
    """Writes a volume as an OME-Zarr group, an MRC file, or both; neither is visible under its name before it is whole.

    `identity` says what the reader's voxels are (a digest of the source). Where both keys hold what was written of the
    same identity in the same way, with the sizes that were recorded, no voxel is read and nothing written; with
    `verify` the bytes that are there are compared with the recorded sha256, too. Without an identity the volume is
    always written. `present` says which voxels of level 0 the source has: the others are 0 in it, and count in no mean;
    the identity has to tell them, too. `labels_text` are lines for the MRC's header, at most eight of 80 characters.
    The z of a tilt series' `voxel_size_nm` only makes its MRC's cell as thick. `on_voxels` is told how many more voxels
    of level 0 were read. `scratch` is a folder with room for level 0, needed where the store is no folder of this
    machine (default: the cache).

    Equal arguments make equal files. Labels are stored as the smallest unsigned integers that hold the largest one.
    Raises what the reader raises; Unsupported for voxels that are no real numbers, Mismatch for labels that are not
    whole numbers from 0 to 2**64 - 1, Unavailable where the store or the disk does not take it. Then nothing is left
    under the keys that was not whole; on S3 an earlier group of the same key may be gone, which the error says.
    """
    if zarr_key is None and mrc_key is None:
        raise ValueError("neither a key for the OME-Zarr nor one for the MRC is given")
    stored_dtype(reader.info)  # before anything is read
    job = _Job(reader, store, zarr_key, mrc_key, voxel_size_nm, content, identity, ngff, tuple(labels_text))
    found = job.found(verify=verify)
    if found is not None:
        return found
    with explained(store, zarr_key or mrc_key or ""):
        return job.written(workers, on_voxels, scratch, present)


@dataclass(frozen=True)
class _Job:
    """One call of `write_volume`."""

    reader: VolumeReader
    store: Store
    zarr_key: str | None
    mrc_key: str | None
    voxel_size_nm: VoxelSize
    content: Content
    identity: str | None
    ngff: Ngff
    labels_text: tuple[str, ...]

    # -- found again

    @property
    def _of_voxels(self) -> dict[str, Any]:
        """Everything that decides the voxels and what is said of them, whichever files they are in."""
        info = self.reader.info
        return {
            "rules": RULES,
            "identity": self.identity,
            "shape": list(info.shape),
            "dtype": info.dtype,
            "voxel_size_nm": [float(size) for size in self.voxel_size_nm],
            "content": self.content,
        }

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything that decides the bytes of the group, and whether there is an MRC beside it."""
        mrc = list(self.labels_text) if self.mrc_key is not None else None
        return {**self._of_voxels, "ngff": self.ngff, "mrc_labels": mrc}

    @property
    def mrc_digest(self) -> str | None:
        """Likewise of the MRC; None without an identity, which makes every volume another one."""
        return _digest({**self._of_voxels, "mrc_labels": list(self.labels_text)}) if self.identity is not None else None

    def found(self, *, verify: bool) -> WrittenVolume | None:
        """What is there, if it is what would be written."""
        if self.identity is None:
            return None
        if self.zarr_key is None:  # nothing is recorded of an MRC alone that it could be compared with
            return None if verify else self._found_mrc()
        try:
            return self._found_group(verify=verify)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None  # of a file that somebody changed

    def _found_group(self, *, verify: bool) -> WrittenVolume | None:
        record = self._record()
        if record is None or record.get("parameters") != self.parameters:
            return None
        written = self._of_record(record)
        is_whole = self._group_bytes(record) == written.zarr_bytes
        has_mrc = written.mrc_bytes is None or self._is_our_mrc(written.mrc_bytes)
        return written if is_whole and has_mrc and not (verify and self._is_damaged(written)) else None

    def _record(self) -> dict[str, Any] | None:
        """None where there is none, or the group's document says anything else than it would if written anew."""
        form = self._form(stored_dtype(self.reader.info))
        try:
            data = self.store.read(f"{self.zarr_key}/{form.last_document}")
        except FileNotFoundError:
            return None
        document = json.loads(data)
        record: dict[str, Any] = (document["attributes"] if self.ngff == "0.5" else document)[RECORD]
        return record if form.group_documents(self._name, record)[-1][1] == data else None

    @property
    def _name(self) -> str:
        return PurePosixPath(str(self.zarr_key)).name.removesuffix(".zarr")

    def _is_damaged(self, written: WrittenVolume) -> bool:
        """Whether any byte is another than when it was written; reads all of them."""
        groups = {self.zarr_key: group_digest(self.store, str(self.zarr_key))}
        if written.mrc_bytes is not None and self.mrc_key is not None:
            groups[self.mrc_key] = _sha256(self.store, self.mrc_key, written.mrc_bytes)
        return groups != dict(written.sha256s)

    def _of_record(self, record: dict[str, Any]) -> WrittenVolume:
        assert self.zarr_key is not None
        form, mrc = self._form(np.dtype(record["dtype"])), record["mrc"]
        sha256s = {self.zarr_key: str(record["files"]["sha256"])}
        if mrc is not None:
            sha256s[self.mrc_key or ""] = str(mrc["sha256"])
        last_bytes = self.store.size_bytes(f"{self.zarr_key}/{form.last_document}") or 0
        return WrittenVolume(
            form.shapes,
            form.voxel_sizes_nm,
            form.dtype.name,
            mrc and str(mrc["dtype"]),
            Statistics(**record["statistics"]) if record["statistics"] else None,
            int(record["files"]["size_bytes"]) + last_bytes,
            mrc and int(mrc["size_bytes"]),
            sha256s,
            tuple(map(str, record["notes"])),
            is_new=False,
        )

    def _group_bytes(self, record: dict[str, Any]) -> int | None:
        """Of all files that are there; None if there are more or fewer than were written."""
        sizes = [size for _, size in self.store.list(str(self.zarr_key))]
        return sum(sizes) if len(sizes) == record["files"]["count"] + 1 else None

    def _is_our_mrc(self, size_bytes: int | None) -> bool:
        """Whether the MRC was written of the same identity in the same way; of any size if None is given."""
        assert self.mrc_key is not None
        found = self.store.size_bytes(self.mrc_key)
        if found is None or size_bytes not in (None, found):
            return False
        return f"{_made_of(self.mrc_digest)} ".encode() in self.store.read_range(self.mrc_key, 0, HEADER_BYTES)

    def _found_mrc(self) -> WrittenVolume | None:
        """An MRC alone has no record beside it: it is read, and so measured and hashed anew."""
        assert self.mrc_key is not None
        if not self._is_our_mrc(None):
            return None
        info, dtype = self.reader.info, _dtype_of_mrc(self.store.read_range(self.mrc_key, 0, HEADER_BYTES))
        size_bytes = HEADER_BYTES + int(np.prod(info.shape, dtype=object)) * dtype.itemsize
        if self.store.size_bytes(self.mrc_key) != size_bytes:
            return None
        measured, sha256 = _measured_and_hashed(self.store, self.mrc_key, size_bytes, dtype)
        stored, notes = self._dtype(measured)
        _, note = mrc_dtype(stored, measured, is_labels=self.content == "labels")
        done = self._done(self._form(stored), measured, (*notes, *([note] if note else [])))
        return replace(done, mrc_dtype=dtype.name, mrc_bytes=size_bytes, sha256s={self.mrc_key: sha256}, is_new=False)

    # -- written

    def written(
        self, workers: int, on_voxels: Callable[[int], None] | None, scratch: Path | None, present: Present | None
    ) -> WrittenVolume:
        with scratch_files(self.store, self.mrc_key or self.zarr_key or "", scratch) as new_file:
            staged = stage(self.reader, new_file(), HEADER_BYTES, workers=workers, on_voxels=on_voxels)
            dtype, notes = self._dtype(staged.measured)
            form = self._form(dtype)
            with contextlib.ExitStack() as stack:
                group = stack.enter_context(Group.beginning(self.store, self.zarr_key)) if self.zarr_key else None
                absent = write_levels(staged, form, group.write, workers, present) if group else []
                mrc = self._mrc(staged, dtype, new_file)
                notes += mrc.notes
                done = self._done(form, staged.measured, notes)
                if mrc.file is not None and self.mrc_key is not None:
                    sha256s = {self.mrc_key: mrc.sha256}
                    done = replace(done, mrc_dtype=mrc.dtype, mrc_bytes=mrc.size_bytes, sha256s=sha256s)
                    put_file(self.store, self.mrc_key, mrc.file)
                elif self.mrc_key is not None:
                    self.store.delete(self.mrc_key)  # of an earlier volume: it must not pass for this one's
                return self._group_finished(group, form, done, absent) if group else done

    def _dtype(self, measured: Measured) -> tuple[np.dtype[Any], tuple[str, ...]]:
        """As which the voxels are stored, and what there is to say about it."""
        source = stored_dtype(self.reader.info)
        if self.content != "labels":
            return source, ()
        largest = measured.largest if measured.count else 0
        if not measured.is_whole or (measured.count and not 0 <= measured.smallest <= largest < 2**64):
            raise Mismatch(
                f"the labels are {source.name} values from {measured.smallest} to {measured.largest}"
                f"{'' if measured.is_whole else ', not all of them whole numbers'}, expected whole numbers from 0 to "
                "2**64 - 1; give them as an image, or correct the source."
            )
        dtype = np.min_scalar_type(int(largest)).newbyteorder("<")
        changed = f"The labels are stored as {dtype.name}, which holds all of them; their source has {source.name}."
        return dtype, (changed,) if dtype != source else ()

    def _form(self, dtype: np.dtype[Any]) -> LevelForm:
        return LevelForm(self.content, self.ngff, self.reader.info.shape, dtype.newbyteorder("<"), self.voxel_size_nm)

    def _done(self, form: LevelForm, measured: Measured, notes: tuple[str, ...]) -> WrittenVolume:
        return WrittenVolume(
            form.shapes,
            form.voxel_sizes_nm,
            form.dtype.name,
            None,
            measured.statistics,
            None,
            None,
            {},
            notes,
            is_new=True,
        )

    def _mrc(self, staged: StagedVolume, dtype: np.dtype[Any], new_file: Callable[[], Path]) -> _Mrc:
        """Lays the file out, of the staged one where the voxels are the same."""
        if self.mrc_key is None:
            return _Mrc(None, None, 0, "", ())
        wanted, note = mrc_dtype(dtype, staged.measured, is_labels=self.content == "labels")
        notes = (note,) if note else ()
        if wanted is None:
            return _Mrc(None, None, 0, "", notes)
        file = staged.file
        if wanted != staged.dtype.name:
            file = new_file()
            write_converted(staged, wanted, file)
        header = mrc_header(
            staged.shape,
            wanted,
            [angstrom(size) for size in self.voxel_size_nm],
            staged.measured.statistics,
            is_tilt_series=self.content == "tilt_series",
            origin_angstrom=_origin_angstrom(self.reader),
            labels=[tool().split(",")[0], *([_made_of(self.mrc_digest)] if self.mrc_digest else []), *self.labels_text],
        )
        with file.open("r+b") as opened:
            opened.write(header)
            opened.seek(0)
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            os.fsync(opened.fileno())
        return _Mrc(file, wanted, file.stat().st_size, sha256, notes)

    def _group_finished(self, group: Group, form: LevelForm, done: WrittenVolume, absent: list[int]) -> WrittenVolume:
        assert self.zarr_key is not None
        for level in range(len(form.shapes)):
            for path, data in form.array_documents(level):
                group.write(path, data)
        *before, (last, _) = form.group_documents(self._name, {})
        for path, data in before:
            group.write(path, data)
        digest, size_bytes = manifest_digest(group.written), sum(one.size_bytes for one in group.written)
        mrc = {"dtype": done.mrc_dtype, "size_bytes": done.mrc_bytes, "sha256": done.sha256s.get(self.mrc_key or "")}
        record = {
            "tool": tool(),
            "parameters": self.parameters,
            "dtype": form.dtype.name,
            "statistics": done.statistics and asdict(done.statistics),
            "absent_chunks": {"by_level": absent, "meaning": ABSENT},
            "files": {"count": len(group.written), "size_bytes": size_bytes, "sha256": digest},
            "mrc": mrc if done.mrc_bytes is not None else None,
            "notes": list(done.notes),
        }
        [(_, data)] = [one for one in form.group_documents(self._name, record) if one[0] == last]
        group.finish(last, data)
        sha256s = {**done.sha256s, self.zarr_key: digest}
        return replace(done, zarr_bytes=size_bytes + len(data), sha256s=sha256s)


@dataclass(frozen=True, slots=True)
class _Mrc:
    """A file that is whole but for its name, or none."""

    file: Path | None
    dtype: str | None
    size_bytes: int
    sha256: str
    notes: tuple[str, ...]


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _made_of(digest: str | None) -> str:
    """The label by which an MRC is found again."""
    return f"source sha256:{digest}"


def _origin_angstrom(reader: VolumeReader) -> VoxelSize:
    """ORIGIN of a source that is MRC itself; 0 of others."""
    tags = getattr(reader, "tags", None)
    if tags is None:
        return 0.0, 0.0, 0.0
    found = dict(itertools.islice(tags(), _HEADER_TAGS))
    z, y, x = (found.get(f"/origin/{axis}", 0.0) for axis in "zyx")
    return float(z or 0), float(y or 0), float(x or 0)


def _dtype_of_mrc(header: bytes) -> np.dtype[Any]:
    from em_assets.formats._mrc_header import DTYPES

    return np.dtype(DTYPES[int.from_bytes(header[12:16], "little")]).newbyteorder("<")


def group_digest(store: Store, key: str) -> str:
    """Of what lies there, as `WrittenVolume.sha256s` has it of a group: every file but the last document."""
    last = {f"{key}/.zattrs", f"{key}/zarr.json"}
    return manifest_digest(
        StoredObject(path=path.removeprefix(f"{key}/"), size_bytes=size, sha256=_sha256(store, path, size))
        for path, size in store.list(key)
        if path not in last
    )


def _sha256(store: Store, key: str, size_bytes: int) -> str:
    digest = hashlib.sha256()
    for at in range(0, size_bytes, _HASHED_AT_ONCE):
        digest.update(store.read_range(key, at, min(_HASHED_AT_ONCE, size_bytes - at)))
    return digest.hexdigest()


def _measured_and_hashed(store: Store, key: str, size_bytes: int, dtype: np.dtype[Any]) -> tuple[Measured, str]:
    digest, measured = hashlib.sha256(store.read_range(key, 0, HEADER_BYTES)), Measured()
    for at in range(HEADER_BYTES, size_bytes, _HASHED_AT_ONCE):
        data = store.read_range(key, at, min(_HASHED_AT_ONCE, size_bytes - at))
        digest.update(data)
        voxels: NDArray[Any] = np.frombuffer(data, dtype)
        measured = measured.joined(measure(voxels))
    return measured, digest.hexdigest()
