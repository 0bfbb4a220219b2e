"""How much memory may be used."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path
from typing import Any

_LITTLE_BYTES = 4 << 30
_WORTH_A_LOOK = 1 << 25
"""Bytes of weights for which it pays to look through all objects for garbage."""


def is_memory_short(memory_bytes: int | None) -> bool:
    """Returns whether memory is worth more than time: it was limited, or little is free."""
    return memory_bytes is not None or find_free_bytes() < _LITTLE_BYTES


def give_back_memory(weight_bytes: int) -> None:
    """Gives back what a stage has left: models that are garbage, and what malloc of glibc keeps for later.

    Args:
        weight_bytes: Of the model that was worked on; small ones are left to Python.
    """
    if weight_bytes >= _WORTH_A_LOOK:
        gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # there is none in musl, nor on macOS
        trim(0)


def find_free_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns how many bytes this process can still take: of the machine, its container and its own limit."""
    if os.name == "nt":
        return _ask_windows("GlobalMemoryStatusEx", 64, 16)  # ullAvailPhys of MEMORYSTATUSEX
    known = [_read_bytes(proc / "meminfo", "MemAvailable"), _left_in_container(cgroup), _left_of_limit(proc)]
    return max(0, min(value for value in known if value is not None))


def find_peak_bytes(proc: Path = Path("/proc")) -> int:
    """Returns the most memory that this process has held.

    `getrusage` would count what its parent held too, which a child shares until its program is loaded.
    """
    if os.name == "nt":
        myself = ctypes.c_void_p(-1)
        return _ask_windows("K32GetProcessMemoryInfo", 72, 8, myself)  # PeakWorkingSetSize
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
    try:
        import resource
    except ModuleNotFoundError:  # where processes have no such limit
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    num_pages = int((proc / "self" / "statm").read_text().split()[0])
    return limit - num_pages * resource.getpagesize()


def _ask_windows(function: str, size: int, start: int, *first: Any) -> int:
    """Returns the 64-bit number at a byte of a structure that a function of kernel32 fills.

    Args:
        function: Its name.
        size: Of the structure in bytes, which is also its first field.
        start: Where the number is.
        first: Arguments before the structure; behind it, its size is given again.
    """
    buffer = ctypes.create_string_buffer(size.to_bytes(4, "little"), size)
    call = getattr(ctypes.WinDLL("kernel32"), function)  # type: ignore[attr-defined]
    if not call(*first, buffer, *([ctypes.c_uint32(size)] if first else [])):
        raise OSError(f"{function} of Windows failed")
    return int.from_bytes(buffer.raw[start : start + 8], "little")
