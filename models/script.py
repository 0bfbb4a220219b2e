"""Functions of the user's own scripts."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from trtq.errors import DataError


@dataclass(slots=True)
class _Place:
    """Where a script has left itself: its current folder, and how its environment differs from trtq's."""

    folder: str | None = None
    changes: dict[str, str | None] = field(default_factory=dict)


_PLACES: dict[Path, _Place] = {}
"""Of each script, so that a later call finds what an earlier one has set."""


_IMPORTED: dict[Path, dict[str, ModuleType]] = {}
"""What scripts have imported from their folder, by name; packages are left to Python."""


class _Uncached(SourceFileLoader):
    """Compiles a script, or what it imports from its folder, each time, and leaves nothing beside it.

    Python takes what it has compiled before for a file of the same size that is edited in the same second.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Returns the code of the file as it is now."""
        return self.source_to_code(self.get_data(self.path), self.path)


def load_function(script: Path, function: str) -> Any:
    """Returns a function of a script, which is run for it.

    Raises:
        DataError: There is no such script or function, or the script fails.
    """
    name = f"{_make_packages(script)}.{script.stem}"  # must not hide a library that is called like the script
    spec = importlib.util.spec_from_file_location(name, script)
    if not script.is_file() or spec is None or spec.loader is None:
        raise DataError(f"there is no script {script}")
    if isinstance(spec.loader, SourceFileLoader):
        spec.loader = _Uncached(name, str(script))
    for folder in {script.parent.resolve(), script.resolve().parent}:  # it may be a link
        _forget_imports(folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        with run_in_place(script):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise DataError(f"{script} cannot be run: {type(error).__name__}: {error}") from error
    call = getattr(module, function, None)
    if not callable(call):
        raise DataError(f"{script} has no function {function!r}")
    return call


def _forget_imports(folder: Path) -> None:
    """Has what scripts import from a folder read again: the files may have changed."""
    for name in _IMPORTED.pop(folder, {}):
        sys.modules.pop(name, None)
        package, _, base = name.rpartition(".")
        if package in sys.modules:
            vars(sys.modules[package]).pop(base, None)
    sys.path_importer_cache[str(folder)] = FileFinder(
        str(folder),
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (_Uncached, SOURCE_SUFFIXES),
        (SourcelessFileLoader, BYTECODE_SUFFIXES),
    )


def _take_imports(folder: Path) -> None:
    """Gives a script what those of its folder have imported; what others have may be called alike."""
    for other, modules in _IMPORTED.items():
        for name in modules if other != folder else ():
            sys.modules.pop(name, None)
    sys.modules.update(_IMPORTED.get(folder, {}))


def _note_imports(before: Set[str]) -> None:
    """Notes what a script has imported from its folder, of the modules that were not there before."""
    for name in sys.modules.keys() - before:
        loader = getattr(getattr(sys.modules[name], "__spec__", None), "loader", None)
        if isinstance(loader, _Uncached) and not loader.is_package(name):
            _IMPORTED.setdefault(Path(loader.path).parent, {})[name] = sys.modules[name]


def _make_packages(script: Path) -> str:
    """Returns the name of a package that stands for the script's folder, for what it imports from `.`.

    Folders above it that are packages get one too, for what it imports from `..`.
    """
    folders = [script.resolve().parent]
    while (folders[0] / "__init__.py").is_file():
        folders.insert(0, folders[0].parent)
    name = f"trtq.script_{hashlib.sha256(str(folders[0]).encode()).hexdigest()[:16]}"
    for folder in folders:
        name = name if folder is folders[0] else f"{name}.{folder.name}"
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
    return name


@contextmanager
def run_in_place(script: Path) -> Iterator[None]:
    """Lets the script import what lies beside it, as Python does, and keeps its surroundings apart from ours.

    A folder that it goes to, and variables of the environment that it sets, are there when it runs again, and
    trtq does not see them.
    """
    folder, place = str(script.parent.resolve()), _PLACES.setdefault(script.resolve(), _Place())
    sys.path.insert(0, folder)
    _take_imports(Path(folder))
    here, environment, modules = _find_folder(), dict(os.environ), set(sys.modules)
    _set_variables(place.changes)
    if place.folder is not None:
        with suppress(OSError):  # it is gone
            os.chdir(place.folder)
    try:
        yield
    finally:
        _note_imports(modules)
        with suppress(ValueError):  # the script may have removed it itself
            sys.path.remove(folder)
        place.changes = _compare(environment, os.environ)
        _set_variables({name: environment.get(name) for name in place.changes})
        _leave(place, here)


def _find_folder() -> str | None:
    """Returns the current folder; None if it was removed."""
    try:
        return os.getcwd()  # noqa: PTH109  # as text
    except OSError:
        return None


def _leave(place: _Place, here: str | None) -> None:
    """Goes back to the folder of before, and notes where the script was."""
    there = _find_folder()
    place.folder = there if there != here else None
    if there != here and here is not None:
        os.chdir(here)


def _compare(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """Returns the variables that are new or others, and as None those that are gone."""
    changed: dict[str, str | None] = {name: text for name, text in after.items() if before.get(name) != text}
    return changed | dict.fromkeys(name for name in before if name not in after)


def _set_variables(variables: Mapping[str, str | None]) -> None:
    for name, text in variables.items():
        if text is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = text


def iterate_in_place(script: Path, items: Iterable[Any]) -> Iterator[Any]:
    """Yields what a script yields; only while it makes an item, it has the surroundings of its own."""
    with run_in_place(script):
        iterator = iter(items)
    try:
        while True:
            with run_in_place(script):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
    finally:
        if hasattr(iterator, "close"):  # it may go back to the folder that it came from
            with run_in_place(script):
                iterator.close()
