"""Work that is split over items: one protocol, `map(task, items)`, in threads, processes or on a cluster."""

from __future__ import annotations

import atexit
import functools
import math
import os
import pickle
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from trtq.errors import WorkerError
from trtq.lazy import defer
from trtq.temporary import open_temporary_folder

T = TypeVar("T")
R = TypeVar("R")
Variables = tuple[tuple[str, str], ...]
_PREFIX = "TRTQ_"
Shown = TypeVar("Shown", covariant=True)


class Shared(Protocol[Shown]):
    """A value that every task can take, wherever it runs; it pickles with the task."""

    def __call__(self) -> Shown:
        """Returns the value; it is not to be changed."""
        ...


class Workers(Protocol):
    """Whatever runs one task on many items: threads, processes, other machines."""

    def share(self, value: T) -> Shared[T]:
        """Returns what stands for a large value in tasks, so that it travels once to each machine."""
        ...

    def count(self) -> int:
        """Returns how many tasks can run at a time."""
        ...

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
        """Yields the result of each item, in the order of the items.

        The items may be endless: at most twice as many as there are workers are taken ahead of the results.
        The first failure in the order of the items is raised where its result would come. Then, and when the
        iterator is closed, tasks that have not started are cancelled and running ones are waited for.

        Args:
            task: For processes and other machines, a plain function whose arguments and results pickle.
            items: Are taken in the caller's thread.
        """
        ...


def make_once(make: Callable[[T], R], shared: Shared[T]) -> R:
    """Returns what a function makes of a shared value, such as a session: once a process, for many tasks.

    It is kept until something else is made so.
    """
    hashable: Any = shared
    made: R = _make_once(make, hashable)
    return made


@functools.lru_cache(maxsize=1)
def _make_once(make: Callable[[Any], Any], shared: Shared[Any]) -> Any:
    return make(shared())


@dataclass(frozen=True, slots=True, eq=False)
class Held(Generic[T]):
    """A shared value that is at hand, or is pickled with each task."""

    value: T

    def __call__(self) -> T:
        """See `Shared`."""
        return self.value


@dataclass(frozen=True)
class _Filed(Generic[T]):
    """A shared value in a temporary file, which is there as long as this object is where it was made."""

    path: Path

    def __call__(self) -> T:
        """See `Shared`."""
        value: T = _read_once(self.path)
        return value


@functools.lru_cache(maxsize=2)
def _read_once(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def _file(value: T) -> Shared[T]:
    stack = ExitStack()
    path = stack.enter_context(open_temporary_folder()) / "shared"
    path.write_bytes(pickle.dumps(value))
    filed: _Filed[T] = _Filed(path)
    weakref.finalize(filed, stack.close)
    return filed


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads of this process, `number` or as many as it has cores: for tasks that release the GIL."""

    number: int | None = None

    def share(self, value: T) -> Shared[T]:
        """See `Workers.share`."""
        return Held(value)

    def count(self) -> int:
        """See `Workers.count`."""
        return self.number or count_cores()

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
        """See `Workers.map`."""
        count = self.count()
        with ThreadPoolExecutor(count, "trtq") as pool:
            yield from _map_ordered(pool, task, items, count)


@dataclass(frozen=True, slots=True)
class Processes:
    """New processes of this machine, for tasks that hold the GIL; ONNX Runtime gets its share of the cores.

    Attributes:
        number: How many; None: one a core.
    """

    number: int | None = None

    def share(self, value: T) -> Shared[T]:
        """See `Workers.share`."""
        return _file(value)

    def count(self) -> int:
        """See `Workers.count`."""
        return self.number or count_cores()

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
        """See `Workers.map`.

        Raises:
            WorkerError: A process has died.
        """
        count = self.count()
        try:
            run = functools.partial(_run, task, find_variables())
            yield from _map_ordered(_open_processes(count), run, items, count)
        except BrokenExecutor as error:
            _open_processes.cache_clear()
            raise WorkerError(
                "a process of this machine that did a part of the work has died, perhaps for lack of "
                "memory; use fewer with --workers processes:N"
            ) from error


def find_variables() -> Variables:
    """Returns what trtq reads in the environment, such as the names of libraries of operators."""
    return tuple((name, text) for name, text in os.environ.items() if name.startswith(_PREFIX))


def take_variables(wanted: Variables) -> None:
    """Gives this process, which does a part of the work, the variables of the one that shares it."""
    for name, _ in find_variables():
        del os.environ[name]
    os.environ.update(wanted)


def _run(task: Callable[[T], R], variables: Variables, item: T) -> R:
    """Does one part of the work; this runs in a process of its own, which may be older than the variables."""
    take_variables(variables)
    return task(item)


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


_limit: int | None = None


def limit_cores(number: int | None) -> None:
    """Has this process, which does a part of the work, take no more cores than these; None: all it may."""
    global _limit
    _limit = number


def find_core_limit() -> int:
    """Returns how many cores this process may take of those that there are; 0: all."""
    return _limit or 0


def count_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns how many cores this process may use, within the quota of its container (cgroup version 2)."""
    if _limit is not None:
        return _limit
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except OSError:
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))


@functools.lru_cache(maxsize=1)
def _open_processes(count: int) -> Executor:
    """Returns processes that stay, since to start them takes seconds, for what they import.

    They end with this process, and when others are in their place and nobody uses them any more.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")  # a fork copies locks that other threads hold
    return ProcessPoolExecutor(count, context, _start_worker, (max(1, count_cores() // count),))


def _start_worker(num_cores: int) -> None:
    limit_cores(num_cores)
    defer()


atexit.register(_open_processes.cache_clear)  # while what ends them is still there


def _map_ordered(
    pool: Executor, task: Callable[[T], R], items: Iterable[T], count: int
) -> Generator[R, None, None]:
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(task, item))
            if len(waiting) >= 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        wait([future for future in waiting if not future.cancel()])
