"""Memory that is used again: never while somebody holds a view of it, and not without bound."""

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from em_assets.blocks import _memory

SHAPE, DTYPE = (4, 128, 128, 128), np.dtype("uint8")


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()
    _memory._kept.clear()


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_what_is_gone_is_used_again():
    """The next array of the same size lies where the last one was."""
    first = _memory.empty(SHAPE, DTYPE)
    place = address(first)
    del first
    assert address(_memory.empty(SHAPE, DTYPE)) == place


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[1],
        lambda array: array[0, 3:9, ::2],
        lambda array: array.reshape(-1)[5:],
        lambda array: array.view("uint16"),
        memoryview,
        lambda array: array.transpose()[::2].astype("uint8", copy=False)[1:],
    ],
    ids=["row", "part", "flat", "other type", "buffer", "turned"],
)
def test_a_view_keeps_its_voxels(view):
    """As long as any view lives, its memory is not given to another array."""
    array = _memory.empty(SHAPE, DTYPE)
    array[...] = 7
    held = view(array)
    expected = bytes(np.asarray(held))
    del array
    for value in range(3):
        _memory.empty(SHAPE, DTYPE)[...] = value
    assert bytes(np.asarray(held)) == expected


def test_a_tensor_keeps_its_voxels():
    """torch refers to the array it was made from."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    array = _memory.empty(SHAPE, DTYPE)
    array[...] = 7
    tensor = torch.from_numpy(array[2])
    del array
    _memory.empty(SHAPE, DTYPE)[...] = 1
    assert bool((tensor == 7).all())


def test_what_is_kept_is_bounded():
    """However much was in use at once."""
    arrays = [_memory.empty((40_000_000 + n,), DTYPE) for n in range(12)]
    del arrays
    assert sum(size * len(kept) for size, kept in _memory._kept.items()) <= _memory.KEPT_BYTES


def test_small_ones_are_numpys():
    """malloc keeps them itself."""
    array = _memory.empty((100,), DTYPE)
    del array
    assert not _memory._kept


def in_a_child(expected: int) -> bool:
    return bool((_inherited == expected).all()) and bool((_memory.empty(SHAPE, DTYPE) >= 0).all())


_inherited = np.zeros(1)


def test_a_fork_has_its_own():
    """A child sees what the parent had, and writes nothing into what the parent uses."""
    global _inherited  # noqa: PLW0603  # how a forked child gets it
    _inherited = _memory.empty(SHAPE, DTYPE)
    _inherited[...] = 5
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as child:
        assert child.submit(in_a_child, 5).result(timeout=60)
    assert (_inherited == 5).all()
    _inherited = np.zeros(1)
