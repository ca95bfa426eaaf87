"""What lies above runs: the JSON and pictures of datasets and depositions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from em_assets.errors import EmAssetsError, Malformed, Unavailable
from em_assets.fetch.replies import NotThere
from em_assets.ingest.copying import Sources
from em_assets.ingest.ledger import EntityRecord, file_output
from em_assets.ingest.making import Bench, Job, Made, Progress, Values
from em_assets.ingest.plan import Found, IngestPlan
from em_assets.ingest.report import EntityOutcome
from em_assets.ingest.run_context import stated
from em_assets.portal import entities, layout
from em_assets.portal.layout import RunPlace
from em_assets.settings import Settings
from em_assets.store import Store, open_store

if TYPE_CHECKING:
    from em_assets.fetch.http import HttpClient

PICTURES: tuple[layout.Picture, ...] = ("snapshot", "thumbnail")
MAX_PICTURE_BYTES = 64 * 2**20
MAGIC = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif"}
BARE_BUCKET = "cryoetportal-rawdatasets-dev"
"""The portal's configs name pictures in this bucket of theirs without a scheme."""
NOT_REPORTED, UNKNOWN = "not_reported", "unknown"
INSTEAD: Mapping[str, Values] = {
    "assay": {"name": NOT_REPORTED},
    "disease": {"name": NOT_REPORTED},
    "development_stage": {"id": UNKNOWN, "name": UNKNOWN},
}
"""The portal's own words for what its schema asks for and a config does not say."""
NAMED = ("organism", "tissue", "cell_type", "cell_strain", "cell_component")


def make_above(
    plan: IngestPlan,
    source: Store,
    destination: Store,
    settings: Settings,
    progress: Progress | None,
    *,
    verify: bool = False,
) -> tuple[EntityOutcome, ...]:
    """Every dataset, then every deposition, after the runs: a dataset's picture may be its first tomogram's."""
    pictures = _Fetcher(settings)
    outcomes: list[EntityOutcome] = []
    for found in (*plan.datasets, *plan.depositions):
        number = int(found.name)
        is_deposition = found.kind == "deposition"
        place = f"depositions_metadata/{number}" if is_deposition else f"{number}/Images"
        deposition_id = number if is_deposition else int(found.parents["deposition"])
        bench = Bench(
            source,
            destination,
            place,
            deposition_id=deposition_id,
            settings=settings,
            progress=progress,
            verify=verify,
        )
        outcomes += _Above(plan, found, bench, pictures).all()
    return tuple(outcomes)


@dataclass
class _Above:
    """One dataset or deposition."""

    plan: IngestPlan
    found: Found
    bench: Bench
    fetcher: _Fetcher

    def __post_init__(self) -> None:
        size_bytes = self.bench.destination.size_bytes(self.metadata_key)
        if size_bytes is not None:  # a dataset's lies above its pictures
            self.bench.ledger.sizes[self.metadata_key] = size_bytes

    @property
    def number(self) -> int:
        return int(self.found.name)

    @property
    def metadata_key(self) -> str:
        is_deposition = self.found.kind == "deposition"
        return layout.deposition_metadata(self.number) if is_deposition else layout.dataset_metadata(self.number)

    def all(self) -> list[EntityOutcome]:
        if not self.found.is_new or not self.found.metadata:
            note = "The config says nothing of it, so it is not written." if self.found.is_new else ""
            self.bench.leave(self.found.kind, self.found.name, self.found.line, note)
            return self.bench.outcomes
        pictures = {which: self._picture(which) for which in PICTURES}
        if not any(outcome.status == "failed" for outcome in self.bench.outcomes):
            self._metadata(pictures)
        return self.bench.outcomes

    # Pictures

    def _picture(self, which: layout.Picture) -> str | None:
        """The key of the picture in the tree; None if there is none, which an outcome says if that is a failure."""
        kind = f"{self.found.kind}_keyphoto"
        photos = [
            photo
            for photo in self.plan.key_photos
            if photo.kind == kind
            and PurePosixPath(photo.name).stem == which
            and photo.parents.get(self.found.kind) == self.found.name
        ]
        given = next((photo for photo in photos if photo.paths), None)
        try:
            if given is not None:
                return self._stored(kind, which, given.line, given.paths[0])
            own = self._of_first_tomogram(which) if self.found.kind == "dataset" else None
            return None if own is None else self._stored(kind, which, 0, own, is_own=True)
        except EmAssetsError as error:
            self.bench.fail(kind, which, given.line if given else 0, str(error))
            return None

    def _stored(self, kind: str, which: layout.Picture, line: int, address: str, *, is_own: bool = False) -> str | None:
        is_address = not is_own and _is_address(address)
        paths = [] if is_own or is_address else [address]

        def build(_sources: Sources) -> Made:
            data = self._bytes(address, is_address=is_address, is_own=is_own)
            key = self._key(which, _suffix(data, address))
            self.bench.destination.write(key, data)
            return Made((file_output(key, data),))

        own = hashlib.sha256(self.bench.destination.read(address)).hexdigest() if is_own else None
        record = self.bench.make(Job(kind, which, line, paths, [address, own], build))
        return record.outputs[0].key if record is not None else None

    def _key(self, which: layout.Picture, suffix: str) -> str:
        if self.found.kind == "deposition":
            return layout.deposition_image(self.number, which, suffix)
        return layout.dataset_image(self.number, which, suffix)

    def _bytes(self, address: str, *, is_address: bool, is_own: bool) -> bytes:
        store = self.bench.destination if is_own else self.bench.source
        size_bytes = None if is_address else store.size_bytes(address)
        if size_bytes is not None and size_bytes > MAX_PICTURE_BYTES:
            raise Malformed(f"{address} has {size_bytes} bytes, expected a picture of at most {MAX_PICTURE_BYTES}.")
        try:
            return self.fetcher.get(address) if is_address else store.read(address)
        except FileNotFoundError:
            raise Unavailable(f"{address} is not there; correct the config's key photo, or remove it.") from None

    def _of_first_tomogram(self, which: layout.Picture) -> str | None:
        """The key of the picture of the first run's first tomogram that has one."""
        wanted = f"/key-photo-{which}.png"
        for run in self.plan.runs:
            if run.run.parents["dataset"] == self.found.name:
                folder = RunPlace(self.number, run.run.name).folder
                below = (key for key, _ in self.bench.destination.list(f"{folder}/Reconstructions"))
                found = next((key for key in below if "/Images/" in key and key.endswith(wanted)), None)
                if found is not None:
                    return found
        return None

    # Metadata

    def _metadata(self, pictures: Mapping[layout.Picture, str | None]) -> EntityRecord | None:
        is_deposition = self.found.kind == "deposition"
        values = stated(self.found) if is_deposition else _completed(stated(self.found))
        identifier = f"{self.found.kind}_identifier"
        values = {identifier: self.number} | values | {"key_photos": dict(pictures)}
        notes: tuple[str, ...] = ()
        if values[identifier] != self.number:
            notes = (f"{identifier} is {values[identifier]}, but its folder is {self.number}.",)
        return self.bench.make(
            Job(
                self.found.kind,
                self.found.name,
                self.found.line,
                [],
                values,
                lambda _sources: Made((), values, notes=notes),
                entities.DepositionMetadata if is_deposition else entities.DatasetMetadata,
                self.metadata_key,
                values,
                f"{self.plan.config.file}, line {self.plan.config.line(self.found.block)}, {self.found.block}.metadata",
            )
        )


def _completed(values: Values) -> Values:
    """With the portal's words where its schema asks for a value and the config has none."""
    completed = dict(INSTEAD) | values
    for key in NAMED:
        part = completed.get(key)
        if isinstance(part, dict) and "name" not in part:
            completed[key] = part | {"name": NOT_REPORTED}
    return completed


def _is_address(path: str) -> bool:
    return "://" in path or path.startswith(f"{BARE_BUCKET}/")


class _Fetcher:
    """Pictures by address. One client for all: a host that does not answer is waited for once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: HttpClient | None = None

    def get(self, address: str) -> bytes:
        """Raises Unavailable, NotThere and Malformed for what cannot be had."""
        if address.startswith(("http://", "https://")):
            return bytes(self._http().get(address, max_bytes=MAX_PICTURE_BYTES).body)
        bucket, _, key = address.removeprefix("s3://").partition("/")
        store = open_store(f"s3://{bucket}")
        size_bytes = store.size_bytes(key) if key else None
        if size_bytes is None:
            raise NotThere(f"{address} is not there; correct the config's key photo, or remove it.", 404)
        if size_bytes > MAX_PICTURE_BYTES:
            raise Malformed(f"{address} has {size_bytes} bytes, expected a picture of at most {MAX_PICTURE_BYTES}.")
        return store.read(key)

    def _http(self) -> HttpClient:
        from em_assets.fetch.http import HttpClient

        self._client = self._client or HttpClient(self._settings)
        return self._client


def _suffix(data: bytes, name: str) -> str:
    """By what is in it: an address may end in anything, and a server may send a page."""
    known = next((suffix for magic, suffix in MAGIC.items() if data.startswith(magic)), None)
    if known is None:
        raise Malformed(
            f"{name} is no PNG, JPEG or GIF (it begins {data[:8].hex(' ')}); correct the config's key photo, or remove "
            "it."
        )
    return known
