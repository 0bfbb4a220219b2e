"""Functions of the user's own scripts."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trtq.errors import DataError


def load_function(script: Path, function: str) -> Any:
    """Returns a function of a script, which is run for it.

    Raises:
        DataError: There is no such script or function, or the script fails.
    """
    name = f"trtq.script.{script.stem}"  # must not hide a library that is called like the script
    spec = importlib.util.spec_from_file_location(name, script)
    if not script.is_file() or spec is None or spec.loader is None:
        raise DataError(f"there is no script {script}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        with import_beside(script):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise DataError(f"{script} cannot be run: {type(error).__name__}: {error}") from error
    call = getattr(module, function, None)
    if not callable(call):
        raise DataError(f"{script} has no function {function!r}")
    return call


@contextmanager
def import_beside(script: Path) -> Iterator[None]:
    """Lets the script import what lies beside it, as Python does when it runs one."""
    folder = str(script.parent.resolve())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the script may have removed it itself
            sys.path.remove(folder)
