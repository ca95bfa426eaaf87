"""Publishers' real headers as the claims that our readers make of them.

Other people's readers wrote these headers down, each in its own way; the files themselves are too large to keep. The
fixture `payloads` is the folder that they lie in.
"""

import json

from em_assets.catalog.statements import StatedDocument
from em_assets.formats._tiff_text import text_leaves


def dm_values(recorded):
    """Tags as an independent reader wrote them down, `root.ImageList.1.Name`, under our keys. It drops struct tags."""
    found = {}
    for path, value in recorded.items():
        parts = path.removeprefix("root.").split(".")
        if parts[-1] not in ("Size", "Offset"):
            found["/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)] = value
    return found


def tiff_values(pages):
    """A dump of pages' tags, by number, as our reader lists them: later pages with what differs."""
    found = {}
    for page, tags in pages.items():
        for name, value in tags.items():
            if page and (name in ("StripOffsets", "StripByteCounts") or pages[0].get(name) == value):
                continue
            key = f"/{page}/{name}"
            if name in ("XResolution", "YResolution"):
                found[key] = value[0] / value[1]
            elif isinstance(value, list) and len(value) > 16:
                found[key] = f"{len(value)} values, from {value[0]} to {value[-1]}"
            elif isinstance(value, list) and len(value) > 1:
                found |= {f"{key}/{place}": item for place, item in enumerate(value)}
            else:
                found[key] = value[0] if isinstance(value, list) else value
            if isinstance(value, str):
                found |= {f"{key}{below}": item for below, item in text_leaves(value, name)}
    return found


def idr_document(payloads, which):
    """The first of the IDR's two files, cut `xy`, or the second, `xz`."""
    dump = json.loads((payloads / f"idr/tiff_ifd_summary_{which}.json").read_text())
    pages = {page["page_index"]: page["page_tiff_tags"] for name, page in dump.items() if name.startswith("page_")}
    path = f"original/Figure_S3B_FIB-SEM_U2OS_20x20x20nm_{which}.tif"
    return StatedDocument(path, "tiff", tiff_values(pages))
