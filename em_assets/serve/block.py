"""`GET /v1/datasets/{id}/block`: one block of a volume, exactly as `Volume.read` gives it in Python.

The numbers that describe it go into headers, the voxels into the body, as a `.npy` file or as they lie in memory.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from em_assets.progress import human_bytes
from em_assets.serve.limits import Gate, Limits
from em_assets.serve.parameters import BadRequest, BlockRequest
from em_assets.serve.representation import Coding, Framing, encode, entity_tag, framing
from em_assets.volume import VoxelSize, Zyx, zyx

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from em_assets.blocks.block import Block
    from em_assets.blocks.volume import Volume

PIECE_BYTES = 2**20
MADE_BYTES = 8
"""Of each voxel while a block is made of others: as float64, or of the widest label."""
NEIGHBOURS = 4
"""Arrays of the size of what an interpolation gives: two neighbours of each voxel, and both times their share."""
KINDS = {"npy": "application/x-npy", "raw": "application/octet-stream"}
DESCRIBING = (
    "X-Em-Volume",
    "X-Em-Dtype",
    "X-Em-Shape",
    "X-Em-Box",
    "X-Em-Box-Nm",
    "X-Em-Level",
    "X-Em-Voxel-Size-Nm",
    "X-Em-Valid-Fraction",
    "X-Em-Digest",
)
"""The headers of every block."""


class TooLarge(Exception):
    """More voxels than one request may ask for; the text says how to ask for fewer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A block that was read, as it is sent whole."""

    body: bytes
    tag: str
    headers: dict[str, str]
    kind: str
    voxels: int


def check_size(asked: BlockRequest, most_voxels: int) -> None:
    """Before anything is opened. Raises TooLarge."""
    if asked.voxels > most_voxels:
        raise TooLarge(
            f"the block has {asked.voxels} voxels, and a request may have {most_voxels}; ask for several smaller ones, "
            "or for a coarser level."
        )


def read(asked: BlockRequest, volume: Volume, labels: Volume | None, coding: Coding, limits: Limits) -> Answer:
    """Reads and packs; takes as long as it takes, in a thread.

    Raises BadRequest and TooLarge about what this volume cannot be asked for, else as `Volume.read`.
    """
    how = asked.how
    if "fill" in how:
        own = np.float32 if "normalize" in how else volume.dtype
        how = how | {"fill": _fill(how["fill"], np.dtype(how.get("dtype", own)))}
    _check_cost(asked, volume, labels, limits.made_bytes)
    block = volume.read(asked.start, center_nm=asked.center_nm, shape=asked.shape, labels=labels, **how)
    voxels = _voxels(block, asked.what)
    body = encode(_npy(block, voxels) if asked.format == "npy" else voxels.tobytes(), coding)
    headers = describe(block, voxels) | ({"content-encoding": coding} if coding != "identity" else {})
    return Answer(body, entity_tag(block.digest, coding), headers, KINDS[asked.format], voxels.size)


def describe(block: Block, voxels: NDArray[Any]) -> dict[str, str]:
    """What the body holds and where it lies, as headers. Floats are written so that they read back as the same."""
    values = (
        block.volume,
        voxels.dtype.name,
        _joined(voxels.shape),
        _joined((*block.box.start, *block.box.stop)),
        _joined((*block.box_nm.start, *block.box_nm.stop)),
        block.level,
        _joined(block.voxel_size_nm),
        float(block.valid_fraction),
        block.digest,
    )
    return {"vary": "Accept-Encoding"} | dict(zip(map(str.lower, DESCRIBING), map(str, values), strict=True))


async def respond(request: Request, gate: Gate, work: Callable[[], Answer], note: Callable[[Answer], None]) -> Response:
    """The answer, or the part of it that is asked for; its place in the gate is kept until it has been sent.

    Raises Busy, and whatever `work` raises.
    """
    leave = gate.enter()
    try:
        answer = await gate.run(work)
    except BaseException:
        leave()
        raise
    note(answer)
    framed = framing(request.method, request.headers, len(answer.body), answer.tag)
    if framed.status == 416:
        leave()
        sentence = f"the answer has {len(answer.body)} bytes, none of them in {request.headers['range'][:80]!r}."
        return JSONResponse({"error": sentence}, 416, framed.headers)
    headers = answer.headers | framed.headers | {"content-type": answer.kind}
    framed = replace(framed, headers=headers, part=range(0) if request.method == "HEAD" else framed.part)
    return _Sent(answer.body, framed, seconds=gate.limits.seconds, leave=leave)


class _Sent(Response):
    """A part of a body, sent in pieces to a client that accepts each of them in time."""

    def __init__(self, body: bytes, framed: Framing, *, seconds: float, leave: Callable[[], None]) -> None:
        super().__init__(None, framed.status, framed.headers)
        self._whole, self._part, self._seconds, self._leave = body, framed.part, seconds, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of a client that takes too long, the rest is left out: the server then closes the connection."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for at in range(self._part.start, self._part.stop, PIECE_BYTES):
                piece = self._whole[at : min(at + PIECE_BYTES, self._part.stop)]
                message = {"type": "http.response.body", "body": piece, "more_body": True}
                try:
                    await asyncio.wait_for(send(message), self._seconds)
                except TimeoutError:
                    return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._leave()


def _fill(fill: float, dtype: np.dtype[Any]) -> float:
    """As the block's dtype has it. Raises BadRequest if it has no such value."""
    if dtype.kind == "f":
        if abs(fill) <= float(np.finfo(dtype).max):
            return fill
    elif fill.is_integer() and np.iinfo(dtype).min <= fill <= np.iinfo(dtype).max:
        return int(fill)
    raise BadRequest(f"fill={fill:g} is no value of a block that is {dtype}; choose one that is.")


def _check_cost(asked: BlockRequest, volume: Volume, labels: Volume | None, most_bytes: int) -> None:
    """A few voxels that are much coarser than any level are made of very many. Raises TooLarge."""
    wanted: VoxelSize | None = asked.how.get("voxel_size_nm")
    is_resampled = asked.how.get("resample", False)
    if wanted is None:
        level = min(asked.how.get("level", 0), len(volume.levels) - 1)
        wanted = volume.levels[level].grid.voxel_size_nm
    size = wanted if is_resampled else _smaller(wanted, volume.levels[-1].grid.voxel_size_nm)
    sources = ([volume] if is_resampled else []) + ([labels] if labels is not None else [])
    for one in sources:
        given = _shape_read(asked, one, size)
        needed = _bytes_made(given, asked.shape, is_linear=one is volume and one.content != "labels")
        if needed > most_bytes:
            raise TooLarge(
                f"the block would be made of {math.prod(given)} voxels of {one.name}, in {human_bytes(needed)} of "
                f"memory, and a request may take {human_bytes(most_bytes)}; ask for fewer or finer voxels."
            )


def _shape_read(asked: BlockRequest, volume: Volume, size: VoxelSize) -> Zyx:
    """Of the coarsest level that is not coarser, where the block lies within it."""
    fine = [
        level.grid
        for level in volume.levels
        if all(own <= nm * 1.001 for own, nm in zip(level.grid.voxel_size_nm, size, strict=True))
    ]
    grid = fine[-1] if fine else volume.levels[0].grid
    lengths = (n * nm / own for n, nm, own in zip(asked.shape, size, grid.voxel_size_nm, strict=True))
    return zyx([min(math.ceil(length) + 2, n) for length, n in zip(lengths, grid.shape, strict=True)])


def _bytes_made(given: Zyx, wanted: Zyx, *, is_linear: bool) -> int:
    """The memory in which voxels of one shape become those of another. Interpolated, they do axis after axis: what lies
    between may be larger than both.
    """
    if not is_linear:
        return MADE_BYTES * (math.prod(given) + math.prod(wanted))
    stages = [math.prod((*wanted[:axis], *given[axis:])) for axis in range(4)]
    return MADE_BYTES * (stages[0] + max(a + NEIGHBOURS * b for a, b in itertools.pairwise(stages)))


def _smaller(a: VoxelSize, b: VoxelSize) -> VoxelSize:
    z, y, x = (min(p, q) for p, q in zip(a, b, strict=True))
    return z, y, x


def _voxels(block: Block, what: str) -> NDArray[Any]:
    """The array of a block that is asked for. Where nothing says which voxels are real, all are."""
    if what == "valid":
        return np.ones(block.data.shape, np.bool_) if block.valid is None else block.valid
    if what == "data":
        return block.data
    assert block.labels is not None  # `labels` was given, or the request refused
    if what == "labels":
        return block.labels
    return np.ones(block.labels.shape, np.bool_) if block.labels_valid is None else block.labels_valid


def _npy(block: Block, voxels: NDArray[Any]) -> bytes:
    """The .npy file: of the block's data, the very one that Python and the command line write."""
    return replace(block, data=voxels).npy()


def _joined(numbers: Iterable[float]) -> str:
    return ",".join(str(number) for number in numbers)
