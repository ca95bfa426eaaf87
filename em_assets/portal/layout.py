"""Every path of the portal's tree, in one place, as its code writes it (its documentation spells some differently).

All are keys relative to the tree's root, `/` between parts. Nothing is read or written here. A name that would leave
its folder is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from em_assets.errors import Malformed

Picture = Literal["snapshot", "thumbnail"]
"""Of a dataset or a deposition."""
KeyPhoto = Literal["original", "snapshot", "thumbnail", "expanded"]
"""Of a tomogram."""
CtfFormat = Literal["CTFFIND", "Gctf", "IMOD"]

SHAPE_SUFFIXES = {
    "Point": "point",
    "OrientedPoint": "orientedpoint",
    "InstanceSegmentation": "instancesegmentation",
    "SegmentationMask": "segmentationmask",
    "SemanticSegmentationMask": "segmentationmask",
    "InstanceSegmentationMask": "instancesegmentationmask",
    "TriangularMesh": "triangularmesh",
    "TriangularMeshGroup": "triangularmesh",
    "GlobalCaption": "globalcaption",
}
"""How a shape of the configuration ends the name of its file. A caption of another annotation's shape ends in that
shape's suffix and `_caption` (`caption_suffix`)."""

SLUG_FROM_NAME_ABOVE = 50
"""A description longer than this does not become a file name; the object's name does."""
SPACING = "VoxelSpacing"


def deposition_metadata(deposition_id: int) -> str:
    return f"depositions_metadata/{deposition_id}/deposition_metadata.json"


def deposition_image(deposition_id: int, which: Picture, suffix: str) -> str:
    """`suffix` is the picture's own, with or without its dot."""
    return f"depositions_metadata/{deposition_id}/Images/{which}.{_suffix(suffix)}"


def dataset_metadata(dataset_id: int) -> str:
    return f"{dataset_id}/dataset_metadata.json"


def dataset_image(dataset_id: int, which: Picture, suffix: str) -> str:
    """`suffix` is the picture's own, with or without its dot."""
    return f"{dataset_id}/Images/{which}.{_suffix(suffix)}"


@dataclass(frozen=True, slots=True)
class TiltSeriesPlace:
    """One tilt series of a run, in the folder of its number."""

    folder: str
    run: str

    @property
    def mrc(self) -> str:
        return f"{self.folder}/{self.run}.mrc"

    @property
    def zarr(self) -> str:
        """The OME-Zarr group."""
        return f"{self.folder}/{self.run}.zarr"

    @property
    def rawtlt(self) -> str:
        return f"{self.folder}/{self.run}.rawtlt"

    def ctf(self, form: CtfFormat) -> str:
        return f"{self.folder}/{self.run}_{_part(form, 'the format of a CTF file')}_ctf.txt"

    @property
    def metadata(self) -> str:
        return f"{self.folder}/tiltseries_metadata.json"


@dataclass(frozen=True, slots=True)
class AlignmentPlace:
    """One alignment of a run, in the folder of its number."""

    folder: str
    run: str

    def file(self, extension: str) -> str:
        """`xf`, `tlt`, `xtilt`, `aln`, `com` ... Whatever the source's name was, the run's name replaces it."""
        return f"{self.folder}/{self.run}.{_suffix(extension)}"

    @property
    def metadata(self) -> str:
        return f"{self.folder}/alignment_metadata.json"


@dataclass(frozen=True, slots=True)
class TomogramPlace:
    """One tomogram. Two of a run and voxel spacing differ by their number only: the files have the run's name."""

    spacing_folder: str
    run: str
    number: int

    @property
    def folder(self) -> str:
        return f"{self.spacing_folder}/Tomograms/{self.number}"

    @property
    def mrc(self) -> str:
        return f"{self.folder}/{self.run}.mrc"

    @property
    def zarr(self) -> str:
        """The OME-Zarr group."""
        return f"{self.folder}/{self.run}.zarr"

    @property
    def metadata(self) -> str:
        return f"{self.folder}/tomogram_metadata.json"

    def image(self, which: KeyPhoto) -> str:
        return f"{self.spacing_folder}/Images/{self.number}/key-photo-{which}.png"

    @property
    def state(self) -> str:
        """Of Neuroglancer."""
        return f"{self.spacing_folder}/NeuroglancerPrecompute/{self.number}-neuroglancer_config.json"


@dataclass(frozen=True, slots=True)
class AnnotationPlace:
    """One annotation: its metadata, and a file or group for each shape it has."""

    spacing_folder: str
    number: int
    stem: str
    """`{object}-{version}`."""

    @property
    def folder(self) -> str:
        return f"{self.spacing_folder}/Annotations/{self.number}"

    @property
    def metadata(self) -> str:
        return f"{self.folder}/{self.stem}.json"

    def file(self, shape_suffix: str, extension: str) -> str:
        """`shape_suffix` as in `SHAPE_SUFFIXES`, such as `segmentationmask`; `extension` such as `zarr`."""
        what = _part(shape_suffix, "the shape of an annotation")
        return f"{self.folder}/{self.stem}_{what}.{_suffix(extension)}"

    def precomputed(self, shape_suffix: str) -> str:
        """The folder of Neuroglancer's own form of it."""
        what = _part(shape_suffix, "the shape of an annotation")
        return f"{self.spacing_folder}/NeuroglancerPrecompute/{self.number}-{self.stem}_{what}"


@dataclass(frozen=True, slots=True)
class SpacingPlace:
    """Everything of a run at one voxel spacing."""

    folder: str
    run: str

    @property
    def tomograms(self) -> str:
        """The folder that holds a folder for each tomogram's number; so do the other plurals."""
        return f"{self.folder}/Tomograms"

    @property
    def annotations(self) -> str:
        return f"{self.folder}/Annotations"

    def tomogram(self, number: int) -> TomogramPlace:
        return TomogramPlace(self.folder, self.run, number)

    def annotation(self, number: int, object_name: str, version: str | float) -> AnnotationPlace:
        """`object_name` is what `object_slug` or `annotation_slug` gave; `version` as in the metadata: 1.0 or "1.0"."""
        stem = f"{_part(object_name, 'the object of an annotation')}-{version_slug(version)}"
        return AnnotationPlace(self.folder, number, stem)


@dataclass(frozen=True, slots=True)
class RunPlace:
    """Everything of one run of a dataset."""

    dataset_id: int
    run: str

    def __post_init__(self) -> None:
        _part(self.run, "the name of a run")

    @property
    def folder(self) -> str:
        return f"{self.dataset_id}/{self.run}"

    @property
    def metadata(self) -> str:
        return f"{self.folder}/run_metadata.json"

    def frames(self, name: str) -> str:
        """A movie, by the name it has at its source."""
        return f"{self.folder}/Frames/{_part(name, 'the name of a movie')}"

    @property
    def frames_metadata(self) -> str:
        return f"{self.folder}/Frames/frames_metadata.json"

    @property
    def mdoc(self) -> str:
        return f"{self.folder}/Frames/{self.run}.mdoc"

    def gain(self, name: str) -> str:
        """A gain reference, by the name it has at its source; one that was converted ends in `.mrc`."""
        return f"{self.folder}/Gains/{_part(name, 'the name of a gain reference')}"

    @property
    def identified_objects(self) -> str:
        return f"{self.folder}/IdentifiedObjects/identified_objects.json"

    @property
    def identified_objects_metadata(self) -> str:
        return f"{self.folder}/IdentifiedObjects/identified_objects_metadata.json"

    @property
    def all_tilt_series(self) -> str:
        """The folder that holds a folder for each tilt series' number; likewise `alignments`."""
        return f"{self.folder}/TiltSeries"

    @property
    def alignments(self) -> str:
        return f"{self.folder}/Alignments"

    def tilt_series(self, number: int) -> TiltSeriesPlace:
        return TiltSeriesPlace(f"{self.all_tilt_series}/{number}", self.run)

    def alignment(self, number: int) -> AlignmentPlace:
        return AlignmentPlace(f"{self.alignments}/{number}", self.run)

    def spacing(self, voxel_spacing_angstrom: float) -> SpacingPlace:
        return SpacingPlace(f"{self.folder}/Reconstructions/{spacing_folder(voxel_spacing_angstrom)}", self.run)


def spacing_folder(voxel_spacing_angstrom: float) -> str:
    """`VoxelSpacing13.480`: always three decimals, which is the one place where the spacing is rounded."""
    return f"{SPACING}{voxel_spacing_angstrom:.3f}"


def object_slug(name: str) -> str:
    """An object's name as part of a file name: lower case, whatever is not a letter of a to z or a digit is `_`."""
    return re.sub(r"[^0-9a-z]", "_", name.lower())


def annotation_slug(name: str, description: str | None = None) -> str:
    """Of an annotated object: its description if it has one of at most 50 characters, else its name."""
    is_short = description is not None and 0 < len(description) <= SLUG_FROM_NAME_ABOVE
    return object_slug(description if is_short and description is not None else name)


def version_slug(version: str | float) -> str:
    return re.sub(r"[^0-9a-z.]", "_", str(version).lower())


def caption_suffix(shape: str) -> str:
    """`point_caption`: of a caption for another annotation of this shape."""
    return f"{SHAPE_SUFFIXES[shape]}_caption"


def _suffix(extension: str) -> str:
    return _part(extension.removeprefix("."), "a file's extension")


def _part(name: str, what: str) -> str:
    """A name that stays within its folder."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise Malformed(
            f"{what} is {name!r}, expected one name of a file or folder, without slashes and control characters; "
            "correct it in the configuration."
        )
    return name
