"""Which entities a plan is for: `--filter-<type>-name RE` and `--exclude-<type>-name RE`, as the portal has them.

An entity is left out if any regular expression that excludes its type matches the beginning of its name, or if none of
those that filter its type does. What belongs to an entity that is left out is left out with it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from em_assets.errors import Malformed
from em_assets.ingest.schema import KINDS

OPTION = re.compile(r"--(filter|exclude)-([a-z-]+)-name(?:=(.*))?", re.DOTALL)
MAX_SUBJECT = 2048
"""Characters of what a regular expression is matched against: a bucket's name and a key of S3 have fewer."""

Patterns = Mapping[str, tuple[re.Pattern[str], ...]]


@dataclass(frozen=True)
class Filters:
    """By kind."""

    include: Patterns = field(default_factory=lambda: MappingProxyType({}))
    exclude: Patterns = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_empty(self) -> bool:
        return not self.include and not self.exclude

    def allow(self, kind: str, names: Iterable[str]) -> bool:
        """Whether an entity is wanted. One of several files (frames, an alignment) has the names of its files."""
        known = list(names)
        excluding, including = self.exclude.get(kind, ()), self.include.get(kind)
        if any(matches(regex, name) for regex in excluding for name in known):
            return False
        return including is None or any(matches(regex, name) for regex in including for name in known)


def matches(regex: re.Pattern[str], name: str) -> bool:
    """At the beginning of a name. Raises Malformed for one that is too long to be tried."""
    return regex.match(bounded(name)) is not None


def bounded(subject: str) -> str:
    """What a regular expression may be tried on. Raises Malformed."""
    if len(subject) > MAX_SUBJECT:
        raise Malformed(
            f"{subject[:60]}... has {len(subject)} characters, expected at most {MAX_SUBJECT} of what a regular "
            "expression is matched against; shorten the name."
        )
    return subject


def read_filters(arguments: Sequence[str]) -> Filters:
    """From words of a command line. Raises Malformed for any that is no such option, with the nearest."""
    include: dict[str, tuple[re.Pattern[str], ...]] = {}
    exclude: dict[str, tuple[re.Pattern[str], ...]] = {}
    words = iter(arguments)
    for word in words:
        option = OPTION.fullmatch(word)
        kind = option[2].replace("-", "_") if option else ""
        if option is None or kind not in KINDS:
            raise Malformed(f"there is no option {word}{_nearest(word)}; `em-assets ingest --help` shows all.")
        value = option[3] if option[3] is not None else next(words, None)
        if value is None:
            raise Malformed(f"{word} is given without a regular expression, expected one for the names; add it.")
        target = include if option[1] == "filter" else exclude
        target[kind] = (*target.get(kind, ()), _compiled(word, value))
    return Filters(MappingProxyType(include), MappingProxyType(exclude))


def option_names() -> list[str]:
    """Of one half: `--filter-...`; the other begins with `--exclude-`."""
    return [f"--filter-{name.replace('_', '-')}-name" for name in KINDS]


def _nearest(word: str) -> str:
    options = [*option_names(), *(name.replace("filter", "exclude", 1) for name in option_names())]
    near = difflib.get_close_matches(word.partition("=")[0], options, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _compiled(option: str, value: str) -> re.Pattern[str]:
    try:
        return re.compile(value)
    except re.error as error:
        raise Malformed(f"{option} {value!r} is no regular expression ({error}); correct it.") from None
