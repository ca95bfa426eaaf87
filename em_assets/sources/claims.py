"""Claims: what documents, files and the spec state about a dataset, each value with where it came from. No network.

Nothing is believed, converted or corrected here: a number given as text stays text. What a key means is said in
`catalog/mapping/`, by the claim's extractor.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from em_assets.datasets.source import METADATA_NAMES, ChunkedSource, PrecomputedSource
from em_assets.datasets.spec import PORTAL_DOCUMENTS, DatasetSpec
from em_assets.errors import Malformed
from em_assets.formats._json import json_leaves, parse_json
from em_assets.formats.reader import Scalar
from em_assets.sources.document_kinds import JSON_KINDS, PLAIN_KINDS, plain_leaves
from em_assets.sources.markup import html_leaves, text_leaves, xml_leaves
from em_assets.volume import Claim

MAX_CLAIMS = 5000
"""Of one document or file. The document itself is kept whole."""
MAX_KEY_CHARACTERS = 1000
MAX_VALUE_CHARACTERS = 10_000
CUT = "(cut)"
"""Key of the claim that says that there were more."""
SPEC_DOCUMENT = "spec.json"
"""Where the spec is kept with a dataset, below its folder; what its author states are claims like others'."""
LISTED_FILES = re.compile(r"/source/files/")
"""Of the spec: there may be hundreds, and each that is here is a document itself."""

EXTRACTORS: dict[str, int] = dict.fromkeys(
    (
        *("spec", "empiar_entry", "empiar_xml", "idr_image", "omero_image", "idr_annotations", "idr_study", "table"),
        *("json", "xml", "html", "text", "dm", "tiff", "hdf5", "mrc", "zarr", "n5", "precomputed"),
        *("cryoet_api", "cryoet_metadata", "ome_zarr_attributes", "zarr_array", "mrc_header", "points"),
        *("mdoc", "tilt_angles", "xf", "aln", "ctf_ctffind", "ctf_gctf", "ctf_imod", "ctf_aretomo3"),
    ),
    1,
)
"""Every extractor, and its version: one more when the same document gives other keys or values than before."""
CONTAINER_EXTRACTORS = {
    "info.json": "precomputed",
    "attributes.json": "n5",
    **dict.fromkeys((".zarray", ".zattrs", ".zgroup", "zarr.json"), "zarr"),
}
"""By the end of a metadata document's name."""

UNITS = {
    unit: unit
    for unit in (
        *("pm", "nm", "µm", "mm", "cm", "m", "V", "kV", "mV", "eV", "keV", "pA", "nA", "µA", "mA", "Torr", "Pa"),
        *("hPa", "mbar", "ns", "µs", "ms", "s", "Hz", "kHz", "MHz", "deg", "rad", "%", "steps", "days", "bytes"),
        *("MB", "GB", "pixels", "°C"),
    )
} | {
    "um": "µm",
    "\u03bcm": "µm",
    "us": "µs",
    "uA": "µA",
    "\u03bcA": "µA",
    "Volts": "V",
    "Å": "angstrom",
}
"""As keys have them in brackets, and what they are called here."""
BRACKETED = re.compile(r"[(\[]\s*([^()\[\]/]{1,8}?)\s*[)\]]_?$")
"""`WD (mm)`, `Bias_(Volts)`, `Cs(mm)`."""
SUFFIXES = {
    unit.lower(): unit for unit in ("nm", "mm", "V", "kV", "eV", "pA", "nA", "A", "Hz", "MHz", "s", "bytes")
} | {
    "um": "µm",
    "seconds": "s",
}
"""By which the spec's own keys end: `voxel_size_nm`, `current_na`."""
KNOWN_UNITS = (
    ("empiar_entry", re.compile(r"/pixel_(?:width|height)$"), "angstrom"),
    ("empiar_xml", re.compile(r"/dimensions/pixel(?:Width|Height)$"), "angstrom"),
    ("idr_image", re.compile(r"^/pixel_size/[xyz]$"), "µm"),
    ("precomputed", re.compile(r"^/scales/\d+/resolution/\d$"), "nm"),
    *((kind, re.compile(r"^/(?:cella|origin)/[xyz]$"), "angstrom") for kind in ("mrc", "mrc_header")),
    ("mrc_header", re.compile(r"^/cellb/"), "deg"),
    ("mrc_header", re.compile(r"^/size_bytes$"), "bytes"),
    ("cryoet_metadata", re.compile(r"^/(?:voxel|pixel)_spacing$|^/volume_(?:dimension|offset)/[xyz]$"), "angstrom"),
    ("cryoet_metadata", re.compile(r"^/acceleration_voltage$"), "V"),
    ("cryoet_metadata", re.compile(r"^/(?:tilt_axis|tilt_step|tilt_range/(?:min|max)|tilt_offset)$"), "deg"),
    ("cryoet_api", re.compile(r"/voxelSpacing$"), "angstrom"),
    ("cryoet_api", re.compile(r"/fileSize(?:Mrc|Omezarr)?$"), "bytes"),
    ("tilt_angles", re.compile(r"."), "deg"),
    ("mrc", re.compile(r"^/cellb/|^/extended/\d+/(?:Alpha tilt|Beta tilt|Tilt axis angle|TiltAngle)$"), "deg"),
    ("mrc", re.compile(r"^/extended/\d+/Pixel size(?: [XY])?$"), "m"),
    ("mrc", re.compile(r"^/extended/\d+/HT$"), "V"),
)
"""Units that a key has by its publisher's or format's documentation."""


def describe(spec: DatasetSpec, documents: dict[str, bytes]) -> list[Claim]:
    """Everything that the stored documents (by path below the dataset's folder) and the spec state.

    A stored document that the spec does not name any more states nothing. Raises Malformed if one is not what it is
    kept as.
    """
    paths = sorted(documents, key=natural_order)
    claims = [claim for path in paths for claim in claims_of_document(spec, path, documents[path])]
    return [*claims, *claims_of_spec(spec)]


def claims_of_document(spec: DatasetSpec, path: str, raw: bytes) -> list[Claim]:
    """What a stored document states; nothing if the spec does not name it. Raises Malformed, and says what to do."""
    kind, url = document_kind(spec, path), document_url(spec, path)
    if kind is None or url is None:
        return []
    try:
        if kind == "points":
            return list(_claims(_point_leaves(spec, path, raw), path, url, kind))
        return claims_of(path, kind, raw, url)
    except Malformed as error:
        reason = str(error).rstrip(".")
        raise Malformed(f"{spec.name}/{reason}; it was damaged: remove it and materialize again.") from None


def document_path(name: str) -> str:
    """Where a document of the publisher is kept, relative to the dataset's folder."""
    return f"documents/{name}"


def document_kind(spec: DatasetSpec, path: str) -> str | None:
    """How a stored document is read, which is its claims' extractor; None for one that the spec does not name."""
    if path in _portal_documents(spec):
        return "cryoet_api"
    named = next((str(item.kind) for item in spec.all_documents if document_path(item.path) == path), None)
    if named is not None or _container_url(spec, path) is None:
        return named
    return next((kind for end, kind in CONTAINER_EXTRACTORS.items() if path.endswith(end)), None)


def document_url(spec: DatasetSpec, path: str) -> str | None:
    """Where a stored document comes from; None for one that the spec does not name."""
    if spec.portal is not None and path in _portal_documents(spec):
        return spec.portal.api
    named = next((item.url for item in spec.all_documents if document_path(item.path) == path), None)
    return named or _container_url(spec, path)


def _portal_documents(spec: DatasetSpec) -> list[str]:
    """What the portal's API answered, if there is one."""
    return [document_path(name) for name in PORTAL_DOCUMENTS] if spec.portal is not None else []


def _point_leaves(spec: DatasetSpec, path: str, raw: bytes) -> Iterable[tuple[str, Scalar]]:
    from em_assets.sources.points import named_by_document, point_leaves

    name = named_by_document(spec, path)
    return [] if name is None else point_leaves(spec.points[name], raw, path)


def claims_of(path: str, kind: str, raw: bytes, url: str) -> list[Claim]:
    """What a document states: JSON scalars by pointer, XML texts and attributes by path, a page's title and text.

    Raises Malformed if it is not of its kind.
    """
    return list(_claims(_leaves(path, kind, raw), path, url, kind))


def _leaves(path: str, kind: str, raw: bytes) -> Iterable[tuple[str, Scalar]]:
    if kind in JSON_KINDS or kind in CONTAINER_EXTRACTORS.values():
        return json_leaves(parse_json(raw, path))
    if kind in ("xml", "empiar_xml"):
        return xml_leaves(raw, path)
    if kind == "html":
        return html_leaves(raw)
    if kind in PLAIN_KINDS:
        return plain_leaves(kind, raw, path)
    if kind in ("idr_study", "table"):
        from em_assets.sources.tabular import study_leaves, table_leaves

        return study_leaves(raw, path) if kind == "idr_study" else table_leaves(raw, path)
    return text_leaves(raw, path)


def claims_of_tags(tags: Iterable[tuple[str, Scalar]], document: str, url: str, extractor: str) -> Iterator[Claim]:
    """What a file says of itself (`VolumeReader.tags()`); `document` is its path below the dataset's folder."""
    yield from _claims(tags, document, url, extractor)


def spec_document(spec: DatasetSpec) -> bytes:
    """The spec as it is kept with a dataset: JSON of all that it says; `DatasetSpec` reads it back."""
    return json.dumps(_said(spec), indent=1, ensure_ascii=False).encode() + b"\n"


def claims_of_spec(spec: DatasetSpec) -> Iterator[Claim]:
    """What the spec's author decided, read on pages or was told, by JSON pointer within `spec.json`.

    Claims of pages come with the page's address, all others without one. Lists of files are left out.
    """
    leaves = [leaf for leaf in json_leaves(_said(spec)) if not LISTED_FILES.match(leaf[0])]
    for claim in _claims(leaves, SPEC_DOCUMENT, "", "spec"):
        stated = re.match(r"/claims/(\d+)/(\w+)", claim.key)
        if stated is None:
            yield claim
            continue
        about = spec.claims[int(stated[1])]
        unit = _suffix_unit(about.key) if stated[2] == "value" else None
        yield Claim(claim.key, claim.value, SPEC_DOCUMENT, about.url or "", "spec", unit)


def _said(spec: DatasetSpec) -> dict[str, Any]:
    """What is not said is left out, but for who states a claim."""
    document: dict[str, Any] = spec.model_dump(mode="json", exclude_unset=True)
    if spec.claims:
        document["claims"] = [claim.model_dump(mode="json", exclude_none=True) for claim in spec.claims]
    return document


def _claims(leaves: Iterable[tuple[str, Scalar]], document: str, url: str, extractor: str) -> Iterator[Claim]:
    left = iter(leaves)
    for key, value in itertools.islice(left, MAX_CLAIMS):
        shown = _text(key, MAX_KEY_CHARACTERS)
        yield Claim(shown, _storable(value), document, url, extractor, unit_of(extractor, shown))
    if next(left, None) is not None:
        yield Claim(CUT, f"only the first {MAX_CLAIMS} values are listed, there are more", document, url, extractor)


@lru_cache(maxsize=20_000)  # files of a series have the same keys
def unit_of(extractor: str, key: str) -> str | None:
    """The unit that a key says its value has, None where it says none."""
    for known, pattern, unit in KNOWN_UNITS:
        if known == extractor and pattern.search(key):
            return unit
    names = [part for part in key.split("/") if part and not part.isdecimal()]
    if not names or (extractor == "spec" and names[0] == "notes"):  # prose about the key that a note is named for
        return None
    if extractor == "spec":
        return _suffix_unit(names[1] if names[0] == "overrides" and names[-1] == "value" else names[-1])
    bracketed = BRACKETED.search(names[-1])
    return UNITS.get(bracketed[1]) if bracketed else None


def _suffix_unit(name: str) -> str | None:
    whole, _, suffix = name.rpartition("_")
    return SUFFIXES.get(suffix) if whole else None


def natural_order(path: str) -> list[Any]:
    """To sort paths by, as people count: `slice_9` before `slice_10`."""
    parts: list[Any] = list(re.split(r"(\d+)", path))
    parts[1::2] = [int(number) for number in parts[1::2]]
    return parts


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


def _container_url(spec: DatasetSpec, path: str) -> str | None:
    """Where a chunked source's stored metadata document lies: its path in the container, with `__` for `/`."""
    name = path.removeprefix("documents/")
    if name == path or not name.endswith(METADATA_NAMES):
        return None
    if isinstance(spec.source, PrecomputedSource):
        return f"{spec.source.volume_url}/info"
    if isinstance(spec.source, ChunkedSource):
        return f"{spec.source.url.rstrip('/')}/{name.replace('__', '/')}"
    return None
