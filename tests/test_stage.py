"""Staged copies: the volume's voxels, places and absences in another encoding, whole or not there at all."""

import hashlib
import json
import math
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from em_assets.datasets.spec import Output, VolumeLayout
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.progress import open_reporter
from em_assets.records import DatasetFolder, DatasetRecord, StoredObject, manifest_digest, now, partition_key
from em_assets.standardize import stage_copy, stage_plan
from em_assets.standardize.finish import write_coverage, write_manifest
from em_assets.standardize.ome import write_metadata
from em_assets.standardize.pyramid import build_pyramid
from em_assets.standardize.region import write_region
from em_assets.standardize.shard import ShardFormat, ShardReader
from em_assets.standardize.stage import is_staged_copy, stage_volume, staged_path, staged_volume
from em_assets.standardize.stage_copy import JOURNAL
from em_assets.standardize.stage_plan import Request
from em_assets.standardize.stored import shard_path
from em_assets.store import DOWNLOAD_SUFFIX, LocalStore, open_store
from em_assets.volume import Box, multiply

SHAPE = (70, 100, 300)
SIZE_NM = (50.0, 7.998250424861908, 2.96)
GAP = Box((0, 64, 64), (70, 100, 170))
"""What the publisher does not have: whole shards, whole chunks, and parts of chunks."""


def voxels_of(dtype: str = "uint8", shape=SHAPE, seed: int = 3) -> np.ndarray:
    """Over the whole range of the dtype; of floats also those that equal nothing."""
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        found = generator.normal(0, 1e3, shape).astype(dtype)
        found[0, 0, :3] = np.nan, np.inf, -0.0
        return found
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def store_volume(folder: DatasetFolder, voxels: np.ndarray, *, gap=None, content="image", shard=(64,) * 3, **output):
    """A finished volume as the pipeline leaves one; (its coverage, what its manifest lists)."""
    layout = VolumeLayout(
        name=folder.title,
        shape=voxels.shape,
        dtype=voxels.dtype.name,
        voxel_size_nm=SIZE_NM,
        content=content,
        output=Output(shard=shard, **{"chunk": (16, 16, 16), **output}),
        missing_policy="record",
        digest="0" * 16,
    )
    records = []
    for index in layout.shard_indices():
        box = layout.shard_box(index)
        inside = gap.intersection(box) if gap is not None else None
        part = voxels[box.slices].copy()
        if inside is not None:
            part[inside.shifted([-at for at in box.start]).slices] = 0
        missing = [] if inside is None else [inside]
        records.append(write_region(folder, layout, index, part, missing=missing))
    above = build_pyramid(folder, layout, records, workers=2)
    documents = write_metadata(folder, layout, (10, 20, 30), (100.0, 0.0, -3.0))
    coverage = write_coverage(folder, layout, records)
    return coverage, write_manifest(folder, [*records, *above], documents)


def store_dataset(root: Path | str, voxels: np.ndarray, *, name: str = "em", **options) -> DatasetFolder:
    """A complete dataset of one volume."""
    folder = DatasetFolder(open_store(str(root)), name)
    coverage, manifest = store_volume(folder, voxels, **options)
    folder.write_record(
        DatasetRecord(
            name=folder.name,
            source="test",
            source_id="1",
            title="A volume",
            description="For tests.",
            volume_shape=voxels.shape,
            voxel_size_nm=SIZE_NM,
            dtype=voxels.dtype.name,
            license="CC-BY-4.0",
            citation="Somebody (2026)",
            doi="10.5072/x",
            page_url="https://example.org/1",
            download_url="https://example.org/1/data",
            local_paths={"volume": folder.uri(folder.volume)},
            status="complete",
            timestamp=now(),
            identity="0" * 16,
            sha256=manifest.sha256,
            coverage_sha256=coverage.sha256,
        )
    )
    return folder


def levels_of(path: Path | str) -> list[np.ndarray]:
    """Every level, as zarr-python reads it; a warning of its is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(str(path), mode="r")
        names = sorted(name for name, _ in group.arrays())
        return [group[name][:] for name in names]


def multiscales(path: Path) -> list:
    return json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]


def chunk_of(path: Path, level: int = 0) -> tuple[int, ...]:
    return zarr.open_array(str(path / str(level)), mode="r").chunks


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def unfinished_of(target: Path) -> Path:
    return target.with_name(target.name + DOWNLOAD_SUFFIX)


@pytest.fixture
def stored(tmp_path) -> DatasetFolder:
    """With a gap, in three levels."""
    return store_dataset(tmp_path / "data", voxels_of(), gap=GAP)


# The same volume


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [("none", "uint8"), ("none", "uint16"), ("none", "float32"), ("zstd", "int16"), ("zstd", "float32")],
)
def test_another_reader_finds_the_same_voxels(tmp_path, codec, dtype):
    """Every level, byte for byte, read by zarr-python."""
    folder = store_dataset(tmp_path, voxels_of(dtype))
    staged = stage_volume(folder, Request(codec=codec), workers=2)
    pairs = list(zip(levels_of(folder.uri(folder.volume)), levels_of(staged.path), strict=True))
    assert len(pairs) == staged.levels == 3
    for before, after in pairs:
        assert before.dtype == after.dtype
        assert before.tobytes() == after.tobytes()


def test_tensorstore_reads_it(stored):
    """A second independent reader agrees."""
    tensorstore = pytest.importorskip("tensorstore")
    path = stage_volume(stored).path
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / '0'}/"}}
    assert np.array_equal(
        tensorstore.open(spec, read=True).result().read().result(), levels_of(stored.uri("volume.ome.zarr"))[0]
    )


def test_it_lies_where_the_volume_lies(stored):
    """The multiscale is the volume's own, to the last digit."""
    staged = stage_volume(stored)
    assert multiscales(staged.path) == multiscales(Path(stored.uri(stored.volume)))


def test_uncompressed_chunks_are_the_voxels(tmp_path):
    """A memory map of the file is a view of the voxels: nothing is decoded."""
    voxels = voxels_of(shape=(64, 64, 128))
    folder = store_dataset(tmp_path, voxels, shard=(64, 64, 128))
    path = stage_volume(folder).path
    assert chunk_of(path) == (64, 64, 128)
    mapped = np.memmap(path / "0/c/0/0/0", np.uint8, "r", shape=voxels.shape)
    assert np.array_equal(mapped, voxels)


def absent_of(file: Path, form: ShardFormat) -> np.ndarray:
    """True for the voxels of a shard of which no byte is stored."""
    found = np.ones(form.shard, bool)
    if file.exists():
        reader = ShardReader.of_bytes(file.read_bytes(), form, str(file))
        for at in np.ndindex(form.grid):
            found[Box.from_shape(form.chunk, at=multiply(at, form.chunk)).slices] = reader.chunk(at) is None
    return found


@pytest.mark.parametrize("request_", [Request(chunk=(16, 16, 16)), Request(codec="zstd", chunk=(32, 16, 64))])
def test_absent_chunks_stay_absent(stored, request_):
    """A chunk is there if and only if a byte of its voxels is stored; a shard of absent ones has no file."""
    path = stage_volume(stored, request_).path
    plan = stage_plan.Plan.of(stage_plan.Source.read(stored), request_)
    seen = set()
    for level, form in zip(plan.source.levels, plan.forms, strict=True):
        for index in Box.from_shape(level.shape).cells(form.shard):
            place = stored.path(shard_path(stored, level.number, index))
            before = absent_of(stored.store.local_path(place), level.form)
            copied = path.joinpath(str(level.number), "c", *map(str, index))
            after = absent_of(copied, form)
            for at in np.ndindex(form.grid):
                chunk = Box.from_shape(form.chunk, at=multiply(at, form.chunk)).slices
                assert after[chunk].all() == before[chunk].all()
                assert after[chunk].any() == before[chunk].all()
            assert copied.exists() == (not before.all())
            seen.add((bool(before.any()), bool(before.all())))
    assert seen == {(False, False), (True, False), (True, True)}


def test_a_long_chunk_is_absent_only_if_all_of_it_is(stored):
    """Where chunks are longer than the volume's, what is there of one is kept, and 0 stands for the rest."""
    staged = stage_volume(stored, Request(chunk=(64, 64, 64)))
    before, after = levels_of(stored.uri(stored.volume))[0], levels_of(staged.path)[0]
    assert np.array_equal(before, after)
    assert after[:, 64:, 170:192].any()
    assert not after[GAP.slices].any()
    assert not (staged.path / "0/c/0/1/1").exists()
    assert (staged.path / "0/c/0/1/2").exists()


def test_levels_above_as_they_are_stored(stored):
    """With `only_level_0` the others are the same files."""
    staged = stage_volume(stored, Request(only_level_0=True))
    before = files_of(Path(stored.uri(stored.volume)))
    after = files_of(staged.path)
    assert {name for name in before if name[0] in "12"} == {name for name in after if name[0] in "12"}
    assert all(before[name] == after[name] for name in before if name[0] in "12")
    assert chunk_of(staged.path) != chunk_of(Path(stored.uri(stored.volume)))


def test_labels_and_further_volumes(tmp_path):
    """A further volume has a copy of its own, beside the main one's."""
    folder = store_dataset(tmp_path, voxels_of())
    labels = folder.further("nuc")
    store_volume(labels, voxels_of("uint16", (40, 50, 60)), content="labels")
    staged = stage_volume(labels)
    assert staged.path == tmp_path / "em/staged/volumes/nuc.ome.zarr"
    assert staged_volume(labels) == staged.path
    assert staged_volume(folder) is None
    assert np.array_equal(levels_of(staged.path)[0], voxels_of("uint16", (40, 50, 60)))
    assert multiscales(staged.path)[0]["type"] == "nearest"


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 70)] * 3),
    shard=st.tuples(*[st.sampled_from([32, 64, 96])] * 3),
    gap=st.none() | st.tuples(*[st.integers(0, 80)] * 3),
    codec=st.sampled_from(["none", "zstd"]),
)
def test_any_volume(tmp_path_factory, shape, shard, gap, codec):
    """Whatever shape, shards and gaps: voxels agree, and the size was foretold as the most it can be."""
    folder_of = tmp_path_factory.mktemp("any")
    hole = None if gap is None else Box(gap, tuple(a + 33 for a in gap)).intersection(Box.from_shape(shape))
    folder = store_dataset(folder_of, voxels_of(shape=shape), gap=hole, shard=shard)
    for one in (Request(codec=codec), Request(codec=codec, chunk=(8, 16, 32))):
        staged = stage_volume(folder, one, to=folder_of / "copy.ome.zarr")
        for before, after in zip(levels_of(folder.uri(folder.volume)), levels_of(staged.path), strict=True):
            assert np.array_equal(before, after)
        most = stage_plan.Plan.of(stage_plan.Source.read(folder), one).bytes_at_most()
        shards = sum(file.stat().st_size for file in staged.path.rglob("c/*/*/*"))
        assert shards <= most
        if codec == "none" and hole is None:
            assert shards == most


# The chunks


@pytest.mark.parametrize(
    ("n", "edge", "expected"),
    [
        pytest.param(1000, 256, 256, id="ends near a chunk's end"),
        pytest.param(1065, 256, 64, id="ends just behind a chunk's end"),
        pytest.param(300, 256, 64, id="small: less beyond the end"),
        pytest.param(16, 16, 16, id="thin"),
        pytest.param(1410, 640, 160, id="of a long shard, no longer than 256"),
        pytest.param(100, 256, 128, id="one chunk rather than several, if that is no larger"),
        pytest.param(2048, 1024, 256, id="long shard"),
    ],
)
def test_the_chunk_is_long_but_hardly_leaves_the_volume(n, edge, expected):
    """Along an axis: a part of the shard, at most 256, a twentieth beyond the end at most where that can be."""
    assert stage_plan._long_edge(n, edge) == expected


@given(n=st.integers(1, 5000), edge=st.integers(1, 700).map(lambda half: 2 * half))
def test_chunks_always_cut_a_shard(n, edge):
    """For any axis; and where 32 to 256 voxels cut it, that is what they are."""
    chunk = stage_plan._long_edge(n, edge)
    assert edge % chunk == 0
    if any(edge % part == 0 for part in range(32, 257)):
        assert 32 <= chunk <= 256


def test_small_chunks_of_a_compressed_copy(stored):
    """32 along each axis."""
    assert chunk_of(stage_volume(stored, Request(codec="zstd")).path) == (32, 32, 32)


def test_a_chunk_that_does_not_fit(stored):
    """Is refused with the shard's shape, and nothing is left."""
    with pytest.raises(Mismatch, match=r"\(48, 64, 64\) does not divide the shards.*\(64, 64, 64\)"):
        stage_volume(stored, Request(chunk=(48, 64, 64)))
    assert not staged_path(stored).parent.exists()


def test_nothing_to_gain(tmp_path):
    """A volume that is stored just so is not copied."""
    folder = store_dataset(tmp_path, voxels_of(), codec="none")
    with pytest.raises(Mismatch, match="nothing to gain"):
        stage_volume(folder, Request(chunk=(16, 16, 16)))


# Whole or not there


def test_what_it_says_of_itself(stored):
    """Which dataset in which state, how it is encoded, licence and citation, and a digest that can be computed."""
    staged = stage_volume(stored)
    note = json.loads((staged.path / "zarr.json").read_text())["attributes"]["em_assets"]
    assert note["staged"] | {"chunks": ...} == {
        "name": "em",
        "sha256": stored.read_record().sha256,
        "codec": "none",
        "chunks": ...,
    }
    assert (note["license"], note["doi"]) == ("CC-BY-4.0", "10.5072/x")
    files = files_of(staged.path)
    del files["zarr.json"]
    objects = [
        StoredObject(path=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    ]
    assert note["copy_sha256"] == staged.sha256 == manifest_digest(objects)


def test_equal_copies_are_equal_bytes(stored, tmp_path):
    """Whoever makes them, however many threads."""
    one, two = (stage_volume(stored, to=tmp_path / name, workers=n) for name, n in (("a", 1), ("b", 3)))
    assert files_of(one.path) == files_of(two.path)
    assert one.sha256 == two.sha256


def test_a_second_call_does_nothing(stored):
    """The copy is found, and not a byte of it written again."""
    first = stage_volume(stored)
    times = {file: file.stat().st_mtime_ns for file in first.path.rglob("*")}
    again = stage_volume(stored)
    assert (first.was_there, again.was_there) == (False, True)
    assert {file: file.stat().st_mtime_ns for file in first.path.rglob("*")} == times
    assert (again.path, again.sha256, again.size_bytes) == (first.path, first.sha256, first.size_bytes)


def test_made_another_way_it_replaces_the_first(stored):
    """One copy of a volume; the store lists its objects, so `du` and `rm` know them."""
    stage_volume(stored)
    second = stage_volume(stored, Request(codec="zstd"))
    assert not second.was_there
    listed = dict(stored.store.list(stored.path("staged")))
    assert sum(listed.values()) == second.size_bytes
    assert {path.split("/")[2] for path in listed} == {"volume.ome.zarr"}


def test_only_a_copy_of_what_is_stored_now_is_preferred(stored):
    """Not of an earlier state, not while the dataset is repaired, not a folder of somebody else."""
    assert staged_volume(stored) is None
    path = stage_volume(stored).path
    assert staged_volume(stored) == staged_volume(stored, stored.read_record()) == path
    record = stored.read_record()
    stored.write_record(record.with_status("saving-data"))
    assert staged_volume(stored) is None
    stored.write_record(record.with_status("complete", sha256="cd" * 32))
    assert staged_volume(stored) is None
    stored.write_record(record)
    (path / "zarr.json").write_text('{"attributes": {}}')
    assert staged_volume(stored) is None


def test_an_old_copy_is_replaced(stored):
    """After the dataset has changed."""
    path = stage_volume(stored).path
    stored.write_record(stored.read_record().with_status("complete", sha256="cd" * 32))
    staged = stage_volume(stored)
    assert not staged.was_there
    assert staged_volume(stored) == path
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_stopped_and_called_again(stored, monkeypatch):
    """Until it is whole nothing is at its place; what was copied is not copied again."""
    count, real = 0, stage_copy.Copy._copy_shard

    def fails_at_the_fifth(self, *shard):
        nonlocal count
        count += 1
        if count == 5:
            raise Unavailable("the disk is gone")
        real(self, *shard)

    monkeypatch.setattr(stage_copy.Copy, "_copy_shard", fails_at_the_fifth)
    with pytest.raises(Unavailable, match="the disk is gone"):
        stage_volume(stored)
    target = staged_path(stored)
    assert not target.exists()
    assert staged_volume(stored) is None
    assert list(stored.store.list(stored.path("staged"))) == []
    with (unfinished_of(target) / JOURNAL).open("ab") as journal:
        journal.write(b'{"path": "0/c/0/')  # a power cut within a line
    monkeypatch.setattr(stage_copy.Copy, "_copy_shard", real)
    staged = stage_volume(stored)
    assert 4 <= staged.kept < len(list(target.rglob("c/*/*/*")))
    assert np.array_equal(levels_of(target)[0], levels_of(stored.uri(stored.volume))[0])
    assert not unfinished_of(target).exists()


@pytest.mark.slow
def test_killed_and_called_again(tmp_path):
    """A process that is killed at any moment leaves what the next call goes on from, to the same bytes."""
    folder = store_dataset(tmp_path / "data", voxels_of(shape=(128, 256, 256)), shard=(32, 32, 32), chunk=(16, 16, 16))
    code = (
        "import sys; from em_assets.records import DatasetFolder; from em_assets.store import open_store;"
        "from em_assets.standardize.stage import stage_volume;"
        f"stage_volume(DatasetFolder(open_store({str(tmp_path / 'data')!r}), 'em'))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    journal = unfinished_of(staged_path(folder)) / JOURNAL
    while child.poll() is None and not (journal.is_file() and journal.read_bytes().count(b"\n") > 20):
        time.sleep(0.002)
    child.kill()
    child.wait()
    assert not staged_path(folder).exists()
    staged = stage_volume(folder)
    assert staged.kept >= 20
    assert staged.sha256 == stage_volume(folder, to=tmp_path / "other.ome.zarr").sha256


def test_a_part_of_another_copy_is_not_used(stored, monkeypatch):
    """What is left of an earlier state or another codec is cleared away."""
    monkeypatch.setattr(stage_copy.Copy, "_finish", lambda *_: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        stage_volume(stored, Request(codec="zstd"))
    monkeypatch.undo()
    staged = stage_volume(stored)
    assert staged.kept == 0
    assert np.array_equal(levels_of(staged.path)[0], levels_of(stored.uri(stored.volume))[0])


def test_a_lost_shard_of_the_part_is_copied_again(stored, monkeypatch):
    """The journal is believed only of files that are there in their size."""
    monkeypatch.setattr(stage_copy.Copy, "_finish", lambda *_: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        stage_volume(stored)
    monkeypatch.undo()
    arrived = unfinished_of(staged_path(stored)) / stage_copy.ARRIVING
    shards = sorted(arrived.rglob("c/*/*/*"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    staged = stage_volume(stored)
    assert staged.kept == len(shards) - 2
    assert np.array_equal(levels_of(staged.path)[0], levels_of(stored.uri(stored.volume))[0])


def damage(folder: DatasetFolder, change) -> Path:
    path = folder.store.local_path(folder.path(shard_path(folder, 0, (0, 0, 1))))
    change(path)
    return path


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(lambda path: path.write_bytes(bytes(len(path.read_bytes()))), "sha256", id="other bytes"),
        pytest.param(lambda path: path.unlink(), "it is gone", id="gone"),
    ],
)
def test_a_damaged_volume_is_not_copied(stored, change, why):
    """The shard is named, with the way to repair it; no copy appears."""
    path = damage(stored, change)
    with pytest.raises(Malformed, match=rf"{path} .*{why}.*em-assets verify em --repair"):
        stage_volume(stored)
    assert not staged_path(stored).exists()


def test_a_shard_without_a_record_is_damage(stored):
    """Not an absent one: absence has a record."""
    stored.delete_partition_record(0, partition_key((0, 0, 0)))
    with pytest.raises(Malformed, match="it has no record"):
        stage_volume(stored)


def test_a_disk_that_lies_is_found_out(stored, monkeypatch):
    """What reads back otherwise than it was written is not kept."""

    class Lying(LocalStore):
        def write(self, path, data):
            super().write(path, bytes(data[:-1]) + b"?" if "/c/" in path else data)

    monkeypatch.setattr(stage_copy, "LocalStore", Lying)
    with pytest.raises(Malformed, match="does not read back as it was written"):
        stage_volume(stored)
    assert not staged_path(stored).exists()
    assert list((unfinished_of(staged_path(stored)) / stage_copy.ARRIVING).rglob("c/*/*/*")) == []


def test_a_dataset_that_changes_meanwhile(stored, monkeypatch):
    """Its copy is not used."""
    real = stage_plan.Plan.documents

    def changes(self):
        stored.write_record(stored.read_record().with_status("complete", sha256="cd" * 32))
        return real(self)

    monkeypatch.setattr(stage_plan.Plan, "documents", changes)
    with pytest.raises(Mismatch, match="em was changed or removed while it was copied"):
        stage_volume(stored)
    assert not staged_path(stored).exists()


@pytest.mark.parametrize("status", ["error", "saving-data", "listed"])
def test_only_a_complete_dataset(stored, status):
    """Is copied; the sentence says what to do."""
    stored.write_record(stored.read_record().with_status(status))
    with pytest.raises(Unavailable, match=r"only a complete dataset.*em-assets get em"):
        stage_volume(stored)


def test_two_at_once(stored, monkeypatch):
    """The second says so and changes nothing."""
    inside, go_on, real = threading.Event(), threading.Event(), stage_copy.Copy._resume

    def waits(self):
        inside.set()
        go_on.wait(30)
        real(self)

    monkeypatch.setattr(stage_copy.Copy, "_resume", waits)
    first = threading.Thread(target=stage_volume, args=(stored,))
    first.start()
    try:
        assert inside.wait(30)
        with pytest.raises(Unavailable, match="is being made by another process"):
            stage_volume(stored)
    finally:
        go_on.set()
        first.join()
    assert staged_volume(stored) is not None


# Elsewhere


def test_a_copy_elsewhere_brings_its_coverage(stored, tmp_path):
    """`--to` another disk: the same volume, and beside it which of its voxels are real."""
    staged = stage_volume(stored, to=tmp_path / "scratch/deep/em.ome.zarr")
    assert staged.coverage == tmp_path / "scratch/deep/em.coverage.parquet"
    assert staged.coverage.read_bytes() == stored.read(stored.coverage)
    assert staged_volume(stored) is None
    assert is_staged_copy(staged.path)
    assert not is_staged_copy(Path(stored.uri(stored.volume)))
    assert np.array_equal(levels_of(staged.path)[0], levels_of(stored.uri(stored.volume))[0])


def test_what_is_no_copy_is_not_replaced(stored, tmp_path):
    """Neither a person's folder at its place nor one under its temporary name."""
    for place in (tmp_path / "mine.ome.zarr", unfinished_of(tmp_path / "other.ome.zarr")):
        place.mkdir()
        (place / "thesis.txt").write_text("unique")
        with pytest.raises(Mismatch, match="is no staged copy"):
            stage_volume(stored, to=place.with_name(place.name.removesuffix(DOWNLOAD_SUFFIX)))
        assert (place / "thesis.txt").read_text() == "unique"


def test_the_volume_itself_is_not_replaced(stored):
    """Not even when it is asked for."""
    with pytest.raises(Mismatch, match="is no staged copy"):
        stage_volume(stored, to=Path(stored.uri(stored.volume)))


def test_no_room(stored, monkeypatch):
    """Is said before anything is written, with what is needed and what is free."""
    monkeypatch.setattr(stage_copy.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(Unavailable, match=r"needs up to \d\.\d MB more, where 1\.0 kB are free"):
        stage_volume(stored)
    assert not staged_path(stored).exists()


def test_a_place_that_cannot_be_written(stored, tmp_path):
    """A file where the folder should be: the sentence names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"could not be written"):
        stage_volume(stored, to=tmp_path / "file/em.ome.zarr")


def test_a_store_on_s3(moto_s3, tmp_path):
    """Has no place that could be mapped, so a folder must be named; then the copy is the same."""
    folder = store_dataset(moto_s3, voxels_of(shape=(40, 50, 60)), gap=None)
    assert staged_volume(folder) is None
    with pytest.raises(Unsupported, match="--to"):
        stage_volume(folder)
    staged = stage_volume(folder, to=tmp_path / "em.ome.zarr")
    assert np.array_equal(levels_of(staged.path)[0], voxels_of(shape=(40, 50, 60)))


# Cost


def test_progress_counts_voxels_and_shards(stored):
    """All of them are done at the end."""
    lines: list[str] = []
    with open_reporter(lines.append, label="em", show="log") as reporter:
        stage_volume(stored, reporter=reporter)
    shards = sum(1 for _ in stage_plan.Source.read(stored).shards())
    assert f"{shards}/{shards}" in lines[-1]
    assert "100 %" in lines[-1]


@pytest.mark.slow
def test_memory_is_bounded_by_shards_not_by_the_volume(tmp_path):
    """A volume of 64 shards of 2 MB: at most six shards for each of two workers beyond what an idle process has."""
    store_dataset(tmp_path, voxels_of(shape=(256, 512, 1024)), shard=(128,) * 3, chunk=(64,) * 3)
    code = (
        "import resource, sys; from em_assets.records import DatasetFolder; from em_assets.store import open_store;"
        "from em_assets.standardize.stage import stage_volume;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024; before = peak();"
        f"stage_volume(DatasetFolder(open_store({str(tmp_path)!r}), 'em'), workers=2); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * 6 * 128**3
    assert math.prod((256, 512, 1024)) > 4 * 2 * 6 * 128**3
