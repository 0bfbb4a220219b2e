"""Tests of joining a cluster, with a stand-in for Ray; tests/cluster runs the real one."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from trtq.cli.sharing import find_workers
from trtq.cluster import Ray, find_surroundings, find_versions, refuse_other_versions, take_surroundings
from trtq.errors import DataError, MissingDependency, UsageError, WorkerError
from trtq.workers import Processes, limit_cores


class RayError(Exception):
    """What Ray's own errors derive from."""


class StandIn(ModuleType):
    """Ray as far as trtq uses it; tasks run at once, in this process."""

    def __init__(self, *, has_cluster: bool = True, fails: bool = False) -> None:
        super().__init__("ray")
        self.has_cluster, self.fails, self.joined, self.cancelled = has_cluster, fails, "", 0
        self.finishing = 3
        self.exceptions = ModuleType("ray.exceptions")
        self.exceptions.RayError = RayError  # type: ignore[attr-defined]
        self.util = ModuleType("ray.util")
        self.util.get_node_ip_address = lambda: "10.0.0.7"  # type: ignore[attr-defined]

    def is_initialized(self) -> bool:
        return bool(self.joined)

    def init(self, address: str, **_: Any) -> None:
        if not self.has_cluster:
            raise ConnectionError("no ray instance")
        self.joined = address

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "Alive": cores != 9,
                "NodeManagerAddress": "10.0.0.7",
                "Resources": {"CPU": cores, "memory": 4e9},
            }
            for cores in (2.0, 3.0, 0.0, 9.0)
        ]

    def put(self, value: Any) -> Any:
        return lambda: value

    def get(self, reference: Callable[[], Any]) -> Any:
        if self.fails:
            raise RayError("the node died 6 times")
        return reference()

    def wait(self, references: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert num_returns == len(references)
        assert timeout > 0
        return references[: self.finishing], references[self.finishing :]

    def cancel(self, _: Any, *, force: bool) -> None:
        assert force
        self.cancelled += 1

    def remote(self, function: Callable[..., Any]) -> Any:
        class Remote:
            def options(self, **_: Any) -> Remote:
                return self

            def remote(self, *given: Any) -> Callable[[], Any]:
                return lambda: function(*given)

        return Remote()


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StandIn]]:
    """Puts a stand-in in Ray's place."""

    def put(**given: bool) -> StandIn:
        found = StandIn(**given)
        monkeypatch.setitem(sys.modules, "ray", found)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        return found

    yield put
    limit_cores(None)  # which a task in this process has set


def test_results_come_in_order_and_shared_values_reach_the_tasks(join: Callable[..., StandIn]) -> None:
    ray = join()
    workers = Ray(cpus=2)
    assert workers.count() == 2
    assert list(workers.map(abs, iter([-3, 2, -1]))) == [3, 2, 1]
    assert workers.share("large")() == "large"
    assert ray.joined == "auto"


def test_a_task_for_which_no_machine_has_the_room_is_refused(join: Callable[..., StandIn]) -> None:
    join()
    assert [Ray(cpus=cpus).count() for cpus in (1, 2, 3)] == [5, 2, 1]
    assert Ray(memory_bytes=2_000_000_000).count() == 4
    with pytest.raises(
        UsageError,
        match=r"^a part of the work needs 4 cores, and the machines for it have at most 3; give fewer --wo",
    ):
        next(Ray(cpus=4).map(abs, [1]))
    with pytest.raises(
        UsageError, match=r"^a part of the work needs 5\.0 GB and 1 core, .* 4\.0 GB and 3; give"
    ):
        Ray(memory_bytes=5_000_000_000).count()


def test_the_cluster_is_the_one_that_is_named(
    join: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ray = join()
        monkeypatch.setenv("RAY_ADDRESS", address)
        Ray().count()
        assert ray.joined == address
        ray = join()
        Ray(f"ray://{address}").count()
        assert ray.joined == f"ray://{address}"


def test_an_error_of_ours_names_the_machine_and_others_come_as_they_are(join: Callable[..., StandIn]) -> None:
    join()

    def fail(kind: type[Exception]) -> None:
        raise kind("no data")

    with pytest.raises(DataError, match=r"^on the machine 10\.0\.0\.7: no data$"):
        list(Ray().map(fail, [DataError]))
    with pytest.raises(KeyError, match=r"^'no data'$"):
        list(Ray().map(fail, [KeyError]))


def test_what_nobody_wants_any_more_is_cancelled_unless_it_finishes(join: Callable[..., StandIn]) -> None:
    ray = join()
    results = Ray().map(abs, range(100))
    next(results)
    results.close()
    assert ray.cancelled == 10 - ray.finishing  # of twice the workers


def test_a_cluster_that_is_not_there_or_loses_work_is_told(
    join: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    join(has_cluster=False)
    with pytest.raises(
        WorkerError, match=r"^there is no Ray cluster that this machine belongs to: no ray ins"
    ):
        Ray().count()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(
        WorkerError, match=rf"^there is no Ray cluster at 127\.0\.0\.1:{port}: .*refused; give"
    ):
        Ray(f"127.0.0.1:{port}").count()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(
        WorkerError, match=r"^RAY_ADDRESS=local would start a cluster on this machine, which t"
    ):
        Ray().count()
    join(fails=True)
    with pytest.raises(
        WorkerError, match=r"^the cluster has lost a part of the work for good: the node died 6"
    ):
        list(Ray().map(abs, [1]))


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"^sharing work over a cluster needs ray, .*'trtq\[ray\]'$"):
        Ray().count()


def test_a_machine_with_another_version_is_refused() -> None:
    here = find_versions()
    refuse_other_versions(here, here, "10.0.0.7")
    there = tuple((name, "0.1" if name == "trtq" else version) for name, version in here)
    with pytest.raises(
        WorkerError, match=r"^the machine 10\.0\.0\.7 of the cluster has trtq 0\.1, this one has "
    ):
        refuse_other_versions(here, there, "10.0.0.7")


def test_a_worker_has_the_variables_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTQ_ORT_CUSTOM_OPS", "/lib/ops.so")
    wanted = find_surroundings()
    monkeypatch.delenv("TRTQ_ORT_CUSTOM_OPS")
    monkeypatch.setenv("TRTQ_PLUGINS", "/lib/of_an_earlier_task.so")
    take_surroundings(wanted, "10.0.0.7")
    assert (os.environ["TRTQ_ORT_CUSTOM_OPS"], "TRTQ_PLUGINS" in os.environ) == ("/lib/ops.so", False)


def test_workers_are_named_in_words() -> None:
    assert find_workers("threads") is None
    assert find_workers("processes") == Processes()
    assert find_workers("processes:3") == Processes(3)
    assert find_workers("ray", 4) == Ray(cpus=4)
    assert find_workers("ray://head:10001") == Ray("ray://head:10001")
    for text in (
        "processes:0",
        "processes:99999999999999999999",
        "processes:x",
        "processes:\N{SUPERSCRIPT TWO}",
        "threads:2",
        "dask",
    ):
        with pytest.raises(
            UsageError,
            match=rf"^'{text}' is not a valid --workers value; .*, processes:N \(1 to 1024\),",
        ):
            find_workers(text)
    with pytest.raises(
        UsageError, match=r"^--worker-cpus is for a cluster; add --workers ray, or leave it out$"
    ):
        find_workers("processes:2", 1)
    with pytest.raises(UsageError, match=r"^a task on a cluster takes at least one core, got 0$"):
        Ray(cpus=0)
