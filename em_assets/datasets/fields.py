"""The types of a spec's values: triples, names, addresses, texts. Each says what it accepts when it refuses."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

MAX_NM = 1e12
"""A kilometre. More is a slip, and arithmetic on it would lose the nanometres."""
MIN_NM = 1e-6
"""A millionth of a nanometre, for sizes. Less is a slip, too."""
NAME_PATTERN = r"^[a-z][a-z0-9_]{0,62}$"
ITEM_BYTES = {"uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "int8": 1, "int16": 2, "int32": 4, "float32": 4}
WIDENED = {"float16": "float32"}
"""What a file may hold and a spec may not name, and what it is stored as: few tools read half precision."""


class AtKey(ValueError):
    """What is wrong with the value of one key, found by a check that sees several."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def _three(fits: Callable[[Any], bool], expected: str) -> BeforeValidator:
    """Judges a triple as a whole: a person sees what the three mean, not which of them has which type."""

    def check(value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) == 3 and all(fits(item) for item in value):
            return value
        raise ValueError(f"expected {expected}")

    return BeforeValidator(check)


def _is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most  # a bool is an int, but not a count


def _is_number(value: Any, above: float) -> bool:
    return type(value) in (int, float) and above < value <= MAX_NM


def web_address(value: str) -> str:
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"not a web address ({error})") from None
    if not host:
        raise ValueError("not a web address: it names no host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a spec is published: it must not hold a user or a password")
    return value


def _one_line(value: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value):
        raise ValueError("expected one line, without line breaks, tabs and control characters")
    return value


VoxelIndex = Annotated[int, Field(ge=-(2**40), le=2**40, strict=True)]
PositiveInt = Annotated[int, Field(gt=0, le=2**31, strict=True)]
Nanometres = Annotated[float, Field(ge=MIN_NM, le=MAX_NM)]
Coordinate = Annotated[float, Field(gt=-MAX_NM, le=MAX_NM)]
Shape = Annotated[
    tuple[PositiveInt, PositiveInt, PositiveInt],
    _three(lambda v: _is_whole(v, 1, 2**31), "three positive whole numbers of voxels, (z, y, x)"),
]
VoxelSizeNm = Annotated[
    tuple[Nanometres, Nanometres, Nanometres],
    _three(
        lambda v: _is_number(v, 0) and v >= MIN_NM,
        "three positive numbers in nanometres, (z, y, x), such as [8.0, 8.0, 8.0]",
    ),
]
VoxelOrigin = Annotated[
    tuple[VoxelIndex, VoxelIndex, VoxelIndex],
    _three(lambda v: _is_whole(v, -(2**40), 2**40), "three whole numbers of voxels, (z, y, x)"),
]
OriginNm = Annotated[
    tuple[Coordinate, Coordinate, Coordinate],
    _three(lambda v: _is_number(v, -MAX_NM), "three numbers in nanometres, (z, y, x)"),
]
Fraction = Annotated[float, Field(gt=0, le=1, strict=True)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)]
Line = Annotated[Text, AfterValidator(_one_line)]
Doi = Annotated[str, Field(pattern=r"^10\.\d{4,9}/\S+$")]
"""Bare: 10.7554/eLife.57443."""


class SpecModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


Dtype = Literal["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float32"]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
WebAddress = Annotated[str, Field(pattern=r"^https?://[^\s?#]+$"), AfterValidator(web_address)]
"""Of a folder or file; no query, because paths are joined to it."""
