"""What a run has at each voxel spacing: annotations first, then tomograms, whose Neuroglancer state shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from em_assets.errors import EmAssetsError, Mismatch
from em_assets.formats.reader import VolumeReader
from em_assets.ingest.acquisition import Acquisition, xyz
from em_assets.ingest.annotations import Grid, ShapeSource, ShapeWriter, volume_outputs
from em_assets.ingest.copying import Sources
from em_assets.ingest.ledger import EntityRecord, Output, digest_of, file_output
from em_assets.ingest.making import Job, Made, Values
from em_assets.ingest.plan import Found
from em_assets.ingest.run_context import RunContext, stated
from em_assets.ingest.volumes_of import Sized, opened, read_pieces
from em_assets.portal import entities, ids
from em_assets.portal._levels import nanometres
from em_assets.portal.layout import AnnotationPlace, SpacingPlace, TomogramPlace, annotation_slug
from em_assets.portal.pictures import WIDTHS, Which, central_slab, key_photos
from em_assets.portal.states import ShownVolume, state_json, tomogram_state
from em_assets.portal.volumes import write_volume

PICTURES: tuple[Which, ...] = ("snapshot", "thumbnail")
"""Those of a tomogram that its metadata name."""
CONTRAST_PERCENT = (1.0, 99.0)
"""Of the grey values in a state, shown black and white."""
NOT_YET = "waits for the alignment {}, which failed and to which it refers; correct that and run again."


class Reconstructions:
    """One voxel spacing of a run."""

    def __init__(self, context: RunContext, acquisition: Acquisition, found: Found) -> None:
        self.context, self.bench, self.acquisition = context, context.bench, acquisition
        self.found = found
        self.spacing_angstrom = context.spacing(found.name)
        self.place: SpacingPlace = context.place.spacing(self.spacing_angstrom)
        self.tomograms = context.of("tomogram", voxel_spacing=found.name)
        self.shown: list[tuple[str, EntityRecord]] = []
        """(name, record) of annotations that a state may show."""

    def all(self) -> None:
        for sources in self._annotations():
            self._annotation(sources)
        for found in self.tomograms:
            self._tomogram(found)

    def _waits(self, found: Found) -> bool:
        failed = self.acquisition.failed_alignment
        if failed is not None:
            self.bench.fail(found.kind, found.name, found.line, NOT_YET.format(failed))
        return failed is not None

    # Annotations

    def _annotations(self) -> list[list[Found]]:
        """The sources of each annotation: those of one block."""
        by_block: dict[str, list[Found]] = {}
        for found in self.context.of("annotation", voxel_spacing=self.found.name):
            by_block.setdefault(found.block, []).append(found)
        return list(by_block.values())

    def _annotation(self, found: Sequence[Found]) -> None:
        first = found[0]
        if not all(self.bench.has_file(one) for one in found) or self._waits(first):
            return
        values = stated(first)
        of_alignment = {"alignment_metadata_path": self.acquisition.alignment_key}
        identity = ids.identity_of("annotation", values | of_alignment | {"deposition_id": self.bench.deposition_id})
        name = digest_of([self.found.name, identity])[:12]
        shown_name = str(values.get("annotation_ingest_id") or first.block)
        try:
            number = self.bench.number(first.kind, name, self.place.annotations, identity)
            place = self._annotation_place(values, number)
        except EmAssetsError as error:
            self.bench.fail(first.kind, shown_name, first.line, str(error))
            return
        shapes = [ShapeSource(str(one.shape), one.paths[0], one.options) for one in found]
        grid = self._grid()
        record = self.bench.make(
            Job(
                first.kind,
                name,
                first.line,
                list(dict.fromkeys(shape.path for shape in shapes)),
                [values, of_alignment, [shape.decides for shape in shapes], grid.shape, grid.voxel_size_nm],
                _Annotated(self, shapes, place, values | of_alignment, number, grid).made,
                entities.AnnotationMetadata,
                place.metadata,
                values,
                self.context.where(first),
                shown_name,
                (self.place.annotations, number),
            )
        )
        if record is not None and record.details.get("shown"):
            self.shown.append((shown_name, record))

    def _annotation_place(self, values: Values, number: int) -> AnnotationPlace:
        named = values.get("annotation_object")
        if not isinstance(named, Mapping) or not named.get("name"):
            raise Mismatch(
                "the annotation has no annotation_object with a name, after which its files are called; add it."
            )
        slug = annotation_slug(str(named["name"]), named.get("description"))
        return self.place.annotation(number, slug, values.get("version", 1.0))

    def _grid(self) -> Grid:
        """Of the first tomogram at this spacing that can be read."""
        for tomogram in self.tomograms:
            shape = self.context.shape(tomogram)
            if shape is not None:
                return Grid(shape, self.context.voxel_size(tomogram)[0])
        return Grid(None, (nanometres(self.spacing_angstrom),) * 3)

    # Tomograms

    def _tomogram(self, found: Found) -> None:
        if not found.is_new:
            self.bench.refer(found.kind, found.name, found.line, found.paths)
            return
        if not self.bench.has_file(found) or self._waits(found):
            return
        values: Values = {"is_visualization_default": True} | stated(found)
        said = self._of_spacing(values, found)
        values |= {"alignment_metadata_path": self.acquisition.alignment_key}
        identity = ids.identity_of("tomogram", values | {"deposition_id": self.bench.deposition_id})
        name = digest_of([self.found.name, identity])[:12]
        try:
            number = self.bench.number(found.kind, name, self.place.tomograms, identity)
        except EmAssetsError as error:
            self.bench.fail(found.kind, found.name, found.line, str(error))
            return
        place = self.place.tomogram(number)
        pictures = self._pictures(found)
        layers = list(self._layers()) if values["is_visualization_default"] else []
        self.bench.make(
            Job(
                found.kind,
                name,
                found.line,
                found.paths,
                [
                    values,
                    list(found.paths),
                    pictures,
                    [asdict(layer) for layer in layers],
                    self.context.voxel_size(found),
                ],
                _Tomogram(self, found, place, values, pictures, layers, said).made,
                entities.TomogramMetadata,
                place.metadata,
                values,
                self.context.where(found),
                found.name,
                (self.place.tomograms, number),
            )
        )

    def _of_spacing(self, values: Values, found: Found) -> tuple[str, ...]:
        """Puts the spacing of the folder into the metadata, as the portal does, and says where they said otherwise."""
        given, values["voxel_spacing"] = values.get("voxel_spacing"), self.spacing_angstrom
        if given is None or given == self.spacing_angstrom:
            return ()
        where = f"Line {self.context.plan.config.line(found.block)}, {found.block}.metadata: voxel_spacing is {given}"
        return (f"{where}, but the tomogram was found for {self.spacing_angstrom:g} A, which is written.",)

    def _pictures(self, found: Found) -> list[Which]:
        """Of the four, those that the config wants; by default all."""
        images = self.context.of("key_image", voxel_spacing=self.found.name, tomogram=found.name)
        wanted = {one.name for one in images}
        for one in images:
            if one.name not in WIDTHS:
                self.bench.leave(one.kind, one.name, one.line, f"Pictures are made of the voxels: {', '.join(WIDTHS)}.")
        return [which for which in WIDTHS if which in wanted]

    def _layers(self) -> list[ShownVolume]:
        """Masks of this voxel spacing that are to be shown."""
        return [
            ShownVolume(
                f"{record.details['number']} {name}",
                mask["key"],
                tuple(mask["shape"]),
                tuple(mask["voxel_size_nm"]),
                is_labels=True,
            )
            for name, record in self.shown
            for mask in record.details["shown"]
            if mask["is_default"]
        ]

    def put(self, key: str, data: bytes) -> Output:
        self.bench.destination.write(key, data)
        return file_output(key, data)


@dataclass(frozen=True)
class _Annotated:
    """One annotation that is to be made."""

    owner: Reconstructions
    shapes: Sequence[ShapeSource]
    place: AnnotationPlace
    values: Values
    number: int
    grid: Grid

    def made(self, sources: Sources) -> Made:
        self._require_distinct()
        bench = self.owner.bench
        writer = ShapeWriter(sources, bench.destination, bench.settings, self.grid, bench.verify)
        made = [writer.write(shape, self.place) for shape in self.shapes]
        notes = tuple(note for one in made for note in one.notes)
        outputs = tuple(output for one in made for output in one.outputs)
        if not outputs:
            return Made(notes=notes)
        metadata = self.values | {
            "object_count": max(one.object_count for one in made),
            "files": [file for one in made for file in one.files],
        }
        shown = [one.shown for one in made if one.shown is not None]
        return Made(outputs, metadata, {"number": self.number, "shown": shown}, notes)

    def _require_distinct(self) -> None:
        """Raises Mismatch for two files of one shape: the portal has one place for both."""
        seen: dict[str, str] = {}
        for shape in self.shapes:
            if shape.place_key in seen:
                raise Mismatch(
                    f"{seen[shape.place_key]} and {shape.path} are both the annotation's {shape.name}, expected one "
                    "file for this run; narrow the glob."
                )
            seen[shape.place_key] = shape.path


@dataclass(frozen=True)
class _Tomogram:
    """One tomogram that is to be made."""

    owner: Reconstructions
    found: Found
    place: TomogramPlace
    values: Values
    pictures: Sequence[Which]
    layers: Sequence[ShownVolume]
    said: tuple[str, ...]

    def made(self, sources: Sources) -> Made:
        bench, place, run = self.owner.bench, self.place, self.owner.context.place.run
        size_nm, notes = self.owner.context.voxel_size(self.found)
        with opened(sources, self.found.paths[0], bench.settings) as reader:
            written = write_volume(
                reader,
                bench.destination,
                zarr_key=place.zarr,
                mrc_key=place.mrc,
                voxel_size_nm=size_nm,
                content="image",
                identity=digest_of([[file.path, file.sha256] for file in sources.files(self.found.paths[0])]),
                workers=bench.settings.workers,
                verify=bench.verify,
            )
            photos = key_photos([Sized(reader, size_nm)]) if self.pictures else {}
            contrast = _contrast(reader)
        outputs = list(volume_outputs(written, bench.destination, place.zarr, place.mrc))
        outputs += [self.owner.put(place.image(which), photos[which]) for which in self.pictures]
        is_default = self.values["is_visualization_default"]
        if is_default:
            shown = ShownVolume(run, place.zarr, written.scales[0], written.voxel_sizes_nm[0], value_range=contrast)
            state = tomogram_state(shown, self.layers)
            outputs.append(self.owner.put(place.state, state_json(state, bench.deposition_id, bench.now())))
        scales = [xyz(shape) for shape in written.scales]
        metadata = self.values | {
            "scales": scales,
            "size": scales[0],
            "omezarr_dir": place.zarr,
            "mrc_file": place.mrc if written.mrc_bytes is not None else None,
            "run_name": run,
            "key_photo": {which: place.image(which) if which in self.pictures else None for which in PICTURES},
            "neuroglancer_config_path": place.state if is_default else None,
        }
        return Made(tuple(outputs), metadata, {"number": place.number}, (*self.said, *notes, *written.notes))


def _contrast(reader: VolumeReader) -> tuple[float, float] | None:
    """Between percentiles of what is central in the central planes; None where no voxel is a finite number."""
    slab = central_slab(reader.info.shape, reader.info.shape).shifted(reader.info.origin)
    pieces = list(read_pieces(slab, reader.info.chunk))
    voxels: Any = reader.read(pieces[len(pieces) // 2])
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels.reshape(-1)
    if not finite.size:
        return None
    low, high = (float(value) for value in np.percentile(finite.astype(np.float64), CONTRAST_PERCENT))
    return (low, high) if high > low else (low - 1, low + 1)
