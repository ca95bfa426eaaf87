"""What a publisher's reply must be before it is kept: the document that was asked for, and not an error or another's.

What it says is not judged here. A number that is given as text, or is wrong, is kept as it was said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from em_assets.datasets.source import Document
from em_assets.errors import Malformed, Mismatch
from em_assets.fetch.replies import safe_url
from em_assets.formats._ctf_tables import CtfFormat
from em_assets.formats._json import parse_json
from em_assets.formats.reader import Scalar
from em_assets.sources.markup import text_leaves, xml_leaves

JSON_KINDS = frozenset(
    {
        *("json", "idr_image", "omero_image", "idr_annotations", "empiar_entry"),
        *("cryoet_metadata", "cryoet_api", "ome_zarr_attributes", "zarr_array"),
    }
)
CTF_KINDS: dict[str, CtfFormat] = {
    "ctf_ctffind": "CTFFIND",
    "ctf_gctf": "Gctf",
    "ctf_imod": "IMOD",
    "ctf_aretomo3": "AreTomo3",
}
"""Tables of CTF programs, each in a format of its own that nothing in it names."""
PLAIN_KINDS = frozenset({"mdoc", "tilt_angles", "xf", "aln", "mrc_header", *CTF_KINDS})
"""Files beside a tilt series, and the beginning of an MRC file."""
STUDY = re.compile(r"idr\d{4}")
"""Accession of a study, in the address of its files."""


def require_document(document: Document, raw: bytes) -> None:
    """Raises Malformed (naming the place), or Mismatch if it is about something else."""
    where = safe_url(document.url)
    if not raw.strip():
        raise Malformed(f"{where} answered with nothing, expected {document.kind}.")
    if document.kind in JSON_KINDS:
        value = parse_json(raw, where)
        if document.kind in JSON_CHECKS:
            JSON_CHECKS[document.kind](where, value, document.url)
    elif document.kind in PLAIN_KINDS:
        for _ in plain_leaves(document.kind, raw, where):
            pass
    elif document.kind != "points":  # how those are written is the spec's to say: `points.require_points`
        _require_text(where, document, raw)


def _require_text(where: str, document: Document, raw: bytes) -> None:
    if document.kind in ("xml", "empiar_xml"):
        leaves = dict(xml_leaves(raw, where))
        if document.kind == "empiar_xml":
            _require_empiar_xml(where, leaves, document.url)
    elif document.kind in ("idr_study", "table"):
        _require_rows(where, document, raw)
    elif document.kind == "text":
        for _ in text_leaves(raw, where):
            pass
    elif b"<" not in raw:
        raise Malformed(f"{where} is not a web page; it begins {_shown(raw[:80].decode('utf-8', 'replace'))}.")


def plain_leaves(kind: str, raw: bytes, where: str) -> Iterator[tuple[str, Scalar]]:
    """What a file beside a tilt series, or a header of a file, states. Raises Malformed."""
    if kind == "mrc_header":
        from em_assets.sources.mrc_header import header_leaves

        return header_leaves(raw, where)
    from em_assets.formats.tilt_files import leaves

    if kind in CTF_KINDS:
        return leaves(raw, "ctf", where, ctf_format=CTF_KINDS[kind])
    return leaves(raw, "rawtlt" if kind == "tilt_angles" else kind, where)


def _require_cryoet(where: str, value: Any, url: str) -> None:  # noqa: ARG001  # as the other checks
    """A metadata file of the CryoET Data Portal: an object; of a storage's error page there is a Code and a Message."""
    _require_no_error(where, value)
    if not value:
        raise Malformed(f"{where} is an empty object, expected metadata of the portal.")


def _require_ome_zarr(where: str, value: Any, url: str) -> None:  # noqa: ARG001  # likewise
    _require_no_error(where, value)
    _require_type(where, "/multiscales", value.get("multiscales"), list)


def _require_zarr_array(where: str, value: Any, url: str) -> None:  # noqa: ARG001  # likewise
    _require_no_error(where, value)
    _require_type(where, "/shape", value.get("shape"), list)


def _require_idr_image(where: str, value: Any, url: str) -> None:
    """OMERO.web's `imgData`."""
    _require_no_error(where, value)
    _require_type(where, "/meta", value.get("meta"), dict)
    _require_same_id(where, "/id", value.get("id"), _number_in_path(url))


def _require_omero_image(where: str, value: Any, url: str) -> None:
    """The OMERO JSON API's `/m/images/<id>/`."""
    _require_no_error(where, value)
    data = value.get("data")
    _require_type(where, "/data", data, dict)
    _require_same_id(where, "/data/@id", data.get("@id"), _number_in_path(url))


def _require_annotations(where: str, value: Any, url: str) -> None:
    """OMERO.web's `api/annotations`."""
    _require_no_error(where, value)
    annotations = value.get("annotations")
    _require_type(where, "/annotations", annotations, list)
    asked = parse_qs(urlsplit(url).query).get("image", [None])[0]
    for number, annotation in enumerate(annotations):
        place = f"/annotations/{number}"
        _require_type(where, place, annotation, dict)
        link = annotation.get("link") or {}
        _require_type(where, f"{place}/link", link, dict)
        parent = link.get("parent") or {}
        _require_type(where, f"{place}/link/parent", parent, dict)
        if parent.get("class") == "ImageI":
            _require_same_id(where, f"{place}/link/parent/id", parent.get("id"), asked)


def _require_entry(where: str, value: Any, url: str) -> None:
    """EMPIAR's `api/entry/<accession>/`: an object with the accession as its only key, whichever way it was asked."""
    _require_no_error(where, value)
    number = _number_in_path(url)
    if number is not None and f"EMPIAR-{number}" not in value:
        keys = ", ".join(_shown(key) for key in list(value)[:3]) or "nothing"
        raise Mismatch(f"{where} is about {keys}, but EMPIAR-{number} was asked for; correct the address in the spec.")
    for accession, entry in value.items():
        _require_type(where, f"/{accession}", entry, dict)
        sets = entry.get("imagesets")
        _require_type(where, f"/{accession}/imagesets", sets, list)
        if not sets:
            raise Malformed(f"{where}: /{accession}/imagesets is empty, expected at least one image set.")
        for place, image_set in enumerate(sets):
            _require_type(where, f"/{accession}/imagesets/{place}", image_set, dict)


def _require_empiar_xml(where: str, leaves: dict[str, Scalar], url: str) -> None:
    """EMPIAR's entry as XML names its accession at the root."""
    found, number = leaves.get("/entry/@accessionCode"), _number_in_path(url)
    if found is None:
        raise Malformed(f"{where}: /entry/@accessionCode is not there, expected an EMPIAR entry.")
    if number is not None and found != f"EMPIAR-{number}":
        raise Mismatch(
            f"{where} is about {_shown(found)}, but EMPIAR-{number} was asked for; correct the address in the spec."
        )


def _require_rows(where: str, document: Document, raw: bytes) -> None:
    """A table, or a study file of IDR (tab separated, `Study ...` keys), of the study that its address names."""
    from em_assets.sources.tabular import study_leaves, table_leaves

    leaves = dict((study_leaves if document.kind == "idr_study" else table_leaves)(raw, where))
    if document.kind == "table":
        if not leaves:
            raise Malformed(f"{where} has no row, expected a table with a header row.")
        return
    if not any(key.startswith("/Study ") for key in leaves):
        raise Malformed(f"{where} has no key that begins with Study, expected a study file of IDR.")
    found = leaves.get("/Comment[IDR Study Accession]/0")
    asked = STUDY.search(urlsplit(document.url).path)
    _require_same_id(where, "Comment[IDR Study Accession]", found, asked[0] if asked else None)


JSON_CHECKS: dict[str, Callable[[str, Any, str], None]] = {
    "idr_image": _require_idr_image,
    "omero_image": _require_omero_image,
    "idr_annotations": _require_annotations,
    "empiar_entry": _require_entry,
    "cryoet_metadata": _require_cryoet,
    "ome_zarr_attributes": _require_ome_zarr,
    "zarr_array": _require_zarr_array,
}


def _require_no_error(where: str, value: Any) -> None:
    """Both servers also answer errors with 200."""
    _require_type(where, "the document", value, dict)
    for key in ("message", "Exception", "error"):
        if isinstance(value.get(key), str):
            raise Malformed(f"{where} answered {_shown(value[key])} instead of what was asked for.")


def _require_type(where: str, place: str, value: Any, kind: type[dict[Any, Any] | list[Any]]) -> None:
    if not isinstance(value, kind):
        wanted = "a list" if kind is list else "an object"
        found = "null or not there" if value is None else _shown(value)
        raise Malformed(f"{where}: {place} is {found}, expected {wanted}.")


def _require_same_id(where: str, place: str, found: Any, asked: str | None) -> None:
    """Where one of the two is not known there is nothing to compare."""
    if found is not None and asked is not None and str(found) != asked:
        raise Mismatch(f"{where}: {place} is {_shown(found)}, but {asked} was asked for; correct the address.")


def _number_in_path(url: str) -> str | None:
    """The last number of an address' path: OMERO's and EMPIAR's ids."""
    numbers = re.findall(r"\d+", urlsplit(url).path)
    return numbers[-1].lstrip("0") if numbers else None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
