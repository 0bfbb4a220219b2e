"""Finds what TensorRT removed in a Python script, by its syntax tree.

Names are resolved through the script's imports (see `scopes`). A member of an object, such as
`config.int8_calibrator`, is a use where the object's class is known to have had it, or where the class is
unknown and the script imports TensorRT; members that other classes often have too ("?" in `removed.txt`)
also need a receiver with a usual name for such an object (`layer.precision`, but not
`args.precision`). Command lines are looked for in the strings of every statement that names the tool, or a
variable that one is bound to.

A use is *guarded* where it runs only on a TensorRT that has it: behind `hasattr(trt,
"IInt8EntropyCalibrator2")`, behind a comparison of `trt.__version__`, or in a `try` that catches the
ImportError or AttributeError it would raise.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from functools import partial

from trtq.pipeline.migrate.removed.commands import TOOLS, Placed, Source, Use, calls_tool, search_string
from trtq.pipeline.migrate.removed.guards import UNBOUND, VersionTests
from trtq.pipeline.migrate.removed.names import MEMBERS, RECEIVERS, REMOVED, Removed
from trtq.pipeline.migrate.removed.scopes import (
    NETWORK,
    POLYGRAPHY,
    UNKNOWN,
    Names,
    Scope,
    canonicalize,
    read_dotted,
)

_NOTHING = "nothing"  # is raised: there is a default
_EXITS = frozenset({"exit", "sys.exit", "os._exit", "quit"})
_DEFINES_OPTIONS = frozenset({"add_argument", "add_option", "argument", "option"})


def find_uses(source: Source) -> list[Use]:
    """Returns the uses in a Python script, guarded ones included, command lines in its strings too.

    Raises:
        SyntaxError: It is not of this version of Python.
        RecursionError: Its expressions are nested too deeply to be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the script's own escapes and comparisons
        tree = ast.parse(source.text)
    visitor = _Visitor(tree, source)
    visitor.visit(tree)
    return list(dict.fromkeys(visitor.uses))


class _Visitor(ast.NodeVisitor):
    """Walks a script with the scope and the guards that hold at each node."""

    def __init__(self, tree: ast.Module, source: Source) -> None:
        self.uses: list[Use] = []
        self._source = source
        self._names = Names(tree)
        self._scope = self._names.scopes[tree]
        self._tests = VersionTests(self._names)
        self._below = UNBOUND  # the code runs below this major version
        self._caught: frozenset[str] = frozenset()  # the exceptions that are caught around it
        self._in_statement = False  # whether the strings around it were searched
        self._tools = [tool for tool in TOOLS if tool in source.text.lower()]
        self._has_tensorrt = any(_is_ours(module) for module in self._names.imports)

    def visit(self, node: ast.AST) -> None:
        """Visits one node in the scope that it opens."""
        before = self._scope, self._below, self._caught, self._in_statement
        if node in self._names.scopes:
            self._scope = self._names.scopes[node]
            if not isinstance(node, ast.ClassDef):  # a body that runs later, outside the `try`
                self._caught = frozenset()
        if not self._in_statement and not _has_statements(node):
            self._in_statement = True
            self._search_commands(node)
        super().visit(node)
        self._scope, self._below, self._caught, self._in_statement = before

    def generic_visit(self, node: ast.AST) -> None:
        """Visits what a node holds; statements after an early exit are guarded by its test."""
        for _, value in ast.iter_fields(node):
            self._visit_all(value if isinstance(value, list) else [value])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Finds `from tensorrt import IInt8Calibrator`."""
        for alias in node.names if not node.level else ():
            removed = _removed_at(canonicalize(f"{node.module}.{alias.name}"))
            self._add(removed, alias, alias.name, "ImportError")

    def visit_Name(self, node: ast.Name) -> None:
        """Finds a removed class that `from tensorrt import *` brought; other imports are found themselves."""
        if self._names.star == "tensorrt" and node.id not in self._scope:
            self._add(_removed_at(f"tensorrt.{node.id}"), node, node.id, "NameError")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Finds `trt.BuilderFlag.INT8` and `config.int8_calibrator`."""
        removed = self._attribute(node.value, node.attr)
        self._add(removed, node, node.attr, "AttributeError")
        if removed is None or read_dotted(node) is None:
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        """Finds `getattr(trt, "IInt8Calibrator")`, `CreateConfig(int8=True)`, `add_quantize` with no type."""
        match node:
            case ast.Call(func=ast.Name(id="hasattr")):
                return  # anything may be asked for
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" as function),
                args=[owner, ast.Constant(value=str() as name) as asked, *rest],
            ):
                raises = _NOTHING if function == "getattr" and rest else "AttributeError"
                self._add(self._attribute(owner, name), asked, name, raises)
            case ast.Call(func=ast.Attribute(value=owner, attr=name)) if self._has_tensorrt:
                if _gives_two(node) and self._names.meanings(owner, self._scope) & {UNKNOWN, NETWORK}:
                    removed = REMOVED.get(f"INetworkDefinition.{name} without output_type")
                    self._add(removed, node.func, name, "TypeError")
        paths = self._names.paths(node.func, self._scope)
        if any(_is_ours(path) and path.endswith((".CreateConfig", ".create_config")) for path in paths):
            for item in node.keywords:
                if not (isinstance(item.value, ast.Constant) and item.value.value in (None, False)):
                    self._add(REMOVED.get(f"CreateConfig({item.arg}=)"), item, item.arg or "")
        self.generic_visit(node)

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        """Guards the branches by the test."""
        self.visit(node.test)
        bounds = self._tests.bounds(node.test, self._scope)
        for branch, bound in zip((node.body, node.orelse), bounds, strict=True):
            self._visit_all(branch if isinstance(branch, list) else [branch], bound)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """Guards both values by the test."""
        self.visit_If(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Guards each operand by those before it: `hasattr(trt, "X") and trt.X`."""
        for value in node.values:
            self.visit(value)
            holds, fails = self._tests.bounds(value, self._scope)
            self._below = min(self._below, holds if isinstance(node.op, ast.And) else fails)

    def visit_Try(self, node: ast.Try) -> None:
        """Guards the body by what is caught."""
        self._visit_all(node.body, caught=[handler.type for handler in node.handlers])
        self._visit_all([*node.handlers, *node.orelse, *node.finalbody])

    def visit_With(self, node: ast.With) -> None:
        """Guards the body by `contextlib.suppress(AttributeError)`."""
        self._visit_all(node.items)
        calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
        caught = [arg for call in calls if [*_names_in(call.func)] == ["suppress"] for arg in call.args]
        self._visit_all(node.body, caught=caught)

    def _visit_all(
        self, nodes: Iterable[object], below: int = UNBOUND, caught: Iterable[ast.expr | None] = ()
    ) -> None:
        before = self._below, self._caught
        self._below = min(self._below, below)
        self._caught |= {name for types in caught for name in _names_in(types)}
        for node in nodes:
            if isinstance(node, ast.AST):
                self.visit(node)
            if isinstance(node, ast.If) and _exits(node.body) != _exits(node.orelse):
                holds, fails = self._tests.bounds(node.test, self._scope)
                self._below = min(self._below, fails if _exits(node.body) else holds)
        self._below, self._caught = before

    def _attribute(self, owner: ast.expr, name: str) -> Removed | None:
        """Returns what was removed of that name from a module, a class, an enumeration or an object."""
        paths = self._names.paths(owner, self._scope)
        if paths and _is_ours(paths[0]):
            return _removed_at(f"{paths[0]}.{name}")
        if name not in MEMBERS or not self._has_tensorrt or read_dotted(owner) in ("self", "cls"):
            return None
        meanings = self._names.meanings(owner, self._scope)
        called = (read_dotted(owner) or "").rpartition(".")[2]
        maybe = None
        for kind, removed in MEMBERS[name].items():
            pattern = r"tensorrt\.I\w*Layer\(\)" if kind == "ILayer" else rf"tensorrt\.{kind}\(\)"
            if any(re.fullmatch(pattern, meaning) for meaning in meanings):
                return removed
            plain = not removed.ambiguous and name not in self._names.defined
            if plain or (kind in RECEIVERS and re.search(RECEIVERS[kind], called, re.IGNORECASE)):
                maybe = maybe or removed
        return maybe if UNKNOWN in meanings else None

    def _search_commands(self, statement: ast.AST) -> None:
        """Finds flags of the tools in the strings of a statement that names the tool."""
        if _is_prose(statement):
            return
        read = statement.value if isinstance(statement, ast.Assign) else statement
        for tool in self._tools:
            if self._names.any_part(read, self._scope, tool, partial(_names_tool, tool)):
                for node in _strings(read):
                    self.uses += search_string(node, tool, self._source)

    def _add(self, removed: Removed | None, node: Placed, text: str, raises: str = "") -> None:
        """Adds a use where the text stands in a node; the code raises that if TensorRT does not have it."""
        if removed is None:
            return
        start, end = self._source.span(node)
        find = self._source.text.rfind if isinstance(node, ast.Attribute) else self._source.text.find
        place = self._source.place(max(start, find(text, start, end)))
        guarded = self._below <= removed.major or raises in (*self._caught, _NOTHING)
        self.uses.append(Use(*place, removed, guarded))


def _is_ours(path: str) -> bool:
    return path.partition(".")[0] == "tensorrt" or f"{path}.".startswith(f"{POLYGRAPHY}.")


def _removed_at(path: str) -> Removed | None:
    """Returns what was removed of that path in TensorRT's or Polygraphy's packages."""
    if path.startswith("tensorrt."):
        return REMOVED.get(path.partition(".")[2])
    return REMOVED.get(f"polygraphy {path.rpartition('.')[2]}") if _is_ours(path) else None


def _gives_two(call: ast.Call) -> bool:
    """Returns whether a call gives exactly two arguments, none of them the type of the output."""
    starred = any(isinstance(arg, ast.Starred) for arg in call.args)
    named = [item.arg for item in call.keywords]
    return len(call.args) + len(named) == 2 and not starred and not {None, "output_type"} & set(named)


def _names_in(node: ast.expr | None) -> Iterator[str]:
    for part in node.elts if isinstance(node, ast.Tuple) else [node] if node is not None else []:
        yield (read_dotted(part) or "").rpartition(".")[2]


def _exits(block: list[ast.stmt]) -> bool:
    """Returns whether control never leaves a block at its end."""
    last = block[-1] if block else None
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):
        return read_dotted(last.value.func) in _EXITS
    return isinstance(last, (ast.Return, ast.Raise, ast.Continue, ast.Break))


def _has_statements(node: ast.AST) -> bool:
    inner = (ast.stmt, ast.ExceptHandler, ast.match_case)
    return isinstance(node, ast.Module) or any(
        isinstance(child, inner) for child in ast.iter_child_nodes(node)
    )


def _is_prose(node: ast.AST) -> bool:
    """Returns whether it is a docstring, an error message, or defines an option of the script's own."""
    if isinstance(node, (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)):
        return True
    value = node.value if isinstance(node, ast.Expr) else node
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Attribute) and value.func.attr in _DEFINES_OPTIONS
    return isinstance(value, ast.Constant)


def _names_tool(tool: str, part: ast.AST, _: Scope) -> bool:
    """Returns whether a part of a script is named after the tool, or is a string that calls it."""
    if isinstance(part, ast.Constant) and isinstance(part.value, str):
        return calls_tool(part.value, tool)
    return tool in (read_dotted(part) or "").rpartition(".")[2].lower()


def _strings(node: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from _strings(child)
