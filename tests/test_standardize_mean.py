"""What a coarser voxel is: the exact mean of the real ones under it, and which voxels are real at all."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from em_assets.standardize.mean import mean_2x2x2
from em_assets.standardize.ome import level_factors, level_shapes
from em_assets.standardize.presence import Presence, merge_boxes
from em_assets.volume import Box

INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
small_shapes = st.tuples(*[st.integers(1, 5)] * 3)


def blocks(array):
    """Every 2x2x2 block by plain slicing: (index, values)."""
    for at in np.ndindex(*(-(-n // 2) for n in array.shape)):
        yield at, tuple(slice(2 * i, 2 * i + 2) for i in at)


def exact(values):
    """The mean of integers, rounded half to even as `round` does; 0 of none."""
    return round(Fraction(sum(map(int, values)), len(values))) if len(values) else 0


@settings(max_examples=150, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(INTEGERS), shape=small_shapes, masked=st.booleans())
def test_integer_means_are_exact(data, dtype, shape, masked):
    """Every dtype up to its limits, odd ends, any missing voxels: the fraction's nearest integer, halves to even."""
    info = np.iinfo(dtype)
    extremes = st.sampled_from([info.min, info.min + 1, 0, 1, 2, info.max - 1, info.max])
    elements = st.one_of(extremes, st.integers(info.min, info.max))
    voxels = data.draw(npst.arrays(dtype, shape, elements=elements))
    present = data.draw(npst.arrays(bool, shape)) if masked else np.ones(shape, bool)
    means = mean_2x2x2(voxels, present if masked else None)
    assert means.dtype == voxels.dtype
    for at, block in blocks(voxels):
        assert means[at] == exact(voxels[block][present[block]])


@settings(max_examples=80, deadline=None)
@given(data=st.data(), shape=small_shapes, masked=st.booleans())
def test_float_means_are_those_of_float64(data, shape, masked):
    """float32 is averaged in float64 and rounded once."""
    elements = st.floats(-(2.0**40), 2.0**40, width=32)
    voxels = data.draw(npst.arrays(np.float32, shape, elements=elements))
    present = data.draw(npst.arrays(bool, shape)) if masked else np.ones(shape, bool)
    means = mean_2x2x2(voxels, present if masked else None)
    for at, block in blocks(voxels):
        real = [Fraction(float(value)) for value in voxels[block][present[block]]]
        expected = np.float32(float(sum(real) / len(real))) if real else 0
        assert means[at] == pytest.approx(expected, rel=1e-6, abs=1e-3)


def test_a_missing_nan_does_not_spread():
    """What lies in a missing voxel is not looked at."""
    voxels = np.ones((2, 2, 2), np.float32)
    voxels[0, 0, 0] = np.nan
    present = ~np.isnan(voxels)
    assert mean_2x2x2(voxels, present).item() == 1
    assert np.isnan(mean_2x2x2(voxels)).all()


@given(shape=st.tuples(*[st.integers(1, 20_000)] * 3))
def test_levels_end_at_the_first_one_under_128(shape):
    """Every level halves, rounded up; the last is the only one whose largest axis is under 128."""
    shapes = level_shapes(shape)
    assert shapes[0] == shape
    assert max(shapes[-1]) < 128
    assert all(max(level) >= 128 for level in shapes[:-1])
    assert all(b == tuple(-(-n // 2) for n in a) for a, b in itertools.pairwise(shapes))
    for level, factor in zip(shapes, level_factors(shapes), strict=True):
        assert all(0 <= n * f - whole < f for n, f, whole in zip(level, factor, shape, strict=True))


@st.composite
def boxes_of_a_grid(draw, shape, cell):
    """Some whole cells of a grid anywhere, clipped to the shape: what a publisher may lack."""
    shift = tuple(draw(st.integers(0, c - 1)) for c in cell)
    whole = Box.from_shape(shape)
    cells = [
        Box.from_shape(cell, at=tuple(i * c - s for i, c, s in zip(at, cell, shift, strict=True)))
        for at in Box.from_shape(tuple(n + c for n, c in zip(shape, cell, strict=True))).cells(cell)
    ]
    inside = [part for box in cells if (part := box.intersection(whole))]
    return draw(st.lists(st.sampled_from(inside), unique=True, max_size=len(inside)))


def by_hand(shape, holes, levels):
    """Presence of every level, halved voxel by voxel."""
    present = np.ones(shape, bool)
    for hole in holes:
        present[hole.slices] = False
    masks = [present]
    for _ in range(levels - 1):
        fine = masks[-1]
        masks.append(np.array([fine[b].any() for _, b in blocks(fine)]).reshape([-(-n // 2) for n in fine.shape]))
    return masks


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.tuples(*[st.integers(1, 40)] * 3), cell=st.tuples(*[st.integers(3, 17)] * 3))
def test_a_coarse_voxel_is_missing_when_all_under_it_are(data, shape, cell):
    """Any holes, any level, any box: equal to halving the mask voxel by voxel."""
    holes = data.draw(boxes_of_a_grid(shape, cell))
    shapes = [shape]
    for _ in range(4):
        shapes.append(tuple(-(-n // 2) for n in shapes[-1]))
    presence = Presence(shapes, level_factors(shapes), holes)
    for level, expected in enumerate(by_hand(shape, holes, len(shapes))):
        start = tuple(data.draw(st.integers(0, n - 1)) for n in expected.shape)
        stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, expected.shape, strict=True))
        box = Box(start, stop)
        mask = presence.mask(level, box)
        assert presence.touches(level, box) == (mask is not None)
        np.testing.assert_array_equal(np.ones(box.shape, bool) if mask is None else mask, expected[box.slices])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_merged_boxes_are_the_same_voxels(data):
    """Merging keeps every voxel, makes no overlap and never more boxes."""
    shape = (20, 21, 22)
    boxes = data.draw(boxes_of_a_grid(shape, (7, 5, 6)))
    merged = merge_boxes(boxes)
    painted, counted = np.zeros(shape, int), np.zeros(shape, int)
    for box in boxes:
        painted[box.slices] += 1
    for box in merged:
        counted[box.slices] += 1
    np.testing.assert_array_equal(painted, counted)
    assert len(merged) <= len(boxes)


def test_a_whole_grid_merges_into_one_box():
    """A large hole costs as much as a small one."""
    cells = [Box.from_shape((4, 4, 4), at=(4 * z, 4 * y, 4 * x)) for z, y, x in np.ndindex(5, 5, 5)]
    assert merge_boxes(cells) == [Box((0, 0, 0), (20, 20, 20))]
