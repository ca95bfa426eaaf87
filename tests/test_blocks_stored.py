"""Blocks of a dataset in the store: with its coverage, by name and by path, on a disk and on S3, staged or not."""

import time
from pathlib import Path

import numpy as np
import pytest

import em_assets.blocks as em
from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.records import DatasetFolder
from em_assets.standardize.stage import stage_volume
from em_assets.store import LocalStore, open_store
from em_assets.volume import Box
from faulty import FaultyServer
from small import materialize, publish, quick_settings, voxels, write_spec

HOLE = Box((32, 64, 32), (64, 96, 96))
"""Two of the publisher's chunks, which do not lie on the stored volume's chunks."""
ORIGIN = (5, 9, 21)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A crop of a raw volume with a hole, stored in a folder: (spec, settings, its voxels, which are real)."""
    folder = tmp_path_factory.mktemp("stored")
    volume = voxels()
    volume[HOLE.slices] = 0  # a chunk of zeros is left out
    publish(folder / "origin", volume, encoding="raw")
    real = volume > 0
    crop = Box.from_shape((130, 140, 150), at=ORIGIN)
    with FaultyServer(folder / "origin") as server:
        spec = write_spec(folder / "specs", server.url, crop={"seed": None, "origin": list(ORIGIN)})
        settings = quick_settings(folder / "store", datasets=str(folder / "specs"))
        materialize(spec, settings)
    return spec, settings, volume[crop.slices], real[crop.slices]


def test_voxels_mask_and_place(published):
    """Every voxel of the volume and every one that is missing, and the crop's place in the publisher's frame."""
    _, settings, expected, real = published
    volume = em.open("small", settings=settings)
    assert (volume.name, volume.content, volume.convention) == ("small", "image", "centre")
    assert volume.box_nm.start == tuple(8.0 * n for n in ORIGIN)
    block = volume.read((0, 0, 0), shape=volume.shape, missing="mask")
    assert (block.data == expected).all()
    assert (block.valid == real).all()
    with pytest.raises(Mismatch, match=r"the publisher does not have 65536 voxels .* in 27:59, 55:87, 11:75"):
        volume.read((0, 0, 0), shape=volume.shape)
    assert volume.missing_fraction(Box((27, 55, 11), (59, 87, 139))) == 0.5
    whole = volume.read((60, 0, 0), shape=(64, 64, 64))
    assert whole.valid is None


def test_coarser_levels_know_it_too(published):
    """A voxel of a coarser level is missing only if all below it are."""
    _, settings, _, real = published
    volume = em.open("small", settings=settings)
    block = volume.read((0, 0, 0), shape=volume.levels[1].grid.shape, level=1, missing="mask")
    padded = np.pad(real, [(0, n % 2) for n in real.shape])
    z, y, x = (n // 2 for n in padded.shape)
    assert (block.valid == padded.reshape(z, 2, y, 2, x, 2).any(axis=(1, 3, 5))).all()


def test_its_folder_is_the_same_volume(published):
    """By its path the dataset's own volume is known for what it is: a hole is no black voxels."""
    _, settings, _, _ = published
    path = Path(settings.root) / "small/volume.ome.zarr"
    by_name, by_path = em.open("small", settings=settings), em.open(path)
    assert (
        by_path.read((0, 0, 0), shape=90, missing="mask").digest
        == by_name.read((0, 0, 0), shape=90, missing="mask").digest
    )


def test_grey_values_come_from_the_catalogues_statistics(published):
    """`standard`: the real voxels have mean 0 and deviation 1; `percentile`: 98 % of them lie between 0 and 1."""
    _, settings, _, real = published
    volume = em.open("small", settings=settings)
    standard = volume.read((0, 0, 0), shape=volume.shape, missing="mask", normalize="standard").data[real]
    assert abs(standard.mean()) < 1e-3
    assert abs(standard.std() - 1) < 1e-3
    share = volume.read((0, 0, 0), shape=volume.shape, missing="mask", normalize="percentile").data[real]
    assert 0.97 < ((share >= 0) & (share <= 1)).mean() < 0.995


def test_a_staged_copy_is_the_same(published, tmp_path):
    """Uncompressed, it is what `open` reads; a copy elsewhere knows what is missing, too."""
    _, settings, _, _ = published
    before = em.open("small", settings=settings).read((0, 0, 0), shape=90, missing="mask").digest
    folder = DatasetFolder(LocalStore(settings.root), "small")
    try:
        stage_volume(folder)
        staged = Path(settings.root) / "small/staged/volume.ome.zarr"
        assert staged.is_dir()
        for place in ("small", staged):
            assert em.open(place, settings=settings).read((0, 0, 0), shape=90, missing="mask").digest == before
        stage_volume(folder, to=tmp_path / "copy.ome.zarr")
        copy = em.open(tmp_path / "copy.ome.zarr")
        assert copy.read((0, 0, 0), shape=90, missing="mask").digest == before
        with pytest.raises(Mismatch, match="does not have"):
            copy.read((0, 0, 0), shape=90)
    finally:
        folder.store.delete_all("small/staged")


def test_on_s3_it_is_the_same(published, moto_s3):
    """The same dataset below an S3 root: the same blocks."""
    _, settings, _, _ = published
    store = open_store(moto_s3)
    for path, _ in LocalStore(settings.root).list("small"):
        store.write(path, LocalStore(settings.root).read(path))
    there = em.open("small", settings=quick_settings(moto_s3, datasets=settings.datasets))
    here = em.open("small", settings=settings)
    for start, level in (((0, 0, 0), 0), ((3, 7, 1), 1)):
        one, other = (v.read(start, shape=60, level=level, missing="mask") for v in (here, there))
        assert (one.digest, one.box_nm) == (other.digest, other.box_nm)
    assert [b.digest for batch in there.read_many([(60, 0, 0), (61, 1, 1)], shape=32) for b in batch] == [
        b.digest for batch in here.read_many([(60, 0, 0), (61, 1, 1)], shape=32) for b in batch
    ]


def test_a_lost_shard_is_damage(published, tmp_path):
    """A shard that is gone although the coverage knows its voxels is an error that names the repair, not black."""
    _, settings, _, _ = published
    store = LocalStore(tmp_path)
    for path, _ in LocalStore(settings.root).list("small"):
        store.write(path, LocalStore(settings.root).read(path))
    volume = em.open("small", settings=quick_settings(tmp_path))
    (tmp_path / "small/volume.ome.zarr/0/c/1/1/1").unlink()
    with pytest.raises(Malformed, match=r"has lost its voxels .* --repair"):
        volume.read((64, 64, 64), shape=32, missing="mask")
    assert volume.read((0, 0, 64), shape=(16, 16, 16), missing="mask").valid is None
    store.delete("small/coverage.parquet")
    with pytest.raises(Malformed, match=r"coverage.parquet does not say which voxels are real"):
        em.open("small", settings=quick_settings(tmp_path)).read((0, 0, 64), shape=16)


def test_what_is_not_whole_is_not_read(published, tmp_path):
    """A volume whose record does not say `complete` is refused, by name and by path."""
    _, settings, _, _ = published
    store = LocalStore(tmp_path)
    for path, _ in LocalStore(settings.root).list("small"):
        store.write(path, LocalStore(settings.root).read(path))
    folder = DatasetFolder(store, "small")
    folder.write_record(folder.read_record().with_status("error", "for a test"))
    lonely = quick_settings(tmp_path, datasets=str(tmp_path))
    for place in ("small", tmp_path / "small/volume.ome.zarr"):
        with pytest.raises(Unavailable, match="small is error; finish it"):
            em.open(place, settings=lonely)


def test_a_volume_that_changes_while_it_is_open(published, tmp_path):
    """While it is written it is not read; repaired to the same voxels it is; with others it is to be opened anew."""
    _, settings, _, _ = published
    store = LocalStore(tmp_path)
    for path, _ in LocalStore(settings.root).list("small"):
        store.write(path, LocalStore(settings.root).read(path))
    folder = DatasetFolder(store, "small")
    whole = folder.read_record()
    volume = em.open("small", settings=quick_settings(tmp_path))
    before = volume.read((60, 0, 0), shape=16).digest
    folder.write_record(whole.with_status("saving-data", run="test"))
    with pytest.raises(Unavailable, match="small is saving-data since it was opened"):
        volume.read((60, 0, 0), shape=16)
    folder.write_record(whole)
    assert volume.read((60, 0, 0), shape=16).digest == before
    folder.write_record(whole.with_status("complete", sha256="0" * 64))
    with pytest.raises(Mismatch, match="other voxels than when it was opened"):
        volume.read((60, 0, 0), shape=16)


def test_a_volume_on_s3_that_is_replaced_while_it_is_open(published, moto_s3, monkeypatch):
    """A block of an old and a new shard is refused at once; until a shard is newer than all before, nobody is asked."""
    _, settings, _, _ = published
    here, store = LocalStore(settings.root), open_store(moto_s3)
    for path, _ in here.list("small"):
        store.write(path, here.read(path))
    folder = DatasetFolder(store, "small")
    whole = folder.read_record().with_status("complete")
    folder.write_record(whole)  # dated after all that it is about
    volume = em.open("small", settings=quick_settings(moto_s3, datasets=settings.datasets))
    volume.read((64, 64, 64), shape=16)
    asked = []
    read_record = DatasetFolder.read_record
    monkeypatch.setattr(DatasetFolder, "read_record", lambda self: asked.append(self.name) or read_record(self))
    for x in range(5):
        volume.read((64, 64, 64 + x), shape=16)
    assert asked == []
    time.sleep(1.1)  # as S3 states times: in whole seconds
    folder.write_record(whole.with_status("complete", sha256="0" * 64))
    shard = "small/volume.ome.zarr/0/c/1/1/0"
    store.write(shard, here.read(shard))
    with pytest.raises(Mismatch, match="other voxels than when it was opened"):
        volume.read((64, 64, 50), shape=(16, 16, 28))
