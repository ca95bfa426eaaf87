"""What a remote file says of itself, for few bytes: of a TIFF the first page alone, not a thousand directories."""

from __future__ import annotations

from dataclasses import dataclass

from em_assets.datasets.source import VolumeFiles
from em_assets.fetch.client import Client
from em_assets.formats._bytes import RemoteBytes
from em_assets.formats._tiff_ifd import IfdChain, read_header
from em_assets.formats._tiff_remote import for_walking
from em_assets.formats._tiff_text import read_stack
from em_assets.formats.opening import kind_of, open_file
from em_assets.settings import Settings
from em_assets.volume import VoxelSize

WIDTH, HEIGHT, BITS, SAMPLE_FORMAT = 256, 257, 258, 339
NUMBERS = {1: "uint", 2: "int", 3: "float"}


@dataclass(frozen=True, slots=True)
class Header:
    """In the file's own order of axes."""

    depth: int | None
    """None where the first page does not say how many there are."""
    height: int
    width: int
    dtype: str
    voxel_size_nm: VoxelSize | None


def header_of(url: str, size_bytes: int | None, files: VolumeFiles, client: Client, settings: Settings) -> Header:
    """Raises Malformed, Unsupported, Mismatch, Unavailable as the readers do."""
    source = RemoteBytes(url, client, size_bytes)
    walked = for_walking(source, 1)
    if kind_of(bytes(walked.read(0, min(16, walked.size_bytes)))) != "tiff":
        info = open_file(source, files.dataset, settings).info
        return Header(info.shape[0], info.shape[1], info.shape[2], info.dtype, info.voxel_size_nm)
    ifd = next(iter(IfdChain(walked, read_header(walked))))
    height, width = ifd.integer(HEIGHT), ifd.integer(WIDTH)
    stack = read_stack(ifd, height, width)
    dtype = f"{NUMBERS.get(ifd.integer(SAMPLE_FORMAT, 1), 'unknown')}{ifd.integer(BITS, 1)}"
    depth = None if stack.order is None else int(stack.order.shape[1])
    return Header(depth, height, width, dtype, stack.voxel_size_nm)
