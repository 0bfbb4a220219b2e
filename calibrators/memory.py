"""How much memory may be used."""

from __future__ import annotations

import resource
from pathlib import Path


def find_free_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns how many bytes this process can still take: of the machine, its container and its own limit."""
    known = [_read_bytes(proc / "meminfo", "MemAvailable"), _left_in_container(cgroup), _left_of_limit(proc)]
    return max(0, min(value for value in known if value is not None))


def find_peak_bytes(proc: Path = Path("/proc")) -> int:
    """Returns the most memory that this process has held.

    `getrusage` would count what its parent held too, which a child shares until its program is loaded.
    """
    return _read_bytes(proc / "self" / "status", "VmHWM")


def _read_bytes(path: Path, key: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} does not tell {key}")


def _left_in_container(cgroup: Path) -> int | None:
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        counts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    cached = int(counts.get("inactive_file", 0))  # files the kernel keeps as long as nobody needs the room
    return None if limit == "max" else int(limit) - used + min(cached, used)


def _left_of_limit(proc: Path) -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    num_pages = int((proc / "self" / "statm").read_text().split()[0])
    return limit - num_pages * resource.getpagesize()
