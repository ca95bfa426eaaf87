"""Publishers of files (IDR, EMPIAR, EPFL): which there are and where, and the volumes that downloaded ones hold.

How files come here is `fetch/files.py`, what their formats are is `formats/`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from em_assets.datasets.source import FilesSource, VolumeFiles
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Mismatch
from em_assets.formats._bytes import ByteSource
from em_assets.formats.opening import open_file
from em_assets.formats.reader import Scalar, VolumeReader
from em_assets.originals import file_key, original_path
from em_assets.settings import Settings
from em_assets.sources.claims import claims_of_tags
from em_assets.sources.expected import require_expected
from em_assets.sources.transposed import as_zyx
from em_assets.volume import Claim, RemoteFile

BytesOf = Callable[[str], ByteSource]
"""The bytes of a received file, by its path in the spec."""


def remote_files(spec: DatasetSpec) -> dict[str, RemoteFile]:
    """Every file of the spec by partition key; a spec has no two files of one key."""
    source = _files_source(spec)
    return {
        file_key(path): RemoteFile(source.file_url(path), path, file.size_bytes, file.checksum)
        for path, file in source.by_path().items()
    }


def mirror_urls(spec: DatasetSpec, path: str) -> list[str]:
    """Where else the file lies, in the order to try."""
    source = _files_source(spec)
    return [source.file_url(path, base) for base in source.mirrors]


def open_volume_files(spec: DatasetSpec, files: VolumeFiles, bytes_of: BytesOf, settings: Settings) -> VolumeReader:
    """The volume that these files hold, as (z, y, x): one container, or a series of 2D images along z.

    Raises Mismatch if a file is not of the size that the spec pins, and what the format raises.
    """
    pinned = _files_source(spec).by_path()

    def checked(path: str) -> ByteSource:
        source, expected = bytes_of(path), pinned[path].size_bytes
        if expected not in (None, source.size_bytes):
            raise Mismatch(
                f"{spec.name}: {source.name} has {source.size_bytes} bytes, the spec expects {expected}; get it again, "
                "or look at what the publisher changed."
            )
        return source

    paths = files.paths()
    if len(paths) == 1:
        return as_zyx(open_file(checked(paths[0]), files.dataset, settings), files.axes)
    from em_assets.formats.series import open_series

    return as_zyx(open_series(paths, settings, dataset=files.dataset, bytes_of=checked), files.axes)


def open_main(spec: DatasetSpec, bytes_of: BytesOf, settings: Settings) -> VolumeReader:
    """The spec's volume. Raises Mismatch, Unsupported if it is not what is expected, and what its format raises."""
    files, expected = _files_source(spec).volume, spec.expected
    reader = open_volume_files(spec, files, bytes_of, settings)
    require_expected(
        _where(spec, files), reader.info, expected.source_shape, expected.dtype, expected.voxel_size_at_publisher_nm
    )
    return reader


def open_further(spec: DatasetSpec, name: str, bytes_of: BytesOf, settings: Settings) -> VolumeReader:
    """A further volume of the spec, likewise compared with what is expected of it."""
    volume = spec.volumes[name]
    assert volume.source is not None
    reader = open_volume_files(spec, volume.source, bytes_of, settings)
    where = f"{_where(spec, volume.source)} (volume {name})"
    require_expected(where, reader.info, (volume.shape,), volume.dtype, volume.voxel_size_nm)
    return reader


def claims_of_files(spec: DatasetSpec, bytes_of: BytesOf, settings: Settings) -> list[Claim]:
    """What the files of every volume say of themselves; of a series, what each says otherwise than its first."""
    source = _files_source(spec)
    further = [volume.source for volume in spec.volumes.values() if volume.source is not None]
    claims: list[Claim] = []
    for files in dict.fromkeys((source.volume, *source.same_volume, *further)):
        reader = open_volume_files(spec, files, bytes_of, settings)
        for path, tags in _tags_by_file(reader, files.paths()):
            claims += claims_of_tags(tags, original_path(path), source.file_url(path))
    return claims


def _tags_by_file(reader: VolumeReader, paths: Sequence[str]) -> Iterator[tuple[str, Iterator[tuple[str, Scalar]]]]:
    """A series puts the name of the file before each of its tags; what it says of itself goes with the first."""
    if len(paths) == 1:
        yield paths[0], reader.tags()
        return
    path_of = {path.rpartition("/")[2]: path for path in paths}
    for name, tags in itertools.groupby(reader.tags(), lambda tag: tag[0].split("/")[1]):
        prefix = f"/{name}" if name in path_of else ""
        yield path_of.get(name, paths[0]), ((key.removeprefix(prefix), value) for key, value in tags)


def _files_source(spec: DatasetSpec) -> FilesSource:
    assert isinstance(spec.source, FilesSource), f"{spec.name} publishes {spec.source.kind}, not files"
    return spec.source


def _where(spec: DatasetSpec, files: VolumeFiles) -> str:
    first, *others = files.paths()
    return f"{spec.name}, {first}" + (f" and {len(others)} more" if others else "")
