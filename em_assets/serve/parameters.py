"""The parameters of a block's address, read strictly: what is unknown, given twice or not understood is refused.

What they mean is said once, in `openapi.py`; whether the volume has such a block is for the volume to say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from em_assets.blocks.geometry import Nm3
from em_assets.datasets.fields import MAX_NM, MIN_NM, NAME_PATTERN
from em_assets.volume import Zyx, zyx

WHOLE = re.compile(r"-?[0-9]{1,15}", re.ASCII)
NUMBER = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
LONGEST_NUMBER = 40
LONGEST_QUERY = 2000
DTYPES = (
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)
DEFAULT_SHAPE: Zyx = (128, 128, 128)
SHOWN = 60
"""Characters of a wrong value that are repeated."""


class BadRequest(ValueError):
    """A request that breaks its own rules; the text says which and how to ask."""


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """A block as it is asked for."""

    shape: Zyx = DEFAULT_SHAPE
    start: Zyx | None = None
    center_nm: Nm3 | None = None
    labels: str | None = None
    """The id of the volume whose labels are wanted with it."""
    how: dict[str, Any] = field(default_factory=dict)
    """Everything else that `Volume.read` takes."""
    what: str = "data"
    format: str = "npy"

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)


def parse_block(items: Iterable[tuple[str, str]]) -> BlockRequest:
    """From the (name, value) pairs of a query. Raises BadRequest."""
    given = _each_once(items, BLOCK_PARAMETERS)
    values = {name: BLOCK_PARAMETERS[name](name, text) for name, text in given.items()}
    _refuse_both(values, "level", "voxel_size_nm")
    if "voxel_size_nm" in values and "center_nm" not in values:
        raise BadRequest("voxel_size_nm goes with center_nm: a start counts voxels of a level, so give level with it.")
    if "resample" in values and "voxel_size_nm" not in values:
        raise BadRequest("resample is for voxel_size_nm: give the voxel size to resample to, or leave resample out.")
    if values.get("what", "data").startswith("labels") and "labels" not in values:
        raise BadRequest("what=labels needs labels=VOLUME: name the volume whose labels are wanted.")
    start, center_nm = _place(values)
    rest = ("shape", "labels", "what", "format")
    chosen = {name: values.pop(name) for name in rest if name in values}
    return BlockRequest(start=start, center_nm=center_nm, how=values, **chosen)


def parse_view(items: Iterable[tuple[str, str]]) -> tuple[Nm3 | None, Zyx]:
    """Where a viewer is to look, in nanometres, and the shape of the block to draw there. Raises BadRequest."""
    given = _each_once(items, VIEW_PARAMETERS)
    values = {name: VIEW_PARAMETERS[name](name, text) for name, text in given.items()}
    if "shape" in values and "at" not in values:
        raise BadRequest("shape is that of the block around a place: give at=z,y,x in nanometres, too.")
    return values.get("at"), values.get("shape", DEFAULT_SHAPE)


def parse_nothing(items: Iterable[tuple[str, str]]) -> None:
    """For what takes no parameters. Raises BadRequest."""
    _each_once(items, {})


def parse_nm3(name: str, text: str) -> Nm3:
    """`z,y,x` as three numbers. Raises BadRequest."""
    parts = text.split(",")
    if len(parts) != 3:
        raise BadRequest(f"{name}={_short(text)} must be three numbers, z,y,x.")
    z, y, x = (_number(name, part) for part in parts)
    if max(abs(z), abs(y), abs(x)) > MAX_NM:
        raise BadRequest(f"{name}={_short(text)} is further than {MAX_NM:g} nm away.")
    return z, y, x


def parse_shape(name: str, text: str) -> Zyx:
    """One number for all three sides, or three, z,y,x. Raises BadRequest."""
    sides = [_whole(name, part) for part in text.split(",")]
    if len(sides) not in (1, 3) or min(sides) < 1:
        raise BadRequest(f"{name}={_short(text)} must be one number of voxels, or three, z,y,x, none below 1.")
    return zyx(sides * 3 if len(sides) == 1 else sides)


def _place(values: dict[str, Any]) -> tuple[Zyx | None, Nm3 | None]:
    """Takes `start` (or z, y and x) or `center_nm` out of the values."""
    start, center_nm = values.pop("start", None), values.pop("center_nm", None)
    axes = [values.pop(axis, None) for axis in "zyx"]
    if any(n is not None for n in axes):
        if None in axes:
            raise BadRequest("z, y and x are given together or not at all: all three, or start=z,y,x.")
        if start is not None:
            raise BadRequest("the first voxel is given twice, as start and as z, y and x; leave one of them out.")
        start = zyx(axes)
    if (start is None) == (center_nm is None):
        raise BadRequest("say where: either start=z,y,x (voxels of the level) or center_nm=z,y,x (nanometres).")
    return start, center_nm


def _each_once(items: Iterable[tuple[str, str]], known: dict[str, Callable[[str, str], Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, text in items:
        if name not in known:
            takes = ", ".join(known) if known else "none"
            raise BadRequest(f"there is no parameter {_short(name)}; this address takes {takes}.")
        if name in found:
            raise BadRequest(f"{name} is given twice; give it once.")
        found[name] = text
    return found


def _refuse_both(values: dict[str, Any], one: str, other: str) -> None:
    if one in values and other in values:
        raise BadRequest(f"{one} and {other} say the same in two ways; leave one of them out.")


def _start(name: str, text: str) -> Zyx:
    parts = text.split(",")
    if len(parts) != 3:
        raise BadRequest(f"{name}={_short(text)} must be three whole numbers of voxels, z,y,x.")
    return zyx([_whole(name, part) for part in parts])


def _whole(name: str, text: str) -> int:
    if not WHOLE.fullmatch(text):
        raise BadRequest(f"{name}: {_short(text)} is not a whole number.")
    return int(text)


def _level(name: str, text: str) -> int:
    number = _whole(name, text)
    if number < 0:
        raise BadRequest(f"{name}={number} must be 0, the finest, or more.")
    return number


def _number(name: str, text: str) -> float:
    if len(text) > LONGEST_NUMBER or not NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise BadRequest(f"{name}: {_short(text)} is not a number.")
    return float(text)


def _voxel_size(name: str, text: str) -> Nm3:
    sizes = parse_nm3(name, text if "," in text else ",".join([text] * 3))
    if min(sizes) < MIN_NM:
        raise BadRequest(f"{name}={_short(text)} must be {MIN_NM:g} or more: one number of nanometres or three, z,y,x.")
    return sizes


def _normalize(name: str, text: str) -> str | tuple[float, float]:
    if "," not in text:
        return _one_of("range", "standard", "percentile")(name, text)
    limits = [_number(name, part) for part in text.split(",")]
    if len(limits) != 2 or limits[0] >= limits[1]:
        raise BadRequest(
            f"{name}={_short(text)} must be two values, the one that becomes 0 below the one that becomes 1."
        )
    return limits[0], limits[1]


def _id(name: str, text: str) -> str:
    names = text.split("/")
    if len(names) > 2 or not all(re.fullmatch(NAME_PATTERN, name) for name in names):
        raise BadRequest(f"{name}={_short(text)} must name a volume, as /v1/datasets lists them.")
    return text


def _flag(name: str, text: str) -> bool:
    return _one_of("true", "false")(name, text) == "true"


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if text not in choices:
            raise BadRequest(f"{name}={_short(text)} must be one of {', '.join(choices)}.")
        return text

    return parse


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


BLOCK_PARAMETERS: dict[str, Callable[[str, str], Any]] = {
    "start": _start,
    "z": _whole,
    "y": _whole,
    "x": _whole,
    "center_nm": parse_nm3,
    "shape": parse_shape,
    "level": _level,
    "voxel_size_nm": _voxel_size,
    "resample": _flag,
    "pad": _one_of("constant", "edge", "reflect"),
    "fill": _number,
    "missing": _one_of("raise", "mask", "fill"),
    "dtype": _one_of(*DTYPES),
    "normalize": _normalize,
    "labels": _id,
    "what": _one_of("data", "valid", "labels", "labels_valid"),
    "format": _one_of("npy", "raw"),
}
VIEW_PARAMETERS: dict[str, Callable[[str, str], Any]] = {"at": parse_nm3, "shape": parse_shape}
