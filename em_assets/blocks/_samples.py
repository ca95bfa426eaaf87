"""Samples into batches, and arrays into tensors. Without torch everything stays NumPy's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from em_assets.blocks import _memory
from em_assets.errors import Mismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

Sample = dict[str, Any]
"""`data`, `valid`, perhaps `labels` and `labels_valid`: arrays (z, y, x) or tensors; `info`: plain values."""
Transform = Callable[[Sample], Sample]
_HINTS = {"types": " by dtype= or normalize=", "shapes": " in the transform"}


def collate(samples: Sequence[Sample]) -> Sample:
    """Samples as one batch: arrays and tensors stacked, everything else in lists. For `DataLoader(collate_fn=collate)`.

    Raises Mismatch if arrays of several types or shapes are to be stacked: nothing is converted that was not asked for.
    """
    return {key: _stacked(key, [sample[key] for sample in samples], samples) for key in samples[0]}


def joined(samples: Sequence[Sample]) -> Sample:
    """The same of samples that nobody else has: voxels that were read together are not copied."""
    found = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        found[key] = values[0].base if _are_rows_of_one(values) else _stacked(key, values, samples)
    return found


def as_tensor(value: Any) -> Any:
    """An array as a tensor of the same type; everything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    import torch

    return torch.from_numpy(np.require(value, requirements=["C", "W"]))


def everywhere(shape: tuple[int, ...], *, value: bool) -> NDArray[np.bool_]:
    """A mask of one value that takes the memory of one voxel, until somebody may write into it (`own`)."""
    return np.broadcast_to(np.bool_(value), shape)


def own(sample: Sample) -> Sample:
    """With memory for each voxel of a mask: one whose voxels share it can neither be written to nor pinned."""
    return {key: _filled(value) if _is_one_value(value) else value for key, value in sample.items()}


def _filled(mask: NDArray[Any]) -> NDArray[Any]:
    whole = _memory.empty(mask.shape, mask.dtype)
    whole.fill(mask.flat[0])
    return whole


def _is_one_value(value: Any) -> bool:
    """Whether it is made by `everywhere`."""
    return isinstance(value, np.ndarray) and bool(value.size) and not any(value.strides)


def _stacked(key: str, values: list[Any], samples: Sequence[Sample]) -> Any:
    torch = sys.modules.get("torch")  # loaded if any of them is a tensor
    is_tensor = torch is not None and isinstance(values[0], torch.Tensor)
    if not is_tensor and not isinstance(values[0], np.ndarray):
        return values
    _require_alike(key, values, samples)
    if is_tensor:
        return torch.stack(values)  # type: ignore[union-attr]  # it is loaded
    shape = values[0].shape
    if all(_is_one_value(value) and value.flat[0] == values[0].flat[0] and value.shape == shape for value in values):
        return everywhere((len(values), *shape), value=values[0].flat[0])
    return np.stack(values, out=_memory.empty((len(values), *shape), values[0].dtype))


def _require_alike(key: str, values: list[Any], samples: Sequence[Sample]) -> None:
    for what, kinds in (
        ("types", [str(value.dtype) for value in values]),
        ("shapes", [str(tuple(value.shape)) for value in values]),
    ):
        found = {kind: sample.get("info", {}) for kind, sample in zip(kinds, samples, strict=True)}
        if len(found) > 1:
            each = ", ".join(f"{kind} of {info.get('volume', '?')}" for kind, info in found.items())
            raise Mismatch(f"a batch's {key} is of several {what} ({each}); make them one{_HINTS[what]}.")


def _are_rows_of_one(values: list[Any]) -> bool:
    """Whether they are, in order, all of one array: so lie blocks that were read together, which saves a copy."""
    base = getattr(values[0], "base", None)
    if not isinstance(base, np.ndarray) or base.shape != (len(values), *values[0].shape):
        return False
    return base.flags.c_contiguous and all(
        value.base is base and value.flags.c_contiguous and value.ctypes.data == row.ctypes.data
        for value, row in zip(values, base, strict=True)
    )
