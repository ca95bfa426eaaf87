"""The store's `README.md`: what lies in this folder, how to open it, how to cite it. Generated with the catalogue."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from em_assets.catalog.found import ORIGINAL, Row
from em_assets.catalog.rows import Rows
from em_assets.records import VOLUME
from em_assets.store import Store

README = "README.md"
MARK = "<!-- Written by em_assets with the catalogue: changes made here are lost. -->"
UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def write_store_readme(rows: Rows, store: Store) -> bool:
    """Writes the README if it changed; True if so. One that somebody else wrote is left alone."""
    text = store_readme(rows, store.root)
    old: bytes | None = None
    with contextlib.suppress(FileNotFoundError):
        old = store.read(README)
    if old == text.encode() or (old is not None and not old.startswith(MARK.encode())):
        return False
    store.write(README, text.encode())
    return True


def store_readme(rows: Rows, root: str) -> str:
    """Markdown for a person who finds the folder. The same rows give the same text: no times, no machine."""
    here = [row for row in rows.datasets if row["status"] != "listed"]
    listed = [row["name"] for row in rows.datasets if row["status"] == "listed"]
    volumes, originals = _volume_names(rows), _with_originals(rows)
    complete = [row for row in here if row["status"] == "complete" and None in volumes.get(row["name"], ())]
    kept = [f"`{row['name']}/original`" for row in here if row["name"] in originals]
    blocks = [
        [MARK, "# Electron-microscopy volumes"],
        [
            (
                "Public volumes, downloaded exactly and stored as OME-Zarr. Shapes, voxel sizes and boxes are in the "
                "order z, y, x; sizes are in nanometres. Only what is `complete` should be used."
            )
        ],
        list(_table(here, volumes)) if here else ["Nothing is stored here yet."],
        [f"The publisher's own files are kept byte for byte in {', '.join(kept)}."] if kept else [],
        [f"Described, not downloaded: {', '.join(listed)}. Download one with `em-assets get NAME`."] if listed else [],
        list(_how_to_open(complete[0], root)) if complete else [],
        list(_citations(here)),
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def _volume_names(rows: Rows) -> dict[str, list[str | None]]:
    """Which volumes each dataset has or will have, by its name: None is the main one."""
    names: dict[str, list[str | None]] = {}
    for table in rows.tables["levels"]:
        for row in table.select(["name", "volume", "level"]).to_pylist():
            if row["level"] == 0:
                names.setdefault(row["name"], []).append(row["volume"])
    return names


def _with_originals(rows: Rows) -> set[str]:
    """The datasets that have files as they were received."""
    return {
        table["name"][0].as_py()
        for table in rows.tables["files"]
        if any(path.startswith(ORIGINAL) for path in table["path"].to_pylist())
    }


def _table(rows: list[Row], volumes: Mapping[str, list[str | None]]) -> Iterator[str]:
    yield "| name | status | shape | voxel (nm) | type | size | licence | volume |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        names = volumes.get(row["name"], [])
        yield _line(row, row["name"], row, f"`{row['name']}/{VOLUME}`" if None in names else "")
        summaries = json.loads(row.get("volumes") or "{}")
        for name in names:
            if name is not None:
                summary = summaries[name] | {"volume_shape": summaries[name]["shape"]}
                yield _line(row, f"{row['name']}/{name}", summary, f"`{row['name']}/volumes/{name}.ome.zarr`")


def _line(dataset: Row, name: str, volume: Row, where: str) -> str:
    """A volume's line; the dataset's size stands with the main one."""
    kind = volume.get("dtype")
    cells = (
        name,
        dataset["status"],
        _times(volume.get("volume_shape")),
        _times(volume.get("voxel_size_nm")),
        f"{kind} labels" if kind and volume.get("content") == "labels" else kind,
        _size(volume.get("file_size_bytes")),
        dataset.get("license"),
        where,
    )
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


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
