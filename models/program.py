"""Exported programs of PyTorch (.pt2), read without running what somebody may have put into them.

`torch.export.load` falls back to plain pickle for the sample inputs, reads objects of the user's own with
pickle, opens compiled libraries, evaluates the text of symbolic sizes, and calls whatever function of `torch`
a node names.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtq.errors import ModelError
from trtq.models.foreign import explain_failures, silence

if TYPE_CHECKING:
    import torch

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_OBJECTS = ("opaque_obj_", "custom_obj_", "aotinductor", ".so")
"""In the names of members that hold more than tensors: pickles, and compiled code."""
_FUNCTION_KEYS = ("target", "as_operator")
_OPERATOR = re.compile(
    r"torch\.ops\.\w+\.\w+(\.\w+)?|torch\.sym_\w+|math\.\w+|_operator\.(?!call|.*getter|methodcaller)\w+"
)
_PLAIN = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Constant, ast.Name,
    ast.Tuple, ast.Call, ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip
_LOWER = {"floor", "ceiling", "sqrt", "log", "exp", "max", "min", "abs", "int", "float", "true", "false"}
_WHY = "loading it may run code in it; add --trust if you know where it comes from"
_ADVICE = "save it with torch.export.save"


def load_program(path: Path, *, trust: bool) -> Any:
    """Returns the `ExportedProgram` of a file.

    Args:
        path: The .pt2 file.
        trust: Whether code in it may run.

    Raises:
        ModelError: It is none, or cannot be read without running code in it.
    """
    import torch

    with explain_failures(f"{path} is not an exported program", _ADVICE), silence():
        if trust:
            return torch.export.load(path)
        _refuse_code(path)
        try:
            with _tensors_only():
                return torch.export.load(path)
        except pickle.UnpicklingError as error:
            raise ModelError(f"{path} holds a pickle of more than tensors; {_WHY}") from error


def open_module(program: Any) -> torch.nn.Module:
    """Returns the module of an exported program, without the guards, which are kept as text and compiled.

    Raises:
        ModelError: The program contradicts itself.
    """
    takes_guards = "check_guards" in inspect.signature(program.module).parameters
    with explain_failures("the exported program makes no module", _ADVICE):
        module: torch.nn.Module = program.module(check_guards=False) if takes_guards else program.module()
    return module


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Keeps `torch.load` from running pickles, whatever its caller asks for."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _refuse_code(path: Path) -> None:
    """Refuses members that only pickle or a linker reads, and graphs that call more than operators."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len({*names}) < len(names):  # PyTorch may read another one than we do
            raise ModelError(f"{path} holds two members of one name; {_WHY}")
        for name in names:
            if any(part in name for part in _OBJECTS):
                raise ModelError(f"{path} holds {name}, which is more than tensors; {_WHY}")
            if name.endswith(".json"):
                for text in _find_code(json.loads(archive.read(name))):
                    raise ModelError(f"{path} calls {text[:200]!r}, which is no operator of a graph; {_WHY}")


def _find_code(value: Any, key: str = "") -> Iterator[str]:
    """Yields the texts in a JSON value that name more than operators, or are more than arithmetic."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _find_code(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _find_code(item, key)
    elif isinstance(value, str):
        is_named = key in _FUNCTION_KEYS and value.startswith(("torch", "math", "_operator"))
        if (is_named and not _is_operator(value)) or (key == "expr_str" and not _is_arithmetic(value)):
            yield value


def _is_operator(name: str) -> bool:
    return "__" not in name.removeprefix("torch.ops.") and _OPERATOR.fullmatch(name) is not None


def _is_arithmetic(text: str) -> bool:
    """Returns whether an expression of sympy holds numbers, symbols, operators and sympy's classes only."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(map(_is_plain, nodes))


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        return name[:1].isupper() or name in _LOWER
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return isinstance(node.value, str) and node.value.isidentifier() and "__" not in node.value
    return isinstance(node, _PLAIN)
