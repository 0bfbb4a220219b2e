"""Jobs in processes of their own: how many at a time, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import pytest

from trtq.models.demo import write_demo
from trtq.pipeline import build_all as parallel
from trtq.pipeline.build_all import CommandJob, CommandOutcome, Limits, end_with, run_jobs

VERSION = ("--version",)


def events_of(
    jobs: Sequence[CommandJob], limits: Limits
) -> tuple[list[tuple[str, int]], dict[int, CommandOutcome]]:
    """Runs the jobs; returns when each began and ended, and how."""
    events: list[tuple[str, int]] = []
    outcomes: dict[int, CommandOutcome] = {}

    def ended(number: int, outcome: CommandOutcome) -> None:
        events.append(("ended", number))
        outcomes[number] = outcome

    run_jobs(jobs, limits, lambda number: events.append(("began", number)), ended)
    return events, outcomes


def together(events: Sequence[tuple[str, int]]) -> list[set[int]]:
    """Returns which jobs ran at a time, after every event."""
    running: set[int] = set()
    found = []
    for what, number in events:
        running = running | {number} if what == "began" else running - {number}
        found.append(running)
    return found


def test_every_job_runs_and_tells_how_it_ended(tmp_path: Path) -> None:
    jobs = [CommandJob(VERSION, 1), CommandJob(("inspect", str(tmp_path / "nothing")), 1)]
    _, outcomes = events_of(jobs, Limits(2, 10))
    assert (outcomes[0].exit_code, outcomes[0].stderr) == (0, "")
    assert outcomes[0].stdout == f"trtq, version {version('trtq')}\n"
    assert (outcomes[1].exit_code, outcomes[1].stdout) == (2, "")
    assert outcomes[1].stderr.startswith("error: there is no file")
    assert outcomes[0].seconds > 0


def test_jobs_keep_within_their_number_and_the_memory() -> None:
    sizes = [3, 3, 3, 2, 1]
    jobs = [CommandJob(VERSION, size) for number, size in enumerate(sizes)]
    events, outcomes = events_of(jobs, Limits(3, 7))
    assert sorted(outcomes) == [0, 1, 2, 3, 4]
    assert events[:3] == [("began", 0), ("began", 1), ("began", 4)]  # 2 and 3 do not fit yet, 4 does
    for running in together(events):
        assert len(running) <= 3
        assert sum(sizes[number] for number in running) <= 7


def test_a_job_that_needs_more_than_there_is_runs_alone() -> None:
    jobs = [
        CommandJob(VERSION, 1),
        CommandJob(VERSION, 100),
        CommandJob(VERSION, 1),
    ]
    events, outcomes = events_of(jobs, Limits(3, 10))
    assert sorted(outcomes) == [0, 1, 2]
    assert {1} in together(events)
    assert all(running == {1} for running in together(events) if 1 in running)


def test_only_one_job_at_a_time_measures_on_the_gpu() -> None:
    jobs = [CommandJob(VERSION, 1, needs_gpu=number != 1) for number in range(4)]
    events, outcomes = events_of(jobs, Limits(4, 10))
    assert sorted(outcomes) == [0, 1, 2, 3]
    for pair in combinations((0, 2, 3), 2):
        assert not any(set(pair) <= running for running in together(events))
    assert events[:2] == [("began", 0), ("began", 1)]


@pytest.fixture
def slow(tmp_path: Path) -> tuple[str, ...]:
    """A build that calibrates for minutes."""
    write_demo(tmp_path)
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\nimport numpy as np\n\ndef feeds():\n"
        f"    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "    for _ in range(10_000):\n"
        '        yield {"image": np.zeros((1, 1, 8, 8), np.float32)}\n'
        "        time.sleep(0.02)\n"
    )
    data = f"--calib-data={tmp_path / 'slow.py'}:feeds"
    return ("build", str(tmp_path / "model.onnx"), data, "--backend", "onnxruntime")


def test_an_interruption_ends_the_jobs_and_they_clear_up(slow: tuple[str, ...], tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    others = set(children.read_text().split())  # of other tests
    pids: list[int] = []

    def begun(number: int) -> None:
        (child,) = set(children.read_text().split()) - others
        pids.append(int(child))
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([CommandJob(slow, 1)], Limits(1, 1), begun, lambda number, outcome: None)
    assert not Path(f"/proc/{pids[0]}").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*before, "begun"})


def test_a_process_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_PATIENCE_SECONDS", 0.1)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"{deaf}; print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        parallel._stop([process])
        assert process.returncode == -signal.SIGKILL


def test_a_job_whose_parent_is_gone_already_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    library = types.SimpleNamespace(prctl=lambda *arguments: asked.append(arguments))
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    end_with(os.getppid())
    with pytest.raises(SystemExit):
        end_with(os.getppid() + 1)
    assert asked == [(1, signal.SIGTERM, 0, 0, 0)] * 2
