"""An epoch's batches in order, for any number of processes: `BlockStream`."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from em_assets.blocks._samples import Sample
from em_assets.blocks._shared import SharedState
from em_assets.blocks.sampling import SamplerState
from em_assets.errors import Mismatch

if TYPE_CHECKING:
    from em_assets.blocks.dataset import BlockDataset

Task = tuple[SamplerState, range]
"""One batch: the state before its step, and the numbers of its samples."""


class BlockStream:
    """An epoch's batches, one after the other: for `DataLoader(stream, batch_size=None, num_workers=...)`, or a `for`.

    The sequence is the same for any number of workers and any way to start them: of W workers, number w reads the
    batches w, w + W, w + 2 W ... and a DataLoader takes from them in turn. (That is why the stream makes the batches,
    and why the DataLoader must keep its `in_order=True`.) A batch is a dict as a sample, each array with one more axis
    in front, `info` a list; and `state`: the three integers to go on with after it. So a training run saves
    `batch["state"]` with its weights, and later begins with `stream.load_state_dict(saved)`, in the middle of the
    epoch, whatever the workers were and are.

    Each iteration begins at the state that was set last, and ends with the epoch; then `set_epoch(epoch + 1)`.

    Several processes that train together (`rank` of `ranks`) share each step of `ranks` * `batch_size` samples; an
    incomplete last step is left out then, as with `drop_last`, so that all take equally many steps.

    Memory: a batch takes `batch_size` * voxels * (bytes of a voxel; 1 more for a mask, 1 to 9 more for labels). Beside
    the one in use there are `prefetch` of them without workers; with W workers W * (2 + the DataLoader's
    `prefetch_factor`), in shared memory that is used again (`_slots.py`) and is not taken from /dev/shm. While a batch
    is read, its volumes' chunks are in work, too: one for each thread that decodes. Who keeps batches of workers for
    long, or in a process that was forked meanwhile, keeps copies (`batch["data"].clone()`): each takes open files, and
    memory is used again when the process that received it is done with it.

    Without workers a thread reads ahead, decoding on all cores, and nothing is sent between processes: that is the
    fastest way unless `transform` takes long.
    """

    def __init__(
        self,
        dataset: BlockDataset,
        *,
        batch_size: int = 32,
        drop_last: bool = False,
        prefetch: int = 1,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`prefetch`: how many batches a thread reads ahead where there are no workers."""
        if batch_size < 1 or prefetch < 0 or not 0 <= rank < ranks:
            raise Mismatch(
                f"batch_size is {batch_size}, prefetch {prefetch}, rank {rank} of {ranks}; expected at least 1, at "
                "least 0, and a rank from 0 to ranks - 1."
            )
        self.dataset = dataset
        self._batch_size, self._step = batch_size, batch_size * ranks
        self._rank, self._prefetch = rank, prefetch
        self._drops_last = drop_last or ranks > 1
        if self._drops_last and len(dataset) < self._step:
            raise Mismatch(
                f"an epoch of {len(dataset)} samples has no whole step of {self._step}, so nothing would be given; "
                "use smaller batches, or drop_last=False on one rank."
            )
        if len(dataset.types) > 1 and not dataset.is_transformed:
            raise Mismatch(
                f"the volumes hold {', '.join(sorted(dataset.types))}, which do not go into one batch; give the "
                "dataset dtype= or normalize=."
            )
        self._done = SamplerState(dataset.seed, dataset.epoch)
        self._shared = SharedState(self._done)
        _let_torch_iterate(type(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        _let_torch_iterate(type(self))

    @property
    def epoch(self) -> int:
        """Of the next iteration."""
        return self._shared.get().epoch

    def set_epoch(self, epoch: int) -> None:
        """The next iteration gives this epoch from its beginning; workers that live on give it, too."""
        self._begin_at(SamplerState(self._shared.get().seed, epoch))

    def state_dict(self) -> dict[str, int]:
        """Seed, epoch, next_index: after the batch that was last given, in this process.

        Raises Mismatch if workers read it: they are ahead of who uses the batches, so only `batch["state"]` knows.
        """
        if self._shared.is_read_by_workers:
            raise Mismatch("workers read this stream ahead of you; the state after a batch is its batch['state'].")
        return self._done.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """The next iteration goes on there. Raises Malformed on what is no state, Mismatch on another dataset's."""
        loaded = SamplerState.from_state_dict(state)
        if loaded.next_index > len(self.dataset):
            raise Mismatch(
                f"the state is {loaded.next_index} samples into an epoch of {len(self.dataset)}: it was made with "
                "another query or other volumes; use those, or begin anew."
            )
        self._begin_at(loaded)

    def _begin_at(self, state: SamplerState) -> None:
        self._shared.set(state)
        self._done = state

    def __len__(self) -> int:
        """Batches of the next iteration."""
        return self._batches_from(self._shared.get().next_index)

    def _batches_from(self, index: int) -> int:
        left = len(self.dataset) - index
        return left // self._step if self._drops_last else -(-left // self._step)

    def __iter__(self) -> Iterator[Sample]:
        state = self._shared.get()
        worker = _worker()
        if worker is None:
            return self._noted(_ahead(self._read, self._tasks(state), self._prefetch))
        self._shared.is_read_by_workers = True
        number, workers = worker
        read = partial(self._read, in_worker=True)
        return map(read, itertools.islice(self._tasks(state), number, None, workers))

    def _tasks(self, state: SamplerState) -> Iterator[Task]:
        for number in range(self._batches_from(state.next_index)):
            first = state.next_index + number * self._step
            mine = first + self._rank * self._batch_size
            numbers = range(mine, min(mine + self._batch_size, len(self.dataset)))
            yield SamplerState(state.seed, state.epoch, first), numbers

    def _read(self, task: Task, *, in_worker: bool = False) -> Sample:
        before, numbers = task
        batch = self.dataset.batch(before, numbers, in_worker=in_worker)
        return {**batch, "state": self._after(before).state_dict()}

    def _after(self, before: SamplerState) -> SamplerState:
        upto = min(before.next_index + self._step, len(self.dataset))
        if self._batches_from(upto) == 0:
            return SamplerState(before.seed, before.epoch + 1)
        return SamplerState(before.seed, before.epoch, upto)

    def _noted(self, batches: Iterator[Sample]) -> Iterator[Sample]:
        for batch in batches:
            self._done = SamplerState.from_state_dict(batch["state"])
            yield batch


def _ahead(read: Callable[[Task], Sample], tasks: Iterator[Task], prefetch: int) -> Iterator[Sample]:
    """What `read` gives for each task, in order; a thread reads `prefetch` of them ahead."""
    if prefetch == 0:
        yield from map(read, tasks)
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="em_assets-stream")
    try:
        upcoming = deque(pool.submit(read, task) for task in itertools.islice(tasks, prefetch))
        while upcoming:
            batch = upcoming.popleft().result()
            upcoming.extend(pool.submit(read, task) for task in itertools.islice(tasks, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _worker() -> tuple[int, int] | None:
    """(number, of how many) of this process among a DataLoader's workers; None where there are none."""
    torch_data = sys.modules.get("torch.utils.data")  # loaded in every worker
    info = None if torch_data is None else torch_data.get_worker_info()
    return None if info is None else (info.id, info.num_workers)


def _let_torch_iterate(stream: type[BlockStream]) -> None:
    """A DataLoader iterates only over an `IterableDataset`, and without torch there is none to inherit from."""
    if importlib.util.find_spec("torch") is not None:
        from torch.utils.data import IterableDataset

        IterableDataset.register(stream)
