"""Claims: values that somebody states about a dataset, kept in `claims.parquet` with where each came from."""

from __future__ import annotations

import io
from collections.abc import Sequence

from em_assets.records import DatasetFolder
from em_assets.volume import Claim

CLAIMS = "claims.parquet"


def write_claims(folder: DatasetFolder, claims: Sequence[Claim]) -> None:
    """One row per value: as text always, as a number where it is one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ordered = sorted(claims, key=lambda claim: (claim.document, claim.key))
    table = pa.table(
        {
            "name": pa.array([folder.name] * len(ordered), pa.string()),
            "document": pa.array([claim.document for claim in ordered], pa.string()),
            "key": pa.array([claim.key for claim in ordered], pa.string()),
            "value_text": pa.array([_text(claim.value) for claim in ordered], pa.string()),
            "value_number": pa.array([_number(claim.value) for claim in ordered], pa.float64()),
            "source_url": pa.array([claim.url for claim in ordered], pa.string()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    folder.write(CLAIMS, buffer.getvalue())


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
