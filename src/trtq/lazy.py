"""Heavy libraries, imported when they are first needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from threading import RLock
from types import ModuleType
from typing import Any

from trtq.errors import MissingDependency

_HARDLY_USED = (
    "sympy", "onnx_ir._symbolic_shapes", "google.protobuf.json_format", "google.protobuf.text_format",
)  # fmt: skip
"""onnx_ir needs the first two for arithmetic with the names of axes; they take as long to import as all else
of it. onnx needs the others for models as text."""
_LOCK = RLock()


def require(module: str, extra: str | None, purpose: str) -> ModuleType:
    """Returns the imported module.

    Args:
        module: The module's name, such as `PIL.Image`.
        extra: The extra of trtq that brings it; None when it is one of trtq's own dependencies.
        purpose: What needs it, for the message: "reading images".

    Raises:
        MissingDependency: It is not installed or cannot be loaded.
        KeyboardInterrupt: The user has stopped it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # of which pybind11 makes an ImportError
            raise error.__cause__ from None
        package = f"trtq[{extra}]" if extra else "trtq"
        raise MissingDependency(
            f"{purpose} needs {module.partition('.')[0]}, which cannot be imported here ({error}); "
            f"install it with: pip install '{package}'"
        ) from error


def defer(*modules: str) -> None:
    """Has these modules run when something of them is wanted, and not when other libraries import them.

    For what a library imports and hardly ever uses. It is for processes of our own: what else they import
    finds the same modules, only later. Modules that are imported already, or not installed, stay as they are.
    `importlib.util.LazyLoader` would not do: it runs a module at its second import, which looks at its
    `__spec__`, and onnx-ir imports sympy in several places.

    Args:
        modules: Their full names, else those that our libraries hardly use. `import a.b` runs a deferred `a`
            first.
    """
    modules = modules or _HARDLY_USED
    if wanted := [name for name in modules if name not in sys.modules]:
        others = [item for item in sys.meta_path if not isinstance(item, _DeferringFinder)]
        sys.meta_path[:] = [_DeferringFinder(wanted), *others]


class _DeferringFinder(MetaPathFinder):
    """Finds each of some modules once, and has it run later."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = set(names)

    def find_spec(self, name: str, _path: Any, _target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._names:
            return None
        self._names.remove(name)  # so that what looks for it now finds the real one
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeferringLoader(spec.loader)
        return spec


class _DeferringLoader(Loader):
    """Makes the module, and runs it when something of it is wanted."""

    def __init__(self, real: Loader) -> None:
        self._real = real
        self._runs = False

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).pop("__path__", None)  # so that the import of a submodule wants it
        module.__class__ = _Deferred

    def run(self, module: ModuleType, name: str) -> Any:
        """Runs the module, once, and returns an attribute of it."""
        with _LOCK:
            if isinstance(module, _Deferred):
                spec = module.__spec__
                assert spec is not None
                if self._runs:
                    raise AttributeError(f"module {spec.name!r} has no attribute {name!r} yet")
                if spec.submodule_search_locations is not None:
                    module.__path__ = spec.submodule_search_locations
                self._runs = True
                try:
                    self._real.exec_module(module)
                    spec.loader = module.__loader__ = self._real
                    plain: Any = module
                    plain.__class__ = ModuleType
                finally:
                    self._runs = False
        return getattr(module, name)


class _Deferred(ModuleType):
    """A module that has not run yet: it has no attributes but those of every module."""

    def __getattr__(self, name: str) -> Any:
        loader = self.__loader__
        assert isinstance(loader, _DeferringLoader)
        return loader.run(self, name)
