"""Publishers' replies and pages and containers' metadata, kept raw once they came; what they and the files state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from em_assets.catalog.claims import Origin
from em_assets.datasets.source import METADATA_NAMES, ChunkedSource, Document, PrecomputedSource
from em_assets.datasets.spec import PORTAL_DOCUMENTS, DatasetSpec
from em_assets.errors import EmAssetsError, Mismatch
from em_assets.fetch.http import HttpClient
from em_assets.originals import original_path
from em_assets.pipeline.locking import Log
from em_assets.pipeline.state import DatasetState
from em_assets.records import DOCUMENTS_MISSING, DatasetFolder
from em_assets.settings import Settings
from em_assets.sources.claims import (
    SPEC_DOCUMENT,
    claims_of_document,
    claims_of_spec,
    document_path,
    document_url,
    natural_order,
    spec_document,
)
from em_assets.sources.cryoet import CurrentSpec, current_spec, stated_spec
from em_assets.store import Store
from em_assets.volume import Claim

if TYPE_CHECKING:
    from em_assets.pipeline.job import Job


DOCUMENT_RETRY_SECONDS = 60.0
"""A document is worth a minute of a server that fails again and again, not ten."""
DOCUMENT_UNREACHABLE_SECONDS = 5.0
"""Nor does it hold up a dataset for long where its server is not there."""
STAYS = " What is here of it stays."


@dataclass
class Received:
    """What came when documents were asked for."""

    paths: list[str] = field(default_factory=list)
    """Of the documents that are here now, below the dataset's folder."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why others could not be had, or not anew: a sentence each."""


def keep_documents(job: Job) -> None:
    """Receives the documents that are not here yet. One that cannot be had is noted, and stops nothing."""
    missing = _receive(job)
    if missing is not None:
        job.note(documents_missing=missing)


def complete_documents(job: Job) -> None:
    """The same for a dataset that is complete, and stays so."""
    missing = _receive(job)
    if missing is not None and missing != job.record.additional_metadata.get("documents_missing"):
        known = {**job.record.additional_metadata, "documents_missing": missing}
        job.set_status("complete", job.record.status_reason, additional_metadata=known)


def _receive(job: Job) -> dict[str, str] | None:
    """Why each document that is still missing cannot be had; None if none was missing."""
    if not _absent(job.spec, job.folder) and not _lacks_replies(job.spec, job.folder):
        return None
    current = _current(lambda: job.current, job.spec)
    received = _receive_documents(current, job.settings, job.folder, job.log, refresh=False)
    return received.missing


def receive_all(spec: DatasetSpec, settings: Settings, folder: DatasetFolder, log: Log, *, refresh: bool) -> Received:
    """Every document that is not here yet, also a container's own metadata; with `refresh` those that are, too.

    A document is replaced only by one that arrived whole and is believed. What cannot be had stops nothing.
    """
    container = [] if spec.is_by_file else _wanted_containers(spec, folder, refresh=refresh)
    if not (refresh or container or _absent(spec, folder) or _lacks_replies(spec, folder)):
        return Received()
    current = _current(lambda: current_spec(spec, patient(settings)), spec)
    received = _receive_documents(current, settings, folder, log, refresh=refresh)
    if container:
        of_container = _receive_container(current, patient(settings), folder, log, container)
        received = Received(received.paths + of_container.paths, received.missing | of_container.missing)
    return received


def _current(ask: Callable[[], CurrentSpec], spec: DatasetSpec) -> CurrentSpec:
    """The spec with the addresses of now; as it is where a portal no longer says which tomogram is meant.

    That keeps voxels from being fetched. Documents stop nothing, least of all a dataset that is complete.
    """
    try:
        return ask()
    except Mismatch as error:
        return stated_spec(spec, str(error))


def write_missing(folder: DatasetFolder, missing: Mapping[str, str]) -> None:
    """Keeps why documents could not be had when they were last asked for, also of a dataset without a record."""
    if missing:
        folder.write(DOCUMENTS_MISSING, json.dumps(missing, indent=1, ensure_ascii=False).encode() + b"\n")
    else:
        folder.store.delete(folder.path(DOCUMENTS_MISSING))


def keep_container_documents(folder: DatasetFolder, current: CurrentSpec, documents: Mapping[str, bytes]) -> None:
    """Keeps the metadata documents of a chunked volume, as they were received when it was opened.

    They are kept where the spec has its groups, by which they are found again; their receipts say where they lay.
    """
    for path, data in documents.items():
        url = document_url(current.spec, path)
        assert url is not None, f"{path} is no metadata document"
        folder.write_document(current.kept_path(path), data, url)


def _absent(spec: DatasetSpec, folder: DatasetFolder) -> list[Document]:
    here = set(folder.documents())
    return [item for item in spec.all_documents if document_path(item.path) not in here]


def _lacks_replies(spec: DatasetSpec, folder: DatasetFolder) -> bool:
    """Whether a portal has not said yet where its tomogram lies."""
    replies = {document_path(name) for name in PORTAL_DOCUMENTS}
    return spec.portal is not None and not replies <= set(folder.documents())


def _receive_documents(
    current: CurrentSpec, settings: Settings, folder: DatasetFolder, log: Log, *, refresh: bool
) -> Received:
    from em_assets.sources.documents import fetch_documents

    spec = current.spec
    wanted = list(spec.all_documents) if refresh else _absent(spec, folder)
    found, missing = fetch_documents(spec, HttpClient(patient(settings)), wanted)
    found |= current.documents
    missing |= current.unanswered
    for path, data in found.items():
        url = document_url(spec, path)
        assert url is not None, f"{path} is no document of the spec"
        folder.write_document(path, data, url)
    here = set(folder.documents())
    reasons = {path: reason + STAYS if path in here else reason for path, reason in missing.items()}
    for path, reason in reasons.items():
        log(f"{spec.name}: {path} is left out for now: {reason}")
    return Received(list(found), reasons)


def _containers_here(spec: DatasetSpec, folder: DatasetFolder) -> dict[str | None, bool]:
    """Whether any metadata of each volume are here."""
    kept = [path for path in folder.documents() if path.endswith(METADATA_NAMES)]
    begins = _container_paths(spec)
    return {sub: any(path.startswith(begin) for path in kept) for sub, begin in begins.items()}


def _wanted_containers(spec: DatasetSpec, folder: DatasetFolder, *, refresh: bool) -> list[str | None]:
    """The volumes whose metadata are not here; with `refresh` all."""
    return [sub for sub, is_here in _containers_here(spec, folder).items() if refresh or not is_here]


def _receive_container(
    current: CurrentSpec, settings: Settings, folder: DatasetFolder, log: Log, wanted: Sequence[str | None]
) -> Received:
    """Opens the volumes whose metadata are wanted, and keeps what describes them."""
    from em_assets.sources import open_source

    spec, received = current.stated, Received()
    is_here, begins = _containers_here(spec, folder), _container_paths(spec)
    reasons: dict[str | None, str] = {}
    try:
        source = open_source(spec, settings, current)
    except EmAssetsError as error:
        reasons = dict.fromkeys(wanted, str(error))
    else:
        for sub in wanted:
            try:
                if sub is not None:
                    source.volume_reader(sub)
            except EmAssetsError as error:
                reasons[sub] = str(error)
        documents = source.documents()
        keep_container_documents(folder, current, documents)
        received.paths += map(current.kept_path, documents)
    for sub, reason in reasons.items():
        begin = begins[sub]
        received.missing[begin] = reason + STAYS if is_here[sub] else reason
        log(f"{spec.name}: {begin} is left out for now: {received.missing[begin]}")
    return received


def _container_paths(spec: DatasetSpec) -> dict[str | None, str]:
    """How the paths of a volume's metadata documents begin, by volume."""
    if isinstance(spec.source, PrecomputedSource):
        return {None: document_path("info.json")}
    assert isinstance(spec.source, ChunkedSource)
    groups: dict[str | None, str | None] = {None: spec.source.group}
    groups |= {sub: volume.group for sub, volume in spec.volumes.items()}
    return {sub: document_path((group or "").replace("/", "__")) for sub, group in groups.items()}


def patient(settings: Settings) -> Settings:
    """With as much patience as a document is worth."""
    return settings.model_copy(
        update={
            "retry_seconds": min(settings.retry_seconds, DOCUMENT_RETRY_SECONDS),
            "unreachable_seconds": min(settings.unreachable_seconds, DOCUMENT_UNREACHABLE_SECONDS),
        }
    )


@dataclass
class Stated:
    """All that can be stated of a dataset from what is stored, and the spec."""

    spec: DatasetSpec
    settings: Settings
    state: DatasetState
    documents: dict[str, bytes]

    @classmethod
    def read(cls, spec: DatasetSpec, settings: Settings, store: Store) -> Stated:
        """Raises Mismatch if what lies under this name is not this dataset's."""
        state = DatasetState.read(spec, store)
        paths = sorted(state.folder.documents(), key=natural_order)
        return cls(spec, settings, state, {path: state.folder.read(path) for path in paths})

    def claims(self) -> Iterator[Claim]:
        """Of documents, then files, then the spec, each in natural order and its own order of keys. No network.

        Of files that are here only, those of a dataset that is not finished too. Raises Malformed for a document or
        file that is damaged.
        """
        for path, raw in self.documents.items():
            yield from claims_of_document(self.spec, path, raw)
        if self.spec.is_by_file and self.state.receipts:
            from em_assets.pipeline.files import bytes_of_stored
            from em_assets.sources.files import claims_of_files

            here = {receipt.path for receipt in self.state.receipts.values()}
            yield from claims_of_files(self.spec, bytes_of_stored(self.state), self.settings, here)
        yield from claims_of_spec(self.spec)

    def origins(self) -> dict[str, Origin]:
        """By document and file; of one that was kept without a receipt only what it is, not when it came."""
        folder = self.state.folder
        of_documents = {path: _origin(folder, path, raw) for path, raw in self.documents.items()}
        of_files = {
            original_path(receipt.path): Origin(receipt.sha256, receipt.url, receipt.downloaded_at)
            for receipt in self.state.receipts.values()
        }
        spec = Origin(hashlib.sha256(spec_document(self.spec)).hexdigest())
        return {**of_documents, **of_files, SPEC_DOCUMENT: spec}


def _origin(folder: DatasetFolder, path: str, raw: bytes) -> Origin:
    sha256, receipt = hashlib.sha256(raw).hexdigest(), folder.read_document_receipt(path)
    if receipt is None or receipt.sha256 != sha256:
        return Origin(sha256)
    return Origin(sha256, receipt.url, receipt.retrieved_at)
