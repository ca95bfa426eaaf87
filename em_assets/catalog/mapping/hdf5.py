"""HDF5 files: what the attributes of a dataset and of the groups it lies in say. Shape and type are no attributes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from em_assets.catalog.mapping.files import FileReading, exact, readings
from em_assets.catalog.statements import Context, StatedDocument, Statement
from em_assets.formats.reader import Scalar

SIZES = ("element_size_um", "resolution", "voxel_size")
"""Sizes of a voxel along the dataset's axes, as `formats/_hdf5_structure.py` reads them."""


def read(document: StatedDocument, context: Context) -> Iterator[Statement]:
    for reading in readings(document, context):
        key = min(document.values, default="")
        yield from reading.state("file_format", "HDF5", key, stated="HDF5, by its attributes")
        path = _dataset(reading)
        units = {"element_size_um": ["um"] * 3} | {name: _units(reading, path, name) for name in SIZES[1:]}
        stated = [(f"{path}@{name}", units[name]) for name in SIZES if units[name]]
        for key, named in stated:
            sizes = _three(reading.values.get(key))
            if sizes:
                yield from _sizes(reading, key, sizes, named)
                break


def _dataset(reading: FileReading) -> str:
    """Path of the dataset: the one that the spec names, or the end of the way that the attributes lie on."""
    if reading.files.dataset is not None:
        return f"/{reading.files.dataset.strip('/')}"
    return max(
        (key.partition("@")[0] for key in reading.values if "@" in key), key=lambda path: (len(path), path), default="/"
    )


def _units(reading: FileReading, path: str, name: str) -> list[str]:
    """Of the three axes; one text counts for all."""
    for key in (f"{name}_unit", f"{name}_units", "unit", "units"):
        stated = reading.values.get(f"{path}@{key}")
        found = [text.strip() for text in _listed(stated)] if isinstance(stated, str) else []
        if len(found) in (1, 3) and all(found):
            return found * 3 if len(found) == 1 else found
    return []


def _sizes(reading: FileReading, key: str, sizes: list[str], units: list[str]) -> Iterator[Statement]:
    for axis, (size, unit) in enumerate(zip(sizes, units, strict=True)):
        yield from reading.state_voxel_size(axis, exact(size), unit, key)


def _three(stated: Scalar) -> list[str]:
    """The numbers of `3 x float64: 8.0, 8.0, 8.0`; empty for anything else."""
    found = _listed(stated) if isinstance(stated, str) and re.match(r"3 x (u?int|float)\d+: ", stated) else []
    return found if len(found) == 3 else []


def _listed(stated: str) -> list[str]:
    """An array of attributes as it is shown, `3 x object: nm, nm, nm`; or one text."""
    return re.sub(r"^\d+ x \S+: ", "", stated).split(", ")
