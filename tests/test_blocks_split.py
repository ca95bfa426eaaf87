"""Train, validation and test: never touching, margins kept, whatever the grid."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets.blocks.geometry import BoxNm, Grid
from em_assets.blocks.index_plan import grid_axes
from em_assets.blocks.split import TILE_BLOCKS, Split, draw_split
from em_assets.volume import Box


def gap(a: Box, b: Box) -> int:
    """Voxels between two boxes along the axis where they are farthest apart; negative where they overlap."""
    return max(
        max(from_b - to_a, from_a - to_b)
        for from_a, to_a, from_b, to_b in zip(a.start, a.stop, b.start, b.stop, strict=True)
    )


@st.composite
def grids(draw) -> tuple[tuple[tuple[int, ...], ...], tuple[int, int, int]]:
    """The starts of a grid's blocks, and their shape; blocks may overlap, the last are moved back inside."""
    block = draw(st.tuples(st.integers(1, 8), st.integers(3, 16), st.integers(3, 16)))
    shape = tuple(n + draw(st.integers(0, most)) for n, most in zip(block, (60, 30, 30), strict=True))
    stride = tuple(draw(st.integers(-(-n // 2), n)) for n in block)
    return grid_axes(shape, block, stride), block


def boxes_of(axes, block) -> list[Box]:
    return [Box.from_shape(block, start) for start in itertools.product(*axes)]


def shares_of(axes, block, split: Split) -> Counter:
    return Counter(split.of_all(list(itertools.product(*axes)), block))


@given(grid=grids(), seed=st.integers(0, 1000), margin=st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_splits_never_touch(grid, seed, margin):
    """Any two blocks of different splits are at least the margin apart along some axis."""
    axes, block = grid
    split = draw_split("crop", axes, block, seed=seed, margin=margin)
    starts = np.array(list(itertools.product(*axes)))
    names = np.array(split.of_all(starts.tolist(), block), dtype=object)
    for name, other in itertools.permutations(("train", "val", "test"), 2):
        for start in starts[names == name] if name != "train" else ():
            apart = np.maximum(starts[names == other] - (start + block), start - (starts[names == other] + block))
            assert (apart.max(axis=1) >= margin).all()


@given(grid=grids(), seed=st.integers(0, 99), margin=st.integers(0, 20), data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_law_holds_for_any_boxes(grid, seed, margin, data):
    """A split serves other grids, shapes and single blocks of the volume too."""
    axes, block = grid
    split = draw_split("crop", axes, block, seed=seed, margin=margin)
    starts = st.tuples(*[st.integers(-5, starts[-1] + length) for starts, length in zip(axes, block, strict=True)])
    drawn = st.lists(st.builds(Box.from_shape, st.tuples(*[st.integers(1, 20)] * 3), starts), min_size=2, max_size=40)
    boxes = data.draw(drawn)
    for a, b in itertools.combinations(boxes, 2):
        names = {split.of(a), split.of(b)}
        assert None in names or len(names) == 1 or gap(a, b) >= margin


@given(grid=grids(), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_one_by_one_or_together(grid, seed):
    """`of` and `of_all` say the same, and saying it again does too."""
    axes, block = grid
    split = draw_split("crop", axes, block, seed=seed)
    together = split.of_all(list(itertools.product(*axes)), block)
    assert together == [split.of(box) for box in boxes_of(axes, block)]
    assert split == draw_split("crop", axes, block, seed=seed)


@given(
    grid=grids(),
    seed=st.integers(0, 99),
    sizes=st.lists(st.tuples(*[st.sampled_from([1.0, 2.0, 3.24, 4.5, 8.0])] * 3), min_size=2, max_size=2),
    corner=st.tuples(*[st.floats(-40, 40)] * 3),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_the_law_holds_between_grids(grid, seed, sizes, corner, data):
    """Blocks of volumes with other voxels, elsewhere in the frame, keep the margin of the grid that was drawn on."""
    axes, block = grid
    shape = tuple(starts[-1] + length for starts, length in zip(axes, block, strict=True))
    own, other = Grid(shape, sizes[0], (5.0, 7.0, 9.0)), Grid(shape, sizes[1], corner)
    split = draw_split("crop", axes, block, seed=seed, margin=3)
    starts = st.tuples(*[st.integers(-5, n) for n in shape])
    boxes = st.lists(st.builds(Box.from_shape, st.tuples(*[st.integers(1, 9)] * 3), starts), min_size=1, max_size=30)
    there = split.on(own, other)
    for a, b in itertools.product(data.draw(boxes), data.draw(boxes)):
        names, places = {split.of(a), there.of(b)}, (own.box_nm(a), other.box_nm(b))
        margins = [3 * size for size in own.voxel_size_nm]
        assert None in names or len(names) == 1 or is_apart(*places, margins)


def is_apart(a: BoxNm, b: BoxNm, margins: list[float]) -> bool:
    edges = zip(a.start, a.stop, b.start, b.stop, margins, strict=True)
    return any(max(from_b - to_a, from_a - to_b) >= margin - 1e-3 for from_a, to_a, from_b, to_b, margin in edges)


def test_other_voxels_have_the_same_places():
    """Voxels twice as large at the same place: half the numbers, and a margin that is no fewer voxels."""
    axes = [tuple(range(0, 512, 64))] * 3
    split = draw_split("crop", axes, (64, 64, 64))
    fine, coarse = Grid((512,) * 3, (8.0,) * 3, (4.0,) * 3), Grid((256,) * 3, (16.0,) * 3, (4.0,) * 3)
    there = split.on(fine, coarse)
    assert there.margin == split.margin and split.on(fine, fine) == split
    assert [coarse.box_nm(box) for box in there.val + there.test] == [
        fine.box_nm(box) for box in split.val + split.test
    ]
    assert coarse.box_nm(there.val[0]) != coarse.box_nm(split.val[0])


SHAPES = [
    pytest.param((640, 640, 640), 128, 128, id="640"),
    pytest.param((700, 700, 700), 128, 128, id="last blocks moved back"),
    pytest.param((1024, 1024, 1024), 128, 128, id="1024"),
    pytest.param((1024, 1024, 1024), 128, 64, id="overlapping"),
    pytest.param((16, 4000, 6000), 128, 128, id="16 slices, in tiles"),
    pytest.param((16, 550, 548), 128, 128, id="16 slices"),
    pytest.param((165, 768, 1024), 128, 128, id="thin"),
    pytest.param((4096, 4096, 4096), 128, 128, id="in tiles"),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "length", "step"), SHAPES)
def test_shares_are_about_as_wanted(shape, length, step, seed):
    """Eight in ten train, one validates and one tests, of the blocks outside of margins; these are less than half."""
    block = tuple(min(length, n) for n in shape)
    axes = grid_axes(shape, block, tuple(min(step, n) for n in block))
    found = shares_of(axes, block, draw_split("crop", axes, block, seed=seed))
    lost = found.pop(None, 0)
    used = found.total()
    assert lost < 0.5 * (used + lost)
    assert found["train"] / used == pytest.approx(0.8, abs=0.04)
    assert found["val"] / used == pytest.approx(0.1, abs=0.04)
    assert found["test"] / used == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize(
    ("blocks", "splits"),
    [
        pytest.param((1, 1, 1), {"train": 1}, id="one block"),
        pytest.param((1, 1, 4), {"train": 4}, id="four in a row"),
        pytest.param((2, 2, 2), {"train": 8}, id="two along each axis"),
        pytest.param((1, 1, 5), {"train": 3, "val": 1, None: 1}, id="five in a row: nothing to test"),
        pytest.param((1, 1, 9), {"train": 5, "val": 1, "test": 1, None: 2}, id="nine in a row"),
    ],
)
def test_small_volumes_leave_splits_empty(blocks, splits):
    """Rather no test set, and rather no validation set, than blocks that train all lost to margins."""
    axes = [tuple(range(0, n * 32, 32)) for n in blocks]
    assert shares_of(axes, (32, 32, 32), draw_split("crop", axes, (32, 32, 32))) == splits


def test_without_a_margin_nothing_is_lost():
    """Blocks that only touch may be of different splits if so is asked."""
    axes = [tuple(range(0, 256, 32))] * 3
    found = shares_of(axes, (32, 32, 32), draw_split("crop", axes, (32, 32, 32), margin=0))
    assert found.keys() == {"train", "val", "test"}


def test_name_and_seed_move_the_boxes():
    """Not every volume is judged by its first corner: all eight are drawn, by name and by seed."""
    axes = [tuple(range(0, 512, 64))] * 3
    for splits in (
        [draw_split("crop", axes, (64, 64, 64), seed=seed) for seed in range(60)],
        [draw_split(f"crop{number}", axes, (64, 64, 64)) for number in range(60)],
    ):
        assert len({split.val for split in splits}) == 8


def test_a_large_volume_is_judged_in_many_places():
    """A box of each split in every tile, not all of them in the same corner."""
    axes = [tuple(range(0, TILE_BLOCKS * 3 * 8, 8))] * 3
    split = draw_split("crop", axes, (8, 8, 8), margin=4)
    assert len(split.val) == len(split.test) == 27
    assert len({tuple(n % (TILE_BLOCKS * 8) for n in box.start) for box in split.val}) > 1


def test_other_shares():
    """Half and half, and no test set."""
    axes = [tuple(range(0, 1024, 64))] * 3
    split = draw_split("crop", axes, (64, 64, 64), shares=(0.5, 0.5, 0.0))
    found = shares_of(axes, (64, 64, 64), split)
    assert split.test == ()
    assert found["val"] / (found["val"] + found["train"]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        pytest.param({"margin": -1}, "-1 voxels", id="margin"),
        pytest.param({"shares": (0.8, 0.1, 0.2)}, "whose sum is 1", id="sum"),
        pytest.param({"shares": (0.0, 0.5, 0.5)}, "whose sum is 1", id="nothing to train"),
        pytest.param({"shares": (1.2, -0.1, -0.1)}, "whose sum is 1", id="negative"),
    ],
)
def test_nonsense_is_refused(wrong, said):
    """With a sentence that has the value."""
    with pytest.raises(ValueError, match=said):
        draw_split("crop", [(0,), (0,), (0,)], (8, 8, 8), **wrong)
