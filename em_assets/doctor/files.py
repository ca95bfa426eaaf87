"""Publishers of files: sizes, first bytes and headers against the spec, by ranges; and the mirrors."""

from __future__ import annotations

import email.utils
import time
from functools import partial

from em_assets.datasets.source import FilesSource, VolumeFiles
from em_assets.doctor.asking import Asking, Wanted
from em_assets.doctor.headers import Header, header_of
from em_assets.doctor.report import Section
from em_assets.fetch.http import Reply
from em_assets.formats.opening import HEAD_BYTES, kind_of, looks_like

MOST_FILES = 20
"""So many are asked for; of more, the first and the last."""
CLOCK_SECONDS = 120.0
KINDS = {
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
    **dict.fromkeys((".dm3", ".dm4"), "dm"),
    **dict.fromkeys((".h5", ".hdf5"), "hdf5"),
    **dict.fromkeys((".mrc", ".mrcs", ".rec", ".map", ".st"), "mrc"),
}


def ask_files(asking: Asking, source: FilesSource) -> None:
    asking.client.limit(source.url, min(source.connections, asking.settings.connections_per_host))
    paths = list(source.by_path())
    asked = paths if len(paths) <= MOST_FILES else [*paths[: MOST_FILES // 2], *paths[-MOST_FILES // 2 :]]
    for path in asked:
        _ask_head(asking, source, path)
    if len(asked) < len(paths):
        asking.section.learn("files", f"{len(asked)} of {len(paths)} were asked for")
    first = source.file_url(asked[0])
    asking.learn_headers(asked[0], first)
    _look_at_clock(asking.section, asking.client.headers_of(first))
    _ask_mirrors(asking, source, asked[0])
    _ask_headers(asking, asking.main, source.volume, source)
    for name, volume in asking.spec.volumes.items():
        if volume.source is not None:
            _ask_headers(asking, asking.further(name), volume.source, source)


def _ask_head(asking: Asking, source: FilesSource, path: str) -> None:
    """Size, and what kind of file it is, by one range of its first bytes."""
    pinned, url, section = source.by_path()[path].size_bytes, source.file_url(path), asking.section
    question, expected = f"{path}: size", "not pinned" if pinned is None else pinned
    stop = min(HEAD_BYTES, pinned or HEAD_BYTES)
    reply = section.attempt(question, expected, lambda: asking.client.get_range(url, 0, stop))
    if reply is None:
        return
    found = reply.object_bytes
    section.compare(question, expected, found or "not said", agrees=pinned in (None, found))
    if pinned is None:
        section.learn(question, found)
    _compare_kind(section, path, reply)


def _compare_kind(section: Section, path: str, reply: Reply) -> None:
    expected = next((kind for end, kind in KINDS.items() if path.lower().endswith(end)), None)
    head = bytes(reply.body)
    size_bytes = reply.object_bytes
    if expected is not None and kind_of(head, size_bytes) != expected:
        section.add("FAIL", f"{path}: first bytes", looks_like(head, size_bytes or len(head)), expected)


def _ask_mirrors(asking: Asking, source: FilesSource, path: str) -> None:
    pinned = source.by_path()[path].size_bytes
    expected = "not pinned" if pinned is None else pinned
    for mirror in source.mirrors:
        url = source.file_url(path, mirror)
        question = f"mirror {url.partition('://')[0]}: size of {path}"
        found = asking.section.attempt(question, expected, partial(_size_bytes, asking, url))
        if found is not None:
            asking.section.compare(question, expected, found, agrees=pinned in (None, found))


def _size_bytes(asking: Asking, url: str) -> int | None:
    if url.startswith("ftp://"):
        return asking.ftp.size_bytes(url)
    return asking.client.get_range(url, 0, 1).object_bytes


def _ask_headers(asking: Asking, wanted: Wanted, files: VolumeFiles, source: FilesSource) -> None:
    """What the first and the last file say of themselves."""
    paths = files.paths()
    for path in dict.fromkeys((paths[0], paths[-1])):
        question = f"{wanted.prefix}header of {path}"
        size = source.by_path()[path].size_bytes
        look = partial(header_of, source.file_url(path), size, files, asking.client, asking.settings)
        header = asking.section.attempt(question, f"{wanted.shapes[0]} {wanted.dtype}", look)
        if header is not None:
            _compare_header(asking, question, header, files, wanted)


def _compare_header(asking: Asking, question: str, header: Header, files: VolumeFiles, wanted: Wanted) -> None:
    """In the file's own order of axes."""
    a, b, c = ("zyx".index(axis) for axis in files.axes)
    shape, size_nm = wanted.shapes[0], wanted.voxel_size_nm
    depth = shape[a] // len(files.paths())
    expected = depth, shape[b], shape[c]
    found = header.depth, header.height, header.width
    agrees = found in (expected, (None, *expected[1:]))
    shown = found if header.depth is not None else f"(?, {header.height}, {header.width}); page 1 does not count pages"
    asking.section.compare(f"{question}: shape", expected, shown, agrees=agrees)
    asking.compare_dtype(f"{question}: dtype", wanted.dtype, header.dtype)
    in_order = size_nm[a], size_nm[b], size_nm[c]
    asking.compare_voxel_size(f"{question}: voxel size (nm)", in_order, header.voxel_size_nm)


def _look_at_clock(section: Section, headers: dict[str, str]) -> None:
    """Receipts carry times, and certificates are judged by them."""
    parsed = email.utils.parsedate_tz(headers.get("Date", ""))
    off = 0.0 if parsed is None else time.time() - email.utils.mktime_tz(parsed)
    if abs(off) > CLOCK_SECONDS:
        section.add("warn", "clock", f"{off:.0f} s beside the server's", "the same time")
