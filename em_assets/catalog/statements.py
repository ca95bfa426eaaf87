"""Statements: what a claim says in the catalogue's own terms and units.

A claim is a value under a publisher's own key; a statement is the same said of a field of `vocabulary.py`, with the
claim it was read from. `mapping/` has one module per kind of document; `choose.py` picks one statement per field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from em_assets.catalog.vocabulary import Authority
from em_assets.datasets.spec import DatasetSpec
from em_assets.formats.reader import Scalar


@dataclass(frozen=True, slots=True)
class Statement:
    """One field's value according to one claim."""

    field: str
    """Of `vocabulary.FIELDS`."""
    value: str | float
    """In the field's unit; text in its canonical form (SPDX, ISO 8601, numpy's names)."""
    authority: Authority
    document: str
    key: str
    """The claim: path of the document, and path within it."""
    stated: str
    """As the claim has it, with its unit."""
    volume: str | None = None
    """Which of the dataset's volumes it is about; None: the main one, and the dataset as a whole."""
    note: str | None = None
    """How it was read, where that is not plain; of an override, its reason."""


@dataclass(frozen=True)
class StatedDocument:
    """One document's or file's claims, and what is known of it."""

    path: str
    """Below the dataset's folder: documents/entry.json, original/volume.tif, spec.json."""
    extractor: str
    """What read it: `empiar_entry`, `dm`, `tiff`, `zarr` ... decides which module of `mapping/` understands it."""
    values: Mapping[str, Scalar]
    """By key, in the document's own order."""


@dataclass(frozen=True)
class Context:
    """What a document's claims are read with."""

    spec: DatasetSpec
    documents: Mapping[str, StatedDocument]
    """All of the dataset's, by path: some say what others mean."""


Reader = Callable[[StatedDocument, Context], Iterator[Statement]]


def statements_of(documents: Iterable[StatedDocument], spec: DatasetSpec) -> list[Statement]:
    """What all documents of a dataset state, in their order. A document of a kind that nobody reads states nothing.

    A value that cannot be brought into a field's form (an odd date, an unknown unit) is left out: its claim stays.
    """
    from em_assets.catalog.mapping import READERS

    context = Context(spec, {document.path: document for document in documents})
    return [
        statement
        for document in context.documents.values()
        if document.extractor in READERS
        for statement in READERS[document.extractor](document, context)
    ]
