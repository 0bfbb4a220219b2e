"""Finds what TensorRT removed in a Python script, by its syntax tree.

Names are resolved through the script's imports (see `scopes`). A member of an object, such as
`config.int8_calibrator`, is a use where the object's class is known to have had it, or where the class is
unknown and the script imports TensorRT; members that other classes often have too (`names.AMBIGUOUS`)
need in addition a receiver that is called as people call such objects (`layer.precision`, but not
`args.precision`).

A use is *guarded* where it runs only on a TensorRT that has it: behind `hasattr(trt,
"IInt8EntropyCalibrator2")`, behind a comparison of `trt.__version__`, or in a `try` that catches the
ImportError or AttributeError it would raise.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trtq.pipeline.migrate.removed.commands import Use, search_statements
from trtq.pipeline.migrate.removed.guards import VersionTests
from trtq.pipeline.migrate.removed.names import (
    AMBIGUOUS,
    CREATE_CONFIG,
    MEMBERS,
    NAMES,
    POLYGRAPHY_CALLS,
    RECEIVERS,
    SIGNATURES,
    Removed,
)
from trtq.pipeline.migrate.removed.scopes import FOREIGN, UNKNOWN, Names, Scope, canonicalize, read_dotted

_POLYGRAPHY = "polygraphy.backend.trt"
_EXITS = frozenset({"exit", "sys.exit", "os._exit", "quit"})


@dataclass(frozen=True, slots=True)
class _OnlyBefore:
    """Code that runs only where TensorRT's major version is below this one; 0: only where the name exists."""

    major: int


@dataclass(frozen=True, slots=True)
class _Catching:
    """Code whose exceptions of these types are caught."""

    exceptions: frozenset[str]


_Placed = ast.expr | ast.alias | ast.keyword
_Guard = _OnlyBefore | _Catching


def find_uses(tree: ast.Module, lines: list[str]) -> list[Use]:
    """Returns the uses in a script, guarded ones included, command lines in its strings too.

    Args:
        tree: The parsed script.
        lines: Its source lines.

    Raises:
        RecursionError: Its expressions are nested too deeply to be read.
    """
    names = Names(tree)
    visitor = _Visitor(names, names.scopes[tree], lines)
    visitor.visit(tree)
    return [*visitor.uses, *search_statements(tree, lines)]


class _Visitor(ast.NodeVisitor):
    """Walks a script with the scope and the guards that hold at each node."""

    def __init__(self, names: Names, scope: Scope, lines: list[str]) -> None:
        self.uses: list[Use] = []
        self._names = names
        self._scope = scope
        self._lines = lines
        self._guards: tuple[_Guard, ...] = ()
        self._has_tensorrt = any(
            re.match(rf"(tensorrt|{re.escape(_POLYGRAPHY)})(\.|$)", module) for module in names.imports
        )
        self._tests = VersionTests(names)

    def visit(self, node: ast.AST) -> None:
        """Visits one node in the scope that it opens."""
        before = self._scope, self._guards
        if node in self._names.scopes:
            self._scope = self._names.scopes[node]
            if not isinstance(node, ast.ClassDef):  # a body that runs later, outside the `try`
                self._guards = tuple(guard for guard in self._guards if isinstance(guard, _OnlyBefore))
        super().visit(node)
        self._scope, self._guards = before

    def generic_visit(self, node: ast.AST) -> None:
        """Visits what a node holds; statements after an early exit are guarded by its test."""
        for _, value in ast.iter_fields(node):
            if isinstance(value, list):
                self._visit_all(value)
            elif isinstance(value, ast.AST):
                self.visit(value)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Finds `from tensorrt import IInt8Calibrator`."""
        for alias in node.names:
            path = canonicalize(f"{node.module}.{alias.name}") if not node.level else ""
            if path.startswith("tensorrt."):
                self._add(NAMES.get(path.partition(".")[2]), alias, alias.name, "ImportError")
            elif removed := self._of_polygraphy(path):
                self._add(removed, alias, alias.name, "")

    def visit_Name(self, node: ast.Name) -> None:
        """Finds a removed class that `from tensorrt import *` brought; other imports are found themselves."""
        if self._names.star == "tensorrt" and not self._scope.bindings(node.id):
            self._add(NAMES.get(node.id), node, node.id, "NameError")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Finds `trt.BuilderFlag.INT8` and `config.int8_calibrator`."""
        removed = self._attribute(node.value, node.attr)
        if removed is None:
            self.visit(node.value)
            return
        self._add(removed, node, node.attr, "AttributeError")
        if read_dotted(node) is None:
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        """Finds `getattr(trt, "IInt8Calibrator")`, `CreateConfig(int8=True)`, `add_quantize` with no type."""
        called = read_dotted(node.func)
        if called == "hasattr":
            return  # a question, which anything may be asked
        if called in ("getattr", "setattr") and len(node.args) >= 2:
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                default = called == "getattr" and len(node.args) > 2
                removed = self._attribute(node.args[0], name.value)
                self._add(removed, name, name.value, "AttributeError", guarded=default)
        self._polygraphy_call(node)
        if isinstance(node.func, ast.Attribute) and self._has_tensorrt:
            self._short_call(node, node.func)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        """Guards the branches by the test."""
        self.visit(node.test)
        holds, fails = self._tests.bounds(node.test, self._scope)
        self._visit_all(node.body, holds)
        self._visit_all(node.orelse, fails)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """Guards both values by the test."""
        self.visit(node.test)
        holds, fails = self._tests.bounds(node.test, self._scope)
        self._visit_all([node.body], holds)
        self._visit_all([node.orelse], fails)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Guards each operand by those before it: `hasattr(trt, "X") and trt.X`."""
        before = self._guards
        for value in node.values:
            self.visit(value)
            holds, fails = self._tests.bounds(value, self._scope)
            self._guards += _before(holds if isinstance(node.op, ast.And) else fails)
        self._guards = before

    def visit_Try(self, node: ast.Try) -> None:
        """Guards the body by what is caught."""
        caught = frozenset(name for handler in node.handlers for name in _names_in(handler.type))
        self._visit_all(node.body, guards=(_Catching(caught),))
        self._visit_all([*node.handlers, *node.orelse, *node.finalbody])

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        """Guards the body as `with` does."""
        self.visit_With(node)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        """Guards the body by `contextlib.suppress(AttributeError)`."""
        caught: set[str] = set()
        for item in node.items:
            self.visit(item)
            call = item.context_expr
            if isinstance(call, ast.Call) and (read_dotted(call.func) or "").rpartition(".")[2] == "suppress":
                caught.update(name for arg in call.args for name in _names_in(arg))
        self._visit_all(node.body, guards=(_Catching(frozenset(caught)),))

    def _visit_all(
        self, nodes: Iterable[object], major: int | None = None, guards: tuple[_Guard, ...] = ()
    ) -> None:
        before = self._guards
        self._guards += guards + _before(major)
        for node in nodes:
            if isinstance(node, ast.AST):
                self.visit(node)
            if isinstance(node, ast.If):
                holds, fails = self._tests.bounds(node.test, self._scope)
                if _exits(node.body) and not _exits(node.orelse):
                    self._guards += _before(fails)
                elif _exits(node.orelse) and not _exits(node.body):
                    self._guards += _before(holds)
        self._guards = before

    def _attribute(self, owner: ast.expr, name: str) -> Removed | None:
        top, _, inner = (self._names.path(owner, self._scope) or "").partition(".")
        if top == "tensorrt":
            return NAMES.get(f"{inner}.{name}" if inner else name)
        if f"{top}.{inner}" == _POLYGRAPHY:
            return POLYGRAPHY_CALLS.get(name)
        if name not in MEMBERS or not self._has_tensorrt or read_dotted(owner) in ("self", "cls"):
            return None
        kinds = self._names.kinds(owner, self._scope)
        for kind, removed in MEMBERS[name]:
            if kind in kinds or (kind == "ILayer" and any(re.fullmatch(r"I\w+Layer", had) for had in kinds)):
                return removed
        if UNKNOWN not in kinds or kinds == {FOREIGN}:
            return None
        called = (read_dotted(owner) or "").rpartition(".")[2]
        for kind, removed in MEMBERS[name]:
            conventional = kind in RECEIVERS and re.search(RECEIVERS[kind], called, re.IGNORECASE)
            if conventional or (name not in AMBIGUOUS and name not in self._names.defined):
                return removed
        return None

    def _short_call(self, node: ast.Call, func: ast.Attribute) -> None:
        given = len(node.args) + len(node.keywords)
        whole = not any(isinstance(arg, ast.Starred) for arg in node.args) and all(
            item.arg not in (None, "output_type") for item in node.keywords
        )
        kinds = self._names.kinds(func.value, self._scope)
        if func.attr in SIGNATURES and whole and given == 2 and kinds & {UNKNOWN, "INetworkDefinition"}:
            self._add(SIGNATURES[func.attr], func, func.attr, "TypeError")

    def _polygraphy_call(self, node: ast.Call) -> None:
        path = self._names.path(node.func, self._scope) or ""
        if not path.startswith(f"{_POLYGRAPHY}.") or path.rpartition(".")[2] not in (
            "CreateConfig",
            "create_config",
        ):
            return
        for item in node.keywords:
            off = isinstance(item.value, ast.Constant) and item.value.value in (None, False)
            if not off and item.arg is not None and item.arg in CREATE_CONFIG:
                self._add(CREATE_CONFIG[item.arg], item, item.arg, "")

    def _of_polygraphy(self, path: str) -> Removed | None:
        module, _, name = path.rpartition(".")
        return POLYGRAPHY_CALLS.get(name) if f"{module}.".startswith(f"{_POLYGRAPHY}.") else None

    def _add(
        self, removed: Removed | None, node: _Placed, text: str, raises: str, *, guarded: bool = False
    ) -> None:
        if removed is None:
            return
        major = int(removed.since.partition(".")[0])
        guarded = guarded or any(
            guard.major <= major if isinstance(guard, _OnlyBefore) else raises in guard.exceptions
            for guard in self._guards
        )
        line, column = self._place(node, text)
        self.uses.append(Use(line, column, removed, guarded))

    def _place(self, node: _Placed, text: str) -> tuple[int, int]:
        """Returns the line and the column, from 1, where the name stands in the source."""
        last = node.end_lineno or node.lineno
        if isinstance(node, ast.Attribute):  # the last name of the chain
            end = self._num_characters(last, node.end_col_offset)
            if self._lines[last - 1][:end].endswith(text):
                return last, end - len(text) + 1
        start = self._num_characters(node.lineno, node.col_offset)
        for line in range(node.lineno, last + 1):
            found = self._lines[line - 1].find(text, start if line == node.lineno else 0)
            if found >= 0:
                return line, found + 1
        return node.lineno, start + 1

    def _num_characters(self, line: int, num_bytes: int | None) -> int:
        return len(self._lines[line - 1].encode()[:num_bytes].decode(errors="replace"))


def _before(major: int | None) -> tuple[_Guard, ...]:
    return () if major is None else (_OnlyBefore(major),)


def _names_in(node: ast.expr | None) -> Iterator[str]:
    for part in node.elts if isinstance(node, ast.Tuple) else [node] if node is not None else []:
        yield (read_dotted(part) or "").rpartition(".")[2]


def _exits(block: list[ast.stmt]) -> bool:
    """Returns whether control never leaves a block at its end."""
    last = block[-1] if block else None
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):
        return read_dotted(last.value.func) in _EXITS
    return isinstance(last, (ast.Return, ast.Raise, ast.Continue, ast.Break))
