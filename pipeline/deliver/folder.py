"""A folder that appears whole or not at all, and replaces an older one in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trtq.errors import ArtifactError
from trtq.files import sync_file, sync_folder
from trtq.locks import release
from trtq.pipeline.deliver.manifest import NAME, SIGNATURE, read_manifest
from trtq.temporary import make_locked, remove_if_dead

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def stage_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target` that takes its place when the block ends without an error.

    What a killed run left behind is cleared, and an older folder that it had put aside is put back.

    Raises:
        ArtifactError: `target` is a file, a folder that trtq did not write, or its parent cannot be written.
    """
    with _refuse_unwritable(target):
        target = target.resolve()  # the folder that a link stands for, not the link
        _recover(target)
        _refuse_foreign(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        stem = f"{_hidden(target)}{os.getpid()}."
        stage, held = make_locked(
            lambda: target.parent / f"{stem}{secrets.token_hex(8)}.partial", lambda path: path.mkdir(0o755)
        )
    try:
        yield stage
        _publish(stage, target)
    except OSError as error:
        raise ArtifactError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        release(held)


def refuse_foreign(target: Path) -> None:
    """Refuses to replace what trtq did not write, be it the folder or a file in it.

    Raises:
        ArtifactError: It is there, or the folder cannot be.
    """
    with _refuse_unwritable(target):
        _refuse_foreign(target)


@contextmanager
def _refuse_unwritable(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"cannot write to {target.parent}: {error.strerror or error}") from error


def _refuse_foreign(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        if not (target / NAME).is_file():
            raise ArtifactError(
                f"{target} is not empty and was not written by trtq; choose another folder with --output"
            )
        if foreign := _foreign_files(target):
            raise ArtifactError(
                f"{target / foreign[0]} was not written by trtq and would be lost, as the folder is replaced "
                f"as a whole; move it away, or choose another folder with --output"
            )
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file; choose another folder with --output")


def _foreign_files(target: Path) -> list[str]:
    """Returns the names that the manifest does not know; none if it is damaged and knows nothing."""
    try:
        own = {NAME, SIGNATURE, *read_manifest(target).outputs}
    except ArtifactError:
        return []
    return sorted(path.name for path in target.iterdir() if path.name not in own)


def _publish(stage: Path, target: Path) -> None:
    """Puts the finished folder in its place; whatever happens, the old or the new one is complete there."""
    for path in stage.iterdir():
        sync_file(path)
    sync_folder(stage)
    if target.is_dir() and not _exchange(stage, target):
        aside = stage.with_suffix(".old")
        target.rename(aside)
        try:
            stage.rename(target)
        except OSError:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    elif not target.is_dir():
        _rename_or_exchange(stage, target)
    sync_folder(target.parent)


def _rename_or_exchange(stage: Path, target: Path) -> None:
    """Puts the folder where there was none; another build may have put its own there a moment ago."""
    try:
        stage.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not _exchange(stage, target):
            raise


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step (Linux renameat2); returns whether the system and file system can."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    result = call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def _recover(target: Path) -> None:
    """Clears what killed runs left beside the target."""
    for suffix in (".old", ".partial"):
        for left in _list_leftovers(target, suffix):
            if suffix == ".old" and not target.exists():
                left.rename(target)
            else:
                remove_if_dead(left)


def _list_leftovers(target: Path, suffix: str) -> list[Path]:
    """Returns the hidden folders of this target, not those of another one whose name begins alike."""
    name = re.compile(rf"{re.escape(_hidden(target))}\d+\.[^.]+{re.escape(suffix)}")
    return [path for path in target.parent.glob(f"*{suffix}") if name.fullmatch(path.name)]


def _hidden(target: Path) -> str:
    return f".{target.name}."
