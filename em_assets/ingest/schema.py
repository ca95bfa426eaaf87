"""Which keys the portal's ingestion config 1.3.0 has, what each may hold, and which must be there.

One model for each mapping of the file, with the portal's own names; they check, and `config.py` turns what they let
through into the values that the rest works with. Where a value may come from the run map, `float {column}`,
`int {column}` or `{column}` is accepted in its place.

Stricter than the portal's JSON schema, as its code is: a source has exactly one finder, a shape its `file_format` and
exactly one of `glob_string` and `glob_strings`, names are text or numbers, dates are dates, matrices are of numbers,
regular expressions compile, `name_regex` has a group. More lenient: `null` is an optional key left out, also where the
schema has only an enumeration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import GenericAlias, MappingProxyType
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, Field, create_model, model_validator

from em_assets.ingest.fields import (
    Address,
    Flag,
    FolderText,
    GlobText,
    Keys,
    LiteralName,
    NameRegex,
    Number,
    PathText,
    Positive,
    Regex,
    Scalar,
    TemplateText,
    Text,
    Whole,
    enum,
    number,
)
from em_assets.ingest.metadata import (
    Alignment,
    Annotation,
    Ctf,
    Dataset,
    Deposition,
    Frame,
    IdentifiedObjectList,
    TiltSeries,
    Tomogram,
)

VERSIONS = ("1.3.0",)
"""Of the config's own schema. Older ones had other keys, and the portal has brought its own up to this one."""

# Finders: how a source says what to look for


class SourceGlob(Keys):
    list_glob: GlobText
    match_regex: Regex | None = None
    name_regex: NameRegex | None = None


class SourceMultiGlob(Keys):
    list_globs: Annotated[list[GlobText], Field(min_length=1)]


class DestinationGlob(Keys):
    list_glob: GlobText
    match_regex: Regex | None = None
    name_regex: NameRegex | None = None


class MetadataFilter(Keys):
    key: Annotated[list[Text], Field(min_length=1)]
    value: Scalar | None


class DestinationFilter(Keys):
    filters: Annotated[list[MetadataFilter], Field(min_length=1)]


class TomogramHeader(Keys):
    list_glob: GlobText
    match_regex: Regex | None = None
    header_key: Annotated[str, enum("voxel_size")] | None = None


class StandardLiteral(Keys):
    value: Annotated[list[LiteralName], Field(min_length=1)]


class VoxelSpacingLiteral(Keys):
    value: Annotated[list[Annotated[float | str, number(0.001, column=True)]], Field(min_length=1)]


class Pictures(Keys):
    snapshot: Address | None = None
    thumbnail: Address | None = None


class KeyPhotoLiteral(Keys):
    value: Pictures


Finder = SourceGlob | SourceMultiGlob | DestinationGlob | DestinationFilter | TomogramHeader | StandardLiteral
Finder |= VoxelSpacingLiteral | KeyPhotoLiteral


# Shapes: how a source of an annotation says what to look for, and how to read it


class Shape(Keys):
    """What every shape has."""

    file_format: Text
    glob_string: GlobText | None = None
    glob_strings: list[GlobText] | None = None
    is_visualization_default: Flag | None = None
    is_portal_standard: Flag | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.glob_string is None) == (self.glob_strings is None):
            raise ValueError("expected exactly one of glob_string and glob_strings")
        return self


class Point(Shape):
    file_format: Annotated[
        str,
        enum("csv", "csv_with_header", "tsv", "mod", "relion3_star", "relion4_star", "tomoman_relion_star", "copick"),
    ]
    binning: Positive | None = None
    columns: Text | None = None
    delimiter: Text | None = None
    filter_value: TemplateText | None = None


class OrientedPoint(Shape):
    file_format: Annotated[
        str, enum("mod", "relion3_star", "relion4_star", "tomoman_relion_star", "copick", "stopgap_star")
    ]
    binning: Positive | None = None
    filter_value: TemplateText | None = None
    mesh_source_path: TemplateText | None = None
    order: Text | None = None


class InstanceSegmentation(Shape):
    file_format: Annotated[str, enum("tardis", "copick")]
    binning: Positive | None = None
    filter_value: TemplateText | None = None
    mesh_source_path: TemplateText | None = None
    order: Text | None = None


class SegmentationMask(Shape):
    file_format: Annotated[str, enum("mrc", "zarr")]


class SemanticSegmentationMask(Shape):
    file_format: Annotated[str, enum("mrc", "zarr")]
    mask_label: Whole | None = None
    rescale: Flag | None = None
    threshold: Number | None = None


class InstanceSegmentationMask(Shape):
    file_format: Annotated[str, enum("mrc", "zarr")]
    rescale: Flag | None = None


class TriangularMesh(Shape):
    file_format: Annotated[str, enum("obj", "stl", "vtk", "glb")]
    scale_factor: Positive | None = None


class TriangularMeshGroup(Shape):
    file_format: Annotated[str, enum("hff")]
    name: Text | None = None
    scale_factor: Positive | None = None


class GlobalCaption(Shape):
    file_format: Annotated[str, enum("saber")]


class AnnotationCaption(Shape):
    file_format: Annotated[str, enum("saber")]
    companion_shape: Text | None = None


SHAPES: tuple[type[Shape], ...] = (
    *(Point, OrientedPoint, InstanceSegmentation, SegmentationMask, SemanticSegmentationMask),
    *(InstanceSegmentationMask, TriangularMesh, TriangularMeshGroup, GlobalCaption, AnnotationCaption),
)


# Entities: metadata, and sources


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of entity of the portal's tree."""

    name: str
    key: str
    """Of its blocks in the file."""
    metadata: type[Keys] | None = None
    needs_metadata: bool = False
    needs_sources: bool = True
    finders: tuple[tuple[str, type[Keys]], ...] = ()
    parents: tuple[str, ...] = ()
    """Whose names `parent_filters` may choose by."""


GLOBS: tuple[tuple[str, type[Keys]], ...] = (
    ("source_glob", SourceGlob),
    ("source_multi_glob", SourceMultiGlob),
    ("destination_glob", DestinationGlob),
)
STANDARD: tuple[tuple[str, type[Keys]], ...] = (*GLOBS, ("literal", StandardLiteral))
PHOTO: tuple[tuple[str, type[Keys]], ...] = (*GLOBS, ("literal", KeyPhotoLiteral))
REFERENCED: tuple[tuple[str, type[Keys]], ...] = (*STANDARD, ("destination_filter", DestinationFilter))
SPACING: tuple[tuple[str, type[Keys]], ...] = (
    ("source_glob", SourceGlob),
    ("destination_glob", DestinationGlob),
    ("literal", VoxelSpacingLiteral),
    ("tomogram_header", TomogramHeader),
)
ANNOTATED: tuple[tuple[str, type[Keys]], ...] = tuple((shape.__name__, shape) for shape in SHAPES)
OF_RUN = ("deposition", "dataset", "run")
OF_SPACING = (*OF_RUN, "voxel_spacing")

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("deposition", "depositions", Deposition, finders=STANDARD),
            Kind("deposition_keyphoto", "deposition_keyphotos", finders=PHOTO, parents=("deposition",)),
            Kind("dataset", "datasets", Dataset, finders=STANDARD, parents=("deposition",)),
            Kind("dataset_keyphoto", "dataset_keyphotos", finders=PHOTO, parents=("deposition",)),
            Kind("run", "runs", finders=STANDARD, parents=("deposition", "dataset")),
            Kind("gain", "gains", finders=STANDARD, parents=OF_RUN),
            Kind("collection_metadata", "collection_metadata", finders=STANDARD, parents=OF_RUN),
            Kind("frame", "frames", Frame, needs_sources=False, finders=STANDARD, parents=OF_RUN),
            Kind("tiltseries", "tiltseries", TiltSeries, finders=REFERENCED, parents=OF_RUN),
            Kind("ctf", "ctfs", Ctf, finders=STANDARD, parents=OF_RUN),
            Kind("rawtilt", "rawtilts", finders=STANDARD, parents=OF_RUN),
            Kind("alignment", "alignments", Alignment, needs_sources=False, finders=STANDARD, parents=OF_RUN),
            Kind("identified_object", "identified_objects", IdentifiedObjectList, finders=STANDARD),
            Kind("voxel_spacing", "voxel_spacings", finders=SPACING, parents=OF_RUN),
            Kind("annotation", "annotations", Annotation, needs_metadata=True, finders=ANNOTATED, parents=OF_SPACING),
            Kind("tomogram", "tomograms", Tomogram, finders=REFERENCED, parents=OF_SPACING),
            Kind("key_image", "key_images", finders=STANDARD, parents=(*OF_SPACING, "tomogram")),
        )
    }
)
"""By name, in the order of the portal's tree."""
AT_LEAST_ONE: Any = Field(min_length=1)
REQUIRED_KINDS = ("deposition", "dataset", "run", "voxel_spacing")


class StandardizationConfig(Keys):
    deposition_id: Whole
    source_prefix: FolderText
    run_data_map_file: PathText | None = None
    run_to_tomo_map_csv: PathText | None = None
    run_to_frame_map_csv: PathText | None = None
    run_to_ts_map_csv: PathText | None = None


class _OneFinder(Keys):
    finder_names: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        given = [name for name in self.finder_names if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"found {' and '.join(given) or 'no finder'}, expected exactly one of {', '.join(self.finder_names)}"
            )
        return self


def _model(name: str, base: type[BaseModel], fields: Mapping[str, Any]) -> type[Keys]:
    model = create_model(name, __base__=base, **fields)
    assert issubclass(model, Keys)
    return model


def _source_model(kind: Kind) -> type[Keys]:
    fields: dict[str, Any] = {name: (finder | None, None) for name, finder in kind.finders}
    fields["exclude"] = (list[Regex] | None, None)
    if kind.parents:
        names: dict[str, Any] = dict.fromkeys(kind.parents, (list[Regex] | None, None))
        parents = _model(f"{kind.name}_parents", Keys, names)
        filters = _model(
            f"{kind.name}_parent_filters", Keys, {"include": (parents | None, None), "exclude": (parents | None, None)}
        )
        fields["parent_filters"] = (filters | None, None)
    source = _model(f"{kind.name}_source", _OneFinder, fields)
    assert issubclass(source, _OneFinder)
    source.finder_names = tuple(name for name, _ in kind.finders)
    return source


SOURCES: Mapping[str, type[Keys]] = MappingProxyType({name: _source_model(kind) for name, kind in KINDS.items()})
"""The model of one source, by kind."""


def _block_model(kind: Kind) -> type[Keys]:
    """Of one item of the kind's list: `metadata` and `sources`."""
    sources = GenericAlias(list, (SOURCES[kind.name],))
    fields: dict[str, Any] = {"sources": (sources, AT_LEAST_ONE) if kind.needs_sources else (sources | None, None)}
    if kind.metadata is not None:
        fields["metadata"] = (kind.metadata, ...) if kind.needs_metadata else (kind.metadata | None, None)
    return _model(f"{kind.name}_block", Keys, fields)


def _config_model() -> type[Keys]:
    fields: dict[str, Any] = {
        "version": (Annotated[str, enum(*VERSIONS)], ...),
        "standardization_config": (StandardizationConfig, ...),
    }
    for kind in KINDS.values():
        blocks = GenericAlias(list, (_block_model(kind),))
        fields[kind.key] = (blocks, AT_LEAST_ONE) if kind.name in REQUIRED_KINDS else (blocks | None, None)
    return _model("config", Keys, fields)


CONFIG = _config_model()
"""The model of the whole file."""
