"""The publisher's replies and pages about a dataset, kept raw once they came; and what they and the files state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from em_assets.datasets.spec import DatasetSpec
from em_assets.fetch.http import HttpClient
from em_assets.pipeline.state import DatasetState
from em_assets.settings import Settings
from em_assets.store import Store
from em_assets.volume import Claim

if TYPE_CHECKING:
    from em_assets.pipeline.job import Job


DOCUMENT_RETRY_SECONDS = 60.0
"""A document is worth a minute of a server that fails again and again, not ten."""
DOCUMENT_UNREACHABLE_SECONDS = 5.0
"""Nor does it hold up a dataset for long where its server is not there."""


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
    from em_assets.sources.documents import fetch_documents

    here = {path for path, _ in job.store.list(job.folder.path("documents"))}
    wanted = [item for item in job.spec.documents if job.folder.path(f"documents/{item.path}") not in here]
    if not wanted:
        return None
    settings = job.settings
    patience = {
        "retry_seconds": min(settings.retry_seconds, DOCUMENT_RETRY_SECONDS),
        "unreachable_seconds": min(settings.unreachable_seconds, DOCUMENT_UNREACHABLE_SECONDS),
    }
    found, missing = fetch_documents(job.spec, HttpClient(settings.model_copy(update=patience)), wanted)
    for path, data in found.items():
        job.folder.write(path, data)
    for path, reason in missing.items():
        job.log(f"{job.spec.name}: {path} is left out for now: {reason}")
    return missing


def stored_claims(spec: DatasetSpec, settings: Settings, store: Store) -> list[Claim]:
    """Everything that the stored documents, the received files and the spec state. No network."""
    from em_assets.sources import describe
    from em_assets.sources.files import claims_of_files

    state = DatasetState.read(spec, store)
    prefix = f"{spec.name}/"
    paths = [path.removeprefix(prefix) for path, _ in store.list(state.folder.path("documents"))]
    claims = describe(spec, {path: state.folder.read(path) for path in paths})
    if spec.is_by_file and not state.missing:
        from em_assets.pipeline.files import bytes_of_stored

        claims += claims_of_files(spec, bytes_of_stored(state), settings)
    return claims
