"""Several jobs of the command line at a time, each in a process of its own, within a memory budget."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from trtq.pipeline.build_all import end_with
end_with(int(sys.argv.pop(1)))
from trtq.workers import limit_cores
limit_cores(int(sys.argv.pop(1)) or None)
from trtq.cli import main
main(prog_name="trtq")
"""
_PR_SET_PDEATHSIG = 1
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class CommandJob:
    """One command.

    Attributes:
        arguments: What stands after `trtq`.
        memory_bytes: An estimate of what it needs.
        needs_gpu: Whether it measures kernels on the GPU, where only one can do so undisturbed.
        uses_gpu: Whether it runs engines on a GPU where there is one, beside others.
        after: The number of the job whose answer it reads on stdin; it does not begin if that one fails.
        name: What people call it.
        resources: Custom resources of Ray that a machine of a cluster must have for it.
        result: A file that is there when it has succeeded; None: it writes nothing.
    """

    arguments: tuple[str, ...]
    memory_bytes: int
    needs_gpu: bool = False
    uses_gpu: bool = False
    after: int | None = None
    name: str = ""
    resources: tuple[str, ...] = ()
    result: Path | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How many jobs may run at a time, and the memory for their estimates; one that needs more runs alone."""

    num_jobs: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """How a job ended.

    Attributes:
        exit_code: Negative: killed by this signal.
        stdout: What it answered; `stderr` is what it said.
        seconds: How long it took.
        machine: Of a cluster, where it ran; empty: this one.
        gpu: The first GPU of that machine; empty: none, or it is not known.
        result_sha256: The digest of its result as that machine has it; empty: there is none, or nobody asked.
        is_lost: Whether no machine of the cluster did it.
    """

    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    machine: str = ""
    gpu: str = ""
    result_sha256: str = ""
    is_lost: bool = False


@dataclass(slots=True)
class _Running:
    """A process and the files that it writes to."""

    number: int
    process: subprocess.Popen[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]
    started: float = field(default_factory=time.monotonic)

    def outcome(self) -> CommandOutcome:
        seconds = time.monotonic() - self.started
        return CommandOutcome(self.process.returncode, _read(self.stdout), _read(self.stderr), seconds)


def run_jobs(
    jobs: Sequence[CommandJob],
    limits: Limits,
    started: Callable[[int], None],
    ended: Callable[[int, CommandOutcome], None],
) -> None:
    """Runs every job, whatever becomes of the others.

    Jobs begin in their order, but one that does not fit yet lets smaller ones pass. One that comes after
    another waits for its answer, and ends as that one did if it failed. They end with this process: when it
    is interrupted it interrupts each, and waits until it has cleared up behind itself.

    Args:
        jobs: The commands.
        limits: What they may take together.
        started: Gets the number of a job that begins.
        ended: Gets the number of a job that has ended, and how.
    """
    waiting, running = list(range(len(jobs))), list[_Running]()
    done = dict[int, CommandOutcome]()
    try:
        while waiting or running:
            for number in list_lost(jobs, waiting, done):
                waiting.remove(number)
                ended(number, find_forerunner(jobs[number], done))
            ready = list_ready(jobs, waiting, done)
            while (begins := _next(jobs, limits, ready, [item.number for item in running])) is not None:
                waiting.remove(begins)
                ready.remove(begins)
                running.append(_start(begins, jobs[begins], find_answer(jobs[begins], done)))
                started(begins)
            time.sleep(_POLL_SECONDS)
            for item in [item for item in running if item.process.poll() is not None]:
                running.remove(item)
                done[item.number] = item.outcome()
                ended(item.number, done[item.number])
    finally:
        _stop([item.process for item in running])
        for item in running:
            item.stdout.close()
            item.stderr.close()


def run_alone(job: CommandJob, answer: str, cores: int) -> CommandOutcome:
    """Runs one job to its end, within some of the cores of this machine; `answer` is of the one before it.

    When this process is interrupted, the job is too, and clears up behind itself.
    """
    running = _start(0, job, answer, cores)
    try:
        while running.process.poll() is None:  # Ray interrupts Python alone, and no system call
            time.sleep(_POLL_SECONDS)
    finally:
        _stop([running.process])
    return running.outcome()


def list_ready(
    jobs: Sequence[CommandJob], waiting: Sequence[int], done: Mapping[int, CommandOutcome]
) -> list[int]:
    """Returns the jobs that may begin: they come after none, or after one that has succeeded."""
    return [
        number
        for number in waiting
        if (after := jobs[number].after) is None or (after in done and done[after].exit_code == 0)
    ]


def list_lost(
    jobs: Sequence[CommandJob], waiting: Sequence[int], done: Mapping[int, CommandOutcome]
) -> list[int]:
    """Returns the jobs that never begin, since the one before them has failed."""
    ready = list_ready(jobs, waiting, done)
    return [number for number in waiting if jobs[number].after in done and number not in ready]


def find_forerunner(job: CommandJob, done: Mapping[int, CommandOutcome]) -> CommandOutcome:
    """Returns how the job before one ended."""
    assert job.after is not None
    return done[job.after]


def find_answer(job: CommandJob, done: Mapping[int, CommandOutcome]) -> str:
    """Returns what a job reads on stdin: the answer of the one before it."""
    return "" if job.after is None else done[job.after].stdout


def _read(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")


def _next(
    jobs: Sequence[CommandJob], limits: Limits, waiting: Sequence[int], running: Sequence[int]
) -> int | None:
    """Returns the job that begins now, if any may."""
    if len(running) >= limits.num_jobs:
        return None
    left = limits.memory_bytes - sum(jobs[number].memory_bytes for number in running)
    gpu_is_taken = any(jobs[number].needs_gpu for number in running)
    for number in waiting:
        fits = jobs[number].memory_bytes <= left or not running
        if fits and not (jobs[number].needs_gpu and gpu_is_taken):
            return number
    return None


def _start(number: int, job: CommandJob, answer: str, cores: int = 0) -> _Running:
    """Returns the process that runs a command with this process's own import path.

    It has a session of its own, so that Ctrl-C reaches it once, through this process.
    """
    path = json.dumps([str(Path(entry).absolute()) for entry in sys.path])
    command = [sys.executable, "-c", _START, path, str(os.getpid()), str(cores), *job.arguments]
    files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - they are closed when it has ended
    with tempfile.TemporaryFile() as stdin:
        stdin.write(answer.encode())
        stdin.seek(0)
        process = subprocess.Popen(
            command, stdin=stdin, stdout=files[0], stderr=files[1], start_new_session=True
        )
    return _Running(number, process, files[0], files[1])


def end_with(parent: int) -> None:
    """Has the kernel interrupt this process when its parent is gone, even one that was killed.

    Args:
        parent: The process that started this one; if it is gone already, this one ends now.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupts processes and waits for them; what does not end is killed."""
    for process in processes:
        process.terminate()
    patient_until = time.monotonic() + _PATIENCE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, patient_until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
