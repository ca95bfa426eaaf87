"""Boxes: the arithmetic that every shard, crop and chunk relies on."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.volume import Box, add, ceil_divide, multiply, subtract, zyx

coordinates = st.integers(-300, 300)
extents = st.integers(0, 20)
triples = st.tuples(coordinates, coordinates, coordinates)
shapes = st.tuples(extents, extents, extents)
cells = st.tuples(*[st.integers(1, 17)] * 3)


@st.composite
def boxes(draw):
    return Box.from_shape(draw(shapes), at=draw(triples))


def voxels(box):
    return set(itertools.product(*(range(a, b) for a, b in zip(box.start, box.stop, strict=True))))


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 6)] * 3), st.tuples(*[st.integers(-4, 4)] * 3), boxes())
def test_intersection_is_what_both_hold(shape, at, other):
    """The intersection holds exactly the voxels that lie in both, and is None where there is none."""
    box = Box.from_shape(shape, at=at)
    common = box.intersection(other)
    expected = {v for v in voxels(box) if all(a <= i < b for a, i, b in zip(other.start, v, other.stop, strict=True))}
    assert (voxels(common) if common else set()) == expected
    assert common == other.intersection(box)


@settings(deadline=None)
@given(boxes(), boxes())
def test_containing_is_intersecting_to_itself(outer, inner):
    """A box that holds voxels is contained exactly where the intersection is the box itself."""
    if inner.voxels:
        assert outer.contains(inner) == (outer.intersection(inner) == inner)


@settings(deadline=None)
@given(boxes(), cells)
def test_cells_tile_a_box_exactly_once(box, cell):
    """The cells that a box touches, cut to it, hold each of its voxels once, in z, y, x order."""
    indices = list(box.cells(cell))
    assert indices == sorted(set(indices))
    parts = [Box.from_shape(cell, at=multiply(index, cell)).intersection(box) for index in indices]
    assert None not in parts
    assert sum(part.voxels for part in parts) == box.voxels
    assert all(a.intersection(b) is None for a, b in itertools.combinations(parts[:40], 2))


@settings(deadline=None)
@given(boxes(), triples)
def test_shifting_there_and_back_changes_nothing(box, by):
    """A shift keeps the shape, and the opposite shift undoes it."""
    there = box.shifted(by)
    assert there.shape == box.shape
    assert there.shifted(subtract((0, 0, 0), by)) == box


@settings(deadline=None)
@given(triples, cells)
def test_ceil_divide_is_the_least_number_of_cells_that_covers(total, cell):
    """ceil_divide gives the fewest cells that together are as long as the whole, along each axis."""
    count = ceil_divide(total, cell)
    assert all(c >= t for c, t in zip(multiply(count, cell), total, strict=True))
    assert all(c < t for c, t in zip(multiply(add(count, (-1, -1, -1)), cell), total, strict=True))


def test_slices_cut_what_the_box_says():
    """`array[box.slices]` has the box's shape and begins at its start."""
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    box = Box((1, 2, 3), (3, 5, 4))
    assert array[box.slices].shape == box.shape
    assert array[box.slices][0, 0, 0] == array[1, 2, 3]


@pytest.mark.parametrize("stop", [(-1, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_a_box_does_not_end_before_it_starts(stop):
    """An inverted box is refused; an empty one is a box."""
    with pytest.raises(ValueError, match="must not end before it starts"):
        Box((0, 0, 0), stop)
    assert Box((3, 3, 3), (3, 4, 4)).voxels == 0


def test_str_says_the_order():
    """What a message shows of a box says which axis is which."""
    assert str(Box((0, 1, 2), (10, 11, 12))) == "0:10, 1:11, 2:12 (z, y, x)"


@settings(deadline=None)
@given(triples)
def test_zyx_takes_any_whole_numbers(values):
    """Integers of numpy come out as plain ones."""
    result = zyx([np.int64(v) for v in values])
    assert result == values
    assert all(type(v) is int for v in result)


@pytest.mark.parametrize("values", [[1, 2], [1, 2, 3, 4], []])
def test_zyx_takes_three(values):
    """Two or four numbers are not a triple."""
    with pytest.raises(ValueError):
        zyx(values)


@pytest.mark.parametrize("values", [[1.0, 2, 3], [1.5, 2, 3], ["1", "2", "3"]])
def test_zyx_rounds_nothing(values):
    """A float or a text among the three is refused instead of cut off."""
    with pytest.raises(TypeError):
        zyx(values)
