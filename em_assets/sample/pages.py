"""What a folder answers over HTTP besides its files: pages, an index, headers; in dot files nobody can ask for.

`.index.html` (or `.json`, `.xml`) is the answer to the folder's own address, which ends in `/`; `.index?a=1.json` to
that address with a query; `.headers.json` holds headers that go with either. `.bucket` makes a top-level folder an S3
bucket (see `buckets.py`).
"""

from __future__ import annotations

import html
import json
import os
import urllib.parse
from pathlib import Path

PAGE = ".index"
HEADERS = ".headers.json"
BUCKET = ".bucket"
PAGE_SUFFIXES = (".json", ".html", ".xml")
CONTENT_TYPES = {
    ".html": "text/html;charset=UTF-8",
    ".json": "application/json",
    ".xml": "application/xml",
    **dict.fromkeys((".txt", ".csv"), "text/plain; charset=utf-8"),
}
MAX_QUERY = 200
"""A longer one cannot be part of a file's name."""
INDEX_TIME = "2020-06-10 12:00"
"""Shown for every file: a page whose text changes with the clock would be another page."""


def is_hidden(name: str) -> bool:
    """Whether a name is one of these files'."""
    return name.startswith(PAGE) or name in (HEADERS, BUCKET)


def page_of(folder: Path, query: str) -> Path | None:
    """The file that answers for a folder, None if nothing does. A query without a page of its own is overlooked."""
    for asked in dict.fromkeys((_in_name(query), "")):
        for suffix in PAGE_SUFFIXES:
            file = folder / f"{PAGE}{asked}{suffix}"
            if os.path.isfile(file):  # noqa: PTH113  # never raises
                return file
    return None


def headers_of(page: Path) -> dict[str, str]:
    """The headers of a folder's pages."""
    file = page.parent / HEADERS
    headers: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return headers


def write_page(folder: Path, text: str, suffix: str, query: str = "", headers: dict[str, str] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{PAGE}{_in_name(query)}{suffix}").write_text(text, encoding="utf-8")
    if headers is not None:
        (folder / HEADERS).write_text(json.dumps(headers), encoding="utf-8")


def write_json_page(folder: Path, content: object, query: str = "", headers: dict[str, str] | None = None) -> None:
    write_page(folder, json.dumps(content, ensure_ascii=False), ".json", query, headers)


def write_autoindex(folder: Path, *, omit: str) -> None:
    """An index as Apache makes it, with links to sort by. One file is omitted, as a backend of the real host did."""
    names = sorted(file.name + "/" * file.is_dir() for file in folder.iterdir() if not is_hidden(file.name))
    rows = [_row(folder, name) for name in names if name != omit]
    columns = {"N": "Name", "M": "Last modified", "S": "Size", "D": "Description"}
    heads = "".join(f'<th><a href="?C={key};O=A">{title}</a></th>' for key, title in columns.items())
    title = html.escape(f"Index of /{folder.name}")
    lines = [
        '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">',
        f"<html>\n <head>\n  <title>{title}</title>\n </head>\n <body>\n<h1>{title}</h1>\n  <table>",
        f"   <tr>{heads}</tr>",
        '<tr><td><a href="../">Parent Directory</a></td><td>&nbsp;</td><td align="right">  - </td></tr>',
        *rows,
        "</table>\n</body></html>\n",
    ]
    write_page(folder, "\n".join(lines), ".html")


def _row(folder: Path, name: str) -> str:
    size = "  - " if name.endswith("/") else f"{(folder / name).stat().st_size / 1024:.0f}K"
    link = f'<a href="{urllib.parse.quote(name)}">{html.escape(name)}</a>'
    return f'<tr><td>{link}</td><td align="right">{INDEX_TIME}  </td><td align="right">{size}</td></tr>'


def _in_name(query: str) -> str:
    """A query as part of a file's name, in one order; empty if there is none or it cannot be one."""
    ordered = urllib.parse.urlencode(sorted(urllib.parse.parse_qsl(query)))
    return f"?{ordered}" if 0 < len(ordered) <= MAX_QUERY else ""
