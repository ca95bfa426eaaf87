"""`DatasetSpec`: everything a person states about one dataset. `loading.py` reads it from YAML.

A spec says who publishes the dataset, where it lies, what is expected of it and how it is stored. Everything
else (assets, partitions, checks, catalogue row) follows from it.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from em_assets.datasets.fields import (
    ITEM_BYTES,
    AtKey,
    Doi,
    Dtype,
    Fraction,
    Line,
    Name,
    OriginNm,
    Shape,
    SpecModel,
    Text,
    VoxelOrigin,
    VoxelSizeNm,
    web_address,
)
from em_assets.datasets.portal import PointSet, PortalTomogram
from em_assets.datasets.source import (
    FLOAT_LABELS,
    ChunkedSource,
    Document,
    FilesSource,
    PrecomputedSource,
    Source,
    SubVolume,
    decides_bytes,
    further_decides_bytes,
)
from em_assets.volume import Box, VoxelSize, Zyx, ceil_divide, multiply, zyx

Content = Literal["image", "labels"]
MissingPolicy = Literal["record", "error", "fill"]
MAX_PARTITIONS = 1000
"""Each is a row in the event log and a cell in the UI, and one record and one object in the store."""
MAX_SHARDS = 20_000
"""Of a volume whose partitions are files: each is a record and an object."""
MAX_SHARD_BYTES = 512 * 2**20
"""A shard is built in memory, once per worker, and a process has a gigabyte."""
MAX_CHUNK_BYTES = 64 * 2**20
"""A chunk is the least that a reader of one voxel decodes."""
MAX_SHARD_CHUNKS = 2**18
"""A shard ends with 16 bytes for each of its chunks, which every reader of one voxel reads."""
RESERVED_NAMES = frozenset(keyword.kwlist) | {
    *("metadata_catalog", "metadata_exports", "metadata_summary", "ro_crates", "croissants"),  # our own assets
    "portal",  # the folder beside the datasets' that the assets `<name>_portal` write
    # Dagster refuses these (and Python's keywords) as the name of an asset.
    *("arg_dict", "bool", "conf", "config", "context", "dict", "float", "input", "input_arg_dict"),
    *("int", "meta", "output", "output_arg_dict", "str", "type"),
}
PORTAL_DOCUMENTS = ("portal_replies.json",)
"""Names below `documents/` of what is kept of a portal's answers."""
ASSET_SUFFIXES = ("_chunks", "_files", "_metadata", "_blocks", "_portal")
"""Assets that a dataset has beside the one of its own name."""


class Redraw(SpecModel):
    """Draw again (the next origin of the same seed) while the crop would be mostly empty."""

    level: Annotated[int, Field(ge=0, lt=64, strict=True)]
    """The publisher's scale on which emptiness is judged: a coarse one, so that it costs little."""
    min_filled_fraction: Fraction = 0.5
    """Share of non-zero voxels below which a crop counts as mostly empty."""
    max_draws: Annotated[int, Field(gt=0, le=1000, strict=True)] = 50
    """After so many without a filled one the run stops and says how filled the best was."""


class Crop(SpecModel):
    """A box of the publisher's volume. Exactly one of `seed`, `origin` and `origin_nm` says where it starts."""

    shape: Shape
    """(z, y, x) in voxels."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] | None = None
    """Draws the origin: random, but the same wherever and whenever it is drawn."""
    origin: VoxelOrigin | None = None
    """(z, y, x), in the publisher's voxels."""
    origin_nm: OriginNm | None = None
    """(z, y, x), in nanometres from the corner of the publisher's voxel 0; floored to a voxel."""
    snap: Annotated[bool, Field(strict=True)] | None = None
    """Move the origin down to the publisher's chunk grid, so that no chunk is decoded for two partitions. Absent: a
    drawn origin is moved, a given one stays exactly where it is."""
    redraw: Redraw | None = None
    """Draw again while the crop would be mostly empty; absent, the first draw is taken."""

    @model_validator(mode="after")
    def _one_origin(self) -> Crop:
        given = [name for name in ("seed", "origin", "origin_nm") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of seed, origin, origin_nm (found: {', '.join(given) or 'none'})")
        if self.redraw is not None and self.seed is None:
            raise AtKey("redraw", "it needs seed, because a given origin is never drawn again")
        return self

    @property
    def snaps(self) -> bool:
        """Whether the origin is moved down to the publisher's chunk grid."""
        return self.seed is not None if self.snap is None else self.snap

    def given_origin(self, voxel_size_nm: VoxelSize) -> Zyx | None:
        """The voxel that is given, before it snaps; None if it is drawn."""
        if self.origin_nm is None:
            return self.origin
        return zyx([_voxel_of(nm, size) for nm, size in zip(self.origin_nm, voxel_size_nm, strict=True)])


def _voxel_of(nm: float, size_nm: float) -> int:
    """The voxel that a coordinate lies in. A millionth of a voxel is forgiven: n * size must not fall to n - 1."""
    return math.floor(nm / size_nm + 1e-6)


class Expected(SpecModel):
    """What the publisher stated when the spec was written; another answer stops the run."""

    source_shape: Annotated[tuple[Shape, ...], Field(min_length=1, max_length=20)]
    """(z, y, x) of the publisher's whole volume at the chosen level. Several where reports differ: any is accepted,
    and the record keeps the one that was met."""
    dtype: Dtype
    """Of one voxel; it is kept as it is."""
    voxel_size_nm: VoxelSizeNm
    """(z, y, x) of one voxel at the chosen level, in nanometres."""
    published_voxel_size_nm: VoxelSizeNm | None = None
    """What the publisher's own metadata state, where that is known to be wrong and `voxel_size_nm` is right."""
    chunk: Shape | None = None
    """(z, y, x) of the publisher's chunks at the chosen level: what is read is known without asking."""
    objects: Annotated[int, Field(gt=0, strict=True)] | None = None
    """How many objects the publisher's group has; compared with the listing where they are kept."""
    object_bytes: Annotated[int, Field(gt=0, strict=True)] | None = None
    """How many bytes they have together, likewise."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The stored dataset's digest, once it is known and meant to stay."""
    file_size_bytes: Annotated[int, Field(gt=0, strict=True)] | None = None
    """The stored dataset's size, likewise."""

    @property
    def voxel_size_at_publisher_nm(self) -> VoxelSize:
        """What the publisher is expected to state, right or wrong."""
        return self.published_voxel_size_nm or self.voxel_size_nm

    @field_validator("source_shape", mode="before", json_schema_input_type=Shape | tuple[Shape, ...])
    @classmethod
    def _one_shape_or_several(cls, value: Any) -> Any:
        several = isinstance(value, list | tuple) and value and all(isinstance(item, list | tuple) for item in value)
        return value if several else [value]


class Output(SpecModel):
    """How the standardized OME-Zarr volume is written."""

    shard: Shape = (256, 256, 256)
    """(z, y, x) voxels in one object; also the region of one partition."""
    chunk: Shape = (64, 64, 64)
    """(z, y, x) voxels compressed together inside a shard."""
    codec: Literal["zstd", "none"] = "zstd"
    """How chunks are compressed, always without loss."""
    codec_level: Annotated[int, Field(ge=1, le=22, strict=True)] = 1
    """zstd's: higher is smaller and slower to write."""

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> Output:
        _require_whole_chunks("shard", self.shard, self.chunk)
        return self


def _require_whole_chunks(key: str, shard: Zyx, chunk: Zyx) -> None:
    if any(s % c for s, c in zip(shard, chunk, strict=True)):
        raise AtKey(key, f"{list(shard)} is not a multiple of the chunk, {list(chunk)}")
    if any(s % 2 for s in shard):
        raise AtKey(key, f"{list(shard)} must be even, so that pyramids halve it")
    count = math.prod(shard) // math.prod(chunk)
    if count > MAX_SHARD_CHUNKS:
        raise AtKey(key, f"{list(shard)} holds {count} chunks, more than {MAX_SHARD_CHUNKS}; make the chunk larger")


class Layout(Protocol):
    """What decides how a volume is cut into objects: all that writing, checking and reading one needs of a spec."""

    @property
    def name(self) -> str:
        """`dataset`, or `dataset/volume` of a further volume."""

    @property
    def shape(self) -> Zyx:
        """(z, y, x) of level 0."""

    @property
    def dtype(self) -> str: ...

    @property
    def voxel_size_nm(self) -> VoxelSize: ...

    @property
    def content(self) -> Content: ...

    @property
    def output(self) -> Output: ...

    @property
    def missing_policy(self) -> MissingPolicy: ...

    def identity(self) -> str:
        """Digest of everything that decides the bytes."""

    def shard_indices(self) -> Iterator[Zyx]: ...

    def shard_box(self, index: Zyx) -> Box:
        """The part of level 0 that a shard holds, clipped to the volume."""


@dataclass(frozen=True)
class VolumeLayout:
    """The layout of a further volume of a dataset."""

    name: str
    shape: Zyx
    dtype: str
    voxel_size_nm: VoxelSize
    content: Content
    output: Output
    missing_policy: MissingPolicy
    digest: str

    def identity(self) -> str:
        return self.digest

    def shard_indices(self) -> Iterator[Zyx]:
        return Box.from_shape(self.shape).cells(self.output.shard)

    def shard_box(self, index: Zyx) -> Box:
        return _shard_box(self, index)


def _shard_box(layout: Layout, index: Zyx) -> Box:
    whole = Box.from_shape(layout.shape)
    box = Box.from_shape(layout.output.shard, at=multiply(index, layout.output.shard)).intersection(whole)
    if box is None:
        raise ValueError(f"shard {index} is outside the volume of shape {layout.shape}")
    return box


def _require_sensible_cut(layout: Layout, shard_key: str, what: Literal["partitions", "shards"]) -> None:
    """Judges how a volume is cut before anything is allocated for it."""
    shard, chunk = layout.output.shard, layout.output.chunk
    for key, shape, limit in ((shard_key, shard, MAX_SHARD_BYTES), ("output.chunk", chunk, MAX_CHUNK_BYTES)):
        size = math.prod(shape) * ITEM_BYTES[layout.dtype]
        if size > limit:
            text = f"{list(shape)} voxels of {layout.dtype} have {size} bytes, more than {limit}; make it smaller"
            raise AtKey(key, text)
    count, most = math.prod(ceil_divide(layout.shape, shard)), MAX_PARTITIONS if what == "partitions" else MAX_SHARDS
    if count > most:
        raise AtKey(
            shard_key,
            f"{list(shard)} cuts {list(layout.shape)} voxels into {count} {what}, more than {most}; "
            "make the shard larger",
        )


class StatedClaim(SpecModel):
    """What a page or a person states about the dataset and no document that is fetched repeats."""

    key: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_./]{0,99}$")]
    """What it is about: `voxel_size_nm`, `organism` ..."""
    value: str | int | float | bool | tuple[float, ...]
    """As it is stated: text, a number, a truth value, or several numbers."""
    url: Annotated[str, Field(pattern=r"^https?://\S+$"), AfterValidator(web_address)] | None = None
    """Where it is stated."""
    by: Literal["publisher", "third party", "curator"] = "publisher"
    """Who states it. What a third party says is shown beside what was chosen, and never chosen; `curator` is whoever
    wrote the spec."""
    note: Text | None = None
    """How sure it is, or what contradicts it."""

    @field_validator("value", mode="before")
    @classmethod
    def _numbers_are_finite(cls, value: Any) -> Any:
        numbers = value if isinstance(value, list | tuple) else (value,)
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError("expected text, a truth value, or finite numbers")
        return value


class Override(SpecModel):
    """A person's decision on a field of the catalogue, against what the publisher and the files say."""

    value: str | int | float
    """In the field's own unit and form, as the catalogue's table `vocabulary` has them."""
    reason: Text
    """Why; it is shown with the value."""


class DatasetSpec(SpecModel):
    """One dataset: who publishes it, where, what is expected, how it is stored, how it is cited."""

    name: Name
    """The asset's name, the folder's name, the catalogue's key; also the file's name without `.yaml`."""
    title: Line
    """One line, for tables."""
    description: Text
    """What was imaged, what this volume is of it, and what a user should know."""
    publisher: Name
    """Short name of who publishes it: `hemibrain`, `empiar` ... the catalogue's `source`."""
    source_id: Line
    """The publisher's own identifier of it."""
    page_url: Annotated[str, Field(pattern=r"^https?://\S+$"), AfterValidator(web_address)]
    """The publisher's own page about it."""
    license: Line
    """SPDX identifier where there is one."""
    citation: Text
    """What somebody who uses the data should cite."""
    doi: Doi | None
    """Of the citation or of the data, bare: 10.7554/eLife.57443; null if none is known, and `notes.doi` says why."""
    modality: Line | None = None
    """How it was imaged: FIB-SEM, ssTEM, cryo-ET ..."""
    organism: Line | None = None
    """Scientific name."""
    sample: Line | None = None
    """Which part of the organism, or which cell line."""
    instrument: Line | None = None
    """Microscope and maker."""
    notes: dict[str, Text] = Field(default_factory=dict)
    """How sure the facts above are, key by key."""
    owners: tuple[Annotated[str, Field(pattern=r"^(team:\S+|\S+@\S+)$")], ...] = ("team:em_assets",)
    """Who looks after it, as Dagster shows it: team:name or an e-mail address."""

    claims: tuple[StatedClaim, ...] = ()
    """Statements of pages and people, also those that turned out wrong: the catalogue shows who states what."""
    overrides: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,99}$")], Override] = Field(default_factory=dict)
    """Decisions on fields of the catalogue, by the field's name: they go before everything that is claimed."""

    source: Source
    """Where the publisher serves it, and in which form."""
    crop: Crop | None = None
    """Which part of the publisher's volume is stored; absent: all of it."""
    expected: Expected
    """What the publisher stated when the spec was written."""
    content: Literal["image", "labels"] = "image"
    """Labels are never averaged: a coarser level takes voxel 2i."""
    volumes: dict[Name, SubVolume] = Field(default_factory=dict)
    """Further volumes of the dataset, by name."""
    points: dict[Name, PointSet] = Field(default_factory=dict)
    """Points in the volume, by name: particles, say. They are kept beside it."""
    output: Output = Output()
    """How the stored volume is cut into objects."""
    keep: Literal["standard", "original", "both"] | None = None
    """`original`: what the publisher serves, byte for byte; `standard`: the OME-Zarr volume made from it. Absent:
    `standard` where chunks are published; files are always kept, so for those it is `both`."""
    documents: tuple[Document, ...] = ()
    """The publisher's replies and pages about the dataset."""
    missing: MissingPolicy | None = None
    """What to do where the publisher has no chunk: keep a record of it, `error`: fail the partition, or `fill`: take
    what its format says of such voxels (a fill value) for what they are. Absent: `record` for images; `fill` for
    labels, whose background is often not written, and for the CryoET Data Portal, whose writer leaves out such chunks.
    What was filled is recorded as coverage, too."""

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, value: str) -> str:
        if value in RESERVED_NAMES:
            raise ValueError("this word is reserved; choose another name")
        return value

    @model_validator(mode="after")
    def _doi_or_the_reason(self) -> DatasetSpec:
        if self.doi is None and "doi" not in self.notes:
            raise AtKey("doi", "it may be null only if notes.doi says why none is known; give it, or that note")
        return self

    @model_validator(mode="after")
    def _documents_have_names_of_their_own(self) -> DatasetSpec:
        others = [*PORTAL_DOCUMENTS, *(document.path for document in self._point_documents())]
        taken = {name.casefold() for name in others}
        for number, document in enumerate(self.documents):
            if document.path.casefold() in taken:
                raise AtKey(f"documents.{number}.path", f"another document is kept as {document.path}; rename one")
            if document.kind == "points":
                raise AtKey(f"documents.{number}.kind", "points are listed under points, not among the documents")
            taken.add(document.path.casefold())
        return self

    @model_validator(mode="after")
    def _expected_suits_the_source(self) -> DatasetSpec:
        expected = self.expected
        if self.content == "labels" and expected.dtype == "float32":
            raise AtKey("expected.dtype", FLOAT_LABELS)
        if not isinstance(self.source, ChunkedSource):
            for key in ("objects", "object_bytes"):
                if getattr(expected, key) is not None:
                    raise AtKey(f"expected.{key}", "only a zarr or n5 container is counted in objects; leave it out")
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> DatasetSpec:
        if self.crop is None:
            if len(self.expected.source_shape) > 1:
                raise AtKey("expected.source_shape", "several shapes need a crop; give one shape, or a crop")
            return self
        shape, smallest = self.crop.shape, [min(axis) for axis in zip(*self.expected.source_shape, strict=True)]
        is_precomputed = isinstance(self.source, PrecomputedSource)
        if any(c > s for c, s in zip(shape, smallest, strict=True)):
            raise AtKey(
                "crop.shape",
                f"{list(shape)} is larger than the publisher's volume, {smallest} (z, y, x); make it smaller",
            )
        if self.crop.redraw is not None and not is_precomputed:
            raise AtKey("crop.redraw", "it is known for precomputed sources only; leave it out")
        origin = self.crop.given_origin(self.voxel_size_nm)
        if origin is None or is_precomputed:  # whose first voxel the publisher numbers as it likes
            return self
        if any(o < 0 or o + c > s for o, c, s in zip(origin, shape, smallest, strict=True)):
            raise AtKey(
                "crop.origin" if self.crop.origin_nm is None else "crop.origin_nm",
                f"a crop of {list(shape)} voxels at {list(origin)} leaves the publisher's volume, {smallest} "
                "(z, y, x); move it, or make crop.shape smaller",
            )
        return self

    @model_validator(mode="after")
    def _keep_suits_the_source(self) -> DatasetSpec:
        if self.keep == "standard" and self.is_by_file:
            raise AtKey("keep", "files are always kept; give both, original, or leave it out")
        if self.keep not in ("original", "both"):
            return self
        if isinstance(self.source, PrecomputedSource):
            raise AtKey("keep", "precomputed volumes are cut from larger ones and kept as standard only; leave it out")
        if isinstance(self.source, ChunkedSource) and not self.source.is_bucket:
            raise AtKey(
                "keep", "what a container consists of only a bucket can list (s3://, gs://); give standard, or a bucket"
            )
        if self.crop is not None and not (self.is_by_file and self.makes_standard):
            made = "both" if self.is_by_file else "standard"
            raise AtKey("keep", f"with {self.keep} nothing is cut out of what is kept; leave crop out, or give {made}")
        if self.is_by_file and self.volumes and not self.makes_standard:
            raise AtKey("keep", "with original no volume is made of the files; leave volumes out, or give both")
        return self

    @model_validator(mode="after")
    def _volumes_suit_the_source(self) -> DatasetSpec:
        for name, volume in self.volumes.items():
            self._check_volume(f"volumes.{name}", volume)
        return self

    def _check_volume(self, key: str, volume: SubVolume) -> None:
        if isinstance(self.source, PrecomputedSource):
            raise AtKey(key, "a precomputed source has one volume; make another dataset of the other")
        is_given_by = {"source": volume.source is not None, "group": volume.group is not None}
        if is_given_by != {"source": self.is_by_file, "group": not self.is_by_file}:
            wanted = "source" if self.is_by_file else "group"
            raise AtKey(key, f"a volume of a {self.source.kind} source is given by its {wanted}")
        self._check_annotation(key, volume)
        if isinstance(self.source, FilesSource) and volume.source is not None:
            self.source.require_listed(f"{key}.source.files", volume.source)
            for name, is_given in (("level", volume.level != 0), ("channel", volume.channel is not None)):
                if is_given:
                    raise AtKey(f"{key}.{name}", "files have none to choose from; leave it out")
        if volume.labels_of is not None:
            of = self.volumes.get(volume.labels_of)
            if of is None:
                raise AtKey(f"{key}.labels_of", f"there is no volume {volume.labels_of}")
            if of.content == "labels":
                raise AtKey(f"{key}.labels_of", f"{volume.labels_of} is labels itself; name the image, or leave it out")

    def _check_annotation(self, key: str, volume: SubVolume) -> None:
        if volume.annotation is None:
            return
        if self.portal is None:
            raise AtKey(f"{key}.annotation", "only the CryoET Data Portal numbers annotations so; leave it out")
        if volume.source is not None and len(volume.source.paths()) > 1:
            raise AtKey(f"{key}.source.files", "an annotation of the portal is one MRC file; name that one")

    @model_validator(mode="after")
    def _points_suit_the_source(self) -> DatasetSpec:
        for name, points in self.points.items():
            if points.annotation is not None and self.portal is None:
                raise AtKey(
                    f"points.{name}.annotation", "only the CryoET Data Portal numbers annotations so; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _output_is_of_a_sensible_size(self) -> DatasetSpec:
        _require_sensible_cut(self, "output.shard", "shards" if self.is_by_file else "partitions")
        for name, volume in self.volumes.items():
            key = f"volumes.{name}.shard"
            if volume.shard is not None:
                _require_whole_chunks(key, volume.shard, self.output.chunk)
            _require_sensible_cut(self._sub_layout(name), key, "shards")
        return self

    @property
    def portal(self) -> PortalTomogram | None:
        """Which tomogram of the CryoET Data Portal it is; None for all others."""
        return None if isinstance(self.source, PrecomputedSource) else self.source.portal

    @property
    def all_documents(self) -> tuple[Document, ...]:
        """What is fetched and kept below `documents/`: the documents, and the files that list points."""
        return (*self.documents, *self._point_documents())

    def _point_documents(self) -> tuple[Document, ...]:
        return tuple(
            Document(path=points_document(name, points), url=points.url, kind="points")
            for name, points in self.points.items()
        )

    def without(self, volumes: Collection[str]) -> DatasetSpec:
        """The same dataset without some of its further volumes, and without the files that only they are made of."""
        if not volumes:
            return self
        kept = {name: volume for name, volume in self.volumes.items() if name not in volumes}
        changes: dict[str, Any] = {"volumes": kept}
        if isinstance(self.source, FilesSource):
            dropped = self._files_of(volumes) - self._files_of(kept) - set(self.source.main_paths())
            files = tuple(file for file in self.source.files if file.path not in dropped)
            changes["source"] = self.source.model_copy(update={"files": files})
        return self.model_copy(update=changes)

    def _files_of(self, volumes: Collection[str]) -> set[str]:
        """The single files that further volumes are made of."""
        sources = (self.volumes[name].source for name in volumes if name in self.volumes)
        return {path for source in sources if source is not None for path in source.paths()}

    @property
    def is_by_file(self) -> bool:
        """Whether a partition is a file; else it is a region of the volume."""
        return isinstance(self.source, FilesSource)

    @property
    def keeps_original(self) -> bool:
        return self.is_by_file or self.keep in ("original", "both")

    @property
    def makes_standard(self) -> bool:
        return self.keep != "original"

    @property
    def shape(self) -> Zyx:
        """(z, y, x) of level 0 of the stored volume."""
        return self.crop.shape if self.crop is not None else self.expected.source_shape[0]

    @property
    def dtype(self) -> str:
        return self.expected.dtype

    @property
    def voxel_size_nm(self) -> VoxelSize:
        return self.expected.voxel_size_nm

    @property
    def missing_policy(self) -> MissingPolicy:
        return self._missing_policy(self.content)

    def _missing_policy(self, content: Content) -> MissingPolicy:
        leaves_out = self.portal is not None and isinstance(self.source, ChunkedSource)
        return self.missing or ("fill" if content == "labels" or leaves_out else "record")

    def identity(self) -> str:
        """Digest of everything that decides the bytes: two specs with one identity make one volume.

        The host and port of the source are left out (a mirror serves the same bytes), and so is everything that
        only describes.
        """
        decides: dict[str, Any] = {
            "source": decides_bytes(self.source),
            "crop": None if self.crop is None else self.crop.model_dump() | {"snap": self.crop.snaps},
            "dtype": self.dtype,
            "voxel_size_nm": self.voxel_size_nm,
            "output": self.output.model_dump(),
        }
        if self.crop is None:
            decides["shape"] = self.shape
        if self.content != "image":
            decides["content"] = self.content
        if self.missing_policy == "fill":
            decides["missing"] = "fill"
        return _digest(decides)

    def layouts(self) -> dict[str | None, Layout]:
        """Every stored volume: the main one under None, further ones by name."""
        if not self.makes_standard:
            return {}
        return {None: self, **{name: self._sub_layout(name) for name in self.volumes}}

    def _sub_layout(self, name: str) -> VolumeLayout:
        volume = self.volumes[name]
        output = self.output.model_dump() | ({} if volume.shard is None else {"shard": volume.shard})
        decides = {**further_decides_bytes(self.source, volume), "output": output}
        policy = self._missing_policy(volume.content)
        if policy == "fill":
            decides["missing"] = "fill"
        return VolumeLayout(
            name=f"{self.name}/{name}",
            shape=volume.shape,
            dtype=volume.dtype,
            voxel_size_nm=volume.voxel_size_nm,
            content=volume.content,
            output=Output(**output),
            missing_policy=policy,
            digest=_digest(decides),
        )

    def shard_grid(self) -> Zyx:
        """How many shards level 0 has along z, y, x."""
        return ceil_divide(self.shape, self.output.shard)

    def shard_indices(self) -> Iterator[Zyx]:
        return Box.from_shape(self.shape).cells(self.output.shard)

    def shard_box(self, index: Zyx) -> Box:
        """The part of level 0 that a shard holds, clipped to the volume."""
        return _shard_box(self, index)


def points_document(name: str, points: PointSet) -> str:
    """Name below `documents/` of the file that lists points: its own ending, ours before it."""
    ending = urlsplit(points.url).path.rpartition("/")[2].rpartition(".")[2]
    return f"points.{name}.{ending if re.fullmatch(r'[A-Za-z0-9]{1,10}', ending) else points.format}"


def _digest(decides: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
