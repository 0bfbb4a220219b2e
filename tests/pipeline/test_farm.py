"""Jobs on a cluster, with a stand-in for Ray; tests/cluster runs the real one."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trtq import cluster
from trtq.cluster import Node, Ray
from trtq.errors import ArtifactError, UsageError
from trtq.pipeline import build_all
from trtq.pipeline.build_all import CommandJob, CommandOutcome, Limits, farm, run_jobs
from trtq.pipeline.build_all.farm import Farm, refuse_homeless, refuse_unseen, run_on_farm

ECHO = """
import sys
given = sys.stdin.read()
print(sys.argv[-1] + given, end="")
sys.exit(2 if sys.argv[-1] == "bad" else 0)
"""
"""A command that answers its last word and what it was given, or fails."""


class RayError(Exception):
    """What Ray's own errors derive from."""


class RayTaskError(RayError):
    """Of a task that could not run."""


class Remote:
    """A function or class of Ray's."""

    def __init__(self, ray: StandIn, what: Callable[..., Any]) -> None:
        self.ray, self.what = ray, what

    def options(self, **given: Any) -> Remote:
        self.ray.asked.append(given)
        return self

    def remote(self, *given: Any) -> Any:
        if isinstance(self.what, type):
            return Actor(self.what())
        reference = object()
        self.ray.tasks[reference] = lambda: self.what(*given)
        return reference


class Actor:
    """An object whose methods are called by `.remote`."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __getattr__(self, name: str) -> Any:
        method = ModuleType(name)
        method.remote = getattr(self._value, name)  # type: ignore[attr-defined]
        return method


class StandIn(ModuleType):
    """Ray as far as a farm uses it; tasks run when their results are fetched, in this process."""

    def __init__(self, *resources: dict[str, float]) -> None:
        super().__init__("ray")
        self.resources, self.asked, self.tasks = list(resources), list[Any](), dict[Any, Any]()
        self.faults: list[Exception] = []
        self.cancelled: list[bool] = []
        self.is_busy = False
        self.exceptions = ModuleType("ray.exceptions")
        self.exceptions.RayError = RayError  # type: ignore[attr-defined]
        self.exceptions.RayTaskError = RayTaskError  # type: ignore[attr-defined]
        self.util = ModuleType("ray.util")
        self.util.get_node_ip_address = lambda: "10.0.0.7"  # type: ignore[attr-defined]

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        plain = {"CPU": 4.0, "memory": 4e9, "node:10.0.0.7": 1.0}
        alive = [
            {"Alive": True, "NodeManagerAddress": "10.0.0.7", "Resources": {**plain, **item}}
            for item in self.resources
        ]
        return [*alive, {"Alive": False, "NodeManagerAddress": "10.0.0.8", "Resources": {}}]

    def remote(self, what: Callable[..., Any]) -> Remote:
        return Remote(self, what)

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return ([], references) if self.is_busy else (references[:1], references[1:])

    def get(self, reference: Any) -> Any:
        if isinstance(reference, list):  # the answer of an actor
            return reference
        if self.faults:
            raise self.faults.pop(0)
        return self.tasks[reference]()

    def cancel(self, _: Any, *, force: bool) -> None:
        self.cancelled.append(force)


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StandIn]:
    """Puts a stand-in with machines that have these resources in Ray's place."""

    def put(*resources: dict[str, float]) -> StandIn:
        found = StandIn(*resources)
        monkeypatch.setitem(sys.modules, "ray", found)
        return found

    monkeypatch.setattr(build_all, "_START", ECHO)
    return put


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "farm.toml").write_text("[[build]]")
    return tmp_path / "farm.toml"


def _job(word: str, *resources: str, **given: Any) -> CommandJob:
    return CommandJob((word,), 1000, resources=resources, name=word, **given)


def _run(jobs: Sequence[CommandJob], where: Farm) -> tuple[dict[int, CommandOutcome], list[Any], list[str]]:
    """Returns how the jobs ended, which began where, and what was noted."""
    outcomes: dict[int, CommandOutcome] = {}
    begun: list[Any] = []
    notes: list[str] = []
    run_on_farm(
        jobs, where, lambda *given: begun.append(given), lambda *given: outcomes.update([given]), notes.append
    )
    return outcomes, begun, notes


def test_each_job_asks_for_its_kind_its_memory_and_a_gpu_where_there_are_any(
    join: Callable[..., StandIn], shared: Path
) -> None:
    ray = join({"l4": 1.0, "GPU": 1.0}, {"rtx": 1.0}, {})
    jobs = [
        _job("a", "l4", needs_gpu=True), _job("b", "l4", uses_gpu=True), _job("c", "rtx", uses_gpu=True),
        _job("d"),
    ]  # fmt: skip
    outcomes, begun, _ = _run(jobs, Farm(Ray(cpus=2), shared))
    usual = {"num_cpus": 2, "max_retries": 0, "memory": 1000}
    share = pytest.approx(0.001)
    assert ray.asked[1:] == [
        {**usual, "resources": {"l4": share}, "num_gpus": 1},
        {**usual, "resources": {"l4": share}, "num_gpus": share},
        {**usual, "resources": {"rtx": share}},
        {**usual, "resources": {}},
    ]
    assert [outcomes[number].stdout for number in range(4)] == ["a", "b", "c", "d"]
    assert {item.machine for item in outcomes.values()} == {"10.0.0.7"}
    assert sorted(begun) == [(number, "10.0.0.7") for number in range(4)]


@pytest.mark.parametrize("is_farm", [True, False])
def test_a_job_after_another_gets_its_answer_or_ends_with_it(
    is_farm: bool, join: Callable[..., StandIn], shared: Path
) -> None:
    join({})
    jobs = [_job("first"), _job("bad"), _job("second", after=0), _job("third", after=1)]
    if is_farm:
        outcomes, begun, _ = _run(jobs, Farm(Ray(), shared))
    else:
        outcomes, begun = {}, []
        run_jobs(jobs, Limits(2, 10_000), begun.append, lambda *given: outcomes.update([given]))
    assert outcomes[2].stdout == "secondfirst"
    assert [outcomes[number].exit_code for number in range(4)] == [0, 2, 0, 2]
    assert len(begun) == 3


def test_a_job_whose_worker_dies_is_begun_again_and_given_up_at_last(
    join: Callable[..., StandIn], shared: Path
) -> None:
    ray = join({})
    ray.faults = [RayError("the node died")]
    outcomes, _, notes = _run([_job("a")], Farm(Ray(), shared))
    assert (outcomes[0].stdout, notes) == (
        "a",
        ["a: its worker or machine is gone; it is started again elsewhere"],
    )
    ray.faults = [RayError("the node died")] * 6
    outcomes, _, notes = _run([_job("a")], Farm(Ray(), shared))
    assert len(notes) == 5
    assert outcomes[0].stderr == "error: the cluster has lost a for good: the node died; see `ray status`"
    assert (outcomes[0].exit_code, outcomes[0].is_lost) == (5, True)
    ray.faults = [RayTaskError("No module named 'trtq'")]
    outcomes, _, _ = _run([_job("a")], Farm(Ray(), shared))
    assert outcomes[0].stderr.startswith("error: a could not begin on a machine of the cluster: No module na")


def test_a_kind_that_no_machine_is_of_is_refused_before_any_work(
    join: Callable[..., StandIn], shared: Path
) -> None:
    ray = join({"l4": 1.0, "trt-10.9": 1.0}, {"l4": 1.0})
    with pytest.raises(UsageError) as caught:
        _run([_job("a"), _job("b", "h100", "trt-10.9")], Farm(Ray(), shared))
    assert str(caught.value) == (
        "b is for a machine with h100 and trt-10.9, which no machine of the cluster has; there are: l4 (2), "
        'trt-10.9 (1); start one with ray start --resources=\'{"h100": 1, "trt-10.9": 1}\', or, if the '
        "cluster starts nodes on demand, add --autoscaling"
    )
    assert not ray.tasks
    outcomes, _, _ = _run([_job("b", "h100")], Farm(Ray(), shared, grows=True))
    assert outcomes[0].exit_code == 0


def test_a_job_that_is_too_large_for_every_machine_is_refused() -> None:
    nodes = (Node("10.0.0.7", {"CPU": 2.0, "memory": 3e9, "l4": 1.0}), Node("10.0.0.8", {"CPU": 8.0}))
    words = (
        r"^a needs 5\.0 GB and 2 cores, and the machines for it have at most 3\.0 GB and 2; give memory = in"
    )
    with pytest.raises(UsageError, match=words):
        refuse_homeless(replace(_job("a", "l4"), memory_bytes=5_000_000_000), nodes, 2)
    with pytest.raises(
        UsageError, match=r"^a needs 1\.0 kB and 4 cores, .* at most 3\.0 GB and 2; .* fewer --w"
    ):
        refuse_homeless(_job("a", "l4"), nodes, 4)
    with pytest.raises(UsageError, match=r"there are: none with resources of their own; start one"):
        refuse_homeless(_job("a", "l4"), nodes[1:], 1)


def test_a_job_whose_last_machine_leaves_does_not_wait_for_ever(
    join: Callable[..., StandIn], shared: Path
) -> None:
    ray = join({"l4": 1.0})

    def leave(*_: Any, **__: Any) -> tuple[list[Any], list[Any]]:
        ray.resources = [{}]
        return [], []

    ray.wait = leave  # type: ignore[method-assign]
    outcomes, _, _ = _run([_job("a", "l4")], Farm(Ray(), shared))
    assert outcomes[0].stderr == "error: the last machine with l4 has left the cluster"
    assert (outcomes[0].is_lost, ray.cancelled) == (True, [True])


def test_an_interruption_ends_the_tasks_gently_and_then_by_force(
    join: Callable[..., StandIn], shared: Path
) -> None:
    ray = join({})
    ray.is_busy = True

    nodes = ray.nodes

    def interrupt() -> list[dict[str, Any]]:
        if ray.tasks:
            raise KeyboardInterrupt
        return nodes()

    ray.nodes = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        _run([_job("a")], Farm(Ray(), shared))
    assert ray.cancelled == [False, True]


def test_what_is_about_to_finish_is_not_cancelled(join: Callable[..., StandIn], shared: Path) -> None:
    ray = join({})
    ended = list[int]()

    def interrupt(number: int, _: object) -> None:
        ended.append(number)
        raise KeyboardInterrupt

    jobs = [_job(name) for name in "abc"]
    with pytest.raises(KeyboardInterrupt):
        run_on_farm(jobs, Farm(Ray(), shared), lambda *_: None, interrupt, print)
    assert len(ray.tasks) == 3
    assert ended == [0]
    assert ray.cancelled == [False]  # of the two others one finishes, and then the other


def test_a_machine_that_does_not_see_the_folder_or_has_other_versions_does_not_begin(
    join: Callable[..., StandIn], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join({})
    refuse_unseen(shared, "10.0.0.7")
    words = r"^the machine 10\.0\.0\.7 of the cluster does not see the folder .* as it is here; the file, t"
    with pytest.raises(ArtifactError, match=words):
        refuse_unseen(shared.parent / "none.toml", "10.0.0.7")
    assert [path.name for path in shared.parent.iterdir()] == ["farm.toml"]
    with pytest.raises(ArtifactError, match=r"^cannot write to .*nowhere: No such file or directory; the ma"):
        _run([_job("a")], Farm(Ray(), shared.parent / "nowhere" / "farm.toml"))
    versions = iter([(("trtq", "1"),), (("trtq", "2"),)])
    monkeypatch.setattr(cluster, "find_versions", lambda: next(versions))
    outcomes, _, _ = _run([_job("a")], Farm(Ray(), shared))
    assert outcomes[0].stderr.startswith(
        "error: the machine 10.0.0.7 of the cluster has trtq 2, this one has 1"
    )
    assert (outcomes[0].exit_code, outcomes[0].machine, outcomes[0].is_lost) == (5, "10.0.0.7", False)


def test_a_job_has_the_variables_of_the_driver(
    join: Callable[..., StandIn], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = join({})
    monkeypatch.setattr(build_all, "_START", "import os; print(os.getenv('TRTQ_PLUGINS'), end='')")
    monkeypatch.setenv("TRTQ_PLUGINS", "/lib/driver.so")
    wait = ray.wait

    def leave(*given: Any, **named: Any) -> tuple[list[Any], list[Any]]:
        monkeypatch.setenv("TRTQ_PLUGINS", "/lib/of_an_earlier_job.so")
        return wait(*given, **named)

    ray.wait = leave  # type: ignore[method-assign]
    outcomes, _, _ = _run([_job("a")], Farm(Ray(), shared))
    assert outcomes[0].stdout == "/lib/driver.so"


def test_a_result_that_is_not_seen_here_is_no_success(
    join: Callable[..., StandIn], shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join({})
    monkeypatch.setattr(farm, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(farm, "_POLL_SECONDS", 0.0)
    result = tmp_path / "a.trtq" / "manifest.json"
    result.parent.mkdir()
    result.write_text("{}")
    job = replace(_job("a"), result=result)
    outcomes, _, _ = _run([job], Farm(Ray(), shared))
    assert (outcomes[0].exit_code, outcomes[0].result_sha256) == (0, hashlib.sha256(b"{}").hexdigest())
    digests = iter(["0" * 64])
    monkeypatch.setattr(farm, "hash_file", lambda path: next(digests, "1" * 64))
    outcomes, _, _ = _run([job], Farm(Ray(), shared))
    assert outcomes[0].exit_code == 2
    assert outcomes[0].stderr == (
        f"error: the machine 10.0.0.7 of the cluster wrote {result.parent}, which is not seen here; name an "
        "output on a file system that all machines see"
    )
