"""Shards above that are made while those under them are in memory: the same bytes and records as from the store."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_assets.datasets.spec import Output, VolumeLayout
from em_assets.errors import Malformed, Unavailable
from em_assets.formats.reader import RegionOutcome
from em_assets.records import DatasetFolder
from em_assets.standardize import ascent
from em_assets.standardize.ingest import fetch_regions
from em_assets.standardize.ome import write_metadata
from em_assets.standardize.pyramid import build_pyramid
from em_assets.store import LocalStore
from em_assets.volume import Box
from memory_reader import ORIGIN, MemoryReader, all_keys, noise

NOT_COMPARED = {"written_at": True, "seconds": True, "comparison": {"compared_at"}}
"""When, and how long it took: all else of two records must agree."""


def layout_of(shape, dtype="uint8", content="image", *, shard=(64, 64, 64), chunk=(32, 32, 32), missing="record"):
    return VolumeLayout(
        name="volume",
        shape=shape,
        dtype=dtype,
        voxel_size_nm=(8.0, 8.0, 8.0),
        content=content,
        output=Output(shard=shard, chunk=chunk),
        missing_policy=missing,
        digest="0" * 16,
    )


class ManyThreads(MemoryReader):
    """Several boxes at once, as the readers of files and servers do it."""

    def map_regions(self, boxes, work, *, on_bytes=None):
        def one(box):
            try:
                return RegionOutcome(box, work(self._read(box, on_bytes)), None)
            except Exception as error:  # noqa: BLE001  the contract: one box that fails does not stop the others
                return RegionOutcome(box, None, error)

        with ThreadPoolExecutor(4) as pool:
            yield from pool.map(one, boxes)


def fetch(place, layout, array, holes=(), *, keys=None, reader=MemoryReader, **options):
    """Level 0, or some of it; (the folder, errors)."""
    folder = DatasetFolder(LocalStore(place), layout.name)
    source = reader(array, holes=[hole.shifted(ORIGIN) for hole in holes])
    crop = Box.from_shape(layout.shape, at=ORIGIN)
    _, errors = fetch_regions(folder, layout, source, crop, all_keys(layout) if keys is None else keys, **options)
    return folder, errors


def build(folder, layout):
    """All levels from what is stored; the shards that were computed for it."""
    computed = []
    level0 = [record for record in folder.partition_records() if record.level == 0]
    build_pyramid(folder, layout, level0, workers=2, on_shard=computed.append)
    return [(record.level, record.key) for record in computed]


def stored(folder):
    """Every object of the volume and every record of its shards."""
    objects = {path: folder.read(path) for path in folder.stored_sizes()}
    records = [json.loads(record.model_dump_json(exclude=NOT_COMPARED)) for record in folder.partition_records()]
    return objects, records


def from_the_store(place, layout, array, holes=()):
    """The volume as it is made without anything in memory: what the other way is compared with."""
    folder, errors = fetch(place, layout, array, holes, with_levels_above=False)
    assert not errors
    assert {record.level for record in folder.partition_records()} == {0}
    build(folder, layout)
    return stored(folder)


@st.composite
def volumes(draw):
    """(layout, voxels, holes) of any shape, dtype and content; holes have any size and do not overlap."""
    chunk = draw(st.sampled_from([(16, 16, 16), (8, 16, 32), (15, 16, 17), (32, 32, 32)]))
    shard = tuple(c * draw(st.sampled_from([2, 4] if c % 2 else [1, 2, 3])) for c in chunk)
    shape = draw(st.permutations([draw(st.integers(1, 40)), draw(st.integers(1, 140)), draw(st.integers(128, 270))]))
    dtype = draw(st.sampled_from(["uint8", "int16", "uint32", "uint64", "float32"]))
    content = "labels" if dtype == "uint64" else draw(st.sampled_from(["image", "image", "labels"]))
    layout = layout_of(
        tuple(shape), dtype, content, shard=shard, chunk=chunk, missing=draw(st.sampled_from(["record", "fill"]))
    )
    grid = draw(st.sampled_from([(16, 16, 16), (13, 40, 64)]))
    cells = list(Box.from_shape(layout.shape).cells(grid))
    chosen = draw(st.lists(st.sampled_from(cells), unique=True, max_size=6)) if draw(st.booleans()) else []
    if draw(st.booleans()):  # whole shards, and what lies beside them
        z, y, x = draw(st.sampled_from(list(layout.shard_indices())))
        chosen = [
            c
            for c in cells
            if layout.shard_box((z, y, x)).intersection(
                Box.from_shape(grid, at=tuple(a * g for a, g in zip(c, grid, strict=True)))
            )
        ]
    whole = Box.from_shape(layout.shape)
    holes = [
        Box.from_shape(grid, at=tuple(a * g for a, g in zip(c, grid, strict=True))).intersection(whole) for c in chosen
    ]
    return layout, noise(layout.shape, dtype, seed=draw(st.integers(0, 99))), holes


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(volume=volumes(), threads=st.booleans())
def test_the_same_bytes_and_records_as_from_the_store(tmp_path_factory, volume, threads):
    """Any shape, dtype, chunk and shard, labels, missing voxels: and then nothing is left to be built."""
    layout, array, holes = volume
    place = tmp_path_factory.mktemp("ascent")
    folder, errors = fetch(place / "here", layout, array, holes, reader=ManyThreads if threads else MemoryReader)
    assert not errors
    assert build(folder, layout) == []
    assert stored(folder) == from_the_store(place / "there", layout, array, holes)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(volume=volumes(), data=st.data())
def test_shards_from_several_runs_make_the_same_volume(tmp_path_factory, volume, data):
    """Level 0 in two runs, some of it twice, and with room for few open shards: the store gives what is not made."""
    layout, array, holes = volume
    place = tmp_path_factory.mktemp("ascent")
    keys = all_keys(layout)
    first = data.draw(st.lists(st.sampled_from(keys), unique=True))
    again = data.draw(st.lists(st.sampled_from(keys), unique=True, max_size=3))
    before = ascent.OPEN_BYTES
    ascent.OPEN_BYTES = data.draw(st.sampled_from([0, 2**18, 2**20]))
    try:
        for some in (first, [key for key in keys if key not in first or key in again]):
            folder, errors = fetch(place / "here", layout, array, holes, keys=some, reader=ManyThreads)
            assert not errors
    finally:
        ascent.OPEN_BYTES = before
    build(folder, layout)
    assert stored(folder) == from_the_store(place / "there", layout, array, holes)


LARGE = (256, 250, 256)
"""64 shards of 64^3, 8 above them, 1 on top."""


def test_only_whole_families_are_made(tmp_path):
    """63 of 64 shards: what is above the absent one is left to the store, the seven others beside it are there."""
    layout = layout_of(LARGE)
    folder, _ = fetch(tmp_path, layout, noise(LARGE), keys=all_keys(layout)[1:])
    made = {(record.level, record.key) for record in folder.partition_records() if record.level}
    grid = [(z, y, x) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    assert made == {(1, f"z{z:03d}_y{y:03d}_x{x:03d}") for z, y, x in grid[1:]}


def test_a_region_that_fails_leaves_its_ancestors_to_the_next_run(tmp_path):
    """Its error is its own; the next run fetches it and builds just what is above it."""
    layout, array = layout_of(LARGE), noise(LARGE)
    folder = DatasetFolder(LocalStore(tmp_path / "here"), layout.name)
    crop = Box.from_shape(LARGE, at=ORIGIN)
    bad = layout.shard_box((3, 1, 2)).shifted(ORIGIN)
    reader = ManyThreads(array, broken={bad: Malformed("broken")})
    _, errors = fetch_regions(folder, layout, reader, crop, all_keys(layout))
    assert list(errors) == ["z003_y001_x002"]
    fetch_regions(folder, layout, ManyThreads(array), crop, list(errors))
    assert build(folder, layout) == [(1, "z001_y000_x001"), (2, "z000_y000_x000")]
    assert stored(folder) == from_the_store(tmp_path / "there", layout, array)


def test_what_is_only_filled_makes_nothing_above(tmp_path):
    """A publisher that sent nothing of a region may have nothing at all: whoever finds that removes level 0 alone."""

    class Nothing(MemoryReader):
        def _read(self, box, on_bytes):
            return replace(super()._read(box, on_bytes), received_bytes=0)

    layout = layout_of(LARGE, missing="fill")
    folder, errors = fetch(tmp_path / "here", layout, noise(LARGE), [Box.from_shape(LARGE)], reader=Nothing)
    assert not errors
    assert {record.level for record in folder.partition_records()} == {0}


def test_a_finished_volume_is_hidden_before_a_shard_above_changes(tmp_path):
    """Fetched again with other voxels: the group's document goes before the first shard above is replaced."""
    layout, array = layout_of(LARGE), noise(LARGE)
    folder, _ = fetch(tmp_path, layout, array)
    build(folder, layout)
    write_metadata(folder, layout, ORIGIN)

    class Watching(LocalStore):
        def write(self, path, data):
            if "/1/c/" in path or "/2/c/" in path:
                assert self.size_bytes("volume/volume.ome.zarr/zarr.json") is None
            super().write(path, data)

    folder = DatasetFolder(Watching(tmp_path), layout.name)
    _, errors = fetch_regions(
        folder, layout, MemoryReader(255 - array), Box.from_shape(LARGE, at=ORIGIN), all_keys(layout)
    )
    assert not errors
    assert build(folder, layout) == []


def test_a_shard_above_that_cannot_be_written_is_an_error(tmp_path):
    """A full disk shows, level 0 stays, and the next run makes the whole."""
    layout, array = layout_of(LARGE), noise(LARGE)

    class Full(LocalStore):
        def write(self, path, data):
            if "/2/c/" in path:
                raise Unavailable(f"{path} could not be written (no space left): free space and run again.")
            super().write(path, data)

    folder = DatasetFolder(Full(tmp_path / "here"), layout.name)
    _, errors = fetch_regions(folder, layout, MemoryReader(array), Box.from_shape(LARGE, at=ORIGIN), all_keys(layout))
    assert [str(error) for error in errors.values()] == [
        "volume/volume.ome.zarr/2/c/0/0/0 could not be written (no space left): free space and run again."
    ]
    folder = DatasetFolder(LocalStore(tmp_path / "here"), layout.name)
    assert build(folder, layout) == [(2, "z000_y000_x000")]
    assert stored(folder) == from_the_store(tmp_path / "there", layout, array)


KILLED = """
    import sys
    from test_standardize_ascent import LARGE, fetch, layout_of, noise
    print("ready", flush=True)
    while True:
        fetch(sys.argv[1], layout_of(LARGE), noise(LARGE, seed=7))
"""


@pytest.mark.parametrize("seconds", [0.1, 0.6])
def test_a_killed_run_costs_time_only(tmp_path, seconds):
    """SIGKILL at any moment; what the next run makes of it is the volume of a run that was left alone."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "here")],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    layout, array = layout_of(LARGE), noise(LARGE, seed=7)
    folder = DatasetFolder(LocalStore(tmp_path / "here"), layout.name)
    kept = {record.key for record in folder.partition_records() if record.level == 0}
    folder, errors = fetch(tmp_path / "here", layout, array, keys=[key for key in all_keys(layout) if key not in kept])
    assert not errors
    build(folder, layout)
    assert stored(folder) == from_the_store(tmp_path / "there", layout, array)


@pytest.mark.parametrize("grid", [(4, 4, 4), (1, 8, 3), (5, 2, 9)])
def test_families_follow_one_another(grid):
    """At most one shard of each level is open at a time, whatever the grid."""
    order = ascent.by_family(Box.from_shape(grid).cells((1, 1, 1)))
    assert sorted(order) == list(Box.from_shape(grid).cells((1, 1, 1)))
    for level in range(1, 5):
        above = [tuple(i >> level for i in index) for index in order]
        assert len([a for a, b in itertools.pairwise(above) if a != b]) == len(set(above)) - 1
