"""Whether what a server needs is installed, and where Neuroglancer's built client lies. Imports none of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from em_assets.errors import Unsupported

SERVER_EXTRA = ("starlette", "uvicorn")
VIEW_EXTRA = ("neuroglancer", *SERVER_EXTRA)


def require(modules: Sequence[str], what: str, instead: str) -> None:
    """Raises Unsupported if something of the extra `view` is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise Unsupported(
            f"{what} needs {', '.join(missing)}, not installed here: run `pip install 'em_assets[view]'`, or {instead}."
        )


def client_folder() -> Path:
    """Neuroglancer's built client within its wheel, found without importing it (which takes a second)."""
    require(VIEW_EXTRA, "the viewer", "open the volume in any other OME-Zarr viewer")
    found = importlib.util.find_spec("neuroglancer")
    for location in (found.submodule_search_locations or []) if found is not None else []:
        folder = Path(location, "static", "client")
        if (folder / "index.html").is_file():
            return folder
    raise Unsupported(
        "the installed neuroglancer has no built client: install its wheel with `pip install --force-reinstall "
        "--only-binary neuroglancer neuroglancer`."
    )
