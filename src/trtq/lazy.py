"""Heavy libraries, imported when they are first needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from trtq.errors import MissingDependency


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
