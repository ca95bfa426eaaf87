"""What a block looks like, in numbers: real voxels only, the same for the same block, near where blocks look alike."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from em_assets.blocks.features import LENGTH, NUMBERS, PARTS, block_numbers, feature_vector, label_numbers

SIZE_NM = (8.0, 8.0, 8.0)
NORMALISED = slice(PARTS["absolute"].stop, LENGTH)
"""Everything but the absolute part."""


def tissue(seed: int, shape: tuple[int, int, int] = (48, 48, 48), *, noise: float = 8.0, slope: float = 2.0):
    """EM-like: structure of all sizes, the larger the stronger, with noise from voxel to voxel."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfftn(rng.normal(size=shape))
    frequency = np.sqrt(
        np.fft.fftfreq(shape[0])[:, None, None] ** 2
        + np.fft.fftfreq(shape[1])[None, :, None] ** 2
        + np.fft.rfftfreq(shape[2])[None, None, :] ** 2
    )
    structure = np.fft.irfftn(spectrum / (frequency + 1 / 48) ** slope, shape, axes=(0, 1, 2))
    structure = (structure - structure.mean()) / structure.std()
    return np.clip(125 + 35 * structure + rng.normal(0, noise, shape), 0, 255).astype(np.uint8)


def blurred(voxels: np.ndarray, times: int) -> np.ndarray:
    blurry = voxels.astype(np.float64)
    for _, axis in itertools.product(range(times), range(3)):
        blurry = (np.roll(blurry, 1, axis) + 2 * blurry + np.roll(blurry, -1, axis)) / 4
    return blurry


def grainy(voxels: np.ndarray, noise: float, seed: int = 9) -> np.ndarray:
    grain = np.random.default_rng(seed).normal(0, noise, voxels.shape)
    return np.clip(np.rint(voxels + grain), 0, 255).astype(np.uint8)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(feature_vector(a, None, SIZE_NM) - feature_vector(b, None, SIZE_NM)))


SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=12)
VOXEL_SIZES = st.sampled_from([(8.0, 8.0, 8.0), (2.96, 4.0, 4.0), (50.0, 7.998250424861908, 7.998250424861908)])
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


@st.composite
def blocks(draw) -> tuple[np.ndarray, np.ndarray | None]:
    """Voxels of any kind, floats with NaN and infinity among them, and which are real."""
    dtype, shape = np.dtype(draw(st.sampled_from(DTYPES))), draw(SHAPES)
    elements = hnp.from_dtype(dtype)
    if dtype.kind == "f":  # squares of larger ones are not finite
        elements = st.floats(-(2.0**60), 2.0**60, width=32) | st.sampled_from([math.nan, math.inf, -math.inf])
    voxels = draw(hnp.arrays(dtype, shape, elements=elements))
    valid = draw(st.none() | hnp.arrays(np.bool_, shape))
    return voxels, valid


@given(block=blocks())
@settings(max_examples=100, deadline=None)
def test_numbers_agree_with_numpy(block):
    """Of the real and finite voxels, of any type and mask."""
    voxels, valid = block
    real = voxels.reshape(-1) if valid is None else voxels[valid]
    real = real[np.isfinite(real)].astype(np.float64)
    numbers = block_numbers(voxels, valid)
    assert tuple(numbers) == NUMBERS
    if not real.size:
        assert set(numbers.values()) == {None}
        return
    spread = max(abs(real.min()), abs(real.max()))
    for key, expected in {"mean": real.mean(), "std": real.std(), "zero_fraction": (real == 0).mean()}.items():
        assert numbers[key] == pytest.approx(expected, rel=1e-9, abs=1e-9 * spread)
    assert (numbers["minimum"], numbers["maximum"]) == (real.min(), real.max())
    for percent in (1, 5, 50, 95, 99):
        assert numbers[f"p{percent:02}"] == np.percentile(real, percent, method="inverted_cdf")
    largest = np.iinfo(voxels.dtype).max if voxels.dtype.kind in "iu" else np.inf
    assert numbers["saturation"] == pytest.approx((real == largest).mean())
    assert 0 <= numbers["entropy_bits"] <= 8
    assert numbers["sharpness"] is None or 0 <= numbers["sharpness"] <= 1


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        pytest.param([7], 0.0, id="one grey"),
        pytest.param([0, 255], 1.0, id="black and white"),
        pytest.param(range(256), 8.0, id="every grey"),
        pytest.param([0, 1, 2, 3], 2.0, id="neighbouring greys are told apart"),
    ],
)
def test_entropy_is_of_256_greys(values, bits):
    """A bin for each grey value of 8 bit."""
    voxels = np.resize(np.array(values, np.uint8), (8, 8, 16))
    assert block_numbers(voxels)["entropy_bits"] == pytest.approx(bits, abs=1e-12)


def test_entropy_of_wide_voxels_is_of_the_stated_range():
    """16 bit voxels that fill a small part of their type are as rich as the same picture in 8 bit."""
    voxels = np.resize(np.arange(256), (8, 8, 16))
    wide = (voxels * 8 + 20_000).astype(np.uint16)
    assert block_numbers(wide, value_range=(20_000, 22_040))["entropy_bits"] == pytest.approx(8)
    assert block_numbers(wide)["entropy_bits"] == pytest.approx(3, abs=0.1)


def test_missing_voxels_count_nowhere():
    """Whatever stands where nothing is real: no number and no feature changes."""
    voxels, valid = tissue(1), np.ones((48, 48, 48), np.bool_)
    valid[:20, 5:30] = False
    black, white = np.where(valid, voxels, 0), np.where(valid, voxels, 255)
    assert block_numbers(black, valid) == block_numbers(white, valid)
    assert (feature_vector(black, valid, SIZE_NM) == feature_vector(white, valid, SIZE_NM)).all()


def test_a_mask_of_real_voxels_is_no_mask():
    """All real is all real, however it is said."""
    voxels = tissue(1)
    everything = np.ones(voxels.shape, np.bool_)
    assert block_numbers(voxels, everything) == block_numbers(voxels)
    assert (feature_vector(voxels, everything) == feature_vector(voxels)).all()


@pytest.mark.parametrize("noise", [0, 8, 20])
def test_blur_lowers_sharpness_whatever_the_noise(noise):
    """Each further blur does, by far more than noise raises it."""
    voxels = tissue(1, (64, 64, 64), noise=0)
    sharpness = [block_numbers(grainy(blurred(voxels, times), noise))["sharpness"] for times in (0, 1, 2, 4, 8)]
    assert all(a > 1.15 * b for a, b in itertools.pairwise(sharpness))


def test_noise_and_contrast_do_not_look_sharp():
    """Sharpness stays within a few per cent under noise, contrast and brightness."""
    voxels = tissue(1, (64, 64, 64), noise=0)
    sharp = block_numbers(voxels)["sharpness"]
    for changed in (grainy(voxels, 10), grainy(voxels, 25), voxels // 2 + 40):
        assert block_numbers(changed)["sharpness"] == pytest.approx(sharp, rel=0.06)


def test_a_dark_rim_does_not_blur():
    """Half of the block is outside the tissue: its sharpness is that of the tissue."""
    voxels = tissue(1, (64, 64, 64), noise=0)
    rim = voxels.copy()
    rim[:, :, 32:] = 0
    assert block_numbers(rim)["sharpness"] == pytest.approx(block_numbers(voxels)["sharpness"], rel=0.25)


def test_noise_alone_is_not_sharp():
    """There is nothing that neighbours have in common."""
    assert block_numbers(grainy(np.full((48, 48, 48), 120), 20))["sharpness"] < 0.02


def test_thick_sections_say_nothing_of_sharpness():
    """Along an axis of much coarser voxels a block may be as rough as it likes."""
    voxels = tissue(1, (16, 64, 64))
    shuffled = np.random.default_rng(0).permutation(voxels, axis=0)
    size = (50.0, 8.0, 8.0)
    assert (
        block_numbers(shuffled, voxel_size_nm=size)["sharpness"]
        == block_numbers(voxels, voxel_size_nm=size)["sharpness"]
    )


def test_too_small_for_sharpness():
    """It needs voxels four apart: nobody knows, which is not 0."""
    assert block_numbers(tissue(1, (4, 4, 4)))["sharpness"] is None


@pytest.mark.parametrize(
    ("voxels", "valid", "fraction", "labels"),
    [
        pytest.param([0, 0, 0, 0], None, 0.0, 0, id="background"),
        pytest.param([7, 7, 0, 9], None, 0.75, 2, id="two"),
        pytest.param([7, 7, 5, 9], None, 1.0, 3, id="no background"),
        pytest.param([7, 7, 0, 9], [1, 1, 1, 0], 2 / 3, 1, id="one of them missing"),
        pytest.param([2**63, 1, 2**63, 1], None, 1.0, 2, id="64 bit"),
        pytest.param([7, 7, 0, 9], [0, 0, 0, 0], None, None, id="nothing real"),
    ],
)
def test_labels_are_counted(voxels, valid, fraction, labels):
    """How much is labelled, and how many labels there are, of the real voxels."""
    mask = None if valid is None else np.array(valid, np.bool_).reshape(1, 2, 2)
    found = label_numbers(np.array(voxels, np.uint64).reshape(1, 2, 2), mask)
    assert found == {"label_fraction": fraction, "labels": labels}


@given(block=blocks(), size=VOXEL_SIZES)
@settings(max_examples=100, deadline=None)
def test_vectors_are_finite_and_bounded(block, size):
    """Of any block that has a real voxel: float32, no part longer than the square root of 2."""
    voxels, valid = block
    real = np.isfinite(voxels) if valid is None else valid & np.isfinite(voxels)
    if not real.any():
        with pytest.raises(ValueError, match="real voxel"):
            feature_vector(voxels, valid, size)
        return
    vector = feature_vector(voxels, valid, size)
    assert vector.dtype == np.float32
    assert vector.shape == (LENGTH,)
    assert np.isfinite(vector).all()
    assert (vector >= 0).all()
    for part in PARTS.values():
        assert np.linalg.norm(vector[part]) <= 1 + 1e-6


def test_a_block_of_one_value_has_no_texture():
    """No contrast: gradients and spectrum are 0, the histogram has one bin."""
    vector = feature_vector(np.full((16, 16, 16), 70, np.uint8), None, SIZE_NM)
    assert not vector[PARTS["gradients"]].any()
    assert not vector[PARTS["spectrum"]].any()
    assert sorted(vector[PARTS["histogram"]])[-2:] == [0, 1]


@pytest.mark.parametrize("size", [SIZE_NM, (16.0, 4.0, 8.0), (50.0, 7.998250424861908, 7.998250424861908)], ids=str)
@pytest.mark.parametrize("axes", [(0, 2, 1), (2, 1, 0), (1, 2, 0)], ids=str)
def test_axes_may_be_exchanged(axes, size):
    """A block and its voxel size turned alike: the same numbers, the same vector."""
    voxels = tissue(3, (32, 40, 48))
    turned, turned_size = np.ascontiguousarray(voxels.transpose(axes)), tuple(size[axis] for axis in axes)
    a = block_numbers(voxels, voxel_size_nm=size)
    b = block_numbers(turned, voxel_size_nm=turned_size)
    assert a == pytest.approx(b)
    vectors = feature_vector(voxels, None, size), feature_vector(turned, None, turned_size)
    assert np.allclose(*vectors, atol=1e-6)


@given(axes=st.sets(st.integers(0, 2)), size=VOXEL_SIZES, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_flips_do_not_matter(axes, size, seed):
    """Mirror images look alike: blocks of 32 voxels are whole bins of the gradients."""
    voxels = tissue(seed, (32, 32, 32))
    flipped = np.ascontiguousarray(np.flip(voxels, tuple(axes)))
    assert block_numbers(voxels, voxel_size_nm=size) == pytest.approx(block_numbers(flipped, voxel_size_nm=size))
    assert np.allclose(feature_vector(voxels, None, size), feature_vector(flipped, None, size), atol=1e-6)


@given(seed=st.integers(0, 99), factor=st.integers(1, 200), offset=st.integers(-20_000, 10_000))
@settings(max_examples=25, deadline=None)
def test_brightness_and_contrast_leave_the_normalised_part(seed, factor, offset):
    """Of whole-numbered changes exactly; the absolute part tells them apart."""
    voxels = tissue(seed, (24, 24, 24)).astype(np.int64)
    changed = (voxels * factor + offset).astype(np.int32)
    a, b = (feature_vector(block, None, SIZE_NM, (0, 255)) for block in (voxels.astype(np.int32), changed))
    assert (a[NORMALISED] == b[NORMALISED]).all()
    assert (factor, offset) == (1, 0) or (a[PARTS["absolute"]] != b[PARTS["absolute"]]).any()


def test_the_type_does_not_matter():
    """The same picture in 8 bit, 16 bit and floats has the same normalised part."""
    voxels = tissue(2)
    first = feature_vector(voxels, None, SIZE_NM)
    for dtype in ("int16", "uint16", "int32", "float32", "float64"):
        assert (feature_vector(voxels.astype(dtype), None, SIZE_NM)[NORMALISED] == first[NORMALISED]).all()


def test_near_duplicates_are_nearer_than_others():
    """A block moved by a voxel, with a little noise, or both, is nearer than every other block of the same tissue."""
    large = tissue(1, (66, 66, 66))
    block, moved = large[:64, :64, :64], large[1:65, 1:65, 1:65]
    duplicates = [moved, grainy(block, 3), grainy(moved, 3)]
    others = [tissue(seed, (64, 64, 64)) for seed in range(2, 8)]
    assert max(distance(block, one) for one in duplicates) < min(distance(block, one) for one in others)


def test_like_is_nearer_than_unlike():
    """Among blocks of two textures the nearest one is of the same texture."""
    kinds = {"smooth": 3.0, "rough": 1.2}
    drawn = [(name, tissue(seed, slope=slope)) for seed, (name, slope) in itertools.product(range(4), kinds.items())]
    vectors = np.array([feature_vector(voxels, None, SIZE_NM) for _, voxels in drawn])
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=2) + np.diag([math.inf] * len(drawn))
    assert [drawn[number][0] for number in apart.argmin(axis=1)] == [name for name, _ in drawn]


@pytest.mark.parametrize(
    ("wavelength_nm", "size", "band"),
    [
        pytest.param(76.0, SIZE_NM, 6, id="64 to 91 nm"),
        pytest.param(152.0, SIZE_NM, 8, id="128 to 181 nm"),
        pytest.param(76.0, (8.0, 8.0, 4.0), 6, id="finer voxels"),
        pytest.param(2.0, (1.0, 1.0, 1.0), 0, id="shorter than the first band"),
    ],
)
def test_the_spectrum_is_in_nanometres(wavelength_nm, size, band):
    """A wave along x has its power in the band of its length, whatever the voxels' size."""
    x = (np.arange(128) + 0.5) * size[2]
    wave = np.broadcast_to(125 + 100 * np.sin(2 * np.pi * x / wavelength_nm + 1), (64, 64, 128)).astype(np.float32)
    power = feature_vector(wave, None, size)[PARTS["spectrum"]] ** 2
    assert power[band] > 0.9


def test_gradients_are_in_nanometres():
    """An even slope changes as much over 32 nm whether voxels are 4, 8 or 16 nm long."""
    weights = []
    for size in (4.0, 8.0, 16.0):
        x = (np.arange(512 // int(size)) + 0.5) * size
        ramp = np.broadcast_to(x, (8, 8, len(x))).astype(np.float32)
        gradients = feature_vector(ramp, None, (1000.0, 1000.0, size))[PARTS["gradients"]].reshape(6, 4)
        weights.append(gradients[3])
    assert np.allclose(weights[0], weights[1])
    assert np.allclose(weights[1], weights[2])
    assert weights[0][1] > 0  # 32 of 512 nm: just above a sixteenth of what lies between p01 and p99
