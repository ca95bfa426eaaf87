"""Which files are made of the finished catalogue, and by whom: one entry for each of the export assets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from em_assets.catalog.crate import write_crates
from em_assets.catalog.croissant import write_croissants
from em_assets.catalog.exports import Export, write_exports
from em_assets.catalog.query import catalog_path
from em_assets.catalog.summary import write_summary
from em_assets.settings import Settings
from em_assets.store import Store

EXPORTS: Mapping[str, Callable[[Path, Store], list[Export]]] = {
    "metadata_exports": write_exports,
    "metadata_summary": write_summary,
    "ro_crates": write_crates,
    "croissants": write_croissants,
}


def export_catalog(name: str, store: Store, settings: Settings) -> list[Export]:
    """Writes one kind of export. Raises Unavailable if there is no catalogue, or it or the store cannot be used."""
    return EXPORTS[name](catalog_path(store, settings), store)
