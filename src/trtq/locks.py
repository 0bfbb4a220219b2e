"""Locks on files and folders that end with their process, and what Windows has instead: nothing."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:
    CAN_LOCK = False
else:
    CAN_LOCK = True
    """Whether this system has such locks. Windows opens no folders, and renames nothing that is open."""


def lock(descriptor: int, *, waits: bool = True) -> None:
    """Takes the lock of an open file or folder.

    Raises:
        OSError: The file system has no locks; or another process holds it, and this one shall not wait.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_new(path: Path) -> int | None:
    """Returns a descriptor with the lock of what is new; None if another process took it for dead."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # where a file system has no locks, nothing is removed
        lock(descriptor)
    with suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), os.fstat(descriptor)):
            return descriptor
    os.close(descriptor)
    return None


def release(descriptor: int | None) -> None:
    """Gives a lock back; None stands for that of a system without locks."""
    if descriptor is not None:
        os.close(descriptor)
