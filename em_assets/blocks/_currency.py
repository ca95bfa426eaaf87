"""Whether a stored dataset is still the one that was opened, asked as seldom as that can be known.

In a folder each read costs a `stat`. On S3 and web servers a look at the record is a round trip, as long as a block may
take. There it is due when some seconds have passed, and when a shard turns out to be newer than the record and than all
shards that were seen before the last look: whoever makes a dataset anew hides its record first and writes shards later.
Each shard by itself is of one version (`_remote.py`); this is for the several that a block may touch.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from em_assets.errors import Mismatch, Unavailable

if TYPE_CHECKING:
    from em_assets.fetch.streams import Version
    from em_assets.records import DatasetFolder

LOOK_EVERY_SECONDS = 10.0
"""On S3 and web servers: a request in so many seconds for each process and volume."""


class Currency:
    """Of one dataset in one process. Safe for use by several threads."""

    def __init__(
        self,
        folder: DatasetFolder,
        sha256: str | None,
        *,
        every_seconds: float = LOOK_EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sha256`: the dataset's, when it was opened."""
        self._folder, self._sha256, self._clock = folder, sha256, clock
        self._file = folder.store.local_path(folder.path("metadata.json"))
        self._every_seconds = every_seconds if self._file is None else 0.0
        self._looking, self._seeing = threading.Lock(), threading.Lock()
        self._looked_at = -math.inf
        self._found: tuple[int, int] | None = None
        """The record's file, as it was when it was last read."""
        self._newest_seconds = self._trusted_seconds = -math.inf
        """When the newest shard was written: of all that were seen, and of those that the last look speaks for."""

    def saw(self, version: Version) -> None:
        """Chunks of a shard of this version are about to be given to a read. Call it before they are."""
        seconds = None if version.last_modified is None else _seconds(version.last_modified)
        if seconds is not None and seconds > self._newest_seconds:
            with self._seeing:
                self._newest_seconds = max(self._newest_seconds, seconds)

    def require(self) -> None:
        """Before and after a read. Raises Unavailable while the dataset is being written, Mismatch if it is another.

        What was read between two calls is of the dataset that was opened. Only where a server does not date its
        objects, or dates them by another clock than the writer's, that may be known `every_seconds` later.
        """
        with self._looking:
            if self._is_due():
                looked_at, seen = self._clock(), self._newest_seconds  # what is seen meanwhile counts for the next look
                self._trusted_seconds = max(seen, self._look())
                self._looked_at = looked_at

    def _is_due(self) -> bool:
        is_old = self._clock() - self._looked_at >= self._every_seconds
        return is_old or self._newest_seconds > self._trusted_seconds

    def _look(self) -> float:
        """When the record was written: after all its shards."""
        signature = self._signature()  # first: a record that is replaced meanwhile is read again next time
        if signature is not None and signature == self._found:
            return self._trusted_seconds
        record, name = self._folder.read_record(), self._folder.name
        if record is None or record.visible_status != "complete":
            status = "gone" if record is None else record.visible_status
            raise Unavailable(f"{name} is {status} since it was opened; finish it with `em-assets get {name}`.")
        if record.sha256 != self._sha256:
            raise Mismatch(f"{name} has other voxels than when it was opened; open it again.")
        self._found = signature
        return record.timestamp.timestamp()

    def _signature(self) -> tuple[int, int] | None:
        """None where there is no file to look at."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns


@lru_cache(4096)
def _seconds(last_modified: str) -> float | None:
    """Since 1970; None for what is no date."""
    try:
        date = parsedate_to_datetime(last_modified)
    except ValueError:
        return None
    return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
