"""Received files of a dataset in the store: `original/<path>`, a receipt beside each, and their partition keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from em_assets.datasets.source import FilesSource, file_key
from em_assets.fetch.receipts import Receipt

__all__ = ["file_key", "file_paths", "original_path", "read_receipt", "receipt_path"]

if TYPE_CHECKING:
    from em_assets.datasets.spec import DatasetSpec
    from em_assets.records import DatasetFolder


def file_paths(spec: DatasetSpec) -> dict[str, str]:
    """Path below `original/` of each file of the spec, by partition key; empty where no files are published."""
    if not isinstance(spec.source, FilesSource):
        return {}
    return {file_key(path): path for path in spec.source.by_path()}


def original_path(path: str) -> str:
    """Where a file lies, relative to the dataset's folder."""
    return f"original/{path}"


def receipt_path(path: str) -> str:
    return f"original/{path}.receipt.json"


def read_receipt(folder: DatasetFolder, path: str) -> Receipt | None:
    """None if there is none that can be read: then nothing is known of the file, and it is received again."""
    try:
        return Receipt.model_validate_json(folder.read(receipt_path(path)))
    except (FileNotFoundError, ValidationError):
        return None
