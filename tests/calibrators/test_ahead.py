"""Tests of work in threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trtq.calibrators.ahead import count_cores, map_ordered, start_in_background


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
        "import threading; from trtq.calibrators.ahead import start_in_background; "
        "start_in_background(threading.Event().wait)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_results_come_in_the_order_of_the_items() -> None:
    gates = [threading.Event() for _ in range(3)]
    gates[2].set()

    def wait(index: int) -> int:
        gates[index].wait(10)
        gates[index - 1].set()  # the last one lets the one before it go
        return index

    assert list(map_ordered(wait, range(3), 3)) == [0, 1, 2]


def test_no_more_is_taken_than_twice_the_threads() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for index in range(100):
            taken.append(index)
            yield index

    results = map_ordered(lambda index: index, items(), 2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
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

    results = map_ordered(fail, range(9), 3)
    assert next(results) == 0
    with pytest.raises(ValueError, match="the second"):
        next(results)


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
