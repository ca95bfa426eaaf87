"""Where voxels lie: the laws of `blocks.geometry`, and one sphere that is the same place in every format and level."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import em_assets.blocks as em
from em_assets.blocks.geometry import BoxNm, Grid
from em_assets.errors import Unsupported
from em_assets.volume import Box
from ome_volumes import halved, write_ome_zarr

SIZES = st.sampled_from([2.96, 3.24, 4.0, 7.998250424861908, 13.48, 50.0, 0.37])
PLACES = st.floats(-1e7, 1e7, allow_nan=False)
TRIPLE = st.tuples(SIZES, SIZES, SIZES)
GRIDS = st.builds(Grid, st.just((500, 600, 700)), TRIPLE, st.tuples(PLACES, PLACES, PLACES))
VOXELS = st.tuples(*[st.integers(-1000, 100_000)] * 3)
SHAPES = st.tuples(*[st.integers(1, 300)] * 3)


@given(GRIDS, VOXELS, SHAPES)
def test_around_the_middle_of_a_box_lies_that_box(grid, start, shape):
    """Asking for the box around a box's own middle gives it, for even and odd shapes."""
    box = Box.from_shape(shape, at=start)
    assert grid.start_around(grid.box_nm(box).center, shape) == start


@given(GRIDS, VOXELS)
def test_a_voxels_middle_lies_in_it(grid, voxel):
    """Whatever its size and place."""
    assert grid.voxel_at(grid.center_nm(voxel)) == voxel


@given(GRIDS, VOXELS, SHAPES)
def test_neighbours_share_a_face(grid, start, shape):
    """The end of a box is, to the last bit, the start of the next: nothing is counted twice or lost."""
    box = Box.from_shape(shape, at=start)
    beyond = Box.from_shape(shape, at=box.stop)
    assert grid.box_nm(box).stop == grid.box_nm(beyond).start


@given(GRIDS, VOXELS)
def test_places_and_voxels_are_inverse(grid, voxel):
    """To a billionth of a voxel at a distance of a centimetre."""
    assert grid.voxels_at(grid.place_nm(voxel)) == pytest.approx(voxel, abs=1e-6)


def test_a_box_has_lengths_and_a_middle():
    """In (z, y, x) order."""
    box = BoxNm((0.0, 10.0, -4.0), (2.96, 30.0, 4.0))
    assert (box.shape, box.center) == ((2.96, 20.0, 8.0), (1.48, 20.0, 0.0))


def centroid_nm(volume: em.Volume, level: int) -> np.ndarray:
    """Of the grey values, with each voxel at its middle."""
    grid = volume.levels[level].grid
    values = volume.read((0, 0, 0), shape=grid.shape, level=level).data.astype(np.float64)
    middles = [
        corner + (np.arange(n) + 0.5) * size
        for corner, n, size in zip(grid.corner_nm, grid.shape, grid.voxel_size_nm, strict=True)
    ]
    total = values.sum()
    return np.array([(values.sum(tuple({0, 1, 2} - {axis})) * middles[axis]).sum() / total for axis in range(3)])


def sphere(shape=(48, 64, 56), radius=14.0, middle=(24.0, 32.0, 28.0)) -> np.ndarray:
    """In float64; its middle is a corner of voxels at each level, so that their means are as symmetric as it is."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    distance = sum((a + 0.5 - c) ** 2 for a, c in zip((z, y, x), middle, strict=True))
    return (distance <= radius**2).astype(np.float64)


@pytest.mark.parametrize("convention", ["centre", "corner", "scale-only"])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("size", [(2.96, 4.0, 4.0), (13.48, 3.24, 7.998250424861908)], ids=str)
def test_one_sphere_is_one_place_in_every_level(tmp_path: Path, convention: str, zarr_format: int, size):
    """All centroids are equal to 1e-6 nm, whatever the writer's translations place."""
    levels = [sphere()]
    levels += list(itertools.islice(iterate(halved, levels[0]), 2))
    corner = (0.0, 0.0, 0.0) if convention == "scale-only" else (1000.5, -20.0, 7.25)
    path = write_ome_zarr(
        tmp_path / "sphere.zarr",
        levels,
        chunk=(16, 16, 16),
        voxel_size_nm=size,
        corner_nm=corner,
        convention=convention,
        zarr_format=zarr_format,
    )
    volume = em.open(path)
    assert volume.convention == convention
    expected = np.array(corner) + centroid_of(levels[0]) * size
    for level in range(3):
        assert centroid_nm(volume, level) == pytest.approx(expected, abs=1e-6)


def test_the_same_sphere_in_n5(tmp_path: Path):
    """N5 counts from corners and writes x, y, z: the place is the same."""
    voxels = sphere()
    root = tmp_path / "sphere.n5"
    size = (2.96, 4.0, 7.998250424861908)
    attributes = {
        "dimensions": list(voxels.shape[::-1]),
        "blockSize": [16, 16, 16],
        "dataType": "float64",
        "compression": {"type": "raw"},
        "pixelResolution": {"unit": "nm", "dimensions": list(size[::-1])},
    }
    (root / "s0").mkdir(parents=True)
    (root / "attributes.json").write_text('{"n5": "2.0.0"}')
    (root / "s0/attributes.json").write_text(json.dumps(attributes))
    for z, y, x in itertools.product(*[range(-(-n // 16)) for n in voxels.shape]):
        block = voxels[z * 16 : z * 16 + 16, y * 16 : y * 16 + 16, x * 16 : x * 16 + 16]
        header = np.array([0, 3], ">u2").tobytes() + np.array(block.shape[::-1], ">u4").tobytes()
        file = root / f"s0/{x}/{y}/{z}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(header + block.astype(">f8").tobytes())
    volume = em.open(root / "s0")
    assert centroid_nm(volume, 0) == pytest.approx(centroid_of(voxels) * size, abs=1e-6)
    assert (volume.read((3, 5, 7), shape=(20, 30, 11)).data == voxels[3:23, 5:35, 7:18]).all()


def centroid_of(voxels: np.ndarray) -> np.ndarray:
    """In voxels, from the corner."""
    middles = [np.arange(n) + 0.5 for n in voxels.shape]
    return np.array([(voxels.sum(tuple({0, 1, 2} - {axis})) * middles[axis]).sum() / voxels.sum() for axis in range(3)])


def iterate(function, value):
    while True:
        value = function(value)
        yield value


def test_a_volume_without_a_voxel_size_has_no_place(tmp_path: Path):
    """Nothing is invented: it is refused."""
    array = zarr.create_array(str(tmp_path / "bare"), shape=(8, 8, 8), chunks=(4, 4, 4), dtype="u1")
    array[...] = 1
    with pytest.raises(Unsupported, match="does not state the size of its voxels"):
        em.open(tmp_path / "bare")


def test_labels_that_were_picked_stay_where_they_are(tmp_path: Path):
    """Every second voxel, translations unchanged: a label of a coarser level lies at the middle of the one it was."""
    fine = np.arange(16**3, dtype="uint32").reshape(16, 16, 16)
    size, corner = (2.96, 4.0, 7.998250424861908), (100.0, -8.0, 0.5)
    folder = write_ome_zarr(
        tmp_path / "l.zarr", [fine, fine[::2, ::2, ::2]], chunk=(8, 8, 8), voxel_size_nm=size, kind="nearest"
    )
    document = json.loads((folder / "zarr.json").read_text())
    first = [c + s / 2 for c, s in zip(corner, size, strict=True)]
    for entry in document["attributes"]["ome"]["multiscales"][0]["datasets"]:
        entry["coordinateTransformations"][1]["translation"] = first
    (folder / "zarr.json").write_text(json.dumps(document))
    volume = em.open(folder)
    for voxel in [(0, 0, 0), (3, 7, 5)]:
        place = volume.levels[1].grid.center_nm(voxel)
        at = volume.levels[0].grid.voxel_at(place)
        assert at == tuple(2 * n for n in voxel)
        assert place == pytest.approx(volume.levels[0].grid.center_nm(at))
        assert volume.read(voxel, shape=1, level=1).data == fine[at]
