"""How the summary puts things: fields and values in words, who says what in which document, text for Markdown.

Everything here makes a piece of a sentence or of a cell; which pieces the page has, and in which order, is
`summary.py`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from em_assets.catalog.vocabulary import FIELDS

Row = Mapping[str, Any]
LONGEST_VALUE = 100
LONGEST_NOTE = 300
PREFIXED = ("A", "V", "eV", "s", "Hz")
PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M"}
"""By the power of ten."""
STATUSES = {
    "listed": "described and not downloaded",
    "saving-data": "being saved",
    "interrupted": "interrupted",
    "complete": "complete",
    "error": "failed",
}
UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
LABELS = {
    "license": "licence",
    "doi": "DOI",
    "publication_doi": "DOI of the paper",
    "source_id": "publisher's identifier",
    "publisher_name": "publisher",
    "organism_taxid": "organism's number in the NCBI taxonomy",
    "deposited_on": "day of deposition",
    "released_on": "day of release",
    "updated_on": "day of the last change",
    "acquired_on": "day of imaging",
    "dtype": "pixel type",
    "primary_energy_ev": "energy of the electrons",
    "source_axes": "order of the published axes",
    "source_chunk": "published chunk",
    "source_levels": "published resolution levels",
    "image_count": "number of images",
    "dataset_size_bytes": "size of all that is published",
    **{f"source_size_{axis}": f"voxels of the whole published volume along {axis}" for axis in "zyx"},
    **{f"voxel_size_{axis}_nm": f"voxel size along {axis}" for axis in "zyx"},
}
"""Fields whose name does not say it all."""
UNIT_SUFFIX = re.compile(r"_(nm|bytes|v|ev|a|s|hz|mm)$")
AUTHORITIES = {
    "override": "a decision written into the dataset's own description here (its spec), with a reason",
    "file header": "what a program must read to decode the voxels: sizes, pixel type, voxel size",
    "file metadata": "everything else that is written in the published files",
    "publisher API": "what the publisher's database answers to a program",
    "publisher page": "what the publisher's web pages say to a person",
    "spec": "what whoever described the dataset here wrote down",
    "third party": "what others say; it is shown and never taken",
}
SPEAKERS = {
    "empiar_entry": "EMPIAR's entry",
    "empiar_xml": "EMPIAR's XML file",
    "idr_image": "IDR's image record",
    "omero_image": "IDR's OMERO server",
    "idr_annotations": "IDR's annotations",
    "idr_study": "IDR's study description",
    "table": "the publisher's table",
    "html": "the publisher's page",
    "zarr": "the volume's Zarr metadata",
    "n5": "the volume's N5 attributes",
    "precomputed": "the volume's `info`",
}
"""Who speaks in a kind of document."""
PLURAL = ("idr_annotations", "n5")
IN_FILES = ("dm", "tiff", "hdf5", "mrc")
THIRD_PARTY = "a third party"
BY_AUTHORITY = {
    "override": "the decision in the spec",
    "publisher API": "the publisher's database",
    "publisher page": "the publisher's page",
    "spec": "our own description",
    "third party": THIRD_PARTY,
}


def field_label(field: str) -> str:
    """A field's name in words."""
    return LABELS.get(field) or UNIT_SUFFIX.sub("", field).replace("_", " ")


def along_axes(labels: Iterable[str]) -> list[str]:
    """`size along x`, `size along y` as `size along x and y`; others as they are."""
    axes: dict[str, list[str]] = {}
    for label in labels:
        what, along, axis = label.rpartition(" along ")
        axes.setdefault(what if along else label, []).extend([axis] if along else [])
    return [f"{what} along {enumerated(found)}" if found else what for what, found in axes.items()]


def statement_in_words(row: Row) -> str:
    """Of a statement."""
    if row["personal"]:
        return "something (left out here, because it names a person or a computer)"
    return value_in_words(row["field"], row["value"] if row["number"] is None else row["number"])


def value_in_words(field: str, value: Any) -> str:
    """With its unit; as it is read aloud."""
    unit, kind = FIELDS[field].unit, FIELDS[field].kind
    if kind == "date":
        return str(value)
    if kind != "number":
        return f"“{markdown(_short(str(value)))}”"
    value = float(value)
    if unit in PREFIXED:
        return _with_prefix(value, unit)
    if unit == "bytes":
        return size(int(value)) or ""
    number = f"{int(value):,}" if value.is_integer() and abs(value) < 1e15 else f"{value:.8g}"
    return number if unit in (None, "voxels") else f"{number} {unit}"


def _with_prefix(value: float, unit: str) -> str:
    """`220 pA`, `1.9 kV`."""
    power = min(max(math.floor(math.log10(abs(value)) / 3 + 1e-9) * 3, -12), 6) if value else 0
    return f"{value / 10.0**power:.6g} {PREFIXES[power]}{unit}"


def who_says_what(said: Sequence[Row]) -> str:
    """Who goes last in precedence first, so that the sentence ends with what is taken."""
    parts: list[str] = []
    before: list[str] = []
    for _, rows in reversed(list(grouped(said, "value"))):
        speakers = dict(_speaker(row) for row in rows)
        names = list(speakers)
        verb = "say" if len(names) > 1 or speakers[names[0]] else "says"
        who = "another" if names == before == [THIRD_PARTY] else enumerated(names)
        parts.append(f"{who} {verb} {statement_in_words(rows[0])}{_as_stated(rows)}")
        before = names
    return "; ".join(parts)


def what_was_taken(field: str, pairs: Sequence[Row], said: Sequence[Row]) -> str:
    """How a contradiction was decided, with the reasons of all its pairs."""
    chosen = pairs[0]["chosen"]
    reasons = "; ".join(dict.fromkeys(str(markdown(row["reason"])) for row in pairs))
    if chosen is None:
        return f"Nothing was taken: {reasons}."
    row = next((row for row in said if row["chosen"]), None)
    value = statement_in_words(row) if row is not None else value_in_words(field, chosen)
    return f"Taken: **{value}** ({reasons})."


def _speaker(row: Row) -> tuple[str, bool]:
    """Who makes a statement, and whether that is a plural."""
    several = (row["files"] or 1) > 1
    if row["extractor"] in IN_FILES:
        what = "header" if row["authority"] == "file header" else "further tag"
        return (f"the files' {what}s", True) if several else (f"the file's {what}", False)
    speaker = SPEAKERS.get(row["extractor"] or "") or BY_AUTHORITY.get(row["authority"]) or row["authority"]
    return speaker, row["extractor"] in PLURAL


def _as_stated(rows: Sequence[Row]) -> str:
    """Where the value is not what a claim says word for word: its words; and how sure its author is."""
    more = []
    for row in rows:
        if row["personal"]:
            continue
        stated = " ".join(str(row["stated"] or "").split())
        if stated and not _says(stated, row):
            more.append(f"as “{markdown(_short(stated))}”")
        if row["note"] and row["authority"] != "override":
            more.append(markdown(_short(row["note"], LONGEST_NOTE)) or "")
    return f" ({'; '.join(dict.fromkeys(more))})" if more else ""


def _says(stated: str, row: Row) -> bool:
    """Whether a claim's words are those that the page shows, or hold the number."""
    if row["number"] is None:
        return _plain(stated) == _plain(row["value"])
    numbers = re.findall(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", stated)
    return any(float(number) == row["number"] for number in numbers)


def _plain(text: Any) -> str:
    return re.sub(r"[\s,“”\\]", "", str(text)).casefold()


def _short(text: str, longest: int = LONGEST_VALUE) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def markdown(value: Any) -> str | None:
    """One line that Markdown shows as it is."""
    if value is None:
        return None
    return re.sub(r"([\\`*<>\[\]|]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(value).split()))


def code(text: Any) -> str:
    """A key as code, within a table too."""
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "\\|") + "`"


def enumerated(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def statuses(rows: Sequence[Row]) -> str:
    found = [row["status"] for row in rows]
    counts = [f"{found.count(status)} {word}" for status, word in STATUSES.items() if status in found]
    return ", ".join(counts) or "none"


def on_day(what: str, day: Any) -> str | None:
    return None if day is None else f"{what} {day}"


def times(values: Any) -> str:
    return " x ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values or ())


def size(size_bytes: int | None) -> str | None:
    if size_bytes is None:
        return None
    for unit, name in UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} bytes"


def grouped(rows: Iterable[Row], *keys: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Rows with equal values of the keys, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    yield from groups.items()
