"""What is stated about one dataset: its stored claims, what they mean, and which of them was chosen. No network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from em_assets.catalog.choose import Judged, as_text, judge
from em_assets.catalog.claims import claims_table, read_claims
from em_assets.catalog.statements import StatedDocument, statements_of
from em_assets.catalog.vocabulary import FIELDS
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed
from em_assets.formats.reader import Scalar
from em_assets.records import DatasetFolder
from em_assets.sources.claims import SPEC_DOCUMENT, claims_of_spec

if TYPE_CHECKING:
    import pyarrow as pa

PERSONAL = ("e-mail address", "local path")


@dataclass
class Stated:
    """Claims and statements of one dataset."""

    claims: pa.Table
    judged: list[Judged] = field(default_factory=list)
    personal: set[tuple[str, str]] = field(default_factory=set)
    """(document, key) of claims that exports leave out."""

    def chosen(self) -> dict[str, str | float | date]:
        """The main volume's and the dataset's fields, each with the value of the statement that was chosen."""
        return {
            item.statement.field: _typed(item.statement.field, item.statement.value)
            for item in self.judged
            if item.chosen and item.statement.volume is None
        }

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Of the table `statements`."""
        for item in self.judged:
            said = item.statement
            known = FIELDS[said.field]
            yield {
                "name": name,
                "volume": said.volume,
                "field": said.field,
                "module": known.module,
                "value": as_text(said.value),
                "number": None if isinstance(said.value, str) else float(said.value),
                "unit": known.unit,
                "authority": said.authority,
                "document": said.document,
                "key": said.key,
                "stated": said.stated,
                "note": said.note,
                "claims": item.claims,
                "rank": item.rank,
                "chosen": item.chosen,
                "personal": (said.document, said.key) in self.personal,
            }


def read_stated(folder: DatasetFolder, spec: DatasetSpec | None, *, anything_stored: bool) -> Stated:
    """Of the stored claims, and of the spec as it is now. Raises Malformed if what is stored cannot be read."""
    import pyarrow as pa

    stored = read_claims(folder) if anything_stored else None
    spec = spec or stored_spec(folder)
    pieces = []
    if stored is not None:
        pieces.append(stored.filter(pa.compute.not_equal(stored["document"], SPEC_DOCUMENT)) if spec else stored)
    if spec is not None:
        pieces.append(claims_table(folder.name, list(claims_of_spec(spec)), {}))
    claims = pa.concat_tables(pieces, promote_options="default") if pieces else claims_table(folder.name, [], {})
    if spec is None:
        return Stated(claims)
    return Stated(claims, judge(statements_of(_documents(claims), spec)), set(_personal(claims)))


def stored_spec(folder: DatasetFolder) -> DatasetSpec | None:
    """The spec that the claims were read with, where the file itself is gone. Raises Malformed if it is not its own."""
    where = folder.uri(SPEC_DOCUMENT)
    try:
        spec = DatasetSpec.model_validate_json(folder.read(SPEC_DOCUMENT))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise Malformed(
            f"{where} is not a spec ({error.errors()[0]['msg']}); put the dataset's spec back and "
            f"materialize {folder.name}_metadata, or remove the file."
        ) from None
    if spec.name != folder.name:
        raise Malformed(
            f"{where} is the spec of {spec.name}, not of {folder.name}; "
            "a folder was renamed or copied: give it its own name back or remove it."
        )
    return spec


def _documents(claims: pa.Table) -> Iterable[StatedDocument]:
    """The claims by document, in their order."""
    documents: dict[str, StatedDocument] = {}
    columns = ("document", "extractor", "key", "value_text", "value_number")
    for path, extractor, key, text, number in zip(*(claims[name].to_pylist() for name in columns), strict=True):
        document = documents.setdefault(path, StatedDocument(path, extractor, {}))
        value: Scalar = text if number is None or text is None else _number(text, number)
        document.values[key] = value  # type: ignore[index]  # a dict until it is handed out
    return documents.values()


def _number(text: str, number: float) -> int | float:
    """A whole number beyond 2^53 is exact in its text only."""
    return int(text) if text.lstrip("-").isdigit() else number


def _personal(claims: pa.Table) -> Iterator[tuple[str, str]]:
    for document, key, mark in zip(*(claims[name].to_pylist() for name in ("document", "key", "mark")), strict=True):
        if mark is not None and any(kind in mark for kind in PERSONAL):
            yield document, key


def _typed(name: str, value: str | float) -> str | float | date:
    return date.fromisoformat(str(value)) if FIELDS[name].kind == "date" else value
