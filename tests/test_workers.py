"""Tests of parallel work: threads, processes and calls in the background."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trtq.errors import WorkerError
from trtq.workers import Processes, Threads, Workers, count_cores, make_once, start_in_background


def test_a_call_that_is_begun_goes_on_and_is_made_once() -> None:
    gate, calls = threading.Event(), []

    def call() -> str:
        gate.wait(10)
        calls.append(threading.current_thread())
        return "done"

    result = start_in_background(call)
    gate.set()  # it has not been waited for
    assert (result(), result()) == ("done", "done")
    assert calls != [threading.current_thread()]
    assert len(calls) == 1


def test_the_failure_of_a_call_that_is_begun_is_raised_where_it_is_waited_for() -> None:
    with pytest.raises(ZeroDivisionError):
        start_in_background(lambda: 1 // 0)()


def test_a_process_ends_before_a_call_that_is_begun_and_is_not_waited_for() -> None:
    code = (
        "import threading; from trtq.workers import start_in_background; "
        "start_in_background(threading.Event().wait)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_made_of_a_shared_value_is_made_once_for_all_tasks() -> None:
    seen: list[list[int]] = []

    def make(value: list[int]) -> int:
        seen.append(value)
        return sum(value)

    for shared in (Threads().share([1, 2]), Threads().share([1, 2])):  # two values, though they are equal
        assert [make_once(make, shared) for _ in range(3)] == [3, 3, 3]
    assert seen == [[1, 2], [1, 2]]


def test_results_come_in_the_order_of_the_items() -> None:
    gates = [threading.Event() for _ in range(3)]
    gates[2].set()

    def wait(index: int) -> int:
        gates[index].wait(10)
        gates[index - 1].set()  # the last one lets the one before it go
        return index

    assert list(Threads(3).map(wait, range(3))) == [0, 1, 2]


WORKERS = [Threads(2), Processes(2)]


@pytest.mark.parametrize("workers", WORKERS)
def test_no_more_is_taken_than_twice_the_workers(workers: Workers) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for index in itertools.count():
            taken.append(index)
            yield index

    results = workers.map(abs, items())
    assert list(itertools.islice(results, 5)) == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 4


def test_the_first_failure_in_the_order_of_the_items_is_raised() -> None:
    later = threading.Event()

    def fail(index: int) -> int:
        if index == 1:
            later.wait(10)
            raise ValueError("the second")
        if index == 2:
            later.set()
            raise ValueError("the third")
        return index

    results = Threads(3).map(fail, range(9))
    assert next(results) == 0
    with pytest.raises(ValueError, match="the second"):
        next(results)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_failure_is_raised_after_the_results_before_it(workers: Workers) -> None:
    results = workers.map(math.sqrt, [4.0, 9.0, -1.0, -1.0, 16.0])
    assert [next(results), next(results)] == [2.0, 3.0]
    with pytest.raises(ValueError, match="math domain error"):
        next(results)
    assert list(results) == []


def test_tasks_that_have_not_started_are_cancelled_when_the_iterator_is_closed() -> None:
    started: list[int] = []
    gate = threading.Event()

    def wait(index: int) -> int:
        started.append(index)
        if index == 1:
            gate.wait(10)
        return index

    results = Threads(1).map(wait, range(9))
    assert next(results) == 0
    threading.Timer(0.05, gate.set).start()
    results.close()
    assert started in ([0], [0, 1])  # three would have been taken


def test_processes_are_not_this_one() -> None:
    texts = Processes(2).map(Path.read_text, [Path("/proc/self/stat")] * 4)
    assert os.getpid() not in {int(text.split()[0]) for text in texts}


def test_processes_have_the_variables_of_now_and_end_when_others_are_in_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRTQ_PLUGINS", "/lib/of_an_earlier_task.so")
    assert list(Processes(1).map(os.getenv, ["TRTQ_PLUGINS"])) == ["/lib/of_an_earlier_task.so"]
    monkeypatch.delenv("TRTQ_PLUGINS")
    monkeypatch.setenv("TRTQ_ORT_CUSTOM_OPS", "/lib/ops.so")
    names = ["TRTQ_PLUGINS", "TRTQ_ORT_CUSTOM_OPS"]
    assert list(Processes(1).map(os.getenv, names)) == [None, "/lib/ops.so"]
    (stat,) = Processes(1).map(Path.read_text, [Path("/proc/self/stat")])
    (replaced,) = (item for item in multiprocessing.active_children() if item.pid == int(stat.split()[0]))
    begun = Processes(1).map(abs, range(9))
    assert [next(begun), *Processes(2).map(abs, [-1]), *begun] == [0, 1, *range(1, 9)]
    replaced.join(30)
    assert not Path(f"/proc/{replaced.pid}").exists()  # is_alive() may say so while another thread reaps it


def test_processes_end_in_silence_also_where_a_library_holds_their_modules() -> None:
    code = """
import ctypes
from trtq import workers
list(workers.Processes(1).map(abs, [1]))
import concurrent.futures.process  # late: the modules are cleared in the reversed order
for module in (workers, concurrent.futures.process):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(module))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""


def test_a_process_that_dies_is_told() -> None:
    with pytest.raises(WorkerError, match=r"has died, perhaps for lack of memory; use fewer with --workers"):
        list(Processes(1).map(os._exit, [3]))


def test_there_is_a_core() -> None:
    assert count_cores() >= 1


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("9999999 100000", 8),
    ],
)
def test_a_container_has_the_cores_of_its_quota(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert count_cores(tmp_path) == cores
    assert count_cores(tmp_path / "absent") == 8
