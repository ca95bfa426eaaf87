"""The drawn volume: the same everywhere, and like the real thing in what the product measures."""

import hashlib

import numpy as np
import pytest

from em_assets.sample import texture
from em_assets.sample.texture import draw


@pytest.fixture(scope="module")
def volume():
    return draw((96, 110, 130), seed=1)


def test_the_voxels_of_a_seed_never_change():
    """The digest of a small volume is the same on every Python, numpy and machine."""
    drawn = draw((24, 40, 56), seed=1, fill=0.9)
    assert (
        hashlib.sha256(drawn.tobytes()).hexdigest()
        == "03732f0573494160594489ba5688ff5b1c1c538d979da359b3bdb5f0ca0e9062"
    )


def test_another_seed_is_another_volume(volume):
    """Two seeds share no more voxels than chance gives."""
    assert (draw(volume.shape, seed=2) == volume).mean() < 0.05


def test_slabs_do_not_show(monkeypatch):
    """The volume is the same however many slices a thread draws at a time."""
    whole = draw((40, 32, 32), seed=3)
    monkeypatch.setattr(texture, "SLAB", 7)
    np.testing.assert_array_equal(draw((40, 32, 32), seed=3), whole)


def test_grey_values_are_those_of_contrast_normalized_fibsem(volume):
    """Mean near 125 with a wide spread, nothing saturated, and no zero inside the specimen."""
    assert 110 < volume.mean() < 140
    assert 25 < volume.std() < 50
    assert volume.min() > 0
    assert (volume == 255).mean() < 0.001


def test_the_three_planes_look_alike(volume):
    """The texture is isotropic: neighbours differ as much along z as along y and x."""
    steps = [np.abs(np.diff(volume.astype(int), axis=axis)).mean() for axis in range(3)]
    assert max(steps) < 1.1 * min(steps)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_mirror_image(volume, axis):
    """A flipped axis cannot go unnoticed."""
    flipped = np.flip(volume, axis)
    assert np.corrcoef(flipped.ravel(), volume.ravel())[0, 1] < 0.3


def test_fill_leaves_the_corners_empty():
    """Outside the specimen every voxel is 0, and inside none is."""
    drawn = draw((64, 64, 64), seed=1, fill=0.8)
    assert all(drawn[z, y, x] == 0 for z in (0, 63) for y in (0, 63) for x in (0, 63))
    assert drawn[20:44, 20:44, 20:44].min() > 0
    assert 0.35 < (drawn > 0).mean() < 0.5


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 5), (33, 7, 16)])
def test_any_shape_can_be_drawn(shape):
    """Thin and small volumes are drawn too."""
    assert draw(shape).shape == shape
