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


def collate(samples: Sequence[Sample]) -> Sample:
    """Samples as one batch: arrays and tensors stacked, everything else in lists. For `DataLoader(collate_fn=collate)`.

    Raises Mismatch if arrays of several types are to be stacked: nothing is converted that was not asked for.
    """
    return {key: _stacked(key, [sample[key] for sample in samples], samples) for key in samples[0]}


def as_tensor(value: Any) -> Any:
    """An array as a tensor of the same type; everything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    import torch

    if is_one_value(value):
        return torch.from_numpy(np.array(value.flat[0])).expand(value.shape)
    return torch.from_numpy(np.require(value, requirements=["C", "W"]))


def everywhere(shape: tuple[int, ...], *, value: bool) -> NDArray[np.bool_]:
    """A mask of one value that takes the memory of one voxel, also as a tensor, in a batch, and between processes."""
    return np.broadcast_to(np.bool_(value), shape)


def is_one_value(array: NDArray[Any]) -> bool:
    """Whether it is made by `everywhere`."""
    return bool(array.size) and not any(array.strides)


def _stacked(key: str, values: list[Any], samples: Sequence[Sample]) -> Any:
    torch = sys.modules.get("torch")  # loaded if any of them is a tensor
    if torch is not None and isinstance(values[0], torch.Tensor):
        _require_one_type(key, values, samples)
        return torch.stack(values)
    if not isinstance(values[0], np.ndarray):
        return values
    _require_one_type(key, values, samples)
    if all(is_one_value(value) and value.flat[0] == values[0].flat[0] for value in values):
        return np.broadcast_to(values[0].flat[0], (len(values), *values[0].shape))
    if _are_rows_of_one(values):
        return values[0].base
    return np.stack(values, out=_memory.empty((len(values), *values[0].shape), values[0].dtype))


def _require_one_type(key: str, values: list[Any], samples: Sequence[Sample]) -> None:
    types = {str(value.dtype): sample.get("info", {}) for value, sample in zip(values, samples, strict=True)}
    if len(types) > 1:
        found = ", ".join(f"{name} of {info.get('volume', '?')}" for name, info in types.items())
        raise Mismatch(f"a batch's {key} is of several types ({found}); make them one by dtype= or normalize=.")


def _are_rows_of_one(values: list[NDArray[Any]]) -> bool:
    """Whether they are, in order, all of one array: so lie blocks that were read together, which saves a copy."""
    base = values[0].base
    if not isinstance(base, np.ndarray) or base.shape != (len(values), *values[0].shape):
        return False
    return base.flags.c_contiguous and all(
        value.base is base and value.flags.c_contiguous and value.ctypes.data == row.ctypes.data
        for value, row in zip(values, base, strict=True)
    )
