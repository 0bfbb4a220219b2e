"""Work that is split over the machines of a Ray cluster, which is joined, never started or stopped."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import socket
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from trtq import lazy
from trtq.errors import TrtqError, UsageError, WorkerError, quote
from trtq.numbers import format_bytes, format_count
from trtq.workers import Shared, Variables, find_variables, limit_cores, take_variables

T = TypeVar("T")
R = TypeVar("R")
Versions = tuple[tuple[str, str], ...]

_WORK = "sharing work over a cluster"
RETRIES = 5
"""How often a task is begun again when its worker or its machine is gone."""
_PATIENCE_SECONDS, _FINISHING_SECONDS = 10.0, 2.0
_DECIDING = ("trtq", "numpy", "onnxruntime")
"""Packages of which another version may compute something else."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a cluster, and all that it has of Ray's resources: "CPU", "memory" in bytes, its own."""

    address: str
    resources: Mapping[str, float]

    def count_tasks(self, cpus: int, memory_bytes: int) -> int:
        """Returns how many tasks of this size it has room for at a time; 0: not even for one."""
        cores, memory = self.resources.get("CPU", 0), self.resources.get("memory", 0)
        return min(int(cores) // cpus, int(memory) // memory_bytes if memory_bytes else int(cores))


def refuse_too_large(
    what: str, nodes: Sequence[Node], cpus: int, memory_bytes: int = 0, advice: str = "fewer --worker-cpus"
) -> None:
    """Refuses a task that no machine has the room for: it would wait for ever.

    Args:
        what: The task, for the message.
        nodes: The machines that may do it.
        cpus: Of its cores.
        memory_bytes: That it asks for; 0: none.
        advice: What to give.

    Raises:
        UsageError: Each has too little memory or too few cores.
    """
    if any(node.count_tasks(cpus, memory_bytes) for node in nodes):
        return
    memory = max((node.resources.get("memory", 0) for node in nodes), default=0)
    cores = max((node.resources.get("CPU", 0) for node in nodes), default=0)
    wanted = [f"{format_bytes(memory_bytes)} and "] * bool(memory_bytes)
    there = [f"{format_bytes(memory)} and "] * bool(memory_bytes)
    raise UsageError(
        f"{what} needs {''.join(wanted)}{format_count(cpus, 'core')}, and the machines for it have at most "
        f"{''.join(there)}{cores:g}; give {advice}"
    )


@dataclass(frozen=True, slots=True)
class Ray:
    """The machines of a Ray cluster, one task for `cpus` of their cores.

    A task whose worker or machine is gone is done again elsewhere. What a task returns or raises comes back
    as a value, so that only what is lost is done again.

    Attributes:
        address: `host:port` of the cluster's head, or `ray://host:port` of its server for clients; None:
            `RAY_ADDRESS`, or the cluster that this machine belongs to.
        cpus: How many cores a task takes.
        memory_bytes: How much memory a machine must have left for a task; 0: nobody asks.
    """

    address: str | None = None
    cpus: int = 1
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UsageError(f"a task on a cluster takes at least one core, got {self.cpus}")

    def share(self, value: T) -> Shared[T]:
        """See `Workers.share`; the value lies in Ray's object store.

        Raises:
            MissingDependency, WorkerError: See `map`.
        """
        return _Stored(self.join().put(value))

    def count(self) -> int:
        """See `Workers.count`; of a cluster that grows, how many it can run now.

        Raises:
            UsageError, MissingDependency, WorkerError: See `map`.
        """
        nodes = self.list_nodes()
        refuse_too_large("a part of the work", nodes, self.cpus, self.memory_bytes)
        return sum(node.count_tasks(self.cpus, self.memory_bytes) for node in nodes)

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
        """See `Workers.map`; the task is a function that can be imported on the workers.

        Raises:
            UsageError: No machine has as many cores as a task takes.
            MissingDependency: Ray is not installed.
            WorkerError: There is no such cluster, a machine of it has other versions than this one, or a task
                was lost too often.
        """
        ray = self.join()
        run = ray.remote(_run).options(
            num_cpus=self.cpus, memory=self.memory_bytes or None, max_retries=RETRIES
        )
        here, most, waiting = find_surroundings(), 2 * self.count(), deque[Any]()
        try:
            for item in items:
                waiting.append(run.remote(task, item, self.cpus, here))
                if len(waiting) >= most:
                    yield _take(ray, waiting[0])
                    waiting.popleft()
            while waiting:
                yield _take(ray, waiting[0])
                waiting.popleft()
        finally:
            cancel_tasks(ray, waiting, force=True)

    def list_nodes(self) -> tuple[Node, ...]:
        """Returns the machines that are alive now.

        Raises:
            MissingDependency, WorkerError: See `map`.
        """
        alive = [node for node in self.join().nodes() if node["Alive"]]
        return tuple(Node(str(node["NodeManagerAddress"]), node["Resources"]) for node in alive)

    def join(self) -> Any:
        """Returns the module `ray`, whose calls go to the cluster.

        Raises:
            MissingDependency, WorkerError: See `map`.
        """
        ray = lazy.require("ray", "ray", _WORK)
        if not ray.is_initialized():
            _join(ray, self.address or os.environ.get("RAY_ADDRESS") or "auto")
        return ray


@dataclass(frozen=True, slots=True)
class _Stored:
    """A value in Ray's object store."""

    reference: Any

    def __call__(self) -> Any:
        return _fetch_once(self.reference)


@functools.lru_cache(maxsize=2)
def _fetch_once(reference: Any) -> Any:
    return lazy.require("ray", "ray", _WORK).get(reference)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of a task: its result, or the error that it raised and the machine where it did."""

    result: Any = None
    error: Exception | None = None
    machine: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a task needs to find on its worker: the same versions, and what trtq reads in the environment."""

    versions: Versions
    variables: Variables = ()


def find_surroundings() -> Surroundings:
    """Returns the surroundings of this process."""
    return Surroundings(find_versions(), find_variables())


def take_surroundings(wanted: Surroundings, machine: str) -> None:
    """Gives this process the variables that the driver has, such as those that name libraries of operators.

    Raises:
        WorkerError: The versions differ.
    """
    refuse_other_versions(wanted.versions, find_versions(), machine)
    take_variables(wanted.variables)


def find_versions() -> Versions:
    """Returns the versions of Python and of the packages that the numbers depend on."""
    found = ((name, importlib.metadata.version(name)) for name in _DECIDING)
    return (("Python", ".".join(platform.python_version_tuple()[:2])), *found)


def refuse_other_versions(here: Versions, there: Versions, machine: str) -> None:
    """Refuses a machine that may compute something else.

    Raises:
        WorkerError: A version differs.
    """
    for (name, ours), (_, theirs) in zip(here, there, strict=True):
        if ours != theirs:
            raise WorkerError(
                f"the machine {machine} of the cluster has {name} {theirs}, this one has {ours}, so that the "
                f"results could differ; install the same on both"
            )


def find_machine() -> str:
    """Returns the address of the machine of the cluster that does this part of the work."""
    return str(lazy.require("ray", "ray", _WORK).util.get_node_ip_address())


def _run(task: Callable[[Any], Any], item: Any, cpus: int, wanted: Surroundings) -> _Answer:
    """Does one part of the work; this runs on a worker."""
    machine = find_machine()
    limit_cores(cpus)
    try:
        take_surroundings(wanted, machine)
        return _Answer(task(item))
    except Exception as error:  # noqa: BLE001 - it is raised where the result is wanted
        return _Answer(error=error, machine=machine)


def _join(ray: ModuleType, address: str) -> None:
    if address == "local":
        raise WorkerError(
            "RAY_ADDRESS=local would start a cluster on this machine, which trtq does not do; use "
            "--workers processes, or the address of a cluster"
        )
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        named = "that this machine belongs to" if address == "auto" else f"at {address}"
        raise WorkerError(
            f"there is no Ray cluster {named}: {quote(error)}; give the address of yours as "
            f"RAY_ADDRESS=host:port or --workers ray://host:port"
        ) from error


def _knock(address: str) -> None:
    """Raises OSError where nobody listens, for which Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_SECONDS).close()


def cancel_tasks(ray: Any, references: Collection[Any], *, force: bool) -> list[Any]:
    """Cancels tasks whose results nobody wants, but for those about to finish, and returns which.

    Ray aborts this process if a task finishes just when it is cancelled (seen with 2.60).

    Args:
        ray: The module.
        references: The tasks.
        force: Whether their workers are killed: a task in a library hears of nothing else.
    """
    if not references:
        return []
    _, running = ray.wait([*references], num_returns=len(references), timeout=_FINISHING_SECONDS)
    for reference in running:
        ray.cancel(reference, force=force)
    return list(running)


def _take(ray: Any, reference: Any) -> Any:
    """Returns the result of a task when it is there."""
    try:
        answer: _Answer = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise WorkerError(
            f"the cluster has lost a part of the work for good: {quote(error)}; look at its machines with "
            f"`ray status`, and start the same command again"
        ) from error
    if isinstance(answer.error, TrtqError):
        raise type(answer.error)(f"on the machine {answer.machine}: {answer.error}") from answer.error
    if answer.error is not None:
        raise answer.error
    return answer.result
