"""Claims: what documents, files and the spec state about a dataset, each value with where it came from. No network.

Nothing is believed, converted or corrected here: a number given as text stays text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from em_assets.datasets.source import METADATA_NAMES, ChunkedSource, PrecomputedSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed
from em_assets.formats._json import json_leaves, parse_json
from em_assets.formats.reader import Scalar
from em_assets.sources.document_kinds import JSON_KINDS
from em_assets.sources.markup import html_leaves, text_leaves, xml_leaves
from em_assets.volume import Claim

MAX_CLAIMS = 5000
"""Of one document or file. The document itself is kept whole."""
MAX_KEY_CHARACTERS = 1000
MAX_VALUE_CHARACTERS = 10_000
CUT = "(cut)"
"""Key of the claim that says that there were more."""
SPEC_DOCUMENT = "spec"


def describe(spec: DatasetSpec, documents: dict[str, bytes]) -> list[Claim]:
    """Everything that the spec and the stored documents (by path below the dataset's folder) state.

    A stored document that the spec does not name any more states nothing. Raises Malformed if one is not what it is
    kept as.
    """
    claims = list(claims_of_spec(spec))
    named = {document_path(document.path): document for document in spec.documents}
    for path, raw in sorted(documents.items()):
        if path in named:
            kind, url = str(named[path].kind), named[path].url
        elif (metadata_url := _metadata_url(spec, path)) is not None:
            kind, url = "json", metadata_url
        else:
            continue
        try:
            claims += claims_of(path, kind, raw, url)
        except Malformed as error:
            reason = str(error).rstrip(".")
            raise Malformed(f"{spec.name}/{reason}; it was damaged: remove it and materialize again.") from None
    return claims


def document_path(name: str) -> str:
    """Where a document of the publisher is kept, relative to the dataset's folder."""
    return f"documents/{name}"


def claims_of(path: str, kind: str, raw: bytes, url: str) -> list[Claim]:
    """What a document states: JSON scalars by pointer, XML texts and attributes by path, a page's title and text.

    Raises Malformed if it is not of its kind.
    """
    if kind in JSON_KINDS:
        leaves: Iterable[tuple[str, Scalar]] = json_leaves(parse_json(raw, path))
    elif kind == "xml":
        leaves = xml_leaves(raw, path)
    elif kind == "html":
        leaves = html_leaves(raw)
    else:
        leaves = text_leaves(raw, path)
    return list(_claims(leaves, path, url))


def claims_of_tags(tags: Iterable[tuple[str, Scalar]], document: str, url: str) -> list[Claim]:
    """What a file says of itself (`VolumeReader.tags()`); `document` is its path below the dataset's folder."""
    return list(_claims(tags, document, url))


def claims_of_spec(spec: DatasetSpec) -> Iterator[Claim]:
    """What the spec's author read on pages or was told; without an address where it was not on one."""
    for stated in spec.claims:
        values = stated.value if isinstance(stated.value, tuple) else (stated.value,)
        for number, value in enumerate(values):
            key = f"{stated.key}/{number}" if isinstance(stated.value, tuple) else stated.key
            yield Claim(key=key, value=value, document=SPEC_DOCUMENT, url=stated.url or "")


def _claims(leaves: Iterable[tuple[str, Scalar]], document: str, url: str) -> Iterator[Claim]:
    left = iter(leaves)
    for key, value in itertools.islice(left, MAX_CLAIMS):
        yield Claim(_text(key, MAX_KEY_CHARACTERS), _storable(value), document, url)
    if next(left, None) is not None:
        yield Claim(CUT, f"only the first {MAX_CLAIMS} values are listed, there are more", document, url)


def _storable(value: Scalar) -> Scalar:
    """Numbers that no column can hold, and text that is no Unicode, as text that says so."""
    if isinstance(value, str):
        return _text(value, MAX_VALUE_CHARACTERS)
    if isinstance(value, int) and abs(value) >= 2**63:
        return str(value)
    return value


def _text(text: str, most: int) -> str:
    """Half of a surrogate pair, which JSON can hold and UTF-8 cannot, is written as its escape."""
    shown = text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")


def _metadata_url(spec: DatasetSpec, path: str) -> str | None:
    """Where a chunked source's stored metadata document lies: its path in the container, with `__` for `/`."""
    name = path.removeprefix("documents/")
    if name == path or not name.endswith(METADATA_NAMES):
        return None
    if isinstance(spec.source, PrecomputedSource):
        return f"{spec.source.volume_url}/info"
    if isinstance(spec.source, ChunkedSource):
        return f"{spec.source.url.rstrip('/')}/{name.replace('__', '/')}"
    return None
