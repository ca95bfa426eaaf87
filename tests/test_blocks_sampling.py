"""Which block is the n-th: the same on every machine, each once, by weight, and never one with a missing voxel."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_assets.blocks.geometry import Grid
from em_assets.blocks.sampling import (
    Crops,
    SamplerState,
    Source,
    Weights,
    permuted,
    random_below,
    random_bits,
    random_share,
)
from em_assets.blocks.volume import Level
from em_assets.errors import Malformed, Mismatch
from em_assets.volume import Box

SEEDS = st.integers(0, 2**64 - 1)

PINNED_BITS = 0x336BF4A700E833CAD7B6B7285E916B90
PINNED_SHARE = 0.8395302942553291
PINNED_BELOW = [12, 793, 747, 391, 522, 742]
PINNED_ORDER = [6, 8, 1, 5, 2, 3, 9, 4, 0, 7]
PINNED_STARTS = [(12, 15, 18), (1, 7, 15), (0, 13, 10)]


class FakeVolume:
    """Levels, and what is known to be missing of level 0: all that sampling looks at."""

    def __init__(self, shape=(20, 24, 28), size=(8.0, 8.0, 8.0), levels=1, holes=(), name="fake"):
        self.name, self.content = name, "image"
        self.levels = tuple(
            Level(k, Grid(tuple(-(-n // 2**k) for n in shape), tuple(nm * 2**k for nm in size), (3.0, 5.0, 7.0)), shape)
            for k in range(levels)
        )
        self.holes = holes

    def missing_fraction(self, box, level=0):
        assert self.levels[level].grid.box.contains(box)
        parts = [part.voxels for hole in self.holes if (part := box.intersection(hole))]
        return sum(parts) / box.voxels


def crops(*volumes, shape=(8, 8, 8), size=None, weights=None, length=None, is_padded=False, is_whole=True):
    sources = [Source.of(volume, shape, size) for volume in volumes]
    weights = weights or [1.0] * len(volumes)
    return Crops(sources, weights, length=length, is_padded=is_padded, is_whole=is_whole)


def test_the_same_numbers_on_every_machine():
    """Pinned: whoever changes one of these changes every sequence that anybody noted."""
    assert random_bits("feistel", 7, 0, 1) == PINNED_BITS
    assert random_share("row", 2**64 - 1, 3) == PINNED_SHARE
    assert [random_below(1000, "start", 1, 2, n) for n in range(6)] == PINNED_BELOW
    assert [permuted(n, 10, 7, 0) for n in range(10)] == PINNED_ORDER
    plan = crops(FakeVolume(), length=3)
    assert [plan.place(7, 1, n).start for n in range(3)] == PINNED_STARTS


@given(size=st.integers(1, 400), seed=SEEDS, epoch=st.integers(0, 2**32))
def test_each_number_once(size, seed, epoch):
    """An epoch's order is a permutation."""
    assert sorted(permuted(n, size, seed, epoch) for n in range(size)) == list(range(size))


def test_a_large_order_has_no_repetition():
    """A million rows: a stretch of the order has no number twice, and reaches all of them alike."""
    drawn = [permuted(n, 1_000_000, 5, 2) for n in range(20_000)]
    assert len(set(drawn)) == len(drawn)
    counts = np.histogram(drawn, bins=20, range=(0, 1_000_000))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi squared, 19 degrees: once in a thousand seeds


def test_every_order_is_as_likely():
    """All 24 orders of four rows come, about as often."""
    found = Counter(tuple(permuted(n, 4, seed, 0) for n in range(4)) for seed in range(2400))
    assert set(found) == set(itertools.permutations(range(4)))
    assert sum((count - 100) ** 2 / 100 for count in found.values()) < 51  # 23 degrees: once in a thousand


@pytest.mark.parametrize("n", [-1, 10], ids=str)
def test_beyond_the_end(n):
    """There is no eleventh of ten."""
    with pytest.raises(IndexError, match="among 10"):
        permuted(n, 10, 0, 0)


def test_epochs_and_seeds_differ():
    """Another epoch or seed is another order."""
    orders = {tuple(permuted(n, 50, seed, epoch) for n in range(50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@given(limit=st.integers(1, 2**40), seed=SEEDS)
def test_draws_stay_below(limit, seed):
    """Numbers from 0 to the limit, shares from 0 to 1, neither reached."""
    assert 0 <= random_below(limit, "start", seed) < limit
    assert 0 <= random_share("row", seed) < 1


def test_draws_are_uniform_and_independent():
    """Neighbouring counters and other purposes share nothing: 40,000 pairs fill a 10 x 10 table evenly."""
    pairs = [(random_below(10, "a", n, 0), random_below(10, "b", n, 1)) for n in range(20_000)]
    pairs += [(random_below(10, "a", n), random_below(10, "a", n + 1)) for n in range(0, 40_000, 2)]
    counts = np.array(list(Counter(pairs).values()))
    assert len(counts) == 100
    assert ((counts - 400) ** 2 / 400).sum() < 149  # 99 degrees: once in a thousand


# -- weights


def test_shares_follow_the_weights():
    """What weighs 0 never comes, at either end; the others as often as they weigh."""
    weights = Weights([0, 1, 2, 0, 5, 0], "rows")
    drawn = Counter(weights.at(random_share("row", 3, 0, n)) for n in range(16_000))
    assert set(drawn) == {1, 2, 4}
    for number, share in ((1, 1 / 8), (2, 2 / 8), (4, 5 / 8)):
        assert drawn[number] / 16_000 == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("share", [0.0, 1 - 2**-53], ids=["first", "last"])
@pytest.mark.parametrize("values", [[0.1] * 10, [0, 0.3, 0.3, 0], [1e-300, 1e300], [3]], ids=str)
def test_the_ends_of_the_weights(values, share):
    """The smallest and the largest share draw something that has a weight."""
    assert values[Weights(values, "rows").at(share)] > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, -1], "weight number 1 is -1.0"),
        ([float("nan")], "weight number 0 is nan"),
        ([1, float("inf")], "weight number 1 is inf"),
        ([0, 0], "sum is 0.0"),
        ([], "sum is 0.0"),
        ([1e308, 1e308], "sum is inf"),
    ],
    ids=["negative", "nan", "infinite", "nothing", "none", "too much"],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_weights_that_are_none(values, message):
    """Named by their number."""
    with pytest.raises(Malformed, match=message):
        Weights(values, "rows")


# -- the state


def test_the_state_is_three_integers():
    """They survive JSON's types and give the same state."""
    state = SamplerState(7, 2, 640)
    assert state.state_dict() == {"seed": 7, "epoch": 2, "next_index": 640}
    assert SamplerState.from_state_dict(state.state_dict()) == state


@pytest.mark.parametrize("wrong", [{"seed": 1}, {"seed": 1, "epoch": 0, "next_index": 0, "rng": 4}, {}], ids=str)
def test_what_is_no_state(wrong):
    """Another library's state is refused."""
    with pytest.raises(Malformed, match="seed, epoch, next_index"):
        SamplerState.from_state_dict(wrong)


@pytest.mark.parametrize("wrong", [-1, 2**64, 1.0, True, "1"], ids=repr)
@pytest.mark.parametrize("field", ["seed", "epoch", "next_index"])
def test_numbers_that_no_counter_holds(field, wrong):
    """Whole numbers of eight bytes."""
    with pytest.raises(Mismatch, match=f"{field} is"):
        SamplerState(**{"seed": 0, field: wrong})


# -- places within volumes


@given(data=st.data())
def test_crops_lie_within(data):
    """Any shape that fits, at any voxel size: the block's box never leaves the volume."""
    volume = FakeVolume(
        data.draw(st.tuples(*[st.integers(4, 40)] * 3)),
        data.draw(st.tuples(*[st.sampled_from([2.96, 3.24, 7.998250424861908, 13.48])] * 3)),
        levels=3,
    )
    size = data.draw(st.none() | st.tuples(*[st.sampled_from([2.96, 4.0, 6.48, 16.0, 53.92])] * 3))
    shape = data.draw(st.tuples(*[st.integers(1, 12)] * 3))
    source = Source.of(volume, shape, size)
    if min(source.room) < 1:
        with pytest.raises(Mismatch, match="pad="):
            crops(volume, shape=shape, size=size)
        return
    plan = crops(volume, shape=shape, size=size, length=5)
    for n in range(5):
        place = plan.place(data.draw(SEEDS), 0, n)
        whole = source.grid.box_nm(source.grid.box)
        for axis in range(3):
            end = place.start_nm[axis] + source.shape_nm[axis]
            slack = 1e-5 * source.grid.voxel_size_nm[axis]
            assert whole.start[axis] - slack <= place.start_nm[axis]
            assert end <= whole.stop[axis] + slack
        if place.start is not None:
            assert source.grid.box.contains(Box.from_shape(shape, at=place.start))


def test_every_place_comes():
    """A volume that is 3 voxels larger than the block has 64 places; all are drawn, about as often."""
    plan = crops(FakeVolume((11, 11, 11)), length=6400)
    found = Counter(plan.place(1, 0, n).start for n in range(6400))
    assert set(found) == set(itertools.product(range(4), repeat=3))
    assert sum((count - 100) ** 2 / 100 for count in found.values()) < 104  # 63 degrees: once in a thousand


def test_volumes_come_by_weight():
    """Three to one, whatever their sizes."""
    plan = crops(FakeVolume((8, 8, 8)), FakeVolume((40, 40, 40)), weights=[3, 1], length=4000)
    drawn = Counter(plan.place(2, 0, n).source for n in range(4000))
    assert drawn[0] / 4000 == pytest.approx(0.75, abs=0.03)


def test_a_missing_voxel_is_never_drawn():
    """One voxel of 13,440 is missing: no block holds it; those beside it are drawn."""
    hole = Box((10, 12, 14), (11, 13, 15))
    plan = crops(FakeVolume(holes=[hole]), length=3000)
    boxes = [Box.from_shape((8, 8, 8), at=plan.place(5, 0, n).start) for n in range(3000)]
    assert not any(box.intersection(hole) for box in boxes)
    assert any(box.stop[0] == 10 for box in boxes) and any(box.start[0] == 11 for box in boxes)
    with_holes = crops(FakeVolume(holes=[hole]), length=3000, is_whole=False)
    assert any(Box.from_shape((8, 8, 8), at=with_holes.place(5, 0, n).start).contains(hole) for n in range(3000))


def test_resampled_blocks_need_their_neighbours():
    """A block that is made by interpolation is not drawn either where only the voxel beside it is missing."""
    volume = FakeVolume((30, 30, 30), holes=[Box((0, 0, 15), (30, 30, 16))])
    plan = crops(volume, shape=(4, 4, 4), size=(10.0, 10.0, 10.0), length=400)
    for n in range(400):
        x = (plan.place(1, 0, n).start_nm[2] - 7.0) / 8.0
        assert x + 5 <= 15 + 0.125 + 1e-9 or x >= 16 - 0.125 - 1e-9  # the outer middles lie 5 nm within


def test_nothing_whole_is_an_error():
    """It says how often it looked, and the ways out."""
    plan = crops(FakeVolume(holes=[Box((0, 0, 13), (20, 24, 15))], name="holey"), shape=(16, 16, 16))
    with pytest.raises(Mismatch, match=r"holey: at 1000 random places .*missing='mask'"):
        plan.place(0, 0, 0)


def test_padded_blocks_stand_centred():
    """16 slices, a block of 32: eight voxels of padding on either side, and free along y and x."""
    plan = crops(FakeVolume((16, 64, 64)), shape=(32, 32, 32), is_padded=True, length=50)
    starts = [plan.place(0, 0, n).start for n in range(50)]
    assert {z for z, _, _ in starts} == {-8}
    assert all(0 <= y <= 32 and 0 <= x <= 32 for _, y, x in starts)


def test_too_thin_a_volume_says_which_shape_fits():
    """With the volume's name, its level, and the other way out."""
    with pytest.raises(Mismatch, match=r"empiar: level 0 has \(16, 500, 500\).*shape=\(16, 128, 128\).*pad='constant'"):
        crops(FakeVolume((16, 500, 500), name="empiar"), shape=(128, 128, 128))


def test_the_epoch_is_as_long_as_blocks_fit_side_by_side():
    """2 x 3 x 3 blocks of 8 voxels, and 1 x 1 x 1 of the other volume; unless another length is asked for."""
    volumes = FakeVolume((20, 24, 28)), FakeVolume((9, 15, 15))
    assert len(crops(*volumes)) == 2 * 3 * 3 + 1
    assert len(crops(*volumes, length=7)) == 7
    with pytest.raises(IndexError):
        crops(*volumes, length=7).place(0, 0, 7)
    with pytest.raises(Mismatch, match="length is 0"):
        crops(*volumes, length=0)


@pytest.mark.parametrize(
    ("size", "level", "is_resampled"),
    [
        (None, 0, False),
        ((8.0,) * 3, 0, False),
        ((16.0 + 1e-6,) * 3, 1, False),
        ((32.0,) * 3, 2, False),
        ((20.0,) * 3, 1, True),
        ((16.0, 16.0, 31.0), 1, True),
        ((100.0,) * 3, 2, True),
        ((5.0,) * 3, 0, True),
    ],
    ids=str,
)
def test_which_level_is_read(size, level, is_resampled):
    """The one of this voxel size, else the coarsest that is not coarser along any axis, else the finest."""
    source = Source.of(FakeVolume((64, 64, 64), levels=3), (4, 4, 4), size)
    assert (source.level, source.is_resampled) == (level, is_resampled)
