"""The catalogue's tables, views and what their columns mean, in the words of the field.

Every table and column is commented in the database too, so that a person who opens it elsewhere finds the units.
Voxel coordinates are z, y, x and boxes are half open; times are in UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

SqlType = Literal["VARCHAR", "INTEGER", "BIGINT", "DOUBLE", "TIMESTAMP", "JSON", "INTEGER[3]", "BIGINT[3]", "DOUBLE[3]"]


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: SqlType
    comment: str


@dataclass(frozen=True, slots=True)
class Relation:
    """A table or a view."""

    name: str
    comment: str
    columns: tuple[Column, ...]


VOLUME = Column("volume", "VARCHAR", "Which of the dataset's volumes; empty for the main one.")

DATASETS = Relation(
    "datasets",
    "One row for every dataset that is described or stored: what it is, where it is from, and what is here of it.",
    (
        Column("name", "VARCHAR", "The dataset's name: its asset, its spec file and its folder are called so."),
        Column("title", "VARCHAR", "Title in one line."),
        Column("description", "VARCHAR", "What was imaged and what of it is kept here."),
        Column(
            "status",
            "VARCHAR",
            "listed (described, not downloaded), saving-data, interrupted (its writer ended before it finished), "
            "complete, or error.",
        ),
        Column("status_reason", "VARCHAR", "Why the status is what it is, in one sentence."),
        Column("source", "VARCHAR", "Short name of the publisher."),
        Column("source_id", "VARCHAR", "The publisher's own identifier of the dataset."),
        Column("shape_z", "INTEGER", "Voxels along z at full resolution."),
        Column("shape_y", "INTEGER", "Voxels along y at full resolution."),
        Column("shape_x", "INTEGER", "Voxels along x at full resolution."),
        Column("volume_shape", "INTEGER[3]", "Voxels along z, y, x at full resolution."),
        Column("voxel_size_z_nm", "DOUBLE", "Size of a voxel along z in nanometres (section thickness or step)."),
        Column("voxel_size_y_nm", "DOUBLE", "Size of a voxel along y in nanometres."),
        Column("voxel_size_x_nm", "DOUBLE", "Size of a voxel along x in nanometres."),
        Column("max_voxel_size_nm", "DOUBLE", "The coarsest of the three voxel sizes in nanometres."),
        Column("voxel_size_nm", "DOUBLE[3]", "Size of a voxel along z, y, x in nanometres."),
        Column("dtype", "VARCHAR", "Pixel type, as numpy calls it: uint8, uint16, float32 ..."),
        Column("content", "VARCHAR", "image, or labels (each voxel's value names what it belongs to; never averaged)."),
        Column("axes", "VARCHAR", "Order of the stored volume's axes, slowest first."),
        Column(
            "volumes",
            "JSON",
            "The dataset's further volumes by name: content, shape, voxel_size_nm ...; empty if there are none.",
        ),
        Column("license", "VARCHAR", "Licence of the data: its SPDX identifier where there is one."),
        Column("citation", "VARCHAR", "What to cite when the data is used."),
        Column("doi", "VARCHAR", "DOI of the publication or the dataset."),
        Column("page_url", "VARCHAR", "The publisher's own page about it."),
        Column("download_url", "VARCHAR", "Where the data is downloaded from."),
        Column("modality", "VARCHAR", "Kind of microscopy: FIB-SEM, SBF-SEM, ssTEM ..."),
        Column("organism", "VARCHAR", "Species."),
        Column("sample", "VARCHAR", "Tissue, cell line or other specimen."),
        Column("instrument", "VARCHAR", "Microscope."),
        Column("partitioned_by", "VARCHAR", "What is downloaded one by one: chunk (a region of the volume) or file."),
        Column("partitions", "BIGINT", "How many of these there are."),
        Column("partitions_stored", "BIGINT", "How many of them are here."),
        Column(
            "file_size_bytes",
            "BIGINT",
            "Bytes stored on disk: all volumes, compressed, and the received files if kept.",
        ),
        Column("uncompressed_size_bytes", "BIGINT", "Bytes of the main volume at full resolution in memory."),
        Column(
            "missing_fraction", "DOUBLE", "Share (0 to 1) of the main volume's voxels that the publisher does not have."
        ),
        Column("sha256", "VARCHAR", "Digest of the sorted manifest: equal volumes have equal digests."),
        Column("identity", "VARCHAR", "Digest of what decides the bytes: source, crop, pixel type, storage."),
        Column("source_shape", "BIGINT[3]", "Voxels along z, y, x of the publisher's whole volume."),
        Column("source_box_start", "BIGINT[3]", "First voxel (z, y, x) of the crop, in the publisher's voxels."),
        Column("source_box_stop", "BIGINT[3]", "End of the crop (z, y, x; not included), in the publisher's voxels."),
        Column("local_paths", "JSON", "What is where in the store: volume, manifest, coverage, preview ..."),
        Column("timestamp", "TIMESTAMP", "When the dataset's record was written (UTC)."),
        Column("additional_metadata", "JSON", "Whatever else the record keeps."),
    ),
)

FILES = Relation(
    "files",
    "One row for every object that a dataset stores and every file it received, as recorded when it was written.",
    (
        Column("name", "VARCHAR", "The dataset's name."),
        Column("volume", "VARCHAR", "Which of the dataset's volumes; empty for the main one and for received files."),
        Column("path", "VARCHAR", "Path below the dataset's folder."),
        Column(
            "level",
            "INTEGER",
            "Resolution level it belongs to (0 is full resolution); empty for a whole volume's metadata and "
            "for received files.",
        ),
        Column(
            "partition_key",
            "VARCHAR",
            "The chunk it holds, such as z000_y001_x002; the received file; empty for metadata.",
        ),
        Column("size_bytes", "BIGINT", "Size in bytes."),
        Column("sha256", "VARCHAR", "SHA-256 checksum of its bytes, in hexadecimal."),
        Column(
            "source_url", "VARCHAR", "Where it or its voxels were downloaded from; empty for what was computed here."
        ),
        Column("written_at", "TIMESTAMP", "When it was written (UTC)."),
    ),
)

CHUNKS = Relation(
    "chunks",
    "One row for every chunk (stored object) of a dataset's full resolution volumes, stored or not.",
    (
        Column("name", "VARCHAR", "The dataset's name."),
        VOLUME,
        Column("partition_key", "VARCHAR", "The chunk's key, its index along z, y, x: z000_y001_x002."),
        Column("z0", "INTEGER", "First voxel along z, in the stored volume."),
        Column("y0", "INTEGER", "First voxel along y, in the stored volume."),
        Column("x0", "INTEGER", "First voxel along x, in the stored volume."),
        Column("z1", "INTEGER", "End along z (not included), in the stored volume."),
        Column("y1", "INTEGER", "End along y (not included), in the stored volume."),
        Column("x1", "INTEGER", "End along x (not included), in the stored volume."),
        Column(
            "status",
            "VARCHAR",
            "present, absent (the publisher has nothing there; this is not black), not downloaded, or not made (yet, "
            "from the files that are downloaded).",
        ),
        Column("size_bytes", "BIGINT", "Bytes stored for it, compressed."),
        Column("missing_fraction", "DOUBLE", "Share (0 to 1) of its voxels that the publisher does not have."),
        Column("minimum", "DOUBLE", "Smallest intensity."),
        Column("maximum", "DOUBLE", "Largest intensity."),
        Column("mean", "DOUBLE", "Mean intensity."),
        Column("standard_deviation", "DOUBLE", "Standard deviation of the intensity."),
        Column("zero_fraction", "DOUBLE", "Share (0 to 1) of its voxels that are exactly 0."),
        Column("saturated_fraction", "DOUBLE", "Share (0 to 1) of its voxels at the pixel type's largest value."),
        Column("source_box_start", "BIGINT[3]", "First voxel (z, y, x), in the publisher's voxels."),
        Column("source_box_stop", "BIGINT[3]", "End (z, y, x; not included), in the publisher's voxels."),
        Column("received_bytes", "BIGINT", "Bytes downloaded for it."),
        Column("seconds", "DOUBLE", "Seconds it took to download and store."),
        Column("written_at", "TIMESTAMP", "When it was written (UTC)."),
        Column("compared_voxels", "BIGINT", "Voxels that were read back and compared with the source's."),
        Column("different_voxels", "BIGINT", "Compared voxels that differed; 0 is right."),
    ),
)

LEVELS = Relation(
    "levels",
    "One row for every resolution level of a stored volume; of one not yet stored, the full resolution as described.",
    (
        Column("name", "VARCHAR", "The dataset's name."),
        VOLUME,
        Column("level", "INTEGER", "0 is full resolution; each further level is half as fine."),
        Column("shape_z", "INTEGER", "Voxels along z."),
        Column("shape_y", "INTEGER", "Voxels along y."),
        Column("shape_x", "INTEGER", "Voxels along x."),
        Column("voxel_size_z_nm", "DOUBLE", "Size of a voxel along z in nanometres."),
        Column("voxel_size_y_nm", "DOUBLE", "Size of a voxel along y in nanometres."),
        Column("voxel_size_x_nm", "DOUBLE", "Size of a voxel along x in nanometres."),
        Column("shard", "INTEGER[3]", "Voxels (z, y, x) in one stored object."),
        Column("chunk", "INTEGER[3]", "Voxels (z, y, x) that are compressed together."),
        Column("codec", "VARCHAR", "Compression and its level: zstd 1, or none."),
        Column("shards", "BIGINT", "Objects stored."),
        Column("size_bytes", "BIGINT", "Bytes stored, compressed."),
    ),
)

TABLES = (DATASETS, FILES, CHUNKS, LEVELS)

OVERVIEW = Relation(
    "overview",
    "The datasets at a glance, one line each; `datasets` has everything.",
    (
        Column("name", "VARCHAR", "The dataset's name."),
        Column("status", "VARCHAR", "listed, saving-data, interrupted, complete or error."),
        Column("shape", "VARCHAR", "Voxels along z, y, x."),
        Column("voxel_nm", "VARCHAR", "Size of a voxel along z, y, x in nanometres."),
        Column("dtype", "VARCHAR", "Pixel type."),
        Column("size", "VARCHAR", "Size on disk; with ~ the size in memory of what is not downloaded."),
        Column("license", "VARCHAR", "Licence of the data."),
        Column("source", "VARCHAR", "The publisher."),
        Column("updated", "VARCHAR", "When its record was written (UTC)."),
        Column("note", "VARCHAR", "Progress, the reason of an error, or what is missing; the whole is status_reason."),
    ),
)


def _plain_number(column: str) -> str:
    """SQL: a double without trailing zeros, at most three decimals: 8, 2.96, 7.998."""
    return rf"regexp_replace(cast(round({column}, 3) as varchar), '\.0$', '')"


# No lambdas and no list functions: the view is stored as text, and DuckDB 1.0 to 2.0 must all read it.
OVERVIEW_SQL = f"""
create view overview as
select
    name,
    status,
    shape_z || ' x ' || shape_y || ' x ' || shape_x as shape,
    {_plain_number("voxel_size_z_nm")} || ' x ' || {_plain_number("voxel_size_y_nm")} || ' x '
        || {_plain_number("voxel_size_x_nm")} as voxel_nm,
    dtype,
    coalesce(
        formatReadableDecimalSize(file_size_bytes), '~' || formatReadableDecimalSize(uncompressed_size_bytes)
    ) as size,
    license,
    source,
    strftime("timestamp", '%Y-%m-%d %H:%M') as updated,
    case
        when status in ('saving-data', 'interrupted') and partitions_stored is not null
            then partitions_stored || ' of ' || partitions || ' ' || partitioned_by || 's'
        when length(status_reason) > 80 then left(status_reason, 79) || '…'
        when status_reason is not null then status_reason
        when missing_fraction > 0 then printf('%.2g %% not published', 100 * missing_fraction)
    end as note
from datasets
order by name
"""  # noqa: S608 - every part is written above


def arrow_table(relation: Relation, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The rows by column, a key that a row lacks as NULL.

    Raises ValueError, TypeError or OverflowError where a value does not fit its column, KeyError on unknown keys.
    """
    import pyarrow as pa

    known = {column.name for column in relation.columns}
    for row in rows:
        if not row.keys() <= known:
            raise KeyError(f"{relation.name} has no columns {sorted(row.keys() - known)}")
    types: dict[SqlType, Any] = {
        "VARCHAR": pa.string(),
        "JSON": pa.string(),
        "INTEGER": pa.int32(),
        "BIGINT": pa.int64(),
        "DOUBLE": pa.float64(),
        "TIMESTAMP": pa.timestamp("us"),
        "INTEGER[3]": pa.list_(pa.int32(), 3),
        "BIGINT[3]": pa.list_(pa.int64(), 3),
        "DOUBLE[3]": pa.list_(pa.float64(), 3),
    }
    columns = {c.name: pa.array([row.get(c.name) for row in rows], types[c.type]) for c in relation.columns}
    return pa.table(columns)
