"""Annotations of a portal's tomogram that cannot be had: named in the record, left out, and asked for again next time.

A mask whose key is in the portal's metadata and not in its bucket must not keep anybody from the tomogram. A server
that does not answer is another matter: then the run fails, and the next one goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError, Unavailable
from em_assets.originals import file_key
from em_assets.pipeline.state import DatasetState
from em_assets.records import DatasetRecord

if TYPE_CHECKING:
    from em_assets.pipeline.job import FetchResult, Job

ABSENT = "volumes_missing"
"""Key of the record's additional metadata: why each further volume could not be had, a sentence by name."""


def may_be_absent(spec: DatasetSpec, sub: str | None, error: BaseException) -> bool:
    """Whether the dataset goes on without a volume that failed so."""
    if sub is None or spec.portal is None or spec.volumes[sub].annotation is None:
        return False
    return isinstance(error, EmAssetsError) and not isinstance(error, Unavailable)


def recorded_absent(record: DatasetRecord | None, spec: DatasetSpec) -> dict[str, str]:
    """What the last run could not have, of volumes that the spec still names."""
    noted = record.additional_metadata.get(ABSENT) if record is not None else None
    if not isinstance(noted, dict):
        return {}
    return {name: str(reason) for name, reason in noted.items() if name in spec.volumes}


def leave_out(job: Job, absent: Mapping[str, str]) -> None:
    """From here on the job is about the dataset without these volumes."""
    if not absent:
        return
    for name, reason in absent.items():
        job.log(f"{job.spec.name}/{name} is left out for now: {reason}")
    job.absent |= absent
    job.spec = job.spec.without(absent)
    volumes = {name: summary for name, summary in job.record.volumes.items() if name not in absent}
    job.record = job.record.model_copy(update={"volumes": volumes})
    job.state = DatasetState.read(job.spec, job.store)


def leave_out_failed_files(job: Job, result: FetchResult) -> None:
    """Takes from the failures those files of which only annotations are made."""
    absent: dict[str, str] = {}
    for name, volume in job.spec.volumes.items():
        failed = [file_key(path) for path in volume.source.paths()] if volume.source is not None else []
        errors = [result.failures[key] for key in failed if key in result.failures]
        if errors and all(may_be_absent(job.spec, name, error) for error in errors):
            absent[name] = str(errors[0])
    kept = {file_key(path) for path in _paths(job.spec.without(absent))}
    result.failures = {key: error for key, error in result.failures.items() if key in kept}
    leave_out(job, absent)


def note_absent(job: Job) -> str | None:
    """Keeps in the record what is left out; one sentence of it for the status, None if nothing is."""
    known = {key: value for key, value in job.record.additional_metadata.items() if key != ABSENT}
    if job.absent:
        known[ABSENT] = dict(job.absent)
    if known != job.record.additional_metadata:
        job.set_status("saving-data", additional_metadata=known)
    if not job.absent:
        return None
    first, *others = job.absent
    more = f" (and {len(others)} more)" if others else ""
    return f"complete without {first}{more}: {job.absent[first]}"


def still_absent(job: Job, noted: Mapping[str, str]) -> dict[str, str]:
    """Asks again for what was left out: the reasons of those that still cannot be had."""
    reasons: dict[str, str] = {}
    for name, reason in noted.items():
        try:
            _ask(job, name)
        except EmAssetsError as error:
            reasons[name] = reason if isinstance(error, Unavailable) else str(error)
    return reasons


def _ask(job: Job, name: str) -> None:
    """Raises what keeps the volume from being had."""
    from em_assets.fetch.http import HttpClient
    from em_assets.pipeline.documents import patient
    from em_assets.sources import open_source

    current, settings = job.current, patient(job.settings)
    volume = current.spec.volumes[name]
    if volume.source is None:
        open_source(job.spec, settings, current).volume_reader(name)
        return
    source, client = current.spec.source, HttpClient(settings)
    assert source.kind == "files"
    for path in volume.source.paths():
        client.get_range(source.file_url(path), 0, 1)


def _paths(spec: DatasetSpec) -> list[str]:
    assert spec.source.kind == "files"
    return list(spec.source.by_path())
