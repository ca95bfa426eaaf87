"""The files of one annotation: every shape of the config as the portal's tree has it.

Points become ndjson, masks OME-Zarr and MRC; meshes and captions are copied. A mesh of another format than GLB is
refused, as nothing that is installed writes one of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from em_assets.errors import Malformed, Mismatch, Unsupported
from em_assets.formats._json import parse_json
from em_assets.formats.points import Point, PointKind, PointOptions, read_points, write_ndjson
from em_assets.formats.reader import VolumeReader
from em_assets.ingest.copying import Sources, copy
from em_assets.ingest.ledger import Output, digest_of, file_output
from em_assets.ingest.volumes_of import HALF, Mask, Resampled, label_count, opened
from em_assets.portal.layout import SHAPE_SUFFIXES, AnnotationPlace, caption_suffix
from em_assets.portal.volumes import write_volume
from em_assets.settings import Settings
from em_assets.store import Store
from em_assets.volume import VoxelSize, Zyx

POINT_KINDS: Mapping[str, PointKind] = {
    "Point": "point",
    "OrientedPoint": "orientedPoint",
    "InstanceSegmentation": "instancePoint",
}
STORED_SHAPES = {"SemanticSegmentationMask": "SegmentationMask", "TriangularMeshGroup": "TriangularMesh"}
"""What the portal's metadata calls them; the others have one name."""
GLB_MAGIC = b"glTF"
GRID_VOXELS_OUTSIDE = 0.5
"""A point may be so far beyond the outermost middles: whether corners or middles count is not said."""


@dataclass(frozen=True, slots=True)
class ShapeSource:
    """One source of an annotation with the one file, or Zarr group, that it found for a run."""

    name: str
    """Of the shape: `Point`, `SemanticSegmentationMask` ..."""
    path: str
    options: Mapping[str, Any]
    """As the config has them, templates with their values."""

    @property
    def file_format(self) -> str:
        return str(self.options["file_format"])

    @property
    def is_default(self) -> bool:
        """Whether it is shown by default."""
        return bool(self.options.get("is_visualization_default"))

    @property
    def place_key(self) -> str:
        """What tells its file in the tree from those of the annotation's other shapes."""
        companion = self.options.get("companion_shape")
        return (
            f"{SHAPE_SUFFIXES[companion]}_caption"
            if companion in SHAPE_SUFFIXES
            else SHAPE_SUFFIXES.get(self.name, self.name)
        )

    @property
    def decides(self) -> list[Any]:
        """Everything that decides what is made, but the file's bytes."""
        return [self.name, self.path, dict(self.options)]


@dataclass(frozen=True, slots=True)
class Grid:
    """The tomogram that the annotation lies in, as far as it is known."""

    shape: Zyx | None
    voxel_size_nm: VoxelSize


@dataclass(frozen=True)
class ShapeMade:
    """What lies in the destination."""

    files: tuple[dict[str, Any], ...]
    """As the annotation's metadata lists them; none where the source has nothing of it."""
    outputs: tuple[Output, ...]
    object_count: int
    notes: tuple[str, ...] = ()
    shown: dict[str, Any] | None = None
    """Of a mask: how a Neuroglancer state shows it."""


@dataclass(frozen=True)
class ShapeWriter:
    """Writes the shapes of annotations in one voxel spacing."""

    sources: Sources
    destination: Store
    settings: Settings
    grid: Grid
    verify: bool = False
    """Whether volumes that are there are read and compared with what was recorded of them."""

    def write(self, source: ShapeSource, place: AnnotationPlace) -> ShapeMade:
        """Raises what reading the source raises, and Unsupported for what is not converted. Nothing is half written."""
        return _WRITERS[source.name](self, source, place)

    def uri(self, source: ShapeSource) -> str:
        return self.sources.store.uri(source.path)

    def entry(self, source: ShapeSource, form: str, key: str) -> dict[str, Any]:
        """One of the metadata's files."""
        return {
            "format": form,
            "path": key,
            "shape": STORED_SHAPES.get(source.name, source.name),
            "is_visualization_default": source.is_default,
        }


def _points(writer: ShapeWriter, source: ShapeSource, place: AnnotationPlace) -> ShapeMade:
    options = PointOptions(
        columns=source.options.get("columns") or None,
        delimiter=_delimiter(source.options.get("delimiter")),
        binning=source.options.get("binning") or None,
        order=source.options.get("order") or None,
        filter_value=source.options.get("filter_value") or None,
        kind=POINT_KINDS[source.name],
    )
    raw = writer.sources.read(source.path)
    points = list(read_points(raw, source.file_format, writer.uri(source), options=options))
    key = place.file(SHAPE_SUFFIXES[source.name], "ndjson")
    data = write_ndjson(points)
    writer.destination.write(key, data)
    count = len({point.instance_id for point in points}) if source.name == "InstanceSegmentation" else len(points)
    notes = _outside(points, writer.grid.shape, writer.uri(source))
    if source.options.get("mesh_source_path"):
        notes += ("mesh_source_path is not used: the meshes drawn at the points are not part of the tree.",)
    return ShapeMade((writer.entry(source, "ndjson", key),), (file_output(key, data),), count, notes)


def _delimiter(text: str | None) -> str | None:
    r"""As the config writes it: a tab may be the two characters `\t`."""
    return {"\\t": "\t", "": None}.get(text, text) if text is not None else None


def _outside(points: list[Point], shape: Zyx | None, name: str) -> tuple[str, ...]:
    """What there is to say of points beyond the tomogram."""
    if shape is None:
        return ()
    low = -GRID_VOXELS_OUTSIDE
    outside = [point for point in points if not all(low <= at <= n for at, n in zip(point.zyx, shape, strict=True))]
    if not outside:
        return ()
    first = outside[0]
    place = tuple(round(at, 3) for at in first.zyx)
    beyond = f"{len(outside)} of {len(points)} points of {name} lie outside the tomogram's {shape} voxels (z, y, x)"
    return (f"{beyond}, the first, of line {first.line}, at {place}.",)


def _semantic_mask(writer: ShapeWriter, source: ShapeSource, place: AnnotationPlace) -> ShapeMade:
    label, threshold = source.options.get("mask_label") or 1, source.options.get("threshold")
    if label != 1 and threshold is not None:
        given = f"mask_label is {label} and threshold is {threshold}"
        raise Mismatch(f"{writer.uri(source)}: {given}, expected one of the two; remove one.")
    with opened(writer.sources, source.path, writer.settings) as reader:
        mask = Mask(reader, label=label, threshold=threshold)
        if source.name != "SegmentationMask" and mask.is_empty():
            what = f"label {label}" if threshold is None else f"value of at least {threshold}"
            return ShapeMade((), (), 0, (f"{writer.uri(source)} has no {what}, so no mask was written.",))
        shape = _wanted_shape(writer, source, reader)
        on_grid: VolumeReader = mask
        if shape is not None and threshold is not None:
            on_grid = Resampled(reader, shape, "mean", threshold=threshold)
        elif shape is not None:
            on_grid = Resampled(mask, shape, "mean", threshold=HALF)
        return _mask_files(writer, source, place, on_grid, object_count=0)


def _instance_mask(writer: ShapeWriter, source: ShapeSource, place: AnnotationPlace) -> ShapeMade:
    with opened(writer.sources, source.path, writer.settings) as reader:
        shape = _wanted_shape(writer, source, reader)
        on_grid: VolumeReader = reader if shape is None else Resampled(reader, shape, "nearest")
        return _mask_files(writer, source, place, on_grid, object_count=label_count(on_grid))


def _wanted_shape(writer: ShapeWriter, source: ShapeSource, reader: VolumeReader) -> Zyx | None:
    """The tomogram's, where the mask is to be rescaled and has another one."""
    if not source.options.get("rescale"):
        return None
    if writer.grid.shape is None:
        raise Mismatch(
            f"{writer.uri(source)} is to be rescaled, but no tomogram of this run says to what; add the tomogram to "
            "the config, or leave `rescale` out."
        )
    return writer.grid.shape if writer.grid.shape != reader.info.shape else None


def _mask_files(
    writer: ShapeWriter, source: ShapeSource, place: AnnotationPlace, reader: VolumeReader, *, object_count: int
) -> ShapeMade:
    suffix = SHAPE_SUFFIXES[source.name]
    zarr, mrc = place.file(suffix, "zarr"), place.file(suffix, "mrc")
    bytes_of = [[file.path, file.sha256] for file in writer.sources.files(source.path)]
    written = write_volume(
        reader,
        writer.destination,
        zarr_key=zarr,
        mrc_key=mrc,
        voxel_size_nm=writer.grid.voxel_size_nm,
        content="labels",
        identity=digest_of([source.decides, bytes_of]),
        workers=writer.settings.workers,
        verify=writer.verify,
    )
    notes = written.notes
    if writer.grid.shape not in (None, written.scales[0]):
        found = f"The mask of {writer.uri(source)} has {written.scales[0]} voxels (z, y, x)"
        notes += (f"{found}, the tomogram {writer.grid.shape}; with `rescale` it would be brought to those.",)
    outputs, files = volume_outputs(written, writer.destination, zarr, mrc), [writer.entry(source, "zarr", zarr)]
    if written.mrc_bytes is not None:
        files.append(writer.entry(source, "mrc", mrc))
    shown = {
        "key": zarr,
        "shape": written.scales[0],
        "voxel_size_nm": written.voxel_sizes_nm[0],
        "is_default": source.is_default,
    }
    return ShapeMade(tuple(files), outputs, object_count, notes, shown)


def volume_outputs(written: Any, destination: Store, zarr: str, mrc: str) -> tuple[Output, ...]:
    """A volume as the ledger knows it again. `written` is a `portal.volumes.WrittenVolume`."""
    files = sum(1 for _ in destination.list(zarr))
    found = [Output(key=zarr, size_bytes=written.zarr_bytes, sha256=written.sha256s[zarr], files=files)]
    if written.mrc_bytes is not None:
        found.append(Output(key=mrc, size_bytes=written.mrc_bytes, sha256=written.sha256s[mrc]))
    return tuple(found)


def _mesh(writer: ShapeWriter, source: ShapeSource, place: AnnotationPlace) -> ShapeMade:
    form, factor = source.file_format, source.options.get("scale_factor")
    if form != "glb":
        raise Unsupported(
            f"{writer.uri(source)}: meshes of format {form} are not converted; accepted is glb: convert it first (with "
            "trimesh or Blender) and say file_format: glb."
        )
    if factor not in (None, 1):
        raise Unsupported(
            f"{writer.uri(source)}: scale_factor is {factor}, but a GLB is copied as it is; scale it first and leave "
            "scale_factor out."
        )
    if bytes(writer.sources.store.read_range(source.path, 0, len(GLB_MAGIC))) != GLB_MAGIC:
        raise Malformed(f"{writer.uri(source)} is no GLB (it does not begin with {GLB_MAGIC.decode()}); get it again.")
    return _copied(writer, source, place.file(SHAPE_SUFFIXES[source.name], "glb"), "glb", object_count=1)


def _global_caption(writer: ShapeWriter, source: ShapeSource, place: AnnotationPlace) -> ShapeMade:
    return _caption(writer, source, place.file(SHAPE_SUFFIXES["GlobalCaption"], "json"))


def _annotation_caption(writer: ShapeWriter, source: ShapeSource, place: AnnotationPlace) -> ShapeMade:
    companion = source.options.get("companion_shape")
    if companion not in SHAPE_SUFFIXES:
        raise Malformed(
            f"{writer.uri(source)}: companion_shape is {companion!r}, expected one of {', '.join(SHAPE_SUFFIXES)}; "
            "name the shape that the captions are of."
        )
    return _caption(writer, source, place.file(caption_suffix(companion), "json"))


def _caption(writer: ShapeWriter, source: ShapeSource, key: str) -> ShapeMade:
    document = parse_json(writer.sources.read(source.path), writer.uri(source))
    if not isinstance(document, dict):
        raise Malformed(f"{writer.uri(source)} is no JSON object, expected captions; get it again.")
    return _copied(writer, source, key, source.file_format, object_count=0)


def _copied(writer: ShapeWriter, source: ShapeSource, key: str, form: str, *, object_count: int) -> ShapeMade:
    copied = copy(writer.sources.store, source.path, writer.destination, key, writer.settings)
    writer.sources.note(copied)
    output = Output(key=key, size_bytes=copied.size_bytes, sha256=copied.sha256)
    return ShapeMade((writer.entry(source, form, key),), (output,), object_count)


_WRITERS: dict[str, Callable[[ShapeWriter, ShapeSource, AnnotationPlace], ShapeMade]] = {
    "Point": _points,
    "OrientedPoint": _points,
    "InstanceSegmentation": _points,
    "SegmentationMask": _semantic_mask,
    "SemanticSegmentationMask": _semantic_mask,
    "InstanceSegmentationMask": _instance_mask,
    "TriangularMesh": _mesh,
    "TriangularMeshGroup": _mesh,
    "GlobalCaption": _global_caption,
    "AnnotationCaption": _annotation_caption,
}
