"""JSON from outside: read strictly and within limits, and its scalars by JSON pointer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from em_assets.errors import Malformed
from em_assets.formats.reader import Scalar

MAX_JSON_BYTES = 16 * 2**20
MAX_DEPTH = 64
MAX_DIGITS = 400
MAX_KEY_CHARACTERS = 1_000


def parse_json(raw: bytes | bytearray | memoryview, where: str) -> Any:
    """The document. Raises Malformed, naming the line and column: not UTF-8, not JSON, NaN, a key given twice,
    nested deeper than 64, a number of more than 400 digits, a key of more than 1,000 characters, or larger than
    16 MiB. A byte order mark is accepted.
    """
    if len(raw) > MAX_JSON_BYTES:
        raise Malformed(f"{where} has {len(raw)} bytes, more than {MAX_JSON_BYTES}, which no such document needs.")
    try:
        text = bytes(raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = bytes(raw).count(b"\n", 0, error.start) + 1
        raise Malformed(f"{where}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}).") from None
    _require_shallow(text, where)
    if found := re.search(rf"(?<!\d)\d{{{MAX_DIGITS + 1}}}", text):
        raise Malformed(f"{where}, {_place(text, found.start())}: a number of more than {MAX_DIGITS} digits.")
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except json.JSONDecodeError as error:
        shown = text[:80].encode("unicode_escape").decode()
        raise Malformed(
            f"{where}, line {error.lineno} column {error.colno}: not JSON ({error.msg}); it begins {shown!r}."
        ) from None
    except ValueError as error:
        raise Malformed(f"{where}: {error}.") from None


def json_leaves(value: Any, pointer: str = "") -> Iterator[tuple[str, Scalar]]:
    """Every scalar of a JSON document with its JSON pointer (RFC 6901)."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from json_leaves(item, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from json_leaves(item, f"{pointer}/{index}")
    else:
        yield pointer, value


def _require_shallow(text: str, where: str) -> None:
    depth, in_string = 0, False
    for match in re.finditer(r'\\.|["\[\]{}]', text):
        found = match[0]
        if found == '"':
            in_string = not in_string
        elif in_string or found[0] == "\\":
            continue
        elif found in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Malformed(f"{where}, {_place(text, match.start())}: nested more than {MAX_DEPTH} deep.")
        else:
            depth -= 1


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if len(key) > MAX_KEY_CHARACTERS:
            raise ValueError(f"a key of more than {MAX_KEY_CHARACTERS} characters, {key[:80]!r}...")
        if key in found:
            raise ValueError(f"key {key[:80]!r} is given twice")
        found[key] = value
    return found


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"line {line} column {position - text.rfind(chr(10), 0, position)}"
