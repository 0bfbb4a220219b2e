"""Work in threads, some way ahead of whoever takes the results."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def count_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns how many cores this process may use: of the machine, and of the time that its container has.

    Args:
        cgroup: The kernel's control group, version 2, of the container.
    """
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except OSError:
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))


def start_in_background(call: Callable[[], R]) -> Callable[[], R]:
    """Returns what waits for the result of a call that goes on meanwhile, in a thread of its own.

    The process may end before the call does: nobody who made a mistake waits until the data is read.
    """
    result: Future[R] = Future()

    def work() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is wanted
            result.set_exception(error)

    threading.Thread(target=work, name="trtq", daemon=True).start()
    return result.result


def map_ordered(function: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """Yields what the function returns for each item, in the order of the items.

    At most twice as many items as there are threads are taken before their results are. The first failure in
    the order of the items is raised where its result would come; what has not begun by then is left.

    Args:
        function: Is called in the threads; useful where it lets go of the GIL.
        items: Are taken in the caller's thread.
        num_threads: How many calls go on at a time.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(num_threads, "trtq")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
