"""Runs trtq as Windows would: without what only POSIX has, and with the rules of its files.

`python as_on_windows.py arguments...` is `trtq arguments...`.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_MODULES = ("fcntl", "resource", "termios", "pwd", "grp")
_OF_OS: tuple[str, ...] = ("geteuid", "getuid", "sched_getaffinity", "getloadavg", "sysconf")
_OF_OS += ("O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY")
_OF_SIGNAL = ("SIGALRM", "SIGHUP", "setitimer", "alarm", "pthread_sigmask")


def hide() -> None:
    """Takes away what Windows lacks, from now on."""
    for name in _MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in ((os, _OF_OS), (signal, _OF_SIGNAL)):
        for name in names:
            with suppress(AttributeError):
                delattr(module, name)
    os.open = _refuse(os.open, _opens_a_folder)
    os.fsync = _refuse(os.fsync, _is_for_reading)
    os.unlink = _refuse(os.unlink, _is_open)
    os.remove = _refuse(os.remove, _is_open)
    os.rename = _refuse(os.rename, _cannot_be_moved)
    os.replace = _refuse(os.replace, _is_open)


def _refuse(call: Callable[..., Any], is_wrong: Callable[..., bool]) -> Callable[..., Any]:
    def checked(*arguments: Any, **options: Any) -> Any:
        if is_wrong(*arguments, **options):
            raise PermissionError(errno.EACCES, f"as on Windows: {call.__name__}", str(arguments[0]))
        return call(*arguments, **options)

    return checked


def _opens_a_folder(path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> bool:
    return dir_fd is None and not isinstance(path, int) and Path(os.fsdecode(path)).is_dir()


def _is_for_reading(descriptor: int) -> bool:
    flags = Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii").split("flags:")[1].split()[0]
    return int(flags, 8) & os.O_ACCMODE == os.O_RDONLY


def _is_open(path: Any, *_: Any, **options: Any) -> bool:
    """Whether this process has the file open, or one in the folder."""
    place = os.path.realpath(os.fsdecode(path))
    return not options and any(open_ == place or open_.startswith(f"{place}/") for open_ in _list_open())


def _cannot_be_moved(source: Any, target: Any, **options: Any) -> bool:
    return os.path.lexists(target) or _is_open(source, **options)


def _list_open() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - so that no descriptor of ours is among them
        with suppress(OSError):
            if stat.S_ISREG(os.stat(f"/proc/self/fd/{name}").st_mode):  # noqa: PTH116
                yield os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115


if __name__ == "__main__":
    hide()
    from trtq.cli import main

    main(sys.argv[1:])
