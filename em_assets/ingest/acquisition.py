"""What a run has of its acquisition: gains, notes, movies, tilt series and alignments; and its list of objects."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from em_assets.errors import EmAssetsError, Mismatch
from em_assets.formats import tilt_files
from em_assets.ingest import tilt_series
from em_assets.ingest.annotations import volume_outputs
from em_assets.ingest.copying import Sources, copy
from em_assets.ingest.ledger import Output, digest_of, file_output
from em_assets.ingest.making import Job, Made, Values
from em_assets.ingest.objects import read_objects
from em_assets.ingest.plan import Found
from em_assets.ingest.run_context import RunContext, angstrom, stated
from em_assets.ingest.volumes_of import opened
from em_assets.portal import entities, ids
from em_assets.portal._levels import nanometres
from em_assets.portal.layout import AlignmentPlace, TiltSeriesPlace
from em_assets.portal.volumes import write_volume
from em_assets.volume import Zyx

RAWTLT, DM4 = ".rawtlt", ".dm4"
UNSTATED = (0.0, 0.0, 0.0)
"""A voxel size that nobody states: an MRC's cell of 0 says so."""


class Acquisition:
    """Of one run. The methods are called in this order; each entity's failure is its own."""

    def __init__(self, context: RunContext) -> None:
        self.context, self.bench, self.place = context, context.bench, context.place
        self.tilt_series_key: str | None = None
        """Of the metadata JSON of the run's tilt series, if it is whole."""
        self.alignment_key: str | None = None
        """Likewise of its alignment, which tomograms and annotations refer to, whole or not."""
        self.failed_alignment: str | None = None
        """Its name, if it failed: what refers to it waits."""

    def all(self) -> None:
        for found in self.context.of("gain"):
            for path in found.paths:
                self._gain(found, path)
        self._notes()
        for found in self.context.of("frame"):
            self._frames(found)
        for found in self.context.of("tiltseries"):
            self._tilt_series(found)
        for found in self._orphans():
            self.bench.leave(found.kind, found.name, found.line, "The run has no tilt series that it could lie beside.")
        self._refer_to_tilt_series()
        for found in self.context.of("alignment"):
            self._alignment(found)
        self._refer_to_alignment()
        for found in self.context.of("identified_object"):
            self._objects(found)

    # Gains

    def _gain(self, found: Found, path: str) -> None:
        """A DM4 becomes MRC, as the portal's are. One that cannot be read is copied as it is, and that is said."""
        name = posixpath.basename(path)
        key = self.place.gain(name)

        def build(sources: Sources) -> Made:
            if not name.lower().endswith(DM4):
                return Made((self.bench.copy(sources, path, key),))
            try:
                output, notes = self._converted(sources, path, self.place.gain(f"{name[: -len(DM4)]}.mrc"))
            except EmAssetsError as error:
                kept = f"It could not be made into an MRC and was copied as it is: {error}"
                return Made((self.bench.copy(sources, path, key),), notes=(kept,))
            return Made((output,), notes=notes)

        self.bench.make(Job("gain", name, found.line, [path], path, build))

    def _converted(self, sources: Sources, path: str, key: str) -> tuple[Output, tuple[str, ...]]:
        with opened(sources, path, self.bench.settings) as reader:
            written = write_volume(
                reader,
                self.bench.destination,
                zarr_key=None,
                mrc_key=key,
                voxel_size_nm=reader.info.voxel_size_nm or UNSTATED,
                content="image",
                identity=sources.file(path).sha256,
                workers=self.bench.settings.workers,
                verify=self.bench.verify,
            )
        if written.mrc_bytes is None:
            raise Mismatch(f"{path}: {' '.join(written.notes)}")
        return Output(key=key, size_bytes=written.mrc_bytes, sha256=written.sha256s[key]), written.notes

    # The microscope's notes, and movies

    def _notes(self) -> None:
        """The run's mdoc. There is one place for it."""
        first: Found | None = None
        for found in self.context.of("collection_metadata"):
            for path in found.paths:
                if first is not None:
                    self.bench.fail(
                        found.kind,
                        path,
                        found.line,
                        f"{path} is a second mdoc of the run beside {first.paths[0]}, expected one; narrow the glob.",
                    )
                    continue
                first = found
                self.bench.copied(found.kind, path, self.place.mdoc, found.line)

    @property
    def mdoc(self) -> str | None:
        """Its path in the source."""
        return next((path for found in self.context.of("collection_metadata") for path in found.paths), None)

    def read_notes(self, sources: Sources) -> tilt_files.Mdoc | None:
        return None if self.mdoc is None else tilt_files.mdoc(sources.read(self.mdoc), self.mdoc)

    def _frames(self, found: Found) -> None:
        values = stated(found)
        mdoc = self.mdoc
        keys = {posixpath.basename(path): self.place.frames(posixpath.basename(path)) for path in found.paths}

        def build(sources: Sources) -> Made:
            notes = self.read_notes(sources)
            metadata = values | {"frames_acquisition_file": None if mdoc is None else self.place.mdoc}
            said: tuple[str, ...] = ()
            if notes is None:
                metadata["frames"] = None
                said = ("The run has no mdoc, so the order and dose of its movies are not known.",)
            elif "dose_rate" in values:
                corrected = values.get("is_gain_corrected")
                metadata["frames"] = tilt_series.frame_values(
                    notes, values["dose_rate"], keys, str(mdoc), is_gain_corrected=corrected
                )
                left = tilt_series.frames_without_section(notes, list(keys))
                if left:
                    said = (f"{len(left)} movies are in no section of {mdoc}: {', '.join(left[:3])}.",)
            else:
                raise Mismatch(f"{self.context.where(found)}: no dose_rate, by which the doses are known; add it.")
            return Made(tuple(self._copies(sources, found.paths, keys)), metadata, notes=said)

        self.bench.make(
            Job(
                found.kind,
                found.name,
                found.line,
                [*found.paths, *([mdoc] if mdoc else [])],
                [values, sorted(keys.values()), mdoc],
                build,
                entities.FramesMetadata,
                self.place.frames_metadata,
                values,
                self.context.where(found),
            )
        )

    def _copies(self, sources: Sources, paths: Sequence[str], keys: Mapping[str, str]) -> Iterator[Output]:
        """Movies are many, and each waits for the store: several at a time."""
        bench = self.bench

        def one(path: str) -> Any:
            return copy(bench.source, path, bench.destination, keys[posixpath.basename(path)], bench.settings)

        with ThreadPoolExecutor(bench.settings.connections_per_host) as pool:
            for path, found in zip(paths, pool.map(one, paths), strict=True):
                sources.note(found)
                yield Output(key=keys[posixpath.basename(path)], size_bytes=found.size_bytes, sha256=found.sha256)

    # Tilt series

    def _orphans(self) -> list[Found]:
        """CTF and angles of tilt series that are not made here."""
        return [] if self.context.of("tiltseries") else [*self.context.of("ctf"), *self.context.of("rawtilt")]

    def _tilt_series(self, found: Found) -> None:
        if not found.is_new:
            if found.number is not None:
                self.tilt_series_key = self.place.tilt_series(found.number).metadata
            self.bench.refer(found.kind, found.name, found.line, found.paths)
            return
        if not self.bench.has_file(found):
            return
        identity = ids.identity_of("tilt_series", {"deposition_id": self.bench.deposition_id})
        name = digest_of(identity)[:12]
        try:
            number = self.bench.number(found.kind, name, self.place.all_tilt_series, identity)
        except EmAssetsError as error:
            self.bench.fail(found.kind, found.name, found.line, str(error))
            return
        series = _Series(self, found, self.place.tilt_series(number))
        series.copy_beside()
        record = self.bench.make(series.job(name, (self.place.all_tilt_series, number)))
        self.tilt_series_key = series.place.metadata if record is not None else None

    def _refer_to_tilt_series(self) -> None:
        """Where a filter leaves it out of the plan: to the one that an earlier run made."""
        if not self.context.of("tiltseries"):
            number = self._number_there("tilt_series", self.place.all_tilt_series)
            self.tilt_series_key = None if number is None else self.place.tilt_series(number).metadata

    # Alignments

    def _refer_to_alignment(self) -> None:
        """Likewise."""
        if not self.context.of("alignment"):
            number = self._number_there("alignment", self.place.alignments)
            self.alignment_key = None if number is None else self.place.alignment(number).metadata

    def _number_there(self, kind: ids.Kind, folder: str) -> int | None:
        identity = ids.identity_of(kind, {"deposition_id": self.bench.deposition_id})
        try:
            return ids.find_id(self.bench.destination, folder, identity)
        except EmAssetsError as error:
            self.bench.fail(kind, folder, 0, str(error))
            return None

    def _alignment(self, found: Found) -> None:
        if not found.is_new:
            if found.number is not None:
                self.alignment_key = self.place.alignment(found.number).metadata
            self.bench.refer(found.kind, found.name, found.line, found.paths)
            return
        dimension = self._volume_dimension()
        if not found.paths and dimension is None:
            self.bench.leave(found.kind, found.name, found.line, "")
            return
        identity = ids.identity_of("alignment", {"deposition_id": self.bench.deposition_id})
        name = digest_of(identity)[:12]
        try:
            number = self.bench.number(found.kind, name, self.place.alignments, identity)
        except EmAssetsError as error:
            self.bench.fail(found.kind, found.name, found.line, str(error))
            self.failed_alignment = found.name
            return
        job = self._alignment_job(found, name, number, dimension)
        self.alignment_key = job.metadata_key
        if self.bench.make(job) is None:
            self.failed_alignment = found.name

    def _alignment_job(self, found: Found, name: str, number: int, dimension: Values | None) -> Job:
        place = self.place.alignment(number)
        values = {**tilt_series.ALIGNMENT_DEFAULTS, "volume_dimension": dimension} | stated(found)
        values["tiltseries_path"] = self.tilt_series_key
        return Job(
            found.kind,
            name,
            found.line,
            found.paths,
            [values, list(found.paths)],
            lambda sources: self._aligned(found, place, values, sources),
            entities.AlignmentMetadata,
            place.metadata,
            values,
            self.context.where(found),
            found.name,
            (self.place.alignments, number),
        )

    def _aligned(self, found: Found, place: AlignmentPlace, values: Values, sources: Sources) -> Made:
        keys = self._alignment_keys(found, place)
        raw = {posixpath.basename(path): sources.read(path) for path in found.paths}
        metadata = values | {
            "per_section_alignment_parameters": tilt_series.alignment_values(str(values.get("format")), raw),
            "alignment_path": _key(keys, tilt_series.XF_ENDINGS + tilt_series.ALN_ENDINGS),
            "tilt_path": _key(keys, tilt_series.TLT_ENDINGS),
            "tiltx_path": _key(keys, tilt_series.XTILT_ENDINGS),
            "files": list(keys.values()),
        }
        outputs = tuple(self.bench.copy(sources, path, key) for path, key in keys.items())
        dimension = values["volume_dimension"]
        notes = () if dimension is not None else ("No tomogram says how large the volume is.",)
        return Made(outputs, metadata, {"number": int(posixpath.basename(place.folder))}, notes)

    def _alignment_keys(self, found: Found, place: AlignmentPlace) -> dict[str, str]:
        """By path. Raises Mismatch where two files would become one: all get the run's name."""
        keys: dict[str, str] = {}
        for path in found.paths:
            key = place.file(tilt_series.alignment_ending(path))
            other = next((one for one, taken in keys.items() if taken == key), None)
            if other is not None:
                raise Mismatch(
                    f"{other} and {path} would both become {key}, as the portal gives an alignment's files the run's "
                    "name; leave one out."
                )
            keys[path] = key
        return keys

    def _volume_dimension(self) -> Values | None:
        """In angstrom, of the first tomogram that can be read."""
        for tomogram in self.context.of("tomogram"):
            shape = self.context.shape(tomogram)
            if shape is not None:
                sizes = dict(zip("zyx", self.context.voxel_size(tomogram)[0], strict=True))
                return {axis: float(f"{count * sizes[axis] * 10:.12g}") for axis, count in xyz(shape).items()}
        return None

    # Lists of objects

    def _objects(self, found: Found) -> None:
        key = self.place.identified_objects
        path = found.paths[0] if len(found.paths) == 1 else None
        if path is None:
            self.bench.fail(found.kind, found.name, found.line, f"{len(found.paths)} files, expected one; narrow it.")
            return
        run = str(found.metadata.get("filter_value") or self.place.run)

        def build(sources: Sources) -> Made:
            objects = read_objects(sources.read(path), run, path)
            if not objects.rows:
                return Made(notes=(f"{path} has no row of {run}.",))
            data = objects.as_json()
            self.bench.destination.write(key, data)
            metadata = {
                "object_count": len(objects.rows),
                "columns": list(objects.columns),
                "file_format": "json",
                "source_file": path,
                "identifier": ids.FIRST,
            }
            return Made((file_output(key, data),), metadata)

        self.bench.make(
            Job(
                found.kind,
                "identified_objects",
                found.line,
                [path],
                [path, run],
                build,
                entities.IdentifiedObjectsMetadata,
                self.place.identified_objects_metadata,
                shown_name=found.name,
            )
        )


class _Series:
    """One tilt series with the files that lie beside it."""

    def __init__(self, owner: Acquisition, found: Found, place: TiltSeriesPlace) -> None:
        self.owner, self.bench, self.context = owner, owner.bench, owner.context
        self.found, self.place = found, place
        self.path = found.paths[0]
        self.values = stated(found)
        self.rawtlt: str | None = None
        self.ctf: tuple[str, str] | None = None
        """(path in the source, format)."""

    def copy_beside(self) -> None:
        """Angles and CTF: byte copies, entities of their own."""
        for found in self.context.of("rawtilt", tiltseries=self.found.name):
            for path in found.paths:
                if not path.lower().endswith(RAWTLT):
                    note = f"{path} does not end in {RAWTLT}, which is all that the portal takes here; it was left out."
                    self.bench.leave(found.kind, path, found.line, note)
                elif self.rawtlt is not None:
                    reason = (
                        f"{path} is a second list of raw angles beside {self.rawtlt}, expected one; narrow the glob."
                    )
                    self.bench.fail(found.kind, path, found.line, reason)
                else:
                    self.rawtlt = path
                    self.bench.copied(found.kind, path, self.place.rawtlt, found.line)
        for found in self.context.of("ctf", tiltseries=self.found.name):
            self._copy_ctf(found)

    def _copy_ctf(self, found: Found) -> None:
        form = found.metadata.get("format")
        known = next((known for known in tilt_files.CTF_FORMATS if known == form), None)
        if known is None or known == "AreTomo3" or len(found.paths) != 1:
            self.bench.fail(
                found.kind,
                found.name,
                found.line,
                f"{self.context.where(found)}: format is {form!r}, expected CTFFIND, Gctf or IMOD; correct it.",
            )
            return
        self.ctf = (found.paths[0], known)
        self.bench.copied(found.kind, found.paths[0], self.place.ctf(known), found.line)

    def job(self, name: str, claim: tuple[str, int]) -> Job:
        beside = [path for path in (self.rawtlt, self.ctf and self.ctf[0], self.owner.mdoc) if path]
        frames = sum(len(found.paths) for found in self.context.of("frame"))
        return Job(
            self.found.kind,
            name,
            self.found.line,
            [self.path, *beside],
            [self.values, self.path, beside, self.ctf, frames],
            lambda sources: self._made(sources, frames),
            entities.TiltSeriesMetadata,
            self.place.metadata,
            {"pixel_spacing": 1.0, "size": {"z": 0, "y": 0, "x": 0}} | self.values,
            self.context.where(self.found),
            self.found.name,
            claim,
        )

    def _made(self, sources: Sources, frames: int) -> Made:
        sections, said = self._sections(sources)
        with opened(sources, self.path, self.bench.settings) as reader:
            (pixel, pixel_x), notes = _pixel_size(reader, self.values.get("pixel_spacing"), self.path)
            written = write_volume(
                reader,
                self.bench.destination,
                zarr_key=self.place.zarr,
                mrc_key=self.place.mrc,
                voxel_size_nm=(nanometres(pixel), nanometres(pixel), nanometres(pixel_x)),
                content="tilt_series",
                identity=digest_of([[file.path, file.sha256] for file in sources.files(self.path)]),
                workers=self.bench.settings.workers,
                verify=self.bench.verify,
            )
        if sections is not None and len(sections) != written.scales[0][0]:
            said += (f"{self.rawtlt} has {len(sections)} angles, the tilt series {written.scales[0][0]} sections.",)
        scales = [xyz(shape) for shape in written.scales]
        metadata = self.values | {
            "pixel_spacing": pixel,
            "scales": scales,
            "size": scales[0],
            "omezarr_dir": self.place.zarr,
            "mrc_file": self.place.mrc if written.mrc_bytes is not None else None,
            "run_name": self.owner.place.run,
            "frames_count": frames,
            "per_section_parameter": sections,
            "raw_tlt_path": self.place.rawtlt if self.rawtlt else None,
            "ctf_path": self.place.ctf(self.ctf[1]) if self.ctf else None,  # type: ignore[arg-type]  # checked before
        }
        outputs = volume_outputs(written, self.bench.destination, self.place.zarr, self.place.mrc)
        return Made(outputs, metadata, {"number": self._number}, (*notes, *said, *written.notes))

    @property
    def _number(self) -> int:
        return int(posixpath.basename(self.place.folder))

    def _sections(self, sources: Sources) -> tuple[list[Values] | None, tuple[str, ...]]:
        """`per_section_parameter`, None where angles or notes are not there, and what to say then."""
        rows = [] if self.ctf is None else tilt_files.ctf(sources.read(self.ctf[0]), self.ctf[1], self.ctf[0])
        notes = self.owner.read_notes(sources)
        if self.rawtlt is None or notes is None:
            lacking = "list of raw tilt angles" if self.rawtlt is None else "mdoc"
            return None, (f"The run has no {lacking}, so its sections have no parameters.",)
        angles = tilt_files.tilt_angles(sources.read(self.rawtlt), self.rawtlt)
        return tilt_series.section_values(angles, notes, rows, f"{self.rawtlt} and {self.owner.mdoc}"), ()


def _pixel_size(reader: Any, given: float | None, name: str) -> tuple[tuple[float, float], tuple[str, ...]]:
    """(y, x) in angstrom, and what there is to say where the header says otherwise. Raises Mismatch where nobody says.

    Of a header whose pixels are not square and whose y is the config's both are kept: the portal has room for one.
    """
    found = getattr(reader, "pixel_size_nm", None) or (reader.info.voxel_size_nm and reader.info.voxel_size_nm[1:])
    if found is None and given is None:
        raise Mismatch(f"{name} does not say how large its pixels are, and the config has no pixel_spacing; add it.")
    if found is None:
        assert given is not None
        return (given, given), ()
    _, y, x = angstrom((found[0], *found))
    shown = f"{y:.8g} x {x:.8g} A (y, x)"
    if given is None or (abs(y - given) <= 1e-6 * given < abs(x - given)):
        said = () if x == y else (f"The pixels of {name} are {shown}: both are written, pixel_spacing is y's.",)
        return (y if given is None else given, x), said
    if any(abs(size - given) > 1e-6 * given for size in (y, x)):
        return (given, given), (f"The header of {name} says {shown}, the config {given:g} A; the config's is written.",)
    return (given, given), ()


def _key(keys: Mapping[str, str], endings: Sequence[str]) -> str | None:
    """Of the first file that ends so."""
    path = tilt_series.with_ending(list(keys), endings)
    return None if path is None else keys[path]


def xyz(shape: Zyx) -> dict[str, int]:
    return {"x": shape[2], "y": shape[1], "z": shape[0]}
