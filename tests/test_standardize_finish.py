"""What is written beside a volume: manifest, coverage and preview."""

import hashlib
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from em_assets.records import manifest_digest
from em_assets.standardize.finish import write_coverage, write_manifest
from em_assets.standardize.ome import write_metadata
from em_assets.standardize.preview import LARGEST_BYTES, preview_png
from em_assets.volume import Box
from memory_reader import ORIGIN, make_spec, noise, standardize


def table(folder, name):
    return pq.read_table(io.BytesIO(folder.read(name)))


def test_the_manifest_lists_every_object_as_it_is(tmp_path):
    """One row per object of the volume in path order, with its true size and sha256; the digest is of all rows."""
    volume = standardize(make_spec((131, 70, 140)), noise((131, 70, 140)), tmp_path)
    metadata = write_metadata(volume.folder, volume.spec, ORIGIN)
    manifest = write_manifest(volume.folder, [*volume.level0, *volume.levels], metadata)
    rows = table(volume.folder, "manifest.parquet").to_pylist()
    sizes = volume.folder.stored_sizes()
    assert [row["path"] for row in rows] == sorted(sizes)
    for row in rows:
        data = volume.folder.read(row["path"])
        assert (row["size_bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest.size_bytes == sum(sizes.values())
    assert manifest.sha256 == manifest_digest(manifest.objects)
    by_path = {row["path"]: row for row in rows}
    shard, document, group = (by_path[f"volume.ome.zarr/{p}"] for p in ("0/c/2/0/1", "1/zarr.json", "zarr.json"))
    assert (shard["level"], shard["key"], shard["source_url"]) == (0, "z002_y000_x001", "memory://volume")
    assert (document["level"], document["key"], group["level"]) == (1, None, None)
    assert all(row["written_at"].tzinfo is not None for row in rows)


def real_voxels(folder, shape):
    """Which voxels are real, from the coverage alone, and how often a row speaks of each."""
    real, rows_per_voxel = np.zeros(shape, bool), np.zeros(shape, np.uint8)
    for row in table(folder, "coverage.parquet").to_pylist():
        box = Box((row["z0"], row["y0"], row["x0"]), (row["z1"], row["y1"], row["x1"]))
        rows_per_voxel[box.slices] += 1
        real[box.slices] = True
        for part in row["missing"]:
            hole = Box((part["z0"], part["y0"], part["x0"]), (part["z1"], part["y1"], part["x1"]))
            assert box.contains(hole)
            assert real[hole.slices].all(), "missing boxes overlap"
            real[hole.slices] = False
        assert row["present_voxels"] == real[box.slices].sum()
        assert row["voxels"] == box.voxels
        assert row["present_fraction"] == pytest.approx(row["present_voxels"] / box.voxels)
    assert (rows_per_voxel == 1).all()
    return real


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_coverage_says_which_voxels_are_real(tmp_path_factory, data):
    """Exactly, for any holes: every voxel is in one row, and real unless a box of that row's `missing` holds it."""
    shape = (70, 40, 90)
    cells = [
        Box.from_shape((24, 13, 17), at=at)
        for at in np.ndindex(70, 40, 90)
        if not (at[0] % 24 or at[1] % 13 or at[2] % 17)
    ]
    cells = [cell.intersection(Box.from_shape(shape)) for cell in cells]
    holes = data.draw(st.lists(st.sampled_from(cells), unique=True, max_size=30))
    volume = standardize(make_spec(shape), noise(shape), tmp_path_factory.mktemp("coverage"), holes)
    write_coverage(volume.folder, volume.spec, volume.level0)
    expected = np.ones(shape, bool)
    for hole in holes:
        expected[hole.slices] = False
    np.testing.assert_array_equal(real_voxels(volume.folder, shape), expected)
    summary = json.loads(table(volume.folder, "coverage.parquet").schema.metadata[b"em_assets"])
    assert summary["present_voxels"] == expected.sum()
    assert (summary["voxels"], summary["shape"], summary["identity"]) == (
        expected.size,
        list(shape),
        volume.spec.identity(),
    )


def test_the_coverage_can_be_asked_in_sql(tmp_path):
    """A box is real throughout if no missing part touches it: one query, without this package."""
    import duckdb

    shape = (70, 40, 90)
    volume = standardize(make_spec(shape), noise(shape), tmp_path, [Box((8, 8, 8), (16, 16, 16))])
    write_coverage(volume.folder, volume.spec, volume.level0)
    query = """
        select count(*) from (select unnest(missing, recursive := true) from read_parquet(?))
        where z0 < ? and z1 > ? and y0 < ? and y1 > ? and x0 < ? and x1 > ?
    """
    file = volume.folder.uri("coverage.parquet")
    for (z, y, x), touched in (((0, 0, 0), 1), ((15, 15, 15), 1), ((16, 0, 0), 0), ((40, 10, 60), 0)):
        found = duckdb.execute(query, [file, z + 10, z, y + 10, y, x + 10, x]).fetchone()
        assert found == (touched,)


def test_coverage_and_preview_are_deterministic(tmp_path):
    """Two stores, one volume: the same bytes, in whatever order the records come."""
    volumes = [
        standardize(make_spec((70, 40, 90)), noise((70, 40, 90)), tmp_path / n, [Box((0, 0, 0), (9, 9, 9))])
        for n in "ab"
    ]
    made = []
    for volume, records in zip(volumes, (volumes[0].level0, volumes[1].level0[::-1]), strict=True):
        write_coverage(volume.folder, volume.spec, records)
        made.append((volume.folder.read("coverage.parquet"), preview_png(volume.folder, volume.spec, records)))
    assert made[0] == made[1]


PREVIEWS = [
    pytest.param((256, 256, 256), [8.0, 8.0, 8.0], "uint8", id="cube"),
    pytest.param((16, 300, 200), [30.0, 5.0, 5.0], "uint16", id="thin slices"),
    pytest.param((1, 1, 400), [8.0, 8.0, 8.0], "float32", id="line"),
    pytest.param((3, 5, 2), [8.0, 8.0, 8.0], "int16", id="tiny"),
]


@pytest.mark.parametrize(("shape", "size", "dtype"), PREVIEWS)
def test_a_preview_is_a_small_png(tmp_path, shape, size, dtype):
    """Under 50 KB even for noise, which compresses worst; with the slices at one scale."""
    spec = make_spec(shape, dtype, voxel_size_nm=size)
    volume = standardize(spec, noise(shape, dtype), tmp_path)
    png = preview_png(volume.folder, spec, volume.level0)
    assert len(png) <= LARGEST_BYTES
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    picture.load()


def test_the_slices_are_where_and_how_large_they_should_be(tmp_path):
    """xy top left, zy to its right with z across, xz below with z down; nanometres, not voxels, give the sizes."""
    shape, size = (60, 120, 240), [16.0, 8.0, 4.0]  # 960 nm along every axis
    array = np.zeros(shape, np.uint8)
    array[:] = 60
    array[40:, :, :] = 120  # the far third in z is brighter
    array[:, 80:, :] += 60  # and the far third in y
    volume = standardize(make_spec(shape, voxel_size_nm=size), array, tmp_path)
    picture = np.asarray(Image.open(io.BytesIO(preview_png(volume.folder, volume.spec, volume.level0))).convert("L"))
    side = 256
    xy, zy, xz = (
        picture[13 : 13 + side, :side],
        picture[13 : 13 + side, side + 4 :],
        picture[side + 30 : side + 30 + side, :side],
    )
    assert xy[0].std() == 0
    assert xy[0, 0] < xy[-1, 0]
    assert zy.shape[1] == side
    assert zy[0, 0] < zy[0, -1] < zy[-1, -1]
    assert zy[0, 0] < zy[-1, 0]
    assert xz[0, 0] < xz[-1, 0]
    assert xz[0].std() == 0


def test_missing_voxels_are_coloured(tmp_path):
    """Where the publisher has nothing the picture has a colour; elsewhere it is grey."""
    shape = (64, 64, 64)
    spec = make_spec(shape)
    pictures = [
        preview_png(volume.folder, spec, volume.level0)
        for volume in (
            standardize(spec, noise(shape), tmp_path / "whole"),
            standardize(spec, noise(shape), tmp_path / "hole", [Box((0, 0, 0), (64, 32, 64))]),
        )
    ]
    coloured = []
    for picture in pictures:
        red, _, blue = np.moveaxis(np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int), -1, 0)
        coloured.append(np.mean(red != blue))
    assert coloured[0] == 0
    assert 0.2 < coloured[1] < 0.3  # half of two of the slices, which are most of three quarters of the picture


def test_a_constant_volume_is_grey_not_an_error(tmp_path):
    """No contrast to stretch."""
    spec = make_spec((40, 40, 40))
    volume = standardize(spec, np.full((40, 40, 40), 255, np.uint8), tmp_path)
    picture = np.asarray(Image.open(io.BytesIO(preview_png(volume.folder, spec, volume.level0))).convert("L"))
    assert 100 < picture[100, 100] < 156
