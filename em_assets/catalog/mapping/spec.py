"""What a spec states: its own facts, what its author read on pages or was told, and decisions against what is claimed.

A claim of a spec is named as its author or the page named it: which field that is, and in which unit, is decided here.
How a value comes into its field's form is in `saying.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from em_assets.catalog.choose import as_text
from em_assets.catalog.mapping.saying import FOLDED, said
from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.catalog.values import number, quantity, shape
from em_assets.catalog.vocabulary import FIELDS, Authority
from em_assets.formats.reader import Scalar

OWN = (
    *("title", "description", "source_id", "license", "citation", "doi"),
    *("organism", "modality", "sample", "instrument"),
)
"""Keys of a spec that are fields of the catalogue."""
AUTHORITIES: Mapping[Scalar, Authority] = {
    "publisher": "publisher page",
    "third party": "third party",
    "curator": "spec",
}
"""By who states a claim."""
KNOWN_TO_BE_WRONG = "what the publisher's own metadata state is known to be wrong"
SHAPES = ("volume_shape", "source_shape")
VOXELS = frozenset({"voxel", "voxels", "pixel", "pixels", "px"})
ORDER = re.compile(r"\(?\s*\b([xyz])[\s,/]*([xyz])[\s,/]*([xyz])\b\s*\)?", re.IGNORECASE)
"""`(x, y, z)`: the order that a text names for its three numbers."""
WORD = re.compile(r"[^\W\d_]+")
ALIASES = {
    "imaging_start_date": "acquired_on",
    "acceleration_voltage": "accelerating_voltage_v",
    "current": "beam_current_a",
    "pixel_width": "voxel_size_x_nm",
    "pixel_height": "voxel_size_y_nm",
    "z_step": "voxel_size_z_nm",
    "num_images_or_tilt_series": "image_count",
    "published_levels": "source_levels",
    "encoding": "compression",
}
"""Other names that pages have for fields, without a unit."""
STEMS = {
    field.name.removesuffix(f"_{field.unit.lower()}"): field.name
    for field in FIELDS.values()
    if field.unit is not None and field.name.endswith(f"_{field.unit.lower()}")
} | ALIASES
"""Names without their unit: `scan_rate` of `scan_rate_hz`."""


def read(document: StatedDocument, context: Context) -> Iterator[Statement]:  # noqa: ARG001  # a Reader's signature
    """Of `spec.json`, the spec's own model dump."""
    for name in OWN:
        yield from said(document, f"/{name}", name, "spec", note=_note(document, name))
    yield from _expected(document)
    for name in _names(document, "volumes"):
        yield from _volume(document, name)
    for place in _names(document, "claims"):
        yield from _claim(document, place)
    for name in _names(document, "overrides"):
        if name in FIELDS:
            reason = document.values.get(f"/overrides/{name}/reason")
            yield from said(
                document, f"/overrides/{name}/value", name, "override", note=None if reason is None else str(reason)
            )


def _names(document: StatedDocument, group: str) -> list[str]:
    """What is below a key of the spec: names, or the places of a list."""
    prefix = f"/{group}/"
    return list(dict.fromkeys(key.split("/")[2] for key in document.values if key.startswith(prefix)))


def _note(document: StatedDocument, name: str) -> str | None:
    """How sure the spec's author is of a key."""
    note = document.values.get(f"/notes/{name}")
    return None if note is None else str(note)


def _expected(document: StatedDocument) -> Iterator[Statement]:
    """What the publisher stated when the spec was written. Of several shapes the first is the one that is believed."""
    yield from said(document, "/expected/dtype", "dtype", "spec", note=_note(document, "expected.dtype"))
    note = _note(document, "expected.source_shape")
    for place, axis in enumerate("zyx"):
        yield from said(document, f"/expected/source_shape/0/{place}", f"source_size_{axis}", "spec", note=note)
    is_decided = document.values.get("/expected/published_voxel_size_nm/0") is not None
    note = _note(document, "expected.voxel_size_nm") or (KNOWN_TO_BE_WRONG if is_decided else None)
    for place, axis in enumerate("zyx"):
        yield from said(
            document,
            f"/expected/voxel_size_nm/{place}",
            f"voxel_size_{axis}_nm",
            "override" if is_decided else "spec",
            note=note,
        )


def _volume(document: StatedDocument, name: str) -> Iterator[Statement]:
    """What is expected of a further volume."""
    below = f"/volumes/{name}"
    for key in ("title", "doi", "dtype"):
        yield from said(
            document, f"{below}/{key}", key, "spec", volume=name, note=_note(document, f"volumes.{name}.{key}")
        )
    for key, field in (("shape", "source_size_{}"), ("voxel_size_nm", "voxel_size_{}_nm")):
        note = _note(document, f"volumes.{name}.{key}")
        for place, axis in enumerate("zyx"):
            yield from said(document, f"{below}/{key}/{place}", field.format(axis), "spec", volume=name, note=note)


@dataclass(frozen=True)
class _Claim:
    """One of the spec's `claims`."""

    document: StatedDocument
    at: str
    authority: Authority
    note: str | None

    def says(self, field: str, key: str, text: str | None = None, *, how: str | None = None) -> Iterator[Statement]:
        """`text` is the value, with its unit if that is not the field's; `how` it was read."""
        note = "; ".join(part for part in (self.note, how) if part) or None
        whole = self.document.values.get(f"{self.at}/{key}")
        stated = whole if isinstance(whole, str) else None
        return said(self.document, f"{self.at}/{key}", field, self.authority, text=text, stated=stated, note=note)


def _claim(document: StatedDocument, place: str) -> Iterator[Statement]:
    at = f"/claims/{place}"
    values = document.values
    name, by, note = values.get(f"{at}/key"), values.get(f"{at}/by", "publisher"), values.get(f"{at}/note")
    if not isinstance(name, str) or by not in AUTHORITIES:
        return
    claim = _Claim(document, at, AUTHORITIES[by], None if note is None else str(note))
    stem, _, unit = name.rpartition("_")
    if name in SHAPES:
        yield from _triple(claim, "source_size_{}", None)
    elif stem == "voxel_size" and name not in STEMS:
        yield from _triple(claim, "voxel_size_{}_nm", unit)
    else:
        yield from _single(claim, name)


def _single(claim: _Claim, name: str) -> Iterator[Statement]:
    """A claim under a field's name, or under one of its other names with the unit behind it, or in its value."""
    value = claim.document.values.get(f"{claim.at}/value")
    stem, _, unit = name.rpartition("_")
    if name in FIELDS:
        yield from claim.says(name, "value")
    elif name in STEMS:
        field = STEMS[name]
        if FIELDS[field].unit is None or number(value) is None:  # else nobody says in which unit it is
            yield from claim.says(field, "value")
    elif stem in STEMS and FIELDS[STEMS[stem]].unit is not None:
        text = f"{value} {FOLDED.get(unit, unit)}" if number(value) is not None else None
        yield from claim.says(STEMS[stem], "value", text)


def _triple(claim: _Claim, field: str, unit: str | None) -> Iterator[Statement]:
    """One number per axis, or, of lengths, one for all: either all three are stated, or nothing is."""
    values = claim.document.values
    listed = [values[key] for place in range(4) if (key := f"{claim.at}/value/{place}") in values]
    how = None
    if listed:
        found = {axis: (f"value/{place}", item) for place, (axis, item) in enumerate(zip("zyx", listed, strict=False))}
    else:
        by_axis, unit, how = _by_axis(values.get(f"{claim.at}/value"), unit)
        found = {axis: ("value", item) for axis, item in by_axis.items()}
    statements = [
        statement
        for axis, (key, item) in found.items()
        for statement in claim.says(field.format(axis), key, _with_unit(item, unit), how=how)
    ]
    if len(statements) == 3 and len(listed) in (0, 3):
        yield from statements


def _with_unit(value: Scalar, unit: str | None) -> str:
    """Blank, which states nothing, for what is no number."""
    plain = number(value)
    return "" if plain is None else f"{as_text(plain)} {unit or ''}".strip()


def _by_axis(stated: Scalar, unit: str | None) -> tuple[dict[str, Scalar], str | None, str | None]:
    """Values by axis, their unit, and how their order was read where the claim does not name one.

    Nothing if a word is neither that of an order nor a unit: it could change what the numbers mean.
    """
    is_length = unit is not None
    if not isinstance(stated, str):
        return (dict.fromkeys("zyx", stated) if is_length else {}), unit, None
    named, plain = ORDER.search(stated), ORDER.sub(" ", stated)
    words = set(WORD.findall(plain)) - {"x"} - (frozenset() if is_length else VOXELS)
    axes = "".join(named.groups()).lower() if named else "zyx"
    if len(words) > (1 if is_length else 0) or sorted(axes) != ["x", "y", "z"]:
        return {}, unit, None
    unit = words.pop() if words else unit
    three = shape(plain)
    if three is not None:
        return dict(zip(axes, three, strict=True)), unit, None if named else "taken as z, y, x"
    found = quantity(plain)
    one = found[0] if found is not None else number(plain)
    return (dict.fromkeys("zyx", one) if is_length and one is not None else {}), unit, None
