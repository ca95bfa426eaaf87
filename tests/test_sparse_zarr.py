"""B24: volumes of which most chunks were never written, stored by each of the spec's policies for what is missing.

Zarr and N5 are written by other libraries, which leave chunks out, and read over HTTP.
"""

import json
import random
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, ShardingCodec, ZstdCodec

from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Mismatch
from em_assets.fetch.client import FolderClient, folder_url
from em_assets.formats import open_volume
from em_assets.formats.n5 import open_n5
from em_assets.formats.precomputed import open_precomputed
from em_assets.formats.zarr import open_zarr
from em_assets.pipeline import PartitionsFailed
from em_assets.records import DatasetFolder
from em_assets.sample.pages import BUCKET
from em_assets.sample.precomputed import write_precomputed
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.standardize.ingest import fetch_regions
from em_assets.standardize.opening import open_level
from em_assets.store import open_store
from em_assets.volume import Box, multiply
from faulty import Fault, FaultyServer
from memory_reader import all_keys, make_spec
from small import materialize, quick_settings

SHAPE = (32, 64, 64)
CHUNK = (8, 8, 8)
"""The publisher's: 32 in each region."""
SHARD = (16, 32, 32)
FILL = 7
"""Of the Zarr arrays; N5 and precomputed have none, so there it is 0."""
GROUP = "em"


def texture(shape=SHAPE, dtype="uint8"):
    """Different along each axis, nowhere 0 or the fill value."""
    return (np.arange(np.prod(shape)).reshape(shape) % 211 + 10).astype(dtype)


def cells_of(shape=SHAPE):
    return sorted(Box.from_shape(shape).cells(CHUNK))


def some_cells(seed):
    """All of the first region, none of the last, and of most others so few that two drawn ones would be absent."""
    dice = random.Random(seed)
    share_of = {(0, 0, 0): 1.0, (1, 1, 1): 0.0}
    return {cell for cell in cells_of() if dice.random() < share_of.get(region_of(cell), 0.05)}


def region_of(cell):
    return tuple(c * n // s for c, n, s in zip(cell, CHUNK, SHARD, strict=True))


def slices_of(cell):
    return Box.from_shape(CHUNK, at=multiply(cell, CHUNK)).slices


def present(cells):
    """True where a chunk is."""
    mask = np.zeros(SHAPE, bool)
    for cell in cells:
        mask[slices_of(cell)] = True
    return mask


def write_zarr(folder, cells, zarr_format, volume=None, fill=FILL, **options):
    volume = texture() if volume is None else volume
    array = zarr.create_array(
        str(folder),
        shape=volume.shape,
        dtype=volume.dtype,
        zarr_format=zarr_format,
        fill_value=fill,
        config={"write_empty_chunks": True},
        **options,
    )
    for cell in cells:
        array[slices_of(cell)] = volume[slices_of(cell)]


def write_v2(folder, cells, **options):
    write_zarr(folder, cells, 2, chunks=CHUNK, **options)


def write_v3_sharded(folder, cells):
    """Shards of 2 x 2 x 2 chunks: whole ones are absent, and chunks within others."""
    volume = texture()
    codecs = [ShardingCodec(chunk_shape=CHUNK, codecs=[BytesCodec(), ZstdCodec(level=1)])]
    array = zarr.create(
        store=str(folder),
        shape=SHAPE,
        dtype=volume.dtype,
        zarr_format=3,
        fill_value=FILL,
        chunks=(16, 16, 16),
        codecs=codecs,
    )
    for cell in cells:
        array[slices_of(cell)] = volume[slices_of(cell)]


def write_n5(folder, cells):
    ts = pytest.importorskip("tensorstore")
    metadata = {"dimensions": SHAPE[::-1], "blockSize": CHUNK, "dataType": "uint8", "compression": {"type": "gzip"}}
    spec = {"driver": "n5", "kvstore": f"file://{folder}/", "metadata": metadata}
    array = ts.open(spec, create=True).result()
    for cell in cells:
        z, y, x = slices_of(cell)
        array[x, y, z] = texture()[z, y, x].T


def write_unsharded(folder, cells):
    """Chunks without any other voxel than 0 are left out."""
    write_precomputed(folder, np.where(present(cells), texture(), 0), levels=1, chunk=CHUNK[0], encoding="raw")


WRITERS = {"v2": write_v2, "v3 sharded": write_v3_sharded, "n5": write_n5, "precomputed": write_unsharded}
FILLS = {"v2": FILL, "v3 sharded": FILL, "n5": 0, "precomputed": 0}


def spec_of(url, form="v2", **changes):
    values = yaml.safe_load((PACKAGED_DATASETS / "jrc_mus_nacc_2.yaml").read_text())
    del values["volumes"]
    values |= {"name": "sparse", "output": {"shard": list(SHARD), "chunk": list(CHUNK)}}
    values["source"] = {"kind": "n5" if form == "n5" else "zarr", "url": url, "group": GROUP, "level": 0}
    if form == "precomputed":
        values["source"] = {"kind": "precomputed", "url": f"{url}/{GROUP}", "level": 0}
    values["expected"] = {"source_shape": list(SHAPE), "dtype": "uint8", "voxel_size_nm": [8.0, 8.0, 8.0]}
    return DatasetSpec.model_validate(values | changes)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "site").mkdir()
    with FaultyServer(tmp_path / "site") as running:
        yield running


def stored(tmp_path, spec, sub=None):
    """(level 0 as zarr-python reads it, its records, the rows of its coverage)."""
    folder = DatasetFolder(open_store(str(tmp_path / "data")), spec.name, sub)
    records = [record for record in folder.partition_records() if record.level == 0]
    return open_level(folder)[:], records, pq.read_table(folder.uri(folder.coverage))


# -- the policies


@pytest.mark.parametrize("form", WRITERS)
def test_b24_record(tmp_path, server, form):
    """Complete with every check green; what is missing is 0 and known, voxel by voxel, whatever the fill value is."""
    cells = some_cells(1)
    WRITERS[form](server.folder / GROUP, cells)
    spec = spec_of(server.url, form)
    record, _ = materialize(spec, quick_settings(tmp_path / "data"))
    assert record.status == "complete"
    voxels, records, coverage = stored(tmp_path, spec)
    there = present(cells)
    np.testing.assert_array_equal(voxels, np.where(there, texture(), 0))
    missing = np.zeros(SHAPE, bool)
    for part in (part for one in records for part in one.missing):
        missing[part.slices] = True
    np.testing.assert_array_equal(missing, ~there)
    assert sum(coverage["present_voxels"].to_pylist()) == there.sum()
    assert {one.filled_source_chunks for one in records} == {0}
    # every region of which anything is there was compared with the source
    assert {bool(one.objects) for one in records} == {True, False}
    assert all(bool(one.objects) == (one.comparison is not None) for one in records)


@pytest.mark.parametrize("form", WRITERS)
def test_b24_fill(tmp_path, server, form):
    """What is missing is the fill value and counts as real; the records say how many chunks that are."""
    cells = some_cells(2)
    WRITERS[form](server.folder / GROUP, cells)
    spec = spec_of(server.url, form, missing="fill")
    record, _ = materialize(spec, quick_settings(tmp_path / "data"))
    assert record.status == "complete"
    voxels, records, coverage = stored(tmp_path, spec)
    np.testing.assert_array_equal(voxels, np.where(present(cells), texture(), FILLS[form]))
    assert set(coverage["present_fraction"].to_pylist()) == {1.0}
    assert {one.missing for one in records} == {()}
    assert sum(one.filled_source_chunks for one in records) == len(cells_of()) - len(cells)
    assert {one.received_bytes > 0 for one in records} == {True, False}
    assert all(one.objects and one.comparison for one in records)


@pytest.mark.parametrize("form", WRITERS)
def test_b24_error(tmp_path, server, form):
    """Regions that are not whole fail, and the sentence counts their chunks; the whole one is kept."""
    cells = some_cells(3)
    WRITERS[form](server.folder / GROUP, cells)
    spec = spec_of(server.url, form, missing="error")
    with pytest.raises(PartitionsFailed, match=r"no data in \d+ chunks of .*`missing: fill`"):
        materialize(spec, quick_settings(tmp_path / "data"))
    folder = DatasetFolder(open_store(str(tmp_path / "data")), spec.name)
    assert [record.key for record in folder.partition_records()] == ["z000_y000_x000"]
    assert folder.read_record().status == "error"


def test_b24_regions_that_cut_chunks(tmp_path, server):
    """A crop that is not aligned: each region fills its part of a chunk, and says so."""
    cells = some_cells(4)
    write_v2(server.folder / GROUP, cells)
    crop = {"shape": [20, 30, 40], "origin": [3, 5, 7], "snap": False}
    spec = spec_of(server.url, missing="fill", crop=crop)
    materialize(spec, quick_settings(tmp_path / "data"))
    voxels, records, _ = stored(tmp_path, spec)
    box = Box.from_shape((20, 30, 40), at=(3, 5, 7))
    np.testing.assert_array_equal(voxels, np.where(present(cells), texture(), FILL)[box.slices])
    assert [one.filled_source_chunks for one in records] == [
        len(set(one.source_box.cells(CHUNK)) - cells) for one in records
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("float32", np.nan), ("float32", 0.1), ("float32", -np.inf), ("uint64", 2**64 - 1), ("int16", -5)],
    ids=str,
)
def test_b24_any_fill_value_is_stored_exactly(tmp_path, server, dtype, fill):
    """Regions without any chunk included: as zarr-python reads the published array."""
    volume = texture(dtype=dtype)
    write_v2(server.folder / GROUP, [(0, 0, 0), (1, 5, 4)], volume=volume, fill=fill)
    expected = {"source_shape": list(SHAPE), "dtype": dtype, "voxel_size_nm": [8.0, 8.0, 8.0]}
    spec = spec_of(server.url, missing="fill", expected=expected)
    assert materialize(spec, quick_settings(tmp_path / "data"))[0].status == "complete"
    published = zarr.open_array(str(server.folder / GROUP), mode="r")[:]
    np.testing.assert_array_equal(stored(tmp_path, spec)[0], published)


@pytest.mark.parametrize("policy", ["record", "fill"])
def test_b24_kept_objects_make_the_same_volume(tmp_path, server, policy):
    """`keep: both` reads the copy; its shards say where the chunks were published, not where the copy lies."""
    cells = some_cells(5)
    write_v2(server.folder / "bucket" / GROUP, cells)
    (server.folder / "bucket" / BUCKET).touch()
    source = {"kind": "zarr", "url": "s3://bucket", "endpoint": server.url, "group": GROUP, "level": 0}
    spec = spec_of(server.url, missing=policy, keep="both", source=source)
    assert materialize(spec, quick_settings(tmp_path / "data"))[0].status == "complete"
    voxels, records, _ = stored(tmp_path, spec)
    np.testing.assert_array_equal(voxels, np.where(present(cells), texture(), FILL if policy == "fill" else 0))
    assert {one.source_url for one in records} == {f"s3://bucket/{GROUP}"}


@pytest.mark.parametrize("policy", ["record", "fill"])
def test_b24_nothing_at_all_is_an_error(tmp_path, server, policy):
    """Not a complete volume of fill values: more likely the address is wrong. The next run asks again."""
    cells = some_cells(6)
    write_v2(server.folder / GROUP, cells)
    spec = spec_of(server.url, missing=policy)
    server.fail = lambda path, *_: None if "/.z" in path else Fault(status=404)
    with pytest.raises(Mismatch, match="has none of the chunks"):
        materialize(spec, quick_settings(tmp_path / "data"))
    folder = DatasetFolder(open_store(str(tmp_path / "data")), spec.name)
    assert folder.read_record().status == "error"
    assert not [path for path in folder.stored_sizes() if "/c/" in path]
    server.fail = lambda *_: None
    assert materialize(spec, quick_settings(tmp_path / "data"))[0].status == "complete"


# -- labels


def test_b24_labels_have_their_background(tmp_path, server):
    """Without a policy in the spec, chunks that were never written are background of labels, and missing of images."""
    cells, nuclei = some_cells(7), [(1, 2, 3), (3, 4, 4)]
    write_v2(server.folder / GROUP, cells)
    labels = np.full(SHAPE, 9, "uint8")
    write_v2(server.folder / "nuc", nuclei, volume=labels, fill=3)
    volume = {"content": "labels", "group": "nuc", "shape": list(SHAPE), "dtype": "uint8"}
    spec = spec_of(server.url, volumes={"nuc": volume | {"voxel_size_nm": [8.0, 8.0, 8.0]}})
    assert materialize(spec, quick_settings(tmp_path / "data"))[0].status == "complete"
    voxels, records, coverage = stored(tmp_path, spec, "nuc")
    np.testing.assert_array_equal(voxels, np.where(present(nuclei), labels, 3))
    assert set(coverage["present_fraction"].to_pylist()) == {1.0}
    assert sum(one.filled_source_chunks for one in records) == len(cells_of()) - len(nuclei)
    images, _, coverage = stored(tmp_path, spec)
    np.testing.assert_array_equal(images, np.where(present(cells), texture(), 0))
    assert min(coverage["present_fraction"].to_pylist()) == 0


@pytest.mark.parametrize(
    ("content", "stated", "policy"),
    [
        ("image", None, "record"),
        ("labels", None, "fill"),
        *((content, stated, stated) for content in ("image", "labels") for stated in ("record", "error", "fill")),
    ],
)
def test_b24_the_policy_of_a_volume(content, stated, policy):
    """What the spec states, for all of its volumes; else what suits the content of each."""
    nuclei = {"content": "labels", "group": "n", "shape": [4, 4, 4], "dtype": "uint8", "voxel_size_nm": [8, 8, 8]}
    spec = spec_of("https://host/a.zarr", missing=stated, content=content, volumes={"nuc": nuclei})
    assert spec.layouts()[None].missing_policy == policy
    assert spec.layouts()["nuc"].missing_policy == (stated or "fill")


def test_b24_filling_makes_another_volume():
    """Its bytes are others, so its identity is; recording and failing differ in no byte that is kept."""
    nuclei = {"content": "labels", "group": "n", "shape": [4, 4, 4], "dtype": "uint8", "voxel_size_nm": [8, 8, 8]}

    def identities(**changes):
        layouts = spec_of("https://host/a.zarr", volumes={"nuc": nuclei}, **changes).layouts()
        return layouts[None].identity(), layouts["nuc"].identity()

    image, labels = identities()
    assert identities(missing="record") == identities(missing="error")
    assert identities(missing="record")[0] == image
    assert identities(missing="fill")[1] == labels
    assert identities(missing="fill")[0] != image
    assert identities(missing="record")[1] != labels


# -- what is compared


def opened(folder, form):
    client, speed = FolderClient(), Settings(workers=2)
    if form == "precomputed":
        return open_precomputed(folder_url(folder), 0, client, speed)
    return (open_n5 if form == "n5" else open_zarr)(folder_url(folder), None, client, speed)


@pytest.mark.slow
@pytest.mark.parametrize("form", WRITERS)
@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_region_of_which_anything_is_there_has_samples(tmp_path, form, data):
    """Of one or two chunks that are there, the same ones every time, in whatever order they arrive."""
    cells = data.draw(st.sets(st.sampled_from(cells_of(SHARD)), max_size=6), "cells")
    folder = tmp_path / "a"
    shutil.rmtree(folder, ignore_errors=True)
    WRITERS[form](folder, cells)
    reader, box = opened(folder, form), Box.from_shape(SHARD)
    first, again = (next(reader.map_regions([box], lambda region: region)).value for _ in range(2))
    assert first.samples == again.samples
    assert all(sample.value == texture()[sample.position] for sample in first.samples)
    of_chunks = {tuple(p // n for p, n in zip(sample.position, CHUNK, strict=True)) for sample in first.samples}
    assert of_chunks <= cells
    assert len(of_chunks) == min(2, len(cells))
    assert first.fill_value == FILLS[form]


@pytest.mark.parametrize(("policy", "background"), [("record", 0), ("fill", -5)])
def test_b24_hdf5_by_the_same_policies(tmp_path, policy, background):
    """A dataset with a fill value, written in part."""
    h5py = pytest.importorskip("h5py")
    volume = texture(SHARD, "int16")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("a", SHARD, "int16", chunks=CHUNK, compression="gzip", fillvalue=-5)
        dataset[:8] = volume[:8]
    spec = make_spec(SHARD, "int16", shard=SHARD, chunk=CHUNK, missing=policy)
    folder = DatasetFolder(open_store(str(tmp_path / "data")), spec.name)
    reader = open_volume(tmp_path / "a.h5")
    (record,), errors = fetch_regions(folder, spec, reader, Box.from_shape(SHARD), all_keys(spec))
    assert not errors
    expected = volume.copy()
    expected[8:] = background
    np.testing.assert_array_equal(open_level(folder)[:], expected)
    assert (len(record.missing), record.filled_source_chunks) == ((16, 0) if policy == "record" else (0, 16))
    assert record.comparison is not None


def test_the_schema_offers_the_policies():
    """An editor completes them."""
    schema = json.loads((PACKAGED_DATASETS / "dataset.schema.json").read_text())
    assert schema["properties"]["missing"]["anyOf"][0]["enum"] == ["record", "error", "fill"]
