"""A YAML file as values, with the line of every key: what `yaml.safe_load` gives, without its silences.

Anchors, aliases and merge keys are what curators write authors and dates with, and are followed; a key that is given
twice, an alias to what it stands in, and a file that grows out of proportion by its aliases are problems.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from em_assets.errors import Malformed

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML has it: ten times as fast, the same events and marks."""
MAX_FILE_BYTES = 4 * 2**20
MAX_NESTING = 40
MAX_VALUES = 200_000
"""After aliases are followed. The portal's own configs have a few thousand."""
STRING_TAG, MERGE_TAG = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
MAP_TAG, SEQ_TAG = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"

Key = tuple[str | int, ...]
"""Where a value stands: `("runs", 0, "sources")`."""


def shown_key(key: Key) -> str:
    """`runs[0].sources`, as problems name it."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".") or "the file"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong, and where. As text: `FILE:LINE: key.path: found, expected, what to do`."""

    file: str
    line: int
    key: str
    text: str
    is_error: bool = True
    """Otherwise it is said, and stops nothing."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key}: {self.text}"


class Problems(Malformed):
    """Everything that is wrong, one line for each."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True)
class Lined:
    """The values of a file and where they stand."""

    file: str
    values: Any
    lines: dict[Key, int]
    """Of a mapping's entry the line of its key. What came by an alias has the line where it is written."""
    problems: tuple[Problem, ...] = ()
    """Keys given twice (the last holds, as for `safe_load`), scalars that are no value."""

    def line(self, key: Key) -> int:
        """Of the deepest part of `key` that the file has."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def problem(self, key: Key, text: str) -> Problem:
        return Problem(self.file, self.line(key), shown_key(key), text)


def read_lined(file: Path) -> Lined:
    """The file's values. Raises Problems where it is no YAML mapping that can be read at all."""
    text = _read_text(file)
    name = str(file)
    try:
        check_events(name, text)
        node = yaml.compose(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _refusal(name, mark, f"not YAML ({error.problem}); correct it.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Problems(
            (_whole(name, line, f"holds the control character U+{error.character:04X}; remove it."),)
        ) from None
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "plain text" if node else "nothing"
        raise Problems((_whole(name, 1, f"found {found}, expected `key: value` lines such as `runs:`; correct it."),))
    builder = _Builder(name)
    values = builder.build(node, ())
    return Lined(name, values, builder.lines, tuple(builder.problems))


def _read_text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Malformed(
            f"{file} cannot be read ({error.strerror or error}); correct its path or permissions."
        ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise Malformed(f"{file} has more than {MAX_FILE_BYTES} bytes, which no ingestion config needs; divide it.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = f"found the byte 0x{raw[error.start]:02x}, expected UTF-8; save it as UTF-8."
        raise Problems((_whole(str(file), line, found),)) from None


def _whole(file: str, line: int, text: str) -> Problem:
    return Problem(file, line, shown_key(()), text)


def _refusal(file: str, mark: Any, text: str) -> Problems:
    """`mark` is PyYAML's, or None."""
    return Problems((_whole(file, mark.line + 1 if mark else 1, text),))


def check_events(file: str, text: str | bytes) -> None:
    """Refuses what is dangerous to build a tree of: deep nesting, and an alias to what it stands in."""
    open_anchors: list[str | None] = []
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent) and event.anchor in open_anchors:
            raise _refusal(file, event.start_mark, f"*{event.anchor} stands inside &{event.anchor}; write it out.")
        if isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            open_anchors.pop()
        if len(open_anchors) > MAX_NESTING:
            raise _refusal(file, event.start_mark, f"nested more than {MAX_NESTING} deep; no config needs that.")


@dataclass
class _Builder:
    """Values and lines from a tree of nodes."""

    file: str
    lines: dict[Key, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    _constructor: Any = field(default_factory=yaml.constructor.SafeConstructor)
    _seen: int = 0

    def build(self, node: yaml.Node, key: Key) -> Any:
        self.lines.setdefault(key, node.start_mark.line + 1)
        self._count(node)
        if isinstance(node, yaml.MappingNode) and node.tag == MAP_TAG:
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode) and node.tag == SEQ_TAG:
            return [self.build(item, (*key, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, key)

    def _count(self, node: yaml.Node) -> None:
        """Aliases of aliases double with every line: a small file may stand for more values than memory has."""
        self._seen += 1
        if self._seen > MAX_VALUES:
            raise _refusal(self.file, node.start_mark, f"more than {MAX_VALUES} values, counting aliases; divide it.")

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        seen: dict[str, int] = {}
        for name_node, _ in node.value:
            name, line = self._name(name_node), name_node.start_mark.line + 1
            if name in seen and name_node.tag != MERGE_TAG:
                text = f"given here and on line {seen[name]}, expected once; remove one of the two."
                self.problems.append(Problem(self.file, line, shown_key((*key, name)), text))
            seen[name] = line
        values: dict[str, Any] = {}
        for name, line, value in chain(self._merged(node, key), self._own(node)):
            self.lines[(*key, name)] = line
            values[name] = self.build(value, (*key, name))
        return values

    def _own(self, node: yaml.MappingNode) -> Iterator[tuple[str, int, yaml.Node]]:
        for name, value in node.value:
            if name.tag != MERGE_TAG:
                self._count(name)
                yield self._name(name), name.start_mark.line + 1, value

    def _merged(self, node: yaml.MappingNode, key: Key) -> Iterator[tuple[str, int, yaml.Node]]:
        """What `<<:` brings, the first of several last, as it wins."""
        for name, value in node.value:
            if name.tag != MERGE_TAG:
                continue
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for part in reversed(parts):
                self._count(part)
                if isinstance(part, yaml.MappingNode):
                    yield from self._merged(part, key)
                    yield from self._own(part)
                else:
                    text = "found no mapping, expected an alias to one after `<<:`; correct it."
                    self.problems.append(Problem(self.file, part.start_mark.line + 1, shown_key(key), text))

    def _name(self, node: yaml.Node) -> str:
        if isinstance(node, yaml.ScalarNode) and node.tag in (STRING_TAG, MERGE_TAG):
            return str(node.value)
        shown = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
        raise _refusal(self.file, node.start_mark, f"the key {shown} is not text to YAML; quote it if it is meant.")

    def _scalar(self, node: yaml.Node, key: Key) -> Any:
        try:
            return self._constructor.construct_document(node)
        except (yaml.MarkedYAMLError, ValueError, OverflowError) as error:
            reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            text = f"no value to YAML ({reason}); quote it if it is text."
            self.problems.append(Problem(self.file, node.start_mark.line + 1, shown_key(key), text))
            return None
