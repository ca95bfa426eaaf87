"""What an export puts into the tree: files, JSON, volumes, each unless it is there already, and a count of them.

Which entities there are and what they say is `tree.py`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from em_assets.export.stored import Progress
from em_assets.portal import ids
from em_assets.portal.entities import ENTITIES, as_json, parse_entity
from em_assets.portal.known import Values
from em_assets.portal.layout import AlignmentPlace, AnnotationPlace, TiltSeriesPlace, TomogramPlace
from em_assets.portal.stored import StoredImage
from em_assets.portal.volumes import RECORD, Content, Ngff, WrittenVolume, write_volume
from em_assets.store import Store

Place = TomogramPlace | AnnotationPlace | AlignmentPlace | TiltSeriesPlace
"""What has a numbered folder of its own."""
KINDS: dict[type, ids.Kind] = {
    TomogramPlace: "tomogram",
    AnnotationPlace: "annotation",
    AlignmentPlace: "alignment",
    TiltSeriesPlace: "tilt_series",
}


@dataclass
class Output:
    """The tree, as far as one export is concerned."""

    store: Store
    deposition_id: int
    updated_at: int
    """POSIX time that every JSON states."""
    ngff: Ngff
    workers: int
    progress: Progress | None
    verify: bool = False
    """Whether volumes that are there are read and compared with what was recorded of them."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of what lies there, by key: of every file, of a group as a whole."""
    sha256s: dict[str, str] = field(default_factory=dict)
    """Likewise."""
    new: set[str] = field(default_factory=set)
    """Keys that were not there, or held something else."""
    notes: dict[str, list[str]] = field(default_factory=dict)
    """Sentences for whoever uses it, with the volumes that each is about."""

    def note(self, sentence: str, about: str) -> None:
        self.notes.setdefault(sentence, []).append(about)

    # Numbers

    def claim(self, kind: ids.Kind, folder: str, values: Values) -> int:
        """The number of what these values identify below a folder; `finish` makes it final."""
        return ids.claim_id(self.store, folder, ids.identity_of(kind, self._stamped(values)))

    def finish(self, place: Place, entity: str, values: Values) -> None:
        """Writes the JSON that calls it whole."""
        self.json(place.metadata, entity, values)
        folder, _, number = place.folder.rpartition("/")
        ids.release_id(self.store, folder, int(number))

    def _hide(self, place: Place) -> None:
        """Takes that JSON away; whose the number is stays known by a claim."""
        values = self.read_json(place.metadata)
        if values is not None:
            claim = json.dumps(ids.identity_of(KINDS[type(place)], values), indent=4).encode()
            self.store.write(f"{place.folder}/{ids.CLAIM}", claim)
            self.store.delete(place.metadata)

    # Files

    def volume(self, image: StoredImage, keys: tuple[str, str], content: Content, place: Place) -> WrittenVolume:
        """Its OME-Zarr and its MRC. Before they take the place of another volume's, that is hidden."""
        zarr, mrc = keys
        there = _made_of(self.read_json(f"{zarr}/.zattrs") or self.read_json(f"{zarr}/zarr.json"))
        if there != (image.sha256, self.ngff):
            self._hide(place)
        present = partial(image.present, 0) if image.missing else None
        written = write_volume(
            image.levels[0],
            self.store,
            zarr_key=zarr,
            mrc_key=mrc,
            voxel_size_nm=image.voxel_size_nm,
            content=content,
            identity=image.sha256,
            ngff=self.ngff,
            workers=self.workers,
            on_voxels=self._advance(image),
            labels_text=(image.folder.title,),
            present=present,
            verify=self.verify,
        )
        if self.progress is not None:
            self.progress.advance(bytes=0 if written.is_new else voxel_bytes(image), items=1)
        for key, size_bytes in ((zarr, written.zarr_bytes), (mrc, written.mrc_bytes)):
            if size_bytes is not None:
                self._count(key, size_bytes, written.sha256s[key], is_new=written.is_new)
        for sentence in written.notes:
            self.note(sentence, image.folder.title)
        return written

    def _advance(self, image: StoredImage) -> Callable[[int], None] | None:
        progress, item_bytes = self.progress, image.volume.dtype.itemsize
        return None if progress is None else lambda voxels: progress.advance(bytes=voxels * item_bytes)

    def json(self, key: str, entity: str, values: Values) -> None:
        """Raises Malformed where the values break the portal's schema."""
        self.put(key, as_json(parse_entity(ENTITIES[entity], self._stamped(values), self.store.uri(key))))

    def _stamped(self, values: Values) -> Values:
        return values | {"deposition_id": self.deposition_id, "last_updated_at": self.updated_at}

    def put(self, key: str, data: bytes) -> None:
        is_there = self.store.size_bytes(key) == len(data) and self.store.read(key) == data
        if not is_there:
            self.store.write(key, data)
        self._count(key, len(data), hashlib.sha256(data).hexdigest(), is_new=not is_there)

    def _count(self, key: str, size_bytes: int, sha256: str, *, is_new: bool) -> None:
        self.sizes[key], self.sha256s[key] = size_bytes, sha256
        if is_new:
            self.new.add(key)

    def read_json(self, key: str) -> Values | None:
        """None if there is none that can be read: it is written anew."""
        try:
            found = json.loads(self.store.read(key))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def sha256(self) -> str:
        """Of all that lies there: equal trees have equal ones."""
        lines = sorted(f"{key}\0{sha256}\n" for key, sha256 in self.sha256s.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def voxel_bytes(image: StoredImage) -> int:
    return math.prod(image.levels[0].info.shape) * image.volume.dtype.itemsize


def _made_of(document: Values | None) -> tuple[str | None, str | None]:
    """(identity, version of OME-NGFF) that `volumes.py` recorded in a group, by its last document."""
    found = document or {}
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # somebody else's, or somebody changed it
        parameters = found.get("attributes", found)[RECORD]["parameters"]
        return parameters.get("identity"), parameters.get("ngff")
    return None, None
