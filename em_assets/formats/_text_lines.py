"""Text from outside by lines and within limits, and the numbers in it, read strictly: for points and tilt files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from em_assets.errors import Malformed

MAX_LINE_CHARACTERS = 10_000
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
MAX_NUMBER_CHARACTERS = 400
MAX_ID = 2**63 - 1


def text_lines(raw: bytes, where: str, max_lines: int) -> Iterator[tuple[int, str]]:
    """Every line without its end, with its number from 1. A byte order mark is accepted.

    Raises Malformed, naming the line: not UTF-8, a NUL, a line that is too long, more lines than that.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Malformed(
            f"{where}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save it as UTF-8, or get it again."
        ) from None
    start, number = 0, 0
    while start < len(text):
        number += 1
        if number > max_lines:
            raise Malformed(f"{where} has more than {max_lines} lines, which no such file needs.")
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if end - start > MAX_LINE_CHARACTERS:
            raise Malformed(f"{where}, line {number}: longer than {MAX_LINE_CHARACTERS} characters; it is damaged.")
        line_text = text[start:end].removesuffix("\r")
        if "\0" in line_text:
            raise Malformed(f"{where}, line {number}: it has a NUL, which no text has; it is damaged: get it again.")
        yield number, line_text
        start = end + 1


def number_in(text: str, what: str, where: str, line: int) -> float:
    """A finite number, as programs of any kind write it. Raises Malformed, naming line, field and value."""
    text = text.strip()
    value = float(text) if len(text) <= MAX_NUMBER_CHARACTERS and NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise Malformed(f"{where}, line {line}: {what} is {shown(text)}, expected a finite number; correct the file.")
    return value


def whole_number_in(text: str, what: str, where: str, line: int) -> int:
    """A whole number, also one that is written with decimals (`3.000000`). Raises Malformed likewise."""
    value = number_in(text, what, where, line)
    if not value.is_integer() or abs(value) > MAX_ID:
        raise Malformed(f"{where}, line {line}: {what} is {shown(text)}, expected a whole number; correct the file.")
    return int(text) if text.strip().lstrip("+-").isdecimal() else int(value)


def is_number(text: str) -> bool:
    return len(text) <= MAX_NUMBER_CHARACTERS and NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def shown(text: str) -> str:
    """As an error quotes it: short, and on one line."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
