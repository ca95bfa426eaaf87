"""One precomputed chunk: bytes to voxels, and single voxels by a second way.

Specification: github.com/google/neuroglancer, src/datasource/precomputed/volume.rst. Images state their own size: it is
read and compared before anything is decoded, so that no chunk makes more voxels than it should.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed, Unsupported
from em_assets.fetch.compression import GZIP_MAGIC, BadGzipError, gunzip
from em_assets.formats._compressed_segmentation import (
    ONE_CHANNEL,
    decode_labels,
    max_packed_bytes,
    padded_shape,
    sample_labels,
)
from em_assets.volume import Zyx

Where = Callable[[], str]
"""Names the chunk in a message: called only if there is one."""
Encoding = Literal["raw", "jpeg", "png", "compressed_segmentation"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)
MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "compressed_segmentation": ONE_CHANNEL}
DTYPES = {"jpeg": ("uint8",), "png": ("uint8", "uint16"), "compressed_segmentation": ("uint32", "uint64")}
"""What an encoding holds; raw holds any."""
STRUCT_FORMATS = {
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "uint64": "Q",
    "int64": "q",
    "float32": "f",
}
JPEG_END = b"\xff\xd9"
JPEG_PADDING_BYTES = 64
"""How far from a chunk's end the JPEG's own end may lie. Without an end it was cut, and decoders would fill it up."""
SLACK_BYTES = 65536
"""What headers may add to an image that does not compress."""


@dataclass(frozen=True, slots=True)
class ChunkCodec:
    """How the chunks of one scale are encoded."""

    encoding: Encoding
    dtype: str
    chunk: Zyx
    """Of a chunk inside the volume; at its far edges chunks are smaller."""
    block: Zyx | None = None
    """Of compressed_segmentation, where it is given; chunks of other encodings have no blocks."""

    @property
    def max_bytes(self) -> int:
        """No sound chunk is larger, packed or not."""
        if self.block is not None:
            return max_packed_bytes(self.chunk, self.block, np.dtype(self.dtype).itemsize) + SLACK_BYTES
        return 2 * math.prod(self.chunk) * np.dtype(self.dtype).itemsize + SLACK_BYTES

    def unpacked(self, data: memoryview, shape: Zyx, where: Where) -> tuple[memoryview, str]:
        """(the chunk as encoded, "raw" or "gzip"): what it is tells, whatever the `info` says. Raises Malformed."""
        magic = MAGIC.get(self.encoding)
        size = math.prod(shape) * np.dtype(self.dtype).itemsize
        if data[: len(magic)] == magic if magic else len(data) == size:
            return data, "raw"
        packed = f"{self.encoding} {'image' if self.block is None else 'of one channel'}"
        wanted = packed if magic else f"{size} bytes of raw voxels"
        if data[:3] != GZIP_MAGIC:
            raise Malformed(
                f"{where()}: expected {wanted}, plain or gzip-encoded, found {len(data)} bytes beginning with "
                f"{bytes(data[:8])!r}; report it to the publisher."
            )
        try:
            plain = memoryview(gunzip(data, max_bytes=self.max_bytes if magic else size))
        except BadGzipError as error:
            raise Malformed(
                f"{where()}: expected {wanted}, found gzip, but {error}; report it to the publisher."
            ) from None
        if plain[: len(magic)] != magic if magic else len(plain) != size:
            raise Malformed(f"{where()}: expected {wanted}, found gzip of {len(plain)} other bytes; report it.")
        return plain, "gzip"

    def scratch(self) -> NDArray[Any]:
        """Room for one decoded chunk. With a new array per chunk a third of the time goes into fresh pages."""
        shape = self.chunk if self.block is None else padded_shape(self.chunk, self.block)
        return np.empty(math.prod(shape), self.dtype)

    def decode(self, data: memoryview, shape: Zyx, where: Where, scratch: NDArray[Any]) -> NDArray[Any]:
        """The voxels of an unpacked chunk, (z, y, x). Raises Malformed, Unsupported.

        They lie in `data` or in `scratch`: whoever keeps them copies them.
        """
        if self.encoding == "raw":
            return np.frombuffer(data, np.dtype(self.dtype).newbyteorder("<")).reshape(shape)
        if self.block is not None:
            return decode_labels(data, shape, self.block, scratch, where)
        height, width, bands = _jpeg_header(data, where) if self.encoding == "jpeg" else self._png_header(data, where)
        held = self._held(height * width, shape, where)
        # The decoder is always given room of the size that was compared: it refuses an image of another.
        flat = scratch[: height * width] if bands == 1 else np.empty(height * width * bands, "u1")
        room = flat.reshape((height, width) if bands == 1 else (height, width, bands))
        pixels = _one_band(_decoded(self.encoding, data, room, where), bands, where)
        z, y, x = shape
        return pixels.reshape(held)[:z, :y, :x]

    def sample(
        self, data: memoryview, shape: Zyx, positions: Sequence[Zyx], where: Where = lambda: "a sampled chunk"
    ) -> list[float]:
        """The voxels at these (z, y, x) positions of an unpacked chunk, by Pillow or one by one. Raises Malformed.

        Shares nothing with `decode`, so that a fault there does not hide itself.
        """
        size_y, size_x = shape[1:]
        if self.encoding == "raw":
            form = struct.Struct("<" + STRUCT_FORMATS[self.dtype])
            return [
                float(form.unpack_from(data, form.size * (x + size_x * (y + size_y * z)))[0]) for z, y, x in positions
            ]
        if self.block is not None:
            labels = sample_labels(data, shape, self.block, np.dtype(self.dtype).itemsize, positions)
            return [float(label) for label in labels]
        from PIL import Image

        try:
            return self._sample_image(data, shape, positions)
        except (OSError, ValueError, SyntaxError, LookupError, EOFError, Image.DecompressionBombError):
            raise Malformed(
                f"{where()}: the {self.encoding.upper()} was decoded, but a second decoder cannot read it; report it "
                "to the publisher."
            ) from None

    def _sample_image(self, data: memoryview, shape: Zyx, positions: Sequence[Zyx]) -> list[float]:
        from PIL import Image

        size_y, size_x = shape[1:]
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        if width * height != shape[0] * size_y * size_x:
            size_y, size_x = self.chunk[1:]
        values = []
        for z, y, x in positions:
            row, column = divmod(x + size_x * (y + size_y * z), width)
            pixel = image.getpixel((column, row))
            values.append(float(pixel[0] if isinstance(pixel, tuple) else pixel or 0))
        return values

    def _held(self, pixels: int, shape: Zyx, where: Where) -> Zyx:
        """The (z, y, x) shape of what an image holds: the chunk, or at an edge an unclipped one, as DVID writes."""
        for held in (shape, self.chunk):
            if pixels == math.prod(held):
                return held
        raise Malformed(
            f"{where()}: the image has {pixels} pixels, expected {math.prod(shape)} for {shape} voxels (z, y, x); "
            "report it to the publisher."
        )

    def _png_header(self, data: memoryview, where: Where) -> tuple[int, int, int]:
        """(height, width, bands) of a PNG, whose pixels must be grey and as deep as the volume says."""
        if len(data) < 33 or bytes(data[12:16]) != b"IHDR":
            raise Malformed(f"{where()}: the PNG has no header; report it to the publisher.")
        width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
        if colour != 0 or depth != 8 * np.dtype(self.dtype).itemsize:
            raise Unsupported(
                f"{where()}: a PNG of {depth} bits and colour type {colour}; accepted is grey (0) with the "
                f"{8 * np.dtype(self.dtype).itemsize} bits of {self.dtype}."
            )
        return height, width, 1


def _jpeg_header(data: memoryview, where: Where) -> tuple[int, int, int]:
    """(height, width, bands) from the frame header of a JPEG (ITU-T T.81, B.2.2); the image must not be cut."""
    if JPEG_END not in bytes(data[-JPEG_PADDING_BYTES:]):
        raise Malformed(
            f"{where()}: the JPEG has no end, it was cut after {len(data)} bytes; report it to the publisher."
        )
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        (size,) = struct.unpack_from(">H", data, at + 2)
        # These have no length, or no place here: decoders go on right after them, and may find another frame there.
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            depth, height, width, bands = struct.unpack_from(">BHHB", data, at + 4)
            if depth != 8 or bands not in (1, 3):
                raise Unsupported(
                    f"{where()}: a JPEG of {bands} bands and {depth} bits; accepted are 1 or 3 of 8 bits."
                )
            return height, width, bands
        at += 2 + size
    raise Malformed(f"{where()}: the JPEG has no frame header among its first segments; report it to the publisher.")


def _decoded(encoding: Encoding, data: memoryview, room: NDArray[Any], where: Where) -> NDArray[Any]:
    """The image, in `room` and of its shape."""
    import imagecodecs

    decode = imagecodecs.jpeg8_decode if encoding == "jpeg" else imagecodecs.png_decode
    try:
        return decode(data, out=room).reshape(room.shape)  # type: ignore[arg-type]  # takes any buffer
    except (RuntimeError, ValueError) as error:  # every imagecodecs error is a RuntimeError
        raise Malformed(f"{where()}: the {encoding.upper()} cannot be decoded ({error}); report it.") from None


def _one_band(pixels: NDArray[Any], bands: int, where: Where) -> NDArray[Any]:
    """The grey image; one of three bands is taken only if all are equal."""
    if bands == 1:
        return pixels
    first = pixels[..., 0]
    if not ((first == pixels[..., 1]).all() and (first == pixels[..., 2]).all()):
        raise Unsupported(f"{where()}: a colour JPEG; accepted are grey images.")
    return np.ascontiguousarray(first)
