"""Templates of a config: `{run_name}` stands for a variable, `{{` and `}}` for braces, and that is all.

Python's own `str.format` would follow attributes and indices and pad to any width for whoever wrote the config.
`float {column}` and `int {column}`, which metadata and voxel spacings may hold, give a number.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

NAME = re.compile(r"[A-Za-z0-9_-]+")
TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
TYPED = re.compile(r"(float|int) *(?=\{)(?!\{\{)")
MAX_EXPANDED = 4096
"""Characters that variables may add. S3 keys have at most 1024; more is a mistake or an attack."""


class TemplateError(ValueError):
    """What is wrong, to stand after file, line and key: `found, expected, what to do`."""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed text. `parts` alternate as they stand: plain text, or the `Name` of a variable."""

    text: str
    parts: tuple[str | Name, ...]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(part.name for part in self.parts if isinstance(part, Name))

    def expand(self, variables: Mapping[str, str]) -> str:
        """The text with every variable's value. Raises TemplateError for one that is not there."""
        return self._expand(variables, lambda value: value)

    def expand_glob(self, variables: Mapping[str, str]) -> str:
        """Likewise a glob: what stands in a variable is meant as it is, also `*`, `?` and `[`."""
        return self._expand(variables, glob.escape)

    def _expand(self, variables: Mapping[str, str], quoted: Callable[[str], str]) -> str:
        pieces = [part if isinstance(part, str) else quoted(_value(part.name, variables)) for part in self.parts]
        if sum(map(len, pieces)) > len(self.text) + MAX_EXPANDED:
            raise TemplateError(f"{self.text!r} grows by more than {MAX_EXPANDED} characters; shorten its variables.")
        return "".join(pieces)


@dataclass(frozen=True, slots=True)
class Name:
    """Of a variable."""

    name: str


def parse(text: str) -> Template:
    """Raises TemplateError for anything in braces that is not the name of a variable."""
    parts: list[str | Name] = []
    for token in TOKEN.finditer(text):
        if token[1] is not None:
            if not NAME.fullmatch(token[1]):
                raise TemplateError(
                    f"found {{{token[1]}}} in {text!r}, expected a name of letters, digits, _ and - in the braces; "
                    "correct it."
                )
            parts.append(Name(token[1]))
        elif token[0] in ("{", "}"):
            raise TemplateError(
                f"found a single {token[0]} in {text!r}, expected pairs as in {{run_name}}; write {token[0] * 2} for "
                "the character itself."
            )
        else:
            parts.append(token[0][:1] if token[0] in ("{{", "}}") else token[0])
    return Template(text, tuple(parts))


def escape(text: str) -> str:
    """The template that stands for exactly this text."""
    return text.replace("{", "{{").replace("}", "}}")


def is_template(text: str) -> bool:
    """Whether it names a variable. Raises TemplateError."""
    return bool(parse(text).names)


def expand_typed(text: str, variables: Mapping[str, str]) -> str | float | int:
    """A metadata value: a number for `float {column}` and `int {column}`, else text. Raises TemplateError."""
    typed = TYPED.match(text)
    if typed is None:
        return parse(text).expand(variables)
    value = parse(text[typed.end() :]).expand(variables).strip()
    try:
        number = float(value) if typed[1] == "float" else int(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        expected = "a finite number" if typed[1] == "float" else "a whole number"
        raise TemplateError(f"{text!r} found {value!r} in the run map, expected {expected}; correct the run map.")
    return number


def _value(name: str, variables: Mapping[str, str]) -> str:
    if name not in variables:
        raise TemplateError(f"{{{name}}} has no value here; known are {shown_names(variables)}.")
    return variables[name]


def shown_names(names: Mapping[str, str] | frozenset[str]) -> str:
    """A list for a person, not longer than a line or two."""
    every = sorted(names)
    return ", ".join(every[:30]) + (f" and {len(every) - 30} more" if len(every) > 30 else "")
