"""How a claim becomes a statement of a field: the value in the field's unit and form, and who says it, where.

The modules of EMPIAR, of the IDR and of specs use it. Which claim is about which field is theirs to know; what several
publishers write alike is read by `catalog/values.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal

from em_assets.catalog.choose import as_text
from em_assets.catalog.statements import StatedDocument, Statement
from em_assets.catalog.values import count, dates, doi, dtype, licence, modality, number, quantity, size_bytes
from em_assets.catalog.vocabulary import FIELDS, Authority
from em_assets.formats._units import to_nanometres
from em_assets.formats.reader import Scalar

TAXON = re.compile(r"(?:NCBITaxon[_:]|NCBI:txid|txid)?(\d{1,9})")
UNITS = {
    "V": {"mV": -3, "V": 0, "kV": 3},
    "eV": {"eV": 0, "keV": 3},
    "A": {"pA": -12, "nA": -9, "uA": -6, "\u00b5A": -6, "mA": -3, "A": 0},
    "s": {"ns": -9, "us": -6, "\u00b5s": -6, "usec": -6, "ms": -3, "s": 0},
    "Hz": {"Hz": 0, "kHz": 3, "MHz": 6},
}
"""Of a field's unit: the power of ten that leads to it from others. Lengths are `_units.py`'s, sizes `values.py`'s."""
FOLDED = {name.casefold(): name for powers in UNITS.values() for name in powers}
"""A key of a claim has its unit in small letters; none of these differ in their case only."""
COUNTS = frozenset({"channels", "source_levels", "image_count", "object_count"})


def said(
    document: StatedDocument,
    key: str,
    field: str,
    authority: Authority = "publisher API",
    *,
    unit: str | None = None,
    text: str | None = None,
    stated: str | None = None,
    note: str | None = None,
    volume: str | None = None,
) -> Iterator[Statement]:
    """The claim `key` as a statement of the field: none if it is not there, null, blank, or no value of that field.

    `unit` is the one that the claim is in, where it is not the field's. `text` takes the place of the claim's value
    where that is only part of the field's (one author of several), or more than it (three sizes in one text); what is
    shown as stated is that text, unless `stated` is given.
    """
    claim = document.values.get(key) if text is None else text
    if claim is None:
        return
    read: Scalar = claim if unit is None else f"{claim} {unit}"
    value = canonical(field, read)
    if value is not None:
        yield Statement(field, value, authority, document.path, key, stated or str(read), volume, note)


def canonical(name: str, value: Scalar) -> str | float | None:
    """A value in the field's unit and form: `200 eV` as 200.0, `CC BY 4.0` as CC-BY-4.0, a date as ISO 8601.

    A number without a unit is in the field's. None for what is no value of the field; so is a date that can be read
    two ways.
    """
    field = FIELDS[name]
    if isinstance(value, bool) or value is None:
        return None
    if field.kind == "number":
        return _measured(name, field.unit, value)
    if field.kind == "date":
        days = dates(value)
        return days[0].isoformat() if len(days) == 1 else None
    stated = str(value) if isinstance(value, int) else as_text(value)
    if name in FORMS:
        return FORMS[name](stated)
    return (stated if field.kind == "text" else " ".join(stated.split())).strip() or None


def _taxon(text: Scalar) -> str | None:
    """NCBITaxon:9606, however it is written."""
    match = TAXON.fullmatch(str(text).strip())
    return f"NCBITaxon:{int(match[1])}" if match else None


FORMS: Mapping[str, Callable[[Scalar], str | None]] = {
    "license": licence,
    "modality": modality,
    "doi": doi,
    "publication_doi": doi,
    "dtype": dtype,
    "organism_taxid": _taxon,
}
"""Of names that are written in more ways than one."""


def _measured(name: str, unit: str | None, value: str | float) -> float | None:
    if unit == "voxels" or name in COUNTS:
        return count(value)
    if unit == "bytes":
        size = number(size_bytes(value))
        return size if size is not None and size > 0 else None
    plain = number(value)
    if plain is not None:
        return to_nanometres(plain, "nm") if unit == "nm" else plain
    found = quantity(value)
    return None if found is None or unit is None else _converted(*found, unit)


def _converted(value: float, stated_unit: str, unit: str) -> float | None:
    """None if the two units are not of one quantity."""
    if unit in ("nm", "mm"):
        length_nm = to_nanometres(value, stated_unit)
        return length_nm if unit == "nm" or length_nm is None else length_nm / 1e6
    power = UNITS.get(unit, {}).get(FOLDED.get(stated_unit.casefold(), ""))
    return None if power is None else number(str(Decimal(repr(value)).scaleb(power)))  # 0.22 nA is 2.2e-10 A, exactly
