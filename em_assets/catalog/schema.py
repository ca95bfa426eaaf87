"""The catalogue's tables, views and what their columns mean, in the words of the field.

Every table and column is commented in the database too, so that a person who opens it elsewhere finds the units.
Voxel coordinates are z, y, x and boxes are half open; times are in UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from em_assets.catalog.vocabulary import FIELDS, Kind

if TYPE_CHECKING:
    import pyarrow as pa

SqlType = Literal[
    "VARCHAR",
    "BOOLEAN",
    "INTEGER",
    "BIGINT",
    "DOUBLE",
    "DATE",
    "TIMESTAMP",
    "JSON",
    "INTEGER[3]",
    "BIGINT[3]",
    "DOUBLE[3]",
    "FLOAT[]",
]


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


CHOSEN = (
    *("modality", "organism", "organism_taxid", "sample", "cell_line", "preparation", "instrument", "acquired_on"),
    *("deposited_on", "released_on", "updated_on", "accelerating_voltage_v", "bias_voltage_v", "primary_energy_ev"),
    *("beam_current_a", "dwell_time_s", "scan_rate_hz", "working_distance_mm", "magnification"),
    *("acquisition_software", "channels", "source_axes", "file_format", "compression", "source_chunk"),
    *("source_levels", "image_count", "dataset_size_bytes"),
)
"""Fields that have a column of `datasets` and are known from claims only."""
TYPES: dict[Kind, SqlType] = {"text": "VARCHAR", "name": "VARCHAR", "date": "DATE", "number": "DOUBLE"}


def _of_field(name: str) -> Column:
    """A column with what was chosen for a field of the vocabulary."""
    field = FIELDS[name]
    unit = f" In {field.unit}." if field.unit else ""
    return Column(name, TYPES[field.kind], f"{field.comment}{unit}")


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
        *(_of_field(name) for name in ("license", "citation", "doi", "publication_doi", "authors", "publisher_name")),
        Column(
            "commercial_use",
            "BOOLEAN",
            "Whether the licence allows commercial use; empty where that is not known. Read the licence itself.",
        ),
        Column("page_url", "VARCHAR", "The publisher's own page about it."),
        Column("download_url", "VARCHAR", "Where the data is downloaded from."),
        *(_of_field(name) for name in CHOSEN),
        Column("levels", "INTEGER", "Resolution levels of the main volume as stored here."),
        Column("intensity_level", "INTEGER", "Level that the percentiles and the histogram were taken of."),
        Column("intensity_minimum", "DOUBLE", "Smallest intensity at full resolution."),
        Column("intensity_maximum", "DOUBLE", "Largest intensity at full resolution."),
        Column("intensity_mean", "DOUBLE", "Mean intensity at full resolution."),
        Column("intensity_standard_deviation", "DOUBLE", "Standard deviation of the intensity at full resolution."),
        Column("intensity_percentiles", "JSON", "Intensity below which 0.1, 1, 5 ... 99.9 % of the voxels lie."),
        Column("intensity_histogram", "JSON", "Edges of the bins, and voxels in each."),
        Column("conflicts", "BIGINT", "Pairs of claims about it that disagree; `conflicts` lists them."),
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

CLAIMS = Relation(
    "claims",
    "One row for every value that a publisher's document, a file's header or the spec states, under its own key.",
    (
        Column("name", "VARCHAR", "The dataset's name."),
        Column("document", "VARCHAR", "What states it: path of the document or file below the dataset's folder."),
        Column("key", "VARCHAR", "Path of the value within the document: JSON pointer, XML path or tag path."),
        Column("key_pattern", "VARCHAR", "The key with positions in lists and accession numbers as *."),
        Column("value_text", "VARCHAR", "The value as text, as it is stated; empty where it is stated to be nothing."),
        Column("value_number", "DOUBLE", "The value where it is stated as a number."),
        Column("unit", "VARCHAR", "Its unit, where the key says so."),
        Column(
            "mark",
            "VARCHAR",
            "e-mail address or local path: exports leave it out; odd bytes: text that could not be decoded.",
        ),
        Column("extractor", "VARCHAR", "What read the document: dm, tiff, zarr, empiar_entry ..."),
        Column("extractor_version", "VARCHAR", "Its version."),
        Column("source_url", "VARCHAR", "Where the document or file was downloaded from."),
        Column("retrieved_at", "TIMESTAMP", "When it was downloaded (UTC)."),
        Column("document_sha256", "VARCHAR", "SHA-256 checksum of the document or file, in hexadecimal."),
    ),
)

STATEMENTS = Relation(
    "statements",
    "What the claims say in the catalogue's own terms and units: a row for each value of a field by each authority.",
    (
        Column("name", "VARCHAR", "The dataset's name."),
        VOLUME,
        Column("field", "VARCHAR", "What it is about; the table `vocabulary` explains it."),
        Column("module", "VARCHAR", "Part of the study it belongs to, as REMBI calls it."),
        Column("value", "VARCHAR", "The value, in the field's unit and form."),
        Column("number", "DOUBLE", "The value as a number, where it is one."),
        Column("unit", "VARCHAR", "Unit of the number."),
        Column(
            "authority",
            "VARCHAR",
            "Who says so: override (a person's decision in the spec), file header, file metadata, publisher API, "
            "publisher page, spec, third party.",
        ),
        Column("document", "VARCHAR", "The first document that says so."),
        Column("key", "VARCHAR", "Path of the claim within it: join `claims` by name, document and key."),
        Column("stated", "VARCHAR", "What the claim says, word for word."),
        Column("note", "VARCHAR", "How it was read, or how sure it is."),
        Column("claims", "BIGINT", "How many claims say so."),
        Column("rank", "INTEGER", "Place among the values of this field: 1 goes first."),
        Column("chosen", "BOOLEAN", "Whether it is the dataset's value."),
        Column("personal", "BOOLEAN", "Whether the claim holds an e-mail address or local path."),
    ),
)

KEY_PRESENCE = Relation(
    "key_presence",
    "Which keys publishers and files use, and how many of their documents have each.",
    (
        Column("extractor", "VARCHAR", "Kind of document: dm, tiff, zarr, empiar_entry ..."),
        Column("key", "VARCHAR", "The key, with positions in lists and accession numbers as *."),
        Column("source", "VARCHAR", "The publisher."),
        Column("documents", "BIGINT", "Documents of this kind and publisher."),
        Column("documents_with_key", "BIGINT", "How many of them have the key."),
        Column("share", "DOUBLE", "The same as a share, 0 to 1."),
        Column("datasets", "BIGINT", "Datasets in which it occurs."),
    ),
)

CHECKS = Relation(
    "checks",
    "The latest result of each check of each dataset.",
    (
        Column("name", "VARCHAR", "The dataset's name."),
        Column("check_name", "VARCHAR", "What was checked."),
        Column("passed", "BOOLEAN", "Whether it was as expected."),
        Column("blocking", "BOOLEAN", "Whether the dataset cannot be used if it was not."),
        Column("message", "VARCHAR", "The outcome in one sentence."),
        Column("expected", "JSON", "What was expected."),
        Column("found", "JSON", "What was found."),
        Column("checked_at", "TIMESTAMP", "When (UTC)."),
    ),
)

RUNS = Relation(
    "runs",
    "Every run that wrote a dataset: when, how much, how long, how it ended.",
    (
        Column("name", "VARCHAR", "The dataset's name."),
        Column("run_id", "VARCHAR", "The run's own number."),
        Column("started_at", "TIMESTAMP", "When it began (UTC)."),
        Column("ended_at", "TIMESTAMP", "When it ended (UTC)."),
        Column("outcome", "VARCHAR", "success or failure."),
        Column("reason", "VARCHAR", "Why it failed, in one sentence."),
        Column("received_bytes", "BIGINT", "Bytes downloaded."),
        Column("seconds", "DOUBLE", "How long it took."),
        Column("failed_partitions", "JSON", "Files or chunks that could not be fetched."),
    ),
)

DOCUMENTS = Relation(
    "documents",
    "The publishers' replies and pages and the containers' own metadata, as received; and those that are missing.",
    (
        Column("name", "VARCHAR", "The dataset's name."),
        Column("path", "VARCHAR", "Path below the dataset's folder."),
        Column("kind", "VARCHAR", "How it is read: empiar_entry, zarr, html ..."),
        Column("source_url", "VARCHAR", "Where it is from."),
        Column("size_bytes", "BIGINT", "Size in bytes."),
        Column("sha256", "VARCHAR", "SHA-256 checksum, in hexadecimal."),
        Column("retrieved_at", "TIMESTAMP", "When it was received (UTC)."),
        Column("text", "VARCHAR", "The document itself, where it is text of at most a megabyte."),
        Column("problem", "VARCHAR", "Why it is not here, in one sentence."),
    ),
)

VOCABULARY = Relation(
    "vocabulary",
    "The fields of a dataset's record: what each means, and what other vocabularies call it.",
    (
        Column("field", "VARCHAR", "Name of the field."),
        Column("module", "VARCHAR", "Part of the study it belongs to, as REMBI calls it."),
        Column("kind", "VARCHAR", "How values are compared: text (not), name, number, date."),
        Column("unit", "VARCHAR", "Unit of a number."),
        Column("tolerance", "DOUBLE", "Relative difference up to which two numbers are one."),
        Column("comment", "VARCHAR", "What it means."),
        Column("ome", "VARCHAR", "The same in OME-XML."),
        Column("empiar", "VARCHAR", "The same in an EMPIAR entry."),
        Column("datacite", "VARCHAR", "The same in DataCite's schema."),
        Column("precedence", "VARCHAR", "Whose word goes first."),
    ),
)

BLOCKS = Relation(
    "blocks",
    "One row for every block of the grid over each complete dataset's volumes: where it lies, how much of it is real, "
    "what is in it, for training on it or not. Intensities are of its real voxels.",
    (
        Column("name", "VARCHAR", "The volume's name, as `open` takes it: the dataset's, or dataset/volume."),
        Column("id", "BIGINT", "The block's place in its volume's grid, counted along x first, z last."),
        Column("level", "INTEGER", "Resolution level whose voxels it has; 0 is full resolution."),
        *(Column(f"start_{a}", "BIGINT", f"Its first voxel along {a}, in the level.") for a in "zyx"),
        *(Column(f"shape_{a}", "BIGINT", f"Its voxels along {a}.") for a in "zyx"),
        *(
            Column(f"start_nm_{a}", "DOUBLE", f"Where it begins along {a} in nanometres, in the publisher's frame.")
            for a in "zyx"
        ),
        *(
            Column(f"stop_nm_{a}", "DOUBLE", f"Where it ends along {a} in nanometres, in the publisher's frame.")
            for a in "zyx"
        ),
        *(
            Column(f"voxel_size_{a}_nm", "DOUBLE", f"Size of a voxel of the level along {a} in nanometres.")
            for a in "zyx"
        ),
        Column("max_voxel_size_nm", "DOUBLE", "The coarsest of the three voxel sizes in nanometres."),
        Column("content", "VARCHAR", "image, or labels (each voxel's value names what it belongs to)."),
        Column("dtype", "VARCHAR", "Pixel type, as numpy calls it."),
        Column("license", "VARCHAR", "Licence of the dataset."),
        Column("licence", "VARCHAR", "The same: a query may spell it either way."),
        Column("publisher", "VARCHAR", "Short name of the dataset's publisher."),
        Column("coverage", "DOUBLE", "Share (0 to 1) of its voxels that the publisher has; absence is not black."),
        Column("mean", "DOUBLE", "Mean intensity."),
        Column("std", "DOUBLE", "Standard deviation of the intensity."),
        *(
            Column(f"p{n:02}", "DOUBLE", f"Intensity that {n} % of the voxels do not exceed.")
            for n in (1, 5, 50, 95, 99)
        ),
        Column("minimum", "DOUBLE", "Smallest intensity."),
        Column("maximum", "DOUBLE", "Largest intensity."),
        Column("entropy_bits", "DOUBLE", "Entropy of the intensity histogram in bits: 0 of a blank block."),
        Column("sharpness", "DOUBLE", "0 to 1: how much of its structure is fine; low where it is out of focus."),
        Column("saturation", "DOUBLE", "Share (0 to 1) of the voxels at the pixel type's largest value."),
        Column("zero_fraction", "DOUBLE", "Share (0 to 1) of the voxels that are exactly 0."),
        Column("label_fraction", "DOUBLE", "Of labels: share (0 to 1) of the voxels that are not 0."),
        Column("labels", "BIGINT", "Of labels: how many different ones there are, 0 apart."),
        Column("split", "VARCHAR", "train, val or test, never touching each other; empty in the margin between them."),
        Column("digest", "VARCHAR", "Digest of its voxels and of which are real: what reading the block gives."),
        Column("features", "FLOAT[]", "Numbers that are alike where blocks look alike; compare those of one method."),
        Column("features_method", "VARCHAR", "What computed them, with its version."),
    ),
)
OF_DATASET = ("content", "dtype", "license", "licence", "publisher")
OF_INDEX = tuple(column for column in BLOCKS.columns if column.name not in OF_DATASET)
"""Columns that each volume's own index has to bring; the others are the dataset's."""

FILLED = (DATASETS, FILES, CHUNKS, LEVELS, STATEMENTS, CLAIMS, CHECKS, RUNS, DOCUMENTS, VOCABULARY)
"""From specs and the store; the others from these."""
TABLES = (*FILLED, KEY_PRESENCE, BLOCKS)
"""Of `BLOCKS` the rows come straight from the indexes, never through Python (`block_indexes.py`)."""

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


CONFLICTS = Relation(
    "conflicts",
    "Pairs of values that disagree about one field, beyond its tolerance and after conversion of units.",
    (
        Column("name", "VARCHAR", "The dataset's name."),
        VOLUME,
        Column("field", "VARCHAR", "What they are about; the table `vocabulary` explains it."),
        Column("value_a", "VARCHAR", "The value that goes before the other."),
        Column("authority_a", "VARCHAR", "Who states it."),
        Column("stated_a", "VARCHAR", "What is stated, word for word."),
        Column("document_a", "VARCHAR", "The document or file that states it."),
        Column("key_a", "VARCHAR", "Where in it."),
        Column("value_b", "VARCHAR", "The other value."),
        Column("authority_b", "VARCHAR", "Who states it."),
        Column("stated_b", "VARCHAR", "What is stated, word for word."),
        Column("document_b", "VARCHAR", "The document or file that states it."),
        Column("key_b", "VARCHAR", "Where in it."),
        Column("relative_difference", "DOUBLE", "Of two numbers: their difference over the larger one."),
        Column("chosen", "VARCHAR", "The value that the dataset's record has; empty if none was chosen."),
        Column("reason", "VARCHAR", "Why."),
    ),
)

# Stored, because DuckDB plans this for 15 ms and answers from the table in one.
CONFLICTS_SQL = """
create table conflicts as
with told as (
    select s.*, v.kind, v.tolerance,
        row_number() over (partition by s.name, s.volume, s.field, lower(s.value) order by s.rank) as nth
    from statements s join vocabulary v on v.field = s.field
    where v.kind <> 'text'
),
pairs as (
    select a.name, a.volume, a.field,
        a.value as value_a, a.authority as authority_a, a.stated as stated_a, a.document as document_a, a.key as key_a,
        b.value as value_b, b.authority as authority_b, b.stated as stated_b, b.document as document_b, b.key as key_b,
        case when a.number is not null and b.number is not null and a.number <> b.number
            then abs(a.number - b.number) / greatest(abs(a.number), abs(b.number)) end as relative_difference,
        a.tolerance, a.number is not null and b.number is not null as are_numbers, a.chosen as a_chosen
    from told a join told b
        on a.name = b.name and a.volume is not distinct from b.volume and a.field = b.field and a.rank < b.rank
    where a.nth = 1 and b.nth = 1
)
select p.name, p.volume, p.field, p.value_a, p.authority_a, p.stated_a, p.document_a, p.key_a,
    p.value_b, p.authority_b, p.stated_b, p.document_b, p.key_b, p.relative_difference, c.value as chosen,
    case
        when c.value is null then 'nobody whose word is taken states it'
        when c.authority = 'override' then 'decided in the spec: ' || coalesce(c.note, '')
        when not p.a_chosen then 'neither: ' || c.authority || ' goes before both'
        when p.authority_b = 'third party' then 'what a third party says is never taken'
        when p.authority_a = p.authority_b
            then 'both are of the ' || p.authority_a || ': the more frequent, then the first'
        else p.authority_a || ' goes before ' || p.authority_b
    end as reason
from pairs p left join statements c
    on c.chosen and c.name = p.name and c.volume is not distinct from p.volume and c.field = p.field
where not p.are_numbers or p.relative_difference > p.tolerance
order by p.name, p.volume nulls first, p.field, p.value_a, p.value_b
"""

FIELD_PRESENCE = Relation(
    "field_presence",
    "Which fields are known of which datasets: what they share, and what is unique to one.",
    (
        Column("field", "VARCHAR", "Name of the field."),
        Column("module", "VARCHAR", "Part of the study it belongs to, as REMBI calls it."),
        Column("datasets", "BIGINT", "Datasets of which it is known."),
        Column("share", "DOUBLE", "The same as a share of all datasets, 0 to 1."),
        Column("names", "VARCHAR", "Their names."),
    ),
)

FIELD_PRESENCE_SQL = """
create view field_presence as
select v.field, v.module, count(s.name) as datasets,
    count(s.name) / greatest((select count(*) from datasets), 1) as share,
    string_agg(s.name, ', ' order by s.name) as names
from vocabulary v left join (select distinct name, field from statements where chosen) s on s.field = v.field
group by v.field, v.module
order by datasets desc, v.field
"""

KEY_PRESENCE_SQL = """
insert into key_presence by name
with said as (
    select c.name, c.name || '/' || c.document as document, c.extractor, c.key_pattern as key, d.source
    from claims c join datasets d on d.name = c.name
),
totals as (select extractor, source, count(distinct document) as documents from said group by extractor, source)
select s.extractor, s.key, s.source, any_value(t.documents) as documents,
    count(distinct s.document) as documents_with_key,
    count(distinct s.document) / any_value(t.documents) as share,
    count(distinct s.name) as datasets
from said s join totals t on t.extractor = s.extractor and t.source is not distinct from s.source
group by s.extractor, s.key, s.source
order by s.extractor, s.key, s.source
"""
"""Fills the table from those of datasets and claims."""

POINTS = Relation(
    "points",
    "Points of annotations that are kept beside the datasets' volumes, in `points/<points>.parquet` of each.",
    (
        Column("name", "VARCHAR", "The dataset's name."),
        Column("points", "VARCHAR", "What the spec calls them."),
        Column("count", "BIGINT", "How many the kept file lists; of instances, how many different ones."),
        Column("stated_count", "BIGINT", "How many the publisher says that there are; empty where it does not say."),
        Column("document", "VARCHAR", "The file that lists them, below the dataset's folder."),
    ),
)

POINTS_SQL = """
create view points as
select name, substr(volume, 8) as points,
    max(case when authority = 'file header' then cast(number as bigint) end) as "count",
    max(case when authority <> 'file header' then cast(number as bigint) end) as stated_count,
    max(case when authority = 'file header' then document end) as document
from statements
where field = 'object_count' and volume like 'points/%'
group by name, volume
order by name, volume
"""

DERIVED = (
    (OVERVIEW, OVERVIEW_SQL),
    (CONFLICTS, CONFLICTS_SQL),
    (FIELD_PRESENCE, FIELD_PRESENCE_SQL),
    (POINTS, POINTS_SQL),
)
"""What SQL makes of the tables when all are filled."""


COUNT_CONFLICTS_SQL = """
update datasets set conflicts = (select count(*) from conflicts c where c.name = datasets.name)
"""


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
        "BOOLEAN": pa.bool_(),
        "DATE": pa.date32(),
        "INTEGER": pa.int32(),
        "BIGINT": pa.int64(),
        "DOUBLE": pa.float64(),
        "TIMESTAMP": pa.timestamp("us"),
        "INTEGER[3]": pa.list_(pa.int32(), 3),
        "BIGINT[3]": pa.list_(pa.int64(), 3),
        "DOUBLE[3]": pa.list_(pa.float64(), 3),
        "FLOAT[]": pa.list_(pa.float32()),
    }
    columns = {c.name: pa.array([row.get(c.name) for row in rows], types[c.type]) for c in relation.columns}
    return pa.table(columns)
