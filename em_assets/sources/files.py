"""Publishers of files (IDR, EMPIAR, EPFL): which there are and where, and the volumes that downloaded ones hold.

How files come here is `fetch/files.py`, what their formats are is `formats/`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from em_assets.datasets.source import FilesSource, VolumeFiles
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Mismatch
from em_assets.formats._bytes import ByteSource
from em_assets.formats.opening import HEAD_BYTES, kind_of, open_file
from em_assets.formats.reader import Scalar, VolumeReader
from em_assets.originals import file_key, original_path
from em_assets.settings import Settings
from em_assets.sources.claims import claims_of_tags, natural_order
from em_assets.sources.expected import require_expected
from em_assets.sources.transposed import as_zyx
from em_assets.sources.widened import widened
from em_assets.volume import Claim, RemoteFile

BytesOf = Callable[[str], ByteSource]
"""The bytes of a received file, by its path in the spec."""
Tag = tuple[str, Scalar]


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
    checked = _of_pinned_size(spec, bytes_of)
    paths = files.paths()
    if len(paths) == 1:
        return as_zyx(open_file(checked(paths[0]), files.dataset, settings), files.axes)
    from em_assets.formats.series import open_series

    return as_zyx(open_series(paths, settings, dataset=files.dataset, bytes_of=checked), files.axes)


def open_main(spec: DatasetSpec, bytes_of: BytesOf, settings: Settings) -> VolumeReader:
    """The spec's volume. Raises Mismatch, Unsupported if it is not what is expected, and what its format raises."""
    files, expected = _files_source(spec).volume, spec.expected
    reader = widened(open_volume_files(spec, files, bytes_of, settings), expected.dtype)
    require_expected(
        _where(spec, files), reader.info, expected.source_shape, expected.dtype, expected.voxel_size_at_publisher_nm
    )
    return reader


def open_further(spec: DatasetSpec, name: str, bytes_of: BytesOf, settings: Settings) -> VolumeReader:
    """A further volume of the spec, likewise compared with what is expected of it."""
    volume = spec.volumes[name]
    assert volume.source is not None
    reader = widened(open_volume_files(spec, volume.source, bytes_of, settings), volume.dtype)
    where = f"{_where(spec, volume.source)} (volume {name})"
    require_expected(where, reader.info, (volume.shape,), volume.dtype, volume.voxel_size_nm)
    return reader


def claims_of_files(
    spec: DatasetSpec, bytes_of: BytesOf, settings: Settings, received: Collection[str] | None = None
) -> Iterator[Claim]:
    """What every file of every volume says of itself, all of it, in the order of the numbers in the files' names.

    One file is open at a time, and nothing of it is kept. Within one TIFF a later page's tag is left out where it
    equals the first page's. `received` are the paths of those that are here; None: all. Raises what a format raises
    for a file that cannot be read, and Mismatch for one that is not of the size that the spec pins.
    """
    source, checked = _files_source(spec), _of_pinned_size(spec, bytes_of)
    for path, datasets in sorted(_datasets_by_file(spec).items(), key=lambda item: natural_order(item[0])):
        if received is None or path in received:
            opened = checked(path)
            head = bytes(opened.read(0, min(HEAD_BYTES, opened.size_bytes)))
            kind = kind_of(head, opened.size_bytes) or "file"
            readers = (open_file(opened, dataset, settings) for dataset in datasets)
            tags = _each_once(_tags(reader, kind) for reader in readers)
            yield from claims_of_tags(tags, original_path(path), source.file_url(path), kind)


def _datasets_by_file(spec: DatasetSpec) -> dict[str, list[str | None]]:
    """Every file that a volume is in, and which arrays of it are volumes."""
    source = _files_source(spec)
    further = [volume.source for volume in spec.volumes.values() if volume.source is not None]
    found: dict[str, list[str | None]] = {}
    for files in (source.volume, *source.same_volume, *further):
        for path in files.paths():
            datasets = found.setdefault(path, [])
            if files.dataset not in datasets:
                datasets.append(files.dataset)
    return found


def _tags(reader: VolumeReader, kind: str) -> Iterator[Tag]:
    """A TIFF's pages are counted, too, as planes: ImageJ stores several behind one page."""
    if kind == "tiff":
        yield "/pages", reader.info.shape[0] * (reader.info.channels or 1)
    yield from reader.tags()


def _each_once(parts: Iterable[Iterator[Tag]]) -> Iterator[Tag]:
    """What two arrays of one file share, attributes of a group they lie in, is said by the first."""
    before: set[str] = set()
    for tags in parts:
        here: set[str] = set()
        for key, value in tags:
            if key not in before:
                here.add(key)
                yield key, value
        before |= here


def _of_pinned_size(spec: DatasetSpec, bytes_of: BytesOf) -> BytesOf:
    """`bytes_of` for files that have the size that the spec pins. Raises Mismatch for others."""
    pinned = _files_source(spec).by_path()

    def checked(path: str) -> ByteSource:
        source, expected = bytes_of(path), pinned[path].size_bytes
        if expected not in (None, source.size_bytes):
            raise Mismatch(
                f"{spec.name}: {source.name} has {source.size_bytes} bytes, the spec expects {expected}; get it again, "
                "or look at what the publisher changed."
            )
        return source

    return checked


def _files_source(spec: DatasetSpec) -> FilesSource:
    assert isinstance(spec.source, FilesSource), f"{spec.name} publishes {spec.source.kind}, not files"
    return spec.source


def _where(spec: DatasetSpec, files: VolumeFiles) -> str:
    first, *others = files.paths()
    return f"{spec.name}, {first}" + (f" and {len(others)} more" if others else "")
