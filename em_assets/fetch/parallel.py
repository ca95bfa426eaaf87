"""Several requests at once, for those who need all the answers before they can go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TypeVar

from em_assets.errors import EmAssetsError
from em_assets.fetch.hosts import HostUnreachable, Interrupt

R = TypeVar("R")
Job = Callable[[Interrupt], R]


def fetch_all(jobs: Sequence[Job[R]], threads: int) -> list[R | EmAssetsError]:
    """The answer of each job, or its error. Raises HostUnreachable, and what is not ours, at once.

    The threads are daemons and their requests are cut: Ctrl-C and errors are not kept waiting by a slow server.
    """
    answers: dict[int, R | EmAssetsError] = {}
    ended: SimpleQueue[tuple[int, R | BaseException]] = SimpleQueue()
    interrupt = Interrupt()
    todo = iter(range(len(jobs)))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                index = next(todo, None)
            if index is None:
                return
            try:
                ended.put((index, jobs[index](interrupt)))
            except BaseException as error:  # noqa: BLE001  # judged below, by the caller's thread
                ended.put((index, error))

    for _ in range(min(threads, len(jobs))):
        threading.Thread(target=work, name="em_assets-fetch", daemon=True).start()
    try:
        while len(answers) < len(jobs):
            index, answer = ended.get()
            if isinstance(answer, BaseException) and (
                isinstance(answer, HostUnreachable) or not isinstance(answer, EmAssetsError)
            ):
                raise answer
            answers[index] = answer
    finally:
        interrupt.set()
    return [answers[index] for index in range(len(jobs))]
