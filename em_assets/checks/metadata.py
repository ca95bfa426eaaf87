"""Whether publishers' documents still have the keys they had, and those that are relied on: a warning, never blocking.

A document that came anew is compared with what it was before; one that is as it was says nothing new, and what was
found of it stays. What is expected of each kind of document is `EXPECTED_KEYS`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from em_assets.checks.volume import CheckOutcome, outcome_document
from em_assets.records import DatasetFolder
from em_assets.sources.claims import CUT

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEYS = "metadata_keys"
COLUMNS = ("document", "key_pattern", "value_text", "value_number", "extractor", "extractor_version", "document_sha256")
"""Of the claims; what a comparison needs."""
DIFFERENCES = ("vanished", "appeared", "changed_type")
OUR_OWN = "spec"
"""The extractor of what no publisher says."""

EXPECTED_KEYS: Mapping[str, tuple[str, ...]] = {
    "empiar_entry": (
        *("/*/title", "/*/entry_doi", "/*/experiment_type", "/*/deposition_date", "/*/release_date"),
        *("/*/dataset_size", "/*/authors/*/author/name", "/*/imagesets/*/directory", "/*/imagesets/*/data_format"),
        *("/*/imagesets/*/image_width", "/*/imagesets/*/image_height", "/*/imagesets/*/voxel_type"),
        *("/*/imagesets/*/pixel_width", "/*/imagesets/*/pixel_height", "/*/imagesets/*/num_images_or_tilt_series"),
    ),
    "empiar_xml": (
        *("/entry/@accessionCode", "/entry/admin/title", "/entry/admin/keyDates/depositionDate"),
        *("/entry/imageSet/directory", "/entry/imageSet/dataFormat", "/entry/imageSet/voxelType"),
        *("/entry/imageSet/dimensions/imageWidth", "/entry/imageSet/dimensions/pixelWidth"),
    ),
    "idr_image": (
        *("/id", "/meta/imageName", "/meta/pixelsType", "/size/width", "/size/height", "/size/z", "/size/c"),
        *("/pixel_size/x", "/pixel_size/y", "/pixel_size/z"),
    ),
    "omero_image": (
        *("/data/@id", "/data/Name", "/data/Pixels/Type/value"),
        *("/data/Pixels/SizeX", "/data/Pixels/SizeY", "/data/Pixels/SizeZ"),
    ),
    "idr_annotations": ("/annotations/*/values/*/*",),
    "idr_study": ("/Study Title/*", "/Study Author List/*", "/Study License/*"),
    "dm": (
        *("/ImageList/*/ImageData/Dimensions/*", "/ImageList/*/ImageData/DataType"),
        *("/ImageList/*/ImageData/Calibrations/Dimension/*/Scale",),
        *("/ImageList/*/ImageData/Calibrations/Dimension/*/Units",),
    ),
    "tiff": ("/pages", "/*/ImageWidth", "/*/ImageLength", "/*/PhotometricInterpretation"),
    "zarr": ("/zarr_format", "/shape/*"),
    "n5": ("/dimensions/*", "/blockSize/*", "/dataType"),
    "precomputed": (
        *("/type", "/data_type", "/num_channels", "/scales/*/key", "/scales/*/size/*", "/scales/*/resolution/*"),
        *("/scales/*/chunk_sizes/*/*", "/scales/*/encoding"),
    ),
}
"""By extractor, as patterns: what the catalogue reads first, where the publisher's or format's documents have it."""

Types = dict[tuple[str, str], set[str]]
"""By (extractor, key pattern): what its values are: text, number, truth value. Nothing but null is none of them."""


@dataclass(frozen=True)
class Drift:
    """How the keys of documents differ from those that the same documents had before, as `extractor: key`."""

    vanished: tuple[str, ...] = ()
    appeared: tuple[str, ...] = ()
    changed_type: tuple[str, ...] = ()
    """With both: `tiff: /*/Software (was number, is text)`."""


def check_metadata_keys(before: pa.Table | None, after: pa.Table, last: Drift | None) -> CheckOutcome:
    """The outcome for claims that are about to replace others (None: the first).

    `last` is what the check found last time; it stands as long as no document came anew.
    """
    compared = set() if before is None else _came_anew(before, after)
    drift = drift_of(before, after, compared) if before is not None and compared else last or Drift()
    missing = missing_expected(after)
    found = {
        **{name: len(getattr(drift, name)) for name in DIFFERENCES},
        "missing_expected": len(missing),
        "compared_documents": len(compared),
    }
    expected = {**dict.fromkeys(DIFFERENCES, 0), "missing_expected": 0}
    details = {**{name: list(getattr(drift, name)) for name in DIFFERENCES}, "missing_expected": missing}
    passed = not any(details.values())
    return CheckOutcome(METADATA_KEYS, passed, expected, found, _message(drift, missing), details=details)


def drift_of(before: pa.Table, after: pa.Table, documents: Iterable[str]) -> Drift:
    """How the keys of these documents, which are in both, differ."""
    wanted = list(documents)
    old, new = _types(before, wanted), _types(after, wanted)
    changed = [
        f"{_shown(key)} (was {_listed(old[key])}, is {_listed(new[key])})"
        for key in sorted(old.keys() & new.keys())
        if old[key] and new[key] and old[key] != new[key]
    ]
    return Drift(
        tuple(_shown(key) for key in sorted(old.keys() - new.keys())),
        tuple(_shown(key) for key in sorted(new.keys() - old.keys())),
        tuple(changed),
    )


def missing_expected(claims: pa.Table) -> list[str]:
    """The keys that none of the documents of a kind has, though such documents do."""
    there = set(_types(claims, None))
    extractors = {extractor for extractor, _ in there}
    return [
        _shown((extractor, key))
        for extractor, keys in EXPECTED_KEYS.items()
        if extractor in extractors
        for key in keys
        if (extractor, key) not in there
    ]


def read_last(folder: DatasetFolder) -> Drift | None:
    """What the check found last time; None if it was not run, or its result cannot be read."""
    try:
        details = json.loads(folder.read(f"checks/{METADATA_KEYS}.json"))["details"]
        return Drift(**{name: tuple(map(str, details[name])) for name in DIFFERENCES})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_outcome(folder: DatasetFolder, outcome: CheckOutcome) -> None:
    """Keeps the result, as those of other checks are kept."""
    folder.write(f"checks/{outcome.name}.json", outcome_document(outcome))


def _came_anew(before: pa.Table, after: pa.Table) -> set[str]:
    """Documents that are in both, read in the same way, with other contents."""
    old, new = _contents(before), _contents(after)
    return {
        document
        for document, (read_by, sha256) in new.items()
        if document in old and old[document][0] == read_by and old[document][1] != sha256
    }


def _contents(claims: pa.Table) -> dict[str, tuple[tuple[str, str], str | None]]:
    """By document: how it was read (the extractor, and its own version), and its sha256."""
    columns = ["document", "extractor", "extractor_version", "document_sha256"]
    rows = claims.group_by(columns).aggregate([]).to_pylist()
    return {
        row["document"]: ((row["extractor"], row["extractor_version"].rpartition("+")[2]), row["document_sha256"])
        for row in rows
        if row["extractor"] != OUR_OWN
    }


def _types(claims: pa.Table, documents: list[str] | None) -> Types:
    """Of these documents (None: of all) but the spec."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pc.not_equal(claims["extractor"], OUR_OWN)
    if documents is not None:
        wanted = pc.and_(wanted, pc.is_in(claims["document"], pa.array(documents, pa.string())))
    rows = claims.filter(wanted)
    text, number = rows["value_text"], rows["value_number"]
    is_truth = pc.is_in(text, pa.array(["true", "false"], pa.string()))
    kind = pc.if_else(pc.is_valid(number), "number", pc.if_else(is_truth, "truth value", "text"))
    kind = pc.if_else(pc.is_null(text), pa.scalar(None, pa.string()), kind)
    distinct = rows.append_column("kind", kind).group_by(["extractor", "key_pattern", "kind"]).aggregate([])
    found: Types = {}
    for row in distinct.to_pylist():
        if row["key_pattern"] != CUT:
            kinds = found.setdefault((row["extractor"], row["key_pattern"]), set())
            kinds |= {row["kind"]} - {None}
    return found


def _message(drift: Drift, missing: list[str]) -> str:
    parts = [
        f"{what} ({keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''})"
        for what, keys in (
            ("have vanished", drift.vanished),
            ("have appeared", drift.appeared),
            ("have values of another type", drift.changed_type),
            ("that are relied on are missing", missing),
        )
        if keys
    ]
    if not parts:
        return "every document has the keys that it had and those that are relied on"
    return f"keys {', '.join(parts)}; look at the documents and at what reads them"


def _shown(key: tuple[str, str]) -> str:
    return ": ".join(key)


def _listed(kinds: set[str]) -> str:
    return " and ".join(sorted(kinds))
