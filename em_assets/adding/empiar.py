"""EMPIAR: the entry's API, the folder of one of its image sets, and what the files themselves say.

The API is wrong at times (EMPIAR-11759 states another width and height than its files have), and a folder's listing
lacked a file that its server gave: the files win, and what the API says otherwise is kept as a claim.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from em_assets.adding.draft import Draft, clean, title
from em_assets.adding.files import (
    Folder,
    Headers,
    ask_sizes,
    choose_files,
    files_source,
    in_order,
    read_headers,
    require_few,
    require_no_gaps,
    unlisted_files,
)
from em_assets.adding.replies import as_spec, ask
from em_assets.adding.volume import Wishes, know_volume
from em_assets.datasets.source import Document
from em_assets.errors import Mismatch
from em_assets.fetch.http import HttpClient
from em_assets.fetch.listings import MAX_INDEX_BYTES, parse_index
from em_assets.settings import Settings
from em_assets.volume import VolumeInfo

API = "https://www.ebi.ac.uk"
FILES = "https://ftp.ebi.ac.uk"
FTP = "ftp://ftp.ebi.ac.uk"
PAGE = "https://www.ebi.ac.uk/empiar"
ENTRY = "/empiar/api/entry"
DATA = "/empiar/world_availability"
ROUNDED = 5e-3
"""The API rounds pixel sizes: 80 angstrom for 79.98."""
VOXEL_TYPES = {
    "UNSIGNED BYTE": "uint8",
    "SIGNED BYTE": "int8",
    "UNSIGNED 16 BIT INTEGER": "uint16",
    "SIGNED 16 BIT INTEGER": "int16",
    "32 BIT FLOAT": "float32",
}


@dataclass(frozen=True)
class Choice:
    """Which part of an entry."""

    imageset: str | None = None
    """Its number (from 1) or name."""
    files: str | None = None
    """Pattern of names."""
    max_files: int | None = None


def draft_empiar(
    accession: str, choice: Choice, wishes: Wishes, settings: Settings, *, server: str | None = None
) -> Draft:
    """Of one image set. `server` answers for the API and the files, in place of EMPIAR's own."""
    found = re.fullmatch(r"(?:EMPIAR-)?([1-9]\d{3,7})", accession.strip(), re.IGNORECASE)
    if found is None:
        raise Mismatch(f"{accession[:100]!r} is no accession of EMPIAR; they look like 13192 or EMPIAR-13192.")
    name = f"EMPIAR-{found[1]}"
    client = HttpClient(settings)
    url = f"{server or API}{ENTRY}/{name}/"
    document = Document.model_validate({"path": "entry.json", "url": url, "kind": "empiar_entry"})
    replies, _ = ask([document], client)
    entry: dict[str, Any] = replies["entry.json"][name]
    images = _choose_imageset(name, entry["imagesets"], choice.imageset)
    draft = Draft(base_name=f"empiar_{found[1]}")
    draft.document["documents"] = as_spec([document])
    _know_words(draft, name, entry, images)
    inside = _directory(name, images)
    folder = Folder(f"{server or FILES}{DATA}/{found[1]}/{quote(inside)}".rstrip("/"), client)
    files = _files(draft, folder, images, choice)
    sizes = ask_sizes(files, folder)
    draft.found.append(sizes.said)
    if not sizes.all_asked:
        draft.note("source.files", sizes.said)
    mirrors = [] if server else [f"{FTP}{DATA}/{found[1]}/{quote(inside)}".rstrip("/")]
    draft.know("source", files_source(folder.url, sizes.entries, sizes.ranges, mirrors))
    headers = read_headers(files, folder, settings)
    _compare(draft, images, headers, url)
    know_volume(
        draft, f"{name}, {files[0]}", _with_pixels(name, images, headers, wishes), wishes, settings, from_files=True
    )
    return draft


def _choose_imageset(name: str, imagesets: Sequence[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
    fitting = [
        images
        for number, images in enumerate(imagesets, 1)
        if wanted is None or wanted in (str(number), str(images.get("name")))
    ]
    if len(fitting) == 1:
        return fitting[0]
    shown = "; ".join(
        f"{number}: {clean(str(images.get('name')), 60)} ({clean(str(images.get('directory')), 80)})"
        for number, images in enumerate(imagesets[:20], 1)
    )
    more = f"; and {len(imagesets) - 20} more" if len(imagesets) > 20 else ""
    what = f"has {len(imagesets)} image sets" if wanted is None else f"has no single image set {wanted[:100]!r}"
    raise Mismatch(f"{name} {what}; choose one with --imageset N: {shown}{more}.")


def _directory(name: str, images: dict[str, Any]) -> str:
    """Below the entry's folder: `data` in most; the XML writes it with a slash before it."""
    stated = images.get("directory")
    path = stated.strip("/") if isinstance(stated, str) else ""
    if any(part in ("", ".", "..") for part in path.split("/")) and path:
        raise Mismatch(f"{name} states the directory {stated!r:.200}, which leaves the entry's own folder.")
    return path or "data"


def _know_words(draft: Draft, name: str, entry: dict[str, Any], images: dict[str, Any]) -> None:
    text = str(entry.get("title") or "")
    part = str(images.get("name") or "")
    many = len(entry["imagesets"]) > 1 and part and part != text
    draft.take("title", title(f"{text} ({f'{part}, ' if many else ''}{name})" if text else ""), "what this is")
    draft.take("description", images.get("details") or text, "what was imaged; the entry's page says it")
    draft.know("publisher", "empiar")
    draft.know("source_id", name)
    draft.know("page_url", f"{PAGE}/{name}/")
    draft.know("license", "CC0-1.0", "EMPIAR states that all its data is CC0")
    authors = [a["author"].get("name") for a in _list(entry, "authors") if isinstance(a.get("author"), dict)]
    names = ", ".join(str(author) for author in authors if author)
    year = str(entry.get("release_date") or "")[:4]
    dot = "" if text.endswith((".", "?", "!")) else "."
    cited = f"{names}. {text}{dot} {name}{f' ({year})' if year.isdigit() else ''}." if names and text else None
    draft.take("citation", cited, "the entry names no authors; its page may")
    draft.take_doi(entry.get("entry_doi"), "of the entry")
    modality = title(str(entry.get("experiment_type") or ""))
    if modality:
        draft.know("modality", modality)


def _list(values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = values.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _files(draft: Draft, folder: Folder, images: dict[str, Any], choice: Choice) -> list[str]:
    """The files of the volume; the listing against the entry's own count."""
    count = images.get("num_images_or_tilt_series")
    stated = count if type(count) is int else None
    page = folder.client.get(f"{folder.url}/", max_bytes=MAX_INDEX_BYTES, accept_gzip=True, accept_page=True)
    listed = [row.name for row in parse_index(bytes(page.body), folder.url) if not row.is_folder]
    files = choose_files(listed, choice.files, stated)
    unlisted = unlisted_files(files, stated if choice.files is None else None, folder)
    if unlisted:
        draft.found.append(f"not in the listing, but given when asked for: {', '.join(unlisted[:5])}")
        draft.note("source.files", f"the folder's listing lacked {', '.join(unlisted[:5])}")
    files = in_order([*files, *unlisted])
    if stated is not None and stated != len(files):
        draft.found.append(f"the entry counts {stated} images, the folder has {len(files)} such files")
    others = [name for name in listed if name not in set(files)]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        draft.found.append(f"not taken (list them in source.files to keep them): {', '.join(others[:5])}{more}")
    taken = require_few(files, choice.max_files)
    require_no_gaps(taken)
    return taken


def _compare(draft: Draft, images: dict[str, Any], headers: Headers, url: str) -> None:
    """What the API says otherwise than the files' own headers becomes a claim."""
    info = headers.info
    _, y, x = info.shape
    for key, is_so in (("image_height", y), ("image_width", x)):
        said = images.get(key)
        if said not in (None, "") and str(said) != str(is_so):
            draft.claim(
                key, said if isinstance(said, int | float) else clean(str(said), 100), url, f"the files say {is_so}"
            )
    said = images.get("voxel_type")
    named = VOXEL_TYPES.get(str(said).upper())
    if named is not None and named != info.dtype:
        draft.claim("voxel_type", clean(str(said), 100), url, f"the files say {info.dtype}")
    in_file = info.voxel_size_nm[1:] if info.voxel_size_nm else headers.pixel_nm
    for key, nm in zip(("pixel_height", "pixel_width"), in_file or (), strict=False):
        angstrom = _angstrom(images, key)
        if angstrom is not None and not math.isclose(angstrom / 10, nm, rel_tol=ROUNDED):
            draft.claim(key, angstrom, url, f"in angstrom; the files say {nm:.10g} nm")


def _with_pixels(name: str, images: dict[str, Any], headers: Headers, wishes: Wishes) -> VolumeInfo:
    """The volume's info. Raises Mismatch, with what is known of the pixels, where nobody states all three sizes."""
    info = headers.info
    if info.voxel_size_nm is not None or wishes.voxel_size_nm is not None:
        return info
    stated = [_angstrom(images, key) for key in ("pixel_height", "pixel_width")]
    y, x = headers.pixel_nm or (stated[0] and stated[0] / 10, stated[1] and stated[1] / 10)
    if y is None or x is None:
        return info
    who = "files' headers state" if headers.pixel_nm else "entry states"
    raise Mismatch(
        f"{name}: the {who} pixels of {y:.10g} x {x:.10g} nm (y, x), and nobody states how thick a slice is; look it "
        f"up in the entry's text or paper ({clean(str(images.get('details') or ''), 300) or 'no details'}), then add "
        f"--voxel-size-nm Z,{y:.10g},{x:.10g}."
    )


def _angstrom(images: dict[str, Any], key: str) -> float | None:
    """The API's unit; numbers come as text, too."""
    try:
        value = float(str(images.get(key)))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
