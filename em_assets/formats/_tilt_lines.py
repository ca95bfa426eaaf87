"""What readers of tilt-series side files share: rows of words, and values as the metadata has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from em_assets.errors import Malformed
from em_assets.formats._text_lines import is_number, number_in, text_lines
from em_assets.formats.reader import Scalar

MAX_LINES = 200_000
MAX_SECTIONS = 10_000

Leaf = tuple[str, Scalar]


def lines_of_words(raw: bytes, where: str, comments: str = "") -> Iterator[tuple[int, list[str]]]:
    """Lines that are not blank and do not begin with one of `comments`."""
    found = 0
    for line, text in text_lines(raw, where, MAX_LINES):
        words = text.split()
        if not words or words[0][0] in comments:
            continue
        found += 1
        if found > MAX_SECTIONS:
            raise Malformed(f"{where}, line {line}: more than {MAX_SECTIONS} rows, which no tilt series has.")
        yield line, words


def numbers_in(words: list[str], where: str, line: int) -> tuple[float, ...]:
    return tuple(number_in(word, "a value", where, line) for word in words)


def require_some(found: Sequence[object], what: str, where: str) -> None:
    if not found:
        raise Malformed(f"{where} has no {what}; it is empty or of another format: get it again.")


def scalar_of(text: str) -> Scalar:
    """A number if it is one, else the text."""
    if not is_number(text):
        return text
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else float(text)


def pointer_token(name: str) -> str:
    """As a JSON pointer has it (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
