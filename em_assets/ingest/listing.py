"""What lies below a prefix of a store, and globs over it. Each folder is listed once, and matched in memory.

As on S3, a folder is what has files below it; names that begin with a dot are names like others. In a glob `*`, `?` and
`[...]` stay within one name, `**` alone between slashes is any number of folders.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from em_assets.store import Store

ESCAPED = re.compile(r"\[([*?[])\]")
"""A character that is meant as it is, as `glob.escape` writes it."""
WILD = re.compile(r"[*?[]")
ANY_FOLDERS = "**"


@dataclass
class _Folder:
    """Its entries by name: a folder, or None for a file. On S3 a name may be both: the file is then in `files`."""

    folders: dict[str, _Folder] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    def names(self) -> list[str]:
        return sorted({*self.folders, *self.files})


class Listing:
    """Paths are relative to the prefix, without slashes at their ends."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store = store
        self.prefix = prefix
        self._root = _Folder()
        self._listed: list[tuple[str, ...]] = []

    def path(self, relative: str) -> str:
        """As the store knows it."""
        return "/".join(part for part in (self.prefix, relative) if part)

    def size_bytes(self, relative: str) -> int | None:
        """None for what is no file. What a glob has found is known without asking again."""
        *parents, name = relative.split("/")
        folder: _Folder | None = self._root
        for parent in parents:
            folder = folder.folders.get(parent) if folder else None
        return folder.files.get(name) if folder else None

    def glob(self, pattern: str, scope: str = "") -> list[str]:
        """Files and folders that match, in order. `scope` is a folder that the pattern's matches lie in: all of it is
        listed, once for all patterns of that scope.
        """
        parts = tuple(part for part in pattern.split("/") if part not in ("", "."))
        if not parts:
            return []
        self._list(tuple(part for part in scope.split("/") if part not in ("", ".")))
        return sorted(set(_matches(self._root, parts, "", set())))

    def _list(self, scope: tuple[str, ...]) -> None:
        if any(scope[: len(known)] == known for known in self._listed):
            return
        start = len(self.prefix) + 1 if self.prefix else 0
        for path, size in self.store.list(self.path("/".join(scope))):
            self._add(path[start:], size)
        self._listed.append(scope)

    def _add(self, relative: str, size: int) -> None:
        *parents, name = relative.split("/")
        folder = self._root
        for parent in parents:
            folder = folder.folders.setdefault(parent, _Folder())
        folder.files[name] = size


def literal_folder(pattern: str) -> str:
    """The folder that all matches of a glob lie in, as far as the glob says it without wildcards."""
    known: list[str] = []
    for part in pattern.split("/")[:-1]:
        name = _literal(part)
        if name is None:
            break
        known.append(name)
    return "/".join(known)


def _literal(part: str) -> str | None:
    """The one name that a part of a glob stands for, None if it has wildcards."""
    return None if WILD.search(ESCAPED.sub("", part)) else ESCAPED.sub(r"\1", part)


def _matches(
    folder: _Folder, parts: tuple[str, ...], above: str, seen: set[tuple[int, tuple[str, ...]]]
) -> Iterator[str]:
    """`seen` keeps several `**` from walking the same folder again for every way there."""
    if (id(folder), parts) in seen:
        return
    seen.add((id(folder), parts))
    part, rest = parts[0], parts[1:]
    if part == ANY_FOLDERS:
        yield from _matches(folder, rest or ("*",), above, seen)
        for name, below in folder.folders.items():
            yield from _matches(below, parts, f"{above}{name}/", seen)
        return
    for name in _names(folder, part):
        if not rest:
            yield above + name
        elif name in folder.folders:
            yield from _matches(folder.folders[name], rest, f"{above}{name}/", seen)


def _names(folder: _Folder, part: str) -> list[str]:
    literal = _literal(part)
    if literal is not None:
        return [literal] if literal in folder.folders or literal in folder.files else []
    # fnmatch's translation never goes back behind a `*` that has matched: no glob is slow
    matches = re.compile(fnmatch.translate(part)).match
    return [name for name in folder.names() if matches(name)]
