"""The catalogue: one DuckDB file with everything known about every dataset, rebuilt from the store at any time.

    claims.parquet  (`claims.py`)       values under publishers' own keys, as they state them
      -> statements (`mapping/`)        the same in the terms and units of `vocabulary.py`
      -> judged     (`choose.py`)       which of them is taken, by a written precedence
    records, manifests, checks, runs    (`found.py`, `history.py`)
      -> rows       (`rows.py`)         of the tables that `schema.py` describes
    blocks.parquet  (`block_indexes.py`) what is in every block, loaded as it is
      -> metadata.duckdb (`build.py`)   asked by `query.py`, printed by `render.py`
      -> exports    (`exporting.py`)    CSV, JSON, Parquet, a summary, RO-Crates, Croissants; `readme.py` for the store

Nothing here is the truth about a dataset: that is the store.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def frames(database: Path | str) -> dict[str, pd.DataFrame]:
    """Every table and view of `metadata.duckdb` as a pandas DataFrame, by name."""
    from em_assets.catalog.exports import frames as every_frame

    return every_frame(Path(database))
