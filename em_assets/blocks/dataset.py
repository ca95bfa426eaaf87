"""Blocks for training, by number: `BlockDataset`. `stream.py` makes batches of them. Both work without torch.

`sampling.py` says which block is the n-th, `_selection.py` which rows of the index can be read; here they are read.
With torch, samples hold tensors, else NumPy arrays; it is imported only where the first sample is made.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from em_assets.blocks import _memory, _slots
from em_assets.blocks._samples import Sample, Transform, as_tensor, collate, everywhere, joined, own
from em_assets.blocks._selection import LeftOut, Wish, read_frame, select
from em_assets.blocks._shared import SharedState
from em_assets.blocks.sampling import Crops, Place, Plan, SamplerState, Source, hardly_whole, random_bits
from em_assets.blocks.stream import BlockStream
from em_assets.errors import Malformed, Mismatch

if TYPE_CHECKING:
    from em_assets.blocks.asking import MissingPolicy, Normalize, Pad, Shape
    from em_assets.blocks.block import Block
    from em_assets.blocks.volume import Volume
    from em_assets.settings import Settings

__all__ = ["BlockDataset", "BlockStream", "LeftOut", "SamplerState", "collate"]

Labels = str | Mapping[str, str]
MAX_GROUPS_AT_ONCE = 8
"""So many volumes of a batch are read at once; each decodes on all cores already, but may wait for another host."""
READ_ATTEMPTS = 100
"""At so many places in a row some voxel turned out to be missing when the block was read."""
RESAMPLED_AT_ONCE = 2
"""Blocks of a volume; each takes up to 8 times its voxels in float64, some times over."""


class BlockDataset:
    """The samples of an epoch by number, 0 to `len(dataset)` - 1, already shuffled: for `DataLoader(dataset, ...)`.

    A sample is a dict: `data`, `valid` (True where a voxel is real; always there), with `labels=` also `labels` (0
    where there is none) and `labels_valid`, and `info`: `volume`, `level`, `start` (voxels), `start_nm`, `stop_nm`,
    `voxel_size_nm`, `epoch`, `index`, `seed` (a number of the sample's own, for augmentation that repeats itself), and
    the query's other columns: NULL is NaN among numbers, "" among texts, and what is NULL in every row is left out, so
    that a DataLoader can make batches of them (`info` is then a dict of tensors and lists; with `collate_fn=collate` a
    list of dicts). `transform` gets a sample with NumPy arrays and returns what to use instead; arrays become tensors
    after it if torch is installed.

    A block with missing voxels is never drawn, unless `missing="mask"`. Blocks of several volumes have one shape in
    voxels; `voxel_size_nm` gives them one size, too, from the level that has it, or resampled. The same arguments give
    the same n-th sample of an epoch in every process. It may be pickled and forked; each process opens its own files.

    To go on in the middle of an epoch, pass `sampler=range(next_index, len(dataset))`; `BlockStream` keeps count.
    """

    def __init__(
        self,
        sources: Iterable[tuple[str | os.PathLike[str] | Volume, float]],
        *,
        shape: Shape = 128,
        seed: int = 0,
        length: int | None = None,
        voxel_size_nm: float | Sequence[float] | None = None,
        pad: Pad | None = None,
        missing: MissingPolicy = "raise",
        labels: Labels | None = None,
        normalize: Normalize | None = None,
        dtype: Any = None,
        transform: Transform | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Random crops: each sample draws one of `sources`, pairs of a volume and its weight, and a place in it.

        An epoch has `length` samples (None: as many as blocks fit side by side into all volumes), drawn with
        repetition. `pad`, `missing`, `normalize`, `dtype` as in `Volume.read`. `labels` names the volume of labels of
        the one volume, or of each: `{"jrc_mus_nacc_2": "jrc_mus_nacc_2/nuc"}` (a volume's name, or its `location`);
        elsewhere `labels_valid` is False. Raises Mismatch if no block fits into one of the volumes.

        Where nobody knows what is missing before it is read (a Zarr of other people, a dataset that is not
        downloaded), a block with a hole is read in vain and another place drawn: slow if there are many.
        """
        pairs = [(_volume(source, settings), weight) for source, weight in sources]
        wish = Wish(shape, voxel_size_nm, is_padded=pad is not None, is_whole=missing != "mask")
        plan = Crops(
            [Source.of(volume, wish.shape, wish.voxel_size_nm) for volume, _ in pairs],
            [weight for _, weight in pairs],
            length=length,
            is_padded=wish.is_padded,
            is_whole=wish.is_whole,
        )
        options = {"pad": pad, "missing": missing, "normalize": normalize, "dtype": dtype}
        self._set_up(plan, seed, options, _label_volumes(labels, plan, (), settings), transform)

    @classmethod
    def from_sql(
        cls,
        sql: str,
        *,
        shape: Shape = 128,
        seed: int = 0,
        catalog: str | os.PathLike[str] | None = None,
        voxel_size_nm: float | Sequence[float] | None = None,
        weights: str | None = None,
        pad: Pad | None = None,
        missing: MissingPolicy = "raise",
        labels: Labels | None = None,
        normalize: Normalize | None = None,
        dtype: Any = None,
        transform: Transform | None = None,
        settings: Settings | None = None,
    ) -> Self:
        """The blocks that a query of the catalogue's table `blocks` selects, each once per epoch.

        The query gives `name, level, start_z, start_y, start_x`; other columns arrive in `info` (select only those you
        use: a copy goes to each worker). With `weights`, the name of a column, an epoch draws as many rows as there
        are, by weight and with repetition. `catalog` is the database's file (None: the store's).

        Rows that cannot be read as wished are told by a warning and in `left_out`: where the volume is too small
        without `pad`, voxels are missing, labels stand among images. What is missing is known from the column
        `coverage` if it is selected, and of datasets in the store; elsewhere such a sample raises Mismatch. Blocks
        begin where the rows' boxes do; if they are larger, a warning says so, because then the splits' boxes may
        overlap (known if `shape_z, shape_y, shape_x` are selected). Raises Malformed on SQL that is none, Mismatch if
        no block is left.
        """
        wish = Wish(shape, voxel_size_nm, is_padded=pad is not None, is_whole=missing != "mask")
        frame = read_frame(sql, _catalog(catalog, settings))
        plan, left_out, reaches = select(frame, wish, weights, partial(_volume, settings=settings))
        if left_out:
            warnings.warn("blocks that are never drawn: " + "; ".join(map(str, left_out)) + ".", stacklevel=2)
        if reaches:
            warnings.warn(
                "blocks are larger than the boxes of their rows, so train, val and test may share voxels; ask for a "
                "smaller shape, or select rows of a coarser level.",
                stacklevel=2,
            )
        options = {"pad": pad, "missing": missing, "normalize": normalize, "dtype": dtype}
        dataset = cls.__new__(cls)
        dataset._set_up(plan, seed, options, _label_volumes(labels, plan, left_out, settings), transform)  # noqa: SLF001
        dataset.left_out = tuple(left_out)
        return dataset

    def _set_up(
        self,
        plan: Plan,
        seed: int,
        options: dict[str, Any],
        labels: tuple[Volume | None, ...],
        transform: Transform | None,
    ) -> None:
        self.left_out: tuple[LeftOut, ...] = ()
        """What a query selected and is never drawn, with the reason."""
        self._plan, self._options, self._labels, self._transform = plan, options, labels, transform
        self._labels_type = _common_type(volume for volume in labels if volume is not None)
        self._redraws = isinstance(plan, Crops) and options["missing"] == "raise"
        self._shared = SharedState(SamplerState(seed))
        self._has_torch = importlib.util.find_spec("torch") is not None

    def __len__(self) -> int:
        """Samples per epoch."""
        return len(self._plan)

    @property
    def seed(self) -> int:
        return self._shared.get().seed

    @property
    def epoch(self) -> int:
        return self._shared.get().epoch

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's samples are given from now on, by workers that live on (`persistent_workers`) as well."""
        self._shared.set(SamplerState(self.seed, epoch))

    def __getitem__(self, n: int) -> Sample:
        """The n-th sample of the epoch."""
        return self.__getitems__([n])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample]:
        """Several samples, read together; a `DataLoader` asks so for a batch."""
        state = self._shared.get()
        return [self._as_tensors(own(sample)) for sample in self._read(state.seed, state.epoch, numbers)]

    @property
    def types(self) -> set[str]:
        """NumPy's names of what `data` comes in, before `transform`."""
        if self._options["dtype"] is not None:
            return {np.dtype(self._options["dtype"]).name}
        if self._options["normalize"] is not None:
            return {"float32"}
        return {source.volume.dtype.name for source in self._plan.sources}

    @property
    def is_transformed(self) -> bool:
        return self._transform is not None

    def batch(self, state: SamplerState, numbers: Sequence[int], *, in_worker: bool = False) -> Sample:
        """Samples of an epoch as one: `data` (n, z, y, x) and so on, `info` a list. `state` says seed and epoch.

        `in_worker`: it is to be sent to the process that trains.
        """
        slots = _slots.slots_of_this_process() if in_worker and self._has_torch and _slots.are_possible() else None
        if slots is not None:
            _memory.take_from(slots.empty)
        # a transform may keep what it was given, and give what it keeps
        join = joined if self._transform is None else collate
        collated = own(join(self._read(state.seed, state.epoch, numbers)))
        if slots is not None:
            arrays = {key: value for key, value in collated.items() if isinstance(value, np.ndarray)}
            collated |= {key: slots.tensor(array) for key, array in arrays.items()}
        return self._as_tensors(collated)

    def _as_tensors(self, sample: Sample) -> Sample:
        return {key: as_tensor(value) for key, value in sample.items()} if self._has_torch else sample

    def _read(self, seed: int, epoch: int, numbers: Sequence[int]) -> list[Sample]:
        samples = []
        for n, (place, block) in zip(numbers, self._drawn(seed, epoch, numbers), strict=True):
            about = {"epoch": epoch, "index": int(n), "seed": random_bits("augment", seed, epoch, int(n)) >> 65}
            sample = self._sample(block, {**self._described(place), **_where(block), **about})
            samples.append(sample if self._transform is None else self._transform(own(sample)))
        return samples

    def _drawn(self, seed: int, epoch: int, numbers: Sequence[int]) -> list[tuple[Place, Block]]:
        places = [self._plan.place(seed, epoch, int(n)) for n in numbers]
        try:
            return list(zip(places, self._blocks(places), strict=True))
        except Mismatch:  # a batch has one error, which does not say whose it is
            if not self._redraws:
                raise
        return [self._whole(seed, epoch, int(n), place) for n, place in zip(numbers, places, strict=True)]

    def _whole(self, seed: int, epoch: int, n: int, place: Place) -> tuple[Place, Block]:
        """The block at the first place, from this one on, where no voxel turns out to be missing."""
        for _ in range(READ_ATTEMPTS):
            try:
                return place, self._of_source([place])[0]
            except Mismatch:
                self._of_source([place], missing="mask")  # raises if it is not for missing voxels
            place = self._plan.place(seed, epoch, n, place.attempt + 1)
        raise Mismatch(hardly_whole(self._plan.sources[place.source], READ_ATTEMPTS))

    def _described(self, place: Place) -> dict[str, Any]:
        return {} if place.row is None else self._plan.describe(place.row)

    def _sample(self, block: Block, info: dict[str, Any]) -> Sample:
        shape = block.data.shape
        sample = {"data": block.data, "valid": everywhere(shape, value=True) if block.valid is None else block.valid}
        if self._labels_type is not None:
            sample |= self._labels_of(block, self._labels_type)
        return {**sample, "info": info}

    def _labels_of(self, block: Block, dtype: np.dtype[Any]) -> Sample:
        shape = block.data.shape
        if block.labels is None:  # no labels go with this volume
            return {"labels": np.zeros(shape, dtype), "labels_valid": everywhere(shape, value=False)}
        mask = everywhere(shape, value=True) if block.labels_valid is None else block.labels_valid
        return {"labels": block.labels.astype(dtype, copy=False), "labels_valid": mask}

    def _blocks(self, places: Sequence[Place]) -> list[Block]:
        """The blocks of some places, in their order; those of one source are read together, all sources at once."""
        groups: dict[int, list[int]] = {}
        for number, place in enumerate(places):
            groups.setdefault(place.source, []).append(number)
        members = list(groups.values())
        if len(members) == 1:
            return self._of_source(places)
        with ThreadPoolExecutor(min(len(members), MAX_GROUPS_AT_ONCE), "em_assets-batch") as pool:
            found = list(pool.map(self._of_source, [[places[number] for number in group] for group in members]))
        chain = itertools.chain.from_iterable
        blocks = dict(zip(chain(members), chain(found), strict=True))
        return [blocks[number] for number in range(len(places))]

    def _of_source(self, places: Sequence[Place], **changed: Any) -> list[Block]:
        source = self._plan.sources[places[0].source]
        options = {**self._options, **changed, "shape": source.shape, "labels": self._labels[places[0].source]}
        if not source.is_resampled:
            starts = [place.start for place in places if place.start is not None]
            (batch,) = source.volume.read_many(starts, level=source.level, batch_size=len(starts), **options)
            return list(batch)
        read = partial(source.volume.read, voxel_size_nm=source.voxel_size_nm, resample=True, **options)
        with ThreadPoolExecutor(min(len(places), RESAMPLED_AT_ONCE), "em_assets-resample") as pool:
            return list(pool.map(lambda place: read(center_nm=source.center_nm(place)), places))


def _where(block: Block) -> dict[str, Any]:
    """Lists, because a DataLoader makes lists of tuples."""
    return {
        "volume": block.volume,
        "level": block.level,
        "start": list(block.box.start),
        "start_nm": list(block.box_nm.start),
        "stop_nm": list(block.box_nm.stop),
        "voxel_size_nm": list(block.voxel_size_nm),
    }


def _volume(source: str | os.PathLike[str] | Volume, settings: Settings | None) -> Volume:
    from em_assets.blocks.opening import open as open_volume

    return open_volume(source, settings=settings) if isinstance(source, str | os.PathLike) else source


def _catalog(catalog: str | os.PathLike[str] | None, settings: Settings | None) -> Path:
    if catalog is not None:
        return Path(catalog)
    from em_assets.catalog.query import catalog_path
    from em_assets.settings import read_settings
    from em_assets.store import open_store

    settings = settings or read_settings()
    return catalog_path(open_store(settings.root), settings)


def _label_volumes(
    labels: Labels | None, plan: Plan, left_out: Iterable[LeftOut], settings: Settings | None
) -> tuple[Volume | None, ...]:
    """Of each of the plan's sources the volume of labels that goes with it."""
    if labels is None:
        return (None,) * len(plan.sources)
    names = {source.volume.location: source.volume.name for source in plan.sources}
    if isinstance(labels, str):
        if len(names) > 1:
            raise Mismatch(
                f"labels={labels!r} goes with one volume, here are {sorted(names)}; pass labels={{volume: labels}}."
            )
        labels = dict.fromkeys(names, labels)
    known = names | {one.location: one.name for one in left_out}
    places = {key: [place for place, name in known.items() if key in (place, name)] for key in labels}
    for key, found in places.items():
        if not found:
            raise Mismatch(f"labels= names the volume {key!r}, which is not among {sorted(known)}; correct the name.")
        if len(found) > 1:
            raise Mismatch(f"labels= names {key!r}, which may be any of {sorted(found)}; write its whole address.")
    opened = {found[0]: _volume(labels[key], settings) for key, found in places.items() if found[0] in names}
    return tuple(opened.get(source.volume.location) for source in plan.sources)


def _common_type(volumes: Iterable[Volume]) -> np.dtype[Any] | None:
    types = sorted({volume.dtype.str for volume in volumes})
    if not types:
        return None
    common: np.dtype[Any] = np.result_type(*types)
    if common.kind not in "biu":
        raise Malformed(f"the volumes of labels are {types}, which no integer type holds together; take some of them.")
    return common
