"""Publishers' replies and pages and containers' metadata, kept raw once they came; what they and the files state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from em_assets.catalog.claims import Origin
from em_assets.datasets.source import METADATA_NAMES, ChunkedSource, Document, PrecomputedSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError
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
        job.set_status("complete", additional_metadata=known)


def _receive(job: Job) -> dict[str, str] | None:
    """Why each document that is still missing cannot be had; None if none was missing."""
    wanted = _absent(job.spec, job.folder)
    return _receive_documents(job.spec, job.settings, job.folder, wanted, job.log).missing if wanted else None


def receive_all(spec: DatasetSpec, settings: Settings, folder: DatasetFolder, log: Log, *, refresh: bool) -> Received:
    """Every document that is not here yet, also a container's own metadata; with `refresh` those that are, too.

    A document is replaced only by one that arrived whole and is believed. What cannot be had stops nothing.
    """
    wanted = list(spec.documents) if refresh else _absent(spec, folder)
    received = _receive_documents(spec, settings, folder, wanted, log)
    if not spec.is_by_file:
        _receive_container(spec, _patient(settings), folder, received, log, refresh=refresh)
    return received


def write_missing(folder: DatasetFolder, missing: Mapping[str, str]) -> None:
    """Keeps why documents could not be had when they were last asked for, also of a dataset without a record."""
    if missing:
        folder.write(DOCUMENTS_MISSING, json.dumps(missing, indent=1, ensure_ascii=False).encode() + b"\n")
    else:
        folder.store.delete(folder.path(DOCUMENTS_MISSING))


def keep_container_documents(folder: DatasetFolder, spec: DatasetSpec, documents: Mapping[str, bytes]) -> None:
    """Keeps the metadata documents of a chunked volume, as they were received when it was opened."""
    for path, data in documents.items():
        url = document_url(spec, path)
        assert url is not None, f"{path} is no metadata document"
        folder.write_document(path, data, url)


def _absent(spec: DatasetSpec, folder: DatasetFolder) -> list[Document]:
    here = set(folder.documents())
    return [item for item in spec.documents if document_path(item.path) not in here]


def _receive_documents(
    spec: DatasetSpec, settings: Settings, folder: DatasetFolder, wanted: Sequence[Document], log: Log
) -> Received:
    from em_assets.sources.documents import fetch_documents

    if not wanted:
        return Received()
    found, missing = fetch_documents(spec, HttpClient(_patient(settings)), wanted)
    url_of = {document_path(item.path): item.url for item in wanted}
    for path, data in found.items():
        folder.write_document(path, data, url_of[path])
    here = set(folder.documents())
    reasons = {path: reason + STAYS if path in here else reason for path, reason in missing.items()}
    for path, reason in reasons.items():
        log(f"{spec.name}: {path} is left out for now: {reason}")
    return Received(list(found), reasons)


def _receive_container(
    spec: DatasetSpec, settings: Settings, folder: DatasetFolder, received: Received, log: Log, *, refresh: bool
) -> None:
    """Opens the volumes whose metadata are not here, and keeps what describes them."""
    from em_assets.sources import open_source

    kept = [path for path in folder.documents() if path.endswith(METADATA_NAMES)]
    is_here = {sub: any(path.startswith(begin) for path in kept) for sub, begin in _container_paths(spec).items()}
    wanted = {sub: begin for sub, begin in _container_paths(spec).items() if refresh or not is_here[sub]}
    if not wanted:
        return
    reasons: dict[str | None, str] = {}
    try:
        source = open_source(spec, settings)
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
        keep_container_documents(folder, spec, documents)
        received.paths += documents
    for sub, reason in reasons.items():
        received.missing[wanted[sub]] = reason + STAYS if is_here[sub] else reason
        log(f"{spec.name}: {wanted[sub]} is left out for now: {received.missing[wanted[sub]]}")


def _container_paths(spec: DatasetSpec) -> dict[str | None, str]:
    """How the paths of a volume's metadata documents begin, by volume."""
    if isinstance(spec.source, PrecomputedSource):
        return {None: document_path("info.json")}
    assert isinstance(spec.source, ChunkedSource)
    groups: dict[str | None, str | None] = {None: spec.source.group}
    groups |= {sub: volume.group for sub, volume in spec.volumes.items()}
    return {sub: document_path((group or "").replace("/", "__")) for sub, group in groups.items()}


def _patient(settings: Settings) -> Settings:
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
