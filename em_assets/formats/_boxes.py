"""`map_regions` for readers that can `read` any box by themselves: files on disk, local or remote.

Readers whose requests are worth planning over all boxes together (chunked volumes over HTTP) use `_engine.py`.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from em_assets.errors import Mismatch
from em_assets.fetch.hosts import HostUnreachable
from em_assets.formats.reader import RegionOutcome, RegionVoxels, SampledVoxel
from em_assets.volume import Box, VolumeInfo, Zyx, subtract, zyx

T = TypeVar("T")
SAMPLED_PLACES = 8
SAMPLES_PER_PLACE = 4
SAMPLED_EDGE = 16
"""Of a place: its voxels lie together, because each chunk that holds one is decoded once more to compare it."""
MAX_CHUNKS = 2**22
"""Of one call, those in several boxes counted once for each: their list alone has some gigabytes then."""
MAX_BOX_BYTES = 64 * 2**30
"""Of one box: it is one array in memory."""


def map_boxes(
    boxes: Sequence[Box],
    read: Callable[[Box], NDArray[Any]],
    work: Callable[[RegionVoxels], T],
    *,
    sample: Callable[[Zyx], float] | None,
    source_url: str,
    workers: int,
    on_bytes: Callable[[int], None] | None = None,
    missing: Callable[[Box], tuple[Box, ...]] | None = None,
    fill_value: float = 0,
) -> Iterator[RegionOutcome[T]]:
    """`VolumeReader.map_regions`: at most `workers` boxes are in memory at a time; one that fails stops no other.

    `read` gives exactly a box, (z, y, x). `sample` reads one voxel (a position in the publisher's voxels) by another
    way than `read`, so that a mistake in one of them shows; None where there is no second way. `missing` gives the
    parts of a box that the publisher does not have, where `read` gives `fill_value`.
    """

    def one(box: Box) -> T:
        voxels = read(box)
        if on_bytes is not None:
            on_bytes(voxels.nbytes)
        absent = missing(box) if missing is not None else ()
        for part in absent:
            voxels[(..., *part.shifted(subtract((0, 0, 0), box.start)).slices)] = 0
        samples = [SampledVoxel(at, sample(at)) for at in _positions(box) if not _lies_in(absent, at)] if sample else []
        return work(RegionVoxels(box, voxels, absent, tuple(samples), source_url, voxels.nbytes, fill_value))

    todo = deque(boxes)
    running: deque[tuple[Box, Future[T]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while todo or running:
                # more than can run: a worker does not wait for the one whose box came before
                while todo and len(running) < 2 * workers:
                    box = todo.popleft()
                    running.append((box, pool.submit(one, box)))
                box, future = running.popleft()
                error = future.exception()
                if isinstance(error, HostUnreachable) or (error is not None and not isinstance(error, Exception)):
                    raise error
                yield RegionOutcome(box, None, error) if error else RegionOutcome(box, future.result(), None)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def checked_box(info: VolumeInfo, box: Box | None, name: str) -> Box:
    """The box to read, the whole volume for None. Raises Mismatch if it is empty or leaves the volume."""
    whole = Box.from_shape(info.shape, at=info.origin)
    if box is None:
        return whole
    if not box.voxels or not whole.contains(box):
        raise Mismatch(f"box {box} is empty or leaves the volume {whole} of {name}; correct it.")
    return box


def require_plannable(info: VolumeInfo, boxes: Sequence[Box], name: str, chunks_per_place: int = 1) -> None:
    """Raises Mismatch if planning or holding these boxes would take more memory than anyone has.

    What a volume claims to be costs nothing to claim, so this comes before any list of chunks is made. In each place of
    the grid of `info.chunk` lie `chunks_per_place`.
    """
    assert info.chunk is not None
    voxel_bytes = np.dtype(info.dtype).itemsize * (info.channels or 1)
    chunks = 0
    for box in boxes:
        size = box.voxels * voxel_bytes
        if size > MAX_BOX_BYTES:
            raise Mismatch(
                f"box {box} of {name} has {size} bytes, more than the {MAX_BOX_BYTES} that are read at once; ask for "
                "smaller boxes."
            )
        local = box.shifted(subtract((0, 0, 0), info.origin))
        places = (-(-b // c) - a // c for a, b, c in zip(local.start, local.stop, info.chunk, strict=True))
        chunks += math.prod(places) * chunks_per_place
    if chunks > MAX_CHUNKS:
        raise Mismatch(
            f"{chunks} chunks of {name} are wanted at once, more than {MAX_CHUNKS}; ask for smaller boxes, or fewer."
        )


def native(voxels: NDArray[Any]) -> NDArray[Any]:
    """C order and this machine's byte order, as every reader gives it; no copy where it is so already."""
    return np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("="))


def _lies_in(boxes: Sequence[Box], position: Zyx) -> bool:
    voxel = Box.from_shape((1, 1, 1), at=position)
    return any(box.contains(voxel) for box in boxes)


def _positions(box: Box) -> list[Zyx]:
    """Voxels to compare: random, but the same for the same box, and always its two extreme corners.

    They lie in a few places, the corners and random ones.
    """
    chance = random.Random(str(box))  # noqa: S311  # not a secret
    corners = [box.start, zyx([b - 1 for b in box.stop])]
    places = [_somewhere(chance, box) for _ in range(SAMPLED_PLACES - len(corners))]
    return [
        at
        for place in (*corners, *places)
        for at in (place, *(_somewhere(chance, _cell(box, place)) for _ in range(SAMPLES_PER_PLACE - 1)))
    ]


def _somewhere(chance: random.Random, box: Box) -> Zyx:
    return zyx([chance.randrange(a, b) for a, b in zip(box.start, box.stop, strict=True)])


def _cell(box: Box, position: Zyx) -> Box:
    """The cell of the box that holds a position, counted from the box's corner as its chunks will be."""
    local = subtract(position, box.start)
    start = zyx([a + at // SAMPLED_EDGE * SAMPLED_EDGE for a, at in zip(box.start, local, strict=True)])
    cell = Box.from_shape((SAMPLED_EDGE,) * 3, at=start).intersection(box)
    assert cell is not None
    return cell
