"""Whether LZW data can be decoded at all: decoders follow a code that stands for nothing to wherever it leads.

TIFF 6.0, section 13. After a Clear the n-th code adds an entry to the table, so its length is known without decoding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Malformed

CLEAR, END = 256, 257
FIRST_ENTRY = 258
MAX_CODES = 4096
"""From one Clear to the next. The table is full after 3838; some writers go on a little before they clear it."""
BYTES_PER_CLEAR = 128
"""Writers clear a full table, or one that no longer fits; more often is no compression, and slow to check."""
FREE_CLEARS = 64

_NUMBERS = np.arange(MAX_CODES)
_NEXT_ENTRY = FIRST_ENTRY + np.maximum(_NUMBERS - 1, 0)
"""Of the table when the n-th code is read; that code may already be the entry it makes."""
_WIDTHS = np.select([_NEXT_ENTRY < 511, _NEXT_ENTRY < 1023, _NEXT_ENTRY < 2047], [9, 10, 11], 12)
_STARTS = np.concatenate([[0], np.cumsum(_WIDTHS)])
"""Bits from the Clear to the n-th code."""
_LARGEST = np.where(_NUMBERS == 0, CLEAR - 1, _NEXT_ENTRY)


def require_sound_lzw(data: bytes | memoryview, where: str) -> None:
    """Raises Malformed unless every code stands for something when it comes."""
    stored = np.frombuffer(data, np.uint8)
    if len(stored) < 2 or stored[0] != 0x80 or stored[1] & 0x80:
        raise Malformed(f"{where} is no LZW: it does not begin with a Clear code; it is damaged: get it again.")
    padded = np.concatenate([stored, np.zeros(2, np.uint8)])
    bits, at, clears = len(stored) * 8, 9, 1
    while (count := int(np.searchsorted(_STARTS, bits - at, "right")) - 1) > 0:
        codes = _codes(padded, at, count)
        stops = np.flatnonzero((codes == CLEAR) | (codes == END))
        last = int(stops[0]) if len(stops) else len(codes)
        if (codes[:last] > _LARGEST[:last]).any() or last == MAX_CODES:
            raise Malformed(f"{where} has an LZW code that stands for nothing; it is damaged: get it again.")
        if not len(stops) or codes[last] == END:
            return
        at += int(_STARTS[last + 1])
        clears += 1
        if clears > FREE_CLEARS + len(stored) // BYTES_PER_CLEAR:
            raise Malformed(f"{where} clears its LZW table {clears} times over; it is damaged: get it again.")


def _codes(padded: NDArray[np.uint8], at: int, count: int) -> NDArray[np.int64]:
    """The first codes from a bit on, the highest bit first; each lies within three bytes."""
    starts, widths = at + _STARTS[:count], _WIDTHS[:count]
    first = starts >> 3
    three = (padded[first].astype(np.int64) << 16) | (padded[first + 1].astype(np.int64) << 8) | padded[first + 2]
    codes: NDArray[np.int64] = (three >> (24 - (starts & 7) - widths)) & ((1 << widths) - 1)
    return codes
