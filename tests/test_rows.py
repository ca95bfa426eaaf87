"""Boxes of voxels on their way: how they are copied, which are compared, and that no worker waits for another."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.formats._boxes import map_boxes
from em_assets.formats._rows import copy_rows
from em_assets.volume import Box


@settings(max_examples=150, deadline=None)
@given(data=st.data(), rank=st.integers(1, 4))
def test_rows_are_copied_as_an_assignment_copies_them(data, rank):
    """Any dtype, byte order, memory order, part, and step along any axis; nothing beside the part is touched."""
    dtypes = ["<u1", "<i2", ">u2", "<f4", ">f8", "<u8", "?"]
    shape = [data.draw(st.integers(1, 9)) for _ in range(rank)]
    dtype = data.draw(st.sampled_from(dtypes))
    other = data.draw(st.sampled_from([dtype, dtype, "<f8"]))
    parts = [
        slice(data.draw(st.integers(0, n)), data.draw(st.integers(0, n)), data.draw(st.sampled_from([1, 1, 2])))
        for n in shape
    ]
    source = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    source = data.draw(st.sampled_from([source, np.asfortranarray(source), source[..., ::-1]]))
    target = np.full(shape, 77, other)
    expected = target.copy()
    expected[tuple(parts)] = source[tuple(parts)]
    copy_rows(target[tuple(parts)], source[tuple(parts)])
    np.testing.assert_array_equal(target, expected)


def mapped(boxes, work, *, workers=2, array=None):
    array = np.random.default_rng(1).integers(0, 256, (300, 300, 300), np.uint8) if array is None else array
    return map_boxes(
        boxes,
        lambda box: array[box.slices].copy(),
        work,
        sample=lambda at: float(array[at]),
        source_url="memory://volume",
        workers=workers,
    )


@pytest.mark.parametrize(
    "box", [Box((10, 20, 30), (266, 276, 286)), Box((7, 7, 7), (9, 8, 12)), Box((0, 0, 5), (1, 1, 6))], ids=str
)
def test_sampled_voxels_lie_in_few_places(box):
    """32 of them, within the box, with its extreme corners, equal on each call, in at most 8 chunks of 64."""
    first, again = ([outcome.value.samples for outcome in mapped([box], lambda region: region)] for _ in range(2))
    assert first == again
    (samples,) = first
    positions = [sample.position for sample in samples]
    assert len(positions) == 32
    assert {box.start, tuple(n - 1 for n in box.stop)} <= set(positions)
    assert all(box.contains(Box.from_shape((1, 1, 1), at=at)) for at in positions)
    chunks = {tuple((p - a) // 64 for p, a in zip(at, box.start, strict=True)) for at in positions}
    assert len(chunks) <= 8


def test_a_worker_does_not_wait_for_the_box_before():
    """While the first box is held up, a second worker gets through others, and never more than two are at work."""
    boxes = [Box.from_shape((2, 2, 2), at=(z, 0, 0)) for z in range(0, 20, 2)]
    others_done, lock = threading.Event(), threading.Lock()
    running, most, done = 0, 0, []

    def work(region):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if region.box == boxes[0]:
            assert others_done.wait(30)
        with lock:
            done.append(region.box)
            running -= 1
            if len(done) == 2:
                others_done.set()
        return region.box

    assert [outcome.value for outcome in mapped(boxes, work)] == boxes
    assert done[:2] == boxes[1:3]
    assert most == 2
