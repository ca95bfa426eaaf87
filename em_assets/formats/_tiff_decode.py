"""From the stored bytes of a strip or tile to its pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed
from em_assets.formats._tiff_lzw import require_sound_lzw

COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits", 50000: "Zstandard"}
"""What is read, by the value of the Compression tag."""
NOT_READ = {2: "CCITT RLE", 3: "CCITT T.4", 4: "CCITT T.6", 6: "old JPEG", 7: "JPEG", 34712: "JPEG 2000"} | {
    34887: "LERC",
    34925: "LZMA",
    34926: "old Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}


@dataclass(frozen=True, slots=True)
class Packing:
    """How one strip or tile is stored."""

    dtype: np.dtype[Any]
    """With its byte order."""
    compression: int
    predictor: int
    rows: int
    columns: int

    @property
    def size_bytes(self) -> int:
        """Decoded."""
        return self.rows * self.columns * self.dtype.itemsize


def decode(packing: Packing, data: bytes | memoryview, rows: int, where: str) -> NDArray[Any]:
    """The first `rows` rows of a strip or tile, in this machine's byte order. Raises Malformed if it holds fewer."""
    needed = rows * packing.columns * packing.dtype.itemsize
    plain = data if packing.compression == 1 else _unpacked(packing, data, where)
    if len(plain) < needed:
        raise Malformed(
            f"{where} decodes to {len(plain)} bytes, expected {needed} ({COMPRESSIONS[packing.compression]}); it was "
            "cut or is damaged: get it again."
        )
    raw = np.frombuffer(plain, np.uint8, needed)
    return _unpredicted(packing, raw, rows)


def _unpacked(packing: Packing, data: bytes | memoryview, where: str) -> Any:
    """A buffer of at most the bytes of a whole strip: every decoder writes into a room of that size.

    Some writers fill the last strip up to the height of the others.
    """
    import imagecodecs

    if packing.compression == 5:
        require_sound_lzw(data, where)
    room = np.empty(packing.size_bytes, np.uint8)
    decoders: dict[int, Callable[..., Any]] = {
        5: imagecodecs.lzw_decode,
        32773: imagecodecs.packbits_decode,
        50000: imagecodecs.zstd_decode,
    }
    decoder = decoders.get(packing.compression, imagecodecs.deflate_decode)
    try:
        return decoder(data, out=room)
    except (RuntimeError, ValueError) as error:  # every imagecodecs error is a RuntimeError
        raise Malformed(
            f"{where} is no {COMPRESSIONS[packing.compression]} of {packing.size_bytes} bytes ({error}); it is "
            "damaged: get it again."
        ) from None


def _unpredicted(packing: Packing, raw: NDArray[np.uint8], rows: int) -> NDArray[Any]:
    """Undoes the differences that were stored instead of values (TIFF 6.0, section 14; Technical Note 3)."""
    shape, dtype = (rows, packing.columns), packing.dtype
    native = dtype.newbyteorder("=")
    if packing.predictor == 3:  # bytes of equal rank lie together, the highest first, whatever the file's byte order
        planes = np.cumsum(raw.reshape(rows, -1), axis=1, dtype=np.uint8).reshape(rows, dtype.itemsize, -1)
        values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(dtype.newbyteorder(">"))
        return values.reshape(shape).astype(native)
    if packing.predictor == 2:
        unsigned = np.dtype(f"{dtype.str[0]}u{dtype.itemsize}")
        differences = raw.view(unsigned).reshape(shape)
        return np.cumsum(differences, axis=1, dtype=unsigned.newbyteorder("=")).view(native)
    return raw.view(dtype).reshape(shape).astype(native, copy=False)
