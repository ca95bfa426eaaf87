"""A stored dataset as the CryoET Data Portal's tree: `em-assets export NAME --format cryoet-portal`.

One deposition with one dataset. Each image volume is the tomogram of a run: the main one of the run that is called like
the dataset, a further one of `NAME.VOLUME`. Volumes of labels are annotations of the run whose image they belong to.
So are its tables of points, of the main run. Side files of a tilt series have their folders where the dataset keeps
any (one of the portal's own does); what it does not have has none.

An entity's metadata JSON is written after all that it names, the dataset's and the deposition's last, so what has its
JSON is whole; before a volume is replaced by another one its JSON goes. Whatever is there already as it would be
written is left alone. Equal volumes make equal trees: `last_updated_at` is when the dataset was complete.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate

from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Mismatch
from em_assets.export.stored import Progress
from em_assets.neuroglancer import value_range
from em_assets.portal import layout
from em_assets.portal._kept import KeptPoints, kept_points, kept_side_files
from em_assets.portal._levels import angstrom
from em_assets.portal._output import Output, voxel_bytes
from em_assets.portal.ids import CLAIM
from em_assets.portal.known import Known, Values
from em_assets.portal.layout import RunPlace, SpacingPlace
from em_assets.portal.pictures import Which, key_photos
from em_assets.portal.states import ORIGIN, ShownVolume, state_json, tomogram_state
from em_assets.portal.stored import StoredImage
from em_assets.portal.volumes import Ngff
from em_assets.records import DatasetFolder
from em_assets.standardize.intensity import read_intensities
from em_assets.store import Store
from em_assets.volume import VoxelSize, Zyx

SMALLEST_NUMBER, LARGEST_NUMBER = 1_000_001, 2**31 - 1
"""Of a dataset or deposition that is given no number: above the portal's own, and within GraphQL's Int."""
CONTRAST = ("1", "99")
"""Percentiles of the grey values that a state shows black and white."""
MASK = "SegmentationMask"
"""The shape of every volume of labels: the portal's schema has no other for them."""
SHOWN_OTHERS = 10
PICTURES: tuple[layout.Picture, ...] = ("snapshot", "thumbnail")


def default_number(name: str) -> int:
    """The number of the dataset, and of its deposition, of this name: always the same."""
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    return SMALLEST_NUMBER + digest % (LARGEST_NUMBER - SMALLEST_NUMBER + 1)


@dataclass(frozen=True, slots=True)
class ExportedTree:
    """What lies in the tree of one dataset."""

    uri: str
    """Of the tree's root."""
    dataset_id: int
    deposition_id: int
    runs: tuple[str, ...]
    keys: tuple[str, ...]
    """Of every file, and of every OME-Zarr group as a whole."""
    size_bytes: int
    new: int
    """How many of them were written; the others were there already."""
    missing_voxels: int
    """Voxels that the publisher does not have: they are 0 in every format."""
    sha256: str
    """Of all of it: equal trees have equal ones."""
    pictures: tuple[str, ...]
    """Keys of the dataset's, the largest first; empty without an image."""
    unknown: Mapping[str, str]
    """What the portal asks for and nobody stated, as `file: key`, with what stands there instead."""
    notes: tuple[str, ...]
    """What whoever uses the tree has to know, in sentences."""


def export_tree(
    folder: DatasetFolder,
    target: Store,
    *,
    spec: DatasetSpec | None = None,
    dataset_id: int | None = None,
    deposition_id: int | None = None,
    base_url: str = "",
    ngff: Ngff = "0.4",
    workers: int = 1,
    progress: Progress | None = None,
    verify: bool = False,
) -> ExportedTree:
    """Writes a complete dataset, all its volumes, into the tree at `target`'s root.

    Without numbers those of its name are used. With `verify` every byte of the volumes that are there is compared with
    what was recorded when they were written; without, their sizes are. `base_url` is where the root will be served, for
    Neuroglancer's states; without one their addresses are relative to it. Without a `spec` the one that the dataset was
    made with is used.

    Raises Unavailable if the dataset is not complete or the target cannot be written, Malformed if a stored object is
    damaged, Mismatch if the numbers or the address cannot be or the number is another dataset's. What was finished by
    then stays, and running again goes on. Nothing is removed that is not replaced: `notes` name what is left of others.
    """
    runs = _runs(folder.further(None), workers)
    record = next(image.volume.record for run in runs for image in run.images)
    known = Known.read(folder, record, spec)
    number = default_number(folder.name)
    deposition = _checked(deposition_id, "--deposition-id") or number
    output = Output(target, deposition, int(record.timestamp.timestamp()), ngff, workers, progress, verify)
    tree = _Tree(output, known, folder, _checked(dataset_id, "--dataset-id") or number, base_url)
    tree.write(runs)
    return tree.outcome(runs)


def _checked(number: int | None, option: str) -> int | None:
    if number is not None and not 0 < number <= LARGEST_NUMBER:
        raise Mismatch(f"{option} is {number}, expected a number from 1 to {LARGEST_NUMBER}; correct it.")
    return number


@dataclass
class _Run:
    """An image and the labels that belong to it; labels alone, where the dataset has no image."""

    name: str
    is_main: bool
    """It is of the dataset's main volume: points and side files are its."""
    tomogram: StoredImage | None = None
    labels: list[StoredImage] = field(default_factory=list)

    @property
    def images(self) -> list[StoredImage]:
        return [*([] if self.tomogram is None else [self.tomogram]), *self.labels]


def _runs(folder: DatasetFolder, workers: int) -> list[_Run]:
    main = StoredImage(folder, workers)
    record = main.volume.record
    runs = {"": _Run(folder.name, is_main=True)}
    for name, summary in {"": None, **record.volumes}.items():
        image = main if summary is None else StoredImage(folder.further(name), workers)
        if image.content == "labels":
            owner = (summary and summary.labels_of) or ""
            runs.setdefault(owner, _Run(f"{folder.name}.{owner}", is_main=False)).labels.append(image)
        else:
            runs.setdefault(name, _Run(f"{folder.name}.{name}", is_main=False)).tomogram = image
    return [run for run in runs.values() if run.images]


@dataclass
class _Tree:
    """One export."""

    output: Output
    known: Known
    folder: DatasetFolder
    dataset_id: int
    base_url: str
    photos: dict[Which, bytes] = field(default_factory=dict)
    """Of the first run that has an image: the dataset's, too."""

    def write(self, runs: list[_Run]) -> None:
        store, progress = self.output.store, self.output.progress
        self._require_own_number(runs)
        store.remove_partials(str(self.dataset_id))
        images = [image for run in runs for image in run.images]
        if progress is not None:
            progress.start(sum(map(voxel_bytes, images)), len(images), self.folder.name)
        for run in runs:
            self._run(run, RunPlace(self.dataset_id, run.name))
        self._dataset()
        self._deposition()
        self._tell_of_others()

    def outcome(self, runs: list[_Run]) -> ExportedTree:
        output = self.output
        pictures = [layout.dataset_image(self.dataset_id, which, "png") for which in PICTURES]
        for file, keys in self.known.left_out.items():
            output.note(f"{', '.join(keys)} of the portal's own {file} break its schema, and were left out.", "")
        return ExportedTree(
            uri=output.store.uri(""),
            dataset_id=self.dataset_id,
            deposition_id=output.deposition_id,
            runs=tuple(run.name for run in runs),
            keys=tuple(output.sizes),
            size_bytes=sum(output.sizes.values()),
            new=len(output.new),
            sha256=output.sha256,
            missing_voxels=sum(box.voxels for run in runs for image in run.images for box in image.missing),
            pictures=tuple(key for key in pictures if key in output.sizes),
            unknown=self.known.unknown,
            notes=tuple(_sentence(sentence, about) for sentence, about in output.notes.items()),
        )

    def _require_own_number(self, runs: list[_Run]) -> None:
        """Whoever wrote a dataset's JSON wrote those of its runs before."""
        store, key = self.output.store, layout.dataset_metadata(self.dataset_id)
        own = [RunPlace(self.dataset_id, run.name).metadata for run in runs]
        if store.size_bytes(key) is not None and all(store.size_bytes(run) is None for run in own):
            raise Mismatch(
                f"{store.uri(key)} is another dataset's: it has no run {runs[0].name}; give another --dataset-id."
            )

    # A run: what belongs to its tomogram, the tomogram, then the run itself

    def _run(self, run: _Run, place: RunPlace) -> None:
        alignment = self._alignment(place) if run.is_main else None
        shown = [self._mask(labels, run, place, alignment) for labels in run.labels]
        if run.is_main:
            for points in kept_points(self.folder, run.images[0]):
                self._points(points, run.images[0], place, alignment)
        if run.tomogram is not None:
            self._tomogram(run.tomogram, place, shown, alignment)
        self.output.json(place.metadata, "RunMetadata", {"run_name": run.name})

    def _alignment(self, run: RunPlace) -> str | None:
        """The tilt series' side files that are kept. Returns the key of the alignment's metadata; None without one."""
        kept = kept_side_files(self.folder)
        if kept.mdoc is not None:
            self.output.put(run.mdoc, kept.mdoc)
        series = self._tilt_series(run, kept.rawtlt)
        if not kept.alignment:
            return None
        alignment = run.alignment(self.output.claim("alignment", run.alignments, {}))
        keys = {ending: alignment.file(ending) for ending in kept.alignment}
        for ending, key in keys.items():
            self.output.put(key, kept.alignment[ending])
        paths = {
            "alignment_path": keys.get("xf") or keys.get("aln"),
            "tilt_path": keys.get("tlt"),
            "tiltx_path": keys.get("xtilt"),
            "tiltseries_path": series,
            "files": list(keys.values()),
        }
        form = {"format": "ARETOMO3" if "aln" in keys else "IMOD"}
        self.output.finish(alignment, "AlignmentMetadata", form | self.known.alignment() | paths)
        return alignment.metadata

    def _tilt_series(self, run: RunPlace, rawtlt: bytes | None) -> str | None:
        """What is known of it, and its angles; its pictures are not kept. Returns the key of its metadata."""
        values = self.known.tilt_series()
        if values is None:
            if rawtlt is not None:
                self.output.note("Its angles have no place, because nobody describes the tilt series.", run.run)
            return None
        series = run.tilt_series(self.output.claim("tilt_series", run.all_tilt_series, {}))
        if rawtlt is not None:
            self.output.put(series.rawtlt, rawtlt)
        values |= {"run_name": run.run, "raw_tlt_path": None if rawtlt is None else series.rawtlt}
        self.output.finish(series, "TiltSeriesMetadata", values)
        return series.metadata

    def _mask(self, labels: StoredImage, run: _Run, place: RunPlace, alignment: str | None) -> ShownVolume:
        """Returns it as it is shown with the run's tomogram."""
        name = labels.folder.sub or labels.folder.name
        values = self.known.annotation(name) | {"alignment_metadata_path": alignment}
        spacing = self._spacing(labels, place)
        number = self.output.claim("annotation", spacing.annotations, values)
        annotation = spacing.annotation(number, layout.annotation_slug(name), values["version"])
        zarr, mrc = (annotation.file(layout.SHAPE_SUFFIXES[MASK], ending) for ending in ("zarr", "mrc"))
        written = self.output.volume(labels, (zarr, mrc), "labels", annotation)
        keys = {"zarr": zarr, "mrc": mrc} if written.mrc_bytes is not None else {"zarr": zarr}
        values["files"] = [_file(form, key, MASK) for form, key in keys.items()]
        self.output.finish(annotation, "AnnotationMetadata", values)
        at = labels.corner_nm if run.tomogram is None else run.tomogram.corner_nm
        z, y, x = (a - b for a, b in zip(labels.corner_nm, at, strict=True))
        return _shown(labels, f"{number} {name}", zarr, (z, y, x))

    def _points(self, points: KeptPoints, image: StoredImage, place: RunPlace, alignment: str | None) -> None:
        values = self.known.annotation(points.name) | {"alignment_metadata_path": alignment}
        spacing = self._spacing(image, place)
        number = self.output.claim("annotation", spacing.annotations, values)
        annotation = spacing.annotation(number, layout.annotation_slug(points.name), values["version"])
        keys = {shape: annotation.file(layout.SHAPE_SUFFIXES[shape], "ndjson") for shape in points.files}
        for shape, key in keys.items():
            self.output.put(key, points.files[shape])
        values["files"] = [_file("ndjson", key, shape) for shape, key in keys.items()]
        self.output.finish(annotation, "AnnotationMetadata", values | {"object_count": points.count})
        if points.outside:
            self.output.note(f"{points.outside} points lie outside of the volume, and were left out.", points.name)

    def _tomogram(self, image: StoredImage, run: RunPlace, labels: list[ShownVolume], alignment: str | None) -> None:
        values = self.known.tomogram() | {"alignment_metadata_path": alignment}
        spacing = self._spacing(image, run)
        tomogram = spacing.tomogram(self.output.claim("tomogram", spacing.tomograms, values))
        written = self.output.volume(image, (tomogram.zarr, tomogram.mrc), "image", tomogram)
        photos = key_photos(image.levels, image.present)
        self.photos = self.photos or photos
        for which, png in photos.items():
            self.output.put(tomogram.image(which), png)
        shown = replace(_shown(image, run.run, tomogram.zarr, ORIGIN), value_range=_contrast(image))
        state = tomogram_state(shown, labels, self.base_url)
        self.output.put(tomogram.state, state_json(state, self.output.deposition_id, self.output.updated_at))
        scales = [_xyz(shape) for shape in written.scales]
        values |= {
            "voxel_spacing": angstrom(image.voxel_size_nm[1]),
            "offset": {"x": 0, "y": 0, "z": 0},
            "is_visualization_default": True,
            "scales": scales,
            "size": scales[0],
            "omezarr_dir": tomogram.zarr,
            "mrc_file": tomogram.mrc if written.mrc_bytes is not None else None,
            "run_name": run.run,
            "key_photo": {which: tomogram.image(which) for which in PICTURES},
            "neuroglancer_config_path": tomogram.state,
        }
        self.output.finish(tomogram, "TomogramMetadata", values)

    def _spacing(self, image: StoredImage, run: RunPlace) -> SpacingPlace:
        """The portal has one spacing, by its code that of y. Where voxels are no cubes, it is said."""
        sizes = [angstrom(size) for size in image.voxel_size_nm]
        if len(set(sizes)) > 1:
            self.output.note(
                f"Its voxels are {' x '.join(f'{size:g}' for size in sizes)} angstrom (z, y, x): folder and JSON have "
                "y's, because the portal has one for all axes; OME-Zarr and MRC have all three.",
                image.folder.title,
            )
        return run.spacing(sizes[1])

    # The outer ones

    def _dataset(self) -> None:
        photos = self._pictures({which: layout.dataset_image(self.dataset_id, which, "png") for which in PICTURES})
        values = self.known.dataset() | {"dataset_identifier": self.dataset_id, "key_photos": photos}
        self.output.json(layout.dataset_metadata(self.dataset_id), "DatasetMetadata", values)

    def _deposition(self) -> None:
        """One that somebody else described is left as it is."""
        number = self.output.deposition_id
        key, values = layout.deposition_metadata(number), self.known.deposition()
        there = self.output.read_json(key)
        if there is not None and there.get("deposition_title") != values["deposition_title"]:
            title = there.get("deposition_title")
            self.output.note(f"Deposition {number} was there already, {title!r}; it was left as it is.", "")
            return
        photos = self._pictures({which: layout.deposition_image(number, which, "png") for which in PICTURES})
        has_annotations = any("/Annotations/" in path for path in self.output.sizes)
        kinds = ["dataset", *(["tomogram"] if photos else []), *(["annotation"] if has_annotations else [])]
        values |= {"deposition_identifier": number, "deposition_types": kinds, "key_photos": photos}
        self.output.json(key, "DepositionMetadata", values)

    def _tell_of_others(self) -> None:
        """What an earlier export left, when the dataset had more: it is nobody's to remove but the tree's owner's."""
        known = self.output.sizes.keys()
        others: dict[str, None] = {}
        for path, _ in self.output.store.list(str(self.dataset_id)):
            parents = list(accumulate(path.split("/"), "{}/{}".format))
            if not known.isdisjoint(parents) or path.endswith(f"/{CLAIM}"):
                continue
            others[next((parent for parent in parents if parent.endswith(".zarr")), path)] = None
        if others:
            some = ", ".join(list(others)[:SHOWN_OTHERS])
            more = f" and {len(others) - SHOWN_OTHERS} more" if len(others) > SHOWN_OTHERS else ""
            self.output.note(
                f"{len(others)} files and groups in the dataset's folder are not of this export: {some}{more}; remove "
                "them if an earlier one left them.",
                "",
            )

    def _pictures(self, keys: Mapping[layout.Picture, str]) -> dict[str, str]:
        """The first tomogram's, once more; none where there is none."""
        if not self.photos:
            return {}
        for which, key in keys.items():
            self.output.put(key, self.photos[which])
        return {str(which): key for which, key in keys.items()}


def _sentence(sentence: str, about: list[str]) -> str:
    named = ", ".join(filter(None, about))
    return f"{named}: {sentence}" if named else sentence


def _file(form: str, key: str, shape: str) -> Values:
    return {"format": form, "path": key, "shape": shape, "is_visualization_default": True}


def _shown(image: StoredImage, name: str, key: str, corner_nm: VoxelSize) -> ShownVolume:
    shape = image.levels[0].info.shape
    return ShownVolume(name, key, shape, image.voxel_size_nm, corner_nm, is_labels=image.content == "labels")


def _contrast(image: StoredImage) -> tuple[float, float] | None:
    """Between percentiles of the grey values, as they were taken when the dataset was complete."""
    kept = read_intensities(image.folder).get(image.folder.sub or "")
    found = kept.distribution.percentiles if kept is not None else {}
    limits = (found[CONTRAST[0]], found[CONTRAST[1]]) if found else value_range(image.folder)
    if limits is None or image.volume.dtype.kind == "f":
        return limits
    return math.floor(limits[0]), math.ceil(limits[1])


def _xyz(shape: Zyx) -> dict[str, int]:
    return {"x": shape[2], "y": shape[1], "z": shape[0]}
