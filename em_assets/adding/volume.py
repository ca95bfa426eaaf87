"""Which part of a published volume is stored, how it is cut into partitions, and whether it is too large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from em_assets.adding.draft import Draft
from em_assets.datasets.fields import ITEM_BYTES
from em_assets.errors import Mismatch, Unsupported
from em_assets.progress import human_bytes
from em_assets.settings import Settings
from em_assets.volume import Box, VolumeInfo, VoxelSize, Zyx, add, ceil_divide, subtract, zyx

CHUNK_EDGE = 64
SHARD_EDGE = 256
FEWEST_PARTITIONS, MOST_PARTITIONS = 10, 99
"""Tens: few enough to look at, many enough that one that fails costs little."""
SHARD_BYTES = 256 * 2**20
"""A worker holds one in memory."""
EXAMPLE_EDGE = 1000
Floats = tuple[float, float, float]


@dataclass(frozen=True)
class Wishes:
    """What the person asked for."""

    box: Box | None = None
    """In the publisher's voxels."""
    box_nm: tuple[Floats, Floats] | None = None
    """(start, stop) from the corner of the publisher's voxel 0."""
    voxel_size_nm: VoxelSize | None = None
    """Where the publisher states none."""
    api_voxel_size_nm: VoxelSize | None = None
    """What the publisher's replies say of it: not the person's wish, but the last resort before asking one."""
    labels: bool = False


@dataclass(frozen=True)
class LevelSize:
    """One of the publisher's levels, for advice."""

    name: str
    shape: Zyx


def know_volume(
    draft: Draft,
    where: str,
    info: VolumeInfo,
    wishes: Wishes,
    settings: Settings,
    *,
    levels: Sequence[LevelSize] = (),
    from_files: bool = False,
) -> None:
    """Fills in `expected`, `crop`, `content` and `output`.

    Raises Unsupported for volumes that cannot be stored, Mismatch where the person has to decide: nobody states the
    voxel size, the volume is too large, the box lies outside of it.
    """
    if info.channels is not None:
        raise Unsupported(f"{where} has {info.channels} channels, but volumes of one channel are stored.")
    if info.dtype not in ITEM_BYTES:
        raise Unsupported(f"{where} is of {info.dtype}; stored are {', '.join(ITEM_BYTES)}.")
    size_nm = _voxel_size(draft, where, info, wishes)
    box = _box(where, info, wishes, size_nm)
    shape = info.shape if box is None else box.shape
    if from_files:
        _require_room_for_files(where, info, shape, settings)
    else:
        _require_room(where, info, shape, settings, levels)
    draft.document["expected"] = {
        "source_shape": list(info.shape),
        "dtype": info.dtype,
        "voxel_size_nm": [float(v) for v in size_nm],
    }
    if box is not None:
        # not snapped to the publisher's chunks: a person who names a box means this box
        draft.document["crop"] = {"shape": list(shape), "origin": list(box.start), "snap": False}
    if wishes.labels:
        draft.document["content"] = "labels"
    draft.document["output"] = output_for(shape, info.dtype)
    draft.found.append(
        f"{_product(info.shape)} voxels (z, y, x) of {info.dtype}, {_product(size_nm)} nm"
        + (f"; stored is the box {box}" if box is not None else "")
        + f": {human_bytes(math.prod(shape) * ITEM_BYTES[info.dtype])} in {_shards(draft)}"
    )


def _shards(draft: Draft) -> str:
    document = draft.document
    shape = (document.get("crop") or {}).get("shape") or document["expected"]["source_shape"]
    count = _count(zyx(shape), document["output"]["shard"])
    return f"{count} shard{'s' if count != 1 else ''}"


def output_for(shape: Zyx, dtype: str) -> dict[str, list[int]]:
    """Chunks of 64 voxels along each axis, shards of some of them, so that a volume has tens of shards."""
    chunk = zyx([min(CHUNK_EDGE, max(2, 1 << (n - 1).bit_length())) for n in shape])
    most = zyx([-(-n // c) * c for n, c in zip(shape, chunk, strict=True)])
    shard = [min(SHARD_EDGE, m) for m in most]
    item = ITEM_BYTES[dtype]
    while _count(shape, shard) > MOST_PARTITIONS and math.prod(shard) * item < SHARD_BYTES // 2:
        axis = max(range(3), key=lambda a: shape[a] / shard[a])
        shard[axis] = min(2 * shard[axis], most[axis])
    while _count(shape, shard) < FEWEST_PARTITIONS and (axes := _halvable(shard, chunk)):
        shard[max(axes, key=lambda a: shard[a])] //= 2
    return {"shard": shard, "chunk": list(chunk)}


def _count(shape: Zyx, shard: Sequence[int]) -> int:
    return math.prod(ceil_divide(shape, zyx(list(shard))))


def _halvable(shard: Sequence[int], chunk: Zyx) -> list[int]:
    return [axis for axis in range(3) if shard[axis] % (2 * chunk[axis]) == 0]


def _require_room(where: str, info: VolumeInfo, shape: Zyx, settings: Settings, levels: Sequence[LevelSize]) -> None:
    """Raises Mismatch with the size and a way out if EM_ASSETS_MAX_BYTES does not allow it."""
    stored = _stored_bytes(shape, info.dtype)
    if stored <= settings.max_bytes:
        return
    fits = [level for level in levels if _stored_bytes(level.shape, info.dtype) <= settings.max_bytes]
    coarser = f" or a coarser level, --level {fits[0].name} ({_product(fits[0].shape)})," if fits else ""
    raise Mismatch(
        f"{where}: {_product(shape)} voxels (z, y, x) of {info.dtype} would store up to {human_bytes(stored)}, "
        f"EM_ASSETS_MAX_BYTES allows {human_bytes(settings.max_bytes)}; take a box, such as "
        f"--box {_example_box(info, settings)},{coarser} or raise that limit."
    )


def _require_room_for_files(where: str, info: VolumeInfo, shape: Zyx, settings: Settings) -> None:
    """Files are kept as they are, beside the volume made of them."""
    stored = math.prod(info.shape) * ITEM_BYTES[info.dtype] + _stored_bytes(shape, info.dtype)
    if stored > settings.max_bytes:
        fit = info.shape[0] * settings.max_bytes // stored
        part = f"take some of the files (--max-files {fit}, or --files PATTERN), or " if 0 < fit < info.shape[0] else ""
        raise Mismatch(
            f"{where}: files of {_product(info.shape)} voxels (z, y, x) of {info.dtype} and the volume made of them "
            f"would store up to {human_bytes(stored)}, EM_ASSETS_MAX_BYTES allows {human_bytes(settings.max_bytes)}; "
            f"{part}raise that limit."
        )


def _stored_bytes(shape: Zyx, dtype: str) -> int:
    return math.prod(shape) * ITEM_BYTES[dtype] * 8 // 7  # a pyramid adds a seventh


def _example_box(info: VolumeInfo, settings: Settings) -> str:
    """About the middle, on the publisher's chunks."""
    edge = EXAMPLE_EDGE
    while edge > 1 and _stored_bytes((edge, edge, edge), info.dtype) > settings.max_bytes:
        edge //= 2
    shape = zyx([min(edge, n) for n in info.shape])
    free = subtract(info.shape, shape)
    start = add(info.origin, zyx([f // 2 // c * c for f, c in zip(free, info.chunk, strict=True)]))
    return ",".join(f"{a}:{a + n}" for a, n in zip(start, shape, strict=True))


def _voxel_size(draft: Draft, where: str, info: VolumeInfo, wishes: Wishes) -> VoxelSize:
    stated, given = info.voxel_size_nm, wishes.voxel_size_nm
    if stated is None and given is None and wishes.api_voxel_size_nm is not None:
        draft.note("expected.voxel_size_nm", "as the publisher's API states it; the data does not state it")
        return wishes.api_voxel_size_nm
    if stated is None and given is None:
        raise Mismatch(
            f"{where} does not state the size of a voxel, and it is not guessed; look it up and give it in nanometres "
            "with --voxel-size-nm Z,Y,X."
        )
    if stated is None:
        assert given is not None
        draft.note("expected.voxel_size_nm", "given by the person who added the dataset; the data does not state it")
        return given
    if given is not None and any(not math.isclose(a, b, rel_tol=1e-9) for a, b in zip(stated, given, strict=True)):
        raise Mismatch(f"{where} states voxels of {_product(stated)} nm (z, y, x); leave out --voxel-size-nm.")
    return stated


def _box(where: str, info: VolumeInfo, wishes: Wishes, size_nm: VoxelSize) -> Box | None:
    box = wishes.box
    if wishes.box_nm is not None:
        if box is not None:
            raise Mismatch("--box and --box-nm say the same thing twice; give one of them.")
        first, last = wishes.box_nm
        # a millionth of a voxel is forgiven, so that n times the size is voxel n
        start = [math.floor(a / s + 1e-6) for a, s in zip(first, size_nm, strict=True)]
        stop = [math.ceil(b / s - 1e-6) for b, s in zip(last, size_nm, strict=True)]
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            raise Mismatch("--box-nm is empty; each range must rise, as in 0:8000,0:8000,0:8000.")
        box = Box(zyx(start), zyx(stop))
    whole = Box.from_shape(info.shape, at=info.origin)
    if box is None or box == whole:
        return None
    if not box.voxels or not whole.contains(box):
        raise Mismatch(f"the box {box} is empty or leaves the volume {whole} of {where}; correct it.")
    return box


def _product(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.10g}" for value in values)
