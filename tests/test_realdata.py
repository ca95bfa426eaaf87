"""Every real file of the collection through `open_volume`: the voxels an independent reader saw, or a right refusal."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import zarr

from em_assets.errors import EmAssetsError, Malformed, Unsupported
from em_assets.fetch.archives import unpack_tar, unpack_zip
from em_assets.formats import open_volume
from em_assets.settings import Settings

KINDS = ("dm", "tiff", "mrc", "zarr", "precomputed", "fibsem")
MAX_UNPACKED_BYTES = 300 * 10**6
ARRAY = r"(?:^| \| )(\S+) \[[^\]]*\] (.*?)(?= \| |$)"
"""How the index names one of a folder."""
NO_IMAGE_IN_IT = r"without /multiscales|/multiscales is \[\], expected a list with an image"
ONE_GREY_VALUE = "only single grey values are read"

REFUSED: dict[str, tuple[type[EmAssetsError], str]] = {
    # signals that are no volume
    r"Titan_EDS_SI|nion_ref_F_2_1": (Unsupported, "spectrum image"),
    r"Titan_EELS|scifireaders_EELS|nion_ref_F_0_1": (Unsupported, "one-dimensional signal"),
    r"Titan_FFT": (Unsupported, "Fourier transform"),
    # pixels that are no grey values
    r"imagecodecs_rgb|D75_08b|orion-zeiss|gray\.series": (Unsupported, rf"(RGB|YCbCr) .*{ONE_GREY_VALUE}"),
    r"good_single|bad_double_reference|bad_subifd": (Unsupported, rf"2 samples per pixel.*{ONE_GREY_VALUE}"),
    r"gray\.b1|D75_01b": (Unsupported, "1-bit pixels"),
    r"gray\.c8": (Unsupported, "complex pixels"),
    r"gray\.depth": (Unsupported, "a volume in one page"),
    r"gray\.lerc|gray\.lzma|bad_jpeg2|bad_unicode": (Unsupported, r"compressed by (LERC|LZMA|JPEG)"),
    r"\.(S7|U7|U13|O)\b|\.string\.": (Unsupported, r"/dtype is '[|<>][SUO]|/data_type is 'string'"),
    r"\.delta\.": (Unsupported, r"/codecs/\d is 'numcodecs.delta'"),
    r"(two_channels|webilastik).* \d$": (Unsupported, r"num_channels is [23]; accepted is 1"),
    r"compresso \d$": (Unsupported, "encoding is 'compresso'"),
    # damaged files
    r"damaged_truncated|test_corrupted": (Malformed, r"ends at byte \d+, but its header says"),
    r"TRUNCATED_mrcfile": (Malformed, r"has 1048576 bytes, but its header describes 29265416"),
    r"bigtiff_truncated": (Malformed, r"strip 0 needs 53627 bytes at offset 539024, but the file has 539146"),
    r"bad_datatype|quanta_bad_metadata": (Malformed, "has the unknown type"),
    r"bad_tag_offset": (Malformed, "claims 10 values, 10 bytes at offset 65544, but the file has 653 bytes"),
    r"bad_header1": (Unsupported, "not of a known format"),
    r"bad_header2": (Malformed, "neither version 42 nor BigTIFF"),
    r"openorganelle_missing.* em/fibsem-uint8/s0": (Malformed, "chunk 1/1/1 of .*cannot be unpacked by zstd"),
    r"raw_truncated_chunk": (Malformed, "expected 163840 bytes .*, found 81920"),
    # ambiguous or not wholly understood
    r"zarrs_v3_": (Malformed, "both zarr.json and .zarray"),
    r"storage_transformer exists": (Unsupported, "/storage_transformers is"),
    r"bit_invalid": ((Unsupported, Malformed), NO_IMAGE_IN_IT),
    # no volumes
    r"\.json$": (Unsupported, "is a JSON document"),
    r"\.hdr$|\.mdoc$": (Unsupported, "not of a known format"),
    r"\.dat$": (Unsupported, "not of a known format"),
    r"grayscale_maps/\*": (Unsupported, "is a PNG picture"),
    r"grayscale_maps$": (Unsupported, "is a folder without any of"),
    r"em\.tif\.zip$": (Unsupported, "is a zip archive, which must be unpacked first"),
}
"""What a case's title contains, and the reason that is right for it."""

BY_OTHERS = {
    # cloud-volume wrote these and reads them; the reader of the index does not look for `.gz`, so it saw no chunk
    "gen_cv_fib25_raw_gz_2mips 0": "7d473abb95dde0a0ca8c46b26b1f59170baa66ea6759b9a4c9c2b7f5f77bf8a4",
    "gen_cv_fib25_raw_gz_2mips 1": "eb8162820ac503b0308e6f02a228fa5f2e9afcc3f8b7f220603adfe5cd265377",
    # the same voxels as its successor's, data-3.1.3.n5, which others do read
    "n5java_data-1.5.0.n5 raw": "d9d2dcd9a1fdfa7b0119a86b059f9b74f8722847a0c3eafe0e6fa1354757078d",
    # the same as those of 3d.chunked.mixed.i2.C beside it: a draft's way to say F order, which zarr-python refuses
    "ng_zarr_v3_from_zarrita_data.zarr 3d.chunked.mixed.i2.F": (
        "58a54299e0e8d0a77ba77fbdbba8a96b0265aa7d3e04f884ea0817d9d1915665"
    ),
    # the index has that of big-endian bytes; mrcfile gives this of the same voxels in little-endian ones
    "gen_mode1_bigendian.mrc": "6f14e8a15aa96e1aaaba43ee174eeb235ba892f57114799c3112ac8f3f3bbddc",
}
"""Digests of voxels where that of the index is missing or wrong."""


FILE_AXES = {"mrcfile_EMD-3001.map": (1, 2, 0)}
"""Where others keep the file's own order of axes: which of z, y, x these are."""


class Recorded(NamedTuple):
    """What another reader saw."""

    shape: tuple[int, ...]
    sha256: str
    """Of the voxels in C order."""


class Case(NamedTuple):
    """One volume of one entry."""

    title: str
    location: Path | str
    dataset: str | None = None
    recorded: Recorded | None = None
    """None where the other reader could not read it."""


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")  # what zarr-python says of some
def test_every_real_file_is_read_exactly_or_refused_for_the_right_reason(realdata, tmp_path):
    """Prints the table. Nothing else may be raised, and no entry is left out."""
    entries = [entry for entry in json.loads((realdata / "index.json").read_text()) if entry["kind"] in KINDS]
    table, wrong, met = [], [], set()
    for number, entry in enumerate(entries):
        cases = list(cases_of(entry, realdata / entry["kind"] / entry["name"], tmp_path / str(number)))
        assert cases, entry["name"]
        for case in cases:
            row, sound, reason = verdict(case)
            met.add(reason)
            table.append(f"{'ok   ' if sound else 'WRONG'} {entry['kind']:11} {case.title} | {row}")
            wrong += [] if sound else [table[-1]]
    print(*table, sep="\n")
    print(f"{len(entries)} entries, {len(table)} volumes, {sum('| read' in row for row in table)} read")
    assert not wrong
    assert met >= set(REFUSED), "a reason that no file has any more"
    assert len(entries) >= 140


def verdict(case: Case) -> tuple[str, bool, str | None]:
    """(the row, whether it is right, which of REFUSED it fits)."""
    pattern = next((pattern for pattern in REFUSED if re.search(pattern, case.title)), None)
    try:
        reader = open_volume(case.location, case.dataset, settings=Settings(workers=2))
        voxels = reader.read()
    except (Malformed, Unsupported) as error:
        kind, reason = REFUSED[pattern] if pattern else ((), "")
        sound = bool(kind) and isinstance(error, kind) and re.search(reason, str(error)) is not None
        return f"{type(error).__name__}: {error}", sound, pattern
    except Exception as error:  # noqa: BLE001  # a row like the others, so that the whole table is seen
        return f"{type(error).__name__}: {error}", False, pattern
    info, as_stored = reader.info, voxels.transpose(FILE_AXES[case.title]) if case.title in FILE_AXES else voxels
    digest = hashlib.sha256(as_stored.tobytes()).hexdigest()
    sound = digest == BY_OTHERS.get(case.title, case.recorded.sha256 if case.recorded else None)
    sound &= case.recorded is None or without_ones(case.recorded.shape) == without_ones(as_stored.shape)
    sound &= pattern is None and voxels.shape[-3:] == info.shape and voxels.dtype.name == info.dtype
    return f"read | {voxels.shape} {info.dtype} | {info.voxel_size_nm} | {digest[:12]}", sound, pattern


def without_ones(shape: tuple[int, ...]) -> list[int]:
    """A single slice is a volume here, a plane to others."""
    return [n for n in shape if n > 1]


def cases_of(entry: dict[str, str], path: Path, scratch: Path) -> Iterator[Case]:
    """The volumes that the index names in an entry."""
    name, said = entry["name"], entry["read"]
    if path.name == "grayscale_maps":
        yield Case(name, path)
        yield Case(f"{name}/*.png", f"{path}/*.png")
    elif path.name.endswith((".tar.gz", ".zip")):
        yield from in_archive(path, said, scratch)
    elif path.suffix == ".gz":
        scratch.mkdir()
        (scratch / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        yield from files_of(scratch / path.stem, said)
    elif path.is_file():
        yield from files_of(path, said)
    elif entry["kind"] == "precomputed":
        yield from levels_of(name, path, said)
    else:
        yield from arrays_of(name, path, said)


def in_archive(path: Path, said: str, scratch: Path) -> Iterator[Case]:
    """What is packed; a zip of 489 MB of TIFF is only refused."""
    if "489264121 B unpacked" in said:
        yield Case(path.name, path)
        return
    unpack = unpack_zip if path.suffix == ".zip" else unpack_tar
    members = unpack(path, scratch, max_bytes=MAX_UNPACKED_BYTES)
    if path.suffix == ".zip":
        yield from arrays_of(path.name, scratch, said.partition("; unpacked: ")[2])
        return
    for member in members:
        (about,) = re.findall(rf"\[{re.escape(member)} \d+ B\](.*?)(?=\|\||$)", said)
        yield from files_of(scratch / member, about)


def files_of(path: Path, said: str) -> Iterator[Case]:
    """A file, or the datasets of an HDF5 file."""
    if path.suffix == ".h5":
        for dataset, about in re.findall(r"(\w+): (shape=.*?)(?= \| |$)", said):
            yield Case(f"{path.name} {dataset}", path, dataset, recorded_in(about))
    else:
        yield Case(path.name, path, None, recorded_in(said))


def levels_of(name: str, path: Path, said: str) -> Iterator[Case]:
    """Of a precomputed folder."""
    for level, about in re.findall(r"scale(\d+) \S+ enc=(.*?)(?= \| |$)", said):
        yield Case(f"{name} {level}", path, level, recorded_in(about))


def arrays_of(name: str, path: Path, said: str) -> Iterator[Case]:
    """Of a Zarr or N5 folder: those that the index names, then the others; the folder itself where there is none."""
    found = {dataset: recorded_in(about) for dataset, about in re.findall(ARRAY, said)}
    for document in sorted([*path.rglob(".zarray"), *path.rglob("zarr.json")]):
        is_array = document.name == ".zarray" or json.loads(document.read_text())["node_type"] == "array"
        dataset = document.parent.relative_to(path).as_posix()
        if is_array and dataset not in found:
            found[dataset] = seen_by_zarr_python(document.parent)
    for dataset, recorded in found.items():
        yield Case(f"{name} {dataset}", path, None if dataset == "." else dataset, recorded)
    if not found:
        yield Case(name, path)


def recorded_in(said: str) -> Recorded | None:
    """The first that a text of the index has."""
    found = re.search(r"shape=\(([\d, ]*)\) .*?arr_sha256=(\w+)", said)
    return Recorded(tuple(int(n) for n in re.findall(r"\d+", found[1])), found[2]) if found else None


def seen_by_zarr_python(folder: Path) -> Recorded | None:
    try:
        voxels = np.asarray(zarr.open_array(folder, mode="r")[...])
        little_endian = voxels.astype(voxels.dtype.newbyteorder("<"))
    except Exception:  # noqa: BLE001  # whatever it raises, it is no second opinion
        return None
    return Recorded(voxels.shape, hashlib.sha256(little_endian.tobytes()).hexdigest())


@pytest.mark.parametrize(
    "packed", ["dm/nexuslims_Titan_STEM_stack_dataZeroed.dm3.tar.gz", "zarr/zarrita_v3.zipped_from_within.zarr.zip"]
)
def test_an_archive_itself_is_refused_with_the_way_out(realdata, packed):
    """What is inside is read above, once it is unpacked."""
    with pytest.raises(Unsupported, match="must be unpacked first; accepted are TIFF"):
        open_volume(realdata / packed)
