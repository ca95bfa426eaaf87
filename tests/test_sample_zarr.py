"""The Zarr v2 writer, as zarr-python and tensorstore read it."""

import json

import numpy as np
import pytest
import zarr

from em_assets.sample.zarr_v2 import Level, halved, write_multiscale

SHAPE = (70, 65, 130)


@pytest.fixture(params=["<i2", "|u1"])
def pyramid(request, tmp_path):
    """(folder, levels)."""
    voxels = np.random.default_rng(3).integers(-100, 100, SHAPE).astype(request.param)
    levels = [
        Level(voxels, (2.96, 4.0, 4.0), (0.0, 0.0, 0.0)),
        Level(halved(voxels), (5.92, 8.0, 8.0), (1.48, 2.0, 2.0)),
    ]
    write_multiscale(tmp_path / "group", levels, zstd_level=1)
    return tmp_path / "group", [level.voxels for level in levels]


def test_zarr_python_reads_the_group(pyramid):
    """Shapes, dtypes, attributes and every voxel, without consolidated metadata."""
    folder, levels = pyramid
    group = zarr.open_group(folder, mode="r", zarr_format=2, use_consolidated=False)
    assert sorted(group.array_keys()) == ["s0", "s1"]
    for number, voxels in enumerate(levels):
        array = group[f"s{number}"]
        assert (array.chunks, array.dtype, array.fill_value) == ((64, 64, 64), voxels.dtype, 0)
        np.testing.assert_array_equal(array[:], voxels)
    assert not list(folder.rglob(".zmetadata"))


def test_tensorstore_reads_the_arrays(pyramid):
    """A second implementation agrees, also that every chunk is there."""
    tensorstore = pytest.importorskip("tensorstore")
    folder, levels = pyramid
    for number, voxels in enumerate(levels):
        store = {"driver": "file", "path": f"{folder / f's{number}'}/"}
        array = tensorstore.open(
            {"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}, open=True, read=True
        ).result()
        np.testing.assert_array_equal(array.read().result(), voxels)


def test_the_metadata_is_the_publishers(pyramid):
    """A slash between the indices, plain zstd, and the group's odd attributes."""
    folder, _ = pyramid
    array = json.loads((folder / "s0" / ".zarray").read_text())
    assert array["dimension_separator"] == "/"
    assert array["compressor"] == {"id": "zstd", "level": 1}
    assert array["filters"] is None and array["order"] == "C"
    multiscale = json.loads((folder / ".zattrs").read_text())["multiscales"][0]
    assert (multiscale["metadata"], multiscale["name"], multiscale["type"]) == (None, "", None)
    assert multiscale["version"] == "0.4"
    assert multiscale["coordinateTransformations"] == [{"scale": [1.0, 1.0, 1.0], "type": "scale"}]
    assert (folder / "s0" / "1" / "1" / "2").is_file()


@pytest.mark.parametrize("labels", [False, True])
def test_levels_are_rounded_down(labels):
    """141 becomes 70; means of signed values round down; labels are voxel 2i."""
    voxels = np.full((141, 3, 2), -3, np.int16)
    voxels[0, 0, 0] = 4
    coarse = halved(voxels, labels=labels)
    assert (coarse.shape, coarse.dtype) == ((70, 1, 1), np.dtype(np.int16))
    assert coarse[0, 0, 0] == (4 if labels else (7 * -3 + 4) // 8)
    assert (coarse[1:] == -3).all()
