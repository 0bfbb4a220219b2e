"""Libraries of operators that neither ONNX nor TensorRT has: for ONNX Runtime, and plugins for TensorRT.

Every session and builder of this process and of those that it starts needs them, as it needs the libraries
that it is linked with. So they stand where these stand, in the environment, and a user may name them there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from trtq.errors import UsageError
from trtq.files import is_file, refuse_name
from trtq.models.spec import OperatorSpec

CUSTOM_OPS, PLUGINS = "TRTQ_ORT_CUSTOM_OPS", "TRTQ_PLUGINS"
_given = dict.fromkeys((CUSTOM_OPS, PLUGINS), "")
"""What the user named in the environment, or on a worker of a cluster, what was named where work is given."""
_put = dict(_given)
"""What the last call of `use_operators` put there."""
_KNOWN_DOMAINS = ("", "ai.onnx", "com.microsoft", "trt")


def use_operators(spec: OperatorSpec) -> None:
    """Has every session and builder from now on load these libraries, in place of those of the last call.

    Where none are named, those that the user named in the environment hold.

    Raises:
        UsageError: There is no such file.
    """
    chosen = {CUSTOM_OPS: ("--ort-custom-ops", spec.ort_custom_ops), PLUGINS: ("--plugins", spec.plugins)}
    for variable, (option, paths) in chosen.items():
        _require(option, paths)
        found = os.environ.pop(variable, "")
        if found != _put[variable]:
            _given[variable] = found
        text = os.pathsep.join(map(_make_absolute, paths or _split(_given[variable])))
        _put[variable] = text
        if text:
            os.environ[variable] = text


def list_custom_ops() -> tuple[str, ...]:
    """Returns the libraries of operators that ONNX Runtime loads."""
    return _read(CUSTOM_OPS)


def list_plugins() -> tuple[str, ...]:
    """Returns the libraries of plugins that TensorRT loads."""
    return _read(PLUGINS)


def find_foreign(model: ir.Model, is_meant: Callable[[str], bool] = lambda _: True) -> ir.Node | None:
    """Returns the first node of a domain that only a library can know, and of a type that is meant."""
    foreign = (node for node in model.graph.all_nodes() if node.domain not in _KNOWN_DOMAINS)
    return next((node for node in foreign if is_meant(node.op_type)), None)


def _read(variable: str) -> tuple[str, ...]:
    return _split(os.environ.get(variable, ""))


def _split(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(os.pathsep)))


def _make_absolute(path: str) -> str:
    """Returns a path that another process finds too; a name that only the linker knows stays as it is."""
    return str(Path(path).absolute()) if is_file(Path(path)) else path


def _require(option: str, paths: Sequence[str]) -> None:
    for path in paths:
        if not is_file(Path(path)):
            raise UsageError(f"there is no library {path}; {option} takes the path of a shared library")
        refuse_name(Path(path))
