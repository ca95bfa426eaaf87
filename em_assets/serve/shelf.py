"""What a service has to offer: the finished volumes of a store, each opened once and again when it was made anew."""

from __future__ import annotations

import difflib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from em_assets.datasets.fields import NAME_PATTERN
from em_assets.errors import Malformed
from em_assets.records import READS_AT_ONCE, DatasetFolder, DatasetRecord, VolumeSummary
from em_assets.store import Store

if TYPE_CHECKING:
    from em_assets.blocks.volume import Volume

RECORD_SECONDS = 2.0
"""How long a record is believed: a round trip less for each block from S3."""
DATA = "/data"
"""Below which the volumes' own objects are served."""
OPEN_AT_MOST = 64
"""Volumes that stay open, the ones asked for last."""


class NotServed(Exception):
    """There is no such volume here, or none that is whole; the text says what to do."""

    def __init__(self, sentence: str, *, is_known: bool) -> None:
        super().__init__(sentence)
        self.is_known = is_known
        """It is one of the datasets, only not in a state to be read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished volume."""

    folder: DatasetFolder
    record: DatasetRecord

    @property
    def id(self) -> str:
        return self.folder.title

    @property
    def summary(self) -> VolumeSummary | None:
        """Of a further volume; None for the main one."""
        return None if self.folder.sub is None else self.record.volumes[self.folder.sub]

    def describe(self) -> dict[str, Any]:
        """As `/v1/datasets` lists it: from the record alone, no voxels and no metadata of the volume are read."""
        record, own = self.record, self.summary
        return {
            "id": self.id,
            "dataset": record.name,
            "title": (own.title if own is not None else None) or record.title,
            "labels_of": (own.labels_of or record.name) if own is not None and own.content == "labels" else None,
            "shape": list(own.shape) if own is not None else _list(record.volume_shape),
            "dtype": own.dtype if own is not None else record.dtype,
            "voxel_size_nm": list(own.voxel_size_nm) if own is not None else _list(record.voxel_size_nm),
            "publisher": record.source,
            "license": record.license,
            "citation": record.citation,
            "doi": (own.doi if own is not None else None) or record.doi,
            "page_url": record.page_url,
            "sha256": record.sha256,
            "links": self.links(),
        }

    def links(self) -> dict[str, str]:
        """Where this service has what, relative to its address."""
        return {
            "self": f"/v1/datasets/{self.id}",
            "block": f"/v1/datasets/{self.id}/block",
            "ome_zarr": data_address(self.folder),
            "view": f"/view/{self.id}",
        }


def data_address(folder: DatasetFolder) -> str:
    """Where `pictures.py` serves a volume's OME-Zarr."""
    inside = ".ome.zarr" if folder.sub is None else f"/{folder.volume}"
    return f"{DATA}/{folder.name}{inside}/"


class Shelf:
    """The finished volumes of one store. Safe for threads."""

    def __init__(self, store: Store, names: Callable[[], Iterable[str]], open_volume: Callable[[str], Volume]) -> None:
        """`names` are all datasets that there may be; `open_volume` opens one by its id, `name` or `name/volume`."""
        self.store = store
        self._names, self._open_volume = names, open_volume
        self._lock = threading.Lock()
        self._records: dict[str, tuple[float, DatasetRecord | None]] = {}
        self._open: OrderedDict[str, tuple[object, Volume]] = OrderedDict()

    def entries(self) -> list[Entry]:
        """Every volume that can be read now, datasets by name, each followed by its further volumes."""
        names = sorted(set(self._names()))
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:  # one round trip each on S3
            return [entry for found in pool.map(self._entries_of, names) for entry in found]

    def _entries_of(self, name: str) -> list[Entry]:
        try:
            record = self._record(name, is_listed=True)
        except Malformed:
            return []  # whoever asks for it by name is told
        if record is None or _why_not(record) is not None:
            return []
        return [Entry(DatasetFolder(self.store, name, sub), record) for sub in (None, *sorted(record.volumes))]

    def entry(self, name: str, sub: str | None = None) -> Entry:
        """A volume by its names. Raises NotServed, and Malformed about a damaged record."""
        given = name if sub is None else f"{name}/{sub}"
        record = self._record(name) if re.fullmatch(NAME_PATTERN, name) else None
        if record is None and name not in set(self._names()):
            near = difflib.get_close_matches(name, sorted(set(self._names())), n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise NotServed(f"there is no dataset {name[:80]!r}; {hint}/v1/datasets lists all.", is_known=False)
        why = f"it is not stored here: run `em-assets get {name}`" if record is None else _why_not(record)
        if record is None or why is not None:
            raise NotServed(f"{name} cannot be read yet: {why}.", is_known=True)
        if sub is not None and sub not in record.volumes:
            has = ", ".join(f"{name}/{one}" for one in sorted(record.volumes)) or "none"
            raise NotServed(
                f"there is no volume {given[:160]!r}; the further volumes of {name}: {has}.", is_known=False
            )
        return Entry(DatasetFolder(self.store, name, sub), record)

    def volume(self, entry: Entry) -> Volume:
        """The volume of an entry, open. It is opened again when its dataset was made anew."""
        version = (entry.record.sha256, entry.record.timestamp)
        with self._lock:
            found = self._open.get(entry.id)
            if found is not None and found[0] == version:
                self._open.move_to_end(entry.id)
                return found[1]
        volume = self._open_volume(entry.id)
        with self._lock:
            self._open[entry.id] = (version, volume)
            while len(self._open) > OPEN_AT_MOST:
                self._open.popitem(last=False)
        return volume

    def forget(self, entry: Entry) -> None:
        """Open it again next time: it could not be read as it was."""
        with self._lock:
            self._open.pop(entry.id, None)

    def _record(self, name: str, *, is_listed: bool = False) -> DatasetRecord | None:
        """Believed for a while. Of names that are not listed only finds are remembered: there is no end of them."""
        now = time.monotonic()
        with self._lock:
            if name in self._records and now - self._records[name][0] < RECORD_SECONDS:
                return self._records[name][1]
        record = DatasetFolder(self.store, name).read_record()
        with self._lock:
            if record is not None or is_listed:
                self._records[name] = (now, record)
            else:
                self._records.pop(name, None)
        return record


def _why_not(record: DatasetRecord) -> str | None:
    """Why no block of a dataset can be read, None if they can be."""
    if record.visible_status != "complete":
        reason = f" ({record.status_reason})" if record.status_reason else ""
        return f"it is {record.visible_status}{reason}"
    if "volume" not in record.local_paths:
        return "only the publisher's files are kept; set `keep: both` in its spec and run `em-assets get` again"
    return None


def _list(values: tuple[Any, ...] | None) -> list[Any] | None:
    return None if values is None else list(values)
