"""XML, HTML and plain text from outside as (path, value), within limits: no DTD, no entities, nothing is fetched."""

from __future__ import annotations

import codecs
import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

from em_assets.errors import Malformed
from em_assets.formats.reader import Scalar

MAX_DEPTH = 64
MAX_ELEMENTS = 100_000
"""And attributes, together."""
MAX_PATH_CHARACTERS = 1_000
MAX_NAME_CHARACTERS = 200
MAX_PAGE_BYTES = 2 * 2**20
"""Of a web page that are looked at for its text."""
MAX_TAG_CHARACTERS = 10_000
"""Of an HTML tag that are looked at for attributes."""
INLINE_TAGS = frozenset(
    {"a", "abbr", "b", "cite", "code", "em", "font", "i", "kbd", "mark", "q", "s", "samp", "small", "span"}
    | {"strong", "sub", "sup", "time", "u", "var"}
)
"""They do not end a paragraph."""
UNSEEN_TAGS = frozenset({"script", "style", "template", "noscript", "svg"})
TAG_NAME = re.compile(r"<(/?[a-z][a-z0-9:-]{0,40})")
HUGE_REFERENCE = re.compile(r"&#[0-9]{1000,};?")
"""To no character; Python refuses to convert numbers of some thousand digits."""
ATTRIBUTE = re.compile(r"""([a-zA-Z-]{1,40})=(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
LOWERED = {capital: capital + 32 for capital in range(ord("A"), ord("Z") + 1)}
"""As HTML compares names; unlike `lower()` it keeps every character in its place."""

Leaf = tuple[str, Scalar]


def xml_leaves(raw: bytes, where: str) -> list[Leaf]:
    """Every text and attribute of an XML document by path: `/entry/@accessionCode`, `/entry/author[2]`.

    An element without text, children and attributes is None. Raises Malformed: not XML, a DTD, nested too deep, too
    many elements and attributes, a path that is too long.
    """
    reading = _Xml(where)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = reading.doctype
    parser.StartElementHandler = reading.start
    parser.CharacterDataHandler = reading.text
    parser.EndElementHandler = reading.end
    try:
        parser.Parse(raw, True)  # noqa: FBT003  # expat's own signature: this is all of it
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise Malformed(f"{where}, line {error.lineno} column {error.offset + 1}: not XML ({reason}).") from None
    except (LookupError, ValueError) as error:  # an encoding that Python does not know, or not for this
        raise Malformed(f"{where}: its encoding is not one that can be read ({error}).") from None
    return reading.leaves


def html_leaves(raw: bytes) -> list[Leaf]:
    """What a web page says: `/title`, `/meta/<name>` and its visible text, `/text/<number>` for each paragraph.

    Browsers make sense of any bytes, and so does this; in time that grows with the page's size only, which the
    standard library's parser does not promise.
    """
    head = raw[:MAX_PAGE_BYTES]
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # which puts up with a cut last character
    except UnicodeDecodeError:
        text = head.decode("windows-1252", "replace")
    page = _Page()
    lowered = text.translate(LOWERED)
    position = 0
    while (start := text.find("<", position)) >= 0:
        page.text(text[position:start])
        name = TAG_NAME.match(lowered, start)
        if lowered.startswith("<!--", start):
            position = _after("-->", text, start + 4)
        elif name is None and not lowered.startswith(("<!", "<?"), start):  # a less-than sign
            page.text("<")
            position = start + 1
        else:
            position = _after(">", text, start + 1)
            tag = name[1] if name is not None else ""
            page.tag(tag, text[start : min(position, start + MAX_TAG_CHARACTERS)])
            if tag in UNSEEN_TAGS:
                end = lowered.find(f"</{tag}", position)
                position = len(text) if end < 0 else end
    page.text(text[position:])
    page.end_paragraph()
    return page.leaves


def _after(mark: str, text: str, position: int) -> int:
    """Behind the next mark; the end where there is none, so that nothing is looked for twice."""
    found = text.find(mark, position)
    return len(text) if found < 0 else found + len(mark)


def _unescaped(text: str) -> str:
    return html.unescape(HUGE_REFERENCE.sub("\N{REPLACEMENT CHARACTER}", text))


def text_leaves(raw: bytes, where: str) -> Iterator[Leaf]:
    """Every line that is not blank, by its number. Raises Malformed if it is not UTF-8."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Malformed(f"{where}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}).") from None
    for number, line_text in enumerate(text.split("\n"), 1):
        if line_text.strip():
            yield f"/line/{number}", line_text.strip()


@dataclass
class _Open:
    """An element whose end is still to come."""

    path: str
    is_leaf: bool
    text: list[str] = field(default_factory=list)
    children: Counter[str] = field(default_factory=Counter)


class _Xml:
    """What expat calls while it reads."""

    def __init__(self, where: str) -> None:
        self.leaves: list[Leaf] = []
        self._where = where
        self._open = [_Open("", is_leaf=False)]
        self._elements = 0

    def doctype(self, *declared: object) -> None:
        raise Malformed(f"{self._where} declares a document type (<!DOCTYPE ...>), which is not accepted.")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1 + len(attributes)
        if self._elements > MAX_ELEMENTS:
            raise Malformed(
                f"{self._where} has more than {MAX_ELEMENTS} elements and attributes, which no such document needs."
            )
        if len(self._open) > MAX_DEPTH:
            raise Malformed(f"{self._where}: nested more than {MAX_DEPTH} deep.")
        if any(len(word) > MAX_NAME_CHARACTERS for word in (name, *attributes)):
            raise Malformed(f"{self._where} has a name of more than {MAX_NAME_CHARACTERS} characters.")
        parent = self._open[-1]
        parent.is_leaf = False
        parent.children[name] += 1
        number = parent.children[name]
        path = f"{parent.path}/{name}" + (f"[{number}]" if number > 1 else "")
        if len(path) + max((len(f"/@{key}") for key in attributes), default=0) > MAX_PATH_CHARACTERS:
            raise Malformed(f"{self._where} has a path of more than {MAX_PATH_CHARACTERS} characters.")
        self.leaves += [(f"{path}/@{key}", value) for key, value in attributes.items()]
        self._open.append(_Open(path, is_leaf=not attributes))

    def text(self, text: str) -> None:
        self._open[-1].text.append(text)

    def end(self, name: str) -> None:
        element = self._open.pop()
        text = "".join(element.text).strip()
        if text or element.is_leaf:
            self.leaves.append((element.path, text or None))


class _Page:
    """Collects title, meta tags and paragraphs."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self._words: list[str] = []
        self._in_title = False
        self._paragraphs = 0

    def tag(self, name: str, whole: str) -> None:
        """`name` is of the kind `p` or `/p`; `whole` has its attributes."""
        if name.removeprefix("/") not in INLINE_TAGS:
            self.end_paragraph()
            self._in_title = name == "title"
        if name == "meta":
            given = {key.lower(): _unescaped(a or b or c) for key, a, b, c in ATTRIBUTE.findall(whole)}
            what = given.get("name") or given.get("property")
            path = f"/meta/{what}"
            if what and given.get("content") and len(path) <= MAX_PATH_CHARACTERS:
                self.leaves.append((path, given["content"]))

    def text(self, text: str) -> None:
        self._words.append(text)

    def end_paragraph(self) -> None:
        text = " ".join(_unescaped("".join(self._words)).split())
        self._words.clear()
        if not text:
            return
        if self._in_title:
            self.leaves.append(("/title", text))
        else:
            self.leaves.append((f"/text/{self._paragraphs}", text))
            self._paragraphs += 1
