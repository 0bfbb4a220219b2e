"""Temporary files and folders of this process, and what killed ones left.

A process holds a lock on each for as long as it lives, in this container or another one. What nobody holds is
dead, and the next run that would put something of the same name there removes it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from trtq.errors import ArtifactError
from trtq.locks import CAN_LOCK, lock, lock_new, release


@contextmanager
def open_temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """Yields an empty folder that is removed at the end.

    Args:
        beside: A file; the folder lies beside it, so that a rename leads from one to the other. None: it lies
            where the system has such folders (TMPDIR).

    Raises:
        ArtifactError: It cannot be made.
    """
    parent = Path(tempfile.gettempdir()) if beside is None else beside.parent
    try:
        stem = "trtq" if beside is None else f".{beside.name}"
        _clear_once(parent.absolute(), stem)
        folder, held = make_locked(lambda: _name_new(parent, stem), lambda path: path.mkdir(0o700))
    except OSError as error:
        advice = "make room, or set TMPDIR to another folder" if beside is None else "make it writable"
        raise ArtifactError(f"cannot write to {parent}: {error.strerror}; {advice}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        release(held)


@contextmanager
def open_temporary_file(beside: Path) -> Iterator[Path]:
    """Yields an empty new file beside another one, with the rights of any new file; removed if it is left.

    Raises:
        OSError: It cannot be made, or would take the place of a device or pipe, such as /dev/null.
    """
    if is_device(beside):
        raise OSError(errno.EINVAL, "it is a device or pipe, not a regular file")
    # Not `tempfile`, whose files only their owner may read.
    stem = f".{beside.name}"
    _clear_once(beside.parent.absolute(), stem)
    path, held = make_locked(lambda: _name_new(beside.parent, stem), lambda path: path.touch(exist_ok=False))
    try:
        yield path
    finally:
        with suppress(OSError):  # after a rename there is none
            path.unlink()
        release(held)


def is_device(path: Path) -> bool:
    """Returns whether there is a device, pipe or socket, which no file may take the place of."""
    return path.exists() and not (path.is_file() or path.is_dir())


def _name_new(parent: Path, stem: str) -> Path:
    return parent / f"{stem}.{secrets.token_hex(4)}.tmp"


def make_locked(name: Callable[[], Path], make: Callable[[Path], None]) -> tuple[Path, int | None]:
    """Returns what is made under a new name, and the descriptor that holds its lock, for `release`.

    Args:
        name: Returns another name each time: what is not locked yet may be taken for dead and removed.
        make: Makes the file or folder.
    """
    while True:
        path = name()
        make(path)
        held = lock_new(path) if CAN_LOCK else None
        if held is not None or not CAN_LOCK:
            return path, held


@cache
def _clear_once(parent: Path, stem: str) -> None:
    """Removes what dead processes left in a folder; once in a process, since a folder may be large."""
    if not CAN_LOCK:  # nobody can tell what is dead
        return
    name = re.compile(rf"{re.escape(stem)}\.[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):
        for left in [entry.path for entry in os.scandir(parent) if name.fullmatch(entry.name)]:
            _remove_dead(Path(left))


def _remove_dead(left: Path) -> None:
    """Removes a file or folder of this user that no process holds."""
    with suppress(OSError):  # it is gone meanwhile
        found = left.lstat()
        is_ours = found.st_uid == os.geteuid() and (
            stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
        )
        if is_ours:
            remove_if_dead(left)


def remove_if_dead(path: Path) -> None:
    """Removes a file or folder unless a process, in this container or another one, holds its lock.

    The lock is held until it is gone, so that nobody takes it for a new one of its own meanwhile. Where there
    are no locks, nothing is removed.
    """
    if not CAN_LOCK:
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # it is gone, or no concern of ours
        return
    try:
        with suppress(OSError):  # also where a file system has no locks: nobody can tell
            lock(descriptor, waits=False)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(descriptor)
