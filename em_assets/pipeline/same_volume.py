"""Comparing a volume with the publisher's other files of the same voxels, cut another way: every voxel, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from em_assets.datasets.source import FilesSource, VolumeFiles
from em_assets.originals import file_key

if TYPE_CHECKING:
    from em_assets.pipeline.job import Job


def compare_cuts(job: Job) -> None:
    """Notes the outcome in the record; what was compared before is not compared again while its files are the same."""
    from em_assets.pipeline.files import bytes_of_stored
    from em_assets.sources.files import open_main, open_volume_files
    from em_assets.sources.voxels import compare_same_volume

    source = job.spec.source
    assert isinstance(source, FilesSource)
    if not source.same_volume:
        return
    known = {item["inputs"]: item for item in job.record.additional_metadata.get("same_volume", [])}
    outcomes = []
    for files in source.same_volume:
        inputs = f"{_digests(job, source.volume)} {_digests(job, files)}"
        if inputs not in known:
            job.log(f"{job.spec.name}: comparing {files.files[0]} with the volume")
            bytes_of = bytes_of_stored(job.state)
            main = open_main(job.spec, bytes_of, job.settings)
            other = open_volume_files(job.spec, files, bytes_of, job.settings)
            voxels, different, first = compare_same_volume(main, other)
            known[inputs] = {
                "files": list(files.files),
                "axes": files.axes,
                "compared_voxels": voxels,
                "different_voxels": different,
                "first_difference": None if first is None else list(first),
                "inputs": inputs,
            }
        outcomes.append(known[inputs])
    job.note(same_volume=outcomes)


def _digests(job: Job, files: VolumeFiles) -> str:
    """Everything that decides what the files say."""
    digests = ",".join(job.state.receipts[file_key(path)].sha256[:16] for path in files.paths())
    return f"{files.axes}:{files.dataset or ''}:{digests}"
