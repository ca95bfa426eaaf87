"""What a dataset's record says before anything is measured: the spec's words, and where things will lie."""

from __future__ import annotations

from em_assets.datasets.spec import DatasetSpec
from em_assets.records import DatasetFolder, DatasetRecord, now


def described(record: DatasetRecord | None, spec: DatasetSpec) -> DatasetRecord:
    """The record with the spec's present words about source, licence and citation; what was measured stays."""
    listed = listed_record(spec)
    if record is None:
        return listed
    words = ("source", "source_id", "title", "description", "license", "citation", "doi", "page_url", "download_url")
    further = {
        name: summary.model_copy(
            update={word: getattr(spec.volumes[name], word) for word in ("title", "doi", "labels_of")}
        )
        if name in spec.volumes
        else summary
        for name, summary in record.volumes.items()
    }
    return record.model_copy(update={**{word: getattr(listed, word) for word in words}, "volumes": further})


def listed_record(spec: DatasetSpec) -> DatasetRecord:
    """The record of a dataset of which nothing is stored yet: what its spec states."""
    return DatasetRecord(
        name=spec.name,
        source=spec.publisher,
        source_id=spec.source_id,
        title=spec.title,
        description=spec.description,
        volume_shape=spec.shape,
        voxel_size_nm=spec.voxel_size_nm,
        dtype=spec.dtype,
        license=spec.license,
        citation=spec.citation,
        doi=spec.doi,
        page_url=spec.page_url,
        download_url=spec.source.url,
        local_paths={},
        status="listed",
        timestamp=now(),
        identity=spec.identity(),
    )


def local_paths(folder: DatasetFolder, spec: DatasetSpec) -> dict[str, str]:
    """What is where, for people and programs: absolute paths or s3:// addresses."""
    entries = {"manifest": "manifest.parquet", "records": "records", "documents": "documents", "checks": "checks"}
    for sub in spec.layouts():
        prefix = "" if sub is None else f"{sub} "
        volume = folder.further(sub)
        entries |= {
            f"{prefix}volume": volume.volume,
            f"{prefix}coverage": volume.coverage,
            f"{prefix}preview": volume.preview,
        }
    if spec.makes_standard:
        entries["intensity"] = "intensity.json"
    if spec.keeps_original:
        entries["original"] = "original"
    if spec.points:
        entries["points"] = "points"
    return {name: folder.uri(relative) for name, relative in entries.items()}
