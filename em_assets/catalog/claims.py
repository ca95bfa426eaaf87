"""Claims as a table: `claims.parquet`, values that somebody states about a dataset, with where each came from.

The truth from which the catalogue's table `claims` and all that is chosen among them is rebuilt. What the values are
read from is `sources/`; what they mean is `mapping/`.
"""

from __future__ import annotations

import importlib.metadata
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from em_assets.errors import Malformed
from em_assets.records import DatasetFolder
from em_assets.sources.claims import EXTRACTORS
from em_assets.sources.personal import marks
from em_assets.volume import Claim

if TYPE_CHECKING:
    import pyarrow as pa

CLAIMS = "claims.parquet"
COLUMNS = (
    *("name", "document", "key", "key_pattern", "value_text", "value_number", "unit", "mark"),
    *("extractor", "extractor_version", "source_url", "retrieved_at", "document_sha256"),
)
CLAIMS_AT_ONCE = 20_000
"""So many are held beside the file that is written."""

INDEX = re.compile(r"(?<=/)\d+(?=/|$)")
REPEATED = re.compile(r"\[\d+\](?=/|$)")
"""A second element or column of the same name: it is of the same kind as the first, which has no number."""
ACCESSION = re.compile(r"(?<=/)[A-Z][A-Z-]*\d{3,}(?=/|$)")
"""EMPIAR-11759, S-BIAD634."""
TIFF_TAG = re.compile(r"/\d+(/[^/]+)(.*)", re.DOTALL)
"""Page, tag, and what is in it. A tag without a name has its number, which is no index."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a document or file that claims were read from."""

    sha256: str
    url: str | None = None
    """Where it really came from, a mirror perhaps; None: from where its claims say."""
    retrieved_at: datetime | None = None
    """None where nobody noted it."""


def claims_table(name: str, claims: Iterable[Claim], origins: Mapping[str, Origin]) -> pa.Table:
    """One row per claim, in their order; `origins` by document. Times are UTC without saying so, as in the catalogue.

    Values as text, and as a number where they are stated as one: a number given as text stays text.
    """
    import pyarrow as pa

    batches = [_batch(name, claims, origins) for claims in _batches(claims)]
    return pa.Table.from_batches(batches, schema=_schema())


def encode_claims(name: str, claims: Iterable[Claim], origins: Mapping[str, Origin]) -> bytes:
    """The same table as the bytes of `claims.parquet`; it is never in memory as a whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer, schema = io.BytesIO(), _stored_schema()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for some in _batches(claims):
            writer.write_table(pa.Table.from_batches([_batch(name, some, origins)]).cast(schema))
    return buffer.getvalue()


def write_claims(folder: DatasetFolder, claims: Iterable[Claim], origins: Mapping[str, Origin] | None = None) -> None:
    """Replaces `claims.parquet`; readers see the old or the new one."""
    folder.write(CLAIMS, encode_claims(folder.name, claims, origins or {}))


def read_claims(folder: DatasetFolder, columns: Sequence[str] = COLUMNS) -> pa.Table | None:
    """The stored claims; None if there are none, or those of an earlier version. Raises Malformed if damaged."""
    try:
        raw = folder.read(CLAIMS)
    except FileNotFoundError:
        return None
    return decode_claims(raw, folder.uri(CLAIMS), columns)


def decode_claims(raw: bytes, where: str, columns: Sequence[str] = COLUMNS) -> pa.Table | None:
    """The table in the bytes of a `claims.parquet`, likewise; its file is `where`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(raw))
        if not file.schema_arrow.equals(_stored_schema()):
            return None
        table = file.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise Malformed(
            f"{where} is not a table of claims ({reason}); it was damaged: remove it and describe the dataset again."
        ) from None
    known = _schema()
    return table.cast(pa.schema([known.field(name) for name in table.column_names]))


@lru_cache(maxsize=20_000)  # files of a series have the same keys
def key_pattern(extractor: str, key: str) -> str:
    """The key with positions in lists and accession numbers as `*`: documents of one kind have the same patterns."""
    if extractor == "tiff" and (found := TIFF_TAG.fullmatch(key)):
        return f"/*{found[1]}{INDEX.sub('*', found[2])}"
    return ACCESSION.sub("*", INDEX.sub("*", REPEATED.sub("", key)))


@cache
def extractor_version(extractor: str) -> str:
    """This package's version and, after a plus, the extractor's own, which decides whether keys can be compared."""
    try:
        version = importlib.metadata.version("em_assets")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    return f"{version}+{EXTRACTORS.get(extractor, 0)}"


def _batches(claims: Iterable[Claim]) -> Iterable[list[Claim]]:
    left = iter(claims)
    while some := list(itertools.islice(left, CLAIMS_AT_ONCE)):
        yield some


def _batch(name: str, claims: Sequence[Claim], origins: Mapping[str, Origin]) -> pa.RecordBatch:
    import pyarrow as pa

    found = [origins.get(claim.document) for claim in claims]
    values: dict[str, list[Any]] = {
        "name": [name] * len(claims),
        "document": [claim.document for claim in claims],
        "key": [claim.key for claim in claims],
        "key_pattern": [key_pattern(claim.extractor, claim.key) for claim in claims],
        "value_text": [_text(claim.value) for claim in claims],
        "value_number": [_number(claim.value) for claim in claims],
        "unit": [claim.unit for claim in claims],
        "mark": [marks(claim.key, claim.value) for claim in claims],
        "extractor": [claim.extractor for claim in claims],
        "extractor_version": [extractor_version(claim.extractor) for claim in claims],
        "source_url": [origin.url if origin and origin.url else c.url for c, origin in zip(claims, found, strict=True)],
        "retrieved_at": [origin.retrieved_at if origin else None for origin in found],
        "document_sha256": [origin.sha256 if origin else None for origin in found],
    }
    return pa.record_batch([pa.array(values[field.name], field.type) for field in _schema()], schema=_schema())


def _schema() -> pa.Schema:
    import pyarrow as pa

    special = {"value_number": pa.float64(), "retrieved_at": pa.timestamp("us")}
    return pa.schema([(name, special.get(name, pa.string())) for name in COLUMNS])


def _stored_schema() -> pa.Schema:
    """In the file, which other programs read, times say that they are UTC."""
    import pyarrow as pa

    schema = _schema()
    place = schema.get_field_index("retrieved_at")
    return schema.set(place, pa.field("retrieved_at", pa.timestamp("us", tz="UTC")))


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
