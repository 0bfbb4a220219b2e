"""Files of data, wherever they lie, and those of this machine."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import product
from pathlib import Path
from typing import IO, Protocol, TypeVar

from trtq.errors import DataError
from trtq.files import hash_file, is_there, refuse_damage

K = TypeVar("K")
V = TypeVar("V")
_BRACES = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}|\{([^{}]*,[^{}]*)\}")
_MOST_NAMES = 100_000


class StoredFile(Protocol):
    """A file that a format reads; where it lies is not the format's business."""

    @property
    def name(self) -> str:
        """Its full name for messages, without credentials."""
        ...

    @property
    def base(self) -> str:
        """The last part of its name."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether looking into it costs no request to another machine."""
        ...

    def open(self) -> AbstractContextManager[IO[bytes]]:
        """Opens it for reading and seeking.

        Raises:
            OSError: It lies on this machine and cannot be read.
            DataError: It lies elsewhere and cannot be read, or at the end has changed since it was found.
        """
        ...

    def hash(self) -> str:
        """Returns what tells its content from any other: a SHA-256, as hex."""
        ...


class StoredFolder(Protocol):
    """What holds several files."""

    @property
    def name(self) -> str:
        """Its full name for messages, without credentials."""
        ...

    def list(self, *, deep: bool = False) -> Sequence[StoredFile]:
        """Returns its files in the order of their names; `deep`: those of folders in it too."""
        ...


def find_suffix(file: StoredFile) -> str:
    """Returns the last suffix of a file's name in lower case, such as `.npz`; empty if it has none."""
    return Path(file.base).suffix.lower()


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of this machine."""

    path: Path

    @property
    def name(self) -> str:
        """See `StoredFile`."""
        return str(self.path)

    @property
    def base(self) -> str:
        """See `StoredFile`."""
        return self.path.name

    @property
    def is_local(self) -> bool:
        """See `StoredFile`."""
        return True

    def open(self) -> IO[bytes]:
        """See `StoredFile`."""
        return self.path.open("rb")

    def hash(self) -> str:
        """See `StoredFile`; DataError if it cannot be read."""
        try:
            return hash_file(self.path)
        except OSError as error:
            raise DataError(
                f"cannot read {self.path}: {error.strerror}; make it readable or leave it out"
            ) from error


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder of this machine."""

    path: Path

    @property
    def name(self) -> str:
        """See `StoredFolder`."""
        return str(self.path)

    def list(self, *, deep: bool = False) -> Sequence[LocalFile]:
        """See `StoredFolder`; devices, pipes and sockets are among the files. Links are followed.

        Raises:
            DataError: A folder cannot be read.
        """
        found = sorted(_walk(self.path, frozenset(), deep=deep))
        return [LocalFile(path) for path in _find_once(found).values()]


def _walk(folder: Path, above: frozenset[Path], *, deep: bool) -> Iterator[Path]:
    """Yields the files in a folder; `above` are the folders that it lies in, to which links may lead back."""
    with refuse_damage(DataError, f"cannot read the folder {folder}"):
        found = [*folder.iterdir()]
    here = above | {folder.resolve()}
    for path in found:
        if not path.is_dir():
            yield path
        elif deep and path.resolve() not in here:
            yield from _walk(path, here, deep=True)


@dataclass(frozen=True, slots=True)
class Listed:
    """The files that a pattern names."""

    name: str
    files: Sequence[StoredFile]


def find_local(source: str) -> LocalFile | LocalFolder | Listed | None:
    """Returns the file, the folder, or the files of a pattern; None if there is no such thing.

    Raises:
        DataError: Something in the pattern is missing, or is no file.
    """
    path = Path(source)
    if is_there(path):
        refuse_devices([LocalFile(path)])
        return LocalFolder(path) if path.is_dir() else LocalFile(path)
    if not is_pattern(source):
        return None
    files = [LocalFile(path) for path in find_all(source, _find_paths).values()]
    for file in files:
        if not is_there(file.path):
            raise DataError(f"there is no file {file.path}, which {source} names; make the pattern fit")
    refuse_devices(files)
    return Listed(source, files) if files else None


def _find_paths(pattern: str) -> Mapping[str, Path]:
    """Returns the files that a pattern without braces names, by where they lie."""
    found = sorted(glob(pattern, recursive=True)) or [pattern] * is_there(Path(pattern))  # noqa: PTH207 - of any root
    return _find_once(path for path in map(Path, found) if not path.is_dir())


def _find_once(paths: Iterable[Path]) -> Mapping[str, Path]:
    """Returns files by where they lie, each once: links may lead to one again, or nowhere."""
    files: dict[str, Path] = {}
    for path in paths:
        files.setdefault(os.path.realpath(path), path)
    return files


def find_all(
    pattern: str, find: Callable[[str], Mapping[K, V]], show: Callable[[str], str] = str
) -> Mapping[K, V]:
    """Returns what a pattern names, in the order of its braces, each once.

    Args:
        pattern: With braces or without.
        find: Returns what a pattern without braces names, and what is known of each.
        show: Returns a pattern as it may be shown.

    Raises:
        DataError: What braces stand for is not there. A pattern without braces may name nothing.
    """
    found: dict[K, V] = {}
    for name in expand_braces(pattern):
        files = find(name)
        if not files and name != pattern:
            raise DataError(
                f"there is no file {show(name)}, which {show(pattern)} names; make the pattern fit"
            )
        found |= {key: value for key, value in files.items() if key not in found}
    return found


def is_pattern(source: str) -> bool:
    """Returns whether a name stands for several: `shard-{000..012}.tar`, `shard-*.tar`."""
    return has_magic(source) or _BRACES.search(source) is not None


def expand_braces(source: str) -> Iterator[str]:
    """Yields the names that `{000..012}` and `{a,b}` stand for.

    Raises:
        DataError: There are too many.
    """
    parts = _BRACES.split(source)  # text, first, last, words; text, ...
    choices = [_list_choices(*parts[index : index + 3]) for index in range(1, len(parts), 4)]
    if math.prod(map(len, choices)) > _MOST_NAMES:
        raise DataError(f"{source} stands for more than {_MOST_NAMES:,} names; use fewer at a time")
    for chosen in product(*choices):
        yield "".join(text + choice for text, choice in zip(parts[::4], (*chosen, ""), strict=True))


def _list_choices(first: str | None, last: str | None, words: str | None) -> Sequence[str]:
    if first is None or last is None:
        return (words or "").split(",")
    numbers = range(int(first), int(last) + 1)[: _MOST_NAMES + 1]
    return [f"{number:0{len(first)}}" for number in numbers]


def refuse_devices(files: Iterable[LocalFile]) -> None:
    """Refuses devices, pipes and sockets, also behind links: reading one may never end.

    Raises:
        DataError: There is one.
    """
    for file in files:
        path = file.path
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(f"{path} is a device, a pipe or a socket, not a file; leave it out")


def hash_files(files: Iterable[StoredFile]) -> str:
    """Returns a digest of the names and contents of files, as hex."""
    lines = (f"{file.base}\0{file.hash()}\n".encode(errors="surrogateescape") for file in files)
    return hashlib.sha256(b"".join(lines)).hexdigest()
