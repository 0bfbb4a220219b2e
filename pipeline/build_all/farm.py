"""Several jobs of the command line on a Ray cluster, each on a machine of the kind that it needs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trtq.cluster import (
    RETRIES,
    Node,
    Ray,
    Surroundings,
    cancel_tasks,
    find_machine,
    find_surroundings,
    refuse_too_large,
    take_surroundings,
)
from trtq.errors import ArtifactError, TrtqError, UsageError, WorkerError, quote
from trtq.files import hash_file, is_file
from trtq.pipeline.bench.machine import describe_machine
from trtq.pipeline.build_all import (
    CommandJob,
    CommandOutcome,
    find_answer,
    find_forerunner,
    list_lost,
    list_ready,
    run_alone,
)
from trtq.temporary import open_temporary_file

_SHARE = 0.001
"""Of a custom resource, and of a GPU that others may use too: Ray takes steps of 0.0001."""
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 15.0
_OF_RAY = ("CPU", "GPU", "memory", "object_store_memory")


@dataclass(frozen=True, slots=True)
class Farm:
    """The cluster, and what holds for all jobs on it.

    Attributes:
        cluster: Its machines; a job takes as many cores as `cluster.cpus` says.
        shared: A file in a folder that every machine must see; a probe is put beside it meanwhile.
        grows: Whether it starts machines when they are asked for: then a job may wait for one.
    """

    cluster: Ray
    shared: Path
    grows: bool = False


def run_on_farm(
    jobs: Sequence[CommandJob],
    farm: Farm,
    started: Callable[[int, str], None],
    ended: Callable[[int, CommandOutcome], None],
    note: Callable[[str], None],
) -> None:
    """Runs every job on a machine that has what it needs, whatever becomes of the others.

    A job whose worker or machine dies is begun again elsewhere. They end with this process, and when it is
    interrupted.

    Args:
        jobs: The commands; see `run_jobs` for their order.
        farm: Where they run.
        started: Gets the number of a job that begins, and the machine.
        ended: Gets the number of a job that has ended, and how.
        note: Gets what else happens.

    Raises:
        UsageError: A job can run on no machine of the cluster, which does not grow.
        ArtifactError: The folder of the shared file cannot be written to.
        MissingDependency, WorkerError: See `Ray.map`.
    """
    nodes = farm.cluster.list_nodes()
    if not farm.grows:
        for job in jobs:
            refuse_homeless(job, nodes, farm.cluster.cpus)
    with _open_probe(farm.shared) as probe:
        work = _Work(jobs, farm, probe, note)
        try:
            while work.waiting or work.running:
                for number, outcome in work.step(started):
                    work.done[number] = outcome
                    ended(number, outcome)
        finally:
            work.cancel()


@contextmanager
def _open_probe(shared: Path) -> Iterator[Path]:
    """Yields a new file beside one: who sees it sees the same folder, and no copy of it."""
    with ExitStack() as stack:
        try:
            probe = stack.enter_context(open_temporary_file(shared))
        except OSError as error:
            raise ArtifactError(
                f"cannot write to {shared.parent}: {quote(error)}; the machines of a cluster are asked "
                f"whether they see a file there"
            ) from error
        yield probe.absolute()


def refuse_homeless(job: CommandJob, nodes: Sequence[Node], cpus: int) -> None:
    """Refuses a job that no machine of a cluster has the resources for.

    Raises:
        UsageError: No machine is of its kind, or those that are have too little memory or too few cores.
    """
    ours = [node for node in nodes if _is_of_kind(node, job)]
    if not ours:
        wanted = " and ".join(job.resources)
        asked = ", ".join(f'"{name}": 1' for name in job.resources)
        raise UsageError(
            f"{job.name} is for a machine with {wanted}, which no machine of the cluster has; there "
            f"are: {_list_kinds(nodes)}; start one with ray start --resources='{{{asked}}}', or, if "
            "the cluster starts nodes on demand, add --autoscaling"
        )
    advice = "memory = in the file if that is too high an estimate, or fewer --worker-cpus"
    refuse_too_large(job.name, ours, cpus, job.memory_bytes, advice)


def _is_of_kind(node: Node, job: CommandJob) -> bool:
    return all(node.resources.get(name, 0) > 0 for name in job.resources)


def _list_kinds(nodes: Sequence[Node]) -> str:
    """Returns the custom resources that there are, and how many machines have each."""
    own = [name for node in nodes for name in node.resources if not _is_of_ray(name)]
    counts = sorted(Counter(own).items())
    return ", ".join(f"{name} ({count})" for name, count in counts) or "none with resources of their own"


def _is_of_ray(name: str) -> bool:
    return name in _OF_RAY or name.startswith("node:")


def _take_resources(job: CommandJob, nodes: Sequence[Node]) -> dict[str, Any]:
    """Returns what Ray is asked for; a GPU only where machines of this kind tell Ray of one.

    Without a GPU that it is given, Ray hides all of them from a task.
    """
    has_gpu = any(node.resources.get("GPU", 0) > 0 for node in nodes if _is_of_kind(node, job))
    gpus = 1 if job.needs_gpu else _SHARE if job.uses_gpu else 0
    return {
        "memory": job.memory_bytes,
        "resources": dict.fromkeys(job.resources, _SHARE),
        **({"num_gpus": gpus} if has_gpu and gpus else {}),
    }


@dataclass(slots=True)
class _Work:
    """The jobs on their way.

    Attributes:
        waiting: The numbers of those that have not been handed out.
        running: Those that have, by what Ray calls them; they may wait for a machine.
        done: How the others ended.
        tries: How often each was handed out.
        board: Where workers tell that they begin; None: nothing was handed out yet.
    """

    jobs: Sequence[CommandJob]
    farm: Farm
    probe: Path
    note: Callable[[str], None]
    waiting: list[int] = field(init=False)
    running: dict[Any, int] = field(default_factory=dict)
    done: dict[int, CommandOutcome] = field(default_factory=dict)
    tries: Counter[int] = field(default_factory=Counter)
    board: Any = None

    def __post_init__(self) -> None:
        self.waiting = list(range(len(self.jobs)))

    def step(self, started: Callable[[int, str], None]) -> list[tuple[int, CommandOutcome]]:
        """Hands out what may begin, waits a moment, and returns what has ended."""
        lost = list_lost(self.jobs, self.waiting, self.done)
        for number in list_ready(self.jobs, self.waiting, self.done):
            self._hand_out(number)
        found = [(number, find_forerunner(self.jobs[number], self.done)) for number in lost]
        self.waiting = [number for number in self.waiting if number not in lost]
        answers = [(self.running.pop(item), item) for item in self._wait()]
        outcomes = [(number, self._collect(number, item)) for number, item in answers]
        for number, machine in self._read_board():
            started(number, machine)
        ended = [(number, outcome) for number, outcome in outcomes if outcome is not None]
        return [*found, *ended, *self._give_up_homeless()]

    def cancel(self) -> None:
        """Ends what is under way, and lets it clear up behind itself."""
        ray = self.farm.cluster.join()
        if left := cancel_tasks(ray, self.running, force=False):
            _, left = ray.wait(left, num_returns=len(left), timeout=_PATIENCE_SECONDS)
        cancel_tasks(ray, left, force=True)

    def _hand_out(self, number: int) -> None:
        ray, job = self.farm.cluster.join(), self.jobs[number]
        if self.board is None:
            self.board = ray.remote(_Board).options(num_cpus=0).remote()
        taken = _take_resources(job, self.farm.cluster.list_nodes())
        run = ray.remote(_do_job).options(num_cpus=self.farm.cluster.cpus, max_retries=0, **taken)
        answer, cpus = find_answer(job, self.done), self.farm.cluster.cpus
        task = _Task(number, job, answer, self.probe, cpus, find_surroundings())
        self.running[run.remote(task, self.board)] = number
        self.tries[number] += 1
        self.waiting = [item for item in self.waiting if item != number]

    def _wait(self) -> list[Any]:
        if not self.running:
            return []
        ready, _ = self.farm.cluster.join().wait(list(self.running), num_returns=1, timeout=_POLL_SECONDS)
        return list(ready)

    def _read_board(self) -> list[tuple[int, str]]:
        """Returns which jobs have begun, and where; nothing if the machine that kept that is gone."""
        ray = self.farm.cluster.join()
        try:
            found: list[tuple[int, str]] = ray.get(self.board.take.remote()) if self.board is not None else []
        except ray.exceptions.RayError:
            self.board = None
            return []
        return found

    def _collect(self, number: int, reference: Any) -> CommandOutcome | None:
        """Returns how a job ended; None if it is begun again."""
        ray, job = self.farm.cluster.join(), self.jobs[number]
        try:
            outcome: CommandOutcome = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            return _fail(f"{job.name} could not begin on a machine of the cluster: {quote(error)}")
        except ray.exceptions.RayError as error:
            if self.tries[number] > RETRIES:
                return _fail(f"the cluster has lost {job.name} for good: {quote(error)}; see `ray status`")
            self.note(f"{job.name}: its worker or machine is gone; it is started again elsewhere")
            self.waiting.append(number)
            return None
        return _check_result(job, outcome)

    def _give_up_homeless(self) -> list[tuple[int, CommandOutcome]]:
        """Returns the jobs that wait for a machine of a kind of which the last one is gone."""
        if self.farm.grows:
            return []
        nodes, found = self.farm.cluster.list_nodes(), []
        for reference, number in list(self.running.items()):
            if not any(_is_of_kind(node, self.jobs[number]) for node in nodes):
                self.farm.cluster.join().cancel(reference, force=True)
                del self.running[reference]
                wanted = " and ".join(self.jobs[number].resources)
                found.append((number, _fail(f"the last machine with {wanted} has left the cluster")))
        return found


def _fail(words: str) -> CommandOutcome:
    return CommandOutcome(WorkerError.exit_code, "", f"error: {words}", 0.0, is_lost=True)


def _refuse(error: TrtqError, machine: str) -> CommandOutcome:
    return CommandOutcome(error.exit_code, "", f"error: {error}", 0.0, machine)


def _check_result(job: CommandJob, outcome: CommandOutcome) -> CommandOutcome:
    """Returns the outcome, which is a failure if its result is not seen here: it lies on that machine."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while outcome.result_sha256 and job.result is not None:
        if is_file(job.result) and hash_file(job.result) == outcome.result_sha256:
            break
        if time.monotonic() > until:
            error = ArtifactError(
                f"the machine {outcome.machine} of the cluster wrote {job.result.parent}, which is not seen "
                f"here; name an output on a file system that all machines see"
            )
            return _refuse(error, outcome.machine)
        time.sleep(_POLL_SECONDS)  # network file systems need a moment
    return outcome


class _Board:
    """Where workers tell which jobs they begin: an actor of the cluster."""

    def __init__(self) -> None:
        self._begun: list[tuple[int, str]] = []

    def tell(self, number: int, machine: str) -> None:
        """Keeps that a job has begun."""
        self._begun.append((number, machine))

    def take(self) -> list[tuple[int, str]]:
        """Returns what was told since the last call."""
        found, self._begun = self._begun, []
        return found


@dataclass(frozen=True, slots=True)
class _Task:
    """What a worker is given."""

    number: int
    job: CommandJob
    answer: str
    probe: Path
    cpus: int
    surroundings: Surroundings


def _do_job(task: _Task, board: Any) -> CommandOutcome:
    """Runs a job; this is on a worker."""
    machine = find_machine()
    board.tell.remote(task.number, machine)
    try:
        take_surroundings(task.surroundings, machine)
        refuse_unseen(task.probe, machine)
    except TrtqError as error:
        return _refuse(error, machine)
    outcome = run_alone(task.job, task.answer, task.cpus)
    result = task.job.result
    digest = hash_file(result) if result is not None and result.is_file() else ""
    return replace(outcome, machine=machine, gpu=describe_machine().gpu, result_sha256=digest)


def refuse_unseen(probe: Path, machine: str) -> None:
    """Refuses a machine that does not see a file that was just put where the work was begun.

    Raises:
        ArtifactError: The file is not there.
    """
    if not is_file(probe):
        raise ArtifactError(
            f"the machine {machine} of the cluster does not see the folder {probe.parent} as it is "
            "here; the file, the models, the data and the outputs must be on a file system that all "
            "machines see under the same paths"
        )
