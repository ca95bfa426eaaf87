"""Numbers for what lies in a folder of its own: tilt series, alignments, tomograms, annotations. The first is 100.

A number belongs to an identity: some fields of the entity's metadata file. Who asks again with the same identity gets
the same number, found in the metadata that are there; another identity gets the next one. No state is kept but in the
store: a claim, `.claim.json` in the numbered folder, holds the number from the moment it is given until the metadata
file, which is written last, holds it. So two runs at once, even in two places, never get one number for two things.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from em_assets.errors import Malformed, Unavailable
from em_assets.store import ObjectStore, Store, partial_path

Kind = Literal["tilt_series", "alignment", "tomogram", "annotation"]
IDENTITY: dict[Kind, tuple[str, ...]] = {
    "tilt_series": ("deposition_id",),
    "alignment": ("deposition_id",),
    "tomogram": (
        *("alignment_metadata_path", "reconstruction_method", "processing", "processing_software"),
        "deposition_id",
    ),
    "annotation": ("deposition_id", "annotation_ingest_id", "alignment_metadata_path"),
}
"""Fields of the metadata file that make an entity what it is, the portal's choice; run and voxel spacing are the
folder's. So a run has one tilt series and one alignment of a deposition."""

FIRST = 100
CLAIM = ".claim.json"
_PROBE = ".claim-probe"
_TRIES = 1000
"""Of one claim, each lost to somebody else's: that many at once there are not."""

Identity = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Folder:
    """One numbered folder: whose it is."""

    number: int
    is_finished: bool
    """Its metadata file is there."""
    identity: Identity | None
    """None where nothing says it."""


def identity_of(kind: Kind, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The identifying fields of metadata of this kind; what is not there is None."""
    return {field: metadata.get(field) for field in IDENTITY[kind]}


def find_id(store: Store, folder: str, identity: Identity) -> int | None:
    """The number of what has this identity below `folder` (such as `10000/TS_026/TiltSeries`), None if there is none.

    Raises Malformed, naming it, for a metadata file that is no JSON: it may be of this very identity.
    """
    return next((one.number for one in _folders(store, folder, identity) if _is_same(one.identity, identity)), None)


def claim_id(store: Store, folder: str, identity: Identity) -> int:
    """The number of what has this identity, the next one if it has none yet; it is nobody else's from now on.

    Call `release_id` when the metadata file is written. A claim that a killed run left is found again by its identity.
    Where an S3 server ignores conditions on writes, two runs that begin within one moment may still be given one
    number. Raises Malformed as `find_id`, Unavailable.
    """
    identity = json.loads(json.dumps(dict(identity)))  # as it is read back: a tuple is a list
    for _ in range(_TRIES):
        taken = list(_folders(store, folder, identity))
        same = next((one.number for one in taken if _is_same(one.identity, identity)), None)
        if same is not None:
            return same
        number = max((one.number for one in taken), default=FIRST - 1) + 1
        if not _create(store, f"{folder}/{number}/{CLAIM}", folder, identity):
            continue
        if _is_finished(store, f"{folder}/{number}"):  # it was claimed, written and released since we looked
            release_id(store, folder, number)
            continue
        return number
    raise Unavailable(
        f"no number below {store.uri(folder)} could be claimed, because others claimed {_TRIES} of them first; look "
        "who writes there, then run again."
    )


def reclaim_id(store: Store, folder: str, number: int, identity: Identity) -> int:
    """The number that this identity had before, if nobody else has it by now; otherwise as `claim_id`."""
    identity = json.loads(json.dumps(dict(identity)))
    there = next((one for one in _folders(store, folder, identity) if one.number == number), None)
    is_free = there is None or (there.identity is None and not there.is_finished)
    if is_free and _create(store, f"{folder}/{number}/{CLAIM}", folder, identity):
        return number
    return claim_id(store, folder, identity)


def release_id(store: Store, folder: str, number: int) -> None:
    """The metadata file holds the number from now on; nothing happens if it was not claimed."""
    store.delete(f"{folder}/{number}/{CLAIM}")


def _folders(store: Store, folder: str, identity: Identity) -> Iterator[_Folder]:
    """Every numbered folder, the smallest number first."""
    documents: dict[int, list[str]] = {}
    for path, _ in store.list(folder):
        name, _, rest = path.removeprefix(f"{folder}/").partition("/")
        if re.fullmatch(r"[1-9][0-9]{0,17}", name, re.ASCII) and rest:
            found = documents.setdefault(int(name), [])
            if "/" not in rest and rest.endswith(".json"):
                found.append(rest)
    for number in sorted(documents):
        yield _folder(store, f"{folder}/{number}", number, documents[number], identity)


def _folder(store: Store, folder: str, number: int, names: list[str], identity: Identity) -> _Folder:
    claimed: Identity | None = None
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # a claim may be released meanwhile: the metadata file is there
            document = _read(store, f"{folder}/{name}")
            if name == CLAIM:
                claimed = document
            elif _is_metadata(document):
                return _Folder(number, is_finished=True, identity={key: document.get(key) for key in identity})
    return _Folder(number, is_finished=False, identity=claimed)


def _is_finished(store: Store, folder: str) -> bool:
    names = [path.removeprefix(f"{folder}/") for path, _ in store.list(folder)]
    documents = [name for name in names if "/" not in name and name.endswith(".json") and name != CLAIM]
    return any(_is_metadata(_read(store, f"{folder}/{name}")) for name in documents)


def _is_metadata(document: Mapping[str, Any]) -> bool:
    """Every metadata file names its deposition; captions, which lie beside it, do not."""
    return "deposition_id" in document


def _read(store: Store, path: str) -> dict[str, Any]:
    """Nothing of a document that is no object: some captions are lists."""
    try:
        document = json.loads(store.read(path))
    except ValueError:
        raise Malformed(
            f"{store.uri(path)} is no JSON, so it cannot be known whose number its folder is; correct it, or remove "
            "the folder."
        ) from None
    return document if isinstance(document, dict) else {}


def _is_same(found: Identity | None, identity: Identity) -> bool:
    return found is not None and all(_is_same_value(key, found.get(key), value) for key, value in identity.items())


def _is_same_value(field: str, found: Any, wanted: Any) -> bool:
    """Some writers put the bucket before a path."""
    if field.endswith("_path") and isinstance(found, str) and isinstance(wanted, str):
        return found == wanted or found.endswith(f"/{wanted}") or wanted.endswith(f"/{found}")
    return bool(found == wanted)


def _create(store: Store, path: str, folder: str, identity: Identity) -> bool:
    """Writes a claim, unless there is one."""
    data = json.dumps(dict(identity), indent=4, ensure_ascii=False).encode()
    if isinstance(store, ObjectStore):
        if store.heeds_conditions(f"{folder}/{_PROBE}"):
            return store.write_if_unchanged(path, data, None) is not None
        if store.size_bytes(path) is not None:
            return False
        store.write(path, data)
        return store.read(path) == data
    return _create_file(store, path, data)


def _create_file(store: Store, path: str, data: bytes) -> bool:
    """A link to a file that is whole already: it is there at once, or somebody else's is."""
    target = store.local_path(path)
    assert target is not None, f"{store} is neither a folder nor S3"
    partial = partial_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.link(partial, target)
    except FileExistsError:
        return False
    except OSError as error:
        raise Unavailable(
            f"{target} could not be created ({error.strerror or error}): free space or correct the folder's "
            "permissions and run again; the file system must know hard links."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return True
