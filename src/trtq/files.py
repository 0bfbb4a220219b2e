"""Output files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from trtq.errors import ArtifactError, TrtqError, UsageError, quote
from trtq.locks import CAN_LOCK, lock
from trtq.temporary import is_device, open_temporary_file

_BLOCK_BYTES = 1 << 22
_MOST_PIPED = 1 << 28
"""Bytes that a pipe or device may give: /dev/zero does not end."""


@contextlib.contextmanager
def refuse_damage(error: type[TrtqError], what: str) -> Iterator[None]:
    """Raises an error of ours for whatever a library raises while it reads a file: `what`, and its words.

    What parsers raise for damaged files is no list that ends: each fuzzing found another one.

    Args:
        error: The class to raise.
        what: The beginning of the message, such as "x.npz cannot be read as .npz".
    """
    try:
        yield
    except TrtqError:
        raise
    except Exception as problem:
        raise error(f"{what}: {quote(problem)}") from problem


def read_file(path: Path) -> bytes:
    """Returns the content of a file, or of a pipe or device that ends, such as /dev/stdin.

    Raises:
        OSError: It cannot be read; or it is no regular file and gives more than 256 MiB.
    """
    with path.open("rb") as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file.read()
        content = file.read(_MOST_PIPED + 1)
    if len(content) > _MOST_PIPED:
        raise OSError(
            errno.EFBIG, f"it is a pipe or device with more than {_MOST_PIPED >> 20} MiB, not a regular file"
        )
    return content


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole, or leaves what was there as it was.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the place of `path`
    in one step. On failure the temporary file is removed, and so is what an earlier run left that was killed.

    Args:
        path: The file to write, in a folder that exists; a file of that name is replaced. Of a symbolic link,
            the file that it leads to.
        data: The whole content.

    Raises:
        ArtifactError: The file cannot be written: no such folder, no permission, no room.
    """
    try:
        with _open_replacement(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error}; "
            f"its folder must exist, be writable and have room for {len(data)} bytes"
        ) from error


def copy_atomically(source: Path, path: Path) -> None:
    """Copies a file whole, or leaves what was there as it was, as `write_atomically` does.

    Raises:
        ArtifactError: The file cannot be read or written.
    """
    try:
        with _open_replacement(path) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as error:
        raise ArtifactError(
            f"cannot copy {source} to {path}: {error.strerror or error}; its folder must exist, be "
            f"writable and have room for it"
        ) from error


def move_atomically(folder: Path, target: Path) -> None:
    """Moves the files in a folder beside it to another one, the last names first, each whole or not at all.

    A graph goes after its weights, whose name is longer. Where there is a symbolic link of a file's name, the
    file that it leads to is replaced.

    Args:
        folder: On the same disk as the target.
        target: The other folder.

    Raises:
        OSError: A file cannot be written.
        ArtifactError: Nor can the one that a link leads to.
    """
    for part in sorted(folder.iterdir(), reverse=True):
        path = target / part.name
        if path.is_symlink():
            copy_atomically(part, path)
        else:
            part.replace(path)


@contextlib.contextmanager
def _open_replacement(path: Path) -> Iterator[Path]:
    """Yields a file to write, which then takes the place of `path` or of what that link leads to."""
    target = _follow(path)
    with open_temporary_file(target) as temporary:
        yield temporary
        sync_file(temporary)
        temporary.replace(target)


def _follow(path: Path) -> Path:
    """Returns the file that a symbolic link leads to, or the path itself; OSError for links in a circle."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def sync_file(path: Path) -> None:
    """Has the disk keep the content of a file.

    Raises:
        OSError: It cannot be opened or written.
    """
    with path.open("r+b") as file:  # Windows writes nothing to the disk that is open for reading alone
        os.fsync(file.fileno())


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Holds a lock on a folder or file, made if there is none; it ends with this process whatever happens.

    Windows has none: there, nobody waits for another one.
    """
    if not CAN_LOCK:
        yield
        return
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Has the disk keep what was made, renamed or removed in a folder, unless this is Windows.

    Raises:
        OSError: It cannot be opened or written.
    """
    if not CAN_LOCK:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_file(path: Path) -> bool:
    """Returns whether there is a file; a name that no system takes is none.

    Raises:
        PermissionError: Its folder cannot be searched.
    """
    return stat.S_ISREG(_find_mode(path))


def is_there(path: Path) -> bool:
    """Returns whether there is a file, a folder or something else; a name that no system takes is nothing.

    Raises:
        PermissionError: Its folder cannot be searched.
    """
    return _find_mode(path) != 0


def _find_mode(path: Path) -> int:
    """Returns the mode of what is there; 0: nothing."""
    try:
        return path.stat().st_mode
    except PermissionError:
        raise
    except (OSError, ValueError):
        return 0


def resolve_name(path: Path) -> Path:
    """Returns the path, which other files are to be called after, with a name for `.` and `..`.

    Raises:
        UsageError: It is the root, which has none.
    """
    named = path if path.name not in ("", "..") else Path(os.path.abspath(path))  # noqa: PTH100 - links stay
    if not named.name:
        raise UsageError(f"{path} has no name for the output; name it with --output")
    return named


def as_argument(path: str) -> str:
    """Returns a path as a word of a command line, which must not look like an option."""
    return f"./{path}" if path.startswith("-") else path


def refuse_name(path: Path) -> None:
    """Refuses a path that is not UTF-8, which the libraries that open files by name do not take.

    Raises:
        UsageError: It has such bytes, or the locale made some of it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the name of {path} is not UTF-8, as ONNX Runtime and settings files need it; rename it, or set "
            "a UTF-8 locale (LC_ALL=C.UTF-8) if the name is UTF-8"
        ) from error


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content, as hex."""
    sha = hashlib.sha256()
    update_hash(sha, path)
    return sha.hexdigest()


def update_hash(sha: hashlib._Hash, path: Path) -> None:
    """Adds the content of a file to what is hashed."""
    buffer = bytearray(_BLOCK_BYTES)
    view = memoryview(buffer)  # read into the same memory again and again: no allocation, no copy
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            sha.update(view[:count])


def check_outputs(outputs: Mapping[str, Path | None], *sources: Path | str | None) -> None:
    """Refuses, before any work, outputs that cannot be written, are read, or are the same file.

    Args:
        outputs: By the options that name them; None: not wanted.
        sources: As of `check_output`.

    Raises:
        ArtifactError: As of `check_output`.
        UsageError: Two are the same file.
    """
    known: dict[Path, str] = {}
    for option, output in outputs.items():
        if output is None:
            continue
        check_output(output, *sources, option=option)
        if (other := known.setdefault(output.resolve(), option)) != option:
            raise UsageError(f"{output} is given as {other} and as {option}; give each its own file")


def check_output(output: Path, *sources: Path | str | None, option: str = "--output") -> None:
    """Refuses what cannot be written, before the work that would be lost; nothing there is touched.

    Args:
        output: The file that will be written.
        sources: What is read: files, folders, scripts with a function, or None. What does not exist is
            passed over.
        option: That names the output.

    Raises:
        ArtifactError: It is a folder or a device, or lies in none, or in one that cannot be written to; it is
            a source, or lies in one.
    """
    try:
        target = _follow(output)
        for source in sources:
            if source is not None:
                _refuse_source(output, source, option)
        _refuse_place(output, target.absolute().parent)
        with open_temporary_file(target):
            pass
    except OSError as error:
        raise ArtifactError(
            f"cannot write {output}: {error.strerror or error}; its folder must be writable"
        ) from error


def _refuse_place(output: Path, folder: Path) -> None:
    """Refuses what no file may take the place of, and a file in no folder."""
    if output.is_dir():
        raise ArtifactError(f"cannot write {output}: it is a folder; name a file in it")
    if is_device(output):
        raise ArtifactError(f"cannot write {output}: it is a device or pipe, not a regular file; name a file")
    if not folder.is_dir():
        raise ArtifactError(f"cannot write {output}: there is no folder {folder}; make it, or choose another")


def _refuse_source(output: Path, source: Path | str, option: str) -> None:
    """Refuses to write over something that is read, or into a folder that is."""
    script, _, function = str(source).rpartition(":")
    path = Path(script if script.endswith(".py") and function else source)
    if not is_there(path):
        return
    if path.is_dir() and path.resolve() in output.resolve().parents:
        raise ArtifactError(
            f"{output} would be inside {source}, which is read by this command; choose another file "
            f"with {option}"
        )
    if output.exists() and output.samefile(path):
        raise ArtifactError(f"{output} is read by this command; choose another file with {option}")
