"""Work that is split over items: one protocol, `map(task, items)`, in threads or in new processes."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Workers(Protocol):
    """Whatever runs one task on many items: threads, processes, other machines."""

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yields the result of each item, in the order of the items.

        The items may be endless: at most twice as many as there are workers are taken ahead of the results.
        The first failure in the order of the items is raised where its result would come. Then, and when the
        iterator is closed, tasks that have not started are cancelled and running ones are waited for.

        Args:
            task: For processes and other machines, a plain function whose arguments and results pickle.
            items: Are taken in the caller's thread.
        """
        ...


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads of this process, `count` or as many as it has cores: for tasks that release the GIL."""

    count: int | None = None

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See `Workers.map`."""
        count = self.count or count_cores()
        return _map_ordered(lambda: ThreadPoolExecutor(count, "trtq"), task, items, count)


@dataclass(frozen=True, slots=True)
class Processes:
    """New processes of this machine, `count` or one a core: for tasks that hold the GIL."""

    count: int | None = None

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See `Workers.map`. A process that dies raises `concurrent.futures.process.BrokenProcessPool`."""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        count = self.count or count_cores()
        context = multiprocessing.get_context("spawn")  # a fork copies locks that other threads hold
        return _map_ordered(lambda: ProcessPoolExecutor(count, context), task, items, count)


def start_in_background(call: Callable[[], R]) -> Callable[[], R]:
    """Starts a call in a thread of its own; returns a function that waits for its result.

    A failure is raised by that function. The process may end before the call does.
    """
    result: Future[R] = Future()

    def work() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is wanted
            result.set_exception(error)

    threading.Thread(target=work, name="trtq", daemon=True).start()
    return result.result


def count_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns how many cores this process may use, within the quota of its container (cgroup version 2)."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except OSError:
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))


def _map_ordered(
    start: Callable[[], Executor], task: Callable[[T], R], items: Iterable[T], count: int
) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    pool = start()
    try:
        for item in items:
            waiting.append(pool.submit(task, item))
            if len(waiting) >= 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
