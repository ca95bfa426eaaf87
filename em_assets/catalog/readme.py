"""The store's `README.md`: what lies in this folder, how to open it, how to cite it. Generated with the catalogue."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from em_assets.catalog.rows import Row, Rows
from em_assets.records import VOLUME
from em_assets.store import Store

README = "README.md"
MARK = "<!-- Written by em_assets with the catalogue: changes made here are lost. -->"
UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def write_store_readme(rows: Rows, store: Store) -> bool:
    """Writes the README if it changed; True if so. One that somebody else wrote is left alone."""
    text = store_readme(rows.datasets, store.root)
    old: bytes | None = None
    with contextlib.suppress(FileNotFoundError):
        old = store.read(README)
    if old == text.encode() or (old is not None and not old.startswith(MARK.encode())):
        return False
    store.write(README, text.encode())
    return True


def store_readme(datasets: list[Row], root: str) -> str:
    """Markdown for a person who finds the folder. `datasets` are the rows of the table of that name.

    The same rows give the same text: no times, no machine.
    """
    here = [row for row in datasets if row["status"] != "listed"]
    listed = [row["name"] for row in datasets if row["status"] == "listed"]
    complete = [row for row in here if row["status"] == "complete"]
    blocks = [
        [MARK, "# Electron-microscopy volumes"],
        [
            (
                "Public volumes, downloaded exactly and stored as OME-Zarr. Shapes, voxel sizes and boxes are in the "
                "order z, y, x; sizes are in nanometres. Only what is `complete` should be used."
            )
        ],
        list(_table(here)) if here else ["Nothing is stored here yet."],
        [f"Described, not downloaded: {', '.join(listed)}. Download one with `em-assets get NAME`."] if listed else [],
        list(_how_to_open(complete[0], root)) if complete else [],
        list(_citations(here)),
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def _table(rows: list[Row]) -> Iterator[str]:
    yield "| name | status | shape | voxel (nm) | type | size | licence | volume |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        cells = (
            row["name"],
            row["status"],
            _times(row.get("volume_shape")),
            _times(row.get("voxel_size_nm")),
            row.get("dtype"),
            _size(row.get("file_size_bytes")),
            row.get("license"),
            f"`{row['name']}/{VOLUME}`",
        )
        yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _how_to_open(row: Row, root: str) -> Iterator[str]:
    where = f"{root}/" if root.startswith("s3://") else ""
    yield "## Open one"
    yield ""
    yield "```python"
    yield "import zarr"
    yield f'volume = zarr.open_group("{where}{row["name"]}/{VOLUME}", mode="r")'
    yield 'block = volume["0"][:128, :128, :128]  # z, y, x at full resolution; "1", "2" ... are each half as fine'
    yield "```"
    yield ""
    yield "```sh"
    yield f"em-assets view {row['name']}"
    yield 'em-assets sql "from overview"'
    yield "```"
    yield ""
    if not where:
        yield "The Python lines are for this folder as the working directory. "
    yield (
        "`metadata.duckdb` is a DuckDB database (1.0 or newer) with everything known: the tables `datasets`, `files`, "
        "`chunks` and `levels`, each column with a comment."
    )
    yield ("Voxels that the publisher does not have read as 0: `coverage.parquet` beside a volume says which they are.")


def _citations(rows: list[Row]) -> Iterator[str]:
    cited = [row for row in rows if row.get("citation") or row.get("license")]
    if not cited:
        return
    yield "## Cite"
    yield ""
    for row in cited:
        doi = f" https://doi.org/{row['doi']}" if row.get("doi") else ""
        yield f"- **{row['name']}** ({_cell(row.get('license'))}): {_cell(row.get('citation'))}{doi}"


def _times(values: Any) -> str:
    return " x ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values or ())


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return ""
    for unit, name in UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} bytes"


def _cell(value: Any) -> str:
    """One line that cannot break out of a Markdown table."""
    return " ".join(str(value if value is not None else "").split()).replace("|", "\\|")
