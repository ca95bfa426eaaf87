"""Blocks for training: the same sequence for any workers, resumed anywhere; by SQL, by weight; also without torch."""

import copy
import itertools
import multiprocessing
import pickle
import subprocess
import sys
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import yaml
import zarr

import em_assets.blocks as em
from em_assets.blocks._samples import joined
from em_assets.blocks._selection import STARTS, Wish, select
from em_assets.blocks._slots import SENT, SMALLEST_BYTES, SPARE_SLOTS, Slots
from em_assets.blocks.dataset import collate
from em_assets.blocks.sampling import SamplerState
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.settings import PACKAGED_DATASETS
from em_assets.volume import Box
from faulty import FaultyServer
from ome_volumes import halved, write_ome_zarr
from small import materialize, quick_settings

CHUNK = (16, 16, 16)
TESTS = Path(__file__).parent


def textured(shape, dtype="uint8", seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


def write(folder, voxels, size=(8.0, 8.0, 8.0), levels=2, **options) -> Path:
    pyramid = [voxels]
    for _ in range(levels - 1):
        pyramid.append(np.rint(halved(pyramid[-1])).astype(voxels.dtype))
    return write_ome_zarr(folder, pyramid, chunk=CHUNK, voxel_size_nm=size, **options)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """Volumes by what they are: fine (8 nm), coarse (20 nm), thin, labels of `fine` at 16 nm, deep (int16), large."""
    base = tmp_path_factory.mktemp("volumes")
    cells = np.arange(1, 24**3 + 1).reshape(24, 24, 24).astype("uint32")
    return {
        "fine": str(write(base / "fine", textured((48, 48, 48)))),
        "coarse": str(write(base / "coarse", textured((40, 40, 40), seed=1), (20.0,) * 3)),
        "thin": str(write(base / "thin", textured((4, 64, 64), seed=2), (50.0, 8.0, 8.0), levels=1)),
        "nuc": str(write(base / "nuc", cells, (16.0,) * 3, levels=1, kind="nearest")),
        "deep": str(write(base / "deep", textured((32, 32, 32), "int16", seed=3))),
        "large": str(write(base / "large", textured((80, 80, 80), seed=4))),
    }


@pytest.fixture
def fine(places) -> em.BlockDataset:
    return em.BlockDataset([(places["fine"], 1)], shape=12, length=37, seed=7)


@pytest.fixture
def large(places) -> em.BlockDataset:
    """Four blocks are as large as what workers send through slots."""
    return em.BlockDataset([(places["large"], 1)], shape=64, length=37, seed=7)


def identity(batch) -> tuple:
    """All that a batch holds, as something that can be compared."""
    return (
        str(batch["info"]),
        np.asarray(batch["data"]).tobytes(),
        np.asarray(batch["valid"]).all(),
        str(batch.get("state")),
    )


def indices(batches) -> list[int]:
    return [info["index"] for batch in batches for info in batch["info"]]


def write_catalog(file: Path, rows: list[dict]) -> Path:
    """A database with a table `blocks` of these rows."""
    columns = {key: None for row in rows for key in row}
    kinds = {str: "VARCHAR", int: "INTEGER", float: "DOUBLE"}
    types = {key: next(kinds[type(row[key])] for row in rows if row.get(key) is not None) for key in columns}
    with duckdb.connect(str(file)) as database:
        database.execute(f"create table blocks ({', '.join(f'{key} {types[key]}' for key in columns)})")
        marks = ", ".join("?" * len(columns))
        for row in rows:
            database.execute(f"insert into blocks values ({marks})", [row.get(key) for key in columns])
    return file


def grid_rows(name: str, shape, block=16, level=0, **values) -> list[dict]:
    """The blocks of a grid, as the index has them."""
    starts = itertools.product(*(range(0, n - min(n, block) + 1, block) for n in shape))
    size = {f"shape_{axis}": min(n, block) for axis, n in zip("zyx", shape, strict=True)}
    return [
        {"name": name, "id": number, "level": level, "start_z": z, "start_y": y, "start_x": x, **size, "coverage": 1.0}
        | values
        for number, (z, y, x) in enumerate(starts)
    ]


@pytest.fixture
def catalog(tmp_path, places) -> Path:
    rows = grid_rows(places["fine"], (48, 48, 48), split="train") + grid_rows(
        places["coarse"], (40, 40, 40), split=None
    )
    return write_catalog(tmp_path / "metadata.duckdb", rows)


# -- the sequence


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed (the extra `ml`)")


@pytest.mark.parametrize(
    ("workers", "method"),
    [
        (0, None),
        (1, "fork"),
        (2, "fork"),
        (8, "fork"),
        (2, "spawn"),
        (2, "forkserver"),
        pytest.param(8, "spawn", marks=pytest.mark.slow),
        pytest.param(8, "forkserver", marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes")
def test_any_workers_give_the_same_sequence(torch, large, workers, method):
    """Every byte and number of every batch, from the beginning and after a resume in the middle of an epoch."""
    stream = em.BlockStream(large, batch_size=4)
    assert next(iter(stream))["data"].nbytes >= SMALLEST_BYTES  # it is sent in a slot
    expected = [identity(batch) for batch in stream]
    loader = torch.utils.data.DataLoader(
        stream, batch_size=None, num_workers=workers, multiprocessing_context=method, persistent_workers=workers == 2
    )
    assert [identity(batch) for batch in loader] == expected
    state = None
    for batch in itertools.islice(loader, 3):
        state = batch["state"]
    stream.load_state_dict(state)
    assert [identity(batch) for batch in loader] == expected[3:]
    stream.set_epoch(1)
    second = [identity(batch) for batch in loader]
    assert len(second) == len(expected) and not set(second) & set(expected)
    stream.set_epoch(0)
    assert [identity(batch) for batch in loader] == expected


@pytest.mark.parametrize("workers", [0, 2], ids=str)
def test_samples_by_number_are_the_same_in_workers(torch, fine, workers):
    """Map style, read by the batch; workers that live on follow `set_epoch`."""
    loader = torch.utils.data.DataLoader(
        fine, batch_size=5, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate
    )
    for epoch in (0, 1):
        fine.set_epoch(epoch)
        expected = [fine.batch(SamplerState(7, epoch), range(n, min(n + 5, 37))) for n in range(0, 37, 5)]
        assert [identity(batch) for batch in loader] == [identity(batch) for batch in expected]


def test_torch_collates_samples_itself(torch, fine):
    """Without a `collate_fn`, and shuffled over again."""
    batch = next(iter(torch.utils.data.DataLoader(fine, batch_size=5, shuffle=True)))
    assert batch["data"].shape == batch["valid"].shape == (5, 12, 12, 12)
    assert batch["data"].dtype == torch.uint8
    assert set(batch["info"]["volume"]) == {"fine"}


def test_a_sample_is_the_block_at_its_place(fine, places):
    """Voxels, place and frame are `read`'s; the n-th sample is the same alone and in a batch."""
    volume = em.open(places["fine"])
    for n, sample in enumerate(fine.__getitems__([5, 0, 36])):
        info = sample["info"]
        block = volume.read(info["start"], shape=12)
        assert (np.asarray(sample["data"]) == block.data).all()
        assert (tuple(info["start_nm"]), tuple(info["stop_nm"])) == (block.box_nm.start, block.box_nm.stop)
        assert info["index"] == [5, 0, 36][n]
        assert identity(collate([fine[info["index"]]])) == identity(collate([sample]))


def test_equal_arguments_give_equal_samples(fine, places):
    """Another dataset made alike, or unpickled; another seed is another sequence."""
    again = em.BlockDataset([(em.open(places["fine"]), 1)], shape=12, length=37, seed=7)
    unpickled = pickle.loads(pickle.dumps(fine))
    other = em.BlockDataset([(places["fine"], 1)], shape=12, length=37, seed=8)
    batch = identity(fine.batch(SamplerState(7, 3), range(10)))
    assert identity(again.batch(SamplerState(7, 3), range(10))) == batch
    assert identity(unpickled.batch(SamplerState(7, 3), range(10))) == batch
    assert identity(other.batch(SamplerState(8, 3), range(10))) != batch
    assert (unpickled.seed, unpickled.epoch) == (7, 0)


def test_beyond_the_end(fine):
    """A dataset ends like a list, so a plain `for` goes over one epoch."""
    assert len(list(fine)) == len(fine) == 37
    with pytest.raises(IndexError, match="no sample 37 among 37"):
        fine[37]


def test_augmentation_has_a_seed_of_its_own(fine):
    """One number for each sample, another in the next epoch."""
    seeds = [sample["info"]["seed"] for sample in fine.__getitems__(range(37))]
    fine.set_epoch(1)
    seeds += [sample["info"]["seed"] for sample in fine.__getitems__(range(37))]
    assert len(set(seeds)) == 74
    assert all(0 <= seed < 2**63 for seed in seeds)


# -- the stream


@pytest.mark.parametrize("prefetch", [0, 1, 5, 50], ids=str)
def test_reading_ahead_changes_nothing(fine, prefetch):
    """Neither the batches nor what the state is after each."""
    expected = [identity(batch) for batch in em.BlockStream(fine, batch_size=4, prefetch=0)]
    stream = em.BlockStream(fine, batch_size=4, prefetch=prefetch)
    found = []
    for batch in stream:
        assert stream.state_dict() == batch["state"]
        found.append(identity(batch))
    assert found == expected


@pytest.mark.parametrize("worker", [None, (1, 4)], ids=["alone", "in a worker"])
def test_an_epoch_is_not_listed_first(places, monkeypatch, worker):
    """Of a million batches only those are planned that are soon to be read."""
    stream = em.BlockStream(em.BlockDataset([(places["fine"], 1)], shape=4, length=4_000_000), batch_size=4)
    planned, tasks = [], stream._tasks
    monkeypatch.setattr(stream, "_tasks", lambda state: (planned.append(1) or task for task in tasks(state)))
    monkeypatch.setattr("em_assets.blocks.stream._worker", lambda: worker)
    assert next(iter(stream))["data"].shape == (4, 4, 4, 4)
    assert 0 < len(planned) <= 2


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 8, 8, 8, 5]), (True, [8, 8, 8, 8])], ids=["keep", "drop"])
def test_the_last_batch(fine, drop_last, sizes):
    """It is smaller, or left out; after it the next epoch begins."""
    stream = em.BlockStream(fine, batch_size=8, drop_last=drop_last)
    assert len(stream) == len(sizes)
    batches = list(stream)
    assert [len(batch["data"]) for batch in batches] == sizes
    assert [batch["state"]["next_index"] for batch in batches[:-1]] == [8, 16, 24, 32][: len(sizes) - 1]
    assert batches[-1]["state"] == {"seed": 7, "epoch": 1, "next_index": 0}
    assert indices(batches) == list(range(sum(sizes)))


def test_resumed_with_other_batches(fine):
    """The samples go on where they were, whatever the size of the batches was."""
    stream = em.BlockStream(fine, batch_size=5)
    state = next(itertools.islice(stream, 2, None))["state"]
    other = em.BlockStream(fine, batch_size=11)
    other.load_state_dict(state)
    assert len(other) == 2
    assert indices(other) == list(range(15, 37))


def test_ranks_share_each_step(fine):
    """Three processes: no sample twice, equally many batches, one state."""
    streams = [em.BlockStream(fine, batch_size=4, rank=rank, ranks=3) for rank in range(3)]
    steps = list(zip(*streams, strict=True))
    assert len(steps) == 37 // 12
    for number, batches in enumerate(steps):
        assert indices(batches) == list(range(12 * number, 12 * number + 12))
        assert len({str(batch["state"]) for batch in batches}) == 1


def test_workers_know_the_state_alone(torch, fine):
    """They read ahead, so the stream refuses to guess; each batch carries it."""
    stream = em.BlockStream(fine, batch_size=4)
    batch = next(iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1)))
    with pytest.raises(Mismatch, match=r"batch\['state'\]"):
        stream.state_dict()
    stream.load_state_dict(batch["state"])
    assert stream.state_dict() == batch["state"] == {"seed": 7, "epoch": 0, "next_index": 4}


def test_another_datasets_state(fine):
    """It is beyond the end: refused, not taken as the end."""
    stream = em.BlockStream(fine, batch_size=4)
    with pytest.raises(Mismatch, match="38 samples into an epoch of 37"):
        stream.load_state_dict({"seed": 7, "epoch": 0, "next_index": 38})


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"prefetch": -1}, {"rank": 2, "ranks": 2}, {"rank": -1}, {"batch_size": 38, "drop_last": True}],
    ids=str,
)
def test_streams_that_cannot_be(fine, wrong):
    """Among them one that would give nothing."""
    with pytest.raises(Mismatch, match=r"expected at least 1|nothing would be given"):
        em.BlockStream(fine, **wrong)


# -- memory that is used again


def test_what_is_kept_stays(torch, large):
    """All batches of an epoch, or a part of each, keep their voxels while the workers go on."""
    stream = em.BlockStream(large, batch_size=4)
    expected = [batch["data"].numpy().copy() for batch in stream]
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    for _ in range(2):
        kept = list(loader)
        assert all((np.asarray(batch["data"]) == voxels).all() for batch, voxels in zip(kept, expected, strict=True))
        parts = [batch["data"][-1, 5:] for batch in loader]
        assert all((np.asarray(part) == voxels[-1, 5:]).all() for part, voxels in zip(parts, expected, strict=True))
        views = [batch["data"].numpy()[0] for batch in loader]
        assert all((view == voxels[0]).all() for view, voxels in zip(views, expected, strict=True))


def received(tensor):
    """As the process that trains gets it."""
    return pickle.loads(ForkingPickler.dumps(tensor))


def test_a_slot_is_used_again_when_nobody_uses_it(torch):
    """Not while the sender has the tensor, nor while the receiver has it or a part of it."""
    slots, voxels = Slots(), textured((2, 80, 80, 80))
    sent = slots.tensor(voxels)
    first = sent.data_ptr()
    got = received(sent)
    assert type(got) is torch.Tensor and (got.numpy() == voxels).all()
    del got  # the receiver is done, the sender is not
    assert slots.tensor(voxels).data_ptr() != first
    part = received(slots.tensor(voxels[::-1]))[1, 3]
    del sent
    assert {slots.tensor(voxels).data_ptr() for _ in range(5)} == {first}
    assert (part.numpy() == voxels[0, 3]).all()
    del part
    assert len(slots._slots) == 2


@pytest.mark.parametrize(
    "made",
    [lambda voxels: voxels / 2, lambda voxels: voxels[1:], lambda voxels: voxels.swapaxes(2, 3)],
    ids=["computed", "a part", "turned"],
)
def test_what_is_not_the_slot_is_sent_by_torch(torch, made):
    """The values are right, of it and of what it was made from, and the slot is not given away for it."""
    slots, voxels = Slots(), textured((2, 80, 80, 80))
    sent = slots.tensor(voxels)
    assert (received(made(sent)).numpy() == made(voxels)).all()
    assert [slot.memory[SENT] for slot in slots._slots] == [0]
    assert (received(sent).numpy() == voxels).all()


def test_sent_twice(torch):
    """The second is a copy: who changes one does not change the other."""
    slots, voxels = Slots(), textured((2, 80, 80, 80))
    sent = slots.tensor(voxels)
    first, second = received(sent), received(sent)
    first[...] = 0
    assert (second.numpy() == voxels).all()


def test_a_child_does_not_give_its_parents_memory_away(torch):
    """A process that was forked meanwhile lets go of its copy; the slot stays in use."""
    slots = Slots()
    kept = {"tensor": received(slots.tensor(textured((2, 80, 80, 80))))}
    child = multiprocessing.get_context("fork").Process(target=kept.clear)
    child.start()
    child.join()
    assert child.exitcode == 0
    (slot,) = slots._slots
    assert not slot.is_free
    kept.clear()
    assert slot.is_free


def test_what_is_read_into_a_slot_is_not_copied(torch):
    slots, voxels = Slots(), textured((2, 80, 80, 80))
    array = slots.empty(voxels.shape, voxels.dtype)
    array[...] = voxels
    sent = slots.tensor(array)
    assert sent.data_ptr() == array.ctypes.data
    assert (received(sent).numpy() == voxels).all()
    assert len(slots._slots) == 1


def test_a_part_of_what_was_read_is_copied(torch):
    """The receiver must not see, nor change, the rest."""
    slots, voxels = Slots(), textured((3, 80, 80, 80))
    array = slots.empty(voxels.shape, voxels.dtype)
    array[...] = voxels
    part = received(slots.tensor(array[:2]))
    part[...] = 0
    assert (array == voxels).all()


def test_a_slot_is_not_lent_twice(torch):
    """Neither while its array is in use, nor a view of it."""
    slots = Slots()
    part = slots.empty((2, 80, 80, 80), np.dtype(np.uint8))[1, 2]
    part[...] = 7
    slots.empty((2, 80, 80, 80), np.dtype(np.uint8))[...] = 0
    assert (part == 7).all()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not show open files")
def test_a_file_is_handed_over_once(torch):
    """After that the receiver opens it by itself; not another one that has its number by now."""
    slots, voxels = Slots(), textured((2, 80, 80, 80))
    for _ in range(2):
        assert (received(slots.tensor(voxels)).numpy() == voxels).all()
    (slot,) = slots._slots
    handle = slot.handle()
    assert handle.file is None
    with pytest.raises(OSError, match="ended before its batch was used"):
        handle._replace(inode=handle.inode + 1).map()


@pytest.mark.parametrize(
    "made",
    [
        lambda tensor: tensor.float().mean().bfloat16(),
        lambda tensor: tensor.float().requires_grad_(),
        lambda tensor: tensor.view(-1).to_sparse(),
        lambda tensor: tensor.view(tensor.dtype),
    ],
    ids=["bfloat16", "with gradient", "sparse", "a view"],
)
def test_what_a_worker_makes_of_a_batch_can_be_sent(torch, made):
    """Whatever torch can send: an error there would leave the parent waiting for ever."""
    sent = Slots().tensor(textured((2, 80, 80, 80)))
    assert torch.equal(received(made(sent)).to_dense(), made(sent).to_dense())


def test_a_batch_is_copied_and_saved_like_any_tensor(torch, tmp_path):
    """Also in a worker, before it is sent."""
    voxels = textured((2, 80, 80, 80))
    sent = Slots().tensor(voxels)
    torch.save({"data": sent}, tmp_path / "batch.pt")
    for tensor in (copy.deepcopy(sent), pickle.loads(pickle.dumps(sent)), torch.load(tmp_path / "batch.pt")["data"]):
        assert type(tensor) is torch.Tensor
        assert (tensor.numpy() == voxels).all()


def test_too_many_open_files(torch):
    """A sentence, not torch's silence: a process that keeps all batches may have so many files open."""
    program = """
import resource, numpy as np
from em_assets.blocks._slots import Slots
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
slots, kept = Slots(), []
while True:
    kept.append(slots.empty((1_000_000,), np.dtype("uint8")))
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert "Unavailable: a DataLoader's worker has no memory for the next batch" in ended.stderr.splitlines()[-1]
    assert "64 files" in ended.stderr


# -- masks, and what transforms do


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mask_can_be_written_and_pinned(torch, fine, workers):
    """Its voxels are its own: one that is set changes no other. (torch pins by copying into an empty tensor.)"""
    stream = em.BlockStream(fine, batch_size=4)
    batch = next(iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers)))
    valid = batch["valid"]
    pinned = torch.empty(0, dtype=valid.dtype)
    pinned.set_(torch.empty(valid.numel(), dtype=valid.dtype).untyped_storage(), 0, valid.shape, valid.stride())
    pinned.copy_(valid)
    assert pinned.all()
    valid[0, 0, 0, 0] = False
    valid[1:] &= True
    assert int((~valid).sum()) == 1
    sample = fine[0]["valid"]
    sample[0, 0, 0] = False
    assert int((~sample).sum()) == 1


def test_a_transform_may_write_into_the_mask(torch, places):
    def without_first(sample):
        sample["valid"][:2] = False
        return sample

    dataset = em.BlockDataset([(places["fine"], 1)], shape=12, length=8, transform=without_first)
    (batch,) = em.BlockStream(dataset, batch_size=8)
    assert not batch["valid"][:, :2].any()
    assert batch["valid"][:, 2:].all()


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_a_transform_may_keep_what_it_gives(torch, places, prefetch):
    """It writes into a buffer of its own, sample by sample, which holds another batch when this one is used."""
    ring = np.zeros((4, 12, 12, 12), "uint8")

    def into_ring(sample):
        row = ring[sample["info"]["index"] % 4]
        row[...] = sample["data"]
        return {**sample, "data": row}

    plain = em.BlockDataset([(places["fine"], 1)], shape=12, length=24, seed=3)
    ringed = em.BlockDataset([(places["fine"], 1)], shape=12, length=24, seed=3, transform=into_ring)
    expected = [batch["data"].numpy().copy() for batch in em.BlockStream(plain, batch_size=4)]
    found = [batch["data"] for batch in em.BlockStream(ringed, batch_size=4, prefetch=prefetch)]
    assert all((np.asarray(a) == b).all() for a, b in zip(found, expected, strict=True))


def test_what_a_transform_kept_is_not_the_trainers(torch, places):
    """Who mixes samples keeps one; the trainer works on its batch in place."""
    kept = []

    def keeping(sample):
        kept.append((sample["data"], sample["data"].copy()))
        return sample

    dataset = em.BlockDataset([(places["fine"], 1)], shape=12, length=24, transform=keeping)
    for batch in em.BlockStream(dataset, batch_size=4):
        batch["data"].zero_()
    assert all((sample == before).all() for sample, before in kept)


def test_masks_of_several_shapes_are_no_batch(torch, places):
    def cut(sample):
        return {**sample, "valid": sample["valid"][: 3 + sample["info"]["index"] % 2]}

    dataset = em.BlockDataset([(places["fine"], 1)], shape=12, length=4, transform=cut)
    with pytest.raises(Mismatch, match="valid is of several shapes"):
        list(em.BlockStream(dataset, batch_size=4))


def test_few_slots_are_kept(torch):
    """Somebody who collected ten batches does not leave ten behind."""
    slots, voxels = Slots(), textured((2, 80, 80, 80))
    collected = [received(slots.tensor(voxels)) for _ in range(10)]
    assert len(slots._slots) == 10
    del collected
    slots.tensor(voxels)
    assert len(slots._slots) == SPARE_SLOTS + 1


# -- several volumes


def test_volumes_mixed_at_one_voxel_size(places):
    """The 8 nm volume gives its level 1, the 20 nm volume is resampled; three to one, in one batch."""
    sources = [(places["fine"], 3), (places["coarse"], 1)]
    dataset = em.BlockDataset(sources, shape=12, voxel_size_nm=16, length=200, seed=1)
    (batch,) = em.BlockStream(dataset, batch_size=200)
    drawn = Counter(info["volume"] for info in batch["info"])
    assert drawn["fine"] / 200 == pytest.approx(0.75, abs=0.1)
    coarse = em.open(places["coarse"])
    for info, voxels in zip(batch["info"], np.asarray(batch["data"]), strict=True):
        assert info["voxel_size_nm"] == [16, 16, 16]
        lengths = np.subtract(info["stop_nm"], info["start_nm"])
        assert lengths == pytest.approx([192, 192, 192], abs=1e-9)
        if info["volume"] == "fine":
            assert info["level"] == 1
        else:
            center = np.add(info["start_nm"], info["stop_nm"]) / 2
            block = coarse.read(center_nm=center, shape=12, voxel_size_nm=16, resample=True)
            assert (voxels == block.data).all()


def test_types_are_not_mixed_silently(places):
    """uint8 with int16: an error where batches are made, unless one type is asked for."""
    sources = [(places["fine"], 1), (places["deep"], 1)]
    mixed = em.BlockDataset(sources, shape=8, length=40)
    assert {str(mixed[n]["data"].dtype).removeprefix("torch.") for n in range(40)} == {"uint8", "int16"}
    with pytest.raises(Mismatch, match="hold int16, uint8"):
        em.BlockStream(mixed)
    with pytest.raises(Mismatch, match=r"data is of several types \(.*int16 of deep"):
        collate(mixed.__getitems__(range(40)))
    for options, name in (({"dtype": "int16"}, "int16"), ({"normalize": (0, 255)}, "float32")):
        (batch,) = em.BlockStream(em.BlockDataset(sources, shape=8, length=40, **options), batch_size=40)
        assert str(batch["data"].dtype).removeprefix("torch.") == name


def test_labels_come_with_their_volume_alone(places):
    """By nanometres where a volume has labels; 0 and not valid where it has none."""
    sources = [(places["fine"], 1), (places["coarse"], 1)]
    dataset = em.BlockDataset(sources, shape=10, length=30, labels={"fine": places["nuc"]})
    (batch,) = em.BlockStream(dataset, batch_size=30)
    volume = em.open(places["fine"])
    for number, info in enumerate(batch["info"]):
        labels, valid = (np.asarray(batch[key][number]) for key in ("labels", "labels_valid"))
        if info["volume"] == "coarse":
            assert not labels.any() and not valid.any()
        else:
            assert valid.all()
            assert (labels == volume.read(info["start"], shape=10, labels=places["nuc"]).labels).all()
    assert {info["volume"] for info in batch["info"]} == {"fine", "coarse"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [("nuc", "goes with one volume, here are"), ({"hemibrain": "nuc"}, "'hemibrain', which is not among")],
    ids=["for all", "of a stranger"],
)
def test_labels_of_nothing(places, labels, message):
    """Labels of one volume are never read at another's places."""
    with pytest.raises(Mismatch, match=message):
        em.BlockDataset([(places["fine"], 1), (places["coarse"], 1)], shape=10, labels=labels)


@pytest.fixture(scope="module")
def namesakes(tmp_path_factory) -> list[str]:
    """Two volumes called raw.zarr, with labels that are everywhere 1 and everywhere 2."""
    base = tmp_path_factory.mktemp("namesakes")
    for number, folder in enumerate("ab", 1):
        write(base / folder / "raw.zarr", textured((16, 16, 16), seed=number), levels=1)
        write(base / folder / "seg.zarr", np.full((16, 16, 16), number, "uint32"), levels=1, kind="nearest")
    return [str(base / folder) for folder in "ab"]


def test_labels_are_not_those_of_a_namesake(namesakes):
    """Of two volumes of one name only that whose address is given has labels; the other's are not valid."""
    a, b = (f"{folder}/raw.zarr" for folder in namesakes)
    dataset = em.BlockDataset([(a, 1), (b, 1)], shape=8, length=20, labels={b: f"{namesakes[1]}/seg.zarr"})
    voxels = em.open(b).read((0, 0, 0), shape=16).data
    seen = set()
    for sample in dataset:
        at = tuple(slice(n, n + 8) for n in sample["info"]["start"])
        is_b = bool((np.asarray(sample["data"]) == voxels[at]).all())
        assert np.unique(sample["labels"]).tolist() == ([2] if is_b else [0])
        assert np.asarray(sample["labels_valid"]).all() == is_b
        seen.add(is_b)
    assert seen == {True, False}


def test_namesakes_have_to_be_told_apart(namesakes):
    """Neither one set of labels for both, nor labels for a name that both have."""
    sources, seg = [(f"{folder}/raw.zarr", 1) for folder in namesakes], f"{namesakes[0]}/seg.zarr"
    with pytest.raises(Mismatch, match="goes with one volume, here are"):
        em.BlockDataset(sources, shape=8, labels=seg)
    with pytest.raises(Mismatch, match="write its whole address"):
        em.BlockDataset(sources, shape=8, labels={"raw.zarr": seg})


def flipped(sample):
    """As a user writes it: along any axis, decided by the sample's own seed."""
    generator = np.random.default_rng(sample["info"]["seed"])
    axes = [axis for axis in range(3) if generator.random() < 0.5]
    return {**sample, "data": np.flip(sample["data"], axes), "flipped": len(axes)}


def test_augmentation_repeats_itself(torch, places):
    """In workers, too; what it returns is used, arrays become tensors, the rest a list."""
    made = {"shape": 8, "length": 12, "seed": 3}
    plain = em.BlockDataset([(places["fine"], 1)], **made)
    augmented = em.BlockDataset([(places["fine"], 1)], **made, transform=flipped)
    stream = em.BlockStream(augmented, batch_size=6)
    batches = list(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2))
    assert [identity(batch) for batch in batches] == [identity(batch) for batch in stream]
    assert set(batches[0]["flipped"]) > {1}
    for n, voxels in enumerate(np.concatenate([batch["data"] for batch in batches])):
        assert sorted(voxels.ravel()) == sorted(np.asarray(plain[n]["data"]).ravel())


# -- by SQL


def test_each_row_once(catalog):
    """An epoch gives every selected block once, the next one in another order; other columns arrive, NULL as ""."""
    dataset = em.BlockDataset.from_sql("from blocks", shape=16, catalog=catalog, seed=5)
    assert len(dataset) == 27 + 8 and not dataset.left_out
    orders = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        (batch,) = em.BlockStream(dataset, batch_size=99)
        orders.append([(info["volume"], info["id"]) for info in batch["info"]])
        assert all(info["split"] == ("train" if info["volume"] == "fine" else "") for info in batch["info"])
    assert set(orders[0]) == {("fine", n) for n in range(27)} | {("coarse", n) for n in range(8)}
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_the_order_is_not_the_querys(catalog):
    """However the rows come, the n-th sample is the same."""
    first, *others = (
        identity(em.BlockDataset.from_sql(sql, shape=16, catalog=catalog).batch(SamplerState(0), range(35)))
        for sql in ("from blocks", "from blocks order by id desc", "from blocks order by hash(id)")
    )
    assert others == [first, first]


def test_rows_by_weight(catalog):
    """With repetition, as often as they weigh; what weighs 0 never."""
    sql = "select *, case when name like '%coarse' then 0 when id < 9 then 3 else 1 end as weight from blocks"
    dataset = em.BlockDataset.from_sql(sql, shape=16, catalog=catalog, weights="weight")
    drawn = Counter()
    for epoch in range(40):
        dataset.set_epoch(epoch)
        drawn.update(dataset._plan.place(0, epoch, n).row for n in range(len(dataset)))
    rows = {row: dataset._plan.describe(row) for row in drawn}
    heavy = sum(count for row, count in drawn.items() if rows[row]["id"] < 9)
    assert {dataset._plan.sources[dataset._plan.place(0, 0, n).source].volume.name for n in range(35)} == {"fine"}
    assert heavy / drawn.total() == pytest.approx(27 / 45, abs=0.04)


def test_rows_at_a_common_voxel_size(catalog):
    """Blocks of 16 nm begin where the rows' boxes do: level 1 of one volume, the other resampled."""
    dataset = em.BlockDataset.from_sql("from blocks", shape=8, voxel_size_nm=16, catalog=catalog)
    (batch,) = em.BlockStream(dataset, batch_size=99)
    for info in batch["info"]:
        corner = [
            16 * n * (8 if info["volume"] == "fine" else 20)
            for n in np.unravel_index(info["id"], SIDES[info["volume"]])
        ]
        assert info["start_nm"] == pytest.approx(corner, abs=1e-9)
        assert info["voxel_size_nm"] == [16, 16, 16]
    assert len(batch["info"]) == 35


SIDES = {"fine": (3, 3, 3), "coarse": (2, 2, 2)}


def test_blocks_larger_than_their_rows_are_told(catalog):
    """Train and test would share voxels."""
    with pytest.warns(UserWarning, match="train, val and test may share voxels"):
        em.BlockDataset.from_sql("from blocks where id = 0", shape=20, catalog=catalog)


def test_what_cannot_be_read_is_named(tmp_path, places):
    """A volume that is too thin, blocks with holes, labels among images, the same block again; drawn are the others."""
    rows = grid_rows(places["fine"], (48, 48, 48)) + grid_rows(places["thin"], (4, 64, 64))
    rows += grid_rows(places["nuc"], (24, 24, 24)) + grid_rows(places["fine"], (48, 48, 48))[:2]
    rows[3]["coverage"] = 0.999
    catalog = write_catalog(tmp_path / "metadata.duckdb", rows)
    with pytest.warns(UserWarning, match=r"16 of thin: .*shape=\(4, 16, 16\).*'reflect'\.$"):
        dataset = em.BlockDataset.from_sql("from blocks", shape=16, catalog=catalog)
    assert {(one.name, one.blocks): one.reason.partition(";")[0] for one in dataset.left_out} == {
        ("fine", 2): "selected more than once",
        ("fine", 1): "voxels are missing",
        ("nuc", 1): "it holds labels, others images",
        ("thin", 16): "level 0 has (4, 64, 64) voxels (z, y, x), a block needs (16, 16, 16)",
    }
    (batch,) = em.BlockStream(dataset, batch_size=99)
    assert sorted(info["id"] for info in batch["info"]) == [n for n in range(27) if n != 3]


def test_thin_volumes_with_padding(tmp_path, places):
    """`pad` takes them, and `valid` tells what is real."""
    catalog = write_catalog(tmp_path / "metadata.duckdb", grid_rows(places["thin"], (4, 64, 64)))
    with pytest.warns(UserWarning, match="larger than the boxes of their rows"):
        dataset = em.BlockDataset.from_sql("from blocks", shape=16, catalog=catalog, pad="constant")
    (batch,) = em.BlockStream(dataset, batch_size=99)
    valid = np.asarray(batch["valid"])
    assert valid[:, :4].all() and not valid[:, 4:].any()


@pytest.mark.parametrize(
    ("sql", "error", "message"),
    [
        ("select name, level from blocks", Malformed, r"without \['start_z', 'start_y', 'start_x'\]"),
        ("from blocks where id > 99", Mismatch, "gives no row"),
        ("from nothing", Malformed, "nothing does not exist"),
        ("select * replace ('zero' as level) from blocks", Malformed, "level is (object|str) .* whole numbers"),
        ("select * replace (0.5 as start_x) from blocks", Malformed, "start_x is float64 .* whole numbers"),
        ("select * replace (null::int as start_y) from blocks", Malformed, "start_y is NULL in 35"),
        ("select * replace (level + 7 as level) from blocks", Mismatch, "levels 0 to 1.* 7 to 7"),
        ("select * replace (start_z + 999 as start_z) from blocks", Mismatch, "none is left: .*leave the volume"),
        ("select * replace ('no_such_dataset' as name) from blocks", Unavailable, "no_such_dataset"),
        ("drop table blocks", Malformed, "only read"),
    ],
    ids=["columns", "empty", "table", "words", "fractions", "null", "levels", "outside", "unknown", "no question"],
)
def test_queries_that_select_nothing(catalog, sql, error, message):
    """One sentence with what is wrong."""
    with pytest.raises(error, match=message):
        em.BlockDataset.from_sql(sql, shape=16, catalog=catalog)


def test_torch_collates_rows_with_null(torch, catalog):
    """NULL is NaN among numbers and "" among texts, a column without any value is left out."""
    sql = """
        select name, id, level, start_z, start_y, start_x, split, null::double as mean, null::varchar as license,
        case when id % 2 = 0 then id end as even, case when id % 2 = 0 then [1.5::float, 2] end as features from blocks
    """
    dataset = em.BlockDataset.from_sql(sql, shape=16, catalog=catalog)
    (batch,) = torch.utils.data.DataLoader(dataset, batch_size=35)
    info = batch["info"]
    assert batch["data"].shape == (35, 16, 16, 16)
    assert not {"mean", "license"} & set(info)
    assert set(info["split"]) == {"train", ""}
    for number, even, first in zip(info["id"], info["even"], info["features"][0], strict=True):
        is_even = int(number) % 2 == 0
        assert bool(even == number) == is_even == (not even.isnan()) == bool(first == 1.5) == (not first.isnan())


# -- missing voxels


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> tuple:
    """A dataset in the store, of which the publisher lacks one chunk of 64: its settings and the chunk's box."""
    base = tmp_path_factory.mktemp("sparse")
    voxels, hole = textured((32, 32, 32)), Box((8, 16, 8), (16, 24, 16))
    with FaultyServer(base / "site") as server:
        array = zarr.create_array(
            str(server.folder / "em"), shape=voxels.shape, chunks=(8, 8, 8), dtype="uint8", zarr_format=2, fill_value=0
        )
        for cell in Box.from_shape(voxels.shape).cells((8, 8, 8)):
            box = Box.from_shape((8, 8, 8), at=tuple(8 * n for n in cell))
            if box != hole:
                array[box.slices] = voxels[box.slices]
        settings = quick_settings(base / "data")
        record, _ = materialize(DatasetSpec.model_validate(sparse_spec(server.url)), settings)
    assert record.status == "complete"
    return settings, hole


def sparse_spec(url: str) -> dict:
    values = yaml.safe_load((PACKAGED_DATASETS / "jrc_mus_nacc_2.yaml").read_text())
    del values["volumes"]
    return values | {
        "name": "sparse",
        "output": {"shard": [16, 16, 16], "chunk": [8, 8, 8]},
        "source": {"kind": "zarr", "url": url, "group": "em", "level": 0},
        "expected": {"source_shape": [32, 32, 32], "dtype": "uint8", "voxel_size_nm": [8.0, 8.0, 8.0]},
    }


def test_a_block_with_a_missing_chunk_is_never_drawn(sparse):
    """Random crops of a dataset with a hole: none touches it; with `missing="mask"` some do, and the mask is exact."""
    settings, hole = sparse
    made = {"shape": 8, "length": 400, "settings": settings}
    (batch,) = em.BlockStream(em.BlockDataset([("sparse", 1)], **made), batch_size=400)
    boxes = [Box.from_shape((8, 8, 8), at=tuple(info["start"])) for info in batch["info"]]
    assert not any(box.intersection(hole) for box in boxes)
    assert np.asarray(batch["valid"]).all() and np.asarray(batch["data"]).all()
    (masked,) = em.BlockStream(em.BlockDataset([("sparse", 1)], **made, missing="mask"), batch_size=400)
    touching = 0
    for info, valid in zip(masked["info"], np.asarray(masked["valid"]), strict=True):
        box = Box.from_shape((8, 8, 8), at=tuple(info["start"]))
        part = box.intersection(hole)
        assert (~valid).sum() == (part.voxels if part else 0)
        touching += part is not None
    assert touching > 40


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> str:
    """A Zarr of somebody else that leaves out one of its 27 chunks: nobody knows before it is read."""
    folder = tmp_path_factory.mktemp("foreign") / "foreign.zarr"
    return str(write_ome_zarr(folder, [textured((48, 48, 48))], chunk=CHUNK, absent=[(1, 1, 1)]))


@pytest.mark.parametrize(
    ("size", "pad"), [(None, None), (12.0, None), (None, "constant")], ids=["as stored", "resampled", "padded"]
)
def test_a_hole_that_only_reading_finds_is_never_drawn(foreign, size, pad):
    """Another place is drawn, the same in each batch and alone; places without a hole stay what they were."""
    made = {"shape": 8, "length": 60, "seed": 3, "voxel_size_nm": size, "pad": pad}
    dataset = em.BlockDataset([(foreign, 1)], **made)
    (batch,) = em.BlockStream(dataset, batch_size=60)
    assert np.asarray(batch["valid"]).all() and np.asarray(batch["data"]).all()
    assert [identity(collate([dataset[n]])) for n in range(60)] == [
        identity(collate([sample])) for sample in dataset.__getitems__(range(60))
    ]
    (masked,) = em.BlockStream(em.BlockDataset([(foreign, 1)], **made | {"missing": "mask"}), batch_size=60)
    is_whole = [bool(np.asarray(valid).all()) for valid in masked["valid"]]
    assert 0 < is_whole.count(False) < 30
    for one, other, same in zip(batch["info"], masked["info"], is_whole, strict=True):
        assert (one["start_nm"] == other["start_nm"]) == same


def test_a_volume_that_is_hardly_there(tmp_path):
    """After some places that were read in vain it is given up, with what can be done."""
    absent = list(itertools.product(range(2), range(2), range(2)))
    folder = write_ome_zarr(tmp_path / "v.zarr", [textured((32, 32, 32))], chunk=CHUNK, absent=absent)
    dataset = em.BlockDataset([(str(folder), 1)], shape=8, length=4)
    with pytest.raises(Mismatch, match=r"at 100 random places .* missing='mask'"):
        dataset[0]


def test_other_errors_are_not_drawn_again(places, monkeypatch):
    """What has nothing to do with missing voxels is said at once."""
    dataset = em.BlockDataset([(places["fine"], 1)], shape=8, length=4, normalize=(5, 5))
    drawn, place = [], dataset._plan.place
    monkeypatch.setattr(dataset._plan, "place", lambda *counter: drawn.append(counter) or place(*counter))
    with pytest.raises(Mismatch, match="give two that differ"):
        dataset[0]
    assert len(drawn) == 1


@pytest.mark.parametrize("told", [True, False], ids=["coverage told", "coverage not told"])
def test_rows_with_a_missing_chunk_are_never_drawn(sparse, tmp_path, told):
    """Whether the query selects `coverage` or not: the store knows it as well."""
    settings, hole = sparse
    rows = grid_rows("sparse", (32, 32, 32), block=8)
    for row in rows:
        box = Box.from_shape((8, 8, 8), at=(row["start_z"], row["start_y"], row["start_x"]))
        row["coverage"] = 0.0 if box == hole else 1.0
    catalog = write_catalog(tmp_path / "metadata.duckdb", rows)
    sql = "from blocks" if told else "select name, id, level, start_z, start_y, start_x from blocks"
    with pytest.warns(UserWarning, match="1 of sparse: voxels are missing"):
        dataset = em.BlockDataset.from_sql(sql, shape=8, catalog=catalog, settings=settings)
    (batch,) = em.BlockStream(dataset, batch_size=99)
    assert len(batch["info"]) == 63
    assert np.asarray(batch["data"]).all()
    masked = em.BlockDataset.from_sql(sql, shape=8, catalog=catalog, settings=settings, missing="mask")
    assert len(masked) == 64 and not masked.left_out


@pytest.mark.parametrize("size", [None, 12.0], ids=["as stored", "resampled"])
def test_holes_are_found_by_cells_as_one_by_one(sparse, monkeypatch, size):
    """Looking at cells of the volume first leaves out the very same rows."""
    settings, _ = sparse
    starts = list(itertools.product(range(0, 25, 3), repeat=3))
    columns = {"name": "sparse", "level": 0}
    frame = pd.DataFrame([columns | dict(zip(STARTS, start, strict=True)) for start in starts])
    wish = Wish(5, size, is_padded=False, is_whole=True)
    left = []
    for cell in (128, 8, 1):  # one cell for all, cells of a chunk, more cells than rows
        monkeypatch.setattr("em_assets.blocks._selection.CELL", cell)
        plan, left_out, _ = select(frame, wish, None, lambda name: em.open(name, settings=settings))
        left.append((len(plan), [(one.blocks, one.reason) for one in left_out]))
    assert left[0] == left[1] == left[2]
    assert left[0][0] < len(starts)


# -- without torch


def test_torch_is_loaded_where_it_is_used_and_not_needed(places):
    """Importing the package and the module loads no torch; where there is none, samples are NumPy arrays."""
    code = f"""
import sys
import em_assets.blocks as em
em.BlockDataset
assert "torch" not in sys.modules
sys.modules["torch"] = None  # what is not installed
import importlib.util
importlib.util.find_spec = lambda name, found=importlib.util.find_spec: None if name == "torch" else found(name)
import numpy as np
dataset = em.BlockDataset([({places["fine"]!r}, 1)], shape=8, length=9)
batches = list(em.BlockStream(dataset, batch_size=4))
assert [type(batch["data"]) for batch in batches] == [np.ndarray] * 3
print([info["start"] for batch in batches for info in batch["info"]])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    dataset = em.BlockDataset([(places["fine"], 1)], shape=8, length=9)
    assert done.stdout.strip() == str([sample["info"]["start"] for sample in dataset])


def test_a_batch_is_not_copied(fine):
    """Blocks of one volume are read into one array, which becomes the batch; unless somebody else may have them."""
    fine._has_torch = False
    samples = fine._read(7, 0, range(6))
    batch = joined(samples)
    assert np.shares_memory(batch["data"], samples[3]["data"])
    assert batch["data"].shape == (6, 12, 12, 12)
    assert not np.shares_memory(collate(samples)["data"], samples[0]["data"])
    assert not np.shares_memory(joined(samples[::-1])["data"], samples[0]["data"])
    assert (joined(samples[::-1])["data"] == batch["data"][::-1]).all()
