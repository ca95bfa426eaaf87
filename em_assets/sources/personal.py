"""What a claim's value says about a person or a computer, by which exports leave it out; and text that was damaged.

Documents and headers are kept as they came. Nothing is removed here: a value is marked.
"""

from __future__ import annotations

import re

from em_assets.formats.reader import Scalar

EMAIL, LOCAL_PATH, ODD_BYTES = "e-mail address", "local path", "odd bytes"

DOMAIN = r"(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}"
ADDRESS = re.compile(rf"(?<![\w.%+-])[\w.%+-]{{1,64}}[@\uff20]{DOMAIN}")
"""Every part is bounded and begins at a boundary: the time it takes grows with the text only."""
WRITTEN_OUT = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}\s{0,3}"
    r"(?:[\[({<]\s{0,3}at\s{0,3}[\])}>]\s{0,3}(?:[\w-]{1,63}(?:\.|\s{0,3}[\[({<]?\s{0,3}\bdot\b\s{0,3}[\])}>]?\s{0,3}))"
    r"|\sat\s{1,3}[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}\s{1,3}dot\s)"
    r"\s{0,3}[\w-]{1,63}",
    re.IGNORECASE,
)
"""`name [at] host.org`, `name (at) host dot org`, `name at host dot org`. A plain ` at ` alone is a word of prose."""
AT_A_HOST = re.compile(rf"[\w.%+-]{{1,64}}\s{{1,3}}at\s{{1,3}}{DOMAIN}\s*", re.IGNORECASE)
"""`name at host.org`: an address only where the key says that it is one."""
MAIL_KEY = re.compile(r"e-?mail", re.IGNORECASE)

BEGIN = r"(?:^|(?<=[\s\"'(=,;:<>\[|]))"
"""Of a path: not in the middle of a web address."""
PATHS = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]:\\{1,2}[^\s\\]"  # C:\Users; JSON within a text has each backslash twice
    rf"|{BEGIN}[A-Za-z]:/[\w.~-]"  # C:/Users
    rf"|{BEGIN}\\{{2,4}}[\w.$-]{{1,255}}\\{{1,2}}[^\s\\]"  # \\server\share
    r"|(?:^|[\\\s\"'])(?:Users|Documents and Settings)\\{1,2}[^\s\\]"
    rf"|{BEGIN}/(?:home|Users|root)/[^\s/]"
    r"|\bfile://",
)

UNDECODED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]"  # in no text; \x80 to \x9f: bytes that were no UTF-8
    r"|\\ud[89a-f][0-9a-f]{2}"  # half a surrogate pair, as claims hold it
    r"|^\d+ x char at byte \d+$"  # characters that a DM file's reader could not decode
)


def marks(key: str, value: Scalar) -> str | None:
    """Which of `e-mail address`, `local path`, `odd bytes` a claim is, several joined by `, `; None for none.

    Addresses on the web, paths on a publisher's server (/data/...) and JSON pointers are no local paths.
    """
    text = value if isinstance(value, str) else ""
    found = {
        EMAIL: _has_address(key, text),
        LOCAL_PATH: _may_hold_path(text) and PATHS.search(text) is not None,
        ODD_BYTES: UNDECODED.search(text) is not None or UNDECODED.search(key) is not None,
    }
    return ", ".join(mark for mark, is_so in found.items() if is_so) or None


def _has_address(key: str, text: str) -> bool:
    if any(sign in f"{key}{text}" for sign in "@\uff20") and (ADDRESS.search(text) or ADDRESS.search(key)):
        return True
    is_said_to_be_one = MAIL_KEY.search(key) is not None and AT_A_HOST.fullmatch(text) is not None
    return is_said_to_be_one or ("at" in text.casefold() and WRITTEN_OUT.search(text) is not None)


def _may_hold_path(text: str) -> bool:
    return "\\" in text or "/" in text
