"""SerialEM's `.mdoc` files: what was noted of a series and of each of its images while it was taken.

Format: https://bio3d.colorado.edu/SerialEM/hlp/html/about_formats.htm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from em_assets.errors import Malformed
from em_assets.formats._text_lines import number_in, shown, text_lines, whole_number_in
from em_assets.formats._tilt_lines import MAX_LINES, MAX_SECTIONS, Leaf, pointer_token, scalar_of


@dataclass(frozen=True, slots=True)
class MdocSection:
    """One image, `[ZValue = n]`."""

    z_value: int
    values: Mapping[str, str]
    """As written: `TiltAngle` -> `2.013`."""
    line: int

    def number(self, key: str, where: str) -> float | None:
        """None where the section does not say. Raises Malformed if it is no number."""
        text = self.values.get(key)
        return None if text is None else number_in(text, key, f"{where}, section {self.z_value}", self.line)


@dataclass(frozen=True, slots=True)
class Mdoc:
    """What SerialEM wrote about a series while it was taken; sections stand in the order of the file."""

    values: Mapping[str, str]
    """Of the whole file."""
    titles: tuple[str, ...]
    """`[T = ...]`, without what fills them up."""
    sections: tuple[MdocSection, ...]
    others: Mapping[str, Mapping[str, str]]
    """Sections of other kinds, `[FrameSet = 0]`, by `FrameSet/0`."""

    def leaves(self) -> Iterator[Leaf]:
        """Numbers as numbers, everything else as text."""
        yield from ((f"/{pointer_token(key)}", scalar_of(text)) for key, text in self.values.items())
        yield from ((f"/T/{number}", title) for number, title in enumerate(self.titles))
        for name, values in self.others.items():
            yield from ((f"/{name}/{pointer_token(key)}", scalar_of(text)) for key, text in values.items())
        for section in self.sections:
            for key, text in section.values.items():
                yield f"/ZValue/{section.z_value}/{pointer_token(key)}", scalar_of(text)


def mdoc(raw: bytes, where: str) -> Mdoc:
    """Raises Malformed, naming the line: neither `key = value` nor `[kind = value]`, a key given two values."""
    titles: list[str] = []
    values: dict[str, str] = {}
    others: dict[str, dict[str, str]] = {}
    sections: dict[int, MdocSection] = {}
    here = values
    for line, text in text_lines(raw, where, MAX_LINES):
        if not text.strip():
            continue
        is_head, key, value = _pair(text.strip(), where, line)
        if not is_head:
            _add_value(here, key, value, f"{where}, line {line}")
        elif key == "T":
            titles.append(value)
        elif key == "ZValue":
            here = {}
            _add_section(sections, MdocSection(whole_number_in(value, key, where, line), here, line), where)
        else:
            here = others.setdefault(f"{pointer_token(key)}/{pointer_token(value)}", {})
    if not values and not sections:
        raise Malformed(f"{where} says nothing, expected an mdoc file of SerialEM; get it again.")
    return Mdoc(values, tuple(titles), tuple(sections.values()), others)


def _pair(text: str, where: str, line: int) -> tuple[bool, str, str]:
    """Whether it is `[key = value]`, key, value."""
    is_head = text.startswith("[")
    key, equals, value = (part.strip() for part in (text[1:-1] if is_head else text).partition("="))
    if not key or not equals or (is_head and not text.endswith("]")):
        raise Malformed(f"{where}, line {line}: {shown(text)} is neither key = value nor [kind = value].")
    return is_head, key, value


def _add_value(values: dict[str, str], key: str, value: str, here: str) -> None:
    before = values.setdefault(key, value)
    if before != value:
        raise Malformed(
            f"{here}: {shown(key)} is {shown(value)}, but was {shown(before)} before in the same section; correct it."
        )


def _add_section(sections: dict[int, MdocSection], section: MdocSection, where: str) -> None:
    before = sections.get(section.z_value)
    if before is not None:
        raise Malformed(
            f"{where}, line {section.line}: [ZValue = {section.z_value}] was there before, on line {before.line}; "
            "correct the file."
        )
    if len(sections) == MAX_SECTIONS:
        raise Malformed(f"{where} has more than {MAX_SECTIONS} sections, which no series has.")
    sections[section.z_value] = section
