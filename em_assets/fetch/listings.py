"""What a server lists, and which of its names may become paths in the store.

A listing is text from outside: it can leave its folder, name a file twice or leave one out. Names of every origin
(index pages, FTP, S3 keys, archives, APIs) become paths here and nowhere else.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote, urljoin, urlsplit

from em_assets.errors import Malformed
from em_assets.fetch.receipts import RECEIPT_SUFFIX
from em_assets.fetch.replies import safe_url
from em_assets.store import DOWNLOAD_SUFFIX, PARTIAL_SUFFIX

MAX_INDEX_BYTES = 32 * 2**20
"""An index page of 100,000 files has about 15 MB."""
MAX_PART_BYTES = 200
"""File systems take 255; the rest is for what is added to names of partial files and receipts."""
MAX_PATH_BYTES = 800
"""S3 takes 1024 for a whole key."""
OWN_SUFFIXES = (PARTIAL_SUFFIX, DOWNLOAD_SUFFIX, RECEIPT_SUFFIX)
"""What this package writes beside a file under the file's own name."""
WINDOWS_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)

_TAG = re.compile(r"<([^<>]*)>")
_HREF = re.compile(r"""(?:^|\s)href\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_LIST_TAGS = ("pre", "table", "ul")
"""Apache, nginx, lighttpd and Python keep the rows in one of these, and a page's own header and footer outside."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One row of a folder's index page."""

    name: str
    is_folder: bool


@dataclass(frozen=True, slots=True)
class ListingCheck:
    """A listing against what is known from elsewhere."""

    found: int
    expected: int | None
    """The publisher's own count, where there is one."""
    lacking: tuple[str, ...]
    """Pinned names that the listing does not have: the server may give them all the same."""
    unpinned: tuple[str, ...]
    """Names the listing has beyond the pinned ones."""

    @property
    def agrees(self) -> bool:
        return not self.lacking and not self.unpinned and self.expected in (None, self.found)

    def __str__(self) -> str:
        count = f"{self.found} files" + (
            "" if self.expected is None else f" of the {self.expected} its publisher counts"
        )
        lacking = f", lacks {_some(self.lacking)}" if self.lacking else ""
        unpinned = f", has {_some(self.unpinned)} that nobody expected" if self.unpinned else ""
        return f"the listing shows {count}{lacking}{unpinned}"


def compare_with_count(found: Iterable[str], expected_count: int | None, pinned: Collection[str] = ()) -> ListingCheck:
    """What a listing lacks, and has too much, by the publisher's count and a pinned list (none: only the count).

    A load-balanced server was seen to leave a file out of its listing that it still sent: names that are `lacking`
    are to be asked for, not given up.
    """
    names = set(found)
    wanted = set(pinned)
    unpinned = names - wanted if wanted else set()
    return ListingCheck(len(names), expected_count, tuple(sorted(wanted - names)), tuple(sorted(unpinned)))


def parse_index(page: bytes, base_url: str) -> list[IndexEntry]:
    """The rows of the index page (Apache, nginx) of the folder at `base_url`, in the page's order.

    Links for sorting and to folders above are not rows. Raises Malformed if the page is no index, or names a row that
    leads out of the folder, holds control characters or comes twice.
    """
    base = base_url if base_url.endswith("/") else f"{base_url}/"
    if len(page) > MAX_INDEX_BYTES:
        raise Malformed(f"{safe_url(base)} is an index of {len(page)} bytes, expected at most {MAX_INDEX_BYTES}.")
    entries: dict[str, IndexEntry] = {}
    for href in _rows(page.decode("utf-8", "replace"), safe_url(base)):
        entry = _entry(base, href)
        if entry is None:
            continue
        if entry.name in entries:
            raise Malformed(f"{safe_url(base)} lists {entry.name!r} twice; look at the page before reading on.")
        entries[entry.name] = entry
    return list(entries.values())


def _rows(text: str, shown: str) -> list[str]:
    """The `href` of every link with a text inside the page's lists."""
    pieces = _TAG.split(text)  # text, tag, text, tag, ...
    rows: list[str] = []
    depth = lists = 0
    link: str | None = None
    for position in range(1, len(pieces), 2):
        tag = pieces[position]
        name = (tag.split(None, 1) or [""])[0].lower()
        if name in _LIST_TAGS:
            depth, lists = depth + 1, lists + 1
        elif name.removeprefix("/") in _LIST_TAGS:
            depth = max(0, depth - 1)
        elif name == "a" and depth:
            link = _href(tag, shown)
        elif name == "/a":
            link = None
        if link is not None and pieces[position + 1].strip():  # a link around an icon alone repeats its row's
            rows.append(link)
            link = None
    if not lists:
        raise Malformed(f"{shown} is not a folder's index page; check the address.")
    return rows


def _href(tag: str, shown: str) -> str | None:
    found = _HREF.search(tag)
    if found is None:
        if "href" in tag.lower():
            raise Malformed(f"{shown} has a link that cannot be read ({tag[:80]!r}); look at the page.")
        return None
    return html.unescape(next(value for value in found.groups() if value is not None)).strip(" ")


def _entry(base: str, href: str) -> IndexEntry | None:
    """The row a link stands for; None for links that sort the page or lead to a folder above."""
    shown = f"{safe_url(base)} lists {href[:200]!r}"
    _require_plain(href, shown)
    try:
        here, there = urlsplit(base), urlsplit(urljoin(base, href))
    except ValueError:
        raise Malformed(f"{shown}, which is not an address; look at the page before reading on.") from None
    folder, path = unquote(here.path), unquote(there.path)
    if (there.scheme, there.netloc) != (here.scheme, here.netloc):
        raise Malformed(f"{shown}, which leads to another server; look at the page before reading on.")
    if folder.startswith(path) and path.endswith("/"):
        return None
    name = path.removeprefix(folder).removesuffix("/")
    if not path.startswith(folder) or "/" in name or name in ("", ".", ".."):
        raise Malformed(f"{shown}, which lies outside the folder; look at the page before reading on.")
    if there.query or there.fragment:
        raise Malformed(f"{shown}, which is more than a name; look at the page before reading on.")
    _require_plain(name, shown)
    return IndexEntry(name, path.endswith("/"))


def _require_plain(text: str, shown: str) -> None:
    """Raises Malformed for what no honest name holds: urllib would silently drop some of it."""
    if any(unicodedata.category(c) == "Cc" for c in text) or "\N{REPLACEMENT CHARACTER}" in text:
        raise Malformed(f"{shown}, which holds control characters or is not UTF-8; look at the page before reading on.")


def safe_relative_path(name: str) -> str:
    """The path in the store, below its dataset's folder, for a name from outside with `/` between its parts.

    Two names never give one path, and `urllib.parse.unquote` gives the name back: only a leading `-`, Windows' device
    names, a `.` or space at the end of a part, and `%` itself are percent-encoded. Raises Malformed for a name that
    leads elsewhere, is too long or cannot be shown.
    """
    for refused, why in (
        (not name or name.startswith("/"), "is not a path below a folder"),
        (any(part in ("", ".", "..") for part in name.split("/")), "has empty, `.` or `..` parts"),
        ("\\" in name, "has a backslash, which parts folders on some systems"),
        (any(unicodedata.category(c) in _UNSHOWABLE for c in name), "has characters that cannot be shown"),
        (re.match(r"[A-Za-z]:", name) is not None, "begins like a drive"),
        (
            any(part.endswith(OWN_SUFFIXES) for part in name.casefold().split("/")),
            f"has a part that ends in one of {', '.join(OWN_SUFFIXES)}, which are kept for own files",
        ),
    ):
        if refused:
            raise Malformed(f"the name {name[:300]!r} {why}; such a file is not stored.")
    path = "/".join(_safe_part(part) for part in name.split("/"))
    longest = max(len(part.encode()) for part in path.split("/"))
    if longest > MAX_PART_BYTES or len(path.encode()) > MAX_PATH_BYTES:
        raise Malformed(
            f"the name {name[:60]!r}... has {len(path.encode())} bytes, {longest} in one part, expected at most "
            f"{MAX_PATH_BYTES}, {MAX_PART_BYTES} in one part; such a file is not stored."
        )
    return path


_UNSHOWABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control, format (which can turn a name around on the screen), lone surrogates, line breaks."""


def _safe_part(part: str) -> str:
    encoded = part.replace("%", "%25")
    if encoded.startswith("-") or WINDOWS_DEVICES.fullmatch(encoded):
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if encoded.endswith((".", " ")):
        encoded = f"{encoded[:-1]}%{ord(encoded[-1]):02X}"
    return encoded


@dataclass(slots=True)
class PathClaims:
    """The names of one folder become paths one after the other, and no two of them one file on any system."""

    _files: dict[str, str] = field(default_factory=dict)
    _folders: dict[str, str] = field(default_factory=dict)

    def claim(self, name: str) -> str:
        """`safe_relative_path(name)`.

        Raises Malformed if an earlier name differs in letter case or the encoding of accents only, or is a folder where
        this one is a file, or the other way round.
        """
        path = safe_relative_path(name)
        key = _folded(path)
        above = [key[:end] for end in range(len(key)) if key[end] == "/"]
        other = self._files.get(key) or self._folders.get(key)
        other = other or next((self._files[folder] for folder in above if folder in self._files), None)
        if other is not None:
            raise Malformed(
                f"the names {other[:300]!r} and {name[:300]!r} are one path on some systems, so that one would "
                "overwrite the other; leave one of them out of the dataset."
            )
        self._files[key] = name
        for folder in above:
            self._folders.setdefault(folder, name)
        return path


def _folded(path: str) -> str:
    """Equal for paths that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name[:100]) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
