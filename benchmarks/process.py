"""Runs a command in a process of its own and says what it cost; Linux only."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PAGE_BYTES = resource.getpagesize()
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        status: "done"; "killed" if it held more memory than it may; "late" if it took longer than it may;
            else "failed".
        wall_s: From start to end.
        cpu_s: User and system time, of its children too.
        peak_mb: The most that it and its children held at once (resident, in 10^6 bytes).
        words: The first line of its error; empty if it is done.
        printed: All that it printed.
    """

    status: str
    wall_s: float
    cpu_s: float
    peak_mb: float
    words: str
    printed: str


def run(
    command: Sequence[str | Path], environment: Mapping[str, str], memory_mb: float, seconds: float = 3600
) -> Cost:
    """Returns what a command cost; it is killed with its children if they hold too much or take too long.

    It runs in a folder of its own, so paths in it are absolute.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryDirectory(prefix="bench-") as place:
        start = time.perf_counter()
        child = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=place,  # some tools leave files where they run
            start_new_session=True,  # so that its children are killed with it
        )
        stopped, peak_bytes, finished = "", 0, 0
        try:
            while not finished:
                time.sleep(_POLL_SECONDS)
                held = _resident_bytes(child.pid)
                peak_bytes = max(peak_bytes, held, _most_resident_bytes(child.pid))
                if held > memory_mb * 1e6:
                    stopped = "killed"
                elif time.perf_counter() - start > seconds:
                    stopped = "late"
                if stopped:
                    os.killpg(child.pid, signal.SIGKILL)
                finished, exit_status, usage = os.wait4(child.pid, 0 if stopped else os.WNOHANG)
        except BaseException:  # Ctrl-C: it must not go on without us
            os.killpg(child.pid, signal.SIGKILL)
            raise
        wall_s = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(exit_status)  # it is gone; Popen need not wait
        output.seek(0)
        printed = output.read()
    status = stopped or ("done" if child.returncode == 0 else "failed")
    return Cost(
        status,
        round(wall_s, 3),
        round(usage.ru_utime + usage.ru_stime, 3),
        round(peak_bytes / 1e6, 1),
        _words(status, printed, memory_mb, seconds),
        printed,
    )


def _most_resident_bytes(process: int) -> int:
    """Returns the most that one process held so far; wait4 would count what its parent held at the fork."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0  # it ended meanwhile
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _words(status: str, printed: str, memory_mb: float, seconds: float) -> str:
    if status == "done":
        return ""
    if status == "killed":
        return f"killed past {memory_mb / 1000:g} GB of memory"
    if status == "late":
        return f"killed after {seconds:g} s"
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if not line.startswith(("warnings.warn", "Traceback", "File "))]
    return (errors[-1] if errors else "no word")[:300]


def _resident_bytes(root: int) -> int:
    """Returns the resident memory of a process and of all that descend from it."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            parents[int(entry.name)], pages[int(entry.name)] = int(fields[1]), int(fields[21])
    family = {root}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(pages.get(member, 0) for member in family) * _PAGE_BYTES
