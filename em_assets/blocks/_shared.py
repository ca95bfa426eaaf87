"""A `SamplerState` that a process shares with the workers it starts."""

from __future__ import annotations

from ctypes import c_uint64
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawArray
from typing import Any

from em_assets.blocks.sampling import SamplerState


class SharedState:
    """What is set in one process is seen by all: also by workers that live on from epoch to epoch.

    They get it by being forked or spawned; with any other pickle goes a copy.
    """

    def __init__(self, state: SamplerState) -> None:
        self._cells = RawArray(c_uint64, 4)
        self.set(state)

    def get(self) -> SamplerState:
        seed, epoch, next_index, _ = self._cells
        return SamplerState(seed, epoch, next_index)

    def set(self, state: SamplerState) -> None:
        self._cells[:] = [state.seed, state.epoch, state.next_index, 0]

    @property
    def is_read_by_workers(self) -> bool:
        """Since it was last set."""
        return bool(self._cells[3])

    @is_read_by_workers.setter
    def is_read_by_workers(self, value: bool) -> None:
        self._cells[3] = int(value)

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:  # a process is being started, and gets the memory itself
            return {"_cells": self._cells}
        return {"_values": list(self._cells)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._cells = state["_cells"] if "_cells" in state else RawArray(c_uint64, state["_values"])
